"""The gets of a proxy: from keys to lines to servers, and from replies to bytes for a client.

What clients ask for in one turn of the loop leaves as one line to each
server, and items pass as the bytes that they came in: of a value only the
line above it is read. That is what a proxy spends its time with: with a
request and an `.Item` for each key it was less than half as fast.

This file knows the pools of a client and retrievals. It must not know other
verbs, who is connected, or what a failure is told as.
"""

import asyncio
from collections.abc import Callable, Sequence
from contextvars import Context
from itertools import islice
from typing import Any

from . import deadlines
from .arguments import key_bytes
from .client import Client
from .deadlines import Deadlines
from .errors import MemcacheError, ProtocolError
from .guest import Prompt
from .pool import Pool
from .protocol import STREAMED_BLOCK, OwedReplies, Reply, Request, Slot, fail
from .slots import RetrievalSlot
from .text import KEYS_A_LINE, LINE_BYTES, headers, line_of

#: For so many keys it is remembered which server has them.
PLACES_KEPT = 20_000
END = b"END\r\n"


class Wanted(Prompt):
    """One request of a client: its keys, and the bytes that answer it when they have come."""

    __slots__ = ("keys", "found", "missing", "error")

    def __init__(self, keys: Sequence[bytes], loop: asyncio.AbstractEventLoop) -> None:
        super().__init__(loop)
        self.keys = keys
        #: Items by key, once there is more than one part.
        self.found: dict[bytes, bytes | None] | None = None
        self.missing = 0
        self.error: MemcacheError | None = None

    def part_ended(self) -> None:
        """Answers the request with the last of its parts."""
        self.missing -= 1
        if self.missing or self.done():
            return
        if self.error is not None:
            fail(self, self.error)
            return
        found = self.found or {}
        items = [found[key] for key in self.keys if found.get(key) is not None]
        self.set_result(b"".join([*items, END]))  # type: ignore[list-item]


class Line:
    """A line to one server while it is gathered, and then the waiter of its reply."""

    __slots__ = ("keys", "size", "shares", "take_failure")

    def __init__(self, take_failure: Callable[[MemcacheError], MemcacheError | None]) -> None:
        self.keys: list[bytes] = []
        self.size = 0
        #: Who wants how many of the keys, in their order.
        self.shares: list[tuple[Wanted, int]] = []
        self.take_failure = take_failure

    def done(self) -> bool:
        return all(wanted.done() for wanted, _ in self.shares)

    def exception(self) -> None:
        return None

    def set_result(self, items: list[bytes | None]) -> None:
        start = 0
        for wanted, count in self.shares:
            stop = start + count
            if wanted.found is None:  # (all that it wants stands here, in its order)
                if not wanted.done():
                    wanted.set_result(b"".join(filter(None, items[start:stop])) + END)
            else:
                wanted.found.update(zip(islice(self.keys, start, stop), items[start:stop]))
                wanted.part_ended()
            start = stop

    def set_exception(self, error: MemcacheError) -> None:
        for wanted, _ in self.shares:
            told = self.take_failure(error.twin())
            if wanted.found is not None:
                wanted.error = wanted.error or told
                wanted.part_ended()
            elif not wanted.done():
                if told is None:
                    wanted.set_result(END)
                else:
                    fail(wanted, told)


