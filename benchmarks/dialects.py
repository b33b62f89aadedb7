"""The same calls by classic and by meta commands: ``python -m benchmarks.dialects``.

Knows pairs of calls that come to the same, and times them in turns, A B A B,
on one client and one memcached. What counts is the ratio within a pair; the
figures of ``docs/performance.rst`` are those of one run.
"""

from __future__ import annotations

import argparse
import asyncio
import statistics
import time
from collections.abc import Awaitable, Callable
from typing import Any, NamedTuple

from tests.memcacheds import Memcached
from tornado_memcache import Client

from .table import simple_table

VALUE = b"x" * 100
KEYS = [f"key:{number:06d}" for number in range(1000)]

_Call = Callable[[Client, int], Awaitable[Any]]


class Pair(NamedTuple):
    """Two calls for the same, ``callers`` of each at once."""

    name: str
    callers: int
    classic: _Call
    meta: _Call


def _some(number: int) -> list[str]:
    return [KEYS[(number * 100 + more) % len(KEYS)] for more in range(100)]


def _missing(number: int) -> list[str]:
    return ["no:" + key for key in _some(number)]


PAIRS = tuple(
    pair
    for callers in (1, 256)
    for pair in (
        Pair("get", callers, lambda mc, n: mc.get(KEYS[n % 1000]),
             lambda mc, n: mc.meta_get(KEYS[n % 1000])),
        Pair("gets", callers, lambda mc, n: mc.gets(KEYS[n % 1000]),
             lambda mc, n: mc.meta_get(KEYS[n % 1000], cas_unique=True)),
        Pair("set", callers, lambda mc, n: mc.set(KEYS[n % 1000], VALUE),
             lambda mc, n: mc.meta_set(KEYS[n % 1000], VALUE)),
    )
) + (
    Pair("get_multi of 100", 1, lambda mc, n: mc.get_multi(_some(n)),
         lambda mc, n: mc.meta_get_multi(_some(n))),
    Pair("get_multi of 100 misses", 1, lambda mc, n: mc.get_multi(_missing(n)),
         lambda mc, n: mc.meta_get_multi(_missing(n))),
    Pair("delete_multi of 100 misses", 1, lambda mc, n: mc.delete_multi(_missing(n)),
         lambda mc, n: mc.meta_delete_multi(_missing(n))),
)  # fmt: skip


async def rate(client: Client, call: _Call, callers: int, seconds: float) -> float:
    """Returns how many calls a second ``callers`` make, each again when it has its answer."""
    end = time.perf_counter() + seconds
    made = 0

    async def caller(number: int) -> None:
        nonlocal made
        while time.perf_counter() < end:
            await call(client, number)
            number += 7
            made += 1

    begun = time.perf_counter()
    await asyncio.gather(*[caller(number) for number in range(callers)])
    return made / (time.perf_counter() - begun)


async def measured(address: str, rounds: int, seconds: float) -> dict[Pair, tuple[float, float]]:
    """Returns for each pair the median calls a second, and of the ratios of its rounds."""
    found = {}
    async with Client([address]) as client:
        await client.set_multi(dict.fromkeys(KEYS, VALUE))
        for pair in PAIRS:
            classics, ratios = [], []
            for _ in range(rounds):
                classic = await rate(client, pair.classic, pair.callers, seconds)
                meta = await rate(client, pair.meta, pair.callers, seconds)
                classics.append(classic)
                ratios.append(meta / classic)
            found[pair] = statistics.median(classics), statistics.median(ratios)
    return found


def table(found: dict[Pair, tuple[float, float]]) -> str:
    """Returns the table, in RST."""
    rows = [["call", "callers", "classic, calls/s", "meta, relative"]]
    for pair, (classic, ratio) in found.items():
        rows.append([pair.name, str(pair.callers), f"{classic:,.0f}", f"{ratio:.2f}"])
    return "\n".join(simple_table(rows)) + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--seconds", type=float, default=0.5)
    options = parser.parse_args()
    server = Memcached()
    try:
        print(table(asyncio.run(measured(server.address, options.rounds, options.seconds))), end="")
    finally:
        server.close()


if __name__ == "__main__":
    main()
