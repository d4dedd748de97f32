"""What kgpt prints fits the console: its encoding, its width, and nothing that nobody meant."""

import errno
import io
import os
import re
import subprocess
import sys
import textwrap
import types

import keras
import numpy as np
import pytest

import kgpt
from kgpt.console import ProgressBar, show
from kgpt.models import fit_data

FIT = """
    import sys
    import keras, numpy as np
    import kgpt

    text = "naïve 猫 \\u2603 ➜ café — " * 20
    tokenizer = kgpt.Tokenizer.train([text], style="characters", special_tokens=())
    backbone = kgpt.GPTBackbone(tokenizer.vocabulary_size, 1, 2, 8, max_sequence_length=16)
    lm = kgpt.CausalLM(backbone, tokenizer=tokenizer)
    # How the step runs is not the point, and TensorFlow takes long to compile it.
    lm.compile("adam", run_eagerly=keras.backend.backend() == "tensorflow")
    rows = np.array([tokenizer.encode(text)[i : i + 16] for i in range(40)], "int32")
    for callbacks in ([], [keras.callbacks.ProgbarLogger()]):
        lm.fit(
            rows,
            epochs=1 + len(callbacks),
            callbacks=[
                kgpt.callbacks.GenerateSamples("猫", 4, sampler="random"),
                kgpt.callbacks.ResumableCheckpoint(sys.argv[1] + "/läuft ➜"),
                *callbacks,
            ],
        )
    lm.evaluate(rows, verbose=2)
    kgpt.data.write_tokens([text], tokenizer, sys.argv[1] + "/➜.npy", end_of_text=False)
    print("reached the end")
"""


def run(code, *arguments, **environment):
    environment = {**os.environ, "KERAS_BACKEND": keras.config.backend(), **environment}
    return subprocess.run(
        [sys.executable, "-c", textwrap.dedent(code), *map(str, arguments)],
        env=environment,
        capture_output=True,
        check=False,
    )


@pytest.mark.parametrize("encoding", ["ascii", "cp1252"])
def test_printing_never_ends_a_run(tmp_path, encoding):
    done = run(FIT, tmp_path, PYTHONIOENCODING=encoding)

    out = done.stdout.decode(encoding)
    assert done.returncode == 0, done.stderr.decode(errors="replace")
    assert out.endswith(f"reached the end{os.linesep}")
    assert out.count("Resuming from") == 1
    assert ("läuft ?" if encoding == "cp1252" else "l?uft ?") in out
    assert "Epoch 2/2" in out


def test_text_that_the_console_can_show_is_shown(capsys):
    show("naïve 猫 \ud800", end="!")

    assert capsys.readouterr().out == "naïve 猫 ?!"


class Terminal(io.StringIO):
    """A terminal; one that is closed refuses with an error of the system what is written."""

    def __init__(self, error=None):
        super().__init__()
        self.error = error

    def isatty(self):
        return True

    def write(self, text):
        if self.error is not None:
            raise OSError(self.error, os.strerror(self.error))
        return super().write(text)


@pytest.mark.parametrize("number", [errno.EIO, errno.EPIPE, errno.ENOSPC])
def test_where_nothing_can_be_printed_a_run_goes_on_and_is_saved(
    lm, rows, monkeypatch, number, tmp_path
):
    saved = kgpt.callbacks.ResumableCheckpoint(tmp_path)
    monkeypatch.setattr(sys, "stdout", Terminal(number))

    with pytest.warns(UserWarning, match="Nothing can be printed"):
        lm.fit(rows, epochs=2, callbacks=[saved])
    with pytest.warns(UserWarning, match="Nothing can be printed"):
        lm.fit(rows, epochs=2, callbacks=[saved])  # says that the run is finished

    assert len(list(tmp_path.glob("checkpoint-????????"))) == 2


# === Width ===


@pytest.fixture
def lm():
    lm = kgpt.CausalLM(kgpt.GPTBackbone(2000, 1, 2, 8, max_sequence_length=5))
    lm.compile("adam")
    return lm


@pytest.fixture
def rows():
    return np.random.default_rng(0).integers(0, 13, (130, 5), "int32")


