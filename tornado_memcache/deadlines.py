"""Many deadlines behind one IOLoop timeout.

Knows moments, and lanes in which deadlines hardly ever fall from first to
last. It must not know what ends when a moment comes. Time enters the
package here: `clock` is monotonic, so a wall clock that is set moves no
deadline.
"""

import asyncio
import time
from collections.abc import Callable, Hashable
from contextvars import Context
from datetime import timedelta
from typing import Any, Protocol, TypeVar

from tornado.ioloop import IOLoop

_T = TypeVar("_T")

#: The clock of all deadlines, in seconds.
clock = time.monotonic
#: The longest length that is set at once, in seconds; a later moment is set anew.
LONGEST = 1e6
#: No moment at all.
NEVER = float("inf")


def detached(function: Callable[..., _T], *args: Any) -> _T:
    """Calls ``function`` in a new empty context: shared things are born there.

    Handlers and timeouts keep the context of the line that registers them
    alive, and would run in it. Each callback has an empty one of its own:
    a context can be entered by one thread at a time, and threads may have
    loops and clients of their own.
    """
    return Context().run(function, *args)


class Lane(Protocol):
    """Whatever holds deadlines in order."""

    def next_deadline(self) -> float:
        """Returns the earliest moment in the lane, `NEVER` if there is none."""

    def catch_up(self) -> None:
        """Reads what has come already: a reply in the socket wins over the timer."""

    def expire(self, now: float) -> None:
        """Ends what is due by ``now``, in one pass over the front of the lane."""


class Expiring(Protocol):
    """A call with a deadline of its own."""

    def expire(self) -> None: ...


class CallLane:
    """The calls whose deadlines were set with one length, or by one budget."""

    __slots__ = ("moments",)

    def __init__(self) -> None:
        self.moments: dict[Any, float] = {}

    def next_deadline(self) -> float:
        return next(iter(self.moments.values()), NEVER)

    def catch_up(self) -> None:
        pass

    def expire(self, now: float) -> None:
        due = []
        for call, moment in self.moments.items():
            if moment > now:
                break
            due.append(call)
        for call in due:
            self.moments.pop(call, None)
        for call in due:
            call.expire()


class Deadlines:
    """The register of all deadlines of one client on one loop.

    One timeout of the IOLoop watches the earliest. It may fire for
    something that has ended, and then it is set anew or goes. When
    nothing is registered it is removed, one callback after the callers
    that were woken had their turn: removing it first would set it anew
    in every call of a lone caller, for 3 us each.
    """

    def __init__(self, io_loop: IOLoop, loop: asyncio.AbstractEventLoop) -> None:
        self._io_loop = io_loop
        self._loop = loop
        self._timeout: object | None = None
        self._watched = NEVER
        self._busy: set[Lane] = set()
        self._lanes: dict[Hashable, CallLane] = {}
        self._settling = False

    @property
    def armed(self) -> bool:
        """True while the IOLoop holds a timeout of ours."""
        return self._timeout is not None

    def __len__(self) -> int:
        """The number of lanes that hold a deadline."""
        return len(self._busy)

    def watch(self, lane: Lane, moment: float) -> None:
        """Notes that ``lane`` holds a deadline at ``moment``."""
        self._busy.add(lane)
        if moment < self._watched:
            self._arm(moment)

    def rest(self, lane: Lane) -> None:
        """Notes that ``lane`` holds no deadline any more."""
        self.leave(lane)
        self.settle()

    def leave(self, lane: Lane) -> None:
        """As `rest`, by one who calls `settle` when the callers are woken."""
        self._busy.discard(lane)

    def settle(self) -> None:
        """Has the timeout removed, after those who were woken before, if it watches nothing."""
        if not self._busy and not self._settling and self._timeout is not None:
            self._settling = True
            self._loop.call_soon(self._settle, context=Context())

    def add(self, key: Hashable, moment: float, call: Expiring) -> None:
        """Registers one call. All calls of one ``key`` have moments that do not fall."""
        lane = self._lanes.get(key)
        if lane is None:
            lane = self._lanes[key] = CallLane()
        lane.moments[call] = moment
        self.watch(lane, moment)

    def remove(self, key: Hashable, call: Expiring) -> None:
        """Forgets a call that has ended."""
        lane = self._lanes.get(key)
        if lane is not None:
            lane.moments.pop(call, None)
            if not lane.moments:
                del self._lanes[key]
                self.rest(lane)

    def close(self) -> None:
        """Forgets everything and removes the timeout."""
        self._busy.clear()
        self._lanes.clear()
        self._disarm()

    def _settle(self) -> None:
        self._settling = False
        if not self._busy:
            self._disarm()

    def _disarm(self) -> None:
        self._watched = NEVER
        if self._timeout is not None:
            self._io_loop.remove_timeout(self._timeout)
            self._timeout = None

    def _arm(self, moment: float) -> None:
        self._disarm()
        self._watched = moment
        length = timedelta(seconds=min(max(0.0, moment - clock()), LONGEST))
        self._timeout = detached(self._io_loop.add_timeout, length, self._fire)

    def _fire(self) -> None:
        self._timeout = None
        # Nothing is armed while the due end: their callbacks may begin calls.
        self._watched = -NEVER
        try:
            now = clock()
            if any(lane.next_deadline() <= now for lane in self._busy):
                for lane in list(self._busy):
                    lane.catch_up()
                due = [lane for lane in self._busy if lane.next_deadline() <= now]
                # Calls first: a connection may be closed in the moment of the last deadline on
                # it, and what timed out then is not to be asked again.
                for lane in sorted(due, key=lambda lane: not isinstance(lane, CallLane)):
                    lane.expire(now)
            for key in [key for key, lane in self._lanes.items() if not lane.moments]:
                self.rest(self._lanes.pop(key))
        finally:
            self._watched = NEVER
            moment = min((lane.next_deadline() for lane in self._busy), default=NEVER)
            if moment < NEVER:
                self._arm(moment)
