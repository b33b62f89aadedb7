"""The register of deadlines: by a clock turned by hand, and on a real loop.

The headline of the package is at the end: a thousand calls to a server that
has stopped.
"""

from __future__ import annotations

import asyncio
import contextvars
import time
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from tornado.ioloop import IOLoop

from tornado_memcache import Client, MemcacheError, Timeout, boundary, deadlines
from tornado_memcache.deadlines import NEVER, CallLane, Deadlines
from tornado_memcache.lanes import SlotLane

from .fair import Stopwatch
from .hand import Hand, Shifted
from .ledger import our_timers
from .memcacheds import Memcached
from .silent import Silent

#: Seconds that a loaded machine may be late (I2).
SLACK = 0.25

request: contextvars.ContextVar[str] = contextvars.ContextVar("request", default="nobody's")


@pytest.fixture
def hand(monkeypatch: pytest.MonkeyPatch) -> Iterator[Hand]:
    hand = Hand()
    monkeypatch.setattr(deadlines, "clock", hand)
    yield hand
    assert not any(request in context for context in hand.contexts)


@pytest.fixture
def register(hand: Hand) -> Deadlines:
    return Deadlines(hand, hand)  # type: ignore[arg-type]


class Call:
    """Notes that it has expired, and leaves as a call does."""

    def __init__(self, register: Deadlines, key: Any, moment: float, then: Any = None) -> None:
        self.register, self.key, self.moment, self.then = register, key, moment, then
        self.expired = 0
        register.add(key, moment, self)

    def leave(self) -> None:
        self.register.remove(self.key, self)

    def expire(self) -> None:
        self.expired += 1
        self.leave()
        if self.then is not None:
            self.then()


class Lane:
    """A lane of moments; notes in which order it was asked what."""

    def __init__(self, *moments: float) -> None:
        self.moments = list(moments)
        self.done: list[str] = []
        self.caught: list[float] = []

    def next_deadline(self) -> float:
        return self.moments[0] if self.moments else NEVER

    def catch_up(self) -> None:
        self.done.append("catch up")
        self.moments = [moment for moment in self.moments if moment not in self.caught]

    def expire(self, now: float) -> None:
        self.done.append("expire")
        self.moments = [moment for moment in self.moments if moment > now]


# -- one timeout of the loop


def test_one_timeout_for_ten_thousand_calls(hand: Hand, register: Deadlines) -> None:
    calls = [Call(register, 0.5, hand.now + 0.5) for _ in range(10_000)]
    assert (hand.added, hand.watched, len(register)) == (1, 1000.5, 1)
    hand.turn(0.5)
    assert [call.expired for call in calls] == [1] * 10_000
    assert hand.added == 1 and hand.fired == 1


def test_the_earliest_is_watched(hand: Hand, register: Deadlines) -> None:
    Call(register, 5.0, 1005.0)
    assert hand.watched == 1005.0
    Call(register, 9.0, 1009.0)
    assert hand.watched == 1005.0 and hand.added == 1
    first = Call(register, 1.0, 1001.0)
    assert hand.watched == 1001.0
    first.leave()
    assert hand.watched == 1001.0, "it may fire for a call that has ended"
    hand.turn(1.0)
    assert hand.watched == 1005.0 and hand.fired == 1 and not first.expired
    hand.turn(4.0)
    assert hand.watched == 1009.0
    hand.turn(4.0)
    hand.turn()
    assert hand.watched == NEVER and not register.armed and len(register) == 0


def test_a_moment_that_is_over_fires_at_once(hand: Hand, register: Deadlines) -> None:
    call = Call(register, 1.0, 900.0)
    assert not call.expired and hand.watched == 1000.0
    hand.turn()
    assert call.expired == 1


def test_one_timeout_watches_lanes_and_calls(hand: Hand, register: Deadlines) -> None:
    lane = Lane(1002.0, 1003.0)
    register.watch(lane, 1002.0)
    call = Call(register, 1.0, 1001.0)
    assert hand.watched == 1001.0
    hand.turn(1.0)
    assert call.expired and lane.moments == [1002.0, 1003.0] and hand.watched == 1002.0
    hand.turn(1.5)
    assert lane.moments == [1003.0] and hand.watched == 1003.0


