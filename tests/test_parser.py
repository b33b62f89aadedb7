r"""The client's parser, against a slow and obvious one that shares no line with it.

`tests.corpus` has replies of every form, good and bad, and drives the parser
as a connection does; `tests.reference` reads the same bytes. Behind every
segment the two agree on what is answered, with what, and whether the stream
has failed, so nothing comes out early, late, twice or otherwise than as a
`ProtocolError`.

Streams of up to `EVERY_OFFSET` bytes are split at every pair of offsets.
Longer ones are split at every pair of those within three bytes of where a line
or a block ends, and of the lengths at which the parser does something else.

``PARSER_EXAMPLES=20000`` is the long version of what hypothesis tries (ten
minutes). ``python -m tests.fuzz_parser`` plays the same game guided by coverage.
"""

import itertools
import os
import tracemalloc
from contextlib import nullcontext

import pytest
from hypothesis import event, example, given, settings
from hypothesis import strategies as st

from tornado_memcache.errors import ProtocolError
from tornado_memcache.protocol import MAX_LINE, STREAMED_BLOCK, OwedReplies
from tornado_memcache.stream import SEGMENT
from tornado_memcache.text import MAX_STATS, VERBS

from . import reference
from .corpus import (
    BLOCKS,
    EARLY,
    ERRORS,
    GARBAGE,
    GOOD,
    KINDS,
    LARGE,
    LIMIT,
    LONG_LINES,
    LONGEST,
    MALFORMED,
    META,
    NUMBERS,
    ODD_FLAGS,
    PIPELINES,
    REFUSED,
    TOO_MANY,
    Case,
    Driven,
    cut,
    expected,
    good_replies,
    packed,
    receive,
    slot_of,
    streaming_early,
    streams,
    unpacked,
    value,
)
from .reference import RETRIEVAL, STORAGE, Asked, Told

#: Streams of up to this many bytes are split at every pair of offsets.
EVERY_OFFSET = 100
#: How many examples hypothesis tries of each property.
EXAMPLES = int(os.environ.get("PARSER_EXAMPLES", "300"))
anything = settings(max_examples=EXAMPLES, deadline=None, database=None)


# -- the reference itself


def read(asked: Asked, stream: bytes) -> reference.Reading:
    return reference.read([asked], stream, LIMIT)


def test_the_reference_knows_every_verb_and_the_same_limits():
    assert {asked.verb for asked in KINDS} == set(VERBS)
    for asked in KINDS:
        assert len(read(asked, good_replies(asked)[0]).outcomes) == 1
    assert (reference.LONGEST_LINE, reference.MOST_STATS) == (MAX_LINE, MAX_STATS)


def test_the_reference_shares_nothing_with_the_package():
    with open(reference.__file__) as file:
        assert "tornado" not in file.read()


@pytest.mark.parametrize(
    ("asked", "stream", "outcome", "failure"),
    [
        (Asked(b"get", (b"a", b"b")), value(b"b", b"\r\nEND\r\n", b"7") + b"END\r\n",
         Told(b"END", {b"b": (b"\r\nEND\r\n", 7, None)}), None),
        (Asked(b"gets", (b"a",)), value(b"a", b"", cas=b"9") + b"END\r\n",
         Told(b"END", {b"a": (b"", 0, 9)}), None),
        (Asked(b"cas", (b"a",)), b"EXISTS\r\n", Told(b"EXISTS"), None),
        (Asked(b"incr", (b"a",)), b"12  \r\n", Told(b"NUMBER", number=12), None),
        (Asked(b"version"), b"VERSION 1.6\r\n", Told(b"VERSION", text=b"1.6"), None),
        (Asked(b"stats"), b"STAT a 1 2\r\nEND\r\n", Told(b"END", stats={"a": "1 2"}), None),
        (Asked(b"get", (b"a",)), b"SERVER_ERROR busy\r\n", "ServerError", None),
        (Asked(b"set", (b"a",)), b"SERVER_ERROR object too large for cache\r\n",
         "ItemTooLarge", None),
        (Asked(b"set", (b"a",)), b"CLIENT_ERROR bad data chunk\r\n", "ClientError",
         "ProtocolError"),
        (Asked(b"delete", (b"a",)), b"CLIENT_ERROR bad\r\n", "ClientError", None),
        (Asked(b"get", (b"a",)), value(b"a", b"1") + b"SERVER_ERROR busy\r\n", "ServerError",
         "ProtocolError"),
        (Asked(b"delete", (b"a",)), b"DELETED\r\nx", Told(b"DELETED"), "ProtocolError"),
        (Asked(b"delete", (b"a",)), b"STORED\r\n", None, "ProtocolError"),
        (Asked(b"delete", (b"a",), unconfirmed=True), b"ERROR\r\n", None, "ProtocolError"),
        (Asked(b"get", (b"a",)), TOO_MANY, None, "ConnectionRefused"),
        (Asked(b"get", (b"a",)), value(b"b", b"1"), None, "ProtocolError"),
        (Asked(b"get", (b"a",)), b"VALUE a 0 1\r\n1\r\nEND\r", None, None),
    ],
)  # fmt: skip
def test_what_the_reference_reads(asked, stream, outcome, failure):
    reading = read(asked, stream)
    assert reading.outcomes == ([] if outcome is None else [outcome])
    assert reading.failure == failure


