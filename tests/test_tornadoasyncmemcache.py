"""tornado_memcache.tornadoasyncmemcache: the old module's contract, and each of its faults.

Against real memcacheds. A `Heard` is the pair of callbacks of one call, and
notes in which order what came.
"""

from __future__ import annotations

import asyncio
import contextvars
import datetime
import inspect
import logging
import socket
import time
from typing import Any

import pytest
from tornado.netutil import Resolver

from tornado_memcache import Client as NativeClient
from tornado_memcache import InvalidKey, InvalidRequest, NotSerializable, Plain, boundary
from tornado_memcache.errors import ConnectionFailed, ProtocolError, Timeout
from tornado_memcache.tornadoasyncmemcache import (
    Client,
    ClientPool,
    TooManyClients,
)
from tornado_memcache.tornadoasyncmemcache_values import python2_hash

from .asked import until
from .memcacheds import free_port
from .scripted import Close, Expect, Reset, Scripted, Send
from .test_examples import EXAMPLES, running

LOG = "tornado_memcache"
#: What a machine under load may add to a deadline.
LATE = 0.25
TIMEOUT = ("memcache call timeout",)
DEAD = ("server dead",)


class Heard:
    """The callbacks of one call, and what they were told."""

    def __init__(self) -> None:
        self.told: list[tuple[str, Any]] = []
        self._end = asyncio.Event()

    @property
    def how(self) -> dict[str, Any]:
        return {"callback": self.good, "fail_callback": self.bad}

    def good(self, result: Any) -> None:
        self.told.append(("callback", result))
        self._end.set()

    def bad(self, args: Any) -> None:
        self.told.append(("fail_callback", args))
        self._end.set()

    async def end(self, within: float = 2.0) -> tuple[str, Any]:
        """Returns what was told, once one of them was called; each at most once."""
        await asyncio.wait_for(self._end.wait(), within)
        await asyncio.sleep(0.01)
        assert len(self.told) == 1, self.told
        return self.told[0]


async def ask(method: Any, *args: Any) -> Any:
    """Calls ``method`` with a callback and returns what that receives."""
    heard = Heard()
    assert method(*args, **heard.how) is None
    name, result = await heard.end()
    assert name == "callback", result
    return result


async def fail(method: Any, *args: Any) -> Any:
    """Calls ``method`` and returns what its fail_callback receives."""
    heard = Heard()
    assert method(*args, **heard.how) is None
    name, told = await heard.end()
    assert name == "fail_callback", told
    return told


@pytest.fixture
def pools():
    """Makes pools that are closed with the test: ``pools(servers, ...)``."""
    made = []

    def make(servers: Any, *args: Any, kind: Any = ClientPool, **options: Any) -> Any:
        servers = servers if isinstance(servers, list) else [servers.address]
        made.append(kind(servers, *args, **options))
        return made[-1]

    yield make
    for pool in made:
        pool.close()


# -- construction


@pytest.mark.parametrize(
    "limits",
    [(1, 0, 0), (1, 2, 3), (2, 2, 2), (0, 5, 5), (0, 0, 1), (5, 0, 0), (5, 0, 5)],
)
def test_limits_that_fit(pools, limits):
    pools(["127.0.0.1:1"], *limits)


@pytest.mark.parametrize("limits", [(2, 0, 1), (0, 2, 1), (2, 1, 0), (3, 2, 9), (-1, 0, 0)])
def test_limits_that_do_not_fit(limits):
    with pytest.raises(ValueError):
        ClientPool(["127.0.0.1:1"], *limits)


@pytest.mark.parametrize("name", ["mincached", "maxcached", "maxclients"])
@pytest.mark.parametrize("value", ["1", 1.0, None])
def test_limits_are_ints(name, value):
    with pytest.raises(TypeError, match=name):
        ClientPool(["127.0.0.1:1"], **{name: value})


def test_the_signatures_are_those_of_the_old_module():
    names = list(inspect.signature(Client).parameters)
    assert names[:7] == [
        "servers",
        "debug",
        "io_loop",
        "connect_timeout",
        "request_timeout",
        "dead_retry",
        "server_retries",
    ]
    names = list(inspect.signature(ClientPool).parameters)
    assert names == ["servers", "mincached", "maxcached", "maxclients", "args", "kwargs"]


