"""tornado_memcache.stampede: one computes what many want, on real memcacheds.

Two clients in one process are to each other as two processes are: they share
nothing but the server. `tests/test_stampede_fleet.py` has real ones.
"""

from __future__ import annotations

import asyncio
import contextvars
import functools
import os
import time
from datetime import datetime, timedelta
from typing import Any

import pytest

from tornado_memcache import (
    Client,
    ClientClosed,
    InvalidKey,
    InvalidRequest,
    ItemTooLarge,
    NotSerializable,
    SerializationError,
    ServerError,
    Timeout,
    ValueTooLarge,
    boundary,
)
from tornado_memcache.pickles import SignedPickle

from .asked import PATIENCE, STYLES, Asked, until
from .old_server import OldServer
from .scripted import Expect, Scripted, Send

LOG = "tornado_memcache"
#: How much later than its moment anything may come on a loaded machine, in seconds.
SLACK = 5.0


class Maker:
    """A factory that makes another value each time, when it is let go."""

    def __init__(self, key: str = "k", *, held: bool = False) -> None:
        self.key = key
        self.calls = self.cancelled = 0
        self.go = asyncio.Event()
        #: What the next values are instead: an exception is raised.
        self.instead: list[Any] = []
        if not held:
            self.go.set()

    async def __call__(self) -> Any:
        self.calls += 1
        value = f"{self.key} {self.calls}"
        try:
            await self.go.wait()
        except asyncio.CancelledError:
            self.cancelled += 1
            raise
        if self.instead:
            value = self.instead.pop(0)
        if isinstance(value, Exception):
            raise value
        return value


def words(server: Any, key: str = "k", flags: str = "f c t s") -> dict[str, str]:
    """Returns what ``mg`` tells of the item, as another client would see it; {} on a miss."""
    answer = server.ask(f"mg {key} {flags}\r\n".encode()).decode().split()
    return {} if answer[0] == "EN" else {word[0]: word[1:] for word in answer[1:]}


def win(server: Any, key: str = "k", flags: str = "v c t N60") -> str:
    """Wins the lease as a process that is never heard of again; returns its cas unique."""
    answer = server.ask(f"mg {key} {flags}\r\n".encode(), b"\r\n").decode()
    assert " W" in answer.split("\r\n")[0], answer
    return next(word[1:] for word in answer.split("\r\n")[0].split() if word[0] == "c")


@pytest.fixture
def mc(memcached, io_loop):
    client = Client([memcached.address], max_connections=1)
    yield client
    client.close()


@pytest.fixture
def other(memcached, io_loop):
    """A client of the same server, as another process has it."""
    client = Client([memcached.address], max_connections=1)
    yield client
    client.close()


# -- a miss is computed and stored


@pytest.mark.parametrize(
    ("exptime", "stale", "early", "left"),
    [
        (0, None, None, -1),
        (100, None, None, 100),
        (100, 50, None, 150),
        (100, None, 20, 100),
        (timedelta(seconds=99.5), timedelta(seconds=50), timedelta(seconds=1), 150),
        (40 * 86400, 20, None, 40 * 86400 + 20),
    ],
)
@pytest.mark.gen_test
async def test_a_miss_is_computed_and_kept_for_its_time(mc, memcached, exptime, stale, early, left):
    make = Maker()
    for _ in range(3):
        assert await mc.get_or_set("k", make, exptime, stale=stale, early=early) == "k 1"
    assert make.calls == 1 and await mc.get("k") == "k 1"
    told = int(words(memcached)["t"])
    assert told == left if left < 0 else left - 10 <= told <= left + 1
    assert repr(mc.computations) == (
        "<Computations computed=1 stored=1 waited=0 stale=0, 0 under way>"
    )


@pytest.mark.gen_test
async def test_what_is_there_is_served_and_no_factory_runs(mc):
    make = Maker()
    for value in (b"bytes", "str", 7, b"", ""):
        await mc.set("k", value)
        assert await mc.get_or_set("k", make, 60, stale=5, early=5) == value
    assert not make.calls


@pytest.mark.gen_test
async def test_all_who_want_a_key_at_once_get_what_one_of_them_computes(mc):
    make = Maker(held=True)
    calls = [mc.get_or_set("k", make, 60) for _ in range(100)]
    await until(lambda: make.calls)
    await mc.get("k")  # (by now all have read)
    more = [mc.get_or_set("k", make, 60) for _ in range(100)]
    await until(lambda: mc.computations.waited == 199)
    make.go.set()
    assert await asyncio.gather(*calls, *more) == ["k 1"] * 200
    assert make.calls == 1 and mc.computations.computed == 1


@pytest.mark.gen_test
async def test_each_key_gets_its_own_value_whatever_runs_beside_it(mc):
    makers = [Maker(f"key{n}", held=True) for n in range(20)]
    calls = [mc.get_or_set(make.key, make, 60) for make in makers for _ in range(5)]
    await until(lambda: all(make.calls for make in makers))
    for make in reversed(makers):
        make.go.set()
    assert await asyncio.gather(*calls) == [f"key{n} 1" for n in range(20) for _ in range(5)]


@pytest.mark.parametrize("style", STYLES)
@pytest.mark.gen_test
async def test_both_styles_have_one_outcome(mc, style):
    make = Maker()
    for _ in range(2):
        call = Asked(style, mc.get_or_set, "k", make, 60)
        assert await call.outcome() == "k 1"
    make.instead = [LookupError("no such row")]
    call = Asked(style, mc.get_or_set, "other", make, 60)
    assert str(await call.failure(LookupError)) == "no such row"


@pytest.mark.gen_test
async def test_a_factory_may_be_plain_a_coroutine_or_take_a_callback(mc):
    await mc.set("source", "far")

    async def coroutine():
        return await mc.get("source")

    def plain():
        return "far"

    def by_callback(callback):
        mc.get("source", callback=callback)

    async def coroutine_by_callback(callback):
        callback(await mc.get("source"))

    factories = [
        coroutine,
        plain,
        lambda: coroutine(),
        by_callback,
        coroutine_by_callback,
        functools.partial(mc.get, "source"),
    ]
    for index, factory in enumerate(factories):
        key = f"k{index}"
        assert await mc.get_or_set(key, factory, 60) == "far"
        assert await mc.get(key) == "far"


