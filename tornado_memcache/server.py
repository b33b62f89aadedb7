"""The memcached that lives in this process.

An `EmbeddedServer` is a `.StoreHandler` behind a `.FrontDoor`, with an
address. This file knows where the server listens and what may be set of it.
It must not know how a request is written (`.text_server`, `.meta_server`),
who is connected (`.door`), or what a verb does to an item (`.store`).
"""

import os
import socket
import ssl as tls
import time
from collections.abc import Callable, Mapping, Sequence
from types import TracebackType
from typing import Any

from .arguments import check_callable, check_integer
from .door import FrontDoor, SocketFile, listen_on
from .errors import InvalidRequest
from .guest import Limits
from .items import MAX_BYTES, MAX_ITEM_SIZE
from .logins import LoginReader, Logins
from .store import Store
from .store_handler import VERSION, StoreHandler
from .text_server import RequestReader

_MOST = 1 << 50


def _steady_clock() -> Callable[[], float]:
    """Returns a clock that shows the wall clock's seconds and is not turned with it."""
    begun = time.time() - time.monotonic()
    return lambda: begun + time.monotonic()


def checked_server_context(wanted: Any) -> tls.SSLContext | None:
    """Returns the context for ``ssl=`` of a server, None for connections in the clear."""
    if wanted is None:
        return None
    if not isinstance(wanted, tls.SSLContext):
        raise TypeError(f"ssl must be an ssl.SSLContext, not {type(wanted).__name__}")
    if wanted.protocol is tls.PROTOCOL_TLS_CLIENT:
        raise InvalidRequest("ssl is a client's context: make a server's one for the server")
    return wanted


def _checked_limits(wanted: Any) -> Limits:
    """Returns the limits for ``limits=``, those that bound no time for None."""
    if wanted is None:
        return Limits()
    if not isinstance(wanted, Limits):
        raise TypeError(f"limits must be a Limits, not {type(wanted).__name__}")
    return wanted.checked()


