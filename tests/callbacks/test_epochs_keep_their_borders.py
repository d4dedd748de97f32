"""A run that was cut makes the steps, epochs and validations that it would have made."""

import random

import keras
import numpy as np
import pytest
from labelled import TOKENIZER
from runs import (
    LENGTH,
    QUICK,
    VOCABULARY,
    Diary,
    Killed,
    assert_same,
    checkpoints,
    make_lm,
    only,
    token_file,
)

import kgpt


@pytest.fixture(scope="module")
def path(tmp_path_factory):
    return token_file(tmp_path_factory.mktemp("tokens"))


def assert_goes_on(run, tmp_path, places=3):
    """Compares a run with itself under the callback, and cut at several places of its last epochs.

    Args:
        run: function of the callbacks that returns the model, and the data as it was left.
        tmp_path: where the checkpoints are kept.
        places: how many places, or which of the three.
    """
    plain, diary = Diary(), Diary()
    expected, data = run([plain])
    observed, _ = run([kgpt.callbacks.ResumableCheckpoint(tmp_path / "run", 1, keep=99), diary])
    assert_same(observed, expected)
    assert diary.entries == plain.entries

    saved = checkpoints(tmp_path / "run")
    steps = [entry for entry in plain.entries if entry[0] in ("step", "end")]
    whole = [entry for entry in plain.entries if entry[0] != "epoch"]
    assert len(saved) == len(steps)
    last = max(n for n, entry in enumerate(steps[:-3]) if steps[n + 1][0] == "end")
    # Before the last step of an epoch, after it, and after the epoch.
    for number in (last - 1, last, last + 1)[:places] if places > 0 else (last - 1 - places,):
        diary = Diary()
        checkpoint = kgpt.callbacks.ResumableCheckpoint(only(saved[number], tmp_path / "cut"))
        resumed, own = run([checkpoint, diary])

        assert_same(resumed, expected)
        found = [entry for entry in diary.entries if entry[0] != "epoch"]
        assert found == whole[len(whole) - len(found) :]
        assert [e for e in found if e[0] in ("step", "end")] == steps[number + 1 :]
        assert resumed.history.epoch == expected.history.epoch
        assert resumed.history.history == expected.history.history
        assert own.get_state() == data.get_state()


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
    "four steps at once": {"epochs": 3, "steps_per_execution": 4, "metrics": ["accuracy"]},
    "four at once in parts": {
        **{"epochs": 4, "steps_per_execution": 4, "steps_per_epoch": 2},
        **{"optimizer": accumulating},
    },
    "four at once of a stream": {
        **{"epochs": 2, "steps_per_execution": 4, "steps_per_epoch": 6, "repeat": True},
    },
}


@pytest.mark.filterwarnings("ignore:Your input ran out of data")
@pytest.mark.filterwarnings("ignore:The last .* batches of an epoch share")
@pytest.mark.parametrize("name", FITS)
def test_a_run_that_was_cut_goes_on_as_if_it_had_not_been(path, tmp_path, name):
    options = dict(FITS[name])
    if "steps_per_execution" in options and keras.backend.backend() == "torch":
        pytest.skip("Keras's fit on PyTorch executes single steps")
    make_optimizer = options.pop("optimizer", lambda: None)
    repeat = options.pop("repeat", False)
    of_compile = [key for key in ("steps_per_execution", "metrics") if key in options]
    of_compile = {key: options.pop(key) for key in of_compile}

    def run(callbacks):
        lm = make_lm(make_optimizer(), **of_compile)
        train = kgpt.data.windows(path, LENGTH, 4, seed=0, repeat=repeat)
        validation = kgpt.data.windows(path, LENGTH, 20)
        lm.fit(train, validation_data=validation, callbacks=callbacks, verbose=0, **options)
        return lm, train

    # TensorFlow's steps take longest: one place in each of the fits.
    is_slow = keras.backend.backend() == "tensorflow"
    assert_goes_on(run, tmp_path, -(list(FITS).index(name) % 3) if is_slow else 3)


