"""Which server a key goes to.

Knows keys, weights and hashes, and who else may take a key. It must not
know a connection, nor why a server is not there.
"""

import math
import struct
from bisect import bisect_left
from collections.abc import Callable, Sequence
from hashlib import blake2b, md5
from typing import Any, Protocol
from zlib import crc32

from .address import DEFAULT_PORT, Server
from .errors import InvalidRequest, shown

#: python-memcached tries so many places before it gives up.
REHASH_STEPS = 10
#: Points of each server on an unweighted ketama ring (libmemcached).
POINTS = 100

Alive = Callable[[int], bool]


class Ring(Protocol):
    """How the client places keys. Servers are indexes into its list.

    A key is bytes, or an `int`: a hash that the caller has made.
    """

    def place(self, key: bytes | int) -> int:
        """Returns the server of ``key`` when all are there."""

    def place_among(self, key: bytes | int, alive: Alive) -> int | None:
        """Returns the server of ``key`` among those that are ``alive``, None without one."""


def key_hash(key: bytes) -> int:
    """Returns python-memcached's hash of ``key`` (its ``cmemcache_hash``)."""
    return ((crc32(key) & 0xFFFFFFFF) >> 16) & 0x7FFF


class Modulo:
    """python-memcached's placement: the key's hash modulo the weighted list.

    A key whose server is dead is hashed again, and ten places are tried
    in all, as that client does.
    """

    def __init__(
        self, servers: Sequence[Server], key_hash: Callable[[bytes], int] = key_hash
    ) -> None:
        self._hash = key_hash
        self.buckets = [index for index, server in enumerate(servers) for _ in range(server.weight)]

    def place(self, key: bytes | int) -> int:
        number = self._hash(key) if isinstance(key, bytes) else key
        return self.buckets[number % len(self.buckets)]

    def place_among(self, key: bytes | int, alive: Alive) -> int | None:
        number = self._hash(key) if isinstance(key, bytes) else key
        for step in range(REHASH_STEPS):
            index = self.buckets[number % len(self.buckets)]
            if alive(index):
                return index
            number = self._hash(b"%d%d" % (number, step))
        return None


def one_at_a_time(data: bytes) -> int:
    """Returns Bob Jenkins' one-at-a-time hash, which is libmemcached's default."""
    value = 0
    for byte in data:
        # (a C char is signed there, so what is not ASCII is taken off)
        value = (value + (byte if byte < 0x80 else byte - 0x100)) & 0xFFFFFFFF
        value = (value + (value << 10)) & 0xFFFFFFFF
        value ^= value >> 6
    value = (value + (value << 3)) & 0xFFFFFFFF
    value ^= value >> 11
    return (value + (value << 15)) & 0xFFFFFFFF


def md5_hash(data: bytes) -> int:
    """Returns libmemcached's MD5 hash: the first four bytes, little-endian."""
    return int.from_bytes(md5(data, usedforsecurity=False).digest()[:4], "little")


class Ketama:
    """libmemcached's consistent hashing.

    ``Ketama(servers)`` is pylibmc's ``behaviors={"ketama": True}``, and
    with ``key_hash=md5_hash`` that with ``"hash": "md5"``; with
    ``weighted`` it is ``{"ketama_weighted": True}``, which is also what
    PHP's ``OPT_LIBKETAMA_COMPATIBLE`` and spymemcached do.
    """

    def __init__(
        self,
        servers: Sequence[Server],
        *,
        weighted: bool = False,
        key_hash: Callable[[bytes], int] = one_at_a_time,
    ) -> None:
        self._hash = md5_hash if weighted else key_hash
        # A weight makes libmemcached place weighted points, whatever the ring.
        weighted = weighted or any(server.weight > 1 for server in servers)
        points: list[tuple[int, int]] = []
        total = sum(server.weight for server in servers)
        for index, server in enumerate(servers):
            if weighted:
                share = server.weight / total * 40 * len(servers) + 1e-10
                hashes = _weighted_points(_point_name(server), math.floor(_float32(share)))
            else:
                name = _point_name(server)
                hashes = [key_hash(b"%b-%d" % (name, number)) for number in range(POINTS)]
            points += ((point, index) for point in hashes)
        points.sort(key=lambda point: point[0])
        self._points = [point for point, _ in points]
        self._indexes = [index for _, index in points]

    def place(self, key: bytes | int) -> int:
        return self._indexes[self._first(key)]

    def place_among(self, key: bytes | int, alive: Alive) -> int | None:
        first = self._first(key)
        for index in self._indexes[first:] + self._indexes[:first]:
            if alive(index):
                return index
        return None

    def _first(self, key: bytes | int) -> int:
        number = self._hash(key) if isinstance(key, bytes) else key & 0xFFFFFFFF
        return bisect_left(self._points, number) % len(self._points)


