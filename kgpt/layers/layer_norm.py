"""Layer norm with a gradient of its own."""

import keras
from keras import ops

from kgpt.kernels.platform import barrier


@keras.saving.register_keras_serializable(package="kgpt")
class LayerNorm(keras.layers.LayerNormalization):
    """As Keras's over the last axis, in about half the operations of a training step.

    `y = gain (x - mean) / sqrt(variance + epsilon) + bias` (Ba et al. 2016, equation 4). For the
    backward pass one array of the input's size is kept. PyTorch has a kernel for it.

    Args:
        epsilon: float. Added to the variance.
    """

    def __init__(self, epsilon: float = 1e-5, **kwargs):
        super().__init__(epsilon=epsilon, **kwargs)

    def call(self, inputs, training=None):
        if not training or keras.config.backend() == "torch":
            return super().call(inputs)
        # The reshape hands over tensors: TensorFlow's custom gradients take no variables.
        gain, bias = (ops.reshape(v, (-1,)) for v in (self.gamma, self.beta))
        return _normalize(ops.cast(inputs, self.compute_dtype), gain, bias, self.epsilon)


def _normalize(inputs, gain, bias, epsilon):
    def mean(x):
        return ops.mean(x, axis=-1, keepdims=True)

    @ops.custom_gradient
    def normalize(x, gain, bias):
        centred = ops.cast(x, "float32")
        centred = centred - mean(centred)
        inverse = ops.rsqrt(mean(ops.square(centred)) + epsilon)  # of the standard deviation
        normed = centred * inverse
        kept = ops.cast(normed, x.dtype)

        def gradient(*args, upstream=None):
            upstream = args[0] if upstream is None else upstream
            normed = ops.cast(barrier(kept, after=upstream), "float32")
            d_y = ops.cast(upstream, "float32")
            d_normed = d_y * gain
            d_x = d_normed - mean(d_normed) - normed * mean(d_normed * normed)
            d_x = ops.cast(d_x * inverse, x.dtype)
            axes = tuple(range(len(x.shape) - 1))
            return d_x, ops.sum(d_y * normed, axis=axes), ops.sum(d_y, axis=axes)

        return ops.cast(normed * gain + bias, x.dtype), gradient

    return normalize(inputs, gain, bias)
