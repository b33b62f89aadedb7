"""From a command to the slots that it becomes: the funnel of a client.

Knows how a call begins: where its key belongs, what waits for its outcome,
and who takes its request. It must not know a command, nor the options of a
client.
"""

import asyncio
import time
from collections.abc import Callable, Iterable, Sequence
from contextvars import Context
from functools import partial
from threading import get_ident
from typing import TYPE_CHECKING, Any

from . import deadlines
from .arguments import check_default, check_hashable, key_bytes
from .boundaries import Entry, entered
from .call import CallbackCall, FutureCall, Terms, check_callbacks
from .chain import Ask, Chain, Steps
from .cluster import Cluster
from .deadlines import Deadlines
from .errors import InvalidRequest, MemcacheError, Timeout, ValueTooLarge
from .fanout import Fanout
from .funnel import How, Key
from .gutter import shortened
from .meta_commands import MetaCommands
from .migration import Migration
from .observed import Found, observe, of_get, of_many, of_one, reading
from .observer import ObservedCall, Observers
from .outcomes import Replies, as_it_is, outdated
from .pool import Pool
from .protocol import Reply, Request, fail
from .settings import Settings
from .slots import slot_for
from .text import check_request, overtaken
from .values import Values

if TYPE_CHECKING:
    from typing_extensions import Unpack

#: So many checked keys are kept, as they are on the wire.
WIRES_KEPT = 4096