@pytest.mark.gen_test
async def test_route_and_prefix_are_as_with_any_command(start_memcached):
    servers = [start_memcached(), start_memcached()]
    async with Client([server.address for server in servers], key_prefix="app:") as mc:
        for route in (0, 1):
            assert await mc.get_or_set((route, "k"), lambda route=route: route, 60) == route
            assert words(servers[route], "app:k") and await mc.get((route, "k")) == route
            assert await mc.invalidate((route, "k"))
            assert not words(servers[route], "app:k")


@pytest.mark.gen_test
async def test_any_value_that_the_serializer_takes_is_a_value(memcached):
    async with Client(
        [memcached.address], serializer=SignedPickle([b"a secret of sixteen bytes or more"])
    ) as mc:
        make = Maker()
        make.instead = [None]
        for _ in range(2):
            assert await mc.get_or_set("k", make, 60) is None
        assert make.calls == 1


# -- one in the fleet


@pytest.mark.gen_test
async def test_another_process_waits_for_the_one_that_computes(mc, other):
    first, second = Maker("first", held=True), Maker("second")
    leading = mc.get_or_set("k", first, 60)
    await until(lambda: first.calls)
    waiting = [other.get_or_set("k", second, 60) for _ in range(50)]
    await until(lambda: other.computations.waited == 49)
    first.go.set()
    assert await asyncio.gather(leading, *waiting) == ["first 1"] * 51
    assert not second.calls


@pytest.mark.gen_test
async def test_when_the_one_who_computes_fails_another_process_takes_its_turn(mc, other):
    first, second = Maker("first", held=True), Maker("second")
    first.instead = [LookupError("no such row")]
    leading = Asked("awaited", mc.get_or_set, "k", first, 60, lock_timeout=PATIENCE)
    await until(lambda: first.calls)
    waiting = Asked("awaited", other.get_or_set, "k", second, 60, lock_timeout=PATIENCE)
    await asyncio.sleep(0.05)
    assert not waiting.outcomes
    first.go.set()
    await leading.failure(LookupError)
    assert await waiting.outcome() == "second 1"
    assert waiting.took < PATIENCE / 2


@pytest.mark.parametrize("lock_timeout", [0.3, 1])
@pytest.mark.gen_test
async def test_the_next_caller_computes_when_the_one_before_has_died(mc, memcached, lock_timeout):
    win(memcached)
    make = Maker()
    call = Asked("awaited", mc.get_or_set, "k", make, 60, lock_timeout=lock_timeout)
    assert await call.outcome() == "k 1"
    assert lock_timeout <= call.took < lock_timeout + SLACK
    assert words(memcached)["s"] == "3"


@pytest.mark.gen_test
async def test_of_many_who_wait_for_one_that_has_died_one_computes(mc, other, memcached):
    win(memcached)
    make = Maker()
    calls = [
        client.get_or_set("k", make, 60, lock_timeout=0.3)
        for client in (mc, other)
        for _ in range(20)
    ]
    assert await asyncio.gather(*calls) == ["k 1"] * 40
    assert make.calls == 1


# -- stale and early


@pytest.mark.gen_test
async def test_a_value_is_computed_early_by_one_while_the_others_are_served(mc, other, memcached):
    memcached.ask(b"ms k 3 T50 F16\r\nold\r\n")
    make = Maker(held=True)
    how: Any = {"stale": 10, "early": 100}
    leading = Asked("awaited", mc.get_or_set, "k", make, 1000, **how)
    await until(lambda: make.calls)
    for client in (mc, other):
        for _ in range(20):
            assert await client.get_or_set("k", make, 1000, **how) == "old"
    assert not leading.outcomes and mc.computations.stale == 20
    make.go.set()
    assert await leading.outcome() == "k 1"
    assert await other.get_or_set("k", make, 1000, **how) == "k 1"
    assert make.calls == 1


@pytest.mark.gen_test
async def test_a_value_that_is_not_near_its_end_is_not_computed(mc, memcached):
    memcached.ask(b"ms k 3 T500 F16\r\nold\r\n")
    make = Maker()
    assert await mc.get_or_set("k", make, 1000, stale=10, early=100) == "old"
    assert not make.calls


@pytest.mark.gen_test
async def test_what_has_expired_is_served_while_it_is_stale(mc, memcached):
    make = Maker(held=True)
    memcached.ask(b"ms k 3 T9 F16\r\nold\r\n")  # (made with exptime=1, a second ago)
    leading = mc.get_or_set("k", make, 1, stale=10)
    await until(lambda: make.calls)
    assert await mc.get_or_set("k", make, 1, stale=10) == "old"
    make.go.set()
    assert await leading == "k 1"
    assert await mc.get_or_set("k", make, 60) == "k 1"


@pytest.mark.gen_test
async def test_a_factory_that_fails_leaves_the_stale_value_to_the_others(mc, other, memcached):
    memcached.ask(b"ms k 3 T50 F16\r\nold\r\n")
    how: Any = {"stale": 10, "early": 100}
    make = Maker(held=True)
    make.instead = [LookupError("no such row")]
    leading = Asked("awaited", mc.get_or_set, "k", make, 1000, **how)
    await until(lambda: make.calls)
    make.go.set()
    await leading.failure(LookupError)
    assert await mc.get("k") == "old"  # (classic readers too)
    again = Maker("again", held=True)
    leading = Asked("awaited", other.get_or_set, "k", again, 1000, **how)
    await until(lambda: again.calls)
    assert await mc.get_or_set("k", make, 1000, **how) == "old"
    again.go.set()
    assert await leading.outcome() == "again 1"


@pytest.mark.gen_test
async def test_a_stale_value_whose_computer_died_is_computed_after_lock_timeout(mc, memcached):
    memcached.ask(b"ms k 3 T50 F16\r\nold\r\n")
    win(memcached, flags="c t N60 R100")
    make, begun = Maker(), time.monotonic()
    how: Any = {"stale": 10, "early": 100, "lock_timeout": 0.3}
    while (value := await mc.get_or_set("k", make, 1000, **how)) == "old":
        assert time.monotonic() < begun + 0.3 + SLACK
        await asyncio.sleep(0.01)
    assert value == "k 1" and make.calls == 1
    assert time.monotonic() - begun >= 0.3


