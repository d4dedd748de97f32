"""The figures of a run, read from its checkpoints."""

from pathlib import Path

from kgpt.callbacks.checkpoint_folder import CheckpointFolder
from kgpt.callbacks.plain_values import decoded

CALLBACKS = "callbacks/"  # what the names of callbacks' arrays begin with


def run_history(folder) -> dict:
    """Returns the `History.history` of the run whose state `ResumableCheckpoint` keeps in a folder.

    The run may be going on: what its newest checkpoint knows is returned.

    Raises:
        FileNotFoundError: if the folder has no checkpoint.
        ValueError: if all its checkpoints are damaged.
    """
    folder = Path(folder)
    checkpoint = CheckpointFolder(folder, keep=1).newest() if folder.is_dir() else None
    if checkpoint is None:
        raise FileNotFoundError(
            f"There is no checkpoint in {folder}. Try the folder of a "
            "kgpt.callbacks.ResumableCheckpoint whose run has finished an epoch."
        )
    state = checkpoint.progress.get("callbacks", {}).get("History", {})
    history = state.get("attributes", {}).get("history", {"dict": []})
    return decoded(history, arrays_of_callbacks(checkpoint.arrays or {}))


def arrays_of_callbacks(arrays) -> dict:
    """Returns the arrays of callbacks in a checkpoint, under the names that they have there."""
    names = [name for name in arrays if name.startswith(CALLBACKS)]
    return {name.removeprefix(CALLBACKS): arrays[name] for name in names}
