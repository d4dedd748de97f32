"""What runs on the device: the first pass over the prompts, one step, and the loop of steps."""

import copy
import functools
import json
from typing import NamedTuple

import keras
from keras import ops, tree

from kgpt.generation.arguments import is_stepwise, written_vocabulary
from kgpt.generation.filters import NO_FILTERS, Filters, ban_stops, filtered, with_numbers
from kgpt.generation.layout import prompt_layout, step_layout, without_gap
from kgpt.generation.torch_recorder import record
from kgpt.locks import lock_of

_MOST_KEPT = 32  # functions compiled for a model


class Functions(NamedTuple):
    """Compiled functions; each takes the sampler's random states and the static `new_slots`."""

    prefill: callable  # token_ids, lengths -> cache
    step: callable  # what `_make_step`'s function takes and gives
    complete: callable  # `_make_loop`'s -> tokens, their scores


class Options(NamedTuple):
    """What is compiled into the functions beside the sampler."""

    filters: Filters = NO_FILTERS  # as of `without_numbers`
    has_early: bool = False  # whether some of the new tokens must not be stop tokens
    has_scores: bool = False  # whether the tokens' log-probabilities are computed


NO_OPTIONS = Options()


def functions_for(model, sampler, options=NO_OPTIONS) -> Functions:
    """Returns the compiled functions for a sampler's settings, cached on the model."""
    vocabulary = written_vocabulary(model)
    is_known = _is_of_keras_hub(sampler)
    config = {k: v for k, v in sampler.get_config().items() if k != "seed"} if is_known else {}
    if config.get("k") is not None:  # the k likeliest of fewer tokens are all of them
        config["k"] = min(int(config["k"]), vocabulary)
    settings = json.dumps(config, sort_keys=True, default=repr) if is_known else id(sampler)

    def make():  # with random states of its own
        own = type(sampler).from_config(config) if is_known else sampler
        return _make_functions(model, own, vocabulary, options)

    return cached(model, (type(sampler), settings, vocabulary, options), make)


def _is_of_keras_hub(sampler) -> bool:
    return type(sampler).__module__.startswith("keras_hub.")


def cached(model, key, make):
    """Returns `make()`, cached on the model.

    It is made again when the model has other variables, as after `quantize` or `enable_lora`. Those
    used last are kept: a server's clients may choose any sampler.

    Args:
        model: an object with the attribute `backbone`.
        key: what it is known by.
        make: function that returns compiled functions.
    """
    with lock_of(model).held():
        variables = model.backbone.variables
        compiled_for, functions = vars(model).get("_compiled", ([], {}))
        if [id(v) for v in compiled_for] != [id(v) for v in variables]:
            functions = {}
            vars(model)["_compiled"] = variables, functions
        functions[key] = functions.pop(key) if key in functions else make()
        if len(functions) > _MOST_KEPT:
            del functions[next(iter(functions))]
        return functions[key]


def _make_functions(model, sampler, vocabulary, options):
    backbone = model.backbone

    def run_step(token_ids, cache, slot, new_slots, seen=None):
        h, cache = step(backbone, token_ids, cache, slot, new_slots, seen)
        return backbone.token_embedding(h, reverse=True), h, cache

    if keras.config.backend() == "torch":
        # One for all samplers: a record takes about 1 MB, and time in the first call.
        run_step = cached(model, "step", functools.partial(record, run_step))

    def prefill_alone(new_slots, token_ids, lengths):
        return prefill(backbone, token_ids, lengths, new_slots)[0]

    sizes = vocabulary, backbone.vocabulary_size
    next_tokens = _make_step(run_step, sampler, *sizes, options)
    if is_stepwise(sampler):
        complete = _make_loop(backbone, sampler, next_tokens, options)
    else:
        complete = _make_search(backbone, sampler, run_step, vocabulary)
    compiled = (
        compile_function(function, backbone, sampler.variables)
        for function in (prefill_alone, next_tokens, complete)
    )
    return Functions(*compiled)


# === One token at a time ===


def _make_step(run_step, sampler, vocabulary, read_vocabulary, options):
    """Returns the function that chooses the next token of each row."""
    is_known = _is_of_keras_hub(sampler)

    def readable(ids):  # what a sampler of one's own may not choose is refused once it is known
        return ids if is_known else ops.clip(ids, 0, read_vocabulary - 1)

    def next_tokens(new_slots, tokens, cache, slot, stops, early, numbers=()):
        """Takes one step.

        Args:
            new_slots: int. As for `prefill`.
            tokens: int tensor `(batch, slots)`: all tokens up to `slot`.
            cache: what `prefill` or this function returned.
            slot: int scalar. The last token's slot.
            stops: int tensor `(stops,)`.
            early: int scalar. How many of the new slots, counted from the first, must not hold a
                stop token.
            numbers: float tensor: those of the filters, as of `without_numbers`.

        Returns:
            The next tokens `(batch,)`; their log-probabilities by the model itself, whatever the
            filters, `(batch,)`, or (); `tokens` with the next ones; and the cache.
        """
        slot, prompt_slots = ops.cast(slot, "int32"), tokens.shape[1] - new_slots
        last = readable(_column(tokens, slot))
        all_logits, _, cache = run_step(last, cache, slot, new_slots)
        logits = all_logits[:, :vocabulary]
        if options.has_early:
            logits = ban_stops(logits, stops, slot - prompt_slots + 1 < early)
        if options.filters != NO_FILTERS:
            text = without_gap(tokens, cache["lengths"], slot, prompt_slots)
            logits = filtered(with_numbers(options.filters, numbers), logits, *text)
        chosen = sampler.get_next_token(sampler.compute_probabilities(logits))
        chosen = ops.reshape(ops.cast(chosen, "int32"), (tokens.shape[0],))
        scores = _log_probabilities(all_logits, readable(chosen)) if options.has_scores else ()
        return chosen, scores, _put(tokens, chosen, slot + 1), cache

    return next_tokens


