"""Cancelled at every step, in every phase: every call of the client and of its two faces.

The product of tables is tried: what is asked (`CALLS`), awaited or with a
callback, alone or among the calls of others; where it comes to rest
(`PHASES`); and the steps of `steps.cancel_at_every_step`. Whatever was
cancelled where: it has one outcome, nothing is left of it, and whoever asks
next on the same client gets the value of the key that was asked for: every
value carries its key and a nonce. The server is a `Gated`, so that a call
stays in a phase until it was seen there, and nothing waits for a time.
"""

from __future__ import annotations

import asyncio
import itertools
import os
import socket
import time
from collections import Counter
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager
from typing import Any, NamedTuple

import pytest
from tornado.netutil import Resolver

from tornado_memcache import (
    Client,
    Reply,
    Request,
    Timeout,
    boundary,
    connector,
    deadlines,
    memcache,
    tornadoasyncmemcache,
)
from tornado_memcache.boundaries import Entry

from .gated import Gated
from .hand import Shifted
from .ledger import our_timers
from .steps import cancel_at_every_step, turn

#: Nothing here waits for a time; this bounds what goes wrong, in seconds.
AT_MOST = 10.0
#: More bytes than are taken in while nobody reads, and than count as small work.
LARGE = 400_000
#: So many steps a call is left where it rests.
LINGER = 2

_nonces = itertools.count(1)
#: How many calls were cancelled in each phase.
cancelled: Counter[str] = Counter()


async def until(true: Callable[[], Any]) -> None:
    """Lets the loop turn until ``true()``."""
    end = time.monotonic() + AT_MOST
    while not true():
        assert time.monotonic() < end, "it did not come"
        await turn()


# -- where a call rests


class Phase(NamedTuple):
    """Where a call comes to rest, and how the scene for it is set.

    ``rests(scene)`` is True while the call is there. A lone call has at
    least ``steps`` steps. ``settings`` are the client's, ``host`` is the
    held server's. The server is held at ``place`` of the reply. With
    ``unsent`` no byte of the call can have left before it goes on. Where
    values are of ``size``, ``only`` says which calls have one.
    """

    steps: int
    rests: Callable[[Any], bool] = lambda scene: scene.held.held
    warm: bool = True
    host: str = "127.0.0.1"
    place: str = ""
    size: int = 0
    only: str = ""
    unsent: bool = False
    settings: dict[str, Any] = {}
    before: Callable[[Any], Any] | None = None


#: With one connection to a server, a call that cannot use it waits.
ONE = {"max_connections": 1}


def _never(scene: Scene) -> bool:
    return False


def _connection_is(phase: str) -> Callable[[Any], bool]:
    return lambda scene: any(one.phase == phase for one in scene.pool._connections)


def _waits(scene: Scene) -> bool:
    return bool(scene.pool.counts()["waiting"])


def _writes(scene: Scene) -> bool:
    streams = [one._stream for one in scene.pool._connections]
    return any(stream is not None and stream.writing() for stream in streams)


async def _make_late(scene: Scene) -> None:
    """Leaves the client with a connection that is late, and no other."""
    client = scene.client
    scene.held.hold("reply", b"holder")
    holder = client.get((0, "holder"))
    await until(lambda: scene.held.held)
    scene.clock.shift += client._settings.request_timeout
    client._deadlines._disarm()
    client._deadlines._fire()
    with pytest.raises(Timeout):
        await holder
    assert scene.pool.counts()["late"] == 1


async def _write_large(scene: Scene) -> None:
    """Has another caller write a large value to the server, which does not read."""
    large = scene.value("holder", LARGE)
    scene.expect(scene.client.set((0, "holder"), large), True)
    await until(lambda: _writes(scene))


#: A phase is one entry. (One of the TLS handshake rests as ``_connection_is("tls")`` says.)
PHASES = {
    "cold": Phase(5, _never, warm=False),
    "warm": Phase(2, _never),
    "waiting": Phase(6, _waits, before=_make_late, unsent=True, settings=ONE),
    "resolving": Phase(7, _connection_is("resolving"), False, "held.example", unsent=True),
    "connecting": Phase(6, _connection_is("connecting"), False, "slow.example", unsent=True),
    "writing": Phase(6, _writes, place="reading", size=LARGE, only="stores"),
    "behind a large write": Phase(
        6, place="reading", before=_write_large, unsent=True, settings=ONE
    ),
    "reply": Phase(5, place="reply"),
    "header": Phase(5, place="header"),
    "value": Phase(5, place="value"),
    "large value": Phase(5, place="value", size=LARGE, only="reads"),
    "end": Phase(5, place="end"),
}


