"""A proxy that does to the bytes between client and memcached what a network does.

Knows two sockets for each connection and a table of faults for each
direction. It must not know memcached's protocol, nor the package. It lives
in a thread of its own, so that a client which blocks can be tried too, and
so that a loop under test that is blocked does not stop the network.
"""

from __future__ import annotations

import asyncio
import contextlib
import random
import socket
import struct
import threading
from collections.abc import Coroutine
from dataclasses import dataclass, fields
from typing import Any

#: What a fault of kind ``stray`` puts into the stream.
STRAY = b"STRAY\r\n"


@dataclass
class Faults:
    """What happens to the bytes of one direction, from the next segment on.

    Lengths are in seconds and bytes, ``stall`` to ``reset`` are
    probabilities for each segment.
    """

    #: Each segment waits so long.
    latency: float = 0.0
    #: At most so many bytes leave at once (0: as they come), ``pause`` apart.
    slice: int = 0
    pause: float = 0.0
    #: Nothing passes while this is set; nothing is lost. A blackhole, for as long as it lasts.
    hold: bool = False
    #: This connection stands still from here on, while others pass, until it is taken back.
    stall: float = 0.0
    #: One bit of the segment is flipped.
    corrupt: float = 0.0
    #: The segment comes twice.
    duplicate: float = 0.0
    #: `STRAY` comes before the segment.
    stray: float = 0.0
    #: The connection ends in the middle of the segment, in order (FIN) or by a reset.
    cut: float = 0.0
    reset: float = 0.0
    #: The connection ends when so many bytes of this direction have passed.
    cut_after: int | None = None
    reset_after: int | None = None

    def heal(self) -> None:
        """Takes all faults back."""
        for field in fields(self):
            setattr(self, field.name, field.default)


class Pair:
    """The two sockets of one connection through the proxy."""

    def __init__(self, client: socket.socket, server: socket.socket) -> None:
        self.client = client
        self.server = server
        self.tasks: list[asyncio.Task[None]] = []

    def end(self, *, reset: bool = False) -> None:
        """Closes both sides: in order, or by a reset."""
        for side in (self.client, self.server):
            if side.fileno() < 0:
                continue
            if reset:
                side.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            else:
                with contextlib.suppress(OSError):
                    side.shutdown(socket.SHUT_RDWR)
            if reset:
                side.close()


