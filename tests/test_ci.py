"""The workflow and its script: they can't run here, but what they say can be compared."""

import runpy
import tomllib
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
pytestmark = pytest.mark.skipif(
    not (ROOT / ".github").is_dir(), reason="a source distribution has no workflow"
)
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]


@pytest.fixture(scope="module")
def jobs():
    yaml = pytest.importorskip("yaml", reason="the workflow is YAML")
    text = (ROOT / ".github" / "workflows" / "tests.yml").read_text(encoding="utf-8")
    return yaml.safe_load(text)["jobs"]


def test_the_workflow_runs_on_each_system_and_python_that_the_package_names(jobs):
    matrix = jobs["tests"]["strategy"]["matrix"]
    prefix = "Programming Language :: Python :: 3."
    named = [c.split(" :: ")[-1] for c in PROJECT["classifiers"] if c.startswith(prefix)]

    assert matrix["python"] == named
    assert [system.split("-")[0] for system in matrix["os"]] == ["ubuntu", "macos", "windows"]


def test_the_workflow_runs_the_tests_on_each_backend(jobs):
    commands = " ".join(step.get("run", "") for step in jobs["tests"]["steps"])

    for backend in ("tensorflow", "jax", "torch"):
        assert f"KERAS_BACKEND={backend} python -m pytest" in commands
    assert "python .ci/install_extras.py" in commands


def test_extras_are_installed_together_or_one_by_one(monkeypatch, capsys):
    script = runpy.run_path(str(ROOT / ".ci" / "install_extras.py"))
    calls = []

    def install(requirements):
        calls.append(requirements)
        return len(requirements) == 1 and not requirements[0].startswith("ctranslate2")

    monkeypatch.setitem(script["main"].__globals__, "install", install)
    with pytest.raises(SystemExit) as ended:
        script["main"]()

    assert ended.value.code == 0
    assert calls[0] == PROJECT["optional-dependencies"]["test"]
    assert calls[1:] == [[one] for one in calls[0]]
    assert capsys.readouterr().out.startswith("Left out: ctranslate2")


def test_a_system_without_a_backend_fails(monkeypatch):
    script = runpy.run_path(str(ROOT / ".ci" / "install_extras.py"))
    names = script["main"].__globals__
    monkeypatch.setitem(names, "requirements", lambda: ["jax>=0.10", "torch==2.13.0"])
    monkeypatch.setitem(names, "install", lambda wanted: wanted == ["jax>=0.10"])

    with pytest.raises(SystemExit) as ended:
        script["main"]()

    assert ended.value.code == 1
