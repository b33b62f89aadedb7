"""tornado_memcache.upkeep: connections that nobody uses go, and so do those to an old address.

Time is not waited for: the timers are looked at, and what they call is
called, but for one test of each that lets the timer fire.
"""

from __future__ import annotations

import asyncio
import gc
import socket
import weakref

import pytest
from tornado.netutil import Resolver

from tornado_memcache import Client

from .asked import until
from .faultproxy import FaultProxy
from .ledger import our_timers

LOG = "tornado_memcache"


class Names(Resolver):
    """A resolver whose answers a test sets; it may fail, be slow, or answer nonsense."""

    def initialize(self, **names):
        self.names = names
        self.asked = 0
        self.gate = None

    async def resolve(self, host, port, family=socket.AF_UNSPEC):
        self.asked += 1
        if self.gate is not None:
            await self.gate.wait()
        found = self.names[host]
        if isinstance(found, Exception):
            raise found
        if isinstance(found, list):
            return found
        return [(socket.AF_INET, (found, port))]


def timer(client, name):
    return next(one for one in client.timers if one.name == name)


def opened(client):
    return client._pools[0].counts()["open"]


async def grown(client, number):
    """Has the pool open ``number`` connections, as large work does, and lets them rest."""
    large = b"x" * 500_000
    while opened(client) < number:
        await asyncio.gather(*(client.set(f"k{n}", large) for n in range(2 * number)))
    await until(lambda: client._pools[0].counts()["idle"] == opened(client))


def unused_for(client, seconds):
    for connection in client._pools[0].connections:
        connection.opened_at -= seconds
        connection.rested_at -= seconds


# -- idle_timeout


@pytest.mark.gen_test
async def test_connections_shrink_after_load(memcached):
    async with Client([memcached.address], idle_timeout=60.0) as client:
        assert client.timers == []  # no loop yet
        await client.get("k")
        idle = timer(client, "idle_timeout")
        assert idle.armed and "<idle_timeout in " in repr(client)
        await grown(client, 4)
        client._cluster._upkeep.shrink()
        assert opened(client) == 4, "none was unused for so long"
        unused_for(client, 60.0)
        await client.get("k")  # one was used just now
        idle.stop()
        client._cluster._upkeep.shrink()
        assert opened(client) == 1 and idle.armed
        unused_for(client, 60.0)
        idle.stop()
        client._cluster._upkeep.shrink()
        assert opened(client) == 0 and not idle.armed and "<idle_timeout not set>" in repr(client)
        assert await client.set("k", 1) and await client.get("k") == 1
        assert idle.armed


@pytest.mark.gen_test
async def test_the_timer_itself_closes_them_and_is_not_set_again(memcached):
    async with Client([memcached.address], idle_timeout=0.05) as client:
        await client.get("k")
        await until(lambda: opened(client) == 0)
        assert not timer(client, "idle_timeout").armed
        assert client._pools[0].health.deaths == 0


@pytest.mark.gen_test
async def test_min_connections_stay_and_need_no_timer(memcached):
    async with Client([memcached.address], min_connections=2, idle_timeout=60.0) as client:
        await client.get("k")
        await until(lambda: client._pools[0].counts()["idle"] == 2)
        assert not timer(client, "idle_timeout").armed
        await grown(client, 4)
        assert timer(client, "idle_timeout").armed
        unused_for(client, 60.0)
        timer(client, "idle_timeout").stop()
        client._cluster._upkeep.shrink()
        assert opened(client) == 2 and not timer(client, "idle_timeout").armed


@pytest.mark.gen_test
async def test_a_connection_that_owes_is_in_use_however_long_that_takes(memcached):
    with FaultProxy(memcached.address) as proxy:
        client = Client([proxy.address], idle_timeout=60.0, request_timeout=5.0)
        async with client:
            await client.set("k", 1)
            proxy.replies.hold = True
            call = client.get("k")
            unused_for(client, 3600.0)
            client._cluster._upkeep.shrink()
            assert opened(client) == 1
            proxy.heal()
            assert await call == 1


@pytest.mark.gen_test
async def test_calls_go_on_while_connections_are_closed_under_them(memcached):
    before = int(memcached.stats()["total_connections"])
    async with Client([memcached.address], idle_timeout=0.001) as client:
        await client.set("k", "v")
        for turn in range(200):
            assert await client.get("k") == "v"
            assert await client.set("n", turn, noreply=True)
            if turn % 10 == 0:
                await asyncio.sleep(0.003)
        assert await client.get("n") == 199
    opened = int(memcached.stats()["total_connections"]) - before - 1  # (one asked for this)
    assert opened > 1, "none was closed under them"


