"""The fault matrix, "Our side.": what callers, callbacks, loops and the process do to us.

Each row has its tests under its own words, in the matrix' order. Two ends in
one turn of the loop are made by hand: the reply is put into the socket and
the clock set while the loop does not run. Cancelling at every await point
has a file of its own, ``test_faults_cancel.py``.
"""

from __future__ import annotations

import asyncio
import contextlib
import contextvars
import gc
import inspect
import logging
import subprocess
import sys
import time
import weakref
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any

import pytest
from tornado.netutil import Resolver

from tornado_memcache import (
    Client,
    ClientClosed,
    ConnectionFailed,
    MemcacheError,
    Request,
    ServerDead,
    Timeout,
    boundary,
    connector,
    deadlines,
)
from tornado_memcache.boundaries import Entry

from .gated import Gated
from .hand import Shifted
from .ledger import our_timers
from .memcacheds import Memcached
from .networks import Connects, closed_port, full_backlog
from .scenes import AT_MOST, PHASES, Names, Scene, servers, until
from .scripted import Close, Scripted
from .silent import Silent
from .steps import cancel_at_every_step, turn

LOG = "tornado_memcache"
#: Seconds after which a call ends whose deadline the test turns to by hand.
D = 5.0
#: What a loaded machine may take on top, in seconds.
SLACK = 3.0

who: contextvars.ContextVar[str] = contextvars.ContextVar("who", default="nobody")


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Shifted:
    """A clock that stands still: no deadline comes but when the test sets it."""
    clock = Shifted(lambda: 1000.0)
    monkeypatch.setattr(deadlines, "clock", clock)
    return clock


@pytest.fixture
def outage(expect_log: Callable[..., Any]) -> Any:
    """Declares the lines that an outage of one server is worth."""
    return expect_log(LOG, "fails|is taken for dead", times=range(3))


def counts(client: Client) -> dict[str, int]:
    return client._pools[0].counts()


def fire(client: Client) -> None:
    """Runs the timer of the deadlines now, before the loop has read anything."""
    assert client._deadlines is not None
    client._deadlines._disarm()
    client._deadlines._fire()


def value(key: str) -> bytes:
    """Returns the value that is stored under ``key``, and under no other."""
    return f"<{key}>".encode()


KEYS = [f"k{number}" for number in range(10)]


@asynccontextmanager
async def warm(**settings: Any) -> AsyncIterator[tuple[Gated, Client]]:
    """A server with a value under each of `KEYS`, and a client with one connection to it."""
    settings = {"request_timeout": D, "connect_timeout": D, **settings}
    async with Gated() as server:
        for key in KEYS:
            server.store.set(key.encode(), value(key))
        async with Client([server.address], **settings) as client:
            assert await client.get("k0") == value("k0")
            yield server, client
        await until(lambda: not server.connections)


async def all_is_well(client: Client) -> None:
    """Every value is right, nobody is owed anything, and no timer is left."""
    assert await asyncio.gather(*[client.get(key) for key in KEYS]) == list(map(value, KEYS))
    await until(lambda: not counts(client)["pending"])
    assert client._deadlines is not None and client._deadlines._lanes == {}
    await until(lambda: not our_timers(asyncio.get_running_loop()))


def no_outcome(outcome: Any) -> None:
    raise AssertionError(f"{outcome!r} came")


class Asked:
    """One call of one kind, and the outcomes that came of it."""

    KINDS = ("get", "default", "set", "multi", "callback get", "callback set", "callback multi")

    def __init__(self, client: Client, kind: str, key: str = "k1", **how: Any) -> None:
        self.outcomes: list[Any] = []
        self.entry: Entry | None = None
        self.future: Any = None
        style, _, what = kind.rpartition(" ")
        begin: Callable[..., Any] = {
            "get": lambda **how: client.get(key, **how),
            "default": lambda **how: client.get(key, b"none", **how),
            "set": lambda **how: client.set(key, value(key), **how),
            "multi": lambda **how: client.get_multi([key, "k9"], **how),
        }[what]
        self.good = {"set": True, "multi": {key: value(key), "k9": value("k9")}}.get(
            what, value(key)
        )
        if style:
            with boundary(self.outcomes.append) as self.entry:
                begin(callback=self.outcomes.append, **how)
        else:
            self.future = begin(**how)
            self.future.add_done_callback(self._ended)

    def _ended(self, future: Any) -> None:
        left = future.cancelled()
        self.outcomes.append("cancelled" if left else future.exception() or future.result())

    def cancel(self) -> None:
        if self.entry is not None:
            self.entry.cancel()
            self.outcomes += ["cancelled"] * self.entry.cancelled
        else:
            self.future.cancel()


# -- cancel and reply, timeout and reply in the same loop tick: one outcome


def cancels(client: Client, asked: Asked, clock: Shifted) -> None:
    asked.cancel()


def times_out(client: Client, asked: Asked, clock: Shifted) -> None:
    clock.shift += D
    fire(client)


@pytest.mark.gen_test(timeout=60)
@pytest.mark.parametrize("kind", Asked.KINDS)
@pytest.mark.parametrize("end", [cancels, times_out])
@pytest.mark.parametrize("first", ["the reply", "the other"])
async def test_two_ends_in_one_tick_are_one_outcome(
    clock: Shifted, outage: Any, kind: str, end: Callable[..., None], first: str
) -> None:
    async with warm() as (server, client):
        server.hold("reply", b"k1")
        asked = Asked(client, kind)
        behind = client.get("k2", timeout=10 * D)
        await until(lambda: server.held)
        if first == "the reply":
            server.release()  # (it is in the socket now, and nobody has read it)
            end(client, asked, clock)
        else:
            end(client, asked, clock)
            server.release()
        await until(lambda: asked.outcomes)
        assert await behind == value("k2")
        assert server.accepted == 1 and counts(client)["late"] == 0
        await all_is_well(client)
        if end is cancels:
            assert asked.outcomes == ["cancelled"]
        elif first == "the reply":
            assert asked.outcomes == [asked.good]
        else:
            assert [type(outcome) for outcome in asked.outcomes] == [Timeout]
    assert len(asked.outcomes) == 1


