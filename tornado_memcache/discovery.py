r"""The servers of a managed cluster, as its configuration endpoint tells them.

Knows what ElastiCache and Memorystore answer to ``config get cluster``, when
to ask, and that a bad answer changes nothing. It must not know a socket, nor
where a key goes.
"""

import asyncio
import logging
import weakref
from collections.abc import Callable
from contextvars import Context
from typing import Any, NamedTuple

from tornado.ioloop import IOLoop

from . import boundaries
from .address import Server, parse_servers
from .arguments import check_callable, check_seconds
from .client import Client
from .deadlines import detached
from .errors import (
    ClientError,
    ConnectionFailed,
    InvalidRequest,
    InvalidServer,
    MemcacheError,
    ProtocolError,
    ServerDead,
    Timeout,
    shown,
)
from .protocol import Reply, Request, read_number
from .timers import JITTER, NamedTimer

_log = logging.getLogger("tornado_memcache")

#: Where an ElastiCache whose engine is older than 1.4.14 has the same text.
OLD_KEY = b"AmazonElastiCache:cluster"
#: What of a client's options is for its connections, and so for those to the endpoint too.
SHARED = ("connect_timeout", "request_timeout", "resolver", "ssl", "username", "password")
#: Stands for the servers until the endpoint has told them.
_NOBODY = "endpoint.invalid"
#: The failures of which the endpoint's own lines in the log tell already.
_TOLD = (ConnectionFailed, Timeout, ServerDead)


class Configuration(NamedTuple):
    """What an endpoint tells: a version that grows, and the servers."""

    version: int
    servers: tuple[Server, ...]


def parse_configuration(text: bytes) -> Configuration:
    """Returns what ``text``, the data block of ``config get cluster``, says.

    A server is named by its host, where it has one, since that is what a
    certificate bears, and what stays when a machine is replaced; else by
    its address. Raises `.ProtocolError` that names what is wrong.
    """
    # <version>\n<host>|<ip>|<port> <host>|<ip>|<port> ...\n
    lines = [line.rstrip(b"\r") for line in text.rstrip(b"\r\n").split(b"\n")]
    if len(lines) != 2:
        raise ProtocolError(f"a configuration has a version and a list, not {len(lines)} lines")
    version = read_number(lines[0], 63, "a version")
    try:
        servers = parse_servers([_spec(node) for node in lines[1].split()])
    except InvalidServer as error:
        raise ProtocolError(f"the configuration of version {version}: {error}") from None
    return Configuration(version, servers)


def _spec(node: bytes) -> str:
    fields = node.decode("utf-8", "replace").split("|")
    host = (fields[0] or fields[1]) if len(fields) == 3 else ""
    if host in ("", "unix"):  # (which would make a path of the port)
        raise InvalidServer(f"{shown(node)} is no host|ip|port")
    return f"[{host}]:{fields[2]}" if ":" in host else f"{host}:{fields[2]}"


def _check_options(options: dict[str, Any]) -> None:
    """Raises what a client with ``options`` would raise, before anybody is asked anything."""
    if "servers" in options:
        raise TypeError("servers are what the endpoint tells: discover() takes none")
    ring = options.get("ring", "modulo")
    if callable(ring):  # (a user's own, which is not to be shown a server that there is not)
        ring = "modulo"
    Client([_NOBODY], **{**options, "ring": ring}).close()


def _endpoint(spec: Any, options: dict[str, Any]) -> "_Endpoint":
    shared = {name: options[name] for name in SHARED if name in options}
    try:
        return _Endpoint([spec], **shared)
    except (InvalidRequest, TypeError) as error:
        raise type(error)(f"endpoint: {error}") from None


def _text(reply: Reply) -> bytes:
    return reply.text


class _Endpoint(Client):
    """The client of a configuration endpoint."""

    async def configuration(self) -> Configuration:
        """Asks for the configuration, in the way of this endpoint's engine."""
        asked = Request(b"config", argument=b"get cluster")
        try:
            (text,) = (await self._ask_all(asked, _text, {})).values()
        except ClientError:  # (it does not know the command)
            reply = await self.request(Request(b"get", (OLD_KEY,)))
            if OLD_KEY not in reply.items:
                told = f"{self.servers[0].name} is no configuration endpoint"
                raise ProtocolError(f"{told}: it has no list of servers") from None
            text = reply.items[OLD_KEY].value
        return parse_configuration(text)


