"""Runs that are cut and resumed, for the tests of `ResumableCheckpoint`."""

import shutil

import keras
import numpy as np

import kgpt

VOCABULARY, LENGTH, BATCH, PASS = 20, 8, 4, 5
# Where compilation isn't the point: TensorFlow spends most of the time on it.
QUICK = {"run_eagerly": keras.backend.backend() == "tensorflow"}


class Killed(BaseException):
    """What ends training as abruptly as Python allows."""


class Diary(keras.callbacks.Callback):
    """Writes down what happens in a fit; `kill_at` is an entry after which the run is killed."""

    def __init__(self, kill_at=None):
        super().__init__()
        self.entries, self.kill_at = [], kill_at

    def _enter(self, *entry):
        self.entries.append(entry)
        if entry[:2] == self.kill_at:
            raise Killed

    def on_epoch_begin(self, epoch, logs=None):
        self._epoch = epoch
        self._enter("epoch", epoch)

    def on_train_batch_end(self, batch, logs=None):
        self._enter("step", (self._epoch, batch), logs["loss"])

    def on_test_begin(self, logs=None):
        self._enter("validation", self._epoch)

    def on_epoch_end(self, epoch, logs=None):
        self._enter("end", epoch, dict(logs))

    def get_state(self):  # a resumed run begins a diary of its own
        return {}

    def set_state(self, state):
        pass


def token_file(folder):
    """Five batches a pass."""
    tokens = np.random.default_rng(0).integers(0, VOCABULARY, PASS * BATCH * LENGTH + 1)
    np.save(folder / "tokens.npy", tokens.astype("uint16"))
    return folder / "tokens.npy"


def make_lm(optimizer=None, **options):
    keras.utils.set_random_seed(0)
    backbone = kgpt.GPTBackbone(VOCABULARY, 1, 2, 8, max_sequence_length=LENGTH, dropout=0.2)
    lm = kgpt.CausalLM(backbone)
    lm.compile(optimizer or keras.optimizers.Adam(1e-2), **{**QUICK, **options})
    return lm


def state_of(model):
    """All numbers of a model and its optimizer, and of its random generators."""
    variables = [*model.variables, *model.optimizer.variables]
    return [np.asarray(keras.ops.convert_to_numpy(variable)) for variable in variables]


def assert_same(model, expected):
    for a, b in zip(state_of(model), state_of(expected), strict=True):
        np.testing.assert_array_equal(a, b)


def only(checkpoint, folder):
    """A folder with a copy of one checkpoint, as a run that was killed after it leaves."""
    shutil.rmtree(folder, ignore_errors=True)
    shutil.copytree(checkpoint, folder / checkpoint.name)
    return folder


def checkpoints(folder):
    return sorted(folder.glob("checkpoint-????????"))
