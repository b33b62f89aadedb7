"""pymemcache: blocking, one socket."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from pymemcache import serde
from pymemcache.client import base

from . import Blocking


class Client(Blocking):
    title = "pymemcache"
    distribution = "pymemcache"
    takes_flags = True
    decompresses = True
    settings = (
        "timeout=T, connect_timeout=T; set(noreply=False), so that its outcome is the server's"
    )

    def blocking_open(self, address: str, timeout: float, **how: Any) -> None:
        host, _, port = address.rpartition(":")
        self._client = base.Client(
            (host, int(port)),
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
