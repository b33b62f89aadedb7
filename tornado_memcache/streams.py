"""What servers tell without end, or at length: ``watch`` and ``metadump``.

Knows connections that belong to one stream each, who reads from them, and
how they end. It must not know what a line means, nor what a pool is: a stream
takes no part in what is known of a server.

What a socket has brought and nobody has read is bounded: beyond that no more
is read from it until it is wanted.
"""

import asyncio
import os
import weakref
from collections import deque
from collections.abc import Iterable, Sequence
from contextvars import Context
from threading import get_ident
from typing import Any, Generic, TypeVar

from .address import Server, parse_server
from .arguments import check_seconds
from .cluster import Cluster
from .connector import Connector
from .deadlines import NEVER, clock
from .errors import (
    ClientClosed,
    InvalidServer,
    MemcacheError,
    ProtocolError,
    Timeout,
    shown,
)
from .settings import Settings
from .stream import SegmentStream
from .streamed import (
    Lines,
    MetadumpEntry,
    MetadumpLines,
    WatchEvent,
    WatchLines,
    watch_request,
)
from .tls import loss

_T = TypeVar("_T")
_S = TypeVar("_S", bound="Stream[Any]")

#: A line is never longer than this, in bytes: a key takes 750, as each byte of it may take three.
LONGEST_LINE = 4096
#: No more is read from a connection while so many bytes of lines wait to be read.
MOST_UNREAD = 256 * 1024
#: A server that is busy is asked again after so many seconds at first, then after twice as long.
FIRST_PAUSE, LONGEST_PAUSE = 0.05, 0.5


class Bell:
    """Wakes the one who reads a stream."""

    def __init__(self) -> None:
        self.waiting: asyncio.Future[None] | None = None

    def ring(self) -> None:
        waiting, self.waiting = self.waiting, None
        if waiting is not None and not waiting.done():
            waiting.set_result(None)

    async def wait(self, moment: float) -> None:
        """Waits until it rings, or until ``moment``."""
        self.waiting = asyncio.get_running_loop().create_future()
        length = None if moment == NEVER else max(0.0, moment - clock())
        await asyncio.wait({self.waiting}, timeout=length)


