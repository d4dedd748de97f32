"""Runs that are killed and started again, with other callbacks beside the checkpoint."""

import shutil

import keras
import numpy as np
import pytest
from runs import BATCH, LENGTH, QUICK, VOCABULARY, Killed

import kgpt
from kgpt.callbacks.run_history import run_history

STEPS = 3
# Better until epoch 1, then worse: `Scripted` puts them in the place of what was measured.
LOSSES = [3.0, 2.0, 2.5, 2.4, 2.6, 2.7, 2.8, 2.9]


class Scripted(keras.callbacks.Callback):
    """Figures as they are needed, and an end as abrupt as Python allows."""

    def __init__(self, killed_after=None):
        super().__init__()
        self._killed_after, self._done = killed_after, 0

    def on_train_batch_end(self, batch, logs=None):
        self._done += 1
        if self._done == self._killed_after:
            raise Killed

    def on_epoch_end(self, epoch, logs=None):
        logs["score"] = LOSSES[epoch]

    def get_state(self):  # the steps of each process are counted
        return None

    def set_state(self, state):
        pass


class Counts(keras.callbacks.Callback):
    """A callback of the user's."""

    def __init__(self):
        super().__init__()
        self.steps, self.epochs = 0, []

    def on_train_batch_end(self, batch, logs=None):
        self.steps += 1

    def on_epoch_end(self, epoch, logs=None):
        self.epochs.append((epoch, logs["loss"]))


@pytest.fixture(scope="module")
def token_files(tmp_path_factory):
    """Those of three batches a pass and of one."""
    folder = tmp_path_factory.mktemp("tokens")
    for name, batches in (("train", STEPS), ("valid", 1)):
        tokens = np.random.default_rng(0).integers(0, VOCABULARY, BATCH * LENGTH * batches + 1)
        np.save(folder / f"{name}.npy", tokens.astype("uint16"))
    return folder


def watching(folder, patience=3):
    """The callbacks that look at the figures of an epoch."""
    watched = {"monitor": "score", "mode": "min"}
    best = {"save_best_only": True, "save_weights_only": True, **watched}
    return [
        keras.callbacks.EarlyStopping(patience=patience, restore_best_weights=True, **watched),
        keras.callbacks.ModelCheckpoint(folder / "best-{epoch}.weights.h5", **best),
        keras.callbacks.ReduceLROnPlateau(patience=2, factor=0.5, **watched),
        keras.callbacks.CSVLogger(folder / "log.csv"),
        Counts(),
    ]


def train(token_files, folder, killed_after=None, place=None, epochs=8, rate=1e-2, **options):
    """Trains with a checkpoint in the folder, and returns the model, its history and callbacks."""
    folder.mkdir(exist_ok=True)
    keras.utils.set_random_seed(0)
    lm = kgpt.CausalLM(kgpt.GPTBackbone(VOCABULARY, 1, 2, 8, max_sequence_length=LENGTH))
    ema = {"use_ema": options.pop("use_ema", False), "ema_momentum": 0.5}
    lm.compile(keras.optimizers.Adam(rate, **ema), metrics=options.pop("metrics", None), **QUICK)
    callbacks = [Scripted(killed_after), *(options.pop("callbacks", None) or watching(folder))]
    checkpoint = kgpt.callbacks.ResumableCheckpoint(folder / "run", save_freq=2)
    callbacks.insert(len(callbacks) if place is None else place, checkpoint)
    data = kgpt.data.windows(token_files / "train.npy", LENGTH, BATCH, seed=0)
    valid = kgpt.data.windows(token_files / "valid.npy", LENGTH, BATCH)
    options = {"validation_data": valid, **options}
    history = lm.fit(data, epochs=epochs, verbose=0, callbacks=callbacks, **options)
    return lm, history, callbacks


def counts(run):
    """The callbacks of the user's in a run."""
    return [callback for callback in run[2] if isinstance(callback, Counts)]


