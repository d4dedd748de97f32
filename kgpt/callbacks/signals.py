"""Signals that ask a process to end: kept until a run has been saved, then delivered."""

import signal
import threading

# What schedulers, shells and terminals send; Windows has no SIGHUP.
_NAMES = ("SIGTERM", "SIGINT", "SIGHUP")


class Signals:
    """Keeps signals in place of their handlers: `received` says which came, `deliver` passes it on.

    Handlers can be installed in the main thread alone; in another, nothing is kept. A signal that
    is ignored, as `nohup` does with SIGHUP, stays ignored. Of a second Ctrl-C nothing is kept: it
    acts at once.

    Attributes:
        received: the number of the signal that came, or None.
    """

    def __init__(self):
        self.received = None
        self._earlier = {}  # {number: handler}

    def install(self):
        """Begins to keep signals."""
        if threading.current_thread() is not threading.main_thread():
            return
        for name in _NAMES:
            number = getattr(signal, name, None)
            earlier = number and signal.getsignal(number)
            # One that is None was installed by other than Python, and could not be restored.
            if earlier not in (None, signal.SIG_IGN, self._keep):
                self._earlier[number] = signal.signal(number, self._keep)

    def restore(self):
        """Ends the keeping: the earlier handlers are back."""
        while self._earlier:
            number, handler = self._earlier.popitem()
            if signal.getsignal(number) == self._keep:  # or else somebody has changed it since
                signal.signal(number, handler)

    def deliver(self):
        """Lets the signal act as it would have done; returns only if that ends nothing."""
        number, self.received = self.received, None
        self.restore()
        signal.raise_signal(number)

    @property
    def name(self) -> str:
        """The name of the signal that came."""
        return signal.Signals(self.received).name

    def _keep(self, number, frame):
        is_second = self.received == signal.SIGINT == number
        self.received = number
        if is_second:
            self.deliver()
