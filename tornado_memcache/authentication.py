"""How a fresh stream tells a server who we are.

Knows the one request and its answers (protocol.txt, "Authentication"). It
must not know how the stream was opened, nor what it is for. No word of
the answer is shown: a server may repeat what it was told.
"""

import asyncio

from .credentials import Credentials
from .errors import CLOSED, AuthenticationError, ConnectionFailed
from .protocol import AT_LIMIT, MAX_LINE, TOO_MANY_CONNECTIONS, Request
from .stream import SegmentStream
from .text import encode_request

#: The key of the request.
_KEY = b"tornado_memcache_authentication"


def authenticate(stream: SegmentStream, credentials: Credentials) -> "asyncio.Future[None]":
    """Sends ``credentials``; returns the future of the answer.

    It fails with `.AuthenticationError` if they are refused, with another
    `OSError` if the stream ends, or if the answer is none. Until then the
    stream has this for its receiver, and none afterwards.
    """
    handshake = _Handshake(stream)
    stream.receiver = handshake
    pieces = encode_request(_request(credentials))
    stream.send_pieces(pieces, sum(map(len, pieces)))
    return handshake.ended


def _request(credentials: Credentials) -> Request:
    # set <key> <flags> <exptime> <bytes>\r\n<username> <password>\r\n
    #
    # memcached looks at the length and the data block alone. The exptime is one that has
    # passed: a server that asks nobody who they are takes it for a value, and keeps nothing.
    return Request(b"set", (_KEY,), credentials.block(), exptime=-1)


class _Handshake:
    """Receives one line."""

    def __init__(self, stream: SegmentStream) -> None:
        self._stream = stream
        self._line = b""
        self.ended: asyncio.Future[None] = asyncio.get_running_loop().create_future()

    def receiving(self) -> None:
        return None

    def received_into(self, count: int) -> None:
        """Nothing is received into a buffer of one's own."""

    def received(self, data: bytes) -> None:
        self._line += data
        if b"\n" in self._line or len(self._line) >= MAX_LINE:
            self._end(_failure(self._line))

    def stream_closed(self, error: BaseException | None) -> None:
        told = f"{error or CLOSED} (a proxy takes no username and password)"
        errno = error.errno if isinstance(error, OSError) else None
        self._end(ConnectionFailed(told, errno=errno, phase="authenticating"))

    def _end(self, failure: ConnectionFailed | None) -> None:
        self._stream.receiver = None
        if failure is None:
            self.ended.set_result(None)
        else:
            self.ended.set_exception(failure)
            self.ended.exception()  # (nobody is there to ask, if the opening was given up)


def _failure(answer: bytes) -> ConnectionFailed | None:
    """Returns what the ``answer`` means: None if the server lets us in."""
    # STORED\r\n   CLIENT_ERROR authentication failure\r\n
    if answer == b"STORED\r\n":
        return None
    if answer.startswith(b"CLIENT_ERROR"):
        told = "the server refuses username and password"
        return AuthenticationError(told, phase="authenticating")
    if answer.startswith(TOO_MANY_CONNECTIONS):
        return ConnectionFailed(AT_LIMIT, phase="connecting")
    told = "the server's answer to username and password is none that memcached gives"
    return ConnectionFailed(told, phase="authenticating")
