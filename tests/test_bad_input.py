"""Bad arguments: they raise at the call, in both styles, and nothing of them reaches the wire.

Each line of the table is a call of the native client, its error, and what
the message names; what is asked of ``request`` is asked of ``request_many``
too. A server that listens and has received nothing, and another call that
is under way meanwhile, are the witnesses. The faces are in
`test_bad_input_faces.py`, what is accepted is in `test_round_trips.py`.
"""

from __future__ import annotations

import asyncio
import itertools
import math
from datetime import datetime, timedelta, timezone
from typing import Any

import pytest

from tornado_memcache import (
    Client,
    InvalidKey,
    InvalidRequest,
    MemcacheError,
    Request,
    SerializationError,
    ValueTooLarge,
    boundary,
)
from tornado_memcache.address import Server
from tornado_memcache.commands import Commands

from .test_address import BAD as BAD_SERVERS
from .test_client import Odd
from .test_submit import Recording

MILLION = b"x" * (1 << 20)


def key_cases() -> Any:
    """Yields (key, error, what the message says)."""
    yield "", InvalidKey, "key is empty"
    yield b"", InvalidKey, "key is empty"
    yield "k" * 251, InvalidKey, "key 'kk.*251 bytes"
    yield b"k" * 251, InvalidKey, "key 'kk.*251 bytes"
    yield "\u00e9" * 126, InvalidKey, "key '.*252 bytes"
    yield "a b", InvalidKey, "key 'a b'"
    for number in (*range(0x21), 0x7F):
        yield b"a" + bytes([number]) + b"b", InvalidKey, "key 'a.*white space or a control"
        yield f"a{chr(number)}", InvalidKey, "key 'a.*white space or a control character"
    yield b"a\r\n", InvalidKey, "key 'a.*white space"
    yield "a\r\nflush_all\r\n", InvalidKey, "key 'a.*white space"
    yield "\udc80", InvalidKey, "key '.*surrogate"
    yield "a\ud800b", InvalidKey, "key 'a.*surrogate"
    yield bytearray(b"a b"), InvalidKey, "key 'a b'"
    yield memoryview(b""), InvalidKey, "key is empty"
    for key in (None, 1, 0, 1.5, True, False, object(), ["k"], {"k"}, {"k": 1}, KeyError):
        yield key, TypeError, f"key must be str or bytes, not {type(key).__name__}"
    yield (1, "a b"), InvalidKey, "key 'a b'"
    yield (1, ""), InvalidKey, "key is empty"
    yield (1, None), TypeError, "key must be"
    yield (1, (1, "k")), TypeError, "key must be"
    yield (), InvalidRequest, "key .*route, key"
    yield ("k",), InvalidRequest, "key .*route, key"
    yield (1, "k", 2), InvalidRequest, "key .*route, key"
    for route in (True, 1.5, None, ("a",), bytearray(b"r")):
        yield (route, "k"), TypeError, f"route must be .* not {type(route).__name__}"
    yield ("\udc80", "k"), InvalidKey, "key '.*surrogate"


def value_cases() -> Any:
    yield MILLION + b"x", ValueTooLarge, "max_value_size"
    yield (MILLION + b"x").decode(), ValueTooLarge, "1048577 bytes"
    yield bytearray(MILLION + b"x"), ValueTooLarge, "max_value_size"
    for value in (None, True, 1.5, [1], {"a": 1}, object(), "\udc80"):
        yield value, SerializationError, "value for key 'k'"


def exptime_cases() -> Any:
    for exptime in (math.nan, math.inf, 1.0, "60", b"60", None, True, [], object()):
        yield exptime, TypeError, f"exptime must be .* not {type(exptime).__name__}"
    for exptime in (2**31, 2**31 - 1, 2**63, 10**400):
        yield exptime, InvalidRequest, "exptime .* datetime"
    yield timedelta(days=40_000), InvalidRequest, "exptime .* datetime"
    yield timedelta.max, InvalidRequest, "exptime .* datetime"
    yield timedelta(0), InvalidRequest, "exptime of no length"
    yield datetime(2038, 1, 20, tzinfo=timezone.utc), InvalidRequest, "exptime is beyond"
    yield datetime.max, InvalidRequest, "exptime is beyond"


SETTERS = ["set", "add", "replace", "append", "prepend"]
CASES: list[tuple[str, tuple[Any, ...], Any, str]] = []


def case(method: str, *arguments: Any, error: Any, told: str) -> None:
    CASES.append((method, arguments, error, told))


