"""The optimizer of a fit: the default one where none was compiled, and its schedule."""

import keras

from kgpt.kernels.platform import optimizers_take_fewer_variables

# A fit of unknown length has no end to decay towards: the rate stays at its peak.
UNKNOWN_STEPS = 10**9


def compile_if_needed(task):
    """Compiles a task that is not compiled, as `compile()` does."""
    if not task.compiled:
        task.compile()


def unscaled(optimizer):
    """Returns an optimizer, or the one inside of Keras's that scales the loss for float16."""
    return getattr(optimizer, "inner_optimizer", optimizer)


def match_optimizer(task):
    """Makes the default optimizer anew if what is trained is no longer what it was built for.

    Raises:
        ValueError: for an optimizer that was passed to `compile`.
    """
    optimizer = unscaled(task.optimizer)
    built_for = getattr(optimizer, "_trainable_variables_indices", None)
    if not built_for:
        return
    trained = {optimizer._var_key(variable) for variable in task.trainable_variables}
    if trained == set(built_for):
        return
    if task._optimizer_is_default:
        task.compile(**{**task._compile_config.config, "optimizer": "default"})
    elif trained < set(built_for) and optimizers_take_fewer_variables():
        task.train_function = None  # TensorFlow's would go on with what was trained before
    else:
        raise ValueError(
            "What is trained has changed since compile, as by enable_lora, freeze or trainable. "
            f"Received: an optimizer for {len(built_for)} variables and {len(trained)} that are "
            "trained. Call compile again, with a new optimizer."
        )


def check_rate_callbacks(callbacks):
    """Raises ValueError for a callback that sets the rate of the default optimizer."""
    for callback in callbacks:
        sets_rate = (keras.callbacks.LearningRateScheduler, keras.callbacks.ReduceLROnPlateau)
        if isinstance(callback, sets_rate):
            name = type(callback).__name__
            raise ValueError(
                f"{name} sets the learning rate, but compile() without an optimizer has a "
                f"schedule of its own over each fit. Received: callbacks with a {name}. Try "
                "compile(optimizer=kgpt.recipes.AdamW(2.5e-4, weight_decay=0.01, "
                "global_clipnorm=1.0)), whose rate is a number."
            )


class ScheduleOverFit(keras.callbacks.Callback):
    """Lays the default optimizer's schedule over the fit that begins or is resumed."""

    def on_train_begin(self, logs=None):
        model, fit, per_epoch = self.model, self.model.running_fit, self.params.get("steps")
        epochs = self.params["epochs"] - fit.began_at_epoch
        steps = max(1, per_epoch * epochs) if per_epoch else UNKNOWN_STEPS
        start = fit.began_at_step
        if start is None:
            start = int(model.optimizer.iterations)
            if per_epoch and model._initial_epoch:  # from which BackupAndRestore goes on
                start -= per_epoch * (model._initial_epoch - fit.began_at_epoch)
        model.optimizer.learning_rate = model.default_schedule(steps, start)
