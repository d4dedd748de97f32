"""Metrics: perplexity during training, and the scores of tasks over a whole set at once.

Correlations and F1 are no means over batches, so `compile(metrics=...)`, which averages, is not the
place for them: score predictions, or let `kgpt.callbacks.Scores` do it after each epoch.
"""

import keras
import numpy as np

from kgpt.arguments import checked, integer

__all__ = [
    "MultiLabelF1",
    "Perplexity",
    "classification_scores",
    "multi_label_scores",
    "regression_scores",
]


@keras.saving.register_keras_serializable(package="kgpt")
class Perplexity(keras.metrics.Mean):
    """`exp` of the mean loss per token, over all tokens since the last reset.

    Args:
        name: str.
        dtype: as for other metrics of Keras.

    Example:
        perplexity = kgpt.metrics.Perplexity(name="perplexity")
        perplexity.update_state([2.3, 1.9], sample_weight=[100, 250])  # nats, and numbers of tokens
        float(perplexity.result())
    """

    _direction = "down"  # which Keras's callbacks ask for

    def result(self):
        return keras.ops.exp(super().result())


@keras.saving.register_keras_serializable(package="kgpt")
class MultiLabelF1(keras.metrics.F1Score):
    """Keras's F1 of labels that are rows of 0 and 1, from the logits of a model.

    Args:
        num_classes: int.
        average: "macro" for the mean over classes, "micro" for all labels together, "weighted"
            for a mean by how often a class is right; None for an array, one for each class.
        threshold: float in (0, 1). The probability above which a class is an answer.
        name: str.
        dtype: as for other metrics of Keras.

    Raises:
        ValueError: for fewer classes than one, another average, and a threshold out of range.

    Example:
        f1 = kgpt.metrics.MultiLabelF1(num_classes=2, average="micro")
        f1.update_state([[1, 0], [1, 1]], [[2.0, -1.0], [0.5, -0.2]])
        float(f1.result())
    """

    @checked(num_classes=integer(1))
    def __init__(
        self,
        num_classes: int,
        average: str | None = "macro",
        threshold: float = 0.5,
        name: str = "f1",
        dtype=None,
    ):
        super().__init__(average, threshold, name, dtype)
        self.num_classes = num_classes
        self._build((None, num_classes), (None, num_classes))  # a step on JAX makes no variables

    def update_state(self, y_true, y_pred, sample_weight=None):
        return super().update_state(y_true, keras.ops.sigmoid(y_pred), sample_weight)

    def get_config(self):
        return {**super().get_config(), "num_classes": self.num_classes}


def classification_scores(labels, logits, sample_weight=None) -> dict[str, float]:
    """Returns accuracy, F1 and Matthews correlation (scikit-learn's).

    Args:
        labels: ints `(examples,)`: the right classes.
        logits: floats `(examples, classes)`, as from `predict`; the largest is what was predicted.
        sample_weight: optional floats `(examples,)`.

    Returns:
        dict with `"accuracy"`, `"f1"` and `"matthews"`. F1 is that of class 1 if there are two
        classes, as GLUE has it for MRPC and QQP, and else the mean over classes. Matthews
        correlation is CoLA's score; where all predictions are the same it is 0.

    Raises:
        ValueError: for shapes that do not fit each other, labels that are no classes, logits that
            are not finite, and weights by which nothing counts.
        ImportError: if scikit-learn is not installed.

    Example:
        kgpt.metrics.classification_scores([0, 1], [[2.0, -1.0], [0.5, -0.2]])
    """
    from sklearn import metrics

    labels, logits = np.asarray(labels).reshape(-1), _finite("logits", logits)
    if logits.ndim != 2 or len(logits) != len(labels) or not len(labels):
        raise ValueError(
            "labels must have shape (examples,) and logits (examples, classes), of one at least. "
            f"Received: shapes {labels.shape} and {logits.shape}."
        )
    wrong = ~np.isin(labels, np.arange(logits.shape[1])) | (labels.dtype.kind in "US")
    if wrong.any():
        i = int(wrong.argmax())
        raise ValueError(
            f"labels must be ints in [0, {logits.shape[1]}), the classes that the logits have. "
            f"Received: {labels[i]!r} at index {i}. Names become numbers by class_names.index."
        )
    labels = labels.astype("int64")
    weights = _weights(sample_weight, len(labels))
    columns = {"y_true": labels, "y_pred": logits.argmax(axis=-1), "sample_weight": weights}
    average = "binary" if logits.shape[1] == 2 else "macro"
    return {
        "accuracy": float(metrics.accuracy_score(**columns)),
        "f1": float(metrics.f1_score(**columns, average=average, zero_division=0)),
        "matthews": float(metrics.matthews_corrcoef(**columns)),
    }


