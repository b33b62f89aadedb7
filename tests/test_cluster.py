"""tornado_memcache.cluster: servers that come, go, die and return under a client in use."""

from __future__ import annotations

import asyncio
import concurrent.futures
import itertools
import random
import time
import warnings

import pytest

from tornado_memcache import (
    Client,
    ClientClosed,
    ConnectionFailed,
    InvalidKey,
    InvalidRequest,
    InvalidServer,
    Reply,
    Request,
    Server,
    ServerDead,
    ServerError,
    Timeout,
    ValueTooLarge,
    boundary,
)
from tornado_memcache.ring import Modulo, key_hash

from .asked import until
from .faultproxy import FaultProxy
from .scripted import Close, Expect, Scripted, Send

LOG = "tornado_memcache"


async def until_it_answers(client, key, seconds=3.0):
    end = time.monotonic() + seconds
    while True:
        try:
            return await client.get(key)
        except (ServerDead, ConnectionFailed, Timeout):
            assert time.monotonic() < end, "it did not come back"
            await asyncio.sleep(0.01)


async def until_dead(client, key):
    """Asks for ``key`` until its server is taken for dead."""
    pool = client._locate(key)[1]
    end = time.monotonic() + 3
    while not pool.health.dead:
        assert time.monotonic() < end, "it did not die"
        with pytest.raises((ConnectionFailed, Timeout)):
            await client.get(key)


def pool_of(client, server):
    return next(pool for pool in client._pools if pool.name == server.address)


def keys_of(client, server, number=50):
    """Returns keys that are placed on ``server``."""
    index = [one.name for one in client.servers].index(server.address)
    ring = client._cluster._ring
    keys = (f"k{n}" for n in range(100_000))
    return list(
        itertools.islice((key for key in keys if ring.place(key.encode()) == index), number)
    )


def connections(server):
    """How many clients' connections ``server`` has: ours, without the one that asks."""
    return int(server.stats()["curr_connections"]) - 1


# -- set_servers


@pytest.mark.gen_test
async def test_servers_change_under_calls_and_none_is_lost(start_memcached):
    a, b, c = (start_memcached() for _ in range(3))
    async with Client([a.address, b.address]) as client:
        await client.set_multi({f"k{n}": n for n in range(200)})
        stays = pool_of(client, b)
        connection = stays._connections[0]
        calls = [client.get(f"k{n}") for n in range(200)]
        writes = [client.set(f"w{n}", n) for n in range(50)]
        many = client.get_multi(f"k{n}" for n in range(200))
        client.set_servers([b.address, c.address])
        later = [client.set(f"l{n}", n) for n in range(50)]
        assert await asyncio.gather(*calls) == list(range(200))
        assert await asyncio.gather(*writes, *later) == [True] * 100
        assert await many == {f"k{n}": n for n in range(200)}
        # the one that stays kept its connection, the one that went has none left
        assert pool_of(client, b) is stays and stays._connections[0] is connection
        await until(lambda: connections(a) == 0)
        await until(lambda: connections(b) == connections(c) == 1)
        assert [server.name for server in client.servers] == [b.address, c.address]
        assert await client.get_multi(f"l{n}" for n in range(50)) == {f"l{n}": n for n in range(50)}


@pytest.mark.gen_test
async def test_a_server_that_goes_answers_what_it_owes_and_is_then_closed(start_memcached):
    a, b = start_memcached(), start_memcached()
    async with Client([a.address]) as client:
        await client.set("k", "old")
        pool = client._pools[0]
        a.stop()
        call, write = client.get("k"), client.set("w", 1)
        await asyncio.sleep(0.02)
        client.set_servers([b.address])
        assert await client.get("k") is None  # asked of the new one
        assert pool.counts()["pending"] == 2 and not call.done()
        a.resume()
        assert await call == "old" and await write is True
        await until(lambda: pool.counts()["open"] == 0)
        assert pool.counts()["pending"] == 0
        await until(lambda: connections(a) == 0)
        assert a.ask(b"get w\r\n", b"END\r\n").startswith(b"VALUE w")


@pytest.mark.gen_test
async def test_a_server_that_goes_before_it_is_connected_still_answers(start_memcached):
    a, b = start_memcached(), start_memcached()
    async with Client([a.address]) as client:
        call = client.set("k", 1)
        pool = client._pools[0]
        client.set_servers([b.address])
        assert await call is True
        assert a.ask(b"get k\r\n", b"END\r\n").startswith(b"VALUE k 2 1")
        await until(lambda: pool.counts()["open"] == 0)


@pytest.mark.gen_test
async def test_a_server_that_goes_and_never_answers_leaves_nothing(start_memcached, troubles):
    a, b = start_memcached(), start_memcached()
    async with Client([a.address, b.address], request_timeout=0.15) as client:
        key = keys_of(client, a, 1)[0]
        await client.get(key)
        pool = pool_of(client, a)
        a.stop()
        call = client.get(key)
        client.set_servers([b.address])
        with pytest.raises(Timeout):
            await call
        await until(lambda: pool.counts()["open"] == 0)
        assert pool.counts()["pending"] == 0
        assert await client.set(key, 1)


@pytest.mark.gen_test
async def test_a_server_that_comes_back_while_it_still_owes(start_memcached):
    a, b = start_memcached(), start_memcached()
    async with Client([a.address]) as client:
        await client.set("k", "v")
        a.stop()
        before = client.get("k")
        await asyncio.sleep(0.01)
        client.set_servers([b.address])
        client.set_servers([a.address, b.address])
        key = keys_of(client, a, 1)[0]
        after = client.set(key, 1)
        await asyncio.sleep(0.01)
        a.resume()
        assert await before == "v" and await after is True
        assert client._cluster._retired == []


