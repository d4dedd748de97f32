import keras
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from oracles import (
    assert_finite_with_gradients,
    block_weights,
    numpy_block,
    randomize,
    run_keras_layer_test,
    skip_without_float16,
    to_numpy,
)

from kgpt.layers import DecoderBlock

BATCH, LENGTH, HEADS, WIDTH, INNER = 2, 5, 3, 12, 20
HIDDEN_STATES = np.random.default_rng(0).standard_normal((BATCH, LENGTH, WIDTH)).astype("float32")

both_orders = pytest.mark.parametrize("norm_first", [False, True], ids=["gpt1", "gpt2"])


def make_block(norm_first=True, **options):
    block = DecoderBlock(HEADS, INNER, norm_first=norm_first, **options)
    block.build((None, None, WIDTH))
    return randomize(block)


def expected(block, visible=None):
    weights = {name: to_numpy(w) for name, w in block_weights(block).items()}
    return numpy_block(HIDDEN_STATES, weights, HEADS, block.norm_first, visible)


@both_orders
def test_it_passes_the_checks_of_keras_for_layers(norm_first):
    arguments = {
        "num_heads": HEADS,
        "intermediate_dim": INNER,
        "dropout": 0.1,
        "norm_first": norm_first,
    }

    run_keras_layer_test(DecoderBlock, arguments, weights=12)


@both_orders
def test_the_output_is_the_papers_formula(norm_first):
    block = make_block(norm_first)

    output = block(HIDDEN_STATES)

    np.testing.assert_allclose(to_numpy(output), expected(block), atol=1e-5)


@both_orders
def test_mask_and_segments_reach_the_attention(norm_first):
    block = make_block(norm_first)
    mask = np.array([[1, 1, 1, 1, 0], [1, 0, 1, 1, 1]], bool)
    segment_ids = np.array([[1, 1, 2, 2, 2], [4, 4, 4, 4, 4]])

    output = block(HIDDEN_STATES, padding_mask=mask, segment_ids=segment_ids)

    visible = mask[:, None, :] & (segment_ids[:, :, None] == segment_ids[:, None, :])
    visible |= np.eye(LENGTH, dtype=bool)
    np.testing.assert_allclose(to_numpy(output)[mask], expected(block, visible)[mask], atol=1e-5)


@settings(max_examples=10, deadline=None)
@given(
    real=st.lists(st.booleans(), min_size=LENGTH, max_size=LENGTH),
    norm_first=st.booleans(),
    seed=st.integers(0, 999),
)
def test_what_stands_in_masked_places_changes_no_real_one(real, norm_first, seed):
    block = make_block(norm_first)
    real = np.array(real)
    noise = np.random.default_rng(seed).standard_normal(HIDDEN_STATES.shape)
    changed = np.where(real[:, None], HIDDEN_STATES, noise).astype("float32")
    mask = np.tile(real, (BATCH, 1))

    before, after = (to_numpy(block(x, padding_mask=mask)) for x in (HIDDEN_STATES, changed))

    np.testing.assert_allclose(after[:, real], before[:, real], atol=1e-6)


@both_orders
def test_padding_on_the_left_is_as_good_as_none(norm_first):
    block = make_block(norm_first)
    padded = np.concatenate([np.ones((BATCH, 3, WIDTH), "float32"), HIDDEN_STATES], axis=1)
    mask = np.arange(3 + LENGTH)[None] >= np.array([[3], [3]])

    output = to_numpy(block(padded, padding_mask=mask))

    np.testing.assert_allclose(output[:, 3:], to_numpy(block(HIDDEN_STATES)), atol=1e-5)


def test_the_mask_of_a_keras_embedding_is_used():
    token_ids = np.array([[3, 1, 4, 1, 5], [9, 0, 6, 5, 0]])
    inputs = keras.Input((None,), dtype="int32")
    embedding = keras.layers.Embedding(10, WIDTH, mask_zero=True)
    block = make_block()
    model = keras.Model(inputs, block(embedding(inputs)))

    output = model.predict(token_ids, verbose=0)

    states = keras.ops.array(to_numpy(embedding(token_ids)))
    np.testing.assert_allclose(output, to_numpy(block(states, token_ids != 0)), atol=1e-5)
    assert not np.allclose(output[1, 2], to_numpy(block(states))[1, 2])


def test_the_mask_of_keras_is_handed_on_through_several_blocks():
    inputs = keras.Input((None,), dtype="int32")
    states = keras.layers.Embedding(10, WIDTH, mask_zero=True)(inputs)
    for norm_first in (True, False):
        states = make_block(norm_first)(states)
    model = keras.Model(inputs, [states, keras.layers.GlobalAveragePooling1D()(states)])

    states, mean = model.predict(np.array([[3, 1, 4, 0, 0], [9, 2, 6, 5, 3]]), verbose=0)

    np.testing.assert_allclose(mean[0], states[0, :3].mean(0), atol=1e-5)


def test_a_users_model_with_blocks_takes_any_batch_and_length():
    states, mask = keras.Input((None, WIDTH)), keras.Input((None,), dtype="bool")
    output = make_block()(make_block()(states, padding_mask=mask), padding_mask=mask)
    model = keras.Model([states, mask], output)

    outputs = [
        model.predict([np.ones((batch, length, WIDTH)), np.ones((batch, length), bool)], verbose=0)
        for batch, length in ((2, 5), (3, 7))
    ]

    assert [output.shape for output in outputs] == [(2, 5, WIDTH), (3, 7, WIDTH)]


