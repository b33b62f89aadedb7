"""tornado_memcache.streams: watch and metadump of real servers, and how they end.

The ledger, which is kept after every test, is what shows that a stream that
was left has given everything back: it fails a test for a descriptor, a timer,
a task or a log line that is left behind.
"""

from __future__ import annotations

import asyncio
import gc
import os
import time
from typing import Any

import pytest

from tornado_memcache import (
    AuthenticationError,
    Client,
    ClientClosed,
    ClientError,
    ConnectionFailed,
    InvalidRequest,
    InvalidServer,
    ProtocolError,
    ServerError,
    Timeout,
)
from tornado_memcache import streams as module

from . import certificates
from .asked import until
from .memcacheds import Memcached, free_port
from .scripted import Close, Expect, Repeat, Reset, Scripted, Send, Until

DUMP = b"lru_crawler metadump all\r\n"
ENTRY = b"key=k%d exp=-1 la=1 cas=2 fetch=no cls=1 size=64\n"
EVENT = b"ts=1.0 gid=1 type=item_get key=k status=found\n"


def fill(server: Memcached, count: int) -> None:
    """Stores ``count`` small items, quickly."""
    for start in range(0, count, 1000):
        lines = [b"set key:%d 0 0 1 noreply\r\nx\r\n" % n for n in range(start, start + 1000)]
        server.ask(b"".join(lines) + b"version\r\n")


async def all_of(stream: Any) -> list[Any]:
    return [one async for one in stream]


# -- watch


@pytest.mark.gen_test
async def test_events_of_all_servers_come_as_they_come(start_memcached):
    servers = [start_memcached(), start_memcached()]
    async with Client([server.address for server in servers]) as client:
        async with client.watch("fetchers", "mutations") as events:
            keys = {f"k{n}".encode() for n in range(20)}
            await client.set_multi(dict.fromkeys(keys, 1))
            seen = []
            async for event in events:
                if event.kind == "item_store":
                    seen.append(event)
                if len(seen) == 20:
                    break
            assert {event.key for event in seen} == keys
            assert {event.server for event in seen} == {server.address for server in servers}
            await client.get(b"\xe9%20\x80")
            async for event in events:
                if event.key == b"\xe9%20\x80":
                    assert event.kind == "item_get" and event.fields["status"] == "not_found"
                    break


@pytest.mark.gen_test
async def test_one_server_alone_is_watched_by_its_name(start_memcached):
    servers = [start_memcached(), start_memcached()]
    async with Client([server.address for server in servers]) as client:
        async with client.watch("fetchers", server=servers[1].address) as events:
            for server in servers:
                server.ask(b"get of-%d\r\n" % server.port)
            event = await anext(events)
            assert event.server == servers[1].address
            assert event.key == b"of-%d" % servers[1].port
            connections = [int(server.stats()["total_connections"]) for server in servers]
            assert connections[0] < connections[1]


@pytest.mark.gen_test(timeout=60)
async def test_a_reader_that_is_slow_grows_nothing_and_is_told_what_it_missed(memcached):
    async with Client([memcached.address]) as client:
        async with client.watch("mutations") as events:
            (source,) = events._sources
            before = int(memcached.stats()["log_watcher_skipped"])
            while int(memcached.stats()["log_watcher_skipped"]) == before:  # (nobody reads)
                fill(memcached, 10_000)
                await asyncio.sleep(0)
            await until(lambda: source._paused)
            assert source._size < module.MOST_UNREAD + 200 * 1024

            async def go_on() -> None:  # (the server tells what it dropped with the next line)
                while True:
                    fill(memcached, 1_000)
                    await asyncio.sleep(0.01)

            writing = asyncio.ensure_future(go_on())
            async for event in events:
                if event.skipped:
                    break
            writing.cancel()
            assert event.kind == "skipped"


@pytest.mark.gen_test
async def test_a_word_that_the_server_does_not_know_is_told(memcached):
    async with Client([memcached.address]) as client:
        events = client.watch("fetchers", "nothing_of_the_kind")
        for _ in range(2):
            with pytest.raises(ClientError, match="does not know watch fetchers nothing_of_the"):
                await anext(events)
        with pytest.raises(ClientError):
            async with client.watch("nothing_of_the_kind"):
                raise AssertionError("it was entered")


# -- metadump


