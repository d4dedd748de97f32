"""Presets as keras-hub has them: a name, a folder or a handle on the hub -> a model, and back."""

import difflib
import inspect
import os
import re
import shutil
import tempfile
from pathlib import Path

from kgpt.arguments import check_keywords, flag, named_parameters, refuse, string
from kgpt.console import show
from kgpt.convert import configs
from kgpt.convert.hub import FILES, ON_HUB, downloaded
from kgpt.convert.huggingface import folder_has_head, options_in, read_model, to_huggingface
from kgpt.convert.keras_file import load_keras_file
from kgpt.convert.model_card import model_card
from kgpt.convert.weights import import_extra
from kgpt.files import MANIFEST, files_written_whole, written_whole
from kgpt.models import GPTBackbone, Head
from kgpt.models.freezing import own_weights
from kgpt.models.presets import HUB, PRESETS

_MODEL_FILE = "model.keras"
_OF_SIZES = ("config.json", _MODEL_FILE)  # what is read for a model without its weights
# What may be chosen beside weights that exist: no shape depends on it.
_FREE = ("dropout", "attention_dropout", "recompute", "dtype", "name", "trainable")


def load(cls, name, load_weights: bool, options: dict):
    """Returns what `from_preset` of a class returns."""
    of_body, of_head = _parted(cls, options)
    if not isinstance(name, str | os.PathLike):
        hint = 'name is what the model is called: try preset="gpt2".' if "name" in options else ""
        refuse("preset", name, "a name, a folder or a handle on the hub", hint)
    if not isinstance(load_weights, bool):
        refuse("load_weights", load_weights, "a bool")
    source, is_size = name, isinstance(name, str) and name in PRESETS
    if is_size and not load_weights:
        return _with_head(cls, GPTBackbone(**{**PRESETS[name], **of_body}), of_head)
    if is_size:
        if name not in HUB:
            raise ValueError(
                f"There are no published weights for {name!r}. Received: load_weights=True. Try "
                f"{cls.__name__}.from_preset({name!r}, load_weights=False), which has new weights, "
                f"or one of {', '.join(HUB)}."
            )
        source = ON_HUB + HUB[name]
    elif not (str(name).startswith(ON_HUB) or os.path.isdir(name)):
        _refuse_name(name)
    if load_weights:
        fixed = [option for option in of_body if option not in _FREE]
        if fixed:
            raise ValueError(
                f"{fixed[0]} is given by the weights of {name!r}. Received: "
                f"{fixed[0]}={of_body[fixed[0]]!r}, load_weights=True. Leave it out, or pass "
                "load_weights=False for new weights."
            )
    files = (*FILES, MANIFEST, _MODEL_FILE) if load_weights else _OF_SIZES
    source = downloaded(source, files=files, argument="preset", name=name)
    if os.path.lexists(source / _MODEL_FILE):
        return _from_keras_file(cls, source / _MODEL_FILE, load_weights, of_body, of_head)
    if not load_weights:
        body, head = options_in(source, _task_of(cls) if issubclass(cls, Head) else None)
        of_head, _ = configs.chosen(head, of_head)
        return _with_head(cls, GPTBackbone(**{**body, **of_body}), of_head)
    return _from_huggingface(cls, source, of_body, of_head)


def _task_of(cls) -> str | None:
    return next((task for task, model in configs.MODELS.items() if cls is model), None)


def _from_huggingface(cls, source, of_body, of_head):
    task = _task_of(cls)
    if task not in (None, "backbone", "causal_lm") and not folder_has_head(source, task):
        task = None
    if task is None:
        lm = read_model(source, "causal_lm", of_body, {})
        return _with_fresh_head(cls, lm.backbone, lm.tokenizer, of_head)
    tokenizer = of_head.pop("tokenizer", "auto")
    return read_model(source, task, of_body, of_head, tokenizer)


def _from_keras_file(cls, path, load_weights, of_body, of_head):
    model = load_keras_file(path, cls)
    if type(model) is cls and load_weights and not (of_body or of_head):
        return model
    body = getattr(model, "backbone", model)
    if not load_weights or of_body:
        fresh = GPTBackbone.from_config({**body.get_config(), **of_body})
        if load_weights:
            fresh.set_weights(body.get_weights())
        body = fresh
    if issubclass(cls, GPTBackbone):
        return body
    tokenizer = getattr(model, "tokenizer", None) if load_weights else None
    if type(model) is cls:
        options, is_kept = configs.chosen({**model.get_config(), "tokenizer": tokenizer}, of_head)
        new = cls.from_config({**options, "backbone": body})
        return _with_weights(new, model) if load_weights and is_kept else new
    if issubclass(cls, Head) and load_weights:
        return _with_fresh_head(cls, body, tokenizer, of_head)
    return cls(body, **{"tokenizer": tokenizer, **of_head})


