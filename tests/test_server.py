"""tornado_memcache.server: the embedded server on real sockets, beside a real memcached.

`ORACLE` is a table of byte streams, good and bad. Each goes to a memcached
and to an `EmbeddedServer`, and byte by byte through the same reader and
handler; the answers are equal byte for byte. Not in the table is what does
differ, and is meant to:

- a line of over 2 048 bytes, which memcached answers if it arrives in one
  segment and closes on if it does not: ours always closes;
- replies before a line that closes on a browser: memcached drops them;
- replies before a ``get`` with too long a key, in one segment: memcached
  drops those too;
- the keys of a ``gat`` before one that is too long: memcached touches them;
- ``flush_all`` after ``flush_all`` with a delay: memcached may bring back
  what the first one took;
- the meta and the administrative verbs, which are not here yet.
"""

import asyncio
import contextvars
import os
import re
import socket
import tracemalloc

import pytest

from tornado_memcache.guest import Guest, failure
from tornado_memcache.protocol import Reply, Request
from tornado_memcache.server import EmbeddedServer, StoreHandler
from tornado_memcache.store import Store
from tornado_memcache.text_server import RequestReader, Settled, encode_reply

from .doors import connect, exchange, leave
from .hand import Hand

KEY = b"k" * 250
BIG = b"x" * 1_048_516  # (the largest value under a key of one byte)


def store(key, value, words=b"0 0", verb=b"set", tail=b""):
    return b"%b %b %b %d%b\r\n%b\r\n" % (verb, key, words, len(value), tail, value)


