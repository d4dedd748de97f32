"""Hugging Face's hub: the name of a repository -> a folder in its cache."""

import contextlib
import os
import re
from pathlib import Path

from kgpt.arguments import refuse
from kgpt.convert.weights import import_extra
from kgpt.files import MANIFEST

ON_HUB = "hf://"  # before the name of a repository, so that it is not one of a folder
FILES = [
    "config.json",
    "model.safetensors",
    "model-*-of-*.safetensors",
    "model.safetensors.index.json",
    "tokenizer.json",
    "tokenizer_config.json",
    "added_tokens.json",
    "vocab.json",
    "merges.txt",
]


def downloaded(
    name_or_folder,
    revision=None,
    cache_dir=None,
    files=(*FILES, MANIFEST),
    argument="name_or_folder",
    name=None,
) -> Path:
    """Returns the folder itself, or the one in the hub's cache after the download.

    Args:
        name_or_folder: as for `from_huggingface`, where `hf://` may stand before the name.
        revision: as for `from_huggingface`.
        cache_dir: as for `from_huggingface`.
        files: patterns of the names of the files.
        argument: what the user's argument is called, for messages.
        name: what the user typed, where it is something else.
    """
    if not isinstance(name_or_folder, str | os.PathLike):
        hint = 'Try "openai-community/gpt2", or the path of a folder.'
        refuse(argument, name_or_folder, "a repository's name or a path", hint, TypeError)
    given = os.fspath(name_or_folder)
    repository = given.removeprefix(ON_HUB)
    if given == repository and Path(given).is_dir():
        return Path(given)
    is_name = re.fullmatch(r"\w[\w.-]*(/\w[\w.-]*)?", repository)
    if not isinstance(name_or_folder, str) or not is_name:
        example = given.removesuffix(repository) + "openai-community/gpt2"
        raise FileNotFoundError(
            f"{argument} must be a folder that exists, or the name of a repository on the hub, "
            f'such as "{example}". Received: {given!r}.'
        )
    hub = import_extra("huggingface_hub")
    with _errors_of_hub(name or given):
        return Path(
            hub.snapshot_download(
                repository, revision=revision, cache_dir=cache_dir, allow_patterns=files
            )
        )


@contextlib.contextmanager
def _errors_of_hub(name):
    """Inside, what the hub can't give ends in one line that says how to bring the files."""
    try:
        yield
    except Exception as error:
        kind = type(error)
        if not kind.__module__.startswith(("huggingface_hub", "requests", "httpx", "urllib3")):
            raise
        raise FileNotFoundError(
            f"The files of {name!r} are not in the hub's cache, and the hub could not give "
            f"them ({kind.__name__}). Bring the folder with config.json, model.safetensors and "
            "the tokenizer's files from a machine that is online, and pass its path."
        ) from None
