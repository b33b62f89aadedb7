"""The faults that concern calls: cancelled, late, and to servers that stop, end or come back.

Knows, for each fault, what is done and which outcome is good. It must not
know which client it is tried on, but for what its adapter says about it.
The faults that lie in a reply stand in `.fault_replies`.
"""

from __future__ import annotations

import asyncio
import os
import signal
import socket
import time
from collections.abc import Awaitable, Callable
from typing import Any, NamedTuple

from tests.memcacheds import free_port

from .clients import Adapter, Blocking
from .fault_bench import (
    AT_ONCE,
    BOBS,
    DEADLINE,
    GUARD,
    SLACK,
    Bench,
    Outcome,
    Verdict,
    judge_end,
    judge_failure,
    judge_reads,
    milliseconds,
    store,
    stored,
    value_of,
    wait_for,
)
from .fault_server import Hold


class Case(NamedTuple):
    """One fault: its row in the table, what is done, and how long it may take in all."""

    name: str
    title: str
    about: str
    run: Callable[[Bench], Awaitable[Verdict]]
    limit: float


#: All faults, in the order of the rows.
CASES: dict[str, Case] = {}

#: What this client is known not to withstand: its documentation says so of such a write.
KNOWN = {"overtaken_late"}


def case(title: str, about: str, limit: float = 10.0) -> Callable[[Any], Any]:
    """Makes a function the fault of its name."""

    def made(run: Any) -> Any:
        CASES[run.__name__] = Case(run.__name__, title, about, run, limit)
        return run

    return made


class Interrupt(BaseException):
    """As gevent's Timeout and KeyboardInterrupt are."""


class SoftLimit(Exception):
    """As Celery's SoftTimeLimitExceeded is."""


# -- one call is cut short, the next reads another key


@case(
    "a call is cancelled, then other keys are read",
    "get(alice) is cancelled while its reply is on the way; then six other keys are read, and "
    "six times a key whose value changes before each read. A blocking client is interrupted by "
    "an exception out of a signal handler: once by an Exception (as Celery's soft time limit), "
    "once by a BaseException (as gevent's Timeout); the worse outcome stands here.",
    limit=20.0,
)
async def cancelled(bench: Bench) -> Verdict:
    if not issubclass(bench.adapter, Blocking):
        return await _cancelled(bench)
    soft = await _interrupted(bench, SoftLimit)
    hard = await _interrupted(bench, Interrupt)
    worse = min(soft, hard, key=lambda verdict: (False, None, True).index(verdict.good))
    worse.detail = f"Exception: {soft.word}; BaseException: {hard.word}. {worse.detail}"
    return worse


async def _cancelled(bench: Bench) -> Verdict:
    server = bench.fake("warm", "alice", *BOBS)
    client = await bench.warm(server.address)
    hold = Hold()
    server.strike("get", hold)
    task = asyncio.ensure_future(client.get("alice"))
    await wait_for(hold.arrived)
    task.cancel()
    await asyncio.wait({task}, timeout=GUARD)
    hold.release()
    return await bench.other_reads(client, server)


async def _interrupted(bench: Bench, kind: type[BaseException]) -> Verdict:
    server = bench.fake("warm", "alice", *BOBS)
    client = await bench.warm(server.address, direct=True)

    def interrupt(*_: Any) -> None:
        raise kind()

    def then() -> None:
        time.sleep(0.05)  # (the caller goes to sleep in its recv)
        os.kill(os.getpid(), signal.SIGUSR1)

    signal.signal(signal.SIGUSR1, interrupt)
    hold = Hold(then)
    server.strike("get", hold)
    try:
        await client.get("alice")
    except kind:
        pass
    signal.signal(signal.SIGUSR1, signal.SIG_IGN)
    hold.release()
    return await bench.other_reads(client, server)


@case(
    "a call times out, then other keys are read",
    "get(alice) reaches its deadline, the server answers then, and other keys are read as in "
    "the row before.",
)
async def timed_out(bench: Bench) -> Verdict:
    server = bench.fake("warm", "alice", *BOBS)
    client = await bench.warm(server.address)
    hold = Hold()
    server.strike("get", hold)
    await bench.by_deadline(client, client.get, "alice")
    hold.release()
    return await bench.other_reads(client, server)


