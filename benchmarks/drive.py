"""The callers: what makes the calls of a workload on one client, and compares every value.

Knows an adapter and its steps. Three styles: awaited, blocking, by callbacks;
nothing but the client's own method stands between a caller and the client,
and all compare alike: a value as a whole, a store with what the client gives
when it stored. It must not know what the figures are for.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from functools import partial
from typing import Any

from .clients import Adapter
from .workloads import Workload


class Wrong(Exception):
    """A client gave a value that is not the key's."""


def wrong(key: Any, got: Any, want: bytes) -> Wrong:
    return Wrong(f"{key!r} is {str(got)[:60]}, not {want[:20]!r}... of {len(want)} bytes")


def refused(key: Any, outcome: Any) -> Wrong:
    return Wrong(f"a set of {key!r} gave {str(outcome)[:60]}: it was not stored")


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


async def mix(client: Adapter, steps: list[Any]) -> None:
    fetch, store, stored = client.fetch, client.store, client.stored
    for key, want, writes in steps:
        if writes:
            if (outcome := await store(key, want)) != stored:
                raise refused(key, outcome)
            continue
        got = await fetch(key)
        if got != want:
            raise wrong(key, got, want)


async def mix_of_items(client: Adapter, steps: list[Any]) -> None:
    fetch, store, stored = client.fetch, client.store, client.stored
    for key, want, writes in steps:
        if writes:
            if (outcome := await store(key, want)) != stored:
                raise refused(key, outcome)
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
    store, stored = client.store, client.stored
    for key, value in steps:
        if (outcome := await store(key, value)) != stored:
            raise refused(key, outcome)


# -- blocking


def blocking_gets(client: Adapter, steps: list[Any]) -> None:
    fetch = client.fetch
    for key, want in steps:
        got = fetch(key)
        if got != want:
            raise wrong(key, got, want)


def blocking_multi(client: Adapter, steps: list[Any]) -> None:
    for keys, wants in steps:
        found = client.fetch_many(keys)
        if client.values(found, keys) != wants:
            raise Wrong(f"a get_multi of {len(keys)} keys brought other values")


def blocking_sets(client: Adapter, steps: list[Any]) -> None:
    store, stored = client.store, client.stored
    for key, value in steps:
        if (outcome := store(key, value)) != stored:
            raise refused(key, outcome)


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


class ClockedChain(Chain):
    """A chain that keeps how long each of its calls took."""

    def __init__(self, times: list[float], *told: Any) -> None:
        super().__init__(*told)
        self._times = times

    def begin(self) -> None:
        self._begun = time.perf_counter()
        super().begin()

    def step(self, got: Any) -> None:
        now = time.perf_counter()
        self._times.append(now - self._begun)
        self._begun = now
        super().step(got)


async def chains(parts: list[list[Any]], chain: Callable[..., Chain]) -> None:
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
        chain(part, done).begin()
    await all_done


# -- all of a workload


AWAITED = {"gets": gets, "mix": mix, "burst": burst, "multi": multi, "sets": sets}
BLOCKING = {"gets": blocking_gets, "multi": blocking_multi, "sets": blocking_sets}


def caller_of(client: Adapter, workload: Workload) -> Any:
    """Returns the function that makes one caller's calls."""
    if client.style == "call":
        return BLOCKING[workload.kind]
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
        await chains(parts, partial(Chain, client))
    else:
        await asyncio.gather(*[caller(client, part) for part in parts])


async def run_clocked(client: Adapter, workload: Workload, parts: list[list[Any]]) -> list[float]:
    """Makes all calls and returns how long each took, in seconds."""
    times: list[float] = []
    if client.style == "callback":
        await chains(parts, partial(ClockedChain, times, client))
        return times
    caller, clock = caller_of(client, workload), time.perf_counter

    async def awaited(part: list[Any]) -> None:
        for step in part:
            begun = clock()
            if client.style == "call":
                caller(client, (step,))
            else:
                await caller(client, (step,))
            times.append(clock() - begun)

    await asyncio.gather(*map(awaited, parts))
    return times
