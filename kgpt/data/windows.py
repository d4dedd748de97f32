"""Token file -> shuffled, resumable training windows."""

import os
from collections.abc import Iterator, Sequence

import numpy as np

from kgpt.arguments import checked, is_int
from kgpt.console import quiet_imports
from kgpt.data.batches import ResumableBatches
from kgpt.data.token_files import TokenFiles, token_paths
from kgpt.distribution import data_shard

_READ_THREADS = 4  # overlap the page faults of a file that is not in memory
_BATCHES_AHEAD = 8
_READ_WHOLE = 2**28  # tokens whose ids are checked before training, in a second or two


@checked(path=token_paths)
def windows(
    path: str | os.PathLike | Sequence[str | os.PathLike],
    sequence_length: int,
    batch_size: int,
    seed: int | None = None,
    *,
    random_offset: bool = False,
    segment_ids: bool = False,
    end_of_text_id: int | None = None,
    vocabulary_size: int | None = None,
    drop_remainder: bool | None = None,
    repeat: bool = False,
    shard_index: int | None = None,
    shard_count: int | None = None,
) -> "TokenWindows":
    """Cuts token files into training windows, for `fit`, `evaluate`, `predict` or a loop.

    Window `i` has the tokens `[i * length, i * length + length]`: the inputs are all but the last,
    the targets all but the first, so every token except the first is a target once in each pass
    (the last `(num_tokens - 1) % length` tokens of the file do not fill a window). The file is
    read part by part and may be larger than memory. It may be replaced while it is read, but not
    written to.

    Many files are one corpus: windows are shuffled over all of them, none spans two, and a file
    shorter than a window gives none. Files are opened when they are read, at most 128 at a time;
    where there are more, none may be replaced meanwhile.

    Args:
        path: a 1-D integer `.npy` file, as written by `write_tokens`; or nanoGPT's `train.bin`:
            a file `.bin` is read as uint16 and nothing else. Or a folder, whose files `.npy` and
            `.bin` are read, without those of its folders; or a list of files. They come in the
            order of their sorted paths.
        sequence_length: int. Tokens in a window.
        batch_size: int. Windows in a batch (of each process, if there are several).
        seed: optional int. With a seed, each pass visits all windows in another random order,
            the same in every run; without one, in the order of the file, for validation.
        random_offset: bool. Whether each pass starts at another of the first `sequence_length`
            tokens, so that windows are cut at different places. Requires a seed.
        segment_ids: bool. Whether to number the documents in a window, so that attention stays
            inside a document. The end-of-text token belongs to the document that it ends; its
            target would be the next document's first token and gets `sample_weight` 0.
        end_of_text_id: int. Required with `segment_ids`, and for nothing else.
        vocabulary_size: optional int. If given, ids outside it are refused; `fit`, `evaluate` and
            `predict` of kgpt's models check for theirs. At most 268 million tokens are read for
            that before the first batch; of more, the ids of each batch are checked. Negative ids
            and those that int32 has no room for are always refused, where they are read.
        drop_remainder: optional bool. Whether to drop a last batch of fewer windows. By default
            True with a seed (fixed shapes in training) and False without (every window is read).
        repeat: bool. Whether passes follow each other without end, for `fit` with
            `steps_per_epoch`. Without it, an epoch of Keras is a pass.
        shard_index: optional int. Which shard of the windows this process reads. By default that
            of the current `keras.distribution`, in which processes that divide a model read the
            same; without one, JAX's process index on the JAX backend, otherwise 0.
        shard_count: optional int. Number of shards, which have equal numbers of batches. The state
            of the batches has no shard in it: another number of processes may go on from it, whose
            batches have together as many windows.

    Returns:
        `TokenWindows`. Each batch is `(x, y)`, or `(x, y, sample_weight)` with `segment_ids`:
        `x["token_ids"]`, `x["segment_ids"]` and `y` are int32 `(batch, sequence_length)` and
        `sample_weight` is float32 of the same shape.

    Raises:
        FileNotFoundError: if there is no such file, or none in the folder.
        ValueError: if the file is not a 1-D integer array, is shorter than one window or batch
            or has ids outside the vocabulary, for arguments out of range, and for a folder that
            holds files held out (`train.validation.npy`, `val.bin`) among others.
        OSError: one line that names the file, if the system can't read it, now or in training.

    Example:
        train = kgpt.data.windows("corpus/train.npy", sequence_length=256, batch_size=32, seed=0)
    """
    if random_offset and seed is None:
        raise ValueError("random_offset needs a seed. Received: seed=None. Try seed=0.")
    if segment_ids and end_of_text_id is None:
        raise ValueError(
            "segment_ids=True needs an end_of_text_id. Received: end_of_text_id=None. "
            "Try end_of_text_id=tokenizer.end_of_text_id."
        )
    if end_of_text_id is not None and not segment_ids:
        raise ValueError(
            "end_of_text_id tells documents apart for segment_ids=True. "
            f"Received: end_of_text_id={end_of_text_id}, segment_ids=False."
        )
    shard_index, shard_count = _shard(shard_index, shard_count)
    data = TokenWindows(
        path=path,
        sequence_length=sequence_length,
        batch_size=batch_size,
        seed=seed,
        random_offset=random_offset,
        end_of_text_id=end_of_text_id,
        drop_remainder=seed is not None if drop_remainder is None else drop_remainder,
        repeat=repeat,
        shard_index=shard_index,
        shard_count=shard_count,
    )
    if vocabulary_size is not None:
        data.check_vocabulary(vocabulary_size)
    return data


