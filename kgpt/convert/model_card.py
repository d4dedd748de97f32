"""A model's README in the form of Hugging Face's hub: what it is, and what it has seen."""

import math
import os
import re
from collections.abc import Iterable, Mapping
from pathlib import Path

import keras
import numpy as np

from kgpt.arguments import checked, refuse
from kgpt.convert.weights import import_extra
from kgpt.files import make_folder, sha256, written_whole
from kgpt.models import CausalLM, GPTBackbone, MultipleChoice, TextClassifier, TextRegressor

_PIPELINES = {
    CausalLM: ("text-generation", "language model"),
    TextClassifier: ("text-classification", "text classifier"),
    TextRegressor: ("text-classification", "text regressor"),
    MultipleChoice: ("multiple-choice", "multiple-choice model"),
    GPTBackbone: ("feature-extraction", "body without a head"),
}


@checked
def model_card(
    model,
    path: str | os.PathLike,
    training_data: str | os.PathLike | Iterable[str | os.PathLike] | None = None,
    tokens_seen: int | None = None,
    evaluation: Mapping[str, float] | None = None,
    evaluation_data: str | None = None,
    name: str | None = None,
    description: str | None = None,
    language: str | None = None,
    license: str | None = None,
) -> None:
    """Writes a README.md that says what is known of a model and nothing else.

    It has the front matter that the hub reads (library, task, tags, figures) and tables of the
    architecture, the parameters, the tokenizer, the training data with their sha256 hashes, and
    the evaluation. What is not given is left out. The file appears only when it is complete.

    Args:
        model: a `GPTBackbone`, a `CausalLM` or another head.
        path: the file to write, or the folder where it is called README.md; made if need be, where
            the path has no suffix.
        training_data: files, such as those of `kgpt.data.write_tokens`. Their names, sizes and
            hashes are written, not their folders; files in tokens are also counted in tokens.
        tokens_seen: int. How many tokens the model was trained on, repetitions included.
        evaluation: figures by name, as `model.evaluate(..., return_dict=True)` gives them.
        evaluation_data: name of the data that the figures are of.
        name: the model's name; `model.name` if None.
        description: Markdown, put first.
        language: code of the text's language, such as `"en"`.
        license: identifier of the licence, such as `"apache-2.0"`.

    Raises:
        ValueError: for figures that are not finite, and a number of tokens below 0.
        FileNotFoundError: if a file of the training data does not exist.
        ImportError: if huggingface_hub is not installed.

    Example:
        figures = lm.evaluate(valid, return_dict=True)
        kgpt.model_card(lm, "my-gpt/README.md", training_data="corpus/train.npy",
                        tokens_seen=8_000_000, evaluation=figures, evaluation_data="my corpus")
    """
    if not isinstance(model, keras.Model):
        refuse("model", model, "a Keras model, such as a kgpt.CausalLM", error=TypeError)
    figures = _figures(evaluation)
    if isinstance(training_data, str | os.PathLike):
        training_data = [training_data]
    pipeline, kind = next(
        (value for key, value in _PIPELINES.items() if isinstance(model, key)), (None, "model")
    )
    # In one line, since not every end of a line survives YAML.
    name, evaluation_data = _one_line(name or "") or model.name, _one_line(evaluation_data or "")
    results = _eval_results(pipeline, figures, evaluation_data)
    front_matter = import_extra("huggingface_hub").ModelCardData(
        library_name="keras",
        pipeline_tag=pipeline,
        tags=["gpt", "keras", "kgpt"],
        language=language,
        license=license,
        model_name=name if results else None,  # stands above the figures
        eval_results=results,
    )
    parts = [
        f"---\n{front_matter.to_yaml()}\n---",
        f"# {_escape(name)}",
        description,
        f"A GPT {kind} in [Keras](https://keras.io), made with kgpt.",
        _table("Architecture", ("", ""), _architecture(model)),
        _table("Training", ("", ""), _training(model, tokens_seen)),
        _table("Training data", ("file", "size", "sha256"), map(_file_row, training_data or [])),
        _table("Evaluation" + (f" on {_escape(evaluation_data)}" if evaluation_data else ""),
               ("figure", "value"), [(key, f"{v:.6g}") for key, v in figures.items()]),
    ]  # fmt: skip
    _write(Path(path), "\n\n".join(part for part in parts if part) + "\n")


