"""tornado_memcache.computations: who joins what, and what is remembered.

What comes of it for a caller is in `tests/test_stampede.py`.
"""

from __future__ import annotations

import asyncio
import contextvars
import time
from typing import Any

import pytest

from tornado_memcache import Client
from tornado_memcache.call import FutureCall
from tornado_memcache.computations import NOTED, Computation, Computations, Want
from tornado_memcache.leases import ALONE, HELD, HIT, MISSED, WON, Found, Lease, Leases
from tornado_memcache.outcomes import CasUnique
from tornado_memcache.protocol import Item

from .asked import until
from .hand import Hand


def lease(number: int) -> Lease:
    return Lease(CasUnique(number))


@pytest.mark.parametrize(
    ("runs", "found", "joins"),
    [
        (Found(WON, None, lease(1)), Found(HELD, None, lease(1)), True),
        (Found(WON, None, lease(1)), Found(HELD, None, lease(2)), False),
        (Found(WON, None, lease(1)), Found(WON, None, lease(2)), False),
        (Found(WON, None, lease(1)), Found(ALONE), True),
        (Found(WON, None, lease(1)), Found(MISSED), False),
        (Found(HELD, None, lease(1)), Found(MISSED), True),
        (Found(HELD, None, lease(1)), Found(HELD, None, lease(2)), True),
        (Found(HELD, None, lease(1)), Found(WON, None, lease(2)), False),
        (Found(HELD, None, lease(1)), Found(ALONE), True),
        (Found(ALONE), Found(ALONE), True),
        (Found(ALONE), Found(HELD, None, lease(1)), False),
    ],
)
def test_one_joins_what_began_under_the_lease_that_he_has_seen(runs, found, joins):
    one = Computation(Computations(None), ("s", b"k"), None, None, runs)  # type: ignore
    assert one.serves(found) is joins


class Noted:
    """Leases that count what is released."""

    def __init__(self) -> None:
        self.released: list[int] = []

    def release(self, lease: Lease) -> None:
        self.released.append(int(lease.unique))


def test_a_lease_that_is_met_again_after_its_time_is_taken_over_once(monkeypatch):
    clock, leases = Hand(), Noted()
    monkeypatch.setattr("tornado_memcache.computations.clock", clock)
    table: Any = Computations(None)  # type: ignore
    place = ("s", b"k")
    for moment, unique, released in [
        (0.0, 1, []),
        (4.9, 1, []),
        (5.0, 1, [1]),
        (5.1, 1, [1]),  # (begins anew)
        (9.0, 2, [1]),
        (13.9, 2, [1]),
        (14.0, 2, [1, 2]),
    ]:
        clock.now = 1000.0 + moment
        table.served(place, leases, lease(unique), 5.0)
        assert leases.released == released
    assert table.stale == 7


def test_what_is_remembered_is_bounded(monkeypatch):
    clock = Hand()
    monkeypatch.setattr("tornado_memcache.computations.clock", clock)
    table: Any = Computations(None)  # type: ignore
    for number in range(3 * NOTED):
        clock.now += 10.0 / NOTED
        table.served(("s", b"%d" % number), Noted(), lease(number), 5.0)
        assert len(table._noted) <= NOTED
    assert next(iter(table._noted)) == ("s", b"%d" % (2 * NOTED))


def test_of_more_keys_than_are_remembered_each_is_taken_over_in_its_turn(monkeypatch):
    clock, leases = Hand(), Noted()
    monkeypatch.setattr("tornado_memcache.computations.clock", clock)
    table: Any = Computations(None)  # type: ignore
    dead = set(range(3 * NOTED))
    for moment in range(0, 20, 2):
        clock.now = 1000.0 + moment
        for number in sorted(dead):
            table.served(("s", b"%d" % number), leases, lease(number), 5.0)
        dead -= set(leases.released)
    assert not dead and len(leases.released) == 3 * NOTED


class Reading(Leases):
    """Leases that are read when the test says so."""

    def __init__(self) -> None:
        self.reads: list[asyncio.Future[Found]] = []

    async def read(self) -> Found:
        self.reads.append(asyncio.get_running_loop().create_future())
        return await self.reads[-1]

    def reading(self) -> Any: ...
    def found(self, reply: Any) -> Any: ...
    async def store(self, *_: Any) -> Any: ...
    def release(self, lease: Lease) -> None: ...


@pytest.mark.gen_test
async def test_one_who_joins_while_it_is_read_is_served_by_the_next_reading(memcached):
    """He may have changed the key before he joined, and what is on its way be from before."""
    async with Client([memcached.address]) as mc:
        await mc.get("k")
        table, leases, place = mc.computations, Reading(), ("s", b"k")
        loop, register = mc._cluster.loop, mc._deadlines
        table.bind(loop)
        first, second = [FutureCall(loop, register, None, None) for _ in range(2)]
        want = Want(print, 5.0, contextvars.copy_context())
        table.take(place, leases, Found(HELD, None, lease(1)), first, want)
        await until(lambda: leases.reads)
        table.take(place, leases, Found(HELD, None, lease(1)), second, want)
        leases.reads[0].set_result(Found(HIT, Item(b"before", 0)))
        assert await first == b"before"
        await until(lambda: len(leases.reads) == 2)
        assert not second.done()
        leases.reads[1].set_result(Found(HIT, Item(b"after", 0)))
        assert await second == b"after"
        await until(lambda: not table._all)


@pytest.mark.gen_test
async def test_nobody_waits_longer_than_for_two_that_die_one_after_the_other(memcached):
    class Dying(Reading):
        """Whenever one looks, somebody else has just won."""

        async def read(self) -> Found:
            self.reads.append(asyncio.get_running_loop().create_future())
            await asyncio.sleep(0)
            return Found(HELD, None, lease(len(self.reads) + 1))

    async with Client([memcached.address]) as mc:
        await mc.get("k")
        table, leases, loop = mc.computations, Dying(), asyncio.get_running_loop()
        table.bind(loop)
        caller, begun = FutureCall(loop, mc._deadlines, None, None), time.monotonic()
        want = Want(lambda: "alone", 0.2, contextvars.copy_context())
        table.take(("s", b"k"), leases, Found(HELD, None, lease(1)), caller, want)
        assert await caller == "alone"
        assert time.monotonic() - begun >= 0.4
        assert len(leases.reads) > 2 and table.computed == 1 and table.stored == 0
