"""What kgpt prints: lines that fit the console, in characters that it has."""

import contextlib
import logging
import shutil
import sys
import threading
import time
import warnings

import keras
import numpy as np

_BAR_WIDTH = 20
_SECONDS_BETWEEN_UPDATES = 0.1
_NOT_THE_USERS = ("kgpt.", "keras.", "tensorflow.", "contextlib")


def warn(message: str):
    """Warns, with the line of the user's own code that led to it, through however many calls."""
    level, frame = 2, sys._getframe(1)
    while frame.f_back and frame.f_globals.get("__name__", "").startswith(_NOT_THE_USERS):
        level, frame = level + 1, frame.f_back
    warnings.warn(message, stacklevel=level)


def show(text: str = "", end: str = "\n") -> None:
    """Prints a text, with `?` for characters that the console's encoding lacks.

    Where nothing can be printed (the terminal is closed, the reader of a pipe has ended, the disk
    of a log is full) it warns: a run must not end of it before it has been saved.
    """
    encoding = getattr(sys.stdout, "encoding", None) or "utf-8"
    try:
        print(text.encode(encoding, "replace").decode(encoding), end=end, flush=True)
    except OSError as error:
        warn(f"Nothing can be printed: {error}. Only this is lost.")


@contextlib.contextmanager
def quiet_imports():
    """Inside, packages are imported without grain's warning that JAX is missing.

    It needs JAX for profiling alone. Threads may be inside at once.
    """
    logger = logging.getLogger("absl")
    logger.addFilter(_is_error)
    try:
        yield
    finally:
        logger.removeFilter(_is_error)


def _is_error(record):
    return record.levelno >= logging.ERROR


class ProgressLine:
    """A line that is written over while something runs; in a file, only its last state."""

    def __init__(self):
        self._is_terminal = sys.stdout is not None and sys.stdout.isatty()
        self.columns = shutil.get_terminal_size().columns if self._is_terminal else None
        self.start = time.monotonic()
        self._length, self._updated = 0, 0.0

    @property
    def seconds(self) -> float:
        """The time since the beginning."""
        return time.monotonic() - self.start

    def update(self, text: str) -> None:
        """Shows a state, unless the one before is too recent."""
        now = time.monotonic()
        if self._is_terminal and now - self._updated >= _SECONDS_BETWEEN_UPDATES:
            text = text[: self.columns - 1]
            show("\r" + text.ljust(self._length), end="")
            self._length, self._updated = len(text), now

    def finish(self, text: str) -> None:
        """Shows the last state, which may have several lines."""
        show("\r" + " " * self._length + "\r" + text if self._length else text)


