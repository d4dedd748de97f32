"""The position in the training data belongs to training: evaluation starts at the beginning."""

import itertools

import keras
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from labelled import TOKENIZER, numbered
from oracles import randomize, to_numpy

import kgpt
from kgpt.data import windows

LENGTH, BATCH_SIZE = 5, 5


@pytest.fixture(scope="module")
def token_file(tmp_path_factory):
    path = tmp_path_factory.mktemp("tokens") / "tokens.npy"
    np.save(path, np.random.default_rng(0).integers(0, TOKENIZER.vocabulary_size, 76))
    return path


@pytest.fixture(params=["windows", "tasks"])
def make_data(request, token_file):
    """A function that returns the same three batches a pass, in a new order in each pass."""
    if request.param == "windows":
        return lambda **options: windows(token_file, LENGTH, BATCH_SIZE, 0, **options)
    return lambda **options: numbered(14, batch_size=BATCH_SIZE, seed=0, **options)


def make_model(data, learning_rate=0.1):
    backbone = kgpt.GPTBackbone(TOKENIZER.vocabulary_size, 1, 1, 4, 128, dropout=0.0)
    is_task = hasattr(data, "labels")
    model = kgpt.TextClassifier(backbone, 14, dropout=0.0) if is_task else kgpt.CausalLM(backbone)
    randomize(model)
    model.compile(keras.optimizers.SGD(learning_rate))
    return model


def assert_same_weights(model, other):
    for weight, expected in zip(model.weights, other.weights, strict=True):
        np.testing.assert_allclose(*map(to_numpy, (weight, expected)), rtol=1e-5, atol=1e-7)


def evaluated(model, data, **options):
    return model.evaluate(data, verbose=0, return_dict=True, **options)


def assert_same_batches(batches, others):
    batches, others = list(batches), list(others)
    assert len(batches) == len(others)
    for batch, other in zip(batches, others, strict=True):
        keras.tree.map_structure(np.testing.assert_array_equal, batch, other)


# === Evaluation leaves training alone ===


@pytest.mark.parametrize("call", ["evaluate", "predict"])
@pytest.mark.parametrize("steps", [None, 2])
def test_evaluate_and_predict_leave_the_position_in_the_training_data_alone(make_data, call, steps):
    data, untouched = make_data(), make_data()
    data.set_state({"next_batch": 7})
    untouched.set_state({"next_batch": 7})

    getattr(make_model(data), call)(data, steps=steps, verbose=0)

    assert data.get_state()["next_batch"] == 7
    assert_same_batches(data, untouched)


@pytest.mark.parametrize(
    ("make_data", "validation_steps"), [("windows", 2), ("tasks", None)], indirect=["make_data"]
)
def test_the_training_data_as_validation_data_does_not_change_training(make_data, validation_steps):
    data, others = make_data(), make_data()
    model, expected = make_model(data), make_model(others)

    model.fit(data, validation_data=data, validation_steps=validation_steps, epochs=2, verbose=0)
    expected.fit(others, epochs=2, verbose=0)

    assert data.get_state() == others.get_state()
    assert_same_weights(model, expected)


def test_evaluating_between_two_fits_does_not_change_the_second(make_data):
    data, others = make_data(), make_data()
    model, expected = make_model(data), make_model(others)

    for _ in range(2):
        model.fit(data, verbose=0)
        model.evaluate(data, steps=2, verbose=0)
        model.predict(data, verbose=0)
        model.evaluate(data, verbose=0)
    expected.fit(others, epochs=2, verbose=0)

    assert_same_weights(model, expected)


def test_evaluating_within_an_epoch_does_not_change_it(make_data):
    class EvaluateEachStep(keras.callbacks.Callback):
        def on_train_batch_end(self, batch, logs=None):
            self.model.predict(data, steps=1, verbose=0)

    data, others = make_data(), make_data()
    model, expected = make_model(data), make_model(others)

    model.fit(data, epochs=2, callbacks=[EvaluateEachStep()], verbose=0)
    expected.fit(others, epochs=2, verbose=0)

    assert data.get_state() == others.get_state()
    assert_same_weights(model, expected)


def test_a_resumed_run_may_validate_on_its_training_data(make_data, tmp_path):
    def run(epochs):
        data = make_data()
        model = make_model(data)
        checkpoint = kgpt.callbacks.ResumableCheckpoint(tmp_path)
        options = {"validation_data": data, "callbacks": [checkpoint], "verbose": 0}
        return model.fit(data, epochs=epochs, **options), data.get_state()

    data = make_data()
    model = make_model(data)
    model.fit(data, epochs=2, verbose=0)

    run(1)
    history, state = run(2)

    assert state == data.get_state()
    assert len(history.history["val_loss"]) == 2  # of the whole run
    assert_same_weights(history.model, model)


# === Evaluation starts at the beginning ===


@pytest.mark.parametrize("steps", [None, 2])
def test_figures_do_not_depend_on_the_position(make_data, steps):
    data = make_data()
    model = make_model(data)
    expected = evaluated(model, make_data(), steps=steps)
    rows = model.predict(make_data(), steps=steps, verbose=0)

    data.set_state({"next_batch": 8})

    assert evaluated(model, data, steps=steps) == expected
    np.testing.assert_array_equal(model.predict(data, steps=steps, verbose=0), rows)


@pytest.mark.parametrize(
    ("make_data", "steps"), [("windows", None), ("tasks", 2)], indirect=["make_data"]
)
def test_each_epoch_is_validated_on_the_same_batches(make_data, steps):
    data, other = make_data(), make_data()
    model = make_model(data, learning_rate=0.0)
    expected = evaluated(model, make_data(), steps=steps)

    for validation_data in (data, other):
        history = model.fit(
            data,
            epochs=2,
            validation_data=validation_data,
            validation_steps=steps,
            verbose=0,
        ).history

        np.testing.assert_allclose(history["val_loss"], [expected["loss"]] * 2, rtol=1e-6)


