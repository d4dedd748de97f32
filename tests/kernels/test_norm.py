import keras
import numpy as np
import pytest
from oracles import gradients, numpy_layer_norm, to_numpy

from kgpt.kernels.norm import layer_norm, reference

X = np.random.default_rng(0).normal(3, 2, (2, 5, 12)).astype("float32")
GAIN, BIAS = np.random.default_rng(1).normal(1, 0.3, (2, 12)).astype("float32")
EPSILON = 1e-5


def results(function, dtype="float32"):
    """The output, and the gradients of a weighted sum of it."""
    variables = [keras.Variable(X, dtype=dtype), keras.Variable(GAIN), keras.Variable(BIAS)]
    factors = keras.ops.array(np.random.default_rng(2).standard_normal(X.shape).astype("float32"))

    def output():
        return keras.ops.cast(function(*(v + 0.0 for v in variables), EPSILON), "float32")

    found = gradients(lambda: keras.ops.sum(output() * factors), variables)
    return [to_numpy(keras.ops.stop_gradient(output())), *found]


def in_training(*arguments):
    return layer_norm(*arguments, training=True)


def test_the_formula_is_the_papers():
    output = to_numpy(reference(*map(keras.ops.array, (X, GAIN, BIAS)), EPSILON))

    np.testing.assert_allclose(output, numpy_layer_norm(X, GAIN, BIAS, EPSILON), atol=1e-5)


@pytest.mark.parametrize("function", [in_training, layer_norm], ids=["training", "inference"])
def test_values_and_gradients_are_those_of_the_formula(function):
    for found, expected in zip(results(function), results(reference), strict=True):
        np.testing.assert_allclose(found, expected, rtol=2e-5, atol=2e-5)


def test_in_bfloat16_they_are_near_to_those_of_float32():
    for found, expected in zip(results(in_training, "bfloat16"), results(reference), strict=True):
        error = np.abs(np.asarray(found, "float32") - expected).max()
        assert error < 0.02 * np.abs(expected).max()
