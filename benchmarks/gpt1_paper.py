"""GPT-1's paper in small: figure 2 and table 5, and its tasks with its weights on a GPU.

    python benchmarks/label_efficiency.py --reviews data/imdb --sentences data/sst2 --stage pretrain
    python benchmarks/gpt1_paper.py --data data                      # figures and table in small
    python benchmarks/gpt1_paper.py --data data --full               # GPT-1's weights, on a GPU

Stages (Radford et al. 2018), each beside what the paper reports, all by default:

- `blocks`, figure 2, left: the accuracy of a classifier over the number of blocks that are taken
  over from the pretrained body; 0 are the embeddings alone.
- `zero-shot`, figure 2, right: over the steps of pretraining, the loss, and how well the body does
  tasks that it was never trained for, by the paper's heuristics (section 5), each between chance,
  0, and right, 1:
    - SST-2: the sentence, " very", and the likelier one of " positive" and " negative";
    - CoLA: a sentence is acceptable if its tokens have a mean log-probability above a threshold,
      the best one on the training sentences; Matthews' correlation;
    - COPA: the premise, "because" or "so", and the likelier one of the two continuations, by token;
    - MCTest: the story, the question, and the likeliest one of four answers, by token.
- `ablations`, table 5: with and without pretraining and the auxiliary loss. These are results of
  `label_efficiency.py`, and those that are in its folder are not computed again.
- `show`: tables and the picture of what has been computed.

The folder `--output` has the body that `label_efficiency.py` pretrained, with the weights that it
kept on the way; results are kept there, one by one: started again, the script goes on where it
stopped. `--data` has imdb and sst2 as `label_efficiency.py` reads them, cola/in_domain_train.tsv
and in_domain_dev.tsv, copa/copa-test.xml, and in mctest the .statements.tsv and .ans of both tests.

With `--full` the body is GPT-1 (`--weights`: a preset, or a folder of one), the tasks are the
paper's (`gpt1_tasks.py` says where to get them), fine-tuned as in section 4.1: batches of 32, 3
passes, 6.25e-5, lambda 0.5, dropout 0.1. `blocks` is then of MNLI, and `zero-shot` has one point.

Needs: pip install scikit-learn scipy
"""

import argparse
import functools
import json
import os
import sys
from pathlib import Path
from xml.etree import ElementTree

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")  # no remarks of TensorFlow's on the machine

import gpt1_tasks
import keras
import label_efficiency
import numpy as np

import kgpt

COLORS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7")
STAGES = ("blocks", "zero-shot", "ablations")
WAYS = ("pretrained, auxiliary loss", "pretrained", "from scratch, auxiliary loss")  # table 5


def parse_arguments():
    parser = argparse.ArgumentParser(description=__doc__.split("\n", 1)[0])
    parser.add_argument("--data", type=Path, required=True, help="folder with the tasks' folders")
    parser.add_argument("--output", type=Path, default=Path("runs/label_efficiency"))
    parser.add_argument("--stages", nargs="+", choices=(*STAGES, "show"), default=STAGES)
    parser.add_argument("--set", choices=label_efficiency.ALL_LABELS, default="reviews")
    parser.add_argument("--labels", type=int, default=300, help="of blocks and ablations")
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2])
    parser.add_argument("--examples", type=int, help="of each task; with --full also of training")
    parser.add_argument("--length", type=int, help="tokens of a text: 256, or 512 with --full")
    parser.add_argument("--dtype", default="mixed_bfloat16")
    parser.add_argument("--full", action="store_true", help="GPT-1's weights, the paper's tasks")
    parser.add_argument("--weights", default="gpt1", help="with --full: a preset or its folder")
    parser.add_argument("--tasks", nargs="+", choices=gpt1_tasks.TASKS, help="with --full")
    parser.add_argument("--accumulate", type=int, default=1, help="parts of a batch, with --full")
    arguments = parser.parse_args()
    arguments.length = arguments.length or (512 if arguments.full else 256)
    arguments.tasks = arguments.tasks or list(gpt1_tasks.TASKS)
    if not arguments.full and arguments.examples is None:
        arguments.examples = 400
    if 32 % arguments.accumulate:
        parser.error(f"--accumulate must divide 32. Received: {arguments.accumulate}")
    return arguments


