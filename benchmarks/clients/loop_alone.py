"""A floor: the event loop alone. Each get awaits a Future that ``call_soon`` resolves.

No server is asked. What any awaitable client costs at least.
"""

from __future__ import annotations

import asyncio
from typing import Any

from . import Adapter


class Client(Adapter):
    title = "the loop alone"
    best = "no server is asked"
    kinds = frozenset({"gets", "mix", "burst"})

    async def open_best(self, addresses: list[str], callers: int, size: int) -> None:
        self._loop = asyncio.get_running_loop()
        self._items: dict[str, bytes] = {}

    def fetch(self, key: str) -> Any:
        future = self._loop.create_future()
        self._loop.call_soon(future.set_result, self._items.get(key))
        return future

    def store(self, key: str, value: bytes) -> Any:
        self._items[key] = value
        future = self._loop.create_future()
        self._loop.call_soon(future.set_result, True)
        return future

    async def close(self) -> None:
        self._items.clear()
