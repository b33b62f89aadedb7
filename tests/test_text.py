"""tornado_memcache.text: each verb as protocol.txt writes it, and the pieces of replies.

`ENCODED` is the one table of (request, bytes). How whole replies are read
is shown in `test_protocol.py`.
"""

import re

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tornado_memcache.arguments import key_bytes
from tornado_memcache.errors import (
    ClientError,
    InvalidKey,
    ItemTooLarge,
    ProtocolError,
    ServerError,
)
from tornado_memcache.gathered import GatheredSlot
from tornado_memcache.protocol import STREAMED_BLOCK, Request
from tornado_memcache.text import KEYLESS, VERBS, encode_request, error_of, headers, read_number

from .grammar import requests_in

KEY = b"k" * 250
ALL = bytes(range(256))
BIG = 2**64 - 1

ENCODED = [
    (Request(b"get", (b"a",)), b"get a\r\n"),
    (Request(b"get", (b"a", b"b", KEY)), b"get a b " + KEY + b"\r\n"),
    (Request(b"gets", (b"a", b"b")), b"gets a b\r\n"),
    (Request(b"gat", (b"a",), exptime=60), b"gat 60 a\r\n"),
    (Request(b"gat", (b"a", b"b"), exptime=-1), b"gat -1 a b\r\n"),
    (Request(b"gats", (b"a",)), b"gats 0 a\r\n"),
    (Request(b"set", (b"a",), b"v"), b"set a 0 0 1\r\nv\r\n"),
    (Request(b"set", (b"a",), b""), b"set a 0 0 0\r\n\r\n"),
    (Request(b"set", (KEY,), ALL, 2**32 - 1, -1),
     b"set " + KEY + b" 4294967295 -1 256\r\n" + ALL + b"\r\n"),
    (Request(b"set", (b"a",), b"v", 1, 2, noreply=True), b"set a 1 2 1 noreply\r\nv\r\n"),
    (Request(b"add", (b"a",), b"\r\nEND\r\n", 16, 60), b"add a 16 60 7\r\n\r\nEND\r\n\r\n"),
    (Request(b"replace", (b"a",), b"v", exptime=2**31 - 1), b"replace a 0 2147483647 1\r\nv\r\n"),
    (Request(b"append", (b"a",), b"v"), b"append a 0 0 1\r\nv\r\n"),
    (Request(b"prepend", (b"a",), b"v", noreply=True), b"prepend a 0 0 1 noreply\r\nv\r\n"),
    (Request(b"cas", (b"a",), b"v", 2, 3, BIG), b"cas a 2 3 1 18446744073709551615\r\nv\r\n"),
    (Request(b"cas", (b"a",), b"v", cas_unique=0, noreply=True), b"cas a 0 0 1 0 noreply\r\nv\r\n"),
    (Request(b"delete", (b"a",)), b"delete a\r\n"),
    (Request(b"delete", (b"a",), noreply=True), b"delete a noreply\r\n"),
    (Request(b"touch", (b"a",), exptime=-1), b"touch a -1\r\n"),
    (Request(b"touch", (b"a",), exptime=60, noreply=True), b"touch a 60 noreply\r\n"),
    (Request(b"incr", (b"a",), delta=BIG), b"incr a 18446744073709551615\r\n"),
    (Request(b"decr", (b"a",), delta=0, noreply=True), b"decr a 0 noreply\r\n"),
    (Request(b"flush_all"), b"flush_all\r\n"),
    (Request(b"flush_all", exptime=10, noreply=True), b"flush_all 10 noreply\r\n"),
    (Request(b"version"), b"version\r\n"),
    (Request(b"verbosity", argument=b"1"), b"verbosity 1\r\n"),
    (Request(b"stats"), b"stats\r\n"),
    (Request(b"stats", argument=b"items"), b"stats items\r\n"),
    (Request(b"config", argument=b"get cluster"), b"config get cluster\r\n"),
    (Request(b"mg", (KEY,)), b"mg " + KEY + b"\r\n"),
    (Request(b"mg", (b"a",), argument=b"v f t N30 Oabc"), b"mg a v f t N30 Oabc\r\n"),
    (Request(b"mg", (b"a b\n",), argument=b"v b"), b"mg YSBiCg== v b\r\n"),
    (Request(b"ms", (b"a",), b"v"), b"ms a 1\r\nv\r\n"),
    (Request(b"ms", (b"\0",), b"\r\nmn\r\n", argument=b"b T60 F16"),
     b"ms AA== 6 b T60 F16\r\n\r\nmn\r\n\r\n"),
    (Request(b"md", (b"a",), argument=b"I T30"), b"md a I T30\r\n"),
    (Request(b"ma", (b"a",), argument=b"D3 v"), b"ma a D3 v\r\n"),
    (Request(b"mn"), b"mn\r\n"),
    (Request(b"me", (b"a",)), b"me a\r\n"),
    (Request(b"me", (b"\0\r\n",), argument=b"b"), b"me AA0K b\r\n"),
]  # fmt: skip


