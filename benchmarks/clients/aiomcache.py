"""aiomcache: asyncio streams, a pool of two connections, no timeouts of its own."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import aiomcache

from . import Adapter


class Client(Adapter):
    title = "aiomcache"
    distribution = "aiomcache"
    has_deadlines = False
    settings = "it has no timeouts; where a row needs one, asyncio.wait_for(call, T)"

    async def open(self, address: str, timeout: float, **how: Any) -> None:
        host, _, port = address.rpartition(":")
        self._client = aiomcache.Client(host, int(port))

    async def get(self, key: str) -> bytes | None:
        return await self._client.get(key.encode())

    async def set(self, key: str, value: bytes, exptime: int = 0, **how: Any) -> Any:
        return await self._client.set(key.encode(), value, exptime)

    async def get_multi(self, keys: Iterable[str]) -> dict[str, bytes]:
        asked = list(keys)
        found = await self._client.multi_get(*[key.encode() for key in asked])
        return {key: value for key, value in zip(asked, found) if value is not None}

    async def close(self) -> None:
        await self._client.close()
