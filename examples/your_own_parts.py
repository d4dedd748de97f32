r"""
Parts of your own
=================

kgpt is Keras, and each of its parts can be yours: in the end you have written a head that says how
unsure it is, a block of another shape, a loss, and a training loop, each in a dozen lines, and seen
each at work.

It takes three minutes on 2 cores and needs no download.
"""

import os

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")  # no remarks of TensorFlow's on the machine

import random
from pathlib import Path
from pydoc_data.topics import topics

import keras
import matplotlib.pyplot as plt
import numpy as np
from keras import ops

import kgpt

EXAMPLES = 2000  # for the head
STEPS = 120  # for each language model
SIZE = {"num_layers": 2, "num_heads": 4, "hidden_dim": 64}
CONTEXT = 64
RUN = Path("runs/your_own_parts")

RUN.mkdir(parents=True, exist_ok=True)
keras.utils.set_random_seed(0)

# %%
# A head that says how unsure it is
# ---------------------------------
#
# Some texts determine a number and some only roughly: "exactly forty miles", "forty miles or so". A
# regressor says 40 to both. Ours gives two numbers, a mean :math:`\mu` and a spread :math:`\sigma`,
# and its loss is how unlikely the target is under the normal distribution that they make:
#
# .. math:: -\log N(y; \mu, \sigma) = \log \sigma + \frac{(y - \mu)^2}{2 \sigma^2} + \text{const}
#
# Nobody tells it the spread: a :math:`\sigma` too small is punished by the second term, one too
# large by the first.
#
# First the data, in which each phrase has a spread that we know, and can compare with in the end.

SPREAD = {"exactly {} miles": 0.5, "{} miles": 2.0, "about {} miles": 6.0, "some {} miles": 12.0}
TENS = ["ten", "twenty", "thirty", "forty", "fifty", "sixty", "seventy", "eighty", "ninety"]
UNITS = ["", "-one", "-two", "-three", "-four", "-five", "-six", "-seven", "-eight", "-nine"]
NUMBERS = {
    ten + unit: 10 * i + j for i, ten in enumerate(TENS[1:], 2) for j, unit in enumerate(UNITS)
}


def measurements(count, seed):
    """Texts, and what was really measured."""
    generator = random.Random(seed)
    phrases = generator.choices(list(SPREAD), k=count)
    words = generator.choices(list(NUMBERS), k=count)
    texts = [phrase.format(word) for phrase, word in zip(phrases, words, strict=True)]
    targets = [generator.gauss(NUMBERS[w], SPREAD[p]) for p, w in zip(phrases, words, strict=True)]
    return texts, (np.array(targets) - 60) / 25  # near 0, of spread near 1: easy to learn


texts, targets = measurements(EXAMPLES, seed=0)
for text, target in list(zip(texts, targets, strict=True))[:4]:
    print(f"{target * 25 + 60:6.1f}  {text}")

# %%
# The head subclasses ``kgpt.Head``: it gives a map from the state of the last token, ``(batch,
# sequences, hidden_dim)``, to outputs, and ``task_loss``, a number for each example. Batches, the
# second loss, metrics, files, and training by ``fit`` are there.


@keras.saving.register_keras_serializable(package="my_project")
class UnsureRegressor(kgpt.Head):
    """A number with its spread: outputs `(batch, 1, 2)`, the mean and the logarithm of sigma."""

    def __init__(self, backbone, **kwargs):
        super().__init__(backbone, head=keras.layers.Dense(2, name="mean_and_spread"), **kwargs)

    def task_loss(self, y, outputs):
        mean, log_sigma = outputs[:, 0, 0], outputs[:, 0, 1]  # each (batch,)
        y = ops.reshape(ops.cast(y, mean.dtype), (-1,))
        return log_sigma + ops.square(y - mean) / (2 * ops.exp(2 * log_sigma))


tokenizer = kgpt.Tokenizer.train(texts, vocabulary_size=325)
batches = {"tokenizer": tokenizer, "sequence_length": 16, "batch_size": 32}
train = kgpt.data.regression(texts, targets, seed=0, **batches)
backbone = kgpt.GPTBackbone(tokenizer.vocabulary_size, max_sequence_length=16, dropout=0.0, **SIZE)
model = UnsureRegressor(backbone, tokenizer=tokenizer, lm_loss_weight=0.1)
model.compile(kgpt.recipes.finetuning_optimizer(8 * len(train), learning_rate=2e-3))
history = model.fit(train, epochs=8, verbose=0)
print("task loss:", *(f"{loss:.2f}" for loss in history.history["task_loss"]))

# %%
# What it says, beside what is true. The texts are new ones.