def test_what_the_corpus_is():
    for case in (*GOOD, *LARGE, *LONG_LINES):
        reading = reference.read(case.owed, case.stream, LIMIT)
        assert reading.failure is None, case
        assert len(reading.outcomes) == len(case.owed) and reading.ends[-1] == len(case.stream)
    for case in REFUSED:
        reading = reference.read(case.owed, case.stream, LIMIT)
        assert isinstance((reading.outcomes or [reading.failure])[0], str), case
    for case in MALFORMED:
        assert reference.read(case.owed, case.stream, LIMIT).failure is not None, case


# -- each reply in any segments


def in_pieces(case: Case, cuts: list[int], states: dict[int, object]) -> None:
    """Drives ``case`` in the pieces between ``cuts``; behind each the state is the right one."""
    driven = Driven(case.owed)
    for start, stop in itertools.pairwise([0, *cuts, len(case.stream)]):
        state = driven.receive(case.stream[start:stop])
        assert state == states[stop], f"cut at {cuts}, behind {stop} bytes"


def offsets_of(case: Case) -> list[int]:
    """Returns where ``case`` is split."""
    size = len(case.stream)
    if size <= EVERY_OFFSET:
        return list(range(1, size))
    ends = [0, size, *reference.read(case.owed, case.stream, LIMIT).ends]
    ends += [MAX_LINE, STREAMED_BLOCK, STREAMED_BLOCK + MAX_LINE]
    near = {end + by for end in ends for by in range(-3, 4)}
    return sorted(offset for offset in near if 0 < offset < size)


def at_every_pair_of_offsets(case: Case) -> None:
    size, offsets = len(case.stream), offsets_of(case)
    states = {cut: expected(case.owed, case.stream[:cut]) for cut in (*offsets, size)}
    in_pieces(case, [], states)
    for pair in itertools.combinations(offsets, 2):
        in_pieces(case, list(pair), states)
    if size <= EVERY_OFFSET:
        in_pieces(case, offsets, states)  # (byte by byte)
        for offset in offsets:
            in_pieces(case, [offset], states)


def name_of(asked: Asked) -> str:
    return f"{str(Case((asked,), b''))[:-6]}-{b'-'.join(asked.keys)[:12].decode('latin-1')}"


@pytest.mark.parametrize("asked", dict.fromkeys(case.owed[0] for case in GOOD), ids=name_of)
def test_a_good_reply_is_the_same_in_any_segments(asked):
    for case in GOOD:
        if case.owed == (asked,):
            at_every_pair_of_offsets(case)


@pytest.mark.parametrize("cases", [REFUSED, MALFORMED, LONG_LINES], ids=len)
def test_what_is_refused_or_malformed_is_the_same_in_any_segments(cases):
    for case in cases:
        at_every_pair_of_offsets(case)


@pytest.mark.parametrize("case", PIPELINES, ids=str)
def test_a_pipeline_is_the_same_in_any_segments(case):
    at_every_pair_of_offsets(case)


@pytest.mark.parametrize("case", LARGE, ids=str)
def test_a_large_block_is_the_same_in_any_segments(case):
    at_every_pair_of_offsets(case)