def _with_weights(head, model):
    """Returns a head with the weights of another of its sizes, whose body has them already."""
    for new, own in zip(own_weights(head), own_weights(model), strict=True):
        new.assign(own)
    return head


def _with_fresh_head(cls, body, tokenizer, of_head):
    """Returns a new head; the tokens that it needs are added where the tokenizer lacks them."""
    if tokenizer is not None and "tokenizer" not in of_head:
        tokenizer = tokenizer.with_special_tokens()
        body = body.with_vocabulary_size(max(body.vocabulary_size, tokenizer.vocabulary_size))
    return cls(body, **{"tokenizer": tokenizer, **of_head})


def _with_head(cls, body, of_head):
    if issubclass(cls, GPTBackbone):
        return body
    return cls(body, **of_head)


def _parted(cls, options) -> tuple[dict, dict]:
    """Returns the options of the body and those of the head; what both have is the head's."""
    further = ["name", "trainable"]
    body = [*named_parameters(inspect.signature(GPTBackbone.__init__)), *further]
    head = []
    if not issubclass(cls, GPTBackbone):
        named = named_parameters(inspect.signature(cls.__init__))
        head = [*(name for name in named if name != "backbone"), *further]
    if issubclass(cls, Head) and "activation" in options:
        check_keywords(f"{cls.__name__}.from_preset", ["backbone"], ["activation"])
    known = [*head, *(p for p in body if p not in head)]
    unknown = [name for name in options if name not in known]
    if unknown:
        check_keywords(f"{cls.__name__}.from_preset", ["load_weights", *known], unknown)
    of_head = {name: value for name, value in options.items() if name in head}
    return {k: v for k, v in options.items() if k not in of_head}, of_head


def _refuse_name(name):
    meant = str(name).replace("-", "_").removesuffix("_base_en")  # as keras-hub has it
    near = difflib.get_close_matches(meant, PRESETS, 1)
    hint = f"Did you mean {near[0]!r}? " if near else ""
    if isinstance(name, str) and re.fullmatch(r"[\w.-]+/[\w.-]+", name):
        hint = f"Did you mean 'hf://{name}'? "
    raise ValueError(
        f"There is no preset and no folder of this name. Received: {name!r}. {hint}A preset is one "
        f"of {', '.join(PRESETS)}; a folder; or a handle on the hub, hf://organization/name."
    )


def _check_card(function_name, card):
    """Raises TypeError for words that a card lacks, and that a function can't pass on to it."""
    known = [*named_parameters(inspect.signature(model_card))][2:]  # after model and path
    check_keywords(function_name, known, [name for name in card if name not in known])


def save(model, folder, **card):
    """Writes what `save_to_preset` says."""
    _check_card("save_to_preset", card)
    folder = Path(folder)
    if folder.is_file() or (folder.exists() and any(folder.iterdir())):
        raise ValueError(
            f"The folder must not exist, or be empty. Received: folder={str(folder)!r}, which is "
            "in use. Try another name, or remove it first: shutil.rmtree(folder)."
        )
    with tempfile.TemporaryDirectory() as parent:
        text = Path(parent, "README.md")
        model_card(model, text, **card)  # first: where it is refused, nothing is written
        _write_model(model, folder)
        with written_whole(folder / "README.md") as unfinished:
            shutil.copyfile(text, unfinished)


def _write_model(model, folder):
    try:
        to_huggingface(model, folder)
    except ValueError as error:
        with files_written_whole(folder, last=_MODEL_FILE) as unfinished:
            model.save(unfinished / _MODEL_FILE)
            if getattr(model, "tokenizer", None) is not None:
                model.tokenizer.save(unfinished / "tokenizer.json")
        show(f"Written as {_MODEL_FILE}, since transformers has no place for it: {error}")


def push(model, repo_id, private, token, card) -> str:
    """Uploads what `save` writes, and returns the address."""
    repo_id, private = string("repo_id", repo_id), flag("private", private)
    _check_card("push_to_hub", card)
    hub = import_extra("huggingface_hub")
    api = hub.HfApi(token=token)
    with tempfile.TemporaryDirectory() as parent:
        folder = Path(parent, "model")
        save(model, folder, **card)
        created = api.create_repo(repo_id, private=private, exist_ok=True)
        api.upload_folder(repo_id=created.repo_id, folder_path=str(folder))
    return str(created)