class Source(Generic[_T]):
    """The connection to one server that brings the lines of a stream."""

    def __init__(self, server: Server, lines: Lines[_T], bell: Bell, timeout: float) -> None:
        self.lines = lines
        self.failure: MemcacheError | None = None
        #: The moment by which something has to come.
        self.deadline = NEVER
        self.begun = False
        self._server = server
        self._bell = bell
        self._timeout = timeout
        self._connector: Connector | None = None
        self._stream: SegmentStream | None = None
        self._loop: asyncio.AbstractEventLoop | None = None
        self._unread: deque[bytes] = deque()
        self._size = 0
        self._tail = b""
        self._heard = self._closed = self._paused = False
        #: When a busy server is asked again, and after which pause the next time.
        self._again_at, self._pause, self._patience = NEVER, FIRST_PAUSE, NEVER

    # -- its begin

    def begin(self, cluster: Cluster, connect_timeout: float) -> None:
        """Begins to connect."""
        self.begun = True
        self._loop, self._thread, self._pid = cluster.ready(), get_ident(), os.getpid()
        self.deadline = clock() + connect_timeout
        self._connector = cluster.connector(self._server, self._opened, self.fail)
        self._connector.start()

    def _opened(self, stream: SegmentStream) -> None:
        if self._closed:
            stream.close()
            return
        self._connector, self._stream, stream.receiver = None, stream, self
        self._patience = clock() + self._timeout
        self._ask()

    def _ask(self) -> None:
        assert self._stream is not None
        self._again_at, self.lines.busy = NEVER, False
        self.deadline = clock() + self._timeout
        self._stream.send_pieces([self.lines.request], len(self.lines.request))

    # -- what the stream tells

    def receiving(self) -> None:
        return None

    def received_into(self, count: int) -> None:
        """Nothing is received into a buffer of one's own."""

    def received(self, data: bytes) -> None:
        self._heard = True
        *lines, self._tail = (self._tail + data).split(b"\n")
        try:
            for line in lines:
                self._take(line[:-1] if line.endswith(b"\r") else line)
            if len(self._tail) > LONGEST_LINE:
                self._too_long()
        except MemcacheError as error:
            self.fail(error)
        if self.lines.ended:
            self.close()
        elif not self._closed:
            self._heard_more()
        self._bell.ring()

    def _take(self, line: bytes) -> None:
        if len(line) > LONGEST_LINE:
            self._too_long()
        if self.lines.ended or self.lines.busy:
            raise ProtocolError("the server sent more than it was asked for", server=self.name)
        if self.lines.accept(line):
            self._unread.append(line)
            self._size += len(line)

    def _too_long(self) -> None:
        told = f"the server sent a line of over {LONGEST_LINE} bytes"
        raise ProtocolError(told, server=self.name)

    def _heard_more(self) -> None:
        """Sets what is waited for next, and reads no more while much is unread."""
        now = clock()
        self.deadline = now + self._timeout if self.lines.ends else NEVER
        if self.lines.busy:
            self.deadline, self._again_at = self._patience, now + self._pause
            self._pause = min(2 * self._pause, LONGEST_PAUSE)
        if self._size > MOST_UNREAD and self._stream is not None:
            self._paused, self.deadline = True, NEVER
            self._stream.pause()

    def stream_closed(self, error: BaseException | None) -> None:
        self.fail(loss(self._stream, error, self.name, self._heard))

    # -- what a reader asks

    @property
    def name(self) -> str:
        return self._server.name

    @property
    def next_moment(self) -> float:
        """The moment at which `look` has something to do."""
        return min(self.deadline, self._again_at)

    def look(self) -> None:
        """Does what is due."""
        now = clock()
        if self._closed or now < self.next_moment:
            return
        if self._connector is not None:
            if not self._connector.ends_soon():
                self._late(self._connector.phase)
        elif self._again_at <= now < self.deadline:
            self._ask()
        elif isinstance(self.lines, MetadumpLines) and self.lines.busy:
            self.fail(self.lines.is_busy())
        else:
            self._late("reply")

    def _late(self, phase: str) -> None:
        asked = self.lines.request.decode("ascii").rstrip()
        self.fail(Timeout("timed out", server=self.name, phase=phase, asked=asked))

    def pop(self) -> _T | None:
        """Returns what the next line says, None if there is none."""
        if not self._unread:
            return None
        line = self._unread.popleft()
        self._size -= len(line)
        if self._paused and self._size < MOST_UNREAD // 2:
            self._paused = False
            if self._stream is not None:
                self._heard_more()
                self._stream.resume(self)
        return self.lines.read(line)

    # -- its end

    def fail(self, error: MemcacheError) -> None:
        """Ends it with ``error``, behind what has come before."""
        if self.failure is None and not self._closed:
            self.failure = error
            self.close()
            self._bell.ring()

    def close(self) -> None:
        """Gives the connection back. May be called twice, on any thread, and after the loop."""
        if self._closed:
            return
        loop = self._loop
        if loop is None:
            self._closed = True
        elif loop.is_closed() or os.getpid() != self._pid:
            self._closed = True
            if self._connector is not None:
                self._connector.forget()
            if self._stream is not None:
                self._stream.socket.close()
        elif loop.is_running() and get_ident() != self._thread:
            loop.call_soon_threadsafe(self.close, context=Context())
        else:
            self._closed, self.deadline, self._again_at = True, NEVER, NEVER
            if self._connector is not None:
                self._connector.close()
            if self._stream is not None:
                self._stream.receiver = None
                self._stream.close()


