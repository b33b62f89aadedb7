"""Each task uses the cas ids that it fetched itself."""

from __future__ import annotations

import asyncio

import pytest
from tornado.ioloop import IOLoop

from tornado_memcache import memcache
from tornado_memcache.memcache_cas import CasIds


@pytest.mark.gen_test
async def test_handlers_that_share_a_client_lose_no_update(memcached):
    client = memcache.Client([memcached.address], cache_cas=True)
    await client.set("n", 0)

    async def handler():
        for _ in range(10):
            while True:
                number = await client.gets("n")
                await asyncio.sleep(0.001)
                if await client.cas("n", number + 1):
                    break

    await asyncio.gather(*[handler() for _ in range(8)])
    assert await client.get("n") == 80
    client.close()


@pytest.mark.gen_test
async def test_callbacks_of_one_request_use_what_it_fetched(memcached):
    client = memcache.Client([memcached.address], cache_cas=True)
    await client.set("n", 0)
    left = 40
    done = asyncio.get_running_loop().create_future()

    def request():
        def fetched(number):
            IOLoop.current().call_later(0.001, stored_if, number)

        def stored_if(number):
            client.cas("n", number + 1, callback=stored)

        def stored(good):
            nonlocal left
            if not good:
                client.gets("n", callback=fetched)
                return
            left -= 1
            if not left:
                done.set_result(None)

        client.gets("n", callback=fetched)

    async def begin():
        request()

    await asyncio.gather(*[begin() for _ in range(left)])
    await asyncio.wait_for(done, 4)
    assert await client.get("n") == 40
    client.close()


@pytest.mark.gen_test
async def test_a_task_that_fetched_nothing_uses_the_last_that_anybody_did(memcached):
    client = memcache.Client([memcached.address], cache_cas=True)
    await client.set("n", 0)
    await asyncio.ensure_future(client.gets("n"))
    token = client.cas_ids.fetched(b"n")
    assert token is not None and client.cas_ids[b"n"] == token

    async def other():
        return await client.cas("n", 1)

    assert await asyncio.ensure_future(other()) is True
    client.reset_cas()
    with pytest.raises(ValueError, match="gets first"):
        client.cas("n", 2)
    client.close()


def test_outside_of_any_task_there_is_one_place():
    ids = CasIds()
    assert ids.fetched(b"k") is None
    assert ids.here() is ids.here()
