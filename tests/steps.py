"""A driver that cancels what runs at its n-th step, for every n that there is.

A **step** is one turn of the loop: the least that can pass between the begin
of a coroutine, or of a call with a callback, and its cancellation. So
whatever is done at an await or anywhere below it is met in some step. Knows
turns, and what can be done or cancelled; it must not know the package.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from contextlib import AbstractAsyncContextManager
from typing import Any, Protocol


class Run(Protocol):
    """What runs: a task is one, but for `step`."""

    def done(self) -> bool: ...

    def cancel(self) -> Any: ...

    async def step(self) -> None:
        """Lets it go on by one turn of the loop, as `turn` does."""


async def turn() -> None:
    """Lets the loop run what is ready, once."""
    await asyncio.sleep(0)


async def cancel_at_every_step(
    begin: Callable[[], AbstractAsyncContextManager[Run]], most: int = 500
) -> int:
    """Cancels a run at its step 0, 1, 2 and so on, until one has ended by itself.

    ``begin()`` is a context manager that makes everything anew, begins
    the run and gives it; when it is left, it looks at what came of it. A
    run that takes ``most`` steps does not end. Returns how many were
    cancelled.
    """
    for number in range(most):
        async with begin() as run:
            for _ in range(number):
                if not run.done():
                    await run.step()
            if run.done():
                return number
            run.cancel()
    raise AssertionError(f"it has not ended after {most} steps")
