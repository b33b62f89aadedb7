"""Any sequence of commands, through the client, beside a model in plain Python.

The same rules for a real memcached and for the embedded server: every outcome
is the model's. The embedded server lives by a clock that is turned by hand. A
real one's cannot be turned, so what would end there while the test runs is
made to end long after it, but for the rule `let_expire`, which gives an item a
second and waits (`WAITS` times in all; after that, the item is stored expired).

``MODEL_EXAMPLES=2000`` is the long version, which also waits more often; the
short one runs `EXAMPLES` sequences of up to `STEPS` rules on each server.
"""

from __future__ import annotations

import asyncio
import os
import time
from datetime import datetime, timedelta, timezone
from types import SimpleNamespace
from typing import Any, NamedTuple

from hypothesis import HealthCheck, Phase, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    rule,
    run_state_machine_as_test,
)
from tornado.ioloop import IOLoop

from tornado_memcache import CasUnique, Client, Item, MemcacheError, Request
from tornado_memcache.server import EmbeddedServer

from .hand import Hand
from .model import NEVER, Model
from .test_commands import Styled

LONG = int(os.environ.get("MODEL_EXAMPLES", "0"))
#: Sequences that are tried on each server, and rules in each.
EXAMPLES, STEPS = LONG or 80, 50
#: How often the test waits for a real memcached's clock.
WAITS = max(4, LONG // 10)
#: Lengths are so many times longer where the clock cannot be turned.
LONGER = 100_000
#: A loaded machine is no fault of a server.
LENIENT: dict[str, Any] = {"key_prefix": "model:", "connect_timeout": 10, "request_timeout": 10}
#: memcached takes what is longer for a moment.
MONTH = 60 * 60 * 24 * 30


class Exptime(NamedTuple):
    """A length, and the form in which the client is given it."""

    seconds: int
    form: str

    def given(self, now: float, longer: int) -> Any:
        seconds = self.seconds * longer if self.seconds > 0 else self.seconds
        if seconds <= 0 or self.form == "int":
            return seconds
        if self.form == "month":
            return MONTH + seconds
        if self.form == "timedelta":
            return timedelta(seconds=seconds - 0.5)  # (it is rounded up)
        return datetime.fromtimestamp(now + seconds, timezone.utc)


KEYS = ["a", "b", "\u00e9"]
keys = st.sampled_from(KEYS)
some_keys = st.lists(keys, max_size=5)
small = st.sampled_from(
    [b"", b"v", b"\r\nEND\r\n", b"12", b"9 ", b"5x", bytes(range(256)), "text", "\u00e9", "99"]
    + [0, 7, 10, -5, 2**64 - 1, 2**64]
)
LARGE = [b"\r\nEND\r\n", "\u00e9"], [3000, 10_000]
#: Streamed by the client, or given a connection of its own.
large = st.builds(lambda piece, times: piece * times, *map(st.sampled_from, LARGE))
values = small | small | small | large
ends = st.sampled_from([b"1", b"x", b" ", b"", b"\xff", "2", "\u00e9", "\r\n"])
exptimes = st.builds(
    Exptime,
    st.sampled_from([0, 0, 0, -1]) | st.integers(1, 40),
    st.sampled_from(["int", "month", "timedelta", "datetime"]),
)
deltas = st.sampled_from([0, 1, 1, 2, 9, 10, 2**64 - 1])
numbers = st.sampled_from([None, None, 10, 7, "99", b"12", b"9 ", 2**64 - 1])
lengths = st.sampled_from([1, 1, 2, 5, 30, MONTH])


class Embedded:
    """The embedded server, new for each sequence, and its clock."""

    longer = 1

    def __init__(self, hand: Hand) -> None:
        self.hand = hand

    async def begin(self) -> str:
        self.hand.now = float(int(time.time()))
        self._server = EmbeddedServer(clock=self.hand)
        await self._server.__aenter__()
        return self._server.address

    async def end(self) -> None:
        await self._server.close()

    def now(self) -> float:
        return self.hand.now

    def turn(self, seconds: int) -> int:
        """Lets time pass, and returns how much did."""
        self.hand.turn(seconds)
        return seconds


class Real:
    """A real memcached, whose clock nobody turns."""

    longer = LONGER

    def __init__(self, address: str) -> None:
        self._address = address
        self.waits = WAITS

    async def begin(self) -> str:
        return self._address

    async def end(self) -> None:
        pass

    now = staticmethod(time.time)

    def turn(self, seconds: int) -> int:
        return 0


class Machine(RuleBasedStateMachine):
    """The rules. ``server`` and ``io_loop`` are set by the test."""

    server: Embedded | Real
    io_loop: IOLoop
    sequences = 0
    calls = 0

    @initialize(style=st.sampled_from(["await", "callback"]))
    def begin(self, style: str) -> None:
        type(self).sequences += 1
        address = self.io_loop.run_sync(self.server.begin)
        self.client = Client([address], **LENIENT)
        self.mc = Styled(self.client, style)
        self.model = Model(self.server.now())
        #: What stands for a cas unique of the model.
        self.tokens: dict[int, int] = {}
        self.given: list[CasUnique] = []
        self.one("flush_all")

    def teardown(self) -> None:
        if not hasattr(self, "client"):
            return
        try:
            assert all(pool.losses == 0 for pool in self.client._pools)
        finally:
            self.client.close()
            self.io_loop.run_sync(self.server.end)

    # -- asking both

    def one(self, name: str, *arguments: Any, **named: Any) -> Any:
        """Makes one call, and compares its outcome with the model's."""
        return self.burst([(name, arguments, named)])[0]

    def burst(self, asked: list[tuple[str, tuple[Any, ...], dict[str, Any]]]) -> list[Any]:
        """Makes all calls in one tick; the model takes them in their order."""
        type(self).calls += len(asked)

        async def ask() -> list[Any]:
            made = [getattr(self.mc, name)(*given, **named) for name, given, named in asked]
            return await asyncio.gather(*made, return_exceptions=True)

        outcomes = self.io_loop.run_sync(ask, timeout=30)
        for (name, given, named), outcome in zip(asked, outcomes):
            try:
                expected = getattr(self.model, name)(*given, **named)
            except MemcacheError as error:
                expected = error
            self.same(name, given, outcome, expected)
        return outcomes

    def same(self, name: str, given: Any, outcome: Any, expected: Any) -> None:
        told = f"{name}{str(given)[:200]} gave {str(outcome)[:200]}, not {str(expected)[:200]}"
        if isinstance(expected, MemcacheError) or isinstance(outcome, BaseException):
            assert type(outcome) is type(expected), told
        elif name in ("gets", "gats"):
            self.same_item(outcome, expected, told)
        elif name == "get_multi":
            hits, unread = expected
            assert _typed(outcome) == _typed(hits) and bool(outcome.errors) is unread, told
        elif name == "gets_multi":
            hits, unread = expected
            assert outcome.keys() == hits.keys() and bool(outcome.errors) is unread, told
            for key, item in outcome.items():
                self.same_item(item, hits[key], told)
        elif name == "meta_get":
            self.same_meta(outcome, expected, told)
        elif name == "meta_get_multi":
            hits, unread = expected
            assert outcome.keys() == hits.keys() and bool(outcome.errors) is unread, told
            for key, item in outcome.items():
                self.same_meta(item, hits[key] | {"cas_unique": None}, told)
        elif name == "meta_arithmetic" and outcome is not None:
            assert outcome.value == expected, told
        elif name == "flush_all":
            assert list(outcome.values()) == [expected] and not outcome.errors, told
        else:
            assert _typed(outcome) == _typed(expected), told

    def same_item(self, outcome: Any, expected: Any, told: str) -> None:
        (value, token), (model_value, unique) = outcome, expected
        assert _typed(value) == _typed(model_value), told
        assert (token is None) is (unique is None), told
        if token is not None:
            self.same_unique(token, unique, told)
            self.given.append(token)

    def same_meta(self, outcome: Any, expected: Any, told: str) -> None:
        assert (outcome is None) is (expected is None), told
        if outcome is None:
            return
        assert _typed(outcome.value) == _typed(expected["value"]), told
        for name in ("won", "stale", "recache", "size"):
            assert getattr(outcome, name) == expected[name], f"{name}: {told}"
        if expected["cas_unique"] is not None:
            self.same_unique(outcome.cas_unique, expected["cas_unique"], told)
            self.given.append(outcome.cas_unique)

    def same_unique(self, token: int, unique: int, told: str) -> None:
        """One cas unique of the model is one of the server, and the other way round."""
        assert self.tokens.setdefault(int(token), unique) == unique, told
        assert len(set(self.tokens.values())) == len(self.tokens), told

    def exptime(self, exptime: Exptime) -> Any:
        return exptime.given(self.server.now(), self.server.longer)

    @invariant()
    def all_of_it(self) -> None:
        """Behind every rule all items are the model's, those too that cannot be read."""
        if not hasattr(self, "client"):
            return
        items = self.stored()
        for key in KEYS:
            kept = self.model.there(key)
            expected = None if kept is None else (kept.data, kept.flags)
            found = items.get(_wire(key))
            held = None if found is None else found[:2]
            told = f"{key} holds {str(held)[:200]}, not {str(expected)[:200]}"
            assert held == expected, told
            if kept is not None:
                self.same_unique(found.cas_unique, kept.unique, told)

    def stored(self) -> dict[bytes, Item]:
        """Returns what the server has, as it is."""
        ask = Request(b"gets", tuple(map(_wire, KEYS)))
        return self.io_loop.run_sync(lambda: self.client.request(ask), timeout=30).items

    # -- the rules

    @rule(key=keys, default=st.sampled_from([None, 0]))
    def get(self, key: str, default: Any) -> None:
        self.one("get", key, default)

    @rule(key=keys)
    def gets(self, key: str) -> None:
        self.one("gets", key)

    @rule(name=st.sampled_from(["gat", "gats", "touch"]), key=keys, exptime=exptimes)
    def touch(self, name: str, key: str, exptime: Exptime) -> None:
        self.one(name, key, self.exptime(exptime))

    @rule(
        name=st.sampled_from(["set", "set", "add", "replace"]),
        key=keys,
        value=values,
        exptime=exptimes,
        noreply=st.booleans(),
    )
    def store(self, name: str, key: str, value: Any, exptime: Exptime, noreply: bool) -> None:
        self.write(name, key, value, self.exptime(exptime), noreply=noreply)

    @rule(
        name=st.sampled_from(["append", "prepend"]),
        key=keys,
        value=ends,
        noreply=st.booleans(),
        exptime=st.none() | exptimes,
    )
    def extend(
        self, name: str, key: str, value: Any, noreply: bool, exptime: Exptime | None
    ) -> None:
        if exptime is not None:
            self.one("set", key, "12", self.exptime(exptime))
        self.write(name, key, value, noreply=noreply)

    def write(self, name: str, *arguments: Any, noreply: bool) -> None:
        if not noreply:
            self.one(name, *arguments)
            return
        getattr(self.model, name)(*arguments)
        assert self.io_loop.run_sync(lambda: getattr(self.mc, name)(*arguments, noreply=True))
        # Until something is answered behind it, no error line could be attributed.
        self.one("get", arguments[0])

    @rule(key=keys, value=values, exptime=exptimes, pick=st.integers(0, 1 << 16))
    def cas(self, key: str, value: Any, exptime: Exptime, pick: int) -> None:
        """Takes the cas unique of any item that was ever fetched, of this key or another."""
        if pick % 3 == 0 or not self.given:
            self.one("gets", key)  # (the newest)
        if not self.given:
            return
        token = self.given[-1 if pick % 3 == 0 else pick % len(self.given)]
        when = self.exptime(exptime)
        outcome = self.io_loop.run_sync(lambda: self.mc.cas(key, value, token, when))
        expected = self.model.cas(key, value, self.tokens[int(token)], when)
        self.same("cas", (key, value, token), outcome, expected)

    @rule(name=st.sampled_from(["incr", "decr"]), key=keys, delta=deltas, number=numbers)
    def count(self, name: str, key: str, delta: int, number: Any) -> None:
        if number is not None:
            self.one("set", key, number)
        self.one(name, key, delta)
        self.padded_or_not(key)

    def padded_or_not(self, key: str) -> None:
        """Takes over how a memcached has stored a number that became shorter.

        "The number MAY be space-padded at the end": not if the item was just
        being sent, or looked at by one of memcached's own threads. Then it is another item.
        """
        kept = self.model.there(key)
        if kept is not None and kept.data.endswith(b" ") and isinstance(self.server, Real):
            stored = self.stored()[_wire(key)].value
            assert stored.rstrip() == kept.data.rstrip() and len(stored) <= len(kept.data)
            if len(stored) < len(kept.data):
                kept = kept._replace(stale=False, told=False)
            self.model.items[key] = kept._replace(data=stored)

    @rule(
        key=keys,
        vivify=st.none() | exptimes.filter(lambda exptime: exptime.seconds > 0),
        touch=st.none() | exptimes,
        recache=st.sampled_from([0, 0, 10, MONTH]),
    )
    def meta_get(
        self, key: str, vivify: Exptime | None, touch: Exptime | None, recache: int
    ) -> None:
        named: dict[str, Any] = {"recache": recache}
        if vivify is not None:
            named["vivify"] = self.exptime(vivify)
        if touch is not None:
            named["touch"] = self.exptime(touch)
        self.meta("meta_get", (key,), named, cas_unique=True)

    def meta(self, name: str, given: tuple[Any, ...], named: dict[str, Any], **more: Any) -> None:
        """Makes one call, with ``more`` that the model does not ask about."""
        type(self).calls += 1
        asked = {**named, **more}

        async def ask() -> Any:
            made = getattr(self.mc, name)(*given, **asked)
            return (await asyncio.gather(made, return_exceptions=True))[0]

        outcome = self.io_loop.run_sync(ask, timeout=30)
        try:
            expected = getattr(self.model, name)(*given, **named)
        except MemcacheError as error:
            expected = error
        self.same(name, (given, named), outcome, expected)

    @rule(
        mode=st.sampled_from(["set", "set", "add", "replace", "append", "prepend"]),
        key=keys,
        value=values,
        end=ends,
        exptime=exptimes,
        pick=st.none() | st.integers(0, 1 << 16),
    )
    def meta_set(
        self, mode: str, key: str, value: Any, end: Any, exptime: Exptime, pick: int | None
    ) -> None:
        given = (key, end) if mode in ("append", "prepend") else (key, value, self.exptime(exptime))
        named: dict[str, Any] = {"mode": mode}
        if pick is None or not self.given or mode == "add":
            return self.meta("meta_set", given, named)
        token = self.given[pick % len(self.given)]
        named["unique"] = self.tokens[int(token)]
        outcome = self.io_loop.run_sync(
            lambda: self.mc.meta_set(*given, mode=mode, cas_unique=token)
        )
        # (memcached looks at the unique before it looks at the mode.)
        self.same("meta_set", (given, named), outcome, self.model.meta_set(*given, **named))

    @rule(
        key=keys,
        invalidate=st.booleans(),
        exptime=st.none() | exptimes,
        pick=st.none() | st.integers(0, 1 << 16),
    )
    def meta_delete(
        self, key: str, invalidate: bool, exptime: Exptime | None, pick: int | None
    ) -> None:
        named: dict[str, Any] = {"invalidate": invalidate}
        if invalidate and exptime is not None:
            named["exptime"] = self.exptime(exptime)
        if pick is None or not self.given:
            return self.meta("meta_delete", (key,), named)
        token = self.given[pick % len(self.given)]
        outcome = self.io_loop.run_sync(lambda: self.mc.meta_delete(key, cas_unique=token, **named))
        expected = self.model.meta_delete(key, unique=self.tokens[int(token)], **named)
        self.same("meta_delete", (key, named), outcome, expected)

    @rule(
        key=keys,
        delta=deltas,
        initial=deltas,
        vivify=st.none() | exptimes.filter(lambda exptime: exptime.seconds >= 0),
        number=numbers,
    )
    def meta_arithmetic(
        self, key: str, delta: int, initial: int, vivify: Exptime | None, number: Any
    ) -> None:
        if number is not None:
            self.one("set", key, number)
        named: dict[str, Any] = {}
        if vivify is not None:
            named = {"vivify": self.exptime(vivify), "initial": initial}
        self.meta("meta_arithmetic", (key, delta), named)
        self.padded_or_not(key)

    @rule(keys=some_keys, invalidate=st.booleans(), deletes=st.booleans())
    def meta_many(self, keys: list[str], invalidate: bool, deletes: bool) -> None:
        if deletes:
            self.meta("meta_delete_multi", (keys,), {"invalidate": invalidate})
        else:
            self.meta("meta_get_multi", (keys,), {})

    @rule(key=keys)
    def delete(self, key: str) -> None:
        self.one("delete", key)

    @rule(name=st.sampled_from(["get_multi", "gets_multi", "delete_multi"]), keys=some_keys)
    def many(self, name: str, keys: list[str]) -> None:
        self.one(name, keys)

    @rule(mapping=st.dictionaries(keys, values, max_size=4), exptime=exptimes)
    def set_multi(self, mapping: dict[str, Any], exptime: Exptime) -> None:
        self.one("set_multi", mapping, self.exptime(exptime))

    @rule()
    def flush_all(self) -> None:
        self.one("flush_all")

    @rule(data=st.data())
    def in_one_tick(self, data: st.DataObject) -> None:
        """Several calls at once: for one key they take effect in their order."""
        self.burst(data.draw(st.lists(bursts, min_size=2, max_size=8)))

    @rule(seconds=lengths)
    def turn(self, seconds: int) -> None:
        self.model.now += self.server.turn(seconds)

    @rule(pick=st.integers(0, 5))
    def turn_to_the_end_of_one(self, pick: int) -> None:
        """Has the last second of an item come, and then its end."""
        ends = sorted(
            (kept.ends, key)
            for key in KEYS
            if (kept := self.model.there(key)) is not None and kept.ends < NEVER
        )
        if ends and isinstance(self.server, Embedded):
            moment, key = ends[pick % len(ends)]
            self.turn(int(moment - self.model.now) - 1)
            self.one("get", key)
            self.turn(1)
            self.one("get", key)

    @rule(
        name=st.sampled_from(["set", "add", "replace", "touch", "gat"]),
        key=keys,
        seconds=st.integers(1, 40),
    )
    def let_expire(self, name: str, key: str, seconds: int) -> None:
        """Gives an item a length and lets it pass."""
        value = ("short",) if name in ("set", "add", "replace") else ()
        if isinstance(self.server, Embedded):
            self.one(name, key, *value, seconds)
            self.turn(seconds - 1)
            self.one("get", key)
            self.turn(1)
        elif self.server.waits > 0:
            self.server.waits -= 1
            before = self.ticks()
            self.one(name, key, *value, 1)
            alive = self.stored()
            after = self.ticks()
            if before == after:
                assert (_wire(key) in alive) is (self.model.there(key) is not None)
            while self.ticks() <= after:
                time.sleep(0.02)
            self.model.now += 1
        else:
            self.one(name, key, *value, -1)
        self.one("get", key)

    def ticks(self) -> int:
        """Returns a real memcached's own clock."""
        stats = self.io_loop.run_sync(lambda: self.client.stats())
        return int(next(iter(stats.values()))["uptime"])


#: What may be in a burst. No large values: with several connections in use, a
#: read may be newer than it has to be. No counting down: whether a number that
#: became shorter is padded depends on whether the item is being sent.
bursts = st.one_of(
    st.tuples(st.sampled_from(["get", "gets", "delete"]), st.tuples(keys), st.just({})),
    st.tuples(st.just("get"), st.tuples(keys), st.just({})),
    st.tuples(st.sampled_from(["set", "add", "replace"]), st.tuples(keys, small), st.just({})),
    st.tuples(st.sampled_from(["append", "prepend"]), st.tuples(keys, ends), st.just({})),
    st.tuples(st.just("get_multi"), st.tuples(some_keys), st.just({})),
    st.tuples(st.just("touch"), st.tuples(keys, st.sampled_from([0, -1])), st.just({})),
)


def _wire(key: str) -> bytes:
    return b"model:" + key.encode()


def _typed(value: Any) -> Any:
    """Returns ``value`` so that it equals only what has its type too."""
    if isinstance(value, dict):
        return {key: _typed(one) for key, one in value.items()}
    return (list if isinstance(value, list) else type(value)), value


def run(server: Embedded | Real, io_loop: IOLoop) -> None:
    class Here(Machine):
        pass

    Here.server, Here.io_loop = server, io_loop
    run_state_machine_as_test(
        Here,
        settings=settings(
            max_examples=EXAMPLES,
            stateful_step_count=STEPS,
            deadline=None,
            database=None,
            suppress_health_check=list(HealthCheck),
            phases=set(Phase) - {Phase.explain},
        ),
    )
    # (seen with -s)
    print(f"{type(server).__name__}: {Here.sequences} sequences, {Here.calls} calls")


def test_a_real_memcached_is_as_the_model(memcached, io_loop):
    run(Real(memcached.address), io_loop)


def test_the_embedded_server_is_as_the_model(io_loop, monkeypatch):
    hand = Hand()
    # What is longer than a month is turned into a moment, on the clock of the server.
    for module in ("commands", "meta_commands"):
        monkeypatch.setattr(f"tornado_memcache.{module}.time", SimpleNamespace(time=hand))
    run(Embedded(hand), io_loop)
