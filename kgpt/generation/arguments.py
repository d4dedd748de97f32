"""The arguments of `generate`, checked and in one form each."""

from collections.abc import Iterable

import keras
import numpy as np
from keras import ops

_SAMPLERS = ("greedy", "top_k", "top_p", "random", "beam", "contrastive")


def read_prompts(prompts):
    """Returns a list of prompts, each str, list or array, and whether it was one prompt alone."""
    if ops.is_tensor(prompts):
        prompts = ops.convert_to_numpy(prompts)
    if isinstance(prompts, str):
        return [prompts], True
    if not isinstance(prompts, list | tuple | np.ndarray) or getattr(prompts, "ndim", 1) == 0:
        raise ValueError(
            "prompts must be text or token ids, or a list of them. "
            f"Received: {prompts!r} of type {type(prompts).__name__}."
        )
    if len(prompts) == 0:
        raise ValueError(
            f'There must be at least one prompt. Received: {prompts!r}. Try prompts="".'
        )
    many = [ops.convert_to_numpy(p) if ops.is_tensor(p) else p for p in prompts]
    if not isinstance(many[0], str | list | tuple | np.ndarray):
        return [prompts], True
    return many, False


def encode(many, tokenizer, vocabulary_size):
    """Returns the token ids of each prompt, as lists of int."""
    if any(isinstance(prompt, str) for prompt in many):
        if tokenizer is None or not all(isinstance(prompt, str) for prompt in many):
            raise ValueError(
                "prompts may be text if all are and the model has a tokenizer. "
                f"Received: {many!r}, and a model with tokenizer={tokenizer!r}."
            )
        return [tokenizer.encode(text) for text in many]
    rows = [prompt.tolist() if isinstance(prompt, np.ndarray) else prompt for prompt in many]
    for row in rows:
        are_ids = isinstance(row, list | tuple) and all(
            isinstance(i, int | np.integer) and not isinstance(i, bool) for i in row
        )
        if not are_ids or not all(0 <= i < vocabulary_size for i in row):
            raise ValueError(
                f"A prompt of token ids has ints in [0, {vocabulary_size}) along one axis. "
                f"Received: {row!r}."
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


def read_count(max_new_tokens, longest, window, sliding_window):
    """Returns `max_new_tokens` as an int, once the longest prompt and it fit in the window."""
    is_count = isinstance(max_new_tokens, int | np.integer) and not isinstance(max_new_tokens, bool)
    if not is_count or max_new_tokens < 0:
        raise ValueError(
            "max_new_tokens must be an int of at least 0. "
            f"Received: max_new_tokens={max_new_tokens!r}."
        )
    if max_new_tokens and longest + max_new_tokens > window and not sliding_window:
        shorter = f", or max_new_tokens={window - longest}" if longest < window else ""
        raise ValueError(
            "Prompt and continuation must fit in the backbone's max_sequence_length. Received: a "
            f"prompt of {longest} tokens, max_new_tokens={max_new_tokens}, "
            f"max_sequence_length={window}. Try sliding_window=True{shorter}."
        )
    return int(max_new_tokens)


def read_stops(stop_token_ids, tokenizer):
    """Returns the stop tokens as a list of int."""
    stops = stop_token_ids
    if isinstance(stops, str) and stops == "auto":
        stops = None if tokenizer is None else tokenizer.end_of_text_id
    if stops is None:
        return []
    stops = list(stops) if isinstance(stops, Iterable) else [stops]
    if not all(isinstance(i, int | np.integer) for i in stops):
        raise ValueError(
            'stop_token_ids must be "auto", None, an int or several. '
            f"Received: stop_token_ids={stop_token_ids!r}."
        )
    return [int(i) for i in stops]


def read_sampler(sampler):
    """Returns the sampler as an object of keras-hub."""
    from keras_hub import samplers

    if isinstance(sampler, str) and sampler in _SAMPLERS:
        return samplers.get(sampler)
    if not isinstance(sampler, samplers.Sampler) or getattr(sampler, "return_all_beams", False):
        raise ValueError(
            f"sampler must be one of {', '.join(_SAMPLERS)}, or a keras_hub.samplers.Sampler that "
            f"returns one sequence. Received: sampler={sampler!r}."
        )
    return sampler


def read_seed(seed, sampler):
    """Returns random states for this call alone, as many as the sampler has."""
    is_seed = isinstance(seed, int | np.integer) and not isinstance(seed, bool)
    if not is_seed or not 0 <= seed < 2**31:
        raise ValueError(f"seed must be an int in [0, 2**31). Received: seed={seed!r}.")
    generators = [keras.random.SeedGenerator(int(seed) + i) for i in range(len(sampler.variables))]
    return [generator.state for generator in generators]


def check_stream(many, is_single, sampler, is_stepwise):
    """Raises an error if the result can't be streamed."""
    if not is_single or not is_stepwise:
        raise ValueError(
            "stream=True is for one prompt, and for samplers that settle a token at a time. "
            f"Received: {'one prompt' if is_single else f'a list of {len(many)} prompts'}, "
            f'sampler={type(sampler).__name__}. Try sampler="top_k" on one prompt.'
        )
