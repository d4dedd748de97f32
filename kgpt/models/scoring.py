"""How likely texts are, and their hidden states. The public functions are `CausalLM`'s methods."""

import functools
import math
from collections.abc import Iterator
from typing import Any, Literal, overload

import numpy as np
from keras import ops

from kgpt.arguments import checked
from kgpt.generation import arguments
from kgpt.generation.compiled import cached, compile_function
from kgpt.kernels.cross_entropy import log_likelihoods
from kgpt.locks import locked

_SHORTEST = 16  # shorter rows are padded to it


@overload
def score(
    lm,
    texts: str | list[int],
    prompts=None,
    *,
    reduction: Literal["sum", "mean"] = "sum",
    batch_size: int = 32,
    stride: int | None = None,
) -> float: ...
@overload
def score(
    lm,
    texts: str | list[int],
    prompts=None,
    *,
    reduction: Literal["none"],
    batch_size: int = 32,
    stride: int | None = None,
) -> np.ndarray: ...
@overload
def score(
    lm,
    texts: list[str] | list[list[int]],
    prompts=None,
    *,
    reduction: Literal["sum", "mean"] = "sum",
    batch_size: int = 32,
    stride: int | None = None,
) -> np.ndarray: ...
@overload
def score(
    lm,
    texts: list[str] | list[list[int]],
    prompts=None,
    *,
    reduction: Literal["none"],
    batch_size: int = 32,
    stride: int | None = None,
) -> list[np.ndarray]: ...
@overload
def score(
    lm,
    texts: Any,
    prompts=None,
    *,
    reduction: str = "sum",
    batch_size: int = 32,
    stride: int | None = None,
) -> Any: ...
@checked
@locked
def score(
    lm,
    texts,
    prompts=None,
    *,
    reduction: str = "sum",
    batch_size: int = 32,
    stride: int | None = None,
):
    """Returns the log-likelihoods of texts, or of continuations after prompts, in nats.

    Without prompts the first token of a text has nothing before it and is not scored. A prompt is
    encoded by itself, as in `generate`; an empty one is the tokenizer's end-of-text token, after
    which each token of a text is scored. The end of a text is scored only if its token is one of
    the ids. The logits exist for some rows at a time. Each new shape compiles; lengths and numbers
    of rows are rounded up to powers of two, so that there are few. Threads may call it at once, as
    `generate`.

    Args:
        lm: a `CausalLM`.
        texts: str or token ids, one text or many, as the prompts of `generate`.
        prompts: optional, one prompt for each text, or one for all.
        reduction: `"sum"` or `"mean"` over a text's tokens, or `"none"`.
        batch_size: int. Most rows that are computed at once.
        stride: int in [1, max_sequence_length]. What is longer than the model's
            `max_sequence_length` is read in windows of that length, which move on by so many
            tokens: each token is scored once, after at least `max_sequence_length - stride` others
            where there are so many. None is half of the maximum; 1 is slowest and most exact.

    Returns:
        Array `(texts,)`; with `"none"` a list of arrays, a number for each token that is scored.
        One text alone gives its number, or its array.

    Raises:
        ValueError: for what is neither text nor token ids, text without a tokenizer, another number
            of prompts than of texts, and a mean over no tokens.

    Example:
        lm.score(["Hello world", "def main("])
        lm.score([" world", " main"], prompts="Hello")
    """
    token_scores, is_single = _token_scores(lm, texts, prompts, batch_size, stride)
    if reduction == "none":
        return token_scores[0] if is_single else token_scores
    empty = [i for i, scores in enumerate(token_scores) if not len(scores)]
    if reduction == "mean" and empty:
        raise ValueError(
            'reduction="mean" needs a token to score in each text. Received: none in the text at '
            f"index {empty[0]}. Without prompts a text's first token is not scored."
        )
    reduce = np.sum if reduction == "sum" else np.mean
    sums = np.array([reduce(scores, dtype="float64") for scores in token_scores])
    return float(sums[0]) if is_single else sums


