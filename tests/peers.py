"""Other people's clients, each put to the same use of a server: a drop-in check of what answers.

`PEERS` are functions that take a host and a port, and store, read, read many,
count, compare and delete there; they raise where an answer is not a
memcached's. `capable` runs libmemcached's memccapable. It must not know the
package, nor what is behind the address.
"""

from __future__ import annotations

import asyncio
import re
import shutil
import subprocess
from collections.abc import Callable
from typing import Any

import memcache
import pylibmc
from pymemcache.client.base import Client as PymemcacheClient

#: libmemcached's own check of a server, or None where it is not installed.
MEMCCAPABLE = shutil.which("memccapable") or shutil.which("memccapable", path="/usr/bin")
VALUE = b"value \0\xff\r\nEND\r\n" * 100


def pymemcache(host: str, port: int) -> None:
    client = PymemcacheClient((host, port), default_noreply=False, timeout=10, connect_timeout=10)
    assert client.set("k", VALUE) and client.get("k") == VALUE
    assert client.add("k", b"x") is False and client.replace("k", b"1", expire=60)
    assert client.set_many({"a": b"1", "b": b"2"}) == []
    assert client.get_many(["a", "b", "absent"]) == {"a": b"1", "b": b"2"}
    value, unique = client.gets("a")
    assert client.cas("a", b"3", unique) is True and client.cas("a", b"4", unique) is False
    assert (
        client.incr("a", 4) == 7 and client.decr("a", 2) == 5 and client.incr("absent", 1) is None
    )
    assert client.append("b", b"y") and client.prepend("b", b"x") and client.get("b") == b"x2y"
    assert client.touch("b", 100) and client.get("b") == b"x2y"
    assert client.set("q", b"1", noreply=True) and client.get("q") == b"1"
    assert client.delete_many(["a", "b", "k"]) and client.get("k") is None
    assert b"pid" in client.stats() and client.version().startswith(b"1.")
    client.close()


def python_memcached(host: str, port: int) -> None:
    client = memcache.Client([f"{host}:{port}"], cache_cas=True)
    assert client.set("k", VALUE) and client.get("k") == VALUE
    assert client.set_multi({"a": 1, "b": "two"}) == []
    assert client.get_multi(["a", "b", "absent"]) == {"a": 1, "b": "two"}
    assert client.incr("a", 4) == 5 and client.decr("a") == 4
    assert client.gets("b") == "two" and client.cas("b", "three") and client.get("b") == "three"
    assert client.touch("b", 100) and client.append("k", "x") and client.get("k") == VALUE + b"x"
    assert client.delete_multi(["a", "b"]) and client.get("a") is None
    assert client.get_stats()
    client.disconnect_all()


def pylibmc_(host: str, port: int) -> None:
    client = pylibmc.Client([f"{host}:{port}"], behaviors={"cas": True})
    assert client.set("k", VALUE) and client.get("k") == VALUE
    assert client.set_multi({"a": 1, "b": "two"}) == []
    assert client.get_multi(["a", "b", "absent"]) == {"a": 1, "b": "two"}
    assert client.incr("a", 4) == 5 and client.decr("a", 1) == 4
    value, unique = client.gets("b")
    assert client.cas("b", "three", unique) and not client.cas("b", "four", unique)
    assert client.touch("b", 100) and client.delete_multi(["a", "b"]) and client.get("a") is None
    assert client.get_stats()
    client.disconnect_all()


def aiomcache(host: str, port: int) -> None:
    import aiomcache as theirs

    async def use() -> None:
        client = theirs.Client(host, port)
        assert await client.set(b"k", VALUE) and await client.get(b"k") == VALUE
        assert await client.set(b"a", b"1", exptime=60) and not await client.add(b"a", b"2")
        assert await client.multi_get(b"a", b"k", b"absent") == (b"1", VALUE, None)
        value, unique = await client.gets(b"a")
        assert await client.cas(b"a", b"2", unique)
        assert await client.incr(b"a", 5) == 7 and await client.decr(b"a", 3) == 4
        assert await client.touch(b"a", 100) and await client.delete(b"a")
        assert await client.get(b"a") is None and await client.stats()
        await client.close()

    asyncio.run(use())


def emcache(host: str, port: int) -> None:
    import emcache as theirs

    async def use() -> None:
        client = await theirs.create_client([theirs.MemcachedHostAddress(host, port)], timeout=10)
        await client.set(b"k", VALUE)
        item = await client.get(b"k")
        assert item is not None and item.value == VALUE
        await client.set(b"a", b"1", exptime=60)
        many = await client.get_many([b"a", b"k", b"absent"])
        assert {key: item.value for key, item in many.items()} == {b"a": b"1", b"k": VALUE}
        item = await client.gets(b"a")
        assert item is not None and item.cas is not None
        await client.cas(b"a", b"2", item.cas)
        assert await client.increment(b"a", 5) == 7 and await client.decrement(b"a", 3) == 4
        await client.touch(b"a", 100)
        await client.delete(b"a")
        assert await client.get(b"a") is None
        await client.close()

    asyncio.run(use())


PEERS: dict[str, Callable[[str, int], Any]] = {
    "pymemcache": pymemcache,
    "python-memcached": python_memcached,
    "pylibmc": pylibmc_,
    "aiomcache": aiomcache,
    "emcache": emcache,
}


def capable(host: str, port: int) -> dict[str, str]:
    """Returns what memccapable says of a server: "pass" or "FAIL" by the name of its check."""
    assert MEMCCAPABLE is not None
    line = [MEMCCAPABLE, "-h", host, "-p", str(port), "-a", "-t", "10"]
    said = subprocess.run(line, capture_output=True, text=True, timeout=120).stdout
    return {name.strip(): how for name, how in re.findall(r"^(ascii .*?)\s+\[(\w+)\]", said, re.M)}