@pytest.mark.gen_test(timeout=60)
@pytest.mark.parametrize("kind", Asked.KINDS)
@pytest.mark.parametrize("end", [cancels, times_out])
async def test_an_outcome_that_is_there_is_not_taken_back_in_its_tick(
    clock: Shifted, kind: str, end: Callable[..., None]
) -> None:
    async with warm() as (server, client):
        server.hold("reply", b"k1")
        asked = Asked(client, kind)
        # Answered behind it, out of the same segment, before the caller has had its turn.
        client.delete("k8", callback=lambda _: end(client, asked, clock))
        await until(lambda: server.held)
        server.release()
        await until(lambda: asked.outcomes)
        server.store.set(b"k8", value("k8"))
        await all_is_well(client)
        assert asked.outcomes == [asked.good]


# -- what callbacks do: raise, re-enter, close, cancel a sibling

ENDS = ("reply", "timeout", "lost", "refused", "closed")


class Passes:
    """Nine calls that one event ends in one pass: the middle one's callback does something.

    ``ended`` are the outcomes by number, each call's own list.
    """

    MIDDLE = 4

    def __init__(self, client: Client, how_it_ends: str) -> None:
        self.client, self.how_it_ends = client, how_it_ends
        self.ended: list[list[Any]] = [[] for _ in range(9)]
        self.entries: list[Entry] = []
        self.act: Callable[[Any], Any] = no_outcome
        #: The boundaries around the middle one, from the outermost.
        self.around: tuple[boundary, ...] = ()

    def begin(self) -> None:
        for number in range(9):
            with contextlib.ExitStack() as stack:
                self.entries.append(stack.enter_context(boundary(no_outcome)))
                for one in self.around if number == self.MIDDLE else ():
                    stack.enter_context(one)
                self._ask(number)

    def _ask(self, number: int) -> None:
        def ended(outcome: Any) -> Any:
            self.ended[number].append(outcome)
            return self.act(outcome) if number == self.MIDDLE else None

        how = {"callback": ended, "fail_callback": ended}
        if number % 2 or self.how_it_ends == "lost":  # (a get would be tried again)
            self.client.set(f"k{number}", value(f"k{number}"), **how)
        else:
            self.client.get(f"k{number}", **how)

    @property
    def expected(self) -> Any:
        """The type of a failure, or the outcomes of success."""
        kinds = {
            "timeout": Timeout,
            "lost": ConnectionFailed,
            "refused": ConnectionFailed,
            "closed": ClientClosed,
        }
        return kinds.get(self.how_it_ends)

    def check(self, *but: int) -> None:
        """Every call has had one outcome, the expected one, those of ``but`` any or none."""
        for number, outcomes in enumerate(self.ended):
            if number in but:
                continue
            (outcome,) = outcomes
            if self.expected is None:
                assert outcome == (True if number % 2 else value(f"k{number}"))
            else:
                assert type(outcome) is self.expected


@asynccontextmanager
async def passing(how_it_ends: str, clock: Shifted, **settings: Any) -> AsyncIterator[Any]:
    """Gives nine calls, and what ends them all in one pass."""
    async with warm(**settings) as (server, client):
        if how_it_ends == "refused":
            with closed_port() as (host, port):
                async with Client([f"{host}:{port}"]) as refused:
                    yield Passes(refused, how_it_ends), server, lambda: None
            return
        passes = Passes(client, how_it_ends)
        server.hold("reply")

        def end() -> None:
            if how_it_ends == "timeout":
                clock.shift += D
                fire(client)
            elif how_it_ends == "lost":
                server.reset()
            elif how_it_ends == "closed":
                client.close()
            server.release()

        yield passes, server, end


async def settled(passes: Passes, server: Gated, end: Callable[[], None], but: int = -1) -> None:
    """Begins the nine, ends them, and waits until all have their outcome, ``but`` one."""
    passes.begin()
    if passes.how_it_ends != "refused":
        await until(lambda: len(server.asked) >= 2 and server.held)
        await until(lambda: passes.client._pools[0]._connections[0].owing >= 5)
    end()
    await until(lambda: all(outcomes for n, outcomes in enumerate(passes.ended) if n != but))
    for _ in range(5):  # (a second outcome would come in one of these)
        await turn()


async def goes_on(passes: Passes) -> None:
    """The client is as good as new, unless it is the server or the client that ended."""
    if passes.how_it_ends not in ("refused", "closed"):
        await all_is_well(passes.client)


class Raised(Exception):
    """What a callback raises that no boundary takes unless it is told to."""


# -- callback raises: goes to its boundary or the log, all else untouched


@pytest.mark.gen_test(timeout=60)
@pytest.mark.parametrize("style", ["plain", "coroutine"])
@pytest.mark.parametrize("to", ["its boundary", "the log"])
@pytest.mark.parametrize("how_it_ends", ENDS)
async def test_what_a_callback_raises_goes_to_its_boundary_or_the_log(
    clock: Shifted, expect_log: Callable[..., Any], how_it_ends: str, to: str, style: str
) -> None:
    expect_log(LOG, "fails|dead", times=range(3))
    logged = expect_log(
        "tornado.application",
        "Exception in callback",
        level=logging.ERROR,
        times=int(to == "the log"),
    )
    taken: list[Any] = []
    async with passing(how_it_ends, clock) as (passes, server, end):

        def raises(outcome: Any) -> None:
            raise Raised(repr(outcome))

        async def raises_later(outcome: Any) -> None:
            raises(outcome)

        passes.act = raises if style == "plain" else raises_later
        catch = Raised if to == "its boundary" else ()
        passes.around = (boundary(taken.append, catch=catch),)
        await settled(passes, server, end)
        await until(lambda: taken or logged.count)
        passes.check()
        await goes_on(passes)
    if to == "its boundary":
        assert [type(error) for error in taken] == [Raised]
    else:
        assert taken == [] and isinstance(logged.records[0].exc_info[1], Raised)


