"""The drop-in for python-memcached: ``from tornado_memcache import memcache``.

Knows that client's names, arguments and outcomes, and translates them to
the native client's. It must not know a socket, a wire format or a timer.

Its values are read as that client reads them: **a pickle is unpickled, so
whoever can write to the cache can run code here.** Where that is not
wanted, pass ``unpickler=memcache.no_pickle``, or use the native client.
"""

import pickle
import zlib
from collections.abc import Callable, Iterable, Mapping
from functools import partial
from typing import Any, ClassVar

from . import ring
from .address import Server
from .arguments import check_seconds, key_bytes, listed, whole
from .client import Client as NativeClient
from .memcache_arguments import Keys, nested, parse_host, route_of, routed, seconds
from .memcache_cas import CasIds
from .memcache_outcomes import REACHED, STORED, Awaited, Outcomes, unanswered
from .memcache_values import PythonMemcachedValues, no_pickle
from .protocol import Reply, Request

__all__ = ["Client", "no_pickle"]

SERVER_MAX_KEY_LENGTH = 250
SERVER_MAX_VALUE_LENGTH = 1024 * 1024
_DEAD_RETRY = 30
_SOCKET_TIMEOUT = 3


def cmemcache_hash(key: bytes) -> int:
    """Returns the hash that places a key (python-memcached's default)."""
    return ring.key_hash(key)


serverHashFunction: Callable[[bytes], int] = cmemcache_hash


def useOldServerHashFunction() -> None:
    """Places keys by the plain crc32 from now on, as that client's function does."""
    global serverHashFunction
    serverHashFunction = zlib.crc32


def _modulo(servers: Any) -> ring.Ring:
    return ring.Modulo(servers, lambda key: serverHashFunction(key))


_MISS = object()
#: What of the native client would make keys or values differ from python-memcached's.
_NOT_HERE = {"compress_over", "key_prefix", "max_decompressed_size", "serializer"}


def _storage(verb: bytes, says: str) -> Callable[..., Awaited]:
    """Returns the method for one of the storage commands, which differ in their name only."""

    def store(
        self: "Client",
        key: Any,
        val: Any,
        time: Any = 0,
        min_compress_len: int = 0,
        noreply: bool = False,
        **how: Any,
    ) -> Awaited:
        return self._store(verb, self._key(key), val, time, min_compress_len, noreply, how)

    store.__name__ = verb.decode()
    store.__qualname__ = f"Client.{store.__name__}"
    store.__doc__ = says
    return store


def _of_values(name: str) -> Any:
    """Returns a property that stands for the attribute of the value format."""
    return property(
        lambda self: getattr(self._values, name),
        lambda self, new: setattr(self._values, name, new),
    )


