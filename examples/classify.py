r"""
Fine-tune a classifier
======================

In the end you have a classifier of texts, know how good it is beside simpler ones, which classes it
takes for which, and the mistakes that it was surest of, which tell more about the data than
any score. The task is real: the first paragraph of a docstring, and which package of Python's
standard library it was written for.

It takes two minutes on 2 cores and needs no download. Its body is the model of
``examples/pretrain_your_text.py``, which it trains if it is not there, in three more.
"""

import os

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")  # no remarks of TensorFlow's on the machine

import ast
import collections
import random
import runpy
from pathlib import Path

import keras
import numpy as np

import kgpt

MODEL = Path("runs/pretrain_your_text/lm.keras")  # or a model of your own
EPOCHS = 5
CLASSES = 8
EXAMPLES = 4000  # at most
RUN = Path("runs/classify")

if not MODEL.exists():
    runpy.run_path(str(Path(kgpt.__file__).parents[1] / "examples/pretrain_your_text.py"))
RUN.mkdir(parents=True, exist_ok=True)
keras.utils.set_random_seed(0)

# %%
# The data, looked at
# -------------------
#
# Labelled text is two lists, texts and the names of their classes; here they come out of the source
# code of the standard library. Columns of a table do as well:
# ``frame["review"], frame["stars"]``.


def docstrings(file):
    """Yields the first paragraph of each docstring in a file of Python."""
    for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
            paragraph = (ast.get_docstring(node) or "").split("\n\n")[0]
            if 20 < len(paragraph) < 160:  # a sentence or two
                yield " ".join(paragraph.split())


library = Path(ast.__file__).parent
found = collections.defaultdict(set)  # docstring -> the packages that have it
for file in kgpt.data.standard_library_files():
    folder = file.relative_to(library).parts[0]
    if (library / folder).is_dir():
        for text in docstrings(file):
            found[text].add(folder)
examples = sorted((text, *packages) for text, packages in found.items() if len(packages) == 1)
sizes = collections.Counter(label for _, label in examples).most_common(CLASSES)
class_names = sorted(label for label, _ in sizes)
examples = [(text, label) for text, label in examples if label in class_names]
random.Random(0).shuffle(examples)
examples = examples[:EXAMPLES]
print(f"{len(examples)} examples:", dict(sizes), "\n")
for text, label in examples[:4]:
    print(f"{label:>16}: {text[:90]}")

# %%
# A fifth is kept for the judgement. What the model was trained on it may know by heart.

number = len(examples) // 5
valid_texts, valid_labels = map(list, zip(*examples[:number], strict=True))
train_texts, train_labels = map(list, zip(*examples[number:], strict=True))

# %%
# What is it worth to beat?
# -------------------------
#
# Two baselines before any network, since a score alone says nothing: the largest class for
# everything, and naive Bayes, which counts words. If a model of ours does not beat the counting of
# words, use that.


def words(text):
    return set(text.lower().replace(".", " ").replace("(", " ").split())


in_class = collections.Counter(train_labels)
with_word = collections.Counter(
    (word, label)
    for text, label in zip(train_texts, train_labels, strict=True)
    for word in words(text)
)


def naive_bayes(text):
    def score(label):
        of_words = (with_word[w, label] + 0.1 for w in words(text))
        return np.log(in_class[label]) + sum(np.log(n / in_class[label]) for n in of_words)

    return max(class_names, key=score)


def accuracy(predictions):
    return np.mean([p == label for p, label in zip(predictions, valid_labels, strict=True)])


results = {
    "largest class": accuracy([in_class.most_common(1)[0][0]] * number),
    "naive Bayes": accuracy([naive_bayes(text) for text in valid_texts]),
}
print({name: f"{score:.1%}" for name, score in results.items()})

# %%
# From a body to a classifier
# ---------------------------
#
# The head is one linear map. The text goes in as ``[start] text [classify]``, and the map reads the
# state of the last token, the only one that has seen the whole text (GPT-1, section 3.2):
#
# .. math:: P(y \mid t_1 \dots t_n) = \text{softmax}(h_n W) \qquad \text{(equation 3)}
#
# The loss is the classes' cross-entropy and, at half weight, the language model's own: it keeps the
# body a reader of such text while it learns (equation 5).

lm = keras.models.load_model(MODEL)
batches = {"tokenizer": lm.tokenizer, "sequence_length": 128, "batch_size": 32}
train = kgpt.data.classification(
    train_texts, train_labels, class_names=class_names, seed=0, **batches
)
valid = kgpt.data.classification(
    valid_texts, valid_labels, class_names=class_names, seed=None, **batches
)
inputs, labels = next(iter(train))[:2]
print({name: array.shape for name, array in inputs.items()}, labels.shape)
row = inputs["token_ids"][0][inputs["padding_mask"][0].astype(bool)]  # without its padding
print([lm.tokenizer.decode([token]) for token in row], class_names[labels[0]])

