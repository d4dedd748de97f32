"""A `TextClassifier` of texts that may be of several classes, or of none; smoothed labels."""

import keras
import numpy as np
import pytest
from labelled import TOKENIZER
from oracles import randomize, to_numpy
from sources import SOURCES

import kgpt

TEXTS = ["ab", "cd", "efg", "h", "ijk", "lm", "nop", "q"]
MULTI_HOT = np.array(
    [[1, 0, 0], [1, 1, 0], [0, 0, 0], [0, 1, 1], [1, 1, 1], [0, 0, 1], [0, 1, 0], [1, 0, 1]]
)
NAMES = ["art", "film", "news"]
NUMBERS_OF = [np.flatnonzero(row).tolist() for row in MULTI_HOT]
NAMES_OF = [[NAMES[i] for i in row] for row in NUMBERS_OF]
LENGTH = 16


def make(num_classes=3, optimizer=None, hidden_dim=12, **options):
    keras.utils.set_random_seed(0)
    backbone = kgpt.GPTBackbone(TOKENIZER.vocabulary_size, 1, 3, hidden_dim, 12, 0.0, LENGTH)
    options = {"tokenizer": TOKENIZER, "dropout": 0.0, "multi_label": True, **options}
    model = randomize(kgpt.TextClassifier(backbone, num_classes, **options))
    model.compile(optimizer or keras.optimizers.SGD(0.0))
    return model


@pytest.fixture(scope="module")
def model():
    return make(class_names=NAMES)


def data(labels, **options):
    return kgpt.data.classification(TEXTS, labels, TOKENIZER, LENGTH, **options)


def arrays():
    [(x, y)] = data(MULTI_HOT, batch_size=8, seed=None)
    return x, y


def figures(model, *args, **options):
    return model.evaluate(*args, verbose=0, return_dict=True, **options)


def assert_same(found, expected):
    for name, value in expected.items():
        np.testing.assert_allclose(found[name], value, rtol=1e-5, err_msg=name)


class TestFigures:
    @pytest.mark.parametrize("label_smoothing", [0.0, 0.2])
    def test_the_task_loss_is_kerass_and_the_other_loss_stays(self, label_smoothing):
        model = make(label_smoothing=label_smoothing, lm_loss_weight=0.5)
        plain = make(label_smoothing=label_smoothing, lm_loss_weight=0.0)
        x, y = arrays()
        keras_loss = keras.losses.BinaryCrossentropy(True, label_smoothing=label_smoothing)

        found = figures(model, x, y)

        np.testing.assert_allclose(found["task_loss"], to_numpy(keras_loss(y, model(x))), rtol=1e-5)
        assert found["loss"] == pytest.approx(found["task_loss"] + 0.5 * found["lm_loss"], 1e-5)
        assert figures(plain, x, y)["loss"] == pytest.approx(found["task_loss"], 1e-5)

    def test_f1_is_scikit_learns_over_batches_with_weights(self, model):
        metrics = pytest.importorskip("sklearn.metrics", reason="scikit-learn is the reference")
        weights = np.linspace(0.5, 2, len(TEXTS))
        predicted = model.predict(TEXTS, verbose=0) > 0

        found = figures(model, TEXTS, MULTI_HOT, sample_weight=weights, batch_size=3)

        expected = metrics.f1_score(MULTI_HOT, predicted, average="macro", sample_weight=weights)
        assert 0.1 < expected < 0.9
        assert found["f1"] == pytest.approx(expected, 1e-5)

    @pytest.mark.parametrize(
        "labels",
        [
            NAMES_OF,
            NUMBERS_OF,
            [set(row) for row in NAMES_OF],
            MULTI_HOT.astype(bool),
            MULTI_HOT.astype("float32").tolist(),
            list(MULTI_HOT.astype(bool)),
        ],
    )
    def test_labels_are_the_same_in_each_form(self, labels):
        batches = data(labels, class_names=NAMES)

        np.testing.assert_array_equal(batches.labels, MULTI_HOT)
        [(_, y)] = data(labels, class_names=NAMES, batch_size=8, seed=None)
        assert (y.shape, y.dtype) == (MULTI_HOT.shape, "uint8")

    @pytest.mark.parametrize("labels", [NAMES_OF, NUMBERS_OF])
    def test_lists_go_straight_in(self, model, labels):
        assert_same(figures(model, TEXTS, labels), figures(model, TEXTS, MULTI_HOT))

    @pytest.mark.parametrize("source", SOURCES)
    def test_every_source_of_batches_gives_the_same(self, model, source):
        x, y = arrays()
        if source == "DataLoader":
            pytest.importorskip("torch")

        assert_same(figures(model, SOURCES[source](x, y)), figures(model, x, y))

    def test_tf_data_of_strings_gives_the_same(self, model):
        import tensorflow as tf

        dataset = tf.data.Dataset.from_tensor_slices((TEXTS, MULTI_HOT)).batch(3)

        assert_same(figures(model, dataset), figures(model, TEXTS, MULTI_HOT))

    def test_keras_losses_and_metrics_on_the_logits_work(self):
        model = make()
        x, y = arrays()
        auc = keras.metrics.AUC(multi_label=True, num_labels=3, from_logits=True, name="auc")
        model.compile("sgd", keras.losses.BinaryCrossentropy(True), metrics=[auc])

        found = figures(model, x, y)

        assert found["loss"] == pytest.approx(figures(make(), x, y)["task_loss"], 1e-5)
        assert 0 <= found["auc"] <= 1


