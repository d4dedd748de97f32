"""What of a batch counts, for every source: weights of rows and positions, targets left out."""

import warnings

import keras
import numpy as np
import pytest
from sources import SOURCES

import kgpt

VOCABULARY, ROWS, LENGTH = 11, 4, 6
HOST_SOURCES = {name: SOURCES[name] for name in ("generator", "PyDataset", "DataLoader", "grain")}


def make_lm(vocabulary_size=VOCABULARY):
    keras.utils.set_random_seed(0)
    lm = kgpt.CausalLM(kgpt.GPTBackbone(vocabulary_size, 1, 1, 4, 4, 0.0, LENGTH))
    generator = np.random.default_rng(0)
    for weight in lm.weights:
        weight.assign(generator.normal(size=weight.shape))
    lm.compile(keras.optimizers.SGD(0.0))
    return lm


def make_classifier(lm_loss_weight=0.5):
    model = kgpt.TextClassifier(make_lm().backbone, 3, dropout=0.0, lm_loss_weight=lm_loss_weight)
    model.compile(keras.optimizers.SGD(0.0))
    return model


IDS = np.random.default_rng(1).integers(0, VOCABULARY, (ROWS, LENGTH + 1)).astype("int32")
X, Y = IDS[:, :-1], IDS[:, 1:]
LABELS = np.array([0, 1, 2, 0], "int32")


def token_losses(lm, x, y):
    """The loss of each position, from all logits, in numpy."""
    logits = keras.ops.convert_to_numpy(lm(x)).astype("float64")
    log_sums = np.log(np.exp(logits).sum(axis=-1))
    return log_sums - np.take_along_axis(logits, y[..., None], axis=-1)[..., 0]


def mean(values, weights):
    weights = np.broadcast_to(weights, values.shape)
    return (values * weights).sum() / weights.sum()


class TestWeightsOfRowsAndPositions:
    ROW_WEIGHTS = np.array([0.5, 2.0, 0.0, 1.0], "float32")

    @pytest.mark.parametrize("shape", [(ROWS,), (ROWS, 1), (ROWS, LENGTH)])
    def test_without_targets_weights_count_as_with_them(self, shape):
        lm = make_lm()
        weights = np.random.default_rng(2).uniform(size=shape).astype("float32")
        by_position = np.broadcast_to(weights.reshape(ROWS, -1), (ROWS, LENGTH))
        expected = mean(token_losses(lm, X, Y)[:, :-1], by_position[:, :-1])

        evaluated = lm.evaluate(X, sample_weight=weights, verbose=0)[0]
        trained = lm.fit(X, sample_weight=weights, verbose=0).history["loss"][0]
        on_batch = lm.train_on_batch(X, sample_weight=weights)[0]

        np.testing.assert_allclose([evaluated, trained, on_batch], [expected] * 3, rtol=1e-5)

    def test_weights_of_rows_leave_padding_out(self):
        lm = make_lm()
        mask = np.arange(LENGTH) < np.array([[6], [4], [3], [2]])
        counts = mask[:, 1:] * self.ROW_WEIGHTS[:, None]
        expected = mean(token_losses(lm, X, Y)[:, :-1], counts)

        x = {"token_ids": X, "padding_mask": mask}
        with_targets = lm.evaluate(x, Y, sample_weight=self.ROW_WEIGHTS, verbose=0)[0]
        without = lm.evaluate(x, sample_weight=self.ROW_WEIGHTS, verbose=0)[0]

        assert mask[0, -1]  # its last position counts where its next token is given
        last = token_losses(lm, X, Y)[:1, -1:]
        total = (expected * counts.sum() + last.sum() * 0.5) / (counts.sum() + 0.5)
        np.testing.assert_allclose([with_targets, without], [total, expected], rtol=1e-5)

    def test_a_heads_language_model_loss_weighs_rows(self):
        model = make_classifier()
        lm = make_lm()
        per_row = token_losses(lm, X, Y)[:, :-1].mean(axis=1)

        figures = model.evaluate(
            X, LABELS, sample_weight=self.ROW_WEIGHTS, verbose=0, return_dict=True
        )

        expected = (per_row * self.ROW_WEIGHTS).mean()
        np.testing.assert_allclose(figures["lm_loss"], expected, rtol=1e-5)

    @pytest.mark.parametrize("shape", [(ROWS, LENGTH - 1), (ROWS, LENGTH, 2)])
    def test_weights_of_another_shape_are_refused(self, shape):
        with pytest.raises(ValueError, match="sample_weight must have one number for each row"):
            make_lm().evaluate(X, Y, sample_weight=np.ones(shape, "float32"), verbose=0)

    def test_a_head_refuses_weights_of_positions(self):
        with pytest.raises(ValueError, match="sample_weight must have one number for each row"):
            make_classifier().evaluate(
                X, LABELS, sample_weight=np.ones((ROWS, LENGTH), "float32"), verbose=0
            )

    def test_a_head_refuses_weights_without_labels(self):
        with pytest.raises(ValueError, match="weighs labels or targets"):
            make_classifier().evaluate(X, sample_weight=self.ROW_WEIGHTS, verbose=0)


