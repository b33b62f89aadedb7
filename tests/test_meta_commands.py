"""tornado_memcache.meta_commands: each flag of each meta command, on a real memcached."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Iterator
from datetime import timedelta
from typing import Any

import pytest

from tornado_memcache import (
    CasUnique,
    Client,
    ClientError,
    ConnectionFailed,
    InvalidKey,
    InvalidRequest,
    MetaItem,
    MetaUnsupported,
    NotSerializable,
    ProtocolError,
    Request,
    SerializationError,
    ServerDead,
    ServerError,
    ValueTooLarge,
)
from tornado_memcache.meta import FLAGS
from tornado_memcache.protocol import STREAMED_BLOCK
from tornado_memcache.spoken import Spoken

from .asked import STYLES, Asked, meta_known
from .scripted import Expect, Scripted, Send

ALL = bytes(range(256))


class Styled:
    """A client whose calls are all made in one style; each gives a coroutine of its outcome."""

    def __init__(self, client: Client, style: str) -> None:
        self.client = client
        self.style = style

    def __getattr__(self, name: str) -> Any:
        method = getattr(self.client, name)
        return lambda *args, **how: self._outcome(Asked(self.style, method, *args, **how))

    async def _outcome(self, asked: Asked) -> Any:
        outcome = await asked.outcome()
        if isinstance(outcome, Exception):
            raise outcome
        return outcome


@pytest.fixture(params=STYLES)
def mc(memcached: Any, request: Any) -> Iterator[Styled]:
    client = Client([memcached.address])
    yield Styled(client, request.param)
    client.close()


# -- mg


@pytest.mark.gen_test
async def test_a_miss_is_none(mc):
    assert await mc.meta_get("k") is None
    assert await mc.meta_get("k", value=False, cas_unique=True, opaque="o") is None


@pytest.mark.gen_test
async def test_a_hit_is_an_item_with_its_value_its_flags_and_its_size(mc):
    await mc.set("k", "text")
    item = await mc.meta_get("k")
    assert item == MetaItem("text", 16, size=4)
    assert type(item) is MetaItem and not (item.won or item.stale or item.recache)
    with pytest.raises(AttributeError):
        item.value = "other"


@pytest.mark.parametrize("value", [b"", b"v", ALL, "", "\u00e9", 0, 2**70, b"x" * STREAMED_BLOCK])
@pytest.mark.gen_test
async def test_values_come_back_as_they_went_in_by_either_dialect(mc, value):
    assert await mc.meta_set("k", value) is True
    assert await mc.get("k") == value
    item = await mc.meta_get("k")
    assert item.value == value and type(item.value) is type(value)


@pytest.mark.parametrize("size", [STREAMED_BLOCK - 1, STREAMED_BLOCK + 1, 1_000_000])
@pytest.mark.gen_test
async def test_a_large_value_ends_its_reply_without_an_end_behind_it(mc, size):
    value = b"\r\nEND\r\n" * (size // 7)
    await mc.meta_set("k", value)
    assert (await mc.meta_get("k")).value == value
    items = await asyncio.gather(*[mc.client.meta_get("k") for _ in range(5)])
    assert [item.value for item in items] == [value] * 5


@pytest.mark.gen_test
async def test_what_is_told_of_an_item(mc):
    await mc.set("k", b"value", 100)
    item = await mc.meta_get("k", value=False)
    assert item == MetaItem()
    item = await mc.meta_get(
        "k", value=False, cas_unique=True, remaining=True, last_access=True, hit_before=True,
        size=True, opaque=b"o",
    )  # fmt: skip
    assert item.size == 5 and 98 <= item.remaining <= 100 and item.last_access <= 1
    assert item.hit_before is True and item.opaque == b"o" and item.flags is item.value is None
    assert await mc.cas("k", b"other", item.cas_unique) is True
    assert (await mc.meta_get("k", hit_before=True)).hit_before is False
    await mc.set("k", b"value")
    assert (await mc.meta_get("k", remaining=True)).remaining == -1


@pytest.mark.gen_test
async def test_a_get_that_does_not_bump_is_no_hit(mc):
    await mc.set("k", "v")
    await mc.meta_get("k", no_bump=True)
    assert (await mc.meta_get("k", hit_before=True, no_bump=True)).hit_before is False
    await mc.meta_get("k")
    assert (await mc.meta_get("k", hit_before=True)).hit_before is True


@pytest.mark.parametrize("exptime", [50, timedelta(seconds=49.5)])
@pytest.mark.gen_test
async def test_a_get_may_set_the_exptime(mc, exptime):
    await mc.set("k", "v", 5)
    assert (await mc.meta_get("k", touch=exptime)).value == "v"
    assert 45 <= (await mc.meta_get("k", remaining=True)).remaining <= 50
    await mc.meta_get("k", touch=0)
    assert (await mc.meta_get("k", remaining=True)).remaining == -1


@pytest.mark.gen_test
async def test_one_caller_wins_on_a_miss_and_the_others_see_a_stub_without_a_value(mc):
    first = await mc.meta_get("k", vivify=30, remaining=True, cas_unique=True)
    assert (first.value, first.won, first.recache, first.size) == (None, True, False, 0)
    assert 28 <= first.remaining <= 30
    second = await mc.meta_get("k", vivify=30)
    assert (second.value, second.won, second.recache) == (None, False, True)
    plain = await mc.meta_get("k")
    assert (plain.value, plain.won, plain.recache) == (None, False, True)
    assert await mc.meta_set("k", "computed", 60, cas_unique=first.cas_unique) is True
    assert await mc.meta_get("k", vivify=30) == MetaItem("computed", 16, size=8)


@pytest.mark.gen_test
async def test_an_empty_value_is_none_only_while_nobody_has_stored_it(mc):
    for value in (b"", ""):
        await mc.meta_get("k", vivify=30)
        await mc.meta_set("k", value)
        assert (await mc.meta_get("k", vivify=30)).value == value
        await mc.delete("k")
    await mc.meta_get("k", vivify=30)
    await mc.meta_delete("k", invalidate=True)
    stub = await mc.meta_get("k")
    assert (stub.value, stub.won, stub.stale) == (None, True, True)


@pytest.mark.gen_test
async def test_one_caller_wins_when_less_than_recache_remains(mc):
    await mc.set("k", "v", 100)
    assert (await mc.meta_get("k", recache=30)).won is False
    first, second = await mc.meta_get("k", recache=200), await mc.meta_get("k", recache=200)
    assert (first.value, first.won, first.recache) == ("v", True, False)
    assert (second.value, second.won, second.recache) == ("v", False, True)


# -- ms


@pytest.mark.gen_test
async def test_the_modes_of_a_set(mc):
    assert await mc.meta_set("k", "1", mode="replace") is False
    assert await mc.meta_set("k", "1", mode="append") is False
    assert await mc.meta_set("k", "b", mode="add") is True
    assert await mc.meta_set("k", "c", mode="add") is False
    assert await mc.meta_set("k", "c", mode="append") is True
    assert await mc.meta_set("k", "a", mode="prepend") is True
    assert await mc.get("k") == "abc"
    assert await mc.meta_set("k", "r", mode="replace") is True
    assert await mc.meta_set("k", "s", mode="set") is True
    assert await mc.get("k") == "s"


@pytest.mark.gen_test
async def test_a_set_with_an_exptime(mc):
    await mc.meta_set("k", "v", 100)
    assert 98 <= (await mc.meta_get("k", remaining=True)).remaining <= 100
    await mc.meta_set("k", "v", timedelta(days=60))
    assert (await mc.meta_get("k", remaining=True)).remaining > 59 * 86400
    await mc.meta_set("k", "v", -1)
    assert await mc.meta_get("k") is None


@pytest.mark.gen_test
async def test_a_set_that_compares(mc):
    unique = await mc.meta_set("k", "1", return_cas_unique=True)
    assert type(unique) is CasUnique
    assert await mc.meta_set("k", "2", cas_unique=unique) is True
    assert await mc.meta_set("k", "3", cas_unique=unique) is False
    assert await mc.meta_set("k", "3", cas_unique=unique, return_cas_unique=True) is False
    assert await mc.get("k") == "2"
    await mc.delete("k")
    assert await mc.meta_set("k", "3", cas_unique=unique) is None
    assert await mc.meta_set("k", "3", cas_unique=int(unique)) is None


@pytest.mark.gen_test
async def test_a_set_with_an_older_unique_may_store_what_is_stale_at_once(mc):
    old = await mc.meta_set("k", "1", return_cas_unique=True)
    await mc.meta_set("k", "2")
    assert await mc.meta_set("k", "late", cas_unique=old, invalidate=True) is True
    first, second = await mc.meta_get("k"), await mc.meta_get("k")
    assert (first.value, first.stale, first.won) == ("late", True, True)
    assert (second.value, second.stale, second.recache) == ("late", True, True)


# -- md


@pytest.mark.gen_test
async def test_a_delete(mc):
    assert await mc.meta_delete("k") is None
    unique = await mc.meta_set("k", "1", return_cas_unique=True)
    await mc.meta_set("k", "2")
    assert await mc.meta_delete("k", cas_unique=unique) is False
    assert await mc.meta_delete("k", opaque="o") is True
    assert await mc.meta_get("k") is None


@pytest.mark.gen_test
async def test_what_is_invalidated_is_served_until_somebody_who_won_stores_anew(mc):
    await mc.set("k", "old")
    assert await mc.meta_delete("k", invalidate=True, exptime=30) is True
    first, second = await mc.meta_get("k", remaining=True), await mc.meta_get("k")
    assert (first.value, first.stale, first.won, first.recache) == ("old", True, True, False)
    assert (second.value, second.stale, second.won, second.recache) == ("old", True, False, True)
    assert 28 <= first.remaining <= 30
    await mc.meta_set("k", "new")
    assert await mc.meta_get("k") == MetaItem("new", 16, size=3)


# -- me, mn, keys


@pytest.mark.gen_test
async def test_debug_tells_what_the_server_knows(mc):
    assert await mc.debug("k") is None
    await mc.set("k", "v")
    facts = await mc.debug("k")
    assert facts["exp"] == "-1" and facts["fetch"] == "no" and int(facts["size"]) > 20
    await mc.set("k", "v", exptime=60)
    assert abs(int((await mc.debug("k"))["exp"])) in range(55, 62)  # (-60 with 1.6.18)
    assert set(facts) >= {"exp", "la", "cas", "fetch", "cls", "size"}


#: A token for each letter that has one, and what stands beside it where it needs that.
TOKENS = {b"C": b"1", b"D": b"2", b"E": b"7", b"F": b"5", b"J": b"3", b"L": b"hint", b"M": b"I",
          b"N": b"30", b"O": b"me", b"P": b"/path", b"R": b"9", b"T": b"60"}  # fmt: skip
BESIDE = {(b"mg", b"E"): b"N30 ", (b"md", b"T"): b"I ", (b"ma", b"J"): b"N30 "}
#: Letters that came after 1.6.18: there they are told as such.
LATER = {(verb, b"E") for verb in (b"mg", b"ms", b"md", b"ma")} | {(b"md", b"x")}


@pytest.mark.parametrize(
    ("verb", "letter"),
    [(verb, letter) for verb, letters in FLAGS.items() for letter in letters if letter != b"q"],
)
@pytest.mark.gen_test
async def test_a_server_takes_every_flag_of_the_table_or_is_older_than_it(memcached, verb, letter):
    token = b"S" if (verb, letter) == (b"ms", b"M") else TOKENS.get(letter, b"")
    argument = BESIDE.get((verb, letter), b"") + letter + token
    key = b"none" if (verb, letter) == (b"mg", b"E") else b"key!"
    async with Client([memcached.address]) as client:
        await client.set("key!", 1, exptime=60)
        asked = Request(verb, (key,), b"v" if verb == b"ms" else b"", argument=argument)
        try:
            reply = await client.request(asked)
        except MetaUnsupported as error:
            assert (verb, letter) in LATER
            assert f"{letter.decode()}{token.decode()}: {FLAGS[verb][letter].name}" in str(error)
        else:
            usual = b"ME" if verb == b"me" else b"HD"
            assert reply.status == {b"C": b"EX", b"v": b"VA"}.get(letter, usual)
            if letter in (b"O", b"k"):
                assert reply.text == letter + (b"key!" if letter == b"k" else token)
        assert await client.version()  # (the connection is in step)


@pytest.mark.gen_test
async def test_a_size_that_is_not_told_of_what_was_stored_is_no_fault(mc):
    """1.6.18 takes the letter and says nothing; a later one says it."""
    reply = await mc.request(Request(b"ms", (b"k",), b"value", argument=b"s c"))
    assert reply.status == b"HD" and b"c" in reply.text
    assert await mc.get("k") == b"value"


@pytest.mark.gen_test
async def test_a_noop_asks_every_server(mc, memcached):
    assert await mc.meta_noop() == {memcached.address: True}


@pytest.mark.gen_test
async def test_a_binary_key_may_be_any_bytes(mc):
    for key in (b"\0", b" \r\n", ALL[:186], b"plain", "\u00e9 \u00e8"):
        assert await mc.meta_get(key, binary=True) is None
        assert await mc.meta_set(key, "v", binary=True) is True
        assert (await mc.meta_get(key, binary=True)).value == "v"
        assert (await mc.debug(key, binary=True))["fetch"] == "yes"
        assert await mc.meta_delete(key, binary=True) is True


@pytest.mark.gen_test
async def test_a_binary_key_is_the_same_item_as_the_plain_one(mc):
    await mc.meta_set("plain", "v", binary=True)
    assert await mc.get("plain") == "v"
    assert (await mc.meta_get("plain")).value == "v"
    assert (await mc.debug("plain"))["fetch"] == "yes"
    await mc.set("other", "w")
    assert (await mc.meta_get("other", binary=True)).value == "w"
    assert (await mc.debug("other", binary=True))["fetch"] == "yes"


# -- ma


@pytest.mark.gen_test
async def test_arithmetic(mc):
    assert await mc.meta_arithmetic("n") is None
    first = await mc.meta_arithmetic("n", 5, vivify=30, initial=7, remaining=True)
    assert first.value == 7 and 28 <= first.remaining <= 30
    assert (await mc.meta_arithmetic("n", 5)).value == 12
    assert (await mc.meta_arithmetic("n", 3, mode="decr")).value == 9
    assert (await mc.meta_arithmetic("n", 2**64 - 1, mode="decr")).value == 0
    assert (await mc.meta_arithmetic("n", 0)).value == 0
    lasting = await mc.meta_arithmetic("n", exptime=100, remaining=True)
    assert lasting.value == 1 and 98 <= lasting.remaining <= 100
    assert (await mc.meta_arithmetic("m", vivify=0, remaining=True)).value == 0
    assert (await mc.meta_get("m", remaining=True)).remaining == -1


@pytest.mark.gen_test
async def test_arithmetic_that_compares(mc):
    await mc.set("n", 1)
    item = await mc.meta_arithmetic("n", return_cas_unique=True, opaque="o")
    assert (item.value, item.opaque) == (2, b"o") and type(item.cas_unique) is CasUnique
    assert (await mc.meta_arithmetic("n", cas_unique=item.cas_unique)).value == 3
    assert await mc.meta_arithmetic("n", cas_unique=item.cas_unique) is False
    await mc.set("text", "v")
    with pytest.raises(ClientError, match="non-numeric"):
        await mc.meta_arithmetic("text")


# -- many keys


@pytest.mark.gen_test
async def test_many_keys_are_asked_in_quiet_batches(mc):
    values = {f"k{n}": n for n in range(250)}
    await mc.set_multi(values)
    found = await mc.meta_get_multi([*values, "none"], cas_unique=True, remaining=True)
    assert {key: item.value for key, item in found.items()} == values
    assert found.errors == {} and found["k7"].remaining == -1
    assert await mc.cas("k7", "x", found["k7"].cas_unique) is True
    found = await mc.meta_get_multi(["k1", b"k1", ("0", "k1"), "none"], value=False, size=True)
    assert {key: item.size for key, item in found.items()} == {"k1": 1, b"k1": 1, ("0", "k1"): 1}
    assert await mc.meta_get_multi([]) == {}
    won = await mc.meta_get_multi(["new", "k2"], vivify=30)
    assert (won["new"].won, won["k2"].won) == (True, False)


@pytest.mark.gen_test
async def test_many_keys_are_deleted_or_invalidated_in_quiet_batches(mc):
    values = {f"k{n}": n for n in range(250)}
    await mc.set_multi(values)
    assert await mc.meta_delete_multi(["k0", "k1", "none"], invalidate=True, exptime=30) == []
    item = await mc.meta_get("k1", remaining=True)
    assert item.stale and item.won and 28 <= item.remaining <= 30
    failed = await mc.meta_delete_multi([*values, "none"])
    assert failed == [] and failed.errors == {}
    assert await mc.get_multi(values) == {}


@pytest.mark.gen_test
async def test_a_value_that_cannot_be_read_is_left_out_of_many(mc, memcached):
    memcached.ask(b"set odd 1 0 1\r\nx\r\n")
    await mc.set("k", "v")
    found = await mc.meta_get_multi(["odd", "k"])
    assert list(found) == ["k"]
    (error,) = found.errors.values()
    assert isinstance(error, SerializationError) and list(found.errors) == [memcached.address]
    with pytest.raises(SerializationError):
        await mc.meta_get_multi(["odd", "k"], strict=True)
    with pytest.raises(SerializationError):
        await mc.meta_get("odd")
    assert (await mc.meta_get("odd", value=False, size=True)).size == 1


@pytest.mark.gen_test
async def test_an_error_within_a_batch_leaves_what_came_and_keeps_the_connection(
    monkeypatch,
):
    monkeypatch.setattr(Spoken, "knows", lambda spoken, slot: True)
    lines = b"".join(b"mg %b q v f O%d\r\n" % (key, at) for at, key in enumerate(b"a b c".split()))
    dels = b"".join(b"md %b q O%d\r\n" % (key, at) for at, key in enumerate(b"a b c".split()))
    script = [
        Expect(lines + b"mn\r\n"),
        Send(b"VA 1 f0 O0\r\nx\r\nSERVER_ERROR busy\r\nMN\r\n"),
        Expect(dels + b"mn\r\n"),
        Send(b"NF O0\r\nSERVER_ERROR busy\r\nMN\r\n"),
    ]
    async with Scripted(script) as server:
        async with Client([server.address]) as client:
            found = await client.meta_get_multi(["a", "b", "c"])
            assert {key: item.value for key, item in found.items()} == {"a": b"x"}
            assert type(found.errors[server.address]) is ServerError
            failed = await client.meta_delete_multi(["a", "b", "c"])
            assert failed == ["b", "c"] or sorted(failed) == ["b", "c"]
            assert type(failed.errors[server.address]) is ServerError
            assert server.connections == 1


# -- versions


class Versioned:
    """A server that knows E, as far as `Client.set_if_newer` needs it; others write between."""

    def __init__(self) -> None:
        self.items: dict[bytes, tuple[bytes, int]] = {}
        self.between: list[tuple[bytes, int]] = []
        self.asked = 0

    async def __aenter__(self) -> Versioned:
        self._server = await asyncio.start_server(self._serve, "127.0.0.1", 0)
        self.address = f"127.0.0.1:{self._server.sockets[0].getsockname()[1]}"
        self._done: list[asyncio.Task[Any]] = []
        return self

    async def __aexit__(self, *_: Any) -> None:
        self._server.close()
        await asyncio.gather(*self._done)
        await self._server.wait_closed()

    async def _serve(self, reader: Any, writer: Any) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._done.append(task)
        while line := await reader.readline():
            verb, *words = line.split()
            if verb == b"version":
                writer.write(b"VERSION 1.6.38\r\n")
            elif verb == b"mg":
                found = self.items.get(words[0])
                writer.write(b"HD c%d\r\n" % found[1] if found else b"EN\r\n")
            else:
                block = (await reader.readexactly(int(words[1]) + 2))[:-2]
                writer.write(self._store(words[0], block, words[2:]))
        writer.close()

    def _store(self, key: bytes, block: bytes, flags: list[bytes]) -> bytes:
        if self.between:
            self.items[key] = self.between.pop(0)
        self.asked += 1
        tokens = {word[:1]: word[1:] for word in flags}
        found = self.items.get(key)
        if b"C" in tokens and (found is None or found[1] != int(tokens[b"C"])):
            return b"EX\r\n" if found else b"NF\r\n"
        if tokens.get(b"M") == b"E" and found:
            return b"NS\r\n"
        self.items[key] = block, int(tokens[b"E"])
        return b"HD\r\n"


@pytest.mark.gen_test
async def test_only_what_is_newer_is_stored():
    async with Versioned() as server, Client([server.address]) as mc:
        assert await mc.set_if_newer("k", "five", 5) is True
        assert await mc.set_if_newer("k", "five again", 5) is False
        assert await mc.set_if_newer("k", "four", 4) is False
        assert server.items == {b"k": (b"five", 5)}
        assert await mc.set_if_newer("k", "six", 6, exptime=60, timeout=5) is True
        assert server.items == {b"k": (b"six", 6)}


@pytest.mark.parametrize("there", [None, (b"old", 1)])
@pytest.mark.gen_test
async def test_who_was_quicker_is_compared_with_again(there):
    async with Versioned() as server, Client([server.address]) as mc:
        server.items = {b"k": there} if there else {}
        server.between = [(b"w", 3), (b"x", 4)]
        assert await mc.set_if_newer("k", "seven", 7) is True
        assert server.items == {b"k": (b"seven", 7)} and server.asked == 3
        server.between = [(b"newest", 9)]
        assert await mc.set_if_newer("k", "eight", 8) is False
        assert server.items == {b"k": (b"newest", 9)}


@pytest.mark.gen_test
async def test_in_whatever_order_writers_come_the_highest_version_stays():
    async with Versioned() as server:
        clients = [Client([server.address], max_connections=2) for _ in range(3)]
        for seed in range(5):
            versions = list(range(1, 60))
            random.Random(seed).shuffle(versions)
            calls = [
                clients[version % 3].set_if_newer(f"k{seed}", str(version), version)
                for version in versions
            ]
            stored = await asyncio.gather(*calls)
            assert server.items[b"k%d" % seed] == (b"59", 59)
            assert stored[versions.index(59)] is True
        for client in clients:
            client.close()


@pytest.mark.gen_test
async def test_a_server_that_does_not_know_versions_says_so_and_goes_on(mc, memcached):
    """memcached 1.6.18 refuses the flag, swallows the block, and answers once."""
    for call in (
        lambda: mc.set_if_newer("k", "flush_all\r\n", 5),
        lambda: mc.meta_set("k", "flush_all\r\n", new_cas_unique=5),
        lambda: mc.meta_delete("k", invalidate=True, new_cas_unique=5),
        lambda: mc.meta_arithmetic("k", new_cas_unique=5),
    ):
        with pytest.raises(MetaUnsupported, match="older than one of the flags") as caught:
            await call()
        assert caught.value.server == memcached.address
        assert await mc.get("k") is None
    (pool,) = mc.client._pools
    assert pool.losses == 0


@pytest.mark.gen_test
async def test_versions_do_not_come_over_from_another_cluster(memcached, start_memcached):
    old = Client([start_memcached().address])
    async with Client([memcached.address], migrate_from=old) as client:
        with pytest.raises(InvalidRequest, match="migrate_from has no version"):
            client.set_if_newer("k", "v", 1)
    old.close()


# -- bad input: nothing reaches the wire

LONG = "x" * 33
BAD: list[tuple[str, tuple[Any, ...], dict[str, Any], type[Exception], str]] = [
    ("meta_get", ("a b",), {}, InvalidKey, "white space"),
    ("meta_get", ("",), {"binary": True}, InvalidKey, "empty"),
    ("meta_get", (b"x" * 187,), {"binary": True}, InvalidKey, "187 bytes"),
    ("meta_get", (5,), {"binary": True}, TypeError, "key must be"),
    ("meta_get", ("k",), {"binary": 1}, TypeError, "binary must be True or False"),
    ("meta_get", ("k",), {"value": None}, TypeError, "value must be"),
    ("meta_get", ("k",), {"cas_unique": 5}, TypeError, "cas_unique must be True or False"),
    ("meta_get", ("k",), {"opaque": LONG}, InvalidRequest, "opaque must have 1 to 32"),
    ("meta_get", ("k",), {"opaque": "a b"}, InvalidRequest, "opaque"),
    ("meta_get", ("k",), {"opaque": ""}, InvalidRequest, "opaque"),
    ("meta_get", ("k",), {"opaque": 5}, TypeError, "opaque"),
    ("meta_get", ("k",), {"vivify": 0}, InvalidRequest, "vivify"),
    ("meta_get", ("k",), {"vivify": -1}, InvalidRequest, "vivify"),
    ("meta_get", ("k",), {"vivify": "60"}, TypeError, "vivify"),
    ("meta_get", ("k",), {"touch": 1.5}, TypeError, "touch"),
    ("meta_get", ("k",), {"touch": timedelta(0)}, InvalidRequest, "touch"),
    ("meta_get", ("k",), {"recache": -1}, InvalidRequest, "recache"),
    ("meta_get", ("k",), {"recache": 30.5}, TypeError, "recache"),
    ("meta_get", ("k",), {"ttl": 5}, TypeError, "unexpected keyword argument 'ttl'"),
    ("meta_get", ("k",), {"callback": "x"}, TypeError, "callback"),
    ("meta_get", ("k",), {"timeout": -1}, InvalidRequest, "timeout"),
    ("meta_set", ("k", None), {}, NotSerializable, "NoneType"),
    ("meta_set", ("k", b"x" * 2_000_000), {}, ValueTooLarge, "max_value_size"),
    ("meta_set", ("k", "v", "60"), {}, TypeError, "exptime"),
    ("meta_set", ("k", "v"), {"mode": "cas"}, InvalidRequest, "mode must be one of"),
    ("meta_set", ("k", 5), {"mode": "append"}, TypeError, "value to append"),
    ("meta_set", ("k", "v"), {"cas_unique": "5"}, TypeError, "cas_unique must be an int"),
    ("meta_set", ("k", "v"), {"cas_unique": -1}, InvalidRequest, "cas_unique"),
    ("meta_set", ("k", "v"), {"cas_unique": 0}, InvalidRequest, "which no item has"),
    ("meta_delete", ("k",), {"cas_unique": 0}, InvalidRequest, "which no item has"),
    ("meta_arithmetic", ("k",), {"cas_unique": 0}, InvalidRequest, "which no item has"),
    ("meta_set", ("k", "v"), {"cas_unique": 2**64}, InvalidRequest, "cas_unique"),
    ("meta_set", ("k", "v"), {"cas_unique": True}, TypeError, "cas_unique"),
    ("meta_set", ("k", "v"), {"invalidate": True}, InvalidRequest, "invalidate needs cas_unique"),
    ("meta_set", ("k", "v"), {"new_cas_unique": 0}, InvalidRequest, "new_cas_unique"),
    ("meta_set", ("k", "v"), {"opaque": LONG}, InvalidRequest, "opaque"),
    ("meta_delete", ("k",), {"exptime": 5}, InvalidRequest, "needs invalidate"),
    ("meta_delete", ("k",), {"new_cas_unique": 5}, InvalidRequest, "needs invalidate"),
    ("meta_delete", ("k",), {"invalidate": "yes"}, TypeError, "invalidate"),
    ("meta_delete", ("k",), {"cas_unique": 1.0}, TypeError, "cas_unique"),
    ("meta_arithmetic", ("k", -1), {}, InvalidRequest, "delta"),
    ("meta_arithmetic", ("k", 2**64), {}, InvalidRequest, "delta"),
    ("meta_arithmetic", ("k", 1.5), {}, TypeError, "delta"),
    ("meta_arithmetic", ("k",), {"mode": "add"}, InvalidRequest, "mode"),
    ("meta_arithmetic", ("k",), {"initial": 5}, InvalidRequest, "initial"),
    ("meta_arithmetic", ("k",), {"initial": -5, "vivify": 5}, InvalidRequest, "initial"),
    ("meta_arithmetic", ("k",), {"vivify": -1}, InvalidRequest, "vivify"),
    ("meta_get_multi", ("abc",), {}, TypeError, "keys must be a list"),
    ("meta_get_multi", (["k", "a b"],), {}, InvalidKey, "a b"),
    ("meta_get_multi", (["k"],), {"vivify": 0}, InvalidRequest, "vivify"),
    ("meta_delete_multi", ("abc",), {}, TypeError, "keys must be a list"),
    ("meta_delete_multi", (["k"],), {"exptime": 5}, InvalidRequest, "needs invalidate"),
    ("debug", ("a b",), {}, InvalidKey, "white space"),
    ("set_if_newer", ("k", "v", 0), {}, InvalidRequest, "version"),
    ("set_if_newer", ("k", "v", 2**64), {}, InvalidRequest, "version"),
    ("set_if_newer", ("k", "v", "1"), {}, TypeError, "version"),
    ("request", (Request(b"mg", (b"k",), argument=b"v q"),), {}, InvalidRequest, "quiet"),
    ("request", (Request(b"mg", (b"k",), argument=b"v\r\nflush_all"),), {}, InvalidRequest, "flag"),
    ("request", (Request(b"ms", (b"k",), b"v", argument=b"T5 T6"),), {}, InvalidRequest, "twice"),
    ("request", (Request(b"mg", (b"k",), argument="v"),), {}, TypeError, "argument must be bytes"),
    ("request", (Request(b"mn"),), {}, InvalidRequest, "keys"),
]


@pytest.mark.parametrize("name, args, how, kind, told", BAD, ids=lambda one: str(one)[:30])
@pytest.mark.gen_test
async def test_bad_input_raises_at_the_call_and_nothing_is_sent(
    silent, name, args, how, kind, told
):
    async with Client([silent.address]) as client:
        with pytest.raises(kind, match=told):
            getattr(client, name)(*args, **how)
        if how.get("callback") is None and "timeout" not in how:
            with pytest.raises(kind, match=told):
                getattr(client, name)(*args, **how, callback=pytest.fail, fail_callback=pytest.fail)
        assert silent.connections == 0


@pytest.mark.gen_test
async def test_a_token_of_another_server_or_from_before_a_loss_is_a_change(mc, start_memcached):
    unique = await mc.meta_set("k", "v", return_cas_unique=True)
    async with Client([start_memcached().address]) as other:
        assert await other.meta_set("k", "v", cas_unique=unique) is False
        assert await other.meta_delete("k", cas_unique=unique) is False
        assert await other.meta_arithmetic("k", cas_unique=unique) is False
        request = Request(b"ms", (b"k",), b"v", cas_unique=unique, argument=b"C1")
        assert (await other.request(request)).status == b"EX"
    mc.client.disconnect()
    assert await mc.meta_set("k", "w", cas_unique=unique) is False
    assert await mc.get("k") == "v"


# -- replies that are not what was asked for


@pytest.mark.usefixtures(meta_known.__name__)
@pytest.mark.parametrize(
    "reply",
    [
        b"VA 1 f0 kk Oyou\r\nx\r\n", b"VA 1 f0 kother Ome\r\nx\r\n", b"VA 1 f0 kk\r\nx\r\n",
        b"HD f0 kk Ome\r\n", b"NF\r\n", b"MN\r\n", b"VA 1 f0 kk Ome W Z\r\nx\r\n",
        b"VA 99999999 f0 kk Ome\r\n", b"VA -1 f0 kk Ome\r\n\r\n", b"VA 1 f0 kk Ome W1\r\nx\r\n",
        b"VA 1 f0 kk Ome\r\nxx\r\n", b"END\r\n", b"EN Oyou\r\n",
    ],
)  # fmt: skip
@pytest.mark.gen_test
async def test_another_reply_is_a_protocol_error_and_closes_the_connection(reply, expect_log):
    expect_log("tornado_memcache", "fails: ")
    again = [Expect(b"mg k v f k Ome\r\n"), Send(b"VA 1 f0 kk Ome\r\nv\r\n")]
    async with Scripted([Expect(b"mg k v f k Ome\r\n"), Send(reply)], again) as server:
        async with Client([server.address]) as client:
            with pytest.raises(ProtocolError) as caught:
                await client.meta_get("k", opaque="me")
            assert not caught.value.connection_survives and "xx" not in str(caught.value)
            assert (await client.meta_get("k", opaque="me")).value == b"v"
            assert server.connections == 2


# -- dead servers, other clusters


@pytest.mark.gen_test
async def test_reads_of_a_dead_server_are_misses_where_that_is_wanted(start_memcached, troubles):
    server = start_memcached()
    async with Client([server.address], on_dead="miss") as client:
        await client.meta_set("k", "v")
        server.kill()
        for _ in range(100):
            try:
                await client.set("k", "v")
            except (ConnectionFailed, ServerDead) as error:
                if isinstance(error, ServerDead):
                    break
        client._pools[0].health.dead_until = float("inf")
        assert await client.meta_get("k", vivify=30) is None
        assert await client.debug("k") is None
        assert await client.meta_get_multi(["k", "l"]) == {}
        for call in (
            client.meta_set("k", "v"),
            client.meta_delete("k"),
            client.meta_arithmetic("k"),
        ):
            with pytest.raises(ServerDead):
                await call


@pytest.mark.gen_test
async def test_what_is_missing_comes_over_from_the_old_cluster(memcached, start_memcached):
    old = Client([start_memcached().address])
    async with Client([memcached.address], migrate_from=old) as client:
        await old.set_multi({key: key for key in ("get", "add", "join", "inv", "viv", "many")})
        await old.set_multi({"n": 5, "set": "old", "del": "old"})
        item = await client.meta_get("get", remaining=True)
        assert (item.value, item.remaining) == ("get", -1)
        assert await client.meta_set("add", "new", mode="add") is False
        assert await client.meta_set("join", "ed", mode="append") is True
        assert (await client.meta_get("join")).value == "joined"
        assert (await client.meta_arithmetic("n")).value == 6
        assert await client.meta_set("set", "new") is True
        assert await client.meta_delete("inv", invalidate=True, exptime=60) is True
        assert (await client.meta_get("inv")).stale is True
        assert (await client.meta_get("viv", vivify=30)).value == "viv"
        assert (await client.meta_get("none", vivify=30)).won is True
        found = await client.meta_get_multi(["many", "nothing"])
        assert {key: one.value for key, one in found.items()} == {"many": "many"}
        assert await client.debug("many") is not None
        # What was changed here never comes back.
        assert await client.meta_delete("del") is True
        assert await client.meta_delete_multi(["get", "join", "nothing"]) == []
        assert await client.meta_get("del") is None
        assert await client.get_multi(["get", "del", "join"]) == {}
        assert await old.get_multi(["set", "del", "get", "join", "n", "inv"]) == {}
        assert client.migration.failed == 0


@pytest.mark.gen_test
async def test_binary_keys_do_not_come_over(memcached, silent):
    old = Client([silent.address])
    async with Client([memcached.address], migrate_from=old) as client:
        for call in (
            lambda: client.meta_get(b"a\r\nflush_all", binary=True),
            lambda: client.meta_set(b"a b", "v", binary=True),
            lambda: client.request(Request(b"mg", (b"a b",), argument=b"v b")),
            lambda: client.request_many([Request(b"mg", (b"a b",), argument=b"v b")]),
        ):
            with pytest.raises(InvalidRequest, match="binary keys cannot be used together"):
                call()
        assert silent.connections == 0
    old.close()
