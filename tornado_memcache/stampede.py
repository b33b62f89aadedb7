"""One computation for all who want a value that is missing, stale or soon to expire.

Knows what a caller may ask for, and how the first reading of each goes. It
must not know how a lease is kept, nor how a computation goes on.
"""

import asyncio
import logging
import time
from collections.abc import Callable
from contextvars import copy_context
from datetime import timedelta
from functools import partial
from typing import TYPE_CHECKING, Any, cast

from . import call
from .arguments import LONGEST_LENGTH, check_integer, check_seconds, wire_exptime
from .boundaries import entered
from .call import CallbackCall, FutureCall, check_callbacks
from .chain import Ask, Steps
from .computations import Caller, Computations, Place, Want
from .deadlines import NEVER, detached
from .errors import (
    ClientClosed,
    InvalidRequest,
    MemcacheError,
    MetaUnsupported,
    SerializationError,
    Timeout,
    shown,
)
from .funnel import How, Key
from .leases import (
    ALONE,
    HIT,
    WON,
    AddLeases,
    Found,
    Leases,
    MetaLeases,
    MigratingLeases,
    Terms,
    lock_key,
)
from .outcomes import as_it_is, reached
from .protocol import Reply, Request, fail
from .submit import Submitter, ends_at_once

if TYPE_CHECKING:
    from typing_extensions import Unpack

    from .pool import Pool

_log = logging.getLogger("tornado_memcache")

#: Seconds that one who computes has, unless set otherwise.
LOCK_TIMEOUT = 5.0


