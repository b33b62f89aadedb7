"""tornado_memcache.client: its loop, its end, and callbacks that fail."""

from __future__ import annotations

import asyncio
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
)

from .networks import closed_port
from .scripted import Expect, Scripted, Send

LOG = "tornado_memcache"


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
