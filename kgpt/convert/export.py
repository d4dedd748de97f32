"""Models as files that run without Keras: SavedModel, ONNX and LiteRT."""

import errno
import functools
import itertools
import os
from importlib.util import find_spec
from pathlib import Path

import keras
from keras import ops

from kgpt.arguments import flag
from kgpt.console import show
from kgpt.files import check_free_space, files_written_whole, make_folder, written_whole
from kgpt.keywords import check_keywords
from kgpt.models.whole_model import num_bytes

_ENDINGS = {"tf_saved_model": "", "onnx": ".onnx", "litert": ".tflite"}
# The formats that each backend's converters can write with a free batch size and length.
_FORMATS = {
    "tensorflow": ("tf_saved_model", "onnx", "litert"),
    "jax": ("tf_saved_model",),
    "torch": ("onnx",),
}
# The packages that a converter needs beside the backend.
_PACKAGES = {
    ("tensorflow", "onnx"): ("onnx", "tf2onnx"),
    ("torch", "onnx"): ("onnx", "onnxscript"),
    ("jax", "tf_saved_model"): ("tensorflow",),
}
# The modes of quantization whose files the backend's converter writes and no runtime loads.
_NOT_QUANTIZED = {("torch", "onnx"): ("int8", "int4"), ("tensorflow", "litert"): ("int8",)}
# Further options, of converters that would leave out what they do not know.
_OPTIONS = {
    ("tensorflow", "tf_saved_model"): (),
    ("tensorflow", "onnx"): ("opset_version",),
    ("jax", "tf_saved_model"): ("is_static", "jax2tf_kwargs"),
}
_MOST_BYTES = 2 * 10**9  # in an ONNX or LiteRT file, by the formats' 32-bit offsets


def export(
    model,
    path: str | os.PathLike,
    format: str = "tf_saved_model",
    padding_mask: bool | None = None,
    verbose: bool = False,
    **kwargs,
) -> None:
    """Writes a model's forward pass to a file that needs neither Keras nor kgpt.

    Its inputs are called `token_ids` (int32) and, with a mask, `padding_mask` (bool); its output is
    called `outputs`. Batch and length are free up to `max_sequence_length`.

    | format | file | made on | runs in |
    |---|---|---|---|
    | `"tf_saved_model"` | a folder | tensorflow, jax | TensorFlow, TF Serving |
    | `"onnx"` | `.onnx` | tensorflow, torch | ONNX Runtime and others |
    | `"litert"` | `.tflite` | tensorflow | LiteRT (TensorFlow Lite) |

    A `.keras` file can be loaded on any backend and exported there. What was at the path before is
    replaced only when the new file is complete. A folder for TensorFlow has a manifest of hashes.

    Args:
        model: a `CausalLM`, another head, or a `GPTBackbone`.
        path: where to write.
        format: one of the table.
        padding_mask: bool. Whether the file takes a padding mask. None is what the model needs:
            heads that look for the last token of a sequence do, a `CausalLM` and a backbone do
            not, since padding at the end changes nothing before it.
        verbose: bool. Whether to print where it was written.
        **kwargs: further arguments of `keras.Model.export` for the format, such as `opset_version`.

    Raises:
        TypeError: for further arguments that the format lacks.
        ValueError: if the backend can't make the format, and for an unsuitable path.
        ImportError: if the converter is not installed.
        OSError: if there is no room or no permission.

    Example:
        import onnxruntime

        lm.export("lm.onnx", format="onnx")  # calls this function
        session = onnxruntime.InferenceSession("lm.onnx")
        token_ids = np.array([tokenizer.encode("Hello world")], "int32")
        [logits] = session.run(["outputs"], {"token_ids": token_ids})
    """
    path = _check(model, path, format, kwargs)
    padding_mask = None if padding_mask is None else flag("padding_mask", padding_mask)
    shape = model.input["token_ids"].shape[1:]
    if padding_mask is None:
        padding_mask = len(shape) > 1
    inputs = {"token_ids": keras.Input(shape, dtype="int32", name="token_ids")}
    if padding_mask:
        inputs["padding_mask"] = keras.Input(shape, dtype="bool", name="padding_mask")
    is_head = len(shape) > 1
    axes = dict.fromkeys(
        inputs, ("batch", "sequences", "length") if is_head else ("batch", "length")
    )
    axes["outputs"] = ("batch", "sequences") if is_head else ("batch", "length", "vocabulary")
    _write(model, inputs, axes, path, format, verbose, **kwargs)


