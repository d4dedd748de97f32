import pytest

from kgpt import plot


def test_the_curves_become_a_picture(tmp_path):
    history = {"loss": [4.0, 3.0, 2.5], "val_loss": [3.9, 3.2, 3.0]}

    path = plot.training_curves(history, tmp_path / "new" / "curves.png", "run", 100)

    assert path.read_bytes().startswith(b"\x89PNG")


def test_a_history_without_loss_is_refused(tmp_path):
    with pytest.raises(ValueError, match=r"Received: keys \['accuracy'\]"):
        plot.training_curves({"accuracy": [1.0]}, tmp_path / "curves.png")

    assert not (tmp_path / "curves.png").exists()
