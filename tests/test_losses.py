import keras
import numpy as np
import pytest
from keras import ops
from oracles import gradients, numpy_cross_entropy, to_numpy

from kgpt.losses import next_token_loss, next_token_targets

BATCH, LENGTH, WIDTH, VOCABULARY = 2, 7, 12, 50
TOKEN_IDS = np.arange(BATCH * LENGTH).reshape(BATCH, LENGTH)


@pytest.fixture
def embedding():
    layer = keras.layers.ReversibleEmbedding(VOCABULARY, WIDTH, embeddings_initializer="normal")
    layer.build()
    return layer


@pytest.fixture
def batch():
    rng = np.random.default_rng(0)
    hidden_states = rng.normal(size=(BATCH, LENGTH, WIDTH)).astype("float32")
    targets = rng.integers(0, VOCABULARY, (BATCH, LENGTH))
    weights = rng.random((BATCH, LENGTH)).astype("float32")
    return hidden_states, targets, weights


def formula(hidden_states, matrix, targets, weights):
    """Loss, correct predictions, and the loss's gradients for states and matrix, in float64."""
    matrix = matrix.astype("float64")
    logits = hidden_states.astype("float64") @ matrix.T
    loss = (numpy_cross_entropy(logits, targets) * weights).sum()
    correct = ((logits.argmax(-1) == targets) * weights).sum()
    softmax = np.exp(logits - logits.max(-1, keepdims=True))
    softmax /= softmax.sum(-1, keepdims=True)
    d_logits = (softmax - np.eye(VOCABULARY)[targets]) * weights[..., None]
    return loss, correct, d_logits @ matrix, np.einsum("btv,btd->vd", d_logits, hidden_states)


# === which token scores each position ===


def targets_and_weights(*args, **kwargs):
    return [to_numpy(x) for x in next_token_targets(*args, **kwargs)]


def test_each_position_is_scored_by_the_next_token_and_the_last_by_none():
    targets, weights = targets_and_weights(TOKEN_IDS)

    np.testing.assert_array_equal(targets[:, :-1], TOKEN_IDS[:, 1:])
    np.testing.assert_array_equal(weights, np.tile([1, 1, 1, 1, 1, 1, 0], (BATCH, 1)))
    assert weights.dtype == "float32"


def test_targets_that_are_given_score_the_last_position_too():
    given = TOKEN_IDS + 1

    targets, weights = targets_and_weights(TOKEN_IDS, targets=given)

    np.testing.assert_array_equal(targets, given)
    np.testing.assert_array_equal(weights, np.ones((BATCH, LENGTH)))


@pytest.mark.parametrize("dtype", ["bool", "int32"])
@pytest.mark.parametrize("is_given", [False, True])
@pytest.mark.parametrize(
    ("mask", "expected"),
    [
        ([1, 1, 1, 1, 0, 0, 0], [1, 1, 1, 0, 0, 0, 0]),
        ([0, 0, 0, 1, 1, 1, 1], [0, 0, 0, 1, 1, 1, None]),
    ],
    ids=["right", "left"],
)
def test_padding_neither_scores_nor_is_scored(mask, expected, is_given, dtype):
    expected = [is_given if weight is None else weight for weight in expected]
    masks = np.tile(mask, (BATCH, 1)).astype(dtype)

    _, weights = targets_and_weights(TOKEN_IDS, masks, targets=TOKEN_IDS if is_given else None)

    np.testing.assert_array_equal(weights, np.tile(expected, (BATCH, 1)))


def test_across_padding_a_token_is_scored_by_the_next_real_one():
    mask = np.tile([1, 1, 0, 1, 1, 0, 1], (BATCH, 1))

    targets, weights = targets_and_weights(TOKEN_IDS, mask)

    np.testing.assert_array_equal(weights, np.tile([1, 1, 0, 1, 1, 0, 0], (BATCH, 1)))
    np.testing.assert_array_equal(targets[:, [0, 1, 3, 4]], TOKEN_IDS[:, [1, 3, 4, 6]])


def test_given_targets_in_the_padding_do_not_score():
    mask = np.tile([1, 1, 0, 1, 1, 0, 1], (BATCH, 1))

    _, weights = targets_and_weights(TOKEN_IDS, mask, targets=TOKEN_IDS + 1)

    np.testing.assert_array_equal(weights, np.tile([1, 0, 0, 1, 0, 0, 1], (BATCH, 1)))


def test_the_first_token_of_the_next_document_does_not_score():
    segments = np.tile([3, 3, 3, 0, 0, 1, 1], (BATCH, 1))

    _, weights = targets_and_weights(TOKEN_IDS, segment_ids=segments)

    np.testing.assert_array_equal(weights, np.tile([1, 1, 0, 1, 0, 1, 0], (BATCH, 1)))


# === the loss ===


@pytest.mark.parametrize("training", [False, True])
def test_the_sums_are_those_of_the_formula(embedding, batch, training):
    hidden_states, targets, weights = batch
    targets[0, :3] = (hidden_states[0, :3] @ embedding.get_weights()[0].T).argmax(-1)

    loss, correct = next_token_loss(
        ops.convert_to_tensor(hidden_states), embedding, targets, weights, training=training
    )

    expected = formula(hidden_states, embedding.get_weights()[0], targets, weights)
    np.testing.assert_allclose(to_numpy(ops.stop_gradient(loss)), expected[0], 1e-5)
    np.testing.assert_allclose(to_numpy(ops.stop_gradient(correct)), expected[1], 1e-5)


@pytest.mark.parametrize("factor", [1, 1e5], ids=["common", "huge"])
def test_values_and_gradients_in_training_are_those_of_the_formula(embedding, batch, factor):
    hidden_states, targets, weights = batch
    embedding.set_weights([embedding.get_weights()[0] * factor])
    states = keras.Variable(hidden_states)

    def loss():
        tensor = ops.convert_to_tensor(states)
        return next_token_loss(tensor, embedding, targets, weights, training=True)[0]

    found = [to_numpy(ops.stop_gradient(loss()))]
    found += gradients(loss, [states, embedding.embeddings])

    expected = formula(hidden_states, embedding.get_weights()[0], targets, weights)
    for one, other in zip(found, (expected[0], *expected[2:]), strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-5, atol=1e-5 * np.abs(other).max())


def test_huge_logits_do_not_overflow_in_evaluation(embedding, batch):
    hidden_states, targets, weights = batch
    embedding.set_weights([embedding.get_weights()[0] * 1e5])

    loss, _ = next_token_loss(ops.convert_to_tensor(hidden_states), embedding, targets, weights)

    expected = formula(hidden_states, embedding.get_weights()[0], targets, weights)[0]
    np.testing.assert_allclose(to_numpy(loss), expected, rtol=1e-5)
