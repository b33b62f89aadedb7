"""tornado_memcache.compression: smaller where it pays, and never more than the limit."""

from __future__ import annotations

import os
import tracemalloc
import zlib

import memcache
import pytest

from tornado_memcache import Client, InvalidRequest, Request, SerializationError, ValueTooLarge
from tornado_memcache.compression import MAX_DECOMPRESSED, Compression

LONG = b"long " * 100
MB = 1024 * 1024


# -- what is compressed


@pytest.mark.parametrize(
    ("length", "compressed"), [(0, False), (99, False), (100, False), (101, True), (5000, True)]
)
def test_what_is_longer_than_over_is_compressed(length, compressed):
    data = b"a" * length
    packed, flags = Compression(100).pack(data, 16)
    if compressed:
        assert (zlib.decompress(packed), flags) == (data, 24)
    else:
        assert (packed, flags) == (data, 16)
    assert Compression(100).unpack(b"k", packed, flags) == (data, 16)


@pytest.mark.parametrize(
    "data",
    [b"a", os.urandom(1), os.urandom(1000), bytes(range(256))],
    ids=lambda data: str(len(data)),
)
def test_what_would_not_be_smaller_is_left(data):
    assert Compression(0).pack(data, 0) == (data, 0)


def test_what_would_be_as_long_is_left():
    same = Compression(0, compress=lambda data: b"x" * len(data))
    assert same.pack(b"data", 0) == (b"data", 0)
    shorter = Compression(0, compress=lambda data: b"x" * (len(data) - 1))
    assert shorter.pack(b"data", 0) == (b"xxx", 8)


def test_nothing_is_compressed_without_a_length():
    assert Compression(None).pack(LONG, 16) == (LONG, 16)
    assert Compression(None).unpack(b"k", zlib.compress(LONG), 24) == (LONG, 16)


@pytest.mark.parametrize("flags", [2, 8, 10, 24])
def test_ints_and_what_is_compressed_already_are_left(flags):
    assert Compression(0).pack(LONG, flags) == (LONG, flags)


@pytest.mark.parametrize(("flags", "stored"), [(0, 8), (1, 9), (16, 24), (32, 40)])
def test_the_flag_is_added_and_taken_off(flags, stored):
    packed = Compression(0).pack(LONG, flags)
    assert packed == (zlib.compress(LONG), stored)
    assert Compression(None).unpack(b"k", *packed) == (LONG, flags)


# -- what cannot be read


def refused(data, told, limit=MAX_DECOMPRESSED):
    with pytest.raises(SerializationError, match=told) as caught:
        Compression(None, limit).unpack(b"key-1", data, 24)
    assert "'key-1'" in str(caught.value)
    assert len(str(caught.value)) < 120


@pytest.mark.parametrize("length", [1, 100, 32 * 1024, 256 * 1024, MB, MB + 1])
def test_the_limit_is_the_last_length_that_is_read(length):
    for data in (bytes(length), os.urandom(length)):
        packed = zlib.compress(data)
        assert Compression(None, length).unpack(b"k", packed, 8) == (data, 0)
        assert Compression(None, length + 1).unpack(b"k", packed, 8) == (data, 0)
        if length > 1:
            refused(packed, "over", length - 1)


def test_a_bomb_costs_no_more_than_the_limit():
    maker = zlib.compressobj(9)
    bomb = b"".join([maker.compress(bytes(MB)) for _ in range(200)] + [maker.flush()])
    assert len(bomb) < 250_000
    reader = Compression(None)
    tracemalloc.start()
    try:
        with pytest.raises(SerializationError, match=f"over {MAX_DECOMPRESSED} bytes"):
            reader.unpack(b"k", bomb, 8)
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak < MAX_DECOMPRESSED + 2 * MB


def test_what_was_cut_off_at_any_place():
    packed = zlib.compress(os.urandom(50) + LONG)
    for length in range(len(packed)):
        refused(packed[:length], "cut off|is not")


@pytest.mark.parametrize("data", [b"plain", LONG, b"x\x9c", zlib.compress(LONG)[1:], b"\xff" * 99])
def test_what_is_no_zlib(data):
    refused(data, "is not|cut off")


def test_what_was_changed_on_the_way():
    packed = bytearray(zlib.compress(LONG))
    packed[-1] ^= 1  # the checksum
    refused(bytes(packed), "is not|cut off")


def test_bytes_behind_the_end_are_not_dropped_silently():
    """An append to a value that is compressed makes them: its bytes must not just vanish."""
    refused(zlib.compress(LONG) + b"tail", "value of key")


def test_the_cause_holds_no_value():
    with pytest.raises(SerializationError) as caught:
        Compression(None).unpack(b"k", b"secret value", 8)
    assert "secret" not in str(caught.value)
    assert caught.value.__cause__ is None


# -- through the client