def assert_same(run, expected):
    (lm, history, _), (expected_lm, expected_history, _) = run, expected
    assert history.epoch == expected_history.epoch
    assert history.history == expected_history.history
    assert int(lm.optimizer.iterations) == int(expected_lm.optimizer.iterations)
    for a, b in zip(lm.get_weights(), expected_lm.get_weights(), strict=True):
        np.testing.assert_array_equal(a, b)


@pytest.fixture(scope="module")
def uncut(token_files, tmp_path_factory):
    """A run that nobody killed, and its folder."""
    folder = tmp_path_factory.mktemp("uncut")
    return train(token_files, folder), folder


@pytest.fixture(scope="module")
def story(token_files, tmp_path_factory):
    """A run that is killed three times: the folder after each, the last run, and its folder."""
    folder = tmp_path_factory.mktemp("story")
    afterwards = []
    kills = [
        (6, None),  # in epoch 1, from a checkpoint inside it
        (7, 0),  # in epoch 3, before the rate is lowered
        (4, 3),  # in epoch 4, after that
    ]
    for killed_after, place in kills:
        with pytest.raises(Killed):
            train(token_files, folder / "run", killed_after, place)
        for best in (folder / "run").glob("best-*"):
            best.write_bytes(b"")  # a worse one would overwrite it
        afterwards.append(folder / f"{len(afterwards)}")
        shutil.copytree(folder / "run", afterwards[-1])
    return afterwards, train(token_files, folder / "run"), folder / "run"


def test_the_folder_knows_the_history_of_its_run(uncut, story):
    for (_, history, _), folder in (uncut, story[1:]):
        assert run_history(folder / "run") == history.history


def test_callbacks_of_a_resumed_run_do_what_those_of_an_uncut_run_do(story, uncut):
    (_, resumed, folder), (expected, uncut_folder) = story, uncut

    assert_same(resumed, expected)
    assert expected[1].epoch == [0, 1, 2, 3, 4]  # stopped early
    assert (folder / "log.csv").read_bytes() == (uncut_folder / "log.csv").read_bytes()
    sizes = {best.name: best.stat().st_size for best in folder.glob("best-*")}
    assert sizes == {"best-1.weights.h5": 0, "best-2.weights.h5": 0}
    (own,), (expected_own,) = counts(resumed), counts(expected)
    assert own.steps == expected_own.steps == 5 * STEPS
    assert own.epochs == expected_own.epochs


def test_a_run_that_was_stopped_early_stays_stopped(token_files, tmp_path, story):
    _, expected, folder = story
    shutil.copytree(folder, tmp_path / "copy")

    for epochs in (8, 13):  # for more epochs too
        again = train(token_files, tmp_path / "copy", epochs=epochs)

        assert_same(again, expected)
        assert (tmp_path / "copy" / "log.csv").read_bytes() == (folder / "log.csv").read_bytes()


def test_what_is_measured_may_change(token_files, story, uncut):
    accuracy = keras.metrics.SparseCategoricalAccuracy(name="of_logits")

    lm, history, _ = train(token_files, story[0][1], metrics=[accuracy], validation_data=None)

    assert len(history.history["loss"]) == 5
    assert len(history.history["of_logits"]) == 2
    for a, b in zip(lm.get_weights(), uncut[0][0].get_weights(), strict=True):
        np.testing.assert_allclose(a, b, atol=1e-6)


def test_a_callback_may_be_new_another_may_go_and_a_patience_may_change(token_files, story):
    folder = story[0][0]
    early, best, *_ = watching(folder, patience=5)

    run = train(token_files, folder, callbacks=[Counts(), best, early, Counts()])

    assert run[1].epoch == [0, 1, 2, 3, 4, 5, 6]
    assert [own.steps for own in counts(run)] == [7 * STEPS, 7 * STEPS - 5]


@pytest.mark.parametrize(("rate", "expected"), [(1e-2, 5e-3), (0.25, 0.25)])
def test_a_learning_rate_that_the_user_changes_counts_and_else_the_lowered_one(
    token_files, tmp_path, story, rate, expected
):
    shutil.copytree(story[0][2], tmp_path / "copy")

    lm, *_ = train(token_files, tmp_path / "copy", epochs=4, rate=rate)

    assert float(lm.optimizer.learning_rate) == pytest.approx(expected)


