"""Labelled text -> GPT-1's input sequences, in batches of similar length (GPT-1, section 3.3)."""

import copy
import numbers
from collections.abc import Iterable, Iterator, Mapping, Sequence

import numpy as np

from kgpt.data.batches import ResumableBatches, check_batching

_SHORTEST_BUCKET = 16


def classification(
    texts: Sequence[str],
    labels: Sequence | None,
    tokenizer,
    sequence_length: int = 128,
    batch_size: int = 32,
    *,
    seed: int | None = 0,
    class_names: Sequence[str] | None = None,
    repeat: bool = False,
) -> "TaskBatches":
    """One text, one class: `[start] text [classify]`, for `kgpt.TextClassifier`.

    Texts, labels and the like may be lists, numpy arrays, pandas columns or columns of a Hugging
    Face dataset. Empty texts are allowed; special tokens spelled out in a text are plain text.

    A batch holds texts of similar length and is padded to the shortest of a few lengths that it
    fits in: `sequence_length`, a half of it, a quarter, down to 16. In `predict`, rows come out in
    the order of the texts all the same.

    Args:
        texts: the texts; tokens that do not fit are cut at the end.
        labels: ints from 0, or names of classes; None for texts to predict.
        tokenizer: a `kgpt.Tokenizer` with start, delimiter and classify tokens.
        sequence_length: int. Most tokens in a sequence, special ones included.
        batch_size: int. Examples in a batch; the last one of a pass may be smaller.
        seed: int: each pass visits the examples in another random order, the same in every run.
            None: by length, for validation.
        class_names: names of the classes 0, 1, ...; where labels are names and this is None, the
            names in alphabetical order.
        repeat: whether the passes follow each other without end, for `fit` with `steps_per_epoch`.

    Returns:
        `TaskBatches`: `({"token_ids", "padding_mask"}, labels)`, the first two `(batch, length)`,
        the labels int32 `(batch,)`.

    Raises:
        ValueError: for lists of unequal length, texts that are not str, labels that are missing,
            of another type or out of range, and a tokenizer without the special tokens.

    Example:
        train = kgpt.data.classification(["a fine film", "a dull one"], [1, 0], tokenizer)
    """
    _check_columns(texts=texts, labels=labels)
    texts = _texts("texts", texts)
    labels, class_names = _class_labels(labels, class_names, len(texts))
    return TaskBatches(
        single_sequences(texts, tokenizer, sequence_length),
        labels,
        class_names=class_names,
        batch_size=batch_size,
        sequence_length=sequence_length,
        seed=seed,
        repeat=repeat,
    )


def entailment(
    premises: Sequence[str],
    hypotheses: Sequence[str],
    labels: Sequence | None,
    tokenizer,
    sequence_length: int = 128,
    batch_size: int = 32,
    *,
    seed: int | None = 0,
    class_names: Sequence[str] | None = None,
    repeat: bool = False,
) -> "TaskBatches":
    """An ordered pair, one class: `[start] premise [delimiter] hypothesis [classify]`.

    For `kgpt.TextClassifier`. What does not fit is cut from the end of the longer text first.

    Args:
        premises: the first texts.
        hypotheses: the second texts.
        labels: as for `classification`, and so are the other arguments.
        tokenizer: see `classification`.
        sequence_length: see `classification`.
        batch_size: see `classification`.
        seed: see `classification`.
        class_names: see `classification`.
        repeat: see `classification`.

    Returns:
        `TaskBatches`, as from `classification`.

    Raises:
        ValueError: as `classification`.
    """
    _check_columns(premises=premises, hypotheses=hypotheses, labels=labels)
    pairs = list(zip(_texts("premises", premises), _texts("hypotheses", hypotheses), strict=True))
    labels, class_names = _class_labels(labels, class_names, len(pairs))
    return TaskBatches(
        pair_sequences(pairs, tokenizer, sequence_length, both_orders=False),
        labels,
        class_names=class_names,
        batch_size=batch_size,
        sequence_length=sequence_length,
        seed=seed,
        repeat=repeat,
    )


