"""Layer norm over the last axis."""

import keras
from keras import ops

from kgpt.kernels.platform import barrier, custom_gradient, wide


def reference(x, gain, bias, epsilon: float):
    """Returns `gain (x - mean) / sqrt(variance + epsilon) + bias` (Ba et al. 2016, equation 4)."""
    centred = x - _mean(x)
    return gain * centred / ops.sqrt(_mean(ops.square(centred)) + epsilon) + bias


def layer_norm(x, gain, bias, epsilon: float, training: bool = False):
    """Returns the same by the backend's fastest way, in float32 or float64 inside.

    Args:
        x: float tensor `(..., hidden_dim)`.
        gain: float tensor or variable `(hidden_dim,)`.
        bias: float tensor or variable `(hidden_dim,)`.
        epsilon: float. Added to the variance.
        training: bool. Whether the result will be differentiated: TensorFlow and JAX then take a
            gradient of half the operations, which saves one array of the input's size.

    Returns:
        A tensor like `x`.
    """
    if not training or keras.config.backend() == "torch":
        return ops.cast(ops.layer_normalization(x, gain, bias, -1, epsilon), x.dtype)
    # The reshape hands over tensors: TensorFlow's custom gradients take no variables.
    return _with_own_gradient(epsilon)(x, *(ops.reshape(v, (-1,)) for v in (gain, bias)))


def _with_own_gradient(epsilon):
    @custom_gradient
    def normalize(x, *parameters):
        dtype = wide(x.dtype)
        gain, bias = (ops.cast(v, dtype) for v in parameters)
        centred = ops.cast(x, dtype)
        centred = centred - _mean(centred)
        inverse = ops.rsqrt(_mean(ops.square(centred)) + epsilon)  # of the standard deviation
        normed = centred * inverse
        saved = ops.cast(normed, x.dtype)

        def gradient(upstream):
            normed = ops.cast(barrier(saved, after=upstream), dtype)
            d_y = ops.cast(upstream, dtype)
            d_normed = d_y * gain
            d_x = d_normed - _mean(d_normed) - normed * _mean(d_normed * normed)
            axes = tuple(range(len(x.shape) - 1))
            return (
                ops.cast(d_x * inverse, x.dtype),
                ops.cast(ops.sum(d_y * normed, axis=axes), parameters[0].dtype),
                ops.cast(ops.sum(d_y, axis=axes), parameters[1].dtype),
            )

        return ops.cast(normed * gain + bias, x.dtype), gradient

    return normalize


def _mean(x):
    return ops.mean(x, axis=-1, keepdims=True)