class TestTraining:
    @pytest.mark.compiled
    def test_it_learns_names_from_texts_reports_all_and_is_saved(self, tmp_path):
        model = make(hidden_dim=24)
        model.compile(keras.optimizers.Adam(2e-2))

        options = {"validation_data": data(MULTI_HOT), "validation_freq": 40, "verbose": 0}
        history = model.fit(TEXTS, NAMES_OF, epochs=40, **options).history
        model.save(tmp_path / "model.keras")
        loaded = keras.models.load_model(tmp_path / "model.keras")

        names = {"loss", "task_loss", "lm_loss", "f1"}
        assert set(history) == names | {f"val_{name}" for name in names}
        assert history["val_f1"] == [pytest.approx(1.0)]
        for one in (model, loaded):
            assert one.class_names == NAMES
            assert one.predict_text(TEXTS) == NAMES_OF

    def test_the_last_rows_are_for_validation(self):
        histories = [
            make().fit(TEXTS, labels, validation_split=0.25, verbose=0).history
            for labels in (MULTI_HOT, NUMBERS_OF)
        ]

        assert histories[0] == histories[1]

    def test_without_labels_training_is_refused(self):
        with pytest.raises(ValueError, match="needs labels"):
            make().fit(data(None), verbose=0)


class TestAnswers:
    def test_they_are_the_classes_above_a_threshold(self, model):
        probabilities = model.predict_text(TEXTS, probabilities=True)
        logits = model.predict(TEXTS, verbose=0)

        np.testing.assert_allclose(probabilities, 1 / (1 + np.exp(-logits)), rtol=1e-5)
        for threshold in (None, 0.3, 0.9):
            found = model.predict_text(TEXTS, threshold=threshold)
            for row, shares in zip(found, probabilities, strict=True):
                assert row == [
                    n for n, p in zip(NAMES, shares, strict=True) if p > (threshold or 0.5)
                ]

    def test_without_names_they_are_numbers(self):
        answers = make().predict_text(TEXTS, threshold=1e-6)

        assert answers == [[0, 1, 2]] * len(TEXTS)

    @pytest.mark.parametrize("options", [{"probabilities": True}, {"multi_label": False}])
    def test_a_threshold_without_effect_is_refused(self, options):
        model = make(multi_label=options.pop("multi_label", True))

        with pytest.raises(ValueError, match=r"threshold chooses among .*Received: threshold=0\.5"):
            model.predict_text(TEXTS, threshold=0.5, **options)