class FaultProxy:
    """The proxy; a context manager. ``requests`` and ``replies`` are its `Faults`.

    ``target`` is the server as ``"host:port"`` or ``"unix:/path"``.
    ``accepted`` counts the connections that were made to it.
    """

    def __init__(self, target: str, *, seed: int = 0) -> None:
        self.requests = Faults()
        self.replies = Faults()
        self.accepted = 0
        self.address = ""
        self.target = target
        self._random = random.Random(seed)
        self._pairs: set[Pair] = set()
        self._loop = asyncio.new_event_loop()
        self._loop.slow_callback_duration = 60.0  # (a loaded machine is no finding)
        self._thread = threading.Thread(target=self._run, name="faultproxy", daemon=True)
        self._listener = socket.create_server(("127.0.0.1", 0), backlog=1000)
        self._listener.setblocking(False)
        self.address = f"127.0.0.1:{self._listener.getsockname()[1]}"

    def __enter__(self) -> FaultProxy:
        self._thread.start()
        self._do(self._begin())
        return self

    def __exit__(self, *_: object) -> None:
        self._do(self._end())
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join(10)
        self._loop.close()

    def __repr__(self) -> str:
        return f"<FaultProxy {self.address} to {self.target}, {len(self._pairs)} connections>"

    @property
    def connections(self) -> int:
        """How many connections are open through it."""
        return len(self._pairs)

    # -- what a test does to it

    def heal(self) -> None:
        """Takes all faults back, for the segments to come."""
        self.requests.heal()
        self.replies.heal()

    def cut(self) -> None:
        """Closes every connection, in order."""
        self._do(self._end_pairs(False))

    def reset(self) -> None:
        """Resets every connection."""
        self._do(self._end_pairs(True))

    def say(self, data: bytes) -> None:
        """Sends ``data`` to every client, unasked."""
        self._do(self._say(data))

    # -- within its thread

    def _run(self) -> None:
        asyncio.set_event_loop(self._loop)
        self._loop.run_forever()

    def _do(self, coroutine: Coroutine[Any, Any, Any]) -> Any:
        return asyncio.run_coroutine_threadsafe(coroutine, self._loop).result(10)

    async def _end_pairs(self, reset: bool) -> None:
        for pair in list(self._pairs):
            pair.end(reset=reset)
            for task in pair.tasks:
                task.cancel()

    async def _say(self, data: bytes) -> None:
        for pair in list(self._pairs):
            with contextlib.suppress(OSError):  # (one that has gone is not told)
                await self._loop.sock_sendall(pair.client, data)

    async def _begin(self) -> None:
        # (A task that awaits sock_accept and is cancelled may have been given a connection.)
        self._loop.add_reader(self._listener, self._accept)

    async def _end(self) -> None:
        self._loop.remove_reader(self._listener)
        self._listener.close()
        for pair in list(self._pairs):
            for task in pair.tasks:
                task.cancel()
        tasks = [task for task in asyncio.all_tasks() if task is not asyncio.current_task()]
        await asyncio.gather(*tasks, return_exceptions=True)

    def _accept(self) -> None:
        try:
            client, _ = self._listener.accept()
        except OSError:  # (whoever it was has gone again)
            return
        self.accepted += 1
        client.setblocking(False)
        client.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        path = self.target.startswith("unix:")
        server = socket.socket(socket.AF_UNIX if path else socket.AF_INET)
        server.setblocking(False)
        pair = Pair(client, server)
        self._pairs.add(pair)
        serving = asyncio.ensure_future(self._serve(pair, path))
        pair.tasks.append(serving)
        # Not by the task itself: one that is cancelled before its first step never has a last.
        serving.add_done_callback(lambda _: self._forget(pair))

    def _forget(self, pair: Pair) -> None:
        for task in pair.tasks[1:]:
            task.cancel()
        self._pairs.discard(pair)
        pair.client.close()
        pair.server.close()

    async def _serve(self, pair: Pair, path: bool) -> None:
        client, server = pair.client, pair.server
        try:
            if path:
                await self._loop.sock_connect(server, self.target[5:])
            else:
                host, _, port = self.target.rpartition(":")
                await self._loop.sock_connect(server, (host, int(port)))
                server.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            pair.tasks += [
                asyncio.ensure_future(self._pump(client, server, self.requests, pair)),
                asyncio.ensure_future(self._pump(server, client, self.replies, pair)),
            ]
            await asyncio.gather(*pair.tasks[1:])
        except OSError:
            pass  # (one side has gone: so does the other)

    async def _pump(
        self, source: socket.socket, sink: socket.socket, faults: Faults, pair: Pair
    ) -> None:
        passed = 0
        while True:
            while faults.hold:
                await asyncio.sleep(0.002)
            data = await self._loop.sock_recv(source, 65536)
            while faults.hold:
                await asyncio.sleep(0.002)
            if faults.stall and self._random.random() < faults.stall:
                while faults.stall:
                    await asyncio.sleep(0.002)
            if not data:
                sink.shutdown(socket.SHUT_WR)
                return
            if faults.latency:
                await asyncio.sleep(faults.latency)
            data, end = self._disturbed(data, faults, passed)
            await self._send(data, sink, faults)
            passed += len(data)
            if end is not None:
                pair.end(reset=end == "reset")
                raise ConnectionResetError

    def _disturbed(self, data: bytes, faults: Faults, passed: int) -> tuple[bytes, str | None]:
        """Returns what becomes of a segment, and how the connection ends behind it, if it does."""
        roll = self._random.random
        if faults.corrupt and roll() < faults.corrupt:
            place = self._random.randrange(len(data))
            flipped = data[place] ^ (1 << self._random.randrange(8))
            data = data[:place] + bytes([flipped]) + data[place + 1 :]
        if faults.duplicate and roll() < faults.duplicate:
            data += data
        if faults.stray and roll() < faults.stray:
            data = STRAY + data
        for end in ("cut", "reset"):
            after = getattr(faults, f"{end}_after")
            if after is not None and passed + len(data) >= after:
                return data[: max(0, after - passed)], end
            if (chance := getattr(faults, end)) and roll() < chance:
                return data[: self._random.randrange(len(data))], end
        return data, None

    async def _send(self, data: bytes, sink: socket.socket, faults: Faults) -> None:
        while data:
            size = faults.slice or len(data)
            piece, data = data[:size], data[size:]
            await self._loop.sock_sendall(sink, piece)
            if data:
                await asyncio.sleep(faults.pause)
