"""The paper's figures and tables at a tiny size: from published files to tables beside its own."""

import json

import numpy as np
import pytest

import kgpt

pytest.importorskip("sklearn", reason="the scores are scikit-learn's")

WORDS = "a small dog ran home and it was good or bad"

# === Files as they are published, in small ===

SENTENCES = "sentence1\tsentence2"
PAIRS = {  # folder: header and lines
    "SST-2": ["sentence\tlabel", *["good\t1", "bad\t0"] * 4],
    "MRPC": [
        "\ufeffQuality\t#1 ID\t#2 ID\t#1 String\t#2 String",
        '1\t1\t2\ta dog\ta "small dog',
        "0\t3\t4\ta dog\thome",
    ],
    "QQP": [
        "id\tqid1\tqid2\tquestion1\tquestion2\tis_duplicate",
        "0\t1\t2\ta dog\tdog\t1",
        "1\t3\t4\ta dog\thome\t0",
        "2\t5\tbroken",
    ],
    "STS-B": [f"index\t{SENTENCES}\tscore", "0\ta dog\tdog\t4.5", "1\tdog\thome\t0.5"],
    "MNLI": [
        f"index\t{SENTENCES}\tgold_label",
        *["0\ta dog\tdog\tentailment", "1\tdog\tit\tneutral", "2\tdog\thome\tcontradiction"],
        "3\tnobody\tagreed\t-",
    ],
    "QNLI": [
        "index\tquestion\tsentence\tlabel",
        *["0\twho?\ta dog\tentailment", "1\twho?\tx\tnot_entailment"],
    ],
    "RTE": [
        f"index\t{SENTENCES}\tlabel",
        *["0\tdog\tx\tnot_entailment", "1\ta dog\tdog\tentailment"],
    ],
}


@pytest.fixture(scope="module")
def full_data(tmp_path_factory):
    data = tmp_path_factory.mktemp("full")
    for name, lines in PAIRS.items():
        (data / name).mkdir()
        tests = ("dev_matched", "dev_mismatched") if name == "MNLI" else ("dev",)
        for split in ("train", *tests):
            file = data / name / f"{split}.tsv"
            file.write_text("\n".join(lines) + "\n", encoding="utf-8")
    write_further_tasks(data)
    return data


def write_further_tasks(data):
    for name in ("CoLA", "SNLI", "SciTail", "RACE/train/middle", "RACE/test/middle", "Story Cloze"):
        (data / name).mkdir(parents=True)
    for split in ("train", "dev"):
        (data / "CoLA" / f"{split}.tsv").write_text(
            "x\t1\t\ta dog ran\nx\t0\t*\tdog a ran\n", "utf-8"
        )
    rows = [("a dog", "dog", "entailment"), ("a", "b", "-"), ("a dog", "home", "contradiction")]
    lines = [json.dumps(dict(zip(("sentence1", "sentence2", "gold_label"), row, strict=True)))
             for row in rows]  # fmt: skip
    passage = {"article": "A dog ran.", "questions": ["Who ran?", "It _ ."], "answers": ["B", "D"]}
    passage["options"] = [["a", "dog", "c", "d"], ["e", "f", "g", "ran"]]
    for split in ("train", "test"):
        (data / "SNLI" / f"snli_1.0_{split}.jsonl").write_text("\n".join(lines), "utf-8")
        scitail = data / "SciTail" / f"scitail_1.0_{split}.tsv"
        scitail.write_text("a dog\tdog\tentails\na dog\thome\tneutral\n", "utf-8")
        (data / "RACE" / split / "middle" / "1.txt").write_text(json.dumps(passage), "utf-8")
        story = "InputStoryid,InputSentence1,InputSentence2,InputSentence3,InputSentence4,"
        story += "RandomFifthSentenceQuiz1,RandomFifthSentenceQuiz2,AnswerRightEnding\n"
        story += 'i,A dog.,"It ran, home.",It was,good.,The end.,bad,1\n'
        name = {"train": "val", "test": "test"}[split]
        file = f"cloze_test_{name}__spring2016 - cloze_test_ALL_{name}.csv"
        (data / "Story Cloze" / file).write_text(story, "utf-8")


