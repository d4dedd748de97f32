"""GPT-1 as OpenAI released it."""

import math
import os
from pathlib import Path

import numpy as np

from kgpt.arguments import checked, is_int
from kgpt.convert.weights import assign, check_size, named_weights
from kgpt.initializers import starting_at_zero
from kgpt.models import CausalLM, GPTBackbone
from kgpt.reading import check_file, errors_name, map_npy, one_line, read_json
from kgpt.tokenizer import Tokenizer

_SHAPES = "params_shapes.json"
_VOCABULARY = "encoder_bpe_40000.json"
_MERGES = "vocab_40000.bpe"
_TENSORS_IN_A_LAYER = 12


@checked
def from_openai(folder: str | os.PathLike, num_heads: int = 12, dtype=None) -> CausalLM:
    """Makes GPT-1 of the files that OpenAI released with the paper.

    The folder `model/` of the release (openai/finetune-transformer-lm) holds

    - `params_0.npy` to `params_9.npy`: ten slices of all weights, one after the other;
    - `params_shapes.json`: the shapes of the weights;
    - `encoder_bpe_40000.json` and `vocab_40000.bpe`: the vocabulary and the merges. Without them,
      the model has no tokenizer.

    The weights go into the model in pieces of some megabytes. Nothing in the files is run.

    Args:
        folder: path of the folder.
        num_heads: int. Number of attention heads, which is not in the files; GPT-1 has 12.
        dtype: dtype policy of the model, such as `"bfloat16"`; Keras's own if None.

    Returns:
        `CausalLM`, with its `backbone` and `tokenizer`.

    Raises:
        FileNotFoundError: if a file of weights is missing.
        ValueError: if the files are not such a release.

    Source:
        Radford et al. 2018 (GPT-1); `train.py` of the release.

    Example:
        lm = kgpt.from_openai("finetune-transformer-lm/model")
        tokenizer = lm.tokenizer.with_special_tokens()  # start, delimiter, classify
        backbone = lm.backbone.with_vocabulary_size(tokenizer.vocabulary_size)
        classifier = kgpt.TextClassifier(backbone, num_classes=2, tokenizer=tokenizer)
    """
    folder = Path(folder)
    slices, shapes = _read_files(folder)
    positions, tokens, *_ = shapes
    num_layers, rest = divmod(len(shapes) - 2, _TENSORS_IN_A_LAYER)
    if rest or num_layers < 1 or len(positions) != 2 or len(tokens) != 2:
        raise ValueError(
            "The shapes must be those of the positions, the tokens and 12 tensors for each layer. "
            f"Received: {folder / _SHAPES} with {len(shapes)} shapes, which begin with "
            f"{shapes[:3]}."
        )
    tokenizer = None
    if os.path.lexists(folder / _VOCABULARY):
        files = folder / _VOCABULARY, folder / _MERGES
        tokenizer = Tokenizer.from_vocabulary(*files, style="gpt1")
    options = {
        "vocabulary_size": tokens[0],
        "num_layers": num_layers,
        "num_heads": num_heads,
        "hidden_dim": tokens[1],
        "intermediate_dim": shapes[2 + 7][-1],  # the bias of the first feed-forward map
        "max_sequence_length": positions[0],
    }
    with errors_name(folder / _SHAPES):
        names = (f"h.{i // _TENSORS_IN_A_LAYER}.{i}" for i in range(len(shapes)))
        check_size(options, dict(zip(names, shapes, strict=True)))
    with starting_at_zero():
        backbone = GPTBackbone(**options, norm_first=False, dtype=dtype)
    variables = {name: getattr(*weight) for name, weight in named_weights(backbone).items()}
    for (name, variable), shape in zip(variables.items(), shapes, strict=True):
        if tuple(variable.shape) != _without_ones(shape):
            raise ValueError(
                f"The weights must have GPT-1's shapes, in its order. Received: {shape} in place "
                f"of {tuple(variable.shape)} for {name}."
            )
    start = 0
    for (name, variable), shape in zip(variables.items(), shapes, strict=True):
        with errors_name(folder):
            assign(variable, _rows_of(slices, start, _without_ones(shape)), name)
        start += int(np.prod(shape))
    return CausalLM(backbone, tokenizer=tokenizer)


def _read_files(folder):
    """Returns the slices, mapped and not read yet, and the shapes."""
    hint = "OpenAI's release has it in model/."
    if not os.path.lexists(folder / _SHAPES):
        raise FileNotFoundError(f"There is no {_SHAPES}. Received: {folder}. {hint}")
    shapes = read_json(folder / _SHAPES, list)
    wrong = next((shape for shape in shapes if not _is_shape(shape)), None)
    if wrong is not None or not shapes:
        raise ValueError(
            f"{folder / _SHAPES} must be a list of shapes, each a list of ints above 0. "
            f"Received: {wrong!r:.60} among them. Try another copy."
        )
    shapes = [tuple(shape) for shape in shapes]
    slices = [_map_slice(folder / f"params_{i}.npy", hint) for i in range(10)]
    expected, received = sum(map(math.prod, shapes)), sum(part.size for part in slices)
    if expected != received or any(part.ndim != 1 for part in slices):
        raise ValueError(
            f"The ten files params_0.npy to params_9.npy must have the {expected} numbers of "
            f"{_SHAPES} between them, each along one axis. Received: {folder} with {received}, of "
            f"shapes {[part.shape for part in slices]}."
        )
    return slices, shapes


def _is_shape(shape) -> bool:
    return isinstance(shape, list) and len(shape) > 0 and all(is_int(n) and n > 0 for n in shape)


def _map_slice(path, hint) -> np.ndarray:
    """Returns the numbers in a .npy file, mapped and not read yet."""
    try:
        array = map_npy(check_file(path, hint))
    except (ValueError, EOFError) as error:
        raise ValueError(f"{path} is damaged: {one_line(error)}. Try another copy.") from None
    if array.dtype not in ("float16", "float32", "float64"):
        raise ValueError(f"{path} must be an array of floats. Received: dtype {array.dtype}.")
    return array


def _without_ones(shape):
    """Linear maps are stored as `(1, inputs, outputs)`, for convolutions of width 1."""
    return shape[1:] if len(shape) == 3 and shape[0] == 1 else shape


def _rows_of(slices, start, shape):
    """Returns a function that reads rows of the tensor at a place in the concatenation."""
    row = int(np.prod(shape[1:]))

    def read(first, last):
        begin, end = start + first * row, start + last * row
        parts = []
        for part in slices:
            here = range(len(part))[max(begin, 0) : max(end, 0)]
            if here:
                # Read and not mapped: mapped pages would count as memory of the process.
                place = part.offset + here.start * part.dtype.itemsize
                parts.append(np.fromfile(part.filename, part.dtype, len(here), offset=place))
            begin, end = begin - len(part), end - len(part)
        return np.concatenate(parts).reshape((last - first, *shape[1:]))

    return read
