"""One of two processes, of two simulated devices each, that train one model.

`python tests/two_processes.py NUMBER ADDRESS FOLDER [KILLED_AT]`: prints the losses as JSON. With
`KILLED_AT`, process 1 kills itself after so many steps. The model goes on from FOLDER/run, and one
that is divided otherwise from FOLDER/alone, if that is there.
"""

import errno
import json
import os
import signal
import sys
import warnings
from pathlib import Path
from unittest import mock

from xla_flags import XLA_FLAGS

if __name__ == "__main__":  # and not where a test imports the sizes
    os.environ["XLA_FLAGS"] = f"{XLA_FLAGS} --xla_force_host_platform_device_count=2"

import keras
import numpy as np

import kgpt
from kgpt.callbacks import divided
from kgpt.callbacks.checkpoint_folder import CheckpointFolder

BATCH = 8  # of all processes together
SIZES = {"vocabulary_size": 24, "num_layers": 1, "num_heads": 4, "hidden_dim": 64}
SIZES["max_sequence_length"] = 8


ran = []  # the steps that this process made; what a callback has is in checkpoints too


class Steps(keras.callbacks.Callback):
    """Takes down the running mean of the loss; ends the process after a step."""

    def __init__(self, killed_at=None):
        super().__init__()
        self.losses, self.killed_at = {}, killed_at

    def on_train_batch_end(self, batch, logs=None):
        ran.append(batch)
        self.losses[batch] = float(logs["loss"])
        if len(self.losses) == self.killed_at:
            os.kill(os.getpid(), signal.SIGKILL)


def train(folder, batch_size, callbacks=(), killed_at=None):
    keras.utils.set_random_seed(0)
    ran.clear()
    lm = kgpt.CausalLM(kgpt.GPTBackbone(**SIZES, dropout=0.1))
    lm.compile(keras.optimizers.AdamW(1e-2))
    steps = Steps(killed_at)
    data = kgpt.data.windows(f"{folder}/tokens.npy", 8, batch_size, seed=0)
    lm.fit(data, callbacks=[*callbacks, steps], verbose=0)
    return lm, steps.losses, list(ran)


class Watched(kgpt.callbacks.ResumableCheckpoint):
    """Takes down the size of the largest array that the processes gather for a checkpoint."""

    gathered = 0

    def _save(self):
        with self._watched():
            super()._save()

    def _set_variables(self, checkpoint):
        with self._watched():
            super()._set_variables(checkpoint)

    def _watched(self):
        from jax.experimental import multihost_utils

        gather = multihost_utils.process_allgather

        def counted(array, **options):
            self.gathered = max(self.gathered, np.size(array))
            return gather(array, **options)

        return mock.patch.object(multihost_utils, "process_allgather", counted)


def share_in_memory(model):
    """The share of the bytes of model and optimizer that this process has."""
    values = [variable.value for variable in [*model.variables, *model.optimizer.variables]]
    own = sum(s.data.nbytes for v in values for s in v.addressable_shards if s.replica_id == 0)
    return own / sum(value.nbytes for value in values)


def save_that_fails(folder, in_this_process):
    """What a save says here that fails in one process."""
    write = divided.write

    def fail(*args):
        if in_this_process:
            raise OSError(errno.ENOSPC, "No space left on device")
        write(*args)

    divided.write = fail
    try:
        CheckpointFolder(Path(folder, "run"), 2).save({}, {}, {"model/00000": np.zeros(3)})
    except OSError as error:
        return str(error)
    finally:
        divided.write = write


def distribution(style, *shape):
    mesh = keras.distribution.DeviceMesh(shape, ("batch", "model"))
    layout_map = kgpt.distribution.layout_map(SIZES, mesh, style=style)
    return keras.distribution.ModelParallel(layout_map=layout_map)


def main(number, address, folder, killed_at=None):
    keras.distribution.initialize(address, 2, int(number))
    found = {}
    with distribution("tensor_fsdp", 2, 2).scope():
        checkpoint = Watched(f"{folder}/run", save_freq=2)
        killed_at = int(killed_at) if killed_at and number == "1" else None
        lm, found["tensor_fsdp"], found["ran"] = train(folder, BATCH // 2, [checkpoint], killed_at)
        found["gathered"], found["share"] = checkpoint.gathered, share_in_memory(lm)
        try:
            lm.save(f"{folder}/lm.keras")
        except RuntimeError as error:
            found["save"] = str(error)
    with distribution("tensor", 1, 4).scope():  # no process has a whole model, and both read alike
        checkpoint = kgpt.callbacks.ResumableCheckpoint(f"{folder}/alone")
        _, found["tensor"], found["ran after one"] = train(folder, BATCH, [checkpoint])
    found["failed"] = save_that_fails(folder, number == "1")
    print(json.dumps(found))


if __name__ == "__main__":
    warnings.simplefilter("ignore")
    main(*sys.argv[1:])
