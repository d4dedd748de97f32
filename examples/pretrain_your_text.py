r"""
Pretrain on a text of your own
==============================

In the end you have a GPT that has read one book, writes like it, and lies in one file, with the
figures that say how well it reads. The book is the manual that every Python carries for its
``help()``, 400,000 characters of English and of code; put your own file or folder in its
place. On the way the run is interrupted, as long runs are, and goes on.

It takes about three minutes on 2 cores and needs no download.
"""

import os

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")  # no remarks of TensorFlow's on the machine

import lzma
import signal
from pathlib import Path

import keras
import numpy as np

import kgpt

SOURCE = None  # Path("my_book.txt"), Path("my_notes/"); None is Python's manual
STEPS = 600  # batches to train on; on a GPU 5000
SIZE = {"num_layers": 4, "num_heads": 4, "hidden_dim": 128}  # on a GPU 6, 6 and 384
VOCABULARY = 2048
CONTEXT = 128
BATCH = 16
RUN = Path("runs/pretrain_your_text")

RUN.mkdir(parents=True, exist_ok=True)

# %%
# The text
# --------
#
# Three kinds of text are common, and each needs one line:
#
# - a book is a file: ``Path("my_book.txt")``, also compressed (``.gz``, ``.xz``, ``.bz2``);
# - a folder, with all text files below it: ``Path("my_notes/")``, each file one document;
# - a table, ``.csv``, ``.jsonl`` or ``.parquet``, of which one column is text:
#   ``kgpt.data.read_texts("reviews.csv", column="review")``, each row one document.
#
# A ``Path`` is a place on the disk and a ``str`` is a text, so that nobody trains on a file's name
# by mistake. Here the manual's chapters become a folder of 79 files or so. Some paragraphs stand in
# several chapters; they are kept once, or what we hold out later would stand in the training text.

if SOURCE is None:
    from pydoc_data.topics import topics

    SOURCE = RUN / "manual"
    SOURCE.mkdir(exist_ok=True)
    seen = set()
    for name, chapter in topics.items():
        paragraphs = [paragraph for paragraph in chapter.split("\n\n") if paragraph not in seen]
        seen.update(paragraphs)
        (SOURCE / f"{name}.txt").write_text("\n\n".join(paragraphs), encoding="utf-8")

