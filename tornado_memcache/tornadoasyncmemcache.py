"""The drop-in for tornadoasyncmemcache, the Tornado module of 2013.

Knows that module's names, arguments, outcomes, value format and placement,
and translates them to the native client's. It must not know a socket, a
wire format or a timer.

Its values are read as that module reads them: **a pickle is unpickled, so
whoever can write to the cache can run code here.** Where that is not
wanted, pass ``serializer=Plain()`` or use the native client.
"""

import asyncio
import logging
from collections.abc import Callable, Iterable
from contextvars import Context, copy_context
from functools import partial
from typing import Any

from . import boundaries
from .address import Server
from .arguments import check_integer, key_bytes, listed, whole
from .call import check_callbacks
from .client import Client as NativeClient
from .errors import (
    ConnectionFailed,
    InvalidRequest,
    MemcacheError,
    NotSerializable,
    SerializationError,
    ServerDead,
    Timeout,
    cut,
    shown,
)
from .protocol import Request
from .ring import REHASH_STEPS
from .settings import Settings
from .tornadoasyncmemcache_values import OldModulo, OldPickle

__all__ = ["Client", "ClientPool", "TooManyClients"]

_log = logging.getLogger("tornado_memcache")
_app_log = logging.getLogger("tornado.application")

Callback = Callable[[Any], Any] | None

#: What fail_callback is told, where that module has a text for it. Anything
#: else is told as its own message (``received x bytes when expecting y``).
_TOLD: tuple[tuple[type[MemcacheError], str], ...] = (
    (Timeout, "memcache call timeout"),
    (ConnectionFailed, "server dead"),
    (ServerDead, "server dead"),
)
#: Settings of the native client that would not reach all commands of this face.
_NOT_HERE = ("key_prefix", "compress_over")


class TooManyClients(Exception):
    """``maxclients`` calls are under way already."""


