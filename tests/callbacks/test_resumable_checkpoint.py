import keras
import numpy as np
import pytest
from runs import BATCH, LENGTH, VOCABULARY, Killed

import kgpt


def kill_after(steps):
    """A callback that ends training as abruptly as Python allows."""
    seen = []

    def count(batch, logs):
        seen.append(batch)
        if len(seen) == steps:
            raise Killed

    return keras.callbacks.LambdaCallback(on_train_batch_end=count)


@pytest.fixture
def token_file(tmp_path):
    rng = np.random.default_rng(0)
    np.save(tmp_path / "tokens.npy", rng.integers(0, VOCABULARY, 300).astype("uint16"))
    return tmp_path / "tokens.npy"


def fit(token_file, *callbacks, optimizer=None, epochs=3, steps_per_epoch=None, first=0):
    """Nine steps a pass; dropout is on, so that random states matter."""
    keras.utils.set_random_seed(0)
    backbone = kgpt.GPTBackbone(VOCABULARY, 1, 2, 8, max_sequence_length=LENGTH, dropout=0.2)
    lm = kgpt.CausalLM(backbone)
    lm.compile(optimizer or keras.optimizers.Adam(1e-2))
    repeat = steps_per_epoch is not None
    train = kgpt.data.windows(token_file, LENGTH, BATCH, seed=0, repeat=repeat)
    history = lm.fit(
        train,
        epochs=epochs,
        initial_epoch=first,
        steps_per_epoch=steps_per_epoch,
        callbacks=list(callbacks),
        verbose=0,
    )
    return lm, history


@pytest.mark.filterwarnings("error:Your input ran out of data")
@pytest.mark.parametrize(
    ("killed_after", "optimizer", "steps_per_epoch"),
    [
        (9, None, None),  # saved one step before the end of an epoch
        (14, "default", None),  # saved in the middle of an epoch
        (16, None, 8),  # saved at the end of an epoch, in the middle of a pass
        (7, "default", 6),
    ],
)
def test_a_killed_run_that_is_started_again_ends_as_one_that_was_not(
    token_file, tmp_path, killed_after, optimizer, steps_per_epoch
):
    settings = {"optimizer": optimizer, "steps_per_epoch": steps_per_epoch}
    expected, _ = fit(token_file, **settings)
    checkpoint = kgpt.callbacks.ResumableCheckpoint(tmp_path / "run", save_freq=4)
    with pytest.raises(Killed):
        fit(token_file, checkpoint, kill_after(killed_after), **settings)

    checkpoint = kgpt.callbacks.ResumableCheckpoint(tmp_path / "run", save_freq=4)
    resumed, _ = fit(token_file, checkpoint, **settings)

    assert int(resumed.optimizer.iterations) == int(expected.optimizer.iterations)
    for a, b in zip(resumed.get_weights(), expected.get_weights(), strict=True):
        np.testing.assert_allclose(a, b, atol=1e-6)


@pytest.mark.parametrize("first", [(1, 1), (1, 0), (0, 1)], ids=str)
def test_the_schedule_is_laid_over_the_epochs_of_the_run_that_is_resumed(
    token_file, tmp_path, first
):
    """What `initial_epoch` is when a run is resumed does not change it."""
    before, after = first
    expected, _ = fit(token_file, optimizer="default", first=before)
    checkpoint = kgpt.callbacks.ResumableCheckpoint(tmp_path / "run", save_freq=4)
    with pytest.raises(Killed):
        fit(token_file, checkpoint, kill_after(14), optimizer="default", first=before)
    checkpoint = kgpt.callbacks.ResumableCheckpoint(tmp_path / "run", save_freq=4)

    resumed, _ = fit(token_file, checkpoint, optimizer="default", first=after)

    for a, b in zip(resumed.variables, expected.variables, strict=True):
        np.testing.assert_array_equal(*map(keras.ops.convert_to_numpy, (a, b)))


def test_saving_by_epochs_works_with_arrays(tmp_path):
    x = np.random.default_rng(0).integers(0, VOCABULARY, (6, LENGTH))

    def run(*callbacks):
        keras.utils.set_random_seed(0)
        lm = kgpt.CausalLM(kgpt.GPTBackbone(VOCABULARY, 1, 2, 8, max_sequence_length=LENGTH))
        lm.compile("adam")
        return lm.fit(
            x, x, epochs=3, batch_size=3, shuffle=False, callbacks=list(callbacks), verbose=0
        )

    expected = run()
    with pytest.raises(Killed):
        run(kgpt.callbacks.ResumableCheckpoint(tmp_path), kill_after(3))

    resumed = run(kgpt.callbacks.ResumableCheckpoint(tmp_path))

    assert resumed.epoch == [0, 1, 2]
    assert resumed.model.fit(x, x, epochs=2, verbose=0).epoch == [0, 1]
    np.testing.assert_allclose(resumed.history["loss"], expected.history["loss"], rtol=1e-5)


