"""What waits to be written on one connection, and how it becomes bytes.

Knows slots, the gets that are being gathered, and the order in which they
leave. It must not know a stream, a loop, or when to write.
"""

from collections import deque
from collections.abc import Callable
from typing import Any

from .gathered import GatheredSlot
from .protocol import Slot
from .text import LINE_BYTES

#: At most about this many bytes are taken at once; the rest can still be
#: withdrawn while the server does not read.
TAKEN_BYTES = 256 * 1024
#: So many of the longest keys always fit in a line.
_SURELY_FITS = LINE_BYTES // 256


class Outbox:
    """Slots in the order in which they were sent, and the open batch of gets behind them.

    The batch stands behind everything that is sent while it is open: a
    get that joins it cannot overtake a write. A write of a key that the
    batch asks for closes it, so that it leaves before the write.
    """

    __slots__ = ("batch", "silent", "unsent", "written")

    def __init__(self) -> None:
        #: (A list: a deque takes 700 bytes of a connection that has nothing to send.)
        self.unsent: list[Slot] = []
        self.batch: GatheredSlot | None = None
        #: Keys of noreply requests that no later reply has confirmed.
        self.silent: list[bytes] = []
        #: Noreply slots that were taken: they end when they are written.
        self.written: list[Slot] = []

    def __bool__(self) -> bool:
        return bool(self.unsent) or self.batch is not None

    def must_close_batch(self, slot: Slot) -> bool:
        """True if the open batch has to leave before ``slot``."""
        batch = self.batch
        if batch is None:
            return False
        keys = slot.keys
        return not keys or any(key in batch.waiting for key in keys)

    def open_batch(
        self,
        decode: Callable[[bytes, bytes, int], Any],
        raw_flags: int | None,
    ) -> GatheredSlot:
        self.batch = GatheredSlot(decode, raw_flags, 0.0)
        return self.batch

    def close_batch(self, deadline: float) -> list[GatheredSlot]:
        """Puts the open batch in the queue; returns it, in parts if its line is too long.

        Only now it is given its deadline.
        """
        batch, self.batch = self.batch, None
        if batch is None:
            return []
        batch.deadline = deadline
        parts = _fitting(batch)
        self.unsent.extend(parts)
        return parts

    def take(self, owed: deque[Slot]) -> tuple[list[bytes], int, list[Slot], list[Slot]]:
        """Moves slots to ``owed``; returns their bytes, how many, the slots, and the withdrawn.

        Withdrawn is what nobody waits for any more: a write that ended
        before its bytes left is never sent.
        """
        pieces: list[bytes] = []
        withdrawn: list[Slot] = []
        taken: list[Slot] = []
        size = count = 0
        for slot in self.unsent:
            if size >= TAKEN_BYTES:
                break
            count += 1
            if slot.abandoned():
                withdrawn.append(slot)
                continue
            slot.sent = True
            taken.append(slot)
            if slot.request.noreply:
                self.silent.extend(slot.keys)
                self.written.append(slot)
            else:
                if self.silent:
                    slot.confirms, self.silent = tuple(self.silent), []
                owed.append(slot)
            encoded = slot.encode()
            pieces += encoded
            size += sum(map(len, encoded)) if len(encoded) > 1 else len(encoded[0])
        del self.unsent[:count]
        return pieces, size, taken, withdrawn

    def put_back(self, taken: list[Slot], owed: deque[Slot]) -> None:
        """Undoes the last `take`, of which no byte left: nothing is owed for it."""
        for slot in reversed(taken):
            slot.sent = False
            (self.written if slot.request.noreply else owed).pop()
        self.unsent[:0] = taken

    def clear(self) -> tuple[list[Slot], list[Slot]]:
        """Empties it; returns the noreply requests that were written, and what was not."""
        written, unsent = self.written, self.unsent
        self.written, self.unsent = [], []
        return written, unsent


def _fitting(batch: GatheredSlot) -> list[GatheredSlot]:
    """Returns ``batch``, or halves of it until each line has at most `LINE_BYTES`."""
    count = len(batch.waiting)
    if count <= _SURELY_FITS or sum(map(len, batch.waiting)) + count + 5 <= LINE_BYTES:
        return [batch]
    return [part for half in batch.halves() for part in _fitting(half)]
