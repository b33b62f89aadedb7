"""The fault proxy does what it says: looked at from two plain sockets."""

from __future__ import annotations

import socket
import time
from collections.abc import Iterator

import pytest

from .faultproxy import STRAY, FaultProxy


@pytest.fixture
def proxy(memcached) -> Iterator[FaultProxy]:
    with FaultProxy(memcached.address) as proxy:
        yield proxy


@pytest.fixture
def peer(proxy: FaultProxy) -> Iterator[socket.socket]:
    host, port = proxy.address.split(":")
    with socket.create_connection((host, int(port)), timeout=5) as peer:
        yield peer


VERSION = b"version\r\n"


def line(peer: socket.socket) -> bytes:
    got = b""
    while not got.endswith(b"\n"):
        piece = peer.recv(1)
        if not piece:
            break
        got += piece
    return got


def ask(peer: socket.socket) -> bytes:
    peer.sendall(VERSION)
    return line(peer)


def test_without_faults_it_passes_everything(proxy, peer):
    assert ask(peer).startswith(b"VERSION ")
    assert (proxy.accepted, proxy.connections) == (1, 1)


def test_a_unix_socket_is_a_target_too(start_memcached):
    with FaultProxy(start_memcached(unix=True).address) as proxy:
        host, port = proxy.address.split(":")
        with socket.create_connection((host, int(port)), timeout=5) as peer:
            assert ask(peer).startswith(b"VERSION ")


def test_latency_and_drip_take_their_time(proxy, peer):
    proxy.replies.latency = 0.05
    begun = time.monotonic()
    size = len(ask(peer))
    assert time.monotonic() - begun >= 0.05
    proxy.heal()
    proxy.replies.slice, proxy.replies.pause = 1, 0.005
    begun = time.monotonic()
    ask(peer)
    assert time.monotonic() - begun >= 0.005 * (size - 1)


def test_a_held_connection_loses_nothing(proxy, peer):
    proxy.replies.hold = True
    peer.sendall(VERSION)
    peer.settimeout(0.05)
    with pytest.raises(TimeoutError):
        peer.recv(1)
    proxy.heal()
    peer.settimeout(5)
    assert line(peer).startswith(b"VERSION ")


def test_one_connection_stands_still_while_another_passes(proxy, peer):
    proxy.replies.stall = 1.0
    peer.sendall(VERSION)
    peer.settimeout(0.05)
    with pytest.raises(TimeoutError):
        peer.recv(1)
    proxy.replies.stall = 1e-12
    host, port = proxy.address.split(":")
    with socket.create_connection((host, int(port)), timeout=5) as other:
        assert ask(other).startswith(b"VERSION ")
    proxy.heal()
    peer.settimeout(5)
    assert line(peer).startswith(b"VERSION ")


def test_one_bit_is_flipped(proxy, peer):
    good = ask(peer)
    proxy.replies.corrupt = 1.0
    peer.sendall(VERSION)
    bad = peer.recv(100)
    assert sum(bin(a ^ b).count("1") for a, b in zip(good, bad, strict=True)) == 1


def test_what_comes_twice_and_what_nobody_asked_for(proxy, peer):
    proxy.replies.duplicate = 1.0
    first = ask(peer)
    assert line(peer) == first
    proxy.heal()
    proxy.replies.stray = 1.0
    assert ask(peer) == STRAY and line(peer) == first
    proxy.say(b"hello\r\n")
    assert line(peer) == b"hello\r\n"


@pytest.mark.parametrize("end", ["cut", "reset"])
def test_a_connection_ends_after_so_many_bytes(proxy, peer, end):
    setattr(proxy.replies, f"{end}_after", 5)
    peer.sendall(VERSION)
    got = b""
    try:
        while piece := peer.recv(100):
            got += piece
    except ConnectionResetError:
        assert end == "reset"
    else:
        assert end == "cut" and got == b"VERSI"


@pytest.mark.parametrize("end", ["cut", "reset"])
def test_every_connection_is_ended_at_once(proxy, peer, end):
    ask(peer)
    getattr(proxy, end)()
    try:
        assert peer.recv(100) == b""
    except ConnectionResetError:
        assert end == "reset"


def test_a_target_that_is_not_there_is_a_connection_that_ends(memcached):
    with FaultProxy("127.0.0.1:1") as proxy:
        host, port = proxy.address.split(":")
        with socket.create_connection((host, int(port)), timeout=5) as peer:
            assert peer.recv(1) == b""