for key, error, told in key_cases():
    for method, behind in {
        "get": (),
        "gets": (),
        "gat": (60,),
        "gats": (60,),
        **dict.fromkeys(SETTERS, ("v",)),
        "cas": ("v", 1),
        "delete": (),
        "touch": (60,),
        "incr": (),
        "decr": (),
    }.items():
        case(method, key, *behind, error=error, told=told)
    for method in ("get_multi", "gets_multi", "delete_multi"):
        case(method, ["good", key, "better"], error=error, told=told)
    try:
        case("set_multi", {"good": 1, key: 2}, error=error, told=told)
    except TypeError:  # (a dict cannot hold it)
        pass

for value, error, told in value_cases():
    for method in SETTERS:
        case(method, "k", value, error=error, told=told)
    case("cas", "k", value, 1, error=error, told=told)
    case("set_multi", {"good": 1, "k": value}, error=error, told=told)
for method in ("append", "prepend"):
    case(method, "k", 1, error=TypeError, told="value .* not int")

for exptime, error, told in exptime_cases():
    for method in SETTERS:
        case(method, "k", "v", exptime, error=error, told=told)
    case("cas", "k", "v", 1, exptime, error=error, told=told)
    case("set_multi", {"k": "v"}, exptime, error=error, told=told)
    for method in ("touch", "gat", "gats"):
        case(method, "k", exptime, error=error, told=told)

for unique in (None, "abc", b"1", 1.0, True):
    case("cas", "k", "v", unique, error=TypeError, told="cas_unique must be an int")
for unique in (-1, 2**64):
    case("cas", "k", "v", unique, error=InvalidRequest, told="cas_unique must be from")
for delta, error in ((-1, InvalidRequest), (2**64, InvalidRequest), (1.5, TypeError),
                     ("1", TypeError), (None, TypeError), (True, TypeError)):  # fmt: skip
    for method in ("incr", "decr"):
        case(method, "k", delta, error=error, told="delta must be")
for delay, error in ((-1, InvalidRequest), (2**31, InvalidRequest), (1.5, TypeError),
                     ("1", TypeError), (None, TypeError), (True, TypeError)):  # fmt: skip
    case("flush_all", delay, error=error, told="delay must be")
for argument in ("a\r\nflush_all", "a\n", "\0", "\t", "\u00e9", "x" * 251):
    case("stats", argument, error=InvalidRequest, told="argument must be")
for argument in (b"items", 1, ["items"]):
    case("stats", argument, error=TypeError, told="argument must be")

for keys in ("keys", b"keys", bytearray(b"keys"), memoryview(b"keys"), None, 5, "", object()):
    for method in ("get_multi", "gets_multi", "delete_multi"):
        case(method, keys, error=TypeError, told="keys must be a list")
for keys in ([("a", 1)], ["a"], "a", None, 5, {"a"}):
    case("set_multi", keys, error=TypeError, told="mapping must be a mapping")
# What cannot stand in a dict cannot be one of the caller's own keys.
for keys in ([bytearray(b"k")], ["a", (1, bytearray(b"k"))]):
    for method in ("get_multi", "gets_multi"):
        case(method, keys, error=TypeError, told="key")


def ask_one(request: Any, *, error: Any, told: str, **how: Any) -> None:
    """Asks for ``request`` alone, behind a good one, and with a route."""
    case("request", request, error=error, told=told)
    for requests in ([request], [Request(b"get", (b"good",)), request], [(7, request)]):
        case("request_many", requests, error=error, told=told)


def ask(verb: Any, *keys: Any, told: str, error: Any = InvalidRequest, **fields: Any) -> None:
    ask_one(Request(verb, keys, **fields), error=error, told=told)


for request in (None, b"get k", ("get", "k"), {"verb": b"get"}, object()):
    case("request", request, error=TypeError, told="request must be a Request")
for requests in (None, 5, b"get", "get", object(), [None], [b"get k"], [(1, b"get k")], [()]):
    case("request_many", requests, error=TypeError, told="request")
case("request_many", Request(b"get", (b"k",)), error=TypeError, told="request")
for route in (True, 1.5, ("a",), bytearray(b"r")):
    case("request_many", [(route, Request(b"get", (b"k",)))], error=TypeError, told="route must")
for verb in (b"", b"nonsense", b"get k", b"GET", b"shutdown", b"get\r\nflush_all"):
    ask(verb, b"k", told="verb")
for verb in ("get", bytearray(b"get"), None, 1, [b"get"]):
    ask(verb, b"k", error=TypeError, told="verb must be bytes")
