"""The python-memcached face beside python-memcached itself, on the same servers.

`ROWS` spells the outcome of every method. python-memcached must give the
same, unless the row lists what it gives and why that is not copied.
"""

from __future__ import annotations

import asyncio
import contextlib
import inspect
import pickle
import time
import zlib
from collections.abc import Callable, Iterator
from datetime import timedelta
from typing import Any, NamedTuple

import memcache as theirs
import pytest

from tornado_memcache import (
    CasUnique,
    Client,
    ConnectionFailed,
    InvalidKey,
    MemcacheError,
    boundary,
)
from tornado_memcache import memcache as ours
from tornado_memcache.ring import Modulo

from .memcacheds import free_port

LOG = "tornado_memcache"
SHORT = 0.1  # seconds that a stopped server gets
BIG = b"x" * (1024 * 1024 + 1)

DEFAULT = "a failure is no reason to forget the caller's default"
TRACE = "a stalled server must not come out of a method that leaves dead servers out"
UNSENT = "it returns 1 though it could ask nobody"
NOT_STORED = "what could not be sent was not stored, noreply or not"
STALLED = "a stalled server has stored nothing"
PYTHON_3 = "it fails on Python 3"


#: python-memcached leaves the socket of a failed connect to the garbage collector.
UNCLOSED = pytest.mark.filterwarnings("ignore:unclosed <socket:ResourceWarning")


class Row(NamedTuple):
    """One call: its outcomes, and those of python-memcached where they are not ours."""

    call: Callable[..., Any]
    hit: Any
    miss: Any
    failed: Any
    differs: dict[str, tuple[Any, str]] = {}
    #: With noreply a request to a stopped server has been written.
    stopped: Any = ...
    #: False for what asks no server.
    asks: bool = True

    def expected(self, scene: str) -> Any:
        if scene == "stopped" and self.stopped is not ...:
            return self.stopped
        return {"hit": self.hit, "miss": self.miss}.get(scene, self.failed)


def local(call: Callable[..., Any]) -> Row:
    return Row(call, None, None, None, asks=False)


#: k holds 20 on a hit.
ROWS = {
    "get_slabs": Row(
        lambda mc, **how: mc.get_slabs(**how),
        ["stats"],
        ["stats"],
        [],
        {
            "hit": ("TypeError", PYTHON_3),
            "miss": ("TypeError", PYTHON_3),
            "stopped": ("TimeoutError", TRACE),
        },
    ),
    "get": Row(lambda mc, **how: mc.get("k", **how), 20, None, None),
    "get, default": Row(
        lambda mc, **how: mc.get("k", "d", **how),
        20,
        "d",
        "d",
        {"closed": (None, DEFAULT), "stopped": (None, DEFAULT)},
    ),
    "gets": Row(lambda mc, **how: mc.gets("k", **how), 20, None, None),
    "get_multi": Row(lambda mc, **how: mc.get_multi(["k", "m"], **how), {"k": 20}, {}, {}),
    "set": Row(lambda mc, **how: mc.set("k", "new", **how), True, True, 0),
    "add": Row(lambda mc, **how: mc.add("k", "new", **how), False, True, 0),
    "replace": Row(lambda mc, **how: mc.replace("k", "new", **how), True, False, 0),
    "append": Row(lambda mc, **how: mc.append("k", "new", **how), True, False, 0),
    "prepend": Row(lambda mc, **how: mc.prepend("k", "new", **how), True, False, 0),
    "cas": Row(lambda mc, **how: mc.cas("k", "new", **how), True, False, 0),
    "set, too large": Row(lambda mc, **how: mc.set("k", BIG, **how), 0, 0, 0, asks=False),
    "set, noreply": Row(
        lambda mc, **how: mc.set("k", "new", noreply=True, **how), True, True, 0, stopped=True
    ),
    "add, noreply": Row(
        lambda mc, **how: mc.add("k", "new", noreply=True, **how), True, True, 0, stopped=True
    ),
    "cas, noreply": Row(
        lambda mc, **how: mc.cas("k", "new", noreply=True, **how), True, True, 0, stopped=True
    ),
    "set_multi": Row(
        lambda mc, **how: mc.set_multi({"k": 1, "m": 2}, **how),
        [],
        [],
        ["k", "m"],
        {"stopped": ([], STALLED)},
    ),
    "set_multi, noreply": Row(
        lambda mc, **how: mc.set_multi({"k": 1, "m": 2}, noreply=True, **how),
        [],
        [],
        ["k", "m"],
        {"closed": ([], NOT_STORED)},
        stopped=[],
    ),
    "set_multi of nothing": Row(lambda mc, **how: mc.set_multi({}, **how), [], [], [], asks=False),
    "delete": Row(lambda mc, **how: mc.delete("k", **how), 1, 0, 0),
    "delete, noreply": Row(
        lambda mc, **how: mc.delete("k", noreply=True, **how), 1, 1, 0, stopped=1
    ),
    "delete_multi": Row(
        lambda mc, **how: mc.delete_multi(["k", "m"], **how), 1, 1, 0, {"closed": (1, UNSENT)}
    ),
    "delete_multi, noreply": Row(
        lambda mc, **how: mc.delete_multi(["k", "m"], noreply=True, **how),
        1,
        1,
        0,
        {"closed": (1, UNSENT)},
        stopped=1,
    ),
    "touch": Row(lambda mc, **how: mc.touch("k", 60, **how), 1, 0, 0),
    "touch, noreply": Row(
        lambda mc, **how: mc.touch("k", 60, noreply=True, **how), 1, 1, 0, stopped=1
    ),
    "incr": Row(lambda mc, **how: mc.incr("k", **how), 21, None, None),
    "incr, delta": Row(lambda mc, **how: mc.incr("k", 5, **how), 25, None, None),
    "incr, noreply": Row(lambda mc, **how: mc.incr("k", noreply=True, **how), *[None] * 3),
    "decr": Row(lambda mc, **how: mc.decr("k", **how), 19, None, None),
    "decr, below 0": Row(lambda mc, **how: mc.decr("k", 50, **how), 0, None, None),
    "get_stats": Row(
        lambda mc, **how: mc.get_stats(**how),
        ["stats"],
        ["stats"],
        [],
        {"stopped": ("TimeoutError", TRACE)},
    ),
    "get_slab_stats": Row(
        lambda mc, **how: mc.get_slab_stats(**how),
        ["stats"],
        ["stats"],
        [],
        {"stopped": ("TimeoutError", TRACE)},
    ),
    "flush_all": Row(
        lambda mc, **how: mc.flush_all(**how),
        *[None] * 3,
        {"stopped": ("TimeoutError", TRACE)},
    ),
    "quit_all": Row(lambda mc, **how: mc.quit_all(**how), *[None] * 3, asks=False),
    "disconnect_all": local(lambda mc: mc.disconnect_all()),
    "forget_dead_hosts": local(lambda mc: mc.forget_dead_hosts()),
    "reset_cas": local(lambda mc: mc.reset_cas()),
    "debuglog": local(lambda mc: mc.debuglog("a line")),
    "check_key": local(lambda mc: mc.check_key(b"k")),
    "set_servers": local(lambda mc: mc.set_servers(["127.0.0.1:1"])),
}
STYLED = [name for name, row in ROWS.items() if "how" in str(inspect.signature(row.call))]
ASKING = [name for name in STYLED if ROWS[name].asks]
#: Outcomes that come as soon as a request is written.
WRITTEN = {name for name in ROWS if "noreply" in name}


