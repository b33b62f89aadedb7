"""Other people's clients against the embedded server, and libmemcached's check of it."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

import pytest

from tornado_memcache.server import EmbeddedServer

from .memcacheds import Memcached
from .peers import MEMCCAPABLE, PEERS, capable


def installed(name: str) -> Callable[[str, int], Any]:
    """Returns the use of a client; skips the test where that is not installed."""
    pytest.importorskip({"python-memcached": "memcache"}.get(name, name))
    return PEERS[name]


@pytest.mark.parametrize("name", PEERS)
@pytest.mark.gen_test(timeout=60)
async def test_another_client_finds_a_memcached(name: str) -> None:
    async with EmbeddedServer() as server:
        await asyncio.to_thread(installed(name), server.host, server.port)


@pytest.mark.parametrize("name", PEERS)
def test_the_use_itself_is_right(name: str, memcached: Memcached) -> None:
    assert memcached.port is not None
    installed(name)(memcached.host, memcached.port)


@pytest.mark.skipif(
    MEMCCAPABLE is None, reason="no memccapable: apt-get install libmemcached-tools"
)
@pytest.mark.gen_test(timeout=120)
async def test_memccapable_finds_27_of_27() -> None:
    async with EmbeddedServer() as server:
        found = await asyncio.to_thread(capable, server.host, server.port)
    assert len(found) == 27 and set(found.values()) == {"pass"}, found
