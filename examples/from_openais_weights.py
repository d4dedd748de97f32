r"""
Start from OpenAI's weights
===========================

In the end you have talked to GPT-2, which has read eight million web pages, taught it a manner of
your own by training one weight in a hundred, and kept that manner in a file of a few megabytes.

The first run downloads GPT-2's weights and vocabulary once, half a gigabyte, from the Hugging Face
hub, and takes about six minutes on 2 cores. Without a network the same lines go on with the model
of ``examples/pretrain_your_text.py``, which is trained if it is not there; then it takes three
minutes, and what it says makes less sense.
"""

# Needs: pip install safetensors huggingface_hub

import os

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")  # no remarks of TensorFlow's on the machine

import ast
import random
import runpy
from pathlib import Path

import keras

import kgpt

WEIGHTS = "gpt2"  # or "gpt1", "gpt2_medium", "gpt2_large", "gpt2_xl", "hf://name/of-a-gpt2"
BODY = Path("runs/pretrain_your_text/lm.keras")  # without a network
STEPS = 100  # of 8 texts, for GPT-2; on a GPU 2000
CONTEXT = 96
RUN = Path("runs/from_openais_weights")

RUN.mkdir(parents=True, exist_ok=True)
keras.utils.set_random_seed(0)

# %%
# One line
# --------
#
# ``from_preset("gpt2")`` fetches three files, 548 MB of weights, the vocabulary and a few numbers,
# into the hub's cache (``~/.cache/huggingface``), reads them tensor by tensor, and needs neither
# PyTorch nor transformers. The model is a ``CausalLM`` like any other.


def load():
    try:
        return kgpt.CausalLM.from_preset(WEIGHTS), WEIGHTS
    except (OSError, ImportError) as error:  # no network, or no package to fetch with
        reason = str(error).partition(". ")[0]
        print(f"{type(error).__name__}: {reason}.\nGoing on with {BODY}.")
    if not BODY.exists():
        runpy.run_path(str(Path(kgpt.__file__).parents[1] / "examples/pretrain_your_text.py"))
    return keras.models.load_model(BODY), "the small model"


lm, name = load()
print(f"{name}: {lm.count_params():,} parameters, {lm.backbone.num_layers} blocks of width "
      f"{lm.backbone.hidden_dim}, {lm.tokenizer.vocabulary_size:,} tokens")  # fmt: skip

# %%
# Talk to it
# ----------
#
# GPT-2 is no assistant: nobody taught it to answer. It goes on with the text that it is given, so
# one asks by writing the beginning of a text in which the answer comes next. What does it expect?

kgpt.plot.next_tokens(lm, "The capital of France is", k=8)

# %%
for prompt in (
    "The capital of France is",
    "Q: What is a compiler?\nA:",
    "English: cheese. French: fromage.\nEnglish: house. French: maison.\nEnglish: book. French:",
):
    print("---", lm.generate(prompt, max_new_tokens=25, top_p=0.9, temperature=0.5, seed=0), "\n")

# %%
# The third prompt shows what made GPT-2 famous: a task, given by two examples in the prompt,
# without any training. With the small model it does not work; with ``"gpt2_xl"`` it works often.
#
# A manner of your own
# --------------------
#
# Now it shall write docstrings: a function in Python goes in, its one line of documentation comes
# out. The standard library has thousands of such pairs. (GPT-2 has seen code, but does not know
# that this is what is asked of it.)


def pairs():
    """Yields functions with a docstring of one line, without it, and the line."""
    for file in kgpt.data.standard_library_files():
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
            if isinstance(node, ast.FunctionDef) and len(node.body) > 1:
                docstring = ast.get_docstring(node) or ""
                arguments = ", ".join(argument.arg for argument in node.args.args)
                if 15 < len(docstring) < 80 and len(arguments) < 40 and "\n" not in docstring:
                    yield f'def {node.name}({arguments}):\n    """', docstring


examples = sorted(set(pairs()))
random.Random(0).shuffle(examples)
test, train = examples[:100], examples[100:]
print(f"{len(train)} examples, such as\n")
for prompt, completion in train[:2]:
    print(f'{prompt}{completion}"""\n')

batches = {"tokenizer": lm.tokenizer, "sequence_length": CONTEXT, "batch_size": 8}
train_batches = kgpt.data.completions(*zip(*train, strict=True), seed=0, repeat=True, **batches)
test_batches = kgpt.data.completions(*zip(*test, strict=True), seed=None, **batches)

# %%
# LoRA: train what is added, not what is there
# --------------------------------------------
#
# To train all of GPT-2 takes memory for 124 million weights, their gradients, and two averages of
# each. LoRA leaves every matrix as it is and learns a small one beside it, the product of two thin
# ones of rank :math:`r`, whose sum with it acts:
#
# .. math:: W + \frac{\alpha}{r} A B, \qquad A: d \times r, \quad B: r \times d'
#
# ``B`` begins at 0, so at first nothing has changed. Rank 8 is enough for a manner; new knowledge
# needs more.

before = lm.count_params()
lm.enable_lora(8)
trained = sum(int(keras.ops.size(weight)) for weight in lm.trainable_variables)
print(f"{trained:,} weights are trained, {trained / before:.1%} of {before:,}")

# %%
# A higher rate than for training everything is right, 1e-3 here, since the additions begin at
# nothing and the rest can't be spoilt.

steps = STEPS if name == WEIGHTS else 4 * STEPS  # the small model needs more, and is fast
lm.compile(kgpt.recipes.pretraining_optimizer(steps, learning_rate=1e-3, weight_decay=0.0))
untaught = lm.evaluate(test_batches, return_dict=True, verbose=0)
lm.fit(train_batches, epochs=1, steps_per_epoch=steps, verbose=2)
taught = lm.evaluate(test_batches, return_dict=True, verbose=0)
print(f"perplexity of new docstrings: {untaught['perplexity']:.1f} before, "
      f"{taught['perplexity']:.1f} after")  # fmt: skip

# %%
for prompt, completion in test[:4]:
    print(prompt + lm.generate(prompt, 25, top_p=0.8, temperature=0.3, seed=0, return_prompt=False))
    print(f"# a human wrote: {completion}\n")

# %%
# Keep the manner, not the model
# ------------------------------
#
# The file has the additions alone. A model can have many manners, each in a small file beside the
# one large file that never changes.

lm.save_lora_weights(RUN / "docstrings.lora.h5")
size = (RUN / "docstrings.lora.h5").stat().st_size
print(f"{size / 1e6:.2f} MB; the whole model is {before * 4 / 1e6:.0f} MB")

again, _ = load()
again.enable_lora(8)
again.load_lora_weights(RUN / "docstrings.lora.h5")
prompt = test[0][0]
assert again.generate(prompt, 25, sampler="greedy") == lm.generate(prompt, 25, sampler="greedy")

# %%
# Or add the products to the matrices for good, and have a model without LoRA:

again.merge_lora()
print(again.generate('def is_even(number):\n    """', 25, top_p=0.8, temperature=0.3, seed=0))

# %%
# Things to try
# -------------
#
# - A larger one: ``WEIGHTS = "gpt2_medium"``, 1.5 GB. ``lm.quantize("int8")`` before
#   ``enable_lora`` makes a quarter of it.
# - Rank 1, or only ``target_layer_names=["query", "value"]``: how much is lost?
# - All weights instead: leave ``enable_lora`` out, with a rate of 5e-5. Is it better? What does it
#   forget?
# - A classifier: ``kgpt.TextClassifier.from_preset("gpt2", class_names=[...])``.
#
# Next: ``examples/your_own_parts.py``, for what is not there yet.