@contextlib.contextmanager
def made(kind: Any, *servers: Any, **settings: Any) -> Iterator[Any]:
    """Gives a client of python-memcached or of ours, and closes it."""
    mc = kind(list(servers), **settings)
    try:
        yield mc
    finally:
        mc.close() if kind is ours.Client else mc.disconnect_all()


def shaped(outcome: Any) -> Any:
    if isinstance(outcome, list) and outcome and isinstance(outcome[0], tuple):
        return ["stats" for _ in outcome]
    return outcome


def blocking(row: Row, mc: Any) -> Any:
    try:
        return shaped(row.call(mc))
    except Exception as error:
        return type(error).__name__


async def awaited(row: Row, mc: Any) -> Any:
    given = row.call(mc)
    return shaped(await given if asyncio.isfuture(given) else given)


async def called_back(row: Row, mc: Any) -> Any:
    came: asyncio.Future[Any] = asyncio.get_running_loop().create_future()
    assert row.call(mc, callback=came.set_result) is None
    return shaped(await came)


def prepare(scene: str, server: Any) -> int:
    """Brings the server into a scene; returns k's cas unique."""
    if scene not in ("hit", "miss"):
        return 5
    for key in (b"k", b"m"):
        server.ask(b"delete %b\r\n" % key)
    if scene == "miss":
        return 5
    server.ask(b"set k 2 0 2\r\n20\r\n")
    return int(server.ask(b"gets k\r\n", b"END\r\n").split()[4])


def like(outcome: Any, expected: Any) -> bool:
    return outcome == expected and type(outcome) is type(expected)


@UNCLOSED
@pytest.mark.parametrize("scene", ["hit", "miss", "closed", "stopped"])
@pytest.mark.gen_test(timeout=30)
async def test_every_method_gives_what_python_memcached_gives(scene, start_memcached, expect_log):
    server = start_memcached()
    if scene == "closed":
        server.kill()
    elif scene == "stopped":
        server.stop()
    if scene in ("closed", "stopped"):
        expect_log(LOG, "memcached 127.0.0.1:")
    how = {"socket_timeout": SHORT} if scene == "stopped" else {}
    faults = []

    async def try_ours(name: str) -> None:
        row = ROWS[name]
        for style in [awaited, called_back] if name in STYLED else [awaited]:
            unique = prepare(scene, server)
            with made(ours.Client, server.address, **how) as mc:
                mc.cas_ids[b"k"] = unique
                outcome = await style(row, mc)
                if not like(outcome, row.expected(scene)):
                    faults.append(f"{name}, {style.__name__}: {outcome!r}")

    for name, row in ROWS.items():
        unique = prepare(scene, server)
        with made(theirs.Client, server.address, **how) as mc:
            mc.cas_ids[b"k"] = unique
            outcome = blocking(row, mc)
        expected = row.expected(scene)
        if scene in row.differs:
            listed, reason = row.differs[scene]
            assert reason and not like(listed, expected)
            expected = listed
        if not like(outcome, expected):
            faults.append(f"python-memcached's {name}: {outcome!r}")
        if scene != "stopped":
            await try_ours(name)
    if scene == "stopped":
        await asyncio.gather(*map(try_ours, ROWS))
    assert not faults, "\n".join(faults)


