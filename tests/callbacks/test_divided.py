"""Checkpoints whose variables Orbax writes: as whole, as well checked as those of numpy's files."""

import os
import sys

import keras
import numpy as np
import pytest
from power_cut import recorded
from runs import QUICK, checkpoints

from kgpt.callbacks import ResumableCheckpoint, divided, variables
from kgpt.callbacks.checkpoint_folder import CheckpointFolder

pytest.importorskip("orbax.checkpoint", reason="divided variables need orbax-checkpoint")

on_jax = pytest.mark.skipif(keras.backend.backend() != "jax", reason="only JAX divides variables")


def numbers(seed):
    return np.random.default_rng(seed).random(50_000, "float32")


def save(folder, number):
    return folder.save({"number": number}, {}, {"model/00000": numbers(number)})


def number_in(checkpoint):
    """The number that was saved, after a look at the variables too."""
    variable = keras.Variable(np.zeros(50_000, "float32"))
    values = divided.read(checkpoint.divided, {"model/00000": variable})
    expected = numbers(checkpoint.progress["number"])
    np.testing.assert_array_equal(values["model/00000"], expected)
    return checkpoint.progress["number"]


@pytest.fixture
def two(tmp_path):
    """A folder with two checkpoints."""
    folder = CheckpointFolder(tmp_path / "run", keep=2)
    folder.open()
    save(folder, 1)
    save(folder, 2)
    yield folder
    folder.close()


def test_a_power_cut_at_any_moment_leaves_the_newest_checkpoint_that_was_saved(tmp_path):
    live = tmp_path / "live"
    live.mkdir()
    saved = []  # how many states there were when a checkpoint was there

    with recorded(live) as cuts:
        folder = CheckpointFolder(live, keep=1)
        for number in (1, 2):
            save(folder, number)
            saved.append(len(cuts.states))

    found = []
    for disk in cuts.disks(tmp_path / "disk"):
        newest = CheckpointFolder(disk, keep=1).newest()
        found.append(newest.progress["number"] if newest else 0)
        last = newest
    assert number_in(last) == 2
    for number, states in enumerate(saved, 1):
        assert min(found[states - 1 :]) >= number


def test_damage_to_any_file_is_named_and_the_checkpoint_before_used(two):
    assert number_in(two.newest()) == 2
    folder = two.path / "checkpoint-00000002" / "variables"
    paths = [path for path in folder.rglob("*") if path.is_file()]

    for path in paths:
        content = path.read_bytes()
        for damaged in (content[:-1], bytes([content[0] ^ 1]) + content[1:]):
            path.write_bytes(damaged)
            with pytest.warns(UserWarning, match=f"{path.name} is damaged.*00001, before it, is"):
                assert number_in(two.newest()) == 1
        path.write_bytes(content)
    assert number_in(two.newest()) == 2
    assert len(paths) > 3


@pytest.mark.skipif(sys.platform == "win32", reason="Windows has no limit of a file's size")
def test_what_the_system_refuses_is_one_line_and_the_earlier_ones_stay(two):
    import resource

    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, before[1]))
    try:
        with pytest.raises(OSError, match="the file is larger than is allowed here") as error:
            save(two, 3)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)

    assert "\n" not in str(error.value)
    assert str(two.path / "checkpoint-00000003") in str(error.value)
    assert sorted(os.listdir(two.path)) == [".lock", "checkpoint-00000001", "checkpoint-00000002"]


def test_any_backend_reads_what_was_divided(two):
    model = keras.Sequential([keras.Input((3,)), keras.layers.Dense(2, dtype="bfloat16")])
    model.compile("sgd")
    arrays, listed, _ = variables.to_arrays(model, ("model",))
    expected = [np.full(shape, 1.5, dtype) for _, dtype, shape in listed["model"]]
    values = dict(zip(arrays, expected, strict=True))
    two.save({"variables": listed}, {}, values)

    variables.set_variables(model, two.newest(), ("model",))

    for variable in model.variables:
        assert (keras.ops.convert_to_numpy(keras.ops.cast(variable, "float32")) == 1.5).all()


# === Runs ===


@pytest.fixture
def run(monkeypatch, tmp_path):
    """A run that is saved as if its weights were divided, each epoch of which adds 1 to one."""
    monkeypatch.setattr(divided, "is_divided", lambda model: True)

    def fit(*callbacks, epochs=3, dtype="float32", **options):
        dense = keras.layers.Dense(1, use_bias=False, dtype=dtype)
        model = keras.Sequential([keras.Input((1,)), dense])
        dense.kernel.assign([[0.0]])
        model.compile(keras.optimizers.SGD(1.0), loss=lambda y, x: -x, **QUICK)
        callbacks = [*callbacks, ResumableCheckpoint(tmp_path / "run", **options)]
        x = np.ones((2, 1), "float32")
        model.fit(x, x, batch_size=2, epochs=epochs, callbacks=callbacks, verbose=0)
        return float(keras.ops.squeeze(dense.kernel))

    return fit


@on_jax
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_a_run_goes_on(run, monkeypatch, dtype):
    assert run(epochs=1, dtype=dtype) == 1
    assert run(epochs=2, dtype=dtype) == 2
    monkeypatch.undo()
    assert run(epochs=3, dtype=dtype) == 3  # what follows is saved in numpy's files
    monkeypatch.setattr(divided, "is_divided", lambda model: True)
    assert run(epochs=4, dtype=dtype) == 4


@on_jax
def test_a_weight_that_is_not_finite_is_not_saved(run, tmp_path):
    def spoil(epoch, logs):
        if epoch == 1:
            spoiler.model.layers[-1].kernel.assign([[np.nan]])

    spoiler = keras.callbacks.LambdaCallback(on_epoch_end=spoil)

    with pytest.raises(FloatingPointError, match=r"kernel is not finite.*checkpoint-00000001"):
        run(spoiler)

    assert [path.name for path in checkpoints(tmp_path / "run")] == ["checkpoint-00000001"]
    assert run() == 3
