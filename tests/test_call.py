"""Exactly one outcome in every race, and nothing left of a call that has ended.

Races are made real by blocking the loop: what the server sent meanwhile and
the timers that came due meanwhile are then met in one turn of the loop.
"""

from __future__ import annotations

import asyncio
import socket
import time
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager
from typing import Any

import pytest
from tornado.netutil import Resolver

from tornado_memcache import (
    Client,
    ClientClosed,
    ClientError,
    ConnectionFailed,
    InvalidRequest,
    MemcacheError,
    Timeout,
    boundary,
)
from tornado_memcache.boundaries import Entry

from .fair import Stopwatch
from .ledger import our_timers
from .memcacheds import Memcached
from .silent import Silent

#: Seconds that a loaded machine may be late (I2).
SLACK = 0.25
#: The request_timeout of the clients here that nobody answers, in seconds.
SHORT = 0.05
#: One that does not pass in a test, in seconds.
LONG = 10.0


async def until(true: Callable[[], Any], within: float = 3.0) -> None:
    """Lets the loop run until ``true()``."""
    watch = Stopwatch()
    while not true():
        late = watch.fair > within
        await asyncio.sleep(0.001)
        assert not late or true(), "it did not come"


async def quiet() -> None:
    """Lets whatever might still come, come."""
    await asyncio.sleep(0.02)


def block(seconds: float) -> None:
    """Keeps the loop from running: what comes meanwhile comes in one turn."""
    time.sleep(seconds)


def fire(mc: Client) -> None:
    """Runs the timer before the loop has read anything, as libuv may do."""
    assert mc._deadlines is not None
    mc._deadlines._disarm()
    mc._deadlines._fire()


def no_outcome(outcome: Any) -> None:
    raise AssertionError(f"{outcome!r} came")


async def outcome_of(future: Any) -> Any:
    try:
        return await future
    except MemcacheError as error:
        return error


@asynccontextmanager
async def warm(memcached: Memcached, **settings: Any) -> AsyncIterator[Client]:
    """A client with one open connection, and a value and a text that is no number."""
    async with Client([memcached.address], **settings) as mc:
        for number in range(5):
            await mc.set(f"k{number}", f"value {number}")
        yield mc


@pytest.fixture
def outage(expect_log: Callable[..., Any]) -> Any:
    """Declares the one or two lines that an outage of one server is worth."""
    return expect_log("tornado_memcache", r"fails|is taken for dead", times=range(3))


@pytest.fixture
def stalled(start_memcached: Callable[..., Memcached]) -> Memcached:
    """A memcached of this test's own, to be stopped."""
    return start_memcached()


# -- after the end of a call nothing is left: all kinds of call x all ways to end


class Asked:
    """A call of one kind: how it is begun and cancelled, and the outcomes that came."""

    def __init__(self, kind: str) -> None:
        self.kind = kind
        self.outcomes: list[Any] = []
        self.entry: Entry | None = None
        self.future: Any = None

    def begin(self, mc: Client) -> None:
        style, _, what = self.kind.rpartition(" ")
        how: dict[str, Any] = {"timeout": 60.0} if "timeout" in style else {}
        if "callback" in style:
            how.update(callback=self.outcomes.append, fail_callback=self.outcomes.append)
        if "budget" in style:
            with boundary(self.failed, timeout=30.0) as self.entry:
                self.future = self._ask(mc, what, how)
        elif "boundary" in style or "callback" in style:
            with boundary(self.failed) as self.entry:
                self.future = self._ask(mc, what, how)
        else:
            self.future = self._ask(mc, what, how)
        if self.future is not None:
            self.future.add_done_callback(self._ended)

    def _ask(self, mc: Client, what: str, how: dict[str, Any]) -> Any:
        if what == "get":
            return mc.get("k1", **how)
        if what == "default":
            return mc.get("k1", "a default", **how)
        if what == "set":
            return mc.set("k1", "value 1", **how)
        return mc.get_multi([f"k{number}" for number in range(3)], **how)

    def failed(self, error: Any) -> None:
        """The boundary's fail_callback: only for a call that nobody attached to."""
        self.outcomes.append(error)

    def _ended(self, future: Any) -> None:
        cancelled = future.cancelled()
        self.outcomes.append("cancelled" if cancelled else future.exception() or future.result())

    def cancel(self, by_entry: bool) -> None:
        if self.entry is not None and (by_entry or self.future is None):
            self.entry.cancel()
            if self.future is None:
                assert not self.outcomes
                self.outcomes.append("cancelled")
        else:
            self.future.cancel()