@pytest.mark.gen_test
async def test_one_who_recomputes_in_time_is_left_alone(mc, memcached):
    """Each of them has another lease: none is taken for dead, however many follow."""
    make, seen = Maker(), set()
    how: Any = {"early": 100, "lock_timeout": 0.2}
    begun = time.monotonic()
    while time.monotonic() < begun + 0.5 or len(seen) < 4:
        memcached.ask(b"ms k 3 T50 F16\r\nold\r\n")
        win(memcached, flags="c t N60 R100")
        assert await mc.get_or_set("k", make, 1000, **how) == "old"
        seen.add(words(memcached)["c"])
    assert not make.calls


@pytest.mark.gen_test
async def test_an_empty_value_that_is_computed_anew_is_waited_for(mc, memcached):
    memcached.ask(b"ms k 0 T50\r\n\r\n")
    make = Maker(held=True)
    calls = [mc.get_or_set("k", make, 1000, early=100) for _ in range(2)]
    await until(lambda: make.calls and mc.computations.waited)
    make.go.set()
    assert await asyncio.gather(*calls) == ["k 1", "k 1"]


# -- what was changed meanwhile


@pytest.mark.parametrize("change", ["set", "delete", "invalidate", "mark"])
@pytest.mark.gen_test
async def test_what_was_computed_before_a_change_is_not_stored(mc, other, change):
    make = Maker(held=True)
    call = mc.get_or_set("k", make, 60)
    await until(lambda: make.calls)
    if change == "set":
        await other.set("k", "newer")
    elif change == "mark":
        assert await other.invalidate("k", 30)
    else:
        assert await getattr(other, change)("k")
    make.go.set()
    assert await call == "k 1"
    assert await mc.get("k") == {"set": "newer", "mark": b""}.get(change)
    again = await other.get_or_set("k", Maker("again"), 60)
    assert again == ("newer" if change == "set" else "again 1")


@pytest.mark.parametrize("change", ["delete", "invalidate", "mark"])
@pytest.mark.gen_test
async def test_who_asks_after_a_change_does_not_get_what_was_begun_before(mc, change):
    before, after = Maker("before", held=True), Maker("after")
    first = mc.get_or_set("k", before, 60)
    await until(lambda: before.calls)
    assert await (mc.invalidate("k", 30) if change == "mark" else getattr(mc, change)("k"))
    assert await mc.get_or_set("k", after, 60) == "after 1"
    before.go.set()
    assert await first == "before 1"
    assert await mc.get("k") == "after 1"


# -- invalidate


@pytest.mark.parametrize("stale_for", [30, timedelta(seconds=29.5)])
@pytest.mark.gen_test
async def test_an_invalidated_value_is_served_while_one_computes(mc, other, memcached, stale_for):
    await mc.get_or_set("k", Maker("old"), 1000)
    assert await mc.invalidate("k", stale_for=stale_for) is True
    make = Maker("new", held=True)
    leading = mc.get_or_set("k", make, 1000)
    await until(lambda: make.calls)
    assert 20 <= int(words(memcached)["t"]) <= 31
    assert await other.get_or_set("k", make, 1000) == "old 1"
    make.go.set()
    assert await leading == await other.get_or_set("k", make, 1000) == "new 1"
    assert make.calls == 1


@pytest.mark.parametrize("style", STYLES)
@pytest.mark.gen_test
async def test_invalidate_tells_whether_the_key_was_there(mc, style):
    for stale_for in (None, 30):
        assert await Asked(style, mc.invalidate, "k", stale_for).outcome() is False
        await mc.set("k", "v")
        assert await Asked(style, mc.invalidate, "k", stale_for).outcome() is True
    await mc.set("k", "v")
    assert await mc.invalidate("k") and await mc.get("k") is None


# -- factories that fail


@pytest.mark.gen_test
async def test_a_failure_is_of_all_who_wait_in_this_process(mc):
    make = Maker(held=True)
    make.instead = [LookupError("no such row")]
    calls = [Asked(style, mc.get_or_set, "k", make, 60) for style in STYLES * 5]
    await until(lambda: mc.computations.waited == 9)
    make.go.set()
    for call in calls:
        await call.failure(LookupError)
    # The very next call begins anew.
    assert await mc.get_or_set("k", make, 60, lock_timeout=1000) == "k 2"


@pytest.mark.gen_test
async def test_a_failed_cache_call_of_a_factory_is_its_own_failure_for_each(mc):
    make = Maker(held=True)
    make.instead = [Timeout("of another cache", server="elsewhere:1")]
    calls = [Asked("awaited", mc.get_or_set, "k", make, 60) for _ in range(2)]
    await until(lambda: mc.computations.waited == 1)
    make.go.set()
    first, second = [await call.failure(Timeout) for call in calls]
    assert first is not second and first.server == second.server == "elsewhere:1"


@pytest.mark.gen_test
async def test_without_fail_callback_a_factorys_exception_goes_where_a_callbacks_goes(
    mc, expect_log
):
    make = Maker()
    make.instead = [LookupError("one"), LookupError("two"), LookupError("three")]
    caught: list[Any] = []
    with boundary(caught.append, catch=LookupError):
        mc.get_or_set("k", make, 60, callback=caught.append)
        await until(lambda: caught)
        unawaited = mc.get_or_set("k", make, 60)
        await until(lambda: len(caught) == 2)
    assert [str(error) for error in caught] == ["one", "two"] and unawaited.done()
    told = expect_log("tornado.application", "Exception in callback", times=1)
    with boundary(caught.append):  # (that takes the failures of calls, and this is none)
        mc.get_or_set("k", make, 60, callback=caught.append)
        await until(lambda: told.count)
    assert len(caught) == 2