# -- removal


def test_it_is_removed_one_callback_after_the_last(hand: Hand, register: Deadlines) -> None:
    Call(register, 1.0, 1001.0).leave()
    assert register.armed and len(register) == 0, "a caller that was woken may call again"
    Call(register, 1.0, 1001.0).leave()
    assert hand.added == 1
    hand.turn()
    assert not register.armed and hand.timeouts == {} and hand.soon == []


def test_a_lone_caller_sets_it_once(hand: Hand, register: Deadlines) -> None:
    for _ in range(100):
        call = Call(register, 1.0, hand.now + 1.0)
        hand.turn(0.001)
        call.leave()
        Call(register, 1.0, hand.now + 1.0).leave()
        call = Call(register, 1.0, hand.now + 1.0)
        hand.turn()
        call.leave()
        lone = Call(register, 1.0, hand.now + 1.0)
        hand.turn()
        lone.leave()
    assert hand.added == 1 and register.armed
    hand.turn()
    assert not register.armed


def test_removing_twice_is_nothing(hand: Hand, register: Deadlines) -> None:
    call = Call(register, 1.0, 1001.0)
    call.leave()
    call.leave()
    register.remove("another", call)
    hand.turn()
    hand.turn(5.0)
    assert not call.expired and hand.fired == 0


def test_close_forgets_all(hand: Hand, register: Deadlines) -> None:
    calls = [Call(register, length, 1000.0 + length) for length in (1.0, 2.0)]
    register.watch(Lane(1001.0), 1001.0)
    register.close()
    assert not register.armed and hand.timeouts == {} and len(register) == 0
    for call in calls:
        call.leave()
    hand.turn(5.0)
    assert not any(call.expired for call in calls) and not register.armed


# -- expiry


def test_only_what_is_due_expires(hand: Hand, register: Deadlines) -> None:
    calls = [Call(register, 1.0, 1001.0 + number / 10) for number in range(10)]
    hand.turn(1.45)
    assert [call.expired for call in calls] == [1] * 5 + [0] * 5
    assert hand.watched == 1001.5


def test_catching_up_comes_before_the_end(hand: Hand, register: Deadlines) -> None:
    due, other = Lane(1001.0), Lane(1009.0)
    due.caught = [1001.0]
    register.watch(due, 1001.0)
    register.watch(other, 1009.0)
    hand.turn(1.0)
    assert due.done == ["catch up"] and other.done == ["catch up"]
    late = Lane(1002.0)
    register.watch(late, 1002.0)
    hand.turn(1.0)
    assert late.done == ["catch up", "expire"]


def test_what_has_ended_is_not_read_for(hand: Hand, register: Deadlines) -> None:
    lane = Lane(1009.0)
    register.watch(lane, 1009.0)
    Call(register, 1.0, 1001.0).leave()
    hand.turn(1.0)
    assert hand.fired == 1 and lane.done == [] and hand.watched == 1009.0


def test_a_call_that_an_expiring_one_ends_does_not_stay(hand: Hand, register: Deadlines) -> None:
    later = Call(register, 1.0, 1009.0)
    first = Call(register, 0.5, 1001.0, then=later.leave)
    hand.turn(1.0)
    hand.turn()
    assert first.expired and not later.expired and len(register) == 0 and not register.armed


def test_what_an_expiring_call_begins_is_watched(hand: Hand, register: Deadlines) -> None:
    begun: list[Call] = []

    def begin() -> None:
        for length in (0.5, 1.0):
            begun.append(Call(register, length, hand.now + length))

    for _ in range(3):
        Call(register, 1.0, 1001.0, then=begin)
    hand.turn(1.0)
    assert len(begun) == 6 and hand.watched == 1001.5 and hand.added == 2
    hand.turn(0.5)
    hand.turn(0.5)
    hand.turn()
    assert [call.expired for call in begun] == [1] * 6 and not register.armed


