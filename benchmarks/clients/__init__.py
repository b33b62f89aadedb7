"""One small adapter for each client, so that all can be driven alike.

Knows what is asked of a client here. For the table of faults: open, get, set,
get_multi, close, with keys as str and values as bytes. For speed: open_best,
and then the client's own methods with nothing around them. It must not know
what is measured. An adapter changes no behaviour: what its client does not
do, it does not do.
"""

from __future__ import annotations

import asyncio
import importlib
import importlib.metadata
from collections.abc import Awaitable, Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

#: The clients to which faults are done, in the order of the columns.
NAMES = ("ours", "emcache", "aiomcache", "memcachio", "pymemcache", "python_memcached")
#: What is no client: the least that anything could cost.
FLOORS = ("bare_pipelined", "bare_batched", "raw_socket", "loop_alone")
#: All that are measured, in the order of the rows. The modules of this folder.
MEASURED = (
    "ours",
    "ours_callbacks",
    "emcache",
    "emcache_autobatching",
    "aiomcache",
    "memcachio",
    "pymemcache_threads",
    "pymemcache",
    "python_memcached",
    "pylibmc",
    *FLOORS,
)
#: Seconds that a call may take where speed is measured: nobody is to fail of being slow.
PATIENCE = 30.0


def host_and_port(address: str) -> tuple[str, int]:
    host, _, port = address.rpartition(":")
    return host, int(port)


class Adapter:
    """A client, driven from an event loop. ``get`` and the others return awaitables."""

    #: As the client is called in tables, and as it is installed.
    title = ""
    distribution = ""
    #: Its calls block the thread that makes them.
    blocking = False
    #: It takes timeouts. Otherwise a call ends when the server likes.
    has_deadlines = True
    #: ``set`` takes ``flags=``.
    takes_flags = False
    #: The checks of keys can be switched off: ``open(..., unchecked=True)``.
    can_be_unchecked = False
    #: It decompresses what it reads: ``open(..., compressed=True)``.
    decompresses = False
    #: What is not left at its default here, T being the timeout.
    settings = ""

    # -- where speed is measured

    #: How it is used: "await", "call" (its calls block) or "callback".
    style = "await"
    #: Its settings there, of which `open_best` makes something for so many callers.
    best = "as it is by default"
    #: Its keys are bytes, not str.
    bytes_keys = False
    #: ``fetch`` gives an object whose ``value`` is the value, not the value itself.
    items = False
    #: The kinds of workloads that it can do, and whether it takes many servers.
    kinds: frozenset[str] = frozenset({"gets", "mix", "burst", "multi", "sets"})
    many_servers = True
    #: The client's own methods: get(key), set(key, value), get_multi(keys).
    fetch: Any = None
    store: Any = None
    fetch_many: Any = None
    #: What ``store`` gives when it stored, and only then.
    stored: Any = True

    async def open_best(self, addresses: list[str], callers: int, size: int) -> None:
        """Makes the client as it serves so many callers, and values of that size, best."""
        raise NotImplementedError

    async def use_connections(self, several: Any, count: int) -> None:
        """Has each of ``count`` connections carry a call: large sets at once, which share none."""
        value = b"x" * 100_000
        keys: list[Any] = [f"used:{number}" for number in range(count)]
        keys = [key.encode() for key in keys] if self.bytes_keys else keys
        await asyncio.gather(*[several.set(key, value) for key in keys])

    def values(self, found: Any, keys: list[Any]) -> list[bytes]:
        """Returns the values in what ``fetch_many`` gave for ``keys``, in their order."""
        return [found[key] for key in keys if key in found]

    # -- where faults are done

    async def open(self, address: str, timeout: float, **how: Any) -> None:
        """Makes the client of the server at ``address`` ("host:port")."""
        raise NotImplementedError

    def get(self, key: str) -> Awaitable[bytes | None]:
        raise NotImplementedError

    def set(self, key: str, value: bytes, exptime: int = 0, **how: Any) -> Awaitable[Any]:
        """Stores, and waits for the answer. Gives something true if it was stored."""
        raise NotImplementedError

    def get_multi(self, keys: Iterable[str]) -> Awaitable[dict[str, bytes]]:
        raise NotImplementedError

    async def close(self) -> None:
        raise NotImplementedError


class Blocking(Adapter):
    """A client whose calls block, in a thread of its own.

    With ``direct`` its calls are made on the caller's thread, as an
    application does that has not thought of it.
    """

    blocking = True
    style = "call"
    kinds = frozenset({"gets", "multi", "sets"})

    def __init__(self) -> None:
        self.direct = False
        self._thread = ThreadPoolExecutor(1)

    def blocking_open(self, address: str, timeout: float, **how: Any) -> None:
        raise NotImplementedError

    def blocking_get(self, key: str) -> bytes | None:
        raise NotImplementedError

    def blocking_set(self, key: str, value: bytes, exptime: int = 0, **how: Any) -> Any:
        raise NotImplementedError

    def blocking_get_multi(self, keys: Iterable[str]) -> dict[str, bytes]:
        raise NotImplementedError

    def blocking_close(self) -> None:
        raise NotImplementedError

    async def open(self, address: str, timeout: float, **how: Any) -> None:
        await self._call(lambda: self.blocking_open(address, timeout, **how))

    def get(self, key: str) -> Awaitable[bytes | None]:
        return self._call(lambda: self.blocking_get(key))

    def set(self, key: str, value: bytes, exptime: int = 0, **how: Any) -> Awaitable[Any]:
        return self._call(lambda: self.blocking_set(key, value, exptime, **how))

    def get_multi(self, keys: Iterable[str]) -> Awaitable[dict[str, bytes]]:
        return self._call(lambda: self.blocking_get_multi(keys))

    async def close(self) -> None:
        await self._call(self.blocking_close)

    def _call(self, work: Callable[[], Any]) -> Awaitable[Any]:
        loop = asyncio.get_running_loop()
        if not self.direct:
            return loop.run_in_executor(self._thread, work)
        done = loop.create_future()
        try:
            done.set_result(work())
        except Exception as error:
            done.set_exception(error)
        return done


def adapter(name: str) -> type[Adapter]:
    """Returns the adapter called ``name``; ImportError if its client is not installed."""
    found: type[Adapter] = importlib.import_module(f"{__name__}.{name}").Client
    return found


def version(name: str) -> str | None:
    """Returns the version of the client called ``name``, or None if it is not installed."""
    try:
        found = adapter(name)
    except ImportError:
        return None
    if not found.distribution:
        return ""  # (a floor, which nobody installs)
    try:
        return importlib.metadata.version(found.distribution)
    except importlib.metadata.PackageNotFoundError:
        # A checkout that is not installed.
        return str(importlib.import_module(found.distribution).__version__)
