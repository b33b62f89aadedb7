"""The history checker, and the client held against it while a memcached dies again and again.

The first part gives it histories that are known to be good or bad. The last
test records what concurrent callers of several clients see of a few keys.

How long may a write without an answer take effect? The client sends it once,
on one connection. It ends with ``maybe_applied`` only if its bytes have gone
to a process that lived then, so it cannot take effect after the next death of
the server: that is its bound. If ``maybe_applied`` is not set it must not have
happened at all, so it is no part of the history, and whoever sees its value
has seen what nobody wrote.
"""

from __future__ import annotations

import asyncio
import itertools
import random
import threading
import time
from collections import deque
from collections.abc import Iterator
from typing import Any

import pytest

from tornado_memcache import Client, MemcacheError

from . import history
from .history import NEVER, SPACE, Operation, Undecided, check
from .memcacheds import Memcached

A, B, C = SPACE, 2 * SPACE, 3 * SPACE

# -- histories that are known


def op(verb: str, invoked: float, returned: float, *values: Any, **more: Any) -> Operation:
    """``op("set", 1, 2, A)``, ``op("get", 1, 2, A)``, ``op("cas", 1, 2, A, B, True)``."""
    if verb in ("get", "delete"):
        return Operation(verb, invoked, returned, answer=values[0], **more)
    if verb == "cas":
        expected, value, answer = values
        return Operation(verb, invoked, returned, value, answer, expected, **more)
    if verb == "gone":
        return Operation(verb, invoked, returned)
    value, answer = values if len(values) == 2 else (values[0], True)
    return Operation(verb, invoked, returned, value, answer, **more)


def perhaps(verb: str, invoked: float, until: float, *values: Any) -> Operation:
    return op(verb, invoked, until, *values, certain=False)


GOOD = {
    "nothing": [],
    "a miss": [op("get", 1, 2, None)],
    "one after the other": [
        op("set", 1, 2, A),
        op("get", 3, 4, A),
        op("incr", 5, 6, 1, A + 1),
        op("get", 7, 8, A + 1),
        op("delete", 9, 10, True),
        op("delete", 11, 12, False),
        op("incr", 13, 14, 1, None),
        op("add", 15, 16, B, True),
        op("add", 17, 18, C, False),
        op("replace", 19, 20, 4 * SPACE, True),
        op("cas", 21, 22, 4 * SPACE, 5 * SPACE, True),
        op("cas", 23, 24, B, 6 * SPACE, False),
    ],
    "a read beside a write, before it": [op("set", 1, 4, A), op("get", 2, 3, None)],
    "a read beside a write, after it": [op("set", 1, 4, A), op("get", 2, 3, A)],
    "the later of two writes first": [
        op("set", 1, 5, A),
        op("set", 2, 6, B),
        op("get", 7, 8, A),
    ],
    "what may have happened has": [perhaps("set", 1, 9, A), op("get", 5, 6, A)],
    "what may have happened has, late": [
        perhaps("set", 1, 9, A),
        op("get", 2, 3, None),
        op("set", 4, 5, B),
        op("get", 6, 7, A),
    ],
    "what may have happened has not": [perhaps("set", 1, 9, A), op("get", 5, 6, None)],
    "a delete that may have happened, between two others": [
        op("set", 1, 2, A),
        perhaps("delete", 3, 9, True),
        op("add", 4, 5, B, True),
    ],
    "a death": [op("set", 1, 2, A), op("gone", 3, 4), op("get", 5, 6, None)],
    "a death beside a write": [op("set", 1, 4, A), op("gone", 2, 3), op("get", 5, 6, A)],
    "a cas of what is gone": [
        op("set", 1, 2, A),
        op("gone", 3, 4),
        op("cas", 5, 6, A, B, None),
    ],
    "one that was seen by the way, and overwritten": [
        op("set", 1, 2, A),
        perhaps("set", 1, NEVER, B),
        op("add", 3, 4, C, False),
        op("incr", 5, 6, 1, B + 1),
    ],
}
BAD = {
    "a value that nobody wrote": [op("get", 1, 2, A)],
    "an older value": [op("set", 1, 2, A), op("set", 3, 4, B), op("get", 5, 6, A)],
    "a miss of what is there": [op("set", 1, 2, A), op("get", 3, 4, None)],
    "a value before it is written": [op("get", 1, 2, A), op("set", 3, 4, A)],
    "the new value, then the old one": [
        op("set", 1, 2, A),
        op("set", 3, 10, B),
        op("get", 4, 5, B),
        op("get", 6, 7, A),
    ],
    "a lost update": [op("set", 1, 2, A), op("incr", 3, 5, 1, A + 1), op("incr", 4, 6, 1, A + 1)],
    "two cas of one value": [
        op("set", 1, 2, A),
        op("cas", 3, 5, A, B, True),
        op("cas", 4, 6, A, C, True),
    ],
    "two adds": [op("add", 1, 3, A, True), op("add", 2, 4, B, True)],
    "a cas that fails for nothing": [op("set", 1, 2, A), op("cas", 3, 4, A, B, False)],
    "a value that survives a death": [op("set", 1, 2, A), op("gone", 3, 4), op("get", 5, 6, A)],
    "an old cas unique that fits after a death": [
        op("set", 1, 2, A),
        op("gone", 3, 4),
        op("set", 5, 6, B),
        op("cas", 7, 8, A, C, True),
    ],
    "what may have happened, after its time": [
        perhaps("set", 1, 3, A),
        op("set", 4, 5, B),
        op("get", 6, 7, A),
    ],
    "what may have happened, twice": [
        perhaps("set", 1, 20, A),
        op("get", 2, 3, A),
        op("set", 4, 5, B),
        op("get", 6, 7, B),
        op("get", 8, 9, A),
    ],
    "a delete that nobody made": [op("set", 1, 2, A), op("delete", 3, 4, False)],
}


