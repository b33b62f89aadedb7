"""What is asked of a server and what it owes: requests, replies, slots.

Knows the limits of memcached's protocol (protocol.txt), the order in which
replies are owed, and how bytes are handed to the slot that waits for them.
It must not know a socket, a loop, a clock, or who waits for an outcome: a
**waiter** is anything with ``done``, ``set_result``, ``set_exception`` and
``exception``. How a verb is written and its reply is read belongs to the
dialects.
"""

import re
from abc import ABC, abstractmethod
from collections import deque
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple
from typing import Protocol as Structure

from .errors import MemcacheError, ProtocolError, SerializationError, Timeout, shown

#: A reply line (without its data block) is never longer than this.
MAX_LINE = 2048
#: The answer of a server at its limit of connections, before any request.
TOO_MANY_CONNECTIONS = b"ERROR Too many open connections"
#: What that is told as.
AT_LIMIT = "the server is at its limit of connections"
#: The answers of a server that demands to be told who we are (memcached's ``-Y``), and was
#: not: the first to most requests, the others to one that stores, which it takes for the telling.
UNAUTHENTICATED = (
    b"CLIENT_ERROR unauthenticated",
    b"CLIENT_ERROR bad authentication token format",
    b"CLIENT_ERROR authentication failure",
)
#: A block longer than this is received into a buffer of its own size.
STREAMED_BLOCK = 16 * 1024
#: Room behind such a block, for the line that ends a retrieval.
END_BYTES = len(b"END\r\n")
#: A large buffer is kept until a connection was idle so often without using it.
RESTS_KEPT = 32
#: Work above this many bytes, asked or announced, is large: it gets a
#: connection without other callers where there is one.
LARGE_WORK = 64 * 1024


def _size_of(value: object) -> str:
    """Returns what a repr tells of a value, which may end in a log: its size."""
    return f"{len(value)} bytes" if isinstance(value, bytes) else type(value).__name__


_DIGITS = re.compile(rb"[0-9]{1,20}\Z")


def read_number(digits: bytes, bits: int, what: str) -> int:
    """Returns a number that a server sent as ``what``; raises `.ProtocolError` if it is none."""
    if not _DIGITS.match(digits) or (number := int(digits)) >> bits:
        raise ProtocolError(
            f"the server sent {len(digits)} bytes as {what} that are no number of {bits} bits"
        )
    return number


class Request(NamedTuple):
    """One request, in bytes and integers, as a dialect encodes it.

    ``keys`` and ``value`` are sent as they are; build requests through
    `.Client` unless you are a proxy, and check keys with `key_bytes`.
    ``argument`` is what stands behind ``stats``, and the flags of a meta
    command, as on the wire.
    """

    verb: bytes
    keys: tuple[bytes, ...] = ()
    value: bytes = b""
    flags: int = 0
    exptime: int = 0
    cas_unique: int = 0
    delta: int = 0
    noreply: bool = False
    argument: bytes = b""

    def asked(self) -> str:
        """Returns what a message says of the request: its verb and first key."""
        verb = self.verb.decode("latin-1")
        if not self.keys:
            return verb
        more = f" and {len(self.keys) - 1} more" if len(self.keys) > 1 else ""
        return f"{verb} {shown(self.keys[0])}{more}"

    def __repr__(self) -> str:
        return f"<Request {shown(self.verb)} {shown(self.keys)}, {_size_of(self.value)}>"


class Item(NamedTuple):
    """One item of a retrieval: its value as stored, its flags, its cas_unique."""

    value: bytes
    flags: int
    cas_unique: int | None = None

    def __repr__(self) -> str:
        return f"<Item of {_size_of(self.value)}, flags {shown(self.flags)}>"


class Reply(NamedTuple):
    """What the server answered, in bytes and integers.

    ``status`` is the word of the reply line (``b"STORED"``, ``b"END"``;
    ``b"NUMBER"`` for the bare number of incr and decr). ``items`` maps
    the keys of the hits of a retrieval, ``stats`` the names of ``stats``.
    ``text`` has the flags that a meta command returns, ``value`` its block.
    """

    status: bytes
    items: dict[bytes, Item] = {}
    number: int = 0
    text: bytes = b""
    stats: dict[str, str] = {}
    value: bytes = b""

    def __repr__(self) -> str:
        return f"<Reply {shown(self.status)}, {len(self.items or self.stats)} items>"


