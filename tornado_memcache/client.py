"""The native client: its options, its servers, its end.

Knows what a client is made of. It must not know how a call is made, a wire
format, a socket, or who is dead.
"""

import asyncio
import functools
from collections.abc import Iterable, Sequence
from ssl import SSLContext
from typing import Any

from tornado.netutil import Resolver

from .address import Server
from .arguments import key_bytes
from .cluster import Cluster
from .compression import MAX_DECOMPRESSED
from .computations import Computations
from .credentials import checked_credentials
from .errors import InvalidKey, InvalidRequest
from .events import Events, OnDown, OnUp
from .migration import Migration, Side
from .namespaces import Home, Namespace, Spaces, checked_age
from .observed import finding
from .observer import Observer, Observers, checked_observers
from .serializer import Serializer
from .settings import DEFAULT_VALUE_SIZE, Settings
from .stampede import Stampede
from .streams import Metadump, Streams, Watch
from .timers import NamedTimer
from .values import Values


class Client(Stampede):
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

    ``observer`` is an `.Observer`, or a list of them: each is told of
    every call, of the servers and of the connections.

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
        observer: Observer | Sequence[Observer] | None = None,
        migrate_from: "Client | None" = None,
        migrate_exptime: Any = None,
    ) -> None:
        self._settings = Settings.of(locals())
        events = Events(on_server_up, on_server_down, checked_observers(observer))
        told = checked_credentials(username, password), events
        self._cluster = Cluster(servers, self._settings, ring, gutter, resolver, ssl, *told)
        self._read_by(Values.of(locals()), key_prefix)
        self._lead(events.observers, migrate_from, migrate_exptime)

    def _read_by(self, values: Values, prefix: str | bytes) -> None:
        self._values = values
        self._decode, self._raw_flags = values.decode, values.raw_flags
        self._finding = finding(values.decode, values.raw_flags)
        self._prefix, self._wires = _checked_prefix(prefix), {}
        self.computations = Computations(values)

    def _lead(self, observers: Observers | None, old: Any, exptime: Any) -> None:
        """Says which way calls go: past an old cluster, past observers, or straight."""
        self._observers, self.migration = observers, self._migrating(old, exptime)
        self._direct = self.migration is None and observers is None

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

    @functools.cached_property
    def _spaces(self) -> Spaces:
        shared = self._cluster, self._settings, self._values, self._prefix
        return Spaces(Home(*shared, self.computations))

    @functools.cached_property
    def _streams(self) -> Streams:
        return Streams(self._cluster, self._settings)

    def watch(self, *words: str, server: Any = None, timeout: float | None = None) -> Watch:
        """Returns what servers log, as an asynchronous iterator of `.WatchEvent`.

        ``words`` are those of protocol.txt, "Watchers" (``"fetchers"``,
        ``"mutations"``, ``"evictions"``, ``"connevents"`` ...; with none
        the server chooses), ``server`` is one of the servers, all of them
        unless given: their events come as they come. Each has a
        connection of its own. ``async with`` returns when all have begun
        to log; else it begins with the first event that is asked for.

        A reader that is too slow is told how many lines the server has
        ``skipped``. It has no end but the reader's: if a server goes away
        it raises `.ConnectionFailed`; `.Timeout` if one does not begin
        within ``timeout`` (seconds, ``request_timeout`` unless given),
        `.ClientError` if one does not know a word. Raises
        `.InvalidRequest` and `.InvalidServer` at the call.
        """
        return self._streams.watch(words, server, timeout)

    def metadump(self, server: Any = None, *, timeout: float | None = None) -> Metadump:
        """Returns what servers hold, as an asynchronous iterator of `.MetadumpEntry`.

        One entry for each item, without its value, in no order (protocol.txt, "LRU_Crawler
        metadump"). What is stored, read or evicted meanwhile may be told
        or not. ``server`` is one of the servers; unless given it is all
        of them, one after the other. Each has a connection of its own.

        A server dumps for one at a time. It is asked again for up to
        ``timeout`` seconds (``request_timeout`` unless given) while it is
        busy, then `.ServerError` is raised; `.Timeout` when nothing comes
        for so long; `.ConnectionFailed` when it goes away: it ends
        without an error only when all is told. Read it swiftly: while its
        reader is slow the server's crawler waits.
        """
        return self._streams.metadump(server, timeout)

    def namespace(self, name: str | bytes, *, generation_age: float = 1.0) -> Namespace:
        """Returns this client's commands under ``name``; ``await ns.invalidate()`` ends all of it.

        ``name`` is checked as a key is, and stands in the key of all that
        is kept there, with 14 bytes more. A namespace may be made for
        every request: those of one name are one, of which the client
        remembers what it knows.

        ``generation_age`` (seconds) is how long what an asking found is
        taken for the generation. With 0 each call asks: it costs a round
        trip more, and sees at once what another process has made
        unreachable. See ``docs/namespaces.rst``.

        Raises `.InvalidKey`, `.InvalidRequest`, and `TypeError`. A client
        with ``migrate_from`` has no namespaces: their items cannot be
        brought over.
        """
        age = checked_age(generation_age)
        if self.migration is not None:
            raise InvalidRequest("a client with migrate_from has no namespaces")
        return Namespace(self._spaces.space(name), age)

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
        self._streams.close()
        self._cluster.close()
        self.computations.close(self._cluster.loop)

    async def __aenter__(self) -> "Client":
        return self

    async def __aexit__(self, *exc_info: object) -> None:
        self.close()

    def __repr__(self) -> str:
        return f"<Client {' '.join(map(repr, filter(None, (self._cluster, self.migration))))}>"

    @property
    def timers(self) -> list[NamedTimer]:
        """The named timers of this client, set or not: those that its options ask for."""
        return self._cluster.timers


def _checked_prefix(prefix: Any) -> bytes:
    if isinstance(prefix, (str, bytes)) and not prefix:
        return b""
    try:
        return key_bytes(prefix)
    except (InvalidKey, TypeError) as error:
        raise type(error)(f"key_prefix: {error}") from None
