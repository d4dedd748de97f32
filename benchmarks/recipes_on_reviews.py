"""Which recipe, for the same time: AdamW and Muon on film reviews, and what is fine-tuned on them.

    python benchmarks/recipes_on_reviews.py --reviews aclImdb --sentences sst2

Pretrains bodies of width 256 on the reviews that `label_efficiency.py` reads, with AdamW and with
Muon, for the same `--minutes` of processor time; then fine-tunes each on 300 and 1,000 labels.
First the recipes take turns, some steps each, for the time of a step; the budget divided by it is
the number of steps, known beforehand as the schedules need it. Of AdamW's peak rates the
one with the lowest held-out loss counts; the first seed decides.

Processor time is of all threads, so that a busy machine changes little. Each result is kept as a
file in `--output` and is not computed again. To use two cores for two runs:

    taskset -c 0 python benchmarks/recipes_on_reviews.py ... --share 1/2 &
    taskset -c 1 python benchmarks/recipes_on_reviews.py ... --share 2/2
"""

import argparse
import json
import os
import statistics
import time
from pathlib import Path

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")  # no remarks of TensorFlow's on the machine

import keras
import label_efficiency

import kgpt

FAST = label_efficiency.FAST
ADAMW, MUON = kgpt.recipes.pretraining_optimizer, kgpt.recipes.fast_optimizer
RECIPES = {  # name: options of the body, optimizer, peak rates to choose from
    "AdamW": ({}, ADAMW, (1e-3, 3e-3)),
    "AdamW, blocks of the fast recipe": (FAST, ADAMW, (1e-3, 3e-3)),
    "fast recipe: Muon": (FAST, MUON, (1e-2,)),
}


def parse_arguments(given=None):
    parser = argparse.ArgumentParser(description=__doc__.split("\n", 1)[0])
    parser.add_argument("--reviews", type=Path, required=True)
    parser.add_argument("--sentences", type=Path, required=True)
    parser.add_argument("--output", type=Path, default=Path("runs/recipes_on_reviews"))
    parser.add_argument("--minutes", type=float, default=10, help="of processor time, a run")
    parser.add_argument("--layers", type=int, default=4)
    parser.add_argument("--length", type=int, default=256, help="tokens of a window and a text")
    parser.add_argument("--labels", nargs="+", type=int, default=[300, 1000])
    parser.add_argument("--recipes", nargs="+", choices=RECIPES, default=list(RECIPES))
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2])
    parser.add_argument("--share", default="1/1", help="i/n: every n-th run, from the i-th")
    parser.add_argument("--stage", choices=("prepare", "train", "show", "all"), default="all")
    parser.add_argument("--dtype", default="mixed_bfloat16")
    return parser.parse_args(given)


# === The tokens, and how long a step takes ===


def folder_of(arguments):
    return arguments.output / f"{arguments.layers}_layers_{arguments.minutes:g}_minutes"


def tokens_of(arguments, texts):
    """The tokenizer and the files of tokens to train on and held out, made once."""
    folder = arguments.output
    paths = [folder / name for name in ("tokens.npy", "tokens.validation.npy", "tokenizer.json")]
    if not all(path.exists() for path in paths):
        folder.mkdir(parents=True, exist_ok=True)
        tokenizer = kgpt.Tokenizer.train(texts, label_efficiency.VOCABULARY_SIZE)
        kgpt.data.write_tokens(texts, tokenizer, paths[0], validation_fraction=0.01)
        tokenizer.save(paths[2])
    return kgpt.Tokenizer.from_file(paths[2]), *paths[:2]


def make_model(recipe, rate, steps, tokenizer, arguments):
    body = make_body(recipe, tokenizer, arguments, dropout=0.0)
    lm = kgpt.CausalLM(body, tokenizer=tokenizer)
    optimizer = RECIPES[recipe][1]
    lm.compile(optimizer(steps, rate))
    return lm