def test_the_rest_of_the_pools_arguments_goes_to_the_client(pools):
    pool = pools(["127.0.0.1:1"], 0, 0, 0, 1, object(), 0.5, 0.25, 10, 3)
    assert (pool.debug, pool.server_retries) == (1, 3)
    assert pool._native._settings.connect_timeout == 0.5
    assert pool._native._settings.request_timeout == 0.25
    assert pool._native._settings.dead_retry == 10


def test_none_and_0_are_the_native_clients_defaults(pools):
    native = NativeClient(["127.0.0.1:1"])
    for options in ({}, {"connect_timeout": 0, "request_timeout": 0, "dead_retry": 0}):
        settings = pools(["127.0.0.1:1"], **options)._native._settings
        assert settings == native._settings._replace(on_dead="rehash")
    native.close()


@pytest.mark.parametrize("name", ["key_prefix", "compress_over"])
def test_settings_that_would_not_reach_every_command_are_refused(name):
    with pytest.raises(TypeError, match=name):
        Client(["127.0.0.1:1"], **{name: 1})


def test_a_pool_outside_of_a_loop_can_be_made_but_not_asked(pools):
    with pytest.raises(RuntimeError, match="event loop"):
        pools(["127.0.0.1:1"]).get("k", callback=None)


# -- every command: hit, miss


@pytest.mark.gen_test
async def test_every_command(pools, memcached):
    for kind in (Client, ClientPool):
        memcached.flush()
        mc = pools(memcached, kind=kind)
        assert await ask(mc.get, "k") is None
        assert await ask(mc.replace, "k", "no") is None
        assert await ask(mc.get, "k") is None
        assert await ask(mc.add, "k", "a") is None
        assert await ask(mc.add, "k", "no") is None
        assert await ask(mc.get, "k") == "a"
        assert await ask(mc.set, "k", "s") is None
        assert await ask(mc.get, "k") == "s"
        assert await ask(mc.replace, "k", "r") is None
        assert await ask(mc.get, "k") == "r"
        assert await ask(mc.gets, ["k", "none"]) == {"k": "r"}
        assert await ask(mc.gets, []) == {}
        assert await ask(mc.delete, "k") is None
        assert await ask(mc.delete, "k") is None
        assert await ask(mc.get, "k") is None
        assert await ask(mc.set, "n", 20) is None
        assert await ask(mc.incr, "n") == 21
        assert await ask(mc.incr, "n", 4) == 25
        assert await ask(mc.decr, "n") == 24
        assert await ask(mc.decr, "n", 100) == 0
        assert await ask(mc.incr, "none") is None
        assert await ask(mc.decr, "none") is None
        assert mc.stats["get"] == 6 and mc.stats["incr"] == 3


@pytest.mark.gen_test
async def test_callback_none_is_a_no_op(pools, memcached):
    pool = pools(memcached, maxclients=1)
    assert pool.set("k", "v", callback=None) is None
    await until(lambda: not pool._under_way)
    assert await ask(pool.get, "k") == "v"


@pytest.mark.gen_test
async def test_callbacks_that_cannot_be_called_are_refused_at_the_call(pools, memcached):
    pool = pools(memcached, maxclients=1)
    for _ in range(2):  # (and nothing is counted as under way)
        with pytest.raises(TypeError, match="callback"):
            pool.get("k", callback=1)
        with pytest.raises(TypeError, match="fail_callback"):
            pool.get("k", callback=None, fail_callback="no")


@pytest.mark.gen_test
async def test_keys(pools, start_memcached):
    pool = pools([start_memcached().address, start_memcached().address])
    assert await ask(pool.set, (7, "k"), "seven") is None
    assert await ask(pool.get, (9, "k")) == "seven"
    assert await ask(pool.get, (8, "k")) is None
    assert await ask(pool.set, 5, "five") is None
    assert await ask(pool.get, (5, "5")) == "five"
    assert await ask(pool.set, b"b", "bytes") is None
    assert await ask(pool.gets, [(7, "k"), 5, b"b", "none"]) == {
        "k": "seven",
        "5": "five",
        b"b": "bytes",
    }


