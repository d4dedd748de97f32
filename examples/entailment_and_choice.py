r"""
Entailment and multiple choice
==============================

In the end you have two models that read several texts at a time: one says whether a sentence
follows from another one, contradicts it, or says more than is known; the other chooses among four
ends the one that belongs to a story. They are the tasks of GPT-1's paper that ask for more than
single words, and you see by how much each model is better than chance, than the commonest answer,
than counting of words, and than a model that was shown half of the question.

It takes five minutes on 2 cores and needs no download. The text is made up, so that what is right
is known; nothing of the models depends on that.
"""

import os

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")  # no remarks of TensorFlow's on the machine

import collections
import random
import re
from pathlib import Path

import keras
import numpy as np

import kgpt

STORIES = 4000  # to read, and then to choose ends for
REPORTS = 6000  # to read
STEPS = 500  # of pretraining; on a GPU 2000
PAIRS = 8000  # for entailment
CHOICE_EPOCHS = 2
HELD_OUT = 500  # examples of each task
SIZE = {"num_layers": 3, "num_heads": 3, "hidden_dim": 96}  # on a GPU 6, 6 and 384
RUN = Path("runs/entailment_and_choice")

RUN.mkdir(parents=True, exist_ok=True)
keras.utils.set_random_seed(0)

# %%
# Text without labels
# -------------------
#
# :func:`kgpt.data.story_endings` makes up stories of four sentences, each with its last one and
# three wrong ones to choose from. Beside them we need things that can be told in two ways: who
# gives something to whom, from both sides.

columns = kgpt.data.story_endings("train", STORIES, short=True)
rows = zip(columns["contexts"], columns["choices"], columns["labels"], strict=True)
stories = [context + choices[label] for context, choices, label in rows]

NAMES = sorted({story.split()[0] for story in stories} - {"It"})  # "It was Mia's birthday."
COLOURS = ["black", "blue", "brown", "green", "red", "silver", "white", "yellow"]
THINGS = ["ball", "bell", "boat", "cup", "drum", "hat", "kite", "lamp", "ring", "shell"]
TOLD = (  # by the one who had it, and by the one who has it now
    ("{a} gave {b} {thing}.", "{b} got {thing} from {a}."),
    ("{a} sold {b} {thing}.", "{b} bought {thing} from {a}."),
    ("{a} lent {b} {thing}.", "{b} borrowed {thing} from {a}."),
    ("{a} sent {b} {thing}.", "{b} received {thing} from {a}."),
)


def draw_event(generator):
    """Who had it, who has it, its colour, what it is, and the two ways to tell it."""
    people, ways = generator.sample(NAMES, 2), generator.sample(generator.choice(TOLD), 2)
    return *people, generator.choice(COLOURS), generator.choice(THINGS), ways


def tell(way, a, b, colour, noun):
    return way.format(a=a, b=b, thing=f"a {colour} {noun}" if colour else f"a {noun}")


def report(generator):
    """What happened, from both sides."""
    *event, ways = draw_event(generator)
    return " ".join(tell(way, *event) for way in ways)


generator = random.Random(0)
reports = [report(generator) for _ in range(REPORTS)]
print(stories[0], *reports[:3], sep="\n")

# %%
# A language model reads both. Nobody tells it that the second sentence of a report follows from the
# first; but to guess it well, one must know who had the thing and of what colour it was.
#
# Windows may begin anywhere (``random_offset``), and a token sees its own text alone
# (``segment_ids``). The three options of the block and the optimizer Muon let small models learn
# sooner (``examples/fast.py``).