def test_a_streamed_block_is_the_same_in_any_segments():
    with streaming_early():
        for case in (*GOOD, *MALFORMED, *PIPELINES):
            if b"VALUE" in case.stream and len(case.stream) <= 70:
                at_every_pair_of_offsets(case)


def test_large_blocks_are_streamed_in_what_is_tested_here(monkeypatch):
    streamed = []
    real = OwedReplies.stream_block
    monkeypatch.setattr(
        OwedReplies,
        "stream_block",
        lambda self, length, *args: (streamed.append(length), real(self, length, *args)),
    )
    for case in LARGE:
        for offset in (-20, STREAMED_BLOCK):
            Driven(case.owed).receive(case.stream[:offset])
    assert {STREAMED_BLOCK + 1, LIMIT} <= set(streamed)
    streamed.clear()
    with streaming_early():
        for case in GOOD:
            Driven(case.owed).receive(case.stream[:-6])
    assert min(streamed) == EARLY + 1


# -- anything at all

keys = st.sampled_from([b"a", b"b", b"aa", b"END", b"VALUE", b"\xff\x80", LONGEST])
some_keys = st.lists(keys, min_size=1, max_size=4)
verbs = sorted(VERBS)


@st.composite
def requests(draw: st.DrawFn) -> Asked:
    """Anything that can be owed a reply."""
    if draw(st.booleans()):
        return draw(st.sampled_from(KINDS))
    verb, unconfirmed = draw(st.sampled_from(verbs)), draw(st.booleans())
    if verb in (b"flush_all", b"version", b"verbosity", b"stats", b"mn"):
        return Asked(verb, (), unconfirmed)
    if verb in reference.CODES:
        asked = draw(st.sampled_from([one for one in META if one.verb == verb]))
        some = tuple(draw(st.lists(keys, min_size=len(asked.keys), max_size=len(asked.keys))))
        if len(set(some)) == len(some):
            return asked._replace(keys=some, unconfirmed=unconfirmed)
        return asked
    if verb not in RETRIEVAL:
        return Asked(verb, (draw(keys),), unconfirmed)
    asked = tuple(draw(some_keys))
    if verb == b"get" and draw(st.booleans()):
        asked = tuple(dict.fromkeys(asked))  # (a gathered line has each key once)
        callers = tuple(draw(st.lists(st.integers(1, 3), min_size=4, max_size=4)))
        return Asked(verb, asked, unconfirmed, callers[: len(asked)])
    return Asked(verb, asked, unconfirmed)


@st.composite
def replies(draw: st.DrawFn, asked: Asked) -> bytes:
    """A good reply to ``asked``, or an error line."""
    if draw(st.integers(0, 9)) == 0:
        return draw(st.sampled_from(ERRORS))
    if asked.verb not in RETRIEVAL or draw(st.booleans()):
        return draw(st.sampled_from(good_replies(asked)))
    found = []
    for key in asked.keys:
        if draw(st.booleans()):
            block = draw(st.one_of(st.sampled_from(BLOCKS), st.binary(max_size=20)))
            flags = b"%d" % draw(st.sampled_from([0, 0, 1, 2**32 - 1]))
            cas = b"%d" % draw(st.integers(0, 2**64 - 1))
            found.append(value(key, block, flags, cas if asked.verb in (b"gets", b"gats") else b""))
    return b"".join(found) + b"END\r\n"


#: What is put in the place of something else.
pieces = st.one_of(
    st.binary(max_size=3),
    st.sampled_from([*GARBAGE, *ERRORS, *NUMBERS, TOO_MANY, b" ", b"\r", b"\n", b"VALUE ", b"0"]),
    st.sampled_from([*ODD_FLAGS, b"MN\r\n", b"EN\r\n", b"VA 1", b" O1", b" W", b"HD"]),
    st.sampled_from([value(b"a", b"v"), value(b"b", b"v", b"1", b"2"), b"END\r\n", b"STORED\r\n"]),
    st.sampled_from([b"x" * MAX_LINE, b"1" * 20, b"99999", b"%d" % LIMIT]),
)