class Results:
    """Numbers in a JSON file, each of which is computed once."""

    def __init__(self, path):
        self.path = path
        self.found = json.loads(path.read_text()) if path.exists() else {}

    def get(self, *key, compute):
        key = ", ".join(map(str, key))
        if key not in self.found:
            self.found[key] = compute()
            self.path.parent.mkdir(parents=True, exist_ok=True)
            self.path.write_text(json.dumps(self.found, indent=1))
            print(f"{key}: {self.found[key]}", flush=True)
        return self.found[key]

    def of_stage(self, stage):
        """Returns {the rest of the key as a tuple: value}."""
        keys = {key: tuple(key.split(", ")) for key in self.found}
        return {parts[1:]: self.found[key] for key, parts in keys.items() if parts[0] == stage}


# === Figure 2, left: blocks taken over ===


def options_of_cells(arguments):
    """The options of `label_efficiency.py` for the results that it shares with this script."""
    given = ["--reviews", arguments.data / "imdb", "--sentences", arguments.data / "sst2"]
    given += ["--output", arguments.output, "--dtype", arguments.dtype]
    given += ["--length", arguments.length, "--labels", arguments.labels]
    given += ["--seeds", *arguments.seeds, "--methods", "from scratch", *WAYS]
    return label_efficiency.parse_arguments([str(one) for one in given])


def with_blocks_of(body, other, num_blocks):
    """Takes the embeddings and so many blocks; with all of them the final norm too."""
    body.take_blocks(other, num_blocks)
    if num_blocks == body.num_layers and body.final_norm is not None:
        body.final_norm.set_weights(other.final_norm.get_weights())
    return body


def accuracy_with_blocks(num_blocks, train, test, seed, options):
    """Of a classifier on the embeddings and blocks of the pretrained body, or on nothing of it."""

    def body_of(method, tokenizer, options):
        body = label_efficiency.fresh_body(tokenizer, options, dropout=0.1)
        if num_blocks == "nothing":
            return body
        lm = keras.saving.load_model(options.output / "lm.keras", compile=False)
        return with_blocks_of(body, lm.backbone, num_blocks)

    keras.utils.clear_session()
    method = "pretrained" if num_blocks != "nothing" else "from scratch"
    return label_efficiency.accuracy(method, train, test, seed, options, body_of)


def make_blocks(results, arguments):
    options = options_of_cells(arguments)
    read = {"reviews": label_efficiency.read_reviews, "sentences": label_efficiency.read_sentences}
    splits = read[arguments.set](getattr(options, arguments.set))
    for seed in arguments.seeds:
        train, test = label_efficiency.labelled(splits, arguments.labels, seed, options)
        layers = label_efficiency.SIZES["num_layers"]
        for blocks in ("nothing", *range(layers + 1)):
            known = {"nothing": "from scratch", layers: "pretrained"}.get(blocks)
            cell = label_efficiency.path_of((arguments.set, known, arguments.labels, seed), options)

            def compute(blocks=blocks, cell=cell, train=train, test=test, seed=seed):
                if cell.exists():  # the same, from `label_efficiency.py`
                    return json.loads(cell.read_text())["accuracy"]
                return accuracy_with_blocks(blocks, train, test, seed, options)

            key = f"{arguments.set} with {arguments.labels} labels", blocks, seed
            results.get("blocks", *key, compute=compute)


# === Figure 2, right: tasks without training ===


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
    columns = gpt1_tasks.cola_file(folder / name)
    return columns["texts"], columns["labels"]


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
    _, sentences = label_efficiency.read_sentences(arguments.data / "sst2")
    tasks = {
        "sentences": sentences,
        "cola train": read_cola(arguments.data / "cola", "in_domain_train.tsv"),
        "cola": read_cola(arguments.data / "cola", "in_domain_dev.tsv"),
        "copa": read_copa(arguments.data / "copa"),
        "mctest": read_mctest(arguments.data / "mctest"),
    }
    return {name: first(rows, arguments.examples) for name, rows in tasks.items()}


def make_zero_shot(results, arguments):
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

        steps = int(path.name.partition(".")[0])
        results.get("zero-shot", steps, compute=compute)


# === Table 5 ===


