"""tornado_memcache.text_server: requests read and replies written, without a socket.

Each stream is read whole, byte by byte and cut at every offset. That the
answers are memcached's own is shown in `test_oracle.py`.
"""

import ast
import tracemalloc
from pathlib import Path

import pytest

from tornado_memcache import text_server as module
from tornado_memcache.protocol import Item, Reply, Request
from tornado_memcache.text import encode_request
from tornado_memcache.text_server import (
    MAX_GET_LINE,
    RequestReader,
    Settled,
    encode_reply,
)

LIMIT = 1000
KEY = b"k" * 250


def reader():
    return RequestReader(lambda key, flags, length: length > LIMIT)


def read(*segments):
    one = reader()
    return [asked for segment in segments for asked in one.receive_data(segment)]


REQUESTS = [
    Request(b"get", (b"a",)),
    Request(b"get", (b"a", b"b", KEY)),
    Request(b"gets", tuple(b"key-%d" % number for number in range(100))),
    Request(b"gat", (b"a", b"b"), exptime=-1),
    Request(b"gats", (b"a",), exptime=60),
    Request(b"set", (b"a",), b"value", 7, 60),
    Request(b"set", (b"a",), b"", noreply=True),
    Request(b"add", (KEY,), b"\r\nget a\r\n", 2**32 - 1, -1),
    Request(b"replace", (b"a",), bytes(range(256))),
    Request(b"append", (b"a",), b"x" * LIMIT),
    Request(b"prepend", (b"a",), b"\n", noreply=True),
    Request(b"cas", (b"a",), b"v", 1, 2, 2**64 - 1),
    Request(b"cas", (b"a",), b"v", cas_unique=1, noreply=True),
    Request(b"delete", (b"a",)),
    Request(b"delete", (b"noreply",)),
    Request(b"delete", (b"a",), noreply=True),
    Request(b"incr", (b"a",), delta=2**64 - 1),
    Request(b"decr", (b"a",), delta=0, noreply=True),
    Request(b"touch", (b"a",), exptime=5),
    Request(b"touch", (b"a",), exptime=5, noreply=True),
    Request(b"flush_all"),
    Request(b"flush_all", noreply=True),
    Request(b"flush_all", exptime=10),
    Request(b"flush_all", exptime=10, noreply=True),
    Request(b"version"),
    Request(b"verbosity", argument=b"1"),
    Request(b"verbosity", argument=b"1", noreply=True),
    Request(b"stats"),
    Request(b"stats", argument=b"items"),
]


@pytest.mark.parametrize("request_", REQUESTS, ids=Request.asked)
def test_what_the_client_writes_is_read(request_):
    data = b"".join(encode_request(request_))
    assert read(data) == [request_]
    assert read(*(data[i : i + 1] for i in range(len(data)))) == [request_]
    for cut in range(len(data)):
        assert read(data[:cut], data[cut:] + data) == [request_] * 2


def test_a_pipeline_in_any_segments():
    data = b"".join(piece for request in REQUESTS for piece in encode_request(request))
    assert read(data) == REQUESTS
    for size in (1, 2, 3, 7, 100, 1000):
        assert read(*(data[i : i + size] for i in range(0, len(data), size))) == REQUESTS


BAD_LINE = Settled(b"CLIENT_ERROR bad command line format")
ERROR = Settled(b"ERROR")
CLOSE = Settled(closes=True)
TOO_LARGE = Settled(b"SERVER_ERROR object too large for cache")
VERSION = Request(b"version")