class ProgressBar(keras.callbacks.ProgbarLogger):
    """A progress bar that fits the terminal; in a file or a pipe, the figures of each epoch.

    Keras's own takes more than 80 columns for three metrics, and in a narrower terminal begins a
    new line with each step.

    Args:
        tokens_per_step: optional int. If given, the bar shows tokens/s in training.
    """

    async_safe = True  # as Keras's own

    def __init__(self, tokens_per_step: int | None = None):
        super().__init__()
        self._tokens_per_step = tokens_per_step
        self._is_in_fit = False
        self._lock = threading.Lock()

    def on_train_begin(self, logs=None):
        self._is_in_fit = True

    def on_train_end(self, logs=None):
        self._is_in_fit = False

    def on_epoch_begin(self, epoch, logs=None):
        if self.epochs > 1:
            show(f"Epoch {epoch + 1}/{self.epochs}")
        self._begin()

    def on_test_begin(self, logs=None):
        if not self._is_in_fit:
            self._begin()

    def on_predict_begin(self, logs=None):
        self._begin()

    def on_train_batch_end(self, batch, logs=None):
        self._step(batch, logs)

    def on_test_batch_end(self, batch, logs=None):
        if not self._is_in_fit:
            self._step(batch, logs)

    def on_predict_batch_end(self, batch, logs=None):
        self._step(batch, None)  # the logs are the outputs

    def on_epoch_end(self, epoch, logs=None):
        self._end(logs)

    def on_test_end(self, logs=None):
        if not self._is_in_fit:
            self._end(logs)

    def on_predict_end(self, logs=None):
        self._end(None)

    def _begin(self):
        self.seen, self._first_step_took, self._last_step_at = 0, None, 0.0
        self._line = ProgressLine()
        self._line.update(f"{self._count()} - the first step takes longest ...")

    def _step(self, batch, logs):
        with self._lock:  # on JAX, Keras calls from several threads, and in any order
            if batch >= self.seen:
                self._show_step(batch, logs)

    def _show_step(self, batch, logs):
        self.seen, self._last_step_at = batch + 1, self._line.seconds
        if self._first_step_took is None:
            self._first_step_took = self._last_step_at, self.seen
        if self._line.columns is None:
            return
        left = (self.target or 0) - self.seen
        clock = _clock(left * self._seconds_per_step() if left >= 0 else self._line.seconds)
        text = f"{clock} left" if left >= 0 else clock
        room = self._line.columns - len(self._count()) - 2
        figures = sorted(_figures(logs), key=lambda figure: not figure.startswith("loss:"))
        for figure in [*figures[:1], *self._speed(), *figures[1:]]:
            if len(text) + len(figure) + 3 <= room:
                text += f" - {figure}"
        self._line.update(f"{self._count()}{self._bar(room - len(text))} {text}")

    def _end(self, logs):
        self.target = self.target or self.seen
        pace = _pace(self._seconds_per_step())
        text, lines = f"{self._count()} {_clock(self._line.seconds)} {pace}/step", []
        for figure in [*self._speed(), *_figures(logs)]:
            if self._line.columns and len(text) + len(figure) + 3 > self._line.columns:
                lines.append(text)
                text = "  " + figure
            else:
                text += f" - {figure}"
        self._line.finish("\n".join([*lines, text]))

    def _count(self):
        if not self.target:
            return f"step {self.seen}"
        return f"{self.seen:>{len(str(self.target))}}/{self.target}"

    def _bar(self, room):
        width = min(_BAR_WIDTH, room - len(" []"))
        if not self.target or width < 3:
            return ""
        done = width * self.seen // self.target
        return f" [{'=' * done}{'.' * (width - done)}]"

    def _speed(self):
        """Returns tokens/s as a list of one figure, or of none."""
        if not self._tokens_per_step or not self._is_in_fit or not self._last_step_at:
            return []
        return [f"{self._tokens_per_step / self._seconds_per_step():,.0f} tokens/s"]

    def _seconds_per_step(self):
        """Without the first step, which is compiled, if there are others, and no validation."""
        took, steps = self._first_step_took or (0, 0)
        if self.seen > steps:
            return (self._last_step_at - took) / (self.seen - steps)
        return self._last_step_at / max(1, self.seen)


def with_progress_bar(callbacks, verbose, tokens_per_step: int | None = None):
    """Returns the callbacks of a fit with a `ProgressBar` in the place of Keras's own bar.

    Keras keeps its own where lines may have any width, in notebooks, where the user chose another,
    and for `verbose=2`.
    """
    is_list = isinstance(callbacks, keras.callbacks.CallbackList)
    wants_bar = verbose in ("auto", 1) and keras.config.is_interactive_logging_enabled()
    if is_list or not wants_bar or "ipykernel" in sys.modules:
        return callbacks
    callbacks = keras.tree.flatten(callbacks) if callbacks is not None else []
    if any(isinstance(callback, keras.callbacks.ProgbarLogger) for callback in callbacks):
        return callbacks
    return [*callbacks, ProgressBar(tokens_per_step)]


def _figures(logs):
    values = {name: float(np.mean(value)) for name, value in (logs or {}).items()}
    return [
        f"{name}: {value:.4f}" if abs(value) > 1e-3 or value == 0 else f"{name}: {value:.4e}"
        for name, value in values.items()
    ]


def _clock(seconds):
    minutes, seconds = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    if hours:
        return f"{hours}:{minutes:02d}:{seconds:02d}"
    return f"{minutes}:{seconds:02d}" if minutes else f"{seconds}s"


def _pace(seconds):
    if seconds >= 1:
        return f"{seconds:.1f}s"
    return f"{seconds * 1e3:.0f}ms" if seconds >= 1e-3 else f"{seconds * 1e6:.0f}us"
