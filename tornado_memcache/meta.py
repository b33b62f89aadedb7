r"""The meta dialect: which flags each verb takes, what they bear, and which exclude each other.

Knows the section "Meta Commands" of protocol.txt, in bytes and integers. It
must not know a socket, a loop, a slot, or what an option is called on a
client. How a line is built, and which verbs there are, is in `text`.

A request bears its flags in ``argument`` as they stand on the wire, ``b"v f
t N30 Oabc"``, one space between them; a reply has those that came back in
``text``. The key is always as memcached keeps it: with the flag ``b`` it
crosses the wire in base64.
"""

import binascii
from collections.abc import Mapping
from typing import NamedTuple

from .arguments import MAX_BINARY_KEY_LENGTH, is_word, key_bytes
from .errors import InvalidKey, InvalidRequest, ProtocolError, shown
from .protocol import Request, read_number

#: protocol.txt allows an opaque of so many bytes. (memcached 1.6.18 takes one less.)
MAX_OPAQUE = 32
#: The hints of ``P`` and ``L``, which memcached ignores, and proxies read.
MAX_HINT = 250
#: memcached 1.6.10 is the first with the dialect as it is now: before, HD was OK, and the
#: length of a block stood in a flag.
OLDEST = (1, 6, 10)

#: The kinds of what stands behind a letter.
NONE, NUMBER, BYTES, MODE = "none", "number", "bytes", "mode"


class Flag(NamedTuple):
    """What a letter is called, the kind of its token, and what that may be."""

    name: str
    kind: str = NONE
    lowest: int = 0
    highest: int = 0
    modes: bytes = b""


def _exptime(name: str) -> Flag:
    return Flag(name, NUMBER, -(1 << 31), (1 << 31) - 1)


def _unsigned(name: str, bits: int = 64) -> Flag:
    return Flag(name, NUMBER, 0, (1 << bits) - 1)


_EVERY = {
    b"b": Flag("base64 key"),
    b"k": Flag("return key"),
    b"O": Flag("opaque", BYTES, highest=MAX_OPAQUE),
    b"q": Flag("quiet"),
    b"P": Flag("path", BYTES, highest=MAX_HINT),
    b"L": Flag("hint", BYTES, highest=MAX_HINT),
}
_COMPARE = {b"C": _unsigned("compare cas unique"), b"E": _unsigned("explicit cas unique")}

#: verb -> letter -> what stands there (protocol.txt: "Meta Get", "Meta Set", "Meta Delete",
#: "Meta Arithmetic", "Meta No-Op", "Meta Debug").
FLAGS: dict[bytes, dict[bytes, Flag]] = {
    b"mg": {
        **_EVERY,
        b"c": Flag("return cas unique"),
        b"f": Flag("return flags"),
        b"h": Flag("return hit before"),
        b"l": Flag("return last access"),
        b"s": Flag("return size"),
        b"t": Flag("return remaining exptime"),
        b"u": Flag("no bump"),
        b"v": Flag("return value"),
        b"E": _unsigned("explicit cas unique"),
        b"N": _exptime("vivify"),
        b"R": _exptime("recache"),
        b"T": _exptime("exptime"),
    },
    b"ms": {
        **_EVERY,
        **_COMPARE,
        b"c": Flag("return cas unique"),
        b"s": Flag("return size"),
        b"F": _unsigned("flags", 32),
        b"I": Flag("invalidate"),
        b"M": Flag("mode", MODE, modes=b"EAPRS"),
        b"N": _exptime("vivify"),
        b"T": _exptime("exptime"),
    },
    b"md": {
        **_EVERY,
        **_COMPARE,
        b"I": Flag("invalidate"),
        b"T": _exptime("exptime"),
        b"x": Flag("remove value"),
    },
    b"ma": {
        **_EVERY,
        **_COMPARE,
        b"c": Flag("return cas unique"),
        b"t": Flag("return remaining exptime"),
        b"v": Flag("return value"),
        b"D": _unsigned("delta"),
        b"J": _unsigned("initial"),
        b"M": Flag("mode", MODE, modes=b"ID+-"),
        b"N": _exptime("vivify"),
        b"T": _exptime("exptime"),
    },
    b"mn": {},
    b"me": {b"b": Flag("base64 key")},
}


def flags_of(argument: bytes) -> dict[bytes, bytes]:
    """Returns letter to token of the flags of a request, in their order."""
    return {word[:1]: word[1:] for word in argument.split(b" ")} if argument else {}


def check_flags(verb: bytes, argument: object) -> dict[bytes, bytes]:
    """Returns the flags of a request to ``verb``, or raises for what cannot be sent.

    `TypeError` and `.InvalidRequest`, which name the letter: one that the
    verb does not take or has twice, a token that does not fit it, and what
    the protocol does not allow together.
    """
    if type(argument) is not bytes:
        raise TypeError(f"argument must be bytes, not {type(argument).__name__}")
    told, words = verb.decode("latin-1"), argument.split(b" ") if argument else []
    flags: dict[bytes, bytes] = {}
    for word in words:
        letter, token = word[:1], word[1:]
        flag = FLAGS[verb].get(letter)
        if flag is None:
            raise InvalidRequest(f"argument: {told} has no flag {shown(letter)}")
        if letter in flags:
            raise InvalidRequest(f"argument: flag {letter.decode()} stands there twice")
        _check_token(f"argument: flag {letter.decode()} ({flag.name})", flag, token)
        flags[letter] = token
    _check_together(verb, flags)
    return flags


