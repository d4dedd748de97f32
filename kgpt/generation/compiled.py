"""What runs on the device: the first pass over the prompts, one step, and the loop of steps."""

import copy
import functools
import json
from typing import NamedTuple

import keras
from keras import ops, tree

from kgpt.generation.arguments import written_vocabulary
from kgpt.generation.layout import prompt_layout, step_layout
from kgpt.generation.torch_recorder import record


class Functions(NamedTuple):
    """Compiled functions; each takes the sampler's random states and the static `new_slots`."""

    prefill: callable  # token_ids, lengths -> cache
    step: callable  # token_ids, cache, slot -> next tokens (batch,), cache
    complete: callable  # token_ids, lengths, finished, count, stops -> tokens of all slots
    is_stepwise: bool  # whether `step` does what `complete` does


def functions_for(model, sampler) -> Functions:
    """Returns the compiled functions for a sampler's settings, cached on the model."""
    vocabulary = written_vocabulary(model)
    is_known = type(sampler).__module__.startswith("keras_hub.")
    config = {k: v for k, v in sampler.get_config().items() if k != "seed"} if is_known else {}
    if config.get("k") is not None:  # the k likeliest of fewer tokens are all of them
        config["k"] = min(int(config["k"]), vocabulary)
    settings = json.dumps(config, sort_keys=True, default=repr) if is_known else id(sampler)

    def make():  # with random states of its own
        own = type(sampler).from_config(config) if is_known else sampler
        return _make_functions(model.backbone, own, vocabulary)

    return cached(model, (type(sampler), settings, vocabulary), make)


def cached(model, key, make):
    """Returns `make()`, cached on the model.

    It is made again when the model has other variables, as after `quantize` or `enable_lora`.

    Args:
        model: an object with the attribute `backbone`.
        key: what it is known by.
        make: function that returns compiled functions.
    """
    variables = model.backbone.variables
    compiled_for, functions = vars(model).get("_compiled", ([], {}))
    if [id(v) for v in compiled_for] != [id(v) for v in variables]:
        functions = {}
        vars(model)["_compiled"] = variables, functions
    if key not in functions:
        functions[key] = make()
    return functions[key]


def _make_functions(backbone, sampler, vocabulary):
    from keras_hub.samplers import Sampler

    def run_step(token_ids, cache, slot, new_slots, seen=None):
        h, cache = step(backbone, token_ids, cache, slot, new_slots, seen)
        return backbone.token_embedding(h, reverse=True)[:, :vocabulary], h, cache

    if keras.config.backend() == "torch":
        run_step = record(run_step)

    is_stepwise = type(sampler).__call__ is Sampler.__call__

    def prefill_alone(new_slots, token_ids, lengths):
        return prefill(backbone, token_ids, lengths, new_slots)[0]

    def next_tokens(new_slots, token_ids, cache, slot):
        logits, _, cache = run_step(token_ids, cache, slot, new_slots)
        probabilities = sampler.compute_probabilities(logits)
        return sampler.get_next_token(probabilities), cache

    def complete(new_slots, token_ids, lengths, finished, count, stops):
        cache, hidden_states = prefill(backbone, token_ids, lengths, new_slots)
        tokens, mask = _buffer(token_ids, finished, new_slots)

        def next_logits(tokens, cache, index):
            slot = ops.cast(index - 1, "int32")
            logits, h, cache = run_step(tokens[:, slot][:, None], cache, slot, new_slots)
            if not is_stepwise and stops.shape[0]:
                logits = _stay_at_stop(logits, tokens, mask, stops)
            return logits, h, cache

        return _limited(sampler, count)(
            next_logits,
            tokens,
            cache=cache,
            index=token_ids.shape[1],
            mask=mask,
            stop_token_ids=[stops[i] for i in range(stops.shape[0])] or None,
            hidden_states=hidden_states,
            model=backbone,
        )

    compiled = (
        compile_function(function, backbone.variables, sampler.variables)
        for function in (prefill_alone, next_tokens, complete)
    )
    return Functions(*compiled, is_stepwise=is_stepwise)


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


# === The loop of keras-hub's samplers ===


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


def compile_function(function, weights, random_states=()):
    """Compiles as the backend does.

    Args:
        function: takes a static int or None, then tensors.
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
        compiled = _compile_by_jax(function, weights, random_states)
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