class TokenWindows(ResumableBatches):
    """The batches of `windows`; `len()` is the number of batches in a pass, and an iteration."""

    has_next_tokens = True

    def __init__(self, **config):
        super().__init__(repeat=config["repeat"])
        self.config = config
        self._checked_sizes, self._vocabulary_size = set(), None
        length, batch_size = config["sequence_length"], config["batch_size"]
        spare = length - 1 if config["random_offset"] else 0
        self._tokens = TokenFiles(config["path"], length, spare)
        shard_windows = self._tokens.num_windows // config["shard_count"]
        remainder = 0 if config["drop_remainder"] else batch_size - 1
        self._num_batches = (shard_windows + remainder) // batch_size
        if not self._num_batches:
            raise ValueError(
                "The token file is shorter than one batch. Received: "
                f"{self._tokens.num_tokens} tokens in {self._path}, which give {shard_windows} "
                f"windows for each of {config['shard_count']} processes; sequence_length={length}, "
                f"batch_size={batch_size}. Try a smaller batch_size or sequence_length."
            )

    def __len__(self) -> int:
        return self._num_batches

    def _read_from(self, batch_number: int) -> Iterator[tuple]:
        config = self.config
        order = self.order()
        spare = len(order) % config["shard_count"]
        batches = order[: len(order) - spare].batch(
            config["batch_size"] * config["shard_count"],
            drop_remainder=config["drop_remainder"],
            batch_fn=np.asarray,
        )
        return read_ahead(batches.repeat().map_with_index(self._read), batch_number)

    def _what_batches_depend_on(self) -> dict:
        of_process = ("path", "shard_index", "shard_count")
        config = {key: value for key, value in self.config.items() if key not in of_process}
        config["batch_size"] *= self.config["shard_count"]  # of all processes together
        files = {"num_files": len(self.config["path"]), "num_tokens": self._tokens.num_tokens}
        return {**files, **config}

    def set_state(self, state: dict):
        given = state if isinstance(state, dict) else {}
        if is_int(given.get("shard_count")) and is_int(given.get("batch_size")):
            # Of an earlier version, in which it was a process's own.
            state = {**given, "batch_size": given["batch_size"] * given["shard_count"]}
            state = {k: v for k, v in state.items() if k not in ("shard_index", "shard_count")}
        super().set_state(state)

    def _content(self) -> dict:
        return self._tokens.content()

    def _varying_shape(self, array: np.ndarray) -> tuple:
        batch_size = self.config["batch_size"] if self.config["drop_remainder"] else None
        return (batch_size, *array.shape[1:])

    @property
    def num_windows(self) -> int:
        """Number of windows in the files."""
        return self._tokens.num_windows

    @property
    def has_segment_ids(self) -> bool:
        """Whether documents are numbered."""
        return self.config["end_of_text_id"] is not None

    @property
    def longest_sequence(self) -> int:
        """Maximum number of tokens in a row."""
        return self.config["sequence_length"]

    @property
    def tokens_per_batch(self) -> int:
        """Number of tokens in a batch."""
        return self.config["batch_size"] * self.config["sequence_length"]

    def check_vocabulary(self, vocabulary_size: int):
        """Raises ValueError for a token id outside the vocabulary.

        At most 268 million tokens are read, once for each vocabulary size. From then on the ids of
        each batch are checked when it is read.
        """
        self.error, self._vocabulary_size = None, vocabulary_size
        is_small = self._tokens.num_tokens <= _READ_WHOLE
        if is_small and vocabulary_size not in self._checked_sizes:
            self._tokens.check_ids(vocabulary_size)
            self._checked_sizes.add(vocabulary_size)

    def order(self):
        """Returns the numbers of a pass's windows in their order, a grain dataset of int.

        Repeated, each pass of it has another order.
        """
        order = import_grain().MapDataset.range(self.num_windows)
        if self.config["seed"] is not None:
            # grain adds the pass to the seed: seeds are hashed, so that 0 and 1 share no orders
            spread = np.random.SeedSequence(self.config["seed"]).generate_state(1)
            order = order.shuffle(seed=int(spread[0]))
        return order

    def _read(self, batch_number: int, window_numbers: np.ndarray) -> tuple:
        # Neighbours in the batch, whose rows are then in the same order however many processes are.
        count = len(window_numbers) // self.config["shard_count"]
        first = self.config["shard_index"] * count
        with self._keeping_error():
            return self.cut(
                window_numbers[first : first + count],
                batch_number // len(self),
                self._vocabulary_size,
            )

    def cut(
        self, window_numbers: np.ndarray, number_of_pass: int, vocabulary_size: int | None
    ) -> tuple:
        """Returns the windows as a batch.

        Args:
            window_numbers: int array `(batch,)`.
            number_of_pass: int. The pass that they are read in, which moves them.
            vocabulary_size: optional int. Its ids are allowed; None for all.

        Raises:
            ValueError: for ids outside the vocabulary, and for a file that has changed.
        """
        offset = self._offset(number_of_pass)
        tokens = self._tokens.windows(window_numbers, offset, vocabulary_size)
        inputs, targets = tokens[:, :-1], tokens[:, 1:]  # each (batch, length)
        if not self.has_segment_ids:
            return {"token_ids": inputs}, targets
        ends = inputs == self.config["end_of_text_id"]
        segment_ids = np.cumsum(ends, axis=1, dtype="int32") - ends
        weights = 1 - ends.astype("float32")
        return {"token_ids": inputs, "segment_ids": segment_ids}, targets, weights

    def _offset(self, number_of_pass: int) -> int:
        if not self.config["random_offset"]:
            return 0
        generator = np.random.default_rng((self.config["seed"], number_of_pass))
        return int(generator.integers(self.config["sequence_length"]))

    def __repr__(self) -> str:
        config = {**self.config, "path": self._path}
        arguments = ", ".join(f"{key}={value!r}" for key, value in config.items())
        return f"TokenWindows({arguments})"

    @property
    def _path(self) -> str:
        """What a message shows of the paths."""
        paths = self.config["path"]
        return f"{paths[0]}" + (f" and {len(paths) - 1} more files" if len(paths) > 1 else "")


def _shard(shard_index: int | None, shard_count: int | None) -> tuple[int, int]:
    """Returns the shard that this process reads, and the number of shards."""
    if (shard_index is None) != (shard_count is None):
        raise ValueError(
            "shard_index and shard_count must be given together. "
            f"Received: shard_index={shard_index}, shard_count={shard_count}."
        )
    if shard_count is None:
        shard_index, shard_count = data_shard()
    if shard_index >= shard_count:
        raise ValueError(
            "shard_index must be less than shard_count. "
            f"Received: shard_index={shard_index}, shard_count={shard_count}."
        )
    return shard_index, shard_count


def read_ahead(batches, batch_number: int) -> Iterator[tuple]:
    """Returns an iterator over a grain dataset of batches from a number on; threads read ahead."""
    options = import_grain().ReadOptions(_READ_THREADS, _BATCHES_AHEAD)
    iterator = iter(batches.to_iter_dataset(options))
    iterator.set_state({"next_index": batch_number})
    return iterator


def import_grain():
    """Returns grain, which is imported when it is first used."""
    with quiet_imports():
        import grain
    return grain
