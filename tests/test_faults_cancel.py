"""Cancelled at every step, in every phase: every call of the client and of its two faces.

The product of tables is tried: what is asked (`CALLS`), awaited or with a
callback, alone or among the calls of others; where it comes to rest
(`scenes.PHASES`); and the steps of `steps.cancel_at_every_step`. Whatever was
cancelled where: it has one outcome, nothing is left of it, and whoever asks
next on the same client gets the value of the key that was asked for: every
value carries its key and a nonce. The server is a `Gated`, so that a call
stays in a phase until it was seen there, and nothing waits for a time.
"""

from __future__ import annotations

import asyncio
import itertools
import os
import time
from collections import Counter
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager
from typing import Any, NamedTuple

import pytest

from tornado_memcache import Reply, Request, boundary, connector, deadlines
from tornado_memcache.boundaries import Entry

from .hand import Shifted
from .networks import full_backlog
from .scenes import AT_MOST, PHASES, Scene, servers, until, waits
from .steps import cancel_at_every_step

#: How many calls were cancelled in each phase.
cancelled: Counter[str] = Counter()


# -- what is asked


class Call(NamedTuple):
    """What is asked of whom, and what comes of it when it is not cancelled.

    ``begin(scene, **how)`` begins it. The held server answers for keys
    that begin with "victim", another one for "elsewhere". ``good`` is the
    outcome, or tells of one whether it is right. ``does`` says what it
    does to a value, if anything.
    """

    begin: Callable[..., Any]
    good: Any
    does: str = ""


V, N, F, E = (0, "victim"), (0, "victim-number"), (0, "victim-fresh"), (1, "elsewhere")


def _hits(scene: Scene, found: Any) -> bool:
    return dict(found) == {V: scene.value("victim"), E: scene.value("elsewhere")}


def _value(scene: Scene, outcome: Any) -> bool:
    return outcome == scene.value("victim")


def _item(scene: Scene, outcome: Any) -> bool:
    return outcome.value == scene.value("victim")


def _pair(scene: Scene, outcome: Any) -> bool:
    return _value(scene, outcome[0]) and outcome[1] > 0


def _of_both(scene: Scene, outcome: Any) -> bool:
    return len(outcome) == 2 and not getattr(outcome, "errors", None)


def _new(scene: Scene, outcome: Any) -> bool:
    return outcome == scene.new


def _several(scene: Scene, callback: Any = None) -> Any:
    """What an application does: three calls, one after the other, in either style."""
    client = scene.client
    if callback is not None:

        def fetched(pair: Any) -> None:
            client.cas(V, scene.new, pair[1], callback=stored)

        def stored(done: bool) -> None:
            client.get(V, callback=callback)

        return client.gets(V, callback=fetched)

    async def several() -> Any:
        _, token = await client.gets(V)
        await client.cas(V, scene.new, token)
        return await client.get(V)

    return several()