@pytest.mark.gen_test
async def test_what_cannot_be_sent_raises_at_the_call(pools, silent):
    pool = pools(silent, maxclients=1)
    for call in (
        lambda: pool.get("white space", callback=None),
        lambda: pool.set("", "v", callback=None),
        lambda: pool.delete("k" * 251, callback=None),
        lambda: pool.gets(["ok", "not ok"], callback=None),
        lambda: pool.incr("k\n", callback=None),
    ):
        with pytest.raises(InvalidKey):
            call()
    with pytest.raises(TypeError):
        pool.gets("abc", callback=None)
    with pytest.raises(ValueError, match="max_value_size"):
        pool.set("k", "v" * (1 << 20) + "v", callback=None)
    with pytest.raises(NotSerializable):
        pool.set("k", lambda: 0, callback=None)
    with pytest.raises(InvalidRequest, match="delta"):
        pool.incr("k", -1, callback=None)
    with pytest.raises(ValueError, match="time"):
        pool.delete("k", 5, callback=None)
    assert await silent.untouched()


# -- values


class Point:
    def __eq__(self, other: object) -> bool:
        return type(other) is Point


@pytest.mark.gen_test
@pytest.mark.parametrize(
    "value, flags",
    [
        ("text \u4f60", 16),
        (b"\xff\x00", 0),
        (42, 2),
        (1 << 70, 2),
        (True, 1),
        (None, 1),
        (1.5, 1),
        ({"a": [1, "b"]}, 1),
        (Point(), 1),
    ],
)
async def test_values_come_back_as_they_went(pools, memcached, value, flags):
    pool = pools(memcached)
    assert await ask(pool.set, "k", value) is None
    assert memcached.ask(b"get k\r\n", b"END\r\n").split()[2] == b"%d" % flags
    found = await ask(pool.get, "k")
    assert found == value and type(found) is type(value)


#: (flags, data as Python 2.7 and the old module wrote it, value)
OLD = [
    (0, b"Hello \xe4\xbd\xa0", b"Hello \xe4\xbd\xa0"),
    (2, b"42", 42),
    (4, b"1073741824", 1 << 30),
    (
        1,
        b"\x80\x02}q\x01(U\x04nameq\x02U\x03\xe4\xbd\xa0q\x03U\x01n\x8a\x01\x01u.",
        {"name": "\u4f60", "n": 1},
    ),
    (
        1,
        b"\x80\x02cdatetime\ndatetime\nq\x01U\n\x07\xdd\n\x0c\x11'!\x00\x00\x00\x85Rq\x02.",
        datetime.datetime(2013, 10, 12, 17, 39, 33),
    ),
    (1, b"\x80\x02]q\x01(\x88NG?\xf8\x00\x00\x00\x00\x00\x00e.", [True, None, 1.5]),
]


@pytest.mark.gen_test
@pytest.mark.parametrize("flags, data, value", OLD)
async def test_what_the_old_module_stored_is_read(pools, memcached, flags, data, value):
    memcached.ask(b"set k %d 0 %d\r\n%b\r\n" % (flags, len(data), data))
    pool = pools(memcached)
    assert await ask(pool.get, "k") == value
    assert await ask(pool.gets, ["k"]) == {"k": value}


@pytest.mark.gen_test
async def test_what_cannot_be_read_fails_its_call_only(pools, memcached):
    pool = pools(memcached)
    memcached.ask(b"set broken 1 0 3\r\nabc\r\n")
    memcached.ask(b"set flags 64 0 3\r\nabc\r\n")
    assert "cannot be unpickled" in (await fail(pool.get, "broken"))[0]
    assert "unknown flags 0x40" in (await fail(pool.get, "flags"))[0]
    assert await ask(pool.get, "none") is None


@pytest.mark.gen_test
async def test_pickles_can_be_refused(pools, memcached):
    pool = pools(memcached, serializer=Plain())
    memcached.ask(b"set k 1 0 5\r\nI01\n.\r\n")
    assert "is a pickle, which is refused" in (await fail(pool.get, "k"))[0]
    with pytest.raises(NotSerializable):
        pool.set("k", 1.5, callback=None)


