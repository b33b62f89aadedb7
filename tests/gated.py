"""A memcached in the test's own loop that stops at one place and goes on when it is let go.

Answers out of the package's `Store`, which it lends to the test, so that
nothing has to be asked of it. It knows where a reply has a header, a value
and an end; it must not know a client. Everything it does takes a turn of the
loop or two, and never a thread or a time.
"""

from __future__ import annotations

import asyncio
import contextvars
import socket
import time
from ssl import SSLContext
from typing import Any

from tornado_memcache.errors import MemcacheError
from tornado_memcache.guest import failure
from tornado_memcache.protocol import Request
from tornado_memcache.store import Store
from tornado_memcache.store_handler import StoreHandler
from tornado_memcache.text_server import RequestReader, Settled, encode_reply

#: Where it can stop: before the TLS handshake; it does not read; it has sent nothing of the
#: reply, half of its first line, of its value (of the whole, where there is none), all but its
#: end.
PLACES = ("handshake", "reading", "reply", "header", "value", "end")


class Gated:
    """The server; an async context manager.

    With ``narrow`` its sockets take in little, so that a client that
    writes 400 kB to one that does not read has to wait. With a context
    ``ssl`` it speaks TLS. ``asked`` are the requests that came, ``held``
    is True while it stands where `hold` told it to.
    """

    def __init__(self, *, narrow: bool = False, ssl: SSLContext | None = None) -> None:
        self.store = Store(time.time)
        self.asked: list[Request] = []
        self.connections: set[_Connection] = set()
        #: How many connections were made, ever.
        self.accepted = 0
        self.address = ""
        self.port = 0
        self._handler = StoreHandler(self.store)
        self._narrow = narrow
        self._ssl = ssl
        self._tasks: set[asyncio.Task[None]] = set()
        self._place = ""
        self._key = b""
        self._held: _Connection | None = None

    async def __aenter__(self) -> Gated:
        listener = socket.create_server(("127.0.0.1", 0), backlog=200)
        if self._narrow:
            # By both Linux bounds what a sender's socket takes in, to about 120 kB: short
            # segments alone bound it for a moment, until the receiver's window has grown.
            listener.setsockopt(socket.IPPROTO_TCP, socket.TCP_MAXSEG, 536)
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        listener.setblocking(False)
        self.port = listener.getsockname()[1]
        self.address = f"127.0.0.1:{self.port}"
        self._listener = listener
        self._loop = asyncio.get_running_loop()
        # In nobody's context: it serves many callers. (No task that awaits sock_accept: one
        # that is cancelled may have been given a connection.)
        contextvars.Context().run(self._loop.add_reader, listener, self._accept)
        return self

    async def __aexit__(self, *_: object) -> None:
        self.stop()
        self.release()
        self.reset()
        while self.connections or self._tasks:
            await asyncio.sleep(0)

    def stop(self) -> None:
        """Accepts nobody any more: a connect is refused."""
        if self._listener.fileno() >= 0:
            self._loop.remove_reader(self._listener)
            self._listener.close()
        for task in self._tasks:
            task.cancel()

    def _accept(self) -> None:
        try:
            peer, _ = self._listener.accept()
        except OSError:  # (whoever it was has gone again)
            return
        self.accepted += 1
        peer.setblocking(False)
        peer.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        task = asyncio.ensure_future(self._serve(peer))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        # (One that is cancelled before its first step cannot close anything.)
        task.add_done_callback(lambda ended: peer.close() if ended.cancelled() else None)

    async def _serve(self, peer: socket.socket) -> None:
        try:
            while self._place == "handshake":
                await asyncio.sleep(0)
            served = self._loop.connect_accepted_socket
            await served(lambda: _Connection(self), peer, ssl=self._ssl)
        except OSError:  # (the client has gone)
            peer.close()

    def hold(self, place: str, key: bytes = b"") -> None:
        """Has it stop at ``place``, of the reply to the next request for ``key...`` or for none."""
        assert place in PLACES and self._held is None
        self._place, self._key = place, key
        if place == "reading":
            for connection in self.connections:
                connection.go_on(False)

    @property
    def reads(self) -> bool:
        return self._place != "reading"

    @property
    def held(self) -> bool:
        return self._held is not None or not self.reads

    def release(self) -> None:
        """Lets it go on, for good. May be called twice."""
        if self._place == "reading":
            for connection in self.connections:
                connection.go_on(True)
        self._place = ""
        connection, self._held = self._held, None
        if connection is not None:
            connection.send_kept()

    def reset(self) -> None:
        """Ends every connection at once."""
        for connection in self.connections:
            connection.transport.abort()

    def answer(self, connection: _Connection, one: Request | Settled) -> None:
        if isinstance(one, Settled):
            connection.send(one.line + b"\r\n")
            return
        self.asked.append(one)
        try:
            answer = self._handler(one)
        except MemcacheError as error:
            answer = failure(error)
        reply = b"".join(encode_reply(one, answer))
        if self._place in ("", "handshake", "reading") or not self._is_it(one):
            connection.send(reply)
            return
        cut = _cut(reply, self._place, self._key)
        self._place, self._held = "", connection
        connection.send(reply[:cut])
        connection.keep(reply[cut:])

    def _is_it(self, request: Request) -> bool:
        return not request.keys or any(key.startswith(self._key) for key in request.keys)


def _cut(reply: bytes, place: str, key: bytes) -> int:
    """Returns how much of ``reply`` is sent before it stops at ``place``."""
    start = max(0, reply.find(b"VALUE " + key))
    line = reply.index(b"\r\n", start) + 2
    if place == "value":
        end = reply.find(b"\r\n", line)
        return (line + end) // 2 if end > line else len(reply) // 2
    return {"reply": 0, "header": (start + line) // 2, "end": max(1, len(reply) - 3)}[place]


class _Connection(asyncio.Protocol):
    def __init__(self, server: Gated) -> None:
        self._server = server
        self._reader = RequestReader(server.store.too_large)
        self._kept: bytes | None = None
        self._reads = True

    def connection_made(self, transport: Any) -> None:
        self.transport = transport
        self._server.connections.add(self)
        self.go_on(self._server.reads)

    def go_on(self, reads: bool) -> None:
        """Reads on, or stops reading."""
        if reads is not self._reads and not self.transport.is_closing():
            self._reads = reads
            if reads:  # (what it has to read now comes in through a window as wide as others')
                peer = self.transport.get_extra_info("socket")
                peer.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1 << 20)
            (self.transport.resume_reading if reads else self.transport.pause_reading)()

    def data_received(self, data: bytes) -> None:
        for one in self._reader.receive_data(data):
            self._server.answer(self, one)

    def send(self, data: bytes) -> None:
        if self._kept is not None:
            self._kept += data
        elif not self.transport.is_closing():
            self.transport.write(data)

    def keep(self, data: bytes) -> None:
        self._kept = data

    def send_kept(self) -> None:
        kept, self._kept = self._kept or b"", None
        self.send(kept)

    def connection_lost(self, error: Exception | None) -> None:
        self._server.connections.discard(self)
