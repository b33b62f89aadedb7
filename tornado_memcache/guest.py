"""One client of a memcached server: what it asked, what it is owed, what it has not taken.

Knows a transport, the order of replies, and how much of one client may be
under way. It must not know who else is connected, how a request is written
(`.text_server`), or who answers it: a **handler** is a callable that takes a
`.Request` and returns a `.Reply`, or an awaitable of one.

This end is an `asyncio.BufferedProtocol` and no IOStream: IOStream reads on
from a client that is not to be read, to find out whether it has left, and
closes at the end of what a client sends, when replies may still be owed.
"""

import asyncio
import logging
from collections import deque
from collections.abc import Awaitable, Callable, Iterable, Iterator
from contextvars import Context
from typing import Any, NamedTuple, cast
from typing import Protocol as Structure

from .arguments import check_integer, check_seconds
from .errors import ClientError, InvalidRequest, MemcacheError, ReplyError
from .protocol import Reply, Request
from .text_server import Settled, encode_reply

logger = logging.getLogger("tornado_memcache.guest")

#: A handler of requests: the seam between the front door and what is behind it. What it
#: gives to be awaited may also bring bytes: a retrieval's reply as it goes to the client.
Handler = Callable[[Request], Reply | Awaitable[Reply | bytes]]

#: At most this many bytes are read from a client before they are answered.
READ_BYTES = 64 * 1024
#: Replies above this many bytes are written, and taken by the client,
#: before the next ones are made.
WRITE_BYTES = 256 * 1024
#: At most this many requests of a client are under way in the handler.
UNDER_WAY = 100
#: So many requests are begun in one turn of the loop; this many keys count as one more.
TURN, KEYS_OF_ONE = 1000, 8
#: What a reply is taken to weigh for each key, in bytes: to begin with, and at least.
FIRST_GUESS, LEAST_GUESS = 256 * 1024, 4 * 1024
#: A request for more keys than this is asked for in parts; for fewer where they may weigh too much.
SEVERAL = 100
#: One who brings more than so many times its bytes under way is sent away.
EXCESS = 8


class Limits(NamedTuple):
    """What one client may do. Lengths are seconds (None: for ever), sizes bytes.

    ``under_way`` bounds the bytes of requests and replies that are kept
    for a client. A request has to be whole ``receive_timeout`` after its
    first byte; replies have to be taken within ``write_timeout``; and a
    client that asks for nothing is sent away after ``idle_timeout``.
    """

    under_way: int = 16 * 1024 * 1024
    receive_timeout: float | None = None
    write_timeout: float | None = None
    idle_timeout: float | None = None

    def checked(self) -> "Limits":
        """Returns the limits, with every value checked.

        Raises `TypeError` and `.InvalidRequest`, which name the limit.
        """
        under_way = check_integer("under_way", self.under_way, 1, 1 << 50)
        lengths = zip(self._fields[1:], self[1:], strict=True)
        checked = (None if length is None else check_seconds(n, length) for n, length in lengths)
        return Limits(under_way, *checked)


def failure(error: Exception) -> Reply:
    """Returns the reply that tells a client of ``error`` (protocol.txt, "Error strings").

    What a server said is passed on as it is. What is no `.MemcacheError`
    is a fault of the handler: it is logged, and the client is told no more
    than that.
    """
    if isinstance(error, ReplyError) and error.line:
        return Reply(error.line)
    if isinstance(error, MemcacheError):
        theirs = isinstance(error, (ClientError, InvalidRequest))
        status = b"CLIENT_ERROR" if theirs else b"SERVER_ERROR"
        return Reply(status, text=str(error).encode("utf-8", "replace"))
    logger.error("A handler of requests failed", exc_info=error)
    return Reply(b"SERVER_ERROR", text=b"internal error")


class Host(Structure):
    """What a guest needs of its door."""

    handler: Handler
    #: What a client is told when the handler, or what it gave, has failed.
    failure: Callable[[Request, Exception], Reply]
    limits: Limits
    loop: asyncio.AbstractEventLoop
    #: Is told when what came together has been handed to the handler: of how many requests.
    begun: Callable[[int], object]
    #: Where the bytes of whichever client is read at the moment are received.
    buffer: memoryview

    def came(self, guest: "Guest") -> None: ...
    def left(self, guest: "Guest") -> None: ...