KINDS = [
    "get",
    "default",
    "set",
    "multi",
    "timeout get",
    "timeout multi",
    "callback get",
    "callback set",
    "callback multi",
    "callback timeout set",
    "boundary get",
    "boundary set",
    "boundary multi",
    "budget get",
    "budget multi",
    "callback budget timeout set",
]


def assert_nothing_is_left(mc: Client, asked: Asked) -> None:
    deadlines = mc._deadlines
    assert deadlines is not None and deadlines._lanes == {}, "the register still holds the call"
    assert asked.entry is None or asked.entry._members == {}, "its boundary still holds the call"


async def assert_no_timer(mc: Client, within: float) -> None:
    """I3: one timer at most, of a late connection, and soon none."""
    loop = asyncio.get_running_loop()
    deadlines = mc._deadlines
    assert deadlines is not None and len(our_timers(loop)) <= 1
    await until(
        lambda: not (our_timers(loop) or deadlines.armed or len(deadlines)),
        within,
    )


@pytest.mark.gen_test
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("temperature", ["cold", "warm"])
async def test_nothing_is_left_of_an_answered_call(
    memcached: Memcached, kind: str, temperature: str
) -> None:
    asked = Asked(kind)
    memcached.ask(b"set k1 0 0 7\r\nvalue 1\r\n")
    async with Client([memcached.address]) as mc:
        if temperature == "warm":
            await mc.version()
        asked.begin(mc)
        await until(lambda: asked.outcomes)
        assert_nothing_is_left(mc, asked)
        await assert_no_timer(mc, 0.02)
    expected = {"set": True, "multi": {"k1": b"value 1"}}.get(kind.split()[-1], b"value 1")
    assert asked.outcomes == [expected]


@pytest.mark.gen_test
@pytest.mark.parametrize(
    "kind", [kind for kind in KINDS if "timeout" not in kind and "budget" not in kind]
)
async def test_nothing_is_left_of_a_call_that_timed_out(
    silent: Silent, outage: Any, kind: str
) -> None:
    asked = Asked(kind)
    async with Client([silent.address], request_timeout=SHORT) as mc:
        asked.begin(mc)
        await until(lambda: asked.outcomes)
        assert_nothing_is_left(mc, asked)
        await assert_no_timer(mc, SHORT + SLACK)
        assert mc._pools[0].counts()["pending"] == 0
    (outcome,) = asked.outcomes
    assert isinstance(outcome, Timeout)


@pytest.mark.gen_test
@pytest.mark.parametrize("what", ["get", "default", "set", "multi", "callback"])
@pytest.mark.parametrize("terms", ["timeout", "budget", "both"])
async def test_nothing_is_left_of_a_call_that_met_its_own_deadline(
    silent: Silent, outage: Any, terms: str, what: str
) -> None:
    how: dict[str, Any] = {} if terms == "budget" else {"timeout": 0.03}
    outcomes: list[Any] = []
    async with Client([silent.address], request_timeout=0.08) as mc:
        budget = None if terms == "timeout" else 0.03
        with boundary(outcomes.append, timeout=budget) as entry:
            if what == "multi":
                mc.get_multi(["a", "b"], **how)
            elif what == "callback":
                mc.get("a", callback=no_outcome, **how)
            elif what == "set":
                mc.set("a", 1, **how)
            else:
                mc.get("a", "d" if what == "default" else None, **how)
        await until(lambda: outcomes)
        assert mc._deadlines is not None and mc._deadlines._lanes == {}
        assert entry._members == {}
        await assert_no_timer(mc, 0.2 + SLACK)
    assert len(outcomes) == 1 and isinstance(outcomes[0], Timeout)


