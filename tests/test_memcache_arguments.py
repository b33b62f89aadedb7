"""Connection strings and keys as python-memcached takes them."""

from __future__ import annotations

from typing import Any

import pytest

from tornado_memcache import Server
from tornado_memcache.memcache_arguments import Keys, parse_host


class Checked(Keys):
    """The part under test, with its settings."""

    def __init__(self, check: bool = True, limit: int = 250, encoder: Any = None) -> None:
        self.do_check_key, self.server_max_key_length, self.key_encoder = check, limit, encoder


@pytest.mark.parametrize(
    "spec, server",
    [
        ("h", Server("h", 11211)),
        ("h:5", Server("h", 5)),
        ("inet:h:5", Server("h", 5)),
        ("inet:h", Server("h", 11211)),
        ("inet6:[::1]:5", Server("::1", 5)),
        ("inet6:[::1]", Server("::1", 11211)),
        ("unix:/a/b", Server("", 0, "/a/b")),
        (("h:5", 3), Server("h", 5, None, 3)),
        (("unix:/a", 2), Server("", 0, "/a", 2)),
    ],
)
def test_a_connection_string(spec, server):
    assert parse_host(spec) == server


@pytest.mark.parametrize(
    "spec", ["", ":1", "h:", "h:x", "[::1]:1", "a:b:c", None, 5, b"h", "unix:"]
)
def test_a_connection_string_that_does_not_parse(spec):
    with pytest.raises(ValueError) as caught:
        parse_host(spec)
    assert str(caught.value) == f'Unable to parse connection string: "{spec}"'


def test_a_password_in_a_connection_string_is_not_told():
    for spec in ("user:secret@h:1", "memcached://user:secret@h:1", ("user:secret@h:1", 1)):
        with pytest.raises(ValueError) as caught:
            parse_host(spec)
        assert str(caught.value) == 'Unable to parse connection string: "...@h:1"'


@pytest.mark.parametrize(
    "key, multi, wire",
    [
        ("k", False, b"k"),
        ("ü", False, b"\xc3\xbc"),
        (b"\xff", False, b"\xff"),
        ((7, "k"), False, (7, b"k")),
        (7, True, b"7"),
        (1.5, True, b"1.5"),
        ((7, 8), True, (7, b"8")),
    ],
)
def test_a_key_as_it_goes_on(key, multi, wire):
    assert Checked()._key(key, multi=multi) == wire
    prefixed = Checked()._key(key, b"p:", multi)
    assert prefixed == ((7, b"p:" + wire[1]) if isinstance(wire, tuple) else b"p:" + wire)


@pytest.mark.parametrize(
    "key, extra, error",
    [
        (None, 0, "NoneError"),
        (5, 0, "TypeError"),
        ("text", 0, "TypeError"),
        (b"x" * 251, 0, "LengthError"),
        (b" " * 251, 0, "LengthError"),
        (b"x" * 249, 2, "LengthError"),
        (b"", 0, "CharacterError"),
        (b"", 3, "CharacterError"),
        (b"a b", 0, "CharacterError"),
        (b"a\n", 0, "CharacterError"),
        (b"\x7f", 0, "CharacterError"),
        ((1, b"a b"), 0, "CharacterError"),
        ((1, None), 0, "NoneError"),
    ],
)
def test_the_checks_in_their_order(key, extra, error):
    with pytest.raises(Keys.MemcachedKeyError) as caught:
        Checked().check_key(key, extra)
    assert type(caught.value).__name__ == f"MemcachedKey{error}"
    assert len(str(caught.value)) < 150


def test_what_passes_and_what_can_be_switched_off():
    assert Checked().check_key(b"\x80\xff!~") is None
    assert Checked(limit=0).check_key(b"x" * 1000) is None
    assert Checked(check=False)._key("a b") == b"a b"
    assert Checked(check=False)._prefix("a b") == b"a b"
    with pytest.raises(Keys.MemcachedKeyCharacterError):
        Checked()._prefix("a b")
    assert Checked()._prefix("") == b""


def test_the_encoder_comes_before_everything_else():
    seen: list[Any] = []

    def encoder(key: Any) -> str:
        seen.append(key)
        return f"<{key}>"

    checked = Checked(encoder=encoder)
    assert checked._key("a b".replace(" ", "_"), b"p") == b"p<a_b>"
    assert checked._key((3, 4), multi=True) == (3, b"<4>")
    assert seen == ["a_b", 4]


def test_a_lone_surrogate_is_an_encoding_error():
    with pytest.raises(Keys.MemcachedStringEncodingError):
        Checked()._key("\ud800")
    assert not issubclass(Keys.MemcachedStringEncodingError, Keys.MemcachedKeyError)
