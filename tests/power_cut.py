"""What a disk would hold after a power cut at any moment: `with recorded(folder) as cuts`.

A file's content is on the disk from the moment of its last `fsync`, and empty before. A name is on
the disk from the moment that its folder was synced; until then it may be there or not, each name
for itself. What existed before the recording is on the disk.
"""

import contextlib
import os
import shutil
from pathlib import Path
from unittest import mock

RECORDED = ("fsync", "replace", "rename", "unlink", "remove", "rmdir", "mkdir")


@contextlib.contextmanager
def recorded(folder):
    """Records what happens in a folder to the end of the block; gives the `PowerCuts`."""
    with contextlib.ExitStack() as stack:
        cuts = PowerCuts(os.path.realpath(folder), stack)
        for name in RECORDED:
            stack.enter_context(mock.patch.object(os, name, cuts.recording(getattr(os, name))))
        yield cuts
        cuts.look()


class PowerCuts:
    """The disks that a power cut may leave, at all moments of a recording.

    Attributes:
        states: list of `{path: content}`, with None for a folder; each one once.
        calls: list of `(name, *arguments)`.
    """

    def __init__(self, folder, stack):
        self.folder, self._stack = folder, stack
        self.states, self.calls = [], []
        self._held = set()  # open, so that no new file gets the number of an old one
        self._names = {}  # on the disk: {number of a folder: {name: number}}
        self._contents = {}  # on the disk: {number of a file: bytes}
        for number, (path, names) in self._folders_now().items():
            self._names[number] = names
            for name in names:
                if os.path.isfile(os.path.join(path, name)):
                    self._contents[names[name]] = Path(path, name).read_bytes()
        self.look()

    def recording(self, function):
        """Returns a function of `os` that looks at the disk before and after."""

        def record(*args, **kwargs):
            self.look()
            if function.__name__ == "fsync":
                self._sync(args[0])
            self.calls.append((function.__name__, *map(str, args)))
            result = function(*args, **kwargs)
            self.look()
            return result

        return record

    def look(self):
        """Adds the states that a power cut at this moment may leave."""
        folders = self._folders_now()
        root = os.stat(self.folder).st_ino
        for names in self._possible_names({n: names for n, (_, names) in folders.items()}):
            state = {}
            self._fill(state, names, {*folders, *self._names}, root, Path())
            if state not in self.states:
                self.states.append(state)

    def disks(self, target):
        """Yields the folder `target`, with each state written to it in the place of the last."""
        for state in self.states:
            shutil.rmtree(target, ignore_errors=True)
            Path(target).mkdir(parents=True)
            for path, content in state.items():
                if content is None:
                    Path(target, path).mkdir()
                else:
                    Path(target, path).write_bytes(content)
            yield Path(target)

    def _folders_now(self):
        """Returns `{number: (path, {name: number})}` of the folder and those in it."""
        found = {}
        for path, folders, files in os.walk(self.folder):
            names = {name: self._number(os.path.join(path, name)) for name in folders + files}
            found[self._number(path)] = path, names
        return found

    def _number(self, path):
        number = os.stat(path).st_ino
        if number not in self._held:
            self._held.add(number)
            self._stack.callback(os.close, os.open(path, os.O_RDONLY))
        return number

    def _sync(self, descriptor):
        number = os.fstat(descriptor).st_ino
        for folder, (path, names) in self._folders_now().items():
            if folder == number:
                self._names[number] = names
            for name in names:
                if names[name] == number and os.path.isfile(os.path.join(path, name)):
                    self._contents[number] = Path(path, name).read_bytes()

    def _possible_names(self, now):
        """Yields the names: as synced, as they are, and as synced with one change each."""
        synced = {folder: self._names.get(folder, {}) for folder in {*now, *self._names}}
        yield synced
        yield {**synced, **now}
        for folder in now:
            before, after = synced[folder], now[folder]
            for name in {*before, *after}:
                if before.get(name) != after.get(name):
                    changed = {**before, name: after.get(name)}
                    yield {**synced, folder: {n: i for n, i in changed.items() if i is not None}}

    def _fill(self, state, names, folders, folder, path):
        for name, number in names.get(folder, {}).items():
            if number in folders:
                state[path / name] = None
                self._fill(state, names, folders, number, path / name)
            else:
                state[path / name] = self._contents.get(number, b"")
