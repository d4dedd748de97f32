"""States of callbacks, without a fit: the callbacks' methods are called as Keras calls them."""

import json

import keras
import numpy as np

from kgpt.callbacks import callback_states
from kgpt.callbacks.callback_states import CallbackStates


class Model:
    """As much of a model as callbacks look at."""

    metrics = ()
    stop_training = False

    def __init__(self, weights=()):
        self.weights = list(weights)

    def get_weights(self):
        return self.weights


def begun(callbacks, model=None):
    """Callbacks as they are when a fit has begun, and their states."""
    for callback in callbacks:
        callback.set_model(model or Model())
        callback.on_train_begin()
    return CallbackStates(callbacks)


def through_a_file(states, arrays):
    """What comes back of states: JSON, and arrays that a file of numpy can hold."""
    assert all(array.dtype.isbuiltin == 1 for array in arrays.values())
    return json.loads(json.dumps(states)), {name: array.copy() for name, array in arrays.items()}


def resumed(callbacks, states, **kwargs):
    """New callbacks, with what `states` has of those before."""
    saved = through_a_file(*states.get())
    callback_states.prepare(callbacks)
    new = begun(callbacks, **kwargs)
    new.set(*saved)
    return new


def end_epochs(callback, losses, first=0):
    for epoch, loss in enumerate(losses, first):
        callback.on_epoch_end(epoch, {"val_loss": loss})


def test_early_stopping_goes_on_counting_and_has_its_best_weights():
    early = keras.callbacks.EarlyStopping(patience=5, min_delta=0.5, restore_best_weights=True)
    weights = [np.arange(6.0).reshape(2, 3), np.array(7, "float32")]
    states = begun([early], Model(weights))
    end_epochs(early, [3.0, 2.9, 2.8])

    new = keras.callbacks.EarlyStopping(patience=4, min_delta=0.5, restore_best_weights=True)
    resumed([new], states)

    assert (new.wait, new.best, new.best_epoch, new.patience) == (2, 3.0, 0, 4)
    for a, b in zip(new.best_weights, weights, strict=True):
        np.testing.assert_array_equal(a, b)
        assert a.dtype == b.dtype
    end_epochs(new, [2.6], first=3)  # less by 0.4 is no improvement
    assert (new.wait, new.best) == (3, 3.0)
    assert not new.model.stop_training
    end_epochs(new, [2.6], first=4)
    assert new.model.stop_training
