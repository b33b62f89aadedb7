"""The values that are being computed in this process, and who waits for which.

Knows that one is computed at a time for each key, that all who want it get
the one outcome, and how one waits while another process computes. It must
not know how a lease is kept, nor how a caller is told.
"""

import asyncio
import logging
import random
from collections import OrderedDict
from collections.abc import Callable, Iterator
from contextvars import Context, ContextVar
from typing import Any, NamedTuple

from .call import CallbackCall, FutureCall
from .deadlines import NEVER, clock, detached
from .errors import ClientClosed, ItemTooLarge, MemcacheError, ReplyError, Timeout, shown
from .factories import produce
from .leases import ALONE, HELD, HIT, MISSED, WON, Found, Lease, Leases, Server
from .protocol import Item, fail
from .values import Values

_log = logging.getLogger("tornado_memcache")

#: The pauses of one who waits for another process, in seconds: they grow by half.
FIRST_PAUSE, LONGEST_PAUSE = 0.005, 0.1
#: So many keys that others recompute are remembered, to see whether they ever end.
NOTED = 1024

#: Those whose factories run in this context: what these ask for must not wait for them.
_making: "ContextVar[tuple[Computation, ...]]" = ContextVar("_making", default=())

Caller = CallbackCall | FutureCall
#: A key and its server.
Place = tuple[str, bytes]


class Want(NamedTuple):
    """What one caller gave: how the value is made, in which context, and how it is kept."""

    factory: Callable[..., Any]
    lock_timeout: float
    context: Context
    #: None: as the table's client does.
    values: Values | None = None


class Computations:
    """The table of what is computed in this process, and its counts.

    ``computed`` counts the times that a factory was called, ``stored`` the
    values that came of it and were stored, ``waited`` the calls that got
    what another one had computed, and ``stale`` those that were served
    with the value that is there while it was computed anew.
    """

    def __init__(self, values: Values) -> None:
        self._values = values
        self.computed = self.stored = self.waited = self.stale = 0
        self._of: dict[Place, Computation] = {}
        self._all: set[Computation] = set()
        self._noted: OrderedDict[Place, tuple[int, float]] = OrderedDict()
        self._unstored: set[str] = set()
        #: The servers without meta commands, and their pools' generation when that was seen.
        self._classic: dict[str, int] = {}
        self._loop: asyncio.AbstractEventLoop | None = None

    def bind(self, loop: asyncio.AbstractEventLoop) -> None:
        """Forgets what was of another loop: nobody there can be told anything."""
        if loop is not self._loop:
            self._loop = loop
            self._all.clear()
            self._of.clear()
            self._noted.clear()

    def take(self, place: Place, leases: Leases, found: Found, caller: Caller, want: Want) -> None:
        """Has ``caller``, who has found no value, wait for the one that is or will be computed."""
        one = self._of.get(place)
        if one is not None and one.late and one.holds(found):
            leases.release(found.lease)  # type: ignore[arg-type]
            found = Found(MISSED)
        if one is None or not one.serves(found):
            values = want.values or self._values
            one = self._of[place] = Computation(self, place, leases, values, found)
            self._all.add(one)
            one.join(caller, want)
            one.begin(found)
        elif one in want.context.get(_making, ()):
            told = f"{one.asked()}: its own factory asks for it, and would wait for itself"
            caller.set_exception(RuntimeError(told))
        else:
            self.waited += 1
            one.join(caller, want)

    def served(self, place: Place, leases: Leases, lease: Lease, lock_timeout: float) -> None:
        """Notes that a value was served which somebody computes anew.

        Whoever has won that has no end on the server: if the same one is
        met again after ``lock_timeout`` he has died, and it is taken from him.
        """
        self.stale += 1
        unique, since = self._noted.get(place, (None, 0.0))
        if unique != lease.unique:
            if len(self._noted) >= NOTED and place not in self._noted:
                _, oldest = next(iter(self._noted.values()))
                if clock() - oldest < 2 * lock_timeout:
                    return  # (it may be met yet; this one's turn comes when there is room)
                self._noted.popitem(last=False)
            self._noted[place] = lease.unique, clock()
            self._noted.move_to_end(place)
        elif clock() - since >= lock_timeout:
            del self._noted[place]
            leases.release(lease)

    def ended(self, one: "Computation") -> None:
        self._all.discard(one)
        if self._of.get(one.place) is one:
            del self._of[one.place]

    def forget(self, place: Place) -> None:
        """Lets nobody else join what is computed there: it is from before an invalidation."""
        self._of.pop(place, None)

    def note_stored(self, server: str) -> None:
        self.stored += 1
        if server in self._unstored:
            self._unstored.discard(server)
            _log.info("memcached %s: computed values are stored again", server)

    def note_unstored(self, server: str, why: object) -> None:
        """Tells once that values are computed in vain, until one is stored."""
        if server not in self._unstored:
            self._unstored.add(server)
            told = "memcached %s: a computed value is not stored: %s (told once until one is)"
            _log.warning(told, server, why)

    def is_classic(self, server: Server) -> bool:
        """True if ``server`` was seen to have no meta commands, and is the same as then."""
        return self._classic.get(server.name) == server.generation

    def note_classic(self, server: Server, why: object) -> None:
        if server.name not in self._classic:
            _log.warning(
                "memcached %s has no meta commands: get_or_set computes under locks by add, "
                "and nothing is served stale or computed early (%s)",
                server.name,
                why,
            )
        self._classic[server.name] = server.generation

    def close(self, loop: asyncio.AbstractEventLoop | None) -> None:
        """Ends everything with `.ClientClosed`; what was not of ``loop`` nobody can be told."""
        running, self._all = self._all, set()
        if loop is not None and loop is self._loop:
            for one in running:
                one.close()
        self._of.clear()
        self._noted.clear()

    def __repr__(self) -> str:
        return (
            f"<Computations computed={self.computed} stored={self.stored} "
            f"waited={self.waited} stale={self.stale}, {len(self._all)} under way>"
        )


