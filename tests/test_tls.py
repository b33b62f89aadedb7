"""Segments over TLS, and the context that is made or refused; against a real memcached too."""

from __future__ import annotations

import asyncio
import os
import socket
import ssl

import pytest

from tornado_memcache import Client, ConnectionFailed, InvalidRequest, InvalidServer, memcache
from tornado_memcache.stream import MOST_SEGMENTS, SEGMENT, SegmentStream
from tornado_memcache.tls import (
    _CLEAR,
    RECORD,
    SecureStream,
    checked_context,
    handshake_failure,
    records,
)

from .certificates import (
    authority,
    for_server,
    issued,
    memcached_arguments,
    trusting,
)
from .scripted import Expect, Reset, Scripted, Send
from .test_stream import Receiver, turns


@pytest.fixture(scope="module")
def secure_memcached(tmp_path_factory, memcached_binary):
    from .memcacheds import Memcached

    arguments = memcached_arguments(tmp_path_factory.mktemp("tls"), issued("127.0.0.1"))
    server = Memcached(["-I", "8m", *arguments], ssl_context=trusting())
    yield server
    server.close()


# -- the context


def test_true_verifies_certificate_and_name_from_tls_1_2_on():
    context = checked_context(True)
    assert context.verify_mode is ssl.CERT_REQUIRED
    assert context.check_hostname
    assert context.minimum_version is ssl.TLSVersion.TLSv1_2


def test_a_context_of_ones_own_is_kept_and_none_is_none():
    context = trusting()
    assert checked_context(context) is context
    assert checked_context(None) is checked_context(False) is None


@pytest.mark.parametrize("wrong", [1, "yes", {"certfile": "x"}, ssl, object()])
def test_what_is_no_context(wrong):
    with pytest.raises(TypeError, match="ssl must be"):
        Client(["127.0.0.1"], ssl=wrong)


def test_a_context_for_servers_is_refused():
    with pytest.raises(InvalidRequest, match="ssl is a server's"):
        Client(["127.0.0.1"], ssl=for_server("127.0.0.1"))


def test_a_unix_socket_has_no_tls():
    with pytest.raises(InvalidServer, match="unix:/x"):
        Client(["127.0.0.1", "unix:/x"], ssl=True)
    client = Client(["127.0.0.1"], ssl=True)
    with pytest.raises(InvalidServer, match="unix:/x"):
        client.set_servers(["unix:/x"])
    assert [server.name for server in client.servers] == ["127.0.0.1:11211"]
    client.close()


# -- what a failed handshake is told as


def failing(reason):
    error = ssl.SSLError(1, f"[SSL: {reason}] something")
    error.reason = reason
    return error


@pytest.mark.parametrize(
    ("cause", "told"),
    [
        (failing("WRONG_VERSION_NUMBER"), (f"the server {_CLEAR}", None)),
        (failing("NO_SHARED_CIPHER"), ("NO_SHARED_CIPHER", None)),
        (ConnectionResetError(104, "Connection reset by peer"), ("Connection reset by peer", 104)),
        (OSError("Stream is closed"), ("the server closed the connection", None)),
    ],
)
def test_why_a_handshake_failed(cause, told):
    assert handshake_failure(cause) == (f"TLS handshake failed: {told[0]}", told[1])


# -- records

SMALL, HEAD, END = b"get k\r\n", b"set k 0 0 20000\r\n", b"\r\n"
LONG, FULL = b"v" * 20_000, b"x" * (RECORD + 200)


@pytest.mark.parametrize(
    ("pieces", "written"),
    [
        ([], []),
        ([SMALL] * 3, [SMALL * 3]),
        ([b"a" * 9000, b"b" * 9000, SMALL], [b"a" * 9000, b"b" * 9000 + SMALL]),
        ([SMALL, HEAD, LONG, END, SMALL], [SMALL + HEAD, LONG + END, SMALL]),
        ([FULL, SMALL], [FULL, SMALL]),
        ([SMALL, FULL, FULL], [SMALL, FULL, FULL]),
    ],
)
def test_no_request_stands_behind_the_end_of_a_block_of_an_earlier_record(pieces, written):
    assert list(records(pieces)) == written


# -- the stream


