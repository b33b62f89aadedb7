"""Bad arguments to the two faces: they raise at the call, and nothing reaches the wire.

The table is that of `test_bad_input.py` in each face's own words and with its
own exceptions. What a face takes because its original did stands at the end.
"""

from __future__ import annotations

import asyncio
import contextlib
import decimal
import math
import pickle
import threading
from collections.abc import Callable, Iterator
from datetime import timedelta
from typing import Any

import memcache as theirs
import pytest

from tornado_memcache import InvalidKey, InvalidRequest, MemcacheError, boundary
from tornado_memcache import memcache as drop_in
from tornado_memcache import tornadoasyncmemcache as old_module

from .test_address import BAD as BAD_SERVERS
from .test_bad_input import came, never
from .test_submit import Recording

MILLION = "x" * (1 << 20)
UNPICKLABLE = threading.Lock()
#: What python-memcached's pickler raises comes out of the call there too.
AS_THERE = (TypeError, pickle.PicklingError)
Keys = drop_in.Client

#: (face and its settings, method, arguments, error, what the message says)
Case = tuple[str, str, tuple[Any, ...], Any, str]


def checked_keys() -> Iterator[tuple[Any, Any, str]]:
    """Keys that python-memcached's own checks refuse, with its exceptions."""
    yield None, Keys.MemcachedKeyNoneError, "Key is None"
    for key in (1, 0, 1.5, True, object(), ["k"], {"k": 1}, KeyError):
        yield key, Keys.MemcachedKeyTypeError, "Key must be"
    for key in (bytearray(b"k"), memoryview(b"k")):
        yield key, Keys.MemcachedKeyTypeError, "Key must be"
    for key in ("k" * 251, b"k" * 251, "\u00e9" * 126):
        yield key, Keys.MemcachedKeyLengthError, "Key length"
    for key in ("", b"", "a b", b"a b", "a\n", b"a\r\n", "a\r\nflush_all\r\n"):
        yield key, Keys.MemcachedKeyCharacterError, "key="
    for number in (*range(0x21), 0x7F):
        yield b"a" + bytes([number]), Keys.MemcachedKeyCharacterError, "key="
    for key in ("\udc80", "a\ud800b"):
        yield key, Keys.MemcachedStringEncodingError, "Key"
    yield (1, "a b"), Keys.MemcachedKeyCharacterError, "key="
    yield (1, None), Keys.MemcachedKeyNoneError, "Key"
    yield (1, (1, "k")), (TypeError, Keys.MemcachedKeyTypeError), "(?i)key"
    yield (None, "k"), TypeError, "hash of a key"
    for key in ((), ("k",), (1, "k", 2)):
        yield key, InvalidRequest, "key as a tuple"
    for route in (1.5, ("a",), bytearray(b"r")):
        yield (route, "k"), TypeError, "route must be"


def core_keys() -> Iterator[tuple[Any, Any, str]]:
    """Keys that the core refuses, whatever a face has switched off."""
    for key in ("", b"", "k" * 251, b"k" * 251, "\u00e9" * 126, "a b", "a\n", b"a\r\n", b"\x7f"):
        yield key, InvalidKey, "key"
    for key in ("a\r\nflush_all\r\n", "k 0 0 1\r\nflush_all\r\n", b"\0", b"\t", (1, "a b")):
        yield key, InvalidKey, "key"
    for key in (None, 1.5, True, object(), ["k"], {"k": 1}, (1, None)):
        yield key, TypeError, "key"


def wrong_numbers(name: str) -> Iterator[tuple[Any, Any, str]]:
    for number in ("60", b"60", None, [], object(), 1j):
        yield number, TypeError, f"{name} must be a number, not {type(number).__name__}"
    for number in (math.nan, math.inf, -math.inf, decimal.Decimal("nan")):
        yield number, InvalidRequest, f"{name} must be a finite number"


def times() -> Iterator[tuple[Any, Any, str]]:
    yield from wrong_numbers("time")
    for time in (2**31, 2**63, 10**400, -(2**31) - 1, float(2**31)):
        yield time, InvalidRequest, "time must be from"