tokenizer = kgpt.Tokenizer.train(stories + reports, vocabulary_size=1024)
tokens = kgpt.data.write_tokens(stories + reports, tokenizer, RUN / "tokens.npy", progress=False)
windows = kgpt.data.windows(
    tokens.path,
    sequence_length=64,
    batch_size=16,
    seed=0,
    random_offset=True,
    segment_ids=True,
    end_of_text_id=tokenizer.end_of_text_id,
    repeat=True,
)
backbone = kgpt.GPTBackbone(
    tokenizer.vocabulary_size,
    max_sequence_length=128,
    dropout=0.0,
    rotary_positions=True,
    query_key_norm=True,
    zero_init_residual=True,
    **SIZE,
)
lm = kgpt.CausalLM(backbone, tokenizer=tokenizer)
lm.compile(kgpt.recipes.fast_optimizer(STEPS))
history = lm.fit(windows, steps_per_epoch=STEPS, verbose=0)
lm.save(RUN / "lm.keras")
print(f"{tokens.num_tokens:,} tokens, {STEPS} steps, loss {history.history['loss'][-1]:.2f}")
for prompt in ("Ben sold Mia a red kite.", "Ida received a white ring from Leo."):
    print(lm.generate(prompt, max_new_tokens=12, sampler="greedy"))


def pretrained_body():
    """A copy for each task: a head trains the body that it is given."""
    return keras.models.load_model(RUN / "lm.keras").backbone


# %%
# Entailment: pairs of which the answer is known
# ----------------------------------------------
#
# A *premise* and a *hypothesis*. The hypothesis is drawn first, always with a colour, then the
# label, and only then a premise that makes it true. So the hypothesis itself says nothing about
# the label, which is more than most data sets of this kind can say.

CLASSES = ["follows", "contradicts", "not said"]


def draw_pair(generator):
    a, b, colour, noun, (way, other_way) = draw_event(generator)
    hypothesis = tell(way, a, b, colour, noun)
    label = generator.choice(CLASSES)
    if label == "not said":  # the premise leaves out the colour
        colour = None
    elif label == "contradicts":  # the premise has another colour
        colour = generator.choice([other for other in COLOURS if other != colour])
    return tell(other_way, a, b, colour, noun), hypothesis, label


def draw_pairs(number, seed):
    generator = random.Random(seed)
    rows = [draw_pair(generator) for _ in range(number)]
    return [list(column) for column in zip(*rows, strict=True)]


premises, hypotheses, labels = draw_pairs(PAIRS, seed=1)
test_premises, test_hypotheses, test_labels = draw_pairs(HELD_OUT, seed=2)
for premise, hypothesis, label in list(zip(premises, hypotheses, labels, strict=True))[:6]:
    print(f"{label:>12}: {premise} / {hypothesis}")
print(collections.Counter(labels))

# %%
# A pair makes one sequence, ``[start] premise [delimiter] hypothesis [classify]``, and the head is
# a classifier's: the state of the last token, which has seen both, a linear map, a softmax. (Two
# texts that have no order are read in both, as in ``examples/regression_and_similarity.py``.)

batching = {"tokenizer": tokenizer, "sequence_length": 64, "class_names": CLASSES}
train = kgpt.data.entailment(premises, hypotheses, labels, batch_size=32, seed=0, **batching)
valid = kgpt.data.entailment(
    test_premises, test_hypotheses, test_labels, batch_size=128, seed=None, **batching
)
inputs, targets = next(iter(train))[:2]
print({name: array.shape for name, array in inputs.items()}, targets.shape)
row = inputs["token_ids"][0][inputs["padding_mask"][0].astype(bool)]  # without its padding
print(tokenizer.decode(row.tolist()), "->", CLASSES[targets[0]])

# %%
# A trap: can it be told without the premise?
# -------------------------------------------
#
# In a well-known data set of this kind two thirds of the labels could be guessed from the
# hypothesis alone (Gururangan et al. 2018): people who were asked to contradict a sentence wrote
# "not" and "nobody". Such a model has a fine score and has not learned what was meant. So one of
# two models is not shown the premise; it should stay where a guess is.
#
# To compare two texts is learned late, and then all at once: for some time a model knows what is
# not said, and takes the other two for each other. AdamW, with which one fine-tunes a large body,
# stays long there; Muon leaves it sooner. The second loss, the language model's, is off: it would
# cost a third of the time.


