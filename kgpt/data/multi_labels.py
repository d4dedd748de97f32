"""Labels of texts that may be of several classes, or of none: rows of 0 and 1."""

import numbers

import numpy as np

_ROWS = (list, tuple, set, frozenset, np.ndarray)


def are_rows(labels) -> bool:
    """Returns whether a column of labels has a row for each text, and not one class."""
    if getattr(labels, "ndim", 1) > 1:
        return True
    if labels is None or getattr(labels, "dtype", None) not in (None, np.dtype(object)):
        return False
    return isinstance(next(iter(labels), None), _ROWS)


def names_in(labels) -> set[str]:
    """Returns the names in labels, each of them a name or a row of names; no numbers."""
    if getattr(getattr(labels, "dtype", None), "kind", "O") in "biuf":
        return set()
    items = labels
    if are_rows(labels):
        items = (item for row in labels if isinstance(row, _ROWS) for item in row)
    return {str(item) for item in items if isinstance(item, str)}


def read_label_rows(labels, class_names=None) -> tuple[np.ndarray, list[str] | None]:
    """Returns labels as uint8 `(examples, classes)`, 1 for the classes of each, and their names.

    Args:
        labels: an array of two axes, or rows of bools or floats: 1 for each class that is right;
            or a list for each text: the names of its classes, or their numbers.
        class_names: optional list of str.

    Raises:
        ValueError: for another number of columns than of names, for values beyond 0 and 1, for
            names and numbers that are no classes, and for numbers without `class_names`.
    """
    if getattr(labels, "ndim", 1) > 1:
        return _read_multi_hot(np.asarray(labels), class_names), class_names
    rows = []
    for i, row in enumerate(labels):
        if not isinstance(row, _ROWS):
            raise ValueError(
                "labels must be a list of classes for each text, [] for none, or one class for "
                f"each. Received: a list at index 0 and {row!r:.60} at index {i}."
            )
        rows.append(list(row))
    kinds = {_kind_of(item) for row in rows for item in row}
    if len(kinds) > 1 or None in kinds:
        raise ValueError(
            "Lists of labels must have names of classes, numbers of classes, or 0.0 and 1.0. "
            f"Received: {rows[:3]!r:.100}."
        )
    if kinds == {"share"}:
        if len(set(map(len, rows))) > 1:
            raise ValueError(
                "Rows of 0.0 and 1.0 must have the same length, a number for each class. "
                f"Received: rows of {min(map(len, rows))} to {max(map(len, rows))}."
            )
        return _read_multi_hot(np.array(rows), class_names), class_names
    if kinds == {"name"} and class_names is None:
        class_names = sorted(names_in(rows))
    return _multi_hot(rows, class_names), class_names


def _kind_of(item) -> str | None:
    if isinstance(item, str):
        return "name"
    if isinstance(item, numbers.Integral) and not isinstance(item, bool):
        return "number"
    return "share" if isinstance(item, numbers.Real | np.bool_) else None


def _read_multi_hot(array, class_names) -> np.ndarray:
    columns = None if class_names is None else len(class_names)
    if array.ndim != 2 or array.shape[1] < 2 or columns not in (None, array.shape[1]):
        raise ValueError(
            f"Rows of labels must have shape (examples, {columns or 'classes'}), a column for each "
            f"class. Received: shape {array.shape}."
        )
    wrong = ~np.isin(array, (0, 1))
    if wrong.any():
        raise ValueError(
            "Rows of labels must be 0 or 1 for each class. "
            f"Received: {array[wrong].flat[0]!r} at index {int(wrong.any(axis=1).argmax())}."
        )
    return array.astype("uint8")


def _multi_hot(rows: list[list], class_names) -> np.ndarray:
    if class_names is None:
        raise ValueError(
            "Lists of numbers do not say how many classes there are. Received: "
            f"{rows[:3]!r:.100} without class_names. Try class_names=range(5) for five classes, "
            "or, if they are rows of 0 and 1 for all classes, np.array(labels)."
        )
    numbers_of = {number: number for number in range(len(class_names))}
    numbers_of |= {name: number for number, name in enumerate(class_names)}
    multi_hot = np.zeros((len(rows), len(class_names)), "uint8")
    for i, row in enumerate(rows):
        if len(set(row)) < len(row):
            raise ValueError(
                f"A list of labels must name each class once. Received: {row!r:.60} at index {i}. "
                "For rows of 0 and 1, one for each class, try np.array(labels)."
            )
        for label in row:
            if label not in numbers_of:
                raise ValueError(
                    f"Each label must be one of the {len(class_names)} classes. "
                    f"Received: {label!r} at index {i}, class_names={class_names!r:.100}."
                )
            multi_hot[i, numbers_of[label]] = 1
    if len(class_names) == 2 and len(rows) and all(sorted(row) == [0, 1] for row in rows):
        raise ValueError(
            "Lists of ints are numbers of classes, and these would give each text both. "
            f"Received: {rows[:3]!r:.100}. For rows of 0 and 1, try np.array(labels)."
        )
    return multi_hot