@pytest.mark.parametrize(("request_", "data"), ENCODED, ids=lambda one: str(one)[:30])
def test_what_a_request_is_on_the_wire(request_, data):
    assert b"".join(encode_request(request_)) == data


@pytest.mark.parametrize("length", [STREAMED_BLOCK, STREAMED_BLOCK + 1])
def test_a_large_value_of_a_meta_set_is_a_piece_of_its_own(length):
    value = b"x" * length
    pieces = encode_request(Request(b"ms", (b"a",), value))
    assert b"".join(pieces) == b"ms a %d\r\n%b\r\n" % (length, value)
    assert (len(pieces) > 1) is (length > STREAMED_BLOCK)


def test_every_verb_is_in_the_table():
    assert {request.verb for request, _ in ENCODED} == set(VERBS)


def test_which_verbs_may_be_tried_again_and_which_write():
    again = {verb for verb, one in VERBS.items() if one.idempotent}
    writes = {verb for verb, one in VERBS.items() if one.writes}
    assert again == {b"get", b"gets", b"version", b"stats", b"config", b"mg", b"mn", b"me"}
    assert writes == set(VERBS) - again - {b"verbosity"}


@pytest.mark.parametrize("length", [0, 1, STREAMED_BLOCK, STREAMED_BLOCK + 1, 1 << 20])
def test_a_large_value_is_a_piece_of_its_own_and_is_not_copied(length):
    value = b"x" * length
    pieces = encode_request(Request(b"set", (b"a",), value))
    assert b"".join(pieces) == b"set a 0 0 %d\r\n%b\r\n" % (length, value)
    if length > STREAMED_BLOCK:
        assert pieces[1] is value


# -- exactly one CRLF outside of the data block

key_parts = st.one_of(st.binary(max_size=12), st.text(max_size=12))
#: Keys of any kind, good and bad, and with lengths around the limit.
any_keys = st.one_of(
    key_parts,
    st.sampled_from(
        ["a", b"b", "\u00e9", b"\xff", b"noreply", b"a\n", b"a b", b"\r\nflush_all\r\n"]
    ),
    st.sampled_from([b"x" * 249, b"x" * 250, b"x" * 251, "\u00e9" * 125, "\u00e9" * 126]),
)
block_ends = st.sampled_from([b"", b"\r\n", b"\r\nEND\r\n", b"\r", b"\r\nflush_all\r\n"])
unsigned = st.sampled_from([0, 1, 2**32, BIG]) | st.integers(0, BIG)


#: What stands before the keys of a client: nothing, or what is a key itself.
prefixes = st.sampled_from([b"", b"p:", b"\xc3\xbc", b"x" * 200, b"noreply"])


#: How many words a line has beside its verb, its keys and noreply; storage has three.
NUMBERS = {b"gat": 1, b"gats": 1, b"cas": 4, b"incr": 1, b"decr": 1, b"touch": 1}
NUMBERS |= {b"flush_all": 1, b"verbosity": 1, b"stats": 2, b"config": 2}
NUMBERS |= {b"mg": 3, b"ms": 3, b"md": 2, b"ma": 2, b"mn": 0}
#: Flags that each meta command takes.
META = {b"mg": b"v f Oopaque", b"ms": b"T30 F1", b"md": b"I T30", b"ma": b"D1 v"}


def _checked(key, prefix):
    try:
        return key_bytes(key, prefix)
    except InvalidKey:
        return None


