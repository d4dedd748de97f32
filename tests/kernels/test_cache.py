"""The cached paths against the plain formulas, at the sizes where each of them is chosen."""

import keras
import numpy as np
import pytest
from keras import ops

from kgpt.kernels import cache
from kgpt.kernels.platform import has_accelerator

BATCH, HEADS, HEAD_DIM = 2, 3, 8
BACKEND = keras.config.backend()
DTYPES = pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
# From 128 slots on, XLA on a CPU reads the filled prefix: a quarter of 130 slots is 32, of 1,000 is
# 250. One index for each prefix, its last slot or the first slot after it.
INDICES = [(9, 4), (130, 0), (130, 31), (130, 32), (130, 96), (130, 97), (130, 129)]
INDICES += [(1000, 249), (1000, 250), (1000, 600), (1000, 999)]


def normal(*shape, dtype="float32", seed=0):
    x = np.random.default_rng([seed, *shape]).normal(size=shape)
    return ops.convert_to_tensor(x.astype("float32"), dtype=dtype)


def step_inputs(new, slots, index, dtype):
    """Query, keys and values, and which slots a position sees: some up to its own."""
    query = normal(BATCH, HEADS, new, HEAD_DIM, dtype=dtype, seed=1)
    keys, values = (normal(BATCH, HEADS, slots, HEAD_DIM, dtype=dtype, seed=s) for s in (2, 3))
    first = np.broadcast_to(np.array(index), (BATCH,))
    positions = first[:, None] + np.arange(new)  # (batch, new)
    visible = np.arange(slots) <= positions[:, :, None]
    seen = np.random.default_rng(4).random((BATCH, new, slots)) < 0.7
    visible &= seen | (np.arange(slots) == positions[:, :, None])
    return query, keys, values, ops.convert_to_tensor(visible)


def numbers(x):
    return ops.convert_to_numpy(ops.cast(x, "float32"))


def attention_by_numpy(query, keys, values, visible):
    """Vaswani et al. 2017, equation 1, in float64."""
    query, keys, values = (numbers(x).astype("float64") for x in (query, keys, values))
    visible = ops.convert_to_numpy(visible)
    keys, values = keys[:, :, : visible.shape[-1]], values[:, :, : visible.shape[-1]]
    scores = query @ keys.swapaxes(2, 3) / np.sqrt(HEAD_DIM)
    weights = np.where(visible[:, None], np.exp(scores - scores.max(-1, keepdims=True)), 0)
    return weights / weights.sum(-1, keepdims=True) @ values


def assert_close(found, expected, dtype):
    assert keras.backend.standardize_dtype(found.dtype) == dtype
    tolerance = {"float32": 2e-6, "bfloat16": 3e-2}[dtype]
    np.testing.assert_allclose(numbers(found), numbers(expected), atol=tolerance)


# === attention ===


@pytest.mark.parametrize("slots", [9, 12])
def test_reference_is_the_published_formula_over_the_slots_that_may_be_seen(slots):
    query, keys, values, visible = step_inputs(4, 9, 5, "float32")
    keys, values = (
        ops.concatenate([x, normal(BATCH, HEADS, slots - 9, HEAD_DIM)], axis=2)
        for x in (keys, values)
    )

    found = cache.reference(query, keys, values, visible)

    expected = attention_by_numpy(query, keys, values, visible)
    np.testing.assert_allclose(numbers(found), expected, atol=1e-6)


@DTYPES
@pytest.mark.parametrize(("slots", "index"), INDICES)
@pytest.mark.parametrize("is_tensor", [False, True])
def test_one_position_attends_as_by_the_formula(slots, index, is_tensor, dtype):
    inputs = step_inputs(1, slots, index, dtype)

    found = cache.attend(*inputs, ops.convert_to_tensor(index, "int32") if is_tensor else index)

    assert_close(found, cache.reference(*inputs), dtype)


