r"""The lines of ``watch`` and of ``lru_crawler metadump``, and what they say.

Knows both grammars (protocol.txt, "Watchers" and "LRU_Crawler"; quoted above
the code that reads them). It must not know a socket, nor who reads. A reader
takes one line at a time and says what the stream has come to.
"""

import re
from abc import ABC, abstractmethod
from collections.abc import Mapping
from types import MappingProxyType
from typing import Any, Generic, NamedTuple, TypeVar
from urllib.parse import unquote_to_bytes

from .errors import (
    AuthenticationError,
    ClientError,
    ConnectionFailed,
    InvalidRequest,
    MemcacheError,
    ProtocolError,
    ServerError,
    shown,
)
from .protocol import AT_LIMIT, TOO_MANY_CONNECTIONS, UNAUTHENTICATED, Unauthenticated
from .text import error_of, line_of

_T = TypeVar("_T")

#: One item of a metadump; what newer servers tell beyond that is left.
_ENTRY = re.compile(
    rb"key=([^ ]+) exp=(-1|\d{1,19}) la=(\d{1,19}) cas=(\d{1,20}) fetch=(yes|no) cls=(\d{1,5}) "
    rb"size=(\d{1,19})(?: .*)?"
)
#: A list of words longer than this is no line that memcached takes.
LONGEST_WORDS = 1024


class WatchEvent(NamedTuple):
    """One line of a server's log, as ``watch`` gives it.

    ``kind`` is what happened (``"item_get"``, ``"item_store"``,
    ``"eviction"``, ``"conn_new"`` ...), ``key`` the key that it is about,
    as it was sent (None where it is about none), ``fields`` all of the
    line as text, under the server's own names, the key as it stands
    there. ``skipped`` is 0, or how many lines the server has dropped here
    because they were not read soon enough; then ``kind`` is "skipped".
    """

    server: str
    kind: str
    key: bytes | None
    fields: Mapping[str, str]
    skipped: int = 0


class MetadumpEntry(NamedTuple):
    """One item as ``metadump`` tells it: its key and its data, and not its value.

    ``exptime`` and ``last_access`` are moments (seconds of the wall
    clock), ``exptime`` is None for what never expires. ``fetched`` tells
    whether it was asked for since it was stored. ``size`` is what the item
    takes in the memory of the server (bytes), ``slab_class`` where.
    """

    server: str
    key: bytes
    exptime: int | None
    last_access: int
    cas_unique: int
    fetched: bool
    slab_class: int
    size: int


class Lines(ABC, Generic[_T]):
    """Reads the lines of one server: `accept` takes each but the last, `ended` is set by that.

    ``answered`` is True once the server has said that it does what it was
    asked, ``busy`` that it cannot yet: it is to be asked again.
    """

    request = b""
    #: True if there is a last line.
    ends = False

    def __init__(self, server: str) -> None:
        self.server = server
        self.answered = self.busy = self.ended = False

    @abstractmethod
    def accept(self, line: bytes) -> bool:
        """Takes a line; returns True if it is one of what was asked for, to be `read`.

        Raises what a line that is an error stands for.
        """

    @abstractmethod
    def read(self, line: bytes) -> _T:
        """Returns what a line says. Raises `.ProtocolError`."""

    def _unexpected(self, line: bytes) -> MemcacheError:
        if line.startswith(UNAUTHENTICATED):
            told = str(Unauthenticated())
            return AuthenticationError(told, server=self.server, phase="authenticating")
        if line.startswith(TOO_MANY_CONNECTIONS):
            return ConnectionFailed(AT_LIMIT, server=self.server, phase="connecting")
        error: MemcacheError | None = error_of(line)
        if error is None or self.answered:
            error = ProtocolError(f"a line of {self._asked()} begins with {shown(line[:16])}")
        elif line == b"ERROR":
            error = ClientError(f"the server does not know {self._asked()} (ERROR)")
        error.server = self.server
        return error

    def _asked(self) -> str:
        return self.request.decode("ascii").rstrip()

    def _fields(self, line: bytes) -> dict[str, str]:
        # <name>=<text> <name>=<text> ...
        fields: dict[str, str] = {}
        last = ""
        for word in line.decode("utf-8", "backslashreplace").split(" "):
            name, given, text = word.partition("=")
            if given and name not in fields:
                fields[name], last = text, name
            elif last:  # (the words of a message, as those of a proxy's log)
                fields[last] += f" {word}"
        return fields