@st.composite
def mutated(draw: st.DrawFn, stream: bytes, most: int = 4) -> bytes:
    """``stream`` with a few pieces replaced, inserted, removed, doubled or moved."""
    for _ in range(draw(st.integers(0, most))):
        start = draw(st.integers(0, len(stream)))
        stop = min(len(stream), start + draw(st.sampled_from([0, 1, 1, 2, 5, 20])))
        how = draw(st.sampled_from(["put", "put", "twice", "move"]))
        if how == "put":
            stream = stream[:start] + draw(pieces) + stream[stop:]
        elif how == "twice":
            stream = stream[:stop] + stream[start:]
        else:
            to = draw(st.integers(0, len(stream)))
            taken, left = stream[start:stop], stream[:start] + stream[stop:]
            stream = left[:to] + taken + left[to:]
    return stream


@st.composite
def conversations(draw: st.DrawFn) -> Case:
    """What is owed, and a stream that once was good replies to it."""
    owed = tuple(draw(st.lists(requests(), min_size=1, max_size=4)))
    stream = b"".join(draw(replies(asked)) for asked in owed)
    return Case(owed, draw(mutated(stream)))


def holds(case: Case, cuts: list[int], early: bool) -> None:
    """The parser agrees with the reference behind every segment."""
    driven = Driven(case.owed)
    inside = sorted({cut % (len(case.stream) + 1) for cut in cuts})
    with streaming_early() if early else nullcontext():
        for start, stop in itertools.pairwise([0, *inside, len(case.stream)]):
            state = driven.receive(case.stream[start:stop])
            assert state == expected(case.owed, case.stream[:stop])
    failure = driven.protocol.failure
    assert failure is None or isinstance(failure, ProtocolError)
    assert driven.protocol.clean() is (failure is None and len(state[0]) == len(case.owed))
    event(f"{len(state[0])} of {len(case.owed)} answered, {state[1]}")


segments = st.lists(st.integers(0, 1 << 16), max_size=6)


noise = st.one_of(st.binary(max_size=200), st.lists(pieces, max_size=8).map(b"".join))


@anything
@given(st.lists(requests(), max_size=3), noise, segments, st.booleans())
@example([], b"", [], False)
def test_arbitrary_bytes(owed, stream, cuts, early):
    holds(Case(tuple(owed), stream), cuts, early)


@settings(anything, max_examples=4 * EXAMPLES)
@given(conversations(), segments, st.booleans())
def test_good_replies_that_were_tampered_with(case, cuts, early):
    holds(case, cuts, early)


@anything
@given(st.lists(requests(), min_size=1, max_size=4), st.data())
def test_good_replies_reach_those_they_are_for(owed, data):
    stream = b"".join(data.draw(st.sampled_from(good_replies(asked))) for asked in owed)
    case = Case(tuple(owed), stream)
    holds(case, data.draw(segments), data.draw(st.booleans()))
    assert expected(case.owed, stream)[1] is None


@anything
@given(
    st.lists(st.integers(STREAMED_BLOCK - 2, LIMIT + 1), min_size=1, max_size=3),
    st.lists(st.integers(0, 3 * LIMIT), max_size=5),
    mutated(b"\r\n"),
    st.sampled_from([b"END\r\n", b"", b"SERVER_ERROR x\r\n", b"x"]),
)
def test_large_blocks_and_what_ends_them(lengths, cuts, crlf, end):
    asked = KINDS[11]
    blocks = [bytes([65 + place]) * length for place, length in enumerate(lengths)]
    stream = b"".join(
        b"VALUE %b 0 %d\r\n%b\r\n" % (key, len(block), block)
        for key, block in zip(asked.keys, blocks)
    )
    holds(Case((asked, asked), stream[:-2] + crlf + end), cuts, False)


# -- what a server cannot make it hold


def peak_of(owed: list[Asked], segments, limit: int = LIMIT) -> tuple[OwedReplies, int]:
    """Returns the parser behind ``segments``, or its failure, and the most memory that it took."""
    protocol = OwedReplies(limit)
    protocol.owed.extend(map(slot_of, owed))
    tracemalloc.start()
    try:
        for segment in segments:
            receive(protocol, segment)
            if protocol.failure is not None:
                break
        return protocol, tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()


#: Three segments: what has come, what was kept of the one before, both joined.
SEGMENTS = 4 * SEGMENT


