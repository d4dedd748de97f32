"""Runs that are killed in an epoch and started again."""

import keras
import pytest
from runs import Killed

import kgpt


def killed_and_resumed(fit, folder, at):
    """Kills `fit(*callbacks)` at the end of a batch and starts it again; what the second returns.

    Args:
        fit: function of callbacks. Makes a model and trains it.
        folder: of the checkpoints, one after every two steps.
        at: int. The batch.
    """

    def kill(batch, logs):
        if batch == at:
            raise Killed

    def checkpoint():
        return kgpt.callbacks.ResumableCheckpoint(folder, save_freq=2)

    with pytest.raises(Killed):
        fit(checkpoint(), keras.callbacks.LambdaCallback(on_train_batch_end=kill))
    return fit(checkpoint())