def _make_loop(backbone, sampler, next_tokens, options):
    """Returns the function that runs the steps until all rows have stopped."""

    def complete(new_slots, token_ids, lengths, finished, count, *choice):
        stops = choice[0]  # with the rest, what `next_tokens` takes
        cache, _ = prefill(backbone, token_ids, lengths, new_slots)
        empty = ops.full((token_ids.shape[0], new_slots), -1, "int32")
        tokens = ops.concatenate([token_ids, empty], axis=1)
        scores = ops.zeros(tokens.shape, "float32") if options.has_scores else ()
        slot = ops.convert_to_tensor(token_ids.shape[1] - 1, "int32")

        def is_open(tokens, scores, cache, slot, finished):
            if not stops.shape[0]:
                return ops.convert_to_tensor(True)
            return ops.logical_not(ops.all(finished))

        def body(tokens, scores, cache, slot, finished):
            chosen, new, tokens, cache = next_tokens(new_slots, tokens, cache, slot, *choice)
            if options.has_scores:
                scores = _put(scores, new, slot + 1)
            if stops.shape[0]:
                is_stop = ops.any(chosen[:, None] == stops, axis=-1)
                finished = ops.logical_or(finished, is_stop)
            return tokens, scores, cache, slot + 1, finished

        loop_vars = tokens, scores, cache, slot, finished
        tokens, scores, *_ = sampler.run_loop(
            is_open, body, model=backbone, loop_vars=loop_vars, maximum_iterations=count
        )
        return tokens, scores

    return complete


def _column(rows, slot):
    """Returns the column `(batch, 1)` of a slot: of a slice, XLA would compile each slot anew."""
    return ops.take(rows, slot, axis=1)[:, None]


def _put(rows, new, slot):
    """Returns the rows `(batch, slots)` with the new column `(batch,)` in a slot."""
    return ops.slice_update(rows, (ops.zeros_like(slot), slot), new[:, None])


def _log_probabilities(logits, chosen):
    """Returns the chosen tokens' log-probabilities among all that the model has."""
    logits = ops.cast(logits, "float32")
    of_chosen = ops.take_along_axis(logits, chosen[:, None], axis=-1)[:, 0]
    return of_chosen - ops.logsumexp(logits, axis=-1)


# === The first pass, and one step ===


def prefill(backbone, token_ids, lengths, new_slots):
    """Runs the prompts and caches their keys and values.

    Args:
        backbone: a `GPTBackbone`.
        token_ids: int tensor `(batch, prompt_slots)`, laid out as `kgpt.generation.layout` says.
        lengths: int tensor `(batch,)`: lengths of the prompts.
        new_slots: int. How many slots to add for the continuation.

    Returns:
        The cache, and hidden states `(batch, prompt_slots + new_slots, hidden_dim)`. Slots without
        a token have the state of the prompt's last token in place of their own.
    """
    is_token, visible, position_ids = prompt_layout(lengths, token_ids.shape[1])
    h, layers = backbone.call_with_cache(token_ids, None, 0, visible, position_ids)
    pad = ((0, 0), (0, 0), (0, new_slots), (0, 0))
    layers = [(ops.pad(keys, pad), ops.pad(values, pad)) for keys, values in layers]
    h = ops.where(is_token[..., None], h, h[:, -1:])
    new = ops.repeat(h[:, -1:], new_slots, axis=1)
    return {"layers": layers, "lengths": lengths}, ops.concatenate([h, new], axis=1)


def step(backbone, token_ids, cache, slot, new_slots, seen=None):
    """Runs one token of each row.

    Args:
        backbone: a `GPTBackbone`.
        token_ids: int tensor `(batch, 1)`.
        cache: what `prefill` returned.
        slot: int scalar. Where the tokens stand.
        new_slots: int. As for `prefill`.
        seen: int. How many slots of the cache to look at, `slot` among them; all if None.

    Returns:
        Hidden states `(batch, hidden_dim)`, and the cache with the tokens in it.
    """
    layers, lengths = cache["layers"], cache["lengths"]
    slots = layers[0][0].shape[2]
    visible, position_ids = step_layout(lengths, slot, slots - new_slots, seen or slots)
    h, layers = backbone.call_with_cache(token_ids, layers, slot, visible, position_ids)
    return h[:, 0], {"layers": layers, "lengths": lengths}


