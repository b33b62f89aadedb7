"""tornado_memcache.observed: each call is told once as it begins, and once as it ends."""

from __future__ import annotations

import asyncio
import contextvars
import gc
import weakref
from typing import Any

import pytest

from tornado_memcache import (
    Client,
    ClientClosed,
    ClientError,
    ObservedCall,
    Observer,
    Request,
    SerializationError,
    ServerDead,
    Timeout,
    boundary,
)

from .asked import EXCHANGES, NAMES, STYLES, Asked, meta_known, until
from .scripted import Close, Expect, Scripted, Send

WHO = contextvars.ContextVar("WHO", default="nobody")
#: What each command of `EXCHANGES` is told as, with the one good reply that is written there.
OUTCOMES = {
    **dict.fromkeys(["get", "gets", "gat", "gats"], "hit"),
    **dict.fromkeys(["delete", "touch", "incr", "decr", "request"], "hit"),
    **dict.fromkeys(["set", "add", "replace", "append", "prepend", "cas"], "stored"),
    **dict.fromkeys(["meta_get", "meta_delete", "meta_arithmetic", "debug"], "hit"),
    "meta_set": "stored",
}


class Told(Observer):
    """Keeps what it is told of calls."""

    def __init__(self) -> None:
        self.started: list[ObservedCall] = []
        self.finished: list[ObservedCall] = []
        self.contexts: list[str] = []

    def call_started(self, call: ObservedCall) -> Any:
        assert not call.outcome
        self.started.append(call)
        self.contexts.append(WHO.get())
        return ("begun", call)

    def call_finished(self, call: ObservedCall, begun: Any) -> None:
        assert begun == ("begun", call) and call.outcome and call.duration >= 0
        assert call in self.started and call not in self.finished
        self.finished.append(call)

    @property
    def lines(self) -> list[tuple[str, str]]:
        """What has finished, in the order in which it began."""
        return [(one.command, one.outcome) for one in self.started if one in self.finished]

    @property
    def only(self) -> ObservedCall:
        (call,) = self.finished
        assert self.started == [call]
        return call


# -- every command


@pytest.mark.usefixtures(meta_known.__name__)
@pytest.mark.parametrize("style", STYLES)
@pytest.mark.parametrize("exchange", EXCHANGES, ids=NAMES)
@pytest.mark.gen_test
async def test_each_command_is_told_once_with_its_server_its_outcome_and_its_sizes(exchange, style):
    script = [Expect(exchange.request), Send(exchange.reply)]
    async with Scripted(script) as server:
        told = Told()
        async with Client([server.address], observer=told) as client:
            call = Asked(style, lambda **how: exchange.call(client, **how))
            assert [one.outcome for one in told.started] == [""]
            await call.outcome()
            await until(lambda: told.finished)
            one = told.only
            command = "touch" if exchange.name == "request" else exchange.name.split()[0]
            assert (one.command, one.server) == (command, server.address)
            assert (
                one.outcome == OUTCOMES.get(exchange.name.split()[0], "done") and one.error is None
            )
            assert one.sent == (5 if b"value\r\n" in exchange.request else 0)
            assert one.received == (5 if b"\nvalue\r" in exchange.reply else one.received)
            keys = exchange.request.split()
            assert all(key in keys for key in one.keys)
            if exchange.name.startswith(("get", "gat")):
                assert (one.hits, one.misses) == (1, int("_multi" in exchange.name))


@pytest.mark.gen_test
async def test_what_is_not_there_is_a_miss_and_what_is_not_stored_says_so(memcached):
    told = Told()
    async with Client([memcached.address], observer=told) as client:
        assert await client.get("k", default=7) == 7
        assert await client.gets("k") == (None, None)
        assert await client.gat("k", 60, default=8) == 8
        assert (await client.incr("k"), await client.delete("k")) == (None, False)
        assert (await client.touch("k", 60), await client.replace("k", 1)) == (False, False)
        assert await client.cas("k", 1, 5) is None
        await client.set("k", 1)
        assert (await client.add("k", 1), await client.cas("k", 1, 1 << 60)) == (False, False)
        await client.set("k", 2, noreply=True)
        assert await client.get("k") == 2
    assert told.lines == [
        ("get", "miss"),
        ("gets", "miss"),
        ("gat", "miss"),
        ("incr", "miss"),
        ("delete", "miss"),
        ("touch", "miss"),
        ("replace", "not_stored"),
        ("cas", "miss"),
        ("set", "stored"),
        ("add", "not_stored"),
        ("cas", "exists"),
        ("set", "sent"),
        ("get", "hit"),
    ]
    assert [one.misses for one in told.finished[:6]] == [1] * 6