@pytest.mark.parametrize("name", GOOD)
def test_a_history_that_can_be(name: str) -> None:
    assert check(GOOD[name]), check(GOOD[name]).stuck


@pytest.mark.parametrize("name", BAD)
def test_a_history_that_cannot_be(name: str) -> None:
    verdict = check(BAD[name])
    assert not verdict and "fit" in verdict.stuck


def test_values_have_to_tell_where_they_come_from() -> None:
    for values in ((A, A), (A, A + 1)):
        with pytest.raises(ValueError, match="different"):
            check([op("set", 1, 2, value) for value in values])


def test_a_search_that_takes_too_long_is_given_up() -> None:
    beside = [op("set", 1, 10, number * SPACE) for number in range(1, 12)]
    with pytest.raises(Undecided):
        check([*beside, op("get", 11, 12, None)], most_steps=1000)


# -- the checker, held against one that is slow and obvious


def possible(operations: list[Operation]) -> bool:
    """Tries every order of every choice of what has happened."""
    certain = [one for one in operations if one.certain]
    others = [one for one in operations if not one.certain]
    for number in range(len(others) + 1):
        for chosen in itertools.combinations(others, number):
            if any(map(fits, itertools.permutations([*certain, *chosen]))):
                return True
    return False


def fits(order: tuple[Operation, ...]) -> bool:
    state = None
    for index, one in enumerate(order):
        if any(later.returned < one.invoked for later in order[index + 1 :]):
            return False
        happens, state = one.effect(state)
        if not happens:
            return False
    return True


