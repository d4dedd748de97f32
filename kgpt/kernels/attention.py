"""Causal attention: the formula, tiles with a gradient of their own, the fused kernels."""

import functools
import math

import keras
from keras import ops

from kgpt.kernels import dropout as dropout_kernel
from kgpt.kernels import platform
from kgpt.kernels.platform import barrier, custom_gradient, is_static_length, matmul, wide

# From so many positions on, known when the step is compiled, scores exist for a tile at a time.
TILED_FROM = 256
# From so many on, tiles have a fixed size and each one's dropout mask is drawn again, not saved.
LOOPED_FROM, TILE = 1024, 128
_GROUPS = 4


def reference(query, key, value, visible, keep=None, rate: float = 0.0):
    """Returns `softmax(q k^T / sqrt(head_dim)) v` (Vaswani et al. 2017, equation 1).

    Args:
        query: float tensor `(batch, length, heads, head_dim)`.
        key: float tensor of that shape.
        value: float tensor of that shape.
        visible: bool tensor `(batch or 1, 1, query, key)`, as from `visible_keys`.
        keep: optional bool tensor `(batch, heads, query, key)`: the weights that dropout keeps.
        rate: float in [0, 1). Share of the weights that dropout drops.

    Returns:
        float tensor `(batch, length, heads, head_dim)`.
    """
    weights = _weights(query, key, visible)  # (batch, heads, query, key)
    if keep is not None:
        weights = dropout_kernel.reference(weights, keep, rate)
    return _arrange(matmul(weights, _arrange(value, "blhd->bhld")), "bhld->blhd")


def _weights(query, key, visible):
    query = query * (1 / math.sqrt(query.shape[-1]))
    return softmax(matmul(_arrange(query, "blhd->bhld"), _arrange(key, "blhd->bhdl")), visible)


def attention_scores(query, key, segment_ids=None):
    """Returns the weights of `reference`: each key's share of each query.

    Args:
        query: float tensor `(batch, length, heads, head_dim)`.
        key: float tensor of that shape.
        segment_ids: as for `attend`.

    Returns:
        float tensor `(batch, heads, query, key)`.
    """
    length = ops.shape(query)[1]
    return _weights(query, key, visible_keys(segment_ids, 0, length, length))


def attend(query, key, value, segment_ids=None, rate: float = 0.0, seed=None):
    """Returns causal attention, computed in the fastest of the three ways of `choice`.

    Args:
        query: float tensor `(batch, length, heads, head_dim)`.
        key: float tensor of that shape.
        value: float tensor of that shape.
        segment_ids: optional int tensor `(batch, length)`: a position sees only positions of the
            same segment. Padding needs no mask here: at the end of a row nothing sees it.
        rate: float in [0, 1). Share of the attention weights dropped.
        seed: `keras.random.SeedGenerator`, needed where `rate` is not 0.

    Returns:
        float tensor `(batch, length, heads, head_dim)`.
    """
    way = choice(query.shape, query.dtype, rate, segment_ids is not None)
    if way == "fused":
        return _fused(query, key, value, rate)
    if way == "tiled":
        return tiled(query, key, value, segment_ids, rate, seed)
    length = ops.shape(query)[1]
    keep = None
    if rate:
        shape = (ops.shape(query)[0], query.shape[2], length, length)
        keep = dropout_kernel.keep_mask(shape, rate, seed)
    visible = visible_keys(segment_ids, 0, length, length)
    return reference(query, key, value, visible, keep, rate)


def choice(shape, dtype, rate: float = 0.0, has_segments: bool = False) -> str:
    """Returns how `attend` computes: "fused", "tiled" or "reference".

    - PyTorch's kernel serves all devices and dtypes; with dropout it is used on CUDA only, since on
      a CPU it then computes all scores at once.
    - JAX's (cuDNN) serves GPUs from compute capability 8.0 on, 16-bit dtypes and heads whose width
      is a multiple of 8. Its dropout has the same seed in each step, so it is not used.
    - Keras offers none on TensorFlow.
    - Neither has segments without a mask of `length x length`.

    Args:
        shape: of the queries, `(batch, length, heads, head_dim)`.
        dtype: their dtype.
        rate: float. Share of the attention weights dropped.
        has_segments: bool. Whether positions have segments.
    """
    if not has_segments and _has_fused_kernel(shape, dtype, rate):
        return "fused"
    return "tiled" if is_static_length(shape[1], TILED_FROM) else "reference"