@pytest.mark.gen_test
@pytest.mark.parametrize(
    "phase, way, kind",
    [
        (phase, way, kind)
        for phase, ways in {
            "resolving": ("itself", "entry", "close"),
            "reply": ("itself", "entry", "close", "lost"),
        }.items()
        for way in ways
        for kind in KINDS
        if way != "entry" or "boundary" in kind or "budget" in kind
    ],
)
async def test_nothing_is_left_of_a_call_that_was_ended(
    request: pytest.FixtureRequest, outage: Any, kind: str, way: str, phase: str
) -> None:
    silent: Silent = request.getfixturevalue("silent")
    asked = Asked(kind)
    address = silent.address if phase == "reply" else "somewhere.invalid"
    # Only a call that leaves alone has its connection wait for the timeout.
    waits = phase == "reply" and way in ("itself", "entry")
    timeout = 2 * SHORT if waits else LONG
    async with Client([address], request_timeout=timeout, resolver=Never()) as mc:
        asked.begin(mc)
        await asyncio.sleep(0.005)
        if way == "close":
            mc.close()
        elif way == "lost":
            silent.connections  # noqa: B018 (it accepts)
            silent.close()
        else:
            asked.cancel(by_entry=way == "entry")
        await until(lambda: asked.outcomes)
        assert_nothing_is_left(mc, asked)
        if phase == "resolving":
            counts = mc._pools[0].counts()
            assert (counts["waiting"], counts["pending"], counts["open"]) == (0, 0, 0)
            await assert_no_timer(mc, 0.02)
        else:
            await assert_no_timer(mc, 4 * SHORT + SLACK)
        assert mc._pools[0].counts()["pending"] == 0
        await quiet()
    (outcome,) = asked.outcomes
    kinds = {"close": ClientClosed, "lost": ConnectionFailed}
    assert isinstance(outcome, kinds[way]) if way in kinds else outcome == "cancelled"


class Never(Resolver):
    """Looks names up, and never finds them."""

    def initialize(self) -> None:
        pass

    async def resolve(self, host: str, port: int, family: Any = 0) -> Any:
        await asyncio.get_running_loop().create_future()


# -- cancelled in every phase


@pytest.fixture
def full() -> Iterator[str]:
    """The address of a listener whose backlog is full: a connect to it gets no answer."""
    listener = socket.socket()
    listener.bind(("127.0.0.1", 0))
    listener.listen(0)
    fillers = [socket.socket() for _ in range(4)]
    for filler in fillers:
        filler.setblocking(False)
        filler.connect_ex(listener.getsockname())
    yield f"127.0.0.1:{listener.getsockname()[1]}"
    for one in (*fillers, listener):
        one.close()


@pytest.mark.gen_test
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("turns", [0, 1, 2])
async def test_a_call_cancelled_cold_leaves_no_connection(
    silent: Silent, kind: str, turns: int
) -> None:
    asked = Asked(kind)
    async with Client([silent.address]) as mc:
        asked.begin(mc)
        for _ in range(turns):
            await asyncio.sleep(0)
        (connection,) = mc._pools[0]._connections
        attempts = connection._connector._attempts if connection.connecting else []
        connecting = any(stream._connecting for stream in attempts)
        assert connecting or turns, "nothing can have come yet"
        asked.cancel(by_entry=False)
        await until(lambda: asked.outcomes)
        assert_nothing_is_left(mc, asked)
        await asyncio.sleep(0)
        if connecting:
            assert mc._pools[0].counts()["open"] == 0, "a connection for nobody"
        await assert_no_timer(mc, 0.02)
        assert silent.received == b""
    assert asked.outcomes == ["cancelled"]


