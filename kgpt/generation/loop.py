"""`generate`: from prompts to text, window by window."""

import itertools
from collections.abc import Iterator, Sequence
from typing import Any, Literal, NamedTuple, Unpack, overload

import numpy as np
from keras import ops

from kgpt.arguments import checked
from kgpt.distribution import num_own_shards
from kgpt.generation import arguments
from kgpt.generation.arguments import GenerateOptions, Many, One, Prompts, is_stepwise
from kgpt.generation.compiled import Functions, Options, functions_for
from kgpt.generation.filters import without_numbers
from kgpt.generation.layout import in_sight, lay_out, sizes
from kgpt.generation.texts import has_stop, new_text, stream_text
from kgpt.locks import locked


class Run(NamedTuple):
    """What stays the same in one call of `generate`."""

    functions: Functions
    states: list  # the sampler's random states
    tokenizer: object
    limits: arguments.Limits
    numbers: object  # of the filters, as of `without_numbers`
    looks_ahead: bool  # whether the sampler settles many tokens at once


@overload
def generate(
    model,
    prompts: Prompts,
    max_new_tokens: int = 100,
    sampler: object = "auto",
    *,
    stream: Literal[False] = False,
    num_return_sequences: None = None,
    return_log_probabilities: Literal[False] = False,
    **options: Unpack[GenerateOptions],
) -> Prompts: ...
@overload
def generate(
    model,
    prompts: str,
    max_new_tokens: int = 100,
    sampler: object = "auto",
    *,
    stream: Literal[True],
    **options: Unpack[GenerateOptions],
) -> Iterator[str]: ...
@overload
def generate(
    model,
    prompts: list[int],
    max_new_tokens: int = 100,
    sampler: object = "auto",
    *,
    stream: Literal[True],
    **options: Unpack[GenerateOptions],
) -> Iterator[int]: ...
@overload
def generate(
    model,
    prompts: Prompts,
    max_new_tokens: int = 100,
    sampler: object = "auto",
    *,
    num_return_sequences: int,
    **options: Unpack[GenerateOptions],
) -> list[Prompts]: ...
@overload
def generate(
    model,
    prompts: One,
    max_new_tokens: int = 100,
    sampler: object = "auto",
    *,
    return_log_probabilities: Literal[True],
    **options: Unpack[GenerateOptions],
) -> tuple[One, list[float]]: ...
@overload
def generate(
    model,
    prompts: Many,
    max_new_tokens: int = 100,
    sampler: object = "auto",
    *,
    return_log_probabilities: Literal[True],
    **options: Unpack[GenerateOptions],
) -> tuple[Many, list[list[float]]]: ...
@overload
def generate(
    model,
    prompts,
    max_new_tokens: int = 100,
    sampler: object = "auto",
    stop_token_ids: object = "auto",
    seed: int | None = None,
    return_prompt: bool = True,
    stream: bool = False,
    sliding_window: bool = False,
    *,
    temperature: float | None = None,
    top_k: int | None = None,
    top_p: float | None = None,
    min_p: float | None = None,
    repetition_penalty: float | None = None,
    no_repeat_ngram_size: int | None = None,
    stop: str | Sequence[str] | None = None,
    min_new_tokens: int = 0,
    num_return_sequences: int | None = None,
    return_log_probabilities: bool = False,
) -> Any: ...
@checked
@locked
def generate(
    model,
    prompts,
    max_new_tokens: int = 100,
    sampler: object = "auto",
    stop_token_ids: object = "auto",
    seed: int | None = None,
    return_prompt: bool = True,
    stream: bool = False,
    sliding_window: bool = False,
    *,
    temperature: float | None = None,
    top_k: int | None = None,
    top_p: float | None = None,
    min_p: float | None = None,
    repetition_penalty: float | None = None,
    no_repeat_ngram_size: int | None = None,
    stop: str | Sequence[str] | None = None,
    min_new_tokens: int = 0,
    num_return_sequences: int | None = None,
    return_log_probabilities: bool = False,
):
    """Continues prompts, with keys and values cached.

    The first call for a new sampler, option, batch size or range of lengths compiles; later calls
    reuse the compiled functions, with the model's current weights, for other numbers of the options
    too (but not for other ints). Lengths are rounded up to powers of two for this, which costs
    memory but no steps. Rows of a batch do not influence each other. Threads may call it at once: a
    call waits until the one before it is done, a stream for each token alone. During a `fit` in
    another thread it raises RuntimeError.

    A token is chosen from the model's probabilities as the options change them, in the order of
    transformers: `repetition_penalty`, `no_repeat_ngram_size`, `temperature`, `top_k`, `top_p`,
    `min_p`. The options are for samplers that settle a token at a time, not for beam and
    contrastive search.

    Args:
        model: a `CausalLM`, or an object with the attributes `backbone` and `tokenizer`.
        prompts: text or token ids, one prompt or many of any lengths: str, list of str, list or
            array of int, list of those, or array `(batch, length)`. An empty prompt starts from the
            tokenizer's end-of-text token, which is not part of the result.
        max_new_tokens: int. Number of tokens after which a continuation ends.
        sampler: `"random"` samples from the whole distribution, `"top_k"` from its 5 likeliest
            tokens, `"top_p"` from the likeliest that have probability 0.9 together; beside these
            names, `temperature`, `top_k`, `top_p` and `min_p` act as they do alone, in place of the
            5 and the 0.9. `"greedy"` takes the likeliest token; `"beam"` and `"contrastive"` are
            keras-hub's. "auto" is `"random"` if one of the four is given, else `"top_k"`. For other
            settings, an object such as `keras_hub.samplers.BeamSampler(num_beams=3)`; a `k` above
            the vocabulary's size is all of it.
        stop_token_ids: int or several: tokens that end a continuation. The result is cut before
            them. "auto" is the tokenizer's end-of-text token, if it has one; None is no token.
        seed: int in [0, 2**31). The same seed gives the same continuation on the same backend.
            Without it calls differ; calls with one sampler object continue its random numbers.
            On several devices, which fill a batch with rows that count nothing, it may be another.
        return_prompt: bool. Whether the result begins with the prompt.
        stream: bool. Whether to return an iterator over the result for one prompt while it is
            generated: pieces of text that end with a whole character, or token ids one by one.
            Joined, they are what is returned otherwise. Not for samplers that look ahead (beam and
            contrastive).
        sliding_window: bool. Whether to continue beyond the backbone's `max_sequence_length`: of
            a row that reaches it, as a prompt alone may, the model then sees the last half, with
            positions from 0.
        temperature: float. The logits are divided by it: below 1 sharpens the distribution, above
            1 flattens it.
        top_k: int. Only so many of the likeliest tokens can be chosen.
        top_p: float in (0, 1]. Only the likeliest tokens that have this probability together.
        min_p: float in [0, 1]. Only tokens at least so many times as likely as the likeliest.
        repetition_penalty: float. Above 1, tokens of the text so far, prompt included, are less
            likely: a logit is divided by it, one below zero multiplied. Of a text longer than the
            window, what the model sees counts, here and for n-grams.
        no_repeat_ngram_size: int. No sequence of so many tokens comes twice, prompt included. Where
            this leaves no token at all, any may come.
        stop: str or several: strings that end a continuation of text. The result is cut before the
            one that is complete first. They are looked for in the new text alone.
        min_new_tokens: int. Number of tokens before which no stop token is chosen and no stop
            string begins.
        num_return_sequences: int. Number of samples for each prompt, in a list in place of each
            result. They differ, so more than one is refused with `"greedy"`.
        return_log_probabilities: bool. Whether to return the log-probability of each new token too,
            by the model's own distribution, before all options. With `stop`, tokens count that have
            a part in the result. Not with `stream`.

    Returns:
        The kind of the prompt: str for text, list of int for a list of ids, numpy array for an
        array; a list of these for many prompts. With `stream`, an iterator. With
        `return_log_probabilities`, a pair of this and a list of float for each of them.

    Raises:
        TypeError: for an argument that `generate` lacks.
        ValueError: if the model can't read a prompt, for text without a tokenizer, for arguments
            and settings of a sampler out of range or without effect, and for lengths beyond
            `max_sequence_length` without `sliding_window`.

    Example:
        lm.generate("def main(", max_new_tokens=50, temperature=0.8, top_p=0.95, seed=0)
        for piece in lm.generate("def main(", stream=True, stop="."):
            print(piece, end="", flush=True)
    """
    given = sampler
    sampler, filters = arguments.read_options(**locals())  # all arguments by name
    ends = min_new_tokens, stop_token_ids, stop, sliding_window
    many, is_single, starts, limits = arguments.read_call(model, prompts, max_new_tokens, *ends)
    if stream:
        wanted = num_return_sequences, return_log_probabilities
        arguments.check_stream(many, is_single, sampler, *wanted)
    states = arguments.random_states(seed, given, sampler)
    filters, numbers = without_numbers(filters)
    options = Options(filters, min_new_tokens > 0, return_log_probabilities)
    functions, looks_ahead = functions_for(model, sampler, options), not is_stepwise(sampler)
    run = Run(functions, states, model.tokenizer, limits, numbers, looks_ahead)
    if stream:
        return _streamed(run, many[0], starts[0], return_prompt)
    copies = num_return_sequences or 1
    many, starts = ([x for x in xs for _ in range(copies)] for xs in (many, starts))
    found = [
        _result(run, prompt, start, new, scores, return_prompt)
        for prompt, start, (new, scores) in zip(many, starts, _continue(run, starts), strict=True)
    ]
    return _arranged(found, is_single, num_return_sequences, return_log_probabilities)