# -- fail_callback raises: to the outer boundary, then logged once, no recursion


@pytest.mark.gen_test(timeout=60)
@pytest.mark.parametrize("how_it_ends", [end for end in ENDS if end != "reply"])
async def test_what_fail_callbacks_raise_goes_outwards_and_is_logged_once(
    clock: Shifted, expect_log: Callable[..., Any], how_it_ends: str
) -> None:
    expect_log(LOG, "fails|dead", times=range(3))
    logged = expect_log(
        "tornado.application", "Exception in callback", level=logging.ERROR, times=1
    )
    seen: list[tuple[str, type]] = []

    def passes_on(name: str, error: Exception) -> Callable[[Any], None]:
        def fail_callback(failure: Any) -> None:
            seen.append((name, type(failure)))
            raise error

        return fail_callback

    async with passing(how_it_ends, clock) as (passes, server, end):
        passes.act = passes_on("its own", ServerDead("raised by its own"))
        passes.around = (
            boundary(passes_on("the outermost", Raised())),
            boundary(passes_on("the outer", Timeout("raised by the outer"))),
            boundary(passes_on("the inner", ServerDead("raised by the inner"))),
        )
        await settled(passes, server, end)
        await until(lambda: logged.count)
        passes.check()
        await goes_on(passes)
    assert [name for name, _ in seen] == ["its own", "the inner", "the outer", "the outermost"]
    assert [kind for _, kind in seen] == [passes.expected, ServerDead, ServerDead, Timeout]
    assert isinstance(logged.records[0].exc_info[1], Raised)


def depth() -> int:
    """Returns how many frames there are."""
    frame, count = inspect.currentframe(), 0
    while frame is not None:
        frame, count = frame.f_back, count + 1
    return count


@pytest.mark.gen_test(timeout=60)
@pytest.mark.parametrize("where", ["its own", "boundary"])
async def test_a_fail_callback_that_asks_again_for_ever_does_not_pile_up(
    outage: Any, where: str
) -> None:
    depths: list[int] = []
    with closed_port() as (host, port):
        async with Client([f"{host}:{port}"]) as client:

            def again(error: Any) -> None:
                depths.append(depth())
                if len(depths) < 300:
                    ask()

            def ask() -> None:
                if where == "its own":
                    client.get("k", callback=no_outcome, fail_callback=again)
                else:
                    with boundary(again):
                        client.get("k", callback=no_outcome)

            ask()
            await until(lambda: len(depths) == 300)
    assert max(depths) <= depths[0] + 2


@pytest.mark.gen_test(timeout=60)
async def test_a_boundary_whose_fallback_fails_is_not_asked_again(
    outage: Any, expect_log: Callable[..., Any]
) -> None:
    logged = expect_log(
        "tornado.application", "without fail_callback or boundary", level=logging.ERROR, times=1
    )
    seen: list[Any] = []
    with closed_port() as (host, port):
        async with Client([f"{host}:{port}"]) as client:

            def fallback(error: Any) -> None:
                seen.append(error)
                client.get("other", callback=no_outcome)

            with boundary(fallback):
                client.get("k", callback=no_outcome)
            await until(lambda: logged.count)
            for _ in range(5):
                await turn()
    assert [type(error) for error in seen] == [ConnectionFailed]


# -- callback re-enters the client, closes it, cancels a sibling


@pytest.mark.gen_test(timeout=60)
@pytest.mark.parametrize("how_it_ends", ENDS)
async def test_a_callback_re_enters_the_client(
    clock: Shifted, expect_log: Callable[..., Any], how_it_ends: str
) -> None:
    expect_log(LOG, "fails|dead", times=range(3))
    inner: list[Any] = []
    async with passing(how_it_ends, clock) as (passes, server, end):

        def re_enters(outcome: Any) -> None:
            how = {"callback": inner.append, "fail_callback": inner.append}
            before = len(inner)
            passes.client.set("k1", value("k1"), **how)
            passes.client.get("k1", **how)
            passes.client.get_multi(["k2", "k3"], **how)
            assert len(inner) == before, "an outcome came inside of the method"

        passes.act = re_enters
        await settled(passes, server, end)
        await until(lambda: len(inner) == 3)
        passes.check()
        await goes_on(passes)
    if how_it_ends in ("reply", "timeout", "lost"):
        assert True in inner and value("k1") in inner
        assert {"k2": value("k2"), "k3": value("k3")} in inner
    else:
        assert {type(outcome) for outcome in inner} <= {ServerDead, ClientClosed}


@pytest.mark.gen_test(timeout=60)
@pytest.mark.parametrize("how_it_ends", ENDS)
async def test_a_callback_closes_the_client(
    clock: Shifted, expect_log: Callable[..., Any], how_it_ends: str
) -> None:
    expect_log(LOG, "fails|dead", times=range(3))
    async with passing(how_it_ends, clock) as (passes, server, end):
        passes.act = lambda outcome: (passes.client.close(), passes.client.close())
        await settled(passes, server, end)
        passes.check(*[number for number in range(9) if number != passes.MIDDLE])
        for outcomes in passes.ended:
            (outcome,) = outcomes
            good = passes.expected is None and not isinstance(outcome, MemcacheError)
            assert good or type(outcome) in (passes.expected, ClientClosed)
        with pytest.raises(ClientClosed):
            await passes.client.get("k1")
        assert counts(passes.client)["pending"] == counts(passes.client)["open"] == 0


