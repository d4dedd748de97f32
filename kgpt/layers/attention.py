"""Causal self-attention, with and without a cache of keys and values."""

import keras
from keras import ops

from kgpt.arguments import FixedOnceBuilt, checked
from kgpt.distribution import pin
from kgpt.initializers import normal_initializer
from kgpt.kernels import cache as kv_cache
from kgpt.kernels.attention import attend, attention_scores
from kgpt.kernels.platform import check_shape_of
from kgpt.kernels.rotary import rotate
from kgpt.layers.dense import built_dense
from kgpt.layers.dropout import Dropout
from kgpt.layers.padding import from_right_padding, to_right_padding


@keras.saving.register_keras_serializable(package="kgpt")
class CausalSelfAttention(FixedOnceBuilt, keras.layers.Layer):
    """Multi-head attention in which a position sees itself and the past.

    Query, key and value come from one linear map (GPT-1, section 2; Vaswani et al. 2017,
    section 3.2): `softmax(q k^T / sqrt(head_dim)) v`, heads side by side, then an output map.

    Padding may stand anywhere in a row; no real token sees it, and its own outputs are finite.

    Args:
        num_heads: int. Number of heads; must divide the width of the input.
        dropout: float in [0, 1). Share of attention weights dropped in training.
        attention_dropout: the same, by the name that it has in `DecoderBlock`; `dropout` if None.
        kernel_initializer: initializer of the query-key-value map; N(0, 0.02) if None.
        output_initializer: initializer of the output map; `kernel_initializer` if None.
        query_key_norm: bool. RMS norm of each head's queries and keys, with a learned gain for each
            entry, before the product (Henry et al. 2020; Dehghani et al. 2023, section 2).
        rotary_positions: bool. Positions rotate queries and keys (`kgpt.kernels.rotary`). Scores
            then depend on distances alone: a document in a packed window needs no positions of
            its own.
        **kwargs: `name`, `dtype` and `trainable`, as for `keras.layers.Layer`.

    Call arguments:
        hidden_states: float tensor `(batch, length, hidden_dim)`.
        padding_mask: optional bool or int tensor `(batch, length)`; True marks real tokens, which
            rotary positions count.
        segment_ids: optional int tensor `(batch, length)`: a token sees only tokens with the same
            number.
        mask: the mask that Keras hands on from an earlier layer, used where `padding_mask` is
            not given.
        return_attention_scores: bool. Whether to return the attention weights, without dropout,
            too: each head's share of each key in each query, which sum to 1.

    Returns:
        float tensor `(batch, length, hidden_dim)`; with `return_attention_scores` a pair of it and
        a float tensor `(batch, heads, query, key)`.

    Raises:
        ValueError: for values out of range, if the width is not divisible by `num_heads`, and if
            `rotary_positions` meet an odd width of a head.
        TypeError: for keywords that are no arguments, with the one that was probably meant.

    Example:
        attention = kgpt.layers.CausalSelfAttention(num_heads=2, dropout=0.1)
        hidden_states = attention(np.ones((1, 5, 12), "float32"))
    """

    @checked(passes_on=keras.layers.Layer)
    def __init__(
        self,
        num_heads: int,
        dropout: float = 0.0,
        kernel_initializer=None,
        output_initializer=None,
        query_key_norm: bool = False,
        rotary_positions: bool = False,
        attention_dropout: float | None = None,
        **kwargs,
    ):
        super().__init__(**kwargs)
        self.input_spec = keras.InputSpec(ndim=3)
        self.num_heads = num_heads
        self.dropout = dropout if attention_dropout is None else attention_dropout
        self.query_key_norm = query_key_norm
        self.rotary_positions = rotary_positions
        self.kernel_initializer = normal_initializer(kernel_initializer)
        self.output_initializer = normal_initializer(output_initializer or kernel_initializer)
        self.dropout_layer = Dropout(self.dropout, dtype=self.dtype_policy, name="dropout")
        self.supports_masking = True

    def build(self, hidden_states_shape):
        """Makes the projections."""
        shape, dim = hidden_states_shape, hidden_states_shape[-1]
        if dim is None or dim % self.num_heads:
            raise ValueError(
                "num_heads must divide the width of the input. "
                f"Received: num_heads={self.num_heads}, width={dim}."
            )
        head_dim = dim // self.num_heads
        if self.rotary_positions and head_dim % 2:
            raise ValueError(
                "rotary_positions need an even width of heads, rotated in pairs. Received: "
                f"num_heads={self.num_heads}, width={dim}, or {head_dim} for each head."
            )
        inner, last = self.kernel_initializer, self.output_initializer
        self.query_key_value = built_dense(self, 3 * dim, shape, inner, "query_key_value", "thirds")
        self.output_projection = built_dense(self, dim, shape, last, "output_projection", "inputs")
        if self.query_key_norm:
            part = {"dtype": self.dtype_policy, "trainable": self.trainable}
            self.query_norm = keras.layers.RMSNormalization(name="query_norm", **part)
            self.key_norm = keras.layers.RMSNormalization(name="key_norm", **part)
            self.query_norm.build((head_dim,))
            self.key_norm.build((head_dim,))
        self.built = True

    def call(
        self,
        hidden_states,
        padding_mask=None,
        segment_ids=None,
        mask=None,
        training=None,
        return_attention_scores=False,
    ):
        """Returns each position's view of itself and the past, `(batch, length, hidden_dim)`."""
        padding_mask = mask if padding_mask is None else padding_mask
        check_shape_of("hidden_states", hidden_states, 2, segment_ids=segment_ids)
        hidden_states = to_right_padding(hidden_states, padding_mask)
        segment_ids = to_right_padding(segment_ids, padding_mask)
        query, key, value = self._project(hidden_states)
        dropout = self.dropout if training else 0.0
        seed = self.dropout_layer.seed_generator if dropout else None
        attended = self._merge(attend(query, key, value, segment_ids, dropout, seed))
        attended = from_right_padding(attended, padding_mask)
        if not return_attention_scores:
            return attended
        scores = attention_scores(query, key, segment_ids)  # (batch, heads, query, key)
        for _ in ("query", "key"):  # each in turn becomes the second axis
            scores = from_right_padding(ops.transpose(scores, (0, 2, 3, 1)), padding_mask)
        return attended, ops.transpose(scores, (0, 2, 3, 1))

    def call_with_cache(self, hidden_states, cache, cache_index, visible, position_ids=None):
        """Attends from new positions to a cache of earlier ones, for generation.

        Args:
            hidden_states: float tensor `(batch, new, hidden_dim)`: the new positions.
            cache: pair of float tensors `(batch, heads, slots, head_dim)`: keys and values; None
                for a new cache with as many slots as there are new positions.
            cache_index: int scalar, or int tensor `(batch,)` for rows that differ. The slot of the
                first new position.
            visible: bool tensor `(batch, new, seen)`: which of the first `seen` slots a position
                sees, at least one. Where `cache_index` is a scalar, no position may see the slots
                after the last new one.
            position_ids: int tensor `(batch, new)`: the new positions; used if they are rotary.

        Returns:
            The output `(batch, new, hidden_dim)` and the cache with the new keys and values in it.

        Example:
            attention = kgpt.layers.CausalSelfAttention(num_heads=2)
            attention.build((None, None, 12))
            visible = np.tri(5, dtype=bool)[None]  # each position sees itself and the past
            h = keras.ops.ones((1, 5, 12))
            h, cache = attention.call_with_cache(h, None, 0, visible)
        """
        query, keys, values = (
            ops.transpose(x, (0, 2, 1, 3)) for x in self._project(hidden_states, position_ids)
        )  # each (batch, heads, new, head_dim)
        if cache is not None:
            keys = kv_cache.write(cache[0], keys, cache_index)
            values = kv_cache.write(cache[1], values, cache_index)
        attended = kv_cache.attend(query, keys, values, visible, cache_index)
        return self._merge(ops.transpose(attended, (0, 2, 1, 3))), (keys, values)

    def _project(self, hidden_states, position_ids=None):
        """Returns queries, keys and values, each `(batch, length, heads, head_dim)`."""
        length, head_dim = ops.shape(hidden_states)[1], hidden_states.shape[-1] // self.num_heads
        projected = self.query_key_value(hidden_states)  # (batch, length, 3 * hidden_dim)
        projected = ops.reshape(projected, (-1, length, 3, self.num_heads, head_dim))
        query, key, value = ops.unstack(pin(projected, "batch", None, None, "model"), axis=2)
        if self.query_key_norm:
            query, key = self.query_norm(query), self.key_norm(key)
        if self.rotary_positions:
            if position_ids is None:
                position_ids = ops.arange(length, dtype="int32")
            query, key = rotate(query, position_ids), rotate(key, position_ids)
        return query, key, value

    def _merge(self, attended):
        merged = ops.reshape(attended, (-1, ops.shape(attended)[1], self.output_projection.units))
        return self.output_projection(merged)  # (batch, length, hidden_dim)

    def compute_output_spec(self, hidden_states, *args, return_attention_scores=False, **kwargs):
        """Returns the shape and the dtype of the output."""
        attended = keras.KerasTensor(hidden_states.shape, self.compute_dtype)
        shape = (attended.shape[0], self.num_heads, *2 * attended.shape[1:2])
        scores = keras.KerasTensor(shape, self.compute_dtype)
        return (attended, scores) if return_attention_scores else attended

    def compute_output_shape(self, hidden_states_shape, **kwargs):
        """Returns the shape of the output."""
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
