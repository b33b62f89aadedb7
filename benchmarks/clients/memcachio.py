"""memcachio: asyncio, pipelines on a pool of up to two connections."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import memcachio

from . import Adapter


class Client(Adapter):
    title = "memcachio"
    distribution = "memcachio"
    takes_flags = True
    settings = "read_timeout=T, connect_timeout=T, blocking_timeout=T"

    async def open(self, address: str, timeout: float, **how: Any) -> None:
        host, _, port = address.rpartition(":")
        self._client: Any = memcachio.Client(
            (host, int(port)),
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
