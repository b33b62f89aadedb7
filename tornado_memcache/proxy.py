"""The handler of a memcached proxy: what each request becomes on the clients behind it.

A `Proxy` stands behind a `.FrontDoor` and asks `.Client`s: the one whose
prefix a key has, else the one of the prefix ``b""``. Values, flags and
exptimes pass as they are, in bytes and integers.

This file knows which verbs go on, to whom, and what a failure is told as. It
must not know who is connected, how a client finds a server, or where the
settings came from.
"""

import asyncio
from collections import Counter
from collections.abc import Awaitable, Callable, Iterable, Mapping
from typing import Any

from .client import Client
from .errors import ClientError, InvalidRequest, MemcacheError, ReplyError, shown
from .guest import failure
from .meta_server import echoed, flags_of
from .outcomes import as_it_is
from .protocol import Item, Reply, Request
from .relay import END, Relay
from .text import VERBS

#: What ends, empties or changes servers as a whole, or tells of others' keys: refused unless
#: all commands are allowed.
REFUSED = frozenset(
    b"flush_all shutdown verbosity cache_memlimit slabs lru lru_crawler watch debugtime".split()
)
#: The same, of what stands behind ``stats``.
REFUSED_STATS = frozenset(b"reset cachedump detail".split())
#: What is told by one server, line by line as it likes, is not asked of several.
_STATS_OF_ONE = frozenset(b"cachedump detail conns sizes_enable sizes_disable".split())
#: Numbers of ``stats`` that several servers have, and that mean nothing when they are added.
_NOT_ADDED = frozenset("pid uptime time pointer_size rusage_user rusage_system".split())
_OK = Reply(b"OK")
#: What reads, and what a miss of it is.
_MISSES = {b"gat": Reply(b"END"), b"gats": Reply(b"END"), b"mg": Reply(b"EN")}


