"""`compile` of all models: Keras's, with GPT's defaults."""

import keras

from kgpt.arguments import checked
from kgpt.models.checks import check_compiled, warn_of_probabilities
from kgpt.models.fit_arguments import COMPILE


@checked(passes_on=keras.Model.compile, **COMPILE)
def compile(self, optimizer: object = "default", loss=None, **kwargs):
    """Configures training as `keras.Model.compile` does, with GPT's defaults.

    Args:
        self: the model.
        optimizer: any Keras optimizer. "default" is `kgpt.recipes.pretraining_optimizer` for a
            language model and `finetuning_optimizer` for the other heads, with the schedule
            laid over the whole of each call to `fit`.
        loss: any Keras loss on the outputs; None is the model's own.
        **kwargs: as for `keras.Model.compile`. Metrics see the model's outputs: a language
            model compiled with metrics computes all logits in each step.

    Raises:
        ValueError: for what is no optimizer or no loss of Keras, `loss_weights` without a `loss`,
            values out of range, and a model made for several workers of `tf.distribute`.
        TypeError: for keywords that are no arguments, with the one that was probably meant.

    Example:
        lm.compile()
        lm.compile(kgpt.recipes.AdamW(1e-3), jit_compile=False)
    """
    self._optimizer_is_default = isinstance(optimizer, str) and optimizer == "default"
    if self._optimizer_is_default:
        optimizer = self.default_optimizer()
    check_compiled(optimizer, loss, kwargs.get("loss_weights"))
    if self.outputs_are_logits:
        warn_of_probabilities(loss, kwargs.get("metrics"), kwargs.get("weighted_metrics"))
    _refuse_several_workers(self)
    self._uses_own_loss = loss is None
    self._compile_loss = self._compile_metrics = None  # of an earlier compile
    keras.Model.compile(self, optimizer=optimizer, loss=loss, **kwargs)
    # What Keras leaves out of what it compiles with anew, from a file and after enable_lora.
    self._compile_config.config["auto_scale_loss"] = kwargs.get("auto_scale_loss", True)


def get_compile_config(self):
    """Returns the arguments of `compile` as a dict; the default optimizer by its name."""
    config = keras.Model.get_compile_config(self)
    if config and self._optimizer_is_default:
        config["optimizer"] = "default"
    return config


def compile_from_config(self, config):
    """Compiles as a config says, and makes the optimizer's variables."""
    self.compile(**keras.saving.deserialize_keras_object(config))
    self.optimizer.build(self.trainable_variables)


def _refuse_several_workers(task):
    name = type(getattr(task, "_distribute_strategy", None)).__name__
    if name in ("MultiWorkerMirroredStrategy", "CollectiveAllReduceStrategy"):
        raise ValueError(
            "tf.distribute.MultiWorkerMirroredStrategy does not work with models of Keras 3: "
            "its collective operations refuse Keras's variables. Received: a model made in "
            "its scope. Try tf.distribute.MirroredStrategy on one machine, or the JAX backend "
            "with keras.distribution on several."
        )
