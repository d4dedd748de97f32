"""Texts straight into a task give the figures of `kgpt.data`, in each form that columns have."""

import keras
import numpy as np
import pytest
from labelled import TOKENIZER
from sources import SOURCES

import kgpt

TEXTS = ["ab", "cd", "efg", "h", "ijk", "lm", "nop", "q"]
PAIRS = list(zip(TEXTS, TEXTS[::-1], strict=True))
CHOICES = [["x", "yz", text] for text in TEXTS]
LABELS = [0, 1, 0, 1, 1, 0, 0, 1]
SCORES = [0.0, 1.5, -1.0, 2.0, 0.5, 1.0, 0.0, 2.5]
LENGTH = 16


def make_backbone():
    keras.utils.set_random_seed(0)
    return kgpt.GPTBackbone(TOKENIZER.vocabulary_size, 1, 1, 4, 4, 0.0, LENGTH)


def make(head, *args, **options):
    model = head(make_backbone(), *args, tokenizer=TOKENIZER, **{"dropout": 0.0, **options})
    model.compile(keras.optimizers.SGD(0.1))
    return model


def firsts_and_seconds():
    return tuple(map(list, zip(*PAIRS, strict=True)))


# A head, what goes in, its targets, and what kgpt.data makes of it.
CASES = {
    "classifier": (
        lambda: make(kgpt.TextClassifier, 2),
        TEXTS,
        LABELS,
        lambda **o: kgpt.data.classification(TEXTS, LABELS, TOKENIZER, LENGTH, **o),
    ),
    "entailment": (
        lambda: make(kgpt.TextClassifier, 2),
        PAIRS,
        LABELS,
        lambda **o: kgpt.data.entailment(*firsts_and_seconds(), LABELS, TOKENIZER, LENGTH, **o),
    ),
    "similarity": (
        lambda: make(kgpt.TextClassifier, 2, both_orders=True),
        firsts_and_seconds(),
        LABELS,
        lambda **o: kgpt.data.similarity(*firsts_and_seconds(), LABELS, TOKENIZER, LENGTH, **o),
    ),
    "regressor": (
        lambda: make(kgpt.TextRegressor),
        PAIRS,
        SCORES,
        lambda **o: kgpt.data.regression(PAIRS, SCORES, TOKENIZER, LENGTH, **o),
    ),
    "choice": (
        lambda: make(kgpt.MultipleChoice),
        (TEXTS, CHOICES),
        [2, 0, 1, 2, 2, 0, 1, 1],
        lambda **o: kgpt.data.multiple_choice(
            TEXTS, CHOICES, [2, 0, 1, 2, 2, 0, 1, 1], TOKENIZER, LENGTH, **o
        ),
    ),
}


@pytest.fixture(params=CASES)
def case(request):
    return CASES[request.param]


def test_fit_evaluate_and_predict_give_the_figures_of_kgpt_data(case):
    make_model, x, y, make_data = case
    straight, by_data = make_model(), make_model()

    histories = [
        straight.fit(x, y, batch_size=4, epochs=2, validation_data=(x, y), verbose=0).history,
        by_data.fit(
            make_data(batch_size=4), epochs=2, validation_data=make_data(batch_size=4), verbose=0
        ).history,
    ]

    for name, values in histories[1].items():
        np.testing.assert_allclose(histories[0][name], values, rtol=1e-5, err_msg=name)
    np.testing.assert_allclose(
        straight.evaluate(x, y, verbose=0), by_data.evaluate(make_data(), verbose=0), rtol=1e-5
    )
    np.testing.assert_allclose(
        straight.predict(x, verbose=0), by_data.predict(make_data(seed=None), verbose=0), atol=1e-5
    )


def make_classifier(num_classes=2, **options):
    return make(kgpt.TextClassifier, num_classes, **options)


