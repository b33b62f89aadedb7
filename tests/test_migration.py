"""tornado_memcache.migration: what is missing comes over from the old cluster, and nothing stale.

Two real memcacheds, the old one and the new one. Where a step has to fall
between two others, a proxy holds what is on its way.
"""

from __future__ import annotations

import asyncio
import contextlib
import random
import time
from datetime import timedelta

import pytest

from tornado_memcache import (
    Client,
    ClientClosed,
    InvalidRequest,
    MemcacheError,
    Request,
    Timeout,
    boundary,
)

from .asked import until
from .faultproxy import FaultProxy
from .old_server import OldServer


class Both:
    """The old and the new memcached, with a client of each."""

    def __init__(self, old, new, **options):
        self.old_server, self.new_server = old, new
        address = options.pop("address", new.address)
        length = options.get("request_timeout", 1.0)
        self.old = Client([options.pop("old_address", old.address)], request_timeout=length)
        self.client = Client([address], migrate_from=self.old, **options)

    async def __aenter__(self):
        return self

    async def __aexit__(self, *_):
        self.client.close()
        self.old.close()

    def server(self, side):
        return self.old_server if side == "old" else self.new_server

    def raw(self, side, key):
        return self.server(side).ask(b"get %b\r\n" % key.encode(), b"END\r\n")

    def has(self, side, key):
        return self.raw(side, key) != b"END\r\n"

    def time(self, side, key):
        return self.server(side).ask(b"mg %b t\r\n" % key.encode())

    async def settled(self):
        """Waits until nothing is being copied."""
        await until(lambda: not self.client.migration._chains)


@pytest.fixture
def both(start_memcached):
    """Makes a `Both` of two memcacheds."""
    servers = start_memcached(), start_memcached()

    def make(**options):
        return Both(*servers, **options)

    make.old, make.new = servers
    return make


# -- reads


@pytest.mark.parametrize("exptime", [0, 100, timedelta(days=40)])
@pytest.mark.gen_test
async def test_what_is_missing_comes_over_with_the_time_that_it_has(both, exptime):
    async with both() as pair:
        await pair.old.set("k", "v", exptime=exptime)
        assert await pair.client.get("k") == "v"
        await pair.settled()
        assert pair.raw("new", "k") == pair.raw("old", "k")
        told = {0: -1, 100: 100}.get(exptime, 40 * 86400)
        left = int(pair.time("new", "k")[4:])
        # (memcached counts in seconds of its own, which may begin a second later)
        assert left == told if told < 0 else told - 5 <= left <= told + 1
        assert repr(pair.client.migration) == "<Migration found=1 copied=1 failed=0>"
        pair.old_server.kill()
        assert await pair.client.get("k") == "v"  # (a hit asks nobody else)


@pytest.mark.gen_test
async def test_every_form_of_a_read_finds_what_is_on_either_side(both):
    async with both() as pair:
        values = {f"k{n}": n for n in range(250)}
        await pair.old.set_multi({key: values[key] for key in values if values[key] % 2})
        await pair.client.set_multi({key: values[key] for key in values if not values[key] % 2})
        assert await pair.client.get_multi([*values, "none", "nor_this"]) == values
        await pair.settled()
        assert pair.client.migration.copied == 125
        assert len(await pair.client.get_multi(values)) == 250
        await pair.old.set("g", "v")
        value, unique = await pair.client.gets("g")
        assert value == "v" and await pair.client.cas("g", "w", unique)
        assert not pair.has("old", "g")
        await pair.old.set_multi({"m1": 1, "m2": 2})
        found = await pair.client.gets_multi(["m1", "m2", "m3"])
        assert {key: value for key, (value, _) in found.items()} == {"m1": 1, "m2": 2}
        await pair.old.set("t", "v")
        assert await pair.client.gat("t", 100) == "v"
        assert 95 <= int(pair.time("new", "t")[4:]) <= 100 and not pair.has("old", "t")
        assert await pair.client.get("absent", default=7) == 7
        assert await pair.client.gets("absent") == (None, None)
        reply = await pair.client.request(Request(b"get", (b"m1",)))
        assert reply.items[b"m1"].value == b"1"