def public(client: Any) -> set[str]:
    return {name for name in dir(client) if not name.startswith("_") and name != "Memcached"}


def test_every_method_is_in_the_table():
    methods = {
        name for name in public(theirs.Client) if not inspect.isclass(getattr(theirs.Client, name))
    }
    assert {name.partition(",")[0].partition(" ")[0] for name in ROWS} == methods
    assert public(ours.Client) - public(theirs.Client("")) == {"close"}
    for name in methods:
        signature = list(inspect.signature(getattr(theirs.Client, name)).parameters.values())
        mine = list(inspect.signature(getattr(ours.Client, name)).parameters.values())
        given = [one for one in mine if one.kind is not one.VAR_KEYWORD]
        assert [(one.name, one.default) for one in given] == [
            (one.name, one.default) for one in signature
        ], name


# -- the module and the constructor


def test_the_module_has_python_memcacheds_names():
    for name in (
        "SERVER_MAX_KEY_LENGTH",
        "SERVER_MAX_VALUE_LENGTH",
        "_DEAD_RETRY",
        "_SOCKET_TIMEOUT",
    ):
        assert getattr(ours, name) == getattr(theirs, name)
    for name in vars(theirs.Client):
        if name.startswith("_FLAG") or name == "_SERVER_RETRIES":
            assert getattr(ours.Client, name) == getattr(theirs.Client, name)
        if name.startswith("Memcached"):
            mine, other = getattr(ours.Client, name), getattr(theirs.Client, name)
            assert mine.__mro__[1].__name__ == other.__mro__[1].__name__
    for key in (b"foo", b"bar", b"a", b"ob"):
        assert ours.cmemcache_hash(key) == theirs.cmemcache_hash(key)
    assert ours.serverHashFunction is ours.cmemcache_hash
    hashes = [ours.cmemcache_hash(key) for key in (b"foo", b"bar", b"a", b"ob")]
    assert hashes == [3187, 30463, 26807, 0]


def test_the_old_hash_function_is_global(monkeypatch):
    monkeypatch.setattr(ours, "serverHashFunction", ours.serverHashFunction)
    ours.useOldServerHashFunction()
    assert ours.serverHashFunction(b"foo") == zlib.crc32(b"foo")
    with made(ours.Client, ("a", 2), "b", "c") as mc:
        place = mc._native._cluster._ring.place
        assert [place(b"key%d" % n) for n in range(50)] == [
            (0, 0, 1, 2)[zlib.crc32(b"key%d" % n) % 4] for n in range(50)
        ]


def test_the_constructor_takes_and_keeps_the_same():
    given = inspect.signature(theirs.Client.__init__).parameters
    mine = inspect.signature(ours.Client.__init__).parameters
    assert [(one.name, one.default) for one in given.values()] == [
        (one.name, one.default) for one in mine.values() if one.kind is not one.VAR_KEYWORD
    ]
    with made(ours.Client, ("a:1", 2), "b") as mc, made(theirs.Client, ("a:1", 2), "b") as other:
        for name in public(other) - {"servers", "buckets", "key_encoder", "picklerIsKeyword"}:
            if not callable(getattr(other, name)) or name in ("pickler", "unpickler"):
                assert getattr(mc, name) == getattr(other, name), name
        assert mc.compressor is zlib.compress and mc.decompressor is zlib.decompress
        assert [server.weight for server in mc.buckets] == [2, 2, 1]
        assert [server.name for server in mc.servers] == ["a:1", "b:11211"]


def test_lengths_of_none_are_the_modules_at_construction(monkeypatch):
    monkeypatch.setattr(ours, "SERVER_MAX_KEY_LENGTH", 7)
    monkeypatch.setattr(ours, "SERVER_MAX_VALUE_LENGTH", 9)
    with made(ours.Client, "a") as mc:
        assert (mc.server_max_key_length, mc.server_max_value_length) == (7, 9)
    with made(ours.Client, "a", server_max_key_length=0, server_max_value_length=0) as mc:
        assert (mc.server_max_key_length, mc.server_max_value_length) == (0, 0)


def test_native_settings_are_taken_as_keywords():
    with made(ours.Client, "a", socket_timeout=2) as mc:
        settings = mc._native._settings
        assert (settings.connect_timeout, settings.request_timeout) == (2, 2)
    with made(ours.Client, "a", connect_timeout=0.1, request_timeout=0.2, max_connections=9) as mc:
        assert mc._native._settings[:3] == (0.1, 0.2, 9)
    for name in ("key_prefix", "serializer", "compress_over", "max_decompressed_size"):
        with pytest.raises(TypeError, match=name):
            ours.Client(["a"], **{name: 1})
    with pytest.raises(TypeError, match="nonsense"):
        ours.Client(["a"], nonsense=1)


SPECS = ["h", "h:1", "inet:h", "inet:h:1", "inet6:[::1]", "inet6:[::1]:1", "unix:/p", ("h:1", 3)]
BROKEN = ["[::1]:1", "h:abc", "h:", ":11211", "", "inet6:::1", "a:b:c"]


