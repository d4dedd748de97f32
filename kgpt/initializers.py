"""What weights start at: GPT's normal distribution, or zeros where a file follows."""

import contextlib
import contextvars

import keras
from keras.src.backend.common import global_state

_start_at_zero = contextvars.ContextVar("start_at_zero", default=False)


@contextlib.contextmanager
def starting_at_zero():
    """Layers made inside draw no random numbers, which takes time and memory.

    For models whose weights are about to be read from a file.
    """
    token = _start_at_zero.set(True)
    try:
        yield
    finally:
        _start_at_zero.reset(token)


def normal_initializer(initializer):
    """Returns a copy of the initializer, or GPT's N(0, 0.02) if None (GPT-1, section 4.1).

    A copy, since an initializer gives the same numbers at each call: no two weights may share it.
    """
    if _start_at_zero.get():
        return keras.initializers.Zeros()
    if initializer is None:
        return keras.initializers.RandomNormal(stddev=0.02)
    initializer = keras.initializers.get(initializer)
    is_object = isinstance(initializer, keras.initializers.Initializer)
    return initializer.clone() if is_object else initializer


@contextlib.contextmanager
def without_values():
    """Variables made inside have a shape and no value, and so take no memory.

    For looking at a model's sizes. It can't be run, except by JAX on values that it is given.
    """
    # Keras would give values to variables on its list when it next leaves such a scope.
    waiting = global_state.get_global_attribute("uninitialized_variables", [])
    global_state.set_global_attribute("uninitialized_variables", [])
    try:
        with keras.StatelessScope(initialize_variables=False):
            yield
    finally:
        global_state.set_global_attribute("uninitialized_variables", waiting)
