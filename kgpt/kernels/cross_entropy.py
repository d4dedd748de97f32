"""Cross-entropy of a softmax over the vocabulary, without ever holding all logits at once."""

from keras import ops

from kgpt.kernels.platform import custom_gradient


def reference(rows, projection, targets, weights):
    """Returns what `cross_entropy` returns, by the formula on all logits (GPT-1, equation 1)."""
    logits = _logits(rows, projection)  # (rows, vocabulary)
    target_logits = ops.take_along_axis(logits, targets[:, None], axis=-1)[:, 0]
    log_likelihoods = target_logits - ops.logsumexp(logits, axis=-1)
    correct = ops.cast(target_logits >= ops.max(logits, axis=-1), "float32")
    return -ops.sum(weights * log_likelihoods), ops.sum(weights * correct)


def cross_entropy(rows, projection, targets, weights, rows_per_chunk: int = 768):
    """Returns the loss and the correct predictions of `softmax(h E^T)`, both weighted sums.

    The logits exist for one chunk of rows at a time. Given the matrix `E`, the gradient is computed
    in the same pass, `dL/dlogits = softmax(logits) - onehot(target)`, so that nothing of size
    `(rows, vocabulary)` is saved for the backward pass.

    Args:
        rows: float tensor `(rows, hidden_dim)`: a hidden state `h` in each row.
        projection: float tensor `(vocabulary, hidden_dim)`: the matrix `E`. If nothing will be
            differentiated, also a function from rows to logits, such as a quantized layer.
        targets: int32 tensor `(rows,)`: the right token of each row.
        weights: float32 tensor `(rows,)`: the weight of each row, usually 0 or 1.
        rows_per_chunk: int. Number of rows whose logits exist at once, at most. Each chunk adds to
            the gradient of the whole matrix, which takes the time of about 25 rows.

    Returns:
        Two float32 scalars: the weighted sum of negative log-likelihoods in nats, and the weighted
        number of rows whose most likely token is the target.
    """
    chunked = _chunked if callable(projection) else _chunked_with_gradient
    sums = chunked(rows, projection, targets, weights, rows_per_chunk)
    return sums[0], sums[1]


def log_likelihoods(rows, projection, targets, rows_per_chunk: int = 768):
    """Returns `log softmax(h E^T)` of the target of each row, in nats, without a gradient.

    Args:
        rows: float tensor `(rows, hidden_dim)`: a hidden state `h` in each row.
        projection: the matrix `E`, or a function from rows to logits, as for `cross_entropy`.
        targets: int32 tensor `(rows,)`: the right token of each row.
        rows_per_chunk: int. Number of rows whose logits exist at once, at most.

    Returns:
        float32 tensor `(rows,)`.
    """
    chunks = _Chunks(rows, rows_per_chunk)
    h, t = chunks.pad(rows), chunks.pad(targets)

    def add_chunk(i, found):
        statistics, _ = _statistics(_logits(chunks.take(h, i), projection), chunks.take(t, i))
        return ops.slice_update(found, (i * chunks.size,), -statistics[0])

    found = ops.fori_loop(0, chunks.count, add_chunk, ops.zeros(ops.shape(t), "float32"))
    return found[: ops.shape(rows)[0]]


def _chunked(rows, projection, targets, weights, rows_per_chunk):
    """Returns loss and correct predictions, `(2,)`."""
    chunks = _Chunks(rows, rows_per_chunk)
    rows, targets, weights = chunks.pad(rows), chunks.pad(targets), chunks.pad(weights)

    def add_chunk(i, sums):
        logits = _logits(chunks.take(rows, i), projection)
        statistics, _ = _statistics(logits, chunks.take(targets, i))
        return sums + ops.matmul(statistics, chunks.take(weights, i))

    return ops.fori_loop(0, chunks.count, add_chunk, ops.zeros((2,), "float32"))


def _chunked_with_gradient(rows, matrix, targets, weights, rows_per_chunk):
    """Returns the same sums, with their gradient for the rows and the matrix."""

    @custom_gradient
    def sums_and_gradient(rows, matrix):
        chunks = _Chunks(rows, rows_per_chunk)
        h, t, w = chunks.pad(rows), chunks.pad(targets), chunks.pad(weights)
        projection = ops.cast(matrix, rows.dtype)  # (vocabulary, hidden_dim)

        def add_chunk(i, state):
            sums, d_rows, d_matrix = state
            h_i, w_i = chunks.take(h, i), chunks.take(w, i)
            statistics, softmax = _statistics(_logits(h_i, projection), chunks.take(t, i))
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
        zeros = (ops.zeros((2,), "float32"), ops.zeros_like(h), d_matrix)
        sums, d_rows, d_matrix = ops.fori_loop(0, chunks.count, add_chunk, zeros)
        target_rows = ops.take(ops.cast(matrix, "float32"), targets, axis=0)
        d_rows = ops.cast(d_rows[: ops.shape(rows)[0]], "float32") - target_rows * weights[:, None]

        def gradient(upstream):
            scale = upstream[0]
            return ops.cast(d_rows * scale, rows.dtype), ops.cast(d_matrix * scale, matrix.dtype)

        return sums, gradient

    return sums_and_gradient(rows, matrix)


def _logits(rows, projection):
    """Returns `h E^T` in float32."""
    if callable(projection):
        return ops.cast(projection(rows), "float32")
    logits = ops.matmul(rows, ops.transpose(ops.cast(projection, rows.dtype)))
    return ops.cast(logits, "float32")


def _statistics(logits, targets):
    """Returns loss and correctness of each row, `(2, rows)`, and its softmax."""
    largest = ops.max(logits, axis=-1)
    target_logits = ops.take_along_axis(logits, targets[:, None], axis=-1)[:, 0]
    # Its largest entry is 1 / sum(exp(logits - largest)), which saves a pass over the logits.
    softmax = ops.softmax(logits)
    loss = largest - target_logits - ops.log(ops.max(softmax, axis=-1))
    correct = ops.cast(target_logits >= largest, "float32")
    return ops.stack([loss, correct]), softmax


class _Chunks:
    """Rows cut into as few chunks of equal size as the limit allows; zeros fill the last one."""

    def __init__(self, rows, rows_per_chunk):
        self.rows = ops.shape(rows)[0]
        count = (self.rows + rows_per_chunk - 1) // rows_per_chunk
        # A replica of `tf.distribute` may have no rows.
        self.count = max(count, 1) if isinstance(count, int) else ops.maximum(count, 1)
        self.size = (self.rows + self.count - 1) // self.count

    def pad(self, x):
        zeros = ops.zeros((self.count * self.size - self.rows, *x.shape[1:]), dtype=x.dtype)
        return ops.concatenate([x, zeros], axis=0)

    def take(self, x, i):
        start = (i * self.size,) + (0,) * (len(x.shape) - 1)
        return ops.slice(x, start, (self.size, *x.shape[1:]))
