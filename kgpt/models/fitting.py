"""`fit`, `evaluate` and `predict` of all models: Keras's, on data that has been checked."""

import contextlib

import keras
import numpy as np
from keras.src.trainers.data_adapters.array_slicing import train_validation_split

from kgpt.arguments import checked
from kgpt.console import with_progress_bar
from kgpt.data.batches import ResumableBatches
from kgpt.data.columns import without_tensors
from kgpt.data.filling import FilledBatches, fill_batch, filled
from kgpt.data.sources import (
    CheckedSource,
    errors_of,
    kind_of,
    refuse_beside_batches,
    without_uint64,
)
from kgpt.data.task_batches import TaskBatches
from kgpt.data.text_sources import is_text, split_texts, unpack
from kgpt.data.updates import Updates, by_update
from kgpt.models.checks import (
    as_arrays,
    check_devices,
    check_rows,
    check_something_counts,
)
from kgpt.models.default_optimizer import (
    ScheduleOverFit,
    check_rate_callbacks,
    compile_if_needed,
    match_optimizer,
)
from kgpt.models.fit_arguments import FIT, check_validation
from kgpt.models.jax_state import weights_come_back
from kgpt.models.lora import revive_lora
from kgpt.models.text_inputs import batches_of


@checked(passes_on=keras.Model.fit, **FIT)
def fit(
    self,
    x=None,
    y=None,
    batch_size=None,
    epochs: int = 1,
    verbose: object = "auto",
    callbacks=None,
    validation_split: float = 0.0,
    validation_data=None,
    shuffle=None,
    class_weight=None,
    sample_weight=None,
    *,
    validation_steps: int | None = None,
    validation_batch_size: int | None = None,
    **kwargs,
):
    """Trains as `keras.Model.fit` does; batches of `kgpt.data` go on from their position.

    `validation_data` of `kgpt.data` is read from its beginning in each epoch and leaves no
    trace, so that it may be the training data itself. `shuffle=None` is True for arrays and
    PyDatasets. `class_weight` counts with every source, and beside `sample_weight` as a factor;
    its keys are numbers or names of classes. What has no effect beside `x` is refused.

    Texts go straight in: a list, an array or a column of str, pairs, a tuple of two columns, or a
    `tf.data.Dataset` of batches of strings. The model's tokenizer and `sequence_length` make of
    them what the functions of `kgpt.data` make. A model that is not compiled is compiled by
    `compile()`.
    """
    compile_if_needed(self)
    has_order, split = kind_of(x) not in (None, "a PyDataset"), validation_split or None
    # Only batches of kgpt.data may be shuffled although the argument says False.
    acts = not has_order or (shuffle is False and not isinstance(x, ResumableBatches))
    given = {"y": y, "sample_weight": sample_weight, "batch_size": batch_size}
    refuse_beside_batches(x, **given, validation_split=split, shuffle=None if acts else shuffle)
    options = dict(validation_steps=validation_steps, validation_batch_size=validation_batch_size)
    check_validation(validation_data, split, **options, **kwargs)
    x, y, sample_weight = _with_arrays(x, y, sample_weight)
    if split:
        split_data = split_texts if is_text(x) else train_validation_split
        (x, y, sample_weight), validation_data = split_data((x, y, sample_weight), split)
    shuffle = not has_order and shuffle is not False
    x, y, sample_weight = _without_texts(
        self, x, y, sample_weight, batch_size, seed=0 if shuffle else None, learns=True
    )
    callbacks = _prepare_fit(self, class_weight, callbacks)
    callbacks = _in_order(with_progress_bar(callbacks, verbose, _tokens_per_step(x, batch_size)))
    settings = {"batch_size": batch_size, "epochs": epochs, "shuffle": shuffle, **kwargs}
    settings["class_weight"] = class_weight
    running = RunningFit((x, y, sample_weight), callbacks, settings)
    training, validation = _source(self, x, y, sample_weight, shuffle), None
    if validation_data is not None:
        validation = _validation(self, validation_data, batch_size, **options)
        options["validation_data"] = validation.data
    data = _batches(self, training.data, batch_size, kwargs.get("steps_per_epoch"), shuffle)
    with errors_of(training, validation), data as (x, y, sample_weight), running.around(self):
        options.update(shuffle=shuffle, sample_weight=sample_weight)
        return keras.Model.fit(
            self, x, y, batch_size, epochs, verbose, callbacks, **options, **kwargs
        )


