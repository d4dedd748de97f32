"""Figure 2 of the GPT-1 paper in small: what the pretrained body is worth, and when it comes.

    python benchmarks/label_efficiency.py --reviews aclImdb --sentences sst2 --stage pretrain
    python benchmarks/gpt1_figure2.py --sentences sst2 --cola cola --copa copa --mctest mctest

Left (Radford et al. 2018, figure 2): the accuracy of a classifier of SST-2's sentences over the
number of blocks that are taken over from the pretrained body; 0 are the embeddings alone. Right:
over the steps of pretraining, the loss, and how well the body does tasks that it was never trained
for, by the paper's heuristics (section 5), each between chance, 0, and right, 1:

- SST-2: the sentence, " very", and the likelier one of " positive" and " negative";
- CoLA: a sentence is acceptable if its tokens have a mean log-probability above a threshold, the
  best one on the training sentences; Matthews' correlation;
- COPA: the premise, "because" or "so", and the likelier one of the two continuations, by token;
- MCTest: the story, the question, and the likeliest one of four answers, by token.

Results are kept in `--output` and not computed again. The folder has the body that
`label_efficiency.py` pretrained, with the weights that it kept on the way.
"""

import argparse
import functools
import json
import os
import sys
from pathlib import Path
from xml.etree import ElementTree

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")  # no remarks of TensorFlow's on the machine

import keras
import label_efficiency
import numpy as np

import kgpt

LABELS = 1000  # of the left picture
COLORS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7")


def parse_arguments():
    parser = argparse.ArgumentParser(description=__doc__.split("\n", 1)[0])
    for name in ("sentences", "cola", "copa", "mctest"):
        parser.add_argument(f"--{name}", type=Path, required=True, help="folder of the task")
    parser.add_argument("--output", type=Path, default=Path("runs/label_efficiency"))
    parser.add_argument("--parts", nargs="+", choices=("left", "right"), default=["left", "right"])
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2])
    parser.add_argument("--examples", type=int, default=400, help="of each task of the right part")
    parser.add_argument("--length", type=int, default=256)
    parser.add_argument("--dtype", default="mixed_bfloat16")
    arguments = parser.parse_args()
    arguments.truncate, arguments.rate, arguments.passes = "start", None, 1.0
    return arguments


# === Left: blocks taken over ===


def accuracy_with_blocks(num_blocks, train, test, seed, arguments):
    """SST-2 with the embeddings and so many blocks of the pretrained body; None for nothing."""

    def body_of(method, tokenizer, arguments):
        body = label_efficiency.fresh_body(tokenizer, arguments, dropout=0.1)
        if num_blocks is not None:
            lm = keras.saving.load_model(arguments.output / "lm.keras", compile=False)
            body.take_blocks(lm.backbone, num_blocks)
            if num_blocks == body.num_layers:
                body.final_norm.set_weights(lm.backbone.final_norm.get_weights())
        return body

    method = "pretrained" if num_blocks else "from scratch"
    return label_efficiency.accuracy(method, train, test, seed, arguments, body_of)


# === Right: tasks without training ===


def right_of_sentences(lm, rows):
    texts, labels = rows
    prompts = [f"{text} very" for text in texts]
    scores = [lm.score([word] * len(texts), prompts) for word in (" negative", " positive")]
    return scaled(np.mean(np.argmax(scores, axis=0) == labels), chance=0.5)


def matthews_of_cola(lm, train, test):
    def scores(rows):
        return lm.score(rows[0], [""] * len(rows[0]), reduction="mean")

    from sklearn.metrics import matthews_corrcoef

    known = scores(train)
    thresholds = np.quantile(known, np.linspace(0.05, 0.95, 19))
    best = max(thresholds, key=lambda t: matthews_corrcoef(train[1], known > t))
    return float(matthews_corrcoef(test[1], scores(test) > best))


def right_of_choices(lm, rows):
    prompts, choices, labels = rows
    number = len(choices[0])
    continuations = [f" {choice}" for row in choices for choice in row]
    before = [prompt for prompt in prompts for _ in range(number)]
    scores = lm.score(continuations, before, reduction="mean").reshape(-1, number)
    return scaled(np.mean(scores.argmax(axis=1) == labels), chance=1 / number)


def scaled(accuracy, chance):
    return float((accuracy - chance) / (1 - chance))


def read_cola(folder, name):
    lines = (folder / name).read_text(encoding="utf-8").splitlines()
    rows = [line.split("\t") for line in lines]
    return [row[3] for row in rows], [int(row[1]) for row in rows]


def read_copa(folder):
    prompts, choices, labels = [], [], []
    for item in ElementTree.parse(folder / "copa-test.xml").getroot():
        word = "because" if item.get("asks-for") == "cause" else "so"
        prompts.append(f"{item.findtext('p').rstrip('.')} {word}")
        texts = [item.findtext(name) for name in ("a1", "a2")]
        choices.append([text[:1].lower() + text[1:] for text in texts])
        labels.append(int(item.get("most-plausible-alternative")) - 1)
    return prompts, choices, labels


def read_mctest(folder):
    """The questions of MCTest-160 and 500 with the answers as statements or single words."""
    prompts, choices, labels = [], [], []
    for name in ("mc160.test", "mc500.test"):
        stories = (folder / f"{name}.statements.tsv").read_text(encoding="utf-8").splitlines()
        answers = (folder / f"{name}.ans").read_text(encoding="utf-8").splitlines()
        for story, letters in zip(stories, answers, strict=True):
            _, _, text, *cells = story.replace("\\newline", " ").split("\t")
            for i, letter in enumerate(letters.split()):
                question, *four = cells[5 * i : 5 * i + 5]
                prompts.append(f"{text} {question.partition(':')[2].strip()}")
                choices.append(four)
                labels.append("ABCD".index(letter))
    return prompts, choices, labels


