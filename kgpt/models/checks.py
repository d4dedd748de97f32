"""Checks of data and of what models are compiled with, before anything runs."""

import os
from numbers import Real

import keras
import numpy as np
from keras import ops

from kgpt.arguments import RULES, check_is_int, refuse
from kgpt.console import warn
from kgpt.distribution import current
from kgpt.kernels.platform import num_torch_processes
from kgpt.text import check_no_table

# Keras's losses that take logits only with from_logits=True.
_OF_PROBABILITIES = (
    keras.losses.SparseCategoricalCrossentropy,
    keras.losses.CategoricalCrossentropy,
    keras.losses.CategoricalFocalCrossentropy,
    keras.losses.BinaryCrossentropy,
    keras.losses.BinaryFocalCrossentropy,
)
# Keras's metrics that take logits only with another value of an argument than the default.
_METRICS_OF_PROBABILITIES = {
    keras.metrics.SparseCategoricalCrossentropy: "from_logits=True",
    keras.metrics.CategoricalCrossentropy: "from_logits=True",
    keras.metrics.BinaryCrossentropy: "from_logits=True",
    keras.metrics.AUC: "from_logits=True",
    keras.metrics.BinaryAccuracy: "threshold=0.0",
    keras.metrics.Precision: "thresholds=0.0",
    keras.metrics.Recall: "thresholds=0.0",
}


def checked_for_texts(name, value, backbone):
    """Returns what a task reads texts by: its `tokenizer`, `sequence_length` or `truncate`.

    Raises:
        ValueError: for a tokenizer with more tokens than the body, and for a length beyond it.
        TypeError: for what is no tokenizer.
    """
    if value is not None or name == "truncate":
        value = RULES[name](name, value)
    if name == "sequence_length":
        backbone.embedding.check_length(value)
    if name == "tokenizer" and getattr(value, "vocabulary_size", 0) > backbone.vocabulary_size:
        raise ValueError(
            "The backbone must have an embedding for each token of the tokenizer. Received: a "
            f"tokenizer with vocabulary_size={value.vocabulary_size} and a backbone with "
            f"vocabulary_size={backbone.vocabulary_size}. Make the backbone with "
            f"vocabulary_size={value.vocabulary_size}, or, to keep what it has learned, "
            f"backbone = backbone.with_vocabulary_size({value.vocabulary_size})."
        )
    return value


def states_and_outputs_of(task, returned):
    """Returns the hidden states and the outputs that a task's `call` returned in a step.

    A `call` of a subclass may return outputs alone, from which the loss is computed then.

    Raises:
        ValueError: for what is neither, such as the pair that `super().call` gives, times two.
    """
    if not isinstance(returned, list | tuple):
        return None, returned
    if len(returned) == 2:
        return returned
    raise ValueError(
        f"In a step with its own loss, super().call(...) of a {type(task).__name__} returns a "
        f"pair, the hidden states and None or the outputs. Received: {len(returned)} values from "
        "call. Compute the outputs from self.backbone(inputs), or compile(loss=...) one of Keras."
    )


def check_devices():
    """Refuses a distribution that the backend ignores; warns of processes that train apart.

    Raises:
        ValueError: for a `keras.distribution` on a backend that has none.
    """
    if keras.distribution.distribution() is not current():
        raise ValueError(
            "keras.distribution has no effect on this backend of Keras. Received: "
            f"{keras.distribution.distribution()!r:.80}. Try KERAS_BACKEND=jax."
        )
    count = num_torch_processes()
    if count > 1:
        warn(
            f"{count} processes of PyTorch call fit, and each of them trains a model of its own: "
            "Keras exchanges no gradients between them. Try a loop with "
            "torch.nn.parallel.DistributedDataParallel around model.compute_loss, or the JAX "
            "backend with kgpt.distribution.",
        )


