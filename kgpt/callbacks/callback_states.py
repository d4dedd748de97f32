"""The states of the callbacks of a fit: what a resumed run must know of the epochs before."""

import hashlib
import json
import os

import keras
from keras.src.callbacks.monitor_callback import MonitorCallback

from kgpt.callbacks.plain_values import NotPlainError, decoded, encoded

# What belongs to the process rather than to the run, by the class that it comes from.
_LEFT_OUT = (
    (keras.callbacks.Callback, ("_model", "_params", "params", "model")),
    # The callback itself multiplies it by -1 once, when it first sees the metrics.
    (MonitorCallback, ("min_delta",)),
    (keras.callbacks.CSVLogger, ("append", "append_header")),
    (
        keras.callbacks.TensorBoard,
        ("_is_tracing", "_profiler_started", "_batch_start_time", "_epoch_start_time"),
    ),
)
_WITHOUT_STATE = ("ProgbarLogger", "ResumableCheckpoint")


def check(callbacks):
    """Raises ValueError for a callback that resumes the run too, in another way."""
    for callback in callbacks:
        if isinstance(callback, keras.callbacks.BackupAndRestore):
            raise ValueError(
                "Only one callback can resume a run. Received: keras.callbacks.BackupAndRestore "
                "beside kgpt.callbacks.ResumableCheckpoint. Remove BackupAndRestore: "
                "ResumableCheckpoint keeps all that it keeps."
            )


def prepare(callbacks):
    """Makes callbacks ready for a fit that goes on from a checkpoint, before they begin.

    A `CSVLogger` would empty its file. `CallbackStates.set` must follow, which cuts the file where
    the checkpoint was: to nothing, where the checkpoint does not know the callback.
    """
    for callback in callbacks:
        if isinstance(callback, keras.callbacks.CSVLogger) and not callback.append:
            callback.append, callback._would_empty_file = True, True


class CallbackStates:
    """What the callbacks of a fit have learned since they began.

    A callback that has `get_state` and `set_state` is asked. The state of any other are its
    attributes that are plain (numbers, texts, arrays, and collections of these) and differ from
    what they were when it had begun: what the user chose, such as `patience`, is none of them.
    Callbacks are found again by class, by what they monitor, and by order.

    Args:
        callbacks: list of Keras callbacks, all of which have begun (`on_train_begin`).
    """

    def __init__(self, callbacks):
        self._callbacks = _keyed(callbacks)
        self._at_beginning = {
            key: {
                name: (_head(*one), _content(one[1]))
                for name, one in _plain_attributes(callback, key).items()
            }
            for key, callback in self._callbacks.items()
            if not _has_protocol(callback)
        }

    def get(self) -> tuple[dict, dict]:
        """Returns the states, as a JSON-serializable dict and a dict of arrays.

        Raises:
            ValueError: for a callback whose `get_state` returns something that can't be kept.
        """
        states, arrays = {}, {}
        for key, callback in self._callbacks.items():
            if _has_protocol(callback):
                states[key] = {"state": _state_of(callback, arrays, key)}
                continue
            changed = self._changed(key, callback)
            for _, of_one in changed.values():
                arrays |= of_one
            states[key] = {"attributes": {name: value for name, (value, _) in changed.items()}}
            if isinstance(callback, keras.callbacks.CSVLogger):
                states[key]["file_size"] = _file_size(callback)
        return states, arrays

    def _changed(self, key, callback):
        """Returns the plain attributes that differ from what they were at the beginning."""
        changed = {}
        for name, one in _plain_attributes(callback, key).items():
            head, content = self._at_beginning[key].get(name, (None, None))
            # Arrays are looked into only where nothing else tells: they may be a model's weights.
            if head != _head(*one) or content != _content(one[1]):
                changed[name] = one
        return changed

    def set(self, states: dict, arrays: dict):
        """Sets the states that `get` returned; callbacks that it does not know stay as they are."""
        for key, callback in self._callbacks.items():
            state = states.get(key, {})
            if _has_protocol(callback):
                if "state" in state:
                    callback.set_state(decoded(state["state"], arrays))
                continue
            for name, value in state.get("attributes", {}).items():
                _set_attribute(callback, name, decoded(value, arrays))
            if isinstance(callback, keras.callbacks.CSVLogger):
                _cut_file(callback, state.get("file_size"))


def _keyed(callbacks):
    """Returns the callbacks that have a state under names by which they are found again."""
    keyed = {}
    for callback in callbacks:
        names = [kind.__name__ for kind in type(callback).__mro__]
        if any(name in _WITHOUT_STATE for name in names):
            continue
        monitor = getattr(callback, "monitor", None)
        key = f"{names[0]}({monitor})" if isinstance(monitor, str) else names[0]
        number = sum(other.split("#")[0] == key for other in keyed)
        keyed[f"{key}#{number}" if number else key] = callback
    return keyed


def _has_protocol(callback):
    return all(callable(getattr(callback, name, None)) for name in ("get_state", "set_state"))


def _state_of(callback, arrays, key):
    state = callback.get_state()
    try:
        return encoded(state, arrays, f"{key}/state")
    except (NotPlainError, RecursionError) as error:
        raise ValueError(
            "get_state() of a callback must return numbers, texts, arrays, or lists and dicts of "
            f"these. Received: {error} in the state of {type(callback).__name__}."
        ) from error


def _plain_attributes(callback, key) -> dict:
    """Returns the plain attributes of a callback: encoded, each with its arrays."""
    left_out = {name for kind, names in _LEFT_OUT if isinstance(callback, kind) for name in names}
    plain = {}
    for name, value in vars(callback).items():
        if name in left_out:
            continue
        arrays = {}
        try:
            plain[name] = encoded(value, arrays, f"{key}/{name}"), arrays
        except (NotPlainError, RecursionError):
            continue
    return plain


def _head(value, arrays) -> str:
    shapes = [array.shape for array in arrays.values()]
    return hashlib.sha256(json.dumps([value, shapes]).encode()).hexdigest()


def _content(arrays) -> str:
    digest = hashlib.sha256()
    for array in arrays.values():
        digest.update(array.tobytes())
    return digest.hexdigest()


def _set_attribute(callback, name, value):
    current = getattr(callback, name, None)
    if not isinstance(current, type(value)) or not hasattr(current, "clear"):
        setattr(callback, name, value)
        return
    # In its place: others may hold the same list, a deque has its length, a dict its default.
    current.clear()
    put = current.extend if hasattr(current, "extend") else current.update
    put(value)


def _file_size(logger):
    logger.csv_file.flush()
    return os.path.getsize(logger.filename) if os.path.exists(logger.filename) else None


def _cut_file(logger, size):
    """Cuts off the rows of a file that came after a checkpoint, where its size was `size`."""
    empties = vars(logger).pop("_would_empty_file", False)
    if empties:
        logger.append = False  # as the user made it
    if size is None and empties:
        size = 0
    current = _file_size(logger)
    if None not in (size, current) and current >= size:
        logger.csv_file.truncate(size)
        logger.append_header = size == 0
