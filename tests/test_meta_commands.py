"""tornado_memcache.meta_commands: each flag of each meta command, on a real memcached."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from datetime import timedelta
from typing import Any

import pytest

from tornado_memcache import CasUnique, Client, MetaItem
from tornado_memcache.protocol import STREAMED_BLOCK

from .asked import STYLES, Asked

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
    assert set(facts) >= {"exp", "la", "cas", "fetch", "cls", "size"}


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
