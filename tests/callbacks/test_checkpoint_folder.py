"""Checkpoints on the disk: whole after a power cut, damage found, errors in one line."""

import errno
import os
import shutil
import warnings

import filelock
import keras
import numpy as np
import pytest
from power_cut import recorded
from runs import QUICK, Killed, checkpoints

from kgpt.callbacks import ResumableCheckpoint
from kgpt.callbacks.checkpoint_folder import CheckpointFolder

KEEP = 2


def save(folder, number):
    folder.save({"number": number}, {"model/00000": np.full(9, number, "float32")})


def number_in(checkpoint):
    """The number that was saved, after a look at both files."""
    found = int(checkpoint.arrays["model/00000"][0])
    assert (checkpoint.arrays["model/00000"] == found).all()
    assert checkpoint.progress["number"] == found
    return found


@pytest.fixture
def opened(tmp_path):
    folder = CheckpointFolder(tmp_path / "run", KEEP)
    folder.open()
    yield folder
    folder.close()


@pytest.fixture
def two(opened):
    """A folder with two checkpoints."""
    save(opened, 1)
    save(opened, 2)
    return opened


@pytest.mark.parametrize("keep", [1, 2, 3, 5])
def test_as_many_checkpoints_are_kept_as_asked(tmp_path, keep):
    folder = CheckpointFolder(tmp_path / "run", keep)
    folder.open()

    for number in range(1, 9):
        save(folder, number)
        folder.wait()
        assert len(checkpoints(tmp_path / "run")) == min(number, keep)
    assert number_in(folder.newest()) == 8
    folder.close()


@pytest.mark.parametrize("name", ["shutil.rmtree", "os.rename"])
def test_a_checkpoint_that_cannot_be_removed_is_no_failed_save(two, monkeypatch, name):
    real = {"shutil.rmtree": shutil.rmtree, "os.rename": os.rename}[name]

    def in_use(path, *arguments, **options):  # as NFS and Windows say of what is open elsewhere
        if "checkpoint-00000001" in str(path):
            raise OSError(errno.ENOTEMPTY, os.strerror(errno.ENOTEMPTY), str(path))
        return real(path, *arguments, **options)

    monkeypatch.setattr(name, in_use)
    save(two, 3)
    assert number_in(two.newest()) == 3

    monkeypatch.undo()
    save(two, 4)
    two.close()
    two.open()
    assert [path.name[-1] for path in checkpoints(two.path)] == ["3", "4"]
    assert not list(two.path.glob("*.partial"))


# === Power cuts ===


def test_a_power_cut_at_any_moment_leaves_the_newest_checkpoint_that_was_saved(tmp_path):
    live = tmp_path / "live"
    live.mkdir()
    saved = []  # how many states there were when a checkpoint was there

    with recorded(live) as cuts:
        folder = CheckpointFolder(live, KEEP)
        folder.open()
        for number in range(1, 5):
            save(folder, number)
            saved.append(len(cuts.states))
        folder.close()

    found = []
    for disk in cuts.disks(tmp_path / "disk"):
        folder = CheckpointFolder(disk, KEEP)
        folder.open()
        newest = folder.newest()
        found.append(number_in(newest) if newest else 0)
        assert not list(disk.glob("*.partial"))
        folder.close()
    assert found[0] == 0
    assert found[-1] == 4
    for number, states in enumerate(saved, 1):
        assert min(found[states - 1 :]) >= number


def fit(folder, *callbacks, epochs=3, **options):
    """A plain model of Keras, each epoch of which adds 1 to its weight."""
    model = keras.Sequential([keras.Input((1,)), keras.layers.Dense(1, use_bias=False)])
    model.layers[-1].kernel.assign([[0.0]])
    model.compile(keras.optimizers.SGD(1.0), loss=lambda y, x: -x, **QUICK)
    x = np.ones((2, 1), "float32")
    callbacks = [ResumableCheckpoint(folder, **options), *callbacks]
    model.fit(x, x, batch_size=2, epochs=epochs, callbacks=callbacks, verbose=0)
    return model.get_weights()[0].item()