EXPECTED = {  # the first and last example of each task's training
    "CoLA": {"texts": ["a dog ran", "dog a ran"], "labels": [1, 0]},
    "SST-2": {"texts": ["good", "bad"], "labels": [1, 0]},
    "MRPC": {
        "first_texts": ["a dog"] * 2,
        "second_texts": ['a "small dog', "home"],
        "labels": [1, 0],
    },
    "QQP": {"first_texts": ["a dog"] * 2, "second_texts": ["dog", "home"], "labels": [1, 0]},
    "STS-B": {"texts": [("a dog", "dog"), ("dog", "home")], "targets": [0.9, 0.1]},
    "MNLI": {"premises": ["a dog", "dog"], "hypotheses": ["dog", "home"], "labels": [0, 2]},
    "QNLI": {"premises": ["who?"] * 2, "hypotheses": ["a dog", "x"], "labels": [0, 1]},
    "RTE": {"premises": ["dog", "a dog"], "hypotheses": ["x", "dog"], "labels": [1, 0]},
    "SNLI": {"premises": ["a dog"] * 2, "hypotheses": ["dog", "home"], "labels": [0, 2]},
    "SciTail": {"premises": ["a dog"] * 2, "hypotheses": ["dog", "home"], "labels": [0, 1]},
    "RACE": {
        "contexts": ["A dog ran. Who ran?", "A dog ran. It _ ."],
        "choices": [["a", "dog", "c", "d"], ["e", "f", "g", "ran"]],
        "labels": [1, 3],
    },
    "Story Cloze": {
        "contexts": ["A dog. It ran, home. It was good."] * 2,
        "choices": [["The end.", "bad"]] * 2,
        "labels": [0, 0],
    },
}  # fmt: skip


@pytest.mark.parametrize("name", EXPECTED)
def test_tasks_are_read_as_their_authors_publish_them(scripts, full_data, name):
    columns = scripts.tasks.read_task(full_data, name, "train")
    split = next(iter(scripts.tasks.TASKS[name].paper))
    test = scripts.tasks.read_task(full_data, name, split)

    assert {column: [rows[0], rows[-1]] for column, rows in columns.items()} == EXPECTED[name]
    assert test == columns  # both files have the same lines here
    assert set(EXPECTED) == set(scripts.tasks.TASKS)


# === The stages ===


@pytest.fixture(scope="module")
def tiny_gpt(tmp_path_factory):
    """A folder of a model as `--weights` takes it."""
    folder = tmp_path_factory.mktemp("gpt")
    tokenizer = kgpt.Tokenizer.train([WORDS], vocabulary_size=None, style="characters")
    body = kgpt.GPTBackbone(
        tokenizer.vocabulary_size, num_layers=1, num_heads=2, hidden_dim=8, max_sequence_length=32
    )
    kgpt.CausalLM(body, tokenizer=tokenizer).save_to_preset(folder / "tiny")
    return folder / "tiny"


def test_the_papers_tasks_are_fine_tuned_and_stand_beside_its_numbers(
    scripts, full_data, tiny_gpt, tmp_path, capsys
):
    given = ["--full", "--data", full_data, "--weights", tiny_gpt, "--output", tmp_path]
    given += ["--length", 32, "--dtype", "float32", "--seeds", 0, "--stages", "ablations"]
    given += ["--tasks", "SST-2", "STS-B", "Story Cloze"]

    scripts.run(scripts.paper, *given, "--accumulate", 4)
    capsys.readouterr()
    before = (tmp_path / "gpt1_paper.json").stat().st_mtime_ns
    scripts.run(scripts.paper, *given)

    printed = capsys.readouterr().out
    found = json.loads((tmp_path / "gpt1_paper.json").read_text())
    assert len(found) == 9
    assert all(-100 <= score <= 100 for scores in found.values() for score in scores.values())
    row = next(line for line in printed.splitlines() if line.startswith("| SST-2 | accuracy |"))
    assert [cell.strip() for cell in row.split("|")][4:10:2] == ["91.3", "92.0", "84.0"]
    assert "| RACE middle | accuracy |  | 62.9 |" in printed
    assert (tmp_path / "gpt1_paper.json").stat().st_mtime_ns == before


@pytest.mark.parametrize("way", ["pretrained", "from scratch, auxiliary loss", 0, 1])
def test_a_body_begins_with_what_is_taken_over(scripts, tiny_gpt, way):
    arguments = type("Arguments", (), {"weights": str(tiny_gpt)})
    theirs = kgpt.CausalLM.from_preset(str(tiny_gpt)).backbone

    body, tokenizer = scripts.paper.body_of(way, arguments)

    def is_taken(layer, other):
        pairs = zip(layer.get_weights(), other.get_weights(), strict=True)
        return all(np.array_equal(*pair) for pair in pairs)

    assert tokenizer.vocabulary_size == body.vocabulary_size
    assert is_taken(body.embedding, theirs.embedding) == (way != "from scratch, auxiliary loss")
    assert is_taken(body.decoder_blocks[0], theirs.decoder_blocks[0]) == (way in ("pretrained", 1))