CALLS: dict[str, dict[str, Call]] = {
    "native": {
        "get": Call(lambda s, **how: s.client.get(V, **how), _value, "reads"),
        "get default": Call(lambda s, **how: s.client.get(V, "d", **how), _value, "reads"),
        "gat": Call(lambda s, **how: s.client.gat(V, 100, **how), _value, "reads"),
        "gets": Call(lambda s, **how: s.client.gets(V, **how), _pair, "reads"),
        "gats": Call(lambda s, **how: s.client.gats(V, 100, **how), _pair, "reads"),
        "get_multi": Call(lambda s, **how: s.client.get_multi([V, E], **how), _hits, "reads"),
        "gets_multi": Call(
            lambda s, **how: s.client.gets_multi([V, E], **how),
            lambda s, found: _hits(s, {key: value for key, (value, _) in found.items()}),
            "reads",
        ),
        "set": Call(lambda s, **how: s.client.set(V, s.new, **how), True, "stores"),
        "add": Call(lambda s, **how: s.client.add(F, s.new, **how), True, "stores"),
        "replace": Call(lambda s, **how: s.client.replace(V, s.new, **how), True, "stores"),
        "append": Call(lambda s, **how: s.client.append(V, s.new, **how), True, "stores"),
        "prepend": Call(lambda s, **how: s.client.prepend(V, s.new, **how), True, "stores"),
        "cas": Call(lambda s, **how: s.client.cas(V, s.new, s.token, **how), True, "stores"),
        "set_multi": Call(
            lambda s, **how: s.client.set_multi({V: s.new, E: s.new}, **how), [], "stores"
        ),
        "delete_multi": Call(lambda s, **how: s.client.delete_multi([V, E], **how), [], "writes"),
        "delete": Call(lambda s, **how: s.client.delete(V, **how), True, "writes"),
        "touch": Call(lambda s, **how: s.client.touch(V, 100, **how), True, "writes"),
        "incr": Call(lambda s, **how: s.client.incr(N, 2, **how), 7, "writes"),
        "decr": Call(lambda s, **how: s.client.decr(N, 2, **how), 3, "writes"),
        "flush_all": Call(lambda s, **how: s.client.flush_all(1000, **how), _of_both),
        "stats": Call(lambda s, **how: s.client.stats(**how), _of_both),
        "version": Call(lambda s, **how: s.client.version(**how), _of_both),
        "request": Call(
            lambda s, **how: s.client.request(Request(b"get", (b"victim",)), route=0, **how),
            lambda s, reply: _value(s, reply.items[b"victim"].value),
            "reads",
        ),
        "request set": Call(
            lambda s, **how: s.client.request(Request(b"set", (b"victim",), s.new), route=0, **how),
            Reply(b"STORED"),
            "stores",
        ),
        "request_many": Call(
            lambda s, **how: s.client.request_many(
                [(0, Request(b"set", (b"victim",), s.new)), (1, Request(b"get", (b"elsewhere",)))],
                **how,
            ),
            lambda s, replies: [one.status for one in replies] == [b"STORED", b"END"],
            "stores",
        ),
        "several": Call(_several, _new),
        "meta_get": Call(lambda s, **how: s.client.meta_get(V, **how), _item, "reads"),
        "meta_get vivify": Call(
            lambda s, **how: s.client.meta_get(F, vivify=100, **how),
            lambda s, item: item.won,
            "writes",
        ),
        "meta_get_multi": Call(
            lambda s, **how: s.client.meta_get_multi([V, E], **how),
            lambda s, found: _hits(s, {key: item.value for key, item in found.items()}),
            "reads",
        ),
        "meta_set": Call(lambda s, **how: s.client.meta_set(V, s.new, **how), True, "stores"),
        "meta_delete": Call(lambda s, **how: s.client.meta_delete(V, **how), True, "writes"),
        "meta_arithmetic": Call(
            lambda s, **how: s.client.meta_arithmetic(N, 2, **how),
            lambda s, item: item.value == 7,
            "writes",
        ),
        "debug": Call(lambda s, **how: s.client.debug(V, **how), lambda s, told: "exp" in told),
        "meta_noop": Call(lambda s, **how: s.client.meta_noop(**how), _of_both),
    },
    "memcache": {
        "get": Call(lambda s, **how: s.face.get(V, **how), _value, "reads"),
        "gets": Call(lambda s, **how: s.face.gets(V, **how), _value, "reads"),
        "get_multi": Call(lambda s, **how: s.face.get_multi([V, E], **how), _hits, "reads"),
        "set": Call(lambda s, **how: s.face.set(V, s.new, **how), True, "stores"),
        "add": Call(lambda s, **how: s.face.add(F, s.new, **how), True, "stores"),
        "replace": Call(lambda s, **how: s.face.replace(V, s.new, **how), True, "stores"),
        "append": Call(lambda s, **how: s.face.append(V, s.new, **how), True, "stores"),
        "prepend": Call(lambda s, **how: s.face.prepend(V, s.new, **how), True, "stores"),
        "cas": Call(lambda s, **how: s.face.cas(V, s.new, **how), True, "stores"),
        "set_multi": Call(
            lambda s, **how: s.face.set_multi({V: s.new, E: s.new}, **how), [], "stores"
        ),
        "delete": Call(lambda s, **how: s.face.delete(V, **how), 1, "writes"),
        "delete_multi": Call(lambda s, **how: s.face.delete_multi([V, E], **how), 1, "writes"),
        "touch": Call(lambda s, **how: s.face.touch(V, 100, **how), 1, "writes"),
        "incr": Call(lambda s, **how: s.face.incr(N, 2, **how), 7, "writes"),
        "decr": Call(lambda s, **how: s.face.decr(N, 2, **how), 3, "writes"),
        "get_stats": Call(lambda s, **how: s.face.get_stats(**how), _of_both),
        "get_slabs": Call(lambda s, **how: s.face.get_slabs(**how), _of_both),
    },
    "tornadoasyncmemcache": {
        "get": Call(lambda s, **how: s.face.get(V, **how), _value, "reads"),
        "gets": Call(
            lambda s, **how: s.face.gets([V, E], **how),
            lambda s, found: _hits(s, {V: found["victim"], E: found["elsewhere"]}),
            "reads",
        ),
        "set": Call(lambda s, **how: s.face.set(V, s.new, **how), None, "stores"),
        "add": Call(lambda s, **how: s.face.add(F, s.new, **how), None, "stores"),
        "replace": Call(lambda s, **how: s.face.replace(V, s.new, **how), None, "stores"),
        "delete": Call(lambda s, **how: s.face.delete(V, **how), None, "writes"),
        "incr": Call(lambda s, **how: s.face.incr(N, 2, **how), 7, "writes"),
        "decr": Call(lambda s, **how: s.face.decr(N, 2, **how), 3, "writes"),
    },
}
STYLES = {
    "native": ("awaited", "callback"),
    "memcache": ("awaited", "callback"),
    "tornadoasyncmemcache": ("callback",),
}
#: The phases in which others call in the same turn too, natively: the faces stand on that.
COMPANY = ("cold", "warm", "waiting", "behind a large write", "reply", "value")


