"""tornado_memcache.namespaces: all commands under a name, and nothing of before once it is gone.

The history at the end records what concurrent callers of several clients see
of a real memcached while the namespace is made invalid again and again: a
value whose set had returned before an invalidation began must not be seen by
a get that began after it had returned.
"""

from __future__ import annotations

import asyncio
import contextvars
import gc
import inspect
import random
import time
import weakref
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import pytest

from tornado_memcache import (
    Client,
    InvalidKey,
    InvalidRequest,
    MemcacheError,
    NotSerializable,
    Timeout,
    ValueTooLarge,
    boundary,
)
from tornado_memcache import namespaces as module
from tornado_memcache.commands import Commands
from tornado_memcache.namespaces import WITHHELD, Namespace
from tornado_memcache.pickles import SignedPickle

from .asked import STYLES, Asked, until
from .gated import Gated
from .steps import cancel_at_every_step, turn

NAME = "user:42"
KEY = b"user:42:generation"
#: Every command: what it is given when "there" holds 5 and "gone" nothing, in their order.
COMMANDS: list[tuple[str, tuple[Any, ...]]] = [
    ("get", ("there",)),
    ("get", ("gone", "a default")),
    ("gat", ("there", 60)),
    ("get_multi", (["there", "gone", "there", b"there"],)),
    ("set", ("new", b"x", 60)),
    ("set", ("new", b"y", 60, True)),
    ("add", ("there", 1)),
    ("add", ("gone", 1)),
    ("replace", ("gone", 1)),
    ("append", ("there", b"0")),
    ("prepend", ("there", b"1")),
    ("incr", ("there", 7)),
    ("incr", ("gone",)),
    ("decr", ("there",)),
    ("touch", ("there", 60)),
    ("delete", ("gone",)),
    ("set_multi", ({"a": 1, "there": 2},)),
    ("delete_multi", (["a", "there", "there"],)),
    ("cas", ("there", b"z", 1 << 60)),
    ("gets", ("gone",)),
    ("gats", ("gone", 60)),
    ("gets_multi", (["gone"],)),
]


def public(kind: type) -> set[str]:
    return {
        name for name, _ in inspect.getmembers(kind, inspect.isfunction) if not name.startswith("_")
    }


@pytest.fixture(params=["known", "not known"])
def age(request: pytest.FixtureRequest) -> float:
    """A generation_age with which the generation is known to a call, and one with which not."""
    return 1000.0 if request.param == "known" else 0.0


# -- the commands


def test_every_command_about_keys_is_tried_here():
    assert public(Commands) - WITHHELD <= {name for name, _ in COMMANDS}
    assert public(Commands) - WITHHELD <= public(Namespace)


@pytest.mark.gen_test
@pytest.mark.parametrize("style", STYLES)
@pytest.mark.parametrize("name, given", COMMANDS)
async def test_a_command_comes_to_what_it_comes_to_on_the_client(
    name, given, style, age, memcached
):
    async with Client([memcached.address]) as client:
        ns = client.namespace(NAME, generation_age=age)
        outcomes = []
        for commands in (client, ns):
            await commands.set("there", 5)
            outcome = await Asked(style, getattr(commands, name), *given).outcome()
            outcomes.append((outcome, await commands.get_multi(["there", "new", "a", "gone"])))
        assert outcomes[0] == outcomes[1]
        assert type(outcomes[0][0]) is type(outcomes[1][0])


@pytest.mark.gen_test
async def test_a_cas_unique_is_of_its_item_and_of_its_connection(age, memcached):
    async with Client([memcached.address]) as client:
        ns = client.namespace(NAME, generation_age=age)
        await ns.set("k", 1)
        for read in (lambda: ns.gets("k"), lambda: ns.gats("k", 60)):
            value, unique = await read()
            assert await ns.cas("k", value + 1, unique) is True
            assert await ns.cas("k", value + 1, unique) is False
        (value, unique) = (await ns.gets_multi(["k"]))["k"]
        assert value == 3
        client.disconnect()
        assert await ns.cas("k", 4, unique) is False
        await ns.invalidate()
        assert await ns.cas("k", 4, 1) is None


