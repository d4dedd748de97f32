"""What pretraining is worth, by the number of labels: one small body, film reviews, sentences.

    python benchmarks/label_efficiency.py --reviews aclImdb --sentences sst2

A body of 5 million parameters is pretrained on the 75,000 reviews of the Large Movie Review Dataset
(Maas et al. 2011) without their labels, an hour on 2 cores; then classifiers of reviews and of the
sentences of SST-2 (Socher et al. 2013) are trained on 100, 300 and 1,000 labels: on this body, on
the same body from scratch, both with and without the auxiliary loss; with LoRA; with the body
frozen; on keras-hub's body from scratch; and, without a network, by logistic regression over
counted words and pairs of words. `--full` adds all labels, the last size with one seed.

`--reviews` is the folder aclImdb as it is published, or one with `train.jsonl.xz`,
`unlabelled.jsonl.xz` and `test.jsonl.xz` of rows {"text", "label"}; `--sentences` has `train.tsv`
and `test.tsv` of lines "sentence TAB 0 or 1". Each result is kept as a file in `--output` and is
not computed again; several processes share the work with `--share 1/4`, `--share 2/4` and so on.
`--tune` tests on training examples without labels, to choose hyperparameters by.

Needs: pip install scikit-learn
"""

import argparse
import json
import lzma
import math
import os
import statistics
import sys
import time
from pathlib import Path

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")  # no remarks of TensorFlow's on the machine

import keras
import numpy as np

import kgpt

SIZES = {"num_layers": 4, "num_heads": 4, "hidden_dim": 256}
FAST = {"rotary_positions": True, "query_key_norm": True, "zero_init_residual": True}
VOCABULARY_SIZE, BATCH = 8192, 32
LABELS, ALL_LABELS = (100, 300, 1000), {"reviews": (3000, 10000, 25000), "sentences": (6920,)}
TEST_EXAMPLES = 2000  # of the reviews, by default; --full takes all of them
BODIES = {  # method: what its body is, and the weight of the auxiliary loss
    "pretrained": ("pretrained", 0.0),
    "pretrained, auxiliary loss": ("pretrained", 0.5),
    "LoRA": ("pretrained", 0.0),
    "frozen body": ("pretrained", 0.0),
    "from scratch": ("fresh", 0.0),
    "from scratch, auxiliary loss": ("fresh", 0.5),
}
METHODS = (*BODIES, "keras-hub, from scratch", "counted words")
RATES = {"pretrained": 3e-4, "LoRA": 3e-3, "frozen body": 1e-2, "from scratch": 1e-3}
RATES["keras-hub"] = RATES["from scratch"]


def parse_arguments(given=None):
    parser = argparse.ArgumentParser(description=__doc__.split("\n", 1)[0])
    parser.add_argument("--reviews", type=Path, required=True)
    parser.add_argument("--sentences", type=Path, required=True)
    parser.add_argument("--output", type=Path, default=Path("runs/label_efficiency"))
    parser.add_argument("--stage", choices=("pretrain", "fine-tune", "show", "all"), default="all")
    parser.add_argument("--sets", nargs="+", choices=ALL_LABELS, default=list(ALL_LABELS))
    parser.add_argument("--methods", nargs="+", choices=METHODS, default=list(METHODS))
    parser.add_argument("--labels", nargs="+", type=int, default=list(LABELS))
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2])
    parser.add_argument("--full", action="store_true", help="all labels and all tests too")
    parser.add_argument("--share", default="1/1", help="i/n: every n-th result, from the i-th")
    parser.add_argument("--tune", action="store_true", help="test on held-out training examples")
    parser.add_argument("--rate", type=float, help="of fine-tuning, for all methods")
    parser.add_argument("--passes", type=float, default=1.0, help="over the fine-tuning's default")
    parser.add_argument("--truncate", choices=("end", "start"), default="start")
    parser.add_argument("--length", type=int, default=256, help="tokens of a text and a window")
    parser.add_argument("--tokens", type=float, default=14e6, help="to pretrain on")
    parser.add_argument("--pretraining-rate", type=float, default=1e-2)
    parser.add_argument("--dtype", default="mixed_bfloat16")
    return parser.parse_args(given)


# === Texts ===


def read_rows(path):
    with lzma.open(path, "rt", encoding="utf-8") as file:
        rows = [json.loads(line) for line in file]
    return [row["text"] for row in rows], [int(row.get("label") == "pos") for row in rows]