@pytest.mark.gen_test
async def test_callbacks_and_boundaries_are_as_ever(both, troubles):
    async with both() as pair:
        await pair.old.set("k", "v")
        got, loop = asyncio.get_running_loop().create_future(), asyncio.get_running_loop()
        assert pair.client.get("k", callback=got.set_result) is None and not got.done()
        assert await got == "v"
        many = loop.create_future()
        pair.client.get_multi(["k", "x"], callback=many.set_result)
        assert await many == {"k": "v"}
        await pair.settled()
        pair.new_server.stop()
        failed, began = loop.create_future(), time.monotonic()
        with boundary(failed.set_result, once=True, timeout=0.1):
            pair.client.get("x", callback=lambda value: failed.cancel())
            pair.client.set("y", 1)
        assert isinstance(await failed, Timeout)
        assert time.monotonic() - began < 0.1 + 0.5
        pair.new_server.resume()


@pytest.mark.gen_test
async def test_prefixes_and_rings_may_differ(start_memcached):
    olds, news = [start_memcached() for _ in range(3)], [start_memcached() for _ in range(2)]
    async with Client([one.address for one in olds], key_prefix="old:") as old:
        options = {"key_prefix": "n:", "ring": "rendezvous", "migrate_from": old}
        async with Client([one.address for one in news], **options) as client:
            values = {f"k{n}": n for n in range(100)}
            await old.set_multi(values)
            assert await client.get_multi(values) == values
            assert await client.delete("k1") and await client.set("k2", "new")
            assert await old.get_multi(["k1", "k2"]) == {}
            long = "x" * 247  # fits here, but not with the prefix of the old cluster
            assert await client.get(long) is None and await client.set(long, 1)
            assert await client.incr(long) == 2 and await client.delete(long)
            assert await client.get(("route", "k3")) in (3, None)


@pytest.mark.gen_test
async def test_the_same_servers_may_get_another_ring(start_memcached):
    servers = [start_memcached().address for _ in range(3)]
    async with (
        Client(servers) as old,
        Client(servers, ring="rendezvous", migrate_from=old) as client,
    ):
        values = {f"k{n}": n for n in range(100)}
        await old.set_multi(values)
        assert await client.get_multi(values) == values
        await until(lambda: not client.migration._chains)
        assert 0 < client.migration.copied < 100  # (some stay where they were)
        for n in range(50):
            assert await client.incr(f"k{n}") == n + 1
            assert await client.delete(f"k{n}") and not await client.delete(f"k{n}")
            assert await client.set(f"k{n}", "new") and await client.get(f"k{n}") == "new"
            assert (await client.gets(f"k{n + 50}"))[0] == n + 50


@pytest.mark.gen_test
async def test_an_old_server_that_cannot_tell_the_time_gives_migrate_exptime(start_memcached):
    new, behind = start_memcached(), start_memcached()
    async with OldServer(behind) as server, Client([server.address]) as old:
        await old.set_multi({"k": "v", "counter": 1})
        async with Client([new.address], migrate_from=old, migrate_exptime=50) as client:
            assert await client.get("k") == "v"
            await until(lambda: not client.migration._chains)
            assert 45 <= int(new.ask(b"mg k t\r\n")[4:]) <= 50
            assert client.migration.failed == 1  # (told once)
            assert await client.incr("counter") == 2
            assert 45 <= int(new.ask(b"mg counter t\r\n")[4:]) <= 50
            assert client.migration.failed == 1


# -- writes


