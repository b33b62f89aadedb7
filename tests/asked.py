"""Calls in both styles with all that came of them, and every command as it goes over the wire.

Knows the public client and protocol.txt. Where a test has to wait for what
no outcome tells (a connection that is closed, bytes that have come), it
looks at the pool's counts and at what connections are handed; it must not
change them.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from typing import Any, NamedTuple

import pytest

from tornado_memcache import Client, MetaItem, Request
from tornado_memcache.connection import Connection
from tornado_memcache.spoken import Spoken

#: Seconds that anything gets to come true, on a machine that does other things too.
PATIENCE = 30.0
#: Both ways of a caller.
STYLES = ("awaited", "callback")


async def until(condition: Callable[[], Any], seconds: float = PATIENCE) -> Any:
    """Lets the loop run until ``condition()`` is true, and returns what it is."""
    end = time.monotonic() + seconds
    while not (found := condition()):
        assert time.monotonic() < end, "it did not come true"
        await asyncio.sleep(0.001)
    return found


class Asked:
    """One call, ``awaited`` or with a ``callback``, and every outcome that came of it.

    ``method`` is the client's; `outcome` waits for the first one, `only`
    asserts that there was no other. A result is as it came, a failure its
    error, a cancellation ``"cancelled"``. ``ended`` is the moment of the
    last, on the monotonic clock.
    """

    def __init__(self, style: str, method: Callable[..., Any], *arguments: Any, **how: Any) -> None:
        self.outcomes: list[Any] = []
        self.begun = time.monotonic()
        self.ended = 0.0
        self.future: Any = None
        if style == "callback":
            how.update(callback=self._came, fail_callback=self._came)
        self.future = method(*arguments, **how)
        assert (self.future is None) is (style == "callback")
        if self.future is not None:
            self.future.add_done_callback(self._ended)
        assert not self.outcomes, "an outcome came inside of the call"

    def _ended(self, future: Any) -> None:
        if future.cancelled():
            self._came("cancelled")
        else:
            error = future.exception()
            self._came(future.result() if error is None else error)

    def _came(self, outcome: Any) -> None:
        self.ended = time.monotonic()
        self.outcomes.append(outcome)

    @property
    def only(self) -> Any:
        assert len(self.outcomes) == 1, f"outcomes: {self.outcomes!r}"
        return self.outcomes[0]

    @property
    def took(self) -> float:
        return self.ended - self.begun

    async def outcome(self) -> Any:
        await until(lambda: self.outcomes)
        return self.only

    async def failure(self, kind: type[Exception]) -> Any:
        """Returns the outcome, which is an error of exactly this ``kind``."""
        outcome = await self.outcome()
        assert type(outcome) is kind, f"{outcome!r} where {kind.__name__} is due"
        return outcome


def counts(client: Client) -> dict[str, int]:
    """Returns the accounts of the client's only pool."""
    (pool,) = client._pools
    return pool.counts()


def lost(client: Client) -> int:
    """Returns a number that grows with each connection that the only pool has lost."""
    (pool,) = client._pools
    return pool.losses


@pytest.fixture
def meta_known(monkeypatch: Any) -> None:
    """Has every server taken for one that speaks meta, so that nobody asks for its version."""
    monkeypatch.setattr(Spoken, "knows", lambda spoken, slot: True)


def hand_overs(monkeypatch: Any) -> list[int]:
    """Returns the sizes of the segments that connections are handed, from now on, as they come."""
    sizes: list[int] = []
    received, received_into = Connection.received, Connection.received_into

    def noted(connection: Connection, data: bytes) -> None:
        sizes.append(len(data))
        received(connection, data)

    def noted_into(connection: Connection, count: int) -> None:
        sizes.append(count)
        received_into(connection, count)

    monkeypatch.setattr(Connection, "received", noted)
    monkeypatch.setattr(Connection, "received_into", noted_into)
    return sizes


# -- every command


class Exchange(NamedTuple):
    """One command: the call, its bytes on the wire, a good reply, and the outcome of that.

    Where the outcome is a dict of server to result, ``outcome`` stands for
    the result of the one server (see `shorn`).
    """

    name: str
    call: Callable[..., Any]
    request: bytes
    reply: bytes
    outcome: Any
    #: It only reads: it may be asked twice.
    reads: bool = False


def shorn(outcome: Any) -> Any:
    """Returns an outcome without the names of servers."""
    if isinstance(outcome, dict) and len(outcome) == 1 and ":" in next(iter(outcome)):
        return next(iter(outcome.values()))
    return outcome


_VALUE = b"VALUE k 0 5\r\nvalue\r\n"
_UNIQUE = b"VALUE k 0 5 7\r\nvalue\r\n"


def _storage(verb: str) -> Exchange:
    return Exchange(
        verb,
        lambda mc, **how: getattr(mc, verb)("k", b"value", **how),
        verb.encode() + b" k 0 0 5\r\nvalue\r\n",
        b"STORED\r\n",
        True,
    )


