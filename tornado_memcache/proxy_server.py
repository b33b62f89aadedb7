"""A proxy with an address: the door, the handler behind it, its clients and its page.

Knows what of a `.Config` goes where, and what becomes of it when there is
another one. It must not know flags or files, signals or processes.
"""

import asyncio
import contextlib
import logging
import os
import socket
import time
from collections.abc import Callable, Iterator
from typing import Any

from tornado.httpserver import HTTPServer
from tornado.web import Application, RequestHandler

from .client import Client
from .door import FrontDoor, SocketFile, listen_on
from .protocol import Reply, Request
from .proxy import Proxy
from .proxy_config import FIXED, Config, in_flags

logger = logging.getLogger("tornado_memcache.proxy")

#: A client that is not used any more is closed so many seconds after its last call must be over.
LEAVE = 1.0


class ProxyServer:
    """A memcached proxy in this process.

    ``config`` as `.proxy_config` gives it; ``listening`` is a socket that
    listens already, if the address is not to be bound here; ``index`` is
    the number of this process among ``processes``, and is added to the
    port of the page. Binding raises `OSError`::

        async with ProxyServer(config) as server:
            client = Client([server.address])
    """

    def __init__(
        self, config: Config, listening: socket.socket | None = None, *, index: int = 0
    ) -> None:
        self.config = config
        self._listening = listening
        self._index = index
        self._pools = {prefix: Client(**options) for prefix, options in config.pools.items()}
        self._leaving: dict[Client, asyncio.TimerHandle] = {}
        of = config.proxy
        self.proxy = Proxy(
            self._pools, errors=of["errors"], allow_all=of["allow-all-commands"], facts=self._facts
        )
        self.door = FrontDoor(
            self.proxy,
            too_large=self.proxy.too_large,
            max_clients=of["max-clients"],
            limits=config.limits,
            failed=self._failed,
            begun=self.proxy.begun,
        )
        self._page: HTTPServer | None = None
        self._begun = 0.0

    def __repr__(self) -> str:
        return f"<ProxyServer {self.address} {self.door!r} {self.proxy!r}>"

    @property
    def address(self) -> str:
        """The address as `.Client` takes it."""
        listen = self.config.listen
        if isinstance(listen, str):
            return f"unix:{listen}"
        host = f"[{listen[0]}]" if ":" in listen[0] else listen[0]
        return f"{host}:{self.door.port if self.door.listening else listen[1]}"

    def start(self) -> None:
        """Binds the addresses and serves on the current loop."""
        listening, file = self._listening, None
        if listening is None:
            listening = listening_socket(self.config)
            file = SocketFile(listening) if isinstance(self.config.listen, str) else None
        self.door.add_socket(listening, file)
        self._begun = time.monotonic()
        admin = self.config.proxy["admin"]
        if admin is not None:
            page = HTTPServer(Application([("/", _Page, {"told": self.told})], log_function=_quiet))
            try:
                page.add_socket(_bound((admin[0], admin[1] + self._index if admin[1] else 0)))
            except OSError:
                self.door.stop()
                raise
            self._page = page

    def reload(self, config: Config) -> None:
        """Goes by ``config`` from now on. Clients stay connected; what is under way ends."""
        for name in FIXED:
            if config.proxy[name] != self.config.proxy[name]:
                logger.warning("%s stays as it is until the proxy is started anew", name)
        pools = {prefix: self._client(prefix, new) for prefix, new in config.pools.items()}
        for prefix, client in self._pools.items():
            if client not in pools.values():
                left = self.config.pools[prefix].get("request_timeout", 1.0) + LEAVE
                loop = asyncio.get_running_loop()
                self._leaving[client] = loop.call_later(left, self._let_go, client)
        self._pools = pools
        of = config.proxy
        self.proxy.use(pools)
        self.proxy.errors, self.proxy.allow_all = of["errors"], of["allow-all-commands"]
        self.door.limit(config.limits)
        self.door.max_clients = of["max-clients"]
        self.config = self.config.replaced_by(config)

    def _client(self, prefix: bytes, options: dict[str, Any]) -> Client:
        """Returns a pool's client: the one that is there, if no more than its servers changed."""
        before = self.config.pools.get(prefix)
        client = self._pools.get(prefix)
        if before is None or client is None:
            return Client(**options)
        if _shape(before) != _shape(options):
            return Client(**options)
        if before["servers"] != options["servers"]:
            client.set_servers(options["servers"])
        return client

    def _let_go(self, client: Client) -> None:
        self._leaving.pop(client)
        client.close()

    async def drain(self) -> bool:
        """Lets nobody in, has what was asked answered, and ends. True if all of it was."""
        in_time = await self.door.drain(self.config.proxy["drain-timeout"])
        await self.close()
        return in_time

    async def close(self) -> None:
        """Ends it at once."""
        await self.door.close()
        if self._page is not None:
            self._page.stop()
            await self._page.close_all_connections()
            self._page = None
        for handle in self._leaving.values():
            handle.cancel()
        for client in [*self._pools.values(), *self._leaving]:
            client.close()
        self._leaving = {}

    async def __aenter__(self) -> "ProxyServer":
        self.start()
        return self

    async def __aexit__(self, *exc_info: object) -> None:
        await self.close()

    def _failed(self, request: Request, error: Exception) -> Reply:
        """Returns what the client is told of ``error``, in words of who set up the proxy."""
        reply = self.proxy.failed(request, error)
        return reply._replace(text=in_flags(reply.text.decode("latin-1")).encode("latin-1"))

    def _facts(self) -> dict[str, object]:
        facts: dict[str, object] = {
            "pid": os.getpid(),
            "uptime": int(time.monotonic() - self._begun),
            "curr_connections": self.door.connected,
            "total_connections": self.door.accepted,
            "max_connections": self.door.max_clients,
        }
        for why, count in self.door.sent_away.items():
            facts[f"sent_away_{why.replace(' ', '_').replace(',', '')}"] = count
        return facts

    def told(self) -> dict[str, Any]:
        """Returns what the page tells: what ``stats proxy`` does."""
        return self.proxy.told()


