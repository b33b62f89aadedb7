r"""The text dialect, classic and meta: how each verb is written and its reply is read.

Knows the grammar of protocol.txt (quoted above the code that reads it). It
must not know a socket, a loop, or what an outcome means to a caller. Lines
are built by `line_of` alone, from bytes and integers that were checked. Of
what a server sends a message tells as little as it can: where replies are out
of step, a line may be a piece of a value.
"""

from collections.abc import Callable, Iterable
from typing import NamedTuple

from .arguments import check_integer
from .errors import (
    ClientError,
    InvalidRequest,
    ItemTooLarge,
    ProtocolError,
    ReplyError,
    ServerError,
    shown,
)
from .meta import check_flags, check_key, wire_key
from .protocol import STREAMED_BLOCK, Reply, Request, read_number

#: At most this many keys leave in one line.
KEYS_A_LINE = 100
#: A gathered line is cut above this many bytes.
LINE_BYTES = 8 * 1024
#: memcached resets a connection on a long ``gat`` line.
GAT_LINE_BYTES = 1900
#: More lines of ``stats``, or more bytes of them, than any server sends are
#: refused. memcached ends a ``stats cachedump`` at 2 MB: 87 000 lines were seen.
MAX_STATS = 120_000
MAX_STATS_BYTES = 4 * 1024 * 1024
#: A cluster's configuration has about 100 bytes for each server.
MAX_CONFIG = 16 * 1024
#: How much of a server's own words a message shows.
WORDS_SHOWN = 200


class Verb(NamedTuple):
    """How one verb behaves; the one place where a command of the wire is declared."""

    shape: str
    statuses: frozenset[bytes] = frozenset()
    writes: bool = False
    idempotent: bool = False


_STORAGE = Verb("storage", frozenset({b"STORED", b"NOT_STORED"}), writes=True)
_COUNT = Verb("count", frozenset({b"NOT_FOUND"}), writes=True)

VERBS: dict[bytes, Verb] = {
    b"get": Verb("retrieval", idempotent=True),
    b"gets": Verb("retrieval", idempotent=True),
    b"gat": Verb("retrieval", writes=True),
    b"gats": Verb("retrieval", writes=True),
    b"set": _STORAGE,
    b"add": _STORAGE,
    b"replace": _STORAGE,
    b"append": _STORAGE,
    b"prepend": _STORAGE,
    b"cas": Verb("storage", frozenset({b"STORED", b"EXISTS", b"NOT_FOUND"}), writes=True),
    b"delete": Verb("line", frozenset({b"DELETED", b"NOT_FOUND"}), writes=True),
    b"touch": Verb("line", frozenset({b"TOUCHED", b"NOT_FOUND"}), writes=True),
    b"incr": _COUNT,
    b"decr": _COUNT,
    b"flush_all": Verb("line", frozenset({b"OK"}), writes=True),
    b"version": Verb("version", idempotent=True),
    b"verbosity": Verb("line", frozenset({b"OK"})),
    b"stats": Verb("stats", idempotent=True),
    # What ElastiCache and Memorystore add: the servers of a cluster.
    b"config": Verb("config", idempotent=True),
    # The meta commands; what flags they take is in `meta.FLAGS`. A plain mg only reads.
    b"mg": Verb("meta", frozenset({b"HD", b"VA", b"EN"}), idempotent=True),
    b"ms": Verb("meta", frozenset({b"HD", b"NS", b"EX", b"NF"}), writes=True),
    b"md": Verb("meta", frozenset({b"HD", b"NF", b"EX"}), writes=True),
    b"ma": Verb("meta", frozenset({b"HD", b"VA", b"NF", b"NS", b"EX"}), writes=True),
    b"mn": Verb("meta", frozenset({b"MN"}), idempotent=True),
    b"me": Verb("meta", frozenset({b"ME", b"EN"}), idempotent=True),
}


def is_meta(request: Request) -> bool:
    """True for a meta command, which not every server knows."""
    return VERBS[request.verb].shape == "meta"


def is_retrieval(request: Request) -> bool:
    """True for what asks for items, and may get none: get, gets, gat, gats, mg, me."""
    return VERBS[request.verb].shape == "retrieval" or request.verb in (b"mg", b"me")


def missed(request: Request) -> Reply:
    """Returns what a server that has nothing replies to a retrieval."""
    return Reply(b"EN" if is_meta(request) else b"END")


