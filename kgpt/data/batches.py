"""Numbered batches that Keras trains on, and from which an interrupted run resumes."""

import atexit
import contextlib
import functools
import gc
from collections.abc import Iterator

import keras
import numpy as np
from keras.src.trainers.data_adapters import data_adapter_utils
from keras.src.trainers.data_adapters.data_adapter import DataAdapter

from kgpt.arguments import checked, is_int


class PythonBatches(DataAdapter):
    """Keras's data adapter of batches of arrays that a loop in Python makes.

    A subclass defines `__iter__`, each call of which begins an epoch, and `num_batches`.

    Attributes:
        error: what was raised while a batch was made, of which a backend makes an error of its own.
    """

    error = None

    def get_numpy_iterator(self):
        return iter(self)

    def get_jax_iterator(self):
        return iter(self)

    def get_torch_dataloader(self):
        return data_adapter_utils.get_torch_dataloader(self)

    def get_tf_dataset(self):
        import tensorflow as tf

        _end_iterators_at_exit()
        signature = keras.tree.map_structure(
            lambda array: tf.TensorSpec(self._varying_shape(array), array.dtype),
            self._first_batch(),
        )
        return tf.data.Dataset.from_generator(self.__iter__, output_signature=signature)

    def _first_batch(self) -> tuple:
        return next(iter(self))

    def _varying_shape(self, array: np.ndarray) -> tuple:
        """Returns the shape of an array of a batch, None where batches differ."""
        return (None, *array.shape[1:])

    @contextlib.contextmanager
    def _keeping_error(self):
        try:
            yield
        except (ValueError, OSError) as error:
            self.error = error
            raise


