"""Low-rank adaptation of a backbone (Hu et al. 2021). The functions are `GPTBackbone`'s methods."""

import keras

from kgpt.arguments import checked
from kgpt.models.quantization import quantization_config


@checked
def enable_lora(backbone, rank: int, alpha: float | None = None):
    """Freezes the body and trains low-rank additions to its matrices (Hu et al. 2021).

    Each matrix `W` of attention and feed-forward becomes `W + alpha / rank x A B` by Keras's own
    `Dense.enable_lora`. Do this before `compile`. For GPT-1 at rank 8, 1.0% of the weights are
    trained. Saving merges the additions into the matrices; a loaded model can be trained further,
    with new additions.

    Args:
        backbone: the `GPTBackbone`.
        rank: int. Inner width of the additions.
        alpha: float. Scale of the additions; `rank` if None.

    Raises:
        ValueError: for a rank below 1, and if LoRA is enabled already.
    """
    if backbone.lora_rank is not None:
        raise ValueError(
            "LoRA can be enabled once. "
            f"Received: rank={rank}, for a backbone with lora_rank={backbone.lora_rank}. "
            "merge_lora() ends the one that there is."
        )
    backbone.trainable = True  # as a whole, or else the additions would not be
    for layer in [backbone.embedding, *backbone.decoder_blocks, backbone.final_norm]:
        for variable in [] if layer is None else layer.trainable_variables:
            variable.trainable = False
    for layer in _matrices(backbone):
        layer.enable_lora(rank, lora_alpha=alpha)
    backbone.lora_rank, backbone.lora_alpha = rank, alpha


def merge_lora(backbone):
    """Adds LoRA's products to the matrices for good and makes all weights trainable again.

    The outputs stay the same. Compile the model again before training it further.

    Raises:
        ValueError: without LoRA, and for quantized weights.
    """
    if backbone.lora_rank is None or quantization_config(backbone):
        raise ValueError(
            "Only a backbone with LoRA over plain weights can be merged. Received: one with "
            f"lora_rank={backbone.lora_rank} and dtype={backbone.dtype_policy.name!r}."
        )
    for layer in _matrices(backbone):
        layer._kernel.assign(layer.kernel)  # the property adds the product
        layer.lora_enabled = False
        for variable in (layer.lora_kernel_a, layer.lora_kernel_b):
            layer._untrack_variable(variable)
        layer.lora_kernel_a = layer.lora_kernel_b = None
    backbone.lora_rank = backbone.lora_alpha = None
    for layer in backbone._flatten_layers(include_self=False):
        for variable in layer._trainable_variables:
            variable.trainable = True


def revive_lora(backbone):
    """Draws new additions where both factors are zero, as they are after Keras loads a file.

    The gradients of such factors are zero: they would never learn.
    """
    for layer in _matrices(backbone) if backbone.lora_rank else []:
        factors = layer.lora_kernel_a, layer.lora_kernel_b
        if not any(keras.ops.any(keras.ops.not_equal(factor, 0)) for factor in factors):
            a = layer.lora_kernel_a
            a.assign(keras.initializers.HeUniform()(a.shape, dtype=a.dtype))


def _matrices(backbone):
    for block in backbone.decoder_blocks:
        yield from (block.attention.query_key_value, block.attention.output_projection)
        yield from (block.feed_forward.expansion, block.feed_forward.output_projection)
