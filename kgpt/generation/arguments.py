"""The arguments of `generate`, checked and in one form each."""

import functools
import math
import random
from collections.abc import Iterable, Mapping, Sequence
from typing import NamedTuple, TypedDict, TypeVar

import numpy as np
from keras import ops

from kgpt.arguments import is_int, is_real
from kgpt.console import quiet_imports
from kgpt.generation.filters import Filters
from kgpt.text import check_no_table

_SAMPLERS = ("greedy", "top_k", "top_p", "random", "beam", "contrastive")

# The options that shape the distribution, and the samplers that they can shape, with what these
# have of them by themselves.
_SHAPE = ("temperature", "top_k", "top_p", "min_p")
_SHAPED = {"random": {}, "top_k": {"top_k": 5}, "top_p": {"top_p": 0.9}}

# What editors see of texts and token ids: one, many, or either.
One = TypeVar("One", str, list[int])
Many = TypeVar("Many", list[str], list[list[int]])
Prompts = TypeVar("Prompts", str, list[int], list[str], list[list[int]])


class GenerateOptions(TypedDict, total=False):
    """The keywords of `generate` on which the type of its result does not depend."""

    stop_token_ids: object
    seed: int | None
    return_prompt: bool
    sliding_window: bool
    temperature: float | None
    top_k: int | None
    top_p: float | None
    min_p: float | None
    repetition_penalty: float | None
    no_repeat_ngram_size: int | None
    stop: str | Sequence[str] | None
    min_new_tokens: int


_SMALLEST_TEMPERATURE = 1e-30  # logits divided by less are infinite in float32


def written_vocabulary(model) -> int:
    """Returns how many tokens a continuation can have: the tokenizer's, if there is one."""
    size = model.backbone.vocabulary_size
    return size if model.tokenizer is None else min(size, model.tokenizer.vocabulary_size)


def read_prompts(prompts, name="prompts"):
    """Returns a list of prompts, each str, list or array, and whether it was one prompt alone."""
    is_ragged = hasattr(prompts, "to_list")  # whose array would have zeros in the gaps
    if ops.is_tensor(prompts) and not is_ragged:
        prompts = ops.convert_to_numpy(prompts)
    if isinstance(prompts, str):
        return [prompts], True
    if isinstance(prompts, Mapping) and not {"token_ids", "input_ids"}.isdisjoint(prompts):
        raise ValueError(
            f"{name} must be text or token ids without padding, not a model's inputs. Received: a "
            f"dict with the keys {list(prompts)}. Try a list of each row's ids."
        )
    check_no_table(name, prompts)
    if not isinstance(prompts, list | tuple | np.ndarray) or getattr(prompts, "ndim", 1) == 0:
        is_list_like = isinstance(prompts, Iterable) and not isinstance(prompts, bytes | np.ndarray)
        hint = f" Try {name}=list({name})." if is_list_like else ""
        ways = [way for way in ("to_list", "tolist", "numpy") if hasattr(prompts, way)]
        if ways:  # a column of a table, a ragged tensor, a tensor of another backend
            hint = f" Try {name}={name}.{ways[0]}()."
        raise ValueError(
            f"{name} must be text or token ids, or a list of them. "
            f"Received: {prompts!r} of type {type(prompts).__name__}.{hint}"
        )
    if len(prompts) == 0:
        raise ValueError(
            f"There must be at least one {name.removesuffix('s')}. Received: {prompts!r}."
            f' Try {name}="".'
        )
    many = [ops.convert_to_numpy(p) if ops.is_tensor(p) else p for p in prompts]
    if not isinstance(many[0], str | list | tuple | np.ndarray):
        return [prompts], True
    return many, False