def make_ablations(arguments):
    options = options_of_cells(arguments)
    splits = {
        "reviews": label_efficiency.read_reviews(options.reviews),
        "sentences": label_efficiency.read_sentences(options.sentences),
    }
    label_efficiency.fine_tune(splits, options)


# === The paper's tasks with GPT-1's weights ===


def body_of(way, arguments):
    """The body to fine-tune and its tokenizer: pretrained, fresh, or with some blocks."""
    lm = kgpt.CausalLM.from_preset(arguments.weights)
    tokenizer = lm.tokenizer.with_special_tokens()  # start, delimiter, classify
    pretrained = lm.backbone.with_vocabulary_size(tokenizer.vocabulary_size)
    if way in ("pretrained", "pretrained, auxiliary loss"):
        return pretrained, tokenizer
    fresh = kgpt.GPTBackbone.from_config(pretrained.get_config())
    if isinstance(way, int):
        fresh = with_blocks_of(fresh, pretrained, way)
    return fresh, tokenizer


def fine_tuned_scores(name, way, seed, arguments):
    """The scores of a task, by split, after the paper's fine-tuning (section 4.1)."""
    keras.utils.clear_session()
    keras.utils.set_random_seed(seed)
    task = gpt1_tasks.TASKS[name]
    body, tokenizer = body_of(way, arguments)
    options = {"tokenizer": tokenizer, "sequence_length": arguments.length}
    train = gpt1_tasks.read_task(arguments.data, name, "train", arguments.examples)
    parts = arguments.accumulate
    data = gpt1_tasks.batches_of(train, batch_size=32 // parts, seed=seed, **options)
    model = gpt1_tasks.model_of(train, body, tokenizer, 0.0 if way == "pretrained" else 0.5)
    updates = 3 * max(1, len(data) // parts)
    model.compile(kgpt.recipes.finetuning_optimizer(updates, gradient_accumulation_steps=parts))
    model.fit(data, epochs=3, verbose=2)
    scores = {}
    for split in task.paper:
        test = gpt1_tasks.read_task(arguments.data, name, split, arguments.examples)
        batches = gpt1_tasks.batches_of(test, batch_size=64, seed=None, **options)
        scores[split] = gpt1_tasks.score_of(model, batches, test, task.score)
    return scores


def make_full(results, arguments):
    """The stages with GPT-1's weights: tasks in all ways, blocks of MNLI, tasks untrained."""
    for seed in arguments.seeds if "ablations" in arguments.stages else ():
        for name in arguments.tasks:
            for way in WAYS:
                one = functools.partial(fine_tuned_scores, name, way, seed, arguments)
                results.get("full", name, way.replace(", ", " + "), seed, compute=one)
    if "blocks" in arguments.stages:
        layers = kgpt.CausalLM.from_preset(arguments.weights).backbone.num_layers
        for blocks in range(layers + 1):

            def compute(blocks=blocks):
                return fine_tuned_scores("MNLI", blocks, 0, arguments)["matched"] / 100

            results.get("blocks", "MNLI", blocks, 0, compute=compute)
    if "zero-shot" in arguments.stages:
        tasks, lm = read_tasks(arguments), kgpt.CausalLM.from_preset(arguments.weights)
        results.get("zero-shot", "GPT-1", compute=functools.partial(zero_shot, lm, tasks))


# === Tables beside the paper's, and the picture ===


def print_table(*rows):
    print()
    for i, row in enumerate(rows):
        print(f"| {' | '.join(map(str, row))} |")
        if i == 0:
            print("|---" * len(row) + "|")


def by_place(found):
    """{(set, place, seed): accuracy} as {set: {place: accuracies in percent}}."""
    kinds = {}
    for (name, place, _), value in found.items():
        kinds.setdefault(name, {}).setdefault(place, []).append(100 * value)
    return kinds


def show(results, arguments):
    for name, places in by_place(results.of_stage("blocks")).items():
        cells = [label_efficiency.cell(values) for values in places.values()]
        print_table((f"blocks taken over: {name}", *places), ("accuracy in %", *cells))
        print("The paper: each block helps, all twelve are worth 9 points on MNLI.")
    points = results.of_stage("zero-shot")
    if points:
        names = list(next(iter(points.values())))
        rows = [
            (key[0], *(f"{found[name]:.3f}" for name in names)) for key, found in points.items()
        ]
        print_table(("steps, no fine-tuning", *names), *rows)
        print("The paper: all tasks rise steadily over the updates of pretraining (a plot).")
    show_ablations(label_efficiency.read_results(arguments.output / "results"), arguments)
    show_full(results.of_stage("full"))
    draw(results, arguments.output / "gpt1_paper.png")


def show_ablations(found, arguments):
    """Table 5 in small, the paper's SST-2 beside it."""
    ways, paper = (*WAYS, "from scratch"), gpt1_tasks.TASKS["SST-2"].ablations
    rows = [("the paper, SST-2, 67,349 labels", *(paper.get(way, "") for way in ways))]
    for name in label_efficiency.ALL_LABELS:
        cells = [found.get((name, way, arguments.labels)) for way in ways]
        if any(cells):
            cells = [label_efficiency.cell(values) if values else "" for values in cells]
            rows.append((f"{name}, {arguments.labels:,} labels", *cells))
    if len(rows) > 1:
        print_table(("accuracy in %", *ways), *rows)


def show_full(found):
    """Tables 2 to 5, each number of ours beside the paper's."""
    rows = []
    for name, task in gpt1_tasks.TASKS.items():
        for split, paper in task.paper.items():
            cells = []
            for way in WAYS:
                key = name, way.replace(", ", " + ")
                ours = [scores[split] for one, scores in found.items() if one[:2] == key]
                other = paper if way == WAYS[0] else task.ablations.get(way, "")
                cells += [label_efficiency.cell(ours) if ours else "", other]
            rows.append((f"{name} {split.replace('test', '')}".strip(), task.score, *cells))
    if found:
        head = [column for way in WAYS for column in (way, "paper")]
        print_table(("task", "score in %", *head), *rows)


def draw(results, path):
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, (left, right) = pyplot.subplots(1, 2, figsize=(9, 3.8), layout="constrained")
    for (name, places), color in zip(
        by_place(results.of_stage("blocks")).items(), COLORS, strict=False
    ):
        for i, values in enumerate(places.values()):
            left.plot([i] * len(values), values, ".", color=color, alpha=0.6)
        means = [np.mean(values) for values in places.values()]
        left.plot(range(len(means)), means, color=color, marker="o", label=name)
        names = {"nothing": "nothing", "0": "embeddings"}
        left.set_xticks(range(len(places)), [names.get(b, f"+ {b}") for b in places], rotation=20)
        left.legend(frameon=False)
    left.set_ylabel("accuracy, %")
    left.set_xlabel("blocks taken over from the pretrained body")
    points = {int(key[0]): value for key, value in results.of_stage("zero-shot").items()
              if key[0].isdigit()}  # fmt: skip
    if points:
        draw_zero_shot(right, points)
    figure.savefig(path, dpi=120)
    print(f"Picture: {path}")


def draw_zero_shot(axes, points):
    steps = sorted(points)
    places = [max(step, 32) for step in steps]
    for task, color in zip(("SST-2", "CoLA", "COPA", "MCTest"), COLORS, strict=True):
        values = [points[step][task] for step in steps]
        axes.plot(places, values, color=color, marker="o", markersize=3, label=task)
    axes.set_xscale("log")
    axes.set_xlabel("steps of pretraining (0 at the left edge)")
    axes.set_ylabel("without fine-tuning: 0 is chance, 1 is right")
    axes.legend(frameon=False, ncols=4, loc="lower center", bbox_to_anchor=(0.5, 1))  # above
    loss = axes.twinx()
    loss.plot(places, [points[step]["loss"] for step in steps], "k--", linewidth=1)
    loss.set_ylabel("held-out loss, nats (dashed)")


def main():
    arguments = parse_arguments()
    results = Results(arguments.output / "gpt1_paper.json")
    if arguments.full:
        keras.config.set_dtype_policy(arguments.dtype)
        make_full(results, arguments)
    else:
        if "blocks" in arguments.stages:
            make_blocks(results, arguments)
        if "zero-shot" in arguments.stages:
            make_zero_shot(results, arguments)
        if "ablations" in arguments.stages:
            make_ablations(arguments)
    show(results, arguments)


if __name__ == "__main__":
    sys.stdout.reconfigure(errors="replace")  # for a console without the characters of a text
    main()
