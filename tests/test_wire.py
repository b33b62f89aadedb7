"""The bytes of each command on the wire: the face's, the native client's, python-memcached's.

A listening socket records them. All three send the same, but for what
`like_theirs` says of python-memcached.
"""

from __future__ import annotations

import asyncio
import re
import socket
import threading
from collections.abc import Callable
from datetime import timedelta
from typing import Any, NamedTuple

import memcache as theirs
import pytest

from tornado_memcache import Client
from tornado_memcache import memcache as ours


class Wire(NamedTuple):
    call: Callable[[Any], Any]
    sent: bytes
    #: What the recorder answers; nothing with noreply.
    answer: bytes
    #: The same call of the native client, if it has it.
    native: Callable[[Any], Any] | None = None


def everywhere(call: Callable[[Any], Any], sent: bytes, answer: bytes) -> Wire:
    return Wire(call, sent, answer, call)


STORED, GONE = b"STORED\r\n", b"END\r\n"

WIRES = {
    "get": everywhere(lambda mc: mc.get("k"), b"get k\r\n", GONE),
    "get, utf-8": everywhere(lambda mc: mc.get("ü"), b"get \xc3\xbc\r\n", GONE),
    "get, tuple": everywhere(lambda mc: mc.get((3, "k")), b"get k\r\n", GONE),
    "gets": everywhere(lambda mc: mc.gets("k"), b"gets k\r\n", GONE),
    "get_multi": everywhere(lambda mc: mc.get_multi(["a", "b"]), b"get a b\r\n", GONE),
    "get_multi, prefix": Wire(
        lambda mc: mc.get_multi([1, "b"], key_prefix="p:"), b"get p:1 p:b\r\n", GONE
    ),
    "set": everywhere(lambda mc: mc.set("k", "v"), b"set k 16 0 1\r\nv\r\n", STORED),
    "set, bytes": everywhere(lambda mc: mc.set("k", b"\0"), b"set k 0 0 1\r\n\0\r\n", STORED),
    "set, int": everywhere(lambda mc: mc.set("k", 12), b"set k 2 0 2\r\n12\r\n", STORED),
    "set, pickle": Wire(lambda mc: mc.set("k", True), b"set k 1 0 5\r\nI01\n.\r\n", STORED),
    "set, time": everywhere(lambda mc: mc.set("k", "v", 60), b"set k 16 60 1\r\nv\r\n", STORED),
    "set, timedelta": everywhere(
        lambda mc: mc.set("k", "v", timedelta(minutes=1)), b"set k 16 60 1\r\nv\r\n", STORED
    ),
    "set, moment": Wire(
        lambda mc: mc.set("k", "v", time=2000000000), b"set k 16 2000000000 1\r\nv\r\n", STORED
    ),
    "set, noreply": everywhere(
        lambda mc: mc.set("k", "v", noreply=True), b"set k 16 0 1 noreply\r\nv\r\n", b""
    ),
    "add": everywhere(lambda mc: mc.add("k", "v"), b"add k 16 0 1\r\nv\r\n", STORED),
    "replace": everywhere(lambda mc: mc.replace("k", "v"), b"replace k 16 0 1\r\nv\r\n", STORED),
    "append": everywhere(lambda mc: mc.append("k", "v"), b"append k 16 0 1\r\nv\r\n", STORED),
    "prepend": everywhere(lambda mc: mc.prepend("k", "v"), b"prepend k 16 0 1\r\nv\r\n", STORED),
    "cas": Wire(
        lambda mc: mc.cas("k", "v"),
        b"cas k 16 0 1 7\r\nv\r\n",
        STORED,
        lambda mc: mc.cas("k", "v", 7),
    ),
    "cas, noreply": Wire(
        lambda mc: mc.cas("k", "v", noreply=True), b"cas k 16 0 1 7 noreply\r\nv\r\n", b""
    ),
    "set_multi": everywhere(
        lambda mc: mc.set_multi({"a": 1, "b": "v"}),
        b"set a 2 0 1\r\n1\r\nset b 16 0 1\r\nv\r\n",
        STORED * 2,
    ),
    "set_multi, noreply": Wire(
        lambda mc: mc.set_multi({"a": 1}, 5, "p", noreply=True),
        b"set pa 2 5 1 noreply\r\n1\r\n",
        b"",
    ),
    "delete": everywhere(lambda mc: mc.delete("k"), b"delete k\r\n", b"DELETED\r\n"),
    "delete, noreply": Wire(lambda mc: mc.delete("k", noreply=True), b"delete k noreply\r\n", b""),
    "delete_multi": everywhere(
        lambda mc: mc.delete_multi(["a", "b"]), b"delete a\r\ndelete b\r\n", b"DELETED\r\n" * 2
    ),
    "delete_multi, noreply": Wire(
        lambda mc: mc.delete_multi(["a"], noreply=True), b"delete a noreply\r\n", b""
    ),
    "touch": everywhere(lambda mc: mc.touch("k", 60), b"touch k 60\r\n", b"TOUCHED\r\n"),
    "touch, noreply": Wire(
        lambda mc: mc.touch("k", 0, noreply=True), b"touch k 0 noreply\r\n", b""
    ),
    "incr": everywhere(lambda mc: mc.incr("k"), b"incr k 1\r\n", b"2\r\n"),
    "incr, delta": everywhere(lambda mc: mc.incr("k", 5), b"incr k 5\r\n", b"6\r\n"),
    "incr, noreply": Wire(lambda mc: mc.incr("k", noreply=True), b"incr k 1 noreply\r\n", b""),
    "decr": everywhere(lambda mc: mc.decr("k"), b"decr k 1\r\n", b"0\r\n"),
    "flush_all": everywhere(lambda mc: mc.flush_all(), b"flush_all\r\n", b"OK\r\n"),
    "get_stats": Wire(lambda mc: mc.get_stats(), b"stats\r\n", GONE, lambda mc: mc.stats()),
    "get_stats, argument": Wire(
        lambda mc: mc.get_stats("items"), b"stats items\r\n", GONE, lambda mc: mc.stats("items")
    ),
    "get_slab_stats": Wire(lambda mc: mc.get_slab_stats(), b"stats slabs\r\n", GONE),
}


