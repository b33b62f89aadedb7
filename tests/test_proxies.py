"""Behind twemproxy (Debian's nutcracker), in front of two real memcacheds.

What it passes on is right; what it refuses is an error that says so, and
the next call is right.
"""

from __future__ import annotations

import asyncio
import logging
import os
import re
import shutil
import socket
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from tornado_memcache import Client, ConnectionFailed, MetaUnsupported, ServerError, boundary

from .asked import until
from .memcacheds import Memcached, free_port

LOG = "tornado_memcache"
BINARY = shutil.which("nutcracker", path=os.environ.get("PATH", "") + ":/usr/sbin")
pytestmark = pytest.mark.skipif(
    BINARY is None, reason="no nutcracker: apt-get install nutcracker (twemproxy)"
)

KEYS = [f"k{n}" for n in range(300)]
CONFIG = """
cache:
  listen: 127.0.0.1:{port}
  hash: md5
  distribution: modula
  auto_eject_hosts: false
  timeout: 5000
  servers:
   - {first}:1
   - {second}:1
"""


class Twemproxy:
    """One nutcracker process in front of two memcacheds."""

    def __init__(self, folder: Path, first: Memcached, second: Memcached) -> None:
        self.port = free_port()
        self.address = f"127.0.0.1:{self.port}"
        self.servers = (first, second)
        config = folder / "nutcracker.yml"
        config.write_text(CONFIG.format(port=self.port, first=first.address, second=second.address))
        line = [str(BINARY), "-c", str(config), "-a", "127.0.0.1", "-s", str(free_port())]
        self._process = subprocess.Popen(
            line, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
        )
        end = time.monotonic() + 10
        while True:
            try:
                with socket.create_connection(("127.0.0.1", self.port), timeout=5):
                    return
            except OSError:
                if time.monotonic() > end or self._process.poll() is not None:
                    self.close()
                    raise
                time.sleep(0.01)

    def close(self) -> None:
        self._process.kill()
        self._process.wait()


@pytest.fixture(scope="module")
def proxied(tmp_path_factory: Any, memcached_binary: str) -> Iterator[Twemproxy]:
    servers = [Memcached(binary=memcached_binary) for _ in range(2)]
    proxy = Twemproxy(tmp_path_factory.mktemp("nutcracker"), *servers)
    yield proxy
    proxy.close()
    for server in servers:
        server.close()


@pytest.fixture
def proxy(proxied: Twemproxy) -> Twemproxy:
    for server in proxied.servers:
        server.flush()
    return proxied


@pytest.mark.gen_test
async def test_what_it_passes_on_is_right(proxy: Twemproxy) -> None:
    async with Client([proxy.address]) as client:
        assert await client.set("k", "v") is True and await client.get("k") == "v"
        assert await client.get("absent", "other") == "other"
        assert await client.add("k", 1) is False and await client.replace("absent", 1) is False
        assert await client.append("k", "w") and await client.prepend("k", "u")
        value, unique = await client.gets("k")
        assert value == "uvw"
        assert await client.cas("k", 5, unique) is True
        assert await client.cas("k", 6, unique) is False
        assert await client.cas("absent", 6, 1) is None
        assert await client.incr("k", 3) == 8 and await client.decr("k") == 7
        assert await client.incr("absent") is None
        assert await client.touch("k", 60) is True and await client.touch("absent", 60) is False
        assert await client.set("quiet", 1, noreply=True) and await client.get("quiet") == 1
        assert await client.delete("k") is True and await client.delete("k") is False
        assert (
            await client.set("large", b"x" * 700_000) and len(await client.get("large")) == 700_000
        )


@pytest.mark.gen_test
async def test_many_keys_over_both_servers(proxy: Twemproxy) -> None:
    async with Client([proxy.address]) as client:
        assert await client.set_multi({key: key for key in KEYS}) == []
        found = await client.get_multi([*KEYS, "absent"])
        assert found == {key: key for key in KEYS} and found.errors == {}
        uniques = await client.gets_multi(KEYS[:50])
        assert [value for value, _ in uniques.values()] == list(uniques)
        assert await client.delete_multi(KEYS[:10]) == []
        assert set(await client.get_multi(KEYS)) == set(KEYS[10:])
        line = b"get " + " ".join(KEYS).encode() + b"\r\n"
        holds = [server.ask(line, b"END\r\n").count(b"VALUE ") for server in proxy.servers]
        assert sum(holds) == 290 and min(holds) > 30


@pytest.mark.gen_test
async def test_a_pipeline_of_all_kinds_comes_back_in_order(proxy: Twemproxy) -> None:
    async with Client([proxy.address]) as client:
        calls, expected = [], []
        for number, key in enumerate(KEYS):
            calls += [
                client.set(key, number),
                client.get(key),
                client.incr(key, 1),
                client.gets(key),
                client.delete(key) if number % 2 else client.add(key, 0),
                client.get(key),
            ]
            left = None if number % 2 else number + 1
            expected += [True, number, number + 1, number + 1, bool(number % 2), left]
        got = await asyncio.gather(*calls)
        assert [one[0] if isinstance(one, tuple) else one for one in got] == expected


