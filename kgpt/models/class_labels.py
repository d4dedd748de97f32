"""Labels that are classes: their loss and their check."""

import numpy as np
from keras import ops

from kgpt.models.checks import as_array


def class_loss(labels, logits):
    """Returns the cross-entropy of each example, `(batch,)`; raises ValueError without labels."""
    if labels is None:
        raise ValueError("The loss of classes needs labels. Received: data without them, y=None.")
    labels = ops.reshape(ops.cast(labels, "int32"), (-1,))
    return ops.sparse_categorical_crossentropy(labels, logits, from_logits=True)


def check_class_labels(y, num_classes, model_name):
    """Raises ValueError for an array of labels that are not classes of the model."""
    y = as_array(y)
    if y is None:
        return
    if y.shape[1:] not in ((), (1,)):
        raise ValueError(
            f"Labels for this {model_name} must be one int for each example, of shape (examples,). "
            f"Received: shape {y.shape}. If they are one-hot, try labels.argmax(axis=-1)."
        )
    wrong = ~np.isin(y, np.arange(num_classes))
    if wrong.any():
        raise ValueError(
            f"Labels for this {model_name} must be ints in [0, {num_classes}). "
            f"Received: {y[wrong].flat[0]!r} among the labels."
        )