@pytest.mark.gen_test
async def test_time_goes_to_the_server_as_it_is(pools):
    moment = int(time.time()) + 60 * 60 * 24 * 60
    sent = b"".join(b"set k 16 %d 1\r\nv\r\n" % exptime for exptime in (0, 2592000, moment, -1, 3))
    async with Scripted([Expect(sent), Send(b"STORED\r\n" * 5)]) as server:
        pool = pools(server)
        for exptime in (0, 2592000, moment, -1, 3.9):
            pool.set("k", "v", exptime, callback=None)
        await until(lambda: server.received == [sent])
        await until(lambda: pool._under_way == 0)


# -- placement: where the old module left it


def holder(servers: list[Any], key: bytes) -> int:
    """Returns which of ``servers`` holds ``key``."""
    found = [b"VALUE" in one.ask(b"get %b\r\n" % key, b"END\r\n") for one in servers]
    assert found.count(True) == 1
    return found.index(True)


@pytest.mark.gen_test
async def test_keys_go_where_the_old_module_put_them(pools, start_memcached):
    servers = [start_memcached() for _ in range(3)]
    pool = pools([one.address for one in servers])
    for key in (b"foo", b"bar", b"user:1", b"key17", b"a"):
        await ask(pool.set, key.decode(), "v")
        assert holder(servers, key) == python2_hash(key) % 3


@pytest.mark.gen_test
async def test_keys_can_go_where_python_memcached_puts_them(pools, start_memcached):
    servers = [start_memcached() for _ in range(2)]
    pool = pools([one.address for one in servers], ring="modulo")
    for key, number in ((b"foo", 3187), (b"bar", 30463), (b"a", 26807), (b"ob", 0)):
        await ask(pool.set, key.decode(), "v")
        assert holder(servers, key) == number % 2


@pytest.mark.gen_test
async def test_weights(pools, start_memcached):
    """The old module crashed on them."""
    servers = [start_memcached() for _ in range(2)]
    pool = pools([(servers[0].address, 1), (servers[1].address, 3)])
    for number in range(8):
        await ask(pool.set, (number, f"k{number}"), "v")
        assert holder(servers, b"k%d" % number) == [0, 1, 1, 1][number % 4]


@pytest.mark.gen_test
async def test_a_dead_servers_keys_are_hashed_again(pools, memcached, expect_log):
    expect_log(LOG, "is taken for dead|fails")
    pool = pools([f"127.0.0.1:{free_port()}", memcached.address])
    assert await fail(pool.get, (0, "k")) == DEAD
    await ask(pool.set, (0, "k"), "v")
    assert await ask(pool.get, (0, "k")) == "v"
    assert holder([memcached], b"k") == 0


@pytest.mark.gen_test
async def test_server_retries_0_leaves_the_keys_where_they_are(pools, memcached, expect_log):
    expect_log(LOG, "is taken for dead|fails")
    pool = pools([f"127.0.0.1:{free_port()}", memcached.address], server_retries=0)
    for _ in range(3):
        assert await fail(pool.get, (0, "k")) == DEAD
    assert await ask(pool.get, (1, "k")) is None


def test_server_retries_bounds_the_walk():
    asked = []

    def alive(index: int) -> bool:
        asked.append(index)
        return False

    for retries in (0, 1, 4):
        client = Client([f"127.0.0.1:{port}" for port in range(1, 8)], server_retries=retries)
        ring = client._native._cluster._ring
        assert ring.place_among(b"foo", alive) is None
        assert len(asked) == retries + 1 and asked.pop(0) == python2_hash(b"foo") % 7
        asked.clear()
        client.close()


# -- failures


@pytest.mark.gen_test
async def test_every_command_fails_on_a_closed_port(pools, expect_log):
    """A refused connection never called back."""
    expect_log(LOG, "is taken for dead|fails")
    for kind in (Client, ClientPool):
        pool = pools([f"127.0.0.1:{free_port()}"], kind=kind)
        for method, args in COMMANDS:
            assert await fail(getattr(pool, method), *args) == DEAD


COMMANDS: list[tuple[str, tuple[Any, ...]]] = [
    ("get", ("k",)),
    ("gets", (["k", "l"],)),
    ("set", ("k", "v")),
    ("add", ("k", "v")),
    ("replace", ("k", "v")),
    ("delete", ("k",)),
    ("incr", ("k",)),
    ("decr", ("k",)),
]


