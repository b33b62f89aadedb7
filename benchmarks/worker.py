"""The process of one client: ``python -m benchmarks.worker CLIENT LOOP CORES``.

Is told on its standard input, a line of JSON each, what to do, and answers on
its standard output in the same way. Knows one client and how its calls are
timed. It must not know the other clients, nor what the figures are for.
"""

from __future__ import annotations

import asyncio
import contextlib
import gc
import json
import os
import sys
import time
from typing import Any

from .checks import check, native
from .clients import adapter
from .drive import Wrong, run, run_clocked
from .workloads import Workload, names, steps, value_of

#: The clocked calls of a round, as a part of the others.
CLOCKED = 0.25
#: Seconds that calls are made before anything is timed: connections open, caches fill.
WARM = 0.1


def new_loop(name: str) -> asyncio.AbstractEventLoop:
    """Makes the event loop called "asyncio" or "uvloop"."""
    if name == "uvloop":
        import uvloop

        loop: asyncio.AbstractEventLoop = uvloop.new_event_loop()
    else:
        loop = asyncio.new_event_loop()
    asyncio.set_event_loop(loop)
    return loop


def pin(cores: str) -> None:
    """Keeps this process on ``cores`` ("0,2"), where the system can; "" for all."""
    if cores and hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, {int(core) for core in cores.split(",")})


def percentile(times: list[float], part: float) -> float:
    """Returns the time that ``part`` of ``times`` stay below."""
    return sorted(times)[min(len(times) - 1, int(part * len(times)))]


class Measured:
    """A client under one workload at a time."""

    def __init__(self, name: str, loop: asyncio.AbstractEventLoop) -> None:
        self._adapter = adapter(name)
        self._loop = loop
        self._client: Any = None

    def prepare(self, workload: dict[str, Any], addresses: list[str], seconds: float) -> Any:
        """Makes the client, checks it, warms it up; finds how many calls take ``seconds``."""
        self._workload = Workload(**workload)
        self._client = self._adapter()
        self._loop.run_until_complete(
            self._client.open_best(addresses, self._workload.callers, self._workload.size)
        )
        # Callbacks are checked as the calls that they are; the chains compare every value.
        self._loop.run_until_complete(check(self._client, self._workload))
        self._names = names(self._workload)
        rate = self._rate()
        calls = max(self._workload.callers, int(rate * seconds))
        self._parts = self._steps(calls)
        self._few = self._steps(max(self._workload.callers, int(calls * CLOCKED)))
        return {"calls": sum(map(len, self._parts))}

    def _steps(self, calls: int) -> list[list[Any]]:
        keys = [native(self._client, name) for name in self._names]
        values = [value_of(name, self._workload.size) for name in self._names]
        return steps(self._workload, keys, values, calls)

    def _rate(self) -> float:
        """Makes ever more calls until they take a while; returns calls a second."""
        calls = self._workload.callers
        while True:
            parts = self._steps(calls)
            took, _ = self._timed(parts)
            if took >= WARM:
                return sum(map(len, parts)) / took
            calls = int(calls * min(10, max(2, 1.2 * WARM / max(took, 1e-6))))

    def _timed(self, parts: list[list[Any]]) -> tuple[float, float]:
        """Makes the calls; returns the seconds that they took, and those of this process."""
        gc.collect()
        begun, cpu = time.perf_counter(), time.process_time()
        self._loop.run_until_complete(run(self._client, self._workload, parts))
        return time.perf_counter() - begun, time.process_time() - cpu

    def round(self) -> dict[str, float]:
        """Makes the calls twice: without a clock in the way, and each with its own."""
        took, cpu = self._timed(self._parts)
        operations = sum(map(len, self._parts)) * self._workload.values_a_call
        gc.collect()
        times = self._loop.run_until_complete(run_clocked(self._client, self._workload, self._few))
        return {
            "ops": operations / took,
            "cpu": cpu / operations,
            "p50": percentile(times, 0.5),
            "p99": percentile(times, 0.99),
        }

    def close(self) -> dict[str, Any]:
        client, self._client = self._client, None
        if client is not None:
            self._loop.run_until_complete(client.close())
            self._loop.run_until_complete(asyncio.sleep(0))
        self._parts = self._few = []
        gc.collect()
        return {}


def main() -> None:
    name, loop_name, cores = sys.argv[1:]
    pin(cores)
    # What a client prints is no answer.
    answers = os.fdopen(os.dup(1), "w", buffering=1)
    os.dup2(2, 1)
    measured = Measured(name, new_loop(loop_name))
    for line in sys.stdin:
        told = json.loads(line)
        try:
            found = getattr(measured, told.pop("do"))(**told)
        except Exception as error:
            why = f"{type(error).__name__}: {error}"[:300]
            found = {"error": why, "wrong": isinstance(error, Wrong)}
        with contextlib.suppress(BrokenPipeError):
            answers.write(json.dumps(found) + "\n")
    # A thread that still waits would keep the process.
    os._exit(0)


if __name__ == "__main__":
    main()
