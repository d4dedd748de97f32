import keras
import numpy as np
import pytest
from oracles import to_numpy

from kgpt.layers.dropout import Dropout


def drop(x, rate, seed=0):
    return to_numpy(Dropout(rate, seed=seed)(keras.ops.convert_to_tensor(x), training=True))


@pytest.mark.parametrize("rate", [0.1, 0.5, 0.9])
@pytest.mark.parametrize("length", [1, 2, 7, 64])
def test_the_share_is_dropped_and_the_rest_keeps_the_mean(rate, length):
    kept = drop(np.ones((40_000 // length, length), "float32"), rate)

    np.testing.assert_allclose((kept == 0).mean(axis=0), rate, atol=6 * (40_000 / length) ** -0.5)
    assert (kept == 0).mean() == pytest.approx(rate, abs=0.015)
    np.testing.assert_allclose(np.unique(kept.round(2)), [0, round(1 / (1 - rate), 2)], atol=0.011)


def test_the_two_entries_of_one_draw_are_independent():
    dropped = drop(np.ones((50_000, 2), "float32"), 0.3) == 0

    both = (dropped[:, 0] & dropped[:, 1]).mean()
    assert both == pytest.approx(0.3 * 0.3, abs=0.008)


def test_nothing_is_dropped_outside_of_training_and_at_rate_0():
    x = np.arange(6, dtype="float32").reshape(2, 3)

    np.testing.assert_array_equal(to_numpy(Dropout(0.5)(x)), x)
    np.testing.assert_array_equal(drop(x, 0.0), x)


def test_one_mask_serves_the_axes_that_the_noise_shape_leaves_at_one():
    layer = Dropout(0.5, noise_shape=(None, 1, None), seed=0)

    kept = to_numpy(layer(np.ones((50, 3, 40), "float32"), training=True))

    assert (kept == kept[:, :1]).all()
    assert (kept == 0).mean() == pytest.approx(0.5, abs=0.05)
    assert Dropout.from_config(layer.get_config()).noise_shape == (None, 1, None)


def test_the_highest_rates_give_finite_numbers():
    assert np.isfinite(drop(np.ones((4, 1000), "float32"), 0.99999)).all()


def test_each_call_draws_anew_and_a_seed_repeats_it():
    layer, x = Dropout(0.5, seed=3), np.ones((3, 50), "float32")

    first, second = (to_numpy(layer(x, training=True)) for _ in range(2))

    assert not np.array_equal(first, second)
    np.testing.assert_array_equal(first, drop(x, 0.5, seed=3))


@pytest.mark.parametrize("dtype", ["mixed_float16", "mixed_bfloat16"])
def test_the_dtype_is_the_policys(dtype):
    layer = Dropout(0.5, dtype=dtype)

    kept = layer(np.ones((3, 5), "float32"), training=True)

    assert keras.backend.standardize_dtype(kept.dtype) == layer.compute_dtype


def test_lengths_that_are_unknown_in_a_graph_work():
    inputs = keras.Input((None, 3))
    model = keras.Sequential([inputs, Dropout(0.5), keras.layers.Dense(1)])
    model.compile("sgd", "mse")

    for length in (4, 7):
        loss = model.train_on_batch(np.ones((2, length, 3)), np.ones((2, length, 1)))
        assert np.isfinite(loss)
