"""tornado_memcache.spoken: what a server speaks is found out before any meta command leaves."""

from __future__ import annotations

import asyncio

import pytest

from tornado_memcache import (
    Client,
    ClientClosed,
    ClientError,
    ConnectionFailed,
    MetaItem,
    MetaUnsupported,
    Request,
    ServerError,
    Timeout,
)
from tornado_memcache.meta import OLDEST

from .asked import until
from .scripted import Close, Expect, Scripted, Send, Until

LOG = "tornado_memcache"
VERSION = Expect(b"version\r\n")
NEW = Send(b"VERSION 1.6.18\r\n")
OLD = Send(b"VERSION 1.5.22\r\n")
HIT = Send(b"VA 1 f16 kk\r\nv\r\n")
MG = Expect(b"mg k v f k\r\n")


def meta_calls(client: Client) -> list[asyncio.Future]:
    """One call of each kind."""
    return [
        client.meta_get("k"),
        client.meta_set("k", "flush_all\r\n"),
        client.meta_delete("k"),
        client.meta_arithmetic("k"),
        client.debug("k"),
        client.meta_get_multi(["k", "l"], strict=True),
        client.request(Request(b"mg", (b"k",), argument=b"v")),
        client.request(Request(b"ms", (b"k",), b"flush_all\r\n")),
    ]


@pytest.mark.gen_test
async def test_many_first_calls_ask_once_and_later_ones_do_not():
    hits = [Send(b"VA 1 f16 kk\r\nv\r\n" * 3), MG, HIT]
    async with Scripted([VERSION, NEW, Expect(MG.data * 3), *hits]) as server:
        async with Client([server.address]) as client:
            items = await asyncio.gather(*[client.meta_get("k") for _ in range(3)])
            assert items == [MetaItem("v", 16, size=1)] * 3
            assert (await client.meta_get("k")).value == "v"
            assert repr(client._pools[0]._spoken) == "<Spoken 1.6.18>"
            assert client._pools[0].pending == 0


@pytest.mark.parametrize(
    ("told", "words"),
    [
        (b"VERSION 1.5.22\r\n", "is version '1.5.22'"),
        (b"VERSION 1.6.9\r\n", "is version '1.6.9'"),
        (b"VERSION 1.4.5_4_gaa7839e\r\n", "1.4.5"),
        (b"VERSION mcrouter 41\r\n", "is version 'mcrouter 41'"),
        (b"VERSION \r\n", "tells no version"),
        (b"ERROR\r\n", "tells no version"),
        (b"CLIENT_ERROR unknown\r\n", "tells no version"),
    ],
)
@pytest.mark.gen_test
async def test_a_server_that_does_not_know_meta_is_sent_none_of_it(told, words):
    get = [Expect(b"get k\r\n"), Send(b"VALUE k 0 1\r\nv\r\nEND\r\n")] * 2
    async with Scripted([VERSION, Send(told), *get]) as server:
        async with Client([server.address]) as client:
            for calls in (meta_calls(client), meta_calls(client)):
                outcomes = await asyncio.gather(*calls, return_exceptions=True)
                assert {type(outcome) for outcome in outcomes} == {MetaUnsupported}
                for error in outcomes:
                    assert words in str(error) and "1.6.10" in str(error)
                    assert error.server == server.address and not error.maybe_applied
                    assert isinstance(error, ClientError) and error.connection_survives
                assert await client.get("k") == b"v"
            assert server.received == [b"version\r\nget k\r\nget k\r\n"]
            assert client._pools[0].pending == 0


def test_the_oldest_version_is_in_the_words_of_the_error():
    assert OLDEST == (1, 6, 10)


@pytest.mark.gen_test
async def test_once_a_connection_was_lost_the_server_is_asked_again():
    """Who listens there now may be an older one, that would take a value for commands."""
    first = [VERSION, NEW, MG, HIT, Close()]
    async with Scripted(first, [VERSION, OLD]) as server:
        async with Client([server.address]) as client:
            assert (await client.meta_get("k")).value == "v"
            await until(lambda: client._pools[0].losses == 1)
            with pytest.raises(MetaUnsupported):
                await client.meta_set("k", "flush_all\r\n")
            assert server.received[1] == VERSION.data


@pytest.mark.gen_test
async def test_what_was_not_sent_when_its_connection_was_lost_waits_for_the_version_again():
    """A get that only reads is tried again, and not before the new server has said what it is."""
    first = [VERSION, NEW, MG, HIT, MG, Close()]
    async with Scripted(first, [VERSION, NEW, MG, HIT], [VERSION, OLD]) as server:
        async with Client([server.address]) as client:
            assert (await client.meta_get("k")).value == "v"
            assert (await client.meta_get("k")).value == "v"
            assert server.connections == 2
    async with Scripted(first, [VERSION, OLD]) as server:
        async with Client([server.address]) as client:
            assert (await client.meta_get("k")).value == "v"
            with pytest.raises(MetaUnsupported):
                await client.meta_get("k")


