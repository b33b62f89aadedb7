"""Which connection takes a slot, decided on stand-ins: each rule by itself."""

from __future__ import annotations

import pytest

from tornado_memcache.choice import (
    bound_to,
    choose,
    longest_unused,
    takes_calls,
    usable,
    waits_for_its_key,
)
from tornado_memcache.lanes import Line
from tornado_memcache.protocol import LARGE_WORK, Request
from tornado_memcache.slots import slot_for


class Stand:
    """What a connection shows to whoever chooses."""

    def __init__(self, name, keys=(), **state):
        self.name = name
        self.keys = dict.fromkeys(keys, 1)
        self.open, self.late, self.large, self.connecting = True, False, False, False
        self.idle, self.owing, self.leaving, self.heard = True, 0, False, True
        self.__dict__.update(state)

    @property
    def settled(self):
        return self.idle

    def bind(self):
        return self.keys

    def __repr__(self):
        return self.name


def slot(verb=b"get", key=b"k", value=b""):
    return slot_for(Request(verb, (key,), value), None, lambda reply: reply, 1.0)


IDLE = Stand("idle")
BUSY = Stand("busy", idle=False, owing=3)
LATE = Stand("late", idle=False, late=True, keys=[b"k"])
LARGE = Stand("large", idle=False, large=True, owing=1)
OPENING = Stand("opening", open=False, connecting=True)
WRITING = Stand("writing", idle=False, keys=[b"k"])
UNHEARD = Stand("unheard", idle=False, owing=1, heard=False)
FRESH = Stand("fresh", heard=False)
LEAVING = Stand("leaving", idle=False, keys=[b"k"], leaving=True)
BIG = slot(b"set", value=b"x" * (LARGE_WORK + 1))


@pytest.mark.parametrize(
    "connections, asked, may_grow, chosen",
    [
        ([], slot(), True, None),
        ([OPENING], slot(), True, None),
        ([IDLE], slot(), True, IDLE),
        ([BUSY, IDLE], slot(), True, BUSY),
        ([LARGE, IDLE], slot(), True, IDLE),
        ([LARGE], slot(), True, None),
        ([LARGE], slot(), False, LARGE),
        ([LARGE, OPENING], slot(), False, None),
        ([LATE], slot(), False, LATE),
        ([LEAVING], slot(), True, None),
        ([LEAVING, IDLE], slot(), False, None),
        ([LEAVING, IDLE], slot(key=b"other"), False, IDLE),
        ([LEAVING], slot(key=b"other"), True, None),
        ([LATE], slot(key=b"other"), False, None),
        ([IDLE, WRITING], slot(), True, WRITING),
        ([BUSY, IDLE], BIG, True, IDLE),
        ([BUSY], BIG, True, None),
        ([BUSY], BIG, False, BUSY),
        ([UNHEARD, BUSY], BIG, False, BUSY),
        ([UNHEARD, BUSY], slot(), True, UNHEARD),
        ([UNHEARD, BUSY], slot(b"set"), True, BUSY),
        ([UNHEARD, LARGE], slot(b"set"), True, None),
        ([UNHEARD, LARGE], slot(b"set"), False, LARGE),
        ([FRESH, LARGE], slot(b"set"), True, FRESH),
        ([UNHEARD], slot(b"set"), True, UNHEARD),
        ([WRITING, LATE], slot(), True, None),
    ],
)
def test_who_takes_it(connections, asked, may_grow, chosen):
    bound = bound_to(connections, asked)
    assert choose(connections, bound, Line(), asked, may_grow) is chosen


def test_nobody_overtakes_the_line_but_for_the_order_of_a_key():
    line, first, write = Line(), slot(key=b"first"), slot(b"set", b"k", b"v")
    line.add(first)
    assert choose([IDLE], [], line, slot(), True) is None
    assert choose([IDLE], [], line, first, True) is IDLE
    assert choose([IDLE, WRITING], [WRITING], line, slot(), True) is WRITING
    line.add(write)
    assert choose([IDLE, WRITING], [WRITING], line, slot(), True) is None


def test_who_waits_for_a_connection_that_is_left_holds_nobody_up_but_those_of_its_key():
    line, first, other, same = Line(), slot(), slot(key=b"other"), slot(b"set", b"k", b"v")
    for one in (first, other, same):
        line.add(one)
    assert choose([LEAVING, IDLE], [LEAVING], line, first, True) is None
    assert waits_for_its_key([LEAVING]) and waits_for_its_key([LEAVING, WRITING])
    assert not waits_for_its_key([]) and not waits_for_its_key([WRITING])
    line.step_aside()
    assert choose([LEAVING, IDLE], [], line, other, True) is IDLE
    assert choose([LEAVING, IDLE], [LEAVING], line, same, True) is None


@pytest.mark.parametrize(
    "connections, expected",
    [
        ([], None),
        ([OPENING], None),
        ([LATE], None),
        ([LARGE], None),
        ([IDLE], IDLE),
        ([WRITING], WRITING),
        ([OPENING, BUSY], BUSY),
        ([IDLE, WRITING], None),
        ([LARGE, IDLE], IDLE),
        ([UNHEARD], UNHEARD),
        ([LARGE, UNHEARD], None),
        ([BUSY, UNHEARD], BUSY),
    ],
)
def test_who_takes_calls_unasked(connections, expected):
    assert usable(connections) is expected


def test_one_that_is_late_and_to_be_left_still_takes_its_keys():
    both = Stand("both", idle=False, late=True, keys=[b"k"], leaving=True)
    assert choose([both, IDLE], [both], Line(), slot(), False) is both


@pytest.mark.parametrize(
    "state, good", [({}, True), ({"open": False}, False), ({"late": True}, False)]
)
def test_who_takes_calls_of_any_key(state, good):
    assert takes_calls(Stand("one", **state)) is good
    assert not takes_calls(Stand("one", leaving=True, **state))


def test_those_that_were_not_used_for_longest_come_first_and_some_are_kept():
    old = Stand("old", rested_at=1.0, opened_at=0.5)
    new = Stand("new", rested_at=0.0, opened_at=5.0)  # (never asked)
    busy = Stand("busy", idle=False, rested_at=0.0, opened_at=0.0)
    late = Stand("late", late=True, rested_at=0.0, opened_at=0.0)
    shut = Stand("shut", open=False, rested_at=0.0, opened_at=0.0)
    everyone = [busy, new, shut, old, late]
    assert longest_unused(everyone, 0, 9.0) == [(old, 1.0), (new, 5.0), (busy, 9.0), (late, 9.0)]
    assert longest_unused(everyone, 3, 9.0) == [(old, 1.0)]
    assert longest_unused(everyone, 4, 9.0) == longest_unused(everyone, 9, 9.0) == []