def export_generation_step(
    lm,
    path: str | os.PathLike,
    format: str = "onnx",
    verbose: bool = False,
    **kwargs,
) -> None:
    """Writes one cached step of generation, with the keys and values as inputs and outputs.

    | input | | |
    |---|---|---|
    | `token_ids` | int32 `(batch, new)` | one or more new tokens of each row |
    | `position` | int32 `(batch,)` | the position of the first of them in each row |
    | `keys`, `values` | float32 `(batch, layers, heads, slots, head_dim)` | of earlier positions |

    | output | | |
    |---|---|---|
    | `logits` | float32 `(batch, new, vocabulary)` | of the token after each new one |
    | `new_keys`, `new_values` | as `keys`, `values` | with those of the new positions written in |

    Position `p` of a row is stored in slot `p`; a position sees the slots up to its own. So the
    first step takes the whole prompts at position 0 with keys and values of zeros, as many slots as
    the finished texts will have (at most `max_sequence_length`), and each later step takes one
    token at the next position. Prompts of different lengths are padded at the end with any token:
    what padding leaves in the cache is overwritten before it is seen.

    `examples/generate_with_onnxruntime.py` is such a loop.

    Args:
        lm: a `CausalLM`.
        path: where to write.
        format: as for `export`.
        verbose: as for `export`.
        **kwargs: as for `export`.

    Raises:
        ValueError: if the backend can't make the format, and for an unsuitable path.
        ImportError: if the converter is not installed.
    """
    path = _check(lm, path, format, kwargs)
    backbone = lm.backbone
    heads, head_dim = backbone.num_heads, backbone.hidden_dim // backbone.num_heads
    cache_shape = (backbone.num_layers, heads, None, head_dim)
    inputs = {
        "token_ids": keras.Input((None,), dtype="int32", name="token_ids"),
        "position": keras.Input((), dtype="int32", name="position"),
        "keys": keras.Input(cache_shape, dtype=backbone.compute_dtype, name="keys"),
        "values": keras.Input(cache_shape, dtype=backbone.compute_dtype, name="values"),
    }
    cache_axes = ("batch", "layers", "heads", "slots", "head_dim")
    axes = {
        "token_ids": ("batch", "new"),
        "position": ("batch",),
        "keys": cache_axes,
        "values": cache_axes,
        "logits": ("batch", "new", "vocabulary"),
        "new_keys": cache_axes,
        "new_values": cache_axes,
    }
    _write(_GenerationStep(backbone), inputs, axes, path, format, verbose, **kwargs)


class _GenerationStep(keras.layers.Layer):
    """One cached step as a layer from a dict of tensors to another, to be exported."""

    def __init__(self, backbone):
        super().__init__(dtype=backbone.dtype_policy)
        self.backbone = backbone
        self.autocast = False

    def call(self, inputs):
        token_ids, position = inputs["token_ids"], inputs["position"]
        # (batch, layers, heads, slots, head_dim) -> a pair (batch, heads, slots, head_dim) a block
        keys, values = (
            ops.unstack(inputs[name], self.backbone.num_layers, axis=1)
            for name in ("keys", "values")
        )
        new = ops.arange(0, ops.shape(token_ids)[1], dtype="int32")
        position_ids = ops.expand_dims(position, 1) + new  # (batch, new)
        slots = ops.arange(0, ops.shape(inputs["keys"])[3], dtype="int32")
        visible = slots <= ops.expand_dims(position_ids, 2)  # (batch, new, slots)
        h, cache = self.backbone.call_with_cache(
            token_ids, list(zip(keys, values, strict=True)), position, visible, position_ids
        )
        keys, values = (ops.stack(parts, axis=1) for parts in zip(*cache, strict=True))
        logits = self.backbone.embedding(h, reverse=True)
        return {"logits": logits, "new_keys": keys, "new_values": values}

    def compute_output_spec(self, inputs):
        token_ids, keys, values = (inputs[name] for name in ("token_ids", "keys", "values"))
        logits_shape = (*token_ids.shape, self.backbone.vocabulary_size)
        return {
            "logits": keras.KerasTensor(logits_shape, dtype=self.compute_dtype),
            "new_keys": keras.KerasTensor(keys.shape, dtype=keys.dtype),
            "new_values": keras.KerasTensor(values.shape, dtype=values.dtype),
        }


