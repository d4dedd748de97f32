"""The body of a GPT: embedding and decoder blocks, as a functional model."""

import math

import keras

from kgpt.arguments import checked
from kgpt.kernels.platform import checked_policy
from kgpt.layers import DecoderBlock, TokenAndPositionEmbedding
from kgpt.layers.layer_norm import LayerNorm
from kgpt.layers.padding import MovePadding
from kgpt.models import changes, resize, transfer
from kgpt.models.inputs import complete_inputs
from kgpt.models.presets import check_memory, check_sizes
from kgpt.models.whole_model import WholeModel

# The constructor's arguments that are attributes and entries of the config under the same name:
# those of the blocks, and all.
_OF_BLOCKS = (
    *("num_heads", "intermediate_dim", "dropout", "norm_first", "activation", "recompute"),
    *("layer_norm_epsilon", "query_key_norm", "rotary_positions", "attention_dropout"),
)
_OPTIONS = (
    *("vocabulary_size", "num_layers", "hidden_dim", "max_sequence_length"),
    *("zero_init_residual", *_OF_BLOCKS),
)


@keras.saving.register_keras_serializable(package="kgpt")
class GPTBackbone(WholeModel, keras.Model):
    """Token ids in, hidden states out: the stack of decoder blocks that all heads share.

        h_0 = E[token] + P[position]
        h_l = DecoderBlock(h_{l-1}),  l = 1 ... num_layers     (GPT-1, equation 2)

    With `norm_first=True` (GPT-2) a last layer norm follows, the maps that end in the residual
    stream start at N(0, 0.02 / sqrt(2 num_layers)) and positions at N(0, 0.01), as in the GPT-2
    release; everything else starts at N(0, 0.02), biases at 0.

    Args:
        vocabulary_size: int. Number of tokens.
        num_layers: int. Number of decoder blocks.
        num_heads: int. Number of attention heads; must divide `hidden_dim`.
        hidden_dim: int. Width of the hidden states.
        intermediate_dim: int. Inner width of the feed-forward networks; 4 x `hidden_dim` if None.
        dropout: float in [0, 1). Used on the embedding and each sub-layer's output.
        max_sequence_length: int. Length of the longest sequence; the number of learned positions.
        norm_first: bool. True is GPT-2's block, False is GPT-1's.
        activation: name or function in the feed-forward networks; `"gelu_tanh"` is GPT's,
            `"relu_squared"` a later one.
        layer_norm_epsilon: float. Added to the variance in layer norms.
        query_key_norm: bool. RMS norm of each head's queries and keys.
        rotary_positions: bool. Positions rotate queries and keys in each block, in place of learned
            vectors in the embedding.
        zero_init_residual: bool. Whether the maps that end in the residual stream start at 0, so
            that each block starts as the identity (Goyal et al. 2017, section 5.1).
        attention_dropout: float in [0, 1). Used on the attention weights; `dropout` if None. Set
            it to 0 to train on a GPU on the JAX backend, whose fused attention has no dropout.
        recompute: bool. In training each block keeps its input alone, and the backward pass runs
            the block again: room for larger batches and longer sequences, for about a fifth more
            arithmetic. The results are the same.
        dtype: a dtype policy such as `"mixed_bfloat16"`; Keras's if None. Pure `"bfloat16"` trains
            with `kgpt.recipes.AdamW`, the default; pure `"float16"` is for inference. Under
            `"float64"` the loss is computed in float32.
        **kwargs: `name` and `trainable`.

    Call arguments:
        inputs: int tensor `(batch, length)` of token ids, or a dict with

            - `"token_ids"`: that tensor;
            - `"padding_mask"`: optional, bool or int `(batch, length)`; True marks real tokens;
            - `"segment_ids"`: optional, int `(batch, length)`: the number of the document that
              each token belongs to. Attention stays inside a document and its positions start
              at 0.

    Returns:
        float tensor `(batch, length, hidden_dim)`.

    Raises:
        ValueError: for sizes that do not fit each other, unknown inputs, and sequences longer
            than `max_sequence_length`.
        TypeError: for keywords that are no arguments, with the one that was probably meant.

    Example:
        backbone = kgpt.GPTBackbone.from_preset(
            "gpt_mini", load_weights=False, vocabulary_size=5000
        )
        hidden_states = backbone(token_ids)
    """

    @checked
    def __init__(
        self,
        vocabulary_size: int,
        num_layers: int,
        num_heads: int,
        hidden_dim: int,
        intermediate_dim: int | None = None,
        dropout: float = 0.1,
        max_sequence_length: int = 1024,
        norm_first: bool = True,
        activation: object = "gelu_tanh",
        layer_norm_epsilon: float = 1e-5,
        query_key_norm: bool = False,
        rotary_positions: bool = False,
        zero_init_residual: bool = False,
        attention_dropout: float | None = None,
        recompute: bool = False,
        dtype=None,
        **kwargs,
    ):
        options = {name: value for name, value in locals().items() if name in _OPTIONS}
        options["intermediate_dim"] = intermediate_dim or 4 * hidden_dim
        policy = checked_policy(dtype)

        # === Layers ===
        embedding, decoder_blocks, final_norm = _make_layers(options, policy)

        # === Functional model ===
        token_ids = keras.Input((None,), dtype="int32", name="token_ids")
        padding_mask = keras.Input((None,), dtype="bool", name="padding_mask", optional=True)
        segment_ids = keras.Input((None,), dtype="int32", name="segment_ids", optional=True)
        # Padding is moved to the end of each row once, for all blocks, and back at the end.
        ids = MovePadding(name="ids_to_right_padding")(token_ids, padding_mask)
        segments = MovePadding(name="segments_to_right_padding")(segment_ids, padding_mask)
        h = embedding(ids, segment_ids=segments)
        for block in decoder_blocks:
            h = block(h, segment_ids=segments)
        h = h if final_norm is None else final_norm(h)
        h = MovePadding(back=True, name="from_right_padding")(h, padding_mask)
        inputs = (token_ids, padding_mask, segment_ids)
        super().__init__(inputs={x.name: x for x in inputs}, outputs=h, **kwargs)

        # === Config ===
        self.embedding, self.decoder_blocks, self.final_norm = embedding, decoder_blocks, final_norm
        self.dtype_policy = policy
        self.lora_rank = self.lora_alpha = self.lora_target_layer_names = None
        for name, value in options.items():
            setattr(self, name, value)
        self.activation = decoder_blocks[0].feed_forward.activation

    @property
    def token_embedding(self):
        """Returns the `keras.layers.ReversibleEmbedding` that the output is tied to."""
        return self.embedding.token_embedding

    with_vocabulary_size = resize.with_vocabulary_size
    take_blocks = transfer.take_blocks

    # === Generation ===

    def call_with_cache(self, token_ids, cache, cache_index, visible, position_ids):
        """Runs new positions after earlier ones whose keys and values are cached.

        Args:
            token_ids: int tensor `(batch, new)`.
            cache: a pair of float tensors `(batch, heads, slots, head_dim)`, keys and values, for
                each block; None for a new cache with as many slots as there are new positions.
            cache_index: int scalar, or int tensor `(batch,)` for rows that differ. The slot of the
                first new position.
            visible: bool tensor `(batch, new, seen)`: which of the first `seen` slots a position
                sees, at least one. Where `cache_index` is a scalar, no position may see the slots
                after the last new one.
            position_ids: int tensor `(batch, new)`: the new positions.

        Returns:
            Hidden states `(batch, new, hidden_dim)`, and the cache with the new keys and values.

        Example:
            new = np.arange(token_ids.shape[1])
            visible = (new <= new[:, None])[None]  # each position sees itself and the past
            hidden_states, cache = backbone.call_with_cache(token_ids, None, 0, visible, new[None])
        """
        h = self.embedding(token_ids, position_ids=position_ids, training=False)
        cache = [None] * self.num_layers if cache is None else cache
        new_cache = []
        for block, layer in zip(self.decoder_blocks, cache, strict=True):
            h, layer = block.call_with_cache(h, layer, cache_index, visible, position_ids)
            new_cache.append(layer)
        return (h if self.final_norm is None else self.final_norm(h)), new_cache

    # === Keras's entry points ===

    # `call` completes the inputs itself: Keras's own check would insist on all three names.
    input_spec = None
    _fixed = _OPTIONS

    def call(self, inputs, training=None, mask=None):
        """Returns the hidden states for inputs, as token ids or a dict."""
        return super().call(complete_inputs(inputs), training=training, mask=mask)

    def compute_output_spec(self, inputs, training=None, mask=None):
        """Returns the shape and the dtype of the hidden states."""
        shape = self.embedding.compute_output_shape(complete_inputs(inputs)["token_ids"].shape)
        return keras.KerasTensor(shape, dtype=self.compute_dtype)

    def get_config(self):
        return {
            **{name: getattr(self, name) for name in _OPTIONS},
            "activation": keras.activations.serialize(self.activation),
            "name": self.name,
            "trainable": self.trainable,
            "dtype": keras.dtype_policies.serialize(self.dtype_policy),
            **changes.get_config(self),
        }

    @classmethod
    def from_config(cls, config, custom_objects=None):
        config, later = changes.split(config)
        check_memory(config)
        return changes.make(cls(**config), **later)


