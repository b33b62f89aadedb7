"""What a call in flight, a call that gave up, and an idle connection keep in memory.

Counts the bytes that Python allocates (tracemalloc), 10 000 calls to a server
that has stopped, or 100 connections, in whole bytes for each. What the kernel
keeps for a socket is not counted. It must not know how fast anything is.
"""

from __future__ import annotations

import asyncio
import gc
import inspect
import logging
import time
import tracemalloc
from collections.abc import Awaitable, Callable, Iterator, Sequence
from typing import Any

from tests.memcacheds import Memcached
from tornado_memcache import boundary

from .apart import here, in_turn
from .checks import native
from .clients import adapter
from .servers import started

ABOUT = "bytes for each of 10 000 calls in flight, and of 100 idle connections"
CALLS = 10_000
#: Calls of one tick. Each is for another key, and the keys come again in the next tick.
A_TICK = 1000
CONNECTIONS = 100
#: Which clients have calls that can wait, and which tell how connections are made.
CLIENTS = (
    "ours",
    "emcache",
    "emcache_autobatching",
    "aiomcache",
    "memcachio",
    "bare_pipelined",
    "bare_batched",
)


def missing() -> str | None:
    return None


def why_not(client: str) -> str | None:
    """Returns why a client is left out, or None."""
    if client in CLIENTS:
        return None
    return "a column of this client" if client.startswith("ours") else "only threads wait for it"


def ignore(outcome: Any) -> None:
    """Takes an outcome that nobody wants."""


def allocated() -> int:
    gc.collect()
    return tracemalloc.get_traced_memory()[0]


# -- the ways to call this client


def plain(client: Any, keys: list[Any]) -> Iterator[Any]:
    loop = asyncio.get_running_loop()
    for key in keys:
        call = client.fetch(key)
        # A coroutine is not under way before it is a task.
        yield loop.create_task(call) if inspect.iscoroutine(call) else call


def callback(client: Any, keys: list[Any]) -> Iterator[Any]:
    return (client.fetch(key, callback=ignore, fail_callback=ignore) for key in keys)


def own_timeout(client: Any, keys: list[Any]) -> Iterator[Any]:
    return (client.fetch(key, timeout=30.0) for key in keys)


def default(client: Any, keys: list[Any]) -> Iterator[Any]:
    return (client.fetch(key, b"default") for key in keys)


def budget(client: Any, keys: list[Any]) -> Iterator[Any]:
    with boundary(ignore, timeout=30.0):
        for key in keys:
            yield client.fetch(key)


WAYS = (plain, callback, own_timeout, default, budget)


async def in_flight(
    name: str, server: Memcached, way: Callable[[Any, list[Any]], Iterator[Any]], keys: int
) -> dict[str, int]:
    """Returns the bytes for each call, and of those that gave up if they are plain and ours.

    The calls ask for ``keys`` different keys. What a client remembers of
    the keys that it knows already is not counted.
    """
    client: Any = adapter(name)()
    asked = [native(client, f"key:{number % keys:06d}") for number in range(CALLS)]
    ticks = [asked[first : first + A_TICK] for first in range(0, CALLS, A_TICK)]
    await client.open_best([server.address], CALLS, 100)
    for tick in ticks:
        await asyncio.gather(*map(client.fetch, tick))
    server.stop()
    calls: list[Any] = [None] * CALLS
    numbers = iter(range(CALLS))
    tracemalloc.start()
    before = allocated()
    for tick in ticks:
        for call in way(client, tick):
            calls[next(numbers)] = call
        await asyncio.sleep(0)
    for _ in range(5):
        await asyncio.sleep(0.002)
    found = {way.__name__: round((allocated() - before) / CALLS)}
    if name == "ours" and way is plain:
        await asyncio.wait(calls, timeout=10)
        for call in calls:
            call.exception()
        calls[:] = [None] * CALLS
        del call
        if left := round((allocated() - before) / CALLS):
            # (Nothing is left where a busy machine was too late: the connection is closed.)
            found["tombstone"] = left
    tracemalloc.stop()
    await _ended(client, name, calls)
    return found


async def _ended(client: Any, name: str, calls: list[Any]) -> None:
    """Ends calls that nobody wants, and their client."""
    for call in calls:
        if call is not None:
            call.add_done_callback(lambda done: done.cancelled() or done.exception())
            call.cancel()
    closing = client.close()
    if name == "ours":
        await closing
    else:
        closing.close()  # (which would wait for the calls; the process ends anyway)


async def connections(name: str, server: Memcached) -> dict[str, int]:
    """Returns the bytes of an idle connection, new and used; nothing where none can be had."""
    client = adapter(name)()
    open_connections: Callable[[str, int], Awaitable[Any]] | None = getattr(
        client, "open_connections", None
    )
    if open_connections is None:
        return {}
    # (What the first ones bring along for all.)
    first = await open_connections(server.address, 2)
    await client.use_connections(first, 2)
    await asyncio.sleep(0.05)
    tracemalloc.start()
    before, others = allocated(), int(server.stats()["curr_connections"])
    keep = await open_connections(server.address, CONNECTIONS)
    until, count = time.monotonic() + 10, 0
    while count < CONNECTIONS and time.monotonic() < until:
        await asyncio.sleep(0.02)
        count = int(server.stats()["curr_connections"]) - others
    if count < CONNECTIONS:
        raise RuntimeError(f"it opened {count} of {CONNECTIONS} connections")
    await asyncio.sleep(0.05)
    new = allocated() - before
    await client.use_connections(keep, CONNECTIONS)
    await asyncio.sleep(0.05)
    used = allocated() - before
    del keep, first
    tracemalloc.stop()
    return {"connection": round(new / count), "used_connection": round(used / count)}


async def measured(name: str) -> dict[str, Any]:
    """Returns the figures of one client."""
    logging.disable()
    asyncio.get_running_loop().set_exception_handler(lambda *_: None)
    figures: dict[str, Any] = {}
    # Connections first: calls that nobody waits for any more would stand in the way.
    with started(1) as (server,):
        figures.update(await connections(name, server))
    for way in WAYS if name == "ours" else WAYS[:1]:
        with started(1) as (server,):
            figures.update(await in_flight(name, server, way, A_TICK))
    with started(1) as (server,):
        # A key that was never asked for, or too long ago, is checked and encoded again.
        figures["new_keys"] = (await in_flight(name, server, plain, CALLS))["plain"]
    return figures


def measure(
    clients: Sequence[str], rounds: int, loop: str, seconds: float, say: Callable[[str], None]
) -> dict[str, Any]:
    # (The figures hardly differ from one round to the next.)
    return in_turn("memory", clients, min(rounds, 3), loop, say)


if __name__ == "__main__":
    here(measured)
