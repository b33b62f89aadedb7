"""The callers: what makes the calls of a workload on one client, and compares every value.

Knows an adapter and its steps. Three styles: awaited, blocking, by callbacks;
nothing but the client's own method stands between a caller and the client.
It must not know what the figures are for.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from typing import Any

from .clients import Adapter
from .workloads import LARGE, Workload


class Wrong(Exception):
    """A client gave a value that is not the key's."""


def wrong(key: Any, got: Any, want: bytes) -> Wrong:
    return Wrong(f"{key!r} is {str(got)[:60]}, not {want[:20]!r}... of {len(want)} bytes")


# -- awaited


async def gets(client: Adapter, steps: list[Any]) -> None:
    fetch = client.fetch
    for key, want in steps:
        got = await fetch(key)
        if got != want:
            raise wrong(key, got, want)


async def gets_of_items(client: Adapter, steps: list[Any]) -> None:
    fetch = client.fetch
    for key, want in steps:
        got = await fetch(key)
        if got is None or got.value != want:
            raise wrong(key, got, want)


async def gets_large(client: Adapter, steps: list[Any]) -> None:
    fetch, items = client.fetch, client.items
    for key, want in steps:
        got = await fetch(key)
        value = got.value if items and got is not None else got
        if value is None or len(value) != len(want) or value[:16] != want[:16]:
            raise wrong(key, value, want)


async def mix(client: Adapter, steps: list[Any]) -> None:
    fetch, store = client.fetch, client.store
    for key, want, writes in steps:
        if writes:
            await store(key, want)
            continue
        got = await fetch(key)
        if got != want:
            raise wrong(key, got, want)


async def mix_of_items(client: Adapter, steps: list[Any]) -> None:
    fetch, store = client.fetch, client.store
    for key, want, writes in steps:
        if writes:
            await store(key, want)
            continue
        got = await fetch(key)
        if got is None or got.value != want:
            raise wrong(key, got, want)


async def burst(client: Adapter, steps: list[Any]) -> None:
    fetch = client.fetch
    for keys, wants in steps:
        found = await asyncio.gather(*[fetch(key) for key in keys])
        if client.items:
            found = [item.value for item in found]
        if found != wants:
            raise Wrong(f"a burst of {len(keys)} gets brought other values")


async def multi(client: Adapter, steps: list[Any]) -> None:
    for keys, wants in steps:
        found = await client.fetch_many(keys)
        if client.values(found, keys) != wants:
            raise Wrong(f"a get_multi of {len(keys)} keys brought other values")


async def sets(client: Adapter, steps: list[Any]) -> None:
    for key, value in steps:
        await client.store(key, value)


# -- blocking


def blocking_gets(client: Adapter, steps: list[Any]) -> None:
    fetch = client.fetch
    for key, want in steps:
        got = fetch(key)
        if got != want:
            raise wrong(key, got, want)


def blocking_gets_large(client: Adapter, steps: list[Any]) -> None:
    fetch = client.fetch
    for key, want in steps:
        got = fetch(key)
        if got is None or len(got) != len(want) or got[:16] != want[:16]:
            raise wrong(key, got, want)


def blocking_multi(client: Adapter, steps: list[Any]) -> None:
    for keys, wants in steps:
        found = client.fetch_many(keys)
        if client.values(found, keys) != wants:
            raise Wrong(f"a get_multi of {len(keys)} keys brought other values")


def blocking_sets(client: Adapter, steps: list[Any]) -> None:
    for key, value in steps:
        client.store(key, value)


# -- by callbacks


class Chain:
    """A caller that awaits nothing: its callback makes the next call."""

    def __init__(self, client: Adapter, steps: list[Any], done: Callable[[Any], None]) -> None:
        self._fetch = client.fetch
        self._steps = iter(steps)
        self._want = b""
        self._done = done

    def begin(self) -> None:
        key, self._want = next(self._steps)
        self._fetch(key, callback=self.step, fail_callback=self._done)

    def step(self, got: Any) -> None:
        if got != self._want:
            return self._done(wrong("a key", got, self._want))
        step = next(self._steps, None)
        if step is None:
            return self._done(None)
        key, self._want = step
        self._fetch(key, callback=self.step, fail_callback=self._done)


async def chains(client: Adapter, parts: list[list[Any]]) -> None:
    """Has a chain for each part, until all are through or one has failed."""
    all_done = asyncio.get_running_loop().create_future()
    left = len(parts)

    def done(error: Any) -> None:
        nonlocal left
        left -= 1
        if error is not None and not all_done.done():
            all_done.set_exception(error)
        elif not left and not all_done.done():
            all_done.set_result(None)

    for part in parts:
        Chain(client, part, done).begin()
    await all_done


# -- all of a workload


AWAITED = {"gets": gets, "mix": mix, "burst": burst, "multi": multi, "sets": sets}
BLOCKING = {"gets": blocking_gets, "multi": blocking_multi, "sets": blocking_sets}


def caller_of(client: Adapter, workload: Workload) -> Any:
    """Returns the function that makes one caller's calls."""
    large = workload.kind == "gets" and workload.size >= LARGE
    if client.style == "call":
        return blocking_gets_large if large else BLOCKING[workload.kind]
    if large:
        return gets_large
    if client.items and workload.kind in ("gets", "mix"):
        return gets_of_items if workload.kind == "gets" else mix_of_items
    return AWAITED[workload.kind]


async def run(client: Adapter, workload: Workload, parts: list[list[Any]]) -> None:
    """Makes all calls, as many callers at once as there are parts."""
    caller = caller_of(client, workload)
    if client.style == "call":
        for part in parts:
            caller(client, part)
    elif client.style == "callback":
        await chains(client, parts)
    else:
        await asyncio.gather(*[caller(client, part) for part in parts])


async def run_clocked(client: Adapter, workload: Workload, parts: list[list[Any]]) -> list[float]:
    """Makes all calls and returns how long each took, in seconds."""
    caller, clock = caller_of(client, workload), time.perf_counter
    times: list[float] = []

    async def awaited(part: list[Any]) -> None:
        for step in part:
            begun = clock()
            if client.style == "call":
                caller(client, (step,))
            elif client.style == "callback":
                await chains(client, [[step]])
            else:
                await caller(client, (step,))
            times.append(clock() - begun)

    await asyncio.gather(*map(awaited, parts))
    return times
