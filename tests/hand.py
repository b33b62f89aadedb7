"""Clocks that a test turns by hand, so that no test has to wait for time to pass.

`Hand` stands still between two turns, and is the loop that lives by it: it
counts what is asked of it. `Shifted` is a real clock that can be set. Either
may be given where a clock is taken, or put in the place of one. It must not
know the package.
"""

from __future__ import annotations

from collections.abc import Callable
from contextvars import Context
from typing import Any


class Hand:
    """A clock that is turned by hand, and the loop that lives by it.

    Calling it gives the moment, ``now`` in seconds. As a loop it takes
    timeouts (``add_timeout``, ``remove_timeout``) and callbacks
    (``call_soon``), and runs what is due in `turn`.
    """

    def __init__(self, now: float = 1000.0) -> None:
        self.now = now
        self.timeouts: dict[object, tuple[float, Callable[[], Any]]] = {}
        self.soon: list[Callable[[], Any]] = []
        #: The contexts in which callbacks were to run.
        self.contexts: list[Context] = []
        self.added = 0
        self.fired = 0

    def __call__(self) -> float:
        return self.now

    def add_timeout(self, length: Any, callback: Callable[[], Any]) -> object:
        handle = object()
        self.timeouts[handle] = (self.now + length.total_seconds(), callback)
        self.added += 1
        return handle

    def remove_timeout(self, handle: object) -> None:
        del self.timeouts[handle]

    def call_soon(self, callback: Callable[[], Any], *, context: Context) -> None:
        self.contexts.append(context)
        self.soon.append(callback)

    def turn(self, seconds: float = 0.0) -> None:
        """Lets time pass, and runs the loop once."""
        self.now += seconds
        soon, self.soon = self.soon, []
        for callback in soon:
            callback()
        for handle, (when, callback) in list(self.timeouts.items()):
            if when <= self.now and self.timeouts.pop(handle, None):
                self.fired += 1
                callback()

    @property
    def watched(self) -> float:
        """The moment of the one timeout, in seconds; infinity without one."""
        assert len(self.timeouts) <= 1
        return min((round(when, 6) for when, _ in self.timeouts.values()), default=float("inf"))


class Shifted:
    """A clock that goes on as ``real`` does, and that a test sets by ``shift`` seconds."""

    def __init__(self, real: Callable[[], float]) -> None:
        self.real = real
        self.shift = 0.0

    def __call__(self) -> float:
        return self.real() + self.shift