ORACLE = {
    "set and get": store(b"a", b"1") + b"get a\r\nget b\r\nget a b a\r\n",
    "gets": store(b"a", b"1") + b"gets a\r\n" + store(b"a", b"2") + b"gets a b\r\n",
    "values": store(b"a", bytes(range(256)), b"7 0") + store(b"b", b"") + b"get a b\r\n",
    "a value like requests": store(b"a", b"get a\r\nEND\r\n") + b"get a\r\n",
    "the longest key": store(KEY, b"1") + b"get " + KEY + b"\r\n",
    "too long a key": b"get a " + KEY + b"k b\r\nversion\r\n",
    "too long a key, gat": b"gat 0 a " + KEY + b"k b\r\nversion\r\n",
    "too long a key, set": store(KEY + b"k", b"1") + b"version\r\n",
    "too long a key, noreply": store(KEY + b"k", b"1", tail=b" noreply") + b"version\r\n",
    "too long a key elsewhere": b"".join(
        line % (KEY + b"k")
        for line in (b"delete %b\r\n", b"incr %b 1\r\n", b"touch %b 0\r\n")
    ),
    "keys of odd bytes": store(b"\x01\t\x7f\xff", b"1") + b"get \x01\t\x7f\xff\r\n",
    "many keys": store(b"k99", b"1") + b"get" + b"".join(b" k%d" % i for i in range(100)) + b"\r\n",
    "add replace": store(b"a", b"1", verb=b"replace") + store(b"a", b"2", verb=b"add")
    + store(b"a", b"3", verb=b"add") + store(b"a", b"4", verb=b"replace") + b"gets a\r\n",
    "append prepend": store(b"a", b"1", verb=b"append") + store(b"a", b"1", verb=b"prepend")
    + store(b"a", b"b", b"5 0") + store(b"a", b"c", b"6 -1", b"append")
    + store(b"a", b"a", b"6 -1", b"prepend") + b"gets a\r\n",
    "cas": store(b"a", b"1") + store(b"a", b"2", verb=b"cas", tail=b" 0")
    + store(b"a", b"3", verb=b"cas", tail=b" %CAS%")
    + store(b"a", b"4", verb=b"cas", tail=b" %CAS%")
    + store(b"b", b"5", verb=b"cas", tail=b" 1") + b"gets a b\r\n",
    "cas, bad": store(b"a", b"1", verb=b"cas") + store(b"a", b"1", verb=b"cas", tail=b" x")
    + store(b"a", b"1", verb=b"cas", tail=b" -1") + store(b"a", b"1", verb=b"cas", tail=b" 1 2 3")
    + store(b"a", b"1", verb=b"cas", tail=b" noreply") + b"version\r\n",
    "cas, noreply": store(b"a", b"1", verb=b"cas", tail=b" 1 noreply")
    + store(b"a", b"1") + store(b"a", b"2", verb=b"cas", tail=b" %CAS% noreply") + b"gets a\r\n",
    "failed stores take no cas_unique": store(b"a", b"1") + store(b"a", b"2", verb=b"add")
    + store(b"b", b"2", verb=b"replace") + store(b"b", b"2") + b"gets a b\r\n",
    "delete": store(b"a", b"1") + b"delete a\r\ndelete a\r\nget a\r\n",
    "delete, odd": store(b"a", b"1") + b"delete\r\ndelete a 0\r\ndelete a 5\r\ndelete a noreply\r\n"
    b"delete a 0 noreply\r\ndelete a 1 noreply\r\ndelete a x noreply\r\ndelete a 0 0\r\n"
    b"delete a 0 noreply x\r\ndelete noreply\r\nget a\r\n",
    "touch": store(b"a", b"1") + b"touch a 100\r\ntouch b 1\r\ngets a\r\ntouch a -1\r\nget a\r\n",
    "touch, bad": b"touch\r\ntouch a\r\ntouch a x\r\ntouch a 1 2\r\ntouch a 1 2 3\r\n"
    b"touch a noreply\r\ntouch a 1 noreply\r\nversion\r\n",
    "gat": store(b"a", b"1") + b"gat 100 a b a\r\ngats 0 a\r\ngat -1 a\r\nget a\r\n",
    "gat, bad": b"gat\r\ngats\r\ngat 0\r\ngat x\r\ngat x a\r\ngat 1.5 a\r\ngax 0 a\r\n",
    "exptime": b"".join(
        store(b"a", b"1", b"0 " + exptime) + b"get a\r\n"
        for exptime in (b"0", b"100", b"-1", b"2592000", b"2592001", b"4102444800", b"4294967296",
                        b"4294967396", b"2147483648", b"+100", b"-0", b"x", b"", b"1e3",
                        b"9223372036854775808", b"99999999999999999999")
    ),
    "flags": b"".join(
        store(b"a", b"1", flags + b" 0") + b"get a\r\n"
        for flags in (b"4294967295", b"4294967296", b"-1", b"+5", b"0x5", b"1.5", b"5\t6", b"-0",
                      b"-18446744073709551615", b"18446744073709551616", b"9223372036854775808",
                      b"-9223372036854775808", b"0005", b"\t5", b"5\x0b")
    ),
    "lengths": b"".join(
        b"set a 0 0 %b\r\n1\r\nversion\r\n" % length
        for length in (b"1", b"+1", b"01", b"4294967297", b"-1", b"1x", b"0x1", b"", b"x", b"1.0",
                       b"2147483646", b"2147483647", b"-4294967295", b"99999999999999999999")
    ),
    "a block too short": b"set a 0 0 10\r\nabc\r\nversion\r\nversion\r\nget a\r\n",
    "a block too long": b"set a 0 0 3\r\nabcdef\r\nversion\r\nget a\r\n",
    "a block too long, noreply": b"set a 0 0 3 noreply\r\nabcdef\r\nversion\r\nget a\r\n",
    "a block too long by one": b"set a 0 0 3\r\nabcd\r\nversion\r\n",
    "a block with a bare LF": b"set a 0 0 1\r\nx\nversion\r\nversion\r\n",
    "a bad block leaves the old": store(b"a", b"1") + b"set a 0 0 1\r\nxyz\r\nget a\r\n",
    "the largest value": store(b"a", BIG) + b"get a\r\n",
    "too large": store(b"a", b"1") + store(b"a", BIG + b"x") + b"get a\r\n",
    "too large with flags": store(b"a", b"1") + store(b"a", BIG, b"1 0") + b"get a\r\n",
    "too large, add": store(b"a", b"1") + store(b"a", BIG + b"x", verb=b"add") + b"get a\r\n",
    "too large, noreply": store(b"a", b"1") + store(b"a", BIG + b"x", tail=b" noreply")
    + b"get a\r\n",
    "too large, appended": store(b"a", BIG[:-5], b"3 0") + store(b"a", b"123456", verb=b"append")
    + store(b"a", b"1", verb=b"append") + b"gets b\r\n" + store(b"b", b"") + b"gets b\r\n",
    "incr decr": store(b"n", b"10", b"3 0") + b"incr n 5\r\ngets n\r\ndecr n 6\r\ngets n\r\n"
    b"decr n 100\r\ngets n\r\nincr n 18446744073709551615\r\ngets n\r\nincr n 2\r\ngets n\r\n"
    b"incr m 1\r\ndecr m 1\r\n",
    "incr, values": b"".join(
        store(b"n", value) + b"incr n 1\r\nget n\r\ndecr n 3\r\nget n\r\n"
        for value in (b"", b" ", b"10 ", b"10  abc", b"abc", b" 10", b"-1", b"+5", b"00010", b"1.5",
                      b"18446744073709551615", b"18446744073709551616", b"1" * 25, b"99999",
                      b"0" * 25 + b"7", b"5\0x", b"\t5", b"5\tx", b"-18446744073709551615",
                      b"1\r\nx", b"\r\n7", b"5x", b"0")
    ),
    "incr, deltas": store(b"n", b"10") + b"".join(
        b"incr n %b\r\ndecr n %b\r\nget n\r\n" % (delta, delta)
        for delta in (b"0", b"-1", b"+1", b"1.5", b"x", b"", b"18446744073709551615",
                      b"18446744073709551616", b"-18446744073709551615", b"1\tx", b"noreply")
    ),
    "incr, words": store(b"n", b"1") + b"incr\r\nincr n\r\nincr n 1 2\r\nincr n 1 2 3\r\n"
    b"incr n 1 noreply\r\nincr m 1 noreply\r\nincr n x noreply\r\nget n\r\n",
    "incr of text, noreply": store(b"n", b"x") + b"incr n 1 noreply\r\nincr n 1\r\n",
    "noreply": store(b"a", b"1", tail=b" noreply")
    + store(b"a", b"2", verb=b"add", tail=b" noreply")
    + store(b"a", b"3", verb=b"append", tail=b" noreply") + b"touch a 0 noreply\r\n"
    b"verbosity 0 noreply\r\nget a\r\ndelete a noreply\r\nget a\r\nget a noreply\r\n",
    "noreply, not": store(b"a", b"1", tail=b" NOREPLY") + store(b"a", b"1", tail=b" x")
    + b"delete a NOREPLY\r\nversion noreply\r\n",
    "noreply, bad lines": b"set a 0 0 x noreply\r\nset a 0 0 noreply\r\nset a noreply\r\n"
    b"set noreply\r\nnonsense noreply\r\nversion\r\n",
    "flush_all": b"".join(
        store(b"a", b"1") + line + b"\r\nget a\r\n" + store(b"a", b"2") + b"gets a\r\n"
        for line in (b"flush_all", b"flush_all 0", b"flush_all -1", b"flush_all noreply",
                     b"flush_all 0 noreply", b"flush_all x", b"flush_all x noreply",
                     b"flush_all 0 0", b"flush_all 0 0 0", b"flush_all 2592001",
                     b"flush_all 4102444800", b"flush_all 1000", b"flush_all")
    ),
    "verbosity": b"verbosity\r\nverbosity 0\r\nverbosity x\r\nverbosity noreply\r\n"
    b"verbosity -1\r\nverbosity 0 0\r\nverbosity 0 noreply\r\nverbosity 0 0 0\r\n",
    "version": b"version\r\nversion 2 3\r\nVERSION\r\nversionx\r\n",
    "stats": b"stats reset\r\nstats nonsense\r\nstats items\r\nstats reset x\r\n",
    "unknown": b"\r\n\n \r\nx\r\nxy\r\nGET a\r\nSet a 0 0 1\r\nget\r\nget \r\ngets\r\ngetx a\r\n"
    b"a\r\nadx a\r\nappen a\r\nquitx\r\nset\r\nset a\r\nset a 0\r\nset a 0 0\r\n\x80\r\n"
    b"shutdown\r\n",
    "too many words": b"set a 0 0 1 noreply x\r\n1\r\nversion\r\nset" + b" x" * 50 + b"\r\n",
    "spaces": b"  get   a  \r\n   set  a  0  0  1  \r\n1\r\nget a\r\n get a\r\nget\ta\r\n",
    "bare LF": b"set a 0 0 1\n1\r\nget a\nversion\nget a\r\r\nget a\r\n",
    "CR in a line": b"get a\rb\r\nversion\rx\r\n\r\r\n",
    "NUL in a line": store(b"a", b"1") + b"get a\0b\r\n\0\r\nversion\0x\r\nget\0 a\r\n",
    "quit": b"version\r\nquit\r\nversion\r\n",
    "quit with words": b"version\r\nquit now noreply\r\nversion\r\n",
    "HTTP": b"GET / HTTP/1.1\r\nHost: x\r\n\r\n",
    "HTTP of a known letter": b"get / HTTP/1.1\r\nsearch / HTTP/1.1\r\nversion\r\n",
    "HTTP, POST": b"POST / HTTP/1.0\r\n\r\nflush_all\r\n",
    "a line without an end": b"x" * 3000,
    "a line of 2000 bytes": b"x" * 2000 + b"\r\n" + b"set a" + b" " * 2000 + b"0 0 1\r\n1\r\n",
    "a long get": store(b"k", b"1") + b"get" + b" x" * 5000 + b" k\r\n",
    "nothing": b"",
}  # fmt: skip


