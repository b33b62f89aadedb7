"""The gets of one loop tick that leave as one line, and who waits for which key of it.

Knows that each key has a waiter, or several, and that each of them gets its
own outcome. It must not know how a reply is read, a socket, or a loop.
"""

from collections.abc import Callable, Sequence
from typing import Any

from .errors import ConnectionFailed, MemcacheError, Timeout, shown
from .protocol import Reply, Request, Slot, Waiter, fail, outlives
from .slots import RetrievalSlot
from .text import line_of

#: This many gathered gets leave at once when nothing is under way, so that
#: the server works while the rest of the tick is still gathering.
FIRST_KEYS = 16


class GatheredSlot(RetrievalSlot):
    """The gets of one loop tick for one server, which leave as one line.

    ``waiting`` maps each key to its waiter, or to a list of them where
    several callers ask for the same key. ``decode(key, value, flags)``
    makes the outcome of a hit; values with ``raw_flags`` need none.
    """

    __slots__ = ("waiting", "decode", "raw_flags", "_keys", "shared")

    writes = False
    idempotent = True

    def __init__(
        self,
        decode: Callable[[bytes, bytes, int], Any],
        raw_flags: int | None,
        deadline: float,
    ) -> None:
        Slot.__init__(self, _GATHERED, None, None, deadline)
        self.waiting: dict[bytes, Any] = {}
        self.decode = decode
        self.raw_flags = raw_flags
        self._index = 0
        self._header = (0, None)
        self._keys: Sequence[bytes] | None = None
        self.shared = 0

    @property
    def keys(self) -> Sequence[bytes]:
        if self._keys is None:
            return list(self.waiting)
        return self._keys

    @property
    def weight(self) -> int:
        return len(self.keys) + self.shared

    def share(self, key: bytes, waiter: Waiter) -> None:
        """Has ``waiter`` answered together with the one that asked for ``key`` first."""
        first = self.waiting[key]
        if type(first) is list:
            first.append(waiter)
        else:
            self.waiting[key] = [first, waiter]
        self.shared += 1

    def encode(self) -> list[bytes]:
        self._keys = keys = list(self.waiting)
        self.items = [None] * len(keys)
        return [line_of([b"get", *keys])]

    def asked(self) -> str:
        return Request(b"get", tuple(self.keys)).asked()

    def abandoned(self) -> bool:
        # Asking each of a hundred waiters would cost more than the keys do.
        return not self.waiting

    def _waiters(self) -> list[tuple[bytes, Any]]:
        """Returns everybody who waits here, each with the key that was asked for."""
        return [
            (key, one)
            for key, waiter in self.waiting.items()
            for one in (waiter if type(waiter) is list else (waiter,))
        ]

    def awaited(self) -> bool:
        return any(not one.done() for _, one in self._waiters())

    def waiters_left(self) -> int:
        return sum(not one.done() for _, one in self._waiters())

    def halves(self) -> list["GatheredSlot"]:
        """Returns two slots that share out what waits here, for a line that is too long."""
        pairs = list(self.waiting.items())
        halves = []
        for part in (pairs[: len(pairs) // 2], pairs[len(pairs) // 2 :]):
            half = GatheredSlot(self.decode, self.raw_flags, self.deadline)
            half.waiting = dict(part)
            half.lost_at = self.lost_at
            half.shared = sum(len(one) - 1 for _, one in part if type(one) is list)
            for _, one in half._waiters():
                if getattr(one, "work", None) is self:
                    one.work = half  # (a call that ends early asks its slot where it stands)
            halves.append(half)
        return halves

    def _end(self) -> None:
        self.reply = _GATHERED_END

    def deliver(self) -> None:
        if isinstance(self.reply, MemcacheError):
            self.fail(self._signed(self.reply))
            return
        waiting, self.waiting = self.waiting, {}
        raw_flags = self.raw_flags
        for (key, waiter), item in zip(waiting.items(), self.items):
            if waiter.__class__ is list:
                for one in waiter:
                    self._deliver_to(one, key, item)
            elif item is not None and item[1] == raw_flags:
                # The case of nearly all calls, without another call of ours.
                if not waiter.done():
                    waiter.set_result(item[0])
            else:
                self._deliver_to(waiter, key, item)

    def _deliver_to(self, waiter: Any, key: bytes, item: Any) -> None:
        if waiter.done():
            return
        if item is None:
            waiter.set_result(getattr(waiter, "default", None))
            return
        value, flags, _ = item
        try:
            result = value if flags == self.raw_flags else self.decode(key, value, flags)
        except MemcacheError as error:
            fail(waiter, self._signed(error))
        else:
            waiter.set_result(result)

    def fail(self, error: MemcacheError) -> None:
        waiters = self._waiters()
        self.waiting, self._keys = {}, self.keys
        for key, one in waiters:
            fail(one, self._of_one(error, key))

    def awaited_until(self, now: float) -> float:
        return max((outlives(one, now) for _, one in self._waiters()), default=0.0)

    def expire(self, error: MemcacheError, now: float) -> float:
        longest = 0.0
        for key, one in self._waiters():
            until = outlives(one, now)
            longest = max(longest, until)
            if not until:
                fail(one, self._of_one(error, key))
        if not longest:
            self.waiting, self._keys = {}, self.keys
        return longest

    @staticmethod
    def _of_one(error: MemcacheError, key: bytes) -> MemcacheError:
        """Returns the failure of the line as that of one caller's get."""
        if isinstance(error, (ConnectionFailed, Timeout)):
            return error.of(f"get {shown(key)}", False)
        return error.twin()


_GATHERED = Request(b"get")
_GATHERED_END = Reply(b"END")