def _float32(number: float) -> float:
    """Returns ``number`` as a C float holds it: libmemcached computes with those."""
    rounded: float = struct.unpack("f", struct.pack("f", number))[0]
    return rounded


def _point_name(server: Server) -> bytes:
    if server.path is not None:
        return b"%b:0" % server.path.encode()
    if server.port == DEFAULT_PORT:
        return server.host.encode()
    return f"{server.host}:{server.port}".encode()


def _weighted_points(name: bytes, digests: int) -> list[int]:
    points: list[int] = []
    for number in range(digests):
        digest = md5(b"%b-%d" % (name, number), usedforsecurity=False).digest()
        points += struct.unpack("<4I", digest)
    return points


class Rendezvous:
    """Highest random weight: each key ranks all servers, and goes to the first that is there.

    A server that joins or leaves moves its own share of keys and no
    other; weights are exact. A look-up asks every server's score, so it
    is for tens of servers, not for thousands.
    """

    def __init__(self, servers: Sequence[Server]) -> None:
        self._servers = [
            (blake2b(server.name.encode(), digest_size=16).digest(), server.weight)
            for server in servers
        ]

    def place(self, key: bytes | int) -> int:
        index = self.place_among(key, lambda index: True)
        assert index is not None
        return index

    def place_among(self, key: bytes | int, alive: Alive) -> int | None:
        data = key if isinstance(key, bytes) else b"%d" % key
        best, winner = -1.0, None
        for index, (person, weight) in enumerate(self._servers):
            if alive(index):
                digest = blake2b(data, digest_size=8, person=person).digest()
                # 53 bits: a float holds the chance exactly, and it is never 0 or 1.
                chance = ((int.from_bytes(digest, "little") >> 11) + 0.5) / (1 << 53)
                score = -weight / math.log(chance)
                if score > best:
                    best, winner = score, index
        return winner


class Custom:
    """A user's own ring: an object with ``server_for(key, alive)``.

    ``alive`` is the tuple of the `.Server` objects that may be chosen;
    what comes back has to be one of them, or None.
    """

    def __init__(self, ring: Any, servers: Sequence[Server]) -> None:
        self._ring = ring
        self._servers = tuple(servers)

    def place(self, key: bytes | int) -> int:
        index = self._ask(key, self._servers)
        if index is None:
            raise InvalidRequest("ring.server_for returned None though every server is there")
        return index

    def place_among(self, key: bytes | int, alive: Alive) -> int | None:
        there = tuple(server for index, server in enumerate(self._servers) if alive(index))
        return self._ask(key, there) if there else None

    def _ask(self, key: bytes | int, alive: tuple[Server, ...]) -> int | None:
        server = self._ring.server_for(key, alive)
        if server is None:
            return None
        if server not in alive:
            raise InvalidRequest(f"ring.server_for returned {shown(server)}, which is not alive")
        return self._servers.index(server)


_RINGS: dict[str, Callable[[Sequence[Server]], Ring]] = {
    "modulo": Modulo,
    "ketama": Ketama,
    "ketama_weighted": lambda servers: Ketama(servers, weighted=True),
    "rendezvous": Rendezvous,
}


def make_ring(ring: object, servers: Sequence[Server]) -> Ring:
    """Returns the ring called ``ring`` over ``servers``, or what a user's own gives.

    A user's own is an object with ``server_for(key, alive)``, or a
    callable that takes the servers and returns a `Ring`, as `Ketama` is.

    Raises `.InvalidRequest` for a name that is not known.
    """
    if isinstance(ring, str) and ring in _RINGS:
        return _RINGS[ring](servers)
    if callable(getattr(ring, "server_for", None)):
        return Custom(ring, servers)
    if callable(ring):
        made: Ring = ring(servers)
        if not (hasattr(made, "place") and hasattr(made, "place_among")):
            raise InvalidRequest(f"ring {shown(ring)} made {shown(made)}, which is no Ring")
        return made
    raise InvalidRequest(
        f"ring {shown(ring)} is not one of {', '.join(_RINGS)}, "
        "nor an object with server_for(key, alive)"
    )
