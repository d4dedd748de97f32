"""The metrics that models have beside those that they are compiled with."""

import keras
from keras import ops
from keras.src.trainers.compile_utils import MetricsList

from kgpt.console import warn


def mean(name: str, direction: str = "down") -> keras.metrics.Mean:
    """Returns a mean of which Keras's callbacks know whether "up" or "down" is better."""
    metric = keras.metrics.Mean(name=name)
    metric._direction = direction
    return metric


class Directions(MetricsList):
    """Shows Keras's callbacks, which look in such lists, which way the own metrics get better.

    Args:
        own_metrics: function that returns them. They count elsewhere, and not in this list.
    """

    def __init__(self, own_metrics):
        keras.metrics.Metric.__init__(self, name="directions")
        self._own_metrics = own_metrics

    @property
    def metrics(self):
        return self._own_metrics()

    def reset_state(self):
        """Leaves the metrics as they are."""

    def result(self):
        return {}


class Uncounted(keras.metrics.Sum):
    """How many targets had weight 0 since they are neither tokens nor classes; in no logs."""

    def result(self):
        return {}

    def warn(self):
        """Warns of those since the last reset, if there are any."""
        wrong = int(ops.convert_to_numpy(super().result()))
        if wrong:
            warn(
                f"{wrong} targets were left out of the loss, since they are neither tokens of the "
                "vocabulary nor classes of the model. Targets to leave out on purpose are -100 "
                "or -1 for tokens, or have sample_weight 0.",
            )