@pytest.mark.gen_test
async def test_a_server_that_comes_back_keeps_the_order_of_its_writes(memcached, troubles):
    """No newer write is overtaken by one that was still unanswered when the server left."""
    with FaultProxy(memcached.address) as proxy:
        async with Client([proxy.address], request_timeout=5.0) as client:
            await client.set("k", "first")
            pool = client._pools[0]
            proxy.requests.hold = True
            old = client.set("k", "old")
            client.set_servers(["127.0.0.1:1"])
            client.set_servers([proxy.address])
            read, new = client.get("k"), client.set("k", "new")
            assert client._pools == (pool,) and client._cluster._retired == []
            proxy.heal()
            assert await asyncio.gather(old, read, new) == [True, "old", True]
            assert await client.get("k") == "new" and proxy.connections == 1
            # what came back is kept, and may go again
            assert pool.counts()["open"] == 1
            client.set_servers(["127.0.0.1:1"])
            assert pool.counts()["open"] == 0 and client._cluster._retired == []
            # what has ended does not come back
            client.set_servers([proxy.address])
            assert client._pools[0] is not pool and await client.get("k") == "new"


@pytest.mark.gen_test
async def test_a_server_that_comes_back_before_it_is_connected_is_the_same(start_memcached):
    a, b = start_memcached(), start_memcached()
    async with Client([a.address]) as client:
        call = client.set("k", 1)
        pool = client._pools[0]
        client.set_servers([b.address])
        assert client._cluster._retired == [pool]
        client.set_servers([a.address])
        assert client._pools == (pool,)
        later = client.incr("k")
        assert await call is True and await later == 2
        assert pool.counts()["open"] == 1 and pool.counts()["pending"] == 0


@pytest.mark.gen_test
async def test_what_a_server_that_went_has_ended_is_not_kept_for_ever(start_memcached):
    a, b = start_memcached(), start_memcached()
    async with Client([a.address]) as client:
        call = client.set("k", 1)
        client.set_servers([b.address])
        assert await call is True
        client.set_servers([b.address])
        assert client._cluster._retired == []


@pytest.mark.gen_test
async def test_a_weight_may_change_and_the_connections_stay(start_memcached):
    a, b = start_memcached(), start_memcached()
    async with Client([a.address, b.address]) as client:
        await client.set_multi({f"k{n}": n for n in range(20)})
        pools = client._pools
        client.set_servers([(a.address, 3), b.address])
        assert client._pools == pools
        assert client._cluster._ring.buckets == [0, 0, 0, 1]
        client.set_servers([b.address, a.address])
        assert client._pools == pools[::-1]


@pytest.mark.gen_test
async def test_servers_change_often_under_load(start_memcached):
    servers = [start_memcached() for _ in range(4)]
    chance = random.Random(7)
    async with Client([servers[0].address]) as client:
        calls = []
        for turn in range(60):
            chosen = chance.sample(servers, chance.randint(1, 4))
            client.set_servers([server.address for server in chosen])
            calls += [client.set(f"k{n}", turn) for n in range(10)]
            calls += [client.get(f"k{n}") for n in range(10)]
            calls += [client.incr("gone"), client.get_multi(["k1", "k2", "k3"])]
            if chance.random() < 0.5:
                await asyncio.sleep(0)
        await asyncio.gather(*calls)
        client.set_servers([servers[0].address])
        await until(lambda: all(connections(server) == 0 for server in servers[1:]))
        await until(lambda: 1 <= connections(servers[0]) <= 4)


def test_servers_may_change_before_any_loop(memcached):
    client = Client(["127.0.0.1:1"])
    client.set_servers([memcached.address])
    assert [server.name for server in client.servers] == [memcached.address]

    async def use():
        assert await client.set("k", 1) is True
        client.close()

    asyncio.run(use())


def test_servers_may_change_between_two_loops(memcached, start_memcached, ledger):
    ledger.excuse("handler")  # (whoever closes a loop under a client)
    other = start_memcached()
    client = Client([memcached.address])

    async def use():
        assert await client.set("k", 1) is True

    asyncio.run(use())
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        client.set_servers([other.address])
        client.retry_dead_servers()
        client.disconnect()
    asyncio.run(use())
    assert other.ask(b"get k\r\n", b"END\r\n").startswith(b"VALUE k")
    client.close()


@pytest.mark.gen_test
async def test_servers_may_change_after_close(memcached, start_memcached):
    """Nobody is asked any more, whatever the list: not an index, but `ClientClosed`."""
    used = Client([memcached.address, start_memcached().address])
    await used.get_multi(["a", "b", "c", "d"])
    unused = Client([memcached.address])
    for client in (used, unused):
        client.close()
        client.set_servers(["127.0.0.1:1", "127.0.0.1:2", "127.0.0.1:3"])
        assert len(client.servers) == 3
        for number in range(20):
            with pytest.raises(ClientClosed):
                await client.get(f"k{number}")
            with pytest.raises(ClientClosed):
                await client.set(f"k{number}", 1)
        client.retry_dead_servers()
        client.disconnect()
        client.close()
        assert all(pool.counts()["open"] == 0 for pool in client._pools)


@pytest.mark.gen_test
@pytest.mark.parametrize(
    ("servers", "error"),
    [
        ([], InvalidServer),
        (["a", "a:11211"], InvalidServer),
        (["a:0"], InvalidServer),
        ("a", TypeError),
        ([7], TypeError),
        (None, TypeError),
    ],
)
async def test_a_bad_list_changes_nothing(memcached, servers, error):
    async with Client([memcached.address]) as client:
        await client.set("k", "v")
        with pytest.raises(error):
            client.set_servers(servers)
        assert [server.name for server in client.servers] == [memcached.address]
        assert await client.get("k") == "v"