def overtaken(request: Request) -> Reply:
    """Returns what a server replies to a request with a cas unique that is not the item's."""
    return Reply(b"EX" if is_meta(request) else b"EXISTS")


#: Verbs that take no key and are asked of every server.
KEYLESS = frozenset({b"flush_all", b"version", b"verbosity", b"stats", b"config", b"mn"})


def check_request(request: Request) -> None:
    """Raises for a request that could not be sent, or whose reply could not be told apart.

    `.InvalidRequest` or `TypeError`, which name the field. Lines are built
    from what has passed here or was made by the commands of the client.
    """
    if not isinstance(request, Request):
        raise TypeError(f"request must be a Request, not {type(request).__name__}")
    if type(request.verb) is not bytes or type(request.keys) is not tuple:
        # A list could be changed after it was checked, and before it is written.
        raise TypeError("verb must be bytes, and keys a tuple of bytes")
    verb = VERBS.get(request.verb)
    if verb is None:
        raise InvalidRequest(f"verb {shown(request.verb)} is not known")
    if request.verb in KEYLESS or not request.keys:
        raise InvalidRequest(f"{request.asked()}: keys must be given, and the verb take some")
    meta = verb.shape == "meta"
    flags = check_flags(request.verb, request.argument) if meta else {}
    for key in request.keys:
        if type(key) is not bytes:
            raise TypeError(f"key must be bytes, not {type(key).__name__}")
        check_key(key, flags)
    if b"q" in flags:
        raise InvalidRequest(f"{request.asked()}: flag q (quiet): no reply would be owed")
    if len(request.keys) > 1 and verb.shape != "retrieval":
        raise InvalidRequest(f"{request.asked()}: the verb takes one key, not several keys")
    if request.verb in (b"gat", b"gats"):
        if sum(map(len, request.keys)) + len(request.keys) > GAT_LINE_BYTES - 20:
            told = f"keys that make a line of over {GAT_LINE_BYTES} bytes"
            raise InvalidRequest(f"{request.asked()}: {told}")
    if type(request.noreply) is not bool:
        raise TypeError(f"noreply must be a bool, not {type(request.noreply).__name__}")
    if request.noreply and verb.shape in ("retrieval", "meta"):
        raise InvalidRequest(f"{request.asked()}: noreply is for what stores or deletes")
    check_integer("flags", request.flags, 0, (1 << 32) - 1)
    check_integer("exptime", request.exptime, -(1 << 31), (1 << 31) - 1)
    check_integer("cas_unique", request.cas_unique, 0, (1 << 64) - 1)
    check_integer("delta", request.delta, 0, (1 << 64) - 1)
    if request.argument and not meta:
        raise InvalidRequest("argument is for stats, which takes no key")
    if type(request.value) is not bytes:
        raise TypeError(f"value must be bytes, not {type(request.value).__name__}")


def line_of(tokens: Iterable[bytes]) -> bytes:
    """The one place that makes a request line. Its tokens were checked before."""
    return b" ".join(tokens) + b"\r\n"


def _encode_retrieval(request: Request) -> list[bytes]:
    # get <key>*\r\n                 gat <exptime> <key>*\r\n
    if request.verb in (b"gat", b"gats"):
        return [line_of([request.verb, b"%d" % request.exptime, *request.keys])]
    return [line_of([request.verb, *request.keys])]


def _encode_storage(request: Request) -> list[bytes]:
    # <command name> <key> <flags> <exptime> <bytes> [noreply]\r\n<data block>\r\n
    # cas <key> <flags> <exptime> <bytes> <cas unique> [noreply]\r\n<data block>\r\n
    verb, keys, block, flags, exptime, cas_unique, _, noreply, _ = request
    tokens = [verb, keys[0], b"%d %d %d" % (flags, exptime, len(block))]
    if verb == b"cas":
        tokens.append(b"%d" % cas_unique)
    if noreply:
        tokens.append(b"noreply")
    if len(block) <= STREAMED_BLOCK:
        return [b"%b%b\r\n" % (line_of(tokens), block)]
    return [line_of(tokens), block, b"\r\n"]


