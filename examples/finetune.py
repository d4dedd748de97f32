"""Fine-tune a small GPT: classes, numbers, pairs, choices and sums, from text to predictions.

Five tasks that need no download, each of a few minutes on 2 cores:

    python examples/finetune.py                      # all of them
    python examples/finetune.py --task categories    # a character's name -> its Unicode category
    python examples/finetune.py --task values        # a numeral's name -> its value
    python examples/finetune.py --task paraphrases   # two sentences -> do they mean the same?
    python examples/finetune.py --task endings       # a story -> which of four ends is its own
    python examples/finetune.py --task arithmetic    # "37 + 58 = " -> "95"

Your own table (.csv, .tsv, .jsonl, .json, .parquet, plain or compressed) or a data set of the
Hugging Face hub, by `datasets`:

    python examples/finetune.py --train reviews.tsv --text sentence --label label
    python examples/finetune.py --train stanfordnlp/sst2 --text sentence --label label
    python examples/finetune.py --train pairs.csv --text first second --label score --regression

With `--model runs/pretrain/lm.keras` the body is a model that `examples/pretrain.py` trained;
without, a small one is first trained on the task's own texts, without their labels.

At the end: how often the model is right on examples that it has not seen, beside an answer that is
always the same; its surest answers, right and wrong; and a picture of all of them.

Your own data needs: pip install datasets.
"""

import argparse
import contextlib
import math
import os
import sys
from collections import Counter
from pathlib import Path
from typing import Any, NamedTuple

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")  # no remarks of TensorFlow's on the machine

import keras
import numpy as np

import kgpt

MOST_TOKENS = 256  # of a text

# === Labelled text: from the name of a split to columns ===


def categories(split):
    return kgpt.data.character_categories(split, in_words=True)


def values(split):
    """The values lie between -1/2 and 10^12: their logarithm is learned."""
    columns = kgpt.data.character_values(split)
    targets = [math.copysign(math.log10(1 + abs(v)), v) for v in columns["targets"]]
    return {"texts": columns["texts"], "targets": targets}


def endings(split):
    return kgpt.data.story_endings(split, num_stories=5000, short=True)


def value(target):
    """The value that has been learned as a logarithm, in digits."""
    return f"{math.copysign(10 ** abs(target) - 1, target):,.3g}"


class Task(NamedTuple):
    """Where the columns come from, and how long to train on them."""

    load: Any  # from "train" or "validation" to columns
    examples: int = 6000
    epochs: int = 3
    learning_rate: float = 1e-3
    optimizer: Any = kgpt.recipes.finetuning_optimizer  # from steps and learning rate
    say: Any = str  # how a reader would write a target
    pretraining: tuple = (400, 64)  # steps, and tokens in a window
    vocabulary_size: int = 700


BUILT_IN = {
    "categories": Task(categories),
    "values": Task(values, epochs=10, say=value),
    "paraphrases": Task(kgpt.data.paraphrases),
    "endings": Task(endings, 4000, epochs=2, vocabulary_size=1024),
    # Sums are more of the same for the body: they are learned as in pretraining.
    "arithmetic": Task(
        kgpt.data.arithmetic,
        20_000,
        epochs=3,
        learning_rate=5e-3,
        optimizer=kgpt.recipes.fast_optimizer,
    ),
}


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
    parser.add_argument("--epochs", type=int, help="by default those of the task; 3 for a table")
    parser.add_argument("--batch-size", type=int, default=32)
    parser.add_argument("--learning-rate", type=float, help="by default that of the task")
    parser.add_argument("--lm-loss-weight", type=float, default=0.5, help="the paper's lambda")
    parser.add_argument("--examples", type=int, help="train on so many at most")
    arguments = parser.parse_args()
    for name in ("epochs", "batch_size", "examples"):
        given = getattr(arguments, name)
        if given is not None and given < 1:
            parser.error(f"--{name.replace('_', '-')} must be at least 1")
    for name in ("validation", "text", "label", "regression"):
        if not arguments.train and getattr(arguments, name) != parser.get_default(name):
            parser.error(f"--{name} is for --train")
    if arguments.train:
        if arguments.task != "all":
            parser.error("--task names a built-in task, and --train takes your own")
        check_table(parser, arguments)
    return arguments


FORMATS = {
    ".csv": "csv",
    ".tsv": "csv",
    ".json": "json",
    ".jsonl": "json",
    ".parquet": "parquet",
}  # the names that the package datasets has for them


def suffix_of(file):
    """The suffix of a table, ".csv" of reviews.csv.gz too."""
    file = Path(file)
    is_compressed = file.suffix in (".gz", ".xz", ".bz2", ".zst")
    return Path(file.stem if is_compressed else file).suffix


