"""What models are compiled with: metrics without targets, losses of Keras, rates of callbacks."""

import warnings

import keras
import numpy as np
import pytest
from oracles import randomize

import kgpt

VOCABULARY, LENGTH = 11, 6
IDS = np.random.default_rng(0).integers(0, VOCABULARY, (4, LENGTH)).astype("int32")
MASK = np.arange(LENGTH) < np.array([[6], [4], [3], [2]])


def make_lm():
    keras.utils.set_random_seed(0)
    return kgpt.CausalLM(randomize(kgpt.GPTBackbone(VOCABULARY, 1, 1, 4, 4, 0.0, LENGTH)))


class TestMetricsWithoutTargets:
    def make_lm(self, **arguments):
        lm = make_lm()
        lm.compile(keras.optimizers.SGD(0.0), **arguments)
        return lm

    def metric(self):
        return keras.metrics.SparseCategoricalAccuracy(name="hits")

    @pytest.mark.parametrize("kind", ["metrics", "weighted_metrics"])
    @pytest.mark.parametrize("x", [IDS, {"token_ids": IDS, "padding_mask": MASK}], ids=["", "mask"])
    def test_they_are_those_of_the_next_tokens_that_count(self, kind, x):
        lm = self.make_lm(**{kind: [self.metric()]})
        logits = keras.ops.convert_to_numpy(lm(x))[:, :-1]
        counts = MASK[:, 1:] if isinstance(x, dict) else np.ones((4, LENGTH - 1))
        expected = ((logits.argmax(-1) == IDS[:, 1:]) * counts).sum() / counts.sum()

        evaluated = lm.evaluate(x, batch_size=3, verbose=0, return_dict=True)
        trained = lm.fit(x, batch_size=3, verbose=0).history

        np.testing.assert_allclose(evaluated["hits"], expected, rtol=1e-6)
        np.testing.assert_allclose(trained["hits"], [expected], rtol=1e-6)
        np.testing.assert_allclose(evaluated["accuracy"], expected, rtol=1e-6)

    def test_targets_that_are_left_out_do_not_count_in_them(self):
        lm = self.make_lm(metrics=[self.metric()])
        y = np.roll(IDS, -1, axis=1)
        y[:, -2:] = -100
        logits = keras.ops.convert_to_numpy(lm(IDS))

        figures = lm.evaluate(IDS, y, verbose=0, return_dict=True)

        expected = (logits.argmax(-1) == y)[:, :-2].mean()
        np.testing.assert_allclose(figures["hits"], expected, rtol=1e-6)


class TestLossesOfProbabilities:
    LOSSES = (
        "sparse_categorical_crossentropy",
        keras.losses.SparseCategoricalCrossentropy(),
        keras.losses.sparse_categorical_crossentropy,
        "categorical_crossentropy",
    )

    @pytest.mark.parametrize("loss", LOSSES, ids=["name", "object", "function", "one-hot"])
    def test_a_loss_that_takes_logits_for_probabilities_is_warned_of(self, loss):
        classifier = kgpt.TextClassifier(make_lm().backbone, 2)
        for model in (make_lm(), classifier):
            with pytest.warns(UserWarning, match=r"CategoricalCrossentropy\(from_logits=True\)"):
                model.compile("sgd", loss)

    def test_other_losses_pass(self):
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            make_lm().compile("sgd", keras.losses.SparseCategoricalCrossentropy(from_logits=True))
            kgpt.TextRegressor(make_lm().backbone).compile("sgd", "mse")
            make_lm().compile("sgd", lambda y, logits: keras.ops.mean(logits))


