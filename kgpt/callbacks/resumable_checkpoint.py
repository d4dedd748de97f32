"""Carry on after a crash: the state of a training run, kept in a folder."""

import json
import os
import shutil
from pathlib import Path

import keras

from kgpt.arguments import checked, is_int
from kgpt.callbacks.random_states import random_states, set_random_states
from kgpt.console import show


class ResumableCheckpoint(keras.callbacks.Callback):
    """Keeps the state of training in a folder, so that the same script goes on where it stopped.

    Saved are weights, optimizer, random states, the epoch, and the place in the data if it comes
    from `kgpt.data.windows`: a run that was killed and started again sees the same batches as one
    that was not. A checkpoint appears in the folder only when it is complete, and the one before
    it goes only then, so that a kill at any moment leaves one to go on from.

    The steps are counted through the whole run. Where a run was killed in the middle of an epoch,
    the epochs of the resumed one begin there: the last one is the shorter. (On the PyTorch backend
    unseeded layers of Keras, such as a head's dropout, and fused attention with dropout on CUDA
    then draw other numbers than in a run that was not killed.)

    A finished run stays finished: `fit` with its folder restores the end and trains no further.
    For a fresh start, take another folder or delete this one.

    Args:
        folder: where to keep the state; made if need be.
        save_freq: `"epoch"`, or int: save after so many steps, and after each epoch. Steps need
            data that can continue in the middle of an epoch, as `kgpt.data.windows` can.

    Raises:
        ValueError: for another `save_freq`, and, when training begins, for steps without such data
            or a checkpoint that does not fit the model or the data.

    Example:
        lm.fit(train, epochs=10, callbacks=[kgpt.callbacks.ResumableCheckpoint("run/")])
    """

    @checked
    def __init__(self, folder: str | os.PathLike, save_freq: str | int = "epoch"):
        super().__init__()
        if save_freq != "epoch" and not (is_int(save_freq) and save_freq > 0):
            raise ValueError(
                'save_freq must be "epoch" or a positive number of steps. '
                f"Received: save_freq={save_freq!r}."
            )
        self.folder = Path(folder)
        self.save_freq = save_freq

    def on_train_begin(self, logs=None):
        model = self.model
        self.data = getattr(model, "training_data", None)
        self._resumable = hasattr(self.data, "set_state")
        if self.save_freq != "epoch" and not self._resumable:
            raise ValueError(
                "Saving between epochs needs data that can continue in the middle of an epoch. "
                f"Received: save_freq={self.save_freq} with data of type "
                f'{type(self.data).__name__}. Try save_freq="epoch", or kgpt.data.windows.'
            )
        self._first_step = int(model.optimizer.iterations)
        self._epoch, self._steps = 0, 0  # done in the whole run
        self._steps_in_epoch = self._saved_at = 0
        self._data_start = self.data.get_state() if self._resumable else None
        checkpoint = self._latest()
        if checkpoint is not None:
            self._restore(model, checkpoint)

    def _restore(self, model, checkpoint):
        progress = json.loads((checkpoint / "progress.json").read_text())
        if not model.optimizer.built:
            model.optimizer.build(model.trainable_variables)
        try:
            model.load_weights(checkpoint / "state.weights.h5")
        except ValueError as error:
            raise ValueError(
                f"The checkpoint in {self.folder} is of another model: {error} "
                "Take another folder, or delete this one to start afresh."
            ) from error
        set_random_states(model, progress["random_states"])
        self._first_step = progress["first_step"]
        self._epoch, self._steps = progress["epoch"], progress["steps"]
        self._saved_at = self._steps
        if self._resumable and progress["data"] is not None:
            self._data_start = progress["data"]
            self.data.set_state(self._data_state())
        if self.params["steps"]:
            self._epoch = self._steps // self.params["steps"]
        model._initial_epoch = self._epoch  # as keras.callbacks.BackupAndRestore does
        model.fit_began_at_step = self._first_step
        show(f"Resuming from {checkpoint}: {self._steps} steps done")

    def on_epoch_begin(self, epoch, logs=None):
        self._steps_in_epoch = 0

    def on_train_batch_end(self, batch, logs=None):
        self._steps += batch + 1 - self._steps_in_epoch
        self._steps_in_epoch = batch + 1
        if self.save_freq != "epoch" and self._steps - self._saved_at >= self.save_freq:
            self._save()
        if self.params["steps"] and self._steps >= self.params["steps"] * self.params["epochs"]:
            self.model.stop_training = True

    def on_epoch_end(self, epoch, logs=None):
        self._epoch = epoch + 1
        if self._saved_at < self._steps:
            self._save()

    def on_train_end(self, logs=None):
        self.model._initial_epoch = None  # Keras would begin the next fit there too

    def _data_state(self):
        if self._data_start is None:
            return None
        return {**self._data_start, "next_batch": self._data_start["next_batch"] + self._steps}

    def _save(self):
        model = self.model
        self._saved_at = self._steps
        progress = {
            "epoch": self._epoch,
            "steps": self._steps,
            "first_step": self._first_step,
            "data": self._data_start,
            "random_states": random_states(model),
        }
        earlier = self._checkpoints()
        number = 1 + (_number(earlier[-1]) if earlier else 0)
        partial = self.folder / f"checkpoint-{number:08d}.partial"
        shutil.rmtree(partial, ignore_errors=True)
        partial.mkdir(parents=True)
        model.save_weights(partial / "state.weights.h5")
        (partial / "progress.json").write_text(json.dumps(progress))
        os.replace(partial, self.folder / f"checkpoint-{number:08d}")
        for checkpoint in earlier:
            shutil.rmtree(checkpoint)

    def _checkpoints(self):
        return sorted(
            path for path in self.folder.glob("checkpoint-*") if path.suffix != ".partial"
        )

    def _latest(self):
        checkpoints = self._checkpoints()
        return checkpoints[-1] if checkpoints else None


def _number(checkpoint):
    return int(checkpoint.name.removeprefix("checkpoint-"))