@pytest.mark.gen_test
async def test_every_command_times_out(pools, memcached, expect_log):
    expect_log(LOG, "fails|is taken for dead")
    pool = pools(memcached, request_timeout=0.1)
    await ask(pool.get, "k")
    memcached.stop()
    begun = time.monotonic()
    heard = [Heard() for _ in COMMANDS]
    for (method, args), one in zip(COMMANDS, heard):
        getattr(pool, method)(*args, **one.how)
    for one in heard:
        assert await one.end() == ("fail_callback", TIMEOUT)
    assert 0.09 < time.monotonic() - begun < 0.1 + LATE + 0.01 * len(heard)


@pytest.mark.gen_test
async def test_a_reset_connection_calls_back(pools, expect_log):
    expect_log(LOG, "fails|is taken for dead")
    for end in (Reset(), Close()):
        script = [Expect(b"set k 16 0 1\r\nv\r\n"), end]
        async with Scripted(script) as server:
            assert await fail(pools(server).set, "k", "v") == DEAD


@pytest.mark.gen_test
async def test_no_server_is_available(pools, expect_log):
    expect_log(LOG, "fails|is taken for dead")
    pool = pools([f"127.0.0.1:{free_port()}" for _ in range(2)])
    assert {await fail(pool.get, (0, "k")), await fail(pool.get, (1, "k"))} == {DEAD}
    assert await fail(pool.get, (0, "k")) == ("No available server for k",)
    assert await fail(pool.gets, ["k", "l"]) == ("No available server for k",)
    assert await fail(pool.set, (1, "x"), "v") == ("No available server for x",)


@pytest.mark.gen_test
async def test_a_reply_that_is_not_memcacheds(pools, expect_log):
    expect_log(LOG, "fails")
    async with Scripted([Expect(b"get k\r\n"), Send(b"VALUE k 0 3\r\nabcde\r\nEND\r\n")]) as server:
        pool = pools(server)
        seen: list[Any] = []
        with boundary(seen.append):
            pool.get("k", callback=seen.append)
        await until(lambda: seen)
        assert isinstance(seen[0], ProtocolError)
    async with Scripted([Expect(b"get k\r\n"), Send(b"VALUE k 0 3\r\nabcde\r\nEND\r\n")]) as server:
        assert await fail(pools(server).get, "k") == (str(seen[0]),)


@pytest.mark.gen_test
async def test_an_error_line_is_told_as_it_is(pools, memcached, expect_log):
    pool = pools(memcached)
    await ask(pool.set, "k", "no number")
    (told,) = await fail(pool.incr, "k")
    assert "non-numeric" in told


@pytest.mark.gen_test
async def test_gets_fails_if_one_of_its_servers_does(pools, start_memcached, expect_log):
    """One timer for each client: a gets over two servers lost a deadline."""
    expect_log(LOG, "fails|is taken for dead")
    servers = [start_memcached() for _ in range(2)]
    for stopped in (0, 1):
        pool = pools([one.address for one in servers], request_timeout=0.1)
        keys = [(0, "a"), (1, "b")]
        await ask(pool.set, keys[0], "A")
        await ask(pool.set, keys[1], "B")
        assert await ask(pool.gets, keys) == {"a": "A", "b": "B"}
        servers[stopped].stop()
        begun = time.monotonic()
        assert await fail(pool.gets, keys) == TIMEOUT
        assert 0.09 < time.monotonic() - begun < 0.1 + LATE
        assert await ask(pool.get, keys[1 - stopped]) in ("A", "B")
        servers[stopped].resume()


@pytest.mark.gen_test
async def test_every_call_has_a_deadline_of_its_own(pools, memcached, expect_log):
    """One timer for each client: the second call put off the deadline of the first."""
    expect_log(LOG, "fails")
    pool = pools(memcached, request_timeout=0.2)
    await ask(pool.get, "k")
    memcached.stop()
    begun, ends = time.monotonic(), []
    for _ in range(4):
        pool.get("k", callback=None, fail_callback=lambda _: ends.append(time.monotonic() - begun))
        await asyncio.sleep(0.05)
    await until(lambda: len(ends) == 4)
    for number, end in enumerate(ends):
        assert 0.19 + 0.05 * number < end < 0.2 + 0.05 * number + LATE


