"""tornado_memcache.leases: both ways to have a lease, on a real memcached."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from tornado_memcache import Client, Reply
from tornado_memcache.leases import (
    ALONE,
    HELD,
    HIT,
    MISSED,
    WON,
    AddLeases,
    Leases,
    MetaLeases,
    Terms,
    lock_key,
)

TERMS = Terms(60, 0, 0, 5.0)


@pytest.fixture
def mc(memcached, io_loop):
    client = Client([memcached.address], max_connections=1)
    yield client
    client.close()


def leases(kind: type[Leases], mc: Client, key: str = "k", terms: Terms = TERMS) -> Any:
    wire, pool = mc._locate(key)
    return kind(lambda request: mc.request(request), pool, wire, terms)


both = pytest.mark.parametrize("kind", [MetaLeases, AddLeases])


@both
@pytest.mark.gen_test
async def test_one_wins_and_the_others_see_whom_they_wait_for(mc, kind):
    holder, other = leases(kind, mc), leases(kind, mc)
    won = await holder.read()
    assert won.state == WON and won.item is None
    for _ in range(2):
        held = await other.read()
        assert held.state == HELD and held.lease.unique == won.lease.unique
    assert await holder.store(won.lease, b"value", 16) is True
    hit = await other.read()
    assert hit.state == HIT and hit.item[:2] == (b"value", 16) and hit.lease is None
    assert await mc.get("k") == "value"


@both
@pytest.mark.gen_test
async def test_who_is_released_or_taken_over_can_store_nothing_any_more(mc, kind):
    holder, other = leases(kind, mc), leases(kind, mc)
    won = await holder.read()
    held = await other.read()
    other.release(held.lease)
    again = await other.read()
    assert again.state == WON and again.lease.unique != won.lease.unique
    assert await holder.store(won.lease, b"late", 0) is False
    holder.release(won.lease)  # (it is another's by now: nothing comes of it)
    assert (await holder.read()).state == HELD
    assert await other.store(again.lease, b"value", 0) is True
    assert await mc.get("k") == b"value"


@both
@pytest.mark.gen_test
async def test_a_lease_ends_by_itself_after_its_time_and_a_second(mc, memcached, kind):
    await leases(kind, mc, terms=TERMS._replace(lock_timeout=50.2)).read()
    key = b"k" if kind is MetaLeases else b"k:lock"
    left = int(memcached.ask(b"mg %b t\r\n" % key).split()[1][1:])
    assert 45 <= left <= 53


@both
@pytest.mark.gen_test
async def test_the_value_is_kept_for_exptime_and_where_it_can_be_stale_for_that_too(
    mc, memcached, kind
):
    one = leases(kind, mc, terms=Terms(60, 40, 20, 5.0))
    assert await one.store((await one.read()).lease, b"value", 0)
    left = int(memcached.ask(b"mg k t\r\n").split()[1][1:])
    assert 95 <= left <= 101 if kind is MetaLeases else 55 <= left <= 61


@both
@pytest.mark.gen_test
async def test_a_lease_from_before_a_connection_was_lost_stores_and_releases_nothing(mc, kind):
    one = leases(kind, mc)
    won = await one.read()
    one._pool.generation += 1
    assert await one.store(won.lease, b"value", 0) is False
    one.release(won.lease)
    assert (await one.read()).state == HELD


def test_a_lease_has_its_whole_time_by_a_clock_that_counts_seconds():
    for lock_timeout, seconds in [(0.2, 2), (1.0, 2), (5, 6), (50.2, 52)]:
        assert TERMS._replace(lock_timeout=lock_timeout).lease_exptime == seconds


def test_what_mg_tells():
    class Pool:
        name, generation = "s", 3

    def found(status: bytes, text: bytes = b"", value: bytes = b"") -> Any:
        one = MetaLeases(lambda request: None, Pool(), b"k", TERMS)  # type: ignore
        found = one.found(Reply(status, text=text, value=value))
        lease = None if found.lease is None else (int(found.lease.unique), found.lease.empty)
        return found.state, lease

    assert found(b"VA", b"f0 c1 t-1 W") == (WON, (1, True))  # a stub, just made
    assert found(b"VA", b"f0 c1 t3 Z") == (HELD, (1, True))
    assert found(b"VA", b"f0 c1 t-1", b"v") == (HIT, None)
    assert found(b"VA", b"f0 c1 t60") == (HIT, None)  # an empty value
    assert found(b"VA", b"f16 c2 t9 Z") == (HIT, (2, False))  # an empty str, recomputed
    assert found(b"VA", b"f0 c2 t9 W") == (WON, (2, False))  # an empty value, early
    assert found(b"VA", b"f0 c2 t-1 X W") == (WON, (2, False))  # the same, stale
    assert found(b"VA", b"f0 c2 t9 X W", b"v") == (WON, (2, False))
    assert found(b"VA", b"f0 c2 t9 Z X", b"v") == (HIT, (2, False))
    assert found(b"EN") == (ALONE, None)


@pytest.mark.gen_test
async def test_a_lock_without_a_value_is_the_only_sign_where_there_is_no_stub(mc):
    one = leases(AddLeases, mc)
    assert one.found(await mc.request(one.reading())).state == MISSED
    await mc.set("k", "value")
    found = one.found(await mc.request(one.reading()))
    assert found.state == HIT and found.item.value == b"value" and found.lease is None


def test_the_key_of_a_lock_is_beside_the_key_and_never_too_long():
    assert lock_key(b"k") == b"k:lock" and len(lock_key(b"k" * 245)) == 250
    long = [lock_key(b"k" * 246), lock_key(b"k" * 250), lock_key(b"j" * 250)]
    assert len({*long}) == 3 and {len(lock) for lock in long} == {69}


@pytest.mark.gen_test
async def test_the_longest_key_has_a_lock(mc):
    key = "k" * 250
    one, other = leases(AddLeases, mc, key), leases(AddLeases, mc, key)
    won = await one.read()
    assert won.state == WON and (await other.read()).state == HELD
    assert await one.store(won.lease, b"value", 0) and await mc.get(key) == b"value"


@pytest.mark.gen_test
async def test_a_value_that_came_between_the_miss_and_the_lock_is_seen(mc):
    one, real = leases(AddLeases, mc), mc.request

    async def stored_meanwhile(request: Any) -> Reply:
        reply = await real(request)
        if request.verb == b"get" and not reply.items:
            await mc.set("k", "value")
        return reply

    one._ask = lambda request: asyncio.ensure_future(stored_meanwhile(request))
    found = await one.read()
    assert found.state == HIT and found.item.value == b"value"
    while await mc.get("k:lock") is not None:  # (which is released, and waited for by nobody)
        await asyncio.sleep(0.001)
