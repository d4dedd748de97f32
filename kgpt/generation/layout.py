"""Where the tokens of a batch stand: slots of the cache, positions, windows.

Rows of a batch have prompts of different lengths. So that all of them write to the same slot of
the cache in a step and yet have the positions that they would have alone, a row of the token buffer
with `prompt_slots` slots for prompts is laid out like this (prompt "abc", continuation "def"):

    slot        0  1  2  ...          prompt_slots - 1 | prompt_slots ...
    token       a  b  -  -  -  -  -   c                | d  e  f
    position    0  1                  2                | 3  4  5
"""

import numpy as np
from keras import ops

_SMALLEST_BUCKET = 32


def in_sight(context, window):
    """Returns the tokens of a row that the model sees: of a full window the last half."""
    return context[-max(1, window // 2) :] if len(context) >= window else context


def sizes(contexts, max_new_tokens, window):
    """Returns how many tokens fit in the window, and the slots for prompts and for new tokens.

    Slots are rounded up to powers of two, so that few sizes are compiled.
    """
    longest = max(map(len, contexts))
    count = max(1, min(max_new_tokens, window - longest))
    return count, _bucket(longest - 1, window - 1) + 1, _bucket(count, window)


def _bucket(size, most):
    return min(most, max(_SMALLEST_BUCKET, 1 << (size - 1).bit_length()))


def lay_out(contexts, prompt_slots):
    """Returns token ids `(batch, prompt_slots)`, laid out as above, and lengths `(batch,)`."""
    token_ids = np.zeros((len(contexts), prompt_slots), "int32")
    for row, context in zip(token_ids, contexts, strict=True):
        row[: len(context) - 1] = context[:-1]
        row[-1] = context[-1]
    return token_ids, np.array([len(context) for context in contexts], "int32")


def prompt_layout(lengths, prompt_slots):
    """Returns what the prompts' slots hold and see.

    Args:
        lengths: int tensor `(batch,)`: lengths of the prompts.
        prompt_slots: int.

    Returns:
        Which slots hold a token, bool `(batch, prompt_slots)`; which slots each sees, bool
        `(batch, prompt_slots, prompt_slots)`; and positions, int `(batch, prompt_slots)`.
    """
    slots = ops.arange(prompt_slots, dtype="int32")
    is_last = slots == prompt_slots - 1
    is_token = ops.logical_or(slots < lengths[:, None] - 1, is_last)
    # Before all tokens but the last stand tokens alone; what an empty slot sees does not matter.
    visible = ops.logical_or(is_token[:, None, :], ops.logical_not(is_last)[:, None])
    visible = ops.logical_and(visible, slots <= slots[:, None])
    return is_token, visible, ops.where(is_last, lengths[:, None] - 1, slots)


def step_layout(lengths, slot, prompt_slots, seen):
    """Returns what a new token sees, and its position.

    Args:
        lengths: int tensor `(batch,)`: lengths of the prompts.
        slot: int scalar: where the new tokens stand.
        prompt_slots: int.
        seen: int: the number of slots to look at, `slot` among them.

    Returns:
        Which slots the token of each row sees, bool `(batch, 1, seen)`; and positions, int
        `(batch, 1)`.
    """
    lengths = lengths[:, None]
    slots = ops.arange(seen, dtype="int32")
    visible = ops.logical_and(slots >= prompt_slots - 1, slots <= slot)
    visible = ops.logical_or(slots < lengths - 1, visible)  # (batch, seen)
    return visible[:, None], lengths + (slot - prompt_slots)


def without_gap(tokens, lengths, slot, prompt_slots):
    """Returns each row's text, position by position.

    Args:
        tokens: int tensor `(batch, slots)`.
        lengths: int tensor `(batch,)`: lengths of the prompts.
        slot: int scalar: where the last tokens of the text stand.
        prompt_slots: int.

    Returns:
        Tokens, int `(batch, slots)`, and how many of them are the text so far, int `(batch,)`.
    """
    positions = ops.arange(tokens.shape[1], dtype="int32")
    last = lengths[:, None] - 1
    slots = ops.where(positions < last, positions, positions - last + prompt_slots - 1)
    slots = ops.minimum(slots, tokens.shape[1] - 1)
    return ops.take_along_axis(tokens, slots, axis=1), lengths + (slot + 1 - prompt_slots)