class Names(Resolver):
    """Names: "held.example" when it is let, "slow.example" behind an address that hangs."""

    def initialize(self, hanging: Any) -> None:
        self.hanging = hanging
        self.found = asyncio.Event()

    async def resolve(self, host: str, port: int, family: Any = 0) -> Any:
        real = (socket.AF_INET, ("127.0.0.1", port))
        if host == "slow.example":
            return [(socket.AF_INET, self.hanging), real]
        await self.found.wait()
        return [real]


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


# -- a scene: one client, two servers, the call that is cancelled, and others


class Scene:
    """What one run takes place in; afterwards it looks at everything."""

    def __init__(
        self, phase: Phase, face: str, servers: list[Gated], clock: Shifted, hanging: Any
    ) -> None:
        self.phase, self.clock = phase, clock
        self.held, self.other = servers
        self.nonce = next(_nonces)
        self.names = Names(hanging=hanging)
        self.let_go = False
        self._expected: list[tuple[Any, Any]] = []
        self._counted = 0
        settings: dict[str, Any] = {
            "request_timeout": AT_MOST,
            "connect_timeout": AT_MOST,
            "resolver": self.names,
            **phase.settings,
        }
        addresses = [f"{phase.host}:{self.held.port}", self.other.address]
        self.face: Any = {
            "native": Client,
            "memcache": memcache.Client,
            "tornadoasyncmemcache": tornadoasyncmemcache.ClientPool,
        }[face](addresses, **settings)
        self.client: Any = getattr(self.face, "_native", self.face)
        self.client.warm_up()  # (it opens nothing, and has its pools now)
        self._fill()

    def value(self, key: str, size: int = 0) -> bytes:
        """Returns the value of ``key``, which no other key and no other run has."""
        value = f"<{key} {self.nonce:06}>".encode()
        if size or (self.phase.size and key == "victim"):
            value = value.ljust(LARGE, b".")
        return value

    @property
    def new(self) -> bytes:
        return self.value("new", self.phase.size)

    @property
    def pool(self) -> Any:
        return self.client._pools[0]

    def _fill(self) -> None:
        for server, keys in (
            (self.held, ("victim", "holder", "before", "after", "first", "second")),
            (self.other, ("elsewhere", "third")),
        ):
            server.release()
            server.asked.clear()
            server.store.flush_all()
            for key in keys:
                server.store.set(key.encode(), self.value(key))
        self.held.store.set(b"victim-number", b"5")
        self.held.store.set(b"count", b"0")
        self.token = self.held.store.get(b"victim").cas_unique  # type: ignore[union-attr]
        if isinstance(self.face, memcache.Client):
            self.face.cas_ids[b"victim"] = self.token  # type: ignore[assignment]

    def state(self) -> tuple[bytes | None, ...]:
        """Returns what the held server has of the keys that the call may change."""
        items = [self.held.store.get(key) for key in (b"victim", b"victim-number", b"victim-fresh")]
        nonce = b" %06d>" % self.nonce
        return tuple(item and item.value.replace(nonce, b">") for item in items)

    async def arrange(self) -> None:
        """Sets the scene for the phase."""
        phase = self.phase
        if phase.warm:
            await asyncio.gather(self.client.get((0, "first")), self.client.get((1, "third")))
        self._warm = list(self.pool._connections)
        if phase.place:
            self.held.hold(phase.place, b"victim")
        if phase.before is not None:
            await phase.before(self)

    # -- other callers

    def expect(self, future: Any, value: Any) -> None:
        self._expected.append((future, value))

    def ask(self, key: str, server: int = 0) -> None:
        self.expect(self.client.get((server, key)), self.value(key))

    def ask_others(self) -> None:
        """Has others make calls of every kind, whatever stands still."""
        client, number = self.client, len(self._expected)
        fresh, stored = (0, f"fresh-{number}"), self.value(f"fresh-{number}")
        self.ask("first")
        self.expect(client.set(fresh, stored), True)
        self.expect(client.get(fresh), stored)
        self.ask("third", 1)
        keys = [(0, "first"), (0, "second"), (1, "third")]
        self.expect(client.get_multi(keys), {key: self.value(key[1]) for key in keys})
        self._counted += 1
        self.expect(client.incr((0, "count")), self._counted)
        called_back = asyncio.get_running_loop().create_future()
        client.get((0, "second"), callback=called_back.set_result)
        self.expect(called_back, self.value("second"))

    async def others_are_right(self) -> None:
        await asyncio.wait([future for future, _ in self._expected], timeout=AT_MOST)
        for future, value in self._expected:
            assert future.result() == value

    # -- the whole

    def release(self) -> None:
        self.let_go = True
        self.names.found.set()
        self.held.release()

    def adds_up(self) -> None:
        for pool in self.client._pools:
            counts = pool.counts()
            parts = sum(counts[name] for name in ("idle", "busy", "connecting", "late"))
            assert parts == counts["open"] <= counts["limit"], counts

    async def is_clean(self) -> None:
        """All is as if nothing had been cancelled: accounts, deadlines, timers, replies."""
        pools, register = self.client._pools, self.client._deadlines
        await until(lambda: not any(pool.pending or pool._line for pool in pools))
        await until(lambda: not any(pool.counts()["connecting"] for pool in pools))
        self.adds_up()
        assert set(self._warm) <= set(self.pool._connections), "a connection was given up"
        for pool in pools:
            counts = pool.counts()
            assert counts["idle"] == counts["open"], counts
            assert all(one._protocol.clean() for one in pool._connections)
            assert not pool.health.dead and not pool.health.probing
        await until(lambda: not register.armed)
        assert not register._lanes and not len(register)
        assert our_timers(asyncio.get_running_loop()) == []
        assert getattr(self.face, "_under_way", 0) == 0

    async def close(self) -> None:
        self.release()
        self.face.close()
        await until(lambda: not (self.held.connections or self.other.connections))


