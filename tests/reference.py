r"""What a memcached server sends to a client, read slowly and obviously.

Knows the replies of protocol.txt, each quoted above what reads it, and which
of them a connection does not survive. It always reads a stream from its
first byte, one line or one data block at a time, and keeps nothing. It must
not know the package: it is what the package's parser is compared with, so it
shares no line with it.
"""

from __future__ import annotations

import base64
import re
from collections.abc import Callable, Sequence
from typing import NamedTuple

#: A line, with its CRLF, is never longer.
LONGEST_LINE = 2048
#: No server has more statistics, in lines or in bytes.
MOST_STATS = 120_000
MOST_STATS_BYTES = 4 * 1024 * 1024
MOST_CONFIG_BYTES = 16 * 1024

STORAGE = (b"set", b"add", b"replace", b"append", b"prepend")
RETRIEVAL = (b"get", b"gets", b"gat", b"gats")


class Asked(NamedTuple):
    """A request to which a reply is owed.

    ``unconfirmed``: a noreply request left before it, and nothing has come
    since. ``callers``: how many callers wait for each of the keys, if it is a
    line of gets that were gathered.
    """

    verb: bytes
    keys: tuple[bytes, ...] = ()
    unconfirmed: bool = False
    callers: tuple[int, ...] = ()
    #: The flags of a meta command. A batch has q for the first of them, and opaques of its own.
    argument: bytes = b""


class Told(NamedTuple):
    """A reply; ``items`` maps keys to (value, flags, cas unique or None)."""

    word: bytes
    items: dict[bytes, tuple[bytes, int, int | None]] = {}
    number: int = 0
    text: bytes = b""
    stats: dict[str, str] = {}
    value: bytes = b""
    #: What came of a batch: the replies by key, the keys of which nothing is known, the error.
    batch: tuple[dict[bytes, Told], frozenset[bytes], str | None] | None = None


class Reading(NamedTuple):
    """What a stream holds.

    ``outcomes`` are those of the requests that are answered, in order: a
    `Told`, or the name of an error. ``failure`` is the name of the error that
    ends the connection, or None. ``ends`` is where each line and each block
    ends that was read; behind the last one is what could not be read, or not
    yet.
    """

    outcomes: list[Told | str]
    failure: str | None
    ends: list[int]


class _Unfinished(Exception):
    """The rest has not come yet."""


class _Broken(Exception):
    """This is no reply. Its argument is the name of the error."""


class _Stream:
    def __init__(self, data: bytes) -> None:
        self.data = data
        self.ends: list[int] = []

    @property
    def rest(self) -> bytes:
        return self.data[self.ends[-1] :] if self.ends else self.data

    def _take(self, length: int) -> None:
        self.ends.append(len(self.data) - len(self.rest) + length)

    def line(self) -> bytes:
        # "Text lines are always terminated by \r\n."
        rest = self.rest
        line, crlf, _ = rest.partition(b"\r\n")
        if crlf and len(line + crlf) <= LONGEST_LINE:
            self._take(len(line + crlf))
            return line
        if len(rest) < LONGEST_LINE:
            raise _Unfinished
        raise _Broken("ProtocolError")

    def block(self, length: int) -> bytes:
        # "<data block>\r\n": "it must use the length of the data block to
        # determine where the data block ends".
        rest = self.rest
        if len(rest) < length + 2:
            raise _Unfinished
        if rest[length : length + 2] != b"\r\n":
            raise _Broken("ProtocolError")
        self._take(length + 2)
        return rest[:length]


def _number(digits: bytes, bits: int) -> int:
    # "a decimal representation of a 64-bit unsigned integer": at most 20 digits.
    if not re.fullmatch(rb"[0-9]{1,20}", digits) or int(digits) >= 2**bits:
        raise _Broken("ProtocolError")
    return int(digits)