class TestFormsOfColumns:
    FORMS = (
        ("list", TEXTS),
        ("tuple", tuple(TEXTS)),
        ("array", np.array(TEXTS)),
        ("objects", np.array(TEXTS, dtype=object)),
        ("strings", np.array(TEXTS, dtype=np.dtypes.StringDType())),
        ("pandas", None),
        ("pandas' categories", "category"),
        ("pandas' strings", "string"),
    )

    @pytest.mark.parametrize("texts", [form for _, form in FORMS], ids=[name for name, _ in FORMS])
    def test_each_gives_the_same(self, texts):
        if texts is None or isinstance(texts, str):
            pandas = pytest.importorskip("pandas", reason="a column of pandas")
            texts = pandas.Series(TEXTS, dtype=texts)
        expected = make_classifier().evaluate(TEXTS, LABELS, verbose=0)

        found = make_classifier().evaluate(texts, np.array(LABELS), verbose=0)

        np.testing.assert_allclose(found, expected, rtol=1e-6)

    def test_tf_data_of_strings_gives_the_same(self):
        import tensorflow as tf

        data = tf.data.Dataset.from_tensor_slices((TEXTS, LABELS)).batch(3)
        model = make_classifier()
        expected = model.evaluate(TEXTS, LABELS, verbose=0)

        np.testing.assert_allclose(model.evaluate(data, verbose=0), expected, rtol=1e-5)
        np.testing.assert_allclose(
            model.predict(data.map(lambda texts, labels: texts), verbose=0),
            model.predict(TEXTS, verbose=0),
            atol=1e-5,
        )
        assert len(model.fit(data, epochs=2, validation_data=data, verbose=0).history["loss"]) == 2

    def test_tf_data_without_batches_is_refused(self):
        import tensorflow as tf

        with pytest.raises(ValueError, match=r"Try dataset.batch\(32\)"):
            make_classifier().evaluate(tf.data.Dataset.from_tensor_slices((TEXTS, LABELS)))

    @pytest.mark.parametrize("name", ["fit", "evaluate", "predict"])
    def test_tf_data_without_a_text_is_refused(self, name):
        import tensorflow as tf

        data = tf.data.Dataset.from_tensor_slices((TEXTS, LABELS)).batch(3).take(0)

        with pytest.raises(ValueError, match="There are no texts"):
            getattr(make_classifier(), name)(data, verbose=0)

    def test_tf_data_of_bytes_that_are_no_text_are_refused_in_a_later_batch_too(self):
        import tensorflow as tf

        data = tf.data.Dataset.from_tensor_slices(([*TEXTS, b"a\xff"], [*LABELS, LABELS[0]]))

        with pytest.raises(
            ValueError, match=r"must be UTF-8\. Received: b'a\\xff'.*start byte at 1"
        ):
            make_classifier().evaluate(data.batch(3), verbose=0)

    @pytest.mark.parametrize("missing", [None, float("nan")])
    @pytest.mark.parametrize("place", [0, 1])
    def test_a_missing_text_is_refused_by_its_place(self, missing, place):
        texts = [*TEXTS]
        texts[place] = missing

        with pytest.raises(ValueError, match=f"of type str. Received: {missing} at index {place}"):
            make_classifier().evaluate(texts, LABELS, verbose=0)

    def test_a_single_text_is_refused(self):
        with pytest.raises(ValueError, match=r"Try \[text\]"):
            make_classifier().predict("ab")


class TestOptionsOfFit:
    def test_the_last_rows_are_for_validation(self):
        straight, by_hand = make_classifier(), make_classifier()

        histories = [
            straight.fit(TEXTS, LABELS, validation_split=0.25, verbose=0).history,
            by_hand.fit(
                TEXTS[:6], LABELS[:6], validation_data=(TEXTS[6:], LABELS[6:]), verbose=0
            ).history,
        ]

        assert histories[0] == histories[1]

    def test_weights_of_classes_and_rows_count(self):
        weights = np.linspace(0.5, 2, len(TEXTS))
        model = make_classifier()
        model.compile(keras.optimizers.SGD(0.0))
        by_row = [
            weight * (3.0 if label == 0 else 1.0)
            for weight, label in zip(weights, LABELS, strict=True)
        ]
        expected = model.evaluate(TEXTS, LABELS, sample_weight=by_row, verbose=0)[0]

        history = model.fit(
            TEXTS, LABELS, sample_weight=weights, class_weight={0: 3.0}, verbose=0
        ).history

        np.testing.assert_allclose(history["loss"], [expected], rtol=1e-5)


