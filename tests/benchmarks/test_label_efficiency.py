"""What pretraining is worth: the scripts at a tiny size, from the published files to the tables."""

import json

import pytest


@pytest.mark.filterwarnings("ignore:The text is too small")
def test_a_body_is_pretrained_and_compared_once_and_drawn(
    scripts, reviews, sentences, tmp_path, capsys
):
    pytest.importorskip("sklearn", reason="the baseline is scikit-learn's")
    label_efficiency, run = scripts.label_efficiency, scripts.run
    given = ["--reviews", reviews, "--sentences", sentences, "--output", tmp_path]
    given += ["--tokens", 4000, "--length", 24, "--labels", 20, "--seeds", 0]
    given += ["--dtype", "float32", "--methods", "pretrained", "LoRA", "counted words"]

    run(label_efficiency, *given, "--sets", "reviews")
    made = {path: path.stat().st_mtime_ns for path in (tmp_path / "results").iterdir()}
    capsys.readouterr()
    run(label_efficiency, *given)

    results = label_efficiency.read_results(tmp_path / "results")
    printed = capsys.readouterr().out
    assert len(results) == 6
    assert all(path.stat().st_mtime_ns == when for path, when in made.items())
    assert results["sentences", "counted words", 20][0] > 60  # above chance
    assert "| reviews, accuracy in % | 20 labels |" in printed
    assert (tmp_path / "label_efficiency.png").stat().st_size > 1000
    kept = sorted(path.name for path in (tmp_path / "bodies").iterdir())
    assert kept == ["000000.weights.h5"]  # shorter than 64 steps


def test_labels_are_drawn_by_seed_and_held_out_ones_have_none_in_common(scripts):
    label_efficiency = scripts.label_efficiency
    texts = [f"text {i}" for i in range(50)]
    splits = (texts, [i % 2 for i in range(50)]), (["test"], [1])

    def drawn(seed, tune=True):
        arguments = type("Arguments", (), {"tune": tune, "full": False})
        train, test = label_efficiency.labelled(splits, 10, seed, arguments)
        return train[0], test[0]

    assert drawn(0) == drawn(0)
    assert drawn(0)[0] != drawn(1)[0]
    assert len(drawn(0)[0]) == 10
    assert not set(drawn(0)[0]) & set(drawn(0)[1])
    assert drawn(0, tune=False)[1] == ["test"]


def test_reviews_are_read_as_their_authors_publish_them(scripts, tmp_path):
    label_efficiency = scripts.label_efficiency
    for name in ("train/pos", "train/neg", "train/unsup", "test/pos", "test/neg"):
        (tmp_path / name).mkdir(parents=True)
        (tmp_path / name / "0_1.txt").write_text(f"{name}<br />done", encoding="utf-8")

    train, test = label_efficiency.read_reviews(tmp_path)

    assert train == (["train/neg\ndone", "train/pos\ndone"], [0, 1])
    assert test == (["test/neg\ndone", "test/pos\ndone"], [0, 1])
    assert label_efficiency.read_unlabelled(tmp_path) == ["train/unsup\ndone"]


def test_recipes_have_the_same_time_and_are_compared_once(
    scripts, reviews, sentences, tmp_path, capsys
):
    import recipes_on_reviews

    given = ["--reviews", reviews, "--sentences", sentences, "--output", tmp_path, "--layers", 1]
    given += ["--length", 24, "--labels", 20, "--seeds", 0, "--minutes", 0.002]
    given += ["--dtype", "float32"]

    scripts.run(recipes_on_reviews, *given)
    found = capsys.readouterr().out
    scripts.run(recipes_on_reviews, *given)

    again = capsys.readouterr().out
    recipes = recipes_on_reviews.RECIPES
    tables = [text.splitlines()[-len(recipes) :] for text in (found, again)]
    assert tables[0] == tables[1]
    assert '"seed": 0' in found
    assert '"seed": 0' not in again
    for line, (name, (_, _, rates)) in zip(tables[0], recipes.items(), strict=True):
        folder = tmp_path / "1_layers_0.002_minutes" / "pretraining"
        paths = {r: folder / f"{recipes_on_reviews.name_of(name, r, 0)}.json" for r in rates}
        losses = {rate: json.loads(path.read_text())["loss"] for rate, path in paths.items()}
        best = min(losses, key=losses.get)
        assert line.startswith(f"| {name} | {best:g} |")
        assert f"| {losses[best]:.3f} |" in line
