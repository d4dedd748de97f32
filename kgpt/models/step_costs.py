"""What a training step computes and keeps, from a model's sizes alone."""

import collections
import math
import re
from dataclasses import dataclass

import keras
import numpy as np

from kgpt.kernels.attention import LOOPED_FROM, TILED_FROM, groups_of
from kgpt.kernels.cross_entropy import rows_at_once


def num_scores(length: int) -> int:
    """Returns how many scores of a row and head attention computes."""
    if length < TILED_FROM:
        return length**2
    return sum((group.stop - group.start) * group.stop for group in groups_of(length))


# === Arithmetic ===


def flops(model, batch_size: int, length: int) -> int:
    """Returns the floating-point operations of the matrix products in a training step.

    A product of `(m, k)` and `(k, n)` has `2 m k n`. The optimizer's are `optimizer_flops`.

    Args:
        model: a task over a `GPTBackbone`, which needs no values.
        batch_size: int. Rows of tokens.
        length: int. Tokens in a row.
    """
    body, rows = model.backbone, batch_size * length
    reached = _reached(body)
    total = sum(
        _of_block(block, body, batch_size, length, block in reached)
        for block in body.decoder_blocks
    )
    if getattr(model, "lm_loss_weight", 1):  # the logits, and the gradients of their two factors
        is_learned = bool(body.token_embedding.trainable_variables)
        matrix = body.vocabulary_size * body.hidden_dim
        total += 2 * rows * matrix * (1 + bool(reached) + is_learned)
    return total


def _reached(body) -> list:
    """Returns the blocks that have a backward pass: from the first trained weight on."""
    if body.embedding.trainable_variables:
        return body.decoder_blocks
    trained = [i for i, block in enumerate(body.decoder_blocks) if block.trainable_variables]
    return body.decoder_blocks[trained[0] :] if trained else []


def _of_block(block, body, batch_size, length, is_reached):
    rows, inner = batch_size * length, body.hidden_dim * body.intermediate_dim
    maps = {
        block.attention.query_key_value: 3 * body.hidden_dim**2,
        block.attention.output_projection: body.hidden_dim**2,
        block.feed_forward.expansion: inner,
        block.feed_forward.output_projection: inner,
    }
    product = 2 * batch_size * num_scores(length) * body.hidden_dim  # of all heads
    forward = 2 * rows * sum(maps.values()) + 2 * product
    if not is_reached:
        return forward
    learned = sum(size for dense, size in maps.items() if dense.trainable_variables)
    backward = 2 * rows * (sum(maps.values()) + learned)
    backward += product * (5 if length >= TILED_FROM else 4)  # tiles compute their weights again
    if block.recompute:  # the block's output, if nothing but a sum follows, is not needed
        backward += forward - 2 * rows * inner * block.norm_first
    factors = [dense.lora_factors for dense in maps if dense.lora_enabled]
    additions = sum(math.prod(a.shape) * b.shape[1] for a, b in factors)
    return forward + backward + 2 * additions * (3 + block.recompute)


def optimizer_flops(optimizer, variables) -> int:
    """Returns the floating-point operations of Muon's matrix products; others have none.

    Args:
        optimizer: Keras optimizer.
        variables: the variables that are trained.
    """
    if not isinstance(optimizer, keras.optimizers.Muon):
        return 0
    total = 0
    for variable in variables:
        if not optimizer._should_use_adamw(variable):
            short, long = sorted(variable.shape)
            total += optimizer.ns_steps * (4 * short**2 * long + 2 * short**3)
    return total


# === Memory ===


@dataclass(frozen=True)
class Memory:
    """Bytes on a device in a training step.

    Attributes:
        weights: int. All of them, and what else the model holds.
        gradients: int. Of all that is trained.
        optimizer: int. What the optimizer keeps.
        activations: int. What the forward pass keeps for the backward pass.
        loss: int. The gradients that the loss computes, and the logits of a chunk of rows.
        working: int. What the backward pass of a block needs besides.
        peak: int. The most at a time: activations go as gradients come.
    """

    weights: int
    gradients: int
    optimizer: int
    activations: int
    loss: int
    working: int
    peak: int