@pytest.mark.gen_test
async def test_a_dump_tells_the_items_of_all_servers(start_memcached):
    servers = [start_memcached(), start_memcached()]
    async with Client([server.address for server in servers], key_prefix="p:") as client:
        assert await all_of(client.metadump()) == []
        await client.set_multi({f"k{n}": b"x" * n for n in range(100)}, 1000)
        await client.set("for ever".replace(" ", "\xe9"), 1)
        await client.get("k7")
        entries = await all_of(client.metadump())
        found = {entry.key: entry for entry in entries}
        assert len(entries) == len(found) > 95  # (a dump is no snapshot)
        assert {entry.server for entry in entries} == {server.address for server in servers}
        now = time.time()
        for key, entry in found.items():
            assert key.startswith(b"p:") and abs(entry.last_access - now) < 60
            if entry.exptime is not None:
                assert abs(entry.exptime - now - 1000) < 60
        one = await all_of(client.metadump(servers[0].address))
        assert {entry.server for entry in one} <= {servers[0].address}


@pytest.mark.gen_test(timeout=60)
async def test_a_long_dump_is_read_as_it_is_wanted(start_memcached):
    server = start_memcached(["-m", "200"])
    fill(server, 100_000)
    async with Client([server.address], request_timeout=20) as client:
        dump, found, most = client.metadump(), set(), 0
        async for entry in dump:
            found.add(entry.key)
            most = max(most, dump._sources[0]._size if dump._sources else 0)
            if len(found) % 30_000 == 0:
                await asyncio.sleep(0.05)
        assert len(found) > 99_000
        assert 0 < most < module.MOST_UNREAD + 200 * 1024


@pytest.mark.gen_test
async def test_a_busy_server_is_asked_again_until_it_has_time():
    busy = Send(b"BUSY currently processing crawler request\r\n")
    entry = Send(ENTRY % 1 + b"END\r\n")
    ask = Expect(DUMP)
    async with Scripted([ask, busy, ask, busy, ask, busy, ask, entry]) as server:
        async with Client([server.address], request_timeout=30) as client:
            assert [one.key for one in await all_of(client.metadump())] == [b"k1"]
        assert server.connections == 1


@pytest.mark.gen_test
async def test_a_server_that_stays_busy_is_told_after_the_timeout():
    script = [Expect(DUMP), Send(b"BUSY currently processing crawler request\r\n")] * 50
    async with Scripted(script) as server, Client([server.address]) as client:
        begun = time.monotonic()
        with pytest.raises(ServerError, match="is BUSY: another metadump") as caught:
            await all_of(client.metadump(timeout=0.4))
        assert caught.value.server == server.address
        assert 0.35 < time.monotonic() - begun < 2


@pytest.mark.gen_test
async def test_a_server_without_a_crawler_says_so(start_memcached):
    server = start_memcached(["-o", "no_lru_crawler"])
    async with Client([server.address]) as client:
        with pytest.raises(ClientError, match="lru crawler disabled"):
            await all_of(client.metadump())


# -- what is refused at the call


@pytest.mark.gen_test
async def test_bad_input_raises_at_the_call_and_nothing_is_sent(silent):
    async with Client([silent.address]) as client:
        with pytest.raises(InvalidRequest, match="no word to watch"):
            client.watch("fetchers\r\nflush_all")
        with pytest.raises(TypeError, match="words to watch must be str"):
            client.watch(["fetchers"])
        for call in (client.watch, client.metadump):
            with pytest.raises(InvalidServer, match="'other:11211' is none of the servers"):
                call(server="other")
            with pytest.raises(InvalidServer):
                call(server="h:abc")
            with pytest.raises(TypeError, match="server must be"):
                call(server=7)
            for timeout in (0, -1, float("nan")):
                with pytest.raises(InvalidRequest, match="timeout"):
                    call(timeout=timeout)
            with pytest.raises(TypeError, match="timeout"):
                call(timeout="1")
        assert await silent.untouched()


def test_one_that_nobody_begins_needs_no_loop_and_leaves_nothing():
    client = Client(["127.0.0.1"])
    client.watch("fetchers")
    client.metadump()
    client.close()


@pytest.mark.gen_test
async def test_there_is_one_reader_at_a_time(memcached):
    async with Client([memcached.address]) as client:
        async with client.watch("fetchers") as events:
            first = asyncio.ensure_future(anext(events))
            await asyncio.sleep(0)
            with pytest.raises(RuntimeError, match="one reader at a time"):
                await anext(events)
            memcached.ask(b"get k\r\n")
            assert (await first).key == b"k"


# -- how it fails


@pytest.mark.gen_test
async def test_a_server_that_is_not_there_is_told_at_once():
    async with Client([f"127.0.0.1:{free_port()}"]) as client:
        for stream in (client.watch("fetchers"), client.metadump()):
            with pytest.raises(ConnectionFailed) as caught:
                await anext(stream)
            assert caught.value.phase == "connecting"
            with pytest.raises(ConnectionFailed):
                await anext(stream)