def fine_tune(backbone, train, valid):
    classifier = kgpt.TextClassifier(
        backbone, class_names=CLASSES, tokenizer=tokenizer, lm_loss_weight=0.0
    )
    classifier.compile(kgpt.recipes.fast_optimizer(len(train), learning_rate=5e-3))
    classifier.fit(train, verbose=0)
    return classifier, classifier.predict(valid, verbose=0)  # logits (examples, classes)


right = np.array([CLASSES.index(label) for label in test_labels])


def accuracy(logits):
    return np.mean(logits.argmax(axis=1) == right)


def show(results):
    """Prints scores, each with what chance does to a share of so few examples."""
    for name, score in results.items():
        error = 1.96 * np.sqrt(score * (1 - score) / HELD_OUT)
        print(f"{name:>32}: {score:6.1%} +- {error:.1%}")


alone = {"batch_size": 32, **batching}
_, of_hypotheses = fine_tune(
    pretrained_body(),
    kgpt.data.entailment(["?"] * PAIRS, hypotheses, labels, seed=0, **alone),
    kgpt.data.entailment(["?"] * HELD_OUT, test_hypotheses, test_labels, seed=None, **alone),
)
classifier, logits = fine_tune(pretrained_body(), train, valid)
classifier.save(RUN / "entailment.keras")
show(
    {
        "a guess": 1 / 3,
        "the commonest class": np.bincount(right).max() / HELD_OUT,
        "the hypothesis alone": accuracy(of_hypotheses),
        "premise and hypothesis": accuracy(logits),
    }
)

# %%
# What the premise is worth is the distance between the last two lines. Which is taken for which? A
# row is the right class, a column what the model said.

figure = kgpt.plot.confusion_matrix(right, logits, CLASSES)
figure.savefig(RUN / "confusion.png", dpi=120)
figure

# %%
# What has it learned? Pairs of which training had no like say more than the score: in other words,
# of another thing, of another person, with the people in each other's place.

odd = [
    ("Ella sold Leo a blue lamp.", "Leo bought a blue lamp from Ella."),
    ("Ella sold Leo a blue lamp.", "Leo has a blue lamp."),
    ("Ella sold Leo a blue lamp.", "Leo bought a blue drum from Ella."),
    ("Ella sold Leo a blue lamp.", "Max bought a blue lamp from Ella."),
    ("Ella sold Leo a blue lamp.", "Ella bought a blue lamp from Leo."),
]
for pair, shares in zip(odd, classifier.predict_text(odd, probabilities=True), strict=True):
    print(f"{shares.max():4.0%} {CLASSES[shares.argmax()]:>12}: {pair[0]} / {pair[1]}")

# %%
# The colour is all that the pairs ask for, so the colour is all that it looks at: the people and
# the thing could be any. What a data set does not ask for, a model does not learn, be its score as
# good as it may. A handful of pairs of one's own for each thing that matters shows it.
#
# Multiple choice
# ---------------
#
# Four ends for a story. The wrong ones are told of other people, of other things, and of another
# plot:

test = kgpt.data.story_endings("validation", HELD_OUT, short=True)
print(test["contexts"][0])
for number, choice in enumerate(test["choices"][0]):
    print("->" if number == test["labels"][0] else "  ", choice)

# %%
# Each end makes a sequence of its own, ``[start] story [delimiter] end [classify]``. One linear map
# with *one* output turns the state of its last token into a number, and a softmax goes over the
# four numbers (GPT-1, section 3.3):
#
# .. math:: P(i) = \frac{\exp(h^i w)}{\sum_j \exp(h^j w)}
#
# The ends never see each other, and their order can't matter. A batch has an axis more: 8 stories
# with 4 ends are 32 sequences, which is why it holds fewer examples than a classifier's.

