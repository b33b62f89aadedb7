"""The fault matrix, "Servers.": servers that flap, die, come back, or close what is idle.

Each row has its tests under its own words. Connects are counted where they
enter the kernel, so that those to a closed port count too.
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import logging
import os
import socket
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from tornado_memcache import Client, ConnectionFailed, MemcacheError, ServerDead, Timeout, deadlines
from tornado_memcache.health import FIRST_PAUSE
from tornado_memcache.server import EmbeddedServer

from .asked import until
from .faultproxy import FaultProxy
from .hand import Hand
from .memcacheds import Memcached, free_port
from .networks import Connects, closed_port

LOG = "tornado_memcache"
#: For tests in which nothing is to time out, however loaded the machine.
PATIENT = {"request_timeout": 10.0, "connect_timeout": 10.0}
#: The shortest that jitter makes of the first pause, in seconds.
SHORTEST = 0.9 * FIRST_PAUSE


async def outcome_of(call: Any) -> Any:
    try:
        return await call
    except MemcacheError as error:
        return error


async def outcomes_of(*calls: Any) -> list[Any]:
    return await asyncio.gather(*map(outcome_of, calls))


async def until_it_may_be_tried(client: Client) -> None:
    """Waits until the pause of the first server's death is over."""
    await until(lambda: client._pools[0].health.may_probe(deadlines.clock()))


# -- flapping at 10 Hz: connects bounded by back-off with jitter


class Flapping:
    """An embedded server that is there for 50 ms and away for 50 ms, in turns.

    ``accepted`` counts the connections that it has taken.
    """

    def __init__(self) -> None:
        # (a port that no other process is given while the server is away)
        self.server = EmbeddedServer(free_port())
        self.address = self.server.address
        self.ups = 1
        self.accepted = 0

    async def __aenter__(self) -> Flapping:
        self.server.start()
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.server.close()

    async def flap(self, seconds: float) -> None:
        end = time.monotonic() + seconds
        while time.monotonic() < end:
            self._count()
            self.server.stop()
            await asyncio.sleep(0.05)
            self.server.start()
            self.ups += 1
            await asyncio.sleep(0.05)
        self._count()

    def _count(self) -> None:
        assert self.server._door is not None
        self.accepted += self.server._door.accepted


async def ask_until(done: asyncio.Future[Any], client: Client) -> Counter[str]:
    """Asks every few milliseconds until ``done``; counts the kinds of outcomes."""
    kinds: Counter[str] = Counter()
    number = 0
    while not done.done():
        key, number = f"k{number % 50}", number + 1
        outcome = await outcome_of(client.set(key, key) if number % 3 else client.get(key))
        assert outcome in (True, None, key) or isinstance(outcome, MemcacheError)
        kinds[type(outcome).__name__] += 1
        await asyncio.sleep(0.002)
    return kinds


@pytest.mark.gen_test(timeout=60)
async def test_flapping_server_that_refuses_is_asked_once_in_each_pause(expect_log):
    expect_log(LOG, "taken for dead|fails", times=None)
    async with Flapping() as flapping:
        with Connects() as connects:
            async with Client([flapping.address], **PATIENT) as client:
                assert await client.set("k", "v")
                kinds = await ask_until(asyncio.ensure_future(flapping.flap(2.0)), client)
                moments, accepted = connects.to(flapping.address), flapping.accepted
                gaps = [later - earlier for earlier, later in zip(moments, moments[1:])]
                told = (
                    f"{len(moments)} connects in 2 s, {accepted} of them accepted in "
                    f"{flapping.ups} turns; after {[round(gap, 3) for gap in gaps]} s; {kinds}"
                )
                assert len(moments) - accepted >= 2, told
                assert accepted <= flapping.ups, told
                # What follows a refusal follows its pause. (Two may come between: accepted by
                # the kernel, as the server went away.)
                assert sum(gap < SHORTEST for gap in gaps) <= accepted + 2, told
                client.retry_dead_servers()
                assert await client.set("k", "w") and await client.get("k") == "w"


