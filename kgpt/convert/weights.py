"""Weights by their names in transformers' files, read and written without a second whole copy."""

import functools
import importlib
import json
import math
import os
import re
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import keras
import numpy as np
from keras import ops

from kgpt.arguments import RULES
from kgpt.models.presets import SIZES, num_parameters
from kgpt.reading import check_file, check_finite, errors_name, one_line, read_json

_FLOATS = {"float64": "F64", "float32": "F32", "float16": "F16", "bfloat16": "BF16"}
_BYTES_AT_ONCE = 2**22
# Old files hold the causal mask of each layer too.
MASK_BUFFER = re.compile(r"h\.\d+\.attn\.(bias|masked_bias)")
_HEADS = ("score.", "multiple_choice_head.")


def named_weights(backbone) -> dict[str, tuple]:
    """Returns the weights of a body, in the order of OpenAI's GPT-1 release.

    Args:
        backbone: a `GPTBackbone`.

    Returns:
        dict by the names in transformers' files, without the prefix `transformer.`; the values are
        pairs of a layer and the attribute of it that is the weight.
    """
    positions, tokens = ("wpe", "wte") if backbone.norm_first else _GPT1_EMBEDDINGS
    names = {
        f"{positions}.weight": (backbone.embedding.position_embedding, "embeddings"),
        f"{tokens}.weight": (backbone.token_embedding, "embeddings"),
    }
    for i, block in enumerate(backbone.decoder_blocks):
        layers = {
            "attn.c_attn": block.attention.query_key_value,
            "attn.c_proj": block.attention.output_projection,
            "ln_1": block.attention_norm,
            "mlp.c_fc": block.feed_forward.expansion,
            "mlp.c_proj": block.feed_forward.output_projection,
            "ln_2": block.feed_forward_norm,
        }
        for name, layer in layers.items():
            is_norm = name.startswith("ln")
            names[f"h.{i}.{name}.weight"] = (layer, "gamma" if is_norm else "kernel")
            names[f"h.{i}.{name}.bias"] = (layer, "beta" if is_norm else "bias")
    if backbone.final_norm is not None:
        names["ln_f.weight"] = (backbone.final_norm, "gamma")
        names["ln_f.bias"] = (backbone.final_norm, "beta")
    return names


_GPT1_EMBEDDINGS = ("positions_embed", "tokens_embed")


# === Into variables ===


def assign(variable, read: Callable[[int, int], np.ndarray], name: str) -> None:
    """Writes a tensor into a variable, some rows at a time.

    Args:
        variable: a Keras variable.
        read: gives the rows from a start to an end, of any float type.
        name: the tensor's name, for the message.

    Raises:
        ValueError: for NaN and infinity.
    """
    for start, stop in _row_ranges(variable.shape):
        rows = _finite(read(start, stop), name)
        if stop - start == variable.shape[0]:
            variable.assign(rows)
        else:
            _assign_rows(variable, start, ops.convert_to_tensor(rows, dtype=variable.dtype))


def _finite(rows, name) -> np.ndarray:
    """Returns numbers as float32; raises ValueError for NaN and infinity."""
    with np.errstate(over="ignore"):
        rows = rows.astype("float32")
    hint = "The file is damaged, or the training of the model failed: try an earlier checkpoint."
    check_finite(rows, name, hint)
    return rows


