r"""Replies of every form, good and bad, and the package's parser driven as a connection drives it.

`GOOD`, `REFUSED`, `MALFORMED` and `PIPELINES` are the corpus: streams, each
with the requests that they answer. `Driven` hands a stream to the package's
parser in segments; `expected` is what `tests.reference` makes of the same
stream, in the same words. `packed` and `unpacked` make one string of bytes of
a stream and what is owed to it, for a fuzzer to play with. It must not need
more than the package: a fuzzer runs without the tests' requirements.
"""

from __future__ import annotations

import base64
import random
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, NamedTuple

from tornado_memcache import meta_slots, slots
from tornado_memcache.errors import MemcacheError
from tornado_memcache.gathered import GatheredSlot
from tornado_memcache.meta_batches import BatchReply
from tornado_memcache.protocol import (
    END_BYTES,
    MAX_LINE,
    STREAMED_BLOCK,
    ConnectionRefused,
    OwedReplies,
    Reply,
    Request,
    Slot,
)
from tornado_memcache.slots import slot_for

from . import reference
from .reference import RETRIEVAL, STORAGE, Asked, Told

#: The longest value that the corpus takes.
LIMIT = 40_000
#: Blocks above this length are streamed while `streaming_early` lasts.
EARLY = 3

A, B, C, LONGEST = b"a", b"b", b"c", b"k" * 250


class Case(NamedTuple):
    """A stream and the requests to which it is the answer."""

    owed: tuple[Asked, ...]
    stream: bytes

    def __str__(self) -> str:
        verbs = "+".join(
            f"{'~' if one.unconfirmed else ''}{one.verb.decode()}{'*' if one.callers else ''}"
            for one in self.owed
        )
        return f"{verbs[:40]}-{self.stream[:40]!r}-{len(self.stream)}"


def value(key: bytes, block: bytes, flags: bytes = b"0", cas: bytes = b"") -> bytes:
    return b"VALUE %b %b %d%b\r\n%b\r\n" % (key, flags, len(block), cas and b" " + cas, block)


#: What can be owed. A packed stream names these by number: add at the end only.
KINDS: tuple[Asked, ...] = (
    Asked(b"get", (A,)),
    Asked(b"get", (A, B)),
    Asked(b"get", (b"aa", A, B, C)),
    Asked(b"get", (A, A)),
    Asked(b"get", (LONGEST,)),
    Asked(b"get", (b"\xff\x80", b"VALUE", b"END")),
    Asked(b"gets", (A,)),
    Asked(b"gets", (A, B, A)),
    Asked(b"gat", (A, B)),
    Asked(b"gats", (B, A)),
    Asked(b"get", (A,), callers=(1,)),
    Asked(b"get", (A, B, C), callers=(1, 2, 1)),
    *(Asked(verb, (A,)) for verb in (*STORAGE, b"cas", b"delete", b"touch", b"incr", b"decr")),
    *(Asked(verb) for verb in (b"flush_all", b"version", b"verbosity", b"stats")),
    Asked(b"get", (A, B), unconfirmed=True),
    Asked(b"get", (A, B), unconfirmed=True, callers=(2, 1)),
    Asked(b"set", (A,), unconfirmed=True),
    Asked(b"delete", (A,), unconfirmed=True),
    Asked(b"incr", (A,), unconfirmed=True),
    Asked(b"version", unconfirmed=True),
    Asked(b"stats", unconfirmed=True),
    Asked(b"config"),
    Asked(b"mg", (A,), argument=b"t"),
    Asked(b"mg", (A,), argument=b"v f k O1"),
    Asked(b"mg", (B,), argument=b"N30 c h l s t"),
    Asked(b"ms", (A,), argument=b"c T30 O1"),
    Asked(b"ms", (A,), unconfirmed=True, argument=b"MA"),
    Asked(b"md", (A,), argument=b"I k"),
    Asked(b"ma", (A,), argument=b"v t"),
    Asked(b"ma", (A,), argument=b"N0 b k"),
    Asked(b"mn"),
    Asked(b"me", (A,)),
    Asked(b"mg", (A, B, C), argument=b"q v f"),
    Asked(b"md", (A, B, C), argument=b"q"),
)
ONE_LINE = (b"delete", b"touch", b"incr", b"decr", b"flush_all", b"version", b"verbosity")
META = tuple(asked for asked in KINDS if asked.verb in reference.CODES)

