"""tornado_memcache.chain: requests that follow one another, for one waiter, by one deadline."""

from __future__ import annotations

import asyncio

import pytest

from tornado_memcache import chain as module
from tornado_memcache import deadlines
from tornado_memcache.chain import Ask, Chain, share_of
from tornado_memcache.deadlines import Deadlines
from tornado_memcache.errors import ConnectionFailed, MemcacheError, SerializationError, Timeout
from tornado_memcache.protocol import Reply, Request

from .hand import Hand

GOOD, MISS = Reply(b"STORED"), Reply(b"NOT_FOUND")


class Pool:
    """Takes slots, and answers when the test says so."""

    name = "a:1"
    longest = None

    def __init__(self):
        self.slots = []

    def submit(self, slot):
        slot.place = self
        self.slots.append(slot)

    def answer(self, reply):
        slot = self.slots.pop(0)
        slot.reply = reply
        slot.deliver()

    def failure_of(self, slot):
        return Timeout("timed out", server=self.name, asked=slot.asked())

    def failed(self, slot, error, calls):
        pass

    def left(self, slot):
        pass


class Waiter:
    """What waits for the call, with a deadline of its own or none."""

    def __init__(self, own_deadline=None):
        self.outcomes = []
        self.own_deadline = own_deadline

    def done(self):
        return bool(self.outcomes)

    def set_result(self, result):
        self.outcomes.append(result)

    def set_exception(self, error):
        self.outcomes.append(error)

    def exception(self):
        return None


@pytest.fixture
def hand(monkeypatch):
    hand = Hand()
    monkeypatch.setattr(module, "clock", hand)
    monkeypatch.setattr(deadlines, "clock", hand)
    return hand


@pytest.fixture
def begin(hand):
    """Begins a chain of the steps of a generator; it is on the hand-turned loop."""
    pool, ended = Pool(), []

    def begin(steps, waiter=None, outcome=lambda reply: reply, started=True):
        waiter = waiter or Waiter()
        chain = Chain(waiter, steps, outcome, "tea", hand, begin.register, 1.0, ended.append)
        if started:
            chain.start()
        return chain, waiter

    begin.register, begin.pool, begin.ended = Deadlines(hand, hand), pool, ended
    yield begin
    hand.turn()
    assert not len(begin.register) and not begin.register.armed


def ask(pool, key=b"k", shared=False):
    return Ask(pool, Request(b"get", (key,)), 1.0, shared)


def one_after_the_other(pool, shared=False):
    (first,) = yield [ask(pool, b"a", shared)]
    second, third = yield [ask(pool, b"b"), ask(pool, b"c")]
    if isinstance(second, MemcacheError):
        raise second
    return third if isinstance(first, MemcacheError) else first


def test_each_step_waits_for_all_replies_before_it(begin):
    chain, waiter = begin(one_after_the_other(begin.pool))
    assert [slot.keys for slot in begin.pool.slots] == [(b"a",)]
    begin.pool.answer(GOOD)
    assert [slot.keys for slot in begin.pool.slots] == [(b"b",), (b"c",)]
    assert repr(chain) == "<Chain tea 0 ahead, 2 under way>"
    begin.pool.answer(MISS)
    assert not waiter.outcomes and not begin.ended
    begin.pool.answer(MISS)
    assert waiter.outcomes == [GOOD] and begin.ended == [chain]
    assert repr(chain).startswith("<Chain tea over")


def test_an_error_is_a_reply_and_what_the_steps_raise_is_the_failure(begin):
    _, waiter = begin(one_after_the_other(begin.pool))
    begin.pool.answer(ConnectionFailed("gone"))
    begin.pool.answer(GOOD)
    begin.pool.answer(MISS)
    assert waiter.outcomes == [MISS]
    _, waiter = begin(one_after_the_other(begin.pool))
    begin.pool.answer(GOOD)
    begin.pool.answer(ConnectionFailed("gone"))
    begin.pool.answer(MISS)
    assert [type(one) for one in waiter.outcomes] == [ConnectionFailed]


