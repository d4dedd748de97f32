"""Trains small models on one and on eight simulated devices; prints what the tests compare.

A process of its own, `python tests/eight_devices.py`: devices are divided before JAX starts.
"""

import importlib.util
import json
import math
import os
import re
import sys
import tempfile
import warnings
from pathlib import Path
from unittest import mock

from xla_flags import XLA_FLAGS

if __name__ == "__main__":  # and not where a test imports the sizes
    os.environ["XLA_FLAGS"] = f"{XLA_FLAGS} --xla_force_host_platform_device_count=8"

import keras
import numpy as np
from data.labelled import TOKENIZER
from keras.src.backend.jax import trainer

import kgpt
from kgpt.callbacks import divided
from kgpt.generation import layout, loop

STEPS, ROWS, LENGTH, VOCABULARY = 50, 16, 12, 120
SIZES = {"vocabulary_size": VOCABULARY, "num_layers": 1, "num_heads": 4, "hidden_dim": 32}
SIZES["max_sequence_length"] = 16
MESHES = {"data": (8,), "fsdp": (8,), "tensor": (2, 4), "tensor_fsdp": (2, 4)}
MOVES = "all-gather|all-reduce|all-to-all|reduce-scatter|collective-permute"


class Recorded:
    """A function that JAX has compiled, which keeps XLA's text."""

    def __init__(self, function, **options):
        self.jitted, self.compiled, self.texts = jit(function, **options), {}, []

    def __call__(self, state, data):
        shapes = str(keras.tree.map_structure(np.shape, data))
        if shapes not in self.compiled:
            self.compiled[shapes] = self.jitted.lower(state, data).compile()
            self.texts.append(self.compiled[shapes].as_text())
        return self.compiled[shapes](state, data)


jit = trainer.jit


def distribution(style, sizes):
    if style is None:
        return None
    mesh = keras.distribution.DeviceMesh(MESHES[style], ("batch", "model")[: len(MESHES[style])])
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        layout_map = kgpt.distribution.layout_map(sizes, mesh, style=style)
    return keras.distribution.ModelParallel(layout_map=layout_map)


def make(kind, sizes, lora=False):
    keras.utils.set_random_seed(0)
    backbone = kgpt.GPTBackbone(**sizes, dropout=0.1)
    if lora:
        backbone.enable_lora(4, target_layer_names=["query", "value", "attention_output"])
    is_lm = kind == "language model"
    model = kgpt.CausalLM(backbone) if is_lm else kgpt.TextClassifier(backbone, num_classes=2)
    model.compile(keras.optimizers.AdamW(3e-3))
    return model


def data(vocabulary):
    """Rows that count up, of 2 to 12 tokens and padding, and whether their first token is odd."""
    rng = np.random.default_rng(0)
    first = rng.integers(0, vocabulary, (STEPS * ROWS, 1))
    ids = ((first + np.arange(LENGTH)) % vocabulary).astype("int32")
    mask = np.arange(LENGTH) < rng.integers(2, LENGTH + 1, (STEPS * ROWS, 1))
    return {"token_ids": ids, "padding_mask": mask}, (first[:, 0] % 2).astype("int32")


def products(text):
    """The multiplications and additions of all matrix products in a compiled step."""
    shapes = {
        name: [int(n) for n in shape.split(",") if n]
        for name, shape in re.findall(r"%([\w.-]+) = \w+\[([\d,]*)\]", text)
    }
    total = 0
    pattern = r"%([\w.-]+) = \S+ dot\(%([\w.-]+), .*?lhs_contracting_dims=\{([\d,]*)\}"
    for name, left, dimensions in re.findall(pattern, text):
        summed = math.prod(shapes[left][int(d)] for d in dimensions.split(","))
        total += 2 * math.prod(shapes[name]) * summed
    return total


def moved(text, how=MOVES):
    """The shapes that are moved between devices."""
    lines = re.findall(rf"= (\S.*?) (?:{how})(?:-start)?\(", text)
    shapes = [shape for line in lines for shape in re.findall(r"\w+\[([\d,]+)\]", line)]
    return [[int(n) for n in shape.split(",")] for shape in shapes]


