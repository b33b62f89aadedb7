"""Values both ways with python-memcached, and with those who share its flags."""

from __future__ import annotations

import asyncio
import collections
import contextlib
import io
import pickle
import zlib
from typing import Any

import memcache as theirs
import pylibmc
import pymemcache
import pymemcache.serde
import pytest

from tornado_memcache import SerializationError
from tornado_memcache import memcache as ours
from tornado_memcache.memcache_values import (
    UNREAD_TOLD,
    PythonMemcachedValues,
    cause_of,
    no_pickle,
)

LOG = "tornado_memcache"


class Number(int):
    """A subclass comes back as what it was."""


class Text(str):
    pass


Pair = collections.namedtuple("Pair", "left right")

#: name: the value, and the flags it is stored with.
VALUES: dict[str, tuple[Any, int]] = {
    "bytes": (b"\x00\r\nEND\r\n\xff", 0),
    "no bytes": (b"", 0),
    "str": ("grün \N{SNOWMAN}", 16),
    "no str": ("", 16),
    "int": (42, 2),
    "negative": (-7, 2),
    "huge int": (1 << 200, 2),
    "true": (True, 1),
    "none": (None, 1),
    "float": (1.5, 1),
    "dict": ({"a": [1, (2, b"3")], None: {4}}, 1),
    "int subclass": (Number(5), 1),
    "str subclass": (Text("five"), 1),
    "tuple subclass": (Pair(1, "2"), 1),
    "long bytes": (b"b" * 5000, 0),
    "long str": ("s" * 5000, 16),
    "long list": (list(range(2000)), 1),
    "long int": (10**2000, 2),
}

#: Those that are over 100 bytes and become smaller.
COMPRESSED = {"dict", "str subclass", "tuple subclass", "long bytes", "long str", "long list"}


def same(got: Any, value: Any) -> bool:
    return got == value and type(got) is type(value)


def values(**changed: Any) -> PythonMemcachedValues:
    given = {
        "protocol": 0,
        "pickler": pickle.Pickler,
        "unpickler": pickle.Unpickler,
        "compressor": zlib.compress,
        "decompressor": zlib.decompress,
    }
    return PythonMemcachedValues(**{**given, **changed})


@contextlib.contextmanager
def both(address: str, **settings: Any) -> Any:
    mc, other = ours.Client([address], **settings), theirs.Client([address], **settings)
    try:
        yield mc, other
    finally:
        mc.close()
        other.disconnect_all()


@pytest.mark.parametrize("least", [0, 100])
@pytest.mark.parametrize("name", VALUES)
@pytest.mark.gen_test
async def test_a_value_both_ways(name, least, memcached):
    value, flags = VALUES[name]
    with both(memcached.address) as (mc, other):
        assert await mc.set("ours", value, min_compress_len=least) is True
        assert other.set("theirs", value, min_compress_len=least) is True
        stored = [memcached.ask(b"get %b\r\n" % key, b"END\r\n") for key in (b"ours", b"theirs")]
        lines = [one.partition(b"\r\n") for one in stored]
        assert lines[0][0].split()[2:] == lines[1][0].split()[2:]
        compressed = 8 if least and name in COMPRESSED else 0
        assert lines[0][2] == lines[1][2]
        assert int(lines[0][0].split()[2]) == flags + compressed
        assert same(other.get("ours"), value)
        assert same(await mc.get("theirs"), value)
        assert same(await mc.gets("theirs"), value)
        assert same((await mc.get_multi(["theirs"]))["theirs"], value)
        assert await mc.set_multi({"many": value}, min_compress_len=least) == []
        assert same(other.get("many"), value)
        assert (
            memcached.ask(b"get many\r\n", b"END\r\n").split(b"\r\n")[1:]
            == (stored[0].split(b"\r\n")[1:])
        )


@pytest.mark.gen_test
async def test_pymemcache_and_pylibmc_read_and_write_the_same(memcached):
    pickled = pymemcache.Client(
        memcached.address, serde=pymemcache.serde.pickle_serde, default_noreply=False
    )
    libmc = pylibmc.Client([memcached.address], binary=False)
    with both(memcached.address) as (mc, _):
        for name, (value, _) in VALUES.items():
            assert await mc.set("k", value) is True
            assert same(pickled.get("k"), value), name
            assert same(libmc.get("k"), value), name
            pickled.set("k", value)
            assert same(await mc.get("k"), value), name
            libmc.set("k", value, min_compress_len=100)
            assert await mc.get("k") == value, name
    pickled.close()
    libmc.disconnect_all()


@pytest.mark.gen_test
async def test_append_and_prepend_never_compress(memcached):
    with both(memcached.address) as (mc, _):
        await mc.set("k", b"middle")
        assert await mc.append("k", b"e" * 500, min_compress_len=10) is True
        assert await mc.prepend("k", b"b" * 500, min_compress_len=10) is True
        assert await mc.get("k") == b"b" * 500 + b"middle" + b"e" * 500


def test_compressed_only_if_it_pays():
    store = values().store
    assert store(b"x" * 100, 100) == (b"x" * 100, 0)
    assert store(b"x" * 101, 100) == (zlib.compress(b"x" * 101), 8)
    noise = bytes(range(256))
    assert store(noise, 100) == (noise, 0)
    assert store("x" * 101, 1)[1] == 24 and store([0] * 101, 1)[1] == 9
    assert store(10**500, 1) == (str(10**500).encode(), 2)
    assert values(compressor=lambda data: b"c").store(b"xyz", 1) == (b"c", 8)