class RelaySlot(RetrievalSlot):
    """A slot whose items are the bytes that came, each from its VALUE to its last CRLF."""

    __slots__ = ("_start", "weight")

    waiter: Line | None
    items: list[bytes | None]  # type: ignore[assignment]
    weight: int

    def __init__(self, request: Request, line: Line, deadline: float) -> None:
        Slot.__init__(self, request, line, None, deadline)
        self.weight = len(request.keys)
        self.items = [None] * self.weight
        self._index = 0

    def abandoned(self) -> bool:
        line = self.waiter
        return line is None or (line.shares[0][0].done() and line.done())

    def encode(self) -> list[bytes]:
        # get <key>*\r\n
        return [line_of([self.request.verb, *self.request.keys])]

    def read(self, data: bytes, position: int, protocol: OwedReplies) -> int:
        # VALUE <key> <flags> <bytes> [<cas unique>]\r\n<data block>\r\n ... END\r\n
        items, keys, size, find = self.items, self.request.keys, len(data), data.find
        limit, index, count = protocol.max_value_size, self._index, len(keys)
        without_cas = self.request.verb == b"get"
        while True:
            end = find(b"\r\n", position)
            if end < 0 or not data.startswith(b"VALUE ", position):
                if data.startswith(END, position):
                    self.reply = _WHOLE
                    return end + 2
                self._index = index
                return self._read_line(data, position, protocol)
            # The next key of the request nearly always; else one of the others.
            stop = -1
            if index < count and data.startswith(key := keys[index], position + 6):
                stop = position + 6 + len(key)
            if stop < 0 or data[stop] != 32 or items[index] is not None:
                stop, index = self._match(data, position + 6, end, index)
            _, length, cas_unique = headers[data[stop:end]]
            if length > limit or (cas_unique is None) is not without_cas:
                raise self._bad_item(data[position:end], length, limit)
            stop = end + 2 + length
            if stop + 2 > size:
                self._index = index
                if length <= STREAMED_BLOCK:
                    return position
                self._start = data[position : end + 2]
                protocol.stream_block(length, memoryview(data)[end + 2 :], self._read_block)
                return size
            if data[stop] != 13 or data[stop + 1] != 10:
                raise ProtocolError(f"{self.asked()}: a data block does not end with CRLF")
            items[index] = data[position : stop + 2]
            index += 1
            position = stop + 2

    def _read_block(self, block: bytes) -> None:
        self.items[self._index] = b"%b%b\r\n" % (self._start, block)
        self._index += 1

    def _end(self) -> None:
        self.reply = _WHOLE

    def deliver(self) -> None:
        waiter, self.waiter = self.waiter, None
        if waiter is None:
            return
        if isinstance(self.reply, MemcacheError):
            waiter.set_exception(self._signed(self.reply))
        else:
            waiter.set_result(self.items)

    def waiters_left(self) -> int:
        return 0 if self.waiter is None else sum(not w.done() for w, _ in self.waiter.shares)


_WHOLE = Reply(b"END")