@pytest.mark.gen_test
async def test_keys_are_placed_by_their_route_and_found_on_all_servers(age, start_memcached):
    servers = [start_memcached(), start_memcached()]
    async with Client([server.address for server in servers], key_prefix="p:") as client:
        ns = client.namespace(NAME, generation_age=age)
        keys = [f"k{n}" for n in range(50)]
        assert await ns.set_multi(dict.fromkeys(keys, 1)) == []
        assert len(await ns.get_multi(keys)) == 50
        assert await ns.set((0, "routed"), 2) and await ns.get((0, "routed")) == 2
        assert await ns.get((1, "routed")) is None
        word = client.namespace(NAME)._space.generation.known(1000)
        line = b"get %b\r\n" % b" ".join(b"p:user:42:%b:k%d" % (word, n) for n in range(50))
        kept = b"".join(one.ask(line, b"END\r\n") for one in servers)
        assert kept.count(b"VALUE") == 50
        asked = b"".join(one.ask(b"get p:%b\r\n" % KEY, b"END\r\n") for one in servers)
        assert asked.count(word) == 1


@pytest.mark.gen_test
async def test_what_asks_for_no_key_asks_nothing(silent):
    async with Client([silent.address]) as client:
        ns = client.namespace(NAME)
        for call in (ns.get_multi([]), ns.set_multi({}), ns.delete_multi([])):
            assert not await call
        ns.get_multi([], callback=(found := []).append)
        await until(lambda: found)
        assert await silent.untouched()


@pytest.mark.gen_test
async def test_a_signed_value_is_read_whenever_it_was_written(memcached):
    signed = SignedPickle([b"k" * 32])
    async with Client([memcached.address], serializer=signed) as client:
        known, cold = client.namespace(NAME), client.namespace(NAME, generation_age=0)
        for writer in (cold, known):
            for reader in (known, cold):
                assert await writer.set("k", {"a": [1]})
                assert await reader.get("k") == {"a": [1]}
                assert (await reader.get_multi(["k"]))["k"] == {"a": [1]}


@pytest.mark.gen_test
async def test_what_the_caller_changes_afterwards_is_not_what_is_stored(memcached):
    async with Client([memcached.address]) as client:
        ns = client.namespace(NAME, generation_age=0)
        key, value, mapping, keys = bytearray(b"key"), bytearray(b"value"), {"a": 1}, ["a"]
        calls = [ns.set(key, value), ns.set_multi(mapping), ns.get_multi(keys)]
        key[:], value[:] = b"yek", b"other"
        mapping["b"] = 2
        keys.append("key")
        assert await calls[0] is True and await calls[1] == [] and await calls[2] == {"a": 1}
        assert await ns.get_multi(["key", "yek", "a", "b"]) == {"key": b"value", "a": 1}
        assert await ns.get_multi(iter(["key", "a"])) == {"key": b"value", "a": 1}


# -- the meta commands, and what is computed


@pytest.mark.gen_test
async def test_the_meta_commands_are_under_the_name_too(age, memcached):
    async with Client([memcached.address]) as client:
        ns = client.namespace(NAME, generation_age=age)
        assert await ns.meta_get("k") is None
        assert await ns.meta_set("k", b"v")
        item = await ns.meta_get("k", cas_unique=True)
        assert item.value == b"v" and item.cas_unique.pool is client._pools[0]
        assert (await ns.debug("k"))["size"] and await ns.debug("gone") is None
        assert await ns.meta_set(b"a key", 1, binary=True)
        assert (await ns.meta_get(b"a key", binary=True)).value == 1
        many = await ns.meta_get_multi(["k", "gone"])
        assert {key: one.value for key, one in many.items()} == {"k": b"v"}
        assert (await ns.meta_arithmetic("n", initial=5, vivify=60)).value == 5
        assert await ns.meta_delete("k") and await ns.meta_get("k") is None
        await ns.meta_set("k", b"old")
        await ns.invalidate()
        assert await ns.meta_get("k") is None and await ns.meta_get(b"a key", binary=True) is None


@pytest.mark.gen_test
@pytest.mark.parametrize("style", STYLES)
async def test_what_is_computed_is_computed_once_in_each_generation(style, age, memcached):
    signed = SignedPickle([b"k" * 32])
    async with Client([memcached.address], serializer=signed) as client:
        ns = client.namespace(NAME, generation_age=age)
        made: list[int] = []

        async def factory() -> list[int]:
            made.append(len(made))
            await asyncio.sleep(0.01)
            return made[:]

        for count in (1, 2, 3):
            calls = [Asked(style, ns.get_or_set, "k", factory, 60) for _ in range(5)]
            for one in calls:
                assert await one.outcome() == list(range(count))
            assert await ns.get("k") == list(range(count))
            assert await (ns.invalidate("k") if count == 2 else ns.invalidate())
            assert await ns.get("k") is None


