"""The memcached that lives in this process.

A `StoreHandler` answers requests out of a `.Store`; `EmbeddedServer` is one
behind a `.FrontDoor`, with an address.

This file knows which verb asks what of the store, and where the server
listens. It must not know how a request is written (`.text_server`), who is
connected (`.door`), or what a verb does to an item (`.store`).
"""

import os
import socket
import time
from collections.abc import Callable, Sequence
from types import TracebackType

from .door import FrontDoor, listen_on
from .protocol import Item, Reply, Request
from .store import MAX_BYTES, MAX_ITEM_SIZE, Store

#: The memcached whose answers these are; clients look at its numbers.
VERSION = b"1.6.18"


class StoreHandler:
    """Answers requests out of a `.Store`: a handler for a `FrontDoor`.

    ``facts`` gives what ``stats`` tells of the server beside its items.
    ``cluster`` is what ``config get cluster`` answers: a version and the
    nodes, each ``"host|ip|port"``. Without it that is no command, as with
    a memcached that no cloud manages.
    """

    def __init__(self, store: Store, facts: Callable[[], dict[str, object]] = dict) -> None:
        self.store = store
        self.cluster: tuple[int, Sequence[str]] | None = None
        self._facts = facts
        self._verbs: dict[bytes, Callable[[Request], Reply]] = {
            b"get": self._get,
            b"gets": self._get,
            b"gat": self._get,
            b"gats": self._get,
            b"set": self._set,
            b"add": self._set,
            b"replace": self._set,
            b"append": self._extend,
            b"prepend": self._extend,
            b"cas": self._cas,
            b"incr": self._count,
            b"decr": self._count,
            b"delete": self._delete,
            b"touch": self._touch,
            b"flush_all": self._flush_all,
            b"version": lambda request: Reply(b"VERSION", text=VERSION),
            b"verbosity": lambda request: Reply(b"OK"),
            b"stats": self._stats,
            b"config": self._config,
        }

    def __call__(self, request: Request) -> Reply:
        """Returns the reply to ``request``. Raises `.ClientError` where it is refused."""
        verb = self._verbs.get(request.verb)
        return verb(request) if verb is not None else Reply(b"ERROR")

    def _get(self, request: Request) -> Reply:
        items: dict[bytes, Item] = {}
        store, touches = self.store, request.verb.startswith(b"gat")
        for key in request.keys:
            item = store.gat(key, request.exptime) if touches else store.get(key)
            if item is not None:
                items[key] = item
        return Reply(b"END", items)

    def _set(self, request: Request) -> Reply:
        store = {b"set": self.store.set, b"add": self.store.add, b"replace": self.store.replace}
        return Reply(
            store[request.verb](request.keys[0], request.value, request.flags, request.exptime)
        )

    def _extend(self, request: Request) -> Reply:
        extend = self.store.append if request.verb == b"append" else self.store.prepend
        return Reply(extend(request.keys[0], request.value))

    def _cas(self, request: Request) -> Reply:
        return Reply(
            self.store.cas(
                request.keys[0],
                request.value,
                request.flags,
                request.exptime,
                request.cas_unique,
            )
        )

    def _count(self, request: Request) -> Reply:
        count = self.store.incr if request.verb == b"incr" else self.store.decr
        number = count(request.keys[0], request.delta)
        if number is None:
            return Reply(b"NOT_FOUND")
        return Reply(b"NUMBER", number=number)

    def _delete(self, request: Request) -> Reply:
        return Reply(b"DELETED" if self.store.delete(request.keys[0]) else b"NOT_FOUND")

    def _touch(self, request: Request) -> Reply:
        touched = self.store.touch(request.keys[0], request.exptime)
        return Reply(b"TOUCHED" if touched else b"NOT_FOUND")

    def _flush_all(self, request: Request) -> Reply:
        self.store.flush_all(request.exptime)
        return Reply(b"OK")

    def _config(self, request: Request) -> Reply:
        if self.cluster is None or request.argument != b"get cluster":
            return Reply(b"ERROR")
        version, nodes = self.cluster
        return Reply(b"CONFIG", text=f"{version}\n{' '.join(nodes)}\n".encode())

    def _stats(self, request: Request) -> Reply:
        store = self.store
        about, _, _ = request.argument.partition(b" ")
        if about == b"reset":
            store.reset_counts()
            return Reply(b"RESET")
        facts: dict[str, object] = {}
        if not about:
            facts = {**self._facts(), **store.counts}
            facts.update(curr_items=len(store), bytes=store.bytes, limit_maxbytes=store.max_bytes)
        elif about == b"settings":
            facts = {"maxbytes": store.max_bytes, "item_size_max": store.max_item_size}
        elif about == b"items":
            # There are no slab classes here: all items are in one.
            if len(store):
                facts = {"items:1:number": len(store)}
        elif about == b"slabs":
            facts = {"active_slabs": 0, "total_malloced": 0}
        else:
            return Reply(b"ERROR")
        return Reply(b"END", stats={name: str(value) for name, value in facts.items()})


