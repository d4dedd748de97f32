"""The base of all models that are trained: a backbone, a tokenizer, an own loss, exact metrics."""

import contextlib
import contextvars
from typing import TYPE_CHECKING, Any

import keras
from keras import ops

from kgpt import recipes
from kgpt.arguments import refuse
from kgpt.data.batches import ResumableBatches
from kgpt.data.filling import counting, num_rows, take_filling
from kgpt.data.updates import take_share
from kgpt.hdf5 import refuse_whole_model
from kgpt.kernels.platform import gradients_freed_with_graph, num_replicas
from kgpt.locks import locked
from kgpt.models import checks, compiling, fitting, on_batch, step_functions
from kgpt.models.backbone import GPTBackbone
from kgpt.models.default_optimizer import UNKNOWN_STEPS
from kgpt.models.freezing import set_layers_trainable, trainable_layers
from kgpt.models.inputs import refuse_texts
from kgpt.models.own_metrics import Directions, Uncounted
from kgpt.models.quantization import apply_quantization, quantization_config
from kgpt.models.sample_weights import masked
from kgpt.models.whole_model import WholeModel
from kgpt.tokenizer import Tokenizer

# The task that is in a step, and whether it trains. Keras's steps pass to the loss what `call`
# returns and nothing else: with the own loss, `call` must return the hidden states there, and only
# there.
_step = contextvars.ContextVar("step", default=(None, False))


@contextlib.contextmanager
def _in_step(task, training):
    token = _step.set((task, training))
    try:
        yield
    finally:
        _step.reset(token)