class Stampede(Submitter):
    """The commands by which one caller computes what many want."""

    #: What is computed in this process, and how often it was.
    computations: Computations

    def get_or_set(
        self,
        key: Key,
        factory: Callable[..., Any],
        exptime: "int | timedelta",
        *,
        stale: "int | timedelta | None" = None,
        early: "int | timedelta | None" = None,
        lock_timeout: float = LOCK_TIMEOUT,
        timeout: float | None = None,
        callback: Callable[[Any], Any] | None = None,
        fail_callback: Callable[[Any], Any] | None = None,
    ) -> "asyncio.Future[Any]":
        """Fetches a value, and where there is none has it computed, once, and stored.

        ``factory`` is a plain function without arguments, a coroutine
        function, or one that takes ``callback`` (so its parameter is
        called), which it calls once with the value. Of all callers in all
        processes that want the key at the same time one runs it; the
        others get what it made. ``exptime`` is an int of seconds (0: never
        expires) or a `~datetime.timedelta`.

        With ``stale`` the value is kept for so many seconds more, and
        served while somebody computes it anew; with ``early`` that begins
        so many seconds before it expires. Both are as an exptime. Who
        computes waits for it, the others do not.

        ``lock_timeout`` (seconds) is what one who computes has, and should
        be more than it takes: afterwards the next caller computes, and what
        the first one makes is returned to its callers and not stored. In
        this process they get what either of the two makes first.

        Outcome: the value. What ``factory`` raises is the failure of those
        who wait for it in this process, and somebody else's turn comes. A
        value that cannot be stored (`.NotSerializable`, `.ValueTooLarge`,
        `.ItemTooLarge`) is a failure too. While the server is away the
        value is computed, once in this process, and not stored.
        ``timeout`` (seconds) is for the whole; without it each request has
        ``request_timeout``, and the factory all the time that it takes.

        Source: protocol.txt, "Meta Get" (N, R), "Meta Set" (C) and "Meta
        Delete" (I); where a server has no meta commands, ``add`` of a lock.
        """
        terms = checked_terms(exptime, stale, early, lock_timeout)
        if not callable(factory):
            raise InvalidRequest("factory must be callable: pass the function itself")
        wire, pool = self._locate(key)
        caller, future = self._call(wire, timeout, callback, fail_callback)
        if caller is not None:
            want = Want(factory, terms.lock_timeout, copy_context(), self._values)
            FirstReading(self, pool, wire, terms, caller, want).begin()
        return future

    def invalidate(
        self, key: Key, stale_for: "int | timedelta | None" = None, **how: "Unpack[How]"
    ) -> "asyncio.Future[bool]":
        """Has `get_or_set` compute the value anew (protocol.txt, "Meta Delete", I and T).

        With ``stale_for`` (an int of seconds or a `~datetime.timedelta`,
        above 0) the value that is there is kept so long, and served while
        somebody computes; without it, it is deleted. What was being
        computed before is not stored any more. Outcome: False if the key
        was not there. The classic commands do not see that a value is
        stale. A server without meta commands deletes it in any case.
        """
        exptime = 0
        if stale_for is not None:
            exptime = _wire("stale_for", _seconds("stale_for", stale_for, 1))
        wire, pool = self._locate(key)
        # Whoever asks from now on wants what is made from now on.
        self.computations.forget((pool.name, wire))
        if self.migration is not None:
            self._ask_detached(pool, Request(b"delete", (lock_key(wire),)))
            return self._submit(pool, Request(b"delete", (wire,)), reached, how)
        if self._is_classic(pool):
            request = Request(b"delete", (wire,))
            return self._submit_steps(request, self._deletion(pool, wire), _was_there, how)
        words = b"" if stale_for is None else b"I T%d" % exptime
        request = Request(b"md", (wire,), argument=words)
        steps = self._invalidation(pool, wire, request)
        return self._submit_steps(request, steps, _was_there, how)

    def _invalidation(self, pool: "Pool", wire: bytes, request: Request) -> Steps:
        """Asks ``request``; where the server does not know it, value and lock are deleted."""
        length = self._settings.request_timeout
        (told,) = yield [Ask(pool, request, length)]
        if isinstance(told, MetaUnsupported):
            self.computations.note_classic(pool, told)
            return (yield from self._deletion(pool, wire))
        if isinstance(told, MemcacheError):
            raise told
        return told

    def _deletion(self, pool: "Pool", wire: bytes) -> Steps:
        """Deletes value and lock: as long as that is there, who has it may store what is old."""
        length, keys = self._settings.request_timeout, (wire, lock_key(wire))
        told = yield [Ask(pool, Request(b"delete", (key,)), length) for key in keys]
        for one in told:
            if isinstance(one, MemcacheError):
                raise one
        return cast(Reply, told[0])

    # -- what it takes

    def _call(
        self,
        wire: bytes,
        timeout: float | None,
        callback: Callable[[Any], Any] | None,
        fail_callback: Callable[[Any], Any] | None,
    ) -> "tuple[Caller | None, asyncio.Future[Any]]":
        """Returns what waits for the outcome, None if that has come, and what the caller gets.

        Beside its own timeout only a budget ends it: a factory has no usual length.
        """
        check_callbacks(callback, fail_callback)
        loop, register = self._cluster.loop, self._cluster.deadlines
        assert loop is not None and register is not None
        self.computations.bind(loop)
        terms = None
        if timeout is not None or entered() is not None:
            terms = call.Terms(timeout, NEVER)
        caller: Caller
        future: Any = None
        if callback is not None or fail_callback is not None:
            caller = CallbackCall(register, terms, callback, fail_callback, None)
        else:
            caller = future = FutureCall(loop, register, terms, None)
        if terms is not None and ends_at_once(loop, caller, terms, f"get_or_set {shown(wire)}"):
            return None, future
        return caller, future

    def _ask_detached(self, pool: "Pool", request: Request) -> "asyncio.Future[Reply]":
        """Asks for nobody in particular: under no boundary, in nobody's context."""
        return detached(self._submit, pool, request, as_it_is, {})

    def _is_classic(self, pool: "Pool") -> bool:
        """True if leases of this server are had by ``add``."""
        # (a chain asks two clusters, and has no way to know whose stub it has met)
        return self.migration is not None or self.computations.is_classic(pool)