class Waiter(Structure):
    """What waits for an outcome: a Future, or a call."""

    def done(self) -> bool: ...
    def set_result(self, result: Any, /) -> None: ...
    def set_exception(self, error: Any, /) -> None: ...
    def exception(self) -> Any: ...


def fail(waiter: Waiter, error: MemcacheError) -> None:
    """Ends ``waiter`` with ``error``, unless it has ended.

    A Future is marked as retrieved: that it failed is counted and logged
    by the pool, once, and not again by the garbage collector.
    """
    if not waiter.done():
        waiter.set_exception(error)
        waiter.exception()


def outlives(waiter: Waiter, now: float) -> float:
    """Returns the moment until which ``waiter`` waits on after ``now``, or 0.

    Only a call with a timeout of its own knows one.
    """
    if waiter.done():
        return 0.0
    moment: float = getattr(waiter, "own_deadline", None) or 0.0
    return moment if moment > now else 0.0


class ConnectionRefused(ProtocolError):
    """The server spoke before it was asked, as one at its limit of connections does."""


class Unauthenticated(ConnectionRefused):
    """The server demands to be told who we are, and was not."""

    def __init__(self) -> None:
        super().__init__(
            "the server demands authentication: give username= and password= to the Client, "
            'or a dict as server, with "username" and "password"'
        )


def first_word(failure: ProtocolError, data: bytes, asked: bool) -> ProtocolError:
    """Returns what ``data``, the first bytes of a connection to which nothing was owed, mean.

    What comes before anything was ``asked`` is the refusal of the
    connection, and so is any part of `TOO_MANY_CONNECTIONS`: the rest of
    it, in a segment to come, is not waited for.
    """
    if isinstance(failure, ConnectionRefused):
        return failure
    if TOO_MANY_CONNECTIONS.startswith(data):
        return ConnectionRefused(AT_LIMIT)
    if data.startswith(UNAUTHENTICATED):
        return Unauthenticated()
    if asked:
        return failure
    return ConnectionRefused("the server sent bytes before it was asked for anything")


def as_outcome(error: Exception, asked: str) -> MemcacheError:
    """Returns what a caller gets for an exception that came while its outcome was made."""
    if isinstance(error, MemcacheError):
        return error
    outcome = SerializationError(f"{asked}: the reply cannot be read: {type(error).__name__}")
    outcome.__cause__ = error
    return outcome


class Place(Structure):
    """Where a slot stands: it tells the phase of what waits there."""

    name: str

    def phase_of(self, slot: "Slot") -> str: ...
    def failure_of(self, slot: "Slot") -> Timeout: ...
    def failed(self, slot: "Slot", error: MemcacheError, calls: int) -> None: ...
    def left(self, slot: "Slot") -> None: ...


