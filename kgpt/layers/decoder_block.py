"""One block of a GPT: attention, feed-forward, and what joins them."""

import keras

from kgpt.arguments import FixedOnceBuilt, checked
from kgpt.initializers import normal_initializer
from kgpt.kernels.recompute import recomputed
from kgpt.layers.attention import CausalSelfAttention
from kgpt.layers.dropout import Dropout
from kgpt.layers.feed_forward import FeedForward
from kgpt.layers.layer_norm import LayerNorm


@keras.saving.register_keras_serializable(package="kgpt")
class DecoderBlock(FixedOnceBuilt, keras.layers.Layer):
    """Causal self-attention and a feed-forward network, each with a residual and a layer norm.

    `norm_first=False` is GPT-1 (Radford et al. 2018, section 4.1), the norm after the sum:

        n = LayerNorm(h + dropout(Attention(h)))
        h = LayerNorm(n + dropout(FeedForward(n)))

    `norm_first=True` is GPT-2 (Radford et al. 2019, section 2.3), the norm before each sub-layer:

        n = h + dropout(Attention(LayerNorm(h)))
        h = n + dropout(FeedForward(LayerNorm(n)))

    Args:
        num_heads: int. Number of attention heads; must divide the width of the input.
        intermediate_dim: int. Inner width of the feed-forward network.
        dropout: float in [0, 1). Share dropped of each sub-layer's output in training.
        norm_first: bool. Layer norm before each sub-layer (GPT-2) or after the sum (GPT-1).
        activation: name or function of the feed-forward network; `"gelu_tanh"` is GPT's.
        layer_norm_epsilon: float. Added to the variance.
        kernel_initializer: initializer of all maps; N(0, 0.02) if None.
        residual_initializer: initializer of the two maps that end in the residual stream;
            `kernel_initializer` if None. GPT-2 scales it by 1/sqrt(2 x layers).
        query_key_norm: bool. RMS norm of each head's queries and keys.
        rotary_positions: bool. Positions rotate queries and keys, as in `CausalSelfAttention`.
        attention_dropout: float in [0, 1). Share dropped of the attention weights; `dropout` if
            None. On a GPU the JAX backend has a fused kernel for 0 only.
        recompute: bool. In training only the block's input is kept for the backward pass, which
            runs the block again: less memory, more time, and the same results.
        **kwargs: `name`, `dtype` and `trainable`, as for `keras.layers.Layer`.

    Call arguments:
        hidden_states: float tensor `(batch, length, hidden_dim)`.
        padding_mask: optional bool or int tensor `(batch, length)`; True marks real tokens.
        segment_ids: optional int tensor `(batch, length)`: numbers of packed documents.
        mask: the mask that Keras hands on from an earlier layer, used where `padding_mask` is
            not given.

    Returns:
        float tensor `(batch, length, hidden_dim)`.

    Raises:
        ValueError: for values out of range, if the width is not divisible by `num_heads`, and if
            `rotary_positions` meet an odd width of a head.
        TypeError: for keywords that are no arguments, with the one that was probably meant.

    Example:
        block = kgpt.layers.DecoderBlock(num_heads=2, intermediate_dim=48)
        hidden_states = block(np.ones((1, 5, 12), "float32"))
    """

    @checked(passes_on=keras.layers.Layer)
    def __init__(
        self,
        num_heads: int,
        intermediate_dim: int,
        dropout: float = 0.0,
        norm_first: bool = True,
        activation: object = "gelu_tanh",
        layer_norm_epsilon: float = 1e-5,
        kernel_initializer=None,
        residual_initializer=None,
        query_key_norm: bool = False,
        rotary_positions: bool = False,
        attention_dropout: float | None = None,
        recompute: bool = False,
        **kwargs,
    ):
        super().__init__(**kwargs)
        self.input_spec = keras.InputSpec(ndim=3)
        self.num_heads = num_heads
        self.intermediate_dim = intermediate_dim
        self.dropout = dropout
        self.attention_dropout = attention_dropout
        self.norm_first = norm_first
        self.recompute = recompute
        self.layer_norm_epsilon = layer_norm_epsilon
        self.kernel_initializer = normal_initializer(kernel_initializer)
        self.residual_initializer = normal_initializer(residual_initializer or kernel_initializer)
        part = {"dtype": self.dtype_policy, "trainable": self.trainable}
        maps = self.kernel_initializer, self.residual_initializer
        variant = query_key_norm, rotary_positions, attention_dropout
        self.attention = CausalSelfAttention(
            num_heads, dropout, *maps, *variant, name="attention", **part
        )
        self.feed_forward = FeedForward(
            intermediate_dim, activation, *maps, name="feed_forward", **part
        )
        norm = {"epsilon": layer_norm_epsilon, **part}
        self.attention_norm = LayerNorm(name="attention_norm", **norm)
        self.feed_forward_norm = LayerNorm(name="feed_forward_norm", **norm)
        self.dropout_layer = Dropout(dropout, dtype=self.dtype_policy, name="dropout")
        self.supports_masking = True

    def build(self, hidden_states_shape):
        """Makes the parts of the block."""
        norms = self.attention_norm, self.feed_forward_norm
        for layer in (self.attention, self.feed_forward, *norms, self.dropout_layer):
            layer.build(hidden_states_shape)
        self.built = True

    @recomputed
    def call(self, hidden_states, padding_mask=None, segment_ids=None, mask=None, training=None):
        """Returns the hidden states after the block, `(batch, length, hidden_dim)`."""

        def attention(x):
            return self.attention(x, padding_mask, segment_ids, mask=mask, training=training)

        return self._join(hidden_states, attention, training)

    def call_with_cache(self, hidden_states, cache, cache_index, visible, position_ids=None):
        """Runs the block for new positions, as `CausalSelfAttention.call_with_cache`.

        Args:
            hidden_states: float tensor `(batch, new, hidden_dim)`: the new positions.
            cache: pair of float tensors `(batch, heads, slots, head_dim)`, or None.
            cache_index: as for `CausalSelfAttention.call_with_cache`.
            visible: likewise.
            position_ids: likewise.

        Returns:
            The output `(batch, new, hidden_dim)` and the cache with the new keys and values in it.

        Example:
            block = kgpt.layers.DecoderBlock(num_heads=2, intermediate_dim=48)
            block.build((None, None, 12))
            visible = np.tri(5, dtype=bool)[None]  # each position sees itself and the past
            h = keras.ops.ones((1, 5, 12))
            h, cache = block.call_with_cache(h, None, 0, visible)
        """

        def attention(x):
            nonlocal cache
            attended, cache = self.attention.call_with_cache(
                x, cache, cache_index, visible, position_ids
            )
            return attended

        return self._join(hidden_states, attention, training=False), cache

    def _join(self, h, attention, training):
        def dropout(x):
            return x if training is False else self.dropout_layer(x, training=training)

        if self.norm_first:
            n = h + dropout(attention(self.attention_norm(h)))
            return n + dropout(self.feed_forward(self.feed_forward_norm(n)))
        n = self.attention_norm(h + dropout(attention(h)))
        return self.feed_forward_norm(n + dropout(self.feed_forward(n)))

    def compute_output_shape(self, hidden_states_shape, **kwargs):
        """Returns the shape of the output."""
        return hidden_states_shape

    def get_config(self):
        return {
            **super().get_config(),
            "num_heads": self.num_heads,
            "intermediate_dim": self.intermediate_dim,
            "dropout": self.dropout,
            "norm_first": self.norm_first,
            "activation": keras.activations.serialize(self.feed_forward.activation),
            "layer_norm_epsilon": self.layer_norm_epsilon,
            "kernel_initializer": keras.initializers.serialize(self.kernel_initializer),
            "residual_initializer": keras.initializers.serialize(self.residual_initializer),
            "query_key_norm": self.attention.query_key_norm,
            "rotary_positions": self.attention.rotary_positions,
            "attention_dropout": self.attention_dropout,
            "recompute": self.recompute,
        }
