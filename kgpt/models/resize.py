"""A model of another size with the weights of one that has learned."""

from keras import ops

from kgpt.arguments import checked
from kgpt.models.freezing import body_of
from kgpt.models.quantization import quantization_config


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
    if vocabulary_size < backbone.vocabulary_size:
        raise ValueError(
            "A backbone can be copied to one with more tokens, not to one with fewer. "
            f"Received: vocabulary_size={vocabulary_size} for a backbone with "
            f"vocabulary_size={backbone.vocabulary_size}."
        )
    return _with_size(backbone, "vocabulary_size", vocabulary_size)


@checked
def with_max_sequence_length(self, max_sequence_length: int):
    """Returns a model with these weights that takes longer sequences, or only shorter ones.

    The outputs for sequences that fit both are the same. The vectors of positions that are added
    are new, as in a fresh model, at N(0, 0.01) for GPT-2's block and N(0, 0.02) for GPT-1's: train
    them on longer sequences. Models with `rotary_positions` have no such vectors, but have seen no
    longer distances either.

    Args:
        self: the `GPTBackbone`, or a task over it.
        max_sequence_length: int. The length of the longest sequence of the new model.

    Returns:
        A new model of the same class, not compiled, over a new body; this model itself if the
        length is the same.

    Raises:
        ValueError: with LoRA or quantized weights, and for a task whose `sequence_length` is
            longer.

    Example:
        longer = lm.with_max_sequence_length(512)
        longer.compile(kgpt.recipes.pretraining_optimizer(steps=2000))
    """
    return _with_size(self, "max_sequence_length", max_sequence_length)


def _with_size(model, name, size):
    """Returns a copy of a model with another size of the body; the model itself if it is the same.

    Of weights with another number of rows, the first rows are kept, and new ones stay fresh.
    """
    backbone = body_of(model)
    if size == getattr(backbone, name):
        return model
    check_plain(backbone, f"copied to one with {name}={size}")
    config = model.get_config()
    of_body = config if model is backbone else config["backbone"]["config"]
    of_body[name] = size
    resized = type(model).from_config(config)
    for own, new in zip(model.weights, resized.weights, strict=True):
        if own.shape != new.shape:
            rows = min(own.shape[0], new.shape[0])
            own = ops.concatenate([own[:rows], new[rows:]])
        new.assign(ops.copy(own))  # on JAX training gives away the arrays it begins with
    return resized


def check_plain(backbone, what: str):
    """Raises ValueError for a body with LoRA or quantized weights, which can't be `what`."""
    is_quantized = bool(quantization_config(backbone))
    if backbone.lora_rank is not None or is_quantized:
        raise ValueError(
            f"Only a backbone with plain weights can be {what}. Received: one with "
            f"lora_rank={backbone.lora_rank}, quantized={is_quantized}. Do it before enable_lora "
            "and quantize; merge_lora() makes LoRA's weights plain."
        )
