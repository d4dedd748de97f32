"""A head of your own: a reward model that learns which of two texts people preferred.

    python examples/custom_head.py

The head is the class below. Its loss is that of Bradley and Terry (1952), as used to train reward
models (Christiano et al. 2017): the preferred text should score higher than the other one. Here the
preferred one is the name of a letter, the other the name of any other character of Unicode, so that
the example needs no download.
"""

import argparse
import os
import random
import sys
from pathlib import Path

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")  # no remarks of TensorFlow's on the machine

import keras
from keras import ops

import kgpt


@keras.saving.register_keras_serializable(package="my_project")
class RewardModel(kgpt.Head):
    """One score for each text; learns from examples `(preferred text, other text)`."""

    def __init__(self, backbone, **kwargs):
        super().__init__(backbone, head=keras.layers.Dense(1, name="reward"), **kwargs)

    def task_loss(self, y, outputs):
        preferred, other = outputs[:, 0, 0], outputs[:, 1, 0]
        return ops.softplus(other - preferred)  # -log sigmoid(preferred - other)


def comparisons(split, count, seed=0):
    """Texts and the same number of other texts."""
    columns = kgpt.data.character_categories(split)
    pairs = list(zip(columns["texts"], columns["labels"], strict=True))
    generator = random.Random(seed)
    letters = [text for text, label in pairs if label[0] == "L"]
    others = [text for text, label in pairs if label[0] != "L"]
    return generator.choices(letters, k=count), generator.choices(others, k=count)


def batches(preferred, others, tokenizer):
    """Two sequences for each example, `(batch, 2, length)`; the first is the preferred one."""
    choices = [list(pair) for pair in zip(preferred, others, strict=True)]
    return kgpt.data.multiple_choice(
        ["Character:"] * len(choices), choices, None, tokenizer, sequence_length=48, batch_size=32
    )


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n", 1)[0])
    parser.add_argument("--output", type=Path, default=Path("runs/custom_head"))
    file = parser.parse_args().output / "reward.keras"
    file.parent.mkdir(parents=True, exist_ok=True)
    keras.utils.set_random_seed(0)
    train, valid = comparisons("train", 3000), comparisons("validation", 500)
    tokenizer = kgpt.Tokenizer.train([*train[0], *train[1]], vocabulary_size=1000)
    backbone = kgpt.GPTBackbone.from_preset(
        "gpt_nano",
        load_weights=False,
        vocabulary_size=tokenizer.vocabulary_size,
        max_sequence_length=64,
    )
    model = RewardModel(backbone, tokenizer=tokenizer, lm_loss_weight=0.1)
    data = batches(*train, tokenizer)
    model.compile(kgpt.recipes.finetuning_optimizer(2 * len(data), learning_rate=1e-3))
    model.fit(data, epochs=2, verbose=2)
    model.save(file)

    scores = model.predict(batches(*valid, tokenizer), verbose=0)[..., 0]  # (batch, 2)
    share = (scores[:, 0] > scores[:, 1]).mean()
    print(f"Letters score higher in {share:.1%} of {len(scores)} new pairs.")
    print(f"Saved: {file}")


if __name__ == "__main__":
    sys.stdout.reconfigure(errors="replace")  # for a console without the characters of a sample
    main()
