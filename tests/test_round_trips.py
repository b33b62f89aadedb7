"""What is accepted comes back as it went in, and its request is one line, and a block if any.

A reader of requests that is not the package's own counts the CRLFs. The
property is held against arbitrary objects as arguments of every command of
the client and of both faces: what raises puts nothing on the wire.
"""

from __future__ import annotations

import asyncio
import contextlib
import decimal
import fractions
import re
from collections.abc import Callable, Iterator
from datetime import datetime, timedelta, timezone
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tornado_memcache import Client, ClientError, Reply, Request
from tornado_memcache import memcache as drop_in
from tornado_memcache import tornadoasyncmemcache as old_module
from tornado_memcache.protocol import STREAMED_BLOCK
from tornado_memcache.text import KEYLESS, VERBS

from .silent import Silent
from .test_submit import Recording

ALL = bytes(range(256))
DATA = {
    "every byte": ALL,
    "nothing": b"",
    "what ends a reply": b"\r\nEND\r\n",
    "a reply": b"VALUE k 0 1\r\nv\r\nEND\r\n",
    "a command": b"\r\nflush_all\r\n",
    "half a line end": b"\r",
    "its own length": b"set k 0 0 9\r\nflush_all\r\n",
    "streamed": ALL * 300,
    "as long as is allowed": b"\r\n" * (512 * 1024 - 512),
}
DATA_CASES = pytest.mark.parametrize("data", DATA.values(), ids=DATA)


async def called(method: Callable[..., Any], *arguments: Any) -> Any:
    """Calls in callback style, the only one of the old module, whose failures are tuples."""
    outcome = asyncio.get_running_loop().create_future()

    def failed(told: tuple[str]) -> None:
        outcome.set_exception(RuntimeError(*told))

    method(*arguments, callback=outcome.set_result, fail_callback=failed)
    return await outcome


# -- values both ways


@DATA_CASES
@pytest.mark.gen_test(timeout=60)
async def test_data_comes_back_by_every_command_of_the_client(data, memcached):
    text = data.decode("latin-1") if len(data) < 1 << 18 else "short"
    async with Client([memcached.address]) as mc:
        for value in (data, text):
            await mc.delete("k")
            assert await mc.add("k", value) and await mc.get("k") == value
            assert await mc.replace("k", value) and await mc.gat("k", 60) == value
            same, unique = await mc.gets("k")
            assert same == value and (await mc.gats("k", 60))[0] == value
            assert await mc.cas("k", value, unique) and await mc.get_multi(["k"]) == {"k": value}
            assert await mc.set_multi({"k": value, "j": value}) == []
            found = await mc.gets_multi(["j", "k"])
            assert {key: one for key, (one, _) in found.items()} == {"j": value, "k": value}
            await mc.set("a", value[:0])
            assert await mc.append("a", value) and await mc.get("a") == value
            await mc.set("a", value[:0])
            assert await mc.prepend("a", value) and await mc.get("a") == value
        assert mc._pools[0].losses == 0


@DATA_CASES
@pytest.mark.gen_test(timeout=60)
async def test_data_comes_back_with_any_flags_by_request(data, memcached):
    async with Client([memcached.address]) as mc:
        for flags in (0, 1, 8, 16, 2**32 - 1):
            stored = await mc.request(Request(b"set", (b"k",), data, flags))
            assert stored == Reply(b"STORED")
            item = (await mc.request(Request(b"gets", (b"k",)))).items[b"k"]
            assert (item.value, item.flags) == (data, flags)
            many = [Request(b"set", (b"j",), data, flags), Request(b"get", (b"j",))]
            stored, got = await mc.request_many(many)
            assert stored.status == b"STORED" and got.items[b"j"][:2] == (data, flags)


@DATA_CASES
@pytest.mark.gen_test(timeout=60)
async def test_data_comes_back_through_the_faces(data, memcached):
    text = data.decode("latin-1") if len(data) < 1 << 18 else "short"
    with (
        contextlib.closing(drop_in.Client([memcached.address])) as mc,
        contextlib.closing(old_module.Client([memcached.address])) as old,
    ):
        for value in (data, text, {"pickled": text}):
            assert await mc.set("k", value) is True and await mc.get("k") == value
            assert await mc.set_multi({"k": value}) == []
            assert await mc.get_multi(["k"]) == {"k": value}
            assert await called(old.set, "k", value) is None
            assert await called(old.get, "k") == value
            assert await called(old.gets, ["k"]) == {"k": value}


