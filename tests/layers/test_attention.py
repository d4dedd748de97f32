import os
import subprocess
import sys
from pathlib import Path

import keras
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from oracles import (
    assert_finite_with_gradients,
    numpy_attention,
    randomize,
    run_keras_layer_test,
    skip_without_float16,
    to_numpy,
)

from kgpt.kernels.rotary import rotate
from kgpt.layers import CausalSelfAttention, DecoderBlock

BATCH, LENGTH, HEADS, WIDTH = 2, 5, 3, 12
HIDDEN_STATES = np.random.default_rng(0).standard_normal((BATCH, LENGTH, WIDTH)).astype("float32")
RIGHT_PADDED = np.array([[1, 1, 1, 1, 1], [1, 1, 1, 0, 0]], bool)


def make_attention(**options):
    layer = CausalSelfAttention(HEADS, **options)
    layer.build((None, None, WIDTH))
    return randomize(layer)


@pytest.fixture(scope="module")
def attention():
    return make_attention()


def expected(attention, visible=None):
    return numpy_attention(HIDDEN_STATES, [to_numpy(w) for w in attention.weights], HEADS, visible)


PADDINGS = {
    "right": RIGHT_PADDED,
    "left": RIGHT_PADDED[:, ::-1],
    "scattered": np.array([[1, 0, 1, 1, 0], [0, 0, 1, 0, 1]], bool),
}


def of_real_tokens_alone(attention, mask, segment_ids=None):
    """The formula for each row's real tokens, as if there were no others; zeros elsewhere."""
    output = np.zeros((BATCH, LENGTH, WIDTH))
    weights = [to_numpy(w) for w in attention.weights]
    for row, real in enumerate(mask):
        segments = np.zeros(LENGTH, int) if segment_ids is None else segment_ids[row]
        same = segments[real][:, None] == segments[real]
        alone = numpy_attention(HIDDEN_STATES[row : row + 1, real], weights, HEADS, same[None])
        output[row, real] = alone[0]
    return output


def assert_real_outputs(output, mask, expected, atol=1e-5):
    """Compares real positions; the others need only be finite."""
    output = to_numpy(keras.ops.cast(output, "float32"))
    assert np.isfinite(output).all()
    np.testing.assert_allclose(output * mask[..., None], expected, atol=atol)


def test_it_passes_the_checks_of_keras_for_layers():
    run_keras_layer_test(
        CausalSelfAttention, {"num_heads": HEADS, "dropout": 0.1, "name": "layer"}, weights=4
    )


def test_the_output_is_the_papers_formula(attention):
    output = attention(HIDDEN_STATES)

    np.testing.assert_allclose(to_numpy(output), expected(attention), atol=1e-5)


@pytest.mark.parametrize("padding", PADDINGS)
@pytest.mark.parametrize("dtype", ["bool", "int32", "float32"])
def test_real_tokens_do_not_see_padding_wherever_it_stands(attention, padding, dtype):
    mask = PADDINGS[padding]

    output = attention(HIDDEN_STATES, padding_mask=mask.astype(dtype))

    assert_real_outputs(output, mask, of_real_tokens_alone(attention, mask))


@pytest.mark.parametrize("dropout", [0.0, 1e-9], ids=["without", "with"])  # drops nothing
def test_padding_of_long_sequences_is_not_seen_either(dropout):
    length = 300
    states = np.random.default_rng(1).standard_normal((2, length, WIDTH)).astype("float32")
    mask = np.random.default_rng(2).random((2, length)) < 0.7
    attention = make_attention(dropout=dropout)

    output = to_numpy(attention(states, padding_mask=mask, training=True))

    for row, real in enumerate(mask):
        alone = to_numpy(attention(states[row : row + 1, real], training=True))
        np.testing.assert_allclose(output[row, real], alone[0], atol=1e-5)


def test_segments_do_not_see_each_other(attention):
    segment_ids = np.array([[1, 1, 2, 2, 2], [4, 4, 4, 4, 0]])

    output = attention(HIDDEN_STATES, segment_ids=segment_ids)

    same = segment_ids[:, :, None] == segment_ids[:, None, :]
    np.testing.assert_allclose(to_numpy(output), expected(attention, same), atol=1e-5)