class TestCallbacksThatSetTheRate:
    CALLBACKS = (
        keras.callbacks.LearningRateScheduler(lambda epoch: 0.1),
        keras.callbacks.ReduceLROnPlateau(),
    )

    @pytest.mark.parametrize("callback", CALLBACKS, ids=lambda callback: type(callback).__name__)
    def test_the_default_optimizer_says_which_one_to_pass(self, callback):
        lm = make_lm()
        lm.compile()

        with pytest.raises(ValueError, match=r"kgpt.recipes.AdamW\(2.5e-4"):
            lm.fit(IDS, callbacks=[callback], verbose=0)

    @pytest.mark.parametrize(
        "nest", [lambda one: [[one]], lambda one: keras.callbacks.CallbackList([one])]
    )
    def test_it_finds_them_in_lists_of_callbacks(self, nest):
        with pytest.raises(ValueError, match=r"kgpt.recipes.AdamW\(2.5e-4"):
            make_lm().fit(IDS, callbacks=nest(keras.callbacks.ReduceLROnPlateau()), verbose=0)

    def test_the_optimizer_that_is_named_works_with_them(self):
        lm = make_lm()
        optimizer = kgpt.recipes.AdamW(2.5e-4, weight_decay=0.01, global_clipnorm=1.0)
        lm.compile(optimizer=optimizer)

        lm.fit(IDS, callbacks=[keras.callbacks.LearningRateScheduler(lambda epoch: 0.1)], verbose=0)

        np.testing.assert_allclose(float(lm.optimizer.learning_rate), 0.1, rtol=1e-6)


def test_a_sampler_is_answered_with_where_it_belongs():
    lm = kgpt.CausalLM(kgpt.GPTBackbone(30, 1, 1, 4, 8))

    with pytest.raises(TypeError, match=r"compile\(\) has no argument 'sampler'.*lm.generate"):
        lm.compile(sampler="greedy")
    with pytest.raises(TypeError, match=r"'jit_compiled'. Did you mean jit_compile"):
        lm.compile(jit_compiled=True)


class TestTheDefaultSchedule:
    @pytest.mark.parametrize("first", [0, 1, 2])
    def test_it_ends_with_the_fit_wherever_its_epochs_begin(self, first):
        lm = make_lm()

        lm.fit(IDS, batch_size=2, epochs=3, initial_epoch=first, verbose=0)

        assert int(lm.optimizer.iterations) == 2 * (3 - first)
        np.testing.assert_allclose(float(lm.optimizer.learning_rate), 0.0, atol=1e-9)

    @pytest.mark.parametrize("epochs", [{"epochs": 0}, {"epochs": 2, "initial_epoch": 2}], ids=str)
    def test_no_epochs_train_nothing(self, epochs):
        lm = make_lm()

        assert lm.fit(IDS, **epochs, verbose=0).history == {}
        assert int(lm.optimizer.iterations) == 0


class TestMetricsOfProbabilities:
    @pytest.mark.parametrize(
        ("metric", "for_logits"),
        [
            ("sparse_categorical_crossentropy", "from_logits=True"),
            (keras.metrics.CategoricalCrossentropy(), "from_logits=True"),
            ("binary_accuracy", "threshold=0.0"),
            ("AUC", "from_logits=True"),
            (keras.metrics.Recall(), "thresholds=0.0"),
        ],
    )
    @pytest.mark.parametrize("kind", ["metrics", "weighted_metrics"])
    def test_one_that_takes_logits_for_probabilities_is_warned_of(self, kind, metric, for_logits):
        classifier = kgpt.TextClassifier(make_lm().backbone, 2, multi_label=True)
        for model in (make_lm(), classifier):
            with pytest.warns(UserWarning, match=rf"which this metric .*\({for_logits}\)"):
                model.compile("sgd", **{kind: [metric]})

    def test_others_pass(self):
        metrics = [
            keras.metrics.SparseCategoricalCrossentropy(from_logits=True),
            keras.metrics.BinaryAccuracy(threshold=0.0),
            keras.metrics.Precision(thresholds=0.0),
            kgpt.metrics.MultiLabelF1(2),
            "accuracy",
            lambda y, logits: keras.ops.mean(logits),
        ]
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            make_lm().compile("sgd", metrics=metrics)
            kgpt.TextRegressor(make_lm().backbone).compile("sgd", metrics=["AUC"])


class TestValues:
    @pytest.mark.parametrize(
        ("name", "value"),
        [("run_eagerly", "yes"), ("jit_compile", "bogus"), ("steps_per_execution", 0)],
    )
    def test_what_can_not_be_meant_is_refused(self, name, value):
        with pytest.raises(ValueError, match=f"^{name} must be"):
            make_lm().compile(**{name: value})

    def test_weights_of_losses_need_losses(self):
        with pytest.raises(ValueError, match="loss_weights has no effect on the model's own loss"):
            make_lm().compile(loss_weights=2.0)
        make_lm().compile("sgd", "mse", loss_weights=2.0, run_eagerly=None, jit_compile="auto")
