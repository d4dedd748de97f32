"""How loss falls over a training run."""

import os
from collections.abc import Mapping
from pathlib import Path

from kgpt.arguments import checked, refuse
from kgpt.callbacks.run_history import run_history
from kgpt.files import make_folder, written_whole
from kgpt.plot.figure import COLOURS, new_figure


@checked
def training_curves(
    history,
    path: str | os.PathLike | None = None,
    title: str = "",
    steps_per_epoch: int | None = None,
):
    """Draws training and validation loss over time, of one run or of several.

    Args:
        history: what `fit` returns, or its `history`: a dict of lists with `"loss"` and, where
            there is validation data, `"val_loss"`, in nats per token. Or the folder of a
            `ResumableCheckpoint`, whose run may be going on. For several runs, a dict from the
            names of the runs to these.
        path: optional. Where to write the picture; the suffix gives the format.
        title: text above the picture.
        steps_per_epoch: optional int. If given, the axis counts steps instead of epochs.

    Returns:
        `matplotlib.figure.Figure`. A notebook shows it.

    Raises:
        ValueError: if a history has no loss.
        FileNotFoundError: if a folder has no checkpoint.

    Example:
        kgpt.plot.training_curves({"loss": [4.1, 3.2], "val_loss": [4.0, 3.4]})
    """
    figure = new_figure(7, 4.5)
    axes = figure.add_subplot()
    for number, (name, run) in enumerate(_runs(history).items()):
        colour = COLOURS[number % len(COLOURS)]
        for key, label, line in (("loss", "training", "--"), ("val_loss", "validation", "-")):
            losses = run.get(key, [])
            positions = [(i + 1) * (steps_per_epoch or 1) for i in range(len(losses))]
            if losses:
                label = f"{name}{', ' if name else ''}{label}, last {losses[-1]:.3f}"
                axes.plot(positions, losses, line, marker=".", color=colour, label=label)
    axes.xaxis.get_major_locator().set_params(integer=True)
    axes.set_xlabel("steps" if steps_per_epoch else "epochs")
    axes.set_ylabel("loss (nats per token)")
    axes.set_title(title)
    axes.grid(alpha=0.3)
    axes.legend()
    if path is not None:
        make_folder(Path(path).parent)
        with written_whole(path) as unfinished:
            figure.savefig(unfinished, dpi=120)
    return figure


def _runs(history):
    """Returns a dict from names to dicts of lists; one run alone has no name."""
    history = _figures(history)
    is_several = isinstance(history, Mapping) and not any(
        isinstance(value, list | tuple) for value in history.values()
    )
    runs = history if is_several and history else {"": history}
    runs = {name: _figures(run) for name, run in runs.items()}
    for run in runs.values():
        if not isinstance(run, Mapping):
            hint = "Or its dict of lists, history.history, or the folder of its checkpoints."
            refuse("history", run, "what fit returns", hint)
        if not run.get("loss"):
            raise ValueError(
                f'history must have a "loss" for each epoch. Received: keys {sorted(run)}.'
            )
    return runs


def _figures(run):
    """Returns the dict of a run's `History`, or of its folder; anything else as it is."""
    return run_history(run) if isinstance(run, str | os.PathLike) else getattr(run, "history", run)
