"""tornado_memcache.proxy: in front of real memcacheds, as clients on plain sockets see it."""

import asyncio
import re
import socket

import pytest

from tornado_memcache.errors import Timeout
from tornado_memcache.protocol import Reply, Request
from tornado_memcache.proxy import REFUSED, Proxy

from .asked import until
from .doors import leave
from .proxied import asked, behind, connected, proxied
from .scripted import Close, Expect, Scripted, Send

KEYS = [b"key-%d" % number for number in range(300)]


@pytest.fixture
def two(start_memcached):
    return start_memcached(), start_memcached()


def store(key, value, words=b"0 0", verb=b"set", tail=b""):
    return b"%b %b %b %d%b\r\n%b\r\n" % (verb, key, words, len(value), tail, value)


def item(key, value, flags=0):
    return b"VALUE %b %d %d\r\n%b\r\n" % (key, flags, len(value), value)


@pytest.mark.gen_test
async def test_many_keys_are_shared_out_and_come_in_the_order_of_the_request(two):
    async with proxied(*behind(*two)) as server:
        assert await asked(server, b"".join(store(key, b"v" + key) for key in KEYS)) == (
            b"STORED\r\n" * len(KEYS)
        )
        stored = [int(one.stats()["curr_items"]) for one in two]
        assert sum(stored) == len(KEYS) and min(stored) > 50
        wanted = [*reversed(KEYS), b"missing", KEYS[7], KEYS[7]]
        expected = b"".join(item(key, b"v" + key) for key in wanted if key != b"missing")
        reply = await asked(server, b"get " + b" ".join(wanted) + b"\r\n")
        assert reply == expected + b"END\r\n"


@pytest.mark.gen_test
async def test_every_classic_command(memcached):
    conversation = [
        (store(b"a", b"1", b"4294967295 0"), b"STORED\r\n"),
        (b"get a\r\n", item(b"a", b"1", 4294967295) + b"END\r\n"),
        (store(b"a", b"2", verb=b"add"), b"NOT_STORED\r\n"),
        (store(b"a", b"2", verb=b"replace"), b"STORED\r\n"),
        (store(b"a", b"3", verb=b"append"), b"STORED\r\n"),
        (store(b"a", b"1", verb=b"prepend"), b"STORED\r\n"),
        (b"incr a 1\r\ndecr a 100\r\nincr b 1\r\n", b"124\r\n24\r\nNOT_FOUND\r\n"),
        (b"touch a 100\r\ntouch b 1\r\n", b"TOUCHED\r\nNOT_FOUND\r\n"),
        (b"gat 100 a b\r\n", item(b"a", b"24 ") + b"END\r\n"),
        (store(b"t", b"text") + b"incr t 1\r\n",
         b"STORED\r\nCLIENT_ERROR cannot increment or decrement non-numeric value\r\n"),
        (b"delete a\r\ndelete a\r\n", b"DELETED\r\nNOT_FOUND\r\n"),
        (b"version\r\n", b"VERSION %b\r\n" % memcached.stats()["version"].encode()),
        (b"nonsense\r\n", b"ERROR\r\n"),
    ]  # fmt: skip
    async with proxied(*behind(memcached)) as server:
        reply = await asked(server, b"".join(sent for sent, _ in conversation))
        assert reply == b"".join(answer for _, answer in conversation)


@pytest.mark.gen_test
async def test_cas_goes_through_as_it_is(two):
    async with proxied(*behind(*two)) as server:
        reply = await asked(server, b"".join(store(key, b"1") for key in KEYS[:9]))
        reply = await asked(server, b"gets " + b" ".join(KEYS[:9]) + b"\r\n")
        uniques = dict(re.findall(rb"VALUE (\S+) 0 1 (\d+)\r\n", reply))
        assert list(uniques) == KEYS[:9]
        sent = b"".join(
            store(key, b"2", verb=b"cas", tail=b" " + unique) * 2 for key, unique in uniques.items()
        )
        assert await asked(server, sent) == b"STORED\r\nEXISTS\r\n" * 9
        reply = await asked(server, b"gats 0 " + b" ".join(KEYS[:9]) + b"\r\n")
        assert re.findall(rb"VALUE (\S+) 0 1 \d+\r\n2\r\n", reply) == KEYS[:9]


@pytest.mark.gen_test
async def test_times_pass_through_untouched(memcached):
    now = int(memcached.stats()["time"])
    async with proxied(*behind(memcached)) as server:
        sent = store(b"past", b"x", b"0 -1") + store(b"moment", b"x", b"0 %d" % (now + 1000))
        sent += store(b"wide", b"x", b"0 4294967296") + b"get past moment wide\r\n"
        reply = await asked(server, sent)
        assert reply == b"STORED\r\n" * 3 + item(b"moment", b"x") + item(b"wide", b"x") + b"END\r\n"
        (left,) = re.findall(rb"HD t(\d+)", memcached.ask(b"mg moment t\r\n"))
        assert 900 < int(left) <= 1000


