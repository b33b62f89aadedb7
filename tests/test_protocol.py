"""tornado_memcache.protocol: who is owed what, and how bytes become replies.

`REPLIES` is the one table of (slot, bytes of the reply, outcome, whether
the connection is kept). Each case is read whole, byte by byte, split at
every offset, and with the next reply behind it. An outcome is what the
slot's reply is, or the class of its error; `ProtocolError` stands for a
failure of the whole connection, and then nothing is finished.
"""

import asyncio
import sys
import tracemalloc

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tornado_memcache.errors import (
    ClientError,
    ItemTooLarge,
    MemcacheError,
    ProtocolError,
    ServerError,
    Timeout,
)
from tornado_memcache.gathered import GatheredSlot
from tornado_memcache.protocol import (
    END_BYTES,
    MAX_LINE,
    RESTS_KEPT,
    STREAMED_BLOCK,
    TOO_MANY_CONNECTIONS,
    ConnectionRefused,
    Item,
    OwedReplies,
    Reply,
    Request,
    fail,
    first_word,
    outlives,
)
from tornado_memcache.serializer import Plain
from tornado_memcache.slots import TextSlot, slot_for

from .corpus import Waiting, receive, value
from .test_text import BAD_NUMBERS

LIMIT = 1 << 20
KEEP, CLOSE = True, False


def slot(verb, *keys, **fields):
    one = slot_for(Request(verb, keys, **fields), Waiting(), lambda reply: reply, 0.0)
    one.encode()
    return one


def after_noreply(verb, *keys, **fields):
    one = slot(verb, *keys, **fields)
    one.confirms = (b"n",)
    return one


def gathered(*keys):
    one = GatheredSlot(Plain().decode, 0, 0.0)
    one.waiting = {key: Waiting() for key in keys}
    one.encode()
    return one


def hits(**items):
    return Reply(b"END", {key.encode(): Item(*item) for key, item in items.items()})


ALL = bytes(range(256))
LARGE = b"\r\nEND\r\n" * 4000
STATS = b"STAT pid 1\r\nSTAT version 1.6 x\r\nSTAT empty \r\n"
NEXT = b"version\r\n"
ERRORS = (b"ERROR\r\n", b"CLIENT_ERROR bad\r\n", b"SERVER_ERROR busy\r\n")

STORAGE = (b"set", b"add", b"replace", b"append", b"prepend")
ONE_LINE = (b"delete", b"touch", b"incr", b"decr", b"flush_all", b"version", b"stats")
RETRIEVAL = (b"get", b"gets", b"gat", b"gats")


def of(verb, **fields):
    keys = () if verb in (b"flush_all", b"version", b"stats") else (b"a",)
    return lambda: slot(verb, *keys, value=b"v" if verb in STORAGE else b"", **fields)


