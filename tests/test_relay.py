"""tornado_memcache.relay: gets as bytes, in front of real memcacheds and of servers that lie."""

import asyncio

import pytest

from tornado_memcache import Client
from tornado_memcache.errors import (
    ClientClosed,
    ConnectionFailed,
    InvalidKey,
    ProtocolError,
    ServerError,
)
from tornado_memcache.relay import Relay
from tornado_memcache.server import EmbeddedServer

from .asked import until
from .scripted import Close, Expect, Scripted, Send

KEYS = [b"key-%d" % number for number in range(300)]


class Behind:
    """A relay to ``addresses``, and the failures that it told of."""

    def __init__(self, *addresses, errors=True, **options):
        self.client = Client(addresses, **options)
        self.failures = []
        self._errors = errors
        self.relay = Relay(self.client, self._take)

    def _take(self, error):
        self.failures.append(error)
        return error if self._errors else None

    async def __aenter__(self):
        return self

    async def __aexit__(self, *exc_info):
        self.client.close()

    def get(self, *keys, verb=b"get"):
        return self.relay.retrieve(verb, keys)


def item(key, value, flags=0):
    return b"VALUE %b %d %d\r\n%b\r\n" % (key, flags, len(value), value)


def told(keys):
    return b"".join(item(key, key) for key in keys) + b"END\r\n"


async def fill(client, keys=KEYS):
    await client.set_multi(dict.fromkeys(keys, b"") | {key: key for key in keys})


@pytest.mark.gen_test
async def test_items_come_as_they_are_in_the_order_of_the_request(start_memcached):
    one, two = start_memcached(), start_memcached()
    async with Behind(one.address, two.address) as behind:
        await fill(behind.client)
        assert await behind.get(*KEYS[:90]) == told(KEYS[:90])
        assert await behind.get(*KEYS[90::-1]) == told(KEYS[90::-1])
        assert await behind.get(b"a", KEYS[1], b"b", KEYS[0], KEYS[1]) == told(
            [KEYS[1], KEYS[0], KEYS[1]]
        )
        assert await behind.get(b"nothing") == b"END\r\n"
        await behind.client.set(b"int", 5)
        assert await behind.get(b"int") == item(b"int", b"5", 2) + b"END\r\n"
        assert (await behind.get(KEYS[0], verb=b"gets")).split()[:4] == [
            b"VALUE", KEYS[0], b"0", b"5",
        ]  # fmt: skip


@pytest.mark.gen_test
async def test_large_values_and_those_of_all_bytes(memcached):
    values = {b"large": b"\r\nEND\r\n" * 100_000, b"bytes": bytes(range(256)), b"none": b""}
    async with Behind(memcached.address) as behind:
        assert not await behind.client.set_multi(values)
        expected = b"".join(item(key, value) for key, value in values.items()) + b"END\r\n"
        assert await behind.get(*values) == expected
        assert await behind.get(b"large") == item(b"large", values[b"large"]) + b"END\r\n"


@pytest.mark.gen_test
async def test_long_keys_leave_in_lines_of_bounded_length(memcached):
    keys = [b"%03d" % number + b"k" * 247 for number in range(90)]
    async with Behind(memcached.address) as behind:
        await fill(behind.client, keys)
        assert await behind.get(*keys, b"short") == told(keys)


@pytest.mark.gen_test
async def test_what_is_asked_in_one_turn_leaves_as_one_line():
    lines = []
    async with EmbeddedServer() as server, Behind(server.address) as behind:
        await fill(behind.client, KEYS[:60])
        (pool,) = behind.client._cluster.pools
        real = pool.submit
        pool.submit = lambda slot: (lines.append(slot.request.keys), real(slot))
        asked = [behind.get(*KEYS[n : n + 3]) for n in range(0, 60, 3)] + [behind.get(KEYS[0])]
        assert await asyncio.gather(*asked) == [
            *(told(KEYS[n : n + 3]) for n in range(0, 60, 3)), told(KEYS[:1]),
        ]  # fmt: skip
        assert lines == [(*KEYS[:60], KEYS[0])]
        lines.clear()
        await asyncio.gather(*[behind.get(*KEYS[:30]) for _ in range(5)])
        assert [len(line) for line in lines] == [90, 60]


