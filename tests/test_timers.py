"""tornado_memcache.timers: set or not, told by name, and nobody is kept alive by one."""

from __future__ import annotations

import gc
import weakref

import pytest

from tornado_memcache import timers
from tornado_memcache.timers import NamedTimer

from .hand import Hand


class Owner:
    def __init__(self, io_loop):
        self.fired = 0
        self.timer = NamedTimer("tea", io_loop, self.fire)

    def fire(self):
        self.fired += 1


@pytest.fixture
def hand(monkeypatch):
    hand = Hand()
    monkeypatch.setattr(timers, "clock", hand)
    return hand


def test_it_fires_once_and_is_told_by_its_name(hand):
    owner = Owner(hand)
    assert repr(owner.timer) == "<tea not set>" and not owner.timer.armed
    owner.timer.start(30.0)
    assert repr(owner.timer) == "<tea in 30.0 s>" and owner.timer.armed
    hand.turn(29.0)
    assert owner.fired == 0 and repr(owner.timer) == "<tea in 1.0 s>"
    hand.turn(1.0)
    hand.turn(60.0)
    assert owner.fired == 1 and not owner.timer.armed and not hand.timeouts


def test_one_that_is_set_is_not_set_again(hand):
    owner = Owner(hand)
    owner.timer.start(10.0)
    owner.timer.start(1.0)
    assert hand.watched == hand.now + 10.0 and hand.added == 1


def test_it_is_removed_at_once_and_may_be_stopped_twice(hand):
    owner = Owner(hand)
    owner.timer.stop()
    owner.timer.start(10.0)
    owner.timer.stop()
    owner.timer.stop()
    assert not hand.timeouts and not owner.timer.armed


def test_jitter_only_shortens_by_its_share(hand):
    owner, moments = Owner(hand), set()
    for _ in range(100):
        owner.timer.start(10.0, jitter=0.1)
        moments.add(hand.watched - hand.now)
        owner.timer.stop()
    assert len(moments) > 50 and min(moments) >= 9.0 and max(moments) <= 10.0


def test_a_length_beyond_all_measure_can_be_set(hand):
    owner = Owner(hand)
    owner.timer.start(1e300)
    assert hand.watched < hand.now + 1e9


def test_it_keeps_nobody_alive(hand):
    owner = Owner(hand)
    owner.timer.start(10.0)
    gone = weakref.ref(owner)
    del owner
    gc.collect()
    assert gone() is None and len(hand.timeouts) == 1
    hand.turn(10.0)
    assert not hand.timeouts
