"""Long lives: what is compiled is little, and memory does not grow.

The suite runs small sizes and looks at what is compiled and what is freed. As a script the sizes
are those of a long life, and the process's memory must be flat, within 2%, over the second half:

    KERAS_BACKEND=torch python tests/test_memory.py

prints a line for each part: 20,000 steps, with evaluation and generation between; models that are
made, trained and dropped; calls of `generate` for prompts of all lengths.
"""

import contextlib
import gc
import math
import random
import sys
import tempfile
import weakref
from pathlib import Path
from typing import NamedTuple
from unittest import mock

import keras
import numpy as np
import pytest

import kgpt
from kgpt import locks
from kgpt.kernels.gelu import gelu


class Sizes(NamedTuple):
    """How much is done in each part."""

    steps: int
    rounds: int  # of training and evaluation, in all steps
    models: int
    calls: int


SMALL, FULL = Sizes(6, 3, 1, 40), Sizes(20_000, 20, 40, 10_000)
VOCABULARY, WINDOW, LENGTH, BATCH, NEW = 50, 256, 32, 4, 8
SAMPLES, GROWTH = 20, 0.02  # looks at the memory in a part; what it may grow by


# === The three parts; each yields now and then ===


def make_lm(**options):
    sizes = {"num_layers": 1, "num_heads": 2, "hidden_dim": 16, **options}
    return kgpt.CausalLM(kgpt.GPTBackbone(VOCABULARY, **sizes, max_sequence_length=WINDOW))


def make_data(folder, steps):
    """Windows for so many steps of an epoch."""
    tokens = np.random.default_rng(0).integers(VOCABULARY, size=steps * BATCH * LENGTH + 1)
    path = Path(folder, f"{steps}.npy")
    np.save(path, tokens.astype("uint16"))
    return kgpt.data.windows(path, LENGTH, BATCH, seed=0)