def _has_fused_kernel(shape, dtype, rate):
    backend = keras.config.backend()
    if backend == "torch":
        return not rate or platform.device() == "gpu"
    if backend != "jax" or platform.device() != "gpu" or rate:
        return False
    dtype = keras.backend.standardize_dtype(dtype)
    fits = dtype in ("bfloat16", "float16") and shape[-1] % 8 == 0 and shape[-1] <= 128
    return fits and platform.cuda_compute_capability() >= (8, 0)


def _fused(query, key, value, rate):
    if keras.config.backend() == "jax":
        from jax.nn import dot_product_attention

        return dot_product_attention(query, key, value, is_causal=True, implementation="cudnn")
    from torch.nn.functional import scaled_dot_product_attention

    # Not by Keras, which knows no dropout here.
    query, key, value = (_arrange(x, "blhd->bhld") for x in (query, key, value))
    attended = scaled_dot_product_attention(query, key, value, dropout_p=rate, is_causal=True)
    return _arrange(attended, "bhld->blhd")


def visible_keys(segment_ids, start, queries, keys):
    """Returns which of the first `keys` keys some queries see: the causal rule and the segments.

    Args:
        segment_ids: optional int tensor `(batch, all keys)`.
        start: int or int scalar tensor. The position of the first query.
        queries: int or int scalar tensor. The number of queries.
        keys: int or int scalar tensor. The number of keys.

    Returns:
        bool tensor `(batch or 1, 1, queries, keys)`.
    """
    positions = start + ops.arange(queries, dtype="int32")
    visible = (positions[:, None] >= ops.arange(keys, dtype="int32"))[None]
    if segment_ids is not None:
        of_queries = ops.take(segment_ids, positions, axis=1)[:, :, None]
        visible = ops.logical_and(visible, ops.equal(of_queries, segment_ids[:, None, :keys]))
    return ops.expand_dims(visible, 1)


def softmax(scores, visible):
    """Returns the softmax over visible keys, in float32 at least, in the dtype of `scores`."""
    dtype = wide(scores.dtype)
    hidden = ops.cast(ops.where(visible, 0.0, -1e9), dtype)
    weights = ops.softmax(ops.cast(scores, dtype) + hidden)
    return ops.cast(weights, scores.dtype)


# === Tiles of queries ===


def tiled(query, key, value, segment_ids=None, rate: float = 0.0, seed=None, tile=None):
    """Returns causal attention of which only a tile of queries' scores exist at a time.

    The backward pass recomputes them (Rabe and Staats 2021; Dao et al. 2022, section 3.1), so that
    memory grows linearly with the length. Tiles form four groups, each of which meets the keys up
    to its own end only: 5/8 of the arithmetic.

    Args:
        query: float tensor `(batch, length, heads, head_dim)`, of static length.
        key: float tensor of that shape.
        value: float tensor of that shape.
        segment_ids: as for `attend`.
        rate: as for `attend`.
        seed: as for `attend`.
        tile: int. Queries in a tile. If None, a quarter of the length, or 128 from 1,024 positions
            on. Where a group has one tile, its dropout mask is saved for the backward pass; where
            it has several, they go through a loop and each mask is drawn twice.

    Returns:
        float tensor `(batch, length, heads, head_dim)`.
    """
    length, num_heads, head_dim = query.shape[1:]
    groups = groups_of(length, tile)
    padded = groups[-1].stop  # keys added at the end are seen by no real query
    if padded != length:
        query, key, value = (_pad_end(x, 1, padded - length) for x in (query, key, value))
        segment_ids = None if segment_ids is None else _pad_end(segment_ids, 1, padded - length)
    draw = dropout_kernel.repeatable_masks(rate, seed) if rate else None
    # Not in a loop: there TensorFlow joins scale, product and mask, and takes 100 times as long.
    query = query * (1 / math.sqrt(head_dim))
    query, key, value = (_arrange(x, "blhd->bhld") for x in (query, key, value))
    attended = _tiled_attention(groups, segment_ids, draw, rate)(query, key, value)
    return ops.reshape(attended, (-1, padded, num_heads, head_dim))[:, :length]