@pytest.mark.parametrize("what", ["boundary", "fail_callback", "log"])
@pytest.mark.gen_test
async def test_a_value_that_cannot_be_stored_fails_as_a_call_does(mc, expect_log, what):
    failures: list[Any] = []
    make = Maker()
    make.instead = [object()]
    if what == "boundary":
        with boundary(failures.append):
            mc.get_or_set("k", make, 60, callback=failures.append)
    elif what == "fail_callback":
        mc.get_or_set("k", make, 60, fail_callback=failures.append)
    else:
        expect_log("tornado.application", "without fail_callback or boundary failed", times=1)
        mc.get_or_set("k", make, 60, callback=failures.append)
        await until(lambda: not mc.computations._all and make.calls)
    if what != "log":
        await until(lambda: failures)
        assert [type(failure) for failure in failures] == [NotSerializable]


@pytest.mark.parametrize(
    ("value", "kind"),
    [(None, NotSerializable), (b"x" * 3_000_000, ValueTooLarge), (b"x" * 1_500_000, ItemTooLarge)],
)
@pytest.mark.gen_test
async def test_a_bad_value_is_a_failure_and_the_next_one_is_computed(memcached, value, kind):
    async with Client([memcached.address], max_value_size=2_000_000) as mc:
        make = Maker()
        make.instead = [value]
        await Asked("awaited", mc.get_or_set, "k", make, 60).failure(kind)
        assert await mc.get_or_set("k", make, 60, lock_timeout=1000) == "k 2"


@pytest.mark.gen_test
async def test_a_value_that_cannot_be_read_is_told_and_not_computed(mc, memcached):
    memcached.ask(b"ms k 3 T50 F1\r\nold\r\n")
    make = Maker()
    await Asked("awaited", mc.get_or_set, "k", make, 60).failure(SerializationError)
    assert not make.calls


@pytest.mark.gen_test
async def test_a_reply_for_another_key_is_nobodys_value(troubles):
    """As of a server, or a proxy, that is out of step."""
    script = [
        Expect(b"version\r\n"),
        Send(b"VERSION 1.6.18\r\n"),
        Expect(b"mg alice k v f c t N6\r\n"),
        Send(b"VA 3 kbob f16 c1 t60\r\nbob\r\n"),
    ]
    async with Scripted(script, []) as server, Client([server.address]) as mc:
        assert await mc.get_or_set("alice", lambda: "alice", 60) == "alice"
        assert mc.computations.stored == 0


@pytest.mark.gen_test
async def test_a_factory_that_is_cancelled_by_itself_fails_and_cancels_nobody(mc):
    async def factory():
        raise asyncio.CancelledError

    error = await Asked("awaited", mc.get_or_set, "k", factory, 60).failure(RuntimeError)
    assert "get_or_set 'k': the factory was cancelled" in str(error)
    assert await mc.get_or_set("k", lambda: "v", 60, lock_timeout=1000) == "v"


# -- callers that leave


@pytest.mark.parametrize("held", ["computing", "waiting"])
@pytest.mark.gen_test
async def test_each_caller_has_a_timeout_of_his_own(mc, memcached, held):
    if held == "waiting":
        win(memcached)
    make = Maker(held=True)
    patient = Asked("awaited", mc.get_or_set, "k", make, 60, lock_timeout=1.5)
    hasty = Asked("callback", mc.get_or_set, "k", make, 60, lock_timeout=1.5, timeout=0.25)
    error = await hasty.failure(Timeout)
    assert error.phase == held and error.server == memcached.address
    assert str(error).startswith("get_or_set 'k': timed out")
    assert hasty.took >= 0.25
    make.go.set()
    assert await patient.outcome() == "k 1"


@pytest.mark.gen_test
async def test_a_budget_ends_the_call_and_no_usual_length_does(memcached):
    async with Client([memcached.address], request_timeout=0.1) as mc:
        make, failures = Maker(held=True), []
        with boundary(failures.append, timeout=0.4):
            begun = time.monotonic()
            mc.get_or_set("k", make, 60, callback=failures.append)
        await until(lambda: failures)
        assert time.monotonic() - begun >= 0.4
        assert [type(failure) for failure in failures] == [Timeout]
        make.go.set()
        assert await mc.get_or_set("k", make, 60, lock_timeout=1000) == "k 2"


@pytest.mark.gen_test
async def test_a_call_whose_budget_is_spent_asks_nothing(mc, silent):
    async with Client([silent.address]) as quiet:
        failures: list[Any] = []
        with boundary(failures.append, timeout=0.001):
            time.sleep(0.002)
            quiet.get_or_set("k", Maker(), 60, callback=failures.append)
        await until(lambda: failures)
        assert failures[0].asked == "get_or_set 'k'" and not silent.connections


@pytest.mark.parametrize("how", ["cancel", "timeout", "boundary"])
@pytest.mark.gen_test
async def test_when_the_last_caller_has_left_the_factory_is_cancelled_and_the_lease_given_back(
    mc, other, how
):
    make = Maker(held=True)
    with boundary(lambda error: None) as entry:
        timeout = 1.0 if how == "timeout" else None
        first = Asked("awaited", mc.get_or_set, "k", make, 60, timeout=timeout)
        second = Asked("awaited", mc.get_or_set, "k", make, 60)
        await until(lambda: mc.computations.waited and make.calls)
        second.future.cancel()
        await asyncio.sleep(0.01)
        assert not make.cancelled or first.outcomes  # (one is left)
        if how == "cancel":
            first.future.cancel()
        elif how == "boundary":
            entry.cancel()  # (which ends what is begun in here, and must not end the release)
        await until(lambda: make.cancelled)
    again = Maker("again")
    assert await other.get_or_set("k", again, 60, lock_timeout=1000) == "again 1"
    assert make.calls == 1 and len(first.outcomes) == len(second.outcomes) == 1


@pytest.mark.parametrize("how", ["cancel", "boundary"])
@pytest.mark.gen_test
async def test_a_caller_that_leaves_before_his_reading_has_come_holds_nothing(mc, other, how):
    await mc.meta_get("warm")
    make = Maker()
    with boundary(lambda error: None) as entry:
        call = mc.get_or_set("k", make, 60)
        if how == "cancel":
            call.cancel()
        else:
            entry.cancel()
    assert call.cancelled() and await mc.get("k") in (None, b"")  # (that reading has come before)
    await until(lambda: not mc.computations._all)
    assert await other.get_or_set("k", make, 60, lock_timeout=1000) == "k 1"
    assert make.calls == 1