@pytest.mark.gen_test
async def test_writes_go_to_the_new_cluster_and_delete_on_the_old(both):
    async with both() as pair:
        keys = ["set", "replace", "append", "prepend", "incr", "touch", "delete", "add", "n"]
        await pair.old.set_multi(dict.fromkeys(keys, 5))
        client = pair.client
        assert await client.set("set", 6) and await client.replace("replace", 6)
        assert await client.append("append", "6") and await client.prepend("prepend", "6")
        assert await client.incr("incr") == 6 and await client.touch("touch", 100)
        assert await client.delete("delete") and not await client.add("add", 6)
        assert await client.set("n", 6, noreply=True)
        await pair.settled()
        assert not [key for key in keys if pair.has("old", key)]
        expected = {"set": 6, "replace": 6, "append": 56, "prepend": 65, "incr": 6, "touch": 5}
        assert await client.get_multi(keys) == {**expected, "add": 5, "n": 6}
        assert not await client.delete("delete") and await client.incr("delete") is None
        assert not await client.replace("gone", 1) and await client.add("gone", 1)


@pytest.mark.gen_test
async def test_many_keys_at_once(both):
    async with both() as pair:
        values = {f"k{n}": n for n in range(300)}
        await pair.old.set_multi(values)
        assert await pair.client.set_multi(dict.fromkeys(list(values)[:100], "new")) == []
        assert await pair.client.delete_multi(list(values)[100:200]) == []
        assert set(await pair.old.get_multi(values)) == set(list(values)[200:])
        found = await pair.client.get_multi(values)
        assert set(found) == {*list(values)[:100], *list(values)[200:]} and found["k1"] == "new"
        await pair.client.flush_all()
        assert await pair.client.get_multi(values) == await pair.old.get_multi(values) == {}


@pytest.mark.gen_test
async def test_counters_are_counted_once_however_many_count(both):
    async with both() as pair:
        await pair.old.set("n", 100)
        counts = await asyncio.gather(*(pair.client.incr("n") for _ in range(50)))
        assert sorted(counts) == list(range(101, 151))


@pytest.mark.gen_test
async def test_the_order_of_a_key_is_kept_in_one_tick(both):
    async with both() as pair:
        await pair.old.set_multi({"a": "old", "b": "old", "c": 1})
        client, keys = pair.client, ["a", "b"]
        outcomes = await asyncio.gather(
            client.set("a", "new"), client.get("a"), client.delete("a"), client.get("a"),
            client.delete("b"), client.get("b"), client.set("b", "new"), client.get_multi(keys),
            client.incr("c"), client.get("c"), client.delete_multi(["c"]), client.get("c"),
        )  # fmt: skip
        assert outcomes == [
            True, "new", True, None,
            True, None, True, {"b": "new"},
            2, 2, [], None,
        ]  # fmt: skip
        assert not client.migration._writers


# -- races


async def read_and_held(pair, side, proxy):
    """Reads ``k``; what follows the read on this ``side`` stays in its ``proxy`` until it heals."""
    server = pair.server(side)
    asked = int(server.stats()["cmd_get"])
    proxy.replies.hold = True
    read = pair.client.get("k")
    await until(lambda: int(server.stats()["cmd_get"]) == asked + 1)
    proxy.requests.hold = True
    proxy.replies.hold = False
    assert await read == "v"


@pytest.mark.parametrize("write", ["set", "delete", "set_multi", "delete_multi", "flush_all"])
@pytest.mark.gen_test
async def test_what_was_read_on_the_old_cluster_never_overtakes_a_write(both, write):
    """The write comes when the value has been read, and its copy is not there yet."""
    with FaultProxy(both.old.address) as proxy:
        async with both(old_address=proxy.address, request_timeout=5.0) as pair:
            await pair.old.set("k", "stale")
            arguments = {
                "set": ("k", "new"), "set_multi": ({"k": "new"},),
                "delete": ("k",), "delete_multi": (["k"],), "flush_all": (),
            }[write]  # fmt: skip
            assert await pair.client.get("k") == "stale"  # (its copy has begun)
            await getattr(pair.client, write)(*arguments)
            await pair.settled()
            expected = "new" if write.startswith("set") else None
            assert await pair.client.get("k") == expected
            # and the same while the read itself is on its way
            await pair.client.delete("k")
            await pair.old.set("k", "stale")
            proxy.replies.hold = True
            read = pair.client.get("k")
            await until(lambda: pair.old._pools[0].pending == 1)
            written = getattr(pair.client, write)(*arguments)
            await asyncio.sleep(0.01)
            proxy.heal()
            assert await read in ("stale", expected)
            await written
            await pair.settled()
            assert await pair.client.get("k") == expected