class FirstReading:
    """The first request of one call: what it finds is the outcome, or a computation has it."""

    __slots__ = ("_caller", "_client", "_leases", "_pool", "_terms", "_want", "_wire")

    def __init__(
        self,
        client: Stampede,
        pool: "Pool",
        wire: bytes,
        terms: Terms,
        caller: Caller,
        want: Want,
    ) -> None:
        self._client, self._pool, self._wire = client, pool, wire
        self._terms, self._caller, self._want = terms, caller, want
        self._leases: Leases

    def begin(self) -> None:
        self._caller.work = self
        kind: type[Leases] = MetaLeases
        if self._client.migration is not None:
            kind = MigratingLeases
        elif self._client._is_classic(self._pool):
            kind = AddLeases
        self._read(kind)

    def _read(self, kind: type[Leases]) -> None:
        client, pool = self._client, self._pool
        self._leases = leases = kind(
            partial(client._ask_detached, pool), pool, self._wire, self._terms
        )
        how = {"callback": self._took, "fail_callback": self._failed}
        # Its outcome is looked at even if the caller has left: it may be a lease.
        detached(client._submit, pool, leases.reading(), leases.found, how)

    @property
    def _place(self) -> Place:
        return self._pool.name, self._wire

    def _took(self, found: Found) -> None:
        caller, table = self._caller, self._client.computations
        if found.state == HIT:
            if found.lease is not None:
                table.served(self._place, self._leases, found.lease, self._terms.lock_timeout)
            if not caller.done():
                self._give(found)
        elif not caller.done():
            table.take(self._place, self._leases, found, caller, self._want)
        elif found.state == WON and found.lease is not None:
            self._leases.release(found.lease)

    def _give(self, found: Found) -> None:
        item = found.item
        assert item is not None
        try:
            value = self._client._decode(self._wire, item.value, item.flags)
        except MemcacheError as error:
            fail(self._caller, error)
        else:
            self._caller.set_result(value)

    def _failed(self, error: MemcacheError) -> None:
        if self._caller.done():
            return
        if isinstance(error, MetaUnsupported):
            self._client.computations.note_classic(self._pool, error)
            self._read(AddLeases)
        elif isinstance(error, (ClientClosed, SerializationError)):
            fail(self._caller, error)
        else:
            table = self._client.computations
            table.take(self._place, self._leases, Found(ALONE), self._caller, self._want)

    # -- the caller

    def expire_waiter(self, caller: Any) -> None:
        asked = f"get_or_set {shown(self._wire)}"
        fail(caller, Timeout("timed out", server=self._pool.name, phase="reply", asked=asked))

    def waiter_left(self, caller: Any) -> None:
        """The caller was cancelled: `_took` sees it."""


def _was_there(reply: Reply) -> bool:
    return reply.status in (b"HD", b"DELETED")


def checked_terms(exptime: Any, stale: Any, early: Any, lock_timeout: Any) -> Terms:
    """Returns what a caller gave, in seconds; raises if any of it cannot be."""
    if isinstance(exptime, timedelta) and not exptime:
        raise InvalidRequest("exptime of no length: pass 0 for never")
    fresh = _seconds("exptime", exptime, 0)
    kept = 0 if stale is None else _seconds("stale", stale, 0)
    before = 0 if early is None else _seconds("early", early, 0)
    if not fresh and (kept or before):
        raise InvalidRequest("exptime must be above 0 with stale or early: 0 never expires")
    if fresh and before >= fresh:
        raise InvalidRequest("early must be less than exptime: it would be computed all the time")
    if kept + before > LONGEST_LENGTH:
        raise InvalidRequest("stale and early must be 30 days together at most")
    if check_seconds("lock_timeout", lock_timeout) >= LONGEST_LENGTH:
        raise InvalidRequest("lock_timeout must be less than 30 days")
    _wire("exptime and stale together" if kept else "exptime", fresh + kept)
    return Terms(fresh, kept, before, lock_timeout)


def _wire(name: str, seconds: int) -> int:
    """Returns a length as memcached takes it; a moment, or what it cannot hold, is refused."""
    try:
        return wire_exptime(seconds, time.time)
    except InvalidRequest:
        told = f"{name} must be a length from now that ends before 2^31 (the year 2038)"
        raise InvalidRequest(f"{told}, and no moment") from None


def _seconds(name: str, value: Any, lowest: int) -> int:
    """Returns a length in whole seconds, rounded up, of an int or a timedelta."""
    if isinstance(value, timedelta):
        value = value.days * 86400 + value.seconds + bool(value.microseconds)
    elif not isinstance(value, int) or isinstance(value, bool):
        raise TypeError(
            f"{name} must be an int or a timedelta (a length from now), not {type(value).__name__}"
        )
    return check_integer(name, value, lowest, (1 << 31) - 1)
