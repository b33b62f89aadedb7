r"""The server's side of the classic text dialect: requests are read, replies written.

Knows the grammar of protocol.txt and what memcached 1.6.18 answers to a line
that is no request, byte for byte. It must not know a socket, a loop, a store
or who answers. What a client sends is bounded here: a line, a data block, and
what is kept of either.

Unlike memcached, whose answer to a long line depends on how it was cut into
segments, a line of over `MAX_LINE` bytes always closes the connection.
"""

from collections.abc import Callable, Iterable, Iterator
from typing import NamedTuple

from .meta_server import VERBS as META_VERBS
from .meta_server import Announced, encode_meta, read_meta, read_set
from .protocol import MAX_LINE, STREAMED_BLOCK, Reply, Request
from .words import (
    BAD_LINE,
    UINT32,
    BadLine,
    exptime_of,
    key_of,
    length_of,
    read_signed,
    read_unsigned,
)

#: ``get`` and ``gets`` may ask for many keys in one line, of up to this many bytes.
MAX_GET_LINE = 1024 * 1024
#: memcached looks for ``get`` behind at most this many spaces.
_MAX_INDENT = 100

_BAD_DELETE = BAD_LINE + b".  Usage: delete <key> [noreply]"
_BAD_DELTA = b"CLIENT_ERROR invalid numeric delta argument"
_BAD_BLOCK = b"CLIENT_ERROR bad data chunk"
_TOO_LARGE = b"SERVER_ERROR object too large for cache"
#: The first byte of memcached's binary protocol, which is not spoken here.
_BINARY = b"\x80"


class Settled(NamedTuple):
    """What the reader has settled itself, in its place among the requests.

    ``line`` is what to answer, without its CRLF (empty: nothing);
    ``closes`` says that the connection ends with it.
    """

    line: bytes = b""
    closes: bool = False


def _foreign(verb: bytes) -> bool:
    """Returns True if memcached looks further at ``verb`` when it has none of this letter."""
    return verb[:1] not in b"gsacidt" and not (len(verb) == 2 and verb.startswith(b"m"))


def _read_get(words: list[bytes], noreply: bool) -> Request:
    # get <key>*\r\n
    return Request(words[0], tuple(map(key_of, words[1:])))


def _read_gat(words: list[bytes], noreply: bool) -> Request:
    # gat <exptime> <key>*\r\n
    exptime = exptime_of(words[1])
    return Request(words[0], tuple(map(key_of, words[2:])), exptime=exptime)


def _read_delete(words: list[bytes], noreply: bool) -> Request:
    # delete <key> [0] [noreply]\r\n
    if len(words) > 2:
        held = words[2] == b"0"
        if not (held or noreply if len(words) == 3 else held and noreply):
            raise BadLine(_BAD_DELETE)
    return Request(words[0], (key_of(words[1]),), noreply=noreply)


def _read_count(words: list[bytes], noreply: bool) -> Request:
    # incr <key> <value> [noreply]\r\n
    key = key_of(words[1])
    if (delta := read_unsigned(words[2])) is None:
        raise BadLine(_BAD_DELTA)
    return Request(words[0], (key,), delta=delta, noreply=noreply)


def _read_touch(words: list[bytes], noreply: bool) -> Request:
    # touch <key> <exptime> [noreply]\r\n
    key = key_of(words[1])
    return Request(words[0], (key,), exptime=exptime_of(words[2]), noreply=noreply)


def _read_flush_all(words: list[bytes], noreply: bool) -> Request:
    # flush_all [<exptime>] [noreply]\r\n
    given = len(words) != (2 if noreply else 1)
    return Request(words[0], exptime=exptime_of(words[1]) if given else 0, noreply=noreply)


def _read_verbosity(words: list[bytes], noreply: bool) -> Request:
    # verbosity <level> [noreply]\r\n
    if (level := read_unsigned(words[1])) is None:
        raise BadLine(BAD_LINE)
    return Request(words[0], argument=b"%d" % (level & UINT32), noreply=noreply)