@pytest.mark.gen_test
async def test_a_caller_that_leaves_in_the_tick_in_which_he_has_won_holds_nothing(
    mc, other, monkeypatch
):
    take = mc.computations.take

    def take_and_leave(*given):
        take(*given)
        call.cancel()

    monkeypatch.setattr(mc.computations, "take", take_and_leave)
    make = Maker()
    call = mc.get_or_set("k", make, 60)
    await until(call.cancelled)
    assert not mc.computations._all
    assert await other.get_or_set("k", make, 60, lock_timeout=1000) == "k 1"


@pytest.mark.gen_test
async def test_a_factory_that_will_not_be_cancelled_stores_nothing(mc, other):
    go, stubborn = asyncio.Event(), []

    async def make():
        try:
            await go.wait()
        except asyncio.CancelledError:
            stubborn.append(True)
        return "nobody wants it"

    call = mc.get_or_set("k", make, 60)
    await until(lambda: mc.computations.computed)
    await asyncio.sleep(0)
    call.cancel()
    assert await other.get_or_set("k", lambda: "wanted", 60, lock_timeout=1000) == "wanted"
    await until(lambda: stubborn)
    assert await mc.get("k") == "wanted" and mc.computations.stored == 0


@pytest.mark.gen_test
async def test_a_caller_that_leaves_while_the_value_is_stored_holds_nothing(
    start_memcached, troubles
):
    server = start_memcached()
    async with Client([server.address], request_timeout=60) as mc:
        make = Maker(held=True)
        call = mc.get_or_set("k", make, 60)
        await until(lambda: make.calls)
        server.stop()
        make.go.set()
        (pool,) = mc._pools
        await until(lambda: pool.pending)
        call.cancel()
        server.resume()
        value = await mc.get_or_set("k", Maker("again"), 60, lock_timeout=1000)
        assert value in ("k 1", "again 1") and not mc.computations._all


@pytest.mark.gen_test
async def test_who_waits_for_another_process_stops_when_nobody_wants_it(mc, memcached):
    win(memcached)
    call = mc.get_or_set("k", Maker(), 60)
    await until(lambda: mc.computations._all)
    call.cancel()
    assert not mc.computations._all
    before = int(memcached.stats()["cmd_get"])
    await asyncio.sleep(0.3)
    assert int(memcached.stats()["cmd_get"]) == before


@pytest.mark.parametrize("what", ["reading", "waiting", "computing", "by callback"])
@pytest.mark.gen_test
async def test_a_closed_client_ends_whatever_was_begun(memcached, other, what):
    mc = Client([memcached.address])
    await mc.get("warm")
    if what == "waiting":
        win(memcached)
    make = Maker(held=True)
    kept: list[Any] = []
    factory = kept.append if what == "by callback" else make
    if what == "by callback":

        def factory(callback):
            kept.append(callback)

    calls = [Asked(style, mc.get_or_set, "k", factory, 60) for style in STYLES]
    if what != "reading":
        await until(lambda: mc.computations.waited == 1)
    if what in ("computing", "by callback"):
        await until(lambda: make.calls or kept)
    mc.close()
    for call in calls:
        await call.failure(ClientClosed)
    for callback in kept:
        callback("late")  # (and nobody minds)
    assert make.calls == make.cancelled
    await Asked("awaited", mc.get_or_set, "k", make, 60).failure(ClientClosed)
    again = Asked("awaited", other.get_or_set, "k", Maker("again"), 60, lock_timeout=0.5)
    assert await again.outcome() == "again 1"
    assert again.took < 0.5 + SLACK


def test_a_client_is_used_on_another_loop_after_its_own_was_closed(memcached, ledger, expect_log):
    # What is left on the loop that ends; a lease that is given back then may get no answer.
    ledger.excuse("task", "handler", "timer")
    expect_log(LOG, "1 memcache calls were lost with their event loop", times=range(2))
    mc = Client([memcached.address])

    async def use(number: int) -> Any:
        return await mc.get_or_set(f"k{number}", lambda: number, 60)

    assert asyncio.run(use(1)) == 1

    async def leave() -> None:
        mc.get_or_set("left", Maker(held=True), 60)
        await until(lambda: mc.computations.computed == 2)

    asyncio.run(leave())
    assert asyncio.run(use(2)) == 2
    mc.close()


def test_a_child_of_fork_ends_nothing_of_its_parents(memcached):
    async def main() -> None:
        mc = Client([memcached.address])
        told: list[Any] = []
        make = Maker(held=True)
        mc.get_or_set("k", make, 60, callback=told.append, fail_callback=told.append)
        await until(lambda: make.calls)
        child = os.fork()
        if not child:
            mc.close()
            os._exit(len(told))
        assert os.waitpid(child, 0)[1] == 0
        make.go.set()
        await until(lambda: told)
        assert told == ["k 1"]
        mc.close()

    asyncio.run(main())


# -- the factory's surroundings

page: contextvars.ContextVar[str] = contextvars.ContextVar("page", default="none")


@pytest.mark.gen_test
async def test_a_factory_runs_in_the_context_of_its_caller_and_under_no_boundary(mc):
    seen: list[Any] = []
    failures: list[Any] = []

    async def factory():
        seen.append(page.get())
        page.set("changed")
        return await mc.get("missing", default="d")

    page.set("front")
    with boundary(failures.append, timeout=60) as entry:
        value = await mc.get_or_set("k", factory, 60)
        assert not entry._members
    assert value == "d" and seen == ["front"] and page.get() == "front" and not failures


@pytest.mark.gen_test
async def test_the_factory_of_one_who_is_still_there_is_run(mc, memcached):
    unique = win(memcached)
    gone, there = Maker("gone"), Maker("there")
    first = mc.get_or_set("k", gone, 60)
    second = mc.get_or_set("k", there, 60)
    await until(lambda: mc.computations.waited)
    first.cancel()
    memcached.ask(f"md k C{unique}\r\n".encode())
    assert await second == "there 1" and not gone.calls


