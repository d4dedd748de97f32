"""Prompt -> cached steps -> text.

Rows of a batch have prompts of different lengths. So that all of them write to the same slot of
the cache in a step and yet have the positions that they would have alone, a row of the token buffer
with `prompt_slots` slots for prompts is laid out like this (prompt "abc", continuation "def"):

    slot        0  1  2  ...          prompt_slots - 1 | prompt_slots ...
    token       a  b  -  -  -  -  -   c                | d  e  f
    position    0  1                  2                | 3  4  5
"""

import copy
import functools
import itertools
import json
import warnings
from collections.abc import Iterable
from typing import NamedTuple

import keras
import numpy as np
from keras import ops, tree

from kgpt.kernels.cache import prefix_ends
from kgpt.kernels.platform import has_accelerator

_SAMPLERS = ("greedy", "top_k", "top_p", "random", "beam", "contrastive")
_SMALLEST_BUCKET = 32
# From so many slots on, in all rows together, a step on PyTorch reads only the quarters of a cache
# that are filled. Each has a record of its own, which takes time in the first call.
_RECORDS_OF_QUARTERS = 1024


def generate(
    model,
    prompts,
    max_new_tokens: int = 100,
    sampler="top_k",
    stop_token_ids="auto",
    seed: int | None = None,
    return_prompt: bool = True,
    stream: bool = False,
    sliding_window: bool = False,
):
    """Continues prompts, with keys and values cached.

    The first call for a new sampler, batch size or range of lengths compiles; later ones run what
    was compiled, with the model's weights of that moment. Lengths are rounded up to powers of two
    for this, which costs memory but no steps. Rows of a batch do not influence each other.

    Args:
        model: a `CausalLM`, or an object with the attributes `backbone` and `tokenizer`.
        prompts: text or token ids, one prompt or many of any lengths: str, list of str, list or
            array of int, list of those, or array `(batch, length)`. An empty prompt starts from the
            tokenizer's end-of-text token, which is not part of the result.
        max_new_tokens: int. Number of tokens after which a continuation ends.
        sampler: `"greedy"`, `"top_k"`, `"top_p"`, `"random"`, `"beam"` or `"contrastive"`, with
            keras-hub's settings (k=5 for top-k, p=0.1 for top-p); or, for other settings, an
            object such as `keras_hub.samplers.TopPSampler(p=0.9, temperature=0.8)`.
        stop_token_ids: int or several: tokens that end a continuation. The result is cut before
            them. "auto" is the tokenizer's end-of-text token, if it has one; None is no token.
        seed: int in [0, 2**31). The same seed gives the same continuation on the same backend.
            Without it calls differ; those with one sampler object go on in its random numbers.
        return_prompt: bool. Whether the result begins with the prompt.
        stream: bool. Whether to return an iterator that gives the result for one prompt as it
            comes: pieces of text that end with a whole character, or token ids one by one. Joined,
            they are what is returned otherwise. Not for samplers that look ahead (beam and
            contrastive).
        sliding_window: bool. Whether to go on at the end of the backbone's `max_sequence_length`:
            a row that fills it, as a prompt may do from the start, then keeps its last half in
            sight and counts positions from there.

    Returns:
        What was put in: str for text, list of int for a list of ids, numpy array for an array; a
        list of these for many prompts. With `stream`, an iterator.

    Raises:
        ValueError: for prompts that the model can't read, text without a tokenizer, arguments out
            of range, and lengths beyond `max_sequence_length` without `sliding_window`.

    Example:
        lm.generate("def main(", max_new_tokens=50, sampler="top_p", seed=0)
        for piece in lm.generate("def main(", stream=True):
            print(piece, end="", flush=True)
    """
    backbone, tokenizer = model.backbone, model.tokenizer
    window = backbone.max_sequence_length
    many, is_single = _read_prompts(prompts)
    is_text = isinstance(many[0], str)
    rows = _encode(many, tokenizer, backbone.vocabulary_size)
    starts = [row or [_end_of_text(tokenizer)] for row in rows]
    max_new_tokens = _read_count(max_new_tokens, max(map(len, starts)), window, sliding_window)
    stops = _read_stops(stop_token_ids, tokenizer)
    sampler = _read_sampler(sampler)
    states = sampler.variables if seed is None else _read_seed(seed, sampler)
    functions = _functions(model, sampler)
    if stream:
        if not is_single or not functions.is_stepwise:
            raise ValueError(
                "stream=True is for one prompt, and for samplers that settle a token at a time. "
                f"Received: {'one prompt' if is_single else f'a list of {len(many)} prompts'}, "
                f'sampler={type(sampler).__name__}. Try sampler="top_k" on one prompt.'
            )
        new = _stream(functions, states, starts[0], max_new_tokens, window, stops)
        new = _stream_text(tokenizer, starts[0], new) if is_text else new
        prompt = [many[0]] if is_text else rows[0]
        return itertools.chain(prompt, new) if return_prompt else new
    continuations = _continue(functions, states, starts, max_new_tokens, window, stops)
    results = []
    for prompt, row, start, new in zip(many, rows, starts, continuations, strict=True):
        if is_text:
            new = tokenizer.decode(start + new)[len(tokenizer.decode(start)) :]
            result = prompt + new if return_prompt else new
        else:
            result = row + new if return_prompt else new
            result = np.array(result, "int32") if isinstance(prompt, np.ndarray) else result
        results.append(result)
    return results[0] if is_single else results


