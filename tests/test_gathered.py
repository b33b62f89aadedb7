"""The gets that leave as one line, and what each of their callers gets."""

import pytest

from tornado_memcache.errors import (
    ConnectionFailed,
    SerializationError,
    ServerError,
    Timeout,
)
from tornado_memcache.protocol import OwedReplies

from .test_protocol import LIMIT, Waiting, gathered, receive, value


def test_one_line_for_many_waiters():
    one = gathered(b"a", b"b", b"c")
    assert one.encode() == [b"get a b c\r\n"]
    second = Waiting()
    one.share(b"c", second)
    assert one.weight == 4
    waiters = dict(one.waiting)
    owed = OwedReplies(LIMIT)
    owed.owed.append(one)
    assert receive(owed, value(b"a", b"1") + value(b"c", b"3", b"16") + b"END\r\n") == [one]
    one.deliver()
    assert waiters[b"a"].outcome == [b"1"]
    assert waiters[b"b"].outcome == [None]
    assert waiters[b"c"][0].outcome == second.outcome == ["3"]
    assert one.abandoned()


def test_one_value_that_cannot_be_read_fails_its_own_waiter():
    one = gathered(b"a", b"b", b"c")
    waiters = dict(one.waiting)
    owed = OwedReplies(LIMIT)
    owed.owed.append(one)
    receive(
        owed, value(b"a", b"x", b"2") + value(b"b", b"x", b"1") + value(b"c", b"3") + b"END\r\n"
    )
    one.deliver()
    assert isinstance(waiters[b"a"].outcome[0], SerializationError)
    assert isinstance(waiters[b"b"].outcome[0], SerializationError)
    assert waiters[b"c"].outcome == [b"3"]


@pytest.mark.parametrize(
    "error",
    [ServerError("busy", server="s:1"), ConnectionFailed("lost", server="s:1"), Timeout("late")],
)
def test_a_failure_of_the_line_is_each_waiter_s_own(error):
    one = gathered(b"a", b"b")
    shared = Waiting()
    one.share(b"b", shared)
    waiters = [*one.waiting.values()]
    one.fail(error)
    outcomes = [waiters[0].outcome[0], waiters[1][0].outcome[0], shared.outcome[0]]
    assert {type(outcome) for outcome in outcomes} == {type(error)}
    assert len({*map(id, outcomes), id(error)}) == 4
    assert {outcome.server for outcome in outcomes} == {error.server}
    if not isinstance(error, ServerError):
        assert [outcome.asked for outcome in outcomes] == ["get 'a'", "get 'b'", "get 'b'"]
    assert one.weight == 3  # (what it counted for is what is given back)


def test_a_waiter_that_has_ended_is_left_alone():
    one = gathered(b"a", b"b")
    waiters = dict(one.waiting)
    waiters[b"a"].set_result("ended before")
    owed = OwedReplies(LIMIT)
    owed.owed.append(one)
    receive(owed, value(b"a", b"1") + value(b"b", b"2") + b"END\r\n")
    one.deliver()
    assert waiters[b"a"].outcome == ["ended before"]
    assert waiters[b"b"].outcome == [b"2"]


def test_a_line_that_is_too_long_is_halved():
    one = gathered(*(b"%d" % number for number in range(5)))
    one.share(b"4", Waiting())
    one.lost_at = 1.0
    halves = one.halves()
    assert [half.encode() for half in halves] == [[b"get 0 1\r\n"], [b"get 2 3 4\r\n"]]
    assert [half.weight for half in halves] == [2, 4]
    assert all(half.lost_at == 1.0 for half in halves)


def test_a_call_that_ends_early_asks_the_half_that_it_is_in():
    one = gathered(b"a", b"b")
    call = one.waiting[b"b"]
    call.work = one
    first, second = one.halves()
    assert call.work is second and b"b" in second.waiting
    assert not hasattr(first.waiting[b"a"], "work")


def test_a_line_is_awaited_while_any_of_its_waiters_is():
    one = gathered(b"a", b"b")
    shared = Waiting()
    one.share(b"b", shared)
    assert one.awaited() and one.halves()[1].awaited()
    one.waiting[b"a"].set_result(None)
    one.waiting[b"b"][0].set_result(None)
    assert one.awaited()
    shared.set_result(None)
    assert not one.awaited() and not one.abandoned()
    assert not gathered().awaited()
