"""The scripts on what a step costs run, at tiny sizes; what they measure there means nothing."""

import sys

import keras
import pytest


def run(monkeypatch, script, *arguments):
    monkeypatch.setattr(sys, "argv", [script.__name__, *map(str, arguments)])
    script.main()


def test_muons_step_stands_beside_adamws(benchmarks, monkeypatch, capsys):
    import muon

    given = ["--preset", "gpt_nano", "--batch", 2, "--dtype", "float32", "--rounds", 2]

    run(monkeypatch, muon, *given, "--steps", 1)

    printed = capsys.readouterr().out
    assert "Muon adds " in printed
    rows = {line.split("|")[1].strip(): line for line in printed.splitlines() if "(" in line}
    assert {"AdamW", "Muon", "Keras's Muon"} < set(rows)
    assert rows["AdamW"].count("1.00 (1.00 to 1.00)") == 2


@pytest.mark.skipif(sys.platform == "win32", reason="measures resident memory by resource")
def test_plain_attention_is_measured_where_it_is_asked_for(benchmarks, monkeypatch, capsys):
    import attention_memory

    from kgpt.kernels import attention

    ways = []
    monkeypatch.setattr(attention, "choice", lambda *_: ways.append("own") or "reference")
    monkeypatch.setattr(attention, "tiled", lambda *_: pytest.fail("not plain"))

    run(monkeypatch, attention_memory, "--worker", 1024, "--plain")

    assert float(capsys.readouterr().out) >= 0
    assert not ways


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
@pytest.mark.parametrize("part", ["imports", "gradients", "step", "peer's step"])
def test_parts_of_a_step_have_a_peak_of_memory(benchmarks, monkeypatch, capsys, part):
    if keras.config.backend() != "tensorflow":
        pytest.skip("measures TensorFlow")
    import step_memory

    run(monkeypatch, step_memory, "--size", "tiny", "--worker", part, 1)

    megabytes, unit = capsys.readouterr().out.split()
    assert unit == "MB"
    assert float(megabytes) >= 0