class Proxy:
    """Answers requests by asking memcacheds: a handler for a `.FrontDoor`.

    Arguments: ``pools``, which maps a prefix of keys to the client that
    they belong to (``b""``, which must be there, to that of all others;
    the longest prefix counts). With ``errors`` a read that no server answered
    is a SERVER_ERROR and not a miss. ``allow_all`` lets through what acts
    on whole servers (`REFUSED`). ``facts`` gives what ``stats proxy``
    tells of the process and its clients.

    All of them may be replaced at any time: what is under way ends where
    it began. Whoever hands it requests calls `begun` behind those that came
    together.
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
            b"gets": self._get,
            b"gat": self._touch_many,
            b"gats": self._touch_many,
            b"mn": lambda request: Reply(b"MN"),
            b"version": self._version,
            b"stats": self._stats,
            b"flush_all": self._ask_all,
            b"verbosity": self._ask_all,
        })  # fmt: skip

    def use(self, pools: Mapping[bytes, Client]) -> None:
        """Has the next requests go to ``pools``."""
        self.pools = dict(pools)
        relays = {
            client: Relay(client, self._failed_to_read, told=True) for client in pools.values()
        }
        self._default = relays[pools[b""]]
        longest = sorted((prefix for prefix in pools if prefix), key=len, reverse=True)
        self._routes = [(prefix, relays[pools[prefix]]) for prefix in longest]
        self._relays = list(relays.values())

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

    def begun(self, count: int) -> None:
        """Has gets leave, at once if no other request came with one."""
        for relay in self._relays:
            relay.leave(at_once=count == 1)

    def failed(self, request: Request, error: Exception) -> Reply:
        """Returns what the client is told of ``error``.

        What a server refuses is passed on; that it cannot be reached, or
        not in time, is a miss to who reads, unless ``errors`` are wanted.
        """
        reads = request.verb in _MISSES
        if not isinstance(error, MemcacheError) or isinstance(error, InvalidRequest):
            return failure(error)
        if request.verb in (b"get", b"gets"):  # (counted where it happened)
            return failure(error)
        told = self._failed_to_read(error)
        if told is not None or not reads:
            return failure(error)
        miss = _MISSES[request.verb]
        if request.argument:  # (as with any miss: an opaque tells whose it is)
            flags = flags_of(request)
            return miss._replace(text=echoed(flags, request.keys[0], flags.has(b"b")))
        return miss

    def too_large(self, key: bytes, flags: int, length: int) -> bool:
        """Says whether a value of ``length`` bytes is more than the pool of ``key`` takes."""
        return length > self._relay_of(key).client._settings.max_value_size

    def _failed_to_read(self, error: MemcacheError) -> MemcacheError | None:
        self.failures[error.server or ""] += 1
        return error if self.errors or isinstance(error, ReplyError) else None

    # -- keys

    def _relay_of(self, key: bytes) -> Relay:
        for prefix, relay in self._routes:
            if key.startswith(prefix):
                return relay
        return self._default

    def _get(self, request: Request) -> Awaitable[Any]:
        verb, keys = request.verb, request.keys
        if not self._routes:
            return self._default.retrieve(verb, keys)
        parts: dict[Relay, list[bytes]] = {}
        for key in keys:
            parts.setdefault(self._relay_of(key), []).append(key)
        if len(parts) == 1:
            return next(iter(parts)).retrieve(verb, keys)
        # Each item in its place: several pools answer for one key at a time.
        return _joined([self._relay_of(key).retrieve(verb, (key,)) for key in keys])

    def _touch_many(self, request: Request) -> Awaitable[Any]:
        if len(request.keys) == 1:
            return self._pass_on(request)
        # Each key as a request of its own: together they leave in one write to each server.
        parts: dict[Relay, list[Request]] = {}
        for key in dict.fromkeys(request.keys):
            asked = _fitting(request._replace(keys=(key,)))
            parts.setdefault(self._relay_of(key), []).append(asked)
        for relay in parts:
            relay.flush()
        return self._gathered([relay.client.request_many(part) for relay, part in parts.items()])

    async def _gathered(self, parts: Iterable[Awaitable[list[Any]]]) -> Reply:
        found: dict[bytes, Item] = {}
        for replies in await asyncio.gather(*parts):
            for reply in replies:
                if isinstance(reply, Reply):
                    found.update(reply.items)
                elif (told := self._failed_to_read(reply)) is not None:
                    raise told
        return Reply(b"END", found)

    def _pass_on(self, request: Request) -> Awaitable[Any]:
        if not request.keys:
            raise InvalidRequest(f"{request.asked()} is not passed on")
        asked = _fitting(request)
        if asked.argument:
            asked = asked._replace(argument=_passed(asked))
        relay = self._relay_of(request.keys[0])
        relay.flush()  # (what was asked before leaves before)
        return relay.client.request(asked)

    # -- all servers

    def _everybody(self) -> list[Client]:
        return list(dict.fromkeys(self.pools.values()))

    def _ask_all(self, request: Request) -> Awaitable[Reply]:
        # Asked at once, and not when a coroutine has its turn: the order is the client's.
        return _all_of(self._asked_of_all(request._replace(noreply=False)))

    def _asked_of_all(self, request: Request) -> list[Awaitable[Any]]:
        for relay in self._relays:
            relay.flush()
        return [client._ask_all(request, as_it_is, {}) for client in self._everybody()]

    async def _version(self, request: Request) -> Reply:
        versions = (await self._default.client.version()).values()
        return Reply(b"VERSION", text=min(versions, key=_numbers).encode())

    def _stats(self, request: Request) -> Reply | Awaitable[Reply]:
        # What is judged is what goes on: not a "reset" that white space stands around.
        argument = request.argument.strip()
        words = argument.split(b" ")
        if words == [b"proxy"]:
            return Reply(b"END", stats={name: str(fact) for name, fact in self.told().items()})
        if words[0] in REFUSED_STATS and not self.allow_all:
            raise ClientError(f"stats {words[0].decode()} is not allowed here")
        if words[0] in _STATS_OF_ONE:
            raise ClientError(f"stats {words[0].decode()} is of one server: ask it")
        return _all_stats(self._asked_of_all(request._replace(argument=argument)))

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


async def _joined(parts: Iterable[Awaitable[bytes]]) -> bytes:
    replies = await asyncio.gather(*parts)
    return b"".join([*(reply[: -len(END)] for reply in replies), END])


async def _all_of(asked: Iterable[Awaitable[Any]]) -> Reply:
    for result in await asyncio.gather(*asked):
        for error in result.errors.values():
            raise error
    return _OK


async def _all_stats(asked: Iterable[Awaitable[Any]]) -> Reply:
    replies = [reply for result in await asyncio.gather(*asked) for reply in result.values()]
    return Reply(replies[0].status, stats=_added([reply.stats for reply in replies]))


def _passed(request: Request) -> bytes:
    """Returns the flags of a meta request that go on: not ``q``, the reply is owed to us.

    To memcached a flag is its letter, also with something behind it.
    """
    return b" ".join(word for word in request.argument.split(b" ") if word[:1] != b"q")


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
