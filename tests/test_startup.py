"""`import kgpt` brings little beyond `import keras`."""

import json
import os
import subprocess
import sys

import keras

LOADED_WHEN_USED = {
    "tokenizers",
    "keras_hub",
    "matplotlib",
    "transformers",
    "safetensors",
    "huggingface_hub",
    "grain",
    "scipy",
    "sklearn",
    "tensorflow",
}


ADDED = """
import json, sys
import keras
before = set(sys.modules)
import kgpt, kgpt.convert.keras_hub
print(json.dumps(sorted(set(sys.modules) - before)))
"""


def test_what_is_needed_later_is_not_imported_with_kgpt():
    environment = {**os.environ, "KERAS_BACKEND": keras.config.backend()}

    done = subprocess.run(
        [sys.executable, "-c", ADDED], env=environment, check=True, capture_output=True
    )

    added = set(json.loads(done.stdout.splitlines()[-1]))
    assert "kgpt" in added
    assert added & LOADED_WHEN_USED == set()
