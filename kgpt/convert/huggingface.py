"""Models from and to the folders of Hugging Face's transformers."""

import inspect
import json
import os
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
from keras import ops

from kgpt.arguments import RULES, checked, named_parameters
from kgpt.convert import configs
from kgpt.convert.hub import FILES, downloaded
from kgpt.convert.weights import (
    check_size,
    find_tensors,
    named_weights,
    read_weights,
    write_weights,
)
from kgpt.files import check_free_space, check_manifest, files_written_whole
from kgpt.initializers import starting_at_zero
from kgpt.kernels.platform import checked_policy
from kgpt.keywords import check_keywords
from kgpt.models import GPTBackbone, MultipleChoice, TextClassifier, TextRegressor
from kgpt.models.whole_model import num_bytes
from kgpt.reading import errors_name, read_json
from kgpt.tokenizer import Tokenizer
from kgpt.tokenizer.gpt1_words import gpt1_rules

_OUTDATED = [*FILES, "generation_config.json", "special_tokens_map.json"]
# What may be chosen for a body in place of the config's: no weight depends on it.
_FREE = ("name", "trainable", "activation", "layer_norm_epsilon", "attention_dropout", "recompute")


# === From a folder or the hub ===


def from_huggingface(
    name_or_folder: str | os.PathLike,
    task: str = "auto",
    tokenizer: object = "auto",
    dtype=None,
    dropout: float | None = None,
    revision: str | None = None,
    cache_dir: str | os.PathLike | None = None,
    **head_options,
) -> Any:
    """Makes a model of an OpenAI GPT or GPT-2 in the format of Hugging Face's transformers.

    Read are `config.json`, `model.safetensors` (one file or several) and the tokenizer's files.
    The tensors go into the model in pieces of some megabytes, so that the memory needed is the
    model's. Neither transformers nor PyTorch is needed, and nothing in the files is run.

    Args:
        name_or_folder: a repository on the hub, such as `"openai-community/gpt2"`, downloaded once
            into the hub's cache; or a folder, for which nothing is asked of the network.
        task: `"backbone"`, `"causal_lm"`, `"text_classifier"`, `"text_regressor"` or
            `"multiple_choice"`; `"auto"` is what the config calls the model. A head that is in the
            files keeps its weights; one that is not, or has another number of outputs, is fresh.
        tokenizer: `"auto"` is the one in the files, None if they have none; or a `kgpt.Tokenizer`
            or None in its place.
        dtype: dtype policy of the body, such as `"bfloat16"`; Keras's own if None, whatever the
            files have.
        dropout: float in [0, 1), for the body, in place of the config's.
        revision: branch, tag or commit on the hub.
        cache_dir: the hub's cache; its own default if None.
        **head_options: arguments of the head's class in place of the config's, such as
            `num_classes` for a fresh `TextClassifier`; of a body those that no weight depends on.

    Returns:
        `CausalLM` or another head, with its `backbone` and `tokenizer`; or a `GPTBackbone`.

    Raises:
        ValueError: for what the config asks for and kgpt lacks; for tensors that are missing,
            unknown or of another shape; and for a tokenizer of another kind.
        TypeError: for keywords that are no arguments, with the one that was probably meant.
        FileNotFoundError: if there is no such folder, no config or no weights in this format, or
            the hub can't be reached and its cache has not the files.
        ImportError: if safetensors or huggingface_hub is not installed.

    Example:
        lm = kgpt.from_huggingface("openai-community/gpt2")
        lm.generate("The meaning of life is", max_new_tokens=30)
        backbone = kgpt.from_huggingface("openai-community/openai-gpt", "backbone")
    """
    of_body = {"dtype": dtype} if dropout is None else {"dtype": dtype, "dropout": dropout}
    of_files = {"revision": revision, "cache_dir": cache_dir}
    return read_model(name_or_folder, task, of_body, head_options, tokenizer, **of_files)


