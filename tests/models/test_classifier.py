import warnings

import keras
import numpy as np
import pytest
from oracles import randomize

import kgpt

TOKENIZER = kgpt.Tokenizer.train(["abcdefghijklmnopqrstuvwxyz "], style="characters")
NAMES = ["dull", "fine", "odd"]


def make_classifier(num_classes=3, hidden_dim=12, **arguments):
    keras.utils.set_random_seed(0)
    backbone = kgpt.GPTBackbone(
        TOKENIZER.vocabulary_size, 1, 3, hidden_dim, max_sequence_length=16, dropout=0.0
    )
    arguments = {"tokenizer": TOKENIZER, "dropout": 0.0, **arguments}
    return kgpt.TextClassifier(backbone, num_classes, **arguments)


def arrays(count=9):
    rng = np.random.default_rng(0)
    return rng.integers(1, TOKENIZER.vocabulary_size, (count, 5)), np.arange(count) % 3


@pytest.mark.compiled
def test_it_learns_names_from_texts_and_keeps_them_in_its_file(tmp_path):
    texts = ["dab", "fgh", "oxy", "da", "fz", "o"] * 3
    names = ["dull", "fine", "odd"] * 6
    data = kgpt.data.classification(texts, names, TOKENIZER, sequence_length=16, batch_size=18)
    model = make_classifier(None, hidden_dim=24, class_names=data.class_names)
    model.compile(keras.optimizers.Adam(2e-2))

    model.fit(data, epochs=40, verbose=0)
    model.save(tmp_path / "classifier.keras")
    loaded = keras.models.load_model(tmp_path / "classifier.keras")

    for classifier in (model, loaded):
        assert classifier.predict_text(["o", "dab", "fgh"]) == ["odd", "dull", "fine"]
    assert loaded.class_names == NAMES


def test_a_fit_learns_the_names_in_batches_and_refuses_others():
    def data(texts, labels, **options):
        return kgpt.data.classification(texts, labels, TOKENIZER, 16, **options)

    model = make_classifier()
    model.compile("sgd")
    part = data(["ab", "cd"], ["fine", "odd"])

    with pytest.raises(ValueError, match=r"Received: 2 names, fine, odd, with num_classes=3"):
        model.fit(part, verbose=0)
    with pytest.raises(ValueError, match=r"in the data and None in the model, with num_classes=3"):
        model.evaluate(part, verbose=0)
    model.fit(data(["ab", "c", "d"], NAMES), verbose=0)

    assert model.class_names == NAMES
    assert set(model.predict_text(["ab", "cd"])) <= set(NAMES)
    both = r"class_names=\['fine', 'odd'\] in the data and \['dull', 'fine', 'odd'\] in the model"
    for call in (
        model.evaluate,
        model.fit,
        lambda x, **o: model.fit(["ab"] * 3, NAMES, validation_data=x, **o),
        model.predict,  # by which callbacks.Scores compares
    ):
        with pytest.raises(ValueError, match=both):
            call(part, verbose=0)
    model.evaluate(data(["ab", "cd"], ["fine", "odd"], class_names=NAMES), verbose=0)
    model.evaluate(data(["ab", "cd"], [1, 2]), verbose=0)


def test_numbers_of_classes_are_no_names_to_learn():
    data = kgpt.data.classification(["a", "b"], [0, 1], TOKENIZER, 16, class_names=range(3))
    model = make_classifier()
    model.compile("sgd")

    model.fit(data, verbose=0)

    assert model.class_names is None


def test_without_names_the_answers_are_numbers():
    model = randomize(make_classifier())

    probabilities = model.predict_text(["ab", "c", ""], probabilities=True)

    assert model.predict_text(["ab", "c", ""]) == probabilities.argmax(axis=-1).tolist()
    assert probabilities.shape == (3, 3)
    np.testing.assert_allclose(probabilities.sum(axis=-1), 1, rtol=1e-5)


def test_texts_are_answered_in_their_order():
    model = randomize(make_classifier())
    texts = ["x" * (7 * i % 13) + "abc"[i % 3] for i in range(9)]

    together = model.predict_text(texts, batch_size=2, probabilities=True)

    apart = np.concatenate([model.predict_text([text], probabilities=True) for text in texts[:3]])
    np.testing.assert_allclose(together[:3], apart, atol=1e-5)


def test_a_text_longer_than_the_positions_is_cut():
    model = randomize(make_classifier())

    long, cut = model.predict_text(["ab" * 50, ("ab" * 50)[:14]], probabilities=True)

    np.testing.assert_allclose(long, cut, atol=1e-6)


