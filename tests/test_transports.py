"""Every way to reach a memcached: v4, v6, unix sockets, TLS, a password; against real ones.

What is shown of one way elsewhere (`tests/test_tls.py`,
`tests/test_connector.py`, the fault matrix) is shown here of all.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import socket
import ssl
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import trustme

from tornado_memcache import Client, ConnectionFailed, ServerDead

from .asked import until
from .certificates import issued, memcached_arguments, trusting
from .memcacheds import Memcached
from .silent import Silent
from .test_connector import Names

LOG = "tornado_memcache"
KINDS = ["v4", "v6", "unix", "tls", "tls v6", "password", "tls and password"]
#: A pool that opens its second connection for work of this size.
LARGE = b"x" * 200_000


def has_v6() -> bool:
    try:
        with socket.create_server(("::1", 0), family=socket.AF_INET6):
            return True
    except OSError:
        return False


Start = Callable[..., tuple[Memcached, dict[str, Any]]]


@pytest.fixture
def start(start_memcached: Callable[..., Memcached], tmp_path: Path) -> Start:
    """Starts a memcached of one of `KINDS`; returns it, and what a client of it is made with."""

    def started(kind: str, *more: str) -> tuple[Memcached, dict[str, Any]]:
        if "v6" in kind and not has_v6():
            pytest.skip("this machine has no ::1")
        arguments, how, options = list(more), {}, {}
        host = "::1" if "v6" in kind else "127.0.0.1"
        folder = tmp_path / kind.replace(" ", "-")
        folder.mkdir(exist_ok=True)
        if "tls" in kind:
            arguments += memcached_arguments(folder, issued(host))
            how["ssl_context"] = options["ssl"] = trusting()
        if "password" in kind:
            (folder / "users").write_text("app:secret\n")
            arguments += ["-Y", str(folder / "users")]
            how["login"] = b"app secret"
            options |= {"username": "app", "password": "secret"}
        server = start_memcached(arguments, unix=kind == "unix", host=host, **how)
        address = f"[::1]:{server.port}" if "v6" in kind else server.address
        return server, {"servers": [address], **options}

    return started


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.gen_test(timeout=30)
async def test_it_carries_all_sizes_to_many_callers_and_a_restart(kind: str, start: Start) -> None:
    server, options = start(kind)
    async with Client(request_timeout=10, **options) as client:
        values = {f"s{n}": os.urandom(n) for n in (0, 1, 1000, 16_384, 16_385, 70_000, 600_000)}
        assert await client.set_multi(values) == []
        assert await client.get_multi(list(values)) == values
        small = {f"k{n}": f"v{n}" for n in range(500)}
        stored = await asyncio.gather(*[client.set(key, value) for key, value in small.items()])
        assert stored == [True] * 500
        calls = [client.get(key) for key in [*small, *values] * 2]
        assert await asyncio.gather(*calls) == [*small.values(), *values.values()] * 2
        server.restart()
        assert await client.get("k1") is None and await client.set("k1", 1)
        assert client._pools[0].counts()["pending"] == 0


@pytest.mark.parametrize("kind", [kind for kind in KINDS if kind != "unix"])
@pytest.mark.gen_test
async def test_its_sockets_keep_alive_and_do_not_wait_to_fill_segments(
    kind: str, start: Start
) -> None:
    _, options = start(kind)
    async with Client(min_connections=2, **options) as client:
        await client.get("k")
        pool = client._pools[0]
        await until(lambda: pool.counts()["idle"] == 2)
        for connection in pool._connections:
            sock = connection._stream.socket
            assert sock.family == (socket.AF_INET6 if "v6" in kind else socket.AF_INET)
            assert sock.getsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE)
            assert sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY)


@pytest.mark.gen_test(timeout=60)
async def test_a_server_that_closes_what_is_idle_is_lived_with_in_silence(start: Start) -> None:
    """All kinds at once, since it takes its seconds. The ledger sees that nothing is logged.

    memcached lets what is idle on a unix socket be.
    """
    kinds = [kind for kind in KINDS if kind != "unix" and (has_v6() or "v6" not in kind)]
    started = [start(kind, "-o", "idle_timeout=2") for kind in kinds]
    async with contextlib.AsyncExitStack() as stack:
        clients = [
            await stack.enter_async_context(Client(request_timeout=10, **options))
            for _, options in started * 2
        ]
        readers, writers = clients[: len(kinds)], clients[len(kinds) :]
        await asyncio.gather(*[client.set("k", kind) for client, kind in zip(clients, kinds * 2)])
        await until(lambda: not any(one._pools[0].counts()["open"] for one in clients), seconds=30)
        reads = [client.get("k") for client in readers]
        writes = [client.set("w", 1) for client in writers]
        assert await asyncio.gather(*reads, *writes) == [*kinds, *[True] * len(kinds)]
        assert not any(client._pools[0].health.failures for client in clients)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.gen_test(timeout=30)
async def test_a_server_at_its_limit_is_lived_with(
    kind: str, start: Start, expect_log: Any
) -> None:
    """With a connection that lives it serves; without one it is a failure that says why."""
    expect_log(LOG, "taken for dead:.*limit of connections", times=1)
    expect_log(LOG, "answers again|fails", level=logging.INFO, times=range(3))
    expect_log("tornado.general", "SSL Error", times=range(20))
    server, options = start(kind, "-c", "30")
    async with Client(max_connections=4, request_timeout=10, **options) as client:
        assert await client.set("k", "v")
        crowd = crowd_of(server)
        try:
            work = [client.set(f"large{n}", LARGE) for n in range(8)]
            assert await asyncio.gather(*work, client.get("k")) == [True] * 8 + ["v"]
            await until(lambda: client._pools[0].counts()["open"] == 1)
            assert not client._pools[0].health.dead
            async with Client(request_timeout=10, **options) as other:
                with pytest.raises(ConnectionFailed, match="limit of connections") as caught:
                    await other.set("k", "w")
                assert not caught.value.maybe_applied
                with pytest.raises(ServerDead):
                    await other.get("k")
                for peer in crowd[:10]:
                    peer.close()
                other.retry_dead_servers()
                end = time.monotonic() + 5
                while True:
                    try:
                        assert await other.get("k") == "v"
                        break
                    except (ConnectionFailed, ServerDead):
                        assert time.monotonic() < end
                        other.retry_dead_servers()
                        await asyncio.sleep(0.01)
        finally:
            for peer in crowd:
                peer.close()


def crowd_of(server: Memcached) -> list[socket.socket]:
    """Returns all the connections that ``server`` takes beside those that it has."""
    family = socket.AF_UNIX if server.path else socket.AF_INET
    crowd = []
    for _ in range(40):
        peer = socket.socket(socket.AF_INET6 if ":" in server.host else family)
        peer.settimeout(10)
        peer.connect(server.path or (server.host, server.port))
        crowd.append(peer)
    # It takes them in their order: when it has refused the last it has decided on all.
    assert crowd[-1].recv(100).startswith(b"ERROR Too many open connections")
    taken = []
    for peer in crowd:
        peer.setblocking(False)
        try:
            peer.recv(100)
        except BlockingIOError:
            taken.append(peer)
        else:
            peer.close()
    return taken


# -- TLS that does not pass, at a real memcached


@pytest.mark.parametrize(
    ("certificate", "told"),
    [
        (lambda: issued("elsewhere.example"), "mismatch.*servers must hold the name"),
        (lambda: issued("127.0.0.1", ca=trustme.CA()), "(self.signed|unable to get).*cafile"),
        (lambda: issued("127.0.0.1", expired=True), "expired"),
    ],
    ids=["wrong host", "untrusted", "expired"],
)
@pytest.mark.gen_test
async def test_a_memcached_whose_certificate_does_not_pass_is_not_spoken_to(
    certificate: Callable[[], Any], told: str, start_memcached: Any, tmp_path: Path, expect_log: Any
) -> None:
    expect_log(LOG, "is taken for dead.*certificate is refused", times=1)
    expect_log("tornado.general", "SSL Error", times=range(9))
    blind = ssl.create_default_context()
    blind.check_hostname, blind.verify_mode = False, ssl.CERT_NONE
    arguments = memcached_arguments(tmp_path, certificate())
    server = start_memcached(arguments, ssl_context=blind)
    options = {"ssl": trusting(), "username": "app", "password": "secret"}
    async with Client([server.address], **options) as client:
        with pytest.raises(ConnectionFailed, match=told):
            await client.set("k", "v")
    assert server.stats()["cmd_set"] == "0"  # (nor was the password said)


# -- several addresses


@pytest.mark.parametrize("kind", ["tls", "password", "tls and password"])
@pytest.mark.gen_test
async def test_an_address_that_takes_connections_and_says_nothing_gives_way(
    kind: str, start: Start
) -> None:
    """The next is tried meanwhile, and wins when its handshake is done."""
    server, options = start(kind)
    silent = Silent("::1" if has_v6() else "127.0.0.2")
    try:
        names = Names([(silent.host, silent.port), (server.host, server.port)])
        options |= {"servers": ["cache.example"], "resolver": names}
        if "ssl" in options:  # (the certificate is the address's)
            options["ssl"].check_hostname = False
        async with Client(connect_timeout=3, request_timeout=10, **options) as client:
            begun = time.monotonic()
            assert await client.set("k", "v") is True
            assert 0.2 < time.monotonic() - begun < 2.5  # (LONGEST_STAGGER)
            assert silent.connections == 1 and client._pools[0].counts()["open"] == 1
            assert client._pools[0].health.failures == 0
    finally:
        silent.close()