class TestTargetsOfTokens:
    @pytest.fixture(params=[-100, -1])
    def ignored(self, request):
        y = Y.copy()
        y[0, :3] = y[2, 4:] = request.param
        return y

    def expected(self, y):
        return mean(token_losses(make_lm(), X, np.maximum(y, 0)), y >= 0)

    def test_the_marks_of_other_libraries_are_not_counted(self, ignored):
        lm = make_lm()

        losses = [
            lm.evaluate(X, ignored, verbose=0)[0],
            lm.fit(X, ignored, verbose=0).history["loss"][0],
            lm.train_on_batch(X, ignored)[0],
            lm.test_on_batch(X, ignored)[0],
        ]

        np.testing.assert_allclose(losses, [self.expected(ignored)] * 4, rtol=1e-5)

    @pytest.mark.parametrize("source", SOURCES.values(), ids=SOURCES)
    def test_no_source_counts_them(self, source, ignored):
        with warnings.catch_warnings():
            warnings.filterwarnings("error", message=".*left out of the loss")
            loss = make_lm().fit(source(X, ignored), verbose=0).history["loss"][0]

        np.testing.assert_allclose(loss, self.expected(ignored), rtol=1e-5)

    @pytest.mark.parametrize("wrong", [VOCABULARY, 300, -2])
    @pytest.mark.parametrize("source", HOST_SOURCES.values(), ids=HOST_SOURCES)
    def test_batches_that_pass_the_host_refuse_targets_that_are_no_tokens(self, source, wrong):
        y = Y.copy()
        y[3, 1] = wrong

        with pytest.raises(ValueError, match=r"Each id in next tokens \(y\) must lie in \[0, 11\)"):
            make_lm().fit(source(X, y), verbose=0)

    def test_arrays_refuse_targets_that_are_no_tokens(self):
        lm = make_lm()
        y = np.full_like(Y, 300)
        for call in (lm.fit, lm.evaluate, lm.train_on_batch, lm.test_on_batch):
            with pytest.raises(ValueError, match="Each id in next tokens"):
                call(X, y)

    def test_in_tf_data_they_have_weight_0_and_a_warning_counts_them(self):
        y = Y.copy()
        y[3, 1], y[0, 0], y[1, 1] = 300, -7, -1

        with pytest.warns(UserWarning, match="2 targets were left out of the loss"):
            loss = make_lm().fit(SOURCES["tf.data"](X, y), verbose=0).history["loss"][0]

        counts = (y >= 0) & (y < VOCABULARY)
        expected = mean(token_losses(make_lm(), X, np.where(counts, y, 0)), counts)
        np.testing.assert_allclose(loss, expected, rtol=1e-5)

    @pytest.mark.parametrize("source", SOURCES.values(), ids=SOURCES)
    def test_ids_outside_the_vocabulary_are_refused_from_every_source(self, source):
        x = X.copy()
        x[2, 2] = 300
        lm = make_lm()

        for call in (lm.fit, lm.evaluate):
            with pytest.raises(ValueError, match=r"Each id in token_ids must lie in \[0, 11\)"):
                call(source(x, Y), verbose=0)

    def test_on_batch_methods_refuse_ids_outside_the_vocabulary(self):
        lm = make_lm()
        for call in (lm.train_on_batch, lm.test_on_batch, lm.predict_on_batch):
            with pytest.raises(ValueError, match="Each id in token_ids"):
                call(X + 300)


