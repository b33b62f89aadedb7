"""Values of python-memcached, pymemcache and pylibmc are read here, and ours by them.

Each of those clients writes every kind of value to the same real memcached,
plain and compressed, and the native client with ``serializer=Pickle()``
reads it, and the other way round. `DIFFERENCES` lists where a client does
not give back what was written, with the reason: it is the other's doing.
"""

from __future__ import annotations

import math
import zlib
from typing import Any

import memcache
import pylibmc
import pytest
from pymemcache.client.base import Client as PymemcacheClient
from pymemcache.serde import CompressedSerde, PickleSerde

from tornado_memcache import Client, Request
from tornado_memcache.pickles import Pickle


class Level(int):
    """A subclass of int: it must not come back as a bare int."""


VALUES: dict[str, Any] = {
    "bytes": b"bytes \0\xff\r\n",
    "bytes-empty": b"",
    "bytes-long": b"bytes " * 500,
    "str": "t\u00e9xt \U0001f600",
    "str-empty": "",
    "str-long": "text " * 500,
    "int": 42,
    "int-zero": 0,
    "int-negative": -7,
    "int-long": 2**31,
    "int-64": 2**63 - 1,
    "int-huge": 2**200,
    "int-huge-negative": -(2**200),
    "bool-true": True,
    "bool-false": False,
    "none": None,
    "float": 0.1,
    "float-infinite": math.inf,
    "dict": {"a": [1, "two", b"three", None, {"deep": (1.5, True)}]},
    "dict-long": {f"key-{n}": "value" for n in range(200)},
    "int-subclass": Level(3),
}
LONG = {name for name in VALUES if name.endswith("long") and name != "int-long"}
OVER = 200


class PythonMemcached:
    def __init__(self, server, compressed):
        self._client = memcache.Client([server.address], pickleProtocol=2)
        self._over = OVER if compressed else 0

    def write(self, key, value):
        assert self._client.set(key, value, min_compress_len=self._over)

    def read(self, key):
        return self._client.get(key)

    def close(self):
        self._client.disconnect_all()


class Pymemcache:
    def __init__(self, server, compressed):
        serde = CompressedSerde(min_compress_len=OVER) if compressed else PickleSerde()
        # (by default it does not wait for the answer to a write)
        self._client = PymemcacheClient(
            (server.host, server.port), serde=serde, default_noreply=False
        )

    def write(self, key, value):
        assert self._client.set(key, value)

    def read(self, key):
        return self._client.get(key, default="missed")

    def close(self):
        self._client.close()


class Pylibmc:
    def __init__(self, server, compressed):
        self._client = pylibmc.Client([server.address])
        self._over = OVER if compressed else 0

    def write(self, key, value):
        assert self._client.set(key, value, min_compress_len=self._over)

    def read(self, key):
        return self._client.get(key, "missed")

    def close(self):
        self._client.disconnect_all()


PEERS = {"python-memcached": PythonMemcached, "pymemcache": Pymemcache, "pylibmc": Pylibmc}

_BOOL = "pylibmc stores a bool as the number 1 or 0, and gives back an int itself"
_SUBCLASS = "pylibmc stores a subclass of int as the bare number, and gives back an int itself"
_LONG = "pylibmc marks every int as a long of Python 2 (4); 2 and 4 are both read as int by all"

#: (who, "writes" or "reads", value): (what comes of it, and why).
DIFFERENCES: dict[tuple[str, str, str], tuple[Any, str]] = {
    ("pylibmc", "writes", "bool-true"): (1, _BOOL),
    ("pylibmc", "writes", "bool-false"): (0, _BOOL),
    ("pylibmc", "writes", "int-subclass"): (3, _SUBCLASS),
}

#: The flags that each client writes, where they are not ours.
FLAGS: dict[tuple[str, str], tuple[int, str]] = {
    ("pylibmc", "bool-true"): (2, _BOOL),
    ("pylibmc", "bool-false"): (2, _BOOL),
    ("pylibmc", "int-subclass"): (4, _SUBCLASS),
    **{("pylibmc", name): (4, _LONG) for name, value in VALUES.items() if type(value) is int},
}


