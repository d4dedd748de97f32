import keras
import numpy as np
import pytest
from oracles import randomize, to_numpy

import kgpt

TOKENIZER = kgpt.Tokenizer.train(["abcdefghijklmnopqrstuvwxyz "], style="characters")


def make_chooser(hidden_dim=12, **arguments):
    keras.utils.set_random_seed(0)
    backbone = kgpt.GPTBackbone(
        TOKENIZER.vocabulary_size, 1, 3, hidden_dim, max_sequence_length=16, dropout=0.0
    )
    arguments = {"tokenizer": TOKENIZER, "dropout": 0.0, **arguments}
    return kgpt.MultipleChoice(backbone, **arguments)


def arrays(choices=3, count=5):
    rng = np.random.default_rng(0)
    token_ids = rng.integers(1, TOKENIZER.vocabulary_size, (count, choices, 6))
    return token_ids, np.arange(count) % choices


@pytest.mark.compiled
def test_it_learns_which_choice_is_right_and_keeps_it_in_its_file(tmp_path):
    contexts = ["p", "q", "pq", "qp"] * 4
    choices = [["ab", "cd"], ["cd", "ab"], ["efa", "c"], ["cgh", "ae"]] * 4
    labels = [0, 1, 0, 1] * 4  # the one with an a
    data = kgpt.data.multiple_choice(contexts, choices, labels, TOKENIZER, 16, batch_size=16)
    model = make_chooser(hidden_dim=24)
    model.compile(keras.optimizers.Adam(2e-2))

    model.fit(data, epochs=20, verbose=0)
    model.save(tmp_path / "chooser.keras")
    loaded = keras.models.load_model(tmp_path / "chooser.keras")

    for chooser in (model, loaded):
        assert chooser.predict_text(["p", "q"], [["cd", "ab"], ["ae", "cgh"]]) == [1, 0]


def test_the_probabilities_of_an_examples_choices_are_shares_of_one():
    model = randomize(make_chooser())

    probabilities = model.predict_text(["p", "qq"], [["a", "b", "c"]] * 2, probabilities=True)

    assert probabilities.shape == (2, 3)
    np.testing.assert_allclose(probabilities.sum(axis=-1), 1, rtol=1e-5)


def test_the_order_of_the_choices_is_the_order_of_the_logits():
    model = randomize(make_chooser())
    x, _ = arrays()

    logits = to_numpy(model(x))

    np.testing.assert_allclose(to_numpy(model(x[:, ::-1])), logits[:, ::-1], atol=1e-5)


def test_in_training_dropout_is_the_same_for_all_choices_and_another_for_each_example():
    model = randomize(make_chooser(dropout=0.5))
    x, _ = arrays()
    same = np.repeat(np.repeat(x[:1, :1], 3, axis=1), 5, axis=0)

    logits = to_numpy(model(same, training=True))

    np.testing.assert_allclose(logits, np.repeat(logits[:, :1], 3, axis=1), atol=1e-5)
    assert len(np.unique(logits[:, 0].round(4))) > 1


def test_examples_with_another_number_of_choices_may_follow():
    model = randomize(make_chooser())
    model.compile("sgd")

    for choices in (3, 2):
        x, y = arrays(choices)
        model.fit(x, y, verbose=0)
        assert model.predict(x, verbose=0).shape == (5, choices)


@pytest.mark.parametrize("change", [lambda y: y + 1, lambda y: y - 1])
def test_labels_that_are_no_choice_are_refused_before_training(change):
    x, y = arrays()
    model = make_chooser()
    model.compile("sgd")

    for inputs in (x, {"token_ids": x}):
        with pytest.raises(ValueError, match=r"ints in \[0, 3\)"):
            model.fit(inputs, change(y), verbose=0)
    assert int(model.optimizer.iterations) == 0


def test_data_without_choices_is_refused():
    singles = kgpt.data.classification(["a", "b"], [0, 1], TOKENIZER, 16)
    pairs = kgpt.data.similarity(["a", "b"], ["c", "d"], [0, 1], TOKENIZER, 16)
    model = make_chooser()
    model.compile("sgd")

    for data in (singles, pairs):
        with pytest.raises(ValueError, match=r"as from kgpt\.data\.multiple_choice"):
            model.fit(data)


def test_choices_of_unequal_number_are_refused():
    with pytest.raises(ValueError, match="the same number of choices"):
        make_chooser().predict_text(["a", "b"], [["a", "b"], ["a", "b", "c"]])
