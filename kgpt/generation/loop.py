"""`generate`: from prompts to text, window by window."""

import itertools

import numpy as np
from keras import ops

from kgpt.arguments import checked
from kgpt.generation import arguments
from kgpt.generation.compiled import functions_for
from kgpt.generation.layout import in_sight, lay_out, sizes


@checked
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

    The first call for a new sampler, batch size or range of lengths compiles; later calls reuse
    the compiled functions, with the model's current weights. Lengths are rounded up to powers of
    two for this, which costs memory but no steps. Rows of a batch do not influence each other.

    Args:
        model: a `CausalLM`, or an object with the attributes `backbone` and `tokenizer`.
        prompts: text or token ids, one prompt or many of any lengths: str, list of str, list or
            array of int, list of those, or array `(batch, length)`. An empty prompt starts from the
            tokenizer's end-of-text token, which is not part of the result.
        max_new_tokens: int. Number of tokens after which a continuation ends.
        sampler: `"greedy"`, `"top_k"`, `"top_p"`, `"random"`, `"beam"` or `"contrastive"`, with
            keras-hub's settings (k=5 for top-k, p=0.1 for top-p); or, for other settings, an
            object such as `keras_hub.samplers.TopPSampler(p=0.9, temperature=0.8)`. A `k` above
            the vocabulary's size is all of it.
        stop_token_ids: int or several: tokens that end a continuation. The result is cut before
            them. "auto" is the tokenizer's end-of-text token, if it has one; None is no token.
        seed: int in [0, 2**31). The same seed gives the same continuation on the same backend.
            Without it calls differ; calls with one sampler object continue its random numbers.
        return_prompt: bool. Whether the result begins with the prompt.
        stream: bool. Whether to return an iterator over the result for one prompt while it is
            generated: pieces of text that end with a whole character, or token ids one by one.
            Joined, they are what is returned otherwise. Not for samplers that look ahead (beam and
            contrastive).
        sliding_window: bool. Whether to continue beyond the backbone's `max_sequence_length`: of
            a row that reaches it, as a prompt alone may, the model then sees the last half, with
            positions from 0.

    Returns:
        The kind of the prompt: str for text, list of int for a list of ids, numpy array for an
        array; a list of these for many prompts. With `stream`, an iterator.

    Raises:
        TypeError: for an argument that `generate` lacks.
        ValueError: if the model can't read a prompt, for text without a tokenizer, for arguments
            and settings of a sampler out of range, and for lengths beyond `max_sequence_length`
            without `sliding_window`.

    Example:
        lm.generate("def main(", max_new_tokens=50, sampler="top_p", seed=0)
        for piece in lm.generate("def main(", stream=True):
            print(piece, end="", flush=True)
    """
    backbone, tokenizer = model.backbone, model.tokenizer
    window = backbone.max_sequence_length
    many, is_single = arguments.read_prompts(prompts)
    rows = arguments.encode(many, tokenizer, backbone.vocabulary_size)
    starts = [row or [arguments.end_of_text(tokenizer)] for row in rows]
    arguments.check_length(max_new_tokens, max(map(len, starts)), window, sliding_window)
    stops = arguments.read_stops(stop_token_ids, tokenizer, arguments.written_vocabulary(model))
    sampler = arguments.read_sampler(sampler)
    states = sampler.variables if seed is None else arguments.read_seed(seed, sampler)
    functions = functions_for(model, sampler)
    if stream:
        arguments.check_stream(many, is_single, sampler, functions.is_stepwise)
        new = _stream(functions, states, starts[0], max_new_tokens, window, stops)
        is_text = isinstance(many[0], str)
        new = stream_text(tokenizer, starts[0], new) if is_text else new
        prompt = [many[0]] if is_text else rows[0]
        return itertools.chain(prompt, new) if return_prompt else new
    continuations = _continue(functions, states, starts, max_new_tokens, window, stops)
    results = [
        _result(prompt, row, start, new, tokenizer, return_prompt)
        for prompt, row, start, new in zip(many, rows, starts, continuations, strict=True)
    ]
    return results[0] if is_single else results


def _result(prompt, row, start, new, tokenizer, return_prompt):
    """Returns a continuation as the kind that its prompt is, with the prompt if asked for."""
    if isinstance(prompt, str):
        text = tokenizer.decode(start + new)[len(tokenizer.decode(start)) :]
        return prompt + text if return_prompt else text
    ids = row + new if return_prompt else new
    return np.array(ids, "int32") if isinstance(prompt, np.ndarray) else ids


# === Over the windows ===


def _continue(functions, states, contexts, max_new_tokens, window, stops):
    """Returns the new tokens of each row, without the stop token."""
    continuations = [[] for _ in contexts]
    finished, stop_array = np.zeros(len(contexts), "bool"), np.array(stops, "int32")
    while max_new_tokens and not finished.all():
        contexts = [in_sight(context, window) for context in contexts]
        count, prompt_slots, new_slots = sizes(contexts, max_new_tokens, window)
        tokens = functions.complete(
            states, new_slots, *lay_out(contexts, prompt_slots), finished, count, stop_array
        )
        tokens = ops.convert_to_numpy(tokens)[:, prompt_slots : prompt_slots + count].tolist()
        for row, new in enumerate(tokens):
            if finished[row]:
                continue
            end = next((i for i, token in enumerate(new) if token in stops), None)
            continuations[row] += new[:end]
            finished[row] = end is not None
            # Of a finished row the stop token is left, by which the sampler knows.
            contexts[row] = contexts[row] + new if end is None else [new[end]]
        max_new_tokens -= count
    return continuations


def _stream(functions, states, context, max_new_tokens, window, stops):
    """Yields the new tokens of one row, without the stop token."""
    while max_new_tokens:
        context = in_sight(context, window)
        count, prompt_slots, new_slots = sizes([context], max_new_tokens, window)
        cache = functions.prefill(states, new_slots, *lay_out([context], prompt_slots))
        for slot in range(prompt_slots - 1, prompt_slots - 1 + count):
            token_ids = np.array([context[-1:]], "int32")
            token, cache = functions.step(states, new_slots, token_ids, cache, slot)
            token = int(ops.convert_to_numpy(token)[0])
            if token in stops:
                return
            yield token
            context = [*context, token]
        max_new_tokens -= count


def stream_text(tokenizer, start, tokens):
    """Yields the text of new tokens; the bytes of an incomplete character wait for the rest."""
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
