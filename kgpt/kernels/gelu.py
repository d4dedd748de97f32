"""GELU by its tanh approximation, as GPT-1 and GPT-2 have it."""

import math

import keras
from keras import ops

from kgpt.kernels.platform import barrier, custom_gradient


def reference(x):
    """Returns `0.5 x (1 + tanh(sqrt(2 / pi) (x + 0.044715 x^3)))` (Hendrycks, Gimpel 2016)."""
    return 0.5 * x * (1 + ops.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x**3)))


def gelu(x):
    """Returns the same by the backend's fastest way.

    PyTorch has one kernel for it. On TensorFlow its derivative is computed in the forward pass, by
    the few operations that the two have in common, and is all that is saved for the backward pass.
    On JAX, where XLA fuses them, both passes compute it, and `x` is all that is saved.
    """
    if keras.config.backend() == "torch":
        return keras.activations.gelu(x, approximate=True)
    return _with_own_gradient(x)


@custom_gradient
def _with_own_gradient(x):
    y, derivative = _value_and_derivative(x)

    def gradient(upstream):
        if keras.config.backend() == "jax":
            return _value_and_derivative(barrier(x, after=upstream))[1] * upstream
        return derivative * upstream

    return y, gradient


def _value_and_derivative(x):
    # 0.5 (1 + tanh(z)) is sigmoid(2 z).
    scale = 2 * math.sqrt(2 / math.pi)
    cubic = (0.044715 * scale) * ops.square(x)
    gate = ops.sigmoid(x * (cubic + scale))
    y = x * gate
    return y, gate + y * (1 - gate) * (3 * cubic + scale)
