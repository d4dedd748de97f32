"""Rotary positions."""

import numpy as np
from keras import ops

from kgpt.kernels.platform import wide


def rotate(x, position_ids):
    """Rotates pairs of entries by angles that grow with the position (Su et al. 2021, 3.2.2).

    Entries `i` and `i + d/2` of `d` are a pair; at position `m` it is rotated by
    `m 10000^(-2i/d)`. The product of two such vectors depends on the distance of their positions.

    Args:
        x: float tensor `(batch, length, heads, head_dim)`, `head_dim` even.
        position_ids: int tensor `(length,)` or `(batch, length)`.

    Returns:
        A tensor like `x`. Angles are float32 at least, whatever the dtype is.
    """
    half = x.shape[-1] // 2
    dtype = wide(x.dtype)
    frequencies = (10000.0 ** (-np.arange(half) / half)).astype(dtype)
    # A tensor: PyTorch multiplies by an array in numpy, which what is recorded or exported lacks.
    frequencies = ops.convert_to_tensor(frequencies, dtype)
    angles = ops.expand_dims(ops.cast(position_ids, dtype), (-2, -1)) * frequencies
    if dtype == "float64":  # large angles would lose most in Keras's cosine, float32 on JAX
        angles = angles % (2 * np.pi)
    cos, sin = ops.cos(angles), ops.sin(angles)  # (length, 1, half), or with a batch
    first, second = ops.split(ops.cast(x, dtype), 2, axis=-1)
    rotated = ops.concatenate([first * cos - second * sin, second * cos + first * sin], axis=-1)
    return ops.cast(rotated, x.dtype)
