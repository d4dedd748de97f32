"""Cross-entropy of a softmax over the vocabulary, without ever holding all logits at once."""

from keras import ops

from kgpt.distribution import num_devices, pin
from kgpt.kernels.platform import by_shards, custom_gradient


def reference(rows, projection, targets, weights):
    """Returns what `cross_entropy` returns, by the formula on all logits (GPT-1, equation 1)."""
    logits = _Projection(projection, rows.dtype)(rows)  # (rows, vocabulary)
    target_logits = ops.take_along_axis(logits, targets[:, None], axis=-1)[:, 0]
    log_likelihoods = target_logits - ops.logsumexp(logits, axis=-1)
    correct = ops.cast(target_logits >= ops.max(logits, axis=-1), "float32")
    return -ops.sum(weights * log_likelihoods), ops.sum(weights * correct)


def cross_entropy(
    rows, projection, targets, weights, rows_per_chunk: int = 768, training: bool = True
):
    """Returns the loss and the correct predictions of `softmax(h E^T)`, both weighted sums.

    The logits exist for one chunk of rows at a time. In training, the gradient is computed in the
    same pass, `dL/dlogits = softmax(logits) - onehot(target)`, so that nothing of size
    `(rows, vocabulary)` is saved for the backward pass.

    On several devices each one has chunks of its own rows, and its own part of the vocabulary where
    the mesh has an axis for the model; what they add up is two sums and a gradient of the matrix.

    Args:
        rows: float tensor `(rows, hidden_dim)`: a hidden state `h` in each row.
        projection: float tensor `(vocabulary, hidden_dim)`: the matrix `E`. If nothing will be
            differentiated, also a function from rows to logits, such as a quantized layer.
        targets: int32 tensor `(rows,)`: the right token of each row.
        weights: float32 tensor `(rows,)`: the weight of each row, usually 0 or 1.
        rows_per_chunk: int. Number of rows whose logits exist at once, at most, on each device.
            Each chunk adds to the gradient of the whole matrix, which takes the time of about 25
            rows.
        training: bool. Whether the result will be differentiated.

    Returns:
        Two float32 scalars: the weighted sum of negative log-likelihoods in nats, and the weighted
        number of rows whose most likely token is the target.
    """
    chunked = _chunked_with_gradient if training and not callable(projection) else _chunked
    sums = chunked(rows, projection, targets, weights, rows_per_chunk)
    return sums[0], sums[1]


def rows_at_once(vocabulary_size: int) -> int:
    """Returns a `rows_per_chunk`: 16 MiB of float32 logits, but rows enough to pay for a chunk."""
    return max(768, 2**22 // vocabulary_size)


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
    projection = _Projection(projection, rows.dtype)

    def likelihoods(rows, targets):
        chunks = _Chunks(rows, rows_per_chunk)
        h, t = chunks.pad(rows), chunks.pad(targets)

        def add_chunk(i, found):
            statistics, _ = _statistics(projection(chunks.take(h, i)), chunks.take(t, i))
            return ops.slice_update(found, (i * chunks.size,), -statistics[0])

        found = ops.fori_loop(0, chunks.count, add_chunk, ops.zeros(ops.shape(t), "float32"))
        return (found[: ops.shape(rows)[0]],)

    return by_shards(likelihoods, is_sum=(False,))(rows, targets)[0]


def _chunked(rows, projection, targets, weights, rows_per_chunk):
    """Returns loss and correct predictions, `(2,)`."""
    projection = _Projection(projection, rows.dtype)

    def sums(rows, targets, weights):
        chunks = _Chunks(rows, rows_per_chunk)
        h, t, w = chunks.pad(rows), chunks.pad(targets), chunks.pad(weights)

        def add_chunk(i, sums):
            statistics, _ = _statistics(projection(chunks.take(h, i)), chunks.take(t, i))
            return sums + ops.matmul(statistics, chunks.take(w, i))

        return (ops.fori_loop(0, chunks.count, add_chunk, ops.zeros((2,), "float32")),)

    return by_shards(sums, is_sum=(True,))(rows, targets, weights)[0]


def _chunked_with_gradient(rows, matrix, targets, weights, rows_per_chunk):
    """Returns the same sums, with their gradient for the rows and the matrix."""

    @custom_gradient
    def sums_and_gradient(rows, matrix):
        projection = _Projection(matrix, rows.dtype)

        def sums_and_gradients(rows, targets, weights):
            chunks = _Chunks(rows, rows_per_chunk)
            h, t, w = chunks.pad(rows), chunks.pad(targets), chunks.pad(weights)

            def add_chunk(i, state):
                sums, d_rows, d_matrix = state
                h_i, w_i = chunks.take(h, i), chunks.take(w, i)
                statistics, softmax = _statistics(projection(h_i), chunks.take(t, i))
                # A row's weight is a factor of its d_logits; it is cheaper as one of the rows.
                softmax, column = ops.cast(softmax, rows.dtype), ops.cast(w_i[:, None], rows.dtype)
                d_h = ops.matmul(softmax, projection.matrix) * column
                d_rows = ops.slice_update(d_rows, (i * chunks.size, 0), d_h)
                d_chunk = ops.matmul(ops.transpose(softmax), h_i * column)
                d_matrix = pin(d_matrix + ops.cast(d_chunk, "float32"), "model")
                return sums + ops.matmul(statistics, w_i), d_rows, d_matrix

            # The one-hot part is a row for each position; the chunks add the softmax part.
            weighted = ops.cast(rows, "float32") * -weights[:, None]
            d_matrix = ops.segment_sum(weighted, targets, projection.matrix.shape[0])
            zeros = (ops.zeros((2,), "float32"), ops.zeros_like(h), pin(d_matrix, "model"))
            sums, d_rows, d_matrix = ops.fori_loop(0, chunks.count, add_chunk, zeros)
            target_rows = ops.take(ops.cast(matrix, "float32"), targets, axis=0)
            d_rows = ops.cast(d_rows[: ops.shape(rows)[0]], "float32")
            return sums, d_rows - target_rows * weights[:, None], d_matrix

        by_rows = by_shards(sums_and_gradients, is_sum=(True, False, True))
        sums, d_rows, d_matrix = by_rows(rows, targets, weights)
        if projection.added:
            d_matrix = d_matrix[: -projection.added]

        def gradient(upstream):
            scale = upstream[0]
            return ops.cast(d_rows * scale, rows.dtype), ops.cast(d_matrix * scale, matrix.dtype)

        return sums, gradient

    return sums_and_gradient(rows, matrix)


class _Projection:
    """`h E^T` in float32: a function of rows `(rows, hidden_dim)`.

    Each device of the model axis has its part of the vocabulary. Where they don't divide it, rows
    are added to the matrix, whose tokens have no probability.

    Args:
        projection: the matrix `E`, or a function from rows to logits.
        dtype: what a matrix is cast to.
    """

    def __init__(self, projection, dtype):
        if callable(projection):
            self._function, self.matrix = projection, None
            return
        self.added = -projection.shape[0] % num_devices("model")
        if self.added:
            projection = ops.pad(projection, ((0, self.added), (0, 0)))
        self.matrix = pin(ops.cast(projection, dtype), "model")  # (vocabulary, hidden_dim)

    def __call__(self, rows):
        if self.matrix is None:
            return ops.cast(self._function(rows), "float32")
        logits = ops.cast(ops.matmul(rows, ops.transpose(self.matrix)), "float32")
        if self.added:
            is_token = ops.arange(logits.shape[-1]) < logits.shape[-1] - self.added
            logits = ops.where(is_token, logits, -1e9)
        return pin(logits, None, "model")


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