# -- resolve_interval


@pytest.fixture
def moving(start_memcached):
    """Two memcacheds at one port of two addresses, and a resolver that knows the first."""
    one = start_memcached(host="127.0.0.1")
    other = start_memcached(host="127.0.0.2", port=one.port)
    return one, other, Names(cache="127.0.0.1")


def client_of(moving, **options):
    return Client([f"cache:{moving[0].port}"], resolver=moving[2], **options)


@pytest.mark.gen_test
async def test_a_server_that_moved_is_followed_and_what_is_under_way_ends(moving):
    one, other, names = moving
    there = ("127.0.0.2", one.port)
    async with client_of(moving, resolve_interval=60.0, request_timeout=5.0) as client:
        await client.set("k", "old")
        one.stop()
        call, write = client.get("k"), client.set("w", 1)
        names.names["cache"] = "127.0.0.2"
        client._cluster._upkeep.look_up()
        await until(lambda: client._pools[0].connections[0].leaving)
        assert await client.get("k") is None  # asked of the new address
        later = client.get("w")  # behind its write, which is answered by the old one
        assert not (call.done() or write.done() or later.done())
        one.resume()
        assert await asyncio.gather(call, write, later) == ["old", True, None]
        await until(lambda: {one.peer for one in client._pools[0].connections} == {there})
        assert await client.set("k", "new")
        assert other.ask(b"get k\r\n", b"END\r\n").startswith(b"VALUE k")
        assert client._pools[0].health.deaths == 0


@pytest.mark.gen_test
async def test_a_busy_connection_to_the_old_address_is_left_under_load(moving):
    names = moving[2]
    async with client_of(moving, resolve_interval=0.02) as client:
        ended, stop = [], False

        async def load():
            while not stop:
                ended.append(await client.set("k", "v"))
                ended.append(await client.get("k") in ("v", None))

        loads = [asyncio.ensure_future(load()) for _ in range(20)]
        await until(lambda: len(ended) > 100)
        names.names["cache"] = "127.0.0.2"
        there = ("127.0.0.2", moving[0].port)
        await until(lambda: {one.peer for one in client._pools[0].connections} == {there})
        stop = True
        await asyncio.gather(*loads)
        assert all(ended)


@pytest.mark.parametrize(
    "answer",
    [OSError("no such name"), [], KeyError("ours"), [(socket.AF_INET, None)], ["?"], [()]],
    ids=["fails", "empty", "raises", "no address", "no pair", "nothing"],
)
@pytest.mark.gen_test
async def test_a_look_up_that_comes_to_nothing_changes_nothing(moving, answer):
    names = moving[2]
    async with client_of(moving, resolve_interval=60.0) as client:
        await client.get("k")
        names.names["cache"] = answer
        client._cluster._upkeep.look_up()
        await until(lambda: names.asked == 2 and not client._cluster._upkeep._look_ups)
        assert not client._pools[0].connections[0].leaving
        assert timer(client, "resolve_interval").armed


@pytest.mark.gen_test
async def test_an_address_that_the_name_still_leads_to_stays_connected(moving):
    one, _, names = moving
    async with client_of(moving, resolve_interval=60.0) as client:
        await client.get("k")
        both = [(socket.AF_INET, (f"127.0.0.{n}", one.port)) for n in (2, 1)]
        names.names["cache"] = both
        client._cluster._upkeep.look_up()
        await until(lambda: names.asked == 2 and not client._cluster._upkeep._look_ups)
        assert client._pools[0].connections[0].peer[0] == "127.0.0.1" and opened(client) == 1
        assert not client._pools[0].connections[0].leaving


@pytest.mark.gen_test
async def test_a_look_up_that_does_not_end_is_begun_anew_by_the_next_and_ends_with_the_client(
    moving,
):
    names = moving[2]
    async with client_of(moving, resolve_interval=60.0) as client:
        await client.get("k")
        upkeep, names.gate = client._cluster._upkeep, asyncio.Event()
        look_ups = []
        for asked in (2, 3):
            upkeep.look_up()
            await until(lambda asked=asked: names.asked == asked)
            look_ups += upkeep._look_ups.values()
        assert [one.done() for one in look_ups] == [True, False] and look_ups[0].cancelled()
        names.gate, names.names["cache"] = None, "127.0.0.2"
        upkeep.look_up()
        await until(lambda: opened(client) == 0)  # it was followed
        await client.get("k")
        names.gate = asyncio.Event()
        upkeep.look_up()
        await until(lambda: names.asked >= 6)
        (last,) = upkeep._look_ups.values()
    await until(last.cancelled)