@pytest.mark.gen_test
async def test_a_key_that_is_a_word_of_the_protocol(memcached):
    words = [b"noreply", b"END", b"0", b"get", b"STORED", b"flush_all", b"\xff" * 250]
    async with Client([memcached.address]) as mc:
        for word in words:
            assert await mc.set(word, b"1", 60) and await mc.incr(word) == 2
            assert await mc.decr(word, 2) == 0 and await mc.touch(word, 60)
            assert await mc.append(word, b"0") and await mc.gat(word, 60) == b"00"
            assert await mc.delete(word) and await mc.get(word) is None
        assert await mc.set_multi(dict.fromkeys(words, b"v")) == []
        assert await mc.get_multi(words) == dict.fromkeys(words, b"v")
        assert await mc.delete_multi(words) == []
        assert mc._pools[0].losses == 0


# -- what is changed after the call


@pytest.mark.gen_test
async def test_whatever_is_changed_after_the_call_was_copied(memcached):
    """On a cold client: the bytes leave long after the call."""
    async with Client([memcached.address]) as warm:
        await warm.set_multi(dict.fromkeys(["replaced", "appended", "prepended", "swapped"], b"-"))
        _, unique = await warm.gets("swapped")
        async with Client([memcached.address]) as mc:
            key, value = bytearray(b"set-"), bytearray(b"value")
            view, asked, stored = memoryview(value), ["set-", "set+"], {"many": value}
            calls = [
                mc.set(key, value),
                mc.add("added", view),
                mc.replace("replaced", view),
                mc.append("appended", value),
                mc.prepend("prepended", value),
                mc.cas("swapped", view, int(unique)),
                mc.set_multi(stored),
                mc.get_multi(asked),
            ]
            requests = [Request(b"set", (b"requested",), b"value")]
            calls.append(mc.request_many(requests))
            key[:], value[:], asked[:] = b"set+", b"eulav", ["set+"]
            stored["late"] = b"late"
            requests[:] = [Request(b"flush_all")]
            outcomes = await asyncio.gather(*calls)
            assert outcomes[:6] == [True] * 6 and outcomes[6] == []
            assert outcomes[7] == {"set-": b"value"} and outcomes[8] == [Reply(b"STORED")]
            there = ["set-", "added", "requested", "replaced", "swapped", "many"]
            found = await mc.get_multi([*there, "set+", "late"])
            assert found == dict.fromkeys(there, b"value")
            assert await mc.get_multi(["appended", "prepended"]) == {
                "appended": b"-value",
                "prepended": b"value-",
            }


@pytest.mark.gen_test
async def test_what_is_changed_after_the_call_to_a_face(memcached):
    with (
        contextlib.closing(drop_in.Client([memcached.address])) as mc,
        contextlib.closing(old_module.Client([memcached.address])) as old,
    ):
        value, listed, keys = bytearray(b"value"), ["value"], ["a", "b"]
        # (They are there already: the two clients have a connection each, in no order.)
        assert await mc.set_multi({"a": value, "b": listed}) == []
        calls = [mc.set("a", value), mc.set("b", listed), mc.get_multi(keys)]
        calls.append(asyncio.ensure_future(called(old.set, "c", value)))
        await asyncio.sleep(0)
        calls.append(asyncio.ensure_future(called(old.gets, keys)))
        await asyncio.sleep(0)
        value[:], listed[:], keys[:] = b"eulav", ["eulav"], ["c"]
        both = {"a": bytearray(b"value"), "b": ["value"]}
        assert await asyncio.gather(*calls) == [True, True, both, None, both]
        assert await mc.get("c") == b"value"


@pytest.mark.gen_test
async def test_a_token_from_before_a_loss_is_not_sent_in_a_request_either(start_memcached):
    server = start_memcached()
    async with Client([server.address]) as mc:
        await mc.set_multi({"k": b"old", "j": b"old"})
        (_, k), (_, j) = (await mc.gets_multi(["k", "j"])).values()
        server.restart()
        server.ask(b"set k 0 0 5\r\nother\r\nset j 0 0 5\r\nother\r\n", b"STORED\r\nSTORED\r\n")
        while mc._pools[0].losses == 0:
            await asyncio.sleep(0.001)
        requests = [Request(b"cas", (b"k",), b"new", cas_unique=k), Request(b"get", (b"k",))]
        refused, got = await mc.request_many(requests)
        assert refused == Reply(b"EXISTS") and got.items[b"k"].value == b"other"
        assert await mc.request(requests[0]) == Reply(b"EXISTS")
        assert await mc.request_many(requests[:1]) == [Reply(b"EXISTS")]
        # A plain int is sent as it is.
        plain = Request(b"cas", (b"j",), b"new", cas_unique=int(j))
        assert (await mc.request_many([plain]))[0].status in (b"STORED", b"EXISTS")


