"""A listening socket that never answers.

Knows who connected and which bytes came, without a thread and without the
event loop: the kernel completes the connects, and looking takes what is
there. It must not know the package.
"""

from __future__ import annotations

import asyncio
import socket
import time


class Silent:
    """Accepts and never answers; counts connections and received bytes.

    ``connections`` and ``received`` look when they are asked for, so they
    are as true as the kernel's queues. Bytes that nobody asked for stay in
    those queues: a writer meets a peer that has stopped reading.
    """

    def __init__(self, host: str = "127.0.0.1", port: int = 0, backlog: int = 1024) -> None:
        family = socket.AF_INET6 if ":" in host else socket.AF_INET
        self._listener = socket.socket(family)
        self._listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        self._listener.bind((host, port))
        self._listener.listen(backlog)
        self._listener.setblocking(False)
        self._peers: list[socket.socket] = []
        self._accepted = 0
        self._received = bytearray()
        self.host = host
        self.port: int = self._listener.getsockname()[1]

    def __repr__(self) -> str:
        return f"<Silent {self.address}>"

    @property
    def address(self) -> str:
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"

    @property
    def connections(self) -> int:
        """How many connections were made so far."""
        self._accept()
        return self._accepted

    @property
    def received(self) -> bytes:
        """All bytes that came so far, over all connections."""
        self._accept()
        for peer in self._peers:
            try:
                while got := peer.recv(1 << 20):
                    self._received += got
            except OSError:  # (nothing more, or a reset)
                continue
        return bytes(self._received)

    async def untouched(self, within: float = 0.03) -> bool:
        """Lets the loop run for ``within`` seconds; True if nothing reached the wire."""
        await asyncio.sleep(within)
        return self.connections == 0 and self.received == b""

    def wait(self, size: int = 1, timeout: float = 5.0) -> bytes:
        """Returns ``received`` once ``size`` bytes are there. Blocks: not for use on a loop."""
        until = time.monotonic() + timeout
        while len(self.received) < size:
            if time.monotonic() > until:
                raise TimeoutError(f"{size} bytes awaited, {len(self._received)} came")
            time.sleep(0.002)
        return self.received

    def drop(self) -> None:
        """Closes the accepted connections; the listener goes on."""
        self._accept()
        while self._peers:
            self._peers.pop().close()

    def close(self) -> None:
        """Closes everything. May be called twice."""
        if self._listener.fileno() >= 0:
            self.drop()
            self._listener.close()

    def _accept(self) -> None:
        if self._listener.fileno() < 0:
            return
        try:
            while True:
                peer, _ = self._listener.accept()
                peer.setblocking(False)
                self._peers.append(peer)
                self._accepted += 1
        except BlockingIOError:
            return