@pytest.mark.gen_test
async def test_what_was_being_computed_before_is_not_found_afterwards(age, memcached):
    async with Client([memcached.address]) as client:
        ns, go_on = client.namespace(NAME, generation_age=age), asyncio.Event()

        async def slow() -> bytes:
            await go_on.wait()
            return b"old"

        before = ns.get_or_set("k", slow, 60)
        await until(lambda: client.computations.computed)
        await ns.invalidate()
        assert await ns.get_or_set("k", lambda: b"new", 60) == b"new"
        go_on.set()
        assert await before == b"old"
        assert await ns.get("k") == b"new"


@pytest.mark.gen_test
async def test_without_its_word_a_value_is_computed_and_nobody_finds_it(start_memcached, troubles):
    server = start_memcached()
    async with Client([server.address]) as client:
        ns = client.namespace(NAME, generation_age=0)
        server.kill()
        for _ in range(3):
            assert await ns.get_or_set("k", lambda: b"computed", 60) == b"computed"
        server.restart()
        client.retry_dead_servers()
        assert await ns.get("k") is None


@pytest.mark.gen_test
async def test_without_its_word_what_many_want_is_computed_once(start_memcached, troubles, age):
    server = start_memcached()
    go, computed = asyncio.Event(), []

    async def make() -> bytes:
        computed.append(b"computed %d" % len(computed))
        value: bytes = computed[-1]
        await go.wait()
        return value

    async with Client([server.address]) as client:
        ns = client.namespace(NAME, generation_age=age)
        server.kill()
        calls = [ns.get_or_set("k", make, 60) for _ in range(100)]
        # (With no age an asking is only for those who were there before it.)
        often, joined = (1, 99) if age else (2, 98)
        await until(lambda: client.computations.waited == joined)
        calls.append(ns.get_or_set("k", make, 60))
        await until(lambda: len(computed) + client.computations.waited == 101)
        often += not age
        assert len(computed) == often
        with pytest.raises(MemcacheError):
            await ns.invalidate()
        last = asyncio.ensure_future(ns.get_or_set("k", make, 60))
        await until(lambda: len(computed) == often + 1)
        go.set()
        assert set(await asyncio.gather(*calls)) == set(computed[:-1])
        assert await last == computed[-1]


@pytest.mark.gen_test
@pytest.mark.parametrize(
    "name, given",
    [
        ("get_or_set", ("k", 7, 60)),
        ("get_or_set", ("k", print, -1)),
        ("get_or_set", ("a b", print, 60)),
        ("invalidate", ("",)),
        ("invalidate", (None,)),
        ("meta_set", ("k", object())),
    ],
)
async def test_bad_input_to_these_is_refused_before_anything_is_sent(name, given, silent):
    async with Client([silent.address]) as client:
        with pytest.raises((InvalidRequest, TypeError)):
            getattr(client.namespace(NAME), name)(*given)
        assert await silent.untouched()


# -- a name, and what is left of it


@pytest.mark.parametrize(
    "name, kind, told",
    [
        ("", InvalidKey, "name of a namespace: key is empty"),
        ("a b", InvalidKey, "white space"),
        (b"a\r\n", InvalidKey, "control character"),
        ("\ud800", InvalidKey, "lone surrogate"),
        ("n" * 235, InvalidKey, "236 bytes and leaves no room for a key"),
        (None, TypeError, "name of a namespace: key must be str or bytes, not NoneType"),
        (42, TypeError, "not int"),
        ((1, "n"), TypeError, "not tuple"),
    ],
)
def test_a_name_is_checked_as_a_key_is(name, kind, told):
    client = Client(["127.0.0.1"], key_prefix="p")
    with pytest.raises(kind, match=told):
        client.namespace(name)
    client.close()


@pytest.mark.parametrize("age", [-1, float("nan"), float("inf"), -0.5])
def test_an_age_is_zero_or_a_number_of_seconds(age):
    client = Client(["127.0.0.1"])
    with pytest.raises(InvalidRequest, match="generation_age must be 0, or a finite"):
        client.namespace("n", generation_age=age)
    for wrong in (None, "1", True, False):
        with pytest.raises(TypeError, match="generation_age"):
            client.namespace("n", generation_age=wrong)
    client.close()


