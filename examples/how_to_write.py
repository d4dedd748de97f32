r"""
How a model writes
==================

A language model gives probabilities, and something must choose. In the end you have seen each way
to do it that there is: greedy, temperature, top-k, top-p, min-p, beam search, penalties, each with
its formula in a line of numpy, its picture, and what it writes. And you can choose one.

It takes a minute on 2 cores with the model of the tutorial before
(``examples/pretrain_your_text.py``), which it trains if it is not there, in three more.
"""

import os

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")  # no remarks of TensorFlow's on the machine

import runpy
from pathlib import Path

import keras
import matplotlib.pyplot as plt
import numpy as np

import kgpt

MODEL = Path("runs/pretrain_your_text/lm.keras")  # or a model of your own
PROMPT = "The value of the expression is"
LENGTH = 50  # tokens of each sample
SAMPLES = 20  # for each setting in the comparison
RUN = Path("runs/how_to_write")

if not MODEL.exists():
    runpy.run_path(str(Path(kgpt.__file__).parents[1] / "examples/pretrain_your_text.py"))
lm = keras.models.load_model(MODEL)
tokenizer = lm.tokenizer
RUN.mkdir(parents=True, exist_ok=True)

# %%
# What there is to choose from
# ----------------------------
#
# One step of writing: the model reads the text so far and gives a number for each token of the
# vocabulary, its *logit*. A softmax makes probabilities of them.

ids = np.array([tokenizer.encode(PROMPT)])  # (batch, length)
logits = keras.ops.convert_to_numpy(lm(ids))[0, -1].astype("float64")  # (vocabulary,)


def softmax(logits):
    exponentials = np.exp(logits - logits.max())
    return exponentials / exponentials.sum()


def show(probabilities, count=5):
    for token in np.argsort(-probabilities)[:count]:
        print(f"{probabilities[token]:7.1%}  {tokenizer.decode([token])!r}")


print("logits", logits.shape)
show(softmax(logits))
kgpt.plot.next_tokens(lm, PROMPT)

# %%
# A few tokens have most of the probability, and hundreds share the rest, a thousandth each or less.
# Each of these is nearly impossible; *some* one of them is not. In fifty tokens such a one comes
# several times, and after a word that makes no sense the model goes on with what follows such
# words. All that comes now is about this tail, and about the head being too sure of itself.
#
# Greedy: always the likeliest
# ----------------------------
#
# .. math:: t = \arg\max_i P_i

print(repr(tokenizer.decode([int(logits.argmax())])))
print(lm.generate(PROMPT, LENGTH, sampler="greedy"))

# %%
# The same text at each call, and soon in a circle: what was written twice is likely a third time,
# and nothing leads out. Greedy is right where there is one answer (a sum, a label, a translation of
# one word), and wrong for text.
#
# Sampling: a token as often as it is likely
# ------------------------------------------
#
# The other extreme. ``seed`` makes a sample repeatable; another seed, another text.

for seed in (0, 1):
    print(lm.generate(PROMPT, LENGTH, sampler="random", seed=seed), "\n")

# %%
# Here is the tail at work. The text does not circle, and does not hold together either.
#
# Temperature: how sure of itself
# -------------------------------
#
# The logits are divided by a number before the softmax. Below 1 what is likely becomes likelier, at
# 0 it would be greedy; above 1 all come nearer to each other.
#
# .. math:: P_i = \frac{\exp(z_i / T)}{\sum_j \exp(z_j / T)}

temperatures = (0.5, 1.0, 1.5)
best = np.argsort(-logits)[:12]
names = [tokenizer.decode([token]) for token in best]
figure, axes = plt.subplots(figsize=(7, 3.5), layout="constrained")
for number, (temperature, colour) in enumerate(
    zip(temperatures, ("#0072B2", "#999999", "#D55E00"), strict=True)
):
    at = np.arange(len(best)) + 0.27 * (number - 1)
    axes.bar(
        at, softmax(logits / temperature)[best], 0.27, color=colour, label=f"T = {temperature}"
    )
