"""The settings of a proxy: its flags and its file, checked.

Knows every setting once: what it is called, how it is read, and where it
stood, so that what is wrong is told by name, with the line of the file. It
must not know what a setting does.

A file has a section ``[proxy]`` and one ``[pool NAME]`` for each pool, of
which one has no ``prefix``; with flags there is one pool, and one more for
each ``--route PREFIX=SERVER``.
"""

import argparse
import configparser
import os
import re
import ssl
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

from .address import MAX_PATH
from .arguments import key_bytes
from .bounds import OF_CLIENT, Setting, limits_of, seconds, whole
from .client import Client
from .errors import InvalidRequest, shown
from .foreground import checked_host
from .guest import Limits


class Given(NamedTuple):
    """The text of a setting, and where it stood: ``--name``, or the file, line and name."""

    text: str
    where: str


def _text(where: str, text: str) -> str:
    if not text:
        raise InvalidRequest(f"{where} is empty")
    return text


def _flag(where: str, text: str) -> bool:
    if text.lower() not in configparser.ConfigParser.BOOLEAN_STATES:
        raise InvalidRequest(f"{where} must be yes or no, not {shown(text)}")
    return configparser.ConfigParser.BOOLEAN_STATES[text.lower()]


def _servers(where: str, text: str) -> list[Any]:
    """Reads servers, one a line (or a word): ``host:port`` or ``host:port,weight``."""
    servers: list[Any] = []
    for word in text.split():
        server, comma, weight = word.partition(",")
        servers.append(
            (server, whole(1, 1 << 16)(f"{where}: the weight", weight)) if comma else server
        )
    if not servers:
        raise InvalidRequest(f"{where} names no server")
    return servers


def _prefix(where: str, text: str) -> bytes:
    try:
        return key_bytes(text)
    except InvalidRequest as error:
        raise InvalidRequest(f"{where}: {error}") from None


def _credentials(where: str, text: str) -> tuple[str, str]:
    """Reads a file with one line, ``username:password``, as memcached's ``-Y`` has."""
    try:
        line = Path(text).read_text(encoding="utf-8").strip()
    except (OSError, UnicodeDecodeError) as error:
        why = error.strerror if isinstance(error, OSError) else "it is no text"
        raise InvalidRequest(f"{where}: {shown(text)} cannot be read: {why}") from None
    username, colon, password = line.partition(":")
    if not (username and colon and password) or "\n" in line:
        raise InvalidRequest(f"{where}: {shown(text)} must hold one line, username:password")
    return username, password


def _authority(where: str, text: str) -> ssl.SSLContext:
    try:
        context = ssl.create_default_context(cafile=text)
    except (OSError, ssl.SSLError) as error:
        raise InvalidRequest(f"{where}: {shown(text)} cannot be used: {error}") from None
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    return context


#: The settings of the process and its clients.
OF_PROXY = {
    "listen": Setting(_text, "address of this machine, or unix:/path (127.0.0.1:11311)",
                      "127.0.0.1:11311"),
    "allow-public": Setting(_flag, "listen where other machines can reach it", False),
    "admin": Setting(_text, "address of a page of JSON, as 127.0.0.1:11312 (none)"),
    "processes": Setting(whole(1, 256), "how many share the port (1)", 1),
    "errors": Setting(_flag, "SERVER_ERROR instead of a miss where no server answers", False),
    "allow-all-commands": Setting(_flag, "let through flush_all, verbosity, stats reset", False),
    "max-clients": Setting(whole(1, 1_000_000), "clients at once, of each process (1024)", 1024),
    **OF_CLIENT,
    "drain-timeout": Setting(seconds, "seconds for what is under way at the end (10)", 10.0),
}  # fmt: skip
#: The settings of one pool: those of `.Client`, with dashes.
OF_POOL = {
    "servers": Setting(_servers, "host:port or host:port,weight"),
    "prefix": Setting(_prefix, "the keys that begin so belong to this pool"),
    "ring": Setting(_text, "modulo, ketama, ketama_weighted or rendezvous (modulo)"),
    "on-dead": Setting(_text, "fail, rehash, miss or gutter (fail)"),
    "gutter": Setting(_servers, "servers that take the keys of a dead one"),
    "gutter-exptime": Setting(whole(1), "seconds that they keep them (10)"),
    "connect-timeout": Setting(seconds, "seconds (0.5)"),
    "request-timeout": Setting(seconds, "seconds (1)"),
    "dead-retry": Setting(seconds, "seconds between tries of a dead server (30)"),
    "silences-until-dead": Setting(whole(1), "timeouts in a row (3)"),
    "max-connections": Setting(whole(1), "connections to each server (4)"),
    "max-value-size": Setting(whole(1), "bytes (1048576)"),
    "tls": Setting(_flag, "speak TLS to the servers, by the system's authorities"),
    "tls-ca": Setting(_authority, "speak TLS, by the authorities of this file"),
    "auth-file": Setting(_credentials, "a file with username:password for the servers"),
}


