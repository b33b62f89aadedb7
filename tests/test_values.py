"""tornado_memcache.values: a serializer is code like any other, and may do anything."""

from __future__ import annotations

import asyncio
import json
import os
import zlib

import pytest

from tornado_memcache import (
    Client,
    InvalidRequest,
    NotSerializable,
    Plain,
    Request,
    SerializationError,
    ValueTooLarge,
)
from tornado_memcache.compression import MAX_DECOMPRESSED
from tornado_memcache.values import Values


class Json:
    """A user's serializer: flags 1 << 16, which none of ours has."""

    raw_flags = None

    def encode(self, key, value):
        return json.dumps(value).encode(), 1 << 16

    def decode(self, key, data, flags):
        return json.loads(data)


class Does:
    """Does on write and on read what it was told."""

    raw_flags = None

    def __init__(self, encode=(b"data", 0), decode=None):
        self._encode, self._decode = encode, decode

    def encode(self, key, value):
        if isinstance(self._encode, BaseException):
            raise self._encode
        return self._encode

    def decode(self, key, data, flags):
        if isinstance(self._decode, BaseException):
            raise self._decode
        return self._decode


def values(serializer=None, over=None, limit=MAX_DECOMPRESSED, size=1 << 20):
    return Values(serializer, over, limit, size)


# -- on write


@pytest.mark.parametrize(
    "error",
    [
        RuntimeError("of the user's own"),
        KeyError("k"),
        RecursionError(),
        SerializationError("mine"),
        asyncio.TimeoutError(),
        StopIteration(),
    ],
    ids=repr,
)
def test_what_a_serializer_raises_on_write_is_raised_at_the_call(error):
    with pytest.raises(NotSerializable, match="'key-1' cannot be serialized") as caught:
        values(Does(error)).encode(b"key-1", 1)
    assert isinstance(caught.value, InvalidRequest)
    assert caught.value.__cause__ is error
    assert "own" not in str(caught.value)  # (a value could stand in it)


def test_a_refusal_that_is_ours_already_is_kept():
    error = NotSerializable("mine")
    with pytest.raises(NotSerializable) as caught:
        values(Does(error)).encode(b"k", 1)
    assert caught.value is error


@pytest.mark.parametrize(
    "nonsense",
    [
        None,
        b"data",
        (),
        (b"data",),
        (b"data", 0, 0),
        7,
        ("text", 0),
        (bytearray(b"data"), 0),
        (memoryview(b"data"), 0),
        (None, 0),
        (b"data", None),
        (b"data", "0"),
        (b"data", 1.0),
        (b"data", True),
        (b"data", -1),
        (b"data", 1 << 32),
        (b"data", 1 << 70),
    ],
    ids=lambda value: type(value).__name__,
)
@pytest.mark.parametrize("over", [None, 0])
def test_nonsense_on_write_is_raised_at_the_call(nonsense, over):
    with pytest.raises(NotSerializable):
        values(Does(nonsense), over).encode(b"k", 1)


@pytest.mark.parametrize("flags", [0, 1, 7, 16, (1 << 32) - 1])
def test_a_serializer_of_ones_own_has_all_flags(flags):
    own = values(Does((b"data", flags), "value"))
    assert own.encode(b"k", 1) == (b"data", flags)
    assert own.decode(b"k", b"data", flags) == "value"


def test_control_exceptions_are_not_swallowed():
    for error in (KeyboardInterrupt(), asyncio.CancelledError()):
        with pytest.raises(type(error)):
            values(Does(error)).encode(b"k", 1)


# -- on read


@pytest.mark.parametrize(
    "error",
    [RuntimeError("of the user's own"), KeyError("k"), RecursionError(), ValueError()],
    ids=repr,
)
def test_what_a_serializer_raises_on_read_is_the_outcome(error):
    with pytest.raises(SerializationError, match="'key-1' cannot be read") as caught:
        values(Does(decode=error)).decode(b"key-1", b"data", 0)
    assert caught.value.__cause__ is error
    assert "own" not in str(caught.value)


def test_an_error_that_is_ours_already_is_the_outcome_as_it_is():
    error = SerializationError("mine")
    with pytest.raises(SerializationError) as caught:
        values(Does(decode=error)).decode(b"k", b"data", 0)
    assert caught.value is error


@pytest.mark.parametrize("value", [None, NotImplemented, object(), SerializationError("a value")])
def test_whatever_a_serializer_returns_is_the_value(value):
    class Returns(Does):
        def decode(self, key, data, flags):
            return value

    assert values(Returns()).decode(b"k", b"data", 0) is value


# -- sizes


def test_the_limit_on_a_value_counts_after_compression():
    small = values(over=100, size=1000)
    data, flags = small.encode(b"k", "a" * 100_000)
    assert (zlib.decompress(data), flags) == (b"a" * 100_000, 24)
    for value in (os.urandom(1001), os.urandom(5000)):
        with pytest.raises(ValueTooLarge, match="'key-1' has .* bytes; max_value_size is 1000"):
            small.encode(b"key-1", value)
    with pytest.raises(ValueTooLarge, match="1001 bytes"):
        small.encode(b"k", "a" * 1001, compress=False)
    assert small.encode(b"k", b"a" * 1000, compress=False) == (b"a" * 1000, 0)
    with pytest.raises(ValueTooLarge):
        values(size=1000).encode(b"k", 10**1000)


