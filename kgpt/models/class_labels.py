"""Labels that are classes: their loss and their check."""

import keras
import numpy as np
from keras import ops

from kgpt.models.checks import as_array, check_one_array


def class_loss(labels, logits, label_smoothing=0.0):
    """Returns the cross-entropy of each example, `(batch,)`; raises ValueError without labels.

    Smoothed, the share `label_smoothing` of the target is spread evenly over all classes.
    """
    labels = ops.convert_to_tensor(_required(labels))
    _check_shape("Labels", tuple(labels.shape))
    labels = ops.reshape(ops.cast(labels, "int32"), (-1,))
    if not label_smoothing:
        return ops.sparse_categorical_crossentropy(labels, logits, from_logits=True)
    labels = ops.one_hot(labels, logits.shape[-1])
    return keras.losses.categorical_crossentropy(labels, logits, True, label_smoothing)


def multi_label_loss(labels, logits, label_smoothing=0.0):
    """Returns each example's binary cross-entropy, a mean over the classes, `(batch,)`.

    Smoothed, a target of 0 is `label_smoothing / 2`, and one of 1 is as far from 1.
    """
    return keras.losses.binary_crossentropy(_required(labels), logits, True, label_smoothing)


def _required(labels):
    if labels is None:
        raise ValueError("The loss of classes needs labels. Received: data without them, y=None.")
    return labels


def check_class_labels(y, num_classes, model):
    """Raises ValueError for an array of labels that are not classes of the model.

    Losses of Keras may take a row of shares, one for each class, and so one-hot labels.
    """
    check_one_array("y", y)
    y = as_array(y)
    if y is None:
        return
    name = f"Labels for this {type(model).__name__}"
    if y.shape[1:] == (num_classes,) and not model._uses_own_loss:
        _check_numbers(name, y)
        if not np.isfinite(y).all():
            raise ValueError(f"{name} must be finite numbers. Received: NaN or infinity in them.")
        return
    _check_shape(name, y.shape)
    _check_numbers(name, y)
    wrong = ~np.isin(y, np.arange(num_classes))
    if wrong.any():
        raise ValueError(
            f"{name} must be ints in [0, {num_classes}). "
            f"Received: {y[wrong].flat[0]!r} among the labels."
        )


def _check_shape(name, shape):
    if len(shape) > 2 or shape[1:] not in ((), (1,), (None,)):
        raise ValueError(
            f"{name} must be one int for each example, of shape (examples,). "
            f"Received: shape {shape}. If they are one-hot, try labels.argmax(axis=-1); if "
            "several classes may be right, TextClassifier(..., multi_label=True)."
        )


def _check_numbers(name, y):
    if y.dtype.kind not in "biuf":
        received = f"dtype {y.dtype}, with {y.flat[0]!r} among them" if y.size else y.dtype
        raise ValueError(f"{name} must be ints. Received: {received}.")


def check_multi_labels(y, num_classes):
    """Raises ValueError for an array of labels that are not 0 or 1 for each class of the model."""
    check_one_array("y", y)
    y = as_array(y)
    if y is None:
        return
    if y.shape[1:] != (num_classes,):
        raise ValueError(
            "Labels for a TextClassifier with multi_label=True must be 0 or 1 for each class, of "
            f"shape (examples, {num_classes}). Received: shape {y.shape}. If each example has one "
            "class, leave multi_label out."
        )
    _check_numbers("Labels for a TextClassifier with multi_label=True", y)
    wrong = ~np.isin(y, (0, 1))
    if wrong.any():
        raise ValueError(
            "Labels for a TextClassifier with multi_label=True must be 0 or 1. "
            f"Received: {y[wrong].flat[0]!r} among the labels."
        )
