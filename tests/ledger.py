"""What a test left behind.

Knows how to look: at open files, at the event loops, at log records and at
the clients that were made. It may look at private parts of asyncio, Tornado
and the package, since nothing public tells; it must not know pytest.
`tests/test_house.py` shows that each kind of leak is found.

Of a loop that is no asyncio.BaseEventLoop it sees what `tests/uvloops.py`
shows, under the same names: every timer, whatever Tornado or anybody else
watches, every task and every exception handler's call. What uvloop's own
transports watch it cannot see, only their open files.
"""

from __future__ import annotations

import asyncio
import functools
import gc
import logging
import os
import re
import time
import weakref
from asyncio import runners
from collections.abc import Callable, Iterator
from typing import Any

from tornado.ioloop import IOLoop
from tornado.platform.asyncio import BaseAsyncIOLoop

#: The kinds of findings. A test may `Ledger.excuse` those it provokes.
KINDS = ("fd", "task", "timer", "handler", "log", "lost", "client", "pool")

#: The classes of the loops that tests run on.
LOOPS: list[Any] = [asyncio.BaseEventLoop]
#: Seconds that peers within this process get to see that a connection has gone.
GRACE = 0.25
_LOST = re.compile("never retrieved|was destroyed")
#: What asyncio's debug mode says of a machine that is slow.
_SLOW = re.compile("Executing .* took .* seconds")


class Expectation:
    """Log records that a test has declared, and those that came."""

    def __init__(
        self,
        name: str,
        pattern: str,
        level: int = logging.WARNING,
        times: int | range | None = None,
    ) -> None:
        self.name = name
        self.pattern = re.compile(pattern, re.DOTALL)
        self.level = level
        self.times = times
        self.records: list[logging.LogRecord] = []

    def take(self, record: logging.LogRecord) -> bool:
        """Takes ``record`` if it is one of those expected."""
        if self.name not in ("", "root", record.name) and not record.name.startswith(
            self.name + "."
        ):
            return False
        if record.levelno < self.level or not self.pattern.search(record.getMessage()):
            return False
        self.records.append(record)
        return True

    @property
    def count(self) -> int:
        return len(self.records)

    def met(self) -> bool:
        if self.times is None:
            return self.count > 0
        if isinstance(self.times, range):
            return self.count in self.times
        return self.count == self.times

    def __str__(self) -> str:
        times = "at least once" if self.times is None else f"{self.times} times"
        return (
            f"logger {self.name!r}, {self.pattern.pattern!r}, {times}; it came {self.count} times"
        )