# === Arguments ===


def _check(model, path, format, options) -> Path:
    """Returns the path; raises an error for what can't be exported, before any conversion."""
    backend, path = keras.config.backend(), os.fspath(path)
    if format not in _ENDINGS:
        raise ValueError(f"format must be one of {', '.join(_ENDINGS)}. Received: {format!r}.")
    meant = next((name for name, end in _ENDINGS.items() if end and path.endswith(end)), format)
    if meant != format:
        raise ValueError(
            f"The path's ending is that of another format. Received: {path!r}, format={format!r}. "
            f"Try format={meant!r}."
        )
    if format not in _FORMATS.get(backend, ()):
        able = [name for name, formats in _FORMATS.items() if format in formats]
        raise ValueError(
            f"A model with a free length can't be exported to this format from this backend. "
            f"Received: format={format!r}, backend={backend!r}. Save the model as a .keras file, "
            f"and load and export it in a process with KERAS_BACKEND={' or '.join(able)}."
        )
    if not path.endswith(_ENDINGS[format]):
        raise ValueError(
            f"The path for format={format!r} must end with {_ENDINGS[format]!r}. "
            f"Received: {path!r}."
        )
    known = _OPTIONS.get((backend, format), options)
    if unknown := [name for name in options if name not in known]:
        check_keywords("export", ["format", "padding_mask", "verbose", *known], unknown)
    path = Path(path)
    is_model = path.is_file() if _ENDINGS[format] else (path / "saved_model.pb").exists()
    if path.exists() and not is_model:
        raise ValueError(
            "path exists and holds no exported model of this format, so it is not overwritten. "
            f"Received: {path}. Try another path."
        )
    _check_weights(model, backend, format)
    missing = [p for p in _PACKAGES.get((backend, format), ()) if not find_spec(p)]
    if missing:
        raise ImportError(
            f"Export to {format!r} from the backend {backend!r} needs packages that are not "
            f"installed: {', '.join(missing)}. Try: pip install {' '.join(missing)}"
        )
    return path


def _check_weights(model, backend, format):
    """Raises ValueError for weights that a format can't hold."""
    backbone = getattr(model, "backbone", model)
    size = 4 * backbone.count_params()
    if format != "tf_saved_model" and size > _MOST_BYTES:
        raise ValueError(
            f"A file of the format {format!r} holds {_MOST_BYTES:,} bytes at most. "
            f'Received: a model of {size:,} bytes. Try format="tf_saved_model".'
        )
    if format != "tf_saved_model" and backbone.compute_dtype != "float32":
        raise ValueError(
            f"Only float32 models can be exported to {format!r}. Received: a backbone with "
            f'dtype={backbone.dtype_policy.name!r}. Make one with dtype="float32", and give '
            "it this model's weights with set_weights(model.get_weights())."
        )
    modes = {layer.quantization_mode for layer in model._flatten_layers()}
    refused = modes.intersection(_NOT_QUANTIZED.get((backend, format), ()))
    if refused:
        raise ValueError(
            f"The backend {backend!r} can't export these quantized weights to {format!r}. "
            f"Received: a model quantized to {refused.pop()!r}. Save it as a .keras file, and load "
            'and export it with KERAS_BACKEND=tensorflow and format="onnx", or export the model '
            "before it is quantized."
        )


# === Conversion ===


def _write(layer, inputs, axes, path, format, verbose, **kwargs):
    """Converts to another name first, so that no incomplete file appears at the path."""
    make_folder(path.parent)
    check_free_space(path, num_bytes(layer.variables))
    to_folder = functools.partial(files_written_whole, last="saved_model.pb")
    with (written_whole if _ENDINGS[format] else to_folder)(path) as unfinished:
        try:
            _convert(layer, inputs, axes, unfinished, format, **kwargs)
        except Exception as error:
            if os.strerror(errno.ENOSPC) in str(error):  # TensorFlow's error is no OSError
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC)) from error
            raise
    if verbose:
        show(f"Written: {path}")


