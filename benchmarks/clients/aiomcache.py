"""aiomcache: asyncio streams, a pool of two connections, no timeouts of its own."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import aiomcache

from . import Adapter, host_and_port


class Client(Adapter):
    title = "aiomcache"
    distribution = "aiomcache"
    has_deadlines = False
    settings = "it has no timeouts; where a row needs one, asyncio.wait_for(call, T)"
    #: So many connections at most: its default of 2 costs up to a fifth at many callers.
    connections = 32
    best = "pool_size=32, one for one caller (2 by default, which are slower)"
    bytes_keys = True
    many_servers = False

    async def open_best(self, addresses: list[str], callers: int, size: int) -> None:
        several = min(callers, self.connections)
        self._client = aiomcache.Client(*host_and_port(addresses[0]), pool_size=several)
        self.fetch, self.store = self._client.get, self._client.set

    async def fetch_many(self, keys: list[bytes]) -> Any:
        return await self._client.multi_get(*keys)

    async def open_connections(self, address: str, count: int) -> Any:
        """Opens ``count`` connections that stay idle; returns what holds them."""
        client = aiomcache.Client(*host_and_port(address), pool_size=count)
        await client.get(b"any")
        return client

    def values(self, found: Any, keys: list[Any]) -> list[bytes]:
        return [value for value in found if value is not None]

    async def open(self, address: str, timeout: float, **how: Any) -> None:
        self._client = aiomcache.Client(*host_and_port(address))

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
