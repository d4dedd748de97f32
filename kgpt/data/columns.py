"""Columns of texts, labels and targets, checked and converted.

A column is a list, a numpy array, a pandas column or a column of a Hugging Face dataset.
"""

import numbers
from collections.abc import Iterable, Mapping, Sequence, Set

import numpy as np

from kgpt.data.multi_labels import are_rows, read_label_rows
from kgpt.text import check_no_table


def check_columns(**columns):
    """Raises ValueError unless the columns have items, and the same number of them.

    `labels`, `targets` and `sample_weight` may be None.
    """
    lengths = {
        name: _length(name, column)
        for name, column in columns.items()
        if not (column is None and name in ("labels", "targets", "sample_weight"))
    }
    if len(set(lengths.values())) > 1:
        received = ", ".join(f"{length} {name}" for name, length in lengths.items())
        raise ValueError(f"All columns must have the same length. Received: {received}.")
    if 0 in lengths.values():
        raise ValueError(
            f"The columns must have at least one example. Received: no {next(iter(lengths))}."
        )


def check_order(name: str, column):
    """Raises ValueError for tables, mappings and sets, which are no columns."""
    check_no_table(name, column)
    if isinstance(column, set | frozenset):
        raise ValueError(
            f"{name} must be in the order of what belongs to it, and a set has none. "
            f"Received: a {type(column).__name__}, {column!r:.60}. Try a list."
        )


def _length(name: str, column) -> int:
    check_order(name, column)
    if isinstance(column, str) or not hasattr(column, "__len__"):
        raise ValueError(
            f"{name} must be a list, an array or one column, with an item for each example. "
            f"Received: {str(column)[:50]!r}, a {type(column).__name__}."
        )
    if np.ma.is_masked(column):
        raise ValueError(
            f"{name} must not have masked values. Received: a masked one at index "
            f"{int(np.argmax(np.ma.getmaskarray(column)))}. Remove these examples."
        )
    return len(column)


# === Texts ===


def read_text_column(name: str, texts) -> list[str]:
    """Returns a column of texts as a list.

    Raises:
        ValueError: for a single text, and for items that are not str.
    """
    if isinstance(texts, str) or not isinstance(texts, Iterable):
        raise ValueError(f"{name} must be a list of texts. Received: {texts!r:.50}.")
    check_order(name, texts)
    texts = list(texts)
    for i, text in enumerate(texts):
        if not isinstance(text, str):
            raise ValueError(
                f"{name} must be texts, of type str. Received: {text!r} at index {i}. "
                "Remove examples without a text, or use an empty text."
            )
    return texts


def read_texts_or_pairs(texts) -> list:
    """Returns texts as a list of str, or pairs of texts as a list of tuples.

    Raises:
        ValueError: for other items, and for a mixture of texts and pairs.
    """
    if isinstance(texts, str) or len(texts) == 0 or isinstance(next(iter(texts)), str):
        return read_text_column("texts", texts)
    pairs = []
    for i, pair in enumerate(texts):
        if isinstance(pair, str) or not isinstance(pair, Sequence | np.ndarray) or len(pair) != 2:
            raise ValueError(
                "texts must be either all texts or all pairs (first, second) of texts. "
                f"Received: {pair!r} at index {i}."
            )
        pairs.append(tuple(read_text_column(f"texts[{i}]", pair)))
    return pairs


def read_choices(choices) -> list[list[str]]:
    """Returns the choices of each example as lists of str.

    Raises:
        ValueError: unless all examples have the same number of choices, at least 2.
    """
    choices = list(choices)
    if isinstance(choices[0], Mapping) and "text" in choices[0]:  # as in ARC and CommonsenseQA
        raise ValueError(
            "The choices of an example must be a list of texts. Received: a dict with the keys "
            f"{list(choices[0])}. Try choices=[choice['text'] for choice in choices]."
        )
    choices = [read_text_column(f"choices[{i}]", of_one) for i, of_one in enumerate(choices)]
    num_choices = len(choices[0])
    for i, of_one in enumerate(choices):
        if len(of_one) != num_choices or num_choices < 2:
            raise ValueError(
                "All examples must have the same number of choices, at least 2. "
                f"Received: {num_choices} for the first example and {len(of_one)} for example {i}. "
                "Try separate data for each number of choices."
            )
    return choices


# === Labels and targets ===


def without_tensors(column):
    """Returns a column with the tensors of any backend as numpy's, or the column itself."""
    if _is_tensor(column):
        return _as_numpy(column)
    is_column = hasattr(column, "__len__") and hasattr(column, "__iter__")
    if is_column and _is_tensor(next(iter(column), None)):
        return [_as_numpy(item) for item in column]
    return column


def _is_tensor(value) -> bool:
    package = type(value).__module__.partition(".")[0]
    return package in ("torch", "jaxlib", "jax", "tensorflow") and hasattr(value, "__array__")


def _as_numpy(value):
    if hasattr(value, "detach"):  # a tensor of PyTorch may be on a GPU, or have a gradient
        value = value.detach().cpu()
    return np.asarray(value)[()] if _is_tensor(value) else value


def read_labels(labels, class_names=None) -> tuple[np.ndarray | None, list[str] | None]:
    """Returns labels as int32 `(examples,)`, and the names of the classes.

    Where each example has a row of labels, these are uint8 `(examples, classes)`, 0 or 1.

    Raises:
        ValueError: for missing labels, labels that are neither ints nor names, and labels outside
            the classes.
    """
    class_names = None if class_names is None else read_class_names(class_names)
    if labels is None:
        return None, class_names
    labels = without_tensors(labels)
    if are_rows(labels):
        return read_label_rows(labels, class_names)
    labels = list(labels)
    _check_label_types(labels)
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
    array = np.array(labels)
    upper = 2**31 if class_names is None else len(class_names)
    wrong = (array < 0) | (array >= upper)
    if wrong.any():
        i = int(np.argmax(wrong))
        is_bounded = class_names is not None or labels[i] >= 0
        expected = f"at least 0 and less than {upper:,}" if is_bounded else "at least 0"
        raise ValueError(f"labels must be {expected}. Received: {labels[i]} at index {i}.")
    return array.astype("int32"), class_names