EXCHANGES = [
    Exchange("get", lambda mc, **how: mc.get("k", **how),
             b"get k\r\n", _VALUE + b"END\r\n", b"value", True),
    Exchange("gets", lambda mc, **how: mc.gets("k", **how),
             b"gets k\r\n", _UNIQUE + b"END\r\n", (b"value", 7), True),
    Exchange("get_multi", lambda mc, **how: mc.get_multi(["k", "j"], **how),
             b"get k j\r\n", _VALUE + b"END\r\n", {"k": b"value"}, True),
    Exchange("gets_multi", lambda mc, **how: mc.gets_multi(["k", "j"], **how),
             b"gets k j\r\n", _UNIQUE + b"END\r\n", {"k": (b"value", 7)}, True),
    Exchange("version", lambda mc, **how: mc.version(**how),
             b"version\r\n", b"VERSION 1.6.18\r\n", "1.6.18", True),
    Exchange("stats", lambda mc, **how: mc.stats(**how),
             b"stats\r\n", b"STAT pid 7\r\nSTAT up 8\r\nEND\r\n", {"pid": "7", "up": "8"}, True),
    Exchange("gat", lambda mc, **how: mc.gat("k", 60, **how),
             b"gat 60 k\r\n", _VALUE + b"END\r\n", b"value"),
    Exchange("gats", lambda mc, **how: mc.gats("k", 60, **how),
             b"gats 60 k\r\n", _UNIQUE + b"END\r\n", (b"value", 7)),
    *map(_storage, ["set", "add", "replace", "append", "prepend"]),
    Exchange("cas", lambda mc, **how: mc.cas("k", b"value", 7, **how),
             b"cas k 0 0 5 7\r\nvalue\r\n", b"STORED\r\n", True),
    Exchange("set_multi", lambda mc, **how: mc.set_multi({"k": b"value"}, **how),
             b"set k 0 0 5\r\nvalue\r\n", b"STORED\r\n", []),
    Exchange("delete", lambda mc, **how: mc.delete("k", **how),
             b"delete k\r\n", b"DELETED\r\n", True),
    Exchange("delete_multi", lambda mc, **how: mc.delete_multi(["k"], **how),
             b"delete k\r\n", b"DELETED\r\n", []),
    Exchange("touch", lambda mc, **how: mc.touch("k", 60, **how),
             b"touch k 60\r\n", b"TOUCHED\r\n", True),
    Exchange("incr", lambda mc, **how: mc.incr("k", 3, **how),
             b"incr k 3\r\n", b"8\r\n", 8),
    Exchange("decr", lambda mc, **how: mc.decr("k", 3, **how),
             b"decr k 3\r\n", b"2\r\n", 2),
    Exchange("flush_all", lambda mc, **how: mc.flush_all(**how),
             b"flush_all\r\n", b"OK\r\n", True),
    Exchange("request", lambda mc, **how: mc.request(Request(b"touch", (b"k",)), **how),
             b"touch k 0\r\n", b"TOUCHED\r\n", (b"TOUCHED", {}, 0, b"", {}, b"")),
    Exchange("meta_get", lambda mc, **how: mc.meta_get("k", **how),
             b"mg k v f k\r\n", b"VA 5 f0 kk\r\nvalue\r\n", MetaItem(b"value", 0, size=5), True),
    Exchange("meta_get touch", lambda mc, **how: mc.meta_get("k", touch=60, opaque="o", **how),
             b"mg k T60 v f k Oo\r\n", b"VA 5 f0 kk Oo\r\nvalue\r\n",
             MetaItem(b"value", 0, size=5, opaque=b"o")),
    Exchange("meta_get_multi", lambda mc, **how: mc.meta_get_multi(["k", "j"], **how),
             b"mg k q v f O0\r\nmg j q v f O1\r\nmn\r\n",
             b"VA 5 f0 O0\r\nvalue\r\nMN\r\n",
             {"k": MetaItem(b"value", 0, size=5, opaque=b"0")}, True),
    Exchange("meta_set", lambda mc, **how: mc.meta_set("k", b"value", **how),
             b"ms k 5\r\nvalue\r\n", b"HD\r\n", True),
    Exchange("meta_delete", lambda mc, **how: mc.meta_delete("k", **how),
             b"md k\r\n", b"HD\r\n", True),
    Exchange("meta_delete_multi", lambda mc, **how: mc.meta_delete_multi(["k"], **how),
             b"md k q O0\r\nmn\r\n", b"MN\r\n", []),
    Exchange("meta_arithmetic", lambda mc, **how: mc.meta_arithmetic("k", 3, **how),
             b"ma k D3 v\r\n", b"VA 1\r\n8\r\n", MetaItem(8, size=1)),
    Exchange("debug", lambda mc, **how: mc.debug("k", **how),
             b"me k\r\n", b"ME k exp=-1\r\n", {"exp": "-1"}, True),
    Exchange("meta_noop", lambda mc, **how: mc.meta_noop(**how),
             b"mn\r\n", b"MN\r\n", True, True),
]  # fmt: skip
NAMES = [one.name for one in EXCHANGES]
