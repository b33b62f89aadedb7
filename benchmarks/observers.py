"""What an observer costs: ``python -m benchmarks.observers``.

The same calls by clients of one process that differ in their observer alone,
in rounds that take turns, against one real memcached. What counts is the
processor time of this process, all its threads, so that other work on the
machine disturbs little; the least of the rounds is taken, and the cost of an
observer is what it has above the client without one in the same run. Prints
the table of ``docs/operators.rst``.
"""

from __future__ import annotations

import argparse
import asyncio
import gc
import sys
import time
from collections.abc import Awaitable, Callable, Sequence
from typing import Any

from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor, SpanExporter, SpanExportResult
from opentelemetry.sdk.trace.sampling import ALWAYS_ON, Sampler, TraceIdRatioBased
from prometheus_client import CollectorRegistry

from tests.memcacheds import Memcached
from tornado_memcache import Client, Observer
from tornado_memcache.opentelemetry_observer import OpenTelemetryObserver
from tornado_memcache.prometheus_observer import PrometheusObserver

from .table import simple_table

ROUNDS = 15
#: Calls of a round.
CALLS = 5120
AT_ONCE = 256
KEYS = [f"key:{number:06d}" for number in range(AT_ONCE)]
VALUE = b"x" * 100
NOBODY = "none"


class _Nowhere(SpanExporter):
    """Takes spans and keeps none."""

    def export(self, spans: Sequence[Any]) -> SpanExportResult:
        return SpanExportResult.SUCCESS


def _traced(sampler: Sampler, providers: list[TracerProvider]) -> OpenTelemetryObserver:
    provider = TracerProvider(sampler=sampler, shutdown_on_exit=False)
    provider.add_span_processor(BatchSpanProcessor(_Nowhere()))
    providers.append(provider)
    return OpenTelemetryObserver(tracer_provider=provider)


def observers(providers: list[TracerProvider]) -> dict[str, Observer | None]:
    """Returns what is compared; providers to be shut down are added to ``providers``."""
    return {
        NOBODY: None,
        "``Observer()``": Observer(),
        "``PrometheusObserver``": PrometheusObserver(registry=CollectorRegistry()),
        "``OpenTelemetryObserver``, no SDK": OpenTelemetryObserver(),
        "the same, 1 call in 100 sampled": _traced(TraceIdRatioBased(0.01), providers),
        "the same, every call sampled": _traced(ALWAYS_ON, providers),
    }


async def gets(client: Client, calls: int) -> None:
    """Gets of 256 callers at once."""
    for _ in range(0, calls, AT_ONCE):
        found = await asyncio.gather(*[client.get(key) for key in KEYS])
        assert found == [VALUE] * AT_ONCE


async def sets(client: Client, calls: int) -> None:
    """Sets of 256 callers at once."""
    for _ in range(0, calls, AT_ONCE):
        assert all(await asyncio.gather(*[client.set(key, VALUE) for key in KEYS]))


async def seq(client: Client, calls: int) -> None:
    """Gets of one caller, one after the other; fewer of them."""
    for number in range(calls // 4):
        assert await client.get(KEYS[number % AT_ONCE]) == VALUE


WORKLOADS: dict[str, tuple[Callable[[Client, int], Awaitable[None]], int]] = {
    "get, 256 at once": (gets, 1),
    "set, 256 at once": (sets, 1),
    "get, one by one": (seq, 4),
}


async def measured(address: str, rounds: int, calls: int) -> dict[str, dict[str, float]]:
    """Returns the microseconds a call of each observer, for each workload."""
    providers: list[TracerProvider] = []
    found: dict[str, dict[str, float]] = {name: {} for name in WORKLOADS}
    clients = {
        name: Client([address], observer=observer)
        for name, observer in observers(providers).items()
    }
    await clients[NOBODY].set_multi(dict.fromkeys(KEYS, VALUE))
    gc.collect()
    gc.disable()
    for turn in range(rounds + 1):  # (the first is not counted)
        for workload, (run, part) in WORKLOADS.items():
            for name, client in clients.items():
                begun = time.process_time()
                await run(client, calls)
                took = (time.process_time() - begun) / (calls / part) * 1e6
                if turn:
                    found[workload][name] = min(took, found[workload].get(name, took))
        gc.collect()
    gc.enable()
    for client in clients.values():
        client.close()
    for provider in providers:
        provider.shutdown()
    await asyncio.sleep(0)
    return found


def table(found: dict[str, dict[str, float]]) -> str:
    """Returns the table, in RST."""
    rows = [["observer", *found]]
    for name in next(iter(found.values())):
        row = [name]
        for figures in found.values():
            base, mine = figures[NOBODY], figures[name]
            more = mine - base
            row.append(f"{base:.1f}" if name == NOBODY else f"+{more:.1f} ({mine / base:.2f} x)")
        rows.append(row)
    return "\n".join(simple_table(rows)) + "\n"


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.observers", description=__doc__)
    parser.add_argument("--rounds", type=int, default=ROUNDS, help="%(default)s unless given")
    parser.add_argument("--calls", type=int, default=CALLS, help="of a round; %(default)s")
    chosen = parser.parse_args()
    server = Memcached(["-t", "1"])
    try:
        print(table(asyncio.run(measured(server.address, chosen.rounds, chosen.calls))), end="")
    finally:
        server.close()
    return 0


if __name__ == "__main__":
    sys.exit(main())