@pytest.mark.gen_test(timeout=60)
@pytest.mark.parametrize("sibling", [3, 5, 8], ids=["just before", "just behind", "the last"])
@pytest.mark.parametrize("how_it_ends", ENDS)
async def test_a_callback_cancels_a_sibling(
    clock: Shifted, expect_log: Callable[..., Any], how_it_ends: str, sibling: int
) -> None:
    expect_log(LOG, "fails|dead", times=range(3))
    async with passing(how_it_ends, clock) as (passes, server, end):
        passes.act = lambda outcome: passes.entries[sibling].cancel()
        await settled(passes, server, end, but=sibling)
        passes.check(sibling)
        await goes_on(passes)
        # Exactly one: it was cancelled, or it had ended before.
        assert len(passes.ended[sibling]) + passes.entries[sibling].cancelled == 1


# -- a call that waited for a slot fails under its own boundary


class Waiters:
    """Calls in line behind a holder that hangs: who failed, with what, in whose context."""

    def __init__(self) -> None:
        self.failed: list[tuple[str, str, Any]] = []
        self.done: list[str] = []

    def begin(self, client: Client, name: str, key: str, style: str, **how: Any) -> None:
        """Makes the call of ``name``, under a boundary and in a context of its own."""
        contextvars.copy_context().run(self._begin, client, name, key, style, how)

    def _begin(self, client: Client, name: str, key: str, style: str, how: Any) -> None:
        who.set(name)
        with boundary(lambda error: self.failed.append((name, who.get(), error))):
            if style == "callback":
                client.get(key, callback=lambda _: self.done.append(name), **how)
            else:
                client.set(key, value(key), **how)


@asynccontextmanager
async def exhausted(clock: Shifted) -> AsyncIterator[tuple[Gated, Client]]:
    """A client whose only connection hangs: the call that holds it has timed out."""
    async with warm(max_connections=1) as (server, client):
        server.hold("reply", b"k0")
        holder = client.get("k0")
        await until(lambda: server.held)
        clock.shift += D
        fire(client)
        with pytest.raises(Timeout):
            await holder
        assert counts(client)["late"] == 1
        server.asked.clear()
        yield server, client
        server.release()


@pytest.mark.gen_test(timeout=60)
@pytest.mark.parametrize("style", ["callback", "future"])
@pytest.mark.parametrize("end", ["timeout", "lost", "closed"])
async def test_a_call_that_waited_for_a_slot_fails_under_its_own_boundary(
    clock: Shifted, expect_log: Callable[..., Any], end: str, style: str
) -> None:
    expect_log(LOG, "fails|dead", times=range(1, 4))
    waiters = Waiters()
    names = [f"caller {number}" for number in range(6)]
    async with exhausted(clock) as (server, client):
        for name, key in zip(names, KEYS[1:]):
            waiters.begin(client, name, key, style)
        assert counts(client)["waiting"] == 6
        if end == "timeout":
            clock.shift += D
            fire(client)
        elif end == "closed":
            client.close()
        else:
            # The holder's connection goes, and whoever is asked for a new one refuses.
            server.stop()
            server.reset()
        await until(lambda: len(waiters.failed) == 6)
        for _ in range(5):
            await turn()
        assert not any(b"k" in key for one in server.asked for key in one.keys)
    kinds = {"timeout": Timeout, "closed": ClientClosed, "lost": ConnectionFailed}
    assert [(name, found) for name, found, _ in waiters.failed] == [(n, n) for n in names]
    for (_, _, error), key in zip(waiters.failed, KEYS[1:]):
        assert type(error) is kinds[end]
        assert end == "closed" or f"'{key}'" in str(error)
    assert len({id(error) for _, _, error in waiters.failed}) == 6


# -- pool exhausted while the holder hangs: the waiter fails at its own D, FIFO


@pytest.mark.gen_test(timeout=60)
async def test_a_waiter_fails_at_its_own_deadline_and_the_others_stand_in_order(
    clock: Shifted, outage: Any
) -> None:
    waiters = Waiters()
    lengths = [4.0, 1.0, 3.0, None, 2.0, 1.0]
    async with exhausted(clock) as (server, client):
        for number, length in enumerate(lengths, 1):
            waiters.begin(client, f"{length}", f"k{number}", "callback", timeout=length)
        fallen: list[list[str]] = []
        for _ in range(3):
            clock.shift += 0.99
            fire(client)
            assert waiters.failed == [], "before its time"
            clock.shift += 0.01
            fire(client)
            fallen.append([name for name, _, _ in waiters.failed])
            waiters.failed.clear()
        assert fallen == [["1.0", "1.0"], ["2.0"], ["3.0"]]
        # The holder's reply comes after all: who is left is served, in the order of the line.
        server.release()
        await until(lambda: len(waiters.done) == 2)
        assert waiters.done == ["4.0", "None"]
        assert [one.keys for one in server.asked] == [(b"k1",), (b"k4",)]
        await all_is_well(client)
    assert waiters.failed == []


@pytest.mark.gen_test(timeout=60)
async def test_waiters_fail_in_the_phase_of_waiting_with_the_time_that_they_have(
    silent: Silent, outage: Any
) -> None:
    async with Client([silent.address], max_connections=1, request_timeout=0.1) as client:
        with pytest.raises(Timeout):
            await client.get("holder")
        begun = time.monotonic()
        with pytest.raises(Timeout) as caught:
            await client.get("waiter", timeout=0.05)
        assert caught.value.phase == "waiting" and not caught.value.maybe_applied
        assert 0.05 <= time.monotonic() - begun < 0.05 + SLACK


# -- a waiter cancelled at hand-over: the slot goes on to the next


class Leaves:
    """The first in line, which is cancelled at some step: `Run`."""

    def __init__(self, server: Gated, client: Client, kind: str) -> None:
        self.server = server
        self.asked = Asked(client, kind)
        self.turns = 0

    def done(self) -> bool:
        return bool(self.asked.outcomes)

    def cancel(self) -> None:
        self.asked.cancel()

    async def step(self) -> None:
        self.turns += 1
        if self.turns == 2:
            self.server.release()
        await turn()


