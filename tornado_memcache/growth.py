"""How many connections a pool has: when it opens one more, and those that are kept warm.

Knows how many there are, how many are wanted, and the pause after a refusal.
It must not know calls, nor which connection takes one.
"""

import asyncio
from collections.abc import Callable, Sequence

from . import deadlines
from .choice import takes_calls
from .connection import Connection
from .health import FIRST_PAUSE
from .settings import Settings


class Growth:
    """What has the connections of one pool opened.

    ``connections`` is the pool's own list; ``begin()`` puts one more in it,
    that is being opened. One is opened at a time.
    """

    def __init__(
        self,
        settings: Settings,
        loop: asyncio.AbstractEventLoop,
        connections: Sequence[Connection],
        begin: Callable[[], Connection],
    ) -> None:
        #: True once nothing is to be opened any more.
        self.closed = False
        #: True between `disconnect` and the next connection: nothing is kept warm.
        self.asleep = False
        #: True while fewer than ``min_connections`` are open: looked at with each reply.
        self.cold = False
        self._settings = settings
        self._loop = loop
        self._connections = connections
        self._begin = begin
        self._paused_until = 0.0
        #: The one that is being opened for nobody: that it fails decides nothing.
        self._warming: Connection | None = None
        #: Of those who wait until all are warm.
        self._warmed: list[asyncio.Future[None]] = []

    def may_grow(self) -> bool:
        """True if one more may be opened.

        The pause after a refusal is for a server that has others of ours to live with.
        """
        if self.closed or len(self._connections) >= self._settings.max_connections:
            return False
        return not any(map(takes_calls, self._connections)) or not self._paused()

    def _paused(self) -> bool:
        return deadlines.clock() < self._paused_until

    def pause(self) -> None:
        """Notes that the server took no more."""
        self._paused_until = deadlines.clock() + FIRST_PAUSE

    def grow(self) -> Connection | None:
        """Opens one connection, unless one is being opened; returns it."""
        if self.may_grow() and not any(one.connecting for one in self._connections):
            return self._begin()
        return None

    def may_let_go(self) -> bool:
        """True if one that is being opened is not wanted when nobody waits for it."""
        return not self._warmed and len(self._connections) > self._settings.min_connections

    # -- keeping warm

    def keep_warm(self, wanted: bool, awaited: bool, least: int = 0) -> None:
        """Opens what is missing of ``min_connections`` or ``least``, one after the other.

        One that is being opened may be refused, and is then to be opened
        again. Nothing is opened if it is not ``wanted``; with ``awaited``
        calls wait for it too.
        """
        self.cold = sum(one.open for one in self._connections) < self._settings.min_connections
        few = self.cold or len(self._connections) < least
        if few and wanted and not (self.asleep or self._paused()):
            opening = self.grow()
            if opening is not None and not awaited:
                self._warming = opening
        while self._warmed and not any(one.connecting for one in self._connections):
            self._warmed.pop().set_result(None)

    def warmed(self) -> "asyncio.Future[None]":
        """Returns the future of the moment in which all are open, or one has failed."""
        self.asleep, future = False, self._loop.create_future()
        self._warmed.append(future)
        return future

    def opened(self) -> None:
        """Notes that one has opened."""
        self._warming, self.asleep = None, False

    def was_for_nobody(self, lost: Connection) -> bool:
        """True if ``lost`` was being opened to be kept warm alone: then there is a pause."""
        if lost is not self._warming:
            return False
        self._warming = None
        self.pause()
        return True
