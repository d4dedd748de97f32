"""The folder of a run's checkpoints: written whole, checked when read, the older ones removed."""

import concurrent.futures
import errno
import json
import os
import re
import shutil
import threading
import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import filelock
import numpy as np

from kgpt.distribution import process
from kgpt.files import (
    MANIFEST,
    DamagedError,
    check_free_space,
    check_manifest,
    folder_written_whole,
    make_folder,
)
from kgpt.kernels.platform import in_first_process

FORMAT = 2
_NAME = re.compile(r"checkpoint-\d{8,}")
_STATE, _WEIGHTS_OF_FIRST_FORMAT = "state.npz", "state.weights.h5"
_MORE_THAN_ARRAYS = 2**20  # bytes of a checkpoint besides the arrays, amply
_held = {}  # the locks of this process: {folder: (lock, the thread that may have left it)}
_writing = {}  # {folder: the last save in a thread of its own}


@dataclass
class Checkpoint:
    """A checkpoint that was found whole.

    Attributes:
        path: its folder.
        progress: dict. What `progress.json` holds.
        arrays: `{name: array}`, read from the file when asked for; None in the first format.
        weights: the path of the weights file of the first format, or None.
    """

    path: Path
    progress: dict
    arrays: Mapping | None = None
    weights: Path | None = None


class _Arrays(Mapping):
    """The arrays of a file, each of which is read when asked for; the file is not kept open."""

    def __init__(self, path: Path):
        self._path = path
        with self._opened() as file:
            self._names = file.files

    def _opened(self):
        return np.load(self._path, allow_pickle=False)

    def __getitem__(self, name):
        with self._opened() as file:
            return file[name]

    def __iter__(self):
        return iter(self._names)

    def __len__(self):
        return len(self._names)