def test_mask_and_segments_work_together(attention):
    segment_ids = np.array([[1, 1, 2, 2, 2], [4, 4, 4, 0, 0]])

    output = attention(HIDDEN_STATES, padding_mask=RIGHT_PADDED, segment_ids=segment_ids)

    alone = of_real_tokens_alone(attention, RIGHT_PADDED, segment_ids)
    assert_real_outputs(output, RIGHT_PADDED, alone)


def test_the_formula_is_the_same_on_the_way_with_dropout():
    # Dropout chooses another implementation; a tiny share drops nothing here.
    attention = make_attention(dropout=1e-9)

    output = attention(HIDDEN_STATES, padding_mask=RIGHT_PADDED, training=True)

    assert_real_outputs(output, RIGHT_PADDED, of_real_tokens_alone(attention, RIGHT_PADDED))


@settings(max_examples=10, deadline=None)
@given(position=st.integers(0, LENGTH - 1), seed=st.integers(0, 999))
def test_changing_a_position_leaves_earlier_ones_alone(position, seed):
    attention = make_attention()
    changed = HIDDEN_STATES.copy()
    changed[:, position:] = np.random.default_rng(seed).standard_normal(WIDTH)

    before, after = (to_numpy(attention(x)) for x in (HIDDEN_STATES, changed))

    np.testing.assert_allclose(after[:, :position], before[:, :position], atol=1e-6)
    assert not np.allclose(after[:, position], before[:, position])


def test_the_mask_of_a_keras_embedding_is_used():
    token_ids = np.array([[3, 1, 4, 1, 5], [9, 0, 6, 0, 2]])
    inputs = keras.Input((None,), dtype="int32")
    embedding = keras.layers.Embedding(10, WIDTH, mask_zero=True)
    attention = make_attention()
    model = keras.Model(inputs, attention(embedding(inputs)))

    output = model.predict(token_ids, verbose=0)

    explicit = attention(keras.ops.array(to_numpy(embedding(token_ids))), token_ids != 0)
    without = attention(keras.ops.array(to_numpy(embedding(token_ids))))
    np.testing.assert_allclose(output, to_numpy(explicit), atol=1e-5)
    assert not np.allclose(output[1, 4], to_numpy(without)[1, 4])


def test_the_mask_of_keras_is_handed_on():
    inputs = keras.Input((None,), dtype="int32")
    embedded = keras.layers.Embedding(10, WIDTH, mask_zero=True)(inputs)
    states = make_attention()(embedded)
    model = keras.Model(inputs, [states, keras.layers.GlobalAveragePooling1D()(states)])

    states, mean = model.predict(np.array([[3, 1, 4, 0, 0], [9, 2, 6, 5, 3]]), verbose=0)

    np.testing.assert_allclose(mean[0], states[0, :3].mean(0), atol=1e-5)


def test_a_given_padding_mask_goes_before_the_mask_of_keras(attention):
    output = attention(HIDDEN_STATES, padding_mask=RIGHT_PADDED, mask=np.ones((2, 5), bool))

    assert_real_outputs(output, RIGHT_PADDED, of_real_tokens_alone(attention, RIGHT_PADDED))


def test_a_model_with_it_takes_any_batch_and_length(attention):
    states = keras.Input((None, WIDTH))
    mask = keras.Input((None,), dtype="bool")
    model = keras.Model([states, mask], attention(states, padding_mask=mask))

    outputs = [
        model.predict([np.ones((batch, length, WIDTH)), np.ones((batch, length), bool)], verbose=0)
        for batch, length in ((2, 5), (3, 7))
    ]

    assert [output.shape for output in outputs] == [(2, 5, WIDTH), (3, 7, WIDTH)]


# === Scores ===