# -- the cache is away


@pytest.mark.parametrize("style", STYLES)
@pytest.mark.gen_test
async def test_while_the_server_is_away_the_value_is_computed_once_and_not_stored(
    start_memcached, troubles, style
):
    server = start_memcached()
    async with Client([server.address]) as mc:
        server.kill()
        make = Maker(held=True)
        calls = [Asked(style, mc.get_or_set, "k", make, 60) for _ in range(20)]
        await until(lambda: mc.computations.waited == 19)
        make.go.set()
        assert [await call.outcome() for call in calls] == ["k 1"] * 20
        assert make.calls == 1 and mc.computations.stored == 0
        assert await mc.get_or_set("k", make, 60) == "k 2"
        make.instead = [LookupError("no such row"), object()]
        await Asked(style, mc.get_or_set, "k", make, 60).failure(LookupError)
        await Asked(style, mc.get_or_set, "k", make, 60).failure(NotSerializable)


@pytest.mark.gen_test
async def test_a_silent_server_delays_a_call_by_its_request_timeout(start_memcached, troubles):
    server = start_memcached()
    async with Client([server.address], request_timeout=0.3) as mc:
        await mc.get("warm")
        server.stop()
        call = Asked("awaited", mc.get_or_set, "k", Maker(), 60)
        assert await call.outcome() == "k 1"
        assert 0.3 <= call.took < 0.3 + SLACK
        server.resume()


@pytest.mark.gen_test
async def test_a_server_that_goes_while_one_computes_costs_no_page(start_memcached, troubles):
    server = start_memcached()
    async with Client([server.address]) as mc:
        make = Maker(held=True)
        call = mc.get_or_set("k", make, 60)
        await until(lambda: make.calls)
        server.kill()
        make.go.set()
        assert await call == "k 1" and mc.computations.stored == 0


@pytest.mark.gen_test
async def test_a_server_that_goes_while_one_waits_costs_no_page(start_memcached, troubles):
    server = start_memcached()
    async with Client([server.address]) as mc:
        win(server)
        make = Maker()
        calls = [mc.get_or_set("k", make, 60, lock_timeout=1000) for _ in range(5)]
        await until(lambda: mc.computations.waited == 4)
        server.kill()
        assert await asyncio.gather(*calls) == ["k 1"] * 5 and make.calls == 1


@pytest.mark.gen_test
async def test_a_dead_server_that_misses_gives_no_lease(start_memcached, troubles):
    server = start_memcached()
    async with Client([server.address], on_dead="miss") as mc:
        server.kill()
        make = Maker()
        assert await mc.get_or_set("k", make, 60) == "k 1"
        assert await mc.get("k") is None and mc.computations.stored == 0


@pytest.mark.gen_test
async def test_a_lease_of_a_server_that_was_restarted_stores_nothing(start_memcached, troubles):
    """A restarted memcached counts cas uniques anew: the same number may be another item's."""
    server = start_memcached()
    async with Client([server.address]) as mc:
        make = Maker(held=True)
        call = mc.get_or_set("k", make, 60)
        await until(lambda: make.calls)
        unique = words(server)["c"]
        server.restart()
        server.ask(b"ms k 5 F16\r\nnewer\r\n")
        assert words(server)["c"] == unique
        await until(lambda: mc._pools[0].losses)
        make.go.set()
        assert await call == "k 1" and await mc.get("k") == "newer"


@pytest.mark.gen_test
async def test_a_server_that_stores_nothing_is_told_of_once(start_memcached, expect_log):
    """One that is full, and throws nothing out."""
    server = start_memcached(["-m", "2", "-M"])
    told = expect_log(LOG, "a computed value is not stored", times=1)
    async with Client([server.address]) as mc:
        for number in range(1000):
            assert await mc.get_or_set(f"k{number}", lambda: b"x" * 10_000, 0) == b"x" * 10_000
            if told.count and number > 300:
                break


@pytest.mark.gen_test
async def test_a_factory_slower_than_its_lease_is_told_of_once(mc, memcached, expect_log):
    expect_log(LOG, "not stored: it took .* longer than lock_timeout", times=1)
    back = expect_log(LOG, "computed values are stored again", level=20, times=1)
    make = Maker(held=True)
    for number in (1, 2):
        make.go.clear()
        call = mc.get_or_set("k", make, 60, lock_timeout=0.1)
        await until(lambda number=number: make.calls == number)
        await asyncio.sleep(0.15)
        memcached.ask(b"md k\r\n")  # (as its end would)
        make.go.set()
        assert await call == f"k {number}" and await mc.get("k") is None
    assert await mc.get_or_set("k", make, 60) == "k 3" and back.count == 1


@pytest.mark.gen_test
async def test_who_waits_for_a_factory_that_never_ends_has_the_next_one_run(mc, memcached):
    hangs, make = Maker(held=True), Maker("v")
    first = mc.get_or_set("k", hangs, 60, lock_timeout=1)
    await until(lambda: hangs.calls)
    second = mc.get_or_set("k", make, 60, lock_timeout=1000)
    third = mc.get_or_set("k", make, 60, lock_timeout=1000)
    assert await asyncio.gather(first, second, third) == ["v 1"] * 3
    await until(lambda: hangs.cancelled)
    assert make.calls == 1 and words(memcached)["s"] == "3"


@pytest.mark.gen_test
async def test_of_factories_that_end_too_late_and_at_once_one_is_told(mc):
    fails = Maker(held=True)
    fails.instead = [LookupError("one"), LookupError("two")]
    calls = [Asked("awaited", mc.get_or_set, "k", fails, 60, lock_timeout=0.1) for _ in range(2)]
    await until(lambda: fails.calls == 2)
    fails.go.set()
    for call in calls:
        await call.failure(LookupError)