class Task(WholeModel, keras.Model):
    """A functional model over a shared `GPTBackbone`, with a loss that needs no full logits.

    `compile()` with no loss trains with the model's own loss: training and evaluation pass the
    hidden states to `own_loss`, and report exact means over what counts, whatever the sizes of the
    batches. `compile(loss=...)` takes a loss of Keras.

    A subclass defines:
        own_metrics: list of metrics, the first of them named "loss".
        own_loss(x, y, hidden_states, outputs, sample_weight, training): returns the scalar to
            minimise and updates `own_metrics`.
        states_and_outputs(inputs, training): returns the hidden states and the outputs; the outputs
            may be None if neither the own loss nor the compiled metrics use them.
        standardize_inputs(inputs): returns inputs in the form that the functional graph has.
        count(x, y, sample_weight): returns what the own loss of a batch is a mean over, a number
            of tokens or rows. An optimizer with `gradient_accumulation_steps` asks for it.

    A subclass may define, too, what is here for models without classes and texts:
        default_optimizer(): returns what `compile()` takes.
        default_schedule(steps, start): returns its learning rate over a fit.
        check_data(x, y, sample_weight): raises ValueError for what the model can't be run on.
        check_set(x, y): raises ValueError for arrays of a whole set in which nothing counts.
        text_batches(rows, y, **options): returns batches of texts that go straight into `fit`.
        look_at(x, y): warns of data of a fit from which nothing can be learned.
        learn_from(x, y): learns from the first `fit` what the model is to know, as class names.
        known_targets(x): returns the targets that arrays of inputs have in them.
        read_class_weight(class_weight): returns the weight of each class as an array.
        weigh(x, y, sample_weight, class_weight): returns targets and weights that count.
        counted(x, y, sample_weight, is_real): returns them for the losses and metrics of Keras.

    Args:
        backbone: the `GPTBackbone` underneath.
        tokenizer: optional `kgpt.Tokenizer`; it is saved in the model's file.
        sequence_length: optional int. Most tokens of a text that goes into `fit`, `evaluate` and
            `predict`; the backbone's maximum if None.
        truncate: "end" or "start": what a longer text loses.
        inputs: the functional model's inputs.
        outputs: the functional model's outputs.

    Raises:
        ValueError: if the tokenizer has more tokens than the backbone.
    """

    def __init__(
        self,
        backbone,
        inputs,
        outputs,
        tokenizer=None,
        sequence_length: int | None = None,
        truncate: str = "end",
        **kwargs,
    ):
        super().__init__(inputs=inputs, outputs=outputs, **kwargs)
        self.backbone = backbone
        self.dtype_policy = backbone.dtype_policy  # by which Keras scales the loss in float16
        self.tokenizer = tokenizer
        self.sequence_length = sequence_length
        self.truncate = truncate
        self.own_metrics = []
        uncounted = Uncounted(name="uncounted_targets")
        self._uncounted = lambda: uncounted  # as an attribute it would be saved in files
        directions = Directions(lambda: self.own_metrics)
        self._in_no_logs = lambda: [uncounted, directions]
        self._class_weight = None
        self._uses_own_loss = True
        self._optimizer_is_default = False
        self.running_fit = None

    # === Keras's entry points ===

    # `call` completes the inputs itself: Keras's own check would insist on the optional ones.
    input_spec = None
    outputs_are_logits = False
    _fixed = ("backbone",)
    tokenizer: Tokenizer | Any

    def __setattr__(self, name, value):
        if name in ("tokenizer", "sequence_length", "truncate"):
            value = checks.checked_for_texts(name, value, self.backbone)
        super().__setattr__(name, value)

    if TYPE_CHECKING:  # no plain attribute: Keras's bases are unknown, and could be descriptors

        @property
        def backbone(self) -> GPTBackbone: ...

    def call(self, inputs, training=None, mask=None):
        """Returns the outputs for inputs, as token ids or a dict; in a step, hidden states too."""
        inputs = self.standardize_inputs(take_filling(take_share(inputs)[0])[0])
        if self._in_own_step:
            # Keras's step on JAX calls this method and not the model: without an outer call, layers
            # must be told whether it is training.
            return self.states_and_outputs(inputs, training=training)
        return super().call(inputs, training=training, mask=mask)

    def default_optimizer(self):
        """Returns the optimizer that `compile()` takes."""
        return recipes.pretraining_optimizer(UNKNOWN_STEPS)

    def default_schedule(self, steps, start):
        """Returns the default optimizer's learning rate over a fit."""
        return recipes.WarmupCosine(recipes.PRETRAINING_RATE, steps, start=start)

    compile = compiling.compile
    get_compile_config = compiling.get_compile_config
    compile_from_config = compiling.compile_from_config
    fit = locked(fitting.fit, training=True)
    evaluate = locked(fitting.evaluate)
    predict = locked(fitting.predict)
    train_on_batch = locked(on_batch.train_on_batch)
    test_on_batch = locked(on_batch.test_on_batch)
    predict_on_batch = locked(on_batch.predict_on_batch)

    # === Data ===

    def check_data(self, x, y=None, sample_weight=None):
        """Raises ValueError for data that the model can't be run on, if it is known now.

        This is checked before anything runs, since on an accelerator a wrong id goes unnoticed.
        """
        checks.check_weights(sample_weight)
        if isinstance(x, ResumableBatches):
            x.check_vocabulary(self.backbone.vocabulary_size)
            self.backbone.embedding.check_length(x.longest_sequence)
            return
        refuse_texts(x)
        if isinstance(x, tuple):
            refuse("x", x, "token ids, or a dict with them", "Of (x, y), try fit(x, y).")
        token_ids = checks.as_array(x.get("token_ids") if isinstance(x, dict) else x)
        checks.check_ids("token_ids", token_ids, self.backbone.vocabulary_size)
        if token_ids is not None and token_ids.ndim > 1:
            self.backbone.embedding.check_length(token_ids.shape[-1])

    def check_set(self, x, y):
        """Raises ValueError for arrays of a whole set in which nothing counts."""

    def text_batches(self, rows, y, **options):
        """Returns the batches of `kgpt.data` for texts that go straight into `fit`."""
        raise ValueError(
            f"A {type(self).__name__} reads batches of token ids. Received: texts. Try one of the "
            "functions of kgpt.data, or define text_batches(rows, y, **options)."
        )

    def look_at(self, x, y):
        """Warns of data of a fit from which nothing can be learned."""

    def learn_from(self, x, y):
        """Learns what the data of the first `fit` say of the model, such as names of classes."""

    def known_targets(self, x):
        """Returns the targets that arrays of inputs have in them; ValueError if there are none."""
        raise ValueError(
            "sample_weight weighs labels or targets. Received: a sample_weight, but y=None."
        )

    def read_class_weight(self, class_weight):
        """Returns the weight of each class as an array; ValueError for a model without classes."""
        raise ValueError(
            f"A {type(self).__name__} has no classes to weigh. Received: class_weight="
            f"{class_weight!r:.60}. Try sample_weight, which weighs rows."
        )

    # === Steps ===

    @property
    def _in_own_step(self):
        return self._uses_own_loss and _step.get()[0] is self

    make_train_function = step_functions.make_train_function
    make_test_function = step_functions.make_test_function
    make_predict_function = step_functions.make_predict_function

    def train_step(self, *args):
        """Trains on a batch, as `keras.Model.train_step` does, without full logits."""
        with _in_step(self, training=True), gradients_freed_with_graph():
            return super().train_step(*args)

    def test_step(self, *args):
        """Evaluates a batch, as `keras.Model.test_step` does, without full logits."""
        with _in_step(self, training=False):
            return super().test_step(*args)

    def weigh(self, x, y, sample_weight, class_weight=None):
        """Returns targets and weights in which what can't be a target has weight 0.

        Args:
            x: inputs in the form of the functional graph.
            y: the targets of the batch, or None.
            sample_weight: its weights, or None.
            class_weight: the weight of each class, or None.

        Returns:
            The targets, the weights, and how many targets are wrong.
        """
        return y, sample_weight, 0.0

    def compute_loss(self, x=None, y=None, y_pred=None, sample_weight=None, training: bool = True):
        """Returns the loss of a batch, for Keras's steps and for training loops of your own.

        Without a compiled loss it is the model's own. Leave `y_pred` out and the model runs here,
        without full logits. On JAX, where a loss is a function of the variables, call
        `stateless_compute_loss(trainable_variables, non_trainable_variables, metrics_variables,
        x=x, y=y)`, which returns the loss and the three new lists.

        Args:
            x: inputs as for the model.
            y: targets as for `fit`, or None.
            y_pred: optional, the model's outputs for `x`.
            sample_weight: as for `fit`, or None.
            training: bool. Whether dropout is used.

        Returns:
            A scalar, float32.

        Raises:
            ValueError: for texts, and for inputs, targets and weights of other shapes.

        Example:
            loss = lm.compute_loss(token_ids, training=False)
        """
        x, share = take_share(x)
        x, sample_weight, is_real = take_filling(x, sample_weight)
        is_in_step = _step.get()[0] is self
        x = self.standardize_inputs(x)
        class_weight = self._class_weight if training and is_in_step else None
        y, sample_weight, wrong = self.weigh(x, y, sample_weight, class_weight)
        self._uncounted().update_state(wrong)
        if not self._uses_own_loss:
            y, sample_weight, mask = self.counted(x, y, sample_weight, is_real)
            loss = super().compute_loss(x, y, masked(y_pred, mask), sample_weight, training)
            count = num_rows(x["token_ids"]) if mask is None else ops.sum(ops.cast(mask, "float32"))
            reported = ops.stop_gradient(loss) * num_replicas()  # by which Keras divides it
            self.own_metrics[0].update_state(reported, sample_weight=count)
            return loss
        with _in_step(None, False), counting(is_real):  # a loss that calls the model gets outputs
            if is_in_step:
                y_pred = checks.states_and_outputs_of(self, y_pred)
            else:
                runs = y_pred is None
                y_pred = self.states_and_outputs(x, training) if runs else (None, y_pred)
            loss = self.own_loss(x, y, *y_pred, sample_weight, training)
        if share is None:
            return loss
        rows = ops.cast(ops.shape(share)[0], "float32")  # 0 on a replica without rows
        return loss * ops.divide_no_nan(ops.sum(share), rows)

    def compute_metrics(self, x, y, y_pred, sample_weight=None):
        if self._compile_metrics is None:  # the own ones are updated with the loss
            return super().compute_metrics(x, y, y_pred, sample_weight)
        x, sample_weight, is_real = take_filling(take_share(x)[0], sample_weight)
        x = self.standardize_inputs(x)
        _, training = _step.get()
        class_weight = self._class_weight if training else None
        y, sample_weight, _ = self.weigh(x, y, sample_weight, class_weight)
        if self._in_own_step:
            _, y_pred = checks.states_and_outputs_of(self, y_pred)
        y, sample_weight, mask = self.counted(x, y, sample_weight, is_real)
        return super().compute_metrics(x, y, masked(y_pred, mask), sample_weight)

    def counted(self, x, y, sample_weight, is_real):
        """Returns what losses and metrics of Keras take: targets, weights and what of them counts.

        The last is a bool tensor, or None for everything; `is_real` are the rows that count.
        """
        return y, sample_weight, None if is_real is None else is_real > 0

    @property
    def metrics(self):
        # Keras's tracker weighs batches by rows, and the first own metric is exact. But what a
        # subclass's `compute_loss` returns, which may add to this one's, the tracker alone knows.
        is_tracked = self._has_other_loss and type(self).train_step is Task.train_step
        loss = self._loss_tracker if is_tracked else self.own_metrics[0]
        known = [*self.own_metrics, *self._in_no_logs(), self._loss_tracker]
        others = [m for m in super().metrics if all(m is not other for other in known)]
        if not self._uses_own_loss:
            return [loss, *others, self._uncounted()]
        return [loss, *self.own_metrics[1:], *others, *self._in_no_logs()]

    @property
    def metrics_names(self):
        """The names of what `fit` and `evaluate` report."""
        return [metric.name for metric in self.metrics if metric not in self._in_no_logs()]

    def _get_metrics_result_or_logs(self, logs):
        # Keras calls this once at the end of an epoch or evaluation, before metrics are reset.
        self._uncounted().warn()
        # An epoch that is resumed after its last step has no logs but what the metrics hold.
        logs = super()._get_metrics_result_or_logs(logs or self.get_metrics_result())
        if not self._has_other_loss:
            return logs
        not_counted = self._not_counted()
        return {name: value for name, value in logs.items() if name not in not_counted}

    @property
    def _has_other_loss(self):
        return type(self).compute_loss is not Task.compute_loss

    def _not_counted(self):
        """Returns the names of the own metrics that a subclass's loss has given nothing."""
        values = {m.name: map(ops.convert_to_numpy, m.variables) for m in self.own_metrics[1:]}
        return [name for name, arrays in values.items() if not any(a.any() for a in arrays)]

    # === tf.distribute ===

    _symbolic_build = fitting.symbolic_build
    _maybe_symbolic_build = fitting.maybe_symbolic_build

    def regularization(self):
        """Returns what layers add to the loss, as by Keras's regularizers.

        Returns:
            A scalar: the sum of it, or a replica's part of the sum.

        Example:
            loss = lm.compute_loss(token_ids) - lm.regularization()
        """
        return sum((ops.sum(loss) for loss in self.losses), start=0.0) / num_replicas()

    # === Config ===

    def get_config(self):
        refuse_whole_model(self)
        return {
            "backbone": keras.saving.serialize_keras_object(self.backbone),
            "tokenizer": keras.saving.serialize_keras_object(self.tokenizer),
            "sequence_length": self.sequence_length,
            "truncate": self.truncate,
            "name": self.name,
            "trainable": self.trainable,
            "quantization": quantization_config(self, without=self.backbone),
            "trainable_layers": trainable_layers(self, without=[self.backbone]),
        }

    @classmethod
    def from_config(cls, config, custom_objects=None):
        config = dict(config)
        for part in ("backbone", "tokenizer"):
            if not isinstance(config[part], dict | None):  # made already
                continue
            config[part] = keras.saving.deserialize_keras_object(
                config[part], custom_objects=custom_objects
            )
        later = [config.pop(name, None) for name in ("quantization", "trainable_layers")]
        model = cls(**config)
        apply_quantization(model, later[0])
        set_layers_trainable(model, later[1])
        return model