@pytest.mark.parametrize("options", [{}, {"rotary_positions": True, "query_key_norm": True}])
def test_scores_are_what_the_output_is_made_of(options):
    attention = make_attention(**options)

    output, scores = attention(HIDDEN_STATES, return_attention_scores=True)

    W, b, W_o, b_o = (to_numpy(w).astype("float64") for w in attention.weights[:4])
    value = (HIDDEN_STATES @ W + b)[..., 2 * WIDTH :].reshape(BATCH, LENGTH, HEADS, -1)
    mixed = np.einsum("bhqk,bkhd->bqhd", to_numpy(scores), value).reshape(BATCH, LENGTH, WIDTH)
    np.testing.assert_allclose(to_numpy(output), mixed @ W_o + b_o, atol=1e-5)
    np.testing.assert_allclose(to_numpy(scores).sum(-1), 1, atol=1e-5)
    assert not np.triu(to_numpy(scores), 1).any()


@pytest.mark.parametrize("padding", PADDINGS)
def test_scores_of_real_tokens_stand_where_the_tokens_stand(attention, padding):
    mask = PADDINGS[padding]

    _, scores = attention(HIDDEN_STATES, mask, return_attention_scores=True)

    for row, real in enumerate(mask):
        _, alone = attention(HIDDEN_STATES[row : row + 1, real], return_attention_scores=True)
        among_real = to_numpy(scores)[row][:, real][:, :, real]
        np.testing.assert_allclose(among_real, to_numpy(alone)[0], atol=1e-5)
        assert not to_numpy(scores)[row][:, real][:, :, ~real].any()


def test_segments_have_no_scores_for_each_other(attention):
    segment_ids = np.array([[1, 1, 2, 2, 2], [4, 4, 4, 4, 0]])

    _, scores = attention(HIDDEN_STATES, segment_ids=segment_ids, return_attention_scores=True)

    other = segment_ids[:, :, None] != segment_ids[:, None, :]
    assert not to_numpy(scores)[np.broadcast_to(other[:, None], scores.shape)].any()


def test_a_model_can_have_scores_as_an_output():
    attention = make_attention()
    inputs = keras.Input((None, WIDTH))
    model = keras.Model(inputs, attention(inputs, return_attention_scores=True))

    assert [x.shape for x in model.outputs] == [(None, None, WIDTH), (None, HEADS, None, None)]
    scores = model.predict(HIDDEN_STATES, verbose=0)[1]
    expected = attention(HIDDEN_STATES, return_attention_scores=True)[1]
    np.testing.assert_allclose(scores, to_numpy(expected), atol=1e-6)


def test_output_shape_is_known_without_a_call():
    assert CausalSelfAttention(HEADS).compute_output_shape((2, None, 12)) == (2, None, 12)


@pytest.mark.parametrize("training", [False, True])
@pytest.mark.parametrize("policy", ["float32", "mixed_bfloat16", "mixed_float16"])
def test_fully_masked_rows_are_finite_in_every_dtype(policy, training):
    skip_without_float16(policy)
    attention = make_attention(dtype=policy, dropout=0.1)
    states = keras.Variable(HIDDEN_STATES)
    mask = np.array([[0, 0, 0, 0, 0], [0, 1, 1, 0, 0]], bool)

    assert_finite_with_gradients(
        lambda: attention(
            keras.ops.convert_to_tensor(states), padding_mask=mask, training=training
        ),
        [*attention.trainable_variables, states],
    )


@pytest.mark.parametrize("policy", ["mixed_bfloat16", "mixed_float16"])
def test_half_precision_is_near_to_single_precision(policy):
    skip_without_float16(policy)
    attention = make_attention(dtype=policy)

    output = attention(HIDDEN_STATES, padding_mask=RIGHT_PADDED)

    assert keras.backend.standardize_dtype(output.dtype) == policy.removeprefix("mixed_")
    alone = of_real_tokens_alone(attention, RIGHT_PADDED)
    assert_real_outputs(output, RIGHT_PADDED, alone, atol=0.05)