# -- the caller's boundary and context


@pytest.mark.gen_test
@pytest.mark.parametrize("kind", [Client, ClientPool])
async def test_a_failure_without_fail_callback_goes_to_the_boundary(
    pools, memcached, expect_log, kind
):
    expect_log(LOG, "fails")
    pool = pools(memcached, kind=kind, request_timeout=0.05)
    await ask(pool.get, "k")
    memcached.stop()
    seen: list[Any] = []
    with boundary(seen.append):
        pool.get("k", callback=seen.append)
        pool.get("k", callback=None, fail_callback=seen.append)
    await until(lambda: len(seen) == 2)
    await asyncio.sleep(0.02)
    assert len(seen) == 2 and {type(one) for one in seen} == {tuple, Timeout}


@pytest.mark.gen_test
async def test_a_failure_without_anybody_goes_to_the_log(pools, expect_log):
    expect_log(LOG, "is taken for dead|fails")
    logged = expect_log(
        "tornado.application", "without fail_callback", level=logging.ERROR, times=1
    )
    pool = pools([f"127.0.0.1:{free_port()}"])
    pool.get("k", callback=None)
    await until(lambda: logged.count)


@pytest.mark.gen_test
async def test_callbacks_run_under_the_callers_boundary_and_in_its_context(
    pools, memcached, expect_log
):
    variable: contextvars.ContextVar[str] = contextvars.ContextVar("variable", default="")
    pool = pools(memcached, maxclients=1)
    seen: list[Any] = []

    def raises(result: Any) -> None:
        seen.append(variable.get())
        raise KeyError(variable.get())

    variable.set("ours")
    with boundary(seen.append, catch=KeyError):
        pool.set("k", "v", callback=raises)
        variable.set("later")
        pool.get("k", callback=raises, fail_callback=raises)  # (too many)
    variable.set("")
    await until(lambda: len(seen) == 4)
    assert [one for one in seen if isinstance(one, str)] == ["later", "ours"]
    assert {type(one) for one in seen} == {str, KeyError}

    logged = expect_log("tornado.application", "Exception in callback", level=logging.ERROR)
    pool.get("k", callback=raises)
    await until(lambda: logged.count == 1)


@pytest.mark.gen_test
async def test_a_coroutine_is_a_callback(pools, memcached):
    pool = pools(memcached)
    seen = []

    async def callback(result: Any) -> None:
        await asyncio.sleep(0)
        seen.append(result)

    pool.get("k", callback=callback)
    await until(lambda: seen == [None])


@pytest.mark.gen_test
async def test_a_call_that_its_boundary_cancels_is_under_way_no_more(pools, silent):
    pool = pools(silent, maxclients=2)
    seen: list[Any] = []
    with boundary(seen.append) as entry:
        pool.get("a", callback=seen.append)
        pool.gets(["b"], callback=seen.append, fail_callback=seen.append)
        with pytest.raises(TooManyClients):
            pool.get("c", callback=None)
    entry.cancel()
    await asyncio.sleep(0.01)
    assert (pool._under_way, seen) == (0, [])
    pool.close()


@pytest.mark.gen_test
async def test_after_the_failure_of_a_once_boundary_no_callback_comes(pools, expect_log):
    expect_log(LOG, "is taken for dead|fails")
    pool = pools([f"127.0.0.1:{free_port()}"], maxclients=5)
    seen: list[Any] = []
    with boundary(seen.append, once=True):
        for _ in range(5):
            pool.get("k", callback=seen.append)
    await until(lambda: pool._under_way == 0)
    await asyncio.sleep(0.01)
    assert [type(one) for one in seen] == [ConnectionFailed]


# -- the pool


@pytest.mark.gen_test
async def test_too_many_clients_is_raised_or_told(pools, memcached):
    pool = pools(memcached, maxclients=2)
    memcached.stop()
    under_way = [Heard(), Heard()]
    for one in under_way:
        pool.get("k", **one.how)
    reason = "Max of 2 clients is already reached"
    for method, args in COMMANDS:
        with pytest.raises(TooManyClients, match=reason):
            getattr(pool, method)(*args, callback=None)
        seen: list[Any] = []
        assert getattr(pool, method)(*args, callback=None, fail_callback=seen.append) is None
        assert seen == []
        await asyncio.sleep(0)
        assert seen == [reason]
    memcached.resume()
    for one in under_way:
        assert await one.end() == ("callback", None)
    assert await ask(pool.get, "k") is None


