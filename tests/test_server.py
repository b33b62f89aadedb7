"""tornado_memcache.server: the embedded server on real sockets, beside a real memcached.

That its answers are memcached's own is shown in `test_oracle.py`.
"""

import asyncio
import contextlib
import contextvars
import os
import re
import time
import tracemalloc

import pytest

from tornado_memcache import AuthenticationError, Client, InvalidRequest
from tornado_memcache.guest import Guest, Limits
from tornado_memcache.protocol import Reply, Request
from tornado_memcache.server import EmbeddedServer
from tornado_memcache.store import Store
from tornado_memcache.store_handler import StoreHandler

from .asked import until
from .certificates import for_server, trusting
from .doors import connect, exchange, leave
from .hand import Hand
from .oracle import asking


def store(key, value, words=b"0 0", verb=b"set", tail=b""):
    return b"%b %b %b %d%b\r\n%b\r\n" % (verb, key, words, len(value), tail, value)


def run_ask(server, data):
    async def asked():
        async with server:
            return await asyncio.to_thread(asking(server.address), data)

    return asyncio.run(asked())


def test_the_names_of_stats_are_those_of_memcached(memcached):
    def names(reply):
        lines = reply.split(b"\r\n")
        assert lines[-2:] == [b"END", b""]
        return {line.split()[1] for line in lines[:-2]}

    for argument in (b"", b" settings", b" slabs"):
        data = b"stats%b\r\n" % argument
        assert names(run_ask(EmbeddedServer(), data)) <= names(asking(memcached.address)(data))


# -- its life


@pytest.mark.gen_test
async def test_it_listens_on_this_machine_alone_and_says_where():
    async with EmbeddedServer() as server:
        assert re.fullmatch(r"127\.0\.0\.1:[1-9]\d+", server.address)
        assert server.address in repr(server)
        assert await exchange(server, b"version\r\n") == b"VERSION 1.6.18\r\n"
    assert repr(server) == "<EmbeddedServer stopped>"
    with pytest.raises(ConnectionRefusedError):
        await connect(server)


@pytest.mark.gen_test
async def test_one_byte_at_a_time_on_a_socket():
    async with EmbeddedServer() as server:
        reader, writer = await connect(server)
        for byte in store(b"a", b"12345") + b"get a\r\n":
            writer.write(bytes([byte]))
            await asyncio.sleep(0)
        assert await reader.readuntil(b"END\r\n") == b"STORED\r\nVALUE a 0 5\r\n12345\r\nEND\r\n"
        await leave(writer)


@pytest.mark.gen_test
async def test_start_and_stop_again_keep_port_and_items():
    server = EmbeddedServer()
    with pytest.raises(RuntimeError):
        server.address  # noqa: B018
    server.stop()
    server.start()
    with pytest.raises(RuntimeError):
        server.start()
    address = server.address
    assert await exchange(server, store(b"a", b"1")) == b"STORED\r\n"
    reader, writer = await connect(server)
    writer.write(b"version\r\n")
    await reader.readline()
    server.stop()
    server.stop()
    assert await reader.read() == b""
    await leave(writer)

    server.start()
    assert server.address == address
    assert await exchange(server, b"get a\r\n", b"END\r\n") == b"VALUE a 0 1\r\n1\r\nEND\r\n"
    await server.close()
    await server.close()


@pytest.mark.gen_test
async def test_closing_leaves_nothing_whatever_the_clients_do():
    before = asyncio.all_tasks()
    async with EmbeddedServer() as server:
        peers = [await connect(server) for _ in range(20)]
        for number, (_, writer) in enumerate(peers):
            # Idle, in the middle of a line, in the middle of a block.
            writer.write(
                (b"version\r\n", b"version\r\nget ", b"version\r\nset a 0 0 9\r\nx")[number % 3]
            )
        for reader, _ in peers:
            assert await reader.readline() == b"VERSION 1.6.18\r\n"
        assert repr(server).endswith("20 clients>")
    assert asyncio.all_tasks() == before
    for reader, writer in peers:
        assert await reader.read() == b""
        await leave(writer)


@pytest.mark.gen_test(timeout=30)
async def test_draining_answers_what_was_asked():
    server = EmbeddedServer()
    assert await server.drain(1.0) is True
    server.start()
    await exchange(server, store(b"a", b"x" * 1_000_000))
    reader, writer = await connect(server)
    writer.write(b"get a\r\n" * 20)
    received = len(await reader.readexactly(1_000_000))
    draining = asyncio.ensure_future(server.drain(20.0))
    while data := await reader.read(1 << 20):
        received += len(data)
    assert received == 20 * len(b"VALUE a 0 1000000\r\n" + b"x" * 1_000_000 + b"\r\nEND\r\n")
    assert await draining is True and repr(server) == "<EmbeddedServer stopped>"
    await leave(writer)


