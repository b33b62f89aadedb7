r"""Values that carry their own key and a nonce, so that a reader can tell whose they are.

Knows bytes. A value is its own key, its nonce and its size, over and over,
so that no part of another value goes unnoticed in it; and it is full of
``\r\nEND\r\n``, so that whoever looks for the end of a reply finds it too
early. It must not know a client.
"""

from __future__ import annotations

import itertools
import re

_numbers = itertools.count(1)
_WORD = re.compile(rb"([^ ]+) (\d+) (\d+)\r\nEND\r\n")


def fresh(key: str, size: int = 0) -> bytes:
    """Returns a value for ``key`` that was never returned before, of ``size`` bytes if given."""
    return _value(key.encode(), next(_numbers), size)


def nonce_of(key: str, value: object) -> int:
    """Returns the nonce in ``value``, which is all of one value of ``key`` and nothing else."""
    assert type(value) is bytes, f"{value!r} for {key}"
    word = _WORD.match(value)
    assert word is not None, f"no value of anybody: {value[:80]!r} for {key}"
    assert word[1] == key.encode(), f"{word[1]!r} has been given to {key}"
    assert value == _value(word[1], int(word[2]), int(word[3])), f"a part of a value, for {key}"
    return int(word[2])


def _value(key: bytes, nonce: int, size: int) -> bytes:
    word = b"%b %d %d\r\nEND\r\n" % (key, nonce, size)
    if not size:
        return word
    assert len(word) <= size, f"{size} bytes do not hold {word!r}"
    return (word * (size // len(word) + 1))[:size]
