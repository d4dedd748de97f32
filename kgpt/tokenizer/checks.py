"""The texts that a tokenizer encodes and the ids that it decodes, checked."""

from collections.abc import Iterable

import keras
import numpy as np

from kgpt.text import check_no_table, shorten


def check_texts(texts: Iterable[str]) -> list[str]:
    """Returns the texts as a list.

    Raises:
        ValueError: for a single text, a table, and for items that are not str.
    """
    check_no_table("texts", texts)
    if isinstance(texts, (str, bytes)) or not isinstance(texts, Iterable):
        raise ValueError(
            "texts must be a list of str. "
            f"Received: {shorten(texts)} of type {type(texts).__name__}. For one text, try encode."
        )
    texts = list(texts)
    for text in texts:
        if not isinstance(text, str):
            hint = ' Try text.decode("utf-8").' if isinstance(text, bytes) else ""
            hint = " For several texts, try encode_batch." if isinstance(text, list) else hint
            raise ValueError(
                "A text to encode must be a str. "
                f"Received: {shorten(text)} of type {type(text).__name__}.{hint}"
            )
    return texts


def check_unicode(texts: list[str]) -> None:
    """Raises ValueError if a text has half of a surrogate pair in it."""
    for text in texts:
        try:
            text.encode()
        except UnicodeEncodeError as error:
            raise ValueError(
                "A text to encode must be valid Unicode. "
                f"Received: {shorten(text)}, with half of a surrogate pair, "
                f"{text[error.start]!r}, at character {error.start}. Try "
                'text.encode(errors="replace").decode(), which puts a question mark in its place.'
            ) from error


def check_ids(ids, vocabulary_size: int) -> list[int]:
    """Returns the ids of a list, array or tensor as a list of int.

    Raises:
        ValueError: for other than one axis of integers, and for ids outside the vocabulary.
    """
    is_list = isinstance(ids, (list, tuple, np.ndarray))
    try:
        ids = np.asarray(ids) if is_list else keras.ops.convert_to_numpy(ids)
    except ValueError:  # rows of several lengths
        ids = np.asarray(ids, "object")
    if ids.size == 0 and ids.ndim == 1:
        return []
    if ids.ndim != 1 or not np.issubdtype(ids.dtype, np.integer):
        are_rows = ids.ndim > 1 or ids.dtype == object
        hint = " For several texts, try decode_batch." if are_rows else ""
        raise ValueError(
            "ids must be integers along one axis. "
            f"Received: shape={ids.shape}, dtype={ids.dtype}, {shorten(ids.tolist())}.{hint}"
        )
    outside = np.flatnonzero((ids < 0) | (ids >= vocabulary_size))
    if outside.size:
        raise ValueError(
            f"Each id must lie in [0, {vocabulary_size}), the vocabulary. "
            f"Received: {ids[outside[0]]} at position {outside[0]}."
        )
    return ids.tolist()