@pytest.mark.gen_test
async def test_a_copy_is_taken_back_if_another_client_deletes_meanwhile(both):
    """He deletes on the old cluster, then on the new one, and our copy comes behind both."""
    with FaultProxy(both.new.address) as proxy:
        async with both(address=proxy.address, request_timeout=5.0) as pair:
            await pair.old.set("k", "v")
            await pair.client.get("other")
            await read_and_held(pair, "new", proxy)  # (what follows is the add)
            await until(lambda: pair.client._pools[0].pending == 1)
            assert pair.old_server.ask(b"delete k\r\n") == b"DELETED\r\n"
            assert pair.new_server.ask(b"delete k\r\n") == b"NOT_FOUND\r\n"
            proxy.heal()
            await pair.settled()
            assert pair.client.migration.copied == 1 and not pair.has("new", "k")


@pytest.mark.gen_test
async def test_a_copy_never_overwrites_what_another_client_has_written(both):
    with FaultProxy(both.new.address) as proxy:
        async with both(address=proxy.address, request_timeout=5.0) as pair:
            await pair.old.set("k", "v")
            await pair.client.get("other")
            await read_and_held(pair, "new", proxy)
            pair.new_server.ask(b"set k 16 0 3\r\nnew\r\n")
            proxy.heal()
            await pair.settled()
            assert pair.client.migration.copied == 0 and await pair.client.get("k") == "new"


@pytest.mark.gen_test
async def test_a_copy_that_somebody_has_written_since_is_not_taken_back(both):
    with FaultProxy(both.old.address) as proxy:
        async with both(old_address=proxy.address, request_timeout=5.0) as pair:
            await pair.old.set("k", "v")
            pair.client.migration._tells = False
            await read_and_held(pair, "old", proxy)  # (whether it is still there cannot be asked)
            await until(lambda: pair.has("new", "k"))
            pair.old_server.ask(b"delete k\r\n")
            pair.new_server.ask(b"set k 16 0 3\r\nnew\r\n")
            proxy.heal()
            await pair.settled()
            assert pair.raw("new", "k").endswith(b"\r\nnew\r\nEND\r\n")


@pytest.mark.parametrize("write", ["delete", "flush_all"])
@pytest.mark.gen_test
async def test_a_write_ends_the_copy_that_is_on_its_way(both, write, troubles):
    """The write does not wait for an old cluster that is silent, and the copy comes later."""
    with FaultProxy(both.old.address) as proxy:
        async with both(old_address=proxy.address, request_timeout=5.0) as pair:
            await pair.old.set("k", "v")
            await read_and_held(pair, "old", proxy)  # (how long it is still kept cannot be asked)
            await getattr(pair.client, write)(*("k",) * (write == "delete"), timeout=0.4)
            proxy.heal()
            await pair.settled()
            assert pair.client.migration.copied == 0 and not pair.has("new", "k")


@pytest.mark.gen_test
async def test_who_waits_behind_a_call_that_left_still_waits_for_those_before_it(both):
    with FaultProxy(both.old.address) as proxy:
        async with both(old_address=proxy.address, request_timeout=5.0) as pair:
            proxy.replies.hold = True
            first, second, read = (
                pair.client.set("k", 1), pair.client.set("k", 2), pair.client.get("k"),
            )  # fmt: skip
            await asyncio.sleep(0.01)
            second.cancel()
            await asyncio.sleep(0.01)
            assert not (first.done() or read.done())
            proxy.heal()
            assert await first is True and await read == 1