def ask(address, data):
    """Returns all that a server answers to ``data`` until it closes, or we do."""
    host, port = address.rsplit(":", 1)
    with socket.create_connection((host, int(port)), timeout=10) as peer:
        peer.sendall(data)
        peer.shutdown(socket.SHUT_WR)
        return b"".join(iter(lambda: peer.recv(65536), b""))


def run_ask(server, data):
    async def asked():
        async with server:
            return await asyncio.to_thread(ask, server.address, data)

    return asyncio.run(asked())


def by_bytes(data, store_, step=1):
    """Returns what reader and handler make of ``data`` in segments of ``step`` bytes."""
    reader, handler, answer = RequestReader(store_.too_large), StoreHandler(store_), b""
    for i in range(0, len(data), step):
        for one in reader.receive_data(data[i : i + step]):
            if isinstance(one, Settled):
                answer += one.line + b"\r\n" if one.line else b""
                continue
            try:
                reply = handler(one)
            except Exception as error:
                reply = failure(error)
            answer += b"".join(encode_reply(one, reply))
    return answer


def last_cas_unique(address):
    reply = ask(address, b"flush_all\r\nset a 0 0 1\r\n1\r\ngets a\r\ndelete a\r\n")
    return int(re.search(rb"VALUE a 0 1 (\d+)", reply)[1])


