"""Which classes a classifier takes for which."""

from collections.abc import Sequence

import numpy as np

from kgpt.arguments import checked, refuse
from kgpt.plot.figure import SHADES, new_figure


@checked
def confusion_matrix(labels, predictions, class_names=None):
    """Draws how often each class was taken for each.

    A row is the right class, a column the predicted one. Numbers are counts; colours are shares of
    the row, so that a rare class shows too.

    Args:
        labels: int array `(examples,)`: the right classes, counted from 0, or names of classes.
        predictions: predicted classes in the same form, or logits `(examples, num_classes)` as from
            `predict`.
        class_names: optional list of str, such as `classifier.class_names`.

    Returns:
        `matplotlib.figure.Figure`. A notebook shows it; `figure.savefig(path)` writes it.

    Raises:
        ValueError: for no examples, other numbers of labels and predictions, and for classes
            outside `class_names`.

    Example:
        kgpt.plot.confusion_matrix([0, 0, 1], [0, 1, 1], class_names=["dull", "fine"])
    """
    predictions = _classes(predictions)
    num_classes = predictions.shape[1] if predictions.ndim == 2 else None
    predictions = predictions.argmax(1) if predictions.ndim == 2 else predictions
    labels = _classes(labels)
    if labels.ndim != 1 or labels.shape != predictions.shape or not len(labels):
        raise ValueError(
            "labels and predictions must be arrays of one class for each example. Received: shapes "
            f"{labels.shape} and {predictions.shape}."
        )
    names = class_names
    if names is not None and (isinstance(names, str) or not isinstance(names, Sequence)):
        refuse("class_names", names, "a list of names", error=TypeError)
    if names is None and (labels.dtype.kind in "US") != (predictions.dtype.kind in "US"):
        raise ValueError(
            "labels and predictions must be names alike or numbers alike, or class_names must say "
            f"which is which. Received: {labels[0]!r} among the labels and {predictions[0]!r} "
            "among the predictions, class_names=None."
        )
    if names is None and labels.dtype.kind in "US":
        names = sorted({*labels.tolist(), *predictions.tolist()})
    if names is None:
        names = list(range(num_classes or 1 + int(max(labels.max(), predictions.max()))))
    right, predicted = (_numbers(values, names) for values in (labels, predictions))
    counts = np.zeros((len(names), len(names)), int)
    np.add.at(counts, (right, predicted), 1)
    return _draw(counts, [str(name) for name in names])


def _classes(values):
    """Returns an array; names in an array of objects, as pandas has them, are made plain."""
    values = np.asarray(values)
    are_names = values.dtype.kind == "O" and all(isinstance(value, str) for value in values.flat)
    return values.astype("U") if are_names else values


def _numbers(values, names):
    places = {name: number for number, name in enumerate(names)}
    if values.dtype.kind not in "US":
        places = {number: number for number in range(len(names))}
    wrong = [value for value in values.tolist() if value not in places]
    if wrong:
        raise ValueError(
            f"labels and predictions must be among the classes {list(places)}. Received: "
            f"{wrong[0]!r}."
        )
    return [places[value] for value in values.tolist()]


def _draw(counts, names):
    size = max(2.2, 0.45 * len(names))
    margin = 0.09 * max(map(len, names))
    figure = new_figure(size + margin + 1.4, size + margin + 0.7, layout="compressed")
    axes = figure.add_subplot()
    shares = counts / np.maximum(counts.sum(1, keepdims=True), 1)
    image = axes.imshow(shares, cmap=SHADES, vmin=0, vmax=1)
    for row, column in np.ndindex(counts.shape):
        colour = "white" if shares[row, column] > 0.6 else "black"
        where = {"ha": "center", "va": "center", "color": colour, "fontsize": 8}
        axes.text(column, row, str(counts[row, column]), **where)
    axes.set_xticks(range(len(names)), names, rotation=90 if margin > 0.4 else 0)
    axes.set_yticks(range(len(names)), names)
    axes.set(xlabel="predicted", ylabel="right")
    figure.colorbar(image, ax=axes, label="share of the row", fraction=0.05)
    return figure