# === The loops of keras-hub's samplers that look ahead ===


def _make_search(backbone, sampler, run_step, vocabulary):
    """Returns the function that lets a sampler run its own loop."""

    def complete(new_slots, token_ids, lengths, finished, count, stops, *_):
        cache, hidden_states = prefill(backbone, token_ids, lengths, new_slots)
        tokens, mask = _buffer(token_ids, finished, new_slots)

        def next_logits(tokens, cache, index):
            slot = ops.cast(index - 1, "int32")
            logits, h, cache = run_step(_column(tokens, slot), cache, slot, new_slots)
            logits = logits[:, :vocabulary]
            if stops.shape[0]:
                logits = _stay_at_stop(logits, tokens, mask, stops)
            return logits, h, cache

        tokens = _limited(sampler, count)(
            next_logits,
            tokens,
            cache=cache,
            index=token_ids.shape[1],
            mask=mask,
            stop_token_ids=[stops[i] for i in range(stops.shape[0])] or None,
            hidden_states=hidden_states,
            model=backbone,
        )
        return tokens, ()

    return complete


def _buffer(token_ids, finished, new_slots):
    """Returns the slots for all tokens, and a mask that is False where a stop token may come."""
    batch, prompt_slots = token_ids.shape
    is_prompt = ops.ones((batch, prompt_slots - 1), "bool")
    is_new = ops.zeros((batch, new_slots), "bool")
    mask = ops.concatenate([is_prompt, ops.logical_not(finished)[:, None], is_new], axis=1)
    empty = ops.full((batch, new_slots), -1, "int32")
    return ops.concatenate([token_ids, empty], axis=1), mask


def _stay_at_stop(logits, tokens, mask, stops):
    """Returns logits by which a sequence that has stopped repeats its stop token.

    So a beam that has stopped keeps its likelihood while other beams and other rows go on: what
    would come after the stop has no part in the choice.

    Args:
        logits: float tensor `(sequences, vocabulary)`, with as many sequences for each row.
        tokens: int tensor `(sequences, slots)`.
        mask: bool tensor `(rows, slots)`, as of `_buffer`.
        stops: int tensor `(stops,)`.
    """
    mask = ops.repeat(mask, tokens.shape[0] // mask.shape[0], axis=0)
    is_stop = ops.any(tokens[..., None] == stops, axis=-1)  # (sequences, slots)
    has_stopped = ops.any(ops.logical_and(is_stop, ops.logical_not(mask)), axis=-1)
    is_other = ops.arange(logits.shape[-1], dtype="int32") != stops[0]
    is_out = ops.logical_and(has_stopped[:, None], is_other)
    return ops.where(is_out, ops.cast(-float("inf"), logits.dtype), logits)


def _limited(sampler, count):
    """Returns the sampler, to stop after `count` steps however many slots there are."""

    def run_loop(cond, body, loop_vars, **kwargs):
        loop_vars = [_as_index(x) for x in loop_vars]
        return sampler.run_loop(
            cond, body, loop_vars=loop_vars, **{**kwargs, "maximum_iterations": count}
        )

    limited = copy.copy(sampler)
    limited.run_loop = run_loop
    return limited


def _as_index(x):
    """Returns an int scalar in the dtype of Python's ints, beside which JAX wants it; else `x`."""
    if keras.config.backend() != "jax" or getattr(x, "ndim", None) != 0 or x.dtype != "int32":
        return x
    import jax

    return x.astype(jax.dtypes.canonicalize_dtype(int))


# === Compilation ===


def compile_function(function, backbone, random_states=()):
    """Compiles as the backend does.

    Args:
        function: takes a static int or None, then tensors.
        backbone: the model whose variables it reads.
        random_states: the variables that it reads and writes.

    Returns:
        A function that takes, before these arguments, the random states to use and to renew. It
        holds the backbone's lock: the random states that are compiled in serve one call at a time.
    """
    if keras.config.backend() == "tensorflow":
        import tensorflow as tf

        # On a CPU too: a step is many small operations, which XLA joins.
        compiled = tf.function(function, autograph=False, jit_compile=True)
        compiled._omit_frequent_tracing_warning = True  # each model and sampler has its own
    elif keras.config.backend() == "jax":
        compiled = _compile_by_jax(function, backbone.variables, random_states)
    else:
        import torch

        compiled = torch.inference_mode()(function)

    def run(states, static, *inputs):
        with lock_of(backbone).held():
            for own, state in zip(random_states, states, strict=True):
                own.assign(state.value)
            outputs = compiled(static, *tree.map_structure(ops.convert_to_tensor, inputs))
            for own, state in zip(random_states, states, strict=True):
                state.assign(own)
            return outputs

    return run


def _compile_by_jax(function, weights, random_states):
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

    return compiled