REFUSED: dict[str, Callable[[Client], Any]] = {
    "flush_all": lambda client: client.flush_all(),
    "stats": lambda client: client.stats(),
    "gat": lambda client: client.gat("k", 60),
    "gats": lambda client: client.gats("k", 60),
    "set of what has expired": lambda client: client.set("other", 1, exptime=-1),
}


@pytest.mark.parametrize("state", ["warm", "cold"])
@pytest.mark.parametrize("what", REFUSED)
@pytest.mark.gen_test
async def test_what_it_refuses_says_so_and_the_next_call_is_right(
    what: str, state: str, proxy: Twemproxy, expect_log: Any
) -> None:
    expect_log(LOG, "fails: .*as a proxy does that does not know", times=1)
    expect_log(LOG, "answers again", level=logging.INFO, times=range(2))
    async with Client([proxy.address], request_timeout=5) as client:
        if state == "warm":
            assert await client.set("k", "v") is True
        begun = time.monotonic()
        for _ in range(4):
            with pytest.raises(ConnectionFailed, match="proxy does that does not know") as caught:
                await REFUSED[what](client)
            assert what.split()[0] in str(caught.value) and caught.value.server == proxy.address
            # to refuse a request is no death of the proxy
            assert not client._pools[0].health.dead
        assert time.monotonic() - begun < 2
        assert await client.set("k", "w") is True
        assert await asyncio.gather(*[client.get("k") for _ in range(20)]) == ["w"] * 20
        assert await client.get("other") is None
        counts = client._pools[0].counts()
        assert (counts["open"], counts["pending"]) == (1, 0)


@pytest.mark.gen_test
async def test_version_is_answered_or_refused(proxy: Twemproxy, expect_log: Any) -> None:
    """Releases differ."""
    expect_log(LOG, "fails: .*as a proxy does that does not know", times=range(2))
    async with Client([proxy.address], request_timeout=5) as client:
        try:
            assert list(await client.version()) == [proxy.address]
        except ConnectionFailed as error:
            assert "does not know" in str(error)
        assert await client.set("k", 1) and await client.get("k") == 1


@pytest.mark.gen_test
async def test_what_is_under_way_beside_it_ends_once_and_with_no_wrong_value(
    proxy: Twemproxy, expect_log: Any
) -> None:
    expect_log(LOG, "fails|answers", times=range(20))
    async with Client([proxy.address], request_timeout=5) as client:
        assert await client.set_multi({key: key for key in KEYS}) == []
        for _ in range(10):
            refused: list[Any] = []
            with boundary(refused.append):
                client.flush_all(callback=refused.append)
            calls = [client.get(key) for key in KEYS]
            for key, got in zip(KEYS, await asyncio.gather(*calls, return_exceptions=True)):
                assert got == key or isinstance(got, ConnectionFailed)
            await until(lambda refused=refused: refused)
            assert isinstance(refused[0], ConnectionFailed) and len(refused) == 1
        assert await client.get_multi(KEYS) == {key: key for key in KEYS}


@pytest.mark.gen_test
async def test_a_server_behind_it_that_is_gone_is_an_error_of_its_keys(
    proxy: Twemproxy, expect_log: Any
) -> None:
    expect_log(LOG, "fails|answers", times=range(20))
    gone = proxy.servers[0]
    async with Client([proxy.address], request_timeout=5) as client:
        assert await client.set_multi({key: key for key in KEYS}) == []
        gone.kill()
        outcomes = await asyncio.gather(
            *[client.delete(key) for key in KEYS], return_exceptions=True
        )
        failed = [error for error in outcomes if error is not True]
        assert 30 < len(failed) < 270 and all(isinstance(error, ServerError) for error in failed)
        assert client._pools[0].counts()["open"] == 1 and client._pools[0].losses == 0
        gone.restart()
        end = time.monotonic() + 5
        while await client.set_multi(dict.fromkeys(KEYS, 1)):
            assert time.monotonic() < end
            await asyncio.sleep(0.01)
        assert await client.get_multi(KEYS) == dict.fromkeys(KEYS, 1)


@pytest.mark.gen_test
async def test_it_takes_no_credentials_and_keeps_none(proxy: Twemproxy, expect_log: Any) -> None:
    expect_log(LOG, "taken for dead", times=1)
    async with Client([proxy.address], username="app", password="xyzzy") as client:
        with pytest.raises(ConnectionFailed, match="closed the connection.*authenticating"):
            await client.get("k")
    for server in proxy.servers:
        assert server.ask(b"mg tornado_memcache_authentication v\r\n") == b"EN\r\n"


@pytest.mark.gen_test
async def test_meta_commands_fail_and_say_why(proxy: Twemproxy, expect_log: Any) -> None:
    """Some releases have a version of their own, some close at it, some pass on a server's.

    The last are taken for what they stand before, and close at the command.
    """
    expect_log(LOG, "fails|answers", times=range(20))
    async with Client([proxy.address], request_timeout=5) as client:
        assert await client.set("k", "v") is True
        for call in (
            lambda: client.meta_get("k"),
            lambda: client.meta_set("k", "flush_all\r\n"),
            lambda: client.debug("k"),
            lambda: client.meta_get_multi(["k", "l"]),
        ):
            with pytest.raises((MetaUnsupported, ConnectionFailed)) as caught:
                await call()
            told = "as a proxy does that does not know this request|needs memcached"
            assert re.search(told, str(caught.value))
            assert await client.get("k") == "v"
