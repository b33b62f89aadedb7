"""The front door of a memcached server: who is connected, and what is answered to them.

A `FrontDoor` accepts clients, hands their requests to a **handler** and
writes what it replies, in order. The handler is the one seam: a callable
that takes a `.Request` and returns a `.Reply`, or an awaitable of one.

This file knows sockets and who is connected. It must not know how a request
is written (`.text_server`) or who answers it.
"""

import asyncio
import logging
import os
import socket
import stat
from collections.abc import Awaitable, Callable, Iterable, Sequence

from tornado.iostream import IOStream, StreamClosedError
from tornado.tcpserver import TCPServer

from .errors import ClientError, MemcacheError
from .protocol import TOO_MANY_CONNECTIONS, Reply, Request
from .text_server import RequestReader, Settled, encode_reply

logger = logging.getLogger("tornado_memcache.door")

#: A handler of requests: the seam between the front door and what is behind it.
Handler = Callable[[Request], Reply | Awaitable[Reply]]

#: At most this many bytes are read from a client before they are answered.
_READ_BYTES = 64 * 1024
#: Replies above this many bytes are written, and taken by the client,
#: before the next ones are made.
_WRITE_BYTES = 256 * 1024
#: At most this many requests of a client are under way in the handler.
_UNDER_WAY = 100
#: As memcached's own.
_BACKLOG = 1024


def failure(error: Exception) -> Reply:
    """Returns the reply that tells a client of ``error`` (protocol.txt, "Error strings").

    What is no `.MemcacheError` is a fault of the handler: it is logged,
    and the client is told no more than that.
    """
    if isinstance(error, MemcacheError):
        status = b"CLIENT_ERROR" if isinstance(error, ClientError) else b"SERVER_ERROR"
        return Reply(status, text=str(error).encode("utf-8", "replace"))
    logger.error("A handler of requests failed", exc_info=error)
    return Reply(b"SERVER_ERROR", text=b"internal error")


class FrontDoor(TCPServer):
    """Accepts memcached clients and lets ``handler`` answer them.

    Arguments: the ``handler``; ``too_large(key, flags, length)``, which
    says of which values not even the block is received; ``max_clients``,
    above which a client is turned away as memcached does it.

    A client's bytes are read in chunks, and all replies to a chunk leave in
    one write. While a client does not take its replies, it is not read.
    """

    def __init__(
        self,
        handler: Handler,
        *,
        too_large: Callable[[bytes, int, int], bool],
        max_clients: int = 1024,
    ) -> None:
        super().__init__(max_buffer_size=4 * _READ_BYTES, read_chunk_size=_READ_BYTES)
        self.max_clients = max_clients
        #: How many clients have been accepted, ever.
        self.accepted = 0
        self._handler = handler
        self._too_large = too_large
        self._clients: dict[asyncio.Task[None], IOStream] = {}

    def __repr__(self) -> str:
        return f"<{type(self).__name__} {self.connected} clients>"

    @property
    def connected(self) -> int:
        """How many clients are connected."""
        return len(self._clients)

    def handle_stream(self, stream: IOStream, address: object) -> None:
        """Serves a client until it leaves. Called by `.TCPServer`."""
        if len(self._clients) >= self.max_clients:
            try:
                stream.write(TOO_MANY_CONNECTIONS + b"\r\n")
            except StreamClosedError:
                pass
            stream.close()
            return
        self.accepted += 1
        stream.set_nodelay(True)
        task = asyncio.ensure_future(self._serve(stream))
        self._clients[task] = stream
        task.add_done_callback(self._forget)

    def stop(self) -> None:
        """Stops accepting and closes every client's connection, at once.

        The clients' tasks end in the next iteration of the loop; `close`
        waits for them. May be called twice.
        """
        super().stop()
        for task, stream in list(self._clients.items()):
            stream.close()
            task.cancel()

    async def close(self) -> None:
        """Stops, and returns when nothing is left of it."""
        self.stop()
        if self._clients:
            await asyncio.wait(list(self._clients))

    def _forget(self, task: asyncio.Task[None]) -> None:
        stream = self._clients.pop(task)
        stream.close()
        if not task.cancelled() and (error := task.exception()) is not None:
            logger.error("Serving a client failed", exc_info=error)

    async def _serve(self, stream: IOStream) -> None:
        reader = RequestReader(self._too_large)
        try:
            while not reader.closed:
                reading = asyncio.ensure_future(stream.read_bytes(_READ_BYTES, partial=True))
                if reading.done():
                    # One who always has bytes there must not keep the loop.
                    await asyncio.sleep(0)
                await self._answer(stream, reader.receive_data(await reading))
        except StreamClosedError:
            pass

    async def _answer(self, stream: IOStream, asked: Sequence[Request | Settled]) -> None:
        pieces: list[bytes] = []
        size = 0
        for start in range(0, len(asked), _UNDER_WAY):
            some = asked[start : start + _UNDER_WAY]
            answers = [self._begin(one) for one in some]
            try:
                for one, answer in zip(some, answers):
                    if isinstance(answer, asyncio.Future):
                        answer = await _outcome(answer)
                    for piece in _encode(one, answer):
                        pieces.append(piece)
                        size += len(piece)
                        if size > _WRITE_BYTES:
                            await stream.write(b"".join(pieces))
                            pieces, size = [], 0
            finally:
                for answer in answers:
                    if isinstance(answer, asyncio.Future):
                        answer.cancel()
        if pieces:
            await stream.write(b"".join(pieces))

    def _begin(self, one: Request | Settled) -> Settled | Reply | asyncio.Future[Reply]:
        """Asks the handler. What it has to wait for goes on while others are asked."""
        if isinstance(one, Settled):
            return one
        try:
            answer = self._handler(one)
            return answer if isinstance(answer, Reply) else asyncio.ensure_future(answer)
        except Exception as error:
            return failure(error)


async def _outcome(answer: asyncio.Future[Reply]) -> Reply:
    # Not awaited itself: that it was cancelled is no reason to end the client's task.
    await asyncio.wait([answer])
    if answer.cancelled():
        return Reply(b"SERVER_ERROR", text=b"cancelled")
    error = answer.exception()
    if isinstance(error, Exception):
        return failure(error)
    return answer.result()


def _encode(one: Request | Settled, answer: Settled | Reply) -> Iterable[bytes]:
    if isinstance(one, Settled):
        return (one.line + b"\r\n",) if one.line else ()
    assert isinstance(answer, Reply)
    return encode_reply(one, answer)


def listen_on(family: socket.AddressFamily, address: str | tuple[str, int]) -> socket.socket:
    """Returns a socket that listens. One that cannot is closed, which Tornado's own is not."""
    listening = socket.socket(family, socket.SOCK_STREAM)
    try:
        listening.setblocking(False)
        if isinstance(address, str):
            if os.path.exists(address) and stat.S_ISSOCK(os.stat(address).st_mode):
                os.unlink(address)  # (left behind by a server that was killed)
            listening.bind(address)
            os.chmod(address, 0o600)
        else:
            listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            listening.bind(address)
        listening.listen(_BACKLOG)
    except BaseException:
        listening.close()
        raise
    return listening