class WatchLines(Lines[WatchEvent]):
    """The log of a server.

    ::

        watch <word>*\r\n
        OK\r\n
        ts=<moment> gid=<number> type=<kind> <name>=<text> ...\n
        skipped=<number>\n
    """

    def __init__(self, server: str, request: bytes) -> None:
        super().__init__(server)
        self.request = request

    def accept(self, line: bytes) -> bool:
        if self.answered and line.startswith((b"ts=", b"skipped=")):
            return True
        if self.answered or line != b"OK":
            raise self._unexpected(line)
        self.answered = True
        return False

    def read(self, line: bytes) -> WatchEvent:
        fields = self._fields(line)
        kept = MappingProxyType(fields)
        if "skipped" in fields:
            skipped = _number(line, fields["skipped"])
            return WatchEvent(self.server, "skipped", None, kept, skipped)
        if "type" not in fields:
            raise ProtocolError(f"a line of watch has no type: {shown(line)}", server=self.server)
        key = unquote_to_bytes(fields["key"]) if "key" in fields else None
        return WatchEvent(self.server, fields["type"], key, kept)


class MetadumpLines(Lines[MetadumpEntry]):
    """What a server holds.

    ::

        lru_crawler metadump all\r\n
        key=<key> exp=<moment> la=<moment> cas=<number> fetch=<yes|no> cls=<n> size=<n> ...\n
        END\r\n
        BUSY currently processing crawler request\r\n

    A key is encoded as in a URI.
    """

    request = line_of([b"lru_crawler", b"metadump", b"all"])
    ends = True

    def accept(self, line: bytes) -> bool:
        if line.startswith(b"key="):
            self.answered = True
            return True
        if line == b"END":
            self.answered = self.ended = True
            return False
        if line.startswith(b"BUSY") and not self.answered:
            self.busy = True
            return False
        raise self._unexpected(line)

    def read(self, line: bytes) -> MetadumpEntry:
        found = _ENTRY.fullmatch(line)
        if found is None:
            told = f"a line of metadump tells not what it should: {shown(line)}"
            raise ProtocolError(told, server=self.server)
        key, exptime, last_access, cas_unique, fetched, slab_class, size = found.groups()
        return MetadumpEntry(
            self.server,
            unquote_to_bytes(key) if b"%" in key else key,
            None if exptime == b"-1" else int(exptime),
            int(last_access),
            int(cas_unique),
            fetched == b"yes",
            int(slab_class),
            int(size),
        )

    def is_busy(self) -> ServerError:
        """Returns what it comes to if the server is busy for too long."""
        told = "another metadump or crawl is under way there, or its reader is slow"
        return ServerError(f"the server is BUSY: {told}", server=self.server)


def _number(line: bytes, text: str) -> int:
    if text.isascii() and text.isdigit() and len(text) < 20:
        return int(text)
    raise ProtocolError(f"a line of watch has no number: {shown(line)}")


def watch_request(words: tuple[Any, ...]) -> bytes:
    """Returns the line that asks for what ``words`` name; raises for what is no word."""
    for word in words:
        if not isinstance(word, str):
            raise TypeError(f"words to watch must be str, not {type(word).__name__}")
        if not (word.isascii() and word.replace("_", "").isalnum()):
            raise InvalidRequest(f"{shown(word)} is no word to watch, as fetchers or mutations")
    request = line_of([b"watch", *map(str.encode, words)])
    if len(request) > LONGEST_WORDS:
        raise InvalidRequest("words to watch are too many for one line")
    return request