def some_history(rng: random.Random, length: int, callers: int) -> list[Operation]:
    """What callers would see of a perfect server; each operation happens at one moment of it."""
    state: int | None = None
    now, number, done = 0.0, 0, []
    ends = [0.0] * callers
    seen = [A]
    while len(done) < length:
        now += rng.random()
        caller = rng.randrange(callers)
        if ends[caller] > now:
            continue
        invoked, returned = max(ends[caller], now - rng.random() * callers), now + rng.random()
        ends[caller] = returned
        verb = rng.choice(["get", "get", "set", "add", "replace", "cas", "delete", "incr", "gone"])
        number += 1
        value = 1 if verb == "incr" else number * SPACE
        one = Operation(verb, invoked, returned, value, True, rng.choice(seen))
        if verb == "gone" and rng.random() < 0.8:
            continue
        answers = [True, False, None] if verb in ("add", "replace", "cas", "delete") else [True]
        if verb in ("get", "incr"):
            there = state is not None
            answers = [state if verb == "get" or not there else state + 1]  # type: ignore[operator]
        for answer in answers:
            given = Operation(verb, invoked, returned, value, answer, one.expected)
            happens, after = given.effect(state)
            if happens:
                state = after
                break
        seen = [*seen, state][-3:] if state is not None else seen
        if verb not in ("get", "gone") and rng.random() < 0.1:
            given = history.replace(given, certain=False, returned=returned + 3 * rng.random())
        done.append(given)
    return done


def test_it_agrees_with_one_that_tries_everything() -> None:
    rng = random.Random(1)
    verdicts = []
    for _ in range(1500):
        operations = some_history(rng, 5, 3)
        if rng.random() < 0.6:
            index = rng.randrange(5)
            wrong = rng.choice([None, True, False, *(one.value for one in operations), A + 1])
            operations[index] = history.replace(operations[index], answer=wrong)
        verdict = check(operations)
        verdicts.append(bool(verdict))
        assert bool(verdict) == possible(operations), "\n".join(map(str, operations))
        if verdict.order is not None:
            assert fits(tuple(verdict.order))
    assert 300 < sum(verdicts) < 1200, "both kinds have to be tried"


def test_a_long_history_is_decided_quickly() -> None:
    rng = random.Random(2)
    operations = some_history(rng, 6000, 12)
    verdict = check(operations)
    assert verdict, verdict.stuck
    assert verdict.steps < 200_000


# -- the client, while its memcached dies again and again

KEYS = ("one", "two", "three")
#: Seconds from one death of the memcached to the next.
LIFE = 0.2
#: It dies so often, and on until there are enough operations to tell something.
DEATHS = 20
MOST_DEATHS = 100
ENOUGH = 300


class Recorder:
    """What the callers saw, and when the memcached died."""

    def __init__(self) -> None:
        self.operations: dict[str, list[Operation]] = {key: [] for key in KEYS}
        self.deaths: list[tuple[float, float]] = []
        self.over = False
        self._numbers = itertools.count(1)

    def has_enough(self) -> bool:
        return all(len(operations) > ENOUGH for operations in self.operations.values())

    def new_value(self) -> int:
        return next(self._numbers) * SPACE

    def histories(self) -> Iterator[tuple[str, list[Operation]]]:
        """Yields each key with what happened to it, the deaths included."""
        gone = [Operation("gone", begun, ended) for begun, ended in self.deaths]
        for key, operations in self.operations.items():
            yield key, [*map(self._bounded, operations), *gone]

    def _bounded(self, one: Operation) -> Operation:
        if one.certain:
            return one
        bound = min((end for _, end in self.deaths if end >= one.returned), default=NEVER)
        return history.replace(one, returned=bound)

    def note(
        self, key: str, verb: str, invoked: float, outcome: Any, value: int, token: Any
    ) -> None:
        """Takes the outcome of a call: a result, an error, or a cancellation."""
        now, certain, expected = time.monotonic(), True, None
        if isinstance(outcome, BaseException):
            if verb in ("get", "gets"):
                return
            if isinstance(outcome, MemcacheError) and not outcome.maybe_applied:
                return  # (it must not have happened)
            certain, outcome = False, None
        if verb == "cas":
            expected, unique = token
            if outcome is False and not unique.fresh(unique.pool):
                return  # (a connection was lost since: the client says so by itself)
        verb = "get" if verb == "gets" else verb
        self.operations[key].append(
            Operation(verb, invoked, now, value, outcome, expected, certain)
        )