class Client(Keys, Outcomes):
    """python-memcached's Client, for Tornado: each call returns a Future, or takes a callback.

    All arguments and methods are those of python-memcached 1.62; every
    method that asks a server also takes ``timeout`` (seconds),
    ``callback`` and ``fail_callback``. Awaited, a failure is that
    client's value for it (None, 0, the default), counted, and logged once
    for each server and change. In callback style it goes to
    ``fail_callback``, else to the boundary, else ``callback`` gets that
    value. Further keywords (``connect_timeout``, ``request_timeout``,
    ``max_connections`` ...) are the native client's; ``socket_timeout``
    stands for both timeouts where they are not given.
    """

    _FLAG_PICKLE: ClassVar[int] = 1 << 0
    _FLAG_INTEGER: ClassVar[int] = 1 << 1
    _FLAG_LONG: ClassVar[int] = 1 << 2
    _FLAG_COMPRESSED: ClassVar[int] = 1 << 3
    _FLAG_TEXT: ClassVar[int] = 1 << 4
    _SERVER_RETRIES: ClassVar[int] = ring.REHASH_STEPS

    pickleProtocol = _of_values("protocol")
    pickler = _of_values("pickler")
    unpickler = _of_values("unpickler")
    compressor = _of_values("compressor")
    decompressor = _of_values("decompressor")
    persistent_load = _of_values("persistent_load")
    persistent_id = _of_values("persistent_id")

    def __init__(
        self,
        servers: Iterable[Any],
        debug: int = 0,
        pickleProtocol: int = 0,
        pickler: Callable[..., Any] = pickle.Pickler,
        unpickler: Callable[..., Any] = pickle.Unpickler,
        compressor: Callable[[bytes], bytes] = zlib.compress,
        decompressor: Callable[[bytes], bytes] = zlib.decompress,
        pload: Callable[[Any], Any] | None = None,
        pid: Callable[[Any], Any] | None = None,
        server_max_key_length: int | None = None,
        server_max_value_length: int | None = None,
        dead_retry: float = _DEAD_RETRY,
        socket_timeout: float = _SOCKET_TIMEOUT,
        cache_cas: bool = False,
        flush_on_reconnect: int = 0,
        check_keys: bool = True,
        key_encoder: Callable[[Any], Any] | None = None,
        **native: Any,
    ) -> None:
        self.debug, self.dead_retry, self.socket_timeout = debug, dead_retry, socket_timeout
        self.cache_cas, self.flush_on_reconnect = cache_cas, flush_on_reconnect
        self.do_check_key, self.key_encoder = check_keys, key_encoder
        self.server_max_key_length = (
            SERVER_MAX_KEY_LENGTH if server_max_key_length is None else server_max_key_length
        )
        self.server_max_value_length = (
            SERVER_MAX_VALUE_LENGTH if server_max_value_length is None else server_max_value_length
        )
        self.stats: dict[str, int] = {}
        self.cas_ids = CasIds()
        self._values = PythonMemcachedValues(
            pickleProtocol, pickler, unpickler, compressor, decompressor
        )
        self.persistent_load, self.persistent_id = pload, pid
        self._native = self._over(servers, native)

    def _over(self, servers: Iterable[Any], native: dict[str, Any]) -> NativeClient:
        """Returns the native client that does the work, with this face's defaults."""
        for name in _NOT_HERE & native.keys():
            raise TypeError(f"{name} is of the native client, and this face has its own")
        if not {"connect_timeout", "request_timeout"} <= native.keys():
            check_seconds("socket_timeout", self.socket_timeout)
        native.setdefault("connect_timeout", self.socket_timeout)
        native.setdefault("request_timeout", self.socket_timeout)
        native.setdefault("on_dead", "rehash")
        native.setdefault("ring", _modulo)
        largest = self.server_max_value_length or 1 << 30
        native.setdefault("max_value_size", max(largest, SERVER_MAX_VALUE_LENGTH))
        return NativeClient(
            [parse_host(spec) for spec in servers],
            dead_retry=self.dead_retry or 0.001,
            flush_on_reconnect=bool(self.flush_on_reconnect),
            serializer=self._values,
            **native,
        )

    # -- servers and settings

    @property
    def servers(self) -> list[Server]:
        """The servers, as they were given."""
        return list(self._native.servers)

    @property
    def buckets(self) -> list[Server]:
        """Each server as often as its weight says, in order."""
        return [server for server in self.servers for _ in range(server.weight)]

    def set_servers(self, servers: Iterable[Any]) -> None:
        """Replaces the servers."""
        self._native.set_servers([parse_host(spec) for spec in servers])

    def forget_dead_hosts(self) -> None:
        """Lets the next call to each dead server try it again."""
        self._native.retry_dead_servers()

    def disconnect_all(self) -> None:
        """Closes all connections; the next call opens a new one."""
        self._native.disconnect()

    def close(self) -> None:
        """Closes the client for good (python-memcached has no such method)."""
        self._native.close()

    def reset_cas(self) -> None:
        """Forgets what `gets` fetched."""
        self.cas_ids = CasIds()

    def _statlog(self, name: str) -> None:
        self.stats[name] = self.stats.get(name, 0) + 1

    def _ask(
        self,
        key: Any,
        request: Request,
        outcomes: Mapping[bytes, Any],
        failed: Any,
        how: dict[str, Any],
    ) -> Awaited:
        """Sends a request for one key and looks its status up in ``outcomes``."""
        route, wire = route_of(key)
        self._statlog(request.verb.decode())
        begin = partial(
            self._native.request, request._replace(keys=(key_bytes(wire),)), route=route
        )
        refused = False if outcomes is STORED else None
        return self._translate(
            begin, lambda reply: outcomes[reply.status], failed, how, refused=refused
        )

    # -- retrieval

    def get(self, key: Any, default: Any = None, **how: Any) -> Awaited:
        """Gets a value; a miss and a failure give ``default``."""
        wire = self._key(key)
        self._statlog("get")
        return self._translate(
            partial(self._native.get, wire, _MISS),
            lambda value: default if value is _MISS else value,
            default,
            how,
        )

    def gets(self, key: Any, **how: Any) -> Awaited:
        """Gets a value and keeps its cas unique for `cas`, if ``cache_cas`` is set."""
        wire = self._key(key)
        self._statlog("gets")

        def keep(pair: Any) -> Any:
            value, unique = pair
            if self.cache_cas and unique is not None:
                name = wire[1] if isinstance(wire, tuple) else wire
                self.cas_ids[name] = mine[name] = unique
            return value

        mine = self.cas_ids.here() if self.cache_cas else {}
        return self._translate(partial(self._native.gets, wire), keep, None, how)

    def get_multi(self, keys: Iterable[Any], key_prefix: Any = "", **how: Any) -> Awaited:
        """Gets a dict of the hits, under the caller's own keys."""
        self._statlog("get_multi")
        prefix = self._prefix(key_prefix)
        wires = {self._key(key, prefix, multi=True): key for key in listed("keys", keys)}

        def named(found: Any) -> dict[Any, Any]:
            for error in found.errors.values():
                if self._refusal(error) is not None:
                    raise error
            return {wires[wire]: value for wire, value in found.items()}

        return self._translate(partial(self._native.get_multi, list(wires)), named, {}, how)

    # -- storage

    set = _storage(b"set", "Stores a value: True, False if it was not stored, 0 on a failure.")
    add = _storage(b"add", "As `set`, if the key is not there.")
    replace = _storage(b"replace", "As `set`, if the key is there.")
    append = _storage(b"append", "Adds to the end of the value that is there.")
    prepend = _storage(b"prepend", "Adds to the beginning of the value that is there.")

    def cas(
        self,
        key: Any,
        val: Any,
        time: Any = 0,
        min_compress_len: int = 0,
        noreply: bool = False,
        **how: Any,
    ) -> Awaited:
        """Stores a value if it is what `gets` fetched; ValueError if nothing was fetched."""
        wire = self._key(key)
        name = wire[1] if isinstance(wire, tuple) else wire
        unique = self.cas_ids.fetched(name)
        if unique is None:
            raise ValueError("gets first, with cache_cas=True")
        return self._store(b"cas", wire, val, time, min_compress_len, noreply, how, unique)

    def _store(
        self,
        verb: bytes,
        wire: Any,
        val: Any,
        time: Any,
        min_compress_len: int,
        noreply: bool,
        how: dict[str, Any],
        unique: int = 0,
    ) -> Awaited:
        request = self._stored(verb, val, time, min_compress_len, noreply)
        if request is None:
            self._statlog(verb.decode())
            return self._settled(0, how)
        return self._ask(wire, request._replace(cas_unique=unique), STORED, 0, how)

    def _stored(
        self, verb: bytes, val: Any, time: Any, min_compress_len: int, noreply: bool
    ) -> Request | None:
        """Returns the request that stores ``val``, None if it is too large."""
        if verb in (b"append", b"prepend"):
            min_compress_len = 0  # to append to a value, or to be appended, it has to be plain
        data, flags = self._values.store(val, min_compress_len)
        if self.server_max_value_length != 0 and len(data) > self.server_max_value_length:
            return None
        return Request(verb, (), data, flags, seconds(time), noreply=bool(noreply))

    def set_multi(
        self,
        mapping: Mapping[Any, Any],
        time: Any = 0,
        key_prefix: Any = "",
        min_compress_len: int = 0,
        noreply: bool = False,
        **how: Any,
    ) -> Awaited:
        """Stores many values and gives the list of the keys that were not stored."""
        if not isinstance(mapping, Mapping):
            raise TypeError(f"mapping must be a mapping, not {type(mapping).__name__}")
        self._statlog("set_multi")
        prefix = self._prefix(key_prefix)
        wires = {key: self._key(key, prefix, multi=True) for key in mapping}
        asked, left_out = [], []
        for key, wire in wires.items():
            request = self._stored(b"set", mapping[key], time, min_compress_len, noreply)
            if request is None:
                left_out.append(key)
            else:
                asked.append((key, wire, request))

        def not_stored(replies: Any) -> list[Any]:
            if replies and all(map(unanswered, replies)):
                raise replies[0]
            return left_out + [
                key
                for (key, _, _), reply in zip(asked, replies)
                if not (isinstance(reply, Reply) and STORED[reply.status])
            ]

        begin = partial(self._native.request_many, [routed(wire, one) for _, wire, one in asked])
        return self._translate(begin, not_stored, list(mapping), how)

    # -- the rest

    def delete(self, key: Any, noreply: bool = False, **how: Any) -> Awaited:
        """Deletes a key: 1, or 0 if it was not there or could not be reached."""
        request = Request(b"delete", noreply=bool(noreply))
        return self._ask(self._key(key), request, REACHED, 0, how)

    def delete_multi(
        self,
        keys: Iterable[Any],
        time: Any = None,
        key_prefix: Any = "",
        noreply: bool = False,
        **how: Any,
    ) -> Awaited:
        """Deletes many keys: 1, or 0 if a server could not be reached."""
        if time not in (None, 0):
            raise ValueError("time is no longer known to memcached and must be None or 0")
        self._statlog("delete_multi")
        prefix = self._prefix(key_prefix)
        request = Request(b"delete", noreply=bool(noreply))
        wires = [self._key(key, prefix, multi=True) for key in listed("keys", keys)]
        asked = [routed(wire, request) for wire in wires]

        def all_reached(replies: Any) -> int:
            for reply in filter(unanswered, replies):
                raise reply
            return 1

        return self._translate(partial(self._native.request_many, asked), all_reached, 0, how)

    def touch(self, key: Any, time: Any = 0, noreply: bool = False, **how: Any) -> Awaited:
        """Sets the time of an item: 1, or 0 if it was not there or could not be reached."""
        request = Request(b"touch", exptime=seconds(time), noreply=bool(noreply))
        return self._ask(self._key(key), request, REACHED, 0, how)

    def incr(self, key: Any, delta: int = 1, noreply: bool = False, **how: Any) -> Awaited:
        """Adds to a number: the new one, None on a miss; ValueError if it is no number."""
        return self._count(b"incr", key, delta, noreply, how)

    def decr(self, key: Any, delta: int = 1, noreply: bool = False, **how: Any) -> Awaited:
        """Subtracts from a number, stopping at 0; as `incr`."""
        return self._count(b"decr", key, delta, noreply, how)

    def _count(
        self, verb: bytes, key: Any, delta: int, noreply: bool, how: dict[str, Any]
    ) -> Awaited:
        route, wire = route_of(self._key(key))
        self._statlog(verb.decode())
        number = whole("delta", delta, 0, (1 << 64) - 1)
        request = Request(verb, (key_bytes(wire),), delta=number, noreply=bool(noreply))
        return self._translate(
            partial(self._native.request, request, route=route),
            lambda reply: reply.number if reply.status == b"NUMBER" else None,
            None,
            how,
        )

    def flush_all(self, **how: Any) -> Awaited:
        """Invalidates everything on all servers that can be reached; gives None."""
        self._statlog("flush_all")
        return self._translate(self._native.flush_all, lambda reached: None, None, how)

    def quit_all(self, **how: Any) -> Awaited:
        """Closes all connections; gives None."""
        self._native.disconnect()
        return self._settled(None, how)

    def get_stats(self, stat_args: str | None = None, **how: Any) -> Awaited:
        """Gives ``[("127.0.0.1:11211 (1)", {name: value})]``, without servers that are down."""
        return self._stats(stat_args, lambda stats: stats, how)

    def get_slab_stats(self, **how: Any) -> Awaited:
        """Gives each server's ``stats slabs``, by slab."""
        return self._stats("slabs", lambda stats: nested(stats, 0), how)

    def get_slabs(self, **how: Any) -> Awaited:
        """Gives each server's ``stats items``, by slab."""
        return self._stats("items", lambda stats: nested(stats, 1), how)

    def _stats(
        self, argument: str | None, shape: Callable[[dict[str, str]], Any], how: dict[str, Any]
    ) -> Awaited:
        def named(found: Any) -> list[Any]:
            return [
                (f"{server.name} ({server.weight})", shape(found[server.name]))
                for server in self.servers
                if server.name in found
            ]

        return self._translate(partial(self._native.stats, argument or None), named, [], how)

    def _settled(self, outcome: Any, how: dict[str, Any]) -> Awaited:
        """Gives an outcome for which no server is asked."""
        begin = partial(self._native.request_many, [])
        return self._translate(begin, lambda replies: outcome, outcome, how)
