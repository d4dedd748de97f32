"""The first layers of another body."""

from keras import ops

from kgpt.arguments import checked
from kgpt.models.resize import check_plain

_OF_EMBEDDING = ("hidden_dim", "vocabulary_size", "rotary_positions", "max_sequence_length")
_OF_BLOCKS = (
    *("num_heads", "intermediate_dim", "norm_first", "activation", "layer_norm_epsilon"),
    *("query_key_norm",),
)
_ADVICE = {
    "vocabulary_size": " Try with_vocabulary_size.",
    "max_sequence_length": " Try with_max_sequence_length.",
}


@checked
def take_blocks(self, other, num_blocks: int):
    """Takes the embeddings and the first decoder blocks of another body, as starting weights.

    The released code of GPT-1 transfers so (`n_transfer`), and so does the paper's figure 2. The
    blocks after them and the final norm of a GPT-2 body keep the weights that they have. Weights
    are copied, in this body's dtype. What is trained stays as it is: `freeze(num_blocks)` freezes
    what was taken.

    Args:
        self: the `GPTBackbone` that takes them.
        other: the `GPTBackbone` that has them.
        num_blocks: int, at least 0. How many blocks; with 0, the embeddings alone.

    Raises:
        ValueError: if the bodies compute or count otherwise, with what differs; for more blocks
            than one of them has; and with LoRA or quantized weights.

    Example:
        shallow = kgpt.GPTBackbone.from_config({**backbone.get_config(), "num_layers": 1})
        shallow.take_blocks(backbone, 1)
    """
    _check_same(self, other, num_blocks)
    for backbone in (self, other):
        check_plain(backbone, "part of such a copy")
    own, taken = ([body.embedding, *body.decoder_blocks[:num_blocks]] for body in (self, other))
    for layer, source in zip(own, taken, strict=True):
        for weight, value in zip(layer.weights, source.weights, strict=True):
            weight.assign(ops.copy(value))  # on JAX training gives away the arrays it begins with


def _check_same(own, other, num_blocks):
    names = _OF_EMBEDDING + (_OF_BLOCKS if num_blocks else ())
    for name in names:
        if name == "max_sequence_length" and own.rotary_positions:
            continue
        here, there = getattr(own, name), getattr(other, name)
        if here != there:
            raise ValueError(
                f"Weights can be taken from a body with the same {name}. Received: "
                f"{name}={there!r} in the other body, {here!r} in this one.{_ADVICE.get(name, '')}"
            )
    most = min(own.num_layers, other.num_layers)
    if num_blocks > most:
        raise ValueError(
            f"There must be as many blocks as are taken. Received: num_blocks={num_blocks} for "
            f"bodies with num_layers={own.num_layers} and {other.num_layers}."
        )