@pytest.mark.gen_test
async def test_thousands_that_left_behind_one_write_are_no_stack(both):
    with FaultProxy(both.old.address) as proxy:
        async with both(old_address=proxy.address, request_timeout=30.0) as pair:
            proxy.replies.hold = True
            first, *rest = [pair.client.incr("k") for _ in range(3000)]
            last = pair.client.set("k", 1)
            for one in rest:
                one.cancel()
            await asyncio.sleep(0)
            proxy.heal()
            assert await first is None and await last is True
            assert await pair.client.get("k") == 1 and not pair.client.migration._writers


CHANGES = {
    "touch": lambda client: client.touch("k", 1000),
    "gat": lambda client: client.gat("k", 1000),
    "append": lambda client: client.append("k", "1"),
    "incr": lambda client: client.incr("k"),
    "replace": lambda client: client.replace("k", 7),
}


@pytest.mark.parametrize("change", CHANGES)
@pytest.mark.gen_test
async def test_what_was_copied_and_then_changed_never_comes_back_as_it_was(both, change):
    async with both() as pair:
        assert await pair.old.set("k", 5)
        assert await pair.client.get("k") == 5
        await pair.settled()
        assert pair.has("old", "k") and pair.has("new", "k")
        assert await CHANGES[change](pair.client)
        assert not pair.has("old", "k") and pair.has("new", "k")
        pair.new_server.ask(b"delete k\r\n")  # (stands for its end, or an eviction)
        assert await pair.client.get("k") is None


@pytest.mark.gen_test
async def test_what_is_changed_stays_where_old_and_new_are_one_place(start_memcached):
    server = start_memcached()
    old = Client([server.address])
    async with Client([server.address], migrate_from=old) as client:
        assert await old.set("k", 5) and await old.set("m", 7)
        assert await client.incr("k") == 6 and await client.gets("m")
        assert await client.get("k") == 6
    old.close()


@pytest.mark.gen_test
async def test_many_callers_on_both_sides_of_a_change_never_read_what_is_older(both):
    """A model of each key: what was written last is read, or a miss; deleted stays deleted."""
    chance = random.Random(5)
    async with both(request_timeout=5.0) as pair:
        await pair.old.set_multi({f"k{n}": f"old{n}" for n in range(20)})

        async def user(n):
            key, last = f"k{n}", f"old{n}"
            for turn in range(40):
                act = chance.choice(["get", "get", "set", "delete", "many", "nowait"])
                if act == "get":
                    assert await pair.client.get(key) == last
                elif act == "many":
                    assert (await pair.client.get_multi([key, "none"])).get(key) == last
                elif act == "set":
                    last = f"{n}:{turn}"
                    assert await pair.client.set(key, last)
                elif act == "delete":
                    assert await pair.client.delete(key) is (last is not None)
                    last = None
                else:
                    last = f"{n}:{turn}"
                    pair.client.set(key, last)
                    assert await pair.client.get(key) == last

        await asyncio.gather(*(user(n) for n in range(20)))
        await pair.settled()
        assert not pair.client.migration._copies and not pair.client.migration._writers


# -- an old cluster that fails


@pytest.mark.gen_test
async def test_an_old_cluster_that_is_gone_is_a_miss_and_counted(both, troubles):
    async with both() as pair:
        await pair.client.set("here", 1)
        pair.old_server.kill()
        client = pair.client
        assert await client.get("k") is None and await client.get("here") == 1
        found = await client.get_multi(["k", "here"])
        assert found == {"here": 1} and found.errors == {}
        assert await client.set("k", 1) and await client.incr("k") == 2
        assert await client.set_multi({"a": 1, "b": 2}) == []
        assert await client.delete_multi(["a", "b"]) == []
        assert await client.delete("k") and await client.add("k", 1) and await client.gets("no")
        assert client.migration.failed >= 8 and client.migration.found == 0


