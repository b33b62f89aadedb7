"""The servers of one client: which pool a key belongs to, and on which loop.

Knows the ring, the pools and their loop, and where keys go while a server
is dead. It must not know a command or who waits for an outcome.
"""

import asyncio
import logging
import os
import weakref
from collections.abc import Callable, Iterable
from contextvars import Context
from threading import get_ident
from typing import Any

from tornado.ioloop import IOLoop
from tornado.netutil import Resolver

from . import deadlines
from .address import Server, parse_server, parse_servers
from .connector import Connector, Transport
from .credentials import Credentials
from .deadlines import Deadlines, detached
from .errors import ConnectionFailed, InvalidRequest, InvalidServer, shown
from .events import Events
from .gutter import GUTTER_EXPTIME
from .pool import Pool
from .protocol import Slot
from .ring import Rendezvous, make_ring
from .settings import Settings
from .stream import SegmentStream
from .timers import NamedTimer
from .tls import checked_context
from .upkeep import Upkeep

_log = logging.getLogger("tornado_memcache")


class Cluster:
    """The pools of a client's servers, made on the loop of its first call.

    The keys of a dead server go to the next server of the ring
    ("rehash"), to the servers of the ``gutter`` while it is dead, or
    nowhere. ``pools`` holds those of ``servers``, then those of the
    gutter, each in their order.
    """

    def __init__(
        self,
        servers: Iterable[Any],
        settings: Settings,
        ring: Any,
        gutter: Iterable[Any] | None,
        resolver: Resolver | None,
        ssl: Any,
        credentials: Credentials | None,
        events: Events,
    ) -> None:
        self._ssl_context = checked_context(ssl)
        self._credentials = credentials
        self._events = events
        self._settings = settings
        self._gutter: tuple[Server, ...] = ()
        self._gutter = self._checked_gutter(gutter)
        self.servers = self._checked(servers)
        self.pools: tuple[Pool, ...] = ()
        self.loop: asyncio.AbstractEventLoop | None = None
        self.deadlines: Deadlines | None = None
        #: The thread of that loop. With it and ``loop.is_running()`` a call knows that it is
        #: where it belongs; before Python 3.12 to ask for the running loop takes a system call,
        #: a tenth of what a get takes.
        self.thread = 0
        _clusters.add(self)
        self.closed, self._pid = False, 0
        self._ring_kind = ring
        self._ring = make_ring(ring, self.servers)
        self._gives_way = settings.on_dead in ("rehash", "gutter")
        self._gutter_ring = Rendezvous(self._gutter) if self._gutter else None
        if resolver is not None and not callable(getattr(resolver, "resolve", None)):
            raise TypeError("resolver must be a tornado.netutil.Resolver")
        self._resolver = resolver
        #: The pool of a client that has one server.
        self.only: Pool | None = None
        self._retired: list[Pool] = []
        self._upkeep: Upkeep | None = None
        #: Is told of each loop that the client comes to be on.
        self.on_bound: Callable[[IOLoop], None] | None = None

    def _checked(self, servers: Iterable[Any], name: str = "servers") -> tuple[Server, ...]:
        checked = parse_servers(servers, name)
        spare = {server.name for server in self._gutter}
        for server in checked:
            if self._ssl_context is not None and server.path is not None:
                raise InvalidServer(f"server {shown(server.name)}: a unix socket has no TLS")
            if server.name in spare:
                raise InvalidServer(f"server {shown(server.name)} is one of the gutter")
        return checked

    def _checked_gutter(self, gutter: Iterable[Any] | None) -> tuple[Server, ...]:
        if (gutter is None) == (self._settings.on_dead == "gutter"):
            raise InvalidRequest('gutter= and on_dead="gutter" are given together, or neither is')
        return () if gutter is None else self._checked(gutter, "gutter")

    # -- the loop

    def ready(self) -> asyncio.AbstractEventLoop:
        """Returns the running loop, with the pools on it."""
        bound = self.loop
        if bound is not None and get_ident() == self.thread and bound.is_running():
            return bound
        try:
            loop = asyncio.get_running_loop()
        except RuntimeError:
            raise RuntimeError(
                "a memcache call needs a running event loop: "
                "make it in a handler, a coroutine or a callback of the IOLoop"
            ) from None
        if loop is not self.loop:
            self._bind(loop)
        elif self._forked():  # (both processes would hear of each other's sockets)
            raise RuntimeError(
                "the loop of this Client is that of the parent process: "
                "a child of fork needs one of its own, as asyncio.run makes it"
            )
        self.thread = get_ident()
        return loop

    def _bind(self, loop: asyncio.AbstractEventLoop) -> None:
        if self.loop is not None:
            if not (self.loop.is_closed() or self._forked()):
                raise RuntimeError(
                    "this Client belongs to another event loop, which is not closed; "
                    "make one Client for each loop"
                )
            self._abandon()
        self._io_loop = IOLoop.current()
        self.loop, self.deadlines = loop, Deadlines(self._io_loop, loop)
        resolver = self._resolver if self._resolver is not None else Resolver()
        self._transport = Transport(resolver, self._ssl_context, self._credentials)
        self._upkeep = Upkeep(self._settings, self._io_loop, self._transport)
        self._pid = os.getpid()
        self._set_pools([])
        if self.closed:
            self.close()
        elif self.on_bound is not None:
            self.on_bound(self._io_loop)

    def _set_pools(self, kept: Iterable[Pool]) -> None:
        """Makes the pools of the servers, with what is kept of the old ones."""
        assert self.loop is not None
        known = {pool.name: pool for pool in kept}
        self.pools = tuple(
            known.get(server.name) or self._pool_of(server)
            for server in (*self.servers, *self._gutter)
        )
        self.only = self.pools[0] if len(self.pools) == 1 else None
        for pool in self.pools[len(self.servers) :]:
            pool.longest = self._settings.gutter_exptime or GUTTER_EXPTIME
        for server, pool in zip(self.servers, self.pools, strict=False):
            if server.credentials != pool.server.credentials:
                pool.health.retry_now()  # (what it refused were the others)
            pool.server = server
        assert self._upkeep is not None
        self._upkeep.pools, notice = self.pools, self._upkeep.notice()
        for pool in self.pools:
            pool.on_opened = notice
            pool.restore()
            if _is_running_here(self.loop):
                pool.keep_warm()
            else:  # (a stream is made on the loop that runs)
                self.loop.call_soon(pool.keep_warm, context=Context())

    def _pool_of(self, server: Server) -> Pool:
        assert self.loop is not None and self.deadlines is not None
        given = (self._settings, self.deadlines, self._io_loop, self.loop, self._transport)
        pool = Pool(server, *given, self._events)
        reference = weakref.ref(self)  # (a connection must not keep a client alive)

        def heir(left: Pool, slot: Slot) -> bool:
            cluster = reference()
            return cluster is not None and cluster._inherits(left, slot)

        pool.heir = heir
        return pool

    def _inherits(self, left: Pool, slot: Slot) -> bool:
        """Takes ``slot``, of a call begun before ``left`` owed nothing and went, if it has a pool.

        Returns False if it has none: ``left`` takes it, and is not forgotten until it has ended.
        """
        for pool in self.pools:
            if pool.name == left.name:  # (a server has one pool: it knows the order of its writes)
                pool.submit(slot)
                return True
        if self.closed:
            left.close()
        elif left not in self._retired:
            self._retired.append(left)
        return False

    def _forked(self) -> bool:
        """True in a child of fork, where loop and connections are the parent's."""
        return self.loop is not None and self._pid != os.getpid()

    def _is_gone(self) -> bool:
        """True if there was a loop, and nobody there can be told anything."""
        return self.loop is not None and (self._forked() or self.loop.is_closed())

    def _check_thread(self, what: str, how: str) -> None:
        """Refuses ``what`` while the loop runs elsewhere; one that stands still may be anywhere."""
        if self.loop is None or self._is_gone() or _is_running_here(self.loop):
            return
        if self.loop.is_running():
            raise RuntimeError(
                "the Client belongs to a loop of another thread: "
                f"{what} there, by IOLoop.add_callback({how})"
            )

    def _abandon(self) -> None:
        """Lets go of loop and pools: nobody there can be told anything."""
        pools = (*self.pools, *self._retired)
        were_open = [(one.name, sum(each.open for each in one.connections)) for one in pools]
        lost = sum(pool.abandon() for pool in pools)
        self._events.abandoned(were_open, forked=self._forked())
        if lost and not self._forked():
            _log.warning("%d memcache calls were lost with their event loop", lost)
        self._retired, self._upkeep = [], None
        self.pools, self.only, self.loop = (), None, None

    # -- keys

    def pool_for(self, key: bytes | int) -> Pool:
        """Returns the pool of ``key``, or of a hash that the caller has made."""
        if self.only is not None:
            return self.only
        pool = self.pools[self._ring.place(key)]
        if self._gives_way and pool.health.dead and not self._may_ask(pool):
            return self._stand_in(key) or pool
        return pool

    def home_of(self, key: bytes) -> Pool:
        """Returns the pool of ``key``'s own server: nobody stands in for it when it is dead."""
        return self.only or self.pools[self._ring.place(key)]

    def _stand_in(self, key: bytes | int) -> Pool | None:
        """Returns the pool that has ``key`` while its own server is dead, None without one."""
        ring, first = self._ring, 0
        if self._gutter_ring is not None:
            ring, first = self._gutter_ring, len(self.servers)
        index = ring.place_among(key, lambda index: self._may_ask(self.pools[first + index]))
        return None if index is None else self.pools[first + index]

    def _may_ask(self, pool: Pool) -> bool:
        return not pool.health.dead or pool.health.may_probe(deadlines.clock())

    # -- servers

    def set_servers(self, servers: Iterable[Any]) -> None:
        """Replaces the servers. Calls under way to one that goes away still end there."""
        self._check_thread("change its servers", "client.set_servers, servers")
        checked = self._checked(servers)
        ring = make_ring(self._ring_kind, checked)  # (may refuse: nothing has changed yet)
        self.servers, self._ring = checked, ring
        if self.loop is None:
            return
        if self._is_gone():
            self._abandon()
            return
        names = {server.name for server in (*self.servers, *self._gutter)}
        busy = [pool for pool in self._retired if not pool.retire()]
        # One that comes back while it owes is the same pool: it knows the order of its writes.
        kept = [*self.pools, *(pool for pool in busy if pool.name in names)]
        self._retired = [
            pool for pool in (*busy, *self.pools) if pool.name not in names and not pool.retire()
        ]
        self._set_pools(kept)
        if self.closed:
            self.close()

    def add_server(self, server: Any) -> None:
        """Adds one server behind the others."""
        (added,) = self._checked([server])
        if added.name in {one.name for one in self.servers}:
            raise InvalidServer(f"server {shown(added.name)} is one of the servers already")
        self.set_servers([*self.servers, added])

    def remove_server(self, server: Any) -> None:
        """Takes one server away, but not the last."""
        name = parse_server(server).name
        left = [one for one in self.servers if one.name != name]
        if len(left) == len(self.servers):
            told = ", ".join(one.name for one in self.servers)
            raise InvalidServer(f"server {shown(name)} is none of the servers ({told})")
        if not left:
            raise InvalidServer(f"server {shown(name)} is the last one: a client needs a server")
        self.set_servers(left)

    def retry_dead(self) -> None:
        """Lets the next call to each dead server find out whether it is back."""
        for pool in self.pools:
            pool.health.retry_now()

    def warm_up(self) -> "asyncio.Future[None]":
        """Opens the connections that are to be kept warm, one to each server at least.

        Returns the future of the moment in which they are open or have failed.
        """
        warmed = self.ready().create_future()
        every = detached(lambda: asyncio.gather(*[pool.warm_up() for pool in self.pools]))

        def told(_: object) -> None:
            if not warmed.done():  # (by a caller who does not wait any more)
                warmed.set_result(None)

        every.add_done_callback(told, context=Context())
        return warmed

    def disconnect(self) -> None:
        """Closes all connections; what only reads is asked again on new ones."""
        if self._is_gone():  # (a stream of the parent's would be taken from the parent's loop)
            self._abandon()
        for pool in self.pools:
            pool.disconnect()

    def close(self) -> None:
        """Closes everything; calls under way fail with `.ClientClosed`."""
        self._check_thread("close it", "client.close")
        self.closed = True
        if self._is_gone():
            self._abandon()
        for pool in (*self.pools, *self._retired):
            pool.close()
        self._retired = []
        if self.deadlines is not None:
            self.deadlines.close()
        if self._upkeep is not None:
            self._upkeep.close()

    def connector(
        self,
        server: Server,
        opened: Callable[[SegmentStream], None],
        failed: Callable[[ConnectionFailed], None],
    ) -> Connector:
        """Returns what opens a connection to ``server`` that is of no pool."""
        stagger = self._settings.connect_timeout / 3
        return Connector(server, self._io_loop, self._transport, stagger, opened, failed)

    @property
    def timers(self) -> list[NamedTimer]:
        """The idle timers that are wanted, set or not."""
        return self._upkeep.timers if self._upkeep is not None else []

    def __repr__(self) -> str:
        if self.pools:
            return " ".join(map(repr, [*self.pools, *self.timers]))
        state = "closed" if self.closed else "not connected"
        return f"{' '.join(server.name for server in self.servers)} {state}"


_clusters: "weakref.WeakSet[Cluster]" = weakref.WeakSet()


def _in_child() -> None:
    """In a child of fork no loop is running, whatever it says of itself."""
    for cluster in _clusters:
        cluster.thread = 0


os.register_at_fork(after_in_child=_in_child)


def _is_running_here(loop: asyncio.AbstractEventLoop) -> bool:
    try:
        return asyncio.get_running_loop() is loop
    except RuntimeError:
        return False
