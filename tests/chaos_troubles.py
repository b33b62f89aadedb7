"""What happens to servers and networks while others make calls.

Knows memcached processes and fault proxies, and does to each what its seed
says, in a thread of its own. It must not know the package. When a server
loses its items is noted before and after, so that a miss can be told from a
value that was lost on the way.
"""

from __future__ import annotations

import heapq
import itertools
import random
import threading
import time
import traceback
from collections import Counter
from collections.abc import Iterator
from typing import Any

from .faultproxy import FaultProxy, Faults
from .memcacheds import Memcached

clock = time.monotonic


class Losses:
    """The stretches of time in which a server may have lost all its items."""

    def __init__(self) -> None:
        self._stretches: list[list[float]] = []

    def begin(self) -> None:
        self._stretches.append([clock(), float("inf")])

    def end(self) -> None:
        self._stretches[-1][1] = clock()

    def since(self, moment: float) -> bool:
        """True if the items of ``moment`` may have been lost by now."""
        return any(end >= moment for _, end in reversed(self._stretches[-3:]))


class Troubles(threading.Thread):
    """The thread that makes trouble. A life is a generator that yields lengths to wait."""

    def __init__(self) -> None:
        super().__init__(name="troubles", daemon=True)
        self.counts: Counter[str] = Counter()
        self.failure: str | None = None
        self._losses: dict[Memcached, Losses] = {}
        self._proxies: list[FaultProxy] = []
        self._lives: list[Iterator[float]] = []
        self._over = threading.Event()

    def add_server(self, server: Memcached, losses: Losses, seed: str) -> None:
        """Has ``server`` stopped, resumed, killed and started again."""
        self._losses[server] = losses
        self._lives.append(self._life_of(server, random.Random(seed)))

    def add_proxy(self, proxy: FaultProxy, seed: str, *, changes_bytes: bool) -> None:
        """Has the weather change in ``proxy``; with ``changes_bytes`` nothing is sacred."""
        self._proxies.append(proxy)
        self._lives.append(self._weather_of(proxy, random.Random(seed), changes_bytes))

    def run(self) -> None:
        order = itertools.count()
        todo = [(clock() + next(life), next(order), life) for life in self._lives]
        heapq.heapify(todo)
        try:
            while todo and not self._over.wait(max(0.0, todo[0][0] - clock())):
                _, _, life = heapq.heappop(todo)
                heapq.heappush(todo, (clock() + next(life), next(order), life))
        except Exception:
            self.failure = traceback.format_exc()

    def end(self) -> None:
        """Ends all troubles, and takes them back: blocking."""
        self._over.set()
        if self.ident is not None:
            self.join()
        for proxy in self._proxies:
            proxy.heal()
        for server, losses in self._losses.items():
            if server.pid is None:
                server.restart()
                losses.end()
            server.resume()

    # -- servers

    def _life_of(self, server: Memcached, rng: random.Random) -> Iterator[float]:
        while True:
            yield rng.uniform(0.3, 2.0)
            kind = rng.choices(["stop", "restart", "kill", "stop and kill"], [5, 2, 2, 1])[0]
            self.counts[kind] += 1
            if kind == "stop":
                server.stop()
                yield rng.choice([0.02, 0.1, 0.3, 0.6])
                server.resume()
                continue
            if kind == "stop and kill":
                server.stop()
                yield rng.uniform(0.01, 0.5)
            self._losses[server].begin()
            server.kill()
            if kind != "restart":
                yield rng.choice([0.02, 0.2, 0.8])
            server.restart()
            self._losses[server].end()

    # -- networks

    def _weather_of(
        self, proxy: FaultProxy, rng: random.Random, changes_bytes: bool
    ) -> Iterator[float]:
        while True:
            yield rng.uniform(0.05, 0.8)
            for _ in range(rng.choice([1, 1, 2, 3])):
                faults = rng.choice([proxy.requests, proxy.replies])
                self._disturb(faults, rng, changes_bytes)
            yield rng.uniform(0.05, 0.7)
            proxy.heal()
            end = rng.choice([None, None, None, "cut", "reset"])
            if end is not None:
                self.counts[f"{end} all"] += 1
                getattr(proxy, end)()

    def _disturb(self, faults: Faults, rng: random.Random, changes_bytes: bool) -> None:
        kinds = ["latency", "slice", "hold", "stall", "stall"]
        kinds += ["cut", "reset", "cut_after", "reset_after"]
        if changes_bytes:
            kinds += ["corrupt", "duplicate", "stray"] * 2
        kind = rng.choice(kinds)
        self.counts[kind] += 1
        values: dict[str, Any] = {
            "latency": lambda: rng.choice([0.001, 0.01, 0.05]),
            "slice": lambda: rng.choice([1, 7, 100, 1000]),
            "hold": lambda: True,
            "cut_after": lambda: rng.randrange(1, 20_000),
            "reset_after": lambda: rng.randrange(1, 20_000),
        }
        faults.pause = rng.choice([0.0, 0.0005, 0.002])
        setattr(faults, kind, values.get(kind, lambda: rng.choice([0.01, 0.1, 0.5]))())
