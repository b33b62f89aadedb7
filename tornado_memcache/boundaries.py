"""Where the failures of calls go that nobody else takes.

Knows which boundary is the current one, how an error finds the boundary
that catches it, and how a user's callback is run. It must not know what a
call asks of whom: any member that has ``cancel`` will do.
"""

import asyncio
import functools
import inspect
import logging
from collections.abc import Callable
from contextvars import Context, ContextVar, copy_context
from types import TracebackType
from typing import Any, Protocol, TypeVar

from . import deadlines
from .arguments import check_seconds
from .errors import InvalidRequest, MemcacheError

_F = TypeVar("_F", bound=Callable[..., Any])

_log = logging.getLogger("tornado.application")
_current: ContextVar["Entry | None"] = ContextVar("tornado_memcache.boundary", default=None)
#: Returns the innermost entry, a shield's too: None is the common case, told at once.
entered = _current.get
#: Callbacks that are coroutines, until they are done: the loop holds them weakly.
_tasks: set["asyncio.Future[Any]"] = set()


class Member(Protocol):
    """What a boundary can cancel: a call, or an entry of a boundary within."""

    def cancel_by(self, entry: "Entry") -> int: ...


def current() -> "Entry | None":
    """Returns the entry of the innermost boundary, None without one or behind a shield."""
    entry = _current.get()
    return None if entry is None or entry.boundary.fail_callback is None else entry


class Entry:
    """One entry of a `boundary`: what its ``with`` statement gives.

    ``cancelled`` counts the calls that were cancelled or failed after
    the one failure of a ``once`` boundary.
    """

    __slots__ = (
        "boundary",
        "outer",
        "budget",
        "deadline",
        "ended",
        "cancelled",
        "_around",
        "_members",
    )

    def __init__(self, boundary: "boundary", outer: "Entry | None") -> None:
        self.boundary = boundary
        self.outer = outer
        #: The entry that this one ends with: a shield ends with nobody.
        self._around = None if boundary.fail_callback is None else outer
        self.ended = False
        self.cancelled = 0
        self._members: dict[Member, None] = {}
        #: The entry whose deadline binds the calls under this one, if any.
        self.budget: Entry | None = None
        self.deadline = deadlines.NEVER
        if boundary.fail_callback is None:
            return
        self.budget = outer.budget if outer is not None else None
        if boundary.timeout is not None:
            self.deadline = deadlines.clock() + boundary.timeout
            if self.budget is None or self.deadline < self.budget.deadline:
                self.budget = self

    def cancel(self) -> None:
        """Cancels every call under way under this entry, and what it begins later."""
        self.cancel_by(self)

    # (No recursion: a callback that enters a boundary anew at each step nests without end.)

    def cancel_by(self, entry: "Entry") -> int:
        ending: list[tuple[Entry, int]] = [(self, 0)]
        counts = [0]
        for place, (one, _) in enumerate(ending):  # (it grows by the entries within)
            one.ended = True
            members, one._members = one._members, {}
            if members and one._around is not None:
                one._around.discard(one)
            for member in members:
                if isinstance(member, Entry):
                    ending.append((member, place))
                    counts.append(0)
                else:
                    counts[place] += member.cancel_by(entry)
        for place in range(len(ending) - 1, -1, -1):
            one, around = ending[place]
            one.cancelled += counts[place]
            if place:
                counts[around] += counts[place]
        return counts[0]

    def add(self, member: Member) -> None:
        """Notes a call that has begun under this entry."""
        entry: Entry = self
        while True:
            first = not entry._members
            entry._members[member] = None
            if not first or entry._around is None:
                return
            member, entry = entry, entry._around

    def discard(self, member: Member) -> None:
        """Forgets a call that has ended."""
        entry: Entry = self
        while entry._members.pop(member, member) is None:
            if entry._members or entry._around is None:
                return
            member, entry = entry, entry._around

    def ended_by(self) -> "Entry | None":
        """Returns the entry that was cancelled, this one or one around it, if any was."""
        entry: Entry | None = self
        while entry is not None and not entry.ended:
            entry = entry._around
        return entry

    def fail(self, error: BaseException, context: Context) -> None:
        """Delivers ``error`` to the boundary's fail_callback, once for each object."""
        if isinstance(error, MemcacheError):
            if self in error.reached:
                return
            error.reached += (self,)
        if self.ended_by() is not None:
            self.cancelled += 1
            if not isinstance(error, MemcacheError):
                _log.error("Exception after the end of %r", self.boundary, exc_info=error)
            return
        if self.boundary.once:
            self.cancel()
        fail_callback = self.boundary.fail_callback
        assert fail_callback is not None
        run(fail_callback, error, context, self.outer)

    def __repr__(self) -> str:
        state = "ended" if self.ended else f"{len(self._members)} under way"
        return f"<entry of {self.boundary!r}, {state}, {self.cancelled} cancelled>"