class Ledger(logging.Handler):
    """Looks when a test begins and when it ends, and lists what is left.

    ``client_class`` is the class whose instances must be closed by the
    test; None looks up the package's own.
    """

    def __init__(self, client_class: type | None = None) -> None:
        super().__init__(logging.DEBUG)
        self.client_class = client_class
        self.expectations: list[Expectation] = []
        self.excused: set[str] = set()
        self.findings: list[tuple[str, str]] = []
        self._clients: list[weakref.ref[Any]] = []
        self._closed: list[weakref.ref[Any]] = []
        self._undo: list[Callable[[], None]] = []

    # -- the two moments

    def open(self, loop: asyncio.AbstractEventLoop | None = None) -> None:
        """Notes the base. ``loop`` is the test's own loop if it has one already."""
        self._loops = weakref.WeakSet([loop] if loop is not None else [])
        self._foreign = set(_open_loops()) - set(self._loops)
        for one in self._loops:
            getattr(one, "open_own_files", lambda: None)()
        self._fds = open_fds()
        self._handlers = {id(loop): watched_fds(loop) for loop in self._loops}
        logging.getLogger().addHandler(self)
        self._undo.append(lambda: logging.getLogger().removeHandler(self))
        self._watch_loops()
        self._watch_clients()

    def close(self) -> None:  # (logging.Handler has a close of the same sense)
        """Ends all watching."""
        while self._undo:
            self._undo.pop()()
        super().close()

    def settle(self) -> list[tuple[str, str]]:
        """Ends all watching and returns the findings, as (kind, text)."""
        try:
            loops = [loop for loop in _open_loops() if loop not in self._foreign]
            for loop in {*loops, *self._loops}:
                self.inspect(loop)
            gc.collect()
            self._inspect_clients()
            self._inspect_fds()
            self._inspect_expectations()
        finally:
            self.close()
        return [found for found in self.findings if found[0] not in self.excused]

    def excuse(self, *kinds: str) -> None:
        """Lets findings of ``kinds`` pass, in a test that provokes them."""
        for kind in kinds:
            if kind not in KINDS:
                raise ValueError(f"{kind!r} is not one of {KINDS}")
            self.excused.add(kind)

    def expect(
        self,
        name: str,
        pattern: str,
        *,
        level: int = logging.WARNING,
        times: int | range | None = None,
    ) -> Expectation:
        """Declares log records of logger ``name`` (or below) that match ``pattern``.

        ``times`` is how often: a number, a range, or None for at least once.
        """
        expectation = Expectation(name, pattern, level, times)
        self.expectations.append(expectation)
        logger = logging.getLogger(name)
        if logger.getEffectiveLevel() > level:
            before = logger.level
            logger.setLevel(level)
            self._undo.append(lambda: logger.setLevel(before))
        return expectation

    def found(self, kind: str, text: str) -> None:
        if (kind, text) not in self.findings:
            self.findings.append((kind, text))

    # -- log records

    def emit(self, record: logging.LogRecord) -> None:
        if any(expectation.take(record) for expectation in self.expectations):
            return
        if record.levelno < logging.WARNING:
            return
        if record.name == "asyncio" and _SLOW.match(record.getMessage()):
            return
        text = f"{record.levelname} from {record.name}: {record.getMessage()}"
        if record.exc_info and record.exc_info[1] is not None:
            text += f" [{record.exc_info[1]!r}]"
        kind = "lost" if record.name == "asyncio" and _LOST.search(text) else "log"
        self.found(kind, text)

    def _inspect_expectations(self) -> None:
        for expectation in self.expectations:
            if not expectation.met():
                self.found("log", f"expected, but not as declared: {expectation}")

    # -- loops

    def _watch_loops(self) -> None:
        """Looks at each loop before it is closed, since closing hides what is left."""

        def inspect_first(owner: Any, name: str, loop_of: Callable[[Any], Any]) -> None:
            real = getattr(owner, name)

            @functools.wraps(real)
            def looked(subject: Any, *args: Any, **kwargs: Any) -> Any:
                loop = loop_of(subject)
                if loop not in self._foreign:
                    self.inspect(loop)
                return real(subject, *args, **kwargs)

            self._replace(owner, name, looked)

        inspect_first(runners, "_cancel_all_tasks", lambda loop: loop)
        inspect_first(BaseAsyncIOLoop, "close", lambda io_loop: io_loop.asyncio_loop)
        for kind in LOOPS:
            inspect_first(kind, "close", lambda loop: loop)
            self._listen(kind)

    def _listen(self, kind: Any) -> None:
        """Hears what a loop's own exception handler is told: asyncio logs it only without one."""
        real = kind.call_exception_handler
        ledger = self

        def heard(self: Any, context: dict[str, Any]) -> None:
            message = str(context.get("message"))
            if self.get_exception_handler() is not None and _LOST.search(message):
                ledger.found("lost", f"{message} [{context.get('exception')!r}]")
            real(self, context)

        self._replace(kind, "call_exception_handler", heard)

    def _replace(self, owner: Any, name: str, new: Any) -> None:
        old, inherited = getattr(owner, name), name not in vars(owner)
        setattr(owner, name, new)
        self._undo.append(lambda: delattr(owner, name) if inherited else setattr(owner, name, old))

    def inspect(self, loop: asyncio.AbstractEventLoop) -> None:
        """Looks at one loop: tasks, our timers, what it watches.

        A loop that stands still is run for three iterations first, and for
        a moment longer if a peer in this process has something to end.
        """
        if loop.is_closed():
            return
        if not self.excused and _can_run(loop):
            _iterate(loop)
        for handle in our_timers(loop):
            self.found(
                "timer",
                f"live timer in {getattr(handle, '_when', 0) - loop.time():.3f} s: {handle!r}",
            )
        base = self._handlers.get(id(loop), {})
        if not self.excused and _can_run(loop):
            until = time.monotonic() + GRACE
            while time.monotonic() < until and (
                asyncio.all_tasks(loop) or watched_fds(loop).items() - base.items()
            ):
                _iterate(loop, 0.005)
        for task in asyncio.all_tasks(loop):
            self.found("task", f"pending: {task!r}")
            if not self.excused and _can_run(loop):
                task.cancel()  # (so that its end does not disturb the next test)
                _iterate(loop)
        for fd, name in sorted(watched_fds(loop).items() - base.items()):
            self.found("handler", f"the loop still watches fd {fd}: {name}")

    # -- files

    def _inspect_fds(self) -> None:
        until = time.monotonic() + GRACE
        while True:
            new = open_fds().items() - self._fds.items()
            if not new or time.monotonic() > until:
                break
            time.sleep(0.005)
        for fd, name in sorted(new):
            self.found("fd", f"open file {fd}: {name}")

    # -- clients

    def _watch_clients(self) -> None:
        kind: Any = self.client_class
        if kind is None:
            try:
                from tornado_memcache.client import Client
            except (ImportError, SyntaxError):
                return
            kind = Client
        made, closed = self._clients, self._closed
        init, close = kind.__init__, kind.close

        @functools.wraps(init)
        def noted_init(client: Any, *args: Any, **kwargs: Any) -> None:
            init(client, *args, **kwargs)
            made.append(weakref.ref(client))

        @functools.wraps(close)
        def noted_close(client: Any, *args: Any, **kwargs: Any) -> Any:
            closed.append(weakref.ref(client))
            for pool in pools_of(client):
                self._account(pool)
            return close(client, *args, **kwargs)

        self._replace(kind, "__init__", noted_init)
        self._replace(kind, "close", noted_close)

    def _account(self, pool: Any) -> None:
        """I5: idle + busy + connecting + late = open <= limit."""
        counts = pool.counts()
        parts = sum(counts[name] for name in ("idle", "busy", "connecting", "late"))
        if parts != counts["open"]:
            self.found("pool", f"{pool!r}: idle + busy + connecting + late != open: {counts}")
        if counts["open"] > counts["limit"]:
            self.found("pool", f"{pool!r}: more open than the limit: {counts}")

    def _inspect_clients(self) -> None:
        closed = [client() for client in self._closed]
        for client in [reference() for reference in self._clients]:
            if client is None:
                continue
            if not any(client is one for one in closed):
                self.found("client", f"never closed: {client!r}")
                continue
            deadlines = getattr(client, "_deadlines", None)
            if deadlines is not None and (len(deadlines) or deadlines.armed):
                self.found(
                    "client",
                    f"closed, but its register holds {len(deadlines)} deadlines "
                    f"(armed: {deadlines.armed}): {client!r}",
                )
            for timer in getattr(client, "timers", ()):
                if timer.armed:
                    self.found("client", f"closed, but its timer is set: {timer!r}")
            for pool in pools_of(client):
                counts = pool.counts()
                self._account(pool)
                for name in ("open", "waiting", "pending"):
                    if counts[name]:
                        self.found("pool", f"closed, but {name} is {counts[name]}: {pool!r}")


