"""A corpus in one token file or in many, cut into windows none of which spans two files."""

import collections
import os
import threading
from pathlib import Path

import numpy as np

from kgpt.arguments import refuse
from kgpt.data.array_file import ArrayFile
from kgpt.data.token_file import TokenFile

_MOST_OPEN = 128  # files; a process may usually open 1,024
_SUFFIXES = (".npy", ".bin")
_HELD_OUT = ("val", "valid", "validation", "test")
_SAMPLES, _SAMPLE_LENGTH = 64, 2**15  # tokens that stand for the content of many files


def token_paths(name, value) -> list[Path]:
    """Returns the paths of token files, sorted: the rule of the argument that takes them.

    Args:
        name: the argument's name.
        value: path of a file or a folder, or a list of paths of files.

    Raises:
        TypeError: for anything else.
        FileNotFoundError: for a folder without token files.
        ValueError: for an empty list, a file that is named twice, and a folder in which some files
            are held out by their names.
    """
    if isinstance(value, str | os.PathLike):
        path = Path(value)
        return _paths_in(path) if path.is_dir() else [path]
    if not isinstance(value, list | tuple) or not all(
        isinstance(one, str | os.PathLike) for one in value
    ):
        expected = "a path of a token file or of a folder of them, or a list of paths"
        refuse(name, value, expected, error=TypeError)
    paths = sorted(map(Path, value))
    if not paths or len(set(paths)) < len(paths):
        hint = "kgpt.data.mixture reads some files more often than others." if paths else ""
        refuse(name, value, "paths of token files, each of them once", hint)
    return paths


def _paths_in(folder):
    found = [one for one in folder.iterdir() if one.suffix in _SUFFIXES and one.name[0] != "."]
    if not found:
        raise FileNotFoundError(
            "There are no token files, *.npy or *.bin, in the folder. Received: "
            f"path={str(folder)!r}. Try kgpt.data.write_tokens, which writes one."
        )
    held_out = [one for one in found if one.stem.rpartition(".")[2].lower() in _HELD_OUT]
    if 0 < len(held_out) < len(found):
        raise ValueError(
            "The token files of a folder are read together, and the names of some say that they "
            f"are held out. Received: {held_out[0].name} among {len(found)} files in {folder}. "
            "Try a list of paths, or a folder for each of the two."
        )
    return sorted(found)


class TokenFiles:
    """The windows of several token files, numbered through from file to file.

    What follows a file's last whole window is not read. Of all files a few are open at a time; one
    that is opened again must not have been replaced.

    Args:
        paths: list of the files' paths.
        length: int. Tokens in a window, without the one that is only a target.
        spare: int. How many tokens windows may be moved by.
    """

    def __init__(self, paths: list[Path], length: int, spare: int = 0):
        self._arguments = paths, length, spare
        self._open = collections.OrderedDict()  # by number, the one that was read last at the end
        self._stamps, self._lock = {}, threading.Lock()
        self._lengths = np.array([len(self._file(number)) for number in range(len(paths))])
        self._counts = np.maximum(0, self._lengths - 1 - spare) // length
        self._ends = np.cumsum(self._counts)

    @property
    def num_tokens(self) -> int:
        """Number of tokens in all files."""
        return int(self._lengths.sum())

    @property
    def num_windows(self) -> int:
        """Number of windows in all files."""
        return int(self._ends[-1])

    def windows(
        self, numbers: np.ndarray, moved: int = 0, vocabulary_size: int | None = None
    ) -> np.ndarray:
        """Returns int32 `(numbers, length + 1)`: the tokens of windows, and the one after them.

        Args:
            numbers: int array. The windows.
            moved: int. By how many tokens they are moved in their files.
            vocabulary_size: optional int. Its ids are allowed; None for all.

        Raises:
            ValueError: for ids outside the vocabulary, and for a file that has changed.
        """
        _, length, _ = self._arguments
        files = np.searchsorted(self._ends, numbers, side="right")
        starts = (numbers - (self._ends - self._counts)[files]) * length + moved
        tokens = np.empty((len(numbers), length + 1), "int32")
        for number in np.unique(files):
            rows = files == number
            file = self._file(int(number))
            tokens[rows] = file.windows(starts[rows], length + 1, vocabulary_size)
        return tokens

    def check_ids(self, vocabulary_size: int):
        """Raises ValueError if a file has a token id outside the vocabulary; reads them whole."""
        for number in range(len(self._lengths)):
            self._file(number).check_ids(vocabulary_size)

    def content(self) -> dict[str, np.ndarray | ArrayFile]:
        """Returns the tokens of one file; the lengths of several, and a sample of their tokens."""
        if len(self._lengths) == 1:
            return {"tokens": self._file(0).tokens}
        return {"lengths": self._lengths, "tokens": self._sample()}

    def _sample(self):
        """Returns the tokens of all files, or of 64 places that lie apart alike."""
        if self.num_tokens <= _SAMPLES * _SAMPLE_LENGTH:
            return np.concatenate([self._file(n).tokens[:] for n in range(len(self._lengths))])
        ends = np.cumsum(self._lengths)
        places = np.linspace(0, self.num_tokens - _SAMPLE_LENGTH, _SAMPLES).astype("int64")
        files = np.searchsorted(ends, places, side="right")
        starts = places - (ends - self._lengths)[files]
        parts = [
            self._file(int(number)).tokens[start : start + _SAMPLE_LENGTH]
            for number, start in zip(files, starts, strict=True)
        ]
        return np.concatenate([*parts, self._file(len(ends) - 1).tokens[-_SAMPLE_LENGTH:]])

    def _file(self, number) -> TokenFile:
        with self._lock:  # of the threads that read
            file = self._open.pop(number, None)
            if file is None:
                file = TokenFile(self._arguments[0][number])
                if self._stamps.setdefault(number, file.tokens.stamp) != file.tokens.stamp:
                    raise ValueError(
                        f"Of more than {_MOST_OPEN} token files none may be replaced while they "
                        f"are read. Received: {file.path}, which is another one now."
                    )
            self._open[number] = file
            if len(self._open) > _MOST_OPEN:
                self._open.popitem(last=False)
            return file

    def __reduce__(self):
        return type(self), self._arguments