def deltas() -> Iterator[tuple[Any, Any, str]]:
    yield from wrong_numbers("delta")
    for delta in (-1, 2**64, 10**400):
        yield delta, InvalidRequest, "delta must be from"


NO_LISTS = ("keys", b"keys", bytearray(b"keys"), memoryview(b"keys"), "", None, 5, object())
STORES = ("set", "add", "replace", "append", "prepend")


def memcache_cases() -> Iterator[Case]:
    """What ``tornado_memcache.memcache`` refuses."""
    one_key: dict[str, tuple[Any, ...]] = dict.fromkeys(STORES, ("v",))
    one_key.update(dict.fromkeys(("get", "gets", "delete", "touch", "incr", "decr"), ()))
    one_key["cas"] = ("v",)
    for face, keys in (("memcache", checked_keys), ("memcache-unchecked", core_keys)):
        for key, error, told in keys():
            for method, behind in one_key.items():
                yield face, method, (key, *behind), error, told
            if key is not None and not isinstance(key, (int, float, tuple, list, dict, type)):
                if isinstance(key, (str, bytes)):  # (others are made a str, as there)
                    yield face, "get_multi", (["good", key, "better"],), error, told
                    yield face, "delete_multi", (["good", key, "better"],), error, told
                    yield face, "set_multi", ({"good": 1, key: 2},), error, told
    for method in ("get_multi", "delete_multi"):
        yield "memcache", method, (["good", None],), Keys.MemcachedKeyNoneError, "Key is None"
        for keys_ in NO_LISTS:
            yield "memcache", method, (keys_,), TypeError, "keys must be a list"
    for mapping in (None, 5, "ab", ["a"], [("a", 1)], {"a"}):
        yield "memcache", "set_multi", (mapping,), TypeError, "mapping must be a mapping"
    for method, arguments in (("get_multi", (["k"],)), ("set_multi", ({"k": 1}, 0))):
        for prefix in (None, 0):
            yield "memcache", method, (*arguments, prefix), TypeError, "key_prefix must be"
        for prefix, error in (
            ("p p", Keys.MemcachedKeyCharacterError),
            (b"\n", Keys.MemcachedKeyCharacterError),
            ("p" * 251, Keys.MemcachedKeyLengthError),
            (5, Keys.MemcachedKeyTypeError),
            ("\udc80", Keys.MemcachedStringEncodingError),
        ):
            yield "memcache", method, (*arguments, prefix), error, "(?i)key"
        for prefix in ("p p", b"\r\nflush_all\r\n", "p" * 250):
            yield "memcache-unchecked", method, (*arguments, prefix), InvalidKey, "key"
    for time, error, told in times():
        for method in STORES:
            yield "memcache", method, ("k", "v", time), error, told
        yield "memcache", "set_multi", ({"k": "v"}, time), error, told
        yield "memcache", "touch", ("k", time), error, told
    for delta, error, told in deltas():
        for method in ("incr", "decr"):
            yield "memcache", method, ("k", delta), error, told
    for method in STORES:
        yield "memcache", method, ("k", UNPICKLABLE), AS_THERE, "pickle"
        yield "memcache", method, ("k", "\udc80"), InvalidRequest, "value"
    yield "memcache", "set_multi", ({"good": 1, "k": UNPICKLABLE},), AS_THERE, "pickle"
    yield "memcache", "cas", ("k", "v"), ValueError, "gets first"
    yield "memcache", "delete_multi", (["k"], 5), ValueError, "time"
    for argument in ("a\r\nflush_all", "a\n", "\0", "\u00e9", "x" * 251):
        yield "memcache", "get_stats", (argument,), InvalidRequest, "argument must be"
    for argument in (b"items", 1, ["items"]):
        yield "memcache", "get_stats", (argument,), TypeError, "argument must be"


