"""Muon, whose iteration runs in bfloat16 and so costs less."""

import keras
from keras import ops

from kgpt.adamw import ByUpdate


@keras.saving.register_keras_serializable(package="kgpt")
class Muon(ByUpdate, keras.optimizers.Muon):
    """Keras's Muon, with Newton and Schulz's iteration in bfloat16, as its authors run it.

    The iteration turns the momentum of a matrix into the nearest semi-orthogonal matrix, in 15
    products of matrices, and it corrects its own errors of rounding (Jordan et al. 2024). All else
    is float32, the momentum included.

    Args:
        learning_rate: as for `keras.optimizers.Muon`.
        *args: likewise.
        **kwargs: likewise.
    """

    def zeropower_via_newtonschulz5(self, x, steps):
        """Returns the nearest semi-orthogonal matrix, about, to a matrix or a stack of them."""
        # Divided by its norm first: a gradient of float16's size could be 0 in 16 bits.
        x = x / (ops.norm(x, axis=(-2, -1), keepdims=True) + 1e-7)
        found = super().zeropower_via_newtonschulz5(ops.cast(x, "bfloat16"), steps)
        return ops.cast(found, x.dtype)
