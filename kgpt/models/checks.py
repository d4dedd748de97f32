"""Checks of data and of what models are compiled with, before anything runs."""

import warnings

import keras
import numpy as np
from keras import ops

# Keras's losses that take logits only with from_logits=True.
_OF_PROBABILITIES = (
    keras.losses.SparseCategoricalCrossentropy,
    keras.losses.CategoricalCrossentropy,
    keras.losses.CategoricalFocalCrossentropy,
    keras.losses.BinaryCrossentropy,
    keras.losses.BinaryFocalCrossentropy,
)


def as_array(x) -> np.ndarray | None:
    """Returns an array, a tensor or a column as a numpy array; None for anything else."""
    if isinstance(x, np.ndarray):
        return x
    if ops.is_tensor(x):
        return ops.convert_to_numpy(x)
    return np.asarray(x) if hasattr(x, "__array__") else None


def check_ids(name: str, ids, vocabulary_size: int, ignored=()):
    """Raises ValueError for an array of token ids that the vocabulary does not have.

    Args:
        name: str. What the ids are called.
        ids: array or tensor; anything else passes.
        vocabulary_size: int.
        ignored: ints that are allowed as well.
    """
    ids = as_array(ids)
    if ids is None:
        return
    if ids.size == 0:
        raise ValueError(
            f"{name} must have at least one row with a token. Received: shape {ids.shape}."
        )
    if ids.dtype.kind not in "iu":
        raise ValueError(
            f"{name} must be ints, as a tokenizer returns them. Received: dtype {ids.dtype}."
        )
    least, most = ids.min(), ids.max()
    if least < 0 and len(ignored):
        real = ids[~np.isin(ids, ignored)]
        least, most = (real.min(), real.max()) if real.size else (0, 0)
    if least < 0 or most >= vocabulary_size:
        raise ValueError(
            f"Each id in {name} must lie in [0, {vocabulary_size}), the backbone's vocabulary. "
            f"Received: ids from {least} to {most}. Was the text encoded with the tokenizer that "
            "the backbone was made for?"
        )


def check_something_counts(x, sample_weight=None):
    """Raises ValueError if a mask or the weights leave nothing of the data to count."""
    mask = x.get("padding_mask") if isinstance(x, dict) else None
    for name, values in (("padding_mask", mask), ("sample_weight", sample_weight)):
        values = as_array(values)
        if values is not None and values.size and not values.any():
            raise ValueError(
                f"{name} must leave something to count. Received: a {name} that is 0 everywhere. "
                "In a padding_mask, 1 or True marks real tokens."
            )
        if values is not None and values.dtype.kind == "f" and not np.isfinite(values).all():
            raise ValueError(f"{name} must be finite numbers. Received: NaN or infinity in it.")


def warn_of_probabilities(loss):
    """Warns of a loss of Keras that would take the model's logits for probabilities."""
    try:
        loss = keras.losses.get(loss)
    except (TypeError, ValueError):  # several losses, which Keras checks
        return
    names = {keras.src.utils.naming.to_snake_case(c.__name__): c for c in _OF_PROBABILITIES}
    name = getattr(loss, "__name__", None) or type(loss).__name__
    is_function = name in names
    is_object = isinstance(loss, _OF_PROBABILITIES) and not loss.get_config().get("from_logits")
    if is_function or is_object:
        class_name = names[name].__name__ if is_function else name
        warnings.warn(
            "The model's outputs are logits, which this loss takes for probabilities. "
            f"Try loss=keras.losses.{class_name}(from_logits=True), or compile() without a loss.",
            stacklevel=3,
        )


def check_rate_callbacks(callbacks):
    """Raises ValueError for a callback that sets the rate of the default optimizer."""
    for callback in callbacks or ():
        sets_rate = (keras.callbacks.LearningRateScheduler, keras.callbacks.ReduceLROnPlateau)
        if isinstance(callback, sets_rate):
            name = type(callback).__name__
            raise ValueError(
                f"{name} sets the learning rate, but compile() without an optimizer has a "
                f"schedule of its own over each fit. Received: callbacks with a {name}. Try "
                "compile(optimizer=kgpt.recipes.AdamW(2.5e-4, weight_decay=0.01, "
                "global_clipnorm=1.0)), whose rate is a number."
            )