def test_calls_end_before_a_connection_that_is_due_in_the_same_moment(
    hand: Hand, register: Deadlines
) -> None:
    lanes = [Lane(1001.0) for _ in range(20)]
    ended: list[int] = []
    for number, lane in enumerate(lanes):
        register.watch(lane, 1001.0)
        Call(register, number, 1001.0, lambda: ended.append(sum("expire" in x.done for x in lanes)))
    hand.turn(1.0)
    assert ended == [0] * 20 and all(lane.done == ["catch up", "expire"] for lane in lanes)


def test_closing_in_the_middle_of_expiry(hand: Hand, register: Deadlines) -> None:
    first = Call(register, 1.0, 1001.0, then=register.close)
    second = Call(register, 2.0, 1009.0)
    hand.turn(1.0)
    hand.turn(20.0)
    assert first.expired and not second.expired and not register.armed


def test_a_lane_that_raises_does_not_stop_the_others(hand: Hand, register: Deadlines) -> None:
    Call(register, 1.0, 1001.0, then=lambda: {}["a bug"])
    later = Call(register, 9.0, 1009.0)
    with pytest.raises(KeyError):
        hand.turn(1.0)
    hand.turn(8.0)
    assert later.expired


# -- counted, not timed


class CountedMoments(dict[Any, float]):
    """Counts how many of its entries were looked at."""

    looked = 0

    def items(self) -> Any:
        for pair in super().items():
            CountedMoments.looked += 1
            yield pair


