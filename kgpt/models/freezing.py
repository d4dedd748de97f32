"""Which parts of a body are trained. The functions are methods of `GPTBackbone` and of tasks."""

from kgpt.arguments import checked


@checked
def freeze(self, num_blocks: int):
    """Trains neither the embeddings nor the first decoder blocks; the rest of the body is trained.

    Not trained are the token and position embeddings, which the output of a `CausalLM` is tied to,
    and all weights of the first `num_blocks` blocks, LoRA's factors too. Trained are the other
    blocks, the final norm of a GPT-2 body, and a task's own weights; with LoRA, of the other
    blocks the factors alone. Dropout stays as it is. The last call counts, whatever was trained
    before: `freeze(0)` is for the embeddings alone, `unfreeze()` trains all, and
    `backbone.trainable = False` nothing of the body. As in Keras, a model that was compiled before
    has to be compiled again. The files of the model keep what is frozen.

    Args:
        self: the `GPTBackbone`, or a task over it.
        num_blocks: int, at least 0. Number of decoder blocks to freeze, from the first on.

    Raises:
        ValueError: for more blocks than there are.

    Example:
        lm.freeze(1)
        lm.compile(kgpt.recipes.finetuning_optimizer(steps=600))
    """
    backbone = body_of(self)
    if num_blocks > backbone.num_layers:
        raise ValueError(
            "There must be as many blocks as are frozen. "
            f"Received: num_blocks={num_blocks} for a backbone with "
            f"num_layers={backbone.num_layers}."
        )
    set_trained(backbone, num_blocks)


def unfreeze(self):
    """Trains the whole body again; with LoRA, the factors of all blocks alone.

    As in Keras, a model that was compiled before has to be compiled again.

    Args:
        self: the `GPTBackbone`, or a task over it.

    Example:
        lm.freeze(1)
        lm.unfreeze()
    """
    set_trained(body_of(self), None)


def body_of(model):
    """Returns the `GPTBackbone` of a task; a `GPTBackbone` itself."""
    return getattr(model, "backbone", model)


def own_weights(model) -> list:
    """Returns the weights of a task that are not its body's."""
    of_body = {id(weight) for weight in body_of(model).weights}
    return [weight for weight in model.weights if id(weight) not in of_body]


def num_frozen_blocks(backbone) -> int | None:
    """Returns what `freeze` was called with; None if all blocks are trained or all is frozen."""
    if not backbone.trainable or backbone.embedding.trainable:
        return None
    return next(
        (i for i, block in enumerate(backbone.decoder_blocks) if block.trainable),
        backbone.num_layers,
    )


def trainable_layers(model, frozen=(), without=()) -> dict[str, bool]:
    """Returns `trainable` of the layers where it is another than that of what they are part of.

    Args:
        model: a built Keras model.
        frozen: layers inside it of which it is known that they are not trained.
        without: layers inside it that are left out, with all that they have.

    Returns:
        dict from the path of a layer to its `trainable`; layers come before those inside them.
    """
    apart, seen = {}, {id(part) for layer in without for part in layer._flatten_layers()}
    known = set(map(id, frozen))

    def look(layer):
        for part in layer._layers:
            if id(part) in seen:
                continue
            seen.add(id(part))
            expected = layer.trainable and id(part) not in known
            if part.trainable != expected and part.weights:
                apart[part.path] = part.trainable
            look(part)

    look(model)
    return apart


def set_layers_trainable(model, trainable):
    """Sets `trainable` of layers as `trainable_layers` returns it."""
    layers = {layer.path: layer for layer in model._flatten_layers()} if trainable else {}
    for path, value in (trainable or {}).items():
        layers[path].trainable = value


def set_trained(backbone, num_frozen: int | None):
    """Marks what is trained: all weights or LoRA's factors alone, and nothing that is frozen.

    Args:
        backbone: the `GPTBackbone`.
        num_frozen: how many blocks are frozen, beside the embeddings; None for neither.
    """
    for value in (False, True):  # on TensorFlow, Keras sets only what has another value
        backbone.trainable = value
    if backbone.lora_rank is not None:
        for variable in backbone.trainable_variables:
            variable.trainable = variable.name.startswith("lora_kernel")
    if num_frozen is not None:
        for layer in (backbone.embedding, *backbone.decoder_blocks[:num_frozen]):
            layer.trainable = False