def read_folder(*folders):
    found = []
    for folder in folders:
        files = sorted(folder.glob("*.txt"))
        found += [(file.read_text(encoding="utf-8"), int(folder.name == "pos")) for file in files]
    texts, labels = zip(*found, strict=True)
    return [text.replace("<br />", "\n") for text in texts], list(labels)


def read_reviews(folder):
    """The labelled reviews of both splits."""
    if (folder / "train" / "pos").is_dir():
        return [
            read_folder(folder / part / "neg", folder / part / "pos") for part in ("train", "test")
        ]
    return [read_rows(folder / f"{name}.jsonl.xz") for name in ("train", "test")]


def read_unlabelled(folder):
    if (folder / "train" / "unsup").is_dir():
        return read_folder(folder / "train" / "unsup")[0]
    return read_rows(folder / "unlabelled.jsonl.xz")[0]


def read_sentences(folder):
    def rows(path):
        lines = path.read_text(encoding="utf-8").splitlines()
        texts, labels = zip(*(line.rsplit("\t", 1) for line in lines), strict=True)
        return list(texts), [int(label) for label in labels]

    return rows(folder / "train.tsv"), rows(folder / "test.tsv")


def labelled(splits, labels, seed, arguments):
    """The training examples that have labels, and those to test on."""
    (texts, classes), test = splits
    order = np.random.default_rng(seed).permutation(len(texts))
    train = [[column[i] for i in order[:labels]] for column in (texts, classes)]
    if arguments.tune:
        order = np.random.default_rng(1000).permutation(len(texts))[:TEST_EXAMPLES]
        chosen = set(order) - set(np.random.default_rng(seed).permutation(len(texts))[:labels])
        return train, [[column[i] for i in sorted(chosen)] for column in (texts, classes)]
    if not arguments.full and len(test[0]) > TEST_EXAMPLES:
        order = np.random.default_rng(0).permutation(len(test[0]))[:TEST_EXAMPLES]
        test = [[column[i] for i in order] for column in test]
    return train, test


# === The body ===


def pretrain(texts, arguments):
    """Trains the tokenizer and the body, once; a run that was cut off goes on."""
    output = arguments.output
    if (output / "lm.keras").exists():
        return
    output.mkdir(parents=True, exist_ok=True)
    if not (output / "tokenizer.json").exists():
        kgpt.Tokenizer.train(texts, VOCABULARY_SIZE).save(output / "tokenizer.json")
    tokenizer = kgpt.Tokenizer.from_file(output / "tokenizer.json")
    tokens = kgpt.data.write_tokens(
        texts, tokenizer, output / "tokens.npy", validation_fraction=0.01
    )
    sizes = {"sequence_length": arguments.length, "batch_size": BATCH}
    steps = math.ceil(arguments.tokens / (arguments.length * BATCH))
    keras.utils.set_random_seed(0)
    lm = kgpt.CausalLM(fresh_body(tokenizer, arguments, dropout=0.0), tokenizer=tokenizer)
    lm.compile(kgpt.recipes.fast_optimizer(steps, arguments.pretraining_rate))
    parts = 10
    started = time.perf_counter()
    history = lm.fit(
        kgpt.data.windows(tokens.path, seed=0, repeat=True, **sizes),
        epochs=parts,
        steps_per_epoch=steps // parts,
        validation_data=kgpt.data.windows(tokens.validation_path, **sizes),
        callbacks=[
            kgpt.callbacks.ResumableCheckpoint(output / "pretraining", save_freq=500),
            kgpt.callbacks.GenerateSamples(["This movie"], 50, sliding_window=True),
            KeepBodies(output / "bodies"),
        ],
        verbose=2,
    ).history
    kgpt.CausalLM(lm.backbone, tokenizer=tokenizer).save(output / "lm.keras")  # no optimizer
    record = {
        "tokens": steps // parts * parts * arguments.length * BATCH,
        "perplexity": history["val_perplexity"],
        "seconds": time.perf_counter() - started,
        "sample": lm.generate(
            "This movie", max_new_tokens=arguments.length - 10, sampler="top_p", seed=0
        ),
    }
    (output / "pretraining.json").write_text(json.dumps(record, indent=1))
    print(json.dumps(record, indent=1))


class KeepBodies(keras.callbacks.Callback):
    """Keeps the body's weights after 0, 64, 128, 256, ... steps, for figures over pretraining."""

    def __init__(self, folder):
        super().__init__()
        self.folder = folder

    def on_train_begin(self, logs=None):
        self.folder.mkdir(parents=True, exist_ok=True)
        self._step = int(keras.ops.convert_to_numpy(self.model.optimizer.iterations))
        self._keep()

    def on_train_batch_end(self, batch, logs=None):
        self._step += 1
        self._keep()

    def _keep(self):
        path = self.folder / f"{self._step:06d}.weights.h5"
        is_kept = self._step == 0 or (self._step >= 64 and self._step.bit_count() == 1)
        if is_kept and not path.exists():
            if hasattr(self.model, "jax_state_sync"):
                self.model.jax_state_sync()
            self.model.backbone.save_weights(path)


