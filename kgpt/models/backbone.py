"""The body of a GPT: embedding and decoder blocks, as a functional model; and its presets."""

import math
import numbers

import keras

from kgpt.layers import DecoderBlock, TokenAndPositionEmbedding
from kgpt.layers.layer_norm import LayerNorm
from kgpt.layers.padding import FromRightPadding, ToRightPadding

_GPT1 = {
    "vocabulary_size": 40478,
    "num_layers": 12,
    "num_heads": 12,
    "hidden_dim": 768,
    "max_sequence_length": 512,
    "norm_first": False,
}
_GPT2 = {"vocabulary_size": 50257, "max_sequence_length": 1024}

# Architectures only. The first five are the papers'; the last three train on a laptop.
PRESETS = {
    "gpt1": _GPT1,
    "gpt2": {**_GPT2, "num_layers": 12, "num_heads": 12, "hidden_dim": 768},
    "gpt2_medium": {**_GPT2, "num_layers": 24, "num_heads": 16, "hidden_dim": 1024},
    "gpt2_large": {**_GPT2, "num_layers": 36, "num_heads": 20, "hidden_dim": 1280},
    "gpt2_xl": {**_GPT2, "num_layers": 48, "num_heads": 25, "hidden_dim": 1600},
    "gpt_nano": {
        "vocabulary_size": 4096,
        "num_layers": 3,
        "num_heads": 3,
        "hidden_dim": 96,
        "max_sequence_length": 128,
    },
    "gpt_micro": {
        "vocabulary_size": 8192,
        "num_layers": 4,
        "num_heads": 4,
        "hidden_dim": 192,
        "max_sequence_length": 256,
    },
    "gpt_mini": {
        "vocabulary_size": 8192,
        "num_layers": 6,
        "num_heads": 6,
        "hidden_dim": 384,
        "max_sequence_length": 256,
    },
}