async def stored(client, key):
    """Returns bytes and flags as the server holds them."""
    item = (await client.request(Request(b"get", (key,)))).items[key]
    return item.value, item.flags


@pytest.mark.gen_test
async def test_the_client_compresses_over_a_length(memcached):
    async with Client([memcached.address], compress_over=100) as client:
        text, data = "text " * 50, b"data " * 50
        await client.set_multi({"str": text, "bytes": data, "short": "a" * 100, "int": 10**300})
        assert await stored(client, b"str") == (zlib.compress(text.encode()), 24)
        assert await stored(client, b"bytes") == (zlib.compress(data), 8)
        assert await stored(client, b"short") == (b"a" * 100, 16)
        assert await stored(client, b"int") == (b"%d" % 10**300, 2)
        whole = {"str": text, "bytes": data, "short": "a" * 100, "int": 10**300}
        assert await client.get_multi(whole) == whole
        assert await client.gets("str") == (text, (await client.gets("str"))[1])
        for verb in (client.set, client.replace):
            await verb("str", text)
            assert (await stored(client, b"str"))[1] == 24
        await client.add("new", text)
        assert (await stored(client, b"new"))[1] == 24
        _, unique = await client.gets("new")
        assert await client.cas("new", data, unique)
        assert (await stored(client, b"new"))[1] == 8


@pytest.mark.gen_test
async def test_append_and_prepend_never_compress(memcached):
    async with Client([memcached.address], compress_over=10) as client:
        await client.set("k", "middle")
        assert await client.append("k", "a" * 500)
        assert await client.prepend("k", "b" * 500)
        assert await stored(client, b"k") == (b"b" * 500 + b"middle" + b"a" * 500, 16)
        assert await client.get("k") == "b" * 500 + "middle" + "a" * 500


@pytest.mark.gen_test
async def test_an_append_to_a_compressed_value_is_told_when_it_is_read(memcached):
    async with Client([memcached.address], compress_over=10) as client:
        await client.set("k", "a" * 500)
        assert await client.append("k", "tail")
        with pytest.raises(SerializationError, match="'k'"):
            await client.get("k")


@pytest.mark.gen_test
async def test_a_client_that_compresses_nothing_reads_what_is_compressed(memcached):
    async with Client([memcached.address], compress_over=0) as writing:
        await writing.set("k", "a" * 500)
    async with Client([memcached.address]) as client:
        assert await client.get("k") == "a" * 500
        assert await client.get_multi(["k"]) == {"k": "a" * 500}


@pytest.mark.gen_test
async def test_one_value_that_cannot_be_read_disturbs_no_other(memcached):
    limit = 1000
    bad = {
        b"bomb": zlib.compress(bytes(limit + 1)),
        b"cut": zlib.compress(LONG)[:-3],
        b"garbage": b"garbage",
    }
    async with Client([memcached.address], max_decompressed_size=limit) as client:
        await client.set("good", "value")
        for key, data in bad.items():
            await client.request(Request(b"set", (key,), data, 24))
        calls = [client.get(key) for key in ("good", *bad, "good")]
        assert await calls[0] == await calls[-1] == "value"
        for call in calls[1:-1]:
            with pytest.raises(SerializationError):
                await call
        result = await client.get_multi(["good", *bad])
        assert result == {"good": "value"}
        assert type(result.errors[memcached.address]) is SerializationError


@pytest.mark.gen_test
async def test_the_limit_on_a_value_counts_what_is_stored(memcached):
    async with Client([memcached.address], compress_over=100, max_value_size=1000) as client:
        await client.set("k", "a" * 5000)
        assert await client.get("k") == "a" * 5000
        with pytest.raises(ValueTooLarge):
            client.set("k", os.urandom(5000))


@pytest.mark.parametrize(
    ("setting", "value", "error"),
    [
        ("compress_over", -1, InvalidRequest),
        ("compress_over", True, TypeError),
        ("compress_over", 1.5, TypeError),
        ("compress_over", "100", TypeError),
        ("max_decompressed_size", 0, InvalidRequest),
        ("max_decompressed_size", None, TypeError),
        ("max_decompressed_size", 1 << 40, InvalidRequest),
    ],
)
def test_settings_that_are_refused(setting, value, error):
    with pytest.raises(error, match=setting):
        Client(["a"], **{setting: value})


# -- python-memcached


@pytest.mark.gen_test
@pytest.mark.parametrize("value", ["text " * 50, b"data " * 50, "\u00e9" * 300, 10**300])
async def test_python_memcached_reads_ours_and_we_read_its(memcached, value):
    other = memcache.Client([memcached.address])
    try:
        async with Client([memcached.address], compress_over=100) as client:
            await client.set("ours", value)
            assert other.get("ours") == value
            assert other.set("theirs", value, min_compress_len=100)
            assert await client.get("theirs") == value
            assert await stored(client, b"ours") == await stored(client, b"theirs")
    finally:
        other.disconnect_all()