def encode(many, tokenizer, vocabulary_size, name="prompts"):
    """Returns the token ids of each prompt, as lists of int."""
    if any(isinstance(prompt, str) for prompt in many):
        if tokenizer is None or not all(isinstance(prompt, str) for prompt in many):
            raise ValueError(
                f"{name} may be text if all are and the model has a tokenizer. Received: "
                f"{many!r:.200}, and a model with tokenizer={tokenizer!r}. Try kgpt.CausalLM("
                "backbone, tokenizer=tokenizer), or token ids."
            )
        return tokenizer.encode_batch(many)
    rows = [prompt.tolist() if isinstance(prompt, np.ndarray) else prompt for prompt in many]
    for row in rows:
        are_ids = isinstance(row, list | tuple) and all(is_int(i) for i in row)
        if not are_ids or not all(0 <= i < vocabulary_size for i in row):
            kinds = map(type, row if isinstance(row, list | tuple) else [row])
            hint = " Bytes become text by decode()." if bytes in kinds else ""
            raise ValueError(
                f"{name} of token ids must be ints in [0, {vocabulary_size}) along one axis. "
                f"Received: {row!r:.200}.{hint}"
            )
    return [[int(i) for i in row] for row in rows]


def end_of_text(tokenizer):
    """Returns the token that an empty prompt starts from."""
    token = None if tokenizer is None else tokenizer.end_of_text_id
    if token is None:
        raise ValueError(
            "An empty prompt starts from the tokenizer's end-of-text token. Received: an empty "
            f"prompt and tokenizer={tokenizer!r}. Try a prompt of at least one token."
        )
    return token


class Limits(NamedTuple):
    """What ends a continuation."""

    vocabulary_size: int  # of what can be written
    window: int
    max_new_tokens: int
    min_new_tokens: int
    stop_token_ids: list
    stop: list  # strings


def read_call(
    model,
    prompts,
    max_new_tokens,
    min_new_tokens=0,
    stop_token_ids="auto",
    stop=None,
    sliding_window=False,
):
    """Returns the prompts, whether it is one alone, their token ids, and the limits.

    Raises:
        ValueError: for what a model can't continue, or not so far.
    """
    many, is_single = read_prompts(prompts)
    rows = encode(many, model.tokenizer, model.backbone.vocabulary_size)
    starts = [row or [end_of_text(model.tokenizer)] for row in rows]
    limits = read_limits(model, max_new_tokens, min_new_tokens, stop_token_ids, stop)
    check_length(limits, max(map(len, starts)), sliding_window)
    check_stop(limits.stop, many)
    return many, is_single, starts, limits


def read_limits(model, max_new_tokens, min_new_tokens, stop_token_ids, stop):
    """Returns what ends a continuation; raises ValueError if all tokens would, too early."""
    vocabulary_size = written_vocabulary(model)
    stops = read_stops(stop_token_ids, model.tokenizer, vocabulary_size)
    if min_new_tokens and len(set(stops)) == vocabulary_size:
        raise ValueError(
            f"With min_new_tokens={min_new_tokens} some token must be no stop token. Received: all "
            f"{vocabulary_size} tokens as stop_token_ids."
        )
    window, stop = model.backbone.max_sequence_length, [] if stop is None else stop
    return Limits(vocabulary_size, window, max_new_tokens, min_new_tokens, stops, stop)


def check_stop(stop, many):
    """Raises ValueError for stop strings beside prompts that are no texts."""
    if stop and not all(isinstance(prompt, str) for prompt in many):
        raise ValueError(
            "stop is for text: its strings may begin inside a token. "
            f"Received: stop={stop!r}, prompts of token ids. Try stop_token_ids."
        )


def check_length(limits, longest, sliding_window):
    """Raises ValueError unless the longest prompt and what is new fit in the window."""
    window, new = limits.window, limits.max_new_tokens
    if new and longest + new > window and not sliding_window:
        shorter = f", or max_new_tokens={window - longest}" if longest < window else ""
        raise ValueError(
            "Prompt and continuation must fit in the backbone's max_sequence_length. Received: a "
            f"prompt of {longest} tokens, max_new_tokens={new}, "
            f"max_sequence_length={window}. Try sliding_window=True{shorter}."
        )


