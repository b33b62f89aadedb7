"""tornado_memcache.meta_server: meta requests read and replies written, without a socket.

That the answers are memcached's own is shown in `test_oracle.py`.
"""

import pytest

from tornado_memcache.meta_server import (
    encode_meta,
    encoded_key,
    flags_of,
    is_quiet,
    key_told,
    read_flags,
    read_meta,
    read_set,
)
from tornado_memcache.protocol import STREAMED_BLOCK, Reply, Request
from tornado_memcache.text_server import RequestReader, Settled, encode_reply
from tornado_memcache.words import BadLine

KEY = b"k" * 250
MG = Request(b"mg", (b"k",), argument=b"v")


def read(data):
    one = RequestReader(lambda key, flags, length: length > 1000)
    whole = one.receive_data(data)
    for step in (1, 3, 7):
        other = RequestReader(lambda key, flags, length: length > 1000)
        segments = (data[i : i + step] for i in range(0, len(data), step))
        assert [asked for segment in segments for asked in other.receive_data(segment)] == whole
    return whole


@pytest.mark.parametrize(
    "data, request_",
    [
        (b"mg k\r\n", Request(b"mg", (b"k",))),
        (b"mg  k  v  t N30 Oabc \r\n", Request(b"mg", (b"k",), argument=b"v t N30 Oabc")),
        (b"mg Zm9v b k\r\n", Request(b"mg", (b"foo",), argument=b"b k")),
        (b"mg IAo= k b\r\n", Request(b"mg", (b" \n",), argument=b"k b")),
        (b"mg " + KEY + b"\r\n", Request(b"mg", (KEY,))),
        (b"ms k 2 T0 F5\r\n\r\n\r\n", Request(b"ms", (b"k",), b"\r\n", argument=b"T0 F5")),
        (b"ms k 0\r\n\r\n", Request(b"ms", (b"k",))),
        (b"md k I T5 q\r\n", Request(b"md", (b"k",), argument=b"I T5 q")),
        (b"ma k D5 MD\r\n", Request(b"ma", (b"k",), argument=b"D5 MD")),
        (b"mn\r\n", Request(b"mn")),
        (b"mn or anything\r\n", Request(b"mn")),
        (b"me k\r\n", Request(b"me", (b"k",))),
        (b"me Zm9v b\r\n", Request(b"me", (b"foo",), argument=b"b")),
    ],
)
def test_requests_are_read(data, request_):
    assert read(data) == [request_]
    assert read(data * 3) == [request_] * 3


@pytest.mark.parametrize(
    "data, answers",
    [
        (b"mg\r\n", [b"ERROR"]),
        (b"mg k v v\r\n", [b"CLIENT_ERROR duplicate flag"]),
        (b"mg k !\r\n", [b"CLIENT_ERROR invalid flag"]),
        (b"md k !\r\n", [b"CLIENT_ERROR invalid or duplicate flag"]),
        (b"mg Zg b\r\n", [b"CLIENT_ERROR error decoding key"]),
        (b"mg k Tx\r\n", [b"CLIENT_ERROR bad token in command line format"]),
        (b"mg k" + b" P" * 18 + b"\r\n", [b"CLIENT_ERROR options flags are too long"]),
        (b"ms k 2 MX\r\nab\r\n", [b"CLIENT_ERROR invalid mode for ms M token"]),
        (b"ms k 2 " + b"O" * 33 + b"\r\nab\r\n", [b"CLIENT_ERROR opaque token too long"]),
        (b"ms k x\r\nab\r\n", [b"CLIENT_ERROR bad command line format", b"ERROR"]),
        (b"ms k 2\r\nabc\r\n", [b"CLIENT_ERROR bad data chunk", b"ERROR"]),
        (b"me\r\n", [b"CLIENT_ERROR bad command line format"]),
    ],
)
def test_what_is_no_request_is_answered_and_the_stream_stays_in_step(data, answers):
    assert read(data + b"mn\r\n") == [*map(Settled, answers), Request(b"mn")]


def test_a_value_that_is_too_large_takes_away_what_was_there_in_every_mode():
    refused = Settled(b"SERVER_ERROR object too large for cache")
    for flags in (b"", b" q", b" ME"):
        data = b"ms k 1001%b\r\n%b\r\n" % (flags, b"x" * 1001)
        assert read(data) == [Request(b"delete", (b"k",), noreply=True), refused]
    # One that is refused for another reason takes nothing.
    data = b"ms k 1001 MX\r\n%b\r\n" % (b"x" * 1001)
    assert read(data) == [Settled(b"CLIENT_ERROR invalid mode for ms M token")]