def read_model(
    name_or_folder, task: str, of_body: dict, of_head: dict, tokenizer: object = "auto", **of_files
) -> Any:
    """As `from_huggingface`, with the arguments of the body and of the head in two dicts."""
    if not isinstance(task, str) or task not in ("auto", *configs.TASKS):
        raise ValueError(
            f"task must be auto or one of {', '.join(configs.TASKS)}. Received: task={task!r}."
        )
    if "dropout" in of_body:
        RULES["dropout"]("dropout", of_body["dropout"])
    if tokenizer is not None and not (isinstance(tokenizer, str) and tokenizer == "auto"):
        RULES["tokenizer"]("tokenizer", tokenizer)
    of_body = {**of_body, "dtype": checked_policy(of_body.get("dtype"))}
    folder = downloaded(name_or_folder, **of_files)
    shards = (path.name for path in folder.glob("model-*-of-*.safetensors"))
    check_manifest(folder, [*FILES, *shards])
    config, tensors = _read_config(folder), find_tensors(folder)
    with errors_name(folder / "config.json"):
        options = configs.backbone_options(config, of_body.get("dropout"))
        check_size(options, {name: tensor.shape for name, tensor in tensors.items()})
        if task == "auto":
            task = configs.task_in_files(config, tensors)
        has_head = configs.has_head(task, config, tensors)
        own = configs.head_options(task, config, tensors) if has_head else {}
    _check_options(task, of_head)
    of_head, is_kept = configs.chosen(own, of_head)
    has_head = has_head and is_kept
    options |= of_body
    if task == "backbone":
        options |= of_head
    elif isinstance(tokenizer, str):
        tokenizer = _read_tokenizer(folder, "gpt2" if options["norm_first"] else "gpt1")
    with starting_at_zero():
        model = backbone = GPTBackbone(**options)
    if task != "backbone":
        model = configs.MODELS[task](backbone, tokenizer=tokenizer, **of_head)
    with errors_name(folder):
        read_weights(backbone, _head_weights(model) if has_head else {}, tensors)
    if config.get(configs.BIAS):
        with errors_name(folder / "config.json"):
            _take_bias_out(model, has_head, config[configs.BIAS], tensors)
    return model


def _check_options(task, options):
    """Raises an error for what can't be chosen for a model of this kind beside its files."""
    known = named_parameters(inspect.signature(configs.MODELS[task].__init__))
    known = [*(name for name in known if name != "backbone"), "name", "trainable"]
    unknown = [name for name in options if name not in known]
    own = named_parameters(inspect.signature(from_huggingface))
    check_keywords("from_huggingface", [*own, *known], unknown)
    fixed = [name for name in options if task == "backbone" and name not in _FREE]
    if fixed:
        raise ValueError(
            f"{fixed[0]} is given by the files. Received: {fixed[0]}={options[fixed[0]]!r}. Leave "
            "it out, or try GPTBackbone.from_preset(folder, load_weights=False) with it."
        )


def options_in(folder: Path, task: str | None) -> tuple[dict, dict]:
    """Returns the arguments of the body in a folder, and of a head of this kind."""
    with errors_name(folder / "config.json"):
        config = _read_config(folder)
        has_head = task is not None and configs.has_head(task, config, None)
        of_head = configs.head_options(task, config, None) if has_head else {}
        return configs.backbone_options(config, None), of_head


def folder_has_head(folder: Path, task: str) -> bool:
    """Returns whether a folder has a head of this kind."""
    with errors_name(folder / "config.json"):
        return configs.has_head(task, _read_config(folder), find_tensors(folder))


def _read_if_there(path) -> dict:
    return read_json(path) if os.path.lexists(path) else {}


def _read_config(folder) -> dict:
    if not os.path.lexists(folder / "config.json"):
        raise FileNotFoundError(
            f"There is no config.json. Received: {folder}, with {sorted(os.listdir(folder))}."
        )
    return read_json(folder / "config.json")


def _head_weights(model) -> dict[str, tuple]:
    """Returns the weights of a head, in the form of `named_weights`."""
    if isinstance(model, TextClassifier | TextRegressor):
        return {"score.weight": (model.output_projection, "kernel")}
    if isinstance(model, MultipleChoice):
        name = "multiple_choice_head.summary"
        return {
            f"{name}.weight": (model.output_projection, "kernel"),
            f"{name}.bias": (model.output_projection, "bias"),
        }
    return {}


# === The bias of a head ===


