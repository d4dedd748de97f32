"""What `fit`, `evaluate` and `predict` make of their data: checked arrays, or checked batches."""

import contextlib

import numpy as np

from kgpt.data.batches import ResumableBatches
from kgpt.data.columns import without_tensors
from kgpt.data.filling import filled
from kgpt.data.sources import CheckedSource, kind_of, refuse_beside_batches, without_uint64
from kgpt.data.task_batches import TaskBatches
from kgpt.data.text_sources import is_text, unpack
from kgpt.data.updates import Updates, by_update
from kgpt.models.checks import as_arrays, check_rows, check_something_counts
from kgpt.models.default_optimizer import unscaled
from kgpt.models.text_inputs import batches_of


def validation_source(task, data, batch_size, validation_steps, validation_batch_size):
    """Returns `validation_data` as the source that is read from its beginning in each epoch."""
    x, y, sample_weight = unpack(data)
    given = {"y": y, "sample_weight": sample_weight}
    refuse_beside_batches(x, **given, validation_batch_size=validation_batch_size)
    size = validation_batch_size or batch_size
    x, y, sample_weight = with_arrays(x, y, sample_weight)
    x, y, sample_weight = without_texts(task, x, y, sample_weight, size)
    source = source_of(task, from_beginning(x, validation_steps), y, sample_weight)
    source.data = filled(*source.data, size, validation_steps)
    return source


def with_arrays(x, y=None, sample_weight=None):
    """Returns lists of numbers as arrays; texts and their labels, and batches, as they are."""
    if is_text(x):
        return x, without_tensors(y), sample_weight
    if kind_of(x) is not None:
        return x, y, sample_weight
    columns = tuple(map(as_arrays, ("x", "y", "sample_weight"), (x, y, sample_weight)))
    columns = without_uint64(columns)
    check_rows(*columns)
    return columns


def without_texts(task, x, y, sample_weight, batch_size, seed=None, learns=False):
    """Returns data of texts as batches of token ids, and other data as they are."""
    if learns:
        task.look_at(x, y)
        task.learn_from(x, y)
    if not is_text(x):
        return x, y, sample_weight
    return batches_of(task, x, y, sample_weight, batch_size, seed), None, None


def source_of(task, x, y, sample_weight, shuffle=False):
    """Returns the data as a source whose batches are checked; ValueError for wrong ones."""
    task.check_data(x, y, sample_weight)
    if kind_of(x) is None:
        check_something_counts(x, sample_weight)
        task.check_set(x, y)
        if y is None and sample_weight is not None:
            y = task.known_targets(x)
    vocabulary_size = task.backbone.vocabulary_size
    return CheckedSource(x, y, sample_weight, task.check_data, vocabulary_size, shuffle)


def from_beginning(data, steps):
    """Returns data for evaluation: what is read from it moves no position."""
    return data.from_beginning(steps) if isinstance(data, ResumableBatches) else data


@contextlib.contextmanager
def in_updates(task, data, *batching):
    """Gives the data of a fit as Keras takes them, by updates and by devices."""
    with by_update(data, _updates(task), *batching) as data:
        yield filled(*data, *batching)


def _updates(task):
    """Returns how batches are grouped into updates; None if each of them is one."""
    optimizer = unscaled(task.optimizer)
    # `iterations` counts updates; batches are counted by its private form alone.
    size = getattr(optimizer, "gradient_accumulation_steps", None) or 1
    if size == 1 or not task._uses_own_loss:
        return None
    return Updates(size, lambda: int(optimizer._iterations) % size, task.count)


def check_one_length(x):
    """Raises ValueError for batches whose outputs, of each position, fit in no one array."""
    if isinstance(x, TaskBatches) and x.has_next_tokens and not x.has_one_length:
        raise ValueError(
            "predict returns the logits of all positions, in rows of one length. Received: "
            f"batches of several lengths, {x!r:.80}. Try lm.score(texts) or lm.embed(texts), or "
            "predict_on_batch for each of the batches."
        )


def tokens_per_step(x, batch_size):
    """Returns how many tokens each step trains on; None where steps differ or have padding."""
    if isinstance(x, ResumableBatches):
        return x.tokens_per_batch
    if isinstance(x, dict) and set(x) <= {"token_ids", "segment_ids"}:
        x = x.get("token_ids")
    if not isinstance(x, np.ndarray) or x.ndim != 2:
        return None
    return min(len(x), batch_size or 32) * x.shape[1]  # 32 is Keras's