_WORDS: dict[bytes, tuple[bytes, ...]] = {
    **reference.WORDS,
    b"incr": (b"0", b"18446744073709551615", b"007", b"9 ", b"10  ", b"NOT_FOUND"),
    b"decr": (b"0", b"99 ", b"NOT_FOUND"),
    b"version": (b"VERSION 1.6.18", b"VERSION ", b"VERSION 1.6.18 (a build) "),
}
_STATS = (
    b"END\r\n",
    b"RESET\r\n",
    b"STAT pid 1\r\nSTAT version 1.6 x\r\nSTAT empty \r\nSTAT bare\r\nEND\r\n",
    b"STAT pid 1\r\nSTAT pid 2\r\nSTAT \xff \xff\r\nEND\r\n",
    b"ITEM key [5 b; 0 s]\r\nITEM key [6 b; 0 s]\r\nEND\r\n",
)
#: Values that look like something else.
BLOCKS = (
    b"",
    b"v",
    b"\r",
    b"\n",
    b"\r\n",
    b"END\r\n",
    b"\r\nEND\r\n",
    b"VALUE a 0 1\r\nv",
    b"SERVER_ERROR x\r\n",
    bytes(range(256)),
)
ERRORS = (
    b"ERROR\r\n",
    b"ERROR unknown\r\n",
    b"CLIENT_ERROR bad data chunk\r\n",
    b"CLIENT_ERROR\r\n",
    b"SERVER_ERROR out of memory\r\n",
    b"SERVER_ERROR\r\n",
    b"SERVER_ERROR \xff\0\r\n",
    b"SERVER_ERROR object too large for cache\r\n",
)
TOO_MANY = b"ERROR Too many open connections\r\n"
#: No reply to anything.
GARBAGE = (
    b"\r\n",
    b"\n\r\n",
    b"garbage\r\n",
    b"end\r\n",
    b"END \r\n",
    b" END\r\n",
    b"END\n\r\n",
    b"\0\xff\r\n",
    b"STORED \r\n",
    b"stored\r\n",
    b"VALUE\r\n",
    b"ERRORS\r\n",
    b"error\r\n",
    b"SERVER_ERRORS\r\n",
    b"CLIENT_ERROR: x\r\n",
    b"\x81\0\0\0\0\0\0\0\r\n",
    b"HTTP/1.1 400 Bad Request\r\n\r\n",
)
NUMBERS = (
    b"-1",
    b"+5",
    b"0x5",
    b"",
    b" ",
    b"1.0",
    b"1e3",
    b"1_0",
    b"v",
    b"\xef\xbc\x95",
    b"\xb2",
    b"\0",
    b"18446744073709551616",
    b"0" * 21,
    b"9" * 100,
)


def _items(keys: Sequence[bytes], blocks: Iterable[bytes], cas: bool) -> bytes:
    return b"".join(
        value(key, block, b"%d" % (16 * place), b"%d" % (2**64 - 1 - place) if cas else b"")
        for place, (key, block) in enumerate(zip(keys, blocks))
    )


#: What may stand behind a letter that a reply returns.
_TOKENS = {
    b"c": (b"1", b"18446744073709551615"),
    b"f": (b"0", b"16", b"4294967295"),
    b"h": (b"0", b"1"),
    b"l": (b"0", b"99"),
    b"s": (b"0", b"4294967295"),
    b"t": (b"-1", b"0", b"30", b"4294967295"),
}


