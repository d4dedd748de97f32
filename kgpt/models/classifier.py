"""A text, or a pair, and its class."""

from typing import Any, Literal, overload

import keras
import numpy as np
from keras import ops

from kgpt.arguments import checked
from kgpt.console import warn
from kgpt.data.columns import read_class_names
from kgpt.metrics import MultiLabelF1
from kgpt.models import text_inputs
from kgpt.models.class_labels import (
    check_class_labels,
    check_multi_labels,
    class_loss,
    multi_label_loss,
)
from kgpt.models.head import Head, output_projection_layer, targets_of
from kgpt.models.sample_weights import read_class_weight, weigh_labels, weigh_multi_labels


@keras.saving.register_keras_serializable(package="kgpt")
class TextClassifier(Head):
    """Classifies texts, ordered pairs (entailment), or pairs in both orders (similarity).

    `P(y) = softmax(W dropout(h))` with `h` the last real token's state (GPT-1, equation 3); with
    both orders, `h` is the sum of the two states (section 3.3). `W` starts at N(0, 0.02), its bias
    at 0. Labels are ints from 0. Reported are `loss`, `task_loss`, `lm_loss` and `accuracy`.

    With `multi_label=True` a text may be of several classes, or of none: `P(y) = sigmoid(...)` for
    each class by itself, and the task loss is the mean binary cross-entropy over the classes. The
    labels of a text are a list of names or numbers of classes, or a row of 0 and 1. Reported is
    `f1`, the mean over classes, in place of `accuracy`.

    Args:
        backbone: the `GPTBackbone` underneath, shared and not copied.
        num_classes: int, at least 2. May be left out where `class_names` are given.
        class_names: the names of the classes 0, 1, ..., which `predict_text` returns.
        tokenizer: optional `kgpt.Tokenizer`, for `predict_text`; saved in the model's file.
        both_orders: bool. Whether an example is a pair in both orders, as from
            `kgpt.data.similarity`.
        lm_loss_weight: float. The paper's lambda: the weight of the language-model loss.
        dropout: float in [0, 1). Used on the state that the classes are read from.
        sequence_length: optional int. Most tokens of a text that goes into `fit`, `evaluate` and
            `predict`, special ones included; the backbone's maximum if None.
        truncate: "end" or "start": what a longer text loses.
        multi_label: bool. Whether several classes may be right, or none.
        label_smoothing: float in [0, 1). The share of the target that is spread evenly over all
            classes, as in Keras's losses; with `multi_label`, over the two answers for a class.
        **kwargs: `name` and `trainable`.

    Call arguments:
        inputs: as for `Head`, `(batch, length)`, or `(batch, 2, length)` with both orders.

    Returns:
        float tensor `(batch, num_classes)`: logits.

    Raises:
        ValueError: if there are fewer than two classes, or the arguments do not fit each other.

    Example:
        classifier = kgpt.TextClassifier(lm.backbone, num_classes=2, tokenizer=tokenizer)
        classifier.compile(kgpt.recipes.finetuning_optimizer(steps=600))
        classifier.fit(kgpt.data.classification(texts, labels, tokenizer), epochs=3)
        classifier.predict_text(["a fine film", "a dull one"])
    """

    @checked
    def __init__(
        self,
        backbone,
        num_classes: int | None = None,
        class_names=None,
        tokenizer=None,
        both_orders: bool = False,
        lm_loss_weight: float = 0.5,
        dropout: float = 0.1,
        sequence_length: int | None = None,
        truncate: str = "end",
        multi_label: bool = False,
        label_smoothing: float = 0.0,
        **kwargs,
    ):
        class_names = None if class_names is None else read_class_names(class_names)
        if num_classes is None:
            num_classes = len(class_names or ())
        if num_classes < 2 or (class_names is not None and len(class_names) != num_classes):
            raise ValueError(
                "A TextClassifier needs two classes at least, and a different name for each or "
                f"none. Received: num_classes={num_classes}, class_names={class_names}."
            )
        head_dropout = keras.layers.Dropout(dropout, name="head_dropout")
        output_projection = output_projection_layer(backbone, num_classes)
        accuracy = keras.metrics.SparseCategoricalAccuracy(name="accuracy")
        super().__init__(
            backbone,
            head=lambda states: output_projection(head_dropout(ops.sum(states, axis=1))),
            tokenizer=tokenizer,
            sequence_length=sequence_length,
            truncate=truncate,
            lm_loss_weight=lm_loss_weight,
            num_sequences=2 if both_orders else 1,
            task_metrics=[MultiLabelF1(num_classes) if multi_label else accuracy],
            **kwargs,
        )
        self.output_projection = output_projection
        self.num_classes = num_classes
        self.class_names = class_names
        self.both_orders = both_orders
        self.dropout = dropout
        self.multi_label = multi_label
        self.label_smoothing = label_smoothing

    outputs_are_logits = True
    _fixed = (
        *("num_classes", "both_orders", "dropout", "multi_label", "label_smoothing"),
        *Head._fixed,
    )
    text_batches = text_inputs.classifier_batches
    learn_from = text_inputs.learn_class_names

    def __setattr__(self, name, value):
        if name == "class_names" and value is not None:
            value = read_class_names(value)
            if len(value) != self.num_classes:
                raise ValueError(
                    "There must be a name for each class. Received: class_names="
                    f"{value!r:.200} for a model with num_classes={self.num_classes}."
                )
        super().__setattr__(name, value)

    def task_loss(self, y, outputs):
        loss = multi_label_loss if self.multi_label else class_loss
        return loss(y, outputs, self.label_smoothing)

    def check_targets(self, y):
        if self.multi_label:
            check_multi_labels(y, self.num_classes)
        else:
            check_class_labels(y, self.num_classes, self)

    def weigh(self, x, y, sample_weight, class_weight=None):
        y, sample_weight, wrong = super().weigh(x, y, sample_weight)
        if y is None:
            return y, sample_weight, wrong
        if self.multi_label:
            return weigh_multi_labels(y, sample_weight, self.num_classes)
        return weigh_labels(y, sample_weight, self.num_classes, class_weight)

    def look_at(self, x, y):
        if self.multi_label:
            return
        labels = np.array(y, "object") if isinstance(y, list) else targets_of(x, y)
        is_column = isinstance(labels, np.ndarray) and labels.size > 1
        if is_column and (labels == labels.flat[0]).all():
            warn(
                f"All labels are the same class, {labels.flat[0]}: the model will learn to answer "
                "nothing else. Is the data sorted by class, and only a part of it here?",
            )

    def read_class_weight(self, class_weight):
        if self.multi_label:
            raise ValueError(
                "class_weight weighs an example by its one class, and with multi_label=True it may "
                f"have several. Received: class_weight={class_weight!r:.60}. Try sample_weight."
            )
        return read_class_weight(class_weight, self.num_classes, self.class_names)

    def check_task(self, batches):
        super().check_task(batches)
        names = batches.class_names
        own = self.class_names or (names if names and len(names) == self.num_classes else None)
        if names is not None and list(names) != own:
            raise ValueError(
                "The data and the model must count the classes in the same order. "
                f"Received: class_names={list(names)} in the data and {own} in the model, with "
                f"num_classes={self.num_classes}. Give the model's class_names, which may be those "
                "of its first fit, to the data as well."
            )

    @overload
    def predict_text(
        self, texts, batch_size: int = 32, *, probabilities: Literal[True]
    ) -> np.ndarray: ...
    @overload
    def predict_text(
        self,
        texts,
        batch_size: int = 32,
        probabilities: Literal[False] = False,
        threshold: float | None = None,
    ) -> list[Any]: ...
    @checked
    def predict_text(
        self,
        texts,
        batch_size: int = 32,
        probabilities: bool = False,
        threshold: float | None = None,
    ):
        """Returns the classes of texts, or of pairs of texts.

        Args:
            texts: texts, or pairs `(first, second)`; what exceeds the model's `sequence_length` is
                cut as in `kgpt.data.classification` and `entailment`.
            batch_size: int. Texts in a batch.
            probabilities: bool. Whether to return the probabilities of all classes instead.
            threshold: float in (0, 1), for a model with `multi_label`: the probability above which
                a class is among the answers; 0.5 if None.

        Returns:
            list with the name of each text's class, or its number where the model has no names;
            with `multi_label`, a list of names or numbers for each text, in the order of the
            classes; with `probabilities`, float array `(texts, num_classes)`.

        Raises:
            ValueError: without a tokenizer, for anything but a list of texts or pairs, and for a
                threshold without effect.

        Example:
            names = {"class_names": ["dull", "fine"], "tokenizer": tokenizer}
            classifier = kgpt.TextClassifier(lm.backbone, **names)
            classifier.predict_text(["a fine film", "a dull one"])
        """
        if threshold is not None and (probabilities or not self.multi_label):
            raise ValueError(
                "threshold chooses among the classes of a TextClassifier(..., multi_label=True). "
                f"Received: threshold={threshold}, multi_label={self.multi_label}, "
                f"probabilities={probabilities}."
            )
        logits = self.predict(text_inputs.batches_of(self, texts, batch_size=batch_size), verbose=0)
        if probabilities or self.multi_label:
            shares = ops.sigmoid(logits) if self.multi_label else ops.softmax(logits, axis=-1)
            shares = ops.convert_to_numpy(shares)
        if probabilities:
            return shares
        names = self.class_names or range(self.num_classes)
        if self.multi_label:
            chosen = shares > (0.5 if threshold is None else threshold)
            return [[names[i] for i in np.flatnonzero(row)] for row in chosen]
        return [names[i] for i in logits.argmax(axis=-1)]

    def get_config(self):
        return {
            **super().get_config(),
            "num_classes": self.num_classes,
            "class_names": self.class_names,
            "both_orders": self.both_orders,
            "dropout": self.dropout,
            "multi_label": self.multi_label,
            "label_smoothing": self.label_smoothing,
        }
