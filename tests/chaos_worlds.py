"""The worlds of a chaos run: a client each, and what may come of its calls (I6).

Knows which failures and values are right in a world where bytes are only held
up or lost, and which where they are changed. It must not know what is done to
servers and networks, nor why a call was made.

Where a network changes, doubles or adds bytes, any client of the text
protocol can be told what is not so, since a reply names no request: a
doubled ``STORED``, ``NOT_FOUND`` or number answers the next write, ``END`` is
a miss, a flipped bit in a request stores or asks something else, and a value
may come from an earlier get of its key. Only a value with a right checksum
under another key than its own would be the client's fault. In a world without
such faults nothing may be wrong: there each outcome is held against what
memcached does, see `OwnedKey`.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from tornado_memcache import (
    Client,
    ClientClosed,
    ConnectionFailed,
    InvalidRequest,
    MemcacheError,
    ServerDead,
    Timeout,
    TooManyCalls,
)

from .chaos_commands import Command, Several
from .chaos_troubles import Losses
from .chaos_values import ANSWERED, NEVER, Damaged, Moment, OwnedKey, Step, read_value
from .chaos_witness import Call, Witness, clock

#: What an honest server and an honest network can come to.
HONEST = (Timeout, ConnectionFailed, ServerDead, TooManyCalls, ClientClosed)
#: A command, its call, and its place in a call for several keys.
Given = tuple[Command, Call, "Several | None", int]


class World:
    """A client, what may come of its calls, and the keys that are shared in it."""

    def __init__(
        self,
        witness: Witness,
        name: str,
        make: Callable[[], Client],
        losses: dict[str, Losses],
        *,
        request_timeout: float,
        strict: bool,
        raw: bool = True,
    ) -> None:
        self.witness = witness
        self.name = name
        self.strict = strict
        #: What is stored are the very bytes: they can be added to, and asked for in a `Request`.
        self.raw = raw
        self.request_timeout = request_timeout
        self.make = make
        self.client = make()
        #: How many clients and servers there were.
        self.clients = 1
        self.servers = len(self.client.servers)
        #: Names of servers to when they lose their items.
        self.losses = losses
        self.shared = [f"{name}:shared:{number}" for number in range(8)]
        #: Keys that are computed when they are wanted, and by nothing else.
        self.wanted = [f"{name}:wanted:{number}" for number in range(6)]
        self.counters = [f"{name}:counter:{number}" for number in range(3)]
        #: Keys that others than the owner may read.
        self.known: dict[str, None] = {}
        #: Nonces of what certainly was not stored.
        self.never: set[int] = set()
        self.judged = 0
        self.retired = 0
        self.damaged = 0

    def renew(self) -> None:
        """Closes the client in the middle of everything, and makes another."""
        self.client.close()
        self.client = self.make()
        self.clients += 1

    def pool_of(self, key: str) -> Any:
        return self.client._locate(key)[1]

    def moment(self, key: str) -> Moment:
        pool = self.pool_of(key)
        return Moment(clock(), (pool, pool.losses))

    def lost_since(self, key: str, moment: float) -> bool:
        return self.losses[self.pool_of(key).name].since(moment)

    # -- right or wrong

    def is_wrong_failure(self, call: Call) -> bool:
        """I6: with an honest network, no failure but those of an honest one."""
        if call.ended != "failed" or not isinstance(call.result, MemcacheError):
            return False
        wrong = isinstance(call.result, InvalidRequest)
        if self.strict:
            wrong = not isinstance(call.result, HONEST)
        if wrong:
            self.witness.violated("I6", f"{call}: {call.result!r}")
        return wrong

    def check_whose(self, name: str, step: Step, call: Call) -> None:
        """I6: whatever a value went through, it is one of this key, and not one never stored."""
        if step.known == NEVER and not step.reads and isinstance(step.value, (bytes, str)):
            self.never.add(read_value(step.value)[-1][1])
        if not step.reads or step.known != ANSWERED or not isinstance(step.answer, (bytes, str)):
            return
        try:
            parts = read_value(step.answer)
        except Damaged as error:
            self.damaged += 1
            if self.strict:
                self.witness.violated("I6", f"{call}: {error}")
            return
        for key, nonce in parts:
            if key != name:
                self.witness.violated("I6", f"{call}: it got a value of {key}")
            elif self.strict and nonce in self.never:
                self.witness.violated("I6", f"{call}: it got #{nonce}, which was never stored")

    def judge(self, key: OwnedKey, begun: Moment, given: list[Given]) -> None:
        """I6: holds what came of the commands against what the key may hold."""
        steps = []
        wrong = False
        for command, call, several, index in given:
            wrong = self.is_wrong_failure(call) or wrong
            step = _step_of(command, call, several, index)
            token = command.token
            if command.verb == "cas" and step.answer is False:
                step.stale = not token.fresh(self.pool_of(key.name))
            steps.append(step)
            self.check_whose(command.key, step, call)
        if not self.strict or wrong:
            key.retired = wrong or len(given) > 4  # (just so that there are new ones)
            return
        self.judged += len(given)
        ended = self.moment(key.name)
        lost = self.lost_since(key.name, key.known_at)
        told = key.judge(steps, begun, ended, lost)
        self.retired += key.retired
        if told is not None:
            self.witness.violated("I6", told)


def _step_of(command: Command, call: Call, several: Several | None, index: int) -> Step:
    if several is None:
        return command.step(call.ended, call.result)
    return several.steps(call.ended, call.result)[index]


class Judgement:
    """Commands for keys of one caller, from their beginning to the moment they are judged."""

    def __init__(self, world: World) -> None:
        self._world = world
        self._begun: dict[str, Moment] = {}
        self._keys: dict[str, OwnedKey] = {}
        self._given: dict[str, list[Given]] = {}

    def note(self, key: OwnedKey) -> None:
        """Notes how things stand before the first command for ``key``."""
        if key.name not in self._begun:
            self._begun[key.name] = self._world.moment(key.name)
            self._keys[key.name], self._given[key.name] = key, []

    def add(
        self,
        key: OwnedKey,
        command: Command,
        call: Call,
        several: Several | None = None,
        index: int = 0,
    ) -> None:
        self._given[key.name].append((command, call, several, index))

    async def pass_when_ended(self) -> None:
        """Waits until every call has its outcome, those that callbacks make too, and judges."""
        while calls := [one for one in self._calls() if one.ended is None]:
            for call in calls:
                await call.told
        for name, given in self._given.items():
            self._world.judge(self._keys[name], self._begun[name], given)

    def _calls(self) -> list[Call]:
        return [call for given in self._given.values() for _, call, _, _ in given]
