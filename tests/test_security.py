"""The security promises of ``docs/security.rst`` that concern the client, one section for each.

What is never told is shown in `test_security_told.py`, TLS in `test_tls.py`
and `test_faults_tls.py`, bad input in `test_bad_input.py` and
`test_bad_input_faces.py`, and that what is accepted is one line in
`test_round_trips.py`.
"""

from __future__ import annotations

import ast
import contextlib
import inspect
import pickle
import re
import subprocess
import sys
import tracemalloc
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from tornado_memcache import (
    Client,
    Plain,
    ProtocolError,
    Request,
    SerializationError,
)
from tornado_memcache import memcache as drop_in
from tornado_memcache import tornadoasyncmemcache as old_module
from tornado_memcache.pickles import Pickle, SignedPickle
from tornado_memcache.protocol import (
    END_BYTES,
    LARGE_WORK,
    MAX_LINE,
    STREAMED_BLOCK,
    OwedReplies,
    Slot,
)
from tornado_memcache.serializer import FLAG_COMPRESSED
from tornado_memcache.slots import slot_for
from tornado_memcache.stream import SEGMENT
from tornado_memcache.text import MAX_STATS, MAX_STATS_BYTES, headers

from .scripted import Expect, Scripted, Send
from .test_house import PACKAGE, ROOT, trees
from .test_round_trips import called

MB = 1024 * 1024
SECRET = b"xyzzy-secret-of-the-house"

FACES = {
    "Client": Client,
    "memcache": drop_in.Client,
    "tornadoasyncmemcache": old_module.Client,
}
each_face = pytest.mark.parametrize("face", FACES)


async def fetched(client: Any, key: Any) -> Any:
    """Gets a value in the client's own style."""
    if isinstance(client, old_module.Client):
        return await called(client.get, key)
    return await client.get(key)


# -- 1. lines are made in one place

#: These only look for a line's end.
_LOOKS = {"find", "startswith", "endswith", "partition", "split"}
#: The server's side writes replies.
_SERVERS = {"door", "guest", "meta_server", "prefixes", "relay", "server", "text_server"}


def line_ends(tree: ast.Module) -> Iterator[str]:
    """Yields the functions in which a CRLF is put somewhere, rather than looked for."""
    for function in ast.walk(tree):
        if not isinstance(function, (ast.FunctionDef, ast.AsyncFunctionDef)):
            continue
        looked = set()
        for node in ast.walk(function):
            called_as = ast.unparse(node.func) if isinstance(node, ast.Call) else ""
            if isinstance(node, ast.Compare) or called_as.rpartition(".")[2] in _LOOKS:
                looked |= {id(one) for one in ast.walk(node)}
        for node in ast.walk(function):
            if isinstance(node, ast.Constant) and isinstance(node.value, bytes):
                if b"\n" in node.value and id(node) not in looked:
                    yield function.name


def test_one_function_makes_the_lines_and_one_ends_the_block():
    found = {
        f"{module}.{name}"
        for module, tree in trees().items()
        if module not in _SERVERS
        for name in line_ends(tree)
    }
    assert found == {"text.line_of", "text._encode_storage", "text._encode_meta"}
    storage = inspect.getsource(sys.modules["tornado_memcache.text"]._encode_storage)
    # There it stands behind the block only: the line is made by `line_of`.
    assert re.findall(r'b"[^"]*\\r\\n"', storage) == [r'b"%b%b\r\n"', r'b"\r\n"']
    assert "(line_of(tokens), block)" in storage and "[line_of(tokens), block, " in storage


#: memcached takes the block of a line with such a key for a command.
TOO_LONG = "k" * 300


@pytest.mark.gen_test
async def test_a_line_with_a_key_that_is_too_long_would_be_a_command(memcached):
    """So that what follows can fail."""
    memcached.ask(b"set there 0 0 1\r\nv\r\n")
    memcached.ask(b"set %b 0 0 9\r\nflush_all\r\n" % TOO_LONG.encode(), b"OK\r\n")
    assert memcached.ask(b"get there\r\n", b"END\r\n") == b"END\r\n"


UNCHECKED: dict[str, Callable[[str], Any]] = {
    "Client": lambda address: Client([address], key_prefix="p" * 200),
    "memcache": lambda address: drop_in.Client(
        [address], check_keys=False, server_max_key_length=0, server_max_value_length=0
    ),
    "memcache with long keys": lambda address: drop_in.Client(
        [address], server_max_key_length=10_000, key_encoder=lambda key: key
    ),
    "tornadoasyncmemcache": lambda address: old_module.ClientPool([address]),
}