class Falling(keras.callbacks.Callback):
    """Lowers the learning rate a little after each step."""

    def on_train_batch_end(self, batch, logs=None):
        self.model.optimizer.learning_rate = 0.9 * float(self.model.optimizer.learning_rate)


@pytest.mark.parametrize("killed_after", [3, 6, 8])  # an epoch has three steps
@pytest.mark.parametrize("kind", ["halved by each epoch", "by the epoch", "falling by steps"])
def test_a_rate_that_a_callback_sets_goes_on_inside_an_epoch(
    token_files, tmp_path, kind, killed_after
):
    make = {
        "halved by each epoch": lambda: keras.callbacks.LearningRateScheduler(lambda _, x: x / 2),
        "by the epoch": lambda: keras.callbacks.LearningRateScheduler(lambda i: 1e-2 / (1 + i)),
        "falling by steps": Falling,
    }[kind]
    options = {"epochs": 4, "validation_data": None}

    uncut = train(token_files, tmp_path / "uncut", callbacks=[make()], **options)
    folder = tmp_path / "cut"
    with pytest.raises(Killed):
        train(token_files, folder, killed_after, callbacks=[make()], **options)

    assert_same(train(token_files, folder, callbacks=[make()], **options), uncut)


def test_validation_in_some_epochs_and_mean_weights_go_on(token_files, tmp_path):
    def run(folder, **killed):
        swap = [keras.callbacks.SwapEMAWeights(swap_on_epoch=True)]
        options = {"validation_freq": 2, "use_ema": True, "epochs": 2, "callbacks": swap}
        return train(token_files, folder, **options, **killed)

    expected = run(tmp_path / "uncut")
    with pytest.raises(Killed):
        run(tmp_path / "cut", killed_after=5)  # from the end of epoch 0, where they are swapped

    assert_same(run(tmp_path / "cut"), expected)


def classify(tokenizer, folder, labels, killed_after=None):
    """Trains a classifier on texts that go straight in, with dropout and a step's checkpoints."""
    keras.utils.set_random_seed(0)
    backbone = kgpt.GPTBackbone(tokenizer.vocabulary_size, 1, 2, 8, max_sequence_length=LENGTH)
    model = kgpt.TextClassifier(backbone, num_classes=2, tokenizer=tokenizer)
    model.compile(**QUICK)
    callbacks = [
        Scripted(killed_after),
        keras.callbacks.ModelCheckpoint(folder / "{epoch}-{batch}.keras", save_freq=4),
        keras.callbacks.EarlyStopping(patience=5, restore_best_weights=True),
        kgpt.callbacks.ResumableCheckpoint(folder / "run", save_freq=1),
    ]
    texts = ["ab", "ba", "aab", "bba", "abab", "baba"]
    history = model.fit(
        *(texts, labels, 2, 2, 0, callbacks), validation_data=(texts[:2], labels[:2])
    )
    return model, history, callbacks


@pytest.mark.filterwarnings("ignore:The text is too small for a vocabulary")
def test_texts_straight_in_go_on_and_other_labels_are_another_run(tmp_path):
    tokenizer = kgpt.Tokenizer.train(["ab ba"], vocabulary_size=300)
    labels = ["x", "y", "x", "y", "x", "y"]
    folders = tmp_path / "uncut", tmp_path / "cut"
    expected = classify(tokenizer, folders[0], labels)
    with pytest.raises(Killed):
        classify(tokenizer, folders[1], labels, killed_after=3)

    with pytest.raises(ValueError, match=r"another run:\s+data\.labels: 6 of int32, sha256 .* now"):
        classify(tokenizer, folders[1], labels[::-1])

    assert_same(classify(tokenizer, folders[1], labels), expected)
    names = [sorted(path.name for path in folder.glob("*.keras")) for folder in folders]
    assert names[0] == names[1] == ["2-1.keras"]