class TestRefused:
    @pytest.mark.parametrize(
        ("labels", "message"),
        [
            (
                [0, 1] * 4,
                r"0 or 1 for each class, of shape \(examples, 3\). Received: shape \(8,\)",
            ),
            (MULTI_HOT[:, :2], r"shape \(examples, 3\).*Received: shape \(8, 2\)"),
            (MULTI_HOT * 2, r"must be 0 or 1 for each class. Received: .*2"),
            (MULTI_HOT - 0.5, r"must be 0 or 1 for each class. Received: .*0\.5"),
            (np.where(MULTI_HOT, np.nan, 0), "Received: .*nan"),
            (MULTI_HOT.tolist(), r"name each class once.*try np\.array\(labels\)"),
            ([[0, 3]] * 8, "one of the 3 classes. Received: 3 at index 0"),
            ([[0]] * 7 + [["art"]], "must have names of classes, numbers of classes, or"),
            ([[0]] * 7 + [None], r"\[\] for none.*Received: .* None at index 7"),
            ([["music"]] * 8, "Received: 'music' at index 0"),
            ([[0.0, 1.0]] * 7 + [[1.0]], "same length.*rows of 1 to 2"),
        ],
    )
    def test_labels_of_the_wrong_kind(self, model, labels, message):
        for call in (
            lambda: model.fit(TEXTS, labels, verbose=0),
            lambda: model.evaluate(data(labels, class_names=NAMES), verbose=0),
        ):
            with pytest.raises(ValueError, match=message):
                call()
        assert int(model.optimizer.iterations) == 0

    @pytest.mark.parametrize(
        ("labels", "message"),
        [
            (MULTI_HOT[:, :2], r"Received: shape \(8, 2\)"),
            (MULTI_HOT[:, 0], r"Received: shape \(8,\)"),
            (MULTI_HOT + 1, "must be 0 or 1. Received: .*2"),
        ],
    )
    def test_arrays_and_tf_data_of_the_wrong_kind(self, labels, message):
        model = make()
        x, _ = arrays()

        with pytest.raises(ValueError, match=message):
            model.evaluate(x, labels, verbose=0)
        if labels.shape != MULTI_HOT.shape:
            with pytest.raises(ValueError, match=message.replace("8", r"(8|2|None)")):
                model.evaluate(SOURCES["tf.data"](x, labels), verbose=0)

    def test_rows_of_tf_data_with_other_numbers_do_not_count(self):
        model = make()
        x, y = arrays()
        wrong = y.astype("int32")
        wrong[3, 1] = 7
        expected = figures(model, x, y, sample_weight=np.arange(8) != 3)

        with pytest.warns(UserWarning, match="1 targets were left out"):
            found = figures(model, SOURCES["tf.data"](x, wrong))

        assert_same(found, {"task_loss": expected["task_loss"], "f1": expected["f1"]})

    def test_rows_for_a_model_of_one_class_each(self):
        model = make(multi_label=False)

        for labels in (MULTI_HOT, NUMBERS_OF, NAMES_OF):
            with pytest.raises(ValueError, match=r"TextClassifier\(\.\.\., multi_label=True\)"):
                model.fit(TEXTS, labels, verbose=0)

    def test_weights_of_classes(self, model):
        with pytest.raises(ValueError, match=r"it may have several.*Try sample_weight"):
            model.fit(TEXTS, MULTI_HOT, class_weight={0: 2.0}, verbose=0)

    def test_numbers_without_a_number_of_classes(self):
        with pytest.raises(ValueError, match=r"Try class_names=range\(5\)"):
            data(NUMBERS_OF)
        assert data(NUMBERS_OF, class_names=range(3)).labels.tolist() == MULTI_HOT.tolist()

    def test_lists_that_may_be_rows_of_0_and_1(self):
        with pytest.raises(ValueError, match=r"give each text both.*try np\.array\(labels\)"):
            data([[0, 1], [1, 0]] * 4, class_names=range(2))


def test_pairs_may_be_of_several_classes_too():
    pairs = list(zip(TEXTS, TEXTS[::-1], strict=True))
    model = make(both_orders=True)

    found = figures(model, pairs, NUMBERS_OF)

    by_data = kgpt.data.similarity(TEXTS, TEXTS[::-1], MULTI_HOT, TOKENIZER, LENGTH)
    assert_same(figures(model, by_data), found)


class TestSmoothing:
    def test_the_loss_of_one_class_each_is_kerass(self):
        labels = np.arange(8) % 3
        model = make(multi_label=False, label_smoothing=0.3)
        keras_loss = keras.losses.CategoricalCrossentropy(True, label_smoothing=0.3)

        found = figures(model, TEXTS, labels)

        logits = model.predict(TEXTS, verbose=0)
        np.testing.assert_allclose(
            found["task_loss"], to_numpy(keras_loss(np.eye(3)[labels], logits)), rtol=1e-5
        )
        assert found["loss"] == pytest.approx(found["task_loss"] + 0.5 * found["lm_loss"], 1e-5)
        assert found["loss"] > figures(make(multi_label=False), TEXTS, labels)["loss"]

    def test_it_is_saved(self, tmp_path):
        make(label_smoothing=0.3).save(tmp_path / "model.keras")

        loaded = keras.models.load_model(tmp_path / "model.keras")

        assert (loaded.label_smoothing, loaded.multi_label) == (0.3, True)
