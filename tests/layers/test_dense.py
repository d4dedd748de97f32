import keras
import numpy as np
import pytest
from oracles import assert_same_in_training, to_numpy

from kgpt.layers.dense import Dense

WIDTH, UNITS = 5, 7
INPUTS = np.random.default_rng(0).standard_normal((2, 3, WIDTH)).astype("float32")


def make_both(**arguments):
    """Keras's layer and kgpt's, with the same weights."""
    layers = [each(UNITS, **arguments) for each in (keras.layers.Dense, Dense)]
    for layer in layers:
        layer.build(INPUTS.shape)
    layers[1].set_weights(layers[0].get_weights())
    return layers


@pytest.mark.parametrize("use_bias", [True, False])
@pytest.mark.parametrize(("dtype", "tolerance"), [("float32", 1e-6), ("mixed_bfloat16", 2e-2)])
def test_outputs_and_gradients_are_those_of_keras(use_bias, dtype, tolerance):
    theirs, ours = make_both(use_bias=use_bias, activation="tanh", dtype=dtype)

    assert_same_in_training(theirs, ours, INPUTS, rtol=tolerance, atol=tolerance)


def test_additions_of_lora_have_the_gradients_of_keras():
    theirs, ours = make_both()
    for layer in (theirs, ours):
        layer.enable_lora(2)
        layer.lora_kernel_b.assign(np.arange(2 * UNITS).reshape(2, UNITS) / 10)
    ours.lora_kernel_a.assign(theirs.lora_kernel_a)

    assert_same_in_training(theirs, ours, INPUTS, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("mode", ["int8", "int4"])
def test_quantized_outputs_are_those_of_keras(mode):
    theirs, ours = make_both()

    for layer in (theirs, ours):
        layer.quantize(mode)

    np.testing.assert_allclose(to_numpy(ours(INPUTS)), to_numpy(theirs(INPUTS)), atol=1e-6)


def test_the_layer_is_in_the_file_of_a_plain_keras_model(tmp_path):
    model = keras.Sequential([keras.Input((3, WIDTH)), Dense(UNITS)])
    model.save(tmp_path / "model.keras")

    loaded = keras.saving.load_model(tmp_path / "model.keras")

    assert type(loaded.layers[-1]) is Dense
    predicted = loaded.predict(INPUTS, verbose=0)
    np.testing.assert_allclose(predicted, to_numpy(model(INPUTS)), atol=1e-6)