class boundary:
    """A context manager to which the failures of calls go.

    ``fail_callback(error)``, plain or a coroutine function, is called
    with each failure of a call that was begun under the boundary, at any
    depth of callbacks, and with an exception that is raised in the body
    or by a callback, if the boundary catches it: a `.MemcacheError` other
    than `.InvalidRequest`, or what ``catch`` (an exception class or a
    tuple of them) adds. It runs with the next boundary out as the
    current one, and what it raises goes there.

    With ``once`` the first failure is delivered, and the other calls
    under the boundary are cancelled and counted. ``timeout`` (seconds)
    gives everything that begins under one entry one shared deadline.
    ``boundary(None)`` shields: calls under it have no boundary and no
    budget, as begun outside of any.

    ``with boundary(...) as entry`` gives an `Entry`, whose ``cancel()``
    cancels what is under way. One object may be entered many times, by
    several tasks. It also decorates functions and coroutine functions,
    which return None after a failure that the boundary took.

    A failure that is raised in the body, as by an ``await`` there, leaves
    the ``with`` statement, and what stands behind it goes on: answer the
    page within the body, or decorate the coroutine.

    A callback runs under the boundary of its call. One that enters a
    boundary and makes the next call there nests a level deeper at each
    step: where that has no end, enter it around all of them, or shield.
    """

    def __init__(
        self,
        fail_callback: Callable[[Any], Any] | None,
        *,
        once: bool = False,
        timeout: float | None = None,
        catch: type[Exception] | tuple[type[Exception], ...] = (),
    ) -> None:
        if fail_callback is None:
            if once or timeout is not None or catch:
                raise TypeError("boundary(None) shields and takes no other argument")
        elif not callable(fail_callback):
            raise TypeError("fail_callback must be callable")
        kinds = catch if isinstance(catch, tuple) else (catch,)
        if not all(isinstance(kind, type) and issubclass(kind, Exception) for kind in kinds):
            raise TypeError("catch must be an exception class or a tuple of them")
        self.fail_callback = fail_callback
        self.once = once
        self.timeout = None if timeout is None else check_seconds("timeout", timeout)
        self._catch = kinds

    def catches(self, error: BaseException) -> bool:
        """Returns True if ``error`` is of a kind that this boundary takes."""
        if self.fail_callback is None:
            return False
        if isinstance(error, self._catch):
            return True
        return isinstance(error, MemcacheError) and not isinstance(error, InvalidRequest)

    def __enter__(self) -> Entry:
        entry = Entry(self, _current.get())
        _current.set(entry)
        return entry

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> bool:
        entry = _current.get()
        if entry is None or entry.boundary is not self:
            raise RuntimeError("a boundary was left in another context than it was entered in")
        _current.set(entry.outer)
        if error is None:
            return False
        if isinstance(error, asyncio.CancelledError):
            return entry.ended and _was_cancelled_by(error, entry)
        if not self.catches(error):
            return False
        entry.fail(error, copy_context())
        return True

    def __call__(self, function: _F) -> _F:
        if not callable(function):
            raise TypeError("a boundary decorates a function or a coroutine function")
        if inspect.isgeneratorfunction(function) or inspect.isasyncgenfunction(function):
            raise TypeError("a boundary cannot decorate a generator")
        if inspect.iscoroutinefunction(function):

            @functools.wraps(function)
            async def covered(*args: Any, **kwargs: Any) -> Any:
                with self:
                    return await function(*args, **kwargs)

        else:

            @functools.wraps(function)
            def covered(*args: Any, **kwargs: Any) -> Any:
                with self:
                    return function(*args, **kwargs)

        return covered  # type: ignore[return-value]

    @staticmethod
    def wrap(function: Callable[..., Any]) -> Callable[..., Any]:
        """Returns ``function`` bound to the current boundary and context.

        For callbacks that others call: `.IOLoop.add_timeout`,
        ``Future.add_done_callback``. What ``function`` raises goes to the
        boundary that catches it, else on to whoever called; a coroutine
        function is run as a task. As ``stack_context.wrap`` did.
        """
        if not callable(function):
            raise TypeError("function must be callable")
        context, entry = copy_context(), _current.get()

        @functools.wraps(function)
        def wrapped(*args: Any, **kwargs: Any) -> Any:
            ours = context.copy()
            try:
                result = ours.run(function, *args, **kwargs)
            except Exception as error:
                if not raised(error, entry, ours):
                    raise
                return None
            if inspect.isawaitable(result):
                _follow(result, function, ours, entry)
                return None
            return result

        return wrapped

    def __repr__(self) -> str:
        return f"boundary({name_of(self.fail_callback)}{', once=True' if self.once else ''})"


