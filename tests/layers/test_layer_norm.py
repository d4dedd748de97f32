import keras
import numpy as np
import pytest
from oracles import assert_same_in_training, numpy_layer_norm, randomize, to_numpy

from kgpt.layers.layer_norm import LayerNorm

INPUTS = np.random.default_rng(0).normal(3, 2, (2, 5, 12)).astype("float32")


def make_both(dtype="float32"):
    """Keras's layer and kgpt's, with the same weights."""
    theirs = keras.layers.LayerNormalization(epsilon=1e-5, dtype=dtype)
    ours = LayerNorm(dtype=dtype)
    for layer in (theirs, ours):
        layer.build(INPUTS.shape)
    ours.set_weights(randomize(theirs).get_weights())
    return theirs, ours


@pytest.mark.parametrize("training", [True, False])
def test_outputs_are_those_of_the_formula(training):
    _, layer = make_both()

    outputs = keras.ops.stop_gradient(layer(INPUTS, training=training))

    expected = numpy_layer_norm(INPUTS.astype("float64"), *layer.get_weights())
    np.testing.assert_allclose(to_numpy(outputs), expected, atol=1e-5)


@pytest.mark.parametrize(("dtype", "tolerance"), [("float32", 2e-5), ("mixed_bfloat16", 5e-2)])
def test_outputs_and_gradients_are_those_of_keras(dtype, tolerance):
    theirs, ours = make_both(dtype)

    assert_same_in_training(theirs, ours, INPUTS, rtol=tolerance, atol=tolerance)


def test_rows_without_variance_have_finite_gradients():
    theirs, ours = make_both()

    assert_same_in_training(theirs, ours, np.ones((2, 5, 12), "float32"), rtol=1e-4, atol=1e-4)


def test_the_layer_is_in_the_file_of_a_plain_keras_model(tmp_path):
    model = keras.Sequential([keras.Input((5, 12)), LayerNorm(epsilon=0.1)])
    model.save(tmp_path / "model.keras")

    loaded = keras.saving.load_model(tmp_path / "model.keras")

    assert type(loaded.layers[-1]) is LayerNorm
    assert loaded.layers[-1].epsilon == 0.1
    predicted = loaded.predict(INPUTS, verbose=0)
    np.testing.assert_allclose(predicted, to_numpy(model(INPUTS)), atol=1e-6)