def as_array(x) -> np.ndarray | None:
    """Returns an array, a tensor or a column as a numpy array; None for anything else."""
    if isinstance(x, np.ndarray):
        return x
    if ops.is_tensor(x):
        return ops.convert_to_numpy(x)
    return np.asarray(x) if hasattr(x, "__array__") else None


def check_ids(name: str, ids, vocabulary_size: int, ignored=()):
    """Raises ValueError for an array of token ids that the vocabulary does not have.

    Args:
        name: str. What the ids are called.
        ids: array or tensor; anything else passes.
        vocabulary_size: int.
        ignored: ints that are allowed as well.
    """
    ids = as_array(ids)
    if ids is None:
        return
    if ids.size == 0:
        raise ValueError(
            f"{name} must have at least one row with a token. Received: shape {ids.shape}."
        )
    check_is_int(name, ids)
    least, most = ids.min(), ids.max()
    if least < 0 and len(ignored):
        real = ids[~np.isin(ids, ignored)]
        least, most = (real.min(), real.max()) if real.size else (0, 0)
    if least < 0 or most >= vocabulary_size:
        raise ValueError(
            f"Each id in {name} must lie in [0, {vocabulary_size}), the backbone's vocabulary. "
            f"Received: ids from {least} to {most}. Was the text encoded with the tokenizer that "
            "the backbone was made for?"
        )


def check_something_counts(x, sample_weight=None):
    """Raises ValueError if a mask or the weights leave nothing of the data to count."""
    mask = x.get("padding_mask") if isinstance(x, dict) else None
    for name, values in (("padding_mask", mask), ("sample_weight", sample_weight)):
        values = as_array(values)
        if values is not None and values.size and not values.any():
            raise ValueError(
                f"{name} must leave something to count. Received: a {name} that is 0 everywhere. "
                "In a padding_mask, 1 or True marks real tokens."
            )
        _check_finite(name, values)


def check_one_array(name, value):
    """Raises ValueError for a dict of what a model with one output takes as an array."""
    if isinstance(value, dict):
        hint = "The model has one output, and Keras takes dicts for several."
        refuse(name, value, "one array", hint)


def check_weights(sample_weight):
    """Raises ValueError for a dict of weights, and for those that are negative or not finite."""
    check_one_array("sample_weight", sample_weight)
    weights = as_array(sample_weight)
    _check_finite("sample_weight", weights)
    if weights is not None and (weights < 0).any():
        raise ValueError(f"sample_weight must be at least 0. Received: {weights.min()} in it.")


def _check_finite(name, values):
    if values is not None and values.dtype.kind == "f" and not np.isfinite(values).all():
        raise ValueError(f"{name} must be finite numbers. Received: NaN or infinity in it.")


def check_compiled(optimizer, loss, loss_weights=None):
    """Raises ValueError for an optimizer or a loss that Keras does not know, and lone weights."""
    if not _is_known(optimizer, keras.optimizers.get):
        hint = 'compile() without one, or optimizer="default", takes the recipe for the model.'
        refuse("optimizer", optimizer, "a Keras optimizer, or the name of one", hint)
    if loss is not None and not _is_known(loss, keras.losses.get):
        hint = "compile() without one trains with the model's own."
        refuse("loss", loss, "a Keras loss, a function, or the name of one", hint)
    if loss is None and loss_weights is not None:
        raise ValueError(
            "loss_weights has no effect on the model's own loss. Received: "
            f"loss_weights={loss_weights!r:.60}, but no loss. The weight of its second part is "
            "lm_loss_weight, an argument of the heads."
        )


def _is_known(value, get) -> bool:
    try:
        return get(value) is not None
    except (TypeError, ValueError):
        return False


