"""A rolling restart of four memcacheds under load: ``python -m benchmarks.rolling``.

Knows what every call came to and when, in both styles and of many keys, and
which server was away from when to when. It must not know how the client
judges a server. ``tests/test_rolling.py`` asserts what holds on any machine.
"""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import json
import logging
import time
from collections import Counter
from collections.abc import Awaitable, Callable, Sequence
from typing import Any, NamedTuple

from tests.memcacheds import Memcached
from tests.networks import Connects
from tornado_memcache import Client

#: Tasks that await one call after the other, and chains of callbacks.
TASKS, CHAINS = 16, 8
KEYS = [f"key{number}" for number in range(400)]
#: Keys of one call of many.
MANY = 20
SERVERS = 4
#: Seconds without a failure that end a burst of them; the first probe comes later.
QUIET = 0.15


class Call(NamedTuple):
    """One call: its verb and keys, its beginning, its end, and what it came to."""

    verb: str
    keys: tuple[str, ...]
    begun: float
    ended: float
    outcome: Any

    @property
    def errors(self) -> list[Exception]:
        """What failed: the call, or parts of a call of many keys."""
        if isinstance(self.outcome, Exception):
            return [self.outcome]
        return list(getattr(self.outcome, "errors", {}).values())

    @property
    def is_right(self) -> bool:
        """True for a value of its key, a miss, a write that was done, or a failure."""
        if isinstance(self.outcome, Exception) or self.outcome is None:
            return True
        if self.verb == "get_multi":
            return all(value.startswith(f"{key}=") for key, value in self.outcome.items())
        if self.verb == "set_multi":
            return set(self.outcome) <= set(self.keys) and bool(self.outcome) <= bool(self.errors)
        return bool(self.outcome is True or self.outcome.startswith(f"{self.keys[0]}="))


class Load:
    """Calls without a pause, until `end`; ``calls`` are those that have ended."""

    def __init__(self, client: Client) -> None:
        self.calls: list[Call] = []
        self.made = 0
        self.stalled = 0.0
        self._client = client
        self._numbers = itertools.count()
        self._over = False
        self._tasks = [asyncio.ensure_future(self._await(n)) for n in range(TASKS)]
        self._chains = [asyncio.ensure_future(self._chain(n)) for n in range(CHAINS)]
        self._clock = asyncio.ensure_future(self._watch())

    async def _watch(self) -> None:
        while not self._over:
            begun = time.monotonic()
            await asyncio.sleep(0.002)
            self.stalled = max(self.stalled, time.monotonic() - begun)

    def _next(self, first: int) -> tuple[str, tuple[str, ...], Callable[..., Any]]:
        number = next(self._numbers)
        start = (number * 7 + first) % len(KEYS)
        key, many = KEYS[start], tuple((KEYS + KEYS)[start : start + MANY])
        match number % 4:
            case 0:
                return "set", (key,), lambda **how: self._client.set(key, f"{key}={number}", **how)
            case 1:
                return "get", (key,), lambda **how: self._client.get(key, **how)
            case 2:
                return "get_multi", many, lambda **how: self._client.get_multi(many, **how)
        values = {one: f"{one}={number}" for one in many}
        return "set_multi", many, lambda **how: self._client.set_multi(values, **how)

    def _ended(self, verb: str, keys: tuple[str, ...], begun: float, outcome: Any) -> None:
        self.calls.append(Call(verb, keys, begun, time.monotonic(), outcome))

    async def _await(self, first: int) -> None:
        while not self._over:
            verb, keys, begin = self._next(first)
            self.made, begun = self.made + 1, time.monotonic()
            try:
                outcome = await begin()
            except Exception as error:
                outcome = error
            self._ended(verb, keys, begun, outcome)
            await asyncio.sleep(0.002)

    async def _chain(self, first: int) -> None:
        """Each call is made in the callback of the one before it, or a little later."""
        loop = asyncio.get_running_loop()
        over = loop.create_future()

        def call() -> None:
            if self._over:
                over.set_result(None)
                return
            verb, keys, begin = self._next(first)
            self.made, begun = self.made + 1, time.monotonic()

            def ended(outcome: Any) -> None:
                self._ended(verb, keys, begun, outcome)
                loop.call_later(0.002, call)

            begin(callback=ended, fail_callback=ended)

        call()
        await over

    async def end(self) -> None:
        """Makes no more calls, and waits for those under way."""
        self._over = True
        await asyncio.gather(*self._tasks, *self._chains, self._clock)