@pytest.mark.gen_test
async def test_keys_are_checked_also_those_that_were_seen(memcached):
    async with Behind(memcached.address) as behind:
        for _ in range(2):
            for key in (b"a b", b"", b"k" * 251, b"a\r\nflush_all"):
                with pytest.raises(InvalidKey):
                    behind.get(b"good", key)


@pytest.mark.gen_test
@pytest.mark.parametrize(
    "answer, kind",
    [
        (b"SERVER_ERROR no\r\n", ServerError),
        (b"VALUE other 0 1\r\n1\r\nEND\r\n", ProtocolError),
        (b"VALUE a 0 1\r\n1\r\nVALUE a 0 1\r\n1\r\nEND\r\n", ProtocolError),
        (b"VALUE  0 1\r\n1\r\nEND\r\n", ProtocolError),
        (b"VALUE a 0 1\r\n1\r\nVALUE b 0 1\r\n1\r\nVALUE  0 1\r\n1\r\n", ProtocolError),
        (b"VALUE ab 0 1\r\n1\r\nEND\r\n", ProtocolError),
        (b"VALUE a 0 1 7\r\n1\r\nEND\r\n", ProtocolError),
        (b"VALUE a 0 2\r\n1\r\nEND\r\n", ProtocolError),
        (b"VALUE a 0 1099511627776\r\n", ProtocolError),
        (b"VALUE a 0 -1\r\n", ProtocolError),
        (b"STORED\r\n", ProtocolError),
        (b"VALUE a 0 1\r\n1\r\nSERVER_ERROR no\r\n", ServerError),
    ],
)
async def test_what_no_server_should_answer(answer, kind, troubles):
    async with Scripted([Expect(b"get a b\r\n"), Send(answer)]) as server:
        async with Behind(server.address) as behind:
            with pytest.raises(kind):
                await behind.get(b"a", b"b")
            assert len(behind.failures) == 1


@pytest.mark.gen_test
async def test_a_reply_in_any_segments(troubles):
    large = b"x" * 50_000
    data = item(b"a", b"1") + item(b"large", large) + item(b"b", b"\r\nEND\r\n") + b"END\r\n"
    for size in (1, 7, 1000, 20_000) if len(data) < 100_000 else ():
        steps = [Send(data[n : n + size]) for n in range(0, len(data), size)]
        if size == 1:
            steps = [Send(data[n : n + 1]) for n in range(200)] + [Send(data[200:])]
        async with Scripted([Expect(b"get a large b\r\n"), *steps]) as server:
            async with Behind(server.address, request_timeout=20) as behind:
                assert await behind.get(b"a", b"large", b"b") == data


@pytest.mark.gen_test
async def test_each_request_of_a_line_is_told_of_its_failure(troubles):
    async with Scripted([Expect(b"get a b c\r\n"), Close()], [Close()]) as server:
        async with Behind(server.address) as behind:
            results = await asyncio.gather(
                behind.get(b"a"), behind.get(b"b", b"c"), return_exceptions=True
            )
            assert [type(result) for result in results] == [ConnectionFailed] * 2
            assert results[0] is not results[1]


@pytest.mark.gen_test
async def test_a_part_that_failed_is_misses_if_no_errors_are_wanted(memcached, troubles):
    async with Scripted([Close()]) as gone:
        async with Behind(memcached.address, gone.address, errors=False) as behind:
            wanted = KEYS[:20]
            memcached.ask(b"".join(b"set %b 0 0 %d\r\n%b\r\n" % (k, len(k), k) for k in wanted),
                          b"STORED\r\n" * 20)  # fmt: skip
            reply = await behind.get(*wanted)
            left = [key for key in wanted if b"VALUE %b " % key in reply]
            assert reply == told(left) and 0 < len(left) < 20
            (lost,) = [key for key in wanted if key not in left][:1]
            assert await behind.get(lost) == b"END\r\n" and len(behind.failures) == 2


@pytest.mark.gen_test
async def test_one_who_goes_away_disturbs_nobody(memcached):
    async with Behind(memcached.address) as behind:
        await fill(behind.client, KEYS[:3])
        gone, stays = behind.get(KEYS[0]), behind.get(KEYS[1], KEYS[2])
        gone.cancel()
        assert await stays == told(KEYS[1:3])
        gone = behind.get(KEYS[0])
        behind.relay.flush()
        gone.cancel()
        assert await behind.get(KEYS[0]) == told(KEYS[:1])