def like_theirs(name: str, sent: bytes) -> bytes:
    """Returns what python-memcached sends: a space more at the end of some lines.

    Whatever has a data block, and delete_multi. It means nothing to memcached.
    """
    if name.startswith("delete_multi"):
        return sent.replace(b"\r\n", b" \r\n")
    return re.sub(rb"(?m)^((?:set|add|replace|append|prepend|cas) .*)\r\n", rb"\1 \r\n", sent)


class Recorder:
    """Takes one connection, in a thread of its own, answers once and records all bytes."""

    def __init__(self, size: int, answer: bytes) -> None:
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.address = f"127.0.0.1:{self._listener.getsockname()[1]}"
        self._size, self._answer = size, answer
        self.received = b""
        self.came = threading.Event()
        self._thread = threading.Thread(target=self._record)
        self._thread.start()

    def _record(self) -> None:
        with self._listener, self._listener.accept()[0] as peer:
            while got := peer.recv(65536):
                self.received += got
                if len(self.received) >= self._size and not self.came.is_set():
                    self.came.set()
                    peer.sendall(self._answer)

    def end(self) -> bytes:
        self._thread.join(5)
        assert not self._thread.is_alive()
        return self.received


def recorded_theirs(call: Callable[[Any], Any], sent: bytes, answer: bytes) -> bytes:
    recorder = Recorder(len(sent), answer)
    mc = theirs.Client([recorder.address])
    mc.cas_ids[b"k"] = 7
    call(mc)
    recorder.came.wait(5)
    mc.disconnect_all()
    return recorder.end()


async def recorded(kind: Any, call: Callable[[Any], Any], sent: bytes, answer: bytes) -> bytes:
    recorder = Recorder(len(sent), answer)
    mc = kind([recorder.address])
    if kind is ours.Client:
        mc.cas_ids[b"k"] = 7
    await call(mc)
    while not recorder.came.is_set():
        await asyncio.sleep(0.001)
    mc.close()
    return recorder.end()


@pytest.mark.parametrize("name", WIRES)
@pytest.mark.gen_test
async def test_the_bytes_of_a_command(name):
    wire = WIRES[name]
    expected = like_theirs(name, wire.sent)
    assert recorded_theirs(wire.call, expected, wire.answer) == expected
    assert await recorded(ours.Client, wire.call, wire.sent, wire.answer) == wire.sent
    if wire.native is not None:
        assert await recorded(Client, wire.native, wire.sent, wire.answer) == wire.sent
