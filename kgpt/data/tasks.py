"""Labelled text -> batches for the task heads (GPT-1, section 3.3)."""

from collections.abc import Sequence

from kgpt.arguments import checked
from kgpt.data.columns import (
    check_columns,
    read_choice_labels,
    read_choices,
    read_labels,
    read_targets,
    read_text_column,
    read_texts_or_pairs,
    read_weights,
)
from kgpt.data.sequences import sequences_of
from kgpt.data.task_batches import TaskBatches


@checked
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
    sample_weight: Sequence[float] | None = None,
    truncate: str = "end",
) -> TaskBatches:
    """Returns batches of one text and one class: `[start] text [classify]`.

    For `kgpt.TextClassifier`. Columns may be lists, numpy arrays, pandas columns or columns of a
    Hugging Face dataset. Empty texts are allowed; special tokens written out in a text are
    ordinary text. A text that is too long is truncated.

    Args:
        texts: the texts.
        labels: ints from 0, or names of classes; None for texts to predict. For a `TextClassifier`
            with `multi_label=True`, a list of names or numbers of classes for each text, or an
            array `(examples, classes)` of 0 and 1.
        tokenizer: a `kgpt.Tokenizer` with start, delimiter and classify tokens.
        sequence_length: int. Maximum number of tokens in a sequence, special ones included.
        batch_size: int. Examples in a batch; the last one of a pass may be smaller.
        seed: optional int. With a seed, each pass has another random order, the same in every
            run; None sorts by length, for validation.
        class_names: names of the classes 0, 1, ...; if the labels are names, by default those
            names in alphabetical order. Lists of numbers need it, `range(5)` for five classes.
        repeat: bool. Whether passes follow each other without end, for `fit` with
            `steps_per_epoch`.
        sample_weight: optional numbers of at least 0, one for each example: its weight in the loss
            and in Keras's weighted metrics. Then batches have a third item, float32 `(batch,)`.
        truncate: "end" or "start". What a text that is too long loses; a warning says how many do.

    Returns:
        `TaskBatches` of `({"token_ids", "padding_mask"}, labels)`: inputs `(batch, length)`,
        labels int32 `(batch,)`, or uint8 `(batch, classes)` from a row for each example.

    Raises:
        ValueError: for columns of different lengths, texts that are not str, labels that are
            missing, of another type or outside the classes, and a tokenizer without the special
            tokens.

    Example:
        train = kgpt.data.classification(["a fine film", "a dull one"], [1, 0], tokenizer)
        train = kgpt.data.classification(texts, [["art", "film"], ["film"]], tokenizer)
    """
    columns = {"texts": texts}
    batching = {"batch_size": batch_size, "seed": seed, "repeat": repeat}
    batching.update(sample_weight=sample_weight, truncate=truncate)
    return _classes(columns, labels, class_names, tokenizer, sequence_length, **batching)


@checked
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
    sample_weight: Sequence[float] | None = None,
    truncate: str = "end",
) -> TaskBatches:
    """Returns batches of an ordered pair and one class.

    `[start] premise [delimiter] hypothesis [classify]`, for `kgpt.TextClassifier`. A pair that is
    too long is truncated in its longer text first.

    Args:
        premises: the first texts.
        hypotheses: the second texts.
        labels: ints from 0, or names of classes; None for pairs to predict. For a `TextClassifier`
            with `multi_label=True`, as for `classification`.
        tokenizer: a `kgpt.Tokenizer` with start, delimiter and classify tokens.
        sequence_length: int. Maximum number of tokens in a sequence, special ones included.
        batch_size: int. Examples in a batch; the last one of a pass may be smaller.
        seed: optional int. With a seed, each pass has another random order, the same in every
            run; None sorts by length, for validation.
        class_names: names of the classes 0, 1, ...; if the labels are names, by default those
            names in alphabetical order.
        repeat: bool. Whether passes follow each other without end, for `fit` with
            `steps_per_epoch`.
        sample_weight: optional numbers of at least 0, one for each example: its weight in the loss
            and in Keras's weighted metrics. Then batches have a third item, float32 `(batch,)`.
        truncate: "end" or "start". What a text that is too long loses; a warning says how many do.

    Returns:
        `TaskBatches` of `({"token_ids", "padding_mask"}, labels)`: inputs `(batch, length)`,
        labels int32 `(batch,)`, or uint8 `(batch, classes)` from a row for each example.

    Raises:
        ValueError: for columns of different lengths, texts that are not str, labels that are
            missing, of another type or outside the classes, and a tokenizer without the special
            tokens.

    Example:
        kgpt.data.entailment(["it rains"], ["it is wet"], ["entailment"], tokenizer)
    """
    columns = {"premises": premises, "hypotheses": hypotheses}
    batching = {"batch_size": batch_size, "seed": seed, "repeat": repeat}
    batching.update(sample_weight=sample_weight, truncate=truncate)
    return _classes(columns, labels, class_names, tokenizer, sequence_length, **batching)