def _encode_line(request: Request) -> list[bytes]:
    tokens = [request.verb, *request.keys]
    if request.verb in (b"incr", b"decr"):  # incr <key> <value> [noreply]\r\n
        tokens.append(b"%d" % request.delta)
    elif request.verb == b"touch":  # touch <key> <exptime> [noreply]\r\n
        tokens.append(b"%d" % request.exptime)
    elif request.verb == b"flush_all" and request.exptime:
        tokens.append(b"%d" % request.exptime)
    if request.argument:  # stats <args>\r\n   config get <name>\r\n
        tokens.append(request.argument)
    if request.noreply:
        tokens.append(b"noreply")
    return [line_of(tokens)]


def _encode_meta(request: Request) -> list[bytes]:
    # mg|md|ma|me <key> <flags>*\r\n   mn\r\n   ms <key> <datalen> <flags>*\r\n<data block>\r\n
    tokens = [request.verb]
    if request.keys:
        tokens.append(wire_key(request))
    if request.verb == b"ms":
        tokens.append(b"%d" % len(request.value))
    if request.argument:
        tokens.append(request.argument)
    if request.verb != b"ms":
        return [line_of(tokens)]
    if len(request.value) <= STREAMED_BLOCK:
        return [b"%b%b\r\n" % (line_of(tokens), request.value)]
    return [line_of(tokens), request.value, b"\r\n"]


_ENCODERS: dict[str, Callable[[Request], list[bytes]]] = {
    "retrieval": _encode_retrieval,
    "storage": _encode_storage,
    "meta": _encode_meta,
}


def encode_request(request: Request) -> list[bytes]:
    """Returns the bytes of ``request``, a large value as a piece of its own."""
    return _ENCODERS.get(VERBS[request.verb].shape, _encode_line)(request)


def error_of(line: bytes) -> ReplyError | None:
    """Returns the error that an error line stands for (protocol.txt, "Error strings")."""
    word, _, told = line.partition(b" ")
    text = _words(told or word)
    if word == b"SERVER_ERROR":
        return ItemTooLarge(text) if b"too large" in told else ServerError(text)
    if word == b"CLIENT_ERROR":
        return ClientError(text)
    if word == b"ERROR":
        return ClientError(text if b" " in told else "the server does not know the command (ERROR)")
    return None


def _words(text: bytes) -> str:
    """Returns a server's own words as a message may show them: printable, and cut."""
    words = text.decode("utf-8", "replace")
    if not words.isprintable():
        words = "".join(one if one.isprintable() else "\ufffd" for one in words)
    return words if len(words) <= WORDS_SHOWN else words[: WORDS_SHOWN - 3] + "..."


#: The words with which a line of memcached begins.
_BEGINNINGS = frozenset(
    b"STORED NOT_STORED EXISTS NOT_FOUND DELETED TOUCHED OK END VALUE STAT ITEM RESET VERSION "
    b"HD VA EN NF NS EX MN ME ERROR CLIENT_ERROR SERVER_ERROR".split()
)


def told_of(line: bytes) -> str:
    """Returns what a message says of a line that is no reply: its kind, never its text."""
    word = line.partition(b" ")[0]
    if word in _BEGINNINGS:
        return f"{word.decode()} in a line of {len(line)} bytes"
    if line.startswith(b"HTTP/"):
        return "the answer of an HTTP server"
    return f"a line of {len(line)} bytes"


def config_length(line: bytes) -> int:
    """Returns the length of the block behind ``CONFIG <name> <flags> <bytes>``."""
    fields = line.split(b" ")
    length = read_number(fields[-1], 63, "a length")
    if len(fields) != 4 or length > MAX_CONFIG:
        told = f"{len(fields)} fields, {length} bytes"
        raise ProtocolError(f"the server sent a CONFIG line with {told}")
    return length


class _Headers(dict[bytes, tuple[int, int, int | None]]):
    r"""A bounded memo of what stands behind the key of a VALUE line.

    Most values of an application have a few lengths and flags: reading
    `` 0 100`` by look-up costs a quarter of splitting and converting it.
    """

    def __missing__(self, header: bytes) -> tuple[int, int, int | None]:
        fields = header.split(b" ")
        if len(fields) not in (3, 4) or fields[0]:
            told = f"{len(fields) - 1} fields behind its key"
            raise ProtocolError(f"the server sent a VALUE line with {told}")
        flags = read_number(fields[1], 32, "flags")
        length = read_number(fields[2], 63, "a length")
        cas = read_number(fields[3], 64, "a cas unique") if len(fields) == 4 else None
        if cas is None:
            if len(self) >= 4096:
                self.clear()
            self[header] = (flags, length, None)
        return flags, length, cas


headers = _Headers()