@pytest.mark.gen_test(timeout=60)
async def test_flapping_server_behind_something_that_accepts_is_asked_little_too(expect_log):
    """A refusal counts at once, a connection that says nothing is one silence of three."""
    expect_log(LOG, "taken for dead|fails", times=None)
    async with Flapping() as flapping:
        with FaultProxy(flapping.address) as proxy:
            async with Client([proxy.address], **PATIENT) as client:
                assert await client.set("k", "v")
                begun = time.monotonic()
                kinds = await ask_until(asyncio.ensure_future(flapping.flap(2.0)), client)
                took = time.monotonic() - begun
                most = 3 * (1 + took / SHORTEST) + flapping.ups
                told = f"{proxy.accepted} connects in {took:.2f} s, up to {most:.0f}; {kinds}"
                assert kinds["ServerDead"] > 0 and kinds["ConnectionFailed"] > 0, told
                assert 1 < proxy.accepted <= most, told
                client.retry_dead_servers()
                assert await client.set("k", "w") and await client.get("k") == "w"


@pytest.mark.gen_test
async def test_pauses_of_clients_that_lost_a_server_at_once_differ(expect_log):
    """Jitter: a hundred clients do not come back in one moment."""
    expect_log(LOG, "taken for dead", times=40)
    with closed_port() as (host, port), Connects() as connects:
        address = f"{host}:{port}"
        async with contextlib.AsyncExitStack() as stack:
            clients = [
                await stack.enter_async_context(Client([address], **PATIENT)) for _ in range(40)
            ]
            await outcomes_of(*[client.get("k") for client in clients])
            assert len(connects.to(address)) == 40
            ends = [client._pools[0].health.dead_until for client in clients]
            spread = max(ends) - min(ends)
            # (all of them died within a moment: 40 draws from a tenth of the pause)
            assert spread > 0.01, f"{spread:.4f} s"


# -- dead then back: exactly one probe, then full use


@pytest.mark.gen_test(timeout=60)
async def test_dead_then_back_is_exactly_one_probe_and_then_full_use(start_memcached, expect_log):
    expect_log(LOG, "taken for dead", times=1)
    server = start_memcached()
    async with Client([server.address], max_connections=4, **PATIENT) as client:
        assert await client.set("k0", "v")
        server.kill()
        assert type(await outcome_of(client.get("k0"))) is ConnectionFailed
        server.restart()
        await until_it_may_be_tried(client)
        with Connects() as connects:
            outcomes = await outcomes_of(*[client.set(f"k{n}", f"v{n}") for n in range(200)])
            assert outcomes[0] is True
            assert {type(outcome) for outcome in outcomes[1:]} == {ServerDead}
            stats = server.stats()
            assert (stats["cmd_set"], len(connects.to(server.address))) == ("1", 1)
            assert await asyncio.gather(*[client.set(f"k{n}", f"v{n}") for n in range(200)]) == (
                [True] * 200
            )
            assert await asyncio.gather(*[client.get(f"k{n}") for n in range(200)]) == [
                f"v{n}" for n in range(200)
            ]
            assert len(connects.to(server.address)) == 1, "one connection was enough"
            values = {f"large{n}": b"%d" % n * 100_000 for n in range(8)}
            stored = await asyncio.gather(*[client.set(*item) for item in values.items()])
            assert stored == [True] * 8 and await client.get_multi(values) == values
            opened = len(connects.to(server.address))
            assert 1 < opened <= 4, f"{opened} connections for large calls"


@pytest.mark.gen_test
async def test_back_in_the_turn_in_which_a_call_was_refused_is_one_outage_in_the_log(
    start_memcached, expect_log
):
    expect_log(LOG, "taken for dead", times=1)
    again = expect_log(LOG, "answers again", level=logging.INFO, times=1)
    server = start_memcached()
    async with Client([server.address], **PATIENT) as client:
        assert await client.set("k", "v")
        (pool,) = client._pools
        server.kill()
        assert type(await outcome_of(client.get("k"))) is ConnectionFailed
        server.restart()
        await until_it_may_be_tried(client)
        probe, refused = client.get("k"), []
        while server.stats()["cmd_get"] == "0":
            await asyncio.sleep(0)
        # Its reply is read at the end of this turn of the loop, or of the next.
        for _ in range(2):
            if pool.health.dead:
                refused.append(client.get("k"))
            await asyncio.sleep(0)
        outcomes = await outcomes_of(probe, *refused, client.get("k"))
        assert outcomes == [None, *outcomes[1:-1], None]
        # (a loop that reads before it runs what is ready has refused nobody)
        assert {type(outcome) for outcome in outcomes[1:-1]} <= {ServerDead}
        assert again.count == 1