class Death(NamedTuple):
    """One server's restart: the moments, and the connects to it until it was back."""

    server: str
    killed: float
    restarted: float
    back: float
    connects: int


async def roll(
    client: Client, servers: Sequence[Any], down: float, connects: Connects
) -> list[Death]:
    """Kills and restarts each server in turn, the next when the client uses the one before."""
    deaths = []
    for server in servers:
        (pool,) = [pool for pool in client._pools if pool.name == server.address]
        losses, killed = pool.losses, time.monotonic()
        await asyncio.to_thread(server.kill)
        await asyncio.sleep(down)
        await asyncio.to_thread(server.restart)
        restarted = time.monotonic()
        while pool.losses == losses or pool.health.dead or pool.usable is None:
            await asyncio.sleep(0.001)
        back = time.monotonic()
        tries = [one for one in connects.to(server.address) if killed <= one <= back]
        deaths.append(Death(server.address, killed, restarted, back, len(tries)))
        await asyncio.sleep(0.2)
    return deaths


class Found(NamedTuple):
    """What a rolling restart came to."""

    calls: list[Call]
    made: int
    stalled: float
    deaths: list[Death]


async def measured(down: float = 0.3, **options: Any) -> Found:
    """Restarts four memcacheds under load; ``options`` are the client's."""
    with contextlib.ExitStack() as stack:
        connects = stack.enter_context(Connects())
        servers = [Memcached() for _ in range(SERVERS)]
        for server in servers:
            stack.callback(server.close)
        async with Client([server.address for server in servers], **options) as client:
            load = Load(client)
            await asyncio.sleep(0.2)
            deaths = await roll(client, servers, down, connects)
            await load.end()
    return Found(load.calls, load.made, load.stalled, deaths)


def first_burst(moments: list[float]) -> float:
    """Returns the last of ``moments`` before a quiet time: later only a probe fails, if any."""
    end = 0.0
    for moment in moments:
        if moment - end > QUIET:
            break
        end = moment
    return end


def summary(found: Found) -> dict[str, Any]:
    """Returns the figures: of each death, and of all."""
    windows, last = [], []
    for death in found.deaths:
        during = [
            call
            for call in found.calls
            if call.errors and death.killed <= call.ended and call.begun <= death.back
        ]
        ends = [call.ended - death.killed for call in during]
        windows.append(first_burst(sorted(ends)))
        last.append(max(ends, default=0.0))
    failed = [call for call in found.calls if call.errors]
    return {
        "calls": found.made,
        "failed, or in part": len(failed),
        "errors": dict(Counter(type(e).__name__ for call in failed for e in call.errors)),
        "longest call, ms": round(max(c.ended - c.begun for c in found.calls) * 1e3),
        "down, ms": [round((one.restarted - one.killed) * 1e3) for one in found.deaths],
        "back after the restart, ms": [
            round((one.back - one.restarted) * 1e3) for one in found.deaths
        ],
        "error window, ms": [round(one * 1e3) for one in windows],
        "last failure, ms": [round(one * 1e3) for one in last],
        "connects during the death": [one.connects for one in found.deaths],
    }


def main() -> None:
    runs: dict[str, Awaitable[Found]] = {
        'on_dead="fail"': measured(),
        'on_dead="rehash"': measured(on_dead="rehash"),
        'on_dead="rehash", down for 2.5 s': measured(down=2.5, on_dead="rehash"),
    }

    logging.getLogger("tornado_memcache").setLevel(logging.ERROR)

    async def all_of_them() -> None:
        for name, run in runs.items():
            print(name)
            print(json.dumps(summary(await run), indent=2))

    asyncio.run(all_of_them())


if __name__ == "__main__":
    main()
