"""Gradient accumulation over batches of unequal size: each counts by its share of the update.

Keras averages the gradients of the batches of an update. Where a batch's loss is a mean over its
tokens, that is no mean over the tokens of the update, unless each loss is scaled by how many tokens
its batch has beside the others. The factor travels with the batch, in its inputs.
"""

import contextlib
import itertools
from collections.abc import Callable, Iterator

import keras
import numpy as np
from keras.src.trainers.data_adapters import get_data_adapter
from keras.src.trainers.data_adapters.data_adapter import DataAdapter

from kgpt.console import warn
from kgpt.data.batches import PythonBatches, ResumableBatches
from kgpt.data.sources import kind_of

SHARE = "update_share"


class Updates:
    """How batches are grouped into updates of the optimizer.

    Args:
        batches_per_update: int.
        batches_done: function that returns how many batches of an update have been accumulated.
        count: function of `(x, y, sample_weight)` that returns what a batch's loss is a mean over:
            the number of its tokens, or of its rows.
    """

    def __init__(self, batches_per_update: int, batches_done: Callable, count: Callable):
        self.batches_per_update = batches_per_update
        self.batches_done = 0  # at the beginning of the epoch
        self._batches_done = batches_done
        self._count = count

    def begin_epoch(self):
        """Takes down where in an update the epoch begins; TensorFlow's steps run ahead of data."""
        self.batches_done = self._batches_done()

    def with_shares(self, batches: Iterator, first: int, skip: int = 0) -> Iterator[tuple]:
        """Yields batches with their shares.

        Args:
            batches: iterator of `(x, y, sample_weight)`, or the first two or one of them.
            first: int. The number of batches that belong to the first update.
            skip: int. The number of batches at the beginning that are counted, but not yielded.
        """
        size = first
        while group := list(itertools.islice(batches, size)):
            counts = [
                float(self._count(*keras.utils.unpack_x_y_sample_weight(batch))) for batch in group
            ]
            mean = sum(counts) / len(counts)
            for batch, count in zip(group[skip:], counts[skip:], strict=True):
                yield _with_share(batch, count / mean if mean else 1.0)
            size, skip = self.batches_per_update, 0


class ArraysByUpdate(PythonBatches):
    """Keras's adapter of arrays, whose batches have their shares.

    Args:
        arrays: Keras's `ArrayDataAdapter`.
        updates: the `Updates`.
    """

    def __init__(self, arrays: DataAdapter, updates: Updates):
        self._arrays, self._updates = arrays, updates

    def __iter__(self):
        left = self._updates.batches_per_update - self._updates.batches_done
        return self._updates.with_shares(iter(self._arrays.get_numpy_iterator()), left)

    def on_epoch_begin(self):
        self._updates.begin_epoch()

    @property
    def num_batches(self):
        return self._arrays.num_batches

    @property
    def batch_size(self):
        return self._arrays.batch_size


@contextlib.contextmanager
def by_update(data, updates: Updates | None, batch_size=None, steps=None, shuffle=False):
    """Gives the data for a fit in which each batch counts by its share of an update.

    Where the batches are not known before they are used, gives the data as they are, and warns.

    Args:
        data: `(x, y, sample_weight)` as for `keras.Model.fit`.
        updates: the `Updates`; None where each batch is an update.
        batch_size: as for `fit`, for arrays.
        steps: as `steps_per_epoch` for `fit`.
        shuffle: as for `fit`.
    """
    x, y, sample_weight = data
    if updates is None:
        yield data
    elif isinstance(x, ResumableBatches):
        with x.by_update(updates):
            yield data
    elif kind_of(x) is None and not isinstance(x, DataAdapter):
        arrays = get_data_adapter(x, y, sample_weight, batch_size, steps, shuffle)
        left = arrays.num_batches % updates.batches_per_update
        if left:
            warn(
                f"The last {left} of {arrays.num_batches} batches of an epoch share an update with "
                "the next epoch's, whose tokens are not known yet: these batches count by their "
                "number in that update. Try gradient_accumulation_steps that divide the number of "
                "batches, or kgpt.data.",
            )
        yield ArraysByUpdate(arrays, updates), None, None
    else:
        warn(
            "With gradient_accumulation_steps each of these batches counts alike in an update, "
            "however many tokens it has: they are not known before the update. For a mean over all "
            "its tokens, try kgpt.data or arrays.",
        )
        yield data


def take_share(x):
    """Returns inputs without the share, and the share as a tensor `(batch,)`, or None."""
    if not isinstance(x, dict) or SHARE not in x:
        return x, None
    return {name: value for name, value in x.items() if name != SHARE}, x[SHARE]


def _with_share(batch, share):
    x, *rest = keras.utils.unpack_x_y_sample_weight(batch)
    x = dict(x) if isinstance(x, dict) else {"token_ids": x}
    x[SHARE] = np.full((len(x["token_ids"]),), share, "float32")
    while rest and rest[-1] is None:
        rest.pop()
    return (x, *rest)