@checked
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
    sample_weight: Sequence[float] | None = None,
    truncate: str = "end",
) -> TaskBatches:
    """Returns batches of an unordered pair and one class: two sequences, one in each order.

    For `kgpt.TextClassifier(..., both_orders=True)`, which adds the two final states, so that the
    result does not depend on which text comes first. A pair that is too long is truncated in
    its longer text first. For a degree of similarity, use `regression`.

    Args:
        first_texts: one text of each pair.
        second_texts: the other text of each pair.
        labels: ints from 0, or names of classes; None for pairs to predict. For a `TextClassifier`
            with `multi_label=True`, as for `classification`.
        tokenizer: a `kgpt.Tokenizer` with start, delimiter and classify tokens.
        sequence_length: int. Maximum number of tokens in a sequence, special ones included.
        batch_size: int. Examples in a batch; the last one of a pass may be smaller.
        seed: optional int. With a seed, each pass has another random order, the same in every
            run; None sorts by length, for validation.
        class_names: names of the classes 0, 1, ...; if the labels are names, by default those
            names in alphabetical order.
        repeat: bool. Whether passes follow each other without end, for `fit` with
            `steps_per_epoch`.
        sample_weight: optional numbers of at least 0, one for each example: its weight in the loss
            and in Keras's weighted metrics. Then batches have a third item, float32 `(batch,)`.
        truncate: "end" or "start". What a text that is too long loses; a warning says how many do.

    Returns:
        `TaskBatches` of `({"token_ids", "padding_mask"}, labels)`: inputs `(batch, 2, length)`,
        labels int32 `(batch,)`, or uint8 `(batch, classes)` from a row for each example.

    Raises:
        ValueError: for columns of different lengths, texts that are not str, labels that are
            missing, of another type or outside the classes, and a tokenizer without the special
            tokens.

    Example:
        kgpt.data.similarity(["How old are you?"], ["What is your age?"], [1], tokenizer)
    """
    columns = {"first_texts": first_texts, "second_texts": second_texts}
    batching = {"batch_size": batch_size, "seed": seed, "repeat": repeat, "both_orders": True}
    batching.update(sample_weight=sample_weight, truncate=truncate)
    return _classes(columns, labels, class_names, tokenizer, sequence_length, **batching)


@checked
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
    sample_weight: Sequence[float] | None = None,
    truncate: str = "end",
) -> TaskBatches:
    """Returns batches of a text or a pair and one number or several, for `kgpt.TextRegressor`.

    Args:
        texts: texts, or pairs `(first, second)`, such as `zip` gives.
        targets: a number, or a row of numbers, for each text; None for texts to predict.
        tokenizer: a `kgpt.Tokenizer` with start, delimiter and classify tokens.
        sequence_length: int. Maximum number of tokens in a sequence, special ones included.
        batch_size: int. Examples in a batch; the last one of a pass may be smaller.
        both_orders: bool. Whether a pair is read in both orders (a degree of similarity) or only
            in the given one; must equal the `TextRegressor`'s. Without effect on single texts.
        seed: optional int. With a seed, each pass has another random order, the same in every
            run; None sorts by length, for validation.
        repeat: bool. Whether passes follow each other without end, for `fit` with
            `steps_per_epoch`.
        sample_weight: optional numbers of at least 0, one for each example: its weight in the loss
            and in Keras's weighted metrics. Then batches have a third item, float32 `(batch,)`.
        truncate: "end" or "start". What a text that is too long loses; a warning says how many do.

    Returns:
        `TaskBatches` of `({"token_ids", "padding_mask"}, targets)`: inputs `(batch, length)`, or
        `(batch, 2, length)` for pairs in both orders, targets float32 `(batch, outputs)`.

    Raises:
        ValueError: for columns of different lengths, texts that are neither str nor pairs of str,
            targets that are not finite numbers, and a tokenizer without the special tokens.

    Example:
        kgpt.data.regression([("a cat", "a kitten")], [4.2], tokenizer)
    """
    check_columns(texts=texts, targets=targets, sample_weight=sample_weight)
    texts, targets = read_texts_or_pairs(texts), read_targets(targets)
    batching = {"batch_size": batch_size, "seed": seed, "repeat": repeat}
    batching.update(sample_weight=sample_weight, truncate=truncate)
    return _batches(texts, targets, tokenizer, sequence_length, both_orders, **batching)


