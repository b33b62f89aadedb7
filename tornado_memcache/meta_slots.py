r"""The slots of meta commands: how each reply is read, and compared with what was asked.

Knows the grammar of replies (protocol.txt, "Meta Commands", quoted above the
code that reads it). It must not know a socket, a loop, or who waits.
"""

from collections.abc import Callable
from typing import Any, NoReturn

from .errors import ClientError, MetaUnsupported, ProtocolError, ReplyError, cut
from .meta import FLAGS, OLDEST, flags_of, in_base64, is_key_of, read_returned
from .protocol import (
    STREAMED_BLOCK,
    OwedReplies,
    Reply,
    Request,
    Slot,
    Waiter,
    read_number,
)
from .refusals import refusal
from .text import VERBS, encode_request

#: The refusals of a ``ms`` whose block memcached swallows (measured: 1.6.18). After any other
#: it takes the block for commands.
_SWALLOWED = (b"CLIENT_ERROR invalid flag", b"CLIENT_ERROR opaque token too long")
#: What memcached says to a letter that came later: all that are sent are of the protocol.
UNKNOWN = (b"CLIENT_ERROR invalid flag", b"CLIENT_ERROR invalid or duplicate flag")
#: What a hit tells if it was asked.
_TOLD = frozenset((b"c", b"f", b"h", b"k", b"l", b"O", b"s", b"t"))
#: ... and what ``ms`` tells of it: 1.6.18 takes an s there and tells nothing.
_TOLD_OF_STORED = _TOLD - {b"s"}
#: 64 bits have so many digits.
_LONGEST_NUMBER = 20
#: With any of these a ``mg`` changes an item, as ``gat`` does.
_CHANGING = frozenset((b"E", b"N", b"R", b"T"))


def unknown_flag(slot: Slot, error: ReplyError) -> ReplyError:
    """Returns what the refusal of a flag means to a caller."""
    names = FLAGS[slot.request.verb]
    told = ", ".join(
        f"{cut((letter + token).decode('latin-1'))}: {names[letter].name}"
        for letter, token in flags_of(slot.request.argument).items()
    )
    outcome = MetaUnsupported(f"{slot.asked()}: the server is older than one of the flags {told}")
    outcome.__cause__ = error
    return outcome


class MetaSlot(Slot):
    """A slot of one meta command."""

    __slots__ = ("_text", "flags", "statuses")

    needs = OLDEST

    def __init__(
        self,
        request: Request,
        waiter: Waiter | None,
        outcome: Callable[[Reply], Any] | None,
        deadline: float,
    ) -> None:
        super().__init__(request, waiter, outcome, deadline)
        self.statuses = VERBS[request.verb].statuses
        #: What was asked: letter to token.
        self.flags = flags_of(request.argument)
        self._text = b""

    @property
    def writes(self) -> bool:  # type: ignore[override]
        verb = self.request.verb
        return VERBS[verb].writes or (verb == b"mg" and not _CHANGING.isdisjoint(self.flags))

    @property
    def idempotent(self) -> bool:  # type: ignore[override]
        return VERBS[self.request.verb].idempotent and not self.writes

    def encode(self) -> list[bytes]:
        return encode_request(self.request)

    def read(self, data: bytes, position: int, protocol: OwedReplies) -> int:
        # HD|EN|NF|NS|EX <flags>*\r\n   MN\r\n   ME <key> <k>=<v>*\r\n
        # VA <size> <flags>*\r\n<data block>\r\n
        end = protocol.find_line(data, position)
        if end < 0:
            return position
        line = data[position:end]
        status, text = line[:2], line[3:]
        if status not in self.statuses or (len(line) > 2 and (line[2] != 32 or not text)):
            self._refused(line, protocol)
            return end + 2
        if status == b"VA":
            return self._read_value(data, position, end, protocol)
        self._check(status, text)
        self.reply = Reply(status, text=text)
        return end + 2

    def _read_value(self, data: bytes, position: int, end: int, protocol: OwedReplies) -> int:
        size, _, text = data[position + 3 : end].partition(b" ")
        length, limit = read_number(size, 63, "a length"), protocol.max_value_size
        if length > limit:
            self._broken(f"an item of {length} bytes, max_value_size is {limit}")
        counts = self.request.verb == b"ma"
        if counts and length > _LONGEST_NUMBER:
            self._broken(f"a number of {length} bytes")
        self._check(b"VA", text)
        start, stop = end + 2, end + 2 + length
        if stop + 2 > len(data):
            if length <= STREAMED_BLOCK or counts:
                return position
            self._text = text
            protocol.stream_block(length, memoryview(data)[start:], self._take)
            return len(data)
        if data[stop : stop + 2] != b"\r\n":
            raise ProtocolError(f"{self.asked()}: a data block does not end with CRLF")
        if counts:
            read_number(data[start:stop].rstrip(b" "), 64, "a number")
        self._take_value(text, data[start:stop])
        return stop + 2

    def _take(self, block: bytes) -> None:
        self._take_value(self._text, block)

    def _take_value(self, text: bytes, block: bytes) -> None:
        self.reply = Reply(b"VA", text=text, value=block)

    def _check(self, status: bytes, text: bytes) -> None:
        """Raises `.ProtocolError` unless this may be the reply to what was asked."""
        if status == b"ME":
            key = self.keys[0]
            if text.partition(b" ")[0] not in (key, in_base64(key)):
                self._broken("what it knows of a key that was not asked for")
            return
        asked, returned = self.flags, read_returned(text)
        key = self._expected(returned)
        if b"k" in returned and not is_key_of(returned, key):
            self._broken("the reply for a key that was not asked for")
        if status in (b"HD", b"VA"):
            if (status == b"VA") is not (b"v" in asked):
                self._broken(f"{status.decode()} where a value was not asked for, or was")
            told = _TOLD_OF_STORED if self.request.verb == b"ms" else _TOLD
            for letter in asked:
                if letter in told and letter not in returned:
                    self._broken(f"a reply without flag {letter.decode()}, which was asked for")

    def _expected(self, returned: dict[bytes, bytes]) -> bytes:
        """Returns the key of the request that is answered."""
        if b"O" in returned and returned[b"O"] != self.flags.get(b"O"):
            self._broken("an opaque that is not the one of the request")
        return self.keys[0] if self.keys else b""

    def _broken(self, told: str) -> NoReturn:
        raise ProtocolError(f"{self.asked()}: the server sent {told}")

    def _refused(self, line: bytes, protocol: OwedReplies) -> None:
        """Reads a line that is no good answer; see "What a reply does to its connection"."""
        error = refusal(self, line, protocol)
        stores = self.request.verb == b"ms"
        if isinstance(error, ClientError) and stores and line not in _SWALLOWED:
            protocol.failure = ProtocolError(
                f"{self.asked()}: the connection is out of step after an error"
            )
        self.reply = unknown_flag(self, error) if line in UNKNOWN else error