asked = [phrase.format(word) for phrase in SPREAD for word in ("twenty-five", "eighty-one")]
outputs = model.predict(
    kgpt.data.regression(asked, None, **{**batches, "batch_size": len(asked)}, seed=None), verbose=0
)[:, 0]  # (examples, 2)
for text, (mean, log_sigma) in zip(asked, outputs, strict=True):
    print(f"{mean * 25 + 60:5.1f} +- {np.exp(log_sigma) * 25:4.1f}   {text}")
print("true spreads:", *SPREAD.values())

# %%
# The class is registered with Keras, so the model is saved and loaded like any other.

model.save(RUN / "unsure.keras")
loaded = keras.models.load_model(RUN / "unsure.keras")
print(type(loaded).__name__)

# %%
# A block of another shape
# ------------------------
#
# A GPT's block has two steps, attention and then a network for each position. In a *parallel* block
# (GPT-J; PaLM, section 2) both read the same normalised states, and one layer norm is saved:
#
# .. math::
#    n &= \text{LayerNorm}(h) \\
#    h &\leftarrow h + \text{Attention}(n) + \text{FeedForward}(n)
#
# kgpt's layers are plain Keras layers, to be put together as you like.


@keras.saving.register_keras_serializable(package="my_project")
class ParallelBlock(keras.layers.Layer):
    """Attention and feed-forward network side by side."""

    def __init__(self, num_heads, **kwargs):
        super().__init__(**kwargs)
        self.num_heads = num_heads
        self.norm = keras.layers.LayerNormalization(epsilon=1e-5)
        self.attention = kgpt.layers.CausalSelfAttention(num_heads)

    def build(self, hidden_states_shape):
        self.feed_forward = kgpt.layers.FeedForward(4 * hidden_states_shape[-1])
        for layer in (self.norm, self.attention, self.feed_forward):
            layer.build(hidden_states_shape)

    def call(self, hidden_states):
        n = self.norm(hidden_states)  # (batch, length, hidden_dim)
        return hidden_states + self.attention(n) + self.feed_forward(n)

    def get_config(self):
        return {**super().get_config(), "num_heads": self.num_heads}


def language_model(make_block):
    keras.utils.set_random_seed(0)
    embedding = kgpt.layers.TokenAndPositionEmbedding(VOCABULARY, CONTEXT, SIZE["hidden_dim"])
    token_ids = keras.Input((CONTEXT,), dtype="int32", name="token_ids")
    h = embedding(token_ids)
    for _ in range(SIZE["num_layers"]):
        h = make_block()(h)
    h = keras.layers.LayerNormalization(epsilon=1e-5)(h)
    logits = embedding(h, reverse=True)  # (batch, length, vocabulary)
    return keras.Model({"token_ids": token_ids}, logits)


# %%
# Is it as good? The same text, seed, steps and rate for both, or the answer means nothing. The text
# is Python's manual.

manual = list(topics.values())
tokenizer = kgpt.Tokenizer.train(manual, vocabulary_size=1024)
VOCABULARY = tokenizer.vocabulary_size
tokens = kgpt.data.write_tokens(
    manual, tokenizer, RUN / "tokens.npy", validation_fraction=0.1, progress=False
)
windows = {"sequence_length": CONTEXT, "batch_size": 16}
valid = kgpt.data.windows(tokens.validation_path, **windows)


def fit(model, loss=None):
    options = {} if loss is None else {"loss": loss}
    model.compile(kgpt.recipes.pretraining_optimizer(STEPS, learning_rate=3e-3), **options)
    train = kgpt.data.windows(tokens.path, seed=0, repeat=True, **windows)
    return model.fit(
        train, epochs=1, steps_per_epoch=STEPS, validation_data=valid, verbose=0
    ).history["val_loss"][-1]


cross_entropy = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
makers = {
    "GPT-2's block": lambda: kgpt.layers.DecoderBlock(
        SIZE["num_heads"], intermediate_dim=4 * SIZE["hidden_dim"], dropout=0.0
    ),
    "parallel block": lambda: ParallelBlock(SIZE["num_heads"]),
}
for name, make_block in makers.items():
    model = language_model(make_block)
    print(f"{name}: {model.count_params():,} parameters, loss {fit(model, cross_entropy):.3f}")

# %%
# So few steps say which one begins faster, not which one is better: each stays at a plateau for a
# while, where it knows how frequent tokens are and nothing else, and leaves it sooner or later. Try
# ``STEPS = 1000``, and another seed, before you believe a difference. GPT-J took the parallel block
# because it is faster on many chips.
#
# A loss of your own
# ------------------
#
# ``compile(loss=...)`` takes any Keras loss on the logits. PaLM (section 5) added a small term that
# keeps the softmax's normaliser :math:`Z = \sum_j e^{z_j}` near 1, for stability in 16 bits:
#
# .. math:: -\log P(t) + 10^{-4} \log^2 Z


