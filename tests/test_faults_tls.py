"""The fault matrix, TLS: refused, or ended by the deadline, and never in the clear."""

from __future__ import annotations

import asyncio
import os
import socket
import ssl
import threading
import time
from collections.abc import Iterator

import pytest
import trustme

from tornado_memcache import Client, ConnectionFailed, ProtocolError, ServerDead, Timeout, boundary
from tornado_memcache.tls import checked_context

from .certificates import for_server, issued, memcached_arguments, trusting
from .faultproxy import FaultProxy
from .ledger import open_fds
from .memcacheds import Memcached

LOG = "tornado_memcache"
#: Tornado's own word on a handshake that failed.
TORNADO = ("tornado.general", "SSL Error|Write error|error on read")
#: A deadline, and what a loaded machine may add to it, in seconds.
D, SLACK = 0.2, 0.5
SECRET = b"a-key-that-nobody-sees"


@pytest.fixture(scope="module")
def secure(tmp_path_factory, memcached_binary) -> Iterator[Memcached]:
    arguments = memcached_arguments(tmp_path_factory.mktemp("tls"), issued("127.0.0.1"))
    server = Memcached(arguments, ssl_context=trusting())
    yield server
    server.close()


class Listening:
    """A TLS server of one's own, in a thread: keeps what came in the clear and what was said."""

    def __init__(self, context: ssl.SSLContext | None, answer: bytes = b"") -> None:
        self._listener = socket.create_server(("127.0.0.1", 0))
        self._listener.settimeout(5)
        self._context = context
        self._answer = answer
        self.address = f"127.0.0.1:{self._listener.getsockname()[1]}"
        self.said = b""
        self.connections = 0
        self._thread = threading.Thread(target=self._serve, daemon=True)
        self._thread.start()

    def _serve(self) -> None:
        while True:
            try:
                peer, _ = self._listener.accept()
            except OSError:
                return
            self.connections += 1
            peer.settimeout(5)
            try:
                if self._context is not None:
                    peer = self._context.wrap_socket(peer, server_side=True)
                while got := peer.recv(65536):
                    self.said += got
                    if self._answer:
                        peer.sendall(self._answer)
            except OSError:
                pass
            finally:
                peer.close()

    def __enter__(self) -> Listening:
        return self

    def __exit__(self, *_: object) -> None:
        self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        self._thread.join(5)
        assert not self._thread.is_alive()


@pytest.mark.gen_test
async def test_a_peer_that_never_answers_the_handshake_is_a_timeout_in_phase_tls(
    silent, expect_log
):
    expect_log(LOG, "fails|dead")
    async with Client([silent.address], ssl=trusting(), request_timeout=D) as client:
        begun = time.monotonic()
        with pytest.raises(Timeout, match="phase tls") as caught:
            await client.get(SECRET)
        took = time.monotonic() - begun
        assert D <= took + 0.01 and took < D + SLACK
        assert caught.value.phase == "tls" and not caught.value.maybe_applied
    assert SECRET not in silent.received


@pytest.mark.gen_test
async def test_the_descriptor_of_a_stalled_handshake_comes_back(silent, expect_log):
    expect_log(LOG, "fails|dead")
    options = {"connect_timeout": 0.05, "request_timeout": 1.0, "silences_until_dead": 100}
    async with Client([silent.address], ssl=trusting(), **options) as client:
        base = set(open_fds())
        for _ in range(4):
            with pytest.raises(Timeout, match="phase tls"):
                await client.set("k", "v")
            assert client._pools[0].counts()["open"] == 0
            assert silent.connections  # (the other ends are of this process too)
            silent.drop()
            assert set(open_fds()) == base
        assert silent.connections == 4


@pytest.mark.parametrize(
    ("certificate", "told"),
    [
        (lambda: for_server("elsewhere.example"), "mismatch.*servers must hold the name"),
        (lambda: for_server("127.0.0.1", ca=trustme.CA()), "(self.signed|unable to get).*cafile"),
        (lambda: for_server("127.0.0.1", expired=True), "expired"),
    ],
    ids=["wrong host", "untrusted", "expired"],
)
@pytest.mark.gen_test
async def test_a_certificate_that_does_not_pass_is_refused_and_nothing_is_said(
    certificate, told, expect_log
):
    expect_log(*TORNADO)
    expect_log(LOG, "is taken for dead.*certificate is refused", times=1)
    with Listening(certificate()) as server:
        async with Client([server.address], ssl=trusting(), request_timeout=5) as client:
            begun = time.monotonic()
            with pytest.raises(ConnectionFailed, match=f"certificate is refused.*{told}") as caught:
                await client.set(SECRET, b"v")
            assert time.monotonic() - begun < 2
            assert (caught.value.phase, caught.value.errno) == ("tls", None)
            assert not caught.value.maybe_applied
            with pytest.raises(ServerDead):
                await client.set(SECRET, b"v")
        assert server.said == b"" and server.connections == 1


@pytest.mark.gen_test
async def test_a_server_in_the_clear_is_an_error_and_not_a_timeout(memcached, expect_log):
    expect_log(*TORNADO)
    expect_log(LOG, "is taken for dead.*does not speak TLS")
    async with Client([memcached.address], ssl=trusting(), request_timeout=5) as client:
        begun = time.monotonic()
        with pytest.raises(ConnectionFailed, match="the server does not speak TLS") as caught:
            await client.get(SECRET)
        assert time.monotonic() - begun < 2
        assert caught.value.phase == "tls"