@pytest.mark.gen_test
async def test_a_list_that_the_ring_refuses_changes_nothing(start_memcached):
    def odd(servers):
        if len(servers) % 2 == 0:
            raise ValueError("an even number will not do")
        return Modulo(servers)

    servers = [start_memcached().address for _ in range(3)]
    async with Client(servers, ring=odd) as client:
        for _ in ("before the first call", "after it"):
            pools, ring = client._pools, client._cluster._ring
            with pytest.raises(ValueError, match="even number"):
                client.set_servers(servers[:2])
            assert [server.name for server in client.servers] == servers
            assert client._pools == pools and client._cluster._ring is ring
            assert await client.set_multi({f"k{n}": n for n in range(20)}) == []


# -- on_dead


@pytest.mark.gen_test
async def test_the_keys_of_a_dead_server_are_taken_over_and_come_back(start_memcached, troubles):
    a, b = start_memcached(), start_memcached()
    servers = [a.address, b.address]
    async with Client(servers, on_dead="rehash", dead_retry=0.3) as client:
        theirs, others = keys_of(client, a), keys_of(client, b)
        await client.set_multi(dict.fromkeys(theirs + others, "before"))
        a.kill()
        await until_dead(client, theirs[0])
        # its keys have another server, and are misses there; all others are where they were
        index = client.servers.index(next(s for s in client.servers if s.name == a.address))
        ring = client._cluster._ring
        moved = [
            k for k in theirs if ring.place_among(k.encode(), lambda i: i != index) is not None
        ]
        assert len(moved) > 45
        calls = [client.get(key) for key in moved]
        assert await asyncio.gather(*calls) == [None] * len(moved)
        assert await client.set_multi(dict.fromkeys(moved, "meanwhile")) == []
        expected = dict.fromkeys(others, "before") | dict.fromkeys(moved, "meanwhile")
        assert await client.get_multi(moved + others) == expected
        assert b.ask(b"get %s\r\n" % moved[0].encode(), b"END\r\n").startswith(b"VALUE")
        a.restart()
        end = time.monotonic() + 3
        while pool_of(client, a).health.dead:
            assert time.monotonic() < end
            await client.get(theirs[0])
            await asyncio.sleep(0.01)
        assert await client.get_multi(theirs) == {}
        assert await client.set(theirs[0], "after")
        assert a.ask(b"get %s\r\n" % theirs[0].encode(), b"END\r\n").startswith(b"VALUE")


@pytest.mark.gen_test
async def test_the_keys_of_a_dead_server_stay_there_by_default(start_memcached, troubles):
    a, b = start_memcached(), start_memcached()
    async with Client([a.address, b.address]) as client:
        theirs, others = keys_of(client, a, 5), keys_of(client, b, 5)
        a.kill()
        await until_dead(client, theirs[0])
        for key in theirs:
            with pytest.raises(ServerDead):
                await client.get(key)
        assert await client.set_multi(dict.fromkeys(theirs + others, 1)) == theirs
        assert await client.get_multi(theirs + others) == dict.fromkeys(others, 1)


READS = {
    "get": (lambda client, key: client.get(key, "other"), "other"),
    "gat": (lambda client, key: client.gat(key, 60, "other"), "other"),
    "gets": (lambda client, key: client.gets(key), (None, None)),
    "gats": (lambda client, key: client.gats(key, 60), (None, None)),
    "get_multi": (lambda client, key: client.get_multi([key], strict=True), {}),
    "gets_multi": (lambda client, key: client.gets_multi([key]), {}),
    "request": (
        lambda client, key: client.request(Request(b"get", (key.encode(),))),
        Reply(b"END"),
    ),
}
WRITES = {
    "set": lambda client, key: client.set(key, 1),
    "noreply": lambda client, key: client.set(key, 1, noreply=True),
    "cas": lambda client, key: client.cas(key, 1, 1),
    "append": lambda client, key: client.append(key, "1"),
    "delete": lambda client, key: client.delete(key),
    "touch": lambda client, key: client.touch(key, 1),
    "incr": lambda client, key: client.incr(key),
}


@pytest.mark.gen_test
async def test_what_reads_misses_at_a_dead_server_and_what_writes_fails(start_memcached, troubles):
    a, b = start_memcached(), start_memcached()
    async with Client([a.address, b.address], on_dead="miss", dead_retry=60) as client:
        theirs, others = keys_of(client, a, 5), keys_of(client, b, 5)
        await client.set_multi(dict.fromkeys(theirs + others, 1))
        a.kill()
        with pytest.raises(ConnectionFailed):  # a first failure is one, whatever the policy
            await client.get(theirs[0])
        pool_of(client, a).health.dead_until = float("inf")
        failures = pool_of(client, a).health.failures
        for ask, miss in READS.values():
            assert await ask(client, theirs[0]) == miss
        found = await client.get_multi(theirs + others)
        assert found == dict.fromkeys(others, 1) and found.errors == {}
        assert pool_of(client, a).health.failures == failures
        for ask in WRITES.values():
            with pytest.raises(ServerDead):
                await ask(client, theirs[0])
        failed = await client.set_multi(dict.fromkeys(theirs + others, 2))
        assert failed == theirs and isinstance(failed.errors[a.address], ServerDead)
        with pytest.raises(ServerDead):
            await client.request(Request(b"touch", (theirs[0].encode(),), exptime=1))
        assert list((await client.version()).errors) == [a.address]
        a.restart()
        client.retry_dead_servers()
        assert await client.set(theirs[0], 3) and await client.get(theirs[0]) == 3


