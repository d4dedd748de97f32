"""Variables that are divided among devices, in files of Orbax: each process writes its own part."""

import contextlib
import re
from pathlib import Path

import numpy as np

from kgpt.distribution import process
from kgpt.files import errors_of_writing

# What TensorStore says of the system's errors, such as "[os_error_code='28']".
_OF_SYSTEM = re.compile(r"(?i)os[_ ]error\D{0,8}(\d+)")


def is_divided(model) -> bool:
    """Returns whether a run has several processes, or weights that its devices hold parts of."""
    return process()[1] > 1 or not all(
        getattr(weight.value, "is_fully_replicated", True) for weight in model.weights
    )


def orbax():
    """Returns `orbax.checkpoint`.

    Raises:
        ImportError: if it is not installed.
    """
    try:
        import orbax.checkpoint

        return orbax.checkpoint
    except ImportError as error:
        raise ImportError(
            "Checkpoints of several processes, and of weights that are divided among devices, are "
            "written and read by Orbax, which is not installed. Try: pip install orbax-checkpoint"
        ) from error


def value_of(variable):
    """Returns the value of a variable as Orbax takes it; one of this process alone as an array."""
    value = variable.value
    is_own = process()[1] > 1 and getattr(value, "is_fully_addressable", True)
    return np.asarray(value) if is_own else value


def own_parts(value):
    """Yields the parts of a value in this process, without those that others hold a copy of."""
    if isinstance(value, np.ndarray):
        yield value
        return
    for shard in value.addressable_shards:
        if shard.replica_id == 0:
            yield np.asarray(shard.data)


def write(folder: Path, values: dict):
    """Writes this process's part of the values into a folder; all processes call it.

    Raises:
        OSError: for what the system refuses.
    """
    ocp = orbax()
    with errors_of_writing(folder, folder), _errors_of_system(folder):
        folder.mkdir(exist_ok=True)
        ocp.PyTreeCheckpointHandler().save(_path(folder), args=ocp.args.PyTreeSave(values))


def finish(folder: Path):
    """Puts together what all processes have written; the first one calls it."""
    with errors_of_writing(folder, folder), _errors_of_system(folder):
        orbax().PyTreeCheckpointHandler().finalize(_path(folder))


def read(folder: Path, variables: dict) -> dict:
    """Returns values by name, divided among devices as the variables are; all processes call it.

    Args:
        folder: one that `write` has filled, whatever the processes and devices were.
        variables: `{name: variable}` of those to read, of the shapes that were written.
    """
    if not variables:
        return {}
    ocp = orbax()
    arguments = {name: _how_to_read(ocp, variable) for name, variable in variables.items()}
    wanted = ocp.args.PyTreeRestore(arguments, restore_args=arguments, partial_restore=True)
    return ocp.PyTreeCheckpointHandler().restore(_path(folder), args=wanted)


def _how_to_read(ocp, variable):
    sharding = getattr(variable.value, "sharding", None)
    if sharding is None:  # not on JAX
        return ocp.RestoreArgs(restore_type=np.ndarray)
    return ocp.ArrayRestoreArgs(
        sharding=sharding, global_shape=tuple(variable.shape), dtype=variable.value.dtype
    )


def _path(folder):
    from etils import epath  # Orbax's own

    return epath.Path(folder)


@contextlib.contextmanager
def _errors_of_system(folder):
    """Inside, an error of the system that TensorStore reports is an OSError."""
    try:
        yield
    except Exception as error:
        found = _OF_SYSTEM.search(str(error))
        if found is None:
            raise
        raise OSError(int(found[1]), str(error).splitlines()[0], str(folder)) from error
