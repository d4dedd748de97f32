"""Pictures of training, by matplotlib."""

from pathlib import Path

from kgpt.arguments import checked

__all__ = ["training_curves"]


@checked
def training_curves(history, path, title: str = "", steps_per_epoch: int | None = None) -> Path:
    """Draws training and validation loss over time.

    Args:
        history: what `fit` returns, or its `history`: a dict of lists with `"loss"` and, where
            there is validation data, `"val_loss"`, in nats per token.
        path: where to write the picture; the suffix gives the format.
        title: text above the picture.
        steps_per_epoch: optional int. If given, the axis counts steps instead of epochs.

    Returns:
        The path of the picture.

    Raises:
        ValueError: if the history has no loss.
    """
    from matplotlib.figure import Figure

    history = getattr(history, "history", history)
    if not history.get("loss"):
        raise ValueError(
            f'history must have a "loss" for each epoch. Received: keys {sorted(history)}.'
        )
    figure = Figure(figsize=(7, 4.5), layout="constrained")
    axes = figure.add_subplot()
    for key, label in (("loss", "training"), ("val_loss", "validation")):
        losses = history.get(key, [])
        positions = [(i + 1) * (steps_per_epoch or 1) for i in range(len(losses))]
        if losses:
            axes.plot(positions, losses, marker=".", label=f"{label}, last {losses[-1]:.3f}")
    axes.set_xlabel("steps" if steps_per_epoch else "epochs")
    axes.set_ylabel("loss (nats per token)")
    axes.set_title(title)
    axes.grid(alpha=0.3)
    axes.legend()
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=120)
    return path
