"""``python -m tornado_memcache server``: an `.EmbeddedServer` in a process of its own.

Knows the flags and what they are called in `.EmbeddedServer`. It must not
know how anything is served.
"""

import argparse
import asyncio
import logging
import ssl

from .address import MAX_PATH
from .bounds import OF_CLIENT, limits_of
from .errors import InvalidRequest
from .foreground import checked_host, in_foreground
from .guest import Limits
from .logins import Logins, parse_logins
from .server import EmbeddedServer

logger = logging.getLogger("tornado_memcache.server")

#: What was asked before the signal came has so many seconds to be taken.
DRAIN = 2.0
_UNITS = {"k": 1 << 10, "m": 1 << 20, "g": 1 << 30}


def size(text: str) -> int:
    """Returns the bytes that ``text`` means: "1048576", "1024k", "1m", "1g".

    Raises `argparse.ArgumentTypeError`.
    """
    digits = text[:-1] if text[-1:].lower() in _UNITS else text
    if not (digits.isascii() and digits.isdigit() and len(digits) <= 15 and int(digits)):
        raise argparse.ArgumentTypeError(f"{text!r} is no size, as 1048576, 1024k or 1m")
    return int(digits) * _UNITS.get(text[-1:].lower(), 1)


def access(text: str) -> int:
    """Returns the access mode that ``text`` means: octal, as "660"."""
    if not (1 <= len(text) <= 4 and set(text) <= set("01234567") and int(text, 8) <= 0o777):
        raise argparse.ArgumentTypeError(f"{text!r} is no access mode, as 600 or 660")
    return int(text, 8)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the flags to ``parser``."""
    where = parser.add_argument_group("where it listens")
    where.add_argument("--port", type=int, default=11211, help="0 takes a free one (11211)")
    where.add_argument("--host", default="127.0.0.1", help="an address of this machine (127.0.0.1)")
    where.add_argument(
        "--allow-public", action="store_true", help="listen where other machines can reach it"
    )
    where.add_argument("--unix", metavar="PATH", help="a unix socket, in place of host and port")
    where.add_argument(
        "--unix-mode", type=access, default=0o600, metavar="MODE", help="who can open it (600)"
    )
    where.add_argument("--tls-certificate", metavar="FILE", help="speak TLS alone, with this chain")
    where.add_argument("--tls-key", metavar="FILE", help="its key, if not in the same file")
    holds = parser.add_argument_group("what it holds, in bytes or as 64m, 1g")
    holds.add_argument("--memory", type=size, default=size("64m"), help="for all items (64m)")
    holds.add_argument("--max-item-size", type=size, default=size("1m"), help="of each (1m)")
    holds.add_argument("--max-items", type=int, help="how many (as many as there is memory for)")
    who = parser.add_argument_group("who may come")
    who.add_argument("--max-clients", type=int, default=1024, help="at a time (1024)")
    who.add_argument(
        "--auth-file", metavar="FILE", help="only those of its lines username:password"
    )
    may = parser.add_argument_group("what each of them may do")
    for name, setting in OF_CLIENT.items():
        may.add_argument(f"--{name}", help=setting.does)


def _limits(arguments: argparse.Namespace) -> Limits:
    """Returns the limits of each client. Raises `.InvalidRequest`, which names the flag."""
    values = {}
    for name, setting in OF_CLIENT.items():
        text: str | None = getattr(arguments, name.replace("-", "_"))
        values[name] = setting.default if text is None else setting.read(f"--{name}", text)
    return limits_of(values)


def _content(flag: str, path: str) -> bytes:
    """Returns what is in the file that a flag names. Raises `.InvalidRequest`."""
    try:
        with open(path, "rb") as file:
            return file.read()
    except (OSError, ValueError) as error:
        told = getattr(error, "strerror", None) or error
        raise InvalidRequest(f"{flag} {path}: {told}") from None


def _logins(path: str | None) -> Logins | None:
    if path is None:
        return None
    content = _content("--auth-file", path)
    try:
        return parse_logins(content)
    except InvalidRequest as error:
        raise InvalidRequest(f"--auth-file {path}: {error}") from None


def _context(certificate: str | None, key: str | None) -> ssl.SSLContext | None:
    if certificate is None:
        if key is not None:
            raise InvalidRequest("--tls-key is given without --tls-certificate")
        return None
    _content("--tls-certificate", certificate)
    if key is not None:
        _content("--tls-key", key)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    try:
        context.load_cert_chain(certificate, key, password=_no_password)
    except (OSError, ValueError):
        told = "no certificate chain with its key (one without a password)"
        raise InvalidRequest(f"--tls-certificate {certificate}: {told}") from None
    return context


def _no_password() -> str:
    """Stands for a question at the terminal, which a server must not stop for."""
    raise ValueError("the key has a password")


def _server(arguments: argparse.Namespace) -> EmbeddedServer:
    """Returns the server that the flags ask for. Raises `.InvalidRequest`."""
    path: str | None = arguments.unix
    if path is not None and not 0 < len(path.encode("utf-8", "surrogateescape")) <= MAX_PATH:
        raise InvalidRequest(f"--unix must be a path of 1 to {MAX_PATH} bytes")
    return EmbeddedServer(
        arguments.port,
        checked_host("--host", arguments.host, arguments.allow_public),
        path=path,
        mode=arguments.unix_mode,
        ssl=_context(arguments.tls_certificate, arguments.tls_key),
        max_bytes=arguments.memory,
        max_item_size=arguments.max_item_size,
        max_items=arguments.max_items,
        max_clients=arguments.max_clients,
        limits=_limits(arguments),
        users=_logins(arguments.auth_file),
    )


def run(arguments: argparse.Namespace) -> int:
    """Serves until SIGTERM or SIGINT. Returns the exit status."""
    server = _server(arguments)

    async def serve(told: asyncio.Event) -> None:
        try:
            server.start()
        except OSError as error:
            where = server.path or f"{server.host} port {server.port}"
            raise OSError(f"cannot listen on {where}: {error.strerror or error}") from None
        logger.info("listening on %s", server.address)
        await told.wait()
        await server.drain(DRAIN)
        logger.info("ended")

    return in_foreground(serve)
