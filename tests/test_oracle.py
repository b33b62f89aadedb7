"""The embedded server answers as the machine's memcached does, byte for byte.

Each stream of `tests.oracle` goes to a memcached and to an `EmbeddedServer`,
and byte by byte through the same reader and handler; so do streams that
hypothesis makes up. What differs, and is meant to, is told in `tests.oracle`.
"""

from __future__ import annotations

import asyncio
import subprocess
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tornado_memcache.guest import failure
from tornado_memcache.server import EmbeddedServer
from tornado_memcache.store import Store
from tornado_memcache.store_handler import VERSION, StoreHandler
from tornado_memcache.text_server import RequestReader, Settled, encode_reply

from .memcacheds import Memcached
from .oracle import COUNTS, EMPTIES, Ask, Stream, asking, compare, corpus

CORPUS = list(corpus())


def embedded(data: bytes, cas_unique: int = 0) -> bytes:
    """Returns what an embedded server answers, of a socket."""
    server = EmbeddedServer()
    server.store.cas_unique = cas_unique

    async def asked() -> bytes:
        async with server:
            return await asyncio.to_thread(asking(server.address), data)

    return asyncio.run(asked())


def in_steps(step: int) -> Callable[[bytes, int], bytes]:
    """Returns what asks reader and handler in segments of ``step`` bytes."""

    def ask(data: bytes, cas_unique: int = 0) -> bytes:
        store = Store(lambda: 1_700_000_000.0)
        store.cas_unique = cas_unique
        reader, handler, answer = RequestReader(store.too_large), StoreHandler(store), b""
        for i in range(0, len(data), step):
            for one in reader.receive_data(data[i : i + step]):
                if isinstance(one, Settled):
                    answer += one.line + b"\r\n" if one.line else b""
                    continue
                try:
                    reply = handler(one)
                except Exception as error:
                    reply = failure(error)
                answer += b"".join(encode_reply(one, reply))
        return answer

    return ask


class New:
    """A server that is new for each stream: it begins where ``level`` had brought the others."""

    def __init__(self, ask: Callable[[bytes, int], bytes]) -> None:
        self._ask = ask
        self._cas_unique = 0

    def __call__(self, data: bytes) -> bytes:
        if data == EMPTIES:
            self._cas_unique = 0
            return b"VALUE z 0 1 0\r\n"
        if data.startswith(COUNTS):
            self._cas_unique = data.count(COUNTS)
            return b"MN\r\n"
        return self._ask(data, self._cas_unique)


def ours(length: int) -> list[Ask]:
    """Returns the ways to ask ours: over a socket, and in segments of several sizes."""
    steps = (1, 7, 1000) if length < 100_000 else (100, 4096, 65536)
    return [New(embedded), *(New(in_steps(step)) for step in steps)]


@pytest.fixture(scope="module")
def asked_memcached(memcached_binary: str) -> Iterator[Memcached]:
    """A memcached for all streams that are not alone."""
    said = subprocess.run([memcached_binary, "-V"], capture_output=True, text=True).stdout
    server = Memcached(binary=memcached_binary)
    # (shown with -s, and where a test fails)
    print(f"asked: {said.strip()}, {len(CORPUS)} streams")
    yield server
    server.close()


def check(data: bytes, memcached: Memcached) -> None:
    expected, *answers = compare(data, asking(memcached.address), *ours(len(data)))
    assert answers == [expected] * len(answers)


@pytest.mark.parametrize("stream", CORPUS, ids=lambda stream: stream.name)
def test_it_answers_as_memcached_does(
    stream: Stream, asked_memcached: Memcached, start_memcached: Any
) -> None:
    check(stream.data, start_memcached() if stream.alone else asked_memcached)


# -- streams that hypothesis makes up