def _make_layers(options, policy):
    """Returns the embedding, the tuple of decoder blocks, and the last norm or None."""
    check_sizes(options)
    norm_first = options["norm_first"]
    residual_scale = 0.02 / math.sqrt(2 * options["num_layers"]) if norm_first else 0.02
    residual_initializer = keras.initializers.RandomNormal(stddev=residual_scale)
    if options["zero_init_residual"]:
        residual_initializer = keras.initializers.Zeros()
    embedding = TokenAndPositionEmbedding(
        options["vocabulary_size"],
        options["max_sequence_length"],
        options["hidden_dim"],
        dropout=options["dropout"],
        position_initializer=keras.initializers.RandomNormal(stddev=0.01 if norm_first else 0.02),
        learned_positions=not options["rotary_positions"],
        dtype=policy,
        name="embedding",
    )
    blocks = tuple(
        DecoderBlock(
            **{name: options[name] for name in _OF_BLOCKS},
            residual_initializer=residual_initializer,
            dtype=policy,
            name=f"decoder_block_{i}",
        )
        for i in range(options["num_layers"])
    )
    if not norm_first:
        return embedding, blocks, None
    epsilon = options["layer_norm_epsilon"]
    return embedding, blocks, LayerNorm(epsilon=epsilon, dtype=policy, name="final_norm")