@pytest.mark.gen_test
async def test_a_silent_write_at_the_old_address_holds_up_nothing_but_its_key(moving):
    one, _, names = moving
    async with client_of(moving, resolve_interval=60.0, request_timeout=5.0) as client:
        await client.set("k", "old")
        one.stop()
        write = client.set("w", 1)
        names.names["cache"] = "127.0.0.2"
        client._cluster._upkeep.look_up()
        await until(lambda: client._pools[0].connections[0].leaving)
        behind = [client.get("w"), client.set("w", 2), client.get("w")]
        for n in range(5):
            assert await client.set(f"k{n}", n) and await client.get(f"k{n}") == n
        assert not any(call.done() for call in (write, *behind))
        assert client._pools[0].counts()["open"] == 2
        one.resume()
        assert await write is True
        assert await asyncio.gather(*behind) == [None, True, 2]


@pytest.mark.gen_test
async def test_a_server_given_by_number_or_path_needs_no_timer(start_memcached):
    servers = [start_memcached().address, start_memcached(unix=True).address]
    async with Client(servers, resolve_interval=60.0, min_connections=1) as client:
        await client.version()
        assert not timer(client, "resolve_interval").armed
        client._cluster._upkeep.look_up()
        assert not client._cluster._upkeep._look_ups


@pytest.mark.gen_test
async def test_the_new_address_refuses_and_calls_fail_as_with_a_server_that_does(
    moving, expect_log
):
    expect_log(LOG, "fails|dead", times=range(10))
    names = moving[2]
    names.names["cache"] = "127.0.0.1"
    async with client_of(moving, resolve_interval=60.0) as client:
        await client.get("k")
        names.names["cache"] = "127.0.0.3"
        client._cluster._upkeep.look_up()
        await until(lambda: opened(client) == 0)
        with pytest.raises(OSError):
            await client.get("k")
        assert client._pools[0].health.dead


# -- the timers


@pytest.mark.gen_test
async def test_without_the_settings_there_is_no_timer(memcached):
    async with Client([memcached.address]) as client:
        await client.get("k")
        assert client.timers == [] and client._pools[0].on_opened is None
        await asyncio.sleep(0)
        assert our_timers(asyncio.get_running_loop()) == []


@pytest.mark.gen_test
async def test_they_are_gone_when_the_client_is_closed(moving):
    async with client_of(moving, resolve_interval=60.0, idle_timeout=60.0) as client:
        await client.get("k")
        loop = asyncio.get_running_loop()
        await until(lambda: len(our_timers(loop)) == 2)
        assert sum(one.armed for one in client.timers) == 2
    assert our_timers(loop) == [] and not any(one.armed for one in client.timers)


@pytest.mark.gen_test
async def test_they_do_not_keep_a_client_alive(moving, ledger):
    ledger.excuse("fd", "handler", "timer")  # (what fires finds nobody)
    client = client_of(moving, resolve_interval=60.0, idle_timeout=0.001)
    await client.get("k")
    pool, upkeep = client._pools[0], weakref.ref(client._cluster._upkeep)
    gone = weakref.ref(client)
    del client
    gc.collect()
    assert gone() is None and upkeep() is None
    pool.close()


def test_a_loop_that_was_closed_under_them_is_left_to_the_next(moving, ledger):
    ledger.excuse("timer", "handler")  # (of the loop that was closed under the client)
    client = client_of(moving, resolve_interval=60.0, idle_timeout=60.0)

    async def ask():
        assert await client.get("k") is None
        return client.timers

    first, second = asyncio.run(ask()), asyncio.run(ask())
    assert first is not second and all(one.armed for one in second)
    client.close()


@pytest.mark.parametrize("name", ["idle_timeout", "resolve_interval"])
@pytest.mark.parametrize("value, error", [(0, ValueError), (-1, ValueError), ("1", TypeError)])
def test_a_length_that_is_none_is_refused_by_name(name, value, error):
    with pytest.raises(error, match=name):
        Client(["a:1"], **{name: value})