def old_module_cases() -> Iterator[Case]:
    """What ``tornado_memcache.tornadoasyncmemcache`` refuses."""
    stores = ("set", "add", "replace")
    one_key: dict[str, tuple[Any, ...]] = dict.fromkeys(stores, ("v",))
    one_key.update(dict.fromkeys(("get", "delete", "incr", "decr"), ()))

    def keys() -> Iterator[tuple[Any, Any, str]]:
        yield from core_keys()
        yield 10**300, InvalidKey, "key"
        yield "\udc80", InvalidKey, "key"
        for key in ((), ("k",), (1, "k", 2)):
            yield key, InvalidRequest, "key as a tuple"
        for route in (1.5, True, ("a",)):
            yield (route, "k"), TypeError, "route must be"

    for key, error, told in keys():
        for method, behind in one_key.items():
            yield "old module", method, (key, *behind), error, told
        yield "old module", "gets", (["good", key, 7],), error, told
    for keys_ in NO_LISTS:
        yield "old module", "gets", (keys_,), TypeError, "keys must be a list"
    for time, error, told in times():
        for method in stores:
            yield "old module", method, ("k", "v", time), error, told
    yield "old module", "delete", ("k", 5), InvalidRequest, "time"
    for delta, error in ((-1, InvalidRequest), (2**64, InvalidRequest), (1.5, TypeError),
                         ("1", TypeError), (None, TypeError), (True, TypeError)):  # fmt: skip
        for method in ("incr", "decr"):
            yield "old module", method, ("k", delta), error, "delta must be"
    for method in stores:
        yield "old module", method, ("k", MILLION + "x"), InvalidRequest, "value .*max_value_size"
        for value in (UNPICKLABLE, "\udc80"):
            yield "old module", method, ("k", value), InvalidRequest, "value for key 'k'"


CASES = [*memcache_cases(), *old_module_cases()]


def make(face: str, address: str) -> Any:
    if face == "memcache":
        return drop_in.Client([address], cache_cas=True)
    if face == "memcache-unchecked":
        return drop_in.Client([address], check_keys=False, server_max_key_length=0, cache_cas=True)
    return old_module.ClientPool([address], maxclients=3)


STYLES: tuple[dict[str, Any], ...] = (
    {},
    {"callback": never},
    {"callback": never, "fail_callback": never},
    {"fail_callback": never},
)


def refused(call: Callable[..., Any], arguments: Any, error: Any, told: str, how: Any) -> None:
    with pytest.raises(error, match=told) as caught:
        with boundary(never):
            call(*arguments, **how)
    assert len(str(caught.value)) < 300
    if isinstance(caught.value, MemcacheError):
        assert isinstance(caught.value, ValueError)


async def other_calls(face: str, warm: Any) -> Any:
    """Two calls that are under way while others are refused."""
    if face != "old module":
        return await asyncio.gather(warm.get("other"), warm.incr("other", 0))
    loop = asyncio.get_running_loop()
    got, counted = loop.create_future(), loop.create_future()
    warm.get("other", callback=got.set_result)
    warm.incr("other", 0, callback=counted.set_result)
    return await asyncio.gather(got, counted)


@pytest.mark.parametrize(
    ("face", "method"), sorted({(face, method) for face, method, *_ in CASES}), ids=str
)
@pytest.mark.gen_test(timeout=60)
async def test_what_a_face_refuses_puts_nothing_on_the_wire(face, method, silent):
    failed: list[str] = []
    came.clear()
    async with Recording() as server:
        cold, warm = make(face, silent.address), make(face, server.address)
        with contextlib.closing(cold), contextlib.closing(warm):
            assert await warm._native.set("other", 1)
            for _, _, arguments, error, told in (one for one in CASES if one[:2] == (face, method)):
                server.take()
                others = asyncio.ensure_future(other_calls(face, warm))
                await asyncio.sleep(0)
                for client in (cold, warm):
                    if method == "cas":
                        token = None if told == "gets first" else 1
                        client.cas_ids.fetched = lambda key, token=token: token
                    for how in STYLES:
                        try:
                            refused(getattr(client, method), arguments, error, told, how)
                        except (Exception, pytest.fail.Exception) as fault:
                            failed.append(f"{method}{arguments!r:.80} {fault!r:.200}")
                assert await others == [1, 1]
                assert server.take() == [(b"get", b"other"), (b"incr", b"other")]
            if not failed:
                assert came == []
                assert await silent.untouched()
                assert server.connections == 1
                assert warm._native._pools[0].pending == 0
                assert getattr(warm, "_under_way", 0) == 0
    assert not failed, "\n".join([f"{len(failed)} of the table:", *failed[:20]])


