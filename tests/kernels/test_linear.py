import keras
import numpy as np
import pytest
from oracles import gradients, to_numpy

from kgpt.kernels.linear import affine, matmul, reference

INPUTS = np.random.default_rng(0).standard_normal((2, 3, 5)).astype("float32")
KERNEL = np.random.default_rng(1).standard_normal((5, 7)).astype("float32")


def results(function, dtype):
    variables = [keras.Variable(x, dtype=dtype) for x in (INPUTS, KERNEL)]

    def output():
        return keras.ops.cast(function(*map(keras.ops.convert_to_tensor, variables)), "float32")

    factors = keras.ops.array(np.random.default_rng(2).standard_normal((2, 3, 7)), "float32")
    found = gradients(lambda: keras.ops.sum(output() * factors), variables)
    return [to_numpy(keras.ops.stop_gradient(output())), *found]


@pytest.mark.parametrize(("dtype", "tolerance"), [("float32", 1e-6), ("bfloat16", 0.02)])
def test_in_training_values_and_gradients_are_those_of_the_formula(dtype, tolerance):
    found = results(lambda *inputs: matmul(*inputs, training=True), dtype)

    for one, other in zip(found, results(reference, "float32"), strict=True):
        one = np.asarray(one, "float32")
        assert np.abs(one - other).max() < tolerance * np.abs(other).max() + 1e-6


@pytest.mark.parametrize("split", [None, "inputs", "outputs", "thirds"])
def test_on_one_device_how_devices_share_a_map_changes_nothing(split):
    kernel, bias = KERNEL[:, :6], np.arange(6, dtype="float32")

    found = affine(*map(keras.ops.convert_to_tensor, (INPUTS, kernel, bias)), split=split)

    np.testing.assert_allclose(to_numpy(found), INPUTS @ kernel + bias, atol=1e-5)
