"""tornado_memcache.commands: one scenario suite, on a real memcached and on the embedded server.

Each scenario runs in both styles, awaited and with callbacks, and asserts
every outcome exactly.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from datetime import datetime, timedelta, timezone
from typing import Any

import pytest

from tornado_memcache import (
    CasUnique,
    Client,
    ClientError,
    FailedKeys,
    Item,
    ItemTooLarge,
    MultiResult,
    Reply,
    Request,
    SerializationError,
    ServerError,
)
from tornado_memcache.protocol import STREAMED_BLOCK
from tornado_memcache.ring import key_hash
from tornado_memcache.server import EmbeddedServer

MISS = object()
LARGE = b"\r\nEND\r\n" * 20_000
FAR = datetime(2037, 1, 1, tzinfo=timezone.utc)
PAST = datetime(2001, 1, 1, tzinfo=timezone.utc)


class Styled:
    """A client whose calls are all made in one style; each gives a coroutine of its outcome."""

    def __init__(self, client: Client, style: str) -> None:
        self.client = client
        self.style = style

    def __getattr__(self, name: str) -> Any:
        method = getattr(self.client, name)

        def ask(*args: Any, **how: Any) -> Any:
            if self.style == "await":
                return method(*args, **how)
            outcome = asyncio.get_running_loop().create_future()
            given = {"callback": outcome.set_result, "fail_callback": outcome.set_exception}
            assert method(*args, **given, **how) is None
            assert not outcome.done()  # (never inside the method that took the callbacks)
            return outcome

        return ask

    @property
    def connections(self) -> int:
        """How many connections are open; the losses tell whether one was lost."""
        assert all(pool.losses == 0 for pool in self.client._pools)
        return sum(pool.counts()["open"] for pool in self.client._pools)


@pytest.fixture(params=["memcached", "embedded"])
def kind(request: Any) -> str:
    return request.param


@pytest.fixture(params=["await", "callback"])
def style(request: Any) -> str:
    return request.param


@pytest.fixture
def addresses(kind: str, request: Any, io_loop: Any) -> Iterator[list[str]]:
    """Three servers; the first is enough for most."""
    several = "many" in request.fixturenames
    if kind == "memcached":
        servers = [request.getfixturevalue("memcached")]
        if several:
            start = request.getfixturevalue("start_memcached")
            servers += [start(), start()]
        yield [server.address for server in servers]
        return
    servers = [EmbeddedServer() for _ in range(3 if several else 1)]
    for server in servers:
        io_loop.run_sync(server.__aenter__)
    yield [server.address for server in servers]
    for server in servers:
        io_loop.run_sync(server.close)


@pytest.fixture
def address(addresses: list[str]) -> str:
    return addresses[0]


@pytest.fixture
def mc(address: str, style: str) -> Iterator[Styled]:
    """A client of one server."""
    client = Client([address])
    yield Styled(client, style)
    client.close()


@pytest.fixture
def many(addresses: list[str], style: str) -> Iterator[Styled]:
    """A client of three servers."""
    client = Client(addresses)
    yield Styled(client, style)
    client.close()


# -- get, gat, gets, gats


@pytest.mark.gen_test
async def test_get(mc):
    assert await mc.get("k") is None
    assert await mc.get("k", MISS) is MISS
    assert await mc.get("k", default=0) == 0
    assert await mc.get(b"k", default="") == ""
    assert await mc.set("k", b"v") is True
    assert await mc.get("k") == b"v"
    assert await mc.get(b"k") == b"v"
    assert await mc.get(bytearray(b"k"), MISS) == b"v"
    assert await mc.get(memoryview(b"k")) == b"v"
    assert mc.connections == 1


VALUES = [
    b"",
    b"v",
    bytes(range(256)),
    b"\r\nEND\r\n",
    b"\r\n",
    b"STORED\r\n",
    b"VALUE k 0 1\r\nv\r\nEND\r\n",
    b"x" * (STREAMED_BLOCK - 1),
    b"x" * STREAMED_BLOCK,
    b"x" * (STREAMED_BLOCK + 1),
    LARGE,
    b"x" * 1_048_000,
    "",
    "text",
    "\u00e9\u4e2d\U0001f600\0\r\n",
    0,
    -1,
    2**64,
    -(10**300),
]


@pytest.mark.gen_test
async def test_values_come_back_as_the_type_that_went_in(mc):
    keys = [f"k{number}" for number in range(len(VALUES))]
    for key, value in zip(keys, VALUES):
        assert await mc.set(key, value) is True
    for key, value in zip(keys, VALUES):
        for got in (
            await mc.get(key),
            await mc.gat(key, 0),
            (await mc.gets(key))[0],
            (await mc.get_multi([key]))[key],
        ):
            assert type(got) is type(value) and got == value
    assert await mc.get_multi(keys) == dict(zip(keys, VALUES))
    assert await asyncio.gather(*[mc.get(key) for key in keys]) == VALUES


@pytest.mark.gen_test
async def test_buffers_are_values_and_are_copied(mc):
    buffer = bytearray(b"before")
    first, second = mc.set("a", buffer), mc.set("b", memoryview(buffer))
    buffer[:] = b"behind"
    assert await first is True and await second is True
    assert await mc.get_multi(["a", "b"]) == {"a": b"before", "b": b"before"}


@pytest.mark.parametrize("kind", ["memcached", "embedded"])
@pytest.mark.gen_test
async def test_a_value_of_1_mib(kind, start_memcached):
    value = bytes(range(256)) * 4096
    async with EmbeddedServer(max_item_size=2 << 20) as embedded:
        server = embedded if kind == "embedded" else start_memcached(["-I", "2m"])
        async with Client([server.address]) as mc:
            assert await mc.set("k", value) is True
            assert await mc.get("k") == value
            assert await mc.get_multi(["a", "k", "b"]) == {"k": value}


@pytest.mark.gen_test
async def test_keys_of_all_kinds(mc):
    keys = ["k", "\u00e9\u4e2d", "k" * 250, "noreply", "0", "a:b/c%~\\\"'", b"\xff\xfe\x80"]
    for key in keys:
        assert await mc.set(key, key) is True
    for key in keys:
        assert await mc.get(key) == key
        if isinstance(key, str):
            assert await mc.get(key.encode()) == key
    assert await mc.get_multi(keys) == {key: key for key in keys}
    for key in keys:
        assert await mc.delete(key) is True
    assert await mc.get_multi(keys) == {}


@pytest.mark.gen_test
async def test_gat(mc):
    assert await mc.gat("k", 60) is None
    assert await mc.gat("k", 60, MISS) is MISS
    await mc.set("k", "v")
    assert await mc.gat("k", 60) == "v"
    assert await mc.gat("k", -1, MISS) == "v"
    assert await mc.gat("k", 60, MISS) is MISS


@pytest.mark.gen_test
async def test_gets(mc):
    assert await mc.gets("k") == (None, None)
    await mc.set("k", 7)
    value, unique = await mc.gets("k")
    assert value == 7 and type(unique) is CasUnique
    assert await mc.gets("k") == (7, unique)
    await mc.set("k", 7)
    assert (await mc.gets("k"))[1] > unique


@pytest.mark.gen_test
async def test_gats(mc):
    assert await mc.gats("k", 60) == (None, None)
    await mc.set("k", "v")
    value, unique = await mc.gats("k", 60)
    assert value == "v" and await mc.gets("k") == ("v", unique)
    assert (await mc.gats("k", -1))[0] == "v"
    assert await mc.gats("k", 60) == (None, None)


# -- get_multi, gets_multi


@pytest.mark.gen_test
async def test_get_multi(mc):
    assert await mc.set_multi({"a": 1, "b": b"2", "c": "3"}) == []
    found = await mc.get_multi(["a", "miss", "c", b"b"])
    assert found == {"a": 1, b"b": b"2", "c": "3"}
    assert type(found) is MultiResult and found.errors == {}
    assert await mc.get_multi(["miss", "missing"]) == {}
    assert await mc.get_multi(("a",)) == {"a": 1}
    assert await mc.get_multi({"a", "b"}) == {"a": 1, "b": b"2"}
    assert await mc.get_multi({"a": None}) == {"a": 1}
    assert await mc.get_multi(key for key in "abc") == {"a": 1, "b": b"2", "c": "3"}
    assert await mc.get_multi(["a"], strict=True) == {"a": 1}
    assert await mc.get_multi([]) == {} == await mc.gets_multi(iter(()))


@pytest.mark.gen_test
async def test_the_hits_stand_under_the_caller_s_own_key_objects(mc):
    class Name(str):
        pass

    await mc.set("a", 1)
    keys = [Name("a"), b"a", (5, "a"), ("route", b"a"), "a", "a", memoryview(b"a")]
    found = await mc.get_multi(keys)
    assert found == {"a": 1, b"a": 1, (5, "a"): 1, ("route", b"a"): 1}
    for key in keys[:4]:
        assert any(key is mine for mine in found)


@pytest.mark.gen_test
async def test_gets_multi(mc):
    await mc.set_multi({"a": 1, "b": "2"})
    found = await mc.gets_multi(["a", "b", "miss", b"a"])
    assert {key: value for key, (value, _) in found.items()} == {"a": 1, "b": "2", b"a": 1}
    assert found.errors == {}
    assert found["a"] == await mc.gets("a") == found[b"a"]
    assert await mc.cas("a", 5, found["a"][1]) is True
    assert await mc.cas("b", "3", found["a"][1]) is False
    assert await mc.gets_multi(["miss"]) == {}


@pytest.mark.parametrize("count", [99, 100, 101, 250])
@pytest.mark.gen_test
async def test_more_than_100_keys(mc, count):
    values = {f"key-{number}": number for number in range(count)}
    assert await mc.set_multi(values) == []
    assert await mc.get_multi(values) == values
    found = await mc.gets_multi(values)
    assert {key: value for key, (value, _) in found.items()} == values
    assert await mc.delete_multi(values) == []
    assert await mc.get_multi(values) == {}


@pytest.mark.gen_test
async def test_10_000_keys_of_250_bytes(mc):
    if mc.style == "callback":
        return
    keys = [b"%0250d" % number for number in range(10_000)]
    await mc.set_multi(dict.fromkeys(keys[::500], b"v"))
    assert await mc.get_multi(keys, timeout=5) == dict.fromkeys(keys[::500], b"v")
    assert await mc.delete_multi(keys, timeout=5) == []
    assert await mc.get_multi(keys[::500]) == {}


# -- set, add, replace, append, prepend


@pytest.mark.gen_test
async def test_set_add_replace(mc):
    assert await mc.replace("k", b"0") is False
    assert await mc.get("k") is None
    assert await mc.add("k", b"1") is True
    assert await mc.add("k", b"2") is False
    assert await mc.get("k") == b"1"
    assert await mc.replace("k", "3") is True
    assert await mc.get("k") == "3"
    assert await mc.set("k", 4) is True
    assert await mc.get("k") == 4
    assert mc.connections == 1


@pytest.mark.gen_test
async def test_append_prepend(mc):
    assert await mc.append("k", b"1") is False
    assert await mc.prepend("k", b"1") is False
    assert await mc.get("k") is None
    await mc.set("k", "b")
    assert await mc.append("k", b"c") is True
    assert await mc.prepend("k", "a") is True
    assert await mc.append("k", b"") is True
    assert await mc.get("k") == "abc"  # (the flags of the item stay)
    await mc.set("n", 1)
    assert await mc.append("n", "2") is True
    assert await mc.get("n") == 12
    assert await mc.append("n", "x") is True
    with pytest.raises(SerializationError):
        await mc.get("n")


@pytest.mark.gen_test
async def test_noreply(mc):
    assert await mc.set("k", b"1", noreply=True) is True
    assert await mc.get("k") == b"1"
    assert await mc.add("k", b"2", noreply=True) is True  # (written, not stored)
    assert await mc.get("k") == b"1"
    assert await mc.replace("k", b"2", noreply=True) is True
    assert await mc.append("k", b"3", noreply=True) is True
    assert await mc.prepend("k", b"1", noreply=True) is True
    assert await mc.get("k") == b"123"
    assert await mc.append("miss", b"3", noreply=True) is True
    assert await mc.get("miss") is None
    assert await mc.set("large", LARGE, noreply=True) is True
    assert await mc.get("large") == LARGE
    calls = [mc.set(f"n{number}", number, 60, True) for number in range(200)]
    assert await mc.get("n199") == 199
    assert await asyncio.gather(*calls) == [True] * 200
    assert mc.connections == 1


@pytest.mark.gen_test
async def test_a_value_that_the_server_does_not_take(mc):
    await mc.set("k", b"old")
    with pytest.raises(ItemTooLarge) as caught:
        await mc.set("k", b"x" * (1 << 20))
    assert isinstance(caught.value, ServerError)
    assert "set 'k'" in str(caught.value) and caught.value.connection_survives
    assert await mc.get("k") is None  # (memcached drops the old one)
    assert mc.connections == 1


# -- cas


@pytest.mark.gen_test
async def test_cas(mc):
    assert await mc.cas("k", "v", 1) is None
    await mc.set("k", "1")
    _, unique = await mc.gets("k")
    assert await mc.cas("k", "2", unique) is True
    assert await mc.cas("k", "3", unique) is False
    assert await mc.get("k") == "2"
    _, unique = await mc.gets("k")
    assert await mc.cas("k", "3", int(unique)) is True
    assert await mc.cas("k", "4", 0) is False
    assert await mc.cas("k", "4", 2**64 - 1) is False
    _, unique = await mc.gats("k", 60)
    assert await mc.cas("k", b"5", unique, -1) is True
    assert await mc.get("k") is None
    assert await mc.cas("k", "6", unique) is None
    assert mc.connections == 1


@pytest.mark.gen_test
async def test_of_many_cas_loops_none_is_lost(mc):
    await mc.set("n", 0)

    async def add_one():
        while True:
            number, unique = await mc.gets("n")
            if await mc.cas("n", number + 1, unique):
                return

    await asyncio.gather(*[add_one() for _ in range(12)])
    assert await mc.get("n") == 12


# -- set_multi, delete_multi


@pytest.mark.gen_test
async def test_set_multi(mc):
    failed = await mc.set_multi({"a": 1, b"b": "2", (3, "c"): b"3"})
    assert failed == [] and type(failed) is FailedKeys and failed.errors == {}
    assert await mc.get_multi("abc".__iter__()) == {"a": 1, "b": "2", "c": b"3"}
    assert await mc.set_multi({}) == []
    assert await mc.set_multi({"a": 1, "b": 2}, -1) == []
    assert await mc.get_multi(["a", "b", "c"]) == {"c": b"3"}
    assert await mc.set_multi({"a": "first", b"a": "last"}) == []
    assert await mc.get("a") == "last"


@pytest.mark.gen_test
async def test_set_multi_names_what_could_not_be_stored(mc, address):
    large = (1, "large")
    failed = await mc.set_multi({"a": 1, large: b"x" * (1 << 20), "b": 2})
    assert failed == [large] and failed[0] is large
    assert list(failed.errors) == [address]
    assert isinstance(failed.errors[address], ItemTooLarge)
    assert await mc.get_multi(["a", "b"]) == {"a": 1, "b": 2}


@pytest.mark.gen_test
async def test_delete_multi(mc):
    await mc.set_multi({"a": 1, "b": 2, "c": 3})
    failed = await mc.delete_multi(["a", b"b", "miss", "a"])
    assert failed == [] and type(failed) is FailedKeys and failed.errors == {}
    assert await mc.get_multi(["a", "b", "c"]) == {"c": 3}
    assert await mc.delete_multi([]) == []
    assert await mc.delete_multi(key for key in ["c"]) == []
    assert await mc.get("c") is None


# -- delete, touch, incr, decr


@pytest.mark.gen_test
async def test_delete(mc):
    assert await mc.delete("k") is False
    await mc.set("k", "v")
    assert await mc.delete("k") is True
    assert await mc.delete(b"k") is False
    assert await mc.get("k") is None


@pytest.mark.gen_test
async def test_touch(mc):
    assert await mc.touch("k", 60) is False
    await mc.set("k", "v")
    assert await mc.touch("k", 60) is True
    assert await mc.get("k") == "v"
    assert await mc.touch("k", -1) is True
    assert await mc.get("k") is None
    assert await mc.touch("k", 60) is False


@pytest.mark.gen_test
async def test_incr_decr(mc):
    assert await mc.incr("n") is None
    assert await mc.decr("n") is None
    assert await mc.get("n") is None
    await mc.set("n", 5)
    assert await mc.incr("n") == 6
    assert await mc.incr("n", 10) == 16
    assert await mc.incr("n", delta=0) == 16
    assert await mc.decr("n") == 15
    assert await mc.decr("n", 7) == 8
    assert await mc.get("n") == 8
    assert await mc.decr("n", 2**64 - 1) == 0
    assert await mc.decr("n") == 0
    assert await mc.incr("n", 2**64 - 1) == 2**64 - 1
    assert await mc.incr("n", 3) == 2
    assert await mc.get("n") == 2
    assert mc.connections == 1


@pytest.mark.gen_test
async def test_incr_on_what_is_no_int(mc):
    await mc.set("n", b"10")
    assert await mc.decr("n") == 9
    assert await mc.get("n") == b"9 "  # (memcached keeps the length)
    assert await mc.incr("n") == 10
    await mc.set("n", "10 ")
    assert await mc.incr("n") == 11
    for value in ("text", "", -1, 2**64, b"\xff"):
        await mc.set("n", value)
        with pytest.raises(ClientError, match="incr 'n'"):
            await mc.incr("n")
        with pytest.raises(ClientError, match="decr 'n'"):
            await mc.decr("n")
        assert await mc.get("n") == value
    assert mc.connections == 1


# -- exptime


@pytest.mark.parametrize(
    ("exptime", "there"),
    [
        (0, True),
        (60, True),
        (60 * 60 * 24 * 30, True),
        (60 * 60 * 24 * 30 + 1, True),  # (memcached itself would take it for 1970)
        (60 * 60 * 24 * 365, True),
        (-1, False),
        (-(10**9), False),
        (timedelta(minutes=1), True),
        (timedelta(microseconds=1), True),
        (timedelta(days=100), True),
        (timedelta(seconds=-1), False),
        (timedelta(milliseconds=-500), False),
        (FAR, True),
        (FAR.replace(tzinfo=None), True),
        (PAST, False),
        (datetime(1970, 1, 2, tzinfo=timezone.utc), False),
        (datetime(1969, 1, 1, tzinfo=timezone.utc), False),
        (datetime.min, False),
    ],
    ids=str,
)
@pytest.mark.gen_test
async def test_exptime(mc, exptime, there):
    await mc.set_multi(dict.fromkeys(["replace", "append", "cas", "gat", "gats", "touch"], "v"))
    _, unique = await mc.gets("cas")
    assert await mc.set("set", "v", exptime) is True
    assert await mc.add("add", "v", exptime=exptime) is True
    assert await mc.replace("replace", "v", exptime) is True
    assert await mc.append("append", "v", exptime) is True
    assert await mc.cas("cas", "v", unique, exptime) is True
    assert await mc.set_multi({"set_multi": "v"}, exptime) == []
    assert await mc.gat("gat", exptime) == "v"
    assert (await mc.gats("gats", exptime))[0] == "v"
    assert await mc.touch("touch", exptime) is True
    keys = ["set", "add", "replace", "cas", "set_multi", "gat", "gats", "touch"]
    assert await mc.get_multi(keys) == (dict.fromkeys(keys, "v") if there else {})
    assert await mc.get("append") == "vv"  # (append leaves the exptime as it is)


@pytest.mark.gen_test
async def test_the_length_that_a_real_memcached_has_understood(memcached):
    async with Client([memcached.address]) as mc:
        for exptime, seconds in [
            (60, 60),
            (60 * 60 * 24 * 30, 60 * 60 * 24 * 30),
            (60 * 60 * 24 * 31, 60 * 60 * 24 * 31),
            (timedelta(seconds=1.5), 2),
            (timedelta(days=40), 40 * 24 * 3600),
            (datetime.now() + timedelta(seconds=600), 600),
            (datetime.now(timezone.utc) + timedelta(days=60), 60 * 24 * 3600),
        ]:
            await mc.set("k", "v", exptime)
            status, left = memcached.ask(b"mg k t\r\n").split()
            assert status == b"HD" and abs(int(left[1:]) - seconds) <= 2
        await mc.set("k", "v", 0)
        assert memcached.ask(b"mg k t\r\n") == b"HD t-1\r\n"


# -- flush_all, stats, version


@pytest.mark.gen_test
async def test_flush_all(mc, address):
    await mc.set_multi({"a": 1, "b": 2})
    flushed = await mc.flush_all(3600)
    assert flushed == {address: True} and flushed.errors == {}
    assert await mc.get("a") == 1
    assert await mc.flush_all() == {address: True}
    assert await mc.get_multi(["a", "b"]) == {}


@pytest.mark.gen_test
async def test_a_delay_of_more_than_30_days_is_a_length_too(mc, address):
    await mc.set("a", 1)
    assert await mc.flush_all(delay=60 * 60 * 24 * 31) == {address: True}
    assert await mc.get("a") == 1
    await mc.flush_all()


@pytest.mark.gen_test
async def test_stats(mc, address):
    await mc.delete("counted")  # (what was flushed is counted until somebody asks for it)
    before = int((await mc.stats())[address]["curr_items"])
    await mc.set("counted", 1)
    stats = await mc.stats()
    assert list(stats) == [address] and stats.errors == {}
    assert stats[address]["version"] == "1.6.18"
    assert int(stats[address]["curr_items"]) == before + 1
    assert all(type(value) is str for value in stats[address].values())
    assert int((await mc.stats("settings"))[address]["maxbytes"]) == 64 << 20
    assert "items:1:number" in (await mc.stats("items"))[address]
    assert "items:1:number" in (await mc.stats("  items "))[address]
    assert await mc.stats("reset") == {address: {}}
    assert "pid" in (await mc.stats(argument=""))[address]
    with pytest.raises(ClientError):
        await mc.stats("nonsense")
    with pytest.raises(ClientError):
        await mc.stats("noreply")
    assert mc.connections == 1


@pytest.mark.gen_test
async def test_version(mc, address):
    version = await mc.version()
    assert version == {address: "1.6.18"}
    assert type(version) is MultiResult and version.errors == {}


# -- several servers


@pytest.mark.gen_test
async def test_keys_go_where_their_hash_says(many, addresses):
    values = {f"key-{number}": number for number in range(60)}
    assert await many.set_multi(values) == []
    assert await many.get_multi(values) == values
    for place, address in enumerate(addresses):
        expected = {k: v for k, v in values.items() if key_hash(k.encode()) % 3 == place}
        assert expected
        async with Client([address]) as one:
            assert await one.get_multi(values) == expected
    assert await many.delete_multi(list(values)[:50]) == []
    assert await many.get_multi(values) == dict(list(values.items())[50:])


@pytest.mark.gen_test
async def test_a_route_chooses_the_server(many, addresses):
    for place in range(3):
        assert await many.set((place, "k"), place) is True
        assert await many.set((place + 3, "again"), place) is True
    for place, address in enumerate(addresses):
        async with Client([address]) as one:
            assert await one.get_multi(["k", "again"]) == {"k": place, "again": place}
        assert await many.get((place, "k")) == place
        assert await many.get((place - 3, b"k")) == place
    keys = [(0, "k"), (1, "k"), (2, "k"), (0, "miss")]
    assert await many.get_multi(keys) == {(0, "k"): 0, (1, "k"): 1, (2, "k"): 2}
    _, unique = await many.gets((1, "k"))
    assert await many.cas((1, "k"), 11, unique) is True
    assert await many.cas((2, "k"), 22, unique) is False  # (another server's)
    assert await many.incr((2, "k")) == 3
    assert await many.touch((0, "k"), -1) is True
    assert await many.get_multi(keys) == {(1, "k"): 11, (2, "k"): 3}
    assert await many.delete((1, "k")) is True
    assert await many.get_multi(keys) == {(2, "k"): 3}


@pytest.mark.gen_test
async def test_a_route_of_bytes_or_str_is_hashed(many, addresses):
    for route in ("foo", b"foo", key_hash(b"foo")):
        assert await many.set((route, "k"), "v") is True
        async with Client([addresses[3187 % 3]]) as one:
            assert await one.delete("k") is True


@pytest.mark.gen_test
async def test_delete_multi_of_one_key_on_two_servers(many):
    keys = [(0, "k"), (1, "k"), (1, b"k")]
    await many.set_multi(dict.fromkeys(keys, "v"))
    assert await many.delete_multi(keys) == []
    assert await many.get_multi(keys) == {}


@pytest.mark.gen_test
async def test_what_is_asked_of_all_servers(many, addresses):
    assert await many.version() == dict.fromkeys(addresses, "1.6.18")
    assert set(await many.stats()) == set(addresses)
    values = {f"key-{number}": number for number in range(30)}
    await many.set_multi(values)
    assert await many.flush_all() == dict.fromkeys(addresses, True)
    assert await many.get_multi(values) == {}


# -- settings of a call and of the client


@pytest.mark.gen_test
async def test_key_prefix(address, style):
    async with Client([address], key_prefix="p:") as client, Client([address]) as bare:
        mc = Styled(client, style)
        assert await mc.set("k", 1) is True
        assert await bare.get("p:k") == 1 and await bare.get("k") is None
        assert await mc.get("k") == 1
        assert await mc.get_multi(["k", b"k", "p:k"]) == {"k": 1, b"k": 1}
        value, unique = (await mc.gets_multi(["k"]))["k"]
        assert await mc.cas("k", 2, unique) is True
        assert await mc.incr("k") == 3 == await bare.get("p:k")
        assert await mc.set_multi({"a": 1}) == [] and await bare.get("p:a") == 1
        assert await mc.delete_multi(["a"]) == [] and await bare.get("p:a") is None
        assert await mc.gat("k", 60) == 3 and await mc.touch("k", 60) is True
        assert await mc.set("x" * 248, 1) is True
        with pytest.raises(ValueError, match="the prefix included"):
            mc.set("x" * 249, 1)
        # the funnel takes keys as they are
        assert (await mc.request(Request(b"get", (b"k",)))).items == {}
        assert await mc.delete("k") is True and await bare.get("p:k") is None


@pytest.mark.gen_test
async def test_a_timeout_of_its_own_changes_no_outcome(mc, address):
    for timeout in (5, 0.9, 1.0, 60.5, None):
        assert await mc.set("k", "v", timeout=timeout) is True
        assert await mc.get("k", timeout=timeout) == "v"
        assert await mc.get("miss", MISS, timeout=timeout) is MISS
        assert await mc.get_multi(["k", "miss"], timeout=timeout) == {"k": "v"}
        assert await mc.set_multi({"k": "v"}, timeout=timeout) == []
        assert await mc.incr("miss", timeout=timeout) is None
        assert await mc.version(timeout=timeout) == {address: "1.6.18"}
        assert await mc.set("k", "v", noreply=True, timeout=timeout) is True


@pytest.mark.gen_test
async def test_only_a_callback_or_only_a_fail_callback(mc):
    client = mc.client
    outcome = asyncio.get_running_loop().create_future()
    assert client.set("k", 1, callback=outcome.set_result) is None
    assert await outcome is True
    assert client.set("k", 2, fail_callback=pytest.fail) is None
    assert await client.get("k", callback=None, fail_callback=None) == 2
    outcome = asyncio.get_running_loop().create_future()

    async def later(value):
        await asyncio.sleep(0)
        outcome.set_result(value)

    assert client.get("k", callback=later) is None
    assert await outcome == 2


@pytest.mark.gen_test
async def test_every_value_reaches_its_own_caller(mc):
    async def caller(number):
        key, value = f"own-{number}", f"value of {number} " * (number * 97 % 300)
        assert await mc.set(key, value) is True
        for _ in range(3):
            got = await asyncio.gather(
                mc.get(key), mc.gets(key), mc.get_multi([key, "no"]), mc.gat(key, 60)
            )
            assert (got[0], got[1][0], got[2], got[3]) == (value, value, {key: value}, value)
        assert await mc.delete(key) is True
        assert await mc.get(key) is None

    await asyncio.gather(*[caller(number) for number in range(60)])


# -- values that others have stored


@pytest.mark.parametrize("flags", [1, 2**32 - 1])
@pytest.mark.gen_test
async def test_unknown_flags_fail_the_call_and_not_the_connection(mc, flags, address):
    await mc.request(Request(b"set", (b"bad",), b"x", flags))
    await mc.set("good", 1)
    for call in (mc.get("bad"), mc.get("bad", 5), mc.gets("bad"), mc.gat("bad", 0)):
        with pytest.raises(SerializationError, match="'bad'"):
            await call
    found = await mc.get_multi(["bad", "good"])
    assert found == {"good": 1}
    assert isinstance(found.errors[address], SerializationError)
    await mc.request(Request(b"set", (b"worse",), b"x", flags))
    found = await mc.get_multi(["bad", "worse"])
    assert found == {} and "'bad'" in str(found.errors[address]), "the first one"
    with pytest.raises(SerializationError, match="'bad'"):
        await mc.get_multi(["good", "bad"], strict=True)
    assert await mc.get("good") == 1
    assert mc.connections == 1


# -- the funnel


@pytest.mark.gen_test
async def test_request(mc):
    ask = mc.request
    assert await ask(Request(b"get", (b"k",))) == Reply(b"END")
    assert await ask(Request(b"set", (b"k",), b"v", 77, 60)) == Reply(b"STORED")
    assert await ask(Request(b"add", (b"k",), b"v")) == Reply(b"NOT_STORED")
    assert await ask(Request(b"get", (b"k", b"m"))) == Reply(b"END", {b"k": Item(b"v", 77)})
    reply = await ask(Request(b"gets", (b"m", b"k")))
    unique = reply.items[b"k"].cas_unique
    assert reply == Reply(b"END", {b"k": Item(b"v", 77, unique)})
    assert await ask(Request(b"gat", (b"k",), exptime=60)) == Reply(b"END", {b"k": Item(b"v", 77)})
    cas = Request(b"cas", (b"k",), b"9", 0, 0, unique)
    assert await ask(cas) == Reply(b"STORED")
    assert await ask(cas) == Reply(b"EXISTS")
    assert await ask(cas._replace(keys=(b"m",))) == Reply(b"NOT_FOUND")
    assert await ask(Request(b"incr", (b"k",), delta=1)) == Reply(b"NUMBER", number=10)
    assert await ask(Request(b"incr", (b"m",), delta=1)) == Reply(b"NOT_FOUND")
    assert await ask(Request(b"touch", (b"k",), exptime=60)) == Reply(b"TOUCHED")
    assert await ask(Request(b"append", (b"k",), b"x", noreply=True)) == Reply(b"")
    assert await ask(Request(b"get", (b"k",))) == Reply(b"END", {b"k": Item(b"10x", 0)})
    with pytest.raises(ClientError):
        await ask(Request(b"incr", (b"k",), delta=1))
    assert await ask(Request(b"delete", (b"k",), noreply=True)) == Reply(b"")
    assert await ask(Request(b"delete", (b"k",))) == Reply(b"NOT_FOUND")
    assert await ask(Request(b"get", (b"k",)), timeout=3) == Reply(b"END")
    assert mc.connections == 1