@pytest.mark.gen_test
async def test_gathered_gets_are_told_one_by_one_and_still_leave_as_one_line():
    items = b"VALUE a 0 3\r\nabc\r\nVALUE c 16 1\r\nx\r\n"
    asked, answered = b"version\r\n", b"VERSION 1\r\n"
    script = [Expect(asked), Expect(b"get a b c\r\n"), Send(answered + items + b"END\r\n")]
    found: list[Any] = []
    async with Scripted([Expect(asked), Send(answered), *script]) as server:
        told = Told()
        async with Client([server.address], observer=told) as client:
            await client.version()
            client.version()  # (behind it the gets of the tick are gathered)
            client.get("a", callback=found.append)
            calls = [client.get("b", default=5), client.get("a"), client.get("c", timeout=30)]
            assert await asyncio.gather(*calls) == [5, b"abc", "x"]
        assert found == [b"abc"] and server.received[0].endswith(b"get a b c\r\n")
        assert told.lines[2:] == [("get", "hit"), ("get", "miss"), ("get", "hit"), ("get", "hit")]
        assert [(one.keys, one.received) for one in told.started[2:]] == [
            ((b"a",), 3),
            ((b"b",), 0),
            ((b"a",), 3),
            ((b"c",), 1),
        ]


@pytest.mark.gen_test
async def test_a_call_over_several_servers_is_one_with_its_hits_misses_and_failed_servers(
    start_memcached, troubles
):
    a, b = start_memcached(), start_memcached()
    told, keys = Told(), [f"k{number}" for number in range(40)]
    async with Client([a.address, b.address], observer=told, key_prefix="p:") as client:
        assert await client.set_multi(dict.fromkeys(keys, "four")) == []
        stored = told.only
        assert (stored.command, stored.server, stored.sent) == ("set_multi", "", 160)
        assert sorted(stored.keys) == sorted(f"p:{key}".encode() for key in keys)
        await client.get_multi([*keys[:10], "other"])
        found = told.finished[1]
        assert (found.outcome, found.hits, found.misses) == ("done", 10, 1)
        assert found.received == 40
        b.kill()
        failed = await client.delete_multi(keys)
        deleted = told.finished[2]
        assert deleted.outcome == "partial" and deleted.error is None
        assert set(deleted.errors) == {b.address} == set(failed.errors)
        assert deleted.hits == len(keys) - len(failed)
        a.kill()
        with pytest.raises(Exception) as raised:
            await client.get_multi(keys)
        assert told.finished[3].error is raised.value and told.finished[3].outcome != "done"
        assert set(told.finished[3].errors) == {a.address, b.address}


@pytest.mark.gen_test
async def test_many_requests_at_once_are_one_call(memcached):
    told = Told()
    async with Client([memcached.address], observer=told) as client:
        await client.request_many([Request(b"set", (b"k",), b"abc"), Request(b"get", (b"k", b"j"))])
    one = told.only
    assert (one.command, one.server, one.outcome) == ("request_many", memcached.address, "done")
    assert (one.hits, one.misses, one.sent, one.received) == (1, 1, 3, 3)
    assert list(one.keys) == [b"k", b"k", b"j"]


@pytest.mark.gen_test
async def test_a_call_that_asks_an_old_cluster_too_is_told_once(start_memcached):
    new, old = start_memcached(), start_memcached()
    told, told_old = Told(), Told()
    old.ask(b"set k 0 0 3\r\nabc\r\n")
    async with Client([old.address], observer=told_old) as before:
        async with Client([new.address], migrate_from=before, observer=told) as client:
            assert await client.get("k") == b"abc"
            assert await client.set("k", b"de") is True
            assert (await client.get_multi(["k", "j"])) == {"k": b"de"}
            assert await client.get("none", default=1) == 1
    lines = [("get", "hit"), ("set", "stored"), ("get_multi", "done"), ("get", "miss")]
    assert told.lines == lines and told_old.started == []
    assert {one.server for one in told.finished} == {new.address}
    assert [one.received for one in told.finished] == [3, 0, 2, 0]


@pytest.mark.gen_test
async def test_what_needs_no_server_and_what_is_refused_at_the_call_are_no_calls(memcached):
    told = Told()
    async with Client([memcached.address], observer=told) as client:
        assert await client.get_multi([]) == {}
        for wrong in (
            lambda: client.get("a key"),
            lambda: client.get("k", timeout=-1),
            lambda: client.get("k", callback=1),
            lambda: client.get("k", default=lambda: 1),
            lambda: client.set("k", object()),
            lambda: client.set_multi({"k": 1}, timeout="1"),
            lambda: client.delete("k", nonsense=1),
        ):
            with pytest.raises((ValueError, TypeError)):
                wrong()
        await client.get("k")
    assert told.lines == [("get", "miss")] and len(told.started) == 1