def _error(asked: Asked, line: bytes, stream: _Stream) -> str:
    # ERROR\r\n   CLIENT_ERROR <error>\r\n   SERVER_ERROR <error>\r\n
    if len(stream.ends) == 1 and line == b"ERROR Too many open connections":
        raise _Broken("ConnectionRefused")
    word, _, told = line.partition(b" ")
    if word not in (b"ERROR", b"CLIENT_ERROR", b"SERVER_ERROR"):
        raise _Broken("ProtocolError")
    if asked.unconfirmed:
        raise _Broken("ProtocolError")  # (it may be the answer to the noreply request)
    if word != b"SERVER_ERROR":
        return "ClientError"
    return "ItemTooLarge" if b"too large" in told else "ServerError"


#: What each of these is answered with, when all is well.
WORDS: dict[bytes, tuple[bytes, ...]] = {
    # STORED\r\n   NOT_STORED\r\n
    **dict.fromkeys(STORAGE, (b"STORED", b"NOT_STORED")),
    # STORED\r\n   EXISTS\r\n   NOT_FOUND\r\n
    b"cas": (b"STORED", b"EXISTS", b"NOT_FOUND"),
    b"delete": (b"DELETED", b"NOT_FOUND"),
    b"touch": (b"TOUCHED", b"NOT_FOUND"),
    b"flush_all": (b"OK",),
    b"verbosity": (b"OK",),
}

_Outcome = tuple[Told | str, bool]  # (and whether the connection goes on)


def _read_word(asked: Asked, stream: _Stream) -> _Outcome:
    line = stream.line()
    if line in WORDS[asked.verb]:
        return Told(line), True
    error = _error(asked, line, stream)
    # memcached takes the block of a storage request that it refuses for
    # requests, and answers those too; only a SERVER_ERROR swallows it.
    return error, error != "ClientError" or asked.verb not in (*STORAGE, b"cas")


def _read_count(asked: Asked, stream: _Stream) -> _Outcome:
    # NOT_FOUND\r\n   <value>\r\n   "MAY be space-padded at the end"
    line = stream.line()
    if line == b"NOT_FOUND":
        return Told(line), True
    if re.fullmatch(rb"[0-9]+ *", line):
        return Told(b"NUMBER", number=_number(line.rstrip(b" "), 64)), True
    return _error(asked, line, stream), True


def _read_version(asked: Asked, stream: _Stream) -> _Outcome:
    # VERSION <version>\r\n
    line = stream.line()
    if line.startswith(b"VERSION "):
        return Told(b"VERSION", text=line[len(b"VERSION ") :]), True
    return _error(asked, line, stream), True


def _read_stats(asked: Asked, stream: _Stream) -> _Outcome:
    # STAT <name> <value>\r\n ... END\r\n   (or ITEM or PREFIX)   RESET\r\n
    stats: dict[str, str] = {}
    lines = size = 0
    while True:
        line = stream.line()
        if line == b"END" or (line == b"RESET" and not lines):
            return Told(line, stats=stats), True
        if not line.startswith((b"STAT ", b"ITEM ", b"PREFIX ")):
            # In the middle of its lines nobody can say what still comes.
            return _error(asked, line, stream), not lines
        lines, size = lines + 1, size + len(line)
        if lines > MOST_STATS or size > MOST_STATS_BYTES:
            raise _Broken("ProtocolError")
        _, _, told = line.partition(b" ")
        name, _, value = told.decode("utf-8", "replace").partition(" ")
        stats[name] = value


def _read_config(asked: Asked, stream: _Stream) -> _Outcome:
    # CONFIG <name> <flags> <bytes>\r\n<data block>\r\nEND\r\n
    line = stream.line()
    if not line.startswith(b"CONFIG "):
        return _error(asked, line, stream), True
    words = line.split(b" ")
    length = _number(words[-1], 63)
    if len(words) != 4 or length > MOST_CONFIG_BYTES:
        raise _Broken("ProtocolError")
    block = stream.block(length)
    line = stream.line()
    return (
        (Told(b"CONFIG", text=block), True)
        if line == b"END"
        else (_error(asked, line, stream), False)
    )