def read_class_names(class_names) -> list[str]:
    """Returns the names of the classes as a list of str.

    Raises:
        ValueError: for a single name, for names without an order, and for equal names.
    """
    if isinstance(class_names, str | Mapping | Set) or not isinstance(class_names, Iterable):
        hint = " Try list(class_names.values())." if isinstance(class_names, Mapping) else ""
        raise ValueError(
            "class_names must be a list of names, those of the classes 0, 1, ... "
            f"Received: class_names={class_names!r}.{hint}"
        )
    class_names = list(class_names)
    if not all(isinstance(name, str | numbers.Integral) for name in class_names):
        raise ValueError(f"A class's name must be a str. Received: class_names={class_names!r}.")
    numbers_given = not all(isinstance(name, str) for name in class_names)
    if numbers_given and class_names != list(range(len(class_names))):
        raise ValueError(
            "Numbers as class_names must be those of the classes, 0, 1, ..., in their order: ints "
            "as labels are not looked up among the names. Received: "
            f"class_names={class_names!r:.100}. For names, try class_names="
            f"{list(map(str, class_names))!r:.100} and labels of type str."
        )
    class_names = [str(name) for name in class_names]
    if len(set(class_names)) < len(class_names):
        raise ValueError(f"class_names must differ. Received: class_names={class_names}.")
    return class_names


def _check_label_types(labels: list):
    for i, label in enumerate(labels):
        if _is_missing(label):
            raise ValueError(
                f"Each example needs a label. Received: {label!r} at index {i}. Remove "
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


def _is_missing(value) -> bool:
    # pandas has three kinds of missing values: each is NA, or differs from itself.
    return value is None or type(value).__name__ == "NAType" or np.all(value != value)


def read_choice_labels(labels, num_choices: int) -> np.ndarray | None:
    """Returns the numbers of the right choices as int32 `(examples,)`.

    Raises:
        ValueError: for missing labels, names, and labels outside the choices.
    """
    labels = without_tensors(labels)
    if are_rows(labels):
        raise ValueError(
            "labels must be the number of the one right choice of each example, from 0. Received: "
            f"a row for each, {next(iter(labels))!r:.60}. If they are one-hot, try "
            "np.argmax(labels, axis=-1)."
        )
    for i, label in enumerate([] if labels is None else labels):
        if isinstance(label, str):
            raise ValueError(
                "labels must be the numbers of the right choices, from 0. "
                f"Received: the str {str(label)!r} at index {i}. Names such as A, B and C become "
                'numbers by ["A", "B", "C"].index(label).'
            )
    labels, _ = read_labels(labels)
    if labels is not None and labels.max() >= num_choices:
        i = int(np.argmax(labels >= num_choices))
        raise ValueError(
            "labels must be the numbers of the right choices, from 0. "
            f"Received: {labels[i]} for example {i}, which has {num_choices} choices."
        )
    return labels


def read_targets(targets) -> np.ndarray | None:
    """Returns targets as float32 `(examples, outputs)`.

    Raises:
        ValueError: for rows of unequal length, and for targets that are not finite.
    """
    if targets is None:
        return None
    try:
        array = np.array([np.asarray(row, "float64") for row in targets], "float64")
    except (TypeError, ValueError) as error:
        raise ValueError(
            "targets must be numbers, or rows of numbers of the same length. "
            f"Received: {list(targets)[:3]!r} ... ({error})."
        ) from error
    array = array.reshape(len(array), -1)
    wrong = ~(np.abs(array) <= np.finfo("float32").max).all(axis=1)
    if wrong.any():
        i = int(np.argmax(wrong))
        raise ValueError(
            f"targets must be finite float32 numbers. Received: {array[i].tolist()} at index {i}. "
            "Remove examples without a target."
        )
    return array.astype("float32")


# === Weights ===


def read_weights(sample_weight, labels) -> np.ndarray | None:
    """Returns the weights of the examples as float32 `(examples,)`.

    Raises:
        ValueError: for weights that are not finite numbers of at least 0, for weights that are all
            0, and for weights without labels.
    """
    if sample_weight is None:
        return None
    if labels is None:
        raise ValueError(
            "sample_weight weighs the loss of labels. Received: a sample_weight, but no labels or "
            "targets. Try sample_weight=None for texts to predict."
        )
    try:
        if any(isinstance(weight, str | bytes) for weight in sample_weight):
            raise TypeError("a weight is a str")
        weights = np.array([np.asarray(weight, "float64") for weight in sample_weight], "float64")
    except (TypeError, ValueError) as error:
        raise ValueError(
            "sample_weight must be one number for each example. "
            f"Received: {list(sample_weight)[:3]!r} ... ({error})."
        ) from error
    if weights.ndim != 1:
        raise ValueError(
            f"sample_weight must be one number for each example. Received: shape {weights.shape}."
        )
    wrong = ~((weights >= 0) & (weights <= np.finfo("float32").max))
    if wrong.any():
        i = int(np.argmax(wrong))
        raise ValueError(
            "sample_weight must be finite float32 numbers of at least 0. "
            f"Received: {weights[i]} at index {i}."
        )
    if not weights.any():
        raise ValueError("sample_weight must not be 0 for all examples. Received: only 0.")
    return weights.astype("float32")
