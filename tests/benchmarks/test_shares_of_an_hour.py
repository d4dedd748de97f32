"""An hour's shares are computed from the times of a shorter run."""

import sys

import pytest


@pytest.fixture
def shares(benchmarks):
    import shares_of_an_hour

    return shares_of_an_hour


def test_an_hour_has_once_what_happens_once_and_the_rest_is_steps(shares):
    times = {
        "import": [5.0],
        "tokenizer and tokens": [3.0],
        "model": [1.0],
        "step": [11.0, 1.0, 1.0, 1.0],
        "validation": [9.0, 2.0, 4.0],
        "checkpoint": [3.0, 2.0, 2.0],
        "sample": [5.0, 0.5, 0.5],
        "fit": [50.0],
        "saved model": [2.0],
        "score and sample at the end": [3.0, 4.0],
        "data": [0.01],
    }

    parts = shares.hour_of(times, epochs=11)

    assert sum(parts.values()) == pytest.approx(3600)
    assert parts["first step, beyond a step"] == 10
    assert parts["beginning and end of fit"] == 50 - 14 - 15 - 7 - 6
    assert parts["validation, the first"] == 9
    assert parts["validation, 10 more"] == 30
    assert parts["score and sample at the end"] == 7
    assert parts["steps, waiting for data"] == pytest.approx(0.01 * parts["steps"], rel=0.02)


def test_a_part_within_another_is_not_counted_twice(shares):
    class Model:
        def outer(self):
            return self.inner() + 1

        def inner(self):
            return 1

    clock = shares.Clock()
    clock.watch(Model, "outer", "outer")
    clock.watch(Model, "inner", "inner")

    assert [Model().outer(), Model().inner()] == [2, 1]
    assert {part: len(seconds) for part, seconds in clock.seconds.items()} == {
        "outer": 1,
        "inner": 1,
    }


def test_each_part_of_a_run_is_timed(shares, monkeypatch, capsys):
    options = "--options=--sequence-length 32 --batch-size 2"
    monkeypatch.setattr(sys, "argv", ["shares_of_an_hour.py", "--steps", "6", options])

    shares.main()

    table = capsys.readouterr().out.rpartition("| part of an hour |")[2]
    parts = [line.split(" | ") for line in table.splitlines() if line.endswith("% |")]
    seconds = {name.removeprefix("| "): float(number) for name, number, _ in parts}
    assert sum(seconds.values()) == pytest.approx(3600, abs=1)
    assert max(seconds, key=seconds.get) == "steps"
    for part in ("import", "validation, the first", "checkpoint, 11 more", "sample, 11 more"):
        assert part in seconds