# -- numbers


@pytest.mark.gen_test
async def test_incr_and_decr_of_what_is_there(memcached):
    async with Client([memcached.address]) as mc:
        for command in (mc.incr, mc.decr):
            assert await command("miss") is None
            for text in ("text", "1.5", "-1", "", "0x10"):
                await mc.set("n", text)
                with pytest.raises(ClientError, match="'n'.*non-numeric"):
                    await command("n")
        await mc.set("n", b"10 ")
        assert await mc.incr("n") == 11
        await mc.set("n", "10 ")
        assert await mc.decr("n") == 9
        assert await mc.decr("n", 10) == 0 and await mc.decr("n") == 0
        assert mc._pools[0].losses == 0


# -- many keys


@pytest.mark.gen_test(timeout=60)
async def test_10_000_keys_leave_in_lines_of_at_most_100_keys(memcached):
    keys = [str(number).zfill(240 * (number % 2)) for number in range(10_000)]
    async with Recording() as server, Client([server.address], request_timeout=20) as mc:
        for method in (mc.get_multi, mc.gets_multi):
            assert await method([*keys, *keys]) == {}
            lines = server.take()
            assert [key.decode() for line in lines for key in line[1:]] == keys
            assert all(len(line) <= 101 for line in lines)
            assert all(sum(map(len, line)) + len(line) <= 8 * 1024 for line in lines)
        gathered = await asyncio.gather(*map(mc.get, keys))
        assert set(gathered) == {None}
        lines = server.take()
        assert {line[0] for line in lines} == {b"get"}
        assert sorted(key.decode() for line in lines for key in line[1:]) == sorted(keys)
        assert all(len(line) <= 101 for line in lines)
        assert await mc.delete_multi([*keys[:500], *keys[:500]]) == []
        assert len(server.take()) == 500
    with contextlib.closing(drop_in.Client([memcached.address], socket_timeout=20)) as face:
        assert await face.set_multi(dict.fromkeys(keys, 1)) == []
        assert await face.get_multi([*keys, *keys]) == dict.fromkeys(keys, 1)
        assert await face.delete_multi(keys) == 1
        assert await face.get_multi(keys) == {}


@pytest.mark.gen_test
async def test_the_longest_line_of_gat_that_is_accepted_is_answered(memcached):
    """memcached resets the connection on a line of 20 kB."""
    async with Client([memcached.address]) as mc:
        for verb in (b"gat", b"gats"):
            for keys in ([b"k" * 240] * 7, [b"k"] * 940):
                reply = await mc.request(Request(verb, tuple(keys), exptime=-(2**31)))
                assert reply == Reply(b"END")
        assert mc._pools[0].losses == 0
    async with Recording() as server, Client([server.address]) as mc:
        for count in range(930, 960):
            try:
                mc.request(Request(b"gats", (b"k",) * count, exptime=-(2**31)))
            except ValueError:
                break
        # (verb, exptime and CRLF included)
        assert len(b"gats -2147483648\r\n") + 2 * count <= 1902


# -- arbitrary objects


class Word(str):
    pass


class Number(int):
    def __str__(self) -> str:
        return "1\r\nflush_all"

    __repr__ = __format__ = __str__  # type: ignore[assignment]


class Odd:
    """Is whatever it is asked to be, and has a line end in it."""

    def __str__(self) -> str:
        return "k\r\nflush_all\r\n"

    __repr__ = __str__

    def __bytes__(self) -> bytes:
        return b"k\r\nflush_all\r\n"

    def __len__(self) -> int:
        return 1

    def __int__(self) -> int:
        return 1

    __index__ = __int__

    def __iter__(self) -> Iterator[Any]:
        return iter([b"k\r\nflush_all\r\n"])


