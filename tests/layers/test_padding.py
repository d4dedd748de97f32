import keras
import numpy as np
import pytest
from oracles import gradients, to_numpy

from kgpt import layers
from kgpt.layers.padding import from_right_padding, to_right_padding

MASK = np.array([[0, 1, 1, 0, 1], [1, 1, 0, 0, 0], [0, 0, 0, 0, 0], [1, 1, 1, 1, 1]], bool)
IDS = np.arange(20).reshape(4, 5).astype("int32")
STATES = np.random.default_rng(0).standard_normal((4, 5, 3)).astype("float32")


@pytest.mark.parametrize("dtype", ["bool", "int32", "float32"])
def test_real_entries_come_first_in_their_order(dtype):
    moved = to_right_padding(keras.ops.array(IDS), keras.ops.array(MASK.astype(dtype)))

    expected = [[1, 2, 4, 0, 3], [5, 6, 7, 8, 9], [10, 11, 12, 13, 14], [15, 16, 17, 18, 19]]
    np.testing.assert_array_equal(to_numpy(moved), expected)


def test_states_return_to_their_places():
    mask = keras.ops.array(MASK)

    moved = to_right_padding(keras.ops.array(STATES), mask)

    np.testing.assert_array_equal(to_numpy(moved)[0], STATES[0, [1, 2, 4, 0, 3]])
    np.testing.assert_array_equal(to_numpy(from_right_padding(moved, mask)), STATES)


def test_gradients_return_with_the_states():
    states, mask = keras.Variable(STATES), keras.ops.array(MASK)
    factors = np.random.default_rng(1).standard_normal((2, *STATES.shape)).astype("float32")
    tensors = [keras.ops.array(x) for x in factors]

    def loss():
        moved = to_right_padding(keras.ops.convert_to_tensor(states), mask) * tensors[0]
        return keras.ops.sum(from_right_padding(moved, mask) * tensors[1])

    (found,) = gradients(loss, [states])

    order = np.argsort(~MASK, axis=1, kind="stable")[..., None]
    back = np.empty_like(STATES)
    np.put_along_axis(back, order, factors[0], axis=1)
    np.testing.assert_allclose(found, back * factors[1], rtol=1e-6)


def test_nothing_is_moved_without_a_mask():
    states = keras.ops.array(STATES)

    assert to_right_padding(states, None) is states
    assert from_right_padding(states, None) is states
    assert to_right_padding(None, keras.ops.array(MASK)) is None


class TestShapes:
    @pytest.mark.parametrize("name", ["padding_mask", "segment_ids"])
    @pytest.mark.parametrize("shape", [(2, 1), (2, 4), (2, 6), (1, 5)])
    def test_a_layer_alone_refuses_masks_of_another_shape(self, name, shape):
        mask = np.ones(shape, "int32")
        for layer in (layers.CausalSelfAttention(2), layers.DecoderBlock(2, 6)):
            with pytest.raises(ValueError, match=rf"{name} must have a number for each.*\(2, 5\)"):
                layer(np.ones((2, 5, 8), "float32"), **{name: mask})

    def test_an_embedding_refuses_segments_of_another_shape(self):
        embedding = layers.TokenAndPositionEmbedding(5, 6, 8)
        with pytest.raises(ValueError, match="segment_ids must have a number for each"):
            embedding(np.ones((2, 5), "int32"), segment_ids=np.ones((2, 4), "int32"))
