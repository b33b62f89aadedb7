"""Who may compute a key: one in the fleet at a time, by a lease that memcached keeps.

Knows the two ways in which it is had: by the meta commands, where a miss
leaves a stub and one reader wins it (protocol.txt, "Meta Get"), and by
``add`` of a lock beside the key, where the server has no meta commands. It
must not know a factory, who waits, or what a value is.
"""

import hashlib
import math
import os
import time
from abc import ABC, abstractmethod
from collections.abc import Awaitable, Callable
from typing import NamedTuple, Protocol

from .arguments import MAX_KEY_LENGTH, wire_exptime
from .outcomes import CasUnique, outdated
from .protocol import Item, Reply, Request

#: What a reader finds. There is a value;
HIT = "hit"
#: he is the one who computes;
WON = "won"
#: another one computes, and there is no value until then;
HELD = "held"
#: there is no value, and nobody has asked for the lease yet;
MISSED = "missed"
#: or the server gives no lease: it is away, or has no room.
ALONE = "alone"


class Lease(NamedTuple):
    """The right to compute, as its holder and those who wait for him see it.

    ``unique`` tells it from the one before and the one after; ``empty`` is
    True where it stands in the key's own place, with no value.
    """

    unique: CasUnique
    empty: bool = True


class Found(NamedTuple):
    """What one reading found: an item with `HIT`, a lease with `WON` and `HELD`.

    A `HIT` with a lease is one that somebody recomputes.
    """

    state: str
    item: Item | None = None
    lease: Lease | None = None


class Terms(NamedTuple):
    """For how long, in whole seconds: a value is fresh, then stale, and recomputed before."""

    exptime: int
    stale: int
    early: int
    #: Seconds that the holder of a lease has, and that nobody waits longer for.
    lock_timeout: float

    @property
    def lease_exptime(self) -> int:
        """What a lease is given on the server, which counts whole seconds by a clock of its own."""
        return math.ceil(self.lock_timeout) + 1


class Server(Protocol):
    """What a pool tells of its server."""

    name: str
    generation: int


#: Sends a request to the server of the key; returns what awaits its reply.
Ask = Callable[[Request], Awaitable[Reply]]


class Leases(ABC):
    """The lease of one key on its server, as one caller or those of one process ask for it."""

    def __init__(self, ask: Ask, pool: Server, wire: bytes, terms: Terms) -> None:
        self._ask, self._pool, self._wire, self._terms = ask, pool, wire, terms
        self._generation = pool.generation

    def _unique(self, number: int) -> CasUnique:
        unique = CasUnique(number)
        unique.pool, unique.generation = self._pool, self._generation
        return unique

    @abstractmethod
    def reading(self) -> Request:
        """Returns the request of a first reading; `found` tells what its reply says."""

    @abstractmethod
    def found(self, reply: Reply) -> Found: ...

    async def read(self) -> Found:
        """Reads, and tries to win the lease where there is no value."""
        self._generation = self._pool.generation
        return self.found(await self._ask(self.reading()))

    @abstractmethod
    async def store(self, lease: Lease, data: bytes, flags: int) -> bool:
        """Stores what was computed under ``lease``; False if that was lost meanwhile."""

    @abstractmethod
    def release(self, lease: Lease) -> None:
        """Ends ``lease`` without a value: the next reading wins. So is it taken from a holder.

        It waits for nothing: what is asked of the key afterwards stands behind it.
        """


