"""A context and the ending that fits it, among several."""

from typing import Literal, overload

import keras
import numpy as np
from keras import ops

from kgpt.arguments import checked
from kgpt.models import text_inputs
from kgpt.models.class_labels import check_class_labels, class_loss
from kgpt.models.head import Head, output_projection_layer
from kgpt.models.sample_weights import read_class_weight, weigh_labels


@keras.saving.register_keras_serializable(package="kgpt")
class MultipleChoice(Head):
    """Chooses among texts that continue a context: questions with answers, story endings.

    Each choice is a sequence of its own, `[start] context [delimiter] choice [classify]`; one
    linear map turns its last real token's state into a number, and a softmax goes over the choices
    (GPT-1, section 3.3). Dropout has the same mask for all choices of an example. The map starts at
    N(0, 0.02), its bias at 0. Labels are the numbers of the right choices, from 0. Reported are
    `loss`, `task_loss`, `lm_loss` and `accuracy`.

    Args:
        backbone: the `GPTBackbone` underneath, shared and not copied.
        tokenizer: optional `kgpt.Tokenizer`, for `predict_text`; saved in the model's file.
        lm_loss_weight: float. The paper's lambda: the weight of the language-model loss.
        dropout: float in [0, 1). Used on the states that the numbers are read from.
        sequence_length: optional int. Most tokens of a text that goes into `fit`, `evaluate` and
            `predict`, special ones included; the backbone's maximum if None.
        **kwargs: `name` and `trainable`.

    Call arguments:
        inputs: as for `Head`, `(batch, choices, length)`.

    Returns:
        float tensor `(batch, choices)`: logits.

    Raises:
        ValueError: for values out of range, and if the tokenizer has more tokens than the backbone.

    Example:
        model = kgpt.MultipleChoice(lm.backbone, tokenizer=tokenizer)
        model.compile(kgpt.recipes.finetuning_optimizer(steps=600))
        model.fit(kgpt.data.multiple_choice(contexts, choices, labels, tokenizer), epochs=3)
        model.predict_text(["The sky is"], [["blue.", "loud."]])
    """

    @checked
    def __init__(
        self,
        backbone,
        tokenizer=None,
        lm_loss_weight: float = 0.5,
        dropout: float = 0.1,
        sequence_length: int | None = None,
        **kwargs,
    ):
        head_dropout = keras.layers.Dropout(
            dropout, noise_shape=(None, 1, None), name="head_dropout"
        )
        output_projection = output_projection_layer(backbone, 1)
        super().__init__(
            backbone,
            head=lambda states: ops.squeeze(output_projection(head_dropout(states)), axis=-1),
            tokenizer=tokenizer,
            sequence_length=sequence_length,
            lm_loss_weight=lm_loss_weight,
            task_metrics=[keras.metrics.SparseCategoricalAccuracy(name="accuracy")],
            **kwargs,
        )
        self.output_projection = output_projection
        self.dropout = dropout

    outputs_are_logits = True
    _fixed = (*Head._fixed, "dropout")
    text_batches = text_inputs.choice_batches

    def task_loss(self, y, outputs):
        return class_loss(y, outputs)

    def weigh(self, x, y, sample_weight, class_weight=None):
        y, sample_weight, wrong = super().weigh(x, y, sample_weight)
        if y is None:
            return y, sample_weight, wrong
        shape = x["token_ids"].shape
        return weigh_labels(
            y, sample_weight, shape[1] or ops.shape(x["token_ids"])[1], class_weight
        )

    def read_class_weight(self, class_weight):
        return read_class_weight(class_weight)

    def check_task(self, batches):
        super().check_task(batches)
        if batches.sequences_per_example < 2 or batches.both_orders:
            raise ValueError(
                "A MultipleChoice needs examples with two choices at least, as from "
                "kgpt.data.multiple_choice. Received: batches with "
                f"{batches.sequences_per_example} sequence(s) for each example, "
                f"both_orders={batches.both_orders}."
            )

    def check_data(self, x, y=None, sample_weight=None):
        super().check_data(x, y, sample_weight)
        token_ids = x.get("token_ids") if isinstance(x, dict) else x
        shape = getattr(token_ids, "shape", None)
        if shape is not None and len(shape) == 3:
            check_class_labels(y, shape[1], self)

    @overload
    def predict_text(
        self, contexts, choices, batch_size: int = 8, *, probabilities: Literal[True]
    ) -> np.ndarray: ...
    @overload
    def predict_text(
        self, contexts, choices, batch_size: int = 8, probabilities: Literal[False] = False
    ) -> list[int]: ...
    @checked
    def predict_text(self, contexts, choices, batch_size: int = 8, probabilities: bool = False):
        """Returns the number of the best choice for each context.

        Args:
            contexts: list of texts; what exceeds the model's `sequence_length` is cut as in
                `kgpt.data.multiple_choice`.
            choices: list of lists of texts, the same number for each context.
            batch_size: int. Contexts in a batch.
            probabilities: bool. Whether to return the probabilities of all choices instead.

        Returns:
            list of int, from 0; with `probabilities`, float array `(contexts, choices)`.

        Raises:
            ValueError: without a tokenizer, and as `kgpt.data.multiple_choice`.

        Example:
            model = kgpt.MultipleChoice(lm.backbone, tokenizer=tokenizer)
            model.predict_text(["The sky is"], [["blue.", "loud."]], probabilities=True)
        """
        logits = self.predict(
            text_inputs.batches_of(self, (contexts, choices), batch_size=batch_size), verbose=0
        )
        if probabilities:
            return ops.convert_to_numpy(ops.softmax(logits, axis=-1))
        return logits.argmax(axis=-1).tolist()

    def get_config(self):
        config = {**super().get_config(), "dropout": self.dropout}
        del config["truncate"]  # contexts always lose their beginning
        return config
