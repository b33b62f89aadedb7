"""When a pool opens one connection more, and what is kept warm. The clock is turned by hand."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from tornado_memcache import deadlines
from tornado_memcache.growth import Growth
from tornado_memcache.health import FIRST_PAUSE
from tornado_memcache.settings import Settings

from .hand import Hand


class One:
    """A connection: it is being opened until `opens`."""

    late = leaving = open = False
    connecting = True

    def opens(self) -> None:
        self.open, self.connecting = True, False


class World:
    def __init__(self, loop: Any = None, **settings: Any) -> None:
        self.connections: list[One] = []
        self.growth = Growth(Settings(**settings), loop, self.connections, self._begin)  # type: ignore[arg-type]

    def _begin(self) -> One:
        self.connections.append(One())
        return self.connections[-1]

    def lose(self, one: One) -> None:
        self.connections.remove(one)


@pytest.fixture
def clock(monkeypatch):
    hand = Hand()
    monkeypatch.setattr(deadlines, "clock", hand)
    return hand


def test_one_is_opened_at_a_time_up_to_the_limit(clock):
    world = World(max_connections=2)
    first = world.growth.grow()
    assert first is world.connections[0] and world.growth.grow() is None
    first.opens()
    world.growth.grow().opens()
    assert not world.growth.may_grow() and world.growth.grow() is None
    world.lose(first)
    assert world.growth.may_grow()
    world.growth.closed = True
    assert not world.growth.may_grow()


def test_the_pause_after_a_refusal_holds_while_another_serves(clock):
    world = World()
    first = world.growth.grow()
    first.opens()
    world.growth.pause()
    assert not world.growth.may_grow()
    clock.now += FIRST_PAUSE
    assert world.growth.may_grow()
    world.growth.pause()
    first.late = True
    assert world.growth.may_grow(), "whoever waits cannot live with what there is"


def test_what_is_kept_warm_is_opened_one_after_the_other(clock):
    world = World(min_connections=2)
    for count in (1, 2, 2):
        world.growth.keep_warm(True, False)
        assert len(world.connections) == count
        world.connections[-1].opens()
        world.growth.opened()
    world.growth.keep_warm(True, False)
    assert not world.growth.cold


@pytest.mark.parametrize("why", ["not wanted", "asleep", "paused"])
def test_nothing_is_kept_warm_when_it_must_not_be(clock, why):
    world = World(min_connections=1)
    world.growth.asleep = why == "asleep"
    if why == "paused":
        world.growth.pause()
    world.growth.keep_warm(why != "not wanted", False)
    assert not world.connections and world.growth.cold


def test_one_for_nobody_that_is_lost_is_told_once_and_makes_a_pause(clock):
    world = World(min_connections=1)
    world.growth.keep_warm(True, False)
    (one,) = world.connections
    world.lose(one)
    assert world.growth.was_for_nobody(one) and not world.growth.was_for_nobody(one)
    world.growth.keep_warm(True, False)
    assert not world.connections
    clock.now += FIRST_PAUSE
    world.growth.keep_warm(True, False)
    assert len(world.connections) == 1


@pytest.mark.parametrize("awaited", [True, False])
def test_one_that_calls_wait_for_or_that_has_opened_is_not_for_nobody(clock, awaited):
    world = World(min_connections=1)
    world.growth.keep_warm(True, awaited)
    (one,) = world.connections
    if not awaited:
        one.opens()
        world.growth.opened()
    assert not world.growth.was_for_nobody(one)


def test_whoever_waits_for_warmth_is_told_when_none_is_being_opened(clock):
    loop = asyncio.new_event_loop()
    try:
        world = World(loop)
        warmed = world.growth.warmed()
        world.growth.keep_warm(True, False, 1)
        assert len(world.connections) == 1 and not warmed.done()
        assert not world.growth.may_let_go(), "somebody waits for it"
        world.connections[0].opens()
        world.growth.opened()
        world.growth.keep_warm(True, False)
        assert warmed.result() is None and world.growth.may_let_go()
    finally:
        loop.close()
