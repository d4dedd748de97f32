"""Callbacks of Keras that watch the models' own metrics know by themselves which way is better."""

import keras
import numpy as np
import pytest

import kgpt

IDS = np.random.default_rng(0).integers(0, 11, (4, 6)).astype("int32")


def make(name):
    keras.utils.set_random_seed(0)
    backbone = kgpt.GPTBackbone(11, 1, 1, 4, 4, 0.0, 6)
    heads = {
        "lm": (kgpt.CausalLM(backbone), (IDS,)),
        "classifier": (kgpt.TextClassifier(backbone, 2), (IDS, np.array([0, 1, 0, 1]))),
        "multi-label": (
            kgpt.TextClassifier(backbone, 2, multi_label=True),
            (IDS, np.eye(2)[[0, 1, 0, 1]]),
        ),
        "regressor": (kgpt.TextRegressor(backbone), (IDS, np.linspace(0, 1, 4))),
        "choice": (kgpt.MultipleChoice(backbone), (IDS.reshape(2, 2, 6), np.array([0, 1]))),
    }
    return heads[name]


@pytest.mark.parametrize("name", ["lm", "classifier", "multi-label", "regressor", "choice"])
def test_the_mode_of_each_own_metric_is_found(name):
    model, data = make(name)
    higher_is_better = {"accuracy", "f1"}
    names = ["loss", "task_loss", "lm_loss"]
    names += {"lm": ["perplexity", "accuracy"], "multi-label": ["f1"]}.get(name, ["accuracy"])
    if name == "lm":
        names = ["loss", "perplexity", "accuracy"]
    if name == "regressor":
        names[-1] = "mean_absolute_error"
    stops = {
        prefix + metric: keras.callbacks.EarlyStopping(prefix + metric)
        for metric in names
        for prefix in ("", "val_")
    }

    history = model.fit(*data, validation_data=data, verbose=0, callbacks=list(stops.values()))

    assert set(stops) == set(history.history)
    for metric, stop in stops.items():
        is_up = metric.removeprefix("val_") in higher_is_better
        assert stop.monitor_op is (keras.ops.greater if is_up else keras.ops.less), metric


def test_the_best_checkpoint_is_kept_by_perplexity(tmp_path):
    model, data = make("lm")
    path = tmp_path / "best.keras"
    keep = keras.callbacks.ModelCheckpoint(path, monitor="val_perplexity", save_best_only=True)
    model.compile("sgd", metrics=[keras.metrics.SparseCategoricalAccuracy(name="hits")])
    stop = keras.callbacks.EarlyStopping("val_hits")

    model.fit(*data, validation_data=data, verbose=0, callbacks=[keep, stop])

    assert path.exists()
    assert stop.monitor_op is keras.ops.greater
