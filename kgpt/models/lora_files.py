"""Files of LoRA's additions alone. The functions are methods of `GPTBackbone` and of tasks."""

import contextlib
import hashlib
import itertools
import json
import os
from pathlib import Path

import h5py
import keras
import numpy as np

from kgpt.arguments import checked
from kgpt.data.columns import read_class_names
from kgpt.files import make_folder, written_whole
from kgpt.hdf5 import SafeFile
from kgpt.models.freezing import body_of, own_weights
from kgpt.models.lora import SETTINGS, matrices
from kgpt.reading import check_file, check_finite, errors_name, one_line

# The file's attributes: rank, scale and names as JSON, and the SHA-256 of all that is in it.
_DESCRIPTION, _DIGEST = "kgpt_lora", "kgpt_sha256"
_CLASS_NAMES = "class_names"
_PARTS = ("lora_kernel_a", "lora_kernel_b")


@checked
def save_lora_weights(self, path: str | os.PathLike):
    """Writes LoRA's additions, and a head's own weights, to a small file.

    At rank 8 it has 1% of the size of GPT-1. Of a task it has also the weights that are not the
    body's, such as the map to the classes, and the names of the classes: they were trained with the
    additions. The body's own weights are not in it: `load_lora_weights` gives what this model gives
    only over the body that the additions were trained on. The file is written whole or not at all.

    Args:
        self: the `GPTBackbone`, or a task over it.
        path: the file, which ends in `.lora.h5`; an existing one is replaced.

    Raises:
        ValueError: without LoRA, and for another ending.
        OSError: if it can't be written; an existing file stays.

    Example:
        lm.enable_lora(8)
        lm.save_lora_weights("films.lora.h5")
    """
    backbone = body_of(self)
    if backbone.lora_rank is None:
        raise ValueError(
            "There are no additions to save. Received: a model without LoRA. enable_lora(rank) "
            "makes them; model.save_weights keeps all weights."
        )
    path = _checked_path(path)
    make_folder(path.parent)
    with (
        written_whole(path) as unfinished,
        SafeFile(unfinished) as opened,
        h5py.File(opened, "w") as file,
    ):
        arrays = {}
        for name, factors in _factors(backbone).items():
            arrays |= zip((f"{name}/{part}" for part in _PARTS), factors, strict=True)
        arrays |= {f"head/{i}": weight for i, weight in enumerate(own_weights(self))}
        arrays = {name: _array(weight) for name, weight in arrays.items()}
        if getattr(self, "class_names", None):  # in an array, since attributes are small
            text = json.dumps(list(self.class_names))
            arrays[_CLASS_NAMES] = np.frombuffer(text.encode(), "uint8")
        for name, array in arrays.items():
            file[name] = array
        file.attrs[_DESCRIPTION] = json.dumps(_description(backbone))
        file.attrs[_DIGEST] = _digest(file.attrs[_DESCRIPTION], arrays)


@checked
def load_lora_weights(self, path: str | os.PathLike):
    """Takes the additions of a file that `save_lora_weights` wrote, and a head's own weights.

    A model without LoRA has it enabled as it was in the file's model: compile it again if it was
    compiled. A head takes the weights of the file's head, and the names of its classes if it has
    none. It keeps its own if the file was written from a `GPTBackbone` or a `CausalLM`, which take
    no head's weights in turn.

    Args:
        self: the `GPTBackbone`, or a task over it, whose body has the weights that the additions
            were trained on.
        path: the file.

    Raises:
        ValueError: if the file is damaged, or file and model do not fit; the model is then as it
            was.
        FileNotFoundError: if there is no such file.

    Example:
        lm.enable_lora(8)
        lm.save_lora_weights("films.lora.h5")
        fresh = kgpt.CausalLM(kgpt.GPTBackbone.from_config(backbone.get_config()))
        fresh.load_lora_weights("films.lora.h5")
    """
    backbone, path = body_of(self), check_file(_checked_path(path), "save_lora_weights writes one.")
    own = own_weights(self)
    with _opened(path) as file:
        description = _read_description(path, file)
        if backbone.lora_rank is not None and _description(backbone) != description:
            raise ValueError(
                "LoRA of the file and of the model must be the same. "
                f"Received: {description} in {path}, {_description(backbone)} in the model."
            )
        datasets = _datasets(path, file)
        head, names = datasets.pop("head", []), datasets.pop(_CLASS_NAMES, [])
        _check_shapes(path, datasets, _shapes(backbone, description))
        if own and head:
            _check_shapes(path, {"head": head}, {"head": [tuple(weight.shape) for weight in own]})
        every = itertools.chain(head, names, *datasets.values())
        arrays = {one.name.strip("/"): one[()] for one in every}
        _check_content(path, file, arrays)
        class_names = _new_names(self, path, arrays if own and head and names else {})
    factors = {name: [arrays[f"{name}/{part}"] for part in _PARTS] for name in datasets}
    own, head = (own, [arrays[f"head/{i}"] for i in range(len(head))]) if own and head else ([], [])
    if backbone.lora_rank is None:
        backbone.enable_lora(**description)
    for name, variables in _factors(backbone).items():
        for variable, value in zip(variables, factors[name], strict=True):
            variable.assign(value)
    for variable, value in zip(own, head, strict=True):
        variable.assign(value)
    if class_names:
        self.class_names = class_names


