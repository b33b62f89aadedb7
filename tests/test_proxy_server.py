"""tornado_memcache.proxy_server: a proxy with an address, what another configuration changes."""

import asyncio
import contextlib
import json

import pytest
from tornado.httpclient import AsyncHTTPClient

from tornado_memcache import Client
from tornado_memcache.server import EmbeddedServer

from .asked import until
from .doors import leave
from .memcacheds import free_port
from .proxied import asked, behind, config_of, connected, proxied
from .silent import Silent

ITEM = b"VALUE a 0 1\r\n%b\r\nEND\r\n"


@pytest.mark.gen_test
async def test_its_address_is_one_that_a_client_takes(memcached, tmp_path):
    async with proxied(*behind(memcached)) as server, Client([server.address]) as client:
        assert await client.set("a", "1") and await client.get("a") == "1"
        assert server.address in repr(server)
    path = f"unix:{tmp_path / 'proxy'}"
    async with proxied(*behind(memcached), f"--listen={path}") as server:
        assert server.address == path
        async with Client([path]) as client:
            assert await client.get("a") == "1"
    assert not (tmp_path / "proxy").exists()


@pytest.mark.gen_test
async def test_an_address_that_is_taken(memcached):
    async with proxied(*behind(memcached)) as server:
        with pytest.raises(OSError):
            async with proxied(*behind(memcached), f"--listen={server.address}"):
                pass
        with pytest.raises(OSError):
            async with proxied(*behind(memcached), f"--admin={server.address}"):
                pass


@pytest.mark.gen_test
async def test_a_unix_socket_that_is_taken_stays_whose_it_is(memcached, tmp_path):
    flags = *behind(memcached), f"--listen=unix:{tmp_path / 'proxy'}"
    async with proxied(*flags) as first:
        with pytest.raises(OSError, match="proxy: Address already in use: a server listens there"):
            async with proxied(*flags):
                pass
        async with Client([first.address]) as client:
            assert await client.get("a") is None
        (tmp_path / "proxy").unlink()
        async with proxied(*flags) as second:
            await first.close()
            async with Client([second.address]) as client:
                assert await client.get("a") is None
    assert not (tmp_path / "proxy").exists()


@pytest.mark.gen_test
async def test_a_unix_socket_is_free_for_the_next_proxy_while_one_drains(
    start_memcached, troubles, tmp_path
):
    memcached = start_memcached()
    flags = *behind(memcached), f"--listen=unix:{tmp_path / 'proxy'}", "--request-timeout=10"
    async with proxied(*flags) as first:
        await asked(first, b"set a 0 0 1\r\n1\r\n")
        reader, writer = await connected(first)
        memcached.stop()
        writer.write(b"get a\r\n")
        await until(lambda: first.proxy.requests[b"get"])
        draining = asyncio.ensure_future(first.drain())
        await until(lambda: not first.door.listening)
        assert not (tmp_path / "proxy").exists()
        async with proxied(*flags) as second:
            memcached.resume()
            assert await draining is True and await reader.read() == ITEM % b"1"
            assert await asked(second, b"get a\r\n") == ITEM % b"1"
        await leave(writer)


@pytest.mark.gen_test
async def test_a_client_is_told_of_the_setting_that_is_missing(troubles):
    async with (
        EmbeddedServer(users={"me": "x"}) as behind_it,
        proxied(*behind(behind_it)) as server,
    ):
        told = await asked(server, b"set a 0 0 1\r\n1\r\n")
        assert told.startswith(b"SERVER_ERROR ") and b"give auth-file" in told
        assert b"username" not in told


@pytest.mark.gen_test
async def test_the_page_tells_what_stats_tell(memcached):
    port = free_port()
    async with proxied(*behind(memcached), f"--admin=127.0.0.1:{port}") as server:
        await asked(server, b"get a\r\n")
        page = await AsyncHTTPClient().fetch(f"http://127.0.0.1:{port}/")
        told = json.loads(page.body)
        assert told["cmd_get"] == 1 and told["total_connections"] == 1
        assert told[f"server_{memcached.address}_state"] == "alive"
        assert page.headers["Content-Type"].startswith("application/json")
    AsyncHTTPClient().close()