def test_a_hundred_thousand_cancelled_entries_are_one_pass(
    hand: Hand, register: Deadlines, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = 0
    real = CallLane.next_deadline

    def counted(lane: CallLane) -> float:
        nonlocal asked
        asked += 1
        return real(lane)

    monkeypatch.setattr(CallLane, "next_deadline", counted)
    calls = [Call(register, 1.0, 1001.0 + number / 1e6) for number in range(100_000)]
    moments = register._lanes[1.0].moments = CountedMoments(register._lanes[1.0].moments)
    CountedMoments.looked = 0
    for call in calls[:99_000]:
        call.leave()
    assert (asked, hand.added, CountedMoments.looked) == (0, 1, 0)
    assert len(moments) == 1000
    hand.turn(2.0)
    hand.turn()
    assert sum(call.expired for call in calls) == 1000
    assert asked <= 4 and CountedMoments.looked <= 1001 and hand.added == 1
    assert not register.armed


def test_expiry_looks_at_what_is_due_and_at_one_more(hand: Hand, register: Deadlines) -> None:
    calls = [Call(register, 1.0, 1001.0 + number) for number in range(10_000)]
    register._lanes[1.0].moments = CountedMoments(register._lanes[1.0].moments)
    CountedMoments.looked = 0
    hand.turn(10.0)
    assert sum(call.expired for call in calls) == 10 and CountedMoments.looked == 11


class CountedSlot:
    """A slot that counts how often it was compared with another."""

    compared = 0

    def __init__(self, deadline: float) -> None:
        self.deadline = deadline

    def __eq__(self, other: object) -> bool:
        CountedSlot.compared += 1
        return self is other

    __hash__ = object.__hash__


def test_late_replies_do_not_search_the_lane_for_slots_that_have_left() -> None:
    # A server that stalled answers: half of its slots have expired, half have not.
    lane: Any = SlotLane()
    slots = [CountedSlot(float(number)) for number in range(2000)]
    for slot in slots:
        lane.add(slot)
    for _ in range(1000):
        lane.pop()
    CountedSlot.compared = 0
    for slot in slots:
        lane.remove(slot)
    assert len(lane) == 0
    assert CountedSlot.compared <= 4000, "removing is quadratic"


# -- on a real loop


@pytest.mark.gen_test
async def test_it_fires_on_a_real_loop_once_for_all(
    io_loop: IOLoop, monkeypatch: pytest.MonkeyPatch
) -> None:
    added: list[Any] = []
    real = io_loop.add_timeout

    def add_timeout(length: Any, *args: Any) -> Any:
        added.append(length)
        return real(length, *args)

    monkeypatch.setattr(io_loop, "add_timeout", add_timeout)
    register = Deadlines(io_loop, asyncio.get_running_loop())
    watch, begun = Stopwatch(), time.monotonic()
    calls = [Call(register, 0.05, begun + 0.05) for _ in range(10_000)]
    assert len(our_timers(asyncio.get_running_loop())) == len(added) == 1
    while not calls[-1].expired:
        assert watch.fair < 0.05 + SLACK
        await asyncio.sleep(0.001)
    assert time.monotonic() >= begun + 0.05
    assert [call.expired for call in calls] == [1] * 10_000
    await asyncio.sleep(0)
    await asyncio.sleep(0)
    assert not register.armed and our_timers(asyncio.get_running_loop()) == []


@pytest.mark.gen_test
async def test_the_timeout_keeps_nobodys_context(io_loop: IOLoop) -> None:
    request.set("somebody's")
    seen: list[str] = []
    register = Deadlines(io_loop, asyncio.get_running_loop())
    Call(register, 0.001, deadlines.clock() + 0.001, then=lambda: seen.append(request.get()))
    await asyncio.sleep(0.02)
    assert seen == ["nobody's"]


@pytest.mark.gen_test
async def test_a_client_holds_one_timeout_for_all_its_calls(
    silent: Silent, expect_log: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    expect_log("tornado_memcache", "fails|dead", times=range(3))
    clock = Shifted(time.monotonic)
    monkeypatch.setattr(deadlines, "clock", clock)
    failures: list[Any] = []
    patience = {"request_timeout": 500.0, "connect_timeout": 500.0}
    async with Client([silent.address, "127.0.0.1:1"], **patience) as mc:
        loop = asyncio.get_running_loop()
        with boundary(failures.append, timeout=400):
            for number in range(1000):
                mc.get((0, f"k{number}"), timeout=350 + number % 5 * 100)
                mc.get((0, f"k{number}"))
        await asyncio.sleep(0.02)
        register = mc._deadlines
        assert register is not None and len(our_timers(loop)) == 1
        for passed, ended in ((350, 200), (100, 2000)):
            assert (len(our_timers(loop)), register.armed) == (1, True)
            clock.shift += passed
            register._disarm()
            register._fire()
            while len(failures) < ended:
                await asyncio.sleep(0)
            assert len(failures) == ended
        assert register._lanes == {}
    assert len(failures) == 2000 and {type(error) for error in failures} == {Timeout}


@pytest.mark.gen_test
@pytest.mark.parametrize("jump", [3600.0, -3600.0])
async def test_a_wall_clock_that_is_set_moves_no_deadline(
    silent: Silent,
    expect_log: Callable[..., Any],
    monkeypatch: pytest.MonkeyPatch,
    jump: float,
) -> None:
    expect_log("tornado_memcache", "fails|dead", times=range(3))
    wall = Shifted(time.time)
    monkeypatch.setattr(time, "time", wall)
    async with Client([silent.address], request_timeout=0.15) as mc:
        watch = Stopwatch()
        calls = [mc.get("a"), mc.set("b", 1, timeout=0.08), mc.get("c", timeout=0.2)]
        await asyncio.sleep(0.02)
        wall.shift = jump
        calls.append(mc.get("d", timeout=0.1))
        ended = []
        for call in (calls[1], calls[3], calls[0], calls[2]):
            with pytest.raises(Timeout):
                await call
            ended.append((watch.real, watch.fair))
        health = mc._pools[0].health
        health.refused(deadlines.clock(), Timeout("for the sake of the pause"))
        assert 0 < health.dead_until - deadlines.clock() <= 0.5
    for expected, (real, fair) in zip((0.08, 0.12, 0.15, 0.2), ended):
        assert expected - 0.001 <= real and fair < expected + SLACK


@pytest.mark.gen_test
async def test_a_reply_wins_over_the_timer_after_a_blocked_loop(memcached: Memcached) -> None:
    async with Client([memcached.address], request_timeout=0.1) as mc:
        await mc.set("k", "v")
        calls = [mc.get("k"), mc.set("k", "v"), mc.get("k", timeout=0.2)]
        with boundary(lambda error: None, timeout=0.05):
            calls.append(mc.get_multi(["k"]))
        await asyncio.sleep(0)
        time.sleep(0.5)
        assert await asyncio.gather(*calls) == ["v", True, "v", {"k": "v"}]
        assert mc._pools[0].counts()["late"] == 0


@pytest.mark.gen_test
async def test_an_outcome_comes_by_its_deadline_although_the_server_drips(
    expect_log: Callable[..., Any],
) -> None:
    expect_log("tornado_memcache", "fails|dead", times=range(3))

    async def drips(reader: Any, writer: Any) -> None:
        try:
            await reader.readline()
            for byte in b"VALUE k 0 1000\r\n" + b"x" * 1000:
                if writer.is_closing():
                    break
                writer.write(bytes([byte]))
                await writer.drain()
                await asyncio.sleep(0.002)
        except ConnectionError:
            pass
        finally:
            writer.close()

    server = await asyncio.start_server(drips, "127.0.0.1", 0)
    async with Client(
        [f"127.0.0.1:{server.sockets[0].getsockname()[1]}"], request_timeout=0.08
    ) as mc:
        watch = Stopwatch()
        with pytest.raises(Timeout):
            await mc.get("k")
        assert 0.08 <= watch.real and watch.fair < 0.08 + SLACK
    server.close()
    await server.wait_closed()
    await asyncio.sleep(0.03)


# -- the headline


@pytest.mark.gen_test
@pytest.mark.parametrize("style", ["unawaited", "callback", "distinct sets"])
async def test_a_thousand_calls_to_a_server_that_has_stopped(
    start_memcached: Callable[..., Memcached], expect_log: Callable[..., Any], style: str
) -> None:
    expect_log("tornado_memcache", "fails|dead", times=range(1, 3))
    server = start_memcached()
    failures: list[tuple[float, float, Any]] = []
    answers: list[Any] = []
    loop = asyncio.get_running_loop()
    async with Client([server.address], request_timeout=0.1) as mc:
        for number in range(10):
            await mc.set(f"k{number}", f"value {number}")
        server.stop()
        watch = Stopwatch()
        with boundary(lambda error: failures.append((watch.real, watch.fair, error))) as entry:
            for number in range(1000):
                if style == "callback":
                    mc.get(f"k{number % 10}", callback=answers.append)
                elif style == "unawaited":
                    mc.get(f"k{number}")
                else:
                    mc.set(f"other{number}", number)
        while len(failures) < 1000:
            assert watch.fair < 2.0, f"{len(failures)} failures"
            await asyncio.sleep(0.005)
        assert 0.1 <= failures[0][0] and failures[-1][1] <= 0.1 + SLACK
        assert {type(error) for *_, error in failures} == {Timeout}
        assert len({id(error) for *_, error in failures}) == 1000
        assert mc._deadlines is not None and mc._deadlines._lanes == {}
        assert entry._members == {} and len(our_timers(loop)) <= 1
        await asyncio.sleep(0.02)
        server.resume()
        resumed = Stopwatch()
        while True:
            try:
                found = await asyncio.gather(*[mc.get(f"k{number}") for number in range(10)])
                break
            except MemcacheError:
                assert resumed.fair < 1.0
                await asyncio.sleep(0.01)
        assert resumed.fair < 1.0
        assert found == [f"value {number}" for number in range(10)]
        while our_timers(loop) or mc._deadlines.armed:
            assert resumed.fair < 2.0
            await asyncio.sleep(0.005)
        assert mc._pools[0].counts()["pending"] == 0
    assert len(failures) == 1000 and not answers, "a late reply was seen"