def make_body(recipe, tokenizer, arguments, dropout):
    options = RECIPES[recipe][0]
    return kgpt.GPTBackbone(
        tokenizer.vocabulary_size,
        **{**label_efficiency.SIZES, "num_layers": arguments.layers},
        max_sequence_length=arguments.length,
        **options,
        dropout=dropout,
        attention_dropout=0.0,
        dtype=arguments.dtype,
    )


def windows(path, arguments, seed=None):
    batch = label_efficiency.BATCH
    return kgpt.data.windows(path, arguments.length, batch, seed=seed, repeat=seed is not None)


def seconds_of_steps(tokenizer, path, arguments, rounds=3, steps=4):
    """{recipe: processor time of a step}, medians; the recipes take turns."""
    models = {
        name: make_model(name, rates[0], 1000, tokenizer, arguments)
        for name, (_, _, rates) in RECIPES.items()
    }
    batches = iter(windows(path, arguments, seed=0))
    seconds = {name: [] for name in models}
    for _ in range(1 + rounds):  # the first compiles
        for name, lm in models.items():
            began = time.process_time()
            for _ in range(steps):
                lm.train_on_batch(*next(batches))
            seconds[name].append((time.process_time() - began) / steps)
    return {name: statistics.median(times[1:]) for name, times in seconds.items()}


# === One run ===


def name_of(recipe, rate, seed):
    return f"{recipe.replace(': ', '_').replace(', ', '_').replace(' ', '_')}-{rate}-{seed}"


def pretrained(recipe, rate, seed, tokenizer, paths, arguments):
    """What pretraining came to; the body is kept."""
    folder = folder_of(arguments)
    name = name_of(recipe, rate, seed)
    record = folder / "pretraining" / f"{name}.json"
    if record.exists():
        return json.loads(record.read_text())
    step_seconds = json.loads((folder / "step_seconds.json").read_text())[recipe]
    steps = max(1, int(60 * arguments.minutes / step_seconds))
    keras.utils.set_random_seed(seed)
    lm = make_model(recipe, rate, steps, tokenizer, arguments)
    began, began_wall = time.process_time(), time.perf_counter()
    lm.fit(windows(paths[0], arguments, seed=seed), steps_per_epoch=steps, verbose=0)
    found = {"recipe": recipe, "rate": rate, "seed": seed, "steps": steps}
    found["seconds"] = time.process_time() - began
    found["wall"] = time.perf_counter() - began_wall
    valid = windows(paths[1], arguments)
    found["loss"] = lm.evaluate(valid, verbose=0, return_dict=True)["loss"]
    record.parent.mkdir(parents=True, exist_ok=True)
    lm.backbone.save_weights(record.with_suffix(".weights.h5"))
    record.write_text(json.dumps(found))
    print(json.dumps(found), flush=True)
    return found


def fine_tuned(found, splits, tokenizer, arguments):
    """The accuracies of classifiers on the body, by set and number of labels."""
    recipe = found["recipe"]
    name = name_of(recipe, found["rate"], found["seed"])
    path = folder_of(arguments) / "fine_tuned" / f"{name}.json"
    if path.exists():
        return json.loads(path.read_text())
    weights = folder_of(arguments) / "pretraining" / f"{name}.weights.h5"

    def body(*_):
        made = make_body(recipe, tokenizer, arguments, dropout=0.1)
        made.load_weights(weights)
        return made

    given = ["--reviews", ".", "--sentences", ".", "--output", str(arguments.output)]
    options = label_efficiency.parse_arguments([*given, "--length", str(arguments.length)])
    accuracies = {}
    for part, split in splits.items():
        for labels in arguments.labels:
            train, test = label_efficiency.labelled(split, labels, found["seed"], options)
            accuracies[f"{part}, {labels:,} labels"] = label_efficiency.accuracy(
                "pretrained", train, test, found["seed"], options, body
            )
            keras.utils.clear_session()
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps({**found, **accuracies}))
    print(f"{name}: {accuracies}", flush=True)
    return json.loads(path.read_text())


