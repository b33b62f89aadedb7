"""What get_or_set is worth: ``python -m benchmarks.stampede [--write]``.

Counts how often a cold key is computed for many callers in many processes, and
times readers while another process computes for a second, with get_or_set and
with get and set. With ``--write`` the plot of ``docs/stampede.rst`` is made of it.
``tests/test_stampede.py`` and ``tests/test_stampede_fleet.py`` assert what holds
on any machine.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import tempfile
import time
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

from tests.fleet import Worker
from tests.memcacheds import Memcached
from tornado_memcache import Client

from . import svg

PLOT = Path(__file__).resolve().parent.parent / "docs" / "stampede.svg"
PROCESSES, CALLERS = 8, 25
#: Seconds that a value takes to be computed while it is read.
TAKES = 1.0
READERS = 16
#: Seconds between two readings of one reader: the machine is busy, and not full.
PAUSE = 0.002


def ready(server: str, number: int) -> list[Worker]:
    workers = [Worker(server) for _ in range(number)]
    for worker in workers:
        assert worker.line() == "ready\n"
    return workers


def cold(workers: list[Worker], naive: bool) -> tuple[int, float]:
    """Returns how often a cold key was computed, and the seconds until all had it."""
    with tempfile.NamedTemporaryFile("r") as log:
        begun = time.monotonic()
        key = "cold-naive" if naive else "cold"
        for worker in workers:
            worker.order(key=key, callers=CALLERS, takes=0.3, naive=naive, log=log.name)
        answers = [value for worker in workers for value in json.loads(worker.line())]
        assert len(answers) == PROCESSES * CALLERS and all(answers)
        return len(log.readlines()), time.monotonic() - begun


async def read_for(seconds: float, read: Callable[[], Awaitable[Any]]) -> list[float]:
    """Has readers read for so long; returns how long each reading took, sorted."""
    took: list[float] = []
    end = time.monotonic() + seconds

    async def reader() -> None:
        while (begun := time.monotonic()) < end:
            await read()
            took.append(time.monotonic() - begun)
            await asyncio.sleep(PAUSE)

    await asyncio.gather(*[reader() for _ in range(READERS)])
    return sorted(took)


def p99(took: list[float]) -> float:
    return took[len(took) * 99 // 100]


async def readers(server: str, worker: Worker) -> dict[str, list[float]]:
    async def compute() -> str:
        await asyncio.sleep(TAKES)
        return "computed by a reader"

    async with Client([server]) as mc:
        await mc.set("page", "old", 1000)

        async def guarded() -> Any:
            return await mc.get_or_set("page", compute, 1000, stale=600)

        async def plain() -> Any:
            value = await mc.get("page")
            if value is None:
                await mc.set("page", value := await compute(), 1000)
            return value

        await read_for(0.5, guarded)
        found = {"before": await read_for(TAKES, guarded)}
        assert await mc.invalidate("page", stale_for=600)
        with tempfile.NamedTemporaryFile("r") as log:
            worker.order(key="page", takes=TAKES, log=log.name)
            while not log.readlines():
                await asyncio.sleep(0.005)
            found["meanwhile"] = await read_for(TAKES * 0.95, guarded)
            assert "page by" in await asyncio.to_thread(worker.line)
        assert mc.computations.computed == 0 and mc.computations.stale > 0
        await mc.delete("page")
        found["plain"] = await read_for(TAKES, plain)
    return found


def plot(computed: dict[str, int], found: dict[str, list[float]]) -> str:
    colours = {"get_or_set": svg.OURS, "get and set": svg.PEERS[0]}
    counts = [svg.Bar(name, n, str(n), colours[name]) for name, n in computed.items()]
    named = {
        "nothing is computed": ("before", svg.FLOOR),
        "get_or_set, stale": ("meanwhile", svg.OURS),
        "get and set": ("plain", svg.PEERS[0]),
    }
    times = [
        svg.Bar(name, 1e3 * p99(found[which]), f"{1e3 * p99(found[which]):.1f}", colour)
        for name, (which, colour) in named.items()
    ]
    callers = f"{PROCESSES * CALLERS} callers, {PROCESSES} processes"
    panels = [
        (f"times computed, a cold key, {callers}", counts),
        (f"p99 of a reader while one computes for {TAKES:.0f} s, ms", times),
    ]
    return svg.bars("One computes what many want", panels, columns=1)


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.stampede")
    parser.add_argument("--write", action="store_true", help=f"make {PLOT.name} of it")
    chosen = parser.parse_args()
    server = Memcached()
    workers: list[Worker] = []
    try:
        workers += ready(server.address, PROCESSES)
        computed = {}
        for name in ("get and set", "get_or_set"):
            computed[name], seconds = cold(workers, name == "get and set")
            print(f"cold, {name}: computed {computed[name]} times, all had it in {seconds:.2f} s")
        found = asyncio.run(readers(server.address, workers[0]))
        for name, took in found.items():
            middle = 1e3 * took[len(took) // 2]
            print(
                f"{name}: {len(took)} readings, p50 {middle:.2f} ms, p99 {1e3 * p99(took):.2f} ms"
            )
        if chosen.write:
            PLOT.write_text(plot(computed, found))
    finally:
        for worker in workers:
            worker.close()
        server.close()


if __name__ == "__main__":
    main()