def _result(run, prompt, start, new, scores, return_prompt):
    """Returns a continuation as the kind that its prompt is, and its tokens' log-probabilities."""
    if isinstance(prompt, str):
        stops = run.limits.stop, run.limits.min_new_tokens
        text, count = new_text(run.tokenizer, start, new, *stops)
        return prompt * return_prompt + text, scores[:count]
    ids = (start if return_prompt and len(prompt) else []) + new
    return np.array(ids, "int32") if isinstance(prompt, np.ndarray) else ids, scores


def _arranged(found, is_single, num_return_sequences, has_scores):
    """Returns the results, and their log-probabilities if asked for, as the prompts stand."""

    def arranged(values):
        if num_return_sequences is not None:
            each = num_return_sequences
            values = [values[i : i + each] for i in range(0, len(values), each)]
        return values[0] if is_single else values

    results, scores = (arranged(list(values)) for values in zip(*found, strict=True))
    return (results, scores) if has_scores else results


def _streamed(run, prompt, start, return_prompt):
    """Returns an iterator over the result for one prompt."""
    new = _stream(run, start)
    if isinstance(prompt, str):
        stops = run.limits.stop, run.limits.min_new_tokens
        new = stream_text(run.tokenizer, start, new, *stops)
        return itertools.chain([prompt], new) if return_prompt else new
    return itertools.chain(start, new) if return_prompt and len(prompt) else new