words = st.one_of(
    st.text(max_size=8),
    st.binary(max_size=8),
    st.sampled_from(["k", b"k", "k\r\n", b"k 0 0 1\r\nflush_all", "", " ", "noreply", Word("w")]),
    st.sampled_from([bytearray(b"k"), memoryview(b"k\r\n"), "k" * 250, b"k" * 251, "\udc80"]),
)
numbers = st.one_of(
    st.integers(),
    st.floats(),
    st.booleans(),
    st.sampled_from([0, 1, -1, 60, 2**31 - 1, 2**31, 2**32, 2**64 - 1, 2**64, Number(7)]),
    st.sampled_from([decimal.Decimal(5), decimal.Decimal("nan"), fractions.Fraction(1, 3), 1j]),
    st.timedeltas(),
    st.datetimes(timezones=st.sampled_from([None, timezone.utc])),
    st.sampled_from([datetime(2037, 1, 1, tzinfo=timezone.utc), timedelta(days=30, seconds=1)]),
)
others = st.sampled_from([None, Odd(), Odd, object(), ..., NotImplemented, len, Request(b"get")])
single = st.one_of(words, numbers, others)
anything = st.one_of(
    single,
    st.tuples(single, single),
    st.lists(single, max_size=3),
    st.dictionaries(st.one_of(st.text(max_size=4), st.integers()), single, max_size=3),
)
good_key = st.sampled_from(["k", b"key", "\u00e9", (1, "k"), "k" * 250])
good_value = st.sampled_from([b"", b"\r\nEND\r\n", "text", 7, b"x" * (STREAMED_BLOCK + 1)])
good_number = st.sampled_from([0, 1, 60, 2**31 - 1])


def mostly(good: Any, other: Any = anything) -> Any:
    """Draws from ``good``, and once in a while from ``other``."""
    return st.sampled_from([good] * 7 + [other]).flatmap(lambda chosen: chosen)


def of_requests() -> Any:
    """Requests of which any field may be anything."""
    verbs = [b"get", b"gets", b"gat", b"gats", b"set", b"add", b"cas", b"incr", b"touch", b"delete"]
    number = mostly(good_number, numbers)
    good = st.builds(
        Request,
        verb=mostly(st.sampled_from(verbs), words),
        keys=mostly(st.just((b"k",)), st.one_of(st.tuples(words), anything)),
        value=mostly(st.sampled_from([b"", b"\r\nflush_all\r\n"])),
        flags=number,
        exptime=number,
        cas_unique=number,
        delta=number,
        noreply=mostly(st.just(False), st.one_of(st.booleans(), others)),
        argument=mostly(st.just(b""), words),
    )
    return mostly(good)


def arguments(*good: Any) -> Any:
    """Arguments of which each is a good one, more often than not, or anything."""
    return st.tuples(*map(mostly, good))


many_keys = st.lists(good_key, max_size=3)
many_values = st.dictionaries(good_key, good_value, max_size=3)
STORE = arguments(good_key, good_value, good_number)
COUNT = arguments(good_key, good_number)

#: For each command the verbs that it may send, and its arguments.
COMMANDS: dict[str, tuple[set[bytes], Any]] = {
    "get": ({b"get"}, arguments(good_key)),
    "gets": ({b"gets"}, arguments(good_key)),
    "gat": ({b"gat"}, COUNT),
    "gats": ({b"gats"}, COUNT),
    "get_multi": ({b"get"}, arguments(many_keys)),
    "gets_multi": ({b"gets"}, arguments(many_keys)),
    **{name: ({name.encode()}, STORE) for name in ("set", "add", "replace", "append", "prepend")},
    "cas": ({b"cas"}, arguments(good_key, good_value, good_number, good_number)),
    "set_multi": ({b"set"}, arguments(many_values, good_number)),
    "delete_multi": ({b"delete"}, arguments(many_keys)),
    "delete": ({b"delete"}, arguments(good_key)),
    "touch": ({b"touch"}, COUNT),
    "incr": ({b"incr"}, COUNT),
    "decr": ({b"decr"}, COUNT),
    "flush_all": ({b"flush_all"}, arguments(good_number)),
    "stats": ({b"stats"}, arguments(st.sampled_from([None, "items"]))),
}
REQUESTS: dict[str, tuple[set[bytes], Any]] = {
    "request": (set(VERBS) - KEYLESS, st.tuples(of_requests())),
    "request_many": (set(VERBS) - KEYLESS, st.tuples(st.lists(of_requests(), max_size=3))),
}
#: The old module's ``gets`` is for many keys.
OLD = {**{name: COMMANDS[name] for name in ("get", "set", "add", "replace", "delete", "incr")},
       "gets": ({b"get"}, arguments(many_keys))}  # fmt: skip
FACE = {
    name: COMMANDS[name]
    for name in COMMANDS
    if name not in ("gat", "gats", "gets_multi", "stats", "flush_all", "cas")
}

