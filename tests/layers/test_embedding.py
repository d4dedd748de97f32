import keras
import numpy as np
import pytest
from oracles import (
    assert_finite_with_gradients,
    randomize,
    run_keras_layer_test,
    skip_without_float16,
    to_numpy,
)

from kgpt.layers import TokenAndPositionEmbedding

VOCABULARY, POSITIONS, WIDTH = 11, 7, 12
TOKEN_IDS = np.array([[3, 1, 4, 1, 5], [9, 2, 6, 5, 3]], "int32")


@pytest.fixture
def embedding():
    layer = TokenAndPositionEmbedding(VOCABULARY, POSITIONS, WIDTH)
    layer.build((None, None))
    return randomize(layer)


def matrices(embedding):
    return (
        to_numpy(embedding.token_embedding.embeddings),
        to_numpy(embedding.position_embedding.embeddings),
    )


def test_it_passes_the_checks_of_keras_for_layers():
    run_keras_layer_test(
        TokenAndPositionEmbedding,
        {
            "vocabulary_size": VOCABULARY,
            "max_sequence_length": POSITIONS,
            "hidden_dim": WIDTH,
            "dropout": 0.1,
        },
        weights=2,
        input_dtype="int32",
        shape=(2, 5),
    )


def test_the_output_is_the_token_vector_plus_the_position_vector(embedding):
    E, P = matrices(embedding)

    output = embedding(TOKEN_IDS)

    np.testing.assert_allclose(to_numpy(output), E[TOKEN_IDS] + P[:5], rtol=1e-6)


def test_reverse_multiplies_with_the_transposed_token_matrix(embedding):
    E, _ = matrices(embedding)
    hidden_states = np.random.default_rng(0).standard_normal((2, 5, WIDTH)).astype("float32")

    logits = embedding(hidden_states, reverse=True)

    np.testing.assert_allclose(to_numpy(logits), hidden_states @ E.T, atol=1e-5)


def test_positions_start_again_with_each_document(embedding):
    E, P = matrices(embedding)
    segment_ids = np.array([[7, 7, 7, 2, 2], [0, 1, 1, 1, 1]])

    output = embedding(TOKEN_IDS, segment_ids=segment_ids)

    positions = [[0, 1, 2, 0, 1], [0, 0, 1, 2, 3]]
    np.testing.assert_allclose(to_numpy(output), E[TOKEN_IDS] + P[positions], rtol=1e-6)


@pytest.mark.parametrize(
    "position_ids", [[2, 3, 4, 5, 6], [[0, 0, 0, 1, 2], [6, 5, 4, 3, 2]]], ids=["row", "batch"]
)
def test_given_positions_take_the_place_of_counted_ones(embedding, position_ids):
    E, P = matrices(embedding)

    output = embedding(TOKEN_IDS, position_ids=np.array(position_ids))

    np.testing.assert_allclose(to_numpy(output), E[TOKEN_IDS] + P[position_ids], rtol=1e-6)


def test_a_model_with_it_takes_any_batch_and_length(embedding):
    token_ids = keras.Input((None,), dtype="int32")
    model = keras.Model(token_ids, embedding(token_ids))

    outputs = [model.predict(np.ones(shape, "int32"), verbose=0) for shape in ((2, 5), (3, 7))]

    assert [output.shape for output in outputs] == [(2, 5, WIDTH), (3, 7, WIDTH)]


def test_a_model_that_ends_in_its_reverse_has_the_shape_of_logits(embedding):
    token_ids = keras.Input((None,), dtype="int32")

    logits = embedding(embedding(token_ids), reverse=True)

    assert logits.shape == (None, None, VOCABULARY)


def test_output_shape_is_known_without_a_call(embedding):
    assert embedding.compute_output_shape((2, 5)) == (2, 5, WIDTH)