KEYS = st.sampled_from([b"a", b"b", b"n", b"YQ==", b"Yg=="])
NUMBERS = st.sampled_from(
    [b"0", b"1", b"5", b"100", b"-1", b"3000000", b"18446744073709551615", b"x"]
)
FLAGS = st.one_of(
    st.sampled_from(
        [b"b", b"c", b"f", b"h", b"k", b"q", b"s", b"t", b"u", b"v", b"I", b"O1", b"P/"]
    ),
    st.sampled_from(
        [b"MA", b"MP", b"ME", b"MR", b"MS", b"MI", b"MD", b"M+", b"M-", b"MX", b"z", b"!"]
    ),
    st.builds(bytes.__add__, st.sampled_from([b"T", b"N", b"R", b"F", b"C", b"D", b"J"]), NUMBERS),
    st.builds(lambda more: b"C%%CAS+%d%%" % more, st.integers(0, 6)),
)
VALUES = st.sampled_from([b"", b"1", b"10", b"99", b"abc", b"7 ", b"x" * 300])
NOREPLY = st.sampled_from([b"", b"", b" noreply"])
_STORES = st.sampled_from([b"set", b"add", b"replace", b"append", b"prepend"])


@st.composite
def meta(draw: Any) -> bytes:
    verb, key = draw(st.sampled_from([b"mg", b"md", b"ma", b"ms"])), draw(KEYS)
    words = draw(st.lists(FLAGS, max_size=6, unique_by=lambda flag: flag[:1]))
    if verb != b"ms":
        # (the ``mn`` has the answer sent: what is asked next may write over the number)
        return b" ".join([verb, key, *words]) + b"\r\nmn\r\n"
    value = draw(VALUES)
    return b" ".join([verb, key, b"%d" % len(value), *words]) + b"\r\n%b\r\n" % value


@st.composite
def classic(draw: Any) -> bytes:
    kind, key, noreply = draw(st.integers(0, 6)), draw(KEYS), draw(NOREPLY)
    value, number = draw(VALUES), draw(NUMBERS)
    if kind == 0:
        return b"get %b %b\r\ngets %b\r\n" % (key, draw(KEYS), key)
    if kind == 1:
        words = (draw(_STORES), key, draw(NUMBERS), draw(NUMBERS), len(value), noreply, value)
        return b"%b %b %b %b %d%b\r\n%b\r\n" % words
    if kind == 2:
        words = (key, len(value), draw(st.integers(0, 6)), noreply, value)
        return b"cas %b 0 0 %d %%CAS+%d%%%b\r\n%b\r\n" % words
    if kind == 3:
        return b"delete %b%b\r\n" % (key, noreply)
    if kind == 4:
        return b"%b %b %b%b\r\n" % (draw(st.sampled_from([b"incr", b"decr"])), key, number, noreply)
    if kind == 5:
        return b"touch %b %b%b\r\n" % (key, number, noreply)
    return b"gat %b %b\r\n" % (number, key)


#: What a line must not begin with: it announces a block, empties a server for others too, or is
#: not compared. (Hypothesis takes words from the sources of what it tests.)
_LEFT_OUT = (b"ms", b"set", b"add", b"replace", b"append", b"prepend", b"cas", b"flush_all")
_LEFT_OUT += (b"stats", b"watch", b"lru", b"slabs", b"refresh_certs", b"cache_memlimit", b"config")


def is_fit(line: bytes) -> bool:
    """True for a line that may stand among others."""
    odd = b"\x80" in line or b"\n" in line or b"HTTP/" in line
    return not odd and not line.lstrip(b" ").startswith(_LEFT_OUT)


#: Lines of what makes up lines, and anything.
words = st.lists(
    st.one_of(FLAGS, KEYS, NUMBERS, st.sampled_from([b"mg", b"set", b"2", b"noreply"]))
)
junk = st.one_of(words.map(b" ".join), st.binary(max_size=20)).filter(is_fit)
streams = st.lists(
    st.one_of(meta(), meta(), classic(), classic(), junk.map(lambda line: line + b"\r\nmn\r\n")),
    max_size=12,
).map(b"".join)


@settings(max_examples=300, deadline=None, database=None)
@given(streams)
def test_it_answers_what_nobody_thought_of_as_memcached_does(
    asked_memcached: Memcached, data: bytes
) -> None:
    check(data, asked_memcached)


def test_the_corpus_has_several_hundred_streams_of_whole_requests() -> None:
    assert len(CORPUS) > 600
    assert len({stream.name for stream in CORPUS}) == len(CORPUS)


def test_the_machines_memcached_is_the_one_that_is_told(asked_memcached: Memcached) -> None:
    assert asked_memcached.stats()["version"] == VERSION.decode()