def groups_of(length: int, tile=None) -> list:
    """Returns the groups of tiles that `tiled` makes of a length, in order."""
    if tile is None:
        tile = math.ceil(length / _GROUPS) if length < LOOPED_FROM else TILE
    count = math.ceil(length / tile)
    in_group = math.ceil(count / _GROUPS)
    return [_Group(i, min(in_group, count - i), tile) for i in range(0, count, in_group)]


def _tiled_attention(groups, segment_ids, draw, rate):
    """Returns the function of queries (scaled), keys and values, with its gradient.

    All are `(batch, heads, length, head_dim)`; the result is `(batch, length, hidden_dim)`, the
    very array that the output map saves.
    """
    scale = dropout_kernel.scale(rate) if rate else None

    def scaled(x):  # the results, which are smaller than the weights
        return x if scale is None else x * scale

    @custom_gradient
    def attention(query, key, value):
        attended, keeps = [], []
        for group in groups:
            result, keep = group.attend(query, key, value, segment_ids, draw)
            attended.append(result)
            keeps.append(keep)
        attended = _merge(scaled(ops.concatenate(attended, axis=2)))
        saved = ops.stop_gradient(attended)

        def gradient(upstream):
            upstream = ops.cast(upstream, query.dtype)
            result = _split(barrier(saved, after=upstream), query.shape)
            upstream = _split(upstream, query.shape)
            means = _weighted_means(result, upstream)
            upstream = event = scaled(upstream)
            d_query, d_key, d_value = [], [], []
            for group, keep in zip(groups, keeps, strict=True):
                inputs = (barrier(x, after=event) for x in (query, key, value))
                gradients = group.gradients(*inputs, segment_ids, draw, keep, upstream, means)
                event = gradients[0]  # one group after the other
                d_query.append(gradients[0])
                rest = query.shape[2] - group.stop
                d_key.append(_pad_end(gradients[1], 2, rest))
                d_value.append(_pad_end(gradients[2], 2, rest))
            return ops.concatenate(d_query, axis=2), sum(d_key), sum(d_value)

        return attended, gradient

    return attention


class _Group:
    """Neighbouring tiles of queries that meet the same keys, all up to the group's end.

    Args:
        first: int. The number of the first tile.
        count: int. How many tiles.
        tile: int. Queries in a tile.
    """

    def __init__(self, first, count, tile):
        self.start, self.stop = first * tile, (first + count) * tile
        self.count, self.tile = count, tile

    def attend(self, query, key, value, segment_ids, draw):
        """Returns the group's attention and, of a single tile, the mask of dropout."""
        query, key, value = query[:, :, self.start : self.stop], *self._seen(key, value)
        if self.count == 1:
            visible = self._visible(segment_ids, 0)
            return _attend(query, key, value, visible, self._mask(draw, 0))

        def attend_tile(i, tiles):  # a tile's result takes its place, so tiles follow one another
            visible, mask = self._visible(segment_ids, i), self._mask(draw, i)
            return _put(tiles, i, _attend(tiles[i], key, value, visible, mask)[0])

        return self._join(ops.fori_loop(0, self.count, attend_tile, self._cut(query))), None

    def gradients(self, query, key, value, segment_ids, draw, keep, upstream, means):
        """Returns the gradients of the group's queries and of the keys and values that they see."""
        key, value = self._seen(key, value)
        query, upstream, means = (x[:, :, self.start : self.stop] for x in (query, upstream, means))
        if self.count == 1:
            visible = barrier(self._visible(segment_ids, 0), after=query)
            return _gradients(query, key, value, visible, lambda _: keep, upstream, means)
        upstream, means = self._cut(upstream), self._cut(means)

        def add_tile(i, state):
            tiles, d_key, d_value = state
            visible, mask = self._visible(segment_ids, i), self._mask(draw, i)
            d_tile, *shares = _gradients(tiles[i], key, value, visible, mask, upstream[i], means[i])
            d_key, d_value = (
                total + ops.cast(share, total.dtype)
                for total, share in zip((d_key, d_value), shares, strict=True)
            )
            return _put(tiles, i, d_tile), d_key, d_value

        zeros = [ops.zeros_like(x, dtype=wide(x.dtype)) for x in (key, value)]
        tiles, d_key, d_value = ops.fori_loop(0, self.count, add_tile, (self._cut(query), *zeros))
        return self._join(tiles), ops.cast(d_key, key.dtype), ops.cast(d_value, value.dtype)

    def _seen(self, *keys_and_values):
        return (x[:, :, : self.stop] for x in keys_and_values)

    def _visible(self, segment_ids, i):
        return visible_keys(segment_ids, self.start + i * self.tile, self.tile, self.stop)

    def _mask(self, draw, i):
        """Returns a function from the weights of tile `i` to the mask of dropout, or to None."""
        return (
            (lambda _: None)
            if draw is None
            else functools.partial(draw, number=self.start + i * self.tile)
        )

    def _cut(self, x):
        """`(batch, heads, queries, width)` -> `(tiles, batch, heads, tile, width)`."""
        x = ops.reshape(x, (-1, x.shape[1], self.count, self.tile, x.shape[-1]))
        return _arrange(x, "bhnld->nbhld")

    def _join(self, tiles):
        x = _arrange(tiles, "nbhld->bhnld")
        return ops.reshape(x, (-1, x.shape[1], self.count * self.tile, x.shape[-1]))