batching = {"tokenizer": tokenizer, "sequence_length": 128}
train = kgpt.data.multiple_choice(**columns, batch_size=8, seed=0, **batching)
valid = kgpt.data.multiple_choice(**test, batch_size=32, seed=None, **batching)
inputs, targets = next(iter(train))[:2]
print({name: array.shape for name, array in inputs.items()}, targets.shape)
for row, mask in zip(inputs["token_ids"][0], inputs["padding_mask"][0], strict=True):
    print(tokenizer.decode(row[mask.astype(bool)].tolist()))
print("right:", targets[0])

# %%
# What is it worth to beat? A guess has a quarter. Counting gets further: take the end that has most
# words in common with its story. It sees other people and other things, and not another plot.


def words(text):
    return set(re.findall(r"\w+", text.lower()))


def in_common(story, end):
    return len(words(story) & words(end)) / len(words(end))


right = np.array(test["labels"])
counted = [
    np.argmax([in_common(story, end) for end in ends])
    for story, ends in zip(test["contexts"], test["choices"], strict=True)
]

chooser = kgpt.MultipleChoice(pretrained_body(), tokenizer=tokenizer, lm_loss_weight=0.0)
chooser.compile(kgpt.recipes.fast_optimizer(CHOICE_EPOCHS * len(train), learning_rate=5e-3))
history = chooser.fit(train, validation_data=valid, epochs=CHOICE_EPOCHS, verbose=0)
chooser.save(RUN / "chooser.keras")
print("after each epoch:", *(f"{a:.1%}" for a in history.history["val_accuracy"]))
logits = chooser.predict(valid, verbose=0)  # (examples, choices), in the order of the rows
show(
    {
        "a guess": 1 / 4,
        "words in common": np.mean(counted == right),
        "the model": accuracy(logits),
    }
)

# %%
# Its surest mistakes: a story, the right end, and the one that it took.

probabilities = keras.ops.convert_to_numpy(keras.ops.softmax(logits))
chosen, surety = probabilities.argmax(axis=1), probabilities.max(axis=1)
wrong = np.flatnonzero(chosen != right)
for i in wrong[np.argsort(-surety[wrong])][:4]:
    ends = test["choices"][i]
    print(f"{test['contexts'][i]}\n    {ends[right[i]]}\n    {surety[i]:.0%} sure of: "
          f"{ends[chosen[i]]}")  # fmt: skip

# %%
# Use them
# --------
#
# The files are whole, with tokenizer and names of classes. A pair is a tuple of two texts.

classifier = keras.models.load_model(RUN / "entailment.keras")
premise = "Ella sold Leo a blue lamp."
statements = ["Leo bought a blue lamp from Ella.", "Leo bought a red lamp from Ella."]
for statement in statements:
    [answer] = classifier.predict_text([(premise, statement)])
    print(f"{answer:>12}: {premise} / {statement}")
[answer] = classifier.predict_text([("Ella sold Leo a lamp.", statements[0])])
print(f"{answer:>12}: Ella sold Leo a lamp. / {statements[0]}")

chooser = keras.models.load_model(RUN / "chooser.keras")
story = "Ella had a blue lamp. One day she lost it by the river. Leo came to help. "
ends = ["At last Leo found the lamp under a bush.", "At last Max found the drum under a bush."]
print(chooser.predict_text([story], [ends], probabilities=True).round(2))

# %%
# Things to try
# -------------
#
# - Your own table: ``kgpt.data.entailment(frame["premise"], frame["hypothesis"], frame["label"],
#   tokenizer)``, and the hypothesis alone before you believe the score.
# - Lay the trap: let half of the contradictions end in "of course". What does the hypothesis alone
#   get, and what the whole pair?
# - Let the people change places in half of the contradictions. Is who had it as easily learned as
#   what colour it was? (In a trial it took several times as long.)
# - Let the language model choose without labels, the likeliest end: ``lm.score(ends, contexts)``,
#   as in ``examples/why_pretraining_pays.py``.
#
# Next: ``examples/from_openais_weights.py`` starts from a model that has read eight million pages.
