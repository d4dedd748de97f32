import keras
import numpy as np
import pytest
from oracles import randomize

import kgpt

TOKENIZER = kgpt.Tokenizer.train(["abcdefghijklmnopqrstuvwxyz "], style="characters")


def make_regressor(num_outputs=1, hidden_dim=12, **arguments):
    keras.utils.set_random_seed(0)
    backbone = kgpt.GPTBackbone(
        TOKENIZER.vocabulary_size, 1, 3, hidden_dim, max_sequence_length=16, dropout=0.0
    )
    arguments = {"tokenizer": TOKENIZER, "dropout": 0.0, **arguments}
    return kgpt.TextRegressor(backbone, num_outputs, **arguments)


def arrays(count=7):
    rng = np.random.default_rng(0)
    return rng.integers(1, TOKENIZER.vocabulary_size, (count, 5)), rng.standard_normal(count)


@pytest.mark.compiled
def test_it_learns_numbers_from_texts_and_keeps_them_in_its_file(tmp_path):
    texts, targets = ["abc", "xyz", "axy", "xbc"] * 4, [1.0, -1.0, 1.0, -1.0] * 4
    data = kgpt.data.regression(texts, targets, TOKENIZER, sequence_length=16, batch_size=16)
    model = make_regressor(hidden_dim=24)
    model.compile(keras.optimizers.Adam(2e-2))

    model.fit(data, epochs=40, verbose=0)
    model.save(tmp_path / "regressor.keras")
    loaded = keras.models.load_model(tmp_path / "regressor.keras")

    numbers = model.predict_text(["xyz", "abc", "xbc"])
    assert numbers.shape == (3, 1)
    np.testing.assert_allclose(numbers[[0, 2], 0], -1, atol=0.5)
    np.testing.assert_allclose(numbers[1, 0], 1, atol=0.5)
    np.testing.assert_array_equal(loaded.predict_text(["xyz", "abc", "xbc"]), numbers)


def test_single_texts_and_pairs_may_follow_each_other():
    model = randomize(make_regressor(num_outputs=2))

    single = model.predict_text(["abc"])
    pairs = model.predict_text([("abc", "d"), ("d", "abc")])
    again = model.predict_text(["abc"])

    assert pairs.shape == (2, 2)
    np.testing.assert_allclose(pairs[0], pairs[1], atol=1e-5)
    np.testing.assert_allclose(again, single, atol=1e-6)


def test_in_one_order_a_pair_differs_from_its_reverse():
    model = randomize(make_regressor(both_orders=False))

    ab, ba = model.predict_text([("abc", "d"), ("d", "abc")])

    assert np.abs(ab - ba).max() > 1e-3


def test_targets_of_one_axis_are_a_column_of_targets():
    x, y = arrays()
    model = randomize(make_regressor())
    model.compile("sgd")

    figures = model.evaluate(x, y, batch_size=3, verbose=0, return_dict=True)

    outputs = np.asarray(model.predict(x, verbose=0))[:, 0]
    np.testing.assert_allclose(figures["task_loss"], ((outputs - y) ** 2).mean(), rtol=1e-5)
    np.testing.assert_allclose(
        figures["mean_absolute_error"], np.abs(outputs - y).mean(), rtol=1e-5
    )
    column = model.evaluate(x, y[:, None], batch_size=3, verbose=0, return_dict=True)
    assert column == pytest.approx(figures)


@pytest.mark.parametrize(
    ("num_outputs", "change", "message"),
    [
        (1, lambda y: np.where(y > 0, np.nan, y), "must be finite numbers. Received: nan"),
        (1, lambda y: np.where(y > 0, np.inf, y), "must be finite numbers. Received: inf"),
        (1, lambda y: np.stack([y, y], 1), r"shape \(examples, 1\). Received: shape \(7, 2\)"),
        (2, lambda y: y, r"shape \(examples, 2\). Received: shape \(7,\)"),
    ],
)
def test_targets_that_cannot_be_learned_are_refused_before_training(num_outputs, change, message):
    x, y = arrays()
    model = make_regressor(num_outputs)
    model.compile("sgd")

    for call in (model.fit, model.evaluate):
        with pytest.raises(ValueError, match=message):
            call(x, change(y), verbose=0)
    assert int(model.optimizer.iterations) == 0


def test_training_without_targets_is_refused():
    model = make_regressor()
    model.compile("sgd")

    with pytest.raises(ValueError, match="needs targets"):
        model.fit(kgpt.data.regression(["a", "b"], None, TOKENIZER, 16), verbose=0)


def test_data_that_reads_pairs_otherwise_is_refused():
    pairs = [("a", "b"), ("c", "d")]
    data = kgpt.data.regression(pairs, [0.0, 1.0], TOKENIZER, 16, both_orders=False)
    model = make_regressor()
    model.compile("sgd")

    with pytest.raises(ValueError, match=r"both_orders=False, a model with both_orders=True"):
        model.fit(data)


def test_no_outputs_are_refused():
    with pytest.raises(ValueError, match="Received: num_outputs=0"):
        make_regressor(num_outputs=0)