def _read_memlimit(words: list[bytes], noreply: bool) -> Request:
    # cache_memlimit <megabytes> [noreply]\r\n
    if (megabytes := read_unsigned(words[1])) is None:
        raise BadLine(b"ERROR")
    return Request(words[0], argument=b"%d" % (megabytes & UINT32), noreply=noreply)


def _read_plain(words: list[bytes], noreply: bool) -> Request:
    # version\r\n   stats [<args>]\r\n   config get <name>\r\n
    return Request(words[0], argument=b" ".join(words[1:]))


def _read_bget(words: list[bytes], noreply: bool) -> Request:
    # bget <key>*\r\n, which nobody has documented; it is a get.
    return Request(b"get", tuple(map(key_of, words[1:])))


def _read_meta(words: list[bytes], noreply: bool) -> Request:
    return read_meta(words)


def _read_meta_set(words: list[bytes], noreply: bool) -> Announced:
    return read_set(words)


def _read_storage(words: list[bytes], noreply: bool) -> Announced:
    # <command name> <key> <flags> <exptime> <bytes> [noreply]\r\n
    # cas <key> <flags> <exptime> <bytes> <cas unique> [noreply]\r\n
    verb, key = words[0], key_of(words[1])
    flags, exptime, length = read_unsigned(words[2]), read_signed(words[3]), words[4]
    cas_unique = read_unsigned(words[5]) if verb == b"cas" else 0
    if flags is None or exptime is None or cas_unique is None:
        raise BadLine(BAD_LINE)
    flags &= UINT32
    request = Request(
        verb, (key,), flags=flags, exptime=exptime, cas_unique=cas_unique, noreply=noreply
    )
    return Announced(request, length_of(length), flags)


class _Line(NamedTuple):
    """How the line of a verb is read.

    ``fewest`` and ``most`` words make a request; the last of at least
    ``noreply`` words may be ``noreply``, also of a line that is refused.
    """

    read: Callable[[list[bytes], bool], Request | Announced]
    fewest: int
    most: int
    noreply: int


_ANY = 1 << 31
_STORAGE = _Line(_read_storage, 5, 6, 5)
_COUNT = _Line(_read_count, 3, 4, 3)
_GET = _Line(_read_get, 2, _ANY, _ANY)
_GAT = _Line(_read_gat, 2, _ANY, _ANY)
_PLAIN = _Line(_read_plain, 1, _ANY, _ANY)

_LINES: dict[bytes, _Line] = {
    b"get": _GET,
    b"gets": _GET,
    b"gat": _GAT,
    b"gats": _GAT,
    b"set": _STORAGE,
    b"add": _STORAGE,
    b"replace": _STORAGE,
    b"append": _STORAGE,
    b"prepend": _STORAGE,
    b"cas": _Line(_read_storage, 6, 7, 6),
    b"delete": _Line(_read_delete, 2, 4, 3),
    b"incr": _COUNT,
    b"decr": _COUNT,
    b"touch": _Line(_read_touch, 3, 4, 3),
    b"flush_all": _Line(_read_flush_all, 1, 3, 2),
    b"verbosity": _Line(_read_verbosity, 2, 3, 2),
    b"cache_memlimit": _Line(_read_memlimit, 2, 3, 2),
    b"bget": _Line(_read_bget, 2, _ANY, _ANY),
    b"version": _PLAIN,
    b"stats": _PLAIN,
    b"config": _PLAIN,
    b"ms": _Line(_read_meta_set, 1, _ANY, _ANY),
    **{verb: _Line(_read_meta, 1, _ANY, _ANY) for verb in META_VERBS if verb != b"ms"},
}