def test_dropout_leaves_its_share_of_the_attention_weights_out_in_training():
    # With identity maps the first position's output is its own attention weight, 1 or dropped.
    attention = CausalSelfAttention(HEADS, dropout=0.3)
    attention.build((None, None, WIDTH))
    zeros, identity = np.zeros((WIDTH, WIDTH)), np.eye(WIDTH)
    attention.query_key_value.kernel.assign(np.concatenate([zeros, zeros, identity], axis=1))
    attention.output_projection.kernel.assign(identity)

    output = to_numpy(attention(np.ones((3000, 2, WIDTH), "float32"), training=True))

    first = output[:, 0].reshape(3000, HEADS, WIDTH // HEADS)
    assert np.ptp(first, axis=-1).max() == 0  # one weight for each head
    assert np.mean(first == 0) == pytest.approx(0.3, abs=0.02)
    np.testing.assert_allclose(first[first != 0], 1 / 0.7, rtol=1e-3)


def test_dropout_is_off_outside_of_training():
    attention = make_attention(dropout=0.3)

    output = attention(HIDDEN_STATES, training=False)

    np.testing.assert_allclose(to_numpy(output), expected(attention), atol=1e-5)


def test_weights_start_at_the_papers_scale():
    attention = CausalSelfAttention(
        4, output_initializer=keras.initializers.RandomNormal(stddev=0.005)
    )

    attention.build((None, None, 64))

    assert to_numpy(attention.query_key_value.kernel).std() == pytest.approx(0.02, rel=0.05)
    assert to_numpy(attention.output_projection.kernel).std() == pytest.approx(0.005, rel=0.05)
    assert not to_numpy(attention.query_key_value.bias).any()
    assert not to_numpy(attention.output_projection.bias).any()


@pytest.mark.parametrize(("num_heads", "width"), [(5, 12), (3, None)])
def test_heads_that_do_not_divide_the_width_are_refused(num_heads, width):
    message = rf"num_heads must divide .* Received: num_heads={num_heads}, width={width}"
    with pytest.raises(ValueError, match=message):
        CausalSelfAttention(num_heads)(keras.Input((5, width)))


def test_a_dropout_below_zero_is_refused():
    with pytest.raises(ValueError, match=r"dropout=-0\.1"):
        CausalSelfAttention(HEADS, dropout=-0.1)


# --- Query and key norm, rotary positions -------------------------------------------------------


def numpy_rotate(x, positions):
    """By complex numbers, `(..., length, head_dim)` (Su et al. 2021, equation 13)."""
    half = x.shape[-1] // 2
    theta = 10000.0 ** (-2 * np.arange(half) / x.shape[-1])
    turned = (x[..., :half] + 1j * x[..., half:]) * np.exp(1j * positions[:, None] * theta)
    return np.concatenate([turned.real, turned.imag], axis=-1)


def test_rotary_positions_are_the_papers_formula():
    x = np.random.default_rng(0).standard_normal((2, 5, 3, 8)).astype("float32")
    positions = np.array([0, 1, 2, 7, 300])

    turned = to_numpy(rotate(keras.ops.array(x), keras.ops.array(positions)))

    expected = numpy_rotate(x.swapaxes(1, 2), positions).swapaxes(1, 2)
    np.testing.assert_allclose(turned, expected, atol=1e-4)


def test_rows_of_a_batch_can_have_rotary_positions_of_their_own():
    x = np.random.default_rng(0).standard_normal((2, 5, 3, 8)).astype("float32")
    positions = np.array([[0, 1, 2, 3, 4], [9, 3, 4, 5, 6]])

    turned = to_numpy(rotate(keras.ops.array(x), keras.ops.array(positions)))

    for row in range(2):
        alone = rotate(keras.ops.array(x[row : row + 1]), keras.ops.array(positions[row]))
        np.testing.assert_allclose(turned[row], to_numpy(alone)[0], atol=1e-6)


def test_products_of_rotated_vectors_depend_on_their_distance_alone():
    query, key = np.random.default_rng(0).standard_normal((2, 1, 1, 1, 8)).astype("float32")

    def product(query_position, key_position):
        q, k = (
            to_numpy(rotate(keras.ops.array(x), keras.ops.array([position])))
            for x, position in ((query, query_position), (key, key_position))
        )
        return (q * k).sum()

    assert product(19, 12) == pytest.approx(product(7, 0), abs=1e-4)
    assert product(12, 19) == pytest.approx(product(0, 7), abs=1e-4)
    assert abs(product(7, 0) - product(0, 7)) > 1e-2


@pytest.mark.parametrize("query_key_norm", [False, True])
@pytest.mark.parametrize("rotary_positions", [False, True])
def test_norm_and_rotation_of_queries_and_keys_are_as_in_numpy(query_key_norm, rotary_positions):
    attention = make_attention(query_key_norm=query_key_norm, rotary_positions=rotary_positions)
    gains = np.random.default_rng(5).uniform(0.5, 2, (2, WIDTH // HEADS))
    if query_key_norm:
        attention.query_norm.scale.assign(gains[0])
        attention.key_norm.scale.assign(gains[1])
    W, b, W_o, b_o = (to_numpy(w).astype("float64") for w in attention.weights[:4])

    output = to_numpy(attention(HIDDEN_STATES))

    heads = (HIDDEN_STATES @ W + b).reshape(BATCH, LENGTH, 3, HEADS, -1).transpose(2, 0, 3, 1, 4)
    query, key, value = heads  # each (batch, heads, length, head_dim)
    if query_key_norm:
        query, key = (
            gain * x / np.sqrt((x**2).mean(-1, keepdims=True) + 1e-6)
            for gain, x in zip(gains, (query, key), strict=True)
        )
    if rotary_positions:
        query, key = (numpy_rotate(x, np.arange(LENGTH)) for x in (query, key))
    scores = np.exp(query @ key.swapaxes(2, 3) / np.sqrt(WIDTH // HEADS))
    scores *= np.tril(np.ones((LENGTH, LENGTH)))
    attended = scores / scores.sum(-1, keepdims=True) @ value
    merged = attended.swapaxes(1, 2).reshape(BATCH, LENGTH, WIDTH)
    np.testing.assert_allclose(output, merged @ W_o + b_o, atol=1e-4)


def test_norm_and_rotation_pass_the_checks_of_keras_for_layers():
    arguments = {"num_heads": HEADS, "query_key_norm": True, "rotary_positions": True}

    run_keras_layer_test(CausalSelfAttention, arguments, weights=6)


def test_rotary_positions_for_heads_of_odd_width_are_refused():
    with pytest.raises(ValueError, match="Received: num_heads=4, width=12, or 3 for each head"):
        CausalSelfAttention(4, rotary_positions=True).build((None, None, WIDTH))


MEMORY_OF_TRAINING = """
import gc, re, sys, keras, numpy as np
from kgpt.layers import CausalSelfAttention, DecoderBlock
x = np.zeros(({batch}, {length}, 32), "float32")
for layers in map(int, sys.argv[1:]):
    states = hidden = keras.Input(({length}, 32))
    for _ in range(layers):
        hidden = hidden + CausalSelfAttention(8, dropout=0.1)(hidden)
    model = keras.Model(states, hidden)
    model.compile("sgd", "mse")
    model.fit(x, x, epochs=2, verbose=0)
    print(re.search(r"VmHWM:\\s+(\\d+)", open("/proc/self/status").read())[1])
    del states, hidden, model
    gc.collect()
"""


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="the peak is read from there")
def test_training_keeps_no_attention_weights():
    batch, length, layers = 3, 1000, 4
    script = MEMORY_OF_TRAINING.format(batch=batch, length=length)
    command = [sys.executable, "-c", script, "2", str(2 + layers)]

    # What is freed goes back to the system at once, so that the peak is of what is needed.
    environment = {**os.environ, "MALLOC_ARENA_MAX": "1", "MALLOC_TRIM_THRESHOLD_": "65536"}

    result = subprocess.run(command, capture_output=True, text=True, check=True, env=environment)

    few, many = (1024 * int(line) for line in result.stdout.splitlines()[-2:])
    of_a_layer = (many - few) / layers

    assert of_a_layer < batch * 8 * 4 * length**2 * 5 / 8  # 8 heads' weights in float32, once


@pytest.mark.parametrize("shape", [(WIDTH, WIDTH), (2, 2, LENGTH, WIDTH)])
@pytest.mark.parametrize(
    "make", [CausalSelfAttention, lambda heads: DecoderBlock(heads, 2 * WIDTH)]
)
def test_other_axes_are_refused_and_not_reshaped(make, shape):
    layer = make(HEADS)

    for x in (np.ones(shape, "float32"), keras.Input(shape[1:])):
        with pytest.raises(ValueError, match="expected ndim=3, found ndim="):
            layer(x)