class EmbeddedServer:
    """A memcached in this process, for demos and tests.

    It answers the text and the meta commands as memcached 1.6.18 does, to
    any client on its address::

        async with EmbeddedServer() as server:
            client = Client([server.address])

    Where it listens: ``port`` (0 takes a free one) and ``host`` (an address
    of this machine; nothing but this machine reaches the default), or
    ``path`` for a unix socket, which ``mode`` says who can open (only its
    user, unless told otherwise). With ``ssl``, a server's
    `ssl.SSLContext`, it is spoken to over TLS alone.

    What it holds: items of up to ``max_item_size`` bytes with all that
    memcached adds to them (its ``-I``), ``max_bytes`` of them (``-m``) and
    no more than ``max_items``; at a limit the items that were not asked for
    longest leave. ``clock`` gives the seconds that exptimes are counted by:
    a test may turn it by hand. Without it they are counted as memcached
    does: from the wall clock as it stood at the beginning, evenly, whatever
    becomes of that clock.

    Who may come: ``max_clients`` at a time (``-c``), and with ``users``, a
    dict of username to password or `.Logins`, only who says one of them
    first (``-Y``). ``limits``, a `.Limits`, bounds what each of them may
    have under way, and in which time a request has to be whole, replies
    have to be taken and the next request has to come; without it a client
    may take as long as it likes.

    ``cluster``, None or ``(version, ["host|ip|port", ...])``, may be set at
    any time: what ``config get cluster`` answers, as the configuration
    endpoint of a managed cluster does.

    A server that is stopped and started again keeps its port and its items
    (``store.flush_all()`` drops them). Arguments that cannot be raise
    `.InvalidRequest` or `TypeError`; binding raises `OSError` where the
    address is not to be had.
    """

    def __init__(
        self,
        port: int = 0,
        host: str = "127.0.0.1",
        *,
        path: str | None = None,
        mode: int = 0o600,
        ssl: tls.SSLContext | None = None,
        clock: Callable[[], float] | None = None,
        max_item_size: int = MAX_ITEM_SIZE,
        max_bytes: int = MAX_BYTES,
        max_items: int | None = None,
        max_clients: int = 1024,
        users: Logins | Mapping[str, str] | None = None,
        limits: Limits | None = None,
    ) -> None:
        self.port = check_integer("port", port, 0, 65535)
        for name, given in (("host", host), ("path", path)):
            if not isinstance(given, str) and (name, given) != ("path", None):
                raise TypeError(f"{name} must be a str, not {type(given).__name__}")
        self.host, self.path = host, path
        self.mode = check_integer("mode", mode, 0, 0o777)
        self.max_clients = check_integer("max_clients", max_clients, 1, _MOST)
        self.logins = users if users is None or isinstance(users, Logins) else Logins(users)
        self.limits = _checked_limits(limits)
        clock = _steady_clock() if clock is None else clock
        check_callable("clock", clock)
        if max_items is not None:
            check_integer("max_items", max_items, 1, _MOST)
        self.store = Store(
            clock,
            max_item_size=check_integer("max_item_size", max_item_size, 1, 1 << 30),
            max_bytes=check_integer("max_bytes", max_bytes, 1, _MOST),
            max_items=max_items,
        )
        self._ssl = checked_server_context(ssl)
        self._handler = StoreHandler(self.store, self._facts, self._settings)
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
        file: SocketFile | None = None
        if self.path is not None:
            listening = listen_on(socket.AF_UNIX, self.path)
            file = SocketFile(listening)
            os.chmod(self.path, self.mode)
        else:
            family = socket.AF_INET6 if ":" in self.host else socket.AF_INET
            listening = listen_on(family, (self.host, self.port))
            self.port = listening.getsockname()[1]
        door = FrontDoor(
            self._handler,
            too_large=self.store.too_large,
            max_clients=self.max_clients,
            limits=self.limits,
            ssl=self._ssl,
            reader=self._reader,
        )
        door.add_socket(listening, file)
        self._door, self._started = door, self._clock()

    def _reader(self) -> RequestReader:
        """Returns what reads a new client's bytes."""
        if self.logins is None:
            return RequestReader(self.store.too_large)
        return LoginReader(self.store.too_large, self.logins)

    def stop(self) -> None:
        """Stops listening and closes all connections, at once. May be called twice."""
        door, self._door = self._door, None
        if door is not None:
            door.stop()

    async def close(self) -> None:
        """Stops, and returns when no task of the server is left."""
        door = self._door
        self.stop()
        if door is not None:
            await door.close()

    async def drain(self, timeout: float) -> bool:
        """Stops listening, has what was asked answered and taken, and then stops.

        After ``timeout`` seconds what is left is closed as it is. Returns
        True if nothing was.
        """
        door, self._door = self._door, None
        if door is None:
            return True
        return await door.drain(timeout)

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

    def _facts(self) -> dict[str, object]:
        door, now, logins = self._door, self._clock(), self.logins
        return {
            "pid": os.getpid(),
            "uptime": int(now - self._started),
            "time": int(now),
            "version": VERSION.decode(),
            "pointer_size": 64,
            "max_connections": self.max_clients,
            "curr_connections": door.connected if door else 0,
            "total_connections": door.accepted if door else 0,
            "rejected_connections": sum(door.sent_away.values()) if door else 0,
            "auth_cmds": logins.asked if logins else 0,
            "auth_errors": logins.refused if logins else 0,
            "threads": 1,
        }

    def _settings(self) -> dict[str, object]:
        on_network = self.path is None
        return {
            "maxconns": self.max_clients,
            "tcpport": self.port if on_network else 0,
            "udpport": 0,
            "inter": self.host if on_network else "NULL",
            "domain_socket": self.path or "NULL",
            "umask": f"{self.mode:o}",
            "num_threads": 1,
            "auth_enabled_ascii": "no" if self.logins is None else "yes",
            "ssl_enabled": "no" if self._ssl is None else "yes",
            "idle_timeout": int(self.limits.idle_timeout or 0),
        }
