"""The front door of a memcached server: who may come in, and who is sent away.

A `FrontDoor` accepts clients; each is a `.Guest`, which hands its requests to
the **handler** of the door. The handler is the one seam: a callable that
takes a `.Request` and returns a `.Reply`, or an awaitable of one.

This file knows sockets, who is connected and for how long. It must not know
what a client asks (`.guest`), how that is written (`.text_server`), or who
answers it.
"""

import asyncio
import contextlib
import errno
import logging
import os
import socket
import ssl as tls
import stat
from collections import Counter
from collections.abc import Callable
from contextvars import Context
from typing import Any

from tornado.ioloop import IOLoop

from .guest import READ_BYTES, Guest, Handler, Limits, failure
from .protocol import TOO_MANY_CONNECTIONS, Reply, Request
from .text_server import RequestReader

logger = logging.getLogger("tornado_memcache.door")

#: As memcached's own.
_BACKLOG = 1024
#: At most so many clients are let in before others have a turn.
_AT_ONCE = 64
#: What `accept` fails with when the process, or the machine, can hold no more.
_EXHAUSTED = {errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM}
#: So long nobody is let in then, in seconds, unless somebody leaves; and so often it is told.
PAUSE = 1.0
#: A handshake of TLS takes no longer, in seconds.
HANDSHAKE = 10.0