class RunningFit:
    """A fit that runs, for callbacks: `model.running_fit`; None at other times.

    Attributes:
        data: `(x, y, sample_weight)`, as they came in or as batches of `kgpt.data`.
        callbacks: list of the callbacks.
        settings: dict of the other arguments of the fit.
        epoch_iterator: what Keras takes the steps of an epoch from.
        began_at_step: the optimizer's iterations when a run began that is resumed, or None.
        began_at_epoch: the epochs that were before this run, or before one that is resumed.
    """

    def __init__(self, data: tuple, callbacks: list, settings: dict):
        self.data, self.callbacks, self.settings = data, callbacks, settings
        self.epoch_iterator = self.began_at_step = None
        self.began_at_epoch = settings.get("initial_epoch", 0)

    @contextlib.contextmanager
    def around(self, model):
        """Inside, the model knows of the fit, and callbacks have what they ask for around it."""
        model.running_fit = self
        try:
            with contextlib.ExitStack() as stack:
                for callback in self.callbacks:
                    if hasattr(callback, "around_fit"):
                        stack.enter_context(callback.around_fit(model))
                stack.enter_context(weights_come_back(model))
                yield
        finally:
            model.running_fit = None
            model._initial_epoch = None  # a BackupAndRestore's, or the next fit began there too


@checked(**FIT)
def evaluate(
    self,
    x=None,
    y=None,
    batch_size=None,
    verbose: object = "auto",
    sample_weight=None,
    steps=None,
    callbacks=None,
    return_dict: bool = False,
    *,
    _use_cached_eval_dataset: bool = False,
):
    """Evaluates as `keras.Model.evaluate` does; batches of `kgpt.data` from their beginning.

    Texts go straight in, as in `fit`.
    """
    compile_if_needed(self)
    source = None
    if not _use_cached_eval_dataset:  # as in the validation of a fit
        given = {"y": y, "sample_weight": sample_weight, "batch_size": batch_size}
        refuse_beside_batches(x, **given)
        x, y, sample_weight = _with_arrays(x, y, sample_weight)
        x, y, sample_weight = _without_texts(self, x, y, sample_weight, batch_size)
        source = _source(self, _from_beginning(x, steps), y, sample_weight)
        x, y, sample_weight = filled(*source.data, batch_size, steps)
    options = {"return_dict": return_dict, "_use_cached_eval_dataset": _use_cached_eval_dataset}
    callbacks = with_progress_bar(callbacks, verbose)
    with errors_of(source), weights_come_back(self):
        return keras.Model.evaluate(
            self, x, y, batch_size, verbose, sample_weight, steps, callbacks, **options
        )


@checked(**FIT)
def predict(self, x, batch_size=None, verbose: object = "auto", steps=None, callbacks=None):
    """Predicts as `keras.Model.predict` does; batches of `kgpt.data` from their beginning.

    The outputs of task batches are in the order of the texts; with `steps`, those of the first
    `steps * batch_size` texts. Texts go straight in, as in `fit`.
    """
    refuse_beside_batches(x, batch_size=batch_size)
    x, _, _ = _with_arrays(x)
    x, _, _ = _without_texts(self, x, None, None, batch_size)
    x = _from_beginning(x, steps)
    self.check_data(x)
    _check_one_length(x)
    source = CheckedSource(
        x, None, None, lambda x, *_: self.check_data(x), self.backbone.vocabulary_size
    )
    callbacks = with_progress_bar(callbacks, verbose)
    with errors_of(source), weights_come_back(self):
        data, *_ = filled(source.data[0], batch_size=batch_size, steps=steps)
        outputs = keras.Model.predict(self, data, batch_size, verbose, steps, callbacks)
    if isinstance(data, FilledBatches):
        outputs = data.without_filling(outputs)
    if isinstance(x, ResumableBatches):
        return keras.tree.map_structure(x.original_order, outputs)
    return outputs