@keras.saving.register_keras_serializable(package="kgpt")
class GPTBackbone(keras.Model):
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
        norm_first: bool. True is GPT-2's block, False is GPT-1's; see `DecoderBlock`.
        activation: name or function in the feed-forward networks; `"gelu_tanh"` is GPT's.
            `"relu_squared"` is a later one; see `FeedForward`.
        layer_norm_epsilon: float. Added to the variance in layer norms.
        query_key_norm: bool. RMS norm of each head's queries and keys; see `CausalSelfAttention`.
        rotary_positions: bool. Positions turn queries and keys in each block, in place of learned
            vectors in the embedding; see `kgpt.layers.attention.rotate`.
        zero_init_residual: bool. Whether the maps that end in the residual stream start at 0, so
            that each block starts as the identity (Goyal et al. 2017, section 5.1).
        attention_dropout: float in [0, 1). Used on the attention weights; `dropout` if None. Set
            it to 0 to train on a GPU on the JAX backend, whose fused attention has no dropout.
        **kwargs: `name`, `trainable`, and `dtype`: a dtype policy such as `"mixed_bfloat16"`.

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

    Example:
        backbone = kgpt.GPTBackbone.from_preset("gpt_mini", vocabulary_size=5000)
        hidden_states = backbone(token_ids)
    """

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
        activation="gelu_tanh",
        layer_norm_epsilon: float = 1e-5,
        query_key_norm: bool = False,
        rotary_positions: bool = False,
        zero_init_residual: bool = False,
        attention_dropout: float | None = None,
        dtype=None,
        **kwargs,
    ):
        if intermediate_dim is None:
            intermediate_dim = 4 * hidden_dim
        (
            vocabulary_size,
            num_layers,
            num_heads,
            hidden_dim,
            intermediate_dim,
            max_sequence_length,
        ) = _check_sizes(
            vocabulary_size=vocabulary_size,
            num_layers=num_layers,
            num_heads=num_heads,
            hidden_dim=hidden_dim,
            intermediate_dim=intermediate_dim,
            max_sequence_length=max_sequence_length,
        )
        policy = keras.dtype_policies.get(dtype or keras.config.dtype_policy())

        # === Layers ===
        residual_scale = 0.02 / math.sqrt(2 * num_layers) if norm_first else 0.02
        residual_initializer = keras.initializers.RandomNormal(stddev=residual_scale)
        if zero_init_residual:
            residual_initializer = keras.initializers.Zeros()
        embedding = TokenAndPositionEmbedding(
            vocabulary_size,
            max_sequence_length,
            hidden_dim,
            dropout=dropout,
            position_initializer=keras.initializers.RandomNormal(
                stddev=0.01 if norm_first else 0.02
            ),
            learned_positions=not rotary_positions,
            dtype=policy,
            name="embedding",
        )
        decoder_blocks = [
            DecoderBlock(
                num_heads,
                intermediate_dim,
                dropout=dropout,
                norm_first=norm_first,
                activation=activation,
                layer_norm_epsilon=layer_norm_epsilon,
                residual_initializer=residual_initializer,
                query_key_norm=query_key_norm,
                rotary_positions=rotary_positions,
                attention_dropout=attention_dropout,
                dtype=policy,
                name=f"decoder_block_{i}",
            )
            for i in range(num_layers)
        ]
        final_norm = None
        if norm_first:
            final_norm = LayerNorm(epsilon=layer_norm_epsilon, dtype=policy, name="final_norm")

        # === Functional model ===
        token_ids = keras.Input((None,), dtype="int32", name="token_ids")
        padding_mask = keras.Input((None,), dtype="bool", name="padding_mask", optional=True)
        segment_ids = keras.Input((None,), dtype="int32", name="segment_ids", optional=True)
        # Padding is moved to the end of each row once, for all blocks, and back at the end.
        to_right = [ToRightPadding(name=f"{name}_to_right_padding") for name in ("ids", "segments")]
        ids = to_right[0](token_ids, padding_mask)
        segments = to_right[1](segment_ids, padding_mask)
        h = embedding(ids, segment_ids=segments)
        for block in decoder_blocks:
            h = block(h, segment_ids=segments)
        if final_norm is not None:
            h = final_norm(h)
        h = FromRightPadding(dtype=policy, name="from_right_padding")(h, padding_mask)
        super().__init__(
            inputs={
                "token_ids": token_ids,
                "padding_mask": padding_mask,
                "segment_ids": segment_ids,
            },
            outputs=h,
            **kwargs,
        )

        # === Config ===
        self.embedding = embedding
        self.decoder_blocks = decoder_blocks
        self.final_norm = final_norm
        self.dtype_policy = policy
        self.vocabulary_size = vocabulary_size
        self.num_layers = num_layers
        self.num_heads = num_heads
        self.hidden_dim = hidden_dim
        self.intermediate_dim = intermediate_dim
        self.dropout = dropout
        self.max_sequence_length = max_sequence_length
        self.norm_first = norm_first
        self.activation = self.decoder_blocks[0].feed_forward.activation
        self.layer_norm_epsilon = layer_norm_epsilon
        self.query_key_norm = query_key_norm
        self.rotary_positions = rotary_positions
        self.zero_init_residual = zero_init_residual
        self.attention_dropout = attention_dropout
        self.lora_rank = None
        self.lora_alpha = None

    @classmethod
    def from_preset(cls, name: str, **overrides) -> "GPTBackbone":
        """A backbone of a known size, with fresh weights.

        Args:
            name: one of `kgpt.GPTBackbone.presets()`, such as `"gpt1"` or `"gpt_mini"`.
            **overrides: constructor arguments that differ from the preset's.

        Raises:
            ValueError: if there is no such preset.
        """
        if name not in PRESETS:
            raise ValueError(
                f"Unknown preset. Received: name={name!r}. Try one of {', '.join(PRESETS)}."
            )
        return cls(**{**PRESETS[name], **overrides})

    @classmethod
    def presets(cls) -> list[str]:
        """The names that `from_preset` knows."""
        return list(PRESETS)

    @property
    def token_embedding(self):
        """The `keras.layers.ReversibleEmbedding` that the output is tied to."""
        return self.embedding.token_embedding

    def with_vocabulary_size(self, vocabulary_size: int) -> "GPTBackbone":
        """A backbone with more tokens, such as those of a task, that keeps what was learned.

        Args:
            vocabulary_size: int. The number of tokens that the new backbone has.

        Returns:
            A backbone of its own with this one's weights and, after the learned rows of the token
            embedding, fresh ones at N(0, 0.02). This backbone itself if the size is the same.

        Raises:
            ValueError: if there would be fewer tokens, or with LoRA or quantized weights.

        Example:
            tokenizer = tokenizer.with_special_tokens()  # start, delimiter, classify
            backbone = backbone.with_vocabulary_size(tokenizer.vocabulary_size)
        """
        if vocabulary_size == self.vocabulary_size:
            return self
        config = self.get_config()
        if vocabulary_size < self.vocabulary_size or self.lora_rank or config.get("quantization"):
            raise ValueError(
                "Only a backbone with plain weights can be copied, to one with more tokens. "
                f"Received: vocabulary_size={vocabulary_size} for a backbone with "
                f"vocabulary_size={self.vocabulary_size}, lora_rank={self.lora_rank}, quantized="
                f"{bool(config.get('quantization'))}. Do it first, and enable_lora or quantize "
                "what it returns; merge_lora() makes LoRA's weights plain."
            )
        grown = type(self).from_config({**config, "vocabulary_size": vocabulary_size})
        for own, new in zip(self.weights, grown.weights, strict=True):
            if own.shape == new.shape:
                new.assign(own)
            else:
                fresh = new[self.vocabulary_size :]
                new.assign(keras.ops.concatenate([keras.ops.convert_to_tensor(own), fresh]))
        return grown

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
        """
        h = self.embedding(token_ids, position_ids=position_ids, training=False)
        cache = [None] * self.num_layers if cache is None else cache
        new_cache = []
        for block, layer in zip(self.decoder_blocks, cache, strict=True):
            h, layer = block.call_with_cache(h, layer, cache_index, visible, position_ids)
            new_cache.append(layer)
        return (h if self.final_norm is None else self.final_norm(h)), new_cache

    # === LoRA ===

    def enable_lora(self, rank: int, alpha: float | None = None):
        """Freezes the body and trains low-rank additions to its matrices (Hu et al. 2021).

        Each matrix `W` of attention and feed-forward becomes `W + alpha / rank x A B` by Keras's
        own `Dense.enable_lora`. Do this before `compile`. For GPT-1 at rank 8, 1.0% of the weights
        are trained. Saving merges the additions into the matrices; a model that was loaded can
        be trained further, with fresh additions.

        Args:
            rank: int. Inner width of the additions.
            alpha: float. Scale of the additions; `rank` if None.

        Raises:
            ValueError: for a rank below 1, and if LoRA is enabled already.
        """
        is_count = isinstance(rank, numbers.Integral) and not isinstance(rank, bool)
        if not is_count or rank < 1 or self.lora_rank is not None:
            raise ValueError(
                "enable_lora takes a rank of at least 1, once. "
                f"Received: rank={rank!r}, for a backbone with lora_rank={self.lora_rank}."
            )
        for layer in [self.embedding, *self.decoder_blocks, self.final_norm]:
            for variable in [] if layer is None else layer.trainable_variables:
                variable.trainable = False
        for layer in self._lora_layers():
            layer.enable_lora(int(rank), lora_alpha=alpha)
        self.lora_rank, self.lora_alpha = int(rank), alpha

    def merge_lora(self):
        """Adds LoRA's products to the matrices for good and makes all weights trainable again.

        The outputs stay as they are. Compile the model again before training it further.

        Raises:
            ValueError: without LoRA, and for quantized weights.
        """
        if self.lora_rank is None or self.get_config().get("quantization"):
            raise ValueError(
                "Only a backbone with LoRA over plain weights can be merged. Received: one with "
                f"lora_rank={self.lora_rank} and dtype={self.dtype_policy.name!r}."
            )
        for layer in self._lora_layers():
            layer._kernel.assign(layer.kernel)  # the property adds the product
            layer.lora_enabled = False
            for variable in (layer.lora_kernel_a, layer.lora_kernel_b):
                layer._untrack_variable(variable)
            layer.lora_kernel_a = layer.lora_kernel_b = None
        self.lora_rank = self.lora_alpha = None
        for layer in self._flatten_layers(include_self=False):
            for variable in layer._trainable_variables:
                variable.trainable = True

    def revive_lora(self):
        """Starts new additions where both factors are zero, as Keras leaves them after loading.

        Of such factors no gradient ever comes.
        """
        for layer in self._lora_layers() if self.lora_rank else []:
            factors = layer.lora_kernel_a, layer.lora_kernel_b
            if not any(keras.ops.any(keras.ops.not_equal(factor, 0)) for factor in factors):
                a = layer.lora_kernel_a
                a.assign(keras.initializers.HeUniform()(a.shape, dtype=a.dtype))

    def _lora_layers(self):
        for block in self.decoder_blocks:
            yield from (block.attention.query_key_value, block.attention.output_projection)
            yield from (block.feed_forward.expansion, block.feed_forward.output_projection)

    # === Keras's entry points ===

    # `call` completes the inputs itself: Keras's own check would insist on all three names.
    input_spec = None

    def call(self, inputs, training=None, mask=None):
        return super().call(complete_inputs(inputs), training=training, mask=mask)

    def compute_output_spec(self, inputs, training=None, mask=None):
        token_ids = complete_inputs(inputs)["token_ids"]
        shape = self.embedding.compute_output_shape(token_ids.shape)
        return keras.KerasTensor(shape, dtype=self.compute_dtype)

    def get_config(self):
        return {
            "name": self.name,
            "trainable": self.trainable,
            "dtype": keras.dtype_policies.serialize(self.dtype_policy),
            "vocabulary_size": self.vocabulary_size,
            "num_layers": self.num_layers,
            "num_heads": self.num_heads,
            "hidden_dim": self.hidden_dim,
            "intermediate_dim": self.intermediate_dim,
            "dropout": self.dropout,
            "max_sequence_length": self.max_sequence_length,
            "norm_first": self.norm_first,
            "activation": keras.activations.serialize(self.activation),
            "layer_norm_epsilon": self.layer_norm_epsilon,
            "query_key_norm": self.query_key_norm,
            "rotary_positions": self.rotary_positions,
            "zero_init_residual": self.zero_init_residual,
            "attention_dropout": self.attention_dropout,
            "quantization": quantization_config(self),
            "lora_rank": self.lora_rank,
            "lora_alpha": self.lora_alpha,
        }

    @classmethod
    def from_config(cls, config, custom_objects=None):
        config = dict(config)
        quantization = config.pop("quantization", None)
        lora_rank, lora_alpha = config.pop("lora_rank", None), config.pop("lora_alpha", None)
        backbone = cls(**config)
        apply_quantization(backbone, quantization)
        if lora_rank is not None:
            backbone.enable_lora(lora_rank, lora_alpha)
        return backbone


