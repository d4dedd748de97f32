"""What pretraining and the auxiliary loss are worth: GPT-1's ablation (table 5) on a small body.

    python examples/ablation.py path/to/data              # all tasks, three seeds
    python examples/ablation.py path/to/data --tasks sst2 stsb --seeds 0

`path/to/data` has a folder for each task, with the files as their authors publish them:

    sst2/train.tsv, dev.tsv                   sentence, label; no header
    cola/in_domain_train.tsv, *_dev.tsv       source, label, star, sentence; no header
    stsb/sts-train.csv, sts-dev.csv           tab-separated; score in column 5, texts in 6 and 7
    rte/train.tsv, dev.tsv                    header: index, sentence1, sentence2, label
    copa/copa-dev.xml, copa-test.xml          trained on the first, scored on the second

One body is pretrained on all training texts, without their labels, and on any `*.txt` in the
folders. Then each task is learned by five models: the pretrained body with and without the
auxiliary language-model loss, the same body from scratch, keras-hub's GPT2Backbone of the same size
from scratch, and TF-IDF with logistic or ridge regression. Results are kept as they come: started
again, the script goes on where it stopped. At the end it prints a table and draws a picture.

Needs: pip install scikit-learn scipy.
"""

import argparse
import csv
import importlib.util
import json
import os
import sys
import xml.etree.ElementTree as ElementTree
from pathlib import Path

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")  # no remarks of TensorFlow's on the machine

import keras
import numpy as np

import kgpt
from kgpt.metrics import classification_scores, regression_scores
from kgpt.models.head import LastTokenStates, MergeSequences

SIZES = {"num_layers": 3, "num_heads": 3, "hidden_dim": 96, "max_sequence_length": 128}
VARIANTS = {
    "pretrained": "pretrained, with the auxiliary loss",
    "no auxiliary loss": "pretrained, without the auxiliary loss",
    "from scratch": "not pretrained, with the auxiliary loss",
    "keras-hub": "keras-hub's GPT2Backbone, not pretrained",
    "TF-IDF": "TF-IDF of words and pairs of words, linear model",
}
SCORES = {"sst2": "accuracy", "cola": "matthews", "stsb": "pearson", "rte": "accuracy"}
SCORES["copa"] = "accuracy"


def parse_arguments():
    parser = argparse.ArgumentParser(description=__doc__.split("\n", 1)[0])
    parser.add_argument("data", type=Path, help="folder with the tasks' folders")
    parser.add_argument("--output", type=Path, default=Path("runs/ablation"))
    parser.add_argument("--tasks", nargs="+", choices=SCORES, default=list(SCORES))
    parser.add_argument("--variants", nargs="+", choices=VARIANTS, default=list(VARIANTS))
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2])
    parser.add_argument("--pretraining-steps", type=int, default=2000)
    parser.add_argument("--epochs", type=int, default=3)
    parser.add_argument("--learning-rate", type=float, default=5e-4, help="in fine-tuning")
    parser.add_argument("--examples", type=int, help="train on this many examples at most")
    arguments = parser.parse_args()
    needed = {"sklearn": "scikit-learn", "scipy": "scipy"}
    missing = [needed[name] for name in needed if importlib.util.find_spec(name) is None]
    if missing:
        parser.error(f"packages are missing. Try: pip install {' '.join(missing)}")
    for name in ("pretraining_steps", "epochs", "examples"):
        given = getattr(arguments, name)
        if given is not None and given < 1:
            parser.error(f"--{name.replace('_', '-')} must be at least 1")
    return arguments


# === The tasks: (texts or pairs or (contexts, choices), labels) of each split ===


def read_table(path, **options):
    with open(path, encoding="utf-8", newline="") as file:
        return list(csv.reader(file, delimiter="\t", quoting=csv.QUOTE_NONE, **options))


def read_sst2(folder, is_training):
    rows = read_table(folder / ("train.tsv" if is_training else "dev.tsv"))
    return [row[0] for row in rows], [int(row[1]) for row in rows]


