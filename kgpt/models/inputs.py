"""What models take as inputs, brought into one form."""

import keras
import numpy as np
from keras import ops

from kgpt.data.text_sources import is_text
from kgpt.kernels.platform import check_shape_of, dynamic_shape, has_static_rank
from kgpt.models.checks import as_array, check_ids, refuse_ragged


def refuse_texts(inputs):
    """Raises ValueError for texts, and for ragged rows, where token ids are expected."""
    refuse_ragged("token_ids", inputs.get("token_ids") if isinstance(inputs, dict) else inputs)
    if not isinstance(inputs, dict) and is_text(inputs):
        raise ValueError(
            "Texts go into fit, evaluate and predict, as a list, an array, a column or a "
            "tf.data.Dataset; a model itself, and batches from other sources, take token ids. "
            f"Received: {inputs!r:.60}. Try the ids of tokenizer.encode_batch(texts)."
        )


def complete_inputs(inputs):
    """Returns the inputs of a backbone as the full dict; what is left out is None.

    Args:
        inputs: token ids, or a dict with at least `"token_ids"`.

    Raises:
        ValueError: for texts, if `token_ids` is missing or a name is unknown, and for other shapes.
    """
    refuse_texts(inputs)
    names = ("token_ids", "padding_mask", "segment_ids")
    is_dict = isinstance(inputs, dict)
    if not is_dict and not isinstance(inputs, (list, tuple)):
        inputs = {"token_ids": inputs}
    elif not is_dict or "token_ids" not in inputs or set(inputs) - set(names):
        received = f"a dict with {sorted(inputs)}" if is_dict else f"a {type(inputs).__name__}"
        raise ValueError(
            'Inputs are token ids, or a dict with "token_ids" and, optionally, "padding_mask" '
            f'and "segment_ids". Received: {received}.'
        )
    check_shapes(inputs, 2)
    check_whole(inputs)
    padding_mask = inputs.get("padding_mask")
    ids = {name: widened(inputs.get(name)) for name in ("token_ids", "segment_ids")}
    return {name: ids.get(name, padding_mask) for name in names}


def check_shapes(inputs, *ranks):
    """Raises ValueError for token ids of another rank, and for masks of another shape than theirs.

    Args:
        inputs: token ids, or a dict with them; anything else passes.
        *ranks: 2, and 3 where an example may be several sequences.
    """
    inputs = inputs if isinstance(inputs, dict) else {"token_ids": inputs}
    columns = {
        name: _with_sequence_axis(inputs[name], None) if 3 in ranks else inputs[name]
        for name in ("token_ids", "padding_mask", "segment_ids")
        if hasattr(inputs.get(name), "shape") and has_static_rank(inputs[name])
    }
    token_ids = columns.pop("token_ids", None)
    if token_ids is None:
        return
    if len(token_ids.shape) != max(ranks):
        raise ValueError(
            "Token ids must have shape (batch, length)"
            f"{' or (batch, sequences, length)' if 3 in ranks else ''}. "
            f"Received: shape {tuple(token_ids.shape)}."
        )
    check_shape_of("token_ids", token_ids, **columns)


def check_whole(inputs):
    """Raises ValueError for token ids such as 1.7, as far as values are known: not in compilation.

    Whole numbers pass in float dtypes, which an input of Keras has by default.
    """
    ids = inputs.get("token_ids") if isinstance(inputs, dict) else inputs
    if isinstance(ids, keras.KerasTensor) or "float" not in str(getattr(ids, "dtype", "")):
        return
    try:
        ids = as_array(ids)
    except (TypeError, NotImplementedError, RuntimeError):  # of backends, for what has no values
        return
    parts = ids[ids != np.floor(ids)]
    if parts.size:
        raise ValueError(
            "Token ids must be ints, as a tokenizer returns them. "
            f"Received: {parts.flat[0]} among them, of dtype {ids.dtype}."
        )


def check_known(inputs, vocabulary_size: int):
    """Raises ValueError for an array of ids that the vocabulary lacks, except for padding.

    Tensors pass: to look at their values would be to wait for the device.
    """
    columns = inputs if isinstance(inputs, dict) else {"token_ids": inputs}
    ids, mask = columns.get("token_ids"), columns.get("padding_mask")
    if not isinstance(ids, np.ndarray) or ids.dtype.kind not in "iu":
        return
    if isinstance(mask, np.ndarray) and mask.shape == ids.shape:
        ids = ids[mask.astype("bool")]
    if ids.size:
        check_ids("token_ids", ids, vocabulary_size)


def widened(ids):
    """Returns integers as int32 or int64; values and tensors of other dtypes as they are.

    Beside a narrower or unsigned dtype, an int of Python such as -100 is cut to that dtype.
    """
    dtype = getattr(ids, "dtype", None)
    dtype = dtype and keras.backend.standardize_dtype(dtype)
    if not dtype or "int" not in dtype or dtype in ("int32", "int64"):
        return ids
    if dtype in ("uint32", "uint64"):  # what int32 lacks is in no vocabulary
        ids = ops.minimum(ids, 2**31 - 1)
    return ops.cast(ids, "int32")


def standardize_sequences(inputs, num_sequences=None):
    """Returns inputs as a dict of tensors `(batch, sequences, length)`.

    Args:
        inputs: token ids, or a dict with `"token_ids"` and optionally `"padding_mask"`, of shape
            `(batch, sequences, length)` or `(batch, length)`.
        num_sequences: int. Number of sequences in an example; None for any number.

    Raises:
        ValueError: for texts, unknown names, another rank and another number of sequences.
    """
    refuse_texts(inputs)
    inputs = inputs if isinstance(inputs, dict) else {"token_ids": inputs}
    if "token_ids" not in inputs or set(inputs) - {"token_ids", "padding_mask"}:
        raise ValueError(
            'Inputs are token ids, or a dict with "token_ids" and, optionally, "padding_mask". '
            f"Received: a dict with {sorted(inputs)}."
        )
    check_whole(inputs)
    token_ids = ops.cast(inputs["token_ids"], "int32")
    mask = inputs.get("padding_mask")
    mask = ops.ones_like(token_ids, dtype="bool") if mask is None else ops.cast(mask, "bool")
    token_ids = _with_sequence_axis(token_ids, num_sequences)
    mask = _with_sequence_axis(mask, num_sequences)
    shape = tuple(token_ids.shape)
    wrong_number = len(shape) == 3 and None not in (num_sequences, shape[1])
    if len(shape) != 3 or (wrong_number and shape[1] != num_sequences):
        expected = "sequences" if num_sequences is None else num_sequences
        raise ValueError(
            f"Token ids must have shape (batch, {expected}, length)"
            f"{' or (batch, length)' if num_sequences in (None, 1) else ''}. "
            f"Received: shape {shape}."
        )
    check_shape_of("token_ids", token_ids, padding_mask=mask)
    return {"token_ids": token_ids, "padding_mask": mask}


def _with_sequence_axis(x, num_sequences):
    """Returns `(batch, length)` as `(batch, 1, length)`, and other shapes as they are."""
    if not has_static_rank(x):
        shape = dynamic_shape(x)
        return ops.reshape(x, (shape[0], num_sequences or -1, shape[-1]))
    return x[:, None] if len(x.shape) == 2 else x


def merge_sequences(inputs):
    """Returns inputs as the backbone takes them, `(batch * sequences, length)`."""
    return {
        name: ops.reshape(x, (-1, x.shape[-1] or ops.shape(x)[-1])) for name, x in inputs.items()
    }