class RequestReader:
    """Reads what one client sends, in any segments, into requests.

    ``too_large(key, flags, length)`` says whether a value of ``length``
    bytes will be refused; its block is then swallowed and never kept, so
    it bounds the memory that one client can fill.
    """

    def __init__(self, too_large: Callable[[bytes, int, int], bool]) -> None:
        self._too_large = too_large
        self._line = bytearray()
        self._block = bytearray()
        #: The storage request whose block is being read or swallowed.
        self._storage: Request | None = None
        #: How many bytes are still to come, of the block with its CRLF
        #: and of a block that is swallowed.
        self._owed = 0
        self._swallowing = False
        #: Why it is swallowed, if not for its length.
        self._refusal = b""
        self._fresh = True
        #: True once the connection has to end; nothing more is read.
        self.closed = False

    @property
    def half_way(self) -> bool:
        """True while a part of a request has come."""
        return self._storage is not None or bool(self._line)

    def __repr__(self) -> str:
        state = "closed" if self.closed else "block" if self._storage else "line"
        return f"<{type(self).__name__} {state}>"

    def receive_data(self, data: bytes) -> list[Request | Settled]:
        """Reads ``data``; returns the requests it completes and what else to answer, in order.

        An object that is too large for a ``set`` or ``ms`` also takes away what was
        there, as in memcached: a ``delete`` without a reply stands before
        its `Settled`.
        """
        asked: list[Request | Settled] = []
        position, size = 0, len(data)
        if self._fresh and size:
            self._fresh = False
            if data.startswith(_BINARY):
                self._close(asked)
        while position < size and not self.closed:
            if self._storage is None:
                position = self._receive_line(data, position, asked)
            elif self._swallowing:
                position = self._swallow(position, size, asked)
            else:
                position = self._receive_block(data, position, asked)
        return asked

    def _close(self, asked: list[Request | Settled]) -> None:
        self.closed = True
        self._line, self._block = bytearray(), bytearray()
        asked.append(Settled(closes=True))

    def _receive_line(self, data: bytes, position: int, asked: list[Request | Settled]) -> int:
        end = data.find(b"\n", position)
        stop = end if end >= 0 else len(data)
        length = len(self._line) + stop - position
        if length > MAX_LINE:
            start = bytes(self._line[: _MAX_INDENT + 8]) + data[position : position + 128]
            if length > self._longest(start):
                self._close(asked)
                return len(data)
        if end < 0:
            self._line += data[position:]
            return stop
        line = data[position:end]
        if self._line:
            line = bytes(self._line) + line
            self._line.clear()
        self._read_line(line, asked)
        return end + 1

    @staticmethod
    def _longest(start: bytes) -> int:
        words = start.lstrip(b" ")
        if len(start) - len(words) <= _MAX_INDENT and words.startswith((b"get ", b"gets ")):
            return MAX_GET_LINE
        return MAX_LINE

    def _read_line(self, line: bytes, asked: list[Request | Settled]) -> None:
        if line.endswith(b"\r") and len(line) > 1:
            line = line[:-1]
        if b"\0" in line:  # memcached's line is a string of C: it ends there.
            line = line.partition(b"\0")[0]
        words = line.split(b" ")
        if b"" in words:
            words = [word for word in words if word]
        shape = _LINES.get(words[0]) if words else None
        if shape is None:
            self._read_unknown(words, asked)
            return
        if not shape.fewest <= len(words) <= shape.most:
            asked.append(Settled(b"ERROR"))
            return
        noreply = len(words) >= shape.noreply and words[-1] == b"noreply"
        try:
            read = shape.read(words, noreply)
            if isinstance(read, Request):
                asked.append(read)
            else:
                self._expect_block(read)
        except BadLine as error:
            if not noreply:
                asked.append(Settled(error.args[0]))

    def _read_unknown(self, words: list[bytes], asked: list[Request | Settled]) -> None:
        verb = words[0] if words else b""
        if verb == b"quit":
            self._close(asked)
        elif len(verb) > 1 and words[-1].startswith(b"HTTP/") and _foreign(verb):
            # A browser that was sent here must not have its body taken for requests.
            self._close(asked)
        elif verb == b"shutdown":
            asked.append(Settled(b"ERROR: shutdown not enabled"))
        else:
            asked.append(Settled(b"ERROR"))

    def _expect_block(self, announced: Announced) -> None:
        request, length, flags, self._refusal = announced
        self._storage = request
        self._owed = length + 2
        self._swallowing = bool(self._refusal) or self._too_large(request.keys[0], flags, length)

    def _receive_block(self, data: bytes, position: int, asked: list[Request | Settled]) -> int:
        stop = min(position + self._owed, len(data))
        self._owed -= stop - position
        if self._owed:
            self._block += data[position:stop]
            return stop
        block = data[position:stop]
        if self._block:
            self._block += block
            # Not cleared but let go: a large buffer is not kept.
            block, self._block = bytes(self._block), bytearray()
        request, self._storage = self._storage, None
        assert request is not None
        if block.endswith(b"\r\n"):
            asked.append(request._replace(value=block[:-2]))
        elif not request.noreply:
            asked.append(Settled(_BAD_BLOCK))
        return stop

    def _swallow(self, position: int, size: int, asked: list[Request | Settled]) -> int:
        stop = min(position + self._owed, size)
        self._owed -= stop - position
        if not self._owed:
            request, self._storage, self._swallowing = self._storage, None, False
            assert request is not None
            if not self._refusal and request.verb in (b"set", b"ms"):
                asked.append(Request(b"delete", request.keys, noreply=True))
            if not request.noreply:
                asked.append(Settled(self._refusal or _TOO_LARGE))
        return stop