@pytest.mark.gen_test
async def test_draining_has_an_end():
    server = EmbeddedServer()
    server.start()
    await exchange(server, store(b"a", b"x" * 1_000_000))
    _, writer = await connect(server)
    writer.write(b"get a\r\n" * 100)
    await until(lambda: server.store.counts["cmd_get"])
    assert await server.drain(0.05) is False
    await leave(writer)


@pytest.mark.gen_test
async def test_a_client_that_leaves_is_forgotten():
    async with EmbeddedServer() as server:
        for data in (b"", b"set a 0 0 1000\r\nx", b"version\r\n" * 10):
            _, writer = await connect(server)
            writer.write(data)
            await leave(writer)
        for _ in range(100):
            if server._door is not None and not server._door.connected:
                break
            await asyncio.sleep(0.01)
        else:
            raise AssertionError(server)
        assert await exchange(server, b"get a\r\n") == b"END\r\n"


@pytest.mark.gen_test
async def test_a_unix_socket(tmp_path):
    path = str(tmp_path / "socket")
    async with EmbeddedServer(path=path) as server:
        assert server.address == f"unix:{path}"
        assert os.stat(path).st_mode & 0o777 == 0o600
        assert await exchange(server, b"version\r\n") == b"VERSION 1.6.18\r\n"
    assert not os.path.exists(path)


@pytest.mark.gen_test
async def test_a_second_server_does_not_take_the_unix_socket_of_the_first(tmp_path):
    path = str(tmp_path / "socket")
    async with EmbeddedServer(path=path) as server:
        second = EmbeddedServer(path=path)
        with pytest.raises(OSError, match="in use"):
            second.start()
        await second.close()
        assert await exchange(server, b"version\r\n") == b"VERSION 1.6.18\r\n"


@pytest.mark.gen_test
@pytest.mark.parametrize("end", ["stop", "close", "drain"])
async def test_a_unix_socket_that_has_become_anothers_stays(tmp_path, end):
    path = str(tmp_path / "socket")
    first = EmbeddedServer(path=path)
    first.start()
    os.unlink(path)
    async with EmbeddedServer(path=path) as second:
        if end == "drain":
            assert await first.drain(5.0)
        elif end == "stop":
            first.stop()
        await first.close()
        assert await exchange(second, b"version\r\n") == b"VERSION 1.6.18\r\n"
    assert not os.path.exists(path)


@pytest.mark.gen_test
async def test_who_can_open_a_unix_socket_may_be_said(tmp_path):
    path = str(tmp_path / "socket")
    async with EmbeddedServer(path=path, mode=0o660):
        assert os.stat(path).st_mode & 0o777 == 0o660


@pytest.mark.gen_test
async def test_over_tls_alone(tmp_path):
    async with EmbeddedServer(ssl=for_server("127.0.0.1")) as server:
        async with Client([server.address], ssl=trusting()) as client:
            assert await client.set("k", "v" * 200_000)
            assert await client.get("k") == "v" * 200_000
        reader, writer = await connect(server)
        writer.write(b"version\r\n")
        assert b"VERSION" not in await reader.read()
        await leave(writer)


@pytest.mark.gen_test
async def test_a_byte_now_and_then_is_no_request():
    async with EmbeddedServer(limits=Limits(receive_timeout=0.3)) as server:
        reader, writer = await connect(server)
        gone = asyncio.ensure_future(reader.read())
        for _ in range(1000):
            writer.write(b"x")
            if (await asyncio.wait([gone], timeout=0.02))[0]:
                break
        assert gone.done(), server
        with contextlib.suppress(ConnectionResetError):
            assert await gone == b""
        await leave(writer)


@pytest.mark.gen_test
async def test_who_does_not_take_replies_is_sent_away():
    async with EmbeddedServer(limits=Limits(write_timeout=0.3)) as server:
        await exchange(server, store(b"a", b"x" * 1_000_000))
        reader, writer = await connect(server)
        writer.transport.pause_reading()
        writer.write(b"get a\r\n" * 100)
        await until(lambda: server.store.counts["cmd_get"])
        await until(lambda: " 0 clients" in repr(server))
        await leave(writer)


