"""Keras's own files in folders of models: checked for what Keras itself lets pass."""

import json
import os
import re
import zipfile
from pathlib import Path

import keras

from kgpt.files import check_manifest
from kgpt.models.presets import num_parameters
from kgpt.reading import check_file, errors_name, one_line

_CONFIG = "config.json"
_MOST_CONFIG_BYTES = 2**28
_MOST_GROWTH = 100  # Keras's files are not compressed


def load_keras_file(path: Path, cls: type):
    """Returns the model in a `.keras` file, not compiled; of a class that may not be registered.

    Keras's zip has a checksum for each part, but Keras goes on without it where it fails.

    Raises:
        ValueError: in one line that names the file, if it is damaged, larger in memory than it may
            be, has weights that are no numbers, or a class that is not known here.
    """
    check_file(path)
    check_manifest(path.parent, [path.name])
    _check_zip(path)
    with errors_name(path):
        try:
            return keras.models.load_model(path, {cls.__name__: cls}, compile=False)
        except TypeError as error:
            unknown = re.search(r"Could not locate class '(\w+)'", str(error))
            if unknown is None:
                raise
            raise ValueError(
                f"The file needs a class that is not known here. Received: {unknown[1]}. Import "
                "what defines it, and register it: @keras.saving.register_keras_serializable()."
            ) from None


def _check_zip(path):
    size = os.path.getsize(path)
    try:
        with zipfile.ZipFile(path) as file:
            sizes = {info.filename: info.file_size for info in file.infolist()}
            if sum(sizes.values()) > _MOST_GROWTH * size:
                raise ValueError(
                    f"it has {size:,} bytes, and would have {sum(sizes.values()):,} in memory"
                )
            if sizes.get(_CONFIG, 0) > _MOST_CONFIG_BYTES:
                raise ValueError(f"its config has {sizes[_CONFIG]:,} bytes")
            damaged = file.testzip()
            if damaged is not None:
                raise ValueError(f"the content of {damaged} is not what was written")
            config = json.loads(file.read(_CONFIG))
    except Exception as error:  # a zip is many formats in one
        if isinstance(error, MemoryError):
            raise
        raise ValueError(
            f"{path} is damaged, or no file of Keras: {one_line(error)}. Try another copy."
        ) from None
    with errors_name(path):
        _check_sizes(config, sum(sizes.values()))


def _check_sizes(config, num_bytes):
    """Raises ValueError for a body of which the file can't have the weights, 4 bits at least."""
    parts = [config]
    for part in parts:
        if isinstance(part, dict) and part.get("registered_name") == "kgpt>GPTBackbone":
            needed = num_parameters(**part["config"])
            if needed > 4 * num_bytes:
                raise ValueError(
                    "The weights must be those of the model in the config. Received: a model of "
                    f"{needed:,} weights and {num_bytes:,} bytes. Try another copy."
                )
        if isinstance(part, dict | list):
            parts.extend(part.values() if isinstance(part, dict) else part)
