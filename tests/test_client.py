"""tornado_memcache.client: its loop, its end, and what of a tick leaves together."""

from __future__ import annotations

import asyncio
import contextvars
import threading
import time
from functools import partial
from typing import Any

import pytest
from tornado.ioloop import IOLoop
from tornado.testing import bind_unused_port

from tornado_memcache import (
    Client,
    ClientClosed,
    ConnectionFailed,
    InvalidRequest,
    Request,
    SerializationError,
    ServerError,
    TooManyCalls,
)
from tornado_memcache.server import FrontDoor, StoreHandler
from tornado_memcache.store import Store
from tornado_memcache.text import KEYS_A_LINE, LINE_BYTES

from .networks import closed_port
from .scripted import Expect, Scripted, Send

LOG = "tornado_memcache"


class Recording:
    """A server that keeps every request it has received, one for each line."""

    def __init__(self) -> None:
        self.lines: list[Request] = []
        self._handler = StoreHandler(Store(lambda: 1e9))
        self._door = FrontDoor(self._answer, too_large=lambda *_: False)

    def _answer(self, request: Request) -> Any:
        self.lines.append(request)
        return self._handler(request)

    @property
    def connections(self) -> int:
        return self._door.accepted

    def take(self) -> list[tuple[bytes, ...]]:
        """Returns the lines since the last time, each as (verb, keys...)."""
        lines, self.lines = self.lines, []
        return [(line.verb, *line.keys) for line in lines]

    async def __aenter__(self) -> Recording:
        listening, port = bind_unused_port()
        self.address = f"127.0.0.1:{port}"
        contextvars.Context().run(self._door.add_socket, listening)
        return self

    async def __aexit__(self, *_: object) -> None:
        await self._door.close()


# -- the loop


def test_a_client_that_was_made_before_any_loop_serves_one_loop_after_another(memcached, ledger):
    # Whoever closes a loop under a client leaves it with open sockets.
    ledger.excuse("handler")
    client = Client([memcached.address])
    assert repr(client) == f"<Client {memcached.address} not connected>"
    settles(1, memcached)  # (others' connections take a moment to go)

    async def main(number):
        assert await client.get("k") == (number - 1 if number else None)
        assert await client.set("k", number) is True
        assert await client.get("k") == number
        settles(2, memcached)

    for number in range(3):
        asyncio.run(main(number))
    client.close()
    settles(1, memcached)


def settles(count, server):
    """Waits until ``server`` has so many connections, with the one that asks."""
    for _ in range(500):  # memcached takes its time to notice
        if int(server.stats()["curr_connections"]) == count:
            return
        time.sleep(0.01)
    pytest.fail(f"there are not {count} connections")


def test_calls_that_are_lost_with_their_loop_are_logged(silent, ledger, expect_log):
    ledger.excuse("handler", "timer")
    expect_log(LOG, "3 memcache calls were lost with their event loop", times=1)
    client = Client([silent.address])

    async def leave():
        for _ in range(3):
            client.get("k")
        await asyncio.sleep(0.02)

    asyncio.run(leave())
    client.close()
    assert repr(client).endswith("closed>")


def test_closing_in_one_loop_and_using_in_another(memcached):
    client = Client([memcached.address])

    async def use():
        await client.set("k", 1)
        client.close()

    async def use_again():
        with pytest.raises(ClientClosed, match="get 'k': the client is closed"):
            await client.get("k")

    asyncio.run(use())
    asyncio.run(use_again())


def test_closing_while_the_loop_stands_still_tells_every_callback_that_can_be_run(expect_log):
    """A coroutine callback has no loop to run on: it is named in the log."""
    expect_log("tornado.application", "coroutine callback .*too_late was not run", times=2)
    told: list[object] = []

    async def too_late(error):
        told.append(error)

    async def begin(server):
        client = Client([server])
        await asyncio.sleep(0)
        for key in "ab":
            client.get(key, fail_callback=told.append)
            client.get(key, fail_callback=too_late)
            client.set(key, b"v", fail_callback=told.append)
        return client

    listener, port = bind_unused_port()
    loop = asyncio.new_event_loop()
    try:
        loop.run_until_complete(begin(f"127.0.0.1:{port}")).close()
        assert [type(error) for error in told] == [ClientClosed] * 4
        loop.run_until_complete(asyncio.sleep(0))
    finally:
        loop.close()
        listener.close()