@checked
def train_on_batch(
    self, x, y=None, sample_weight=None, class_weight=None, return_dict: bool = False
):
    """Trains as `keras.Model.train_on_batch` does, with `class_weight` as in `fit`."""
    compile_if_needed(self)
    x, y, sample_weight = _with_arrays(x, y, sample_weight)
    self.check_data(x, y, sample_weight)
    check_something_counts(x, sample_weight)
    match_optimizer(self)
    _set_class_weight(self, class_weight)
    batch = fill_batch((x, y, sample_weight))
    return keras.Model.train_on_batch(self, *batch, return_dict=return_dict)


@checked
def test_on_batch(self, x, y=None, sample_weight=None, return_dict: bool = False):  # noqa: PT028
    """Evaluates as `keras.Model.test_on_batch` does."""
    compile_if_needed(self)
    x, y, sample_weight = _with_arrays(x, y, sample_weight)
    self.check_data(x, y, sample_weight)
    batch = fill_batch((x, y, sample_weight))
    return keras.Model.test_on_batch(self, *batch, return_dict=return_dict)


@checked
def predict_on_batch(self, x):
    """Predicts as `keras.Model.predict_on_batch` does."""
    x, _, _ = _with_arrays(x)
    self.check_data(x)
    return keras.Model.predict_on_batch(self, x)


def symbolic_build(self, iterator=None, data_batch=None):
    """Builds what is not built, as `keras.Model` does at the beginning of a fit."""
    _take_down(self, iterator)
    keras.Model._symbolic_build(self, iterator, data_batch)


def maybe_symbolic_build(self, iterator=None, data_batch=None):
    """Does what the TensorFlow backend has in the place of `symbolic_build`."""
    _take_down(self, iterator)
    # Keras takes a mean over replicas, which bools do not have.
    strategy = self._distribute_strategy
    if iterator is not None and strategy is not None:
        data = next(next(batches for _, _, batches in iterator))
        data_batch, iterator = (
            keras.tree.map_structure(
                lambda value: strategy.experimental_local_results(value)[0], data
            ),
            None,
        )
    keras.Model._maybe_symbolic_build(self, iterator, data_batch)


def _take_down(task, iterator):
    """Tells the callbacks of a fit where Keras takes its steps from; it builds before they run."""
    if task.running_fit is not None and task.running_fit.epoch_iterator is None:
        task.running_fit.epoch_iterator = iterator


def _check_one_length(x):
    """Raises ValueError for batches whose outputs, of each position, fit in no one array."""
    if isinstance(x, TaskBatches) and x.has_next_tokens and not x.has_one_length:
        raise ValueError(
            "predict returns the logits of all positions, in rows of one length. Received: "
            f"batches of several lengths, {x!r:.80}. Try lm.score(texts) or lm.embed(texts), or "
            "predict_on_batch for each of the batches."
        )


def _validation(task, data, batch_size, validation_steps, validation_batch_size):
    x, y, sample_weight = unpack(data)
    given = {"y": y, "sample_weight": sample_weight}
    refuse_beside_batches(x, **given, validation_batch_size=validation_batch_size)
    size = validation_batch_size or batch_size
    x, y, sample_weight = _with_arrays(x, y, sample_weight)
    x, y, sample_weight = _without_texts(task, x, y, sample_weight, size)
    source = _source(task, _from_beginning(x, validation_steps), y, sample_weight)
    source.data = filled(*source.data, size, validation_steps)
    return source


def _with_arrays(x, y=None, sample_weight=None):
    """Returns lists of numbers as arrays; texts and their labels, and batches, as they are."""
    if is_text(x):
        return x, without_tensors(y), sample_weight
    if kind_of(x) is not None:
        return x, y, sample_weight
    columns = tuple(map(as_arrays, ("x", "y", "sample_weight"), (x, y, sample_weight)))
    columns = without_uint64(columns)
    check_rows(*columns)
    return columns