def cross_entropy_with_z(y_true, y_pred):
    """A number for each token, `(batch, length)`."""
    log_z = ops.logsumexp(y_pred, axis=-1)
    return ops.sparse_categorical_crossentropy(
        y_true, y_pred, from_logits=True
    ) + 1e-4 * ops.square(log_z)


def mean_log_z(lm):
    logits = lm.predict(next(iter(valid))[0], verbose=0)
    return float(np.mean(ops.convert_to_numpy(ops.logsumexp(logits, axis=-1))))


def make_lm():
    keras.utils.set_random_seed(0)
    return kgpt.CausalLM(
        kgpt.GPTBackbone(VOCABULARY, max_sequence_length=CONTEXT, dropout=0.0, **SIZE),
        tokenizer=tokenizer,
    )


for name, loss in (("own loss of the model", None), ("with the term", cross_entropy_with_z)):
    lm = make_lm()
    print(f"{name}: loss {fit(lm, loss):.3f}, log Z {mean_log_z(lm):.2f}")

# %%
# The pull is a gentle one, for runs of many thousand steps; in so few ``log Z`` hardly moves.
#
# A loss of your own reads the full logits, ``(batch, length, vocabulary)``; the model's own is
# computed in chunks, in which they never exist. For large vocabularies that is most of the memory.
#
# A training loop of your own
# ---------------------------
#
# ``fit`` is a loop around one step. The step is the only part that differs between backends: each
# has its own way to a gradient. ``lm.compute_loss`` is the model's loss, weights and masks
# included.

lm = make_lm()
lm.compile()  # the loss is now the model's own
optimizer = kgpt.recipes.pretraining_optimizer(STEPS, learning_rate=3e-3)
weights = lm.trainable_variables
optimizer.build(weights)


def loss_and_gradients(x, y):
    if keras.backend.backend() == "tensorflow":
        import tensorflow as tf

        with tf.GradientTape() as tape:
            loss = lm.compute_loss(x, y)
        return loss, tape.gradient(loss, [weight.value for weight in weights])
    if keras.backend.backend() == "torch":
        import torch

        loss = lm.compute_loss(x, y)
        return loss, torch.autograd.grad(loss, [weight.value for weight in weights])
    import jax

    def loss_of(values):  # on JAX a loss is a function of the values of variables
        others = [variable.value for variable in lm.non_trainable_variables]
        metrics = [variable.value for variable in lm.metrics_variables]
        return lm.stateless_compute_loss(values, others, metrics, x=x, y=y)[0]

    return jax.value_and_grad(loss_of)([weight.value for weight in weights])


losses, norms = [], []
batches = kgpt.data.windows(tokens.path, seed=0, repeat=True, **windows)
for _, (x, y, *_) in zip(range(STEPS), batches, strict=False):
    loss, gradients = loss_and_gradients(x, y)
    squares = [ops.sum(ops.square(gradient)) for gradient in gradients]
    norms.append(float(ops.convert_to_numpy(ops.sqrt(sum(squares)))))
    losses.append(float(ops.convert_to_numpy(loss)))
    optimizer.apply(list(gradients), weights)

print(f"loss {losses[0]:.2f} at first, {np.mean(losses[-10:]):.2f} over the last ten steps")

# %%
# Such a loop is for what ``fit`` does not show, here the norm of the gradient at each step. It is
# large at first, small on the plateau, and jumps where the loss leaves it. Gradients above the
# dashed line are scaled down to it, by the optimizer, after this line has measured them.

figure, (above, below) = plt.subplots(2, 1, figsize=(7, 5), sharex=True, layout="constrained")
above.plot(losses, color="#0072B2")
above.set(ylabel="loss (nats per token)")
below.plot(norms, color="#D55E00")
below.axhline(1, color="#999999", linestyle="--")
below.set(ylabel="norm of the gradient", xlabel="steps", yscale="log")
figure.savefig(RUN / "loop.png", dpi=120)

# %%
# On TensorFlow and JAX a loop is many times as fast when its step is compiled: put ``tf.function``
# or ``jax.jit`` around it. ``fit`` does that for you; leave it only where you must.
#
# Things to try
# -------------
#
# - Let the head predict a skewed distribution: three outputs, and another ``task_loss``.
# - Leave the layer norm out of the parallel block. What do the norms of its gradients do?
# - A loss with weights: ``fit`` takes ``sample_weight`` ``(batch, length)`` beside any loss.
# - ``examples/custom_head.py`` is a reward model: a head that reads two texts at a time.
#
# Next: ``examples/prompt_and_completion.py`` teaches a language model to answer.
