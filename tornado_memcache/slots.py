r"""The slots of the text dialect: how each reply is read, and to whom it goes.

Knows the grammar of replies (protocol.txt, quoted above the code that
reads it) and that waiters have outcomes. It must not know a socket, a
loop, or who waits.
"""

from collections.abc import Callable
from typing import Any

from .errors import ClientError, MemcacheError, ProtocolError, shown
from .meta_batches import QUIET, BatchSlot
from .meta_slots import MetaSlot
from .protocol import (
    STREAMED_BLOCK,
    Item,
    OwedReplies,
    Reply,
    Request,
    Slot,
    Waiter,
    read_number,
)
from .refusals import refusal
from .text import (
    MAX_STATS,
    MAX_STATS_BYTES,
    VERBS,
    config_length,
    encode_request,
    headers,
)

#: Makes an `.Item` of a tuple, without a Python function on the way (`Item._make` is one).
_new = tuple.__new__


class TextSlot(Slot):
    """A slot of the text dialect whose reply is one line, or lines up to ``END``."""

    __slots__ = ("_block", "_bytes", "_lines", "_stats", "verb")

    def __init__(
        self,
        request: Request,
        waiter: Waiter | None,
        outcome: Callable[[Reply], Any] | None,
        deadline: float,
    ) -> None:
        super().__init__(request, waiter, outcome, deadline)
        self.verb = VERBS[request.verb]
        self._lines = self._bytes = 0
        self._stats: dict[str, str] | None = None
        self._block: bytes | None = None

    @property
    def writes(self) -> bool:  # type: ignore[override]
        return self.verb.writes

    @property
    def idempotent(self) -> bool:  # type: ignore[override]
        return self.verb.idempotent

    def encode(self) -> list[bytes]:
        return encode_request(self.request)

    def begun(self) -> bool:
        return bool(self._stats) or self._block is not None

    def read(self, data: bytes, position: int, protocol: OwedReplies) -> int:
        end = protocol.find_line(data, position)
        if end < 0:
            return position
        line = data[position:end]
        if line in self.verb.statuses:
            self.reply = Reply(line)
        elif self.verb.shape == "count" and line.rstrip(b" ").isdigit():
            self.reply = Reply(b"NUMBER", number=read_number(line.rstrip(b" "), 64, "number"))
        elif self.verb.shape == "version" and line.startswith(b"VERSION "):
            self.reply = Reply(b"VERSION", text=line[8:])
        elif self.verb.shape == "stats" and self._read_stat(line):
            pass
        elif self._block is not None and line == b"END":
            self.reply = Reply(b"CONFIG", text=self._block)
        elif self._block is None and self.verb.shape == "config" and line.startswith(b"CONFIG "):
            return self._read_config(data, position, end)
        else:
            self.reply = self._error(line, protocol)
        return end + 2

    def _read_config(self, data: bytes, position: int, end: int) -> int:
        # CONFIG <name> <flags> <bytes>\r\n<data block>\r\nEND\r\n
        stop = end + 2 + config_length(data[position:end])
        if stop + 2 > len(data):
            return position
        if data[stop : stop + 2] != b"\r\n":
            raise ProtocolError(f"{self.asked()}: a data block does not end with CRLF")
        self._block = data[end + 2 : stop]
        return stop + 2

    def _read_stat(self, line: bytes) -> bool:
        # STAT <name> <value>\r\n   ...   END\r\n
        # "stats cachedump": ITEM   "stats detail dump": PREFIX
        # "stats reset": RESET\r\n   "stats detail on": OK\r\n
        if self._stats is None:
            self._stats = {}
        if line == b"END" or (not self._lines and self._settles(line)):
            self.reply = Reply(line, stats=self._stats)
            return True
        if not line.startswith((b"STAT ", b"ITEM ", b"PREFIX ")):
            return False
        self._lines += 1
        self._bytes += len(line)
        if self._lines > MAX_STATS or self._bytes > MAX_STATS_BYTES:
            raise ProtocolError(
                f"{self.asked()}: the server sent over {MAX_STATS} lines or {MAX_STATS_BYTES} bytes"
            )
        name, _, value = line.partition(b" ")[2].decode("utf-8", "replace").partition(" ")
        self._stats[name] = value
        return True

    def _settles(self, line: bytes) -> bool:
        """True for the answer to what ``stats`` can also be asked to do."""
        return line == b"RESET" or (line == b"OK" and self.request.argument.startswith(b"detail o"))

    def _error(self, line: bytes, protocol: OwedReplies) -> MemcacheError:
        """Reads a line that is no good answer; see "What a reply does to its connection"."""
        error = refusal(self, line, protocol)
        if isinstance(error, ClientError) and self.verb.shape == "storage":
            # memcached answers such a request twice: once for the line,
            # once for the block that it then takes for a command.
            protocol.failure = ProtocolError(
                f"{self.asked()}: the connection is out of step after an error"
            )
        elif self.begun():
            protocol.failure = ProtocolError(f"{self.asked()}: an error in the middle of its lines")
        return error


