"""Arguments of `fit`, `evaluate` and `predict`: each acts, whatever the data are, or is refused."""

import keras
import numpy as np
import pytest
from labelled import TOKENIZER
from sources import SOURCES, Rows, generator

import kgpt

TEXTS = ["ab", "cd", "efg", "h", "ijk", "lm"]
LABELS = [0, 1, 0, 1, 1, 0]
LENGTH = 8


def make_classifier(**options):
    keras.utils.set_random_seed(0)
    backbone = kgpt.GPTBackbone(TOKENIZER.vocabulary_size, 1, 1, 4, 4, 0.0, LENGTH)
    model = kgpt.TextClassifier(backbone, 2, dropout=0.0, **options)
    model.compile(keras.optimizers.SGD(0.0))
    return model


def make_data(batch_size=2, **options):
    return kgpt.data.classification(TEXTS, LABELS, TOKENIZER, LENGTH, batch_size, **options)


def make_arrays():
    """All rows as one batch of arrays, int32 labels among them."""
    [(x, y)] = make_data(batch_size=len(TEXTS), seed=None)
    return x, y


def loss_of(model, *data, **options):
    return model.fit(*data, verbose=0, **options).history["loss"][0]


class Broken(Rows):
    """Rows of which the last batch can't be read."""

    def __getitem__(self, index):
        if index == len(self) - 1:
            raise KeyError("the last one")
        return super().__getitem__(index)


def broken_generator(*columns):
    rows = Broken(*columns)
    return (rows[i] for i in range(len(rows)))


def broken_loader(*columns):
    from torch.utils.data import DataLoader

    return DataLoader(Broken(*columns), batch_size=None)


@pytest.mark.parametrize("source", [Broken, broken_generator, broken_loader])
@pytest.mark.parametrize("does", ["fit", "evaluate"])
def test_an_error_of_a_source_is_raised_as_it_is(source, does):
    """TensorFlow, which reads in a function of its own, makes another error of it."""
    with pytest.raises(KeyError, match="the last one"):
        getattr(make_classifier(), does)(source(*make_arrays()), verbose=0)


CLASS_WEIGHT = {0: 10.0, 1: 0.5}