def _convert(layer, inputs, axes, path, format, **kwargs):
    # `layer` takes a dict of tensors and returns a tensor, which is named "outputs", or a dict;
    # `inputs` are `keras.Input` by name, `axes` the names of all axes of each input and output.
    outputs = _named(layer(inputs))
    sizes = {
        name: [axes[name][i] if size is None else size for i, size in enumerate(x.shape)]
        for name, x in {**inputs, **outputs}.items()
    }
    if keras.config.backend() == "torch":
        _write_onnx_from_torch(layer, inputs, outputs, sizes, path, **kwargs)
        return
    model = keras.Model(_alone(inputs), outputs)
    # Keras exports to ONNX only what has been called.
    examples = {n: ops.ones([i or 1 for i in x.shape], x.dtype) for n, x in inputs.items()}
    model(_alone(examples))
    if keras.config.backend() == "jax":
        # Keras would give two inputs independent lengths.
        shapes = {n: f"({', '.join(map(str, sizes[n]))},)" for n in inputs}
        kwargs = {"jax2tf_kwargs": {"polymorphic_shapes": [_alone(shapes)]}, **kwargs}
    model.export(os.fspath(path), format=format, verbose=False, **kwargs)
    if format == "onnx":
        _name_sizes(path, sizes)


def _named(outputs):
    return outputs if isinstance(outputs, dict) else {"outputs": outputs}


def _alone(inputs):
    """Returns a single input without its dict, and several inputs as they are."""
    return next(iter(inputs.values())) if len(inputs) == 1 else inputs


def _write_onnx_from_torch(layer, inputs, outputs, sizes, path, **kwargs):
    """Writes ONNX by PyTorch's newer converter: Keras's older one fails on free sizes."""
    import torch

    class Gather(torch.overrides.TorchFunctionMode):
        """The same by `gather`: in `take_along_dim` the converter takes sizes for constants."""

        def __torch_function__(self, function, types, args=(), kwargs=None):
            if function is not torch.take_along_dim:
                return function(*args, **(kwargs or {}))
            (x, indices), dim = args, kwargs["dim"]
            shape = [*x.shape[:dim], indices.shape[dim], *x.shape[dim:][1:]]
            return torch.gather(x, dim, indices.expand(shape))

    class Module(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.layer = layer

        def forward(self, *tensors):
            with Gather():
                return _named(self.layer(dict(zip(inputs, tensors, strict=True))))

    names = {axis for name in inputs for axis in sizes[name] if isinstance(axis, str)}
    free = {axis: torch.export.Dim(axis, min=1) for axis in names}
    # Sizes of the examples differ: PyTorch takes equal sizes for the same one, a 1 for a constant.
    examples = dict(zip(sorted(names), itertools.count(2), strict=False))
    torch.onnx.export(
        Module().eval(),
        tuple(
            torch.ones([examples.get(i, i) for i in sizes[name]], dtype=getattr(torch, x.dtype))
            for name, x in inputs.items()
        ),
        os.fspath(path),
        input_names=list(inputs),
        output_names=list(outputs),
        dynamic_shapes=(
            tuple({i: free[a] for i, a in enumerate(sizes[n]) if a in free} for n in inputs),
        ),
        dynamo=True,
        external_data=False,
        verbose=False,
        **kwargs,
    )
    _check_sizes(path, sizes)


def _check_sizes(path, sizes):
    """Raises an error if a free size became a constant in an ONNX file."""
    import onnx

    for tensor in onnx.load(path, load_external_data=False).graph.input:
        found = [dim.dim_param or dim.dim_value for dim in tensor.type.tensor_type.shape.dim]
        if found != sizes[tensor.name]:
            raise RuntimeError(
                f"PyTorch's converter made constants of free sizes: the input {tensor.name!r} has "
                f"the shape {tuple(found)} instead of {tuple(sizes[tensor.name])}. Nothing was "
                "written. Save the model as a .keras file, and export it with "
                "KERAS_BACKEND=tensorflow."
            )


def _name_sizes(path, sizes):
    """Writes the names of the free sizes into an ONNX file."""
    import onnx

    model = onnx.load(path)
    for tensor in [*model.graph.input, *model.graph.output]:
        for dim, size in zip(tensor.type.tensor_type.shape.dim, sizes[tensor.name], strict=True):
            if isinstance(size, str):
                dim.dim_param = size
    onnx.save(model, path)
