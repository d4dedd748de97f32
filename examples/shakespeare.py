"""Tiny Shakespeare, letter by letter, with nanoGPT's settings for a CPU.

    python examples/shakespeare.py                 # downloads the text (1.1 MB) once
    python examples/shakespeare.py my/input.txt    # or takes it from here

4 layers, 4 heads, width 128, context 64, batches of 12, 2000 steps, AdamW from 1e-3 down to 1e-4,
no dropout. nanoGPT's README reports a validation loss of 1.88 for this run.
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
STEPS, EVALUATIONS = 2000, 20
CONTEXT, BATCH = 64, 12


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n", 1)[0])
    parser.add_argument("text", nargs="?", type=Path, help="the text; downloaded if left out")
    parser.add_argument("--column", help="the text is a table: read this column of it")
    parser.add_argument("--output", type=Path, default=Path("runs/shakespeare"))
    arguments = parser.parse_args()
    if arguments.column and not arguments.text:
        parser.error("--column needs the path of a table")
    output = arguments.output
    keras.utils.set_random_seed(1337)

    file = arguments.text or keras.utils.get_file("tinyshakespeare.txt", URL, file_hash=SHA256)
    column = arguments.column
    texts = kgpt.data.read_texts(file, column) if column else Path(file)
    text = "".join(kgpt.text.documents(texts))
    split = int(0.9 * len(text))

    # A token for each character; the last tenth of the text is held out.
    tokenizer = kgpt.Tokenizer.train(
        [text], vocabulary_size=None, style="characters", special_tokens=()
    )
    parts = {"train": text[:split], "validation": text[split:]}
    for name, part in parts.items():
        kgpt.data.write_tokens(
            [part], tokenizer, output / f"{name}.npy", end_of_text=False, progress=False
        )
    train = kgpt.data.windows(
        output / "train.npy", CONTEXT, BATCH, seed=1337, random_offset=True, repeat=True
    )
    valid = kgpt.data.windows(output / "validation.npy", CONTEXT, batch_size=64)

    backbone = kgpt.GPTBackbone(
        vocabulary_size=tokenizer.vocabulary_size,
        num_layers=4,
        num_heads=4,
        hidden_dim=128,
        max_sequence_length=CONTEXT,
        dropout=0.0,
    )
    lm = kgpt.CausalLM(backbone, tokenizer=tokenizer)
    lm.compile(
        kgpt.recipes.pretraining_optimizer(
            STEPS,
            learning_rate=1e-3,
            final_learning_rate=1e-4,
            warmup_steps=100,
            weight_decay=0.1,
            beta_2=0.99,
        )
    )
    print(f"Training for {STEPS} steps, some 5 minutes on 2 cores ...")
    history = lm.fit(
        train,
        epochs=EVALUATIONS,
        steps_per_epoch=STEPS // EVALUATIONS,
        validation_data=valid,
        verbose=2,
    )

    lm.save(output / "lm.keras")
    picture = output / "loss.png"
    kgpt.plot.training_curves(
        history,
        picture,
        title="Tiny Shakespeare, characters: loss",
        steps_per_epoch=STEPS // EVALUATIONS,
    )
    print(lm.generate("\n", max_new_tokens=300, sampler="top_k", seed=0, sliding_window=True))
    loss = history.history["val_loss"][-1]
    print(f"\nvalidation loss, on the last tenth of the text: {loss:.4f} nats per character")
    print(f"Saved: {picture} and {output / 'lm.keras'}")


if __name__ == "__main__":
    sys.stdout.reconfigure(errors="replace")  # for a console without the characters of a sample
    main()
