"""Whatever a caller passes, what leaves is requests of the protocol and nothing else.

Arguments of every kind, good and bad, to every command of the native client
and of the python-memcached face, whose settings switch checks off. A call
either raises, and nothing leaves, or what leaves is read by `tests.grammar` as
whole lines and data blocks, for the keys that were asked and no other.
"""

import functools
from collections.abc import Callable
from datetime import timezone
from typing import Any, NamedTuple

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from tornado_memcache import Client, MemcacheError, Request, memcache
from tornado_memcache.pool import Pool
from tornado_memcache.text import LINE_BYTES

from .grammar import Written, requests_in
from .test_text import any_keys, block_ends

FLUSH = b"x 0 0 1\r\n1\r\nflush_all\r\nset y"
#: What is no key, or none that can be sent.
bad_keys = st.sampled_from([None, 5, True, 1.5, (), ("r",), ["a"], "\ud800", FLUSH, "a\tb", "\x85"])
keys = st.one_of(
    any_keys,
    any_keys.filter(lambda key: isinstance(key, bytes)).map(bytearray),
    st.tuples(st.sampled_from(["route", 7, b"r"]), any_keys),
    bad_keys,
)
whole = st.integers() | st.sampled_from([-1, 0, 1, 2**31, 2**32, 2**64 - 1, 2**64, -(2**63)])
odd = st.sampled_from([None, True, 1.0, float("nan"), "1", b"1\r\nflush_all", [], FLUSH])
numbers = whole | whole | odd
moments = st.datetimes(timezones=st.just(timezone.utc))
exptimes = st.one_of(whole, st.timedeltas(), moments, st.datetimes(), odd)
values = st.one_of(
    st.binary(max_size=20),
    st.text(max_size=20),
    st.tuples(st.binary(max_size=4), block_ends).map(b"".join),
    whole,
    st.sampled_from([bytearray(b"v\r\n"), memoryview(b"v"), None, 1.5, True, "\ud800", FLUSH]),
    st.sampled_from([100, 20_000]).map(lambda size: b"\r\n" * size),
)
arguments = st.one_of(
    st.sampled_from([None, "items", "a b", " cachedump  1 ", "", "\r\nflush_all", "a\0", 5]),
    st.text(max_size=12),
)
prefixes = st.one_of(st.sampled_from(["", "p:", b"p:", "\u00e9", "x" * 240]), any_keys)


class Passed(NamedTuple):
    """What a caller passes, each argument of any kind."""

    key: Any
    keys: list[Any]
    value: Any
    exptime: Any
    number: Any
    argument: Any
    noreply: bool


passed = st.builds(
    Passed, keys, st.lists(keys, max_size=4), values, exptimes, numbers, arguments, st.booleans()
)


def mapping(it: Passed) -> dict[Any, Any]:
    """Returns a dict of all keys that can be in one."""
    return {key: it.value for key in it.keys if key.__hash__ is not None}


NATIVE: dict[str, Callable[[Any, Passed], Any]] = {
    "get": lambda mc, it: mc.get(it.key),
    "gets": lambda mc, it: mc.gets(it.key),
    "gat": lambda mc, it: mc.gat(it.key, it.exptime),
    "gats": lambda mc, it: mc.gats(it.key, it.exptime),
    "get_multi": lambda mc, it: mc.get_multi(it.keys),
    "gets_multi": lambda mc, it: mc.gets_multi(it.keys),
    "set": lambda mc, it: mc.set(it.key, it.value, it.exptime, it.noreply),
    "add": lambda mc, it: mc.add(it.key, it.value, it.exptime, it.noreply),
    "replace": lambda mc, it: mc.replace(it.key, it.value, it.exptime, it.noreply),
    "append": lambda mc, it: mc.append(it.key, it.value, it.exptime, it.noreply),
    "prepend": lambda mc, it: mc.prepend(it.key, it.value, it.exptime, it.noreply),
    "cas": lambda mc, it: mc.cas(it.key, it.value, it.number, it.exptime),
    "set_multi": lambda mc, it: mc.set_multi(mapping(it), it.exptime),
    "delete": lambda mc, it: mc.delete(it.key),
    "delete_multi": lambda mc, it: mc.delete_multi(it.keys),
    "touch": lambda mc, it: mc.touch(it.key, it.exptime),
    "incr": lambda mc, it: mc.incr(it.key, it.number),
    "decr": lambda mc, it: mc.decr(it.key, it.number),
    "flush_all": lambda mc, it: mc.flush_all(it.number),
    "stats": lambda mc, it: mc.stats(it.argument),
    "version": lambda mc, it: mc.version(),
    "request": lambda mc, it: mc.request(
        Request(b"set", (it.key,), it.value, it.number, it.exptime, noreply=it.noreply)
    ),
    "request_many": lambda mc, it: mc.request_many(
        [Request(b"cas", (it.key,), it.value, cas_unique=it.number), Request(b"get", (*it.keys,))]
    ),
}
FACE: dict[str, Callable[[Any, Passed], Any]] = {
    "get": lambda mc, it: mc.get(it.key),
    "gets": lambda mc, it: mc.gets(it.key),
    "get_multi": lambda mc, it: mc.get_multi(it.keys, it.argument),
    "set": lambda mc, it: mc.set(it.key, it.value, it.exptime, noreply=it.noreply),
    "append": lambda mc, it: mc.append(it.key, it.value, it.exptime, noreply=it.noreply),
    "cas": lambda mc, it: mc.cas(it.key, it.value, it.exptime, noreply=it.noreply),
    "set_multi": lambda mc, it: mc.set_multi(
        mapping(it), it.exptime, it.argument, noreply=it.noreply
    ),
    "delete": lambda mc, it: mc.delete(it.key, it.noreply),
    "delete_multi": lambda mc, it: mc.delete_multi(
        it.keys, key_prefix=it.argument, noreply=it.noreply
    ),
    "touch": lambda mc, it: mc.touch(it.key, it.exptime, it.noreply),
    "incr": lambda mc, it: mc.incr(it.key, it.number, it.noreply),
    "decr": lambda mc, it: mc.decr(it.key, it.number, it.noreply),
    "get_stats": lambda mc, it: mc.get_stats(it.argument),
}