class EmbeddedServer:
    """A memcached in this process, for demos and tests.

    It answers the classic text commands as memcached 1.6.18 does, to any
    client on its address::

        async with EmbeddedServer() as server:
            client = Client([server.address])

    Arguments: ``port`` (0 takes a free one), ``host`` (an address of this
    machine; nothing but this machine reaches the default), or ``path`` for
    a unix socket, which only the user can open. ``clock`` gives the seconds
    that exptimes are counted by: a test may turn it by hand. ``max_bytes``,
    ``max_item_size`` and ``max_items`` are those of `.Store`,
    ``max_clients`` is that of `FrontDoor`.

    ``cluster``, None or ``(version, ["host|ip|port", ...])``, may be set at
    any time: what ``config get cluster`` answers, as the configuration
    endpoint of a managed cluster does.

    A server that is stopped and started again keeps its port and its items
    (``store.flush_all()`` drops them). Binding raises `OSError` where the
    address is not to be had.
    """

    def __init__(
        self,
        port: int = 0,
        host: str = "127.0.0.1",
        *,
        path: str | None = None,
        clock: Callable[[], float] = time.time,
        max_item_size: int = MAX_ITEM_SIZE,
        max_bytes: int = MAX_BYTES,
        max_items: int | None = None,
        max_clients: int = 1024,
    ) -> None:
        self.port = port
        self.host = host
        self.path = path
        self.max_clients = max_clients
        self.store = Store(
            clock, max_item_size=max_item_size, max_bytes=max_bytes, max_items=max_items
        )
        self._handler = StoreHandler(self.store, self._facts)
        self._clock = clock
        self._door: FrontDoor | None = None
        self._started = 0.0

    def __repr__(self) -> str:
        state = f"{self.address} {self._door.connected} clients" if self._door else "stopped"
        return f"<{type(self).__name__} {state}>"

    @property
    def cluster(self) -> tuple[int, Sequence[str]] | None:
        """The version and the nodes that a configuration endpoint tells, None for none."""
        return self._handler.cluster

    @cluster.setter
    def cluster(self, cluster: tuple[int, Sequence[str]] | None) -> None:
        self._handler.cluster = cluster

    @property
    def address(self) -> str:
        """The address as `.Client` takes it: ``"127.0.0.1:11211"`` or ``"unix:/path"``.

        Raises `RuntimeError` while no port is known: before the first `start`.
        """
        if self.path is not None:
            return f"unix:{self.path}"
        if not self.port:
            raise RuntimeError("the server has no port before it is started")
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"

    def start(self) -> None:
        """Binds the address and serves on the current loop until `stop`."""
        if self._door is not None:
            raise RuntimeError("the server is running")
        if self.path is not None:
            listening = listen_on(socket.AF_UNIX, self.path)
        else:
            family = socket.AF_INET6 if ":" in self.host else socket.AF_INET
            listening = listen_on(family, (self.host, self.port))
            self.port = listening.getsockname()[1]
        door = FrontDoor(
            self._handler, too_large=self.store.too_large, max_clients=self.max_clients
        )
        door.add_socket(listening)
        self._door, self._started = door, self._clock()

    def stop(self) -> None:
        """Stops listening and closes all connections, at once. May be called twice."""
        door, self._door = self._door, None
        if door is not None:
            door.stop()
            self._unlink()

    async def close(self) -> None:
        """Stops, and returns when no task of the server is left."""
        door = self._door
        self.stop()
        if door is not None:
            await door.close()

    async def __aenter__(self) -> "EmbeddedServer":
        self.start()
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        await self.close()

    def _unlink(self) -> None:
        if self.path is not None:
            try:
                os.unlink(self.path)
            except FileNotFoundError:
                pass

    def _facts(self) -> dict[str, object]:
        door, now = self._door, self._clock()
        return {
            "pid": os.getpid(),
            "uptime": int(now - self._started),
            "time": int(now),
            "version": VERSION.decode(),
            "pointer_size": 64,
            "curr_connections": door.connected if door else 0,
            "total_connections": door.accepted if door else 0,
            "max_connections": self.max_clients,
            "threads": 1,
        }
