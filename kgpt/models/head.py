"""The base of all heads for fine-tuning: one vector for each sequence, and two losses."""

import keras
from keras import ops

from kgpt import recipes
from kgpt.arguments import checked
from kgpt.data.batches import ResumableBatches
from kgpt.data.filling import num_rows, rows_of_batch
from kgpt.data.task_batches import TaskBatches
from kgpt.kernels.platform import sum_over_replicas, wide
from kgpt.losses import next_token_loss, next_token_targets
from kgpt.models.default_optimizer import UNKNOWN_STEPS
from kgpt.models.inputs import check_shapes, merge_sequences, standardize_sequences
from kgpt.models.own_metrics import mean
from kgpt.models.sample_weights import read_weights
from kgpt.models.task import Task


class Head(Task):
    """A model that reads whole sequences: the base of `TextClassifier` and the like, and of yours.

    The output is the head's map of the state of each sequence's last real token, the classify token
    (GPT-1, section 3.2). The loss, a mean over the batch, is

        task loss + lm_loss_weight x language-model loss                 (GPT-1, equation 5)

    where the second is next-token cross-entropy, a mean over the real tokens of a sequence and then
    over sequences, computed in chunks. `fit` and `evaluate` report `loss`, its parts `task_loss`
    and `lm_loss`, and the head's metrics. `compile(loss=...)` is plain Keras and replaces all this.

    To write your own head, subclass `Head`, define `task_loss`, and register the class with Keras.

    A subclass defines:
        task_loss(y, outputs): returns the loss of each example, float `(batch,)`; `y` is None where
            the data has no labels or targets.

    A subclass may define, too:
        check_targets(y): raises ValueError for labels or targets that the head can't learn.
        check_task(batches): raises ValueError for batches of `kgpt.data` for other heads.

    Args:
        backbone: the `GPTBackbone` underneath, shared and not copied.
        head: Keras layer, or function that calls existing layers, from float `(batch, sequences,
            hidden_dim)` to the outputs.
        tokenizer: optional `kgpt.Tokenizer`, for text in and out; saved in the model's file.
        lm_loss_weight: float, at least 0. The paper's lambda; at 0 there is no second loss.
        num_sequences: int. Number of sequences in an example; None for any number.
        task_metrics: Keras metrics of `(y, outputs)` to report as well.
        sequence_length: optional int. Most tokens of a text that goes into `fit`, `evaluate` and
            `predict`, special ones included; the backbone's maximum if None.
        truncate: "end" or "start": what a longer text loses.
        **kwargs: `name` and `trainable`.

    Call arguments:
        inputs: a dict, or the token ids alone:

            - `"token_ids"`: int `(batch, sequences, length)`, or `(batch, length)` for one
              sequence;
            - `"padding_mask"`: optional, bool or int of the same shape; True marks real tokens.

    Returns:
        What `head` returns.

    Raises:
        ValueError: for a negative weight, and if the tokenizer has more tokens than the backbone.

    Example:
        @keras.saving.register_keras_serializable()
        class RewardModel(kgpt.Head):
            def __init__(self, backbone, **kwargs):
                super().__init__(backbone, head=keras.layers.Dense(1), **kwargs)

            def task_loss(self, y, outputs):  # of the first text more than of the second
                return keras.ops.softplus(outputs[:, 1, 0] - outputs[:, 0, 0])

        rewards = RewardModel(lm.backbone)(np.ones((4, 2, 16), "int32"))  # (4, 2, 1)
    """

    @checked
    def __init__(
        self,
        backbone,
        head,
        tokenizer=None,
        lm_loss_weight: float = 0.5,
        num_sequences: int | None = None,
        task_metrics: object = (),
        sequence_length: int | None = None,
        truncate: str = "end",
        **kwargs,
    ):
        # === Functional model ===
        shape = (num_sequences, None)
        inputs = {
            "token_ids": keras.Input(shape, dtype="int32", name="token_ids"),
            "padding_mask": keras.Input(shape, dtype="bool", name="padding_mask"),
        }
        last_states = LastTokenStates(dtype=backbone.compute_dtype, name="last_states")
        hidden_states = backbone(MergeSequences(name="merge_sequences")(inputs))
        outputs = head(last_states(hidden_states, inputs["padding_mask"]))
        super().__init__(backbone, inputs, outputs, tokenizer, sequence_length, truncate, **kwargs)
        # A function and not the model: as an attribute that would be saved as a part of this one.
        self.states_and_outputs = keras.Model(inputs, (hidden_states, outputs), name="step").call

        # === Config ===
        self.lm_loss_weight = lm_loss_weight
        self.num_sequences = num_sequences
        names = ["loss", "task_loss", "lm_loss"] if lm_loss_weight else ["loss", "task_loss"]
        self.own_metrics = [*map(mean, names), *task_metrics]
        self._num_losses = len(names)

    # === For subclasses ===

    def task_loss(self, y, outputs):
        """Returns the loss of each example.

        Args:
            y: labels or targets as in the data; None where the data has none.
            outputs: the model's outputs for the batch.

        Returns:
            float tensor `(batch,)`.
        """
        raise NotImplementedError(f"{type(self).__name__} must define task_loss(y, outputs).")

    def check_targets(self, y):
        """Raises ValueError for labels or targets that the head can't learn; None for no labels."""

    # === Keras's entry points ===

    _fixed = (*Task._fixed, "lm_loss_weight", "num_sequences")

    def standardize_inputs(self, inputs):
        """Returns inputs as a dict of tensors `(batch, sequences, length)`."""
        return standardize_sequences(inputs, self.num_sequences)

    def compute_output_spec(self, inputs, training=None, mask=None):
        """Returns the shape and the dtype of the outputs."""
        return super().compute_output_spec(self.standardize_inputs(inputs))

    def check_data(self, x, y=None, sample_weight=None):
        super().check_data(x, y, sample_weight)
        check_shapes(x, 2, 3)
        if isinstance(x, ResumableBatches):
            self.check_task(x)
        self.check_targets(targets_of(x, y))

    def check_task(self, batches):
        """Raises ValueError for batches of another kind of head, or of a language model."""
        if batches.has_next_tokens:
            raise ValueError(
                f"A {type(self).__name__} learns labels or targets of whole sequences. Received: "
                f"batches of next tokens, {batches!r:.80}. These are for a kgpt.CausalLM; "
                "kgpt.data.classification and its like make batches for heads."
            )
        sequences = batches.sequences_per_example
        if self.num_sequences is not None and sequences != self.num_sequences:
            raise ValueError(
                f"This {type(self).__name__} reads {self.num_sequences} sequence(s) for each "
                f"example. Received: batches with {sequences}. Both orders of a pair, or one, are "
                "chosen by both_orders, in the model and in the data."
            )

    def default_optimizer(self):
        return recipes.finetuning_optimizer(UNKNOWN_STEPS, warmup=0.0)

    def default_schedule(self, steps, start):
        # The warm-up is a share of the steps: of an unknown number of them there is none, nor of
        # one, which would have rate 0.
        warmup = {"warmup": 0.0} if steps in (1, UNKNOWN_STEPS) else {}
        return recipes.WarmupLinear(recipes.FINETUNING_RATE, steps, start=start, **warmup)

    # === Loss and metrics ===

    def weigh(self, x, y, sample_weight, class_weight=None):
        rows = x["token_ids"].shape[0]
        sample_weight = read_weights(sample_weight, (rows,), (rows, 1))
        return super().weigh(x, y, sample_weight, class_weight)

    def count(self, x, y, sample_weight):
        """Returns what the loss of a batch is a mean over: the number of examples."""
        return rows_of_batch(x)

    def own_loss(self, x, y, hidden_states, outputs, sample_weight, training):
        """Returns the two losses of a batch together, and updates the own metrics."""
        examples = num_rows(x["token_ids"])
        weights = ops.ones((ops.shape(x["token_ids"])[0],), "float32")
        if sample_weight is not None:
            weights = weights * ops.reshape(sample_weight, (-1,))
        # A mean over the rows of all replicas, if there are several.
        weights = ops.divide_no_nan(weights, sum_over_replicas(examples))
        total = task_loss = ops.sum(ops.cast(self.task_loss(y, outputs), "float32") * weights)
        losses = [task_loss]
        if self.lm_loss_weight:
            if hidden_states is None:
                raise ValueError(
                    "The language-model loss needs the hidden states, which the model's outputs do "
                    "not have. Received: compute_loss(..., y_pred=...). Leave y_pred out, or make "
                    "the model with lm_loss_weight=0."
                )
            losses.append(self._lm_loss(x, hidden_states, weights, training))
            total = total + self.lm_loss_weight * losses[-1]
        total = total + self.regularization()
        share = ops.divide_no_nan(sum_over_replicas(examples), examples)  # 1 without replicas
        for metric, loss in zip(self.own_metrics, [total, *losses], strict=False):
            metric.update_state(ops.stop_gradient(loss * share), sample_weight=examples)
        for metric in self.own_metrics[self._num_losses :]:
            metric.update_state(y, ops.stop_gradient(outputs), sample_weight=sample_weight)
        return total

    def _lm_loss(self, x, hidden_states, weights, training):
        """Returns the language-model loss: mean over tokens, then sequences, then weighted."""
        sequences = x["token_ids"].shape[1] or ops.shape(x["token_ids"])[1]
        targets, counts = next_token_targets(**merge_sequences(x))  # (batch * sequences, length)
        weights = ops.repeat(weights / ops.cast(sequences, "float32"), sequences)
        shares = ops.divide_no_nan(counts, ops.sum(counts, axis=1, keepdims=True))
        is_learning = training and bool(self.backbone.trainable_variables)
        loss, _ = next_token_loss(
            hidden_states,
            self.backbone.token_embedding,
            targets,
            shares * weights[:, None],
            is_learning,
        )
        return loss

    def get_config(self):
        return {**super().get_config(), "lm_loss_weight": self.lm_loss_weight}


