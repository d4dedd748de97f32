"""Low-rank adaptation of a body (Hu et al. 2021). Methods of `GPTBackbone` and of tasks."""

import keras

from kgpt.arguments import RULES, checked, refuse
from kgpt.models.freezing import body_of, num_frozen_blocks, set_trained
from kgpt.models.quantization import check_float8, quantization_config

_OF_ATTENTION = ("query", "key", "value")  # the parts of one matrix, in this order
_TARGETS = (
    *(*_OF_ATTENTION, "attention_output"),
    *("feedforward_intermediate_dense", "feedforward_output_dense"),
)


def _layer_names(name, value):
    is_several = isinstance(value, list | tuple | set) and value
    if not is_several or not all(one in _TARGETS for one in value):
        refuse(name, value, f"a list of some of {', '.join(map(repr, _TARGETS))}")
    return [one for one in _TARGETS if one in value]


# The arguments of `enable_lora` with their rules.
SETTINGS = {
    "rank": RULES["rank"],
    "lora_alpha": RULES["lora_alpha"],
    "target_layer_names": _layer_names,
}


@checked(target_layer_names=_layer_names)
def enable_lora(self, rank: int, lora_alpha: float | None = None, target_layer_names=None):
    """Freezes the body and trains low-rank additions to its matrices (Hu et al. 2021).

    Each matrix `W` becomes `W + lora_alpha / rank x A B` by Keras's own `Dense.enable_lora`. For
    GPT-1 at rank 8, 1.0% of the weights are trained. `A` starts at random, `B` at 0. Blocks that
    are frozen by `freeze`, before or after, get additions that are not trained. As in Keras, a
    model that was compiled before has to be compiled again.

    Files of the model keep matrices and additions apart; `save_lora_weights` writes the additions
    alone. Quantized weights may have additions too: call `quantize` first (Dettmers et al. 2023).

    Args:
        self: the `GPTBackbone`, or a task over it.
        rank: int. Inner width of the additions.
        lora_alpha: float. Scale of the additions; `rank` if None.
        target_layer_names: list of str: which matrices have additions, by the names that their
            layers have in keras-hub: `"query"`, `"key"`, `"value"`, `"attention_output"`,
            `"feedforward_intermediate_dense"`, `"feedforward_output_dense"`; all of them if None.
            Query, key and value are one matrix here, and those that are named share `A`.

    Raises:
        ValueError: for a rank below 1, other names, matrices in float8, and if LoRA is enabled
            already.

    Example:
        backbone.enable_lora(8, target_layer_names=["query", "value"])
    """
    backbone = body_of(self)
    if backbone.lora_rank is not None:
        raise ValueError(
            "LoRA can be enabled once. "
            f"Received: rank={rank}, for a backbone with lora_rank={backbone.lora_rank}. "
            "merge_lora() ends the one that there is."
        )
    for _, layer, _ in matrices(backbone, _TARGETS):
        check_float8(layer.quantization_mode, has_lora=True)
    num_frozen = num_frozen_blocks(backbone)
    backbone.trainable = True  # as a whole, or else the factors would not be
    names = tuple(target_layer_names or _TARGETS)
    for _, layer, parts in matrices(backbone, names):
        layer.enable_lora(rank, lora_alpha, parts)
    backbone.lora_rank, backbone.lora_alpha = rank, lora_alpha
    backbone.lora_target_layer_names = names
    set_trained(backbone, num_frozen)


def merge_lora(self):
    """Adds LoRA's products to the matrices for good and makes all weights trainable again.

    The outputs stay the same, and so does what `freeze` has frozen. Compile the model again before
    training it further.

    Args:
        self: the `GPTBackbone`, or a task over it.

    Raises:
        ValueError: without LoRA, and for quantized weights.

    Example:
        lm.enable_lora(8)
        lm.merge_lora()
    """
    backbone = body_of(self)
    quantized = bool(quantization_config(backbone))
    if backbone.lora_rank is None or quantized:
        raise ValueError(
            "Only a backbone with LoRA over plain weights can be merged. Received: one with "
            f"lora_rank={backbone.lora_rank} and quantized={quantized}."
        )
    num_frozen = num_frozen_blocks(backbone)
    for _, layer, _ in matrices(backbone, backbone.lora_target_layer_names):
        layer.merge_lora()
    backbone.lora_rank = backbone.lora_alpha = backbone.lora_target_layer_names = None
    set_trained(backbone, num_frozen)


def revive_lora(backbone):
    """Draws new additions where both factors are zero, as in files without them.

    The gradients of such factors are zero: they would never learn.
    """
    for _, layer, _ in matrices(backbone, backbone.lora_target_layer_names or ()):
        a, b = layer.lora_factors
        if not any(keras.ops.any(keras.ops.not_equal(factor, 0)) for factor in (a, b)):
            a.assign(keras.initializers.HeUniform()(a.shape, dtype=a.dtype))


def matrices(backbone, target_layer_names):
    """Yields the matrices that have additions: their names, layers, and parts of the columns."""
    parts = tuple(name in target_layer_names for name in _OF_ATTENTION)
    for block in backbone.decoder_blocks:
        if any(parts):
            yield f"{block.name}/query_key_value", block.attention.query_key_value, parts
        for name, layer in (
            ("attention_output", block.attention.output_projection),
            ("feedforward_intermediate_dense", block.feed_forward.expansion),
            ("feedforward_output_dense", block.feed_forward.output_projection),
        ):
            if name in target_layer_names:
                yield f"{block.name}/{name}", layer, (True,)