@pytest.mark.parametrize("dtype", ["int8", "uint16", "int32", "int64"])
def test_every_integer_dtype_gives_the_same_vectors(embedding, dtype):
    expected = to_numpy(embedding(TOKEN_IDS))

    output = to_numpy(embedding(TOKEN_IDS.astype(dtype)))

    np.testing.assert_array_equal(output, expected)


def test_large_token_ids_survive_a_half_precision_policy():
    # float16 has no 2049, bfloat16 no 257: ids that pass through a float type are lost.
    layer = TokenAndPositionEmbedding(2100, 1, WIDTH, dtype="mixed_bfloat16")
    token_ids = np.arange(2050, 2100)[:, None]
    layer.build((None, None))
    E, P = matrices(layer)

    output = to_numpy(keras.ops.cast(layer(token_ids), "float32"))

    np.testing.assert_allclose(output, E[token_ids] + P[0], atol=2e-3)


@pytest.mark.parametrize("policy", ["float32", "mixed_bfloat16", "mixed_float16"])
def test_output_and_gradients_are_finite_in_every_dtype(policy):
    skip_without_float16(policy)
    layer = TokenAndPositionEmbedding(VOCABULARY, POSITIONS, WIDTH, dtype=policy)
    layer.build((None, None))

    assert_finite_with_gradients(
        lambda: layer(layer(TOKEN_IDS), reverse=True), layer.trainable_variables
    )


def test_dropout_leaves_its_share_of_the_sums_out_in_training():
    layer = TokenAndPositionEmbedding(2, 50, 40, dropout=0.4)
    layer.build((None, None))
    layer.token_embedding.embeddings.assign(np.ones((2, 40)))
    layer.position_embedding.embeddings.assign(np.ones((50, 40)))

    output = to_numpy(layer(np.ones((20, 50), "int32"), training=True))

    assert np.mean(output == 0) == pytest.approx(0.4, abs=0.01)
    np.testing.assert_allclose(output[output != 0], 2 / 0.6, rtol=1e-3)


def test_dropout_is_off_outside_of_training():
    layer = TokenAndPositionEmbedding(VOCABULARY, POSITIONS, WIDTH, dropout=0.4)
    layer.build((None, None))
    E, P = matrices(layer)

    output = layer(TOKEN_IDS, training=False)

    np.testing.assert_allclose(to_numpy(output), E[TOKEN_IDS] + P[:5], rtol=1e-6)


def test_weights_start_with_the_scales_asked_for():
    layer = TokenAndPositionEmbedding(
        500, 300, 64, position_initializer=keras.initializers.RandomNormal(stddev=0.01)
    )
    layer.build((None, None))

    E, P = matrices(layer)

    assert E.std() == pytest.approx(0.02, rel=0.05)
    assert P.std() == pytest.approx(0.01, rel=0.05)


def test_too_long_a_sequence_is_refused(embedding):
    with pytest.raises(ValueError, match="Received: length=8, max_sequence_length=7"):
        embedding(np.zeros((2, 8), "int32"))


def test_too_long_a_sequence_is_refused_when_a_model_is_made(embedding):
    with pytest.raises(ValueError, match="Received: length=8, max_sequence_length=7"):
        embedding(keras.Input((8,), dtype="int32"))


@pytest.mark.parametrize("sizes", [(0, 7, 12), (11, 0, 12), (11, 7, 0)])
def test_sizes_below_one_are_refused(sizes):
    with pytest.raises(ValueError, match="must be an int of at least 1"):
        TokenAndPositionEmbedding(*sizes)


def test_a_dropout_above_one_is_refused():
    with pytest.raises(ValueError, match=r"dropout=1\.5"):
        TokenAndPositionEmbedding(VOCABULARY, POSITIONS, WIDTH, dropout=1.5)


@pytest.mark.parametrize("shape", [(5,), (2, 2, 5)])
def test_token_ids_of_other_axes_are_refused(embedding, shape):
    for token_ids in (np.ones(shape, "int32"), keras.Input(shape[1:], dtype="int32")):
        with pytest.raises(ValueError, match=r"\(batch, length\). Received: shape"):
            embedding(token_ids)