class Submitter(MetaCommands):
    """Makes each command a call on the pool of its key; whoever derives from it gives the rest."""

    #: What is brought over from ``migrate_from``, None without it.
    migration: Migration | None
    _cluster: Cluster
    _settings: Settings
    _values: Values
    _prefix: bytes
    #: Who is told of calls, None without an observer.
    _observers: Observers | None = None
    #: True if a call asks one cluster, and nobody is told of it: the way of most.
    _direct = True
    #: Makes of a hit what a gathered get that is observed has as its outcome.
    _finding: Callable[[bytes, bytes, int], Found]
    #: Keys that were checked, as they are on the wire.
    _wires: dict[str, bytes]

    @property
    def _pools(self) -> tuple[Pool, ...]:
        return self._cluster.pools

    @property
    def _deadlines(self) -> Deadlines | None:
        return self._cluster.deadlines

    # -- keys

    def _locate(
        self, key: Any, checked: Callable[[Any, bytes], bytes] = key_bytes
    ) -> tuple[bytes, Pool]:
        """Returns the key's bytes on the wire and the pool of its server."""
        if type(key) is tuple:
            if len(key) != 2:
                raise InvalidRequest("key as a tuple must be (route, key)")
            route, wire = _route(key[0]), checked(key[1], self._prefix)
            self._cluster.ready()
            return wire, self._cluster.pool_for(route)
        wire = checked(key, self._prefix)
        self._cluster.ready()
        return wire, self._cluster.pool_for(wire)

    def _locate_many(self, keys: Sequence[Any]) -> dict[Pool, dict[bytes, Any]]:
        cluster, known = self._cluster, self._wires
        asked: dict[Pool, dict[bytes, Any]] = {}
        if keys:
            cluster.ready()
        for key in keys:
            wire = known.get(key) if key.__class__ is str else None
            if wire is None:
                wire, pool = self._locate(key)
                if key.__class__ is str:
                    self._remember(key, wire)
                else:
                    check_hashable(key)
            else:
                pool = cluster.only or cluster.pool_for(wire)
            wires = asked.get(pool)
            if wires is None:
                wires = asked[pool] = {}
            same = wires.setdefault(wire, key)
            if same is not key:
                wires[wire] = [*same, key] if same.__class__ is list else [same, key]
        return asked

    def _remember(self, key: Any, wire: bytes) -> None:
        """Keeps a key that was checked: an application asks for the same ones again."""
        if len(self._wires) >= WIRES_KEPT:
            self._wires.clear()
        self._wires[key] = wire

    def _all_pools(self) -> Iterable[Pool]:
        self._cluster.ready()
        return self._cluster.pools

    # -- calls

    def _begin(
        self,
        default: Any = None,
        asked: Request | bytes | None = None,
        told: ObservedCall | None = None,
        /,
        *,
        timeout: float | None = None,
        callback: Callable[[Any], Any] | None = None,
        fail_callback: Callable[[Any], Any] | None = None,
        **unknown: Any,
    ) -> "tuple[Any, asyncio.Future[Any]]":
        """Begins a call: returns what waits for its outcome, and what the caller gets.

        The first is None when nothing is to be asked: the boundary of the
        caller has ended, or its budget is spent. ``asked`` names the call
        in such a failure: its request, or the key of a get. ``told`` is
        the call as observers are told of it, if there are any.
        """
        if unknown:
            raise TypeError(
                f"unexpected keyword argument {next(iter(unknown))!r}; beside its own arguments "
                "a command takes timeout, callback and fail_callback"
            )
        if not (callable(callback) and callable(fail_callback)):
            check_callbacks(callback, fail_callback)
        if default is not None:
            check_default(default)
        loop, register = self._cluster.loop, self._cluster.deadlines
        assert loop is not None and register is not None
        terms = None
        if timeout is not None or entered() is not None:
            terms = Terms(timeout, self._settings.request_timeout)
        waiter: CallbackCall | FutureCall
        future: Any = None
        if told is not None:
            waiter, future = observe(told, loop, register, terms, callback, fail_callback, default)
        elif callback is not None or fail_callback is not None:
            waiter = CallbackCall(register, terms, callback, fail_callback, default)
        elif default is None and (terms is None or terms.plain):
            plain = loop.create_future()
            return plain, plain
        else:
            waiter = future = FutureCall(loop, register, terms, default)
        if terms is not None and ends_at_once(loop, waiter, terms, asked):
            return None, future
        return waiter, future

    def get(  # the way of most calls, and so the shortest
        self,
        key: Key,
        default: Any = None,
        *,
        timeout: float | None = None,
        callback: Callable[[Any], Any] | None = None,
        fail_callback: Callable[[Any], Any] | None = None,
    ) -> "asyncio.Future[Any]":
        cluster = self._cluster
        loop = cluster.loop
        if loop is None or get_ident() != cluster.thread or not loop.is_running():
            loop = cluster.ready()
        wire = self._wires.get(key) if key.__class__ is str else None
        if wire is None:
            wire, pool = self._locate(key)
            if key.__class__ is str:
                self._remember(key, wire)
        else:
            pool = cluster.only or cluster.pool_for(wire)
        connection = pool.usable if self._direct else None
        if connection is not None and timeout is default is None and entered() is None:
            if callback is None and fail_callback is None:
                future = loop.create_future()
                connection.gather(wire, future, self._decode, self._raw_flags)
                return future
            if callable(callback) and callable(fail_callback):
                # (what `_begin` would come to, with a tenth less to do for the whole call)
                call = CallbackCall(cluster.deadlines, None, callback, fail_callback, None)
                call.work = connection.gather(wire, call, self._decode, self._raw_flags)
                return None  # type: ignore[return-value]
        how: Any = {"timeout": timeout, "callback": callback, "fail_callback": fail_callback}
        if connection is None:
            return self._get_indirect(key, wire, pool, default, how)
        waiter, future = self._begin(default, wire, **how)
        if waiter is not None:
            slot = connection.gather(wire, waiter, self._decode, self._raw_flags)
            if waiter.__class__ is not asyncio.Future:
                waiter.work = slot
        return future

    get.__doc__ = MetaCommands.get.__doc__

    def _get_indirect(
        self, key: Key, wire: bytes, pool: Pool, default: Any, how: Any
    ) -> "asyncio.Future[Any]":
        """A get that no connection takes at once, or that observers are told of.

        The latter is gathered as any other is.
        """
        if self._observers is None or self.migration is not None:
            return self._retrieve(b"get", key, default, 0, how)
        told = of_get(self._observers, pool.name, wire)
        waiter, future = self._begin(default, wire, told, **how)
        connection = pool.usable  # (whom observers have told may have closed it)
        if waiter is None:
            return future
        if connection is not None:
            waiter.work = connection.gather(wire, waiter, self._finding, None)
            return future
        request = Request(b"get", (wire,))
        outcome = reading(told, request, partial(self._value_of, wire, default))
        slot = waiter.work = slot_for(request, waiter, outcome, self._deadline())
        pool.submit(slot)
        return future

    def _submit(
        self, pool: Pool, request: Request, outcome: Callable[[Reply], Any], how: Any
    ) -> "asyncio.Future[Any]":
        migration = self.migration and self.migration.ready()
        if migration is not None:
            migration.check(request)
        told: tuple[ObservedCall, ...] = ()
        if self._observers is not None:
            told = (of_one(self._observers, pool.name, request),)
            outcome = reading(told[0], request, outcome)
        waiter, future = self._begin(None, request, *told, **how)
        if waiter is not None and migration is not None:
            chain = migration.chain(pool, request, waiter, outcome)
            if waiter.__class__ is not asyncio.Future:
                waiter.work = chain
            chain.start()
        elif waiter is not None:
            if pool.longest is not None:
                request = shortened(request, pool.longest, time.time)
            slot = slot_for(request, waiter, outcome, self._deadline())
            if waiter.__class__ is not asyncio.Future:
                waiter.work = slot
            pool.submit(slot)
        return future

    def _submit_many(
        self,
        parts: Iterable[tuple[Pool, Request, Callable[[Any, bool], None]]],
        result: Any,
        how: Any,
        *,
        whole: bool,
        strict: bool = False,
    ) -> "asyncio.Future[Any]":
        parts = list(parts)
        if not parts:
            return self._settle(result, how)
        migration = self.migration and self.migration.ready()
        if migration is not None:
            for _, request, _ in parts:
                migration.check(request)
        told: tuple[ObservedCall, ...] = ()
        if self._observers is not None:
            told, parts = of_many(self._observers, parts, result)
        waiter, future = self._begin(None, parts[0][1], *told, **how)
        if waiter is None:
            return future
        fanout = Fanout(waiter, result, whole=whole, strict=strict)
        if waiter.__class__ is not asyncio.Future:
            waiter.work = fanout
        deadline = self._deadline()
        begin: list[Callable[[], None]] = []
        for pool, request, take in parts:
            part = fanout.part(pool.name, take)
            if migration is not None:
                chain = part.work = migration.chain(pool, request, part, as_it_is)
                begin.append(chain.start)
            else:
                if pool.longest is not None:
                    request = shortened(request, pool.longest, time.time)
                slot = part.work = slot_for(request, part, as_it_is, deadline)
                begin.append(partial(pool.submit, slot))
        for one in begin:
            one()
        return future

    def _submit_steps(
        self, request: Request, steps: Steps, outcome: Callable[[Reply], Any], how: Any
    ) -> "asyncio.Future[Any]":
        waiter, future = self._begin(None, request, **how)
        if waiter is not None:
            loop, register = self._cluster.loop, self._cluster.deadlines
            assert loop is not None and register is not None
            length, told = self._settings.request_timeout, request.asked()
            chain = Chain(waiter, steps, outcome, told, loop, register, length, _nothing)
            if waiter.__class__ is not asyncio.Future:
                waiter.work = chain
            chain.start()
        return future

    def _ask(self, pool: Pool, request: Request) -> Steps:
        (reply,) = yield [Ask(pool, request, self._settings.request_timeout)]
        if isinstance(reply, MemcacheError):
            raise reply
        return reply

    def _settle(self, result: Any, how: Any) -> "asyncio.Future[Any]":
        """Gives an outcome that needs no server, on a later tick."""
        self._cluster.ready()
        waiter, future = self._begin(**how)
        if waiter is not None:
            loop = self._cluster.loop
            assert loop is not None
            loop.call_soon(_set_result, waiter, result, context=Context())
        return future

    # -- requests as they are

    def request(
        self, request: Request, *, route: Any = None, **how: "Unpack[How]"
    ) -> "asyncio.Future[Reply]":
        """Sends one `Request` as it is: bytes and flags in, a `Reply` out.

        The funnel of all commands, for those that have no method, and for
        proxies. Keys are checked and placed but get no ``key_prefix``;
        all must belong to one server. ``route`` chooses the server as in
        ``(route, key)``. Outcome: the `Reply`; with
        ``noreply`` an empty one as soon as the request is written.
        """
        self._check_request(request)
        pool = self._pool_of(request, route)
        if outdated(request.cas_unique, pool):
            return self._settle(overtaken(request), how)
        return self._submit(pool, request, as_it_is, how)

    def request_many(
        self, requests: Iterable[Request], **how: "Unpack[How]"
    ) -> "asyncio.Future[list[Reply | MemcacheError]]":
        """Sends many requests at once, each to its server, as `request` does.

        Outcome: a list, in the order of ``requests``, of each `Reply` or
        of the error that it came to. It never fails as a whole.
        """
        if isinstance(requests, (str, bytes, Request)) or not isinstance(requests, Iterable):
            raise TypeError(f"requests must be a list of Request, not {type(requests).__name__}")
        asked = [_with_route(request) for request in requests]
        replies = Replies([None] * len(asked))

        def take(index: int, outcome: Any, good: bool) -> None:
            replies[index] = outcome

        parts = []
        for index, (request, route) in enumerate(asked):
            self._check_request(request)
            pool = self._pool_of(request, route)
            if outdated(request.cas_unique, pool):
                take(index, overtaken(request), True)
            else:
                parts.append((pool, request, partial(take, index)))
        return self._submit_many(parts, replies, how, whole=False)

    def _check_request(self, request: Request) -> None:
        check_request(request)
        if len(request.value) > self._settings.max_value_size:
            raise ValueTooLarge(
                f"value has {len(request.value)} bytes; "
                f"max_value_size is {self._settings.max_value_size}"
            )

    def _pool_of(self, request: Request, route: Any) -> Pool:
        self._cluster.ready()
        if route is not None:
            return self._cluster.pool_for(_route(route))
        pools = {self._cluster.pool_for(key) for key in request.keys}
        if len(pools) > 1:
            raise InvalidRequest("keys belong to several servers; use get_multi")
        return pools.pop()

    def _deadline(self) -> float:
        return deadlines.clock() + self._settings.request_timeout

    def _encode(self, wire: bytes, value: Any, compress: bool = True) -> tuple[bytes, int]:
        return self._values.encode(wire, value, compress)