def _new_names(model, path, arrays) -> list[str] | None:
    """Returns a file's names of the classes for a head that has none; refuses another order."""
    if _CLASS_NAMES not in arrays or not hasattr(model, "class_names"):
        return None
    found = read_class_names(json.loads(arrays[_CLASS_NAMES].tobytes()))
    own = model.class_names
    if own and own != found and sorted(own) == sorted(found):
        raise ValueError(
            "The file's head and the model's must count the classes in the same order. Received: "
            f"class_names={found} in {path}, {own} in the model."
        )
    return None if own else found


def _checked_path(path):
    if not os.fspath(path).endswith(".lora.h5"):
        raise ValueError(
            f"The name of a file of LoRA's additions must end in '.lora.h5'. Received: path={path}."
        )
    return Path(path)


@contextlib.contextmanager
def _opened(path):
    """Gives the HDF5 file; what its library says of a damaged one becomes one line."""
    try:
        with h5py.File(path) as file:
            yield file
    except ValueError as error:
        if str(path) in str(error):
            raise
        raise _no_additions(path, error) from None
    except (OSError, RuntimeError, KeyError, TypeError, AttributeError) as error:
        raise _no_additions(path, error) from None


def _no_additions(path, reason):
    return ValueError(
        f"There are no additions of LoRA that kgpt has saved in the file {path}, or it is damaged: "
        f"{one_line(reason)}. Try another copy."
    )


def _read_description(path, file) -> dict:
    """Returns the arguments of `enable_lora` in a file."""
    description = json.loads(file.attrs[_DESCRIPTION])
    unknown = sorted(description.keys() - SETTINGS.keys())
    if unknown:
        raise ValueError(
            f"{path} has settings of LoRA that this version does not know. Received: "
            f"{', '.join(unknown)[:200]}. Try a later version of kgpt."
        )
    with errors_name(path):
        return {name: check(name, description[name]) for name, check in SETTINGS.items()}


def _datasets(path, file) -> dict[str, list]:
    """Returns the arrays in a file, not read yet: those of each matrix, and `"head"`."""
    groups = {}
    for block in file:
        if block == _CLASS_NAMES:
            groups[block] = [_member(file, block)]
        elif block == "head":
            group = _member(file, block)
            groups[block] = [_member(group, str(i)) for i in range(len(group))]
        else:
            for matrix in _member(file, block):
                group = _member(_member(file, block), matrix)
                groups[f"{block}/{matrix}"] = [_member(group, part) for part in _PARTS]
    size = path.stat().st_size
    for dataset in (one for group in groups.values() for one in group):
        if dataset.external or dataset.is_virtual or dataset.nbytes > size:
            raise _no_additions(path, f"{dataset.name} is larger than the file, or not in it")
    return groups


def _member(group, name):
    """Returns what is in a group itself: links could lead to other files."""
    if not isinstance(group.get(name, getlink=True), h5py.HardLink):
        raise KeyError(f"there is no {name} in {group.name}")
    return group[name]


def _check_content(path, file, arrays):
    """Raises ValueError for other content than was written, and for NaN and infinity."""
    expected = file.attrs.get(_DIGEST)  # files from before it was written have none
    if expected is not None and expected != _digest(file.attrs[_DESCRIPTION], arrays):
        raise ValueError(
            f"{path} is damaged: its content is not what was written. Try another copy."
        )
    for name, array in arrays.items():
        if array.dtype.kind == "f":
            check_finite(array, f"{name} of {path}", "Try an earlier file.")


def _digest(description: str, arrays: dict) -> str:
    digest = hashlib.sha256(description.encode())
    for name in sorted(arrays):
        array = np.asarray(arrays[name])
        digest.update(f"{name} {array.dtype.str} {array.shape}".encode())
        digest.update(np.ascontiguousarray(array).tobytes())
    return digest.hexdigest()


def _description(backbone) -> dict:
    return {
        "rank": backbone.lora_rank,
        "lora_alpha": float(backbone.lora_alpha or backbone.lora_rank),
        "target_layer_names": list(backbone.lora_target_layer_names),
    }


def _factors(backbone) -> dict:
    targets = matrices(backbone, backbone.lora_target_layer_names)
    return {name: layer.lora_factors for name, layer, _ in targets}


def _shapes(backbone, description) -> dict:
    """Returns the shapes of the factors of a body, with LoRA or before it is enabled."""
    rank, shapes = description["rank"], {}
    for name, layer, parts in matrices(backbone, description["target_layer_names"]):
        units = layer.units // len(parts) * sum(parts)
        shapes[name] = [(layer.input_spec.axes[-1], rank), (rank, units)]
    return shapes


def _check_shapes(path, values, shapes):
    for name in sorted({*values, *shapes}):
        received = [tuple(value.shape) for value in values.get(name, ())]
        if received != shapes.get(name, []):
            raise ValueError(
                f"The file must be of a model with the same sizes. Received: {path}, in which "
                f"{name} has weights of shapes {received}, for {shapes.get(name, [])} in the model."
            )


def _array(weight):
    array = keras.ops.convert_to_numpy(weight)
    return array.astype("float32") if array.dtype == "bfloat16" else array  # for HDF5
