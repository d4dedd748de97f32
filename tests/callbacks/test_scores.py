import keras
import numpy as np
import pytest

import kgpt


def task_batches(function, labels, **options):
    tokenizer = kgpt.Tokenizer.train(["a fine film and a dull film"] * 3, vocabulary_size=265)
    texts = ["a fine film", "a dull film", "fine", "dull and dull"] * 3
    return function(texts, labels, tokenizer, **options), tokenizer


def test_scores_of_the_whole_set_join_the_logs_for_other_callbacks():
    pytest.importorskip(
        "sklearn", reason="scores come from scikit-learn and scipy (the extra `scores`)"
    )
    data, tokenizer = task_batches(kgpt.data.classification, [1, 0] * 6, batch_size=5)
    model = kgpt.TextClassifier(kgpt.GPTBackbone(tokenizer.vocabulary_size, 1, 2, 8), 2)
    model.compile("adam")
    best = keras.callbacks.EarlyStopping("val_matthews", mode="max", patience=9)

    history = model.fit(  # in either order
        data, epochs=2, callbacks=[best, kgpt.callbacks.Scores(data)], verbose=0
    ).history

    expected = kgpt.metrics.classification_scores(data.labels, model.predict(data, verbose=0))
    assert {name: history[f"val_{name}"][-1] for name in expected} == expected
    assert best.best == max(history["val_matthews"])


def test_data_of_another_model_are_refused_before_training():
    pytest.importorskip("sklearn", reason="the extra `scores`")
    data, tokenizer = task_batches(kgpt.data.classification, [1, 0] * 6, batch_size=5)
    other, _ = task_batches(kgpt.data.classification, [2, 0] * 6, batch_size=5)
    model = kgpt.TextClassifier(kgpt.GPTBackbone(tokenizer.vocabulary_size, 1, 2, 8), 2)
    model.compile("adam")

    with pytest.raises(ValueError, match=r"must be ints in \[0, 2\). Received: .*2"):
        model.fit(data, callbacks=[kgpt.callbacks.Scores(other)], verbose=0)

    assert int(model.optimizer.iterations) == 0


class TestScoresByKind:
    """What `Scores` adds to the logs, without a fit."""

    def logs(self, data, tokenizer, num_classes, **options):
        backbone = kgpt.GPTBackbone(tokenizer.vocabulary_size, 1, 2, 8)
        model = kgpt.TextClassifier(backbone, num_classes, **options)
        model.compile("sgd", run_eagerly=keras.backend.backend() == "tensorflow")
        scores, logs = kgpt.callbacks.Scores(data, prefix=""), {}
        scores.set_model(model)
        scores.on_epoch_end(0, logs)
        return logs, model.predict(data, verbose=0)

    def test_weights_of_examples_count(self):
        pytest.importorskip("sklearn", reason="the extra `scores`")
        weights = np.arange(12) % 5
        options = {"batch_size": 5, "sample_weight": weights}
        data, tokenizer = task_batches(kgpt.data.classification, [0, 1, 2] * 4, **options)

        logs, logits = self.logs(data, tokenizer, 3)

        score = kgpt.metrics.classification_scores
        assert logs == score(data.labels, logits, sample_weight=weights)
        assert logs != score(data.labels, logits)

    def test_several_classes_have_f1_and_mean_average_precision(self):
        pytest.importorskip("sklearn", reason="the extra `scores`")
        labels = [["a"], ["b", "c"], [], ["a", "c"]] * 3
        data, tokenizer = task_batches(kgpt.data.classification, labels, batch_size=5)

        logs, logits = self.logs(data, tokenizer, 3, multi_label=True)

        assert logs == kgpt.metrics.multi_label_scores(data.labels, logits)
        assert set(logs) == {"f1", "micro_f1", "mean_average_precision"}

    def test_a_model_that_diverged_has_scores_of_nan(self, monkeypatch):
        pytest.importorskip("sklearn", reason="the extra `scores`")
        data, tokenizer = task_batches(kgpt.data.classification, [0, 1, 2] * 4)
        monkeypatch.setattr(
            kgpt.TextClassifier, "predict", lambda *_, **__: np.full((12, 3), np.nan)
        )

        logs, _ = self.logs(data, tokenizer, 3)

        assert list(logs) == ["accuracy", "f1", "matthews"]
        assert np.isnan(list(logs.values())).all()

    def test_weights_of_numbers_are_refused(self):
        options = {"sample_weight": np.arange(12)}
        data, _ = task_batches(kgpt.data.regression, np.arange(12) / 12, **options)

        with pytest.raises(ValueError, match="count all examples alike"):
            kgpt.callbacks.Scores(data)


def test_numbers_are_scored_by_correlation_and_scores_need_labels():
    pytest.importorskip(
        "sklearn", reason="scores come from scikit-learn and scipy (the extra `scores`)"
    )
    data, tokenizer = task_batches(kgpt.data.regression, np.arange(12) / 12)
    model = kgpt.TextRegressor(kgpt.GPTBackbone(tokenizer.vocabulary_size, 1, 2, 8))
    model.compile("adam")

    scores = kgpt.callbacks.Scores(data, prefix="train_")
    history = model.fit(data, callbacks=[scores], verbose=0).history

    assert {"train_pearson", "train_spearman"} < set(history)
    unlabelled, _ = task_batches(kgpt.data.classification, None)
    with pytest.raises(ValueError, match="Scores need labelled batches"):
        kgpt.callbacks.Scores(unlabelled)


def test_packages_that_scores_need_are_asked_for_before_training(monkeypatch):
    data, _ = task_batches(kgpt.data.classification, [1, 0] * 6)
    monkeypatch.setattr("kgpt.callbacks.scores.find_spec", lambda name: None)

    with pytest.raises(ImportError, match="pip install scikit-learn"):
        kgpt.callbacks.Scores(data)