@pytest.mark.gen_test(timeout=60)
@pytest.mark.parametrize("kind", Asked.KINDS)
async def test_a_waiter_cancelled_at_hand_over_passes_the_slot_on(
    clock: Shifted, expect_log: Callable[..., Any], kind: str
) -> None:
    expect_log(LOG, "fails")

    @asynccontextmanager
    async def begin() -> AsyncIterator[Leaves]:
        async with exhausted(clock) as (server, client):
            leaves = Leaves(server, client, kind)
            after: list[int] = []
            for number in range(2, 8):
                client.set(
                    f"k{number}", value(f"k{number}"), callback=lambda _, n=number: after.append(n)
                )
            assert counts(client)["waiting"] >= 7
            yield leaves
            server.release()
            await until(lambda: len(after) == 6)
            assert after == [2, 3, 4, 5, 6, 7]
            await until(lambda: leaves.asked.outcomes)
            assert server.accepted == 1
            await all_is_well(client)
            assert len(leaves.asked.outcomes) == 1

    assert await cancel_at_every_step(begin) >= 4


# -- connect always failing with more waiters than slots: all fail


@pytest.mark.gen_test(timeout=60)
@pytest.mark.parametrize("reason", ["refused", "hangs", "no name", "accepted and closed"])
async def test_all_fail_when_no_connection_can_be_made(
    expect_log: Callable[..., Any], reason: str
) -> None:
    expect_log(LOG, "fails|dead", times=range(1, 4))
    outcomes: list[Any] = []
    length = 0.2 if reason == "hangs" else 2 * D

    class NoName(Resolver):
        def initialize(self) -> None:
            pass

        async def resolve(self, host: str, port: int, family: Any = 0) -> Any:
            raise OSError(2, "no such name")

    async with contextlib.AsyncExitStack() as stack:
        if reason == "refused":
            host, port = stack.enter_context(closed_port())
        elif reason == "hangs":
            host, port = stack.enter_context(full_backlog())
        elif reason == "no name":
            host, port = "no.example", 11211
        else:
            scripted = await stack.enter_async_context(Scripted([Close()]))
            host, port = scripted.address.split(":")
        connects = stack.enter_context(Connects())
        address = f"{host}:{port}"
        client = await stack.enter_async_context(
            Client([address], max_connections=2, request_timeout=length, resolver=NoName())
        )
        with boundary(outcomes.append):
            for number in range(50):
                client.get(f"k{number}", callback=no_outcome)
                client.set(f"s{number}", b"v", callback=no_outcome)
                client.get_multi([f"m{number}"])
        begun = time.monotonic()
        await until(lambda: len(outcomes) == 150)
        assert time.monotonic() - begun < 0.2 + SLACK
        for _ in range(5):
            await turn()
        assert counts(client)["pending"] == counts(client)["waiting"] == 0
        assert len(connects.to(address)) <= (4 if reason == "accepted and closed" else 2)
    kind = Timeout if reason == "hangs" else ConnectionFailed
    assert len(outcomes) == 150 and {type(one) for one in outcomes} == {kind}
    assert len({id(one) for one in outcomes}) == 150


# -- close() in mid-flight, twice, use after close


class Closed:
    """A call in some phase, whose client is closed at some step: `Run`."""

    def __init__(self, scene: Scene, kind: str) -> None:
        self.scene = scene
        self.client = _Placed(scene.client)
        self.asked = Asked(self.client, kind, "victim")  # type: ignore[arg-type]
        self.closed = False

    def done(self) -> bool:
        future = self.asked.future
        return bool(self.asked.outcomes) if future is None else future.done()

    def cancel(self) -> None:
        self.closed = True
        self.scene.client.close()
        self.scene.client.close()

    async def step(self) -> None:
        await self.scene.step()


class _Placed:
    """A client whose keys all go to the server that is held."""

    def __init__(self, client: Client) -> None:
        self._client = client

    def get(self, key: str, *args: Any, **how: Any) -> Any:
        return self._client.get((0, key), *args, **how)

    def set(self, key: str, data: Any, **how: Any) -> Any:
        return self._client.set((0, key), data, **how)

    def get_multi(self, keys: list[str], **how: Any) -> Any:
        return self._client.get_multi([(0, keys[0]), (1, "elsewhere")], **how)


@pytest.mark.gen_test(timeout=60)
@pytest.mark.parametrize("kind", [kind for kind in Asked.KINDS if kind != "default"])
@pytest.mark.parametrize(
    "phase", [name for name in PHASES if name not in ("writing", "large value")]
)
async def test_close_in_mid_flight_at_any_step_and_twice(
    clock: Shifted,
    monkeypatch: pytest.MonkeyPatch,
    expect_log: Callable[..., Any],
    phase: str,
    kind: str,
) -> None:
    at = PHASES[phase]
    monkeypatch.setattr(connector, "LONGEST_STAGGER", AT_MOST)
    if phase == "waiting":
        expect_log(LOG, "fails: get 'holder'")
    with full_backlog() as hanging:
        held, other = servers(at)
        async with held, other:

            @asynccontextmanager
            async def begin() -> AsyncIterator[Closed]:
                scene = Scene(at, "native", held, other, clock, hanging)
                await scene.arrange()
                run = Closed(scene, kind)
                yield run
                if not run.closed:
                    assert scene.came_to_rest
                    await scene.close()
                    return
                scene.release()
                await until(lambda: run.asked.outcomes)
                for _ in range(3):
                    await turn()
                (outcome,) = run.asked.outcomes
                if kind.endswith("multi") and isinstance(outcome, dict):
                    # One server had answered, or both had.
                    assert {type(error) for error in outcome.errors.values()} <= {ClientClosed}
                else:
                    assert isinstance(outcome, ClientClosed)
                with pytest.raises(ClientClosed):
                    await scene.client.get((0, "victim"))
                for pool in scene.client._pools:
                    assert pool.counts()["pending"] == pool.counts()["open"] == 0
                assert our_timers(asyncio.get_running_loop()) == []
                for future, _ in scene._expected:
                    await asyncio.wait([future])
                    assert isinstance(future.exception(), ClientClosed)
                await scene.close()

            assert await cancel_at_every_step(begin) >= 2


