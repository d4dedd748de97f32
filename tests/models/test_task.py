import threading

import keras
import numpy as np
import pytest
from oracles import randomize, to_numpy

import kgpt

VOCABULARY, LENGTH, WIDTH = 19, 5, 12
TOKEN_IDS = np.random.default_rng(0).integers(0, VOCABULARY, (4, LENGTH)).astype("int32")


def compile_eagerly(model):
    """For steps that run in Python each time, and not only when they are compiled."""
    model.compile(keras.optimizers.SGD(0.0), run_eagerly=True)


@keras.saving.register_keras_serializable("tests")
class MeanOutput(kgpt.Head):
    """A head whose loss is the mean of its outputs; `on_call` runs wherever its map is computed."""

    def __init__(self, backbone, on_call=lambda: None, **kwargs):
        projection = keras.layers.Dense(1)

        def head(states):
            on_call()
            return projection(states)[:, :, 0]

        super().__init__(backbone, head, lm_loss_weight=0, **kwargs)

    def task_loss(self, y, outputs):
        return keras.ops.mean(outputs, axis=-1)


def make_backbone():
    sizes = {"max_sequence_length": LENGTH, "dropout": 0.0}
    return randomize(kgpt.GPTBackbone(VOCABULARY, 1, 3, WIDTH, **sizes))


def test_a_thread_that_calls_the_model_gets_outputs_while_another_fits_it():
    is_in_step, is_called = threading.Event(), threading.Event()
    fitting = None

    def on_call():
        if threading.current_thread() is fitting:
            is_in_step.set()
            assert is_called.wait(60)

    model = MeanOutput(make_backbone(), on_call)
    expected = to_numpy(model(TOKEN_IDS))
    compile_eagerly(model)
    history = []
    fitting = threading.Thread(
        target=lambda: history.append(model.fit(TOKEN_IDS, epochs=2, verbose=0).history)
    )

    fitting.start()
    assert is_in_step.wait(60)
    outputs = model(TOKEN_IDS)  # the other thread stands in the midst of its step
    is_called.set()
    fitting.join()

    np.testing.assert_allclose(to_numpy(outputs), expected, atol=1e-6)
    np.testing.assert_allclose(history[0]["loss"], expected.mean(), rtol=1e-5)


@pytest.mark.parametrize("kind", [kgpt.CausalLM, MeanOutput])
def test_threads_that_call_the_model_all_the_time_get_outputs_during_a_compiled_fit(kind):
    model = kind(make_backbone())
    expected = to_numpy(model(TOKEN_IDS))
    model.compile(keras.optimizers.SGD(0.0))
    is_over = threading.Event()
    outputs = []

    def call():
        while not is_over.is_set() or not outputs:
            outputs.append(to_numpy(model(TOKEN_IDS)))

    calling = threading.Thread(target=call)
    calling.start()
    try:
        history = model.fit(TOKEN_IDS, epochs=3, verbose=0).history
    finally:
        is_over.set()
        calling.join()

    for found in outputs:
        np.testing.assert_allclose(found, expected, atol=1e-6)
    assert len(set(np.round(history["loss"], 5))) == 1


def test_a_loss_that_calls_the_model_or_another_gets_outputs():
    teacher = kgpt.CausalLM(make_backbone())
    expected = [to_numpy(teacher(TOKEN_IDS)).shape, (4, 1)]
    shapes = []

    class Student(MeanOutput):
        def own_loss(self, x, y, hidden_states, outputs, sample_weight, training):
            others = teacher(x["token_ids"][:, 0]), self(x)
            shapes.extend(tuple(other.shape) for other in others)
            return super().own_loss(x, y, hidden_states, outputs, sample_weight, training)

    model = Student(make_backbone())
    compile_eagerly(model)
    compile_eagerly(teacher)

    model.train_on_batch(TOKEN_IDS)
    model.test_on_batch(TOKEN_IDS)

    assert shapes == 2 * expected


def test_a_step_that_fails_leaves_nothing_behind():
    model = MeanOutput(make_backbone())
    expected = to_numpy(model(TOKEN_IDS))
    compile_eagerly(model)
    attributes = set(vars(model))
    model.task_loss = lambda y, outputs: 1 / 0

    with pytest.raises(ZeroDivisionError):
        model.train_on_batch(TOKEN_IDS)

    np.testing.assert_array_equal(to_numpy(model(TOKEN_IDS)), expected)
    assert {name for name in set(vars(model)) - attributes if "step" in name} == set()
