"""Other people's clients through the proxy, before two memcacheds: each alone, and 500 at once."""

from __future__ import annotations

import asyncio
import shutil
import subprocess
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import memcache
import pylibmc
import pytest
from pymemcache.client.base import Client as PymemcacheClient

from .peers import MEMCCAPABLE, PEERS, capable
from .proxied import behind, proxied
from .test_peers import installed

TOOLS = ("memccp", "memccat", "memcexist", "memctouch", "memcrm", "memcstat", "memcping")


def address_of(server: Any) -> tuple[str, int]:
    host, _, port = server.address.rpartition(":")
    return host, int(port)


@pytest.mark.parametrize("name", PEERS)
@pytest.mark.gen_test(timeout=60)
async def test_another_client_finds_a_memcached(name: str, start_memcached: Any) -> None:
    use = installed(name)
    async with proxied(*behind(start_memcached(), start_memcached())) as server:
        await asyncio.to_thread(use, *address_of(server))


@pytest.mark.skipif(
    MEMCCAPABLE is None, reason="no memccapable: apt-get install libmemcached-tools"
)
@pytest.mark.gen_test(timeout=120)
async def test_memccapable_finds_27_of_27(start_memcached: Any) -> None:
    flags = [*behind(start_memcached(), start_memcached()), "--allow-all-commands"]
    async with proxied(*flags) as server:
        found = await asyncio.to_thread(capable, *address_of(server))
    assert len(found) == 27 and set(found.values()) == {"pass"}, found


@pytest.mark.skipif(
    any(shutil.which(tool) is None for tool in TOOLS),
    reason="no memccp and others: apt-get install libmemcached-tools",
)
@pytest.mark.gen_test(timeout=60)
async def test_the_tools_of_libmemcached(start_memcached: Any, tmp_path: Path) -> None:
    (tmp_path / "one").write_text("the first\n")
    (tmp_path / "two").write_text("the second\n")

    def use(host: str, port: int) -> None:
        def run(tool: str, *arguments: str, status: int = 0) -> str:
            line = [tool, f"--servers={host}:{port}", *arguments]
            ran = subprocess.run(line, cwd=tmp_path, capture_output=True, text=True, timeout=30)
            assert (ran.returncode == 0) is (status == 0), ran
            return ran.stdout

        run("memcping")
        run("memccp", "one", "two")
        assert "the first" in run("memccat", "one") and "the second" in run("memccat", "two")
        run("memcexist", "one")
        run("memctouch", "--expire=100", "one")
        run("memcrm", "one")
        run("memcexist", "one", status=1)
        assert "curr_items" in run("memcstat")

    async with proxied(*behind(start_memcached(), start_memcached())) as server:
        await asyncio.to_thread(use, *address_of(server))


MAKE = (
    lambda host, port: PymemcacheClient((host, port), timeout=30, connect_timeout=30),
    lambda host, port: memcache.Client([f"{host}:{port}"], socket_timeout=30),
    lambda host, port: pylibmc.Client([f"{host}:{port}"]),
)
CLIENTS, THREADS = 500, 20


@pytest.mark.gen_test(timeout=120)
async def test_500_clients_at_once_each_find_what_they_stored(start_memcached: Any) -> None:
    everyone_is_in = threading.Barrier(THREADS + 1)

    def use(host: str, port: int, thread: int) -> None:
        share = range(thread, CLIENTS, THREADS)
        clients = {number: MAKE[number % len(MAKE)](host, port) for number in share}
        for number, client in clients.items():
            assert client.set(f"key-{number}", f"value-{number}")
        everyone_is_in.wait(60)
        everyone_is_in.wait(60)
        for _ in range(3):
            for number, client in clients.items():
                got = client.get(f"key-{number}")
                assert got in (f"value-{number}", f"value-{number}".encode())
        for number, client in clients.items():
            assert client.delete(f"key-{number}") and client.get(f"key-{number}") is None
            getattr(client, "close", getattr(client, "disconnect_all", None))()

    async with proxied(*behind(start_memcached(), start_memcached())) as server:
        loop = asyncio.get_running_loop()
        with ThreadPoolExecutor(THREADS + 1) as threads:
            host, port = address_of(server)
            used = [loop.run_in_executor(threads, use, host, port, n) for n in range(THREADS)]
            await loop.run_in_executor(threads, everyone_is_in.wait, 60)
            assert server.door.connected == CLIENTS
            await loop.run_in_executor(threads, everyone_is_in.wait, 60)
            await asyncio.gather(*used)