def fresh_body(tokenizer, arguments, dropout):
    return kgpt.GPTBackbone(
        tokenizer.vocabulary_size,
        **SIZES,
        **FAST,
        dropout=dropout,
        attention_dropout=0.0,  # which fused kernels of GPUs have not
        max_sequence_length=arguments.length,
        dtype=arguments.dtype,
    )


def body_of(method, tokenizer, arguments):
    """A body with dropout: the pretrained one, or a fresh one of the same sizes."""
    body = fresh_body(tokenizer, arguments, dropout=0.1)
    if BODIES[method][0] == "pretrained":
        lm = keras.saving.load_model(arguments.output / "lm.keras", compile=False)
        body.set_weights(lm.backbone.get_weights())
    if method == "LoRA":
        body.enable_lora(8)
    if method == "frozen body":
        body.trainable = False
    return body


# === One result ===


def accuracy(method, train, test, seed, arguments, make_body=None):
    if method == "counted words":
        return accuracy_of_counted_words(train, test)
    keras.utils.set_random_seed(seed)
    tokenizer = kgpt.Tokenizer.from_file(arguments.output / "tokenizer.json")
    labels = len(train[0])
    batch = 20 if labels <= 1000 else 32
    passes = max(3, round(arguments.passes * 10 * (300 / labels) ** 0.5))
    options = {"sequence_length": arguments.length, "truncate": arguments.truncate}
    data = kgpt.data.classification(*train, tokenizer, batch_size=batch, seed=seed, **options)
    rate = arguments.rate or RATES.get(method) or RATES[method.partition(",")[0]]
    optimizer = kgpt.recipes.finetuning_optimizer(passes * len(data), rate, warmup=0.1)
    if method == "keras-hub, from scratch":
        model = keras_hub_classifier(tokenizer, arguments)
        model.compile(optimizer, keras.losses.SparseCategoricalCrossentropy(from_logits=True))
    else:
        body = (make_body or body_of)(method, tokenizer, arguments)
        model = kgpt.TextClassifier(body, num_classes=2, lm_loss_weight=BODIES[method][1])
        model.compile(optimizer)
    model.fit(data, epochs=passes, verbose=0)
    asked = kgpt.data.classification(
        *test, tokenizer, batch_size=64 if arguments.length <= 256 else 32, seed=None, **options
    )
    logits = asked.original_order(np.concatenate([model.predict_on_batch(x) for x, _ in asked]))
    return float(np.mean(logits.argmax(axis=1) == np.array(test[1])))


def keras_hub_classifier(tokenizer, arguments):
    """The same reading of the same sequences, on a body of keras-hub's."""
    import keras_hub

    from kgpt.models.head import LastTokenStates

    inputs = {
        "token_ids": keras.Input((None,), dtype="int32", name="token_ids"),
        "padding_mask": keras.Input((None,), dtype="bool", name="padding_mask"),
    }
    body = keras_hub.models.GPT2Backbone(
        vocabulary_size=tokenizer.vocabulary_size,
        intermediate_dim=4 * SIZES["hidden_dim"],
        dropout=0.1,
        max_sequence_length=arguments.length,
        dtype=arguments.dtype,
        **SIZES,
    )
    states = LastTokenStates()(body(inputs), keras.ops.expand_dims(inputs["padding_mask"], 1))
    state = keras.layers.Dropout(0.1)(keras.ops.squeeze(states, 1))
    return keras.Model(inputs, keras.layers.Dense(2, dtype="float32")(state))


def accuracy_of_counted_words(train, test):
    """TF-IDF of words and pairs; regularization by cross-validation on the training labels."""
    from sklearn.feature_extraction.text import TfidfVectorizer
    from sklearn.linear_model import LogisticRegression
    from sklearn.model_selection import GridSearchCV
    from sklearn.pipeline import make_pipeline

    counted = make_pipeline(
        TfidfVectorizer(ngram_range=(1, 2), sublinear_tf=True),
        LogisticRegression(max_iter=2000),
    )
    rates = {"logisticregression__C": [0.1, 1.0, 10.0, 100.0, 1000.0]}
    return GridSearchCV(counted, rates, cv=5).fit(*train).score(*test)