@pytest.mark.gen_test
async def test_of_a_value_that_is_computed_the_requests_are_told_and_the_first_is_a_miss(memcached):
    told = Told()
    async with Client([memcached.address], observer=told) as client:
        for _ in range(2):
            assert await client.get_or_set("k", lambda: b"five", 60) == b"five"
    lines = [("meta_get", "miss"), ("meta_set", "stored"), ("meta_get", "hit")]
    assert told.lines == lines and [one.received for one in told.finished] == [0, 0, 4]


# -- how a call can end


@pytest.mark.parametrize("style", STYLES)
@pytest.mark.parametrize("method", ["get", "delete", "get_multi"])
@pytest.mark.gen_test
async def test_a_call_that_times_out_says_so(silent, method, style, troubles):
    told = Told()
    async with Client([silent.address], observer=told) as client:
        argument = ["k"] if method == "get_multi" else "k"
        call = Asked(style, getattr(client, method), argument, timeout=0.05)
        outcome = await call.outcome()
        await until(lambda: told.finished)
        if method == "get_multi":  # (what came by its own deadline is its outcome)
            assert isinstance(told.only.errors[silent.address], Timeout)
        assert told.only.outcome in ("timeout", "partial") and told.only.duration >= 0.04
        if isinstance(outcome, Timeout):
            assert told.only.error is outcome and told.only.outcome == "timeout"


@pytest.mark.parametrize("style", STYLES)
@pytest.mark.gen_test
async def test_a_value_that_cannot_be_read_and_an_error_line_are_failures(memcached, style):
    memcached.ask(b"set bad 1 0 3\r\nabc\r\n")
    memcached.ask(b"set text 0 0 3\r\nabc\r\n")
    told = Told()
    async with Client([memcached.address], observer=told) as client:
        await client.get("warm")
        assert isinstance(await Asked(style, client.get, "bad").outcome(), SerializationError)
        await Asked(style, client.gets, "bad").failure(SerializationError)
        await Asked(style, client.incr, "text").outcome()
    assert [one.outcome for one in told.finished[1:]] == [
        "serialization_error",
        "serialization_error",
        "client_error",
    ]


@pytest.mark.gen_test
async def test_a_cancelled_call_has_finished(silent):
    told = Told()
    async with Client([silent.address], observer=told) as client:
        calls = [client.get("a"), client.set("b", 1), client.get_multi(["c"])]
        for call in calls:
            call.cancel()
        with boundary(told.finished.append) as b:
            client.get("d", callback=told.finished.append)
            client.incr("e")
            b.cancel()
            client.get("f", callback=told.finished.append)  # (what begins after the end)
        await until(lambda: len(told.finished) == 6)
    assert [one.outcome for one in told.started] == ["cancelled"] * 6


@pytest.mark.gen_test
async def test_a_budget_that_is_spent_is_a_timeout(silent):
    told, failures = Told(), []
    async with Client([silent.address], observer=told) as client:
        with boundary(failures.append, timeout=1e-9):
            client.get("k")
            client.set("k", 1)
        await until(lambda: len(failures) == 2)
    assert told.lines == [("get", "timeout"), ("set", "timeout")]


@pytest.mark.gen_test
async def test_calls_under_way_when_the_client_is_closed_have_finished(silent):
    told = Told()
    client = Client([silent.address], observer=told)
    calls = [client.get("a"), client.get_multi(["b"]), client.set("c", 1)]
    await asyncio.sleep(0)
    client.close()
    assert {type(one) for one in await asyncio.gather(*calls, return_exceptions=True)} == {
        ClientClosed
    }
    assert {one.outcome for one in told.finished} == {"client_closed"} and len(told.finished) == 3


@pytest.mark.gen_test
async def test_refused_calls_of_a_dead_server_say_so_and_its_misses_are_misses(
    start_memcached, troubles
):
    server, told = start_memcached(), Told()
    server.kill()
    for on_dead in ("fail", "miss"):
        async with Client([server.address], observer=told, on_dead=on_dead) as client:
            await Asked("awaited", client.get, "k").outcome()
            await Asked("awaited", client.get, "k").outcome()
    assert [one.outcome for one in told.finished] == [
        "connection_failed",
        "server_dead",
        "connection_failed",
        "miss",
    ]
    assert isinstance(told.finished[1].error, ServerDead)


