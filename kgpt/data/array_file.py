"""An array in a file, of which parts are read when they are asked for."""

import contextlib
import errno
import os
import threading
import weakref

import numpy as np

from kgpt.reading import check_file, one_line


class ArrayFile:
    """The numbers in a 1-D `.npy` file, or in a `.bin` of raw uint16, sliced as an array is.

    It is read and not mapped into memory: a mapped file that is cut, or lies on a disk that fails,
    ends the process with SIGBUS when the lost part is read. The file may be replaced by another one
    of the same name: the old one stays open. Threads may read at once.

    Args:
        path: path of the file. Something may stand behind the array.

    Attributes:
        dtype, shape: of the array.
        end: int. Where it ends in the file, in bytes.
        size: int. Bytes of the file.
        stamp: its size and when it was written, by which another file of the name is known.

    Raises:
        FileNotFoundError: if there is no such file.
        ValueError: if the file is no 1-D array of integers, or shorter than its header says. When
            a part is read, if the file has been written to.
        OSError: one line that names the file, if the system can't read it.
    """

    def __init__(self, path: str | os.PathLike):
        self.path = check_file(path)
        with errors_of_reading(path):
            self._open()

    def _open(self):
        self.file = open(self.path, "rb")  # noqa: SIM115
        weakref.finalize(self, self.file.close)
        self._lock = threading.Lock()
        status = os.fstat(self.file.fileno())
        self.size, self.stamp = status.st_size, (status.st_size, status.st_mtime_ns)
        if self.path.suffix == ".bin":
            self.dtype, self.shape = np.dtype("uint16"), (self.size // 2,)
            if not self.size or self.size % 2:
                raise ValueError("numbers of 2 bytes each are expected, and at least one")
        else:
            self.dtype, self.shape = _read_header(self.file)
        if len(self.shape) != 1 or self.dtype.kind not in "iu" or not self.dtype.isnative:
            raise ValueError(
                "a 1-D array of integers in this machine's byte order is expected, and it has "
                f"shape {self.shape} and dtype {self.dtype} ({self.dtype.str!r})"
            )
        self._start = self.file.tell()
        self.end = self._start + self.nbytes
        if self.size < self.end:
            raise ValueError(f"it has {self.size:,} bytes, and its header speaks of {self.end:,}")

    def __len__(self) -> int:
        return self.shape[0]

    @property
    def itemsize(self) -> int:
        """Bytes of a number."""
        return self.dtype.itemsize

    @property
    def nbytes(self) -> int:
        """Bytes of the array."""
        return len(self) * self.itemsize

    def __getitem__(self, part: slice) -> np.ndarray:
        start, stop, _ = part.indices(len(self))
        count = max(0, stop - start) * self.itemsize
        with errors_of_reading(self.path):
            data = self._read(self._start + start * self.itemsize, count)
            size = os.fstat(self.file.fileno()).st_size
        if size != self.size or len(data) != count:
            raise ValueError(
                "A token file may be replaced while it is read, but not written to. Received: "
                f"{self.path}, of {self.size:,} bytes when it was opened and {size:,} now. "
                "Write it anew with kgpt.data.write_tokens."
            )
        return np.frombuffer(data, self.dtype)

    def _read(self, place, count):
        data = self._read_some(place, count)
        while len(data) < count:  # the system may give less than is asked for
            more = self._read_some(place + len(data), count - len(data))
            if not more:
                break
            data += more
        return data

    def _read_some(self, place, count):
        if hasattr(os, "pread"):
            return os.pread(self.file.fileno(), count, place)
        with self._lock:  # Windows
            self.file.seek(place)
            return self.file.read(count)


@contextlib.contextmanager
def errors_of_reading(path: str | os.PathLike):
    """Inside, an error of the system says in one line which file it can't read, and what to do."""
    try:
        yield
    except OSError as error:
        hint = "Check the disk and the permissions, or take a copy of the file."
        if error.errno == errno.EMFILE:
            hint = "Raise the limit (ulimit -n)."
        raise OSError(error.errno, f"Can't read {path}: {error.strerror}. {hint}") from error


def _read_header(file) -> tuple[np.dtype, tuple[int, ...]]:
    """Returns dtype and shape of a .npy file, whose position is then at the first number."""
    try:
        if np.lib.format.read_magic(file) == (1, 0):
            shape, _, dtype = np.lib.format.read_array_header_1_0(file)
        else:
            shape, _, dtype = np.lib.format.read_array_header_2_0(file)
    except (MemoryError, OSError):
        raise
    except Exception as error:  # a header is Python, of which any part may be wrong
        raise ValueError(one_line(error)) from None
    return dtype, shape