@pytest.mark.gen_test
@pytest.mark.parametrize("end", [Close(), Reset()])
async def test_a_server_that_goes_away_in_the_middle_ends_neither_as_if_it_were_complete(end):
    told = []
    script = [Expect(DUMP), Send(ENTRY % 1 + ENTRY % 2), Until(lambda: len(told) == 2), end]
    async with Scripted(script) as server, Client([server.address]) as client:
        with pytest.raises(ConnectionFailed) as caught:
            async for entry in client.metadump():
                told.append(entry)
        assert caught.value.server == server.address and caught.value.phase == "reply"
    script = [Expect(b"watch\r\n"), Send(b"OK\r\n" + EVENT * 3 + b"ts=1"), Until(lambda: told), end]
    async with Scripted(script) as server, Client([server.address]) as client:
        told.clear()
        with pytest.raises(ConnectionFailed):
            async for event in client.watch():
                told.append(event)
        assert len(told) == 3


@pytest.mark.gen_test
async def test_one_of_several_servers_that_dies_ends_the_watch(start_memcached):
    servers = [start_memcached(), start_memcached()]
    async with Client([server.address for server in servers]) as client:
        async with client.watch("fetchers") as events:
            servers[0].kill()
            with pytest.raises(ConnectionFailed) as caught:
                await anext(events)
            assert caught.value.server == servers[0].address


@pytest.mark.gen_test
async def test_a_server_that_is_silent_is_told_by_the_timeout(silent):
    async with Client([silent.address], request_timeout=0.1) as client:
        for stream in (client.watch("fetchers"), client.metadump()):
            with pytest.raises(Timeout) as caught:
                await anext(stream)
            assert (caught.value.phase, caught.value.server) == ("reply", silent.address)
        with pytest.raises(Timeout):
            async with client.watch("fetchers", timeout=0.05):
                raise AssertionError("it was entered")


@pytest.mark.gen_test
async def test_a_dump_that_stands_still_in_the_middle_times_out_and_a_watch_waits():
    async with Scripted([Expect(DUMP), Send(ENTRY % 1)]) as server:
        async with Client([server.address], request_timeout=0.2) as client:
            dump = client.metadump()
            assert (await anext(dump)).key == b"k1"
            with pytest.raises(Timeout):
                await anext(dump)
    more: list[bool] = []
    script = [Expect(b"watch\r\n"), Send(b"OK\r\n"), Until(lambda: more), Send(EVENT)]
    async with Scripted(script) as server:
        async with Client([server.address], request_timeout=0.1) as client:
            async with client.watch() as events:
                asyncio.get_running_loop().call_later(0.3, more.append, True)
                assert (await anext(events)).key == b"k"


@pytest.mark.gen_test
async def test_a_server_that_does_not_accept_is_told_by_the_connect_timeout(start_memcached):
    server = start_memcached()
    context = certificates.trusting()
    server.stop()
    async with Client([server.address], connect_timeout=0.2, ssl=context) as client:
        with pytest.raises(Timeout) as caught:
            await anext(client.watch("fetchers"))
        assert caught.value.phase == "tls"
    server.resume()


@pytest.mark.gen_test
@pytest.mark.parametrize(
    "sent, asked",
    [
        (b"OK\r\n" + EVENT[:-1] + b"x" * 5000 + b"\n", b"watch\r\n"),
        (b"OK\r\n" + b"ts=" + b"x" * 5000, b"watch\r\n"),
        (b"OK\r\nVALUE k 0 1\r\n", b"watch\r\n"),
        (b"x" * 5000, DUMP),
        (ENTRY % 1 + b"key=k exp=\n", DUMP),
        (ENTRY % 1 + b"SERVER_ERROR x\r\n", DUMP),
        (b"END\r\nEND\r\n", DUMP),
    ],
)
async def test_what_is_no_line_of_a_stream_is_refused(sent, asked):
    async with Scripted([Expect(asked), Send(sent)]) as server:
        async with Client([server.address]) as client:
            stream = client.metadump() if asked == DUMP else client.watch()
            with pytest.raises(ProtocolError) as caught:
                await all_of(stream)
            assert caught.value.server == server.address


@pytest.mark.gen_test
async def test_an_endless_line_takes_no_memory():
    async with Scripted(
        [Expect(b"watch\r\n"), Send(b"OK\r\nts="), Repeat(b"x" * 65536, 1000)]
    ) as s:
        async with Client([s.address]) as client:
            with pytest.raises(ProtocolError, match="over 4096 bytes"):
                await all_of(client.watch())


