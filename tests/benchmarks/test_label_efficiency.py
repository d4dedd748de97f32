"""What pretraining is worth: the scripts at a tiny size, from the published files to the tables."""

import json
import lzma
import sys
from pathlib import Path

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
def scripts(monkeypatch):
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    import gpt1_figure2
    import label_efficiency

    tiny = {"num_layers": 2, "num_heads": 2, "hidden_dim": 16}
    monkeypatch.setattr(label_efficiency, "SIZES", tiny)
    monkeypatch.setattr(label_efficiency, "VOCABULARY_SIZE", 300)
    monkeypatch.setattr(label_efficiency, "BATCH", 4)

    def run(script, *arguments):
        monkeypatch.setattr(sys, "argv", [script.__name__, *map(str, arguments)])
        script.main()

    return label_efficiency, gpt1_figure2, run


@pytest.mark.filterwarnings("ignore:The text is too small")
def test_a_body_is_pretrained_and_compared_once_and_drawn(
    scripts, reviews, sentences, tmp_path, capsys
):
    pytest.importorskip("sklearn", reason="the baseline is scikit-learn's")
    label_efficiency, _, run = scripts
    given = ["--reviews", reviews, "--sentences", sentences, "--output", tmp_path]
    given += ["--tokens", 4000, "--length", 24, "--labels", 20, "--seeds", 0]
    given += ["--dtype", "float32", "--methods", "pretrained", "LoRA", "counted words"]

    run(label_efficiency, *given, "--sets", "reviews")
    made = {path: path.stat().st_mtime_ns for path in (tmp_path / "results").iterdir()}
    capsys.readouterr()
    run(label_efficiency, *given)

    results = label_efficiency.read_results(tmp_path / "results")
    printed = capsys.readouterr().out
    assert len(results) == 6
    assert all(path.stat().st_mtime_ns == when for path, when in made.items())
    assert results["sentences", "counted words", 20][0] > 60  # above chance
    assert "| reviews, accuracy in % | 20 labels |" in printed
    assert (tmp_path / "label_efficiency.png").stat().st_size > 1000
    kept = sorted(path.name for path in (tmp_path / "bodies").iterdir())
    assert kept == ["000000.weights.h5"]  # shorter than 64 steps


def test_labels_are_drawn_by_seed_and_held_out_ones_have_none_in_common(scripts):
    label_efficiency, *_ = scripts
    texts = [f"text {i}" for i in range(50)]
    splits = (texts, [i % 2 for i in range(50)]), (["test"], [1])

    def drawn(seed, tune=True):
        arguments = type("Arguments", (), {"tune": tune, "full": False})
        train, test = label_efficiency.labelled(splits, 10, seed, arguments)
        return train[0], test[0]

    assert drawn(0) == drawn(0)
    assert drawn(0)[0] != drawn(1)[0]
    assert len(drawn(0)[0]) == 10
    assert not set(drawn(0)[0]) & set(drawn(0)[1])
    assert drawn(0, tune=False)[1] == ["test"]


def test_reviews_are_read_as_their_authors_publish_them(scripts, tmp_path):
    label_efficiency, *_ = scripts
    for name in ("train/pos", "train/neg", "train/unsup", "test/pos", "test/neg"):
        (tmp_path / name).mkdir(parents=True)
        (tmp_path / name / "0_1.txt").write_text(f"{name}<br />done", encoding="utf-8")

    train, test = label_efficiency.read_reviews(tmp_path)

    assert train == (["train/neg\ndone", "train/pos\ndone"], [0, 1])
    assert test == (["test/neg\ndone", "test/pos\ndone"], [0, 1])
    assert label_efficiency.read_unlabelled(tmp_path) == ["train/unsup\ndone"]


class Scores:
    """A language model whose likelihoods are looked up by the continuation."""

    def __init__(self, scores):
        self.scores = scores

    def score(self, texts, prompts, reduction="sum"):
        return np.array([self.scores[text] for text in texts])


def test_tasks_without_training_are_scored_by_the_papers_heuristics(scripts):
    pytest.importorskip("sklearn", reason="the correlation is scikit-learn's")
    _, figure, _ = scripts

    choices = Scores({" right": -1.0, " wrong": -2.0})
    rows = ["p", "q", "r"], [["right", "wrong"], ["wrong", "right"], ["right", "wrong"]], [0, 1, 1]
    assert figure.right_of_choices(choices, rows) == pytest.approx((2 / 3 - 0.5) / 0.5)

    feelings = Scores({" positive": -1.0, " negative": -2.0})
    assert figure.right_of_sentences(feelings, (["a", "b"], [1, 1])) == 1.0

    acceptable = Scores({str(i): float(i) for i in range(20)})
    examples = [str(i) for i in range(20)], [int(i >= 10) for i in range(20)]
    assert figure.matthews_of_cola(acceptable, examples, examples) == pytest.approx(1.0)


def test_questions_are_read_as_their_authors_publish_them(scripts, tmp_path):
    _, figure, _ = scripts
    (tmp_path / "copa-test.xml").write_text(
        '<copa-corpus><item id="1" asks-for="cause" most-plausible-alternative="2"><p>It fell.</p>'
        "<a1>No rain.</a1><a2>A push.</a2></item></copa-corpus>",
        encoding="utf-8",
    )
    story = "id\tmeta\tA day.\\newlineIt ended.\tone: What?\ta\tb\tc\td\tmultiple: Who?\te\tf\tg\th"
    for name in ("mc160.test", "mc500.test"):
        (tmp_path / f"{name}.statements.tsv").write_text(story + "\n", encoding="utf-8")
        (tmp_path / f"{name}.ans").write_text("B\tD\n", encoding="utf-8")

    assert figure.read_copa(tmp_path) == (["It fell because"], [["no rain.", "a push."]], [1])
    prompts, choices, labels = figure.read_mctest(tmp_path)
    assert prompts[:2] == ["A day. It ended. What?", "A day. It ended. Who?"]
    assert choices[:2] == [["a", "b", "c", "d"], ["e", "f", "g", "h"]]
    assert labels == [1, 3, 1, 3]