@pytest.mark.parametrize("kind", UNCHECKED)
@pytest.mark.gen_test
async def test_a_long_key_with_the_value_flush_all_never_flushes(kind, memcached):
    memcached.ask(b"set there 0 0 1\r\nv\r\n")
    flushed = memcached.stats()["cmd_flush"]
    with contextlib.closing(UNCHECKED[kind](memcached.address)) as client:
        for key in (TOO_LONG, TOO_LONG.encode(), (1, TOO_LONG), "a b\r\nflush_all\r\n", "\n"):
            for name in ("set", "add", "replace", "append", "prepend", "set_multi"):
                method = getattr(client, name, None)
                arguments = ({key: "flush_all"},) if name == "set_multi" else (key, "flush_all")
                if method is not None:
                    with pytest.raises(Exception, match="(?i)key"):
                        method(*arguments)
        native = client if isinstance(client, Client) else client._native
        with pytest.raises(ValueError):
            native.request(Request(b"set", (TOO_LONG.encode(),), b"flush_all"))
        assert await fetched(client, "there") in (None, b"v")
    assert memcached.ask(b"get there\r\n", b"END\r\n") == b"VALUE there 0 1\r\nv\r\nEND\r\n"
    assert memcached.stats()["cmd_flush"] == flushed


# -- 2. no pickle unless asked for

SPRUNG: list[str] = []


def spring() -> None:
    SPRUNG.append("read")


class Trap:
    """Its pickle tells that it was read."""

    def __reduce__(self) -> Any:
        return (spring, ())


@pytest.mark.gen_test
async def test_a_pickle_is_not_read_unless_it_is_asked_for(memcached):
    """Whoever reads it runs what its writer chose."""
    SPRUNG.clear()
    async with Client([memcached.address]) as mc:
        trap = pickle.dumps(Trap())
        packed = zlib.compress(trap * 9)
        await mc.request(Request(b"set", (b"k",), trap, 1))
        await mc.request(Request(b"set", (b"z",), packed, 1 | FLAG_COMPRESSED))
        for key in ("k", "z"):
            for call in (mc.get(key), mc.gets(key), mc.gat(key, 60), mc.gats(key, 60)):
                with pytest.raises(SerializationError, match=r"refused.*opt in.*serializer="):
                    await call
            found = await mc.get_multi([key])
            assert found == {} and isinstance(found.errors[memcached.address], SerializationError)
        with pytest.raises(SerializationError):
            mc.set("k", [1])
    async with Client([memcached.address], serializer=SignedPickle([SECRET])) as mc:
        with pytest.raises(SerializationError, match="without a signature"):
            await mc.get("k")
    assert SPRUNG == []
    for reads in (
        Client([memcached.address], serializer=Pickle()),
        drop_in.Client([memcached.address]),
        old_module.Client([memcached.address]),
    ):
        with contextlib.closing(reads) as mc:
            await fetched(mc, "k")
    assert SPRUNG == ["read"] * 3


@pytest.mark.gen_test
async def test_a_face_can_be_told_to_read_no_pickles(memcached, expect_log):
    SPRUNG.clear()
    expect_log("tornado_memcache", "pickles are refused", times=1)
    careful = drop_in.Client([memcached.address], unpickler=drop_in.no_pickle)
    plain = old_module.Client([memcached.address], serializer=Plain())
    with contextlib.closing(careful), contextlib.closing(plain):
        await careful._native.request(Request(b"set", (b"k",), pickle.dumps(Trap()), 1))
        assert await careful.get("k") is None
        with pytest.raises(RuntimeError, match="opt in"):
            await fetched(plain, "k")
    assert SPRUNG == []


# -- 3. decompression is bounded


