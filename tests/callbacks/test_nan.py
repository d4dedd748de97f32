"""A loss or a weight that is not finite is never saved."""

import keras
import numpy as np
import pytest
from keras import ops
from runs import LENGTH, PASS, QUICK, VOCABULARY, checkpoints, token_file

import kgpt


@pytest.fixture(scope="module")
def path(tmp_path_factory):
    return token_file(tmp_path_factory.mktemp("tokens"))


def make_lm(optimizer=None):
    keras.utils.set_random_seed(0)
    backbone = kgpt.GPTBackbone(VOCABULARY, 1, 2, 8, max_sequence_length=LENGTH)
    lm = kgpt.CausalLM(backbone)
    lm.compile(optimizer or keras.optimizers.SGD(0.1), **QUICK)
    return lm


class Break(keras.callbacks.Callback):
    """Makes a weight NaN before a step, as a batch would that gives infinite gradients."""

    def __init__(self, *steps):
        super().__init__()
        self.steps, self.seen, self.losses = steps, 0, []

    def on_train_batch_begin(self, batch, logs=None):
        self.seen += 1
        if self.seen in self.steps:
            if hasattr(self.model, "jax_state_sync"):
                self.model.jax_state_sync()
            weight = self.model.trainable_variables[-1]
            weight.assign(ops.full(weight.shape, float("nan")))

    def on_train_batch_end(self, batch, logs=None):
        self.losses.append(logs["loss"])


def fit(lm, path, folder, *callbacks, epochs=2, save_freq=2, **options):
    train = kgpt.data.windows(path, LENGTH, 4)
    checkpoint = kgpt.callbacks.ResumableCheckpoint(folder, save_freq, **options)
    return lm.fit(train, epochs=epochs, callbacks=[*callbacks, checkpoint], verbose=0)


def test_training_ends_with_the_step_and_the_last_good_checkpoint(path, tmp_path):
    lm = make_lm()

    with pytest.raises(FloatingPointError, match=r"after 8 steps, in epoch 2") as error:
        fit(lm, path, tmp_path, Break(8))

    last = checkpoints(tmp_path)[-1]
    assert str(last) in str(error.value)
    assert all(np.isfinite(array).all() for array in np.load(last / "state.npz").values())


def test_a_weight_that_is_not_finite_is_not_saved(path, tmp_path):
    class BreakAfter(keras.callbacks.Callback):
        def on_epoch_end(self, epoch, logs=None):
            weight = self.model.trainable_variables[-1]
            weight.assign(ops.full(weight.shape, float("inf")))

    with pytest.raises(FloatingPointError, match=r"is not finite after 5 steps, in epoch 1"):
        fit(make_lm(), path, tmp_path, BreakAfter(), save_freq="epoch")

    assert not checkpoints(tmp_path)


def weights_without(path, left_out):
    """The weights of a run over two passes without some of its steps, counted from 1."""
    lm = make_lm()
    batches = [*kgpt.data.windows(path, LENGTH, 4)] * 2
    for step, (x, y) in enumerate(batches, 1):
        if step not in left_out:
            lm.train_on_batch(x, y)
    return lm.get_weights()


@pytest.mark.parametrize(
    ("broken", "left_out"),
    [
        ((8,), {8}),  # the checkpoint was saved after step 7
        ((7,), {6, 7}),  # after step 5, the end of an epoch
        ((1,), {1}),  # before the first one
        ((2, 8), {1, 2, 8}),
    ],
)
def test_the_run_goes_on_after_the_batch(path, tmp_path, capsys, broken, left_out):
    lm = make_lm()
    record = Break(*broken)

    fit(lm, path, tmp_path, record, on_nan="skip")

    assert record.seen == 2 * PASS
    expected = weights_without(path, left_out)
    for a, b in zip(lm.get_weights(), expected, strict=True):
        np.testing.assert_allclose(a, b, atol=1e-6)
    assert capsys.readouterr().out.count("on with the next batch") == len(broken)
    assert np.isfinite(lm.history.history["loss"]).all()


def test_there_are_so_many_skips_and_no_more(path, tmp_path):
    with pytest.raises(FloatingPointError, match="2 skips since then did not help"):
        fit(make_lm(), path, tmp_path, Break(6, 7, 8), on_nan="skip", save_freq=5, max_skips=2)


def test_after_a_skip_updates_have_their_batches(path, tmp_path):
    optimizer = keras.optimizers.SGD(0.1, gradient_accumulation_steps=3)
    lm = make_lm(optimizer)

    fit(lm, path, tmp_path, Break(5), on_nan="skip", save_freq=4, epochs=3)

    assert int(optimizer._iterations) % 3 == 3 * PASS % 3
    assert all(np.isfinite(weight).all() for weight in lm.get_weights())
