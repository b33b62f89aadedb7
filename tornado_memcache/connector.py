"""How a stream to a server is opened.

Knows names, addresses, sockets, whether they are to be made secure, that
we have to say who we are, and which of several attempts wins. It must not
know what the stream is for. Everything it holds (a look-up, streams, a
timeout) is undone by `Connector.close`.
"""

import asyncio
import errno
import os
import select
import socket
from collections.abc import Callable
from contextvars import Context
from datetime import timedelta
from ssl import SSLContext
from typing import Any, NamedTuple

from tornado.ioloop import IOLoop
from tornado.iostream import StreamClosedError
from tornado.netutil import Resolver

from .address import Server
from .authentication import authenticate
from .credentials import Credentials
from .deadlines import detached
from .errors import AuthenticationError, ConnectionFailed
from .stream import SegmentStream, peer_of
from .tls import SecureStream, handshake_failure

#: A second address is tried after at most this long, in seconds.
LONGEST_STAGGER = 0.25
#: A loop that was busy elsewhere tells within so many turns that a connect has ended.
TURNS = 8


class Transport(NamedTuple):
    """How a client's streams are made: who looks names up, what makes them secure, who we are."""

    resolver: Resolver
    ssl_context: SSLContext | None = None
    credentials: Credentials | None = None

    def look_up(self, server: Server) -> "asyncio.Future[Any]":
        """Has the name of ``server`` looked up; raises what the resolver, a user's code, does."""
        return asyncio.ensure_future(self.resolver.resolve(server.host, server.port))


def known_addresses(server: Server) -> list[tuple[int, Any]] | None:
    """Returns the addresses of a server that is given by path or number, None for a name."""
    if server.path is not None:
        return [(socket.AF_UNIX, server.path)]
    try:
        numeric = socket.getaddrinfo(
            server.host, server.port, 0, socket.SOCK_STREAM, 0, socket.AI_NUMERICHOST
        )
    except (OSError, UnicodeError):
        return None
    return [(family, address) for family, _, _, _, address in numeric]


def _cause(error: BaseException) -> OSError:
    """Returns why an opening failed, whatever a resolver or a socket has raised."""
    return error if isinstance(error, OSError) else OSError(str(error) or type(error).__name__)


def _check_backlog(stream: SegmentStream) -> None:
    """Closes a stream to a unix socket that takes no more connections.

    Linux says EAGAIN then, and goes on with nothing; IOStream would wait for it.
    """
    if peer_of(stream) is None:
        stream.close(exc_info=BlockingIOError(errno.EAGAIN, os.strerror(errno.EAGAIN)))


def _has_come_to_something(stream: SegmentStream) -> bool:
    """True if a socket holds the end of a connect, or more of a handshake; looks, and waits not."""
    shaking = isinstance(stream, SecureStream) or stream.receiver is not None
    poll = select.poll()
    poll.register(stream.socket, select.POLLIN if shaking else select.POLLOUT)
    return bool(poll.poll(0))


