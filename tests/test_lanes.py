"""Slots in the order of their deadlines, and the keys that are bound."""

from __future__ import annotations

from tornado_memcache.deadlines import NEVER
from tornado_memcache.lanes import MOST_ASIDE, BoundKeys, Line, SlotLane
from tornado_memcache.protocol import Request
from tornado_memcache.slots import slot_for


def slot(deadline, verb=b"get", key=b"k"):
    return slot_for(Request(verb, (key,)), None, lambda reply: reply, deadline)


def test_slots_come_out_in_the_order_of_their_deadlines():
    lane = SlotLane()
    assert lane.next_deadline == NEVER
    assert lane.last_deadline == 0.0
    assert [lane.add(slot(moment)) for moment in (2.0, 3.0, 1.0, 2.5)] == [True, False, True, False]
    assert (lane.next_deadline, lane.last_deadline) == (1.0, 3.0)
    assert [lane.pop().deadline for _ in range(len(lane))] == [1.0, 2.0, 2.5, 3.0]


def test_removing_what_has_left_before_changes_nothing():
    lane, first, second = SlotLane(), slot(1.0), slot(2.0)
    lane.add(first)
    lane.add(second)
    lane.remove(second)
    lane.remove(second)
    assert list(lane) == [first]
    assert lane.clear() == [first]
    assert len(lane) == 0


class Counted:
    """A slot that counts how often its deadline is looked at."""

    looks = 0

    def __init__(self, moment):
        self._moment = moment

    @property
    def deadline(self):
        Counted.looks += 1
        return self._moment


def test_what_comes_back_from_the_last_to_the_first_is_not_sorted_in_one_by_one():
    lane, Counted.looks = SlotLane(), 0
    for moment in (*range(1000, 2000), *reversed(range(1000))):
        lane.add(Counted(float(moment)))
    assert Counted.looks < 10 * 2000
    assert [lane.pop().deadline for _ in range(len(lane))] == [float(n) for n in range(2000)]


def test_many_leave_in_one_pass_from_behind_many_others():
    lane, Counted.looks = SlotLane(), 0
    slots = [Counted(1.0) for _ in range(2000)]
    for one in slots:
        lane.add(one)
    lane.remove_all(slots[1000:])
    lane.remove_all([])
    lane.remove_all(slots[999:1000])
    assert list(lane) == slots[:999]
    assert Counted.looks < 10 * 2000


def test_a_lane_that_is_empty_again_keeps_nothing():
    lane, one, two = SlotLane(), slot(1.0), slot(2.0)
    empty = lane._slots
    for leave in (
        lambda: (lane.remove(one), lane.remove(two)),
        lambda: (lane.pop(), lane.pop()),
        lambda: lane.remove_all([two, one]),
        lane.clear,
    ):
        lane.add(one)
        lane.add(two)
        assert list(lane) == [one, two]
        leave()
        assert not lane and lane._slots is empty and SlotLane()._slots is empty
    assert not empty


def test_bound_keys_are_those_of_unanswered_writes():
    write, read = slot(1.0, b"set", b"w"), slot(1.0, b"get", b"r")
    confirming = slot(1.0, b"get", b"r")
    confirming.confirms = (b"quiet",)
    bound = BoundKeys([write, read, confirming], [b"silent"])
    assert set(bound) == {b"w", b"quiet", b"silent"}
    bound.count(slot(1.0, b"set", b"w"), 1)
    bound.count(write, -1)
    assert b"w" in bound
    bound.count(write, -1)
    bound.count(confirming, -1)
    assert set(bound) == {b"silent"}


def test_who_waits_for_its_key_lets_a_few_pass_and_stands_where_it_stood():
    line = Line()
    slots = [slot(float(number)) for number in range(MOST_ASIDE + 2)]
    for one in slots:
        line.add(one)
    for one in slots[:MOST_ASIDE]:
        assert line.goes_on and line.first is one
        line.step_aside()
    assert not line.goes_on, "each of them is looked at again, whenever the line is served"
    line.come_back()
    assert [line.pop() for _ in slots] == slots and not line.goes_on