class TestNamesOfClasses:
    NAMES = tuple("good" if label else "bad" for label in LABELS)

    def test_they_come_from_the_first_fit_and_are_saved(self, tmp_path):
        model = make_classifier()

        model.fit(TEXTS, list(self.NAMES), class_weight={"bad": 2.0}, verbose=0)
        model.save(tmp_path / "model.keras")
        loaded = keras.models.load_model(tmp_path / "model.keras")

        assert model.class_names == loaded.class_names == ["bad", "good"]
        assert set(loaded.predict_text(TEXTS)) <= {"bad", "good"}
        np.testing.assert_allclose(
            loaded.evaluate(TEXTS, list(self.NAMES), verbose=0),
            loaded.evaluate(TEXTS, LABELS, verbose=0),
            rtol=1e-6,
        )

    def test_another_number_of_names_than_classes_is_refused(self):
        with pytest.raises(ValueError, match="2 names, bad, good, with num_classes=3"):
            make_classifier(3).fit(TEXTS, list(self.NAMES))

    def test_names_without_a_fit_are_refused(self):
        with pytest.raises(ValueError, match="Labels that are names need class_names"):
            make_classifier().evaluate(TEXTS, list(self.NAMES))


class TestLongTexts:
    LONG = ("abcdefghij", "klmnopqrst")

    def test_they_lose_their_end_or_their_start_and_a_warning_says_so(self):
        for truncate, kept in (("end", ["abc", "klm"]), ("start", ["hij", "rst"])):
            model = make_classifier(sequence_length=5, truncate=truncate)
            expected = model.predict(kept, verbose=0)

            with pytest.warns(UserWarning, match=f"2 of 2 texts .* lose their {truncate}"):
                found = model.predict(list(self.LONG), verbose=0)

            np.testing.assert_allclose(found, expected, atol=1e-6)

    def test_the_length_is_saved(self, tmp_path):
        make_classifier(sequence_length=5, truncate="start").save(tmp_path / "model.keras")

        loaded = keras.models.load_model(tmp_path / "model.keras")

        assert (loaded.sequence_length, loaded.truncate) == (5, "start")

    def test_more_than_the_body_has_is_refused(self):
        with pytest.raises(ValueError, match="max_sequence_length"):
            make_classifier(sequence_length=LENGTH + 1)


def test_without_a_tokenizer_the_error_says_what_to_do():
    model = kgpt.TextClassifier(make_backbone(), 2)

    with pytest.raises(ValueError, match=r"Try TextClassifier\(..., tokenizer=tokenizer\)"):
        model.fit(TEXTS, LABELS)


def test_a_pair_given_to_a_head_of_both_orders_as_single_texts_is_refused():
    with pytest.raises(ValueError, match=r"reads 2 sequence\(s\)"):
        make(kgpt.TextClassifier, 2, both_orders=True).fit(TEXTS, LABELS)


def test_a_head_of_ones_own_reads_batches():
    head = kgpt.Head(make_backbone(), keras.layers.Dense(1), tokenizer=TOKENIZER)

    with pytest.raises(ValueError, match="A Head reads batches of token ids"):
        head.fit(TEXTS, LABELS)


def test_a_model_that_is_not_compiled_trains_with_its_defaults():
    model = kgpt.TextClassifier(make_backbone(), 2, tokenizer=TOKENIZER)

    model.fit(TEXTS, LABELS, verbose=0)

    assert isinstance(model.optimizer, kgpt.recipes.AdamW)