def _read_items(asked: Asked, stream: _Stream, limit: int) -> _Outcome:
    # VALUE <key> <flags> <bytes> [<cas unique>]\r\n<data block>\r\n ... END\r\n
    # An item is that of the next place that asks for its key, from the last one on and then from
    # the begin; of a key that was asked for twice the last place counts.
    items: list[tuple[bytes, int, int | None] | None] = [None] * len(asked.keys)
    last = -1
    while True:
        line = stream.line()
        if line == b"END":
            found = {key: item for key, item in zip(asked.keys, items) if item is not None}
            return Told(b"END", found), True
        if not line.startswith(b"VALUE "):
            return _error(asked, line, stream), last < 0
        words = line.split(b" ")
        if len(words) != (5 if asked.verb in (b"gets", b"gats") else 4):
            raise _Broken("ProtocolError")
        key, flags, length = words[1], _number(words[2], 32), _number(words[3], 64)
        cas_unique = _number(words[4], 64) if len(words) == 5 else None
        # Misses are left out; a proxy answers server by server, so hits may be in any order.
        places = [*range(last + 1, len(items)), *range(last + 1)]
        places = [at for at in places if asked.keys[at] == key and items[at] is None]
        if not places or length > limit:
            raise _Broken("ProtocolError")
        last = places[0]
        items[last] = (stream.block(length), flags, cas_unique)


#: The codes with which a server answers a meta command.
CODES: dict[bytes, tuple[bytes, ...]] = {
    b"mg": (b"HD", b"VA", b"EN"),
    b"ms": (b"HD", b"NS", b"EX", b"NF"),
    b"md": (b"HD", b"NF", b"EX"),
    b"ma": (b"HD", b"VA", b"NF", b"NS", b"EX"),
    b"mn": (b"MN",),
    b"me": (b"ME", b"EN"),
}
#: How many bits the number behind a returned flag has.
_BITS = {b"c": 64, b"f": 32, b"h": 1, b"l": 32, b"s": 32, b"t": 32}
#: memcached swallows the block of a ms after these.
_SWALLOWED = (b"CLIENT_ERROR invalid flag", b"CLIENT_ERROR opaque token too long")


def _flags(words: Sequence[bytes]) -> dict[bytes, bytes]:
    # "<flags>* are flags returned by the server, based on the command flags."
    found: dict[bytes, bytes] = {}
    for word in words:
        letter, token = word[:1], word[1:]
        if not letter or letter in found:
            raise _Broken("ProtocolError")
        if letter in _BITS and not (letter == b"t" and token == b"-1"):
            _number(token, _BITS[letter])
        if letter in (b"W", b"X", b"Z") and token:
            raise _Broken("ProtocolError")
        found[letter] = token
    if b"W" in found and b"Z" in found:
        raise _Broken("ProtocolError")
    return found


def _asked_flags(asked: Asked) -> dict[bytes, bytes]:
    return {word[:1]: word[1:] for word in asked.argument.split(b" ") if word}


def _check_meta(asked: Asked, code: bytes, flags: dict[bytes, bytes], key: bytes) -> None:
    wanted = _asked_flags(asked)
    if b"k" in flags:
        # "If 'b' flag is sent in the response, and a key is returned via 'k', this
        # signals to the client that the key is base64 encoded binary."
        if flags[b"k"] != (base64.b64encode(key) if b"b" in flags else key):
            raise _Broken("ProtocolError")
    if code in (b"HD", b"VA"):
        if (code == b"VA") != (b"v" in wanted):
            raise _Broken("ProtocolError")
        if any(letter in b"cfhklOst" and letter not in flags for letter in wanted):
            raise _Broken("ProtocolError")


def _meta_block(asked: Asked, words: list[bytes], stream: _Stream, limit: int) -> bytes:
    # VA <size> <flags>*\r\n<data block>\r\n
    block = stream.block(_number(words[1], 63))
    if asked.verb == b"ma":
        _number(block.rstrip(b" "), 64)
    return block


def _meta_size(asked: Asked, words: list[bytes], limit: int) -> None:
    size = _number(words[1], 63) if len(words) > 1 else _number(b"", 63)
    if size > limit or (asked.verb == b"ma" and size > 20):
        raise _Broken("ProtocolError")


def _meta_error(asked: Asked, line: bytes, stream: _Stream) -> str:
    error = _error(asked, line, stream)
    unknown = (b"CLIENT_ERROR invalid flag", b"CLIENT_ERROR invalid or duplicate flag")
    return "MetaUnsupported" if line in unknown else error