def _row_ranges(shape):
    """Starts and ends of groups of rows that are small beside a model."""
    rows = int(shape[0])
    step = max(1, _BYTES_AT_ONCE // (4 * max(1, int(np.prod(shape[1:])))))
    return [(start, min(start + step, rows)) for start in range(0, rows, step)]


def _assign_rows(variable, start, rows):
    """Overwrites rows in place; each backend has its own way."""
    stop = start + rows.shape[0]
    if keras.config.backend() == "tensorflow":
        # By indices, since the assignment to a slice makes a copy of the whole first.
        variable.value.scatter_nd_update(ops.arange(start, stop)[:, None], rows)
    elif keras.config.backend() == "torch":
        variable.value.data[start:stop] = rows
    else:
        updated = _update_in_place()(variable.value, rows, start)
        variable.assign(updated.block_until_ready())


@functools.cache
def _update_in_place():
    import jax

    update = functools.partial(jax.lax.dynamic_update_slice_in_dim, axis=0)
    return jax.jit(update, donate_argnums=0)


# === From safetensors ===


class Tensor(NamedTuple):
    """A tensor in a safetensors file, not read yet."""

    path: Path
    name: str
    shape: tuple[int, ...]
    dtype: str

    def read(self, start: int, stop: int) -> np.ndarray:
        """Returns the rows from `start` to `stop`."""
        # Opened for each part: mapped pages count as memory of the process until it is closed.
        with _open(self.path) as file:
            return file.get_slice(self.name)[start:stop]


def find_tensors(folder: Path) -> dict[str, Tensor]:
    """Returns the tensors of a folder, in one file or several.

    Args:
        folder: holds `model.safetensors`, or `model.safetensors.index.json` and what it names.

    Returns:
        dict of `Tensor` by name without the prefix `transformer.`; old files' masks are left out.

    Raises:
        FileNotFoundError: if a file is missing.
        ValueError: if a file is damaged, or a tensor is there twice.
        ImportError: if safetensors is not installed.
    """
    index = folder / "model.safetensors.index.json"
    names = ["model.safetensors"]
    if os.path.lexists(index):
        with errors_name(index):
            names = sorted(set(read_json(index)["weight_map"].values()))
    tensors = {}
    with errors_name(index):
        paths = [folder / Path(name).name for name in names]
    for path in paths:
        for tensor in _tensors_of(path):
            name = tensor.name.removeprefix("transformer.")
            if name in tensors:
                raise ValueError(f"Each tensor must be there once. Received: {name} twice.")
            tensors[name] = tensor
    return {name: t for name, t in tensors.items() if not MASK_BUFFER.fullmatch(name)}


def _tensors_of(path) -> list[Tensor]:
    if not os.path.lexists(path):
        files = sorted(os.listdir(path.parent))
        hint = (
            "Weights in other formats, such as pytorch_model.bin, are not read; transformers' "
            "save_pretrained makes this one."
        )
        if "task.json" in files:  # a folder of keras-hub
            theirs = f"keras_hub.models.GPT2CausalLM.from_preset({str(path.parent)!r})"
            hint = f"Try kgpt.from_keras_hub({theirs})."
        raise FileNotFoundError(
            f"There is no {path.name}. Received: {path.parent}, with {files}. {hint}"
        )
    check_file(path)
    try:
        with _open(path) as file:  # which compares the header with the size of the file
            slices = {name: file.get_slice(name) for name in file.offset_keys()}
            return [Tensor(path, n, tuple(s.get_shape()), s.get_dtype()) for n, s in slices.items()]
    except (import_extra("safetensors").SafetensorError, ValueError, OSError) as error:
        raise ValueError(
            f"{path} is damaged, or no safetensors file: {one_line(error)}. Try another copy."
        ) from None


def _open(path):
    return import_extra("safetensors").safe_open(path, "numpy")


def import_extra(name: str):
    """Imports a package of the extra `hub`, or says how to install it."""
    try:
        return importlib.import_module(name)
    except ImportError as error:
        raise ImportError(
            f"Exchange with Hugging Face needs {name}, which is not installed. "
            "Try: pip install safetensors huggingface_hub"
        ) from error


def check_size(options: dict, shapes: dict[str, tuple]) -> None:
    """Raises ValueError for a model much larger than its weights, before memory is taken for it.

    Args:
        options: the arguments of a `GPTBackbone`.
        shapes: the shapes of the tensors in the files, by name.
    """
    for name in SIZES:
        if options.get(name) is not None:
            RULES[name](name, options[name])
    needed, found = num_parameters(**options), sum(map(math.prod, shapes.values()))
    num_blocks = len({name.split(".")[1] for name in shapes if name.startswith("h.")})
    if needed > 2 * found + _SLACK or options["num_layers"] > 2 * num_blocks + _SLACK_OF_BLOCKS:
        sizes = ", ".join(f"{name}={options[name]}" for name in SIZES if options.get(name))
        raise ValueError(
            "The weights must be those of the model in the config. Received: "
            f"{found:,} numbers in {num_blocks} blocks for a model of {needed:,}, with {sizes}. "
            "The config is damaged, or of another model: try another copy."
        )


# Below, the tensors that are missing are named one by one, after the model has been made.
_SLACK, _SLACK_OF_BLOCKS = 10_000, 8


def read_weights(backbone, head: dict[str, tuple], tensors: dict[str, Tensor]) -> None:
    """Fills the weights of a model, tensor by tensor.

    Args:
        backbone: a `GPTBackbone`.
        head: the weights of a head as in `named_weights`, matrices transposed in the file; if
            empty, heads in the file are left alone.
        tensors: as from `find_tensors`.

    Raises:
        ValueError: before anything is read, naming the tensors that are missing, unknown, of
            another shape or no floats; and if the output is not tied to the token embedding.
    """
    tensors, weights = dict(tensors), {**named_weights(backbone), **head}
    if not head:
        tensors = {name: t for name, t in tensors.items() if not name.startswith(_HEADS)}
    tokens, output = list(weights)[1], tensors.pop("lm_head.weight", None)
    if output is not None and not _same(tensors.setdefault(tokens, output), output):
        raise ValueError(
            "The output must be tied to the token embedding. "
            f"Received: lm_head.weight and {tokens} with different numbers."
        )
    variables = {name: getattr(*weight) for name, weight in weights.items()}
    _check_tensors(variables, head, tensors)
    for name, variable in variables.items():
        tensor = tensors[name]
        with errors_name(getattr(tensor, "path", name)):  # of nanoGPT the caller names the file
            if name in head:
                variable.assign(_finite(tensor.read(0, tensor.shape[0]), name).T)
            else:
                assign(variable, tensor.read, name)


def _check_tensors(variables, head, tensors):
    shapes = {
        name: tuple(variable.shape)[:: -1 if name in head else 1]
        for name, variable in variables.items()
    }
    found = sorted(shapes.keys() & tensors.keys())
    wrong = {
        "missing": sorted(shapes.keys() - tensors.keys()),
        "unknown": sorted(tensors.keys() - shapes.keys()),
        "of another shape": [
            f"{name} {tensors[name].shape} in place of {shapes[name]}"
            for name in found
            if tensors[name].shape != shapes[name]
        ],
        "no floats": [
            f"{name} {tensors[name].dtype}"
            for name in found
            if tensors[name].dtype not in _FLOATS.values()
        ],
    }
    if any(wrong.values()):
        received = "; ".join(
            f"{kind}: {', '.join(names)}" for kind, names in wrong.items() if names
        )
        raise ValueError(
            f"The tensors must be those of the model in the config. Received: {received}."
        )


def _same(tensor, other) -> bool:
    return tensor is other or (
        tensor.shape == other.shape
        and all(
            np.array_equal(tensor.read(*rows), other.read(*rows))
            for rows in _row_ranges(tensor.shape)
        )
    )


# === To safetensors ===


def write_weights(
    backbone, head: dict[str, tuple], folder: Path, max_shard_size: int, tied_name: str | None
) -> None:
    """Writes `model.safetensors`, or several files and their index.

    Args:
        backbone: a `GPTBackbone`.
        head: as for `read_weights`.
        folder: where to write.
        max_shard_size: int. Most bytes of tensors in a file that has more than one.
        tied_name: the name of the token embedding, where it is not the usual one.
    """
    weights = {f"transformer.{name}": w for name, w in named_weights(backbone).items()}
    if tied_name is not None:
        weights = {tied_name if i == 1 else n: w for i, (n, w) in enumerate(weights.items())}
    shards, sizes = [{}], [0]
    for name, weight in (weights | head).items():
        tensor = getattr(*weight)
        dtype, shape = keras.backend.standardize_dtype(tensor.dtype), [int(d) for d in tensor.shape]
        num_bytes = int(np.prod(shape)) * np.dtype(dtype).itemsize
        if shards[-1] and sizes[-1] + num_bytes > max_shard_size:
            shards.append({})
            sizes.append(0)
        start = sizes[-1]
        sizes[-1] += num_bytes
        shards[-1][name] = {
            "dtype": _FLOATS[dtype],
            "shape": shape[::-1] if name in head else shape,
            "data_offsets": [start, sizes[-1]],
        }
    names = ["model.safetensors"]
    if len(shards) > 1:
        names = [f"model-{i:05}-of-{len(shards):05}.safetensors" for i in range(1, len(shards) + 1)]
        weight_map = {
            name: file for file, shard in zip(names, shards, strict=True) for name in shard
        }
        index = {"metadata": {"total_size": sum(sizes)}, "weight_map": weight_map}
        (folder / "model.safetensors.index.json").write_text(json.dumps(index, indent=2))
    for name, shard in zip(names, shards, strict=True):
        _write_shard(folder / name, shard, weights | head, transposed=head)


def _write_shard(path, header, weights, transposed):
    """Writes one file; the library's own writer would want all its tensors in memory at once."""
    text = json.dumps({"__metadata__": {"format": "pt"}, **header}).encode()
    text += b" " * (-len(text) % 8)
    with path.open("wb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        for name in header:
            tensor = getattr(*weights[name])
            array = np.asarray(ops.convert_to_numpy(tensor))
            array = array.astype(keras.backend.standardize_dtype(tensor.dtype), copy=False)
            array = np.ascontiguousarray(array.T if name in transposed else array)
            file.write(array.view("uint8").data)