class Client:
    """The old module's Client: each call takes callbacks and returns None.

    ``connect_timeout``, ``request_timeout`` and ``dead_retry`` are lengths
    in seconds. None, or 0, is the native client's default: unlike there,
    no call is without a deadline. ``server_retries`` is how many other
    places a key of a dead server is tried at (10; with 0 it stays with
    its server). ``io_loop`` is accepted and ignored, because there is one
    loop for each thread, and a client belongs to that of its first call.
    ``settings`` are further keywords of the native client; with
    ``ring="modulo"`` keys go where python-memcached puts them.

    A key is a `str`, `bytes` or `int`, or ``(hash, key)``. Values come back
    as the type that was stored: bytes (flags 0), str (16), int (2), and
    anything else as a pickle of protocol 2 (1). What Python 2 stored as a
    str has flags 0 and is bytes here.

    ``callback(result)`` is called on success. On a failure
    ``fail_callback(args)`` is, with a tuple as ``("memcache call
    timeout",)``; without it the error goes to the `.boundary` of the
    caller, else to the log. Each runs once, under the caller's boundary
    and in its context. Arguments that cannot be sent raise at the call.
    """

    def __init__(
        self,
        servers: Iterable[Any],
        debug: int = 0,
        io_loop: Any = None,
        connect_timeout: float | None = None,
        request_timeout: float | None = None,
        dead_retry: float | None = None,
        server_retries: int | None = None,
        **settings: Any,
    ) -> None:
        for name in _NOT_HERE:
            if name in settings:
                raise TypeError(f"{name} is a setting of tornado_memcache.Client only")
        retries = REHASH_STEPS if server_retries is None else server_retries
        self.server_retries = check_integer("server_retries", retries, 0, 1000)
        self.debug = debug
        #: How often each command was called.
        self.stats: dict[str, int] = {}
        given = {
            "connect_timeout": connect_timeout,
            "request_timeout": request_timeout,
            "dead_retry": dead_retry,
        }
        settings.update((name, seconds) for name, seconds in given.items() if seconds)
        settings.setdefault("serializer", OldPickle())
        settings.setdefault("ring", partial(OldModulo, retries=retries))
        settings.setdefault("on_dead", "rehash" if retries else "fail")
        self._rehashes = settings["on_dead"] == "rehash"
        self._serializer = settings["serializer"]
        self._native = NativeClient(servers, **settings)

    # -- servers

    @property
    def servers(self) -> tuple[Server, ...]:
        """The servers, as they were given at last."""
        return self._native.servers

    def set_servers(self, servers: Iterable[Any]) -> None:
        """Replaces the servers: ``"host:port"`` or ``("host:port", weight)``."""
        self._native.set_servers(servers)

    def forget_dead_hosts(self) -> None:
        """Lets the next call to each dead server try it again."""
        self._native.retry_dead_servers()

    def disconnect_all(self) -> None:
        """Closes all connections; the next calls open new ones."""
        self._native.disconnect()

    def close(self) -> None:
        """Closes the client for good (the old module has no such method)."""
        self._native.close()

    def debuglog(self, str: str) -> None:
        """Logs a line at the level INFO, if ``debug`` is set."""
        if self.debug:
            _log.info("MemCached: %s", str)

    def __repr__(self) -> str:
        return f"<{type(self).__name__} {self._native!r}>"

    # -- commands

    def get(self, key: Any, callback: Callback = None, fail_callback: Callback = None) -> None:
        """Gets a value; ``callback`` receives it, or None on a miss."""
        begin = partial(self._native.get, _placed(key))
        self._do("get", key, begin, _itself, callback, fail_callback)

    def gets(
        self, keys: Iterable[Any], callback: Callback = None, fail_callback: Callback = None
    ) -> None:
        """Gets many values; ``callback`` receives a dict of the hits.

        An `int` among ``keys`` stands in it as a str, and ``(hash, key)``
        as ``key``. The failure of any server is the failure of the call.
        (In python-memcached ``gets`` is for one key.)
        """
        asked = [_placed(key) for key in listed("keys", keys)]
        begin = partial(self._native.get_multi, asked, strict=True)
        self._do("gets", asked[0] if asked else "", begin, _by_key, callback, fail_callback)

    def set(
        self,
        key: Any,
        val: Any,
        time: float = 0,
        callback: Callback = None,
        fail_callback: Callback = None,
    ) -> None:
        """Stores a value; ``callback`` receives None.

        ``time`` goes to the server as it is: a length in seconds up to 30
        days, above that a moment (protocol.txt, "Expiration times").
        """
        self._store(b"set", key, val, time, callback, fail_callback)

    def add(
        self,
        key: Any,
        val: Any,
        time: float = 0,
        callback: Callback = None,
        fail_callback: Callback = None,
    ) -> None:
        """As `set`, if the key is not there; ``callback`` receives None either way."""
        self._store(b"add", key, val, time, callback, fail_callback)

    def replace(
        self,
        key: Any,
        val: Any,
        time: float = 0,
        callback: Callback = None,
        fail_callback: Callback = None,
    ) -> None:
        """As `set`, if the key is there; ``callback`` receives None either way."""
        self._store(b"replace", key, val, time, callback, fail_callback)

    def delete(
        self,
        key: Any,
        time: float | None = 0,
        callback: Callback = None,
        fail_callback: Callback = None,
    ) -> None:
        """Deletes a key; ``callback`` receives None, whether or not it was there.

        memcached knows no ``time`` here any more: with one it deletes
        nothing, so anything but 0 and None is a ValueError.
        """
        if time:
            raise InvalidRequest("time must be 0: memcached no longer delays a deletion")
        begin = partial(self._native.delete, _placed(key))
        self._do("delete", key, begin, _nothing, callback, fail_callback)

    def incr(
        self, key: Any, delta: int = 1, callback: Callback = None, fail_callback: Callback = None
    ) -> None:
        """Adds to a number; ``callback`` receives the new one, or None on a miss."""
        begin = partial(self._native.incr, _placed(key), delta)
        self._do("incr", key, begin, _itself, callback, fail_callback)

    def decr(
        self, key: Any, delta: int = 1, callback: Callback = None, fail_callback: Callback = None
    ) -> None:
        """Subtracts from a number, stopping at 0; ``callback`` as for `incr`."""
        begin = partial(self._native.decr, _placed(key), delta)
        self._do("decr", key, begin, _itself, callback, fail_callback)

    def _store(
        self,
        verb: bytes,
        key: Any,
        val: Any,
        time: float,
        callback: Callback,
        fail_callback: Callback,
    ) -> None:
        route, plain = _routed(key)
        wire = key_bytes(plain)
        try:
            data, flags = self._serializer.encode(wire, val)
        except InvalidRequest:
            raise
        except SerializationError as error:
            raise NotSerializable(str(error)) from error
        except Exception as error:
            told = f"value for key {shown(wire)} cannot be serialized: {type(error).__name__}"
            raise NotSerializable(told) from error
        seconds = whole("time", time, -(1 << 31), (1 << 31) - 1)
        request = Request(verb, (wire,), data, flags, seconds)
        begin = partial(self._native.request, request, route=route)
        self._do(verb.decode(), key, begin, _nothing, callback, fail_callback)

    # -- how a call begins and ends

    def _do(
        self,
        name: str,
        key: Any,
        begin: Callable[[], "asyncio.Future[Any]"],
        outcome: Callable[[Any], Any],
        callback: Callback,
        fail_callback: Callback,
    ) -> None:
        """Begins a call; whatever its end, `_ended` hears of it, a cancellation too."""
        check_callbacks(callback, fail_callback)
        future = begin()
        self.stats[name] = self.stats.get(name, 0) + 1
        ended = partial(self._ended, key, outcome, callback, fail_callback)
        future.add_done_callback(ended, context=copy_context())  # (which holds the boundary)

    def _ended(
        self,
        key: Any,
        outcome: Callable[[Any], Any],
        callback: Callback,
        fail_callback: Callback,
        future: "asyncio.Future[Any]",
    ) -> None:
        if future.cancelled():
            return
        entry, error = boundaries.current(), future.exception()
        if entry is not None and entry.ended_by() is not None:
            entry.cancelled += 1  # it ended between this call and its delivery
        elif error is None:
            if callback is not None:
                boundaries.run(callback, outcome(future.result()), copy_context(), entry)
        elif fail_callback is not None:
            boundaries.run(fail_callback, self._told(error, key), copy_context(), entry)
        elif entry is not None:
            entry.fail(error, copy_context())
        else:
            _app_log.error("A memcache call without fail_callback or boundary failed: %s", error)

    def _told(self, error: BaseException, key: Any) -> tuple[str]:
        """Returns what fail_callback receives for ``error``."""
        self.debuglog(str(error))
        if isinstance(error, ServerDead) and self._rehashes and len(self.servers) > 1:
            return (f"No available server for {cut(str(_plain(key)))}",)
        for kind, text in _TOLD:
            if isinstance(error, kind):
                return (text,)
        return (str(error),)


