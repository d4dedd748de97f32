"""Fine-tune a small GPT: classes, numbers and multiple choice, from labelled text to predictions.

Three tasks that every Python carries with it, without any download:

    python examples/finetune.py                      # all three
    python examples/finetune.py --task categories    # a character's name -> its Unicode category
    python examples/finetune.py --task values        # a character's name -> its numeric value
    python examples/finetune.py --task docstrings    # a function -> which docstring is its own

Your own table (.csv, .tsv, .jsonl, .json, .parquet, plain or compressed) or a data set of the
Hugging Face hub, by `datasets`:

    python examples/finetune.py --train reviews.tsv --text sentence --label label
    python examples/finetune.py --train stanfordnlp/sst2 --text sentence --label label
    python examples/finetune.py --train pairs.csv --text first second --label score --regression

With `--model runs/pretrain/lm.keras` the body is a model that `examples/pretrain.py` trained;
without, a small one is first trained on the task's own texts, without their labels.

Needs: pip install scikit-learn scipy, and for your own data: pip install datasets.
"""

import argparse
import math
import os
import sys
from pathlib import Path

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")  # no remarks of TensorFlow's on the machine

import keras

import kgpt


def parse_arguments():
    parser = argparse.ArgumentParser(description=__doc__.split("\n", 1)[0])
    parser.add_argument("--task", choices=[*BUILT_IN, "all"], default="all")
    parser.add_argument("--train", help="table, or name on the hub, instead of a built-in task")
    parser.add_argument("--validation", help="table; by default a tenth of the training examples")
    parser.add_argument("--text", nargs="+", default=["text"], help="name of the column, or of two")
    parser.add_argument("--label", default="label", help="name of the column")
    parser.add_argument("--regression", action="store_true", help="labels are numbers to predict")
    parser.add_argument("--model", type=Path, help=".keras file of a kgpt.CausalLM")
    parser.add_argument("--output", type=Path, default=Path("runs/finetune"))
    parser.add_argument("--epochs", type=int, default=3)
    parser.add_argument("--batch-size", type=int, default=32)
    parser.add_argument("--learning-rate", type=float, default=1e-3)
    parser.add_argument("--lm-loss-weight", type=float, default=0.5, help="the paper's lambda")
    parser.add_argument("--examples", type=int, default=6000, help="train on so many at most")
    arguments = parser.parse_args()
    for name in ("epochs", "batch_size", "examples"):
        if getattr(arguments, name) < 1:
            parser.error(f"--{name.replace('_', '-')} must be at least 1")
    return arguments


# === Labelled text: a function for each task, from a split's name to columns ===


def categories(split):
    return kgpt.data.character_categories(split)


def values(split):
    """The values lie between -1/2 and 10^12: their logarithm is learned."""
    columns = kgpt.data.character_values(split)
    targets = [math.copysign(math.log10(1 + abs(v)), v) for v in columns["targets"]]
    return {"texts": columns["texts"], "targets": targets}


def docstrings(split):
    return kgpt.data.function_docstrings(split)


BUILT_IN = {"categories": categories, "values": values, "docstrings": docstrings}


def own_table(arguments):
    """The columns of both splits, from a file or the hub."""
    import datasets

    path = Path(arguments.train)
    if path.exists():
        formats = {".csv": "csv", ".tsv": "csv", ".json": "json", ".jsonl": "json"}
        is_compressed = path.suffix in (".gz", ".xz", ".bz2", ".zst")
        suffix = Path(path.stem if is_compressed else path).suffix
        options = {"delimiter": "\t"} if suffix == ".tsv" else {}
        files = {"train": str(path)}
        if arguments.validation:
            files["validation"] = arguments.validation
        form = formats.get(suffix, suffix[1:])
        splits = datasets.load_dataset(form, data_files=files, **options)
    else:
        splits = datasets.load_dataset(arguments.train)
    if "validation" not in splits:
        parts = splits["train"].train_test_split(0.1, seed=0)
        splits = {"train": parts["train"], "validation": parts["test"]}

    def columns(split):
        texts = [splits[split][name] for name in arguments.text]
        texts = list(texts[0]) if len(texts) == 1 else list(zip(*texts, strict=True))
        labels = list(splits[split][arguments.label])
        return {"texts": texts, "targets" if arguments.regression else "labels": labels}

    return columns


# === From columns to batches and a model ===