@pytest.mark.gen_test
async def test_the_longest_name_leaves_one_byte_for_a_key(memcached):
    async with Client([memcached.address], key_prefix="p") as client:
        ns = client.namespace("n" * 234)
        for _ in range(2):
            assert await ns.set("k", 1) and await ns.get("k") == 1
            with pytest.raises(InvalidKey, match="251 bytes; memcached allows 250, the prefix"):
                ns.get("kk")


def test_a_client_that_migrates_has_none():
    old = Client(["127.0.0.1:1"])
    client = Client(["127.0.0.1:2"], migrate_from=old)
    with pytest.raises(InvalidRequest, match="migrate_from has no namespaces"):
        client.namespace("n")
    client.close()
    old.close()


@pytest.mark.parametrize("name", sorted(WITHHELD))
def test_what_concerns_whole_servers_belongs_to_the_client(name):
    client = Client(["127.0.0.1"])
    ns = client.namespace("n")
    with pytest.raises(AttributeError, match=rf"no {name}\(\): it belongs to the client"):
        getattr(ns, name)
    assert not hasattr(ns, name) and name not in dir(ns)
    with pytest.raises(AttributeError, match="'Namespace' object has no attribute 'nothing'"):
        _ = ns.nothing
    client.close()


@pytest.mark.gen_test
async def test_a_repr_tells_what_is_known():
    async with Gated() as server, Client([server.address]) as client:
        ns = client.namespace(NAME, generation_age=0)
        assert repr(ns) == "<Namespace 'user:42' generation not known>"
        waiting = ns.get("k"), ns.get("k")
        assert repr(ns) == "<Namespace 'user:42' asked for 2 calls>"
        await asyncio.gather(*waiting)
        assert repr(ns) == "<Namespace 'user:42' generation known since 0.0 s>"


@pytest.mark.gen_test
async def test_thousands_of_namespaces_leave_nothing_behind(monkeypatch):
    monkeypatch.setattr(module, "SPACES_KEPT", 5)
    async with Gated() as server, Client([server.address]) as client:
        held = client.namespace("held")
        await held.set("k", 1)
        spaces = [weakref.ref(client.namespace(f"n{n}")._space) for n in range(20)]
        await client.namespace("n19").get("k")
        gc.collect()
        assert [space() is not None for space in spaces] == [False] * 15 + [True] * 5
        # One that somebody holds is the same for whoever asks for its name.
        await client.namespace("held").invalidate()
        assert await held.get("k") is None
        keys = [f"k{n}" for n in range(1000)]
        await held.get_multi(keys)
        assert len(held._space._view._wires) <= module.KEYS_KEPT


# -- bad input


@pytest.mark.gen_test
@pytest.mark.parametrize("style", STYLES)
@pytest.mark.parametrize(
    "name, given, kind",
    [
        ("get", ("",), InvalidKey),
        ("get", ("a b",), InvalidKey),
        ("get", (None,), TypeError),
        ("get", ("k", len), TypeError),
        ("get", ((1, 2, 3),), InvalidRequest),
        ("get", ("x" * 230,), InvalidKey),
        ("get_multi", ("abc",), TypeError),
        ("get_multi", (["a", ""],), InvalidKey),
        ("get_multi", ([b"a", bytearray(b"b")],), TypeError),
        ("set", ("k", object()), NotSerializable),
        ("set", ("k", b"x" * (1 << 21)), ValueTooLarge),
        ("set", ("k", 1, "60"), TypeError),
        ("set_multi", (["k"],), TypeError),
        ("set_multi", ({"k": 1, "l": object()},), NotSerializable),
        ("delete_multi", ([None],), TypeError),
        ("cas", ("k", 1, -1), InvalidRequest),
        ("incr", ("k", 1.5), TypeError),
        ("touch", ("k", float("nan")), TypeError),
    ],
)
async def test_bad_input_raises_at_the_call_and_nothing_is_sent(name, given, kind, style, silent):
    how = {"callback": print, "fail_callback": print} if style == "callback" else {}
    async with Client([silent.address]) as client:
        ns = client.namespace(NAME)
        with pytest.raises(kind):
            getattr(ns, name)(*given, **how)
        assert await silent.untouched()


