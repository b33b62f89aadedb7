"""Timeouts of an IOLoop that have a name: what a client does from time to time.

Knows whether one is set, and for when. It must not know what it is for, and
keeps neither a loop nor whoever set it alive: the callback is held weakly.
"""

import random
import weakref
from collections.abc import Callable
from datetime import timedelta
from typing import Any

from tornado.ioloop import IOLoop

from .deadlines import LONGEST, clock, detached

#: What many clients do at every so often, they do not do all at once.
JITTER = 0.1


class NamedTimer:
    """One timeout under a name, set or not. ``callback`` is a method, held weakly."""

    def __init__(self, name: str, io_loop: IOLoop, callback: Callable[[], Any]) -> None:
        self.name = name
        self._io_loop = io_loop
        self._callback = weakref.WeakMethod(callback)
        self._timeout: object | None = None
        self._moment = 0.0

    @property
    def armed(self) -> bool:
        """True while the IOLoop holds it."""
        return self._timeout is not None

    def start(self, seconds: float, *, jitter: float = 0.0) -> None:
        """Sets it, unless it is set; ``jitter`` shortens the length by up to that share."""
        if self._timeout is None:
            seconds *= random.uniform(1 - jitter, 1)
            self._moment = clock() + seconds
            length = timedelta(seconds=min(max(0.0, seconds), LONGEST))
            self._timeout = detached(self._io_loop.add_timeout, length, self._fire)

    def stop(self) -> None:
        if self._timeout is not None:
            self._io_loop.remove_timeout(self._timeout)
            self._timeout = None

    def _fire(self) -> None:
        self._timeout = None
        callback = self._callback()
        if callback is not None:
            callback()

    def __repr__(self) -> str:
        left = f"in {max(0.0, self._moment - clock()):.1f} s" if self.armed else "not set"
        return f"<{self.name} {left}>"