def similarity(
    first_texts: Sequence[str],
    second_texts: Sequence[str],
    labels: Sequence | None,
    tokenizer,
    sequence_length: int = 128,
    batch_size: int = 32,
    *,
    seed: int | None = 0,
    class_names: Sequence[str] | None = None,
    repeat: bool = False,
) -> "TaskBatches":
    """A pair without an order, one class: both orders, one sequence each.

    For `kgpt.TextClassifier(..., both_orders=True)`, which adds the two final states, so that the
    answer does not depend on which text comes first. What does not fit is cut from the end of the
    longer text first. For a degree of similarity, see `regression`.

    Args:
        first_texts: one text of each pair.
        second_texts: the other text of each pair.
        labels: as for `classification`, and so are the other arguments.
        tokenizer: see `classification`.
        sequence_length: see `classification`.
        batch_size: see `classification`.
        seed: see `classification`.
        class_names: see `classification`.
        repeat: see `classification`.

    Returns:
        `TaskBatches`, as from `classification`, but with token ids `(batch, 2, length)`.

    Raises:
        ValueError: as `classification`.
    """
    _check_columns(first_texts=first_texts, second_texts=second_texts, labels=labels)
    firsts, seconds = _texts("first_texts", first_texts), _texts("second_texts", second_texts)
    pairs = list(zip(firsts, seconds, strict=True))
    labels, class_names = _class_labels(labels, class_names, len(pairs))
    return TaskBatches(
        pair_sequences(pairs, tokenizer, sequence_length, both_orders=True),
        labels,
        class_names=class_names,
        batch_size=batch_size,
        sequence_length=sequence_length,
        both_orders=True,
        seed=seed,
        repeat=repeat,
    )


def regression(
    texts: Sequence[str] | Sequence[tuple[str, str]],
    targets: Sequence | None,
    tokenizer,
    sequence_length: int = 128,
    batch_size: int = 32,
    *,
    both_orders: bool = True,
    seed: int | None = 0,
    repeat: bool = False,
) -> "TaskBatches":
    """A text or a pair, one number or several, for `kgpt.TextRegressor`.

    Args:
        texts: texts, or pairs `(first, second)`, as `zip` makes them.
        targets: a number, or a row of numbers, for each text; None for texts to predict.
        tokenizer: see `classification`.
        sequence_length: see `classification`.
        batch_size: see `classification`.
        both_orders: whether a pair is read in both orders (a degree of similarity) or in the given
            one only; as for the `TextRegressor`. It does not matter for single texts.
        seed: see `classification`.
        repeat: see `classification`.

    Returns:
        `TaskBatches`: `({"token_ids", "padding_mask"}, targets)`; the targets are float32
        `(batch, outputs)`, the inputs `(batch, length)`, or `(batch, 2, length)` with both orders.

    Raises:
        ValueError: as `classification`, and for targets that are not finite.
    """
    _check_columns(texts=texts, targets=targets)
    texts = texts_or_pairs(texts)
    return TaskBatches(
        sequences_of(texts, tokenizer, sequence_length, both_orders),
        _numbers(targets),
        batch_size=batch_size,
        sequence_length=sequence_length,
        both_orders=both_orders,
        seed=seed,
        repeat=repeat,
    )


def multiple_choice(
    contexts: Sequence[str],
    choices: Sequence[Sequence[str]],
    labels: Sequence[int] | None,
    tokenizer,
    sequence_length: int = 256,
    batch_size: int = 8,
    *,
    seed: int | None = 0,
    repeat: bool = False,
) -> "TaskBatches":
    """Which ending is right: `[start] context [delimiter] choice [classify]` for each choice.

    For `kgpt.MultipleChoice`. A question, where there is one, belongs at the end of its context.
    A context that does not fit loses its beginning, the same for all choices; only a choice that
    alone is too long is cut, at its end.

    Args:
        contexts: a text for each example.
        choices: a list of texts for each example, as many in all.
        labels: the numbers of the right choices, from 0; None for examples to predict.
        tokenizer: see `classification`.
        sequence_length: see `classification`.
        batch_size: int. Examples in a batch; each is as many sequences as it has choices.
        seed: see `classification`.
        repeat: see `classification`.

    Returns:
        `TaskBatches`: `({"token_ids", "padding_mask"}, labels)`, the first two
        `(batch, choices, length)`, the labels int32 `(batch,)`.

    Raises:
        ValueError: as `classification`, and for examples with unequal numbers of choices.
    """
    _check_columns(contexts=contexts, choices=choices, labels=labels)
    contexts = _texts("contexts", contexts)
    choices = [_texts(f"choices[{i}]", of_one) for i, of_one in enumerate(choices)]
    num_choices = len(choices[0])
    for i, of_one in enumerate(choices):
        if len(of_one) != num_choices or num_choices < 2:
            raise ValueError(
                "All examples must have the same number of choices, at least 2. "
                f"Received: {num_choices} for the first example and {len(of_one)} for example {i}. "
                "Make a data set for each number of choices."
            )
    labels, _ = _class_labels(labels, None, len(contexts))
    if labels is not None and labels.max() >= num_choices:
        i = int(np.argmax(labels >= num_choices))
        raise ValueError(
            "labels must be the numbers of the right choices, from 0. "
            f"Received: {labels[i]} for example {i}, which has {num_choices} choices."
        )
    return TaskBatches(
        choice_sequences(contexts, choices, tokenizer, sequence_length),
        labels,
        class_names=None,
        batch_size=batch_size,
        sequence_length=sequence_length,
        seed=seed,
        repeat=repeat,
        keep_sequences=True,
    )


