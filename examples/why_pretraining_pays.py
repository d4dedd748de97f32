r"""
Why pretraining pays
====================

The claim of GPT-1's paper is that a body which has read plain text learns a task from few labels.
In the end you have seen what that is worth: on film reviews, by results that are kept in the
repository, and, on your own machine, a body that learns a task which nobody trains it for.

The kept results cost an hour of pretraining; what is computed here takes about four minutes on 2
cores and needs no download. The paper is Radford et al. 2018; the second and the third picture are
its figure 2 in small, left and right.
"""

import os

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")  # no remarks of TensorFlow's on the machine

import json
import statistics
from pathlib import Path

import keras
import matplotlib.pyplot as plt
import numpy as np

import kgpt

STEPS = 600  # of pretraining
EXAMPLES = 100  # of the test
SIZE = {"num_layers": 3, "num_heads": 4, "hidden_dim": 128}
CONTEXT = 256  # a story has about 195 tokens
BATCH = 12
STORIES = 4000
FAST = {"rotary_positions": True, "query_key_norm": True, "zero_init_residual": True}

keras.utils.set_random_seed(0)

# %%
# On film reviews: the kept results
# ---------------------------------
#
# A body of 5 million parameters was pretrained on 75,000 reviews without their labels, and then
# classifiers were trained on 100 labels and more: on this body, on the same body from scratch, and,
# without a network, by logistic regression over counted words and pairs of words, which is hard to
# beat. ``benchmarks/label_efficiency.py`` makes these numbers anew.

KEPT = Path(kgpt.__file__).resolve().parents[1] / "benchmarks/results"
records = json.loads((KEPT / "label_efficiency.json").read_text(encoding="utf-8"))
METHODS = {  # name in the file: colour, marker; colours that a colour-blind reader can tell apart
    "pretrained": ("#0072B2", "o"),
    "from scratch": ("#D55E00", "s"),
    "counted words": ("#555555", "^"),
}
SETS = ("reviews", "sentences")

figure, axes = plt.subplots(1, 2, figsize=(9, 3.8), layout="constrained", sharey=True)
for axis, name in zip(axes, SETS, strict=True):
    for method, (color, marker) in METHODS.items():
        points = {}
        for record in records:
            if (record["body"], record["set"], record["method"]) == ("hour", name, method):
                points.setdefault(record["labels"], []).append(100 * record["accuracy"])
        sizes = sorted(points)
        means = [statistics.mean(points[n]) for n in sizes]
        axis.plot(sizes, means, color=color, marker=marker, label=method)
        low, high = ([limit(points[n]) for n in sizes] for limit in (min, max))
        axis.fill_between(sizes, low, high, color=color, alpha=0.2, linewidth=0)
        print(f"{name}, {method}: {dict(zip(sizes, np.round(means, 1).tolist(), strict=True))}")
    axis.set_xscale("log")
    axis.set_title(f"{name}, by the number of labels")
    axis.grid(alpha=0.3)
axes[0].set_ylabel("accuracy on the test, %")
axes[0].legend(frameon=False, loc="lower right")
plt.show()

# %%
# The distance between the first two lines is what pretraining is worth. It is largest where labels
# are few, which is the paper's point: the body knows words and what goes with what, and a hundred
# labels are enough to ask it which of them are praise.
#
# How much of the body does it take? The same classifier of reviews, 300 labels, on a body that has
# only the first blocks of the pretrained one and fresh ones behind them (``body.take_blocks``;
# ``benchmarks/gpt1_paper.py``):

kept = json.loads((KEPT / "gpt1_paper.json").read_text(encoding="utf-8"))
accuracies = {}
for key, value in kept.items():
    stage, task, *place = key.split(", ")
    if stage == "blocks":
        accuracies.setdefault(place[0], []).append(100 * value)  # one for each seed
figure, axis = plt.subplots(figsize=(5, 3.4), layout="constrained")
axis.plot(accuracies.keys(), [statistics.mean(one) for one in accuracies.values()], "o-")
for place, values in accuracies.items():
    axis.plot([place] * len(values), values, ".", color="#555555")
axis.set_xlabel("blocks taken over; with 0, the embeddings alone")
axis.set_ylabel("accuracy on the test, %")
axis.grid(alpha=0.3)
plt.show()