def read_stops(stop_token_ids, tokenizer, vocabulary_size):
    """Returns the stop tokens as a list of int."""
    stops = stop_token_ids
    if isinstance(stops, str) and stops == "auto":
        stops = None if tokenizer is None else tokenizer.end_of_text_id
    if stops is None:
        return []
    if ops.is_tensor(stops) or isinstance(stops, np.ndarray):
        stops = ops.convert_to_numpy(stops).tolist()
    is_many = isinstance(stops, Iterable) and not isinstance(stops, str | bytes | Mapping)
    stops = list(stops) if is_many else [stops]
    if not all(is_int(i) and 0 <= i < vocabulary_size for i in stops):
        raise ValueError(
            'stop_token_ids must be "auto", None, an int or several, each of them a token that the '
            f"model can write, in [0, {vocabulary_size}). "
            f"Received: stop_token_ids={stop_token_ids!r}."
        )
    return [int(i) for i in stops]


def read_sampler(sampler, filters, **others):
    """Returns the sampler as an object of keras-hub, and the filters before it.

    Args:
        sampler: `generate`'s.
        filters: `Filters`, as given to `generate`.
        **others: what else `generate` has that not every sampler can do.

    Raises:
        ValueError: for what is no sampler, and for options that can't act beside it.
    """
    samplers = keras_hub_samplers()

    given = {name: value for name, value in filters._asdict().items() if value is not None}
    shape = {name: value for name, value in given.items() if name in _SHAPE}
    name = sampler if isinstance(sampler, str) else None
    if name == "auto":
        name = "random" if shape else "top_k"
    if shape and name in _SHAPED:
        return _named("random"), filters._replace(**{**_SHAPED[name], **shape})
    if name in _SAMPLERS:
        sampler = _named(name)
    else:
        check_sampler(sampler)
    if shape:
        _refuse_beside(
            sampler,
            shape,
            'sampler="random", "top_k" and "top_p"',
            "A sampler object has settings of its own, such as TopPSampler(temperature=0.8).",
        )
    given.update({name: value for name, value in others.items() if value})
    copies = given.pop("num_return_sequences", 1)
    if given and not is_stepwise(sampler):
        _refuse_beside(
            sampler, given, "samplers that settle a token at a time", 'Try sampler="greedy".'
        )
    if copies > 1 and (isinstance(sampler, samplers.GreedySampler) or not is_stepwise(sampler)):
        _refuse_beside(
            sampler,
            {"num_return_sequences": copies},
            "samples that differ",
            'Try sampler="random".',
        )
    return sampler, filters


def read_options(sampler="auto", max_new_tokens=100, min_new_tokens=0, **options) -> tuple:
    """Returns the sampler and the filters that options of `generate` name, whatever the model.

    Raises:
        ValueError: for options that can't act together.
    """
    if min_new_tokens > max_new_tokens:
        raise ValueError(
            "min_new_tokens must not exceed max_new_tokens. "
            f"Received: min_new_tokens={min_new_tokens}, max_new_tokens={max_new_tokens}."
        )
    seed = options.get("seed")
    if seed is not None and seed >= 2**31:
        raise ValueError(f"seed must be an int in [0, 2**31). Received: seed={seed}.")
    others = ("stop", "num_return_sequences", "return_log_probabilities")
    others = {name: options.get(name) for name in others}
    filters = Filters(*(options.get(name) for name in Filters._fields))
    return read_sampler(sampler, filters, min_new_tokens=min_new_tokens, **others)


@functools.cache
def _named(name):
    """Returns keras-hub's sampler of a name, one for all calls: it says what to do, no more."""
    samplers = keras_hub_samplers()
    return samplers.TopPSampler(p=0.9) if name == "top_p" else samplers.get(name)


def keras_hub_samplers():
    """Returns the module of keras-hub's samplers, imported when first used."""
    with quiet_imports():
        from keras_hub import samplers
    return samplers


def is_stepwise(sampler) -> bool:
    """Returns whether a sampler settles a token at a time, in keras-hub's plain loop."""
    return type(sampler).__call__ is keras_hub_samplers().Sampler.__call__