@pytest.fixture
def pair(io_loop):
    """A connected stream of ours that is not secure yet, and the other side of it."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        ours = socket.create_connection(listener.getsockname())
        theirs, _ = listener.accept()
    theirs.settimeout(5)
    theirs.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    stream = SegmentStream(ours)
    yield stream, theirs
    stream.close()
    theirs.close()


async def handshaken(pair):
    stream, theirs = pair
    loop = asyncio.get_running_loop()
    secure = SecureStream.over(stream, trusting(), "127.0.0.1")
    server = for_server("127.0.0.1")
    answering = loop.run_in_executor(None, lambda: server.wrap_socket(theirs, server_side=True))
    await secure.wait_for_handshake()
    return secure, await answering


@pytest.mark.gen_test
async def test_it_takes_the_connection_over(pair):
    stream, _ = pair
    secure, peer = await handshaken(pair)
    receiver = secure.receiver = Receiver()
    assert stream.closed() and secure.reading()
    assert secure.send_pieces([b"a", b"b", b"c"], 3) is None
    assert peer.recv(10) == b"abc"
    peer.sendall(b"one two")
    await turns(lambda: receiver.data)
    assert receiver.data == b"one two"
    peer.close()
    await turns(lambda: receiver.ended)
    assert receiver.ended == [None] and not secure.reading()


@pytest.mark.gen_test
async def test_what_waits_in_the_ssl_layer_is_read_without_another_event(pair):
    secure, peer = await handshaken(pair)
    receiver = secure.receiver = Receiver(bytearray(100))
    peer.sendall(bytes(range(100)))  # one record, of which each read takes one byte

    class One(Receiver):
        def receiving(self):
            return memoryview(self.buffer)[self.counts : self.counts + 1]

    receiver = secure.receiver = One(bytearray(100))
    await turns(lambda: receiver.counts == 100)
    assert bytes(receiver.buffer) == bytes(range(100))
    secure.close()
    peer.close()


@pytest.mark.gen_test
async def test_what_the_socket_does_not_take_follows_in_order(pair):
    secure, peer = await handshaken(pair)
    secure.receiver = Receiver()
    pieces = [b"head", os.urandom(8 << 20), b"\r\n", b"next", os.urandom(3 << 20)]
    rest = secure.send_pieces(pieces, sum(map(len, pieces)))
    assert rest is not None and secure.writing()
    whole = b"".join(pieces)

    def drain():
        got = bytearray()
        while len(got) < len(whole):
            got += peer.recv(1 << 20)
        return bytes(got)

    got, _ = await asyncio.gather(asyncio.get_running_loop().run_in_executor(None, drain), rest)
    assert got == whole and not secure.writing()
    secure.close()
    peer.close()


SENDS = {"in one send": [b"x"], "the rest of a write": [b"x" * 8_000_000, b"y"]}


@pytest.mark.parametrize("sent", SENDS)
@pytest.mark.gen_test
async def test_what_came_before_a_send_that_fails_is_read_and_not_inside_it(pair, sent):
    secure, peer = await handshaken(pair)
    receiver = secure.receiver = Receiver()
    secure.send_pieces([b"never read"], 10)
    if sent != "in one send":
        secure.send_pieces(SENDS[sent], sum(map(len, SENDS[sent])))
    told = [os.urandom(1000) for _ in range(9)]
    for record in told:
        peer.sendall(record)
    peer.close()  # with something unread: a reset
    if sent == "in one send":
        secure.send_pieces(SENDS[sent], 1)
    else:
        secure.write(b"more")
    assert secure.writing() and secure.error is not None
    assert receiver.data == b"" and receiver.ended == []
    await turns(lambda: receiver.ended)
    assert receiver.data == b"".join(told)
    assert isinstance(receiver.ended[0], OSError)
    assert len(receiver.ended) == 1


@pytest.mark.parametrize("count", [0, 1, 4, 4 * MOST_SEGMENTS + 9])
@pytest.mark.gen_test
async def test_on_a_loop_that_tells_once_all_is_read_up_to_the_end(pair, count):
    secure, peer = await handshaken(pair)
    secure.told_once = True
    told = b"x" * RECORD * count
    receiver = secure.receiver = Receiver()
    secure.io_loop.remove_handler(secure.socket)
    await asyncio.get_running_loop().run_in_executor(None, peer.sendall, told)
    peer.close()
    secure.read_from_fd(b"")  # (nobody tells of it again)
    await turns(lambda: receiver.ended)
    assert receiver.data == told


@pytest.mark.gen_test
async def test_a_connection_that_is_lost_before_the_handshake_is_closed(pair):
    stream, theirs = pair
    theirs.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")
    theirs.close()
    with pytest.raises(OSError):
        SecureStream.over(stream, trusting(), "127.0.0.1")
    assert stream.closed()


@pytest.mark.gen_test
async def test_a_name_that_no_certificate_bears_closes_the_connection(pair):
    stream, _ = pair
    with pytest.raises(ValueError, match="server_hostname"):
        SecureStream.over(stream, trusting(), "")
    assert stream.closed()


# -- a real memcached


@pytest.mark.parametrize("kind", [Client, memcache.Client])
@pytest.mark.gen_test
async def test_every_size_comes_back_over_tls(kind, secure_memcached):
    client = kind([secure_memcached.address], ssl=trusting())
    for size in (0, 1, 16383, 16384, 16385, SEGMENT, 3 * SEGMENT + 7, 1 << 20):
        value = os.urandom(size)
        assert await client.set(f"size{size}", value) is True
        assert await client.get(f"size{size}") == value
    (client.close if kind is Client else client.disconnect_all)()


@pytest.mark.gen_test
async def test_many_callers_at_once_over_tls(secure_memcached):
    async with Client([secure_memcached.address], ssl=trusting()) as client:
        values = {f"many{n}": os.urandom(1 + n * 37 % 5000) for n in range(500)}
        assert await client.set_multi(values) == []
        big = os.urandom(700_000)
        await client.set("big", big)
        got = await asyncio.gather(
            *(client.get(key) for key in values), *(client.get("big") for _ in range(5))
        )
        assert got == [*values.values(), *[big] * 5]
        assert await client.get_multi(list(values)) == values


@pytest.mark.gen_test
async def test_a_client_with_a_certificate_of_its_own(start_memcached, tmp_path, expect_log):
    authority().cert_pem.write_to_path(tmp_path / "ca.pem")
    arguments = memcached_arguments(
        tmp_path, issued("127.0.0.1"), "ssl_verify_mode=2", f"ssl_ca_cert={tmp_path / 'ca.pem'}"
    )
    known = trusting()
    issued("a.client").configure_cert(known)
    server = start_memcached(arguments, ssl_context=known)
    async with Client([server.address], ssl=known) as client:
        assert await client.set("k", "v") is True
    expect_log("tornado_memcache", "fails|dead")
    async with Client([server.address], ssl=trusting()) as client:
        with pytest.raises(ConnectionFailed, match="demands a client's certi.*load_cert_") as told:
            await client.set("k", "stranger")
        assert told.value.phase == "tls" and not told.value.maybe_applied
    async with Client([server.address], ssl=known) as client:
        assert await client.get("k") == "v"


@pytest.mark.gen_test
async def test_a_client_in_the_clear_at_a_port_that_speaks_tls_is_asked_whether_it_does(expect_log):
    expect_log("tornado_memcache", "fails: .*does it speak TLS|dead", times=range(3))
    async with Scripted([Expect(b"get k\r\n"), Reset()]) as server:
        async with Client([server.address]) as client:
            with pytest.raises(ConnectionFailed, match=r"\(does it speak TLS\? ssl=\.\.\.\)"):
                await client.get("k")
    script = [Expect(b"get k\r\n"), Send(b"END\r\n"), Expect(b"set k 0 0 1\r\nv\r\n"), Reset()]
    expect_log("tornado_memcache", "fails|dead", times=range(3))
    async with Scripted(script) as server:
        async with Client([server.address]) as client:
            assert await client.get("k") is None
            with pytest.raises(ConnectionFailed) as told:
                await client.set("k", b"v")
            assert "TLS" not in str(told.value) and told.value.maybe_applied


@pytest.mark.gen_test
async def test_a_secure_server_that_was_restarted_is_not_noticed(start_memcached, tmp_path):
    arguments = memcached_arguments(tmp_path, issued("127.0.0.1"))
    server = start_memcached(arguments, ssl_context=trusting())
    async with Client([server.address], ssl=trusting()) as client:
        await client.set("k", "v")
        server.restart()
        assert await client.get("k") is None
