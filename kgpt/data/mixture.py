"""Several corpora -> one stream of training windows, in proportions."""

import functools
from collections.abc import Iterator, Sequence

import keras
import numpy as np

from kgpt.arguments import checked, refuse
from kgpt.data.batches import ResumableBatches
from kgpt.data.windows import TokenWindows, import_grain, read_ahead

# Of how the rows of a batch are made; what is left is each corpus's own.
_COMMON = ("sequence_length", "batch_size", "shard_index", "shard_count")


def _corpora(name, value):
    if not isinstance(value, list | tuple) or not value:
        refuse(name, value, "a list of kgpt.data.windows", "Try [web, code].")
    for one in value:
        if not isinstance(one, TokenWindows):
            hint = "Mix the corpora themselves." if isinstance(one, TokenMixture) else ""
            refuse(name, one, "a list of kgpt.data.windows alone", hint)
    return list(value)


@checked(datasets=_corpora)
def mixture(
    datasets: Sequence[TokenWindows], weights: Sequence[float], *, repeat: bool = False
) -> "TokenMixture":
    """Mixes the windows of several corpora in proportions, for `fit`, `evaluate` or a loop.

    Of the rows of each batch a share comes from each corpus, by its weight: of 0.7 and 0.3 and 32
    rows, 22 and 10 or 23 and 9, so that of all rows up to there each share is within two rows of
    what it should be. (Proportions themselves are rounded, by 1% at most.) Each corpus comes in
    its own order, of its own seed, and begins its next pass when one ends, whatever the others do.
    A pass of the mixture ends before the first of them would begin its second; the next pass of
    the mixture goes on from there.

    Args:
        datasets: list of `kgpt.data.windows`, of the same `sequence_length`, `batch_size` and
            shards, and with `segment_ids` all or none. Their own positions play no part.
        weights: list of float, one for each of them, in [0, inf). They need not add up to 1. Of a
            corpus of weight 0 nothing is read.
        repeat: bool. Whether passes follow each other without end, for `fit` with
            `steps_per_epoch`. Without it, an epoch of Keras is a pass.

    Returns:
        `TokenMixture`. Its batches are those of `windows`, and so are its positions: a
        `ResumableCheckpoint` goes on within a pass, by any number of processes.

    Raises:
        ValueError: for weights that are negative, not finite, all 0 or not as many as corpora; for
            corpora that are cut differently, repeat themselves or are too short for a batch.

    Example:
        web = kgpt.data.windows("web/", sequence_length=64, batch_size=4, seed=0)
        code = kgpt.data.windows("code/", sequence_length=64, batch_size=4, seed=0)
        train = kgpt.data.mixture([web, code], weights=[0.7, 0.3])
    """
    if len(weights) != len(datasets) or not any(weights):
        raise ValueError(
            "weights must have a number for each of the datasets, one of them above 0. "
            f"Received: weights={weights!r:.80} for {len(datasets)} datasets."
        )
    for one in datasets:
        _check_alike(datasets[0], one)
    return TokenMixture(datasets, weights, repeat)


def _check_alike(first, other):
    if other.config["repeat"]:
        raise ValueError(
            f"A mixture repeats its corpora by itself. Received: {other!r:.200} with repeat=True. "
            "Make it without, and pass repeat=True to kgpt.data.mixture."
        )
    ones = [
        {**{name: data.config[name] for name in _COMMON}, "segment_ids": data.has_segment_ids}
        for data in (first, other)
    ]
    differing = [name for name in ones[0] if ones[0][name] != ones[1][name]]
    if differing:
        name = differing[0]
        raise ValueError(
            f"The corpora of a mixture must have the same {name}. "
            f"Received: {name}={ones[0][name]} and {name}={ones[1][name]}."
        )


class TokenMixture(ResumableBatches):
    """The batches of `mixture`; `len()` is the number of batches in a pass, and an iteration."""

    has_next_tokens = True

    def __init__(self, datasets: list[TokenWindows], weights: list[float], repeat: bool):
        super().__init__(repeat)
        self._datasets, self._weights = datasets, weights
        self._vocabulary_size = None
        config, self.tokens_per_batch = datasets[0].config, datasets[0].tokens_per_batch
        self._batch_size, self._shards = config["batch_size"], config["shard_count"]
        self._shard, self.longest_sequence = config["shard_index"], config["sequence_length"]
        self._num_batches = len(self._mixed()) // (self._batch_size * self._shards)
        if not self._num_batches:
            raise ValueError(
                "A mixture must have a batch before the first of its corpora ends. Received: "
                f"batch_size={self._batch_size} for each of {self._shards} processes, "
                f"weights={weights!r:.80} and {[d.num_windows for d in datasets]!r:.80} windows. "
                "Try a smaller batch_size, or a smaller weight for the short corpus."
            )

    def __len__(self) -> int:
        return self._num_batches

    def _mixed(self, passes: int | None = 1):
        """Returns the windows in their order, as a grain dataset of `(corpus, pass, window)`.

        Args:
            passes: optional int. How often each corpus is read; None for without end.
        """
        used = [number for number, weight in enumerate(self._weights) if weight]
        orders = []
        for number in used:
            data = self._datasets[number]
            place = functools.partial(_placed, number, data.num_windows)
            orders.append(data.order().repeat(passes).map_with_index(place))
        return import_grain().MapDataset.mix(orders, [self._weights[number] for number in used])

    def _read_from(self, batch_number: int) -> Iterator[tuple]:
        rows = self._mixed(passes=None).batch(self._batch_size * self._shards, batch_fn=np.stack)
        return read_ahead(rows.map(self._read), batch_number)

    def _read(self, rows: np.ndarray) -> tuple:
        first = self._shard * self._batch_size
        rows = rows[first : first + self._batch_size]  # (batch, 3)
        kinds, kind_of_row = np.unique(rows[:, :2], axis=0, return_inverse=True)
        parts, places = [], []
        for kind, (number, number_of_pass) in enumerate(kinds):
            of_kind = np.flatnonzero(kind_of_row.reshape(-1) == kind)
            with self._keeping_error():
                parts.append(
                    self._datasets[number].cut(
                        rows[of_kind, 2], int(number_of_pass), self._vocabulary_size
                    )
                )
            places.append(of_kind)
        back = np.argsort(np.concatenate(places))
        return keras.tree.map_structure(lambda *arrays: np.concatenate(arrays)[back], *parts)

    def check_vocabulary(self, vocabulary_size: int):
        """Raises ValueError for a token id outside the vocabulary, as that of `windows` does."""
        self.error = None
        for data in self._datasets:
            data.check_vocabulary(vocabulary_size)
        self._vocabulary_size = vocabulary_size

    def _what_batches_depend_on(self) -> dict:
        corpora = {
            f"corpus_{number}": data._what_batches_depend_on()
            for number, data in enumerate(self._datasets)
        }
        size = self._batch_size * self._shards  # of all processes together
        return {"weights": self._weights, "batch_size": size, "repeat": self._repeat, **corpora}

    def _content(self) -> dict:
        return {
            f"{name}_{number}": array
            for number, data in enumerate(self._datasets)
            for name, array in data._content().items()
        }

    def _varying_shape(self, array: np.ndarray) -> tuple:
        return (self._batch_size, *array.shape[1:])

    def __repr__(self) -> str:
        return f"TokenMixture({self._datasets!r}, weights={self._weights}, repeat={self._repeat})"


def _placed(number, num_windows, index, window):
    return np.array([number, index // num_windows, window])