axes.set_xticks(range(len(best)), [repr(name)[1:-1] for name in names], rotation=45, ha="right")
axes.set(ylabel="probability", title=f"after {PROMPT!r}")
axes.legend()
figure.savefig(RUN / "temperature.png", dpi=120)

# %%
for temperature in temperatures:
    text = lm.generate(PROMPT, LENGTH, temperature=temperature, seed=0)
    print(f"--- temperature {temperature}\n{text}\n")

# %%
# Top-k, top-p, min-p: without the tail
# -------------------------------------
#
# Three rules for which tokens stay; the others get probability 0, and the rest is divided by its
# sum.
#
# - *top-k*: the ``k`` likeliest. Simple, but ``k`` is the same whether one token is possible (after
#   "New Yor") or a thousand are (after "I saw a").
# - *top-p*, also called nucleus sampling: the likeliest that have the probability ``p`` together.
#   Few where the model is sure, many where it is not.
# - *min-p*: those at least ``min_p`` times as likely as the likeliest.

probabilities = softmax(logits)
order = np.argsort(-probabilities)
cumulative = np.cumsum(probabilities[order])
kept = {
    "top_k": set(order[:10]),
    "top_p": set(order[: np.searchsorted(cumulative, 0.9) + 1]),  # with the one that reaches it
    "min_p": set(np.flatnonzero(probabilities >= 0.1 * probabilities.max())),
}
for option, value in (("top_k", 10), ("top_p", 0.9), ("min_p", 0.1)):
    share = sum(probabilities[token] for token in kept[option])
    print(f"--- {option} = {value}: {len(kept[option])} tokens stay, with {share:.0%} of the whole")
    print(lm.generate(PROMPT, LENGTH, **{option: value}, seed=0), "\n")

# %%
# How many stay depends on the place. Here is a text of the model's own, and at each place the
# number of tokens with 90% of the probability. Inside words and fixed phrases it is one or two;
# where a new thought begins, hundreds. No ``k`` does justice to both, which is why top-p is the
# usual choice.

text = lm.generate(PROMPT, LENGTH, top_p=0.9, seed=0)
written = tokenizer.encode(text)[: lm.backbone.max_sequence_length]
all_logits = keras.ops.convert_to_numpy(lm(np.array([written])))[0]  # (length, vocabulary)
descending = -np.sort(-np.array([softmax(row) for row in all_logits.astype("float64")]), axis=-1)
stay = (np.cumsum(descending, axis=-1) < 0.9).sum(axis=-1) + 1  # (length,)

figure, axes = plt.subplots(figsize=(9, 3.5), layout="constrained")
axes.bar(range(1, len(written)), stay[:-1], color="#0072B2")  # what was possible at each token
axes.set_yscale("log")
pieces = [repr(tokenizer.decode([token]))[1:-1] for token in written]
axes.set_xticks(range(len(written)), pieces, rotation=90, fontsize=7)
axes.set(ylabel="tokens in the top 90%", title="How many tokens top-p = 0.9 chose from")
figure.savefig(RUN / "top_p.png", dpi=120)

# %%
# Beam search: the likeliest text, nearly
# ---------------------------------------
#
# Greedy takes the likeliest *token*; the likeliest *text* may begin with a less likely one. Beam
# search carries several beginnings along, goes on with each, and keeps the likeliest few.
#
# .. math:: \arg\max_{t_1 \dots t_n} \sum_i \log P(t_i \mid t_1 \dots t_{i-1})

import keras_hub

beams = keras_hub.samplers.BeamSampler(num_beams=5)
for name, sampler in (("greedy", "greedy"), ("beam", beams)):
    continuation = lm.generate(PROMPT, LENGTH, sampler=sampler, return_prompt=False)
    likelihood = lm.score(continuation, prompts=PROMPT)
    print(f"--- {name}: log-likelihood {likelihood:.1f} nats\n{PROMPT}{continuation}\n")

# %%
# Likelier than greedy, and no better: what people write is *not* the likeliest text. Beam search is
# for short answers with one right form, such as translations.
#
# Penalties: not the same again
# -----------------------------
#
# - ``repetition_penalty`` above 1 makes tokens that have come already less likely: a positive logit
#   is divided by it, a negative one multiplied.
# - ``no_repeat_ngram_size=3`` forbids each sequence of three tokens that has come already.

