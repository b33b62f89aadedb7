"""tornado_memcache.submit: what of a tick leaves together, in which order, and how much at once."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest
from tornado.testing import bind_unused_port

from tornado_memcache import (
    Client,
    ClientClosed,
    Request,
    TooManyCalls,
)
from tornado_memcache.door import FrontDoor
from tornado_memcache.guest import Limits
from tornado_memcache.store import Store
from tornado_memcache.store_handler import StoreHandler
from tornado_memcache.text import KEYS_A_LINE, LINE_BYTES

from .scripted import Expect, Scripted, Send

LOG = "tornado_memcache"


class Recording:
    """A server that keeps every request it has received, one for each line."""

    def __init__(self) -> None:
        self.lines: list[Request] = []
        self._handler = StoreHandler(Store(lambda: 1e9))
        # (With less a long line would be answered in parts, and come here as several.)
        limits = Limits(under_way=1 << 30)
        self._door = FrontDoor(self._answer, too_large=lambda *_: False, limits=limits)

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
        self._door.add_socket(listening)
        return self

    async def __aexit__(self, *_: object) -> None:
        await self._door.close()


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