class Discovery:
    """Asks a configuration endpoint, and gives its client the servers that it tells.

    ``version`` and ``servers`` are the last good answer, ``error`` is why
    the last one was bad, None if it was good. See `discover`.
    """

    def __init__(
        self,
        endpoint: Any,
        interval: float,
        on_change: Callable[["Discovery"], Any] | None,
        options: dict[str, Any],
    ) -> None:
        check_callable("on_change", on_change)
        self.interval = check_seconds("interval", interval)
        _check_options(options)
        self._endpoint = _endpoint(endpoint, options)
        self.endpoint = self._endpoint.servers[0].name
        self.version = -1
        self.servers: tuple[Server, ...] = ()
        self.error: MemcacheError | None = None
        self.timer = NamedTimer("discovery", IOLoop.current(), self._begin)
        self._on_change = on_change
        self._client: weakref.ref[Client] | None = None
        self._asking: asyncio.Task[Configuration] | None = None
        self._left: list[asyncio.Task[Configuration]] = []
        self._closed = False

    async def first(self) -> None:
        """Asks for the first time. Raises what a bad answer comes to."""
        self.version, self.servers = await self._ask()

    def keep(self, client: Client) -> None:
        """Asks again every ``interval`` seconds, for ``client``, on each loop that it comes to."""
        self._client = weakref.ref(client)
        client._cluster.on_bound = self.begin
        client._cluster.ready()

    def begin(self, io_loop: IOLoop) -> None:
        """Asks on ``io_loop`` from now on. The loop before is closed, or the parent's."""
        if self._asking is not None:
            # Nobody there can be told to end it; a task that is collected runs to its end.
            self._left.append(self._asking)
            self._asking = None
        self.timer = NamedTimer("discovery", io_loop, self._begin)
        self.timer.start(self.interval, jitter=JITTER)

    async def _ask(self) -> Configuration:
        try:
            return await self._endpoint.configuration()
        finally:
            # The endpoint's name may lead to another machine the next time.
            self._endpoint.disconnect()

    def _begin(self) -> None:
        self._asking = detached(lambda: asyncio.ensure_future(self._ask()))
        self._asking.add_done_callback(self._asked, context=Context())

    def _asked(self, asking: "asyncio.Future[Configuration]") -> None:
        self._asking = None
        client = self._client() if self._client is not None else None
        if not asking.cancelled():
            asking.exception()  # (there may be nobody to take it)
        if client is None:
            self.close()  # (whoever had the client has let go of it)
        if self._closed or client is None:
            return
        self.timer.start(self.interval, jitter=JITTER)
        if asking.cancelled():
            return  # (by a loop that ends, nearly always: the next one goes on)
        try:
            self._take(asking.result(), client)
        except MemcacheError as error:
            self._fails(error)
        except Exception as error:  # (of a user's ring or resolver)
            failure = ProtocolError(f"its servers cannot be used: {error}", server=self.endpoint)
            failure.__cause__ = error
            self._fails(failure)

    def _take(self, found: Configuration, client: Client) -> None:
        if found.version < self.version:
            raise ProtocolError(f"its version {found.version} is older than {self.version}")
        news = self.error is not None
        if found.version > self.version:
            client.set_servers(found.servers)
            self.version, self.servers = found
            news = True
            told = ", ".join(server.name for server in found.servers)
            _log.info("discovery at %s: version %d, %s", self.endpoint, found.version, told)
        if self.error is not None:
            self.error = None
            _log.info("discovery at %s answers well again", self.endpoint)
        if news:
            self._tell()

    def _fails(self, error: MemcacheError) -> None:
        first, self.error = self.error is None, error.twin()
        if first:
            if not isinstance(error, _TOLD):
                told = "discovery at %s fails: %s; the servers stay as they are"
                _log.warning(told, self.endpoint, error)
            self._tell()

    def _tell(self) -> None:
        if self._on_change is not None:
            boundaries.run(self._on_change, self, Context(), None)

    def close(self) -> None:
        """Asks no more. May be called twice."""
        self._closed = True
        self.timer.stop()
        if self._asking is not None and not self._asking.get_loop().is_closed():
            self._asking.cancel()
        self._endpoint.close()

    def __repr__(self) -> str:
        state = f"fails: {self.error}" if self.error is not None else f"version {self.version}"
        return f"<Discovery {self.endpoint} {state} {self.timer!r}>"


class DiscoveredClient(Client):
    """A `.Client` whose servers are those of a managed cluster; `discover` makes it.

    ``discovery`` is its `Discovery`. The client belongs to the loop on
    which it was made, as if that were its first call; in a child of fork,
    or on the loop after one that was closed, its first call has the
    discovery go on there, until the client is closed.
    """

    def __init__(self, discovery: Discovery, **options: Any) -> None:
        super().__init__(discovery.servers, **options)
        self.discovery = discovery
        discovery.keep(self)

    @property
    def timers(self) -> list[NamedTimer]:
        return [*super().timers, self.discovery.timer]

    def close(self) -> None:
        self.discovery.close()
        super().close()

    def __repr__(self) -> str:
        return f"{super().__repr__()[:-1]} {self.discovery!r}>"


async def discover(
    endpoint: Any,
    *,
    interval: float = 60.0,
    on_change: Callable[[Discovery], Any] | None = None,
    **options: Any,
) -> DiscoveredClient:
    """Returns a client of the cluster whose configuration endpoint is ``endpoint``.

    For ElastiCache (``"my.cfg.use1.cache.amazonaws.com:11211"``) and
    Memorystore (the discovery endpoint). ``options`` are those of
    `.Client`; what concerns connections (timeouts, ``resolver``, ``ssl``,
    credentials) holds for the endpoint too. It is asked once before the
    client is there, and again every ``interval`` seconds, a little less by
    chance. An answer whose version has grown goes to `.Client.set_servers`.

    An answer that is late, broken, empty, or of a smaller version keeps
    the servers as they are: `Discovery.error` tells why, and the log has
    one line when that begins, and one when it ends. ``on_change(discovery)``,
    a function or a coroutine function, is called at these moments and
    when the servers have changed.

    Raises what the first answer comes to: `.ConnectionFailed`, `.Timeout`,
    `.ProtocolError` for what is no list of servers. `TypeError` and
    `.InvalidRequest` for arguments come before anything is asked;
    ``servers`` is none of them.
    """
    discovery = Discovery(endpoint, interval, on_change, options)
    try:
        await discovery.first()
        return DiscoveredClient(discovery, **options)
    except BaseException:
        discovery.close()
        raise