#: What `.Client` advises in words of its own, and how flags and files say the same.
_ADVICE = (
    (re.compile(r"give username= and password= to the Client, or .* and \"password\""),
     "give auth-file"),
    (re.compile(r"ssl=ssl\.create_default_context\(cafile=\.\.\.\)"), "tls-ca"),
    (re.compile(r"does it speak TLS\? ssl=\.\.\."), "does it speak TLS? tls-ca"),
    (re.compile(r"use a weight: \('(.*)', 2\)"), r"use a weight: \1,2"),
    (re.compile(r", nor an object with server_for\(key, alive\)"), ""),
)  # fmt: skip


def in_flags(told: str) -> str:
    """Returns what `.Client` tells, with the names of settings in place of its own."""
    for theirs, ours in _ADVICE:
        told = theirs.sub(ours, told)
    return told


#: What a new configuration cannot change while the proxy runs.
FIXED = ("listen", "admin", "processes")


class Config(NamedTuple):
    """What a proxy goes by: the settings of ``[proxy]``, and the options of each pool's client."""

    proxy: dict[str, Any]
    #: By prefix, ``b""`` among them.
    pools: dict[bytes, dict[str, Any]]

    @property
    def limits(self) -> Limits:
        return limits_of(self.proxy)

    @property
    def listen(self) -> str | tuple[str, int]:
        """The path of a unix socket, or host and port."""
        listen: str | tuple[str, int] = self.proxy["listen"]
        return listen

    def replaced_by(self, new: "Config") -> "Config":
        """Returns ``new``, with what stays as it is here while the proxy runs (`FIXED`)."""
        return new._replace(proxy={**new.proxy, **{name: self.proxy[name] for name in FIXED}})


