"""Sequences with labels, or with the weights of their tokens -> batches of similar length."""

from collections.abc import Iterator

import numpy as np

from kgpt.data.batches import ResumableBatches

_SHORTEST_BUCKET = 16


class TaskBatches(ResumableBatches):
    """Batches of sequences of similar length, as the functions in `kgpt.data` return them.

    A batch has examples of similar length. It is padded at the right to the shortest length that
    fits out of a few, each of which costs one compilation: the longest example rounded up to a
    multiple of 8 (at most `sequence_length`), a half of that, a quarter, down to 16.

    Each pass visits every example once; the last batch may be smaller. With a seed, each pass has
    another random order, the same in every run. Without one, the order is by length; `predict`
    returns its rows in the order of the texts all the same.

    Each batch is `(x, labels)`, with weights `(x, labels, sample_weight)`, without labels `(x,)`.
    `x` has `"token_ids"` (int32) and `"padding_mask"` (bool), `(batch, length)`, or
    `(batch, sequences, length)` if examples have several sequences. Labels are int32 `(batch,)`, or
    uint8 `(batch, classes)` with 1 for each class that is right; targets float32
    `(batch, outputs)`, weights float32 `(batch,)`.

    With the weights of tokens, for a language model, each batch is `(x, y, sample_weight)`, all
    `(batch, length)`: `x` without the last token of each sequence, `y` the next tokens, and
    `sample_weight` float32, the weight of each of them.

    Attributes:
        labels: all labels or targets in the order of the texts, or None.
        sample_weight: all weights of examples in the order of the texts, or None.
        class_names: list of str, or None.
        both_orders: bool. Whether pairs are read in both orders.
        sequences_per_example: int. Number of sequences in an example.
        sequence_length: int. Maximum number of tokens in a row.
        has_next_tokens: bool. Whether the batches are for a language model.
    """

    def __init__(
        self,
        sequences: list[list[list[int]]],
        labels: np.ndarray | None,
        batch_size: int,
        sequence_length: int,
        seed: int | None,
        repeat: bool = False,
        class_names: list[str] | None = None,
        both_orders: bool = False,
        sample_weight: np.ndarray | None = None,
        token_weights: list[list[float]] | None = None,
    ):
        super().__init__(repeat)
        self.labels = labels
        self.sample_weight = sample_weight
        self.class_names = class_names
        self.both_orders = both_orders
        self.sequence_length = sequence_length
        self._batch_size, self._seed = batch_size, seed
        self.sequences_per_example = len(sequences[0])
        self._tokens = np.concatenate(
            [np.array(ids, "int32") for example in sequences for ids in example]
        )
        lengths = np.array([[len(ids) for ids in example] for example in sequences])
        self._starts = np.cumsum(lengths).reshape(lengths.shape) - lengths  # (examples, sequences)
        self.has_next_tokens = token_weights is not None
        self._token_weights = None
        if self.has_next_tokens:
            self._token_weights = np.concatenate([np.array(w, "float32") for w in token_weights])
        self._lengths = lengths - self.has_next_tokens  # a last token is only a target
        self._longest = self._lengths.max(axis=1)  # (examples,)
        self._padded = _padded_lengths(self._longest, sequence_length)
        self._plans = {}

    @property
    def num_examples(self) -> int:
        """Number of examples."""
        return len(self._longest)

    @property
    def longest_sequence(self) -> int:
        """Maximum number of tokens in a row, padding included."""
        return int(self._padded.max())

    @property
    def has_one_length(self) -> bool:
        """Whether all batches of a pass in order of length are padded to the same length."""
        plan = self.from_beginning()._plan(0)
        return len({self._padded[examples].max() for examples in plan}) == 1

    def check_vocabulary(self, vocabulary_size: int):
        """Raises ValueError if a token id is outside the vocabulary."""
        if self._tokens.max() >= vocabulary_size:
            raise ValueError(
                f"Each token id must lie in [0, {vocabulary_size}), the backbone's vocabulary. "
                f"Received: ids up to {self._tokens.max()}. Try the tokenizer that the backbone "
                "was trained with. If it has new special tokens, try "
                "backbone = backbone.with_vocabulary_size(tokenizer.vocabulary_size)."
            )

    def __len__(self) -> int:
        return -(-self.num_examples // self._batch_size)

    def from_beginning(self, steps: int | None = None) -> "TaskBatches":
        """Returns a view for evaluation: one pass in order of length, whatever the position.

        Args:
            steps: optional int. If given, the view has the first `steps * batch_size` examples.

        Returns:
            `TaskBatches`, which no iteration moves. `original_order` reverts the order of length.

        Raises:
            ValueError: if `steps` is not a positive integer.
        """
        view = super().from_beginning(steps)
        view._seed, view._repeat, view._plans = None, False, {}
        if steps is not None:
            view._keep_first(steps * self._batch_size)
        return view

    def original_order(self, rows: np.ndarray) -> np.ndarray:
        """Returns rows predicted by length in the order of the texts."""
        examples = np.concatenate(self._plan(0))[: len(rows)]  # a callback may stop early
        return rows[np.argsort(examples)]

    def _keep_first(self, num_examples: int):
        for name in ("labels", "sample_weight", "_lengths", "_starts", "_longest", "_padded"):
            column = getattr(self, name)
            setattr(self, name, None if column is None else column[:num_examples])

    def _plan(self, number_of_pass: int) -> list[np.ndarray]:
        """Returns the examples of each batch of a pass."""
        if self._seed is None:
            number_of_pass = 0
        if number_of_pass not in self._plans:
            self._plans = {number_of_pass: self._new_plan(number_of_pass)}
        return self._plans[number_of_pass]

    def _new_plan(self, number_of_pass):
        if self._seed is None:
            order = np.argsort(self._longest, kind="stable")
        else:
            generator = np.random.default_rng((self._seed, number_of_pass))
            order = generator.permutation(self.num_examples)
            order = order[np.argsort(self._padded[order], kind="stable")]
        batches = np.split(order, range(self._batch_size, len(order), self._batch_size))
        if self._seed is not None:
            batches = [batches[i] for i in generator.permutation(len(batches))]
        return batches

    def _read_from(self, batch_number: int) -> Iterator[tuple]:
        while True:
            number_of_pass, in_pass = divmod(batch_number, len(self))
            yield self._batch(self._plan(number_of_pass)[in_pass])
            batch_number += 1

    def in_order(self) -> tuple:
        """Returns all examples as one batch, in the order of the texts."""
        return self._batch(np.arange(self.num_examples))

    def _batch(self, examples: np.ndarray) -> tuple:
        positions = np.arange(self._padded[examples].max())
        padding_mask = positions < self._lengths[examples][..., None]
        places = self._starts[examples][..., None] + positions
        if self.sequences_per_example == 1:
            padding_mask, places = padding_mask[:, 0], places[:, 0]

        def taken(column, places):
            return np.where(padding_mask, column.take(places, mode="clip"), column.dtype.type(0))

        x = {"token_ids": taken(self._tokens, places), "padding_mask": padding_mask}
        if self.has_next_tokens:
            next_places = places + 1
            return x, taken(self._tokens, next_places), taken(self._token_weights, next_places)
        if self.labels is None:
            return (x,)
        if self.sample_weight is None:
            return x, self.labels[examples]
        return x, self.labels[examples], self.sample_weight[examples]

    def _what_batches_depend_on(self) -> dict:
        return {
            "num_examples": self.num_examples,
            "num_tokens": len(self._tokens),
            "sequence_length": self.sequence_length,
            "batch_size": self._batch_size,
            "seed": self._seed,
            "repeat": self._repeat,
        }

    def _content(self) -> dict:
        return {
            "tokens": self._tokens,
            "lengths": self._lengths,
            "labels": self.labels,
            "sample_weight": self.sample_weight,
            "token_weights": self._token_weights,
        }

    def _varying_shape(self, array: np.ndarray) -> tuple:
        if array.ndim == 1:
            return (None,)
        has_length = array.dtype.kind in "ib" or self.has_next_tokens
        return (None, *array.shape[1:-1], None if has_length else array.shape[-1])

    def __repr__(self) -> str:
        depends = ", ".join(f"{k}={v!r}" for k, v in self._what_batches_depend_on().items())
        return f"TaskBatches({depends})"


def _padded_lengths(lengths: np.ndarray, sequence_length: int) -> np.ndarray:
    """Returns the length that each example is padded to: few different ones."""
    buckets = [min(sequence_length, -(-int(lengths.max()) // 8) * 8)]
    while buckets[-1] // 2 >= _SHORTEST_BUCKET:
        buckets.append(buckets[-1] // 2)
    buckets = np.array(buckets[::-1])
    return buckets[np.searchsorted(buckets, lengths)]
