"""Small models that depend on each token and position, and their continuations without a cache."""

import keras
import numpy as np

import kgpt

VOCABULARY, WINDOW = 23, 48
RAGGED = [[5, 1, 9, 2, 7, 7, 3], [4], [8, 8, 20]]


def make_lm(norm_first=True, tokenizer=None, vocabulary_size=VOCABULARY, **overrides):
    keras.utils.set_random_seed(3)
    sizes = {"num_layers": 1, "num_heads": 3, "hidden_dim": 12, "max_sequence_length": WINDOW}
    backbone = kgpt.GPTBackbone(
        vocabulary_size, norm_first=norm_first, **{**sizes, "dropout": 0.5, **overrides}
    )
    scatter(backbone)
    return kgpt.CausalLM(backbone, tokenizer=tokenizer)


def scatter(model, seed=0):
    """Weights so far from zero that what is written depends on each token and position."""
    scales = {"position": 1.0, "token": 0.5, "attention": 0.8, "feed_forward": 0.3}
    rng = np.random.default_rng(seed)
    for variable in model.trainable_variables:
        scale = next((scale for part, scale in scales.items() if part in variable.path), 0.1)
        noise = rng.normal(scale=scale if len(variable.shape) > 1 else 0.1, size=variable.shape)
        variable.assign(keras.ops.convert_to_numpy(variable) + noise)


def next_logits(lm, row):
    """Of each token after a row, by a full pass over the window: compiled once for all rows."""
    padded = np.zeros((1, lm.backbone.max_sequence_length), "int32")
    padded[0, : len(row)] = row
    logits = keras.ops.cast(lm(padded), "float32")
    return keras.ops.convert_to_numpy(logits)[0, len(row) - 1]


def next_log_probabilities(lm, row):
    """Of each token after a row, by the full forward pass."""
    logits = next_logits(lm, row)
    return logits - np.log(np.exp(logits).sum())


def greedy_by_full_passes(lm, row, steps):
    """Argmax of the full forward pass, token by token, without any cache."""
    row = list(row)
    for _ in range(steps):
        row.append(int(next_logits(lm, row).argmax()))
    return row
