"""Dropout with half the random numbers: on a CPU they are most of its cost."""

import keras
from keras import ops

from kgpt.kernels.platform import barrier

# A random float32 has 23 bits: 11 for one entry, 12 for another.
_LEVELS = 2048


def reference(x, keep, rate: float):
    """Returns `x` with dropped entries set to 0 and the others divided by the share that is kept.

    Args:
        x: float tensor.
        keep: bool tensor that broadcasts to the shape of `x`: which entries are kept.
        rate: float in [0, 1). The share that is dropped.
    """
    return ops.where(keep, x * scale(rate), 0)


def dropout(x, rate: float, seed, shape=None):
    """Returns `x` after dropout (Srivastava et al. 2014, section 4).

    Args:
        x: float tensor.
        rate: float in [0, 1). The share that is dropped, rounded to a multiple of 1/2048.
        seed: `keras.random.SeedGenerator`.
        shape: optional shape of the mask, which is broadcast to that of `x`; None is that of `x`.
    """
    shape = ops.shape(x) if shape is None else shape
    return reference(x, keep_mask(shape, rate, seed), rate)


def keep_mask(shape, rate: float, seed):
    """Returns a random bool tensor that is True with probability 1 - `rate`.

    One random number from 0 to 2048 decides on two entries: its whole part on one, the rest on the
    other.
    """
    *others, length = shape
    draws = keras.random.uniform((*others, (length + 1) // 2), 0, _LEVELS, "float32", seed)
    rests = draws - ops.floor(draws)
    keep = [draws >= _dropped_levels(rate), rests >= _dropped_levels(rate) / _LEVELS]
    return ops.concatenate(keep, axis=-1)[..., :length]


def repeatable_masks(rate: float, seed):
    """Returns a function that draws masks by number, the same one each time for a number.

    A backward pass can so draw again what the forward pass has drawn, instead of saving it.

    Args:
        rate: float in [0, 1).
        seed: `keras.random.SeedGenerator`; advanced once, here.

    Returns:
        A function of a float tensor, of whose shape the mask is and which is computed first (or
        else TensorFlow would draw many masks at once), and an int or int scalar tensor, the number.
    """
    state = seed.next()

    def draw(x, number):
        offset = number * ops.array([1_000_003, 0], dtype="int32")
        numbered = state + ops.cast(barrier(offset, after=x), state.dtype)
        with keras.StatelessScope(state_mapping=[(seed.state, numbered)]):
            return keep_mask(ops.shape(x), rate, seed)

    return draw


def scale(rate: float) -> float:
    """Returns what a kept entry is multiplied by: 1 over the share that is kept, as rounded."""
    return _LEVELS / (_LEVELS - _dropped_levels(rate))


def _dropped_levels(rate: float) -> int:
    """Returns how many of 2048 equal parts of a random number's range drop an entry."""
    return min(round(rate * _LEVELS), _LEVELS - 1)
