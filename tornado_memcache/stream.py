"""An IOStream that reads and writes whole segments.

Knows a socket and how Tornado's IOStream lets a subclass read. It must not
know what the bytes mean: a receiver takes them.
"""

import asyncio
import socket
from collections.abc import Sequence
from typing import Any, Protocol

from tornado.ioloop import IOLoop
from tornado.iostream import IOStream

from .deadlines import detached

#: How much is read from a socket at once, in bytes: a value of 100 KB comes whole, and
#: malloc still takes the segment from its heap (from 128 KB on it may map fresh pages).
SEGMENT = 112 * 1024
#: Pieces up to this many bytes together are joined; larger ones go out
#: through sendmsg without a copy.
JOINED_BYTES = 64 * 1024
#: So many segments are read in one turn of a loop that tells of them once.
MOST_SEGMENTS = 16
#: Linux takes at most this many pieces in one sendmsg (IOV_MAX).
MOST_PIECES = 1024


def peer_of(stream: IOStream) -> Any:
    """Returns the address at the other end, None if it is not connected any more."""
    try:
        return stream.socket.getpeername()
    except OSError:
        return None


class Receiver(Protocol):
    """What a stream hands its bytes and its end to."""

    def receiving(self) -> memoryview | None:
        """Returns the buffer to receive into, None to take a segment as it comes."""

    def received(self, data: bytes) -> None: ...
    def received_into(self, count: int) -> None: ...
    def stream_closed(self, error: BaseException | None) -> None: ...


class SegmentStream(IOStream):
    """An IOStream that hands each segment to its receiver at once.

    ``read_from_fd`` is where IOStream lets a subclass read; nothing is
    kept in the stream's own buffer, no future and no search for a
    delimiter is paid for a line.
    """

    # IOStream's own attributes just fit in a small dict: ours would make it 1.5 KB larger.
    __slots__ = ("receiver", "refuses", "told_once")

    #: What the socket raises when it holds nothing.
    nothing_yet: tuple[type[OSError], ...] = (BlockingIOError,)

    def __init__(self, sock: socket.socket, **options: Any) -> None:
        # IOStream makes a buffer of this size for each read; ours is unused.
        super().__init__(sock, read_chunk_size=1, **options)
        self.receiver: Receiver | None = None
        #: True after a `send_pieces` that failed before any of its bytes left.
        self.refuses = False
        loop = getattr(self.io_loop, "asyncio_loop", None)
        #: True on a loop that may tell of a reset once, although there is more to read
        #: before it, as libuv does: a selector tells again.
        self.told_once = not isinstance(loop, asyncio.SelectorEventLoop)

    def reading(self) -> bool:
        # Without this IOStream drops its interest in READ while a write is
        # pending, and two sides that both write large values stand still.
        return not self.closed()

    def read_from_fd(self, buf: bytearray | memoryview) -> int | None:
        if not self.told_once:
            self.read_segment()
            return None
        for _ in range(MOST_SEGMENTS):
            if not self.read_segment():
                return None
        detached(self.io_loop.add_callback, self.read_from_fd, buf)
        return None

    def read_segment(self) -> bool:
        """Reads once what the socket holds; returns True if it held anything."""
        receiver = self.receiver
        if receiver is None or self.closed():
            return False
        try:
            buffer = receiver.receiving()
            if buffer is None:
                data = self.socket.recv(SEGMENT)
            else:
                count = self.socket.recv_into(buffer)
        except self.nothing_yet:
            return False
        except OSError as error:
            self.close(exc_info=error)
            return False
        if buffer is None and data:
            receiver.received(data)
        elif buffer is not None and count:
            receiver.received_into(count)
        else:
            self.close()
            return False
        return True

    def pause(self) -> None:
        """Reads no more: what comes waits in the socket, and whoever sends it in the end.

        Nor is the stream's end noticed. For one on which nothing is written meanwhile.
        """
        self.receiver = None
        self.io_loop.update_handler(self.fileno(), IOLoop.NONE)

    def resume(self, receiver: Receiver) -> None:
        """Reads on after a `pause`, on a later tick."""
        # (A segment is longer than a record of TLS: nothing is left that was decrypted before.)
        self.receiver = receiver
        if not self.closed():
            self.io_loop.update_handler(self.fileno(), IOLoop.READ | IOLoop.ERROR)

    def send_pieces(self, pieces: Sequence[bytes], size: int) -> "asyncio.Future[None] | None":
        """Sends ``pieces``, ``size`` bytes together, straight to the socket.

        Returns None when all of it is out, else the future of the rest,
        which IOStream writes when the server reads on. Must not be called
        before that is done.
        """
        try:
            if size <= JOINED_BYTES:
                pieces = [b"".join(pieces)] if len(pieces) > 1 else pieces
                sent = self.socket.send(pieces[0])
            else:
                sent = self.socket.sendmsg(pieces[:MOST_PIECES])
        except BlockingIOError:
            sent = 0
        except OSError as error:
            self._send_failed(error)
            self.refuses, sent = True, 0
        if sent == size:
            return None
        return detached(self._write_rest, pieces, sent)

    def _write_rest(self, pieces: Sequence[bytes], sent: int) -> "asyncio.Future[None]":
        small = bytearray()
        for piece in pieces:
            if sent >= len(piece):
                sent -= len(piece)
                continue
            rest = memoryview(piece)[sent:]
            sent = 0
            if len(rest) <= JOINED_BYTES:
                small += rest
                continue
            if small:
                rest = memoryview(bytes(small) + rest)
                small = bytearray()
            written = self.write(rest)
            if self.closed():
                break  # (a second write would raise at the caller)
        return self.write(bytes(small)) if small and not self.closed() else written

    def write_to_fd(self, data: memoryview) -> int:
        if self.error is not None:
            return 0
        try:
            return super().write_to_fd(data)
        except BlockingIOError:
            raise
        except OSError as error:
            self._send_failed(error)
            return 0

    def _send_failed(self, error: OSError) -> None:
        """Has the stream closed with ``error`` when all is read that had come before.

        On a later tick, since the receiver runs callers' code, which must
        not run inside a send. Until then the stream counts as writing.
        """
        self.error = error
        detached(self.io_loop.add_callback, self._read_to_the_end)

    def _read_to_the_end(self) -> None:
        for _ in range(MOST_SEGMENTS):
            if not self.read_segment():
                self.close()
                return
        detached(self.io_loop.add_callback, self._read_to_the_end)

    def close(self, exc_info: Any = False) -> None:
        closing = not self.closed()
        super().close(exc_info)
        if closing and self.receiver is not None:
            self.receiver.stream_closed(self.error)