@checked
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
    sample_weight: Sequence[float] | None = None,
) -> TaskBatches:
    """Returns batches of a context, some choices, and the number of the right choice.

    `[start] context [delimiter] choice [classify]` for each choice, for `kgpt.MultipleChoice`. A
    question belongs at the end of its context. A context that is too long is truncated at its
    beginning, the same for all choices; only a choice that is too long by itself is truncated, at
    its end. A warning says how many are.

    Args:
        contexts: a text for each example.
        choices: a list of texts for each example; all must have the same length.
        labels: the numbers of the right choices, from 0; None for examples to predict.
        tokenizer: a `kgpt.Tokenizer` with start, delimiter and classify tokens.
        sequence_length: int. Maximum number of tokens in a sequence, special ones included.
        batch_size: int. Examples in a batch, each with as many sequences as it has choices; the
            last batch of a pass may be smaller.
        seed: optional int. With a seed, each pass has another random order, the same in every
            run; None sorts by length, for validation.
        repeat: bool. Whether passes follow each other without end, for `fit` with
            `steps_per_epoch`.
        sample_weight: optional numbers of at least 0, one for each example: its weight in the loss
            and in Keras's weighted metrics. Then batches have a third item, float32 `(batch,)`.

    Returns:
        `TaskBatches` of `({"token_ids", "padding_mask"}, labels)`: inputs
        `(batch, choices, length)`, labels int32 `(batch,)`.

    Raises:
        ValueError: for columns of different lengths, examples with different numbers of choices,
            texts that are not str, labels that are missing or not the number of a choice (names
            such as "B", too), and a tokenizer without the special tokens.

    Example:
        kgpt.data.multiple_choice(["The sky is"], [["blue", "loud"]], [0], tokenizer)
    """
    check_columns(contexts=contexts, choices=choices, labels=labels, sample_weight=sample_weight)
    contexts, choices = read_text_column("contexts", contexts), read_choices(choices)
    labels = read_choice_labels(labels, len(choices[0]))
    examples = list(zip(contexts, choices, strict=True))
    batching = {"batch_size": batch_size, "seed": seed, "repeat": repeat}
    batching["sample_weight"] = sample_weight
    return _batches(examples, labels, tokenizer, sequence_length, **batching)


def _classes(
    columns: dict,
    labels,
    class_names,
    tokenizer,
    sequence_length: int,
    both_orders: bool = False,
    **batching,
) -> TaskBatches:
    """Returns batches of texts (one column) or of pairs (two columns), with one class each."""
    check_columns(**columns, labels=labels, sample_weight=batching["sample_weight"])
    texts = [read_text_column(name, column) for name, column in columns.items()]
    examples = texts[0] if len(texts) == 1 else list(zip(*texts, strict=True))
    labels, batching["class_names"] = read_labels(labels, class_names)
    return _batches(examples, labels, tokenizer, sequence_length, both_orders, **batching)


def _batches(
    examples: list, labels, tokenizer, sequence_length: int, both_orders: bool = False, **batching
) -> TaskBatches:
    """Returns the batches of checked examples and labels, with their weights checked here."""
    sample_weight = read_weights(batching.pop("sample_weight", None), labels)
    truncate = batching.pop("truncate", "end")
    sequences = sequences_of(examples, tokenizer, sequence_length, both_orders, truncate)
    return TaskBatches(
        sequences,
        labels,
        sequence_length=sequence_length,
        both_orders=both_orders,
        sample_weight=sample_weight,
        **batching,
    )
