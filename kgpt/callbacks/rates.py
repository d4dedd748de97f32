"""The learning rate of a run that goes on in the middle of an epoch."""

import keras

from kgpt.callbacks.variables import bring_back
from kgpt.models.default_optimizer import unscaled


class RateOfEpoch:
    """The learning rate before an epoch began, for callbacks that change it when one begins.

    Keras lets the callbacks begin an epoch once more that is resumed. Then one such as
    `LearningRateScheduler`, which may make the rate of the one before, must find that of then.
    Where none changes it, the rate is that of the checkpoint.

    Args:
        model: the model that is trained.
    """

    def __init__(self, model):
        self._model = model
        self._resumed = None
        self.before = self._now()

    def _now(self) -> float | None:
        """Returns the rate; None for a schedule, which no callback changes."""
        optimizer = unscaled(self._model.optimizer)
        if isinstance(optimizer._learning_rate, keras.optimizers.schedules.LearningRateSchedule):
            return None
        return float(keras.ops.convert_to_numpy(optimizer.learning_rate))

    def end_epoch(self):
        """Takes down the rate when all callbacks have ended an epoch."""
        bring_back(self._model)
        self.before = self._now()

    def go_to(self, before: float | None):
        """Goes back to the rate before the epoch that is resumed; None where it is not known."""
        if None not in (before, self.before):
            self.before, self._resumed = before, self._now()
            self._model.optimizer.learning_rate = before

    def begin_epoch(self):
        """Sets the rate of the checkpoint, unless the callbacks have set one just now."""
        if self._resumed is not None and self._now() == self.before:
            self._model.optimizer.learning_rate = self._resumed
        self._resumed = None
