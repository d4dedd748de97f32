"""Causal self-attention, with and without a cache of keys and values."""

import functools
import math

import keras
import numpy as np
from keras import ops

from kgpt.kernels.platform import barrier, has_accelerator, is_jax_on_cpu
from kgpt.layers.dense import Dense
from kgpt.layers.dropout import Dropout
from kgpt.layers.embedding import normal_initializer

# From these lengths on, known when the graph is made, scores are made for some queries at a time: a
# quarter of them, or few. The backward pass makes the weights anew.
_MIDDLE, _LONG = 256, 1024
_QUERIES_AT_ONCE = 128
# From so many slots on, a step of generation may read only the quarters of a cache that are filled.
_CACHE_IN_QUARTERS = 128


@keras.saving.register_keras_serializable(package="kgpt")
class CausalSelfAttention(keras.layers.Layer):
    """Multi-head attention in which a position sees itself and the past.

    Query, key and value come from one linear map (GPT-1, section 2; Vaswani et al. 2017,
    section 3.2): `softmax(q k^T / sqrt(head_dim)) v`, heads side by side, then an output map.

    A position always sees itself, masked or not, so that no row is without a key and padding
    gives finite numbers in every dtype.

    Args:
        num_heads: int. Number of heads; must divide the width of the input.
        dropout: float in [0, 1). Share of attention weights dropped in training.
        kernel_initializer: initializer of the query-key-value map; N(0, 0.02) if None.
        output_initializer: initializer of the output map; `kernel_initializer` if None.
        query_key_norm: bool. RMS norm of each head's queries and keys, with a learned gain for each
            entry, before the product (Henry et al. 2020; Dehghani et al. 2023, section 2).
        rotary_positions: bool. Positions turn queries and keys; see `rotate`. Scores then depend on
            distances alone: a document in a packed window needs no positions of its own.

    Call arguments:
        hidden_states: float tensor `(batch, length, hidden_dim)`.
        padding_mask: optional bool or int tensor `(batch, length)`; True marks real tokens. Other
            tokens are seen by nobody but themselves.
        segment_ids: optional int tensor `(batch, length)`: a token sees only tokens with the same
            number.
        mask: the mask that Keras hands on from an earlier layer, used where `padding_mask` is
            not given.

    Returns:
        float tensor `(batch, length, hidden_dim)`.

    Raises:
        ValueError: if the width is not divisible by `num_heads`, and if `rotary_positions` meet an
            odd width of a head.
    """

    def __init__(
        self,
        num_heads: int,
        dropout: float = 0.0,
        kernel_initializer=None,
        output_initializer=None,
        query_key_norm: bool = False,
        rotary_positions: bool = False,
        **kwargs,
    ):
        super().__init__(**kwargs)
        self.num_heads = num_heads
        self.dropout = dropout
        self.query_key_norm = query_key_norm
        self.rotary_positions = rotary_positions
        self.kernel_initializer = normal_initializer(kernel_initializer)
        self.output_initializer = normal_initializer(output_initializer or kernel_initializer)
        self.dropout_layer = Dropout(dropout, dtype=self.dtype_policy, name="dropout")
        self.supports_masking = True

    def build(self, hidden_states_shape):
        hidden_dim = hidden_states_shape[-1]
        if hidden_dim is None or self.num_heads < 1 or hidden_dim % self.num_heads:
            raise ValueError(
                "num_heads must divide the width of the input. "
                f"Received: num_heads={self.num_heads}, width={hidden_dim}."
            )
        head_dim = hidden_dim // self.num_heads
        if self.rotary_positions and head_dim % 2:
            raise ValueError(
                "rotary_positions turn pairs of entries: a head's width must be even. Received: "
                f"num_heads={self.num_heads}, width={hidden_dim}, or {head_dim} for each head."
            )
        self.query_key_value = Dense(
            3 * hidden_dim,
            kernel_initializer=self.kernel_initializer,
            dtype=self.dtype_policy,
            name="query_key_value",
        )
        self.query_key_value.build(hidden_states_shape)
        self.output_projection = Dense(
            hidden_dim,
            kernel_initializer=self.output_initializer,
            dtype=self.dtype_policy,
            name="output_projection",
        )
        self.output_projection.build(hidden_states_shape)
        if self.query_key_norm:
            self.query_norm, self.key_norm = (
                keras.layers.RMSNormalization(dtype=self.dtype_policy, name=name)
                for name in ("query_norm", "key_norm")
            )
            self.query_norm.build((head_dim,))
            self.key_norm.build((head_dim,))
        self.built = True

    def call(self, hidden_states, padding_mask=None, segment_ids=None, mask=None, training=None):
        query, key, value = self._project(hidden_states)
        if padding_mask is None:
            padding_mask = mask
        dropout = self.dropout_layer if training and self.dropout else None
        return self._merge(attend(query, key, value, padding_mask, segment_ids, dropout))

    def call_with_cache(self, hidden_states, cache, cache_index, visible, position_ids=None):
        """Attention of new positions to a cache of earlier ones, for generation.

        Args:
            hidden_states: float tensor `(batch, new, hidden_dim)`: the new positions.
            cache: pair of float tensors `(batch, heads, slots, head_dim)`: keys and values; None
                for a new cache with just as many slots as there are new positions.
            cache_index: int scalar, or int tensor `(batch,)` for rows that differ. The slot of the
                first new position.
            visible: bool tensor `(batch, new, seen)`: which of the first `seen` slots a position
                sees, at least one; the slots after those are seen by nobody. Where `cache_index`
                is a scalar, no position may see the slots after the last new one.
            position_ids: int tensor `(batch, new)`: the new positions; used if they are rotary.

        Returns:
            The output `(batch, new, hidden_dim)` and the cache with the new keys and values in it.
        """
        query, keys, values = (
            ops.transpose(x, (0, 2, 1, 3)) for x in self._project(hidden_states, position_ids)
        )  # each (batch, heads, new, head_dim)
        if cache is not None:
            keys = _write(cache[0], keys, cache_index)
            values = _write(cache[1], values, cache_index)
        if cache is not None and _reads_by_quarters(query, keys, cache_index):
            attended = _attend_by_quarters(query, keys, values, visible, cache_index)
        else:
            attended = _attend_to_cache(query, keys, values, visible)
        return self._merge(ops.transpose(attended, (0, 2, 1, 3))), (keys, values)

    def _project(self, hidden_states, position_ids=None):
        """Queries, keys and values, each `(batch, length, heads, head_dim)`."""
        length, hidden_dim = ops.shape(hidden_states)[1], hidden_states.shape[-1]
        projected = self.query_key_value(hidden_states)  # (batch, length, 3 * hidden_dim)
        projected = ops.reshape(
            projected, (-1, length, 3, self.num_heads, hidden_dim // self.num_heads)
        )
        query, key, value = ops.unstack(projected, axis=2)
        if self.query_key_norm:
            query, key = self.query_norm(query), self.key_norm(key)
        if self.rotary_positions:
            position_ids = ops.arange(length) if position_ids is None else position_ids
            query, key = rotate(query, position_ids), rotate(key, position_ids)
        return query, key, value

    def _merge(self, attended):
        length = ops.shape(attended)[1]
        merged = ops.reshape(attended, (-1, length, attended.shape[-2] * attended.shape[-1]))
        return self.output_projection(merged)  # (batch, length, hidden_dim)

    def compute_output_shape(self, hidden_states_shape, **kwargs):
        return hidden_states_shape

    def get_config(self):
        return {
            **super().get_config(),
            "num_heads": self.num_heads,
            "dropout": self.dropout,
            "kernel_initializer": keras.initializers.serialize(self.kernel_initializer),
            "output_initializer": keras.initializers.serialize(self.output_initializer),
            "query_key_norm": self.query_key_norm,
            "rotary_positions": self.rotary_positions,
        }


def _visible(padding_mask, segment_ids):
    """Which keys each query may see beside the causal rule: `(batch, 1, query, key)`, or None."""
    visible = None
    if padding_mask is not None:
        padding_mask = ops.cast(padding_mask, "bool")
        length = ops.shape(padding_mask)[1]
        itself = ops.cast(ops.eye(length), "bool")
        visible = ops.logical_or(ops.expand_dims(padding_mask, 1), itself)
    if segment_ids is not None:
        same = ops.equal(segment_ids[:, :, None], segment_ids[:, None, :])
        visible = same if visible is None else ops.logical_and(visible, same)
    return None if visible is None else ops.expand_dims(visible, 1)


def _write(cache, new, index):
    """The cache `(batch, heads, slots, head_dim)` with new positions from slot `index` on."""
    if len(getattr(index, "shape", ())) == 0:
        if keras.config.backend() == "torch":  # Keras's slice_update would be 30 operations
            slots = ops.arange(new.shape[2], dtype="int64") + index
            return cache.index_copy(2, slots, new)
        return ops.slice_update(cache, (0, 0, index, 0), new)
    # Rows differ. A product with zeros and ones selects; all formats of `kgpt.convert` have it.
    new_slots = ops.expand_dims(index, 1) + ops.arange(0, ops.shape(new)[2], dtype="int32")
    slots = ops.expand_dims(ops.arange(0, ops.shape(cache)[2], dtype="int32"), 1)
    goes_to = ops.equal(slots, ops.expand_dims(new_slots, 1))  # (batch, slots, new)
    goes_to = ops.expand_dims(ops.cast(goes_to, new.dtype), 1)
    is_new = ops.sum(goes_to, axis=-1, keepdims=True) > 0  # (batch, 1, slots, 1)
    return ops.where(is_new, ops.matmul(goes_to, new), cache)


def _attend_to_cache(query, keys, values, visible):
    """Attention of `(batch, heads, new, head_dim)`, to the slots of a cache, dropout aside."""
    seen = visible.shape[-1]
    if seen != keys.shape[2]:
        keys, values = keys[:, :, :seen], values[:, :, :seen]
    if keras.config.backend() == "torch":
        from torch.nn.functional import scaled_dot_product_attention

        # Keras's way to it would copy a part of a cache.
        visible = ops.expand_dims(visible, 1)
        return scaled_dot_product_attention(query, keys, values, attn_mask=visible)
    new = query.shape[2]
    if _is_known(new, _LONG):
        parts = [slice(i, i + _QUERIES_AT_ONCE) for i in range(0, new, _QUERIES_AT_ONCE)]
        parts = [_attend_to_cache(query[:, :, i], keys, values, visible[:, i]) for i in parts]
        return ops.concatenate(parts, axis=2)
    query = ops.transpose(query * (1 / math.sqrt(query.shape[-1])), (0, 1, 3, 2))
    # Keys first: the transpose is of the scores then, which are small, and not of the cache.
    scores = ops.transpose(ops.matmul(keys, query), (0, 1, 3, 2))
    return ops.matmul(_softmax(scores, ops.expand_dims(visible, 1)), values)


def _reads_by_quarters(query, keys, index):
    """Whether XLA on a CPU is to read a cache as far as it is written.

    Its shapes are fixed, so a part for each quarter of the slots is compiled. They pay twice: half
    of the slots are empty on average; and without them XLA joins the writing of the cache, for one
    row, with the reading, for which it copies the whole.
    """
    is_one = query.shape[2] == 1 and len(getattr(index, "shape", ())) == 0
    by_xla_on_cpu = keras.config.backend() != "torch" and not has_accelerator()
    return is_one and by_xla_on_cpu and _is_known(keys.shape[2], _CACHE_IN_QUARTERS)


def _attend_by_quarters(query, keys, values, visible, index):
    """`_attend_to_cache` of the position in slot `index`, without the quarters after it."""
    ends = ends_of_quarters(keys.shape[2])

    def attend_up_to(end):
        return lambda *args: _attend_to_cache(*args, visible[:, :, :end])

    quarter = ops.sum(ops.cast(index >= np.array(ends[:-1], "int32"), "int32"))
    return ops.switch(quarter, [attend_up_to(end) for end in ends], query, keys, values)


def ends_of_quarters(slots: int) -> list[int]:
    """Where the quarters of a cache end."""
    return [slots * quarter // 4 for quarter in (1, 2, 3, 4)]


def rotate(x, position_ids):
    """Turns pairs of entries by angles that grow with the position (Su et al. 2021, section 3.2.2).

    Entries `i` and `i + d/2` of `d` are a pair; at position `m` it is turned by
    `m 10000^(-2i/d)`. The product of two such vectors depends on the distance of their positions.

    Args:
        x: float tensor `(batch, length, heads, head_dim)`, `head_dim` even.
        position_ids: int tensor `(length,)` or `(batch, length)`.

    Returns:
        A tensor like `x`. Angles are float32 whatever the dtype is.
    """
    half = x.shape[-1] // 2
    frequencies = (10000.0 ** (-np.arange(half) / half)).astype("float32")
    angles = ops.cast(position_ids, "float32")[..., None, None] * frequencies
    cos, sin = ops.cos(angles), ops.sin(angles)  # (length, 1, half), or with a batch
    first, second = ops.split(ops.cast(x, "float32"), 2, axis=-1)
    turned = ops.concatenate([first * cos - second * sin, second * cos + first * sin], axis=-1)
    return ops.cast(turned, x.dtype)


def attend(query, key, value, padding_mask=None, segment_ids=None, dropout=None):
    """Causal attention, by the fastest way that the backend offers.

    Args:
        query: float tensor `(batch, length, heads, head_dim)`; `key` and `value` likewise.
        key: see `query`.
        value: see `query`.
        padding_mask: as for `CausalSelfAttention`.
        segment_ids: as for `CausalSelfAttention`.
        dropout: optional `kgpt.layers.dropout.Dropout` for the attention weights.

    Returns:
        float tensor `(batch, length, heads, head_dim)`.
    """
    if dropout is None and _fused_attention_is_fastest():
        visible = _visible(padding_mask, segment_ids)
        return ops.dot_product_attention(query, key, value, mask=visible, is_causal=True)
    for at_least, attend_in_parts in ((_LONG, attend_in_blocks), (_MIDDLE, attend_in_quarters)):
        if _is_known(query.shape[1], at_least):
            return attend_in_parts(query, key, value, padding_mask, segment_ids, dropout)
    visible = _visible(padding_mask, segment_ids)
    positions = ops.arange(ops.shape(query)[1])
    causal = positions[:, None] >= positions[None, :]  # (length, length)
    visible = causal[None, None] if visible is None else ops.logical_and(visible, causal)
    return attend_explicitly(query, key, value, visible, dropout)


def _is_known(length, at_least):
    """Whether a length is known, and not None or a symbol of JAX's export, and so long."""
    return isinstance(length, int) and length >= at_least


@functools.cache
def _fused_attention_is_fastest():
    """The one place where the choice of attention depends on the backend.

    PyTorch has a fused kernel on every device and JAX has one on accelerators. JAX on a CPU and
    TensorFlow are faster with plain matrix products.
    """
    if keras.config.backend() == "jax":
        return not is_jax_on_cpu()
    return keras.config.backend() == "torch"


def attend_explicitly(query, key, value, visible, dropout=None):
    """`softmax(q k^T / sqrt(head_dim)) v` as written (Vaswani et al. 2017, equation 1).

    The softmax is taken in float32 whatever the compute dtype is. The arguments are those of
    `attend`, but for `visible`, a bool tensor `(batch, 1, length, length)`, the whole rule of what
    a position sees.
    """
    head_dim = query.shape[-1]
    query = ops.transpose(query * (1 / math.sqrt(head_dim)), (0, 2, 1, 3))
    key = ops.transpose(key, (0, 2, 3, 1))  # (batch, heads, head_dim, key length)
    value = ops.transpose(value, (0, 2, 1, 3))
    weights = _softmax(ops.matmul(query, key), visible)  # (batch, heads, query, key)
    if dropout is not None:
        weights = dropout(weights, training=True)
    return ops.transpose(ops.matmul(weights, value), (0, 2, 1, 3))


def attend_in_quarters(query, key, value, padding_mask=None, segment_ids=None, dropout=None):
    """The same attention for lengths in between, with a gradient of its own.

    Each quarter of the queries meets the keys up to its own end only, which saves 3/8 of time and
    memory. The backward pass makes the weights anew; what is kept of them is which ones dropout
    keeps.

    Args:
        query: as for `attend`, of known length.
        key: see `query`.
        value: see `query`.
        padding_mask: as for `attend`.
        segment_ids: as for `attend`.
        dropout: as for `attend`.

    Returns:
        float tensor `(batch, length, heads, head_dim)`.
    """
    length, num_heads, head_dim = value.shape[1:]
    size = math.ceil(length / 4)
    quarters = [slice(start, min(start + size, length)) for start in range(0, length, size)]
    visible = [
        _visible_in_block(padding_mask, segment_ids, part.stop, part.start, part.stop - part.start)
        for part in quarters
    ]
    draw = None if dropout is None else _repeatable_draw(dropout)

    def weights_of(query, key, its_visible):
        return _softmax(ops.matmul(query, _transpose(key)), its_visible)

    def drop(weights, is_kept):
        return weights if is_kept is None else ops.where(is_kept, weights, 0)

    def to_scale(x):  # of the results, which are fewer than the weights
        return x if dropout is None else x * dropout.scale

    @ops.custom_gradient
    def attention(query, key, value):
        """All `(batch, heads, length, head_dim)`, queries scaled; the result is `_merged`."""
        attended, kept = [], []
        for part, its_visible in zip(quarters, visible, strict=True):
            weights = weights_of(query[:, :, part], key[:, :, : part.stop], its_visible)
            kept.append(None if draw is None else draw(weights, part.start))
            attended.append(ops.matmul(drop(weights, kept[-1]), value[:, :, : part.stop]))
        # Merged here: the output map keeps this very array too.
        attended = _merged(to_scale(ops.concatenate(attended, axis=2)))
        known = ops.stop_gradient(attended)

        def gradient(*args, upstream=None):
            upstream = ops.cast(args[0] if upstream is None else upstream, query.dtype)
            shape = (-1, length, num_heads, head_dim)
            result, upstream = (
                ops.transpose(ops.reshape(x, shape), (0, 2, 1, 3))
                for x in (barrier(known, after=upstream), upstream)
            )
            means = _mean_gradients(result, upstream)
            upstream = event = to_scale(upstream)
            d_query, d_key, d_value = [], [], []
            for part, its_visible, is_kept in zip(quarters, visible, kept, strict=True):
                q = barrier(query, after=event)[:, :, part]  # one quarter after the other
                k, v = (barrier(x, after=event)[:, :, : part.stop] for x in (key, value))
                d_attended = upstream[:, :, part]
                weights = weights_of(q, k, barrier(its_visible, after=event))
                d_weights = drop(ops.matmul(d_attended, _transpose(v)), is_kept)
                d_scores = ops.cast(d_weights, "float32") - means[:, :, part]
                event = d_scores = ops.cast(ops.cast(weights, "float32") * d_scores, query.dtype)
                d_query.append(ops.matmul(d_scores, k))
                rest = [(0, 0), (0, 0), (0, length - part.stop), (0, 0)]
                d_key.append(ops.pad(ops.matmul(_transpose(d_scores), q), rest))
                weights = drop(weights, is_kept)
                d_value.append(ops.pad(ops.matmul(_transpose(weights), d_attended), rest))
            return ops.concatenate(d_query, axis=2), sum(d_key), sum(d_value)

        return attended, gradient

    query = query * (1 / math.sqrt(query.shape[-1]))
    attended = attention(*(ops.transpose(x, (0, 2, 1, 3)) for x in (query, key, value)))
    return ops.reshape(attended, (-1, length, num_heads, head_dim))


def _merged(attended):
    """`(batch, heads, length, head_dim)` as `(batch, length, hidden_dim)`."""
    _, num_heads, length, head_dim = attended.shape
    return ops.reshape(ops.transpose(attended, (0, 2, 1, 3)), (-1, length, num_heads * head_dim))


def _mean_gradients(attended, upstream):
    """For each query the sum over keys of weight times its gradient (Dao et al. 2022, B.2).

    It is that over the entries of result times its gradient: `(batch, heads, length, 1)`, float32.
    `attended` must be without a gradient of its own: on PyTorch a function of the backward pass
    that holds on to its own output keeps itself alive, and all that it holds.
    """
    products = ops.cast(attended, "float32") * ops.cast(upstream, "float32")
    return ops.sum(products, axis=-1, keepdims=True)


def attend_in_blocks(query, key, value, padding_mask=None, segment_ids=None, dropout=None):
    """The same attention for long sequences, in memory that grows linearly with the length.

    Weights are made for a block of queries at a time and dropped again; the backward pass makes
    them anew, dropout included (Rabe and Staats 2021; Dao et al. 2022, section 3.1). What is kept
    are queries, keys and values. Each quarter of the queries meets the keys up to its own end
    only, which saves 3/8 of the arithmetic.

    Args:
        query: as for `attend`, of known length.
        key: see `query`.
        value: see `query`.
        padding_mask: as for `attend`.
        segment_ids: as for `attend`.
        dropout: as for `attend`.

    Returns:
        float tensor `(batch, length, heads, head_dim)`.
    """
    length = query.shape[1]
    count = math.ceil(length / _QUERIES_AT_ONCE)
    padded = count * _QUERIES_AT_ONCE  # keys added at the end are seen by no real query

    def pad(x):
        return ops.pad(x, [(0, 0), (0, padded - length)] + [(0, 0)] * (len(x.shape) - 2))

    if padding_mask is not None:
        padding_mask = pad(ops.cast(padding_mask, "int32"))
    if segment_ids is not None:
        segment_ids = pad(segment_ids)
    key, value = (ops.transpose(pad(x), (0, 2, 1, 3)) for x in (key, value))
    # Not in the loop: there TensorFlow joins scale, product and mask, and takes 100 times as long.
    query = query * (1 / math.sqrt(query.shape[-1]))
    query = ops.reshape(pad(query), (-1, count, _QUERIES_AT_ONCE, *query.shape[2:]))
    query = ops.transpose(query, (1, 0, 3, 2, 4))  # (blocks, batch, heads, block, head_dim)
    draw = None if dropout is None else _repeatable_draw(dropout)
    quarter = math.ceil(count / 4)
    attended = []
    for first in range(0, count, quarter):
        end = min(first + quarter, count) * _QUERIES_AT_ONCE
        visible = functools.partial(
            _visible_in_block, padding_mask, segment_ids, end, length=_QUERIES_AT_ONCE
        )
        attended.append(
            _attend_quarter(
                query[first : first + quarter],
                key[:, :, :end],
                value[:, :, :end],
                first * _QUERIES_AT_ONCE,
                visible,
                dropout,
                draw,
            )
        )
    attended = ops.transpose(ops.concatenate(attended, axis=0), (1, 0, 3, 2, 4))
    return ops.reshape(attended, (-1, padded, *attended.shape[3:]))[:, :length]


def _attend_quarter(query, key, value, start, visible, dropout, draw):
    """Attention of some blocks of queries to all keys given, with a gradient of its own.

    Args:
        query: float tensor `(blocks, batch, heads, block, head_dim)`, scaled.
        key: float tensor `(batch, heads, keys, head_dim)`; `value` likewise.
        value: see `key`.
        start: int. The position of the first query; the first key's is 0.
        visible: function from the position of a block to what its queries see.
        dropout: as for `attend`.
        draw: what `_repeatable_draw` made of it, or None.
    """

    def weights_of(block, key, i):
        """A block's weights `(batch, heads, block, keys)`, and dropout as a function of such."""
        position = start + i * _QUERIES_AT_ONCE
        scores = ops.matmul(block, _transpose(key))
        weights = _softmax(ops.cast(scores, "float32"), visible(position))
        if draw is None:
            return weights, lambda x: x
        return weights, functools.partial(dropout.apply, is_kept=draw(weights, position))

    def put(x, i, block):
        return ops.slice_update(x, (i, 0, 0, 0, 0), block[None])

    # A block's result takes the block's place. So each step waits for the one before it, and
    # TensorFlow does not run several at once.
    @ops.custom_gradient
    def attention(query, key, value):
        def attend_block(i, blocks):
            weights, drop = weights_of(blocks[i], key, i)
            return put(blocks, i, ops.matmul(ops.cast(drop(weights), value.dtype), value))

        attended = ops.fori_loop(0, query.shape[0], attend_block, query)
        known = ops.stop_gradient(attended)

        def gradient(*args, upstream=None):
            upstream = args[0] if upstream is None else upstream
            means = _mean_gradients(known, upstream)

            def add_block(i, state):
                blocks, d_key, d_value = state
                block, d_attended = ops.split(blocks[i], 2, axis=-1)
                weights, drop = weights_of(block, key, i)
                d_weights = ops.matmul(d_attended, _transpose(value))
                d_weights = drop(ops.cast(d_weights, "float32"))
                d_scores = ops.cast(weights * (d_weights - means[i]), key.dtype)
                d_key_here = ops.matmul(_transpose(d_scores), block)
                dropped = ops.cast(drop(weights), value.dtype)
                d_value_here = ops.matmul(_transpose(dropped), d_attended)
                d_key = d_key + ops.cast(d_key_here, "float32")
                d_value = d_value + ops.cast(d_value_here, "float32")
                d_block = ops.concatenate([ops.matmul(d_scores, key), d_attended], axis=-1)
                return put(blocks, i, d_block), d_key, d_value

            both = ops.concatenate([query, ops.cast(upstream, query.dtype)], axis=-1)
            zeros = [ops.zeros_like(x, dtype="float32") for x in (key, value)]
            both, d_key, d_value = ops.fori_loop(0, query.shape[0], add_block, (both, *zeros))
            return (
                both[..., : query.shape[-1]],
                ops.cast(d_key, key.dtype),
                ops.cast(d_value, value.dtype),
            )

        return attended, gradient

    return attention(query, key, value)


def _transpose(x):
    return ops.transpose(x, (0, 1, 3, 2))


def _visible_in_block(padding_mask, segment_ids, keys, position, length):
    """Which of the first `keys` keys some queries see, the causal rule included.

    Args:
        padding_mask: optional bool or int tensor `(batch, all keys)`.
        segment_ids: optional int tensor `(batch, all keys)`.
        keys: int. Their number.
        position: int scalar. The position of the first query.
        length: int. The number of queries.

    Returns:
        bool tensor `(batch or 1, 1, length, keys)`.
    """
    queries = position + ops.arange(length, dtype="int32")
    distance = queries[:, None] - ops.arange(keys, dtype="int32")
    visible = (distance >= 0)[None]
    if padding_mask is not None:
        real = ops.cast(padding_mask[:, None, :keys], "bool")
        visible = ops.logical_and(visible, ops.logical_or(real, distance == 0))
    if segment_ids is not None:
        of_queries = ops.take(segment_ids, queries, axis=1)[:, :, None]
        visible = ops.logical_and(visible, ops.equal(of_queries, segment_ids[:, None, :keys]))
    return ops.expand_dims(visible, 1)


def _repeatable_draw(dropout):
    """A function of weights and their position: which of them dropout keeps, the same each time."""
    generator = dropout.seed_generator
    seed = generator.next()

    def draw(weights, position):
        offset = position * ops.array([1_000_003, 0], dtype="int32")
        # TensorFlow would draw for ten blocks at once.
        block_seed = seed + ops.cast(barrier(offset, after=weights), seed.dtype)
        with keras.StatelessScope(state_mapping=[(generator.state, block_seed)]):
            return dropout.draw(weights, generator)

    return draw


def _softmax(scores, visible):
    """Softmax over the visible keys, in float32 whatever the dtype is."""
    weights = ops.softmax(ops.cast(scores, "float32") + ops.where(visible, 0.0, -1e9))
    return ops.cast(weights, scores.dtype)
