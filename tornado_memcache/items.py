"""The items of a server in memory: what is kept of each, for how long, and which leaves first.

Knows exptimes, `flush_all`, the limits on memory and on the number of items,
and the counts that ``stats`` tells. Its time comes from a callable that gives
seconds and ticks in whole ones, as memcached's does. It must not know a verb,
the wire, a socket, a loop, or any other clock. Everything here was measured
on memcached 1.6.18.
"""

from collections import OrderedDict
from collections.abc import Callable, Iterator

from .arguments import LONGEST_LENGTH
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

#: memcached's clock begins so many seconds before it: what is stored expired
#: has an exptime of 1 on that.
_EARLIER = 62
_UINT64 = 1 << 64

#: What is counted, as protocol.txt names it ("General-purpose statistics").
COUNTED = (
    "cmd_get cmd_set cmd_flush cmd_touch cmd_meta get_hits get_misses get_expired get_flushed "
    "delete_misses delete_hits incr_misses incr_hits decr_misses decr_hits cas_misses "
    "cas_hits cas_badval touch_hits touch_misses store_too_large total_items expired_unfetched "
    "evicted_unfetched evictions"
).split()


def item_size(key: bytes, flags: int, length: int) -> int:
    """Returns how many bytes an item takes, as memcached counts them."""
    return ITEM_OVERHEAD + len(key) + length + (FLAGS_SIZE if flags else 0)


class Entry:
    """An item and what only the server knows of it; moments are in whole seconds.

    ``expires`` is 0 for never. ``fetched`` is set once it was asked for,
    ``stale`` once it was invalidated, ``won`` while a client knows that
    it is to make the value anew; ``binary`` if its key came as base64.
    """

    __slots__ = (
        "item",
        "expires",
        "stored",
        "size",
        "accessed",
        "fetched",
        "stale",
        "won",
        "binary",
    )

    def __init__(self, item: Item, expires: int, stored: int, size: int) -> None:
        self.item = item
        self.expires = expires
        self.stored = stored
        self.size = size
        self.accessed = stored
        self.fetched = self.stale = self.won = self.binary = False


class Items:
    """What is kept, under its keys.

    Arguments: ``clock``, which gives the wall clock's seconds (an exptime
    over 30 days is an absolute moment on it); ``max_item_size`` and
    ``max_bytes``, bytes as `item_size` counts them; ``max_items``. At a
    limit the items that were not asked for longest are evicted. Expired
    items leave when they are next asked for, or by eviction.
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
        #: The newest cas_unique.
        self.cas_unique = 0
        self._clock = clock
        self._entries: OrderedDict[bytes, Entry] = OrderedDict()
        #: Once this moment has come, whatever was stored up to it is gone.
        self._flush_moment: int | None = None
        self._born = self.now()

    def __len__(self) -> int:
        return len(self._entries)

    def __iter__(self) -> Iterator[Entry]:
        return iter(self._entries.values())

    def __repr__(self) -> str:
        return f"<{type(self).__name__} {len(self)} items, {self.bytes} bytes>"

    def too_large(self, key: bytes, flags: int, length: int) -> bool:
        """Returns True if a value of ``length`` bytes makes no item of an allowed size."""
        return item_size(key, flags, length) > self.max_item_size

    def now(self) -> int:
        """Returns the second that runs."""
        return int(self._clock())

    def next_cas(self) -> int:
        """Returns a cas_unique that nobody has had."""
        self.cas_unique = (self.cas_unique + 1) % _UINT64
        return self.cas_unique

    def moment_of(self, exptime: int) -> int:
        """Returns the moment that ``exptime`` means (protocol.txt, "Expiration times").

        0 is never. All that has expired before the store was there is the
        same moment, as in memcached.
        """
        if exptime == 0:
            return 0
        if 0 < exptime <= LONGEST_LENGTH:
            return self.now() + exptime
        return max(exptime, self._born - _EARLIER + 1)

    def find(self, key: bytes, use: bool = True) -> Entry | None:
        """Returns what lives under ``key``, None if nothing does.

        With ``use`` it is the last to be evicted from now on.
        """
        entry = self._entries.get(key)
        if entry is None:
            return None
        now, flush = self.now(), self._flush_moment
        flushed = flush is not None and entry.stored <= flush <= now
        if flushed or (entry.expires and entry.expires <= now):
            self.counts["get_flushed" if flushed else "get_expired"] += 1
            if not flushed and not entry.fetched:
                self.counts["expired_unfetched"] += 1
            self.remove(key)
            return None
        if use:
            self._entries.move_to_end(key)
        return entry

    def fetch(self, key: bytes) -> Entry | None:
        """Returns what lives under ``key`` and notes that it was asked for."""
        if (entry := self.find(key)) is not None:
            self.fetched(entry)
        return entry

    def fetched(self, entry: Entry) -> None:
        """Notes that somebody has asked for ``entry``."""
        entry.fetched = True
        entry.accessed = self.now()

    def put(self, key: bytes, value: bytes, flags: int = 0, expires: int = 0) -> Entry:
        """Puts an item there that expires at a moment; what the limits want leaves for it."""
        entries, size = self._entries, item_size(key, flags, len(value))
        if key in entries:
            self.remove(key)
        entry = Entry(Item(value, flags, self.next_cas()), expires, self.now(), size)
        entries[key] = entry
        self.bytes += size
        self.counts["total_items"] += 1
        limit = len(entries) if self.max_items is None else self.max_items
        while entries and (self.bytes > self.max_bytes or len(entries) > limit):
            evicted = entries.popitem(last=False)[1]
            self.bytes -= evicted.size
            self.counts["evictions"] += 1
            self.counts["evicted_unfetched"] += not evicted.fetched
        return entry

    def remove(self, key: bytes) -> None:
        """Removes what is there under ``key``."""
        self.bytes -= self._entries.pop(key).size

    def flush_all(self, delay: int = 0) -> None:
        """Removes all items, or after ``delay`` seconds whatever is there then.

        A later call takes the place of an earlier one that is still to
        come. As in memcached a delay of 1 is over at once, with the second
        that runs, and one over 30 days is an absolute moment.
        """
        self.counts["cmd_flush"] += 1
        now = self.now()
        self._flush_moment = None
        if delay <= 0:
            moment = now - 1
        elif delay > LONGEST_LENGTH:
            if delay <= self._born:
                self.next_cas()
                return
            moment = delay - 1
        else:
            moment = now + delay - 1
        if moment <= now:
            self.next_cas()
            self._entries.clear()
            self.bytes = 0
        if moment >= now:
            self._flush_moment = moment

    def reset_counts(self) -> None:
        """Sets what is counted to 0 (``stats reset``)."""
        self.counts = dict.fromkeys(COUNTED, 0)
