"""What a user writes for a server, and what it means.

Knows the forms of a specification. It must not know how a name is looked
up or a socket is opened.
"""

import re
from collections.abc import Iterable, Mapping
from ipaddress import IPv6Address
from typing import Any, NamedTuple

from .arguments import check_integer
from .credentials import Credentials, checked_credentials
from .errors import InvalidServer, shown

DEFAULT_PORT = 11211
#: The longest path that fits in a unix socket's address on Linux, in bytes.
MAX_PATH = 107
#: What a server given as a dict may say of itself.
_PARTS = ("server", "weight", "username", "password")
#: What can hold no more than a host and a port, and is shown as it is.
_PLAIN = re.compile(r"(\[[0-9A-Fa-f:.]*(%\w*)?\]|[^\[:@\s,]*)(:\d*)?")
_CREDENTIALS = (
    'credentials belong in a dict {"server": "host:port", "username": ..., "password": ...}'
)


class Server(NamedTuple):
    """One memcached process: where it listens, its weight in the ring, and who we are to it."""

    host: str
    port: int
    path: str | None = None
    weight: int = 1
    #: Shown in no repr; None: those of the client, if it has any.
    credentials: Credentials | None = None

    @property
    def name(self) -> str:
        """The server's name in errors, logs and results: ``"host:port"``."""
        if self.path is not None:
            return f"unix:{self.path}"
        if ":" in self.host:
            return f"[{self.host}]:{self.port}"
        return f"{self.host}:{self.port}"


def shown_spec(spec: object) -> str:
    """Returns ``spec`` as a message may show it: of what is no host and port, the host at most.

    The rest may be a password, in whatever form others take one; so may
    be what stands behind a server in a tuple, or beside it in a dict.
    """
    if isinstance(spec, Mapping):
        spec = spec.get("server")
    if isinstance(spec, tuple) and not isinstance(spec, Server):
        spec = spec[0] if spec else spec
    if not isinstance(spec, (str, Server)):
        return f"(a {type(spec).__name__})"
    text = spec if isinstance(spec, str) else spec.name
    is_path = text.startswith("unix:") or (text.startswith("/") and "@" not in text)
    if is_path or _PLAIN.fullmatch(text) or _is_v6(text):
        return shown(text)
    before, at, behind = text.rpartition("@")
    parts = re.split(r"[:\s,]+", behind)
    if at:
        return shown(f"...@{parts[0]}")
    if "://" in text:
        return shown(f"{parts[0]}://...")
    # (of more than two the first may be a username, a password or the host)
    is_host = len(parts) == 2 or "".join(parts[1:2]).isdigit()
    return shown(f"{parts[0]}:..." if is_host else "...")


def _is_v6(text: str) -> bool:
    """True for a v6 address, with a port or without."""
    for address in (text, text.rpartition(":")[0]):
        try:
            IPv6Address(address)
        except ValueError:
            continue
        return True
    return False


def told(spec: object) -> str:
    """Returns how a message begins that is about ``spec``."""
    return f"server {shown_spec(spec)}"


def parse_server(spec: object) -> Server:
    """Returns the `Server` that ``spec`` names.

    ``spec`` is ``"host"``, ``"host:port"``, ``"[v6]:port"``,
    ``"unix:/path"``, a `Server`, a tuple ``(spec, weight)``, or a dict
    with ``"server"`` and, if there is need, ``"weight"``, ``"username"``
    and ``"password"``. Raises `.InvalidServer` that names what is wrong,
    `TypeError` for other types.
    """
    if isinstance(spec, Server):
        return _check_server(spec, spec)
    if isinstance(spec, Mapping):
        return _of_parts(spec)
    if isinstance(spec, tuple):
        if len(spec) != 2:
            raise InvalidServer(f"{told(spec)} must be (server, weight)")
        server = parse_server(spec[0])
        if isinstance(spec[1], int) and spec[1] > 1000 and spec[0] == server.host:
            raise InvalidServer(
                f'{told(spec)}: the second is a weight; for a port write "{server.host}:{spec[1]}"'
            )
        return server._replace(weight=_weight(spec, spec[1]))
    if not isinstance(spec, str):
        raise TypeError(f"server must be a str, (str, weight) or a dict, not {type(spec).__name__}")
    if spec.startswith("unix:"):
        path = spec[5:]
        return _check_server(Server("", 0, path), spec)
    return _check_server(Server(*_split(spec)), spec)