class Slot(ABC):
    """A reply that is owed to a waiter, from its submission to its last byte.

    ``deadline`` is the moment by which the server has to answer; it also
    ends the waiters that have no timeout of their own. ``sent`` is set
    once any of the request's bytes may have left.
    """

    __slots__ = (
        "request",
        "waiter",
        "outcome",
        "deadline",
        "sent",
        "lost_at",
        "reply",
        "confirms",
        "place",
    )

    writes = False
    idempotent = False
    #: The oldest version of memcached that understands it; None: any.
    needs: tuple[int, ...] | None = None

    def __init__(
        self,
        request: Request,
        waiter: Waiter | None,
        outcome: Callable[[Reply], Any] | None,
        deadline: float,
    ) -> None:
        self.request = request
        self.waiter = waiter
        self.outcome = outcome
        self.deadline = deadline
        self.sent = False
        #: When a connection was first lost with it: on one that is opened later it is tried
        #: again. Infinite while it was not tried, 0 when it must not be.
        self.lost_at = float("inf")
        self.reply: Reply | MemcacheError | None = None
        #: Keys of noreply writes that only this slot's reply can confirm.
        self.confirms: Sequence[bytes] = ()
        self.place: Place | None = None

    @property
    def keys(self) -> Sequence[bytes]:
        return self.request.keys

    @property
    def weight(self) -> int:
        """How many calls the slot counts for against ``max_pending``."""
        return 1

    def asked(self) -> str:
        return self.request.asked()

    @abstractmethod
    def encode(self) -> list[bytes]:
        """Returns the request's bytes, a large value as a piece of its own."""

    @abstractmethod
    def read(self, data: bytes, position: int, protocol: "OwedReplies") -> int:
        """Reads on from ``position``; returns where it stopped.

        The reply is whole when ``self.reply`` is set. Raises
        `.ProtocolError` for what cannot be a reply to this request.
        """

    def begun(self) -> bool:
        """True once any part of the reply has been read."""
        return False

    def abandoned(self) -> bool:
        """True if nobody waits any more."""
        return self.waiter is None or self.waiter.done()

    def awaited(self) -> bool:
        """True if anybody still waits: `abandoned`, asked of each waiter."""
        return not self.abandoned()

    def waiters_left(self) -> int:
        """Returns how many calls still wait."""
        return int(self.awaited())

    def deliver(self) -> None:
        """Hands the reply to the waiter. Called once, outside of the parser."""
        waiter, reply = self.waiter, self.reply
        self.waiter = None
        if waiter is None or waiter.done():
            return
        assert reply is not None and self.outcome is not None
        if isinstance(reply, MemcacheError):
            fail(waiter, self._signed(reply))
            return
        try:
            result = self.outcome(reply)
        except Exception as error:
            fail(waiter, self._signed(as_outcome(error, self.asked())))
        else:
            waiter.set_result(result)

    def _signed(self, error: MemcacheError) -> MemcacheError:
        """Returns ``error`` with the server that it is about."""
        if error.server is None and self.place is not None:
            error.server = self.place.name
        return error

    def fail(self, error: MemcacheError) -> None:
        """Ends the waiter with ``error``."""
        waiter = self.waiter
        self.waiter = None
        if waiter is not None:
            fail(waiter, error)

    def awaited_until(self, now: float) -> float:
        """Returns the moment until which whoever has a later deadline of its own waits, or 0."""
        return 0.0 if self.waiter is None else outlives(self.waiter, now)

    def expire(self, error: MemcacheError, now: float) -> float:
        """Ends whoever has no later deadline of its own with ``error``.

        Returns the moment until which the rest waits, 0 if there is none.
        """
        until = self.awaited_until(now)
        if not until:
            self.fail(error)
        return until

    def expire_waiter(self, waiter: Any) -> None:
        """Ends one waiter whose own deadline has come."""
        assert self.place is not None
        if waiter.done():
            return
        error = self.place.failure_of(self)
        self.place.failed(self, error, 1)
        fail(waiter, error)
        self.place.left(self)

    def waiter_left(self, waiter: Any) -> None:
        """Notes that a waiter was cancelled."""
        if self.place is not None:
            self.place.left(self)

    def __repr__(self) -> str:
        state = "read" if self.reply else "sent" if self.sent else "unsent"
        return f"<{type(self).__name__} {self.asked()} {state}>"


class Owner(Structure):
    """What a connection tells its pool."""

    pending: int
    generation: int

    def opened(self, connection: Any) -> None: ...
    def heard(self) -> None: ...
    def caught_up(self, connection: Any) -> None: ...
    def silent(self, asked_at: float) -> None: ...
    def reconsider(self) -> None: ...
    def has_idle_enough(self, connection: Any) -> bool: ...
    def failed(self, slot: Slot, error: MemcacheError, calls: int) -> None: ...
    def lost(
        self, connection: Any, error: MemcacheError, owed: list[Slot], unsent: list[Slot]
    ) -> None: ...


def _nobody(block: bytes) -> None:
    """Takes no block: none is received before a slot asks for it."""