seen = np.unique(ids)
penalised = logits.copy()
penalised[seen] = np.where(logits[seen] > 0, logits[seen] / 1.3, logits[seen] * 1.3)
for token in seen[:3]:
    name = repr(tokenizer.decode([token]))
    print(f"{name:>12}: {softmax(logits)[token]:.2e} becomes {softmax(penalised)[token]:.2e}")
for options in ({"repetition_penalty": 1.3}, {"no_repeat_ngram_size": 3}):
    print(f"--- greedy with {options}")
    print(lm.generate(PROMPT, LENGTH, sampler="greedy", **options), "\n")

# %%
# They cure the circle of greedy by force. Too strong a penalty also forbids "the" and the comma.
#
# Side by side, in numbers
# ------------------------
#
# Two numbers show the bargain. *Surprise*: what the model itself thinks of the text, in bits for
# each token; people's text has the surprise of the held-out set. *Repetition*: the share of
# three-token sequences that came before. Too little surprise circles, too much falls apart.

settings = {
    "greedy": {"sampler": "greedy"},
    "beam": {"sampler": beams},
    "T = 0.5": {"temperature": 0.5},
    "T = 1": {"sampler": "random"},
    "T = 1.5": {"temperature": 1.5},
    "top_k = 10": {"top_k": 10},
    "top_p = 0.9": {"top_p": 0.9},
    "min_p = 0.1": {"min_p": 0.1},
}


def repetition(token_ids):
    triples = list(zip(token_ids, token_ids[1:], token_ids[2:], strict=False))
    return 1 - len(set(triples)) / max(1, len(triples))


points = {}
for name, options in settings.items():
    count = SAMPLES if name not in ("greedy", "beam") else 1  # these always write the same
    continuations = lm.generate(
        [tokenizer.encode(PROMPT)] * count,
        LENGTH,
        seed=0,
        return_prompt=False,
        stop_token_ids=None,
        **options,
    )
    bits = -lm.score(
        continuations, prompts=[ids[0].tolist()] * len(continuations), reduction="mean"
    )
    repeated = np.mean([repetition(list(continuation)) for continuation in continuations])
    points[name] = (np.mean(bits) / np.log(2), repeated)
    print(f"{name:>12}: {points[name][0]:5.2f} bits for each token, {repeated:4.0%} repeated")

figure, axes = plt.subplots(figsize=(7, 4), layout="constrained")
for name, (bits, repeated) in points.items():
    axes.plot(bits, repeated, "o", color="#0072B2")
    offset = (5, -12) if name in ("greedy", "min_p = 0.1", "T = 1") else (5, 5)  # none on another
    axes.annotate(name, (bits, repeated), xytext=offset, textcoords="offset points")
axes.set(xlabel="surprise (bits for each token)", ylabel="repeated sequences of three")
axes.yaxis.set_major_formatter("{x:.0%}")
axes.margins(0.15)
figure.savefig(RUN / "comparison.png", dpi=120)

# %%
# Which one?
# ----------
#
# - Text to read: ``top_p=0.9`` with ``temperature`` 0.7 to 1. Warmer for stories, colder for facts.
# - One right answer: ``sampler="greedy"``.
# - It circles: first warmer, then ``repetition_penalty=1.1``; never more than 1.3.
#
# Options act together, in this order: penalties, temperature, top-k, top-p, min-p.

print(lm.generate(PROMPT, LENGTH, temperature=0.8, top_p=0.9, repetition_penalty=1.1, seed=3))

# %%
# Things to try
# -------------
#
# - ``num_return_sequences=3`` and ``return_log_probabilities=True``: let the model write several
#   and take the one that it finds likeliest. Is it the one that you like best?
# - ``stop="\n\n"`` ends at the paragraph; ``stream=True`` gives the text while it is written.
# - A sampler of your own is a class with one method; those of keras-hub show how.
#
# Next: ``examples/classify.py`` gives the same body another head.
