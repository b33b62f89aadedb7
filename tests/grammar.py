r"""The requests of protocol.txt, as one regular expression each.

Reads what a client has written, strictly: one space between two words, no
white space or control character within, one CRLF at the end of a line, a data
block as long as its line says. It must not know the package.
"""

from __future__ import annotations

import re
from typing import NamedTuple

_KEY = rb"[^\x00-\x20\x7f]{1,250}"
_KEYS = rb"(?P<keys>%b(?: %b){0,99})" % (_KEY, _KEY)
_ONE = rb"(?P<keys>%b)" % _KEY
_UINT32 = rb"[0-9]{1,10}"
_UINT64 = rb"[0-9]{1,20}"
_EXPTIME = rb"-?[0-9]{1,10}"
_NOREPLY = rb"(?: noreply)?"

#: "Flags are single character codes", some with a token behind.
_FLAGS = rb"(?: [A-Za-z][^\x00-\x20\x7f]*)*"

#: The lines, each by its verbs.
LINES = (
    rb"(?:get|gets) %b" % _KEYS,
    rb"(?:gat|gats) %b %b" % (_EXPTIME, _KEYS),
    rb"(?:set|add|replace|append|prepend) %b %b %b (?P<bytes>[0-9]+)%b"
    % (_ONE, _UINT32, _EXPTIME, _NOREPLY),
    rb"cas %b %b %b (?P<bytes>[0-9]+) %b%b" % (_ONE, _UINT32, _EXPTIME, _UINT64, _NOREPLY),
    rb"delete %b%b" % (_ONE, _NOREPLY),
    rb"(?:incr|decr) %b %b%b" % (_ONE, _UINT64, _NOREPLY),
    rb"touch %b %b%b" % (_ONE, _EXPTIME, _NOREPLY),
    rb"flush_all(?: %b)?%b" % (_EXPTIME, _NOREPLY),
    rb"version",
    rb"verbosity %b%b" % (_UINT32, _NOREPLY),
    rb"stats(?: [!-~]+)*",
    rb"config get [!-~]+",
    rb"m[gda] %b%b" % (_ONE, _FLAGS),
    rb"ms %b (?P<bytes>[0-9]+)%b" % (_ONE, _FLAGS),
    rb"me %b(?: b)?" % _ONE,
    rb"mn",
)
_LINES = [re.compile(line) for line in LINES]


class Written(NamedTuple):
    """A request as it stands on the wire."""

    line: bytes
    keys: tuple[bytes, ...]
    block: bytes | None

    @property
    def words(self) -> list[bytes]:
        return self.line.split(b" ")


def requests_in(data: bytes) -> list[Written]:
    """Returns the requests of which ``data`` consists.

    Raises `ValueError` if it is anything else, or anything more.
    """
    found = []
    while data:
        line, crlf, data = data.partition(b"\r\n")
        matches = [match for pattern in _LINES if (match := pattern.fullmatch(line))]
        if not crlf or len(matches) != 1:
            raise ValueError(f"{line[:100]!r} is no line of the protocol")
        named = matches[0].groupdict()
        block = None
        if "bytes" in named:
            length = int(named["bytes"])
            block, end, data = data[:length], data[length : length + 2], data[length + 2 :]
            if len(block) != length or end != b"\r\n":
                raise ValueError(f"{line[:100]!r} has another block than it says")
        keys = named.get("keys")
        found.append(Written(line, tuple(keys.split(b" ")) if keys else (), block))
    return found