MASK = np.arange(LENGTH) < np.array([[6], [2], [3], [5]])
PADDED = {"token_ids": X, "padding_mask": MASK}
IGNORED = np.where(np.arange(LENGTH) < np.array([[2], [1], [6], [3]]), -100, Y)
WEIGHTS = (np.arange(LENGTH) >= np.array([[2], [1], [5], [3]])).astype("float32")
DATA = {
    "ids": (X,),
    "padded ids": (PADDED,),
    "padded and ignored": (PADDED, IGNORED),
    "weighted": (PADDED, Y, WEIGHTS),
}
LOSSES = {
    "own": None,
    "mean": keras.losses.SparseCategoricalCrossentropy(True),
    "weighted mean": keras.losses.SparseCategoricalCrossentropy(
        True, reduction="mean_with_sample_weight"
    ),
    "function": lambda y, logits: keras.losses.sparse_categorical_crossentropy(y, logits, True),
}


class TestLossesAndMetricsOfKeras:
    """They count what the own loss counts, in batches of unequal padding."""

    def figures(self, loss, x, y=None, sample_weight=None, **options):
        lm = make_lm()
        metrics = {
            name: [keras.metrics.SparseCategoricalCrossentropy(f"{name[0]}_ce", from_logits=True)]
            for name in ("metrics", "weighted_metrics")
        }
        lm.compile(keras.optimizers.SGD(0.0), loss, **metrics)
        options = {"sample_weight": sample_weight, "verbose": 0, **options}
        evaluated = lm.evaluate(x, y, return_dict=True, **options)
        trained = lm.fit(x, y, shuffle=None, **options).history["loss"]
        return [evaluated["loss"], *trained], evaluated["m_ce"], evaluated["w_ce"]

    @pytest.mark.parametrize("loss", [LOSSES["own"], LOSSES["mean"]], ids=["own", "mean"])
    @pytest.mark.parametrize("data", DATA.values(), ids=DATA)
    def test_they_are_means_over_what_counts(self, data, loss):
        x, y, weights = (*data, None, None)[:3]
        mask = MASK if isinstance(x, dict) else np.ones_like(X, "bool")
        counts = mask.copy()
        if weights is None:  # which say alone what of the real tokens counts
            counts[:, :-1] &= mask[:, 1:]
        if y is None:
            counts[:, -1] = False
        else:
            counts &= y >= 0
        if weights is not None:
            counts &= weights > 0
        expected = mean(token_losses(make_lm(), X, Y), counts)

        losses, *metrics = self.figures(loss, *data, batch_size=2)

        np.testing.assert_allclose([*losses, *metrics], [expected] * 4, rtol=1e-5)

    @pytest.mark.parametrize("loss", LOSSES.values(), ids=LOSSES)
    def test_the_last_token_of_a_completion_counts(self, loss):
        tokenizer = kgpt.Tokenizer.train(["abcdef"], style="characters")
        data = kgpt.data.completions(["ab", "c"] * 2, ["de", "f"] * 2, tokenizer, LENGTH, 2)
        expected = make_lm().evaluate(data, verbose=0)[0]
        x, y, weights = data.in_order()
        by_hand = mean(token_losses(make_lm(), x["token_ids"], y), weights)

        losses, *metrics = self.figures(loss, data, sample_weight=None)

        np.testing.assert_allclose([expected, *losses, *metrics], [by_hand] * 5, rtol=1e-5)

    def test_weights_of_rows_count_as_kerass(self):
        weights = np.array([0.5, 2.0, 0.0, 1.0], "float32")
        losses = token_losses(make_lm(), X, Y)
        of_rows = np.broadcast_to(weights[:, None], Y.shape)
        summed = (losses * of_rows).sum()

        own, by_keras = (
            self.figures(LOSSES[name], X, Y, sample_weight=weights) for name in ("own", "mean")
        )

        np.testing.assert_allclose(own[0], [summed / of_rows.sum()] * 2, rtol=1e-5)
        np.testing.assert_allclose(by_keras[0], [summed / (of_rows > 0).sum()] * 2, rtol=1e-5)
        for figures in (own, by_keras):
            np.testing.assert_allclose(figures[1], mean(losses, of_rows > 0), rtol=1e-5)
            np.testing.assert_allclose(figures[2], mean(losses, of_rows), rtol=1e-5)


