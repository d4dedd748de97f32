r"""
Numbers from texts, and how alike two texts are
===============================================

In the end you have two models: one reads a time of day in words and says how many minutes after
midnight it is, and one reads two sentences and says how much they have in common, in meaning and
not in words. Both are a ``kgpt.TextRegressor``; the second reads its pairs in both orders.

It takes two minutes on 2 cores and needs no download. The data is generated, so that what is right
is known exactly, and what the models get wrong can be named.
"""

import os

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")  # no remarks of TensorFlow's on the machine

import random
from pathlib import Path

import keras
import matplotlib.pyplot as plt
import numpy as np

import kgpt

EPOCHS = 25  # over the times of day
PAIR_EPOCHS = 6  # over the pairs
PAIRS = 4000
SIZE = {"num_layers": 2, "num_heads": 4, "hidden_dim": 64}
FAST = {"rotary_positions": True, "query_key_norm": True, "zero_init_residual": True}
RUN = Path("runs/regression_and_similarity")

RUN.mkdir(parents=True, exist_ok=True)
keras.utils.set_random_seed(0)

# %%
# Times of day
# ------------
#
# People say the same time in several ways, and "ten to nine" is before nine, although it has a
# larger number in it than "five to nine". A model that adds up words will not do.

WORDS = ["twelve", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten"]
WORDS += ["eleven", "twelve", "thirteen", "fourteen", "fifteen", "sixteen", "seventeen"]
WORDS += ["eighteen", "nineteen"]
PAST = {5: "five", 10: "ten", 15: "a quarter", 20: "twenty", 25: "twenty-five"}
TENS = {2: "twenty", 3: "thirty", 4: "forty", 5: "fifty"}


def minute_words(minute):
    tens, units = divmod(minute, 10)
    if minute < 20:
        return WORDS[minute] if minute else "o'clock"
    return TENS[tens] + (f"-{WORDS[units]}" if units else "")


def ways_to_say(hour, minute):
    """Texts that mean a time of day."""
    part = "in the morning" if hour < 12 else "in the afternoon" if hour < 18 else "in the evening"
    this, following = WORDS[hour % 12], WORDS[(hour + 1) % 12]
    yield f"{hour}:{minute:02}"
    yield f"{this} {minute_words(minute)} {part}"
    if minute in PAST:
        yield f"{PAST[minute]} past {this} {part}"
    if 60 - minute in PAST and (hour + 1) % 6:  # the part of the day stays the same
        yield f"{PAST[60 - minute]} to {following} {part}"
    if minute == 30:
        yield f"half past {this} {part}"


times = [
    (text, 60 * hour + minute)
    for hour in range(24)
    for minute in range(0, 60, 5)
    for text in ways_to_say(hour, minute)
]
random.Random(0).shuffle(times)
for text, minutes in times[:6]:
    print(f"{minutes:>5} minutes: {text}")
held_out, train_times = times[: len(times) // 5], times[len(times) // 5 :]
print(f"{len(train_times)} to train on, {len(held_out)} held out")

# %%
# The head of a regressor is one linear map from the state of the last token, and its loss the mean
# squared error:
#
# .. math:: \hat y = h_n W, \qquad \text{loss} = \frac{1}{N}\sum_i (\hat y_i - y_i)^2
#
# The second loss, the language model's, is off (``lm_loss_weight=0``): sentences made by a
# generator are a poor language, and with it the task would be learned later.
#
# ``FAST`` are three options of the block by which small models learn sooner; with the optimizer
# Muon, which the second task takes, they are the subject of ``examples/fast.py``.
#
# The map starts near 0, and a rate that suits the weights is far too small to reach 1,440. So
# targets are scaled to a mean of 0 and a spread of 1, and predictions scaled back.

MEAN, SPREAD = 720.0, 416.0  # of minutes that are spread evenly over a day


def scaled(examples):
    texts, minutes = zip(*examples, strict=True)
    return list(texts), (np.array(minutes) - MEAN) / SPREAD


texts, targets = scaled(train_times)
tokenizer = kgpt.Tokenizer.train(texts, vocabulary_size=350)
print([tokenizer.decode([token]) for token in tokenizer.encode("twenty-five to nine")])


def make(**options):
    backbone = kgpt.GPTBackbone(
        tokenizer.vocabulary_size, max_sequence_length=64, dropout=0.0, **SIZE, **FAST
    )
    return kgpt.TextRegressor(
        backbone, tokenizer=tokenizer, dropout=0.0, lm_loss_weight=0.0, **options
    )


batches = {"tokenizer": tokenizer, "sequence_length": 64, "batch_size": 32}
train = kgpt.data.regression(texts, targets, seed=0, **batches)
valid = kgpt.data.regression(*scaled(held_out), seed=None, **batches)
regressor = make()
regressor.compile(kgpt.recipes.finetuning_optimizer(EPOCHS * len(train), learning_rate=2e-3))
history = regressor.fit(train, validation_data=valid, epochs=EPOCHS, verbose=0).history
for epoch in range(0, EPOCHS, max(1, EPOCHS // 5)):
    error = SPREAD * history["val_mean_absolute_error"][epoch]
    print(f"after epoch {epoch + 1:>2}: wrong by {error:5.0f} minutes on average")

# %%
# An average hides what is wrong. Each point is a time that the model never read; on the line it is
# right. Most of those that are off lie in the morning. It has twelve hours here, and the afternoon
# and the evening six each: "in the morning" says less, and the model must do more with the rest.

predicted = regressor.predict(valid, verbose=0)[:, 0] * SPREAD + MEAN
true = np.array([minutes for _, minutes in held_out])
figure, axes = plt.subplots(figsize=(5.5, 5), layout="constrained")
axes.plot([0, 1440], [0, 1440], color="#999999", linewidth=1)
is_digits = np.array([":" in text for text, _ in held_out])
for chosen, name, colour in ((is_digits, "15:20", "#D55E00"), (~is_digits, "in words", "#0072B2")):
    axes.plot(true[chosen], predicted[chosen], ".", color=colour, label=name)
axes.set(xlabel="true (minutes after midnight)", ylabel="predicted", aspect="equal")
axes.legend()
figure.savefig(RUN / "times.png", dpi=120)

# %%
errors = np.abs(predicted - true)
print(f"half of them are within {np.median(errors):.0f} minutes; the worst:")
for i in np.argsort(-errors)[:5]:
    print(f"{predicted[i]:6.0f} instead of {true[i]:>4}: {held_out[i][0]}")

# %%
# How alike are two sentences?
# ----------------------------
#
# The second task is one of meaning. Two sentences say who does what, to what, and where, each in
# one of two words that mean the same. The score is how many of the four they share: "the physician
# purchases a couch at home" and "the doctor buys a sofa at home" have a 4, and hardly a word in
# common.

SLOTS = [
    [("doctor", "physician"), ("lawyer", "attorney"), ("child", "kid")],
    [("buys", "purchases"), ("hides", "conceals"), ("wants", "desires")],
    [("sofa", "couch"), ("car", "automobile"), ("cap", "hat")],
    [("house", "home"), ("shop", "store"), ("street", "road")],
]


def sentence(meanings, generator):
    who, what, thing, place = (generator.choice(meaning) for meaning in meanings)
    return f"the {who} {what} a {thing} at the {place}"


def pairs(count, seed):
    """Pairs of sentences, and how many of four meanings they share."""
    generator = random.Random(seed)
    texts, scores = [], []
    for _ in range(count):
        first = [generator.choice(slot) for slot in SLOTS]
        shared = generator.sample(range(4), generator.randint(0, 4))
        second = [
            first[i] if i in shared else generator.choice([m for m in slot if m != first[i]])
            for i, slot in enumerate(SLOTS)
        ]
        texts.append((sentence(first, generator), sentence(second, generator)))
        scores.append(float(len(shared)))
    return texts, np.array(scores)


train_pairs, train_scores = pairs(PAIRS, seed=0)
test_pairs, test_scores = pairs(400, seed=1)
for (first, second), score in list(zip(train_pairs, train_scores, strict=True))[:3]:
    print(f"{score:.0f}: {first}\n   {second}")

# %%
# What counting of words gets: the share of words that two sentences have in common, as a
# correlation with the score. It is well above 0, since some pairs do use the same words.


def overlap(first, second):
    first, second = set(first.split()), set(second.split())
    return len(first & second) / len(first | second)


of_words = np.array([overlap(*pair) for pair in test_pairs])
print(f"words in common: correlation {np.corrcoef(of_words, test_scores)[0, 1]:.3f}")

# %%
# Being alike has no direction, and a GPT reads from left to right. So a pair is read in both
# orders, ``[start] a [delimiter] b [classify]`` and ``[start] b [delimiter] a [classify]``, and the
# two states are added before the map (GPT-1, section 3.3): the answer for (a, b) is the one for (b,
# a), exactly.
#
# .. math:: \hat y = (h^{ab} + h^{ba}) W

tokenizer = kgpt.Tokenizer.train([text for pair in train_pairs for text in pair], 350)
batches = {"tokenizer": tokenizer, "sequence_length": 64, "batch_size": 64}
middle = 2.0  # scores are 0 to 4
train = kgpt.data.regression(train_pairs, train_scores - middle, seed=0, **batches)
valid = kgpt.data.regression(test_pairs, test_scores - middle, seed=None, **batches)
x, y = next(iter(train))[:2]
print({name: np.shape(array) for name, array in x.items()}, np.shape(y))  # two orders for each

similarity = make(both_orders=True)
similarity.compile(kgpt.recipes.fast_optimizer(PAIR_EPOCHS * len(train), learning_rate=5e-3))
similarity.fit(train, validation_data=valid, epochs=PAIR_EPOCHS, verbose=0)
similarity.save(RUN / "similarity.keras")
predicted = similarity.predict(valid, verbose=0)[:, 0] + middle
print(f"the model: correlation {np.corrcoef(predicted, test_scores)[0, 1]:.3f}")

# %%
# Nobody told it that a physician is a doctor: it has seen which words make no difference to the
# score. The left picture is counting, the right one the model; each dot is a pair.

figure, (left, right) = plt.subplots(1, 2, figsize=(9, 4), layout="constrained")
jitter = np.random.default_rng(0).uniform(-0.15, 0.15, len(test_scores))
for axes, values, name in ((left, of_words, "words in common"), (right, predicted, "predicted")):
    axes.plot(test_scores + jitter, values, ".", color="#0072B2", alpha=0.5)
    axes.set(xlabel="shared meanings", ylabel=name)
figure.savefig(RUN / "similarity.png", dpi=120)

# %%
# One cloud above each score, at its height: the model reads all four slots. After fewer epochs
# there are two clouds above one score, a meaning apart: a slot that it does not read yet.
#
# Both orders give the same number:

first, second = "the kid wants a hat at the shop", "the child desires a cap at the store"
there, back = similarity.predict_text([(first, second), (second, first)])
print(f"{float(np.squeeze(there)) + middle:.4f} and, the other way round, "
      f"{float(np.squeeze(back)) + middle:.4f}")  # fmt: skip

# %%
# Without labels
# --------------
#
# With no scores to learn from, there is ``lm.embed``: a vector for each text from a language model,
# to be compared by cosine. From a model as small as ours expect little; the models that are made
# for it are trained on pairs, as the one above.
#
# Things to try
# -------------
#
# - Your own table: ``kgpt.data.regression(frame["text"], frame["stars"], tokenizer)``.
# - ``lm_loss_weight=0.5``, the default: what does the second loss do to the first epochs?
# - Leave the word "attorney" out of training, and ask for it.
# - Two outputs, the sine and cosine of the time as an angle: ``num_outputs=2``. Does 0:05 still lie
#   far from 23:55?
#
# Next: ``examples/entailment_and_choice.py`` asks whether a sentence follows from others, and which
# of four ends is a story's.