@pytest.mark.gen_test
async def test_a_second_loop_while_the_first_lives(memcached):
    def other_loop(client):
        async def call():
            with pytest.raises(RuntimeError, match="another event loop"):
                client.get("k")
            with pytest.raises(RuntimeError, match="another event loop"):
                client.get_multi(["k"])
            with pytest.raises(RuntimeError, match="another event loop"):
                client.version(callback=pytest.fail)

        asyncio.run(call())

    async with Client([memcached.address]) as client:
        await client.set("k", 1)
        await asyncio.get_running_loop().run_in_executor(None, other_loop, client)
        assert await client.get("k") == 1


def test_a_call_without_a_running_loop(memcached):
    client = Client([memcached.address])
    for call in (
        lambda: client.get("k"),
        lambda: client.set("k", 1, callback=print),
        lambda: client.get_multi([]),
        lambda: client.version(),
    ):
        with pytest.raises(RuntimeError, match="running event loop"):
            call()
    client.close()


@pytest.mark.gen_test
async def test_it_works_from_a_callback_of_the_io_loop(memcached):
    async with Client([memcached.address]) as client:
        outcome = asyncio.get_running_loop().create_future()
        IOLoop.current().add_callback(partial(client.set, "k", 1, callback=outcome.set_result))
        assert await outcome is True


# -- the end


@pytest.mark.gen_test
async def test_async_with_gives_the_client_and_closes_it(memcached):
    client = Client([memcached.address])
    async with client as same:
        assert same is client
        await client.set("k", 1)
        assert client._pools[0].counts()["open"] == 1
    assert client._pools[0].counts()["open"] == 0
    with pytest.raises(ZeroDivisionError):
        async with Client([memcached.address]) as failing:
            await failing.get("k")
            raise ZeroDivisionError
    assert failing._pools[0].counts()["open"] == 0


@pytest.mark.parametrize("used", [False, True])
@pytest.mark.gen_test
async def test_use_after_close_is_an_outcome_on_a_later_tick(memcached, used):
    client = Client([memcached.address])
    if used:
        await client.set("k", 1)
    client.close()
    client.close()
    calls = [
        client.get("k"),
        client.get("k", 5, timeout=3),
        client.gets("k"),
        client.set("k", 1),
        client.set("k", 1, noreply=True),
        client.incr("k"),
        client.get_multi(["k"]),
        client.flush_all(),
        client.request(Request(b"get", (b"k",))),
    ]
    failures: list[Any] = []
    assert client.get("k", callback=pytest.fail, fail_callback=failures.append) is None
    assert failures == [] and not any(call.done() for call in calls)
    for call in calls:
        with pytest.raises(ClientClosed):
            await call
    assert [type(failure) for failure in failures] == [ClientClosed]
    failed = await client.set_multi({"k": 1})
    assert failed == ["k"] and type(failed.errors[memcached.address]) is ClientClosed
    with pytest.raises(InvalidRequest):
        client.get("")


@pytest.mark.gen_test
async def test_close_in_mid_flight(memcached, silent):
    client = Client([silent.address])
    failures: list[Any] = []
    calls = [client.get("a"), client.set("a", 1), client.get_multi(["b", "c"])]
    while b"get b c" not in silent.received:
        await asyncio.sleep(0.005)
    calls += [client.get("unsent"), client.set("b", 2, noreply=True)]
    client.get("c", callback=pytest.fail, fail_callback=failures.append)
    client.close()
    for call in calls:
        with pytest.raises(ClientClosed):
            await call
    assert [type(failure) for failure in failures] == [ClientClosed]
    assert silent.received.count(b"\r\n") == 3 + 1  # (what was called in that tick never left)
    client.close()