@pytest.fixture(scope="module")
def small_data(tmp_path_factory, reviews, sentences):
    data = tmp_path_factory.mktemp("data")
    (data / "imdb").symlink_to(reviews)
    (data / "sst2").symlink_to(sentences)
    (data / "cola").mkdir()
    for name in ("in_domain_train.tsv", "in_domain_dev.tsv"):
        (data / "cola" / name).write_text("x\t1\t\tit ran\nx\t0\t*\tran it\n" * 4, "utf-8")
    write_questions(data / "copa", data / "mctest")
    return data


@pytest.mark.filterwarnings("ignore:The text is too small")
def test_figures_and_table_are_made_once_and_printed_beside_the_papers(
    scripts, small_data, tmp_path, capsys, monkeypatch
):
    options = ["--output", tmp_path, "--dtype", "float32", "--length", 24]
    folders = ["--reviews", small_data / "imdb", "--sentences", small_data / "sst2"]
    scripts.run(
        scripts.label_efficiency, *folders, *options, "--stage", "pretrain", "--tokens", 4000
    )
    given = ["--data", small_data, *options, "--labels", 20, "--seeds", 0, "--examples", 4]
    monkeypatch.setattr(kgpt.TextClassifier, "fit", lambda *args, **kwargs: None)

    scripts.run(scripts.paper, *given)
    made = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*.json")}
    capsys.readouterr()
    monkeypatch.setattr(kgpt.CausalLM, "score", None)
    monkeypatch.setattr(kgpt.TextClassifier, "fit", None)
    scripts.run(scripts.paper, *given)

    printed = capsys.readouterr().out
    assert all(path.stat().st_mtime_ns == when for path, when in made.items())
    assert "| blocks taken over: reviews with 20 labels | nothing | 0 | 1 | 2 |" in printed
    assert "| steps, no fine-tuning | loss | SST-2 | CoLA | COPA | MCTest |" in printed
    assert "| the paper, SST-2, 67,349 labels | 91.3 | 92.0 | 84.0 |  |" in printed
    assert "| sentences, 20 labels |" in printed
    assert (tmp_path / "gpt1_paper.png").stat().st_size > 1000


# === Tasks without training ===


class Scores:
    """A language model whose likelihoods are looked up by the continuation."""

    def __init__(self, scores):
        self.scores = scores

    def score(self, texts, prompts, reduction="sum"):
        return np.array([self.scores[text] for text in texts])


def test_tasks_without_training_are_scored_by_the_papers_heuristics(scripts):
    pytest.importorskip("sklearn", reason="the correlation is scikit-learn's")
    figure = scripts.paper

    choices = Scores({" right": -1.0, " wrong": -2.0})
    rows = ["p", "q", "r"], [["right", "wrong"], ["wrong", "right"], ["right", "wrong"]], [0, 1, 1]
    assert figure.right_of_choices(choices, rows) == pytest.approx((2 / 3 - 0.5) / 0.5)

    feelings = Scores({" positive": -1.0, " negative": -2.0})
    assert figure.right_of_sentences(feelings, (["a", "b"], [1, 1])) == 1.0

    acceptable = Scores({str(i): float(i) for i in range(20)})
    examples = [str(i) for i in range(20)], [int(i >= 10) for i in range(20)]
    assert figure.matthews_of_cola(acceptable, examples, examples) == pytest.approx(1.0)


def write_questions(copa, mctest):
    for folder in (copa, mctest):
        folder.mkdir()
    (copa / "copa-test.xml").write_text(
        '<copa-corpus><item id="1" asks-for="cause" most-plausible-alternative="2"><p>It fell.</p>'
        "<a1>No rain.</a1><a2>A push.</a2></item></copa-corpus>",
        encoding="utf-8",
    )
    story = "id\tmeta\tA day.\\newlineIt ended.\tone: What?\ta\tb\tc\td\tmultiple: Who?\te\tf\tg\th"
    for name in ("mc160.test", "mc500.test"):
        (mctest / f"{name}.statements.tsv").write_text(story + "\n", encoding="utf-8")
        (mctest / f"{name}.ans").write_text("B\tD\n", encoding="utf-8")


def test_questions_are_read_as_their_authors_publish_them(scripts, small_data):
    figure = scripts.paper

    copa = figure.read_copa(small_data / "copa")
    assert copa == (["It fell because"], [["no rain.", "a push."]], [1])
    prompts, choices, labels = figure.read_mctest(small_data / "mctest")
    assert prompts[:2] == ["A day. It ended. What?", "A day. It ended. Who?"]
    assert choices[:2] == [["a", "b", "c", "d"], ["e", "f", "g", "h"]]
    assert labels == [1, 3, 1, 3]
