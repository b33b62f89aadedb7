"""What is done for the connections of a client while nobody calls.

Knows how long a connection was not used, and where its server's name leads
now. It decides which connections go; they close by themselves when nothing
is under way on them. It must not know a call.
"""

import asyncio
import weakref
from collections.abc import Callable, Sequence
from contextvars import Context
from functools import partial
from typing import Any

from tornado.ioloop import IOLoop

from .choice import longest_unused
from .connector import Transport, known_addresses
from .deadlines import clock, detached
from .pool import Pool
from .settings import Settings
from .timers import JITTER, NamedTimer


class Upkeep:
    """The idle timers of one client, on one loop.

    ``idle_timeout`` closes connections that were not used for so long,
    down to ``min_connections``. ``resolve_interval`` looks the names of
    servers up, and lets go of connections to addresses that a name does
    not lead to any more. Each is one timer, set while there is a
    connection for it to look after.
    """

    def __init__(self, settings: Settings, io_loop: IOLoop, transport: Transport) -> None:
        self.pools: Sequence[Pool] = ()
        self._settings = settings
        self._transport = transport
        self._look_ups: dict[str, asyncio.Future[Any]] = {}
        self._idle = NamedTimer("idle_timeout", io_loop, self.shrink)
        self._resolve = NamedTimer("resolve_interval", io_loop, self.look_up)

    @property
    def timers(self) -> list[NamedTimer]:
        """The timers that are wanted, set or not."""
        wanted = (
            (self._idle, self._settings.idle_timeout),
            (self._resolve, self._settings.resolve_interval),
        )
        return [timer for timer, length in wanted if length is not None]

    def notice(self) -> Callable[[], None] | None:
        """Returns what a pool calls when a connection has opened; None if nobody need know.

        It holds this object weakly: an open connection must not keep a client alive.
        """
        if not self.timers:
            return None
        reference = weakref.ref(self)

        def opened() -> None:
            upkeep = reference()
            if upkeep is not None:
                upkeep.begin()

        return opened

    def begin(self) -> None:
        """Sets the timers that have something to look after."""
        if self._settings.idle_timeout is not None and not self._idle.armed:
            self.shrink()
        length = self._settings.resolve_interval
        if length is not None and any(map(_is_named_and_open, self.pools)):
            self._resolve.start(length, jitter=JITTER)

    def close(self) -> None:
        """Removes the timers, and gives up what is being looked up."""
        self._idle.stop()
        self._resolve.stop()
        self._give_up()

    def _give_up(self) -> None:
        look_ups, self._look_ups = self._look_ups, {}
        for future in look_ups.values():
            future.cancel()

    # -- connections that are not used

    def shrink(self) -> None:
        """Closes connections that were not used for ``idle_timeout``."""
        length = self._settings.idle_timeout
        assert length is not None
        now, keep, moments = clock(), self._settings.min_connections, []
        for pool in self.pools:
            for connection, used_at in longest_unused(pool.connections, keep, now):
                if used_at + length <= now:
                    connection.retire()
                else:
                    moments.append(used_at)
        if moments:
            self._idle.start(min(moments) + length - now)

    # -- servers that moved

    def look_up(self) -> None:
        """Begins to look up the name of each server that has an open connection."""
        self._give_up()  # (one that has not ended by now may never end)
        for pool in self.pools:
            if _is_named_and_open(pool) and pool.name not in self._look_ups:
                try:
                    future = detached(self._transport.look_up, pool.server)
                except Exception:  # (a resolver is a user's code; to fail changes nothing)
                    continue
                self._look_ups[pool.name] = future
                future.add_done_callback(partial(self._looked_up, pool), context=Context())
        self.begin()

    def _looked_up(self, pool: Pool, future: "asyncio.Future[Any]") -> None:
        if self._look_ups.get(pool.name) is future:
            del self._look_ups[pool.name]
        if future.cancelled() or future.exception() is not None:
            return  # (nothing is known: the connections stay)
        try:
            there = {tuple(address[:2]) for _, address in future.result()}
        except (TypeError, ValueError, LookupError):
            return
        if there:
            moved = [one for one in pool.connections if one.peer and one.peer[:2] not in there]
            for connection in moved:
                connection.leaving = True
                connection.retire()
            if moved:
                pool.reconsider()


def _is_named_and_open(pool: Pool) -> bool:
    if known_addresses(pool.server) is not None:
        return False
    return any(connection.open for connection in pool.connections)
