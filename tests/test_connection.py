"""One stream to one server: what is under way on it, when it is late, what it leaves."""

from __future__ import annotations

import asyncio
import os
import select
import time

import pytest

from tornado_memcache import (
    Client,
    ConnectionFailed,
    ServerDead,
    ServerError,
    Timeout,
    deadlines,
)
from tornado_memcache.connection import LONG_REST

from .asked import STYLES, Asked, until
from .faultproxy import FaultProxy
from .hand import Hand, Shifted
from .scripted import Close, Expect, Scripted, Send, Sleep

LOG = "tornado_memcache"
HIT = b"VALUE k 0 1\r\nv\r\nEND\r\n"
GET = Expect(b"get k\r\n")


def only(client: Client):
    (connection,) = client._pools[0]._connections
    return connection


@pytest.mark.gen_test
async def test_pipelined_large_gets_and_sets_do_not_stand_still(memcached):
    """Sixty of each at once: both sides write more than the sockets hold."""
    async with Client([memcached.address], max_connections=1, request_timeout=10) as client:
        values = {f"k{number}": os.urandom(1_000_000) for number in range(10)}
        assert await client.set_multi(values) == []
        calls = []
        for round_ in range(6):
            for key in values:
                calls.append(client.get(key))
                calls.append(client.set(f"{key}.{round_ % 2}", values[key]))
        outcomes = await asyncio.gather(*calls)
        assert outcomes[1::2] == [True] * 60
        assert outcomes[0::2] == [values[key] for _ in range(6) for key in values]
        assert memcached.stats()["curr_connections"]


@pytest.mark.gen_test
async def test_a_server_that_stops_reading_is_a_timeout_and_bounds_the_buffer(
    start_memcached, expect_log
):
    expect_log(LOG, "fails|dead", times=None)
    server = start_memcached()
    async with Client([server.address], max_connections=1, request_timeout=0.2) as client:
        await client.get("k")
        server.stop()
        value = b"x" * 1_000_000
        calls = [client.set(f"k{number}", value) for number in range(50)]
        outcomes = await asyncio.gather(*calls, return_exceptions=True)
        assert {type(one) for one in outcomes} == {Timeout}
        assert outcomes[-1].phase == "writing"
        assert outcomes[0].maybe_applied
        assert not outcomes[-1].maybe_applied
        server.resume()


@pytest.mark.gen_test
async def test_a_reply_before_the_end_of_a_big_set_goes_to_the_right_caller():
    early = [Expect(b"set k 0 0 9000000\r\n"), Send(b"SERVER_ERROR object too large for cache\r\n")]
    rest = [Expect(b"x" * 9_000_000 + b"\r\n"), GET, Send(HIT)]
    async with Scripted(early + rest) as server:
        async with Client([server.address], max_value_size=10_000_000) as client:
            first = client.set("k", b"x" * 9_000_000)
            second = client.get("k")
            with pytest.raises(ServerError, match="too large"):
                await first
            assert await second == b"v"


@pytest.mark.gen_test
async def test_a_fin_after_the_reply_is_delivered_and_the_connection_not_used_again():
    async with Scripted([GET, Send(HIT), Close()], [GET, Send(HIT)]) as server:
        async with Client([server.address]) as client:
            assert await client.get("k") == b"v"
            await asyncio.sleep(0.02)
            assert client._pools[0]._connections == []
            assert await client.get("k") == b"v"
            assert server.connections == 2


@pytest.mark.gen_test
async def test_a_half_reply_then_the_end_is_no_value(expect_log):
    expect_log(LOG, "fails")
    async with Scripted([GET, Send(b"VALUE k 0 100000\r\n" + b"x" * 50_000), Close()]) as server:
        async with Client([server.address]) as client:
            with pytest.raises(ConnectionFailed):
                await client.get("k")


@pytest.mark.gen_test
async def test_a_value_one_byte_at_a_time():
    steps = [step for byte in HIT for step in (Send(bytes([byte])), Sleep(0.001))]
    async with Scripted([GET, *steps, GET, Send(HIT)]) as server:
        async with Client([server.address]) as client:
            assert await client.get("k") == b"v"
            assert await client.get("k") == b"v"
            assert only(client)._protocol.clean()


@pytest.mark.gen_test
async def test_a_drip_holds_nobody_beyond_its_deadline(expect_log):
    expect_log(LOG, "fails")
    steps = [step for _ in range(200) for step in (Send(b"x"), Sleep(0.01))]
    async with Scripted([GET, Send(b"VALUE k 0 100000\r\n"), *steps]) as server:
        async with Client([server.address], request_timeout=0.1) as client:
            begun = time.monotonic()
            with pytest.raises(Timeout):
                await client.get("k")
            assert time.monotonic() - begun < 0.35


@pytest.mark.gen_test
async def test_to_catch_up_reads_what_was_owed_and_not_what_the_callbacks_ask_for(memcached):
    async with Client([memcached.address], request_timeout=10) as client:
        await client.get("k")
        told, connection = [], only(client)

        def ask(value: object = None) -> None:
            told.append(value)
            if len(told) < 20:
                client.get("k", callback=ask)
                select.select([connection._stream.socket], [], [], 5)

        ask()
        connection.catch_up()
        assert len(told) == 2, "the loop is held for as long as the callbacks go on"
        while len(told) < 20:
            await asyncio.sleep(0)