def bomb(size: int) -> bytes:
    maker = zlib.compressobj(9)
    zeros = bytes(MB)
    return b"".join([maker.compress(zeros) for _ in range(size // MB)] + [maker.flush()])


BOMB = bomb(200 * MB)
LIMITS = [
    ("Client", {}, 8 * MB),
    ("Client", {"max_decompressed_size": MB}, MB),
    ("memcache", {}, 8 * MB),
    ("tornadoasyncmemcache", {}, 8 * MB),
    ("tornadoasyncmemcache", {"max_decompressed_size": MB}, MB),
]


@pytest.mark.parametrize(("face", "how", "limit"), LIMITS, ids=str)
@pytest.mark.gen_test(timeout=30)
async def test_a_bomb_costs_the_limit_and_no_more(face, how, limit, memcached, ledger):
    ledger.excuse("log")
    assert len(BOMB) < 220_000
    memcached.ask(b"set bomb 8 0 %d\r\n%b\r\n" % (len(BOMB), BOMB))
    memcached.ask(b"set k 8 0 %d\r\n%b\r\n" % (len(zlib.compress(b"v")), zlib.compress(b"v")))
    with contextlib.closing(FACES[face]([memcached.address], **how)) as mc:
        assert await fetched(mc, "k") == b"v"
        tracemalloc.start()
        try:
            try:
                assert await fetched(mc, "bomb") is None  # (python-memcached's way to say it)
                assert face == "memcache"
            except (SerializationError, RuntimeError) as error:
                assert "decompresses to over" in str(error)
            _, peak = tracemalloc.get_traced_memory()
        finally:
            tracemalloc.stop()
        assert peak < limit + 2 * MB
        assert await fetched(mc, "k") == b"v"


_READER = """
import asyncio, sys
sys.path.insert(0, sys.argv[1])
from tornado_memcache import Client, SerializationError, memcache, tornadoasyncmemcache

async def fetched(mc, key):
    if sys.argv[3] != "tornadoasyncmemcache":
        return await mc.get(key)
    got = asyncio.get_running_loop().create_future()
    mc.get(key, got.set_result, lambda told: got.set_exception(SerializationError(*told)))
    return await got

def memory(name):
    with open("/proc/self/status") as status:
        return next(int(line.split()[1]) for line in status if line.startswith(name))

async def main():
    mc = {"Client": Client, "memcache": memcache.Client,
          "tornadoasyncmemcache": tornadoasyncmemcache.Client}[sys.argv[3]]([sys.argv[2]])
    assert await fetched(mc, "k") == b"v"
    with open("/proc/self/clear_refs", "w") as peak:
        peak.write("5")
    before = memory("VmRSS")
    try:
        assert await fetched(mc, "bomb") is None
    except SerializationError as error:
        assert "decompresses to over" in str(error)
    print((memory("VmHWM") - before) * 1024)
    mc.close()

asyncio.run(main())
"""


@each_face
def test_a_bomb_in_the_memory_of_a_process(face, memcached):
    memcached.ask(b"set bomb 8 0 %d\r\n%b\r\n" % (len(BOMB), BOMB))
    memcached.ask(b"set k 8 0 %d\r\n%b\r\n" % (len(zlib.compress(b"v")), zlib.compress(b"v")))
    line = [sys.executable, "-c", _READER, str(ROOT), memcached.address, face]
    done = subprocess.run(line, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    assert int(done.stdout) < 8 * MB + 2 * MB


# -- 4. caps on what a server can make us hold


def owed(verb: bytes, *keys: bytes, limit: int = MB, **fields: Any) -> tuple[OwedReplies, Slot]:
    loop_less = slot_for(Request(verb, keys, **fields), None, lambda reply: reply, 0.0)
    loop_less.encode()
    protocol = OwedReplies(limit)
    protocol.owed.append(loop_less)
    return protocol, loop_less


def feed(
    protocol: OwedReplies, pieces: Iterator[bytes], most: int, *, measured: bool = True
) -> tuple[int, int]:
    """Feeds a hostile reply until it is refused; returns bytes taken and peak memory."""
    taken = 0
    if measured:
        tracemalloc.start()
    try:
        for piece in pieces:
            while piece and protocol.failure is None:
                if protocol.block is None:
                    protocol.receive_data(piece)
                    taken += len(piece)
                    piece = b""
                    continue
                room = len(protocol.block) - protocol.filled
                protocol.block[protocol.filled : protocol.filled + len(piece[:room])] = piece[:room]
                protocol.receive_block(len(piece[:room]))
                taken += len(piece[:room])
                piece = piece[room:]
            if protocol.failure is not None:
                break
            assert taken <= most, "it goes on for ever"
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert isinstance(protocol.failure, ProtocolError)
    return taken, peak


def endless(piece: bytes) -> Iterator[bytes]:
    segment = piece * max(1, SEGMENT // len(piece))
    while True:
        yield segment


def numbered(piece: bytes) -> Iterator[bytes]:
    number, batch = 0, max(1, SEGMENT // len(piece))
    while True:
        yield b"".join([piece % (number + one) for one in range(batch)])
        number += batch


VERBS_ASKED = [(b"get", b"k"), (b"gets", b"k"), (b"set", b"k"), (b"incr", b"k"), (b"delete", b"k"),
               (b"version",), (b"stats",)]  # fmt: skip


@pytest.mark.parametrize("asked", VERBS_ASKED, ids=lambda asked: asked[0].decode())
@pytest.mark.parametrize("start", [b"", b"VALUE k 0 1", b"STAT ", b"VERSION ", b"SERVER_ERROR "])
def test_a_line_has_a_cap(asked, start):
    def pieces() -> Iterator[bytes]:
        yield start
        yield from endless(b"x" * 1000)

    protocol, _ = owed(*asked)
    taken, peak = feed(protocol, pieces(), 2 * MB)
    assert taken <= MAX_LINE + 2 * SEGMENT and peak < MB
    assert not protocol._tail and protocol.block is None


def test_an_item_has_a_cap_and_what_is_announced_is_not_allocated():
    for length in (MB + 1, 1 << 40, (1 << 63) - 1):
        protocol, _ = owed(b"get", b"k")
        headers.clear()
        taken, peak = feed(protocol, iter([b"VALUE k 0 %d\r\n" % length]), 100)
        assert peak < 100_000
    protocol, _ = owed(b"get", b"k")
    taken, peak = feed(protocol, endless(b"VALUE k 0 1048576\r\n" + b"x" * 50_000), 4 * MB)
    assert taken <= MB + 2 * SEGMENT and peak < 3 * MB


@pytest.mark.parametrize(
    "hostile",
    [
        lambda: endless(b"VALUE k0 0 60000\r\n" + b"x" * 60_000 + b"\r\n"),
        lambda: endless(b"VALUE k9 0 60000\r\n" + b"x" * 60_000 + b"\r\n"),
        lambda: numbered(b"VALUE k%d 0 60000\r\n" + b"x" * 60_000 + b"\r\n"),
    ],
    ids=["one item again and again", "the last item again", "more items than were asked"],
)
def test_what_one_get_multi_can_bring_has_a_cap(hostile):
    """No more items than keys, none twice, and each of at most max_value_size bytes."""
    keys = [b"k%d" % number for number in range(10)]
    limit = 64 * 1024
    protocol, slot = owed(b"get", *keys, limit=limit)
    _, peak = feed(protocol, hostile(), 200 * SEGMENT)
    assert sum(item is not None for item in slot.items) <= len(keys)  # type: ignore[attr-defined]
    assert peak < len(keys) * limit + MB


@pytest.mark.parametrize(
    "hostile",
    [
        lambda: numbered(b"STAT n%d 0\r\n"),
        lambda: numbered(b"STAT n%d " + b"x" * (MAX_LINE - 100) + b"\r\n"),
        lambda: numbered(b"ITEM n%d \xff\xff\xff\r\n"),
        lambda: endless(b"STAT same \r\n"),
        lambda: endless(b"PREFIX " + b"x" * 2000 + b"\r\n"),
    ],
    ids=["short", "long", "undecodable", "same name", "prefixes"],
)
def test_stats_have_a_cap_on_lines_and_on_bytes(hostile):
    protocol, slot = owed(b"stats")
    feed(protocol, hostile(), 3 * MAX_STATS_BYTES, measured=False)
    stats = slot._stats  # type: ignore[attr-defined]
    assert slot._lines <= MAX_STATS + 1  # type: ignore[attr-defined]
    assert slot._bytes <= MAX_STATS_BYTES + MAX_LINE  # type: ignore[attr-defined]
    held = sys.getsizeof(stats) + sum(map(sys.getsizeof, [*stats, *stats.values()]))
    assert held < 40 * MB


@pytest.mark.gen_test(timeout=30)
async def test_the_caps_on_stats_let_the_longest_of_a_real_server_pass(start_memcached):
    server = start_memcached(["-m", "200", "-o", "track_sizes"])
    lines = [b"set %d 0 0 1 noreply\r\nv\r\n" % number for number in range(120_000)]
    lines += [b"set s%d 0 0 %d noreply\r\n%b\r\n" % (n, n, b"x" * n) for n in range(0, 9000, 32)]
    server.ask(b"".join(lines) + b"version\r\n")
    async with Client([server.address], request_timeout=20) as mc:
        for argument, least in (("cachedump 1 0", 80_000), ("sizes", 200), ("items", 20)):
            (found,) = (await mc.stats(argument)).values()
            assert len(found) >= least, argument
        await mc.stats("detail on")
        await mc.set("prefix:k", 1)
        (found,) = (await mc.stats("detail dump")).values()
        assert found["prefix"] == "get 0 hit 0 set 1 del 0"
        for argument in ("detail off", "reset", "settings", "slabs", "conns", None):
            await mc.stats(argument)
        assert mc._pools[0].losses == 0


def test_what_a_parser_keeps_has_a_cap():
    protocol, _ = owed(b"get", b"k")
    protocol.receive_data(b"VALUE k 0 %d\r\n" % STREAMED_BLOCK)
    protocol.receive_data(b"x" * (STREAMED_BLOCK - 1))
    assert len(protocol._tail) < MAX_LINE + STREAMED_BLOCK
    # A large buffer is given back once it was idle for a while.
    protocol, _ = owed(b"get", b"k")
    protocol.receive_data(b"VALUE k 0 1000000\r\n")
    assert protocol.block is not None and len(protocol._buffer) == 1_000_002 + END_BYTES
    protocol.block[1_000_000:1_000_002] = b"\r\n"
    protocol.receive_block(1_000_002)
    protocol.receive_data(b"END\r\n")
    for _ in range(100):
        protocol.tidy()
    assert len(protocol._buffer) <= LARGE_WORK


@pytest.mark.gen_test
async def test_the_stream_keeps_nothing_of_its_own(memcached):
    async with Client([memcached.address]) as mc:
        await mc.set("k", b"x" * 1_000_000)
        await mc.get("k")
        (connection,) = mc._pools[0]._connections
        stream = connection._stream
        assert stream.read_chunk_size == 1 and len(stream._read_buffer) == 0
        assert connection._protocol.clean()


@pytest.mark.gen_test(timeout=30)
async def test_a_server_that_sends_on_for_ever_is_left(expect_log):
    expect_log("tornado_memcache", "fails|is taken for dead")
    flood = [Expect(b"stats\r\n"), *[Send(b"STAT n x\r\n" * 5000)] * 60, Send(b"STAT n x\r\n")]
    async with Scripted(flood) as server:
        async with Client([server.address], request_timeout=20) as mc:
            with pytest.raises(ProtocolError, match="lines or .* bytes"):
                await mc.stats()
            assert mc._pools[0].counts()["open"] == 0


# -- 5. the key of every VALUE is checked

ASKS: dict[str, tuple[bytes, Callable[[Client], Any]]] = {
    "get": (b"get key\r\n", lambda mc: mc.get("key")),
    "gets": (b"gets key\r\n", lambda mc: mc.gets("key")),
    "gat": (b"gat 60 key\r\n", lambda mc: mc.gat("key", 60)),
    "gats": (b"gats 60 key\r\n", lambda mc: mc.gats("key", 60)),
    "get_multi": (b"get key kex\r\n", lambda mc: mc.get_multi(["key", "kex"], strict=True)),
    "gets_multi": (b"gets key kex\r\n", lambda mc: mc.gets_multi(["key", "kex"], strict=True)),
    "request": (b"get key\r\n", lambda mc: mc.request(Request(b"get", (b"key",)))),
}


@pytest.mark.parametrize("key", ["yek", "KEY", "ke", "keys", "key\0", "k", "", "other"], ids=repr)
@pytest.mark.parametrize("method", ASKS)
@pytest.mark.gen_test
async def test_the_value_of_another_key_is_nobody_s(method, key, expect_log):
    expect_log("tornado_memcache", "fails")
    line, ask = ASKS[method]
    cas = b" 1" if b"s " in line[:5] else b""
    answer = b"VALUE %b 0 5%b\r\nvalue\r\nEND\r\n" % (key.encode(), cas)
    async with Scripted([Expect(line), Send(answer)]) as server:
        async with Client([server.address]) as mc:
            with pytest.raises(ProtocolError):
                await ask(mc)
            assert mc._pools[0].counts()["open"] == 0


# -- 9. what is promised is shown


def test_the_promises_name_tests_that_there_are():
    text = (ROOT / "docs" / "security.rst").read_text(encoding="utf-8")
    named = re.findall(r"``tests/(test_\w+\.py)``", text)
    assert len(set(named)) >= 5
    for name in named:
        assert (ROOT / "tests" / name).is_file(), name
    _, promised, table = text.partition("\nWho gets what\n")
    assert promised
    for word in ("Plain", "SignedPickle", "Pickle", "memcache", "tornadoasyncmemcache", "loopback",
                 "write to the cache", "read the wire", "change the wire", "chooses keys",
                 "chooses values", "owns the server"):  # fmt: skip
        assert word in table, word
    assert (ROOT / "SECURITY.md").is_file()
    assert Path(PACKAGE / "pickles.py").is_file() and "pickle" in text