class TestIntegersOfOtherDtypes:
    DTYPES = ("int8", "uint8", "int16", "uint16", "uint32", "uint64")

    @pytest.mark.parametrize("dtype", DTYPES)
    def test_arrays_of_every_dtype_count_as_int32(self, dtype):
        lm, x, y = make_lm(70_001), X.astype(dtype), Y.astype(dtype)  # more than 16 bits hold
        losses = token_losses(lm, X, Y)
        weights = np.array([0.5, 2.0, 0.0, 1.0], "float32")

        found = [
            lm.evaluate(x, y, verbose=0)[0],
            lm.fit({"token_ids": x, "segment_ids": x * 0}, y, verbose=0).history["loss"][0],
            lm.train_on_batch(x, y)[0],
            lm.test_on_batch(x, y)[0],
        ]
        weighted = lm.evaluate(x, sample_weight=weights, verbose=0)[0]

        np.testing.assert_allclose(found, [losses.mean()] * 4, rtol=1e-5)
        expected = mean(losses[:, :-1], weights[:, None])
        np.testing.assert_allclose(weighted, expected, rtol=1e-5)

    @pytest.mark.parametrize("dtype", DTYPES)
    @pytest.mark.parametrize("name", ["generator", "tf.data", "PyDataset"])
    def test_batches_of_every_dtype_count_as_int32(self, name, dtype):
        lm = make_lm(70_001)

        found = lm.evaluate(SOURCES[name](X.astype(dtype), Y.astype(dtype)), verbose=0)[0]

        np.testing.assert_allclose(found, token_losses(lm, X, Y).mean(), rtol=1e-5)

    @pytest.mark.parametrize("dtype", ["uint16", "uint32", "uint64"])
    def test_unsigned_dtypes_have_no_targets_to_ignore(self, dtype):
        y = Y.copy()
        y[0, 0] = -100
        y = y.astype(dtype)

        with pytest.raises(ValueError, match="Each id in next tokens"):
            make_lm().evaluate(X, y, verbose=0)
        with pytest.warns(UserWarning, match="1 targets were left out of the loss"):
            make_lm().evaluate(SOURCES["tf.data"](X, y), verbose=0)


class TestLabelsOfClasses:
    @pytest.mark.parametrize("wrong", [-1, 3, -100])
    @pytest.mark.parametrize("source", HOST_SOURCES.values(), ids=HOST_SOURCES)
    def test_labels_outside_the_classes_are_refused(self, source, wrong):
        labels = np.array([0, 1, wrong, 0], "int32")

        with pytest.raises(ValueError, match=f"must be ints in .0, 3.*Received: .*{wrong}"):
            make_classifier().fit(source(X, labels), verbose=0)

    def test_in_tf_data_they_have_weight_0_and_a_warning_counts_them(self):
        labels = np.array([0, -1, 2, 5], "int32")
        expected = make_classifier().evaluate(
            X, np.maximum(labels, 0) % 3, sample_weight=np.array([1, 0, 1, 0.0]), verbose=0
        )[0]

        with pytest.warns(UserWarning, match="2 targets were left out of the loss"):
            loss = make_classifier().fit(SOURCES["tf.data"](X, labels), verbose=0).history["loss"]

        np.testing.assert_allclose(loss, [expected], rtol=1e-5)

    @pytest.mark.parametrize(
        "labels",
        [
            np.array([0.5, 1, 0, 1]),
            np.array(["a", "b", "a", "b"]),
            np.eye(3)[LABELS],
            LABELS.astype(object),
        ],
        ids=["halves", "names", "one-hot", "objects"],
    )
    def test_labels_of_another_type_are_refused(self, labels):
        for call in (make_classifier().fit, make_classifier().train_on_batch):
            with pytest.raises(ValueError, match="Labels for this TextClassifier"):
                call(X, labels)

    def test_targets_of_another_type_are_refused(self):
        model = kgpt.TextRegressor(make_lm().backbone)
        model.compile()
        for targets, words in [(np.array(list("abcd")), "numbers"), (Y + 0.0, "shape")]:
            with pytest.raises(ValueError, match=words):
                model.fit(X, targets)