@pytest.mark.gen_test
@pytest.mark.parametrize("kind", ["get", "callback set", "budget multi"])
async def test_a_call_cancelled_while_connecting(full: str, kind: str) -> None:
    asked, other = Asked(kind), Asked("get")
    async with Client([full], connect_timeout=0.5) as mc:
        asked.begin(mc)
        await asyncio.sleep(0.01)
        assert mc._pools[0].counts()["connecting"] == 1
        other.begin(mc)
        asked.cancel(by_entry=False)
        await asyncio.sleep(0)
        assert mc._pools[0].counts()["connecting"] == 1, "somebody else waits for it"
        other.cancel(by_entry=False)
        await asyncio.sleep(0.001)
        assert mc._pools[0].counts()["open"] == 0
        await assert_no_timer(mc, 0.02)
    assert asked.outcomes == other.outcomes == ["cancelled"]


@pytest.mark.gen_test
@pytest.mark.parametrize("way", ["future", "entry", "timeout"])
async def test_a_write_that_ended_while_it_waited_is_never_sent(
    stalled: Memcached, outage: Any, way: str
) -> None:
    large = b"x" * 300_000
    async with warm(stalled, max_connections=1, max_value_size=64 << 20) as mc:
        stalled.stop()
        holder = mc.set("holder", b"y" * (16 << 20), timeout=5)
        await asyncio.sleep(0.01)
        with boundary(lambda error: None) as entry:
            waiting = mc.set("k1", large, timeout=0.02 if way == "timeout" else 5)
            behind = mc.set("k2", large, timeout=5)
        if way == "future":
            waiting.cancel()
        elif way == "entry":
            entry.cancel()
            behind = mc.set("k2", large, timeout=5)
        else:
            with pytest.raises(Timeout) as caught:
                await waiting
            assert not caught.value.maybe_applied
        stalled.resume()
        await asyncio.wait([behind])
        await outcome_of(holder)
        await outcome_of(behind)
        assert waiting.done()
        assert await mc.get("k1") == "value 1"


@pytest.mark.gen_test
@pytest.mark.parametrize("way", ["future", "entry"])
async def test_a_call_cancelled_while_its_reply_is_owed(memcached: Memcached, way: str) -> None:
    async with warm(memcached) as mc:
        for number in range(5):
            with boundary(no_outcome) as entry:
                memcached.stop()
                cancelled = mc.get(f"k{number}")
                mc.get("k0", callback=no_outcome) if way == "entry" else None
            await asyncio.sleep(0)
            entry.cancel() if way == "entry" else cancelled.cancel()
            others = [mc.get(f"k{other}") for other in range(5)]
            memcached.resume()
            assert await asyncio.gather(*others) == [f"value {other}" for other in range(5)]
            assert cancelled.cancelled()


@pytest.mark.gen_test
async def test_a_call_cancelled_in_the_middle_of_its_reply() -> None:
    begun, go_on = asyncio.Event(), asyncio.Event()

    async def half(reader: Any, writer: Any) -> None:
        await reader.readline()
        writer.write(b"VALUE k1 0 7\r\nval")
        begun.set()
        await go_on.wait()
        writer.write(b"ue 1\r\nEND\r\n")
        assert await reader.readline() == b"get k2\r\n"
        writer.write(b"VALUE k2 0 7\r\nvalue 2\r\nEND\r\n")
        await reader.read()
        writer.close()

    server = await asyncio.start_server(half, "127.0.0.1", 0)
    async with Client([f"127.0.0.1:{server.sockets[0].getsockname()[1]}"]) as mc:
        cancelled = mc.get("k1")
        await begun.wait()
        await asyncio.sleep(0.01)
        cancelled.cancel()
        other = mc.get("k2")
        go_on.set()
        assert await other == b"value 2"
        assert cancelled.cancelled() and mc._pools[0].counts()["open"] == 1
    server.close()
    await server.wait_closed()
    await quiet()


# -- two ends in one turn of the loop