def unlabelled(texts, tokenizer, sequence_length: int, batch_size: int, both_orders: bool):
    """`TaskBatches` of texts or pairs to predict, in one fixed order."""
    _check_columns(texts=texts)
    return TaskBatches(
        sequences_of(texts_or_pairs(texts), tokenizer, sequence_length, both_orders),
        None,
        batch_size=batch_size,
        sequence_length=sequence_length,
        both_orders=both_orders,
        seed=None,
    )


class TaskBatches(ResumableBatches):
    """Batches of labelled sequences of similar length.

    Attributes:
        labels: all labels or targets in the order of the texts, or None.
        class_names: the classes' names, or None.
        both_orders: whether pairs are read in both orders.
        sequences_per_example: int.
        sequence_length: int. Most tokens in a sequence.
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
        keep_sequences: bool = False,
    ):
        super().__init__(repeat)
        check_batching(seed, sequence_length=sequence_length, batch_size=batch_size)
        self.labels = labels
        self.class_names = class_names
        self.both_orders = both_orders
        self.sequence_length = sequence_length
        self._batch_size, self._seed = batch_size, seed
        self.sequences_per_example = len(sequences[0])
        self._keep_sequences = keep_sequences or self.sequences_per_example > 1
        self._tokens = np.concatenate(
            [np.array(ids, "int32") for example in sequences for ids in example]
        )
        lengths = [[len(ids) for ids in example] for example in sequences]
        self._lengths = np.array(lengths)  # (examples, sequences)
        ends = np.cumsum(self._lengths.reshape(-1)).reshape(self._lengths.shape)
        self._starts = ends - self._lengths
        self._longest = self._lengths.max(axis=1)  # (examples,)
        self._padded = _padded_lengths(self._longest, sequence_length)
        self._plans = {}

    @property
    def num_examples(self) -> int:
        """How many labelled texts there are."""
        return len(self._longest)

    @property
    def longest_sequence(self) -> int:
        """Most tokens in a row, padding included."""
        return int(self._padded.max())

    def check_vocabulary(self, vocabulary_size: int):
        """Raise ValueError if there is a token id that the vocabulary has not."""
        if self._tokens.max() >= vocabulary_size:
            raise ValueError(
                f"Each token id must lie in [0, {vocabulary_size}), the backbone's vocabulary. "
                f"Received: ids up to {self._tokens.max()}. Was the text encoded with the "
                "tokenizer that the backbone was made for? If it has new special tokens, try "
                "backbone = backbone.with_vocabulary_size(tokenizer.vocabulary_size)."
            )

    def __len__(self) -> int:
        return -(-self.num_examples // self._batch_size)

    def in_order_of_length(self) -> "TaskBatches":
        """The same examples in one fixed order, whose rows `original_order` puts back.

        Their sequences always have an axis of their own: a TensorFlow function that has seen two
        ranks knows none of them.
        """
        ordered = copy.copy(self)
        ordered._seed, ordered._repeat, ordered._plans = None, False, {}
        ordered._next_batch, ordered._epoch_start = 0, None  # this one may be half-way
        ordered._keep_sequences = True
        return ordered

    def original_order(self, rows: np.ndarray) -> np.ndarray:
        """Rows predicted by length, in the order of the texts."""
        ordered = np.empty_like(rows)
        ordered[np.concatenate(self._plan(0))] = rows
        return ordered

    def _plan(self, number_of_pass: int) -> list[np.ndarray]:
        """The examples of each batch of a pass."""
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

    def _batch(self, examples: np.ndarray) -> tuple:
        positions = np.arange(self._padded[examples].max())
        padding_mask = positions < self._lengths[examples][..., None]
        places = self._starts[examples][..., None] + positions
        token_ids = np.where(padding_mask, self._tokens.take(places, mode="clip"), 0)
        if not self._keep_sequences:
            token_ids, padding_mask = token_ids[:, 0], padding_mask[:, 0]
        x = {"token_ids": token_ids.astype("int32"), "padding_mask": padding_mask}
        return (x,) if self.labels is None else (x, self.labels[examples])

    def _what_batches_depend_on(self) -> dict:
        return {
            "num_examples": self.num_examples,
            "num_tokens": len(self._tokens),
            "sequence_length": self.sequence_length,
            "batch_size": self._batch_size,
            "seed": self._seed,
            "repeat": self._repeat,
        }

    def _varying_shape(self, array: np.ndarray) -> tuple:
        if array.ndim == 1:
            return (None,)
        is_input = array.dtype.kind in "ib"
        return (None, *array.shape[1:-1], None if is_input else array.shape[-1])

    def __repr__(self) -> str:
        depends = ", ".join(f"{k}={v!r}" for k, v in self._what_batches_depend_on().items())
        return f"TaskBatches({depends})"


def _padded_lengths(lengths: np.ndarray, sequence_length: int) -> np.ndarray:
    """The length that each example is padded to: few different ones, as each costs a compile."""
    most = min(sequence_length, -(-int(lengths.max()) // 8) * 8)
    buckets = [most]
    while buckets[-1] // 2 >= _SHORTEST_BUCKET:
        buckets.append(buckets[-1] // 2)
    buckets = np.array(buckets[::-1])
    return buckets[np.searchsorted(buckets, lengths)]


# --- Input transformations (GPT-1, figure 1) ----------------------------------------------------


def sequences_of(texts, tokenizer, sequence_length: int, both_orders: bool) -> list:
    """The sequences of texts, or of pairs."""
    if isinstance(texts[0], str):
        return single_sequences(texts, tokenizer, sequence_length)
    return pair_sequences(texts, tokenizer, sequence_length, both_orders)


def single_sequences(texts: list[str], tokenizer, sequence_length: int) -> list[list[list[int]]]:
    """`[start] text [classify]`, cut at the text's end."""
    start, _, classify = _special_ids(tokenizer, sequence_length)
    room = sequence_length - 2
    return [[[start, *ids[:room], classify]] for ids in tokenizer.encode_batch(texts)]


