"""Which data a run is trained on: what its batches depend on, and fingerprints of the content."""

import hashlib

import keras
import numpy as np

from kgpt.data.array_file import ArrayFile
from kgpt.data.batches import ResumableBatches

_BLOCKS, _BLOCK_BYTES = 64, 2**16
_FILE_BYTES, _ARRAY_BYTES = _BLOCKS * _BLOCK_BYTES, 2**28  # what is read whole

# What fingerprints tell too.
_LEFT_OUT = ("num_files", "num_tokens", "num_examples")


def data_identity(data) -> dict:
    """Returns what the data of a fit are.

    Args:
        data: batches of `kgpt.data`, arrays `x` or `(x, y, sample_weight)`, or another source of
            batches, of which no more is known than its type and its length.
    """
    if isinstance(data, ResumableBatches):
        depends = {k: v for k, v in data._what_batches_depend_on().items() if k not in _LEFT_OUT}
        content = {name: fingerprint(array) for name, array in data._content().items()}
        return {
            "type": type(data).__name__,
            **depends,
            "class_names": getattr(data, "class_names", None),
            **content,
        }
    leaves = keras.tree.flatten(data)
    if leaves and all(one is None or _is_array(one) for one in leaves):
        return {"type": "arrays", **_arrays(data)}
    known = {"type": type(data).__name__}
    for name in ("batch_size", "element_spec"):
        if hasattr(data, name):
            known[name] = str(getattr(data, name))
    try:
        known["length"] = len(data)
    except TypeError:  # of unknown length
        known["length"] = None
    return known


def fingerprint(array) -> str | None:
    """Returns the shape and the dtype of an array, and a hash of its content.

    Of a large array, 64 blocks are looked at, the first and the last among them.
    """
    if array is None:
        return None
    array = array if isinstance(array, np.ndarray | ArrayFile) else _as_numpy(array)
    digest = hashlib.sha256()
    flat = array if isinstance(array, ArrayFile) else array.reshape(-1)
    most = _FILE_BYTES if isinstance(array, ArrayFile | np.memmap) else _ARRAY_BYTES
    if array.dtype.hasobject:
        digest.update("\0".join(map(repr, flat)).encode())
    elif array.nbytes <= most:
        digest.update(np.ascontiguousarray(flat[:]))
    else:
        block = max(1, _BLOCK_BYTES // array.itemsize)
        for start in np.linspace(0, len(flat) - block, _BLOCKS).astype("int64"):
            digest.update(flat[start : start + block].tobytes())
    shape = " x ".join(map(str, array.shape))
    return f"{shape} of {array.dtype}, sha256 {digest.hexdigest()[:16]}"


def _is_array(thing):
    return hasattr(thing, "shape") and hasattr(thing, "dtype")


def _as_numpy(array):
    return keras.ops.convert_to_numpy(array) if keras.ops.is_tensor(array) else np.asarray(array)


def _arrays(data):
    if not (isinstance(data, tuple) and len(data) == 3):
        data = (data, None, None)
    return {name: _nest(part) for name, part in zip(("x", "y", "sample_weight"), data, strict=True)}


def _nest(part):
    """Returns the fingerprints of arrays in dicts and lists."""
    if isinstance(part, dict):
        return {str(name): _nest(value) for name, value in part.items()}
    if isinstance(part, list | tuple):
        return {str(number): _nest(value) for number, value in enumerate(part)}
    return fingerprint(part)
