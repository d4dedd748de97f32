"""Layer norm."""

import keras
from keras import ops

from kgpt.kernels import norm


@keras.saving.register_keras_serializable(package="kgpt")
class LayerNorm(keras.layers.LayerNormalization):
    """Keras's layer over the last axis, with the arithmetic of `kgpt.kernels.norm`.

    `y = gain (x - mean) / sqrt(variance + epsilon) + bias` (Ba et al. 2016, equation 4).

    Args:
        epsilon: float. Added to the variance.
    """

    def __init__(self, epsilon: float = 1e-5, **kwargs):
        super().__init__(epsilon=epsilon, **kwargs)

    def call(self, inputs, training=None):
        inputs = ops.cast(inputs, self.compute_dtype)
        return norm.layer_norm(inputs, self.gamma, self.beta, self.epsilon, training)
