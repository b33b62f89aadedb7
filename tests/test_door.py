"""tornado_memcache.door: who is let in and who is sent away, on real sockets."""

import asyncio
import contextlib
import errno
import logging
import os
import resource
import socket

import pytest

from tornado_memcache.door import SocketFile, listen_on
from tornado_memcache.guest import Limits
from tornado_memcache.protocol import Reply

from .asked import until
from .doors import Door, connect, exchange, leave

VERSION = b"VERSION 1\r\n"


def version(request):
    return Reply(b"VERSION", text=b"1")


@pytest.mark.gen_test
async def test_out_of_descriptors_it_pauses_says_so_once_a_second_and_goes_on(expect_log):
    logged = expect_log("tornado_memcache.door", "no clients are let in: Too many open files")
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    async with Door(version) as server:
        reader, writer = await connect(server)
        writer.write(b"version\r\n")
        await reader.readline()
        peers = [socket.socket() for _ in range(20)]
        # Those below are taken already: not one more can be opened.
        resource.setrlimit(resource.RLIMIT_NOFILE, (peers[0].fileno(), hard))
        try:
            for peer in peers:
                peer.setblocking(False)
                assert peer.connect_ex((server.host, server.port)) in (0, errno.EINPROGRESS)
            loop = asyncio.get_running_loop()
            begun, used = loop.time(), os.times()
            await asyncio.sleep(1.2)  # (long enough for a second line, not for a third)
            spent = os.times()
            assert 1 <= logged.count <= 1 + (loop.time() - begun)
            busy = spent.user + spent.system - used.user - used.system
            assert busy < 0.5 * (loop.time() - begun)  # (it does not try all the time)
            writer.write(b"version\r\n")
            assert await reader.readline() == VERSION  # (who is in is served)
        finally:
            resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
        for peer in peers:
            await loop.sock_sendall(peer, b"version\r\n")
            assert await asyncio.wait_for(loop.sock_recv(peer, 100), 5) == VERSION
            peer.close()
        await leave(writer)


@pytest.mark.gen_test
async def test_a_client_is_never_counted_twice():
    async with Door(version, max_clients=20) as server:
        seen, peers = [0], []
        loop = asyncio.get_running_loop()

        def look():
            seen.append(server.door.connected)
            looking.append(loop.call_soon(look))

        looking = [loop.call_soon(look)]
        for _ in range(20):
            peers.append(await connect(server))
        for reader, writer in peers:
            writer.write(b"version\r\n")
            assert await reader.readline() == VERSION
        looking[-1].cancel()
        assert max(seen) == server.door.connected == 20
        assert not server.door.sent_away
        for _, writer in peers:
            await leave(writer)


@pytest.mark.gen_test
async def test_who_leaves_makes_room_at_once(expect_log):
    expect_log("tornado_memcache.door", "no clients are let in", times=1)
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    async with Door(version) as server:
        _, writer = await connect(server)
        await until(lambda: server.door.connected == 1)
        peer = socket.socket()
        peer.setblocking(False)
        resource.setrlimit(resource.RLIMIT_NOFILE, (peer.fileno(), hard))
        try:
            peer.connect_ex((server.host, server.port))
            await until(lambda: server.door._paused is not None)
            begun = asyncio.get_running_loop().time()
            await leave(writer)
            loop = asyncio.get_running_loop()
            await loop.sock_sendall(peer, b"version\r\n")
            assert await asyncio.wait_for(loop.sock_recv(peer, 100), 5) == VERSION
            assert loop.time() - begun < 0.75  # (and not when the pause of a second is over)
        finally:
            resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
            peer.close()


@pytest.mark.gen_test
async def test_one_above_the_number_of_clients_is_turned_away():
    async with Door(version, max_clients=1) as server:
        reader, writer = await connect(server)
        writer.write(b"version\r\n")
        assert await reader.readline() == VERSION
        other, writer_of_other = await connect(server)
        assert await other.read() == b"ERROR Too many open connections\r\n"
        await leave(writer_of_other)
        assert server.door.sent_away == {"too many clients": 1}
        await leave(writer)
        await until(lambda: not server.door.connected)
        assert await exchange(server, b"version\r\n") == VERSION


@pytest.mark.gen_test
async def test_draining_answers_what_was_asked_and_lets_nobody_in():
    gate, asked = asyncio.Event(), []

    async def handler(request):
        asked.append(request.keys[0])
        await gate.wait()
        return Reply(b"END")

    async with Door(handler) as server:
        idle = await connect(server)
        half = await connect(server)
        half[1].write(b"get")
        reader, writer = await connect(server)
        writer.write(b"get a\r\nget b\r\n")
        await until(lambda: len(asked) == 2 and server.door.connected == 3)
        draining = asyncio.ensure_future(server.door.drain(10))
        assert await idle[0].read() == b"" and await half[0].read() == b""
        with pytest.raises(ConnectionRefusedError):
            await connect(server)
        gate.set()
        assert await draining is True
        assert await reader.read() == b"END\r\nEND\r\n" and asked == [b"a", b"b"]
        for one in (idle[1], half[1], writer):
            await leave(one)


