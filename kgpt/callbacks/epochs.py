"""Where a fit is in its epochs and in its data, and how it goes on in the middle of an epoch.

Keras counts an epoch in executions of its train function, of `steps_per_execution` batches each.
Its `EpochIterator` gives out one execution after the other, before any data is read. An epoch that
is resumed leaves out those that were done: what is left of it has the numbers, the validation and
the end that it has in a run that was not cut.
"""

import contextlib
import math

from kgpt.data.batches import ResumableBatches
from kgpt.data.sources import kind_of

_READ_ANEW = (None, "batches of kgpt.data", "a PyDataset")  # by each epoch, from its beginning
_BATCH_HOOKS = ("on_train_batch_begin", "on_train_batch_end")


class Place:
    """Where a fit is: counted by the callback, saved in checkpoints, and gone to from one.

    Args:
        model: the model that is trained.
        epochs: int. The epochs of the fit.

    Attributes:
        epoch: int. The epochs that have ended.
        executions: int. Those of the epoch that has begun.
        steps: int. Batches that were trained on in the whole run.
        can_resume_within: bool. Whether the data can go on inside an epoch.
        can_resume_at_its_end: bool. Whether an epoch can go on after its last step.
    """

    def __init__(self, model, epochs: int):
        fit = getattr(model, "running_fit", None)  # None of models that are not kgpt's
        self._model, self._epochs = model, epochs
        self._iterator = fit.epoch_iterator if fit else None
        self._callbacks = fit.callbacks if fit else []
        self.data = fit.data[0] if fit else None
        self.can_resume_within = isinstance(self.data, ResumableBatches)
        self.can_resume_at_its_end = fit is not None and kind_of(self.data) in _READ_ANEW
        self._data_state = self.data.get_state() if self.can_resume_within else None
        self.epoch = self.executions = self.steps = 0
        self.first_epoch = fit.began_at_epoch if fit else 0  # of the run
        self._read = 0  # batches of this pass
        self._seen_before = 0  # Keras's count of the steps of this pass, when the epoch began

    def begin_epoch(self, epoch: int):
        """Takes down that an epoch begins, or goes on."""
        self.epoch = epoch

    def end_execution(self, batch: int):
        """Takes down that an execution has ended, whose last batch has this number in Keras."""
        self.executions += 1
        read = self._batches_read(batch)
        self.steps += read - self._read
        self._read = read

    def end_epoch(self, epoch: int):
        """Takes down that an epoch has ended."""
        self.epoch, self.executions = epoch + 1, 0
        iterator = self._iterator
        is_whole = iterator is not None and iterator._num_batches and iterator._steps_seen == 0
        if self.can_resume_within and is_whole:  # the pass has ended too
            self._data_state["next_batch"] += len(self.data)
        goes_on = iterator is not None and iterator.steps_per_epoch
        self._seen_before = iterator._steps_seen if goes_on and self.can_resume_at_its_end else 0
        self._read = self._batches_read(-1) if goes_on else 0

    def _batches_read(self, batch):
        """Returns how many batches of the pass were trained on; the last execution may have few."""
        if self._iterator is None:
            return batch + 1
        return min(self._iterator._steps_seen, self._iterator._num_batches or math.inf)

    def _steps_in_epoch(self):
        """Returns the steps of this epoch, by Keras's count."""
        return self.executions * self._model.steps_per_execution

    # === Saved, and gone to ===

    def get_state(self) -> dict:
        """Returns the place as a JSON-serializable dict."""
        return {
            "epoch": self.epoch,
            "first_epoch": self.first_epoch,
            "steps": self.steps,
            "steps_in_epoch": self._steps_in_epoch(),
            "steps_seen_before_epoch": self._seen_before,
            "batches_read": self._read,
            "data": self._data_state,
        }

    def go_to(self, state: dict, stopped: bool, set_random_states) -> bool:
        """Lets the fit that begins go on from a place; returns whether there is anything to train.

        Args:
            state: dict from `get_state`.
            stopped: bool. Whether the run was stopped there.
            set_random_states: function that is called when Keras has drawn from the generators what
                it had drawn at that place.

        Raises:
            ValueError: if the state was taken from other data, or the executions don't fit.
        """
        state = self._in_this_format(state)
        in_epoch, by = state["steps_in_epoch"], self._model.steps_per_execution
        if in_epoch % by:
            raise ValueError(
                f"it is {in_epoch} steps into an epoch, which steps_per_execution={by} doesn't "
                "divide."
            )
        self.epoch, self.steps = state["epoch"], state["steps"]
        self.first_epoch = state.get("first_epoch", 0)  # kgpt 0.1 laid its schedule from 0
        self.executions, self._read = in_epoch // by, state["batches_read"]
        self._seen_before = state["steps_seen_before_epoch"]
        is_over = self.epoch >= self._epochs or (stopped and not self.executions)
        if self.executions:
            # TensorFlow builds metrics with the first step, and these have figures from before.
            self._model._symbolic_build(iterator=self._iterator)
            self._iterator.reset()
        if self.can_resume_within and state["data"] is not None:
            self._data_state = dict(state["data"])
            self.data.resume(self._data_state, 0 if is_over else self._read)
        self._model._initial_epoch = self._epochs if is_over else self.epoch
        goes_on = self._iterator is not None and self._iterator.steps_per_epoch
        if not is_over and (self.executions or goes_on):
            left_out = math.inf if stopped else self.executions
            self._leave_out(left_out, set_random_states)
        return not is_over

    def _in_this_format(self, state):
        """Returns the state of kgpt 0.1, in whose resumed runs the epochs began anew, as ours."""
        if "steps_in_epoch" in state:
            return state
        steps, per_epoch = state["steps"], self._iterator and self._iterator.num_batches
        if state["data"] is None or per_epoch is None:
            new = {"steps_in_epoch": 0, "steps_seen_before_epoch": 0, "batches_read": 0}
            return {**state, **new}
        epoch, in_epoch = divmod(steps, per_epoch)
        whole = steps - steps % (self._iterator._num_batches or math.inf)
        read = steps - int(whole)
        return {
            "epoch": epoch,
            "steps": steps,
            "steps_in_epoch": in_epoch,
            "steps_seen_before_epoch": max(0, read - in_epoch),
            "batches_read": read,
            "data": {**state["data"], "next_batch": state["data"]["next_batch"] + int(whole)},
        }

    def _leave_out(self, executions, set_random_states):
        """Leaves executions out of the next epoch, before any data is read."""
        iterator, model, callbacks = self._iterator, self._model, self._callbacks
        plain, seen_before = iterator._enumerate_iterator, self._seen_before
        is_there = self.can_resume_within  # or else the data are at the beginning of the pass

        def rest():
            del iterator._enumerate_iterator  # the epochs after this one are whole
            last, trains = None, False
            for number, last in enumerate(plain()):
                if number == 0:
                    iterator._steps_seen += seen_before
                    for _ in range(0 if is_there else seen_before):
                        next(last[-1])
                if number in (0, executions - 1):
                    set_random_states()
                if number >= executions:
                    trains = True
                    yield last
            if not trains and hasattr(model, "jax_state_sync"):
                # Keras's fit on JAX fails where an epoch has no execution: one without effect.
                with _nothing_happens(model, callbacks):
                    yield last

        iterator._enumerate_iterator = rest


@contextlib.contextmanager
def _nothing_happens(model, callbacks):
    """Inside, an execution on JAX trains nothing, and no callback hears of it."""
    train_function, own = model.train_function, []
    model.train_function = lambda state, iterator: ({}, state)
    for callback in callbacks:
        for hook in _BATCH_HOOKS:
            own.append((callback, hook, vars(callback).get(hook)))
            setattr(callback, hook, lambda *args, **kwargs: None)
    try:
        yield
    finally:
        model.train_function = train_function
        for callback, hook, function in own:
            if function is None:
                delattr(callback, hook)
            else:
                setattr(callback, hook, function)
