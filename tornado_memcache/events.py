"""What an application is told of its servers: down, and up again.

Knows whom to call, and how a call is made that disturbs nobody: on a later
tick, in an empty context, under no boundary. It must not know who decides
that a server is dead, nor how.
"""

import asyncio
from collections.abc import Callable
from contextvars import Context
from functools import partial
from typing import Any

from . import boundaries
from .arguments import check_callable
from .errors import MemcacheError

OnUp = Callable[[str], Any]
OnDown = Callable[[str, MemcacheError], Any]


class Events:
    """The two callables of a client, each of which may be None.

    ``on_server_down(name, reason)`` and ``on_server_up(name)`` are plain or
    coroutine functions. What they raise is logged, once.
    """

    def __init__(
        self, on_server_up: OnUp | None = None, on_server_down: OnDown | None = None
    ) -> None:
        check_callable("on_server_up", on_server_up)
        check_callable("on_server_down", on_server_down)
        self._on_up = on_server_up
        self._on_down = on_server_down

    def up(self, loop: asyncio.AbstractEventLoop, server: str) -> None:
        """Has it told that ``server`` answers again."""
        if self._on_up is not None:
            _tell_later(loop, self._on_up, server)

    def down(self, loop: asyncio.AbstractEventLoop, server: str, reason: MemcacheError) -> None:
        """Has it told that ``server`` is taken for dead."""
        if self._on_down is not None:
            _tell_later(loop, partial(self._on_down, server), reason.twin())


def _tell_later(
    loop: asyncio.AbstractEventLoop, callback: Callable[[Any], Any], argument: Any
) -> None:
    loop.call_soon(boundaries.run, callback, argument, Context(), None, context=Context())
