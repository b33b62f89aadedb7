"""One of four memcacheds is killed under load: how long it is felt, and when it is back.

The load is paced and measured, every value carries its key, and the moments
are those of one monotonic clock. What was seen is told where an assertion
fails.
"""

from __future__ import annotations

import asyncio
import contextlib
import random
import time
from collections import Counter
from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import pytest

from tornado_memcache import Client, ConnectionFailed, ServerDead
from tornado_memcache.health import FIRST_PAUSE, SHORT_OUTAGE, SHORT_PAUSE, Health

from .faultproxy import FaultProxy
from .networks import Connects

LOG = "tornado_memcache"
#: Calls in a second that are asked for. A loaded machine makes fewer.
PACE = 2000
#: With fewer than so many in a second nothing would be shown.
LEAST = 100
#: After so many seconds a dead server's share of keys does what ``on_dead`` says.
WINDOW = 1.0
#: The shortest that jitter makes of the first pause, in seconds.
SHORTEST = 0.9 * FIRST_PAUSE
#: For tests in which nothing is to time out, however loaded the machine.
PATIENT = {"request_timeout": 5.0, "connect_timeout": 5.0}


class Ended(NamedTuple):
    """One call, from the moment at which it was made to that of its outcome."""

    key: str
    verb: str
    begun: float
    ended: float
    outcome: Any

    @property
    def failed(self) -> bool:
        return isinstance(self.outcome, Exception)