@pytest.mark.gen_test
async def test_a_miss_of_a_dead_server_is_an_outcome_as_any(start_memcached, troubles):
    """Once, on a later tick, in both styles and under a boundary; a call may be cancelled."""
    server = start_memcached()
    async with Client([server.address], on_dead="miss") as client:
        server.kill()
        with pytest.raises(ConnectionFailed):
            await client.get("k")
        client._pools[0].health.dead_until = float("inf")
        got: list[object] = []
        with boundary(got.append) as entry:
            client.get("k", "other", callback=got.append)
            client.get_multi(["k"], callback=got.append)
            client.set("k", 1, callback=got.append)
            call = client.get("k")
        assert got == []
        with boundary(got.append) as left:
            client.get("k", callback=got.append)
            gone = client.get("k")
            left.cancel()
        assert await call is None
        await asyncio.sleep(0.01)
        assert got[:2] == ["other", {}] and isinstance(got[2], ServerDead) and len(got) == 3
        assert gone.cancelled() and not entry.cancelled
        assert client._pools[0].counts()["pending"] == 0


@pytest.mark.gen_test
@pytest.mark.parametrize("ring", ["modulo", "ketama", "ketama_weighted", "rendezvous"])
async def test_every_ring_gives_way(start_memcached, troubles, ring):
    servers = [start_memcached() for _ in range(3)]
    specs = [server.address for server in servers]
    async with Client(specs, ring=ring, on_dead="rehash") as client:
        keys = [key for server in servers for key in keys_of(client, server, 10)]
        assert await client.set_multi(dict.fromkeys(keys, 1)) == []
        servers[1].kill()
        await until_dead(client, keys[10])
        assert await client.get_multi(keys) == dict.fromkeys(keys[:10] + keys[20:], 1)
        assert await client.set_multi(dict.fromkeys(keys, 2)) == []
        assert await client.get_multi(keys) == dict.fromkeys(keys, 2)


@pytest.mark.gen_test
async def test_nobody_takes_over_when_all_are_dead(start_memcached, troubles):
    servers = [start_memcached() for _ in range(2)]
    async with Client([one.address for one in servers], on_dead="rehash") as client:
        keys = [keys_of(client, server, 1)[0] for server in servers]
        for server in servers:
            server.kill()
        for key in keys:
            with pytest.raises(ConnectionFailed):
                await client.get(key)
        for server, key in zip(servers, keys):
            with pytest.raises(ServerDead) as caught:
                await client.get(key)
            assert caught.value.server == server.address


@pytest.mark.gen_test
async def test_a_route_gives_way_as_a_key_does(start_memcached, troubles):
    a, b = start_memcached(), start_memcached()
    async with Client([a.address, b.address], on_dead="rehash") as client:
        a.kill()
        with pytest.raises(ConnectionFailed):
            await client.set((0, "k"), 1)
        # 0 is of a; the hash of b"00" is 1 or so: whichever comes first and is odd is of b
        assert await client.set((0, "k"), 1)
        assert await client.get((1, "k")) == 1


@pytest.mark.parametrize("wrong", [None, "", "REHASH", 1, b"fail", ["fail"]])
def test_a_policy_that_there_is_not(wrong):
    with pytest.raises(InvalidRequest, match="on_dead"):
        Client(["a"], on_dead=wrong)


# -- a ring of one's own


class Chooses:
    """Places every key on the server of a name, and keeps what it was asked."""

    def __init__(self, answer):
        self.answer = answer
        self.asked = []

    def server_for(self, key, alive):
        self.asked.append((key, [server.name for server in alive]))
        return self.answer(key, alive) if callable(self.answer) else self.answer


@pytest.mark.gen_test
async def test_a_ring_of_ones_own_places_the_keys(start_memcached):
    a, b = start_memcached(), start_memcached()
    ring = Chooses(lambda key, alive: alive[key[-1] % len(alive)])
    async with Client([a.address, b.address], ring=ring, key_prefix="p:") as client:
        assert await client.set_multi({"k0": 0, "k1": 1, "k2": 2}) == []
        assert await client.get_multi(["k0", "k1", "k2"]) == {"k0": 0, "k1": 1, "k2": 2}
        assert ring.asked[0] == (b"p:k0", [a.address, b.address])
        assert a.ask(b"get p:k0 p:k1 p:k2\r\n", b"END\r\n").count(b"VALUE") == 2
        assert b.ask(b"get p:k1\r\n", b"END\r\n").count(b"VALUE") == 1
        client.set_servers([b.address, a.address])
        assert await client.get("k0") is None  # (the order is another)


@pytest.mark.gen_test
@pytest.mark.parametrize("wrong", [None, "a", 0, Server("127.0.0.1", 9)])
async def test_a_ring_of_ones_own_that_is_wrong_is_told_at_the_call(silent, wrong):
    async with Client([silent.address, "127.0.0.1:1"], ring=Chooses(wrong)) as client:
        for call in (
            lambda: client.get("k"),
            lambda: client.set("k", 1),
            lambda: client.get_multi(["k"]),
            lambda: client.request(Request(b"get", (b"k",))),
        ):
            with pytest.raises(InvalidRequest, match="server_for"):
                call()
    assert await silent.untouched()