def nbytes(variables):
    """The bytes of variables on the first device, and of the whole."""
    shards = [v.value.addressable_shards[0].data.nbytes for v in variables]
    return sum(shards), sum(v.value.nbytes for v in variables)


def run(kind, style, steps=STEPS, sizes=SIZES, lora=False, extras=False):
    keras.distribution.set_distribution(distribution(style, sizes))
    model = make(kind, sizes, lora)
    x, labels = data(sizes["vocabulary_size"])
    y = None if kind == "language model" else labels

    def rows(start, stop):
        return {k: v[start:stop] for k, v in x.items()}, None if y is None else y[start:stop]

    batches = [rows(i * ROWS, (i + 1) * ROWS) for i in range(steps)]
    found = {
        "losses": [model.train_on_batch(*batch, return_dict=True)["loss"] for batch in batches]
    }
    [text] = texts_of(model.train_function)
    found |= {"products": products(text), "moved": moved(text)}
    found["gathered"] = moved(text, "all-gather")
    matrices = [v for v in model.trainable_variables if len(v.shape) > 1]
    of_optimizer = [v for v in model.optimizer.variables if len(v.shape) > 1]
    found["matrices"], found["optimizer"] = nbytes(matrices), nbytes(of_optimizer)
    if extras:
        found["evaluate"] = model.evaluate(*rows(0, 32), batch_size=16, verbose=0, return_dict=True)
        found["test products"] = products(texts_of(model.test_function)[0])
    if extras and style in (None, "tensor_fsdp"):
        prompts = [[5, 6, 7], [70, 71, 72, 73, 74]]
        found["generate"] = model.generate(prompts, 5, sampler="greedy", stop_token_ids=None)
        found["score"] = model.score(prompts).tolist()
        found["embed"] = model.embed(prompts).tolist()
    if extras and style in (None, "data"):
        found["generate uneven"] = generate_uneven(model)
    return found


def generate_uneven(model):
    """What three prompts are continued by, to the end, to a stop token and by a search; and rows.

    The rows are those of each batch that is run.
    """
    prompts, rows = [[5, 6, 7], [70, 71, 72, 73, 74], [9]], []

    def lay_out(contexts, slots):
        rows.append(len(contexts))
        return layout.lay_out(contexts, slots)

    loop.lay_out = lay_out
    found = [
        model.generate(prompts, 4, sampler=sampler, stop_token_ids=stop)
        for sampler, stop in (("greedy", None), ("greedy", 8), ("beam", None))
    ]
    loop.lay_out = layout.lay_out
    return found, rows


def run_uneven(style):
    """Batches of seven, four and three rows, which eight devices do not divide; alone, or last."""
    sizes = {**SIZES, "vocabulary_size": TOKENIZER.vocabulary_size}
    keras.distribution.set_distribution(distribution(style, sizes))
    x, labels = data(sizes["vocabulary_size"])
    twelve = {name: rows[:12] for name, rows in x.items()}, labels[:12]
    x, labels = {name: rows[:7] for name, rows in x.items()}, labels[:7]
    weights = np.linspace(0, 2, 7).astype("float32")
    quiet = {"batch_size": 7, "verbose": 0}

    lm = make("language model", sizes)
    found = {"fit": lm.fit(x, sample_weight=weights, epochs=2, shuffle=False, **quiet).history}
    found["evaluate"] = lm.evaluate(x, batch_size=4, verbose=0)
    found["train_on_batch"] = lm.train_on_batch(x, sample_weight=weights)
    found["predict"] = lm.predict(x, **quiet).tolist()
    full_first = {"batch_size": 8, "verbose": 0}
    found["full, then not"] = lm.fit(twelve[0], shuffle=False, **full_first).history
    ids = twelve[0]["token_ids"]
    found["arrays"] = lm.evaluate(ids, **full_first), lm.predict(ids, **full_first).tolist()

    classifier = make("classifier", sizes)
    texts = ["a", "bc", "def", "gh", "i", "jkl", "m"]
    batches = kgpt.data.classification(texts, labels.tolist(), TOKENIZER, 12, 7, seed=0)
    found["kgpt.data"] = classifier.fit(batches, validation_data=batches, verbose=0).history
    found["texts"] = classifier.predict(batches, verbose=0).tolist()
    found["full classifier"] = classifier.fit(*twelve, shuffle=False, **full_first).history
    batches = kgpt.data.classification(texts + texts, [0, 1] * 7, TOKENIZER, 12, 8, seed=None)
    found["full kgpt.data"] = classifier.evaluate(batches, verbose=0)
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    classifier.compile("sgd", loss, weighted_metrics=["accuracy"])
    found["a Keras loss"] = classifier.test_on_batch(x, labels, weights)
    return found