def _was_cancelled_by(error: asyncio.CancelledError, entry: Entry) -> bool:
    """True if the call that the body awaited was cancelled by ``entry``.

    A body that is left because its task was cancelled must be told so.
    """
    if not error.args or error.args[0] is not entry:
        return False
    # Both at once: from Python 3.11 on the task tells that it was cancelled too.
    cancelling = getattr(asyncio.current_task(), "cancelling", None)
    return cancelling is None or not cancelling()


def raised(error: BaseException, entry: Entry | None, context: Context) -> bool:
    """Hands ``error`` to the innermost boundary from ``entry`` on that catches it."""
    while entry is not None and entry.boundary.fail_callback is not None:
        if entry.boundary.catches(error):
            entry.fail(error, context)
            return True
        entry = entry.outer
    return False


def run(
    callback: Callable[[Any], Any], argument: Any, context: Context, entry: Entry | None
) -> None:
    """Runs a user's callback in ``context`` with ``entry`` as the current boundary.

    What it raises goes to the boundary that catches it, else to the log,
    as from any callback of Tornado. Nothing comes out but what must end
    the process.
    """
    try:
        if context.get(_current) is entry:  # (as it nearly always is)
            result = context.run(callback, argument)
        else:
            result = context.run(_call, callback, argument, entry)
    except (Exception, asyncio.CancelledError) as error:
        raised_by(callback, error, context, entry)
        return
    if result is not None and inspect.isawaitable(result):
        _follow(result, callback, context, entry)


def _call(callback: Callable[[Any], Any], argument: Any, entry: Entry | None) -> Any:
    _current.set(entry)
    return callback(argument)


def name_of(function: object) -> str:
    """Returns the name of a user's function, without what a partial or an object holds."""
    while isinstance(function, functools.partial):
        function = function.func
    name = getattr(function, "__qualname__", None) or type(function).__qualname__
    module = getattr(function, "__module__", None)
    return f"{module}.{name}" if module else str(name)


def raised_by(
    callback: object, error: BaseException, context: Context, entry: Entry | None
) -> None:
    """Hands what ``callback`` raised to the boundary that catches it, else to the log."""
    if not raised(error, entry, context):
        _log.error("Exception in callback %s", name_of(callback), exc_info=error)


def _follow(
    result: Any, callback: Callable[..., Any], context: Context, entry: Entry | None
) -> None:
    """Runs what a coroutine callback returned as a task; its failure is the callback's."""
    try:
        loop = asyncio.get_running_loop()
    except RuntimeError:
        # A client was closed while its loop stood still. (A coroutine that never ran warns.)
        _log.error("The coroutine callback %s was not run: no loop is running", name_of(callback))
        if inspect.iscoroutine(result):
            result.close()
        return
    if not asyncio.isfuture(result):  # (that may be of another loop)
        result = context.run(functools.partial(asyncio.ensure_future, result, loop=loop))
    task: asyncio.Future[Any] = result
    _tasks.add(task)

    def ended(task: "asyncio.Future[Any]") -> None:
        _tasks.discard(task)
        if not task.cancelled() and (error := task.exception()) is not None:
            raised_by(callback, error, context, entry)

    task.add_done_callback(ended, context=Context())