@pytest.mark.parametrize(
    "limits, error, told",
    [
        (30, TypeError, "limits must be a Limits"),
        (Limits(0), InvalidRequest, "under_way must be from 1"),
        (Limits(receive_timeout=-1), InvalidRequest, "receive_timeout must be"),
        (Limits(idle_timeout="1"), TypeError, "idle_timeout must be"),
    ],
)
def test_limits_that_cannot_be(limits, error, told):
    with pytest.raises(error, match=told):
        EmbeddedServer(limits=limits)


@pytest.mark.gen_test
async def test_only_users_come_in_and_the_others_are_counted(expect_log):
    async with EmbeddedServer(users={"alice": "secret", "bob": "x:y"}) as server:
        assert "secret" not in repr(server) + repr(server.logins)
        answer = await exchange(server, b"get a\r\n")
        assert answer == b"CLIENT_ERROR unauthenticated\r\n"
        for name, password in (("alice", "secret"), ("bob", "x:y")):
            async with Client([server.address], username=name, password=password) as client:
                assert await client.set("k", name) and await client.get("k") == name
                told = (await client.stats())[server.address]
        assert (told["auth_cmds"], told["auth_errors"]) == ("2", "0")
        async with Client([server.address], username="alice", password="no") as client:
            expect_log("tornado_memcache", "username and password", times=range(9))
            with pytest.raises(AuthenticationError):
                await client.get("k")
        assert server.logins.refused


@pytest.mark.gen_test
async def test_both_dialects_are_spoken_on_one_connection():
    async with EmbeddedServer() as server:
        data = b"ms k 1 F5\r\nv\r\nget k\r\nmg k v f\r\nmg z q\r\nmn\r\n"
        answer = b"HD\r\nVALUE k 5 1\r\nv\r\nEND\r\nVA 1 f5\r\nv\r\nMN\r\n"
        assert await exchange(server, data, b"MN\r\n") == answer


@pytest.mark.gen_test
async def test_limits_and_settings_are_told(tmp_path):
    async with EmbeddedServer(max_bytes=5000, max_item_size=900, max_items=3) as server:
        told = await exchange(server, b"stats settings\r\n", b"END\r\n")
        assert b"STAT maxbytes 5000\r\n" in told and b"STAT item_size_max 900\r\n" in told
        for number in range(9):
            await exchange(server, store(b"k%d" % number, b"v"))
        assert len(server.store) == 3
        assert (await exchange(server, store(b"k", b"x" * 901))).startswith(b"SERVER_ERROR")
    path = str(tmp_path / "socket")
    async with EmbeddedServer(path=path) as server:
        told = await exchange(server, b"stats settings\r\n", b"END\r\n")
        assert b"STAT tcpport 0\r\n" in told and f"domain_socket {path}".encode() in told


@pytest.mark.parametrize(
    "arguments, error, told",
    [
        ({"port": -1}, InvalidRequest, "port must be from 0"),
        ({"port": 65536}, InvalidRequest, "port must be from 0"),
        ({"port": "11211"}, TypeError, "port must be an int"),
        ({"host": None}, TypeError, "host must be a str"),
        ({"path": 5}, TypeError, "path must be a str"),
        ({"mode": 0o1777}, InvalidRequest, "mode must be from"),
        ({"ssl": True}, TypeError, "ssl must be an ssl.SSLContext"),
        ({"ssl": trusting()}, InvalidRequest, "ssl is a client's context"),
        ({"clock": 5.0}, TypeError, "clock must be callable"),
        ({"max_items": 0}, InvalidRequest, "max_items must be from 1"),
        ({"max_bytes": 1.5}, TypeError, "max_bytes must be an int"),
        ({"max_item_size": 1 << 31}, InvalidRequest, "max_item_size must be from 1"),
        ({"max_clients": 0}, InvalidRequest, "max_clients must be from 1"),
        ({"users": {}}, InvalidRequest, "users: there must be at least one"),
        ({"users": {"a:b": "secret"}}, InvalidRequest, "users: username has a colon"),
        ({"users": ["alice"]}, TypeError, "users must be a dict"),
    ],
)
def test_bad_arguments_are_refused_by_name(arguments, error, told):
    with pytest.raises(error, match=told) as raised:
        EmbeddedServer(**arguments)
    assert "secret" not in str(raised.value)


@pytest.mark.gen_test
async def test_a_port_that_is_taken():
    async with EmbeddedServer() as server:
        second = EmbeddedServer(server.port)
        with pytest.raises(OSError):
            second.start()
        second.stop()


