"""What the arguments of `fit`, `evaluate` and `predict` may be, and of `compile`."""

import keras

from kgpt.arguments import flag, integer, is_int, number, refuse
from kgpt.models.whole_model import check_name


def _verbose(name, value):
    if isinstance(value, str) and value == "auto":
        return value
    if not isinstance(value, bool) and not (is_int(value) and 0 <= value <= 2):
        refuse(name, value, '"auto", 0, 1 or 2')
    return value


def _validation_freq(name, value):
    numbers = list(value) if isinstance(value, list | tuple | set | range) else [value]
    if not numbers or not all(is_int(one) and one > 0 for one in numbers):
        refuse(name, value, "an int of at least 1, or a list of numbers of epochs from 1")
    return list(map(int, numbers)) if numbers[0] is not value else int(value)


def _callbacks(name, value):
    for callback in keras.tree.flatten(value):
        if not hasattr(callback, "set_model"):
            refuse(name, value, "a keras.callbacks.Callback, or a list of them")
        if isinstance(callback, keras.callbacks.ModelCheckpoint) and not callback.save_weights_only:
            check_name(callback.filepath)  # and not after an epoch
    return value


def _flag_or_auto(name, value):
    is_auto = value is None or (
        name == "jit_compile" and isinstance(value, str) and value == "auto"
    )
    return value if is_auto else flag(name, value)


FIT = {
    "epochs": integer(0),
    "initial_epoch": integer(0, "It counts the epochs that were trained before."),
    "verbose": _verbose,
    "callbacks": _callbacks,
    "shuffle": flag,
    "validation_split": number("[0, 1)"),
    "validation_freq": _validation_freq,
    **dict.fromkeys(("validation_steps", "validation_batch_size"), integer(1)),
}
COMPILE = {
    **dict.fromkeys(("run_eagerly", "jit_compile"), _flag_or_auto),
    "steps_per_execution": integer(1),
    "auto_scale_loss": flag,
}


def check_validation(validation_data, validation_split, **arguments):
    """Raises ValueError for arguments of the validation that have no effect.

    Args:
        validation_data: as for `fit`.
        validation_split: as for `fit`.
        **arguments: the others of `fit`, as far as they are given.
    """
    if validation_data is not None and validation_split:
        raise ValueError(
            "validation_split has no effect beside validation_data. Received: both, and "
            f"validation_split={validation_split}. Leave one of them out."
        )
    if validation_data is not None or validation_split:
        return
    for name, value in arguments.items():
        is_default = value is None or (name, value) == ("validation_freq", 1)
        if name.startswith("validation_") and not is_default:
            raise ValueError(
                f"{name} has no effect without validation. Received: {name}={value!r:.60}, but "
                "neither validation_data nor validation_split."
            )
