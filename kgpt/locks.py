"""One call at a time: a lock for each backbone, which all models over it share."""

import contextlib
import functools
import os
import threading
import weakref
from collections.abc import Callable
from typing import TypeVar

Method = TypeVar("Method", bound=Callable)

# Not an attribute of the backbone: what is saved, pickled and copied has nothing of a lock.
_of_backbones = weakref.WeakKeyDictionary()
_all = weakref.WeakSet()
_registry = threading.RLock()  # a model may be freed, and free others, while it is held


class Lock:
    """A lock that a thread may take again, given to waiting threads in the order they came.

    A thread that trains may keep it for hours: then others are not kept waiting, but told so.
    In a process that was forked it is free, unless the thread that forked held it.
    """

    def __init__(self):
        self._reset()
        with _registry:
            _all.add(self)

    def _reset(self):
        self._changed = threading.Condition()
        self._owner, self._is_training, self._waiting = None, False, []

    @contextlib.contextmanager
    def held(self, training: bool = False):
        """Holds the lock, until it is over.

        Args:
            training: bool. Whether the caller is in a `fit`.

        Raises:
            RuntimeError: if another thread is in a `fit`.
        """
        before = self._take(training)
        try:
            yield
        finally:
            with self._changed:
                self._owner, self._is_training = before
                self._changed.notify_all()

    def _take(self, training):
        """Waits for the lock, and returns what state to leave it in."""
        me, ticket = threading.get_ident(), object()
        with self._changed:
            before = self._owner, self._is_training
            if self._owner != me:
                self._waiting.append(ticket)
                try:
                    self._changed.wait_for(lambda: self._may_take(ticket))
                finally:
                    self._waiting.remove(ticket)
                    self._changed.notify_all()
                before = None, False
            self._owner, self._is_training = me, self._is_training or training
            self._changed.notify_all()  # of a `fit` that begins
            return before

    def _may_take(self, ticket):
        if self._is_training:
            raise RuntimeError(
                "One thread at a time can use a model, and another one is in the `fit` of this "
                "model or of one over the same backbone. Try the call in a callback of that `fit`, "
                "or a model with a copy of the weights."
            )
        return self._owner is None and self._waiting[0] is ticket

    def _after_fork(self):
        if self._owner != threading.get_ident():
            self._reset()
        else:  # the threads that waited are not in this process
            self._changed, self._waiting = threading.Condition(), []


def lock_of(model) -> Lock:
    """Returns the lock of a backbone, or of the backbone under a task."""
    backbone = getattr(model, "backbone", model)
    with _registry:
        if backbone not in _of_backbones:
            _of_backbones[backbone] = Lock()
        return _of_backbones[backbone]


def locked(method: Method, training: bool = False) -> Method:
    """Returns the method of a model with the backbone's lock held during each call.

    Args:
        method: function whose first argument is the model.
        training: bool. Whether it is a `fit`: other threads get an error in place of the lock.
    """

    @functools.wraps(method)
    def alone(model, *args, **kwargs):
        with lock_of(model).held(training):
            return method(model, *args, **kwargs)

    return alone


def _after_fork():
    global _registry
    _registry = threading.RLock()
    for lock in list(_all):
        lock._after_fork()


if hasattr(os, "register_at_fork"):  # there is no fork on Windows
    os.register_at_fork(after_in_child=_after_fork)