def test_a_language_model_reads_tf_data_of_strings_of_any_lengths():
    import tensorflow as tf

    backbone = kgpt.GPTBackbone(TOKENIZER.vocabulary_size, 1, 1, 4, 4, 0.0, 64)
    lm = kgpt.CausalLM(backbone, tokenizer=TOKENIZER)
    lm.compile(keras.optimizers.SGD(0.0))
    texts = ["ab", "c", "d" * 40, "efg"]

    figures = lm.evaluate(tf.data.Dataset.from_tensor_slices(texts).batch(2), verbose=0)

    np.testing.assert_allclose(figures, lm.evaluate(texts, verbose=0), rtol=1e-5)


class TestValidationData:
    """A list is rows, as in `fit(list)`; a tuple is (x, y, sample_weight), as a list of columns."""

    IDS = np.random.default_rng(0).integers(0, TOKENIZER.vocabulary_size, (5, 6)).tolist()

    @pytest.mark.parametrize("rows", [TEXTS[:5], TEXTS[:2], TEXTS[:1], IDS, IDS[:2], IDS[:3]])
    def test_a_list_of_rows_is_what_evaluate_takes(self, rows):
        lm = kgpt.CausalLM(make_backbone(), TOKENIZER)
        lm.compile(keras.optimizers.SGD(0.0))

        history = lm.fit(TEXTS, validation_data=rows, verbose=0).history

        np.testing.assert_allclose(history["val_loss"], lm.evaluate(rows, verbose=0)[0], rtol=1e-5)

    @pytest.mark.parametrize("kind", [tuple, list])
    @pytest.mark.parametrize("x", [TEXTS, np.array(IDS)], ids=["texts", "arrays"])
    def test_columns_may_be_in_a_tuple_or_a_list(self, kind, x):
        model = make(kgpt.TextClassifier, 2)
        y = LABELS[: len(x)]
        y = y if isinstance(x, list) else np.array(y)

        history = model.fit(x, y, validation_data=kind([x, y]), verbose=0).history

        expected = model.evaluate(x, y, verbose=0)[0]
        np.testing.assert_allclose(history["val_loss"], expected, rtol=1e-5)


@pytest.mark.parametrize(
    ("x", "message"),
    [
        (set(TEXTS), "texts must be in the order"),
        ([("ab", "cd"), {"ef", "gh"}] * 4, r"x\[1\] must be in the order"),
    ],
)
def test_texts_without_an_order_are_refused(x, message):
    with pytest.raises(ValueError, match=message):
        make(kgpt.TextClassifier, 2).fit(x, LABELS)


def test_labels_may_be_a_tensor_of_the_backend():
    labels = keras.ops.convert_to_tensor(LABELS)
    of_tensor, of_list = make(kgpt.TextClassifier, 2), make(kgpt.TextClassifier, 2)

    histories = [
        model.fit(TEXTS, y, validation_split=0.25, verbose=0).history["val_loss"]
        for model, y in ((of_tensor, labels), (of_list, LABELS))
    ]

    np.testing.assert_allclose(*histories, rtol=1e-6)


@pytest.mark.parametrize("kind", ["generator", "PyDataset", "grain", "DataLoader"])
def test_texts_in_other_sources_are_refused_by_one_sentence(kind):
    texts, labels = ["ab", "cd", "e"], np.array([0, 1, 0])
    make = SOURCES[kind]
    if kind == "DataLoader":
        make = pytest.importorskip("torch").utils.data.DataLoader
    data = make([*zip(texts, labels, strict=True)]) if kind == "DataLoader" else make(texts, labels)
    backbone = kgpt.GPTBackbone(TOKENIZER.vocabulary_size, 1, 1, 4, 16)
    classifier = kgpt.TextClassifier(backbone, 2, tokenizer=TOKENIZER)

    with pytest.raises(ValueError, match=r"^Texts go into .* other sources, take token ids"):
        classifier.fit(data, verbose=0)