def of(value):
    """Returns ``value`` with its type: True is not 1, and a subclass is not its base."""
    return value, type(value)


@pytest.fixture(params=[False, True], ids=["plain", "compressed"])
def compressed(request):
    return request.param


@pytest.fixture(params=list(PEERS))
def name(request):
    return request.param


@pytest.fixture
def peer(name, memcached, compressed):
    peer = PEERS[name](memcached, compressed)
    yield peer
    peer.close()


def ours(memcached, compressed):
    # Their protocols are 2 and up; all read ours, whatever it is.
    return Client(
        [memcached.address], serializer=Pickle(), compress_over=OVER if compressed else None
    )


@pytest.mark.gen_test
async def test_what_they_write_we_read(memcached, peer, name, compressed):
    async with ours(memcached, compressed) as client:
        for key, value in VALUES.items():
            peer.write(key, value)
        expected = {
            key: DIFFERENCES.get((name, "writes", key), (value,))[0]
            for key, value in VALUES.items()
        }
        for key, value in expected.items():
            assert of(await client.get(key)) == of(value), key
        many = await client.get_multi(VALUES)
        assert {key: of(value) for key, value in many.items()} == {
            key: of(value) for key, value in expected.items()
        }
        assert many.errors == {}


@pytest.mark.gen_test
async def test_what_we_write_they_read(memcached, peer, name, compressed):
    async with ours(memcached, compressed) as client:
        assert await client.set_multi(VALUES) == []
        for key, value in VALUES.items():
            expected = DIFFERENCES.get((name, "reads", key), (value,))[0]
            assert of(peer.read(key)) == of(expected), key


@pytest.mark.gen_test
async def test_the_flags_are_the_same_on_both_sides(memcached, peer, name, compressed):
    """So a client that only looks at the flags, in any language, sees no difference."""
    async with ours(memcached, compressed) as client:

        async def flags():
            reply = await client.request(Request(b"get", tuple(key.encode() for key in VALUES)))
            return {key.decode(): item.flags for key, item in reply.items.items()}

        await client.set_multi(VALUES)
        our_flags = await flags()
        for key in LONG:
            assert bool(our_flags[key] & 8) is compressed, key
        for key, value in VALUES.items():
            peer.write(key, value)
        expected = {
            key: FLAGS.get((name, key), (flags_of_ours,))[0]
            for key, flags_of_ours in our_flags.items()
        }
        assert await flags() == expected


@pytest.mark.gen_test
async def test_the_stored_bytes_of_plain_values_are_the_same(memcached, peer, name):
    async with ours(memcached, False) as client:
        for key in ("bytes", "str", "int", "int-huge"):
            stored = []
            for who in ("peer", "we"):
                if who == "peer":
                    peer.write(key, VALUES[key])
                else:
                    await client.set(key, VALUES[key])
                item = (await client.request(Request(b"get", (key.encode(),)))).items[key.encode()]
                data = zlib.decompress(item.value) if item.flags & 8 else item.value
                stored.append(data)
            assert stored[0] == stored[1], key


@pytest.mark.gen_test
async def test_numbers_are_counted_by_all(memcached, peer, name):
    async with ours(memcached, False) as client:
        peer.write("n", 41)
        assert await client.incr("n") == 42
        assert peer.read("n") == 42
        await client.set("m", 9)
        assert await client.decr("m") == 8
        assert await client.get("m") == peer.read("m") == 8


def test_each_difference_has_a_reason_and_is_of_a_value_of_the_table():
    for peer, way, key in DIFFERENCES:
        assert peer in PEERS and way in ("writes", "reads") and key in VALUES
    for peer, key in FLAGS:
        assert peer in PEERS and key in VALUES
    assert all(reason for _, reason in [*DIFFERENCES.values(), *FLAGS.values()])
