"""What changes the logits before a token is chosen: one function for each option of `generate`.

Their order and meaning are those of transformers (`generation/logits_process.py`, 5.x).
"""

import math
from typing import NamedTuple

import numpy as np
from keras import ops


class Filters(NamedTuple):
    """The options that are set; None leaves the logits as they are."""

    repetition_penalty: float | None = None
    no_repeat_ngram_size: int | None = None
    temperature: float | None = None
    top_k: int | None = None
    top_p: float | None = None
    min_p: float | None = None


NO_FILTERS = Filters()

# What may be any number: it is given to compiled functions, where ints are compiled in.
_NUMBERS = ("repetition_penalty", "temperature", "top_p", "min_p")


def without_numbers(filters):
    """Returns filters with True for each number that acts, and these numbers in an array, or ()."""
    if filters.top_p == 1:  # these two would keep all tokens, but for rounding
        filters = filters._replace(top_p=None)
    if filters.min_p == 0:
        filters = filters._replace(min_p=None)
    names = [name for name in _NUMBERS if getattr(filters, name) is not None]
    numbers = np.array([getattr(filters, name) for name in names], "float32")
    return filters._replace(**dict.fromkeys(names, True)), numbers if names else ()


def with_numbers(filters, numbers):
    """Returns filters with the numbers that `without_numbers` took out, as scalars."""
    names = [name for name in _NUMBERS if getattr(filters, name) is not None]
    return filters._replace(**{name: numbers[i] for i, name in enumerate(names)})


def filtered(filters, logits, tokens, lengths):
    """Returns the logits after all filters that are set.

    Args:
        filters: `Filters`, whose numbers may be tensors.
        logits: float tensor `(rows, vocabulary)`.
        tokens: int tensor `(rows, positions)`: the text so far, from position 0 on.
        lengths: int tensor `(rows,)`: how many tokens the text has.

    Returns:
        float32 tensor `(rows, vocabulary)`; -inf for tokens that can't be chosen, but not for all.
    """
    logits = ops.cast(logits, "float32")
    if filters.repetition_penalty is not None:
        logits = penalize_repetition(logits, tokens, lengths, filters.repetition_penalty)
    if filters.no_repeat_ngram_size is not None:
        logits = ban_ngrams(logits, tokens, lengths, filters.no_repeat_ngram_size)
    if filters.temperature is not None:
        # The difference to the largest, since a quotient alone may be infinite.
        logits = (logits - ops.max(logits, axis=-1, keepdims=True)) / filters.temperature
    if filters.top_k is not None:
        logits = keep_top_k(logits, filters.top_k)
    if filters.top_p is not None:
        logits = keep_top_p(logits, filters.top_p)
    if filters.min_p is not None:
        logits = keep_min_p(logits, filters.min_p)
    return logits


def penalize_repetition(logits, tokens, lengths, penalty):
    """Makes tokens of the text less likely (Keskar et al. 2019, section 4.1).

    As in transformers, a logit below zero is multiplied by the penalty, others are divided by it.
    """
    is_text = ops.arange(tokens.shape[1], dtype="int32") < lengths[:, None]
    is_seen = _members(tokens, is_text, logits.shape[-1])  # (rows, vocabulary)
    penalized = ops.where(logits < 0, logits * penalty, logits / penalty)
    return ops.where(is_seen, penalized, logits)


def ban_ngrams(logits, tokens, lengths, size):
    """Bans tokens that would end an n-gram which the text has already (Paulus et al. 2017, 2.5).

    A row in which this would ban all that is left keeps its logits.
    """
    starts = tokens.shape[1] - size + 1
    if starts < 1:
        return logits
    # An n-gram counts if it is whole, and if it begins as the text's last size - 1 tokens do.
    counts = ops.arange(size - 1, tokens.shape[1], dtype="int32") < lengths[:, None]
    for i in range(size - 1):
        last = ops.maximum(lengths - size + 1 + i, 0)[:, None]
        last = ops.take_along_axis(tokens, last, axis=1)  # (rows, 1)
        counts = ops.logical_and(counts, tokens[:, i : i + starts] == last)  # (rows, starts)
    banned = _members(tokens[:, size - 1 :], counts, logits.shape[-1])
    rest = _minus_infinity(logits, banned)
    is_left = ops.any(rest > -math.inf, axis=-1, keepdims=True)
    return ops.where(is_left, rest, logits)


def ban_stops(logits, stops, is_early):
    """Bans the stop tokens `(stops,)` where `is_early`, a bool scalar."""
    vocabulary = ops.arange(logits.shape[-1], dtype="int32")
    is_stop = ops.any(vocabulary[:, None] == stops, axis=-1)  # (vocabulary,)
    return _minus_infinity(logits, ops.logical_and(is_stop, is_early))


def keep_top_k(logits, k):
    """Keeps the `k` largest logits, and those equal to the last (Fan et al. 2018, 5.1.2)."""
    return _minus_infinity(logits, logits < ops.top_k(logits, min(k, logits.shape[-1]))[0][:, -1:])


def keep_top_p(logits, p):
    """Keeps the likeliest tokens that have probability `p` together (Holtzman et al. 2020)."""
    falling = ops.top_k(logits, logits.shape[-1])[0]  # (rows, vocabulary)
    probabilities = ops.softmax(falling)
    before = ops.cumsum(probabilities, axis=-1) - probabilities
    least = ops.min(ops.where(before < p, falling, math.inf), axis=-1, keepdims=True)
    return _minus_infinity(logits, logits < least)


def keep_min_p(logits, p):
    """Keeps tokens at least `p` times as likely as the likeliest (Nguyen et al. 2024)."""
    least = ops.max(logits, axis=-1, keepdims=True) + ops.log(p)
    return _minus_infinity(logits, logits < least)


def _members(tokens, counts, vocabulary):
    """Returns which ids of the vocabulary are among the tokens that count, `(rows, vocabulary)`."""
    counts = ops.logical_and(counts, ops.logical_and(tokens >= 0, tokens < vocabulary))
    columns = ops.where(counts, tokens, vocabulary)  # one more for those that do not count
    rows = ops.broadcast_to(ops.arange(tokens.shape[0], dtype="int32")[:, None], columns.shape)
    indices = ops.reshape(ops.stack([rows, columns], axis=-1), (-1, 2))
    none = ops.zeros((tokens.shape[0], vocabulary + 1), "bool")
    members = ops.scatter_update(none, indices, ops.ones((indices.shape[0],), "bool"))
    return members[:, :vocabulary]


def _minus_infinity(logits, is_out):
    return ops.where(is_out, ops.cast(-math.inf, logits.dtype), logits)