def test_a_run_goes_on_from_what_a_power_cut_leaves(tmp_path):
    live = tmp_path / "live"
    live.mkdir()
    with recorded(live) as cuts:
        fit(live)

    seen = set()
    for disk in cuts.disks(tmp_path / "disk"):
        names = tuple(path.name for path in checkpoints(disk))
        if names not in seen:
            seen.add(names)
            assert fit(disk) == 3
    assert len(seen) > 3


# === Damage ===


def test_as_many_checkpoints_stay_as_are_kept(opened):
    for number in range(1, 5):
        save(opened, number)

    assert [path.name for path in checkpoints(opened.path)] == [
        "checkpoint-00000003",
        "checkpoint-00000004",
    ]


def newest_with_warnings(folder):
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        return number_in(folder.newest()), [str(warning.message) for warning in caught]


@pytest.mark.parametrize("name", ["state.npz", "progress.json", "kgpt_manifest.json"])
def test_each_flipped_bit_is_found(two, name):
    path = two.path / "checkpoint-00000002" / name
    content = path.read_bytes()
    unnoticed = 0

    for place in range(len(content)):
        changed = bytearray(content)
        changed[place] ^= 1 << place % 8
        path.write_bytes(changed)
        number, messages = newest_with_warnings(two)
        if number == 2:
            unnoticed += 1  # a space of the manifest, or its number of the format
            assert not messages
        else:
            assert number == 1
            (message,) = messages
            assert "checkpoint-00000002" in message
            assert "checkpoint-00000001, before it, is used" in message
    assert unnoticed < (20 if name == "kgpt_manifest.json" else 1)


def cut(path):
    path.write_bytes(path.read_bytes()[:-2])


def make_hole(path):
    content = path.read_bytes()
    path.write_bytes(content[:40] + bytes(40) + content[80:])


def empty(path):
    path.write_bytes(b"")


@pytest.mark.parametrize("damage", [cut, make_hole, empty, os.unlink])
@pytest.mark.parametrize("name", ["state.npz", "progress.json", "kgpt_manifest.json"])
def test_damage_is_named_and_the_checkpoint_before_it_used(two, name, damage):
    path = two.path / "checkpoint-00000002" / name
    damage(path)

    number, (message,) = newest_with_warnings(two)

    assert number == 1
    assert str(path) in message
    assert "\n" not in message


def test_a_checkpoint_that_the_disk_cannot_read_is_damaged(two, monkeypatch):
    def fail(path):
        if path.name == "checkpoint-00000002":
            raise OSError(errno.EIO, os.strerror(errno.EIO), str(path / "state.npz"))

    monkeypatch.setattr("kgpt.callbacks.checkpoint_folder.check_manifest", fail)

    number, (message,) = newest_with_warnings(two)

    assert number == 1
    assert "checkpoint-00000002 is damaged: the disk can't read it" in message


def test_a_damaged_checkpoint_goes_before_a_whole_one(two):
    cut(two.path / "checkpoint-00000002" / "state.npz")
    with pytest.warns(UserWarning, match="damaged"):
        two.newest()

    save(two, 3)

    assert [path.name[-1] for path in checkpoints(two.path)] == ["1", "3"]


def test_nothing_begins_afresh_in_silence(two):
    for path in checkpoints(two.path):
        cut(path / "state.npz")

    with pytest.raises(ValueError, match=r"All checkpoints in .* are damaged: .*00002.*00001"):
        two.newest()


def test_a_checkpoint_of_a_later_version_is_refused(two):
    two.save({"number": 3, "format": 4}, {})

    with pytest.raises(RuntimeError, match="later version"):
        two.newest()


