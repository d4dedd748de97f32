import importlib.util
import math

import keras
import numpy as np
import pytest

from kgpt import metrics

needs_scores = pytest.mark.skipif(
    importlib.util.find_spec("sklearn") is None,
    reason="scores come from scikit-learn and scipy (the extra `scores`)",
)


def test_perplexity_is_the_exponential_of_the_mean_over_all_tokens():
    perplexity = metrics.Perplexity()

    perplexity.update_state(2.0, sample_weight=30)
    perplexity.update_state(4.0, sample_weight=10)

    np.testing.assert_allclose(
        keras.ops.convert_to_numpy(perplexity.result()), np.exp((2 * 30 + 4 * 10) / 40), rtol=1e-6
    )


def test_perplexity_loads_under_its_registered_name():
    config = keras.saving.serialize_keras_object(metrics.Perplexity(name="p"))

    loaded = keras.saving.deserialize_keras_object({**config, "module": "kgpt.losses"})

    assert config["registered_name"] == "kgpt>Perplexity"
    assert isinstance(loaded, metrics.Perplexity)
    assert loaded.name == "p"


@needs_scores
def test_classes_are_scored_by_accuracy_f1_and_matthews_correlation():
    labels = [1, 1, 1, 0, 0, 1]
    predicted = np.array([1, 0, 1, 0, 1, 1])

    scores = metrics.classification_scores(labels, np.eye(2)[predicted])

    # 3 true positives, 1 true negative, 1 false positive, 1 false negative
    assert scores["accuracy"] == pytest.approx(4 / 6)
    assert scores["f1"] == pytest.approx(2 * 3 / (2 * 3 + 1 + 1))
    assert scores["matthews"] == pytest.approx((3 * 1 - 1 * 1) / math.sqrt(4 * 4 * 2 * 2))


@needs_scores
def test_f1_of_more_than_two_classes_is_the_mean_over_classes():
    scores = metrics.classification_scores([0, 1, 2, 2], np.eye(3)[[0, 1, 2, 1]])

    assert scores["f1"] == pytest.approx((1 + 2 / 3 + 2 / 3) / 3)


@needs_scores
def test_a_model_that_always_says_the_same_has_no_correlation():
    assert metrics.classification_scores([0, 1, 1], np.zeros((3, 2)))["matthews"] == 0
    assert metrics.regression_scores([0, 1, 2], np.ones((3, 1))) == {"pearson": 0, "spearman": 0}


@needs_scores
def test_numbers_are_scored_by_correlation():
    targets = np.array([0.0, 1.0, 2.0, 10.0])
    outputs = np.array([[1.0], [2.0], [3.0], [4.0]])

    scores = metrics.regression_scores(targets, outputs)

    assert scores["spearman"] == pytest.approx(1.0)
    assert scores["pearson"] == pytest.approx(np.corrcoef(targets, outputs[:, 0])[0, 1])


@needs_scores
def test_scores_of_several_outputs_are_averaged():
    targets = np.array([[0.0, 0.0], [1.0, 1.0], [2.0, 2.0]])
    outputs = np.array([[0.0, 2.0], [1.0, 1.0], [2.0, 0.0]])

    assert metrics.regression_scores(targets, outputs)["spearman"] == pytest.approx(0.0)


class TestMultiLabel:
    LABELS = np.array([[1, 0, 0], [1, 1, 0], [0, 1, 0], [1, 0, 0], [0, 0, 0]])
    LOGITS = np.array([[2, -1, 0], [0.5, 0.2, -1], [0.5, 0.2, -1], [-1, 3, -2], [-2, -3, 1]])
    WEIGHTS = np.array([1.0, 2.0, 0.5, 3.0, 1.0])

    @needs_scores
    @pytest.mark.parametrize("weights", [None, WEIGHTS])
    def test_average_precision_is_the_mean_precision_at_the_right_ones(self, weights):
        scores = metrics.multi_label_scores(self.LABELS, self.LOGITS, sample_weight=weights)

        w = np.ones(5) if weights is None else weights
        precisions = []
        for labels, logits in list(zip(self.LABELS.T, self.LOGITS.T, strict=True))[:2]:
            above = (logits[None] >= logits[:, None]) * w  # (of an example, those not below it)
            at = above @ labels / above.sum(axis=1)
            precisions.append((at * labels * w).sum() / (labels * w).sum())
        assert 0.5 < np.mean(precisions) < 0.9
        assert scores["mean_average_precision"] == pytest.approx(np.mean(precisions))

    @needs_scores
    def test_all_classes_occurring_they_are_scikit_learns(self):
        from sklearn import metrics as theirs

        labels, logits = self.LABELS[:, :2], self.LOGITS[:, :2]
        columns = {"sample_weight": self.WEIGHTS}

        scores = metrics.multi_label_scores(labels, logits, 0.6, **columns)

        predicted = 1 / (1 + np.exp(-logits)) > 0.6
        assert scores == {
            "f1": theirs.f1_score(labels, predicted, average="macro", **columns),
            "micro_f1": theirs.f1_score(labels, predicted, average="micro", **columns),
            "mean_average_precision": theirs.average_precision_score(labels, logits, **columns),
        }

    @needs_scores
    @pytest.mark.parametrize(("average", "name"), [("macro", "f1"), ("micro", "micro_f1")])
    def test_kerass_f1_over_batches_is_that_of_the_whole(self, average, name):
        metric = metrics.MultiLabelF1(3, average=average)

        for rows in (slice(0, 2), slice(2, 5)):
            metric.update_state(self.LABELS[rows], self.LOGITS[rows], self.WEIGHTS[rows])

        expected = metrics.multi_label_scores(self.LABELS, self.LOGITS, sample_weight=self.WEIGHTS)[
            name
        ]
        assert float(metric.result()) == pytest.approx(expected)

    def test_the_metric_is_read_again(self):
        metric = metrics.MultiLabelF1(3, average="micro", threshold=0.3, name="f")

        again = keras.saving.deserialize_keras_object(keras.saving.serialize_keras_object(metric))

        assert isinstance(again, metrics.MultiLabelF1)
        assert again.get_config() == metric.get_config()


