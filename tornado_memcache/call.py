"""One call under way for one caller: its outcome, its deadline, its context.

Knows how a call ends: once, by whatever comes first, in this order:
deadline and boundary let go, then the outcome is delivered. It must not
know what was asked of which server.
"""

import asyncio
import logging
from collections.abc import Callable, Hashable
from contextvars import Context, copy_context
from typing import TYPE_CHECKING, Any, Protocol

from . import boundaries, deadlines
from .arguments import check_seconds
from .boundaries import Entry
from .deadlines import Deadlines
from .errors import MemcacheError

_log = logging.getLogger("tornado.application")


class Work(Protocol):
    """What a call waits for: a slot, or the parts of a call over several servers."""

    def expire_waiter(self, waiter: Any) -> None: ...
    def waiter_left(self, waiter: Any) -> None: ...


class _Ending:
    """What both styles of call share: letting go of deadline and boundary."""

    if not TYPE_CHECKING:
        # The attributes live in the subclasses: a Future allows no second base with slots.
        __slots__ = ()

    #: Ends the call because ``entry`` was cancelled; returns how many calls that were.
    cancel_by: Callable[[Entry], int]
    work: Work | None
    entry: Entry | None
    own_deadline: float | None
    _lane: Hashable
    _deadlines: Deadlines

    def _begin(self, deadlines: Deadlines, terms: "Terms | None") -> None:
        self.work = None
        if terms is None:
            self.entry = self.own_deadline = None
            return
        self.entry = terms.entry
        self.own_deadline = terms.own_deadline
        self._lane = terms.lane
        self._deadlines = deadlines
        if self.own_deadline is not None:
            deadlines.add(self._lane, self.own_deadline, self)
        if self.entry is not None:
            self.entry.add(self)

    def _let_go(self) -> None:
        if self.own_deadline is not None:
            self._deadlines.remove(self._lane, self)
        if self.entry is not None:
            self.entry.discard(self)

    def expire(self) -> None:
        """The call's own deadline has come."""
        if self.work is not None:
            self.work.expire_waiter(self)


class CallbackCall(_Ending):
    """A call whose outcome goes to a callback."""

    __slots__ = (
        "_callback",
        "_fail_callback",
        "_context",
        "_deadlines",
        "_done",
        "_lane",
        "default",
        "entry",
        "own_deadline",
        "work",
    )

    def __init__(
        self,
        deadlines: Deadlines | None,
        terms: "Terms | None",
        callback: Callable[[Any], Any] | None,
        fail_callback: Callable[[Any], Any] | None,
        default: Any,
    ) -> None:
        self._callback = callback
        self._fail_callback = fail_callback
        self._context: Context = copy_context()
        self._done = False
        self.default = default
        if terms is None:  # (as nearly always, and so without another call)
            self.work = self.entry = self.own_deadline = None
        else:
            assert deadlines is not None
            self._begin(deadlines, terms)

    def done(self) -> bool:
        return self._done

    def exception(self) -> None:
        return None

    def set_result(self, result: Any) -> None:
        self._done = True
        if self.entry is not None or self.own_deadline is not None:
            self._let_go()
        if self._callback is not None:
            boundaries.run(self._callback, result, self._context, self.entry)

    def set_exception(self, error: BaseException) -> None:
        self._done = True
        self._let_go()
        if self._fail_callback is not None:
            boundaries.run(self._fail_callback, error, self._context, self.entry)
        elif not isinstance(error, MemcacheError):  # (what an application's own code raised)
            boundaries.raised_by(self._callback, error, self._context, self.entry)
        elif self.entry is not None:
            self.entry.fail(error, self._context)
        else:
            _log.error(
                "A memcache call without fail_callback or boundary failed: %s (its callback is %s)",
                error,
                boundaries.name_of(self._callback),
            )

    def cancel_by(self, entry: Entry) -> int:
        if self._done:
            return 0
        self._done = True
        self._let_go()
        if self.work is not None:
            self.work.waiter_left(self)
        return 1


class FutureCall(_Ending, asyncio.Future):  # type: ignore[type-arg]
    """A call whose outcome is a Future, with terms of its own.

    Failing while nobody has attached to it, it hands its failure to its
    boundary: a write that nobody awaits must not fail unheard.
    """

    __slots__ = (
        "_attached",
        "_context",
        "_deadlines",
        "_lane",
        "default",
        "entry",
        "own_deadline",
        "work",
    )

    def __init__(
        self,
        loop: asyncio.AbstractEventLoop,
        deadlines: Deadlines,
        terms: "Terms | None",
        default: Any,
    ) -> None:
        super().__init__(loop=loop)
        self._attached = False
        self.default = default
        self._begin(deadlines, terms)
        self._context = copy_context() if self.entry is not None else None

    def add_done_callback(self, fn: Any, *, context: Context | None = None) -> None:
        self._attached = True
        # None itself, handed on, would mean the context in which the call ends.
        super().add_done_callback(fn, context=copy_context() if context is None else context)

    def set_result(self, result: Any) -> None:
        self._let_go()
        super().set_result(result)

    def set_exception(self, error: Any) -> None:
        self._let_go()
        super().set_exception(error)
        if self.entry is not None and not self._attached:
            assert self._context is not None
            if isinstance(error, MemcacheError):
                self.entry.fail(error, self._context)
            elif boundaries.raised(error, self.entry, self._context):
                self.exception()  # (told, and so retrieved)

    def cancel(self, msg: Any = None) -> bool:
        if self.done():
            return False
        self._let_go()
        super().cancel(msg)
        if self.work is not None:
            self.work.waiter_left(self)
        return True

    def cancel_by(self, entry: Entry) -> int:
        return int(self.cancel(entry))


class Terms:
    """What a caller asked for beside the request, captured when the call is made.

    A call without a timeout of its own, outside of any boundary, has None.
    """

    __slots__ = ("entry", "lane", "own_deadline")

    def __init__(self, timeout: float | None, request_timeout: float) -> None:
        self.entry = boundaries.current()
        self.own_deadline: float | None = None
        self.lane: Hashable = None
        budget = self.entry.budget if self.entry is not None else None
        if timeout is None and budget is None:
            return
        length = check_seconds("timeout", timeout) if timeout is not None else request_timeout
        moment = deadlines.clock() + length
        if budget is not None and budget.deadline < moment:
            self.own_deadline, self.lane = budget.deadline, budget
        elif timeout is not None or (budget and budget.deadline < moment + request_timeout):
            # (The usual length too: a line's runs from when it leaves, a turn later at most.)
            self.own_deadline, self.lane = moment, length

    @property
    def plain(self) -> bool:
        """True if there is nothing after all: a shield."""
        return self.entry is None and self.own_deadline is None


def check_callbacks(callback: object, fail_callback: object) -> None:
    """Raises `TypeError` that names a callback which cannot be called."""
    if callback is not None and not callable(callback):
        raise TypeError("callback must be callable: pass the function itself")
    if fail_callback is not None and not callable(fail_callback):
        raise TypeError("fail_callback must be callable: pass the function itself")
