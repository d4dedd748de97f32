"""Next-token cross-entropy from hidden states, without ever holding all logits at once."""

import keras
from keras import ops

# A chunk's logits are 16 MiB of float32, or more if they would be few rows: each chunk adds to
# the gradient of the whole matrix, which takes the time of about 25 rows.
_LOGITS_PER_CHUNK = 2**22
_MIN_ROWS_PER_CHUNK = 768


def next_token_loss(hidden_states, embedding, targets, weights, training=False):
    """Cross-entropy of the tied output softmax (GPT-1, equation 1), summed over tokens.

    The logits `h E^T` are made for a chunk of rows at a time and dropped again. In training the
    gradient is computed in the same pass, `dL/dlogits = softmax(logits) - onehot(target)`, so
    that nothing of size `(batch, length, vocabulary)` is kept for the backward pass.

    Args:
        hidden_states: float tensor `(batch, length, hidden_dim)`.
        embedding: the built `keras.layers.ReversibleEmbedding` that the output is tied to.
        targets: int tensor `(batch, length)`: the token that follows each position.
        weights: float tensor `(batch, length)`: what each position counts, usually 0 or 1.
        training: bool. Whether the result will be differentiated.

    Returns:
        Two float32 scalars: the weighted sum of negative log-likelihoods in nats, and the weighted
        number of positions whose most likely token is the target.
    """
    rows = ops.reshape(hidden_states, (-1, hidden_states.shape[-1]))  # (rows, hidden_dim)
    targets = ops.reshape(ops.cast(targets, "int32"), (-1,))  # (rows,)
    weights = ops.reshape(ops.cast(weights, "float32"), (-1,))  # (rows,)
    if training:
        sums = _differentiable_sums(rows, embedding, targets, weights)
    else:
        sums = _sums(rows, embedding, targets, weights)
    return sums[0], sums[1]


def _sums(rows, embedding, targets, weights):
    """Loss and correct predictions, `(2,)`, by the embedding layer's own output projection."""
    chunks = _Chunks(rows, embedding.input_dim)
    rows, targets, weights = chunks.pad(rows), chunks.pad(targets), chunks.pad(weights)

    def add_chunk(i, sums):
        logits = embedding(chunks.take(rows, i), reverse=True)
        statistics, _ = _token_statistics(logits, chunks.take(targets, i))
        return sums + ops.matmul(statistics, chunks.take(weights, i))

    return ops.fori_loop(0, chunks.count, add_chunk, ops.zeros((2,), "float32"))


def _differentiable_sums(rows, embedding, targets, weights):
    """The same sums, with their gradient for the rows and the embedding matrix."""

    @ops.custom_gradient
    def sums_and_gradient(rows, matrix):
        chunks = _Chunks(rows, matrix.shape[0])
        h, t, w = chunks.pad(rows), chunks.pad(targets), chunks.pad(weights)
        projection = ops.cast(matrix, rows.dtype)  # (vocabulary, hidden_dim)

        def add_chunk(i, state):
            sums, d_rows, d_matrix = state
            h_i, w_i = chunks.take(h, i), chunks.take(w, i)
            logits = ops.matmul(h_i, ops.transpose(projection))  # (chunk, vocabulary)
            statistics, softmax = _token_statistics(logits, chunks.take(t, i))
            # A row's weight is a factor of its d_logits; it is cheaper as one of the narrow rows.
            softmax, column = ops.cast(softmax, rows.dtype), ops.cast(w_i[:, None], rows.dtype)
            d_h = ops.matmul(softmax, projection) * column
            d_rows = ops.slice_update(d_rows, (i * chunks.size, 0), d_h)
            d_chunk = ops.matmul(ops.transpose(softmax), h_i * column)
            d_matrix = d_matrix + ops.cast(d_chunk, "float32")
            return sums + ops.matmul(statistics, w_i), d_rows, d_matrix

        # The one-hot part is a row for each position; the chunks add the softmax part.
        weighted = ops.cast(rows, "float32") * -weights[:, None]
        d_matrix = ops.segment_sum(weighted, targets, matrix.shape[0])
        sums, d_rows, d_matrix = ops.fori_loop(
            0,
            chunks.count,
            add_chunk,
            (ops.zeros((2,), "float32"), ops.zeros_like(h), d_matrix),
        )
        target_rows = ops.take(ops.cast(matrix, "float32"), targets, axis=0)
        d_rows = ops.cast(d_rows[: ops.shape(rows)[0]], "float32") - target_rows * weights[:, None]

        def gradient(*args, upstream=None):
            scale = (args[0] if upstream is None else upstream)[0]
            return (
                ops.cast(d_rows * scale, rows.dtype),
                ops.cast(d_matrix * scale, matrix.dtype),
            )

        return sums, gradient

    # The reshape hands over a tensor: TensorFlow's custom gradients take no variables.
    matrix = embedding.embeddings
    return sums_and_gradient(rows, ops.reshape(matrix, matrix.shape))


def _token_statistics(logits, targets):
    """Loss and correctness of each row, `(2, rows)`, and its softmax, in float32."""
    logits = ops.cast(logits, "float32")  # (rows, vocabulary)
    largest = ops.max(logits, axis=-1)
    target_logits = ops.take_along_axis(logits, targets[:, None], axis=-1)[:, 0]
    # Its largest entry is 1 / sum(exp(logits - largest)): no need to make the exponentials too.
    softmax = ops.softmax(logits)
    loss = largest - target_logits - ops.log(ops.max(softmax, axis=-1))
    correct = ops.cast(target_logits >= largest, "float32")
    return ops.stack([loss, correct]), softmax


class _Chunks:
    """Rows cut into as few chunks of one size as the limits allow; zeros fill the last one."""

    def __init__(self, rows, vocabulary_size):
        self.rows = ops.shape(rows)[0]
        most = max(_MIN_ROWS_PER_CHUNK, _LOGITS_PER_CHUNK // vocabulary_size)
        self.count = (self.rows + most - 1) // most
        self.size = (self.rows + self.count - 1) // self.count

    def pad(self, x):
        zeros = ops.zeros((self.count * self.size - self.rows, *x.shape[1:]), dtype=x.dtype)
        return ops.concatenate([x, zeros], axis=0)

    def take(self, x, i):
        start = (i * self.size,) + (0,) * (len(x.shape) - 1)
        return ops.slice(x, start, (self.size, *x.shape[1:]))


@keras.saving.register_keras_serializable(package="kgpt")
class Perplexity(keras.metrics.Mean):
    """`exp` of the mean loss per token, over all tokens since the last reset."""

    def result(self):
        return ops.exp(super().result())
