r"""
Prompt and completion
=====================

Much of what language models are used for is of one form: given this, write that. In the end you
have a model that reads a date as people write it and writes it as a computer wants it, which says
when it is not sure; and you know what it learns from, which is the completion alone.

It takes two minutes on 2 cores and needs no download.
"""

import os

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")  # no remarks of TensorFlow's on the machine

import datetime
import random
from pathlib import Path

import keras
import matplotlib.pyplot as plt
import numpy as np

import kgpt

EXAMPLES = 5000
EPOCHS = 8
SIZE = {"num_layers": 3, "num_heads": 4, "hidden_dim": 96}
RUN = Path("runs/prompt_and_completion")

RUN.mkdir(parents=True, exist_ok=True)
keras.utils.set_random_seed(0)

# %%
# The data: what goes in, what should come out
# --------------------------------------------
#
# Two lists of text. The task is a real nuisance: dates in a column, each typed as somebody liked.

ENDINGS = {1: "st", 2: "nd", 3: "rd", 21: "st", 22: "nd", 23: "rd", 31: "st"}
MONTHS = ["January", "February", "March", "April", "May", "June", "July", "August"]
MONTHS += ["September", "October", "November", "December"]


def as_people_write(day, generator):
    month, ending = MONTHS[day.month - 1], ENDINGS.get(day.day, "th")
    forms = [
        f"{day.day} {month} {day.year}",
        f"{month} {day.day}, {day.year}",
        f"the {day.day}{ending} of {month} {day.year}",
        f"{day.day}.{day.month}.{day.year}",
        f"{month[:3]} {day.day}{ending} {day.year}",
        f"{day.day:02}-{month[:3].upper()}-{day.year}",
    ]
    return generator.choice(forms)


def dates(count, seed):
    """Prompts and completions. `->` and the space after it say where the answer begins."""
    generator = random.Random(seed)
    first = datetime.date(1900, 1, 1)
    days = [first + datetime.timedelta(generator.randrange(365 * 150)) for _ in range(count)]
    return [f"{as_people_write(day, generator)} ->" for day in days], [f" {day}" for day in days]


prompts, completions = dates(EXAMPLES, seed=0)
test_prompts, test_completions = dates(400, seed=1)
for prompt, completion in list(zip(prompts, completions, strict=True))[:5]:
    print(prompt + completion)

# %%
# Where does the space belong? Prompt and completion are encoded one by one, and in this vocabulary
# a word begins with its space. So it is the completion that begins with one, and the prompt ends
# without. The other way round, the model would learn to continue a prompt that nobody types.
#
# The vocabulary is small on purpose: most dates are new, so they should be read in pieces that many
# dates share, ``196`` and ``9`` and not ``1969``.

tokenizer = kgpt.Tokenizer.train([*prompts, *completions], vocabulary_size=320)
for text in (prompts[0], completions[0]):
    print([tokenizer.decode([token]) for token in tokenizer.encode(text)])

# %%
# What is learned, and what is not
# --------------------------------
#
# The loss counts the completion and the end of text after it, by a weight for each token. The
# prompt is what the user will give: the model must read it, and need not be able to write it. The
# end of text is learned too, or the model would never stop.

batches = {"tokenizer": tokenizer, "sequence_length": 64, "batch_size": 64}
train = kgpt.data.completions(prompts, completions, seed=0, **batches)
valid = kgpt.data.completions(test_prompts, test_completions, seed=None, **batches)
x, y, weights = next(iter(train))
print("token_ids", x["token_ids"].shape, " y", y.shape, " weights", weights.shape)
for token, target, weight in zip(x["token_ids"][0], y[0], weights[0], strict=True):
    read, expected = (tokenizer.decode([int(one)]) for one in (token, target))
    print(f"{read!r:>12} -> {expected!r:<18}" + ("learned" if weight else ""))
    if target == tokenizer.end_of_text_id:
        break

# %%
# Is it worth while to leave out the prompt? Both ways are trained, from the same start, and judged
# on completions alone.


def fit(prompt_weight):
    keras.utils.set_random_seed(0)
    backbone = kgpt.GPTBackbone(
        tokenizer.vocabulary_size, max_sequence_length=64, dropout=0.0, **SIZE
    )
    lm = kgpt.CausalLM(backbone, tokenizer=tokenizer)
    train = kgpt.data.completions(
        prompts, completions, seed=0, prompt_weight=prompt_weight, **batches
    )
    lm.compile(kgpt.recipes.pretraining_optimizer(EPOCHS * len(train), learning_rate=3e-3))
    history = lm.fit(train, validation_data=valid, epochs=EPOCHS, verbose=0)
    return lm, history.history["val_loss"]


