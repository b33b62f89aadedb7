"""Which connection takes a slot, decided on stand-ins: each rule by itself."""

from __future__ import annotations

import pytest

from tornado_memcache.choice import bound_to, choose, usable
from tornado_memcache.lanes import Line
from tornado_memcache.protocol import LARGE_WORK, Request
from tornado_memcache.slots import slot_for


class Stand:
    """What a connection shows to whoever chooses."""

    def __init__(self, name, keys=(), **state):
        self.name = name
        self.keys = dict.fromkeys(keys, 1)
        self.open, self.late, self.large, self.connecting = True, False, False, False
        self.idle, self.owing = True, 0
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
        ([LATE], slot(key=b"other"), False, None),
        ([IDLE, WRITING], slot(), True, WRITING),
        ([BUSY, IDLE], BIG, True, IDLE),
        ([BUSY], BIG, True, None),
        ([BUSY], BIG, False, BUSY),
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
    ],
)
def test_who_takes_calls_unasked(connections, expected):
    assert usable(connections) is expected