# Keys that can be changed after they were checked, and what is no list of keys.
for keys in ([b"k"], b"k", "k", None, 5, {b"k"}, iter([b"k"])):
    for verb in (b"get", b"set", b"gat"):
        ask_one(Request(verb, keys), error=TypeError, told="keys a tuple")  # type: ignore[arg-type]
for flags, error in ((-1, InvalidRequest), (2**32, InvalidRequest), (True, TypeError),
                     (1.0, TypeError), ("1", TypeError), (None, TypeError)):  # fmt: skip
    for verb in (b"set", b"add", b"replace", b"append", b"prepend", b"cas"):
        ask(verb, b"k", flags=flags, error=error, told="flags must be")
for exptime, error in ((2**31, InvalidRequest), (-(2**31) - 1, InvalidRequest), (1.0, TypeError),
                       ("60", TypeError), (math.nan, TypeError), (math.inf, TypeError),
                       (True, TypeError), (None, TypeError),
                       (timedelta(seconds=1), TypeError)):  # fmt: skip
    for verb in (b"set", b"cas", b"touch", b"gat", b"gats"):
        ask(verb, b"k", exptime=exptime, error=error, told="exptime must be")
for unique, error in ((-1, InvalidRequest), (2**64, InvalidRequest), ("abc", TypeError),
                      (None, TypeError), (True, TypeError), (1.0, TypeError)):  # fmt: skip
    ask(b"cas", b"k", cas_unique=unique, error=error, told="cas_unique must be")
for delta, error in ((-1, InvalidRequest), (2**64, InvalidRequest), (1.5, TypeError),
                     ("1", TypeError), (None, TypeError), (True, TypeError)):  # fmt: skip
    for verb in (b"incr", b"decr"):
        ask(verb, b"k", delta=delta, error=error, told="delta must be")
for value in ("text", bytearray(b"v"), memoryview(b"v"), None, 5, [b"v"]):
    ask(b"set", b"k", value=value, error=TypeError, told="value must be bytes")
ask(b"set", b"k", value=MILLION + b"x", error=ValueTooLarge, told="value")
for key in (b"a b", b"", b"k\r\nflush_all\r\n", b"k" * 251, b"k\n", b"\0", b"\x7f"):
    for verb in (b"get", b"set", b"delete", b"touch", b"incr", b"gat", b"cas"):
        ask(verb, key, error=InvalidKey, told="key")
    ask(b"get", b"good", key, error=InvalidKey, told="key")
ask(b"get", told="key")
ask(b"set", told="key")
ask(b"get", b"k", argument=b"x", told="argument")
# A key as str or as a buffer would fail when it is written: bytes go in.
for key in ("k", bytearray(b"k"), memoryview(b"k"), None):
    ask(b"get", key, error=TypeError, told="key")
    ask(b"set", key, error=TypeError, told="key")
# What has no key, one key, or no noreply: memcached would answer nothing or
# twice, and every later reply would go to the wrong caller.
for verb in (b"flush_all", b"version", b"verbosity", b"stats"):
    ask(verb, b"noreply", told="key")
for verb in (b"delete", b"touch", b"incr", b"decr", b"set", b"append", b"cas"):
    ask(verb, b"k", b"noreply", told="key")
for verb in (b"get", b"gets", b"gat", b"gats"):
    ask(verb, b"k", noreply=True, told="noreply")
for noreply in (2, "no", None, 0.5):
    ask(b"set", b"k", noreply=noreply, error=TypeError, told="noreply")
# memcached resets the connection on a long line of these.
ask(b"gat", *(b"%0240d" % number for number in range(100)), told="keys")
ask(b"gats", *(b"%d" % number for number in range(1000)), told="keys")


METHODS = sorted({method for method, *_ in CASES})


#: What came to a callback of a call that was refused: a bad argument is no outcome.
came: list[Any] = []


def never(outcome: Any) -> None:
    came.append(outcome)


#: The style in which outcomes go to callbacks.
NEVER: dict[str, Any] = {"callback": never, "fail_callback": never}


