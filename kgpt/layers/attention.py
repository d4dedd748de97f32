"""Causal self-attention, with and without a cache of keys and values."""

import functools
import math

import keras
from keras import ops

from kgpt.layers.embedding import normal_initializer


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
        ValueError: if the width is not divisible by `num_heads`.
    """

    def __init__(
        self,
        num_heads: int,
        dropout: float = 0.0,
        kernel_initializer=None,
        output_initializer=None,
        **kwargs,
    ):
        super().__init__(**kwargs)
        self.num_heads = num_heads
        self.dropout = dropout
        self.kernel_initializer = normal_initializer(kernel_initializer)
        self.output_initializer = normal_initializer(output_initializer or kernel_initializer)
        self.dropout_layer = keras.layers.Dropout(dropout, dtype=self.dtype_policy, name="dropout")
        self.supports_masking = True

    def build(self, hidden_states_shape):
        hidden_dim = hidden_states_shape[-1]
        if hidden_dim is None or self.num_heads < 1 or hidden_dim % self.num_heads:
            raise ValueError(
                "num_heads must divide the width of the input. "
                f"Received: num_heads={self.num_heads}, width={hidden_dim}."
            )
        self.query_key_value = keras.layers.Dense(
            3 * hidden_dim,
            kernel_initializer=self.kernel_initializer,
            dtype=self.dtype_policy,
            name="query_key_value",
        )
        self.query_key_value.build(hidden_states_shape)
        self.output_projection = keras.layers.Dense(
            hidden_dim,
            kernel_initializer=self.output_initializer,
            dtype=self.dtype_policy,
            name="output_projection",
        )
        self.output_projection.build(hidden_states_shape)
        self.built = True

    def call(self, hidden_states, padding_mask=None, segment_ids=None, mask=None, training=None):
        query, key, value = self._project(hidden_states)
        if padding_mask is None:
            padding_mask = mask
        dropout = self.dropout_layer if training and self.dropout else None
        attended = attend(query, key, value, _visible(padding_mask, segment_ids), dropout)
        return self._merge(attended)

    def call_with_cache(self, hidden_states, cache, cache_index, visible):
        """Attention of new positions to a cache of earlier ones, for generation.

        Args:
            hidden_states: float tensor `(batch, new, hidden_dim)`: the new positions.
            cache: pair of float tensors `(batch, heads, slots, head_dim)`: keys and values; None
                for a new cache with just as many slots as there are new positions.
            cache_index: int scalar, or int tensor `(batch,)` for rows that differ. The slot of the
                first new position.
            visible: bool tensor `(batch, new, slots)`: which slots a new position sees.

        Returns:
            The output `(batch, new, hidden_dim)` and the cache with the new keys and values in it.
        """
        query, keys, values = (
            ops.transpose(x, (0, 2, 1, 3)) for x in self._project(hidden_states)
        )  # each (batch, heads, new, head_dim)
        if cache is not None:
            keys = _write(cache[0], keys, cache_index)
            values = _write(cache[1], values, cache_index)
        query = ops.transpose(query * (1 / math.sqrt(query.shape[-1])), (0, 1, 3, 2))
        # Keys first: the transpose is of the scores then, which are small, and not of the cache.
        scores = ops.transpose(ops.matmul(keys, query), (0, 1, 3, 2))
        attended = ops.matmul(_softmax(scores, ops.expand_dims(visible, 1)), values)
        return self._merge(ops.transpose(attended, (0, 2, 1, 3))), (keys, values)

    def _project(self, hidden_states):
        """Queries, keys and values, each `(batch, length, heads, head_dim)`."""
        length, hidden_dim = ops.shape(hidden_states)[1], hidden_states.shape[-1]
        projected = self.query_key_value(hidden_states)  # (batch, length, 3 * hidden_dim)
        projected = ops.reshape(
            projected, (-1, length, 3, self.num_heads, hidden_dim // self.num_heads)
        )
        return projected[:, :, 0], projected[:, :, 1], projected[:, :, 2]

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
        return ops.slice_update(cache, (0, 0, index, 0), new)
    # Rows differ. A product with zeros and ones selects; all formats of `kgpt.convert` have it.
    new_slots = ops.expand_dims(index, 1) + ops.arange(0, ops.shape(new)[2], dtype="int32")
    slots = ops.expand_dims(ops.arange(0, ops.shape(cache)[2], dtype="int32"), 1)
    goes_to = ops.equal(slots, ops.expand_dims(new_slots, 1))  # (batch, slots, new)
    goes_to = ops.expand_dims(ops.cast(goes_to, new.dtype), 1)
    is_new = ops.sum(goes_to, axis=-1, keepdims=True) > 0  # (batch, 1, slots, 1)
    return ops.where(is_new, ops.matmul(goes_to, new), cache)


def attend(query, key, value, visible=None, dropout=None):
    """Causal attention, by the fastest way that the backend offers.

    Args:
        query: float tensor `(batch, length, heads, head_dim)`; `key` and `value` likewise.
        key: see `query`.
        value: see `query`.
        visible: optional bool tensor `(batch, 1, length, length)`: further limits to what a
            position sees.
        dropout: optional function applied to the attention weights.

    Returns:
        float tensor `(batch, length, heads, head_dim)`.
    """
    if dropout is None and _fused_attention_is_fastest():
        return ops.dot_product_attention(query, key, value, mask=visible, is_causal=True)
    positions = ops.arange(ops.shape(query)[1])
    causal = positions[:, None] >= positions[None, :]  # (length, length)
    visible = causal[None, None] if visible is None else ops.logical_and(visible, causal)
    return attend_explicitly(query, key, value, visible, dropout)


@functools.cache
def _fused_attention_is_fastest():
    """The one place where the choice of attention depends on the backend.

    PyTorch has a fused kernel on every device and JAX has one on accelerators. JAX on a CPU and
    TensorFlow are faster with plain matrix products.
    """
    if keras.config.backend() == "jax":
        return not keras.distribution.list_devices()[0].startswith("cpu")
    return keras.config.backend() == "torch"


def attend_explicitly(query, key, value, visible, dropout=None):
    """`softmax(q k^T / sqrt(head_dim)) v` as written (Vaswani et al. 2017, equation 1).

    The softmax is taken in float32 whatever the compute dtype is. The arguments are those of
    `attend`, but `visible` is the whole rule and the number of keys may differ from the number of
    queries.
    """
    head_dim = query.shape[-1]
    query = ops.transpose(query * (1 / math.sqrt(head_dim)), (0, 2, 1, 3))
    key = ops.transpose(key, (0, 2, 3, 1))  # (batch, heads, head_dim, key length)
    value = ops.transpose(value, (0, 2, 1, 3))
    weights = _softmax(ops.matmul(query, key), visible)  # (batch, heads, query, key)
    if dropout is not None:
        weights = dropout(weights, training=True)
    return ops.transpose(ops.matmul(weights, value), (0, 2, 1, 3))


def _softmax(scores, visible):
    """Softmax over the visible keys, in float32 whatever the dtype is."""
    weights = ops.softmax(ops.cast(scores, "float32") + ops.where(visible, 0.0, -1e9))
    return ops.cast(weights, scores.dtype)