@pytest.mark.parametrize("spec", SPECS)
def test_a_connection_string_means_the_same(spec):
    with made(ours.Client, spec) as mc, made(theirs.Client, spec) as other:
        (server,), (host,) = mc.servers, other.servers
        address = server.path or (server.host, server.port)
        assert (address, server.weight) == (host.address, host.weight)


@pytest.mark.parametrize("spec", BROKEN)
def test_a_connection_string_that_does_not_parse(spec):
    for kind in (ours.Client, theirs.Client):
        with pytest.raises(ValueError) as caught:
            kind([spec])
        assert str(caught.value) == f'Unable to parse connection string: "{spec}"'
    with made(ours.Client, "h") as mc:
        with pytest.raises(ValueError, match="Unable to parse"):
            mc.set_servers(["ok", spec])
        assert [server.name for server in mc.servers] == ["h:11211"]


@pytest.mark.parametrize("servers", [[], ["a", "a:11211"], ["a:0"], ["unix:"], [("a", 0)]])
def test_server_lists_that_python_memcached_takes_and_cannot_use(servers):
    theirs.Client(servers)
    with pytest.raises(ValueError):
        ours.Client(servers)


# -- keys


KEYS = [None, 7, 1.5, "x" * 251, b"x" * 251, "", b"", "a b", "a\n", b"\x7f", "\ud800"]
SINGLE = ["get", "gets", "set", "add", "replace", "append", "prepend", "cas", "delete", "touch"]
SINGLE += ["incr", "decr"]


def fault(call: Callable[..., Any], *arguments: Any, **how: Any) -> str:
    try:
        call(*arguments, **how)
    except Exception as error:
        return type(error).__name__
    return "taken"


@UNCLOSED
@pytest.mark.parametrize("method", SINGLE)
@pytest.mark.gen_test
async def test_a_wrong_key_raises_the_same_before_any_byte_leaves(method, silent):
    value = ["v"] if method in ("set", "add", "replace", "append", "prepend", "cas") else []
    differs = {"a\n": "MemcachedKeyCharacterError"}  # taken there
    differs["\ud800"] = "MemcachedStringEncodingError"
    with made(ours.Client, silent.address) as mc, made(theirs.Client, "127.0.0.1:1") as other:
        for key in KEYS:
            mine = fault(getattr(mc, method), key, *value)
            expected = fault(getattr(other, method), key, *value)
            assert mine == differs.get(key, expected), key
            for style in ({"callback": print}, {"fail_callback": print}):
                assert fault(getattr(mc, method), key, *value, **style) == mine
        assert await silent.untouched()


@UNCLOSED
@pytest.mark.gen_test
async def test_a_wrong_key_in_many_raises_too(silent):
    with made(ours.Client, silent.address) as mc, made(theirs.Client, "127.0.0.1:1") as other:
        for key, expected in [
            (None, "MemcachedKeyNoneError"),
            ("x" * 251, "MemcachedKeyLengthError"),
            ("a b", "MemcachedKeyCharacterError"),
            ("", "MemcachedKeyCharacterError"),
        ]:
            for client in (mc, other):
                assert fault(client.get_multi, ["ok", key]) == expected
                assert fault(client.delete_multi, ["ok", key]) == expected
                assert fault(client.set_multi, {"ok": 1, key: 1}) == expected
        for client in (mc, other):
            prefixed = fault(client.get_multi, ["x" * 240], key_prefix="p" * 11)
            assert prefixed == "MemcachedKeyLengthError"
            assert fault(client.get_multi, ["x"], "p p") == "MemcachedKeyCharacterError"
        assert await silent.untouched()


def test_the_checks_and_their_order():
    with made(ours.Client, "a", server_max_key_length=3) as mc:
        other = theirs.Client(["a"], server_max_key_length=3)
        for key in (None, "k", 5, b"a b c", b"a b", b"abc", b"", (1, b"abcd"), (1, b"ok")):
            assert fault(mc.check_key, key) == fault(other.check_key, key), key
        with pytest.raises(ours.Client.MemcachedKeyLengthError, match="> 3"):
            mc.check_key(b"ab", key_extra_len=2)
        mc.server_max_key_length = 0
        assert mc.check_key(b"x" * 500) is None


@pytest.mark.gen_test
async def test_switching_the_checks_off_switches_off_this_faces_only(silent):
    with made(ours.Client, silent.address, check_keys=False, server_max_key_length=0) as mc:
        for key in ("a b", "x" * 251, "", "k 0 0 1\r\nflush_all\r\n"):
            with pytest.raises(InvalidKey):
                mc.set(key, "flush_all")
            with pytest.raises(InvalidKey):
                mc.get(key)
        assert await silent.untouched()