def refused(client: Client, method: str, arguments: tuple[Any, ...], error: Any, told: str) -> None:
    """Asserts that a call raises as it should, in both styles and under a boundary."""
    call = getattr(client, method)
    for how in (
        {},
        {"callback": never},
        {"callback": never, "fail_callback": never},
        {"fail_callback": never},
    ):
        with pytest.raises(error, match=told) as caught:
            if error is SerializationError:  # (see test_a_boundary_does_not_take_...)
                call(*arguments, **how)
            with boundary(never):
                call(*arguments, **how)
        assert len(str(caught.value)) < 300
        if error is not TypeError:
            assert isinstance(caught.value, MemcacheError)
            assert caught.value.connection_survives
        if isinstance(caught.value, InvalidRequest):
            assert isinstance(caught.value, ValueError)


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.gen_test(timeout=60)
async def test_what_is_refused_puts_nothing_on_the_wire_and_disturbs_nobody(method, silent, ledger):
    failed: list[str] = []
    came.clear()
    cold = Client([silent.address])
    async with Recording() as server:
        warm = Client([server.address])
        await warm.set("other", 1)
        for _, *line in (case for case in CASES if case[0] == method):
            server.take()
            others = [warm.get("other"), warm.incr("other", 0)]
            try:
                refused(cold, method, *line)
                refused(warm, method, *line)
                assert await others[0] == await others[1] == 1
                assert server.take() == [(b"get", b"other"), (b"incr", b"other")]
                assert (warm._pools[0].losses, warm._pools[0].pending) == (0, 0)
                assert came == []
            except (Exception, pytest.fail.Exception) as error:
                failed.append(f"{method}{line[0]!r:.80}: {str(error) or repr(error):.200}")
                came.clear()
                # It went out: what comes of it must not fail the next lines.
                warm.close()
                cold.close()
                await asyncio.wait(others)
                warm, cold = Client([server.address]), Client([silent.address])
                await warm.set("other", 1)
                ledger.excuse("log", "lost")
                came.clear()
        warm.close()
        if not failed:
            assert await silent.untouched()
            assert server.connections == 1
        cold.close()
    if failed:
        pytest.fail("\n".join([f"{len(failed)} lines of the table:", *failed]), pytrace=False)


@pytest.mark.parametrize("method", ["set", "set_multi", "cas"])
@pytest.mark.gen_test
async def test_a_boundary_does_not_take_a_value_that_cannot_be_serialized(method, silent):
    arguments = {"set_multi": ({"k": 1.5},), "cas": ("k", 1.5, 1)}.get(method, ("k", 1.5))
    came.clear()
    async with Client([silent.address]) as client:
        with pytest.raises(SerializationError):
            with boundary(never):
                getattr(client, method)(*arguments)
        assert came == []


# -- what every command takes

GOOD: dict[str, tuple[Any, ...]] = {
    "get": ("k",),
    "gets": ("k",),
    "gat": ("k", 60),
    "gats": ("k", 60),
    "get_multi": (["k"],),
    "gets_multi": (["k"],),
    "set": ("k", "v"),
    "add": ("k", "v"),
    "replace": ("k", "v"),
    "append": ("k", "v"),
    "prepend": ("k", "v"),
    "cas": ("k", "v", 1),
    "set_multi": ({"k": "v"},),
    "delete_multi": (["k"],),
    "delete": ("k",),
    "touch": ("k", 60),
    "incr": ("k",),
    "decr": ("k",),
    "flush_all": (),
    "stats": (),
    "version": (),
    "request": (Request(b"get", (b"k",)),),
    "request_many": ([Request(b"get", (b"k",)), Request(b"delete", (b"j",))],),
}
HOW: list[tuple[dict[str, Any], Any, str]] = [
    ({"timeout": 0}, InvalidRequest, "timeout must be"),
    ({"timeout": -1}, InvalidRequest, "timeout must be"),
    ({"timeout": math.nan}, InvalidRequest, "timeout must be"),
    ({"timeout": math.inf}, InvalidRequest, "timeout must be"),
    ({"timeout": True}, TypeError, "timeout must be"),
    ({"timeout": "1"}, TypeError, "timeout must be"),
    ({"timeout": timedelta(seconds=1)}, TypeError, "timeout must be"),
    ({"callback": 5}, TypeError, "callback must be callable"),
    ({"fail_callback": "f"}, TypeError, "fail_callback must be callable"),
    ({"callback": 5, "fail_callback": never}, TypeError, "callback must be callable"),
    ({"time_out": 1}, TypeError, "time_out"),
]


def test_every_command_is_there():
    commands = {name for name in vars(Commands) if not name.startswith("_")}
    assert commands | {"request", "request_many"} == set(GOOD)
    assert set(METHODS) == set(GOOD) - {"version"}  # (which takes nothing that could be wrong)


@pytest.mark.parametrize("method", GOOD)
@pytest.mark.gen_test
async def test_bad_keywords(method, silent):
    async with Recording() as server:
        async with Client([silent.address]) as cold, Client([server.address]) as warm:
            await warm.set("other", 1)
            server.take()
            came.clear()
            for how, error, told in HOW:
                other = warm.get("other")
                for client, style in itertools.product((cold, warm), ({}, NEVER)):
                    with pytest.raises(error, match=told), boundary(never):
                        getattr(client, method)(*GOOD[method], **{**style, **how})
                assert await other == 1
                assert server.take() == [(b"get", b"other")]
            assert await silent.untouched()
            assert came == [] and len(warm._deadlines) == 0