@pytest.mark.gen_test
async def test_other_servers_are_asked_when_they_change(start_memcached):
    one, two = start_memcached(), start_memcached()
    async with Behind(one.address) as behind:
        await fill(behind.client, KEYS[:9])
        assert await behind.get(*KEYS[:9]) == told(KEYS[:9])
        behind.client.set_servers([two.address])
        assert await behind.get(*KEYS[:9]) == b"END\r\n"
        behind.client.set_servers([two.address, one.address])
        await fill(behind.client, KEYS)
        assert await behind.get(*KEYS[:99]) == told(KEYS[:99])
        behind.client.set_servers([one.address, two.address])
        assert await behind.get(*KEYS[:99]) != told(KEYS[:99])


@pytest.mark.gen_test
async def test_the_keys_of_a_dead_server_go_where_the_policy_says(start_memcached, troubles):
    one, two, spare = start_memcached(), start_memcached(), start_memcached()
    gutter = {"on_dead": "gutter", "gutter": [spare.address]}
    async with Behind(one.address, two.address, errors=False, **gutter) as behind:
        await fill(behind.client)
        two.kill()
        await behind.get(*KEYS[:50])
        spare.ask(b"".join(b"set %b 0 0 1\r\ns\r\n" % key for key in KEYS[:50]),
                  b"STORED\r\n" * 50)  # fmt: skip
        reply = await behind.get(*KEYS[:50])
        for key in KEYS[:50]:
            assert item(key, key) in reply or item(key, b"s") in reply


@pytest.mark.gen_test
async def test_what_came_alone_leaves_at_once_for_a_server_with_nothing_to_do():
    lines = []
    async with EmbeddedServer() as server:
        async with Behind(server.address) as behind:
            real = server._door.handler
            server._door.handler = lambda request: (lines.append(request.keys), real(request))[1]
            await fill(behind.client, KEYS[:9])
            lines.clear()
            relay = Relay(behind.client, behind._take, told=True)
            (pool,) = behind.client._all_pools()

            first = relay.retrieve(b"get", KEYS[:1])
            assert not pool.pending  # (there may be more that came with it)
            relay.leave(at_once=True)
            assert pool.pending == 1 and not pool.usable.idle
            # While something is under way, all of a turn leaves together.
            others = []
            for number in range(1, 4):
                others.append(relay.retrieve(b"get", KEYS[number : number + 1]))
                relay.leave(at_once=True)
            assert pool.pending == 1
            assert await asyncio.gather(first, *others) == [told([key]) for key in KEYS[:4]]
            assert lines == [(KEYS[0],), (*KEYS[1:4],)]

            lines.clear()
            several = []
            for number in range(2):
                several.append(relay.retrieve(b"get", KEYS[number : number + 1]))
            relay.leave(at_once=False)
            assert not pool.pending
            several.append(relay.retrieve(b"get", KEYS[2:3]))
            relay.leave(at_once=True)  # (it does not overtake those that wait already)
            assert not pool.pending
            assert await asyncio.gather(*several) == [told([key]) for key in KEYS[:3]]
            assert lines == [tuple(KEYS[:3])]


@pytest.mark.gen_test
async def test_one_timeout_stands_for_all_requests_and_goes_when_there_are_none(memcached):
    async with Behind(memcached.address, request_timeout=0.5) as behind:
        await fill(behind.client, KEYS[:3])
        await behind.get(KEYS[0])
        register = behind.client._cluster.deadlines
        armed = []
        real = register._arm
        register._arm = lambda moment: (armed.append(moment), real(moment))[1]
        for _ in range(20):
            await behind.get(KEYS[1])
            assert register.armed
        assert len(armed) < 5
        await until(lambda: not register.armed)
        assert not len(register)
        assert await behind.get(KEYS[2]) == told(KEYS[2:3])
        assert register.armed
    assert not register.armed


@pytest.mark.gen_test
async def test_a_client_that_was_closed_is_not_watched_again(memcached):
    async with Behind(memcached.address) as behind:
        await behind.get(KEYS[0])
        asked = behind.get(KEYS[0])
        behind.client.close()
        with pytest.raises(ClientClosed):
            await asked
        assert not behind.client._cluster.deadlines.armed
