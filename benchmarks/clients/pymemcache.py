"""pymemcache: blocking, one socket."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from pymemcache import serde
from pymemcache.client import base, hash

from . import Blocking, host_and_port


class Client(Blocking):
    title = "pymemcache"
    distribution = "pymemcache"
    takes_flags = True
    decompresses = True
    settings = (
        "timeout=T, connect_timeout=T; set(noreply=False), so that its outcome is the server's"
    )
    best = "default_noreply=False: a set waits for its answer; HashClient for many servers"

    async def open_best(self, addresses: list[str], callers: int, size: int) -> None:
        places = [host_and_port(address) for address in addresses]
        if len(places) == 1:
            self._client: Any = base.Client(places[0], default_noreply=False)
        else:
            self._client = hash.HashClient(places, default_noreply=False)
        self.fetch, self.store = self._client.get, self._client.set
        self.fetch_many = self._client.get_many

    def blocking_open(self, address: str, timeout: float, **how: Any) -> None:
        self._client = base.Client(
            host_and_port(address),
            timeout=timeout,
            connect_timeout=timeout,
            serde=serde.compressed_serde if how.get("compressed") else None,
        )

    def blocking_get(self, key: str) -> bytes | None:
        return self._client.get(key)

    def blocking_set(self, key: str, value: bytes, exptime: int = 0, **how: Any) -> Any:
        return self._client.set(key, value, exptime, **{"noreply": False, **how})

    def blocking_get_multi(self, keys: Iterable[str]) -> dict[str, bytes]:
        return self._client.get_many(list(keys))

    def blocking_close(self) -> None:
        self._client.close()