def _without_texts(task, x, y, sample_weight, batch_size, seed=None, learns=False):
    """Returns data of texts as batches of token ids, and other data as they are."""
    if learns:
        task.look_at(x, y)
        task.learn_from(x, y)
    if not is_text(x):
        return x, y, sample_weight
    return batches_of(task, x, y, sample_weight, batch_size, seed), None, None


def _source(task, x, y, sample_weight, shuffle=False):
    task.check_data(x, y, sample_weight)
    if kind_of(x) is None:
        check_something_counts(x, sample_weight)
        task.check_set(x, y)
        if y is None and sample_weight is not None:
            y = task.known_targets(x)
    vocabulary_size = task.backbone.vocabulary_size
    return CheckedSource(x, y, sample_weight, task.check_data, vocabulary_size, shuffle)


@contextlib.contextmanager
def _batches(task, data, *batching):
    """Gives the data of a fit as Keras takes them, by updates and by devices."""
    with by_update(data, _updates(task), *batching) as data:
        yield filled(*data, *batching)


def _tokens_per_step(x, batch_size):
    """Returns how many tokens each step trains on; None where steps differ or have padding."""
    if isinstance(x, ResumableBatches):
        return x.tokens_per_batch
    if isinstance(x, dict) and set(x) <= {"token_ids", "segment_ids"}:
        x = x.get("token_ids")
    if not isinstance(x, np.ndarray) or x.ndim != 2:
        return None
    return min(len(x), batch_size or 32) * x.shape[1]  # 32 is Keras's


def _updates(task):
    """Returns how batches are grouped into updates; None if each of them is one."""
    optimizer = getattr(task.optimizer, "inner_optimizer", task.optimizer)
    # `iterations` counts updates; batches are counted by its private form alone.
    size = getattr(optimizer, "gradient_accumulation_steps", None) or 1
    if size == 1 or not task._uses_own_loss:
        return None
    return Updates(size, lambda: int(optimizer._iterations) % size, task.count)


def _set_class_weight(task, class_weight):
    table = None if class_weight is None else task.read_class_weight(class_weight).tolist()
    if table != task._class_weight:
        task.train_function = None  # it is part of the compiled step
    task._class_weight = table


def _prepare_fit(task, class_weight, callbacks):
    """Returns the callbacks of a fit, after what it needs of the model."""
    check_devices()
    _set_class_weight(task, class_weight)
    revive_lora(task.backbone)
    match_optimizer(task)
    callbacks = _as_list(callbacks)
    if task._optimizer_is_default:
        check_rate_callbacks(callbacks)
        # The learning rate of the last fit is part of the compiled step: compile a new one.
        task.train_function = None
        callbacks = [*callbacks, ScheduleOverFit()]
    return callbacks


def _in_order(callbacks):
    """Returns callbacks, scores before those that look at them and that of checkpoints last."""
    callbacks = keras.tree.flatten(callbacks)
    callbacks.sort(key=lambda callback: not getattr(callback, "comes_first", False))
    last = [callback for callback in callbacks if getattr(callback, "comes_last", False)]
    if not last:
        return callbacks
    if len(last) > 1:
        raise ValueError(
            "A run has one state, which one callback keeps. Received: "
            f"{len(last)} callbacks {type(last[0]).__name__}. Leave one of them."
        )
    if not any(isinstance(callback, keras.callbacks.History) for callback in callbacks):
        callbacks.append(keras.callbacks.History())  # which Keras would add at the end

    schedule = [callback for callback in callbacks if isinstance(callback, ScheduleOverFit)]
    others = [callback for callback in callbacks if callback not in last + schedule]
    return [*others, *last, *schedule]


def _from_beginning(data, steps):
    """Returns data for evaluation: what is read from it moves no position."""
    return data.from_beginning(steps) if isinstance(data, ResumableBatches) else data


def _as_list(callbacks):
    """Returns callbacks as one list, with those of lists in a list and of a CallbackList."""
    if isinstance(callbacks, keras.callbacks.CallbackList):
        callbacks = callbacks.callbacks
    if not isinstance(callbacks, list | tuple):
        return [] if callbacks is None else [callbacks]
    return [callback for part in callbacks for callback in _as_list(part)]
