"""Numbers, texts, arrays and collections of these <-> JSON and arrays, as checkpoints keep them."""

import collections

import numpy as np

_COLLECTIONS = {"tuple": tuple, "set": set, "frozenset": frozenset, "deque": collections.deque}
_MANY = 100  # floats that are kept as an array


class NotPlainError(TypeError):
    """A value that is no number, text or array, nor a collection of these."""


def encoded(value, arrays: dict, name: str):
    """Returns a value in the terms of JSON; its arrays go into `arrays`, under names of their own.

    Args:
        value: None, bool, int, float, str, numpy array or number, or list, tuple, set, deque or
            dict of these.
        arrays: dict that the arrays are added to, all of dtypes that a file of numpy can hold.
        name: str that the arrays' names begin with.

    Raises:
        NotPlainError: for anything else.
    """
    if value is None or type(value) in (bool, int, float, str):
        return value
    if isinstance(value, np.generic) and type(value.item()) in (bool, int, float, str):
        return {"number": [value.item(), _name(value.dtype)]}
    if isinstance(value, np.ndarray):
        array, dtype = _storable(value)
        return {"array": [_add(array, arrays, name), dtype]}
    if isinstance(value, dict):
        return {"dict": [[encoded(one, arrays, name) for one in item] for item in value.items()]}
    if isinstance(value, list):
        if len(value) >= _MANY and all(type(item) is float for item in value):
            return {"floats": _add(np.array(value), arrays, name)}
        return [encoded(item, arrays, name) for item in value]
    for kind, of_kind in _COLLECTIONS.items():
        if isinstance(value, of_kind) and not hasattr(value, "_fields"):
            items = sorted(value, key=repr) if isinstance(value, set | frozenset) else value
            return {kind: [encoded(item, arrays, name) for item in items]}
    raise NotPlainError(f"a {type(value).__name__}")


def decoded(value, arrays: dict):
    """Returns the value that `encoded` was given."""
    if isinstance(value, list):
        return [decoded(item, arrays) for item in value]
    if not isinstance(value, dict):
        return value
    ((kind, content),) = value.items()
    if kind == "number":
        number, dtype = content
        return np.array(number, dtype)[()]
    if kind == "array":
        key, dtype = content
        return np.array(arrays[key]).view(dtype)
    if kind == "floats":
        return arrays[content].tolist()
    content = [decoded(item, arrays) for item in content]
    return dict(content) if kind == "dict" else _COLLECTIONS[kind](content)


def _add(array, arrays, name):
    key = f"{name}/{len(arrays)}"
    arrays[key] = array
    return key


def _storable(array):
    """Returns an array as a file of numpy can hold it, and the name of its own dtype."""
    dtype = array.dtype
    if dtype.hasobject or dtype.names:
        raise NotPlainError(f"an array of {dtype}")
    if _name(dtype) != dtype.str:  # bfloat16 and its like
        array = array.view(f"u{dtype.itemsize}")
    return array, _name(dtype)


def _name(dtype):
    """Returns the name by which numpy finds a dtype again."""
    return dtype.str if np.dtype(dtype.str) == dtype else dtype.name