def quantization_config(model, without=None) -> list[dict]:
    """Which layers of a model are quantized and how, for the model's config.

    Args:
        model: a Keras model.
        without: optional model inside it whose layers are left out.

    Returns:
        list of dicts: `"layers"`, their paths, and `"config"`, which they have in common.
    """
    left_out = [] if without is None else [id(layer) for layer in without._flatten_layers()]
    groups = []
    for layer in model._flatten_layers():
        if layer.quantization_mode is None or id(layer) in left_out:
            continue
        config = keras.saving.serialize_keras_object(layer.quantization_config)
        if not any(group["config"] == config for group in groups):
            groups.append({"layers": [], "config": config})
        next(g for g in groups if g["config"] == config)["layers"].append(layer.path)
    return groups


def apply_quantization(model, groups):
    """Quantizes the layers of a fresh model as `quantization_config` says, for weights to come."""
    for group in groups or []:
        config = keras.saving.deserialize_keras_object(group["config"])
        model.quantize(config=config, filters=lambda layer, g=group: layer.path in g["layers"])


def complete_inputs(inputs):
    """Model inputs as the full dict: token ids alone are enough, what is left out is None.

    Raises:
        ValueError: if `token_ids` is missing or a name is unknown.
    """
    names = ("token_ids", "padding_mask", "segment_ids")
    is_dict = isinstance(inputs, dict)
    if not is_dict and not isinstance(inputs, (list, tuple)):
        return {"token_ids": inputs, "padding_mask": None, "segment_ids": None}
    if not is_dict or "token_ids" not in inputs or set(inputs) - set(names):
        received = f"a dict with {sorted(inputs)}" if is_dict else f"a {type(inputs).__name__}"
        raise ValueError(
            'Inputs are token ids, or a dict with "token_ids" and, optionally, "padding_mask" '
            f'and "segment_ids". Received: {received}.'
        )
    return {name: inputs.get(name) for name in names}


def _check_sizes(**sizes):
    """The sizes as plain ints (numpy's come in too), once they fit each other."""
    for name, size in sizes.items():
        if not isinstance(size, numbers.Integral) or isinstance(size, bool) or size < 1:
            raise ValueError(f"{name} must be an int of at least 1. Received: {name}={size!r}.")
    if sizes["hidden_dim"] % sizes["num_heads"]:
        divisors = [d for d in range(1, 129) if sizes["hidden_dim"] % d == 0]
        nearest = min(divisors, key=lambda d: abs(d - sizes["num_heads"]))
        raise ValueError(
            f"num_heads must divide hidden_dim. Received: num_heads={sizes['num_heads']}, "
            f"hidden_dim={sizes['hidden_dim']}. Try num_heads={nearest}."
        )
    return [int(size) for size in sizes.values()]
