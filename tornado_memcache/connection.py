"""One stream to one server: open, write, read, close.

Knows the slots that are owed and the bytes that go out for them, gathered
per loop tick. It must not know which other connections there are, whether
the server is alive, or who waits for an outcome; it tells its pool.
"""

import asyncio
import itertools
from collections.abc import Callable
from contextvars import Context
from typing import Any

from tornado.ioloop import IOLoop

from . import deadlines
from .address import Server
from .connector import Connector, Transport
from .deadlines import NEVER, Deadlines
from .errors import ClientClosed, ConnectionFailed, MemcacheError, Timeout
from .gathered import FIRST_KEYS, GatheredSlot
from .lanes import BoundKeys, SlotLane
from .outbox import Outbox
from .protocol import (
    LARGE_WORK,
    ConnectionRefused,
    OwedReplies,
    Owner,
    Reply,
    Request,
    Slot,
    first_word,
)
from .settings import Settings
from .slots import slot_for
from .stream import SegmentStream, peer_of
from .text import KEYS_A_LINE
from .tls import loss

#: A connection that was idle for so many seconds is looked at before it is used: a
#: loop that was busy elsewhere has not yet seen its end, or bytes that nobody asked for.
LONG_REST = 0.005

_WRITTEN = Reply(b"")


class Connection:
    """A connection: connecting, then open, then closed, and late in between.

    It is a lane of deadlines: its slots in the order in which they expire.
    It is late from the first unanswered deadline until it has caught up.
    """

    def __init__(
        self,
        pool: Owner,
        server: Server,
        settings: Settings,
        deadlines: Deadlines,
        loop: asyncio.AbstractEventLoop,
    ) -> None:
        self._pool = pool
        self.name = server.name
        self._settings = settings
        self._deadlines = deadlines
        self._loop = loop
        self._connector: Connector | None = None
        self._stream: SegmentStream | None = None
        self._protocol = OwedReplies(settings.max_value_size)
        #: When it began to connect, and when it was open.
        self.begun, self.opened_at = 0.0, NEVER
        self.open = self.late = self.closed = False
        #: True once it closes when nothing is under way, and once new calls go to others.
        self.retiring = self.leaving = False
        #: True once any byte has left, and once any has come.
        self.asked = self.heard = False
        #: Keys with an unanswered write; counted only once other connections are used.
        self.bound: BoundKeys | None = None
        self._outbox = Outbox()
        self._most_keys = min(KEYS_A_LINE, settings.max_pending)
        self._few_keys = min(FIRST_KEYS, settings.max_pending)
        self._live = SlotLane()
        self._large, self._close_at = 0, NEVER
        self._streaming = self._scheduled = False
        self.rested_at = self._awaited_until = 0.0

    # -- opening

    def connect(self, server: Server, io_loop: IOLoop, transport: Transport) -> None:
        """Begins to connect; `Owner.opened` or `Owner.lost` is told on a later tick."""
        timeout = min(self._settings.connect_timeout, self._settings.request_timeout)
        self.begun = deadlines.clock()
        self._close_at = self.begun + timeout
        self._deadlines.watch(self, self._close_at)
        self._connector = Connector(
            server, io_loop, transport, timeout / 3, self._opened, self.close
        )
        self._connector.start()

    def _opened(self, stream: SegmentStream) -> None:
        if self.closed:
            stream.close()
            return
        self._connector, self._stream, self.open = None, stream, True
        stream.receiver, self.opened_at, self._close_at = self, deadlines.clock(), NEVER
        self._deadlines.rest(self)
        self._pool.opened(self)

    @property
    def peer(self) -> Any:
        """The address at the other end, None if there is none."""
        return peer_of(self._stream) if self._stream is not None else None

    @property
    def connecting(self) -> bool:
        return self._connector is not None

    @property
    def phase(self) -> str:
        """Where the opening of the connection stands."""
        return self._connector.phase if self._connector is not None else "reply"

    # -- what is under way

    @property
    def idle(self) -> bool:
        """True if nothing is owed or waits to be written."""
        return not (self._protocol.owed or self._outbox)

    @property
    def owing(self) -> int:
        """The number of slots that are owed or wait to be written."""
        return len(self._protocol.owed) + len(self._outbox.unsent)

    @property
    def large(self) -> bool:
        """True while a request or an announced value of over 64 KB is under way."""
        return self._large > 0 or self._streaming

    def phase_of(self, slot: Slot) -> str:
        writing = self._stream is not None and self._stream.writing()
        return "writing" if writing or not slot.sent else "reply"

    def failure_of(self, slot: Slot) -> Timeout:
        return Timeout(
            "timed out",
            server=self.name,
            phase=self.phase_of(slot),
            maybe_applied=slot.sent and slot.writes,
            asked=slot.asked(),
        )

    def failed(self, slot: Slot, error: MemcacheError, calls: int) -> None:
        """Has the pool count calls that failed here."""
        self._pool.failed(slot, error, calls)

    def left(self, slot: Slot) -> None:
        """A caller of ``slot`` went away; the slot stays until it is answered."""

    @property
    def settled(self) -> bool:
        """True if no write is unanswered here, an unconfirmed noreply included."""
        return self.idle and not self._outbox.silent

    def bind(self) -> BoundKeys:
        """Returns the keys whose writes are unanswered here, counted from now on."""
        if self.bound is None:
            slots = itertools.chain(self._protocol.owed, self._outbox.unsent)
            self.bound = BoundKeys(slots, self._outbox.silent)
        return self.bound

    def confirm(self) -> None:
        """Asks for a reply that confirms the noreply requests, if none is owed that does."""
        if self.idle and self._outbox.silent:
            deadline = deadlines.clock() + self._settings.request_timeout
            self._pool.pending += 1
            self.send(slot_for(Request(b"version"), self._loop.create_future(), bool, deadline))

    def retire(self) -> None:
        """Closes it once nothing is under way, noreply requests included: it is not needed."""
        self.retiring = True
        if self._stream is None or self.closed:
            return
        if self._outbox.silent:
            self.hold()  # (this may be within a flush: nothing leaves in between)
            self.confirm()
        elif self.idle and not (self._outbox.written or self._stream.writing()):
            self.close(ClientClosed("the connection is not needed", server=self.name))

    # -- sending

    def send(self, slot: Slot) -> None:
        """Takes ``slot``: its bytes leave at once on an idle connection, else with the tick's."""
        slot.place = self
        if self._outbox.batch is not None and self._outbox.must_close_batch(slot):
            self._close_batch()
        if self.bound is not None:
            self.bound.count(slot, 1)
        self._outbox.unsent.append(slot)
        self._register(slot)
        if len(slot.request.value) > LARGE_WORK:
            # Not before the slot stands in its place: this may serve the line.
            self._large += 1
            self._pool.reconsider()
        if self._scheduled or self._protocol.owed:
            self.hold()
        else:
            self.flush()

    def gather(
        self,
        key: bytes,
        waiter: Any,
        decode: Callable[[bytes, bytes, int], Any],
        raw_flags: int | None,
    ) -> GatheredSlot:
        """Takes one get, which leaves with the others of this tick as one line.

        Returns the slot that it shares with them.
        """
        batch = self._outbox.batch
        if batch is None:
            batch = self._outbox.open_batch(decode, raw_flags)
            batch.waiting[key] = waiter
            batch.place = self
            if not self._scheduled:
                if self._protocol.owed or self._outbox.unsent:
                    self.hold()
                else:
                    self.flush()
            return batch
        waiting = batch.waiting
        if waiting.setdefault(key, waiter) is not waiter:
            batch.share(key, waiter)
            if batch.shared >= self._settings.max_pending:
                return self._close_batch(key)
            return batch
        count = len(waiting)
        if count >= self._few_keys:
            if count >= self._most_keys:
                return self._close_batch(key)
            if count == self._few_keys and not self._protocol.owed:
                batch = self._close_batch(key)
                self.flush()
        return batch

    def _close_batch(self, key: bytes = b"") -> GatheredSlot:
        """Has the open batch wait to be written. Returns the part of it that asks for ``key``."""
        found = self._outbox.batch
        assert found is not None
        # From now on: whoever joined last, in a turn that took long, has its whole time.
        deadline = deadlines.clock() + self._settings.request_timeout
        for slot in self._outbox.close_batch(deadline):
            found = slot if key in slot.waiting else found
            slot.place = self
            self._pool.pending += slot.weight
            self._register(slot)
        if self._pool.pending >= self._settings.max_pending:
            self._pool.reconsider()
        return found

    def _register(self, slot: Slot) -> None:
        if self._live.add(slot):
            self._deadlines.watch(self, slot.deadline)

    def hold(self) -> None:
        """Has what is sent from now on leave together, after this turn of the loop."""
        if not self._scheduled:
            self._scheduled = True
            self._loop.call_soon(self._flush_held, context=Context())

    def _flush_held(self) -> None:
        self._scheduled = False
        if not self.closed:
            self.flush()

    def flush(self) -> None:
        """Writes what waits, unless the server is not reading what was written."""
        stream, outbox = self._stream, self._outbox
        if outbox.batch is not None:
            self._close_batch()
        if stream is None or stream.writing():
            return
        if not self._protocol.owed and deadlines.clock() - self.rested_at > LONG_REST:
            stream.read_segment()
        while outbox.unsent and not self.closed:
            pieces, size, taken, withdrawn = outbox.take(self._protocol.owed)
            self.asked = self.asked or bool(pieces)
            if withdrawn:
                self._let_go(withdrawn)
            rest = stream.send_pieces(pieces, size) if pieces else None
            if rest is not None:
                if stream.refuses:
                    outbox.put_back(taken, self._protocol.owed)
                rest.add_done_callback(self._drained, context=Context())
                return
            if outbox.written:
                self._loop.call_soon(self._deliver_written, context=Context())

    def _drained(self, written: "asyncio.Future[None]") -> None:
        if not self.closed and not written.exception():
            self._deliver_written()
            self.flush()

    def _deliver_written(self) -> None:
        written, self._outbox.written = self._outbox.written, []
        self._let_go(written)
        for slot in written:
            slot.reply = _WRITTEN
            slot.deliver()

    # -- receiving

    def receiving(self) -> memoryview | None:
        block = self._protocol.block
        return None if block is None else block[self._protocol.filled :]

    def received(self, data: bytes) -> None:
        """Takes a segment: finishes the slots that it answers, then delivers."""
        finished = self._protocol.receive_data(data)
        failure = self._protocol.failure
        if failure is not None and not (self.heard or self._protocol.owed):
            failure = self._protocol.failure = first_word(failure, data, self.asked)
        if not isinstance(failure, ConnectionRefused):
            # (to be told that there is no room is no sign of life: the pauses go on)
            self.heard = True
            self._pool.heard()
        self._finish(finished)

    def received_into(self, count: int) -> None:
        self._pool.heard()
        self._finish(self._protocol.receive_block(count))

    def _finish(self, finished: list[Slot]) -> None:
        protocol, live, woken = self._protocol, self._live, 0
        for slot in finished:
            live.remove(slot)
            woken += slot.weight
            if self.bound is not None:
                self.bound.count(slot, -1)
            if len(slot.request.value) > LARGE_WORK:
                self._large -= 1
        self._pool.pending -= woken
        # What the callers send when they are woken leaves together, after their turn.
        holds = woken > 1 and not self._scheduled
        self._scheduled = self._scheduled or holds
        streaming = protocol.block_size > LARGE_WORK
        if streaming is not self._streaming:
            self._streaming = streaming
            self._pool.reconsider()
        failure = protocol.failure
        if failure is not None:
            # Before the callers' code runs: nothing more may leave on it.
            self.close(failure)
        elif not live:
            self._rest()
        try:
            for slot in finished:
                slot.deliver()
        finally:
            if holds:
                self._loop.call_soon(self._flush_held, context=Context())
        if not live:
            self._deadlines.settle()

    def _rest(self) -> None:
        """The last live slot has left: the lane is empty, a late connection may have caught up.

        Whoever calls this has the deadlines settle.
        """
        self._protocol.tidy()
        self.rested_at = deadlines.clock()
        if self.late:
            if not self.idle:
                return
            self.late, self._close_at = False, NEVER
            self._deadlines.leave(self)
            self._pool.caught_up(self)
        else:
            self._deadlines.leave(self)
        if self.bound is not None and self.idle:
            self._pool.reconsider()
        if self.retiring or (self._pool.has_idle_enough(self) and self.settled):
            self.retire()

    def _let_go(self, slots: list[Slot]) -> None:
        """Forgets slots to which no reply will come."""
        self._live.remove_all(slots)
        for slot in slots:
            self._pool.pending -= slot.weight
            if len(slot.request.value) > LARGE_WORK:
                self._large -= 1
            if self.bound is not None and not slot.sent:
                self.bound.count(slot, -1)
        if not self._live:
            self._rest()
            self._deadlines.settle()

    # -- the lane of deadlines

    def next_deadline(self) -> float:
        return min(self._live.next_deadline, self._close_at)

    def catch_up(self) -> None:
        stream, owed = self._stream, self._protocol.owed
        # No further than what is owed now: the callbacks within may ask for more without end.
        last = owed[-1] if owed else None
        while stream is not None and stream.read_segment():
            if last is None or last.reply is not None:
                break

    def expire(self, now: float) -> None:
        live = self._live
        slot = None
        while live.next_deadline <= now:
            slot = live.pop()
            error, awaited = self.failure_of(slot), slot.awaited()
            until = slot.expire(error, now)
            if awaited and not until:
                self._pool.failed(slot, error, slot.weight)
            self._awaited_until = max(self._awaited_until, until)
        if slot is not None and not self.closed:
            self._silent(now, slot)
        if self._close_at <= now and not self.closed:
            # Not before the last deadline of whoever still waits here.
            last = max(self._awaited_until, live.last_deadline)
            if last > now and not self.connecting:
                self._close_at = last
            elif self._connector is None or not self._connector.ends_soon():
                self._overdue()

    def _silent(self, now: float, last: Slot) -> None:
        """What has expired makes the connection late, and is one more silence of the server."""
        if not self.late:
            self.late = True
            self._close_at = now + self._settings.request_timeout
            self._deadlines.watch(self, self._close_at)
        self._pool.silent(last.deadline - self._settings.request_timeout)

    def _overdue(self) -> None:
        told = "the server did not answer in time, the connection was closed"
        error: MemcacheError = ConnectionFailed(told, server=self.name)
        if self.connecting:
            error = Timeout("timed out", server=self.name, phase=self.phase)
        self.close(error)

    # -- closing

    def stream_closed(self, error: BaseException | None) -> None:
        self.close(loss(self._stream, error, self.name, self.heard))

    def close(self, error: MemcacheError) -> None:
        """Closes the connection and hands what was under way to the pool. Idempotent."""
        if self.closed:
            return
        if self._outbox.batch is not None:
            self._close_batch()
        self.closed, self.open = True, False
        owed, (written, unsent) = list(self._protocol.owed), self._outbox.clear()
        if owed and self._protocol.reading():
            owed[0].lost_at = 0.0  # its reply has begun: it is not asked again
        self._protocol.owed.clear()
        self._live.clear()
        self._deadlines.rest(self)
        if self._connector is not None:
            self._connector.close()
        if self._stream is not None:
            self._stream.close()
        self._pool.lost(self, error, owed + written, unsent)

    def abandon(self) -> int:
        """Closes the sockets of a connection whose loop is not there any more, and tells nobody.

        Returns how many calls still waited on it. The loop is closed, or it is the parent's in
        a child of fork. A stream that waits for something would tell its loop that it was
        closed, so only its descriptor is.
        """
        self.closed, self.open = True, False
        if self._connector is not None:
            self._connector.forget()
        if self._stream is not None:
            self._stream.receiver = None
            self._stream.socket.close()
        self._outbox.close_batch(NEVER)
        slots = itertools.chain(self._protocol.owed, self._outbox.written, self._outbox.unsent)
        return sum(slot.waiters_left() for slot in slots)

    def __repr__(self) -> str:
        state = "late" if self.late else "idle" if self.idle else "busy"
        if self.closed or self.connecting:
            state = "closed" if self.closed else self.phase
        return f"<Connection {self.name} {state} owed={len(self._protocol.owed)}>"
