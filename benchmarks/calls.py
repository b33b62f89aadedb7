"""How many function calls a get costs: ``python -m benchmarks.calls``.

A guard for the hot path that does not depend on the clock. Counts every call
of a Python function and of a built-in one, in this process, while a client
works against a real memcached, the event loop's own included. What is
gathered and read together does not depend on the machine: a number of calls
is made in one tick, the tick ends, and the loop does not go on before all
replies are in the socket. The least of several rounds counts.

``--write`` keeps the figures in ``calls.json``, under the minor version of
Python; ``tests/test_calls_per_get.py`` compares with them.
"""

from __future__ import annotations

import argparse
import asyncio
import fcntl
import gc
import json
import struct
import sys
import termios
import time
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

from tornado.iostream import IOStream

from tests.memcacheds import Memcached
from tornado_memcache import Client

FILE = Path(__file__).with_suffix(".json")
#: Figures may be higher by this part than those that are kept: by less than one call a get
#: where gets are gathered. How often a lone large value is read is the kernel's choice.
MARGIN = 0.02
MARGINS = {"get100k": 0.1}
#: The same for a Python whose figures are not kept: those of the nearest one are taken.
STRANGER = 0.15
ROUNDS = 3
#: Ticks of a round.
TICKS = 10
#: Clients, one after the other: which timers the loop holds is settled early in a client's life.
CLIENTS = 3
#: Seconds in which the replies of a tick come, on any machine.
PATIENCE = 5.0
#: So long nothing more came: the replies are there.
QUIET = 0.002

KEYS = [f"key:{number:06d}" for number in range(1000)]
VALUE = b"x" * 100
LARGE = b"x" * 100_000


class Counter:
    """Counts the calls that are made within ``with``, but for those of a pause."""

    def __init__(self) -> None:
        self.count = 0

    def _seen(self, frame: Any, event: str, arg: Any) -> None:
        if event == "call" or event == "c_call":
            self.count += 1

    def __enter__(self) -> Counter:
        self.count = 0
        sys.setprofile(self._seen)
        return self

    def __exit__(self, *_: object) -> None:
        sys.setprofile(None)


class Bench:
    """One client, one server, and a loop that waits for the replies to be there."""

    def __init__(self, client: Client, counter: Counter) -> None:
        self.client = client
        self._counter = counter
        self._socket: Any = None

    def find_socket(self) -> None:
        """Finds the one connection that the client has."""
        (self._socket,) = {
            one.socket for one in gc.get_objects() if isinstance(one, IOStream) and not one.closed()
        }

    async def sent(self) -> None:
        """Ends the tick, and stands still until the replies are in the socket; not counted."""
        await asyncio.sleep(0)
        sys.setprofile(None)
        until, seen, since = time.monotonic() + PATIENCE, 0, time.monotonic()
        while time.monotonic() < until and (not seen or time.monotonic() < since + QUIET):
            time.sleep(0.0002)
            now = self._in_socket()
            if now != seen:
                seen, since = now, time.monotonic()
        sys.setprofile(self._counter._seen)

    def _in_socket(self) -> int:
        return int(struct.unpack("i", fcntl.ioctl(self._socket, termios.FIONREAD, b"\0" * 4))[0])


# -- the hot workloads: one tick of each; they return the number of gets


async def seq(bench: Bench, tick: int) -> int:
    future = bench.client.get(KEYS[tick])
    await bench.sent()
    assert await future == VALUE
    return 1


async def at_once(bench: Bench, tick: int, callers: int) -> int:
    futures = [bench.client.get(key) for key in KEYS[:callers]]
    await bench.sent()
    for future in futures:
        assert await future == VALUE
    return callers


async def c32(bench: Bench, tick: int) -> int:
    return await at_once(bench, tick, 32)


async def c256(bench: Bench, tick: int) -> int:
    return await at_once(bench, tick, 256)


async def mix256(bench: Bench, tick: int) -> int:
    client = bench.client
    calls = [
        client.set(key, VALUE) if number % 10 == 0 else client.get(key)
        for number, key in enumerate(KEYS[:256])
    ]
    await bench.sent()
    for call in calls:
        assert await call in (VALUE, True)
    return len(calls)


async def burst100(bench: Bench, tick: int) -> int:
    gathered = asyncio.gather(*[bench.client.get(key) for key in KEYS[:100]])
    await bench.sent()
    assert await gathered == [VALUE] * 100
    return 100