@pytest.mark.gen_test
async def test_close_while_connecting_and_before_the_first_tick(memcached):
    for pause in (None, 0):
        client = Client([memcached.address])
        call = client.set("k", 1)
        if pause is not None:
            await asyncio.sleep(pause)
        client.close()
        with pytest.raises(ClientClosed):
            await call
    async with Client([memcached.address]) as client:
        assert await client.get("k") is None


@pytest.mark.gen_test
async def test_closing_from_a_callback(memcached):
    client = Client([memcached.address])
    await client.set("k", 1)
    others = []
    client.get("k", callback=lambda _: (others.append(client.get("k")), client.close()))
    behind = client.get("k2")
    with pytest.raises(ClientClosed):
        while True:
            await asyncio.sleep(0)
            if others:
                await others[0]
    await asyncio.wait([behind])
    assert behind.exception() is None or isinstance(behind.exception(), ClientClosed)


# -- what it shows


@pytest.mark.gen_test
async def test_repr(memcached):
    client = Client([memcached.address, "unix:/nowhere"], key_prefix="secret")
    assert repr(client) == f"<Client {memcached.address} unix:/nowhere not connected>"
    await client.set((0, "k"), "value")
    assert memcached.address in repr(client) and "unix:/nowhere" in repr(client)
    assert "idle" in repr(client)
    client.close()
    for word in ("secret", "value"):
        assert word not in repr(client)
    never_used = Client([memcached.address])
    never_used.close()
    assert repr(never_used) == f"<Client {memcached.address} closed>"


# -- gathering


async def warm(client: Client, server: Recording) -> None:
    assert await client.set("warm", 1) is True
    server.take()


@pytest.mark.gen_test
async def test_a_lone_call_on_an_idle_connection_leaves_at_once():
    async with Recording() as server, Client([server.address]) as client:
        await warm(client, server)
        for _ in range(3):
            assert await client.get("warm") == 1
            assert server.take() == [(b"get", b"warm")]


@pytest.mark.parametrize("style", ["await", "callback"])
@pytest.mark.gen_test
async def test_the_gets_of_a_tick_are_one_line(style):
    async with Recording() as server, Client([server.address]) as client:
        await warm(client, server)
        await client.set_multi({f"k{number}": number for number in range(50)})
        await asyncio.sleep(0.01)
        server.take()
        first = client.get("first")  # (it leaves at once, what follows is gathered)
        if style == "await":
            calls = [client.get(f"k{number}") for number in range(60)]
        else:
            calls = [asyncio.get_running_loop().create_future() for _ in range(60)]
            for number, outcome in enumerate(calls):
                client.get(f"k{number}", callback=outcome.set_result)
        assert await first is None
        assert await asyncio.gather(*calls) == [*range(50), *[None] * 10]
        assert server.take() == [
            (b"get", b"first"),
            (b"get", *(b"k%d" % number for number in range(60))),
        ]
        assert server.connections == 1


@pytest.mark.gen_test
async def test_the_callers_of_one_key_share_it():
    async with Recording() as server, Client([server.address]) as client:
        await warm(client, server)
        await client.set("k", "v")
        server.take()
        first = client.get("first")
        got: list[Any] = []
        client.get("k", callback=got.append)
        calls = [
            client.get("k"),
            client.get(b"k", 5),
            client.get("k", timeout=3),
            client.get("none", 5),
            client.get("none", "other"),
            client.get("none"),
        ]
        assert await asyncio.gather(*calls) == ["v", "v", "v", 5, "other", None]
        assert got == ["v"] and await first is None
        assert server.take() == [(b"get", b"first"), (b"get", b"k", b"none")]


@pytest.mark.gen_test
async def test_a_shared_key_and_one_caller_who_leaves():
    async with Recording() as server, Client([server.address]) as client:
        await warm(client, server)
        first, calls = client.get("warm"), [client.get("k", 5, timeout=2) for _ in range(3)]
        calls[0].cancel()
        calls[2].cancel()
        assert await calls[1] == 5 and await first == 1
        assert calls[0].cancelled() and calls[2].cancelled()