def test_a_users_model_with_a_block_learns():
    keras.utils.set_random_seed(0)
    model = keras.Sequential(
        [keras.Input((None, WIDTH)), DecoderBlock(HEADS, INNER), keras.layers.Dense(1)]
    )
    model.compile(keras.optimizers.Adam(1e-2), "mse")
    running_sum = HIDDEN_STATES[..., :1].cumsum(axis=1)  # needs the past

    history = model.fit(HIDDEN_STATES, running_sum, epochs=60, verbose=0).history["loss"]

    assert history[-1] < 0.1 * history[0]


def test_output_shape_is_known_without_a_call():
    assert DecoderBlock(HEADS, INNER).compute_output_shape((2, None, 12)) == (2, None, 12)


@both_orders
@pytest.mark.parametrize("policy", ["float32", "mixed_bfloat16", "mixed_float16"])
def test_fully_masked_rows_are_finite_in_every_dtype(policy, norm_first):
    skip_without_float16(policy)
    block = make_block(norm_first, dtype=policy)
    states = keras.Variable(HIDDEN_STATES)
    mask = np.array([[0, 0, 0, 0, 0], [0, 1, 1, 0, 0]], bool)

    assert_finite_with_gradients(
        lambda: block(keras.ops.convert_to_tensor(states), padding_mask=mask),
        [*block.trainable_variables, states],
    )


def test_dropout_of_attention_weights_can_differ_from_that_of_the_sub_layers():
    def drops(**options):
        block = make_block(**options)
        trained, plain = (to_numpy(block(HIDDEN_STATES, training=t)) for t in (True, False))
        return not np.allclose(trained, plain, atol=1e-4)

    assert drops(dropout=0.0, attention_dropout=0.5)
    assert not drops(dropout=0.0, attention_dropout=0.0)
    assert make_block(dropout=0.5).attention.dropout == 0.5
    assert make_block(dropout=0.5, attention_dropout=0.0).attention.dropout == 0.0
    assert make_block(attention_dropout=0.25).get_config()["attention_dropout"] == 0.25


@pytest.mark.parametrize("sub_layer", ["attention", "feed_forward"])
def test_dropout_leaves_its_share_of_each_sub_layers_output_out_in_training(sub_layer):
    # Both sub-layers give 0 but for one, which gives 1 everywhere.
    block = DecoderBlock(HEADS, INNER, dropout=0.3, norm_first=True)
    block.build((None, None, WIDTH))
    for layer in (block.attention, block.feed_forward):
        layer.output_projection.kernel.assign(np.zeros(layer.output_projection.kernel.shape))
    getattr(block, sub_layer).output_projection.bias.assign(np.ones(WIDTH))

    output = to_numpy(block(np.zeros((500, 4, WIDTH), "float32"), training=True))

    assert np.mean(output == 0) == pytest.approx(0.3, abs=0.02)
    np.testing.assert_allclose(output[output != 0], 1 / 0.7, rtol=1e-3)


@both_orders
def test_dropout_is_off_outside_of_training(norm_first):
    block = make_block(norm_first, dropout=0.3)

    output = block(HIDDEN_STATES, training=False)

    np.testing.assert_allclose(to_numpy(output), expected(block), atol=1e-5)


def test_maps_into_the_residual_stream_can_start_at_their_own_scale():
    block = DecoderBlock(4, 256, residual_initializer=keras.initializers.RandomNormal(stddev=0.005))

    block.build((None, None, 64))

    std = {
        name: to_numpy(weight).std()
        for name, weight in block_weights(block).items()
        if "attn" in name or "mlp" in name
    }
    assert std["attn.c_attn.weight"] == pytest.approx(0.02, rel=0.05)
    assert std["mlp.c_fc.weight"] == pytest.approx(0.02, rel=0.05)
    assert std["attn.c_proj.weight"] == pytest.approx(0.005, rel=0.05)
    assert std["mlp.c_proj.weight"] == pytest.approx(0.005, rel=0.05)


def test_maps_that_are_given_one_initializer_start_with_different_numbers():
    # Keras's initializers give the same numbers at each call.
    block = DecoderBlock(
        HEADS, WIDTH, kernel_initializer=keras.initializers.RandomNormal(stddev=0.02)
    )

    block.build((None, None, WIDTH))

    first_rows = [to_numpy(w).ravel()[:WIDTH] for w in block.weights if w.name == "kernel"]
    assert np.abs(np.corrcoef(first_rows) - np.eye(4)).max() < 0.95


def test_own_options_survive_the_config():
    block = DecoderBlock(
        HEADS,
        INNER,
        dropout=0.2,
        norm_first=False,
        activation="relu",
        layer_norm_epsilon=0.01,
        kernel_initializer="glorot_uniform",
        residual_initializer="zeros",
        query_key_norm=True,
        rotary_positions=True,
        dtype="mixed_bfloat16",
        name="mine",
    )

    copy = DecoderBlock.from_config(block.get_config())

    assert copy.get_config() == block.get_config()
    assert (copy.dropout, copy.norm_first, copy.layer_norm_epsilon) == (0.2, False, 0.01)
    assert (copy.attention.query_key_norm, copy.attention.rotary_positions) == (True, True)
    assert copy.feed_forward.activation is keras.activations.relu
    assert isinstance(copy.kernel_initializer, keras.initializers.GlorotUniform)
    assert isinstance(copy.residual_initializer, keras.initializers.Zeros)
    assert copy.compute_dtype == "bfloat16"


def test_heads_that_do_not_divide_the_width_are_refused():
    with pytest.raises(ValueError, match="Received: num_heads=5, width=12"):
        DecoderBlock(5, INNER)(HIDDEN_STATES)