@pytest.mark.gen_test
@pytest.mark.parametrize("kind", KINDS)
async def test_cancel_and_reply_in_one_turn(memcached: Memcached, kind: str) -> None:
    asked = Asked(kind)
    async with warm(memcached) as mc:
        asked.begin(mc)
        mc._pools[0]._connections[0].flush()
        block(0.005)
        asked.cancel(by_entry=False)
        await until(lambda: asked.outcomes)
        assert [await mc.get(f"k{number}") for number in (1, 2)] == ["value 1", "value 2"]
        assert_nothing_is_left(mc, asked)
        await quiet()
        assert mc._pools[0].counts()["open"] == 1
    assert asked.outcomes == ["cancelled"]


@pytest.mark.gen_test
@pytest.mark.parametrize("kind", KINDS)
async def test_reply_and_then_cancel_in_one_turn(memcached: Memcached, kind: str) -> None:
    asked = Asked(kind)
    async with warm(memcached) as mc:

        def cancel(value: Any) -> None:
            assert asked.outcomes or asked.future.done()
            if asked.entry is not None:
                asked.entry.cancel()
                assert asked.entry.cancelled == 0
            if asked.future is not None:
                assert not asked.future.cancel()

        asked.begin(mc)
        mc.get("k4", callback=lambda value: None)
        mc.delete("k3", callback=cancel)  # (behind all of them)
        await until(lambda: asked.outcomes)
        await quiet()
    assert len(asked.outcomes) == 1 and asked.outcomes != ["cancelled"]


@pytest.mark.gen_test
@pytest.mark.parametrize("terms", ["request_timeout", "timeout", "budget"])
@pytest.mark.parametrize("what", ["get", "set", "get_multi"])
async def test_a_reply_in_the_socket_wins_over_the_timer(
    memcached: Memcached, terms: str, what: str
) -> None:
    settings = {"request_timeout": 0.05} if terms == "request_timeout" else {}
    how: dict[str, Any] = {"timeout": 0.05} if terms == "timeout" else {}
    async with warm(memcached, **settings) as mc:
        with boundary(no_outcome, timeout=0.05 if terms == "budget" else None):
            call = mc.set("k1", 1, **how) if what == "set" else None
            call = mc.get("k1", **how) if what == "get" else call
            call = mc.get_multi(["k1"], **how) if call is None else call
        mc._pools[0]._connections[0].flush()
        block(0.1)
        fire(mc)
        expected = {"set": True, "get": "value 1", "get_multi": {"k1": "value 1"}}[what]
        assert await call == expected
        counts = mc._pools[0].counts()
        assert counts["late"] == 0 and mc._pools[0].health.failures == 0


@pytest.mark.gen_test
async def test_a_reply_in_the_socket_of_a_late_connection_wins_over_the_timer(
    stalled: Memcached, outage: Any
) -> None:
    async with warm(stalled, request_timeout=0.05) as mc:
        stalled.stop()
        patient = mc.get("k1", timeout=0.15)
        with pytest.raises(Timeout):
            await mc.get("k2")
        assert mc._pools[0].counts()["late"] == 1
        stalled.resume()
        block(0.2)
        fire(mc)
        assert await patient == "value 1", "its reply was there before its deadline was looked at"


@pytest.mark.gen_test
async def test_the_timer_and_then_the_reply(stalled: Memcached, outage: Any) -> None:
    outcomes: list[Any] = []
    async with warm(stalled, request_timeout=0.05) as mc:
        stalled.stop()
        mc.get("k1", callback=outcomes.append, fail_callback=outcomes.append)
        mc.set("k2", "late", callback=outcomes.append, fail_callback=outcomes.append)
        await until(lambda: len(outcomes) == 2)
        assert mc._pools[0].counts()["late"] == 1
        stalled.resume()
        await until(lambda: mc._pools[0].counts()["late"] == 0)
        assert await mc.get("k3") == "value 3" and await mc.get("k2") == "late"
    assert [type(outcome) for outcome in outcomes] == [Timeout, Timeout]
    assert [outcome.maybe_applied for outcome in outcomes] == [False, True]
    assert [outcome.phase for outcome in outcomes] == ["reply", "reply"]


