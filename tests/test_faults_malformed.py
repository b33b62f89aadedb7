"""The fault matrix, "Malformed": what no memcached says, and what it must cost.

Its rows, in their words and order: all are a `ProtocolError` and the
connection closed, everything owed behind it fails, and the next call opens
a new connection and gets its right value. On sockets each reply comes
whole; cut in two at every offset it is read by the pure parser, which is
where a cut could matter.
"""

from __future__ import annotations

import time
import tracemalloc
from typing import Any, NamedTuple

import pytest

from tornado_memcache import Client, ProtocolError, Request, Timeout
from tornado_memcache.connection import LONG_REST
from tornado_memcache.protocol import OwedReplies
from tornado_memcache.slots import slot_for

from .asked import EXCHANGES, NAMES, STYLES, Asked, counts, lost, meta_known, until
from .faultproxy import FaultProxy
from .nonces import fresh, nonce_of
from .scripted import Expect, Repeat, Scripted, Send

#: What a command is on the wire, without the question for the version before it.
pytestmark = pytest.mark.usefixtures(meta_known.__name__)

LOG = "tornado_memcache"
#: A deadline that no test lives to see.
FAR = 600.0
MEGABYTE = 1_000_000

#: Requests, by the name of their command. Those that take a key ask for ``k``, multi for ``j`` too.
ASKED: dict[str, tuple[Request, Any]] = {
    "get": (Request(b"get", (b"k",)), lambda mc, **how: mc.get("k", **how)),
    "gets": (Request(b"gets", (b"k",)), lambda mc, **how: mc.gets("k", **how)),
    "multi": (Request(b"get", (b"k", b"j")), lambda mc, **how: mc.get_multi(["k", "j"], **how)),
    "set": (Request(b"set", (b"k",), b"v"), lambda mc, **how: mc.set("k", b"v", **how)),
    "cas": (
        Request(b"cas", (b"k",), b"v", cas_unique=1),
        lambda mc, **how: mc.cas("k", b"v", 1, **how),
    ),
    "delete": (Request(b"delete", (b"k",)), lambda mc, **how: mc.delete("k", **how)),
    "touch": (Request(b"touch", (b"k",)), lambda mc, **how: mc.touch("k", 0, **how)),
    "incr": (Request(b"incr", (b"k",), delta=1), lambda mc, **how: mc.incr("k", **how)),
    "flush_all": (Request(b"flush_all"), lambda mc, **how: mc.flush_all(**how)),
    "stats": (Request(b"stats"), lambda mc, **how: mc.stats(**how)),
    "version": (Request(b"version"), lambda mc, **how: mc.version(**how)),
}


class Bad(NamedTuple):
    """One reply that is none: its row of the matrix, what was asked, the bytes."""

    row: str
    asked: str
    data: bytes


def lengths(row: str, *numbers: bytes) -> list[Bad]:
    return [Bad(row, "get", b"VALUE k 0 %b\r\nv\r\nEND\r\n" % number) for number in numbers]