# === What is known ===


def _figures(evaluation) -> dict[str, float]:
    try:
        figures = {_one_line(key): float(value) for key, value in (evaluation or {}).items()}
    except (AttributeError, TypeError, ValueError):
        hint = "model.evaluate(..., return_dict=True) gives them."
        refuse("evaluation", evaluation, "a dict of figures by name", hint)
    if not all(map(math.isfinite, figures.values())):
        raise ValueError(f"Figures must be finite numbers. Received: evaluation={figures}.")
    return figures


def _architecture(model):
    backbone = getattr(model, "backbone", model)
    tokenizer = getattr(model, "tokenizer", None)
    rows = [
        ("parameters", f"{model.count_params():,}"),
        ("layers", backbone.num_layers),
        ("attention heads", backbone.num_heads),
        ("width", backbone.hidden_dim),
        ("inner width", backbone.intermediate_dim),
        ("longest sequence", f"{backbone.max_sequence_length:,} tokens"),
        ("vocabulary", f"{backbone.vocabulary_size:,} tokens"),
        ("layer norm", "before each part (GPT-2)" if backbone.norm_first else "after (GPT-1)"),
        ("dtype of the weights", _dtypes(backbone)),
    ]
    if tokenizer is not None:
        rows.append(("tokenizer", f"{tokenizer.style} style, {tokenizer.vocabulary_size:,} tokens"))
    if getattr(model, "class_names", None):
        rows.append(("classes", ", ".join(model.class_names)))
    return rows


def _dtypes(backbone):
    modes = {layer.quantization_mode for layer in backbone._flatten_layers()} - {None}
    quantized = f"quantized to {', '.join(sorted(modes))}; others " if modes else ""
    return quantized + keras.backend.standardize_dtype(backbone.variable_dtype)


def _training(model, tokens_seen):
    rows = [("dropout", getattr(model, "backbone", model).dropout)]
    if tokens_seen is not None:
        rows.append(("tokens seen", f"{int(tokens_seen):,}"))
    optimizer = getattr(model, "optimizer", None)
    if optimizer is not None and int(optimizer.iterations) > 0:
        rows.append(("optimizer", type(optimizer).__name__))
        rows.append(("updates", f"{int(optimizer.iterations):,}"))
    return rows


def _file_row(path):
    path = Path(path)
    size = f"{path.stat().st_size:,} bytes"
    if path.suffix == ".npy":
        array = np.load(path, mmap_mode="r")
        size += f", {array.size:,} tokens" if array.dtype.kind == "u" else ""
    return path.name, size, sha256(path)


def _eval_results(pipeline, figures, evaluation_data):
    """Returns the figures as the hub reads them, with the name of the data."""
    if pipeline is None:
        return None
    data = evaluation_data or "unnamed"
    result = import_extra("huggingface_hub").EvalResult
    return [result(pipeline, data, data, key, value) for key, value in figures.items()] or None


# === Writing ===


def _table(title, columns, rows):
    lines = ["| " + " | ".join(_escape(str(cell)) for cell in row) + " |" for row in rows]
    if not lines:
        return None
    header = ["| " + " | ".join(columns) + " |", "|" + " --- |" * len(columns)]
    return "\n".join([f"## {title}\n", *header, *lines])


def _one_line(text):
    return " ".join(str(text).split())


def _escape(text):
    """Text as it is, in one line, where Markdown and HTML would see signs of their own."""
    text = _one_line(text).replace("&", "&amp;").replace("<", "&lt;")
    return re.sub(r"([\\`*_\[\]|#])", r"\\\1", text)


def _write(path, text):
    is_folder = path.is_dir() or not (path.suffix or path.exists())
    path = path / "README.md" if is_folder else path
    make_folder(path.parent)
    with written_whole(path) as unfinished:
        unfinished.write_text(text, encoding="utf-8", newline="\n")
