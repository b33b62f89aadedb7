"""The connections to one server: which of them takes a slot, and who waits.

Knows idle, busy, late and dead, the order of writes, and what is tried
again. It must not know commands, values or callers. It decides; the
connection does the I/O.
"""

import asyncio
from collections.abc import Callable, Sequence
from contextvars import Context

from tornado.ioloop import IOLoop

from . import choice, deadlines
from .address import Server
from .connection import Connection
from .connector import Transport
from .deadlines import Deadlines
from .errors import ClientClosed, ConnectionFailed, MemcacheError, Timeout, TooManyCalls
from .events import Events
from .growth import Growth
from .health import Health
from .lanes import Line
from .outcomes import outdated
from .protocol import LARGE_WORK, Reply, Request, Slot
from .retry import as_failure, failure_for, may_be_unknown, sort_out, unmade, untouched_by
from .settings import Settings
from .slots import slot_for
from .spoken import Spoken
from .text import is_retrieval, missed, overtaken


class Pool:
    """The pool of one server, on one loop.

    ``usable`` is the connection that may take a call without asking
    further: open, on time, carrying nothing large, with nobody waiting in
    line and no key bound to another connection. Where it is None, `submit`
    decides.
    """

    #: Is asked who takes a slot that comes only when the pool has left: True, if another has.
    heir: Callable[["Pool", Slot], bool] | None = None

    def __init__(
        self,
        server: Server,
        settings: Settings,
        deadlines: Deadlines,
        io_loop: IOLoop,
        loop: asyncio.AbstractEventLoop,
        transport: Transport,
        events: Events | None = None,
    ) -> None:
        self.server = server
        self.name = server.name
        self.health = Health(server.name, settings.dead_retry, settings.silences_until_dead)
        self.usable: Connection | None = None
        #: Calls that are owed or wait, those that nobody waits for included.
        self.pending = 0
        #: How many open connections were lost.
        self.losses = 0
        #: Grows with each sign that the server may be another process now, which counts cas
        #: uniques anew: an open connection that was lost, or one that fell silent.
        self.generation = 0
        self.closed = False
        #: The longest exptime that is stored here, in seconds; None: any.
        self.longest: int | None = None
        self._settings = settings
        self._deadlines, self._io_loop, self._loop = deadlines, io_loop, loop
        self._transport = transport
        self._events = events or Events()
        self._connections: list[Connection] = []
        self._line = Line()
        self._growth = Growth(settings, loop, self._connections, self._begin)
        self._spoken = Spoken(self, self._line, settings.request_timeout, loop)
        self._serving = self._retired = False
        self._deaths_flushed = 0
        #: Is told when a connection has opened.
        self.on_opened: Callable[[], None] | None = None

    @property
    def connections(self) -> Sequence[Connection]:
        """All connections, those that are being opened included."""
        return self._connections

    # -- taking calls

    def submit(self, slot: Slot) -> None:
        """Takes ``slot``. Its outcome comes on a later tick, whatever it is."""
        connection = self.usable
        may = slot.needs is None or self._spoken.knows(slot)
        if connection is not None and may and len(slot.request.value) <= LARGE_WORK:
            self.pending += slot.weight
            connection.send(slot)
        else:
            self._submit(slot)
        if self.pending >= self._settings.max_pending:
            self.usable = None

    def _submit(self, slot: Slot) -> None:
        over = self._retired and not (self._connections or self._line)
        if over and self.heir is not None and self.heir(self, slot):
            return
        slot.place = self
        now = deadlines.clock()
        if self.health.probing and choice.probe_has_left(self._connections, self._line):
            self.health.probing = False
        if self.closed:
            closed = ClientClosed(f"{slot.asked()}: the client is closed", server=self.name)
            self._refuse(slot, closed)
        elif self.pending >= self._settings.max_pending:
            told = f"{slot.asked()}: {self.pending} calls are under way (max_pending)"
            self._refuse(slot, TooManyCalls(told, server=self.name))
        elif self.health.dead and not self.health.may_probe(now):
            if self._settings.on_dead == "miss" and is_retrieval(slot.request):
                self._answer(slot, missed(slot.request))
            else:
                self._refuse(slot, self.health.refusal(slot.asked(), now))
        elif (unsupported := self._spoken.refusal(slot)) is not None:
            self._answer(slot, unsupported)
        else:
            self.pending += slot.weight
            if self.health.dead:
                self.health.probing = True
            connection = self._choose(slot) if self._spoken.knows(slot) else None
            if connection is not None:
                connection.send(slot)
            else:
                first = not self._line
                self._queue(slot)  # (for a connection, under its own deadline)
                if first or self.health.dead:
                    self._growth.grow()  # (behind others it may yet be served)
            self.reconsider()

    def _refuse(self, slot: Slot, error: MemcacheError) -> None:
        self._loop.call_soon(self._fail, slot, error, context=Context())

    def _answer(self, slot: Slot, reply: Reply | MemcacheError) -> None:
        slot.reply = reply
        self._loop.call_soon(slot.deliver, context=Context())

    def _fail(self, slot: Slot, error: MemcacheError) -> None:
        error.server = error.server or self.name
        if slot.awaited():
            self.failed(slot, error, slot.weight)
        slot.fail(error)

    def failed(self, slot: Slot, error: MemcacheError, calls: int) -> None:
        """Counts ``calls`` of ``slot`` as failed; the first after good ones is logged."""
        if not isinstance(error, ClientClosed):
            self.health.failed(deadlines.clock(), error, calls)

    def _choose(self, slot: Slot) -> Connection | None:
        """Returns the connection that takes ``slot`` now, None if it has to wait."""
        bound = choice.bound_to(self._connections, slot)
        if len(bound) > 1:
            for connection in bound:
                connection.confirm()
        may_grow = self._growth.may_grow()
        return choice.choose(self._connections, bound, self._line, slot, may_grow)

    def _queue(self, slot: Slot, *, front: bool = False) -> None:
        """Has ``slot`` wait. A Future does not tell its slot that it went away, as others do."""
        slot.place = self
        self._line.add(slot, front=front)
        self._deadlines.watch(self, slot.deadline)
        waiter = getattr(slot.waiter, "whole", slot.waiter)
        if type(waiter) is asyncio.Future:
            waiter.add_done_callback(lambda _: self.left(slot), context=Context())

    def left(self, slot: Slot) -> None:
        """Notes that a caller in line went away. Nobody connects for nobody."""
        line = self._line
        while line and line.first.abandoned():
            self.pending -= line.pop().weight
        if not line:
            self._nobody_waits()

    def _nobody_waits(self) -> None:
        self._deadlines.rest(self)
        if not self._growth.may_let_go():
            self.reconsider()
            return
        for connection in [one for one in self._connections if one.connecting]:
            self.health.probing = False
            self._connections.remove(connection)
            connection.close(ConnectionFailed("nobody waits", server=self.name))
        self.reconsider()

    def ask_first(self, slot: Slot) -> None:
        """Has ``slot``, which is the pool's own, leave before whatever waits."""
        self.pending += slot.weight
        self._queue(slot, front=True)

    def end(self, slot: Slot, error: MemcacheError) -> None:
        """Ends ``slot``, which has left the line for what became of another one."""
        self.pending -= slot.weight
        self._answer(slot, error)

    # -- growing

    def _begin(self) -> Connection:
        """Begins to open one more connection."""
        connection = Connection(self, self.server, self._settings, self._deadlines, self._loop)
        connection.retiring = self._retired
        self._connections.append(connection)
        connection.connect(self.server, self._io_loop, self._transport)
        return connection

    def keep_warm(self, least: int = 0) -> None:
        """Opens what is missing of ``min_connections`` or ``least``, one after the other."""
        wanted = not (self.health.dead or self._retired)
        self._growth.keep_warm(wanted, bool(self._line), least)

    def warm_up(self) -> "asyncio.Future[None]":
        """Keeps connections warm again, after `disconnect`, and opens one at least.

        Returns the future of the moment in which they are open, or one has failed.
        """
        warmed = self._growth.warmed()
        self.keep_warm(1)
        return warmed

    def has_idle_enough(self, connection: Connection) -> bool:
        """True if so many others are idle that ``connection`` need not be kept."""
        most = self._settings.max_idle
        return (
            most is not None and not self._line and choice.tally(self._connections)["idle"] > most
        )

    def opened(self, connection: Connection) -> None:
        self._events.opened(self._loop, self.name)
        self._growth.opened()
        self.health.cold = False
        connection.hold()
        if self._settings.flush_on_reconnect and self.health.deaths > self._deaths_flushed:
            self._flush(connection)
        self._serve_line()
        if connection.retiring:
            connection.retire()  # (if the line has nothing for it)
        self.keep_warm()
        if self.on_opened is not None:
            self.on_opened()

    def _flush(self, connection: Connection) -> None:
        """Flushes a server that was dead: it may hold what is older than others stored since."""
        deaths = self.health.deaths

        def flushed(reply: Reply) -> None:
            self._deaths_flushed = max(deaths, self._deaths_flushed)

        waiter = self._loop.create_future()
        deadline = deadlines.clock() + self._settings.request_timeout
        self.pending += 1
        connection.send(slot_for(Request(b"flush_all"), waiter, flushed, deadline))

    def _serve_line(self) -> None:
        """Serves the line, unless that is being done.

        A connection that takes a slot of the line asks again: the next would overtake it.
        """
        if self._serving:
            return
        self._serving = True
        try:
            self._serve()
        finally:
            self._serving = False
            self._line.come_back()
        if not self._line:
            self._deadlines.rest(self)
        self._find_usable()

    def _serve(self) -> None:
        line = self._line
        while line.goes_on:
            slot = line.first
            if slot.abandoned():
                self.pending -= line.pop().weight
                continue
            if not self._spoken.knows(slot):
                self._spoken.ask()
                if line.first is slot:
                    break  # (it is being asked: whatever came later keeps behind)
                continue
            connection = self._choose(slot)
            if connection is None:
                if choice.waits_for_its_key(choice.bound_to(self._connections, slot)):
                    line.step_aside()  # (the others need not wait for that)
                    continue
                self._growth.grow()
                break
            line.pop()
            if self._is_overtaken(slot):
                continue
            connection.hold()
            connection.send(slot)

    def _is_overtaken(self, slot: Slot) -> bool:
        """Answers a cas whose unique became stale while it waited: it may fit any item now."""
        if not outdated(slot.request.cas_unique, self):
            return False
        self.pending -= slot.weight
        self._answer(slot, overtaken(slot.request))
        return True

    def reconsider(self) -> None:
        """Serves the line, and finds out again which connection takes calls unasked."""
        if self._line and not self.health.dead:
            self._serve_line()
        else:
            self._find_usable()

    def _find_usable(self) -> None:
        self.usable = None
        if not (self.health.dead or self._line or self.pending >= self._settings.max_pending):
            self.usable = choice.usable(self._connections)
        if self.usable is not None:
            self.usable.bound = None  # counted again once others are used

    # -- what connections tell

    def heard(self) -> None:
        if self.health.troubled and self.health.heard(deadlines.clock()):
            if not self._retired:
                self._events.up(self._loop, self.name)
            self._serve_line()
        elif self.usable is None:
            self.reconsider()
        if self._growth.cold:
            self.keep_warm()

    def _judged(self, died: bool) -> None:
        """Has it told that the server died; one that left the servers is told of no more."""
        if died and not self._retired and self.health.why is not None:
            self._events.down(self._loop, self.name, self.health.why)

    def caught_up(self, connection: Connection) -> None:
        self.reconsider()

    def silent(self, asked_at: float) -> None:
        """A request that was made at ``asked_at`` was not answered: its connection is late."""
        now = deadlines.clock()
        self.generation += 1
        why = Timeout("timed out", server=self.name, phase="reply")
        self._judged(self.health.silence(asked_at, now, why))
        if self.health.dead and not self.health.probing:
            self._fail_line(why)
        self.reconsider()

    def lost(
        self, connection: Connection, error: MemcacheError, owed: list[Slot], unsent: list[Slot]
    ) -> None:
        """Takes a closed connection out, and decides on what was under way on it."""
        if connection not in self._connections:
            return
        self._connections.remove(connection)
        error = as_failure(error, self.name)
        made = choice.was_made(connection, deadlines.clock())
        made = made or any(may_be_unknown(slot, error) for slot in owed)
        if not connection.connecting:
            self.losses += 1
            self.generation += 1
        self._events.ended(self._loop, self.name, error, not connection.connecting, self.closed)
        again, failed = sort_out(error, connection.opened_at, owed, unsent, self.closed)
        for slot in failed:
            self.pending -= slot.weight
            if self.closed:
                self._fail(slot, failure_for(slot, error))
            elif slot.awaited():
                self._refuse(slot, failure_for(slot, error))
        for slot in reversed(again):  # (older than whatever is in line)
            if not untouched_by(error):
                slot.lost_at = min(slot.lost_at, deadlines.clock())
            slot.sent = False
            slot.confirms = ()  # (what it would have confirmed went with the connection)
            self._queue(slot, front=True)
        if not self.closed:
            if not self._line and self._growth.was_for_nobody(connection):
                self.health.not_warmed(error)
            elif unmade(error) or not made:
                self._connect_failed(error, connection.begun)
            self._serve_line()
        self.keep_warm()

    def _connect_failed(self, error: MemcacheError, begun: float) -> None:
        """A connection was not made, or was closed before it had said anything.

        A server that is there and takes no more is lived with; what waited for this very
        connect may have timed out just before it.
        """
        now = deadlines.clock()
        if any(choice.takes_calls(one) for one in self._connections):
            self._growth.pause()
            return
        if unmade(error) and not isinstance(error, Timeout):
            self._judged(self.health.refused(now, error))
        else:
            self._judged(self.health.silence(begun, now, error))
        if unmade(error) or self.health.dead:
            self._fail_line(error)

    def _fail_line(self, error: MemcacheError) -> None:
        self._deadlines.rest(self)
        for slot in self._line.clear():
            self.pending -= slot.weight
            if slot.awaited():
                self._refuse(slot, failure_for(slot, error))

    # -- the line as a lane of deadlines

    def next_deadline(self) -> float:
        return self._line.next_deadline

    def catch_up(self) -> None:
        """Nothing can have come for a slot that was not sent."""

    def expire(self, now: float) -> None:
        """Ends what is due; who waits on is put back before: callbacks may call, cancel, close."""
        line = self._line
        while line.next_deadline <= now:
            slot = line.pop_due()
            error, awaited = self.failure_of(slot), slot.awaited()
            until = slot.awaited_until(now)
            if until:
                line.extend(slot, until)
            slot.expire(error, now)
            if until:
                continue
            self.pending -= slot.weight
            if awaited:
                self.failed(slot, error, slot.weight)
                asked_at = slot.deadline - self._settings.request_timeout
                self._judged(self.health.silence(asked_at, now, error))
        if not line:
            self._nobody_waits()

    def phase_of(self, slot: Slot) -> str:
        return next((one.phase for one in self._connections if one.connecting), "waiting")

    def failure_of(self, slot: Slot) -> Timeout:
        return Timeout("timed out", server=self.name, phase=self.phase_of(slot), asked=slot.asked())

    # -- the whole

    def close(self) -> None:
        """Closes all connections; what is under way fails with `.ClientClosed`."""
        self.closed = self._growth.closed = True
        self.usable = None
        error = ClientClosed("the client was closed", server=self.name)
        for connection in list(self._connections):
            connection.close(error)
        self._deadlines.rest(self)
        for slot in self._line.clear():
            self.pending -= slot.weight
            slot.fail(error.twin())

    def disconnect(self) -> None:
        """Closes all connections; what only reads is asked again on new ones."""
        self._growth.asleep = True
        connections = [one for one in self._connections if one.open]
        for connection in connections:
            connection.retiring = connection.leaving = True
        for connection in connections:
            connection.close(ConnectionFailed("disconnected", server=self.name))

    def retire(self) -> bool:
        """Takes no new calls, and closes when those under way have ended.

        Returns True if nothing is left to wait for.
        """
        if not self._retired and self.health.dead:
            self._events.up(self._loop, self.name)  # (nobody will tell of it any more)
        self._retired = True
        for connection in list(self._connections):
            connection.retire()
        return not self._connections and not self._line

    def restore(self) -> None:
        """Takes calls again, after `retire`, behind the writes that are still unanswered."""
        if self._retired:
            self._retired = False
            self._judged(self.health.dead)
            for connection in self._connections:
                connection.retiring = connection.leaving

    def abandon(self) -> int:
        """Lets go of everything of a closed loop; returns how many calls still waited there."""
        self.closed = self._growth.closed = True
        self.usable, self.pending = None, 0
        lost = sum(connection.abandon() for connection in self._connections)
        self._connections.clear()
        return lost + sum(slot.waiters_left() for slot in self._line.clear())

    def counts(self) -> dict[str, int]:
        """Returns the pool's accounts: idle + busy + connecting + late = open <= limit."""
        limit, waiting = self._settings.max_connections, len(self._line)
        own = {"limit": limit, "waiting": waiting, "pending": self.pending}
        return {**choice.tally(self._connections), **own}

    def __repr__(self) -> str:
        counts = " ".join(f"{name}={value}" for name, value in self.counts().items())
        return f"<Pool {self.name} {self.health!r} {counts}>"