@pytest.mark.gen_test(timeout=60)
@pytest.mark.parametrize("used", [False, True], ids=["never used", "used"])
async def test_use_after_close_is_an_outcome_of_its_own_for_every_call(used: bool) -> None:
    async with warm() as (server, used_client):
        client = used_client if used else Client([server.address])
        client.close()
        client.close()
        asked = [Asked(client, kind) for kind in Asked.KINDS]
        assert [one.outcomes for one in asked] == [[] for _ in asked], "inside of the method"
        await until(lambda: all(one.outcomes for one in asked))
        for one in asked:
            assert [type(outcome) for outcome in one.outcomes] == [ClientClosed]
        calls = [client.version(), client.stats(), client.request(Request(b"get", (b"k1",)))]
        for call in calls:
            with pytest.raises(ClientClosed):
                await call
        await turn()
        assert server.accepted == 1


# -- loop closed in mid-flight, a second loop


@pytest.mark.parametrize("then", ["used", "closed"])
@pytest.mark.parametrize("phase", ["cold", "resolving", "connecting", "reply", "late", "writing"])
def test_a_loop_closed_in_mid_flight_and_a_second_loop(
    start_memcached: Callable[..., Memcached],
    expect_log: Callable[..., Any],
    ledger: Any,
    phase: str,
    then: str,
) -> None:
    # Whoever closes a loop under a client leaves it with open sockets, timers and look-ups.
    ledger.excuse("handler", "timer", *(["task"] if phase == "resolving" else []))
    expect_log(LOG, "[45] memcache calls were lost with their event loop", times=1)
    if phase == "late":
        expect_log(LOG, "fails", times=1)
    server = start_memcached()
    outcomes: list[Any] = []
    with full_backlog() as (host, port):
        hanging = f"{host}:{port}"
        elsewhere = {"connecting": hanging, "resolving": "held.example:11211"}
        client = Client(
            [elsewhere.get(phase, server.address)],
            request_timeout=D,
            max_value_size=16 << 20,
            resolver=Names(hanging=None),
        )

        async def first() -> None:
            if phase not in ("cold", *elsewhere):
                for key in KEYS:
                    await client.set(key, value(key))
            server.stop()
            size = 1000 if phase != "writing" else 16 << 20
            both = {"callback": outcomes.append, "fail_callback": outcomes.append}
            how: dict[str, Any] = {"timeout": 0.02} if phase == "late" else {}
            calls = [client.get("k1"), client.set("k2", value("k2")), client.gets("k3")]
            client.set("large", b"x" * size, **both)
            if phase == "late":
                with pytest.raises(Timeout):
                    await client.get("k4", **how)
            elif phase != "cold":
                await turn()
                await turn()
            assert not any(call.done() for call in calls)

        asyncio.run(first())
    server.resume()
    if then == "closed":
        client.close()
        assert repr(client).endswith("closed>")
        return
    if phase in elsewhere:
        client.set_servers([server.address])

    async def second() -> None:
        for key in KEYS:
            await client.set(key, value(key))
        found = await asyncio.gather(*[client.get(key) for key in KEYS])
        assert found == [value(key) for key in KEYS]
        assert counts(client)["pending"] == 0 and counts(client)["late"] == 0
        client.close()

    asyncio.run(second())
    assert outcomes == [], "nobody is there to be told"


@pytest.mark.gen_test(timeout=60)
async def test_a_second_loop_while_the_first_lives_disturbs_nobody() -> None:
    refused: list[str] = []

    def other_loop(client: Client) -> None:
        async def call() -> None:
            for begin in (
                lambda: client.get("k1"),
                lambda: client.set("k1", b"other", callback=no_outcome),
                lambda: client.get_multi(["k1"]),
                client.close,
            ):
                with pytest.raises(RuntimeError) as caught:
                    begin()
                refused.append(str(caught.value))

        asyncio.run(call())

    async with warm() as (server, client):
        server.hold("reply", b"k1")
        under_way = client.get("k1")
        await asyncio.get_running_loop().run_in_executor(None, other_loop, client)
        server.release()
        assert await under_way == value("k1")
        await all_is_well(client)
    assert len(refused) == 4


# -- fork with warm connections: the child opens its own and leaves the parent's alone


FORK = """
import asyncio, os, sys
from tornado_memcache import Client

client = Client([sys.argv[1]])
KEYS = [f"k{number}" for number in range(20)]


async def own(name):
    for turn in range(5):
        await asyncio.gather(*[client.set(f"{name} {key}".replace(" ", "-"), f"{name} {key} {turn}")
                               for key in KEYS])
        found = await asyncio.gather(*[client.get(f"{name}-{key}") for key in KEYS])
        assert found == [f"{name} {key} {turn}" for key in KEYS], found


def child(name):
    pid = os.fork()
    if pid:
        return pid
    status = 2
    try:
        asyncio.run(own(name))
        client.close()
        status = 0
    finally:
        os._exit(status)


async def main():
    await own("parent")
    await asyncio.gather(*[client.set("large", b"x" * 300_000), client.set("small", b"y")])
    pool = client._pools[0]
    before, opened = list(pool._connections), pool.counts()["open"]
    under_way = [client.get("parent-k1"), client.set("parent-k2", "new"), client.get("large")]
    children = [child(f"child{number}") for number in range(3)]
    assert await asyncio.gather(*under_way) == ["parent k1 4", True, b"x" * 300_000]
    while children:  # (the parent goes on meanwhile)
        await own("parent")
        pid, status = os.waitpid(children[-1], os.WNOHANG)
        if pid:
            assert status == 0, status
            children.pop()
    assert list(pool._connections) == before and pool.counts()["open"] == opened
    assert pool.counts()["pending"] == 0 and pool.losses == 0
    client.close()


asyncio.run(main())
"""