def _returned(asked: Asked, key: bytes, nth: int) -> bytes:
    """The flags that a reply returns, with a space before each; ``nth`` chooses the tokens."""
    words = []
    for word in asked.argument.split(b" ") if asked.argument else []:
        letter = word[:1]
        if letter in _TOKENS:
            words.append(letter + _TOKENS[letter][nth % len(_TOKENS[letter])])
        elif letter == b"k":
            words.append(b"k" + (base64.b64encode(key) if b" b" in asked.argument else key))
        elif letter in b"Ob":
            words.append(word)
    return b"".join(b" " + word for word in words)


def _meta_replies(asked: Asked) -> list[bytes]:
    if asked.verb == b"mn":
        return [b"MN\r\n"]
    if asked.argument.startswith(b"q"):
        return _batch_replies(asked)
    key = asked.keys[0]
    if asked.verb == b"me":
        coded = base64.b64encode(key)
        return [b"ME %b exp=-1 la=0 cas=1\r\n" % key, b"ME %b exp=-1\r\n" % coded, b"EN\r\n"]
    found = []
    for nth, code in enumerate(reference.CODES[asked.verb] * 3):
        flags = _returned(asked, key, nth)
        if code == b"VA":
            blocks = (b"0", b"12  ") if asked.verb == b"ma" else BLOCKS
            marks = (b"", b" W", b" X Z", b" q9")[nth % 4]
            found += [
                b"VA %d%b%b\r\n%b\r\n" % (len(block), flags, marks, block) for block in blocks
            ]
        else:
            found.append(code + flags + b"\r\n")
            if code not in (b"HD", b"VA"):
                found.append(code + b"\r\n")
    value_asked = b"v" in asked.argument
    return sorted({one for one in found if one[:2] != (b"HD" if value_asked else b"VA")})


def _batch_replies(asked: Asked) -> list[bytes]:
    if asked.verb == b"md":
        return [b"MN\r\n", b"NF O1\r\nMN\r\n", b"NF O0\r\nEX O2\r\nMN\r\n"]
    first, last = b"VA 5 f0 O0\r\n\r\nMN\r\r\n", b"VA 0 f16 O2 W\r\n\r\n"
    refused = b"SERVER_ERROR out of memory\r\n"
    return [
        b"MN\r\n",
        first + b"MN\r\n",
        last + b"MN\r\n",
        first + b"EN O1\r\n" + last + b"MN\r\n",
        first + refused + last + b"MN\r\n",
        refused * 3 + b"MN\r\n",
        first + b"CLIENT_ERROR invalid flag\r\n" + b"MN\r\n",
    ]


def good_replies(asked: Asked) -> list[bytes]:
    """Returns good replies to ``asked``, in all their forms."""
    if asked.verb in reference.CODES:
        return _meta_replies(asked)
    if asked.verb == b"stats":
        return list(_STATS)
    if asked.verb == b"config":
        return [b"CONFIG cluster 0 %d\r\n%b\r\nEND\r\n" % (len(one), one) for one in BLOCKS]
    if asked.verb not in RETRIEVAL:
        return [word + b"\r\n" for word in _WORDS[asked.verb]]
    cas, keys = asked.verb in (b"gets", b"gats"), asked.keys
    found = [b"END\r\n"]
    found += [_items(keys[:1], [block], cas) + b"END\r\n" for block in BLOCKS]
    found += [_items(keys[-1:], [b"last"], cas) + b"END\r\n"]
    found += [
        _items(keys, BLOCKS[2:], cas) + b"END\r\n",
        _items(keys[1:], [b"1"] * 9, cas) + b"END\r\n",
        _items(keys[::-1], BLOCKS[2:], cas) + b"END\r\n",  # (server by server, from a proxy)
    ]
    return sorted(set(found))