@pytest.mark.gen_test
async def test_what_acts_on_whole_servers_is_refused_unless_it_is_allowed(memcached):
    # (memcached's own are not all known to the reader: it says ERROR to those)
    refusal = re.compile(rb"((CLIENT_)?ERROR[^\r]*\r\n)+\Z")
    sent = b"stats reset\r\nstats detail on\r\nstats cachedump 1 1\r\nflush_all noreply\r\n"
    sent += b"".join(verb + b" 1\r\n" for verb in sorted(REFUSED) if verb != b"watch")
    async with proxied(*behind(memcached)) as server:
        memcached.ask(store(b"a", b"1"))
        reply = await asked(server, sent)
        assert refusal.match(reply) and len(reply.splitlines()) == sent.count(b"\n") - 1
        assert b"CLIENT_ERROR flush_all is not allowed here\r\n" in reply
        assert memcached.ask(b"get a\r\n", b"END\r\n") != b"END\r\n"
    async with proxied(*behind(memcached), "--allow-all-commands") as server:
        reply = await asked(server, b"flush_all\r\nverbosity 0\r\nstats reset\r\n")
        assert reply == b"OK\r\nOK\r\nRESET\r\n"
        assert memcached.ask(b"get a\r\n", b"END\r\n") == b"END\r\n"


@pytest.mark.gen_test
@pytest.mark.parametrize("space", [b"\r", b"\t", b"\x0b", b"\x0c"])
async def test_white_space_lets_nothing_through_that_is_refused(memcached, space):
    words = b"reset", b"detail", b"cachedump"
    sent = b"".join(b"stats %b\r\n" % (space + word + b" on 1") for word in words)
    sent += b"stats reset%b\r\n" % space
    async with proxied(*behind(memcached)) as server:
        assert await asked(server, sent) == b"".join(
            b"CLIENT_ERROR stats %b is not allowed here\r\n" % word for word in (*words, b"reset")
        )
    assert b"detail_enabled no" in memcached.ask(b"stats settings\r\n", b"END\r\n")


@pytest.mark.gen_test
async def test_quiet_mode_is_that_with_something_behind_its_letter_too(memcached):
    async with proxied(*behind(memcached)) as server:
        sent = b"mg nothing v q1\r\nms a 1 qq\r\nx\r\nmg a v q1\r\nmn\r\n"
        assert await asked(server, sent) == memcached.ask(sent, b"MN\r\n") == b"VA 1\r\nx\r\nMN\r\n"


@pytest.mark.gen_test
async def test_a_miss_of_a_dead_server_comes_back_with_opaque_and_key(start_memcached, expect_log):
    dead, living = start_memcached(), start_memcached()
    sent = b"mg a v Oone k\r\nmg Yg== Otwo k b s\r\nmg c v\r\nmg d q O3\r\nmn\r\n"
    missed = living.ask(sent, b"MN\r\n")
    assert missed == b"EN Oone ka\r\nEN Otwo kYg== b\r\nEN\r\nMN\r\n"
    dead.kill()
    expect_log("tornado_memcache", "is taken for dead")
    async with proxied(*behind(dead)) as server:
        assert await asked(server, sent) == missed


@pytest.mark.gen_test
async def test_noreply_with_an_error_keeps_the_stream_in_order(memcached):
    sent = (
        store(b"t", b"text", tail=b" noreply") + b"incr t 1 noreply\r\n" + b"incr t x noreply\r\n"
        + store(b"big", b"x" * 1_048_570, tail=b" noreply") + b"delete nobody noreply\r\n"
        + b"set t 0 0 x noreply\r\n" + b"get t\r\n" + store(b"a\tb", b"1", tail=b" noreply")
        + b"set t 0 0 4 noreply\r\ntoo long\r\n" + b"get t\r\n"
    )  # fmt: skip
    text = item(b"t", b"text") + b"END\r\n"
    async with proxied(*behind(memcached)) as server:
        # The rest of the block that was too long is a line of its own, as to memcached.
        assert await asked(server, sent) == text + b"ERROR\r\n" + text


@pytest.mark.gen_test
async def test_keys_that_a_client_refuses_are_client_errors(memcached):
    async with proxied(*behind(memcached)) as server:
        sent = b"get a\tb\r\nget a \x01\r\n" + store(b"a\x7f", b"1") + b"delete \xc3\xa4\r\n"
        lines = (await asked(server, sent)).splitlines()
        assert [line.split()[0] for line in lines] == [b"CLIENT_ERROR"] * 3 + [b"NOT_FOUND"]