@pytest.mark.gen_test
async def test_a_callback_finds_its_own_place_free(pools, memcached):
    pool = pools(memcached, maxclients=1)
    heard = Heard()
    pool.set("k", "v", callback=lambda _: pool.get("k", **heard.how))
    assert await heard.end() == ("callback", "v")


def test_calls_that_were_lost_with_their_loop_are_under_way_no_more(memcached, ledger, expect_log):
    ledger.excuse("handler", "timer", "task")
    expect_log(LOG, "lost with their event loop")
    pool = ClientPool([memcached.address], maxclients=2)

    async def leave():
        await ask(pool.get, "k")
        memcached.stop()
        for _ in range(2):
            pool.get("k", callback=None)

    asyncio.run(leave())
    memcached.resume()

    async def come_back():
        assert await ask(pool.get, "k") is None
        pool.close()

    asyncio.run(come_back())


@pytest.mark.gen_test
async def test_failed_calls_are_under_way_no_more(pools, expect_log):
    expect_log(LOG, "is taken for dead|fails")
    pool = pools([f"127.0.0.1:{free_port()}"], maxclients=1)
    for _ in range(5):
        assert await fail(pool.get, "k") == DEAD


@pytest.mark.gen_test
async def test_0_is_unlimited(pools, memcached):
    pool = pools(memcached)
    heard = [Heard() for _ in range(300)]
    for one in heard:
        pool.get("k", **one.how)
    await until(lambda: all(one.told == [("callback", None)] for one in heard))


@pytest.mark.gen_test
async def test_mincached_warms_every_server_up(pools, start_memcached):
    servers = [start_memcached() for _ in range(2)]

    def connections() -> list[int]:
        return [int(one.stats()["curr_connections"]) for one in servers]

    # (a connection that has asked for them takes a moment to go)
    before = [1, 1]
    await until(lambda: connections() == before)
    pool = pools([one.address for one in servers], mincached=1)
    await until(lambda: connections() == before)  # (no loop can be asked for it there)
    await ask(pool.get, (0, "k"))
    await until(lambda: connections() == [one + 1 for one in before])
    pool.disconnect_all()
    await until(lambda: connections() == before)
    await ask(pool.get, (0, "k"))
    await until(lambda: connections() == [one + 1 for one in before])

    cold = pools([one.address for one in servers])
    await ask(cold.get, (0, "k"))
    await asyncio.sleep(0.02)
    await until(lambda: connections() == [before[0] + 2, before[1] + 1])


@pytest.mark.gen_test
async def test_a_warm_up_that_fails_disturbs_nobody(pools, memcached, expect_log):
    expect_log(LOG, "no connection is kept warm")
    pool = pools([memcached.address, f"127.0.0.1:{free_port()}"], mincached=1)
    seen: list[Any] = []
    with boundary(seen.append):
        assert await ask(pool.get, (0, "k")) is None
    await asyncio.sleep(0.05)
    assert seen == []


@pytest.mark.gen_test
async def test_mincached_keeps_so_many_connections_and_opens_lost_ones_again(
    pools, memcached, expect_log
):
    expect_log(LOG, "is taken for dead|fails|kept warm", times=range(10))
    pool = pools(memcached, mincached=3)
    await ask(pool.get, "k")

    def idle() -> int:
        return sum(one.counts()["idle"] for one in pool._native._pools)

    await until(lambda: idle() == 3)
    memcached.kill()
    memcached.restart()
    for _ in range(40):  # (a dead server is found out by the calls that come)
        pool.get("k", fail_callback=lambda reason: None)
        await asyncio.sleep(0.02)
    await until(lambda: idle() == 3)


@pytest.mark.gen_test
async def test_maxcached_bounds_the_idle_connections(pools, start_memcached):
    pool = pools(start_memcached(), maxcached=2)
    heard = [Heard() for _ in range(40)]
    for one in heard:
        pool.set("k", b"v" * 200_000, **one.how)
    await until(lambda: all(one.told for one in heard))
    assert {one.told[0] for one in heard} == {("callback", None)}
    await until(lambda: pool._native._pools[0].counts()["open"] <= 2)