@pytest.mark.parametrize(
    "empty",
    [
        ("get_multi", []),
        ("gets_multi", ()),
        ("delete_multi", iter("")),
        ("set_multi", {}),
        ("request_many", []),
    ],
    ids=lambda case: case[0],
)
@pytest.mark.gen_test
async def test_nothing_to_do_is_no_io(empty, silent):
    method, nothing = empty
    async with Client([silent.address]) as client:
        call = getattr(client, method)(nothing)
        assert not call.done()
        assert not await call
        outcome = asyncio.get_running_loop().create_future()
        getattr(client, method)(nothing, callback=outcome.set_result, fail_callback=never)
        assert not outcome.done()
        assert not await outcome
        for how, error, told in HOW:
            with pytest.raises(error, match=told):
                getattr(client, method)(nothing, **how)
        assert await silent.untouched()


@pytest.mark.parametrize("method", ["get", "gat"])
@pytest.mark.gen_test
async def test_a_default_that_was_meant_as_a_callback(method, silent):
    came.clear()
    async with Recording() as server:
        async with Client([silent.address]) as cold, Client([server.address]) as warm:
            await warm.get("other")
            server.take()
            for client, style in itertools.product((cold, warm), ({}, NEVER)):
                with pytest.raises(TypeError, match="default must not be callable.*callback="):
                    getattr(client, method)(*GOOD[method], never, **style)
            assert await warm.get("other") is None
            assert server.take() == [(b"get", b"other")]
            assert await silent.untouched()
            assert came == []


# -- settings, servers, serializers


@pytest.mark.gen_test
async def test_bad_servers_connect_to_nobody(silent):
    for spec, error, told in BAD_SERVERS:
        if isinstance(spec, Server):
            continue  # (see test_address)
        with pytest.raises(error, match=told):
            Client([silent.address, spec])
    assert await silent.untouched()


@pytest.mark.parametrize(
    "encoded",
    [
        (b"v", -1),
        (b"v", 2**32),
        (b"v", True),
        (b"v", 1.0),
        (b"v", "1"),
        (b"v", b"0 0 1\r\nx\r\nflush_all\r\nset k 0"),
        (b"v", None),
        ("text", 0),
        (bytearray(b"v"), 0),
        (None, 0),
        (5, 0),
    ],
    ids=repr,
)
@pytest.mark.gen_test
async def test_what_a_serializer_must_not_return(encoded, silent):
    async with Client([silent.address], serializer=Odd(encoded)) as client:
        for how in ({}, NEVER):
            with pytest.raises(SerializationError):
                client.set("k", 1, **how)
            with pytest.raises(SerializationError):
                client.set_multi({"a": 1}, **how)
        assert await silent.untouched()


@pytest.mark.gen_test
async def test_a_value_over_a_limit_of_one_s_own(silent):
    came.clear()
    async with Client([silent.address], max_value_size=10) as client:
        for style in ({}, NEVER):
            with pytest.raises(ValueTooLarge, match="11 bytes; max_value_size is 10"):
                client.set("k", b"x" * 11, **style)
            with pytest.raises(ValueTooLarge):
                client.set("k", "\u00e9" * 6, **style)
            with pytest.raises(ValueTooLarge):
                client.request(Request(b"set", (b"k",), b"x" * 11), **style)
        assert await silent.untouched()
        assert came == []


@pytest.mark.gen_test
async def test_a_long_key_is_cut_in_the_message(silent):
    came.clear()
    async with Client([silent.address]) as client:
        for key in ("k" * 500_000, b"\xff" * 500_000, "\n" * 500_000):
            for style in ({}, NEVER):
                with pytest.raises(InvalidKey, match="500000 bytes|1000000 bytes") as caught:
                    client.get(key, **style)
                assert len(str(caught.value)) < 64 + 100
        assert await silent.untouched()
        assert came == []


@pytest.mark.gen_test
async def test_a_buffer_that_is_changed_after_the_call(memcached):
    async with Client([memcached.address]) as client:
        key, value = bytearray(b"key"), bytearray(b"value")
        calls = [client.set(key, value), client.get(key), client.get(memoryview(key))]
        key[:], value[:] = b"yek", b"eulav"
        assert await calls[0] is True
        assert await calls[1] == await calls[2] == b"value"
        assert await client.get_multi(["key", "yek"]) == {"key": b"value"}