def _read_meta(asked: Asked, stream: _Stream, limit: int) -> _Outcome:
    # <RC> <datalen*> <flag1> <flag2> <...>\r\n
    line = stream.line()
    words = line.split(b" ")
    code, text = words[0], line[3:]
    if code not in CODES[asked.verb] or line == code + b" ":
        outcome = _meta_error(asked, line, stream)
        closes = asked.verb == b"ms" and outcome not in ("ServerError", "ItemTooLarge")
        return outcome, not closes or line in _SWALLOWED
    key = asked.keys[0] if asked.keys else b""
    if code == b"ME":  # ME <key> <k>=<v>*\r\n
        if words[1:2] not in ([key], [base64.b64encode(key)]):
            raise _Broken("ProtocolError")
        return Told(code, text=text), True
    if code == b"VA":
        _meta_size(asked, words, limit)
        text = text.partition(b" ")[2]
    flags = _flags(text.split(b" ") if text else [])
    if b"O" in flags and flags[b"O"] != _asked_flags(asked).get(b"O"):
        raise _Broken("ProtocolError")
    _check_meta(asked, code, flags, key)
    block = _meta_block(asked, words, stream, limit) if code == b"VA" else b""
    return Told(code, text=text, value=block), True


def _read_batch(asked: Asked, stream: _Stream, limit: int) -> _Outcome:
    # "Errors are always returned": without an opaque. "MN\r\n" is behind all.
    replies: dict[bytes, Told] = {}
    unknown: set[bytes] = set()
    failed: list[str] = []
    last, errors_since = -1, False
    while True:
        line = stream.line()
        words = line.split(b" ")
        code = words[0]
        if line == b"MN":
            number = len(asked.keys)
        elif code not in CODES[asked.verb] or len(words) < 2:
            failed.append(_meta_error(asked, line, stream))
            if len(failed) > len(asked.keys):
                raise _Broken("ProtocolError")
            errors_since = True
            continue
        else:
            text = line[3:]
            if code == b"VA":
                _meta_size(asked, words, limit)
                text = text.partition(b" ")[2]
            flags = _flags(text.split(b" ") if text else [])
            number = _number(flags.get(b"O", b""), 32)
            if not last < number < len(asked.keys):
                raise _Broken("ProtocolError")
            _check_meta(asked, code, flags, asked.keys[number])
            block = _meta_block(asked, words, stream, limit) if code == b"VA" else b""
            replies[asked.keys[number]] = Told(code, text=text, value=block)
        if errors_since:
            unknown.update(asked.keys[last + 1 : number])
        last, errors_since = number, False
        if line == b"MN":
            error = failed[0] if failed else None
            return Told(b"MN", batch=(replies, frozenset(unknown), error)), True


def _read_reply(asked: Asked, stream: _Stream, limit: int) -> _Outcome:
    if asked.verb in RETRIEVAL:
        return _read_items(asked, stream, limit)
    if asked.verb in CODES:
        quiet = asked.argument.startswith(b"q")
        return (_read_batch if quiet else _read_meta)(asked, stream, limit)
    readers: dict[bytes, Callable[[Asked, _Stream], _Outcome]] = {
        b"incr": _read_count,
        b"decr": _read_count,
        b"version": _read_version,
        b"stats": _read_stats,
        b"config": _read_config,
    }
    return readers.get(asked.verb, _read_word)(asked, stream)


def read(owed: Sequence[Asked], data: bytes, limit: int) -> Reading:
    """Returns what ``data`` tells those that are ``owed`` a reply, in their order.

    ``limit`` is the length in bytes above which a value is refused.
    """
    stream = _Stream(data)
    outcomes: list[Told | str] = []
    try:
        for asked in owed:
            outcome, goes_on = _read_reply(asked, stream, limit)
            outcomes.append(outcome)
            if not goes_on:
                return Reading(outcomes, "ProtocolError", stream.ends)
    except _Unfinished:
        return Reading(outcomes, None, stream.ends)
    except _Broken as error:
        return Reading(outcomes, str(error), stream.ends)
    # What is left was not asked for.
    return Reading(outcomes, "ProtocolError" if stream.rest else None, stream.ends)
