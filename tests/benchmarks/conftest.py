"""The scripts on pretraining as modules at a tiny size, and small files of their data."""

import json
import lzma
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

BENCHMARKS = Path(__file__).resolve().parents[2] / "benchmarks"
WORDS = ["the", "film", "plot", "actor", "scene", "music", "story", "was", "is", "and"]
GOOD, BAD = ["good", "fine", "great", "superb"], ["bad", "dull", "awful", "poor"]


def review(rng, is_good):
    return " ".join(rng.choice([*WORDS, *(GOOD if is_good else BAD) * 2], 12))


@pytest.fixture(scope="module")
def reviews(tmp_path_factory):
    folder, rng = tmp_path_factory.mktemp("reviews"), np.random.default_rng(0)
    for name, number in (("train", 60), ("test", 30), ("unlabelled", 60)):
        with lzma.open(folder / f"{name}.jsonl.xz", "wt", encoding="utf-8") as file:
            for i in range(number):
                label = {} if name == "unlabelled" else {"label": ("neg", "pos")[i % 2]}
                file.write(json.dumps({"text": review(rng, i % 2), **label}) + "\n")
    return folder


@pytest.fixture(scope="module")
def sentences(tmp_path_factory):
    folder, rng = tmp_path_factory.mktemp("sentences"), np.random.default_rng(1)
    for name, number in (("train", 60), ("test", 30)):
        lines = [f"{review(rng, i % 2)}\t{i % 2}\n" for i in range(number)]
        (folder / f"{name}.tsv").write_text("".join(lines), encoding="utf-8")
    return folder


@pytest.fixture
def benchmarks(monkeypatch):
    """Makes the scripts importable."""
    monkeypatch.syspath_prepend(str(BENCHMARKS))


@pytest.fixture
def scripts(monkeypatch, benchmarks):
    import gpt1_paper
    import gpt1_tasks
    import label_efficiency

    tiny = {"num_layers": 2, "num_heads": 2, "hidden_dim": 16}
    monkeypatch.setattr(label_efficiency, "SIZES", tiny)
    monkeypatch.setattr(label_efficiency, "VOCABULARY_SIZE", 300)
    monkeypatch.setattr(label_efficiency, "BATCH", 4)

    def run(script, *arguments):
        monkeypatch.setattr(sys, "argv", [script.__name__, *map(str, arguments)])
        script.main()

    return SimpleNamespace(
        label_efficiency=label_efficiency, paper=gpt1_paper, tasks=gpt1_tasks, run=run
    )