def test_the_deadline_of_the_whole_ends_it_and_nothing_more_is_asked(begin, hand):
    _, waiter = begin(one_after_the_other(begin.pool))
    hand.turn(0.6)
    begin.pool.answer(GOOD)
    hand.turn(0.39)
    assert not waiter.outcomes
    hand.turn(0.02)
    assert [type(one) for one in waiter.outcomes] == [Timeout]
    # and where the steps live with that error, the next one is not asked
    _, waiter = begin(one_after_the_other(begin.pool))
    begin.pool.slots.clear()
    hand.turn(1.01)
    hand.turn()
    assert not begin.pool.slots and [type(one) for one in waiter.outcomes] == [Timeout]


def test_a_share_of_the_time_leaves_the_rest_for_what_follows(begin, hand):
    _, waiter = begin(one_after_the_other(begin.pool, shared=True))
    begin.pool.slots.clear()
    hand.turn(0.51)
    assert [slot.keys for slot in begin.pool.slots] == [(b"b",), (b"c",)]
    begin.pool.answer(GOOD)
    begin.pool.answer(MISS)
    assert waiter.outcomes == [MISS]


@pytest.mark.parametrize("seconds", [1e-9, 0.1, 0.3, 1.0, 2.0, 7.0, 1e6])
def test_a_share_is_between_a_quarter_and_half(seconds):
    assert seconds < 1e-6 or seconds / 4 < share_of(seconds) <= seconds / 2
    assert share_of(seconds) == share_of(share_of(seconds) * 2), "few lengths"


def test_a_caller_s_own_deadline_is_ended_by_the_caller(begin, hand):
    chain, waiter = begin(one_after_the_other(begin.pool), Waiter(hand.now + 5.0))
    hand.turn(3.0)
    assert not waiter.outcomes and not len(begin.register)
    assert begin.pool.slots[0].waiter.own_deadline == hand.now + 2.0
    chain.expire_waiter(waiter)
    hand.turn()
    assert [type(one) for one in waiter.outcomes] == [Timeout]


def test_one_that_is_behind_another_begins_with_its_end_or_ends_waiting(begin, hand):
    chain, waiter = begin(one_after_the_other(begin.pool), started=False)
    chain.ahead = 1
    chain.start()
    assert not begin.pool.slots
    hand.turn(1.01)
    (error,) = waiter.outcomes
    assert isinstance(error, Timeout) and error.phase == "waiting" and "tea" in str(error)
    chain.ahead = 0
    chain.start()
    assert not begin.pool.slots


def test_a_caller_that_leaves_ends_it(begin):
    chain, waiter = begin(one_after_the_other(begin.pool))
    chain.waiter_left(waiter)
    begin.pool.answer(GOOD)
    assert chain.over and begin.ended == [chain] and not waiter.outcomes
    assert not begin.pool.slots


def test_a_plain_future_that_is_cancelled_ends_it(begin, hand):
    loop = asyncio.new_event_loop()
    future = loop.create_future()
    chain, _ = begin(one_after_the_other(begin.pool), future)
    future.cancel()
    loop.run_until_complete(asyncio.sleep(0))
    loop.close()
    assert chain.over and begin.ended == [chain]


def test_whatever_is_raised_on_the_way_is_an_outcome(begin, hand):
    def broken(pool):
        yield [ask(pool)]
        raise KeyError("ring")

    def broken_at_once(pool):
        raise KeyError("ring")
        yield

    def unreadable(reply):
        raise ValueError("outcome")

    _, waiter = begin(broken(begin.pool))
    begin.pool.answer(GOOD)
    assert isinstance(waiter.outcomes[0], SerializationError)
    _, waiter = begin(broken_at_once(begin.pool))
    assert not waiter.outcomes, "not within the call"
    hand.turn()
    assert isinstance(waiter.outcomes[0], SerializationError)
    _, waiter = begin(one_after_the_other(begin.pool), outcome=unreadable)
    for reply in (GOOD, GOOD, GOOD):
        begin.pool.answer(reply)
    assert isinstance(waiter.outcomes[0], SerializationError)


def test_a_step_that_asks_nothing_goes_on(begin):
    def steps(pool):
        nothing = yield []
        (reply,) = yield [ask(pool)]
        return reply if nothing == () else MISS

    _, waiter = begin(steps(begin.pool))
    begin.pool.answer(GOOD)
    assert waiter.outcomes == [GOOD]
