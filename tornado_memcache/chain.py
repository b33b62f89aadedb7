"""One call whose requests follow one another, and its one outcome.

Knows that each request waits for the replies before it, that some have only
a share of the time, and that the whole ends by one deadline. It must not know
what is asked or why: a generator says that.
"""

import asyncio
import math
import time
from collections.abc import Callable, Generator, Sequence
from contextvars import Context
from functools import partial
from typing import Any, NamedTuple, TypeAlias

from .deadlines import Deadlines, clock
from .errors import MemcacheError, Timeout
from .gutter import shortened
from .outcomes import as_it_is
from .protocol import Reply, Request, Slot, as_outcome, fail
from .slots import slot_for


class Ask(NamedTuple):
    """One request and the pool that takes it.

    The server has ``length`` seconds for it; with ``shared`` about half of
    what the call has left is all that is waited for its reply.
    """

    pool: Any
    request: Request
    length: float
    shared: bool = False


Outcome: TypeAlias = Reply | MemcacheError
#: Yields what is to be asked at once, is sent what that came to, and returns the reply.
Steps: TypeAlias = Generator[Sequence[Ask], Sequence[Outcome], Reply]


def share_of(seconds: float) -> float:
    """Returns between a quarter and half of ``seconds``: one of few lengths, for their lanes."""
    return 2.0 ** math.floor(math.log2(max(seconds, 1e-6) / 2))


class Step:
    """What waits on one slot of a `Chain`."""

    __slots__ = ("_chain", "_done", "_index", "lane", "own_deadline", "slot")

    def __init__(self, chain: "Chain", index: int, own_deadline: float | None) -> None:
        self._chain = chain
        self._index = index
        self._done = False
        self.own_deadline = own_deadline
        self.lane: tuple[str, float] | None = None
        self.slot: Slot | None = None

    @property
    def whole(self) -> Any:
        """Who waits for the call."""
        return self._chain.whole

    def done(self) -> bool:
        return self._done or self._chain.over

    def exception(self) -> None:
        return None

    def set_result(self, reply: Reply) -> None:
        self._end(reply)

    def set_exception(self, error: MemcacheError) -> None:
        self._end(error)

    def _end(self, outcome: Outcome) -> None:
        self._done = True
        self._chain.took(self._index, self, outcome)

    def expire(self) -> None:
        """Its share of the time is over, or all of it."""
        if self.slot is not None and not self.done():
            self.slot.expire_waiter(self)


