"""Calls for one key take effect in the order in which they were made; and what a fork shares."""

from __future__ import annotations

import asyncio
import os

import pytest

from tornado_memcache import Client, ConnectionFailed
from tornado_memcache.stream import SegmentStream

from .scripted import Expect, Scripted, Send, Until

LOG = "tornado_memcache"


@pytest.mark.gen_test
async def test_a_call_that_is_bound_does_not_overtake_a_write_in_line(memcached):
    for number in range(20):
        async with Client([memcached.address]) as client:
            await client.get("warm")
            small, large = b"%02d" % number * 35_000, b"%02d" % number * 60_000
            client.set("j", small)
            client.set("k", large)
            assert await client.get_multi(["j", "k"]) == {"j": small, "k": large}


@pytest.mark.gen_test
async def test_a_cold_large_write_and_a_get_of_its_key_in_one_tick(memcached):
    for number in range(20):
        async with Client([memcached.address], max_connections=1) as client:
            value = b"%02d" % number * 40_000
            client.set("k", value)
            assert await client.get("k") == value


@pytest.mark.gen_test
async def test_a_longer_timeout_does_not_lose_its_place_in_line(start_memcached):
    server = start_memcached()
    async with Client(
        [server.address], max_connections=1, request_timeout=0.2, silences_until_dead=100
    ) as client:
        await client.get("a")
        server.stop()
        first = client.get("a", timeout=9)
        await asyncio.sleep(0.25)
        old = client.set("k", "old", timeout=8)
        await asyncio.sleep(0.1)
        new = client.set("k", "new", timeout=8)
        await asyncio.sleep(0.2)
        server.resume()
        assert await asyncio.gather(first, old, new) == [None, True, True]
        assert await client.get("k") == "new"


@pytest.mark.gen_test(timeout=60)
async def test_a_noreply_write_is_not_overtaken_when_its_connection_is_not_needed():
    """It leaves a connection that owes nothing and that ``max_idle`` wants closed."""
    large = b"x" * 70_000
    first = [Expect(b"set big 0 0 70000\r\n%b\r\n" % large), Send(b"STORED\r\n")]
    second = [
        Expect(b"set k 0 0 70000\r\n%b\r\nset k 0 0 3 noreply\r\nnew\r\n" % large),
        Until(lambda: stored),
        Send(b"STORED\r\n"),
        Expect(b"get k\r\n"),
        Send(b"VALUE k 0 3\r\nnew\r\nEND\r\n"),
    ]
    stored: list[bool] = []
    async with Scripted(first, second) as server:
        async with Client([server.address], max_idle=1, request_timeout=30.0) as client:
            big, old = client.set("big", large), client.set("k", large)
            quiet = client.set("k", b"new", noreply=True)
            stored.append(await big)
            assert await asyncio.gather(old, quiet) == [True, True]
            assert client._pools[0].counts()["idle"] == 2, "one more than is to be kept"
            assert await client.get("k") == b"new"


@pytest.mark.gen_test
async def test_unconfirmed_writes_on_two_connections_hold_nobody_up(memcached):
    async with Client([memcached.address]) as client:
        large = b"x" * 100_000
        await asyncio.gather(*[client.set(key, large) for key in "abc"])
        quiet = [client.set("k1", large, noreply=True), client.set("k2", b"2", noreply=True)]
        await asyncio.gather(*quiet)
        found, other = await asyncio.gather(client.get_multi(["k1", "k2"]), client.get("other"))
        assert (found, other) == ({"k1": large, "k2": b"2"}, None)


@pytest.mark.gen_test
async def test_a_timed_out_write_does_not_overwrite_a_newer_one(start_memcached, expect_log):
    expect_log(LOG, "fails|dead", times=None)
    server = start_memcached()
    async with Client([server.address], request_timeout=0.15) as client:
        await client.get("k")
        server.stop()
        old = client.set("k", "old")
        await asyncio.sleep(0.2)
        new = client.set("k", "new", timeout=2)
        server.resume()
        assert await new is True
        assert await client.get("k") == "new"
        assert isinstance(old.exception(), Exception)


@pytest.mark.gen_test
async def test_a_stream_that_closes_between_two_writes_raises_at_nobody(
    memcached, monkeypatch, expect_log
):
    """The socket takes a part of a flush, and is reset before IOStream writes the rest."""
    expect_log(LOG, "fails: set")
    async with Client([memcached.address]) as client:
        await client.get("k")

        def cut_off(self, pieces, size):
            self.socket.shutdown(2)
            return self._write_rest(pieces, 10)

        monkeypatch.setattr(SegmentStream, "send_pieces", cut_off)
        calls = [client.set(key, b"x" * 100_000) for key in "ab"]
        monkeypatch.undo()
        outcomes = await asyncio.gather(*calls, return_exceptions=True)
        assert any(isinstance(one, ConnectionFailed) for one in outcomes)


def test_a_child_of_fork_opens_its_own_and_leaves_the_parent_s_alone(memcached):
    client = Client([memcached.address])

    async def ask(number):
        await client.set("child", number)
        return await client.get("child"), await client.get("p")

    def fork():
        pid = os.fork()
        if pid == 0:
            try:
                right = asyncio.run(ask(7)) == (7, b"parent")
                client.close()
                os._exit(0 if right else 1)
            finally:
                os._exit(2)
        return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])

    async def main():
        await client.set("p", b"parent")
        connections = [id(one) for one in client._pools[0]._connections]
        under_way = client.get("p")
        assert fork() == 0
        assert await under_way == b"parent"
        assert await client.get("p") == b"parent"
        assert [id(one) for one in client._pools[0]._connections] == connections
        client.close()

    asyncio.run(main())