def pair_sequences(pairs, tokenizer, sequence_length: int, both_orders: bool) -> list:
    """`[start] first [delimiter] second [classify]`; with both orders, a second time turned round.

    What does not fit is cut from the longer of the two until they are equally long, then from both.
    """
    start, delimiter, classify = _special_ids(tokenizer, sequence_length)
    firsts = tokenizer.encode_batch([first for first, _ in pairs])
    seconds = tokenizer.encode_batch([second for _, second in pairs])
    room = sequence_length - 3
    sequences = []
    for first, second in zip(firsts, seconds, strict=True):
        most = max(room // 2, room - min(len(first), len(second)))
        first, second = first[:most], second[:most]
        example = [[start, *first, delimiter, *second, classify]]
        if both_orders:
            example.append([start, *second, delimiter, *first, classify])
        sequences.append(example)
    return sequences


def choice_sequences(contexts, choices, tokenizer, sequence_length: int) -> list:
    """`[start] context [delimiter] choice [classify]` for each choice; keeps the context's end."""
    start, delimiter, classify = _special_ids(tokenizer, sequence_length)
    room = sequence_length - 3
    num_choices = len(choices[0])
    encoded = tokenizer.encode_batch([choice for of_one in choices for choice in of_one])
    sequences = []
    for i, context in enumerate(tokenizer.encode_batch(contexts)):
        endings = [ids[:room] for ids in encoded[i * num_choices : (i + 1) * num_choices]]
        beginning = max(0, len(context) + max(map(len, endings)) - room)
        context = context[beginning:]
        sequences.append([[start, *context, delimiter, *ids, classify] for ids in endings])
    return sequences


def _special_ids(tokenizer, sequence_length: int) -> tuple[int, int, int]:
    check_batching(sequence_length=sequence_length)
    if sequence_length < 5:
        raise ValueError(
            "A sequence needs room for start, delimiter, classify and a token of each text. "
            f"Received: sequence_length={sequence_length}. Try at least 5."
        )
    ids = (tokenizer.start_id, tokenizer.delimiter_id, tokenizer.classify_id)
    if None in ids:
        raise ValueError(
            "The tokenizer must have the tokens start, delimiter and classify. "
            f"Received: special tokens {tokenizer.special_tokens}. Try "
            "tokenizer = tokenizer.with_special_tokens() and "
            "backbone = backbone.with_vocabulary_size(tokenizer.vocabulary_size)."
        )
    return ids


# --- Checks -------------------------------------------------------------------------------------


def _check_columns(**columns):
    may_be_none = ("labels", "targets")
    lengths = {
        name: _length(name, column)
        for name, column in columns.items()
        if not (column is None and name in may_be_none)
    }
    if len(set(lengths.values())) > 1:
        received = ", ".join(f"{length} {name}" for name, length in lengths.items())
        raise ValueError(f"There must be as many of each. Received: {received}.")
    if 0 in lengths.values():
        raise ValueError(f"There must be at least one example. Received: no {next(iter(lengths))}.")


def _length(name: str, column) -> int:
    is_table = isinstance(column, Mapping) or hasattr(column, "columns")
    if isinstance(column, str) or is_table or not hasattr(column, "__len__"):
        raise ValueError(
            f"{name} must be a list, an array or one column, with an item for each example. "
            f"Received: {str(column)[:50]!r}, a {type(column).__name__}."
        )
    return len(column)


def _texts(name: str, texts) -> list[str]:
    if isinstance(texts, str) or not isinstance(texts, Iterable):
        raise ValueError(f"{name} must be a list of texts. Received: {texts!r:.50}.")
    texts = list(texts)
    for i, text in enumerate(texts):
        if not isinstance(text, str):
            raise ValueError(
                f"{name} must be texts, str. Received: {text!r} at index {i}. "
                "Leave out examples without a text, or put an empty text there."
            )
    return texts


def texts_or_pairs(texts) -> list:
    """Texts, or pairs of texts as tuples, checked.

    Raises:
        ValueError: for anything else, and for a mixture.
    """
    if isinstance(texts, str) or len(texts) == 0 or isinstance(next(iter(texts)), str):
        return _texts("texts", texts)
    pairs = []
    for i, pair in enumerate(texts):
        if isinstance(pair, str) or not isinstance(pair, Sequence | np.ndarray) or len(pair) != 2:
            raise ValueError(
                "texts must be texts, or pairs (first, second) of them, all alike. "
                f"Received: {pair!r} at index {i}."
            )
        pairs.append(tuple(_texts(f"texts[{i}]", pair)))
    return pairs


def _is_missing(value) -> bool:
    # pandas has three kinds of missing values; each of them differs from itself or can't tell
    return value is None or type(value).__name__ == "NAType" or np.all(value != value)


def _class_labels(labels, class_names, count: int):
    """Labels as int32 `(examples,)`, and the classes' names."""
    class_names = None if class_names is None else [str(name) for name in class_names]
    if labels is None:
        return None, class_names
    labels = list(labels)
    for i, label in enumerate(labels):
        if _is_missing(label):
            raise ValueError(
                f"Each example needs a label. Received: {label!r} at index {i}. Leave out "
                "examples without a label; labels=None is for texts to predict."
            )
    for i, label in enumerate(labels):
        if not isinstance(label, str | numbers.Integral | np.bool_):
            raise ValueError(
                "labels must be ints from 0, or names of classes. "
                f"Received: {label!r}, a {type(label).__name__}, at index {i}. "
                "For numbers to predict, use kgpt.data.regression."
            )
        if isinstance(label, str) != isinstance(labels[0], str):
            raise ValueError(
                "labels must be all ints or all names. "
                f"Received: {labels[0]!r} at index 0 and {label!r} at index {i}."
            )
    if isinstance(labels[0], str):
        class_names = sorted(set(labels)) if class_names is None else class_names
        numbers_of = {name: number for number, name in enumerate(class_names)}
        for i, label in enumerate(labels):
            if label not in numbers_of:
                raise ValueError(
                    "Each label must be one of class_names. "
                    f"Received: {label!r} at index {i}, class_names={class_names}."
                )
        labels = [numbers_of[label] for label in labels]
    array = np.array(labels).astype("int64")
    most = np.inf if class_names is None else len(class_names)
    wrong = (array < 0) | (array >= most)
    if wrong.any():
        i = int(np.argmax(wrong))
        expected = "0 or larger" if class_names is None else f"below {len(class_names)}, from 0"
        raise ValueError(f"labels must be {expected}. Received: {labels[i]} at index {i}.")
    return array.astype("int32"), class_names


def _numbers(targets) -> np.ndarray | None:
    """Targets as float32 `(examples, outputs)`."""
    if targets is None:
        return None
    try:
        array = np.array([np.asarray(row, "float64") for row in targets], "float64")
    except (TypeError, ValueError) as error:
        raise ValueError(
            "targets must be numbers, or rows of as many numbers each. "
            f"Received: {list(targets)[:3]!r} ... ({error})."
        ) from error
    array = array.reshape(len(array), -1)
    wrong = ~(np.abs(array) <= np.finfo("float32").max).all(axis=1)
    if wrong.any():
        i = int(np.argmax(wrong))
        raise ValueError(
            f"targets must be finite float32 numbers. Received: {array[i].tolist()} at index {i}. "
            "Leave out examples without a target."
        )
    return array.astype("float32")
