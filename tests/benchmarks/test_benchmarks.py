"""The benchmarks run, at tiny sizes; what they measure there means nothing."""

import importlib.util
import json
import math
import os
import subprocess
import sys
from pathlib import Path

import keras
import pytest

BENCHMARKS = Path(__file__).resolve().parents[2] / "benchmarks"


def run(script, *arguments, backend):
    environment = {**os.environ, "KERAS_BACKEND": backend}
    command = [sys.executable, BENCHMARKS / script, *map(str, arguments)]
    return subprocess.run(command, env=environment, capture_output=True, text=True, timeout=600)


def rows_of(path):
    rows = json.loads(path.read_text())["rows"]
    assert [row for row in rows if "error" in row["facts"]] == []
    return rows


@pytest.fixture(scope="module")
def on_jax():
    if keras.config.backend() != "jax":
        pytest.skip("starts processes of its own on jax: run once, by the suite with that backend")
    for package in ("jax", "keras_hub"):
        if importlib.util.find_spec(package) is None:
            pytest.skip(f"{package}, which is measured here, is not installed")


@pytest.mark.slow
@pytest.mark.usefixtures("on_jax")
def test_sets_run_and_write_finite_positive_ratios(tmp_path):
    options = ["--quick", "--backends", "jax", "--peers", "keras_hub", "--dtypes", "float32"]
    options += ["--dropouts", "0.1", "--results", tmp_path]

    done = run("run.py", "train", "tokenize", *options, backend="jax")
    training, tokenizing = rows_of(tmp_path / "train.json"), rows_of(tmp_path / "tokenize.json")

    assert done.returncode == 0, done.stderr
    assert {row["implementation"] for row in [*training, *tokenizing]} == {"kgpt", "keras_hub"}
    for row in [*training, *tokenizing]:
        assert math.isfinite(row["ratio"])
        assert row["ratio"] > 0
        assert f"| {row['case']} | {row['implementation']} |" in done.stdout
    assert all(row["share_of_limit"] > 0 for row in training)


@pytest.mark.slow
@pytest.mark.usefixtures("on_jax")
@pytest.mark.parametrize("backend", ["jax", "torch"])
def test_the_gpu_benchmark_runs_without_a_gpu_at_tiny_shapes(tmp_path, backend):
    if importlib.util.find_spec(backend) is None:
        pytest.skip(f"{backend}, which is measured here, is not installed")

    done = run("gpu.py", "--cpu-test", "--results", tmp_path, backend=backend)
    rows = rows_of(tmp_path / "gpu.json")

    assert done.returncode == 0, done.stderr
    assert {row["facts"]["batch"] for row in rows} == {1, 2, 8}
    assert {row["implementation"] for row in rows} == {"kgpt", "kgpt_full_logits", "keras_hub"}
    assert all(row["value"] > 0 and row["facts"]["peak_mb"] > 0 for row in rows)
    found = {
        row["case"].removeprefix("tiny, training, "): row["facts"]["attention"]
        for row in rows
        if row["implementation"] == "kgpt" and "training" in row["case"]
    }
    without = "fused" if backend == "torch" else "reference"  # PyTorch's serves a CPU too
    assert found == {
        "dropout 0.1": "reference",
        "dropout 0.1, attention_dropout 0": without,
        "no dropout": without,
    }
    assert f"| {without} |" in done.stdout


@pytest.mark.usefixtures("on_jax")
def test_the_gpu_benchmark_refuses_to_measure_a_cpu(tmp_path):
    import jax

    if jax.default_backend() != "cpu":
        pytest.skip("there is an accelerator")

    done = run("gpu.py", "--results", tmp_path, backend="jax")

    assert done.returncode == 1
    assert "jax sees no accelerator" in done.stderr
    assert not list(tmp_path.iterdir())


def test_the_tables_in_the_readme_are_replaced_and_the_rest_stays(tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(BENCHMARKS)
    import report

    readme = tmp_path / "README.md"
    readme.write_text(f"before\n{report.BEGIN}\nold\n{report.END}\nafter\n")
    row = {"case": "c", "implementation": "kgpt", "unit": "MB/s", "value": 2.0, "ratios": [1.0]}
    failed = {**row, "implementation": "peer", "facts": {"error": "why"}}
    del failed["value"]
    machine = {"processor": "p", "cores": 2, "python": "3", "versions": {"kgpt": "1"}}
    result = {"set": "tokenize", "command": "c", "rounds": 1, "machine": machine}
    result["limits"] = {"bytes_per_second": 1e9}
    result["rows"] = [{**row, "facts": {"tokens": 1234}}, failed]
    (tmp_path / "tokenize.json").write_text(json.dumps(result))

    report.write_readme(readme, tmp_path)
    report.write_readme(readme, tmp_path)

    text = readme.read_text()
    assert text.startswith("before\n")
    assert text.endswith("after\n")
    assert "old" not in text
    assert text.count("| c | kgpt | 2 | 1.00 | 1,234 |") == 1
    assert "Not measured: c, peer: why." in text


@pytest.mark.slow
def test_the_first_command_and_its_peer_read_the_same_text(tmp_path):
    pytest.importorskip("transformers", reason="the peer")
    pytest.importorskip("torch", reason="the peer's")
    (tmp_path / "book.txt").write_text("It was the best of times.\n" * 400)
    options = f"{tmp_path / 'book.txt'} --vocabulary-size 280 --sequence-length 16 --batch-size 2"
    options += " --steps 2 --epochs 1"

    done = run(
        "first_command.py",
        *("--output", tmp_path / "run", "--seeds", 0, "--rates", 1e-3, f"--options={options}"),
        backend=keras.config.backend(),
    )

    assert done.returncode == 0, done.stderr
    ours, peer = (line.split(" | ") for line in done.stdout.splitlines()[-2:])
    assert "kgpt on" in ours[0]
    assert 0 < float(ours[1]) < 20
    assert 0 < float(peer[1]) < 20
    assert int(peer[2]) >= 1


def test_a_large_corpus_is_measured_in_one_file_and_in_many(tmp_path, monkeypatch, capsys):
    monkeypatch.syspath_prepend(BENCHMARKS)
    import large_corpus

    options = ["--bytes", "200000", "--files", "3", "--folder", str(tmp_path)]
    monkeypatch.setattr(sys, "argv", ["large_corpus.py", *options])
    measure = large_corpus.measure
    monkeypatch.setattr(large_corpus, "in_own_process", lambda folder: measure(Path(folder)))

    large_corpus.main()

    one, many = (
        [float(cell.replace(",", "")) for cell in line.strip("| ").split("|")]
        for line in capsys.readouterr().out.splitlines()[-2:]
    )
    assert (one[:2], many[:2]) == ([1, 100_000], [3, 99_999])
    assert min(*one, *many) >= 0
    assert many[4] >= many[5] > 0
    assert not list(tmp_path.iterdir())


@pytest.mark.slow
@pytest.mark.usefixtures("on_jax")
def test_a_kernel_for_all_three_moves_more_weights_and_the_same_activations():
    sizes = ("--width", 16, "--heads", 4, "--length", 5, "--batch", 4, "--steps", 1)

    done = run("query_key_value.py", *sizes, backend="jax")

    assert done.returncode == 0, done.stderr
    rows = [line.split(" | ") for line in done.stdout.splitlines()[2:]]
    assert [row[1] for row in rows] == ["(D, 3D), viewed", "(D, 3, D)"] * 2
    for viewed, of_its_own in (rows[:2], rows[2:]):
        assert float(viewed[2]) > float(of_its_own[2]) > 0
        assert viewed[3] == of_its_own[3]
