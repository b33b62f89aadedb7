"""A clock that stands still while this thread stands in line for a processor.

On a machine that does much else, the time between two lines of a test says
little of what was done between them. Linux tells how long a thread was ready
to run and did not; elsewhere this is the monotonic clock. Bounds from above
are measured by it, bounds from below are not.
"""

from __future__ import annotations

import contextlib
import time


def fair_clock() -> float:
    """Returns a moment in seconds: the monotonic clock's, less this thread's waiting in line."""
    with contextlib.suppress(OSError), open("/proc/thread-self/schedstat") as file:
        return time.monotonic() - int(file.read().split()[1]) / 1e9
    return time.monotonic()


class Stopwatch:
    """How long ago it was made, in seconds: in ``real`` time, and in ``fair`` time."""

    def __init__(self) -> None:
        self._real, self._fair = time.monotonic(), fair_clock()

    @property
    def real(self) -> float:
        return time.monotonic() - self._real

    @property
    def fair(self) -> float:
        return fair_clock() - self._fair
