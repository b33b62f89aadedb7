"""A memcached of a few lines, whose next answer is what a fault says.

Knows the requests that the clients make, whatever their exact form: any
get, any storage command, with or without noreply; the rest is answered with
OK. It lives in threads of its own, one for each connection, so that a client
that blocks or spins does not stop it. It must not know the clients.
"""

from __future__ import annotations

import contextlib
import socket
import struct
import threading
from collections.abc import Callable
from typing import Any

STORAGE = {b"set", b"add", b"replace", b"append", b"prepend", b"cas"}
RETRIEVAL = {b"get", b"gets", b"gat", b"gats"}


class Peer:
    """One connection, seen from the server."""

    def __init__(self, sock: socket.socket) -> None:
        self._sock = sock
        self.lines = sock.makefile("rb")

    def send(self, data: bytes) -> None:
        self._sock.sendall(data)

    def end_writing(self) -> None:
        """Sends EOF, and keeps the connection open."""
        self._sock.shutdown(socket.SHUT_WR)

    def close(self, *, reset: bool = False) -> None:
        if reset:
            self._sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        else:
            with contextlib.suppress(OSError):
                self._sock.shutdown(socket.SHUT_RDWR)
        self.lines.close()
        self._sock.close()


#: Gets the connection and the words of the request. Answers and returns
#: True, or returns False: then the usual answer follows.
Fault = Callable[[Peer, "list[bytes]"], bool]


class Hold:
    """A fault: the answer is held back until `release`; ``arrived`` tells of the request."""

    def __init__(self, then: Callable[[], None] = lambda: None) -> None:
        self.arrived = threading.Event()
        self._released = threading.Event()
        self._then = then

    def __call__(self, peer: Peer, words: list[bytes]) -> bool:
        self.arrived.set()
        self._then()
        self._released.wait(10)
        return False

    def release(self) -> None:
        self._released.set()


class FakeMemcached:
    """The server; a context manager. ``items`` is what it holds, all with flags 0."""

    def __init__(self) -> None:
        self.items: dict[bytes, bytes] = {}
        self._faults: dict[str, Fault] = {}
        self._peers: list[Peer] = []
        self._listener = socket.create_server(("127.0.0.1", 0), backlog=100)
        self.address = f"127.0.0.1:{self._listener.getsockname()[1]}"

    def __enter__(self) -> FakeMemcached:
        threading.Thread(target=self._accept, daemon=True).start()
        return self

    def __exit__(self, *_: Any) -> None:
        with contextlib.suppress(OSError):
            self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()

    def strike(self, kind: str, fault: Fault) -> None:
        """The next request of ``kind`` ("get" or "set") meets ``fault``, once."""
        self._faults[kind] = fault

    def _accept(self) -> None:
        with contextlib.suppress(OSError):
            while True:
                sock, _ = self._listener.accept()
                sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
                peer = Peer(sock)
                self._peers.append(peer)
                threading.Thread(target=self._serve, args=(peer,), daemon=True).start()

    def _serve(self, peer: Peer) -> None:
        # A fault may have closed the connection: its file is then a ValueError.
        with contextlib.suppress(OSError, ValueError):
            while line := peer.lines.readline():
                words = line.split() or [b""]
                block = b""
                if words[0] in STORAGE:
                    block = peer.lines.read(int(words[4]) + 2)[:-2]
                fault = self._faults.pop(_kind(words), None)
                if fault is None or not fault(peer, words):
                    peer.send(self._answer(words, block))

    def _answer(self, words: list[bytes], block: bytes) -> bytes:
        if words[0] in RETRIEVAL:
            keys = words[2 if words[0].startswith(b"gat") else 1 :]
            cas = b" 1" if words[0].endswith(b"s") else b""
            found = [
                b"VALUE %b 0 %d%b\r\n%b\r\n" % (key, len(self.items[key]), cas, self.items[key])
                for key in keys
                if key in self.items
            ]
            return b"".join([*found, b"END\r\n"])
        if words[0] in STORAGE:
            self.items[words[1]] = block
        if words[-1] == b"noreply":
            return b""
        return b"STORED\r\n" if words[0] in STORAGE else b"OK\r\n"


def _kind(words: list[bytes]) -> str:
    if words[0] in RETRIEVAL:
        return "get"
    return "set" if words[0] in STORAGE else ""
