"""What type checkers, and so editors, see of an installed kgpt and of an editable clone."""

import functools
import importlib.util
import inspect
import json
import os
import re
import subprocess
import sys
import sysconfig
import venv
import zipfile
from pathlib import Path

import pytest

import kgpt
from kgpt.generation.arguments import GenerateOptions

ROOT = Path(kgpt.__file__).parents[1]

# Each line says what type it has; a checker that sees another reports it.
USES = """
from collections.abc import Iterator
from pathlib import Path
from typing import Any, assert_type

import keras
import numpy as np

import kgpt

tokenizer = kgpt.Tokenizer.train(["a"], vocabulary_size=300)
assert_type(tokenizer, kgpt.Tokenizer)
assert_type(tokenizer("text"), list[int])
assert_type(tokenizer.encode("text", allow_special=True), list[int])
assert_type(tokenizer.encode_batch(["text"]), list[list[int]])
assert_type(tokenizer.decode([1]), str)
assert_type(tokenizer.decode_batch(np.array([[1]])), list[str])

backbone = kgpt.GPTBackbone(300, 1, 1, 8, activation=keras.activations.relu)
assert_type(backbone, kgpt.GPTBackbone)
assert_type(kgpt.GPTBackbone.from_preset("gpt2", dropout=0.2), kgpt.GPTBackbone)
assert_type(kgpt.CausalLM.from_preset("gpt2"), kgpt.CausalLM)
lm = kgpt.CausalLM(backbone, tokenizer=tokenizer)
assert_type(lm, kgpt.CausalLM)
assert_type(lm.backbone, kgpt.GPTBackbone)
lm.compile(keras.optimizers.Adam(1e-3))

assert_type(lm.generate("x"), str)
assert_type(lm.generate(["x"]), list[str])
assert_type(lm.generate([1, 2]), list[int])
assert_type(lm.generate([[1, 2]]), list[list[int]])
assert_type(lm.generate("x", 100, "greedy", temperature=0.5, stop="."), str)
assert_type(lm.generate("x", sampler=object(), stop_token_ids=[1]), str)
assert_type(lm.generate("x", stream=True), Iterator[str])
assert_type(lm.generate([1], stream=True), Iterator[int])
assert_type(lm.generate("x", num_return_sequences=2), list[str])
assert_type(lm.generate(["x"], num_return_sequences=2), list[list[str]])
assert_type(lm.generate("x", return_log_probabilities=True), tuple[str, list[float]])
assert_type(
    lm.generate(["x"], return_log_probabilities=True), tuple[list[str], list[list[float]]]
)
assert_type(lm.generate("x", 5, "greedy", None, 0, False), Any)

assert_type(lm.score("x"), float)
assert_type(lm.score(["x"], reduction="mean"), np.ndarray)
assert_type(lm.score([1, 2], reduction="none"), np.ndarray)
assert_type(lm.score(["x"], prompts="y", reduction="none"), list[np.ndarray])
assert_type(lm.perplexity(["x"]), float)
assert_type(lm.embed(["x"]), np.ndarray)

classifier = kgpt.TextClassifier(lm.backbone, 2, tokenizer=tokenizer)
assert_type(classifier.predict_text(["x"]), list[Any])
assert_type(classifier.predict_text(["x"], probabilities=True), np.ndarray)
assert_type(kgpt.TextRegressor(backbone).predict_text(["x"]), np.ndarray)
chooser = kgpt.MultipleChoice(backbone)
assert_type(chooser.predict_text(["x"], [["a", "b"]]), list[int])
assert_type(chooser.predict_text(["x"], [["a", "b"]], probabilities=True), np.ndarray)
kgpt.Head(backbone, keras.layers.Dense(1), task_metrics=[keras.metrics.Mean()])

tokens = kgpt.data.write_tokens(["a"], tokenizer, "a.npy", validation_fraction=0.1)
assert_type(tokens.path, Path)
kgpt.data.windows(tokens.validation_path, 5, 2)
kgpt.recipes.AdamW(kgpt.recipes.WarmupLinear(1e-3, 5), layer_decay=0.9)
kgpt.callbacks.GenerateSamples("a", 5, seed=1)
kgpt.from_huggingface("gpt2", tokenizer=None).generate("x")
"""
# Each line is wrong.
MISTAKES = """
kgpt.GPTBackbone(300, 1, 1)
lm.generate("x", max_new_token=5)
lm.score(["x"], reduction="none").sum()
lm.generate("x").append("y")
tokenizer.encode("a", allow=True)
tokenizer.decode([1]) + 1
kgpt.data.windows("a", 5)
kgpt.data.classification(["a"], [1])
kgpt.callbacks.Scores()
classifier.predict_text(["a"], threshold="0.5")
"""


def blocks_to_read() -> list[str]:
    """The code that one sees first: README's and that of a day."""
    files = (ROOT / "README.md", ROOT / "docs" / "a_day.md")
    text = "".join(file.read_text(encoding="utf-8") for file in files)
    return re.findall(r"^```python\n(.*?)^```", text, re.M | re.S)


# === Environments ===


