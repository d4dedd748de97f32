"""What is done to a body after it is made: quantization, LoRA, freezing. Its config has it all."""

from kgpt.models.freezing import num_frozen_blocks, set_layers_trainable, trainable_layers
from kgpt.models.quantization import apply_quantization, quantization_config

_NAMES = (
    *("quantization", "num_frozen_blocks", "trainable_layers"),
    *("lora_rank", "lora_alpha", "lora_target_layer_names"),
)


def get_config(backbone) -> dict:
    """Returns what was done to a body, for its config."""
    names = backbone.lora_target_layer_names
    num_frozen = num_frozen_blocks(backbone)
    frozen = (
        () if num_frozen is None else (backbone.embedding, *backbone.decoder_blocks[:num_frozen])
    )
    return {
        "quantization": quantization_config(backbone),
        "num_frozen_blocks": num_frozen,
        "trainable_layers": trainable_layers(backbone, frozen),
        "lora_rank": backbone.lora_rank,
        "lora_alpha": backbone.lora_alpha,
        "lora_target_layer_names": names and list(names),
    }


def split(config) -> tuple[dict, dict]:
    """Returns the arguments of a body in its config, and what is to be done to it afterwards."""
    later = {name: config[name] for name in _NAMES if name in config}
    return {name: value for name, value in config.items() if name not in later}, later


def make(
    backbone,
    quantization=(),
    num_frozen_blocks=None,
    trainable_layers=None,
    lora_rank=None,
    lora_alpha=None,
    lora_target_layer_names=None,
):
    """Does to a new body what `get_config` says, before weights are loaded, and returns it."""
    trainable = backbone.trainable
    apply_quantization(backbone, quantization)
    if lora_rank is not None:
        backbone.enable_lora(lora_rank, lora_alpha, lora_target_layer_names)
    if num_frozen_blocks is not None:
        backbone.freeze(num_frozen_blocks)
    if not trainable:
        backbone.trainable = False
    set_layers_trainable(backbone, trainable_layers)
    return backbone
