"""What a caller may pass, as pure functions; faults.md's list is in test_bad_input."""

from __future__ import annotations

from datetime import datetime, timedelta, timezone
from decimal import Decimal

import pytest

from tornado_memcache import InvalidKey, InvalidRequest
from tornado_memcache.arguments import (
    check_callable,
    check_default,
    check_flag,
    check_integer,
    check_seconds,
    key_bytes,
    listed,
    whole,
    wire_exptime,
)

NOW = 1_800_000_000
MONTH = 60 * 60 * 24 * 30


class Word(str):
    pass


@pytest.mark.parametrize(
    "key, prefix, wire",
    [
        ("k", b"", b"k"),
        (b"k", b"p:", b"p:k"),
        ("schlüssel", b"", "schlüssel".encode()),
        (bytearray(b"k"), b"", b"k"),
        (memoryview(b"k"), b"p", b"pk"),
        (Word("w"), b"", b"w"),
        (b"\xff\x80", b"", b"\xff\x80"),
        ("x" * 250, b"", b"x" * 250),
    ],
)
def test_keys_become_bytes(key, prefix, wire):
    assert key_bytes(key, prefix) == wire
    assert type(key_bytes(key, prefix)) is bytes


@pytest.mark.parametrize("key", ["", "x" * 251, "a b", "a\n", "a\r", "\0", "\t", "\x01", "\x7f"])
def test_what_is_no_key(key):
    with pytest.raises(InvalidKey, match="key"):
        key_bytes(key)
    with pytest.raises(ValueError):
        key_bytes(key.encode())


def test_the_prefix_counts_and_an_empty_key_stays_empty():
    with pytest.raises(InvalidKey, match="250"):
        key_bytes("x" * 250, b"p")
    with pytest.raises(InvalidKey, match="empty"):
        key_bytes("", b"p")


@pytest.mark.parametrize(
    "exptime, wire",
    [
        (0, 0),
        (60, 60),
        (-1, -1),
        (-77, -1),
        (MONTH, MONTH),
        (MONTH + 1, NOW + MONTH + 1),
        (timedelta(milliseconds=1), 1),
        (timedelta(seconds=90), 90),
        (timedelta(seconds=-5), -1),
        (timedelta(days=60), NOW + 60 * 86400),
        # The border of 30 days, from both sides; a length is rounded up.
        (timedelta(days=30), MONTH),
        (timedelta(days=30, microseconds=-1), MONTH),
        (timedelta(days=30, microseconds=1), NOW + MONTH + 1),
        (timedelta(seconds=1, microseconds=1), 2),
        (timedelta(microseconds=-1), -1),
        # The last moment that memcached can hold.
        (2**31 - 1 - NOW, 2**31 - 1),
        (datetime.fromtimestamp(2**31 - 1, timezone.utc), 2**31 - 1),
        (datetime.fromtimestamp(2**31 - 1), 2**31 - 1),
        (datetime.fromtimestamp(NOW, timezone(timedelta(hours=5, minutes=45))), NOW),
        (datetime.min, -1),
        (-(10**400), -1),
        (datetime.fromtimestamp(NOW + 5), NOW + 5),
        (datetime.fromtimestamp(NOW + 5, timezone.utc), NOW + 5),
        (datetime(1970, 1, 2, tzinfo=timezone.utc), -1),
    ],
)
def test_lengths_and_moments(exptime, wire):
    assert wire_exptime(exptime, lambda: NOW) == wire


@pytest.mark.parametrize(
    "exptime",
    [
        NOW + 60,
        1 << 31,
        1 << 64,
        2**31 - NOW,
        timedelta(0),
        timedelta(seconds=2**31 - NOW),
        timedelta.max,
        datetime(2100, 1, 1),
        datetime.fromtimestamp(2**31),
        datetime.fromtimestamp(2**31, timezone.utc),
        datetime.max,
    ],
)
def test_moments_that_memcached_cannot_hold(exptime):
    with pytest.raises(InvalidRequest, match="exptime"):
        wire_exptime(exptime, lambda: NOW)


@pytest.mark.parametrize("exptime", [1.5, float("nan"), float("inf"), "60", None, True])
def test_what_is_no_exptime(exptime):
    with pytest.raises(TypeError, match="exptime"):
        wire_exptime(exptime, lambda: NOW)


def test_integers_and_seconds():
    assert check_integer("n", 5, 0, 5) == 5
    for value in (True, 1.0, "1", None):
        with pytest.raises(TypeError, match="n must be an int"):
            check_integer("n", value, 0, 5)
    with pytest.raises(InvalidRequest, match="n must be from 0 to 5"):
        check_integer("n", 6, 0, 5)
    assert check_seconds("t", 2) == 2.0
    for value in (0, -1, float("inf"), float("nan")):
        with pytest.raises(InvalidRequest, match="t must"):
            check_seconds("t", value)
    for value in (True, "1", None):
        with pytest.raises(TypeError, match="t must"):
            check_seconds("t", value)


def test_numbers_without_their_fraction():
    for value, number in (
        (2.9, 2),
        (-2.9, -2),
        (True, 1),
        (Decimal("4.5"), 4),
    ):
        assert whole("n", value, -9, 9) == number and type(whole("n", value, -9, 9)) is int
    for value in ("1", b"1", None, [], 1j, object()):
        with pytest.raises(TypeError, match="n must be a number"):
            whole("n", value, 0, 9)
    for value in (float("nan"), float("inf"), Decimal("nan"), Decimal("inf")):
        with pytest.raises(InvalidRequest, match="n must be a finite number"):
            whole("n", value, 0, 9)
    with pytest.raises(InvalidRequest, match="n must be from 0 to 9"):
        whole("n", 10.0, 0, 9)


def test_a_list_of_keys():
    keys = ["a", b"b"]
    for given in (keys, tuple(keys), iter(keys), dict.fromkeys(keys)):
        assert listed("keys", given) == keys
    assert listed("keys", keys) is not keys
    for given in ("ab", b"ab", bytearray(b"ab"), memoryview(b"ab"), None, 5):
        with pytest.raises(TypeError, match="keys must be a list"):
            listed("keys", given)


def test_a_flag_is_true_or_false_and_nothing_that_is_taken_for_one():
    assert [check_flag("n", value) for value in (True, False)] == [True, False]
    for value in ("no", 0, 1, None, []):
        with pytest.raises(TypeError, match="n must be True or False, not"):
            check_flag("n", value)


def test_a_callback_is_no_default():
    for default in (None, 0, b"", "text", [], object()):
        check_default(default)
    for default in (print, list, test_a_callback_is_no_default):
        with pytest.raises(TypeError, match="default must not be callable.*callback="):
            check_default(default)


def test_what_is_to_be_called_is_a_function_or_none():
    check_callable("on_change", None)
    check_callable("on_change", print)
    with pytest.raises(TypeError, match="^on_change must be callable: pass the function itself$"):
        check_callable("on_change", 1)