@settings(max_examples=400, deadline=None, database=None)
@given(
    verb=st.sampled_from(sorted(VERBS)),
    keys=st.lists(any_keys, min_size=1, max_size=4),
    prefix=prefixes,
    value=st.tuples(st.binary(max_size=8), block_ends).map(b"".join),
    large=st.booleans(),
    flags=st.integers(0, 2**32 - 1),
    exptime=st.sampled_from([0, -1, 2**31 - 1]) | st.integers(-(2**31), 2**31 - 1),
    cas_unique=unsigned,
    delta=unsigned,
    noreply=st.booleans(),
)
def test_an_encoded_line_has_exactly_one_crlf_outside_the_data_block(
    verb, keys, prefix, value, large, noreply, **fields
):
    for key in keys:
        raw = key.encode("utf-8", "surrogatepass") if isinstance(key, str) else key
        fit = 0 < len(raw) <= 250 - len(prefix) and not re.search(rb"[\x00-\x20\x7f]", raw)
        assert (_checked(key, prefix) is not None) is fit
    good = tuple(wire for wire in (_checked(key, prefix) for key in keys) if wire is not None)
    shape = VERBS[verb].shape
    if verb in KEYLESS:
        good = ()
    elif not good:
        return
    elif shape != "retrieval":
        good = good[:1]
    value = value * (STREAMED_BLOCK if large else 1)
    arguments = {b"stats": b"items 1", b"verbosity": b"1", b"config": b"get cluster", **META}
    argument = arguments.get(verb, b"")
    noreply = noreply and shape not in ("retrieval", "version", "stats", "config", "meta")
    request = Request(verb, good, value, noreply=noreply, argument=argument, **fields)
    data = b"".join(encode_request(request))
    [written] = requests_in(data)
    assert written.words[0] == verb
    assert written.keys == good
    assert written.block == (value if shape == "storage" or verb == b"ms" else None)
    if verb == b"flush_all" and not fields["exptime"]:
        numbers = 0
    else:
        numbers = NUMBERS.get(verb, 3 if shape == "storage" else 0)
    assert len(written.words) == 1 + len(good) + numbers + noreply
    assert not noreply or written.words[-1] == b"noreply"


@settings(max_examples=100, deadline=None, database=None)
@given(st.lists(any_keys, min_size=1, max_size=6), prefixes)
def test_a_gathered_line_has_exactly_one_crlf(keys, prefix):
    good = dict.fromkeys(wire for key in keys if (wire := _checked(key, prefix)) is not None)
    if good:
        slot = GatheredSlot(lambda key, data, flags: data, 0, 0.0)
        slot.waiting = dict(good)
        [written] = requests_in(b"".join(slot.encode()))
        assert written.words[0] == b"get" and written.keys == tuple(good)


# -- the pieces of replies


@pytest.mark.parametrize(
    ("line", "kind", "told"),
    [
        (b"SERVER_ERROR out of memory", ServerError, "out of memory"),
        (b"SERVER_ERROR", ServerError, "SERVER_ERROR"),
        (b"SERVER_ERROR ", ServerError, "SERVER_ERROR"),
        (b"SERVER_ERROR \xff", ServerError, "\ufffd"),
        (b"SERVER_ERROR object too large for cache", ItemTooLarge, "object too large for cache"),
        (b"CLIENT_ERROR bad data chunk", ClientError, "bad data chunk"),
        (b"CLIENT_ERROR", ClientError, "CLIENT_ERROR"),
        (b"ERROR", ClientError, "the server does not know the command (ERROR)"),
        (b"ERROR unknown", ClientError, "the server does not know the command (ERROR)"),
        (b"ERROR Too many open connections", ClientError, "Too many open connections"),
    ],
)
def test_the_error_lines(line, kind, told):
    error = error_of(line)
    assert type(error) is kind
    assert str(error) == told


@pytest.mark.parametrize(
    "line",
    [
        b"", b"END", b"error", b"ERRORS", b" ERROR", b"STORED", b"VALUE a 0 1", b"server_error",
        b"SERVER_ERRORS", b"SERVER_ERROR: x", b"CLIENT_ERRORx", b"ERROR:", b"ERROR\t",
    ],
)  # fmt: skip
def test_what_is_no_error_line(line):
    assert error_of(line) is None


@pytest.mark.parametrize(
    ("digits", "bits", "number"),
    [(b"0", 32, 0), (b"007", 32, 7), (b"4294967295", 32, 2**32 - 1), (b"%d" % BIG, 64, BIG)],
)
def test_numbers_that_are_read(digits, bits, number):
    assert read_number(digits, bits, "it") == number


BAD_NUMBERS = [
    b"",
    b"-1",
    b"+5",
    b"0x5",
    b"5 ",
    b" 5",
    b"5\n",
    b"1_0",
    b"1.0",
    b"a",
    "\uff15".encode(),
    "\u0665".encode(),
    b"\xb2",
    b"%d" % 2**64,
    b"0" * 21,
    b"9" * 5000,
]


@pytest.mark.parametrize("digits", BAD_NUMBERS, ids=lambda digits: repr(digits)[:20])
def test_numbers_that_are_not_read(digits):
    with pytest.raises(ProtocolError, match="as it"):
        read_number(digits, 64, "it")


def test_the_memo_of_headers_is_bounded_and_keeps_no_cas_unique():
    headers.clear()
    for length in range(5000):
        assert headers[b" 1 %d" % length] == (1, length, None)
    assert 0 < len(headers) <= 4096
    before = len(headers)
    assert headers[b" 1 2 3"] == (1, 2, 3)
    assert len(headers) == before
    with pytest.raises(ProtocolError):
        headers[b" 1 x"]
    assert len(headers) == before
