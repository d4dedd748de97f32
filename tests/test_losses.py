import keras
import numpy as np
import pytest
from keras import ops

from kgpt import losses

BATCH, LENGTH, WIDTH, VOCABULARY = 2, 7, 12, 50


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


def reference(hidden_states, matrix, targets, weights):
    """Weighted loss and correct predictions by the formula, in float64."""
    logits = hidden_states.astype("float64") @ matrix.T.astype("float64")
    log_softmax = logits - np.log(np.exp(logits).sum(-1, keepdims=True))
    loss = -np.take_along_axis(log_softmax, targets[..., None], -1)[..., 0]
    correct = logits.argmax(-1) == targets
    return (loss * weights).sum(), (correct * weights).sum()


@pytest.mark.parametrize("training", [False, True])
@pytest.mark.parametrize("rows_per_chunk", [1, 3, 7, 14, 100])
def test_the_sums_are_those_of_the_formula_for_any_chunk(
    embedding, batch, training, rows_per_chunk, monkeypatch
):
    monkeypatch.setattr(losses, "_LOGITS_PER_CHUNK", 0)
    monkeypatch.setattr(losses, "_MIN_ROWS_PER_CHUNK", rows_per_chunk)
    hidden_states, targets, weights = batch
    targets[0, :3] = (hidden_states[0, :3] @ embedding.get_weights()[0].T).argmax(-1)

    loss, correct = losses.next_token_loss(
        ops.convert_to_tensor(hidden_states), embedding, targets, weights, training=training
    )

    expected = reference(hidden_states, embedding.get_weights()[0], targets, weights)
    np.testing.assert_allclose(ops.convert_to_numpy(ops.stop_gradient(loss)), expected[0], 1e-5)
    np.testing.assert_allclose(ops.convert_to_numpy(ops.stop_gradient(correct)), expected[1], 1e-5)


def test_logits_of_a_thousand_do_not_overflow(embedding, batch):
    hidden_states, targets, weights = batch
    embedding.set_weights([embedding.get_weights()[0] * 1e5])

    loss, _ = losses.next_token_loss(
        ops.convert_to_tensor(hidden_states), embedding, targets, weights
    )

    assert np.isfinite(ops.convert_to_numpy(loss))


def test_perplexity_is_the_exponential_of_the_mean_over_all_tokens():
    perplexity = losses.Perplexity()

    perplexity.update_state(2.0, sample_weight=30)
    perplexity.update_state(4.0, sample_weight=10)

    np.testing.assert_allclose(
        ops.convert_to_numpy(perplexity.result()), np.exp((2 * 30 + 4 * 10) / 40), rtol=1e-6
    )
