"""Which server a key goes to.

Knows keys, weights and hashes. It must not know a connection, nor why a
server is not there.
"""

from collections.abc import Sequence
from typing import Protocol
from zlib import crc32

from .address import Server
from .errors import InvalidRequest, shown


class Ring(Protocol):
    """Anything that places keys: ``place(key)`` gives the index of a server."""

    def place(self, key: bytes | int) -> int:
        """Returns the index of the server for ``key`` in the list of servers.

        An `int` is a hash that the caller has made.
        """


def key_hash(key: bytes) -> int:
    """Returns python-memcached's hash of ``key`` (its ``cmemcache_hash``)."""
    return ((crc32(key) & 0xFFFFFFFF) >> 16) & 0x7FFF


class Modulo:
    """python-memcached's placement: the key's hash modulo the weighted list."""

    def __init__(self, servers: Sequence[Server]) -> None:
        self.buckets = [index for index, server in enumerate(servers) for _ in range(server.weight)]

    def place(self, key: bytes | int) -> int:
        number = key_hash(key) if isinstance(key, bytes) else key
        return self.buckets[number % len(self.buckets)]


_RINGS = {"modulo": Modulo}


def make_ring(ring: object, servers: Sequence[Server]) -> Ring:
    """Returns the ring called ``ring`` over ``servers``."""
    kind = _RINGS.get(ring) if isinstance(ring, str) else None
    if kind is None:
        raise InvalidRequest(f"ring {shown(ring)} is not one of: {', '.join(_RINGS)}")
    return kind(servers)
