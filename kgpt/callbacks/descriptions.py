"""Models, layers, optimizers and losses in words and numbers, without what Keras numbers itself."""

import re

import keras
import numpy as np

# Where a thing comes from, what Keras calls it, and what is asked for elsewhere.
_LEFT_OUT = ("module", "registered_name", "build_config", "compile_config", "name", "trainable")
_NUMBER = re.compile(r"_\d+$")


def described(thing):
    """Returns what a thing is: its type and its config, of numbers, texts, lists and dicts."""
    if isinstance(thing, str):
        return thing.removeprefix("kgpt>")  # as it is registered
    if isinstance(thing, bool | int | float | None):
        return thing
    if isinstance(thing, np.ndarray | np.generic):
        return thing.tolist()
    if isinstance(thing, list | tuple):
        return [described(item) for item in thing]
    if isinstance(thing, set | frozenset):
        return sorted(map(described, thing), key=repr)
    if isinstance(thing, dict):
        return _of_dict(thing)
    if isinstance(thing, type) or not hasattr(thing, "get_config"):
        return getattr(thing, "__qualname__", None) or type(thing).__qualname__
    try:
        config = thing.get_config()
    except Exception:  # a class of the user's may have none
        config = _attributes(thing)
    if isinstance(thing, keras.DTypePolicy) and "name" in config:
        return config["name"]
    return {"type": type(thing).__name__, **_of_dict(config)}


def _attributes(thing):
    """Returns the public numbers and texts of an object without a config."""
    return {
        name: value
        for name, value in vars(thing).items()
        if isinstance(value, bool | int | float | str) and not name.startswith("_")
        if name not in ("built", "stop_training")
    }


def _of_dict(config):
    if "class_name" not in config:
        return {str(k): described(v) for k, v in config.items() if k not in _LEFT_OUT}
    inner = config.get("config")
    if not isinstance(inner, dict):  # a function
        return described(inner)
    if config["class_name"].endswith("DTypePolicy") and "name" in inner:
        return inner["name"]
    return {"type": config["class_name"], **_of_dict(inner)}


def layers_of(model, without=None) -> dict:
    """Returns the configs of the layers in a model, in its order; those of `without` left out."""
    left_out = set() if without is None else set(map(id, without._flatten_layers()))
    layers = [
        layer for layer in model._flatten_layers(include_self=False) if id(layer) not in left_out
    ]
    return {
        name: {"type": type(layer).__name__} if isinstance(layer, keras.Model) else described(layer)
        for name, layer in numbered_names(layers)
    }


def wiring(model) -> dict:
    """Returns how the layers of a functional model are connected, by their numbers."""
    if not hasattr(model, "_operations_by_depth"):
        return {}
    numbers = {operation.name: i for i, operation in enumerate(model._operations)}
    nodes = [
        [numbers.get(parent.operation.name) for parent in node.parent_nodes]
        for operation in model._operations
        for node in operation._inbound_nodes
    ]
    return {"wiring": str(nodes)}


def numbered_names(layers):
    """Yields the layers with the names that they would have in a fresh process."""
    counts = {}
    for layer in layers:
        base = _NUMBER.sub("", layer.name)
        number = counts[base] = counts.get(base, -1) + 1
        # Keras calls the first one `dense`; a name of kgpt's counts from 0.
        has_number = number or layer.name.endswith("_0")
        yield (f"{base}_{number}" if has_number else base), layer