@pytest.mark.gen_test
async def test_a_write_closes_the_batch_only_for_its_own_key():
    async with Recording() as server, Client([server.address]) as client:
        await warm(client, server)
        first = client.get("first")
        a, b = client.get("a"), client.get("b")
        other = client.set("other", 1)
        c = client.get("c")
        await asyncio.gather(first, a, b, other, c)
        lines = server.take()
        assert sorted(lines) == [
            (b"get", b"a", b"b", b"c"),
            (b"get", b"first"),
            (b"set", b"other"),
        ]
        await asyncio.sleep(0.01)

        first = client.get("first")
        a, b = client.get("a"), client.get("b")
        write = client.set("a", "new")
        again = client.get("a")
        assert await asyncio.gather(first, a, b, write, again) == [None, None, None, True, "new"]
        assert server.take() == [
            (b"get", b"first"),
            (b"get", b"a", b"b"),
            (b"set", b"a"),
            (b"get", b"a"),
        ]


WRITES: dict[str, Any] = {
    "set": lambda client: client.set("k", "new"),
    "noreply": lambda client: client.set("k", "new", noreply=True),
    "delete": lambda client: client.delete("k"),
    "touch": lambda client: client.touch("k", -1),
    "gat": lambda client: client.gat("k", -1),
    "append": lambda client: client.append("k", "er"),
    "set_multi": lambda client: client.set_multi({"a": 1, "k": "new"}),
    "delete_multi": lambda client: client.delete_multi(["a", "k"]),
    "flush_all": lambda client: client.flush_all(),
    "request": lambda client: client.request(Request(b"set", (b"k",), b"new", 16)),
}
AFTER = {"append": "older", "set": "new", "noreply": "new", "set_multi": "new", "request": "new"}


@pytest.mark.parametrize("name", WRITES)
@pytest.mark.gen_test
async def test_a_read_is_never_older_than_an_earlier_write(name, memcached):
    async with Recording() as server:
        for address in (server.address, memcached.address):
            async with Client([address]) as client:
                for _ in range(5):
                    await client.set("k", "old")
                    first, before = client.get("first"), client.get("k")
                    write = WRITES[name](client)
                    behind, multi = client.get("k"), client.get_multi(["k", "b"])
                    assert await behind == AFTER.get(name)
                    assert (await multi).get("k") == AFTER.get(name)
                    assert await before in ("old", AFTER.get(name))
                    await write
                    await first


@pytest.mark.gen_test
async def test_a_set_of_200_kb_and_a_get_of_its_key_in_one_tick(memcached):
    async with Client([memcached.address]) as client:
        for cold in range(25):
            value = b"%06d" % cold * 34_000
            noise = [client.get(f"noise-{number}") for number in range(cold)]
            write = client.set("big", value)
            reads = [client.get("big"), client.get_multi(["x", "big"]), client.gets("big")]
            got = await asyncio.gather(*reads)
            assert (got[0], got[1], got[2][0]) == (value, {"big": value}, value)
            assert await write is True
            await asyncio.gather(*noise)
            small = client.set("big", "small")
            assert await client.get("big") == "small" and await small is True


@pytest.mark.gen_test
async def test_a_line_has_at_most_100_keys():
    assert KEYS_A_LINE == 100
    async with Recording() as server, Client([server.address]) as client:
        await warm(client, server)
        first = client.get("first")
        calls = [client.get(f"k{number}") for number in range(350)]
        assert await asyncio.gather(*calls) == [None] * 350 and await first is None
        lines = server.take()
        assert [len(line) - 1 for line in lines] == [1, 100, 100, 100, 50]
        assert [key for line in lines[1:] for key in line[1:]] == [
            b"k%d" % number for number in range(350)
        ]
        assert await client.get_multi([f"k{number}" for number in range(350)]) == {}
        assert [len(line) - 1 for line in server.take()] == [100, 100, 100, 50]


