"""A floor: a bare asyncio.Protocol that writes each request as it comes.

Replies are read in order. It checks no key, knows no failure, no deadline and
no cancellation, and trusts the server.
"""

from __future__ import annotations

import asyncio
from collections import deque
from typing import Any

from . import Adapter, host_and_port


class Replies(asyncio.Protocol):
    """What is owed on one connection, a Future for each request."""

    def __init__(self) -> None:
        self.owed: deque[asyncio.Future[Any]] = deque()
        self._rest = b""

    def connection_made(self, transport: Any) -> None:
        self.transport = transport

    def data_received(self, data: bytes) -> None:
        if self._rest:
            data = self._rest + data
        at, end = 0, len(data)
        while at < end:
            line = data.find(b"\r\n", at)
            if line < 0:
                break
            if data.startswith(b"VALUE ", at):
                first = line + 2
                last = first + int(data[data.rindex(b" ", at, line) + 1 : line])
                if last + 7 > end:
                    break
                self.owed.popleft().set_result(data[first:last])
                at = last + 7  # (CRLF, END, CRLF)
            else:
                self.owed.popleft().set_result(data.startswith(b"STORED", at) or None)
                at = line + 2
        self._rest = data[at:]


class Client(Adapter):
    title = "bare Protocol, pipelined"
    best = "one connection"
    bytes_keys = True
    many_servers = False
    kinds = frozenset({"gets", "mix", "burst", "sets"})
    protocol: Any = Replies

    async def open_best(self, addresses: list[str], callers: int, size: int) -> None:
        self._loop = asyncio.get_running_loop()
        made = await self._loop.create_connection(self.protocol, *host_and_port(addresses[0]))
        self._replies: Any = made[1]

    async def open_connections(self, address: str, count: int) -> Any:
        """Opens ``count`` connections that stay idle; returns what holds them."""
        loop = asyncio.get_running_loop()
        place = host_and_port(address)
        return [await loop.create_connection(self.protocol, *place) for _ in range(count)]

    async def use_connections(self, several: Any, count: int) -> None:
        value = b"x" * 100_000
        for transport, replies in several:
            replies.owed.append(asyncio.get_running_loop().create_future())
            transport.write(b"set used 0 0 %d\r\n%b\r\n" % (len(value), value))
            await replies.owed[-1]

    def fetch(self, key: bytes) -> Any:
        future = self._loop.create_future()
        self._replies.owed.append(future)
        self._replies.transport.write(b"get %b\r\n" % key)
        return future

    def store(self, key: bytes, value: bytes) -> Any:
        future = self._loop.create_future()
        self._replies.owed.append(future)
        self._replies.transport.write(b"set %b 0 0 %d\r\n%b\r\n" % (key, len(value), value))
        return future

    async def close(self) -> None:
        self._replies.transport.close()
