"""The chaos run: many callers, servers that die, networks that fail, and who watches.

``python -m tests.chaos --calls N --seed S`` prints what came of it and exits
non-zero if one of the invariants I1 to I9 was violated. This file knows who
takes part and what is reported: the worlds (clients and their servers), the
callers, the troubles, the witness. It must not know how any of them does it.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import gc
import platform
import random
import resource
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

import tornado
from tornado.ioloop import IOLoop

from tornado_memcache import Client, MemcacheError

from .chaos_callers import Caller
from .chaos_troubles import Losses, Troubles
from .chaos_witness import INVARIANTS, Heart, Logs, Witness, clock
from .chaos_worlds import World
from .faultproxy import FaultProxy
from .ledger import open_fds, our_timers, watched_fds
from .memcacheds import Memcached, find_binary

#: Enough memory that nothing is evicted: a miss has to have another cause.
ARGUMENTS = ("-m", "1024")
#: Seconds in which everything has to be well again once the troubles are over, the lag not
#: counted.
RECOVERY = 5.0


@dataclass
class Plan:
    """What to run.

    ``pace`` stretches the pauses of the callers, ``troubled`` is False for
    honest servers and networks only.
    """

    calls: int = 2000
    seed: int = 1
    callers: int = 300
    loop: str = "asyncio"
    pace: float = 1.0
    troubled: bool = True


@dataclass
class Report:
    """What a run came to."""

    plan: Plan
    witness: Witness
    seconds: float = 0.0
    troubles: dict[str, int] = field(default_factory=dict)
    facts: dict[str, Any] = field(default_factory=dict)

    @property
    def violations(self) -> dict[str, int]:
        return dict(self.witness.violations)

    def __str__(self) -> str:
        return "\n".join(self._lines())

    def _lines(self) -> Iterator[str]:
        plan, witness, facts = self.plan, self.witness, self.facts
        late, lag, which = witness.latest
        lags = sorted(witness.heart.lags) or [0.0]
        yield f"chaos: {witness.calls} calls, seed {plan.seed}, {plan.callers} callers"
        yield f"  {versions(plan.loop)}"
        rate = witness.calls / max(self.seconds, 0.001)
        yield f"  {self.seconds:.1f} s, {rate:.0f} calls a second"
        share = 100 * witness.strict_calls / max(witness.calls, 1)
        yield (
            f"  {witness.strict_calls} calls ({share:.0f} %) where no byte is changed: "
            f"{facts['judged']} outcomes held against the state of their key, "
            f"{facts['retired']} keys given up after a write that may still come"
        )
        yield f"  elsewhere {facts['damaged']} values came damaged, and were seen to be"
        yield "  outcomes: " + _counted(witness.outcomes)
        yield "  troubles: " + _counted(self.troubles)
        yield (
            f"  latest outcome: {late * 1000:+.0f} ms against its deadline, "
            f"with the loop {lag * 1000:.0f} ms late at that time ({which})"
        )
        middle, most = lags[len(lags) // 2], lags[-1]
        high = lags[int(len(lags) * 0.99)]
        yield (
            f"  lag of the loop: median {middle * 1000:.1f} ms, "
            f"99 % under {high * 1000:.0f} ms, most {most * 1000:.0f} ms"
        )
        yield (
            f"  pools looked at {witness.looks} times; {facts['troubles logged']} lines of trouble "
            f"and {facts['recoveries logged']} of recovery in the log; {facts['memory']} MB at most"
        )
        for name, text in INVARIANTS.items():
            yield f"  {name} {text}: {witness.violations[name] or 'no'} violations"
            for detail in witness.details[name]:
                yield f"      {detail[:2000]}"


def _counted(counts: dict[str, int]) -> str:
    pairs = sorted(counts.items(), key=lambda pair: -pair[1])
    return ", ".join(f"{name} {count}" for name, count in pairs) or "none"


def versions(loop: str) -> str:
    """Returns what took part, and in which version."""
    binary = find_binary() or "memcached"
    said = subprocess.run([binary, "--version"], capture_output=True, text=True).stdout.strip()
    if loop == "uvloop":
        import uvloop  # (not a dependency: only when it is asked for)

        loop = f"uvloop {uvloop.__version__}"
    return f"Python {platform.python_version()}, Tornado {tornado.version}, {said}, {loop}"


class Stage:
    """The servers, the proxies and the clients of one run; a context manager."""

    def __init__(self, plan: Plan, witness: Witness) -> None:
        self._plan = plan
        self._witness = witness
        self._stack = contextlib.ExitStack()
        self._losses: dict[str, Losses] = {}
        self.troubles = Troubles()
        self.worlds: list[World] = []

    def __enter__(self) -> Stage:
        with contextlib.ExitStack() as stack:
            self._stack = stack
            first, second, third = self._server(), self._server(), self._server(unix=True)
            fourth, fifth = self._server(), self._server()
            self._world("one", [self._proxy(first)], max_connections=1)
            self._world("four", [self._proxy(second), third], min_connections=1)
            self._world("direct", [first, second], 0.2, max_idle=1, compress_over=100)
            self._world("narrow", [self._proxy(third)], max_pending=30, max_connections=2)
            noisy, noisier = self._proxy(fourth, noisy=True), self._proxy(fifth, noisy=True)
            self._world("noisy", [noisy], strict=False, max_connections=1)
            self._world("noisier", [noisy, noisier, fifth], 0.4, strict=False)
            rehash = {"on_dead": "rehash", "ring": "ketama", "flush_on_reconnect": True}
            self._world("rehash", [self._proxy(fourth), fifth], strict=False, **rehash)
            self._stack = stack.pop_all()
        return self

    def __exit__(self, *_: object) -> None:
        self._stack.close()

    def _server(self, *, unix: bool = False) -> Any:
        server = self._stack.enter_context(contextlib.closing(Memcached(ARGUMENTS, unix=unix)))
        losses = self._losses[server.address] = Losses()
        if self._plan.troubled:
            seed = f"{self._plan.seed} server {len(self._losses)}"
            self.troubles.add_server(server, losses, seed)
        return server

    def _proxy(self, server: Memcached, *, noisy: bool = False) -> FaultProxy:
        seed = f"{self._plan.seed} proxy {len(self._losses)}"
        proxy = self._stack.enter_context(FaultProxy(server.address, seed=hash_of(seed)))
        self._losses[proxy.address] = self._losses[server.address]
        if self._plan.troubled:
            self.troubles.add_proxy(proxy, seed, changes_bytes=noisy)
        return proxy

    def _world(
        self,
        name: str,
        servers: list[Any],
        request_timeout: float = 0.25,
        *,
        strict: bool = True,
        **settings: Any,
    ) -> None:
        addresses = [server.address for server in servers]

        def make() -> Client:
            return Client(
                addresses,
                request_timeout=request_timeout,
                connect_timeout=request_timeout,
                dead_retry=0.5,
                **settings,
            )

        world = World(
            self._witness,
            name,
            make,
            self._losses,
            request_timeout=request_timeout,
            strict=strict,
            raw="compress_over" not in settings,
        )
        self.worlds.append(world)


def hash_of(seed: str) -> int:
    """Returns a number that is the same in every process."""
    return random.Random(seed).getrandbits(32)


async def operate(stage: Stage, seed: str) -> None:
    """What an operator does to clients that are in use."""
    rng = random.Random(seed)
    while True:
        await asyncio.sleep(rng.uniform(0.1, 0.6))
        world = rng.choice(stage.worlds)
        deed = rng.choice(["disconnect", "retry_dead_servers", "warm_up", "renew"])
        stage.troubles.counts[deed] += 1
        if deed == "renew":
            world.renew()
        else:
            getattr(world.client, deed)()


async def perform(plan: Plan, stage: Stage, report: Report) -> None:
    """Has the callers call, until all calls are made and everything is quiet again."""
    loop, witness, worlds = asyncio.get_running_loop(), report.witness, stage.worlds
    witness.look_at(lambda: [world.client for world in worlds])
    watched, tasks = watched_fds(loop), asyncio.all_tasks()
    callers = [
        Caller(witness, worlds[number % len(worlds)], number, f"{plan.seed} caller {number}")
        for number in range(plan.callers)
    ]
    witness.heart.start()
    operator = asyncio.ensure_future(operate(stage, f"{plan.seed} operator"))
    if plan.troubled:
        stage.troubles.start()
    else:
        operator.cancel()
    await asyncio.gather(*(caller.run(plan.calls, plan.pace) for caller in callers))
    operator.cancel()
    await asyncio.gather(operator, return_exceptions=True)
    await loop.run_in_executor(None, stage.troubles.end)
    await recover(witness, worlds)
    witness.look()
    for timer in our_timers(loop):
        witness.violated("I3", f"left when nothing is under way: {timer!r}")
    await until(lambda: not any(map(computes, worlds)), witness.heart)
    for world in filter(computes, worlds):
        witness.violated("I8", f"{world.name} computes for nobody: {world.client.computations!r}")
    for world in worlds:
        world.client.close()
    await until(
        lambda: watched_fds(loop) == watched and asyncio.all_tasks() == tasks, witness.heart
    )
    for fd, name in sorted(watched_fds(loop).items() - watched.items()):
        witness.violated("I4", f"the loop still watches fd {fd}: {name}")
    for task in asyncio.all_tasks() - tasks:
        witness.violated("I8", f"pending: {task!r}")
    witness.heart.stop()
    for name in ("judged", "retired", "damaged"):
        report.facts[name] = sum(getattr(world, name) for world in worlds)


def computes(world: World) -> bool:
    return bool(world.client.computations._all)


async def recover(witness: Witness, worlds: list[World]) -> None:
    """I5: when the troubles are over every client is soon quiet, and then of use again."""
    heart, clients = witness.heart, {world.name: world.client for world in worlds}
    await until(lambda: all(map(witness.quiet, clients.values())), heart)
    for name, client in clients.items():
        if not witness.quiet(client):
            witness.violated("I5", f"{name} does not come to rest: {client!r}")
    for name, client in clients.items():
        begun = clock()
        client.retry_dead_servers()
        while not await answers(client):
            if clock() - begun > RECOVERY + heart.lag_since(begun):
                witness.violated("I5", f"{name} is of no use any more: {client!r}")
                break
            await asyncio.sleep(0.05)
    await until(lambda: all(map(witness.quiet, clients.values())), heart)


async def answers(client: Client) -> bool:
    """True if every server of ``client`` answers."""
    with contextlib.suppress(MemcacheError):
        return not (await client.version(timeout=1.0)).errors
    return False


async def until(condition: Callable[[], bool], heart: Heart) -> None:
    """Waits until ``condition()`` holds, but no longer than `RECOVERY`, the lag not counted."""
    begun = clock()
    while not condition() and clock() - begun < RECOVERY + heart.lag_since(begun):
        await asyncio.sleep(0.02)


def run(plan: Plan, on_violation: Callable[[str], Any] = str) -> Report:
    """Runs ``plan`` on a loop of its own; returns what it came to."""
    make_loop(plan.loop).close()  # (the first one opens what the process keeps)
    gc.collect()
    files = open_fds()
    loop = make_loop(plan.loop)
    loop.slow_callback_duration = 60.0  # (a loaded machine is no finding)
    asyncio.set_event_loop(loop)
    report = Report(plan, Witness(loop, on_violation))
    witness, shaken = report.witness, random.getstate()
    with Logs(witness) as logs:
        try:
            with Stage(plan, witness) as stage:
                random.seed(plan.seed)  # (the package's own pauses)
                begun = clock()
                loop.run_until_complete(perform(plan, stage, report))
                report.seconds = clock() - begun
                loop.run_until_complete(loop.shutdown_default_executor())
        finally:
            random.setstate(shaken)
            IOLoop.current().close()
            asyncio.set_event_loop(None)
        gc.collect()
        pools = sum(world.clients * world.servers for world in stage.worlds)
        logs.check(pools, report.seconds)
    if stage.troubles.failure is not None:
        raise RuntimeError(f"the troubles had trouble:\n{stage.troubles.failure}")
    for fd, name in sorted(open_fds().items() - files.items()):
        witness.violated("I4", f"open file {fd}: {name}")
    report.troubles = dict(stage.troubles.counts)
    report.facts["troubles logged"] = logs.troubles
    report.facts["recoveries logged"] = logs.recoveries
    report.facts["memory"] = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024
    return report


def make_loop(name: str) -> asyncio.AbstractEventLoop:
    if name == "uvloop":
        from .uvloops import OpenLoop  # (not a dependency: only when it is asked for)

        loop = OpenLoop()
        loop.open_own_files()
        return loop
    return asyncio.new_event_loop()


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.chaos", description=__doc__)
    parser.add_argument("--calls", type=int, default=50_000)
    parser.add_argument("--seed", type=int, default=None, help="a random one, unless given")
    parser.add_argument("--callers", type=int, default=300)
    parser.add_argument("--loop", choices=["asyncio", "uvloop"], default="asyncio")
    given = parser.parse_args(arguments)
    seed = given.seed if given.seed is not None else random.SystemRandom().randrange(1 << 31)
    print(f"chaos: seed {seed}", flush=True)
    plan = Plan(given.calls, seed, given.callers, given.loop)
    report = run(plan, lambda text: print(text[:2000], file=sys.stderr, flush=True))
    print(report)
    return 1 if report.violations else 0


if __name__ == "__main__":
    sys.exit(main())
