"""A column of weights in all makers of labelled batches."""

import keras
import numpy as np
import pytest
from labelled import TOKENIZER

import kgpt
from kgpt.data import classification, entailment, multiple_choice, regression, similarity

pandas = pytest.importorskip("pandas", reason="columns and tables of pandas are what is tested")

TEXTS = ["a", "bbbb", "cc", "dddddd", "eee"]
WEIGHTS = [0.5, 1.0, 0.0, 2.0, 3.0]
LABELS = [0, 1, 1, 0, 1]
MAKERS = {
    "classification": lambda **options: classification(TEXTS, LABELS, TOKENIZER, **options),
    "entailment": lambda **options: entailment(TEXTS, TEXTS, LABELS, TOKENIZER, **options),
    "similarity": lambda **options: similarity(TEXTS, TEXTS, LABELS, TOKENIZER, **options),
    "regression": lambda **options: regression(TEXTS, LABELS, TOKENIZER, **options),
    "pairs": lambda **options: regression(
        [(text, text) for text in TEXTS], LABELS, TOKENIZER, **options
    ),
    "multiple_choice": lambda **options: multiple_choice(
        TEXTS, [["x", "yy"]] * 5, LABELS, TOKENIZER, **options
    ),
}
makers = pytest.mark.parametrize("make", MAKERS.values(), ids=MAKERS)


@makers
@pytest.mark.parametrize("seed", [None, 0])
def test_each_row_has_its_own_weight(make, seed):
    data = make(sample_weight=WEIGHTS, seed=seed, batch_size=2)
    first_tokens = {text[0]: weight for text, weight in zip(TEXTS, WEIGHTS, strict=True)}

    found = []
    for x, y, sample_weight in data:
        assert sample_weight.dtype == np.float32
        assert sample_weight.shape == (len(y),)
        rows = x["token_ids"].reshape(len(y), -1)
        letters = [TOKENIZER.decode(row[1:2]) for row in rows]
        assert [first_tokens[letter] for letter in letters] == sample_weight.tolist()
        found += sample_weight.tolist()

    assert sorted(found) == sorted(WEIGHTS)
    assert data.sample_weight.tolist() == WEIGHTS


@makers
def test_without_weights_batches_are_as_before(make):
    assert [len(batch) for batch in make(batch_size=3)] == [2, 2]


@pytest.mark.parametrize(
    "weights",
    [
        np.array(WEIGHTS, "float16"),
        pandas.Series(WEIGHTS, index=range(7, 12)),
        [1, 0, True, np.int64(2), 3.0],
    ],
    ids=["numpy", "pandas", "mixed"],
)
def test_a_column_of_weights_is_of_any_kind(weights):
    data = classification(TEXTS, LABELS, TOKENIZER, sample_weight=weights)

    assert data.sample_weight.tolist() == [float(weight) for weight in weights]


@makers
@pytest.mark.parametrize(
    ("weights", "message"),
    [
        (WEIGHTS[:4], r"same length. Received: 5 .*, 4 sample_weight"),
        ([*WEIGHTS, 1.0], r"same length. Received: 5 .*, 6 sample_weight"),
        ([1.0, -0.5, 1, 1, 1], r"finite float32 numbers of at least 0. Received: -0.5 at index 1"),
        ([1.0, 1, float("nan"), 1, 1], r"finite.*Received: nan at index 2"),
        ([1.0, 1, 1, float("inf"), 1], r"finite.*Received: inf at index 3"),
        ([1e39, 1, 1, 1, 1], r"finite float32 numbers.*at index 0"),
        ([1.0, None, 1, 1, 1], r"finite.*Received: nan at index 1"),
        ([1.0, pandas.NA, 1, 1, 1], "one number for each example"),
        (["1", "2", "3", "4", "5"], "one number for each example"),
        ([[1.0], [1.0], [1.0], [1.0], [1.0]], r"one number for each example.*shape \(5, 1\)"),
        ([[1.0], [1.0, 2.0], [1.0], [1.0], [1.0]], "one number for each example"),
        ([0, 0, 0, 0, 0], "must not be 0 for all"),
        (1.0, "sample_weight must be a list"),
        ({0: 1.0, 1: 2.0}, r"sample_weight must be a list.*Received: a dict"),
    ],
)
def test_weights_that_cannot_count_are_refused(make, weights, message):
    with pytest.raises(ValueError, match=message):
        make(sample_weight=weights)


def test_weights_without_labels_are_refused():
    with pytest.raises(ValueError, match="Received: a sample_weight, but no labels"):
        classification(TEXTS, None, TOKENIZER, sample_weight=WEIGHTS)


def test_an_example_of_weight_zero_changes_no_loss():
    backbone = kgpt.GPTBackbone(TOKENIZER.vocabulary_size, 1, 2, 8, max_sequence_length=16)
    model = kgpt.TextClassifier(backbone, num_classes=2, lm_loss_weight=0.0)
    model.compile(keras.optimizers.SGD(0.0))

    def loss(labels, weights):
        data = classification(TEXTS, labels, TOKENIZER, seed=None, sample_weight=weights)
        return model.evaluate(data, return_dict=True, verbose=0)["loss"]

    assert loss([0, 1, 1, 0, 1], WEIGHTS) == pytest.approx(loss([0, 1, 0, 0, 1], WEIGHTS), rel=1e-6)
    assert loss([0, 1, 1, 0, 1], WEIGHTS) != pytest.approx(loss([1, 1, 1, 0, 1], WEIGHTS), rel=1e-3)


def test_fit_takes_weighed_batches_and_predict_leaves_the_order():
    backbone = kgpt.GPTBackbone(TOKENIZER.vocabulary_size, 1, 2, 8, max_sequence_length=16)
    model = kgpt.TextClassifier(backbone, num_classes=2)
    model.compile(keras.optimizers.SGD(0.1))
    data = classification(TEXTS, LABELS, TOKENIZER, batch_size=2, sample_weight=WEIGHTS)
    plain = classification(TEXTS, LABELS, TOKENIZER, batch_size=2)

    history = model.fit(data, epochs=2, validation_data=data, verbose=0).history

    assert np.isfinite([*history["loss"], *history["val_loss"]]).all()
    np.testing.assert_allclose(
        model.predict(data, verbose=0), model.predict(plain, verbose=0), atol=1e-6
    )