class MetaLeases(Leases):
    """By the meta commands: a stub in the key's own place, or a mark on a value that is there.

    Whoever reads a key that is missing, stale, or short of its end is
    told W and has won; others are told Z until the winner stores. The cas
    unique is the lease: each change of the item makes another.
    """

    def reading(self) -> Request:
        # mg <key> k v f c t N<seconds> R<seconds>
        before = self._terms.stale + self._terms.early
        recache = b" R%d" % before if before else b""
        words = b"k v f c t N%d%b" % (self._terms.lease_exptime, recache)
        return Request(b"mg", (self._wire,), argument=words)

    def found(self, reply: Reply) -> Found:
        if reply.status != b"VA":  # (no stub was made: nobody was asked, with on_dead="miss")
            return Found(ALONE)
        told = {word[:1]: word[1:] for word in reply.text.split()}
        item = Item(reply.value, int(told[b"f"]))
        empty = not (item.value or item.flags)
        unique = self._unique(int(told[b"c"]))
        if b"W" in told:
            # A stub that has just been made tells no time, and is never stale.
            return Found(WON, None, Lease(unique, told[b"t"] == b"-1" and b"X" not in told))
        if b"Z" not in told:
            return Found(HIT, item)
        return Found(HELD if empty else HIT, item, Lease(unique, empty))

    async def store(self, lease: Lease, data: bytes, flags: int) -> bool:
        # ms <key> <bytes> T<seconds> F<flags> C<cas unique>
        if outdated(lease.unique, self._pool):
            return False
        exptime = wire_exptime(self._terms.exptime + self._terms.stale, time.time)
        words = b"T%d F%d C%d" % (exptime, flags, lease.unique)
        reply = await self._ask(Request(b"ms", (self._wire,), data, argument=words))
        return reply.status == b"HD"

    def release(self, lease: Lease) -> None:
        # A stub goes. What has a value keeps it, stale, and whoever reads it next wins.
        if not outdated(lease.unique, self._pool):
            words = b"%bC%d" % (b"" if lease.empty else b"I ", lease.unique)
            self._ask(Request(b"md", (self._wire,), argument=words))


class AddLeases(Leases):
    """By ``add`` of a lock beside the key, on the same server, with the classic commands.

    A value that is there is fresh: nothing is stale, and nothing is
    computed early. Between the look at the lock and the storing of a value
    another may take the lock; where that matters, use a server with meta
    commands.
    """

    def __init__(self, ask: Ask, pool: Server, wire: bytes, terms: Terms) -> None:
        super().__init__(ask, pool, wire, terms)
        self._lock = lock_key(wire)

    def reading(self) -> Request:
        return Request(b"get", (self._wire,))

    def found(self, reply: Reply) -> Found:
        item = reply.items.get(self._wire)
        return Found(MISSED) if item is None else Found(HIT, item)

    async def read(self) -> Found:
        found = await super().read()
        if found.state == HIT:
            return found
        name = os.urandom(8).hex().encode()
        exptime = wire_exptime(self._terms.lease_exptime, time.time)
        adding = self._ask(Request(b"add", (self._lock,), name, exptime=exptime))
        looking = self._ask(Request(b"gets", (self._lock,)))
        # Whoever had the lock may have stored the value, and gone, since it was missed.
        again = self._ask(self.reading())
        won = (await adding).status == b"STORED"
        lock = (await looking).items.get(self._lock)
        found = self.found(await again)
        if lock is None or (won and lock.value != name):
            return found
        lease = Lease(self._unique(lock.cas_unique or 0))
        if found.state == HIT:
            if won:
                self.release(lease)
            return found
        return Found(WON if won else HELD, None, lease)

    async def store(self, lease: Lease, data: bytes, flags: int) -> bool:
        looked = await self._ask(Request(b"gets", (self._lock,)))
        lock = looked.items.get(self._lock)
        if lock is None or lock.cas_unique != lease.unique or outdated(lease.unique, self._pool):
            return False
        exptime = wire_exptime(self._terms.exptime, time.time)
        storing = self._ask(Request(b"set", (self._wire,), data, flags, exptime))
        self.release(lease)
        return (await storing).status == b"STORED"

    def release(self, lease: Lease) -> None:
        if not outdated(lease.unique, self._pool):
            self._ask(Request(b"cas", (self._lock,), b"", 0, -1, lease.unique))


class MigratingLeases(AddLeases):
    """By ``add`` of a lock, for a client that migrates: others may use the meta commands there.

    An empty item may be the stub of one of them, and so it is no value.
    """

    def found(self, reply: Reply) -> Found:
        found = super().found(reply)
        item = found.item
        return Found(MISSED) if item and not (item.value or item.flags) else found


def lock_key(wire: bytes) -> bytes:
    """Returns the key of the lock beside ``wire``: its name, or a hash where that is too long."""
    lock = wire + b":lock"
    if len(lock) > MAX_KEY_LENGTH:
        lock = hashlib.sha256(wire).hexdigest().encode() + b":lock"
    return lock
