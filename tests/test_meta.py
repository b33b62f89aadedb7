"""tornado_memcache.meta: the table of flags, what a request may bear, what a reply may return."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tornado_memcache.arguments import MAX_BINARY_KEY_LENGTH, binary_key_bytes
from tornado_memcache.errors import InvalidKey, InvalidRequest, ProtocolError
from tornado_memcache.meta import (
    FLAGS,
    MAX_OPAQUE,
    check_flags,
    check_key,
    check_opaque,
    flags_of,
    is_key_of,
    read_returned,
    version_of,
    wire_key,
)
from tornado_memcache.protocol import Request
from tornado_memcache.text import VERBS, check_request

BIG = 2**64 - 1


def test_the_table_has_every_meta_verb_and_the_letters_of_the_protocol():
    assert set(FLAGS) == {verb for verb, one in VERBS.items() if one.shape == "meta"}
    letters = {verb: b"".join(sorted(flags)) for verb, flags in FLAGS.items()}
    assert letters == {
        b"mg": b"ELNOPRTbcfhklqstuv",
        b"ms": b"CEFILMNOPTbckqs",
        b"md": b"CEILOPTbkqx",
        b"ma": b"CDEJLMNOPTbckqtv",
        b"mn": b"",
        b"me": b"b",
    }


@pytest.mark.parametrize(
    ("verb", "argument"),
    [
        (b"mg", b""), (b"mg", b"v f c t s k h l u b"), (b"mg", b"N30 R10 T0 E5"),
        (b"mg", b"T-1"), (b"mg", b"O" + b"x" * MAX_OPAQUE), (b"mg", b"O"), (b"mg", b"Ppath L"),
        (b"ms", b"T0 F4294967295 MS"), (b"ms", b"C%d E%d I" % (BIG, BIG)), (b"ms", b"MA N30"),
        (b"md", b"I T30 C0"), (b"md", b"x"), (b"ma", b"N0 J%d D%d" % (BIG, BIG)),
        (b"ma", b"M+"), (b"ma", b"MD v t c"), (b"mn", b""), (b"me", b"b"),
    ],
)  # fmt: skip
def test_flags_that_may_be_sent(verb, argument):
    flags = check_flags(verb, argument)
    assert flags == flags_of(argument)
    assert b" ".join(letter + token for letter, token in flags.items()) == argument


@pytest.mark.parametrize(
    ("verb", "argument", "told"),
    [
        (b"mg", b"z", "mg has no flag 'z'"), (b"mg", b"C5", "no flag 'C'"),
        (b"mg", b"v v", "v stands there twice"), (b"mg", b"T1 T2", "T stands there twice"),
        (b"mg", b"v  f", "no flag ''"), (b"mg", b" v", "no flag ''"), (b"mg", b"v ", "no flag"),
        (b"mg", b"v\r\nflush_all", "flag v"), (b"mg", b"v\tf", "flag v"),
        (b"mg", b"vx", r"flag v \(return value\) cannot be 'x'"), (b"mg", b"T", "flag T"),
        (b"mg", b"T1.5", "flag T"), (b"mg", b"T+1", "flag T"), (b"mg", b"T2147483648", "flag T"),
        (b"mg", b"T-", "flag T"), (b"mg", b"R" + b"9" * 5000, "flag R"), (b"mg", b"E5", "needs N"),
        (b"mg", b"O" + b"x" * (MAX_OPAQUE + 1), "flag O"), (b"mg", b"Oa\0", "flag O"),
        (b"mg", b"P" + b"x" * 251, "flag P"), (b"mg", "T\uff15".encode(), "flag T"),
        (b"ms", b"MX", "flag M"), (b"ms", b"M", "flag M"), (b"ms", b"MEA", "flag M"),
        (b"ms", b"F4294967296", "flag F"), (b"ms", b"C-1", "flag C"), (b"ms", b"S5", "no flag 'S'"),
        (b"ms", b"C%d" % (BIG + 1), "flag C"), (b"ms", b"Cx", "flag C"),
        (b"md", b"T5", "T needs I"), (b"md", b"v", "no flag 'v'"),
        (b"ma", b"J5", "J needs N"), (b"ma", b"D-1", "flag D"), (b"ma", b"MA", "flag M"),
        (b"mn", b"k", "mn has no flag 'k'"), (b"me", b"v", "me has no flag 'v'"),
    ],
)  # fmt: skip
def test_flags_that_are_not_sent(verb, argument, told):
    with pytest.raises(InvalidRequest, match=told):
        check_flags(verb, argument)


@pytest.mark.parametrize("argument", [None, "v", bytearray(b"v"), 5, [b"v"]])
def test_flags_are_bytes(argument):
    with pytest.raises(TypeError, match="argument must be bytes"):
        check_flags(b"mg", argument)


@settings(max_examples=300, deadline=None, database=None)
@given(st.sampled_from(sorted(FLAGS)), st.binary(max_size=30))
def test_whatever_passes_is_words_with_one_space_between_them(verb, argument):
    try:
        check_flags(verb, argument)
    except InvalidRequest:
        return
    assert not argument or all(0x20 < byte != 0x7F for byte in argument.replace(b" ", b""))
    assert b"  " not in argument and argument.strip(b" ") == argument


@pytest.mark.parametrize("opaque", [b"a", "text", "\u00e9", b"\xff", b"x" * MAX_OPAQUE])
def test_opaques(opaque):
    assert check_opaque("opaque", opaque) == (
        opaque.encode() if isinstance(opaque, str) else opaque
    )


@pytest.mark.parametrize(
    "opaque", [b"", "", b"a b", "a\n", b"\0", b"\x7f", b"x" * 33, "\u00e9" * 17]
)
def test_what_is_no_opaque(opaque):
    with pytest.raises(InvalidRequest, match="opaque must have 1 to 32 bytes"):
        check_opaque("opaque", opaque)


@pytest.mark.parametrize("opaque", [5, None, 1.0, True, [b"a"], bytearray(b"a")])
def test_an_opaque_is_bytes_or_a_str(opaque):
    with pytest.raises(TypeError, match="opaque must be bytes or str"):
        check_opaque("opaque", opaque)


# -- keys


def test_a_binary_key_crosses_in_base64_and_a_plain_one_as_it_is():
    assert wire_key(Request(b"mg", (b"a b",), argument=b"v b")) == b"YSBi"
    assert wire_key(Request(b"mg", (b"ab",), argument=b"v Ob")) == b"ab"
    assert len(wire_key(Request(b"mg", (b"\0" * MAX_BINARY_KEY_LENGTH,), argument=b"b"))) == 248


@pytest.mark.parametrize("key", [b"\0", b" ", b"\r\n", bytes(range(186)), b"x" * 186])
def test_binary_keys(key):
    assert binary_key_bytes(key) == binary_key_bytes(bytearray(key)) == key
    check_key(key, {b"b": b""})


@pytest.mark.parametrize("key", [b"", b"x" * 187])
def test_what_is_no_binary_key(key):
    with pytest.raises(InvalidKey):
        check_key(key, {b"b": b""})
    with pytest.raises(InvalidKey):
        binary_key_bytes(key)
    with pytest.raises(InvalidKey, match="the prefix included|empty"):
        binary_key_bytes(key and key[1:], b"p")


@pytest.mark.parametrize("key", [None, 5, True, ("a", "b")])
def test_a_binary_key_is_bytes_or_a_str(key):
    with pytest.raises(TypeError, match="key must be str or bytes"):
        binary_key_bytes(key)


@pytest.mark.parametrize(
    ("request_", "told"),
    [
        (Request(b"mg", (b"a",), argument=b"v q"), "quiet"),
        (Request(b"mg", (b"a", b"b"), argument=b"v"), "one key"),
        (Request(b"mg", (b"a b",)), "white space"),
        (Request(b"mg", (b"",), argument=b"b"), "0 bytes"),
        (Request(b"mg", (), argument=b"v"), "keys must be given"),
        (Request(b"mn"), "keys must be given"),
        (Request(b"mg", (b"a",), noreply=True), "noreply"),
        (Request(b"ms", (b"a",), b"v", argument=b"T"), "flag T"),
        (Request(b"mx", (b"a",)), "not known"),
    ],
)
def test_requests_that_are_not_sent(request_, told):
    with pytest.raises(InvalidRequest, match=told):
        check_request(request_)


# -- what comes back


@pytest.mark.parametrize(
    ("text", "returned"),
    [
        (b"", {}),
        (b"f0 t-1 W", {b"f": b"0", b"t": b"-1", b"W": b""}),
        (b"c18446744073709551615 h1 l0 s4294967295 kabc O1 X Z",
         {b"c": b"%d" % BIG, b"h": b"1", b"l": b"0", b"s": b"4294967295", b"k": b"abc",
          b"O": b"1", b"X": b"", b"Z": b""}),
        (b"y9 ?", {b"y": b"9", b"?": b""}),
    ],
)  # fmt: skip
def test_flags_that_are_returned(text, returned):
    assert read_returned(text) == returned


@pytest.mark.parametrize(
    "text",
    [
        b" ", b"f0 ", b" f0", b"f0  t1", b"f0 f0", b"f", b"f-1", b"f4294967296", b"c", b"c-1",
        b"c%d" % (BIG + 1), b"h2", b"h", b"lx", b"s1.5", b"t", b"t-2", b"t4294967296", b"W1",
        b"X0", b"Zx", b"W Z", b"X W Z",
    ],
)  # fmt: skip
def test_flags_that_no_server_returns(text):
    with pytest.raises(ProtocolError):
        read_returned(text)


def test_which_key_a_reply_is_for():
    assert is_key_of({b"k": b"abc"}, b"abc")
    assert is_key_of({b"k": b"YWJj", b"b": b""}, b"abc")
    assert not is_key_of({b"k": b"YWJj"}, b"abc")
    assert not is_key_of({b"k": b"abc", b"b": b""}, b"abc")


@pytest.mark.parametrize(
    ("text", "numbers"),
    [
        ("1.6.18", (1, 6, 18)), ("1.6.18_1", (1, 6, 18)), ("1.6.0-beta2", (1, 6, 0)),
        ("1.4.5_4_gaa7839e", (1, 4, 5)), ("1.5.22 (a build)", (1, 5, 22)), ("1.6", (1, 6)),
        ("2.0.0-rc1", (2, 0, 0)), ("1.6.x", (1, 6)), ("0.5.0", (0, 5, 0)), ("", None),
        ("mcrouter 1.6.18", None), ("1", None), ("v1.6.18", None), ("1." + "9" * 50, None),
        ("\u0661.6.18", None),
    ],
)  # fmt: skip
def test_versions(text, numbers):
    assert version_of(text) == numbers