def read_cola(folder, is_training):
    files = ["in_domain_train"] if is_training else ["in_domain_dev", "out_of_domain_dev"]
    rows = [row for file in files for row in read_table(folder / f"{file}.tsv")]
    return [row[3] for row in rows], [int(row[1]) for row in rows]


def read_stsb(folder, is_training):
    rows = read_table(folder / ("sts-train.csv" if is_training else "sts-dev.csv"))
    # From 0 to 5 in the files; around 0 and of about unit spread here, which correlation ignores.
    return [(row[5], row[6]) for row in rows], [(float(row[4]) - 2.7) / 1.5 for row in rows]


def read_rte(folder, is_training):
    rows = read_table(folder / ("train.tsv" if is_training else "dev.tsv"))[1:]
    return [(row[1], row[2]) for row in rows], [int(row[3] == "entailment") for row in rows]


def read_copa(folder, is_training):
    file = folder / ("copa-dev.xml" if is_training else "copa-test.xml")
    contexts, choices, labels = [], [], []
    for item in ElementTree.parse(file).getroot():
        asks = "What was the cause?" if item.get("asks-for") == "cause" else "What happened?"
        contexts.append(f"{item.findtext('p')} {asks}")
        choices.append([item.findtext("a1"), item.findtext("a2")])
        labels.append(int(item.get("most-plausible-alternative")) - 1)
    return (contexts, choices), labels


READERS = {
    "sst2": read_sst2,
    "cola": read_cola,
    "stsb": read_stsb,
    "rte": read_rte,
    "copa": read_copa,
}


def texts_of(examples):
    """All texts in a task's examples, however they are nested."""
    if isinstance(examples, str):
        return [examples]
    return [text for part in examples for text in texts_of(part)]


def batches(task, examples, labels, tokenizer, seed=None):
    sizes = {"sequence_length": SIZES["max_sequence_length"], "batch_size": 32, "seed": seed}
    if task == "copa":
        return kgpt.data.multiple_choice(*examples, labels, tokenizer, **sizes)
    if task == "stsb":
        return kgpt.data.regression(examples, labels, tokenizer, **sizes)
    if task == "rte":
        return kgpt.data.entailment(*zip(*examples, strict=True), labels, tokenizer, **sizes)
    return kgpt.data.classification(examples, labels, tokenizer, **sizes)


# === The models ===


