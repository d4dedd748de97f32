"""Padding anywhere in a row, resolved once: real tokens first, in their order, padding last.

Causal attention needs no mask then, since no real token sees what stands after it, and positions
count real tokens. Left, right and scattered padding are one case.
"""

import keras
from keras import ops

from kgpt.kernels.platform import check_shape_of


def to_right_padding(x, padding_mask):
    """Returns the rows of `x` with their real entries first and the others after them.

    Args:
        x: tensor `(batch, length, ...)`, or None.
        padding_mask: bool or int tensor `(batch, length)`, True for real tokens; or None, which
            leaves `x` as it is.
    """
    if x is None or padding_mask is None:
        return x
    check_shape_of("the inputs", x, 2, padding_mask=padding_mask)
    length = ops.shape(padding_mask)[1]
    is_padding = ops.cast(ops.logical_not(ops.cast(padding_mask, "bool")), "int32")
    # Sorted numbers that hold their positions, since ONNX has no stable argsort.
    order = ops.sort(ops.arange(length, dtype="int32") + is_padding * length, axis=1) % length
    return _take(x, order)


def from_right_padding(x, padding_mask):
    """Returns rows in the order that they had before `to_right_padding`.

    Args:
        x: tensor `(batch, length, ...)`.
        padding_mask: as for `to_right_padding`: the mask in the original order.
    """
    if padding_mask is None:
        return x
    real = ops.cast(ops.cast(padding_mask, "bool"), "int32")
    before = ops.cumsum(real, axis=1) - 1
    positions = ops.arange(ops.shape(real)[1], dtype="int32")
    after = ops.sum(real, axis=1, keepdims=True) + positions - before - 1
    return _take(x, ops.where(real > 0, before, after))


def _take(x, order):
    """Returns `x` by an order of each row's own, `(batch, length)`."""
    order = ops.reshape(order, (*ops.shape(order), *(1 for _ in x.shape[2:])))
    return ops.take_along_axis(x, order, axis=1)


@keras.saving.register_keras_serializable(package="kgpt")
class MovePadding(keras.layers.Layer):
    """`to_right_padding` as a layer of a functional model; `from_right_padding` with `back`.

    Args:
        back: bool. Whether rows return to the order that they had before.
    """

    def __init__(self, back: bool = False, **kwargs):
        super().__init__(**kwargs)
        self.back = back
        self.autocast = False

    def call(self, x, padding_mask=None):
        return (from_right_padding if self.back else to_right_padding)(x, padding_mask)

    def compute_output_spec(self, x, padding_mask=None):
        return keras.KerasTensor(x.shape, dtype=x.dtype)

    def get_config(self):
        return {**super().get_config(), "back": self.back}