REPLIES = [
    # -- well-formed and expected
    *((of(verb), b"STORED\r\n", Reply(b"STORED"), KEEP) for verb in (*STORAGE, b"cas")),
    *((of(verb), b"NOT_STORED\r\n", Reply(b"NOT_STORED"), KEEP) for verb in STORAGE),
    (of(b"cas"), b"EXISTS\r\n", Reply(b"EXISTS"), KEEP),
    (of(b"cas"), b"NOT_FOUND\r\n", Reply(b"NOT_FOUND"), KEEP),
    (of(b"delete"), b"DELETED\r\n", Reply(b"DELETED"), KEEP),
    (of(b"delete"), b"NOT_FOUND\r\n", Reply(b"NOT_FOUND"), KEEP),
    (of(b"touch"), b"TOUCHED\r\n", Reply(b"TOUCHED"), KEEP),
    (of(b"touch"), b"NOT_FOUND\r\n", Reply(b"NOT_FOUND"), KEEP),
    (of(b"incr"), b"0\r\n", Reply(b"NUMBER", number=0), KEEP),
    (of(b"incr"), b"18446744073709551615\r\n", Reply(b"NUMBER", number=2**64 - 1), KEEP),
    (of(b"decr"), b"9 \r\n", Reply(b"NUMBER", number=9), KEEP),
    (of(b"decr"), b"NOT_FOUND\r\n", Reply(b"NOT_FOUND"), KEEP),
    (of(b"flush_all"), b"OK\r\n", Reply(b"OK"), KEEP),
    (of(b"version"), b"VERSION 1.6.18\r\n", Reply(b"VERSION", text=b"1.6.18"), KEEP),
    (of(b"version"), b"VERSION \r\n", Reply(b"VERSION"), KEEP),
    (of(b"stats"), b"END\r\n", Reply(b"END"), KEEP),
    (of(b"stats"), b"RESET\r\n", Reply(b"RESET"), KEEP),
    (of(b"stats"), STATS + b"END\r\n",
     Reply(b"END", stats={"pid": "1", "version": "1.6 x", "empty": ""}), KEEP),
    *((of(verb), b"END\r\n", hits(), KEEP) for verb in RETRIEVAL),
    (of(b"get"), value(b"a", b"") + b"END\r\n", hits(a=(b"", 0)), KEEP),
    (of(b"get"), value(b"a", b"v", b"4294967295") + b"END\r\n", hits(a=(b"v", 2**32 - 1)), KEEP),
    (of(b"gat"), value(b"a", ALL) + b"END\r\n", hits(a=(ALL, 0)), KEEP),
    (of(b"get"), value(b"a", b"\r\nEND\r\n") + b"END\r\n", hits(a=(b"\r\nEND\r\n", 0)), KEEP),
    (of(b"get"), value(b"a", b"VALUE a 0 1\r\n") + b"END\r\n",
     hits(a=(b"VALUE a 0 1\r\n", 0)), KEEP),
    (of(b"gets"), value(b"a", b"v", b"16", b"18446744073709551615") + b"END\r\n",
     hits(a=(b"v", 16, 2**64 - 1)), KEEP),
    (of(b"gats"), value(b"a", b"v", b"2", b"1") + b"END\r\n", hits(a=(b"v", 2, 1)), KEEP),
    (lambda: slot(b"get", b"a", b"b", b"c"), value(b"a", b"1") + value(b"c", b"3") + b"END\r\n",
     hits(a=(b"1", 0), c=(b"3", 0)), KEEP),
    (lambda: slot(b"gets", b"a", b"b"), value(b"b", b"2", cas=b"7") + b"END\r\n",
     hits(b=(b"2", 0, 7)), KEEP),
    (lambda: slot(b"get", b"a", b"b", b"c"),  # (a proxy answers server by server)
     value(b"c", b"3") + value(b"a", b"1") + value(b"b", b"2") + b"END\r\n",
     hits(a=(b"1", 0), b=(b"2", 0), c=(b"3", 0)), KEEP),
    (lambda: slot(b"get", b"a", b"a"), value(b"a", b"1") + value(b"a", b"1") + b"END\r\n",
     hits(a=(b"1", 0)), KEEP),
    # -- error lines
    *((of(verb), b"SERVER_ERROR out of memory\r\n", ServerError, KEEP)
      for verb in (*STORAGE, b"cas", *ONE_LINE, *RETRIEVAL)),
    (of(b"set"), b"SERVER_ERROR object too large for cache\r\n", ItemTooLarge, KEEP),
    *((of(verb), line, ClientError, CLOSE)
      for verb in (*STORAGE, b"cas")
      for line in (b"ERROR\r\n", b"CLIENT_ERROR bad data chunk\r\n")),
    *((of(verb), line, ClientError, KEEP)
      for verb in (*ONE_LINE, *RETRIEVAL)
      for line in (b"ERROR\r\n", b"CLIENT_ERROR no number\r\n")),
    *((lambda: slot(b"get", b"a", b"b"), value(b"a", b"1") + line, kind, CLOSE)
      for line, kind in zip(ERRORS, (ClientError, ClientError, ServerError))),
    *((of(b"stats"), STATS + line, kind, CLOSE)
      for line, kind in zip(ERRORS, (ClientError, ClientError, ServerError))),
    *((of(verb), TOO_MANY_CONNECTIONS + b"\r\n", ConnectionRefused, CLOSE)
      for verb in (b"get", b"set", b"delete", b"stats")),
    *((lambda verb=verb: after_noreply(verb, b"a"), line, ProtocolError, CLOSE)
      for verb in (b"get", b"delete", b"set") for line in ERRORS),
    (lambda: after_noreply(b"get", b"a"), b"END\r\n", hits(), KEEP),
    (lambda: after_noreply(b"set", b"a"), b"STORED\r\n", Reply(b"STORED"), KEEP),
    # -- another request's reply
    (of(b"set"), b"END\r\n", ProtocolError, CLOSE),
    (of(b"set"), b"DELETED\r\n", ProtocolError, CLOSE),
    (of(b"set"), b"EXISTS\r\n", ProtocolError, CLOSE),
    (of(b"cas"), b"NOT_STORED\r\n", ProtocolError, CLOSE),
    (of(b"delete"), b"STORED\r\n", ProtocolError, CLOSE),
    (of(b"delete"), b"TOUCHED\r\n", ProtocolError, CLOSE),
    (of(b"incr"), b"STORED\r\n", ProtocolError, CLOSE),
    (of(b"version"), b"END\r\n", ProtocolError, CLOSE),
    (of(b"stats"), b"OK\r\n", ProtocolError, CLOSE),
    (of(b"stats"), STATS + b"STORED\r\n", ProtocolError, CLOSE),
    *((of(verb), line, ProtocolError, CLOSE)
      for verb in RETRIEVAL for line in (b"STORED\r\n", b"5\r\n", b"OK\r\n")),
    # -- no reply at all
    *((of(verb), line, ProtocolError, CLOSE)
      for verb in (b"get", b"set", b"delete", b"incr", b"version", b"stats")
      for line in (b"\r\n", b"garbage\r\n", b"end\r\n", b"\0\xff\r\n", b" STORED\r\n",
                   b"STORED \r\n", b"SERVER_ERRORS\r\n", b"CLIENT_ERROR: x\r\n")),
    *((of(b"incr"), line + b"\r\n", ProtocolError, CLOSE)
      for line in BAD_NUMBERS if line not in (b"5 ", b"9" * 5000)),
    # -- VALUE lines that were not asked or are no such thing
    *((of(b"get"), line, ProtocolError, CLOSE) for line in (
        value(b"b", b"v"),
        value(b"A", b"v"),
        value(b"aa", b"v"),
        value(b"", b"v"),
        value(b"a", b"v") + value(b"a", b"v"),
        value(b"a", b"v") + value(b"b", b"v"),
        value(b"a", b"v", cas=b"1"),
        b"VALUE a 0\r\n",
        b"VALUE a\r\n",
        b"VALUE \r\n",
        b"VALUE\r\n",
        b"VALUE a 0 1 2 3\r\nv\r\n",
        b"VALUE a 0 1 \r\nv\r\n",
        b"VALUE a  0 1\r\nv\r\n",
        b"VALUE  a 0 1\r\nv\r\n",
        b"VALUE a 0 1\nv\r\n",
        b"value a 0 1\r\nv\r\n",
        b"VALUE a -1 1\r\nv\r\n",
        b"VALUE a 4294967296 1\r\nv\r\n",
        b"VALUE a x 1\r\nv\r\n",
        b"VALUE a 0 %d\r\n" % (LIMIT + 1),
        b"VALUE a 0 1099511627776\r\n",
        b"VALUE a 0 1\r\nvv\r\n",
        b"VALUE a 0 2\r\nv\r\nEND\r\n",
        b"VALUE a 0 1\r\nv\rx",
        b"VALUE a 0 1\r\nvEND\r\n",
    )),
    *((of(b"get"), b"VALUE a 0 " + number + b"\r\nv\r\nEND\r\n", ProtocolError, CLOSE)
      for number in BAD_NUMBERS),
    *((of(b"get"), b"VALUE a " + number + b" 1\r\nv\r\nEND\r\n", ProtocolError, CLOSE)
      for number in BAD_NUMBERS),
    *((of(b"gets"), value(b"a", b"v", cas=number or b" ") + b"END\r\n", ProtocolError, CLOSE)
      for number in BAD_NUMBERS),
    (of(b"gets"), value(b"a", b"v") + b"END\r\n", ProtocolError, CLOSE),
    *((lambda: slot(b"get", b"a", b"b"), value(b"b", b"2") + more, ProtocolError, CLOSE)
      for more in (value(b"b", b"2"), value(b"a", b"1") + value(b"b", b"2"))),
]  # fmt: skip


