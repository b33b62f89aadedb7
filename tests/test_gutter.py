"""tornado_memcache.gutter: where the keys of a dead server go, and for how long."""

from __future__ import annotations

import asyncio

import pytest

from tornado_memcache import (
    Client,
    ConnectionFailed,
    InvalidServer,
    Request,
    ServerDead,
    boundary,
)
from tornado_memcache import memcache as drop_in
from tornado_memcache.gutter import GUTTER_EXPTIME, shortened

from .asked import until
from .test_cluster import keys_of, pool_of, until_dead

NOW = 1_800_000_000
DAYS_31 = 31 * 24 * 60 * 60


@pytest.mark.parametrize(
    ("exptime", "stored"),
    [(0, 10), (1, 1), (10, 10), (11, 10), (DAYS_31 - 86400, 10), (-1, -1)]
    + [(NOW + 5, NOW + 5), (NOW + 11, 10), (NOW - 5, NOW - 5), (DAYS_31, DAYS_31)],
)
@pytest.mark.parametrize("verb", ["set", "add", "cas", "touch", "gat", "gats"])
def test_an_exptime_is_cut(verb, exptime, stored):
    request = Request(verb.encode(), (b"k",), b"v", 3, exptime, 7)
    assert shortened(request, 10, lambda: NOW + 0.9) == request._replace(exptime=stored)


@pytest.mark.parametrize("verb", ["get", "delete", "incr", "flush_all", "stats"])
def test_what_sets_no_exptime_is_as_it_was(verb):
    request = Request(verb.encode(), (b"k",), delta=1)
    assert shortened(request, 10, lambda: NOW) is request


@pytest.mark.parametrize(
    ("verb", "argument", "stored"),
    [
        ("ms", "c F3", "c F3 T10"), ("ms", "T0", "T10"), ("ms", "T60 MA", "T10 MA"),
        ("ms", "MA", "MA"), ("ms", "MP c", "MP c"), ("ms", "ME", "ME T10"), ("ms", "T-1", "T-1"),
        ("ms", "T5 C9", "T5 C9"), ("ms", f"T{NOW + 11}", "T10"),
        ("ms", f"T{NOW + 5}", f"T{NOW + 5}"),
        ("mg", "N60 T0 R30 v", "N10 T10 R30 v"), ("mg", "v f", "v f"), ("md", "I T0", "I T10"),
        ("md", "I", "I"), ("md", "", ""), ("ma", "N0 J5 T3 D1", "N10 J5 T3 D1"), ("ma", "", ""),
    ],
)  # fmt: skip
def test_the_exptimes_of_a_meta_command_are_cut(verb, argument, stored):
    request = Request(verb.encode(), (b"k",), b"v", argument=argument.encode())
    cut = request._replace(argument=stored.encode())
    assert shortened(request, 10, lambda: NOW + 0.9) == cut


def exptime_of(server, key):
    """Returns how many seconds the item has left, None if there is no such item or no end."""
    line = server.ask(b"mg %b t\r\n" % key.encode())
    return None if line == b"EN\r\n" else int(line.split()[1][1:])


class World:
    """Two servers and a gutter of two, with the first dead for as long as it is told."""

    def __init__(self, start_memcached, **options):
        self.a, self.b, *self.gutter = (start_memcached() for _ in range(4))
        spare = [server.address for server in self.gutter]
        self.client = Client(
            [self.a.address, self.b.address], on_dead="gutter", gutter=spare, **options
        )

    async def __aenter__(self):
        self.theirs, self.others = keys_of(self.client, self.a), keys_of(self.client, self.b)
        assert await self.client.set_multi(dict.fromkeys(self.theirs + self.others, "old")) == []
        self.a.kill()
        await until_dead(self.client, self.theirs[0])
        pool_of(self.client, self.a).health.dead_until = float("inf")
        return self

    async def __aexit__(self, *_):
        self.client.close()

    def held(self, key):
        """Returns which servers of the gutter have ``key``."""
        line = b"mg %b v\r\n" % key.encode()
        return [server for server in self.gutter if server.ask(line) != b"EN\r\n"]


