"""The handler of a memcached proxy: what each request becomes on the clients behind it.

A `Proxy` stands behind a `.FrontDoor` and asks `.Client`s: the one whose
prefix a key has, else the one of the prefix ``b""``. Values, flags and
exptimes pass as they are, in bytes and integers.

This file knows which verbs go on, to whom, and what a failure is told as. It
must not know who is connected, how a client finds a server, or where the
settings came from.
"""

import asyncio
import time
from collections import Counter
from collections.abc import Awaitable, Callable, Iterable, Mapping
from typing import Any

from .client import Client
from .errors import ClientError, InvalidRequest, MemcacheError, ReplyError, shown
from .guest import failure
from .protocol import Item, Reply, Request
from .text import VERBS

#: What ends, empties or changes servers as a whole, or tells of others' keys: refused unless
#: all commands are allowed.
REFUSED = frozenset(
    b"flush_all shutdown verbosity cache_memlimit slabs lru lru_crawler watch debugtime".split()
)
#: The same, of what stands behind ``stats``.
REFUSED_STATS = frozenset(b"reset cachedump detail".split())
#: What belongs to one server is not asked of several.
_OF_ONE_SERVER = REFUSED - frozenset(b"flush_all verbosity cache_memlimit".split())
#: Numbers of ``stats`` that several servers have, and that mean nothing when they are added.
_NOT_ADDED = frozenset("pid uptime time pointer_size rusage_user rusage_system".split())
_MISS, _MISS_OF_META, _OK = Reply(b"END"), Reply(b"EN"), Reply(b"OK")
_RETRIEVALS = frozenset(b"get gets gat gats".split())


class AsStored:
    """The serializer of a proxy: a value is an `.Item`, its bytes and flags."""

    raw_flags: int | None = None

    def encode(self, key: bytes, value: Any) -> tuple[bytes, int]:
        item: Item = value
        return item.value, item.flags

    def decode(self, key: bytes, data: bytes, flags: int) -> Item:
        return Item(data, flags)


