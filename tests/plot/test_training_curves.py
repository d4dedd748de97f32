import pytest

from kgpt import plot

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
