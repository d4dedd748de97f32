"""A linear map."""

import keras

from kgpt.kernels import linear
from kgpt.low_rank import LowRankDense


@keras.saving.register_keras_serializable(package="kgpt")
class Dense(LowRankDense):
    """Keras's layer, with the product of `kgpt.kernels.linear`.

    Args:
        *args, **kwargs: as for `keras.layers.Dense`.
    """

    split = None  # how devices share its arithmetic, as for `kgpt.kernels.linear.affine`

    def call(self, inputs, training=None):
        outputs = linear.affine(inputs, self.kernel, self.bias, training, self.split)
        return outputs if self.activation is None else self.activation(outputs)

    def quantize(self, mode=None, type_check=True, config=None):
        # Keras refuses all subclasses, since they might compute another product: this one does not.
        super().quantize(mode, type_check=False, config=config)


def built_dense(layer, units, inputs_shape, initializer, name, split, activation=None):
    """Returns a built `Dense` with the dtype policy of the layer around it, frozen with it."""
    dense = Dense(
        units,
        activation=activation,
        kernel_initializer=initializer,
        dtype=layer.dtype_policy,
        trainable=layer.trainable,
        name=name,
    )
    dense.split = split
    dense.build(inputs_shape)
    return dense