# === Arguments ===


def _read_prompts(prompts):
    """A list of prompts, each str, list or array, and whether there was one without a list."""
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


def _encode(many, tokenizer, vocabulary_size):
    """The token ids of each prompt, list of int."""
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


def _end_of_text(tokenizer):
    token = None if tokenizer is None else tokenizer.end_of_text_id
    if token is None:
        raise ValueError(
            "An empty prompt starts from the tokenizer's end-of-text token. Received: an empty "
            f"prompt and tokenizer={tokenizer!r}. Try a prompt of at least one token."
        )
    return token


def _read_count(max_new_tokens, longest, window, sliding_window):
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


def _read_stops(stop_token_ids, tokenizer):
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


def _read_sampler(sampler):
    from keras_hub import samplers

    if isinstance(sampler, str) and sampler in _SAMPLERS:
        return samplers.get(sampler)
    if not isinstance(sampler, samplers.Sampler) or getattr(sampler, "return_all_beams", False):
        raise ValueError(
            f"sampler must be one of {', '.join(_SAMPLERS)}, or a keras_hub.samplers.Sampler that "
            f"returns one sequence. Received: sampler={sampler!r}."
        )
    return sampler


def _read_seed(seed, sampler):
    """Random states of their own for this call, as many as the sampler has."""
    is_seed = isinstance(seed, int | np.integer) and not isinstance(seed, bool)
    if not is_seed or not 0 <= seed < 2**31:
        raise ValueError(f"seed must be an int in [0, 2**31). Received: seed={seed!r}.")
    generators = [keras.random.SeedGenerator(int(seed) + i) for i in range(len(sampler.variables))]
    return [generator.state for generator in generators]


# === Over the windows ===


def _continue(functions, states, contexts, max_new_tokens, window, stops):
    """The new tokens of each row, without the stop token."""
    continuations = [[] for _ in contexts]
    finished, stop_array = np.zeros(len(contexts), "bool"), np.array(stops, "int32")
    while max_new_tokens and not finished.all():
        contexts = [_in_sight(context, window) for context in contexts]
        count, prompt_slots, new_slots = _sizes(contexts, max_new_tokens, window)
        tokens = functions.complete(
            states, new_slots, *_lay_out(contexts, prompt_slots), finished, count, stop_array
        )
        tokens = ops.convert_to_numpy(tokens)[:, prompt_slots : prompt_slots + count].tolist()
        for row, new in enumerate(tokens):
            if finished[row]:
                continue
            end = next((i for i, token in enumerate(new) if token in stops), None)
            continuations[row] += new[:end]
            finished[row] = end is not None
            # Of a finished row only the stop token is left: by it the sampler knows.
            contexts[row] = contexts[row] + new if end is None else [new[end]]
        max_new_tokens -= count
    return continuations


