import keras
import numpy as np
import pytest
from oracles import gradients, numpy_gelu, to_numpy

from kgpt.kernels.gelu import gelu, reference

X = np.linspace(-8, 8, 403).astype("float32")


def results(function, dtype="float32"):
    x = keras.Variable(X, dtype=dtype)

    def output():
        return keras.ops.cast(function(x + 0.0), "float32")

    factors = keras.ops.array(np.random.default_rng(0).standard_normal(X.shape).astype("float32"))
    (gradient,) = gradients(lambda: keras.ops.sum(output() * factors), [x])
    return to_numpy(keras.ops.stop_gradient(output())), np.asarray(gradient, "float32")


def test_the_formula_is_the_papers():
    np.testing.assert_allclose(to_numpy(reference(keras.ops.array(X))), numpy_gelu(X), atol=1e-5)


# Far from 0 the formula's own gradient is off by 1e-5 in float32: 1 + tanh cancels.
@pytest.mark.parametrize(
    ("dtype", "rtol", "atol"), [("float32", 0, 3e-5), ("bfloat16", 0.03, 0.05)]
)
def test_values_and_gradients_are_those_of_the_formula(dtype, rtol, atol):
    for found, expected in zip(results(gelu, dtype), results(reference), strict=True):
        np.testing.assert_allclose(found, expected, rtol, atol)
