"""What callers of meta commands get: replies turned into items and answers.

Knows the statuses and the flags of a reply (protocol.txt, "Meta Commands")
and what they mean to a caller. It must not know how a reply came.
"""

from collections.abc import Mapping
from typing import Any, NamedTuple

from .meta import read_returned
from .outcomes import CasUnique
from .protocol import Reply


class MetaItem(NamedTuple):
    """What `Client.meta_get` found: the value, and what else was asked for.

    What was not asked for is None; a mark that the server did not set is
    False.
    """

    #: The value; None without ``value=True``, and for a stub (see `won`).
    value: Any = None
    #: The serializer's flags, as stored (``f``).
    flags: int | None = None
    #: For `Client.cas`, `Client.meta_set` and others; it remembers its server (``c``).
    cas_unique: CasUnique | None = None
    #: Seconds until it expires, -1 for never (``t``).
    remaining: int | None = None
    #: Seconds since it was last asked for, before this time (``l``).
    last_access: int | None = None
    #: Whether it was asked for before (``h``).
    hit_before: bool | None = None
    #: The bytes of the value as stored (``s``).
    size: int | None = None
    #: True for the one caller who is to fetch it anew (``W``): after ``vivify`` on a miss,
    #: with ``recache`` before the end, or of what is stale. The item is a stub without a value
    #: if nobody stored one yet: `value` is None.
    won: bool = False
    #: True if it was invalidated: a value that is served until there is a new one (``X``).
    stale: bool = False
    #: True if somebody else has won, and is fetching it anew (``Z``).
    recache: bool = False
    #: As it was given (``O``).
    opaque: bytes | None = None

    def __repr__(self) -> str:
        size = f"{self.size} bytes" if self.size is not None else "unknown size"
        asked = ("cas_unique", "remaining", "last_access", "hit_before")
        told = [f"{name}={one}" for name in asked if (one := getattr(self, name)) is not None]
        marks = [name for name in ("won", "stale", "recache") if getattr(self, name)]
        return f"<MetaItem of {', '.join([size, *told, *marks])}>"


def cas_of(returned: Mapping[bytes, bytes], pool: Any, generation: int) -> CasUnique | None:
    """Returns the cas unique of a reply as a token of ``pool``, None if it has none."""
    if b"c" not in returned:
        return None
    token = CasUnique(int(returned[b"c"]))
    token.pool, token.generation = pool, generation
    return token


def _number(returned: Mapping[bytes, bytes], letter: bytes) -> int | None:
    return int(returned[letter]) if letter in returned else None


def item_of(reply: Reply, value: Any, pool: Any, generation: int) -> MetaItem:
    """Returns the item of a hit; ``value(reply, flags)`` reads its block, if it has one."""
    returned = read_returned(reply.text)
    flags, size = _number(returned, b"f"), _number(returned, b"s")
    won, stale, recache = b"W" in returned, b"X" in returned, b"Z" in returned
    read = None
    if reply.status == b"VA":
        size = len(reply.value)
        # A stub that a vivify made. (The flags of an empty str, or another value, are not 0.)
        stub = not (size or flags) and (won or stale or recache)
        read = None if stub else value(reply, flags or 0)
    return MetaItem(
        read,
        flags,
        cas_of(returned, pool, generation),
        _number(returned, b"t"),
        _number(returned, b"l"),
        returned[b"h"] == b"1" if b"h" in returned else None,
        size,
        won,
        stale,
        recache,
        returned.get(b"O"),
    )


#: True: done. False: the item is another one, or the mode did not allow it. None: not there.
_OUTCOMES: dict[bytes, bool | None] = {b"HD": True, b"NS": False, b"EX": False, b"NF": None}


def changed(reply: Reply) -> bool | None:
    """Returns the outcome of ms and md."""
    return _OUTCOMES[reply.status]


def facts_of(reply: Reply) -> dict[str, str] | None:
    """Returns what ``me`` tells, None on a miss."""
    if reply.status != b"ME":
        return None
    words = reply.text.decode("utf-8", "replace").split(" ")[1:]
    return dict(word.partition("=")[::2] for word in words if word)
