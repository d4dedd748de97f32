"""What the backend computes on, for the few places where the fastest way depends on it."""

import functools

import keras


@functools.cache
def has_accelerator() -> bool:
    """Whether the backend that runs computes on something else than the CPU."""
    if keras.config.backend() == "torch":
        return keras.ops.zeros(()).device.type != "cpu"
    return any(not device.startswith("cpu") for device in keras.distribution.list_devices())


def is_jax_on_cpu() -> bool:
    """Whether XLA computes on a CPU, at Keras's JAX backend."""
    return keras.config.backend() == "jax" and not has_accelerator()