@pytest.mark.parametrize("columns", [40, 80])
def test_the_progress_bar_keeps_to_its_line(lm, rows, monkeypatch, columns):
    terminal = Terminal()
    monkeypatch.setattr(sys, "stdout", terminal)
    monkeypatch.setenv("COLUMNS", str(columns))
    monkeypatch.setattr("kgpt.console._SECONDS_BETWEEN_UPDATES", 0)

    lm.fit(rows, batch_size=2, epochs=2, validation_data=rows[:6])
    lm.evaluate(rows, batch_size=2)
    lm.predict(rows, batch_size=2)

    lines = terminal.getvalue().split("\n")
    states = [state for line in lines for state in line.split("\r")]
    assert len(states) > 2 * 65  # on JAX, steps that are told late are left out
    assert max(map(len, states)) <= columns
    assert len(lines) < {40: 26, 80: 12}[columns]
    for name in ("loss", "accuracy", "perplexity"):
        assert len(re.findall(rf"\bval_{name}: ", terminal.getvalue())) == 2
        assert re.search(rf"\b{name}: ", terminal.getvalue())
    in_training = r"\d+/65 \[=+\.+\] \d+s left - loss: \S+ - [\d,]+ tokens/s - accuracy: "
    in_evaluation = r"\d+/65 \[=+\.+\] \d+s left - loss: \S+ - accuracy: \S+ - perplexity: "
    for what_fits in (in_training, in_evaluation) if columns == 80 else (r"left - loss: ",):
        assert re.search(what_fits, "".join(states))


def test_a_file_gets_the_figures_of_each_epoch_in_one_line(lm, rows, capsys):
    lm.fit(rows, batch_size=2, epochs=2, validation_data=rows[:6])

    out = capsys.readouterr().out
    first, figures, second, _ = out.splitlines()
    assert (first, second) == ("Epoch 1/2", "Epoch 2/2")
    assert figures.startswith("65/65 ")
    assert " - val_perplexity: " in figures
    assert not {"\r", "\b", "\x1b"} & set(out)


def test_steps_that_are_told_out_of_order_leave_the_last_one(capsys):
    bar = ProgressBar()
    bar.set_params({"epochs": 1, "steps": 3, "verbose": 1})

    bar.on_epoch_begin(0)
    for batch in (1, 2, 0):
        bar.on_train_batch_end(batch, {"loss": float(batch)})
    bar.on_epoch_end(0, {"loss": 2.0})

    assert capsys.readouterr().out.startswith("3/3 ")


def test_data_of_unknown_length_has_a_bar_too(lm, rows, capsys):
    lm.fit(((row[None],) for row in rows[:7]), verbose=1)

    assert capsys.readouterr().out.startswith("7/7 ")


@pytest.fixture
def clock(monkeypatch):
    """A function that lets seconds pass, for the bar alone."""
    now = [100.0]
    monkeypatch.setattr("kgpt.console.time", types.SimpleNamespace(monotonic=lambda: now[0]))
    return lambda seconds: now.__setitem__(0, now[0] + seconds)


@pytest.mark.parametrize(
    ("steps", "expected"),
    [
        (5000, " 151/5000 [.....] 40:24 left - loss: 2.3026 - 1,000 tokens/s - accuracy: 0.5000"),
        (None, "step 151 1:36 - loss: 2.3026 - 1,000 tokens/s - accuracy: 0.5000"),
    ],
    ids=["known length", "unknown length"],
)
def test_the_bar_says_tokens_per_second_and_the_time_left(monkeypatch, clock, steps, expected):
    terminal = Terminal()
    monkeypatch.setattr(sys, "stdout", terminal)
    monkeypatch.setenv("COLUMNS", "80")
    logs = {"accuracy": 0.5, "loss": 2.302585, "perplexity": 10.0}
    bar = ProgressBar(tokens_per_step=500)
    bar.set_params({"epochs": 1, "steps": steps, "verbose": 1})

    bar.on_train_begin()
    bar.on_epoch_begin(0)
    clock(20)  # compilation
    for step in range(151):
        clock(0.5)
        bar.on_train_batch_end(step, logs)
    last_state = terminal.getvalue().split("\r")[-1]
    clock(30)  # validation
    bar.on_epoch_end(0, logs)

    assert last_state.startswith(expected)
    assert all(len(state) < 80 for state in re.split("[\r\n]", terminal.getvalue()))
    assert " 2:06 500ms/step - 1,000 tokens/s - accuracy: 0.5000" in terminal.getvalue()


