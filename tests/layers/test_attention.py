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

from kgpt.layers import CausalSelfAttention

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


def seen_with(padding_mask):
    """Which keys a query sees: real ones, and itself."""
    return padding_mask[:, None, :] | np.eye(LENGTH, dtype=bool)


def test_it_passes_the_checks_of_keras_for_layers():
    run_keras_layer_test(
        CausalSelfAttention, {"num_heads": HEADS, "dropout": 0.1, "name": "layer"}, weights=4
    )


def test_the_output_is_the_papers_formula(attention):
    output = attention(HIDDEN_STATES)

    np.testing.assert_allclose(to_numpy(output), expected(attention), atol=1e-5)


@pytest.mark.parametrize("dtype", ["bool", "int32", "float32"])
def test_masked_keys_are_seen_by_nobody_but_themselves(attention, dtype):
    mask = np.array([[1, 0, 1, 1, 0], [0, 0, 1, 1, 1]], bool)

    output = attention(HIDDEN_STATES, padding_mask=mask.astype(dtype))

    np.testing.assert_allclose(to_numpy(output), expected(attention, seen_with(mask)), atol=1e-5)


def test_segments_do_not_see_each_other(attention):
    segment_ids = np.array([[1, 1, 2, 2, 2], [4, 4, 4, 4, 0]])

    output = attention(HIDDEN_STATES, segment_ids=segment_ids)

    same = segment_ids[:, :, None] == segment_ids[:, None, :]
    np.testing.assert_allclose(to_numpy(output), expected(attention, same), atol=1e-5)


def test_mask_and_segments_work_together(attention):
    segment_ids = np.array([[1, 1, 2, 2, 2], [4, 4, 4, 0, 0]])

    output = attention(HIDDEN_STATES, padding_mask=RIGHT_PADDED, segment_ids=segment_ids)

    visible = seen_with(RIGHT_PADDED) & (segment_ids[:, :, None] == segment_ids[:, None, :])
    np.testing.assert_allclose(to_numpy(output), expected(attention, visible), atol=1e-5)


def test_the_formula_is_the_same_on_the_way_with_dropout():
    # Dropout chooses another implementation; a tiny share drops nothing here.
    attention = make_attention(dropout=1e-9)

    output = attention(HIDDEN_STATES, padding_mask=RIGHT_PADDED, training=True)

    visible = seen_with(RIGHT_PADDED)
    np.testing.assert_allclose(to_numpy(output), expected(attention, visible), atol=1e-5)


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
    token_ids = np.array([[3, 1, 4, 1, 5], [9, 2, 6, 0, 0]])
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

    visible = seen_with(RIGHT_PADDED)
    np.testing.assert_allclose(to_numpy(output), expected(attention, visible), atol=1e-5)


def test_a_model_with_it_takes_any_batch_and_length(attention):
    states = keras.Input((None, WIDTH))
    mask = keras.Input((None,), dtype="bool")
    model = keras.Model([states, mask], attention(states, padding_mask=mask))

    outputs = [
        model.predict([np.ones((batch, length, WIDTH)), np.ones((batch, length), bool)], verbose=0)
        for batch, length in ((2, 5), (3, 7))
    ]

    assert [output.shape for output in outputs] == [(2, 5, WIDTH), (3, 7, WIDTH)]


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
    output = to_numpy(keras.ops.cast(output, "float32"))
    np.testing.assert_allclose(output, expected(attention, seen_with(RIGHT_PADDED)), atol=0.05)


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
    np.testing.assert_allclose(first[first != 0], 1 / 0.7, rtol=1e-5)


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


@pytest.mark.parametrize(("num_heads", "width"), [(5, 12), (0, 12), (-3, 12), (3, None)])
def test_heads_that_do_not_divide_the_width_are_refused(num_heads, width):
    message = rf"num_heads must divide .* Received: num_heads={num_heads}, width={width}"
    with pytest.raises(ValueError, match=message):
        CausalSelfAttention(num_heads)(keras.Input((5, width)))


def test_a_dropout_below_zero_is_refused():
    with pytest.raises(ValueError, match=r"rate=-0\.1"):
        CausalSelfAttention(HEADS, dropout=-0.1)