MALFORMED = [
    *(
        Bad("garbage", asked, data)
        for asked in ("get", "set", "incr", "stats", "version")
        for data in (
            b"garbage\r\n",
            b"\x00\xff\x00\xff\r\n",
            b"\r\n",
            b"HTTP/1.1 400 Bad Request\r\n\r\n",
            b"220 mail ESMTP\r\n",
            b"-ERR unknown command\r\n",
            b" STORED\r\n",
            b"STORED \r\n",
            b"stored\r\n",
            b"STORED\nEND\r\n",
        )
    ),
    Bad("a length of 2^40", "get", b"VALUE k 0 1099511627776\r\n"),
    Bad("a length of 2^40", "gets", b"VALUE k 0 1099511627776 1\r\n"),
    Bad("a length of 2^40", "multi", b"VALUE k 0 1099511627776\r\n"),
    *lengths("a negative length", b"-1", b"-0", b"-1099511627776"),
    *lengths("+5", b"+5", b"+1"),
    *lengths("0x5", b"0x5", b"0x1", b"1e0", b"1.0", b"1_0", b"0b1", b"1L"),
    *lengths("an empty length", b"", b" ", b"\t"),
    *lengths("non-ASCII digits", "١".encode(), "１".encode(), "²".encode(), b"\xb2", b"\xff"),
    *lengths("a length beyond all measure", b"18446744073709551617", b"9" * 30, b"0" * 30 + b"1"),
    *(
        Bad("flags over 2^32", "get", b"VALUE k %b 1\r\nv\r\nEND\r\n" % flags)
        for flags in (b"4294967296", b"18446744073709551616", b"-1", b"+0", b"0x0", b"x", b"")
    ),
    Bad("flags over 2^32", "gets", b"VALUE k 4294967296 1 1\r\nv\r\nEND\r\n"),
    Bad("a cas unique over 2^64", "gets", b"VALUE k 0 1 18446744073709551616\r\nv\r\nEND\r\n"),
    Bad("a cas unique that is none", "gets", b"VALUE k 0 1 -1\r\nv\r\nEND\r\n"),
    Bad("3 fields", "get", b"VALUE k 0\r\nv\r\nEND\r\n"),
    Bad("3 fields", "get", b"VALUE k 1\r\n"),
    Bad("2 fields", "get", b"VALUE k\r\nv\r\nEND\r\n"),
    Bad("1 field", "get", b"VALUE\r\nv\r\nEND\r\n"),
    Bad("4 fields for gets", "gets", b"VALUE k 0 1\r\nv\r\nEND\r\n"),
    Bad("5 fields for get", "get", b"VALUE k 0 1 1\r\nv\r\nEND\r\n"),
    Bad("6 fields", "get", b"VALUE k 0 1 1 1\r\nv\r\nEND\r\n"),
    Bad("6 fields", "gets", b"VALUE k 0 1 1 1\r\nv\r\nEND\r\n"),
    Bad("an empty field", "get", b"VALUE k  0 1\r\nv\r\nEND\r\n"),
    Bad("an empty field", "get", b"VALUE  k 0 1\r\nv\r\nEND\r\n"),
    Bad("an empty field", "get", b"VALUE k 0 1 \r\nv\r\nEND\r\n"),
    Bad("another key's VALUE", "get", b"VALUE j 0 1\r\nv\r\nEND\r\n"),
    Bad("another key's VALUE", "get", b"VALUE kk 0 1\r\nv\r\nEND\r\n"),
    Bad("another key's VALUE", "gets", b"VALUE j 0 1 1\r\nv\r\nEND\r\n"),
    Bad("another key's VALUE", "multi", b"VALUE i 0 1\r\nv\r\nEND\r\n"),
    Bad("another key's VALUE", "multi", b"VALUE k 0 1\r\nv\r\nVALUE i 0 1\r\nv\r\nEND\r\n"),
    Bad("another key's VALUE", "get", b"VALUE k 0 1\r\nv\r\nVALUE j 0 1\r\nv\r\nEND\r\n"),
    Bad("a key twice", "get", b"VALUE k 0 1\r\nv\r\n" * 2 + b"END\r\n"),
    Bad("a key twice", "multi", b"VALUE k 0 1\r\nv\r\n" * 2 + b"END\r\n"),
    Bad("a key twice", "multi", b"VALUE j 0 1\r\nv\r\n" * 2 + b"END\r\n"),
    Bad("a key again", "multi", b"".join(b"VALUE %c 0 1\r\nv\r\n" % k for k in b"jkj")),
    Bad("changed case", "get", b"VALUE K 0 1\r\nv\r\nEND\r\n"),
    Bad("changed case", "get", b"value k 0 1\r\nv\r\nEND\r\n"),
    Bad("changed case", "get", b"end\r\n"),
    Bad("a block without CRLF", "get", b"VALUE k 0 1\r\nvEND\r\n"),
    Bad("a block without CRLF", "get", b"VALUE k 0 1\r\nv\n\nEND\r\n"),
    Bad("a block without CRLF", "get", b"VALUE k 0 1\r\nv\r\rEND\r\n"),
    Bad("a line without CR", "get", b"VALUE k 0 1\nv\r\nEND\r\n"),
    Bad("a block one byte long", "get", b"VALUE k 0 1\r\nvv\r\nEND\r\n"),
    Bad("a block one byte long", "gets", b"VALUE k 0 0 1\r\nv\r\nEND\r\n"),
    Bad("a block one byte short", "get", b"VALUE k 0 2\r\nv\r\nEND\r\n"),
    Bad("a block one byte short", "get", b"VALUE k 0 1\r\n\r\nEND\r\n"),
    *(
        Bad(row, "get", b"VALUE k 0 20000\r\n" + b"x" * size + end + b"END\r\n")
        for row, size, end in (
            ("a large block without CRLF", 20_000, b""),
            ("a large block without CRLF", 20_000, b"\n\n"),
            ("a large block without CRLF", 20_000, b"xx"),
            ("a large block one byte long", 20_001, b"\r\n"),
            ("a large block one byte short", 19_999, b"\r\n"),
        )
    ),
    Bad("END for a set", "set", b"END\r\n"),
    Bad("END for a set", "cas", b"END\r\n"),
    Bad("another's status", "set", b"EXISTS\r\n"),
    Bad("another's status", "cas", b"NOT_STORED\r\n"),
    Bad("another's status", "delete", b"STORED\r\n"),
    Bad("another's status", "delete", b"TOUCHED\r\n"),
    Bad("another's status", "touch", b"DELETED\r\n"),
    Bad("another's status", "incr", b"OK\r\n"),
    Bad("another's status", "flush_all", b"END\r\n"),
    Bad("another's status", "version", b"OK\r\n"),
    Bad("another's status", "stats", b"STAT pid 1\r\nSTORED\r\n"),
    Bad("STORED for a get", "get", b"STORED\r\n"),
    Bad("STORED for a get", "gets", b"STORED\r\n"),
    Bad("STORED for a get", "multi", b"VALUE k 0 1\r\nv\r\nSTORED\r\n"),
    Bad("a number for a get", "get", b"5\r\n"),
    *(
        Bad("a number that is none", "incr", number + b"\r\n")
        for number in (b"-1", b"+5", b"0x5", "５".encode(), b"18446744073709551616", b"5 5", b" 5")
    ),
]