_, with_prompt = fit(prompt_weight=1.0)
lm, completion_alone = fit(prompt_weight=0.0)
lm.save(RUN / "dates.keras")

figure, axes = plt.subplots(figsize=(6, 3.5), layout="constrained")
epochs = np.arange(1, EPOCHS + 1)
axes.plot(epochs, with_prompt, "o--", color="#D55E00", label="prompt and completion learned")
axes.plot(epochs, completion_alone, "o-", color="#0072B2", label="completion alone")
axes.set(xlabel="epochs", ylabel="loss of completions", yscale="log")
axes.legend()
figure.savefig(RUN / "prompt_weight.png", dpi=120)

# %%
# Here it hardly matters: prompts and completions share their words, and what is learned of the one
# helps with the other. Where prompts are long and of another kind than completions, most of the
# loss would be theirs. ``prompt_weight`` between 0 and 1 is a way between. Measure it, as here.
#
# Right or wrong
# --------------
#
# A loss is no answer. The likeliest text (``"greedy"``: there is one right answer) is compared with
# what it should be, letter by letter. Many prompts at once are one batch, and fast.

answers, logs = lm.generate(
    test_prompts, 16, sampler="greedy", return_prompt=False, return_log_probabilities=True
)
is_right = np.array([a == c for a, c in zip(answers, test_completions, strict=True)])
print(f"{is_right.mean():.1%} of {len(answers)} new dates exactly right")
for i in np.flatnonzero(~is_right)[:5]:
    print(f"{test_prompts[i]}{answers[i]}, should be{test_completions[i]}")

# %%
# When is it sure?
# ----------------
#
# The model's own log-probability of each token it wrote comes with the answer, and their sum is
# that of the whole answer. Take what it is sure of, and let a human see the rest: how much remains?

sure = np.exp([sum(of_tokens) for of_tokens in logs])
for least in (0.0, 0.5, 0.9, 0.97):
    taken = sure >= least
    share = is_right[taken].mean() if taken.any() else float("nan")
    print(
        f"at least {least:.0%} sure: {taken.mean():4.0%} of the answers, {share:.1%} of them right"
    )

# %%
# And what it has never seen? A form that was not in the data, and what is no date at all.

odd = [
    "1969, July 20th ->",
    "20 Juli 1969 ->",
    "20/7/1969 ->",
    "31 February 2001 ->",
    "tomorrow ->",
]
answers, logs = lm.generate(
    odd, 16, sampler="greedy", return_prompt=False, return_log_probabilities=True
)
for prompt, answer, of_tokens in zip(odd, answers, logs, strict=True):
    print(f"{prompt}{answer}   {np.exp(sum(of_tokens)):.0%} sure")

# %%
# It always answers, since answers are all that it has seen. It is unsure where a text looks like
# nothing in the data, and sure where it looks familiar, the thirty-first of February included:
# nobody told it how long a month is. If "no date" is a possible answer, it must be in the data.
#
# Several turns
# -------------
#
# ``kgpt.data.conversations`` is the same for more than two pieces, each marked as learned or not:
# question, answer, question, answer. A language model of GPT-2's size follows such turns after a
# few thousand of them.

talk = [("20 July 1969 ->", False), (" 1969-07-20", True)]
talk += [("\n1.8.1914 ->", False), (" 1914-08-01", True)]
x, y, weights = next(iter(kgpt.data.conversations([talk], **batches)))
learned = [tokenizer.decode([int(token)]) for token in y[0][weights[0] > 0]]
print("learned:", "".join(learned))

# %%
# Things to try
# -------------
#
# - Your own two columns, a CSV with ``pandas``: ``kgpt.data.completions(frame["in"], frame["out"],
#   tokenizer)``.
# - Start from GPT-2 (``kgpt.CausalLM.from_preset("gpt2")``, rate 5e-5) and give it 200 examples.
# - Put "no date" into the data: a tenth of the prompts are words, and the completion is `` none``.
# - Ask for the day of the week as well. Can a model of this size learn that at all?
#
# Next: ``examples/why_pretraining_pays.py`` asks what a body that has read plain text is worth.
