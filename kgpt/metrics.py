"""Metrics: perplexity during training, and the scores of tasks over a whole set at once.

Correlations and F1 are no means over batches, so `compile(metrics=...)`, which averages, is not the
place for them: score predictions, or let `kgpt.callbacks.Scores` do it after each epoch.
"""

import keras
import numpy as np


@keras.saving.register_keras_serializable(package="kgpt")
class Perplexity(keras.metrics.Mean):
    """`exp` of the mean loss per token, over all tokens since the last reset."""

    def result(self):
        return keras.ops.exp(super().result())


def classification_scores(labels, logits) -> dict[str, float]:
    """Returns accuracy, F1 and Matthews correlation (scikit-learn's).

    Args:
        labels: ints `(examples,)`: the right classes.
        logits: floats `(examples, classes)`, as from `predict`; the largest is what was predicted.

    Returns:
        dict with `"accuracy"`, `"f1"` and `"matthews"`. F1 is that of class 1 if there are two
        classes, as GLUE has it for MRPC and QQP, and else the mean over classes. Matthews
        correlation is CoLA's score; where all predictions are the same it is 0.

    Raises:
        ValueError: for shapes that do not fit each other.
    """
    from sklearn import metrics

    labels, logits = np.asarray(labels).reshape(-1), np.asarray(logits)
    if logits.ndim != 2 or len(logits) != len(labels):
        raise ValueError(
            "labels must have shape (examples,) and logits (examples, classes). "
            f"Received: shapes {labels.shape} and {logits.shape}."
        )
    predicted = logits.argmax(axis=-1)
    average = "binary" if logits.shape[1] == 2 else "macro"
    return {
        "accuracy": float(metrics.accuracy_score(labels, predicted)),
        "f1": float(metrics.f1_score(labels, predicted, average=average, zero_division=0)),
        "matthews": float(metrics.matthews_corrcoef(labels, predicted)),
    }


def regression_scores(targets, outputs) -> dict[str, float]:
    """Returns Pearson and Spearman correlation (scipy's).

    Args:
        targets: floats `(examples,)` or `(examples, outputs)`.
        outputs: floats of the same size, as from `predict`.

    Returns:
        dict with `"pearson"` and `"spearman"`: of several outputs the mean of each one's. Where
        all values are the same, which has no correlation, it is 0.

    Raises:
        ValueError: for shapes that do not fit each other, and fewer than two examples.
    """
    from scipy import stats

    targets, outputs = (np.asarray(x, "float64") for x in (targets, outputs))
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


def _vary(*columns):
    return all(np.ptp(column) > 0 for column in columns)
