"""`fit`, `evaluate` and `predict` of all models: Keras's, on data that has been checked."""

import contextlib

import keras
from keras.src.trainers.data_adapters.array_slicing import train_validation_split

from kgpt.arguments import checked
from kgpt.console import with_progress_bar
from kgpt.data.batches import ResumableBatches
from kgpt.data.filling import FilledBatches, filled
from kgpt.data.sources import CheckedSource, errors_of, kind_of, refuse_beside_batches
from kgpt.data.text_sources import is_text, split_texts
from kgpt.models.checks import check_devices
from kgpt.models.default_optimizer import (
    ScheduleOverFit,
    check_rate_callbacks,
    compile_if_needed,
    match_optimizer,
)
from kgpt.models.fit_arguments import FIT, check_validation
from kgpt.models.fit_data import (
    check_one_length,
    from_beginning,
    in_updates,
    source_of,
    tokens_per_step,
    validation_source,
    with_arrays,
    without_texts,
)
from kgpt.models.jax_state import weights_come_back
from kgpt.models.lora import revive_lora
from kgpt.models.sample_weights import set_class_weight


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

    A model that is not compiled is compiled by `compile()`. What has no effect beside `x` is
    refused. `rows` are texts or examples.

    Args:
        self: the model.
        x: what to learn from, one of

            - texts: a list, an array or a column of str; pairs `(first, second)`, or contexts with
              their choices, as rows or as a tuple of two columns. The tokenizer and the
              `sequence_length` of the model make of them what the functions of `kgpt.data` make;
            - token ids: int array or tensor `(rows, length)`, or a list of rows of one length; for
              heads also `(rows, sequences, length)`;
            - a dict of such arrays: `"token_ids"` and the model's other inputs, as
              `"padding_mask"`;
            - batches of `kgpt.data`, which have a position and may be resumed;
            - other batches `(x,)`, `(x, y)` or `(x, y, sample_weight)`: a `tf.data.Dataset`, of
              strings too, a `keras.utils.PyDataset`, a torch `DataLoader`, a grain dataset or a
              generator.
        y: of arrays and texts: next tokens, int `(rows, length)`, for a language model, which
            needs none; labels or targets `(rows,)` or `(rows, outputs)` for heads. None beside
            batches, which have their own.
        batch_size: int. Rows in a batch of arrays or texts; 32 if None.
        epochs: int. The number of the last epoch; each is a pass over the data, or
            `steps_per_epoch` batches.
        verbose: "auto", 0, 1 or 2: as for Keras, nothing, a bar for each epoch, or a line.
        callbacks: Keras callbacks, one or a list.
        validation_split: float in [0, 1). The share of the last rows of arrays or texts that is
            for validation, taken before anything is shuffled.
        validation_data: data to evaluate after each epoch: `x`, `(x, y)` or
            `(x, y, sample_weight)`. Batches of `kgpt.data` are read from their beginning and leave
            no trace, so that they may be the training data themselves.
        shuffle: bool. Whether rows of arrays and texts, and the batches of a `PyDataset`, have a
            new order in each epoch; None is True for these.
        class_weight: dict from the number or the name of a class to its weight, for heads with
            classes; with every source, and beside `sample_weight` as a factor.
        sample_weight: numbers of at least 0, `(rows,)`; for a language model also
            `(rows, length)`.
        validation_steps: int. Batches in a validation; all if None.
        validation_batch_size: int. `batch_size` if None.
        **kwargs: `initial_epoch`, `steps_per_epoch` and `validation_freq`, as for Keras.

    Returns:
        `keras.callbacks.History`: its `history` has a list for each name in `metrics_names`, and
        for `val_` before it, with a float for each epoch. Losses are in nats, or squared units of
        the targets.

    Raises:
        ValueError: for data that the model can't learn from (ids outside the vocabulary, rows that
            are too long, labels that are no classes), texts without a tokenizer, and arguments
            out of range or without effect.
        TypeError: for keywords that are no arguments, with the one that was probably meant.
        RuntimeError: if another thread is in a `fit` of a model over the same backbone.

    Example:
        lm.fit(["Hello world", "def main("], epochs=2)
        history = lm.fit(train, validation_data=valid).history

        classifier = kgpt.TextClassifier(lm.backbone, num_classes=2, tokenizer=tokenizer)
        classifier.fit(texts, labels, class_weight={0: 3.0, 1: 1.0})
    """
    compile_if_needed(self)
    has_order, split = kind_of(x) not in (None, "a PyDataset"), validation_split or None
    # Only batches of kgpt.data may be shuffled although the argument says False.
    acts = not has_order or (shuffle is False and not isinstance(x, ResumableBatches))
    given = {"y": y, "sample_weight": sample_weight, "batch_size": batch_size}
    refuse_beside_batches(x, **given, validation_split=split, shuffle=None if acts else shuffle)
    options = dict(validation_steps=validation_steps, validation_batch_size=validation_batch_size)
    check_validation(validation_data, split, **options, **kwargs)
    x, y, sample_weight = with_arrays(x, y, sample_weight)
    if split:
        split_data = split_texts if is_text(x) else train_validation_split
        (x, y, sample_weight), validation_data = split_data((x, y, sample_weight), split)
    shuffle = not has_order and shuffle is not False
    x, y, sample_weight = without_texts(
        self, x, y, sample_weight, batch_size, seed=0 if shuffle else None, learns=True
    )
    callbacks = _prepare_fit(self, class_weight, callbacks)
    callbacks = _in_order(with_progress_bar(callbacks, verbose, tokens_per_step(x, batch_size)))
    settings = {"batch_size": batch_size, "epochs": epochs, "shuffle": shuffle, **kwargs}
    settings["class_weight"] = class_weight
    running = RunningFit((x, y, sample_weight), callbacks, settings)
    training, validation = source_of(self, x, y, sample_weight, shuffle), None
    if validation_data is not None:
        validation = validation_source(self, validation_data, batch_size, **options)
        options["validation_data"] = validation.data
    data = in_updates(self, training.data, batch_size, kwargs.get("steps_per_epoch"), shuffle)
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

    A model that is not compiled is compiled by `compile()`.

    Args:
        self: the model.
        x: as for `fit`.
        y: as for `fit`.
        batch_size: as for `fit`.
        verbose: as for `fit`.
        sample_weight: as for `fit`.
        steps: int. Batches to evaluate; all if None.
        callbacks: as for `fit`.
        return_dict: bool. Whether to return a dict by name in place of a list.
        _use_cached_eval_dataset: Keras's own, for the validation of a fit.

    Returns:
        list of floats, what `metrics_names` names, as means over all that counts; a float where
        that is the loss alone; with `return_dict` a dict of them.

    Raises:
        ValueError: for data that the model can't be run on, texts without a tokenizer, and
            arguments out of range or without effect.
        RuntimeError: if another thread is in a `fit` of a model over the same backbone.

    Example:
        lm.evaluate(valid, return_dict=True)["perplexity"]
        lm.evaluate(["Hello world", "def main("])
    """
    compile_if_needed(self)
    source = None
    if not _use_cached_eval_dataset:  # as in the validation of a fit
        given = {"y": y, "sample_weight": sample_weight, "batch_size": batch_size}
        refuse_beside_batches(x, **given)
        x, y, sample_weight = with_arrays(x, y, sample_weight)
        x, y, sample_weight = without_texts(self, x, y, sample_weight, batch_size)
        source = source_of(self, from_beginning(x, steps), y, sample_weight)
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
    `steps * batch_size` texts.

    Args:
        self: the model.
        x: as for `fit`.
        batch_size: as for `fit`.
        verbose: as for `fit`.
        steps: int. Batches to run; all if None.
        callbacks: as for `fit`.

    Returns:
        numpy array of the outputs of all rows: what the model's docstring says under "Returns".

    Raises:
        ValueError: for data that the model can't be run on, texts without a tokenizer, a
            `batch_size` beside batches, and a language model's batches of several lengths.
        RuntimeError: if another thread is in a `fit` of a model over the same backbone.

    Example:
        classifier = kgpt.TextClassifier(lm.backbone, num_classes=2, tokenizer=tokenizer)
        logits = classifier.predict(["a fine film", "a dull one"])
    """
    refuse_beside_batches(x, batch_size=batch_size)
    x, _, _ = with_arrays(x)
    x, _, _ = without_texts(self, x, None, None, batch_size)
    x = from_beginning(x, steps)
    self.check_data(x)
    check_one_length(x)
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


def _prepare_fit(task, class_weight, callbacks):
    """Returns the callbacks of a fit, after what it needs of the model."""
    check_devices()
    set_class_weight(task, class_weight)
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


def _as_list(callbacks):
    """Returns callbacks as one list, with those of lists in a list and of a CallbackList."""
    if isinstance(callbacks, keras.callbacks.CallbackList):
        callbacks = callbacks.callbacks
    if not isinstance(callbacks, list | tuple):
        return [] if callbacks is None else [callbacks]
    return [callback for part in callbacks for callback in _as_list(part)]