@pytest.mark.parametrize("server", ["there", "away"])
@pytest.mark.gen_test
async def test_nobody_joins_a_factory_whose_time_is_over(
    start_memcached, troubles, expect_log, server
):
    memcached = start_memcached()
    if server == "away":
        memcached.kill()
    else:
        expect_log(LOG, "not stored: it took .* longer than lock_timeout", times=1)
    hangs, make = Maker(held=True), Maker("v")
    async with Client([memcached.address]) as mc:
        first = mc.get_or_set("k", hangs, 60, lock_timeout=0.1)
        await until(lambda: hangs.calls)
        await asyncio.sleep(0.15)  # (the lease is there for two seconds more)
        assert await mc.get_or_set("k", make, 60, lock_timeout=1000) == "v 1"
        assert not first.done()
        hangs.go.set()
        assert await first == "k 1"
        if server == "there":
            assert await mc.get("k") == "v 1"


# -- without meta commands


@pytest.mark.gen_test
async def test_an_old_server_is_locked_by_add_and_told_of_once(memcached, expect_log):
    expect_log(LOG, r"has no meta commands: get_or_set computes under locks by add", times=2)
    async with OldServer(memcached) as old:
        async with Client([old.address]) as mc, Client([old.address]) as other:
            first, second = Maker("first", held=True), Maker("second")
            calls = [mc.get_or_set("k", first, 60, stale=9, early=9) for _ in range(20)]
            await until(lambda: first.calls and mc.computations.waited == 19)
            assert memcached.ask(b"mg k:lock v\r\n").startswith(b"VA 16")
            calls += [other.get_or_set("k", second, 60, stale=9, early=9) for _ in range(20)]
            await until(lambda: other.computations.waited == 19)
            first.go.set()
            assert await asyncio.gather(*calls) == ["first 1"] * 40
            assert not second.calls
            await until(lambda: not words(memcached, "k:lock"))
            assert 50 <= int(words(memcached)["t"]) <= 61
            assert await mc.get_or_set("k", first, 60, stale=9, early=9) == "first 1"
            assert not old.meta


@pytest.mark.gen_test
async def test_an_old_server_gives_the_lock_to_the_next(memcached, expect_log):
    expect_log(LOG, "has no meta commands", times=2)
    async with OldServer(memcached) as old:
        async with Client([old.address]) as mc, Client([old.address]) as other:
            make = Maker(held=True)
            make.instead = [LookupError("no such row")]
            call = Asked("awaited", mc.get_or_set, "k", make, 60, lock_timeout=1000)
            await until(lambda: make.calls)
            make.go.set()
            await call.failure(LookupError)
            assert await other.get_or_set("k", Maker("v"), 60, lock_timeout=1000) == "v 1"
            # One that has died:
            memcached.ask(b"delete k\r\n")
            memcached.ask(b"set k:lock 0 60 4\r\ndead\r\n")
            calls = [
                client.get_or_set("k", make, 60, lock_timeout=0.3)
                for client in (mc, other)
                for _ in range(5)
            ]
            assert await asyncio.gather(*calls) == ["k 2"] * 10


@pytest.mark.parametrize("stale_for", [None, 30])
@pytest.mark.gen_test
async def test_an_old_server_forgets_what_is_invalidated(memcached, expect_log, stale_for):
    expect_log(LOG, "has no meta commands", times=1)
    async with OldServer(memcached) as old, Client([old.address]) as mc:
        assert await mc.invalidate("k", stale_for) is False
        before, after = Maker("before", held=True), Maker("after")
        first = mc.get_or_set("k", before, 60)
        await until(lambda: before.calls)
        assert await mc.invalidate("k", stale_for) is False
        assert await mc.get_or_set("k", after, 60, lock_timeout=1000) == "after 1"
        before.go.set()
        assert await first == "before 1" and await mc.get("k") == "after 1"
        assert await mc.invalidate("k", stale_for) is True
        assert await mc.get("k") is None


@pytest.mark.gen_test
async def test_what_another_process_invalidates_on_an_old_server_is_not_joined(
    memcached, expect_log
):
    expect_log(LOG, "has no meta commands", times=2)
    async with OldServer(memcached) as old:
        async with Client([old.address]) as mc, Client([old.address]) as other:
            before, after = Maker("before", held=True), Maker("after")
            first = mc.get_or_set("k", before, 60, lock_timeout=1000)
            await until(lambda: before.calls)
            await other.invalidate("k")
            assert await mc.get_or_set("k", after, 60, lock_timeout=1000) == "after 1"
            before.go.set()
            assert await first == "before 1" and await other.get("k") == "after 1"


@pytest.mark.gen_test
async def test_an_invalidation_is_done_when_the_lock_of_an_old_server_is_gone_too(expect_log):
    expect_log(LOG, "has no meta commands|fails:", times=range(10))
    deleted = [
        Expect(b"delete k\r\ndelete k:lock\r\n"),
        Send(b"DELETED\r\nSERVER_ERROR not now\r\n"),
    ]
    script = [Expect(b"version\r\n"), Send(b"VERSION 1.5.22\r\n"), *deleted, *deleted]
    async with Scripted(script) as server, Client([server.address], max_connections=1) as mc:
        for _ in range(2):
            with pytest.raises(ServerError, match="not now"):
                await mc.invalidate("k")


@pytest.mark.parametrize("side", ["old", "new"])
@pytest.mark.gen_test
async def test_the_stub_of_another_process_is_no_value_to_a_client_that_migrates(
    start_memcached, side
):
    servers = {"old": start_memcached(), "new": start_memcached()}
    async with Client([servers["old"].address]) as before:
        async with Client([servers["new"].address], migrate_from=before) as mc:
            win(servers[side])
            assert await mc.get_or_set("k", Maker(), 60) == "k 1"
            assert await mc.get_or_set("k", Maker(), 60) == "k 1"
            win(servers["old"], "other")
            await mc.get("other")
            await until(lambda: mc.migration is not None and not mc.migration._chains)
            assert not words(servers["new"], "other")


@pytest.mark.gen_test
async def test_a_client_that_migrates_locks_by_add(start_memcached):
    old, new = start_memcached(), start_memcached()
    async with Client([old.address]) as before:
        async with Client([new.address], migrate_from=before) as mc:
            await before.set("k", "from before")
            make = Maker()
            assert await mc.get_or_set("k", make, 60) == "from before"
            assert await mc.invalidate("k") and not words(old) and not words(new)
            assert await mc.get_or_set("k", make, 60) == "k 1"


