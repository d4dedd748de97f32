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


class Watched(keras.layers.Dense):
    """A linear map that calls `on_call` whenever it is computed."""

    def __init__(self, units, on_call, **kwargs):
        super().__init__(units, **kwargs)
        self.on_call = on_call

    def call(self, inputs, training=None):
        self.on_call()
        return super().call(inputs, training=training)


class MeanOutput(kgpt.Head):
    """A head whose loss is the mean of its outputs."""

    def __init__(self, backbone, on_call=lambda: None, **kwargs):
        projection = Watched(1, on_call)
        super().__init__(backbone, lambda x: projection(x)[:, :, 0], lm_loss_weight=0, **kwargs)

    def task_loss(self, y, outputs):
        return keras.ops.mean(outputs, axis=-1)


def make_backbone():
    sizes = {"max_sequence_length": LENGTH, "dropout": 0.0}
    return randomize(kgpt.GPTBackbone(VOCABULARY, 1, 3, WIDTH, **sizes))


@pytest.mark.parametrize("step", ["train_on_batch", "test_on_batch"])
def test_a_thread_that_calls_the_model_gets_outputs_while_another_is_in_a_step(step):
    is_in_step, is_called = threading.Event(), threading.Event()
    calling = threading.current_thread()

    def on_call():
        if threading.current_thread() is not calling:
            is_in_step.set()
            is_called.wait(60)

    model = MeanOutput(make_backbone(), on_call)
    expected = to_numpy(model(TOKEN_IDS))
    compile_eagerly(model)
    losses = []
    stepping = threading.Thread(target=lambda: losses.append(getattr(model, step)(TOKEN_IDS)[0]))

    stepping.start()
    assert is_in_step.wait(60)
    outputs = model(TOKEN_IDS)
    is_called.set()
    stepping.join()

    np.testing.assert_allclose(to_numpy(outputs), expected, atol=1e-6)
    np.testing.assert_allclose(losses, expected.mean(), rtol=1e-5)


@pytest.mark.skipif(
    keras.config.backend() == "jax",
    reason="in a fit on JAX, Keras takes the model's variables away",
)
@pytest.mark.parametrize("kind", [kgpt.CausalLM, MeanOutput])
def test_a_thread_that_calls_the_model_all_the_time_gets_outputs_while_another_fits_it(kind):
    model = kind(make_backbone())
    expected = to_numpy(model(TOKEN_IDS))
    model.compile(keras.optimizers.SGD(0.0))
    history = []
    fitting = threading.Thread(
        target=lambda: history.append(model.fit(TOKEN_IDS, epochs=3, verbose=0).history["loss"])
    )

    fitting.start()
    outputs = [to_numpy(model(TOKEN_IDS))]
    while fitting.is_alive():
        outputs.append(to_numpy(model(TOKEN_IDS)))

    for found in outputs:
        np.testing.assert_allclose(found, expected, atol=1e-6)
    np.testing.assert_allclose(history[0], history[0][:1] * 3, rtol=1e-5)


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


@pytest.mark.parametrize("where", ["backbone", "head"])
def test_each_training_step_draws_new_dropout_masks_and_evaluation_draws_none(where):
    dropout = {"backbone": 0.0, "head": 0.0, where: 0.5}
    sizes = {"max_sequence_length": LENGTH, "dropout": dropout["backbone"]}
    backbone = randomize(kgpt.GPTBackbone(VOCABULARY, 1, 3, WIDTH, **sizes))
    model = kgpt.TextClassifier(backbone, 3, dropout=dropout["head"], lm_loss_weight=0)
    model.compile(keras.optimizers.SGD(0.0))
    y = np.arange(len(TOKEN_IDS)) % 3
    data = {"x": TOKEN_IDS, "y": y, "verbose": 0}

    trained = [model.fit(**data, shuffle=False).history["loss"][0] for _ in range(3)]
    evaluated = [model.evaluate(**data, return_dict=True)["loss"] for _ in range(2)]

    assert len({*np.round(trained, 4), round(evaluated[0], 4)}) == 4
    assert evaluated[0] == evaluated[1]


def test_each_step_of_a_language_model_draws_new_dropout_masks():
    sizes = {"max_sequence_length": LENGTH, "dropout": 0.5}
    lm = kgpt.CausalLM(randomize(kgpt.GPTBackbone(VOCABULARY, 1, 3, WIDTH, **sizes)))
    lm.compile(keras.optimizers.SGD(0.0))

    trained = lm.fit(TOKEN_IDS, epochs=3, shuffle=False, verbose=0).history["loss"]

    evaluated = lm.evaluate(TOKEN_IDS, verbose=0, return_dict=True)["loss"]
    assert len({*np.round(trained, 4), round(evaluated, 4)}) == 4


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


@pytest.mark.parametrize("kind", ["backbone", "lm", "head"])
def test_ids_that_are_no_whole_numbers_are_refused_where_values_are_known(kind):
    backbone = make_backbone()
    make = {"backbone": lambda b: b, "lm": kgpt.CausalLM, "head": MeanOutput}[kind]
    model, ids = make(backbone), TOKEN_IDS.astype("float32")
    expected = to_numpy(model(TOKEN_IDS))

    for x in (ids + 0.7, keras.ops.convert_to_tensor(ids + 0.7), {"token_ids": ids + 0.7}):
        with pytest.raises(ValueError, match=r"Token ids must be ints, .*\.7.* among them"):
            model(x)

    inputs = keras.Input((LENGTH,))  # a float, as Keras's inputs are by default
    around = keras.Model(inputs, model(inputs))
    for found in (model(ids), around(ids), around.predict(ids, verbose=0)):
        np.testing.assert_allclose(to_numpy(found), expected, atol=1e-5)