def fit_with_keras_dropout(folder=None, killed_after=None, seed=0):
    """Three epochs of two steps; Keras's layer draws from PyTorch's own generator on PyTorch."""
    keras.utils.set_random_seed(seed)
    model = keras.Sequential(
        [keras.Input((64,)), keras.layers.Dropout(0.5), keras.layers.Dense(1, use_bias=False)]
    )
    model.layers[-1].kernel.assign(np.zeros((64, 1)))
    model.compile(keras.optimizers.SGD(0.1), loss="mse")
    x, y = np.ones((6, 64), "float32"), np.ones((6, 1), "float32")
    callbacks = [kgpt.callbacks.ResumableCheckpoint(folder)] if folder else []
    callbacks += [kill_after(killed_after)] if killed_after else []
    model.fit(x, y, batch_size=3, epochs=3, shuffle=False, callbacks=callbacks, verbose=0)
    return keras.ops.convert_to_numpy(model.layers[-1].kernel)


def test_a_resumed_run_drops_what_a_run_that_was_not_killed_drops(tmp_path):
    expected = fit_with_keras_dropout()
    with pytest.raises(Killed):
        fit_with_keras_dropout(tmp_path / "run", killed_after=3)

    resumed = fit_with_keras_dropout(tmp_path / "run", seed=1)

    np.testing.assert_allclose(resumed, expected, atol=1e-6)


def test_a_finished_run_stays_as_it_is(token_file, tmp_path):
    first, _ = fit(token_file, kgpt.callbacks.ResumableCheckpoint(tmp_path / "run"))

    second, history = fit(token_file, kgpt.callbacks.ResumableCheckpoint(tmp_path / "run"))

    assert history.epoch == [0, 1, 2]
    assert len(list((tmp_path / "run").glob("checkpoint-*"))) == 2
    for a, b in zip(first.get_weights(), second.get_weights(), strict=True):
        np.testing.assert_array_equal(a, b)


def test_the_checkpoint_of_another_model_is_refused(token_file, tmp_path):
    folder = tmp_path / "run"
    fit(token_file, kgpt.callbacks.ResumableCheckpoint(folder))
    other = kgpt.CausalLM(kgpt.GPTBackbone(VOCABULARY, 2, 2, 8, max_sequence_length=LENGTH))
    other.compile("adam")

    with pytest.raises(ValueError, match=r"another run:\n.*num_layers: 1 .*, 2 now"):
        other.fit(
            kgpt.data.windows(token_file, LENGTH, BATCH, seed=0),
            callbacks=[kgpt.callbacks.ResumableCheckpoint(folder)],
            verbose=0,
        )


def test_a_run_may_begin_afresh_in_the_folder_of_another(token_file, tmp_path, capsys):
    folder = tmp_path / "run"
    fit(token_file, kgpt.callbacks.ResumableCheckpoint(folder), epochs=1)
    expected, _ = fit(token_file, optimizer=keras.optimizers.SGD(0.1), epochs=1)

    checkpoint = kgpt.callbacks.ResumableCheckpoint(folder, on_mismatch="restart")
    found, _ = fit(token_file, checkpoint, optimizer=keras.optimizers.SGD(0.1), epochs=1)

    for a, b in zip(found.get_weights(), expected.get_weights(), strict=True):
        np.testing.assert_array_equal(a, b)
    assert "another run:\n  optimizer" in capsys.readouterr().out
    assert [path.name for path in folder.glob("checkpoint-*")] == ["checkpoint-00000002"]


def test_a_run_that_was_stopped_stays_stopped(token_file, tmp_path):
    def run():
        stop = keras.callbacks.EarlyStopping("loss", min_delta=100, patience=1)
        return fit(token_file, stop, kgpt.callbacks.ResumableCheckpoint(tmp_path / "run"))

    first, history = run()
    second, again = run()

    assert history.epoch == again.epoch == [0, 1]
    for a, b in zip(first.get_weights(), second.get_weights(), strict=True):
        np.testing.assert_array_equal(a, b)


def test_more_epochs_than_before_go_on(token_file, tmp_path):
    expected, whole = fit(token_file, epochs=2)
    fit(token_file, kgpt.callbacks.ResumableCheckpoint(tmp_path / "run"), epochs=1)

    resumed, history = fit(
        token_file, kgpt.callbacks.ResumableCheckpoint(tmp_path / "run"), epochs=2
    )

    assert history.history == whole.history
    for a, b in zip(resumed.get_weights(), expected.get_weights(), strict=True):
        np.testing.assert_array_equal(a, b)


def test_two_callbacks_that_keep_the_run_are_refused(token_file, tmp_path):
    both = [kgpt.callbacks.ResumableCheckpoint(tmp_path / name) for name in "ab"]

    with pytest.raises(ValueError, match="2 callbacks ResumableCheckpoint"):
        fit(token_file, *both)


def test_saving_between_epochs_needs_data_that_can_continue(tmp_path):
    x = np.zeros((6, LENGTH), int)
    lm = kgpt.CausalLM(kgpt.GPTBackbone(VOCABULARY, 1, 2, 8, max_sequence_length=LENGTH))
    lm.compile("adam")

    with pytest.raises(ValueError, match="save_freq=5 with data of type ndarray"):
        lm.fit(x, x, callbacks=[kgpt.callbacks.ResumableCheckpoint(tmp_path, 5)], verbose=0)


@pytest.mark.parametrize("save_freq", ["step", 0, -1, True, 1.5])
def test_a_wrong_save_freq_is_refused(tmp_path, save_freq):
    with pytest.raises(ValueError, match=f"Received: save_freq={save_freq!r}"):
        kgpt.callbacks.ResumableCheckpoint(tmp_path, save_freq)
