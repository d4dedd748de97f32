"""See scores of a head while training."""

from importlib.util import find_spec

import keras
import numpy as np

from kgpt.arguments import checked
from kgpt.metrics import classification_scores, multi_label_scores, regression_scores


class Scores(keras.callbacks.Callback):
    """Scores a head on a whole data set after each epoch, and adds the scores to the epoch's logs.

    `val_accuracy`, `val_f1` and `val_matthews` for classes; `val_f1`, `val_micro_f1` and
    `val_mean_average_precision` where several classes may be right; `val_pearson` and
    `val_spearman` for numbers, as in `kgpt.metrics`. Examples count by their `sample_weight`. The
    other callbacks of the fit see the scores, wherever they stand in the list.

    Args:
        data: labelled batches from one of `kgpt.data`'s tasks.
        prefix: str. What the names of the scores begin with.

    Raises:
        ValueError: for data without labels, and for weighted numbers: correlations have no weights;
            when training begins, for data that the model can't be evaluated on.
        ImportError: if scikit-learn (for classes) or scipy (for numbers) is not installed.

    Example:
        scores = kgpt.callbacks.Scores(kgpt.data.classification(texts, labels, tokenizer))
        best = keras.callbacks.EarlyStopping("val_matthews", mode="max", restore_best_weights=True)
        classifier = kgpt.TextClassifier(lm.backbone, num_classes=2, tokenizer=tokenizer)
        classifier.fit(texts, labels, epochs=2, callbacks=[scores, best])
    """

    comes_first = True  # among callbacks

    @checked
    def __init__(self, data, prefix: str = "val_"):
        super().__init__()
        if getattr(data, "labels", None) is None:
            raise ValueError(
                "Scores need labelled batches, as from kgpt.data.classification. "
                f"Received: data={data!r}."
            )
        is_regression = data.labels.dtype.kind == "f"
        if is_regression and data.sample_weight is not None:
            raise ValueError(
                "Pearson and Spearman correlation count all examples alike. Received: data with a "
                "sample_weight. Try data for the scores without it."
            )
        scores = {"f": regression_scores, "u": multi_label_scores}  # by the kind of number
        self._score = scores.get(data.labels.dtype.kind, classification_scores)
        module, package = ("scipy", "scipy") if is_regression else ("sklearn", "scikit-learn")
        if find_spec(module) is None:  # said here, and not at the end of the first epoch
            raise ImportError(f"These scores need {package}. Try: pip install {package}")
        self.data = data
        self.prefix = prefix

    def on_train_begin(self, logs=None):
        if hasattr(self.model, "check_data"):  # said here, and not at the end of the first epoch
            self.model.check_data(self.data)

    def on_epoch_end(self, epoch, logs=None):
        outputs = self.model.predict(self.data, verbose=0)
        weights = self.data.sample_weight
        weights = {} if weights is None else {"sample_weight": weights}
        is_finite = np.isfinite(outputs).all()  # a run that diverged goes on to other callbacks
        scores = self._score(
            self.data.labels, outputs if is_finite else np.zeros_like(outputs), **weights
        )
        for name, value in scores.items():
            logs[self.prefix + name] = value if is_finite else np.nan