def test_a_value_that_grew_by_serializing_is_too_large():
    with pytest.raises(ValueTooLarge):
        values(Json(), size=1000).encode(b"k", "\u00e9" * 500)


# -- compression and serializers that are not ours


def test_a_serializer_of_ones_own_is_not_compressed_unless_it_is_asked_for():
    own = values(Json())
    data, flags = own.encode(b"k", "a" * 1000)
    assert (data, flags) == (b'"' + b"a" * 1000 + b'"', 1 << 16)
    # and 8 may be a flag of its own
    assert values(Does(decode="mine")).decode(b"k", b"no zlib", 8) == "mine"


def test_a_serializer_of_ones_own_is_compressed_if_it_is_asked_for():
    own = values(Json(), over=100)
    data, flags = own.encode(b"k", ["a" * 1000])
    assert flags == 1 << 16 | 8
    assert json.loads(zlib.decompress(data)) == ["a" * 1000]
    assert own.decode(b"k", data, flags) == ["a" * 1000]
    assert own.encode(b"k", ["a"]) == (b'["a"]', 1 << 16)
    assert own.decode(b"k", b'["a"]', 1 << 16) == ["a"]


def test_the_serializer_is_given_what_it_wrote():
    given = []

    class Notes(Json):
        def decode(self, key, data, flags):
            given.append((key, data, flags))
            return super().decode(key, data, flags)

    own = values(Notes(), over=10)
    assert own.decode(b"k", *own.encode(b"k", "a" * 100)) == "a" * 100
    assert given == [(b"k", b'"' + b"a" * 100 + b'"', 1 << 16)]


@pytest.mark.parametrize("data", [b"short", b"long " * 1000])
def test_a_flag_that_would_be_read_as_compressed_is_refused_on_write(data):
    """With ``compress_over`` 8 is ours: what is written with it could not be read again."""
    with pytest.raises(NotSerializable, match="flags"):
        values(Does((data, 8)), over=100).encode(b"k", 1)


def test_a_subclass_of_plain_reads_what_is_compressed():
    class Mine(Plain):
        pass

    assert values(Mine()).decode(b"k", zlib.compress(b"text"), 24) == "text"


# -- through the client


class Counted(Json):
    """Raises on every other read."""

    reads = 0

    def decode(self, key, data, flags):
        self.reads += 1
        if data == b'"bad"':
            raise RuntimeError("bad")
        return super().decode(key, data, flags)


@pytest.mark.gen_test
async def test_a_value_that_cannot_be_read_disturbs_no_other(memcached):
    async with Client([memcached.address], serializer=Counted()) as client:
        await client.set_multi({"a": "good", "b": "bad", "c": {"x": [1]}})
        calls = [client.get(key) for key in "abcab"]
        done = await asyncio.gather(*calls, return_exceptions=True)
        assert [done[0], done[2], done[3]] == ["good", {"x": [1]}, "good"]
        assert {type(done[1]), type(done[4])} == {SerializationError}
        assert isinstance(done[1].__cause__, RuntimeError)
        with pytest.raises(SerializationError):
            await client.gets("b")
        result = await client.get_multi(["a", "b", "c"])
        assert result == {"a": "good", "c": {"x": [1]}}
        assert list(result.errors) == [memcached.address]
        # the connection was not at fault
        assert client._pools[0].counts()["open"] == 1


@pytest.mark.gen_test
async def test_nothing_is_sent_for_a_value_that_is_refused(silent):
    for serializer in (Does(RuntimeError()), Does(None), Does((b"x" * 2000, 0))):
        async with Client([silent.address], serializer=serializer, max_value_size=1000) as client:
            for call in (client.set, client.add, client.replace, client.append, client.prepend):
                with pytest.raises(InvalidRequest):
                    call("k", "v")
            with pytest.raises(InvalidRequest):
                client.cas("k", "v", 1)
            with pytest.raises(InvalidRequest):
                client.set_multi({"k": "v"})
    assert await silent.untouched()


@pytest.mark.gen_test
async def test_raw_flags_skip_the_reading(memcached):
    class Raw(Does):
        raw_flags = 5

    async with Client([memcached.address], serializer=Raw((b"data", 5), "decoded")) as client:
        await client.set("k", 1)
        assert await client.get("k") == b"data"
        await client.request(Request(b"set", (b"j",), b"data", 6))
        assert await client.get("j") == "decoded"


@pytest.mark.parametrize("nonsense", [7, "pickle", object(), b"", False])
def test_a_serializer_that_is_none_is_refused_when_the_client_is_made(nonsense):
    with pytest.raises((TypeError, InvalidRequest), match="serializer"):
        Client(["a"], serializer=nonsense)
