"""When things are computed, where memory depends on it."""

import keras
from keras import ops

from kgpt.devices import is_jax_on_cpu


def after(event, x):
    """`x`, of which nothing is made before `event` is known.

    Mostly for gradients that make anew what the forward pass made, or something else from its
    arrays alone, such as a slice. TensorFlow runs each operation as soon as its inputs are there:
    it would make these in the forward pass and keep them. XLA would find that they are known
    already, and keep those; on TensorFlow it still may. PyTorch does what it is told when it is
    told.

    Args:
        event: float tensor. What to wait for: in a gradient, the upstream one.
        x: tensor.
    """
    backend = keras.config.backend()
    if is_jax_on_cpu():  # where XLA drops barriers before it looks for what is known
        one_entry = event[(slice(1),) * len(event.shape)]
        return x + ops.cast(ops.any(ops.isnan(one_entry)), x.dtype)  # plus zero
    if backend == "jax":
        import jax

        return jax.lax.optimization_barrier((x, event))[0]
    if backend == "tensorflow":
        import tensorflow as tf

        with tf.control_dependencies([event]):
            return tf.identity(x)
    return x