@needs_scores
def test_weights_of_examples_count():
    labels, logits = np.array([0, 1, 1, 2]), np.eye(3)[[0, 1, 2, 1]]

    scores = metrics.classification_scores(labels, logits, sample_weight=[1, 2, 0, 3])

    repeated = np.repeat(np.arange(4), [1, 2, 0, 3])
    assert scores == pytest.approx(
        metrics.classification_scores(labels[repeated], logits[repeated])
    )
    assert scores != pytest.approx(metrics.classification_scores(labels, logits))


@needs_scores
@pytest.mark.parametrize(
    ("score", "shapes"),
    [
        (metrics.classification_scores, [(3,), (4, 2)]),
        (metrics.classification_scores, [(3,), (3,)]),
        (metrics.multi_label_scores, [(3, 2), (3, 3)]),
        (metrics.multi_label_scores, [(3,), (3,)]),
        (metrics.multi_label_scores, [(3, 2), (3, 2)]),
        (metrics.classification_scores, [(0,), (0, 2)]),
        (metrics.regression_scores, [(3,), (3, 2)]),
        (metrics.regression_scores, [(1,), (1, 1)]),
    ],
)
def test_shapes_that_do_not_fit_are_refused(score, shapes):
    with pytest.raises(ValueError, match="Received: shapes"):
        score(*(np.zeros(shape) for shape in shapes))


@needs_scores
@pytest.mark.parametrize(
    ("score", "right", "predicted", "message"),
    [
        (
            metrics.classification_scores,
            [0, 1],
            [[1, np.nan], [0, 1]],
            "logits must be finite.*nan",
        ),
        (
            metrics.classification_scores,
            ["a", "b"],
            np.eye(2),
            r"ints in \[0, 2\).*'a'.* at index 0",
        ),
        (metrics.classification_scores, [0, 2], np.eye(2), r"ints in \[0, 2\).*2.* at index 1"),
        (metrics.classification_scores, [0.5, 1], np.eye(2), r"ints in \[0, 2\).*0.5"),
        (metrics.multi_label_scores, np.eye(2), [[1, np.nan], [0, 1]], "logits must be finite"),
        (
            metrics.regression_scores,
            [0, np.nan, 1],
            [1, 2, 3],
            "targets must be finite.* at index 1",
        ),
        (metrics.regression_scores, [0, 1], [1, np.inf], "outputs must be finite.*inf at index 1"),
        (metrics.regression_scores, ["a", "b"], [1, 2], "targets must be numbers"),
    ],
)
def test_what_has_no_score_is_refused(score, right, predicted, message):
    with pytest.raises(ValueError, match=message):
        score(right, predicted)


@needs_scores
@pytest.mark.parametrize("weights", [[1.0], [0, 0], [-1, 2], [1, np.nan], ["a", "b"]])
def test_weights_by_which_nothing_counts_are_refused(weights):
    for score, labels in (
        (metrics.classification_scores, [0, 1]),
        (metrics.multi_label_scores, np.eye(2)),
    ):
        with pytest.raises(ValueError, match="sample_weight must "):
            score(labels, np.eye(2), sample_weight=weights)


@needs_scores
def test_labels_of_several_classes_are_0_and_1():
    with pytest.raises(ValueError, match=r"labels be 0 and 1.*\[0\. 2\.\]"):
        metrics.multi_label_scores(2 * np.eye(2), np.eye(2))