def _shift_of_bias(kernel, bias) -> np.ndarray | None:
    """Returns the vector whose product with the kernel is the bias, None if there is none."""
    kernel, bias = np.asarray(kernel, "float64"), np.asarray(bias, "float64")
    shift = np.linalg.lstsq(kernel.T, bias, rcond=None)[0]
    # As float32, which it will be: a huge shift would give the bias to a few digits only.
    error = abs(kernel.T @ shift.astype("float32") - bias).max()
    return shift if error <= 1e-6 * max(1.0, abs(bias).max()) else None


def _norm_with_bias(model) -> dict[str, tuple]:
    """Returns the last norm's beta with the bias of the head in it, in the form of `named_weights`.

    transformers' heads are `score(h)`, without a bias, and `score` alone reads `h`, the output of
    the last norm: `W^T (h + shift) = W^T h + b` where `W^T shift = b`.
    """
    if not isinstance(model, TextClassifier | TextRegressor):
        return {}
    layer = model.output_projection
    kernel, bias = ops.convert_to_numpy(layer.kernel), ops.convert_to_numpy(layer.bias)
    if not bias.any():
        return {}
    shift = _shift_of_bias(kernel, bias)
    if shift is None:
        raise ValueError(
            "transformers' heads have no bias, and this one can't be moved into the last norm: no "
            "vector gives it by the kernel. Received: output_projection with a kernel of shape "
            f"{kernel.shape} and bias={bias.tolist()}. Keep the model by model.save, or train it "
            "with output_projection.bias.trainable = False."
        )
    [*_, (name, weight)] = named_weights(model.backbone).items()
    beta = ops.convert_to_numpy(ops.cast(getattr(*weight), "float32"))
    return {f"transformer.{name}": (SimpleNamespace(beta=(beta + shift).astype("float32")), "beta")}


def _take_bias_out(model, has_head, bias, tensors):
    """Undoes `_norm_with_bias`: the body is what it was, with any head or none."""
    score = tensors["score.weight"]
    if len(bias) != score.shape[0]:  # transformers has given it other classes since
        return
    shift = _shift_of_bias(score.read(0, score.shape[0]).astype("float32").T, bias)
    if shift is None:
        return
    [*_, (name, (norm, _))] = named_weights(getattr(model, "backbone", model)).items()
    beta = tensors[name].read(0, tensors[name].shape[0]).astype("float64")
    norm.beta.assign((beta - shift).astype("float32"))
    if has_head:
        model.output_projection.bias.assign(np.asarray(bias, "float32"))


# === The tokenizer ===


def _read_tokenizer(folder, style) -> Tokenizer | None:
    file = folder / "tokenizer.json"
    with errors_name(file):
        parts = _read_if_there(file)
        added = {token["content"]: token["id"] for token in parts.get("added_tokens") or ()}
    if parts:
        if _read_if_there(folder / "tokenizer_config.json").get("kgpt_exact"):
            parts["normalizer"] = None
        with errors_name(file):
            return Tokenizer(json.dumps(parts))
    with errors_name(folder / "added_tokens.json"):
        added |= _read_if_there(folder / "added_tokens.json")
        special = sorted(added.keys() - {"<unk>"}, key=added.get)
    files = folder / "vocab.json", folder / "merges.txt"
    if not all(map(os.path.lexists, files)):
        return None
    return Tokenizer.from_vocabulary(*files, style=style, special_tokens=special)


# === To a folder ===


