"""Numbered batches that Keras can train on, and that a killed run can go on from."""

from collections.abc import Iterator

import keras
import numpy as np
from keras.src.trainers.data_adapters import data_adapter_utils
from keras.src.trainers.data_adapters.data_adapter import DataAdapter


class ResumableBatches(DataAdapter):
    """Batches numbered through all passes, for `fit`, `evaluate`, `predict` or a loop.

    Batch `n` is batch `n % len()` of pass `n // len()` and depends on nothing else. An iteration
    starts at the position, in general the beginning of a pass, and gives as many batches as a pass
    has (with `repeat`, it never ends). Only then does the position move, so an iteration that stops
    half-way (Keras looks at a first batch before training) starts again at the same place.

    To resume in the middle of a pass, a callback counts batches, as it alone knows what was
    trained on and not just read ahead; `kgpt.callbacks.ResumableCheckpoint` does so::

        def on_train_begin(self, logs=None):
            self.state = train.get_state()

        def on_train_batch_end(self, batch, logs=None):
            self.state["next_batch"] += self.model.steps_per_execution

    and a fresh process calls `train.set_state(state)` before `fit`, or in a callback's
    `on_train_begin`.

    A subclass defines:
        __len__(): batches in a pass.
        _read_from(batch_number): an iterator over all batches from there on, without end.
        _what_batches_depend_on(): JSON-able dict of all that decides what the batches are.
        _varying_shape(array): the shape of an array of a batch, None where batches differ.
        longest_sequence: int. Most tokens in a row.
        check_vocabulary(vocabulary_size): raises ValueError for ids that are not below it.
    """

    # A Keras data adapter, and not a `PyDataset`, because each iterator must know its own place:
    # a PyDataset sees only indices, which TensorFlow requests ahead in a thread, so it cannot
    # tell a finished pass from a look at the first batches.

    def __init__(self, repeat: bool = False):
        self._repeat = repeat
        self._next_batch = 0
        self._epoch_start, self._batches_read = None, 0

    def __iter__(self) -> Iterator[tuple]:
        start = self._next_batch
        end = start + len(self)
        batches = self._read_from(start)
        try:
            for next_batch, batch in enumerate(batches, start + 1):
                self._batches_read += 1
                ends = next_batch == end and not self._repeat
                if ends:
                    self._next_batch = end
                yield batch
                if ends:
                    return
        finally:
            batches.close()

    def get_state(self) -> dict:
        """Tell where the next iteration starts, as a JSON-able dict.

        Returns:
            dict with `"next_batch"`, the number of the batch (see above), and what the numbers
            depend on: `"batch_size"`, `"seed"` and the like.
        """
        return {"next_batch": self._next_batch, **self._what_batches_depend_on()}

    def set_state(self, state: dict):
        """Let the next iteration start where `state` says.

        Args:
            state: dict from `get_state`, perhaps with another `"next_batch"`.

        Raises:
            ValueError: if the state belongs to other data.
        """
        own = self.get_state()
        differing = {key: value for key, value in state.items() if own.get(key, value) != value}
        differing.pop("next_batch", None)
        if differing or state.get("next_batch", -1) < 0:
            raise ValueError(
                "The state must come from the same data. "
                f"Received: state={state}, for data with {own}."
            )
        self._next_batch, self._epoch_start = int(state["next_batch"]), None

    # What Keras asks of a data adapter.

    def get_numpy_iterator(self):
        return iter(self)

    def get_jax_iterator(self):
        return iter(self)

    def get_torch_dataloader(self):
        return data_adapter_utils.get_torch_dataloader(self)

    def get_tf_dataset(self):
        import tensorflow as tf

        batches = self._read_from(self._next_batch)
        example = next(batches)
        batches.close()
        signature = keras.tree.map_structure(
            lambda array: tf.TensorSpec(self._varying_shape(array), array.dtype), example
        )
        return tf.data.Dataset.from_generator(self.__iter__, output_signature=signature)

    def on_epoch_begin(self):
        self._epoch_start, self._batches_read = self._next_batch, 0

    def on_epoch_end(self):
        self._epoch_start = None

    @property
    def num_batches(self) -> int | None:
        if self._repeat:
            return None
        # Keras asks again after its look at a first batch (JAX reads one more ahead). If that was
        # the last one of an iteration, it moved the position: move it back.
        if self._epoch_start is not None and self._batches_read <= 2:
            self._next_batch = self._epoch_start
        return len(self)


def check_batching(seed: int | None = None, **sizes: int):
    """Raises ValueError unless the sizes are positive ints and the seed is one from 0."""
    for name, value in sizes.items():
        if not isinstance(value, (int, np.integer)) or isinstance(value, bool) or value < 1:
            raise ValueError(f"{name} must be a positive integer. Received: {name}={value!r}.")
    if seed is not None and (not isinstance(seed, (int, np.integer)) or seed < 0):
        raise ValueError(f"seed must be a non-negative integer. Received: seed={seed!r}.")