@pytest.mark.gen_test
async def test_a_ring_of_ones_own_is_told_who_is_alive(start_memcached, troubles):
    a, b = start_memcached(), start_memcached()
    ring = Chooses(lambda key, alive: alive[0])
    async with Client([a.address, b.address], ring=ring, on_dead="rehash") as client:
        a.kill()
        with pytest.raises(ConnectionFailed):
            await client.get("k")
        del ring.asked[:]
        assert await client.set("k", 1)
        assert ring.asked == [(b"k", [a.address, b.address]), (b"k", [b.address])]
        assert b.ask(b"get k\r\n", b"END\r\n").startswith(b"VALUE")
        ring.answer = lambda key, alive: alive[0] if len(alive) == 2 else None
        with pytest.raises(ServerDead):
            await client.get("k")


# -- retry_dead_servers


@pytest.mark.gen_test
async def test_dead_servers_are_tried_again_at_once_when_it_is_asked_for(start_memcached, troubles):
    server = start_memcached()
    async with Client([server.address]) as client:
        server.kill()
        for _ in range(6):  # each failed try doubles the pause: 8 s by now
            client.retry_dead_servers()
            with pytest.raises(ConnectionFailed):
                await client.get("k")
        server.restart()
        with pytest.raises(ServerDead):
            await client.get("k")
        client.retry_dead_servers()
        assert await client.set("k", 1)
        assert await client.get("k") == 1
        client.retry_dead_servers()  # harmless while all are alive
        assert await client.get("k") == 1


# -- disconnect


@pytest.mark.gen_test
async def test_disconnect_asks_again_what_only_reads(start_memcached, troubles):
    server = start_memcached()
    async with Client([server.address]) as client:
        await client.set("k", "v")
        old = client._pools[0]._connections[0]
        server.stop()
        reads = [client.get("k"), client.get_multi(["k"])]
        write = client.set("w", 1)
        await asyncio.sleep(0.02)
        client.disconnect()
        server.resume()
        assert await asyncio.gather(*reads) == ["v", {"k": "v"}]
        with pytest.raises(ConnectionFailed) as caught:
            await write
        assert caught.value.maybe_applied
        assert old.closed and old not in client._pools[0]._connections
        assert await client.get("k") == "v"
    await until(lambda: connections(server) == 0)


@pytest.mark.gen_test
async def test_disconnect_while_idle_costs_nothing(start_memcached):
    server = start_memcached()
    async with Client([server.address]) as client:
        client.disconnect()
        for number in range(5):
            assert await client.set("k", number)
            client.disconnect()
            assert client._pools[0].counts()["open"] == 0
            assert await client.get("k") == number
            client.disconnect()
    client.disconnect()


@pytest.mark.gen_test
async def test_disconnect_is_no_failure_of_the_server(start_memcached):
    """Also not on a connection on which nothing but noreply was sent: nothing has come there."""
    server = start_memcached()
    async with Client([server.address], silences_until_dead=1) as client:
        for number in range(3):
            assert await client.set("k", number, noreply=True) is True
            await asyncio.sleep(0.02)
            client.disconnect()
            assert not client._pools[0].health.dead
        assert await client.get("k") == 2


# -- flush_on_reconnect


def flushes(server):
    return int(server.stats()["cmd_flush"])


@pytest.mark.gen_test
async def test_a_server_that_was_dead_is_flushed_on_the_next_connect(start_memcached, troubles):
    server = start_memcached()
    how = {"flush_on_reconnect": True, "dead_retry": 0.2, "request_timeout": 0.1}
    async with Client([server.address], silences_until_dead=1, **how) as client:
        await client.set("old", "value")
        assert flushes(server) == 0
        server.stop()
        with pytest.raises(Timeout):
            await client.get("old")
        # its connection is closed too once it has been late for long enough
        await until(lambda: client._pools[0].counts()["open"] == 0)
        server.resume()
        assert client._pools[0].health.dead
        assert await until_it_answers(client, "old") is None
        assert flushes(server) == 1
        # what is written from now on stays
        await client.set("new", "value")
        assert await client.get("new") == "value"
        # once, not on every connection
        client.disconnect()
        assert await client.get("new") == "value"
        calls = [client.set(f"big{n}", b"x" * 200_000) for n in range(3)]
        await asyncio.gather(*calls)
        assert flushes(server) == 1
        assert await client.get("new") == "value"


@pytest.mark.gen_test
async def test_a_write_that_finds_out_is_not_flushed_away(start_memcached, troubles):
    server = start_memcached()
    async with Client([server.address], flush_on_reconnect=True) as client:
        await client.set("old", 1)
        server.kill()
        await until_dead(client, "k")
        server.restart()
        client.retry_dead_servers()
        assert await client.set("k", "value")
        assert await client.get("k") == "value"
        assert flushes(server) == 1


@pytest.mark.gen_test
@pytest.mark.parametrize("flush", [False, True])
async def test_nothing_is_flushed_without_a_death(start_memcached, flush):
    server = start_memcached()
    async with Client([server.address], flush_on_reconnect=flush) as client:
        await client.set("k", 1)
        client.disconnect()
        assert await client.get("k") == 1
        server.restart()  # between two calls: a read does not notice
        assert await client.get("k") is None
        assert await client.set("k", 2)
        assert await client.get("k") == 2
        assert flushes(server) == 0


@pytest.mark.gen_test
async def test_nothing_is_flushed_unless_it_is_asked_for(start_memcached, troubles):
    server = start_memcached()
    async with Client([server.address], dead_retry=0.1) as client:
        server.kill()
        await until_dead(client, "k")
        server.restart()
        await until_it_answers(client, "k")
        assert flushes(server) == 0