@pytest.mark.gen_test(timeout=60)
async def test_dead_by_silence_then_back_is_one_probe_that_its_first_reply_decides(
    start_memcached, expect_log
):
    """A stopped server still accepts: the connection of the probe says nothing yet."""
    expect_log(LOG, "fails|taken for dead", times=2)
    server = start_memcached()
    async with Client([server.address], request_timeout=0.4) as client:

        async def ask_twenty(**how: float) -> list[Any]:
            await until_it_may_be_tried(client)
            return await outcomes_of(*[client.get("k", **how) for _ in range(20)])

        assert await client.set("k", "v")
        server.stop()
        for _ in range(3):
            assert type(await outcome_of(client.get("k"))) is Timeout
        await until(lambda: client._pools[0].counts()["open"] == 0)
        with Connects() as connects:
            outcomes = await ask_twenty()
            assert {type(outcome) for outcome in outcomes[1:]} == {ServerDead}
            assert type(outcomes[0]) is Timeout
            await until(lambda: client._pools[0].counts()["open"] == 0)
            assert len(connects.to(server.address)) == 1, "for the probe alone"
            server.resume()
            outcomes = await ask_twenty(timeout=10)
            assert {type(outcome) for outcome in outcomes[1:]} == {ServerDead}
            assert outcomes[0] == "v"
            assert len(connects.to(server.address)) == 2
            calls = [client.get("k", timeout=10) for _ in range(100)]
            assert await asyncio.gather(*calls) == ["v"] * 100


# -- all dead: fails in microseconds, no connect per call


@pytest.mark.gen_test(timeout=60)
@pytest.mark.parametrize("on_dead", ["fail", "rehash"])
async def test_all_dead_fails_on_the_next_turn_without_a_connect(on_dead, expect_log, monkeypatch):
    expect_log(LOG, "taken for dead", times=3)
    with contextlib.ExitStack() as stack:
        ports = [stack.enter_context(closed_port()) for _ in range(3)]
        servers = [f"{host}:{port}" for host, port in ports]
        connects = stack.enter_context(Connects())

        def tried() -> list[int]:
            return [len(connects.to(server)) for server in servers]

        async with Client(servers, on_dead=on_dead, **PATIENT) as client:
            await outcomes_of(*[client.get(f"k{n}") for n in range(100)])
            assert all(pool.health.dead for pool in client._pools)
            assert tried() == [1, 1, 1]
            ends = [pool.health.dead_until for pool in client._pools]
            clock = Hand(min(ends) - 0.1)
            monkeypatch.setattr(deadlines, "clock", clock)  # (the pauses stand still)
            begun = time.monotonic()
            calls = [client.get(f"k{n}") for n in range(500)]
            calls += [client.set(f"k{n}", "v") for n in range(500)]
            calls += [client.incr("n"), client.delete("k"), client.touch("k", 1)]
            assert not any(call.done() for call in calls), "an outcome came inside the call"
            await asyncio.sleep(0)
            took = (time.monotonic() - begun) / len(calls)
            told = f"{took * 1e6:.0f} us a call"
            assert all(call.done() for call in calls), told
            assert {type(call.exception()) for call in calls} == {ServerDead}, told
            assert took < 0.01, told
            many = await outcome_of(client.get_multi([f"k{n}" for n in range(100)]))
            assert type(many) is ServerDead
            assert tried() == [1, 1, 1], "the dead are not asked"
            assert not client._deadlines.armed
            assert {pool.counts()["open"] + pool.pending for pool in client._pools} == {0}
            clock.now = max(ends)  # (the pauses are over)
            outcomes = await outcomes_of(*[client.get(f"k{n}") for n in range(500)])
            kinds = Counter(type(outcome) for outcome in outcomes)
            assert kinds == {ConnectionFailed: 3, ServerDead: 497}
            assert tried() == [2, 2, 2], "one call finds out, for each server"


# -- unix socket missing, refused, recreated


@pytest.fixture
def folder() -> Iterator[Path]:
    """A folder whose name is short enough for a socket in it."""
    with tempfile.TemporaryDirectory(prefix="mc-") as name:
        yield Path(name)


