"""Numbers, texts, arrays and collections of these <-> JSON and arrays, as checkpoints keep them."""

import collections

import numpy as np

_COLLECTIONS = {"tuple": tuple, "set": set, "frozenset": frozenset, "deque": collections.deque}


class NotPlainError(TypeError):
    """A value that is no number, text or array, nor a collection of these."""


def encoded(value, arrays: dict, name: str):
    """Returns a value in the terms of JSON; its arrays go into `arrays`, under names of their own.

    Args:
        value: None, bool, int, float, str, numpy array or number, or list, tuple, set, deque or
            dict of these.
        arrays: dict that the arrays are added to.
        name: str that the arrays' names begin with.

    Raises:
        NotPlainError: for anything else.
    """
    if value is None or type(value) in (bool, int, float, str):
        return value
    if isinstance(value, np.ndarray | np.generic):
        return _encoded_array(np.asarray(value), arrays, name, isinstance(value, np.generic))
    if isinstance(value, dict):
        items = [[encoded(part, arrays, name) for part in item] for item in value.items()]
        return {"dict": items}
    if isinstance(value, list):
        return [encoded(item, arrays, name) for item in value]
    for kind, of_kind in _COLLECTIONS.items():
        if isinstance(value, of_kind) and not hasattr(value, "_fields"):
            items = sorted(value, key=repr) if isinstance(value, set | frozenset) else value
            return {kind: [encoded(item, arrays, name) for item in items]}
    raise NotPlainError(f"a {type(value).__name__}")


def _encoded_array(array, arrays, name, is_number):
    if array.dtype.hasobject:
        raise NotPlainError("an array of objects")
    key = f"{name}/{len(arrays)}"
    # The file format of numpy has no bfloat16 and its like: they are kept as their bytes.
    is_known = array.dtype.isbuiltin == 1 or array.dtype.kind in "US"
    arrays[key] = array if is_known else array.view(f"u{array.dtype.itemsize}")
    return {"number" if is_number else "array": [key, array.dtype.name if not is_known else None]}


def decoded(value, arrays: dict):
    """Returns the value that `encoded` was given."""
    if isinstance(value, list):
        return [decoded(item, arrays) for item in value]
    if not isinstance(value, dict):
        return value
    ((kind, content),) = value.items()
    if kind in ("array", "number"):
        key, dtype = content
        array = np.array(arrays[key])
        array = array if dtype is None else array.view(dtype)
        return array if kind == "array" else array[()]
    content = [decoded(item, arrays) for item in content]
    return dict(content) if kind == "dict" else _COLLECTIONS[kind](content)
