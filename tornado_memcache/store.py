r"""Items in memory, as memcached keeps them.

Knows what each verb does to an item: exptime, flags, ``cas_unique``, the
arithmetic of incr and decr, flush_all, and which item leaves when the store
is full. Its time comes from a callable that gives seconds and ticks in whole
ones, as memcached's does. It must not know the wire, a socket, a loop, or
any other clock. Everything here was measured on memcached 1.6.18.
"""

import re
from collections import OrderedDict
from collections.abc import Callable

from .arguments import LONGEST_LENGTH
from .errors import ClientError
from .protocol import Item

#: What memcached adds to key and value of an item: its header, the
#: cas_unique, a NUL behind the key, CRLF behind the value.
ITEM_OVERHEAD = 48 + 8 + 1 + 2
#: ... and to the flags, unless they are 0.
FLAGS_SIZE = 4
#: memcached's default limit on an item with all of that (its ``-I``), in bytes.
MAX_ITEM_SIZE = 1024 * 1024
#: memcached's default limit on all items (its ``-m``), in bytes.
MAX_BYTES = 64 * 1024 * 1024

#: The moment of an item that was stored expired.
_LONG_AGO = -1
_UINT64 = 1 << 64

# What C's strtoull takes at the start of a string, followed by the end of
# the string or by white space.
_INTEGER = re.compile(rb"[ \t-\r]*([+-]?)([0-9]+)(?=[\0 \t-\r]|\Z)")

#: What `Store.counts` counts, as protocol.txt names it ("General-purpose statistics").
COUNTED = (
    "cmd_get cmd_set cmd_flush cmd_touch get_hits get_misses get_expired get_flushed "
    "delete_misses delete_hits incr_misses incr_hits decr_misses decr_hits cas_misses "
    "cas_hits cas_badval touch_hits touch_misses total_items evictions"
).split()


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


def item_size(key: bytes, flags: int, length: int) -> int:
    """Returns how many bytes an item takes, as memcached counts them."""
    return ITEM_OVERHEAD + len(key) + length + (FLAGS_SIZE if flags else 0)


class _Entry:
    """An item and what only the store knows of it; moments are in whole seconds."""

    __slots__ = ("item", "expires", "stored", "size")

    def __init__(self, item: Item, expires: int, stored: int, size: int) -> None:
        self.item = item
        self.expires = expires
        self.stored = stored
        self.size = size