async def call(
    recorder: Recorder, rng: random.Random, client: Client, verb: str, key: str, token: Any = None
) -> Any:
    """Makes a call, some with so little time that it runs out, and records it."""
    value = 0
    arguments: list[Any] = []
    if verb in ("set", "add", "replace", "cas"):
        arguments = [value := recorder.new_value()]
    elif verb == "incr":
        arguments = [value := rng.randrange(1, 9)]
    if verb == "cas":
        arguments.append(token[1])
    timeout = rng.choice([None] * 30 + [0.0005, 0.001, 0.003])
    invoked = time.monotonic()
    future = getattr(client, verb)(key, *arguments, timeout=timeout)
    if rng.random() < 0.02:
        asyncio.get_running_loop().call_later(rng.random() * 0.002, future.cancel)
    outcome: Any
    try:
        outcome = await future
    except (MemcacheError, asyncio.CancelledError) as error:
        outcome = error
    told = outcome[0] if verb == "gets" and isinstance(outcome, tuple) else outcome
    recorder.note(key, verb, invoked, told, value, token)
    return outcome


async def keep_calling(recorder: Recorder, rng: random.Random, client: Client) -> None:
    """Calls until it is over; a cas goes by one of the last uniques, from an earlier life too."""
    verbs = ["get"] * 6 + ["set"] * 3 + ["gets"] * 4 + ["cas"] * 4
    verbs += ["add", "replace", "delete"] + ["incr"] * 3
    tokens: dict[str, deque[Any]] = {key: deque(maxlen=10) for key in KEYS}
    while not recorder.over:
        key, verb = rng.choice(KEYS), rng.choice(verbs)
        if verb == "cas" and not tokens[key]:
            continue
        token = rng.choice([tokens[key][-1], *tokens[key]]) if verb == "cas" else None
        outcome = await call(recorder, rng, client, verb, key, token)
        if verb == "gets" and isinstance(outcome, tuple) and outcome[1] is not None:
            tokens[key].append(outcome)
        await asyncio.sleep(rng.random() * (0.02 if isinstance(outcome, MemcacheError) else 0.004))


async def keep_disconnecting(recorder: Recorder, rng: random.Random, clients: list[Client]) -> None:
    """Takes connections away in the middle of calls, of which the server forgets nothing."""
    while not recorder.over:
        await asyncio.sleep(rng.random() * 0.05)
        rng.choice(clients).disconnect()


def kill_again_and_again(recorder: Recorder, server: Memcached) -> None:
    """Kills it every `LIFE`. It has stood still before: once in mid-life, once at its end."""
    try:
        for number in range(MOST_DEATHS):
            if number >= DEATHS and recorder.has_enough():
                break
            time.sleep(LIFE / 2)
            server.stop()
            time.sleep(LIFE / 10)
            if number % 2:
                server.resume()
                time.sleep(LIFE / 2)
            begun = time.monotonic()
            server.kill()
            recorder.deaths.append((begun, time.monotonic()))
            server.restart()
        time.sleep(LIFE)
    finally:
        recorder.over = True


def test_what_callers_see_can_have_happened(start_memcached: Any, expect_log: Any) -> None:
    expect_log("tornado_memcache", "fails|dead", times=range(1, 10_000))
    server, recorder = start_memcached(), Recorder()

    async def main() -> None:
        settings = {"request_timeout": 0.15, "dead_retry": 0.05}
        clients = [Client([server.address], max_connections=most, **settings) for most in (1, 4, 2)]
        callers = [
            keep_calling(recorder, random.Random(number), clients[number % len(clients)])
            for number in range(12)
        ]
        await asyncio.gather(*callers, keep_disconnecting(recorder, random.Random(99), clients))
        for client in clients:
            client.close()

    killer = threading.Thread(target=kill_again_and_again, args=(recorder, server))
    killer.start()
    asyncio.run(main())
    killer.join()
    assert len(recorder.deaths) >= DEATHS and recorder.has_enough()
    assert any(not one.certain for key in KEYS for one in recorder.operations[key])
    for key, operations in recorder.histories():
        verdict = check(operations)
        assert verdict, f"{key}: {verdict.stuck}"