@pytest.mark.gen_test
async def test_an_old_cluster_that_is_silent_leaves_time_for_the_new_one(both, troubles):
    async with both(request_timeout=2.0) as pair:
        await pair.old.get("k")
        pair.old_server.stop()
        begun = time.monotonic()
        calls = [pair.client.set("a", 1), pair.client.delete("b"), pair.client.incr("c")]
        reads = [pair.client.get("d"), pair.client.get_multi(["e"])]
        assert await asyncio.gather(*calls, *reads) == [True, False, None, None, {}]
        assert time.monotonic() - begun < 2.0 + 0.25
        short = await asyncio.gather(
            pair.client.set("a", 2, timeout=0.5), pair.client.get("e", timeout=0.5)
        )
        assert short == [True, None] and await pair.client.get("a") == 2
        assert pair.client.migration.failed >= 5
        pair.old_server.resume()


@pytest.mark.gen_test
async def test_a_new_cluster_that_fails_is_a_failure(both, troubles):
    async with both(request_timeout=0.3) as pair:
        await pair.old.set("k", "v")
        await pair.client.get("x")
        pair.new_server.stop()
        begun = time.monotonic()
        calls = [pair.client.get("k"), pair.client.set("w", 1), pair.client.get_multi(["k"])]
        outcomes = await asyncio.gather(*calls, return_exceptions=True)
        assert [type(one) for one in outcomes] == [Timeout] * 3
        assert time.monotonic() - begun < 0.3 + 0.25
        late = await asyncio.gather(pair.client.set("w", 1, timeout=0.1), return_exceptions=True)
        assert isinstance(late[0], Exception)
        pair.new_server.resume()


@pytest.mark.gen_test
async def test_calls_that_wait_for_a_write_of_their_key_end_by_their_deadline(both, troubles):
    async with both(request_timeout=0.4) as pair:
        await pair.client.get("x")
        pair.new_server.stop()
        calls = [pair.client.set("k", n) for n in range(5)] + [pair.client.get("k", timeout=0.1)]
        begun = time.monotonic()
        outcomes = await asyncio.gather(*calls, return_exceptions=True)
        assert all(isinstance(one, Timeout) for one in outcomes)
        assert time.monotonic() - begun < 0.4 + 0.25
        pair.new_server.resume()
        await until(lambda: not pair.client.migration._writers)
        assert not pair.client.migration._chains


@pytest.mark.gen_test
async def test_what_comes_over_to_the_gutter_stays_as_short_as_all_there(start_memcached, troubles):
    old, dead, gutter = start_memcached(), start_memcached(), start_memcached()
    options = {"on_dead": "gutter", "gutter": [gutter.address], "gutter_exptime": 20}
    async with (
        Client([old.address]) as first,
        Client([dead.address], migrate_from=first, **options) as client,
    ):
        await first.set_multi({"k": "v", "n": 1})
        dead.kill()
        with contextlib.suppress(MemcacheError):
            await client.get("x")
        assert await client.get("k") == "v" and await client.incr("n") == 2
        await until(lambda: not client.migration._chains)
        for key in (b"k", b"n"):
            assert 10 <= int(gutter.ask(b"mg %b t\r\n" % key)[4:]) <= 20


# -- callers that leave, and the end


@pytest.mark.parametrize("back", [False, True])
@pytest.mark.gen_test
async def test_a_server_that_leaves_before_its_turn_in_a_call_comes_is_still_the_clients(
    both, back, start_memcached
):
    """What is asked of it then ends with the client, or goes to the pool that it has by then."""
    other = start_memcached()
    with FaultProxy(both.old.address) as old, FaultProxy(both.new.address) as new:
        where = {"old_address": old.address, "address": new.address, "request_timeout": 600.0}
        async with both(**where) as pair:
            client = pair.client
            old.replies.hold = True
            write = client.set("k", 1)  # it is deleted on the old side first
            await until(lambda: pair.old._pools[0].pending == 1)
            (left,) = client._pools
            client.set_servers([other.address])
            if back:
                client.set_servers([new.address, other.address])
            new.replies.hold = True
            old.heal()
            taker = client._pools[0] if back else left
            assert (taker is left) is not back
            await until(lambda: taker.counts()["busy"] == 1)
            if back:
                assert not left.connections
                new.heal()
                assert await write is True
            else:
                assert left in client._cluster._retired
            client.close()
            assert not left.connections and not taker.connections
            if not back:
                with pytest.raises(ClientClosed):
                    await write