def name_of(case):
    request, data, outcome, kept = case
    told = getattr(outcome, "__name__", None) or "good"
    return f"{request().request.verb.decode()}-{data[:30]!r}-{told}"


def outcome_of(reply):
    return type(reply) if isinstance(reply, MemcacheError) else reply


def check(case, *segments):
    make, data, outcome, kept = case
    behind = make()
    owed = OwedReplies(LIMIT)
    one = make()
    owed.owed.extend([one, behind])
    finished = [done for segment in segments for done in receive(owed, segment)]
    if isinstance(outcome, type) and issubclass(outcome, ProtocolError):
        assert finished == []
        assert type(owed.failure) is outcome
        assert not owed.clean()
        assert receive(owed, data) == []
        return
    assert finished[0] is one
    assert outcome_of(one.reply) == outcome
    assert (owed.failure is None) is kept
    if not kept:
        assert finished == [one]
        assert receive(owed, data) == []
    return finished, owed, behind


@pytest.mark.parametrize("case", REPLIES, ids=map(name_of, REPLIES))
def test_a_reply_whole_and_in_any_segments(case):
    data = case[1]
    check(case, data)
    check(case, *(data[i : i + 1] for i in range(len(data))))
    for cut in range(1, len(data)):
        check(case, data[:cut], data[cut:])