class FrontDoor:
    """Accepts memcached clients and lets ``handler`` answer them.

    Arguments: the ``handler``, which may be replaced at any time;
    ``too_large(key, flags, length)``, which says of which values not even
    the block is received; ``max_clients``, above which a client is turned
    away as memcached does it; the `.Limits` of each client; ``ssl``, the
    context of a server that is spoken to over TLS alone; ``reader``, which
    makes what reads a client's bytes (a `.RequestReader` unless given);
    ``failed(request, error)``, which makes the reply of what the handler,
    or what it gave, fails with; ``begun(count)``, which is told each time the
    handler has been given what came together, as so many requests.

    Out of descriptors it lets nobody in until somebody leaves, or for a
    second, and says so once a second at most.
    """

    def __init__(
        self,
        handler: Handler,
        *,
        too_large: Callable[[bytes, int, int], bool],
        max_clients: int = 1024,
        limits: Limits | None = None,
        ssl: tls.SSLContext | None = None,
        reader: Callable[[], Any] | None = None,
        failed: Callable[[Request, Exception], Reply] | None = None,
        begun: Callable[[int], object] = bool,
    ) -> None:
        self.handler = handler
        self.failure = failed or _told
        self.begun = begun
        self.max_clients = max_clients
        self.limits = limits or Limits()
        self.too_large = too_large
        #: How many clients have been accepted, ever, and how many were sent away, and why.
        self.accepted, self.sent_away = 0, Counter[str]()
        self.buffer = memoryview(bytearray(READ_BYTES))
        self._reader = reader or (lambda: RequestReader(self._is_too_large))
        self._ssl = ssl
        self._sockets: list[socket.socket] = []
        self._files: list[SocketFile] = []
        self._guests: set[Guest] = set()
        #: Those who are still shaking hands.
        self._greeting: dict[asyncio.Task[Any], socket.socket] = {}
        #: How many of them have not come in. (A task ends a turn or two after its client came.)
        self._coming = 0
        self._paused: object | None = None
        self._looking: object | None = None
        self._told_at = float("-inf")
        self._empty = asyncio.Event()

    def __repr__(self) -> str:
        return f"<{type(self).__name__} {self.connected} clients>"

    @property
    def connected(self) -> int:
        """How many clients are connected."""
        return len(self._guests) + self._coming

    @property
    def listening(self) -> bool:
        """True while clients may come."""
        return bool(self._sockets)

    @property
    def port(self) -> int:
        """The port of the first socket."""
        port: int = self._sockets[0].getsockname()[1]
        return port

    def _is_too_large(self, key: bytes, flags: int, length: int) -> bool:
        return self.too_large(key, flags, length)

    def limit(self, limits: Limits) -> None:
        """Has ``limits`` hold from now on, for those who are connected too."""
        self.limits = limits
        if self.listening:
            self._look_after()

    # -- letting in

    def add_socket(self, listening: socket.socket, file: "SocketFile | None" = None) -> None:
        """Accepts clients from ``listening`` on the loop that runs, until `stop`.

        ``file`` is its path, if it is to be taken away then.
        """
        self._io_loop = IOLoop.current()
        self.loop = asyncio.get_running_loop()
        self._sockets.append(listening)
        if file is not None:
            self._files.append(file)
        # What clients bring about belongs to nobody's context.
        Context().run(self._open)
        self._look_after()

    def _open(self) -> None:
        self._paused = None
        for listening in self._sockets:
            self._io_loop.add_handler(listening, self._accept, IOLoop.READ)

    def _accept(self, listening: Any, events: int) -> None:
        for _ in range(_AT_ONCE):
            try:
                sock, _address = listening.accept()
            except (BlockingIOError, InterruptedError, ConnectionAbortedError):
                return
            except OSError as error:
                if error.errno not in _EXHAUSTED:
                    raise
                self._pause(error)
                return
            self._let_in(sock)

    def _let_in(self, sock: socket.socket) -> None:
        sock.setblocking(False)
        if self.connected >= self.max_clients:
            self.sent_away["too many clients"] += 1
            try:
                sock.send(TOO_MANY_CONNECTIONS + b"\r\n")
            except OSError:
                pass  # (it has left)
            sock.close()
            return
        self.accepted += 1
        self._coming += 1
        timeout = HANDSHAKE if self._ssl is not None else None
        coming = self.loop.connect_accepted_socket(
            lambda: Guest(self, self._reader()), sock, ssl=self._ssl, ssl_handshake_timeout=timeout
        )
        task = self.loop.create_task(coming)
        self._greeting[task] = sock
        task.add_done_callback(self._greeted, context=Context())

    def _greeted(self, task: "asyncio.Task[Any]") -> None:
        del self._greeting[task]
        if (error := task.exception()) is not None:
            self._coming -= 1
            self.sent_away["no handshake"] += 1
            logger.info("a client did not come in: %s", error)

    def _pause(self, error: OSError) -> None:
        """Accepts nobody for a while: `accept` would fail again and again, at once."""
        now = self.loop.time()
        if now - self._told_at >= PAUSE:
            self._told_at = now
            told = "no clients are let in: %s; %d are connected"
            logger.warning(told, os.strerror(error.errno or 0), self.connected)
        for listening in self._sockets:
            self._io_loop.remove_handler(listening)
        self._paused = self._io_loop.call_later(PAUSE, self._open)

    # -- those who are in (as `.Host`)

    def came(self, guest: Guest) -> None:
        """Notes a client that has come in."""
        self._guests.add(guest)
        self._coming -= 1
        if not self._sockets:
            guest.abort()

    def left(self, guest: Guest) -> None:
        """Notes that nothing is left of a client."""
        self._guests.discard(guest)
        if not self._guests:
            self._empty.set()
        if self._paused is not None:
            # After this turn: the descriptor is not free yet.
            self._io_loop.remove_timeout(self._paused)
            self._paused = self._io_loop.call_later(0, self._open)

    def _look_after(self) -> None:
        """Sends away, from time to time, who is slow or does nothing."""
        lengths = [length for length in self.limits[1:] if length is not None]
        if self._looking is not None or not lengths:
            return
        now = self.loop.time()
        for guest in list(self._guests):
            if why := guest.overdue(now):
                self.sent_away[why] += 1
                logger.info("client %s is sent away: %s", guest.peer, why)
                guest.abort()
        length = min(1.0, min(lengths) / 4)
        self._looking = self._io_loop.call_later(length, self._look_again)

    def _look_again(self) -> None:
        self._looking = None
        self._look_after()

    # -- its end

    def _shut(self) -> None:
        for file in self._files:
            file.unlink()
        self._files.clear()
        for listening in self._sockets:
            if self._paused is None:
                self._io_loop.remove_handler(listening)
            listening.close()
        self._sockets.clear()
        for timeout in (self._paused, self._looking):
            if timeout is not None:
                self._io_loop.remove_timeout(timeout)
        self._paused = self._looking = None

    def stop(self) -> None:
        """Stops accepting and closes every client's connection, at once.

        `close` waits for what is left of them, in the next iterations of
        the loop. May be called twice.
        """
        self._shut()
        for sock in self._greeting.values():
            try:
                sock.shutdown(socket.SHUT_RDWR)  # (the handshake fails then)
            except OSError:
                pass
        for guest in list(self._guests):
            guest.abort()

    async def close(self) -> None:
        """Stops, and returns when nothing is left of it."""
        self.stop()
        await self._emptied()

    async def drain(self, timeout: float) -> bool:
        """Stops accepting, has what was asked answered, and then closes.

        After ``timeout`` seconds what is left is closed as it is. Returns
        True if nothing was.
        """
        self._shut()
        for guest in list(self._guests):
            guest.drain()
        emptied = self.loop.create_task(self._emptied())
        await asyncio.wait([emptied], timeout=timeout)
        in_time = emptied.done()
        self.stop()
        await emptied
        return in_time

    async def _emptied(self) -> None:
        while self._greeting:
            await asyncio.wait(list(self._greeting))
        while self._guests:
            self._empty.clear()
            await self._empty.wait()