# -- how to look


def open_fds() -> dict[int, str]:
    """Returns the open files of this process: descriptor to what it is."""
    found = {}
    for name in os.listdir("/proc/self/fd"):
        try:
            found[int(name)] = os.readlink(f"/proc/self/fd/{name}")
        except OSError:  # (the listing's own descriptor)
            continue
    return found


def watched_fds(loop: Any) -> dict[int, str]:
    """Returns the descriptors that ``loop`` watches, without its own waker."""
    selector = getattr(loop, "_selector", None)
    watched = dict(selector.get_map() or {}) if selector is not None else {}
    own = getattr(loop, "_ssock", None)
    if own is not None:
        watched.pop(own.fileno(), None)
    found = {fd: repr(key.data) for fd, key in watched.items()} | getattr(loop, "watched", {})
    io_loop = IOLoop._ioloop_for_asyncio.get(loop)
    for fd, (file, handler) in getattr(io_loop, "handlers", {}).items():
        found[fd] = f"{file!r} for {handler!r}"
    return found


def our_timers(loop: Any) -> list[asyncio.TimerHandle]:
    """Returns the live timers on ``loop`` whose callback is the package's."""
    return [
        handle
        for handle in getattr(loop, "_scheduled", [])
        if not handle._cancelled and any(map(_is_ours, _unwrapped(handle)))
    ]


def pools_of(client: Any) -> list[Any]:
    """Returns the pools that ``client`` has made."""
    pools = getattr(client, "_pools", None) or ()
    return list(pools.values() if hasattr(pools, "values") else pools)


def _unwrapped(handle: Any) -> Iterator[Any]:
    """Yields the callables of a handle, through partials, wrappers and methods."""
    todo = [handle._callback, *(handle._args or ())]
    for _ in range(32):
        if not todo:
            return
        one = todo.pop(0)
        if not callable(one):
            continue
        yield one
        if isinstance(one, functools.partial):
            todo += [one.func, *one.args, *one.keywords.values()]
        if hasattr(one, "__wrapped__"):
            todo.append(one.__wrapped__)


def _is_ours(one: Any) -> bool:
    modules = [getattr(one, "__module__", None), type(getattr(one, "__self__", None)).__module__]
    return any(str(module).split(".")[0] == "tornado_memcache" for module in modules)


def _open_loops() -> list[asyncio.AbstractEventLoop]:
    return [loop for loop in list(IOLoop._ioloop_for_asyncio) if not loop.is_closed()]


def _can_run(loop: asyncio.AbstractEventLoop) -> bool:
    return not loop.is_running() and asyncio._get_running_loop() is None


def _iterate(loop: asyncio.AbstractEventLoop, pause: float = 0) -> None:
    async def turns() -> None:
        for _ in range(3):
            await asyncio.sleep(pause)

    loop.run_until_complete(turns())