@pytest.mark.parametrize(
    "data, asked",
    [
        (b"\r\n", [ERROR]),
        (b"\n", [ERROR]),
        (b"x\r\n", [ERROR]),
        (b"nonsense\r\n", [ERROR]),
        (b"get\r\n", [ERROR]),
        (b"GET a\r\n", [ERROR]),
        (b"set a 0 0\r\n", [ERROR]),
        (b"set a 0 0 1 noreply x\r\n", [ERROR]),
        (b"get " + KEY + b"k\r\n", [BAD_LINE]),
        (b"set " + KEY + b"k 0 0 1\r\n", [BAD_LINE]),
        (b"set a 0 0 -1\r\n", [BAD_LINE]),
        (b"set a 0 0 -1 noreply\r\n", []),
        (b"set a 0 0 2147483646\r\n", [BAD_LINE]),
        (b"set a -1 0 1\r\n", [BAD_LINE]),
        (b"set a 0 x 1\r\n", [BAD_LINE]),
        (b"cas a 0 0 1 x\r\n", [BAD_LINE]),
        (b"set a 0 0 1\r\nxx\r\n", [Settled(b"CLIENT_ERROR bad data chunk"), ERROR]),
        (b"set a 0 0 1 noreply\r\nxx\r\n", [ERROR]),
        (b"set a 0 0 1001\r\n%b\r\n" % (b"x" * 1001),
         [Request(b"delete", (b"a",), noreply=True), TOO_LARGE]),
        (b"set a 0 0 1001 noreply\r\n%b\r\n" % (b"x" * 1001),
         [Request(b"delete", (b"a",), noreply=True)]),
        (b"add a 0 0 1001\r\n%b\r\n" % (b"x" * 1001), [TOO_LARGE]),
        (b"gat x a\r\n", [Settled(b"CLIENT_ERROR invalid exptime argument")]),
        (b"touch a x\r\n", [Settled(b"CLIENT_ERROR invalid exptime argument")]),
        (b"incr a x\r\n", [Settled(b"CLIENT_ERROR invalid numeric delta argument")]),
        (b"shutdown\r\n", [Settled(b"ERROR: shutdown not enabled")]),
    ],
)  # fmt: skip
def test_bad_lines_and_what_stays_in_step(data, asked):
    data += b"version\r\n"
    asked = [*asked, VERSION]
    assert read(data) == asked
    for cut in range(0, len(data), 1 + len(data) // 100):
        assert read(data[:cut], data[cut:]) == asked
    assert read(*(data[i : i + 1] for i in range(len(data)))) == asked


@pytest.mark.parametrize(
    "data",
    [
        b"quit\r\nversion\r\n",
        b"quit now\r\n",
        b"GET / HTTP/1.1\r\nversion\r\n",
        b"\x80\x00version\r\n",
        b"x" * 2049,
        b"x" * 3000 + b"\r\nversion\r\n",
        b"gat 0 " + b"k " * 1500 + b"\r\n",
        b" " * 101 + b"get " + b"k " * 1500 + b"\r\n",
        b"get " + b"k " * (MAX_GET_LINE // 2),
    ],
    ids=lambda data: repr(data[:20]),
)
def test_what_closes(data):
    one = reader()
    assert one.receive_data(data)[-1] == CLOSE
    assert one.closed
    assert one.receive_data(b"version\r\n") == []
    one = reader()
    step = 1 if len(data) < 10_000 else 1000
    asked = [
        settled
        for i in range(0, len(data), step)
        for settled in one.receive_data(data[i : i + step])
    ]
    assert asked == [CLOSE]


def test_a_get_may_be_long():
    keys = tuple(b"key-%d" % number for number in range(20_000))
    data = b"get " + b" ".join(keys) + b"\r\n"
    assert read(data) == read(data[:5000], data[5000:]) == [Request(b"get", keys)]
    assert read(b" " * 100 + data) == [Request(b"get", keys)]


@pytest.mark.parametrize(
    "start, piece",
    [
        (b"", b"x" * 1000),
        (b"get ", b"k " * 500),
        (b"set a 0 0 2000000000\r\n", b"x" * 65536),
        (b"add a 0 0 2000000000 noreply\r\n", b"get a\r\n" * 9000),
    ],
)
def test_memory_is_bounded(start, piece):
    one = reader()
    tracemalloc.start()
    try:
        one.receive_data(start)
        for _ in range(5000):
            one.receive_data(piece)
        assert tracemalloc.get_traced_memory()[1] < 4 * MAX_GET_LINE
    finally:
        tracemalloc.stop()


def test_a_long_line_of_single_bytes_takes_linear_time():
    one = reader()
    for byte in b"get " + b"k" * 200_000:  # (minutes, if each byte copied the line)
        assert one.receive_data(bytes([byte])) == []


@pytest.mark.parametrize(
    "request_, reply, data",
    [
        (Request(b"get", (b"a",)), Reply(b"END"), b"END\r\n"),
        (Request(b"gat", ()), Reply(b"END"), b"END\r\n"),
        (
            Request(b"get", (b"b", b"x", b"a", b"b")),
            Reply(b"END", {b"a": Item(b"1", 2, 3), b"b": Item(b"", 0, 4)}),
            b"VALUE b 0 0\r\n\r\nVALUE a 2 1\r\n1\r\nVALUE b 0 0\r\n\r\nEND\r\n",
        ),
        (
            Request(b"gets", (b"a",)),
            Reply(b"END", {b"a": Item(b"x" * 20_000, 2, 2**64 - 1)}),
            b"VALUE a 2 20000 18446744073709551615\r\n" + b"x" * 20_000 + b"\r\nEND\r\n",
        ),
        (Request(b"set", (b"a",)), Reply(b"STORED"), b"STORED\r\n"),
        (Request(b"set", (b"a",), noreply=True), Reply(b"STORED"), b""),
        (
            Request(b"incr", (b"a",), noreply=True),
            Reply(b"CLIENT_ERROR", text=b"no"),
            b"",
        ),
        (Request(b"incr", (b"a",)), Reply(b"NUMBER", number=12), b"12\r\n"),
        (Request(b"version"), Reply(b"VERSION", text=b"1.6.18"), b"VERSION 1.6.18\r\n"),
        (
            Request(b"get", (b"a",)),
            Reply(b"SERVER_ERROR", text=b"a\r\nSTORED\nb"),
            b"SERVER_ERROR a STORED b\r\n",
        ),
        (
            Request(b"stats"),
            Reply(b"END", stats={"pid": "1", "version": "1.6.18"}),
            b"STAT pid 1\r\nSTAT version 1.6.18\r\nEND\r\n",
        ),
        (
            Request(b"config", argument=b"get cluster"),
            Reply(b"CONFIG", text=b"1\na|b|1\n"),
            b"CONFIG cluster 0 8\r\n1\na|b|1\n\r\nEND\r\n",
        ),
        (Request(b"config", argument=b"get cluster"), Reply(b"ERROR"), b"ERROR\r\n"),
        (Request(b"stats", argument=b"items"), Reply(b"END"), b"END\r\n"),
        (Request(b"stats", argument=b"reset"), Reply(b"RESET"), b"RESET\r\n"),
    ],
)
def test_encode_reply(request_, reply, data):
    assert b"".join(encode_reply(request_, reply)) == data


def test_the_module_is_pure():
    tree = ast.parse(Path(module.__file__).read_text())
    names = {
        node.module or ""
        for node in ast.walk(tree)
        if isinstance(node, (ast.Import, ast.ImportFrom))
    }
    assert names <= {"collections.abc", "typing", "meta_server", "protocol", "words"}