# %%
# Most of it is in the embeddings: whether a review is kind is nearly in its words. In the paper,
# whose tasks ask for more, each of the twelve blocks helps.
#
# A point afresh: which end has a story?
# --------------------------------------
#
# The same on a task that needs no download. :func:`kgpt.data.stories` makes up short stories;
# :func:`kgpt.data.story_endings` takes the end off and offers four. One end fits the people and
# things of the story.

stories = kgpt.data.stories(STORIES)
test = kgpt.data.story_endings("validation", EXAMPLES)
print(test["contexts"][0])
for number, choice in enumerate(test["choices"][0]):
    print("->" if number == test["labels"][0] else "  ", choice)

tokenizer = kgpt.Tokenizer.train(stories, vocabulary_size=1024)
runs = Path("runs/why_pretraining_pays")
tokens = kgpt.data.write_tokens(stories, tokenizer, runs / "tokens.npy", progress=False)
windows = kgpt.data.windows(tokens.path, CONTEXT, BATCH, seed=0, repeat=True)


def fresh_body():
    return kgpt.GPTBackbone(
        tokenizer.vocabulary_size,
        **SIZE,
        max_sequence_length=CONTEXT,
        dropout=0.0,
        **FAST,
    )


# %%
# Pretraining, and what the body can do without a single label
# -------------------------------------------------------------
#
# A language model gives each text a probability. So it can do the task before it has been trained
# for it: the likeliest end is its answer (section 5 of the paper, "zero-shot behaviours").
# Chance is one of four.

lm = kgpt.CausalLM(fresh_body(), tokenizer=tokenizer)
lm.compile(kgpt.recipes.fast_optimizer(STEPS))


def right_without_labels(count=EXAMPLES):
    contexts = [context for context in test["contexts"][:count] for _ in range(4)]
    ends = [end for choices in test["choices"][:count] for end in choices]
    scores = lm.score(ends, contexts, reduction="mean").reshape(-1, 4)
    return float(np.mean(scores.argmax(axis=1) == np.array(test["labels"][:count])))


PARTS = 5
done, zero_shot, losses = [0], [right_without_labels()], [float(np.log(tokenizer.vocabulary_size))]
for part in range(PARTS):
    history = lm.fit(windows, steps_per_epoch=STEPS // PARTS, verbose=0).history
    done.append((part + 1) * (STEPS // PARTS))
    losses.append(history["loss"][-1])
    zero_shot.append(right_without_labels())
    print(f"{done[-1]} steps: loss {losses[-1]:.2f}, right without labels {zero_shot[-1]:.0%}")

# %%
# Figure 2 of the paper, right: as the loss falls, the task that nobody trained it for gets better.

figure, axis = plt.subplots(figsize=(6, 3.5), layout="constrained")
axis.plot(done, [100 * share for share in zero_shot], color="#0072B2", marker="o")
axis.axhline(25, color="#555555", linestyle=":", label="chance")
axis.set_xlabel("steps of pretraining")
axis.set_ylabel("right ends without labels, %")
axis.set_ylim(0, 100)
axis.legend(frameon=False, loc="lower right")
of_loss = axis.twinx()
of_loss.plot(done, losses, color="#D55E00", linestyle="--")
of_loss.set_ylabel("loss, nats (dashed)")
plt.show()

# %%
# Things to try
# -------------
#
# - Pretrain longer (``STEPS``): does the line without labels go on rising?
# - Fine-tune: ``kgpt.MultipleChoice(lm.backbone)`` on :func:`kgpt.data.story_endings`. With 200
#   labels it stayed at chance in a trial, since its classify token is new and the likelihoods are
#   not used: what a model knows and what a head finds in it are two things.
# - Another text for pretraining, such as :func:`kgpt.data.standard_library_files`: is a body worth
#   less that has read something else?
# - ``lm_loss_weight=0.5``: the auxiliary loss, which the paper found to help with many labels.
# - ``lm.backbone.freeze(2)``, or ``enable_lora(8)``: train less of the body.
#
# Where to go on: ``examples/classify.py`` fine-tunes a classifier step by step; with
# :func:`kgpt.CausalLM.from_preset` ``("gpt2")`` the body has read 40 GB of text instead of one
# megabyte.
#
# Next: ``examples/export_and_serve.py`` takes a model out of Python.