@pytest.mark.gen_test
@pytest.mark.parametrize("last", ["cancel", "close"])
async def test_the_timer_and_something_else_in_one_turn(
    silent: Silent, outage: Any, last: str
) -> None:
    outcomes: list[Any] = []
    async with Client([silent.address]) as mc:

        def failed(error: Any) -> None:
            outcomes.append(error)
            entry.cancel() if last == "cancel" else mc.close()

        with boundary(no_outcome) as entry:
            for key in "abc":
                mc.get(key, timeout=0.02, callback=no_outcome, fail_callback=failed)
            mc.set("d", 1, timeout=0.02, callback=no_outcome, fail_callback=failed)
        await asyncio.sleep(0.005)
        block(0.04)
        await until(lambda: outcomes)
        await quiet()
        failures = mc._pools[0].health.failures
    if last == "cancel":
        assert [type(outcome) for outcome in outcomes] == [Timeout]
        assert entry.cancelled == 3
        assert failures == 1, "calls that were cancelled are counted as failed"
    else:
        assert [type(outcome) for outcome in outcomes] == [Timeout] + [ClientClosed] * 3


@pytest.mark.gen_test
@pytest.mark.parametrize("terms", ["timeout", "budget", "request_timeout"])
async def test_every_failed_call_is_counted_once(silent: Silent, outage: Any, terms: str) -> None:
    failures: list[Any] = []
    settings = {"request_timeout": SHORT} if terms == "request_timeout" else {}
    async with Client([silent.address], max_connections=1, **settings) as mc:
        with pytest.raises(Timeout):
            await mc.get("a", timeout=0.01)
        with boundary(failures.append, timeout=0.02 if terms == "budget" else None):
            for number in range(40):
                mc.get(f"k{number}", timeout=0.02 if terms == "timeout" else None)
        await until(lambda: len(failures) == 40)
        assert mc._pools[0].health.failures == 41


# -- default=, and a timeout of its own


@pytest.mark.gen_test
async def test_a_default_is_for_a_miss(memcached: Memcached) -> None:
    seen: list[Any] = []
    async with warm(memcached) as mc:
        with boundary(no_outcome, timeout=1):
            assert await mc.get("k1", "d") == "value 1"
            assert await mc.get("missing", "d") == await mc.get("missing", "d", timeout=1) == "d"
            assert await asyncio.gather(*[mc.get("missing", n) for n in range(20)]) == [*range(20)]
            mc.get("missing", "d", callback=seen.append)
            mc.get("missing", callback=seen.append)
            assert await mc.gat("missing", 5, "d") == "d"
        assert await mc.get("missing", "d") == "d" and await mc.get("missing", 0) == 0
        assert await mc.get("missing") is None
        await until(lambda: len(seen) == 2)
    assert seen == ["d", None]


@pytest.mark.gen_test
async def test_a_default_is_not_for_a_failure(silent: Silent, outage: Any) -> None:
    async with Client([silent.address], request_timeout=SHORT) as mc:
        for _ in range(2):  # (cold, and then the late connection)
            with pytest.raises(MemcacheError):
                await mc.get("a", "d")


@pytest.mark.gen_test
async def test_a_default_belongs_to_retrieval(silent: Silent) -> None:
    async with Client([silent.address]) as mc:
        with pytest.raises(TypeError):
            mc.set("a", 1, default=3)  # type: ignore[call-arg]
        with pytest.raises(TypeError):
            mc.get_multi(["a"], default=3)  # type: ignore[call-arg]
        assert await silent.untouched()


@pytest.mark.gen_test
async def test_a_shorter_timeout_makes_nothing_late(stalled: Memcached, outage: Any) -> None:
    async with warm(stalled, request_timeout=5) as mc:
        stalled.stop()
        watch = Stopwatch()
        calls = [mc.get("k1", timeout=0.03), mc.set("k1", 2, timeout=0.03), mc.get("k2")]
        for call in calls[:2]:
            with pytest.raises(Timeout) as caught:
                await call
            assert caught.value.phase == "reply"
        assert 0.03 <= watch.real and watch.fair < 0.03 + SLACK
        pool = mc._pools[0]
        assert pool.counts()["late"] == 0 and not pool.health.dead and pool.health._silences == 0
        stalled.resume()
        assert await calls[2] == "value 2"


