"""One call over several requests: its parts, and how they become one outcome.

Knows that parts end one by one, some well and some not. It must not know
what the parts ask, nor of whom beyond a server's name.
"""

from collections.abc import Callable
from typing import Any

from .errors import MemcacheError
from .protocol import as_outcome, fail


class Part:
    """What waits on one slot of a `Fanout`."""

    __slots__ = ("_done", "_fanout", "_ended", "server", "work")

    def __init__(self, fanout: "Fanout", server: str, ended: Callable[[Any, bool], None]) -> None:
        self._fanout = fanout
        self._ended = ended
        self._done = False
        self.server = server
        #: The slot, or another call, that it waits on.
        self.work: Any = None

    @property
    def whole(self) -> Any:
        """Who waits for all parts."""
        return self._fanout.waiter

    @property
    def own_deadline(self) -> float | None:
        moment: float | None = getattr(self._fanout.waiter, "own_deadline", None)
        return moment

    def done(self) -> bool:
        return self._done or self._fanout.waiter.done()

    def exception(self) -> None:
        return None

    def set_result(self, result: Any) -> None:
        self._done = True
        unread = None
        try:
            self._ended(result, True)
        except Exception as error:
            unread = as_outcome(error, self.work.asked() if self.work is not None else "")
            self._fanout.note(self.server, unread)
        self._fanout.part_ended(unread, reached=True)

    def set_exception(self, error: MemcacheError) -> None:
        self._done = True
        self._fanout.note(self.server, error)
        self._ended(error, False)
        self._fanout.part_ended(error, reached=False)


class Fanout:
    """The parts of one call, and the waiter that gets their one outcome.

    ``result`` has ``errors`` and is filled by the parts. The call fails
    with the first error if every part failed, or with ``strict`` if any
    did; with neither, it never fails. A caller's own deadline ends the
    parts that are missing, and what came is the outcome.
    """

    def __init__(self, waiter: Any, result: Any, *, whole: bool, strict: bool = False) -> None:
        self.waiter = waiter
        self._result = result
        self._whole = whole
        self._strict = strict
        self._parts: list[Part] = []
        self._missing = 0
        self._failed = 0
        self._first_error: MemcacheError | None = None

    def part(self, server: str, ended: Callable[[Any, bool], None]) -> Part:
        """Returns the waiter of one more slot. ``ended(result or error, good)`` takes its end."""
        part = Part(self, server, ended)
        self._parts.append(part)
        self._missing += 1
        return part

    def note(self, server: str, error: MemcacheError) -> None:
        """Keeps the first error of each server."""
        self._result.errors.setdefault(server, error)

    def part_ended(self, error: MemcacheError | None, *, reached: bool) -> None:
        """Counts a part that has ended; a value that cannot be read is no failed server."""
        self._missing -= 1
        self._failed += not reached
        self._first_error = self._first_error or error
        if not self._missing:
            self.finish()

    def finish(self) -> None:
        """Ends the call; called by the last part, or at once when there is none."""
        if self.waiter.done():
            return
        everything = self._failed == len(self._parts) and self._whole
        if self._first_error is not None and (everything or self._strict):
            fail(self.waiter, self._first_error.twin())
        else:
            self.waiter.set_result(self._result)

    def expire_waiter(self, waiter: Any) -> None:
        """The caller's own deadline has come: the missing parts time out."""
        for part in [part for part in self._parts if not part.done()]:
            if part.work is not None and not part.done():
                part.work.expire_waiter(part)

    def waiter_left(self, waiter: Any) -> None:
        """The caller was cancelled: nobody waits for the parts."""
        for part in self._parts:
            if part.work is not None:
                part.work.waiter_left(part)
