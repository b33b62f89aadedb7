"""How a run ends early: in order, with its processes ended and its figures kept.

Knows the signals by which a person, a terminal or a supervisor asks for the
end. It must not know what is running.
"""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
from collections.abc import Iterator
from typing import Any

#: Those that ask for the end: Ctrl-C, kill and timeout, a terminal that is closed.
SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


class Stopped(KeyboardInterrupt):
    """A signal asked for the end. ``status`` is what a shell expects then."""

    def __init__(self, number: int) -> None:
        super().__init__(signal.Signals(number).name)
        self.status = 128 + number


@contextlib.contextmanager
def orderly() -> Iterator[None]:
    """Meanwhile such a signal raises `Stopped`; only the first one, the way out is not cut."""

    def stop(number: int, frame: Any) -> None:
        for one in SIGNALS:
            signal.signal(one, signal.SIG_IGN)
        raise Stopped(number)

    # (What is ignored, as under nohup, stays so.)
    heeded = [one for one in SIGNALS if signal.getsignal(one) is not signal.SIG_IGN]
    before = {one: signal.signal(one, stop) for one in heeded}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def started_apart(line: list[str], **told: Any) -> subprocess.Popen[Any]:
    """Starts a process that a terminal's signals do not reach: who started it ends it."""
    return subprocess.Popen(line, start_new_session=True, **told)


def end(process: subprocess.Popen[Any]) -> None:
    """Ends a process that was `started_apart`, and all that it has started."""
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()