@pytest.mark.gen_test
async def test_a_longer_timeout_is_honoured(stalled: Memcached, outage: Any) -> None:
    async with warm(stalled, request_timeout=0.05) as mc:
        stalled.stop()
        patient = [mc.get("k1", timeout=5), mc.set("k2", 2, timeout=5)]
        multi = mc.get_multi(["k3", "k4"], timeout=5)
        with pytest.raises(Timeout):
            await mc.get("k2")
        await asyncio.sleep(0.12)
        stalled.resume()
        assert await asyncio.gather(*patient) == ["value 1", True]
        assert await multi == {"k3": "value 3", "k4": "value 4"}


@pytest.mark.gen_test
async def test_a_longer_timeout_ends_too(silent: Silent, outage: Any) -> None:
    async with Client([silent.address], request_timeout=SHORT) as mc:
        watch = Stopwatch()
        patient = [mc.set("k1", 1, timeout=0.2), mc.get("k2", timeout=0.2)]
        for call in patient:
            with pytest.raises(Timeout):
                await call
        assert 0.2 <= watch.real and watch.fair < 0.2 + SLACK
        await assert_no_timer(mc, SHORT + SLACK)


@pytest.mark.gen_test
@pytest.mark.parametrize(
    "wrong, error",
    [
        ({"timeout": 0}, InvalidRequest),
        ({"timeout": -1}, InvalidRequest),
        ({"timeout": float("inf")}, InvalidRequest),
        ({"timeout": float("nan")}, InvalidRequest),
        ({"timeout": True}, TypeError),
        ({"timeout": "1"}, TypeError),
        ({"callback": 3}, TypeError),
        ({"fail_callback": "f"}, TypeError),
        ({"nonsense": 1}, TypeError),
    ],
)
@pytest.mark.parametrize("what", ["get", "set", "multi", "empty", "stats"])
async def test_bad_terms_raise_at_the_call(
    silent: Silent, wrong: dict[str, Any], error: type[Exception], what: str
) -> None:
    async with Client([silent.address]) as mc:
        begin: dict[str, Callable[..., Any]] = {
            "get": lambda **how: mc.get("a", **how),
            "set": lambda **how: mc.set("a", 1, **how),
            "multi": lambda **how: mc.get_multi(["a", "b"], **how),
            "empty": lambda **how: mc.get_multi([], **how),
            "stats": lambda **how: mc.stats(**how),
        }
        with pytest.raises(error, match=next(iter(wrong))):
            begin[what](**wrong)
        assert await silent.untouched(0.002)
        assert mc._deadlines is None or mc._deadlines._lanes == {}


# -- what a callback may do


@pytest.mark.gen_test
async def test_a_callback_that_raises_disturbs_nobody(
    memcached: Memcached, expect_log: Callable[..., Any]
) -> None:
    expect_log("tornado.application", "Exception in callback", times=2, level=40)
    seen: list[Any] = []
    async with warm(memcached) as mc:

        def raises(value: Any) -> None:
            seen.append(value)
            raise KeyError(value)

        mc.get("k0", callback=raises)
        rest = [mc.get("k1"), mc.set("k2", "new"), mc.get("k3"), mc.get_multi(["k4"])]
        mc.delete("k0", callback=raises)
        assert await asyncio.gather(*rest) == ["value 1", True, "value 3", {"k4": "value 4"}]
        await until(lambda: len(seen) == 2)
        assert await mc.get("k2") == "new" and mc._pools[0].counts()["open"] == 1
    assert seen == ["value 0", True]