@pytest.mark.gen_test
async def test_calls_for_a_key_keep_their_order_while_the_version_is_asked():
    asked = Expect(b"ms k 1 F16\r\nv\r\nget k\r\nset k 16 0 1\r\nw\r\n")
    replies = Send(b"HD\r\nVALUE k 16 1\r\nv\r\nEND\r\nSTORED\r\n")
    async with Scripted([VERSION, NEW, asked, replies]) as server:
        async with Client([server.address]) as client:
            calls = [client.meta_set("k", "v"), client.get("k"), client.set("k", "w")]
            assert await asyncio.gather(*calls) == [True, "v", True]


@pytest.mark.gen_test
async def test_what_is_under_way_goes_on_when_the_first_meta_call_comes():
    script = [Expect(b"get k\r\n"), VERSION, Send(b"END\r\nVERSION 1.6.18\r\n"), MG, HIT]
    async with Scripted(script) as server:
        async with Client([server.address]) as client:
            get, item = client.get("k", default=0), client.meta_get("k")
            assert await get == 0 and (await item).value == "v"


@pytest.mark.gen_test
async def test_a_connection_that_is_lost_before_it_said_so_fails_who_waits(expect_log):
    expect_log(LOG, "fails")
    async with Scripted([VERSION, Close()]) as server:
        async with Client([server.address]) as client:
            calls = meta_calls(client)
            outcomes = await asyncio.gather(*calls, return_exceptions=True)
            assert {type(outcome) for outcome in outcomes} == {ConnectionFailed}
            assert not any(outcome.maybe_applied for outcome in outcomes)
            assert "ms 'k'" in str(outcomes[1])
            assert client._pools[0].pending == 0


@pytest.mark.gen_test
async def test_a_proxy_that_fails_to_say_so_fails_who_waits_and_is_asked_again():
    refused = Send(b"SERVER_ERROR no backend\r\n")
    async with Scripted([VERSION, refused, VERSION, NEW, MG, HIT]) as server:
        async with Client([server.address]) as client:
            with pytest.raises(ServerError, match="no backend"):
                await client.meta_get("k")
            assert (await client.meta_get("k")).value == "v"


@pytest.mark.gen_test
async def test_a_silent_server_lets_each_call_end_at_its_own_deadline(silent, troubles):
    """One that waits for longer than the question has its own asked again."""
    async with Client([silent.address], request_timeout=0.5) as client:
        calls = [client.meta_get("k"), client.meta_get("k", timeout=0.8), client.meta_set("k", "v")]
        loop = asyncio.get_running_loop()
        begun = loop.time()
        for call, seconds in ((calls[0], 0.5), (calls[2], 0.5), (calls[1], 0.8)):
            with pytest.raises(Timeout) as caught:
                await call
            assert not caught.value.maybe_applied
            assert seconds - 0.01 <= loop.time() - begun < seconds + 0.7
        assert silent.received.startswith(b"version\r\nversion\r\n")
        assert set(silent.received.split(b"\r\n")) == {b"version", b""}


@pytest.mark.gen_test
async def test_a_call_that_was_cancelled_while_the_version_is_asked_is_not_sent():
    told = asyncio.Event()
    async with Scripted([VERSION, Until(told.is_set), NEW, VERSION, NEW, MG, HIT]) as server:
        async with Client([server.address]) as client:
            call = client.meta_set("k", "v")
            await until(lambda: server.received[:1] == [VERSION.data])
            call.cancel()
            with pytest.raises(asyncio.CancelledError):
                await call
            told.set()
            await until(lambda: client._pools[0].pending == 0)
            assert (await client.meta_get("k")).value == "v"


@pytest.mark.gen_test
async def test_closing_ends_who_waits_for_the_version(silent):
    client = Client([silent.address])
    calls = meta_calls(client)
    await until(lambda: silent.received)
    client.close()
    outcomes = await asyncio.gather(*calls, return_exceptions=True)
    assert {type(outcome) for outcome in outcomes} == {ClientClosed}


@pytest.mark.gen_test
async def test_a_dead_server_is_probed_by_the_question(start_memcached, expect_log):
    expect_log(LOG, "", times=None)
    server = start_memcached()
    async with Client([server.address], request_timeout=2) as client:
        assert await client.meta_set("k", "v") is True
        server.kill()
        with pytest.raises(ConnectionFailed):
            await client.meta_get("k")
        server.restart()
        client.retry_dead_servers()
        assert await client.meta_get("k") is None
        assert client._pools[0].health.dead is False
        assert await client.meta_set("k", "w") is True


@pytest.mark.gen_test
async def test_a_server_restarted_between_two_calls_is_not_noticed(start_memcached):
    server = start_memcached()
    async with Client([server.address]) as client:
        await client.meta_set("k", "v")
        server.restart()
        assert await client.meta_set("k", "w") is True
        assert (await client.meta_get("k")).value == "w"
