"""memcachio: asyncio, pipelines on a pool of up to two connections."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import memcachio

from . import PATIENCE, Adapter, host_and_port


class Client(Adapter):
    title = "memcachio"
    distribution = "memcachio"
    takes_flags = True
    settings = "read_timeout=T, connect_timeout=T, blocking_timeout=T"
    #: So many connections at most.
    connections = 2
    best = "max_connections=2, as by default; blocking_timeout=30; one connection for one caller"
    bytes_keys = True

    async def open_best(self, addresses: list[str], callers: int, size: int) -> None:
        several = min(callers, self.connections)
        places = [host_and_port(address) for address in addresses]
        self._client: Any = memcachio.Client(
            places[0] if len(places) == 1 else places,
            max_connections=several,
            blocking_timeout=PATIENCE,
        )
        self.store = self._client.set

    async def fetch(self, key: bytes) -> bytes | None:
        item = (await self._client.get(key)).get(key)
        return None if item is None else item.value

    async def fetch_many(self, keys: list[bytes]) -> Any:
        return await self._client.get(*keys)

    def values(self, found: Any, keys: list[Any]) -> list[bytes]:
        return [found[key].value for key in keys if key in found]

    async def open(self, address: str, timeout: float, **how: Any) -> None:
        self._client = memcachio.Client(
            host_and_port(address),
            read_timeout=timeout,
            connect_timeout=timeout,
            blocking_timeout=timeout,
        )

    async def get(self, key: str) -> bytes | None:
        item = (await self._client.get(key)).get(key.encode())
        return None if item is None else item.value

    async def set(self, key: str, value: bytes, exptime: int = 0, **how: Any) -> Any:
        return await self._client.set(key, value, expiry=exptime, **how)

    async def get_multi(self, keys: Iterable[str]) -> dict[str, bytes]:
        items = await self._client.get(*keys)
        return {key.decode(): item.value for key, item in items.items()}

    async def close(self) -> None:
        self._client.connection_pool.close()