@pytest.mark.gen_test
async def test_the_gutter_takes_the_keys_of_a_dead_server_and_gives_them_back(
    start_memcached, troubles
):
    async with World(start_memcached) as world:
        client, theirs, others = world.client, world.theirs, world.others
        assert await client.get_multi(theirs + others) == dict.fromkeys(others, "old")
        assert await client.set_multi(dict.fromkeys(theirs, "meanwhile"), exptime=3600) == []
        expected = dict.fromkeys(others, "old") | dict.fromkeys(theirs, "meanwhile")
        assert await client.get_multi(theirs + others) == expected
        held = [world.held(key) for key in theirs]
        assert all(len(one) == 1 for one in held)
        assert {one[0].port for one in held} == {server.port for server in world.gutter}
        assert not any(map(world.held, others))
        assert await client.delete(theirs[0]) is True and world.held(theirs[0]) == []
        assert [server.name for server in client.servers] == [world.a.address, world.b.address]
        # back: home at once, with what is there
        world.a.restart()
        client.retry_dead_servers()
        assert await client.get(theirs[1]) is None
        assert await client.set_multi(dict.fromkeys(theirs, "home")) == []
        assert exptime_of(world.a, theirs[2]) == -1
        assert world.held(theirs[2])  # (until it expires)


@pytest.mark.parametrize("given", [None, 3])
@pytest.mark.gen_test
async def test_nothing_stays_in_the_gutter_for_long(given, start_memcached, troubles):
    options = {} if given is None else {"gutter_exptime": given}
    longest = given or GUTTER_EXPTIME
    async with World(start_memcached, **options) as world:
        client, key = world.client, world.theirs[0]
        await client.set(key, 1)
        (server,) = world.held(key)

        async def left(call):
            assert await call
            return exptime_of(server, key)

        soon = range(longest + 1)
        assert await left(client.set(key, 1)) in soon
        assert await left(client.set(key, 1, exptime=3600)) in soon
        assert (await left(client.set(key, 1, exptime=2)) or 0) <= 2
        assert await left(client.set(key, 1, exptime=DAYS_31)) in soon
        assert await left(client.replace(key, 2, noreply=True)) is not None
        assert await left(client.touch(key, 0)) in soon
        assert await left(client.gat(key, 3600)) in soon
        value, unique = await client.gets(key)
        assert await left(client.cas(key, 3, unique, exptime=0)) in soon
        assert await client.set_multi({key: 4}, exptime=3600) == []
        assert exptime_of(server, key) in soon
        assert await left(client.request(Request(b"set", (key.encode(),), b"5"))) in soon
        assert await left(client.request_many([Request(b"set", (key.encode(),), b"6")])) in soon
        assert await left(client.incr(key)) in soon
        # others keep what they are given
        assert await client.set(world.others[0], 1, exptime=3600)
        assert exptime_of(world.b, world.others[0]) > 3000


@pytest.mark.gen_test
async def test_a_dead_server_of_the_gutter_gives_way_too_and_then_calls_fail(
    start_memcached, troubles
):
    async with World(start_memcached) as world:
        client, theirs = world.client, world.theirs
        await client.set_multi(dict.fromkeys(theirs, 1))
        first, second = world.gutter
        for dies, left in ((first, second), (second, None)):
            key = next(key for key in theirs if client._locate(key)[1].name == dies.address)
            dies.kill()
            await until_dead(client, key)
            pool_of(client, dies).health.dead_until = float("inf")
            if left is not None:
                assert await client.set_multi(dict.fromkeys(theirs, 2)) == []
                assert await client.get_multi(theirs) == dict.fromkeys(theirs, 2)
        with pytest.raises(ServerDead) as caught:
            await client.get(theirs[0])
        assert caught.value.server == world.a.address
        assert await client.get(world.others[0]) == "old"


@pytest.mark.gen_test
async def test_one_server_and_a_gutter(start_memcached, troubles):
    home, spare = start_memcached(), start_memcached()
    async with Client([home.address], on_dead="gutter", gutter=[spare.address]) as client:
        assert await client.set("k", 1) and exptime_of(home, "k") == -1
        assert spare.ask(b"mg k v\r\n") == b"EN\r\n"
        home.kill()
        await until_dead(client, "k")
        client._pools[0].health.dead_until = float("inf")
        assert await client.set("k", 2) is True and await client.get("k") == 2
        assert 0 < exptime_of(spare, "k") <= GUTTER_EXPTIME


