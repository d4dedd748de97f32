"""GPT-2 as nanoGPT trains it."""

import os
import zipfile
from pathlib import Path
from typing import NamedTuple

from kgpt.arguments import checked, is_int
from kgpt.convert.weights import MASK_BUFFER, check_size, named_weights, read_weights
from kgpt.initializers import starting_at_zero
from kgpt.models import CausalLM, GPTBackbone
from kgpt.reading import errors_name, one_line

_SIZES = {
    "vocabulary_size": "vocab_size",
    "num_layers": "n_layer",
    "num_heads": "n_head",
    "hidden_dim": "n_embd",
    "max_sequence_length": "block_size",
}
_OTHERS = ("bias", "dropout")
_LINEAR = ("c_attn.weight", "c_proj.weight", "c_fc.weight")  # (outputs, inputs) in the file


@checked
def from_nanogpt(
    path: str | os.PathLike, tokenizer=None, activation: object = "gelu", dtype=None
) -> CausalLM:
    """Makes a model of the checkpoint that nanoGPT's `train.py` writes.

    Only tensors and plain values are read from the file (`torch.load(..., weights_only=True)`), so
    that no code in it runs. PyTorch is needed for that, on any backend. The optimizer's state in
    the file is left out.

    A model with `bias=False` gets biases of 0: the function is the same. In further training they
    are trained like other weights.

    Args:
        path: the file, such as `"out/ckpt.pt"`.
        tokenizer: optional `kgpt.Tokenizer`; the file has none. It may have fewer tokens than the
            model: nanoGPT pads GPT-2's 50,257 to 50,304.
        activation: name or function in the feed-forward networks, as for `GPTBackbone`. nanoGPT has
            the exact `"gelu"`; its older versions had `"gelu_tanh"`. The file does not say which.
        dtype: dtype policy of the model, such as `"bfloat16"`; Keras's own if None.

    Returns:
        `CausalLM`, with its `backbone`.

    Raises:
        FileNotFoundError: if there is no such file.
        ValueError: if the file is not such a checkpoint.
        ImportError: if PyTorch is not installed.

    Source:
        github.com/karpathy/nanoGPT, `model.py` and `train.py`.

    Example:
        lm = kgpt.from_nanogpt("out/ckpt.pt", tokenizer=tokenizer)
        valid = kgpt.data.windows("data/shakespeare/val.bin", sequence_length=256, batch_size=4)
        lm.evaluate(valid)
    """
    checkpoint = _load(path)
    options = checkpoint["model_args"]
    with errors_name(path):
        tensors = _tensors(checkpoint["model"])
        _check_options(options, path)
        _check_sizes(options, tensors, path)
    with starting_at_zero():
        backbone = GPTBackbone(
            **{name: options[key] for name, key in _SIZES.items()},
            dropout=options.get("dropout", 0.0),
            activation=activation,
            dtype=dtype,
        )
    if not options.get("bias", True):
        tensors = {**_zero_biases(backbone), **tensors}
    with errors_name(path):
        read_weights(backbone, {}, tensors)
    return CausalLM(backbone, tokenizer=tokenizer)


class _Tensor(NamedTuple):
    """A tensor of PyTorch in the form of those in safetensors files."""

    values: object

    @property
    def shape(self):
        return tuple(self.values.shape)

    @property
    def dtype(self):
        return "F32" if self.values.is_floating_point() else str(self.values.dtype)

    def read(self, start, stop):
        return self.values[start:stop].float().numpy()


def _load(path) -> dict:
    """Returns the checkpoint, its tensors mapped and not read yet."""
    try:
        import torch
    except ImportError as error:
        raise ImportError(
            "nanoGPT's checkpoints are files of PyTorch, which is not installed. "
            "Try: pip install torch"
        ) from error
    if not Path(path).is_file():  # of a pipe, too
        raise FileNotFoundError(
            f"path must be the file that nanoGPT writes, ckpt.pt. Received: path={str(path)!r}."
        )
    _check_zip(path)
    try:
        checkpoint = torch.load(path, map_location="cpu", weights_only=True, mmap=True)
    except MemoryError:
        raise
    except Exception:  # pickles and zips fail in any way
        raise ValueError(
            "The file must be a checkpoint of nanoGPT, with nothing in it but tensors and plain "
            f"values; code is not run. Received: path={str(path)!r}. Of a file that you trust, try "
            "saving model and model_args alone."
        ) from None
    parts = [checkpoint.get(key) for key in ("model", "model_args")] if _is_dict(checkpoint) else []
    if not parts or not all(map(_is_dict, parts)):
        kind = sorted(map(str, checkpoint)) if _is_dict(checkpoint) else type(checkpoint).__name__
        raise ValueError(
            "The file must hold a dict with model and model_args, as nanoGPT's train.py writes it. "
            f"Received: path={str(path)!r} with {kind}."
        )
    return checkpoint


def _check_zip(path):
    """Raises ValueError if the content is not what was written, at which PyTorch does not look."""
    if not zipfile.is_zipfile(path):
        return  # PyTorch says what it is
    try:
        with zipfile.ZipFile(path) as file:
            damaged = file.testzip()
    except Exception as error:  # a zip that is damaged fails in any way
        damaged = one_line(error)
    if damaged is not None:
        raise ValueError(
            "The file must be a checkpoint of nanoGPT. "
            f"Received: path={str(path)!r}, which is damaged: {damaged}. Try another copy."
        )


def _is_dict(value) -> bool:
    return isinstance(value, dict)


def _check_options(options, path):
    lacking = [key for key in _SIZES.values() if not is_int(options.get(key))]
    unknown = {k: v for k, v in options.items() if v and k not in (*_SIZES.values(), *_OTHERS)}
    if lacking or unknown:
        raise ValueError(
            f"model_args must be nanoGPT's: {', '.join(_SIZES.values())}, each an int, and "
            f"{' and '.join(_OTHERS)}. Received: path={str(path)!r} with model_args={options}."
        )


def _check_sizes(options, tensors, path):
    """Raises ValueError for sizes of which the file can't have the weights."""
    shapes = {name: tensor.shape for name, tensor in tensors.items()}
    # Several views of one array, of which a tied embedding is one, count as often as they are.
    received, most = sum(t.values.nbytes for t in tensors.values()), 4 * os.path.getsize(path)
    if received > most:
        raise ValueError(
            f"The tensors must be in the file. Received: path={str(path)!r} with tensors of "
            f"{received:,} bytes, four times as many as it has, {most // 4:,}. Try another copy."
        )
    check_size({name: options[key] for name, key in _SIZES.items()}, shapes)


def _tensors(state) -> dict[str, _Tensor]:
    """Returns the tensors by their names in transformers' files, matrices turned as there."""
    tensors = {}
    for name, values in state.items():
        name = name.removeprefix("_orig_mod.").removeprefix("transformer.")  # of torch.compile
        if not hasattr(values, "is_floating_point"):
            raise ValueError(
                "The model must hold tensors alone. "
                f"Received: {name}, of type {type(values).__name__}."
            )
        if not MASK_BUFFER.fullmatch(name):
            tensors[name] = _Tensor(values.T if name.endswith(_LINEAR) else values)
    return tensors


def _zero_biases(backbone) -> dict[str, _Tensor]:
    import torch

    weights = named_weights(backbone).items()
    return {
        name: _Tensor(torch.zeros(tuple(getattr(*weight).shape)))
        for name, weight in weights
        if name.endswith(".bias")
    }