# -- a factory that asks for what it makes


@pytest.mark.parametrize("style", ["await", "callback", "by another", "namespace"])
@pytest.mark.gen_test
async def test_a_factory_that_asks_for_its_own_key_is_told_so_and_waits_for_nothing(
    memcached, style
):
    async with Client([memcached.address]) as mc:
        store = mc.namespace("n") if style == "namespace" else mc

        async def selfish() -> Any:
            return await store.get_or_set("k", Maker(), 60)

        async def other() -> Any:
            return await store.get_or_set("other", selfish, 60)

        def calls(callback: Any) -> None:
            store.get_or_set("k", Maker(), 60, callback=callback)

        factory = {"callback": calls, "by another": other}.get(style, selfish)
        with pytest.raises(RuntimeError, match="get_or_set '.*k': its own factory asks for it"):
            await store.get_or_set("k", factory, 60, timeout=20)
        # It is over, and what it has begun may ask for the key.
        assert await store.get_or_set("k", Maker(), 60) == "k 1"
        again: list[Any] = []

        async def begins() -> str:
            await asyncio.sleep(0)
            again.append(asyncio.create_task(later()))
            return "made"

        async def later() -> Any:
            await ended.wait()
            return await store.get_or_set("l", Maker(), 60)

        ended = asyncio.Event()
        assert await store.get_or_set("l", begins, 60) == "made"
        await store.delete("l")
        ended.set()
        assert await again[0] == "k 1"


# -- bad input

BAD: list[tuple[type[Exception], str, dict[str, Any]]] = [
    (InvalidRequest, "factory must be callable", {"factory": None}),
    (InvalidRequest, "factory must be callable", {"factory": b"value"}),
    (InvalidRequest, "exptime must be from 0", {"exptime": -1}),
    (InvalidRequest, "exptime must be from 0", {"exptime": timedelta(seconds=-1)}),
    (InvalidRequest, "exptime must be above 0 with", {"exptime": 0, "stale": 1}),
    (InvalidRequest, "exptime must be above 0 with", {"exptime": 0, "early": 1}),
    (InvalidRequest, "exptime of no length: pass 0 for never", {"exptime": timedelta(0)}),
    (InvalidRequest, "exptime must be .* ends before 2.31 .* no moment", {"exptime": 2**31 - 1}),
    (InvalidRequest, "exptime and stale .* 2.31", {"exptime": 2**31 - 2**21, "stale": 2**20}),
    (InvalidRequest, "exptime", {"exptime": 2**31}),
    (TypeError, "exptime must be an int or a timedelta", {"exptime": "60"}),
    (TypeError, "exptime must be an int or a timedelta", {"exptime": 1.5}),
    (TypeError, "exptime must be an int or a timedelta", {"exptime": True}),
    (TypeError, "exptime must be an int or a timedelta", {"exptime": None}),
    (TypeError, "a length from now.*, not datetime", {"exptime": datetime(2030, 1, 1)}),
    (InvalidRequest, "stale must be from 0", {"stale": -1}),
    (TypeError, "stale must be an int or a timedelta", {"stale": 0.5}),
    (InvalidRequest, "early must be from 0", {"early": -1}),
    (InvalidRequest, "early must be less than exptime", {"early": 60}),
    (InvalidRequest, "stale and early must be 30 days", {"stale": 2592000, "early": 1}),
    (TypeError, "early must be an int or a timedelta", {"early": "1"}),
    (InvalidRequest, "lock_timeout must be a finite number", {"lock_timeout": 0}),
    (InvalidRequest, "lock_timeout must be a finite number", {"lock_timeout": -1}),
    (InvalidRequest, "lock_timeout must be a finite number", {"lock_timeout": float("nan")}),
    (InvalidRequest, "lock_timeout must be less than 30 days", {"lock_timeout": 2592000}),
    (TypeError, "lock_timeout must be a number", {"lock_timeout": None}),
    (InvalidRequest, "timeout must be", {"timeout": 0}),
    (TypeError, "callback must be callable", {"callback": 1}),
    (TypeError, "fail_callback must be callable", {"fail_callback": 1}),
    (InvalidKey, "white space", {"key": "a b"}),
    (InvalidKey, "key is empty", {"key": ""}),
    (InvalidKey, "250", {"key": "k" * 251}),
    (TypeError, "key must be str or bytes", {"key": None}),
]


@pytest.mark.parametrize(("kind", "told", "given"), BAD)
@pytest.mark.gen_test
async def test_bad_input_is_refused_at_the_call_and_nothing_leaves(silent, kind, told, given):
    async with Client([silent.address]) as mc:
        arguments = {"key": "k", "factory": Maker(), "exptime": 60, **given}
        with pytest.raises(kind, match=told):
            mc.get_or_set(**arguments)
        assert not silent.connections and not mc.computations._all


@pytest.mark.parametrize(
    ("kind", "told", "stale_for"),
    [
        (InvalidRequest, "stale_for must be from 1", 0),
        (InvalidRequest, "stale_for must be from 1", -1),
        (InvalidRequest, "stale_for must be from 1", timedelta(0)),
        (InvalidRequest, "stale_for must be .* ends before 2.31", 2**31 - 1),
        (TypeError, "stale_for must be an int or a timedelta", 1.0),
        (TypeError, "stale_for must be an int or a timedelta", "1"),
    ],
)
@pytest.mark.gen_test
async def test_invalidate_refuses_what_is_no_length(silent, kind, told, stale_for):
    async with Client([silent.address]) as mc:
        with pytest.raises(kind, match=told):
            mc.invalidate("k", stale_for)
        with pytest.raises(TypeError, match="unexpected keyword"):
            mc.invalidate("k", exptime=3)
        assert not silent.connections


def test_a_call_outside_of_a_loop_says_so(memcached):
    mc = Client([memcached.address])
    with pytest.raises(RuntimeError, match="needs a running event loop"):
        mc.get_or_set("k", Maker, 60)
    mc.close()
