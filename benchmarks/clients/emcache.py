"""emcache: asyncio, a pool of up to two connections, a parser in Cython."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import emcache

from . import Adapter


class Client(Adapter):
    title = "emcache"
    distribution = "emcache"
    takes_flags = True
    settings = "timeout=T, connection_timeout=T"

    async def open(self, address: str, timeout: float, **how: Any) -> None:
        host, _, port = address.rpartition(":")
        self._client = await emcache.create_client(
            [emcache.MemcachedHostAddress(host, int(port))],
            timeout=timeout,
            connection_timeout=timeout,
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
