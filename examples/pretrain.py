"""Pretrain a small GPT: from text files to a saved model that writes.

    python examples/pretrain.py                         # short stories that kgpt makes up
    python examples/pretrain.py my_book.txt my_notes/   # your files and folders
    python examples/pretrain.py reviews.csv --column review   # a column of your table

Files may be compressed (.gz, .xz, .bz2); tables (.jsonl, .csv, .parquet) need pyarrow. The script
needs no network. It trains a tokenizer, writes the tokens to disk, trains the model, shows after
each epoch what it writes, saves it all into one file, and says how well it predicts text that was
held out. Started again after an interruption, it goes on where it stopped; delete the output folder
for a fresh start.

The stories (`kgpt.data.stories`) are for the first try: they need no download, and a small model
learns to tell them within minutes. Of a text as rich as a book it would learn spelling and some
grammar in that time; give it hours, and the sizes that `--preset` names, for more.
"""

import argparse
import itertools
import math
import os
import sys
from pathlib import Path

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")  # no remarks of TensorFlow's on the machine

import keras
import numpy as np

import kgpt


def parse_arguments():
    parser = argparse.ArgumentParser(description=__doc__.split("\n", 1)[0])
    parser.add_argument("paths", nargs="*", type=Path, help="text files and folders of them")
    parser.add_argument("--column", help="the paths are tables: read this column of them")
    parser.add_argument("--output", type=Path, default=Path("runs/pretrain"))
    parser.add_argument("--preset", default="gpt_nano", choices=kgpt.GPTBackbone.presets())
    parser.add_argument("--vocabulary-size", type=int, default=2048)
    parser.add_argument("--sequence-length", type=int, default=256)
    parser.add_argument("--batch-size", type=int, default=4)
    parser.add_argument("--steps", type=int, default=1500, help="batches to train on")
    parser.add_argument("--epochs", type=int, default=5, help="evaluations within these steps")
    parser.add_argument("--learning-rate", type=float, default=1e-2)
    parser.add_argument("--dtype", default="float32", help="float32 or mixed_bfloat16")
    parser.add_argument("--prompt", help="text to continue; by default a beginning that fits")
    arguments = parser.parse_args()
    if arguments.column and not arguments.paths:
        parser.error("--column needs the paths of tables")
    if not 1 <= arguments.epochs <= arguments.steps:
        parser.error("--epochs must be at least 1 and at most --steps")
    return arguments


def corpus(arguments):
    """What to train on: files and folders, the texts in the column of tables, or stories."""
    if not arguments.paths:
        return kgpt.data.stories()
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
    train = kgpt.data.windows(tokens.path, seed=0, repeat=True, random_offset=True, **sizes)
    valid = kgpt.data.windows(tokens.validation_path, **sizes)
    validation_steps = min(len(valid), 50)
    held_out = np.load(tokens.validation_path)
    held_out = held_out[: validation_steps * arguments.batch_size * arguments.sequence_length]

    # The model, with the options and the optimizer that need the fewest tokens.
    backbone = kgpt.GPTBackbone.from_preset(
        arguments.preset,
        load_weights=False,
        vocabulary_size=tokenizer.vocabulary_size,
        max_sequence_length=arguments.sequence_length,
        dropout=0.0,
        dtype=arguments.dtype,
        query_key_norm=True,
        rotary_positions=True,
        zero_init_residual=True,
    )
    lm = kgpt.CausalLM(backbone, tokenizer=tokenizer)
    lm.compile(kgpt.recipes.fast_optimizer(arguments.steps, arguments.learning_rate))
    print(f"{lm.count_params():,} parameters")

    # Pretrain. After each epoch the model shows what it writes.
    prompt = arguments.prompt or tokenizer.decode(held_out[:8])
    options = {"sampler": "top_p", "seed": 0, "sliding_window": True}
    if not (arguments.prompt or arguments.paths):
        prompt = "Once upon a time"
    print(f"Training for {arguments.steps} steps (2 to 3 minutes for 1500 steps on 2 cores) ...")
    lm.fit(
        train,
        epochs=arguments.epochs,
        steps_per_epoch=arguments.steps // arguments.epochs,
        validation_data=valid,
        validation_steps=validation_steps,
        callbacks=[
            kgpt.callbacks.ResumableCheckpoint(output / "checkpoints"),
            kgpt.callbacks.GenerateSamples(prompt, max_new_tokens=40, **options),
        ],
    )
    file = output / "lm.keras"
    lm.save(file)
    print(f"Saved: {file}")

    # What it has learned.
    figures = lm.evaluate(valid, steps=validation_steps, return_dict=True, verbose=0)
    num_bytes = len(tokenizer.decode(held_out).encode())
    bits = figures["loss"] * len(held_out) / math.log(2) / num_bytes
    print(
        f"On {len(held_out):,} of the {tokens.num_validation_tokens:,} tokens held out: perplexity "
        f"{figures['perplexity']:.2f} per token, {bits:.3f} bits per byte "
        f"(a model that knows nothing: {tokenizer.vocabulary_size} and "
        f"{math.log2(tokenizer.vocabulary_size) * len(held_out) / num_bytes:.1f})"
    )
    print(f"\n--- what it writes after {prompt!r} ---")
    print(lm.generate(prompt, max_new_tokens=200, **options))
    print("\n--- what to do next ---")
    code = f"print(keras.saving.load_model('{file.as_posix()}').generate('{prompt}', 200))"
    print(f'write more:     python -c "import keras, kgpt; {code}"')
    print(f"fine-tune it:   python examples/finetune.py --model {file}")
    print("your own text:  python examples/pretrain.py my_book.txt my_notes/ --output runs/mine")


if __name__ == "__main__":
    sys.stdout.reconfigure(errors="replace")  # for a console without the characters of a sample
    main()