def pretrain(arguments):
    """The tokenizer, and a language model trained on the texts without their labels."""
    output = arguments.output
    texts = [
        text
        for task, read in READERS.items()
        if (arguments.data / task).is_dir()
        for text in texts_of(read(arguments.data / task, True)[0])
    ]
    texts += sorted(arguments.data.glob("*/*.txt"))
    output.mkdir(parents=True, exist_ok=True)
    if not (output / "tokenizer.json").exists():
        kgpt.Tokenizer.train(texts, vocabulary_size=4096).save(output / "tokenizer.json")
    tokenizer = kgpt.Tokenizer.from_file(output / "tokenizer.json")
    if not (output / "lm.keras").exists():
        keras.utils.set_random_seed(0)
        tokens = kgpt.data.write_tokens(
            texts, tokenizer, output / "tokens.npy", validation_fraction=0.02
        )
        print(f"Pretraining on {tokens.num_tokens:,} tokens")
        sizes = {"sequence_length": SIZES["max_sequence_length"], "batch_size": 16}
        lm = kgpt.CausalLM(new_backbone(tokenizer), tokenizer=tokenizer)
        steps = arguments.pretraining_steps
        lm.compile(kgpt.recipes.pretraining_optimizer(steps, learning_rate=1.5e-3))
        lm.fit(
            kgpt.data.windows(tokens.path, seed=0, repeat=True, random_offset=True, **sizes),
            steps_per_epoch=max(1, steps // 5),
            epochs=5,
            validation_data=kgpt.data.windows(tokens.validation_path, **sizes),
            callbacks=[kgpt.callbacks.ResumableCheckpoint(output / "pretraining")],
            verbose=2,
        )
        lm.save(output / "lm.keras")
    return tokenizer


def new_backbone(tokenizer):
    return kgpt.GPTBackbone(vocabulary_size=tokenizer.vocabulary_size, **SIZES)


def kgpt_model(variant, task, tokenizer, output):
    if variant == "from scratch":
        backbone = new_backbone(tokenizer)
    else:
        backbone = keras.saving.load_model(output / "lm.keras", compile=False).backbone
    options = {
        "tokenizer": tokenizer,
        "lm_loss_weight": 0.0 if variant == "no auxiliary loss" else 0.5,
    }
    if task == "copa":
        return kgpt.MultipleChoice(backbone, **options)
    if task == "stsb":
        return kgpt.TextRegressor(backbone, **options)
    return kgpt.TextClassifier(backbone, num_classes=2, **options)


def keras_hub_model(task, tokenizer):
    """The same reading of the same sequences, on a body of keras-hub's."""
    import keras_hub

    backbone = keras_hub.models.GPT2Backbone(
        vocabulary_size=tokenizer.vocabulary_size,
        intermediate_dim=4 * SIZES["hidden_dim"],
        dropout=0.1,
        **SIZES,
    )
    shape = (2, None) if task in ("copa", "stsb") else (None,)
    inputs = {
        "token_ids": keras.Input(shape, dtype="int32", name="token_ids"),
        "padding_mask": keras.Input(shape, dtype="bool", name="padding_mask"),
    }
    hidden_states = backbone(MergeSequences()(inputs))
    mask = inputs["padding_mask"]
    if len(shape) == 1:
        mask = keras.ops.expand_dims(mask, 1)
    states = LastTokenStates()(hidden_states, mask)  # (batch, sequences, hidden_dim)
    if task == "copa":
        dropped = keras.layers.Dropout(0.1, noise_shape=(None, 1, None))(states)
        outputs = keras.layers.Flatten()(keras.layers.Dense(1)(dropped))
    else:
        state = keras.ops.sum(states, axis=1)
        dropped = keras.layers.Dropout(0.1)(state)
        outputs = keras.layers.Dense(1 if task == "stsb" else 2)(dropped)
    return keras.Model(inputs, outputs)


def neural_outputs(variant, task, train, valid, tokenizer, arguments):
    """Trains a model and gives its outputs for the validation examples."""
    optimizer = kgpt.recipes.finetuning_optimizer(
        arguments.epochs * len(train), learning_rate=arguments.learning_rate
    )
    if variant == "keras-hub":
        model = keras_hub_model(task, tokenizer)
        cross_entropy = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
        model.compile(optimizer, loss="mse" if task == "stsb" else cross_entropy)
    else:
        model = kgpt_model(variant, task, tokenizer, arguments.output)
        model.compile(optimizer)
    model.fit(train, epochs=arguments.epochs, verbose=2)
    # `valid` comes by length, as batches without a seed do.
    return valid.original_order(np.concatenate([model.predict_on_batch(x) for x, _ in valid]))


def tf_idf_outputs(task, train, valid):
    """A linear model of words and pairs of words; of two texts, of what they share and not."""
    from scipy import sparse
    from sklearn.feature_extraction.text import TfidfVectorizer
    from sklearn.linear_model import LogisticRegression, Ridge

    (examples, labels), (valid_examples, _) = train, valid
    vectorizer = TfidfVectorizer(ngram_range=(1, 2), sublinear_tf=True, min_df=1)
    vectorizer.fit(texts_of(examples))

    def features(first, second):
        a, b = vectorizer.transform(first), vectorizer.transform(second)
        shared = a.multiply(b)
        return sparse.hstack([abs(a - b), shared, shared.sum(axis=1)]).tocsr()

    if task == "copa":

        def choice_features(contexts, choices):
            return [features(contexts, [pair[i] for pair in choices]) for i in (0, 1)]

        first, second = choice_features(*examples)
        is_second = np.array(labels)
        linear = LogisticRegression(max_iter=1000).fit(
            sparse.vstack([first, second]), np.concatenate([1 - is_second, is_second])
        )
        parts = choice_features(*valid_examples)
        return np.stack([linear.decision_function(part) for part in parts], axis=1)
    if task in ("stsb", "rte"):
        x, valid_x = (features(*zip(*e, strict=True)) for e in (examples, valid_examples))
    else:
        x, valid_x = vectorizer.transform(examples), vectorizer.transform(valid_examples)
    if task == "stsb":
        return Ridge().fit(x, labels).predict(valid_x)[:, None]
    return LogisticRegression(max_iter=1000, C=10).fit(x, labels).predict_proba(valid_x)


# === Results ===


def print_table(results, tasks, variants):
    columns = " | ".join(f"{task} ({SCORES[task]})" for task in tasks)
    print(f"\n| model | {columns} |\n|---|{'---|' * len(tasks)}")
    for variant in variants:
        cells = []
        for task in tasks:
            scores = [100 * s for key, s in results.items() if key.startswith(f"{task}/{variant}/")]
            spread = f" ± {np.std(scores, ddof=1):.1f}" if len(scores) > 1 else ""
            cells.append(f"{np.mean(scores):.1f}{spread}" if scores else "")
        print(f"| {VARIANTS[variant]} | {' | '.join(cells)} |")


def draw(results, tasks, variants, path):
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(1, len(tasks), figsize=(2.6 * len(tasks), 4), squeeze=False)
    for axis, task in zip(axes[0], tasks, strict=True):
        for place, variant in enumerate(variants):
            scores = [100 * s for key, s in results.items() if key.startswith(f"{task}/{variant}/")]
            if scores:
                axis.bar(place, np.mean(scores), color=f"C{place}", label=variant, alpha=0.7)
                axis.plot([place] * len(scores), scores, "k.", markersize=5)
        axis.set_title(f"{task}\n{SCORES[task]} x 100", fontsize=10)
        axis.set_xticks([])
        shown = [100 * s for key, s in results.items() if key.startswith(f"{task}/")]
        if SCORES[task] == "accuracy" and shown:  # all are far from 0
            axis.set_ylim(min(40, min(shown) - 2), max(shown) + 2)
    handles, names = axes[0][0].get_legend_handles_labels()
    figure.legend(handles, names, loc="lower center", ncols=len(variants), fontsize=9)
    figure.tight_layout(rect=(0, 0.08, 1, 1))
    figure.savefig(path, dpi=120)
    print(f"Picture: {path}")


def main():
    arguments = parse_arguments()
    splits = {  # read before training, so that a missing file is noticed
        task: [READERS[task](arguments.data / task, is_training) for is_training in (True, False)]
        for task in arguments.tasks
    }
    tokenizer = pretrain(arguments)
    results_file = arguments.output / "results.json"
    results = json.loads(results_file.read_text()) if results_file.exists() else {}
    for seed in arguments.seeds:
        for task in arguments.tasks:
            train, valid = splits[task]
            if arguments.examples:
                examples, labels = train
                most = arguments.examples
                if task == "copa":
                    examples = tuple(part[:most] for part in examples)
                train = examples[:most], labels[:most]
            for variant in arguments.variants:
                key = f"{task}/{variant}/{seed}"
                if key in results:
                    continue
                print(f"\n{task}, {VARIANTS[variant]}, seed {seed}")
                keras.utils.set_random_seed(seed)
                if variant == "TF-IDF":
                    outputs = tf_idf_outputs(task, train, valid)
                else:
                    outputs = neural_outputs(
                        variant,
                        task,
                        batches(task, *train, tokenizer, seed=seed),
                        batches(task, *valid, tokenizer),
                        tokenizer,
                        arguments,
                    )
                score = regression_scores if task == "stsb" else classification_scores
                results[key] = score(valid[1], outputs)[SCORES[task]]
                print(f"{SCORES[task]}: {results[key]:.4f}")
                results_file.write_text(json.dumps(results, indent=1))
                keras.utils.clear_session()
    print_table(results, arguments.tasks, arguments.variants)
    draw(results, arguments.tasks, arguments.variants, arguments.output / "ablation.png")


if __name__ == "__main__":
    sys.stdout.reconfigure(errors="replace")  # for a console without the characters of a sample
    main()