_NUMBER = rb"(?:-?[0-9]{1,20})"
_LINES = re.compile(
    rb"(?:(?P<many>gets?|gats? %b)(?: [^\x00-\x20\x7f]{1,250}){1,100}"
    rb"|(?P<stored>set|add|replace|append|prepend|cas) [^\x00-\x20\x7f]{1,250}"
    rb" [0-9]{1,10} %b (?P<length>[0-9]{1,7})(?: [0-9]{1,20})?(?: noreply)?"
    rb"|(?P<one>delete|touch|incr|decr) [^\x00-\x20\x7f]{1,250}(?: %b)?(?: noreply)?"
    rb"|m[gda] [^\x00-\x20\x7f]{1,250}(?: [A-Za-z][^\x00-\x20\x7f]*)*"
    rb"|me [^\x00-\x20\x7f]{1,250}(?: b)?"
    rb"|flush_all(?: [0-9]{1,10})?|stats(?: [!-~]+)*)\r\n" % (_NUMBER, _NUMBER, _NUMBER)
)


def verbs_in(data: bytes) -> list[bytes]:
    """Reads ``data`` as requests from its first byte to its last; returns their verbs."""
    verbs, position = [], 0
    while position < len(data):
        line = _LINES.match(data, position)
        assert line is not None, data[position : position + 200]
        position = line.end()
        if line["length"] is not None:
            position += int(line["length"]) + 2
            assert data[position - 2 : position] == b"\r\n", data[:200]
        verbs.append(line[0].split()[0])
    assert position == len(data)
    return verbs


async def send(client: Any, native: Client, method: str, given: Any, peer: Silent) -> bytes | None:
    """Makes one call; returns what it put on the wire, None if it raised."""
    how = {} if isinstance(client, (Client, drop_in.Client)) else {"fail_callback": type}
    try:
        call = getattr(client, method)(*given, **how)
    except Exception:
        call = None
        raised = True
    else:
        raised = False
        pools = native._pools
        for _ in range(2000):
            if not any(pool.counts()["waiting"] or pool.counts()["connecting"] for pool in pools):
                break
            await asyncio.sleep(0.001)
        for _ in range(3):
            await asyncio.sleep(0)
    client.close()
    if call is not None:
        await asyncio.wait([call])
        call.cancelled() or call.exception()
    sent = peer.received
    if raised:
        assert sent == b"" and peer.connections == 0
        return None
    return sent


def hold(kind: Callable[[str], Any], commands: dict[str, Any]) -> None:
    """Holds the property for one kind of client."""
    outcomes = {"raised": 0, "accepted": 0}

    @settings(max_examples=150, deadline=None, database=None)
    @given(
        st.sampled_from(sorted(commands)).flatmap(
            lambda name: st.tuples(st.just(name), commands[name][1])
        )
    )
    def check(asked: tuple[str, Any]) -> None:
        method, given = asked
        peer = Silent()
        try:

            async def main() -> bytes | None:
                client = kind(peer.address)
                native = client if isinstance(client, Client) else client._native
                return await send(client, native, method, given, peer)

            sent = asyncio.run(main())
        finally:
            peer.close()
        if sent is None:
            outcomes["raised"] += 1
            return
        outcomes["accepted"] += 1
        assert set(verbs_in(sent)) <= commands[method][0]

    check()
    assert min(outcomes.values()) > 10, outcomes


@pytest.mark.parametrize("group", [COMMANDS, REQUESTS], ids=["commands", "requests"])
def test_arbitrary_arguments_of_the_client(group):
    hold(lambda address: Client([address]), group)


def test_arbitrary_arguments_of_a_client_with_a_prefix():
    hold(lambda address: Client([address], key_prefix="p" * 50), COMMANDS)


@pytest.mark.parametrize("checks", [{}, {"check_keys": False, "server_max_key_length": 0}], ids=str)
def test_arbitrary_arguments_of_the_drop_in(checks):
    hold(lambda address: drop_in.Client([address], **checks), FACE)


def test_arbitrary_arguments_of_the_old_module():
    hold(lambda address: old_module.Client([address]), OLD)


def test_the_reader_of_requests_can_fail():
    for data in (
        b"get k\r\nflush_all\r\nx",
        b"get k",
        b"get \r\n",
        b"get a  b\r\n",
        b"set k 0 0 1\r\nvv\r\n",
        b"set k 0 0 2\r\nv\r\n",
        b"get " + b"k" * 251 + b"\r\n",
        b"delete k\r\n\r\n",
        b"incr k 1.5\r\n",
        b"verbosity 1\r\n",
    ):
        with pytest.raises(AssertionError):
            verbs_in(data)
    assert verbs_in(b"set k 0 0 7\r\n\r\nEND\r\n\r\nget a b\r\n") == [b"set", b"get"]