# -- the servers, and the rest of the old module's faults


@pytest.mark.gen_test
async def test_forget_dead_hosts_tries_again_now(pools, start_memcached, expect_log):
    """A misspelt attribute made it do nothing."""
    expect_log(LOG, "is taken for dead|fails")
    expect_log(LOG, "answers again", level=logging.INFO)
    server = start_memcached()
    server.kill()
    pool = pools(server, dead_retry=600)
    for _ in range(8):  # (the pause grows)
        assert await fail(pool.get, "k") == DEAD
        pool.forget_dead_hosts()
    server.restart()
    pool.forget_dead_hosts()
    assert await ask(pool.get, "k") is None


@pytest.mark.gen_test
async def test_disconnect_all_and_set_servers(pools, start_memcached):
    one, two = start_memcached(), start_memcached()
    pool = pools(one)
    await ask(pool.set, "k", "one")
    pool.disconnect_all()
    assert await ask(pool.get, "k") == "one"
    pool.set_servers([two.address])
    assert [server.name for server in pool.servers] == [two.address]
    assert await ask(pool.get, "k") is None


class Slow(Resolver):
    """Takes a second to look a name up, off the loop."""

    def initialize(self) -> None:
        pass

    async def resolve(self, host: str, port: int, family: Any = 0) -> Any:
        await asyncio.sleep(1)
        return []


@pytest.mark.gen_test
async def test_a_look_up_blocks_nobody_and_connect_timeout_ends_it(pools, expect_log):
    """getaddrinfo was called on the loop, and connect_timeout was ignored."""
    expect_log(LOG, "is taken for dead|fails")
    pool = pools(["slow.invalid:1"], connect_timeout=0.1, request_timeout=5, resolver=Slow())
    heard, begun = Heard(), time.monotonic()
    pool.get("k", **heard.how)
    assert time.monotonic() - begun < 0.05
    assert await heard.end() == ("fail_callback", TIMEOUT)
    assert 0.09 < time.monotonic() - begun < 0.1 + LATE


@pytest.mark.gen_test
async def test_connect_timeout_ends_a_connect_that_is_not_answered(pools, expect_log):
    expect_log(LOG, "is taken for dead|fails")
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        listener.listen(0)
        address = listener.getsockname()
        full = []
        for _ in range(4):  # (its queue is full: it drops what comes)
            full.append(socket.socket())
            full[-1].setblocking(False)
            full[-1].connect_ex(address)
        try:
            pool = pools([f"127.0.0.1:{address[1]}"], connect_timeout=0.1, request_timeout=5)
            begun = time.monotonic()
            assert await fail(pool.get, "k") == TIMEOUT
            assert 0.09 < time.monotonic() - begun < 0.1 + LATE
        finally:
            for one in full:
                one.close()


@pytest.mark.gen_test
async def test_nothing_is_printed(pools, memcached, expect_log, capfd):
    logged = expect_log(LOG, "MemCached: .*timed out", level=logging.INFO)
    expect_log(LOG, "fails")
    pool = pools(memcached, debug=1, request_timeout=0.05)
    await ask(pool.get, "k")
    memcached.stop()
    assert await fail(pool.get, "k") == TIMEOUT
    assert logged.count == 1
    assert capfd.readouterr() == ("", "")


# -- the example of its docstring


def test_the_example_of_the_old_docstring_runs(start_memcached):
    source = (EXAMPLES / "old_module_app.py").read_text()
    assert len(source.splitlines()) < 60
    server = start_memcached()
    with running("old_module_app", MEMCACHED_SERVERS=server.address) as example:
        status, text = example.get()
        assert status == 200 and text.startswith("Hello world @ 2")
        assert b"Hello world" in server.ask(b"get test_data\r\n", b"END\r\n")
        server.stop()
        begun = time.monotonic()
        assert example.get()[0] == 500
        assert 0.09 < time.monotonic() - begun < 0.1 + LATE
        server.resume()
        assert example.get()[0] == 200
        server.kill()
        assert example.get()[0] == 500
        assert "Exception" not in example.log