@pytest.mark.gen_test
async def test_a_line_has_at_most_8_kb():
    assert LINE_BYTES == 8192
    async with Recording() as server, Client([server.address]) as client:
        await warm(client, server)
        await client.set("7" * 250, "seven")
        server.take()
        first = client.get("first")
        keys = [f"{number:0250d}" for number in range(95)] + ["7" * 250]
        calls = [client.get(key, number) for number, key in enumerate(keys)]
        shared = client.get(keys[3])
        assert await asyncio.gather(*calls) == [*range(95), "seven"]
        assert await shared is None and await first is None
        lines = server.take()
        assert [key for line in lines[1:] for key in line[1:]] == [key.encode() for key in keys]
        assert all(len(b" ".join(line)) + 2 <= 8192 for line in lines)


@pytest.mark.gen_test
async def test_gets_and_gats_and_writes_are_lines_of_their_own():
    async with Recording() as server, Client([server.address]) as client:
        await warm(client, server)
        calls = [client.gets("a"), client.gat("a", 1), client.delete("a"), client.gets("a")]
        await asyncio.gather(*calls)
        assert server.take() == [
            (b"gets", b"a"),
            (b"gat", b"a"),
            (b"delete", b"a"),
            (b"gets", b"a"),
        ]


@pytest.mark.gen_test
async def test_duplicates_are_one_request():
    async with Recording() as server, Client([server.address]) as client:
        await warm(client, server)
        assert await client.get_multi(["a", b"a", "a", (1, "a")]) == {}
        assert server.take() == [(b"get", b"a")]
        await client.gets_multi(["a", "b", b"a"])
        assert server.take() == [(b"gets", b"a", b"b")]
        await client.delete_multi(["a", b"a", "a"])
        assert server.take() == [(b"delete", b"a")]
        await client.get_multi([])
        await client.set_multi({})
        await client.delete_multi([])
        assert server.take() == []


@pytest.mark.gen_test
async def test_what_a_real_memcached_counts(memcached):
    async with Client([memcached.address]) as client:
        await client.set("k", 1)
        before = memcached.stats()
        first = client.get("first")
        await asyncio.gather(first, *[client.get(f"k{number % 50}") for number in range(100)])
        after = memcached.stats()
        assert int(after["cmd_get"]) - int(before["cmd_get"]) == 51


@pytest.mark.gen_test
async def test_a_length_of_more_than_30_days_is_sent_as_a_moment():
    async with Recording() as server, Client([server.address]) as client:
        await client.set("k", 1, 60 * 60 * 24 * 31)
        await client.flush_all(60 * 60 * 24 * 31)
        for line in server.lines:
            assert line.exptime > 1_500_000_000, line


# -- two threads, a loop and a client each


@pytest.mark.gen_test
async def test_a_callback_at_work_in_one_thread_keeps_no_call_of_another_from_its_end(expect_log):
    expect_log(LOG, "taken for dead", times=2)
    working, over = threading.Event(), threading.Event()
    told: list[BaseException] = []

    def work(error: BaseException) -> None:
        working.set()
        over.wait(30)

    async def other(address: str) -> None:
        async with Client([address]) as client:
            client.get("k", callback=print, fail_callback=work)
            await asyncio.get_running_loop().run_in_executor(None, over.wait, 30)

    with closed_port() as (host, port):
        thread = threading.Thread(target=asyncio.run, args=(other(f"{host}:{port}"),))
        thread.start()
        try:
            await asyncio.get_running_loop().run_in_executor(None, working.wait, 30)
            async with Client([f"{host}:{port}"]) as client:
                calls = [client.get("a"), client.set("a", "1"), client.get_multi([])]
                client.get("b", callback=print, fail_callback=told.append)
                done, pending = await asyncio.wait(calls, timeout=10)
                assert not pending and [type(call.exception()) for call in calls] == [
                    ConnectionFailed,
                    ConnectionFailed,
                    type(None),
                ]
                assert [type(error) for error in told] == [ConnectionFailed]
        finally:
            over.set()
            thread.join()


# -- limits