@pytest.mark.gen_test
async def test_unix_socket_missing_fails_at_once_with_its_errno(folder, expect_log):
    expect_log(LOG, "taken for dead: cannot connect: No such file or directory", times=1)
    async with Client([f"unix:{folder}/none"], **PATIENT) as client:
        begun = time.monotonic()
        errors = await outcomes_of(client.get("k"), client.set("k", "v"))
        took = time.monotonic() - begun
        assert {(type(one), one.errno, one.phase, one.maybe_applied) for one in errors} == {
            (ConnectionFailed, errno.ENOENT, "connecting", False)
        }
        assert took < 1.0, f"{took:.3f} s"
        assert type(await outcome_of(client.get("k"))) is ServerDead


@pytest.mark.gen_test
async def test_unix_socket_refused_fails_at_once_with_its_errno(folder, expect_log):
    """Its file is there, and nobody listens: what a killed server leaves."""
    expect_log(LOG, "taken for dead: cannot connect: Connection refused", times=1)
    with socket.socket(socket.AF_UNIX) as left_behind:
        left_behind.bind(str(folder / "socket"))
    async with Client([f"unix:{folder}/socket"], **PATIENT) as client:
        begun = time.monotonic()
        errors = await outcomes_of(client.get("k"), client.set("k", "v"))
        took = time.monotonic() - begun
        assert {(type(one), one.errno, one.phase, one.maybe_applied) for one in errors} == {
            (ConnectionFailed, errno.ECONNREFUSED, "connecting", False)
        }
        assert took < 1.0, f"{took:.3f} s"


@pytest.mark.gen_test
async def test_unix_socket_refused_then_missing_then_recreated(start_memcached, expect_log):
    expect_log(LOG, "taken for dead", times=1)
    server = start_memcached(unix=True)
    with Connects() as connects:
        async with Client([server.address], dead_retry=0.05, **PATIENT) as client:
            assert await client.set("k", "v") and await client.get("k") == "v"
            server.kill()
            assert (await outcome_of(client.get("k"))).errno == errno.ECONNREFUSED
            os.unlink(server.path)
            await until_it_may_be_tried(client)
            assert (await outcome_of(client.get("k"))).errno == errno.ENOENT
            server.restart()
            await until_it_may_be_tried(client)
            assert await client.get("k") is None
            assert await client.set("k", "w") and await client.get("k") == "w"
        assert len(connects.to(server.address)) == 4


@pytest.mark.gen_test
async def test_unix_socket_recreated_between_two_calls_is_not_noticed(start_memcached):
    server = start_memcached(unix=True)
    async with Client([server.address], **PATIENT) as client:
        assert await client.set("k", "v")
        server.restart()
        assert await client.get("k") is None
        server.restart()
        await until(lambda: client._pools[0].counts()["open"] == 0)
        assert await client.set("k", "w") and await client.get("k") == "w"


# -- server-side idle_timeout: silent, the next call works


@pytest.mark.gen_test(timeout=60)
async def test_idle_timeout_of_the_server_is_silent_and_the_next_call_works(start_memcached):
    """The ledger sees that nothing is logged, and that nothing of the old ones is left."""
    server: Memcached = start_memcached(["-o", "idle_timeout=1"])
    asks: list[Callable[[Client], Any]] = [
        lambda client: client.get("k"),
        lambda client: client.set("k", "v"),
        lambda client: client.add("k", "w"),
        lambda client: client.get_multi(["k"]),
    ]
    async with contextlib.AsyncExitStack() as stack:
        clients = [
            await stack.enter_async_context(Client([server.address], **PATIENT)) for _ in asks
        ]
        assert await clients[0].set("k", "v")
        large = [client.set(f"large{n}", b"x" * 100_000) for n in range(3) for client in clients]
        assert await asyncio.gather(*large) == [True] * 12
        _, unique = await clients[1].gets("k")
        opened = [client._pools[0].counts()["open"] for client in clients]
        assert min(opened) >= 1
        await until(lambda: not any(client._pools[0].counts()["open"] for client in clients))
        assert await asyncio.gather(*[ask(client) for ask, client in zip(asks, clients)]) == (
            ["v", True, False, {"k": "v"}]
        )
        assert await clients[1].cas("k", "old", unique) is False, "it may be another server's"
        for client in clients:
            assert repr(client._pools[0].health) == "alive" and not client._pools[0].health.failures
        assert int(server.stats()["idle_kicks"]) >= sum(opened)
