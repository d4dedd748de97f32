"""A text, or a pair, and numbers."""

import keras
import numpy as np
from keras import ops

from kgpt.arguments import checked
from kgpt.models import text_inputs
from kgpt.models.checks import as_array, check_one_array
from kgpt.models.head import Head, output_projection_layer


@keras.saving.register_keras_serializable(package="kgpt")
class TextRegressor(Head):
    """Predicts one number or several from a text or a pair, such as how alike two sentences are.

    `W dropout(h)`, where `h` is the last real token's state, summed over the sequences of an
    example (GPT-1, section 3.3), under the mean squared error. `W` starts at N(0, 0.02), its bias
    at 0. Reported are `loss`, `task_loss` (the mean squared error), `lm_loss` and
    `mean_absolute_error`.

    Targets far from 0 or of large spread are learned slowly: scale them first.

    Args:
        backbone: the `GPTBackbone` underneath, shared and not copied.
        num_outputs: int. Number of outputs for each example.
        tokenizer: optional `kgpt.Tokenizer`, for `predict_text`; saved in the model's file.
        both_orders: bool. Whether pairs are read in both orders, as `kgpt.data.regression` makes
            them; no effect on single texts.
        lm_loss_weight: float. The paper's lambda: the weight of the language-model loss.
        dropout: float in [0, 1). Used on the state that the numbers are read from.
        sequence_length: optional int. Most tokens of a text that goes into `fit`, `evaluate` and
            `predict`, special ones included; the backbone's maximum if None.
        truncate: "end" or "start": what a longer text loses.
        **kwargs: `name` and `trainable`.

    Call arguments:
        inputs: as for `Head`, `(batch, length)`, or `(batch, 2, length)` for both orders of a pair.

    Returns:
        float tensor `(batch, num_outputs)`.

    Raises:
        ValueError: if `num_outputs` is below 1.

    Example:
        regressor = kgpt.TextRegressor(lm.backbone, tokenizer=tokenizer)
        regressor.compile(kgpt.recipes.finetuning_optimizer(steps=600))
        regressor.fit(kgpt.data.regression(list(zip(first, second)), scores, tokenizer), epochs=3)
    """

    @checked
    def __init__(
        self,
        backbone,
        num_outputs: int = 1,
        tokenizer=None,
        both_orders: bool = True,
        lm_loss_weight: float = 0.5,
        dropout: float = 0.1,
        sequence_length: int | None = None,
        truncate: str = "end",
        **kwargs,
    ):
        head_dropout = keras.layers.Dropout(dropout, name="head_dropout")
        output_projection = output_projection_layer(backbone, num_outputs)
        super().__init__(
            backbone,
            head=lambda states: output_projection(head_dropout(ops.sum(states, axis=1))),
            tokenizer=tokenizer,
            sequence_length=sequence_length,
            truncate=truncate,
            lm_loss_weight=lm_loss_weight,
            task_metrics=[keras.metrics.MeanAbsoluteError(name="mean_absolute_error")],
            **kwargs,
        )
        self.output_projection = output_projection
        self.num_outputs = num_outputs
        self.both_orders = both_orders
        self.dropout = dropout

    text_batches = text_inputs.regressor_batches
    _fixed = (*Head._fixed, "num_outputs", "dropout")

    def own_loss(self, x, y, hidden_states, outputs, sample_weight, training):
        if y is not None:  # `(batch,)` is `(batch, 1)`, for loss and metrics alike
            y = ops.convert_to_tensor(y)
            self._check_shape(tuple(y.shape))
            y = ops.reshape(ops.cast(y, "float32"), (-1, self.num_outputs))
        return super().own_loss(x, y, hidden_states, outputs, sample_weight, training)

    def task_loss(self, y, outputs):
        if y is None:
            raise ValueError("Regression needs targets. Received: data without them, y=None.")
        return ops.mean(ops.square(y - ops.cast(outputs, "float32")), axis=-1)

    def check_targets(self, y):
        check_one_array("y", y)
        y = as_array(y)
        if y is None:
            return
        if y.dtype.kind not in "biuf":
            raise ValueError(f"Targets must be numbers. Received: dtype {y.dtype}.")
        self._check_shape(y.shape)
        if not np.isfinite(y).all():
            raise ValueError(
                f"Targets must be finite numbers. Received: {y[~np.isfinite(y)][0]} among them."
            )

    def _check_shape(self, shape):
        known = [(self.num_outputs,), (None,), *([()] if self.num_outputs == 1 else [])]
        if shape[1:] not in known:
            raise ValueError(
                f"Targets must have shape (examples, {self.num_outputs}). "
                f"Received: shape {shape}. The number is the model's num_outputs."
            )

    def check_task(self, batches):
        super().check_task(batches)
        if batches.both_orders != self.both_orders:
            raise ValueError(
                "The data and the model must read pairs alike. Received: data with "
                f"both_orders={batches.both_orders}, a model with both_orders={self.both_orders}."
            )

    @checked
    def predict_text(self, texts, batch_size: int = 32) -> np.ndarray:
        """Returns the outputs for texts, or for pairs of texts.

        Args:
            texts: texts, or pairs `(first, second)`; what exceeds the model's `sequence_length` is
                cut as in `kgpt.data.regression`.
            batch_size: int. Texts in a batch.

        Returns:
            float array `(texts, num_outputs)`.

        Raises:
            ValueError: without a tokenizer, and for anything but a list of texts or pairs.

        Example:
            regressor = kgpt.TextRegressor(lm.backbone, tokenizer=tokenizer)
            regressor.predict_text([("a cat", "a kitten"), ("a dog", "a car")])
        """
        return self.predict(text_inputs.batches_of(self, texts, batch_size=batch_size), verbose=0)

    def get_config(self):
        return {
            **super().get_config(),
            "num_outputs": self.num_outputs,
            "both_orders": self.both_orders,
            "dropout": self.dropout,
        }
