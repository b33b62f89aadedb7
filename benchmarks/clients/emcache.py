"""emcache: asyncio, a pool of two connections by default, a parser in Cython."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import emcache

from . import PATIENCE, Adapter, host_and_port


class Client(Adapter):
    title = "emcache"
    distribution = "emcache"
    takes_flags = True
    settings = "timeout=T, connection_timeout=T"
    #: Whether gets of one tick are gathered.
    autobatching = False
    #: So many connections at most: its default of 2 costs up to a third at many callers.
    connections = 32
    best = (
        "max_connections=min_connections=32, one for one caller (2 by default, which are slower), "
        "timeout=30: with its own of 1 s callers starve at 256 callers and more"
    )
    bytes_keys = True
    items = True
    stored = None  # (what is not stored raises)

    async def open_best(self, addresses: list[str], callers: int, size: int) -> None:
        several = min(callers, self.connections)
        self._client = await emcache.create_client(
            [emcache.MemcachedHostAddress(*host_and_port(address)) for address in addresses],
            timeout=PATIENCE,
            max_connections=several,
            min_connections=several,
            autobatching=self.autobatching,
        )
        self.fetch, self.store = self._client.get, self._client.set
        self.fetch_many = self._client.get_many

    async def open_connections(self, address: str, count: int) -> Any:
        """Opens ``count`` connections that stay idle; returns what holds them."""
        server = emcache.MemcachedHostAddress(*host_and_port(address))
        return await emcache.create_client([server], max_connections=count, min_connections=count)

    def values(self, found: Any, keys: list[Any]) -> list[bytes]:
        return [found[key].value for key in keys if key in found]

    async def open(self, address: str, timeout: float, **how: Any) -> None:
        self._client = await emcache.create_client(
            [emcache.MemcachedHostAddress(*host_and_port(address))],
            timeout=timeout,
            connection_timeout=timeout,
            autobatching=self.autobatching,
        )

    async def get(self, key: str) -> bytes | None:
        item = await self._client.get(key.encode())
        return None if item is None else item.value

    async def set(self, key: str, value: bytes, exptime: int = 0, **how: Any) -> Any:
        await self._client.set(key.encode(), value, exptime=exptime, **how)
        return True

    async def get_multi(self, keys: Iterable[str]) -> dict[str, bytes]:
        items = await self._client.get_many([key.encode() for key in keys])
        return {key.decode(): item.value for key, item in items.items()}

    async def close(self) -> None:
        await self._client.close()