@case(
    "one connection falls silent for good",
    "get(alice) is never answered, and nothing after it on that connection; others are well, "
    "as when a firewall has forgotten a connection. Other keys are read after its deadline, "
    "and again 1.5 s later.",
    limit=25.0,
)
async def silenced(bench: Bench) -> Verdict:
    server = bench.fake("warm", "alice", *BOBS)
    client = await bench.warm(server.address)
    server.strike("get", Hold(lambda: time.sleep(60)))
    await bench.by_deadline(client, client.get, "alice")
    first = judge_reads(await bench.reads(client, BOBS))
    await asyncio.sleep(1.5)
    again = judge_reads(await bench.reads(client, BOBS))
    if again.good is not True:
        again.good = False
        return again
    return first


@case(
    "a set comes late, a newer one is stored",
    "The network delays a set by 0.4 s, so that it times out after T, 0.3 s here; then a newer "
    "set of the key is made, without any delay, up to five times until it is answered. Five "
    "rounds; how often is another value there in the end? Refused is the newer set.",
    limit=40.0,
)
async def overtaken(bench: Bench) -> Verdict:
    return await _overtaken(bench, delay=0.4, rounds=5)


@case(
    "a set comes four timeouts late",
    "The same with a delay of 1.2 s, in two rounds. A client that gives a silent connection up "
    "cannot know what is still under way on it.",
    limit=30.0,
)
async def overtaken_late(bench: Bench) -> Verdict:
    return await _overtaken(bench, delay=1.2, rounds=2)


async def _overtaken(bench: Bench, delay: float, rounds: int) -> Verdict:
    server = bench.memcached("warm")
    proxy = bench.proxy(server)
    client = await bench.warm(proxy.address, timeout=0.3)
    acknowledged = stale = 0
    for turn in range(rounds):
        proxy.requests.latency = delay
        through = time.monotonic() + delay + 0.2
        await bench.by_deadline(client, client.set, "key", b"old", timeout=0.3)
        proxy.requests.latency = 0.0
        for attempt in range(5):
            new = b"new %d %d" % (turn, attempt)
            outcome = await bench.by_deadline(client, client.set, "key", new, timeout=0.3)
            if outcome.value:
                break
        await asyncio.sleep(max(0.1, through - time.monotonic()))
        if outcome.value:
            acknowledged += 1
            stale += new not in stored(server, "key")
        await bench.by_deadline(client, client.get, "warm", timeout=0.3)
    detail = f"{acknowledged} of {rounds} newer sets acknowledged"
    if stale:
        return Verdict("stale", False, f"{stale} of {acknowledged}")
    if acknowledged < rounds:
        return Verdict("refused", None, f"{rounds - acknowledged} of {rounds}", detail)
    return Verdict("right", True, detail=detail)


# -- the server stops


@case(
    "the server stops: the call ends by its deadline",
    "A get to a memcached that was stopped (SIGSTOP) has to end within T + 250 ms.",
)
async def stopped(bench: Bench) -> Verdict:
    server = bench.memcached("warm")
    client = await bench.warm(server.address)
    server.stop()
    return judge_end(await bench.outcome(client.get, "warm"))


@case(
    "the event loop goes on meanwhile",
    "The longest pause of the event loop during such a get, made on the loop's thread.",
)
async def loop_lag(bench: Bench) -> Verdict:
    server = bench.memcached("warm")
    client = await bench.warm(server.address, direct=True)
    server.stop()
    worst = 0.0

    async def tick() -> None:
        nonlocal worst
        while True:
            before = time.monotonic()
            await asyncio.sleep(0.005)
            worst = max(worst, time.monotonic() - before - 0.005)

    ticking = asyncio.ensure_future(tick())
    await asyncio.sleep(0.05)
    worst = 0.0
    await bench.outcome(client.get, "warm", guard=1.0)
    await asyncio.sleep(0.02)
    ticking.cancel()
    if worst > AT_ONCE:
        return Verdict("blocked", False, milliseconds(worst))
    return Verdict("lag", True, milliseconds(worst))