# === All results ===


def results_to_make(arguments):
    """(set, method, labels, seed) of each result."""
    for name in arguments.sets:
        for method in arguments.methods:
            for labels in arguments.labels:
                for seed in arguments.seeds:
                    yield name, method, labels, seed
            if arguments.full and method in ("pretrained", "from scratch", "counted words"):
                for labels in ALL_LABELS[name]:
                    yield name, method, labels, 0


def path_of(result, arguments):
    name = "-".join(str(part).replace(", ", "_").replace(" ", "_") for part in result)
    return arguments.output / "results" / f"{name}.json"


def fine_tune(splits, arguments):
    share, shares = map(int, arguments.share.split("/"))
    for number, result in enumerate(results_to_make(arguments)):
        path = path_of(result, arguments)
        if number % shares != share - 1 or path.exists():
            continue
        name, method, labels, seed = result
        train, test = labelled(splits[name], labels, seed, arguments)
        started = time.perf_counter()
        found = accuracy(method, train, test, seed, arguments)
        seconds = time.perf_counter() - started
        record = {"set": name, "method": method, "labels": labels, "seed": seed}
        record.update(accuracy=found, seconds=seconds)
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(record))
        print(
            f"{name}, {labels} labels, {method}, seed {seed}: {100 * found:.1f}% ({seconds:.0f} s)"
        )
        keras.utils.clear_session()


def read_results(folder):
    """Returns {(set, method, labels): accuracies in percent}."""
    results = {}
    for path in sorted(folder.glob("*.json")):
        record = json.loads(path.read_text())
        key = record["set"], record["method"], record["labels"]
        results.setdefault(key, []).append(100 * record["accuracy"])
    return results


def cell(accuracies):
    spread = f" ± {statistics.stdev(accuracies):.1f}" if len(accuracies) > 1 else ""
    return f"{statistics.mean(accuracies):.1f}{spread}"


def print_tables(results):
    for name in ALL_LABELS:
        sizes = sorted({labels for found, _, labels in results if found == name})
        if not sizes:
            continue
        print(f"\n| {name}, accuracy in % | {' | '.join(f'{n:,} labels' for n in sizes)} |")
        print("|---|" + "---|" * len(sizes))
        for method in METHODS:
            cells = [cell(results.get((name, method, n), [math.nan])) for n in sizes]
            if any(found != "nan" for found in cells):
                print(f"| {method} | {' | '.join(c.replace('nan', '') for c in cells)} |")


def draw(results, path):
    """Accuracy over the number of labels, the mean of the seeds and their range."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    shown = {  # method: colour, marker
        "pretrained": ("#0072B2", "o"),
        "from scratch": ("#D55E00", "s"),
        "counted words": ("#555555", "^"),
    }
    figure, axes = pyplot.subplots(1, 2, figsize=(9, 3.8), layout="constrained", sharey=True)
    for axis, name in zip(axes, ALL_LABELS, strict=True):
        for method, (color, marker) in shown.items():
            sizes = sorted(n for found, one, n in results if (found, one) == (name, method))
            if not sizes:
                continue
            found = [results[name, method, n] for n in sizes]
            means = [statistics.mean(values) for values in found]
            axis.plot(sizes, means, color=color, marker=marker, label=method)
            low, high = ([limit(values) for values in found] for limit in (min, max))
            axis.fill_between(sizes, low, high, color=color, alpha=0.2, linewidth=0)
        axis.set_xscale("log")
        axis.set_title(name)
        axis.set_xlabel("labels")
        axis.grid(alpha=0.3)
    axes[0].set_ylabel("accuracy on the test, %")
    axes[0].legend(frameon=False, loc="lower right")
    figure.savefig(path, dpi=120)
    print(f"Picture: {path}")


def main():
    arguments = parse_arguments()
    keras.config.set_dtype_policy("float32")
    if arguments.stage != "show":
        splits = {
            "reviews": read_reviews(arguments.reviews),
            "sentences": read_sentences(arguments.sentences),
        }
        if arguments.stage in ("pretrain", "all"):
            labelled_texts = splits["reviews"][0][0]  # without their labels
            pretrain([*labelled_texts, *read_unlabelled(arguments.reviews)], arguments)
        if arguments.stage in ("fine-tune", "all"):
            fine_tune(splits, arguments)
    results = read_results(arguments.output / "results")
    if results:
        print_tables(results)
        draw(results, arguments.output / "label_efficiency.png")


if __name__ == "__main__":
    sys.stdout.reconfigure(errors="replace")  # for a console without the characters of a sample
    main()