@pytest.mark.gen_test
async def test_noreply_is_true_once_written_and_never_inside_the_call(memcached):
    async with Client([memcached.address]) as client:
        await client.get("k")
        seen = []
        client.set("k", b"v", noreply=True, callback=seen.append)
        assert seen == []
        await asyncio.sleep(0.01)
        assert seen == [True]
        assert not only(client).settled
        assert await client.get("k") == b"v"
        assert only(client).settled


@pytest.mark.gen_test
async def test_gets_of_a_tick_leave_as_one_line_and_a_lone_one_at_once():
    first = [GET, Send(HIT), Expect(b"get a\r\nget b c\r\n")]
    replies = [Send(b"END\r\nVALUE c 0 1\r\nx\r\nEND\r\n")]
    async with Scripted(first + replies) as server:
        async with Client([server.address]) as client:
            assert await client.get("k") == b"v"
            calls = [client.get(key) for key in ("a", "b", "c", "b")]
            assert await asyncio.gather(*calls) == [None, None, b"x", None]


@pytest.mark.parametrize("style", STYLES)
@pytest.mark.gen_test
async def test_the_get_that_fills_a_line_of_over_8_kb_fails_as_the_others_of_it(
    style, expect_log, monkeypatch
):
    """The line is cut into two that leave: each asks its own part for its phase."""
    expect_log(LOG, "fails: get")
    clock = Shifted(lambda: 1000.0)
    monkeypatch.setattr(deadlines, "clock", clock)
    keys = [f"{number:03}" + "x" * 240 for number in range(100)]
    script = [GET, Send(HIT), Expect(b"get owed\r\n")]
    async with Scripted(script) as server:
        async with Client([server.address], request_timeout=60) as client:
            assert await client.get("k") == b"v"
            owed = client.get("owed")
            calls = [Asked(style, client.get, key, timeout=1) for key in keys]
            await until(lambda: all(key.encode() in server.received[0] for key in keys))
            clock.shift += 1.5
            client._deadlines._disarm()
            client._deadlines._fire()
            errors = [await one.failure(Timeout) for one in calls]
            assert {error.phase for error in errors} == {"reply"}
            owed.cancel()


@pytest.mark.gen_test
async def test_the_large_buffer_is_given_back(memcached):
    async with Client([memcached.address]) as client:
        await client.set("big", b"x" * 900_000)
        assert len(await client.get("big")) == 900_000
        buffers = [one._protocol for one in client._pools[0]._connections]
        assert any(len(one._buffer) > 900_000 for one in buffers)
        for _ in range(100):
            await client.get("small")
        used = only(client)._protocol if len(buffers) == 1 else buffers[0]
        assert len(used._buffer) == 0


@pytest.mark.parametrize("what", ["its end", "bytes that nobody asked for"])
@pytest.mark.gen_test
async def test_a_connection_that_has_rested_is_looked_at_before_it_is_used(memcached, what):
    """The loop was busy elsewhere: what has come lies in the socket, unread."""
    with FaultProxy(memcached.address) as proxy:
        async with Client([proxy.address]) as client:
            for number in range(3):
                assert await client.set("k", number) is True
                if what == "its end":
                    proxy.cut()
                else:
                    proxy.say(b"NOT_STORED\r\n")
                time.sleep(2 * LONG_REST)
            assert await client.set("k", 3) is True
            assert proxy.accepted == 4


@pytest.mark.gen_test
async def test_a_server_that_speaks_before_it_is_asked_is_not_connected_to_again_and_again(
    expect_log, monkeypatch
):
    monkeypatch.setattr(deadlines, "clock", Hand())
    expect_log(LOG, "dead: the server sent bytes before it was asked", times=1)
    async with Scripted([Send(b"220 mail ESMTP\r\n")]) as server:
        async with Client([server.address], min_connections=1) as client:
            client.warm_up()
            while not client._pools[0].health.dead:
                await asyncio.sleep(0.001)
            await asyncio.sleep(0.02)
            assert server.connections == 1
            with pytest.raises(ServerDead):
                await client.get("k")


@pytest.mark.gen_test
async def test_closing_tells_everybody_once(silent):
    client = Client([silent.address])
    outcomes = []
    client.set("a", b"v", fail_callback=outcomes.append)
    client.get("b", fail_callback=outcomes.append)
    await asyncio.sleep(0.02)
    client.get("c", fail_callback=outcomes.append)
    client.close()
    client.close()
    await asyncio.sleep(0)
    assert [type(one).__name__ for one in outcomes] == ["ClientClosed"] * 3


@pytest.mark.gen_test
async def test_repr_says_where_it_stands(memcached):
    async with Client([memcached.address]) as client:
        call = client.get("k")
        assert "connecting" in repr(only(client))
        await call
        assert "idle" in repr(only(client))
        call = client.get("k")
        assert "busy" in repr(only(client))
        await call
        connection = only(client)
    assert "closed" in repr(connection)


@pytest.mark.gen_test
async def test_the_attributes_of_what_each_call_looks_at_stay_in_a_dict_that_is_shared(memcached):
    """From 30 on CPython gives each object one of its own: 1.3 KB, and a fifth of the speed."""
    async with Client([memcached.address]) as client:
        await client.get("k")
        (pool,) = client._pools
        (connection,) = pool._connections
        for one in (client, client._cluster, pool, pool.health, connection):
            assert len(vars(one)) < 30, type(one).__name__