@pytest.mark.parametrize("size", [1, 100, MAX_LINE, SEGMENT])
@pytest.mark.parametrize("kind", KINDS[::3], ids=name_of)
def test_an_endless_line_of_any_segments(kind, size):
    for byte in (b"x", b"\r", b"\0", b" "):
        protocol, peak = peak_of([kind], itertools.repeat(byte * size, 300_000_000 // size))
        assert isinstance(protocol.failure, ProtocolError)
        assert peak < SEGMENTS


@pytest.mark.parametrize("size", [1, 100, SEGMENT])
@pytest.mark.parametrize("verb", [b"get", b"gets"])
def test_an_endless_value_line(verb, size):
    start = b"VALUE a 0 1"
    protocol, peak = peak_of(
        [Asked(verb, (b"a",))], itertools.chain([start], itertools.repeat(b"0" * size, 1_000_000))
    )
    assert isinstance(protocol.failure, ProtocolError)
    assert peak < SEGMENTS


@pytest.mark.parametrize("length", [LIMIT + 1, 1 << 31, 1 << 40, (1 << 63) - 1, 10**19])
@pytest.mark.parametrize("kind", [KINDS[0], KINDS[6], KINDS[11]], ids=name_of)
def test_a_huge_length_takes_nothing(kind, length):
    line = b"VALUE a 0 %d%b\r\n" % (length, b" 1" if kind.verb == b"gets" else b"")
    protocol, peak = peak_of([kind], [line, b"x" * SEGMENT])
    assert isinstance(protocol.failure, ProtocolError)
    assert protocol.block is None
    assert peak < SEGMENT


def test_endless_items_end_with_the_keys_that_were_asked():
    keys = tuple(b"k%d" % place for place in range(4))
    block = b"x" * LIMIT
    for asked in (Asked(b"get", keys), Asked(b"get", keys, callers=(1, 1, 1, 1))):
        for order in (
            itertools.repeat(keys[0]),
            itertools.cycle(keys),
            itertools.cycle(keys[::-1]),
        ):
            stream = (value(key, block) for key in itertools.islice(order, 1000))
            protocol, peak = peak_of([asked], stream)
            assert isinstance(protocol.failure, ProtocolError)
            assert peak < (len(keys) + 4) * LIMIT


def test_items_that_are_announced_and_never_come_take_one_buffer():
    owed = [Asked(b"get", (b"a",))] * 3
    dripping = itertools.chain([b"VALUE a 0 %d\r\n" % LIMIT], itertools.repeat(b"x", LIMIT))
    protocol, peak = peak_of(owed, dripping)
    assert protocol.failure is None and protocol.block is not None
    assert peak < 2 * LIMIT


def test_endless_statistics_end():
    lines = (b"STAT %b 0\r\n" % (b"%d" % place).ljust(20, b"n") for place in range(2 * MAX_STATS))
    protocol, peak = peak_of([Asked(b"stats")], lines)
    assert isinstance(protocol.failure, ProtocolError)
    assert peak < MAX_STATS * 500


def test_endless_replies_end_with_what_is_owed():
    for asked in (Asked(b"delete", (b"a",)), Asked(b"get", (b"a",)), Asked(b"version")):
        reply = good_replies(asked)[0]
        protocol, peak = peak_of([asked] * 10, itertools.repeat(reply * 1000, 100))
        assert isinstance(protocol.failure, ProtocolError) and not protocol.owed
        assert peak < SEGMENTS


def test_endless_errors_end_with_what_is_owed():
    for verb in STORAGE[:1] + (b"get", b"incr"):
        for line in ERRORS:
            protocol, peak = peak_of([Asked(verb, (b"a",))] * 10, itertools.repeat(line * 100, 100))
            assert isinstance(protocol.failure, ProtocolError)
            assert peak < SEGMENTS


# -- what a fuzzer plays with


def test_a_case_can_be_packed():
    for case in streams():
        if all(asked in KINDS for asked in case.owed) and len(case.owed) <= 4:
            for cutting in (0, 1, 9):
                assert unpacked(packed(case, cutting)) == (case, cutting)
                assert b"".join(cut(case.stream, cutting)) == case.stream


@anything
@given(st.binary(max_size=40))
def test_any_bytes_are_a_case(data):
    case, cutting = unpacked(data)
    assert b"".join(cut(case.stream, cutting)) == case.stream
    assert len(case.owed) <= 4 and set(case.owed) <= set(KINDS)