def _attend(query, key, value, visible, mask):
    """Returns the attention of one tile, before dropout's scale, and the mask of dropout."""
    weights = softmax(matmul(query, _arrange(key, "bhld->bhdl")), visible)
    keep = mask(weights)
    return matmul(_drop(weights, keep), value), keep


def _gradients(query, key, value, visible, mask, upstream, means):
    """Returns the gradients of a tile's queries and its share of those of keys and values.

    `dV = P^T dO, dP = dO V^T, dS = P (dP - mean), dQ = dS K, dK = dS^T Q` (Dao et al. 2022,
    appendix B.2), where dropout's mask is on the `P` of the first equation and on `dP`.
    """
    weights = softmax(matmul(query, _arrange(key, "bhld->bhdl")), visible)  # P
    keep = mask(weights)
    d_weights = _drop(matmul(upstream, _arrange(value, "bhld->bhdl")), keep)
    d_scores = ops.cast(weights, means.dtype) * (ops.cast(d_weights, means.dtype) - means)
    d_scores = ops.cast(d_scores, query.dtype)
    d_key = matmul(_arrange(d_scores, "bhqk->bhkq"), query)
    d_value = matmul(_arrange(_drop(weights, keep), "bhqk->bhkq"), upstream)
    return matmul(d_scores, key), d_key, d_value


def _weighted_means(attended, upstream):
    """Returns each query's sum over keys of weight times its gradient (Dao et al. 2022, B.2).

    It is that over the entries of the result times its gradient: `(batch, heads, length, 1)`.
    `attended` must be without a gradient of its own: on PyTorch a backward function that refers to
    its own output keeps itself alive, and all that it has saved.
    """
    dtype = wide(attended.dtype)
    return ops.sum(ops.cast(attended, dtype) * ops.cast(upstream, dtype), axis=-1, keepdims=True)


def _drop(weights, keep):
    return weights if keep is None else ops.where(keep, weights, 0)


def _merge(attended):
    """`(batch, heads, length, head_dim)` -> `(batch, length, hidden_dim)`."""
    _, num_heads, length, head_dim = attended.shape
    return ops.reshape(_arrange(attended, "bhld->blhd"), (-1, length, num_heads * head_dim))


def _split(merged, shape):
    """`(batch, length, hidden_dim)` -> `shape`, the inverse of `_merge`."""
    _, num_heads, length, head_dim = shape
    return _arrange(ops.reshape(merged, (-1, length, num_heads, head_dim)), "blhd->bhld")


def _put(tiles, i, tile):
    return ops.slice_update(tiles, (i, 0, 0, 0, 0), tile[None])


def _pad_end(x, axis, count):
    if not count:
        return x
    return ops.pad(x, [(0, count if i == axis else 0) for i in range(len(x.shape))])


def _arrange(x, axes):
    """Returns `x` with its axes in another order, by letters as in einsum: "blhd->bhld"."""
    source, target = axes.split("->")
    return ops.transpose(x, [source.index(axis) for axis in target])
