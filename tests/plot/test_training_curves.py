import numpy as np
import pytest

from kgpt import plot
from kgpt.callbacks.checkpoint_folder import CheckpointFolder

HISTORY = {"loss": [4.0, 3.0, 2.5], "val_loss": [3.9, 3.2, 3.0]}


def lines(figure):
    (axes,) = figure.axes
    return {
        line.get_label(): (list(line.get_xdata()), list(line.get_ydata())) for line in axes.lines
    }


def test_the_curves_are_the_losses_of_the_run(tmp_path):
    path = tmp_path / "new" / "curves.png"

    figure = plot.training_curves(HISTORY, path, "run", 100)

    assert path.read_bytes().startswith(b"\x89PNG")
    assert lines(figure) == {
        "training, last 2.500": ([100, 200, 300], HISTORY["loss"]),
        "validation, last 3.000": ([100, 200, 300], HISTORY["val_loss"]),
    }


def test_several_runs_share_one_picture():
    figure = plot.training_curves({"small": HISTORY, "large": {"loss": [2.0]}})

    assert lines(figure) == {
        "small, training, last 2.500": ([1, 2, 3], HISTORY["loss"]),
        "small, validation, last 3.000": ([1, 2, 3], HISTORY["val_loss"]),
        "large, training, last 2.000": ([1], [2.0]),
    }


def test_a_notebook_shows_the_figure():
    assert plot.training_curves(HISTORY)._repr_html_().startswith('<img src="data:image/png')


@pytest.mark.parametrize("history", [{"accuracy": [1.0]}, {"a": HISTORY, "b": {}}, {}])
def test_a_history_without_loss_is_refused(tmp_path, history):
    with pytest.raises(ValueError, match=r'a "loss" for each epoch. Received: keys \['):
        plot.training_curves(history, tmp_path / "curves.png")

    assert not (tmp_path / "curves.png").exists()


def checkpoint(folder, **of_callbacks):
    """A checkpoint as `ResumableCheckpoint` writes it, of what a picture needs."""
    checkpoints = CheckpointFolder(folder, keep=1)
    checkpoints.open()
    checkpoints.save({"callbacks": of_callbacks}, {"callbacks/History/0": np.arange(200.0) + 1})
    checkpoints.close()
    return folder


def test_a_run_is_read_from_its_folder(tmp_path):
    history = {"dict": [["loss", [4.0, 3.0]], ["val_loss", {"floats": "History/0"}]]}
    folder = checkpoint(tmp_path / "run", History={"attributes": {"history": history}})

    of_path, of_name = plot.training_curves(folder), plot.training_curves({"a": str(folder)})

    assert lines(of_path) == {
        "training, last 3.000": ([1, 2], [4.0, 3.0]),
        "validation, last 200.000": (list(range(1, 201)), list(range(1, 201))),
    }
    assert list(lines(of_name)) == ["a, training, last 3.000", "a, validation, last 200.000"]


def test_a_folder_without_figures_is_refused(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"no checkpoint in .*missing"):
        plot.training_curves(tmp_path / "missing")
    with pytest.raises(FileNotFoundError, match="no checkpoint in "):
        plot.training_curves({"a": HISTORY, "b": tmp_path})
    with pytest.raises(ValueError, match=r'a "loss" for each epoch. Received: keys \[\]'):
        plot.training_curves(checkpoint(tmp_path / "begun", History={"attributes": {}}))