class Relay:
    """The gets and gets of one client's servers.

    ``take_failure(error)`` is told of each request that failed, or a part
    of it; it returns the error that answers it, None for misses. Lines
    leave after this turn of the loop; one that is ``told`` by `leave` what
    came alone has that leave at once.
    """

    def __init__(
        self,
        client: Client,
        take_failure: Callable[[MemcacheError], MemcacheError | None],
        *,
        told: bool = False,
    ) -> None:
        self.client = client
        self._cluster = client._cluster
        self._take_failure = take_failure
        self._told = told
        self._scheduled = False
        self._watched_by: Deadlines | None = None
        self._last_deadline = 0.0
        self._lines: dict[tuple[bytes, Pool], Line] = {}
        self._places: dict[bytes, int] = {}
        self._ring: Any = None

    def retrieve(self, verb: bytes, keys: Sequence[bytes]) -> "asyncio.Future[bytes]":
        """Asks for ``keys`` with ``verb``, get or gets; returns the future of the whole reply.

        Raises `.InvalidKey`.
        """
        cluster = self._cluster
        loop = cluster.ready()
        if cluster._ring is not self._ring:
            self._ring = cluster._ring
            self._places.clear()
        # (the ways of all keys by one call each: a proxy does little else)
        indexes: list[Any] = list(map(self._places.get, keys))
        if None in indexes:
            indexes = list(map(self._place, keys))
        wanted = Wanted(keys, loop)
        if cluster.only is not None:
            self._add(verb, cluster.only, keys, wanted)
            return wanted
        if len(keys) == 1 and not (pool := cluster.pools[indexes[0]]).health.dead:
            self._add(verb, pool, keys, wanted)
            return wanted
        parts: list[list[bytes]] = [[] for _ in cluster.servers]
        for key, index in zip(keys, indexes):
            parts[index].append(key)
        asked = [(pool, part) for pool, part in zip(cluster.pools, parts) if part]
        if any(pool.health.dead for pool, _ in asked):
            asked = self._elsewhere(asked)
        if len(asked) > 1:
            wanted.found = {}
        for pool, part in asked:
            self._add(verb, pool, part, wanted)
        return wanted

    def _place(self, key: bytes) -> int:
        """Checks a key that is new, and remembers which server it belongs to."""
        index = self._places.get(key)
        if index is None:
            key_bytes(key)
            if len(self._places) >= PLACES_KEPT:
                self._places.clear()
            index = 0 if self._cluster.only is not None else self._cluster._ring.place(key)
            self._places[key] = index
        return index

    def _elsewhere(self, asked: list[tuple[Pool, list[bytes]]]) -> list[tuple[Pool, list[bytes]]]:
        """Returns who is asked for what while a server is dead: its keys go one by one."""
        found: dict[Pool, list[bytes]] = {}
        for pool, part in asked:
            for key in part:
                now = self._cluster.pool_for(key) if pool.health.dead else pool
                found.setdefault(now, []).append(key)
        return list(found.items())

    def _add(self, verb: bytes, pool: Pool, keys: Sequence[bytes], wanted: Wanted) -> None:
        count, size = len(keys), sum(map(len, keys)) + len(keys)
        if (count > KEYS_A_LINE or size > LINE_BYTES) and count > 1:
            if wanted.found is None:
                wanted.found = {}
            for part in (keys[: count // 2], keys[count // 2 :]):
                self._add(verb, pool, part, wanted)
            return
        line = self._lines.get((verb, pool))
        if line is not None and (
            len(line.keys) + count > KEYS_A_LINE or line.size + size > LINE_BYTES
        ):
            del self._lines[verb, pool]
            self._send(verb, pool, line)
            line = None
        if line is None:
            if not self._told:
                self._schedule()
            line = self._lines[verb, pool] = Line(self._take_failure)
        line.keys += keys
        line.size += size
        line.shares.append((wanted, count))
        wanted.missing += 1

    def leave(self, at_once: bool) -> None:
        """Has what was gathered leave; ``at_once`` where the server has nothing else to do.

        What has to wait leaves after this turn of the loop, with what comes until then.
        """
        if at_once and not self._scheduled:
            for (verb, pool), line in list(self._lines.items()):
                connection = pool.usable
                if connection is not None and connection.idle:
                    del self._lines[verb, pool]
                    self._send(verb, pool, line)
        if self._lines:
            self._schedule()

    def _schedule(self) -> None:
        if not self._scheduled:
            self._scheduled = True
            loop = self._cluster.loop
            assert loop is not None
            loop.call_soon(self._flush_scheduled, context=Context())

    def _flush_scheduled(self) -> None:
        self._scheduled = False
        self.flush()

    def flush(self) -> None:
        """Sends what was gathered: before a write, and after this turn of the loop."""
        lines, self._lines = self._lines, {}
        for (verb, pool), line in lines.items():
            self._send(verb, pool, line)

    def _send(self, verb: bytes, pool: Pool, line: Line) -> None:
        deadline = deadlines.clock() + self.client._settings.request_timeout
        self._last_deadline = deadline
        if self._watched_by is not self._cluster.deadlines:
            self._be_watched()
        slot: Any = RelaySlot(Request(verb, tuple(line.keys)), line, deadline)
        pool.submit(slot)

    # -- a lane of deadlines: while there are requests, one timeout stands for all of them, and
    # is not set and removed again for each

    def _be_watched(self) -> None:
        register = self._cluster.deadlines
        if register is not None and not self._cluster.closed:
            self._watched_by = register
            register.watch(self, self._last_deadline)

    def next_deadline(self) -> float:
        return self._last_deadline

    def catch_up(self) -> None:
        """Nothing is owed here: its slots stand in the lanes of connections."""

    def expire(self, now: float) -> None:
        """Nothing was asked for as long as an answer may take."""
        watched_by, self._watched_by = self._watched_by, None
        if watched_by is not None:
            watched_by.leave(self)