@pytest.mark.gen_test
async def test_other_servers_take_the_place_of_those_that_were_without_a_client_noticing(
    start_memcached,
):
    old, new = start_memcached(), start_memcached()
    old.ask(b"set a 0 0 1\r\n1\r\n")
    new.ask(b"set a 0 0 1\r\n2\r\n")
    async with proxied(*behind(old)) as server:
        reader, writer = await connected(server)
        for config, value in (
            (config_of(*behind(old)), b"1"),
            (config_of(*behind(new)), b"2"),  # its client stays
            (config_of(*behind(old), "--max-connections=1"), b"1"),  # another client
            (config_of(*behind(old), "--max-connections=1", f"--route=a={new.address}"), b"2"),
        ):
            server.reload(config)
            writer.write(b"get a\r\n")
            assert await reader.readexactly(len(ITEM % value)) == ITEM % value
        assert server.door.accepted == 1
        await leave(writer)


@pytest.mark.gen_test
async def test_what_is_under_way_ends_with_the_client_where_it_began(start_memcached, troubles):
    old, new = start_memcached(), start_memcached()
    async with proxied(*behind(old), "--request-timeout=5") as server:
        await asked(server, b"set a 0 0 1\r\n1\r\n")
        reader, writer = await connected(server)
        old.stop()
        writer.write(b"get a\r\nget a\r\n")
        await until(lambda: server.proxy.requests[b"get"] == 2)
        server.reload(config_of(*behind(new)))
        writer.write(b"get a\r\n")
        old.resume()
        expected = ITEM % b"1" * 2 + b"END\r\n"
        assert await reader.readexactly(len(expected)) == expected
        await leave(writer)


@pytest.mark.gen_test
async def test_limits_are_changed_and_addresses_are_not(memcached, expect_log):
    logged = expect_log("tornado_memcache.proxy", "admin stays as it is", times=1)
    async with proxied(*behind(memcached)) as server:
        listen = f"--listen={server.address}"
        server.config.proxy["listen"] = ("127.0.0.1", server.door.port)
        flags = (listen, "--max-clients=1", "--allow-all-commands", "--admin=127.0.0.1:1")
        server.reload(config_of(*behind(memcached), *flags))
        assert await asked(server, b"flush_all\r\n") == b"OK\r\n"
        await until(lambda: not server.door.connected)
        _, writer = await connected(server)
        await until(lambda: server.door.connected)
        reader, other = await connected(server)
        assert await reader.read() == b"ERROR Too many open connections\r\n"
        await leave(other)
        await leave(writer)
    assert logged.count == 1


@pytest.mark.gen_test
async def test_lengths_of_time_where_there_were_none_hold_too(memcached):
    none = "--receive-timeout=0", "--write-timeout=0", "--idle-timeout=0"
    async with proxied(*behind(memcached), *none) as server:
        reader, writer = await connected(server)
        await until(lambda: server.door.connected)
        server.reload(config_of(*behind(memcached), *none[:2], "--idle-timeout=0.1"))
        with contextlib.suppress(ConnectionResetError):
            assert await asyncio.wait_for(reader.read(), 20) == b""
        assert server.door.sent_away == {"it asks for nothing": 1}
        await leave(writer)


@pytest.mark.gen_test
async def test_draining_ends_what_is_under_way(start_memcached, troubles):
    memcached = start_memcached()
    async with proxied(*behind(memcached), "--request-timeout=5") as server:
        await asked(server, b"set a 0 0 1\r\n1\r\n")
        reader, writer = await connected(server)
        memcached.stop()
        writer.write(b"get a\r\n")
        await until(lambda: server.proxy.requests[b"get"])
        draining = asyncio.ensure_future(server.drain())
        await asyncio.sleep(0.01)
        memcached.resume()
        assert await draining is True
        assert await reader.read() == ITEM % b"1"
        await leave(writer)


@pytest.mark.gen_test
async def test_draining_has_an_end(silent: Silent, troubles):
    flags = ("--drain-timeout=0.05", "--request-timeout=30", "--connect-timeout=30")
    async with proxied(f"--server={silent.address}", *flags) as server:
        _, writer = await connected(server)
        writer.write(b"get a\r\n")
        await until(lambda: server.proxy.requests[b"get"])
        assert await server.drain() is False
        await leave(writer)


@pytest.mark.gen_test
async def test_the_log_names_server_and_phase(start_memcached, expect_log):
    gone = start_memcached()
    gone.kill()
    told = f"{gone.address} is taken for dead.*phase connecting"
    logged = expect_log("tornado_memcache", told, times=1)
    async with proxied(*behind(gone)) as server:
        assert (await asked(server, b"delete a\r\n")).startswith(b"SERVER_ERROR")
    assert logged.count == 1