@pytest.mark.parametrize(
    "word, key",
    [
        (b"Zm9v", b"foo"),
        (b"Zm8=", b"fo"),
        (b"Zg==", b"f"),
        (b"Zm9v/+==", b"foo\xff"),
        (b"Z-m9v", b"foo"),
        (b"Zg==Zm9v", b"f"),
        (b"Z=9v", b"d\x0f"),
        (b"Zg", None),
        (b"Z===", None),
        (b"Zm9vZ===", None),
        (b"Zm9v====", None),
        (b"====", None),
        (b"-", None),
    ],
)
def test_keys_in_base64_as_memcached_reads_them(word, key):
    if key is None:
        with pytest.raises(BadLine):
            read_meta([b"mg", word, b"b"])
    else:
        assert read_meta([b"mg", word, b"b"]).keys == (key,)


def test_flags_with_their_tokens():
    flags = read_flags(b"v N30 T-1 R5 F4294967297 C7 J1 D2 MA Oabc".split())
    assert flags[1:] == (30, -1, 5, 1, 7, 1, 2, b"A")
    assert flags.has(b"v") and flags.has(b"O") and not flags.has(b"k")
    assert read_flags([]) == flags_of(Request(b"mg", (b"k",)))
    assert flags_of(Request(b"mg", (b"k",), argument=b"T5 v")).exptime == 5


def test_the_last_bad_token_is_the_one_that_is_told():
    for words, told in (
        (b"Dx Tx", b"CLIENT_ERROR bad token in command line format"),
        (b"Tx Dx", b"CLIENT_ERROR invalid numeric delta value"),
        (b"Dx Fx", b"CLIENT_ERROR invalid numeric delta value"),
        (b"Fx", b"CLIENT_ERROR bad command line format"),
        (b"Dx !", b"CLIENT_ERROR invalid flag"),
    ):
        with pytest.raises(BadLine) as raised:
            read_flags(words.split())
        assert raised.value.args == (told,)


def test_a_set_knows_its_length_flags_and_refusal():
    request = Request(b"ms", (b"k",), argument=b"F5 q")
    assert read_set(b"ms k 3 F5 q".split()) == (request, 3, 5, b"")
    refused = read_set(b"ms k 3 F5 x".split())
    assert (refused.length, refused.refusal) == (3, b"CLIENT_ERROR invalid flag")


def test_keys_that_are_told():
    assert key_told(b"foo", False) == b"kfoo"
    assert key_told(b"foo", True) == b"kZm9v b"
    assert encoded_key(b"f") == b"Zg=="


LARGE = b"x" * (STREAMED_BLOCK + 1)


@pytest.mark.parametrize(
    "request_, reply, data",
    [
        (MG, Reply(b"VA", text=b"t-1 kk", value=b"a\r\nb"), b"VA 4 t-1 kk\r\na\r\nb\r\n"),
        (MG, Reply(b"VA"), b"VA 0\r\n\r\n"),
        (MG, Reply(b"VA", value=LARGE), b"VA %d\r\n%b\r\n" % (len(LARGE), LARGE)),
        (MG, Reply(b"HD"), b"HD\r\n"),
        (MG, Reply(b"HD", text=b"Oabc W"), b"HD Oabc W\r\n"),
        (MG, Reply(b"EN", text=b"kk"), b"EN kk\r\n"),
        (Request(b"me", (b"k",)), Reply(b"ME", text=b"k exp=-1"), b"ME k exp=-1\r\n"),
        (Request(b"me", (b"k",)), Reply(b"EN"), b"EN\r\n"),
        (Request(b"mn"), Reply(b"MN"), b"MN\r\n"),
        (MG, Reply(b"SERVER_ERROR", text=b"a\nb"), b"SERVER_ERROR a b\r\n"),
        (MG, Reply(b"ERROR"), b"ERROR\r\n"),
    ],
)
def test_replies_are_written(request_, reply, data):
    assert b"".join(encode_reply(request_, reply)) == data


@pytest.mark.parametrize(
    "verb, left_out",
    [(b"mg", [b"EN"]), (b"ms", [b"HD"]), (b"md", [b"HD"]), (b"ma", [b"HD", b"VA"])],
)
def test_quiet_mode_leaves_out_the_ordinary_and_nothing_else(verb, left_out):
    request = Request(verb, (b"k",), argument=b"k q")
    assert is_quiet(request) and not is_quiet(Request(verb, (b"k",), argument=b"Oq kq"))
    for status in (b"HD", b"VA", b"EN", b"NF", b"NS", b"EX"):
        written = b"".join(encode_meta(request, Reply(status, text=b"kk")))
        assert (written == b"") == (status in left_out), status
    assert b"".join(encode_reply(request, Reply(b"CLIENT_ERROR", text=b"no")))


def test_a_number_that_was_made_is_told_of_in_quiet_mode_too():
    request = Request(b"ma", (b"k",), argument=b"N5 q")
    assert b"".join(encode_meta(request, Reply(b"HD", number=1))) == b"HD\r\n"