class Connector:
    """Opens one stream, by the first address of a server that answers.

    With an ``ssl_context`` in ``transport`` an address has answered when
    its TLS handshake is done; nothing is sent in the clear. With
    credentials, those of the server or else of ``transport``, it has
    when it took them; one that refuses them has the last word.

    ``opened(stream)`` or ``failed(error)`` is called once, on a later
    tick, unless `close` comes first. A second address is tried after
    ``stagger`` seconds, or at once when the one before it fails.
    """

    def __init__(
        self,
        server: Server,
        io_loop: IOLoop,
        transport: Transport,
        stagger: float,
        opened: Callable[[SegmentStream], None],
        failed: Callable[[ConnectionFailed], None],
    ) -> None:
        #: "resolving", "connecting", "tls" or "authenticating".
        self.phase = "resolving"
        self._server = server
        self._io_loop = io_loop
        self._transport = transport
        self._stagger = min(stagger, LONGEST_STAGGER)
        self._opened = opened
        self._failed = failed
        self._addresses: list[tuple[int, Any]] = []
        self._attempts: dict[SegmentStream, asyncio.Future[Any]] = {}
        self._look_up: asyncio.Future[Any] | None = None
        self._timeout: object | None = None
        self._ended = False
        self._turns = 0

    def start(self) -> None:
        """Looks the name up, if it is one, and begins to connect."""
        detached(self._start)

    def _start(self) -> None:
        known = known_addresses(self._server)
        if known is None:
            self._begin_look_up()
        else:
            self._found(known)

    def _begin_look_up(self) -> None:
        try:
            self._look_up = self._transport.look_up(self._server)
        except (Exception, asyncio.CancelledError) as error:  # (a resolver is a user's code)
            self._fail(_cause(error))
        else:
            self._look_up.add_done_callback(self._looked_up, context=Context())

    def _looked_up(self, future: "asyncio.Future[Any]") -> None:
        if self._ended or future.cancelled():
            return  # (by a loop that ends, nearly always; else the connect timeout comes)
        try:
            addresses = [(family, address) for family, address in future.result()]
        except Exception as error:
            self._fail(_cause(error))
        else:
            if addresses:
                self._found(addresses)
            else:
                self._fail(OSError(f"{self._server.host} has no address"))

    def _found(self, addresses: list[tuple[int, Any]]) -> None:
        self.phase = "connecting"
        self._addresses = addresses
        self._next_attempt()

    def _next_attempt(self) -> None:
        self._drop_timeout()
        family, address = self._addresses.pop(0)
        stream = None
        try:
            stream = SegmentStream(socket.socket(family, socket.SOCK_STREAM))
            if family != socket.AF_UNIX:
                stream.set_nodelay(True)
                stream.socket.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
            connecting = self._attempts[stream] = stream.connect(address)
        except Exception as error:  # (an address that is none: whatever the socket says of it)
            if stream is not None:
                stream.close()
            self._attempt_failed(_cause(error))
            return
        connecting.add_done_callback(lambda future: self._attempted(stream, future))
        if family == socket.AF_UNIX and not stream.closed():
            _check_backlog(stream)
        if self._addresses:
            self._timeout = self._io_loop.add_timeout(
                timedelta(seconds=self._stagger), self._stagger_over
            )

    def _stagger_over(self) -> None:
        self._timeout = None
        if not self._ended and self._addresses:
            self._next_attempt()

    def _attempted(self, stream: SegmentStream, future: "asyncio.Future[Any]") -> None:
        if self._ended or future.cancelled():
            return
        del self._attempts[stream]
        error = future.exception()
        if error is not None:
            stream.close()
            cause = error.real_error if isinstance(error, StreamClosedError) else error
            self._attempt_failed(_cause(cause or error))
        elif self._transport.ssl_context is None or isinstance(stream, SecureStream):
            credentials = self._server.credentials or self._transport.credentials
            if credentials is None:
                self._win(stream)
            else:
                self._authenticate(stream, credentials)
        else:
            self._secure(stream, self._transport.ssl_context)

    def _win(self, stream: SegmentStream) -> None:
        self.close()
        self._opened(stream)

    def _authenticate(self, stream: SegmentStream, credentials: Credentials) -> None:
        """Tells the server who we are, on a stream that is as open and secure as it gets."""
        self.phase = "authenticating"
        asked = self._attempts[stream] = authenticate(stream, credentials)
        asked.add_done_callback(lambda future: self._authenticated(stream, future))

    def _authenticated(self, stream: SegmentStream, future: "asyncio.Future[None]") -> None:
        if self._ended:
            return
        del self._attempts[stream]
        error = future.exception()
        if error is None:
            self._win(stream)
            return
        stream.close()
        if isinstance(error, AuthenticationError):
            self._fail(error)
        else:
            self._attempt_failed(_cause(error))

    def _secure(self, stream: SegmentStream, context: SSLContext) -> None:
        """Begins the TLS handshake over a stream that is connected."""
        self.phase = "tls"
        try:
            secure = SecureStream.over(stream, context, self._server.host)
        except (OSError, ValueError) as error:
            self._attempt_failed(_cause(error))
            return
        shaking = self._attempts[secure] = secure.wait_for_handshake()
        shaking.add_done_callback(lambda future: self._attempted(secure, future))

    def _attempt_failed(self, error: OSError) -> None:
        if self._addresses:
            self._next_attempt()
        elif not self._attempts:
            self._fail(error)

    def _fail(self, cause: OSError) -> None:
        self.close()
        if isinstance(cause, ConnectionFailed):
            error = cause
            error.server = self._server.name
        else:
            if self.phase == "tls":
                told, number = handshake_failure(cause)
            else:
                told, number = f"cannot connect: {cause.strerror or cause}", cause.errno
            error = ConnectionFailed(told, errno=number, server=self._server.name, phase=self.phase)
        detached(self._io_loop.add_callback, self._failed, error)

    @property
    def has_news(self) -> bool:
        """True if an attempt has come to something that the loop did not tell yet."""
        return self._ended or any(
            future.done() or _has_come_to_something(stream)
            for stream, future in self._attempts.items()
        )

    def ends_soon(self) -> bool:
        """To be asked in each turn of the loop, once the time is up: True if one more is due.

        As a reply that has come, what has ended the opening wins over the timer.
        """
        if not (self._turns or self.has_news):
            return False
        self._turns += 1
        return self._turns <= TURNS

    def _drop_timeout(self) -> None:
        if self._timeout is not None:
            self._io_loop.remove_timeout(self._timeout)
            self._timeout = None

    def forget(self) -> None:
        """Closes the sockets, and tells nothing to a loop that is closed, or is a parent's."""
        self._ended = True
        for stream in self._attempts:
            if not stream.closed():
                stream.socket.close()
        self._attempts = {}

    def close(self) -> None:
        """Undoes whatever has begun. Neither callback is called afterwards."""
        self._ended = True
        self._drop_timeout()
        if self._look_up is not None:
            self._look_up.cancel()
        attempts, self._attempts = self._attempts, {}
        for stream in attempts:
            stream.close()
