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

MOST_BATCHES = 50  # of text held out that are evaluated


def parse_arguments():
    parser = argparse.ArgumentParser(description=__doc__.split("\n", 1)[0])
    parser.add_argument("paths", nargs="*", type=Path, help="text files and folders of them")
    parser.add_argument("--column", help="the paths are tables: read this column of them")
    parser.add_argument("--output", type=Path, default=Path("runs/pretrain"))
    parser.add_argument("--preset", default="gpt_nano", choices=kgpt.GPTBackbone.presets())
    parser.add_argument("--vocabulary-size", type=int, default=1536)
    parser.add_argument("--sequence-length", type=int, default=256)
    parser.add_argument("--batch-size", type=int, default=8)
    parser.add_argument("--steps", type=int, default=1200, help="batches to train on")
    parser.add_argument("--epochs", type=int, default=4, help="evaluations within these steps")
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


def make_tokens(arguments):
    """The tokenizer, and the files of tokens to train on and held out."""
    folder = arguments.output
    # Each time anew, of this text: it comes out the same in a run that goes on.
    print("Training the tokenizer (some seconds for 10 MB of text) ...")
    tokenizer = kgpt.Tokenizer.train(corpus(arguments), arguments.vocabulary_size)
    folder.mkdir(parents=True, exist_ok=True)
    tokenizer.save(folder / "tokenizer.json")
    tokens = kgpt.data.write_tokens(
        corpus(arguments), tokenizer, folder / "tokens.npy", validation_fraction=0.05
    )
    print(
        f"{tokens.num_documents:,} documents, {tokens.num_tokens:,} tokens to train on; "
        f"{tokens.num_validation_tokens:,} tokens held out"
    )
    return tokenizer, tokens


def make_batches(arguments, tokenizer, tokens):
    """Batches to train on and to validate with: windows in which documents don't see each other."""
    options = {
        "sequence_length": arguments.sequence_length,
        "batch_size": arguments.batch_size,
        "segment_ids": True,
        "end_of_text_id": tokenizer.end_of_text_id,
    }
    train = kgpt.data.windows(tokens.path, seed=0, repeat=True, random_offset=True, **options)
    return train, kgpt.data.windows(tokens.validation_path, **options)


def make_model(arguments, tokenizer):
    """The model, with the options and the optimizer that need the fewest tokens."""
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
    return lm


def evaluate(lm, valid, arguments, tokenizer, tokens):
    """Perplexity, and bits per byte, of as much of the text held out as is read in seconds."""
    steps = min(len(valid), MOST_BATCHES)
    figures = lm.evaluate(valid, steps=steps, return_dict=True, verbose=0)
    ids = np.load(tokens.validation_path)
    ids = ids[: steps * arguments.batch_size * arguments.sequence_length]
    counted = len(ids) - np.sum(ids == tokenizer.end_of_text_id)  # no text foretells the next one
    num_bytes = len(tokenizer.decode(ids).encode())
    return figures["perplexity"], figures["loss"] / math.log(2) * counted / num_bytes


def main():
    arguments = parse_arguments()
    keras.utils.set_random_seed(0)
    tokenizer, tokens = make_tokens(arguments)
    train, valid = make_batches(arguments, tokenizer, tokens)
    lm = make_model(arguments, tokenizer)
    print(f"{lm.count_params():,} parameters")

    # After each epoch the model shows what it writes.
    prompt = arguments.prompt or ("Once upon a time" if not arguments.paths else None)
    prompt = prompt or tokenizer.decode(np.load(tokens.validation_path)[:8])
    options = {"sampler": "top_p", "seed": 0, "sliding_window": True}
    print(f"Training for {arguments.steps} steps (1200 take 1 to 3 minutes on 2 cores) ...")
    lm.fit(
        train,
        epochs=arguments.epochs,
        steps_per_epoch=arguments.steps // arguments.epochs,
        validation_data=valid,
        validation_steps=min(len(valid), MOST_BATCHES),
        callbacks=[
            kgpt.callbacks.ResumableCheckpoint(arguments.output / "checkpoints"),
            kgpt.callbacks.GenerateSamples(prompt, max_new_tokens=40, **options),
        ],
    )
    file = arguments.output / "lm.keras"
    lm.save(file)
    print(f"Saved: {file}")

    perplexity, bits = evaluate(lm, valid, arguments, tokenizer, tokens)
    print(f"On text that was held out: perplexity {perplexity:.2f}, {bits:.3f} bits per byte")
    print(f"\n--- what it writes after {prompt!r} ---")
    print(lm.generate(prompt, max_new_tokens=200, **options))

    print("\n--- what to do next ---")
    code = f"print(keras.saving.load_model('{file.as_posix()}').generate('Once', 200))"
    print(f'write more:     python -c "import keras, kgpt; {code}"')
    print(f"fine-tune it:   python examples/finetune.py --task endings --model {file}")
    print("your own text:  python examples/pretrain.py my_book.txt my_notes/ --output runs/mine")


if __name__ == "__main__":
    sys.stdout.reconfigure(errors="replace")  # for a console without the characters of a sample
    main()