def fit_resumable(style, folder, epochs, seed=0, **options):
    """The losses of the epochs of a run that goes on from a checkpoint, if there is one."""
    keras.distribution.set_distribution(distribution(style, SIZES))
    model = make("language model", SIZES)
    rows = kgpt.data.windows(folder.parent / "tokens.npy", LENGTH, ROWS, seed=seed)
    checkpoint = kgpt.callbacks.ResumableCheckpoint(folder, **options)
    return model.fit(rows, epochs=epochs, callbacks=[checkpoint], verbose=0).history["loss"]


def run_resumed(folder):
    """A run that each style goes on with for an epoch, and what its first checkpoint holds."""
    np.save(folder / "tokens.npy", (np.arange(3 * ROWS * LENGTH + 1) * 7 % 50).astype("uint16"))
    with mock.patch.object(divided, "orbax", side_effect=AssertionError):  # one device needs none
        found = {"whole": fit_resumable(None, folder / "whole", 5)}
    with mock.patch.dict(sys.modules, {"orbax": None, "orbax.checkpoint": None}):
        try:
            fit_resumable("fsdp", folder / "without", 1)
        except ImportError as error:
            found["without Orbax"] = str(error)
    if importlib.util.find_spec("orbax") is None:
        return found
    fit_resumable("tensor_fsdp", folder / "cut", 1)
    [checkpoint] = (folder / "cut").glob("checkpoint-*")
    described = json.loads((checkpoint / "variables/array_metadatas/process_0").read_text())
    found["chunks"] = {
        one["array_metadata"]["param_name"]: one["array_metadata"]["chunk_shape"]
        for one in described["array_metadatas"]
    }
    model = make("language model", SIZES)
    found["shards"] = {
        f"model/{number:05d}": v.value.sharding.shard_shape(v.shape)
        for number, v in enumerate(model.variables)
        if not v.value.is_fully_replicated
    }
    for epochs, style in ((2, "fsdp"), (3, None), (4, "tensor"), (5, "data")):
        found["resumed"] = fit_resumable(style, folder / "cut", epochs)
    try:
        fit_resumable("fsdp", folder / "cut", 1, seed=1)
    except ValueError as error:
        found["another run"] = str(error)
    fit_resumable("fsdp", folder / "cut", 1, seed=1, on_mismatch="restart")
    found["restarted"] = sorted(path.name for path in (folder / "cut").glob("checkpoint-*"))
    return found


def texts_of(function):
    """The texts of a function that Keras has made around a compiled step."""
    cells = [cell.cell_contents for cell in function.__closure__]
    [recorded] = [one for one in cells if isinstance(one, Recorded)]
    return recorded.texts


def main():
    trainer.jit = Recorded
    styles = (None, *MESHES)
    results = {}
    for kind in ("language model", "classifier"):
        for style in styles:
            extras = kind == "language model"
            results[f"{kind}, {style}"] = run(kind, style, extras=extras)
    odd = {**SIZES, "vocabulary_size": 90}
    for style in (None, "tensor_fsdp"):
        results[f"odd vocabulary, {style}"] = run("language model", style, 10, odd)
        results[f"LoRA, {style}"] = run("language model", style, 10, lora=True)
    trainer.jit = jit
    results["uneven"] = [run_uneven(style) for style in (None, "fsdp")]
    with tempfile.TemporaryDirectory() as folder:
        results["checkpoints"] = run_resumed(Path(folder))
    print(json.dumps(results))


if __name__ == "__main__":
    main()