@pytest.mark.gen_test
async def test_the_key_encoder_is_called_once_for_each_key(memcached):
    seen = []

    def encoder(key: Any) -> str:
        seen.append(key)
        return f"e-{key}"

    with made(ours.Client, memcached.address, key_encoder=encoder, cache_cas=True) as mc:
        assert await mc.set_multi({"a": 1, "b": 2}, key_prefix="p-") == []
        assert await mc.get_multi(["a", "b"], key_prefix="p-") == {"a": 1, "b": 2}
        assert await mc.delete_multi(["a"], key_prefix="p-") == 1
        assert await mc.set("c", 3) is True and await mc.gets("c") == 3
        assert await mc.cas("c", 4) is True and await mc.incr("c") == 5
        assert seen == ["a", "b", "a", "b", "a", "c", "c", "c", "c"]
    assert b"VALUE p-e-b" in memcached.ask(b"get p-e-b\r\n", b"END\r\n")
    assert b"VALUE e-c" in memcached.ask(b"get e-c\r\n", b"END\r\n")


@pytest.mark.gen_test
async def test_the_multi_methods_take_ints_prefixes_and_the_callers_own_keys(memcached):
    with made(theirs.Client, memcached.address) as other:
        assert other.set_multi({1: "one", "2": "two"}, key_prefix="n:") == []
    with made(ours.Client, memcached.address) as mc:
        assert await mc.get_multi([1, "2", 3], key_prefix="n:") == {1: "one", "2": "two"}
        assert await mc.set_multi({4: "four", (9, "5"): "five"}, key_prefix=b"n:") == []
        assert await mc.get_multi([4, (9, "5")], "n:") == {4: "four", (9, "5"): "five"}
        assert await mc.get("n:5") == "five"
        assert await mc.get_multi(iter(["n:4", b"n:4"])) == {b"n:4": "four"}
        assert await mc.delete_multi([4, 5], key_prefix="n:") == 1
        assert await mc.get_multi([4, 5], key_prefix="n:") == {} == await mc.get_multi([])


@pytest.mark.gen_test
async def test_a_tuple_chooses_the_server_as_there(start_memcached):
    servers = [start_memcached().address for _ in range(3)]
    with made(theirs.Client, *servers) as other, made(ours.Client, *servers) as mc:
        for number in range(6):
            assert other.set((number, "t"), number)
            assert await mc.get((number, "t")) == number % 3 + 3 * (number > 2)
            assert await mc.set((number, b"u"), number) is True
            assert other.get((number, b"u")) == number
        assert await mc.incr((1, "t")) == 5 and other.get((4, "t")) == 5
        names = {f"key{number}": number for number in range(100)}
        assert await mc.set_multi(names, key_prefix="p") == []
        assert other.get_multi(list(names), key_prefix="p") == names
        assert all(other.get(f"p{key}") == names[key] for key in names)


# -- values on their way


@pytest.mark.gen_test
async def test_a_value_that_is_too_large_is_0_and_nothing_is_sent(silent):
    with made(ours.Client, silent.address, server_max_value_length=5) as mc:
        assert await mc.set("k", b"123456") == 0
        assert await mc.set_multi({"a": b"123456"}) == ["a"]
        got: list[Any] = []
        mc.set("k", "123456", callback=got.append)
        assert await silent.untouched() and got == [0]
        assert mc.stats == {"set": 2, "set_multi": 1}


@pytest.mark.gen_test
async def test_one_value_that_is_too_large_stalls_nobody(memcached):
    with made(ours.Client, memcached.address) as mc:
        begun = time.monotonic()
        assert await mc.set_multi({"a": 1, "big": BIG, "b": 2}) == ["big"]
        assert time.monotonic() - begun < 0.5
        assert await mc.get_multi(["a", "big", "b"]) == {"a": 1, "b": 2}
        assert await mc.set("z", b"z" * 2_000_000, min_compress_len=1) is True
        assert await mc.get("z") == b"z" * 2_000_000


@pytest.mark.gen_test
async def test_a_value_that_the_server_refuses_is_false_as_there(start_memcached):
    server = start_memcached(["-I", "512k"])
    with made(theirs.Client, server.address) as other:
        assert other.set("k", b"x" * 600_000) is False
    with made(ours.Client, server.address) as mc:
        assert await mc.set("k", b"x" * 600_000) is False
        assert await mc.set_multi({"k": b"x" * 600_000, "a": 1}) == ["k"]
        assert await mc.get("a") == 1


@pytest.mark.gen_test
async def test_time_goes_to_the_server_as_it_is(memcached):
    with made(ours.Client, memcached.address) as mc:
        moment = int(time.time()) + 60
        for given in (60, 60.9, timedelta(minutes=1), moment):
            assert await mc.set("k", "v", time=given) is True
            assert await mc.get("k") == "v" and await mc.touch("k", given) == 1
        assert await mc.set("k", "v", time=int(time.time()) - 60) is True
        assert await mc.get("k") is None
        assert await mc.set_multi({"a": 1}, time=moment) == []
        line = memcached.ask(b"mg a t\r\n")
        assert 50 < int(line.split()[1][1:]) <= 61


@pytest.mark.gen_test
async def test_unknown_flags_are_a_value_error(memcached):
    memcached.ask(b"set k 64 0 1\r\nv\r\n")
    memcached.ask(b"set ok 16 0 1\r\nv\r\n")
    with made(theirs.Client, memcached.address) as other:
        with pytest.raises(ValueError, match="^Unknown flags on get: 40$"):
            other.get("k")
    with made(ours.Client, memcached.address, cache_cas=True) as mc:
        for call in (mc.get("k"), mc.gets("k"), mc.get_multi(["ok", "k"]), mc.get("k", "d")):
            with pytest.raises(ValueError, match="^Unknown flags on get: 40$"):
                await call
        for method, key in ((mc.get, "k"), (mc.get_multi, ["ok", "k"])):
            failed: asyncio.Future[Any] = asyncio.get_running_loop().create_future()
            method(key, callback=print, fail_callback=failed.set_result)
            assert str(await failed) == "Unknown flags on get: 40"
        assert await mc.get("ok") == "v" and not mc.cas_ids


