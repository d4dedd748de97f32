"""Attention of new positions to a cache of keys and values, and the writing of that cache.

A cache is a pair of tensors `(batch, heads, slots, head_dim)`: keys and values. `new` is the number
of new positions, `seen` that of the slots that they may look at, counted from the first.
"""

import math

import keras
import numpy as np
from keras import ops

from kgpt.kernels.attention import softmax
from kgpt.kernels.platform import has_accelerator, is_static_length

PREFIXES_FROM = 128  # slots
BLOCKS_FROM, BLOCK_SIZE = 1024, 128  # new positions


# === The formulas ===


def reference_write(cache, new, index):
    """Returns the cache with the new positions written from slot `index` on.

    The arguments are those of `write`. A product with zeros and ones selects, which all formats of
    `kgpt.convert` can express, and which lets the rows of a batch differ.
    """
    first = ops.expand_dims(index, -1)
    new_slots = first + ops.arange(0, ops.shape(new)[2], dtype="int32")  # (batch, new) or (new,)
    slots = ops.expand_dims(ops.arange(0, ops.shape(cache)[2], dtype="int32"), 1)
    goes_to = ops.equal(slots, ops.expand_dims(new_slots, -2))  # (batch, slots, new)
    goes_to = ops.expand_dims(ops.cast(goes_to, new.dtype), -3)
    is_new = ops.sum(goes_to, axis=-1, keepdims=True) > 0  # (batch, 1, slots, 1)
    return ops.where(is_new, ops.matmul(goes_to, new), cache)


def reference(query, keys, values, visible):
    """Returns `softmax(q k^T / sqrt(head_dim)) v` over the visible slots.

    The arguments are those of `attend`, without `index`.
    """
    keys, values = _first_slots(visible.shape[-1], keys, values)
    query = query * (1 / math.sqrt(query.shape[-1]))
    scores = ops.einsum("bhqd,bhkd->bhqk", query, keys)
    weights = softmax(scores, ops.expand_dims(visible, 1))
    return ops.einsum("bhqk,bhkd->bhqd", weights, values)


# === The choice between the fast paths ===


def write(cache, new, index):
    """Writes keys or values of new positions into a cache, by the fastest way of the backend.

    Args:
        cache: float tensor `(batch, heads, slots, head_dim)`.
        new: float tensor `(batch, heads, new, head_dim)`.
        index: int scalar, or int tensor `(batch,)` for rows that differ: the slot of the first new
            position.

    Returns:
        A tensor like `cache`.
    """
    if not _is_scalar(index):
        return reference_write(cache, new, index)
    if keras.config.backend() == "torch":
        return write_by_index_copy(cache, new, index)
    index = ops.convert_to_tensor(index, "int32")
    zero = ops.zeros_like(index)  # JAX wants one dtype: with x64 on, an int would be int64
    return ops.slice_update(cache, (zero, zero, index, zero), new)


def attend(query, keys, values, visible, index=None):
    """Attends to a cache that holds the new positions already, by the fastest way of the backend.

    Args:
        query: float tensor `(batch, heads, new, head_dim)`.
        keys: float tensor `(batch, heads, slots, head_dim)`.
        values: float tensor like `keys`.
        visible: bool tensor `(batch, new, seen)`: which of the first `seen` slots a position sees,
            at least one. Later slots are seen by no position.
        index: optional int scalar, or int tensor `(batch,)`: the slot of the first new position. If
            it is a scalar, no position may see the slots after the last new one.

    Returns:
        float tensor `(batch, heads, new, head_dim)`.
    """
    if keras.config.backend() == "torch":
        return fused_by_torch(query, keys, values, visible)
    if is_static_length(query.shape[2], BLOCKS_FROM):
        return in_blocks(query, keys, values, visible)
    is_one_position = query.shape[2] == 1 and index is not None and _is_scalar(index)
    is_long = is_static_length(keys.shape[2], PREFIXES_FROM)
    if is_one_position and is_long and not has_accelerator():
        return over_filled_prefix(query, keys, values, visible, index)
    return keys_first(query, keys, values, visible)


# === The fast paths ===


def write_by_index_copy(cache, new, index):
    """Writes as `write` does, in one operation of PyTorch, for a scalar `index`.

    Keras's `slice_update` would be 30 operations there.
    """
    slots = ops.arange(new.shape[2], dtype="int64") + index
    return cache.index_copy(2, slots, new)


def fused_by_torch(query, keys, values, visible):
    """Attends as `reference` does, by PyTorch's kernel, which reads a part of a cache in place.

    Keras's way to the kernel would copy that part.
    """
    from torch.nn.functional import scaled_dot_product_attention

    keys, values = _first_slots(visible.shape[-1], keys, values)
    visible = ops.expand_dims(visible, 1)
    return scaled_dot_product_attention(query, keys, values, attn_mask=visible)


def keys_first(query, keys, values, visible):
    """Attends as `reference` does, with the keys as the first factor of the product.

    So the scores are transposed, which are small, and not the cache.
    """
    keys, values = _first_slots(visible.shape[-1], keys, values)
    query = _swap_last_axes(query * (1 / math.sqrt(query.shape[-1])))
    scores = _swap_last_axes(ops.matmul(keys, query))  # (batch, heads, new, seen)
    return ops.matmul(softmax(scores, ops.expand_dims(visible, 1)), values)


def in_blocks(query, keys, values, visible, block_size=BLOCK_SIZE):
    """Attends as `reference` does, with the scores of one block of new positions at a time."""
    new = query.shape[2]
    blocks = [slice(start, start + block_size) for start in range(0, new, block_size)]
    attended = [keys_first(query[:, :, b], keys, values, visible[:, b]) for b in blocks]
    return ops.concatenate(attended, axis=2)


def over_filled_prefix(query, keys, values, visible, index):
    """Attends as `reference` does, from one position to the filled prefix of a cache alone.

    XLA's shapes are fixed, so the read is compiled for each of the four `prefix_ends`. On a CPU
    this pays twice: half of the slots are empty on average; and with a read of all slots, XLA joins
    the write of the cache, for one row, with the read, for which it copies the whole cache.

    Args:
        query: float tensor `(batch, heads, 1, head_dim)`.
        keys: as for `attend`, with a static number of slots.
        values: as for `attend`.
        visible: as for `attend`.
        index: int scalar: the slot of the position.

    Returns:
        float tensor `(batch, heads, 1, head_dim)`.
    """
    ends = prefix_ends(keys.shape[2])

    def attend_up_to(end):
        return lambda *args: keys_first(*args, visible[:, :, :end])

    smallest = ops.sum(ops.cast(index >= np.array(ends[:-1], "int32"), "int32"))
    return ops.switch(smallest, [attend_up_to(end) for end in ends], query, keys, values)


def prefix_ends(slots: int) -> list[int]:
    """Returns the four sizes in which the filled prefix of a cache is read."""
    return [slots * part // 4 for part in (1, 2, 3, 4)]


# === What they share ===


def _is_scalar(index):
    return len(getattr(index, "shape", ())) == 0


def _first_slots(seen, keys, values):
    if seen == keys.shape[2]:
        return keys, values
    return keys[:, :, :seen], values[:, :, :seen]


def _swap_last_axes(x):
    return ops.transpose(x, (0, 1, 3, 2))