files = [SOURCE] if SOURCE.is_file() else sorted(SOURCE.rglob("*.txt"))
text = "\n".join(file.read_text(encoding="utf-8") for file in files)
print(f"{len(files)} files, {len(text):,} characters. A piece from the middle:\n")
print(text[len(text) // 2 :][:400])

# %%
# Text becomes tokens
# -------------------
#
# The tokenizer learns which pieces of text are frequent. How many pieces? Each needs a vector,
# which is learned only from the places where the piece occurs. In a text of 400,000 characters the
# rarer half of 2,048 pieces occurs less than 25 times each; more pieces would be rarer still. Texts
# of many megabytes bear 8,000 to 50,000 tokens, and then a token covers more text.

tokenizer = kgpt.Tokenizer.train(files, vocabulary_size=VOCABULARY)
tokenizer.save(RUN / "tokenizer.json")
ids = np.array(tokenizer.encode(text))
counts = np.sort(np.bincount(ids, minlength=tokenizer.vocabulary_size))[::-1]
print(f"{tokenizer.vocabulary_size:,} tokens, {len(text) / len(ids):.2f} characters in each")
for rank in (1, 10, 100, len(counts) // 2, len(counts) * 3 // 4):
    print(f"the token of rank {rank:>5} occurs {counts[rank - 1]:>6,} times")

# %%
# The tokens go to one file on disk, which is read part by part and never whole: a text of
# many gigabytes takes the same lines. A tenth of the documents is held out. The model never trains
# on it, and so its loss there says what the model has learned and not what it knows by heart.

tokens = kgpt.data.write_tokens(
    files, tokenizer, RUN / "tokens.npy", validation_fraction=0.1, progress=False
)
print(f"{tokens.num_tokens:,} tokens to train on, {tokens.num_validation_tokens:,} held out")

# %%
# Look at a batch before you make a model: most faults of training are faults of its data.
#
# A *window* is ``CONTEXT`` tokens cut from the stream, and its targets are the same tokens moved on
# by one, so a window holds as many predictions as tokens. 128 tokens are about 450 characters here:
# a paragraph. A longer context sees more and costs more.

windows = {"sequence_length": CONTEXT, "batch_size": BATCH}
train = kgpt.data.windows(tokens.path, seed=0, **windows)
valid = kgpt.data.windows(tokens.validation_path, **windows)
inputs, targets = next(iter(train))[:2]
inputs = inputs["token_ids"]
print("inputs ", inputs.shape, inputs[0, :8])
print("targets", targets.shape, targets[0, :8])
print(repr(tokenizer.decode(inputs[0, :40].tolist())))
print(f"{len(train)} batches are one pass over the text; {STEPS} steps read it "
      f"{STEPS / len(train):.1f} times")  # fmt: skip

# %%
# The model, and a run that may be interrupted
# --------------------------------------------
#
# All that makes the run stands in one function. A process that is started again begins from
# nothing, calls this function, and goes on from the checkpoint; nothing else is needed to resume.
#
# - The rate: small models take large ones, 2e-3 here against 2.5e-4 for GPT-1. It rises over the
#   first tenth of the steps and falls to 0 on a cosine.
# - Dropout 0.1, since the text is read several times. With more text than steps it is better at 0.
# - ``save_freq``: what a crash may cost.


def make():
    keras.utils.set_random_seed(0)
    backbone = kgpt.GPTBackbone(
        tokenizer.vocabulary_size, max_sequence_length=CONTEXT, dropout=0.1, **SIZE
    )
    lm = kgpt.CausalLM(backbone, tokenizer=tokenizer)
    lm.compile(kgpt.recipes.pretraining_optimizer(STEPS, learning_rate=2e-3, weight_decay=0.1))
    return lm


def pretrain(lm, *callbacks):
    epochs = min(6, STEPS)
    checkpoint = kgpt.callbacks.ResumableCheckpoint(
        RUN / "checkpoints", save_freq=max(1, STEPS // 12), on_mismatch="restart"
    )
    return lm.fit(
        kgpt.data.windows(tokens.path, seed=0, repeat=True, **windows),
        validation_data=valid,
        epochs=epochs,
        steps_per_epoch=STEPS // epochs,
        callbacks=[*callbacks, checkpoint],
        verbose=2,
    )


lm = make()
before = lm.evaluate(valid, return_dict=True, verbose=0)
print(f"{lm.count_params():,} parameters")

# %%
# The interruption is a real one: a callback presses Ctrl-C in the middle of an epoch. The step
# ends, the run is saved, and Python stops. (A run that is complete already, since you have started
# this script before, is only restored.)


class Interruption(keras.callbacks.Callback):
    """Sends this process the signal of Ctrl-C after some steps."""

    def __init__(self, steps):
        super().__init__()
        self.steps_left = steps

    def on_train_batch_end(self, batch, logs=None):
        self.steps_left -= 1
        if self.steps_left == 0:
            signal.raise_signal(signal.SIGINT)


try:
    pretrain(lm, Interruption(STEPS * 2 // 5))
except KeyboardInterrupt:
    print("Interrupted.")

# %%
# Now everything is made anew, as by a new process, and ``fit`` goes on in the middle of the epoch
# in which it stopped, with the batch that is next. The result is that of a run that was never
# interrupted, to the last bit.

lm = make()
history = pretrain(lm)
lm.save(RUN / "lm.keras")

# %%
# The history is that of the whole run.

figure = kgpt.plot.training_curves(
    history, RUN / "curves.png", steps_per_epoch=max(1, STEPS // min(6, STEPS))
)
figure

# %%
# What perplexity says
# --------------------
#
# The loss is the mean of :math:`-\log P` of each token that came. Its exponential, the
# *perplexity*, is easier to imagine: a model of perplexity 30 is as uncertain, on average, as
# somebody who chooses among 30 tokens of the same probability.
#
# .. math:: \text{perplexity} = \exp\Big(-\frac{1}{n} \sum_i \log P(t_i \mid t_1 \dots t_{i-1})\Big)
#
# To be more than a number it needs two to stand beside: a model that knows nothing, and one that
# knows how frequent each token is, and nothing of the order.

held_out = np.load(tokens.validation_path)
frequency = np.bincount(np.load(tokens.path), minlength=tokenizer.vocabulary_size) + 1
counting = np.exp(-np.log(frequency / frequency.sum())[held_out].mean())
after = lm.evaluate(valid, return_dict=True, verbose=0)
print(f"knows nothing       {tokenizer.vocabulary_size:>8,}")
print(f"before training     {before['perplexity']:>8,.0f}")
print(f"knows frequencies   {counting:>8,.0f}")
print(f"after training      {after['perplexity']:>8,.1f}   loss {after['loss']:.3f} nats per token")

# %%
# Perplexities compare models of *one* vocabulary only, since with longer tokens each is harder to
# guess. Between vocabularies compare bits per character, in which the tokens are gone. A compressor
# has such a number too, since to compress is to predict: ``lzma``, which has the training text at
# hand, must write down the held-out one. On so little text it is a strong rival: it forgets
# nothing.

held_out_text = tokenizer.decode(held_out.tolist()).replace("<|endoftext|>", "")
training_text = tokenizer.decode(np.load(tokens.path).tolist()).replace("<|endoftext|>", "")
lengths = [len(lzma.compress(t.encode())) for t in (training_text, training_text + held_out_text)]
of_lzma = 8 * (lengths[1] - lengths[0]) / len(held_out_text)
of_model = after["loss"] * len(held_out) / np.log(2) / len(held_out_text)
print(f"bits per character: lzma {of_lzma:.2f}, the model {of_model:.2f}")

# %%
# The mean hides where the model is sure and where it is not. Each token's own bits, in a passage
# that it has never read: the ends of words are easy, and so is what this manual repeats; the
# beginnings of words that carry the meaning are hard.

passage = held_out[: min(90, CONTEXT)].tolist()
figure = kgpt.plot.surprise(lm, passage, html=RUN / "surprise.html")
figure.savefig(RUN / "surprise.png", dpi=120)
figure

# %%
# ``surprise.html`` beside it is a page: point at a word and see what the model expected there.
#
# What it writes
# --------------
#
# ``keras.models.load_model`` gets the model in any process that has imported kgpt, with its
# tokenizer.

lm = keras.models.load_model(RUN / "lm.keras")
for prompt in ('The "with" statement', "If the object is", "A class definition"):
    print("---", lm.generate(prompt, max_new_tokens=60, top_p=0.9, temperature=0.6, seed=1), "\n")

# %%
# The words and the manner are the manual's, sense is not there: for that, a model must be larger
# and read more than a book. That is what weights of others are for
# (``examples/from_openais_weights.py``).
#
# Things to try
# -------------
#
# - ``SOURCE = Path("my_book.txt")``. A megabyte of text is a good beginning.
# - Halve the vocabulary and compare bits per character, then perplexity. Which of them can you
#   believe?
# - ``STEPS = 2400``: the training loss goes on falling, and validation does not. That gap is what
#   the held-out text is for. What does ``dropout=0.3`` do to it?
# - Kill the script with Ctrl-C, or pull the plug, and start it again.
#
# Next: ``examples/how_to_write.py`` asks this model for text in all the ways there are.
