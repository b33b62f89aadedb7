"""I10, memory is flat: thousands of calls of each kind leave no more than the first few did.

Each activity runs until it has its caches, then the objects of the package
are counted by type, with Futures and contexts, and the bytes by tracemalloc;
after thousands more the counts are the same, and the bytes but for noise.
Counts and not clocks: nothing here depends on speed.
"""

from __future__ import annotations

import asyncio
import contextvars
import gc
import os
import tracemalloc
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import Any

import pytest
from tornado.ioloop import IOLoop

from tornado_memcache import (
    Client,
    ConnectionFailed,
    Timeout,
    boundary,
    deadlines,
    memcache,
    tornadoasyncmemcache,
)
from tornado_memcache.submit import WIRES_KEPT

from .gated import Gated
from .hand import Shifted
from .ledger import our_timers
from .networks import closed_port
from .scenes import until
from .steps import turn

LOG = "tornado_memcache"
#: So many calls are made in a round.
ROUND = 300
#: So many rounds are made until everything has its caches, and between the two counts.
FIRST, MORE = 2, 6
#: Bytes that all the rounds between may add, of whatever is not ours: less than one object
#: for each call.
NOISE = 64 * ROUND * MORE
#: Bytes by which the process may have grown.
GROWTH = 16 << 20


@pytest.fixture(autouse=True)
def no_tracebacks(io_loop: IOLoop) -> None:
    """A loop that debugs keeps a traceback with whatever is made on it."""
    io_loop.asyncio_loop.set_debug(False)  # type: ignore[attr-defined]


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Shifted:
    """A clock that stands still: no deadline comes but when the test sets it."""
    clock = Shifted(lambda: 1000.0)
    monkeypatch.setattr(deadlines, "clock", clock)
    return clock


class Stage:
    """A client and a server, and what the activities do with them."""

    def __init__(self, server: Gated, client: Client, clock: Shifted) -> None:
        self.server, self.client, self.clock = server, client, clock
        self.failed = 0

    def fail(self, error: Any) -> None:
        self.failed += 1

    def seen(self, result: Any) -> None:
        """A callback that keeps nothing."""

    async def settled(self) -> None:
        """Nothing is owed to anybody."""
        for pool in self.client._pools:
            await until(lambda pool=pool: not pool.pending)
        await until(lambda: not our_timers(asyncio.get_running_loop()))
        self.server.asked.clear()
        for _ in range(3):
            await turn()


@asynccontextmanager
async def stage(clock: Shifted, **settings: Any) -> AsyncIterator[Stage]:
    async with Gated() as server:
        for number in range(50):
            server.store.set(b"k%d" % number, b"value %d" % number)
        server.store.set(b"text", b"abc")
        server.store.set(b"large", b"x" * 200_000)
        async with Client([server.address], request_timeout=5.0, **settings) as client:
            await client.get("k0")
            yield Stage(server, client, clock)
        await until(lambda: not server.connections)


# -- what is done, a round each


