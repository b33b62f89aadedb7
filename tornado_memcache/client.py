"""The native client: commands over one funnel, a ring, and the pools.

Knows which pool a key belongs to, how a call begins, and on which loop it
lives. It must not know a wire format, a socket, or who is dead.
"""

import asyncio
import logging
from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING, Any

from tornado.ioloop import IOLoop
from tornado.netutil import Resolver

from . import boundaries, deadlines
from .address import parse_servers
from .arguments import key_bytes
from .call import CallbackCall, FutureCall, Terms, check_callbacks
from .commands import Commands, How, Key
from .deadlines import NOBODY, Deadlines
from .errors import (
    InvalidKey,
    InvalidRequest,
    MemcacheError,
    NotSerializable,
    SerializationError,
    ValueTooLarge,
    shown,
)
from .fanout import Fanout
from .pool import Pool
from .protocol import Reply, Request
from .ring import key_hash, make_ring
from .serializer import Plain, Serializer
from .settings import DEFAULT_VALUE_SIZE, Settings
from .slots import slot_for
from .text import check_request

if TYPE_CHECKING:
    from typing_extensions import Unpack

_log = logging.getLogger("tornado_memcache")


class Client(Commands):
    """A client of one or many memcached servers.

    ``servers`` is a list of ``"host"``, ``"host:port"``, ``"[v6]:port"``,
    ``"unix:/path"`` or ``(server, weight)``. ``connect_timeout`` (seconds)
    covers the look-up and all addresses of a server; ``request_timeout``
    (seconds) is the length after which any call has its outcome. At most
    ``max_connections`` are opened to a server, and at most
    ``max_pending`` calls are under way to it. A dead server is tried again
    after a pause that grows up to ``dead_retry`` seconds. ``ring`` places
    the keys, ``serializer`` turns values into bytes, values over
    ``max_value_size`` bytes are refused, and ``key_prefix`` goes before
    every key.

    A client may be made before any loop runs. It belongs to the loop of
    its first call; once that loop is closed it can be used on another.
    """

    def __init__(
        self,
        servers: Iterable[Any],
        *,
        connect_timeout: float = 0.5,
        request_timeout: float = 1.0,
        max_connections: int = 4,
        max_pending: int = 100_000,
        dead_retry: float = 30.0,
        silences_until_dead: int = 3,
        ring: str = "modulo",
        on_dead: str = "fail",
        serializer: Serializer | None = None,
        max_value_size: int = DEFAULT_VALUE_SIZE,
        key_prefix: str | bytes = b"",
        resolver: Resolver | None = None,
    ) -> None:
        self.servers = parse_servers(servers)
        self._settings = Settings(
            connect_timeout,
            request_timeout,
            max_connections,
            max_pending,
            dead_retry,
            silences_until_dead,
            max_value_size,
        ).checked()
        if on_dead != "fail":
            raise InvalidRequest(f"on_dead {shown(on_dead)} is not one of: fail")
        self._ring = make_ring(ring, self.servers)
        self._serializer: Serializer = Plain() if serializer is None else serializer
        self._raw_flags = self._serializer.raw_flags
        self._prefix = _checked_prefix(key_prefix)
        self._resolver = resolver
        self._closed = False
        self._loop: asyncio.AbstractEventLoop | None = None
        self._deadlines: Deadlines | None = None
        self._pools: tuple[Pool, ...] = ()
        self._only: Pool | None = None

    # -- the loop

    def _bind(self, loop: asyncio.AbstractEventLoop) -> None:
        """Makes the pools on the loop of the first call."""
        if self._loop is not None:
            if not self._loop.is_closed():
                raise RuntimeError(
                    "this Client belongs to another event loop, which is not closed; "
                    "make one Client for each loop"
                )
            self._abandon()
        io_loop = IOLoop.current()
        resolver = self._resolver if self._resolver is not None else Resolver()
        register = Deadlines(io_loop, loop)
        self._pools = tuple(
            Pool(server, self._settings, register, io_loop, loop, resolver)
            for server in self.servers
        )
        self._only = self._pools[0] if len(self._pools) == 1 else None
        self._loop, self._deadlines = loop, register
        if self._closed:
            for pool in self._pools:
                pool.close()

    def _abandon(self) -> None:
        """Lets go of the pools of a closed loop: nobody there can be told anything."""
        lost = sum(pool.abandon() for pool in self._pools)
        if lost:
            _log.warning("%d memcache calls were lost with their event loop", lost)

    def close(self) -> None:
        """Closes all connections; calls under way fail with `.ClientClosed`.

        Calls made afterwards fail with it too. May be called twice.
        """
        self._closed = True
        if self._loop is not None and self._loop.is_closed():
            self._abandon()
            self._pools, self._only, self._loop = (), None, None
        for pool in self._pools:
            pool.close()
        if self._deadlines is not None:
            self._deadlines.close()

    async def __aenter__(self) -> "Client":
        return self

    async def __aexit__(self, *exc_info: object) -> None:
        self.close()

    def __repr__(self) -> str:
        if self._pools:
            return f"<Client {' '.join(map(repr, self._pools))}>"
        state = "closed" if self._closed else "not connected"
        return f"<Client {' '.join(server.name for server in self.servers)} {state}>"

    # -- the funnel

    def _ready(self) -> asyncio.AbstractEventLoop:
        try:
            loop = asyncio.get_running_loop()
        except RuntimeError:
            raise RuntimeError(
                "a memcache call needs a running event loop: "
                "make it in a handler, a coroutine or a callback of the IOLoop"
            ) from None
        if loop is not self._loop:
            self._bind(loop)
        return loop

    def _locate(self, key: Any) -> tuple[bytes, Pool]:
        """Returns the key's bytes on the wire and the pool of its server."""
        if type(key) is tuple:
            if len(key) != 2:
                raise InvalidRequest("key as a tuple must be (route, key)")
            route, wire = _route(key[0]), key_bytes(key[1], self._prefix)
            self._ready()
            return wire, self._pools[self._ring.place(route)]
        wire = key_bytes(key, self._prefix)
        self._ready()
        only = self._only
        return wire, self._pools[self._ring.place(wire)] if only is None else only

    def _all_pools(self) -> Iterable[Pool]:
        self._ready()
        return self._pools

    def _begin(
        self,
        default: Any = None,
        /,
        *,
        timeout: float | None = None,
        callback: Callable[[Any], Any] | None = None,
        fail_callback: Callable[[Any], Any] | None = None,
    ) -> "tuple[Any, asyncio.Future[Any]]":
        """Begins a call: returns what waits for its outcome, and what the caller gets.

        The first is None when there is nothing to wait for, because the
        boundary of the caller has ended.
        """
        check_callbacks(callback, fail_callback)
        assert self._loop is not None and self._deadlines is not None
        terms = Terms(timeout, self._settings.request_timeout)
        waiter: CallbackCall | FutureCall
        future: Any = None
        if callback is not None or fail_callback is not None:
            waiter = CallbackCall(self._deadlines, terms, callback, fail_callback, default)
        elif terms.entry is None and terms.own_deadline is None and default is None:
            plain = self._loop.create_future()
            return plain, plain
        else:
            waiter = future = FutureCall(self._loop, self._deadlines, terms, default)
        if terms.entry is not None and (ended := terms.entry.ended_by()) is not None:
            self._loop.call_soon(_cancel, waiter, ended, context=NOBODY)
            return None, future
        return waiter, future

    def get(  # the way of most calls, and so the shortest
        self, key: Key, default: Any = None, **how: "Unpack[How]"
    ) -> "asyncio.Future[Any]":
        wire, pool = self._locate(key)
        connection = pool.usable
        if connection is None:
            return self._retrieve(b"get", key, default, 0, how)
        if default is None and not how and boundaries.current() is None:
            assert self._loop is not None
            future = self._loop.create_future()
            connection.gather(wire, future, self._decode, self._raw_flags)
            return future
        waiter, future = self._begin(default, **how)
        if waiter is not None:
            slot = connection.gather(wire, waiter, self._decode, self._raw_flags)
            if waiter.__class__ is not asyncio.Future:
                waiter.work = slot
        return future

    get.__doc__ = Commands.get.__doc__

    def _submit(
        self, pool: Pool, request: Request, outcome: Callable[[Reply], Any], how: Any
    ) -> "asyncio.Future[Any]":
        waiter, future = self._begin(**how)
        if waiter is not None:
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
        waiter, future = self._begin(**how)
        if waiter is None:
            return future
        fanout = Fanout(waiter, result, whole=whole, strict=strict)
        if waiter.__class__ is not asyncio.Future:
            waiter.work = fanout
        deadline = self._deadline()
        slots = []
        for pool, request, take in parts:
            part = fanout.part(pool.name, take)
            part.slot = slot_for(request, part, _reply, deadline)
            slots.append((pool, part.slot))
        for pool, slot in slots:
            pool.submit(slot)
        return future

    def _settle(self, result: Any, how: Any) -> "asyncio.Future[Any]":
        """Gives an outcome that needs no server, on a later tick."""
        self._ready()
        waiter, future = self._begin(**how)
        if waiter is not None:
            assert self._loop is not None
            self._loop.call_soon(_set_result, waiter, result, context=NOBODY)
        return future

    def request(self, request: Request, **how: "Unpack[How]") -> "asyncio.Future[Reply]":
        """Sends one `Request` as it is: bytes and flags in, a `Reply` out.

        The funnel of all commands, for those that have no method, and for
        proxies. Keys are checked and placed but get no ``key_prefix``;
        all must belong to one server. Outcome: the `Reply`; with
        ``noreply`` an empty one as soon as the request is written.
        """
        check_request(request)
        if len(request.value) > self._settings.max_value_size:
            raise ValueTooLarge(
                f"value has {len(request.value)} bytes; "
                f"max_value_size is {self._settings.max_value_size}"
            )
        self._ready()
        places = {self._ring.place(key) for key in request.keys}
        if len(places) > 1:
            raise InvalidRequest("keys belong to several servers; use get_multi")
        return self._submit(self._pools[places.pop()], request, _reply, how)

    def _deadline(self) -> float:
        return deadlines.clock() + self._settings.request_timeout

    def _encode(self, wire: bytes, value: Any) -> tuple[bytes, int]:
        try:
            data, flags = self._serializer.encode(wire, value)
        except InvalidRequest:
            raise
        except Exception as error:
            raise NotSerializable(
                f"value for key {shown(wire)} cannot be serialized: {type(error).__name__}"
            ) from error
        if type(data) is not bytes or type(flags) is not int or flags >> 32:
            raise NotSerializable("serializer.encode must return bytes and 32 bits of flags")
        if len(data) > self._settings.max_value_size:
            raise ValueTooLarge(
                f"value for key {shown(wire)} has {len(data)} bytes; "
                f"max_value_size is {self._settings.max_value_size}"
            )
        return data, flags

    def _decode(self, wire: bytes, data: bytes, flags: int) -> Any:
        try:
            return self._serializer.decode(wire, data, flags)
        except MemcacheError:
            raise
        except Exception as error:
            raise SerializationError(
                f"value of key {shown(wire)} cannot be read: {type(error).__name__}"
            ) from error


def _route(route: Any) -> bytes | int:
    """Returns what the ring takes for the route of a ``(route, key)``."""
    if isinstance(route, int) and not isinstance(route, bool):
        return route
    if isinstance(route, bytes):
        return key_hash(route)
    if isinstance(route, str):
        return key_hash(key_bytes(route))
    raise TypeError(f"route must be an int, str or bytes, not {type(route).__name__}")


def _checked_prefix(prefix: Any) -> bytes:
    if isinstance(prefix, (str, bytes)) and not prefix:
        return b""
    try:
        return key_bytes(prefix)
    except (InvalidKey, TypeError) as error:
        raise type(error)(f"key_prefix: {error}") from None


def _reply(reply: Reply) -> Reply:
    return reply


def _set_result(waiter: Any, result: Any) -> None:
    if not waiter.done():
        waiter.set_result(result)


def _cancel(waiter: Any, entry: boundaries.Entry) -> None:
    entry.cancelled += waiter.cancel_by(entry)