@pytest.mark.gen_test
@pytest.mark.parametrize("turned", [-3600, 3600])
async def test_items_live_as_long_although_the_wall_clock_is_turned(turned, monkeypatch):
    wall = time.time
    async with EmbeddedServer() as server:
        store = server.store
        assert abs(store.now() - wall()) < 60
        store.set(b"short", b"1", exptime=1)
        store.set(b"long", b"1", exptime=1000)
        monkeypatch.setattr(time, "time", lambda: wall() + turned)
        assert store.get(b"long") is not None
        end = time.monotonic() + 20
        while store.get(b"short") is not None:
            assert time.monotonic() < end
            await asyncio.sleep(0.02)
        assert store.get(b"long") is not None


@pytest.mark.gen_test
async def test_a_clock_that_a_test_turns():
    clock = Hand(1_700_000_000.0)
    async with EmbeddedServer(clock=clock) as server:
        await exchange(server, store(b"a", b"1", b"0 60"))
        clock.turn(59)
        assert await exchange(server, b"get a\r\n", b"END\r\n") != b"END\r\n"
        clock.turn(1)
        assert await exchange(server, b"get a\r\n", b"END\r\n") == b"END\r\n"
        assert b"STAT uptime 60\r\n" in await exchange(server, b"stats\r\n", b"END\r\n")


@pytest.mark.gen_test
async def test_too_many_clients():
    async with EmbeddedServer(max_clients=2) as server:
        peers = [await connect(server) for _ in range(2)]
        for reader, writer in peers:
            writer.write(b"version\r\n")
            await reader.readline()
        reader, writer = await connect(server)
        assert await reader.read() == b"ERROR Too many open connections\r\n"
        await leave(writer)
        await leave(peers[0][1])
        await asyncio.sleep(0.05)
        assert await exchange(server, b"version\r\n") == b"VERSION 1.6.18\r\n"
        await leave(peers[1][1])


# -- reading and writing


@pytest.mark.gen_test
async def test_one_write_for_all_replies_to_a_read(monkeypatch):
    writes = []
    write = Guest._write

    def noted(guest, pieces):
        writes.append(b"".join(pieces))
        write(guest, pieces)

    monkeypatch.setattr(Guest, "_write", noted)
    async with EmbeddedServer() as server:
        reader, writer = await connect(server)
        writer.write(b"version\r\n" * 1000)
        await reader.readexactly(len(b"VERSION 1.6.18\r\n") * 1000)
        await leave(writer)
    assert len(writes) <= 2 and b"".join(writes) == b"VERSION 1.6.18\r\n" * 1000


@pytest.mark.gen_test(timeout=20)
async def test_a_client_that_does_not_read_is_not_read_and_holds_up_nobody():
    async with EmbeddedServer() as server:
        await exchange(server, store(b"a", b"x" * 1_000_000))
        reader, writer = await connect(server)
        tracemalloc.start()
        try:
            # 10 000 answers of 1 MB each; asked in one line and in many.
            writer.write((b"get" + b" a" * 5000 + b"\r\n") + b"get a\r\n" * 5000)
            await asyncio.sleep(0.2)
            assert await exchange(server, b"version\r\n") == b"VERSION 1.6.18\r\n"
            assert tracemalloc.get_traced_memory()[1] < 16_000_000
        finally:
            tracemalloc.stop()
        received = 0
        while received < 50_000_000:
            received += len(await reader.read(1_000_000))
        await leave(writer)


@pytest.mark.gen_test(timeout=20)
async def test_a_client_that_always_sends_does_not_keep_the_loop():
    async with EmbeddedServer() as server:
        reader, writer = await connect(server)

        async def flood():
            while True:
                writer.write(b"delete a noreply\r\n" * 10_000)
                await writer.drain()

        flooding = asyncio.ensure_future(flood())
        for _ in range(8):
            assert await exchange(server, b"version\r\n") == b"VERSION 1.6.18\r\n"
        flooding.cancel()
        await asyncio.wait([flooding])
        await leave(writer)


@pytest.mark.gen_test
async def test_clients_are_served_in_an_empty_context(monkeypatch):
    variable = contextvars.ContextVar("variable", default=None)
    variable.set("the starter's")
    seen = []
    real = StoreHandler.__call__

    def noted(handler, request):
        seen.append(variable.get())
        return real(handler, request)

    monkeypatch.setattr(StoreHandler, "__call__", noted)
    async with EmbeddedServer() as server:
        await exchange(server, b"version\r\n")
    assert seen == [None]


def test_a_verb_that_the_store_does_not_know():
    handler = StoreHandler(Store(lambda: 0.0))
    assert handler(Request(b"watch")) == Reply(b"ERROR")
