"""What an application is told of its servers and connections: down, up again; open, closed.

Knows whom to call, and how a call is made that disturbs nobody: on a later
tick, in an empty context, under no boundary. It must not know who decides
that a server is dead, nor how.
"""

import asyncio
from collections.abc import Callable, Iterable
from contextvars import Context
from functools import partial
from typing import Any

from . import boundaries
from .arguments import check_callable
from .errors import ClientClosed, MemcacheError
from .observer import Observers, kind_of

OnUp = Callable[[str], Any]
OnDown = Callable[[str, MemcacheError], Any]


class Events:
    """The two callables of a client, and its observers; each may be None.

    ``on_server_down(name, reason)`` and ``on_server_up(name)`` are plain or
    coroutine functions. What they raise is logged, once.
    """

    def __init__(
        self,
        on_server_up: OnUp | None = None,
        on_server_down: OnDown | None = None,
        observers: Observers | None = None,
    ) -> None:
        check_callable("on_server_up", on_server_up)
        check_callable("on_server_down", on_server_down)
        self._on_up = on_server_up
        self._on_down = on_server_down
        #: Who is told of calls too.
        self.observers = observers

    def up(self, loop: asyncio.AbstractEventLoop, server: str) -> None:
        """Has it told that ``server`` answers again."""
        if self._on_up is not None:
            _tell_later(loop, self._on_up, server)
        self._tell(loop, "server_up", server)

    def down(self, loop: asyncio.AbstractEventLoop, server: str, reason: MemcacheError) -> None:
        """Has it told that ``server`` is taken for dead."""
        if self._on_down is not None:
            _tell_later(loop, partial(self._on_down, server), reason.twin())
        self._tell(loop, "server_down", server, reason)

    def opened(self, loop: asyncio.AbstractEventLoop, server: str) -> None:
        """Has observers told that a connection is open."""
        self._tell(loop, "connection_opened", server)

    def ended(
        self,
        loop: asyncio.AbstractEventLoop,
        server: str,
        error: MemcacheError,
        opened: bool,
        last: bool,
    ) -> None:
        """Has observers told that a connection is closed, or could not be ``opened``.

        ``last`` says that its client is closed: one that was not open then has not failed.
        """
        if opened:
            spare = isinstance(error, ClientClosed) and not last
            reason = "not_needed" if spare else kind_of(error)
            self._tell(loop, "connection_closed", server, reason, error)
        elif not last:
            self._tell(loop, "connection_failed", server, kind_of(error), error)

    def abandoned(self, connections: Iterable[tuple[str, int]], *, forked: bool) -> None:
        """Tells observers at once of what was on a loop that is not there any more.

        ``connections`` are servers, and how many were open to each. Calls
        that were under way have ended; in a child of fork they go on, in
        the parent.
        """
        if self.observers is None:
            return
        if forked:
            self.observers.forget()
        else:
            self.observers.lost()
        for server, count in connections:
            for _ in range(count):
                gone = ClientClosed("the loop of the connection was closed", server=server)
                self.observers.tell("connection_closed", server, "lost", gone)

    def _tell(
        self, loop: asyncio.AbstractEventLoop, method: str, server: str, *arguments: Any
    ) -> None:
        """Has observers told, each error as a twin of its own."""
        if self.observers is not None:
            twins = [one.twin() if isinstance(one, MemcacheError) else one for one in arguments]
            loop.call_soon(self.observers.tell, method, server, *twins, context=Context())


def _tell_later(
    loop: asyncio.AbstractEventLoop, callback: Callable[[Any], Any], argument: Any
) -> None:
    loop.call_soon(boundaries.run, callback, argument, Context(), None, context=Context())
