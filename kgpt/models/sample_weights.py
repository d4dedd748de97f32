"""What of a head's batch counts, and how much: labels to leave out, weights of rows and classes.

`weigh_labels` runs inside the step, on batches of every source alike.
"""

import keras
import numpy as np
from keras import ops
from keras.src.backend import set_keras_mask

from kgpt.arguments import is_int, is_real


def weigh_labels(y, sample_weight, num_classes, class_weight=None):
    """Returns labels and weights in which a label outside the classes has weight 0.

    Args:
        y: tensor of labels `(batch,)` or `(batch, 1)`; one-hot rows are only weighed by class.
        sample_weight: optional tensor `(batch,)` or `(batch, 1)`.
        num_classes: int, or int scalar.
        class_weight: optional float array: the weight of each class; 1 for those after its end.

    Returns:
        The labels, the weights `(batch,)` or None, and how many labels are no classes.
    """
    y = ops.convert_to_tensor(y)
    is_one_hot = len(y.shape) > 1 and y.shape[-1] != 1
    classes = ops.argmax(y, axis=-1) if is_one_hot else ops.reshape(ops.cast(y, "int32"), (-1,))
    wrong = 0.0
    if not is_one_hot:
        is_class = ops.logical_and(classes >= 0, classes < num_classes)
        is_whole = ops.equal(ops.cast(classes, y.dtype), ops.reshape(y, (-1,)))
        is_class = ops.logical_and(is_class, is_whole)
        y = classes = ops.where(is_class, classes, 0)
        counts = ops.cast(is_class, "float32")
        wrong = ops.sum(1.0 - counts)
        sample_weight = counts if sample_weight is None else _of_rows(sample_weight) * counts
    if class_weight is not None:
        check_class_weight(class_weight, num_classes if isinstance(num_classes, int) else None)
        table = ops.convert_to_tensor(np.append(class_weight, 1.0).astype("float32"))
        weights = ops.take(table, ops.minimum(classes, len(class_weight)), axis=0)
        sample_weight = weights if sample_weight is None else _of_rows(sample_weight) * weights
    return y, sample_weight, wrong


def weigh_multi_labels(y, sample_weight, num_classes):
    """Returns labels and weights in which a row with other numbers than 0 and 1 has weight 0.

    Args:
        y: tensor of labels `(batch, num_classes)`.
        sample_weight: optional tensor `(batch,)` or `(batch, 1)`.
        num_classes: int.

    Returns:
        The labels, the weights `(batch,)`, and how many rows are no labels.

    Raises:
        ValueError: for labels of another shape.
    """
    y = ops.convert_to_tensor(y)
    if len(y.shape) != 2 or y.shape[-1] not in (None, num_classes):
        raise ValueError(
            "Labels for a TextClassifier with multi_label=True must be 0 or 1 for each class, of "
            f"shape (batch, {num_classes}). Received: shape {tuple(y.shape)}."
        )
    is_label = ops.all(ops.logical_or(ops.equal(y, 0), ops.equal(y, 1)), axis=-1)
    y = ops.cast(ops.logical_and(is_label[:, None], ops.equal(y, 1)), "float32")
    counts = ops.cast(is_label, "float32")
    wrong = ops.sum(1.0 - counts)
    if sample_weight is not None:
        counts = counts * _of_rows(sample_weight)
    return y, counts, wrong


def _of_rows(sample_weight):
    return sample_weight[:, 0] if len(sample_weight.shape) == 2 else sample_weight


def read_weights(sample_weight, *shapes):
    """Returns weights as a float32 tensor, or None; ValueError for those of another shape.

    Args:
        sample_weight: tensor, array or list, or None.
        *shapes: tuples that are allowed; None in a shape fits any number.
    """
    if sample_weight is None:
        return None
    sample_weight = ops.cast(sample_weight, "float32")
    shape = tuple(sample_weight.shape)
    for allowed in shapes:
        if len(shape) != len(allowed):
            continue
        if all(None in (a, b) or a == b for a, b in zip(shape, allowed, strict=True)):
            return sample_weight
    expected = " or ".join(map(str, shapes)).replace("None", "batch", 1)
    raise ValueError(
        f"sample_weight must have one number for each row or position: shape {expected}. "
        f"Received: shape {shape}."
    )


def read_class_weight(class_weight, num_classes=None, class_names=None):
    """Returns the weight of each class as a float array.

    Args:
        class_weight: dict from the number of a class, or its name, to its weight.
        num_classes: optional int.
        class_names: optional list of str.

    Raises:
        ValueError: for a class that is not there or there twice, for a weight that is no number of
            at least 0, and for weights that are all 0.
    """
    if not isinstance(class_weight, dict) or not class_weight:
        raise ValueError(
            "class_weight must be a dict from a class to its weight, such as {0: 3.0, 1: 1.0}. "
            f"Received: class_weight={class_weight!r}."
        )
    numbers_of = {name: number for number, name in enumerate(class_names or ())}
    classes = [numbers_of.get(key, key) for key in class_weight]
    most = np.inf if num_classes is None else num_classes
    for key, number in zip(class_weight, classes, strict=True):
        if not is_int(number) or not 0 <= number < most:
            known = "ints from 0" if num_classes is None else f"ints in [0, {num_classes})"
            raise ValueError(
                f"The keys of class_weight must be classes: {known}"
                f"{f' or one of {class_names}' if class_names else ''}. Received: {key!r}."
            )
        weight = class_weight[key]
        if not is_real(weight) or not 0 <= weight < np.inf:
            raise ValueError(
                "The weights in class_weight must be finite numbers of at least 0. "
                f"Received: {weight!r} for {key!r}."
            )
        if classes.count(number) > 1:
            raise ValueError(
                "class_weight must have each class once, by its number or its name. "
                f"Received: {class_weight!r:.80}."
            )
    table = np.ones(max(classes) + 1, "float32")
    table[classes] = list(class_weight.values())
    check_class_weight(table, num_classes)
    return table


def check_class_weight(table, num_classes: int | None):
    """Raises ValueError for weights of classes that are not there, or that leave nothing to learn.

    Args:
        table: float array, the weight of each class; 1 for those after its end.
        num_classes: int; None if it is not known.
    """
    if num_classes is not None and len(table) > num_classes:
        raise ValueError(
            f"The keys of class_weight must be classes: ints in [0, {num_classes}). Received: "
            f"{len(table) - 1}."
        )
    if num_classes == len(table) and not np.any(table):
        raise ValueError(
            "class_weight must leave something to learn. Received: a weight of 0 for each class."
        )


def set_class_weight(task, class_weight):
    """Sets the weights of classes that the next steps train with; None for none."""
    table = None if class_weight is None else task.read_class_weight(class_weight).tolist()
    if table != task._class_weight:
        task.train_function = None  # it is part of the compiled step
    task._class_weight = table


def masked(outputs, mask):
    """Returns outputs of which losses and metrics of Keras count what a mask says."""
    if mask is not None:
        keras.tree.map_structure(lambda output: set_keras_mask(output, mask), outputs)
    return outputs
