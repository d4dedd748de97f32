"""Signals let a step end, save the run, and act then."""

import os
import signal
import subprocess
import sys
import threading
from pathlib import Path

import keras
import numpy as np
import pytest
from runs import LENGTH, Diary, assert_same, checkpoints, make_lm, token_file

import kgpt

pytestmark = pytest.mark.skipif(os.name == "nt", reason="asks for signals that Windows lacks")


class Send(keras.callbacks.Callback):
    """Sends signals to this process, at a step or a batch of validation."""

    def __init__(self, *numbers, step=None, validation=None):
        super().__init__()
        self.numbers, self.step, self.validation = numbers, step, validation
        self.steps = 0
        self.handlers = None

    def on_train_begin(self, logs=None):
        self.handlers = [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)]

    def on_train_batch_end(self, batch, logs=None):
        self.steps += 1
        self.at_step(self.steps)

    def at_step(self, steps):
        if steps == self.step:
            for number in self.numbers:
                signal.raise_signal(number)

    def on_test_batch_end(self, batch, logs=None):
        if (self.steps, batch) == self.validation:
            for number in self.numbers:
                signal.raise_signal(number)


@pytest.fixture(scope="module")
def path(tmp_path_factory):
    return token_file(tmp_path_factory.mktemp("tokens"))


@pytest.fixture(autouse=True)
def handlers_as_before():
    """Python's own handlers in a test, also where tests run in the background or under nohup."""
    numbers = signal.SIGINT, signal.SIGTERM, signal.SIGHUP
    own = signal.default_int_handler, signal.SIG_DFL, signal.SIG_DFL
    before = [signal.signal(*pair) for pair in zip(numbers, own, strict=True)]
    yield
    after = tuple(signal.getsignal(number) for number in numbers)
    for number, handler in zip(numbers, before, strict=True):
        signal.signal(number, handler)
    assert after == own


def run(path, *callbacks):
    lm = make_lm()
    train, validation = (
        kgpt.data.windows(path, LENGTH, 4, seed=0),
        kgpt.data.windows(path, LENGTH, 4),
    )
    callbacks = list(callbacks)
    lm.fit(train, validation_data=validation, epochs=2, callbacks=callbacks, verbose=0)
    return lm


@pytest.fixture(scope="module")
def expected(path):
    diary = Diary()
    return run(path, diary), diary


def checkpoint(tmp_path, **options):
    return kgpt.callbacks.ResumableCheckpoint(tmp_path / "run", **options)


def assert_goes_on(path, tmp_path, expected, entries):
    """The resumed run makes what is left, and ends as the one that was not cut."""
    diary = Diary()
    resumed = run(path, diary, checkpoint(tmp_path))
    model, whole = expected
    assert diary.entries[1:] == whole.entries[len(whole.entries) - entries :]
    assert_same(resumed, model)


def test_an_interrupted_run_is_saved_after_the_step(path, tmp_path, expected, capsys):
    with pytest.raises(KeyboardInterrupt):
        run(path, Send(signal.SIGINT, step=7), checkpoint(tmp_path))

    assert "SIGINT: saved after 7 steps" in capsys.readouterr().out
    assert_goes_on(path, tmp_path, expected, entries=5)  # 3 steps, the validation, the end


@pytest.mark.parametrize("steps", [5, 10])
def test_an_interrupted_validation_is_made_again(path, tmp_path, expected, steps):
    with pytest.raises(KeyboardInterrupt):
        run(path, Send(signal.SIGINT, validation=(steps, 1)), checkpoint(tmp_path))

    left = 2 if steps == 10 else 2 + 1 + 5 + 2
    assert_goes_on(path, tmp_path, expected, left)


def test_the_signals_own_handler_acts_in_the_end(path, tmp_path):
    def leave(number, frame):
        raise SystemExit(3)

    earlier = signal.signal(signal.SIGTERM, leave)
    try:
        with pytest.raises(SystemExit, match="3"):
            run(path, Send(signal.SIGTERM, step=2), checkpoint(tmp_path))
    finally:
        assert signal.signal(signal.SIGTERM, earlier) is leave
    assert len(checkpoints(tmp_path / "run")) == 1


def test_training_goes_on_where_the_handler_ends_nothing(path, tmp_path, expected):
    heard = []
    earlier = signal.signal(signal.SIGHUP, lambda number, frame: heard.append(number))
    try:
        model = run(path, Send(signal.SIGHUP, step=2), checkpoint(tmp_path))
    finally:
        signal.signal(signal.SIGHUP, earlier)

    assert heard == [signal.SIGHUP]
    assert_same(model, expected[0])


def test_an_ignored_signal_stays_ignored(path, tmp_path, expected):
    earlier = signal.signal(signal.SIGHUP, signal.SIG_IGN)  # as under nohup
    try:
        model = run(path, Send(signal.SIGHUP, step=2), checkpoint(tmp_path))
    finally:
        signal.signal(signal.SIGHUP, earlier)

    assert_same(model, expected[0])


def test_a_second_interrupt_acts_at_once(path, tmp_path):
    send = Send(signal.SIGINT, signal.SIGINT, step=2)

    with pytest.raises(KeyboardInterrupt):
        run(path, send, checkpoint(tmp_path))

    assert not checkpoints(tmp_path / "run")


def test_signals_can_be_left_alone(path, tmp_path):
    with pytest.raises(KeyboardInterrupt):
        run(path, Send(signal.SIGINT, step=2), checkpoint(tmp_path, handle_signals=False))

    assert not checkpoints(tmp_path / "run")


def test_in_another_thread_no_handler_is_changed(path, tmp_path, expected):
    found = []

    class Look(keras.callbacks.Callback):
        def on_epoch_begin(self, epoch, logs=None):
            found.append(signal.getsignal(signal.SIGINT))

    thread = threading.Thread(target=run, args=(path, Look(), checkpoint(tmp_path)))
    thread.start()
    thread.join()

    assert found == [signal.getsignal(signal.SIGINT)] * 2


def test_arrays_say_what_will_be_made_again(tmp_path, capsys):
    x = np.zeros((12, LENGTH), int)

    with pytest.raises(KeyboardInterrupt):
        make_lm().fit(
            x,
            batch_size=4,
            callbacks=[Send(signal.SIGINT, step=2), checkpoint(tmp_path)],
            verbose=0,
        )

    said = capsys.readouterr().out
    assert "SIGINT: an epoch can't be resumed in its middle with data of type ndarray" in said
    assert "The last 2 steps will be made again" in said


def test_in_a_fit_of_keras_signals_are_left_alone(tmp_path):
    model = keras.Sequential([keras.Input((1,)), keras.layers.Dense(1)])
    model.compile("sgd", "mse", run_eagerly=True)
    x = np.ones((2, 1), "float32")

    with pytest.raises(KeyboardInterrupt):
        model.fit(x, x, callbacks=[Send(signal.SIGINT, step=1), checkpoint(tmp_path)], verbose=0)

    assert not checkpoints(tmp_path / "run")


SCRIPT = """
import os, runpy, signal, sys
signals = runpy.run_path(sys.argv[1])["Signals"]()
signals.install()
os.kill(os.getpid(), signal.SIGTERM)
print(signals.name, flush=True)
signals.deliver()
print("alive")
"""


def test_a_terminated_process_dies_of_the_signal():
    path = Path(kgpt.__file__).parent / "callbacks" / "signals.py"  # without the imports of kgpt

    ended = subprocess.run([sys.executable, "-c", SCRIPT, path], capture_output=True, text=True)

    assert ended.returncode == -signal.SIGTERM, ended.stderr
    assert ended.stdout == "SIGTERM\n"