@pytest.fixture
def written(io_loop, monkeypatch):
    """Makes one call and returns what would leave for it, and what it raised."""
    slots: list[Any] = []
    monkeypatch.setattr(Pool, "submit", lambda pool, slot: slots.append(slot))

    async def write(make: Callable[[], Any], call: Callable[[Any], Any]) -> Any:
        slots.clear()
        mc = make()
        try:
            ended = call(mc)
            if hasattr(ended, "cancel"):
                ended.cancel()
            raised = None
        except Exception as error:
            raised = error
        finally:
            mc.close()
        return requests_in(b"".join(piece for slot in slots for piece in slot.encode())), raised

    return lambda make, call: io_loop.run_sync(functools.partial(write, make, call))


def wire(key: Any, prefix: Any = b"") -> bytes:
    """Returns the bytes of a key that may be sent."""
    key = key[1] if isinstance(key, tuple) else key
    parts = [one.encode() if isinstance(one, str) else bytes(one) for one in (prefix, key)]
    return b"".join(parts)


def fits(prefix: Any) -> bool:
    """True if a client takes ``prefix``."""
    try:
        Client(["127.0.0.1:1"], key_prefix=prefix).close()
    except (MemcacheError, TypeError):
        return False
    return True


def keys_of(requests: list[Written]) -> set[bytes]:
    return {key for request in requests for key in request.keys}


@pytest.mark.parametrize("name", NATIVE)
def test_what_a_native_call_sends(written, name):
    @settings(max_examples=60, deadline=None, database=None)
    @given(passed, prefixes)
    @example(Passed("k", ["a", "b", "a"], b"\r\n", 60, 5, "items", True), "p:")
    @example(Passed(FLUSH, [FLUSH], FLUSH, 0, 0, "\r\nflush_all", False), "")
    def holds(it: Passed, prefix: Any) -> None:
        prefix = prefix if fits(prefix) else b""
        requests, raised = written(
            lambda: Client(["127.0.0.1:1"], key_prefix=prefix), lambda mc: NATIVE[name](mc, it)
        )
        if raised is not None:
            assert isinstance(raised, (MemcacheError, TypeError)), raised
            assert requests == []
            return
        verbs = {request.words[0].decode() for request in requests}
        if name.startswith("request"):
            assert verbs <= {"set", "cas", "get"}
            return
        assert verbs <= {name.removesuffix("_multi")}
        if name not in ("flush_all", "stats", "version"):
            asked = [it.key]
            if name.endswith("_multi"):
                asked = list(mapping(it)) if name == "set_multi" else it.keys
            assert keys_of(requests) == {wire(key, prefix) for key in asked}

    holds()


@pytest.mark.parametrize("name", FACE)
@pytest.mark.parametrize("checks", [True, False])
def test_no_setting_of_the_face_switches_the_checks_of_the_wire_off(written, name, checks):
    off = {} if checks else {"check_keys": False, "server_max_key_length": 0}

    @settings(max_examples=60, deadline=None, database=None)
    @given(passed)
    @example(Passed("k", ["a", "b"], b"\r\n", 60, 5, "p", True))
    @example(Passed(b"k" * 300, [b"k" * 300], "flush_all", 0, 0, "", False))
    @example(Passed(FLUSH, [FLUSH], FLUSH, 0, 0, "\r\nflush_all", False))
    def holds(it: Passed) -> None:
        requests, raised = written(
            lambda: memcache.Client(["127.0.0.1:1"], **off), lambda mc: FACE[name](mc, it)
        )
        verb = {"get_stats": "stats"}.get(name, name.removesuffix("_multi"))
        # (a cas of what was not fetched is a set)
        assert {request.words[0].decode() for request in requests} <= {verb, "set"}
        assert raised is None or requests == []

    holds()


def test_many_keys_are_lines_of_a_bounded_length(written):
    keys = [b"%03d" % number + b"k" * 200 for number in range(500)]
    for name in ("get_multi", "gets_multi", "delete_multi"):
        requests, raised = written(
            lambda: Client(["127.0.0.1:1"]), lambda mc, name=name: getattr(mc, name)(keys)
        )
        assert raised is None
        assert [key for request in requests for key in request.keys] == keys
        assert all(len(request.line) <= LINE_BYTES for request in requests)
