"""tornado_memcache.words: numbers as C reads them, and what a bad word is answered with."""

import pytest

from tornado_memcache.words import (
    BAD_EXPTIME,
    BAD_LINE,
    LONGEST_BLOCK,
    BadLine,
    exptime_of,
    key_of,
    length_of,
    read_signed,
    read_unsigned,
)


@pytest.mark.parametrize(
    "text, unsigned, signed",
    [
        (b"0", 0, 0),
        (b"+5", 5, 5),
        (b"-5", None, -5),
        (b"-0", 0, 0),
        (b"5\t6", 5, 5),
        (b"", None, None),
        (b"x", None, None),
        (b"5x", None, None),
        (b"0x5", None, None),
        (b"1.5", None, None),
        (b"4294967297", 4294967297, 1),
        (b"2147483648", 2147483648, -(2**31)),
        (b"9223372036854775808", 2**63, None),
        (b"18446744073709551615", 2**64 - 1, None),
        (b"18446744073709551616", None, None),
        (b"-18446744073709551615", 1, None),
        ("٣".encode(), None, None),
        (b"1" * 100_000, None, None),
    ],
)
def test_numbers_as_c_reads_them(text, unsigned, signed):
    assert read_unsigned(text) == unsigned
    assert read_signed(text) == signed


@pytest.mark.parametrize(
    "read, word, value",
    [
        (key_of, b"k" * 250, b"k" * 250),
        (exptime_of, b"-1", -1),
        (length_of, b"0", 0),
        (length_of, b"2147483645", LONGEST_BLOCK),
    ],
)
def test_good_words(read, word, value):
    assert read(word) == value


@pytest.mark.parametrize(
    "read, word, answer",
    [
        (key_of, b"k" * 251, BAD_LINE),
        (exptime_of, b"x", BAD_EXPTIME),
        (length_of, b"-1", BAD_LINE),
        (length_of, b"2147483646", BAD_LINE),
        (length_of, b"x", BAD_LINE),
    ],
)
def test_bad_words(read, word, answer):
    with pytest.raises(BadLine) as raised:
        read(word)
    assert raised.value.args == (answer,)
