"""Texts as `fit`, `evaluate` and `predict` take them: columns, and `tf.data` of strings."""

import keras
import numpy as np
from keras.src.trainers.data_adapters import is_tf_dataset

from kgpt.data.batches import PythonBatches
from kgpt.data.columns import check_columns
from kgpt.data.sources import kind_of
from kgpt.text import shorten

_COLUMNS = (list, tuple, np.ndarray)


def is_text(x) -> bool:
    """Returns whether data are texts: a column, rows of texts, two columns, or `tf.data`."""
    if is_tf_dataset(x):
        import tensorflow as tf

        spec = x.element_spec
        while isinstance(spec, tuple) and spec:
            spec = spec[0]
        return getattr(spec, "dtype", None) == tf.string
    if isinstance(x, str) or kind_of(x) is not None:  # a source's batches are checked one by one
        return isinstance(x, str)
    dtype = getattr(x, "dtype", None)
    if isinstance(x, np.ndarray) and dtype.kind in "UT":
        return True
    if dtype is not None and str(dtype) != "object" and not _is_of_pandas(dtype):
        return False
    is_column = isinstance(x, (*_COLUMNS, set, frozenset)) or (
        hasattr(x, "__getitem__") and hasattr(x, "__len__")
    )
    if isinstance(x, dict) or not is_column or len(x) == 0:
        return False
    first = next((item for item in x if not _is_missing(item)), None)
    return isinstance(first, str) or (isinstance(first, _COLUMNS) and is_text(first))


def _is_of_pandas(dtype) -> bool:
    """Returns whether a dtype is one of pandas's own, of texts, categories or anything else."""
    return type(dtype).__module__.partition(".")[0] == "pandas"


def _is_missing(item) -> bool:
    is_nan = isinstance(item, float) and item != item
    return item is None or is_nan or type(item).__name__ == "NAType"


def unpack(data) -> tuple:
    """Returns `validation_data` as `(x, y, sample_weight)`; None for what it does not have.

    A tuple is these. A list is too, as for Keras, if it has arrays or columns of several kinds, and
    else it has the rows of `x`: texts, pairs, or token ids.
    """
    if isinstance(data, list) and all(isinstance(row, str | list | tuple) for row in data[:3]):
        kinds = {(is_text(row), _depth(row)) for row in data[:3]}
        if len(kinds) <= 1 or len(data) > 3:
            return data, None, None
    return keras.utils.unpack_x_y_sample_weight(data)


def _depth(row) -> int:
    is_column = isinstance(row, list | tuple) and len(row) > 0
    return 1 + _depth(row[0]) if is_column else 0


def rows_of(x) -> list:
    """Returns texts, or pairs of a text and what belongs to it, as rows.

    A tuple of two columns is that, as for Keras's models of several inputs; anything else has a row
    for each example.
    """
    if isinstance(x, str):
        raise ValueError(f"texts must be a list. Received: the single text {x!r:.60}. Try [text].")
    if isinstance(x, tuple) and len(x) == 2 and not isinstance(x[0], str):
        check_columns(first=x[0], second=x[1])
        return list(zip(x[0], x[1], strict=True))
    check_columns(texts=x)
    return list(x)


def split_texts(data: tuple, fraction: float) -> tuple[tuple, tuple]:
    """Returns the first rows of texts and what belongs to them, and the last ones, as Keras does.

    Args:
        data: `(x, y, sample_weight)`; the last two may be None.
        fraction: float in (0, 1). The share of the last ones.

    Raises:
        ValueError: if one of the parts would be empty.
    """
    x, *others = data
    rows = rows_of(x)
    at = int(len(rows) * (1 - fraction))
    if not 0 < at < len(rows):
        raise ValueError(
            "validation_split must leave rows on both sides. "
            f"Received: validation_split={fraction} of {len(rows)} rows."
        )
    columns = [rows, *map(_sliceable, others)]
    return tuple(
        tuple(None if column is None else column[part] for column in columns)
        for part in (slice(0, at), slice(at, len(rows)))
    )


def _sliceable(column):
    return column if column is None or isinstance(column, np.ndarray) else list(column)


class TextDataset(PythonBatches):
    """A `tf.data.Dataset` of batches of strings, encoded batch by batch.

    Args:
        dataset: batches of texts, `(texts, labels)` or `(texts, labels, sample_weight)`.
        encode: function from the lists of texts, labels and weights of a batch to `TaskBatches` of
            it.
    """

    def __init__(self, dataset, encode):
        self._dataset, self._encode = dataset, encode
        if self.num_batches == 0:
            self._refuse_empty()

    def __iter__(self):
        return (batches.in_order() for batches in self._encoded())

    def _encoded(self):
        for batch in self._dataset.as_numpy_iterator():
            with self._keeping_error():
                x, *others = batch if isinstance(batch, tuple) else (batch,)
                columns = [_decoded(column) for column in (x if isinstance(x, tuple) else (x,))]
                others = [None if column is None else _decoded(column) for column in others]
                x = columns[0] if len(columns) == 1 else tuple(columns)
                encoded = self._encode(x, *others, *[None] * (2 - len(others)))
            yield encoded

    def _first_batch(self):
        self._first = next(self._encoded(), None)
        if self._first is None:
            self._refuse_empty()
        return self._first.in_order()

    def _refuse_empty(self):
        raise ValueError(f"There are no texts. Received: {self._dataset}, without a batch.")

    def _varying_shape(self, array):
        return self._first._varying_shape(array)

    @property
    def num_batches(self):
        number = int(self._dataset.cardinality())
        return number if number >= 0 else None

    @property
    def batch_size(self):
        return None


def _decoded(column) -> list | np.ndarray:
    column = np.asarray(column)
    if column.ndim == 0:
        raise ValueError("A tf.data.Dataset of texts must have batches. Try dataset.batch(32).")
    if column.dtype.kind in "OS":
        return [_text(item) for item in column]
    return column.tolist() if column.ndim == 1 else column  # rows of 0 and 1, or of targets


def _text(item):
    if isinstance(item, bytes):
        try:
            return item.decode()
        except UnicodeDecodeError as error:
            raise ValueError(
                f"Strings of tf.data must be UTF-8. Received: {shorten(item)}, {error.reason} at "
                f"{error.start}. Try tf.strings.unicode_transcode(texts, encoding, 'UTF-8')."
            ) from error
    return item if isinstance(item, str) else [_text(part) for part in item]
