"""Checksums of a token file's blocks: a second array of the `.npy` file, behind the tokens.

`numpy.load` reads the first array of a file and so does not see them.
"""

import zlib

import numpy as np

from kgpt.data.array_file import ArrayFile, errors_of_reading

BLOCK = 2**16  # bytes of tokens for each checksum


class GrowingChecksums:
    """The CRC-32 of each block of bytes that are written one after the other."""

    def __init__(self):
        self._whole, self._last, self._length = [], 0, 0

    def update(self, data: bytes):
        """Takes the bytes that are written next."""
        while data:
            part, data = data[: BLOCK - self._length], data[BLOCK - self._length :]
            self._last, self._length = zlib.crc32(part, self._last), self._length + len(part)
            if self._length == BLOCK:
                self._whole.append(self._last)
                self._last = self._length = 0

    def array(self) -> np.ndarray:
        """Returns them, uint32, the last one of a block that may be shorter."""
        return np.array(self._whole + [self._last] * (self._length > 0), "<u4")


class Checksums:
    """Compares each block of a file's tokens with its checksum when it is first read.

    A file without checksums has nothing to compare with.

    Args:
        tokens: the array of tokens in the file.

    Raises:
        ValueError: if something else than checksums of them stands behind the tokens.
    """

    def __init__(self, tokens: ArrayFile):
        self._tokens, self._expected = tokens, _read(tokens)
        self._is_right = np.zeros(0 if self._expected is None else len(self._expected), bool)

    def check(self, starts: np.ndarray, length: int):
        """Raises ValueError if a token is not the one that was written.

        Args:
            starts: int array. Where the tokens that are read begin.
            length: int. How many are read from each start on.
        """
        if self._expected is None:
            return
        size = BLOCK // self._tokens.itemsize
        first, last = starts // size, (starts + length - 1) // size
        blocks = first[:, None] + np.arange(int((last - first).max(initial=0)) + 1)
        blocks = np.unique(np.minimum(blocks, last[:, None]))
        for block in blocks[~self._is_right[blocks]]:
            part = self._tokens[block * size : (block + 1) * size]
            if zlib.crc32(part) != self._expected[block]:
                raise ValueError(
                    f"{self._tokens.path} is damaged: its tokens from {block * size} to "
                    f"{block * size + len(part)} are not those that were written. Copy it again, "
                    "or write it anew with kgpt.data.write_tokens."
                )
            self._is_right[block] = True


def _read(tokens) -> np.ndarray | None:
    """Returns the second array of the file; of a file with one array, nothing."""
    if tokens.size == tokens.end:
        return None
    with errors_of_reading(tokens.path):
        tokens.file.seek(tokens.end)
        try:
            expected = np.lib.format.read_array(tokens.file, allow_pickle=False)
        except (MemoryError, OSError):
            raise
        except Exception:  # a header is Python, of which any part may be wrong
            expected = np.empty(0)
    right = np.uint32, (-(-tokens.nbytes // BLOCK),), tokens.size
    if (expected.dtype, expected.shape, tokens.file.tell()) != right:
        raise ValueError(f"it has {tokens.size:,} bytes, and its header speaks of {tokens.end:,}")
    return expected