# -- how it is left


@pytest.mark.gen_test
@pytest.mark.parametrize("way", ["break", "exception", "cancel", "drop", "aclose", "with"])
async def test_a_stream_that_is_left_gives_its_connections_back(way, memcached):
    async with Client([memcached.address]) as client:
        await client.set("k", 1)

        def there() -> int:
            return int(memcached.stats()["curr_connections"])

        base = there()

        async def read(stream: Any) -> None:
            async for _ in stream:
                if way == "break":
                    break
                if way == "exception":
                    raise KeyError("of the body")

        for stream in (client.metadump(), client.watch("fetchers")):
            if way == "drop":
                task = asyncio.ensure_future(anext(stream))
            elif way in ("aclose", "with"):
                async with stream if way == "with" else client.watch() as one:
                    await one.aclose()
                    assert await all_of(one) == []
                del stream, one
                continue
            else:
                task = asyncio.ensure_future(read(stream))
            del stream
            while there() == base and not task.done():
                await asyncio.sleep(0.001)
            memcached.ask(b"get k\r\n", b"END\r\n")
            if way == "cancel":
                task.cancel()
            await asyncio.wait({task})
            task.cancelled() or task.exception()
            del task
        gc.collect()
        assert not client._streams.streams
        await until(lambda: there() == base)


@pytest.mark.gen_test
async def test_a_reader_that_was_cancelled_may_go_on(memcached):
    async with Client([memcached.address]) as client:
        events = client.watch("fetchers")
        for _ in range(3):
            with pytest.raises(asyncio.TimeoutError):
                await asyncio.wait_for(anext(events), 0.05)
        memcached.ask(b"get k\r\n")
        assert (await anext(events)).key == b"k"
        await events.aclose()
        with pytest.raises(StopAsyncIteration):
            await anext(events)


@pytest.mark.gen_test
async def test_a_client_that_is_closed_ends_its_streams(memcached):
    client = Client([memcached.address])
    events = client.watch("fetchers")
    waiting = asyncio.ensure_future(anext(events))
    await until(lambda: events._sources[0].lines.answered)
    unread = client.watch("fetchers")
    client.close()
    with pytest.raises(ClientClosed):
        await waiting
    for stream in (events, unread, client.watch("fetchers"), client.metadump()):
        with pytest.raises(ClientClosed):
            await anext(stream)


def test_a_loop_that_is_closed_under_a_stream_leaves_nothing(memcached, ledger):
    kept = []
    client = Client([memcached.address])

    async def begin() -> None:
        kept.append(client.watch("fetchers"))
        memcached.ask(b"get k\r\n")
        await kept[0].__aenter__()

    asyncio.run(begin())
    fds = len(os.listdir("/proc/self/fd"))
    kept.clear()
    gc.collect()
    assert len(os.listdir("/proc/self/fd")) == fds - 1
    client.close()
    ledger.excuse("handler")


# -- on which connections


@pytest.mark.gen_test(timeout=60)
async def test_streams_go_by_tls_and_say_who_they_are(start_memcached, tmp_path):
    (tmp_path / "users").write_text("user:word\n")
    arguments = certificates.memcached_arguments(tmp_path, certificates.issued("127.0.0.1"))
    server = start_memcached(
        [*arguments, "-Y", str(tmp_path / "users"), "-m", "200"],
        ssl_context=certificates.trusting(),
        login=b"user word",
    )
    fill(server, 50_000)
    known = {"username": "user", "password": "word"}
    secure = certificates.trusting()
    async with Client([server.address], ssl=secure, request_timeout=20, **known) as client:
        dump, paused = client.metadump(), 0
        found = set()
        async for entry in dump:
            found.add(entry.key)
            paused += bool(dump._sources) and dump._sources[0]._paused
            if len(found) % 10_000 == 0:
                await asyncio.sleep(0.01)
        assert len(found) > 49_000 and paused
        async with client.watch("fetchers") as events:
            await client.get("k")
            assert (await anext(events)).key == b"k"
    for wrong in ({"username": "user", "password": "wrong"}, {}):
        async with Client([server.address], ssl=secure, **wrong) as client:
            for stream in (client.watch("fetchers"), client.metadump()):
                with pytest.raises(AuthenticationError):
                    await anext(stream)


@pytest.mark.gen_test
async def test_streams_go_by_unix_sockets(start_memcached):
    server = start_memcached(unix=True)
    async with Client([server.address]) as client:
        await client.set("k", 1)
        assert [entry.key for entry in await all_of(client.metadump())] == [b"k"]
