"""Dropout."""

import keras
from keras import ops

from kgpt.kernels import dropout as kernel


@keras.saving.register_keras_serializable(package="kgpt")
class Dropout(keras.layers.Dropout):
    """Keras's layer, with the dropout of `kgpt.kernels.dropout`, which draws half the numbers.

    Args:
        rate: float in [0, 1). Share of the entries dropped in training, rounded to a multiple of
            1/2048.
        noise_shape: optional shape of the mask, which is broadcast to that of the input; None
            stands for the input's size.
        seed: as for `keras.layers.Dropout`.
    """

    def call(self, inputs, training=False):
        if not training or self.rate == 0:
            return inputs
        shape = ops.shape(inputs)
        if self.noise_shape is not None:
            shape = [
                of_input if own is None else own
                for own, of_input in zip(self.noise_shape, shape, strict=True)
            ]
        return kernel.dropout(inputs, self.rate, self.seed_generator, shape)