def _at_once(function: Callable[..., Any], *args: Any) -> None:
    function(*args)


class Cancelled:
    """The call that is cancelled: `Run`, in either style."""

    def __init__(self, scene: Scene, call: Call, style: str, company: bool) -> None:
        self.scene, self.call = scene, call
        self.outcomes: list[Any] = []
        self.entry: Entry | None = None
        self.task: asyncio.Task[None] | None = None
        self.rested = 0
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
        scene = self.scene
        if not scene.phase.rests(scene):
            await turn()
        elif self.rested < LINGER:
            self.rested += 1
            await turn()
        elif not scene.let_go:
            scene.release()
            if scene.phase.host == "slow.example":
                await until(lambda: not scene.phase.rests(scene))
            await turn()
        else:
            await turn()

    def is_right(self) -> None:
        """The call has ended by itself: after its rest, with the outcome that is its own."""
        if self.task is not None:
            self.task.result()
        assert self.scene.let_go or self.scene.phase.rests is _never, "it never rested"
        (outcome,) = self.outcomes
        good = self.call.good
        assert good(self.scene, outcome) if callable(good) else outcome == good

    async def has_left_the_line(self) -> None:
        """Nobody connects for nobody, and a place in line is not kept for it."""
        if self.task is not None:
            # (With a callback it has left in the turn in which others ask.)
            await asyncio.wait([self.task])
            await until(lambda: not _waits(self.scene))
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
    """The address of a listener that takes no more: a connect to it gets no answer."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        listener.listen(0)
        fillers = [socket.socket() for _ in range(4)]
        for filler in fillers:
            filler.setblocking(False)
            filler.connect_ex(listener.getsockname())
        yield listener.getsockname()
        for filler in fillers:
            filler.close()


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
    monkeypatch.setattr(connector, "LONGEST_STAGGER", 0.002)
    if phase == "waiting":
        expect_log("tornado_memcache", "fails: get 'holder'")
    async with Gated(narrow=at.place == "reading") as held, Gated() as other:
        together = (False, True) if face == "native" and phase in COMPANY else (False,)
        for style, company in itertools.product(STYLES[face], together):
            states: set[Any] = set()

            @asynccontextmanager
            async def begin(
                style: str = style, company: bool = company, states: set[Any] = states
            ) -> AsyncIterator[Cancelled]:
                files = len(os.listdir("/proc/self/fd"))
                scene = Scene(at, face, [held, other], clock, hanging)
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
                await turn()
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
            assert number >= at.steps