@pytest.mark.gen_test
async def test_incr_on_text_is_a_value_error(memcached):
    memcached.ask(b"set k 16 0 1\r\nv\r\n")
    with (
        made(theirs.Client, memcached.address) as other,
        made(ours.Client, memcached.address) as mc,
    ):
        for client in (other, mc):
            with pytest.raises(ValueError):
                got = client.incr("k")
                await got
        with pytest.raises(ValueError, match="non-numeric"):
            await mc.decr("k")
        failed: asyncio.Future[Any] = asyncio.get_running_loop().create_future()
        mc.incr("k", fail_callback=failed.set_result)
        assert isinstance(await failed, ValueError)
        with pytest.raises(ValueError):
            mc.incr("k", -1)
        assert await mc.get("k") == "v"


@pytest.mark.gen_test
async def test_incr_on_a_connection_that_is_closed_is_none(expect_log):
    from .scripted import Close, Expect, Scripted

    expect_log(LOG, "fails")
    async with Scripted([Expect(b"incr k 1\r\n"), Close()]) as server:
        with made(ours.Client, server.address) as mc:
            assert await mc.incr("k") is None


# -- cas


@pytest.mark.gen_test
async def test_cas_takes_what_gets_has_fetched(memcached):
    with made(ours.Client, memcached.address, cache_cas=True) as mc:
        await mc.set("k", "old")
        with pytest.raises(ValueError, match="gets first, with cache_cas=True"):
            mc.cas("k", "new")
        assert await mc.gets("k") == "old" and type(mc.cas_ids[b"k"]) is CasUnique
        assert await mc.set("k", "meanwhile") is True
        assert await mc.cas("k", "new") is False
        assert await mc.gets((0, "k")) == "meanwhile" and await mc.cas((0, "k"), "new") is True
        assert await mc.get("k") == "new"
        assert await mc.gets("absent") is None and b"absent" not in mc.cas_ids
        assert mc.reset_cas() is None and mc.cas_ids == {}
        with pytest.raises(ValueError, match="gets first"):
            mc.cas("k", "new")
    with made(ours.Client, memcached.address) as mc:
        assert await mc.gets("k") == "new" and mc.cas_ids == {}


@pytest.mark.gen_test
async def test_a_cas_unique_from_before_a_restart_does_not_match(start_memcached):
    server = start_memcached()
    with made(ours.Client, server.address, cache_cas=True) as mc:
        await mc.set("k", "old")
        assert await mc.gets("k") == "old"
        server.restart()
        server.ask(b"set k 16 0 5\r\nother\r\n")
        await asyncio.sleep(0.02)
        assert await mc.cas("k", "new") is False
        assert await mc.get("k") == "other"


def test_delete_multi_refuses_a_time():
    with made(ours.Client, "a") as mc:
        with pytest.raises(ValueError, match="time"):
            mc.delete_multi(["a"], time=5)


# -- counts and stats


@pytest.mark.gen_test
async def test_calls_are_counted_as_there(memcached):
    with (
        made(theirs.Client, memcached.address) as other,
        made(ours.Client, memcached.address) as mc,
    ):
        for name, row in ROWS.items():
            if name not in ("get_slabs", "flush_all", "set_servers"):
                mc.cas_ids[b"k"] = other.cas_ids[b"k"] = 5
                row.call(other)
                await awaited(row, mc)
        assert mc.stats == other.stats


@pytest.mark.gen_test
async def test_stats_are_named_as_there(start_memcached):
    plain, path = start_memcached(), start_memcached(unix=True)
    six = start_memcached(host="::1")
    servers = [(plain.address, 2), path.address, f"inet6:[::1]:{six.port}"]
    with made(theirs.Client, *servers) as other, made(ours.Client, *servers) as mc:
        assert await mc.set_multi({f"k{n}": n for n in range(20)}) == []
        for name, arguments in [
            ("get_stats", ()),
            ("get_stats", ("settings",)),
            ("get_stats", ("items",)),
            ("get_slab_stats", ()),
        ]:
            mine = await getattr(mc, name)(*arguments)
            given = getattr(other, name)(*arguments)
            assert [one for one, _ in mine] == [one for one, _ in given]
            assert [stats.keys() for _, stats in mine] == [stats.keys() for _, stats in given]
        name, slabs = (await mc.get_slab_stats())[0]
        assert name == f"{plain.address} (2)" and slabs["1"]["chunk_size"] == "96"
        assert slabs["active_slabs"].isdigit()
        name, items = (await mc.get_slabs())[1]
        assert name == f"{path.address} (1)" and items["1"]["number"].isdigit()
        plain.kill()
        mc.disconnect_all()
        six.kill()


# -- failures