@pytest.mark.gen_test
async def test_a_flush_that_was_lost_is_sent_again(troubles):
    """The connection that was to carry it breaks: what the server holds is as old as before."""
    silence = [Expect(b"get k\r\n")]
    broken = [Expect(b"flush_all\r\n"), Close()]
    good = [
        Expect(b"flush_all\r\nget k\r\n"),
        Send(b"OK\r\nEND\r\n"),
        Expect(b"get k\r\n"),
        Send(b"END\r\n"),
    ]
    how = {"flush_on_reconnect": True, "request_timeout": 0.1, "silences_until_dead": 1}
    async with Scripted(silence, broken, good) as server:
        async with Client([server.address], dead_retry=0.05, **how) as client:
            with pytest.raises(Timeout):
                await client.get("k")
            await until(lambda: client._pools[0].counts()["open"] == 0)
            assert await until_it_answers(client, "k") is None
            assert await client.get("k") is None
            assert server.connections == 3


# -- request


def get(*keys):
    return Request(b"get", keys)


@pytest.mark.gen_test
async def test_a_request_goes_to_the_server_of_its_route(start_memcached):
    a, b = start_memcached(), start_memcached()
    async with Client([a.address, b.address], key_prefix="p:") as client:
        for number in range(4):
            reply = await client.request(Request(b"set", (b"k",), b"%d" % number), route=number)
            assert reply.status == b"STORED"
        assert (await client.request(get(b"k"), route=0)).items[b"k"].value == b"2"
        assert (await client.request(get(b"k"), route=1)).items[b"k"].value == b"3"
        assert (await client.request(get(b"k"), route=key_hash(b"foo"))).items == (
            await client.request(get(b"k"), route="foo")
        ).items
        # several keys, of whatever server: the route decides
        await client.request(Request(b"set", (b"ob",), b"x"), route=0)
        assert set((await client.request(get(b"k", b"ob", b"foo"), route=0)).items) == {b"k", b"ob"}
        with pytest.raises(InvalidRequest, match="several servers"):
            client.request(get(b"ob", b"foo"))


@pytest.mark.gen_test
@pytest.mark.parametrize("route", [1.5, True, [], (1, "a"), object()])
async def test_a_route_that_is_none(silent, route):
    async with Client([silent.address, "127.0.0.1:1"]) as client:
        with pytest.raises(TypeError, match="route"):
            client.request(get(b"k"), route=route)
        with pytest.raises(TypeError, match="route"):
            client.request_many([get(b"k"), (route, get(b"k"))])
    assert await silent.untouched()


@pytest.mark.gen_test
async def test_many_requests_come_back_in_their_order(start_memcached):
    a, b = start_memcached(), start_memcached()
    async with Client([a.address, b.address]) as client:
        stored = await client.request_many(
            Request(b"set", (b"k%d" % n,), b"%d" % n, flags=n) for n in range(100)
        )
        assert [reply.status for reply in stored] == [b"STORED"] * 100
        replies = await client.request_many([get(b"k%d" % n) for n in range(99, -1, -1)])
        assert [reply.items[b"k%d" % n] for n, reply in zip(range(99, -1, -1), replies)] == [
            (b"%d" % n, n, None) for n in range(99, -1, -1)
        ]
        mixed = await client.request_many(
            [
                get(b"gone"),
                Request(b"incr", (b"k7",), delta=1),
                Request(b"delete", (b"k8",)),
                Request(b"delete", (b"k8",)),
                Request(b"set", (b"k9",), b"nine", noreply=True),
                Request(b"touch", (b"gone",), exptime=5),
                Request(b"incr", (b"k7",), delta=1),
            ]
        )
        assert [reply.status for reply in mixed] == [
            b"END",
            b"NUMBER",
            b"DELETED",
            b"NOT_FOUND",
            b"",
            b"NOT_FOUND",
            b"NUMBER",
        ]
        assert (mixed[1].number, mixed[6].number) == (8, 9)
        assert all(isinstance(reply, Reply) for reply in mixed)
        assert await client.request_many([]) == []


@pytest.mark.gen_test
async def test_many_requests_have_routes_of_their_own(start_memcached):
    a, b = start_memcached(), start_memcached()
    async with Client([a.address, b.address]) as client:
        await client.request_many(
            [(0, Request(b"set", (b"k",), b"a")), (1, Request(b"set", (b"k",), b"b"))]
        )
        replies = await client.request_many([(1, get(b"k")), (0, get(b"k")), (None, get(b"ob"))])
        assert [reply.items.get(b"k", (None,))[0] for reply in replies] == [b"b", b"a", None]


@pytest.mark.gen_test
async def test_errors_of_many_requests_stand_in_their_places(start_memcached, troubles):
    a, b = start_memcached(), start_memcached()
    async with Client([a.address, b.address]) as client:
        b.kill()
        async with Scripted([Expect(b"get e\r\n"), Send(b"SERVER_ERROR busy\r\n")]) as busy:
            client.set_servers([a.address, b.address, busy.address])
            outcomes = await client.request_many(
                [
                    (0, Request(b"set", (b"t",), b"text")),
                    (1, get(b"k")),
                    (0, Request(b"incr", (b"t",), delta=1)),
                    (2, get(b"e")),
                    (0, get(b"t")),
                ]
            )
            kinds = [type(outcome).__name__ for outcome in outcomes]
            assert kinds == ["Reply", "ConnectionFailed", "ClientError", "ServerError", "Reply"]
            assert outcomes[1].server == b.address
            assert isinstance(outcomes[3], ServerError)
            assert outcomes[4].items[b"t"].value == b"text"
            client.set_servers([b.address])
            # not even if all have failed
            (only,) = await client.request_many([get(b"k")])
            assert isinstance(only, (ServerDead, ConnectionFailed))