@pytest.mark.gen_test
async def test_a_caller_that_leaves_leaves_nothing(both):
    with FaultProxy(both.old.address) as proxy:
        async with both(old_address=proxy.address, request_timeout=5.0) as pair:
            await pair.old.set("k", "v")
            proxy.replies.hold = True
            calls = [
                pair.client.get("k"), pair.client.set("k", 1), pair.client.get("k", timeout=3.0),
                pair.client.get_multi(["k"]), pair.client.delete("k"), pair.client.incr("n"),
            ]  # fmt: skip
            await asyncio.sleep(0.02)
            for call in calls:
                call.cancel()
            await asyncio.gather(*calls, return_exceptions=True)
            await asyncio.sleep(0)
            migration = pair.client.migration
            assert not (migration._chains or migration._writers or migration._copies)
            proxy.heal()
            assert await pair.client.get("k") in ("v", None)
            await pair.settled()


@pytest.mark.gen_test
async def test_closing_ends_what_is_under_way(both):
    with FaultProxy(both.old.address) as proxy:
        async with both(old_address=proxy.address, request_timeout=5.0) as pair:
            await pair.old.set("k", "v")
            proxy.replies.hold = True
            calls = [pair.client.get("k"), pair.client.set("s", 1), pair.client.get("s")]
            many = pair.client.get_multi(["k"])
            await asyncio.sleep(0.02)
            pair.client.close()
            outcomes = await asyncio.gather(*calls, many, return_exceptions=True)
            assert [type(one) for one in outcomes] == [ClientClosed] * 4
            assert not pair.client.migration._chains
            with contextlib.suppress(ClientClosed):
                await pair.client.delete("k")
            proxy.heal()
            assert await pair.old.get("k") == "v"  # (a closed client deletes nothing)


def test_a_client_that_is_used_on_loop_after_loop(both):
    pair = both()

    async def use(n):
        await pair.old.set(f"k{n}", n)
        assert await pair.client.get(f"k{n}") == n and await pair.client.set("k", n)
        await pair.settled()
        pair.client.disconnect()
        pair.old.disconnect()

    asyncio.run(use(1))
    asyncio.run(use(2))
    pair.client.close()
    pair.old.close()


# -- bad input


def test_what_cannot_be_migrated_from_is_refused():
    old = Client(["a:1"])
    client = Client(["b:1"], migrate_from=old)
    with pytest.raises(InvalidRequest, match="migrate_from must be a Client that does not"):
        Client(["c:1"], migrate_from=client)
    with pytest.raises(TypeError, match="migrate_from must be a Client, not str"):
        Client(["c:1"], migrate_from="a:1")
    with pytest.raises(TypeError, match="migrate_exptime"):
        Client(["c:1"], migrate_from=old, migrate_exptime="soon")
    for passed in (-5, timedelta(seconds=-1)):
        with pytest.raises(InvalidRequest, match="migrate_exptime is negative"):
            Client(["c:1"], migrate_from=old, migrate_exptime=passed)
    with pytest.raises(InvalidRequest, match="migrate_exptime is given without migrate_from"):
        Client(["c:1"], migrate_exptime=5)
    assert repr(client.migration) in repr(client) and "Migration" not in repr(old)
    client.close()
    old.close()
    with pytest.raises(InvalidRequest, match="migrate_from is a client that is closed"):
        Client(["c:1"], migrate_from=old)


@pytest.mark.gen_test
async def test_bad_arguments_raise_at_the_call_and_nothing_is_sent(both):
    async with both() as pair:
        for call in (
            lambda: pair.client.get("a b"),
            lambda: pair.client.set("k", object()),
            lambda: pair.client.get("k", timeouts=1),
            lambda: pair.client.get_multi("k"),
        ):
            with pytest.raises((ValueError, TypeError)):
                call()
        assert not pair.client.migration._chains
