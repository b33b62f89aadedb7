"""What memcached does to its items, in plain Python: a dict and a clock.

`Model` has the commands of `tornado_memcache.Client`, with their arguments and
outcomes, as protocol.txt describes them. It must not know the wire, a store of
the package, or when its clock is turned. A cas unique is a number that no item
had before; what an item is read as follows from its flags.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterable, Mapping
from datetime import datetime, timedelta
from typing import Any, NamedTuple

from tornado_memcache import ClientError, SerializationError

#: Seconds that are never over.
NEVER = math.inf
_LONG_AGO = -math.inf
_NUMBERS = 2**64


class Kept(NamedTuple):
    """An item: its bytes, its flags, the moment it ends, its cas unique."""

    data: bytes
    flags: int
    ends: float
    unique: int
    #: Invalidated; and whether somebody was told that he is to fetch it anew.
    stale: bool = False
    told: bool = False

    @property
    def value(self) -> Any:
        try:
            if self.flags == 0:
                return self.data
            return self.data.decode() if self.flags == 16 else int(self.data)
        except ValueError:
            raise SerializationError from None

    @property
    def number(self) -> int:
        """What incr and decr take the item for: digits, up to white space or a NUL."""
        words = self.data.partition(b"\0")[0].split()
        if not words or not words[0].isdigit() or int(words[0]) >= _NUMBERS:
            raise ClientError
        return int(words[0])


def _stored(value: Any) -> tuple[bytes, int]:
    if isinstance(value, str):
        return value.encode(), 16
    return (value, 0) if isinstance(value, bytes) else (b"%d" % value, 2)


class Model:
    """The items of one server; ``now`` is its clock, in seconds."""

    def __init__(self, now: float = 0.0) -> None:
        self.now = now
        #: What was kept, some of it beyond its end.
        self.items: dict[str, Kept] = {}
        self._uniques = itertools.count(1)

    def _ends(self, exptime: Any) -> float:
        """Returns when ``exptime`` is over: a length from now, or a moment."""
        if isinstance(exptime, datetime):
            return exptime.timestamp()
        if isinstance(exptime, timedelta):
            exptime = math.ceil(exptime.total_seconds())
        if not exptime:
            return NEVER
        return self.now + exptime if exptime > 0 else _LONG_AGO

    def there(self, key: str) -> Kept | None:
        """Returns what is under ``key``."""
        kept = self.items.get(key)
        return None if kept is None or kept.ends <= self.now else kept

    def _keep(self, key: str, data: bytes, flags: int, ends: float) -> bool:
        self.items[key] = Kept(data, flags, ends, next(self._uniques))
        return True

    # -- retrieval

    def get(self, key: str, default: Any = None) -> Any:
        kept = self.there(key)
        return default if kept is None else kept.value

    def gets(self, key: str) -> tuple[Any, int | None]:
        kept = self.there(key)
        return (None, None) if kept is None else (kept.value, kept.unique)

    def gat(self, key: str, exptime: Any, default: Any = None) -> Any:
        kept = self._touched(key, exptime)
        return default if kept is None else kept.value

    def gats(self, key: str, exptime: Any) -> tuple[Any, int | None]:
        kept = self._touched(key, exptime)
        return (None, None) if kept is None else (kept.value, kept.unique)

    def _touched(self, key: str, exptime: Any) -> Kept | None:
        # What was there is sent, even if it ends with that.
        kept = self.there(key)
        if kept is not None:
            self.items[key] = kept._replace(ends=self._ends(exptime))
        return kept

    def get_multi(self, keys: Iterable[str]) -> tuple[dict[str, Any], bool]:
        """Returns the hits that can be read, and whether there is one that cannot."""
        return self._many(self.get, keys)

    def gets_multi(self, keys: Iterable[str]) -> tuple[dict[str, Any], bool]:
        return self._many(self.gets, keys)

    def _many(self, one: Callable[[str], Any], keys: Iterable[str]) -> tuple[dict[str, Any], bool]:
        hits, unread = {}, False
        for key in filter(self.there, keys):
            try:
                hits[key] = one(key)
            except SerializationError:
                unread = True
        return hits, unread

    # -- storage

    def set(self, key: str, value: Any, exptime: Any = 0, noreply: bool = False) -> bool:
        return self._keep(key, *_stored(value), self._ends(exptime))

    def add(self, key: str, value: Any, exptime: Any = 0, noreply: bool = False) -> bool:
        return not self.there(key) and self.set(key, value, exptime)

    def replace(self, key: str, value: Any, exptime: Any = 0, noreply: bool = False) -> bool:
        return bool(self.there(key)) and self.set(key, value, exptime)

    def append(self, key: str, value: Any, noreply: bool = False) -> bool:
        return self._join(key, lambda old: old + _stored(value)[0])

    def prepend(self, key: str, value: Any, noreply: bool = False) -> bool:
        return self._join(key, lambda old: _stored(value)[0] + old)

    def _join(self, key: str, joined: Callable[[bytes], bytes]) -> bool:
        kept = self.there(key)
        return kept is not None and self._keep(key, joined(kept.data), kept.flags, kept.ends)

    def cas(self, key: str, value: Any, unique: int, exptime: Any = 0) -> bool | None:
        kept = self.there(key)
        if kept is None:
            return None
        return kept.unique == unique and self.set(key, value, exptime)

    def set_multi(self, mapping: Mapping[str, Any], exptime: Any = 0) -> list[str]:
        for key, value in mapping.items():
            self.set(key, value, exptime)
        return []

    # -- meta

    def meta_get(
        self, key: str, *, touch: Any = None, vivify: Any = None, recache: int = 0
    ) -> dict[str, Any] | None:
        """Returns what a `MetaItem` tells: value, unique, won, stale, recache."""
        kept = self.there(key)
        if kept is None and vivify is None:
            return None
        won = kept is None or (kept.stale and not kept.told)
        if kept is None:
            self._keep(key, b"", 0, self._ends(vivify))
        elif not kept.told and kept.ends - self.now < recache:
            won = True
        there = self.items[key]
        recached = there.told and not won
        self.items[key] = there._replace(told=there.told or won)
        if kept is not None and touch is not None:
            self._touched(key, touch)
        kept = there
        stub = not (kept.data or kept.flags) and (won or recached or kept.stale)
        value = None if stub else kept.value
        return {
            "value": value,
            "cas_unique": kept.unique,
            "won": won,
            "stale": kept.stale,
            "recache": recached,
            "size": len(kept.data),
        }

    def meta_get_multi(self, keys: Iterable[str]) -> tuple[dict[str, Any], bool]:
        hits, unread = {}, False
        for key in dict.fromkeys(keys):
            try:
                found = self.meta_get(key)
            except SerializationError:
                unread = True
            else:
                if found is not None:
                    hits[key] = found
        return hits, unread

    def meta_set(
        self, key: str, value: Any, exptime: Any = 0, mode: str = "set", unique: int | None = None
    ) -> bool | None:
        kept = self.there(key)
        if unique is not None and (kept is None or kept.unique != unique):
            # (What is to be joined to is asked for before its unique is.)
            return None if kept is None and mode in ("set", "replace") else False
        if mode in ("append", "prepend"):
            return bool(getattr(self, mode)(key, value))
        return bool(getattr(self, mode)(key, value, exptime))

    def meta_delete(
        self,
        key: str,
        *,
        invalidate: bool = False,
        exptime: Any = None,
        unique: int | None = None,
    ) -> bool | None:
        kept = self.there(key)
        if kept is None:
            return None
        if unique is not None and kept.unique != unique:
            return False
        if not invalidate:
            return self.delete(key)
        ends = kept.ends if exptime is None else self._ends(exptime)
        self.items[key] = Kept(kept.data, kept.flags, ends, next(self._uniques), stale=True)
        return True

    def meta_delete_multi(self, keys: Iterable[str], *, invalidate: bool = False) -> list[str]:
        for key in dict.fromkeys(keys):
            self.meta_delete(key, invalidate=invalidate)
        return []

    def meta_arithmetic(
        self,
        key: str,
        delta: int = 1,
        *,
        mode: str = "incr",
        initial: int = 0,
        vivify: Any = None,
    ) -> int | None:
        if self.there(key) is None and vivify is not None:
            self._keep(key, b"%d" % initial, 0, self._ends(vivify))
            return initial
        return self._count(key, delta if mode == "incr" else -delta)

    # -- the rest

    def delete(self, key: str) -> bool:
        return bool(self.there(key)) and bool(self.items.pop(key))

    def delete_multi(self, keys: Iterable[str]) -> list[str]:
        for key in keys:
            self.delete(key)
        return []

    def touch(self, key: str, exptime: Any) -> bool:
        return self._touched(key, exptime) is not None

    def incr(self, key: str, delta: int = 1) -> int | None:
        return self._count(key, delta)

    def decr(self, key: str, delta: int = 1) -> int | None:
        return self._count(key, -delta)

    def _count(self, key: str, delta: int) -> int | None:
        kept = self.there(key)
        if kept is None:
            return None
        # Up it wraps, down it stops.
        number = (kept.number + delta) % _NUMBERS if delta >= 0 else max(0, kept.number + delta)
        # "The number MAY be space-padded at the end": it is, to what it was.
        data = (b"%d" % number).ljust(len(kept.data))
        self._keep(key, data, kept.flags, kept.ends)
        if len(data) == len(kept.data):  # (it is the same item, with other digits)
            marks = {"stale": kept.stale, "told": kept.told}
            self.items[key] = self.items[key]._replace(**marks)
        return number

    def flush_all(self) -> bool:
        self.items.clear()
        return True
