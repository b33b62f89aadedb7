"""What python-memcached takes for a server and for a key, and how it refuses one.

Knows that client's connection strings, exceptions and the order of its
checks. It must not know a command.
"""

import re
from collections.abc import Callable, Mapping
from datetime import timedelta
from typing import Any, cast

from .address import DEFAULT_PORT, Server, parse_server
from .arguments import key_bytes, whole
from .errors import InvalidRequest, cut, shown
from .protocol import Request

_SPECS = (
    re.compile(r"^unix:(?P<path>.+)$"),
    re.compile(r"^inet6:\[(?P<host>[^\[\]]+)\](:(?P<port>[0-9]+))?$"),
    re.compile(r"^inet:(?P<host>[^:]+)(:(?P<port>[0-9]+))?$"),
    re.compile(r"^(?P<host>[^:]+)(:(?P<port>[0-9]+))?$"),
)


def parse_host(spec: Any) -> Server:
    """Returns the server of a python-memcached connection string, or of the native dict."""
    if isinstance(spec, Mapping):
        return parse_server(spec)
    text, weight = spec if isinstance(spec, tuple) else (spec, 1)
    for pattern in _SPECS if isinstance(text, str) else ():
        if match := pattern.match(text):
            found = match.groupdict()
            if "path" in found:
                return Server("", 0, found["path"], weight)
            return Server(found["host"], int(found["port"] or DEFAULT_PORT), None, weight)
    # (what stands before an @ may be a password)
    named = text if isinstance(text, (str, bytes, int, type(None))) else type(text).__name__
    *before, behind = str(named).rsplit("@", 1)
    told = f"...@{behind}" if before else behind
    raise ValueError(f'Unable to parse connection string: "{cut(told)}"')


def seconds(time: Any) -> int:
    """Returns ``time`` as it goes to the server: a length or a moment, untouched."""
    length = time.total_seconds() if isinstance(time, timedelta) else time
    return whole("time", length, -(1 << 31), (1 << 31) - 1)


def route_of(key: Any) -> tuple[int | None, Any]:
    return key if isinstance(key, tuple) else (None, key)


def routed(key: Any, request: Request) -> Any:
    """Returns what the native client's request_many takes for one key."""
    route, wire = route_of(key)
    request = request._replace(keys=(key_bytes(wire),))
    return request if route is None else (route, request)


def nested(stats: dict[str, str], skip: int) -> dict[str, Any]:
    """Returns ``{"1:chunk_size": "96"}`` as ``{"1": {"chunk_size": "96"}}``."""
    nested: dict[str, Any] = {}
    for name, value in stats.items():
        parts = name.split(":")[skip:]
        if len(parts) == 1:
            nested[parts[0]] = value
        else:
            nested.setdefault(parts[0], {})[parts[1]] = value
    return nested


class Keys:
    """The part of python-memcached's Client that looks at keys."""

    do_check_key: bool
    key_encoder: Callable[[Any], Any] | None
    server_max_key_length: int

    class MemcachedKeyError(Exception):
        """A key that cannot be used."""

    class MemcachedKeyLengthError(MemcachedKeyError):
        """A key that is too long."""

    class MemcachedKeyCharacterError(MemcachedKeyError):
        """A key that is empty, or holds white space or a control character."""

    class MemcachedKeyNoneError(MemcachedKeyError):
        """None as a key."""

    class MemcachedKeyTypeError(MemcachedKeyError):
        """A key that is neither str nor bytes."""

    class MemcachedStringEncodingError(Exception):
        """A str key that has no utf-8 form."""

    def check_key(self, key: Any, key_extra_len: int = 0) -> None:
        """Raises the nested exception for a key that cannot be used."""
        if isinstance(key, tuple):
            key = key[1]
        if key is None:
            raise self.MemcachedKeyNoneError("Key is None")
        if not isinstance(key, bytes):
            raise self.MemcachedKeyTypeError("Key must be a binary string")
        limit = self.server_max_key_length
        if limit != 0 and len(key) + key_extra_len > limit:
            raise self.MemcachedKeyLengthError(f"Key length is > {limit}")
        if not re.fullmatch(rb"[\x21-\x7e\x80-\xff]+", key):
            raise self.MemcachedKeyCharacterError(
                f"Control/space characters not allowed (key={shown(key)})"
            )

    def _key(self, key: Any, prefix: bytes = b"", multi: bool = False) -> Any:
        """Returns ``key`` as the native client takes it: bytes, or (hash, bytes)."""
        if isinstance(key, tuple):
            if len(key) != 2:
                raise InvalidRequest("key as a tuple must be (hash, key)")
            number, key = key
            if number is None:
                raise TypeError("the hash of a key must be an int, not NoneType")
            return number, self._key(key, prefix, multi)
        encoded = key if self.key_encoder is None else self.key_encoder(key)
        if multi and encoded is not None and not isinstance(encoded, (str, bytes)):
            encoded = str(encoded)
        wire = self._bytes(encoded)
        if self.do_check_key:
            self.check_key(wire, len(prefix))
        return prefix + wire if isinstance(wire, bytes) else wire

    def _bytes(self, key: Any) -> Any:
        if not isinstance(key, str):
            return key
        try:
            return key.encode("utf-8")
        except UnicodeEncodeError:
            raise self.MemcachedStringEncodingError("Key has no utf-8 form") from None

    def _prefix(self, prefix: Any) -> bytes:
        wire = self._bytes(prefix)
        if not wire and not isinstance(wire, bytes):
            raise TypeError(f"key_prefix must be str or bytes, not {type(prefix).__name__}")
        if wire and self.do_check_key:
            self.check_key(wire)
        return cast(bytes, wire)