@checked
@locked
def perplexity(
    lm, texts, prompts=None, *, batch_size: int = 32, stride: int | None = None
) -> float:
    """Returns the perplexity of texts: `exp` of the mean negative log-likelihood over all tokens.

    Args:
        lm: a `CausalLM`.
        texts: as for `score`, whose tokens count here alike, whatever text they stand in.
        prompts: as for `score`.
        batch_size: int. As for `score`.
        stride: int. As for `score`.

    Returns:
        float.

    Raises:
        ValueError: as for `score`, and for texts without a token to score.

    Example:
        lm.perplexity(["Hello world", "def main("])
    """
    token_scores, _ = _token_scores(lm, texts, prompts, batch_size, stride)
    scores = np.concatenate(token_scores)
    if not len(scores):
        raise ValueError(
            f"texts must have a token to score. Received: {texts!r:.80}. Without prompts a text's "
            "first token is not scored."
        )
    return math.exp(-scores.mean(dtype="float64"))


@checked
@locked
def embed(
    lm, texts, layer: int | None = None, pooling: str = "last", *, batch_size: int = 32
) -> np.ndarray:
    """Returns a vector for each text: the hidden state of its last token, or the mean over all.

    Args:
        lm: a `CausalLM`.
        texts: str or token ids, one text or many, as the prompts of `generate`.
        layer: int. Number of the block whose output is taken, as of `hidden_states` in
            transformers: 0 is the embedding, `num_layers` the final state, which None is too.
        pooling: `"last"` or `"mean"`.
        batch_size: int. Most rows that are computed at once.

    Returns:
        float32 array `(texts, hidden_dim)`; of one text alone `(hidden_dim,)`.

    Raises:
        ValueError: for what is neither text nor token ids, text without a tokenizer, a text without
            tokens or with more than `max_sequence_length`, and a layer that is not there.

    Example:
        lm.embed(["Hello world", "def main("], layer=1, pooling="mean")
    """
    backbone = lm.backbone
    if layer is not None and layer > backbone.num_layers:
        raise ValueError(
            f"layer must be an int in [0, {backbone.num_layers}]: 0 is the embedding, "
            f"{backbone.num_layers} the last block. Received: layer={layer}."
        )
    rows, is_single = _read("texts", texts, lm)
    _check_lengths(rows, backbone.max_sequence_length)
    function = cached(lm, "embed", lambda: _make_pooling(backbone))
    vectors = np.empty((len(rows), backbone.hidden_dim), "float32")
    for batch, token_ids in _batches(rows, batch_size, backbone.max_sequence_length):
        shares = np.zeros(token_ids.shape, "float32")
        for row, i in enumerate(batch):
            length = len(rows[i])
            used = slice(length) if pooling == "mean" else slice(length - 1, length)
            shares[row, used] = 1.0 if pooling == "last" else 1 / length
        found = ops.convert_to_numpy(function((), layer, token_ids, shares))
        vectors[batch] = found[: len(batch)]
    return vectors[0] if is_single else vectors


# === Texts -> rows ===


def _read(name: str, texts, lm) -> tuple[list[list[int]], bool]:
    """Returns the token ids of each text, and whether it was one text alone."""
    many, is_single = arguments.read_prompts(texts, name)
    return arguments.encode(many, lm.tokenizer, lm.backbone.vocabulary_size, name), is_single


def _read_after_prompts(lm, texts, prompts) -> tuple[list[list[int]], list[int], bool]:
    """Returns the tokens of each text after its prompt, how many are given, and if it is one."""
    rows, is_single = _read("texts", texts, lm)
    if prompts is None:
        return rows, [min(1, len(row)) for row in rows], is_single
    starts, is_for_all = _read("prompts", prompts, lm)
    starts = starts * len(rows) if is_for_all else starts
    if len(starts) != len(rows):
        raise ValueError(
            "There must be one prompt for each text, or one for all. "
            f"Received: {len(starts)} prompts for {len(rows)} texts."
        )
    starts = [start or [arguments.end_of_text(lm.tokenizer)] for start in starts]
    rows = [start + row for start, row in zip(starts, rows, strict=True)]
    return rows, [len(start) for start in starts], is_single


def _check_lengths(rows: list, max_sequence_length: int):
    for i, row in enumerate(rows):
        if not 1 <= len(row) <= max_sequence_length:
            raise ValueError(
                f"A text to embed must have from 1 to {max_sequence_length} tokens, the backbone's "
                f"max_sequence_length. Received: {len(row)} tokens at index {i}. Try its parts, or "
                f"tokenizer.encode(text)[-{max_sequence_length}:], which the model can read."
            )