def answers(memcached, name):
    """Returns what a memcached, our server and our parts answer to a stream of the table."""
    cas_unique = last_cas_unique(memcached.address)
    data = ORACLE[name].replace(b"%CAS%", b"%d" % (cas_unique + 1))
    expected = ask(memcached.address, data)
    server = EmbeddedServer()
    server.store._cas_unique = cas_unique
    ours = [run_ask(server, data)]
    for step in (1, 7, 1000) if len(data) < 100_000 else (100, 4096, 65536):
        fresh = Store(lambda: 1_700_000_000.0)
        fresh._cas_unique = cas_unique
        ours.append(by_bytes(data, fresh, step))
    return expected, ours


@pytest.mark.parametrize("name", ORACLE)
def test_it_answers_as_memcached_does(start_memcached, name):
    memcached = start_memcached()  # a new one: flush_all leaves traces in "stats items"
    expected, ours = answers(memcached, name)
    for _ in range(4):
        # A number keeps its length only while none of memcached's own
        # threads looks at the item: about once in 400 times one does.
        if not name.startswith("incr") or ours == [expected] * 4:
            break
        expected, ours = answers(memcached, name)
    assert ours == [expected] * 4


def test_the_names_of_stats_are_those_of_memcached(memcached):
    def names(reply):
        lines = reply.split(b"\r\n")
        assert lines[-2:] == [b"END", b""]
        return {line.split()[1] for line in lines[:-2]}

    for argument in (b"", b" settings", b" slabs"):
        data = b"stats%b\r\n" % argument
        assert names(run_ask(EmbeddedServer(), data)) <= names(ask(memcached.address, data))


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
async def test_a_port_that_is_taken():
    async with EmbeddedServer() as server:
        second = EmbeddedServer(server.port)
        with pytest.raises(OSError):
            second.start()
        second.stop()


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
    assert handler(Request(b"mg", (b"a",))) == Reply(b"ERROR")
