"""pylibmc: blocking, libmemcached in C."""

from __future__ import annotations

from typing import Any

import pylibmc

from . import Blocking


class Client(Blocking):
    title = "pylibmc"
    distribution = "pylibmc"
    best = 'behaviors={"tcp_nodelay": True}; its text protocol'

    async def open_best(self, addresses: list[str], callers: int, size: int) -> None:
        self._client: Any = pylibmc.Client(addresses, behaviors={"tcp_nodelay": True})
        self.fetch, self.store = self._client.get, self._client.set
        self.fetch_many = self._client.get_multi

    def blocking_close(self) -> None:
        self._client.disconnect_all()
