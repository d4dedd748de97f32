"""The tasks of GPT-1's paper, read from the files that their authors publish, and scored.

The folder `--data` has a folder for each task, with the files' own names:

    SST-2, CoLA, MRPC, QQP, STS-B, MNLI, QNLI, RTE    train.tsv, dev.tsv (MNLI: dev_matched.tsv,
                                                      dev_mismatched.tsv) of GLUE
                                                      (gluebenchmark.com/tasks)
    SNLI          snli_1.0_train.jsonl, snli_1.0_test.jsonl (nlp.stanford.edu/projects/snli)
    SciTail       scitail_1.0_train.tsv, scitail_1.0_test.tsv of its folder tsv_format
                  (allenai.org/data/scitail)
    RACE          train, test: each with middle/*.txt and high/*.txt (cs.cmu.edu/~glai1/data/race)
    Story Cloze   cloze_test_val__spring2016*.csv, cloze_test_test__spring2016*.csv, on request
                  (cs.rochester.edu/nlp/rocstories); the paper trained on the validation stories

The labels of GLUE's tests are not public: its tasks are scored on the development set, which the
paper's figures are not. Columns are what the functions of `kgpt.data` take.
"""

import csv
import json
from collections.abc import Callable
from typing import NamedTuple

import numpy as np

import kgpt
from kgpt.metrics import classification_scores, regression_scores


def read_table(path, header=True):
    """The rows of a file of GLUE's: dicts by the header, or lists without one."""
    with open(path, encoding="utf-8-sig", newline="") as file:
        options = {"delimiter": "\t", "quoting": csv.QUOTE_NONE}
        return list(csv.DictReader(file, **options) if header else csv.reader(file, **options))


def read_json_lines(path):
    with open(path, encoding="utf-8") as file:
        return [json.loads(line) for line in file]


def columns_of(rows, classes, **names):
    """The columns of rows by their names in the file, labels as places in the list of classes.

    Rows without a label, on which annotators did not agree, and broken lines are left out.
    """
    complete = [row for row in rows if row[names["labels"]] in classes]
    columns = {column: [row[name] for row in complete] for column, name in names.items()}
    return {**columns, "labels": [classes.index(label) for label in columns["labels"]]}


# === One reader for each task: columns of the split "train", or of one that is scored ===


def glue_file(folder, split):
    return folder / {"train": "train.tsv", "test": "dev.tsv"}.get(split, f"dev_{split}.tsv")


def sst2(folder, split):
    rows = read_table(glue_file(folder, split))
    return columns_of(rows, ["0", "1"], texts="sentence", labels="label")


def cola(folder, split):
    return cola_file(glue_file(folder, split))


def cola_file(path):
    rows = read_table(path, header=False)
    return columns_of(rows, ["0", "1"], texts=3, labels=1)


def similarity(first, second, label):
    """A reader of pairs that mean the same or not."""

    def read(folder, split):
        rows = read_table(glue_file(folder, split))
        names = {"first_texts": first, "second_texts": second, "labels": label}
        return columns_of(rows, ["0", "1"], **names)

    return read


def stsb(folder, split):
    rows = read_table(glue_file(folder, split))
    pairs = [(row["sentence1"], row["sentence2"]) for row in rows]
    return {"texts": pairs, "targets": [float(row["score"]) / 5 for row in rows]}  # of 0 to 5


def entailment(premise, hypothesis, label, *classes):
    """A reader of premises and hypotheses."""

    def read(folder, split):
        rows = read_table(glue_file(folder, split))
        names = {"premises": premise, "hypotheses": hypothesis, "labels": label}
        return columns_of(rows, classes, **names)

    return read


def snli(folder, split):
    rows = read_json_lines(folder / f"snli_1.0_{split}.jsonl")
    names = {"premises": "sentence1", "hypotheses": "sentence2", "labels": "gold_label"}
    return columns_of(rows, ["entailment", "neutral", "contradiction"], **names)


def scitail(folder, split):
    rows = read_table(folder / f"scitail_1.0_{split}.tsv", header=False)
    return columns_of(rows, ["entails", "neutral"], premises=0, hypotheses=1, labels=2)


def race(folder, split):
    """Trained on both levels, scored on each."""
    columns = {"contexts": [], "choices": [], "labels": []}
    part, levels = ("train", ("middle", "high")) if split == "train" else ("test", (split,))
    for path in [
        path for level in levels for path in sorted((folder / part / level).glob("*.txt"))
    ]:
        passage = json.loads(path.read_text(encoding="utf-8"))
        questions = (passage[name] for name in ("questions", "options", "answers"))
        for question, options, answer in zip(*questions, strict=True):
            columns["contexts"].append(f"{passage['article']} {question}")
            columns["choices"].append(options)
            columns["labels"].append("ABCD".index(answer))
    return columns