class Stream(Generic[_T]):
    """What one or more servers tell, as an asynchronous iterator.

    It connects when the first is asked for, and gives its connections
    back when it is at its end, when it fails, when the client is closed,
    and when the loop over it was left and nothing else holds it; `aclose`
    and ``async with`` do so at once. What it has failed with it raises
    again whenever it is asked for more: it does not seem complete.
    """

    def __init__(self, kept: "Streams", sources: Sequence[Source[_T]], bell: Bell) -> None:
        self._kept = kept
        self._sources = list(sources)
        self._bell = bell
        self._failure: MemcacheError | None = None
        self._over = self._busy = False

    def __aiter__(self) -> "Stream[_T]":
        return self

    async def __anext__(self) -> _T:
        if self._busy:
            raise RuntimeError("this stream is being read: one reader at a time")
        self._busy = True
        try:
            return await self._next()
        finally:
            self._busy = False

    async def _next(self) -> _T:
        while True:
            if self._failure is not None:
                raise self._failure.twin()
            if self._over:
                raise StopAsyncIteration
            try:
                found = self._pop()
            except MemcacheError as error:
                self.fail(error)
                continue
            if found is not None:
                return found
            if not (self._over or self._failure is not None):
                self._go_on()
                await self._bell.wait(min(source.next_moment for source in self._reading()))

    def _pop(self) -> _T | None:
        """Returns what came first, None if nothing has."""
        reading = list(self._reading())
        for source in reading:
            source.look()
            found = source.pop()
            if found is not None:
                if len(reading) > 1:  # (the others come first the next time)
                    self._sources.remove(source)
                    self._sources.append(source)
                return found
            if source.failure is not None:
                raise source.failure
            if source.lines.ended:
                self._sources.remove(source)
        if not self._sources:
            self._end()
        return None

    def _reading(self) -> Iterable[Source[_T]]:
        """Returns the sources that are read from now."""
        return self._sources

    def _go_on(self) -> None:
        """Begins what is to be begun."""
        for source in self._reading():
            if not source.begun:
                source.begin(self._kept.cluster, self._kept.settings.connect_timeout)

    def fail(self, error: MemcacheError) -> None:
        """Ends it with ``error``."""
        if not self._over and self._failure is None:
            self._failure = error
            self._close()

    def _end(self) -> None:
        self._over = True
        self._close()

    def _close(self) -> None:
        self._kept.streams.discard(self)
        for source in self._sources:
            source.close()
        self._bell.ring()

    async def aclose(self) -> None:
        """Gives its connections back; whoever asks for more is told that it has ended."""
        self._end()

    async def __aenter__(self) -> "Stream[_T]":
        return self

    async def __aexit__(self, *exc_info: object) -> None:
        self._end()

    def __del__(self) -> None:
        for source in getattr(self, "_sources", ()):
            source.close()

    def __repr__(self) -> str:
        names = " ".join(source.name for source in self._sources)
        state = "failed" if self._failure is not None else "ended" if self._over else names
        return f"<{type(self).__name__} {state}>"


class Watch(Stream[WatchEvent]):
    """The log of the servers as it comes, of `WatchEvent`; see `.Client.watch`."""

    async def __aenter__(self) -> "Watch":
        """Returns when every server has begun to tell."""
        try:
            while not all(source.lines.answered for source in self._sources):
                self._go_on()
                for source in self._sources:
                    source.look()
                    if source.failure is not None:
                        self.fail(source.failure)
                if self._failure is not None:
                    raise self._failure.twin()
                if self._over:
                    break
                await self._bell.wait(min(source.next_moment for source in self._sources))
        except BaseException:
            self._end()
            raise
        return self


class Metadump(Stream[MetadumpEntry]):
    """What the servers hold, one after the other, of `MetadumpEntry`; see `.Client.metadump`."""

    def _reading(self) -> Iterable[Source[MetadumpEntry]]:
        return self._sources[:1]


class Streams:
    """The streams of one client."""

    def __init__(self, cluster: Cluster, settings: Settings) -> None:
        self.cluster = cluster
        self.settings = settings
        self.streams: weakref.WeakSet[Stream[Any]] = weakref.WeakSet()

    def watch(self, words: tuple[Any, ...], server: Any, timeout: Any) -> Watch:
        """Returns what `.Client.watch` does."""
        request, bell = watch_request(words), Bell()
        length = self._length(timeout)
        sources = [
            Source(one, WatchLines(one.name, request), bell, length) for one in self._chosen(server)
        ]
        return self._kept(Watch(self, sources, bell))

    def metadump(self, server: Any, timeout: Any) -> Metadump:
        """Returns what `.Client.metadump` does."""
        bell, length = Bell(), self._length(timeout)
        sources = [
            Source(one, MetadumpLines(one.name), bell, length) for one in self._chosen(server)
        ]
        return self._kept(Metadump(self, sources, bell))

    def _kept(self, stream: _S) -> _S:
        if self.cluster.closed:
            stream.fail(ClientClosed("the client is closed"))
        self.streams.add(stream)
        return stream

    def _length(self, timeout: Any) -> float:
        if timeout is None:
            return self.settings.request_timeout
        return check_seconds("timeout", timeout)

    def _chosen(self, server: Any) -> Sequence[Server]:
        servers = self.cluster.servers
        if server is None:
            return servers
        name = parse_server(server).name
        found = [one for one in servers if one.name == name]
        if not found:
            told = ", ".join(one.name for one in servers)
            raise InvalidServer(f"server {shown(name)} is none of the servers ({told})")
        return found

    def close(self) -> None:
        """Ends all of them with `.ClientClosed`."""
        for stream in list(self.streams):
            stream.fail(ClientClosed("the client was closed"))
