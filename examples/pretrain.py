"""Pretrain a small GPT: from text files to a saved model that writes.

    python examples/pretrain.py                         # Python's own standard library as text
    python examples/pretrain.py my_book.txt my_notes/   # your files and folders
    python examples/pretrain.py reviews.csv --column review   # a column of your table

Files may be compressed (.gz, .xz, .bz2); tables (.jsonl, .csv, .parquet) need pyarrow. The script
needs no network. It trains a tokenizer, writes the tokens to disk, trains the model,
saves it all into one file, reports loss and perplexity before and after, and prints samples.
Started again after an interruption, it goes on where it stopped; delete the output folder for a
fresh start.
"""

import argparse
import itertools
import os
import sys
from pathlib import Path

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")  # no remarks of TensorFlow's on the machine

import keras

import kgpt


def parse_arguments():
    parser = argparse.ArgumentParser(description=__doc__.split("\n", 1)[0])
    parser.add_argument("paths", nargs="*", type=Path, help="text files and folders of them")
    parser.add_argument("--column", help="the paths are tables: read this column of them")
    parser.add_argument("--output", type=Path, default=Path("runs/pretrain"))
    parser.add_argument("--preset", default="gpt_micro", choices=kgpt.GPTBackbone.presets())
    parser.add_argument("--vocabulary-size", type=int, default=4096)
    parser.add_argument("--sequence-length", type=int, default=128)
    parser.add_argument("--batch-size", type=int, default=16)
    parser.add_argument("--steps", type=int, default=300, help="batches to train on")
    parser.add_argument("--epochs", type=int, default=3, help="evaluations within these steps")
    parser.add_argument("--learning-rate", type=float, default=2e-3)
    parser.add_argument("--dtype", default="float32", help="float32 or mixed_bfloat16")
    parser.add_argument("--prompt", default="def main(", help="text to continue at the end")
    arguments = parser.parse_args()
    if arguments.column and not arguments.paths:
        parser.error("--column needs the paths of tables")
    if not 1 <= arguments.epochs <= arguments.steps:
        parser.error("--epochs must be at least 1 and at most --steps")
    return arguments


def corpus(arguments):
    """What to train on: files and folders, or the texts in the column of tables."""
    if not arguments.paths:
        return kgpt.data.standard_library_files()
    if arguments.column is None:
        return arguments.paths
    tables = [kgpt.data.read_texts(path, arguments.column) for path in arguments.paths]
    return itertools.chain.from_iterable(tables)


def main():
    arguments = parse_arguments()
    output = arguments.output
    keras.utils.set_random_seed(0)

    # Text -> tokens.
    tokenizer_file = output / "tokenizer.json"
    if tokenizer_file.exists():
        tokenizer = kgpt.Tokenizer.from_file(tokenizer_file)
    else:
        print("Training the tokenizer (some seconds for 10 MB of text) ...")
        tokenizer = kgpt.Tokenizer.train(corpus(arguments), arguments.vocabulary_size)
        output.mkdir(parents=True, exist_ok=True)
        tokenizer.save(tokenizer_file)
    tokens = kgpt.data.write_tokens(
        corpus(arguments), tokenizer, output / "tokens.npy", validation_fraction=0.05
    )
    print(
        f"{tokens.num_documents:,} documents, {tokens.num_tokens:,} tokens to train on; "
        f"{tokens.num_validation_tokens:,} tokens held out"
    )

    # Tokens -> batches.
    sizes = {"sequence_length": arguments.sequence_length, "batch_size": arguments.batch_size}
    train = kgpt.data.windows(tokens.path, seed=0, repeat=True, **sizes)
    valid = kgpt.data.windows(tokens.validation_path, **sizes)
    validation_steps = min(len(valid), 100)
    covered = min(
        validation_steps * arguments.batch_size * arguments.sequence_length,
        tokens.num_validation_tokens,
    )

    # The model.
    backbone = kgpt.GPTBackbone.from_preset(
        arguments.preset,
        load_weights=False,
        vocabulary_size=tokenizer.vocabulary_size,
        max_sequence_length=arguments.sequence_length,
        dropout=0.0,
        dtype=arguments.dtype,
    )
    lm = kgpt.CausalLM(backbone, tokenizer=tokenizer)
    lm.compile(
        kgpt.recipes.pretraining_optimizer(
            arguments.steps, learning_rate=arguments.learning_rate, weight_decay=0.1
        )
    )
    print(f"{lm.count_params():,} parameters")

    # Pretrain.
    print("Evaluating the untrained model (half a minute at most) ...")
    before = lm.evaluate(valid, steps=validation_steps, return_dict=True, verbose=0)
    print(f"Training for {arguments.steps} steps (2 to 3 minutes for 300 steps on 2 cores) ...")
    lm.fit(
        train,
        epochs=arguments.epochs,
        steps_per_epoch=arguments.steps // arguments.epochs,
        validation_data=valid,
        validation_steps=validation_steps,
        callbacks=[kgpt.callbacks.ResumableCheckpoint(output / "checkpoints")],
    )
    lm.save(output / "lm.keras")
    print(f"Saved: {output / 'lm.keras'}")

    # What it has learned.
    after = lm.evaluate(valid, steps=validation_steps, return_dict=True, verbose=0)
    print(f"On {covered:,} of the {tokens.num_validation_tokens:,} tokens held out:")
    for when, figures in (("before", before), ("after", after)):
        print(
            f"{when:>6} training: loss {figures['loss']:.3f} nats per token, "
            f"perplexity {figures['perplexity']:.1f}"
        )

    for sampler in ("greedy", "top_k"):
        print(f"\n--- what it writes after {arguments.prompt!r}, {sampler} ---")
        options = {"sampler": sampler, "seed": 0, "sliding_window": True}
        print(lm.generate(arguments.prompt, max_new_tokens=80, **options))


if __name__ == "__main__":
    sys.stdout.reconfigure(errors="replace")  # for a console without the characters of a sample
    main()