@pytest.mark.gen_test
async def test_a_value_is_bounded_by_that_of_its_pool(memcached):
    limits = ("--max-value-size=1000",)
    async with proxied(*behind(memcached), *limits) as server:
        sent = store(b"a", b"x" * 1000) + store(b"a", b"x" * 1001) + b"get a\r\n"
        assert await asked(server, sent) == (
            b"STORED\r\nSERVER_ERROR object too large for cache\r\nEND\r\n"
        )


@pytest.mark.gen_test
async def test_keys_go_to_the_pool_of_their_prefix(two):
    first, second = two
    route = f"--route=user:={second.address}"
    longer = f"--route=user:admin:={first.address}"
    async with proxied(*behind(first), route, longer) as server:
        names = [b"user:1", b"a", b"user:admin:1", b"user:2", b"users"]
        sent = b"".join(store(name, name) for name in names)
        sent += b"get " + b" ".join(names) + b"\r\nget user:1\r\ngat 0 a user:1\r\n"
        items = [item(name, name) for name in names]
        assert await asked(server, sent) == (
            b"STORED\r\n" * 5 + b"".join(items) + b"END\r\n" + items[0] + b"END\r\n"
            + items[1] + items[0] + b"END\r\n"
        )  # fmt: skip
    assert int(first.stats()["curr_items"]) == 3 and int(second.stats()["curr_items"]) == 2


@pytest.mark.gen_test
async def test_a_dead_server_is_a_miss_to_who_reads_and_an_error_to_who_writes(two, troubles):
    sent = b"get " + b" ".join(KEYS[:20]) + b"\r\n" + b"".join(b"get %b\r\n" % k for k in KEYS[:20])
    async with proxied(*behind(*two), "--request-timeout=0.5") as server:
        await asked(server, b"".join(store(key, b"v") for key in KEYS[:20]))
        two[1].kill()
        left = [key for key in KEYS[:20] if b"VALUE" in two[0].ask(b"get %b\r\n" % key, b"END\r\n")]
        assert 0 < len(left) < 20
        reply = await asked(server, sent)
        found = {key: item(key, b"v") if key in left else b"" for key in KEYS[:20]}
        assert reply == b"".join(found.values()) + b"END\r\n" + b"".join(
            one + b"END\r\n" for one in found.values()
        )
        reply = await asked(server, b"".join(store(key, b"w") for key in KEYS[:20]))
        lines = [line.partition(b" ")[0] for line in reply.splitlines()]
        expected = [b"STORED" if key in left else b"SERVER_ERROR" for key in KEYS[:20]]
        assert lines == expected and two[1].address.encode() in reply
        assert b"phase connecting" in reply


@pytest.mark.gen_test
async def test_with_errors_wanted_a_dead_server_is_no_miss(two, troubles):
    async with proxied(*behind(*two), "--errors", "--request-timeout=0.5") as server:
        two[1].kill()
        lines = (await asked(server, b"".join(b"get %b\r\n" % k for k in KEYS[:20]))).splitlines()
        assert {line.partition(b" ")[0] for line in lines} == {b"END", b"SERVER_ERROR"}
        reply = await asked(server, b"get " + b" ".join(KEYS[:20]) + b"\r\nversion\r\n")
        assert reply.startswith(b"SERVER_ERROR ") and b"\r\nVERSION" in reply


@pytest.mark.gen_test
async def test_a_server_that_does_not_answer_is_a_miss_at_the_deadline(two, troubles):
    async with proxied(*behind(*two), "--request-timeout=0.3", "--connect-timeout=0.3") as server:
        await asked(server, b"".join(store(key, b"v") for key in KEYS[:20]))
        two[1].stop()
        loop = asyncio.get_running_loop()
        begun = loop.time()
        reply = await asked(server, b"get " + b" ".join(KEYS[:20]) + b"\r\n" + store(KEYS[0], b"w"))
        assert loop.time() - begun < 2 * 0.3 + 0.5
        assert reply.count(b"VALUE") in range(1, 20) and b"END\r\n" in reply
        two[1].resume()


@pytest.mark.gen_test
async def test_a_server_that_dies_inside_a_multi_get_loses_its_own_items_alone(two, troubles):
    (live, _) = two
    half = item(b"key-0", b"v") + b"VALUE key-1 0 10\r\nhal"
    async with Scripted([Expect(b"get "), Send(half), Close()]) as dying:
        flags = behind(live) + [f"--route=dying-={dying.address}"]
        async with proxied(*flags) as server:
            await asked(server, store(b"a", b"1") + store(b"b", b"2"))
            sent = b"get a dying-0 dying-1 b\r\nget a\r\n"
            assert await asked(server, sent) == (
                item(b"a", b"1") + item(b"b", b"2") + b"END\r\n" + item(b"a", b"1") + b"END\r\n"
            )