def check_rows(x, y, sample_weight):
    """Raises ValueError for data without rows, or with other numbers of them than `x` has."""
    if x is None or isinstance(x, Real):
        refuse("x", x, "token ids, a dict with them, texts or batches", "kgpt.data makes batches.")
    if isinstance(x, dict) and "token_ids" not in x:
        raise ValueError(f'x must have "token_ids". Received: a dict with {sorted(map(str, x))}.')
    expected = _num_rows(x.get("token_ids") if isinstance(x, dict) else x)
    for name, column in (("y", y), ("sample_weight", sample_weight)):
        if isinstance(column, Real):
            refuse(name, column, "an array or a list, with a row for each one of x")
        if None not in (expected, _num_rows(column)) and _num_rows(column) != expected:
            raise ValueError(
                f"{name} must have as many rows as x. "
                f"Received: {_num_rows(column)} in {name}, {expected} in x."
            )


def _num_rows(column) -> int | None:
    shape = getattr(column, "shape", None)
    return int(shape[0]) if isinstance(shape, tuple | list) and len(shape) else None


def refuse_ragged(name: str, value):
    """Raises ValueError for a ragged tensor, whose gaps Keras fills with the token 0."""
    if hasattr(value, "row_splits"):
        hint = f"Try {name}.to_tensor(), and a padding_mask that is True for the real tokens."
        refuse(name, value, "rows of one length", hint)


def as_arrays(name: str, value):
    """Returns lists of numbers, or of lists of them, as arrays, and in a dict too; else the value.

    Keras takes a list for several inputs or outputs. A DataFrame is an array of its rows, as there.

    Raises:
        ValueError: for lists of arrays, rows of different lengths, other tables, and files.
    """
    if isinstance(value, dict):
        return {key: as_arrays(key, part) for key, part in value.items()}
    if isinstance(value, os.PathLike):
        hint = "Of text files, kgpt.data.write_tokens and kgpt.data.windows make batches."
        refuse(name, value, "arrays, texts or batches", hint)
    if hasattr(value, "to_numpy") and len(getattr(value, "shape", ())) == 2:
        return value.to_numpy()
    refuse_ragged(name, value)
    check_no_table(name, value)
    if not isinstance(value, list):
        return value
    problem = "arrays"
    if not any(hasattr(row, "shape") and np.ndim(row) for row in value):
        try:
            array = np.asarray(value)
            problem = None if array.dtype.kind in "iufb" else f"dtype {array.dtype}"
        except ValueError:
            problem = "rows of different lengths"
    if problem is not None:
        refuse(
            name, value, f"an array, or a list of numbers or of equal rows, and not of {problem}"
        )
    return array


def warn_of_probabilities(loss, *metrics):
    """Warns of a loss and of metrics of Keras that would take the logits for probabilities."""
    if loss is not None:
        _warn_of_loss(loss)
    for given in filter(None, keras.tree.flatten(metrics)):
        _warn_of_metric(given)


def _warn_of_loss(loss):
    try:
        loss = keras.losses.get(loss)
    except (TypeError, ValueError):  # several losses, which Keras checks
        return
    names = {keras.src.utils.naming.to_snake_case(c.__name__): c for c in _OF_PROBABILITIES}
    name = getattr(loss, "__name__", None) or type(loss).__name__
    is_function = name in names
    is_object = isinstance(loss, _OF_PROBABILITIES) and not loss.get_config().get("from_logits")
    if is_function or is_object:
        class_name = names[name].__name__ if is_function else name
        warn(
            "The model's outputs are logits, which this loss takes for probabilities. "
            f"Try loss=keras.losses.{class_name}(from_logits=True), or compile() without a loss.",
        )


def _warn_of_metric(given):
    try:
        metric = keras.metrics.get(given)
    except (TypeError, ValueError):  # which Keras checks
        return
    kind = type(metric)
    for_logits = _METRICS_OF_PROBABILITIES.get(kind)
    name = for_logits and for_logits.partition("=")[0]
    if name and metric.get_config()[name] == kind().get_config()[name]:
        warn(
            "The model's outputs are logits, which this metric takes for probabilities. "
            f"Received: {given!r:.60}. Try keras.metrics.{kind.__name__}({for_logits}).",
        )