def name_of(bad: Bad) -> str:
    return f"{bad.row}: {bad.data[:40]!r} to a {bad.asked}"


# -- on sockets, whole


@pytest.mark.parametrize("bad", MALFORMED, ids=name_of)
@pytest.mark.gen_test(timeout=60)
async def test_a_malformed_reply_is_an_error_and_the_end_of_its_connection(expect_log, bad):
    expect_log(LOG, "fails", times=len(STYLES))
    for style in STYLES:
        await is_answered_by(bad, style)


async def is_answered_by(bad: Bad, style: str) -> None:
    request, call = ASKED[bad.asked]
    value, wire = fresh("other"), b"".join(slot_for(request, None, bool, 0.0).encode())
    script = [Expect(b"get warm\r\n"), Send(b"END\r\n"), Expect(wire)]
    script += [Expect(b"set other 0 0 1\r\nv\r\nget other\r\n"), Send(bad.data)]
    good = b"VALUE other 0 %d\r\n%b\r\nEND\r\n" % (len(value), value)
    async with Scripted(script, [Expect(b"get other\r\n"), Send(good)]) as server:
        async with Client([server.address], request_timeout=FAR, max_connections=1) as mc:
            assert await mc.get("warm") is None
            asked = Asked(style, call, mc)
            write, read = Asked(style, mc.set, "other", b"v"), Asked(style, mc.get, "other")
            error = await asked.failure(ProtocolError)
            assert error.server == server.address and not error.connection_survives
            assert error.maybe_applied is (bad.asked not in "get gets multi stats version")
            # All that is owed behind it fails: nobody can tell what is whose any more.
            assert (await write.failure(ProtocolError)).maybe_applied
            assert not (await read.failure(ProtocolError)).maybe_applied
            assert (counts(mc)["open"], counts(mc)["pending"], lost(mc)) == (0, 0, 1)
            assert server.connections == 1
            found = await Asked(style, mc.get, "other").outcome()
            assert nonce_of("other", found) == nonce_of("other", value)
            assert server.connections == 2


# -- cut in two at every offset


def read_by_pieces(request: Request, *pieces: bytes) -> tuple[OwedReplies, list[Any]]:
    """Has a parser read ``pieces`` as a connection does; one more reply is owed behind."""
    owed = OwedReplies(MEGABYTE)
    owed.owed.extend(slot_for(one, None, bool, 0.0) for one in (request, request))
    finished: list[Any] = []
    for slot in owed.owed:
        slot.encode()
    for piece in pieces:
        while piece and owed.failure is None:
            if owed.block is None:
                finished += owed.receive_data(piece)
                break
            part = piece[: len(owed.block) - owed.filled]
            owed.block[owed.filled : owed.filled + len(part)] = part
            finished += owed.receive_block(len(part))
            piece = piece[len(part) :]
    return owed, finished