class Batches(keras.utils.PyDataset):
    def __len__(self):
        return 5

    def __getitem__(self, index):
        x = np.random.default_rng(index).integers(0, VOCABULARY, (2, LENGTH))
        return x, x


def test_a_pydataset_is_shuffled_as_it_would_have_been(tmp_path):
    def run(epochs, *callbacks):
        lm = make_lm()
        lm.fit(Batches(), epochs=epochs, callbacks=list(callbacks), verbose=0)
        return lm

    expected = run(3)
    run(2, kgpt.callbacks.ResumableCheckpoint(tmp_path))
    random.seed(7)  # as another process would

    resumed = run(3, kgpt.callbacks.ResumableCheckpoint(tmp_path))

    assert_same(resumed, expected)


TEXTS = ["ab", "cd", "efg", "h", "ijk", "lm", "nop"]
LABELS = [0, 1, 0, 1, 1, 0, 0]


@pytest.mark.parametrize("kind", ["batches", "texts", "LoRA", "int8 and LoRA"])
def test_a_head_that_was_cut_drops_what_it_would_have_dropped(tmp_path, kind):
    """Its dropout draws from PyTorch's generator, as do the data loaders there."""

    def run(callbacks):
        keras.utils.set_random_seed(0)
        backbone = kgpt.GPTBackbone(TOKENIZER.vocabulary_size, 1, 1, 4, 4, 0.1, 16)
        if "int8" in kind:
            backbone.quantize("int8")
        if "LoRA" in kind:
            backbone.enable_lora(2)
        model = kgpt.TextClassifier(backbone, 2, tokenizer=TOKENIZER, dropout=0.5)
        model.compile(keras.optimizers.Adam(1e-2), **QUICK)
        data = kgpt.data.classification(TEXTS, LABELS, TOKENIZER, 16, batch_size=2, seed=1)
        given = {"x": TEXTS, "y": LABELS, "batch_size": 2} if kind == "texts" else {"x": data}
        model.fit(**given, epochs=2, callbacks=callbacks, verbose=0)
        return model, data

    assert_goes_on(run, tmp_path, -1 if keras.backend.backend() == "tensorflow" else 2)


@pytest.mark.filterwarnings("ignore:Your input ran out of data")
def test_arrays_go_on_between_epochs_of_less_than_a_pass(tmp_path):
    x = np.random.default_rng(0).integers(0, VOCABULARY, (20, LENGTH))

    def run(epochs, *callbacks):
        lm = make_lm()
        options = {"batch_size": 4, "steps_per_epoch": 3, "shuffle": False, "verbose": 0}
        lm.fit(x, x, epochs=epochs, callbacks=list(callbacks), **options)
        return lm

    expected = run(3)
    run(1, kgpt.callbacks.ResumableCheckpoint(tmp_path))

    resumed = run(3, kgpt.callbacks.ResumableCheckpoint(tmp_path))

    assert_same(resumed, expected)
    assert resumed.history.history == expected.history.history


def test_an_epoch_that_was_stopped_in_its_middle_ends_there(path, tmp_path):
    class Stop(keras.callbacks.Callback):
        def on_train_batch_end(self, batch, logs=None):
            self.model.stop_training = batch == 2

    def run(*callbacks):
        lm = make_lm()
        train = kgpt.data.windows(path, LENGTH, 4, seed=0)
        lm.fit(train, epochs=2, callbacks=[Stop(), *callbacks], verbose=0)
        return lm

    expected = run()
    with pytest.raises(Killed):
        run(Diary(kill_at=("end", 0)), kgpt.callbacks.ResumableCheckpoint(tmp_path, 1))
    diary = Diary()

    resumed = run(diary, kgpt.callbacks.ResumableCheckpoint(tmp_path, 1))

    assert [entry[:2] for entry in diary.entries] == [("epoch", 0), ("end", 0)]
    assert_same(resumed, expected)
    assert resumed.history.history == expected.history.history
