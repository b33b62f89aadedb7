"""Error lines: which call one is the outcome of, and what may be told of it.

Knows protocol.txt ("Error strings"), slots and the state of what is owed. It
must not know how a good reply is read.
"""

from .errors import ProtocolError, ReplyError
from .protocol import (
    AT_LIMIT,
    TOO_MANY_CONNECTIONS,
    UNAUTHENTICATED,
    ConnectionRefused,
    OwedReplies,
    Slot,
    Unauthenticated,
)
from .text import error_of, told_of

#: A server that repeats this much of a value, or all of it, is not quoted.
_REPEATED = slice(0, 16)
#: A shorter value stands in any text by chance.
_SHORTEST_REPEATED = 4
#: Nor is one that has so long a word of it, wherever that stands.
_LONG_WORD = 8


def _repeats(line: bytes, value: bytes) -> bool:
    """True if an error line shows how ``value`` begins, or has a long word of it."""
    start = value[_REPEATED]
    return (len(start) >= _SHORTEST_REPEATED and start in line) or any(
        len(word) >= _LONG_WORD and word in value for word in line.split()[1:]
    )


def refusal(slot: Slot, line: bytes, protocol: OwedReplies) -> ReplyError:
    """Returns the error line as the outcome of ``slot``.

    Raises `.ProtocolError` if it is none, if an unconfirmed noreply
    request might be the one that it answers, or if it is the first line
    of a connection, and refuses that. Behind a reply the same words are an
    error like others: a proxy passes on what one of its servers says.
    """
    error = error_of(line)
    if error is None:
        raise ProtocolError(f"{slot.asked()}: the server sent {told_of(line)}, which is no reply")
    if not (protocol.answered or slot.begun()):
        if line == TOO_MANY_CONNECTIONS:
            raise ConnectionRefused(AT_LIMIT)
        if line in UNAUTHENTICATED:
            raise Unauthenticated
    if slot.confirms:
        raise ProtocolError(
            f"{slot.asked()}: an error after a noreply request cannot be attributed"
        )
    told = f"the server said: {error.message}"
    if _repeats(line, slot.request.value):
        told = "the server refused, in words that repeat the value"
    refused = type(error)(f"{slot.asked()}: {told}")
    refused.line = line
    return refused