@pytest.mark.gen_test
async def test_a_client_that_leaves_in_the_middle_of_a_set_stores_nothing(memcached):
    async with proxied(*behind(memcached)) as server:
        _, writer = await connected(server)
        writer.write(store(b"a", b"whole") + b"set a 0 0 1000\r\nhalf")
        await leave(writer)
        await until(lambda: server.door.accepted == 1 and not server.door.connected)
        assert await asked(server, b"get a\r\n") == item(b"a", b"whole") + b"END\r\n"


@pytest.mark.gen_test(timeout=30)
async def test_one_that_asks_10_000_times_and_never_reads_holds_up_nobody(memcached):
    async with proxied(*behind(memcached), "--max-client-bytes=1000000") as server:
        await asked(server, store(b"a", b"x" * 100_000))
        _, writer = await connected(server)
        writer.write(b"get a\r\n" * 10_000)
        before = -1
        while before != (before := server.proxy.requests[b"get"]):
            await asyncio.sleep(0.1)
            assert await asked(server, b"touch a 0\r\n") == b"TOUCHED\r\n"
        assert server.proxy.requests[b"get"] < 500
        await leave(writer)


@pytest.mark.gen_test
async def test_stats_of_several_servers_are_added_and_the_version_is_the_oldest(two):
    async with proxied(*behind(*two)) as server:
        await asked(server, b"".join(store(key, b"v") for key in KEYS))
        reply = await asked(server, b"stats\r\n")
        stats = dict(line.split()[1:] for line in reply.splitlines()[:-1])
        assert stats[b"curr_items"] == b"300" and stats[b"pointer_size"] == b"64"
        told = dict(
            line.split(b" ", 2)[1:]
            for line in (await asked(server, b"stats proxy\r\n")).splitlines()[:-1]
        )
        assert told[b"cmd_set"] == b"300" and told[b"curr_connections"] == b"1"
        assert told[b"server_%b_state" % two[0].address.encode()] == b"alive"
        assert await asked(server, b"version\r\n") == (
            b"VERSION %b\r\n" % two[0].stats()["version"].encode()
        )
        assert await asked(server, b"stats nonsense\r\n") == b"ERROR\r\n"


@pytest.mark.gen_test
async def test_a_write_and_a_get_of_its_key_keep_their_order(two):
    sent, expected = b"", b""
    for number in range(200):
        value = b"%d" % number
        sent += store(b"a", value) + b"get a\r\n" + store(b"a", b"x" + value) + b"get b a\r\n"
        expected += b"STORED\r\n" + item(b"a", value) + b"END\r\n"
        expected += b"STORED\r\n" + item(b"a", b"x" + value) + b"END\r\n"
    async with proxied(*behind(*two)) as server:
        assert await asked(server, sent) == expected


@pytest.mark.gen_test
async def test_browsers_and_binary_clients_are_closed_on(memcached):
    async with proxied(*behind(memcached)) as server:
        for sent in (b"POST / HTTP/1.1\r\n\r\nflush_all\r\n", b"\x80\0\0\0" * 6):
            assert await asked(server, sent) == b""


def test_what_is_told_of_a_failure():
    proxy = Proxy.__new__(Proxy)
    proxy.errors, proxy.failures = False, {"h:1": 0}
    error = Timeout("timed out", server="h:1", phase="reply", asked="touch 'k'")
    told = proxy.failed(Request(b"touch", (b"k",)), error)
    assert told == Reply(b"SERVER_ERROR", text=b"touch 'k': timed out (server h:1, phase reply)")
    assert proxy.failed(Request(b"gat", (b"k",)), error) == Reply(b"END")
    assert proxy.failures == {"h:1": 2}


@pytest.mark.gen_test
async def test_a_get_that_is_alone_waits_for_no_other_turn_of_the_loop(two, monkeypatch):
    loop, hops = asyncio.get_running_loop(), []
    async with proxied(*behind(*two)) as server:
        for one in two:
            one.ask(b"".join(store(key, key) for key in KEYS[:50]), b"STORED\r\n" * 50)
        host, _, port = server.address.rpartition(":")

        def ask():  # (in a thread, so that the loop has nothing else to do)
            for key in KEYS[:50]:
                peer.sendall(b"get %b\r\n" % key)
                reply = item(key, key) + b"END\r\n"
                got = b""
                while len(got) < len(reply):
                    got += peer.recv(4096)
                assert got == reply

        with socket.create_connection((host, int(port)), timeout=20) as peer:
            await loop.run_in_executor(None, ask)
            real = type(loop).call_soon
            monkeypatch.setattr(
                type(loop),
                "call_soon",
                lambda self, callback, *args, **how: (
                    hops.append(callback), real(self, callback, *args, **how)
                )[1],
            )  # fmt: skip
            await loop.run_in_executor(None, ask)
            monkeypatch.undo()
    assert len(hops) < 20