def check_table(parser, arguments):
    """Says what can't be read before anything is imported or asked of the hub."""
    if len(arguments.text) > 2:
        parser.error("--text takes the name of a column, or of two")
    on_hub = not Path(arguments.train).exists() and suffix_of(arguments.train) not in FORMATS
    if on_hub and arguments.validation:
        parser.error("--validation is for a --train that is a file; a name on the hub has its own")
    for file in filter(None, ([] if on_hub else [arguments.train, arguments.validation])):
        if not Path(file).exists():
            parser.error(f"there is no file {file}")
        if not Path(file).is_file() or suffix_of(file) not in FORMATS:
            parser.error(f"{file} is no table: a file {', '.join(FORMATS)}, plain or compressed")


def own_table(arguments):
    """The columns of both splits, from a file or the hub."""
    import datasets

    if Path(arguments.train).exists():
        suffix = suffix_of(arguments.train)
        options = {"delimiter": "\t"} if suffix == ".tsv" else {}
        files = {"train": arguments.train}
        if arguments.validation:
            files["validation"] = arguments.validation
        splits = datasets.load_dataset(FORMATS[suffix], data_files=files, **options)
    else:
        splits = datasets.load_dataset(arguments.train)
    if "validation" not in splits:
        parts = splits["train"].train_test_split(0.1, seed=0)
        splits = {"train": parts["train"], "validation": parts["test"]}

    def columns(split):
        texts = [splits[split][name] for name in arguments.text]
        texts = list(texts[0]) if len(texts) == 1 else list(zip(*texts, strict=True))
        labels = list(splits[split][arguments.label])
        wrong = [label for label in labels if not isinstance(label, str | int)]
        if wrong and not arguments.regression:
            raise ValueError(
                f"Labels must be names or ints of classes, one in each row. Received: {wrong[0]!r} "
                "among them. Remove rows without a label; for numbers to predict add --regression."
            )
        return {"texts": texts, "targets" if arguments.regression else "labels": labels}

    return columns


# === From columns to batches and a model ===