def _refuse_beside(sampler, given, instead, hint):
    received = ", ".join(f"{name}={value!r}" for name, value in given.items())
    raise ValueError(
        f"{', '.join(given)} can be had with {instead}. "
        f"Received: {received}, sampler={type(sampler).__name__}. {hint}"
    )


def check_sampler(sampler):
    """Raises ValueError for what can't be a sampler."""
    samplers = keras_hub_samplers()

    cannot = isinstance(sampler, samplers.SpeculativeSampler) or getattr(
        sampler, "return_all_beams", False
    )
    if not isinstance(sampler, samplers.Sampler) or cannot:
        raise ValueError(
            f"sampler must be one of {', '.join(_SAMPLERS)}, or a keras_hub.samplers.Sampler that "
            "needs one model and returns one sequence for each prompt. "
            f"Received: sampler={sampler!r}."
        )
    check_settings(sampler)


def check_settings(sampler):
    """Raises ValueError for settings of a sampler by which nothing can be sampled."""
    samplers = keras_hub_samplers()

    def check(name, is_right, rule):
        value = getattr(sampler, name)
        if not is_right(value):
            kind = type(sampler).__name__
            raise ValueError(f"{name} of a {kind} must be {rule}. Received: {name}={value!r}.")

    def is_positive_int(value):
        return is_int(value) and value > 0

    def is_in_unit_interval(value):
        return is_real(value) and 0 <= value <= 1

    check(
        "temperature",
        lambda t: is_real(t) and _SMALLEST_TEMPERATURE <= t < math.inf,
        f'a finite number, at least {_SMALLEST_TEMPERATURE} (sampler="greedy" is the limit at 0)',
    )
    if isinstance(sampler, samplers.TopKSampler | samplers.ContrastiveSampler):
        check("k", is_positive_int, "an int of at least 1")
    if isinstance(sampler, samplers.TopPSampler):
        check("p", lambda p: is_in_unit_interval(p) and p > 0, "a number in (0, 1]")
        check("k", lambda k: k is None or is_positive_int(k), "None or an int of at least 1")
    if isinstance(sampler, samplers.ContrastiveSampler):
        check("alpha", is_in_unit_interval, "a number in [0, 1]")
    if isinstance(sampler, samplers.BeamSampler):
        check("num_beams", is_positive_int, "an int of at least 1")


class RandomState:
    """The state of a random generator in one call.

    A variable for each call would cost memory for ever: TensorFlow keeps 36 KB for each.
    """

    def __init__(self, seed: int):
        self.value = np.array([seed, 0])

    def assign(self, variable):
        """Takes the state of a variable."""
        self.value = np.array(ops.convert_to_numpy(variable))


def random_states(seed, given, sampler):
    """Returns the random states of a call, as many as the sampler has.

    Args:
        seed: `generate`'s.
        given: the sampler that was given, whose own states act if it is an object.
        sampler: the same as an object.
    """
    if seed is None and not isinstance(given, str):
        return sampler.variables
    if seed is None:
        seed = random.randint(1, 10**9)  # as Keras's own: `keras.utils.set_random_seed` decides it
    return [RandomState(seed + i) for i in range(len(sampler.variables))]


def check_stream(many, is_single, sampler, num_return_sequences, return_log_probabilities):
    """Raises an error if the result can't be streamed."""
    wanted = {
        "num_return_sequences": num_return_sequences,
        "return_log_probabilities": return_log_probabilities,
    }
    wanted = "".join(f", {name}={value}" for name, value in wanted.items() if value)
    if not is_single or not is_stepwise(sampler) or wanted:
        raise ValueError(
            "stream=True is for one prompt and one result, and for samplers that settle a token at "
            f"a time. Received: {'one prompt' if is_single else f'a list of {len(many)} prompts'}, "
            f'sampler={type(sampler).__name__}{wanted}. Try sampler="top_k" on one prompt.'
        )