def test_some_steps_of_windows_are_evaluated_on_the_first_batches(token_file):
    data = windows(token_file, LENGTH, BATCH_SIZE, seed=0)
    first = list(itertools.islice(data, 2))
    model = make_model(data)
    token_ids = np.concatenate([x["token_ids"] for x, _ in first])
    targets = np.concatenate([y for _, y in first])

    figures = evaluated(model, data, steps=2)
    logits = model.predict(data, steps=2, verbose=0)

    expected = evaluated(model, token_ids, y=targets)
    np.testing.assert_allclose(figures["loss"], expected["loss"], rtol=1e-5)
    np.testing.assert_allclose(logits, model.predict(token_ids, verbose=0), atol=1e-5)


@pytest.mark.parametrize("seed", [None, 0])
@pytest.mark.parametrize(("steps", "count"), [(1, 5), (2, 10), (3, 14)])
def test_some_steps_of_task_batches_predict_the_first_texts(seed, steps, count):
    data = numbered(14, batch_size=BATCH_SIZE, seed=seed)
    model = make_model(data)

    outputs = model.predict(data, steps=steps, verbose=0)

    assert outputs.shape == (count, 14)
    np.testing.assert_allclose(outputs, model.predict(data, verbose=0)[:count], atol=1e-5)


def test_some_steps_of_task_batches_are_evaluated_on_the_first_texts():
    data = numbered(14, batch_size=BATCH_SIZE, seed=0)
    model = make_model(data)
    logits = model.predict(data, verbose=0)[: 2 * BATCH_SIZE].astype("float64")
    log_sums = np.log(np.exp(logits).sum(axis=-1))

    figures = evaluated(model, data, steps=2)

    expected = np.mean(log_sums - logits.diagonal())  # text i has the label i
    np.testing.assert_allclose(figures["task_loss"], expected, rtol=1e-5)


def test_a_prediction_that_a_callback_stops_is_in_the_order_of_the_texts():
    class Stop(keras.callbacks.Callback):
        def on_predict_batch_end(self, batch, logs=None):
            self.model.stop_predicting = batch == 1

    data = numbered(14, batch_size=BATCH_SIZE)
    model = make_model(data)
    shortest = np.sort(np.argsort([7 * i % 61 for i in range(14)])[: 2 * BATCH_SIZE])

    outputs = model.predict(data, callbacks=[Stop()], verbose=0)

    np.testing.assert_allclose(outputs, model.predict(data, verbose=0)[shortest], atol=1e-5)


def test_data_that_repeats_is_evaluated_once(make_data):
    once, again = make_data(), make_data(repeat=True)
    model = make_model(once, learning_rate=0.0)

    history = model.fit(again, steps_per_epoch=2, validation_data=again, verbose=0).history

    assert evaluated(model, again) == evaluated(model, once)
    assert model.predict(again, verbose=0).shape == model.predict(once, verbose=0).shape
    np.testing.assert_allclose(history["val_loss"], evaluated(model, once)["loss"], rtol=1e-6)


@pytest.mark.parametrize("steps", [0, -1, 2.5])
def test_a_number_of_steps_that_cannot_be_meant_is_refused(make_data, steps):
    data = make_data()
    model = make_model(data)

    for call in (model.evaluate, model.predict):
        with pytest.raises(ValueError, match="steps must be an int of at least 1"):
            call(data, steps=steps, verbose=0)
    with pytest.raises(ValueError, match="steps must be an int of at least 1"):
        model.fit(data, validation_data=data, validation_steps=steps, verbose=0)


# === The view that does it ===


@pytest.mark.any_backend
@given(position=st.integers(0, 12), broken_off=st.integers(0, 5))
@settings(max_examples=8, deadline=None)
def test_a_view_from_the_beginning_moves_nothing(token_file, position, broken_off):
    for new in (
        lambda: windows(token_file, LENGTH, BATCH_SIZE, seed=0, random_offset=True),
        lambda: windows(token_file, LENGTH, BATCH_SIZE, seed=0),
    ):
        data, untouched = new(), new()
        data.set_state({"next_batch": position})
        untouched.set_state({"next_batch": position})

        view = data.from_beginning()
        list(itertools.islice(view, broken_off))

        for _ in range(2):
            assert_same_batches(view, new())
        assert_same_batches(data, untouched)  # a plain loop moves on as ever
        assert_same_batches(view, new())
        assert_same_batches(data, untouched)


def test_any_keras_model_may_evaluate_a_view(token_file):
    data = windows(token_file, LENGTH, BATCH_SIZE, seed=0)
    batches = list(data)
    token_ids = np.concatenate([x["token_ids"] for x, _ in batches])
    targets = np.concatenate([y for _, y in batches])
    data.set_state({"next_batch": 3})

    class PlainModel(keras.Model):
        def __init__(self):
            super().__init__()
            self.embedding = keras.layers.Embedding(TOKENIZER.vocabulary_size, 1)
            self.compile("sgd", "mse")

        def call(self, x):
            return self.embedding(x["token_ids"])[..., 0]

    model = PlainModel()
    loss = model.evaluate(data.from_beginning(), verbose=0)

    expected = model.evaluate({"token_ids": token_ids}, targets, verbose=0)
    np.testing.assert_allclose(loss, expected, rtol=1e-5)
    assert data.get_state()["next_batch"] == 3