def _stream(functions, states, context, max_new_tokens, window, stops):
    """Yields the new tokens of one row, without the stop token."""
    while max_new_tokens:
        context = _in_sight(context, window)
        count, prompt_slots, new_slots = _sizes([context], max_new_tokens, window)
        cache = functions.prefill(states, new_slots, *_lay_out([context], prompt_slots))
        for slot in range(prompt_slots - 1, prompt_slots - 1 + count):
            token_ids = np.array([context[-1:]], "int32")
            token, cache = functions.step(states, new_slots, token_ids, cache, slot)
            token = int(ops.convert_to_numpy(token)[0])
            if token in stops:
                return
            yield token
            context = [*context, token]
        max_new_tokens -= count


def _stream_text(tokenizer, start, tokens):
    """Yields the text of new tokens; bytes of an unfinished character are held back."""
    shown = tokenizer.decode(start)
    ids = list(start)
    for token in tokens:
        ids.append(token)
        text = tokenizer.decode(ids).rstrip("\ufffd")
        if len(text) > len(shown):
            yield text[len(shown) :]
            shown = text
    rest = tokenizer.decode(ids)[len(shown) :]
    if rest:
        yield rest


def _in_sight(context, window):
    """The part of a row that the model sees: a full window makes room by half."""
    return context[-max(1, window // 2) :] if len(context) >= window else context


def _sizes(contexts, max_new_tokens, window):
    """How many tokens fit in the window, and how many slots to compile for."""
    longest = max(map(len, contexts))
    count = max(1, min(max_new_tokens, window - longest))
    return count, _bucket(longest - 1, window - 1) + 1, _bucket(count, window)


def _bucket(size, most):
    return min(most, max(_SMALLEST_BUCKET, 1 << (size - 1).bit_length()))


def _lay_out(contexts, prompt_slots):
    """Lengths, and token ids `(batch, prompt_slots)` laid out as at the top of this file."""
    token_ids = np.zeros((len(contexts), prompt_slots), "int32")
    for row, context in zip(token_ids, contexts, strict=True):
        row[: len(context) - 1] = context[:-1]
        row[-1] = context[-1]
    return token_ids, np.array([len(context) for context in contexts], "int32")


# === Compiled functions ===


class _Functions(NamedTuple):
    """What runs on the device; each takes the sampler's random states and static `new_slots`."""

    prefill: callable  # token_ids, lengths -> cache
    step: callable  # token_ids, cache, slot -> next tokens (batch,), cache
    complete: callable  # token_ids, lengths, finished, count, stops -> tokens of all slots
    is_stepwise: bool  # whether `step` does what `complete` does


def _functions(model, sampler):
    """The compiled functions for a sampler's settings, kept with the model.

    They are made anew when the model has other variables, as after `quantize` or `enable_lora`.
    """
    variables = model.backbone.variables
    kept_for, functions = vars(model).get("_generation", ([], {}))
    if [id(v) for v in kept_for] != [id(v) for v in variables]:
        functions = {}
        vars(model)["_generation"] = variables, functions
    vocabulary = model.backbone.vocabulary_size
    if model.tokenizer is not None:
        vocabulary = min(vocabulary, model.tokenizer.vocabulary_size)
    is_known = type(sampler).__module__.startswith("keras_hub.")
    config = {k: v for k, v in sampler.get_config().items() if k != "seed"} if is_known else {}
    settings = json.dumps(config, sort_keys=True, default=repr) if is_known else id(sampler)
    key = type(sampler), settings, vocabulary
    if key not in functions:
        if is_known:
            sampler = type(sampler).from_config(config)  # with random states of its own
        functions[key] = _make_functions(model.backbone, sampler, vocabulary)
    return functions[key]


def _make_functions(backbone, sampler, vocabulary):
    from keras_hub.samplers import Sampler

    def run_step(token_ids, cache, slot, new_slots, seen=None):
        h, cache = _step(backbone, token_ids, cache, slot, new_slots, seen)
        return backbone.token_embedding(h, reverse=True)[:, :vocabulary], h, cache

    if keras.config.backend() == "torch":
        run_step = _record(run_step)

    def prefill(new_slots, token_ids, lengths):
        return _prefill(backbone, token_ids, lengths, new_slots)[0]

    def step(new_slots, token_ids, cache, slot):
        logits, _, cache = run_step(token_ids, cache, slot, new_slots)
        probabilities = sampler.compute_probabilities(logits)
        return sampler.get_next_token(probabilities), cache

    def complete(new_slots, token_ids, lengths, finished, count, stops):
        cache, hidden_states = _prefill(backbone, token_ids, lengths, new_slots)
        batch, prompt_slots = token_ids.shape

        def next_logits(tokens, cache, index):
            slot = index - 1
            return run_step(tokens[:, slot][:, None], cache, slot, new_slots)

        # The sampler looks for stop tokens where the mask is False.
        is_prompt = ops.ones((batch, prompt_slots - 1), "bool")
        is_new = ops.zeros((batch, new_slots), "bool")
        mask = ops.concatenate([is_prompt, ops.logical_not(finished)[:, None], is_new], axis=1)
        empty = ops.full((batch, new_slots), -1, "int32")
        return _limited(sampler, count)(
            next_logits,
            ops.concatenate([token_ids, empty], axis=1),
            cache=cache,
            index=prompt_slots,
            mask=mask,
            stop_token_ids=[stops[i] for i in range(stops.shape[0])] or None,
            hidden_states=hidden_states,
            model=backbone,
        )

    compiled = (
        _compile(function, backbone.variables, sampler.variables)
        for function in (prefill, step, complete)
    )
    return _Functions(*compiled, is_stepwise=type(sampler).__call__ is Sampler.__call__)


def _limited(sampler, count):
    """The sampler, to stop after `count` steps however many slots there are."""

    def run_loop(*args, **kwargs):
        return sampler.run_loop(*args, **{**kwargs, "maximum_iterations": count})

    limited = copy.copy(sampler)
    limited.run_loop = run_loop
    return limited


def _compile(function, weights, random_states):
    """Compiles as the backend does; with `_record`, the one place that knows how.

    Args:
        function: takes a static int, then tensors.
        weights: the variables that it reads.
        random_states: the variables that it reads and writes.

    Returns:
        A function that takes, before these arguments, the random states to use and to renew.
    """
    if keras.config.backend() == "tensorflow":
        import tensorflow as tf

        # On a CPU too: a step is many small operations, which XLA joins.
        compiled = tf.function(function, autograph=False, jit_compile=True)
    elif keras.config.backend() == "jax":
        import jax

        variables = [*weights, *random_states]

        @functools.partial(jax.jit, static_argnums=0)
        def stateless(static, values, *tensors):
            mapping = zip(variables, values, strict=True)
            with keras.StatelessScope(state_mapping=mapping) as scope:
                outputs = function(static, *tensors)
            return outputs, [scope.get_current_value(v) for v in random_states]

        def compiled(static, *tensors):
            outputs, states = stateless(static, [v.value for v in variables], *tensors)
            for own, state in zip(random_states, states, strict=True):
                own.assign(state)
            return outputs
    else:
        import torch

        compiled = torch.inference_mode()(function)

    def run(states, static, *inputs):
        for own, state in zip(random_states, states, strict=True):
            own.assign(state)
        outputs = compiled(static, *tree.map_structure(ops.convert_to_tensor, inputs))
        for own, state in zip(random_states, states, strict=True):
            state.assign(own)
        return outputs

    return run


def _record(step):
    """Records PyTorch's operations in a first call, for later ones with tensors of the same shapes.

    Uncompiled, most of a step's time is Python's: hundreds of calls of Keras, then of PyTorch. The
    latter's own compiler would do more, but takes long and needs one for C++ on the machine.

    Args:
        step: a function of token ids, cache, slot and the static `new_slots` and `seen` as of
            `_step`, that returns logits, hidden states and the cache.

    Returns:
        The same function without `seen`, which it chooses: where the caches are large, there is a
        record for each quarter of the slots. It writes into the cache that it is given, where
        `step` makes a copy.
    """
    import torch
    from torch.fx.experimental.proxy_tensor import make_fx

    recorded = {}

    def record(inputs, new_slots, seen):
        def flat_step(*tensors):
            inner = tree.pack_sequence_as(inputs, tensors)
            return tuple(tree.flatten(step(*inner, new_slots, seen)))

        tensors = tree.flatten(inputs)
        module = make_fx(flat_step)(*tensors)
        copies = torch.ops.aten.index_copy.default
        for node in module.graph.find_nodes(op="call_function", target=copies):
            node.target = torch.ops.aten.index_copy_.default
        module.graph.eliminate_dead_code()
        module.recompile()
        for name, weight in list(module.named_parameters()):  # the same memory, without a gradient
            delattr(module, name)
            module.register_buffer(name, weight.detach())
        with warnings.catch_warnings():  # torch.export has nothing that runs without Python
            warnings.simplefilter("ignore", DeprecationWarning)
            return torch.jit.trace(module, tensors, check_trace=False)

    def run(token_ids, cache, slot, new_slots):
        slot = torch.as_tensor(slot, dtype=torch.int32, device=token_ids.device)
        inputs = token_ids, cache, slot
        rows, seen = token_ids.shape[0], _slots(cache)
        if rows * seen >= _RECORDS_OF_QUARTERS and not has_accelerator():
            seen = next(end for end in prefix_ends(seen) if end > int(slot))
        key = rows, _slots(cache), new_slots, seen
        if key not in recorded:
            recorded[key] = record(inputs, new_slots, seen)
        logits, hidden_states, *cache_tensors = recorded[key](*tree.flatten(inputs))
        return logits, hidden_states, tree.pack_sequence_as(cache, cache_tensors)

    return run


# === One step, and the first one ===


def _prefill(backbone, token_ids, lengths, new_slots):
    """Runs the prompts and keeps their keys and values.

    Args:
        backbone: a `GPTBackbone`.
        token_ids: int tensor `(batch, prompt_slots)`, laid out as at the top of this file.
        lengths: int tensor `(batch,)`: lengths of the prompts.
        new_slots: int. How many slots to add for the continuation.

    Returns:
        The cache, and hidden states `(batch, prompt_slots + new_slots, hidden_dim)`. Slots without
        a token have the state of the prompt's last token in place of their own.
    """
    prompt_slots = token_ids.shape[1]
    slots = ops.arange(prompt_slots, dtype="int32")
    is_last = slots == prompt_slots - 1
    is_token = ops.logical_or(slots < lengths[:, None] - 1, is_last)  # (batch, prompt_slots)
    # Only the last token has others than its predecessors in earlier slots.
    visible = ops.logical_or(is_token[:, None, :], ops.logical_not(is_last)[:, None])
    visible = ops.logical_and(visible, slots <= slots[:, None])
    position_ids = ops.where(is_last, lengths[:, None] - 1, slots)
    h = backbone.embedding(token_ids, position_ids=position_ids, training=False)
    layers = []
    for block in backbone.decoder_blocks:
        h, (keys, values) = block.call_with_cache(h, None, 0, visible, position_ids)
        pad = ((0, 0), (0, 0), (0, new_slots), (0, 0))
        layers.append((ops.pad(keys, pad), ops.pad(values, pad)))
    h = _final_norm(backbone, h)
    h = ops.where(is_token[..., None], h, h[:, -1:])
    new = ops.repeat(h[:, -1:], new_slots, axis=1)
    return {"layers": layers, "lengths": lengths}, ops.concatenate([h, new], axis=1)


def _step(backbone, token_ids, cache, slot, new_slots, seen=None):
    """Runs one token of each row.

    Args:
        backbone: a `GPTBackbone`.
        token_ids: int tensor `(batch, 1)`.
        cache: what `_prefill` made.
        slot: int scalar. Where the tokens stand.
        new_slots: int. As for `_prefill`.
        seen: int. How many slots of the cache to look at, `slot` among them; all if None.

    Returns:
        Hidden states `(batch, hidden_dim)`, and the cache with the tokens in it.
    """
    lengths = cache["lengths"][:, None]
    prompt_slots = _slots(cache) - new_slots
    slots = ops.arange(seen or _slots(cache), dtype="int32")
    visible = ops.logical_and(slots >= prompt_slots - 1, slots <= slot)
    visible = ops.logical_or(slots < lengths - 1, visible)  # (batch, seen)
    position_ids = lengths + (slot - prompt_slots)
    h = backbone.embedding(token_ids, position_ids=position_ids, training=False)
    layers = []
    for block, layer in zip(backbone.decoder_blocks, cache["layers"], strict=True):
        h, layer = block.call_with_cache(h, layer, slot, visible[:, None], position_ids)
        layers.append(layer)
    return _final_norm(backbone, h)[:, 0], {"layers": layers, "lengths": cache["lengths"]}


def _slots(cache):
    return cache["layers"][0][0].shape[2]


def _final_norm(backbone, h):
    return h if backbone.final_norm is None else backbone.final_norm(h)