# -- flags


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the flags to ``parser``. They are kept as text: `from_arguments` reads them."""
    parser.add_argument("--config", metavar="FILE", help="an INI file in place of flags")
    for name, metavar, does in (
        ("--server", "SERVER", OF_POOL["servers"].does),
        ("--route", "PREFIX=SERVER", "a server, of several perhaps, for keys with this prefix"),
    ):
        parser.add_argument(name, action="append", metavar=metavar, help=does)
    for name, setting in {**OF_PROXY, **OF_POOL}.items():
        if name in ("servers", "prefix"):
            continue
        if setting.read is _flag:
            parser.add_argument(f"--{name}", action="store_const", const="yes", help=setting.does)
        else:
            several = "append" if setting.read is _servers else "store"
            parser.add_argument(f"--{name}", action=several, help=setting.does)


def from_arguments(arguments: argparse.Namespace) -> Config:
    """Returns what the flags, or the file that they name, ask for.

    Raises `.InvalidRequest`, which names flag or line.
    """
    flags = {name.replace("_", "-"): given for name, given in vars(arguments).items()}
    names = [
        name for name in (*OF_PROXY, *OF_POOL, "server", "route") if flags.get(name) is not None
    ]
    if flags.get("config") is not None:
        if names:
            raise InvalidRequest(f"--{names[0]} and --config: a file is in place of all flags")
        return from_file(flags["config"])
    given = {name: _flag_of(name, flags[name]) for name in names}
    of_proxy = {name: one for name, one in given.items() if name in OF_PROXY}
    shared = {name: one for name, one in given.items() if name in OF_POOL}
    if "server" not in given:
        raise InvalidRequest("--server is missing: where are the memcacheds?")
    pools = [{**shared, "servers": given["server"]}]
    routes: dict[str, list[str]] = {}
    for route in flags.get("route") or ():
        prefix, sign, server = route.rpartition("=")
        if not sign:
            raise InvalidRequest(f"--route {shown(route)} must be PREFIX=SERVER")
        routes.setdefault(prefix, []).append(server)
    for prefix, servers in routes.items():
        of_route = {"prefix": Given(prefix, "--route"), "servers": _flag_of("route", servers)}
        pools.append({**shared, **of_route})
    return _checked(of_proxy, pools)


def _flag_of(name: str, given: Any) -> Given:
    return Given(" ".join(given) if isinstance(given, list) else given, f"--{name}")


# -- a file


def from_file(path: str) -> Config:
    """Returns what the file at ``path`` asks for. Raises `.InvalidRequest` that names the line."""
    parser = configparser.ConfigParser(interpolation=None, default_section="")
    try:
        text = Path(path).read_text(encoding="utf-8")
        parser.read_string(text, path)
    except (OSError, UnicodeDecodeError) as error:
        why = error.strerror if isinstance(error, OSError) else "it is no text"
        raise InvalidRequest(f"{path}: cannot be read: {why}") from None
    except configparser.Error as error:
        raise InvalidRequest(_told(path, error)) from None
    lines = _lines_of(text)
    of_proxy: dict[str, Given] = {}
    pools: list[dict[str, Given]] = []
    for section in parser.sections():
        known = OF_PROXY if section == "proxy" else OF_POOL
        if section != "proxy" and section.split(" ")[0] != "pool":
            line = lines[section, ""]
            raise InvalidRequest(f"{path}:{line}: [{section}] is neither [proxy] nor [pool NAME]")
        given = {}
        for name, value in parser[section].items():
            where = f"{path}:{lines[section, name]}: {name}"
            if name not in known:
                raise InvalidRequest(f"{where} is no setting of [{section}]")
            given[name] = Given(value, where)
        if section == "proxy":
            of_proxy = given
        elif "servers" not in given:
            raise InvalidRequest(f"{path}:{lines[section, '']}: [{section}] has no servers")
        else:
            pools.append(given)
    if not pools:
        raise InvalidRequest(f"{path}: has no [pool NAME]")
    if all("prefix" in pool for pool in pools):
        raise InvalidRequest(f"{path}: a [pool NAME] without prefix is missing, for all other keys")
    return _checked(of_proxy, pools)


def _told(path: str, error: configparser.Error) -> str:
    line, what = getattr(error, "lineno", None), "the line stands before any section"
    if isinstance(error, configparser.ParsingError) and line is None:
        line, what = error.errors[0][0], "the line is no setting"
    elif isinstance(error, configparser.DuplicateOptionError):
        what = f"{error.option} stands there for the second time"
    elif isinstance(error, configparser.DuplicateSectionError):
        what = f"[{error.section}] stands there for the second time"
    return f"{path}:{line}: {what}"


def _lines_of(text: str) -> dict[tuple[str, str], int]:
    """Returns the line of each section, and of each setting in it: configparser forgets them."""
    lines: dict[tuple[str, str], int] = {}
    section, margin, within = "", 0, False
    for number, line in enumerate(text.split("\n"), 1):
        bare = line.strip()
        if not bare or bare[0] in "#;":
            continue
        indent = len(line) - len(line.lstrip())
        if within and indent > margin:
            continue  # (more of the value before)
        margin, within = indent, not bare.startswith("[")
        if within:
            name = re.split("[=:]", bare, maxsplit=1)[0]
            lines[section, name.strip().lower()] = number
        else:
            section = bare[1 : bare.rfind("]")]
            lines[section, ""] = number
    return lines


# -- what was given, checked


def _checked(of_proxy: Mapping[str, Given], pools: list[dict[str, Given]]) -> Config:
    proxy = {name: setting.default for name, setting in OF_PROXY.items()}
    for name, (text, where) in of_proxy.items():
        proxy[name] = OF_PROXY[name].read(where, text.strip())
    for name in ("listen", "admin"):
        where = of_proxy[name].where if name in of_proxy else f"--{name}"
        if proxy[name]:
            public = name == "listen" and proxy["allow-public"]
            told = "say --allow-public" if where[0] == "-" else "say allow-public = yes"
            told = told if name == "listen" else "the page is for this one"
            proxy[name] = _address(where, proxy[name], public, told)
    if isinstance(proxy["admin"], str):
        raise InvalidRequest(f"{of_proxy['admin'].where} must be host:port")
    found: dict[bytes, dict[str, Any]] = {}
    for given in pools:
        values = {
            name: OF_POOL[name].read(where, text.strip()) for name, (text, where) in given.items()
        }
        prefix = values.pop("prefix", b"")
        if prefix in found:
            told = f"prefix {shown(prefix)}" if prefix else "no prefix"
            raise InvalidRequest(f"{_where(given, 'prefix')}: a pool with {told} is there already")
        found[prefix] = _options(given, values)
    return Config(proxy, found)


def _where(given: Mapping[str, Given], name: str) -> str:
    return (given.get(name) or given["servers"]).where


def _address(where: str, text: str, allow_public: bool, otherwise: str) -> str | tuple[str, int]:
    if text.startswith("unix:"):
        if not 0 < len(os.fsencode(text[5:])) <= MAX_PATH:
            raise InvalidRequest(f"{where}: the path must be of 1 to {MAX_PATH} bytes")
        return text[5:]
    host, colon, port = text.rpartition(":")
    if not colon:
        raise InvalidRequest(f"{where} must be host:port or unix:/path, not {shown(text)}")
    number = whole(0, 65535)(f"{where}: the port", port)
    return checked_host(where, host.strip("[]"), allow_public, otherwise), number


def _options(given: Mapping[str, Given], values: dict[str, Any]) -> dict[str, Any]:
    """Returns the options of a pool's client; one is made to see whether it takes them."""
    options = {name.replace("-", "_"): value for name, value in values.items()}
    tls, authority = options.pop("tls", False), options.pop("tls_ca", None)
    if tls or authority is not None:
        options["ssl"] = authority if authority is not None else True
    if "auth_file" in options:
        options["username"], options["password"] = options.pop("auth_file")
    if "gutter" in options:
        options.setdefault("on_dead", "gutter")
    try:
        Client(**options).close()
    except (InvalidRequest, TypeError) as error:
        told = in_flags(str(error))
        words = told.replace("=", " ").replace(":", " ").split()
        for name in given:
            if name.replace("-", "_") in words:
                raise InvalidRequest(f"{given[name].where}: {told}") from None
        raise InvalidRequest(f"{given['servers'].where}: {told}") from None
    return options