def _at_once(function: Callable[..., Any], *args: Any) -> None:
    function(*args)


class Cancelled:
    """The call that is cancelled: `Run`, in either style."""

    def __init__(self, scene: Scene, call: Call, style: str, company: bool) -> None:
        self.scene, self.call = scene, call
        self.outcomes: list[Any] = []
        self.entry: Entry | None = None
        self.task: asyncio.Task[None] | None = None
        #: True if no byte of it can have left when it was cancelled.
        self.unsent = False
        soon = asyncio.get_running_loop().call_soon if style == "awaited" else _at_once
        if company:  # (in the very turn in which the call is made)
            soon(scene.ask, "before")
        if style == "awaited":
            self.task = asyncio.ensure_future(self._await())
        else:
            self._call()
        if company:
            soon(scene.ask, "after")

    async def _await(self) -> None:
        self.outcomes.append(await self.call.begin(self.scene))

    def _call(self) -> None:
        with boundary(self.outcomes.append) as self.entry:
            self.call.begin(self.scene, callback=self.outcomes.append)

    def done(self) -> bool:
        return bool(self.outcomes) if self.task is None else self.task.done()

    def cancel(self) -> None:
        self.unsent = self.scene.phase.unsent and not self.scene.let_go
        if self.task is not None:
            self.task.cancel()
        elif self.entry is not None:
            self.entry.cancel()
        self.scene.adds_up()

    async def step(self) -> None:
        await self.scene.step()

    def is_right(self) -> None:
        """The call has ended by itself: after its rest, with the outcome that is its own."""
        if self.task is not None:
            self.task.result()
        assert self.scene.came_to_rest
        (outcome,) = self.outcomes
        good = self.call.good
        assert good(self.scene, outcome) if callable(good) else outcome == good

    async def has_left_the_line(self) -> None:
        """Nobody connects for nobody, and a place in line is not kept for it."""
        if self.task is not None:
            # (With a callback it has left in the turn in which others ask.)
            await asyncio.wait([self.task])
            await until(lambda: not waits(self.scene))
        counts = self.scene.pool.counts()
        assert counts["waiting"] == 0
        assert self.scene.phase.warm or (counts["open"], counts["pending"]) == (0, 0)

    async def has_one_outcome(self) -> None:
        if self.task is not None:
            await asyncio.wait([self.task])
            assert self.task.cancelled() and not self.outcomes
        elif self.entry is not None:
            assert (self.outcomes, self.entry.cancelled) == ([], 1)