@pytest.mark.gen_test
async def test_draining_has_an_end():
    asked = asyncio.Event()

    async def handler(request):
        asked.set()
        await asyncio.Event().wait()

    async with Door(handler) as server:
        reader, writer = await connect(server)
        writer.write(b"get a\r\n")
        await asked.wait()
        assert await server.door.drain(0.01) is False
        assert not server.door.connected
        await leave(writer)


@pytest.mark.gen_test
@pytest.mark.parametrize(
    "sent, why",
    [
        (b"", "it asks for nothing"),
        (b"version\r\n", "it asks for nothing"),
        (b"version\r\nget a", "half a request came, and no more"),
        (b"version\r\nset a 0 0 100\r\n" + b"x" * 99, "half a request came, and no more"),
    ],
)
async def test_who_is_slow_or_does_nothing_is_sent_away(sent, why, expect_log):
    told = expect_log("tornado_memcache.door", why, level=logging.INFO, times=1)
    level = logging.getLogger("tornado_memcache.door").level
    logging.getLogger("tornado_memcache.door").setLevel(logging.INFO)
    lengths = Limits(receive_timeout=0.05, idle_timeout=0.1)
    try:
        async with Door(version, limits=lengths) as server:
            reader, writer = await connect(server)
            writer.write(sent)
            with_reset = (ConnectionResetError, asyncio.IncompleteReadError)
            try:
                assert await asyncio.wait_for(reader.read(), 5) in (b"", VERSION)
            except with_reset:
                pass
            assert server.door.sent_away == {why: 1} and told.count == 1
            await leave(writer)
    finally:
        logging.getLogger("tornado_memcache.door").setLevel(level)


@pytest.mark.gen_test
async def test_limits_that_come_later_hold_for_who_is_there_already():
    async with Door(version, limits=Limits()) as server:
        reader, writer = await connect(server)
        await until(lambda: server.door.connected)
        server.door.limit(Limits(idle_timeout=0.1))
        with contextlib.suppress(ConnectionResetError):
            assert await asyncio.wait_for(reader.read(), 20) == b""
        assert server.door.sent_away == {"it asks for nothing": 1}
        await leave(writer)


@pytest.mark.gen_test
async def test_a_byte_now_and_then_is_no_request():
    async with Door(version, limits=Limits(receive_timeout=0.3, idle_timeout=60)) as server:
        _, writer = await connect(server)
        loop = asyncio.get_running_loop()
        begun = loop.time()
        while not server.door.sent_away and loop.time() - begun < 10:
            writer.write(b"x")
            await asyncio.sleep(0.02)
        assert server.door.sent_away == {"half a request came, and no more": 1}
        await leave(writer)


def test_a_unix_socket_that_somebody_listens_on_is_not_taken_away(tmp_path):
    path = str(tmp_path / "socket")
    with listen_on(socket.AF_UNIX, path), socket.socket(socket.AF_UNIX) as peer:
        with pytest.raises(OSError, match="already in use: a server listens there") as caught:
            listen_on(socket.AF_UNIX, path)
        assert (caught.value.errno, caught.value.filename) == (errno.EADDRINUSE, path)
        peer.connect(path)


def test_nor_one_with_many_who_wait_to_be_let_in(tmp_path):
    path = str(tmp_path / "socket")
    with contextlib.ExitStack() as stack:
        other = stack.enter_context(socket.socket(socket.AF_UNIX))
        other.bind(path)
        other.listen(0)
        with contextlib.suppress(BlockingIOError):
            while True:
                peer = stack.enter_context(socket.socket(socket.AF_UNIX))
                peer.setblocking(False)
                peer.connect(path)
        with pytest.raises(OSError, match="a server listens there"):
            listen_on(socket.AF_UNIX, path)
        assert os.path.exists(path)


def test_nor_what_is_no_socket_that_we_could_ask(tmp_path):
    file, datagrams = tmp_path / "file", tmp_path / "datagrams"
    file.write_text("mine")
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as other:
        other.bind(str(datagrams))
        for path in (file, datagrams):
            with pytest.raises(OSError):
                listen_on(socket.AF_UNIX, str(path))
            assert path.exists()


def test_a_unix_socket_that_was_left_behind_is_taken_away(tmp_path):
    path = str(tmp_path / "socket")
    listen_on(socket.AF_UNIX, path).close()
    assert os.path.exists(path)
    with listen_on(socket.AF_UNIX, path) as listening:
        file = SocketFile(listening)
        assert path in repr(file)
        file.unlink()
        assert not os.path.exists(path)
        file.unlink()


def test_a_path_that_has_become_anothers_stays(tmp_path):
    path = str(tmp_path / "socket")
    with listen_on(socket.AF_UNIX, path) as listening:
        file = SocketFile(listening)
        os.unlink(path)
        with listen_on(socket.AF_UNIX, path):
            file.unlink()
            assert os.path.exists(path)
            file.unlink()
            assert os.path.exists(path)