class Prompt(asyncio.Future):  # type: ignore[type-arg]
    """A Future that may tell one at once, and not in the next turn of the loop, that it is done.

    ``told(self, result)`` is called by whatever ends it, with None if that is no result.
    """

    __slots__ = ("told",)

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        super().__init__(loop=loop)
        self.told: Callable[[Any, Any], object] | None = None

    def set_result(self, result: Any) -> None:
        super().set_result(result)
        if self.told is not None:
            self.told(self, result)

    def set_exception(self, error: Any) -> None:
        super().set_exception(error)
        if self.told is not None:
            self.told(self, None)

    def cancel(self, msg: Any = None) -> bool:
        ended = super().cancel(msg)
        if ended and self.told is not None:
            self.told(self, None)
        return ended


class _Owed(NamedTuple):
    """A request that was begun, and its answer as soon as there is one.

    ``more`` says that the request behind it is the rest of the same.
    """

    request: Request
    answer: Any
    weight: int
    more: bool


class _Rest:
    """What is not yet begun of a request for many keys: those from ``start`` on."""

    __slots__ = ("request", "start")

    def __init__(self, request: Request) -> None:
        self.request = request
        self.start = 0


class Guest(asyncio.BufferedProtocol):
    """One client, from its connection to its end.

    ``reader`` is a `.RequestReader`, or what has its ``receive_data``,
    ``closed`` and ``half_way``. Requests are begun as they come, as far as
    the limits allow, and answered in their order. While some may not be
    begun, and while replies are not taken, the client is not read.
    """

    def __init__(self, host: Host, reader: Any) -> None:
        self._host = host
        self._reader = reader
        self._transport: asyncio.Transport = cast(asyncio.Transport, None)
        #: Read, and not begun.
        self._asked: deque[Request | Settled | _Rest] = deque()
        #: Begun, and not answered, in order.
        self._owed: deque[_Owed] = deque()
        #: What is left of a reply that is written in parts, and the bytes of it that went.
        self._encoding: Iterator[bytes] | None = None
        self._encoded = 0
        #: How many requests the handler still has, or had; what they and their replies may weigh.
        self._waiting, self._weight, self._held = 0, 0, 0
        self._guess_at(FIRST_GUESS)
        #: How many of them have not brought what they were asked for.
        self._undone = 0
        self._stalled = self._paused = self._ended = self._lost = False
        self._scheduled = self._skipping = False
        self._heard_at = self._begun_at = self._stalled_at = host.loop.time()
        self.peer: Any = None

    def __repr__(self) -> str:
        state = "stalled" if self._stalled else "busy" if self.busy else "idle"
        return f"<Guest {self.peer} {state} owed={len(self._owed)}>"

    @property
    def busy(self) -> bool:
        """True while anything that it asked is not answered."""
        return bool(self._asked or self._owed or self._encoding)

    # -- as asyncio calls it

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)
        self._transport.set_write_buffer_limits(high=WRITE_BYTES, low=WRITE_BYTES // 4)
        self.peer = transport.get_extra_info("peername")
        self._host.came(self)

    def get_buffer(self, sizehint: int) -> memoryview:
        return self._host.buffer

    def buffer_updated(self, count: int) -> None:
        self._heard_at = self._host.loop.time()
        if not self._reader.half_way:
            self._begun_at = self._heard_at
        asked = self._reader.receive_data(bytes(self._host.buffer[:count]))
        if asked:
            self._begun_at = self._heard_at
            self._asked.extend(asked)
            self._go_on()

    def eof_received(self) -> bool:
        self._ended = True
        # What it asked before is still answered, but for TLS, which knows no half of an end.
        return self.busy and self._transport.get_extra_info("ssl_object") is None

    def pause_writing(self) -> None:
        self._stalled, self._stalled_at = True, self._host.loop.time()

    def resume_writing(self) -> None:
        self._stalled = False
        self._later()

    def connection_lost(self, error: Exception | None) -> None:
        # What it asked was asked: the rest is begun, and nobody is told. But what would do
        # nothing else than tell is let go.
        self._asked = deque(one for one in self._asked if not _tells(one))
        self._ended = self._lost = True
        self._stalled = False
        self._go_on()

    # -- requests

    def _go_on(self) -> None:
        """Begins what may be begun, writes what is answered, and reads on or does not."""
        turn = count = 0
        while True:
            if self._encoding or len(self._owed) > self._undone:
                self._send_answers()
            if not self._asked or self._stalled or (self._waiting and not self._may_begin()):
                break
            if turn >= TURN:
                self._later()
                break
            while True:
                turn += self._begin(self._asked.popleft())
                count += 1
                if not self._asked or turn >= TURN or not self._may_begin():
                    break
        if count:
            self._host.begun(count)
        self._read_on()

    def _may_begin(self) -> bool:
        return not self._waiting or (
            self._waiting < UNDER_WAY
            and self._weight < self._host.limits.under_way
            and len(self._owed) < TURN
        )

    def _begin(self, one: Request | Settled | _Rest) -> int:
        """Asks the handler. What it has to wait for goes on while others are asked.

        Returns for how many requests it counts in this turn of the loop.
        """
        if isinstance(one, Settled):
            self._owed.append(_Owed(_SETTLED, one, 0, False))
            return 1
        more = False
        if isinstance(one, _Rest):
            one, more = self._part(one)
        elif len(one.keys) > self._most:
            one, more = self._part(_Rest(one))
        answer: Any
        try:
            answer = self._host.handler(one)
        except Exception as error:
            answer = self._host.failure(one, error)
        weight = 0
        if answer.__class__ is not Reply:
            self._undone += 1
            if isinstance(answer, Prompt) and not answer.done():
                answer.told = self._answered_at_once
            else:
                answer = asyncio.ensure_future(answer)
                answer.add_done_callback(self._answered, context=_nothing)
            weight = 1 + len(one.value) + len(one.keys) * self._guess
            self._waiting += 1
            self._weight += weight
        self._owed.append(_Owed(one, answer, weight, more))
        return 1 + len(one.keys) // KEYS_OF_ONE

    def _part(self, rest: _Rest) -> tuple[Request, bool]:
        """Returns the next part of a request for many keys, and whether there are more."""
        request, stop = rest.request, rest.start + self._most
        keys = request.keys[rest.start : stop]
        rest.start = stop
        if more := stop < len(request.keys):
            self._asked.appendleft(rest)
        return request._replace(keys=keys), more

    def _answered(self, answer: "asyncio.Future[Any]") -> None:
        self._undone -= 1
        if self._has_its_turn(answer):
            # (all that came in the same segment is there by now: one write takes it)
            self._go_on()

    def _answered_at_once(self, answer: Prompt, reply: Any) -> None:
        """Writes the last answer that is due; others wait for those that come in this turn."""
        self._undone -= 1
        if self._undone or self._asked or self._stalled:
            if self._has_its_turn(answer):
                self._later()
        elif (
            reply.__class__ is bytes
            and len(self._owed) == 1
            and len(reply) <= WRITE_BYTES
            and not (self._encoding or self._skipping)
        ):
            # The one request of a client, as most are: without a look at what else there may be.
            self._write([reply])
            self._answered_with(len(reply))
            self._read_on()
        elif self._has_its_turn(answer):
            self._go_on()

    def _has_its_turn(self, answer: "asyncio.Future[Any]") -> bool:
        """Returns True if answers can be written now; else ``answer`` is one that has to wait."""
        if not self._owed:
            return False
        first = self._owed[0].answer
        if self._stalled or (isinstance(first, asyncio.Future) and not first.done()):
            self._hold(answer)
            return False
        return True

    def _hold(self, answer: "asyncio.Future[Any]") -> None:
        """Counts an answer that has to wait; who brings far more than was thought is sent away."""
        if answer.cancelled() or answer.exception() is not None:
            return
        found = answer.result()
        if found.__class__ is bytes:
            self._held += len(found)
        else:
            self._held += len(found.value) + sum(len(item.value) for item in found.items.values())
        if self._held > EXCESS * self._host.limits.under_way and not self._lost:
            logger.warning("client %s is sent away: %d bytes wait for it", self.peer, self._held)
            self.abort()

    def _later(self) -> None:
        """Goes on when all that this turn of the loop brings has come."""
        if not self._scheduled:
            self._scheduled = True
            self._host.loop.call_soon(self._scheduled_turn, context=_nothing)

    def _scheduled_turn(self) -> None:
        self._scheduled = False
        self._go_on()

    # -- replies

    def _send_answers(self) -> None:
        """Writes the answers that are there, while the client takes them."""
        pieces: list[bytes] = []
        size = 0
        while not self._stalled:
            encoding = self._encoding or self._next_reply()
            if encoding is None:
                break
            before = size
            for piece in encoding:
                pieces.append(piece)
                size += len(piece)
                if size > WRITE_BYTES:
                    self._encoding = encoding
                    self._encoded += size - before
                    break
            else:
                self._encoding, total = None, self._encoded + size - before
                self._encoded = 0
                self._answered_with(total)
                continue
            self._write(pieces)
            pieces, size = [], 0
        if pieces:
            self._write(pieces)

    def _next_reply(self) -> Iterator[bytes] | None:
        """Returns the bytes of the reply that is due, None while there is none."""
        if not self._owed:
            return None
        first = self._owed[0]
        answer = first.answer
        if answer.__class__ is Settled:
            return iter((answer.line + b"\r\n",) if answer.line else ())
        if answer.__class__ is not Reply:
            if not answer.done():
                return None
            answer = self._outcome(first.request, answer)
            if answer.__class__ is bytes and not self._skipping:
                return iter((answer[: -len(_END)] if first.more else answer,))
        if self._skipping:
            return iter(())
        if first.more:
            self._skipping = answer.status != b"END"
            if not self._skipping:
                return _without_end(encode_reply(first.request, answer))
        return iter(encode_reply(first.request, answer))

    def _outcome(self, request: Request, answer: "asyncio.Future[Any]") -> Any:
        if answer.cancelled():
            return Reply(b"SERVER_ERROR", text=b"cancelled")
        error = answer.exception()
        if error is not None:
            return self._host.failure(request, cast(Exception, error))
        return answer.result()

    def _answered_with(self, size: int) -> None:
        """Forgets the first request, which is answered with ``size`` bytes."""
        first = self._owed.popleft()
        if not first.more:
            self._skipping = False
        if first.weight:
            self._waiting -= 1
            self._weight -= first.weight
            self._held = max(0, self._held - size)
            # The next replies are taken to be as large as the last, if not as small at once.
            each = size // max(len(first.request.keys), 1)
            self._guess_at(max(each, self._guess // 2, LEAST_GUESS))

    def _guess_at(self, size: int) -> None:
        """Takes replies to weigh ``size`` bytes for each key, and asks for as many at a time."""
        self._guess = size
        self._most = max(1, min(SEVERAL, self._host.limits.under_way // size))

    def _write(self, pieces: list[bytes]) -> None:
        if not self._transport.is_closing():
            self._transport.write(b"".join(pieces))

    def _read_on(self) -> None:
        transport, busy = self._transport, self.busy
        if self._lost and not busy:
            self._host.left(self)
        if transport.is_closing():
            return
        over = self._ended or self._reader.closed
        if over and not busy:
            transport.close()  # (when what was written is out)
            return
        pause = bool(self._asked) or self._stalled or over
        if pause is not self._paused:
            self._paused = pause
            (transport.pause_reading if pause else transport.resume_reading)()

    # -- its end

    def overdue(self, now: float) -> str:
        """Returns why the client is to be sent away at ``now``, or nothing."""
        limits = self._host.limits
        if self._stalled:
            if _passed(limits.write_timeout, self._stalled_at, now):
                return "it does not take its replies"
        elif self.busy:
            self._heard_at = self._begun_at = now
        elif self._reader.half_way:
            if _passed(limits.receive_timeout, self._begun_at, now):
                return "half a request came, and no more"
        elif _passed(limits.idle_timeout, self._heard_at, now):
            return "it asks for nothing"
        return ""

    def drain(self) -> None:
        """Reads no more, and closes when what was asked is answered and taken."""
        self._ended = True
        self._read_on()

    def abort(self) -> None:
        """Closes at once; what the handler still does is cancelled."""
        owed, self._owed, self._encoding = self._owed, deque(), None
        self._asked.clear()
        for one in owed:
            if isinstance(one.answer, asyncio.Future):
                one.answer.cancel()
        self._transport.abort()
        if self._lost:
            self._host.left(self)


_SETTLED = Request(b"")
_END = b"END\r\n"
_nothing = Context()


def _tells(one: Request | Settled | _Rest) -> bool:
    """True if nothing comes of ``one`` but a reply."""
    asked = one.request if isinstance(one, _Rest) else one
    return isinstance(asked, Settled) or asked.verb in (b"get", b"gets")


def _passed(length: float | None, since: float, now: float) -> bool:
    return length is not None and now - since > length


def _without_end(pieces: Iterable[bytes]) -> Iterator[bytes]:
    for piece in pieces:
        if piece != _END:
            yield piece