def _batches(rows: list, batch_size: int, max_sequence_length: int) -> Iterator[tuple]:
    """Yields the numbers of rows of similar length, and their tokens padded at the right."""
    by_length = sorted(range(len(rows)), key=lambda i: len(rows[i]))
    for start in range(0, len(rows), batch_size):
        batch = by_length[start : start + batch_size]
        length = max(_SHORTEST, _power_of_two(len(rows[batch[-1]])))
        shape = min(batch_size, _power_of_two(len(batch))), min(max_sequence_length, length)
        token_ids = np.zeros(shape, "int32")
        for row, i in enumerate(batch):
            token_ids[row, : len(rows[i])] = rows[i]
        yield batch, token_ids


def _power_of_two(number: int) -> int:
    """Returns the power of two that is at least `number`."""
    return 1 << (number - 1).bit_length()


# === Windows over long texts ===


def _token_scores(lm, texts, prompts, batch_size: int, stride: int | None):
    """Returns the log-likelihoods of each text's tokens, and whether it was one text alone."""
    backbone = lm.backbone
    length = backbone.max_sequence_length
    if stride is not None and stride > length:
        raise ValueError(
            f"stride must be an int in [1, {length}], up to the backbone's max_sequence_length: "
            f"tokens in between would not be scored. Received: stride={stride}."
        )
    rows, given, is_single = _read_after_prompts(lm, texts, prompts)
    windows = [
        (i, *window)
        for i, row in enumerate(rows)
        for window in _windows(len(row) - 1, given[i] - 1, length, stride or max(1, length // 2))
    ]
    inputs = [rows[i][begin:end] for i, begin, _, end in windows]
    function = cached(lm, "score", lambda: _make_scoring(backbone))
    scores = [np.zeros(len(row) - n, "float32") for row, n in zip(rows, given, strict=True)]
    for batch, token_ids in _batches(inputs, batch_size, length):
        targets = np.zeros_like(token_ids)
        for row, number in enumerate(batch):
            i, begin, _, end = windows[number]
            targets[row, : end - begin] = rows[i][begin + 1 : end + 1]
        found = ops.convert_to_numpy(function((), None, token_ids, targets))
        for row, number in enumerate(batch):
            i, begin, first, end = windows[number]
            of_text = slice(first + 1 - given[i], end + 1 - given[i])
            scores[i][of_text] = found[row, first - begin : end - begin]
    return scores, is_single


def _windows(num_inputs: int, first: int, length: int, stride: int) -> Iterator[tuple]:
    """Yields `(begin, first, end)`: a window of inputs, of which those from `first` on are scored.

    Args:
        num_inputs: int. Number of tokens that predict a next one.
        first: int. The first of them whose prediction is scored.
        length: int. Number of inputs in a window.
        stride: int. By how many the next window's end comes later.
    """
    done, end = 0, min(length, num_inputs)
    while done < num_inputs:
        if first < end:
            yield max(0, end - length), max(done, first), end
        done, end = end, min(end + stride, num_inputs)


# === What runs on the device ===


def _make_scoring(backbone):
    def token_scores(_, token_ids, targets):
        h = backbone(token_ids, training=False)  # (batch, length, hidden_dim)
        rows = ops.reshape(h, (-1, h.shape[-1]))
        projection = functools.partial(backbone.token_embedding, reverse=True)
        found = log_likelihoods(rows, projection, ops.reshape(targets, (-1,)))
        return ops.reshape(found, token_ids.shape)

    return compile_function(token_scores, backbone)


def _make_pooling(backbone):
    def pooled(layer, token_ids, shares):
        if layer is None or layer == backbone.num_layers:
            h = backbone(token_ids, training=False)
        else:
            h = backbone.embedding(token_ids, training=False)
            for block in backbone.decoder_blocks[:layer]:
                h = block(h, training=False)
        h = ops.cast(h, "float32")  # (batch, length, hidden_dim)
        return ops.matmul(shares[:, None], h)[:, 0]

    return compile_function(pooled, backbone)
