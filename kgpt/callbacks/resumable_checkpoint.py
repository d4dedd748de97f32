"""Carry on after a crash: the state of a training run, kept in a folder."""

import contextlib
import os
import warnings
from pathlib import Path

import keras

from kgpt.arguments import checked, flag, integer, is_int, one_of
from kgpt.callbacks import random_states, variables
from kgpt.callbacks.checkpoint_folder import CheckpointFolder
from kgpt.callbacks.epochs import Place
from kgpt.callbacks.signals import Signals
from kgpt.console import show

_ELSEWHERE = "Take another folder, or delete this one to begin afresh."


class ResumableCheckpoint(keras.callbacks.Callback):
    """Keeps the state of training in a folder, so that the same script goes on where it stopped.

    Args:
        folder: where to keep the state; made if need be.
        save_freq: `"epoch"`, or int: save after so many steps, and after each epoch. Steps need
            data that can continue in the middle of an epoch, as those of `kgpt.data` can.

    Example:
        lm.fit(train, epochs=10, callbacks=[kgpt.callbacks.ResumableCheckpoint("run/")])
    """

    comes_last = True  # among callbacks: what it saves is what the others have made of an epoch

    @checked(
        keep=integer(1),
        on_error=one_of("stop", "warn"),
        on_mismatch=one_of("error", "restart"),
        on_nan=one_of("stop", "skip"),
        max_skips=integer(1),
        handle_signals=flag,
    )
    def __init__(
        self,
        folder: str | os.PathLike,
        save_freq: str | int = "epoch",
        *,
        keep: int = 2,
        on_error: str = "stop",
        on_mismatch: str = "error",
        on_nan: str = "stop",
        max_skips: int = 3,
        handle_signals: bool = True,
    ):
        super().__init__()
        if save_freq != "epoch" and not (is_int(save_freq) and save_freq > 0):
            raise ValueError(
                'save_freq must be "epoch" or a positive number of steps. '
                f"Received: save_freq={save_freq!r}."
            )
        self.folder = Path(folder).absolute()
        self.save_freq = save_freq
        self.keep, self.on_error, self.on_mismatch = keep, on_error, on_mismatch
        self.on_nan, self.max_skips, self.handle_signals = on_nan, max_skips, handle_signals
        self._checkpoints = CheckpointFolder(self.folder, keep)
        self._signals = Signals()
        self._is_open, self._place = False, None

    # === Around a fit ===

    @contextlib.contextmanager
    def around_fit(self, model):
        """Holds the folder while a model of kgpt is in `fit`, which asks for it."""
        self._open(model)
        try:
            yield
        finally:
            self._close(model)

    def _open(self, model):
        self._checkpoints.open()
        self._is_open = True
        self._checkpoint = self._checkpoints.newest()

    def _close(self, model):
        """Leaves all as it was before the fit, but for what was trained and the checkpoints."""
        model._initial_epoch = None  # Keras would begin the next fit there too
        if self._place is not None and self._place.can_resume_within:
            self._place.data.set_state(self._place.data.get_state())  # nothing is left out
        self._place = None
        if self._is_open:
            self._is_open = False
            self._checkpoints.close()
        self._signals.restore()
        if self._signals.received is not None:
            self._signals.deliver()

    def on_train_begin(self, logs=None):
        model = self.model
        self._fit = getattr(model, "running_fit", None)
        if not self._is_open:  # in the fit of a model that is not kgpt's
            self._open(model)
        self._place = Place(model, self.params["epochs"])
        self._check_save_freq()
        self._first_step = int(model.optimizer.iterations)
        self._saved_at, self._metrics = 0, None
        self._stops_after_epoch = False
        self._resumed_metrics = None
        if self.handle_signals:
            self._signals.install()
        if self._checkpoint is not None:
            self._resume(self._checkpoint)

    def _check_save_freq(self):
        place = self._place
        if self.save_freq != "epoch" and not place.can_resume_within:
            raise ValueError(
                "Saving between epochs needs data that can continue in the middle of an epoch. "
                f"Received: save_freq={self.save_freq} with data of type "
                f'{type(place.data).__name__}. Try save_freq="epoch", or kgpt.data.windows.'
            )

    # === Going on ===

    def _resume(self, checkpoint):
        progress = checkpoint.progress
        self._set_variables(checkpoint)
        set_random_states = self._random_states_of(checkpoint)
        set_random_states()
        stopped = progress.get("stopped", False)
        try:
            trains = self._place.go_to(progress, stopped, set_random_states)
        except ValueError as error:
            raise ValueError(
                f"The checkpoint in {self.folder} is of another run: {error} {_ELSEWHERE}"
            ) from error
        self._first_step, self._saved_at = progress["first_step"], self._place.steps
        if self._fit is not None:
            self._fit.began_at_step = self._first_step
        self._stops_after_epoch = stopped and trains
        if self._place.executions and checkpoint.arrays is not None:
            self._resumed_metrics = checkpoint
        if trains:
            show(f"Resuming from {checkpoint.path}: {self._place.steps} steps done")
        elif stopped:
            show(
                f"The run in {self.folder} was stopped after {self._place.steps} steps, and stays "
                f"so. {_ELSEWHERE}"
            )
        else:
            show(f"The run in {self.folder} is finished: {self._place.steps} steps done")

    def _set_variables(self, checkpoint, parts=("model", "optimizer")):
        model = self.model
        if not model.optimizer.built:
            model.optimizer.build(model.trainable_variables)
        try:
            if checkpoint.arrays is None:
                model.load_weights(checkpoint.weights)
            else:
                listed = checkpoint.progress["variables"]
                variables.set_variables(model, listed, checkpoint.arrays, parts)
        except ValueError as error:
            raise ValueError(
                f"The checkpoint in {self.folder} is of another model: {error} {_ELSEWHERE}"
            ) from error

    def _random_states_of(self, checkpoint):
        if checkpoint.arrays is not None:
            return lambda: random_states.set_random_states(checkpoint.arrays)
        old = checkpoint.progress["random_states"]
        return lambda: random_states.set_random_states_of_first_format(self.model, old)

    def _set_metrics(self, checkpoint):
        """Lets the figures of an epoch go on from a checkpoint's, unless others are reported."""
        model, listed = self.model, checkpoint.progress["variables"]
        if variables.fits(model, listed, checkpoint.arrays, "metrics"):
            variables.set_variables(model, listed, checkpoint.arrays, ("metrics",))

    # === Keras's hooks ===

    def on_epoch_begin(self, epoch, logs=None):
        self._place.begin_epoch(epoch)
        if self._resumed_metrics is not None:
            self._set_metrics(self._resumed_metrics)
            self._resumed_metrics = None

    def on_train_batch_end(self, batch, logs=None):
        self._place.end_execution(batch)
        is_due = self.save_freq != "epoch" and self._place.steps - self._saved_at >= self.save_freq
        if is_due:
            self._save()

    def on_epoch_end(self, epoch, logs=None):
        self._place.end_epoch(epoch)
        if self._stops_after_epoch:
            self.model.stop_training = True
        self._save()

    def on_train_end(self, logs=None):
        if self._fit is None:
            self._close(self.model)

    # === Saving ===

    def _save(self):
        arrays, listed = variables.to_arrays(self.model)
        progress = {
            **self._place.get_state(),
            "first_step": self._first_step,
            "stopped": bool(self.model.stop_training),
            "variables": listed,
        }
        arrays |= random_states.random_states()
        try:
            self._checkpoints.save(progress, arrays)
        except OSError as error:
            if self.on_error == "stop":
                raise
            warnings.warn(f"{error} Training goes on.", stacklevel=2)
            return
        self._saved_at = self._place.steps