class Computation:
    """One value on its way, and those who want it: it is computed here, or waited for.

    It ends when the last of them has left. A call waits on it as on a slot.
    """

    def __init__(
        self, table: Computations, place: Place, leases: Leases, values: Values, found: Found
    ) -> None:
        self.place = place
        self._table, self._leases, self._values = table, leases, values
        self._callers: dict[Caller, Want] = {}
        #: What is held by this process, or by the one that is waited for.
        self._lease = found.lease
        self._computes = found.state in (WON, ALONE)
        self._since = self._begun = clock()
        #: The moment at which the time of whoever computes here is over.
        self._until = NEVER
        self._pause = FIRST_PAUSE
        self._task: asyncio.Task[None] | None = None
        self._over = False

    def serves(self, found: Found) -> bool:
        """True if one who has ``found`` this may have the value that comes of this one.

        Not if the lease is another one than that under which it is
        computed here: the key was changed since, perhaps by him. Nor if the
        time of the factory that runs is over: it may never end.
        """
        if self.late:
            return False
        if found.state == HELD and self._computes:
            return self.holds(found)
        # (Who has missed, where there are locks, has not seen whose lock is there.)
        return found.state != WON and not (found.state == MISSED and self._computes)

    @property
    def late(self) -> bool:
        """True if it is computed here, for longer than ``lock_timeout``."""
        return clock() >= self._until

    def holds(self, found: Found) -> bool:
        """True if it is computed here under the lease that was ``found``."""
        mine, other = self._lease if self._computes else None, found.lease
        return mine is not None and other is not None and mine.unique == other.unique

    def begin(self, found: Found) -> None:
        loop = asyncio.get_running_loop()
        self._task = detached(loop.create_task, self._run(found))

    # -- callers

    def join(self, caller: Caller, want: Want) -> None:
        self._callers[caller] = want
        caller.work = self

    def expire_waiter(self, caller: Any) -> None:
        """The caller's own deadline has come."""
        phase = "computing" if self._computes else "waiting"
        server, asked = self.place[0], self.asked()
        self.waiter_left(caller)
        fail(caller, Timeout("timed out", server=server, phase=phase, asked=asked))

    def waiter_left(self, caller: Any) -> None:
        """The caller has gone; the last one is whom all of it was for."""
        self._callers.pop(caller, None)
        if not self._callers:
            self._end()

    def close(self) -> None:
        """Ends it with `.ClientClosed`."""
        self._fail(ClientClosed(f"{self.asked()}: the client is closed", server=self.place[0]))

    def asked(self) -> str:
        return f"get_or_set {shown(self.place[1])}"

    # -- how it ends

    def _end(self) -> None:
        """Ends at once: nobody joins it any more, and a lease that it has is given back."""
        if self._over:
            return
        self._over = True
        self._table.ended(self)
        task, self._task = self._task, None
        if self._computes and self._lease is not None:
            self._leases.release(self._lease)
        if task is not None:
            task.cancel()

    def _give(self, value: Any, callers: "list[Caller]") -> None:
        for caller in self._taken(callers):
            caller.set_result(value)

    def _fail(self, error: BaseException) -> None:
        callers = list(self._callers)
        self._end()
        for caller in self._taken(callers):
            if isinstance(error, MemcacheError):
                fail(caller, error.twin())
            else:
                caller.set_exception(error)

    def _taken(self, callers: "list[Caller]") -> Iterator[Caller]:
        """Yields those of ``callers`` who still wait, and do so no longer."""
        for caller in callers:
            if self._callers.pop(caller, None) is not None and not caller.done():
                yield caller

    # -- what it does meanwhile

    async def _run(self, found: Found) -> None:
        try:
            while not self._computes:
                callers = list(self._callers)  # (a reading serves those who came before it)
                found = await self._look_again(found)
                self._computes, self._lease = found.state in (WON, ALONE), found.lease
                if found.state == HIT:
                    self._give(self._value_of(found.item), callers)
                    found = Found(MISSED)
                    if not self._callers:
                        return self._ended()
            value = await self._computed()
            callers = list(self._callers)
            self._ended()
            self._give(value, callers)
        except asyncio.CancelledError:
            # Nobody waits any more, unless whoever ends the loop has cancelled all tasks.
            self._failed(ClientClosed(f"{self.asked()}: cancelled with the loop's tasks"))
            raise
        except BaseException as error:
            self._failed(error)
            if not isinstance(error, Exception):
                raise

    def _ended(self) -> None:
        self._task = None  # (which is the one that ends here)
        self._end()

    def _failed(self, error: BaseException) -> None:
        self._task = None
        self._fail(error)

    async def _look_again(self, found: Found) -> Found:
        """Waits for whoever computes, or takes it from him when his time is over; reads again."""
        lock_timeout, now = self._first_want().lock_timeout, clock()
        if now - self._begun >= 2 * lock_timeout:
            return Found(ALONE)
        if found.state == HELD and found.lease is not None:
            left = self._since + lock_timeout - now
            if left > 0:
                await asyncio.sleep(min(left, self._pause * random.uniform(0.5, 1)))
                self._pause = min(self._pause * 1.5, LONGEST_PAUSE)
            else:
                self._leases.release(found.lease)
        try:
            again = await self._leases.read()
        except ClientClosed:
            raise
        except MemcacheError:  # (its pool has counted and told it)
            return Found(ALONE)
        if again.lease is None or found.lease is None or again.lease.unique != found.lease.unique:
            self._since = clock()
        return again

    def _value_of(self, item: Item | None) -> Any:
        assert item is not None
        return self._values.decode(self.place[1], item.value, item.flags)

    def _first_want(self) -> Want:
        return next(iter(self._callers.values()))

    async def _computed(self) -> Any:
        """Returns what the factory of one who waits has made, stored if there is a lease for it."""
        lock_timeout, begun = self._first_want().lock_timeout, clock()
        task = await self._made()
        if task.cancelled():
            raise RuntimeError(f"{self.asked()}: the factory was cancelled")
        value = task.result()
        if not self._over:
            data, flags = self._values.encode(self.place[1], value)
            if self._lease is not None and not await self._stored(self._lease, data, flags):
                took = clock() - begun
                if took > lock_timeout:
                    why = f"it took {took:.1f} s, longer than lock_timeout"
                    self._table.note_unstored(self.place[0], why)
        return value

    async def _made(self) -> "asyncio.Task[Any]":
        """Returns the first factory that has ended.

        It is that of one who waits. When his time is over, and it may
        never end, that of the next one runs too.
        """
        asked: set[Caller] = set()
        running: set[asyncio.Task[Any]] = set()
        try:
            while True:
                length = None
                caller = next((one for one in self._callers if one not in asked), None)
                if caller is not None:
                    want = self._callers[caller]
                    length = want.lock_timeout
                    asked.add(caller)
                    running.add(self._begun_for(want))
                first = asyncio.FIRST_COMPLETED
                ended, _ = await asyncio.wait(running, timeout=length, return_when=first)
                if ended:
                    return ended.pop()
        finally:
            for task in running:
                if not (task.cancel() or task.cancelled()):
                    task.exception()  # (of two that end at once one is told)

    def _begun_for(self, want: Want) -> "asyncio.Task[Any]":
        self._table.computed += 1
        self._until = clock() + want.lock_timeout
        want.context.run(_making.set, (*want.context.get(_making, ()), self))
        return want.context.run(asyncio.get_running_loop().create_task, produce(want.factory))

    async def _stored(self, lease: Lease, data: bytes, flags: int) -> bool:
        """Stores what was made; False if the lease was lost. A server that fails is no failure."""
        server = self.place[0]
        try:
            stored = await self._leases.store(lease, data, flags)
        except (ItemTooLarge, ClientClosed):
            raise
        except MemcacheError as error:
            if isinstance(error, ReplyError):  # (what else there is its pool tells)
                self._table.note_unstored(server, error)
            return True
        self._lease = None
        if stored:
            self._table.note_stored(server)
        return stored
