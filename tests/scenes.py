"""A call in a phase of its life: the scene is set, and afterwards all of it is looked at.

A `Scene` has a client and two servers of which one is a `Gated`, so that a
call stays in a phase until it was seen there, and nothing waits for a time.
Every value carries its key and a nonce. Knows the phases and where the
package shows them, and what other callers are owed whatever happens to one.
It must not know what happens to it.
"""

from __future__ import annotations

import asyncio
import functools
import itertools
import socket
import time
from collections.abc import Callable
from typing import Any, NamedTuple

from tornado.netutil import Resolver

from tornado_memcache import Client, Timeout, memcache, tornadoasyncmemcache

from .certificates import for_server, trusting
from .gated import Gated
from .hand import Shifted
from .ledger import our_timers
from .steps import turn

#: Nothing here waits for a time; this bounds what goes wrong, in seconds.
AT_MOST = 10.0
#: More bytes than are taken in while nobody reads, and than count as small work.
LARGE = 400_000
#: So many steps a call is left where it rests.
LINGER = 2

_nonces = itertools.count(1)


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
    values are of ``size``, ``only`` says which calls have one. With
    ``secure`` the servers speak TLS.
    """

    steps: int
    rests: Callable[[Any], bool] = lambda scene: scene.held.held
    warm: bool = True
    host: str = "127.0.0.1"
    place: str = ""
    size: int = 0
    only: str = ""
    unsent: bool = False
    secure: bool = False
    settings: dict[str, Any] = {}
    before: Callable[[Any], Any] | None = None


#: With one connection to a server, a call that cannot use it waits.
ONE = {"max_connections": 1}


def _never(scene: Scene) -> bool:
    return False


def _connection_is(phase: str) -> Callable[[Any], bool]:
    return lambda scene: any(one.phase == phase for one in scene.pool._connections)


def waits(scene: Scene) -> bool:
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
    await asyncio.wait([holder])
    assert isinstance(holder.exception(), Timeout)
    assert scene.pool.counts()["late"] == 1


async def _write_large(scene: Scene) -> None:
    """Has another caller write a large value to the server, which does not read."""
    large = scene.value("holder", LARGE)
    scene.expect(scene.client.set((0, "holder"), large), True)
    await until(lambda: _writes(scene))


PHASES = {
    "cold": Phase(5, _never, warm=False),
    "warm": Phase(2, _never),
    "waiting": Phase(6, waits, before=_make_late, unsent=True, settings=ONE),
    "resolving": Phase(7, _connection_is("resolving"), False, "held.example", unsent=True),
    "connecting": Phase(6, _connection_is("connecting"), False, "slow.example", unsent=True),
    "tls": Phase(8, _connection_is("tls"), False, place="handshake", secure=True, unsent=True),
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
    """Names: "held.example" when it is let, "slow.example" behind an address that hangs until then.

    The second address of that is tried when `Scene.release` says so, not
    after a time (a test sets `connector.LONGEST_STAGGER` to `AT_MOST`).
    """

    def initialize(self, hanging: Any) -> None:
        self.hanging = hanging
        self.found = asyncio.Event()

    async def resolve(self, host: str, port: int, family: Any = 0) -> Any:
        real = (socket.AF_INET, ("127.0.0.1", port))
        if host == "slow.example":
            return [real] if self.found.is_set() else [(socket.AF_INET, self.hanging), real]
        await self.found.wait()
        return [real]


# -- a scene: one client, two servers, the call that is cancelled, and others


#: (Loading a machine's authorities takes longer than a whole scene.)
_trusting = functools.lru_cache(None)(trusting)
_for_server = functools.lru_cache(None)(for_server)


def servers(phase: Phase) -> tuple[Gated, Gated]:
    """Returns the server that is held in ``phase``, and the other one."""
    context = _for_server("127.0.0.1") if phase.secure else None
    return Gated(narrow=phase.place == "reading", ssl=context), Gated(ssl=context)


class Scene:
    """What one run takes place in; afterwards it looks at everything."""

    def __init__(
        self, phase: Phase, face: str, held: Gated, other: Gated, clock: Shifted, hanging: Any
    ) -> None:
        self.phase, self.clock = phase, clock
        self.held, self.other = held, other
        self.nonce = next(_nonces)
        self.names = Names(hanging=hanging)
        self.let_go = False
        self.rested = 0
        self._expected: list[tuple[Any, Any]] = []
        self._counted = 0
        settings: dict[str, Any] = {
            "request_timeout": AT_MOST,
            "connect_timeout": AT_MOST,
            "resolver": self.names,
            "ssl": _trusting() if phase.secure else None,
            **phase.settings,
        }
        addresses = [f"{phase.host}:{self.held.port}", self.other.address]
        self.face: Any = {
            "native": Client,
            "memcache": memcache.Client,
            "tornadoasyncmemcache": tornadoasyncmemcache.ClientPool,
        }[face](addresses, **settings)
        self.client: Any = getattr(self.face, "_native", self.face)
        self.client._cluster.ready()  # (it opens nothing, and has its pools now)
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
            await self.client.meta_noop()  # (that the servers speak meta is known from then on)
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

    async def stand_still(self) -> None:
        """Lets everybody come as far as they get before they are let go."""
        await turn()
        if self.phase.host == "slow.example":
            await until(lambda: not _connection_is("resolving")(self))

    def release(self) -> None:
        self.let_go = True
        self.names.found.set()
        self.held.release()
        for one in self.pool._connections:
            if one.connecting and one._connector._addresses:
                one._connector._next_attempt()

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

    async def step(self) -> None:
        """Lets a call go on by one turn; one that has rested for a while is let go."""
        resting = self.phase.rests(self)
        if resting and self.rested < LINGER:
            self.rested += 1
        elif resting and not self.let_go:
            self.release()
            if self.phase.host == "slow.example":
                await until(lambda: not self.phase.rests(self))
        await turn()

    @property
    def came_to_rest(self) -> bool:
        """True if a call that has ended was in the phase, and was let go from there."""
        return self.let_go or self.phase.rests is _never