def _check_token(told: str, flag: Flag, token: bytes) -> None:
    if flag.kind == NONE:
        good = not token
    elif flag.kind == MODE:
        good = len(token) == 1 and token in flag.modes
    elif flag.kind == BYTES:
        good = len(token) <= flag.highest and is_word(token)
    else:
        digits = token[token.startswith(b"-") :]
        good = digits.isdigit() and len(digits) <= 20 and flag.lowest <= int(token) <= flag.highest
    if not good:
        raise InvalidRequest(f"{told} cannot be {shown(token)}")


def _check_together(verb: bytes, flags: Mapping[bytes, bytes]) -> None:
    """Refuses what has no meaning without another flag, and would be ignored."""
    needs = {b"J": b"N"} if verb == b"ma" else {b"T": b"I"} if verb == b"md" else {}
    for letter, other in needs.items():
        if letter in flags and other not in flags:
            raise InvalidRequest(f"argument: flag {letter.decode()} needs {other.decode()}")
    if verb == b"mg" and b"E" in flags and b"N" not in flags:
        raise InvalidRequest("argument: flag E needs N")


def check_opaque(name: str, opaque: object) -> bytes:
    """Returns ``opaque`` (bytes, or a str, sent as utf-8) if it can be the token of ``O``."""
    token = opaque.encode("utf-8", "replace") if isinstance(opaque, str) else opaque
    if not isinstance(token, bytes):
        raise TypeError(f"{name} must be bytes or str, not {type(opaque).__name__}")
    if not 0 < len(token) <= MAX_OPAQUE or not is_word(token):
        raise InvalidRequest(
            f"{name} must have 1 to {MAX_OPAQUE} bytes, none of them white space or a control "
            "character"
        )
    return bytes(token)


def check_key(key: bytes, flags: Mapping[bytes, bytes]) -> None:
    """Raises `.InvalidKey` for a key that cannot be asked for with these flags."""
    if b"b" not in flags:
        key_bytes(key)
    elif not 0 < len(key) <= MAX_BINARY_KEY_LENGTH:
        raise InvalidKey(f"key of {len(key)} bytes: a binary key has 1 to {MAX_BINARY_KEY_LENGTH}")


def in_base64(key: bytes) -> bytes:
    return binascii.b2a_base64(key, newline=False)


def wire_key(request: Request) -> bytes:
    """Returns the key of ``request`` as its line has it."""
    key = request.keys[0]
    return in_base64(key) if b" b " in b" %b " % request.argument else key


# -- what comes back

#: The numbers that a reply may bear, each with its bits. ``t`` may be -1 also.
_NUMBERS = {b"c": 64, b"f": 32, b"h": 1, b"l": 32, b"s": 32}
#: What the server says unasked of who is to fetch an item anew.
_MARKS = (b"W", b"X", b"Z")


def read_returned(text: bytes) -> dict[bytes, bytes]:
    """Returns letter to token of the flags of a reply.

    Raises `.ProtocolError` for what no server sends. A letter that is not
    known here is left to newer servers.
    """
    returned: dict[bytes, bytes] = {}
    for word in text.split(b" ") if text else ():
        letter, token = word[:1], word[1:]
        if not letter or letter in returned:
            raise ProtocolError(f"the server sent the flags of a reply in {len(text)} odd bytes")
        if letter in _NUMBERS:
            read_number(token, _NUMBERS[letter], f"flag {letter.decode()}")
        elif letter == b"t" and token != b"-1":
            read_number(token, 32, "flag t")
        elif letter in _MARKS and token:
            raise ProtocolError(f"the server sent flag {letter.decode()} with a token")
        returned[letter] = token
    if b"W" in returned and b"Z" in returned:
        raise ProtocolError("the server sent both W and Z: somebody has won, and nobody has")
    return returned


def is_key_of(returned: Mapping[bytes, bytes], key: bytes) -> bool:
    """True if the returned key is ``key``: plain, or in base64 where the reply says so."""
    return returned[b"k"] == (in_base64(key) if b"b" in returned else key)


def version_of(text: str) -> tuple[int, ...] | None:
    """Returns the numbers of a server's version, None if it tells none."""
    numbers = []
    for word in text.partition(" ")[0].split(".")[:3]:
        digits = ""
        for one in word:
            if not (one.isascii() and one.isdigit()):
                break
            digits += one
        if not digits or len(digits) > 9:
            break
        numbers.append(int(digits))
    return tuple(numbers) if len(numbers) > 1 else None
