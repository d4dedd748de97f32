"""Carry on after a crash: the state of a training run, kept in a folder."""

import contextlib
import os
from pathlib import Path

import keras
import numpy as np

from kgpt.arguments import checked, is_int
from kgpt.callbacks import callback_states, divided, random_states, run_identity, variables
from kgpt.callbacks.checkpoint_folder import CheckpointFolder
from kgpt.callbacks.epochs import Place
from kgpt.callbacks.rates import RateOfEpoch
from kgpt.callbacks.run_history import CALLBACKS, arrays_of_callbacks
from kgpt.callbacks.signals import Signals
from kgpt.console import show, warn
from kgpt.distribution import process

_ELSEWHERE = "Take another folder, or delete this one to begin afresh."


class ResumableCheckpoint(keras.callbacks.Callback):
    """Keeps the state of training in a folder, so that the same script goes on where it stopped.

    Saved are all variables of model and optimizer as they are, random states, the states of the
    other callbacks, and the place in epochs and data. A run that was killed and is started again
    is the same run: it makes the steps, epochs and validations that it would have made, with the
    same numbers, and its `History` is that of the whole run. A run that is finished, or that a
    callback such as `EarlyStopping` has stopped, stays so: `fit` restores its end and trains no
    further. More `epochs` than before go on.

    The middle of an epoch is reached with batches of `kgpt.data`, and with texts given to `fit`.
    Of arrays, an epoch that was cut is made again, and in another order if TensorFlow shuffles
    them. Models that are not kgpt's are saved by epochs, without the states of other callbacks, and
    signals are left alone.

    Training goes on while a checkpoint is written, from a copy in memory; the end of `fit` waits
    for it. It appears in the folder when it is complete and on the disk; an older one goes only
    then, so that a kill or a power cut at any moment leaves one to go on from. Hashes show damage:
    a damaged checkpoint is named in a warning, and the one before it used. If all are damaged, an
    error says so. One run at a time trains with a folder.

    Several processes of one run (`keras.distribution.initialize`) share a folder on a disk that all
    of them reach. Each writes its own part of the variables with Orbax, and reads its own; so are
    weights saved that are divided among devices. Training waits for it. Any number of processes and
    devices goes on from it, one too.

    A checkpoint of another run is refused, with what is different: model, data, optimizer. Of what
    may change, such as validation data, a new learning rate counts.

    SIGTERM, SIGINT (Ctrl-C) and SIGHUP let the step or the validation end, save, and then act as
    ever: an interrupted process raises KeyboardInterrupt, a terminated one dies of the signal. A
    second Ctrl-C acts at once. This needs the main thread, and a run of one process.

    A loss or weight that is not finite is never saved.

    Args:
        folder: where to keep the state; made if need be.
        save_freq: `"epoch"`, or int: save after so many steps, and after each epoch. Steps need
            data that can continue in the middle of an epoch, as those of `kgpt.data` can.
        keep: int. How many checkpoints stay; more than one, so that one may be damaged.
        on_error: what a save does that fails, since the disk is full, say: `"stop"` ends training
            with an OSError, `"warn"` warns and goes on. The last good checkpoint stays.
        on_mismatch: what a checkpoint of another run does: `"error"`, or `"restart"`, which begins
            afresh, and replaces it.
        on_nan: what a loss or weight does that is not finite: `"stop"` ends training with a
            FloatingPointError that names the step and the last good checkpoint. `"skip"` goes back
            to the weights of the last checkpoint and on with the data after the batch.
        max_skips: int. How many skips there may be before another checkpoint is saved.
        handle_signals: bool. False leaves signals alone.

    Raises:
        ValueError: for arguments out of range, and, when training begins, for steps without such
            data, a checkpoint of another run, and if all checkpoints are damaged.
        RuntimeError: when training begins, if another process or fit trains with the folder.
        ImportError: when training begins, if Orbax is needed and not installed.
        OSError: if the folder can't be written to, in one line that names it.
        FloatingPointError: for what is not finite.

    Example:
        checkpoint = kgpt.callbacks.ResumableCheckpoint("run/", save_freq=500, on_nan="skip")
        lm.fit(train, validation_data=valid, epochs=10, callbacks=[checkpoint])
    """

    comes_last = True  # among callbacks: what it saves is what the others have made of an epoch

    @checked
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
        self._is_open, self._place, self._writing = False, None, None

    # === Around a fit ===

    @contextlib.contextmanager
    def around_fit(self, model):
        """Holds the folder while a model of kgpt is in `fit`, which asks for it."""
        try:
            self._open(model)
            yield
        finally:
            self._close(model)

    def _open(self, model):
        """Takes the folder, and finds the checkpoint that the fit goes on from."""
        self._fit = getattr(model, "running_fit", None)  # None of models that are not kgpt's
        self._is_divided = divided.is_divided(model)
        if self._is_divided:
            divided.orbax()
        self._checkpoints.open(is_closed_in_the_end=self._fit is not None)
        self._is_open = True
        self._others = [c for c in self._fit.callbacks if c is not self] if self._fit else []
        callback_states.check(self._others)
        data, settings = None, {"epochs": (self.params or {}).get("epochs")}
        if self._fit:
            x, y, sample_weight = self._fit.data
            data = x if y is None and sample_weight is None else self._fit.data
            settings = self._fit.settings
        self._identity = run_identity.identity(model, data, settings)
        self._checkpoint = self._checkpoints.newest_for_all()
        if self._checkpoint is not None and not self._is_of_this_run(self._checkpoint):
            self._checkpoint = None
        if self._checkpoint is not None:
            callback_states.prepare(self._others)

    def _is_of_this_run(self, checkpoint):
        saved = checkpoint.progress.get("identity")  # None in the first format
        different = run_identity.differences(saved, self._identity)
        for note in run_identity.notes(saved, self._identity):
            show(f"Since the checkpoint in {self.folder}: {note}")
        if not different:
            return True
        message = "\n  ".join([f"The checkpoint in {self.folder} is of another run:", *different])
        if self.on_mismatch == "error":
            raise ValueError(f'{message}\n{_ELSEWHERE} on_mismatch="restart" does so here.')
        show(f"{message}\nTraining begins afresh.")
        self._checkpoints.give_up()
        return False

    def _close(self, model):
        """Leaves all as it was before the fit, but for what was trained and the checkpoints."""
        model._initial_epoch = None  # Keras would begin the next fit there too
        if self._place is not None and self._place.can_resume_within:
            self._place.data.set_state(self._place.data.get_state())  # nothing is left out
        self._place = None
        self._writing = None  # not None after an error, which stays the one that is raised
        if self._is_open:
            self._is_open = False
            self._checkpoints.close()
        self._signals.restore()
        if self._signals.received is not None:
            self._signals.deliver()

    def on_train_begin(self, logs=None):
        model = self.model
        if not self._is_open:  # in the fit of a model that is not kgpt's
            self._open(model)
        self._place = place = Place(model, self.params["epochs"])
        if self.save_freq != "epoch" and not place.can_resume_within:
            raise ValueError(
                "Saving between epochs needs data that can continue in the middle of an epoch. "
                f"Received: save_freq={self.save_freq} with data of type "
                f'{type(place.data).__name__}. Try save_freq="epoch", or kgpt.data.windows.'
            )
        self._first_step = int(model.optimizer.iterations)
        self._states = callback_states.CallbackStates(self._others)
        self._saved_at, self._good, self._skips, self._skipped = 0, None, 0, []
        self._resumed = self._metrics = None
        self._stops_after_epoch, self._rate = False, RateOfEpoch(model)
        # One of Keras would not say that it has failed, and one process could not save alone.
        if self.handle_signals and self._fit and process()[1] == 1:
            self._signals.install()
        if self._checkpoint is not None:
            self._resume(self._checkpoint)
        elif self.on_nan == "skip":
            self._save()  # to go back to

    def on_epoch_begin(self, epoch, logs=None):
        self._place.begin_epoch(epoch)
        self._rate.begin_epoch()
        if self._resumed is not None:
            self._set_metrics(self._resumed)
            self._resumed = None

    def on_train_batch_end(self, batch, logs=None):
        place = self._place
        place.end_execution(batch)
        if self._writing is not None and self._writing.done():
            self._end_save()
        if not np.isfinite((logs or {}).get("loss", 0.0)):
            self._meet_nan(f"The loss is {logs['loss']}")
        elif self._signals.received is not None:
            self._leave(place.can_resume_within)
        elif self.save_freq != "epoch" and place.steps - self._saved_at >= self.save_freq:
            self._save()

    def on_test_begin(self, logs=None):
        # The validation of a fit uses the same metrics.
        arrays, *_ = variables.to_arrays(self.model, ("metrics",), self._is_divided)
        self._metrics = {name: array.copy() for name, array in arrays.items()}

    def on_test_batch_end(self, batch, logs=None):
        if self._signals.received is not None:
            self.model.stop_evaluating = True

    def on_test_end(self, logs=None):
        if self._signals.received is not None:
            self._leave(self._place.can_resume_at_its_end)

    def on_epoch_end(self, epoch, logs=None):
        self._metrics = None
        self._place.end_epoch(epoch)
        if self._stops_after_epoch:
            self.model.stop_training = True
        if self._signals.received is not None:
            self._leave(True)
        else:
            self._save()
        self._rate.end_epoch()

    def on_train_end(self, logs=None):
        self._end_save()
        if self._fit is None:
            self._close(self.model)

    # === Going on ===

    def _resume(self, checkpoint):
        progress = checkpoint.progress
        stopped = progress.get("stopped", False)
        set_random_states = self._random_states_of(checkpoint)
        try:
            trains = self._place.go_to(progress, stopped, set_random_states)
            self._set_variables(checkpoint)
        except ValueError as error:
            raise ValueError(
                f"The checkpoint in {self.folder} is of another model or of other data: {error} "
                f"{_ELSEWHERE}"
            ) from error
        set_random_states()
        rate = run_identity.new_learning_rate(progress.get("identity"), self._identity)
        if rate is not None:
            self.model.optimizer.learning_rate = rate
        elif self._place.executions:
            self._rate.go_to(progress.get("rate_before_epoch"))
        arrays = arrays_of_callbacks(checkpoint.arrays or {})
        self._states.set(progress.get("callbacks", {}), arrays)
        self._first_step, self._saved_at = progress["first_step"], self._place.steps
        if self._fit is not None:
            self._fit.began_at_step = self._first_step
            self._fit.began_at_epoch = self._place.first_epoch
        self._good, self._skipped = checkpoint.path, progress.get("skipped", [])
        self._stops_after_epoch = stopped and trains
        if self._place.executions:
            self._resumed = checkpoint
        self._say_how_it_goes_on(checkpoint, trains, stopped)

    def _say_how_it_goes_on(self, checkpoint, trains, stopped):
        steps = self._place.steps
        if trains:
            show(f"Resuming from {checkpoint.path}: {steps} steps done")
        elif stopped:
            show(f"The run in {self.folder} was stopped after {steps} steps. {_ELSEWHERE}")
        else:
            show(f"The run in {self.folder} is finished: {steps} steps done")

    def _set_variables(self, checkpoint):
        model = self.model
        if not model.optimizer.built:
            model.optimizer.build(model.trainable_variables)
        if checkpoint.arrays is None:
            model.load_weights(checkpoint.weights)
        else:
            variables.set_variables(model, checkpoint, ("model", "optimizer"))

    def _random_states_of(self, checkpoint):
        if checkpoint.arrays is not None:
            return lambda: random_states.set_random_states(checkpoint.arrays)
        old = checkpoint.progress["random_states"]
        return lambda: random_states.set_random_states_of_first_format(self.model, old)

    def _set_metrics(self, checkpoint):
        """Lets the figures of an epoch go on from a checkpoint's, unless others are reported."""
        is_known = checkpoint.arrays is not None  # not in the first format
        if is_known and variables.fits(self.model, checkpoint, "metrics"):
            variables.set_variables(self.model, checkpoint, ("metrics",))

    # === Saving ===

    def _save(self):
        """Begins to save the run, when the save before it has ended."""
        self._end_save()
        values, listed, wrong = variables.to_arrays(self.model, is_divided=self._is_divided)
        if wrong is not None:
            self._meet_nan(f"{wrong} is not finite")
            values, listed, _ = variables.to_arrays(self.model, is_divided=self._is_divided)
        values |= self._metrics or {}
        callbacks, of_callbacks = self._states.get()
        arrays = random_states.random_states()
        arrays |= {CALLBACKS + name: array for name, array in of_callbacks.items()}
        progress = {
            **self._place.get_state(),
            "rate_before_epoch": self._rate.before,
            "first_step": self._first_step,
            "stopped": bool(self.model.stop_training),
            "skipped": self._skipped,
            "identity": self._identity,
            "callbacks": callbacks,
            "variables": listed,
        }
        if not self._is_divided:  # what is divided is written before training goes on
            arrays = {name: np.array(array) for name, array in (values | arrays).items()}
        values = values if self._is_divided else None
        self._writing = self._checkpoints.begin_to_save(progress, arrays, values)
        self._saved_at = self._place.steps

    def _end_save(self) -> bool:
        """Waits for the save that has begun, if one has; returns whether it went well."""
        if self._writing is None:
            return True
        writing, self._writing = self._writing, None
        try:
            self._good = writing.result()
        except OSError as error:
            if self.on_error == "stop":
                raise
            warn(f"{error} Training goes on without this checkpoint.")
            return False
        self._skips = 0
        return True

    def _leave(self, can_save):
        """Saves the run, and lets the signal that came act."""
        name, place = self._signals.name, self._place
        if can_save:
            try:
                self._save()
                if self._end_save():
                    show(f"{name}: saved after {place.steps} steps in {self.folder}")
            except (OSError, FloatingPointError) as error:
                show(f"{name}: {error}")
        else:
            show(
                f"{name}: an epoch can't be resumed in its middle with data of type "
                f"{type(place.data).__name__}. The last {place.steps - self._saved_at} steps will "
                "be made again."
            )
        self._signals.deliver()
        self._signals.install()  # the signal's own handler ended nothing

    def _meet_nan(self, what):
        """Ends training, or goes back to the last checkpoint and on with the data after this."""
        model, place = self.model, self._place
        self._end_save()
        variables.bring_back(model)
        checkpoint = self._checkpoints.newest_for_all() if self._good else None
        epoch = place.epoch + bool(place.executions)
        where = f"{what} after {place.steps} steps, in epoch {epoch}."
        if self.on_nan == "stop" or checkpoint is None or self._skips == self.max_skips:
            good = f"The last good checkpoint is {self._good}." if self._good else ""
            tried = f" {self._skips} skips since then did not help." if self._skips else ""
            hint = 'Try a lower learning rate, clip_norm, or on_nan="skip".'
            raise FloatingPointError(f"{where} {good}{tried} {hint}")
        self._skips += 1
        self._skipped.append({"epoch": place.epoch, "steps": place.steps})
        done = variables.batches_of_update(model.optimizer)
        self._set_variables(checkpoint)
        variables.keep_place_in_update(model.optimizer, done)
        saved = checkpoint.progress
        if saved["epoch"] == place.epoch and saved.get("steps_in_epoch"):
            self._set_metrics(checkpoint)
        else:
            model.reset_metrics()
        show(f"{where} Back to the weights of {checkpoint.path}, and on with the next batch.")