@pytest.mark.parametrize("command", ["get", "gets", "set"])
@pytest.mark.gen_test
async def test_max_pending_holds_for_every_command(command, expect_log):
    expect_log(LOG, "max_pending")
    hello = [Expect(b"get k\r\n"), Send(b"END\r\n")]
    async with Scripted(hello) as server:
        async with Client([server.address], max_pending=10) as client:
            await client.get("k")
            arguments = ("v",) if command == "set" else ()
            calls = []
            for number in range(50):
                calls.append(getattr(client, command)(f"k{number}", *arguments))
                if not number % 5:
                    await asyncio.sleep(0.001)
            await asyncio.sleep(0.01)
            refused = [call for call in calls if call.done()]
            assert all(isinstance(call.exception(), TooManyCalls) for call in refused)
            assert len(calls) - len(refused) <= 10 + 5
            client.close()
            for call in calls:
                with pytest.raises((TooManyCalls, ClientClosed)):
                    await call


@pytest.mark.gen_test
async def test_timeouts_beyond_all_measure(memcached):
    for length in (1e9, 1e17, 1e300):
        async with Client([memcached.address], request_timeout=length, dead_retry=length) as client:
            assert await client.set("k", 1) is True
            assert await client.get("k", timeout=length * 2) == 1


# -- callbacks that fail


@pytest.mark.gen_test
async def test_a_callback_that_raises_disturbs_nobody(memcached, expect_log):
    expect_log("tornado.application", "Exception in callback", times=2)

    def raises(_):
        raise ZeroDivisionError

    async def raises_later(_):
        await asyncio.sleep(0)
        raise ZeroDivisionError

    async with Client([memcached.address]) as client:
        await client.set("k", 1)
        client.get("k", callback=raises)
        client.get("k", callback=raises_later)
        assert await asyncio.gather(client.get("k"), client.gets("no")) == [1, (None, None)]
        await asyncio.sleep(0.01)
        assert client._pools[0].losses == 0


@pytest.mark.gen_test
async def test_a_failure_that_nobody_takes_is_logged_once(expect_log):
    told = r"without fail_callback or boundary failed: get 'k'.*callback is .*no_outcome\)"
    expect_log("tornado.application", told, times=1)

    def no_outcome(outcome):
        pytest.fail("it failed")

    script = [Expect(b"get k\r\n"), Send(b"SERVER_ERROR busy\r\n")]
    async with Scripted([*script, Expect(b"get k\r\n"), Send(b"SERVER_ERROR busy\r\n")]) as server:
        async with Client([server.address]) as client:
            client.get("k", callback=no_outcome)
            with pytest.raises(ServerError):
                await client.get("k")


# -- serializers of others


class Odd:
    raw_flags = None

    def __init__(self, encoded: Any = (b"", 0), decoded: Any = None) -> None:
        self.encoded, self.decoded = encoded, decoded

    def encode(self, key: bytes, value: Any) -> Any:
        return self.encoded

    def decode(self, key: bytes, data: bytes, flags: int) -> Any:
        if isinstance(self.decoded, Exception):
            raise self.decoded
        return key, data, flags


@pytest.mark.gen_test
async def test_a_serializer_of_one_s_own(memcached):
    async with Client([memcached.address], serializer=Odd((b"data", 77))) as client:
        assert await client.set("k", object()) is True
        expected = (b"k", b"data", 77)
        assert await client.get("k") == expected
        assert (await client.gets("k"))[0] == expected
        assert await client.get_multi(["k"]) == {"k": expected}


@pytest.mark.gen_test
async def test_a_serializer_that_fails_on_reading_fails_the_call_alone(memcached):
    odd = Odd((b"data", 77), ValueError("no such thing"))
    async with Client([memcached.address], serializer=odd) as client:
        await client.set("k", 1)
        first = client.get("miss")
        calls = [client.get("k"), client.gets("k"), client.gat("k", 0)]
        misses = [client.get("none"), client.get("none", 5), first]
        multi = client.get_multi(["k", "none"])
        for call in calls:
            with pytest.raises(SerializationError, match="'k'"):
                await call
        assert await asyncio.gather(*misses) == [None, 5, None]
        found = await multi
        assert found == {} and list(found.errors) == [memcached.address]
        assert client._pools[0].losses == 0