def make_batches(columns, tokenizer, class_names, seed, batch_size):
    columns, sizes = dict(columns), {"tokenizer": tokenizer, "seed": seed}
    sizes.update(sequence_length=MOST_TOKENS, batch_size=batch_size)
    if "prompts" in columns:
        return kgpt.data.completions(**columns, **sizes)
    if "choices" in columns:
        sizes["batch_size"] = max(1, batch_size // len(columns["choices"][0]))
        return kgpt.data.multiple_choice(**columns, **sizes)
    if "targets" in columns:
        return kgpt.data.regression(**columns, **sizes)
    if "first_texts" in columns:
        return kgpt.data.similarity(**columns, class_names=class_names, **sizes)
    if isinstance(columns["texts"][0], tuple):
        columns["premises"], columns["hypotheses"] = zip(*columns.pop("texts"), strict=True)
        return kgpt.data.entailment(**columns, class_names=class_names, **sizes)
    return kgpt.data.classification(**columns, class_names=class_names, **sizes)


def make_model(columns, backbone, tokenizer, class_names, lm_loss_weight):
    if "prompts" in columns:
        return kgpt.CausalLM(backbone, tokenizer=tokenizer)
    options = {"tokenizer": tokenizer, "lm_loss_weight": lm_loss_weight}
    if "choices" in columns:
        return kgpt.MultipleChoice(backbone, **options)
    if "targets" in columns:
        return kgpt.TextRegressor(backbone, **options)
    both_orders = "first_texts" in columns
    return kgpt.TextClassifier(
        backbone, class_names=class_names, both_orders=both_orders, **options
    )


def names_of_classes(columns, *others):
    """The classes of labels, in order; None for other tasks."""
    if "labels" not in columns or "choices" in columns:
        return None
    labels = [label for one in (columns, *others) for label in one["labels"]]
    names = sorted(set(labels)) if isinstance(labels[0], str) else range(max(labels) + 1)
    return [str(name) for name in names]


def plain_texts(columns):
    """The texts of all examples, for a language model: pairs and choices one after the other."""
    if "choices" in columns:  # each story with its own end
        rows = zip(columns["contexts"], columns["choices"], columns["labels"], strict=True)
        return [context + choices[label] for context, choices, label in rows]
    if "prompts" in columns:
        return [p + c for p, c in zip(columns["prompts"], columns["completions"], strict=True)]
    rows = columns.get("texts") or [*columns["first_texts"], *columns["second_texts"]]
    return [text for row in rows for text in ([row] if isinstance(row, str) else row)]


def body(columns, vocabulary_size, arguments):
    """The body and its tokenizer: from a file, or small and untrained, for the task's own texts."""
    if arguments.model:
        lm = keras.saving.load_model(arguments.model)
        tokenizer = lm.tokenizer.with_special_tokens()  # start, delimiter, classify, if need be
        return lm.backbone.with_vocabulary_size(tokenizer.vocabulary_size), tokenizer
    style = {"vocabulary_size": vocabulary_size}
    if "prompts" in columns:  # digit by digit
        style = {"vocabulary_size": None, "style": "characters"}
    tokenizer = kgpt.Tokenizer.train(plain_texts(columns), **style)
    backbone = kgpt.GPTBackbone.from_preset(
        "gpt_nano",
        load_weights=False,
        vocabulary_size=tokenizer.vocabulary_size,
        max_sequence_length=MOST_TOKENS,
        dropout=0.0,
        rotary_positions=True,
        query_key_norm=True,
        zero_init_residual=True,
    )
    return backbone, tokenizer


def pretrain(backbone, tokenizer, columns, steps, length, folder):
    """Trains the body on the task's own texts, without their labels."""
    tokens = kgpt.data.write_tokens(
        plain_texts(columns), tokenizer, folder / "tokens.npy", progress=False
    )
    # A table of some dozen rows has few tokens: two windows at least, which move by one of them.
    length = min(length, tokens.num_tokens // 2)
    windows = kgpt.data.windows(
        tokens.path,
        sequence_length=length,
        batch_size=min(max(8, 1024 // length), tokens.num_tokens // length - 1),
        seed=0,
        random_offset=True,
        segment_ids=True,
        end_of_text_id=tokenizer.end_of_text_id,
        repeat=True,
    )
    lm = kgpt.CausalLM(backbone, tokenizer=tokenizer)
    lm.compile(kgpt.recipes.fast_optimizer(steps))
    print(f"Pretraining on {tokens.num_tokens:,} tokens of the task's texts (a minute at most) ...")
    lm.fit(windows, epochs=1, steps_per_epoch=steps, verbose=2)
    lm.save(folder / "lm.keras")


# === What has been learned ===


class Answer(NamedTuple):
    """What a model says of an example."""

    question: str
    answer: Any
    right: Any
    sureness: float  # the probability that the model gives; of numbers, how near it came


def answers(model, columns):
    """An answer to each example."""
    if "prompts" in columns:
        texts, log_probabilities = model.generate(
            columns["prompts"],
            max_new_tokens=4,
            sampler="greedy",
            return_prompt=False,
            return_log_probabilities=True,
        )
        sureness = [float(np.exp(np.sum(one))) for one in log_probabilities]
        return [*map(Answer, columns["prompts"], texts, columns["completions"], sureness)]
    if "choices" in columns:
        shares = model.predict_text(columns["contexts"], columns["choices"], probabilities=True)
        rows = zip(columns["choices"], shares.argmax(1), columns["labels"], strict=True)
        chosen, right = zip(*((row[i], row[j]) for row, i, j in rows), strict=True)
        return [*map(Answer, columns["contexts"], chosen, right, shares.max(1))]
    texts = columns.get("texts")
    if texts is None:
        texts = list(zip(columns["first_texts"], columns["second_texts"], strict=True))
    if "targets" in columns:
        found = model.predict_text(texts)[:, 0]
        nearness = -np.abs(found - columns["targets"])
        return [*map(Answer, texts, found, columns["targets"], nearness)]
    shares = model.predict_text(texts, probabilities=True)
    names = model.class_names
    right = [label if isinstance(label, str) else names[label] for label in columns["labels"]]
    return [*map(Answer, texts, [names[i] for i in shares.argmax(1)], right, shares.max(1))]


def say_how_good(given, train, columns):
    """Prints the score beside that of an answer that is always the same."""
    print(f"On {len(given):,} examples that it has not seen:")
    if "targets" in columns:
        found, right = (np.array([one[i] for one in given]) for i in (1, 2))
        always = np.mean(train["targets"])
        for name, guess in (("the model", found), ("always the mean", np.full_like(right, always))):
            print(f"{np.abs(guess - right).mean():8.3f} mean absolute error of {name}")
        print(f"{np.corrcoef(found, right)[0, 1]:8.3f} correlation (Pearson) with the right values")
        return
    rows = [("the model", np.mean([one.answer == one.right for one in given]))]
    if "choices" in columns:
        rows.append(("a guess", 1 / len(columns["choices"][0])))
    else:
        counts = Counter(str(one.right) for one in given)
        commonest, count = counts.most_common(1)[0]
        rows.append((f"the commonest answer, {commonest}", count / len(given)))
        rows.append((f"a guess among {len(counts)}", 1 / len(counts)))
    for name, share in rows:
        print(f"{share:8.1%} right: {name}")


def show_answers(given, say, is_number):
    """Prints the surest answers, right and wrong; of numbers, the nearest and the farthest."""
    given = sorted(given, key=lambda one: -one.sureness)
    if is_number:
        groups = {"The nearest answers": given, "The farthest": given[::-1]}
    else:
        right = [one for one in given if one.answer == one.right]
        wrong = [one for one in given if one.answer != one.right]
        groups = {"The surest right answers": right, "The surest wrong answers": wrong}
    for title, some in groups.items():
        print(f"\n{title}:" if some else f"\n{title}: there are none")
        different = {}  # one example of each answer
        for one in some:
            different.setdefault((say(one.answer), say(one.right)), one)
        for one in list(different.values())[:3]:
            question = one.question if isinstance(one.question, str) else " / ".join(one.question)
            sure = "" if is_number else f", {one.sureness:.1%} sure"
            print(f"  {question.strip()}\n    -> {say(one.answer)} (right: {say(one.right)}{sure})")


def draw(given, columns, class_names, path):
    """A confusion matrix of classes or of the places of choices, a scatter plot of numbers."""
    right, answer = ([one[i] for one in given] for i in (2, 1))
    if "choices" in columns:
        right, rows = columns["labels"], zip(columns["choices"], answer, strict=True)
        answer = [choices.index(chosen) for choices, chosen in rows]
        class_names = [f"choice {i + 1}" for i in range(len(columns["choices"][0]))]
    if class_names:
        figure = kgpt.plot.confusion_matrix(right, answer, class_names)
    else:
        figure = scatter(*numbers_of(right, answer))
    figure.savefig(path)
    print(f"\nPicture of all answers: {path}")


def numbers_of(right, answer):
    """The pairs of which the answer is a number; a language model may write anything else."""
    pairs = []
    for one, other in zip(right, answer, strict=True):
        with contextlib.suppress(ValueError):
            pairs.append((float(one), float(other)))
    return np.array(pairs).reshape(-1, 2).T


def scatter(right, answer):
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(figsize=(4.5, 4.5), layout="constrained")
    axes.scatter(right, answer, s=8, alpha=0.5)
    axes.axline((0, 0), slope=1, color="grey", linewidth=1)
    axes.set(xlabel="right", ylabel="predicted")
    return figure


# === All of it ===


def finetune(name, task, arguments):
    print(f"\n=== {name} ===")
    keras.utils.set_random_seed(0)
    train, valid = task.load("train"), task.load("validation")
    most, epochs = arguments.examples or task.examples, arguments.epochs or task.epochs
    step = max(1, len(next(iter(train.values()))) // most)
    train = {column: rows[::step][:most] for column, rows in train.items()}
    most_valid = 2000 // len(valid["choices"][0]) if "choices" in valid else 2000
    valid = {column: rows[:most_valid] for column, rows in valid.items()}
    class_names = names_of_classes(train, valid)

    # What can be wrong with the data or is not installed shows here, before anything is trained.
    file = arguments.output / name / "model.keras"
    file.parent.mkdir(parents=True, exist_ok=True)
    backbone, tokenizer = body(train, task.vocabulary_size, arguments)
    batches = make_batches(train, tokenizer, class_names, 0, arguments.batch_size)
    valid_batches = make_batches(valid, tokenizer, class_names, None, arguments.batch_size)
    model = make_model(train, backbone, tokenizer, class_names, arguments.lm_loss_weight)
    rate = task.learning_rate if arguments.learning_rate is None else arguments.learning_rate
    model.compile(task.optimizer(epochs * len(batches), rate))

    if not arguments.model:
        pretrain(backbone, tokenizer, train, *task.pretraining, file.parent)
    print(f"Fine-tuning on {batches.num_examples:,} examples ...")
    model.fit(batches, epochs=epochs, validation_data=valid_batches, verbose=2)
    model.save(file)
    print(f"Saved: {file}")

    given = answers(keras.saving.load_model(file), valid)
    is_number = "targets" in valid
    say_how_good(given, train, valid)
    show_answers(given, task.say, is_number)
    draw(given, valid, class_names, file.with_name("answers.png"))


def main():
    arguments = parse_arguments()
    if arguments.train:
        finetune("own", Task(own_table(arguments)), arguments)
        return
    for name in BUILT_IN if arguments.task == "all" else [arguments.task]:
        finetune(name, BUILT_IN[name], arguments)


if __name__ == "__main__":
    sys.stdout.reconfigure(errors="replace")  # for a console without the characters of a sample
    main()
