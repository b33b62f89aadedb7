r"""The server's side of the meta dialect: requests are read, replies written.

Knows the grammar of protocol.txt ("Meta Commands") and what memcached 1.6.18
answers to a line that is no request. It must not know a socket, a loop, a
store or who answers. Every verb takes every flag, as in memcached; those that
mean nothing to it are ignored.
"""

import binascii
import string
from collections.abc import Callable, Iterable, Iterator
from typing import NamedTuple

from .protocol import STREAMED_BLOCK, Reply, Request
from .words import BAD_LINE, UINT32, BadLine, key_of, length_of, read_signed, read_unsigned

#: The verbs.
VERBS = (b"mg", b"ms", b"md", b"ma", b"mn", b"me")
#: So many words a line has at most, and so many bytes an opaque with its letter.
_MOST_WORDS = 19
_LONGEST_OPAQUE = 32
_BAD_TOKEN = b"CLIENT_ERROR bad token in command line format"
_BAD_KEY = b"CLIENT_ERROR error decoding key"
_BAD_MODE = b"CLIENT_ERROR incorrect length for M token"
_TOO_LONG = b"CLIENT_ERROR opaque token too long"
#: What a mode may be, by verb.
MODES = {b"ms": b"EAPRS", b"ma": b"I+D-"}
#: What quiet mode leaves out: the ordinary answers, by verb.
_QUIET = {b"mg": (b"EN",), b"ms": (b"HD",), b"md": (b"HD",), b"ma": (b"HD", b"VA")}


class Flags(NamedTuple):
    """The flags of one request, read.

    ``words`` are they as they stand in the line. The rest is what those
    with a token say, None (or what stands for nothing) where there is none.
    """

    words: tuple[bytes, ...] = ()
    vivify: int | None = None
    exptime: int | None = None
    recache: int | None = None
    client_flags: int = 0
    cas_unique: int | None = None
    initial: int = 0
    delta: int = 1
    mode: bytes = b""

    def has(self, letter: bytes) -> bool:
        """True if a flag begins with ``letter``."""
        return any(word.startswith(letter) for word in self.words)


class _Token(NamedTuple):
    """How the token of a flag is read, and what is said of a bad one (b"": nothing new)."""

    name: str
    read: Callable[[bytes], int | None]
    refusal: bytes


_TOKENS = {
    b"N": _Token("vivify", read_signed, _BAD_TOKEN),
    b"T": _Token("exptime", read_signed, _BAD_TOKEN),
    b"R": _Token("recache", read_signed, _BAD_TOKEN),
    b"F": _Token("client_flags", read_unsigned, b""),
    b"C": _Token("cas_unique", read_unsigned, _BAD_TOKEN),
    b"J": _Token("initial", read_unsigned, b"CLIENT_ERROR invalid numeric initial value"),
    b"D": _Token("delta", read_unsigned, b"CLIENT_ERROR invalid numeric delta value"),
}
#: The flags that are read for nothing more than being there.
_PLAIN = b"bcfhkqstuvlIOPL"


def read_flags(words: Iterable[bytes], bad_key: bool = False) -> Flags:
    """Returns the flags that ``words`` are. Raises `BadLine` as memcached complains.

    ``bad_key`` says that the key is not what the flag ``b`` makes of it.
    """
    told: dict[str, int | bytes] = {}
    seen: set[int] = set()
    fault: bytes | None = None
    words = tuple(words)
    for word in words:
        letter, token = word[:1], word[1:]
        if letter[0] >= 127 or letter[0] in seen:
            raise BadLine(b"CLIENT_ERROR duplicate flag")
        seen.add(letter[0])
        if kind := _TOKENS.get(letter):
            number = kind.read(token)
            if number is None:
                fault = kind.refusal or fault or BAD_LINE
            else:
                told[kind.name] = number
        elif letter == b"M":
            told["mode"] = token
            if len(token) != 1:
                fault = _BAD_MODE
        elif letter == b"b" and bad_key:
            fault = _BAD_KEY
        elif letter not in _PLAIN:
            raise BadLine(b"CLIENT_ERROR invalid flag")
    if fault is not None:
        raise BadLine(fault)
    flags = Flags(words)._replace(**told)  # type: ignore[arg-type]
    return flags._replace(client_flags=flags.client_flags & UINT32)


def flags_of(request: Request) -> Flags:
    """Returns the flags of a request that was read here."""
    return read_flags(request.argument.split(b" ") if request.argument else ())


#: All bytes that are none of base64's: memcached passes over them.
_FOREIGN = bytes(set(range(256)) - set(string.ascii_letters.encode() + b"0123456789+/="))


def _decoded(word: bytes) -> bytes:
    """Returns the key that base64 stands for, b"" if it stands for none.

    As memcached: it ends with the first four that are padded.
    """
    word = word.translate(None, _FOREIGN)
    if len(word) % 4:
        return b""
    padded = word.find(b"=")
    last = word[: padded - padded % 4 + 4] if padded >= 0 else word
    padding = last.count(b"=")
    key = binascii.a2b_base64(last.replace(b"=", b"A"))
    return b"" if padding > 2 else key[: len(key) - padding]


