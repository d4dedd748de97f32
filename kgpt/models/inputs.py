"""What models take as inputs, brought into one form."""

from keras import ops


def complete_inputs(inputs):
    """Returns the inputs of a backbone as the full dict; what is left out is None.

    Args:
        inputs: token ids, or a dict with at least `"token_ids"`.

    Raises:
        ValueError: if `token_ids` is missing or a name is unknown.
    """
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
    return {name: inputs.get(name) for name in names}


def standardize_sequences(inputs, num_sequences=None):
    """Returns inputs as a dict of tensors `(batch, sequences, length)`.

    Args:
        inputs: token ids, or a dict with `"token_ids"` and optionally `"padding_mask"`, of shape
            `(batch, sequences, length)` or `(batch, length)`.
        num_sequences: int. Number of sequences in an example; None for any number.

    Raises:
        ValueError: for unknown names, another rank and another number of sequences.
    """
    inputs = inputs if isinstance(inputs, dict) else {"token_ids": inputs}
    if "token_ids" not in inputs or set(inputs) - {"token_ids", "padding_mask"}:
        raise ValueError(
            'Inputs are token ids, or a dict with "token_ids" and, optionally, "padding_mask". '
            f"Received: a dict with {sorted(inputs)}."
        )
    token_ids = ops.cast(inputs["token_ids"], "int32")
    mask = inputs.get("padding_mask")
    mask = ops.ones_like(token_ids, dtype="bool") if mask is None else ops.cast(mask, "bool")
    if len(token_ids.shape) == 2:
        token_ids = ops.expand_dims(token_ids, 1)
    if len(mask.shape) == 2:
        mask = ops.expand_dims(mask, 1)
    shape = tuple(token_ids.shape)
    wrong_number = len(shape) == 3 and None not in (num_sequences, shape[1])
    if len(shape) != 3 or (wrong_number and shape[1] != num_sequences):
        expected = "sequences" if num_sequences is None else num_sequences
        raise ValueError(
            f"Token ids must have shape (batch, {expected}, length)"
            f"{' or (batch, length)' if num_sequences in (None, 1) else ''}. "
            f"Received: shape {shape}."
        )
    return {"token_ids": token_ids, "padding_mask": mask}


def merge_sequences(inputs):
    """Returns inputs as the backbone takes them, `(batch * sequences, length)`."""
    return {
        name: ops.reshape(x, (-1, x.shape[-1] or ops.shape(x)[-1])) for name, x in inputs.items()
    }