@pytest.mark.parametrize(
    "case", [case for case in REPLIES if case[3]], ids=lambda case: name_of(case)
)
def test_a_reply_with_the_next_one_behind_it(case):
    data = case[1]
    for cut in (len(data) * 2, 1, len(data) - 1, len(data), len(data) + 1):
        again = data + data
        finished, owed, behind = check(case, again[:cut], again[cut:])
        assert finished[1] is behind
        assert outcome_of(behind.reply) == case[2]
        assert owed.clean()


def test_a_parser_is_clean_before_and_behind_a_reply_and_not_in_it():
    owed = OwedReplies(LIMIT)
    one = slot(b"get", b"a")
    owed.owed.append(one)
    assert owed.receive_data(b"") == []
    assert not owed.reading()
    assert owed.receive_data(b"EN") == [] and owed.reading()
    assert owed.receive_data(b"D\r\n") == [one]
    assert owed.clean() and not owed.reading()


def test_a_pipeline_of_all_good_replies_in_segments_of_any_size():
    good = [case for case in REPLIES if case[3]]
    stream = b"".join(case[1] for case in good)
    for size in (1, 2, 3, 7, 64, 1000, len(stream)):
        owed = OwedReplies(LIMIT)
        slots = [case[0]() for case in good]
        owed.owed.extend(slots)
        finished = []
        for start in range(0, len(stream), size):
            finished += receive(owed, stream[start : start + size])
        assert finished == slots
        assert [outcome_of(one.reply) for one in slots] == [case[2] for case in good]
        assert owed.clean()


# -- values


