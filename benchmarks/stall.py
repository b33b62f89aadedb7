"""A server that stops: 1 000 calls with a timeout of 100 ms, and what they cost the loop.

Measures when all are back, how many timers there are at most, and how late
the loop comes to its own. It may count the private timers of asyncio's loop,
since nothing public tells; uvloop's it cannot see.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Sequence
from typing import Any

from .apart import here, in_turn
from .clients import FLOORS, Adapter, Blocking, adapter
from .servers import started

ABOUT = "1 000 calls with a timeout of 100 ms to a server that has stopped"
#: pymemcache is left out: its calls come one after the other, and each waits for 100 ms.
CLIENTS = ("ours", "emcache", "emcache_autobatching", "aiomcache", "memcachio", "python_memcached")
CALLS = 1000
TIMEOUT = 0.1
#: Seconds after which the calls that are not back yet are given up.
GUARD = 10.0
TICK = 0.001


def missing() -> str | None:
    return None


def why_not(client: str) -> str | None:
    """Returns why a client is left out, or None."""
    if client in CLIENTS:
        return None
    if client in FLOORS:
        return "it is no client"
    return "as this client" if client.startswith("ours") else "its calls wait one after the other"


class Watch:
    """A ticker on the loop: sees how late it is, and counts the timers."""

    def __init__(self) -> None:
        self.lag = 0.0
        #: Timers at most, but for the one of who waits for the calls.
        self.timers = 0
        self._task = asyncio.ensure_future(self._tick())

    async def _tick(self) -> None:
        loop = asyncio.get_running_loop()
        while True:
            begun = time.perf_counter()
            await asyncio.sleep(TICK)
            self.lag = max(self.lag, time.perf_counter() - begun - TICK)
            live = [one for one in getattr(loop, "_scheduled", ()) if not one.cancelled()]
            self.timers = max(self.timers, len(live) - 1)

    def end(self) -> None:
        self._task.cancel()


async def measured(name: str) -> dict[str, Any]:
    """Returns the figures of one client."""
    with started(1) as (server,):
        client = adapter(name)()
        if isinstance(client, Blocking):
            client.direct = True  # (as an application does that has not thought of it)
        await client.open(server.address, TIMEOUT)
        await asyncio.gather(*[client.set(f"k{n}", b"x" * 100) for n in range(20)])
        watch = Watch()
        await asyncio.sleep(0.05)
        idle, watch.lag, watch.timers = watch.timers, 0.0, 0
        server.stop()
        begun = time.perf_counter()
        await asyncio.wait(stalled_calls(client), timeout=GUARD)
        took = time.perf_counter() - begun
        await asyncio.sleep(5 * TICK)
        watch.end()
    on_asyncio = hasattr(asyncio.get_running_loop(), "_scheduled")
    return {
        "all_back_ms": took * 1000,
        "lag_ms": watch.lag * 1000,
        # (What the client keeps anyway, as emcache its purge, counts as well.)
        "timers": watch.timers if on_asyncio else None,
        "timers_before": idle if on_asyncio else None,
    }


def stalled_calls(client: Adapter) -> list[asyncio.Future[Any]]:
    calls = []
    for number in range(CALLS):
        call = client.get(f"k{number % 1000}")
        if not client.has_deadlines:
            call = asyncio.wait_for(call, TIMEOUT)
        calls.append(asyncio.ensure_future(call))
    for one in calls:
        one.add_done_callback(lambda done: done.cancelled() or done.exception())
    return calls


def measure(
    clients: Sequence[str], rounds: int, loop: str, seconds: float, say: Callable[[str], None]
) -> dict[str, Any]:
    return in_turn("stall", clients, rounds, loop, say)


if __name__ == "__main__":
    here(measured)