# -- the product


@pytest.fixture(scope="module")
def hanging() -> Iterator[Any]:
    with full_backlog() as address:
        yield address


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Shifted:
    clock = Shifted(time.monotonic)
    monkeypatch.setattr(deadlines, "clock", clock)
    return clock


@pytest.fixture(scope="module", autouse=True)
def told(request: pytest.FixtureRequest) -> Iterator[None]:
    """Says at the end how many calls were cancelled."""
    yield
    capture: Any = request.config.pluginmanager.get_plugin("capturemanager")
    with capture.global_and_fixture_disabled():
        print(f"\n{sum(cancelled.values())} calls were cancelled: {dict(cancelled)}")


def product() -> list[Any]:
    found = []
    for phase, face in itertools.product(PHASES, CALLS):
        for name, call in CALLS[face].items():
            if not PHASES[phase].size or call.does == PHASES[phase].only:
                found.append(pytest.param(phase, face, call, id=f"{phase}-{face} {name}"))
    return found


@pytest.mark.gen_test(timeout=120)
@pytest.mark.parametrize("phase, face, call", product())
async def test_a_call_cancelled_at_any_step(
    phase: str,
    face: str,
    call: Call,
    hanging: Any,
    clock: Shifted,
    monkeypatch: pytest.MonkeyPatch,
    expect_log: Callable[..., Any],
) -> None:
    at = PHASES[phase]
    monkeypatch.setattr(connector, "LONGEST_STAGGER", AT_MOST)
    if phase == "waiting":
        expect_log("tornado_memcache", "fails: get 'holder'")
    held, other = servers(at)
    async with held, other:
        together = (False, True) if face == "native" and phase in COMPANY else (False,)
        for style, company in itertools.product(STYLES[face], together):
            states: set[Any] = set()

            @asynccontextmanager
            async def begin(
                style: str = style, company: bool = company, states: set[Any] = states
            ) -> AsyncIterator[Cancelled]:
                files = len(os.listdir("/proc/self/fd"))
                scene = Scene(at, face, held, other, clock, hanging)
                untouched = scene.state()
                await scene.arrange()
                run = Cancelled(scene, call, style, company)
                yield run
                if finished := run.done():
                    run.is_right()
                    assert states <= {untouched, scene.state()}
                if run.unsent and not company:
                    await run.has_left_the_line()
                scene.ask_others()
                await scene.stand_still()
                scene.release()
                if not finished:
                    await run.has_one_outcome()
                await scene.others_are_right()
                scene.ask("second")
                scene.ask("third", 1)
                await scene.others_are_right()
                await scene.is_clean()
                if run.unsent and call.does in ("stores", "writes"):
                    assert scene.state() == untouched, "a write was sent that had ended before"
                states.add(scene.state())
                await scene.close()
                assert len(run.outcomes) == finished
                assert run.entry is None or run.entry._members == {}
                assert len(os.listdir("/proc/self/fd")) == files

            number = await cancel_at_every_step(begin)
            cancelled[phase] += number
            # (libuv calls who waits for a socket in the turn in which it is ready, asyncio in
            # the next.)
            libuv = not isinstance(asyncio.get_running_loop(), asyncio.BaseEventLoop)
            assert number >= at.steps - libuv
