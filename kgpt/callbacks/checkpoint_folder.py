"""The folder of a run's checkpoints: written whole, checked when read, the older ones removed."""

import concurrent.futures
import contextlib
import errno
import json
import os
import re
import shutil
import threading
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import filelock
import numpy as np

from kgpt.callbacks import divided
from kgpt.console import warn
from kgpt.files import (
    MANIFEST,
    DamagedError,
    check_free_space,
    check_manifest,
    folder_written_whole,
    make_folder,
)
from kgpt.kernels.platform import in_each_process, in_first_process, of_first_process

FORMAT, _FORMAT_OF_DIVIDED = 2, 3
_NAME = re.compile(r"checkpoint-\d{8,}")
_STATE, _WEIGHTS_OF_FIRST_FORMAT, _DIVIDED = "state.npz", "state.weights.h5", "variables"
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
        divided: the folder of variables that each process wrote its own part of, or None.
    """

    path: Path
    progress: dict
    arrays: Mapping | None = None
    weights: Path | None = None
    divided: Path | None = None


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
    of both. Variables that are divided among devices are in a folder of Orbax, `variables/`, whose
    files are in the manifest too. Other names in the folder are left alone.

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
                warn(f"{error} {checkpoint.path.name}, before it, is used.")
            return checkpoint
        if not paths:
            return None
        raise ValueError(
            f"All checkpoints in {self.path} are damaged: {' '.join(errors)} To begin afresh, "
            "delete the folder, or take another one."
        )

    def newest_for_all(self) -> Checkpoint | None:
        """Returns in all processes what `newest` finds in the first one, which alone compares."""
        found = in_first_process(self.newest)
        name = of_first_process(found.path.name if found else "")
        return found or (_read(self.path / name, compares=False) if name else None)

    def give_up(self):
        """Lets the next checkpoint replace all that there are."""
        self._useless.update(self._checkpoints())

    def save(self, progress: dict, arrays: dict, values: dict | None = None) -> Path:
        """Writes the next checkpoint, and removes those that are too many; returns its path.

        Args:
            progress: JSON-serializable dict.
            arrays: `{name: array}` of numpy, which the first process writes.
            values: optional `{name: array}` of JAX, of which each process writes its own part.

        Raises:
            OSError: one line, if it can't be written. The earlier ones stay.
        """
        return self._write(_text(progress, values), arrays, values)

    def begin_to_save(self, progress: dict, arrays: dict, values: dict | None = None):
        """Writes the next checkpoint in a thread of its own, as `save`; one at a time.

        With `values`, the checkpoint is written before this returns.

        Returns:
            A `concurrent.futures.Future` of the path. The arrays must not change until it is done.
        """
        if values is not None:
            writing = concurrent.futures.Future()
            try:
                writing.set_result(self.save(progress, arrays, values))
            except OSError as error:
                writing.set_exception(error)
            return writing
        text = _text(progress, values)  # now: parts of it change in training
        executor = concurrent.futures.ThreadPoolExecutor(1, "kgpt-checkpoint")
        writing = executor.submit(self._write, text, arrays)
        executor.shutdown(wait=False)  # its thread ends with what it has to do
        _writing[os.path.realpath(self.path)] = writing
        return writing

    def wait(self):
        """Waits for a save that `begin_to_save` has begun, of an earlier fit too."""
        concurrent.futures.wait(filter(None, [_writing.pop(os.path.realpath(self.path), None)]))

    def _write(self, text, arrays, values=None):
        size = sum(array.nbytes for array in [*arrays.values(), *(values or {}).values()])
        with contextlib.ExitStack() as stack:  # in the first process, what is written whole
            unfinished = in_first_process(self._begin, stack, size + _MORE_THAN_ARRAYS)
            name = of_first_process(unfinished.name if unfinished else "")
            if values is not None:
                in_each_process(divided.write, self.path / name / _DIVIDED, values)
            in_first_process(self._end, stack, unfinished, text, arrays, values)
        return self.path / name.partition(".")[0]

    def _begin(self, stack, size):
        """Makes the folder of the next checkpoint, under the name of an unfinished one."""
        if not self.path.is_dir():
            raise FileNotFoundError(
                errno.ENOENT, f"Can't write a checkpoint: the folder {self.path} is gone."
            )
        check_free_space(self.path, size)
        earlier = self._checkpoints()
        number = 1 + (int(earlier[-1].name.partition("-")[2]) if earlier else 0)
        new = self.path / f"checkpoint-{number:08d}"
        return stack.enter_context(folder_written_whole(new))

    def _end(self, stack, unfinished, text, arrays, values):
        """Writes what the first process writes, and removes the checkpoints that are too many."""
        earlier = self._checkpoints()
        if values is not None:
            divided.finish(unfinished / _DIVIDED)
        np.savez(unfinished / _STATE, allow_pickle=False, **arrays)
        (unfinished / "progress.json").write_text(text, encoding="utf-8")
        stack.close()
        whole = [path for path in earlier if path not in self._useless]
        kept = whole[max(0, len(whole) + 1 - self.keep) :]
        for path in earlier:
            if path not in kept:
                _remove(path)

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


def _text(progress, values):
    number = FORMAT if values is None else _FORMAT_OF_DIVIDED
    return json.dumps({"format": number, **progress})


def _read(path, compares: bool = True) -> Checkpoint:
    """Returns a checkpoint; raises DamagedError for one that is not whole.

    Args:
        path: its folder.
        compares: bool. Whether all files are read and compared with the hashes.
    """
    try:
        if compares:
            check_manifest(path)
        progress = json.loads((path / "progress.json").read_text(encoding="utf-8"))
        of_first_format = "format" not in progress
        if not of_first_format and progress["format"] > _FORMAT_OF_DIVIDED:
            raise RuntimeError(
                f"{path} was written by a later version of kgpt (format {progress['format']}; this "
                f"one reads up to {_FORMAT_OF_DIVIDED}). Install that version."
            )
        if of_first_format:
            weights = path / _WEIGHTS_OF_FIRST_FORMAT
            weights.stat()
            return Checkpoint(path, progress, weights=weights)
        (path / MANIFEST).stat()
        is_divided = progress["format"] == _FORMAT_OF_DIVIDED
        folder = path / _DIVIDED if is_divided else None
        return Checkpoint(path, progress, _Arrays(path / _STATE), divided=folder)
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
    """Removes a checkpoint, of which no part is ever left under its name.

    Where a file of it is open elsewhere (on NFS and Windows), it stays whole until the next one is
    saved, or its parts until the next run begins: the new checkpoint is there.
    """
    going = path.with_name(f"{path.name}.partial")
    with contextlib.suppress(OSError):
        os.rename(path, going)
        shutil.rmtree(going)