class TestShapesThatDiffer:
    @pytest.mark.parametrize("name", ["padding_mask", "segment_ids"])
    @pytest.mark.parametrize("shape", [(4, 1), (4, 5), (4, 7), (3, 6), (4,)])
    def test_masks_of_another_shape_are_refused_before_anything_runs(self, name, shape):
        lm, x = make_lm(), {"token_ids": X, name: np.ones(shape, "int32")}

        for call in (lm, lm.backbone, lm.fit, lm.evaluate, lm.predict, lm.train_on_batch):
            with pytest.raises(ValueError, match=rf"{name} must have a number for each.*\(4, 6\)"):
                call(x)

    @pytest.mark.parametrize("shape", [(4, 1), (4, 7), (3, 6)])
    def test_heads_refuse_them(self, shape):
        model, x = make_classifier(), {"token_ids": X, "padding_mask": np.ones(shape, "bool")}

        for call in (model, model.evaluate, model.predict, model.test_on_batch):
            with pytest.raises(ValueError, match="padding_mask must have a number for each"):
                call(x)

    def test_in_tf_data_they_are_refused_too(self):
        x = {"token_ids": X, "padding_mask": np.ones((ROWS, 5), "bool")}

        for model, y in ((make_lm(), Y), (make_classifier(), LABELS)):
            with pytest.raises(ValueError, match="padding_mask must have a number for each"):
                model.fit(SOURCES["tf.data"](x, y), verbose=0)

    @pytest.mark.parametrize("y", [Y[:, 1:], LABELS, np.stack([Y, Y], axis=-1)])
    def test_next_tokens_of_another_shape_are_refused(self, y):
        lm = make_lm()

        for call in (lm.fit, lm.evaluate, lm.train_on_batch, lm.compute_loss):
            with pytest.raises(ValueError, match=r"next tokens \(y\) must have a number for each"):
                call(X, y)

    @pytest.mark.parametrize("ids", [X[0], X[None]])
    def test_a_language_model_refuses_ids_of_another_rank(self, ids):
        lm = make_lm()

        for call in (lm, lm.fit, lm.evaluate, lm.predict, lm.predict_on_batch):
            with pytest.raises(ValueError, match=r"Token ids must have shape \(batch, length\)"):
                call(ids)


class TestDtypesAndShapesInTfData:
    @pytest.mark.parametrize("model", [make_lm, make_classifier])
    def test_ids_that_are_no_ints_are_refused(self, model):
        model = model()
        for call in (model.fit, model.evaluate, model.predict):
            with pytest.raises(ValueError, match=r"token_ids must be ints.*float64"):
                call(SOURCES["tf.data"](X + 0.5), verbose=0)

    def test_next_tokens_that_are_no_ints_are_refused(self):
        with pytest.raises(ValueError, match=r"next tokens \(y\) must be ints"):
            make_lm().fit(SOURCES["tf.data"](X, Y + 0.5), verbose=0)

    def test_labels_between_classes_have_weight_0_and_a_warning_counts_them(self):
        labels = np.array([0, 0.5, 2, 1.5])
        expected = make_classifier().evaluate(
            X, labels.astype(int), sample_weight=np.array([1, 0, 1, 0.0]), verbose=0
        )[0]

        with pytest.warns(UserWarning, match="2 targets were left out of the loss"):
            loss = make_classifier().fit(SOURCES["tf.data"](X, labels), verbose=0).history["loss"]

        np.testing.assert_allclose(loss, [expected], rtol=1e-5)

    def test_one_hot_labels_are_refused(self):
        labels = np.eye(3)[LABELS]
        with pytest.raises(ValueError, match="Labels must be one int for each example"):
            make_classifier().fit(SOURCES["tf.data"](X, labels), verbose=0)

    @pytest.mark.parametrize("source", [*SOURCES, "arrays"])
    def test_a_loss_of_keras_takes_one_hot_labels(self, source):
        model, labels = make_classifier(), np.eye(3)[LABELS]
        model.compile("sgd", keras.losses.CategoricalCrossentropy(from_logits=True))

        data = (X, labels) if source == "arrays" else (SOURCES[source](X, labels),)
        loss = model.evaluate(*data, verbose=0)

        expected = make_classifier().evaluate(X, LABELS, verbose=0, return_dict=True)["task_loss"]
        np.testing.assert_allclose(loss, expected, rtol=1e-5)

    def test_choices_may_be_one_hot_for_a_loss_of_keras(self):
        model = kgpt.MultipleChoice(make_lm().backbone)
        x, labels = X[:, None].repeat(3, axis=1), np.eye(3)[LABELS]
        model.compile("sgd", "mse")

        assert np.isfinite(model.fit(x, labels, verbose=0).history["loss"]).all()

        model.compile("sgd")
        with pytest.raises(ValueError, match=r"one-hot, try labels\.argmax"):
            model.fit(x, labels, verbose=0)

    def test_targets_of_another_shape_are_refused(self):
        model = kgpt.TextRegressor(make_lm().backbone)
        model.compile()
        with pytest.raises(ValueError, match=r"Targets must have shape \(examples, 1\)"):
            model.fit(SOURCES["tf.data"](X, np.ones((ROWS, 3))), verbose=0)