class TestClassWeight:
    def expected(self):
        """The loss of weighted rows, by hand: each row's loss times the weight of its class."""
        model, (x, y) = make_classifier(), make_arrays()
        weights = np.array([CLASS_WEIGHT[label] for label in y], "float32")
        return model.evaluate(x, y, sample_weight=weights, verbose=0, return_dict=True)["loss"]

    def test_it_counts_with_arrays(self):
        loss = loss_of(make_classifier(), *make_arrays(), class_weight=CLASS_WEIGHT)

        np.testing.assert_allclose(loss, self.expected(), rtol=1e-5)

    def test_it_counts_with_batches_of_kgpt_data(self):
        loss = loss_of(make_classifier(), make_data(), class_weight=CLASS_WEIGHT)

        np.testing.assert_allclose(loss, self.expected(), rtol=1e-5)

    @pytest.mark.parametrize("source", SOURCES.values(), ids=SOURCES)
    def test_it_counts_with_every_source(self, source):
        loss = loss_of(make_classifier(), source(*make_arrays()), class_weight=CLASS_WEIGHT)

        np.testing.assert_allclose(loss, self.expected(), rtol=1e-5)

    def test_it_is_a_factor_beside_weights_of_rows(self):
        rows = np.linspace(0.5, 2, len(TEXTS)).tolist()
        model, (x, y) = make_classifier(), make_arrays()
        [(_, _, ordered)] = make_data(len(TEXTS), seed=None, sample_weight=rows)
        weights = ordered * np.array([CLASS_WEIGHT[label] for label in y], "float32")
        expected = model.evaluate(x, y, sample_weight=weights, verbose=0)[0]

        data = make_data(sample_weight=rows)
        loss = loss_of(make_classifier(), data, class_weight=CLASS_WEIGHT)

        np.testing.assert_allclose(loss, expected, rtol=1e-5)

    def test_it_does_not_count_in_validation_nor_in_the_next_fit(self):
        model, arrays = make_classifier(), make_arrays()
        plain = model.evaluate(*arrays, verbose=0)[0]

        history = model.fit(
            *arrays, class_weight=CLASS_WEIGHT, validation_data=arrays, verbose=0
        ).history
        second = loss_of(model, *arrays)

        assert history["loss"][0] > 2 * plain
        np.testing.assert_allclose([history["val_loss"][0], second], [plain, plain], rtol=1e-5)

    def test_it_counts_with_a_loss_of_keras(self):
        model, (x, y) = make_classifier(), make_arrays()
        model.compile("sgd", keras.losses.SparseCategoricalCrossentropy(from_logits=True))
        weights = np.array([CLASS_WEIGHT[label] for label in y], "float32")
        expected = model.evaluate(x, y, sample_weight=weights, verbose=0)

        loss = loss_of(model, make_data(batch_size=6), class_weight=CLASS_WEIGHT)

        np.testing.assert_allclose(loss, expected, rtol=1e-5)

    def test_it_counts_in_train_on_batch(self):
        loss = make_classifier().train_on_batch(*make_arrays(), class_weight=CLASS_WEIGHT)[0]

        np.testing.assert_allclose(loss, self.expected(), rtol=1e-5)

    def test_names_of_classes_are_keys_too(self):
        model = make_classifier(class_names=["low", "high"])

        loss = loss_of(model, *make_arrays(), class_weight={"high": 0.5, "low": 10.0})

        np.testing.assert_allclose(loss, self.expected(), rtol=1e-5)

    def test_it_counts_for_multiple_choice(self):
        model = kgpt.MultipleChoice(make_classifier().backbone, dropout=0.0)
        model.compile(keras.optimizers.SGD(0.0))
        choices = [["a", "b"]] * len(TEXTS)
        data = kgpt.data.multiple_choice(TEXTS, choices, LABELS, TOKENIZER, LENGTH, 6, seed=None)
        [(x, y)] = data
        weights = np.where(y == 0, 10.0, 0.5).astype("float32")
        expected = model.evaluate(x, y, sample_weight=weights, verbose=0)[0]

        loss = loss_of(model, data, class_weight=CLASS_WEIGHT)

        np.testing.assert_allclose(loss, expected, rtol=1e-5)

    @pytest.mark.parametrize(
        ("class_weight", "words"),
        [
            ({2: 1.0}, "Received: 2"),
            ({"low": 1.0}, "Received: 'low'"),
            ({0: -1.0}, "Received: -1.0 for 0"),
            ({0: float("nan")}, "Received: nan for 0"),
            ([1.0, 2.0], "must be a dict"),
            ({}, "must be a dict"),
            ({0: 5.0, "a": 1.0}, "each class once"),
            ({0: 0.0, "b": 0}, "a weight of 0 for each class"),
        ],
        ids=["class", "name", "negative", "nan", "list", "empty", "twice", "zeros"],
    )
    def test_what_can_not_be_a_weight_of_a_class_is_refused(self, class_weight, words):
        with pytest.raises(ValueError, match=words):
            make_classifier(class_names=["a", "b"]).fit(
                make_data(), class_weight=class_weight, verbose=0
            )

    @pytest.mark.parametrize(
        ("class_weight", "words"),
        [({7: 5.0}, r"ints in \[0, 2\). Received: 7"), ({0: 0.0, 1: 0.0}, "leave something")],
        ids=["class", "zeros"],
    )
    def test_so_is_what_can_not_be_a_weight_of_a_choice(self, class_weight, words):
        model = kgpt.MultipleChoice(make_classifier().backbone)
        x, y = np.ones((4, 2, 3), "int32"), np.array([0, 1, 0, 1])

        with pytest.raises(ValueError, match=words):
            model.fit(x, y, class_weight=class_weight, verbose=0)

    def test_models_without_classes_refuse_it(self):
        backbone = make_classifier().backbone
        ids = np.ones((2, 4), "int32")
        for model in (kgpt.CausalLM(backbone), kgpt.TextRegressor(backbone)):
            model.compile()
            with pytest.raises(ValueError, match="has no classes to weigh"):
                model.fit(ids, ids, class_weight={0: 2.0}, verbose=0)


