"""The native client: commands over one funnel.

Knows how a call begins, and what its keys and values are on the wire. It
must not know a wire format, a socket, or who is dead.
"""

import asyncio
import time
from collections.abc import Callable, Iterable, Sequence
from contextvars import Context
from functools import partial
from ssl import SSLContext
from threading import get_ident
from typing import TYPE_CHECKING, Any

from tornado.netutil import Resolver

from . import deadlines
from .address import Server
from .arguments import check_default, check_hashable, key_bytes
from .boundaries import Entry, entered
from .call import CallbackCall, FutureCall, Terms, check_callbacks
from .cluster import Cluster
from .commands import Commands
from .compression import MAX_DECOMPRESSED
from .credentials import checked_credentials
from .deadlines import Deadlines
from .errors import InvalidKey, InvalidRequest, MemcacheError, Timeout, ValueTooLarge
from .events import Events, OnDown, OnUp
from .fanout import Fanout
from .funnel import How, Key
from .gutter import shortened
from .migration import Migration, Side
from .outcomes import Replies, outdated
from .pool import Pool
from .protocol import Reply, Request, fail
from .serializer import Serializer
from .settings import DEFAULT_VALUE_SIZE, Settings
from .slots import slot_for
from .text import check_request
from .timers import NamedTimer
from .values import Values

if TYPE_CHECKING:
    from typing_extensions import Unpack

#: So many checked keys are kept, as they are on the wire.
WIRES_KEPT = 4096