@pytest.mark.gen_test
@pytest.mark.parametrize(
    "how, kind",
    [
        ({"timeout": 0}, InvalidRequest),
        ({"timeout": "1"}, TypeError),
        ({"callback": 1}, TypeError),
        ({"fail_callback": 1}, TypeError),
        ({"noreplay": True}, TypeError),
    ],
)
async def test_bad_keywords_raise_at_the_call_and_nothing_is_sent(how, kind, silent):
    async with Client([silent.address]) as client:
        ns = client.namespace(NAME)
        for call in (ns.get, ns.delete, lambda key, **how: ns.invalidate(**how)):
            with pytest.raises(kind):
                call("k", **how)
        assert await silent.untouched()


def test_a_call_needs_a_running_loop():
    client = Client(["127.0.0.1"])
    ns = client.namespace("n")
    for call in (lambda: ns.get("k"), lambda: ns.invalidate(), lambda: ns.get_multi([])):
        with pytest.raises(RuntimeError, match="needs a running event loop"):
            call()
    client.close()


# -- boundaries, contexts, cancelling

WHO = contextvars.ContextVar("WHO", default="nobody")


@pytest.mark.gen_test
async def test_a_callback_runs_in_the_context_of_its_caller(age, memcached):
    async with Client([memcached.address]) as client:
        ns = client.namespace(NAME, generation_age=age)
        await ns.get("k")
        seen: list[tuple[int, str]] = []

        def call(number: int) -> None:
            WHO.set(f"caller {number}")
            ns.get("k", callback=lambda _: seen.append((number, WHO.get())))

        for number in range(3):
            contextvars.copy_context().run(call, number)
        await until(lambda: len(seen) == 3)
        assert sorted(seen) == [(n, f"caller {n}") for n in range(3)]


@pytest.mark.gen_test
async def test_failures_go_to_the_boundary_of_their_caller(troubles):
    async with Gated() as server, Client([server.address]) as client:
        ns = client.namespace(NAME, generation_age=0)
        server.hold("reply", KEY)
        ours: list[Any] = []
        others: list[Any] = []
        with boundary(ours.append, timeout=0.1):
            ns.get("k", callback=print)
            ns.set("k", 1)
        with boundary(others.append, once=True) as entry:
            ns.get("k", callback=print)
            ns.get("k", callback=print)
        await until(lambda: len(ours) == 2)
        assert [type(error) for error in ours] == [Timeout, Timeout]
        entry.cancel()
        assert entry.cancelled == 2
        with entry.boundary, pytest.raises(asyncio.CancelledError):
            assert not others
            raise asyncio.CancelledError
        server.release()
    assert not others


@pytest.mark.gen_test
@pytest.mark.parametrize(
    "name, given",
    [
        ("set", ("k", 1)),
        ("get_multi", (["a", "b"],)),
        ("get_or_set", ("k", lambda: asyncio.sleep(0, 1), 60)),
        ("invalidate", ("k",)),
    ],
)
async def test_a_call_that_is_cancelled_at_any_step_leaves_nothing_behind(name, given):
    @asynccontextmanager
    async def begin() -> AsyncIterator[Any]:
        async with Gated() as server, Client([server.address]) as client:
            ns = client.namespace(NAME)

            async def run() -> None:
                await getattr(ns, name)(*given)
                await ns.invalidate()
                await getattr(ns, name)(*given)

            task = asyncio.ensure_future(run())
            task.step = turn  # type: ignore[attr-defined]
            yield task
            await asyncio.gather(task, return_exceptions=True)
            assert await ns.set("k", b"well") and await ns.get("k") == b"well"
            await until(lambda: not len(client._deadlines))

    assert await cancel_at_every_step(begin) >= 6


# -- what is gone stays gone


@pytest.mark.gen_test
@pytest.mark.parametrize("loss", ["deleted", "flushed", "restarted"])
async def test_a_generation_that_is_lost_brings_no_older_one_back(loss, memcached, troubles):
    async with Client([memcached.address]) as client:
        ns = client.namespace(NAME, generation_age=0)
        seen: set[bytes] = set()
        for _ in range(3):
            assert await ns.get("k") is None
            assert await ns.set("k", b"x") and await ns.get("k") == b"x"
            word = client.namespace(NAME)._space.generation.known(1000)
            assert word not in seen
            seen.add(word)
            if loss == "deleted":
                assert await client.delete(KEY)
            elif loss == "flushed":
                assert await client.flush_all()
            else:
                memcached.restart()
                await until(lambda: not client._pools[0].counts()["open"])