class TestBesideBatches:
    @pytest.mark.parametrize(
        "arguments",
        [
            {"y": np.array(LABELS)},
            {"sample_weight": np.ones(6)},
            {"batch_size": 3},
            {"validation_split": 0.5},
            {"shuffle": True},
        ],
        ids=str,
    )
    def test_what_has_no_effect_is_refused_in_fit(self, arguments):
        [name] = arguments
        for data in (make_data(), generator(*make_arrays())):
            with pytest.raises(ValueError, match=f"{name} has no effect beside"):
                make_classifier().fit(data, **arguments, verbose=0)

    def test_batches_in_their_own_order_may_be_said_not_to_be_shuffled(self):
        with pytest.raises(ValueError, match="shuffle has no effect beside"):
            make_classifier().fit(make_data(), shuffle=False)
        make_classifier().fit(generator(*make_arrays()), shuffle=False, verbose=0)

    @pytest.mark.parametrize("name", ["y", "sample_weight", "batch_size"])
    def test_what_has_no_effect_is_refused_in_evaluate(self, name):
        with pytest.raises(ValueError, match=f"{name} has no effect beside"):
            make_classifier().evaluate(make_data(), **{name: 3}, verbose=0)

    def test_what_has_no_effect_is_refused_in_predict_and_validation(self):
        model = make_classifier()
        with pytest.raises(ValueError, match="batch_size has no effect beside"):
            model.predict(make_data(), batch_size=3)
        with pytest.raises(ValueError, match="validation_batch_size has no effect beside"):
            model.fit(*make_arrays(), validation_data=make_data(), validation_batch_size=3)
        with pytest.raises(ValueError, match="y has no effect beside"):
            model.fit(*make_arrays(), validation_data=(make_data(), np.array(LABELS)))

    def test_a_misspelt_argument_is_refused(self):
        with pytest.raises(TypeError, match="validation_step"):
            make_classifier().fit(make_data(), validation_step=2)

    def test_arrays_take_them_all(self):
        history = make_classifier().fit(
            *make_arrays(),
            batch_size=3,
            validation_split=0.5,
            shuffle=False,
            sample_weight=np.ones(6),
            verbose=0,
        )

        assert {"loss", "val_loss"} <= set(history.history)


WRONG = {
    "epochs": [-1, 1.5, "2", True, None],
    "initial_epoch": [-1, 0.5],
    "batch_size": [0, -3, "8", 2.0],
    "verbose": ["yes", 3, None],
    "callbacks": ["x", 5, [keras.callbacks.History(), "x"]],
    "shuffle": [0, "yes", "batch"],
    "steps_per_epoch": [0, -1],
    "validation_split": [-0.1, 1.0, "half"],
    "validation_steps": [0],
    "validation_batch_size": [0],
    "validation_freq": [0, [0], "2", []],
}


class TestValues:
    @pytest.mark.parametrize(
        ("name", "value"), [(name, value) for name, values in WRONG.items() for value in values]
    )
    def test_what_can_not_be_meant_is_refused_in_fit(self, name, value):
        with pytest.raises(ValueError, match=f"^{name} must be .* Received: {name}="):
            make_classifier().fit(*make_arrays(), **{"verbose": 0, name: value})

    @pytest.mark.parametrize("method", ["evaluate", "predict"])
    @pytest.mark.parametrize(
        ("name", "value"), [("steps", 0), ("batch_size", 0), ("verbose", "yes"), ("callbacks", 5)]
    )
    def test_and_in_evaluate_and_predict(self, method, name, value):
        with pytest.raises(ValueError, match=f"^{name} must be .* Received: {name}="):
            getattr(make_classifier(), method)(make_arrays()[0], **{"verbose": 0, name: value})

    @pytest.mark.parametrize(
        "arguments",
        [{"validation_steps": 1}, {"validation_freq": 2}, {"validation_batch_size": 2}],
        ids=str,
    )
    def test_arguments_of_a_validation_need_one(self, arguments):
        with pytest.raises(ValueError, match="has no effect without validation"):
            make_classifier().fit(*make_arrays(), **arguments)

    def test_a_checkpoint_that_could_not_be_loaded_is_refused_before_training(self, tmp_path):
        model = make_classifier()
        callback = keras.callbacks.ModelCheckpoint(tmp_path / "a.h5")

        with pytest.raises(ValueError, match=r"Try '.*a\.keras'"):
            model.fit(*make_arrays(), callbacks=[[callback]], verbose=0)

        assert model.optimizer.iterations == 0
        callback = keras.callbacks.ModelCheckpoint(
            tmp_path / "a.weights.h5", save_weights_only=True
        )
        model.fit(*make_arrays(), callbacks=callback, verbose=0)
        assert (tmp_path / "a.weights.h5").exists()

    def test_one_validation_is_enough(self):
        x, y = make_arrays()
        with pytest.raises(ValueError, match="validation_split has no effect beside"):
            make_classifier().fit(x, y, validation_split=0.5, validation_data=(x, y))

    def test_what_keras_takes_is_taken(self):
        x, y = make_arrays()
        model = make_classifier()

        history = model.fit(
            *(x, y, np.int64(2), np.int64(3), False, [[keras.callbacks.History()]]),
            shuffle=np.False_,
            validation_data=(x, y),
            validation_freq=(1, 3),
        ).history

        assert {name: len(values) for name, values in history.items()} == {
            **dict.fromkeys(("loss", "task_loss", "lm_loss", "accuracy"), 3),
            **dict.fromkeys(("val_loss", "val_task_loss", "val_lm_loss", "val_accuracy"), 2),
        }
        assert model.fit(x, y, validation_freq=1, verbose=0).history["loss"]