# -- keywords, settings, servers

KEYWORDS: list[tuple[dict[str, Any], Any, str]] = [
    ({"timeout": 0}, InvalidRequest, "timeout must be"),
    ({"timeout": -1}, InvalidRequest, "timeout must be"),
    ({"timeout": math.nan}, InvalidRequest, "timeout must be"),
    ({"timeout": True}, TypeError, "timeout must be"),
    ({"timeout": "1"}, TypeError, "timeout must be"),
    ({"callback": 5}, TypeError, "callback must be callable"),
    ({"fail_callback": "f"}, TypeError, "fail_callback must be callable"),
    ({"time_out": 1}, TypeError, "time_out"),
]
METHODS: dict[str, tuple[Any, ...]] = {
    **dict.fromkeys(("get", "gets", "delete", "touch", "incr", "decr"), ("k",)),
    **dict.fromkeys(STORES, ("k", "v")),
    "get_multi": (["k"],),
    "set_multi": ({"k": "v"},),
    "delete_multi": (["k"],),
    **dict.fromkeys(("flush_all", "get_stats", "get_slabs", "get_slab_stats"), ()),
}


@pytest.mark.gen_test
async def test_bad_keywords_of_the_drop_in(silent):
    with contextlib.closing(make("memcache", silent.address)) as mc:
        came.clear()
        for method, arguments in METHODS.items():
            for how, error, told in KEYWORDS:
                for style in STYLES:
                    with pytest.raises(error, match=told), boundary(never):
                        getattr(mc, method)(*arguments, **{**style, **how})
        assert await silent.untouched()
        assert came == []


@pytest.mark.parametrize("face", ["memcache", "memcache-unchecked", "old module"])
@pytest.mark.gen_test
async def test_a_long_key_is_cut_in_the_message(face, silent):
    came.clear()
    with contextlib.closing(make(face, silent.address)) as client:
        for key in ("k" * 500_000, b"\xff" * 500_000, "\n" * 500_000):
            for style in STYLES:
                with pytest.raises(Exception, match="(?i)key") as caught, boundary(never):
                    client.set(key, "v", **style)
                assert len(str(caught.value)) < 64 + 100
        assert await silent.untouched()
        assert came == []


@pytest.mark.gen_test
async def test_bad_callbacks_of_the_old_module(silent):
    with contextlib.closing(make("old module", silent.address)) as pool:
        for method in ("get", "set", "add", "replace", "delete", "incr", "decr", "gets"):
            arguments = (["k"],) if method == "gets" else METHODS[method]
            for name in ("callback", "fail_callback"):
                with pytest.raises(TypeError, match=f"{name} must be callable"):
                    getattr(pool, method)(*arguments, **{name: 5})
            with pytest.raises(TypeError, match="time_out"):
                getattr(pool, method)(*arguments, time_out=1)
        assert pool.stats == {} and pool._under_way == 0
        assert await silent.untouched()


@pytest.mark.parametrize("kind", [drop_in.Client, old_module.Client, old_module.ClientPool])
@pytest.mark.gen_test
async def test_bad_servers_connect_to_nobody_and_leave_those_that_were_there(kind, silent):
    with contextlib.closing(kind([silent.address])) as client:
        for spec, *_ in BAD_SERVERS:
            for make_or_set in (kind, client.set_servers):
                try:
                    made = make_or_set([silent.address, spec])
                except (ValueError, TypeError) as error:
                    assert len(str(error)) < 250, spec
                    continue
                assert kind is drop_in.Client and theirs.Client([spec]), spec
                if made is not None:
                    made.close()
                else:
                    client.set_servers([silent.address])
        assert [server.name for server in client.servers] == [silent.address]
        for specs in ([], "h:1", None, [silent.address] * 2):
            with pytest.raises((ValueError, TypeError)):
                client.set_servers(specs)
        assert [server.name for server in client.servers] == [silent.address]
        assert await silent.untouched()


