"""An old cluster whose items come over to a new one as they are asked for.

Knows what of each command goes to which of the two, in which order, and that
the old one may fail without anybody's notice. It must not know who waits for
an outcome, nor how a value is read.
"""

import time
from collections.abc import Callable, Collection, Generator, Iterable, Sequence
from typing import Any, NamedTuple, TypeAlias

from .arguments import MAX_KEY_LENGTH, wire_exptime
from .chain import Ask, Chain, Outcome, Steps
from .cluster import Cluster
from .commands import chunks
from .errors import ClientClosed, ClientError, InvalidRequest, MemcacheError
from .meta import flags_of, read_returned
from .pool import Pool
from .protocol import Item, Reply, Request
from .text import VERBS, is_meta

#: What is brought over stays for so long, in seconds, if nobody can tell and nothing is set.
DEFAULT_EXPTIME = 600

_Part: TypeAlias = Generator[Sequence[Ask], Sequence[Outcome], Any]


class Side(NamedTuple):
    """One of the two clusters: its keys have ``prefix``, its servers ``length`` seconds."""

    cluster: Cluster
    prefix: bytes
    length: float


class Migration:
    """The way of a client's commands while its items are still with an old cluster.

    ``found`` items were missing on the new cluster and there on the old
    one, ``copied`` of them are on the new one now, and ``failed``
    requests to the old one failed, which was a miss each.

    A write of a key has the old item deleted before the new one is
    written, so that it never comes back; later calls for the key wait for
    it. What only reads leaves the old item where it is, for others.
    """

    def __init__(self, new: Side, old: Side, exptime: Any) -> None:
        self.found = self.copied = self.failed = 0
        self._new = new
        self._old = old
        if old.cluster.closed:
            raise InvalidRequest("migrate_from is a client that is closed")
        self._exptime = DEFAULT_EXPTIME if exptime is None else exptime
        if wire_exptime(self._exptime, time.time, "migrate_exptime") < 0:
            raise InvalidRequest("migrate_exptime is negative: nothing that comes over would stay")
        self._loop: object = None
        self._chains: set[Chain] = set()
        #: The last chain that writes a key.
        self._writers: dict[bytes, Chain] = {}
        #: Keys on their way to the new cluster because they were read, each with the mark of
        #: the get that brings it. A write ends that.
        self._copies: dict[bytes, object] = {}
        #: False once a server of the old cluster did not know how to tell an item's exptime.
        self._tells = True

    def ready(self) -> "Migration | None":
        """Has both clusters on the running loop, and returns itself.

        None if the new one is closed: then nothing is asked of the old one either.
        """
        self._old.cluster.ready()
        loop = self._new.cluster.ready()
        if loop is not self._loop:  # (what a closed loop had under way went with it)
            self._loop = loop
            for kept in (self._chains, self._writers, self._copies):
                kept.clear()
        return None if self._new.cluster.closed else self

    def check(self, request: Request) -> None:
        """Raises `.InvalidRequest` for what cannot be brought over.

        The old cluster is asked by commands that it is sure to know, and
        these have no binary keys.
        """
        if is_meta(request) and b"b" in flags_of(request.argument):
            raise InvalidRequest("binary keys cannot be used together with migrate_from")

    def chain(
        self, pool: Pool, request: Request, waiter: Any, outcome: Callable[[Reply], Any]
    ) -> Chain:
        """Returns the call of ``request``, to be begun; ``pool`` is its pool on the new side."""
        steps, writes = self._steps(pool, request)
        return self._enter(waiter, steps, outcome, request, writes)

    def _enter(
        self, waiter: Any, steps: Steps, outcome: Any, request: Request, writes: bool
    ) -> Chain:
        loop, register = self._new.cluster.loop, self._new.cluster.deadlines
        assert loop is not None and register is not None
        told, keys = request.asked(), request.keys
        chain = Chain(waiter, steps, outcome, told, loop, register, self._new.length, self._left)
        self._chains.add(chain)
        ahead = {self._writers[key] for key in keys if key in self._writers}
        chain.ahead = len(ahead)
        for one in ahead:
            one.followers.append(chain)
        if writes:
            chain.keys = keys
            for key in keys:
                self._writers[key] = chain
                self._copies.pop(key, None)
        return chain

    def _left(self, chain: Chain) -> None:
        """A chain has ended: those behind it go on, once nothing is ahead of it either."""
        self._chains.discard(chain)
        ended = [chain]  # (thousands may stand in a row)
        while ended:
            chain = ended.pop()
            if chain.ahead:
                continue
            for key in chain.keys:
                if self._writers.get(key) is chain:
                    del self._writers[key]
            followers, chain.followers = chain.followers, []
            for one in followers:
                one.ahead -= 1
                if one.over:
                    ended.append(one)
                else:
                    one.start()

    def close(self) -> None:
        """Ends what is under way with `.ClientClosed`."""
        for chain in list(self._chains):
            chain.fail(ClientClosed(f"{chain.asked}: the client was closed"))

    # -- what is asked, command by command

    def _steps(self, pool: Pool, request: Request) -> tuple[Steps, bool]:
        verb = request.verb
        if verb == b"get":
            return self._get(pool, request), False
        special = {
            b"set": self._set,
            b"delete": self._delete,
            b"flush_all": self._flush_all,
            b"gets": self._gets,
        }
        if verb in special:
            return special[verb](pool, request), True
        if is_meta(request):
            return self._meta(pool, request)
        if VERBS[verb].writes:
            return self._change(pool, request), True
        return self._plain(pool, request), False

    def _plain(self, pool: Pool, request: Request) -> Steps:
        """Asks the new cluster alone."""
        (reply,) = yield [Ask(pool, request, self._new.length)]
        if isinstance(reply, MemcacheError):
            raise reply
        return reply

    def _get(self, pool: Pool, request: Request) -> Steps:
        reply = yield from self._plain(pool, request)
        missed = [key for key in request.keys if key not in reply.items]
        mark, mine = object(), [key for key in missed if key not in self._copies]
        self._copies.update(dict.fromkeys(mine, mark))
        found: dict[bytes, Item] = {}
        try:
            found = yield from self._fetch(missed)
        finally:
            for key in mine:
                if key not in found and self._copies.get(key) is mark:
                    del self._copies[key]
        copied = {key: found[key] for key in mine if key in found}
        if copied:
            self._begin_copy(pool, copied, mark)
        return reply._replace(items={**reply.items, **found})

    def _gets(self, pool: Pool, request: Request) -> Steps:
        """Only the new cluster can give a cas unique for the new cluster."""
        reply = yield from self._plain(pool, request)
        missed = tuple(key for key in request.keys if key not in reply.items)
        if missed and (yield from self._move(pool, missed)):
            more = yield from self._plain(pool, request._replace(keys=missed))
            return reply._replace(items={**reply.items, **more.items})
        return reply

    def _set(self, pool: Pool, request: Request) -> Steps:
        yield from self._ask_old(b"delete", request.keys)
        return (yield from self._plain(pool, request))

    def _delete(self, pool: Pool, request: Request) -> Steps:
        was_there = yield from self._ask_old(b"delete", request.keys)
        reply = yield from self._plain(pool, request)
        deleted = Reply(b"DELETED")
        if was_there != [deleted] or reply.status not in (b"NOT_FOUND", b"NF"):
            return reply
        return Reply(b"HD", text=reply.text) if reply.status == b"NF" else deleted

    def _meta(self, pool: Pool, request: Request) -> tuple[Steps, bool]:
        """As the classic command that does the same."""
        verb, flags = request.verb, flags_of(request.argument)
        if verb == b"mg" and b"N" not in flags:
            return self._meta_get(pool, request), True
        if verb == b"ms" and b"C" not in flags and flags.get(b"M", b"S") == b"S":
            return self._set(pool, request), True
        if verb == b"md" and not flags.keys() & {b"C", b"I"}:
            return self._delete(pool, request), True
        if verb in (b"me", b"mn"):
            return self._plain(pool, request), False
        return self._change(pool, request), True

    def _meta_get(self, pool: Pool, request: Request) -> Steps:
        reply = yield from self._plain(pool, request)
        if reply.status == b"EN" and (yield from self._move(pool, request.keys)):
            reply = yield from self._plain(pool, request)
        return reply

    def _change(self, pool: Pool, request: Request) -> Steps:
        """What changes an item, or depends on it, has it brought over before."""
        yield from self._move(pool, request.keys)
        return (yield from self._plain(pool, request))

    def _flush_all(self, pool: Pool, request: Request) -> Steps:
        self._copies.clear()
        asks = [Ask(one, request, self._old.length, True) for one in self._old.cluster.pools]
        self._count_failures((yield asks))
        return (yield from self._plain(pool, request))

    # -- the old cluster, whose failures are misses

    def _old_key(self, key: bytes) -> bytes | None:
        if self._new.prefix != self._old.prefix:
            key = self._old.prefix + key.removeprefix(self._new.prefix)
        return key if len(key) <= MAX_KEY_LENGTH else None

    def _ask_old(self, verb: bytes, keys: Iterable[bytes]) -> _Part:
        """Asks for each of ``keys``, of the new side, alone; returns what that came to."""
        replies = yield [
            Ask(self._old.cluster.pool_for(key), _of(verb, key), self._old.length, True)
            for key in map(self._old_key, keys)
            if key is not None
        ]
        self._count_failures(replies)
        return list(replies)

    def _count_failures(self, replies: Iterable[Outcome]) -> None:
        self.failed += sum(isinstance(reply, MemcacheError) for reply in replies)

    def _fetch(self, keys: Iterable[bytes]) -> Generator[Any, Any, dict[bytes, Item]]:
        """Returns the items of the old cluster, under their keys on the new side."""
        asked: dict[Pool, dict[bytes, bytes]] = {}
        for key in keys:
            old_key = self._old_key(key)
            if old_key is not None:
                asked.setdefault(self._old.cluster.pool_for(old_key), {})[old_key] = key
        parts = [(pool, wires, some) for pool, wires in asked.items() for some in chunks(wires)]
        replies = yield [
            Ask(pool, Request(b"get", some), self._old.length, True) for pool, _, some in parts
        ]
        self._count_failures(replies)
        found = {
            wires[old_key]: item
            for (_, wires, _), reply in zip(parts, replies)
            if isinstance(reply, Reply)
            for old_key, item in reply.items.items()
        }
        self.found += len(found)
        return found

    def _times(self, keys: Collection[bytes]) -> Generator[Any, Any, dict[bytes, int]]:
        """Returns the exptime of each item that is still on the old cluster, as it is sent."""
        if not self._tells:
            return dict.fromkeys(keys, self._default())
        replies = yield from self._ask_old(b"mg", keys)
        times = {}
        for key, reply in zip(keys, replies):
            if isinstance(reply, ClientError):
                self._tells = False
                times[key] = self._default()
            elif isinstance(reply, Reply) and reply.status == b"HD":
                returned = read_returned(reply.text)
                left = int(returned[b"t"])
                if left and b"Z" not in returned:  # (a stub, or what is fetched anew, stays)
                    times[key] = 0 if left < 0 else wire_exptime(left, time.time)
        return times

    def _default(self) -> int:
        return wire_exptime(self._exptime, time.time)

    # -- bringing items over

    def _add(
        self, pool: Pool, items: dict[bytes, Item], times: dict[bytes, int]
    ) -> Generator[Any, Any, list[bytes]]:
        """Adds what has an exptime: what was written meanwhile stays. Returns the keys stored."""
        keys = [key for key in items if key in times]
        replies = yield [
            Ask(
                pool,
                Request(b"add", (key,), items[key].value, items[key].flags, times[key]),
                self._new.length,
            )
            for key in keys
        ]
        stored = [key for key, reply in zip(keys, replies) if reply == Reply(b"STORED")]
        self.copied += len(stored)
        return stored

    def _move(self, pool: Pool, keys: Iterable[bytes]) -> Generator[Any, Any, bool]:
        """Moves items to the new cluster; returns True if any was there to be moved.

        What a copy had brought over before leaves the old one too: it is to be changed, and
        would come back as it was when the new item has gone.
        """
        found = yield from self._fetch(keys)
        if not found:
            return False
        times = yield from self._times(found)
        stored = yield from self._add(pool, found, times)
        keys = [key for key in times if key in stored or not self._is_one_place(pool, key)]
        left = yield from self._ask_old(b"delete", keys)
        missed = [key for key, reply in zip(keys, left) if reply == Reply(b"NOT_FOUND")]
        yield from self._take_back(pool, {key: found[key] for key in missed if key in stored})
        return True

    def _is_one_place(self, pool: Pool, key: bytes) -> bool:
        """True if ``key`` is the same item in both clusters: its old one is the new one."""
        return self._old_key(key) == key and self._old.cluster.pool_for(key).name == pool.name

    def _begin_copy(self, pool: Pool, items: dict[bytes, Item], mark: object) -> None:
        loop = self._new.cluster.loop
        assert loop is not None
        steps = self._copy(pool, items, mark)
        self._enter(loop.create_future(), steps, bool, Request(b"add"), False).start()

    def _copy(self, pool: Pool, items: dict[bytes, Item], mark: object) -> Steps:
        def current(keys: Iterable[bytes]) -> dict[bytes, Item]:
            return {key: items[key] for key in keys if self._copies.get(key) is mark}

        try:
            times = yield from self._times(items)
            stored = yield from self._add(pool, current(items), times)
            gone = yield from self._gone(stored)
            yield from self._take_back(pool, current(gone))
        finally:
            for key in current(items):
                del self._copies[key]
        return Reply(b"")

    def _gone(self, keys: Sequence[bytes]) -> Generator[Any, Any, list[bytes]]:
        """Returns the keys that are not on the old cluster any more, as far as it tells."""
        replies = yield from self._ask_old(b"mg" if self._tells else b"get", keys)
        misses = (Reply(b"EN"), Reply(b"END"))
        return [key for key, reply in zip(keys, replies) if reply in misses]

    def _take_back(self, pool: Pool, items: dict[bytes, Item]) -> _Part:
        """Expires copies of items that somebody deleted on the old cluster meanwhile.

        He may have deleted on the new one before the copy came. What is
        another item by now stays.
        """
        for key, item in items.items():
            (reply,) = yield [Ask(pool, Request(b"gets", (key,)), self._new.length)]
            now = reply.items.get(key) if isinstance(reply, Reply) else None
            if now is not None and now[:2] == item[:2]:
                unique = now.cas_unique or 0
                expired = Request(b"cas", (key,), item.value, item.flags, -1, unique)
                yield [Ask(pool, expired, self._new.length)]

    def __repr__(self) -> str:
        return f"<Migration found={self.found} copied={self.copied} failed={self.failed}>"


def _of(verb: bytes, key: bytes) -> Request:
    """Returns the request for one key; a ``mg`` asks how long the item is still kept."""
    return Request(verb, (key,), argument=b"t" if verb == b"mg" else b"")
