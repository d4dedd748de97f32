"""The script on what Muon costs runs at a tiny size; what it measures there means nothing."""

import sys


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