@pytest.mark.gen_test
async def test_a_client_in_the_clear_at_a_tls_port_gets_an_error_and_not_a_timeout(
    secure, expect_log
):
    expect_log(LOG, "fails")
    async with Client([secure.address], request_timeout=5) as client:
        begun = time.monotonic()
        with pytest.raises((ConnectionFailed, ProtocolError)):
            await client.get("k")
        assert time.monotonic() - begun < 2


@pytest.mark.parametrize("version", [ssl.TLSVersion.TLSv1, ssl.TLSVersion.TLSv1_1])
@pytest.mark.filterwarnings("ignore:ssl.TLSVersion.TLSv1:DeprecationWarning")
@pytest.mark.gen_test
async def test_an_old_version_of_tls_is_refused(version, expect_log):
    expect_log(*TORNADO)
    expect_log(LOG, "is taken for dead")
    context = for_server("127.0.0.1")
    context.minimum_version = version
    context.maximum_version = version
    context.set_ciphers("ALL:@SECLEVEL=0")
    with Listening(context) as server:
        async with Client([server.address], ssl=True, request_timeout=5) as client:
            with pytest.raises(ConnectionFailed, match="TLS handshake failed"):
                await client.get(SECRET)
        assert server.said == b""


@pytest.mark.filterwarnings("ignore:ssl.TLSVersion.TLSv1:DeprecationWarning")
def test_a_system_that_allows_older_versions_changes_nothing(monkeypatch):
    """Python's own default is TLS 1.2, but OpenSSL's configuration may lower it."""
    lowered = ssl.create_default_context()
    lowered.minimum_version = ssl.TLSVersion.TLSv1
    monkeypatch.setattr(ssl, "create_default_context", lambda: lowered)
    assert checked_context(True).minimum_version is ssl.TLSVersion.TLSv1_2


@pytest.mark.parametrize("end", ["cut_after", "reset_after"])
@pytest.mark.parametrize("where", ["requests", "replies"])
@pytest.mark.gen_test
async def test_a_handshake_that_is_cut_off_fails_at_once(secure, end, where, expect_log):
    expect_log("tornado.general", "SSL Error", times=range(3))
    expect_log(LOG, "fails|dead")
    with FaultProxy(secure.address) as proxy:
        setattr(getattr(proxy, where), end, 10)
        async with Client([proxy.address], ssl=trusting(), request_timeout=5) as client:
            begun = time.monotonic()
            with pytest.raises(ConnectionFailed, match="TLS handshake failed") as caught:
                await client.get("never-set")
            assert time.monotonic() - begun < 2
            assert caught.value.phase == "tls"
            proxy.heal()
            client.retry_dead_servers()
            assert await client.get("never-set") is None


@pytest.mark.gen_test
async def test_byte_by_byte_the_right_values_come(secure):
    with FaultProxy(secure.address) as proxy:
        proxy.replies.slice = proxy.requests.slice = 1
        async with Client([proxy.address], ssl=trusting(), request_timeout=10) as client:
            values = {f"byte{n}": os.urandom(n) for n in (0, 1, 2, 50)}
            assert await client.set_multi(values) == []
            assert await client.get_multi(list(values)) == values


@pytest.mark.gen_test
async def test_garbage_under_tls_fails_what_is_owed_and_the_next_call_is_right(secure, expect_log):
    expect_log(*TORNADO, times=range(10))
    with FaultProxy(secure.address) as proxy:
        async with Client([proxy.address], ssl=trusting(), request_timeout=5) as client:
            await client.set("k", b"right")
            proxy.say(b"\x17\x03\x03\x00\x05wrong")
            while client._pools[0].counts()["open"]:
                await asyncio.sleep(0.001)
            assert await client.get("k") == b"right"


@pytest.mark.gen_test
async def test_a_secure_server_that_stops_and_goes_on(start_memcached, tmp_path, expect_log):
    expect_log(LOG, "fails|answers")
    arguments = memcached_arguments(tmp_path, issued("127.0.0.1"))
    server = start_memcached(arguments, ssl_context=trusting())
    async with Client([server.address], ssl=trusting(), request_timeout=D) as client:
        for n in range(100):
            await client.set(f"k{n}", n)
        server.stop()
        begun = time.monotonic()
        outcomes = await asyncio.gather(
            *(client.get(f"k{n}") for n in range(100)), return_exceptions=True
        )
        assert time.monotonic() - begun < D + SLACK
        assert all(isinstance(outcome, Timeout) for outcome in outcomes)
        server.resume()
        right = [client.get(f"k{n}", timeout=5) for n in range(100)]
        assert await asyncio.gather(*right) == list(range(100))


@pytest.mark.parametrize("style", ["awaited", "callback"])
@pytest.mark.gen_test
async def test_a_call_that_is_cancelled_in_the_handshake_leaves_no_connection(silent, style):
    async with Client([silent.address], ssl=trusting()) as client:
        outcomes: list[object] = []
        with boundary(outcomes.append) as entry:
            if style == "awaited":
                call = client.get("k")
            else:
                client.get("k", callback=outcomes.append)
        pool = client._pools[0]
        while not any(one.phase == "tls" for one in pool._connections):
            await asyncio.sleep(0.001)
        if style == "awaited":
            call.cancel()
        else:
            entry.cancel()
        await asyncio.sleep(0)
        assert outcomes == []
        assert pool.counts()["open"] == pool.counts()["pending"] == 0