@pytest.mark.gen_test
async def test_a_first_silence_is_a_failure_as_ever(start_memcached, troubles):
    home, spare = start_memcached(), start_memcached()
    options = {"request_timeout": 0.3, "silences_until_dead": 2}
    async with Client(
        [home.address], on_dead="gutter", gutter=[spare.address], **options
    ) as client:
        await client.set("k", 1)
        home.stop()
        for _ in range(2):
            with pytest.raises(asyncio.TimeoutError):
                await client.get("k")
        client._pools[0].health.dead_until = float("inf")
        assert await client.get("k") is None and await client.set("k", 2)
        home.resume()
        client.retry_dead_servers()
        assert await client.get("k", timeout=5) == 1


@pytest.mark.gen_test
async def test_what_goes_to_all_goes_to_the_gutter_too(start_memcached, troubles):
    async with World(start_memcached) as world:
        client, key = world.client, world.theirs[0]
        await client.set(key, 1)
        assert await client.get(key) == 1
        flushed = await client.flush_all()
        names = [server.address for server in (world.b, *world.gutter)]
        assert set(flushed) == set(names) and list(flushed.errors) == [world.a.address]
        assert await client.get(key) is None
        assert set(await client.version()) == set(names)


@pytest.mark.gen_test
async def test_servers_may_change_around_a_gutter(start_memcached, troubles):
    async with World(start_memcached) as world:
        client = world.client
        await client.set_multi(dict.fromkeys(world.theirs, 1))
        pools = client._pools[2:]
        with pytest.raises(InvalidServer, match="one of the gutter"):
            client.set_servers([world.b.address, world.gutter[0].address])
        client.set_servers([world.b.address])
        assert client._pools[1:] == pools and client._cluster._retired == []
        assert await client.set_multi(dict.fromkeys(world.theirs, 2)) == []
        assert await client.get_multi(world.theirs) == dict.fromkeys(world.theirs, 2)
        assert exptime_of(world.b, world.theirs[0]) == -1


@pytest.mark.gen_test
async def test_in_callbacks_and_under_a_boundary(start_memcached, troubles):
    got: list[object] = []
    async with World(start_memcached) as world:
        with boundary(got.append):
            world.client.set(world.theirs[0], 5, callback=got.append)
            world.client.incr(world.theirs[0], callback=got.append)
            world.client.get_multi(world.theirs[:2], callback=got.append)
        await until(lambda: len(got) == 3)
        assert got == [True, 6, {world.theirs[0]: 6}]


@pytest.mark.gen_test
async def test_a_face_may_have_one(start_memcached, troubles):
    home, spare = start_memcached(), start_memcached()
    options = {"on_dead": "gutter", "gutter": [spare.address], "gutter_exptime": 5}
    client = drop_in.Client([home.address], **options)
    assert await client.set("k", "v") and await client.get("k") == "v"
    home.kill()
    health = client._native._pools[0].health
    while not health.dead:
        assert await client.get("k") is None
    health.dead_until = float("inf")
    assert await client.set("k", "w", time=3600)
    assert await client.get("k") == "w" and exptime_of(spare, "k") <= 5
    client.close()


@pytest.mark.gen_test
async def test_what_is_migrated_to_the_gutter_is_kept_for_a_short_time_too(
    start_memcached, troubles
):
    old, home, spare = (start_memcached() for _ in range(3))
    options = {"on_dead": "gutter", "gutter": [spare.address]}
    async with Client([old.address]) as before:
        async with Client([home.address], migrate_from=before, **options) as client:
            await before.set_multi({"k": 1, "other": 2})
            home.kill()
            with pytest.raises(ConnectionFailed):
                await client.set("finds-out", 1)
            client._pools[0].health.dead_until = float("inf")
            assert await client.get("k") == 1
            await until(lambda: client.migration.copied == 1)
            assert 0 < exptime_of(spare, "k") <= GUTTER_EXPTIME
            assert await client.set("other", 3) is True
            assert await client.set_multi({"more": 4}) == []
            for key in ("other", "more"):
                assert 0 < exptime_of(spare, key) <= GUTTER_EXPTIME


@pytest.mark.gen_test
async def test_the_call_that_finds_out_goes_home(start_memcached, troubles):
    async with World(start_memcached) as world:
        client, key = world.client, world.theirs[0]
        client.retry_dead_servers()
        probe, rest = client.get(key), [client.get(key) for _ in range(5)]
        with pytest.raises(ConnectionFailed):
            await probe
        assert await asyncio.gather(*rest) == [None] * 5