def make_environment(folder: Path) -> Path:
    """Makes an environment with all packages of this one but kgpt; returns its site-packages."""
    venv.create(folder, symlinks=os.name != "nt")
    scheme = {"base": str(folder), "platbase": str(folder)}
    site_packages = Path(sysconfig.get_path("purelib", "venv", scheme))
    # The path alone: an editable install in it is a line in a file that is not read from here.
    (site_packages / "other_packages.pth").write_text(sysconfig.get_path("purelib"))
    return site_packages


def install_wheel(site_packages: Path):
    for package in ("hatchling", "pip"):
        if importlib.util.find_spec(package) is None:
            pytest.skip(f"{package} is needed to build the wheel")
    options = ["--no-deps", "--no-build-isolation", "--disable-pip-version-check", "-q"]
    command = [sys.executable, "-m", "pip", "wheel", *options, "-w", str(site_packages), str(ROOT)]
    subprocess.run(command, check=True)
    [wheel] = site_packages.glob("kgpt*.whl")
    with zipfile.ZipFile(wheel) as file:
        file.extractall(site_packages)


def install_editable(site_packages: Path):
    (site_packages / "kgpt_editable.pth").write_text(str(ROOT))


@pytest.fixture(scope="module")
def make_project(tmp_path_factory):
    """A function that makes a folder of code to check, whose environment has kgpt."""
    return functools.cache(functools.partial(write_project, tmp_path_factory))


def write_project(tmp_path_factory, install):
    if not (ROOT / "README.md").exists():
        pytest.skip("README.md and pyproject.toml are in a clone")
    folder = tmp_path_factory.mktemp("project")
    install(make_environment(folder / "environment"))
    (folder / "uses.py").write_text(USES)
    (folder / "mistakes.py").write_text(USES + MISTAKES)
    for number, code in enumerate(blocks_to_read(), 1):
        (folder / f"block_{number}.py").write_text(code)
    return folder


def python_of(project: Path) -> str:
    folder = "Scripts" if os.name == "nt" else "bin"
    return str(project / "environment" / folder / "python")


# === Checkers: each returns `(file, line, message)` of what is wrong ===


def mypy(project):
    pytest.importorskip("mypy", reason="the extra `test`")
    options = ["--ignore-missing-imports", "--no-error-summary", "--hide-error-context"]
    options += ["--cache-dir", str(project / "cache"), "--python-executable", python_of(project)]
    command = [sys.executable, "-m", "mypy", *options, *map(str, sorted(project.glob("*.py")))]
    run = subprocess.run(command, cwd=project, capture_output=True, text=True)
    assert not run.stderr
    found = re.findall(r"^(\S+\.py):(\d+): error: (.*)$", run.stdout, re.M)
    return [(Path(name).name, int(line), message) for name, line, message in found]


def pyright(project):
    pytest.importorskip("basedpyright", reason="the extra `test`")
    settings = {"typeCheckingMode": "standard", "include": ["*.py"]}  # as pyright has it
    (project / "pyrightconfig.json").write_text(json.dumps(settings))
    options = ["--outputjson", "--pythonpath", python_of(project)]
    command = [sys.executable, "-m", "basedpyright", *options]
    run = subprocess.run(command, cwd=project, capture_output=True, text=True)
    return [
        (Path(one["file"]).name, one["range"]["start"]["line"] + 1, one["message"])
        for one in json.loads(run.stdout)["generalDiagnostics"]
        if one["severity"] == "error"
    ]


def is_of_keras(project, name, line) -> bool:
    """Whether an error is that `keras.models.load_model` may return anything."""
    code = (project / name).read_text()
    loaded = re.findall(r"^(\w+) = keras\.models\.load_model\(", code, re.M)
    return any(f"{variable}." in code.splitlines()[line - 1] for variable in loaded)


@pytest.mark.parametrize(
    ("checker", "install"),
    [
        (mypy, install_wheel),
        (pyright, install_editable),
    ],
)
def test_checkers_find_the_mistakes_and_no_others(make_project, checker, install):
    project = make_project(install)

    found = checker(project)

    of_correct = [one for one in found if one[0] != "mistakes.py"]
    assert not [one for one in of_correct if not is_of_keras(project, *one[:2])]
    first = len(USES.splitlines()) + 1
    lines = {line for name, line, _ in found if name == "mistakes.py"}
    mistakes = {first + i: code for i, code in enumerate(MISTAKES.splitlines()) if code}
    assert {mistakes.get(line) for line in lines} == set(mistakes.values())


# === Without a checker ===


def test_the_options_of_generate_are_all_there():
    parameters = inspect.signature(kgpt.CausalLM.generate).parameters
    result = {"stream", "num_return_sequences", "return_log_probabilities"}

    positional = {"model", "prompts", "max_new_tokens", "sampler"}
    assert set(parameters) - result - positional == set(GenerateOptions.__annotations__)
    for name, annotation in GenerateOptions.__annotations__.items():
        assert parameters[name].annotation == annotation


def test_the_package_says_that_it_has_types():
    assert (Path(kgpt.__file__).parent / "py.typed").exists()
