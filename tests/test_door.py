"""tornado_memcache.door: clients on real sockets, and a handler of the test's behind them."""

import asyncio
import logging

import pytest

from tornado_memcache.errors import ConnectionFailed
from tornado_memcache.protocol import Item, Reply, Request

from .doors import Door, connect, leave


@pytest.mark.gen_test
async def test_replies_that_take_time_are_asked_for_at_once_and_come_in_order():
    under_way, most = 0, 0

    async def handler(request):
        nonlocal under_way, most
        under_way += 1
        most = max(most, under_way)
        key = request.keys[0]
        await asyncio.sleep(0.02 if key == b"k0" else 0.001)
        under_way -= 1
        return Reply(b"END", {key: Item(key, 0)})

    async with Door(handler) as server:
        reader, writer = await connect(server)
        writer.write(b"".join(b"get k%d\r\n" % number for number in range(300)))
        expected = b"".join(
            b"VALUE k%d 0 %d\r\nk%d\r\nEND\r\n" % (n, len(b"k%d" % n), n) for n in range(300)
        )
        assert await reader.readexactly(len(expected)) == expected
        await leave(writer)
    assert most == 100


@pytest.mark.gen_test
async def test_failures_of_the_handler_are_replies(expect_log):
    logged = expect_log("tornado_memcache.door", "handler", level=logging.ERROR, times=2)

    async def later(request):
        raise ConnectionFailed("gone", server="h:1") if request.keys[0] == b"c" else KeyError()

    def handler(request):
        if request.keys[0] == b"a":
            raise ZeroDivisionError
        if request.keys[0] == b"x":
            cancelled = asyncio.get_running_loop().create_future()
            cancelled.cancel()
            return cancelled
        return later(request)

    async with Door(handler) as server:
        reader, writer = await connect(server)
        writer.write(b"get a\r\nget b\r\nget c\r\nget x\r\nquit\r\n")
        assert await reader.read() == (
            b"SERVER_ERROR internal error\r\n" * 2
            + b"SERVER_ERROR gone (server h:1, phase reply)\r\n"
            + b"SERVER_ERROR cancelled\r\n"
        )
        await leave(writer)
    assert logged.count == 2


@pytest.mark.gen_test
async def test_closing_cancels_what_the_handler_still_does():
    started = asyncio.Event()
    ended = []

    async def handler(request):
        started.set()
        try:
            await asyncio.sleep(60)
        finally:
            ended.append(request)

    async with Door(handler) as server:
        _, writer = await connect(server)
        writer.write(b"get a\r\nget b\r\n")
        await started.wait()
    await asyncio.sleep(0)
    assert ended == [Request(b"get", (b"a",)), Request(b"get", (b"b",))]
    await leave(writer)
