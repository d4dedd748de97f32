"""Quantized layers in the config of a model: they are quantized again when it is loaded."""

import keras


def check_float8(mode, has_lora: bool):
    """Raises ValueError for float8 beside LoRA, which Keras has not."""
    if mode == "float8" and has_lora:
        raise ValueError(
            'LoRA adds to plain matrices, and to those in "int8" and "int4". Received: both LoRA '
            'and "float8". merge_lora() makes plain matrices of those with LoRA.'
        )


def quantization_config(model, without=None) -> list[dict]:
    """Returns which layers of a model are quantized and how, for the model's config.

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
    """Quantizes the layers of a new model, before its weights are loaded.

    Args:
        model: a Keras model.
        groups: list of dicts, as `quantization_config` returns it.
    """
    for group in groups or []:
        config = keras.saving.deserialize_keras_object(group["config"])
        model.quantize(config=config, filters=lambda layer, g=group: layer.path in g["layers"])