class Load:
    """Gets and sets at a pace, and what each of them came to.

    What a loaded machine cannot make in time is left out and not made up
    for: ``pace`` is what was reached, and ``stalled`` the longest time, in
    seconds, that the loop took for one turn.
    """

    def __init__(self, client: Client, keys: list[str]) -> None:
        self.calls: list[Ended] = []
        self.made = 0
        self.stalled = 0.0
        self.notice: Callable[[Ended], None] = lambda call: None
        self._client = client
        self._keys = keys
        self._random = random.Random(4)
        self._begun = time.monotonic()
        self._task = asyncio.ensure_future(self._run())

    @property
    def pace(self) -> float:
        return self.made / (time.monotonic() - self._begun)

    async def _run(self) -> None:
        left_out, turn = 0, time.monotonic()
        while True:
            due = int((time.monotonic() - self._begun) * PACE) - self.made - left_out
            left_out += max(0, due - PACE // 100)
            for _ in range(min(due, PACE // 100)):
                self._ask()
            await asyncio.sleep(0.002)
            last, turn = turn, time.monotonic()
            self.stalled = max(self.stalled, turn - last)

    def _ask(self) -> None:
        self.made += 1
        key = self._random.choice(self._keys)
        verb = "set" if self.made % 4 == 0 else "get"
        ended = partial(self._ended, key, verb, time.monotonic())
        how = {"callback": ended, "fail_callback": ended}
        if verb == "set":
            self._client.set(key, f"{key}={self.made}", **how)
        else:
            self._client.get(key, **how)

    def _ended(self, key: str, verb: str, begun: float, outcome: Any) -> None:
        call = Ended(key, verb, begun, time.monotonic(), outcome)
        self.calls.append(call)
        self.notice(call)

    async def end(self) -> None:
        """Makes no more calls, and waits for the outcome of every one."""
        self._task.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await self._task
        until = time.monotonic() + 5
        while len(self.calls) < self.made:
            assert time.monotonic() < until, f"{self.made} calls, {len(self.calls)} outcomes"
            await asyncio.sleep(0.005)
        assert len(self.calls) == self.made, "a call had two outcomes"


@pytest.mark.gen_test(timeout=60)
@pytest.mark.parametrize(
    "on_dead, down, port",
    [
        ("fail", 1.1, "refuses"),
        ("rehash", 1.1, "refuses"),
        ("rehash", 1.1, "accepts and closes"),
        ("rehash", 1.8, "refuses"),
        ("fail", 2.3, "refuses"),
        ("rehash", 2.3, "refuses"),
    ],
)
async def test_kill_one_of_four_under_load(on_dead, down, port, start_memcached, expect_log):
    expect_log(LOG, "taken for dead", times=1)
    expect_log(LOG, "fails: ", times=range(2))
    killed = start_memcached()
    with contextlib.ExitStack() as stack:
        address = killed.address
        if port != "refuses":
            address = stack.enter_context(FaultProxy(address)).address
        connects = stack.enter_context(Connects())
        servers = [address, *[start_memcached().address for _ in range(3)]]
        async with Client(servers, on_dead=on_dead, **PATIENT) as client:
            keys = [f"key{n}" for n in range(400)]
            assert await client.set_multi({key: f"{key}=0" for key in keys}) == []
            pool = client._pools[0]
            share = {key for key in keys if client._cluster.pool_for(key.encode()) is pool}
            load = Load(client, keys)
            await asyncio.sleep(0.4)

            killed_at = time.monotonic()
            await asyncio.to_thread(killed.kill)
            await asyncio.sleep(down)
            await asyncio.to_thread(killed.restart)
            restarted_at = time.monotonic()
            while pool.health.probing:  # (asked as it came back: that is decided first)
                await asyncio.sleep(0.001)
            pause, next_try = pool.health._pause, pool.health.dead_until

            back = asyncio.get_running_loop().create_future()

            def notice(call: Ended) -> None:
                if call.key in share and not pool.health.dead and not back.done():
                    back.set_result(call.ended)

            load.notice = notice
            back_at = await asyncio.wait_for(back, 20)
            stats = await asyncio.to_thread(killed.stats)
            await asyncio.sleep(0.3)
            await load.end()

        down, took = restarted_at - killed_at, max(0.0, back_at - restarted_at)
        # A few turns of the loop: what stands still is the machine, not the client.
        slack = 5 * load.stalled
        tries = [one for one in connects.to(address) if killed_at <= one <= back_at]
        seen = (
            f"{load.made} calls, {load.pace:.0f} a second, the longest turn {load.stalled:.3f} s; "
            f"down for {down:.2f} s, tried at {[round(one - killed_at, 3) for one in tries]} s, "
            f"the pause was {pause} s, back {took:.3f} s after the restart"
        )
        failures = [call for call in load.calls if call.failed]
        for call in load.calls:
            good = call.outcome is True if call.verb == "set" else call.outcome is None
            good = good or str(call.outcome).startswith(f"{call.key}=")
            assert good or call.failed, f"{call}; {seen}"
        assert load.pace >= LEAST, seen

        # Nobody else is concerned, and nobody before it was killed or after it was back.
        assert {call.key in share for call in failures} == {True}, seen
        assert min(call.ended for call in failures) >= killed_at, seen
        assert max(call.begun for call in failures) <= back_at, seen

        # Connects: what it takes to find out, and then the doubling pauses.
        first = [one for one in tries if one < tries[0] + SHORTEST]
        probes = tries[len(first) :]
        assert len(first) <= 3, seen
        due = FIRST_PAUSE
        for one, other in zip(tries[len(first) - 1 :], probes):
            assert other - one >= 0.9 * due, seen
            due *= 2
            if other - tries[0] < SHORT_OUTAGE + 0.1:
                due = min(due, SHORT_PAUSE)
        assert len(probes) <= 1 + _doubling_pauses_in(tries[-1] - tries[0]), seen

        # The error window, and what becomes of the keys when it is over.
        felt = [call for call in failures if not _is_dead_or_a_probe(call, probes, on_dead)]
        over = max((call.ended for call in felt), default=killed_at)
        kinds = Counter(type(call.outcome).__name__ for call in failures)
        seen += f"; the error window was {over - killed_at:.3f} s; {dict(kinds)}"
        assert over - killed_at <= WINDOW + slack, seen
        later = [
            call
            for call in load.calls
            if call.key in share and call.begun > over and call.ended < restarted_at
        ]
        asked = [call for call in later if isinstance(call.outcome, ConnectionFailed)]
        assert len(asked) <= len(probes), seen
        rest = [call for call in later if call not in asked]
        assert len(rest) >= 10, f"{len(rest)} calls to judge; {seen}"
        if on_dead == "fail":
            assert {type(call.outcome) for call in rest} == {ServerDead}, seen
        else:
            assert not any(call.failed for call in rest), seen
            hits = [call for call in rest if call.verb == "get" and call.outcome]
            assert hits, f"nobody kept its keys; {seen}"

        # Back: within 1 s after an outage of less than two, else within the pause and 1 s.
        assert took <= max(0.0, next_try - restarted_at) + 0.25 + slack, seen
        assert took <= (1.0 if down < SHORT_OUTAGE else pause + 1.0) + slack, seen
        assert int(stats["cmd_get"]) + int(stats["cmd_set"]) > 0, f"it was not asked; {seen}"


def _is_dead_or_a_probe(call: Ended, probes: list[float], on_dead: str) -> bool:
    """True if a call failed as ``on_dead`` says, or was the one that found out."""
    if isinstance(call.outcome, ServerDead):
        return on_dead == "fail"
    return any(call.begun <= probe <= call.ended for probe in probes)


def _doubling_pauses_in(seconds: float) -> int:
    """Returns how many pauses that double from the shortest on end within ``seconds``."""
    number = 0
    while SHORTEST * (2 ** (number + 1) - 1) <= seconds:
        number += 1
    return number


# -- the pauses alone


@pytest.mark.parametrize("jitter", [0.9, 0.95, 1.0])
def test_whatever_the_outage_the_next_try_is_no_pause_away(jitter, monkeypatch, expect_log):
    expect_log(LOG, "taken for dead")
    monkeypatch.setattr("random.uniform", lambda low, high: jitter)
    for hundredths in range(1, 1000):
        restarted = hundredths / 100
        health = Health("h:1", 30.0, 3)
        health.refused(0.0, ConnectionFailed("refused"))
        while health.dead_until < restarted:
            health.probing = True
            health.refused(health.dead_until, ConnectionFailed("refused"))
        wait = health.dead_until - restarted
        most = SHORT_PAUSE if restarted < SHORT_OUTAGE else health._pause
        assert wait <= most, f"{restarted} s: {wait:.2f} s"
