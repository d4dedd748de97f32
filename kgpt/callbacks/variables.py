"""The variables of a training run as arrays, and back: all of them, exactly as they are."""

import keras
import ml_dtypes  # comes with Keras
import numpy as np

from kgpt.callbacks import divided
from kgpt.kernels.platform import least_of_processes
from kgpt.models.default_optimizer import unscaled

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


def to_arrays(
    model, parts=("model", "optimizer", "metrics"), is_divided: bool = False
) -> tuple[dict, dict, str | None]:
    """Returns the variables as arrays.

    Args:
        model: the model.
        parts: names of the parts to return.
        is_divided: bool. Whether the arrays are those of JAX, which stay divided among processes
            and devices as they are, and not numpy's.

    Returns:
        `{"model/00000": array, ...}`; the paths, dtypes and shapes, JSON-serializable; and the path
        of the first of the model's or optimizer's arrays with a NaN or infinity, or None.
    """
    bring_back(model)
    arrays, listed, names, wrong = {}, {}, [], []
    for part in parts:
        own = variables(model)[part]
        listed[part] = [_described(variable) for variable in own]
        for number, (variable, (path, dtype, _)) in enumerate(zip(own, listed[part], strict=True)):
            array = divided.value_of(variable) if is_divided else _to_array(variable, dtype)
            arrays[_key(part, number)] = array
            names.append(path)
            own_parts = divided.own_parts(array) if is_divided else [_as_written(array, dtype)]
            if part != "metrics" and not all(map(_is_finite, own_parts)):
                wrong.append(len(names) - 1)
    first = min(wrong, default=len(names))
    first = least_of_processes(first) if is_divided else first
    return arrays, listed, names[first] if first < len(names) else None


def _described(variable):
    dtype = keras.backend.standardize_dtype(variable.dtype)
    return variable.path, dtype, tuple(variable.shape)


def fits(model, checkpoint, part: str) -> bool:
    """Returns whether the variables of a part have the shapes that those in a checkpoint have."""
    return [tuple(v.shape) for v in variables(model)[part]] == _shapes(checkpoint, part)


def _shapes(checkpoint, part):
    return [
        tuple(shape[0]) if shape else checkpoint.arrays[_key(part, number)].shape
        for number, (_, _, *shape) in enumerate(checkpoint.progress["variables"][part])
    ]


def set_variables(model, checkpoint, parts):
    """Sets the variables of some parts to those of a checkpoint.

    Raises:
        ValueError: if there are others, or of other shapes.
    """
    bring_back(model)
    for part in parts:
        own, listed = variables(model)[part], checkpoint.progress["variables"][part]
        if len(own) != len(listed):
            raise ValueError(
                f"it has {len(listed)} variables of the {part}, and this one {len(own)}."
            )
        for variable, (path, *_), shape in zip(own, listed, _shapes(checkpoint, part), strict=True):
            if tuple(variable.shape) != shape:
                raise ValueError(
                    f"{path} has shape {shape} there, and {tuple(variable.shape)} here."
                )
        keyed = {_key(part, number): variable for number, variable in enumerate(own)}
        arrays = checkpoint.arrays
        if checkpoint.divided is not None:
            arrays = divided.read(checkpoint.divided, keyed)
        for (key, variable), (_, dtype, *_) in zip(keyed.items(), listed, strict=True):
            variable.assign(_as_written(arrays[key], dtype))


def keep_place_in_update(optimizer, batches_done: int):
    """Lets the update that is accumulated have as many batches as before, without what they gave.

    Args:
        optimizer: one whose variables were set to those of a place earlier in the run.
        batches_done: int. How many batches of an update had been accumulated before that.
    """
    optimizer = unscaled(optimizer)
    size = optimizer.gradient_accumulation_steps
    if size:
        iterations = int(optimizer._iterations)
        optimizer._iterations.assign(iterations - iterations % size + batches_done)
        for gradient in optimizer._accumulated_gradients:
            gradient.assign(keras.ops.zeros(gradient.shape))


def batches_of_update(optimizer) -> int:
    """Returns how many batches of an update have been accumulated."""
    optimizer = unscaled(optimizer)
    return int(optimizer._iterations) % (optimizer.gradient_accumulation_steps or 1)


def _is_finite(array):
    # A NaN is least and greatest: no array of bools as large as the weights.
    if array.dtype == ml_dtypes.bfloat16:
        array = array.astype("float32")
    is_exact = array.dtype.kind != "f" or not array.size
    return is_exact or (np.isfinite(array.min()) and np.isfinite(array.max()))


def _key(part, number):
    return f"{part}/{number:05d}"


def _to_array(variable, dtype):
    array = np.asarray(keras.ops.convert_to_numpy(variable))
    # numpy's files don't know bfloat16, and PyTorch gives it as float32.
    return array.astype(_IN_16_BITS[dtype]).view("uint16") if dtype in _IN_16_BITS else array


def _as_written(array, dtype):
    if dtype not in _IN_16_BITS or not isinstance(array, np.ndarray):
        return array
    return array.view(_IN_16_BITS[dtype]).astype("float32")