@DTYPES
@pytest.mark.parametrize("slots", [9, 130, 1000])
@pytest.mark.parametrize("new", [1, 3])
def test_rows_at_different_slots_attend_as_by_the_formula(slots, new, dtype):
    index = [slots // 2, slots - new]
    inputs = step_inputs(new, slots, index, dtype)

    found = cache.attend(*inputs, ops.convert_to_tensor(index, "int32"))

    assert_close(found, cache.reference(*inputs), dtype)


@DTYPES
@pytest.mark.parametrize("seen", [32, 130])
def test_slots_beyond_those_that_may_be_seen_are_left_out(seen, dtype):
    query, keys, values, visible = step_inputs(1, 130, 20, dtype)
    inputs = query, keys, values, visible[:, :, :seen]

    found = cache.attend(*inputs, 20)

    assert_close(found, cache.reference(*inputs), dtype)


@DTYPES
@pytest.mark.parametrize("new", [130, 1024, 1100])
def test_a_prompt_attends_to_itself_as_by_the_formula(new, dtype):
    inputs = step_inputs(new, new, 0, dtype)

    found = cache.attend(*inputs, 0)

    assert_close(found, cache.reference(*inputs), dtype)


@pytest.mark.skipif(BACKEND == "torch" or has_accelerator(), reason="a path of XLA on a CPU")
def test_xla_on_a_cpu_does_not_read_behind_the_filled_prefix():
    query, keys, values, visible = step_inputs(1, 130, 40, "float32")
    written = np.arange(130)[:, None] < 65  # the second of four prefixes
    keys, values = (ops.where(written, x, np.nan) for x in (keys, values))

    found = cache.attend(query, keys, values, visible, 40)

    expected = cache.reference(query, keys[:, :, :65], values[:, :, :65], visible[:, :, :65])
    assert_close(found, expected, "float32")


@pytest.mark.skipif(BACKEND == "torch", reason="PyTorch's own kernel, whose arrays are not seen")
def test_scores_of_a_long_prompt_never_exist_at_once():
    new = 1024
    inputs = step_inputs(new, new, 0, "float32")

    assert largest_array(cache.reference, *inputs) == BATCH * HEADS * new * new
    assert largest_array(cache.attend, *inputs) <= BATCH * new * new  # the argument `visible`


def largest_array(function, *inputs):
    """The number of entries of the largest array in a function's graph."""
    if BACKEND == "jax":
        import jax

        equations = jax.make_jaxpr(function)(*inputs).eqns
        return max(v.aval.size for equation in equations for v in equation.outvars)
    import tensorflow as tf

    graph = tf.function(function).get_concrete_function(*inputs).graph
    outputs = [output for operation in graph.get_operations() for output in operation.outputs]
    return max(output.shape.num_elements() or 0 for output in outputs)


# === writing ===


@DTYPES
@pytest.mark.parametrize(("slots", "new", "index"), [(9, 1, 0), (9, 4, 5), (1000, 130, 300)])
@pytest.mark.parametrize("write", [cache.write, cache.reference_write])
@pytest.mark.parametrize("is_tensor", [False, True])
def test_new_positions_are_written_from_a_slot_on(write, slots, new, index, is_tensor, dtype):
    old = normal(BATCH, HEADS, slots, HEAD_DIM, dtype=dtype)
    added = normal(BATCH, HEADS, new, HEAD_DIM, dtype=dtype)
    before = numbers(old)

    found = write(old, added, ops.convert_to_tensor(index, "int32") if is_tensor else index)

    expected = before.copy()
    expected[:, :, index : index + new] = numbers(added)
    np.testing.assert_array_equal(numbers(found), expected)
    np.testing.assert_array_equal(numbers(old), before)


@DTYPES
@pytest.mark.parametrize(("slots", "new", "index"), [(9, 2, [0, 7]), (1000, 130, [300, 5])])
def test_new_positions_are_written_at_each_rows_own_slot(slots, new, index, dtype):
    old = normal(BATCH, HEADS, slots, HEAD_DIM, dtype=dtype)
    added = normal(BATCH, HEADS, new, HEAD_DIM, dtype=dtype)

    found = cache.write(old, added, ops.convert_to_tensor(index, "int32"))

    expected = numbers(old).copy()
    for row, first in enumerate(index):
        expected[row, :, first : first + new] = numbers(added)[row]
    np.testing.assert_array_equal(numbers(found), expected)


@pytest.mark.skipif(BACKEND != "jax", reason="only JAX tells Python's ints from other ints")
@pytest.mark.parametrize("index", [3, np.int32(3), np.int64(3)])
def test_a_cache_is_written_where_ints_are_64_bits_wide(index):
    import jax

    with jax.enable_x64(True):
        cached, new = normal(BATCH, HEADS, 9, HEAD_DIM), normal(BATCH, HEADS, 2, HEAD_DIM, seed=1)
        found = jax.jit(cache.write)(cached, new, index)

    np.testing.assert_array_equal(numbers(found[:, :, 3:5]), numbers(new))
    np.testing.assert_array_equal(numbers(found[:, :, 5:]), numbers(cached[:, :, 5:]))