def story_cloze(folder, split):
    name = {"train": "val", "test": "test"}[split]
    (path,) = folder.glob(f"cloze_test_{name}__spring2016*.csv")
    with open(path, encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))
    return {
        "contexts": [" ".join(row[f"InputSentence{i}"] for i in range(1, 5)) for row in rows],
        "choices": [[row[f"RandomFifthSentenceQuiz{i}"] for i in (1, 2)] for row in rows],
        "labels": [int(row["AnswerRightEnding"]) - 1 for row in rows],
    }


# === The tasks, and what the paper reports ===


class Task(NamedTuple):
    """A task: the reader of its files, its score, and the paper's by split (tables 2 to 4)."""

    read: Callable
    score: str  # accuracy, f1, matthews or pearson
    paper: dict
    ablations: dict  # table 5


def ablations(full, no_pretraining, no_auxiliary_loss):
    return {
        "pretrained, auxiliary loss": full,
        "pretrained": no_auxiliary_loss,
        "from scratch, auxiliary loss": no_pretraining,
    }


MNLI = entailment("sentence1", "sentence2", "gold_label", "entailment", "neutral", "contradiction")
QNLI = entailment("question", "sentence", "label", "entailment", "not_entailment")
RTE = entailment("sentence1", "sentence2", "label", "entailment", "not_entailment")
MRPC = similarity("#1 String", "#2 String", "Quality")
QQP = similarity("question1", "question2", "is_duplicate")
TASKS = {
    "CoLA": Task(cola, "matthews", {"test": 45.4}, ablations(45.4, 18.9, 47.9)),
    "SST-2": Task(sst2, "accuracy", {"test": 91.3}, ablations(91.3, 84.0, 92.0)),
    "MRPC": Task(MRPC, "f1", {"test": 82.3}, ablations(82.3, 79.4, 84.9)),
    "STS-B": Task(stsb, "pearson", {"test": 82.0}, ablations(82.0, 30.9, 83.2)),
    "QQP": Task(QQP, "f1", {"test": 70.3}, ablations(70.3, 65.5, 69.8)),
    "MNLI": Task(
        MNLI, "accuracy", {"matched": 82.1, "mismatched": 81.4}, ablations(81.8, 75.7, 81.1)
    ),
    "QNLI": Task(QNLI, "accuracy", {"test": 88.1}, ablations(88.1, 71.2, 86.9)),
    "RTE": Task(RTE, "accuracy", {"test": 56.0}, ablations(56.0, 53.8, 54.4)),
    "SNLI": Task(snli, "accuracy", {"test": 89.9}, {}),
    "SciTail": Task(scitail, "accuracy", {"test": 88.3}, {}),
    "RACE": Task(race, "accuracy", {"middle": 62.9, "high": 57.4}, {}),
    "Story Cloze": Task(story_cloze, "accuracy", {"test": 86.5}, {}),
}


# === From columns to batches, a model and a score ===


def batches_of(columns, tokenizer, **options):
    if "choices" in columns:
        return kgpt.data.multiple_choice(**columns, tokenizer=tokenizer, **options)
    if "targets" in columns:
        return kgpt.data.regression(**columns, tokenizer=tokenizer, **options)
    if "premises" in columns:
        return kgpt.data.entailment(**columns, tokenizer=tokenizer, **options)
    if "first_texts" in columns:
        return kgpt.data.similarity(**columns, tokenizer=tokenizer, **options)
    return kgpt.data.classification(**columns, tokenizer=tokenizer, **options)


def model_of(columns, body, tokenizer, lm_loss_weight):
    options = {"tokenizer": tokenizer, "lm_loss_weight": lm_loss_weight}
    if "choices" in columns:
        return kgpt.MultipleChoice(body, **options)
    if "targets" in columns:
        return kgpt.TextRegressor(body, **options)
    options["both_orders"] = "first_texts" in columns
    return kgpt.TextClassifier(body, num_classes=max(columns["labels"]) + 1, **options)


def score_of(model, batches, columns, score):
    """The score in percent, as the paper has it."""
    found = batches.original_order(np.concatenate([model.predict_on_batch(x) for x, _ in batches]))
    if "targets" in columns:
        return 100 * regression_scores(columns["targets"], found)[score]
    return 100 * classification_scores(columns["labels"], found)[score]


def read_task(data, name, split, most=None):
    """The columns of a split of a task; the first `most` rows of it where a number is given."""
    columns = TASKS[name].read(data / name, split)
    return {column: rows[:most] for column, rows in columns.items()}
