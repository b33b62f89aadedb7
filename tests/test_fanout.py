"""tornado_memcache.fanout: one call over several servers, of which some fail."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Iterator
from typing import Any

import pytest
from tornado.netutil import Resolver

from tornado_memcache import (
    Client,
    ClientClosed,
    ConnectionFailed,
    MemcacheError,
    SerializationError,
    ServerDead,
    ServerError,
    Timeout,
)
from tornado_memcache.fanout import Fanout
from tornado_memcache.outcomes import MultiResult

from .memcacheds import free_port

LOG = "tornado_memcache"
GOOD, BAD = 0, 1
KEYS = [(GOOD, "a"), (BAD, "b"), (GOOD, "c"), (BAD, "d")]
FOUND = {(GOOD, "a"): 1, (GOOD, "c"): 3}


@pytest.fixture
def dead() -> str:
    """The address of a server that is not there."""
    return f"127.0.0.1:{free_port()}"


@pytest.fixture
def mc(memcached: Any, dead: str, io_loop: Any) -> Iterator[Client]:
    """A client of two servers, the second of which is dead; the first holds `FOUND`."""
    client = Client([memcached.address, dead])
    io_loop.run_sync(lambda: client.set_multi(FOUND))
    yield client
    client.close()


def failing(expect_log: Any) -> None:
    """One server is logged once, however many calls fail."""
    expect_log(LOG, "taken for dead", times=1)


# -- one of two servers dead


@pytest.mark.gen_test
async def test_get_multi_gives_what_there_is_and_says_what_failed(mc, dead, expect_log):
    failing(expect_log)
    for _ in range(3):
        found = await mc.get_multi(KEYS)
        assert found == FOUND
        assert list(found.errors) == [dead]
        assert isinstance(found.errors[dead], (ConnectionFailed, ServerDead))
        assert found.errors[dead].server == dead
    found = await mc.gets_multi(KEYS)
    assert {key: value for key, (value, _) in found.items()} == FOUND
    assert list(found.errors) == [dead]


@pytest.mark.gen_test
async def test_only_the_servers_that_are_asked_count(mc, dead):
    found = await mc.get_multi([(GOOD, "a"), (GOOD, "miss")], strict=True)
    assert found == {(GOOD, "a"): 1} and found.errors == {}


@pytest.mark.gen_test
async def test_get_multi_strict_fails_as_a_whole(mc, dead, expect_log):
    failing(expect_log)
    for _ in range(2):
        with pytest.raises((ConnectionFailed, ServerDead)) as caught:
            await mc.get_multi(KEYS, strict=True)
        assert caught.value.server == dead
    outcome = asyncio.get_running_loop().create_future()
    mc.get_multi(KEYS, strict=True, callback=pytest.fail, fail_callback=outcome.set_result)
    assert isinstance(await outcome, ServerDead)


@pytest.mark.gen_test
async def test_if_every_server_that_was_asked_fails_so_does_the_call(mc, dead, expect_log):
    failing(expect_log)
    with pytest.raises(ConnectionFailed) as caught:
        await mc.get_multi([(BAD, "b"), (BAD, "d")])
    assert caught.value.server == dead
    with pytest.raises(ServerDead):
        await mc.gets_multi([(BAD, "b")])


@pytest.mark.gen_test
async def test_set_multi_and_delete_multi_name_the_keys_that_were_not_reached(mc, dead, expect_log):
    failing(expect_log)
    keys = [(BAD, "x"), (GOOD, "y"), (BAD, b"z")]
    failed = await mc.set_multi(dict.fromkeys(keys, 1))
    assert sorted(map(repr, failed)) == sorted(map(repr, [keys[0], keys[2]]))
    assert {id(key) for key in failed} == {id(keys[0]), id(keys[2])}
    assert list(failed.errors) == [dead]
    failed = await mc.delete_multi(keys)
    assert sorted(map(repr, failed)) == sorted(map(repr, [keys[0], keys[2]]))
    assert isinstance(failed.errors[dead], ServerDead)
    assert await mc.get_multi([(GOOD, "y")]) == {}


@pytest.mark.gen_test
async def test_set_multi_does_not_fail_even_if_no_server_is_there(dead, expect_log):
    failing(expect_log)
    async with Client([dead]) as mc:
        failed = await mc.set_multi({"a": 1, "b": 2})
        assert sorted(failed) == ["a", "b"]
        assert list(failed.errors) == [dead]


@pytest.mark.gen_test
async def test_what_is_asked_of_all_servers(mc, memcached, dead, expect_log):
    failing(expect_log)
    for outcome in (await mc.version(), await mc.stats(), await mc.flush_all()):
        assert list(outcome) == [memcached.address]
        assert list(outcome.errors) == [dead]
    assert await mc.version() == {memcached.address: "1.6.18"}


@pytest.mark.gen_test
async def test_all_dead(dead, expect_log):
    expect_log(LOG, "taken for dead", times=2)
    async with Client([dead, f"127.0.0.1:{free_port()}"]) as mc:
        for call in (mc.get_multi, mc.gets_multi):
            with pytest.raises(MemcacheError):
                await call(KEYS)
        for ask in (mc.version, mc.stats, mc.flush_all):
            with pytest.raises(ServerDead):
                await ask()
        assert sorted(await mc.delete_multi(KEYS)) == sorted(KEYS)


# -- deadlines


@pytest.mark.parametrize("how", [{"timeout": 0.1}, {}])
@pytest.mark.gen_test
async def test_a_deadline_ends_what_is_missing_and_what_came_is_the_outcome(
    memcached, silent, expect_log, how
):
    expect_log(LOG, f"{silent.address} fails: .*timed out", times=1)
    if not how:  # (only the third silence in a row makes a server dead)
        expect_log(LOG, f"{silent.address} is taken for dead", times=1)
    settings = {} if how else {"request_timeout": 0.1}
    async with Client([memcached.address, silent.address], **settings) as mc:
        began = time.monotonic()
        assert await mc.set_multi(FOUND, **how) == []
        found = await mc.get_multi(KEYS, **how)
        assert found == FOUND
        assert isinstance(found.errors[silent.address], Timeout)
        assert found.errors[silent.address].server == silent.address
        failed = await mc.set_multi(dict.fromkeys(KEYS, 1), **how)
        assert sorted(failed) == [(BAD, "b"), (BAD, "d")]
        assert isinstance(failed.errors[silent.address], Timeout)
        version = await mc.version(**how)
        assert list(version) == [memcached.address]
        assert 0.3 <= time.monotonic() - began < 0.6
        with pytest.raises(Timeout if how else ServerDead):
            await mc.get_multi(KEYS, strict=True, **how)


@pytest.mark.gen_test
async def test_a_write_that_timed_out_may_have_been_applied(memcached, silent, expect_log):
    expect_log(LOG, "fails: (set|delete)", times=1)
    async with Client([silent.address]) as mc:
        failed = await mc.set_multi({"a": 1, "b": 2}, timeout=0.05)
        assert sorted(failed) == ["a", "b"]
        assert failed.errors[silent.address].maybe_applied


@pytest.mark.gen_test
async def test_an_own_deadline_that_is_longer(memcached, expect_log):
    async with Client([memcached.address], request_timeout=0.2) as mc:
        await mc.set("a", 1)
        memcached.stop()
        asyncio.get_running_loop().call_later(0.1, memcached.resume)
        assert await mc.get_multi(["a"], timeout=3) == {"a": 1}


# -- cancelling


@pytest.mark.parametrize("how", [{}, {"timeout": 5}])
@pytest.mark.gen_test
async def test_cancelling_ends_all_parts_and_disturbs_nobody(memcached, start_memcached, how):
    second = start_memcached()
    async with Client([memcached.address, second.address]) as mc:
        await mc.set_multi(dict.fromkeys(KEYS, "v"))
        for _ in range(3):
            memcached.stop()
            second.stop()
            call, other = mc.get_multi(KEYS, **how), mc.get((BAD, "b"))
            task = asyncio.ensure_future(call)
            await asyncio.sleep(0)
            assert task.cancel()
            memcached.resume()
            second.resume()
            with pytest.raises(asyncio.CancelledError):
                await task
            assert await other == "v"
            assert await mc.get_multi(KEYS) == dict.fromkeys(KEYS, "v")
        assert all(pool.losses == 0 for pool in mc._pools)
        assert all(pool.pending == 0 for pool in mc._pools)


@pytest.mark.gen_test
async def test_writes_that_were_cancelled_before_they_left_are_never_sent(memcached):
    async with Client([memcached.address]) as mc:
        call = mc.set_multi({"a": 1, "b": 2})
        call.cancel()
        assert await mc.get_multi(["a", "b"]) == {}


class NeverResolves(Resolver):
    def initialize(self, *args: Any) -> None:
        self.asked = 0

    def resolve(self, *args: Any, **kwargs: Any) -> Any:
        self.asked += 1
        return asyncio.get_running_loop().create_future()


@pytest.mark.parametrize("how", [{}, {"timeout": 5}])
@pytest.mark.parametrize("command", ["get", "get_multi", "set_multi"])
@pytest.mark.gen_test
async def test_nobody_connects_for_nobody(command, how):
    resolver = NeverResolves()
    async with Client(["a.invalid", "b.invalid"], resolver=resolver) as mc:
        asked = {"get": (GOOD, "k"), "get_multi": KEYS, "set_multi": dict.fromkeys(KEYS, 1)}
        call = getattr(mc, command)(asked[command], **how)
        await asyncio.sleep(0.01)
        assert resolver.asked
        call.cancel()
        await asyncio.sleep(0.01)
        for pool in mc._pools:
            counts = pool.counts()
            assert (counts["connecting"], counts["waiting"], counts["pending"]) == (0, 0, 0)


@pytest.mark.gen_test
async def test_closing_ends_all_parts(memcached, silent):
    async with Client([memcached.address, silent.address]) as mc:
        await mc.set_multi(FOUND)
        call = mc.get_multi(KEYS)
        while silent.connections == 0 or b"get" not in silent.received:
            await asyncio.sleep(0.005)
        mc.close()
        found = await call
        assert found == FOUND
        assert isinstance(found.errors[silent.address], ClientClosed)


# -- the parts, without a server


class Waiting:
    own_deadline = None

    def __init__(self) -> None:
        self.outcome: list[Any] = []

    def done(self) -> bool:
        return bool(self.outcome)

    def set_result(self, result: Any) -> None:
        self.outcome.append(result)

    def set_exception(self, error: Any) -> None:
        self.outcome.append(error)

    def exception(self) -> None:
        return None


def fanned(servers: str, **options: Any) -> tuple[Waiting, Any, list[Any], list[Any]]:
    waiter, result, ended = Waiting(), MultiResult(), []
    fanout = Fanout(waiter, result, **{"whole": True, **options})
    parts = [fanout.part(name, lambda *end: ended.append(end)) for name in servers]
    return waiter, result, parts, ended


def test_the_outcome_comes_with_the_last_part():
    waiter, result, parts, ended = fanned("ab")
    parts[1].set_result("second")
    assert not waiter.done() and parts[1].done() and not parts[0].done()
    parts[0].set_result("first")
    assert waiter.outcome == [result]
    assert ended == [("second", True), ("first", True)]


def test_the_first_error_of_each_server_is_kept():
    waiter, result, parts, ended = fanned("aab")
    errors = [ServerError("1"), ServerError("2")]
    parts[0].set_exception(errors[0])
    parts[1].set_exception(errors[1])
    parts[2].set_result("good")
    assert waiter.outcome == [result]
    assert result.errors == {"a": errors[0]}
    assert ended == [(errors[0], False), (errors[1], False), ("good", True)]


@pytest.mark.parametrize("options", [{}, {"strict": True}])
def test_the_failure_as_a_whole_is_an_object_of_its_own(options):
    waiter, result, parts, _ = fanned("ab", **options)
    error = ServerError("1", server="a")
    parts[0].set_exception(error)
    parts[1].set_exception(ServerError("2"))
    (outcome,) = waiter.outcome
    assert outcome is not error and str(outcome) == "1" and outcome.server == "a"


def test_strict_fails_with_one():
    waiter, _, parts, _ = fanned("ab", strict=True)
    parts[0].set_exception(ServerError("1"))
    parts[1].set_result("good")
    assert isinstance(waiter.outcome[0], ServerError)


def test_neither_whole_nor_strict_never_fails():
    waiter, result, parts, _ = fanned("ab", whole=False)
    for part in parts:
        part.set_exception(ServerError("1"))
    assert waiter.outcome == [result]


@pytest.mark.parametrize("strict", [False, True])
def test_a_part_that_cannot_be_taken_is_a_failure(strict):
    waiter, result = Waiting(), MultiResult()
    fanout = Fanout(waiter, result, whole=True, strict=strict)

    def unreadable(reply: Any, good: bool) -> None:
        if good:
            raise SerializationError("unreadable")

    fanout.part("a", unreadable).set_result("reply")
    assert isinstance(result.errors["a"], SerializationError)
    if strict:
        assert isinstance(waiter.outcome[0], SerializationError)
    else:
        assert waiter.done()


def test_a_caller_that_has_ended_is_left_alone():
    waiter, _, parts, _ = fanned("ab")
    waiter.set_result("cancelled")
    assert all(part.done() for part in parts)
    parts[0].set_result("late")
    parts[1].set_result("late")
    assert waiter.outcome == ["cancelled"]