async def get_multi100(bench: Bench, tick: int) -> int:
    future = bench.client.get_multi(KEYS[:100])
    await bench.sent()
    assert len(await future) == 100
    return 100


async def callbacks256(bench: Bench, tick: int) -> int:
    found: list[Any] = []
    for key in KEYS[:256]:
        bench.client.get(key, callback=found.append, fail_callback=found.append)
    await bench.sent()
    while len(found) < 256:
        await asyncio.sleep(0)
    assert found == [VALUE] * 256
    return 256


async def get100k(bench: Bench, tick: int) -> int:
    future = bench.client.get("large")
    await bench.sent()
    assert len(await future) == len(LARGE)
    return 1


HOT: dict[str, Callable[[Bench, int], Awaitable[int]]] = {
    one.__name__: one
    for one in (seq, c32, c256, mix256, burst100, get_multi100, callbacks256, get100k)
}


# -- counting


async def _counted(names: list[str], address: str) -> dict[str, float]:
    found: dict[str, float] = {}
    counter = Counter()
    async with Client([address]) as client:
        await client.set_multi({**dict.fromkeys(KEYS, VALUE), "large": LARGE})
    for _ in range(CLIENTS):
        async with Client([address], request_timeout=60.0) as client:
            assert await client.get("large") == LARGE
            bench = Bench(client, counter)
            bench.find_socket()
            for name in names * ROUNDS:
                took = await _round(HOT[name], bench, counter)
                found[name] = min(took, found.get(name, took))
        await asyncio.sleep(0)
    return found


async def _round(
    workload: Callable[[Bench, int], Awaitable[int]], bench: Bench, counter: Counter
) -> float:
    """Returns the calls that a get took in the cheapest of some ticks, the first not counted."""
    await workload(bench, 0)
    took = []
    for tick in range(TICKS):
        with counter:
            gets = await workload(bench, tick)
        took.append(counter.count / gets)
    return round(min(took), 3)


def count(names: list[str]) -> dict[str, float]:
    """Returns the calls for each get of the workloads called ``names``."""
    server = Memcached(["-t", "1"])
    gc.collect()
    gc.disable()
    try:
        return asyncio.run(_counted(names, server.address))
    finally:
        gc.enable()
        server.close()


# -- comparing


def version_of(info: Any = sys.version_info) -> str:
    return f"{info[0]}.{info[1]}"


def kept() -> dict[str, dict[str, float]]:
    """Returns the figures that are kept, for each Python."""
    found: dict[str, dict[str, float]] = json.loads(FILE.read_text()) if FILE.exists() else {}
    return found


def allowed(figures: dict[str, dict[str, float]], python: str) -> dict[str, float]:
    """Returns what each workload may cost on ``python``, whose figures may not be kept."""

    def minor(version: str) -> int:
        return int(version.partition(".")[2])

    nearest = min(figures, key=lambda one: abs(minor(one) - minor(python)))
    return {
        name: figure * (1 + (MARGINS.get(name, MARGIN) if nearest == python else STRANGER))
        for name, figure in figures[nearest].items()
    }


def too_many(found: dict[str, float], may: dict[str, float]) -> dict[str, str]:
    """Returns the workloads that cost more than they may, and a line for each."""
    return {
        name: f"{name}: {figure:.2f} function calls a get, {may[name]:.2f} are allowed"
        for name, figure in found.items()
        if figure > may[name]
    }


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.calls", description=__doc__)
    parser.add_argument("--write", action="store_true", help=f"keep the figures in {FILE.name}")
    parser.add_argument("--json", action="store_true", help="print the figures as JSON, no more")
    parser.add_argument("--workloads", default=",".join(HOT), help="some of %(default)s")
    chosen = parser.parse_args()
    found = count(chosen.workloads.split(","))
    if chosen.json:
        print(json.dumps(found))
        return 0
    figures = kept()
    if chosen.write:
        figures[version_of()] = {**figures.get(version_of(), {}), **found}
        FILE.write_text(json.dumps(dict(sorted(figures.items())), indent=1) + "\n")
    may = allowed(figures, version_of()) if figures else {}
    for name, figure in found.items():
        print(f"{name:14}{figure:10.3f}" + (f"   at most {may[name]:.3f}" if may else ""))
    over = too_many(found, may) if may else {}
    for line in over.values():
        print(line, file=sys.stderr)
    return int(bool(over))


if __name__ == "__main__":
    sys.exit(main())