@pytest.mark.gen_test(timeout=20)
async def test_a_failure_goes_to_the_fail_callback_else_to_the_boundary(expect_log):
    expect_log(LOG, "127.0.0.1")
    address = f"127.0.0.1:{free_port()}"
    for name in ASKING:
        row, errors, results, caught = ROWS[name], [], [], []
        with made(ours.Client, address) as mc:
            mc.cas_ids[b"k"] = 5
            with boundary(caught.append):
                row.call(mc, callback=results.append, fail_callback=errors.append)
            await asyncio.sleep(0.02)
            assert (len(errors), results, caught) == (1, [], []), name
            assert isinstance(errors[0], MemcacheError)
            with boundary(caught.append):
                row.call(mc, callback=results.append)
            await asyncio.sleep(0.02)
            assert (len(errors), results, len(caught)) == (1, [], 1), name
            with boundary(caught.append):
                assert shaped(await row.call(mc)) == row.failed
            assert (len(errors), results, len(caught)) == (1, [], 1), name


@pytest.mark.gen_test
async def test_awaited_it_is_the_failures_value_when_a_boundary_cancels(silent, expect_log):
    caught: list[Any] = []
    with made(ours.Client, silent.address) as mc:
        mc.cas_ids[b"k"] = 5
        with boundary(caught.append, once=True) as entry:
            calls = {name: ROWS[name].call(mc) for name in ASKING if name not in WRITTEN}
            await asyncio.sleep(0.02)
            entry.cancel()
            for name, call in calls.items():
                assert await asyncio.wait_for(call, 1) == ROWS[name].failed, name
            assert await mc.get("k", "d") == "d"  # begun after the end
        assert caught == []


@pytest.mark.gen_test
async def test_the_first_failure_of_a_once_boundary_lets_the_awaited_ones_go(silent, expect_log):
    expect_log(LOG, "fails")
    caught: list[Any] = []
    with made(ours.Client, silent.address) as mc:
        with boundary(caught.append, once=True):
            call = mc.get("a", "d")
            mc.get("b", callback=print, timeout=0.05)
            assert await call == "d"
        assert len(caught) == 1


@pytest.mark.gen_test
async def test_cancelling_what_is_awaited_leaves_nothing_behind(silent):
    with made(ours.Client, silent.address) as mc:
        mc.cas_ids[b"k"] = 5
        for name in ASKING:
            if name in WRITTEN:
                continue
            call = ROWS[name].call(mc, timeout=2)
            task = asyncio.ensure_future(asyncio.wait_for(call, 5))
            await asyncio.sleep(0)
            task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await task
            assert call.cancelled()


@pytest.mark.gen_test
async def test_a_cancelled_call_gives_nobody_elses_value(memcached):
    with made(ours.Client, memcached.address) as mc:
        await mc.set_multi({"alice": "ALICE", "bob": "BOB"})
        for _ in range(20):
            call = mc.get("alice")
            await asyncio.sleep(0)
            call.cancel()
            assert await mc.get("bob") == "BOB"


@pytest.mark.gen_test
async def test_a_timeout_of_its_own(silent, expect_log):
    expect_log(LOG, "fails")
    with made(ours.Client, silent.address) as mc:
        begun = time.monotonic()
        assert await mc.get("k", "d", timeout=0.05) == "d"
        assert time.monotonic() - begun < 0.5
        with pytest.raises(TypeError, match="nonsense"):
            mc.get("k", nonsense=1)
        with pytest.raises(TypeError, match="callback"):
            mc.get("k", callback=5)


@pytest.mark.gen_test
async def test_a_server_error_on_get_counts_as_a_miss():
    from .scripted import Expect, Scripted, Send

    answers = [Expect(b"get k\r\n"), Send(b"SERVER_ERROR out of memory\r\n")]
    async with Scripted(answers) as server:
        with made(ours.Client, server.address) as mc:
            assert await mc.get("k", "d") == "d"


# -- dead servers


@pytest.mark.gen_test
async def test_an_outage_is_logged_once_and_over_at_once(start_memcached, expect_log):
    server = start_memcached()
    outage = expect_log(LOG, "fails|is taken for dead", times=range(1, 3))
    with made(ours.Client, server.address) as mc:
        assert await mc.set("k", "v") is True
        server.kill()
        assert [await mc.get("k") for _ in range(20)] == [None] * 20
        server.restart()
        begun = time.monotonic()
        while await mc.set("k", "v") != True:  # noqa: E712  (0 is no True)
            assert time.monotonic() - begun < 1.5
            await asyncio.sleep(0.02)
        assert await mc.get("k") == "v"
    assert outage.count <= 2


@pytest.mark.gen_test
async def test_a_restart_between_two_calls_is_not_seen(start_memcached):
    server = start_memcached()
    with made(ours.Client, server.address) as mc:
        assert await mc.set("k", "v") is True
        server.restart()
        assert await mc.get("k") is None
        assert await mc.set("k", "v") is True and await mc.get("k") == "v"