def _stream(run, start):
    """Yields the new tokens of one row, without the stop token."""
    for (token,), _ in _steps(run, [start]):
        if token in run.limits.stop_token_ids:
            return
        yield token


# === Over the windows ===


def _continue(run, starts):
    """Returns for each row the new tokens, without the stop token, and their log-probabilities.

    On several devices, rows that are finished fill the batch, so that each has as many.
    """
    write = _by_steps if run.limits.stop else _by_windows
    found = [None] * len(starts)
    for rows in _batches(run, starts):
        contexts = [starts[row] for row in rows]
        contexts += [[0]] * (-len(rows) % num_own_shards())
        results = write(run, contexts, np.arange(len(contexts)) >= len(rows))
        for row, result in zip(rows, results, strict=False):
            found[row] = result
    return found


def _batches(run, starts):
    """Returns which rows are written together: all, unless the end of a window decides.

    Where a window ends, a search settles on its best sequence: beyond one, rows that reach the end
    at different tokens are searched apart, so that no row depends on another.
    """
    lengths = [len(in_sight(start, run.limits.window)) for start in starts]
    if not run.looks_ahead or max(lengths) + run.limits.max_new_tokens <= run.limits.window:
        return [range(len(starts))]
    return [[row for row, one in enumerate(lengths) if one == n] for n in sorted(set(lengths))]


