"""The bars: what this client has to reach, each declared once.

A bar is a ratio of two clients within the same rounds, or a limit on a figure
of ours. Knows results as `.rounds` returns them. It must not know how they
were come by, nor how they are shown.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from statistics import median
from typing import Any, NamedTuple


@dataclass(frozen=True)
class Bar:
    """``figure`` of ``client`` is at least or at most so much.

    With ``other`` it is a multiple of that client's figure, with ``to`` of another figure
    of its own.
    """

    workload: str
    client: str
    other: str | None
    least: float | None = None
    most: float | None = None
    figure: str = "ops"
    loop: str = "asyncio"
    to: str | None = None

    @property
    def text(self) -> str:
        sign, bound = (">=", self.least) if self.least is not None else ("<=", self.most)
        if self.other is not None:
            return f"{self.client} {sign} {bound:g} x {self.other}"
        return f"{self.client}: {self.figure} {sign} {bound:g}" + (
            f" x {self.to}" if self.to else ""
        )


class Judged(NamedTuple):
    """A bar, its median and the quartiles, and whether it is met; None if it was not measured."""

    bar: Bar
    measured: float | None
    low: float | None
    high: float | None
    met: bool | None


def _ratios(workload: str, least: dict[str, float], loop: str = "asyncio") -> list[Bar]:
    return [Bar(workload, "ours", other, bound, loop=loop) for other, bound in least.items()]


def _limits(workload: str, most: dict[str, float]) -> list[Bar]:
    return [Bar(workload, "ours", None, None, bound, name) for name, bound in most.items()]


_BLOCKING = ("pymemcache", "python_memcached", "pylibmc")

BARS: list[Bar] = [
    *_ratios("seq", {"aiomcache": 1.1, "emcache": 1.1, "raw_socket": 0.8}),
    *_ratios("seq", {"emcache": 1.0}, "uvloop"),
    *_ratios("c32", {"emcache": 8, "aiomcache": 8, "emcache_autobatching": 1.5}),
    *_ratios("c256", {"emcache": 13, "aiomcache": 13}),
    *_ratios("c256", {"emcache_autobatching": 1.55, "bare_batched": 1.0}),
    *_ratios("c256", {"emcache_autobatching": 1.35}, "uvloop"),
    *_ratios("c1000", {"emcache_autobatching": 1.55}),
    # No caller of a thousand starves.
    *[
        Bar("c1000", "ours", None, most=5, figure="p99", loop=loop, to="p50")
        for loop in ("asyncio", "uvloop")
    ],
    *_ratios("mix256", {"emcache_autobatching": 2.6}),
    *_ratios("mix256", {"emcache_autobatching": 1.7}, "uvloop"),
    *_ratios("burst100", {"emcache_autobatching": 1.8}),
    *_ratios("get_multi100", {"emcache": 1.15, "aiomcache": 1.75, "pylibmc": 0.7}),
    *_ratios("get100k", {"emcache": 1.3}),
    *_ratios("get1m", {"emcache": 6}),
    *_ratios("set1m", {"emcache": 4.5}),
    Bar("c256", "ours_callbacks", "ours", 1.4),
    *_ratios("wrk", {"no_cache": 0.95, **dict.fromkeys(_BLOCKING, 1.5)}),
    *_limits("stall", {"all_back_ms": 110, "timers": 1, "lag_ms": 10}),
    *_limits("memory", {"plain": 250, "callback": 250}),
    *_limits("memory", {"own_timeout": 400, "default": 400, "budget": 400}),
    *_limits("memory", {"tombstone": 20, "connection": 5 * 1024}),
]


def figures(results: dict[str, Any], workload: str, client: str, name: str) -> list[float]:
    """Returns a figure of each round of a client, or nothing if it failed or was not there."""
    mine = results.get(workload, {}).get(client)
    if mine is None or mine["error"]:
        return []
    return [one[name] for one in mine["rounds"] if one.get(name) is not None]


def ratios(of: Sequence[float], to: Sequence[float]) -> list[float]:
    """Returns the ratio of each round; the rounds stand side by side."""
    return [one / other for one, other in zip(of, to) if other]


def quartiles(values: Sequence[float]) -> tuple[float, float]:
    """Returns the values that a quarter stay below, and above; the ends when there are few."""
    ordered = sorted(values)
    quarter = len(ordered) // 4
    return ordered[quarter], ordered[-1 - quarter]


def judge(bar: Bar, results: dict[str, Any]) -> Judged:
    values = figures(results, bar.workload, bar.client, bar.figure)
    if bar.other is not None:
        values = ratios(values, figures(results, bar.workload, bar.other, bar.figure))
    elif bar.to is not None:
        values = ratios(values, figures(results, bar.workload, bar.client, bar.to))
    if not values:
        return Judged(bar, None, None, None, None)
    middle = median(values)
    met = middle >= bar.least if bar.least is not None else middle <= (bar.most or 0)
    return Judged(bar, middle, *quartiles(values), met)


def judged(results: dict[str, Any], loop: str) -> Iterator[Judged]:
    """Judges the bars of a loop whose workloads were measured at all."""
    for bar in BARS:
        if bar.loop == loop and bar.workload in results:
            yield judge(bar, results)