async def gets(on: Stage) -> None:
    await asyncio.gather(*[on.client.get(f"k{number % 50}", b"no") for number in range(ROUND // 2)])
    await asyncio.gather(*[on.client.get(f"k{number % 50}") for number in range(ROUND // 2)])


async def sets(on: Stage) -> None:
    await asyncio.gather(
        *[on.client.set(f"k{number % 50}", number, timeout=3.0) for number in range(ROUND)]
    )


async def large_values(on: Stage) -> None:
    for number in range(ROUND // 50):
        await on.client.set("large", b"%d" % (number % 10) * 200_000)
        await on.client.get("large")


async def many(on: Stage) -> None:
    keys = [f"k{number}" for number in range(50)]
    for _ in range(ROUND // 50):
        await on.client.get_multi(keys)
        await on.client.set_multi(dict.fromkeys(keys, b"new"))
        await on.client.gets_multi(keys)


async def no_reply(on: Stage) -> None:
    for number in range(ROUND):
        on.client.set(f"k{number % 50}", b"quiet", noreply=True)
    await on.client.get("k0")


async def callbacks(on: Stage) -> None:
    with boundary(on.fail):
        for number in range(ROUND):
            on.client.get(f"k{number % 50}", callback=on.seen, timeout=1.0 + number % 7)
            on.client.incr("text", callback=on.seen)
    await on.settled()


async def coroutine_callbacks(on: Stage) -> None:
    async def again(result: Any) -> None:
        await on.client.get("k1")

    for number in range(ROUND // 2):
        on.client.get(f"k{number % 50}", callback=again)
    await on.settled()


async def boundaries(on: Stage) -> None:
    shared = boundary(on.fail, once=True, timeout=4.0)
    for number in range(ROUND // 4):
        with shared as entry:
            on.client.get(f"k{number % 50}", callback=on.seen)
            with boundary(on.fail), boundary(None), boundary(on.fail, timeout=2.0):
                on.client.get("k1", callback=on.seen)
            if number % 2:
                on.client.incr("text")
        if number % 3 == 0:
            entry.cancel()
        with shared:
            await on.client.get("k2")
    await on.settled()


async def timeouts(on: Stage) -> None:
    """A server stalls, all calls time out, and their tombstones go when it answers."""
    on.server.hold("reply")
    with boundary(on.fail):
        for number in range(ROUND // 2):
            on.client.get(f"k{number % 50}", callback=on.seen)
            on.client.set(f"k{number % 50}", b"late")
    await until(lambda: on.server.held)
    on.clock.shift += 5.0
    assert on.client._deadlines is not None
    on.client._deadlines._disarm()
    on.client._deadlines._fire()
    on.server.release()
    await on.settled()


async def short_timeouts(on: Stage) -> None:
    on.server.hold("reply")
    calls = [on.client.get(f"k{number % 50}", timeout=1.0) for number in range(ROUND)]
    await until(lambda: on.server.held)
    on.clock.shift += 1.0
    assert on.client._deadlines is not None
    on.client._deadlines._disarm()
    on.client._deadlines._fire()
    assert all(isinstance(call.exception(), Timeout) for call in calls)
    on.server.release()
    await on.settled()


async def cancelled(on: Stage) -> None:
    for start in range(0, ROUND, 50):
        calls: list[Any] = [on.client.get(f"k{n % 50}") for n in range(start, start + 20)]
        calls += [on.client.set(f"k{n % 50}", b"x", timeout=2.0) for n in range(15)]
        calls += [on.client.get_multi([f"k{n}", "no"]) for n in range(15)]
        for _ in range(start % 4):
            await turn()
        for call in calls:
            call.cancel()
    await on.settled()


async def abandoned(on: Stage) -> None:
    for number in range(ROUND // 2):
        on.client.get(f"k{number % 50}", b"default")
        on.client.incr("text")
    await on.settled()


async def lost_connections(on: Stage) -> None:
    for number in range(20):
        calls = [on.client.set(f"k{n}", b"v") for n in range(ROUND // 20)]
        if number % 2:
            await turn()
        on.server.reset()
        await asyncio.wait(calls)
        await until(lambda: not on.server.connections)
        assert await on.client.set("k0", b"v")
    await on.settled()


async def closed_clients(on: Stage) -> None:
    for number in range(ROUND // 25):
        client = Client([on.server.address])
        calls = [client.get(f"k{n}") for n in range(25)]
        for _ in range(number % 6):
            await turn()
        client.close()
        await asyncio.wait(calls)
    await on.settled()
    await until(lambda: len(on.server.connections) <= 1)


async def faces(on: Stage) -> None:
    first = memcache.Client([on.server.address], cache_cas=True)
    second = tornadoasyncmemcache.ClientPool([on.server.address], maxclients=ROUND)
    for number in range(ROUND // 4):
        await first.set(f"k{number % 50}", {"a": number})
        await first.gets(f"k{number % 50}")
        second.get("k1", callback=on.seen)
        second.set("k2", b"x", callback=on.seen)
    await until(lambda: not second._under_way)
    first.close()
    second.close()
    await on.settled()
    await until(lambda: len(on.server.connections) <= 1)


ACTIVITIES = [
    gets,
    sets,
    large_values,
    many,
    no_reply,
    callbacks,
    coroutine_callbacks,
    boundaries,
    timeouts,
    short_timeouts,
    cancelled,
    abandoned,
    lost_connections,
    closed_clients,
    faces,
]


# -- counting


def census() -> Counter[str]:
    """Counts what is alive of the package's types, of Futures and of contexts, by type."""
    gc.collect()
    found: Counter[str] = Counter()
    for one in gc.get_objects():
        kind = type(one)
        if kind.__module__.startswith("tornado_memcache") or issubclass(
            kind, (asyncio.Future, contextvars.Context)
        ):
            found[f"{kind.__module__}.{kind.__qualname__}"] += 1
    return found


def same(before: Counter[str]) -> None:
    """Asserts that as much is alive as ``before``, but for a loop's own contexts of the moment."""
    now, contexts = census(), "_contextvars.Context"
    assert abs(now.pop(contexts, 0) - before.get(contexts, 0)) <= 3
    assert now == Counter({kind: n for kind, n in before.items() if kind != contexts})


def size() -> int:
    """Returns how many bytes of the process are in memory."""
    with open("/proc/self/statm") as statm:
        return int(statm.read().split()[1]) * os.sysconf("SC_PAGE_SIZE")


async def is_flat(activity: Callable[[Stage], Awaitable[None]], on: Stage) -> None:
    """Does it for a while, counts, does it for longer, and counts again."""
    for _ in range(FIRST):
        await activity(on)
    await on.settled()
    tracemalloc.start()
    try:
        await activity(on)
        await on.settled()
        counted, process = census(), size()
        traced = tracemalloc.get_traced_memory()[0]
        for _ in range(MORE):
            await activity(on)
        await on.settled()
        same(counted)
        assert tracemalloc.get_traced_memory()[0] - traced < NOISE
        assert size() - process < GROWTH
    finally:
        tracemalloc.stop()


@pytest.mark.gen_test(timeout=120)
@pytest.mark.parametrize("activity", ACTIVITIES, ids=lambda activity: activity.__name__)
async def test_memory_is_flat(
    clock: Shifted, expect_log: Callable[..., Any], activity: Callable[[Stage], Awaitable[None]]
) -> None:
    expect_log(LOG, "fails|dead", times=range(20))
    async with stage(clock, silences_until_dead=1000) as on:
        await is_flat(activity, on)
        assert await on.client.set("k1", b"right") and await on.client.get("k1") == b"right"


@pytest.mark.gen_test(timeout=120)
async def test_keys_that_are_never_asked_again_are_not_kept_for_ever(clock: Shifted) -> None:
    async with stage(clock) as on:
        await on.settled()
        counted = census()
        for start in range(0, 3 * WIRES_KEPT, 512):
            await asyncio.gather(*[on.client.get(f"once-{start + n}") for n in range(512)])
            on.server.asked.clear()
            assert len(on.client._wires) <= WIRES_KEPT
        await on.settled()
        same(counted)


@pytest.mark.gen_test(timeout=120)
@pytest.mark.parametrize("number", [1, 20])
async def test_a_connection_at_rest_holds_none_of_the_large_values_that_came_on_it(
    clock: Shifted, number: int
) -> None:
    """Nor do they wait for the next large one; the buffer that is kept holds the longest alone."""
    size = 500_000
    async with stage(clock) as on:
        keys = [f"large{n}" for n in range(number)]
        await asyncio.gather(*[on.client.set(key, os.urandom(size)) for key in keys])
        assert len(await on.client.get_multi(keys)) == number  # (it has its buffers)
        await on.settled()
        await until(lambda: on.client._pools[0].counts()["idle"] > 0)
        gc.collect()
        tracemalloc.start()
        try:
            found = await on.client.get_multi(keys)
            assert [len(value) for value in found.values()] == [size] * number
            del found
            await on.settled()
            gc.collect()
            ours = tracemalloc.take_snapshot().filter_traces(
                [tracemalloc.Filter(True, "*/tornado_memcache/protocol.py")]
            )
            kept = sum(one.size for one in ours.statistics("filename"))
            assert kept < size // 2 + size, "more than the one buffer"
        finally:
            tracemalloc.stop()


@pytest.mark.gen_test(timeout=120)
async def test_memory_is_flat_while_connections_are_refused(
    clock: Shifted, expect_log: Callable[..., Any]
) -> None:
    expect_log(LOG, "is taken for dead", times=1)

    async def refused(on: Stage) -> None:
        for _ in range(20):
            on.client.retry_dead_servers()
            on.client._pools[0].health.dead_until = 0.0
            with boundary(on.fail):
                on.client.get("k", callback=on.seen)
                calls: list[Any] = [on.client.set(f"k{n}", 1) for n in range(ROUND // 20)]
            await asyncio.wait(calls)
        await on.settled()

    with closed_port() as (host, port):
        async with Gated() as server, Client([f"{host}:{port}"]) as client:
            with pytest.raises(ConnectionFailed):
                await client.get("k")
            await is_flat(refused, Stage(server, client, clock))
            assert client._pools[0].counts()["open"] == 0


@pytest.mark.gen_test(timeout=120)
async def test_a_tombstone_keeps_nothing_of_its_call(
    clock: Shifted, expect_log: Callable[..., Any]
) -> None:
    expect_log(LOG, "fails", times=1)
    async with stage(clock) as on:
        await on.settled()
        before = census()
        on.server.hold("reply")

        def large(number: int) -> Callable[[Any], None]:
            kept = b"x" * 10_000  # (what a callback holds on to)
            return lambda result: on.fail(kept)

        tracemalloc.start()
        traced = tracemalloc.get_traced_memory()[0]
        with boundary(on.fail):
            for number in range(2000):
                on.client.get(f"k{number % 50}", callback=large(number), fail_callback=on.fail)
                on.client.delete(f"no{number}")
        await until(lambda: on.server.held)
        on.clock.shift += 5.0
        assert on.client._deadlines is not None
        on.client._deadlines._disarm()
        on.client._deadlines._fire()
        assert on.failed == 4000 and on.client._pools[0].pending > 2000
        on.server.asked.clear()
        left = census() - before
        of_a_tombstone = (tracemalloc.get_traced_memory()[0] - traced) / 4000
        tracemalloc.stop()
        # One error is kept by the log, and a context or two by the timer of the late connection.
        assert left.pop("tornado_memcache.errors.Timeout") == 1
        assert left.pop("_contextvars.Context", 0) <= 2
        assert {kind.rpartition(".")[2] for kind in left} == {
            "TextSlot",
            "GatheredSlot",
            "Request",
        }
        assert of_a_tombstone < 1000
        on.server.release()
        await on.settled()
        assert set(census() - before) == {"tornado_memcache.errors.Timeout"}
