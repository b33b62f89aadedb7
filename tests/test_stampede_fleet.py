"""get_or_set by many processes, and by many clients that do whatever they may, at random."""

from __future__ import annotations

import asyncio
import json
import random
import time

import pytest

from benchmarks import stampede
from tornado_memcache import Client, Timeout

from .fleet import POINTS, Worker
from .nonces import fresh, nonce_of

#: How much later than its moment anything may come on a loaded machine, in seconds.
SLACK = 5.0
#: Seconds that a process gets to start.
START = 60.0


@pytest.fixture
def fleet(memcached):
    workers: list[Worker] = []

    def start(number: int) -> list[Worker]:
        workers.extend(Worker(memcached.address) for _ in range(number))
        assert [worker.line() for worker in workers] == ["ready\n"] * number
        return workers

    yield start
    for worker in workers:
        worker.close()


def test_of_200_callers_in_8_processes_one_computes(memcached, fleet, tmp_path):
    log = tmp_path / "log"
    workers = fleet(8)
    for key in ("cold", "another"):
        log.write_text("")
        for worker in workers:
            worker.order(key=key, callers=25, takes=0.3, log=str(log))
        values = [value for worker in workers for value in json.loads(worker.line())]
        (pid,) = log.read_text().split()
        assert values == [f"{key} by {pid}"] * 200


@pytest.mark.gen_test(timeout=START)
async def test_wherever_the_one_who_computes_is_killed_the_next_caller_proceeds(
    memcached, fleet, tmp_path
):
    workers, log = fleet(2 * len(POINTS)), tmp_path / "log"
    memcached.ask(b"set warm 16 0 1\r\nw\r\n")
    orders = []
    for point in POINTS:
        for state in ("cold", "stale"):
            key = f"{state}-{point}"
            if state == "stale":
                memcached.ask(b"ms %b 3 T500 F16\r\nold\r\n" % key.encode())
                memcached.ask(b"md %b I T400\r\n" % key.encode())
            orders.append((point, state, key))
    for worker, (point, _, key) in zip(workers, orders):
        worker.order(key=key, die=point, log=str(log), how={"lock_timeout": 60})
    for worker in workers:
        assert worker.line() == "" and worker.process.wait() == -9

    async def next_caller(mc: Client, point: str, state: str, key: str) -> None:
        begun, value = time.monotonic(), "old"
        while value == "old":  # (which is there at once, while it is stale)
            value = await mc.get_or_set(key, lambda: f"{key} again", 1000, lock_timeout=1)
            took = time.monotonic() - begun
            assert took < 1 + SLACK
            await asyncio.sleep(0.01)
        if point == "stored":
            assert value.startswith(f"{key} by ")
        elif point != "asked":  # (that may not have reached the server)
            assert value == f"{key} again" and took >= 1

    async with Client([memcached.address]) as mc:
        await asyncio.gather(*[next_caller(mc, *order) for order in orders])


class Actor:
    """One who does with a few keys whatever may be done, and looks at what he gets.

    A nonce is given when a factory begins. When a key has been invalidated (no
    stale value allowed), whoever asks then gets a value that was begun after the
    begin of that.
    """

    keys = [f"key{number}" for number in range(4)]
    #: The nonce up to which a key's values are from before its last invalidation.
    after: dict[str, int]

    def __init__(self, mc: Client, seed: int, after: dict[str, int]) -> None:
        self.mc, self.random, self.after = mc, random.Random(seed), after
        self.served = 0

    async def make(self, key: str) -> bytes:
        value = fresh(key)
        if self.random.random() < 0.7:
            await asyncio.sleep(self.random.uniform(0, 0.02))
        if self.random.random() < 0.2:
            raise LookupError(key)
        return value

    async def act(self) -> None:
        key, what = self.random.choice(self.keys), self.random.random()
        if what < 0.08:
            begun = nonce_of("n", fresh("n"))
            await self.mc.invalidate(key)
            self.after[key] = max(self.after.get(key, 0), begun)
        elif what < 0.12:
            # (stale values may come from now on: what was said of them holds no less)
            await self.mc.invalidate(key, stale_for=30)
        else:
            await self.get(key)

    async def get(self, key: str) -> None:
        bound = self.after.get(key, 0)
        timeout = self.random.choice([None, None, 0.01, 60])
        call = self.mc.get_or_set(key, lambda: self.make(key), 1000, timeout=timeout, early=999)
        loop = asyncio.get_running_loop()
        leaves = None
        if self.random.random() < 0.1:
            leaves = loop.call_later(self.random.uniform(0, 0.01), call.cancel)
        try:
            assert nonce_of(key, await call) > bound
            self.served += 1
        except (LookupError, Timeout):
            pass
        except asyncio.CancelledError:
            assert call.cancelled()
        finally:
            if leaves is not None:
                leaves.cancel()


def test_readers_are_as_quick_while_another_process_computes(memcached, fleet):
    found = asyncio.run(stampede.readers(memcached.address, *fleet(1)))
    before, meanwhile, plain = (stampede.p99(found[name]) for name in found)
    # (the slack is for a busy machine: who waits, waits for a second)
    assert meanwhile < max(2 * before, 0.25) and len(found["meanwhile"]) > 200
    assert plain > 0.9


@pytest.mark.parametrize("seed", [1, 2, 3])
@pytest.mark.gen_test(timeout=60)
async def test_no_value_is_mixed_up_and_none_is_from_before_an_invalidation(memcached, seed):
    clients = [Client([memcached.address], max_connections=2) for _ in range(3)]
    after: dict[str, int] = {}
    actors = [Actor(clients[n % 3], seed * 100 + n, after) for n in range(12)]

    async def live(actor: Actor) -> None:
        for _ in range(60):
            await actor.act()

    await asyncio.gather(*map(live, actors))
    for client in clients:
        client.close()
        assert not client.computations._all
    assert sum(actor.served for actor in actors) > 100