class Proxy:
    """Answers requests by asking memcacheds: a handler for a `.FrontDoor`.

    Arguments: ``pools``, which maps a prefix of keys to the client that
    they belong to (``b""``, which must be there, to that of all others;
    the longest prefix counts). The clients have `AsStored` as serializer
    and no ``key_prefix``. With ``errors`` a read that no server answered
    is a SERVER_ERROR and not a miss. ``allow_all`` lets through what acts
    on whole servers (`REFUSED`). ``facts`` gives what ``stats proxy``
    tells of the process and its clients.

    All of them may be replaced at any time: what is under way ends where
    it began.
    """

    def __init__(
        self,
        pools: Mapping[bytes, Client],
        *,
        errors: bool = False,
        allow_all: bool = False,
        facts: Callable[[], dict[str, object]] = dict,
    ) -> None:
        self.errors = errors
        self.allow_all = allow_all
        self.facts = facts
        #: Requests by verb, and failures by server.
        self.requests, self.failures = Counter[bytes](), Counter[str]()
        self.use(pools)
        self._verbs: dict[bytes, Callable[[Request], Any]] = dict.fromkeys(
            (verb for verb, how in VERBS.items() if how.shape != "config"), self._pass_on
        )
        self._verbs.update({
            b"get": self._get,
            b"gets": self._retrieve,
            b"gat": self._retrieve,
            b"gats": self._retrieve,
            b"mn": lambda request: Reply(b"MN"),
            b"version": self._version,
            b"stats": self._stats,
            b"flush_all": self._ask_all,
            b"verbosity": self._ask_all,
        })  # fmt: skip

    def use(self, pools: Mapping[bytes, Client]) -> None:
        """Has the next requests go to ``pools``."""
        self.pools = dict(pools)
        self._default = pools[b""]
        longest = sorted((prefix for prefix in pools if prefix), key=len, reverse=True)
        self._routes = [(prefix, pools[prefix]) for prefix in longest]

    def __repr__(self) -> str:
        return f"<Proxy {len(self.pools)} pools, {sum(self.requests.values())} requests>"

    def __call__(self, request: Request) -> Reply | Awaitable[Any]:
        """Returns the reply to ``request``, or what it is awaited from.

        Raises `.MemcacheError` for what is refused.
        """
        verb = request.verb
        if verb in REFUSED and not self.allow_all:
            raise ClientError(f"{verb.decode()} is not allowed here")
        ask = self._verbs.get(verb)
        if ask is None:
            return Reply(b"ERROR")
        self.requests[verb] += 1
        answer: Reply | Awaitable[Any] = ask(request)
        return answer

    def failed(self, request: Request, error: Exception) -> Reply:
        """Returns what the client is told of ``error``.

        What a server refuses is passed on; that it cannot be reached, or
        not in time, is a miss to who reads, unless ``errors`` are wanted.
        """
        if not isinstance(error, MemcacheError) or isinstance(error, InvalidRequest):
            return failure(error)
        self.failures[error.server or ""] += 1
        if not (self.errors or isinstance(error, ReplyError)):
            if request.verb in _RETRIEVALS:
                return _MISS
            if request.verb == b"mg":
                return _MISS_OF_META
        return failure(error)

    # -- keys

    def _client_of(self, key: bytes) -> Client:
        for prefix, client in self._routes:
            if key.startswith(prefix):
                return client
        return self._default

    def _get(self, request: Request) -> Awaitable[Any]:
        keys = request.keys
        if not self._routes:
            if len(keys) == 1:
                return self._default.get(keys[0])
            return self._default.get_multi(keys, strict=self.errors)
        if len(keys) == 1:
            return self._client_of(keys[0]).get(keys[0])
        parts: dict[Client, list[bytes]] = {}
        for key in keys:
            parts.setdefault(self._client_of(key), []).append(key)
        return self._merged(
            [client.get_multi(part, strict=self.errors) for client, part in parts.items()]
        )

    async def _merged(self, parts: Iterable[Awaitable[Mapping[bytes, Item]]]) -> dict[bytes, Item]:
        found: dict[bytes, Item] = {}
        for items in await asyncio.gather(*parts, return_exceptions=True):
            if not isinstance(items, BaseException):
                found.update(items)
            elif self.errors or not isinstance(items, MemcacheError):
                raise items
        return found

    def _retrieve(self, request: Request) -> Awaitable[Any]:
        request = _fitting(request)
        if len(request.keys) == 1:
            return self._client_of(request.keys[0]).request(request)
        # Each key as a request of its own: together they leave in one write to each server.
        parts: dict[Client, list[Request]] = {}
        for key in dict.fromkeys(request.keys):
            parts.setdefault(self._client_of(key), []).append(request._replace(keys=(key,)))
        return self._gathered([client.request_many(part) for client, part in parts.items()])

    async def _gathered(self, parts: Iterable[Awaitable[list[Any]]]) -> dict[bytes, Item]:
        found: dict[bytes, Item] = {}
        for replies in await asyncio.gather(*parts):
            for reply in replies:
                if isinstance(reply, Reply):
                    found.update(reply.items)
                elif self.errors or isinstance(reply, ReplyError):
                    raise reply
        return found

    def _pass_on(self, request: Request) -> Awaitable[Any]:
        if not request.keys:
            raise InvalidRequest(f"{request.asked()} is not passed on")
        asked = _fitting(request)
        if b"q" in asked.argument:  # quiet: the reply is owed to us, if not to the client
            words = [word for word in asked.argument.split(b" ") if word != b"q"]
            asked = asked._replace(argument=b" ".join(words))
        return self._client_of(request.keys[0]).request(asked)

    # -- all servers

    def _everybody(self) -> list[Client]:
        return list(dict.fromkeys(self.pools.values()))

    async def _ask_all(self, request: Request) -> Reply:
        asked = request._replace(noreply=False)
        everybody = [client._ask_all(asked, bool, {}) for client in self._everybody()]
        for result in await asyncio.gather(*everybody):
            for error in result.errors.values():
                raise error
        return _OK

    async def _version(self, request: Request) -> Reply:
        versions = (await self._default.version()).values()
        return Reply(b"VERSION", text=min(versions, key=_numbers).encode())

    async def _stats(self, request: Request) -> Reply:
        words = request.argument.split(b" ")
        if words == [b"proxy"]:
            return Reply(b"END", stats={name: str(fact) for name, fact in self.told().items()})
        if words[0] in REFUSED_STATS and not self.allow_all:
            raise ClientError(f"stats {words[0].decode()} is not allowed here")
        if words[0] in (b"cachedump", b"detail", b"conns"):
            raise ClientError(f"stats {words[0].decode()} is of one server: ask it")
        asked = request._replace(argument=request.argument.strip())
        everybody = [client._ask_all(asked, _as_it_is, {}) for client in self._everybody()]
        replies = [
            reply for result in await asyncio.gather(*everybody) for reply in result.values()
        ]
        return Reply(replies[0].status, stats=_added([reply.stats for reply in replies]))

    def told(self) -> dict[str, object]:
        """Returns what ``stats proxy`` tells: names and numbers."""
        facts = dict(self.facts())
        for verb, count in sorted(self.requests.items()):
            facts[f"cmd_{verb.decode()}"] = count
        for prefix, client in self.pools.items():
            for pool in client._all_pools():
                named = f"{shown(prefix)[1:-1]}{pool.name}"
                facts[f"server_{named}_state"] = repr(pool.health).partition(":")[0]
                facts[f"server_{named}_connections"] = len(pool.connections)
                facts[f"server_{named}_pending"] = pool.pending
                facts[f"server_{named}_failures"] = pool.health.failures
        return facts


def _as_it_is(reply: Reply) -> Reply:
    return reply


def _fitting(request: Request) -> Request:
    """Returns ``request`` as it is asked: with a reply, and an exptime as memcached takes it.

    A reply that nobody wants is asked for nevertheless: an error to a
    noreply request cannot be told from others on a shared connection.
    """
    if request.noreply:
        request = request._replace(noreply=False)
    if request.exptime and not -(1 << 31) <= request.exptime < 1 << 31:
        request = request._replace(exptime=((request.exptime + (1 << 31)) & 0xFFFFFFFF) - (1 << 31))
    return request


def _numbers(version: str) -> list[int]:
    return [int("".join(filter(str.isdigit, part)) or 0) for part in version.split(".")]


def _added(several: list[dict[str, str]]) -> dict[str, str]:
    """Returns the ``stats`` of all servers as those of one: what counts is added."""
    if len(several) == 1:
        return several[0]
    added: dict[str, str] = {}
    for name in dict.fromkeys(name for stats in several for name in stats):
        values = [stats[name] for stats in several if name in stats]
        if all(value.isdigit() for value in values) and name not in _NOT_ADDED:
            values[0] = str(sum(map(int, values)))
        added[name] = values[0]
    return added


def uptime(begun: float, now: Callable[[], float] = time.monotonic) -> int:
    """Returns the whole seconds since ``begun``."""
    return int(now() - begun)
