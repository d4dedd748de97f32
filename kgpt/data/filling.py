"""Batches whose rows the devices don't divide, filled with rows that count nothing.

`keras.distribution` gives each device as many rows, and fails where they don't come out even. Which
rows are real travels with each batch, in its inputs: all batches of an epoch must be alike.
"""

import contextlib
import contextvars

import keras
import numpy as np
from keras import ops
from keras.src.trainers.data_adapters import get_data_adapter
from keras.src.trainers.data_adapters.data_adapter import DataAdapter

from kgpt.data.batches import PythonBatches
from kgpt.distribution import num_own_shards

IS_REAL = "is_real_row"
_is_real = contextvars.ContextVar("is_real", default=None)  # the rows of the batch in a step


def fill_batch(batch) -> tuple:
    """Returns `(x, y, sample_weight)` with as many rows as this process's devices divide."""
    x, y, sample_weight = keras.utils.unpack_x_y_sample_weight(batch)
    shards = num_own_shards()
    if shards == 1:
        return x, y, sample_weight
    rows = rows_of_batch(x)
    missing = -rows % shards

    def fill(array):
        if array is None or not missing:
            return array
        array = np.asarray(array)
        return np.concatenate([array, np.repeat(array[:1], missing, axis=0)])

    x, y, sample_weight = keras.tree.map_structure(fill, (x, y, sample_weight))
    x = dict(x) if isinstance(x, dict) else {"token_ids": x}
    x[IS_REAL] = (np.arange(rows + missing) < rows).astype("float32")
    return x, y, sample_weight


def rows_of_batch(x) -> int:
    """Returns how many rows a batch of inputs has, the filled ones among them."""
    return len(x["token_ids"] if isinstance(x, dict) else x)


class FilledBatches(PythonBatches):
    """Keras's adapter of other batches, each of which is filled.

    Args:
        batches: Keras's data adapter, or batches of `kgpt.data`.

    Attributes:
        real: list of bool arrays: which rows of the batches of this iteration are real.
    """

    def __init__(self, batches: DataAdapter):
        self._batches, self.real = batches, []

    def __iter__(self):
        self.real = []
        for batch in self._batches.get_jax_iterator():
            x, y, sample_weight = fill_batch(batch)
            self.real.append(x[IS_REAL] > 0)
            yield (x, y, sample_weight)[: len(batch) if isinstance(batch, tuple) else 1]

    def without_filling(self, outputs):
        """Returns the rows predicted in this iteration, of real inputs alone."""
        is_real = np.concatenate(self.real)
        return keras.tree.map_structure(lambda rows: rows[is_real[: len(rows)]], outputs)

    def on_epoch_begin(self):
        self._batches.on_epoch_begin()

    def on_epoch_end(self):
        self._batches.on_epoch_end()

    @property
    def num_batches(self):
        return self._batches.num_batches

    @property
    def batch_size(self):
        return getattr(self._batches, "batch_size", None)


def filled(x, y=None, sample_weight=None, batch_size=None, steps=None, shuffle=False) -> tuple:
    """Returns what `fit` and its like take, as filled batches if devices divide them."""
    if num_own_shards() == 1:
        return x, y, sample_weight
    if not isinstance(x, DataAdapter):
        x = get_data_adapter(x, y, sample_weight, batch_size, steps, shuffle)
    return FilledBatches(x), None, None


# === In a step ===


def take_filling(x, sample_weight=None):
    """Returns inputs without what says which rows are real, the weights by it, and it, or None."""
    if not isinstance(x, dict) or IS_REAL not in x:
        return x, sample_weight, None
    is_real = x[IS_REAL]  # (batch,)
    x = {name: value for name, value in x.items() if name != IS_REAL}
    if sample_weight is None:
        return x, is_real, is_real
    rank = len(sample_weight.shape)
    weights = ops.cast(sample_weight, "float32") * (is_real if rank == 1 else is_real[:, None])
    return x, weights, is_real


@contextlib.contextmanager
def counting(is_real):
    """Inside, `num_rows` counts the real rows alone."""
    token = _is_real.set(is_real)
    try:
        yield
    finally:
        _is_real.reset(token)


def num_rows(x):
    """Returns how many rows of a batch of inputs are real, a float32 scalar."""
    is_real = _is_real.get()
    return ops.cast(ops.shape(x)[0], "float32") if is_real is None else ops.sum(is_real)
