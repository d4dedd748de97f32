"""What is given in place of texts: tables, refused by name, and the beginnings of values."""

import contextlib
from collections.abc import Mapping


def check_no_table(name: str, value) -> None:
    """Raises ValueError for a table, which Python would iterate by the names of its columns.

    A table is a dict of columns, a DataFrame, a Hugging Face `Dataset` or `DatasetDict`, a pyarrow
    table, or a structured array.

    Args:
        name: the argument's name, for the message.
        value: what was given in its place.

    Raises:
        ValueError: for a table, with the column to choose.
    """
    columns = _column_names(value)
    if columns is None:
        return
    table, path = value, ""
    if isinstance(value, Mapping) and columns:
        inner = _column_names(value[columns[0]])
        if inner is not None:  # splits, each of them a table
            table, path = value[columns[0]], f"[{columns[0]!r}]"
            columns = inner
    if columns and all(_is_str(table, column) for column in columns):
        hint = f"{name}=list(table{path}.values())"
    else:
        hint = f"{name}=table{path}[{_text_column(table, columns)!r}]"
    kind = f"{type(value).__module__.partition('.')[0]}.{type(value).__name__}"
    raise ValueError(
        f"{name} must be a list, an array or one column, and a table is none: its columns' names "
        "would be read. "
        f"Received: a {kind.removeprefix('builtins.')} with the columns {columns}. Try {hint}."
    )


def _column_names(value) -> list | None:
    """Returns the names of a table's columns, [] if they are unknown; None for other values."""
    if isinstance(value, Mapping):
        return list(value)
    names = getattr(getattr(value, "dtype", None), "names", None)  # numpy's structured arrays
    if names is not None and not isinstance(names, str):
        return list(names)
    for attribute in ("column_names", "columns"):
        if hasattr(type(value), attribute) or attribute in getattr(value, "__dict__", ()):
            names = getattr(value, attribute)
            if not callable(names):
                return [] if names is None else list(names)
    return None


def _text_column(table, columns: list):
    """Returns the column that most probably has the texts."""
    if "text" in columns or not columns:
        return "text"
    if hasattr(table, "__len__"):  # reading a stream would start a download
        for column in columns:
            with contextlib.suppress(Exception):
                if isinstance(next(iter(table[column])), str) and not _is_str(table, column):
                    return column
    return columns[0]


def _is_str(table, column) -> bool:
    return isinstance(table, Mapping) and isinstance(table[column], str)


def shorten(value, limit: int = 80) -> str:
    """Returns the beginning of a value's `repr`, for error messages."""
    text = repr(value[:limit] if isinstance(value, (str, bytes)) else value)
    return text if len(text) <= limit else text[:limit] + "..."
