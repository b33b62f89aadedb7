"""Calls of a chaos run under one boundary, and the accounts of what came to it.

Knows `boundary` and calls. It must not know what was asked.
"""

from __future__ import annotations

import asyncio
import random
from collections.abc import Callable, Iterator
from typing import Any

from tornado_memcache import boundary
from tornado_memcache.boundaries import Entry, current

from .chaos_witness import CALL, Call, Witness, clock


class Oops(Exception):
    """What the callbacks of a group raise, now and then."""


class Group:
    """A boundary of a random kind, entered once, and the calls that are made under it.

    With ``awaits`` its body awaits the calls, and their failures leave it.
    """

    def __init__(
        self,
        witness: Witness,
        rng: random.Random,
        request_timeout: float,
        around: Group | None = None,
        *,
        awaits: bool = False,
    ) -> None:
        self.calls: dict[Call, None] = {}
        #: The moment by which its budget ends its calls.
        self.deadline = around.deadline if around is not None else float("inf")
        self._witness = witness
        self._around = around
        self._within: list[Group] = []
        self._awaits = awaits
        self._once = rng.random() < 0.4
        self._budget = request_timeout * rng.choice([0.1, 0.5, 2]) if rng.random() < 0.4 else None
        self._catches_oops = not awaits and rng.random() < 0.5
        #: What it is told it hands on to the boundary around it.
        self._hands_on = around is not None and rng.random() < 0.3
        self._cancel_after = rng.random() * request_timeout if rng.random() < 0.2 else None
        self._cancelling: asyncio.TimerHandle | None = None
        self._heard = 0
        self._raised = 0
        self._caught = 0
        self._entry: Entry | None = None
        self._boundary = boundary(
            self.failed,
            once=self._once,
            timeout=self._budget,
            catch=Oops if self._catches_oops else (),
        )
        if around is not None:
            around._within.append(self)

    def __str__(self) -> str:
        return f"{self._entry!r} of {', '.join(map(str, self.calls))}"

    def __enter__(self) -> Group:
        self._entry = self._boundary.__enter__()
        if self._budget is not None:
            self.deadline = min(self.deadline, clock() + self._budget)
        if self._cancel_after is not None:
            self._cancelling = self._witness.loop.call_later(self._cancel_after, self._cancel)
        return self

    def __exit__(self, *exc_info: Any) -> bool:
        left = self._boundary.__exit__(*exc_info)
        if self._awaits and self._entry is not None and self._entry.ended:
            for call in self.calls:
                if call.ended is None:
                    call.tell("cancelled")
        return left

    def catches_oops(self) -> bool:
        """True if this one or one around it takes what a callback raises."""
        around = self._around
        return self._catches_oops or (around is not None and around.catches_oops())

    def raising(self, call: Call) -> Callable[[Any], None]:
        """Returns a callback for ``call`` that raises, for the boundary that catches it."""

        def callback(result: Any) -> None:
            call.succeeded(result)
            self._raised += 1
            raise Oops(call)

        return callback

    def failed(self, error: Any) -> None:
        """The fail_callback of the boundary."""
        call, entry = CALL.get(), self._entry
        assert entry is not None
        self._heard += 1
        if self._once and self._heard > 1:
            self._witness.violated("I1", f"{self}: a once boundary was told again: {error!r}")
        if call is None or call not in self._all_calls():
            self._witness.violated("I9", f"{self}: told {error!r} in the context of {call}")
            return
        if current() is not entry.outer:
            self._witness.violated("I9", f"{call}: its boundary was told under {current()!r}")
        if isinstance(error, Oops):
            self._caught += 1
            if error.args[0] is not call:
                self._witness.violated("I9", f"{call}: told what {error} has raised")
        elif not self._hands_on:
            call.tell("failed", error)
        self._settle(but=call)
        if self._hands_on and not isinstance(error, Oops):
            raise error

    def _all_calls(self) -> Iterator[Call]:
        yield from self.calls
        for group in self._within:
            yield from group._all_calls()

    def _cancel(self) -> None:
        self._cancelling = None
        assert self._entry is not None
        self._entry.cancel()
        self._settle()

    def _settle(self, but: Call | None = None) -> None:
        """Once it has ended, notes what was cancelled by that: nobody else is told."""
        assert self._entry is not None
        if not self._entry.ended:
            return
        for call in self._all_calls():
            future = call.future
            done = future is not None and future.done() and not future.cancelled()
            if call.ended is None and not (done or call.coming or call is but):
                call.tell("cancelled")

    def check(self) -> None:
        """I1: nothing was counted twice, nothing was swallowed."""
        entry = self._entry
        assert entry is not None
        if self._cancelling is not None:
            self._cancelling.cancel()
        for group in self._within:
            group.check()
        if self._around is None and self._sum("_raised") != self._sum("_caught"):
            self._witness.violated("I1", f"{self}: an exception of a callback was lost or doubled")
        if self._within or self._around is not None:
            return
        cancelled = sum(call.ended == "cancelled" for call in self.calls)
        if entry.cancelled != cancelled:
            told = f"it counted {entry.cancelled} cancelled calls, {cancelled} were"
            self._witness.violated("I1", f"{self}: {told}")

    def _sum(self, name: str) -> int:
        number: int = getattr(self, name)
        return number + sum(group._sum(name) for group in self._within)