class TestNothingToCount:
    def test_empty_arrays_are_refused(self):
        for call in (make_lm().fit, make_lm().evaluate, make_lm().predict):
            with pytest.raises(ValueError, match="at least one row"):
                call(X[:0])

    def test_a_mask_that_leaves_nothing_is_refused(self):
        x = {"token_ids": X, "padding_mask": np.zeros_like(X)}
        lm = make_lm()
        for call in (lm.fit, lm.evaluate, lm.train_on_batch):
            with pytest.raises(ValueError, match="padding_mask must leave something to count"):
                call(x)

    def test_weights_that_leave_nothing_are_refused(self):
        with pytest.raises(ValueError, match="sample_weight must leave something to count"):
            make_lm().fit(X, Y, sample_weight=np.zeros(ROWS))

    def test_weights_that_are_not_finite_are_refused(self):
        with pytest.raises(ValueError, match="sample_weight must be finite"):
            make_lm().fit(X, Y, sample_weight=np.full(ROWS, np.nan))

    def test_negative_weights_are_refused(self):
        lm, weights = make_lm(), np.array([1, 1, -0.5, 1])
        for call in (lm.fit, lm.evaluate, lm.train_on_batch):
            with pytest.raises(ValueError, match=r"sample_weight must be at least 0.*-0\.5"):
                call(X, Y, sample_weight=weights)

    @pytest.mark.parametrize("source", SOURCES)
    @pytest.mark.parametrize("weight", [-0.5, np.nan])
    def test_such_weights_are_refused_in_all_sources(self, source, weight):
        lm, weights = make_lm(), np.array([1, 1, weight, 1], "float32")
        for call in (lm.fit, lm.evaluate):
            with pytest.raises(ValueError, match=r"sample_weight must be .*(-0\.5|(?i:nan)).* "):
                call(SOURCES[source](X, Y, weights), verbose=0)

    def test_targets_that_leave_nothing_are_refused_but_for_a_single_batch(self):
        lm = make_lm()
        for call in (lm.fit, lm.evaluate):
            with pytest.raises(ValueError, match="y must leave something to count"):
                call(X, np.full_like(Y, -100))

        lm.train_on_batch(X, np.full_like(Y, -100))

    @pytest.mark.parametrize(
        "x",
        [X[:, :1], {"token_ids": X, "padding_mask": np.arange(LENGTH) < np.ones((ROWS, 1))}],
        ids=["one token", "one real token"],
    )
    def test_rows_without_a_next_token_are_refused(self, x):
        for call in (make_lm().fit, make_lm().evaluate):
            with pytest.raises(ValueError, match=r"Without y, .* must have two at least"):
                call(x)

    def test_ids_that_are_no_ints_are_refused(self):
        lm = make_lm()
        for call in (lm.fit, lm.evaluate, lm.predict, lm.train_on_batch, lm.predict_on_batch):
            with pytest.raises(ValueError, match="token_ids must be ints"):
                call(X + 0.5)


CASES = {
    "lm": (make_lm, Y),
    "classifier": (make_classifier, LABELS),
    "regressor": (lambda: kgpt.TextRegressor(make_lm().backbone), LABELS),
    "choice": (lambda: kgpt.MultipleChoice(make_lm().backbone), LABELS % 2),
}


class TestStructuresInPlaceOfOneArray:
    @pytest.mark.parametrize("case", CASES)
    @pytest.mark.parametrize("name", ["x", "y", "sample_weight"])
    def test_they_are_refused_by_name(self, case, name):
        make, y = CASES[case]
        x = np.stack([X, X], 1) if case == "choice" else X
        given = {"x": x, "y": y, "sample_weight": np.ones(ROWS)}
        given[name] = (x, y) if name == "x" else {"output_projection": given[name]}
        model = make()

        for call in (model.fit, model.evaluate, model.train_on_batch):
            with pytest.raises(ValueError, match=f"^{name} must be (one array|token ids)"):
                call(**given)


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_shares_of_classes_are_finite(value):
    model = kgpt.TextClassifier(make_lm().backbone, 3)
    model.compile("sgd", loss=keras.losses.CategoricalCrossentropy(from_logits=True))
    shares = np.eye(3)[LABELS]
    shares[1, 2] = value

    with pytest.raises(ValueError, match="Labels for this TextClassifier must be finite"):
        model.fit(X, shares, verbose=0)