def memory(model, optimizer, batch_size: int, length: int, axes=(1, 1), style="data") -> Memory:
    """Returns what a training step on JAX holds on each device.

    Args:
        model: a task over a `GPTBackbone`, which needs no values.
        optimizer: Keras optimizer that is not built.
        batch_size: int. Rows of tokens, over all devices.
        length: int. Tokens in a row.
        axes: pair of ints. How many devices divide the batch, and how many the model.
        style: str. How they share the weights, as in `kgpt.distribution.layout_map`.
    """
    held = [axes[1] if "tensor" in style else 1, axes[0] if "fsdp" in style else 1]
    weights, gradients, kept = (
        _bytes(variables, held)
        for variables in (
            *(model.variables, model.trainable_variables),
            optimizer_state(optimizer, model.trainable_variables),
        )
    )
    body, rows = model.backbone, batch_size // axes[0]
    states = rows * length * body.hidden_dim * _itemsize(body.compute_dtype)
    block = _kept_by_a_block(body, rows, length, axes[1])
    activations = len(_reached(body)) * (states if body.recompute else block)
    dropout = body.decoder_blocks[0].attention.dropout
    arrays = _WORKING if length < LOOPED_FROM else _LOOPED[dropout > 0]
    working = states * (_WHOLE + (arrays - _WHOLE) // axes[1])
    if body.recompute:  # with loops about half of it is there at the peak
        working += block if length < LOOPED_FROM else block // 2
    if TILED_FROM <= length < LOOPED_FROM:
        tile = 2 * rows * body.num_heads * groups_of(length)[0].stop * length
        working += tile * _itemsize(body.compute_dtype) // axes[1]
    if body.compute_dtype != body.variable_dtype:  # the weights, cast
        working += weights * _itemsize(body.compute_dtype) // _itemsize(body.variable_dtype)
    if "fsdp" in style:  # a block's weights, gathered, and their gradients
        working += 2 * _bytes(body.decoder_blocks[0].variables, held[:1])
    matrix = 4 * body.vocabulary_size * body.hidden_dim
    matrix //= _parts((body.vocabulary_size, body.hidden_dim), held)
    loss = 0
    if getattr(model, "lm_loss_weight", 1):  # the gradient of the matrix and a chunk's share of it
        loss = 2 * matrix + 2 * states + 2 * 4 * _logits(body, rows * length) // axes[1]
    most = max(activations + loss, activations + matrix + working, gradients + matrix)
    return Memory(weights, gradients, kept, activations, loss, working, weights + kept + most)


def optimizer_state(optimizer, variables) -> list:
    """Returns what an optimizer keeps, as `keras.KerasTensor`s.

    It is built for a small variable, of a shape of its own, in place of all that are alike.

    Args:
        optimizer: Keras optimizer that is not built.
        variables: the variables that are trained, which need no values.
    """
    kinds = collections.Counter(
        (tuple(v.shape), v.dtype, re.sub(r"\d+", "0", v.path)) for v in variables
    )
    stand_ins, kind_of = [], {}
    for i, (shape, dtype, path) in enumerate(kinds, start=2):
        small = (i, *[1] * (len(shape) - 1))
        stand_ins.append(keras.Variable("zeros", shape=small, dtype=dtype))
        stand_ins[-1]._path = path  # by which optimizers treat them
        kind_of[small] = (shape, dtype, path)
    optimizer.build(stand_ins)
    state = []
    for variable in optimizer.variables:
        kind = kind_of.get(tuple(variable.shape))
        shape = variable.shape if kind is None else kind[0]
        state += [keras.KerasTensor(shape, variable.dtype)] * kinds.get(kind, 1)
    return state


# How many arrays of the hidden states' size the backward pass of a block takes, also where
# attention goes through loops, without dropout and with it: as XLA's memory shows it on a CPU.
_WORKING, _LOOPED = 20, {False: 50, True: 70}
_WHOLE = 6  # of these, what the devices of the model axis do not divide


def _kept_by_a_block(body, batch_size, length, parts):
    """Returns the bytes that a block keeps for its backward pass; `parts` devices share heads."""
    rows, size = batch_size * length, _itemsize(body.compute_dtype)
    whole = 4 * body.hidden_dim  # of each norm its standardized input and its output
    # Queries, keys, values, what is attended; what goes into GELU and what comes out.
    shared = 4 * body.hidden_dim + 2 * body.intermediate_dim
    kept = rows * (size * (whole + shared // parts) + 4 * body.hidden_dim)  # and dropout's numbers
    dropout = body.decoder_blocks[0].attention.dropout
    scores = batch_size * body.num_heads * num_scores(length) // parts
    if length < TILED_FROM:  # the weights, before and after dropout
        return kept + scores * size * (3 if dropout else 2)
    return kept + (2 * scores if dropout and length < LOOPED_FROM else 0)


def _logits(body, rows) -> int:
    """Returns how many logits the loss computes at a time."""
    chunks = -(-rows // rows_at_once(body.vocabulary_size))
    return -(-rows // chunks) * body.vocabulary_size


def _bytes(variables, held) -> int:
    return sum(math.prod(v.shape) * _itemsize(v.dtype) // _parts(v.shape, held) for v in variables)


def _parts(shape, held) -> int:
    """Returns into how many parts devices divide a matrix: along each dimension once."""
    if len(shape) < 2:
        return 1
    parts, free = 1, list(shape)
    for devices in held:
        divisible = [size for size in free if size % devices == 0]
        if divisible:
            free.remove(divisible[0])
            parts *= devices
    return parts


def _itemsize(dtype) -> int:
    return 2 if dtype == "bfloat16" else np.dtype(dtype).itemsize
