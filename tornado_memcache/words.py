"""The words of a request line, as memcached 1.6.18 reads them.

Knows what memcached takes for a number, and what it answers to a word that
it does not take. It must not know which word of which line is which.
Everything here was measured.
"""

import re

from .arguments import MAX_KEY_LENGTH

UINT32 = (1 << 32) - 1
_UINT64 = 1 << 64
#: A data block may not be announced any longer: memcached adds 2 to an int.
LONGEST_BLOCK = (1 << 31) - 1 - 2

BAD_LINE = b"CLIENT_ERROR bad command line format"
BAD_EXPTIME = b"CLIENT_ERROR invalid exptime argument"

# What C's strtoull takes at the start of a string, followed by the end of
# the string or by white space.
_INTEGER = re.compile(rb"[ \t-\r]*([+-]?)([0-9]+)(?=[\0 \t-\r]|\Z)")


class BadLine(Exception):
    """A line that is no request; its argument is what memcached answers."""


def read_unsigned(text: bytes) -> int | None:
    """Returns the number at the start of ``text`` as memcached reads it, None if there is none.

    From 0 to 2^64 - 1. memcached asks C's strtoull, so white space and a
    plus sign may lead, white space and anything may follow, and a minus
    sign is only refused where the outcome would look negative.
    """
    if not (match := _INTEGER.match(text)):
        return None
    number = int(match[2]) if len(match[2]) <= 2048 else _UINT64
    if number >= _UINT64:
        return None
    if match[1] == b"-":
        number = -number % _UINT64
        if number >> 63:
            return None
    return number


def read_signed(text: bytes) -> int | None:
    """Returns the signed number at the start of ``text``, None if there is none.

    As memcached: it must fit into 64 bits, and 32 bits of it are kept.
    """
    if not (match := _INTEGER.match(text)) or len(match[2]) > 2048:
        return None
    number = int(match[1] + match[2])
    if not -(1 << 63) <= number < 1 << 63:
        return None
    return (number + (1 << 31)) % (1 << 32) - (1 << 31)


def key_of(word: bytes) -> bytes:
    """Returns ``word`` if it is no longer than a key may be. Raises `BadLine`."""
    if len(word) > MAX_KEY_LENGTH:
        raise BadLine(BAD_LINE)
    return word


def exptime_of(word: bytes) -> int:
    """Returns the exptime that ``word`` is. Raises `BadLine`."""
    if (exptime := read_signed(word)) is None:
        raise BadLine(BAD_EXPTIME)
    return exptime


def length_of(word: bytes) -> int:
    """Returns the length of a data block that ``word`` announces. Raises `BadLine`."""
    length = read_signed(word)
    if length is None or not 0 <= length <= LONGEST_BLOCK:
        raise BadLine(BAD_LINE)
    return length