def encoded_key(key: bytes) -> bytes:
    """Returns ``key`` as base64."""
    return binascii.b2a_base64(key, newline=False)


def key_told(key: bytes, binary: bool) -> bytes:
    """Returns what the flag ``k`` is answered with, and the ``b`` of a binary key."""
    return b"k%b b" % encoded_key(key) if binary else b"k" + key


def echoed(flags: Flags, key: bytes, binary: bool, cas_unique: int | None = None) -> bytes:
    """Returns what of ``flags`` comes back whatever was found: opaque, key, cas_unique if any."""
    told = []
    for word in flags.words:
        if word.startswith(b"O"):
            told.append(word)
        elif word.startswith(b"k"):
            told.append(key_told(key, binary))
        elif word.startswith(b"c") and cas_unique is not None:
            told.append(b"c%d" % cas_unique)
    return b" ".join(told)


def read_meta(words: list[bytes]) -> Request:
    """Returns the request of a line without a block. Raises `BadLine`."""
    # mg|md|ma <key> <flags>*\r\n   me <key> [b]\r\n   mn\r\n
    verb = words[0]
    if verb == b"mn":
        return Request(verb)
    if verb == b"me":
        return _read_debug(words)
    if len(words) < 2:
        raise BadLine(b"ERROR")
    key, flags = _read_key_and_flags(words, 2)
    _check_tokens(verb, flags)
    return Request(verb, (key,), argument=b" ".join(flags.words))


def _read_debug(words: list[bytes]) -> Request:
    if len(words) < 2:
        raise BadLine(BAD_LINE)
    key = key_of(words[1])
    if words[2:3] == [b"b"] and not (key := _decoded(key)):
        raise BadLine(BAD_LINE)
    return Request(words[0], (key,), argument=b" ".join(words[2:]))


def _read_key_and_flags(words: list[bytes], first: int) -> tuple[bytes, Flags]:
    verb, key = words[0], key_of(words[1])
    if len(words) > _MOST_WORDS:
        are = b"are " if verb == b"mg" else b""
        raise BadLine(b"CLIENT_ERROR options flags %btoo long" % are)
    decoded = _decoded(key)
    try:
        flags = read_flags(words[first:], bad_key=not decoded)
    except BadLine:
        if verb in (b"md", b"ma"):
            raise BadLine(b"CLIENT_ERROR invalid or duplicate flag") from None
        raise
    return decoded if flags.has(b"b") else key, flags


def _check_tokens(verb: bytes, flags: Flags) -> None:
    modes = MODES.get(verb)
    if modes is not None and flags.mode and flags.mode not in modes:
        raise BadLine(b"CLIENT_ERROR invalid mode for %b M token" % verb)
    for word in flags.words:
        if word.startswith(b"O") and len(word) > _LONGEST_OPAQUE:
            raise BadLine(_TOO_LONG)


class Announced(NamedTuple):
    """A request whose block is to come, or the refusal that follows on the block.

    ``length`` is that of the block, ``flags`` are the client's flags of the item.
    """

    request: Request
    length: int
    flags: int
    refusal: bytes = b""


def read_set(words: list[bytes]) -> Announced:
    """Reads the line of an ``ms``. Raises `BadLine` where no block follows on the answer."""
    # ms <key> <datalen> <flags>*\r\n
    if len(words) < 2:
        raise BadLine(b"ERROR")
    verb, key = words[0], key_of(words[1])
    if len(words) < 3:
        raise BadLine(BAD_LINE)
    if len(words) > _MOST_WORDS:
        raise BadLine(b"CLIENT_ERROR options flags too long")
    length = length_of(words[2])
    try:
        key, flags = _read_key_and_flags(words, 3)
        _check_tokens(verb, flags)
    except BadLine as error:
        return Announced(Request(verb, (key,)), length, 0, error.args[0])
    request = Request(verb, (key,), argument=b" ".join(flags.words))
    return Announced(request, length, flags.client_flags)


def is_quiet(request: Request) -> bool:
    """True if ``request`` has the flag ``q``."""
    return b" q" in b" " + request.argument


def encode_meta(request: Request, reply: Reply) -> Iterator[bytes]:
    """Yields the bytes of ``reply``, unless quiet mode leaves it out.

    An ``ma`` that made the item is told of in any case, as memcached does
    it: its reply has a ``number``.
    """
    # VA <size> <flags>*\r\n<data block>\r\n   HD|EN|NF|NS|EX <flags>*\r\n   ME <key> ...\r\n
    status, text = reply.status, b" " + reply.text if reply.text else b""
    if status in _QUIET.get(request.verb, ()) and is_quiet(request) and not reply.number:
        return
    if status != b"VA":
        yield b"%b%b\r\n" % (status, text)
    elif len(reply.value) <= STREAMED_BLOCK:
        yield b"VA %d%b\r\n%b\r\n" % (len(reply.value), text, reply.value)
    else:
        yield from (b"VA %d%b\r\n" % (len(reply.value), text), reply.value, b"\r\n")
