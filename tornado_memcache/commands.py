"""Every command of the client, once, each over one funnel.

Knows what a command takes and what its outcome is. It must not know how a
server is found, how a call waits, or how anything reaches the wire.
"""

import asyncio
import time
from collections.abc import Callable, Collection, Iterable, Mapping
from functools import partial
from typing import TYPE_CHECKING, Any

from .arguments import check_default, check_integer, listed, wire_exptime
from .errors import InvalidRequest, MemcacheError
from .funnel import Funnel, How, Key
from .outcomes import CasUnique, FailedKeys, MultiResult, number, outdated, reached, stored, version
from .protocol import Item, Reply, Request
from .text import KEYS_A_LINE, LINE_BYTES

if TYPE_CHECKING:
    from typing_extensions import Unpack

    from .pool import Pool

_BIGGEST = (1 << 64) - 1


class Commands(Funnel):
    """The commands of memcached, over a funnel that a subclass gives.

    Each takes ``timeout``, ``callback`` and ``fail_callback`` (`How`).
    With neither of the callbacks it returns a Future of the outcome.
    Arguments that cannot be sent raise at the call, in both styles:
    `.InvalidRequest` (a ValueError), `TypeError`, or
    `.SerializationError`; nothing was sent then. All other failures are
    the outcome. A key is a `str`, `bytes`, or ``(route, key)``, where the
    route (an int, or a string that is hashed) chooses the server.
    """

    # -- retrieval

    def get(self, key: Key, default: Any = None, **how: "Unpack[How]") -> "asyncio.Future[Any]":
        """Fetches one value (protocol.txt, "Retrieval command").

        Outcome: the value, or ``default`` on a miss.
        """
        return self._retrieve(b"get", key, default, 0, how)

    def gat(
        self, key: Key, exptime: Any, default: Any = None, **how: "Unpack[How]"
    ) -> "asyncio.Future[Any]":
        """Fetches one value and sets its exptime (protocol.txt, "Get And Touch").

        Outcome: the value, or ``default`` on a miss. A write: when it
        fails with ``maybe_applied`` the exptime may have been set.
        """
        return self._retrieve(b"gat", key, default, wire_exptime(exptime, time.time), how)

    def _retrieve(
        self, verb: bytes, key: Key, default: Any, exptime: int, how: Any
    ) -> "asyncio.Future[Any]":
        wire, pool = self._locate(key)
        check_default(default)
        outcome = partial(self._value_of, wire, default)
        return self._submit(pool, Request(verb, (wire,), exptime=exptime), outcome, how)

    def _value_of(self, wire: bytes, default: Any, reply: Reply) -> Any:
        item = reply.items.get(wire)
        return default if item is None else self._decode(wire, item.value, item.flags)

    def gets(
        self, key: Key, **how: "Unpack[How]"
    ) -> "asyncio.Future[tuple[Any, CasUnique | None]]":
        """Fetches one value and its cas unique, for `cas`.

        Outcome: ``(value, cas_unique)``, or ``(None, None)`` on a miss.
        """
        return self._retrieve_unique(b"gets", key, 0, how)

    def gats(
        self, key: Key, exptime: Any, **how: "Unpack[How]"
    ) -> "asyncio.Future[tuple[Any, CasUnique | None]]":
        """As `gets`, and sets the exptime of the item as `gat` does."""
        return self._retrieve_unique(b"gats", key, wire_exptime(exptime, time.time), how)

    def _retrieve_unique(
        self, verb: bytes, key: Key, exptime: int, how: Any
    ) -> "asyncio.Future[Any]":
        wire, pool = self._locate(key)
        outcome = partial(self._unique_of, wire, pool, pool.generation)
        return self._submit(pool, Request(verb, (wire,), exptime=exptime), outcome, how)

    def _unique_of(
        self, wire: bytes, pool: "Pool", generation: int, reply: Reply
    ) -> tuple[Any, Any]:
        item = reply.items.get(wire)
        return (None, None) if item is None else self._unique_item(wire, pool, generation, item)

    def _unique_item(
        self, wire: bytes, pool: "Pool", generation: int, item: Item
    ) -> tuple[Any, CasUnique]:
        token = CasUnique(item.cas_unique or 0)
        token.pool, token.generation = pool, generation
        return self._decode(wire, item.value, item.flags), token

    def get_multi(
        self, keys: Iterable[Any], strict: bool = False, **how: "Unpack[How]"
    ) -> "asyncio.Future[MultiResult[Any, Any]]":
        """Fetches many values, one request for each server and 100 keys.

        Outcome: a dict of the hits under the caller's own key objects.
        Its ``errors`` maps a server that failed, or sent a value that
        cannot be read, to its first error; such a value is left out. The
        call fails if every server asked failed, or with ``strict`` if
        there is any error.
        """
        return self._retrieve_many(b"get", keys, strict, how)

    def gets_multi(
        self, keys: Iterable[Any], strict: bool = False, **how: "Unpack[How]"
    ) -> "asyncio.Future[MultiResult[Any, tuple[Any, CasUnique]]]":
        """As `get_multi`, with ``(value, cas_unique)`` for each hit."""
        return self._retrieve_many(b"gets", keys, strict, how)

    def _retrieve_many(
        self, verb: bytes, keys: Iterable[Any], strict: bool, how: Any
    ) -> "asyncio.Future[Any]":
        result: MultiResult[Any, Any] = MultiResult()
        asked = self._locate_many(listed("keys", keys))
        return self._submit_many(
            (
                (
                    pool,
                    Request(verb, chunk),
                    partial(self._take_items, result, pool, pool.generation, wires),
                )
                for pool, wires in asked.items()
                for chunk in chunks(wires)
            ),
            result,
            how,
            whole=True,
            strict=strict,
        )

    def _take_items(
        self,
        result: "MultiResult[Any, Any]",
        pool: "Pool",
        generation: int,
        wires: dict[bytes, Any],
        reply: Any,
        good: bool,
    ) -> None:
        unread, raw_flags = None, self._raw_flags
        for wire, item in reply.items.items() if good else ():
            value, flags, cas_unique = item
            if cas_unique is not None or flags != raw_flags:
                try:
                    if cas_unique is None:
                        value = self._decode(wire, value, flags)
                    else:
                        value = self._unique_item(wire, pool, generation, item)
                except MemcacheError as error:
                    unread = unread or error
                    continue
            key = wires[wire]
            if key.__class__ is list:
                result.update(dict.fromkeys(key, value))
            else:
                result[key] = value
        if unread is not None:
            raise unread

    # -- storage

    def set(
        self,
        key: Key,
        value: Any,
        exptime: Any = 0,
        noreply: bool = False,
        **how: "Unpack[How]",
    ) -> "asyncio.Future[bool]":
        """Stores ``value`` under ``key`` (protocol.txt, "Storage commands").

        ``exptime`` is an int or a `~datetime.timedelta`, a length in
        seconds from now (0: never expires, -1: at once), or a
        `~datetime.datetime`.
        Outcome: True; with ``noreply`` True as soon as it is written. When
        it fails with ``maybe_applied``, it may still take effect.
        """
        return self._store(b"set", key, value, exptime, noreply, how)

    def add(
        self,
        key: Key,
        value: Any,
        exptime: Any = 0,
        noreply: bool = False,
        **how: "Unpack[How]",
    ) -> "asyncio.Future[bool]":
        """As `set`, if the key is not there. Outcome: False if it is."""
        return self._store(b"add", key, value, exptime, noreply, how)

    def replace(
        self,
        key: Key,
        value: Any,
        exptime: Any = 0,
        noreply: bool = False,
        **how: "Unpack[How]",
    ) -> "asyncio.Future[bool]":
        """As `set`, if the key is there. Outcome: False if it is not."""
        return self._store(b"replace", key, value, exptime, noreply, how)

    def append(
        self, key: Key, value: Any, exptime: Any = 0, noreply: bool = False, **how: "Unpack[How]"
    ) -> "asyncio.Future[bool]":
        """Adds bytes or a str behind the value that is there. Outcome: False if none is.

        memcached keeps the flags and the exptime of the item: an
        ``exptime`` given here is sent, and ignored by the server.
        """
        return self._store(b"append", key, value, exptime, noreply, how)

    def prepend(
        self, key: Key, value: Any, exptime: Any = 0, noreply: bool = False, **how: "Unpack[How]"
    ) -> "asyncio.Future[bool]":
        """As `append`, before the value that is there."""
        return self._store(b"prepend", key, value, exptime, noreply, how)

    def _store(
        self, verb: bytes, key: Key, value: Any, exptime: Any, noreply: bool, how: Any
    ) -> "asyncio.Future[Any]":
        wire, pool = self._locate(key)
        request = self._storage_request(verb, wire, value, exptime)
        if noreply:
            request = request._replace(noreply=True)
        return self._submit(pool, request, stored, how)

    def _storage_request(self, verb: bytes, wire: bytes, value: Any, exptime: Any) -> Request:
        if verb in (b"append", b"prepend") and type(value) is int:
            raise TypeError(f"value to {verb.decode()} must be bytes or str, not int")
        # What is appended to a value has to be as the value is.
        data, flags = self._encode(wire, value, verb not in (b"append", b"prepend"))
        return Request(verb, (wire,), data, flags, wire_exptime(exptime, time.time))

    def cas(
        self,
        key: Key,
        value: Any,
        cas_unique: int,
        exptime: Any = 0,
        **how: "Unpack[How]",
    ) -> "asyncio.Future[bool | None]":
        """Stores ``value`` if the item is the one that `gets` returned.

        Outcome: True; False if the item changed since, or the connection
        to its server was lost or fell silent since (fetch again); None if it is gone. A
        plain int as ``cas_unique`` is sent as it is: after a restart of
        the server it may match an item that it never belonged to.
        """
        wire, pool = self._locate(key)
        check_integer("cas_unique", cas_unique, 0, _BIGGEST)
        request = self._storage_request(b"cas", wire, value, exptime)
        if outdated(cas_unique, pool):
            return self._settle(False, how)
        request = request._replace(cas_unique=cas_unique)
        return self._submit(pool, request, stored, how)

    def set_multi(
        self, mapping: Mapping[Any, Any], exptime: Any = 0, **how: "Unpack[How]"
    ) -> "asyncio.Future[FailedKeys[Any]]":
        """Stores many values.

        Outcome: a list of the keys (the caller's own objects) that could
        not be stored, empty if all were; its ``errors`` maps a server that
        failed to its error.
        """
        if not isinstance(mapping, Mapping):
            raise TypeError(f"mapping must be a mapping, not {type(mapping).__name__}")
        parts = []
        for key, value in mapping.items():
            wire, pool = self._locate(key)
            parts.append((key, pool, self._storage_request(b"set", wire, value, exptime)))
        return self._write_many(parts, how)

    def delete_multi(
        self, keys: Iterable[Any], **how: "Unpack[How]"
    ) -> "asyncio.Future[FailedKeys[Any]]":
        """Deletes many keys. Outcome: as `set_multi`, the keys that could not be reached.

        A key that was not there has been reached.
        """
        parts, seen = [], set()
        for key in listed("keys", keys):
            wire, pool = self._locate(key)
            if (wire, pool) not in seen:
                seen.add((wire, pool))
                parts.append((key, pool, Request(b"delete", (wire,))))
        return self._write_many(parts, how)

    def _write_many(
        self, parts: "list[tuple[Any, Pool, Request]]", how: Any
    ) -> "asyncio.Future[Any]":
        result: FailedKeys[Any] = FailedKeys()

        def take(key: Any, reply: Any, good: bool) -> None:
            if not good or reply.status == b"NOT_STORED":
                result.append(key)

        return self._submit_many(
            ((pool, request, partial(take, key)) for key, pool, request in parts),
            result,
            how,
            whole=False,
        )

    # -- the rest

    def delete(self, key: Key, **how: "Unpack[How]") -> "asyncio.Future[bool]":
        """Deletes the item (protocol.txt, "Deletion"). Outcome: False if it was not there."""
        wire, pool = self._locate(key)
        return self._submit(pool, Request(b"delete", (wire,)), reached, how)

    def touch(self, key: Key, exptime: Any, **how: "Unpack[How]") -> "asyncio.Future[bool]":
        """Sets the exptime of the item. Outcome: False if it was not there."""
        wire, pool = self._locate(key)
        request = Request(b"touch", (wire,), exptime=wire_exptime(exptime, time.time))
        return self._submit(pool, request, reached, how)

    def incr(self, key: Key, delta: int = 1, **how: "Unpack[How]") -> "asyncio.Future[int | None]":
        """Adds ``delta`` (0 to 2^64-1) to a stored number, wrapping at 2^64.

        Outcome: the new number, None on a miss; `.ClientError` if the
        value is no number (protocol.txt, "Increment/Decrement"). Store
        the number to begin with as an int, not as a str: memcached pads
        what gets shorter, and ``"10"`` less 1 would be read as ``"9 "``.
        """
        return self._count(b"incr", key, delta, how)

    def decr(self, key: Key, delta: int = 1, **how: "Unpack[How]") -> "asyncio.Future[int | None]":
        """Subtracts ``delta`` from a stored number, stopping at 0. Outcome: as `incr`."""
        return self._count(b"decr", key, delta, how)

    def _count(self, verb: bytes, key: Key, delta: int, how: Any) -> "asyncio.Future[Any]":
        wire, pool = self._locate(key)
        check_integer("delta", delta, 0, _BIGGEST)
        return self._submit(pool, Request(verb, (wire,), delta=delta), number, how)

    def flush_all(
        self, delay: int = 0, **how: "Unpack[How]"
    ) -> "asyncio.Future[MultiResult[str, bool]]":
        """Invalidates every item of every server, after ``delay`` seconds.

        Outcome: a dict of server to True, with ``errors``; it fails if
        every server failed.
        """
        check_integer("delay", delay, 0, (1 << 31) - 1)
        moment = wire_exptime(delay, time.time, "delay")
        return self._ask_all(Request(b"flush_all", exptime=moment), reached, how)

    def stats(
        self, argument: str | None = None, **how: "Unpack[How]"
    ) -> "asyncio.Future[MultiResult[str, dict[str, str]]]":
        """Asks every server for its statistics (protocol.txt, "Statistics").

        ``argument`` is what stands behind ``stats``, as ``"items"``.
        Outcome: a dict of server to its dict, with ``errors``.
        """
        word = b""
        if argument is not None:
            if not isinstance(argument, str):
                raise TypeError(f"argument must be a str, not {type(argument).__name__}")
            if not argument.isascii() or not argument.isprintable() or len(argument) > 250:
                raise InvalidRequest("argument must be printable ASCII of at most 250 bytes")
            word = b" ".join(argument.encode().split())
        return self._ask_all(Request(b"stats", argument=word), lambda reply: reply.stats, how)

    def version(self, **how: "Unpack[How]") -> "asyncio.Future[MultiResult[str, str]]":
        """Asks every server for its version. Outcome: a dict of server to str, with ``errors``."""
        return self._ask_all(Request(b"version"), version, how)

    def _ask_all(
        self, request: Request, outcome: Callable[[Reply], Any], how: Any
    ) -> "asyncio.Future[Any]":
        result: MultiResult[str, Any] = MultiResult()

        def take(name: str, reply: Any, good: bool) -> None:
            if good:
                result[name] = outcome(reply)

        return self._submit_many(
            ((pool, request, partial(take, pool.name)) for pool in self._all_pools()),
            result,
            how,
            whole=True,
        )


def chunks(wires: Collection[bytes]) -> list[tuple[bytes, ...]]:
    """Returns ``wires`` in parts that fit in one line each."""
    if len(wires) <= KEYS_A_LINE and sum(map(len, wires)) + len(wires) <= LINE_BYTES - 16:
        return [tuple(wires)]
    chunks: list[list[bytes]] = []
    room = 0
    for wire in wires:
        if room <= len(wire) or len(chunks[-1]) >= KEYS_A_LINE:
            chunks.append([])
            room = LINE_BYTES - 16
        room -= len(wire) + 1
        chunks[-1].append(wire)
    return [tuple(chunk) for chunk in chunks]