@pytest.mark.gen_test
@pytest.mark.parametrize("how", [{"timeout": 0.1}, {}], ids=["timeout", "request_timeout"])
async def test_many_requests_never_fail_as_a_whole(start_memcached, silent, troubles, how):
    a = start_memcached()
    async with Client([a.address, silent.address], request_timeout=0.2) as client:
        good, bad = await client.request_many([(0, get(b"k")), (1, get(b"k"))], **how)
        assert good.status == b"END"
        assert isinstance(bad, Timeout) and bad.server == silent.address


@pytest.mark.gen_test
@pytest.mark.parametrize(
    ("bad", "error"),
    [
        (Request(b"get", (b"a b",)), InvalidKey),
        (Request(b"get", ()), InvalidRequest),
        (Request(b"nonsense", (b"k",)), InvalidRequest),
        (Request(b"set", (b"k",), b"x" * 2000), ValueTooLarge),
        (Request(b"set", (b"k",), "text"), TypeError),
        (Request(b"get", (b"ob", b"foo")), InvalidRequest),
        ((1.5, Request(b"get", (b"k",))), TypeError),
        ((1, "get k"), TypeError),
        ((1, Request(b"get", (b"k",)), 1), TypeError),
        ((1,), TypeError),
        ("get k", TypeError),
        (None, TypeError),
        (7, TypeError),
    ],
    ids=repr,
)
async def test_one_bad_request_refuses_all_before_anything_is_sent(silent, bad, error):
    how = {"max_value_size": 1000, "request_timeout": 0.2}
    async with Client([silent.address, "127.0.0.1:1"], **how) as client:
        good = (0, Request(b"set", (b"k",), b"v"))
        for requests in ([good, bad], [bad, good]):
            with pytest.raises(error):
                client.request_many(requests)
        if not isinstance(bad, tuple) or isinstance(bad, Request):
            with pytest.raises(error):
                client.request(bad)
        assert client._pools == () or all(pool.counts()["pending"] == 0 for pool in client._pools)
    assert await silent.untouched()


@pytest.mark.parametrize("state", ["in line", "owed", "in the batch"])
def test_only_calls_that_still_waited_are_told_as_lost_with_their_loop(
    silent, ledger, expect_log, state
):
    """Neither what timed out, nor what was cancelled, though their replies are owed."""
    ledger.excuse("handler", "timer")
    expect_log(LOG, "fails: get 'expired'", times=1)
    expect_log(LOG, "^5 memcache calls were lost with their event loop", times=1)
    client = Client([silent.address], request_timeout=600)

    async def leave():
        if state == "in the batch":
            client.get("before").cancel()  # (it is owed: the others gather behind it)
        calls = [
            client.get("expired", timeout=0.01),
            client.get("cancelled"),
            client.set("cancelled", b"v"),
            client.get("shared"),
            client.get("shared"),
            client.get("shared"),
            client.set("waits", b"v"),
            client.get_multi(["a", "b"]),
        ]
        if state != "in the batch":
            calls.append(client.gets("waits"))
        if state == "owed":
            while not silent.received:
                await asyncio.sleep(0)
        for call in (calls[1], calls[2], calls[4]):
            call.cancel()
        if state == "in the batch":
            with pytest.raises(Timeout):
                await calls[0]
            calls.append(client.get("last"))
        else:
            with pytest.raises(Timeout):
                await calls[0]
        kept.extend(calls)

    kept = []
    asyncio.run(leave())
    client.close()


# -- whose thread a call is made on


@pytest.mark.gen_test
async def test_a_call_from_another_thread_is_refused_while_the_loop_runs(memcached):
    async with Client([memcached.address]) as client:
        await client.set("k", "v")
        for call in (lambda: client.get("k"), lambda: client.set("k", "w")):
            with pytest.raises(RuntimeError, match="needs a running event loop"):
                await asyncio.to_thread(call)
        assert await client.get("k") == "v"


@pytest.mark.gen_test
async def test_servers_do_not_change_from_another_thread_while_the_loop_runs(memcached):
    async with Client([memcached.address]) as client:
        await client.set("k", "v")
        pools = client._pools
        with pytest.raises(RuntimeError, match=r"loop of another thread: change its servers"):
            await asyncio.to_thread(client.set_servers, ["127.0.0.1:1"])
        assert [server.name for server in client.servers] == [memcached.address]
        assert client._pools == pools and await client.get("k") == "v"


@pytest.mark.parametrize("warm", [0, 1])
@pytest.mark.parametrize("elsewhere", [False, True])
def test_servers_may_change_while_the_loop_stands_still(
    memcached, start_memcached, warm, elsewhere
):
    """The new pools are on the loop of the client, whichever is the current one meanwhile."""
    other = start_memcached()
    other.ask(b"set k 2 0 1\r\n7\r\n", b"STORED\r\n")
    port = other.address.rpartition(":")[2]
    loop = asyncio.new_event_loop()
    client = Client([memcached.address], min_connections=warm, request_timeout=10)

    async def get():
        return await client.get("k")

    async def close():
        client.close()

    async def change():
        client.set_servers([f"localhost:{port}"])

    try:
        assert loop.run_until_complete(get()) is None
        if elsewhere:
            asyncio.run(change())
        else:
            client.set_servers([f"localhost:{port}"])
        assert loop.run_until_complete(get()) == 7
        loop.run_until_complete(close())
    finally:
        loop.run_until_complete(loop.shutdown_default_executor())
        loop.close()


