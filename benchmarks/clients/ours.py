"""This client. With ``unchecked`` it is the drop-in for python-memcached that has such a switch."""

from __future__ import annotations

from collections.abc import Awaitable, Iterable
from typing import Any

import tornado_memcache
from tornado_memcache import memcache

from . import Adapter


class Client(Adapter):
    title = "this client"
    distribution = "tornado_memcache"
    can_be_unchecked = True
    decompresses = True
    settings = "request_timeout=T, connect_timeout=T"
    best = "as it is by default; max_value_size for values over 1 MB"

    async def open_best(self, addresses: list[str], callers: int, size: int) -> None:
        large = {"max_value_size": 2 * size} if size > 1_000_000 else {}
        self._client = tornado_memcache.Client(addresses, **large)
        self.fetch, self.store = self._client.get, self._client.set
        self.fetch_many = self._client.get_multi

    async def open_connections(self, address: str, count: int) -> Any:
        """Opens ``count`` connections that stay idle; returns what holds them."""
        client = tornado_memcache.Client([address], min_connections=count, max_connections=count)
        client.warm_up()
        return client

    async def open(self, address: str, timeout: float, **how: Any) -> None:
        if how.get("unchecked"):
            self._client: Any = memcache.Client(
                [address], socket_timeout=timeout, check_keys=False, server_max_key_length=0
            )
        else:
            self._client = tornado_memcache.Client(
                [address], request_timeout=timeout, connect_timeout=timeout
            )

    def get(self, key: str) -> Awaitable[bytes | None]:
        return self._client.get(key)

    def set(self, key: str, value: bytes, exptime: int = 0, **how: Any) -> Awaitable[Any]:
        return self._client.set(key, value, exptime)

    def get_multi(self, keys: Iterable[str]) -> Awaitable[dict[str, bytes]]:
        return self._client.get_multi(list(keys))

    async def close(self) -> None:
        if isinstance(self._client, tornado_memcache.Client):
            self._client.close()
        else:
            self._client.disconnect_all()
