"""A floor: a blocking socket, one request and its reply at a time, hardly read.

What any blocking client costs at least. It closes nothing properly, checks no
key, and knows no failure.
"""

from __future__ import annotations

import socket
from typing import Any

from . import Blocking, host_and_port


class Client(Blocking):
    title = "a raw blocking socket"
    best = "TCP_NODELAY"
    bytes_keys = True
    many_servers = False
    kinds = frozenset({"gets", "sets"})

    async def open_best(self, addresses: list[str], callers: int, size: int) -> None:
        self._socket = socket.create_connection(host_and_port(addresses[0]))
        self._socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self._buffer = bytearray(max(1 << 17, 2 * size))

    def fetch(self, key: bytes) -> bytes | None:
        self._socket.sendall(b"get %b\r\n" % key)
        data = self._socket.recv(65536)
        if data == b"END\r\n":
            return None
        end = data.index(b"\r\n")
        size = int(data[data.rindex(b" ", 0, end) + 1 : end])
        first = end + 2
        if len(data) == first + size + 7:
            return data[first : first + size]
        return self._rest(data[first:], size)

    def _rest(self, begun: bytes, size: int) -> bytes:
        """Reads what is missing of a value, its CRLF and END into one buffer."""
        whole, count = memoryview(self._buffer), len(begun)
        whole[:count] = begun
        while count < size + 7:
            count += self._socket.recv_into(whole[count : size + 7])
        return bytes(whole[:size])

    def store(self, key: bytes, value: bytes) -> Any:
        self._socket.sendall(b"set %b 0 0 %d\r\n%b\r\n" % (key, len(value), value))
        return self._socket.recv(100) == b"STORED\r\n"

    def blocking_close(self) -> None:
        self._socket.close()