def test_other_names_are_left_alone_and_unfinished_checkpoints_removed(two):
    for name in ("checkpoint-old", "checkpoint-00000009.4711.partial", "checkpoint-00000007.txt"):
        (two.path / name).mkdir()
    two.close()

    two.open()

    assert number_in(two.newest()) == 2
    assert (two.path / "checkpoint-old").is_dir()
    assert (two.path / "checkpoint-00000007.txt").is_dir()
    assert not list(two.path.glob("*.partial"))


# === Errors ===


def no_space(monkeypatch, folder):
    usage = shutil.disk_usage(folder)._replace(free=1000)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage)


def failing(name, number):
    def break_it(monkeypatch, folder):
        owner = np if name == "savez" else os

        def fail(path, *args, **kwargs):
            if "partial" in str(path):
                raise OSError(number, os.strerror(number), str(path))

        monkeypatch.setattr(owner, name, fail)

    return break_it


def remove(monkeypatch, folder):
    shutil.rmtree(folder)


FAULTS = {
    "no space": (no_space, "it needs .* and the disk has 1,000 left"),
    "full": (failing("savez", errno.ENOSPC), "the disk is full"),
    "read-only": (failing("mkdir", errno.EROFS), "the file system is read-only"),
    "no permission": (failing("mkdir", errno.EACCES), "there is no permission"),
    "gone": (remove, "(is gone|its folder does not exist)"),
}


def broken_after_an_epoch(fault, monkeypatch, folder):
    def break_it(epoch, logs):
        if epoch == 1:
            CheckpointFolder(folder, keep=2).wait()  # the first one is written meanwhile
            FAULTS[fault][0](monkeypatch, folder)

    return keras.callbacks.LambdaCallback(on_epoch_begin=break_it)


@pytest.mark.parametrize("fault", FAULTS)
def test_a_save_that_fails_ends_training_in_one_line(tmp_path, monkeypatch, fault):
    folder = tmp_path / "run"

    with pytest.raises(OSError, match=FAULTS[fault][1]) as error:
        fit(folder, broken_after_an_epoch(fault, monkeypatch, folder))

    assert str(folder) in str(error.value)
    assert "\n" not in str(error.value)
    monkeypatch.undo()
    if fault != "gone":
        assert [path.name for path in checkpoints(folder)] == ["checkpoint-00000001"]
    assert fit(folder) == 3


@pytest.mark.parametrize("fault", FAULTS)
def test_training_goes_on_where_that_is_chosen(tmp_path, monkeypatch, fault):
    folder = tmp_path / "run"

    with pytest.warns(UserWarning, match=f"{FAULTS[fault][1]}.*Training goes on"):
        assert fit(folder, broken_after_an_epoch(fault, monkeypatch, folder), on_error="warn") == 3


def test_a_folder_that_cannot_be_made_is_named_at_the_beginning(tmp_path):
    (tmp_path / "file").touch()

    with pytest.raises(OSError, match="file/run"):
        fit(tmp_path / "file" / "run", on_error="warn")


def test_a_relative_folder_does_not_move(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "elsewhere").mkdir()

    fit("run", keras.callbacks.LambdaCallback(on_epoch_end=lambda *_: os.chdir("/")))

    assert len(checkpoints(tmp_path / "run")) == 2


# === Several runs ===


def test_a_second_run_in_the_folder_is_told_so(tmp_path):
    folder = tmp_path / "run"
    folder.mkdir()
    with filelock.FileLock(folder / ".lock"), pytest.raises(RuntimeError, match="Another process"):
        fit(folder)

    assert fit(folder) == 3


def test_a_run_that_has_failed_leaves_the_folder_to_the_next(tmp_path):
    def fail(epoch, logs):
        raise Killed

    with pytest.raises(Killed):
        fit(tmp_path / "run", keras.callbacks.LambdaCallback(on_epoch_end=fail))

    assert fit(tmp_path / "run") == 3