@pytest.mark.gen_test
async def test_a_callback_re_enters_the_client(memcached: Memcached) -> None:
    seen: list[Any] = []
    async with warm(memcached) as mc:

        def again(value: Any) -> None:
            seen.append(value)
            if len(seen) < 300:
                depth = len(seen)
                mc.get(f"k{len(seen) % 5}", callback=again)
                assert len(seen) == depth, "it came back inside of the method"

        mc.get("k0", callback=again)
        others = [mc.get(f"k{number}") for number in range(5)]
        await until(lambda: len(seen) == 300)
        assert await asyncio.gather(*others) == [f"value {number}" for number in range(5)]
    assert seen == [f"value {number % 5}" for number in range(300)]


@pytest.mark.gen_test
@pytest.mark.parametrize("where", ["callback", "fail_callback", "boundary", "coroutine"])
async def test_a_callback_closes_the_client(memcached: Memcached, where: str) -> None:
    outcomes: list[Any] = []
    count = 40
    async with warm(memcached) as mc:
        again: list[Any] = []

        def close(outcome: Any) -> None:
            outcomes.append(outcome)
            mc.close()
            with boundary(None):
                again.append(mc.get("k0"))

        async def coroutine(outcome: Any) -> None:
            close(outcome)

        both = {"callback": outcomes.append, "fail_callback": outcomes.append}
        with boundary(close):
            if where == "callback":
                mc.get("k0", callback=close)
            elif where == "coroutine":
                mc.get("k0", callback=coroutine)
            elif where == "fail_callback":
                mc.incr("k0", fail_callback=close)
            else:
                mc.incr("k0")
        for number in range(count // 2):
            mc.get(f"k{number % 5}", **both)
            mc.set(f"k{number % 5}", f"value {number % 5}", **both)
        await until(lambda: len(outcomes) == count + 1)
        with pytest.raises(ClientClosed):
            await again[0]
        await quiet()
        assert len(again) == 1 and mc._pools[0].counts()["pending"] == 0
    assert len(outcomes) == count + 1
    assert all(
        outcome is True or isinstance(outcome, (str, ClientClosed, ClientError))
        for outcome in outcomes
    )


@pytest.mark.gen_test
@pytest.mark.parametrize("kind", KINDS)
async def test_a_callback_cancels_a_sibling_of_the_same_segment(
    memcached: Memcached, kind: str
) -> None:
    asked = Asked(kind)
    async with warm(memcached) as mc:
        mc.delete("k0", callback=lambda deleted: asked.cancel(by_entry=False))
        asked.begin(mc)
        mc._pools[0]._connections[0].flush()
        await until(lambda: asked.outcomes)
        assert await mc.get("k2") == "value 2"
        assert_nothing_is_left(mc, asked)
        await quiet()
    assert asked.outcomes == ["cancelled"]


@pytest.mark.gen_test
async def test_callers_of_one_key_each_have_their_outcome(memcached: Memcached) -> None:
    outcomes: list[Any] = []
    async with warm(memcached) as mc:
        first, second = mc.get("k1"), mc.get("k1", "d")
        mc.get("k1", callback=outcomes.append)
        with boundary(no_outcome, timeout=1) as entry:
            third, fourth = mc.get("k1"), mc.get("k1")
        fourth.cancel()
        second.cancel()
        assert await asyncio.gather(first, third) == ["value 1", "value 1"]
        assert outcomes == ["value 1"] and fourth.cancelled() and second.cancelled()
        assert entry._members == {}


@pytest.mark.gen_test
async def test_a_value_that_cannot_be_read_fails_the_call_alone(memcached: Memcached) -> None:
    memcached.ask(b"set odd 77 0 3\r\nodd\r\n")
    failures: list[Any] = []
    async with warm(memcached) as mc:
        with boundary(failures.append):
            odd, good = mc.get("odd"), mc.get("k1")
            mc.get("odd", callback=no_outcome)
            mc.gets("odd", callback=no_outcome)
        assert await good == "value 1"
        await until(lambda: len(failures) == 3)
        assert odd.exception() in failures and mc._pools[0].counts()["open"] == 1