class ResumableBatches(PythonBatches):
    """Batches numbered through all passes, for `fit`, `evaluate`, `predict` or a loop.

    Batch `n` is batch `n % len()` of pass `n // len()` and depends on nothing else. An iteration
    starts at the current position, usually the beginning of a pass, and yields the batches of one
    pass (with `repeat`, it never ends). The position moves only at the end of an iteration. Hence
    an iteration that stops early (Keras reads a first batch before training) starts again at the
    same batch.

    To resume within a pass, a callback must count batches, as only a callback knows which were
    trained on rather than prefetched. `kgpt.callbacks.ResumableCheckpoint` does so. In a loop of
    your own, `state = {**train.get_state(), "next_batch": n}` is the position of batch `n`, and
    `train.set_state(state)` goes there.

    The position belongs to training. `evaluate`, `predict` and `validation_data` of kgpt's models
    read `from_beginning()`, which neither depends on the position nor moves it, so the same object
    may serve them and `fit`. With any other Keras model, pass them `batches.from_beginning()`.

    A subclass defines:
        __len__(): the number of batches in a pass.
        _read_from(batch_number): an endless iterator over the batches from that number.
        _what_batches_depend_on(): JSON-serializable dict of everything that determines them.
        _content(): dict of the arrays that they are cut from, None where there is none.
        _varying_shape(array): the shape of an array of a batch, None where batches differ.
        longest_sequence: int. Maximum number of tokens in a row.
        tokens_per_batch: int, or None where batches differ or have padding.
        has_next_tokens: bool. Whether targets are next tokens, for a language model; False for
            labels and for inputs alone.
        check_vocabulary(vocabulary_size): raises ValueError for ids outside the vocabulary, now or
            when the batch is read that has them.
    """

    # A Keras data adapter rather than a `PyDataset`, because each iterator must know its own
    # position: a PyDataset sees only indices, which TensorFlow prefetches in a thread, and can't
    # distinguish a finished pass from a read of the first batches.

    tokens_per_batch: int | None = None

    def __init__(self, repeat: bool = False):
        self._repeat = repeat
        self._next_batch = 0
        self._left_out = 0  # of the pass that starts there, by a run that is resumed
        self._is_view = False
        self._updates = None
        self._epoch_start, self._batches_read = None, 0

    def __iter__(self) -> Iterator[tuple]:
        start, end = self._next_batch + self._left_out, self._next_batch + len(self)
        batches = self._batches_from(start)
        try:
            for next_batch, batch in enumerate(batches, start + 1):
                self._batches_read += 1
                ends = next_batch == end and not self._repeat
                if ends and not self._is_view:
                    self._next_batch, self._left_out = end, 0
                yield batch
                if ends:
                    return
        finally:
            batches.close()

    def _batches_from(self, start):
        if self._updates is None:
            yield from self._read_from(start)
            return
        # Those of the update that came before `start` are counted too.
        done = self._updates.batches_done
        read_again = min(done, start)
        batches = self._read_from(start - read_again)
        first = self._updates.batches_per_update - done + read_again
        try:
            yield from self._updates.with_shares(batches, first, skip=read_again)
        finally:
            batches.close()

    @contextlib.contextmanager
    def by_update(self, updates):
        """Inside, batches carry their shares of the optimizer's updates, a `kgpt.data.updates`."""
        self._updates = updates
        try:
            yield
        finally:
            self._updates = None

    @checked
    def from_beginning(self, steps: int | None = None) -> "ResumableBatches":
        """Returns a view of the batches, each iteration of which starts at the first batch.

        No iteration of the view moves a position: the view is for evaluation and prediction between
        steps of training on the same batches.

        Args:
            steps: optional int. The number of batches that will be read. If None, the view ends
                after one pass, with `repeat` too.

        Returns:
            batches of the same type.

        Raises:
            ValueError: if `steps` is not a positive integer.

        Example:
            keras_model.fit(train, validation_data=train.from_beginning(), epochs=3)
        """
        view = object.__new__(type(self))  # `copy` would open a token file again
        view.__dict__.update(self.__dict__)
        view._repeat = self._repeat and steps is not None
        view._next_batch, view._left_out, view._is_view, view._updates = 0, 0, True, None
        view._epoch_start, view._batches_read = None, 0
        return view

    def original_order(self, rows: np.ndarray) -> np.ndarray:
        """Returns rows predicted from `from_beginning()` in the order of the data."""
        return rows

    def get_state(self) -> dict:
        """Returns the position where the next iteration starts, as a JSON-serializable dict.

        Returns:
            dict with `"next_batch"`, the number of the batch counted through all passes, and what
            the batches depend on: `"batch_size"`, `"seed"` and the like.
        """
        return {"next_batch": self._next_batch, **self._what_batches_depend_on()}

    def set_state(self, state: dict):
        """Sets the position where the next iteration starts.

        Args:
            state: dict from `get_state`, possibly with another `"next_batch"`.

        Raises:
            ValueError: if the state was taken from other data.
        """
        own = self.get_state()
        given = state if isinstance(state, dict) else {}
        differing = {key for key, value in given.items() if key not in own or own[key] != value}
        next_batch = given.get("next_batch")
        if differing - {"next_batch"} or not is_int(next_batch) or next_batch < 0:
            raise ValueError(
                "The state must come from the same data. "
                f"Received: state={state}, for data with {own}."
            )
        self._next_batch, self._epoch_start, self._left_out = int(next_batch), None, 0

    def resume(self, state: dict, batches_read: int):
        """Sets a position, and that a part of the pass that starts there has been trained on.

        The next iterations leave that part out, until one of them ends with the pass: the epochs
        keep their borders. With `repeat`, where iterations don't end, until `set_state`.

        Args:
            state: dict from `get_state`, at the beginning of the iteration.
            batches_read: int. The number of its batches that are left out.

        Raises:
            ValueError: if the state was taken from other data.
        """
        self.set_state(state)
        if batches_read >= len(self) and not self._repeat:
            self._next_batch += len(self)
        else:
            self._left_out = batches_read

    # === Keras's data adapter ===

    def _first_batch(self):  # an iteration would count it
        batches = self._batches_from(self._next_batch)
        example = next(batches)
        batches.close()
        return example

    def on_epoch_begin(self):
        if self._updates is not None:
            self._updates.begin_epoch()
        self._epoch_start, self._batches_read = self._next_batch, 0

    def on_epoch_end(self):
        self._epoch_start = None

    @property
    def num_batches(self) -> int | None:
        if self._repeat:
            return None
        # Keras asks again after it has read a first batch (JAX prefetches one more). If that was
        # the last one of an iteration, the position has moved: reset it.
        if self._epoch_start is not None and self._batches_read <= 2:
            self._next_batch = self._epoch_start
        return len(self)


@functools.cache
def _end_iterators_at_exit():
    """Ends what is left of TensorFlow's iterators before Python ends.

    An iterator tells Python when it ends. One that is left over (of an interrupted fit, say) ends
    after Python has, and TensorFlow prints an error.
    """
    import tensorflow as tf

    def end_iterators():
        for thing in gc.get_objects():
            if issubclass(type(thing), tf.data.Iterator):
                vars(thing).clear()

    atexit.register(end_iterators)