@case(
    "the server goes on: the next gets are right",
    "After three failed gets memcached goes on (SIGCONT); the time until a get gives its "
    "right value, at most 5 s, and twelve more gets.",
    limit=25.0,
)
async def resumed(bench: Bench) -> Verdict:
    server = bench.memcached("warm", *BOBS)
    client = await bench.warm(server.address)
    server.stop()
    for _ in range(3):
        await bench.by_deadline(client, client.get, "warm", guard=1.0)
    server.resume()
    begun = time.monotonic()
    seen: list[tuple[str, Outcome]] = []
    while time.monotonic() - begun < 5.0:
        seen += await bench.reads(client, [BOBS[len(seen) % 6]])
        if seen[-1][1].kind == "value":
            break
        await asyncio.sleep(0.005)
    took = time.monotonic() - begun
    back = seen[-1][1].kind == "value"
    seen += await bench.reads(client, BOBS * 2)
    verdict = judge_reads(seen)
    if verdict.word == "wrong value":
        return verdict
    if not back:
        return Verdict("not within 5 s", False, detail=verdict.detail)
    return Verdict("right", took <= 1.0, f"in {milliseconds(took)}", verdict.detail)


@case(
    "1 000 calls to a stopped server",
    "1 000 gets at once to a memcached that was stopped: how many end within T + 250 ms, and "
    "how many timers they leave on the loop. Blocking clients make one call at a time.",
    limit=15.0,
)
async def thousand(bench: Bench) -> Verdict:
    if issubclass(bench.adapter, Blocking):
        return Verdict("-", None)
    server = bench.memcached("warm")
    client = await bench.warm(server.address)
    server.stop()
    before = live_timers()
    calls = [bench.outcome(client.get, f"key{n}") for n in range(1000)]
    outcomes = await asyncio.gather(*calls)
    await asyncio.sleep(0.05)
    timers = max(0, live_timers() - before)
    in_time = sum(outcome.seconds <= DEADLINE + SLACK for outcome in outcomes)
    slowest = max(outcome.seconds for outcome in outcomes)
    detail = f"the last after {milliseconds(slowest)}; {timers} timers left"
    if in_time < 1000:
        return Verdict(f"{in_time} in time", False, detail=detail)
    return Verdict("all", timers <= 1, f"in {milliseconds(slowest)}", detail)


def live_timers() -> int:
    """Returns how many timers the running loop has that were not cancelled."""
    scheduled = getattr(asyncio.get_running_loop(), "_scheduled", ())
    return sum(not handle.cancelled() for handle in scheduled)


# -- connects


@case(
    "nobody accepts the connection",
    "The first get, to a listener whose backlog is full, so that the connect gets no answer. "
    "It has to end within T + 250 ms.",
)
async def backlog_full(bench: Bench) -> Verdict:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        listener.listen(0)
        host, port = listener.getsockname()
        waiting = [socket.socket() for _ in range(8)]
        for sock in waiting:
            sock.setblocking(False)
            sock.connect_ex((host, port))
        await asyncio.sleep(0.05)
        return judge_end(await _first_get(bench, f"{host}:{port}"))


@case("the connection is refused", "The first get, to a port where nobody listens.")
async def refused(bench: Bench) -> Verdict:
    return judge_failure(await _first_get(bench, f"127.0.0.1:{free_port()}"))


async def _first_get(bench: Bench, address: str) -> Outcome:
    async def opened_and_asked() -> Any:
        client: Adapter = await bench.open(address)
        return await client.get("warm")

    return await bench.outcome(opened_and_asked)


# -- the server ends


@case(
    "the server restarts between two calls",
    "memcached is killed and started again, and gets the value anew; the next get has to give it.",
)
async def restarted(bench: Bench) -> Verdict:
    server = bench.memcached("warm")
    client = await bench.warm(server.address)
    server.restart()
    store(server, "warm", value_of("warm"))
    await asyncio.sleep(0.1)  # (clients with an event loop learn of it)
    reads = await bench.reads(client, ["warm"] * 6)
    return judge_reads(reads)


@case(
    "the connection ends while a set waits",
    "The server closes its side instead of answering. The set has to fail at once, and the "
    "client has to be quiet then.",
    limit=6.0,
)
async def end_of_file(bench: Bench) -> Verdict:
    server = bench.fake("warm")
    client = await bench.warm(server.address)

    def end(peer: Any, words: list[bytes]) -> bool:
        peer.end_writing()
        return True

    server.strike("set", end)
    outcome = await bench.outcome(client.set, "key", b"value")
    before = time.process_time()
    await asyncio.sleep(AT_ONCE)
    if time.process_time() - before > AT_ONCE / 2:
        return Verdict("spins", False, detail=outcome.why)
    if outcome.kind == "value" and not outcome.value:
        return Verdict("not stored", None, milliseconds(outcome.seconds), "no error is seen")
    return judge_failure(outcome)
