"""A server that does what a test tells it, step by step, on each connection.

A script is a list of steps: ``Expect(bytes)`` reads that much and compares,
``Send(bytes)`` writes, ``Repeat(bytes, times)`` writes them many times,
``Sleep(seconds)``, ``Until(condition)`` waits for what the test tells,
``Close()``, ``Reset()``, ``HalfClose()`` ends its own direction alone. The
n-th connection follows the n-th script, the last script serves the rest.
At its end a script keeps its connection open and silent.
"""

from __future__ import annotations

import asyncio
import socket
import struct
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple


class Expect(NamedTuple):
    data: bytes


class Send(NamedTuple):
    data: bytes


class Repeat(NamedTuple):
    data: bytes
    times: int


class Sleep(NamedTuple):
    seconds: float


class Until(NamedTuple):
    condition: Callable[[], Any]


class Close(NamedTuple):
    pass


class Reset(NamedTuple):
    pass


class HalfClose(NamedTuple):
    pass


class Scripted:
    """The server; an async context manager. ``connections`` counts what was accepted."""

    def __init__(self, *scripts: Sequence[Any]) -> None:
        self._scripts = scripts
        self._tasks: set[asyncio.Task[None]] = set()
        self.connections = 0
        self.received: list[bytes] = []
        self.faults: list[str] = []
        self._sockets: list[socket.socket] = []
        self.address = ""

    async def __aenter__(self) -> Scripted:
        self._listener = socket.create_server(("127.0.0.1", 0), backlog=200)
        self._listener.setblocking(False)
        self.address = f"127.0.0.1:{self._listener.getsockname()[1]}"
        asyncio.get_running_loop().add_reader(self._listener, self._accept)
        return self

    async def __aexit__(self, kind: Any, *_: Any) -> None:
        asyncio.get_running_loop().remove_reader(self._listener)
        self._listener.close()
        tasks = list(self._tasks)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        for sock in self._sockets:  # (a task that had not begun has closed none)
            sock.close()
        if kind is None:
            assert not self.faults, self.faults

    def _accept(self) -> None:
        """Takes one connection. (A `sock_accept` that is cancelled may have one in its hand.)"""
        try:
            sock, _ = self._listener.accept()
        except (BlockingIOError, ConnectionAbortedError):
            return
        self._sockets.append(sock)
        number = self.connections
        self.connections += 1
        self.received.append(b"")
        script = self._scripts[min(number, len(self._scripts) - 1)]
        self._tasks.add(asyncio.ensure_future(self._follow(sock, number, script)))

    async def _follow(self, sock: socket.socket, number: int, script: Sequence[Any]) -> None:
        loop = asyncio.get_running_loop()
        sock.setblocking(False)
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        try:
            for step in script:
                if isinstance(step, Expect):
                    await self._expect(sock, number, step.data)
                elif isinstance(step, Send):
                    await loop.sock_sendall(sock, step.data)
                elif isinstance(step, Repeat):
                    for _ in range(step.times):
                        await loop.sock_sendall(sock, step.data)
                elif isinstance(step, Sleep):
                    await asyncio.sleep(step.seconds)
                elif isinstance(step, Until):
                    while not step.condition():
                        await asyncio.sleep(0)
                elif isinstance(step, HalfClose):
                    sock.shutdown(socket.SHUT_WR)
                else:
                    if isinstance(step, Reset):
                        linger = struct.pack("ii", 1, 0)
                        sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, linger)
                    return
            while data := await loop.sock_recv(sock, 65536):
                self.received[number] += data
        except OSError:
            pass
        finally:
            sock.close()

    async def _expect(self, sock: socket.socket, number: int, data: bytes) -> None:
        got = bytearray()
        while len(got) < len(data):
            piece = await asyncio.get_running_loop().sock_recv(sock, len(data) - len(got))
            if not piece:
                self.faults.append(
                    f"connection {number}: expected {data!r}, ended at {bytes(got)!r}"
                )
                return
            got += piece
        self.received[number] += got
        if got != data:
            self.faults.append(f"connection {number}: expected {data!r}, got {bytes(got)!r}")