def make_batches(columns, tokenizer, class_names, seed, arguments):
    sizes = {"batch_size": arguments.batch_size, "seed": seed}
    if "choices" in columns:
        sizes["batch_size"] = max(1, arguments.batch_size // len(columns["choices"][0]))
        return kgpt.data.multiple_choice(
            columns["contexts"], columns["choices"], columns["labels"], tokenizer, 128, **sizes
        )
    if "targets" in columns:
        return kgpt.data.regression(columns["texts"], columns["targets"], tokenizer, 128, **sizes)
    sizes["class_names"] = class_names
    if isinstance(columns["texts"][0], tuple):
        first, second = zip(*columns["texts"], strict=True)
        return kgpt.data.entailment(first, second, columns["labels"], tokenizer, 128, **sizes)
    return kgpt.data.classification(columns["texts"], columns["labels"], tokenizer, 128, **sizes)


def make_model(columns, backbone, tokenizer, class_names, arguments):
    options = {"tokenizer": tokenizer, "lm_loss_weight": arguments.lm_loss_weight}
    if "choices" in columns:
        return kgpt.MultipleChoice(backbone, **options)
    if "targets" in columns:
        return kgpt.TextRegressor(backbone, **options)
    return kgpt.TextClassifier(backbone, class_names=class_names, **options)


def all_texts(columns):
    for name in ("texts", "contexts", "choices"):
        for text in columns.get(name, ()):
            yield from [text] if isinstance(text, str) else text


def body(columns, arguments):
    """The body and its tokenizer: from a file, or small and untrained, for the task's own texts."""
    if arguments.model:
        lm = keras.saving.load_model(arguments.model)
        tokenizer = lm.tokenizer.with_special_tokens()  # start, delimiter, classify, if need be
        return lm.backbone.with_vocabulary_size(tokenizer.vocabulary_size), tokenizer
    tokenizer = kgpt.Tokenizer.train(all_texts(columns), vocabulary_size=2048)
    backbone = kgpt.GPTBackbone.from_preset(
        "gpt_nano",
        load_weights=False,
        vocabulary_size=tokenizer.vocabulary_size,
        max_sequence_length=128,
    )
    return backbone, tokenizer


def pretrain(backbone, tokenizer, columns, folder):
    """Trains the body on the task's own texts, without their labels."""
    tokens = kgpt.data.write_tokens(
        all_texts(columns), tokenizer, folder / "tokens.npy", progress=False
    )
    windows = kgpt.data.windows(tokens.path, sequence_length=64, batch_size=16, seed=0, repeat=True)
    lm = kgpt.CausalLM(backbone, tokenizer=tokenizer)
    lm.compile(kgpt.recipes.pretraining_optimizer(steps=600, learning_rate=2e-3))
    print(f"Pretraining on {tokens.num_tokens:,} tokens of the task's texts (about a minute) ...")
    lm.fit(windows, epochs=2, steps_per_epoch=300, verbose=2)
    lm.save(folder / "lm.keras")


def show_predictions(model, columns):
    """Some predictions of new text."""
    if isinstance(model, kgpt.MultipleChoice):
        contexts, choices = columns["contexts"][:2], columns["choices"][:2]
        chosen = model.predict_text(contexts, choices)
        for context, texts, number in zip(contexts, choices, chosen, strict=True):
            print(f"\n{context[:200]}\n-> {texts[number]}")
        return
    texts = columns["texts"][:: max(1, len(columns["texts"]) // 6)][:6]
    truths = columns.get("labels", columns.get("targets"))
    truths = truths[:: max(1, len(truths) // 6)][:6]
    for text, found, truth in zip(texts, model.predict_text(texts), truths, strict=True):
        found = f"{float(found[0]):.2f}" if "targets" in columns else found
        truth = f"{truth:.2f}" if "targets" in columns else truth
        print(f"{text!r}: {found} (right: {truth})")


def finetune(name, load, arguments):
    print(f"\n=== {name} ===")
    keras.utils.set_random_seed(0)
    train, valid = load("train"), load("validation")
    most = arguments.examples
    if "choices" in train:
        most = max(1, most // len(train["choices"][0]))  # each choice is read as a text
    step = max(1, len(next(iter(train.values()))) // most)
    train = {column: rows[::step][:most] for column, rows in train.items()}
    class_names = None
    if "labels" in train and "choices" not in train:
        labels = [*train["labels"], *valid["labels"]]
        class_names = sorted(set(labels)) if isinstance(labels[0], str) else range(max(labels) + 1)
        class_names = [str(name) for name in class_names]

    # What can be wrong with the data or is not installed shows here, before anything is trained.
    file = arguments.output / name / "model.keras"
    file.parent.mkdir(parents=True, exist_ok=True)
    backbone, tokenizer = body(train, arguments)
    train_batches = make_batches(train, tokenizer, class_names, 0, arguments)
    valid_batches = make_batches(valid, tokenizer, class_names, None, arguments)
    model = make_model(train, backbone, tokenizer, class_names, arguments)
    model.compile(
        kgpt.recipes.finetuning_optimizer(
            arguments.epochs * len(train_batches), learning_rate=arguments.learning_rate
        )
    )
    scores = kgpt.callbacks.Scores(valid_batches)

    if not arguments.model:
        pretrain(backbone, tokenizer, train, file.parent)
    print(f"Fine-tuning on {train_batches.num_examples:,} examples ...")
    model.fit(
        train_batches,
        epochs=arguments.epochs,
        callbacks=[scores],
        verbose=2,
    )

    model.save(file)
    print(f"Saved as {file}; predictions for texts that it has not seen:")
    show_predictions(keras.saving.load_model(file), valid)


def main():
    arguments = parse_arguments()
    if arguments.train:
        finetune("own", own_table(arguments), arguments)
        return
    for name in BUILT_IN if arguments.task == "all" else [arguments.task]:
        finetune(name, BUILT_IN[name], arguments)


if __name__ == "__main__":
    sys.stdout.reconfigure(errors="replace")  # for a console without the characters of a sample
    main()
