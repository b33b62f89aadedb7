"""What callers get: replies turned into the outcomes of commands.

Knows the statuses of protocol.txt and what they mean to a caller. It must
not know how a reply came.
"""

from typing import Any, TypeVar

from .errors import MemcacheError
from .protocol import Reply

_K = TypeVar("_K")
_V = TypeVar("_V")


class MultiResult(dict[_K, _V]):
    """What a call over several servers found.

    ``errors`` maps a server that failed, or sent a value that cannot be
    read, to its first error. Such a value is missing here as a miss is.
    """

    def __init__(self) -> None:
        super().__init__()
        self.errors: dict[str, MemcacheError] = {}


class FailedKeys(list[_K]):
    """The keys that could not be stored or reached; ``errors`` as in `MultiResult`."""

    def __init__(self) -> None:
        super().__init__()
        self.errors: dict[str, MemcacheError] = {}


class Replies(list[Any]):
    """What many requests came to; ``errors`` as in `MultiResult`."""

    def __init__(self, replies: list[Any]) -> None:
        super().__init__(replies)
        self.errors: dict[str, MemcacheError] = {}


class CasUnique(int):
    """A cas unique that remembers its server and what has happened to it since.

    memcached counts from 1 again after a restart, so a token from before
    could match an item that it never belonged to. ``generation`` is that
    of ``pool`` when the token was asked for.
    """

    pool: Any
    generation: int

    def fresh(self, pool: Any) -> bool:
        """True if ``pool`` gave this token, and lost or missed nothing of its server since."""
        return self.pool is pool and self.generation == pool.generation


def outdated(unique: int, pool: Any) -> bool:
    """True for a `CasUnique` that is not fresh; a plain int is taken as it is."""
    return isinstance(unique, CasUnique) and not unique.fresh(pool)


_OUTCOMES: dict[bytes, bool | None] = {
    b"STORED": True,
    b"NOT_STORED": False,
    b"EXISTS": False,
    b"NOT_FOUND": None,
    b"DELETED": True,
    b"TOUCHED": True,
    b"OK": True,
    b"": True,  # a noreply request was written
}


def as_it_is(reply: Reply) -> Reply:
    """The outcome of a request that is sent as it is, as a proxy does."""
    return reply


def stored(reply: Reply) -> bool | None:
    """Returns the outcome of a storage command; None only for a cas of what is gone."""
    return _OUTCOMES[reply.status]


def reached(reply: Reply) -> bool:
    """Returns True unless the item was not there."""
    return bool(_OUTCOMES[reply.status])


def number(reply: Reply) -> int | None:
    """Returns the new number of incr and decr, None on a miss."""
    return reply.number if reply.status == b"NUMBER" else None


def version(reply: Reply) -> str:
    """Returns the server's version."""
    return reply.text.decode("utf-8", "replace")