def _of_parts(parts: Mapping[Any, Any]) -> Server:
    for name in parts:
        if name not in _PARTS:
            key = shown(name) if isinstance(name, str) and name.isidentifier() else "a key"
            raise InvalidServer(f"{told(parts)}: {key} is not one of: {', '.join(_PARTS)}")
    named = parts.get("server")
    if not isinstance(named, (str, Server)):
        raise TypeError(f'server as a dict must have a str as "server", not {type(named).__name__}')
    server = parse_server(named)
    if "weight" in parts:
        server = server._replace(weight=_weight(parts, parts["weight"]))
    credentials = checked_credentials(
        parts.get("username"), parts.get("password"), f"server {server.name}: "
    )
    return server._replace(credentials=credentials or server.credentials)


def _weight(spec: object, weight: object) -> int:
    return check_integer(f"{told(spec)}: weight", weight, 1, 1 << 16)


def _check_server(server: Server, spec: object) -> Server:
    named = told(spec)
    _weight(spec, server.weight)
    if not isinstance(server.credentials, (Credentials, type(None))):
        raise TypeError(f"{named}: give username and password in a dict, not in a Server")
    if server.path is not None:
        if not server.path or "\0" in server.path:
            raise InvalidServer(f"{named} names no path")
        if len(server.path.encode("utf-8", "surrogateescape")) > MAX_PATH:
            raise InvalidServer(f"{named}: a path of over {MAX_PATH} bytes")
        return server
    check_integer("port", server.port, 1, 65535)
    if not server.host or any(c.isspace() or not c.isprintable() or c in "/@" for c in server.host):
        raise InvalidServer(f"{named} names no host")
    try:
        server.host.encode("idna")
    except UnicodeError:
        raise InvalidServer(f"{named} names no host: a label is empty or too long") from None
    return server


def _split(spec: str) -> tuple[str, int]:
    if "://" in spec:
        raise InvalidServer(f"{told(spec)} is a URL; write host:port, and {_CREDENTIALS}")
    if "," in spec or any(c.isspace() for c in spec):
        several = "list several servers, without blanks"
        raise InvalidServer(f"{told(spec)} must be one host:port; {several}; {_CREDENTIALS}")
    if "@" in spec:
        raise InvalidServer(f"{told(spec)} names no host: {_CREDENTIALS}")
    if spec.startswith("/"):
        raise InvalidServer(f"{told(spec)}: for a unix socket write unix:/path")
    if spec.startswith("["):
        host, bracket, rest = spec[1:].partition("]")
        if not bracket or ":" not in host or (rest and not rest.startswith(":")):
            raise InvalidServer(f"{told(spec)} must be [v6 address]:port")
        if ":" in rest[1:]:
            raise InvalidServer(f"{told(spec)} must be [v6 address]:port; {_CREDENTIALS}")
        return host, _port(spec, rest[1:]) if rest else DEFAULT_PORT
    host, colon, port = spec.partition(":")
    if ":" in port and not _is_v6(spec):
        raise InvalidServer(f"{told(spec)} must be host:port; {_CREDENTIALS}")
    if ":" in port:
        raise InvalidServer(f"{told(spec)}: put a v6 address in brackets, [::1]:11211")
    return host, _port(spec, port) if colon else DEFAULT_PORT


def _port(spec: str, text: str) -> int:
    if text.isascii() and text.isdigit() and len(text) <= 5 and 1 <= int(text) <= 65535:
        return int(text)
    raise InvalidServer(f"{told(spec)}: the port must be from 1 to 65535")


def parse_servers(specs: object, name: str = "servers") -> tuple[Server, ...]:
    """Returns the `Server` of each of ``specs``, an iterable of specifications.

    ``name`` is that of the argument. Raises `.InvalidServer` for an empty
    list and for a server named twice.
    """
    if isinstance(specs, (set, frozenset)):
        raise TypeError(f"{name} must be a list: a set has another order in each process")
    if isinstance(specs, (str, bytes)) or not isinstance(specs, Iterable):
        raise TypeError(f'{name} must be a list, as ["127.0.0.1:11211"]')
    if isinstance(specs, Mapping) and "server" in specs:
        raise TypeError(f"{name} must be a list, of which a dict may be one server")
    servers = tuple(parse_server(spec) for spec in specs)
    if not servers:
        raise InvalidServer(f"{name} must name at least one server")
    names = [server.name for server in servers]
    for one in names:
        if names.count(one) > 1:
            raise InvalidServer(f"server {one} is listed twice; use a weight: ({one!r}, 2)")
    return servers