def _route(route: Any) -> bytes | int:
    """Returns what the ring takes for the route of a ``(route, key)``."""
    if isinstance(route, int) and not isinstance(route, bool):
        return route
    if isinstance(route, (str, bytes)):
        return key_bytes(route)
    raise TypeError(f"route must be an int, str or bytes, not {type(route).__name__}")


def _with_route(request: Any) -> tuple[Request, Any]:
    """Returns a request and its route, of which the second may be left out."""
    if isinstance(request, Request):
        return request, None
    if isinstance(request, tuple) and len(request) == 2:
        return request[1], request[0]
    raise TypeError("requests must be of Request or (route, Request)")


def _nothing(chain: Chain) -> None:
    """Nobody waits for its end but its caller."""


def ends_at_once(
    loop: asyncio.AbstractEventLoop, waiter: Any, terms: Terms, asked: Request | bytes | str | None
) -> bool:
    """True if the caller's boundary has ended, or its budget is spent: the call is told so.

    ``asked`` names it: its request, the key of a get, or as a message says it.
    """
    if terms.entry is not None and (ended := terms.entry.ended_by()) is not None:
        loop.call_soon(_cancel, waiter, ended, context=Context())
        return True
    if terms.own_deadline is not None and terms.own_deadline <= deadlines.clock():
        asked = Request(b"get", (asked,)) if isinstance(asked, bytes) else asked
        told = asked.asked() if isinstance(asked, Request) else asked or ""
        late = Timeout("its deadline had passed before it was made", phase="waiting", asked=told)
        loop.call_soon(fail, waiter, late, context=Context())
        return True
    return False


def _set_result(waiter: Any, result: Any) -> None:
    if not waiter.done():
        waiter.set_result(result)


def _cancel(waiter: Any, entry: Entry) -> None:
    entry.cancelled += waiter.cancel_by(entry)
