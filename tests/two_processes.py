"""One of two processes, of two simulated devices each, that train one model.

`python tests/two_processes.py NUMBER ADDRESS FOLDER [KILLED_AT]`: prints the losses as JSON. With
`KILLED_AT`, process 1 kills itself after so many steps.
"""

import json
import os
import signal
import sys
import warnings

from xla_flags import XLA_FLAGS

if __name__ == "__main__":  # and not where a test imports the sizes
    os.environ["XLA_FLAGS"] = f"{XLA_FLAGS} --xla_force_host_platform_device_count=2"

import keras

import kgpt
from kgpt.callbacks.checkpoint_folder import CheckpointFolder

BATCH = 8  # of all processes together
SIZES = {"vocabulary_size": 24, "num_layers": 1, "num_heads": 4, "hidden_dim": 16}
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


def count_arrays(found):
    """Takes down how many of the run's variables this process has in memory when it saves."""
    save = CheckpointFolder.begin_to_save

    def counted(folder, progress, arrays):
        names = [name for name in arrays if name.startswith(("model/", "optimizer/"))]
        found["kept"], found["all"] = len(names), sum(map(len, progress["variables"].values()))
        return save(folder, progress, arrays)

    CheckpointFolder.begin_to_save = counted


def distribution(style, *shape):
    mesh = keras.distribution.DeviceMesh(shape, ("batch", "model"))
    layout_map = kgpt.distribution.layout_map(SIZES, mesh, style=style)
    return keras.distribution.ModelParallel(layout_map=layout_map)


def main(number, address, folder, killed_at=None):
    keras.distribution.initialize(address, 2, int(number))
    found = {}
    count_arrays(found)
    with distribution("tensor_fsdp", 2, 2).scope():
        checkpoint = kgpt.callbacks.ResumableCheckpoint(f"{folder}/run", save_freq=2)
        killed_at = int(killed_at) if killed_at and number == "1" else None
        lm, found["tensor_fsdp"], found["ran"] = train(folder, BATCH // 2, [checkpoint], killed_at)
        try:
            lm.save(f"{folder}/lm.keras")
        except RuntimeError as error:
            found["save"] = str(error)
    with distribution("tensor", 1, 4).scope():  # no process has a whole model, and both read alike
        found["tensor"] = train(folder, BATCH)[1]
    print(json.dumps(found))


if __name__ == "__main__":
    warnings.simplefilter("ignore")
    main(*sys.argv[1:])
