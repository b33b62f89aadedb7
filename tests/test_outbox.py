"""What waits to be written: the batch, the withdrawn, the silent."""

from __future__ import annotations

from collections import deque

import pytest

from tornado_memcache.outbox import Outbox
from tornado_memcache.protocol import Request
from tornado_memcache.slots import slot_for
from tornado_memcache.text import LINE_BYTES


class Waiter:
    def __init__(self, ended=False):
        self.ended = ended

    def done(self):
        return self.ended


def slot(verb, key=b"k", ended=False, **more):
    keys = (key,) if key else ()
    return slot_for(Request(verb, keys, **more), Waiter(ended), lambda reply: reply, 1.0)


def batch(outbox, *keys):
    opened = outbox.open_batch(lambda *_: None, 0)
    for key in keys:
        opened.waiting[key] = Waiter()
    return opened


def test_the_batch_leaves_behind_what_was_sent_while_it_was_open():
    outbox, owed = Outbox(), deque()
    opened = batch(outbox, b"a", b"b")
    outbox.unsent.append(slot(b"set", b"c", value=b"v"))
    outbox.close_batch(1.0)
    pieces, size, _, withdrawn = outbox.take(owed)
    assert b"".join(pieces) == b"set c 0 0 1\r\nv\r\nget a b\r\n"
    assert size == len(b"".join(pieces))
    assert owed[-1] is opened
    assert not withdrawn
    assert not outbox


@pytest.mark.parametrize(
    "verb, key, closes",
    [
        (b"set", b"a", True),
        (b"delete", b"a", True),
        (b"set", b"other", False),
        (b"flush_all", None, True),
        (b"version", None, True),
    ],
)
def test_what_closes_the_open_batch(verb, key, closes):
    outbox = Outbox()
    assert not outbox.must_close_batch(slot(verb, key))
    batch(outbox, b"a", b"b")
    assert outbox.must_close_batch(slot(verb, key)) is closes


def test_a_line_that_is_too_long_is_cut():
    outbox = Outbox()
    keys = [b"%03d" % number + b"k" * 247 for number in range(100)]
    batch(outbox, *keys)
    parts = outbox.close_batch(1.0)
    assert [key for part in parts for key in part.waiting] == keys
    pieces, _, _, _ = outbox.take(deque())
    assert len(pieces) == len(parts) == 4
    assert all(len(piece) <= LINE_BYTES for piece in pieces)


def test_a_hundred_short_keys_are_one_line():
    outbox = Outbox()
    batch(outbox, *[b"key%d" % number for number in range(100)])
    assert len(outbox.close_batch(1.0)) == 1


def test_what_nobody_waits_for_is_withdrawn():
    outbox, owed = Outbox(), deque()
    gone = slot(b"set", ended=True, value=b"v")
    outbox.unsent.extend([gone, slot(b"get")])
    pieces, _, _, withdrawn = outbox.take(owed)
    assert (pieces, withdrawn) == ([b"get k\r\n"], [gone])
    assert not gone.sent


def test_a_noreply_is_owed_nothing_and_confirmed_by_the_next():
    outbox, owed = Outbox(), deque()
    quiet, loud = slot(b"set", b"q", value=b"v", noreply=True), slot(b"get", b"l")
    outbox.unsent.append(quiet)
    outbox.take(owed)
    assert (outbox.written, outbox.silent, list(owed)) == ([quiet], [b"q"], [])
    outbox.unsent.append(loud)
    outbox.take(owed)
    assert (outbox.silent, loud.confirms) == ([], (b"q",))


def test_much_is_taken_in_parts():
    outbox = Outbox()
    outbox.unsent.extend(slot(b"set", value=b"v" * 100_000) for _ in range(5))
    _, size, _, _ = outbox.take(deque())
    assert 256 * 1024 <= size < 400_000
    assert len(outbox.unsent) == 2
    written, unsent = outbox.clear()
    assert (len(written), len(unsent)) == (0, 2)
    assert not outbox


def test_what_could_not_be_sent_is_put_back_as_it_was():
    outbox, owed = Outbox(), deque([slot(b"set", b"earlier", value=b"v")])
    outbox.unsent.append(slot(b"set", b"a", value=b"v", noreply=True))
    outbox.take(owed)
    slots = [
        slot(b"set", key, value=b"v", noreply=noreply)
        for key, noreply in ((b"b", True), (b"b", False), (b"c", True), (b"b", True), (b"d", False))
    ]
    outbox.unsent.extend(slots)
    pieces, size, taken, _ = outbox.take(owed)
    assert taken == slots
    outbox.put_back(taken, owed)
    assert list(outbox.unsent) == slots and not any(one.sent for one in slots)
    assert [one.keys for one in owed] == [(b"earlier",)]
    assert [one.keys for one in outbox.written] == [(b"a",)]
    assert outbox.take(owed)[:2] == (pieces, size)