@pytest.mark.parametrize("kind", [drop_in.Client, old_module.Client, old_module.ClientPool])
def test_lengths_that_are_refused_are_named(kind):
    names = ["socket_timeout"] if kind is drop_in.Client else []
    for name in ("connect_timeout", "request_timeout", "dead_retry", *names):
        for value, error in (
            (-1, InvalidRequest),
            (math.nan, InvalidRequest),
            (math.inf, InvalidRequest),
            (True, TypeError),
            ("1", TypeError),
        ):
            with pytest.raises(error, match=name):
                kind(["a"], **{name: value})


class Wrong:
    """A serializer that raises, or returns what it must not."""

    raw_flags = 0

    def __init__(self, outcome: Any) -> None:
        self._outcome = outcome

    def encode(self, key: bytes, value: Any) -> Any:
        if isinstance(self._outcome, Exception):
            raise self._outcome
        return self._outcome

    decode = None


@pytest.mark.parametrize(
    "outcome",
    [RuntimeError("x"), KeyError("k"), ("text", 0), (b"v", -1), (b"v", 2**32), (b"v", "1"), None],
    ids=repr,
)
@pytest.mark.gen_test
async def test_what_a_serializer_of_the_old_module_must_not_do(outcome, silent):
    with contextlib.closing(old_module.Client([silent.address], serializer=Wrong(outcome))) as old:
        for method in (old.set, old.add, old.replace):
            for how in STYLES:
                with pytest.raises((InvalidRequest, TypeError)), boundary(never):
                    method("k", 1, **how)
        assert await silent.untouched()


# -- what a face takes, because its original does


@pytest.mark.gen_test
async def test_a_value_over_the_limit_is_0_without_any_io_in_the_drop_in(silent):
    with contextlib.closing(make("memcache", silent.address)) as mc:
        for method in STORES:
            assert await getattr(mc, method)("k", MILLION + "x") == 0
        assert await mc.set_multi({"k": MILLION + "x"}) == ["k"]
        told = asyncio.get_running_loop().create_future()
        mc.set("k", MILLION + "x", callback=told.set_result, fail_callback=never)
        assert await told == 0
        assert await mc.get_multi([]) == {} and await mc.set_multi({}) == []
        assert await mc.delete_multi(iter([])) == 1
        assert await silent.untouched()


@pytest.mark.gen_test
async def test_nothing_to_do_is_no_io_in_the_old_module(silent):
    with contextlib.closing(make("old module", silent.address)) as pool:
        told = asyncio.get_running_loop().create_future()
        pool.gets([], callback=told.set_result, fail_callback=never)
        assert await told == {}
        assert await silent.untouched()


@pytest.mark.gen_test
async def test_times_and_deltas_lose_their_fraction_as_they_did():
    async with Recording() as server:
        with contextlib.closing(make("memcache", server.address)) as mc:
            for time in (-1, True, 60.9, timedelta(minutes=1), decimal.Decimal(60), 60):
                assert await mc.set("k", 1, time) is True
            assert await mc.incr("k", 2.5) == 3
        assert [one.exptime for one in server.lines[:-1]] == [-1, 1, 60, 60, 60, 60]
        assert server.lines[-1].delta == 2


@pytest.mark.gen_test
async def test_an_int_is_a_key_of_the_old_module():
    async with Recording() as server:
        with contextlib.closing(make("old module", server.address)) as pool:
            told = asyncio.get_running_loop().create_future()
            pool.gets([5, (1, 6), (7, "x")], callback=told.set_result)
            assert await told == {}
        assert server.take() == [(b"get", b"5", b"6", b"x")]
