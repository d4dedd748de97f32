import keras
import numpy as np
import pytest
from keras import ops
from oracles import gradients, numpy_cross_entropy, to_numpy

from kgpt.kernels.cross_entropy import cross_entropy, log_likelihoods, reference

WIDTH, VOCABULARY = 12, 50
# Of a loss of bfloat16 logits, and of its gradients, relative to their largest entry.
TOLERANCE = {"float32": 1e-5, "bfloat16": 2e-2}

dtypes = pytest.mark.parametrize("dtype", TOLERANCE)
# 23 is a prime: no chunk divides the rows but those of one row and of all.
chunks = pytest.mark.parametrize("rows_per_chunk", [1, 7, 22, 100])


def make_batch(rows=23):
    rng = np.random.default_rng(0)
    h = rng.normal(size=(rows, WIDTH)).astype("float32")
    E = rng.normal(size=(VOCABULARY, WIDTH)).astype("float32")
    targets = rng.integers(0, VOCABULARY, rows).astype("int32")
    targets[::3] = (h @ E.T).argmax(-1)[::3]
    weights = rng.random(rows).astype("float32")
    weights[rows // 2] = 0
    return h, E, targets, weights


def tensors(targets, weights):
    return ops.convert_to_tensor(targets), ops.convert_to_tensor(weights)


def values_and_gradients(function, h, embeddings, targets, weights, dtype, **kwargs):
    """Loss, correct predictions, and the gradients of thrice the loss for rows and matrix."""
    rows, matrix = keras.Variable(h), keras.Variable(embeddings)

    def results():
        # The reshape makes a tensor of the variable.
        projection = ops.reshape(matrix, matrix.shape)
        return function(ops.cast(rows, dtype), projection, *tensors(targets, weights), **kwargs)

    values = [to_numpy(ops.stop_gradient(x)) for x in results()]
    return [*values, *gradients(lambda: 3 * results()[0], [rows, matrix])]


def assert_close(found, expected, tolerance):
    for one, other in zip(found, expected, strict=True):
        np.testing.assert_allclose(one, other, rtol=tolerance, atol=tolerance * np.abs(other).max())


def test_the_reference_is_the_formula():
    h, E, targets, weights = make_batch()

    loss, correct = reference(*map(ops.convert_to_tensor, (h, E)), *tensors(targets, weights))

    logits = h.astype("float64") @ E.T.astype("float64")
    expected = (numpy_cross_entropy(logits, targets) * weights).sum()
    np.testing.assert_allclose(to_numpy(loss), expected, rtol=1e-5)
    expected = ((logits.argmax(-1) == targets) * weights).sum()
    np.testing.assert_allclose(to_numpy(correct), expected, rtol=1e-5)


@dtypes
@chunks
def test_chunks_have_the_values_and_gradients_of_the_reference(dtype, rows_per_chunk):
    batch = make_batch()

    found = values_and_gradients(cross_entropy, *batch, dtype, rows_per_chunk=rows_per_chunk)

    assert_close(found, values_and_gradients(reference, *batch, dtype), TOLERANCE[dtype])


@dtypes
def test_chunks_of_the_default_size_have_the_values_and_gradients_of_the_reference(dtype):
    batch = make_batch(rows=2 * 768 + 1)

    found = values_and_gradients(cross_entropy, *batch, dtype)

    assert_close(found, values_and_gradients(reference, *batch, dtype), TOLERANCE[dtype])


@dtypes
@chunks
def test_chunks_of_a_function_have_the_values_of_the_reference(dtype, rows_per_chunk):
    h, E, targets, weights = make_batch()
    rows, matrix = (ops.cast(ops.convert_to_tensor(x), dtype) for x in (h, E))
    arguments = tensors(targets, weights)

    def projection(rows):
        return ops.matmul(rows, ops.transpose(matrix))

    found = cross_entropy(rows, projection, *arguments, rows_per_chunk=rows_per_chunk)

    expected = [to_numpy(x) for x in reference(rows, projection, *arguments)]
    assert_close([to_numpy(x) for x in found], expected, TOLERANCE[dtype])
    for one, other in zip(expected, reference(rows, matrix, *arguments), strict=True):
        np.testing.assert_allclose(one, to_numpy(other), rtol=1e-5)


@pytest.mark.parametrize("rows_per_chunk", [7, 100])
def test_logits_of_a_hundred_thousand_have_the_gradients_of_the_formula(rows_per_chunk):
    h, E, targets, weights = make_batch()
    E = E * 1e5

    loss, correct, d_rows, d_matrix = values_and_gradients(
        cross_entropy, h, E, targets, weights, "float32", rows_per_chunk=rows_per_chunk
    )

    logits = h.astype("float64") @ E.T.astype("float64")
    expected = (numpy_cross_entropy(logits, targets) * weights).sum()
    softmax = np.exp(logits - logits.max(-1, keepdims=True))
    softmax /= softmax.sum(-1, keepdims=True)
    d_logits = 3 * weights[:, None] * (softmax - np.eye(VOCABULARY)[targets])
    np.testing.assert_allclose(loss, expected, rtol=1e-5)
    assert_close([d_rows, d_matrix], [d_logits @ E, d_logits.T @ h], 1e-5)
    assert correct > 0


def test_rows_of_weight_zero_have_no_influence():
    h, E, targets, weights = make_batch()
    weights[5:] = 0
    others = h[::-1].copy()
    others[:5] = h[:5]

    results = [
        values_and_gradients(cross_entropy, x, E, targets, weights, "float32", rows_per_chunk=7)
        for x in (h, others)
    ]

    assert_close(results[0][2:], results[1][2:], 1e-6)
    np.testing.assert_array_equal(results[0][2][5:], 0)


# === Each row by itself ===


@chunks
def test_log_likelihoods_of_rows_are_those_of_the_formula(rows_per_chunk):
    h, E, targets, _ = make_batch()
    rows, matrix = ops.convert_to_tensor(h), ops.convert_to_tensor(E)

    for projection in (matrix, lambda rows: ops.matmul(rows, ops.transpose(matrix))):
        found = log_likelihoods(rows, projection, ops.convert_to_tensor(targets), rows_per_chunk)

        np.testing.assert_allclose(
            to_numpy(found), -numpy_cross_entropy(h @ E.T, targets), rtol=1e-5, atol=1e-5
        )