def _with_blocks(asked: Asked, *lengths: int) -> Case:
    filling = b"\r\nEND\r\nVALUE a 0 1\r\n" * (max(lengths) // 20 + 1)
    items = _items(asked.keys, [filling[:length] for length in lengths], asked.verb == b"gets")
    return Case((asked,), items + b"END\r\n")


def _of_length(size: int) -> tuple[Case, ...]:
    """Returns replies with a line of ``size`` bytes, without its CRLF."""
    return tuple(
        Case((asked,), start + b"x" * (size - len(start)) + b"\r\n" + end)
        for asked, start, end in (
            (GET, b"SERVER_ERROR ", b""),
            (Asked(b"delete", (A,)), b"CLIENT_ERROR ", b""),
            (Asked(b"version"), b"VERSION ", b""),
            (Asked(b"stats"), b"STAT n ", b"END\r\n"),
        )
    )


GET, GETS = Asked(b"get", (A,)), Asked(b"gets", (A,))
GET_TWO = Asked(b"get", (A, B))
CONFIG = Asked(b"config")
#: Keys of which each begins like the one behind it.
ALIKE = (Asked(b"get", (A, b"aa", b"aaa")), Asked(b"gets", (A, b"aa", b"aaa")))

GOOD: tuple[Case, ...] = (
    *(Case((asked,), reply) for asked in (*KINDS, *ALIKE) for reply in good_replies(asked)),
    Case((GET,), value(A, b"v", b"4294967295") + b"END\r\n"),
    Case((GET,), b"VALUE a 00000000000000000007 0001\r\nv\r\nEND\r\n"),
)
#: Around the length above which blocks are streamed, and up to the limit.
LARGE: tuple[Case, ...] = (
    *(
        _with_blocks(asked, *lengths)
        for asked in (Asked(b"get", (A, B, C)), Asked(b"gets", (A, B, C)), KINDS[11])
        for lengths in (
            (1, STREAMED_BLOCK, 2),
            (STREAMED_BLOCK + 1, STREAMED_BLOCK - 1, STREAMED_BLOCK + 1),
            (2, LIMIT, 0),
        )
    ),
)
REFUSED: tuple[Case, ...] = (
    *(
        Case((asked,), line)
        for asked in KINDS
        if not asked.argument.startswith(b"q")
        for line in ERRORS
    ),
    *(
        Case((asked,), line)
        for asked in META
        if not asked.argument.startswith(b"q") and not asked.unconfirmed
        for line in (
            b"CLIENT_ERROR invalid flag\r\n",
            b"CLIENT_ERROR invalid or duplicate flag\r\n",
            b"CLIENT_ERROR opaque token too long\r\n",
            b"CLIENT_ERROR bad command line format\r\n",
        )
    ),
    *(Case((GET_TWO,), value(A, b"v") + line) for line in (*ERRORS, TOO_MANY)),
    *(Case((Asked(b"stats"),), b"STAT a 1\r\n" + line) for line in (*ERRORS, TOO_MANY)),
    *(Case((CONFIG,), b"CONFIG c 0 1\r\nv\r\n" + line) for line in (*ERRORS, TOO_MANY)),
)
TIME, FULL = META[0], META[1]
#: Flags that no reply has.
ODD_FLAGS = (b"", b"t0", b"W1", b"X0", b"Zz", b"O1", b"kb", b"kYQ==", b"c", b"c-1", b"h2", b"s+1")
MALFORMED: tuple[Case, ...] = (
    *(Case((asked,), line) for asked in KINDS for line in (*GARBAGE, TOO_MANY)),
    # The reply to another verb.
    *(
        Case((Asked(verb, (A,)),), word + b"\r\n")
        for verb in (*STORAGE, b"cas", *ONE_LINE, b"stats", *RETRIEVAL)
        for words in _WORDS.values()
        for word in words[-1:]
        if word not in _WORDS.get(verb, ())
    ),
    *(Case((Asked(verb, (A,)),), b"END\r\n") for verb in (*STORAGE, b"cas", *ONE_LINE)),
    *(Case((Asked(b"incr", (A,)),), number + b"\r\n") for number in NUMBERS if number != b"v"),
    *(Case((TIME,), b"HD t" + n + b"\r\n") for n in (*NUMBERS[1:], b"4294967296")),
    *(Case((TIME,), line) for line in (b"HD\r\n", b"VA 1 t0\r\nv\r\n", b"EN \r\n", b"NF\r\n")),
    *(Case((TIME,), b"HD t0 %b\r\n" % flag) for flag in ODD_FLAGS),
    *(Case((FULL,), b"VA %b f0 ka O1\r\nv\r\n" % number) for number in NUMBERS),
    *(Case((FULL,), b"VA 1 f%b ka O1\r\nv\r\n" % number) for number in NUMBERS),
    *(
        Case((FULL,), line)
        for line in (
            b"VA\r\n",
            b"VA 1\r\nv\r\n",
            b"VA 1 f0 ka\r\nv\r\n",
            b"VA 1 f0 kb O1\r\nv\r\n",
            b"VA 1 f0 kYQ== O1\r\nv\r\n",
            b"VA 1 f0 ka O1 b\r\nv\r\n",
            b"VA 1 f0 ka O2\r\nv\r\n",
            b"VA 1 f0 kA O1\r\nv\r\n",
            b"VA 1 f0 ka O1 W Z\r\nv\r\n",
            b"VA 1 f0 ka O1\r\nvv\r\n",
            b"VA 2 f0 ka O1\r\nv\r\nEN",
            b"VA %d f0 ka O1\r\n" % (LIMIT + 1),
            b"VA 1099511627776 f0 ka O1\r\n",
            b"HD f0 ka O1\r\n",
            b"EN O2\r\n",
            b"EN kb\r\n",
            b"MN\r\n",
        )
    ),
    *(Case((KINDS[-6],), b"VA %d t1\r\n%b\r\n" % (len(n), n)) for n in NUMBERS if n != b"0x5"),
    *(Case((Asked(b"me", (A,)),), line) for line in (b"ME\r\n", b"ME \r\n", b"ME b exp=1\r\n")),
    *(
        Case((KINDS[-2],), line)
        for line in (
            b"VA 1 f0\r\nv\r\nMN\r\n",
            b"VA 1 f0 O3\r\nv\r\nMN\r\n",
            b"VA 1 f0 O-1\r\nv\r\nMN\r\n",
            b"VA 1 f0 O1\r\nv\r\nVA 1 f0 O1\r\nv\r\nMN\r\n",
            b"VA 1 f0 O1\r\nv\r\nVA 1 f0 O0\r\nv\r\nMN\r\n",
            b"SERVER_ERROR x\r\n" * 4 + b"MN\r\n",
            b"HD f0 O1\r\nMN\r\n",
            b"NF O1\r\nMN\r\n",
            b"MN \r\n",
        )
    ),
    *(Case((CONFIG,), b"CONFIG c 0 " + n + b"\r\nv\r\nEND\r\n") for n in (*NUMBERS, b"16385")),
    *(
        Case((CONFIG,), line)
        for line in (
            b"CONFIG\r\n",
            b"CONFIG c 0 1 2\r\nv\r\nEND\r\n",
            b"CONFIG c 1\r\nv\r\nEND\r\n",
            b"CONFIG c 0 1\r\nvv\r\nEND\r\n",
            b"CONFIG c 0 1\r\nv\r\nCONFIG c 0 1\r\nv\r\nEND\r\n",
            b"END\r\n",
            b"VALUE c 0 1\r\nv\r\nEND\r\n",
        )
    ),
    # VALUE lines: too few fields, too many, and none that are numbers.
    *(
        Case((GET,), line + b"\r\nv\r\nEND\r\n")
        for line in (
            b"VALUE ",
            b"VALUE a",
            b"VALUE a 0",
            b"VALUE a 0 1 ",
            b"VALUE a 0 1 2",
            b"VALUE a 0 1 2 3",
            b"VALUE a  0 1",
            b"VALUE  a 0 1",
            b"VALUE a\t0 1",
            b"VALUE a 0 1\n",
            b"value a 0 1",
            b"VALUE a 4294967296 1",
            b"VALUE a 0 %d" % (LIMIT + 1),
            b"VALUE a 0 1099511627776",
            b"VALUE a 0 9223372036854775808",
        )
    ),
    *(Case((GET,), b"VALUE a 0 %b\r\nv\r\nEND\r\n" % number) for number in NUMBERS),
    *(Case((GET,), b"VALUE a %b 1\r\nv\r\nEND\r\n" % number) for number in NUMBERS),
    *(Case((GETS,), b"VALUE a 0 1 %b\r\nv\r\nEND\r\n" % number) for number in NUMBERS),
    Case((GETS,), value(A, b"v") + b"END\r\n"),
    # Keys that were not asked, or not again.
    *(Case((GET,), value(key, b"v") + b"END\r\n") for key in (b"b", b"A", b"aa", b"", LONGEST)),
    *(Case((KINDS[4],), value(key, b"v")) for key in (LONGEST + b"k", LONGEST[1:], b"K" * 250)),
    Case((GET,), value(A, b"v") * 2),
    Case((GET_TWO,), value(B, b"v") + value(A, b"v") + value(B, b"v")),
    Case((GET_TWO,), value(B, b"v") * 2),
    Case((Asked(b"get", (A, A)),), value(A, b"v") * 3),
    # Blocks that end where they should not.
    *(
        Case((GET_TWO,), b"VALUE a 0 %d\r\n%b" % (length, block))
        for length, block in (
            (1, b"vv\r\nEND\r\n"),
            (2, b"v\r\nEND\r\n"),
            (1, b"vEND\r\n"),
            (1, b"v\rx"),
            (1, b"v\nx"),
            (0, b"END\r\n"),
            (5, b"short\nVALUE b 0 1\r\nv\r\n"),
        )
    ),
    # A line without an end, or with a late one.
    *(Case((asked,), b"x" * length) for length in (2048, 2049) for asked in KINDS[::5]),
    *(
        Case((asked,), start + b"x" * (2046 - len(start) + by) + b"\r\n")
        for asked, start in ((GET, b"VALUE a "), (GET, b""), (Asked(b"delete", (A,)), b""))
        for by in (0, 1)
    ),
    *_of_length(2047),
    *_of_length(3000),
    # Bytes that nobody asked for.
    *(Case((), line) for line in (b"x", b"\r\n", b"END\r\n", *ERRORS)),
    *(Case((GET,), b"END\r\n" + line) for line in (b"x", b"\r\n", b"END\r\n", *ERRORS)),
)
#: Lines of the greatest length are still read.
LONG_LINES: tuple[Case, ...] = _of_length(2046)


def _pipeline(*kinds: Asked, nth: int = 1) -> Case:
    replies = [good_replies(asked) for asked in kinds]
    return Case(kinds, b"".join(some[nth % len(some)] for some in replies))


PIPELINES: tuple[Case, ...] = (
    *(_pipeline(*KINDS[start : start + 4], nth=nth) for start in range(0, 32, 4) for nth in (1, 4)),
    Case(
        (GET_TWO, Asked(b"set", (A,)), KINDS[11], Asked(b"incr", (A,)), GETS),
        value(B, b"\r\n") + b"END\r\nSERVER_ERROR busy\r\n" + value(A, b"1") + value(C, b"END")
        + b"END\r\n12 \r\n" + value(A, b"END\r\n", b"2", b"7") + b"END\r\n",
    ),
    # What comes behind an error that the connection does not survive is not read.
    Case((Asked(b"set", (A,)), GET), b"CLIENT_ERROR bad data chunk\r\nERROR\r\nEND\r\n"),
    Case((GET_TWO, GET), value(A, b"v") + b"SERVER_ERROR x\r\nEND\r\nEND\r\n"),
    Case((GET, Asked(b"delete", (A,)), GET), b"END\r\nSTORED\r\nEND\r\n"),
    Case((GET, GET), value(A, b"v") + b"END\r\nEND\r\nEND\r\n"),
)  # fmt: skip


def streams() -> Iterator[Case]:
    """Yields all cases of the corpus but the large ones."""
    yield from (*GOOD, *REFUSED, *MALFORMED, *LONG_LINES, *PIPELINES)


# -- driving the parser


class Waiting:
    """The simplest waiter; its outcome is a list of one."""

    def __init__(self) -> None:
        self.outcome: list[Any] = []

    def done(self) -> bool:
        return bool(self.outcome)

    def set_result(self, result: Any) -> None:
        assert not self.outcome
        self.outcome.append(result)

    def set_exception(self, error: Any) -> None:
        assert not self.outcome
        self.outcome.append(error)

    def exception(self) -> None:
        return None


def receive(owed: OwedReplies, data: bytes) -> list[Slot]:
    """Hands over ``data`` as a connection does: a segment, or straight into an announced block."""
    finished: list[Slot] = []
    while data and owed.failure is None:
        if owed.block is None:
            return finished + owed.receive_data(data)
        room = len(owed.block) - owed.filled
        owed.block[owed.filled : owed.filled + len(data[:room])] = data[:room]
        finished += owed.receive_block(len(data[:room]))
        data = data[room:]
    return finished


@contextmanager
def streaming_early(block: int = EARLY) -> Iterator[None]:
    """Has blocks of over ``block`` bytes streamed, so that short streams show what long ones do."""
    before = slots.STREAMED_BLOCK
    slots.STREAMED_BLOCK = meta_slots.STREAMED_BLOCK = block
    try:
        yield
    finally:
        slots.STREAMED_BLOCK = meta_slots.STREAMED_BLOCK = before


def _decoded(key: bytes, block: bytes, flags: int) -> tuple[bytes, bytes, int]:
    return key, block, flags


def slot_of(asked: Asked) -> Slot:
    """Returns the package's slot for ``asked``, as if its bytes had left."""
    slot: Slot
    if asked.callers:
        slot = GatheredSlot(_decoded, 0, 0.0)
        slot.waiting = {key: Waiting() for key in asked.keys}
        for key, callers in zip(asked.keys, asked.callers):
            for _ in range(callers - 1):
                slot.share(key, Waiting())
    else:
        request = Request(asked.verb, asked.keys, argument=asked.argument)
        slot = slot_for(request, Waiting(), lambda reply: reply, 0.0)
    slot.encode()
    slot.confirms = (b"n",) if asked.unconfirmed else ()
    return slot


def _name(outcome: Any) -> Any:
    if isinstance(outcome, MemcacheError):
        return type(outcome).__name__
    if isinstance(outcome, Reply):
        items = {key: tuple(item) for key, item in outcome.items.items()}
        batch = None
        if isinstance(outcome, BatchReply):
            replies = {key: _name(one) for key, one in outcome.replies.items()}
            batch = replies, outcome.unknown, outcome.error and type(outcome.error).__name__
        told = outcome.number, outcome.text, outcome.stats, outcome.value
        return Told(outcome.status, items, *told, batch)
    return outcome


class Driven:
    """The package's parser with what it owes, and what has come of it.

    ``outcomes`` holds what each answered slot delivered: a `Told` or the name
    of an error; for a gathered line the list of these for each key.
    """

    def __init__(self, owed: Iterable[Asked], limit: int = LIMIT) -> None:
        self.protocol = OwedReplies(limit)
        self.slots = [slot_of(asked) for asked in owed]
        self.protocol.owed.extend(self.slots)
        self.outcomes: list[Any] = []
        self._waiting = [
            list(slot.waiting.items()) if isinstance(slot, GatheredSlot) else slot.waiter
            for slot in self.slots
        ]

    def receive(self, segment: bytes) -> tuple[list[Any], str | None]:
        """Takes one segment and returns the `state`."""
        protocol = self.protocol
        for slot in receive(protocol, segment):
            place = len(self.outcomes)
            assert slot is self.slots[place], "slots finish in their order"
            slot.deliver()
            self.outcomes.append(self._delivered(self._waiting[place]))
        if not protocol.owed:
            protocol.tidy()
        assert protocol.failure is None or protocol.block is None
        # What it holds of a server's bytes is bounded, whatever these are.
        assert len(protocol._tail) <= MAX_LINE + STREAMED_BLOCK
        assert len(protocol._buffer) <= protocol.max_value_size + 2 + END_BYTES
        return self.state

    @staticmethod
    def _delivered(waiting: Any) -> Any:
        if not isinstance(waiting, list):
            return _name(waiting.outcome[0])
        return [
            (key, [_name(one.outcome[0]) for one in (some if isinstance(some, list) else [some])])
            for key, some in waiting
        ]

    @property
    def state(self) -> tuple[list[Any], str | None]:
        """The outcomes until now and the name of the failure, as `expected` returns them."""
        failure = self.protocol.failure
        if failure is None:
            return self.outcomes, None
        if isinstance(failure, ConnectionRefused) and not self.protocol.owed:
            # Whether unasked bytes are told apart depends on how they were cut.
            return self.outcomes, "ProtocolError"
        return self.outcomes, type(failure).__name__


def expected(
    owed: Sequence[Asked], stream: bytes, limit: int = LIMIT
) -> tuple[list[Any], str | None]:
    """Returns the state that a parser is in behind ``stream``, as the reference reads it."""
    reading = reference.read(owed, stream, limit)
    outcomes = [_shared(asked, told) for asked, told in zip(owed, reading.outcomes)]
    return outcomes, reading.failure


def _shared(asked: Asked, told: Told | str) -> Any:
    if not asked.callers:
        return told
    found = []
    for key, callers in zip(asked.keys, asked.callers):
        outcome: Any = told
        if isinstance(told, Told):
            block, flags, _ = told.items.get(key, (None, 0, None))
            outcome = (key, block, flags) if flags else block
        found.append((key, [outcome] * callers))
    return found


# -- for a fuzzer


def packed(case: Case, cutting: int = 0) -> bytes:
    """Returns ``case`` as one string; ``cutting`` (0 to 255) chooses the segments.

    What is owed must be of `KINDS`, and at most four of them.
    """
    kinds = bytes(KINDS.index(asked) for asked in case.owed)
    return bytes([cutting, len(kinds)]) + kinds + case.stream


def unpacked(data: bytes) -> tuple[Case, int]:
    """Returns what ``data`` is taken for: any bytes are a case."""
    head = data[:2].ljust(2, b"\0")
    count = head[1] % 5
    owed = tuple(KINDS[kind % len(KINDS)] for kind in data[2 : 2 + count])
    return Case(owed, data[2 + count :]), head[0]


def cut(stream: bytes, cutting: int) -> list[bytes]:
    """Returns ``stream`` in segments: whole, byte by byte, or of sizes that ``cutting`` chooses."""
    if cutting < 2:
        return [stream] if not cutting else [stream[i : i + 1] for i in range(len(stream))]
    sizes, segments, start = random.Random(cutting), [], 0
    while start < len(stream):
        size = sizes.choice((1, 2, 3, 5, 8, 20, 100))
        segments.append(stream[start : start + size])
        start += size
    return segments