def _shape(options: dict[str, Any]) -> dict[str, Any]:
    """Returns the options of a client that cannot change while it lives, to be compared."""
    shape = {name: value for name, value in options.items() if name != "servers"}
    context = shape.get("ssl")
    if context is not None and context is not True:
        shape["ssl"] = sorted(map(str, context.get_ca_certs()))
    return shape


def listening_socket(config: Config, *, shared: bool = False) -> socket.socket:
    """Returns a socket that listens where ``config`` says; ``shared`` with other processes.

    Raises `OSError` that names the address.
    """
    return _bound(config.listen, shared)


def _bound(listen: str | tuple[str, int], shared: bool = False) -> socket.socket:
    with named(listen):
        return listen_on(family_of(listen), listen, shared=shared)


def family_of(listen: str | tuple[str, int]) -> socket.AddressFamily:
    """Returns the family of an address to listen on."""
    if isinstance(listen, str):
        return socket.AF_UNIX
    return socket.AF_INET6 if ":" in listen[0] else socket.AF_INET


@contextlib.contextmanager
def named(listen: str | tuple[str, int]) -> Iterator[None]:
    """Has an `OSError` of the body, which binds ``listen``, tell which address it was."""
    try:
        yield
    except OSError as error:
        where = listen if isinstance(listen, str) else f"{listen[0]} port {listen[1]}"
        told = f"cannot listen on {where}: {error.strerror or error}"
        raise OSError(told) from None


def _quiet(handler: RequestHandler) -> None:
    """The page is looked at every few seconds: nobody wants a line for each."""


class _Page(RequestHandler):
    """What ``stats proxy`` tells, as JSON."""

    def initialize(self, told: Callable[[], dict[str, Any]]) -> None:
        self._told = told

    def get(self) -> None:
        self.finish(self._told())