@pytest.mark.parametrize("flags", [3, 17, 32, 64, 1 << 31])
def test_unknown_flags(flags):
    with pytest.raises(ValueError, match=f"^Unknown flags on get: {flags:x}$"):
        values().decode(b"k", b"data", flags)
    with pytest.raises(ValueError, match=f"^Unknown flags on get: {flags:x}$"):
        values().decode(b"k", zlib.compress(b"data"), flags | 8)


def test_pylibmcs_longs_are_ints():
    assert values().decode(b"k", b"12", 4) == 12


@pytest.mark.gen_test
async def test_a_broken_pickle_is_none_and_one_log_line_however_often_it_is_read(
    memcached, expect_log
):
    log = expect_log(LOG, "value of key 'k' cannot be unpickled", times=1)
    memcached.ask(b"set k 1 0 6\r\nbroken\r\n")
    with both(memcached.address) as (mc, other):
        assert other.get("k", "d") is None and await mc.get("k", "d") is None
        assert other.get_multi(["k"]) == await mc.get_multi(["k"]) == {"k": None}
        got = asyncio.get_running_loop().create_future()
        mc.get("k", callback=got.set_result)
        assert await got is None
    assert log.count == 1


def test_no_more_than_some_keys_are_told_whose_pickles_are_broken(expect_log):
    log = expect_log(LOG, "cannot be unpickled", times=UNREAD_TOLD)
    broken = values()
    for number in range(UNREAD_TOLD + 50):
        assert broken.decode(b"k%d" % number, b"broken", 1) is None
    assert log.count == UNREAD_TOLD


@pytest.mark.gen_test
async def test_no_pickle_refuses(memcached, expect_log):
    expect_log(LOG, "pickles are refused", times=1)
    with both(memcached.address) as (_, other):
        other.set("k", {"a": 1})
        other.set("plain", "text")
    mc = ours.Client([memcached.address], unpickler=ours.no_pickle)
    assert await mc.get("k") is None and await mc.get("plain") == "text"
    mc.close()
    assert ours.no_pickle is no_pickle
    with pytest.raises(pickle.UnpicklingError):
        no_pickle(None)


class Upper(pickle.Pickler):
    def __init__(self, file: Any, protocol: int) -> None:
        super().__init__(file, protocol)
        file.write(b"")


def by_position(file: Any, number: int) -> Any:
    return pickle.Pickler(file, number)


class Careful(pickle.Unpickler):
    def find_class(self, module: str, name: str) -> Any:
        raise pickle.UnpicklingError(f"{module}.{name}")


@pytest.mark.gen_test
async def test_the_users_pickler_and_unpickler(memcached, expect_log):
    expect_log(LOG, "cannot be unpickled: copy_reg._reconstructor", times=1)
    for pickler in (Upper, by_position):
        with both(memcached.address, pickler=pickler, pickleProtocol=2) as (mc, other):
            assert await mc.set("k", [1]) is True and other.set("t", [1])
            answers = [memcached.ask(b"get %b\r\n" % key, b"END\r\n") for key in (b"k", b"t")]
            assert answers[0][7:] == answers[1][7:] and b"\x80\x02" in answers[0]
    with both(memcached.address, unpickler=Careful) as (mc, _):
        assert await mc.set_multi({"k": Number(1), "list": [1]}) == []
        assert await mc.get("k") is None and await mc.get("list") == [1]


@pytest.mark.gen_test
async def test_persistent_ids(memcached):
    things = {"lamp": Number(1)}

    def pid(thing: Any) -> Any:
        return next((name for name, one in things.items() if one is thing), None)

    with both(memcached.address, pid=pid, pload=things.__getitem__) as (mc, other):
        assert await mc.set("k", [things["lamp"]]) is True
        assert (await mc.get("k"))[0] is things["lamp"]
        assert b"lamp" in memcached.ask(b"get k\r\n", b"END\r\n")
        if a_pickler_takes_a_hook():
            assert other.get("k")[0] is things["lamp"]
            other.set("t", [things["lamp"]])
            assert (await mc.get("t"))[0] is things["lamp"]


def a_pickler_takes_a_hook() -> bool:
    """False on Python 3.13.0, where python-memcached's ``pid`` and ``pload`` do not work."""
    try:
        pickle.Pickler(io.BytesIO()).persistent_id = None  # type: ignore[method-assign]
    except AttributeError:
        return False
    except TypeError:
        pass  # (it is to be callable)
    return True


@pytest.mark.gen_test
async def test_a_compressor_of_ones_own(memcached):
    import bz2

    bz = {"compressor": bz2.compress, "decompressor": bz2.decompress}
    with both(memcached.address, **bz) as (mc, other):
        assert await mc.set("k", "x" * 1000, min_compress_len=10) is True
        assert other.get("k") == "x" * 1000 == await mc.get("k")


@pytest.mark.gen_test
async def test_what_is_not_compressed_or_grows_too_much_is_the_default(memcached):
    """python-memcached raises zlib.error, and has no limit."""
    bomb = zlib.compress(b"x" * (8 * 1024 * 1024 + 1))
    memcached.ask(b"set bomb 8 0 %d\r\n%b\r\n" % (len(bomb), bomb))
    memcached.ask(b"set broken 8 0 6\r\nbroken\r\n")
    with both(memcached.address) as (mc, other):
        with pytest.raises(zlib.error):
            other.get("broken")
        assert await mc.get("broken", "d") == "d" == await mc.get("bomb", "d")
        assert await mc.get_multi(["broken", "bomb"]) == {}
        mc.decompressor = lambda data: zlib.decompress(data)
        assert len(await mc.get("bomb")) == 8 * 1024 * 1024 + 1


def test_the_cause_is_looked_for():
    error = SerializationError("k")
    assert cause_of(error) is error
    error.__cause__ = ValueError("inside")
    assert cause_of(error) is error.__cause__
    error.__cause__ = KeyError("inside")
    assert cause_of(error) is error
