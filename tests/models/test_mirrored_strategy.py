"""`tf.distribute.MirroredStrategy` over two logical CPU devices equals training on one device."""

import json
import os
import subprocess
import sys
from pathlib import Path

import keras
import pytest

if keras.backend.backend() != "tensorflow":
    pytest.skip("tf.distribute belongs to the TensorFlow backend", allow_module_level=True)

# A process of its own: devices are divided before TensorFlow starts.
SCRIPT = """
import contextlib, json, sys
import numpy as np
import tensorflow as tf
cpu = tf.config.list_physical_devices("CPU")[0]
tf.config.set_logical_device_configuration(cpu, [tf.config.LogicalDeviceConfiguration()] * 2)
import keras, kgpt
sys.path[:0] = sys.argv[1:]
from labelled import TOKENIZER

ROWS, LENGTH = 8, 8
IDS = np.random.default_rng(0).integers(0, 20, (ROWS, LENGTH)).astype("int32")
MASK = np.arange(LENGTH) < np.array([8, 7, 8, 8, 2, 3, 1, 2])[:, None]
LABELS = np.array([0, 1, 1, 0, 1, 1, 0, 0], "int32")
X = {"token_ids": IDS, "padding_mask": MASK}
TEXTS = ["a", "bc", "def", "gh", "i", "jkl", "m"]


def run(make, fit, strategy):
    keras.utils.set_random_seed(0)
    with strategy.scope() if strategy else contextlib.nullcontext():
        model = make(kgpt.GPTBackbone(TOKENIZER.vocabulary_size, 1, 1, 4, 4, 0.0, 16))
        for i, weight in enumerate(model.weights):
            weight.assign(0.5 * np.random.default_rng(i).normal(size=weight.shape))
        model.compile(keras.optimizers.SGD(0.5))
    history = fit(model)
    return {"weights": [w.tolist() for w in model.get_weights()], **history}


def fit_arrays(y, batch_size, **options):
    def fit(model):
        model.optimizer.learning_rate = 0.05  # at 0.5 rounding errors grow
        history = model.fit(X, y, batch_size, 25, verbose=0, shuffle=False, **options).history
        history["evaluate"] = model.evaluate(X, y, batch_size, verbose=0)
        history["predict"] = [model.predict(X, batch_size, verbose=0).tolist()]
        return history
    return fit


def fit_batches(model):
    data = kgpt.data.classification(TEXTS, LABELS[:7].tolist(), TOKENIZER, 16, 4, seed=0)
    return model.fit(data, epochs=2, validation_data=data, verbose=0).history


def classifier(backbone):
    return kgpt.TextClassifier(backbone, 2, dropout=0.0)


CASES = {
    # Fifty steps, of seven rows and one by turns: one replica has a row more, or none.
    "rows that do not divide, with weights": (
        kgpt.CausalLM, fit_arrays(None, 7, sample_weight=np.linspace(0, 2, ROWS).astype("float32"))
    ),
    "batches of kgpt.data": (classifier, fit_batches),
}
strategy = tf.distribute.MirroredStrategy(["CPU:0", "CPU:1"])
assert strategy.num_replicas_in_sync == 2
print(json.dumps({n: [run(*case, s) for s in (None, strategy)] for n, case in CASES.items()}))
"""


@pytest.fixture(scope="module")
def results():
    tests = Path(__file__).parents[1]
    environment = {**os.environ, "TF_CPP_MIN_LOG_LEVEL": "3", "CUDA_VISIBLE_DEVICES": ""}
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT, str(tests / "data")],
        capture_output=True,
        text=True,
        env=environment,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return json.loads(done.stdout.splitlines()[-1])


CASES = ["rows that do not divide, with weights", "batches of kgpt.data"]


@pytest.mark.parametrize("case", CASES)
def test_two_replicas_train_and_evaluate_as_one_device(results, case):
    one, two = results[case]

    assert one.keys() == two.keys()
    for name in one:
        for a, b in zip(keras.tree.flatten(one[name]), keras.tree.flatten(two[name]), strict=True):
            assert b == pytest.approx(a, rel=1e-4, abs=1e-5), name


def test_several_workers_are_refused_with_the_reason(monkeypatch):
    import kgpt

    class MultiWorkerMirroredStrategy:
        pass

    lm = kgpt.CausalLM(kgpt.GPTBackbone(11, 1, 1, 4, 4, 0.0, 8))
    monkeypatch.setattr(lm, "_distribute_strategy", MultiWorkerMirroredStrategy())

    with pytest.raises(ValueError, match="MultiWorkerMirroredStrategy does not work with models"):
        lm.compile()