def first(rows, number):
    return [column[:number] for column in rows]


def zero_shot(lm, tasks):
    return {
        "SST-2": right_of_sentences(lm, tasks["sentences"]),
        "CoLA": matthews_of_cola(lm, tasks["cola train"], tasks["cola"]),
        "COPA": right_of_choices(lm, tasks["copa"]),
        "MCTest": right_of_choices(lm, tasks["mctest"]),
    }


def read_tasks(arguments):
    _, sentences = label_efficiency.read_sentences(arguments.sentences)
    tasks = {
        "sentences": sentences,
        "cola train": read_cola(arguments.cola, "in_domain_train.tsv"),
        "cola": read_cola(arguments.cola, "in_domain_dev.tsv"),
        "copa": read_copa(arguments.copa),
        "mctest": read_mctest(arguments.mctest),
    }
    return {name: first(rows, arguments.examples) for name, rows in tasks.items()}


# === Results and pictures ===


class Results:
    """Numbers in a JSON file, each of which is computed once."""

    def __init__(self, path):
        self.path = path
        self.found = json.loads(path.read_text()) if path.exists() else {}

    def get(self, key, compute):
        if key not in self.found:
            self.found[key] = compute()
            self.path.write_text(json.dumps(self.found, indent=1))
            print(f"{key}: {self.found[key]}", flush=True)
        return self.found[key]


def make_left(results, arguments):
    splits = label_efficiency.read_sentences(arguments.sentences)
    arguments.tune = arguments.full = False
    layers = label_efficiency.SIZES["num_layers"]
    for seed in arguments.seeds:
        train, test = label_efficiency.labelled(splits, LABELS, seed, arguments)
        for blocks in (None, *range(layers + 1)):
            key = f"left, {'nothing' if blocks is None else blocks}, seed {seed}"
            one = functools.partial(accuracy_with_blocks, blocks, train, test, seed, arguments)
            results.get(key, one)


def make_right(results, arguments):
    tasks = read_tasks(arguments)
    tokenizer = kgpt.Tokenizer.from_file(arguments.output / "tokenizer.json")
    body = label_efficiency.fresh_body(tokenizer, arguments, dropout=0.0)
    lm = kgpt.CausalLM(body, tokenizer=tokenizer)
    held_out = kgpt.data.windows(
        arguments.output / "tokens.validation.npy",
        sequence_length=arguments.length,
        batch_size=32,
    )
    lm.compile()
    for path in sorted((arguments.output / "bodies").glob("*.weights.h5")):

        def compute(path=path):
            body.load_weights(path)
            loss = lm.evaluate(held_out, steps=min(20, len(held_out)), verbose=0, return_dict=True)
            return {"loss": loss["loss"], **zero_shot(lm, tasks)}

        results.get(f"right, {int(path.name.partition('.')[0])} steps", compute)


def draw(found, path):
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, (left, right) = pyplot.subplots(1, 2, figsize=(9, 3.8), layout="constrained")
    kinds = {}
    for key, value in found.items():
        part, place, *_ = key.split(", ")
        kinds.setdefault(part, {}).setdefault(place, []).append(value)
    blocks = kinds.get("left", {})
    for i, values in enumerate(blocks.values()):
        left.plot([i] * len(values), [100 * v for v in values], ".", color=COLORS[0], alpha=0.6)
    means = [100 * np.mean(values) for values in blocks.values()]
    left.plot(range(len(means)), means, color=COLORS[0], marker="o")
    names = {"nothing": "nothing", "0": "embeddings"}
    left.set_xticks(
        range(len(blocks)), [names.get(b, f"+ {b} blocks") for b in blocks], rotation=20
    )
    left.set_ylabel(f"SST-2, {LABELS:,} labels: accuracy, %")
    left.set_xlabel("taken over from the pretrained body")
    points = {int(p.split()[0]): values[0] for p, values in kinds.get("right", {}).items()}
    steps = sorted(points)
    for task, color in zip(("SST-2", "CoLA", "COPA", "MCTest"), COLORS, strict=True):
        right.plot([max(s, 32) for s in steps], [points[s][task] for s in steps], color=color,
                   marker="o", markersize=3, label=task)  # fmt: skip
    right.set_xscale("log")
    right.set_xlabel("steps of pretraining (0 at the left edge)")
    right.set_ylabel("without fine-tuning: 0 is chance, 1 is right")
    right.legend(frameon=False, loc="upper left")
    loss = right.twinx()
    loss.plot([max(s, 32) for s in steps], [points[s]["loss"] for s in steps], "k--", linewidth=1)
    loss.set_ylabel("held-out loss, nats (dashed)")
    figure.savefig(path, dpi=120)
    print(f"Picture: {path}")


def main():
    arguments = parse_arguments()
    results = Results(arguments.output / "figure2.json")
    if "left" in arguments.parts:
        make_left(results, arguments)
    if "right" in arguments.parts:
        make_right(results, arguments)
    draw(results.found, arguments.output / "figure2.png")


if __name__ == "__main__":
    sys.stdout.reconfigure(errors="replace")  # for a console without the characters of a text
    main()