@pytest.mark.gen_test
async def test_an_invalidation_that_failed_is_asked_after(troubles):
    async with Gated() as server, Client([server.address]) as client:
        ns = client.namespace(NAME, generation_age=1000)
        await ns.set("k", b"old")
        server.hold("reply", KEY)
        failing = Asked("awaited", ns.invalidate)
        await until(lambda: server.held)
        server.reset()
        assert (await failing.outcome()).maybe_applied
        assert await ns.get("k") is None  # (it had been applied)


class History:
    """What callers of one namespace saw, with moments."""

    def __init__(self) -> None:
        self.written: dict[int, float] = {}  # the number that was set: when that had returned
        self.over: list[tuple[float, float, int]] = []  # invalidated: begun, returned, by whom
        self.hits = 0

    def check(self, found: Any, begun: float, who: int, age: float) -> None:
        if found is None or found not in self.written:
            return  # (its set has not returned)
        self.hits += 1
        for begins, returned, whose in self.over:
            late = 0.0 if whose == who else age
            assert not (self.written[found] < begins and returned + late < begun), (
                f"{found} was written by {self.written[found]:.6f}, invalidated from {begins:.6f} "
                f"to {returned:.6f} by {whose}, and seen by {who}, who asked at {begun:.6f}"
            )


@pytest.mark.gen_test(timeout=60)
@pytest.mark.parametrize("age", [0.0, 0.05, 1000.0])
@pytest.mark.parametrize("seed", range(3))
async def test_nothing_old_is_seen_by_concurrent_callers_once_it_is_invalid(age, seed, memcached):
    rng, history, numbers = random.Random(seed), History(), iter(range(1, 1 << 30))
    clients = [Client([memcached.address], max_connections=rng.randint(1, 3)) for _ in range(3)]
    spaces = [client.namespace(NAME, generation_age=age) for client in clients]
    clock = time.monotonic

    async def call(who: int) -> None:
        ns = spaces[who]
        for _ in range(120):
            key, chance, begun = f"k{rng.randrange(4)}", rng.random(), clock()
            if chance < 0.35:
                number = next(numbers)
                if await ns.set(key, number):
                    history.written[number] = clock()
            elif chance < 0.90:
                history.check(await ns.get(key), begun, who, age)
            elif chance < 0.94:
                for number in (await ns.get_multi(["k0", "k1", "k2"])).values():
                    history.check(number, begun, who, age)
            elif chance < 0.98:
                await ns.invalidate()
                history.over = history.over[-200:]
                history.over.append((begun, clock(), who))
            elif chance < 0.985:
                await clients[who].delete(KEY)
            else:
                await asyncio.sleep(rng.random() / 200)

    await asyncio.gather(*[call(who) for who in range(3) for _ in range(5)])
    assert history.hits and len(history.over) > 20
    for client in clients:
        client.close()


@pytest.mark.gen_test(timeout=60)
async def test_nothing_old_is_seen_while_the_server_dies_again_and_again(start_memcached, troubles):
    server, history, numbers = start_memcached(), History(), iter(range(1, 1 << 30))
    clients = [Client([server.address], request_timeout=0.5, dead_retry=0.1) for _ in range(2)]
    spaces = [client.namespace(NAME, generation_age=0) for client in clients]
    rng, clock, over = random.Random(7), time.monotonic, False
    failures = 0

    async def call(who: int) -> None:
        nonlocal failures
        ns = spaces[who]
        while not over:
            key, chance, begun = f"k{rng.randrange(4)}", rng.random(), clock()
            try:
                if chance < 0.4:
                    number = next(numbers)
                    await ns.set(key, number)
                    history.written[number] = clock()
                elif chance < 0.95:
                    history.check(await ns.get(key), begun, who, 0)
                else:
                    await ns.invalidate()
                    history.over.append((begun, clock(), who))
            except MemcacheError:
                failures += 1
                await asyncio.sleep(0.005)

    tasks = [asyncio.ensure_future(call(who)) for who in (0, 1) for _ in range(4)]
    for _ in range(3):
        before = len(history.over)
        await until(lambda before=before: len(history.over) > before + 5)
        server.kill()
        await asyncio.get_running_loop().run_in_executor(None, server.restart)
        for client in clients:
            client.retry_dead_servers()
    over = True
    await asyncio.gather(*tasks)
    assert failures and history.hits > 20
    for client in clients:
        client.close()
