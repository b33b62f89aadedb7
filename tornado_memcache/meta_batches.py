r"""The slot of a quiet batch: many meta commands of one kind, closed by ``mn``.

Knows what protocol.txt says of the flag ``q``: of such a command only the
replies come that are not the usual ones, each with the opaque of its request,
and ``MN`` is behind all of them. It must not know a socket, a loop, or who
waits.

An error line bears no opaque. It is the answer to one of the requests between
those whose replies stand before and behind it: of these nothing is known. The
connection goes on, for what is sent in batches announces no block.
"""

from collections.abc import Callable
from typing import Any

from .errors import MemcacheError, ProtocolError
from .meta import in_base64
from .meta_slots import UNKNOWN, MetaSlot, unknown_flag
from .protocol import OwedReplies, Reply, Request, Waiter, read_number
from .refusals import refusal
from .text import line_of

#: At most this many commands are one batch.
BATCH = 100
#: With what the flags of a batch begin, and those of no other request.
QUIET = b"q"


class BatchReply(Reply):
    """What a batch came to: the ``replies`` that came, by key, and the first ``error``.

    ``unknown`` are the keys of which one at least has failed, and it is not
    told which.
    """

    replies: dict[bytes, Reply]
    unknown: frozenset[bytes]
    error: MemcacheError | None


class BatchSlot(MetaSlot):
    """A slot of one quiet batch; its request has all the keys."""

    __slots__ = ("_error", "_failures", "_last", "_number", "_replies", "_suspect", "_unknown")

    def __init__(
        self,
        request: Request,
        waiter: Waiter | None,
        outcome: Callable[[Reply], Any] | None,
        deadline: float,
    ) -> None:
        super().__init__(request, waiter, outcome, deadline)
        self._replies: dict[bytes, Reply] = {}
        self._unknown: set[bytes] = set()
        self._error: MemcacheError | None = None
        #: The number of the last command that was answered; `_suspect`: an error came since.
        self._last = self._number = -1
        self._suspect = False
        self._failures = 0

    def encode(self) -> list[bytes]:
        # mg|md <key> q <flags>* O<number>\r\n   ...   mn\r\n
        verb, argument = self.request.verb, self.request.argument
        keys = map(in_base64, self.keys) if b"b" in self.flags else self.keys
        lines = [line_of((verb, key, argument, b"O%d" % at)) for at, key in enumerate(keys)]
        return [b"".join((*lines, line_of((b"mn",))))]

    def begun(self) -> bool:
        return self._last >= 0 or self._error is not None

    def read(self, data: bytes, position: int, protocol: OwedReplies) -> int:
        end = protocol.find_line(data, position)
        if end < 0:
            return position
        line = data[position:end]
        status, text = line[:2], line[3:]
        if line == b"MN":
            self._pass(len(self.keys))
            self.reply = self._whole()
        elif status in self.statuses and line[2:3] == b" ":
            if status == b"VA":
                return self._read_value(data, position, end, protocol)
            self._check(status, text)
            self._take_reply(Reply(status, text=text))
        else:
            self._take_error(line, protocol)
        return end + 2

    def _whole(self) -> BatchReply:
        reply = BatchReply(b"MN")
        reply.replies, reply.error = self._replies, self._error
        reply.unknown = frozenset(self._unknown)
        return reply

    def _take_value(self, text: bytes, block: bytes) -> None:
        self._take_reply(Reply(b"VA", text=text, value=block))

    def _take_reply(self, reply: Reply) -> None:
        self._pass(self._number)
        self._last = self._number
        self._replies[self.keys[self._last]] = reply

    def _expected(self, returned: dict[bytes, bytes]) -> bytes:
        """Finds out which command is answered; they are, in their order."""
        if b"O" not in returned:
            self._broken("a reply without an opaque in a quiet batch")
        number = read_number(returned[b"O"], 32, "an opaque")
        if not self._last < number < len(self.keys):
            self._broken("an opaque that is not one of the requests that are left")
        self._number = number
        return self.keys[number]

    def _pass(self, number: int) -> None:
        """Notes that the commands before ``number`` are answered, or were nothing to tell."""
        if self._suspect:
            self._unknown.update(self.keys[self._last + 1 : number])
            self._suspect = False

    def _take_error(self, line: bytes, protocol: OwedReplies) -> None:
        error = refusal(self, line, protocol)
        self._failures += 1
        if self._failures > len(self.keys):
            raise ProtocolError(f"{self.asked()}: the server sent more errors than it was asked")
        error = unknown_flag(self, error) if line in UNKNOWN else error
        self._error = self._error or self._signed(error)
        self._suspect = True
