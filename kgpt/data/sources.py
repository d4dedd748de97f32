"""Everything that Keras trains on besides arrays, with a check of each batch that passes the host.

Keras's data adapters stay what they are. A source is wrapped where its batches are Python objects;
`tf.data` runs outside Python, and checks ids and weights in its own operations.
"""

import contextlib
import re
import types

import keras
import numpy as np
from keras import ops
from keras.src.trainers.data_adapters import (
    is_grain_dataset,
    is_tf_dataset,
    is_torch_dataloader,
)
from keras.src.trainers.data_adapters.py_dataset_adapter import PyDatasetAdapter
from keras.src.trainers.data_adapters.torch_data_loader_adapter import TorchDataLoaderAdapter

from kgpt.arguments import check_is_int
from kgpt.data.batches import ResumableBatches

_KINDS = {
    "batches of kgpt.data": lambda x: isinstance(x, ResumableBatches),
    "a tf.data.Dataset": is_tf_dataset,
    "a PyDataset": lambda x: isinstance(x, keras.utils.PyDataset),
    "a torch DataLoader": is_torch_dataloader,
    "a grain dataset": is_grain_dataset,
    "a generator": lambda x: isinstance(x, types.GeneratorType),
}


def kind_of(x) -> str | None:
    """Returns what a source of batches is called; None for arrays."""
    return next((kind for kind, is_kind in _KINDS.items() if is_kind(x)), None)


_HINTS = {
    "y": "Labels and targets are part of the batches.",
    "sample_weight": "Weights are part of the batches: (x, y, sample_weight).",
    "batch_size": "The batches have their size: set it where they are made.",
    "validation_batch_size": "The batches have their size: set it where they are made.",
    "validation_split": "Split the data before, and pass validation_data.",
    "shuffle": "The order is decided where the batches are made.",
}


def refuse_beside_batches(x, **arguments):
    """Raises ValueError for arguments that would have no effect, since `x` has whole batches.

    Args:
        x: what `fit`, `evaluate` or `predict` take.
        **arguments: the others; None or 0.0 where they are not given.
    """
    kind = kind_of(x)
    given = [name for name, value in arguments.items() if _is_given(value)]
    if kind is None or not given:
        return
    name = given[0]
    hint = _HINTS[name]
    if isinstance(x, ResumableBatches) and name == "sample_weight":
        hint = "Pass sample_weight to the function of kgpt.data that makes the batches."
    raise ValueError(
        f"{name} has no effect beside {kind}. {hint} "
        f"Received: x of type {type(x).__name__} and {name}={arguments[name]!r:.60}."
    )


def _is_given(value):
    return value is not None and not (isinstance(value, float) and value == 0)


_WEIGHTS_MESSAGE = "sample_weight must be at least 0."


class CheckedSource:
    """A source of batches, each of which is checked before Keras sees it; arrays stay as they are.

    Args:
        x, y, sample_weight: what `fit`, `evaluate` or `predict` take.
        check: function of `(x, y, sample_weight)` of a batch that raises ValueError.
        vocabulary_size: int. For the check that runs in `tf.data`.
        shuffle: bool. Whether a PyDataset's batches are shuffled, as `fit` does by default.

    Attributes:
        data: `(x, y, sample_weight)` to pass to Keras.
    """

    def __init__(self, x, y, sample_weight, check, vocabulary_size: int, shuffle: bool = False):
        self._error, self._given = None, x
        self._check = check
        self._ids_message = (
            f"Each id in token_ids must lie in [0, {vocabulary_size}), the vocabulary of the model."
        )
        kind = kind_of(x)
        if kind == "a generator":
            x = self._checked(x)
        elif kind == "a PyDataset":
            x = _CheckedPyDataset(x, self._check_batch, self._keeping_error, shuffle)
        elif kind == "a torch DataLoader":
            x = _CheckedDataLoader(x, self._checked)
        elif kind == "a grain dataset" and hasattr(x, "map"):  # a loader may be in processes
            x = x.map(self._check_batch)
        elif kind == "a tf.data.Dataset" and hasattr(x, "map"):  # not a distributed one
            x = _with_checked_ids(x, vocabulary_size, self._ids_message)
        self.data = x, y, sample_weight

    def error_of(self, error: Exception) -> Exception:
        """Returns the check's own error, or the source's, of which TensorFlow makes another."""
        own = self._error or getattr(self._given, "error", None)
        if own is not None:
            return own if type(error).__module__.startswith("tensorflow.") else error
        for message in (self._ids_message, _WEIGHTS_MESSAGE):
            if message in str(error):
                found = re.search(r"\[-?[\dn][-\d\s.nae]*\]", str(error))
                received = f" Received: {found[0]} among them." if found else ""
                return ValueError(message + received)
        return error

    def _check_batch(self, batch):
        try:
            self._check(*keras.utils.unpack_x_y_sample_weight(batch))
        except ValueError as error:
            self._error = error
            raise
        return without_uint64(batch)

    def _checked(self, batches):
        return self._keeping_error(map(self._check_batch, batches))

    def _keeping_error(self, batches):
        try:
            yield from batches
        except Exception as error:
            self._error = error
            raise


