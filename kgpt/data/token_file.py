"""The file of tokens on disk, mapped into memory."""

import os
from pathlib import Path

import numpy as np

from kgpt.data.checksums import Checksums
from kgpt.reading import check_file, map_npy, one_line


class TokenFile:
    """The token ids of a `.npy` file, or of nanoGPT's `.bin`, read when they are asked for.

    A file that is cut while it is mapped would end the process with SIGBUS when the lost part is
    read. So the size of the file that was opened, which costs a microsecond, is looked at before
    each read. The file may be replaced by another one of the same name: the old one is read on.
    Where it has checksums, as those of `write_tokens` have, tokens are compared with theirs.

    Args:
        path: path of the file.

    Attributes:
        stamp: its size and when it was written, by which another file of the name is known.

    Raises:
        FileNotFoundError: if there is no such file.
        ValueError: if the file is no array of integers along one axis, or has another size than
            its header says. When tokens are read, if they are not those that were written.
    """

    def __init__(self, path: str | os.PathLike):
        self.path = path
        self._tokens, self._checksums = _map(path)
        self._size = self._tokens.base.size()  # of the file that is mapped
        self.stamp = self._size, os.stat(path).st_mtime_ns

    def __len__(self) -> int:
        return len(self._tokens)

    @property
    def mapped(self) -> np.ndarray:
        """The tokens, of which nothing has been read yet."""
        self._check_size()
        return self._tokens

    def windows(
        self, starts: np.ndarray, length: int, vocabulary_size: int | None = None
    ) -> np.ndarray:
        """Returns int32 `(starts, length)`: the tokens from each start on.

        Raises:
            ValueError: if one of them is outside the vocabulary, where its size is given.
        """
        self._check_size()
        self._checksums.check(starts, length)
        every_window = np.lib.stride_tricks.sliding_window_view(self._tokens, length)
        tokens = every_window[starts]
        wrong = _first_outside(tokens, vocabulary_size)
        if wrong is not None:
            row, column = divmod(wrong, length)
            self._refuse(int(starts[row]) + column, vocabulary_size)
        return tokens.astype("int32")

    def check_ids(self, vocabulary_size: int, block: int = 2**22):
        """Raises ValueError if the file has a token id outside the vocabulary; reads it whole."""
        for start in range(0, len(self), block):
            self._check_size()
            part = self._tokens[start : start + block]
            self._checksums.check(np.array([start]), len(part))
            wrong = _first_outside(part, vocabulary_size)
            if wrong is not None:
                self._refuse(start + wrong, vocabulary_size)

    def _refuse(self, position, vocabulary_size):
        raise ValueError(
            "The token file has an id outside the vocabulary. "
            f"Received: id {self._tokens[position]} at position {position} of {self.path}, "
            f"vocabulary_size={vocabulary_size}. Try the tokenizer that wrote the file."
        )

    def _check_size(self):
        size = self._tokens.base.size()
        if size != self._size:
            raise ValueError(
                "A token file may be replaced while it is read, but not written to. Received: "
                f"{self.path}, of {self._size:,} bytes when it was opened and {size:,} now. "
                "Write it anew with kgpt.data.write_tokens."
            )

    def __reduce__(self):
        return type(self), (self.path,)


def _first_outside(tokens: np.ndarray, vocabulary_size: int | None) -> int | None:
    """Returns the place of the first id outside the vocabulary, in the flat array, or None."""
    if vocabulary_size is None or (tokens.max() < vocabulary_size and tokens.min() >= 0):
        return None
    return int(np.argmax((tokens >= vocabulary_size) | (tokens < 0)))


def _map(path) -> tuple[np.ndarray, Checksums]:
    hint = "Try kgpt.data.write_tokens, which writes one."
    is_raw = Path(path).suffix == ".bin"
    try:
        check_file(path)
        tokens = np.memmap(path, "uint16", "r") if is_raw else map_npy(path, more=True)
        checksums = Checksums(path, tokens)
    except FileNotFoundError:
        raise FileNotFoundError(
            f"There is no token file. Received: path={str(path)!r}. {hint}"
        ) from None
    except (ValueError, OSError) as error:
        size = f", of {os.path.getsize(path)} bytes" if os.path.isfile(path) else ""
        raise ValueError(
            f"The token file is not {'raw uint16' if is_raw else 'a .npy array'}: "
            f"{one_line(error)}. Received: path={str(path)!r}{size}. {hint}"
        ) from None
    if tokens.ndim != 1 or tokens.dtype.kind not in "iu":
        raise ValueError(
            "The token file must be a 1-D array of integers. "
            f"Received: path={str(path)!r} with shape {tokens.shape} and dtype {tokens.dtype}."
        )
    return tokens, checksums
