"""The variables of a training run as numpy arrays, and back: all of them, exactly as they are."""

import keras
import ml_dtypes  # comes with Keras
import numpy as np

from kgpt.distribution import process
from kgpt.kernels.platform import to_numpy

_IN_16_BITS = {"bfloat16": ml_dtypes.bfloat16, "float16": np.float16}


def variables(model) -> dict[str, list]:
    """Returns the variables of a run by where they belong: model, optimizer, metrics.

    Those of the model are its weights, LoRA's factors and integer kernels apart, and the states of
    its generators of random numbers.
    """
    return {
        "model": list(model.variables),
        "optimizer": list(model.optimizer.variables),
        "metrics": list(model.metrics_variables),
    }


def bring_back(model):
    """Brings the variables back into the model, where they are not within an epoch on JAX."""
    if hasattr(model, "jax_state_sync"):
        model.jax_state_sync()


def to_arrays(model, parts=("model", "optimizer", "metrics")) -> tuple[dict, dict, str | None]:
    """Returns the variables as arrays, of several processes in the first one alone.

    Those that are divided among processes are gathered one by one; the others keep none of them.

    Returns:
        `{"model/00000": array, ...}`; the paths and dtypes, JSON-serializable; and the path of the
        first of the model's or optimizer's arrays with a NaN or infinity, or None.
    """
    bring_back(model)
    arrays, listed, wrong = {}, {}, None
    for part in parts:
        own = variables(model)[part]
        listed[part] = [(v.path, keras.backend.standardize_dtype(v.dtype)) for v in own]
        for number, (variable, (path, dtype)) in enumerate(zip(own, listed[part], strict=True)):
            array = _to_array(variable)
            if wrong is None and part != "metrics" and not _is_finite(_as_written(array, dtype)):
                wrong = path
            if process()[0] == 0:
                arrays[_key(part, number)] = array
    return arrays, listed, wrong


def fits(model, listed, arrays, part: str) -> bool:
    """Returns whether the variables of a part have the shapes that those in a checkpoint have."""
    shapes = [tuple(v.shape) for v in variables(model)[part]]
    return shapes == [arrays[_key(part, number)].shape for number in range(len(listed[part]))]


def set_variables(model, listed, arrays, parts):
    """Sets the variables of some parts to what `to_arrays` returned.

    Raises:
        ValueError: if there are others, or of other shapes.
    """
    bring_back(model)
    for part in parts:
        own = variables(model)[part]
        if len(own) != len(listed[part]):
            raise ValueError(
                f"it has {len(listed[part])} variables of the {part}, and this one {len(own)}."
            )
        for number, (variable, (path, dtype)) in enumerate(zip(own, listed[part], strict=True)):
            array = arrays[_key(part, number)]
            if tuple(variable.shape) != array.shape:
                raise ValueError(
                    f"{path} has shape {array.shape} there, and {tuple(variable.shape)} here."
                )
            variable.assign(_as_written(array, dtype))


def keep_place_in_update(optimizer, batches_done: int):
    """Lets the update that is accumulated have as many batches as before, without what they gave.

    Args:
        optimizer: one whose variables were set to those of a place earlier in the run.
        batches_done: int. How many batches of an update had been accumulated before that.
    """
    optimizer = getattr(optimizer, "inner_optimizer", optimizer)
    size = optimizer.gradient_accumulation_steps
    if size:
        iterations = int(optimizer._iterations)
        optimizer._iterations.assign(iterations - iterations % size + batches_done)
        for gradient in optimizer._accumulated_gradients:
            gradient.assign(keras.ops.zeros(gradient.shape))


def batches_of_update(optimizer) -> int:
    """Returns how many batches of an update have been accumulated."""
    optimizer = getattr(optimizer, "inner_optimizer", optimizer)
    return int(optimizer._iterations) % (optimizer.gradient_accumulation_steps or 1)


def _is_finite(array):
    # A NaN is least and greatest: no array of bools as large as the weights.
    is_exact = array.dtype.kind != "f" or not array.size
    return is_exact or (np.isfinite(array.min()) and np.isfinite(array.max()))


def _key(part, number):
    return f"{part}/{number:05d}"


def _to_array(variable):
    array = to_numpy(variable)
    dtype = _IN_16_BITS.get(keras.backend.standardize_dtype(variable.dtype))
    # numpy's files don't know bfloat16, and PyTorch gives it as float32.
    return array if dtype is None else array.astype(dtype).view("uint16")


def _as_written(array, dtype):
    if dtype not in _IN_16_BITS:
        return array
    return array.view(_IN_16_BITS[dtype]).astype("float32")