def run_apart(script: str, *arguments: str) -> None:
    """Runs ``script`` in a process of its own: what it does is not for this one."""
    command = [sys.executable, "-W", "error", "-c", script, *arguments]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stdout + done.stderr


def test_children_of_fork_open_their_own_connections_and_leave_the_parent_s_alone(
    memcached: Memcached,
) -> None:
    before = int(memcached.stats()["total_connections"])
    run_apart(FORK, memcached.address)
    made = int(memcached.stats()["total_connections"]) - before - 1
    # One or two of the parent's (a large value has its own), and one or more of each child.
    assert 4 <= made <= 16


# -- wall clock +-1 h: deadlines and dead_retry unmoved


@pytest.mark.gen_test(timeout=60)
@pytest.mark.parametrize("jump", [3600.0, -3600.0], ids=["an hour on", "an hour back"])
async def test_a_wall_clock_that_is_set_moves_no_deadline_and_no_pause(
    silent: Silent, monkeypatch: pytest.MonkeyPatch, expect_log: Callable[..., Any], jump: float
) -> None:
    expect_log(LOG, "fails|dead", times=range(1, 5))
    wall = Shifted(time.time)
    monkeypatch.setattr(time, "time", wall)
    ended: dict[str, float] = {}
    lengths = {"own": 0.1, "budget": 0.15, "request_timeout": 0.2, "after the jump": 0.25}
    async with Client([silent.address], request_timeout=0.2) as client:
        begun = time.monotonic()
        for name, length in lengths.items():
            if name == "after the jump":
                wall.shift = jump
            how: dict[str, Any] = {"timeout": length} if name in ("own", "after the jump") else {}
            with boundary(
                lambda error, name=name: ended.update({name: time.monotonic() - begun}),
                timeout=length if name == "budget" else None,
            ):
                client.get(name.replace(" ", "-"), callback=no_outcome, **how)
        await until(lambda: len(ended) == 4)
        for name, length in lengths.items():
            assert length - 0.001 <= ended[name] < length + SLACK, name
    with closed_port() as (host, port):
        # The clock of the deadlines stands still, so the pause is exactly as long as it is.
        still = Shifted(lambda: 1000.0)
        monkeypatch.setattr(deadlines, "clock", still)
        async with Client([f"{host}:{port}"]) as client:
            with pytest.raises(ConnectionFailed):
                await client.get("a")
            for shift in (0.0, jump, -jump):
                wall.shift = shift
                with pytest.raises(ServerDead):
                    await client.get("a")
            still.shift += 0.25
            with pytest.raises(ConnectionFailed):
                await client.get("a")


# -- loop blocked 500 ms: a reply already in the socket wins over the timer


@pytest.mark.gen_test(timeout=60)
@pytest.mark.parametrize("size", [10, 300_000], ids=["small", "in many segments"])
async def test_after_a_blocked_loop_a_reply_in_the_socket_wins_over_the_timer(
    start_memcached: Callable[..., Memcached], expect_log: Callable[..., Any], size: int
) -> None:
    expect_log(LOG, "fails")
    answers, stands = start_memcached(), start_memcached()
    # (A segment of a large value leaves while the loop is blocked, the next when it has read.)
    async with Client([answers.address, stands.address], request_timeout=0.3) as client:
        stored = b"v" * size
        assert await client.set_multi({(0, "k"): stored, (1, "k"): stored}) == []
        stands.stop()
        spent = client.get((1, "k"))
        with boundary(no_outcome, timeout=0.1):
            calls = [client.gets((0, "k")), client.get_multi([(0, "k")])]
        calls += [client.get((0, "k"), timeout=0.2), client.set((0, "j"), 1), client.get((0, "k"))]
        await turn()
        time.sleep(0.5)
        outcomes = await asyncio.gather(*calls)
        assert outcomes[0][0] == stored and outcomes[1] == {(0, "k"): stored}
        assert outcomes[2:] == [stored, True, stored]
        with pytest.raises(Timeout):  # (nothing was there for this one)
            await spent
        assert client._pools[0].counts()["late"] == client._pools[0].health.failures == 0
        assert client._pools[1].counts()["late"] == 1


@pytest.mark.gen_test
async def test_a_get_that_joins_a_line_late_in_a_long_turn_has_its_whole_time(
    clock: Shifted, outage: Any
) -> None:
    async with warm() as (server, client):
        server.hold("reply", b"k2")
        first = client.get("k1")  # (leaves at once; the others wait for the end of the turn)
        calls = [client.get("k2")]
        clock.shift += D + 1.0
        calls.append(client.get("k3"))
        await until(lambda: server.held and first.done())
        for moment in (0.0, D - 0.1):
            clock.shift += moment
            fire(client)
            assert not any(call.done() for call in calls)
        clock.shift += 0.2
        fire(client)
        assert [type(call.exception()) for call in calls] == [Timeout, Timeout]
        server.release()
        await all_is_well(client)


@pytest.mark.gen_test
async def test_a_get_that_joins_a_line_early_in_a_long_turn_outlives_no_deadline_of_its_own(
    clock: Shifted, outage: Any
) -> None:
    """The usual time runs from the call if it is given, or if the call is under a budget."""
    ended: list[Any] = []
    async with warm() as (server, client):
        server.hold("reply", b"k2")
        first = client.get("k1")  # (leaves at once; the others wait for the end of the turn)
        plain = client.get("k2")
        own = client.get("k3", timeout=D)
        with boundary(ended.append, timeout=D + 0.5):
            client.get("k4", callback=no_outcome)
        clock.shift += D - 1.0
        await until(lambda: server.held and first.done())
        for moment, outcomes in ((0.9, (False, 0)), (0.2, (True, 1))):
            clock.shift += moment
            fire(client)
            await turn()
            assert (own.done(), len(ended)) == outcomes
        assert [type(own.exception()), type(ended[0])] == [Timeout, Timeout]
        assert not plain.done()
        server.release()
        await plain
        await all_is_well(client)