def train(folder, steps, rounds, **options):
    """Trains, evaluates and generates by turns."""
    lm, optimizer = make_lm(), keras.optimizers.Adam(1e-3)
    lm.compile(optimizer, **options)
    train, valid = make_data(folder, steps // rounds), make_data(folder, 4)
    for _ in range(rounds):
        lm.fit(train, validation_data=valid, verbose=0)
        lm.evaluate(valid, verbose=0)
        lm.predict(valid, verbose=0)
        lm.generate([[1, 2, 3]], NEW, seed=0)
        lm.score([[1, 2, 3]])
        yield
    assert int(optimizer.iterations) == steps


def make_models(folder, models, generates=True):
    """Makes a model and a head, trains them, generates, and drops them."""
    data = make_data(folder, 2)
    for _ in range(models):
        lm = make_lm()
        lm.compile()
        lm.fit(data, verbose=0)
        if generates:
            lm.generate([[1, 2, 3]], NEW, seed=0)
            lm.embed([[1, 2, 3]])
        head = kgpt.TextClassifier(lm.backbone, num_classes=2, lm_loss_weight=0.0)
        head.compile()
        head.fit(np.ones((4, 8), "int32"), np.array([0, 1, 0, 1]), verbose=0)
        yield lm, head
        keras.utils.clear_session()  # as Keras tells those who make many models


def generate(lm, calls):
    """Continues prompts of all lengths."""
    lengths = random.Random(0).choices(range(1, WINDOW - NEW + 1), k=calls)
    lengths[:2] = 1, WINDOW - NEW
    for length in lengths:
        lm.generate([[1 + length % 7] * length], NEW, sampler="top_k")
        yield


@contextlib.contextmanager
def compilations():
    """Gives the list of the shapes for which generation is compiled, inside the context.

    A first pass runs as Python when it is compiled; on PyTorch, where it always does, a step does
    when it is recorded.
    """
    shapes, run = [], kgpt.GPTBackbone.call_with_cache
    is_torch = keras.config.backend() == "torch"

    def call_with_cache(backbone, token_ids, cache, index, visible, *args):
        if (token_ids.shape[1] == 1) == is_torch:
            shapes.append((*token_ids.shape, visible.shape[-1]))
        return run(backbone, token_ids, cache, index, visible, *args)

    with mock.patch.object(kgpt.GPTBackbone, "call_with_cache", call_with_cache):
        yield shapes


# === In the suite ===


def test_prompts_of_all_lengths_compile_for_few():
    lm = make_lm()

    with compilations() as shapes:
        for _ in generate(lm, SMALL.calls):
            pass

    assert len(shapes) == len(set(shapes))
    assert 2 <= len(shapes) <= math.log2(WINDOW) + 2


@pytest.mark.parametrize("options", [{}, {"sampler": "top_p"}, {"sampler": "top_k", "seed": 0}])
def test_a_call_makes_no_variables(options):
    """TensorFlow keeps some memory for each that there ever was."""
    lm = make_lm()
    lm.generate([[1, 2]], NEW, **options)

    with mock.patch.object(keras.Variable, "__init__", side_effect=AssertionError):
        lm.generate([[1, 2]], NEW, **options)


def test_generation_between_epochs_compiles_once(tmp_path):
    options = {"run_eagerly": keras.config.backend() == "tensorflow"}

    with compilations() as shapes:
        for _ in train(tmp_path, SMALL.steps, SMALL.rounds, **options):
            pass

    assert len(shapes) == 1


@pytest.mark.skipif(keras.config.backend() != "tensorflow", reason="TensorFlow's graphs")
@pytest.mark.parametrize("options", [{}, {"recompute": True}])
def test_the_graphs_of_a_model_that_is_dropped_are_freed(options):
    """TensorFlow itself keeps those with a custom gradient, such as Keras's sum over replicas."""
    from tensorflow.python.framework.func_graph import FuncGraph

    def graphs():
        gc.collect()
        return {id(one): one.name for one in gc.get_objects() if isinstance(one, FuncGraph)}

    before = graphs()
    lm = make_lm(**options)
    lm.compile()
    lm.train_on_batch(*np.ones((2, 2, 8), "int32"))
    assert graphs().keys() > before.keys()
    del lm

    assert graphs().keys() <= before.keys()


@pytest.mark.skipif(keras.config.backend() != "tensorflow", reason="TensorFlow's graphs")
def test_a_saved_model_has_the_gradients_that_a_graph_holds(tmp_path):
    import tensorflow as tf

    x = tf.linspace(-2.0, 2.0, 5)
    module = tf.Module()
    module.gelu = tf.function(gelu, input_signature=[tf.TensorSpec((5,))])

    tf.saved_model.save(module, tmp_path)  # traces each gradient

    with tf.GradientTape(persistent=True) as tape:
        tape.watch(x)
        saved, direct = tf.saved_model.load(tmp_path).gelu(x), keras.ops.gelu(x, approximate=True)
    np.testing.assert_allclose(tape.gradient(saved, x), tape.gradient(direct, x), atol=1e-6)


def test_a_model_that_is_dropped_is_freed_with_all_that_was_compiled_for_it(tmp_path):
    living = []
    for lm, head in make_models(tmp_path, SMALL.models):
        of_model = lm, head, lm.backbone, lm.backbone.embedding, locks.lock_of(lm)
        living += map(weakref.ref, of_model)
        del lm, head, of_model
    gc.collect()

    assert [one() for one in living if one() is not None] == []


# === As a script ===


def memory():
    """The process's memory, in MB."""
    gc.collect()
    resident = int(Path("/proc/self/statm").read_text().split()[1])  # pages
    return resident * 4096 / 1e6


def grows(name, part, count):
    """Runs a part, prints its memory, and returns whether it grows in the second half."""
    every, samples = max(1, count // SAMPLES), []
    print(f"{name}, MB:", end="", flush=True)
    for i, _ in enumerate(part, 1):
        if i % every == 0:
            samples.append(memory())
            print(f" {samples[-1]:.0f}", end="", flush=True)
    growth = samples[-1] / samples[len(samples) // 2 - 1] - 1
    print(f"; {growth:+.2%} in the second half", flush=True)
    return growth > GROWTH


def main(folder, parts):
    lm = make_lm()
    found = []
    if "steps" in parts:
        part = train(folder, FULL.steps, FULL.rounds)
        found.append(grows(f"{FULL.steps:,} steps", part, FULL.rounds))
    if "models" in parts:
        # TensorFlow keeps what XLA compiled, of the models that are gone too.
        generates = keras.config.backend() != "tensorflow"
        part = (None for _ in make_models(folder, FULL.models, generates))
        found.append(grows(f"{FULL.models} models", part, FULL.models))
    if "calls" in parts:
        with compilations() as shapes:
            found.append(grows(f"{FULL.calls:,} prompts", generate(lm, FULL.calls), FULL.calls))
        print(f"{len(shapes)} compilations for prompts of 1 to {WINDOW - NEW} tokens")
    return any(found)


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as place:
        sys.exit(main(place, sys.argv[1:] or ["steps", "models", "calls"]))