class OwedReplies:
    """The FIFO of the slots that one connection owes, and its parser's state.

    Pure: bytes go in through `receive_data` (or straight into `block`),
    finished slots come out, in order. After a `.ProtocolError` `failure`
    is set and nothing more is read.
    """

    __slots__ = (
        "owed",
        "max_value_size",
        "failure",
        "answered",
        "block",
        "block_size",
        "filled",
        "_buffer",
        "_rests",
        "_take",
        "_tail",
    )

    def __init__(self, max_value_size: int) -> None:
        self.owed: deque[Slot] = deque()
        self.max_value_size = max_value_size
        self.failure: ProtocolError | None = None
        #: True once a reply was whole. What refuses a connection comes before all others.
        self.answered = False
        #: Where a block is received, with room for an END, and how much is there.
        self.block: memoryview | None = None
        self.filled = 0
        #: The bytes of the block and its CRLF, 0 while none is received.
        self.block_size = 0
        self._buffer = bytearray()
        self._rests = 0
        self._take: Callable[[bytes], None] = _nobody
        self._tail = b""

    def clean(self) -> bool:
        """True if nothing is owed, half read or buffered."""
        return not (self.owed or self._tail or self.failure or self.block is not None)

    def reading(self) -> bool:
        """True while the first reply that is owed has come in part."""
        return bool(self._tail) or self.block is not None

    def receive_data(self, data: bytes) -> list[Slot]:
        """Reads ``data`` and returns the slots that it has finished, in order."""
        finished: list[Slot] = []
        if self.failure is not None:
            return finished
        if self._tail:
            data = self._tail + data
            self._tail = b""
        owed, position, size = self.owed, 0, len(data)
        try:
            while position < size:
                if not owed:
                    if not self.answered and data.startswith(TOO_MANY_CONNECTIONS):
                        raise ConnectionRefused(AT_LIMIT)
                    raise ProtocolError("the server sent bytes that nobody asked for")
                slot = owed[0]
                start, position = position, slot.read(data, position, self)
                if slot.reply is not None:
                    finished.append(owed.popleft())
                    self.answered = True
                    if self.failure is not None:
                        return finished
                elif self.block is not None:
                    return finished
                elif position == start:
                    self._keep(data[position:])
                    return finished
        except ProtocolError as error:
            self.failure = error
        return finished

    def _keep(self, tail: bytes) -> None:
        if len(tail) > MAX_LINE + STREAMED_BLOCK:
            raise ProtocolError(f"the server sent a line of over {MAX_LINE} bytes")
        self._tail = tail

    def find_line(self, data: bytes, position: int) -> int:
        """Returns where the line at ``position`` ends, -1 if it has no end yet."""
        end = data.find(b"\r\n", position, position + MAX_LINE)
        if end < 0 and len(data) - position >= MAX_LINE:
            raise ProtocolError(f"the server sent a line of over {MAX_LINE} bytes")
        return end

    def stream_block(
        self, length: int, received: memoryview, take: Callable[[bytes], None]
    ) -> None:
        """Has a block of ``length`` bytes and its CRLF received into a buffer.

        ``take(block)`` is called when it is whole.
        The buffer is used again: fresh megabytes cost more in page faults
        than the copy out of an old one. The END of a single value comes
        with it, and is no turn of the loop of its own.
        """
        size = length + 2
        room = size + END_BYTES
        if len(self._buffer) < room:
            self._buffer = bytearray(room)
        self._rests, self._take = 0, take
        self.block, self.block_size = memoryview(self._buffer)[:room], size
        self.block[: len(received)], self.filled = received, len(received)

    def receive_block(self, count: int) -> list[Slot]:
        """Notes that ``count`` more bytes of `block` have come; as `receive_data`."""
        assert self.block is not None
        self.filled += count
        size = self.block_size
        if self.filled < size:
            return []
        block, self.block, self.block_size = self.block, None, 0
        finished: list[Slot] = []
        with block:
            if bytes(block[size - 2 : size]) == b"\r\n":
                self._take(bytes(block[: size - 2]))
            else:
                self.failure = ProtocolError("a data block does not end with CRLF")
            behind = bytes(block[size : self.filled])
        self.filled, self._take = 0, _nobody
        if self.failure is None and self.owed[0].reply is not None:
            self.answered = True
            finished.append(self.owed.popleft())  # (a block that ends its reply)
        return finished + self.receive_data(behind)

    def tidy(self) -> None:
        """Called when nothing is owed: gives a large buffer back that is not used any more."""
        if len(self._buffer) > LARGE_WORK and self.block is None:
            self._rests += 1
            if self._rests > RESTS_KEPT:
                self._buffer = bytearray()