class CheckpointFolder:
    """Folders `checkpoint-00000012` in a folder, each of which is whole or not there.

    The files of one are `state.npz`, numpy's format, `progress.json` and a manifest with the hashes
    of both. Other names in the folder are left alone.

    Args:
        path: the folder.
        keep: int. How many checkpoints stay when a new one is there.
    """

    def __init__(self, path: Path, keep: int):
        self.path, self.keep = path, keep
        self._useless = set()  # go when there is a new one

    def open(self, is_closed_in_the_end: bool = True):
        """Makes the folder, locks it, and removes what a killed process left unfinished.

        Args:
            is_closed_in_the_end: bool. False where `close` isn't called after an error. The lock is
                then left to the next one that the same thread opens.

        Raises:
            RuntimeError: if somebody else trains with the folder.
            OSError: if it can't be made or written to.
        """
        in_first_process(self._open, None if is_closed_in_the_end else threading.get_ident())

    def _open(self, thread):
        make_folder(self.path)
        self._lock(thread)
        self.wait()
        for path in self.path.glob("checkpoint-*.partial"):
            shutil.rmtree(path, ignore_errors=True)

    def close(self):
        """Unlocks the folder, when what is written is there."""
        self.wait()
        lock, _ = _held.pop(os.path.realpath(self.path), (None, None))
        if lock is not None:
            lock.release()

    def newest(self) -> Checkpoint | None:
        """Returns the newest whole checkpoint; None if there are none; warns of damaged ones.

        Raises:
            ValueError: if all are damaged, and for one of a later version.
        """
        paths, errors = self._checkpoints(), []
        for path in reversed(paths):
            try:
                checkpoint = _read(path)
            except DamagedError as error:
                self._useless.add(path)
                errors.append(str(error))
                continue
            for error in errors:
                warnings.warn(f"{error} {checkpoint.path.name}, before it, is used.", stacklevel=2)
            return checkpoint
        if not paths:
            return None
        raise ValueError(
            f"All checkpoints in {self.path} are damaged: {' '.join(errors)} To begin afresh, "
            "delete the folder, or take another one."
        )

    def give_up(self):
        """Lets the next checkpoint replace all that there are."""
        self._useless.update(self._checkpoints())

    def save(self, progress: dict, arrays: dict[str, np.ndarray]) -> Path:
        """Writes the next checkpoint, and removes those that are too many; returns its path.

        Of several processes the first one writes.

        Raises:
            OSError: one line, if it can't be written. The earlier ones stay.
        """
        in_first_process(self._write, json.dumps({"format": FORMAT, **progress}), arrays)
        return self._checkpoints()[-1]

    def begin_to_save(self, progress: dict, arrays: dict[str, np.ndarray]):
        """Writes the next checkpoint in a thread of its own, as `save`; one at a time.

        Several processes, which wait for each other, write before this returns.

        Returns:
            A `concurrent.futures.Future` of the path. The arrays must not change until it is done.
        """
        if process()[1] > 1:
            writing = concurrent.futures.Future()
            try:
                writing.set_result(self.save(progress, arrays))
            except OSError as error:
                writing.set_exception(error)
            return writing
        text = json.dumps({"format": FORMAT, **progress})  # now: parts of it change in training
        executor = concurrent.futures.ThreadPoolExecutor(1, "kgpt-checkpoint")
        writing = executor.submit(self._write, text, arrays)
        executor.shutdown(wait=False)  # its thread ends with what it has to do
        _writing[os.path.realpath(self.path)] = writing
        return writing

    def wait(self):
        """Waits for a save that `begin_to_save` has begun, of an earlier fit too."""
        concurrent.futures.wait(filter(None, [_writing.pop(os.path.realpath(self.path), None)]))

    def _write(self, progress, arrays):
        if not self.path.is_dir():
            raise FileNotFoundError(
                errno.ENOENT, f"Can't write a checkpoint: the folder {self.path} is gone."
            )
        size = sum(array.nbytes for array in arrays.values()) + _MORE_THAN_ARRAYS
        check_free_space(self.path, size)
        earlier = self._checkpoints()
        number = 1 + (int(earlier[-1].name.partition("-")[2]) if earlier else 0)
        new = self.path / f"checkpoint-{number:08d}"
        with folder_written_whole(new) as unfinished:
            np.savez(unfinished / _STATE, allow_pickle=False, **arrays)
            (unfinished / "progress.json").write_text(progress, encoding="utf-8")
        whole = [path for path in earlier if path not in self._useless]
        kept = whole[len(whole) + 1 - self.keep :]
        for path in earlier:
            if path not in kept:
                _remove(path)
        return new

    def _checkpoints(self):
        """Returns the folders of all checkpoints, the newest last."""
        found = [path for path in self.path.iterdir() if _NAME.fullmatch(path.name)]
        return sorted(found, key=lambda path: int(path.name.partition("-")[2]))

    def _lock(self, thread):
        name = os.path.realpath(self.path)
        if _held.get(name, (None, None))[1] == threading.get_ident():
            self.close()
        lock = filelock.FileLock(self.path / ".lock")
        try:
            lock.acquire(blocking=False)
        except filelock.Timeout:
            raise RuntimeError(
                f"Another process, or another fit of this one, trains with the folder {self.path}. "
                "Wait until it has ended, or take another folder."
            ) from None
        _held[name] = lock, thread


def _read(path) -> Checkpoint:
    """Returns a checkpoint; raises DamagedError for one that is not whole."""
    try:
        check_manifest(path)
        progress = json.loads((path / "progress.json").read_text(encoding="utf-8"))
        of_first_format = "format" not in progress
        if not of_first_format and progress["format"] > FORMAT:
            raise RuntimeError(
                f"{path} was written by a later version of kgpt (format {progress['format']}; this "
                f"one reads up to {FORMAT}). Install that version."
            )
        if of_first_format:
            weights = path / _WEIGHTS_OF_FIRST_FORMAT
            weights.stat()
            return Checkpoint(path, progress, weights=weights)
        (path / MANIFEST).stat()
        return Checkpoint(path, progress, _Arrays(path / _STATE))
    except FileNotFoundError as error:
        raise DamagedError(f"{error.filename} is missing.") from None
    except OSError as error:
        if error.errno != errno.EIO:
            raise
        raise DamagedError(f"{path} is damaged: the disk can't read it.") from None
    except DamagedError:
        raise
    except (ValueError, TypeError) as error:
        raise DamagedError(f"{path / 'progress.json'} is damaged: {error}.") from None


def _remove(path):
    """Removes a checkpoint, of which no part is ever left under its name."""
    going = path.with_name(f"{path.name}.partial")
    os.rename(path, going)
    shutil.rmtree(going)