def _told(request: Request, error: Exception) -> Reply:
    return failure(error)


class SocketFile:
    """The path of ``listening``, a unix socket, to be taken away while it is still its own.

    Whoever took the path away, and perhaps put something else there, has it.
    """

    def __init__(self, listening: socket.socket) -> None:
        self._path: str = listening.getsockname()
        self._own = _identity(self._path)

    def __repr__(self) -> str:
        return f"<{type(self).__name__} {self._path}>"

    def unlink(self) -> None:
        """Takes the path away. Before the socket is closed: until then no other has its inode."""
        if self._own is not None and _identity(self._path) == self._own:
            os.unlink(self._path)
        self._own = None


def _identity(path: str) -> tuple[int, int] | None:
    try:
        status = os.lstat(path)
    except OSError:
        return None
    return status.st_dev, status.st_ino


def _take_away_if_left_behind(path: str) -> None:
    """Unlinks a unix socket that nobody listens on. Raises `OSError` if somebody does."""
    if not (os.path.exists(path) and stat.S_ISSOCK(os.stat(path).st_mode)):
        return
    with socket.socket(socket.AF_UNIX) as peer:
        peer.setblocking(False)
        try:
            peer.connect(path)
        except (ConnectionRefusedError, FileNotFoundError):
            with contextlib.suppress(FileNotFoundError):
                os.unlink(path)
            return
        except BlockingIOError:
            pass  # (it is listened on, and many wait to be let in)
    told = f"{os.strerror(errno.EADDRINUSE)}: a server listens there"
    raise OSError(errno.EADDRINUSE, told, path)


def listen_on(
    family: socket.AddressFamily, address: str | tuple[str, int], *, shared: bool = False
) -> socket.socket:
    """Returns a socket that listens. One that cannot is closed, which Tornado's own is not.

    With ``shared`` other processes may listen on the same port. A unix socket
    that a server left behind which was killed is taken away; one that
    somebody listens on is not: `OSError` (``EADDRINUSE``), as for a port.
    """
    listening = socket.socket(family, socket.SOCK_STREAM)
    try:
        listening.setblocking(False)
        if isinstance(address, str):
            _take_away_if_left_behind(address)
            listening.bind(address)
            os.chmod(address, 0o600)
        else:
            listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            if shared:
                listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
            listening.bind(address)
        listening.listen(_BACKLOG)
    except BaseException:
        listening.close()
        raise
    return listening