@pytest.mark.gen_test
async def test_a_read_that_is_asked_again_is_one_call():
    lost = [Expect(b"get k\r\n"), Close()]
    good = [Expect(b"get k\r\n"), Send(b"VALUE k 0 1\r\nx\r\nEND\r\n")]
    told = Told()
    async with Scripted(lost, good) as server:
        async with Client([server.address], observer=told) as client:
            assert await client.get("k") == b"x"
        assert server.connections == 2
    assert told.lines == [("get", "hit")]


def test_calls_that_were_lost_with_their_loop_have_finished(silent, ledger, expect_log):
    ledger.excuse("handler", "timer")
    expect_log("tornado_memcache", "^2 memcache calls were lost with their event loop", times=1)
    told = Told()
    client = Client([silent.address], observer=told)

    async def left() -> None:
        told.kept = [client.get("a"), client.set("b", 1)]  # type: ignore[attr-defined]
        await asyncio.sleep(0)

    asyncio.run(left())
    assert told.finished == []
    client.close()
    assert sorted(told.lines) == [("get", "lost"), ("set", "lost")]


@pytest.mark.gen_test
async def test_the_begin_is_told_in_the_context_of_the_caller(memcached):
    told, found = Told(), []
    async with Client([memcached.address], observer=told) as client:
        WHO.set("alice")
        await client.get("a")

        def within(value: Any) -> None:
            client.get("b", callback=found.append)

        client.get("a", callback=within)
        WHO.set("bob")
        await until(lambda: found)
    assert told.contexts == ["alice"] * 3


@pytest.mark.gen_test
async def test_an_observer_that_closes_the_client_leaves_each_call_its_one_outcome(memcached):
    class Closes(Observer):
        client: Client

        def call_started(self, call: ObservedCall) -> None:
            if call.keys[0] == b"started":
                self.client.close()

        def call_finished(self, call: ObservedCall, begun: Any) -> None:
            if call.keys[0] == b"finished":
                self.client.close()

    for key in ("started", "finished"):
        for style in STYLES:
            observer = Closes()
            client = observer.client = Client([memcached.address], observer=observer)
            await client.get("warm")
            calls = [Asked(style, client.get, one) for one in ("x", key, "y")]
            for call in calls:
                await call.outcome()
            await asyncio.sleep(0.01)
            assert [len(call.outcomes) for call in calls] == [1, 1, 1]
            client.close()


@pytest.mark.parametrize("style", STYLES)
@pytest.mark.parametrize("fails", [False, True])
@pytest.mark.gen_test
async def test_an_observer_that_ends_the_boundary_of_a_call_gives_it_no_second_outcome(
    memcached, style, fails, expect_log
):
    expect_log("tornado_memcache", "fails", times=range(2))

    class Cancels(Observer):
        def call_finished(self, call: ObservedCall, begun: Any) -> None:
            entry.cancel()

    memcached.ask(b"set text 0 0 3\r\nabc\r\n")
    async with Client([memcached.address], observer=Cancels()) as client:
        with boundary(lambda error: None) as entry:
            call = Asked(style, client.incr if fails else client.get, "text")
        await call.outcome()
        await asyncio.sleep(0.01)
        assert call.only == b"abc" or isinstance(call.only, ClientError)
        assert entry.cancelled == 0


@pytest.mark.gen_test
async def test_an_outcome_does_not_keep_its_client_alive(memcached, ledger):
    ledger.excuse("fd", "handler", "client")  # (nobody can close it any more)
    client = Client([memcached.address], observer=Observer())
    kept = [client.get("k"), client.gets("k"), client.get_multi(["k"])]
    await asyncio.gather(*kept)
    pool, gone = client._pools[0], weakref.ref(client)
    del client
    gc.collect()
    assert gone() is None
    pool.close()


@pytest.mark.gen_test
async def test_large_values_and_many_callers_come_to_each_as_without_an_observer(memcached):
    told, large = Told(), b"x" * 300_000
    async with Client([memcached.address], observer=told) as client:
        values = {f"k{number}": b"%d" % number for number in range(300)}
        await client.set_multi({**values, "large": large})
        names = [*values, "large"] * 2
        found = await asyncio.gather(*[client.get(name) for name in names])
        assert found == [{**values, "large": large}[name] for name in names]
        assert client._observers is not None and not client._observers._under_way
    assert sum(one.received for one in told.finished) == 2 * (
        len(large) + sum(map(len, values.values()))
    )
    assert len(told.finished) == len(told.started) == 1 + len(names)