class Chain:
    """The steps of one call, begun by `start` when all chains ``ahead`` have ended.

    The call is over by the deadline of ``waiter``, if it has one of its
    own, else by ``length`` seconds from now. It is called by slots as they
    are, and by whoever else ends a call.
    """

    def __init__(
        self,
        waiter: Any,
        steps: Steps,
        outcome: Callable[[Reply], Any],
        asked: str,
        loop: asyncio.AbstractEventLoop,
        register: Deadlines,
        length: float,
        ended: Callable[["Chain"], None],
    ) -> None:
        self.waiter = waiter
        #: What a message says of the call.
        self.asked = asked
        self._loop = loop
        self.whole = getattr(waiter, "whole", waiter)
        self.over = False
        #: How many chains have to end before this one begins, and those that wait for it.
        self.ahead = 0
        self.followers: list[Chain] = []
        #: The keys that nobody else may write meanwhile.
        self.keys: Sequence[bytes] = ()
        self._steps = steps
        self._outcome = outcome
        self._register = register
        self._ended = ended
        self._replies: list[Any] = []
        self._missing = 0
        self._under_way: list[Step] = []
        self._late = False
        self._own: float | None = getattr(waiter, "own_deadline", None)
        self._deadline = clock() + length if self._own is None else self._own
        self._lane = None if self._own is not None else ("chain", length)
        if self._lane is not None:
            register.add(self._lane, self._deadline, self)
        if type(self.whole) is asyncio.Future:
            self.whole.add_done_callback(lambda _: self.waiter_left(waiter), context=Context())

    def start(self) -> None:
        """Begins, unless something is ahead: the last of that begins it."""
        if not (self.over or self.ahead):
            self._advance(None)

    def _advance(self, replies: Any) -> None:
        try:
            asks = self._steps.send(replies)
            while not asks:
                asks = self._steps.send(())
        except StopIteration as end:
            self._finish(end.value)
        except Exception as error:  # (a ring may be a user's code)
            failure = as_outcome(error, self.asked)
            if replies is None:
                self._fail_soon(failure)
            else:
                self.fail(failure)
        else:
            self._ask(asks)

    def _fail_soon(self, error: MemcacheError) -> None:
        """Nobody is told anything within the very call that he makes."""
        self._loop.call_soon(partial(self.fail, error), context=Context())

    def _ask(self, asks: Sequence[Ask]) -> None:
        now = clock()
        self._replies, self._missing = [None] * len(asks), len(asks)
        self._under_way = []
        for index, ask in enumerate(asks):
            step = Step(self, index, None if ask.shared else self._own)
            request = ask.request
            if ask.pool.longest is not None:
                request = shortened(request, ask.pool.longest, time.time)
            step.slot = slot_for(request, step, as_it_is, now + ask.length)
            self._under_way.append(step)
        if self._late or self._deadline <= now:
            slot, self._under_way = self._under_way[0].slot, []
            self._fail_soon(asks[0].pool.failure_of(slot))
            return
        for step, ask in zip(self._under_way, asks):
            if ask.shared:
                length = share_of(self._deadline - now)
                step.lane = ("share", length)
                self._register.add(step.lane, now + length, step)
        for step, ask in zip(self._under_way, asks):
            ask.pool.submit(step.slot)

    def took(self, index: int, step: Step, outcome: Outcome) -> None:
        """Takes what one request came to; the last one goes on."""
        if step.lane is not None:
            self._register.remove(step.lane, step)
        self._replies[index] = outcome
        self._missing -= 1
        if not (self._missing or self.over):
            self._under_way = []
            self._advance(self._replies)

    # -- how it ends

    def _finish(self, reply: Reply) -> None:
        if self._end():
            try:
                result = self._outcome(reply)
            except Exception as error:
                fail(self.waiter, as_outcome(error, self.asked))
            else:
                self.waiter.set_result(result)

    def fail(self, error: MemcacheError) -> None:
        """Ends the call with ``error``, unless it has ended."""
        if self._end():
            fail(self.waiter, error)

    def _end(self) -> bool:
        """Lets go of everything; returns True if somebody waits for the outcome."""
        if self.over:
            return False
        self.over = True
        self._steps.close()
        if self._lane is not None:
            self._register.remove(self._lane, self)
        under_way, self._under_way = self._under_way, []
        for step in under_way:
            if step.lane is not None:
                self._register.remove(step.lane, step)
            if step.slot is not None:
                step.slot.waiter_left(step)
        self._ended(self)
        return not self.waiter.done()

    def failure(self) -> Timeout:
        """Returns what a timeout would be told as now, by where the request under way stands."""
        for step in self._under_way:
            if step.slot is not None and step.slot.place is not None:
                return step.slot.place.failure_of(step.slot)
        return Timeout("timed out", phase="waiting", asked=self.asked)

    def expire(self) -> None:
        """The deadline of the whole has come: what is under way times out."""
        self._late = True
        for step in list(self._under_way):
            step.expire()
        if not self.over:  # (it waits for what is ahead)
            self.fail(Timeout("timed out", phase="waiting", asked=self.asked))

    def expire_waiter(self, waiter: Any) -> None:
        self.expire()

    def waiter_left(self, waiter: Any) -> None:
        """The caller was cancelled. What has left is not taken back."""
        self._end()

    def __repr__(self) -> str:
        state = "over" if self.over else f"{self.ahead} ahead, {self._missing} under way"
        return f"<Chain {self.asked} {state}>"