@contextlib.contextmanager
def errors_of(*sources: CheckedSource):
    """Inside, an error that comes from the check of a source is raised as the check raised it."""
    try:
        yield
    except Exception as error:
        for source in filter(None, sources):
            own = source.error_of(error)
            if own is not error:
                raise own from None
        raise


class _CheckedPyDataset(PyDatasetAdapter):
    def __init__(self, dataset, check_batch, keeping_error, shuffle):
        super().__init__(dataset, shuffle=shuffle)
        self._check_batch, self._keeping_error = check_batch, keeping_error

    def _standardize_batch(self, batch):
        return self._check_batch(super()._standardize_batch(batch))

    def _get_iterator(self):
        return self._keeping_error(super()._get_iterator())


class _CheckedDataLoader(TorchDataLoaderAdapter):
    def __init__(self, loader, checked):
        super().__init__(loader)
        self._dataloader = _Iterable(loader, checked)


class _Iterable:
    """Batches that are checked anew in each iteration."""

    def __init__(self, batches, checked):
        self._batches, self._checked = batches, checked

    def __iter__(self):
        return self._checked(self._batches)

    def __len__(self):
        return len(self._batches)


def _with_checked_ids(dataset, vocabulary_size, message):
    import tensorflow as tf

    spec = keras.utils.unpack_x_y_sample_weight(dataset.element_spec)[0]
    spec = spec.get("token_ids") if isinstance(spec, dict) else spec
    if isinstance(spec, tf.TensorSpec):
        check_is_int("token_ids", spec)

    def check(*batch):
        x = batch[0]
        ids = x.get("token_ids") if isinstance(x, dict) else x
        if isinstance(ids, tf.Tensor):
            ids = tf.cast(ids, tf.int64)  # narrower ones may lack the size of the vocabulary
            with tf.control_dependencies(
                [
                    tf.debugging.assert_non_negative(ids, message),
                    tf.debugging.assert_less(ids, tf.cast(vocabulary_size, tf.int64), message),
                ]
            ):
                ids = tf.cast(ids, tf.int32)
            x = {**x, "token_ids": ids} if isinstance(x, dict) else ids
        for weights in batch[2:]:
            if isinstance(weights, tf.Tensor):
                tf.debugging.assert_non_negative(tf.cast(weights, tf.float32), _WEIGHTS_MESSAGE)
        batch = tf.nest.map_structure(narrow, (x, *batch[1:]))
        return batch if len(batch) > 1 else batch[0]

    def narrow(column):  # PyTorch has no uint64, and JAX cuts its upper half off
        if not isinstance(column, tf.Tensor) or column.dtype != tf.uint64:
            return column
        return tf.cast(tf.minimum(column, tf.constant(2**32 - 1, tf.uint64)), tf.uint32)

    return dataset.map(check)


def without_uint64(columns):
    """Returns arrays or tensors of uint64, which PyTorch lacks, as int64, others as they are."""

    def convert(column):
        if not str(getattr(column, "dtype", "")).endswith("uint64"):
            return column
        if isinstance(column, np.ndarray):
            return np.minimum(column, np.uint64(2**63 - 1)).astype("int64")
        return ops.cast(column, "int64")

    return keras.tree.map_structure(convert, columns)
