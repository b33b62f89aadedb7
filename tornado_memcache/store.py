r"""What each verb of the text dialect does to an item.

Knows flags, exptime and ``cas_unique`` as the verbs use them, and the
arithmetic of incr and decr. It must not know the wire, a socket or a loop,
nor when an item leaves (`.items`). Everything here was measured on memcached
1.6.18.
"""

from typing import NamedTuple

from .errors import ClientError
from .items import Entry, Items
from .protocol import Item
from .words import read_unsigned

_UINT64 = 1 << 64


class Counted(NamedTuple):
    """What counting came to: ``EXISTS``, ``NOT_FOUND`` or ``NUMBER``, and that."""

    status: bytes
    number: int = 0
    entry: Entry | None = None


class Store(Items):
    """The items of one server, and the verbs.

    These take keys and values that were checked, ``exptime`` and ``delta``
    as they came on the wire, and answer with the words of the protocol, an
    item, a number or a bool. The arguments are those of `.Items`.
    """

    def get(self, key: bytes) -> Item | None:
        """Returns the item under ``key``, None on a miss."""
        self.counts["cmd_get"] += 1
        entry = self.fetch(key)
        self.counts["get_misses" if entry is None else "get_hits"] += 1
        return entry.item if entry is not None else None

    def gat(self, key: bytes, exptime: int) -> Item | None:
        """Returns the item under ``key`` and gives it a new exptime; None on a miss."""
        return entry.item if (entry := self._touch(key, exptime)) else None

    def touch(self, key: bytes, exptime: int) -> bool:
        """Gives the item a new exptime; its ``cas_unique`` stays. False on a miss."""
        return self._touch(key, exptime) is not None

    def set(self, key: bytes, value: bytes, flags: int = 0, exptime: int = 0) -> bytes:
        """Stores the item whatever was there. Returns ``STORED``."""
        return self.keep(b"set", key, value, flags, exptime)[0]

    def add(self, key: bytes, value: bytes, flags: int = 0, exptime: int = 0) -> bytes:
        """Stores the item if there is none. Returns ``STORED`` or ``NOT_STORED``."""
        return self.keep(b"add", key, value, flags, exptime)[0]

    def replace(self, key: bytes, value: bytes, flags: int = 0, exptime: int = 0) -> bytes:
        """Stores the item if there is one. Returns ``STORED`` or ``NOT_STORED``."""
        return self.keep(b"replace", key, value, flags, exptime)[0]

    def append(self, key: bytes, value: bytes) -> bytes:
        """Puts ``value`` behind what is there; flags and exptime stay.

        Returns ``STORED``, or ``NOT_STORED`` on a miss and where the item
        would become too large.
        """
        return self.keep(b"append", key, value)[0]

    def prepend(self, key: bytes, value: bytes) -> bytes:
        """Puts ``value`` before what is there; as `append`."""
        return self.keep(b"prepend", key, value)[0]

    def cas(
        self, key: bytes, value: bytes, flags: int = 0, exptime: int = 0, cas_unique: int = 0
    ) -> bytes:
        """Stores the item if the one that is there still has this ``cas_unique``.

        Returns ``STORED``, ``EXISTS`` if it has another, ``NOT_FOUND`` on a miss.
        """
        return self.keep(b"cas", key, value, flags, exptime, cas_unique)[0]

    def incr(self, key: bytes, delta: int) -> int | None:
        """Adds ``delta`` to the number under ``key``, modulo 2^64.

        Returns the new number, None on a miss. Raises `.ClientError` if the
        value is no number.
        """
        counted = self.count("incr", key, delta)
        return counted.number if counted.entry is not None else None

    def decr(self, key: bytes, delta: int) -> int | None:
        """Takes ``delta`` from the number under ``key``, down to 0; as `incr`."""
        counted = self.count("decr", key, delta)
        return counted.number if counted.entry is not None else None

    def delete(self, key: bytes) -> bool:
        """Removes the item. False if there was none."""
        found = self.find(key, use=False) is not None
        self.counts["delete_hits" if found else "delete_misses"] += 1
        if found:
            self.remove(key)
        return found

    # -- what the meta dialect asks for as well

    def keep(
        self,
        verb: bytes,
        key: bytes,
        value: bytes,
        flags: int = 0,
        exptime: int = 0,
        cas_unique: int = 0,
        may_be_stale: bool = False,
    ) -> tuple[bytes, Entry | None]:
        """Stores as ``verb`` does; returns what is answered, and what is there if it was stored.

        ``cas_unique`` is compared by ``cas``, and, unless it is 0, by
        ``append`` and ``prepend``. With ``may_be_stale`` an older one is
        taken too, and the item is stale then: it keeps the exptime of the
        one before, and whether somebody makes it anew.
        """
        self.counts["cmd_set"] += 1
        old = self.find(key)
        if verb == b"cas":
            return self._compare(key, value, flags, exptime, cas_unique, may_be_stale, old)
        if verb in (b"append", b"prepend"):
            return self._extend(verb, key, value, cas_unique, old)
        if verb == (b"add" if old is not None else b"replace"):
            return b"NOT_STORED", None
        return b"STORED", self.put(key, value, flags, self.moment_of(exptime))

    def count(self, verb: str, key: bytes, delta: int, cas_unique: int = 0) -> Counted:
        """Adds or takes ``delta``, if the item has this ``cas_unique`` (0: any).

        Raises `.ClientError` if the value is no number.
        """
        entry = self.find(key)
        if entry is None:
            self.counts[f"{verb}_misses"] += 1
            return Counted(b"NOT_FOUND")
        item = entry.item
        if cas_unique and cas_unique != item.cas_unique and item.value:
            return Counted(b"EXISTS")
        number = read_unsigned(item.value)
        if number is None:
            raise ClientError("cannot increment or decrement non-numeric value")
        self.counts[f"{verb}_hits"] += 1
        number = (number + delta) % _UINT64 if verb == "incr" else max(number - delta, 0)
        value = b"%d" % number
        if len(value) <= len(item.value):
            # memcached writes over the old digits and never makes the value shorter.
            entry.item = Item(value.ljust(len(item.value)), item.flags, self.next_cas())
        else:
            # What is asked of it afterwards, its new exptime too, goes to the one it replaced.
            made = self.put(key, value, item.flags, entry.expires)
            entry.item = made.item
        return Counted(b"NUMBER", number, entry)

    def _touch(self, key: bytes, exptime: int) -> Entry | None:
        entry = self.fetch(key)
        self.counts["cmd_touch"] += 1
        self.counts["touch_misses" if entry is None else "touch_hits"] += 1
        if entry is not None:
            entry.expires = self.moment_of(exptime)
        return entry

    def _compare(
        self,
        key: bytes,
        value: bytes,
        flags: int,
        exptime: int,
        cas_unique: int,
        may_be_stale: bool,
        old: Entry | None,
    ) -> tuple[bytes, Entry | None]:
        if old is None:
            self.counts["cas_misses"] += 1
            return b"NOT_FOUND", None
        newest = old.item.cas_unique or 0
        stale = may_be_stale and 0 < cas_unique < newest
        if not stale and cas_unique != newest:
            self.counts["cas_badval"] += 1
            return b"EXISTS", None
        self.counts["cas_hits"] += 1
        expires = old.expires if stale else self.moment_of(exptime)
        entry = self.put(key, value, flags, expires)
        entry.stale, entry.won = stale, stale and old.won
        return b"STORED", entry

    def _extend(
        self, verb: bytes, key: bytes, value: bytes, cas_unique: int, old: Entry | None
    ) -> tuple[bytes, Entry | None]:
        if old is None:
            return b"NOT_STORED", None
        item = old.item
        if cas_unique and cas_unique != item.cas_unique:
            return b"EXISTS", None
        if old.size + len(value) > self.max_item_size:
            return b"NOT_STORED", None
        joined = item.value + value if verb == b"append" else value + item.value
        return b"STORED", self.put(key, joined, item.flags, old.expires)