def _by_windows(run, contexts, finished):
    """Writes all that fits in the window at once."""
    limits = run.limits
    found = [([], []) for _ in contexts]
    stops, written = np.array(limits.stop_token_ids, "int32"), 0
    while written < limits.max_new_tokens and not finished.all():
        contexts = [in_sight(context, limits.window) for context in contexts]
        left = limits.max_new_tokens - written
        count, prompt_slots, new_slots = sizes(contexts, left, limits.window)
        laid_out = lay_out(contexts, prompt_slots)
        early = max(0, limits.min_new_tokens - written)
        outputs = run.functions.complete(
            run.states, new_slots, *laid_out, finished, count, stops, early, run.numbers
        )
        tokens, scores = (
            ops.convert_to_numpy(rows)[:, prompt_slots : prompt_slots + count].tolist()
            for rows in (outputs if len(outputs[1]) else (outputs[0], outputs[0][:, :0]))
        )
        for row in np.flatnonzero(~finished):
            new, new_scores = tokens[row], scores[row]
            end = next((i for i, token in enumerate(new) if token in limits.stop_token_ids), None)
            _check_chosen(new[:end], limits)
            found[row][0].extend(new[:end])
            found[row][1].extend(new_scores[:end])
            finished[row] = end is not None
            # Of a finished row the stop token is left, by which the sampler knows.
            contexts[row] = contexts[row] + new if end is None else [new[end]]
        written += count
    return found


def _by_steps(run, starts, finished):
    """Writes one token at a time, and looks for stop strings after each."""
    limits = run.limits
    found = [([], []) for _ in starts]
    for tokens, scores in _steps(run, starts):
        for row in np.flatnonzero(~finished):
            if tokens[row] in limits.stop_token_ids:
                finished[row] = True
                continue
            new, new_scores = found[row]
            new.append(tokens[row])
            new_scores.extend(scores[row : row + 1])
            ends = limits.stop, limits.min_new_tokens
            finished[row] = has_stop(run.tokenizer, starts[row], new, *ends)
        if finished.all():
            break
    return found


def _steps(run, contexts):
    """Yields the next token of each row, and their log-probabilities, step by step."""
    limits, stops = run.limits, np.array(run.limits.stop_token_ids, "int32")
    written = 0
    while written < limits.max_new_tokens:
        contexts = [in_sight(context, limits.window) for context in contexts]
        left = limits.max_new_tokens - written
        count, prompt_slots, new_slots = sizes(contexts, left, limits.window)
        tokens, lengths = lay_out(contexts, prompt_slots)
        cache = run.functions.prefill(run.states, new_slots, tokens, lengths)
        tokens = np.pad(tokens, ((0, 0), (0, new_slots)), constant_values=-1)
        early = max(0, limits.min_new_tokens - written)
        for slot in range(prompt_slots - 1, prompt_slots - 1 + count):
            chosen, scores, tokens, cache = run.functions.step(
                run.states, new_slots, tokens, cache, slot, stops, early, run.numbers
            )
            chosen = ops.convert_to_numpy(chosen).tolist()
            _check_chosen(chosen, limits)
            yield chosen, ops.convert_to_numpy(scores).tolist() if len(scores) else []
            contexts = [[*row, token] for row, token in zip(contexts, chosen, strict=True)]
        written += count


def _check_chosen(tokens, limits):
    """Raises ValueError for what is no token, which a sampler of one's own can choose."""
    wrong = [token for token in tokens if not 0 <= token < limits.vocabulary_size]
    if wrong:
        raise ValueError(
            f"A sampler must choose ids in [0, {limits.vocabulary_size}), the columns of the "
            f"probabilities that it is given. Received: {wrong[0]} from its get_next_token."
        )
