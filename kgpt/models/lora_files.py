"""Files of LoRA's additions alone. The functions are methods of `GPTBackbone` and of tasks."""

import json
import os
from pathlib import Path

import h5py
import keras

from kgpt.arguments import checked
from kgpt.files import make_folder, written_whole
from kgpt.hdf5 import SafeFile
from kgpt.models.freezing import body_of
from kgpt.models.lora import matrices

_DESCRIPTION = "kgpt_lora"  # the file's attribute: rank, scale and names as JSON


@checked
def save_lora_weights(self, path: str | os.PathLike):
    """Writes LoRA's additions, and a head's own weights, to a small file.

    At rank 8 it has 1% of the size of GPT-1. Of a task it has also the weights that are not the
    body's, such as the map to the classes: they were trained with the additions. The body's own
    weights are not in it: `load_lora_weights` gives what this model gives only over the body that
    the additions were trained on. The file is written whole or not at all.

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
        file.attrs[_DESCRIPTION] = json.dumps(_description(backbone))
        for name, factors in _factors(backbone).items():
            file[f"{name}/lora_kernel_a"], file[f"{name}/lora_kernel_b"] = map(_array, factors)
        for i, weight in enumerate(_own_weights(self)):
            file[f"head/{i}"] = _array(weight)


@checked
def load_lora_weights(self, path: str | os.PathLike):
    """Takes the additions of a file that `save_lora_weights` wrote, and a head's own weights.

    A model without LoRA has it enabled as it was in the file's model: compile it again if it was
    compiled. A head takes the weights of the file's head, and keeps its own if the file was
    written from a `GPTBackbone` or a `CausalLM`, which take no head's weights in turn.

    Args:
        self: the `GPTBackbone`, or a task over it, whose body has the weights that the additions
            were trained on.
        path: the file.

    Raises:
        ValueError: if file and model do not fit; the model is then as it was.
        FileNotFoundError: if there is no such file.

    Example:
        lm.enable_lora(8)
        lm.save_lora_weights("films.lora.h5")
        fresh = kgpt.CausalLM(kgpt.GPTBackbone.from_config(backbone.get_config()))
        fresh.load_lora_weights("films.lora.h5")
    """
    backbone = body_of(self)
    description, factors, head = _read(_checked_path(path))
    if backbone.lora_rank is not None and _description(backbone) != description:
        raise ValueError(
            "LoRA of the file and of the model must be the same. "
            f"Received: {description} in {path}, {_description(backbone)} in the model."
        )
    own = _own_weights(self)
    if not own or not head:
        own, head = [], []
    _check_shapes(path, factors, _shapes(backbone, description))
    _check_shapes(path, {"head": head}, {"head": [tuple(weight.shape) for weight in own]})
    if backbone.lora_rank is None:
        backbone.enable_lora(**description)
    for name, variables in _factors(backbone).items():
        for variable, value in zip(variables, factors[name], strict=True):
            variable.assign(value)
    for variable, value in zip(own, head, strict=True):
        variable.assign(value)


def _checked_path(path):
    if not os.fspath(path).endswith(".lora.h5"):
        raise ValueError(
            f"The name of a file of LoRA's additions must end in '.lora.h5'. Received: path={path}."
        )
    return Path(path)


def _read(path):
    """Returns the description, the factors and the head's weights in a file."""
    if not path.exists():
        raise FileNotFoundError(f"There is no file {path}.")
    try:
        with h5py.File(path) as file:
            description = json.loads(file.attrs[_DESCRIPTION])
            groups = {f"{b}/{m}": file[b][m] for b in file if b != "head" for m in file[b]}
            factors = {
                name: [group["lora_kernel_a"][()], group["lora_kernel_b"][()]]
                for name, group in groups.items()
            }
            head = [file[f"head/{i}"][()] for i in range(len(file.get("head", ())))]
    except (OSError, KeyError) as error:
        raise ValueError(
            f"There are no additions of LoRA that kgpt has saved in the file {path}. {error}"
        ) from error
    return description, factors, head


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
        received = [value.shape for value in values.get(name, ())]
        if received != shapes.get(name, []):
            raise ValueError(
                f"The file must be of a model with the same sizes. Received: {path}, in which "
                f"{name} has weights of shapes {received}, for {shapes.get(name, [])} in the model."
            )


def _own_weights(model) -> list:
    """Returns the weights of a task that are not its body's."""
    of_body = {id(weight) for weight in body_of(model).weights}
    return [weight for weight in model.weights if id(weight) not in of_body]


def _array(weight):
    array = keras.ops.convert_to_numpy(weight)
    return array.astype("float32") if array.dtype == "bfloat16" else array  # for HDF5
