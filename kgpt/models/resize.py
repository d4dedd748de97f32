"""A body of another size with the weights of one that has learned."""

import keras

from kgpt.arguments import checked


@checked
def with_vocabulary_size(backbone, vocabulary_size: int):
    """Returns a backbone with these weights and more tokens, such as those of a task.

    Args:
        backbone: the `GPTBackbone`.
        vocabulary_size: int. The number of tokens that the new backbone has.

    Returns:
        A new `GPTBackbone` with this one's weights; the rows of the token embedding that are
        added start at N(0, 0.02). This backbone itself if the size is the same.

    Raises:
        ValueError: if there would be fewer tokens, or with LoRA or quantized weights.

    Example:
        tokenizer = tokenizer.with_special_tokens()  # start, delimiter, classify
        backbone = backbone.with_vocabulary_size(tokenizer.vocabulary_size)
    """
    if vocabulary_size == backbone.vocabulary_size:
        return backbone
    config = backbone.get_config()
    is_plain = not (backbone.lora_rank or config.get("quantization"))
    if vocabulary_size < backbone.vocabulary_size or not is_plain:
        raise ValueError(
            "Only a backbone with plain weights can be copied, to one with more tokens. "
            f"Received: vocabulary_size={vocabulary_size} for a backbone with "
            f"vocabulary_size={backbone.vocabulary_size}, lora_rank={backbone.lora_rank}, "
            f"quantized={bool(config.get('quantization'))}. Do it first, and enable_lora or "
            "quantize what it returns; merge_lora() makes LoRA's weights plain."
        )
    grown = type(backbone).from_config({**config, "vocabulary_size": vocabulary_size})
    for own, new in zip(backbone.weights, grown.weights, strict=True):
        if own.shape == new.shape:
            new.assign(own)
        else:
            fresh = new[backbone.vocabulary_size :]
            new.assign(keras.ops.concatenate([keras.ops.convert_to_tensor(own), fresh]))
    return grown