# %%
# A batch is as long as its longest text, and texts of similar length come together, so that little
# is spent on padding. The rate, 1e-3, is for a small body; for GPT-1's, the paper's 6.25e-5 is the
# recipe's default: the larger the body and the more it knows, the more gently it is moved.
#
# To see what reading a book beforehand is worth, the same is done with a body that has read
# nothing.


def fine_tune(backbone):
    classifier = kgpt.TextClassifier(
        backbone, class_names=class_names, tokenizer=lm.tokenizer, lm_loss_weight=0.5
    )
    classifier.compile(kgpt.recipes.finetuning_optimizer(EPOCHS * len(train), learning_rate=1e-3))
    history = classifier.fit(train, validation_data=valid, epochs=EPOCHS, verbose=0)
    print("accuracy after each epoch:", *(f"{a:.1%}" for a in history.history["val_accuracy"]))
    return classifier


fresh = fine_tune(kgpt.GPTBackbone.from_config(lm.backbone.get_config()))
classifier = fine_tune(lm.backbone)
classifier.save(RUN / "classifier.keras")
results["no pretraining"] = fresh.evaluate(valid, return_dict=True, verbose=0)["accuracy"]
results["pretrained"] = classifier.evaluate(valid, return_dict=True, verbose=0)["accuracy"]
for name, score in results.items():
    error = 1.96 * np.sqrt(score * (1 - score) / number)
    print(f"{name:>16}: {score:.1%} +- {error:.1%}")

# %%
# The plus-minus is what chance does to a share of so few examples: two scores within it are not
# different. Look at it before you believe an improvement. Here it says that nothing has beaten the
# counting of words: in so few and so short texts, single words say it all. Of the two networks, the
# one that has read a book learns sooner, as its first epochs show, and ends a little ahead, by not
# much more than the plus-minus. One book is little; a body that has read millions of pages is
# another thing (``examples/from_openais_weights.py``).
#
# Which is taken for which
# ------------------------
#
# A row is the right class, a column what the model said. Look off the diagonal: packages that do
# similar things are taken for each other, in both directions; a column that is full everywhere is a
# class that the model falls back on.

logits = classifier.predict(valid, verbose=0)  # (examples, classes), in the order of valid_texts
right = np.array([class_names.index(label) for label in valid_labels])
figure = kgpt.plot.confusion_matrix(right, logits, class_names)
figure.savefig(RUN / "confusion.png", dpi=120)
figure

# %%
# The surest mistakes
# -------------------
#
# Where the model is sure and wrong, look at the examples one by one. Most of what is wrong with a
# data set shows here: texts that say nothing about their class, labels that are wrong, classes that
# overlap.

probabilities = keras.ops.convert_to_numpy(keras.ops.softmax(logits))
surety, predicted = probabilities.max(axis=-1), probabilities.argmax(axis=-1)
wrong = np.flatnonzero(predicted != right)
for i in wrong[np.argsort(-surety[wrong])][:8]:
    print(f"{surety[i]:.0%} sure of {class_names[predicted[i]]}, is {class_names[right[i]]}:")
    print(f"    {valid_texts[i][:100]}")

# %%
# And is it right as often as it is sure? If it is not, do not take its probabilities at their word:
# small sets make a model too sure of itself.

for low, high in ((0.0, 0.5), (0.5, 0.8), (0.8, 0.95), (0.95, 1.01)):
    inside = (surety >= low) & (surety < high)
    if inside.any():
        share = (predicted == right)[inside].mean()
        print(f"sure to {low:.0%}-{min(high, 1):.0%}: {inside.sum():>4} texts, {share:.0%} right")

# %%
# Use it
# ------
#
# The file is whole: the tokenizer and the names of the classes are in it.

classifier = keras.models.load_model(RUN / "classifier.keras")
texts = [
    "Return the widget's width in pixels.",
    "Wait until the coroutine is done, or the timeout is over.",
    "Parse the headers of a message.",
]
for text, name in zip(texts, classifier.predict_text(texts), strict=True):
    print(f"{name:>16}: {text}")

# %%
# Things to try
# -------------
#
# - Your own two lists. With a few hundred examples, start from OpenAI's weights
#   (``kgpt.TextClassifier.from_preset("gpt2", class_names=...)``).
# - A rare class is forgotten: ``classifier.fit(train, class_weight={"name": 3.0}, ...)``.
# - ``lm_loss_weight=0``: is the second loss worth its time here?
# - Give ``EPOCHS = 20`` and ``keras.callbacks.EarlyStopping("val_accuracy",
#   restore_best_weights=True)``.
#
# Next: ``examples/regression_and_similarity.py`` predicts numbers, and how alike two texts are.