@pytest.mark.parametrize(
    "length", [STREAMED_BLOCK - 1, STREAMED_BLOCK, STREAMED_BLOCK + 1, 100_000, LIMIT]
)
def test_a_large_value_in_segments(length):
    data = (LARGE * (length // len(LARGE) + 1))[:length]
    reply = value(b"a", b"1") + value(b"b", data, b"16") + value(b"c", b"3") + b"END\r\n"
    start = reply.index(b"VALUE b")
    head = reply.index(b"\r\n", start) + 2
    around = [end + by for end in (head, head + length) for by in range(-1, 4)]
    for cut in (start, start + 3, *around, len(reply) - 1):
        owed = OwedReplies(LIMIT)
        one, behind = slot(b"get", b"a", b"b", b"c"), slot(b"version")
        owed.owed.extend([one, behind])
        rest = reply[cut:] + b"VERSION 1\r\n"
        finished = receive(owed, reply[:cut])
        for piece in (rest[:5], rest[5:70_000], rest[70_000:]):
            finished += receive(owed, piece)
        assert finished == [one, behind]
        assert one.reply == hits(a=(b"1", 0), b=(data, 16), c=(b"3", 0))
        assert owed.clean()


def test_a_large_block_is_received_into_one_buffer_that_is_used_again():
    owed = OwedReplies(LIMIT)
    first = b"x" * 100_000
    values = []
    for data in (first, b"y" * 99_999, b"z" * 17_000):
        one = slot(b"get", b"a")
        owed.owed.append(one)
        head, tail = value(b"a", data).split(b"\r\n", 1)
        assert owed.receive_data(head + b"\r\n" + tail[:10]) == []
        buffer = owed.block.obj
        values.append(buffer)
        assert owed.block_size == len(data) + 2 and owed.filled == 10
        assert len(owed.block) == owed.block_size + END_BYTES
        assert receive(owed, tail[10:] + b"END\r\n") == [one]
        assert one.reply.items[b"a"].value == data
    assert all(one is values[0] for one in values)
    for _ in range(RESTS_KEPT + 1):
        assert len(owed._buffer) == len(first) + 2 + END_BYTES
        owed.tidy()
    assert len(owed._buffer) == 0


def test_the_end_of_a_large_value_comes_with_its_last_bytes():
    owed = OwedReplies(LIMIT)
    one, behind = slot(b"get", b"a"), slot(b"get", b"a")
    owed.owed.extend([one, behind])
    reply = value(b"a", b"x" * 100_000) + b"END\r\n"
    assert owed.receive_data(reply[:20_000]) == []
    rest = reply[20_000:]
    # As much as one recv_into may bring: the rest, and nothing of the next reply.
    assert len(owed.block) - owed.filled == len(rest)
    owed.block[owed.filled :] = rest
    assert owed.receive_block(len(rest)) == [one]
    assert one.reply == hits(a=(b"x" * 100_000, 0))
    assert owed.block is None and not owed.block_size and not owed.reading()
    assert receive(owed, reply) == [behind]


@pytest.mark.parametrize(
    "more", [b"VALUE b 0 1\r\n1\r\n", b"VALUE b 0 20000\r\n" + b"y" * 20_000 + b"\r\n"]
)
@pytest.mark.parametrize("cut", range(6))
def test_another_value_begins_in_the_room_behind_a_large_one(more, cut):
    owed = OwedReplies(LIMIT)
    one = slot(b"get", b"a", b"b")
    owed.owed.append(one)
    reply = value(b"a", b"x" * 100_000) + more + b"END\r\n"
    at = len(value(b"a", b"x" * 100_000)) + cut
    finished = [receive(owed, piece) for piece in (reply[:20_000], reply[20_000:at], reply[at:])]
    assert finished == [[], [], [one]]
    assert list(one.reply.items) == [b"a", b"b"] and owed.clean()


@pytest.mark.parametrize("tail", [b"x\r\n", b"\r", b"\n\r", b"xx", b"\0\0"])
def test_a_large_block_that_is_one_byte_long_or_short(tail):
    owed = OwedReplies(LIMIT)
    owed.owed.extend([slot(b"get", b"a"), slot(b"get", b"b")])
    data = (
        b"VALUE a 0 50000\r\n" + b"x" * (50_000 if tail != b"\r" else 49_999) + tail + b"\nEND\r\n"
    )
    assert receive(owed, data[:1000]) + receive(owed, data[1000:]) == []
    assert isinstance(owed.failure, ProtocolError)


def test_a_huge_length_allocates_nothing():
    for length in (b"1099511627776", b"%d" % (2**63 - 1), b"%d" % 2**64, b"%d" % (LIMIT + 1)):
        owed = OwedReplies(LIMIT)
        owed.owed.append(slot(b"get", b"a"))
        tracemalloc.start()
        try:
            assert owed.receive_data(b"VALUE a 0 " + length + b"\r\n") == []
            peak = tracemalloc.get_traced_memory()[1]
        finally:
            tracemalloc.stop()
        assert isinstance(owed.failure, ProtocolError)
        assert owed.block is None and len(owed._buffer) == 0
        assert peak < 100_000


@pytest.mark.parametrize(
    "start", [b"", b"VALUE a 0 1", b"VALUE a 0 1\r\nv\r\nEN", b"SERVER_ERROR "]
)
@pytest.mark.parametrize("verb", [b"get", b"set", b"stats"])
def test_a_line_of_300_mb_takes_bounded_memory(verb, start):
    if verb != b"get" and start.startswith(b"VALUE"):
        start = start[:8]
    owed = OwedReplies(LIMIT)
    owed.owed.append(slot(verb, *([b"a"] if verb != b"stats" else [])))
    segment = b"x" * 65536
    tracemalloc.start()
    try:
        owed.receive_data(start)
        for _ in range(300 * 16):
            assert owed.receive_data(segment) == []
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert isinstance(owed.failure, ProtocolError)
    assert peak < 1_000_000


def test_an_endless_line_byte_by_byte_ends_at_the_limit():
    owed = OwedReplies(LIMIT)
    owed.owed.append(slot(b"delete", b"a"))
    sent = 0
    while owed.failure is None:
        owed.receive_data(b"x")
        sent += 1
    assert sent <= MAX_LINE + 1


# -- bytes that nobody asked for


@pytest.mark.parametrize("data", [b"x", b"\r\n", b"VALUE a 0 1\r\nv\r\nEND\r\n", *ERRORS])
def test_bytes_while_nothing_is_owed(data):
    owed = OwedReplies(LIMIT)
    assert owed.clean()
    assert owed.receive_data(data) == []
    assert type(owed.failure) is ProtocolError
    assert not owed.clean()


@pytest.mark.parametrize("data", ERRORS)
def test_a_noreply_that_is_refused_while_nothing_is_owed_behind_a_good_reply(data):
    owed = OwedReplies(LIMIT)
    one = slot(b"delete", b"a")
    owed.owed.append(one)
    assert owed.receive_data(b"DELETED\r\n" + data) == [one]
    assert type(owed.failure) is ProtocolError


def test_a_server_at_its_limit_of_connections():
    owed = OwedReplies(LIMIT)
    owed.receive_data(TOO_MANY_CONNECTIONS + b"\r\n")
    assert type(owed.failure) is ConnectionRefused
    assert issubclass(ConnectionRefused, ProtocolError)


# -- anything at all


@settings(max_examples=200, deadline=None, database=None)
@given(st.data())
def test_a_reply_that_was_tampered_with_never_raises_and_never_gives_another_key(data):
    case = data.draw(st.sampled_from([case for case in REPLIES if case[3]]))
    stream = bytearray(case[1] * 2)
    for _ in range(data.draw(st.integers(0, 3))):
        stream[data.draw(st.integers(0, len(stream) - 1))] = data.draw(st.integers(0, 255))
    owed = OwedReplies(LIMIT)
    slots = [case[0](), case[0]()]
    owed.owed.extend(slots)
    cut = data.draw(st.integers(0, len(stream)))
    finished = receive(owed, bytes(stream[:cut])) + receive(owed, bytes(stream[cut:]))
    assert finished == slots[: len(finished)]
    for one in finished:
        if isinstance(one.reply, Reply):
            assert set(one.reply.items) <= set(one.request.keys)


# -- slots and waiters


def test_the_outcome_is_made_once_and_outside_of_the_parser():
    made = []

    def outcome(reply):
        made.append(reply)
        return "made"

    waiter = Waiting()
    one = TextSlot(Request(b"delete", (b"a",)), waiter, outcome, 0.0)
    owed = OwedReplies(LIMIT)
    owed.owed.append(one)
    assert owed.receive_data(b"DELETED\r\n") == [one]
    assert made == [] and waiter.outcome == []
    one.deliver()
    assert waiter.outcome == ["made"]
    one.deliver()
    assert len(made) == 1


@pytest.mark.parametrize("end", [b"\r\nEND\r\n", b"\r\nEN", b"\r\n", b"xx"])
def test_who_took_a_large_block_is_let_go_of_once_it_is_whole(end):
    """Nothing of a reply is held by its connection, which may rest for hours."""
    owed, size = OwedReplies(LIMIT), STREAMED_BLOCK + 1
    one = slot(b"get", b"k")
    held = sys.getrefcount(one)
    owed.owed.append(one)
    receive(owed, b"VALUE k 0 %d\r\n" % size)
    assert owed.block is not None and sys.getrefcount(one) > held
    receive(owed, b"v" * size + end)
    assert owed.block is None and (owed.failure is None) is (end != b"xx")
    owed.owed.clear()
    assert sys.getrefcount(one) == held


def test_a_reply_to_nobody_is_read_and_dropped():
    for waiter in (None, Waiting()):
        if waiter is not None:
            waiter.set_result("ended")
        one = TextSlot(Request(b"delete", (b"a",)), waiter, pytest.fail, 0.0)
        assert one.abandoned()
        owed = OwedReplies(LIMIT)
        owed.owed.append(one)
        assert owed.receive_data(b"DELETED\r\n") == [one]
        one.deliver()
        assert owed.clean()


def test_expiry_leaves_whoever_has_a_later_deadline_of_its_own():
    one, error = slot(b"get", b"a"), Timeout("late")
    one.waiter.own_deadline = 5.0
    waiter = one.waiter
    assert one.expire(error, 4.0) == 5.0
    assert waiter.outcome == [] and not one.abandoned()
    assert one.expire(error, 5.0) == 0.0
    assert waiter.outcome == [error] and one.abandoned()
    assert one.expire(error, 6.0) == 0.0

    line = gathered(b"a", b"b")
    first, second = line.waiting.values()
    second.own_deadline = 9.0
    assert line.expire(error, 4.0) == 9.0
    assert isinstance(first.outcome[0], Timeout) and second.outcome == []
    assert line.expire(error, 9.0) == 0.0
    assert isinstance(second.outcome[0], Timeout) and line.abandoned()


def test_outlives():
    waiter = Waiting()
    assert outlives(waiter, 0.0) == 0.0
    waiter.own_deadline = 2.0
    assert outlives(waiter, 1.0) == 2.0
    assert outlives(waiter, 2.0) == 0.0
    waiter.set_result(None)
    assert outlives(waiter, 1.0) == 0.0


@pytest.mark.gen_test
async def test_a_future_that_fails_is_marked_as_retrieved():
    future = asyncio.get_running_loop().create_future()
    fail(future, Timeout("late"))
    assert isinstance(future.exception(), Timeout)
    fail(future, Timeout("later"))
    del future  # (the ledger finds a log line of the collector)


@pytest.mark.parametrize(
    ("request_", "text"),
    [
        (Request(b"version"), "version"),
        (Request(b"get", (b"a",)), "get 'a'"),
        (Request(b"get", (b"a", b"b", b"c")), "get 'a' and 2 more"),
        (Request(b"set", (b"\xff",), b"secret"), r"set '\xff'"),
    ],
)
def test_what_a_message_says_of_a_request(request_, text):
    assert request_.asked() == text
    assert text in repr(slot_for(request_, None, lambda reply: reply, 0.0))


def test_a_message_is_short_and_holds_no_value():
    long = Request(b"set", (b"k" * 250,), b"secret" * 1000)
    assert len(long.asked()) < 80 and "secret" not in long.asked()
    owed = OwedReplies(LIMIT)
    owed.owed.append(slot(b"get", b"k" * 250))
    owed.receive_data(b"VALUE " + b"x" * 1900 + b" 0 1\r\n")
    assert len(str(owed.failure)) < 250


def test_replies_do_not_share_what_can_be_changed():
    owed = OwedReplies(LIMIT)
    slots = [slot(b"stats"), slot(b"get", b"a"), slot(b"stats"), slot(b"get", b"a")]
    owed.owed.extend(slots)
    receive(owed, b"END\r\n" * 4)
    slots[0].reply.stats["x"] = "y"
    slots[1].reply.items[b"x"] = Item(b"", 0)
    assert slots[2].reply.stats == {} and slots[3].reply.items == {}
    assert Reply(b"END") == Reply(b"END", {}, 0, b"", {})


@pytest.mark.parametrize("asked", [True, False])
def test_what_the_first_bytes_of_a_connection_mean_while_nothing_is_owed(asked):
    line = TOO_MANY_CONNECTIONS + b"\r\n"
    for data in [line[:size] for size in range(1, len(line) + 1)] + [line * 2]:
        protocol = OwedReplies(LIMIT)
        protocol.receive_data(data)
        failure = first_word(protocol.failure, data, asked)
        assert isinstance(failure, ConnectionRefused) and "limit of connections" in str(failure)
    for data in (b"ERROR\r\n", b"ERROR T-", b"X", b"CLIENT_ERROR bad data chunk\r\n"):
        protocol = OwedReplies(LIMIT)
        protocol.receive_data(data)
        failure = first_word(protocol.failure, data, asked)
        assert "limit of connections" not in str(failure)
        assert isinstance(failure, ConnectionRefused) is not asked