def test_the_bar_knows_the_tokens_of_a_step_where_all_steps_have_the_same(lm, rows, tmp_path):
    np.save(tmp_path / "tokens.npy", np.zeros(100, "uint16"))
    tokens_of = fit_data.tokens_per_step

    windows = kgpt.data.windows(tmp_path / "tokens.npy", 4, 3)
    mixture = kgpt.data.mixture([windows, windows], [1, 2])
    assert tokens_of(windows, None) == tokens_of(mixture, None) == 12
    assert tokens_of(rows, 2) == tokens_of({"token_ids": rows}, 2) == 10
    assert tokens_of(rows, None) == 32 * 5
    assert tokens_of(rows[:7], None) == 7 * 5
    assert tokens_of({"token_ids": rows, "padding_mask": rows > 3}, 2) is None
    assert tokens_of(kgpt.data.documents(["a", "bcd"], kgpt.Tokenizer.train(["a"], 260)), 1) is None


@pytest.mark.parametrize("options", [{"verbose": 0}, {"verbose": 2}])
def test_another_verbosity_is_kerass(lm, rows, capsys, options):
    lm.fit(rows, **options)

    assert (" - loss: " in capsys.readouterr().out) == (options["verbose"] == 2)


def test_a_bar_of_the_users_own_is_left_alone(lm, rows, capsys):
    class Silent(keras.callbacks.ProgbarLogger):
        def on_epoch_begin(self, epoch, logs=None):
            pass

        on_epoch_end = on_train_batch_end = on_epoch_begin

    lm.fit(rows, callbacks=[Silent()])

    assert capsys.readouterr().out == ""


def test_the_bar_of_another_keras_model_can_be_this_one(rows, capsys):
    model = keras.Sequential([keras.layers.Embedding(13, 3), keras.layers.Dense(13)])
    model.compile("sgd", "sparse_categorical_crossentropy")

    model.fit(rows, rows, callbacks=[ProgressBar()])

    assert capsys.readouterr().out.startswith("5/5 ")


# === Noise ===


@pytest.mark.any_backend
def test_batches_come_and_go_without_a_warning_where_jax_is_missing(tmp_path):
    np.save(tmp_path / "tokens.npy", np.zeros(100, "uint16"))
    code = """
        import sys
        import kgpt

        sys.modules["jax"] = None  # its import fails
        next(iter(kgpt.data.windows(sys.argv[1], 4, 2)))
        iterator = iter(kgpt.data.windows(sys.argv[1], 4, 2, repeat=True).get_tf_dataset())
        next(iterator)  # as a fit that is interrupted
    """

    done = run(code, tmp_path / "tokens.npy", KERAS_BACKEND="tensorflow")

    assert done.returncode == 0, done.stderr.decode()
    assert b"jax profiler" not in done.stderr
    assert b"finalizing" not in done.stderr


def short_text(tokenizer, tmp_path):
    kgpt.Tokenizer.train(["ab"], 300)


def long_text(tokenizer, tmp_path):
    kgpt.data.classification(["a b c d e f g h"] * 2, [0, 1], tokenizer, 5, batch_size=2)


def earlier_file(tokenizer, tmp_path):
    kgpt.data.write_tokens(["a b"] * 9, tokenizer, tmp_path / "a.npy", validation_fraction=0.5)
    kgpt.data.write_tokens(["a b"] * 9, tokenizer, tmp_path / "a.npy")


def one_class(tokenizer, tmp_path):
    backbone = kgpt.GPTBackbone(tokenizer.vocabulary_size, 1, 1, 4, max_sequence_length=8)
    classifier = kgpt.TextClassifier(backbone, 2, tokenizer=tokenizer)
    classifier.fit(["a", "b"], [1, 1], batch_size=2, verbose=0)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (short_text, "too small for a vocabulary"),
        (long_text, "lose their end"),
        (earlier_file, "of an earlier call"),
        (one_class, "the same class"),
    ],
)
def test_a_warning_shows_the_line_of_the_users_that_led_to_it(tmp_path, call, message):
    tokenizer = kgpt.Tokenizer.train(["a b c d e f g h"] * 9, 262)

    with pytest.warns(UserWarning, match=message) as record:
        call(tokenizer, tmp_path)

    assert [one.filename for one in record if message in str(one.message)] == [__file__]
