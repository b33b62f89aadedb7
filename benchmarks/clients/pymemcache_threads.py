"""pymemcache in the threads of an executor, which is how it is used under an event loop."""

from __future__ import annotations

import asyncio
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import Any

from pymemcache.client.base import PooledClient

from . import Adapter, host_and_port


class Client(Adapter):
    title = "pymemcache in threads"
    distribution = "pymemcache"
    #: So many threads at most: fewer and more are slower at many callers.
    threads = 8
    best = "PooledClient, default_noreply=False, one connection for each of 8 threads"
    many_servers = False

    async def open_best(self, addresses: list[str], callers: int, size: int) -> None:
        several = min(callers, self.threads)
        self._threads = ThreadPoolExecutor(several)
        self._client: Any = PooledClient(
            host_and_port(addresses[0]), max_pool_size=several, default_noreply=False
        )
        run = partial(asyncio.get_running_loop().run_in_executor, self._threads)
        self.fetch = partial(run, self._client.get)
        self.store = partial(run, self._client.set)
        self.fetch_many = partial(run, self._client.get_many)

    async def close(self) -> None:
        self._threads.shutdown()
        self._client.close()
