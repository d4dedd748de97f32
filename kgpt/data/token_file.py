"""The file of tokens on disk."""

import os
from pathlib import Path

import numpy as np

from kgpt.data.array_file import ArrayFile
from kgpt.data.checksums import Checksums
from kgpt.reading import one_line


class TokenFile:
    """The token ids of a `.npy` file, or of nanoGPT's `.bin`, read when they are asked for.

    Where it has checksums, as those of `write_tokens` have, tokens are compared with theirs.

    Args:
        path: path of the file.

    Attributes:
        tokens: the tokens as an `ArrayFile`, sliced without that comparison.

    Raises:
        FileNotFoundError: if there is no such file.
        ValueError: if the file is no array of integers along one axis, or has another size than
            its header says. When tokens are read, if they are not those that were written.
        OSError: one line that names the file, if the system can't read it.
    """

    def __init__(self, path: str | os.PathLike):
        self.path = path
        self.tokens, self._checksums = _open(path)

    def __len__(self) -> int:
        return len(self.tokens)

    def windows(
        self, starts: np.ndarray, length: int, vocabulary_size: int | None = None
    ) -> np.ndarray:
        """Returns int32 `(starts, length)`: the tokens from each start on.

        Raises:
            ValueError: if one of them is outside the vocabulary, or without one outside int32.
        """
        vocabulary_size = vocabulary_size or 2**31
        self._checksums.check(starts, length)
        tokens = np.empty((len(starts), length), self.tokens.dtype)
        for row, start in zip(tokens, starts, strict=True):
            row[:] = self.tokens[start : start + length]
        wrong = _first_outside(tokens, vocabulary_size)
        if wrong is not None:
            row, column = divmod(wrong, length)
            self._refuse(tokens[row, column], starts[row] + column, vocabulary_size)
        return tokens.astype("int32")

    def check_ids(self, vocabulary_size: int, block: int = 2**22):
        """Raises ValueError if the file has a token id outside the vocabulary; reads it whole."""
        for start in range(0, len(self), block):
            part = self.tokens[start : start + block]
            self._checksums.check(np.array([start]), len(part))
            wrong = _first_outside(part, vocabulary_size)
            if wrong is not None:
                self._refuse(part[wrong], start + wrong, vocabulary_size)

    def _refuse(self, token_id, position, vocabulary_size):
        raise ValueError(
            "The token file has an id outside the vocabulary. "
            f"Received: id {token_id} at position {position} of {self.path}, "
            f"vocabulary_size={vocabulary_size}. Try the tokenizer that wrote the file."
        )

    def __reduce__(self):
        return type(self), (self.path,)


def _first_outside(tokens: np.ndarray, vocabulary_size: int) -> int | None:
    """Returns the place of the first id outside the vocabulary, in the flat array, or None."""
    if tokens.max() < vocabulary_size and tokens.min() >= 0:
        return None
    return int(np.argmax((tokens >= vocabulary_size) | (tokens < 0)))


def _open(path) -> tuple[ArrayFile, Checksums]:
    hint = "Try kgpt.data.write_tokens, which writes one."
    try:
        tokens = ArrayFile(path)
        return tokens, Checksums(tokens)
    except FileNotFoundError:
        raise FileNotFoundError(
            f"There is no token file. Received: path={str(path)!r}. {hint}"
        ) from None
    except ValueError as error:
        size = f", of {os.path.getsize(path)} bytes" if os.path.isfile(path) else ""
        kind = "raw uint16" if Path(path).suffix == ".bin" else "a .npy array"
        raise ValueError(
            f"The token file is not {kind}: {one_line(error).removesuffix('.')}. "
            f"Received: path={str(path)!r}{size}. {hint}"
        ) from None
