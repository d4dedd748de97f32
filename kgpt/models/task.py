"""The base of all models that are trained: a backbone, a tokenizer, an own loss, exact metrics."""

import contextlib
import contextvars

import keras
import numpy as np
from keras import ops

from kgpt import recipes
from kgpt.data.batches import ResumableBatches
from kgpt.models.quantization import apply_quantization, quantization_config

# A fit of unknown length has no end to decay towards: the rate stays at its peak.
UNKNOWN_STEPS = 10**9

# The task that is in a step with its own loss. Keras's steps pass to the loss what `call` returns
# and nothing else, so that it must return the hidden states there, and only there.
_in_own_step = contextvars.ContextVar("in_own_step", default=None)


@contextlib.contextmanager
def _own_step(task):
    token = _in_own_step.set(task)
    try:
        yield
    finally:
        _in_own_step.reset(token)


class Task(keras.Model):
    """A functional model over a shared `GPTBackbone`, with a loss that needs no full logits.

    `compile()` with no loss trains with the model's own loss: training and evaluation pass the
    hidden states to `own_loss`, and report exact means over what counts, whatever the sizes of the
    batches. `compile(loss=...)` is plain Keras.

    A subclass defines:
        own_metrics: list of metrics, the first of them named "loss".
        own_loss(x, y, hidden_states, outputs, sample_weight, training): returns the scalar to
            minimise and updates `own_metrics`.
        states_and_outputs(inputs, training): returns the hidden states and the outputs; the outputs
            may be None if neither the own loss nor the compiled metrics use them.
        standardize_inputs(inputs): returns inputs in the form that the functional graph has.
        default_optimizer(): returns what `compile()` takes, and default_schedule(steps, start): its
            schedule over a fit.

    Args:
        backbone: the `GPTBackbone` underneath.
        tokenizer: optional `kgpt.Tokenizer`; it is saved in the model's file.
        inputs: the functional model's inputs.
        outputs: the functional model's outputs.

    Raises:
        ValueError: if the tokenizer has more tokens than the backbone.
    """

    def __init__(self, backbone, inputs, outputs, tokenizer=None, **kwargs):
        super().__init__(inputs=inputs, outputs=outputs, **kwargs)
        if tokenizer is not None and tokenizer.vocabulary_size > backbone.vocabulary_size:
            raise ValueError(
                "The backbone must have an embedding for each token of the tokenizer. Received: a "
                f"tokenizer with vocabulary_size={tokenizer.vocabulary_size} and a backbone with "
                f"vocabulary_size={backbone.vocabulary_size}. Make the backbone with "
                f"vocabulary_size={tokenizer.vocabulary_size}, or, to keep what it has learned, "
                f"backbone = backbone.with_vocabulary_size({tokenizer.vocabulary_size})."
            )
        self.backbone = backbone
        self.tokenizer = tokenizer
        self.own_metrics = []
        self._uses_own_loss = False
        self._optimizer_is_default = False

    # === Keras's entry points ===

    # `call` completes the inputs itself: Keras's own check would insist on the optional ones.
    input_spec = None

    def call(self, inputs, training=None, mask=None):
        inputs = self.standardize_inputs(inputs)
        if _in_own_step.get() is self:
            # Keras's step on JAX calls this method and not the model: without an outer call, layers
            # must be told whether it is training.
            return self.states_and_outputs(inputs, training=training)
        return super().call(inputs, training=training, mask=mask)

    def compile(self, optimizer="default", loss=None, **kwargs):
        """Configures training as `keras.Model.compile` does, with GPT's defaults.

        Args:
            optimizer: any Keras optimizer. "default" is `kgpt.recipes.pretraining_optimizer` for a
                language model and `finetuning_optimizer` for the other heads, with the schedule
                laid over the whole of each call to `fit`.
            loss: any Keras loss on the outputs; None is the model's own.
            **kwargs: as for `keras.Model.compile`. Metrics see the model's outputs: a language
                model compiled with metrics computes all logits in each step.
        """
        self._optimizer_is_default = isinstance(optimizer, str) and optimizer == "default"
        if self._optimizer_is_default:
            optimizer = self.default_optimizer()
        self._uses_own_loss = loss is None
        self._compile_loss = self._compile_metrics = None  # of an earlier compile
        super().compile(optimizer=optimizer, loss=loss, **kwargs)

    def default_optimizer(self):
        return recipes.pretraining_optimizer(UNKNOWN_STEPS)

    def default_schedule(self, steps, start):
        return recipes.WarmupCosine(recipes.PRETRAINING_RATE, steps, start=start)

    def get_compile_config(self):
        config = super().get_compile_config()
        if config and self._optimizer_is_default:
            config["optimizer"] = "default"
        return config

    def compile_from_config(self, config):
        self.compile(**keras.saving.deserialize_keras_object(config))
        self.optimizer.build(self.trainable_variables)

    def fit(
        self,
        x=None,
        y=None,
        batch_size=None,
        epochs=1,
        verbose="auto",
        callbacks=None,
        validation_split=0.0,
        validation_data=None,
        *,
        validation_steps=None,
        **kwargs,
    ):
        """Trains as `keras.Model.fit` does; batches of `kgpt.data` go on from their position.

        `validation_data` of `kgpt.data` is read from its beginning in each epoch and leaves no
        trace, so that it may be the training data itself.
        """
        self.check_data(x, y)
        if validation_data is not None:
            val_x, *rest = keras.utils.unpack_x_y_sample_weight(validation_data)
            self.check_data(val_x, rest[0])
            validation_data = (_from_beginning(val_x, validation_steps), *rest)
        self.backbone.revive_lora()
        if self._optimizer_is_default:
            # The learning rate of the last fit is part of the compiled step: compile a new one.
            self.train_function = None
            callbacks = [*_as_list(callbacks), _ScheduleOverFit()]
        self.training_data = x
        self.fit_began_at_step = None
        try:
            return super().fit(
                x,
                y,
                batch_size,
                epochs,
                verbose,
                callbacks,
                validation_split,
                validation_data,
                validation_steps=validation_steps,
                **kwargs,
            )
        finally:
            self.training_data = None

    def evaluate(
        self,
        x=None,
        y=None,
        batch_size=None,
        verbose="auto",
        sample_weight=None,
        steps=None,
        callbacks=None,
        return_dict=False,
        **kwargs,
    ):
        """Evaluates as `keras.Model.evaluate` does; batches of `kgpt.data` from their beginning."""
        self.check_data(x, y)
        x = _from_beginning(x, steps)
        return super().evaluate(
            x, y, batch_size, verbose, sample_weight, steps, callbacks, return_dict, **kwargs
        )

    def predict(self, x, batch_size=None, verbose="auto", steps=None, callbacks=None):
        """Predicts as `keras.Model.predict` does; batches of `kgpt.data` from their beginning.

        The outputs of task batches are in the order of the texts; with `steps`, those of the first
        `steps * batch_size` texts.
        """
        self.check_data(x)
        x = _from_beginning(x, steps)
        outputs = super().predict(x, batch_size, verbose, steps, callbacks)
        if isinstance(x, ResumableBatches):
            return keras.tree.map_structure(x.original_order, outputs)
        return outputs

    def load_weights(self, *args, **kwargs):
        super().load_weights(*args, **kwargs)
        self.backbone.revive_lora()

    def check_data(self, x, y=None):
        """Raises ValueError for data that the model can't be run on, if it is known now.

        This is checked before anything runs, since on an accelerator a wrong id goes unnoticed.
        """
        if isinstance(x, ResumableBatches):
            x.check_vocabulary(self.backbone.vocabulary_size)
            self.backbone.embedding.check_length(x.longest_sequence)
            return
        token_ids = x.get("token_ids") if isinstance(x, dict) else x
        self.check_ids("token_ids", token_ids)
        if isinstance(token_ids, np.ndarray) and token_ids.ndim > 1:
            self.backbone.embedding.check_length(token_ids.shape[-1])

    def check_ids(self, name, ids):
        """Raises ValueError for an array of token ids that the vocabulary does not have."""
        if not isinstance(ids, np.ndarray) or ids.size == 0:
            return
        least, most = ids.min(), ids.max()
        if least < 0 or most >= self.backbone.vocabulary_size:
            raise ValueError(
                f"Each id in {name} must lie in [0, {self.backbone.vocabulary_size}), the "
                f"backbone's vocabulary. Received: ids from {least} to {most}. Was the text "
                "encoded with the tokenizer that the backbone was made for?"
            )

    def train_step(self, *args):
        with _own_step(self if self._uses_own_loss else None):
            return super().train_step(*args)

    def test_step(self, *args):
        with _own_step(self if self._uses_own_loss else None):
            return super().test_step(*args)

    # === Loss and metrics ===

    def compute_loss(self, x=None, y=None, y_pred=None, sample_weight=None, training=True):
        if _in_own_step.get() is not self:
            return super().compute_loss(x, y, y_pred, sample_weight, training)
        hidden_states, outputs = y_pred
        with _own_step(None):  # a loss that calls the model gets its outputs
            x = self.standardize_inputs(x)
            return self.own_loss(x, y, hidden_states, outputs, sample_weight, training)

    def compute_metrics(self, x, y, y_pred, sample_weight=None):
        if _in_own_step.get() is self:
            _, y_pred = y_pred
        return super().compute_metrics(x, y, y_pred, sample_weight)

    @property
    def metrics(self):
        others = [m for m in super().metrics if all(m is not own for own in self.own_metrics)]
        if not self._uses_own_loss:
            return others
        # Keras's own tracker weighs batches by their rows: the first own metric is the exact one.
        return [*self.own_metrics, *(m for m in others if m is not self._loss_tracker)]

    def regularization(self):
        """Returns the sum of the losses that layers have added."""
        return sum((ops.sum(loss) for loss in self.losses), start=0.0)

    # === Export ===

    def export(self, filepath, format="tf_saved_model", verbose=True, **kwargs):
        """Writes the forward pass for other runtimes, as `kgpt.convert.export.export` does."""
        from kgpt.convert.export import export

        export(self, filepath, format, verbose=verbose, **kwargs)

    # === Config ===

    def get_config(self):
        return {
            "backbone": keras.saving.serialize_keras_object(self.backbone),
            "tokenizer": keras.saving.serialize_keras_object(self.tokenizer),
            "name": self.name,
            "trainable": self.trainable,
            "quantization": quantization_config(self, without=self.backbone),
        }

    @classmethod
    def from_config(cls, config, custom_objects=None):
        config = dict(config)
        for part in ("backbone", "tokenizer"):
            config[part] = keras.saving.deserialize_keras_object(
                config[part], custom_objects=custom_objects
            )
        quantization = config.pop("quantization", None)
        model = cls(**config)
        apply_quantization(model, quantization)
        return model


class _ScheduleOverFit(keras.callbacks.Callback):
    """Lays the default optimizer's schedule over the fit that begins or is resumed."""

    def on_train_begin(self, logs=None):
        model = self.model
        steps = self.params.get("steps")
        steps = steps * self.params["epochs"] if steps else UNKNOWN_STEPS
        start = model.fit_began_at_step
        if start is None:
            start = int(model.optimizer.iterations)
        model.optimizer.learning_rate = model.default_schedule(steps, start)


def _from_beginning(data, steps):
    """Returns data for evaluation: what is read from it moves no position."""
    return data.from_beginning(steps) if isinstance(data, ResumableBatches) else data


def _as_list(callbacks):
    if callbacks is None:
        return []
    return list(callbacks) if isinstance(callbacks, list | tuple) else [callbacks]