@checked
def multi_label_scores(
    labels, logits, threshold: float = 0.5, sample_weight=None
) -> dict[str, float]:
    """Returns F1 and mean average precision (scikit-learn's) where texts may be of several classes.

    Args:
        labels: `(examples, classes)`, 1 for each class that is right and else 0.
        logits: floats of the same shape, as from `predict`.
        threshold: float in (0, 1). The probability above which a class counts as predicted.
        sample_weight: optional floats `(examples,)`.

    Returns:
        dict with `"f1"`, the mean over classes, `"micro_f1"`, that of all labels together, and
        `"mean_average_precision"`: the mean over the classes that are right somewhere of the
        average precision, the area under the steps of precision over recall.

    Raises:
        ValueError: for shapes that do not fit each other, labels without a 1, logits that are not
            finite, and weights by which nothing counts.
        ImportError: if scikit-learn is not installed.

    Example:
        kgpt.metrics.multi_label_scores([[1, 0], [1, 1]], [[2.0, -1.0], [0.5, -0.2]])
    """
    from sklearn import metrics

    labels, logits = np.asarray(labels), _finite("logits", logits)
    is_right = logits.ndim == 2 and logits.shape == labels.shape
    if not is_right or not np.isin(labels, (0, 1)).all() or not labels.any():
        raise ValueError(
            "labels and logits must have one shape, (examples, classes), and labels be 0 and 1. "
            f"Received: shapes {labels.shape} and {logits.shape}, labels {np.unique(labels)!s:.60}."
        )
    weights = {"sample_weight": _weights(sample_weight, len(labels))}
    predicted = logits > np.log(threshold / (1 - threshold))

    def f1(average):
        options = {"average": average, "zero_division": 0, **weights}
        return float(metrics.f1_score(labels, predicted, **options))

    occur = labels.any(axis=0)
    precision = metrics.average_precision_score(labels[:, occur], logits[:, occur], **weights)
    return {"f1": f1("macro"), "micro_f1": f1("micro"), "mean_average_precision": float(precision)}


def regression_scores(targets, outputs) -> dict[str, float]:
    """Returns Pearson and Spearman correlation (scipy's).

    Args:
        targets: floats `(examples,)` or `(examples, outputs)`.
        outputs: floats of the same size, as from `predict`.

    Returns:
        dict with `"pearson"` and `"spearman"`: of several outputs the mean of each one's. Where
        all values are the same, which has no correlation, it is 0.

    Raises:
        ValueError: for shapes that do not fit each other, fewer than two examples, and numbers that
            are not finite.
        ImportError: if scipy is not installed.

    Example:
        kgpt.metrics.regression_scores([4.2, 0.3, 2.5], [[3.9], [1.1], [2.0]])
    """
    from scipy import stats

    targets, outputs = _finite("targets", targets), _finite("outputs", outputs)
    if targets.size != outputs.size or len(targets) != len(outputs) or len(targets) < 2:
        raise ValueError(
            "targets and outputs must have one shape, with two examples at least. "
            f"Received: shapes {targets.shape} and {outputs.shape}."
        )
    columns = list(
        zip(targets.reshape(len(targets), -1).T, outputs.reshape(len(targets), -1).T, strict=True)
    )

    def mean(correlation):
        return float(np.mean([correlation(t, o)[0] if _vary(t, o) else 0.0 for t, o in columns]))

    return {"pearson": mean(stats.pearsonr), "spearman": mean(stats.spearmanr)}


def _weights(sample_weight, num_examples):
    """Returns weights as float64; raises ValueError for those by which nothing can be counted."""
    if sample_weight is None:
        return None
    weights = _finite("sample_weight", sample_weight)
    if weights.shape != (num_examples,) or weights.min() < 0 or not weights.any():
        raise ValueError(
            f"sample_weight must have shape ({num_examples},), no number below 0 and not all 0. "
            f"Received: shape {weights.shape}, {weights!s:.60}."
        )
    return weights


def _vary(*columns):
    return all(np.ptp(column) > 0 for column in columns)


def _finite(name, numbers):
    """Returns numbers as float64; raises ValueError for what is none, NaN and infinity."""
    try:
        numbers = np.asarray(numbers, "float64")
    except (TypeError, ValueError) as error:
        raise ValueError(f"{name} must be numbers. Received: {numbers!r:.80}.") from error
    wrong = ~np.isfinite(numbers)
    if wrong.any():
        raise ValueError(
            f"{name} must be finite numbers. Received: {numbers[wrong][0]} at index "
            f"{int(np.argwhere(wrong)[0][0]) if numbers.ndim else 0}."
        )
    return numbers