@checked
def to_huggingface(
    model,
    folder: str | os.PathLike,
    overwrite: bool = False,
    max_shard_size: int = 5 * 10**9,
) -> None:
    """Writes a model as a folder that Hugging Face's transformers opens, with its tokenizer.

    `AutoModelForCausalLM.from_pretrained(folder)` and `AutoTokenizer.from_pretrained(folder)` give
    the same logits and ids, and `kgpt.from_huggingface(folder)` gives the same model back. The
    tensors are written one by one. A new folder appears only when it is complete, with a manifest
    of hashes, which `from_huggingface` checks. What a power cut leaves of an existing one is the
    earlier model, the new one, or no `config.json`, so that no reader takes it.

    transformers' heads for sequences have no bias. A head's bias is moved into the last layer norm,
    which the head alone reads there, so that the logits are the same; `from_huggingface` takes it
    out again. transformers reads a class from the last token of a row that is no padding: rows are
    padded with the end of text, or with GPT-1's token of the start, and must not end in it.

    Of a GPT-1 tokenizer with `exact=True`, whose way to the words is Python, transformers gets the
    rules that come closest (see `kgpt.Tokenizer`), and `from_huggingface` the exact one.

    Args:
        model: a `CausalLM` or a `GPTBackbone`; a `TextClassifier` or `TextRegressor`, which become
            transformers' models for sequence classification; or a `MultipleChoice`, which becomes
            its double-heads model.
        folder: where to write; must not exist, or be empty.
        overwrite: bool. Whether the model in a folder is replaced; other files stay.
        max_shard_size: int. Most bytes of weights in one file, as far as tensors can be parted.

    Raises:
        ValueError: for what transformers can't represent, such as heads of both orders of a pair,
            or a bias that no shift of the norm gives; and for a folder that is in use.
        OSError: if it can't be written, with the reason; nothing is left of a new folder.

    Example:
        import transformers

        kgpt.to_huggingface(lm, "my-gpt")
        transformers.AutoModelForCausalLM.from_pretrained("my-gpt")
    """
    folder = Path(folder).resolve()
    in_use = folder.exists() and (folder.is_file() or any(folder.iterdir()))
    if in_use and not (overwrite and (folder / "config.json").exists()):
        raise ValueError(
            "The folder must not exist, or be empty; with overwrite=True it may hold a model, with "
            f"a config.json, to be replaced. Received: {folder}, overwrite={overwrite}."
        )
    config = configs.make_config(model)
    backbone, tokenizer = getattr(model, "backbone", model), getattr(model, "tokenizer", None)
    head = {**_head_weights(model), **_norm_with_bias(model)}
    tied_name = (
        "lm_head.weight" if config["architectures"] == ["OpenAIGPTDoubleHeadsModel"] else None
    )
    check_free_space(folder, num_bytes(backbone.variables))
    with files_written_whole(folder, last="config.json", outdated=_OUTDATED) as unfinished:
        _write_json(unfinished / "config.json", config)
        generation = {key: config[key] for key in config if key.endswith("_token_id")}
        _write_json(unfinished / "generation_config.json", generation)
        if tokenizer is not None:
            _write_tokenizer(unfinished, tokenizer, config["n_positions"])
        write_weights(backbone, head, unfinished, max_shard_size, tied_name)


def _write_json(path, content):
    path.write_text(json.dumps(content, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


def _write_tokenizer(folder, tokenizer, max_sequence_length):
    """Writes the library's own file, the older pair of files, and the special tokens."""
    from tokenizers import Tokenizer as RustTokenizer

    rust = RustTokenizer.from_str(tokenizer.get_config()["tokenizer_json"])
    if tokenizer.exact:
        rust.normalizer = gpt1_rules()
    path = folder / "tokenizer.json"
    path.write_text(rust.to_str(pretty=True), encoding="utf-8", newline="\n")
    vocabulary = sorted(rust.get_vocab(with_added_tokens=True).items(), key=lambda item: item[1])
    merges = json.loads(rust.to_str())["model"]["merges"]
    _write_json(folder / "vocab.json", dict(vocabulary))
    lines = ["#version: 0.2", *(" ".join(pair) for pair in merges), ""]
    (folder / "merges.txt").write_text("\n".join(lines), encoding="utf-8", newline="\n")
    added = {token: tokenizer.token_to_id(token) for token in tokenizer.special_tokens}
    _write_json(folder / "added_tokens.json", added)
    end, pad = configs.end_and_pad_ids(tokenizer)
    unknown = tokenizer.token_to_id("<unk>")
    ids = {"bos_token": end, "eos_token": end, "pad_token": pad}
    ids["unk_token"] = end if unknown is None else unknown  # GPT-2's own files have it so too
    special = {name: tokenizer.id_to_token(i) for name, i in ids.items() if i is not None}
    _write_json(folder / "special_tokens_map.json", special)
    settings = {
        "tokenizer_class": "PreTrainedTokenizerFast",  # takes tokenizer.json as it is
        "model_max_length": max_sequence_length,
        "clean_up_tokenization_spaces": False,
        "kgpt_exact": tokenizer.exact,
        **special,
    }
    _write_json(folder / "tokenizer_config.json", settings)
