r"""What must hold for any bytes of a server, and for any of a client; what fuzzing begins with.

`check_replies` reads bytes with the client's parser and with
`tests.reference`, in two ways of cutting them into segments.
`check_requests` reads them with the server's reader, in two ways of cutting;
what it has read is written and read again, and answered out of a store. It
must not know the fuzzer: `tests/test_fuzz.py` replays the corpora with it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import nullcontext
from pathlib import Path

from tornado_memcache.errors import MemcacheError
from tornado_memcache.guest import failure
from tornado_memcache.protocol import Reply, Request
from tornado_memcache.store import Store
from tornado_memcache.store_handler import StoreHandler
from tornado_memcache.text import check_request, encode_request
from tornado_memcache.text_server import RequestReader, Settled, encode_reply

from .corpus import KINDS, Driven, cut, expected, packed, streaming_early, streams, unpacked

#: What fuzzing has found: small inputs that reached code which nothing else did.
COMMITTED = Path(__file__).parent / "fuzz_corpus"
#: Values above this length are too large for the server that is fuzzed.
TOO_LARGE = 300


def check_replies(data: bytes) -> None:
    """Reads ``data`` as what is owed and a stream; raises if the parser is not right about it."""
    case, cutting = unpacked(data)
    whole = Driven(case.owed)
    whole.receive(case.stream)
    assert whole.state == expected(case.owed, case.stream), case
    driven, position = Driven(case.owed), 0
    segments = cut(case.stream, cutting)
    with streaming_early() if cutting % 2 else nullcontext():
        for count, segment in enumerate(segments):
            position += len(segment)
            state = driven.receive(segment)
            # Behind each segment would be quadratic.
            if count in (0, len(segments) // 2):
                assert state == expected(case.owed, case.stream[:position]), (case, position)
    assert driven.state == whole.state, case


def _read(segments: list[bytes]) -> list[Request | Settled]:
    reader = RequestReader(lambda key, flags, length: length > TOO_LARGE)
    asked = []
    for segment in segments:
        asked += reader.receive_data(segment)
        assert len(reader._block) <= TOO_LARGE + 2
    return asked


def _answered(one: Request | Settled, handler: Callable[[Request], Reply]) -> bytes:
    if isinstance(one, Settled):
        return one.line
    try:
        reply = handler(one)
    except MemcacheError as error:
        reply = failure(error)
    return b"".join(encode_reply(one, reply))


def check_requests(data: bytes) -> None:
    """Reads ``data`` as a client's stream; raises if the server's reader is not right about it."""
    cutting, stream = data[0] if data else 0, data[1:]
    whole = _read([stream])
    assert _read(cut(stream, cutting)) == whole
    handler = StoreHandler(Store(lambda: 1000.0))
    for one in whole:
        if isinstance(one, Request):
            assert len(one.value) <= TOO_LARGE
            try:
                check_request(one)
            except (MemcacheError, TypeError):
                pass  # (a server takes keys that our client does not send)
            else:
                assert _read([b"".join(encode_request(one))]) == [one]
        else:
            assert b"\r" not in one.line and b"\n" not in one.line
        _answered(one, handler)


#: Requests of every form, for the server's side.
REQUESTS = (
    b"get a\r\ngets a b\r\ngat 0 a\r\ngats -1 a b\r\n",
    b"set a 0 0 1\r\nv\r\nget a\r\nadd a 1 2 0 noreply\r\n\r\nreplace a 0 0 2\r\n\r\n\r\n",
    b"append a 0 0 1\r\nv\r\nprepend a 0 0 1 noreply\r\nv\r\ncas a 0 0 1 7\r\nv\r\n",
    b"delete a\r\ndelete a noreply\r\ndelete a 0\r\nincr a 1\r\ndecr a 1 noreply\r\n",
    b"touch a 1\r\ntouch a 1 noreply\r\nflush_all\r\nflush_all 5 noreply\r\nverbosity 1\r\n",
    b"version\r\nstats\r\nstats items\r\nstats reset\r\nquit\r\nversion\r\n",
    b"set a 0 0 301\r\n" + b"x" * 301 + b"\r\nset a 0 0 3\r\nlonger\r\nversion\r\n",
    b"GET / HTTP/1.1\r\n\r\n",
    b" get " + b"key " * 600 + b"\r\nversion\r\n",
    b"gat 0 " + b"key " * 600 + b"\r\nversion\r\n",
    b"\x80\0\0\0",
    b"set a -1 0 1\r\nset a 0 x 1\r\nset a 0 0 -1\r\nincr a x\r\ntouch a x\r\n\r\nx\n",
    b"mg a v t k O1\r\nms a 2 T0 F5\r\n\r\n\r\nmd a I q\r\nma n N0 J5 v\r\nmn\r\n"
    b"me a\r\nmg YQ== b k\r\n",
    b"mg a v v\r\nms a 2 MX\r\nab\r\nms a x\r\nmg Y b\r\nma a D1.5\r\nmd\r\nme\r\n"
    b"mg a q N30 R5\r\nmn\r\n",
    b"set n 0 0 2\r\n10\r\nincr n 5\r\ndecr n 99\r\nset n 0 0 1\r\nx\r\nincr n 1\r\n",
)


def seeds(side: str) -> Iterator[bytes]:
    """Yields the inputs that a run begins with."""
    if side == "server":
        for requests in REQUESTS:
            for cutting in (0, 1, 5):
                yield bytes([cutting]) + requests
    else:
        for number, case in enumerate(streams()):
            if len(case.owed) <= 4 and all(asked in KINDS for asked in case.owed):
                yield packed(case, number % 7)
    for path in sorted((COMMITTED / side).glob("*")):
        yield path.read_bytes()


CHECKS = {"client": check_replies, "server": check_requests}
