"""Tiny Shakespeare in a third of the tokens: Muon and three block options.

    python examples/fast.py                 # downloads the text (1.1 MB) once
    python examples/fast.py my/input.txt    # or takes it from here

The model of `examples/shakespeare.py`, 4 layers, 4 heads, width 128, context 64, batches of 12, but
660 steps in place of 2000. `benchmarks/time_to_quality.py` says what each part is worth.
"""

import argparse
import os
import sys
from pathlib import Path

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")  # no remarks of TensorFlow's on the machine

import keras

import kgpt

URL = "https://raw.githubusercontent.com/karpathy/char-rnn/master/data/tinyshakespeare/input.txt"
SHA256 = "86c4e6aa9db7c042ec79f339dcb96d42b0075e16b8fc2e86bf0ca57e2dc565ed"
STEPS, EVALUATIONS = 660, 10
CONTEXT, BATCH = 64, 12


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n", 1)[0])
    parser.add_argument("text", nargs="?", type=Path, help="the text; downloaded if left out")
    parser.add_argument("--column", help="the text is a table: read this column of it")
    parser.add_argument("--output", type=Path, default=Path("runs/fast"))
    parser.add_argument("--seed", type=int, default=1337)
    arguments = parser.parse_args()
    if arguments.column and not arguments.text:
        parser.error("--column needs the path of a table")
    output, seed = arguments.output, arguments.seed
    keras.utils.set_random_seed(seed)

    file = arguments.text or keras.utils.get_file("tinyshakespeare.txt", URL, file_hash=SHA256)
    column = arguments.column
    texts = kgpt.data.read_texts(file, column) if column else Path(file)
    text = "".join(kgpt.text.documents(texts))
    split = int(0.9 * len(text))
    tokenizer = kgpt.Tokenizer.train(
        [text], vocabulary_size=None, style="characters", special_tokens=()
    )
    for name, part in {"train": text[:split], "validation": text[split:]}.items():
        kgpt.data.write_tokens(
            [part], tokenizer, output / f"{name}.npy", end_of_text=False, progress=False
        )
    train = kgpt.data.windows(
        output / "train.npy", CONTEXT, BATCH, seed=seed, random_offset=True, repeat=True
    )
    valid = kgpt.data.windows(output / "validation.npy", CONTEXT, batch_size=64)

    backbone = kgpt.GPTBackbone(
        vocabulary_size=tokenizer.vocabulary_size,
        num_layers=4,
        num_heads=4,
        hidden_dim=128,
        max_sequence_length=CONTEXT,
        dropout=0.0,
        query_key_norm=True,
        rotary_positions=True,
        zero_init_residual=True,
    )
    lm = kgpt.CausalLM(backbone, tokenizer=tokenizer)
    lm.compile(kgpt.recipes.fast_optimizer(STEPS))
    print(f"Training for {STEPS} steps, some 2 minutes on 2 cores ...")
    history = lm.fit(
        train,
        epochs=EVALUATIONS,
        steps_per_epoch=STEPS // EVALUATIONS,
        validation_data=valid,
        verbose=2,
    )

    lm.save(output / "lm.keras")
    print(lm.generate("\n", max_new_tokens=300, sampler="top_k", seed=0, sliding_window=True))
    print("On the last tenth of the text, after training on")
    for part, loss in enumerate(history.history["val_loss"], start=1):
        tokens = part * STEPS // EVALUATIONS * BATCH * CONTEXT
        print(f"{tokens:>8,} tokens: validation loss {loss:.4f} nats per character")
    print(f"Saved: {output / 'lm.keras'}")


if __name__ == "__main__":
    sys.stdout.reconfigure(errors="replace")  # for a console without the characters of a sample
    main()