class TestTables:
    def test_a_table_of_numbers_is_an_array(self):
        pandas = pytest.importorskip("pandas", reason="the extra `test`")
        x, y = make_arrays()
        ids, labels = pandas.DataFrame(x["token_ids"]), pandas.DataFrame({"label": y})
        model = make_classifier()

        figures = [
            (*model.evaluate(*data, verbose=0), loss_of(model, *data), model.predict(data[0]).sum())
            for data in ((x["token_ids"], y), (ids, labels), ({"token_ids": ids}, labels["label"]))
        ]

        np.testing.assert_allclose(figures[1:], [figures[0]] * 2, rtol=1e-6)

    def test_a_whole_data_set_of_the_hub_is_refused_with_its_columns(self):
        datasets = pytest.importorskip("datasets", reason="the extra `test`")
        rows = datasets.Dataset.from_dict({"text": TEXTS, "label": LABELS})
        for data in (rows, datasets.DatasetDict({"train": rows})):
            with pytest.raises(ValueError, match=r"columns \['text', 'label'\]. Try .*\['text'\]"):
                make_classifier(tokenizer=TOKENIZER).fit(data, verbose=0)

    def test_a_file_is_refused(self, tmp_path):
        with pytest.raises(ValueError, match=r"Received: x=.*kgpt.data.windows make batches"):
            make_classifier().fit(tmp_path / "book.txt", verbose=0)


class TestKeywords:
    @pytest.mark.parametrize(
        ("method", "name", "meant"),
        [
            ("fit", "labels", "y"),
            ("fit", "val_data", "validation_data"),
            ("fit", "sample_weights", "sample_weight"),
            ("fit", "num_train_epochs", "epochs"),
            ("evaluate", "verbos", "verbose"),
            ("evaluate", "labels", "y"),
            ("predict", "batchsize", "batch_size"),
            ("train_on_batch", "class_weights", "class_weight"),
        ],
    )
    def test_unknown_ones_are_refused_with_the_nearest(self, method, name, meant):
        with pytest.raises(TypeError, match=rf"{method}\(\) has no .*Did you mean {meant}\?"):
            getattr(make_classifier(), method)(make_arrays()[0], **{name: 1})

    def test_the_learning_rate_is_the_optimizers(self):
        with pytest.raises(TypeError, match=r"belongs to the optimizer.*compile"):
            make_classifier().fit(make_data(), learning_rate=1e-3)


class TestBatches:
    def test_a_model_that_is_not_compiled_is_compiled_as_in_fit(self):
        backbone = make_classifier().backbone
        ids = np.ones((2, 4), "int32")
        expected = kgpt.CausalLM(backbone).evaluate(ids, verbose=0)[0]

        tested = kgpt.CausalLM(backbone).test_on_batch(ids)[0]
        trained = kgpt.CausalLM(backbone).train_on_batch(ids)[0]

        np.testing.assert_allclose([tested, trained], expected, rtol=1e-5)

    @pytest.mark.parametrize("texts", [["ab"], np.array(["ab", "cd"])], ids=["list", "array"])
    @pytest.mark.parametrize(
        "method", ["train_on_batch", "test_on_batch", "predict_on_batch", "__call__"]
    )
    def test_texts_are_for_fit_and_predict(self, method, texts):
        classifier = make_classifier()
        for model in (classifier, kgpt.CausalLM(classifier.backbone, TOKENIZER)):
            with pytest.raises(ValueError, match="Texts go into fit, evaluate and predict"):
                getattr(model, method)(texts)