def targets_of(x, y):
    """Returns the labels or targets of what `fit` and `evaluate` take, if they are known now."""
    return x.labels if isinstance(x, TaskBatches) else y


def output_projection_layer(backbone, units: int) -> keras.layers.Dense:
    """Returns the linear map of a head, initialised as GPT-1's, in float32 at least."""
    return keras.layers.Dense(
        units,
        kernel_initializer=keras.initializers.RandomNormal(stddev=0.02),
        dtype=wide(backbone.variable_dtype),
        name="output_projection",
    )


@keras.saving.register_keras_serializable(package="kgpt")
class MergeSequences(keras.layers.Layer):
    """`(batch, sequences, length)` -> `(batch * sequences, length)`, as the backbone takes it."""

    def call(self, inputs):
        return merge_sequences(inputs)

    def compute_output_spec(self, inputs):
        return {
            name: keras.KerasTensor((None, x.shape[-1]), dtype=x.dtype)
            for name, x in inputs.items()
        }


@keras.saving.register_keras_serializable(package="kgpt")
class LastTokenStates(keras.layers.Layer):
    """The state of the last real token of each sequence, wherever the padding is.

    Call arguments:
        hidden_states: float tensor `(batch * sequences, length, hidden_dim)`.
        padding_mask: bool tensor `(batch, sequences, length)`.

    Returns:
        float tensor `(batch, sequences, hidden_dim)`.
    """

    def call(self, hidden_states, padding_mask):
        length = ops.shape(padding_mask)[-1]
        last = ops.max(ops.cast(padding_mask, "int32") * ops.arange(length, dtype="int32"), axis=-1)
        sequences = padding_mask.shape[1] or ops.shape(padding_mask)[1]
        is_last = ops.equal(ops.arange(length, dtype="int32"), ops.reshape(last, (-1, 1)))
        is_last = ops.expand_dims(ops.cast(is_last, hidden_states.dtype), 1)
        states = ops.matmul(is_last, hidden_states)  # (batch * sequences, 1, hidden_dim)
        return ops.reshape(states, (-1, sequences, hidden_states.shape[-1]))

    def compute_output_spec(self, hidden_states, padding_mask):
        shape = (*padding_mask.shape[:2], hidden_states.shape[-1])
        return keras.KerasTensor(shape, dtype=hidden_states.dtype)
