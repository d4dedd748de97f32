"""A run that was cut makes the steps, epochs and validations that it would have made."""

import keras
import pytest
from runs import LENGTH, Diary, assert_same, checkpoints, make_lm, only, token_file

import kgpt


@pytest.fixture(scope="module")
def path(tmp_path_factory):
    return token_file(tmp_path_factory.mktemp("tokens"))


def accumulating():
    return keras.optimizers.Adam(1e-2, gradient_accumulation_steps=3)


def averaging():
    return keras.optimizers.Adam(1e-2, use_ema=True, ema_overwrite_frequency=4)


FITS = {
    "whole passes": {"epochs": 3, "optimizer": lambda: "default"},
    "less than a pass": {"epochs": 4, "steps_per_epoch": 3, "validation_freq": 2},
    "less than a pass of a stream": {
        **{"epochs": 3, "steps_per_epoch": 3, "repeat": True, "optimizer": averaging},
    },
    "more than a pass": {"epochs": 2, "steps_per_epoch": 7, "optimizer": accumulating},
    "more than a pass of a stream": {
        **{"epochs": 2, "steps_per_epoch": 7, "repeat": True, "optimizer": accumulating},
    },
    "four steps at once": {"epochs": 3, "steps_per_execution": 4},
    "four at once in parts": {
        **{"epochs": 4, "steps_per_execution": 4, "steps_per_epoch": 2},
        **{"optimizer": accumulating},
    },
    "four at once of a stream": {
        **{"epochs": 2, "steps_per_execution": 4, "steps_per_epoch": 6, "repeat": True},
    },
}


def run(path, diary, folder=None, save_freq=1, **options):
    """One fit; with a checkpoint of each step, if there is a folder."""
    optimizer = options.pop("optimizer", lambda: None)()
    repeat = options.pop("repeat", False)
    lm = make_lm(optimizer, steps_per_execution=options.pop("steps_per_execution", 1))
    train = kgpt.data.windows(path, LENGTH, 4, seed=0, repeat=repeat)
    callbacks = [diary]
    if folder is not None:
        callbacks.insert(0, kgpt.callbacks.ResumableCheckpoint(folder, save_freq, keep=99))
    validation = kgpt.data.windows(path, LENGTH, 20)
    lm.fit(train, validation_data=validation, callbacks=callbacks, verbose=0, **options)
    return lm, train


@pytest.mark.filterwarnings("ignore:Your input ran out of data")
@pytest.mark.filterwarnings("ignore:The last .* batches of an epoch share")
@pytest.mark.parametrize("name", FITS)
def test_a_run_that_was_cut_goes_on_as_if_it_had_not_been(path, tmp_path, name):
    options = FITS[name]
    if "steps_per_execution" in options and keras.backend.backend() == "torch":
        pytest.skip("Keras's fit on PyTorch executes single steps")
    plain = Diary()
    expected, data = run(path, plain, **options)
    diary = Diary()
    observed, _ = run(path, diary, tmp_path / "run", **options)
    assert_same(observed, expected)
    assert diary.entries == plain.entries

    saved = checkpoints(tmp_path / "run")
    # Before the last step of an epoch, after it, and after the epoch.
    steps = [entry for entry in plain.entries if entry[0] in ("step", "end")]
    assert len(saved) == len(steps)
    last = max(n for n, entry in enumerate(steps[:-3]) if steps[n + 1][0] == "end")
    places = [last - 1, last, last + 1]
    if keras.backend.backend() == "tensorflow":  # whose steps take longest
        places = [places[list(FITS).index(name) % 3]]
    for number in places:
        diary = Diary()
        folder = only(saved[number], tmp_path / "cut")
        resumed, own = run(path, diary, folder, "epoch", **options)

        assert_same(resumed, expected)
        found = [entry for entry in diary.entries if entry[0] != "epoch"]
        whole = [entry for entry in plain.entries if entry[0] != "epoch"]
        assert found == whole[len(whole) - len(found) :]
        assert [e for e in found if e[0] in ("step", "end")] == steps[number + 1 :]
        assert own.get_state() == data.get_state()
