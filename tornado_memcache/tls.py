"""A `SegmentStream` over TLS, and the context that it is made with.

Knows what an `ssl.SSLContext` and Tornado's SSLIOStream need. It must not
know addresses, nor what the bytes mean.
"""

import asyncio
import ssl
from collections import deque
from collections.abc import Iterator, Sequence
from contextvars import Context
from typing import Any

from tornado.iostream import SSLIOStream

from .deadlines import detached
from .errors import CLOSED, ConnectionFailed, InvalidRequest
from .stream import MOST_SEGMENTS, SEGMENT, SegmentStream

#: What a record of TLS holds at most, and one read of an SSL socket gives, in bytes.
RECORD = 16 * 1024
#: What may be amiss on our side when a certificate is refused, by OpenSSL's code for it.
_AUTHORITY = "trust an authority of your own with ssl=ssl.create_default_context(cafile=...)"
_NAME = "servers must hold the name that is in the certificate"
_HINTS = {18: _AUTHORITY, 19: _AUTHORITY, 20: _AUTHORITY, 21: _AUTHORITY, 62: _NAME, 64: _NAME}
#: What OpenSSL says when the other side answers a handshake with something else.
_NOT_TLS = ("WRONG_VERSION_NUMBER", "HTTP_REQUEST", "RECORD_LAYER_FAILURE")
#: What OpenSSL says when the other side refuses our certificate, or that we have none.
_WANTS_OURS = ("CERTIFICATE_REQUIRED", "BAD_CERTIFICATE")
_DEMANDS = "the server demands a client's certificate, or refuses it: SSLContext.load_cert_chain"
#: memcached refuses a connection in the clear, whatever its port speaks.
_CLEAR = "does not speak TLS, or is at its limit of connections"


def checked_context(wanted: Any) -> ssl.SSLContext | None:
    """Returns the context for ``ssl=``, None for connections in the clear.

    True gives one that verifies certificate and name, by the system's
    authorities, from TLS 1.2 on. A context of the user's own is kept as
    it is. Raises `TypeError` for anything else.
    """
    if wanted is None or wanted is False:
        return None
    if wanted is True:
        context = ssl.create_default_context()
        context.minimum_version = ssl.TLSVersion.TLSv1_2
        return context
    if not isinstance(wanted, ssl.SSLContext):
        raise TypeError(f"ssl must be True or an ssl.SSLContext, not {type(wanted).__name__}")
    if wanted.protocol is ssl.PROTOCOL_TLS_SERVER:
        raise InvalidRequest("ssl is a server's context: make a client's one for the client")
    return wanted


def handshake_failure(cause: OSError) -> tuple[str, int | None]:
    """Returns what a failed handshake is told as, and its errno if it has one."""
    if isinstance(cause, ssl.SSLCertVerificationError):
        hint = _HINTS.get(cause.verify_code)
        told = f"{cause.verify_message} ({hint})" if hint else cause.verify_message
        return f"the server's certificate is refused: {told}", None
    if not isinstance(cause, ssl.SSLError):
        told = cause.strerror or CLOSED
        return f"TLS handshake failed: {told}", cause.errno
    if cause.reason in _NOT_TLS:
        return f"TLS handshake failed: the server {_CLEAR}", None
    if (cause.reason or "").endswith(_WANTS_OURS):
        return f"TLS handshake failed: {_DEMANDS}", None
    return f"TLS handshake failed: {cause.reason or cause}", None


def loss(
    stream: SegmentStream | None, error: BaseException | None, server: str, heard: bool
) -> ConnectionFailed:
    """Returns what a connection that has ended is told as; ``heard``: a byte had come.

    In TLS 1.3 our side of the handshake is done before the server has seen
    our certificate: its refusal comes later, and it has read no request.
    """
    if isinstance(error, ssl.SSLError) and (error.reason or "").endswith(_WANTS_OURS) and not heard:
        return ConnectionFailed(handshake_failure(error)[0], server=server, phase="tls")
    told = f"connection lost: {error}" if error else CLOSED
    if isinstance(error, ConnectionResetError) and not (heard or isinstance(stream, SecureStream)):
        told += " (does it speak TLS? ssl=...)"
    errno = error.errno if isinstance(error, OSError) else None
    return ConnectionFailed(told, errno=errno, server=server)