# -- RLIMIT_NOFILE reached: fails at once, recovers


NO_FILES = """
import asyncio, errno, os, resource, sys, time
from tornado_memcache import Client, ConnectionFailed, ServerDead

address = sys.argv[1]
soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)


def files():
    return len(os.listdir("/proc/self/fd"))


async def main():
    cold, warm = Client([address]), Client([address])
    assert await warm.set("k", "v")
    base = files()
    # (listdir holds one itself: with all below the highest in use, no more can be opened)
    resource.setrlimit(resource.RLIMIT_NOFILE, (max(map(int, os.listdir("/proc/self/fd"))), hard))
    spare = []
    try:
        while True:
            spare.append(os.dup(0))
    except OSError as error:
        assert error.errno == errno.EMFILE
    begun = time.monotonic()
    failed = await asyncio.gather(*[cold.get("k") for _ in range(50)], return_exceptions=True)
    assert time.monotonic() - begun < 0.5, "not at once"
    assert {type(one) for one in failed} == {ConnectionFailed}
    assert {one.errno for one in failed} == {errno.EMFILE}
    try:
        await cold.get("k")
    except ServerDead:
        pass
    else:
        raise AssertionError("it is asked again at once")
    # One that has a connection lives with it, though large work would like another.
    for turn in range(3):
        value = b"%d" % turn * 200_000
        done = await asyncio.gather(
            warm.set("large", value), warm.get("large"), *[warm.get("k") for _ in range(20)]
        )
        assert done == [True, value] + ["v"] * 20
    assert warm._pools[0].counts()["open"] == 1 and not warm._pools[0].health.dead
    resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    for one in spare:
        os.close(one)
    assert files() == base, "a file was left open"
    until = time.monotonic() + 10
    while True:
        try:
            assert await cold.get("k") == "v"
            break
        except ServerDead:
            assert time.monotonic() < until
            await asyncio.sleep(0.02)
    cold.close()
    warm.close()


asyncio.run(main())
"""


def test_without_free_files_it_fails_at_once_and_recovers(memcached: Memcached) -> None:
    run_apart(NO_FILES, memcached.address)


# -- an abandoned future: no leak, no flood


@pytest.mark.gen_test(timeout=60)
@pytest.mark.parametrize("where", ["nowhere", "under a boundary"])
@pytest.mark.parametrize("end", ["refused", "timeout", "lost", "reply"])
async def test_abandoned_futures_leak_nothing_and_do_not_flood_the_log(
    clock: Shifted, expect_log: Callable[..., Any], end: str, where: str
) -> None:
    lines = expect_log(LOG, "fails|dead", times=range(3))
    told: list[Any] = []
    left: list[weakref.ref[Any]] = []
    async with contextlib.AsyncExitStack() as stack:
        server, client = await stack.enter_async_context(warm())
        if end == "refused":
            host, port = stack.enter_context(closed_port())
            client = await stack.enter_async_context(Client([f"{host}:{port}"]))
        else:
            server.hold("reply")
        with boundary(told.append) if where != "nowhere" else contextlib.nullcontext():
            for number in range(100):
                left.append(weakref.ref(client.set(f"k{number % 10}", value(f"k{number % 10}"))))
                left.append(weakref.ref(client.get(f"other{number}", b"none")))
                left.append(weakref.ref(client.get_multi([f"k{number % 10}", "no"])))
        if end == "lost":
            await until(lambda: server.held)
            server.reset()
        elif end == "timeout":
            await until(lambda: server.held)
            clock.shift += D
            fire(client)
        server.release()
        await until(lambda: not counts(client)["pending"])
        await until(lambda: not our_timers(asyncio.get_running_loop()))
        for _ in range(5):
            await turn()
        failed = {"refused": 300, "timeout": 300, "lost": 100, "reply": 0}[end]
        assert client._pools[0].health.failures == failed
        assert len(told) == (failed if where != "nowhere" else 0)
        assert len(set(map(id, told))) == len(told)
        told.clear()
        gc.collect()
        assert not any(one() is not None for one in left), "futures are kept"
        assert lines.count <= 2
        if end != "refused":
            await all_is_well(client)


# -- 1 000 cold calls at once: at most max_connections connects


@pytest.mark.gen_test(timeout=60)
@pytest.mark.parametrize("most", [1, 2, 4])
@pytest.mark.parametrize("what", ["gets", "sets", "all kinds", "large"])
async def test_a_thousand_cold_calls_make_at_most_max_connections(what: str, most: int) -> None:
    async with Gated() as server:
        address = server.address
        with Connects() as connects:
            lengths = {"request_timeout": 30.0, "connect_timeout": 30.0}
            async with Client([address], max_connections=most, **lengths) as client:
                number = 1000 if what != "large" else 100
                for n in range(number):
                    server.store.set(b"k%d" % n, value(f"k{n}"))
                calls: list[Any] = []
                expected: list[Any] = []
                for n in range(number):
                    key = f"k{n}"
                    if what == "gets" or (what == "all kinds" and n % 3 == 0):
                        calls.append(client.get(key))
                        expected.append(value(key))
                    elif what == "all kinds" and n % 3 == 1:
                        calls.append(client.get_multi([key, f"no{n}"]))
                        expected.append({key: value(key)})
                    else:
                        data = value(key) * (1 if what != "large" else 14_000)
                        calls.append(client.set(key, data))
                        expected.append(True)
                assert counts(client)["pending"] == number
                assert await asyncio.gather(*calls) == expected
                assert len(connects.to(address)) == server.accepted <= most
                assert counts(client)["open"] <= most
        await until(lambda: not server.connections)