class Store:
    """The items of one server.

    Arguments: ``clock``, which gives the wall clock's seconds (an exptime
    over 30 days is an absolute moment on it); ``max_item_size`` and
    ``max_bytes``, bytes as `item_size` counts them; ``max_items``. At a
    limit the items that were not asked for longest are evicted. Expired
    items leave when they are next asked for, or by eviction.

    The verbs take keys and values that were checked, ``exptime`` and
    ``delta`` as they came on the wire (protocol.txt, "Expiration times"),
    and answer with the words of the protocol, an item, a number or a bool.
    """

    def __init__(
        self,
        clock: Callable[[], float],
        *,
        max_item_size: int = MAX_ITEM_SIZE,
        max_bytes: int = MAX_BYTES,
        max_items: int | None = None,
    ) -> None:
        self.max_item_size = max_item_size
        self.max_bytes = max_bytes
        self.max_items = max_items
        #: How many bytes the items take, expired ones included.
        self.bytes = 0
        self.counts = dict.fromkeys(COUNTED, 0)
        self._clock = clock
        self._entries: OrderedDict[bytes, _Entry] = OrderedDict()
        self._cas_unique = 0
        #: Once this moment has come, whatever was stored up to it is gone.
        self._flush_moment: int | None = None
        self._born = self._now()

    def __len__(self) -> int:
        return len(self._entries)

    def __repr__(self) -> str:
        return f"<{type(self).__name__} {len(self)} items, {self.bytes} bytes>"

    def too_large(self, key: bytes, flags: int, length: int) -> bool:
        """Returns True if a value of ``length`` bytes makes no item of an allowed size."""
        return item_size(key, flags, length) > self.max_item_size

    def get(self, key: bytes) -> Item | None:
        """Returns the item under ``key``, None on a miss."""
        counts, now = self.counts, self._now()
        counts["cmd_get"] += 1
        entry = self._entries.get(key)
        if entry is not None and (gone := self._gone(entry, now)):
            counts[gone] += 1
            self._remove(key)
            entry = None
        if entry is None:
            counts["get_misses"] += 1
            return None
        counts["get_hits"] += 1
        self._entries.move_to_end(key)
        return entry.item

    def gat(self, key: bytes, exptime: int) -> Item | None:
        """Returns the item under ``key`` and gives it a new exptime; None on a miss."""
        return entry.item if (entry := self._touch(key, exptime)) else None

    def touch(self, key: bytes, exptime: int) -> bool:
        """Gives the item a new exptime; its ``cas_unique`` stays. False on a miss."""
        return self._touch(key, exptime) is not None

    def set(self, key: bytes, value: bytes, flags: int = 0, exptime: int = 0) -> bytes:
        """Stores the item whatever was there. Returns ``STORED``."""
        self.counts["cmd_set"] += 1
        return self._store(key, value, flags, exptime)

    def add(self, key: bytes, value: bytes, flags: int = 0, exptime: int = 0) -> bytes:
        """Stores the item if there is none. Returns ``STORED`` or ``NOT_STORED``."""
        self.counts["cmd_set"] += 1
        if self._find(key):
            return b"NOT_STORED"
        return self._store(key, value, flags, exptime)

    def replace(self, key: bytes, value: bytes, flags: int = 0, exptime: int = 0) -> bytes:
        """Stores the item if there is one. Returns ``STORED`` or ``NOT_STORED``."""
        self.counts["cmd_set"] += 1
        if not self._find(key):
            return b"NOT_STORED"
        return self._store(key, value, flags, exptime)

    def append(self, key: bytes, value: bytes) -> bytes:
        """Puts ``value`` behind what is there; flags and exptime stay.

        Returns ``STORED``, or ``NOT_STORED`` on a miss and where the item
        would become too large.
        """
        return self._extend(key, lambda old: old + value, len(value))

    def prepend(self, key: bytes, value: bytes) -> bytes:
        """Puts ``value`` before what is there; as `append`."""
        return self._extend(key, lambda old: value + old, len(value))

    def cas(
        self, key: bytes, value: bytes, flags: int = 0, exptime: int = 0, cas_unique: int = 0
    ) -> bytes:
        """Stores the item if the one that is there still has this ``cas_unique``.

        Returns ``STORED``, ``EXISTS`` if it has another, ``NOT_FOUND`` on a miss.
        """
        self.counts["cmd_set"] += 1
        entry = self._find(key)
        if entry is None:
            self.counts["cas_misses"] += 1
            return b"NOT_FOUND"
        if entry.item.cas_unique != cas_unique:
            self.counts["cas_badval"] += 1
            return b"EXISTS"
        self.counts["cas_hits"] += 1
        return self._store(key, value, flags, exptime)

    def incr(self, key: bytes, delta: int) -> int | None:
        """Adds ``delta`` to the number under ``key``, modulo 2^64.

        Returns the new number, None on a miss. Raises `.ClientError` if the
        value is no number.
        """
        return self._count(key, "incr", lambda number: (number + delta) % _UINT64)

    def decr(self, key: bytes, delta: int) -> int | None:
        """Takes ``delta`` from the number under ``key``, down to 0; as `incr`."""
        return self._count(key, "decr", lambda number: max(number - delta, 0))

    def delete(self, key: bytes) -> bool:
        """Removes the item. False if there was none."""
        found = self._find(key) is not None
        self.counts["delete_hits" if found else "delete_misses"] += 1
        if found:
            self._remove(key)
        return found

    def flush_all(self, delay: int = 0) -> None:
        """Removes all items, or after ``delay`` seconds whatever is there then.

        A later call takes the place of an earlier one that is still to
        come. As in memcached a delay of 1 is over at once, with the second
        that runs, and one over 30 days is an absolute moment.
        """
        self.counts["cmd_flush"] += 1
        now = self._now()
        self._flush_moment = None
        if delay <= 0:
            moment = now - 1
        elif delay > LONGEST_LENGTH:
            if delay <= self._born:
                self._next_cas()
                return
            moment = delay - 1
        else:
            moment = now + delay - 1
        if moment <= now:
            self._next_cas()
            self._entries.clear()
            self.bytes = 0
        if moment >= now:
            self._flush_moment = moment

    def reset_counts(self) -> None:
        """Sets what is counted to 0 (``stats reset``)."""
        self.counts = dict.fromkeys(COUNTED, 0)

    def _now(self) -> int:
        return int(self._clock())

    def _next_cas(self) -> int:
        self._cas_unique = (self._cas_unique + 1) % _UINT64
        return self._cas_unique

    def _gone(self, entry: _Entry, now: int) -> str:
        """Returns under which count the item is gone, "" if it is there."""
        flush = self._flush_moment
        if flush is not None and entry.stored <= flush <= now:
            return "get_flushed"
        return "get_expired" if entry.expires and entry.expires <= now else ""

    def _find(self, key: bytes) -> _Entry | None:
        """Returns what lives under ``key`` and counts it as asked for."""
        entry = self._entries.get(key)
        if entry is None:
            return None
        if self._gone(entry, self._now()):
            self._remove(key)
            return None
        self._entries.move_to_end(key)
        return entry

    def _remove(self, key: bytes) -> None:
        self.bytes -= self._entries.pop(key).size

    def _touch(self, key: bytes, exptime: int) -> _Entry | None:
        entry = self._find(key)
        self.counts["cmd_touch"] += 1
        self.counts["touch_misses" if entry is None else "touch_hits"] += 1
        if entry is not None:
            entry.expires = self._expires(exptime, self._now())
        return entry

    @staticmethod
    def _expires(exptime: int, now: int) -> int:
        """Returns the moment that ``exptime`` means; 0 is never."""
        if exptime == 0:
            return 0
        if exptime < 0:
            return _LONG_AGO
        return now + exptime if exptime <= LONGEST_LENGTH else exptime

    def _store(self, key: bytes, value: bytes, flags: int, exptime: int) -> bytes:
        now = self._now()
        self._put(key, value, flags, self._expires(exptime, now), now)
        return b"STORED"

    def _put(self, key: bytes, value: bytes, flags: int, expires: int, now: int) -> None:
        entries, size = self._entries, item_size(key, flags, len(value))
        if key in entries:
            self._remove(key)
        entries[key] = _Entry(Item(value, flags, self._next_cas()), expires, now, size)
        self.bytes += size
        self.counts["total_items"] += 1
        limit = len(entries) if self.max_items is None else self.max_items
        while entries and (self.bytes > self.max_bytes or len(entries) > limit):
            self.bytes -= entries.popitem(last=False)[1].size
            self.counts["evictions"] += 1

    def _extend(self, key: bytes, joined: Callable[[bytes], bytes], length: int) -> bytes:
        self.counts["cmd_set"] += 1
        entry = self._find(key)
        if entry is None or entry.size + length > self.max_item_size:
            return b"NOT_STORED"
        item = entry.item
        self._put(key, joined(item.value), item.flags, entry.expires, self._now())
        return b"STORED"

    def _count(self, key: bytes, verb: str, step: Callable[[int], int]) -> int | None:
        entry = self._find(key)
        if entry is None:
            self.counts[f"{verb}_misses"] += 1
            return None
        number = read_unsigned(entry.item.value)
        if number is None:
            raise ClientError("cannot increment or decrement non-numeric value")
        self.counts[f"{verb}_hits"] += 1
        number = step(number)
        # memcached writes over the old digits and never makes the value shorter.
        value = b"%d" % number
        value = value.ljust(len(entry.item.value))
        self._put(key, value, entry.item.flags, entry.expires, self._now())
        self.counts["total_items"] -= 1
        return number