class ClientPool(Client):
    """The old module's ClientPool: a `Client` that bounds what it has under way.

    ``mincached``, ``maxcached`` and ``maxclients`` are ints, 0 is
    unlimited; ``args`` and ``kwargs`` go to `Client`. There a client
    carries one call at a time; here one connection carries many.

    ``maxclients`` bounds the calls under way: one more fails at once, with
    ``"Max of N clients is already reached"`` to its fail_callback, or else
    a `TooManyClients` that is raised. From the first call on ``mincached``
    connections to each server are kept warm, and at most ``maxcached``
    are kept when they are idle.
    """

    def __init__(
        self,
        servers: Iterable[Any],
        mincached: int = 0,
        maxcached: int = 0,
        maxclients: int = 0,
        *args: Any,
        **kwargs: Any,
    ) -> None:
        limits = {"mincached": mincached, "maxcached": maxcached, "maxclients": maxclients}
        for name, limit in limits.items():
            check_integer(name, limit, 0, 1 << 31)
        for larger, smaller in (
            ("maxclients", "mincached"),
            ("maxclients", "maxcached"),
            ("maxcached", "mincached"),
        ):
            if 0 < limits[larger] < limits[smaller]:
                raise InvalidRequest(f"{larger} must not be less than {smaller}")
        kwargs.setdefault("min_connections", mincached)
        if maxcached:
            kwargs.setdefault("max_idle", maxcached)
        most = max(mincached, maxcached, Settings().max_connections)
        kwargs.setdefault("max_connections", most)
        super().__init__(servers, *args, **kwargs)
        self._maxclients = maxclients
        self._cold = self._warms = mincached > 0
        self._under_way = 0
        self._loop: Any = None

    def disconnect_all(self) -> None:
        """Closes all connections; with ``mincached`` the next call opens all again."""
        super().disconnect_all()
        self._cold = self._warms

    def _do(
        self,
        name: str,
        key: Any,
        begin: Callable[[], "asyncio.Future[Any]"],
        outcome: Callable[[Any], Any],
        callback: Callback,
        fail_callback: Callback,
    ) -> None:
        if self._loop is not None and self._loop.is_closed():
            # What was under way ended with that loop, and nobody hears of it.
            self._loop, self._under_way, self._cold = None, 0, self._warms
        if 0 < self._maxclients <= self._under_way:
            check_callbacks(callback, fail_callback)
            reason = f"Max of {self._maxclients} clients is already reached"
            if fail_callback is None:
                raise TooManyClients(reason)
            # On a later tick: a fail_callback that tries again must not pile up on itself.
            asyncio.get_running_loop().call_soon(
                boundaries.run,
                fail_callback,
                reason,
                copy_context(),
                boundaries.current(),
                context=Context(),
            )
            return
        super()._do(name, key, begin, outcome, callback, fail_callback)
        self._loop = asyncio.get_running_loop()
        self._under_way += 1
        if self._cold:
            self._cold = False
            self._native.warm_up()

    def _ended(
        self,
        key: Any,
        outcome: Callable[[Any], Any],
        callback: Callback,
        fail_callback: Callback,
        future: "asyncio.Future[Any]",
    ) -> None:
        self._under_way -= 1
        super()._ended(key, outcome, callback, fail_callback, future)


def _routed(key: Any) -> tuple[int | None, Any]:
    """Returns the hash that was given with ``key``, or None, and the key itself."""
    if type(key) is tuple and len(key) != 2:
        raise InvalidRequest("key as a tuple must be (hash, key)")
    route, plain = key if type(key) is tuple else (None, key)
    if isinstance(plain, int) and not isinstance(plain, bool):  # (an int is its own hash)
        return (plain if route is None else route), str(plain)
    return route, plain


def _placed(key: Any) -> Any:
    """Returns ``key`` as the native client takes it."""
    route, plain = _routed(key)
    return plain if route is None else (route, plain)


def _plain(key: Any) -> Any:
    return _routed(key)[1]


def _by_key(hits: dict[Any, Any]) -> dict[Any, Any]:
    return {_plain(key): value for key, value in hits.items()}


def _itself(result: Any) -> Any:
    return result


def _nothing(result: Any) -> None:
    return None