def records(pieces: Sequence[bytes]) -> Iterator[bytes]:
    """Yields what each write is given, so that no record ends in the middle of two requests.

    memcached (1.6.18 at least) reads a block as far as it goes and then
    waits for the descriptor, whatever of the same record is decrypted
    already: requests behind the end of a block that began in a record
    before would wait there until something else comes.
    """
    gathered: list[bytes] = []
    size = 0
    for piece in pieces:
        ends_block = piece == b"\r\n"
        if gathered and not ends_block and size + len(piece) > RECORD:
            yield b"".join(gathered)
            gathered, size = [], 0
        gathered.append(piece)
        size += len(piece)
        if ends_block:
            yield b"".join(gathered)
            gathered, size = [], 0
    if gathered:
        yield b"".join(gathered)


class SecureStream(SegmentStream, SSLIOStream):
    """A `SegmentStream` whose bytes go through TLS."""

    nothing_yet = (BlockingIOError, ssl.SSLWantReadError, ssl.SSLWantWriteError)

    def __init__(self, sock: ssl.SSLSocket, context: ssl.SSLContext) -> None:
        self._records: deque[bytes] = deque()
        self._rest: asyncio.Future[None] | None = None
        super().__init__(sock, ssl_options=context)

    @classmethod
    def over(cls, stream: SegmentStream, context: ssl.SSLContext, name: str) -> "SecureStream":
        """Takes the connection of ``stream`` over and begins the handshake on it.

        ``name`` is the one that the certificate has to bear. Raises
        `OSError` or `ValueError` where that cannot begin; the connection
        is closed then.
        """
        # IOStream lets nobody have its socket but a plain SSLIOStream: the
        # connection lives on in a descriptor of our own.
        try:
            sock = stream.socket.dup()
        finally:
            stream.close()
        try:
            sock.getpeername()  # (ssl loses the descriptor of a socket that is not connected)
            wrapped = context.wrap_socket(sock, server_hostname=name, do_handshake_on_connect=False)
        except BaseException:
            sock.close()
            raise
        secure = cls(wrapped, context)
        try:
            wrapped.getpeername()  # lost meanwhile: the handshake would not begin
        except OSError:
            secure.close()
            raise
        return secure

    def writing(self) -> bool:
        return bool(self._records) or super().writing()

    def read_from_fd(self, buf: bytearray | memoryview) -> int | None:
        # What was decrypted and not read waits in the SSL layer while the
        # descriptor is silent; more than a segment waits for its turn there.
        turns = SEGMENT // RECORD * (MOST_SEGMENTS if self.told_once else 1)
        while self.read_segment():
            turns -= 1
            if turns <= 0 and not self.closed() and not self.socket.pending():
                if self.told_once:
                    detached(self.io_loop.add_callback, self.read_from_fd, buf)
                break
        return None

    def send_pieces(self, pieces: Sequence[bytes], size: int) -> "asyncio.Future[None] | None":
        # Only IOStream knows how to go on with a record that is half sent.
        self._records.extend(records(pieces))
        if detached(self._write_on):
            return None
        self._rest = asyncio.get_running_loop().create_future()
        return self._rest

    def _write_on(self) -> bool:
        """Writes record after record; returns True when none is left."""
        while self._records and not self.closed():
            written = self.write(self._records.popleft())
            if super().writing():
                written.add_done_callback(self._written, context=Context())
                return False
        return True

    def _written(self, written: "asyncio.Future[None]") -> None:
        if written.exception() is None and self._write_on() and self._rest is not None:
            rest, self._rest = self._rest, None
            rest.set_result(None)

    def close(self, exc_info: Any = False) -> None:
        self._records.clear()
        super().close(exc_info)