class RetrievalSlot(Slot):
    """A slot whose reply is items: get, gets, gat, gats of one or many keys.

    ``items`` stands beside ``keys``: what makes an `.Item`, or None for a
    miss.
    """

    __slots__ = ("_index", "_header", "items")

    def __init__(
        self,
        request: Request,
        waiter: Waiter | None,
        outcome: Callable[[Reply], Any] | None,
        deadline: float,
    ) -> None:
        super().__init__(request, waiter, outcome, deadline)
        self.items: list[tuple[bytes, int, int | None] | None] = [None] * len(request.keys)
        self._index = 0
        self._header: tuple[int, int | None] = (0, None)

    @property
    def writes(self) -> bool:  # type: ignore[override]
        return VERBS[self.request.verb].writes

    @property
    def idempotent(self) -> bool:  # type: ignore[override]
        return VERBS[self.request.verb].idempotent

    def encode(self) -> list[bytes]:
        return encode_request(self.request)

    def begun(self) -> bool:
        return self._index > 0

    def read(self, data: bytes, position: int, protocol: OwedReplies) -> int:
        # VALUE <key> <flags> <bytes> [<cas unique>]\r\n<data block>\r\n ... END\r\n
        items, keys, size, find = self.items, self.keys, len(data), data.find
        limit, index, count = protocol.max_value_size, self._index, len(keys)
        without_cas = not self._wants_cas()
        while True:
            end = find(b"\r\n", position)
            if end < 0 or data[position : position + 6] != b"VALUE ":
                self._index = index
                return self._read_line(data, position, protocol)
            # The next key of the request nearly always; else one of the others.
            if (
                index < count
                and items[index] is None
                and data.startswith(keys[index], position + 6)
            ):
                stop = position + 6 + len(keys[index])
            else:
                stop = -1
            if stop < 0 or data[stop] != 32:
                stop, index = self._match(data, position + 6, end, index)
            flags, length, cas_unique = headers[data[stop:end]]
            if length > limit or (cas_unique is None) is not without_cas:
                raise self._bad_item(data[position:end], length, limit)
            start = end + 2
            stop = start + length
            if stop + 2 > size:
                self._index = index
                if length <= STREAMED_BLOCK:
                    return position
                self._header = (flags, cas_unique)
                protocol.stream_block(length, memoryview(data)[start:], self._read_block)
                return size
            if data[stop] != 13 or data[stop + 1] != 10:
                raise ProtocolError(f"{self.asked()}: a data block does not end with CRLF")
            items[index] = (data[start:stop], flags, cas_unique)
            index += 1
            position = stop + 2

    def _match(self, data: bytes, position: int, end: int, index: int) -> tuple[int, int]:
        """Returns where the key at ``position`` ends, and its index among ours.

        memcached answers in the order of the request and leaves misses
        out, so the key is looked for from ``index`` on, and then from the
        begin: a proxy answers server by server. A key that was not asked,
        or was answered already, is a `.ProtocolError`.
        """
        stop = data.find(b" ", position, end)
        if stop > 0:
            key, keys = data[position:stop], self.keys
            for found in (*range(index, len(keys)), *range(index)):
                if keys[found] == key and self.items[found] is None:
                    return stop, found
        raise self._bad_item(data[position - 6 : end])

    def _wants_cas(self) -> bool:
        return self.request.verb in (b"gets", b"gats")

    def _bad_item(self, line: bytes, length: int = 0, limit: int = 0) -> ProtocolError:
        if length > limit:
            told = f"an item of {length} bytes, max_value_size is {limit}"
            return ProtocolError(f"{self.asked()}: the server sent {told}")
        key = line[6:].partition(b" ")[0]
        return ProtocolError(
            f"{self.asked()}: the server sent the item {shown(key)}, which was not asked for"
        )

    def _read_line(self, data: bytes, position: int, protocol: OwedReplies) -> int:
        """Reads what is no VALUE line: the END, an error, or less than a line."""
        end = protocol.find_line(data, position)
        if end < 0:
            return position
        line = data[position:end]
        if line == b"END":
            self._end()
        else:
            self.reply = refusal(self, line, protocol)
            if self._index:
                protocol.failure = ProtocolError(
                    f"{self.asked()}: an error in the middle of its items"
                )
        return end + 2

    def _end(self) -> None:
        hits = {
            key: _new(Item, item) for key, item in zip(self.keys, self.items) if item is not None
        }
        self.reply = Reply(b"END", hits)

    def _read_block(self, block: bytes) -> None:
        flags, cas_unique = self._header
        self.items[self._index] = (block, flags, cas_unique)
        self._index += 1


def slot_for(
    request: Request,
    waiter: Waiter | None,
    outcome: Callable[[Reply], Any],
    deadline: float,
) -> Slot:
    """Returns the slot of this dialect for ``request``."""
    shape = VERBS[request.verb].shape
    if shape == "meta":
        kind = BatchSlot if request.argument.startswith(QUIET) else MetaSlot
        return kind(request, waiter, outcome, deadline)
    kind_of_text = RetrievalSlot if shape == "retrieval" else TextSlot
    return kind_of_text(request, waiter, outcome, deadline)