@pytest.mark.parametrize("bad", MALFORMED, ids=name_of)
def test_a_malformed_reply_that_is_cut_in_two_at_every_offset_is_the_same_error(bad):
    request, _ = ASKED[bad.asked]
    near = range(60), range(len(bad.data) - 60, len(bad.data))
    for cut in {one for some in near for one in some if 0 < one < len(bad.data)} | {0}:
        owed, finished = read_by_pieces(request, bad.data[:cut], bad.data[cut:])
        assert type(owed.failure) is ProtocolError, f"cut at {cut}"
        assert not finished and not owed.clean(), f"cut at {cut}"


# -- 300 MB line without an end (under 1 MB of memory)


@pytest.mark.parametrize("start", [b"", b"VALUE k 0 1", b"VALUE ", b"SERVER_ERROR ", b"STAT "])
@pytest.mark.parametrize("asked", ["get", "set", "stats", "version"])
@pytest.mark.gen_test(timeout=60)
async def test_a_line_of_300_mb_without_an_end_costs_less_than_1_mb(expect_log, asked, start):
    expect_log(LOG, "fails", times=len(STYLES))
    for style in STYLES:
        await is_answered_without_end(asked, start, style)


async def is_answered_without_end(asked: str, start: bytes, style: str) -> None:
    request, call = ASKED[asked]
    wire = b"".join(slot_for(request, None, bool, 0.0).encode())
    endless = [Expect(wire), Send(start), Repeat(b"x" * 60_000, 5_000)]
    good = [Expect(b"get other\r\n"), Send(b"END\r\n")]
    async with Scripted(endless, good) as server:
        async with Client([server.address], request_timeout=FAR) as mc:
            tracemalloc.start()
            try:
                await Asked(style, call, mc).failure(ProtocolError)
                peak = tracemalloc.get_traced_memory()[1]
            finally:
                tracemalloc.stop()
            assert peak < MEGABYTE
            assert await mc.get("other") is None
            assert (server.connections, lost(mc)) == (2, 1)


# -- `VALUE k 0 1099511627776` (no allocation)


@pytest.mark.parametrize("style", STYLES)
@pytest.mark.gen_test(timeout=60)
async def test_a_length_of_2_to_the_40_allocates_nothing(expect_log, style):
    expect_log(LOG, "fails: get 'k'", times=1)
    endless = [
        Expect(b"get k\r\n"),
        Send(b"VALUE k 0 1099511627776\r\n"),
        Repeat(b"x" * 60_000, 50),
    ]
    async with Scripted(endless, [Expect(b"get k\r\n"), Send(b"END\r\n")]) as server:
        async with Client([server.address], request_timeout=FAR) as mc:
            tracemalloc.start()
            try:
                error = await Asked(style, mc.get, "k").failure(ProtocolError)
                peak = tracemalloc.get_traced_memory()[1]
            finally:
                tracemalloc.stop()
            assert peak < MEGABYTE and "1099511627776" in str(error)
            assert await mc.get("k") is None


@pytest.mark.parametrize("style", STYLES)
@pytest.mark.gen_test(timeout=60)
async def test_an_item_may_be_as_large_as_max_value_size_and_no_byte_larger(
    memcached, expect_log, style
):
    expect_log(LOG, "fails: get 'k'", times=1)
    limit = 50_000
    async with Client([memcached.address], max_value_size=limit) as mc:
        largest = fresh("k", limit)
        assert await mc.set("k", largest) is True
        assert nonce_of("k", await Asked(style, mc.get, "k").outcome()) == nonce_of("k", largest)
        assert lost(mc) == 0
        memcached.ask(b"set k 0 0 %d\r\n%b\r\n" % (limit + 1, fresh("k", limit + 1)))
        await Asked(style, mc.get, "k").failure(ProtocolError)
        assert lost(mc) == 1
        assert await mc.set("k", largest) is True
        assert nonce_of("k", await mc.get("k")) == nonce_of("k", largest)


# -- unsolicited bytes on an idle connection


UNSOLICITED = [
    b"\r\n",
    b"x",
    b"END\r\n",
    b"STORED\r\n",
    b"ERROR\r\n",
    b"SERVER_ERROR out of memory\r\n",
    b"VALUE k 0 1\r\nv\r\nEND\r\n",
    b"VALUE k 0 1099511627776\r\n",
    b"garbage" * 10_000,
]


