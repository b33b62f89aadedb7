"""The cas ids that the python-memcached face keeps between `gets` and `cas`.

Knows keys, ids and whose task this is. It must not know a command.
"""

import asyncio
import weakref
from contextvars import ContextVar
from typing import Any

from .outcomes import CasUnique

#: The task, and what it and its callbacks fetched from each client.
_held: ContextVar[Any] = ContextVar("held", default=None)


def _no_task() -> None:
    return None


def _current_task() -> "asyncio.Task[Any] | None":
    try:
        return asyncio.current_task()
    except RuntimeError:  # no loop runs: the call itself will say so
        return None


class CasIds(dict[bytes, CasUnique]):
    """The last cas id of each key; each task is given what it fetched itself.

    Two handlers that fetch the same key must not take each other's id:
    the later fetch would let the earlier handler overwrite what it never saw.
    """

    __hash__ = object.__hash__  # type: ignore[assignment]
    __eq__ = object.__eq__

    def here(self) -> dict[bytes, CasUnique]:
        """Returns where this task's fetches are kept, to be asked for when one begins."""
        held, task = _held.get(), _current_task()
        if held is None or (task is not None and held[0]() is not task):
            owner = weakref.ref(task) if task is not None else _no_task
            held = (owner, weakref.WeakKeyDictionary())
            _held.set(held)
        mine: dict[bytes, CasUnique] = held[1].setdefault(self, {})
        return mine

    def fetched(self, key: bytes) -> CasUnique | None:
        """Returns the id that this task fetched, else the last that anybody did."""
        held = _held.get()
        mine = held[1].get(self, {}) if held is not None else {}
        return mine.get(key, self.get(key))