# === All of them ===


def best_rate(recipe, arguments):
    """The rate whose run with the first seed has the lowest loss; None while one is missing."""
    folder, seed, rates = folder_of(arguments), arguments.seeds[0], RECIPES[recipe][2]
    if len(rates) == 1:
        return rates[0]
    paths = {r: folder / "pretraining" / f"{name_of(recipe, r, seed)}.json" for r in rates}
    if not all(path.exists() for path in paths.values()):
        return None
    return min(paths, key=lambda rate: json.loads(paths[rate].read_text())["loss"])


def train(splits, tokenizer, paths, arguments):
    share, shares = map(int, arguments.share.split("/"))
    unknown = [name for name in arguments.recipes if len(RECIPES[name][2]) > 1]
    tried = [(name, rate) for name in unknown for rate in RECIPES[name][2]]
    for recipe, rate in tried[share - 1 :: shares]:
        pretrained(recipe, rate, arguments.seeds[0], tokenizer, paths, arguments)
    runs = [(name, seed) for seed in arguments.seeds for name in arguments.recipes]
    left, is_told = runs[share - 1 :: shares], False
    while left:
        known = [run for run in left if best_rate(run[0], arguments) is not None]
        for recipe, seed in known[:1]:
            rate = best_rate(recipe, arguments)
            found = pretrained(recipe, rate, seed, tokenizer, paths, arguments)
            fine_tuned(found, splits, tokenizer, arguments)
            left.remove((recipe, seed))
        if not known:  # another share is at it
            if not is_told:
                print(f"Waits for another share, which pretrains {left[0][0]}.", flush=True)
            is_told = True
            time.sleep(5)


def show(arguments):
    step_seconds = json.loads((folder_of(arguments) / "step_seconds.json").read_text())
    baseline = step_seconds[next(iter(RECIPES))]
    print(f"\n{arguments.layers} layers, {arguments.minutes:g} minutes of processor time\n")
    parts = [
        f"{name}, {n:,} labels" for name in label_efficiency.ALL_LABELS for n in arguments.labels
    ]
    print(f"| recipe | rate | a step | steps | held-out loss | {' | '.join(parts)} |")
    print("|---|---|---|---|---|" + "---|" * len(parts))
    for recipe in arguments.recipes:
        rate = best_rate(recipe, arguments)
        folder = folder_of(arguments) / "fine_tuned"
        paths = [folder / f"{name_of(recipe, rate, seed)}.json" for seed in arguments.seeds]
        found = [json.loads(path.read_text()) for path in paths if path.exists()]
        if not found:
            continue
        cells = [f"{rate:g}", f"{step_seconds[recipe] / baseline:.2f}", f"{found[0]['steps']:,}"]
        losses = [one["loss"] for one in found]
        spread = f" ± {statistics.stdev(losses):.3f}" if len(losses) > 1 else ""
        cells.append(f"{statistics.mean(losses):.3f}{spread}")
        cells += [label_efficiency.cell([100 * one[part] for one in found]) for part in parts]
        print(f"| {recipe} | {' | '.join(cells)} |")


def main():
    arguments = parse_arguments()
    if arguments.stage != "show":
        splits = {
            "reviews": label_efficiency.read_reviews(arguments.reviews),
            "sentences": label_efficiency.read_sentences(arguments.sentences),
        }
        unlabelled = label_efficiency.read_unlabelled(arguments.reviews)
        tokenizer, *paths = tokens_of(arguments, [*splits["reviews"][0][0], *unlabelled])
        times = folder_of(arguments) / "step_seconds.json"
        if not times.exists():
            times.parent.mkdir(parents=True, exist_ok=True)
            seconds = seconds_of_steps(tokenizer, paths[0], arguments)
            times.write_text(json.dumps(seconds, indent=1))
        if arguments.stage != "prepare":
            train(splits, tokenizer, paths, arguments)
    show(arguments)


if __name__ == "__main__":
    main()
