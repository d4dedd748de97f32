"""HDF5 files on a disk that may be full."""

import io
import os


class SafeFile(io.BytesIO):
    """A file to write HDF5 to: the first error is raised at the end, when HDF5 is done.

    HDF5 ends the process with a segmentation fault where it can't write to a full disk. It is a
    `BytesIO` since Keras takes nothing else for an open file; Keras reads the ending off its name.

    Example:
        import h5py
        from kgpt.hdf5 import SafeFile

        with SafeFile("a.h5") as file, h5py.File(file, "w") as weights:
            weights["a"] = np.ones(3)
    """

    def __init__(self, path: str | os.PathLike):
        super().__init__()
        self.name = os.fspath(path)
        self._file = open(path, "w+b", buffering=0)  # noqa: SIM115
        self._error = None

    def __str__(self):
        return self.name

    def seek(self, *args):
        return self._file.seek(*args)

    def tell(self):
        return self._file.tell()

    def readinto(self, buffer):
        return self._file.readinto(buffer)

    def write(self, data):
        rest = memoryview(data).cast("B")
        size = len(rest)
        while len(rest) and self._error is None:
            try:
                rest = rest[self._file.write(rest) :]
            except OSError as error:
                self._error = error
        return size

    def truncate(self, size=None):
        try:
            return self._file.truncate(size)
        except OSError as error:
            self._error = self._error or error

    def __exit__(self, *exception):
        self._file.close()
        self._file = io.BytesIO()  # for what HDF5 writes of a file that it was not asked to close
        if self._error is not None:
            raise self._error
