"""`import kgpt` brings little beyond `import keras`."""

import json
import os
import subprocess
import sys

import keras
import pytest

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


@pytest.fixture(scope="module")
def modules_after():
    """A function: the modules in a fresh process after an import."""

    def modules(name):
        code = f"import json, sys; import {name}; print(json.dumps(sorted(sys.modules)))"
        environment = {**os.environ, "KERAS_BACKEND": keras.config.backend()}
        done = subprocess.run(
            [sys.executable, "-c", code], env=environment, check=True, capture_output=True
        )
        return set(json.loads(done.stdout.splitlines()[-1]))

    return modules


def test_what_is_needed_later_is_not_imported_with_kgpt(modules_after):
    added = modules_after("kgpt") - modules_after("keras")

    assert added & LOADED_WHEN_USED == set()
