"""python-memcached: blocking, one socket for each thread."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import memcache

from . import Blocking


class Client(Blocking):
    title = "python-memcached"
    distribution = "python-memcached"
    can_be_unchecked = True
    decompresses = True
    settings = "socket_timeout=T"
    best = "as it is by default; server_max_value_length for values over 1 MB"

    async def open_best(self, addresses: list[str], callers: int, size: int) -> None:
        self._client = memcache.Client(addresses, server_max_value_length=max(1 << 20, 2 * size))
        self.fetch, self.store = self._client.get, self._client.set
        self.fetch_many = self._client.get_multi

    def blocking_open(self, address: str, timeout: float, **how: Any) -> None:
        off = {"check_keys": False, "server_max_key_length": 0} if how.get("unchecked") else {}
        self._client = memcache.Client([address], socket_timeout=timeout, **off)

    def blocking_get(self, key: str) -> bytes | None:
        return self._client.get(key)

    def blocking_set(self, key: str, value: bytes, exptime: int = 0, **how: Any) -> Any:
        return self._client.set(key, value, time=exptime)

    def blocking_get_multi(self, keys: Iterable[str]) -> dict[str, bytes]:
        return self._client.get_multi(list(keys))

    def blocking_close(self) -> None:
        self._client.disconnect_all()