class Client(Commands):
    """A client of one or many memcached servers.

    ``servers`` is a list of ``"host"``, ``"host:port"``, ``"[v6]:port"``,
    ``"unix:/path"``, ``(server, weight)``, or a dict with ``"server"`` and
    any of ``"weight"``, ``"username"``, ``"password"``. ``connect_timeout``
    (seconds) covers all that opens a connection: the look-up, all
    addresses of a server, TLS, authentication; ``request_timeout``
    (seconds) is the length after which any call has its outcome. At most
    ``max_connections`` are opened to a server, and about ``max_pending``
    calls are under way to it. From the first call on ``min_connections``
    to each server are kept open while it lives, and at most ``max_idle``
    are kept when they are idle (None: all).

    With ``idle_timeout`` (seconds) connections beyond ``min_connections``
    that were not used for so long are closed. With ``resolve_interval``
    (seconds) the names of the servers are looked up in the background
    every so often, and not only when a connection is opened: connections
    to an address that a name does not lead to any more end what is under
    way on them, and the next calls go to the new address. Each of the two
    is one timer, set while there are connections for it to look after.

    A server is taken for dead when it refuses a connection, or after
    ``silences_until_dead`` timeouts without a byte from it between them.
    It is tried again after a pause that grows up to ``dead_retry``
    seconds. ``on_dead`` says what becomes of its keys meanwhile:

    - "fail": calls fail with `.ServerDead`.
    - "miss": what reads is a miss, at once; all else fails as with "fail".
    - "rehash": the next server of the ring takes them.
    - "gutter": the servers of the list ``gutter``, which have no other
      use, take them, and keep what is stored for ``gutter_exptime``
      seconds at most (10 unless set).

    The call that finds out whether the server is back goes to it, and may
    fail. ``flush_on_reconnect`` flushes a server that comes back from the
    dead: what it held before may be older than what was stored since.

    ``on_server_down(server, reason)`` and ``on_server_up(server)``, plain
    or coroutine functions, are called when a server is taken for dead,
    with its name and a `.MemcacheError`, and when it answers again, or
    leaves the servers while it is dead. They run on a later tick and
    outside of any boundary; what they raise is logged.

    ``ring`` places the keys: "modulo" (as python-memcached), "ketama",
    "ketama_weighted" (as libmemcached), "rendezvous", an object with
    ``server_for(key, alive)``, or a callable that makes a `.Ring`. A key
    given as ``(route, key)`` is placed by its route.

    ``serializer`` turns values into bytes (`.Plain` unless given). Values
    longer than ``compress_over`` bytes are compressed; what is read is
    decompressed up to ``max_decompressed_size`` bytes. Values over
    ``max_value_size`` bytes are refused. ``key_prefix`` goes before every
    key. ``resolver`` is a `tornado.netutil.Resolver` for the names.

    ``ssl`` makes all connections secure: True verifies the server's
    certificate and its name (as written in ``servers``) with the system's
    certificate authorities and takes TLS 1.2 or newer; an
    `ssl.SSLContext` of your own is used as it is. A server that does not
    pass is not spoken to.

    ``username`` and ``password`` are said to every server at the begin of
    each connection, as a memcached with an authentication file (``-Y``)
    demands; a server's own, in its dict, go before them. They are in no
    repr, log or error. If a server refuses them calls fail with
    `.AuthenticationError`, and it is asked again as one that refuses
    connections is. Without ``ssl`` they cross the wire in the clear.

    ``migrate_from`` is a client of the cluster that this one replaces.
    What is missing here is looked for there, and brought over: with the
    time that it still has, where the old server can tell that (memcached
    1.6), else with ``migrate_exptime`` (as an exptime; 600 s). Writes delete it there. See
    ``docs/deployment.rst``; `Migration` counts, as ``client.migration``.

    A client may be made before any loop runs. It belongs to the loop of
    its first call; once that loop is closed it can be used on another.
    Its calls are made on the loop's own thread.
    """

    #: What is brought over from ``migrate_from``, None without it.
    migration: Migration | None
    _wires: dict[str, bytes]

    def __init__(
        self,
        servers: Iterable[Any],
        *,
        connect_timeout: float = 0.5,
        request_timeout: float = 1.0,
        max_connections: int = 4,
        min_connections: int = 0,
        max_idle: int | None = None,
        idle_timeout: float | None = None,
        resolve_interval: float | None = None,
        max_pending: int = 100_000,
        dead_retry: float = 30.0,
        silences_until_dead: int = 3,
        ring: Any = "modulo",
        on_dead: str = "fail",
        gutter: Iterable[Any] | None = None,
        gutter_exptime: int | None = None,
        flush_on_reconnect: bool = False,
        serializer: Serializer | None = None,
        compress_over: int | None = None,
        max_decompressed_size: int = MAX_DECOMPRESSED,
        max_value_size: int = DEFAULT_VALUE_SIZE,
        key_prefix: str | bytes = b"",
        resolver: Resolver | None = None,
        ssl: SSLContext | bool | None = None,
        username: str | bytes | None = None,
        password: str | bytes | None = None,
        on_server_up: OnUp | None = None,
        on_server_down: OnDown | None = None,
        migrate_from: "Client | None" = None,
        migrate_exptime: Any = None,
    ) -> None:
        self._settings = Settings.of(locals())
        told = checked_credentials(username, password), Events(on_server_up, on_server_down)
        self._cluster = Cluster(servers, self._settings, ring, gutter, resolver, ssl, *told)
        self._values = Values(serializer, compress_over, max_decompressed_size, max_value_size)
        self._decode, self._raw_flags = self._values.decode, self._values.raw_flags
        self._prefix, self._wires = _checked_prefix(key_prefix), {}
        self.migration = self._migrating(migrate_from, migrate_exptime)

    def _migrating(self, old: Any, exptime: Any) -> Migration | None:
        if old is None and exptime is None:
            return None
        if old is None:
            raise InvalidRequest("migrate_exptime is given without migrate_from")
        if not isinstance(old, Client):
            raise TypeError(f"migrate_from must be a Client, not {type(old).__name__}")
        if old.migration is not None:
            raise InvalidRequest("migrate_from must be a Client that does not migrate itself")
        return Migration(self._side(), old._side(), exptime)

    def _side(self) -> Side:
        return Side(self._cluster, self._prefix, self._settings.request_timeout)

    # -- the servers

    @property
    def servers(self) -> tuple[Server, ...]:
        """The servers, as they were given at last."""
        return self._cluster.servers

    def set_servers(self, servers: Iterable[Any]) -> None:
        """Replaces the servers; calls under way to one that goes away still end there.

        ``servers`` as for the constructor. Those that stay keep their
        connections.
        """
        self._cluster.set_servers(servers)

    def add_server(self, server: Any) -> None:
        """Adds one server, behind the others, as `set_servers` does.

        ``server`` as one of those of the constructor. Raises
        `.InvalidServer` if it is one of the servers already.
        """
        self._cluster.add_server(server)

    def remove_server(self, server: Any) -> None:
        """Takes one server away, as `set_servers` does: what it owes is still answered.

        ``server`` is its name (``"host:port"``) or a `.Server`. Raises
        `.InvalidServer` if it is none of the servers, or the last one.
        """
        self._cluster.remove_server(server)

    def retry_dead_servers(self) -> None:
        """Lets the next call to each dead server find out now whether it is back."""
        self._cluster.retry_dead()

    def warm_up(self) -> "asyncio.Future[None]":
        """Opens connections to every server now, before the first call does.

        ``min_connections`` to each, and one at least. Returns a Future
        that is done, with None, when they are open or could not be
        opened: it never fails, and need not be awaited. What failed is in
        the log, and the next call to that server finds out.
        """
        return self._cluster.warm_up()

    def disconnect(self) -> None:
        """Closes all connections; the next calls open new ones.

        A call under way that only reads is asked again; a write whose
        bytes left fails with `.ConnectionFailed`.
        """
        self._cluster.disconnect()

    def close(self) -> None:
        """Closes all connections; calls under way fail with `.ClientClosed`.

        Calls made afterwards fail with it too. May be called twice. A
        client to ``migrate_from`` is not closed with it.
        """
        if self.migration is not None:
            self.migration.close()
        self._cluster.close()

    async def __aenter__(self) -> "Client":
        return self

    async def __aexit__(self, *exc_info: object) -> None:
        self.close()

    def __repr__(self) -> str:
        return f"<Client {' '.join(map(repr, filter(None, (self._cluster, self.migration))))}>"

    @property
    def _pools(self) -> tuple[Pool, ...]:
        return self._cluster.pools

    @property
    def timers(self) -> list[NamedTimer]:
        """The named timers of this client, set or not: those that its options ask for."""
        return self._cluster.timers

    @property
    def _deadlines(self) -> Deadlines | None:
        return self._cluster.deadlines

    # -- the funnel

    def _locate(self, key: Any) -> tuple[bytes, Pool]:
        """Returns the key's bytes on the wire and the pool of its server."""
        if type(key) is tuple:
            if len(key) != 2:
                raise InvalidRequest("key as a tuple must be (route, key)")
            route, wire = _route(key[0]), key_bytes(key[1], self._prefix)
            self._cluster.ready()
            return wire, self._cluster.pool_for(route)
        wire = key_bytes(key, self._prefix)
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

    def _begin(
        self,
        default: Any = None,
        asked: Request | bytes | None = None,
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
        in such a failure: its request, or the key of a get.
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
        if callback is not None or fail_callback is not None:
            waiter = CallbackCall(register, terms, callback, fail_callback, default)
        elif default is None and (terms is None or terms.plain):
            plain = loop.create_future()
            return plain, plain
        else:
            waiter = future = FutureCall(loop, register, terms, default)
        if terms is not None and _ends_at_once(loop, waiter, terms, asked):
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
        connection = pool.usable if self.migration is None else None  # (that asks two clusters)
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
            return self._retrieve(b"get", key, default, 0, how)
        waiter, future = self._begin(default, wire, **how)
        if waiter is not None:
            slot = connection.gather(wire, waiter, self._decode, self._raw_flags)
            if waiter.__class__ is not asyncio.Future:
                waiter.work = slot
        return future

    get.__doc__ = Commands.get.__doc__

    def _submit(
        self, pool: Pool, request: Request, outcome: Callable[[Reply], Any], how: Any
    ) -> "asyncio.Future[Any]":
        migration = self.migration and self.migration.ready()
        waiter, future = self._begin(None, request, **how)
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
        waiter, future = self._begin(None, parts[0][1], **how)
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
                chain = part.work = migration.chain(pool, request, part, _reply)
                begin.append(chain.start)
            else:
                if pool.longest is not None:
                    request = shortened(request, pool.longest, time.time)
                slot = part.work = slot_for(request, part, _reply, deadline)
                begin.append(partial(pool.submit, slot))
        for one in begin:
            one()
        return future

    def _settle(self, result: Any, how: Any) -> "asyncio.Future[Any]":
        """Gives an outcome that needs no server, on a later tick."""
        self._cluster.ready()
        waiter, future = self._begin(**how)
        if waiter is not None:
            loop = self._cluster.loop
            assert loop is not None
            loop.call_soon(_set_result, waiter, result, context=Context())
        return future

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
            return self._settle(Reply(b"EXISTS"), how)
        return self._submit(pool, request, _reply, how)

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
                take(index, Reply(b"EXISTS"), True)
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


def _checked_prefix(prefix: Any) -> bytes:
    if isinstance(prefix, (str, bytes)) and not prefix:
        return b""
    try:
        return key_bytes(prefix)
    except (InvalidKey, TypeError) as error:
        raise type(error)(f"key_prefix: {error}") from None


def _with_route(request: Any) -> tuple[Request, Any]:
    """Returns a request and its route, of which the second may be left out."""
    if isinstance(request, Request):
        return request, None
    if isinstance(request, tuple) and len(request) == 2:
        return request[1], request[0]
    raise TypeError("requests must be of Request or (route, Request)")


def _reply(reply: Reply) -> Reply:
    return reply


def _ends_at_once(
    loop: asyncio.AbstractEventLoop, waiter: Any, terms: Terms, asked: Request | bytes | None
) -> bool:
    """True if the caller's boundary has ended, or its budget is spent: the call is told so."""
    if terms.entry is not None and (ended := terms.entry.ended_by()) is not None:
        loop.call_soon(_cancel, waiter, ended, context=Context())
        return True
    if terms.own_deadline is not None and terms.own_deadline <= deadlines.clock():
        request = Request(b"get", (asked,)) if isinstance(asked, bytes) else asked
        told = request.asked() if request is not None else ""
        late = Timeout("its deadline had passed before it was made", phase="waiting", asked=told)
        loop.call_soon(fail, waiter, late, context=Context())
        return True
    return False


def _set_result(waiter: Any, result: Any) -> None:
    if not waiter.done():
        waiter.set_result(result)


def _cancel(waiter: Any, entry: Entry) -> None:
    entry.cancelled += waiter.cancel_by(entry)
