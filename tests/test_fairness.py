"""Nobody waits for somebody else's work: many callers, a large reply, one slow server of four.

Measured in turns and in what was answered first, never in seconds.
"""

from __future__ import annotations

import asyncio
import contextlib

import pytest

from tornado_memcache import Client, TooManyCalls

from .asked import until
from .faultproxy import FaultProxy

#: Nothing here is to time out, however loaded the machine.
PATIENT = {"request_timeout": 30.0, "connect_timeout": 30.0}


@pytest.mark.gen_test(timeout=60)
@pytest.mark.parametrize("large", [False, True], ids=["small", "some large"])
async def test_no_caller_of_a_thousand_starves(memcached, large):
    callers, rounds = 1000, 20
    done = [0] * callers
    slowest: list[int] = []

    async with Client([memcached.address], **PATIENT) as client:
        keys = [f"k{number}" for number in range(callers)]
        assert await client.set_multi({key: key for key in keys}) == []
        await client.set("large", "x" * 300_000)

        async def caller(number: int) -> None:
            key = keys[number]
            for turn in range(rounds):
                if number % 10 == 0:
                    assert await client.set(key, key) is True
                elif large and number % 100 == 1:
                    assert len(await client.get("large")) == 300_000
                else:
                    assert await client.get(key) == key
                done[number] += 1
                if turn == rounds - 1 and not slowest:
                    # Whoever is first: how far is the last one?
                    slowest.append(min(done[n] for n in range(callers) if n % 100 != 1))

        await asyncio.gather(*[caller(number) for number in range(callers)])
    assert slowest[0] >= rounds / 5, f"the first was through, one had {slowest[0]} of {rounds}"


@pytest.mark.gen_test(timeout=60)
async def test_a_large_reply_holds_up_no_small_get(memcached):
    big = b"b" * 1_000_000
    with FaultProxy(memcached.address) as proxy:
        async with Client([proxy.address], **PATIENT) as client:
            await client.set_multi({"big": big, "small": b"s"})
            # A slow line: a hundred slices, so that what passes it can be seen.
            proxy.replies.slice, proxy.replies.pause = 10_000, 0.02
            large = client.get("big")
            await until(lambda: any(one.large for one in client._pools[0]._connections))
            for _ in range(5):
                assert await client.get("small") == b"s"
                assert not large.done(), "the small ones came after the large one"
            proxy.heal()
            assert await large == big


@pytest.mark.gen_test(timeout=60)
async def test_one_slow_server_of_four_slows_no_call_to_the_others(start_memcached):
    with contextlib.ExitStack() as stack:
        slow = stack.enter_context(FaultProxy(start_memcached().address))
        servers = [slow.address, *[start_memcached().address for _ in range(3)]]
        async with Client(servers, **PATIENT) as client:
            keys = [f"k{number}" for number in range(100)]
            assert await client.set_multi({key: key for key in keys}) == []
            pool = client._pools[0]
            share = [key for key in keys if client._cluster.pool_for(key.encode()) is pool]
            rest = [key for key in keys if key not in share]
            assert share and rest
            slow.replies.hold = True
            held = [client.get(key) for key in share]
            everything = client.get_multi(keys)
            for _ in range(10):
                assert await asyncio.gather(*[client.get(key) for key in rest]) == rest
                assert await client.get_multi(rest) == {key: key for key in rest}
                assert await client.set(rest[0], rest[0]) is True
            assert not any(call.done() for call in [*held, everything])
            slow.heal()
            assert await asyncio.gather(*held) == share
            assert await everything == {key: key for key in keys}


@pytest.mark.gen_test(timeout=60)
async def test_a_server_that_is_full_refuses_its_own_calls_only(start_memcached, expect_log):
    """max_pending counts for each server: a stalled one does not take the others' places."""
    expect_log("tornado_memcache", "fails: .*max_pending", times=1)
    with FaultProxy(start_memcached().address) as slow:
        servers = [slow.address, start_memcached().address]
        async with Client(servers, max_pending=50, **PATIENT) as client:
            keys = [f"k{number}" for number in range(400)]
            assert await client.get_multi(keys[:40]) == {}
            pool = client._pools[0]
            share = [key for key in keys if client._cluster.pool_for(key.encode()) is pool]
            rest = [key for key in keys if key not in share]
            slow.replies.hold = True
            calls = [client.get(key) for key in share]
            await asyncio.sleep(0)
            outcomes = await asyncio.gather(
                *[client.get(key) for key in share[:20]], return_exceptions=True
            )
            assert {type(one) for one in outcomes} == {TooManyCalls}
            for begin in range(0, len(rest), 40):
                outcomes = await asyncio.gather(*map(client.get, rest[begin : begin + 40]))
                assert set(outcomes) == {None}
            slow.heal()
            ended = await asyncio.gather(*calls, return_exceptions=True)
            assert {type(one) for one in ended} == {type(None), TooManyCalls}