def _encode_items(request: Request, reply: Reply) -> Iterator[bytes]:
    # VALUE <key> <flags> <bytes> [<cas unique>]\r\n<data block>\r\n ... END\r\n
    with_cas, items = request.verb in (b"gets", b"gats"), reply.items
    for key in request.keys:
        if (item := items.get(key)) is None:
            continue
        value = item.value
        cas = b" %d" % item.cas_unique if with_cas and item.cas_unique is not None else b""
        head = b"VALUE %b %d %d%b\r\n" % (key, item.flags, len(value), cas)
        if len(value) <= STREAMED_BLOCK:
            yield b"%b%b\r\n" % (head, value)
        else:
            yield from (head, value, b"\r\n")
    yield b"END\r\n"


def encode_reply(request: Request, reply: Reply) -> Iterable[bytes]:
    """Returns the bytes of ``reply`` to ``request``, piece by piece.

    A key that was asked twice is answered twice, in the order of the
    request. A request with noreply gets nothing, not even an error.
    """
    status = reply.status
    if request.noreply:
        return ()
    if request.verb in META_VERBS and not status.endswith(b"ERROR"):
        return encode_meta(request, reply)
    if status == b"NUMBER":
        return (b"%d\r\n" % reply.number,)
    if reply.stats:  # STAT <name> <value>\r\n ... END\r\n
        lines = [f"STAT {name} {value}\r\n" for name, value in reply.stats.items()]
        return ("".join(lines).encode(), status + b"\r\n")
    if status == b"CONFIG":  # CONFIG <name> <flags> <bytes>\r\n<data block>\r\nEND\r\n
        name = request.argument.rpartition(b" ")[2]
        return (b"CONFIG %b 0 %d\r\n%b\r\nEND\r\n" % (name, len(reply.text), reply.text),)
    if status == b"END" and request.keys:
        return _encode_items(request, reply)
    if status == b"PREFIX":  # PREFIX <prefix> get <n> hit <n> set <n> del <n>\r\n ... END\r\n
        return (*(b"PREFIX %b\r\n" % line for line in reply.text.splitlines()), b"END\r\n")
    if reply.text:
        # Whatever an error tells, it stays one line.
        return (b"%b %b\r\n" % (status, b" ".join(reply.text.splitlines())),)
    return (status + b"\r\n",)