@pytest.mark.parametrize("style", STYLES)
@pytest.mark.parametrize("data", UNSOLICITED, ids=lambda data: repr(data[:30]))
@pytest.mark.gen_test(timeout=60)
async def test_unsolicited_bytes_on_an_idle_connection_close_it(memcached, data, style):
    with FaultProxy(memcached.address) as proxy:
        async with Client([proxy.address], request_timeout=FAR) as mc:
            for number in range(1, 4):
                value = fresh("k")
                assert await Asked(style, mc.set, "k", value).outcome() is True
                found = await Asked(style, mc.get, "k").outcome()
                assert nonce_of("k", found) == nonce_of("k", value)
                assert (proxy.accepted, lost(mc)) == (number, number - 1)
                proxy.say(data)
                await until(lambda: counts(mc)["open"] == 0)
                assert lost(mc) == number, "it is counted"


@pytest.mark.parametrize("style", STYLES)
@pytest.mark.gen_test(timeout=60)
async def test_unsolicited_bytes_that_nobody_has_read_yet_are_no_reply(memcached, style):
    """The loop was busy elsewhere since they came: they lie in the socket when it is asked."""
    with FaultProxy(memcached.address) as proxy:
        async with Client([proxy.address], request_timeout=FAR) as mc:
            value = fresh("k")
            assert await mc.set("k", value) is True
            for call, stray in ((mc.get, b""), (mc.gets, b" 1"), (mc.get, b"")):
                proxy.say(b"VALUE k 0 5%b\r\nwrong\r\nEND\r\n" % stray)
                time.sleep(2 * LONG_REST)
                found = await Asked(style, call, "k").outcome()
                found = found[0] if stray else found
                assert nonce_of("k", found) == nonce_of("k", value)
            assert proxy.accepted == 4


@pytest.mark.parametrize("style", STYLES)
@pytest.mark.gen_test(timeout=60)
async def test_every_reply_twice_is_given_once_and_ends_its_connection(memcached, style):
    with FaultProxy(memcached.address) as proxy:
        proxy.replies.duplicate = 1.0
        async with Client([proxy.address], request_timeout=FAR) as mc:
            for number in range(5):
                key, value = f"k{number}", fresh(f"k{number}")
                asked = [Asked(style, mc.set, key, value)]
                assert await asked[0].outcome() is True
                await until(lambda: counts(mc)["open"] == 0)
                asked.append(Asked(style, mc.get, key))
                assert nonce_of(key, await asked[1].outcome()) == nonce_of(key, value)
                await until(lambda: counts(mc)["open"] == 0)
                assert [len(one.outcomes) for one in asked] == [1, 1]
            assert proxy.accepted == 10


@pytest.mark.parametrize("style", STYLES)
@pytest.mark.parametrize("name", NAMES)
@pytest.mark.gen_test(timeout=60)
async def test_bytes_before_a_reply_are_not_skipped(memcached, expect_log, name, style):
    expect_log(LOG, "fails", times=1)
    with FaultProxy(memcached.address) as proxy:
        async with Client([proxy.address], request_timeout=FAR) as mc:
            value = fresh("other")
            assert await mc.set("other", value) is True
            proxy.replies.stray = 1.0
            exchange = EXCHANGES[NAMES.index(name)]
            outcome = await Asked(style, exchange.call, mc).outcome()
            failed = getattr(outcome, "errors", None) or {0: outcome}
            assert [type(one) for one in failed.values()] == [ProtocolError], outcome
            proxy.heal()
            found = await mc.get("other")
            assert name == "flush_all" or nonce_of("other", found) == nonce_of("other", value)
            assert (proxy.accepted, lost(mc)) == (2, 1)


# -- half of what is malformed is not yet malformed


@pytest.mark.parametrize("style", STYLES)
@pytest.mark.gen_test(timeout=60)
async def test_garbage_without_the_end_of_a_line_lasts_no_longer_than_the_deadline(
    expect_log, style
):
    expect_log(LOG, "fails: get 'k'", times=1)
    script = [Expect(b"get k\r\n"), Send(b"\x15\x03\x03\x00\x02\x02\x46")]
    async with Scripted(script, [Expect(b"get k\r\n"), Send(b"END\r\n")]) as server:
        async with Client([server.address], request_timeout=0.1) as mc:
            await Asked(style, mc.get, "k").failure(Timeout)
            assert await mc.get("k") is None
            await until(lambda: counts(mc)["late"] == 0)
            assert server.connections == 2