def test_a_loop_that_moves_to_another_thread_takes_its_client_along(memcached):
    loop = asyncio.new_event_loop()
    client = Client([memcached.address])

    async def set_and_get(value):
        await client.set("k", value)
        return await client.get("k")

    async def close():
        client.close()

    asyncio.set_event_loop(loop)
    try:
        assert loop.run_until_complete(set_and_get("here")) == "here"
        with concurrent.futures.ThreadPoolExecutor(1) as other:
            there = other.submit(loop.run_until_complete, set_and_get("there"))
            assert there.result() == "there"
        assert loop.run_until_complete(set_and_get("again")) == "again"
        loop.run_until_complete(close())
    finally:
        asyncio.set_event_loop(None)
        loop.close()


@pytest.mark.gen_test
async def test_a_noreply_write_of_20_mb_still_ends_at_a_server_that_goes_away(start_memcached):
    options = ["-I", "32m", "-m", "128"]
    goes, stays = start_memcached(options), start_memcached()
    async with Client([goes.address], max_value_size=32_000_000, request_timeout=10) as client:
        await client.get("warm")
        call = client.set("k", b"x" * 20_000_000, noreply=True)
        client.set_servers([stays.address])
        assert await call is True
        await until(lambda: not connections(goes))
        assert len(goes.ask(b"get k\r\n", b"END\r\n")) > 20_000_000


@pytest.mark.gen_test
async def test_a_warm_connection_that_opens_to_a_server_that_went_away_is_closed(start_memcached):
    goes, stays = start_memcached(), start_memcached()
    async with Client([goes.address], min_connections=2) as client:
        client.warm_up()
        client.set_servers([stays.address])
        assert await client.set("k", "v") is True
        await until(lambda: not connections(goes))
        assert not client._cluster._retired or not client._cluster._retired[0]._connections


# -- one server more, one less


@pytest.mark.gen_test
async def test_servers_are_added_and_removed_under_load_and_no_call_is_lost(start_memcached):
    """Each call ends once, with its value, a miss or True: nothing here fails."""
    servers = [start_memcached() for _ in range(4)]
    ended, turns = [], 40
    async with Client([server.address for server in servers[:2]], ring="ketama") as client:

        async def awaiting(name):
            for turn in range(turns):
                key = f"{name}:{turn % 5}"
                ended.append(await client.set(key, key) is True)
                ended.append(await client.get(key) in (key, None))
                many = [f"{name}:{n}" for n in range(30)]
                found = await client.get_multi(many)
                ended.append(not found.errors and all(found[one] == one for one in found))

        def calling(turn, done):
            """Begins the next call in the callback of the one before."""
            if turn == turns:
                return done.set_result(None)
            key, again = f"c:{turn % 7}", lambda _: calling(turn + 1, done)
            client.set(
                key,
                key,
                fail_callback=lambda error: done.set_exception(error),
                callback=lambda stored: (
                    ended.append(stored is True),
                    client.get_multi([key, "none"], callback=again, fail_callback=done.cancel),
                ),
            )

        done = asyncio.get_running_loop().create_future()
        calling(0, done)
        load = asyncio.gather(done, *(awaiting(name) for name in "abcdefgh"))
        changes = itertools.cycle(["add", "add", "remove", "remove"])
        spare = itertools.cycle([servers[2], servers[3], servers[2], servers[3]])
        while not load.done():
            change, server = next(changes), next(spare)
            getattr(client, f"{change}_server")(server.address)
            await asyncio.sleep(0.002)
        await load
        assert len(ended) == 8 * 3 * turns + turns and all(ended)
        names = [server.name for server in client.servers]
        assert names[:2] == [server.address for server in servers[:2]]
        client.set_servers(names[:2])
        await until(lambda: connections(servers[2]) == connections(servers[3]) == 0)
        assert client._cluster._retired == [] or not client._cluster._retired[0]._connections


@pytest.mark.gen_test
async def test_a_server_that_is_added_takes_its_keys_and_leaves_the_others_theirs(start_memcached):
    a, b = start_memcached(), start_memcached()
    async with Client([a.address], ring="rendezvous") as client:
        await client.set_multi({f"k{n}": n for n in range(100)})
        pool = client._pools[0]
        client.add_server((b.address, 1))
        assert [server.name for server in client.servers] == [a.address, b.address]
        assert client._pools[0] is pool
        moved = set(keys_of(client, b, 100))
        found = await client.get_multi(f"k{n}" for n in range(100))
        assert found == {f"k{n}": n for n in range(100) if f"k{n}" not in moved}
        client.remove_server(client.servers[1])
        assert len(await client.get_multi(f"k{n}" for n in range(100))) == 100


@pytest.mark.parametrize(
    "change, server, told",
    [
        ("add_server", "a:1", "'a:1' is one of the servers already"),
        ("add_server", ("b:2", 3), "'b:2' is one of the servers already"),
        ("add_server", "c:0", "the port must be"),
        ("remove_server", "c:3", r"'c:3' is none of the servers \(a:1, b:2\)"),
        ("remove_server", "b", r"'b:11211' is none of the servers"),
        ("remove_server", "", "names no host"),
    ],
)
def test_a_change_that_cannot_be_made_names_the_server_and_changes_nothing(change, server, told):
    client = Client(["a:1", "b:2"])
    with pytest.raises(InvalidServer, match=told):
        getattr(client, change)(server)
    with pytest.raises(TypeError):
        getattr(client, change)(7)
    assert [server.name for server in client.servers] == ["a:1", "b:2"]
    client.remove_server("b:2")
    with pytest.raises(InvalidServer, match="'a:1' is the last one"):
        client.remove_server("a:1")
    assert [server.name for server in client.servers] == ["a:1"]
    client.close()