@pytest.mark.parametrize("both_orders", [True, False])
def test_pairs_are_read_in_one_order_or_in_both(both_orders):
    model = randomize(make_classifier(both_orders=both_orders))

    ab, ba = model.predict_text([("abc", "de"), ("de", "abc")], probabilities=True)

    assert np.allclose(ab, ba, atol=1e-5) == both_orders


def test_the_head_starts_as_the_papers():
    model = make_classifier(num_classes=300, hidden_dim=48)
    kernel, bias = model.output_projection.get_weights()

    assert kernel.std() == pytest.approx(0.02, rel=0.1)
    assert (bias == 0).all()


def test_labels_of_one_class_only_are_warned_of():
    x, y = arrays()
    model = make_classifier()
    model.compile("sgd")

    with pytest.warns(UserWarning, match="All labels are the same class, 2"):
        model.fit(x, np.full_like(y, 2), verbose=0)
    with warnings.catch_warnings():
        warnings.filterwarnings("error", message="All labels")
        model.fit(x, y, verbose=0)
        model.evaluate(x, np.full_like(y, 2), verbose=0)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda y: y + 1, r"must be ints in \[0, 3\).*Received: .*3"),
        (lambda y: y - 1, r"must be ints in \[0, 3\).*Received: .*-1"),
        (lambda y: np.where(y == 1, np.nan, y), "Received: .*nan"),
        (lambda y: y + 0.5, "Received: .*0.5"),
        (lambda y: np.eye(3)[y], r"Received: shape \(9, 3\).*argmax"),
    ],
)
def test_labels_that_are_no_class_are_refused_before_training(change, message):
    x, y = arrays()
    model = make_classifier()
    model.compile("sgd")

    for call in (model.fit, model.evaluate):
        with pytest.raises(ValueError, match=message):
            call(x, change(y), verbose=0)
    assert int(model.optimizer.iterations) == 0


def test_labels_in_task_data_that_are_no_class_are_refused():
    data = kgpt.data.classification(["a", "b"], [0, 3], TOKENIZER, 16)
    model = make_classifier()
    model.compile("sgd")

    with pytest.raises(ValueError, match=r"must be ints in \[0, 3\)"):
        model.fit(data)


def test_labels_as_a_column_of_floats_are_classes_too():
    x, y = arrays()
    model = randomize(make_classifier())
    model.compile("sgd")

    column = model.evaluate(x, y[:, None].astype("float32"), verbose=0)

    np.testing.assert_allclose(column, model.evaluate(x, y, verbose=0), rtol=1e-6)


def test_training_without_labels_is_refused():
    model = make_classifier()
    model.compile("sgd")

    with pytest.raises(ValueError, match="needs labels"):
        model.fit(kgpt.data.classification(["a", "b"], None, TOKENIZER, 16), verbose=0)


def test_data_made_for_another_model_is_refused():
    singles = kgpt.data.classification(["a", "b"], [0, 1], TOKENIZER, 16)
    pairs = kgpt.data.similarity(["a", "b"], ["c", "d"], [0, 1], TOKENIZER, 16)
    swapped = kgpt.data.classification(
        ["a", "b"], ["fine", "dull"], TOKENIZER, 16, class_names=["odd", "fine", "dull"]
    )
    model = make_classifier(class_names=NAMES)
    model.compile("sgd")

    with pytest.raises(ValueError, match=r"reads 1 sequence.*Received: batches with 2"):
        model.fit(pairs)
    with pytest.raises(ValueError, match="count the classes in the same order"):
        model.fit(swapped)
    with pytest.raises(ValueError, match=r"reads 2 sequence.*Received: batches with 1"):
        make_classifier(both_orders=True).predict(singles)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"num_classes": 1}, "num_classes=1"),
        ({"num_classes": None}, "num_classes=0"),
        ({"num_classes": 2, "class_names": NAMES}, "num_classes=2, class_names="),
        ({"class_names": ["a", "a", "b"]}, "class_names must differ"),
    ],
)
def test_classes_that_cannot_be_are_refused(arguments, message):
    with pytest.raises(ValueError, match=message):
        make_classifier(**arguments)


@pytest.mark.parametrize("texts", ["ab", [], [3], [("a", "b", "c")], None])
def test_what_is_no_list_of_texts_is_refused(texts):
    with pytest.raises(ValueError, match=r"texts|example"):
        make_classifier().predict_text(texts)
