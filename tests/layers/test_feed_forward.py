import keras
import numpy as np
import pytest
from oracles import (
    assert_finite_with_gradients,
    numpy_feed_forward,
    numpy_gelu,
    randomize,
    run_keras_layer_test,
    skip_without_float16,
    to_numpy,
)

from kgpt.layers import FeedForward
from kgpt.layers.feed_forward import gelu_tanh, relu_squared

HIDDEN_STATES = np.random.default_rng(0).standard_normal((2, 5, 12)).astype("float32")


@pytest.fixture
def feed_forward():
    layer = FeedForward(20)
    layer.build((None, None, 12))
    return randomize(layer)


def test_it_passes_the_checks_of_keras_for_layers():
    run_keras_layer_test(FeedForward, {"intermediate_dim": 20}, weights=4)


def test_the_activation_is_the_papers_tanh_approximation():
    x = np.linspace(-6, 6, 101).astype("float32")

    np.testing.assert_allclose(to_numpy(gelu_tanh(x)), numpy_gelu(x), atol=1e-6)


def test_squared_relu_is_the_square_of_what_is_positive():
    np.testing.assert_array_equal(
        to_numpy(relu_squared(np.array([-3.0, -0.5, 0.0, 0.5, 3.0], "float32"))),
        [0.0, 0.0, 0.0, 0.25, 9.0],
    )


def test_the_output_is_two_linear_maps_with_gelu_between(feed_forward):
    weights = [to_numpy(w) for w in feed_forward.weights]

    output = feed_forward(HIDDEN_STATES)

    expected = numpy_feed_forward(HIDDEN_STATES, weights)
    np.testing.assert_allclose(to_numpy(output), expected, atol=1e-5)


@pytest.mark.parametrize(
    "activation",
    ["relu", "relu_squared", keras.activations.silu, gelu_tanh],
    ids=["name", "kgpt's name", "keras's", "kgpt's"],
)
def test_any_activation_survives_the_config(activation):
    layer = FeedForward(20, activation=activation)

    copy = FeedForward.from_config(layer.get_config())

    assert copy.activation is layer.activation
    assert copy.get_config() == layer.get_config()


def test_an_own_activation_is_used():
    layer = randomize_built(FeedForward(20, activation="relu"))
    W_1, b_1, W_2, b_2 = (to_numpy(w) for w in layer.weights)

    output = layer(HIDDEN_STATES)

    expected = np.maximum(HIDDEN_STATES @ W_1 + b_1, 0) @ W_2 + b_2
    np.testing.assert_allclose(to_numpy(output), expected, atol=1e-5)


def randomize_built(layer):
    layer.build((None, None, 12))
    return randomize(layer)


def test_a_model_with_it_takes_any_batch_and_length(feed_forward):
    hidden_states = keras.Input((None, 12))
    model = keras.Model(hidden_states, feed_forward(hidden_states))

    outputs = [model.predict(np.ones(shape), verbose=0) for shape in ((2, 5, 12), (3, 7, 12))]

    assert [output.shape for output in outputs] == [(2, 5, 12), (3, 7, 12)]


def test_output_shape_is_known_without_a_call():
    assert FeedForward(20).compute_output_shape((2, None, 12)) == (2, None, 12)


@pytest.mark.parametrize("policy", ["float32", "mixed_bfloat16", "mixed_float16"])
def test_output_and_gradients_are_finite_in_every_dtype(policy):
    skip_without_float16(policy)
    layer = randomize_built(FeedForward(20, dtype=policy))

    assert_finite_with_gradients(lambda: layer(HIDDEN_STATES), layer.trainable_variables)


def test_weights_start_at_the_papers_scale():
    layer = FeedForward(256)

    layer.build((None, None, 64))

    for kernel in (layer.expansion.kernel, layer.output_projection.kernel):
        assert to_numpy(kernel).std() == pytest.approx(0.02, rel=0.05)
    for bias in (layer.expansion.bias, layer.output_projection.bias):
        assert not to_numpy(bias).any()


def test_the_second_map_can_start_at_its_own_scale():
    layer = FeedForward(256, output_initializer=keras.initializers.RandomNormal(stddev=0.005))

    layer.build((None, None, 64))

    assert to_numpy(layer.expansion.kernel).std() == pytest.approx(0.02, rel=0.05)
    assert to_numpy(layer.output_projection.kernel).std() == pytest.approx(0.005, rel=0.05)


def test_the_two_maps_do_not_start_with_the_same_numbers():
    layer = FeedForward(12)

    layer.build((None, None, 12))

    first, second = (to_numpy(m.kernel) for m in (layer.expansion, layer.output_projection))
    assert not np.allclose(first, second)


def test_an_unknown_activation_is_refused():
    with pytest.raises(ValueError, match="nonsense"):
        FeedForward(20, activation="nonsense")


def test_an_inner_width_below_one_is_refused():
    with pytest.raises(ValueError, match="intermediate_dim=0"):
        FeedForward(0)