@UNCLOSED
@pytest.mark.gen_test
async def test_the_keys_of_a_dead_server_go_where_python_memcached_sends_them(
    start_memcached, expect_log
):
    expect_log(LOG, "fails|is taken for dead")
    servers = [start_memcached() for _ in range(3)]
    addresses = [server.address for server in servers]
    dead = servers[1]
    with made(theirs.Client, *addresses) as other, made(ours.Client, *addresses) as mc:
        keys = [f"key{number}" for number in range(60)]
        assert await mc.set_multi(dict.fromkeys(keys, "old")) == []
        dead.kill()
        lost = next(key for key in keys if mc._native._locate(key)[1].name == dead.address)
        assert other.set(lost, "new")  # there the call that finds out is placed again at once
        await asyncio.sleep(0.02)
        assert await mc.set(lost, "new") == 0  # here it fails, and the next ones are placed again
        assert await mc.set_multi({key: f"{key} again" for key in keys}) == []
        assert other.get_multi(keys) == {key: f"{key} again" for key in keys}
        dead.restart()
        mc.forget_dead_hosts()
        other.forget_dead_hosts()
        assert await mc.get(lost) is None and other.get(lost) is None
        assert await mc.set(lost, "back") is True and other.get(lost) == "back"


@pytest.mark.gen_test
async def test_a_server_that_comes_back_is_flushed_if_asked_to(start_memcached, expect_log):
    expect_log(LOG, "fails|is taken for dead")
    server = start_memcached()
    with made(ours.Client, server.address, flush_on_reconnect=1, socket_timeout=SHORT) as mc:
        assert await mc.set("k", "stale") is True
        server.kill()
        for _ in range(3):
            assert await mc.get("k") is None
        server.restart()
        server.ask(b"set k 16 0 5\r\nstale\r\n")
        mc.forget_dead_hosts()
        assert await mc.get("k") is None
        assert await mc.set("k", "fresh") is True and await mc.get("k") == "fresh"


@pytest.mark.gen_test
async def test_servers_can_be_replaced(start_memcached):
    one, two = start_memcached(), start_memcached()
    with made(ours.Client, one.address) as mc:
        await mc.set("k", 1)
        assert mc.set_servers([(two.address, 3)]) is None
        assert await mc.get("k") is None and len(mc.buckets) == 3
        mc.set_servers([one.address])
        assert await mc.get("k") == 1


@pytest.mark.gen_test
async def test_disconnecting_closes_the_connections_and_the_next_call_opens_new_ones(memcached):
    with made(ours.Client, memcached.address) as mc:
        for end in (mc.disconnect_all, mc.quit_all):
            assert await mc.set("k", 1) is True
            before = memcached.stats()["curr_connections"]
            ended = end()
            if asyncio.isfuture(ended):
                assert await ended is None
            until = time.monotonic() + 2
            while int(memcached.stats()["curr_connections"]) >= int(before):
                assert time.monotonic() < until
                await asyncio.sleep(0.01)
            assert await mc.get("k") == 1


def test_debug_lines_go_to_stderr(capsys):
    for debug, expected in ((0, ""), (1, "MemCached: a line\n")):
        with made(ours.Client, "a", debug=debug) as mc:
            mc.debuglog("a line")
        assert capsys.readouterr().err == expected


@pytest.mark.gen_test
async def test_debug_tells_of_a_failure(capsys, expect_log):
    expect_log(LOG, "fails|dead")
    with made(ours.Client, f"127.0.0.1:{free_port()}", debug=1) as mc:
        assert await mc.get("k") is None
    assert capsys.readouterr().err.startswith("MemCached: ")


@pytest.mark.gen_test
async def test_what_is_set_later_counts(memcached):
    with made(ours.Client, memcached.address) as mc:
        mc.pickleProtocol, mc.server_max_value_length = 2, 40
        assert await mc.set("k", True) is True
        assert b"\x80\x02" in memcached.ask(b"get k\r\n", b"END\r\n")
        assert await mc.set("k", b"x" * 41) == 0
        mc.unpickler = ours.no_pickle
        assert mc.unpickler is ours.no_pickle and mc._values.unpickler is ours.no_pickle
        mc.unpickler = pickle.Unpickler
        assert await mc.get("k") is True


def test_it_is_the_native_client_that_works():
    with made(ours.Client, "a") as mc:
        assert isinstance(mc._native, Client) and isinstance(mc._native._cluster._ring, Modulo)
        assert issubclass(ConnectionFailed, MemcacheError)


@pytest.mark.gen_test
async def test_a_value_that_does_not_read_reaches_the_boundary_of_a_get_multi(memcached):
    client = ours.Client([memcached.address])
    memcached.ask(b"set f40 64 0 1\r\nx\r\nset ok 0 0 1\r\ny\r\n", b"STORED\r\nSTORED\r\n")
    came: list[Any] = []
    with boundary(came.append):
        client.get_multi(["f40", "ok"], callback=came.append)
    await asyncio.sleep(0.05)
    assert [type(one).__name__ for one in came] == ["SerializationError"]
    with pytest.raises(ValueError, match="Unknown flags on get: 40"):
        await client.get_multi(["f40", "ok"])
    client.close()


@pytest.mark.gen_test
async def test_a_hash_of_none_is_refused_by_every_method(memcached):
    client = ours.Client([memcached.address])
    for call in (client.get, client.gets, client.delete, client.incr, client.touch):
        with pytest.raises(TypeError):
            call((None, "k"))
    with pytest.raises(TypeError):
        client.set((None, "k"), 1)
    client.close()
