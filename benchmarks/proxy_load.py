"""One generator of gets through whatever listens on a port: a process of its own, on plain sockets.

Knows requests and replies as bytes, all made before the clock runs, so that
it is not the generator that is measured. It must not know what is behind the
port. It prints one line of JSON.

``pipelined`` clients send the next ``depth`` requests when the last are
answered; with ``rate`` they send one request at a time, so many a second
among all, whatever the answers take.
"""

from __future__ import annotations

import argparse
import json
import random
import select
import socket
import sys
import time
from typing import Any

COUNT, SIZE = 1000, 100
KEYS = [b"key-%05d" % number for number in range(COUNT)]
VALUE = b"v" * SIZE
#: So many different pieces are sent in turn.
PIECES = 50


def item(key: bytes) -> bytes:
    return b"VALUE %b 0 %d\r\n%b\r\n" % (key, SIZE, VALUE)


def fill(port: int) -> None:
    """Stores every key."""
    with socket.create_connection(("127.0.0.1", port), timeout=30) as peer:
        peer.sendall(b"".join(b"set %b 0 0 %d\r\n%b\r\n" % (key, SIZE, VALUE) for key in KEYS))
        answer = b""
        while answer.count(b"\n") < COUNT:
            got = peer.recv(65536)
            assert got, "it closed the connection"
            answer += got
        refused = [line for line in answer.splitlines() if line != b"STORED"]
        assert not refused, refused[0]


def pieces(depth: int, keys: int) -> list[tuple[bytes, int]]:
    """Returns what is sent, and how many bytes answer it."""
    chosen = random.Random(1)
    found = []
    for _ in range(PIECES):
        asked = [chosen.sample(KEYS, keys) for _ in range(depth)]
        sent = b"".join(b"get %b\r\n" % b" ".join(one) for one in asked)
        items = sum(len(item(key)) for one in asked for key in one)
        found.append((sent, items + depth * len(b"END\r\n")))
    return found


class Load:
    """Clients on one port, and the seconds that each piece took."""

    def __init__(self, port: int, clients: int, depth: int, keys: int) -> None:
        self._pieces = pieces(depth, keys)
        self._next = 0
        self._poll = select.epoll()
        self._clients: dict[int, socket.socket] = {}
        #: By descriptor: the bytes to come, and when the piece was sent.
        self._waiting: dict[int, list[Any]] = {}
        self.took: list[float] = []
        for _ in range(clients):
            peer = socket.create_connection(("127.0.0.1", port), timeout=30)
            peer.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            self._clients[peer.fileno()] = peer
            self._poll.register(peer, select.EPOLLIN)

    def _send(self, number: int) -> None:
        sent, left = self._pieces[self._next % PIECES]
        self._next += 1
        self._waiting[number] = [left, time.perf_counter()]
        self._clients[number].sendall(sent)

    def _receive(self, timeout: float) -> list[int]:
        """Takes what is there; returns the clients that have all that they wait for."""
        done = []
        for number, _ in self._poll.poll(max(timeout, 0)):
            got = len(self._clients[number].recv(262144))
            assert got, "it closed the connection"
            waiting = self._waiting[number]
            waiting[0] -= got
            if not waiting[0]:
                self.took.append(time.perf_counter() - waiting[1])
                del self._waiting[number]
                done.append(number)
            assert waiting[0] >= 0, "more came than was asked for"
        return done

    def pipelined(self, seconds: float) -> float:
        """Returns how long it really took."""
        begun = time.perf_counter()
        for number in self._clients:
            self._send(number)
        while time.perf_counter() - begun < seconds:
            for number in self._receive(1):
                self._send(number)
        return time.perf_counter() - begun

    def at_rate(self, rate: float, seconds: float) -> float:
        begun = time.perf_counter()
        idle, sent = list(self._clients), 0
        while (now := time.perf_counter()) - begun < seconds:
            while idle and sent < (now - begun) * rate:
                self._send(idle.pop(0))
                sent += 1
            # (epoll waits for whole milliseconds: requests would be sent two at a time)
            select.select([self._poll], [], [], max(begun + sent / rate - now, 0))
            idle += self._receive(0)
        return time.perf_counter() - begun


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    for name in ("port", "clients", "depth", "keys", "rate"):
        parser.add_argument(name, type=int)
    parser.add_argument("seconds", type=float)
    asked = parser.parse_args()
    fill(asked.port)
    load = Load(asked.port, asked.clients, asked.depth, asked.keys)
    print("ready", flush=True)
    sys.stdin.readline()
    if asked.rate:
        elapsed = load.at_rate(asked.rate, asked.seconds)
    else:
        elapsed = load.pipelined(asked.seconds)
    print(json.dumps({"requests": len(load.took) * asked.depth, "seconds": elapsed,
                      "took": sorted(load.took)}), flush=True)  # fmt: skip


if __name__ == "__main__":
    main()
