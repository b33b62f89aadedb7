"""tornado_memcache.discovery: the servers that a configuration endpoint tells, and bad answers.

The endpoint is the embedded server, a scripted one, or a real memcached that
holds the list under the key of the oldest ElastiCache; the nodes are real
memcacheds. Time is not waited for: a test asks for the next answer itself.
"""

from __future__ import annotations

import asyncio
import gc
import logging
import weakref

import pytest

from tornado_memcache import (
    AuthenticationError,
    Client,
    ClientClosed,
    ConnectionFailed,
    InvalidRequest,
    InvalidServer,
    ProtocolError,
    Timeout,
)
from tornado_memcache.discovery import OLD_KEY, discover, parse_configuration
from tornado_memcache.ring import Custom, Ketama
from tornado_memcache.server import EmbeddedServer

from .asked import until
from .certificates import issued, memcached_arguments, trusting
from .ledger import our_timers
from .memcacheds import free_port
from .scripted import Close, Expect, Scripted, Send, Until

LOG = "tornado_memcache"
ASKED = b"config get cluster\r\n"


def node(server, host=""):
    """Returns a server as a configuration names it."""
    address, port = server.address.rsplit(":", 1)
    return f"{host or address}|{address}|{port}"


def answer(text):
    return b"CONFIG cluster 0 %d\r\n%b\r\nEND\r\n" % (len(text), text)


def names(client):
    return [server.name for server in client.servers]


async def asked_again(client):
    """Has the discovery ask now, and waits until the answer was taken."""
    client.discovery.timer.stop()
    client.discovery._begin()
    await until(lambda: client.discovery._asking is None and client.discovery.timer.armed)


# -- what an endpoint tells


@pytest.mark.parametrize(
    "text, version, servers",
    [
        (b"12\na.b|10.0.0.1|11211 c.d|10.0.0.2|11212\n", 12, ["a.b:11211", "c.d:11212"]),
        (b"0\n|10.0.0.1|1\n", 0, ["10.0.0.1:1"]),
        (b"1\na||1", 1, ["a:1"]),
        (b"1\r\na|10.0.0.1|1  b|10.0.0.2|1 \r\n\r\n", 1, ["a:1", "b:1"]),
        (b"9\n10.0.0.1|10.0.0.1|11211\n", 9, ["10.0.0.1:11211"]),
        (b"9\n|fd00::1|11211\n", 9, ["[fd00::1]:11211"]),
    ],
)
def test_a_configuration(text, version, servers):
    found = parse_configuration(text)
    assert (found.version, [server.name for server in found.servers]) == (version, servers)


BROKEN = {
    b"": "1 lines",
    b"\n": "1 lines",
    b"12": "1 lines",
    b"12\n": "1 lines",
    b"12\n \n": "version 12: servers must name at least one",
    b"a\nb|c|1\n": "a version",
    b"-1\nb|c|1\n": "a version",
    b"99999999999999999999\nb|c|1\n": "a version",
    b"1\na|b|1\nc|d|2\n": "3 lines",
    b"1\na|b\n": "'a\\|b' is no host",
    b"1\na|b|1|2\n": "is no host",
    b"1\n||1\n": "is no host",
    b"1\nunix||11211\n": "is no host",
    b"1\n|unix|/tmp/x\n": "is no host",
    b"1\na|b|\n": "port",
    b"1\na|b|x\n": "port",
    b"1\na|b|70000\n": "port",
    b"1\na|b|1 a|c|1\n": "listed twice",
    b"1\na@b|c|1\n": "names no host",
    b"1\na,b|c|1\n": "one host:port",
    b"<html>\n<body>\n": "a version",
}


@pytest.mark.parametrize("text", list(BROKEN))
def test_a_broken_configuration_names_what_is_wrong(text):
    with pytest.raises(ProtocolError, match=BROKEN[text]):
        parse_configuration(text)


# -- from an endpoint


@pytest.mark.gen_test
async def test_the_servers_are_those_of_the_endpoint_and_change_with_it(
    start_memcached, expect_log
):
    expect_log(LOG, "discovery at .*: version", level=logging.INFO, times=1)
    a, b, c = (start_memcached() for _ in range(3))
    changes = []
    async with EmbeddedServer() as endpoint:
        endpoint.cluster = (3, [node(a), node(b)])
        client = await discover(endpoint.address, on_change=changes.append, ring="ketama")
        async with client:
            assert names(client) == [a.address, b.address] and client.discovery.version == 3
            await client.set_multi({f"k{n}": n for n in range(50)})
            calls = [client.get(f"k{n}") for n in range(50)]
            endpoint.cluster = (4, [node(a), node(b), node(c)])
            await asked_again(client)
            assert names(client) == [a.address, b.address, c.address]
            assert await asyncio.gather(*calls) == list(range(50))
            assert changes == [client.discovery] and client.discovery.error is None
            # the same again is no change
            await asked_again(client)
            assert len(changes) == 1
            assert f"<Discovery {endpoint.address} version 4 <discovery in " in repr(client)


@pytest.mark.gen_test
async def test_it_asks_by_itself_every_so_often(start_memcached):
    a, b = start_memcached(), start_memcached()
    changed = asyncio.Event()

    async def on_change(discovery):
        changed.set()

    async with EmbeddedServer() as endpoint:
        endpoint.cluster = (1, [node(a)])
        options = {"interval": 0.02, "on_change": on_change}
        async with await discover(endpoint.address, **options) as client:
            endpoint.cluster = (2, [node(b)])
            await asyncio.wait_for(changed.wait(), 5)
            assert names(client) == [b.address]
            assert await client.set("k", 1)


@pytest.mark.parametrize(
    "cluster",
    [
        None,
        (2, ["x|y|1"]),  # older
        (9, []),
        (9, ["x|y"]),
        (9, ["x|y|0"]),
        (9, ["x|y|1\nz|y|1"]),
        (9, ["x" * 20_000 + "|y|1"]),
    ],
    ids=["none", "older", "empty", "broken", "port", "lines", "long"],
)
@pytest.mark.gen_test
async def test_a_bad_answer_keeps_the_servers_and_is_told_once(memcached, expect_log, cluster):
    fails = expect_log(LOG, "discovery at .* fails: .*; the servers stay", times=1)
    expect_log(LOG, "fails: .*CONFIG|answers again", level=logging.INFO, times=range(5))
    well = expect_log(LOG, "answers well again|: version 5", level=logging.INFO, times=2)
    changes = []
    async with EmbeddedServer() as endpoint:
        endpoint.cluster = (3, [node(memcached)])
        options = {"on_change": lambda one: changes.append(one.error)}
        async with await discover(endpoint.address, **options) as client:
            endpoint.cluster = cluster
            call = client.set("k", 1)
            for _ in range(3):
                await asked_again(client)
            assert await call and await client.get("k") == 1
            assert names(client) == [memcached.address] and client.discovery.version == 3
            assert isinstance(client.discovery.error, ProtocolError) and fails.count == 1
            assert len(changes) == 1 and "fails: " in repr(client)
            endpoint.cluster = (5, [node(memcached)])
            await asked_again(client)
            assert client.discovery.error is None and client.discovery.version == 5
            assert changes[1:] == [None] and well.count == 2


@pytest.mark.gen_test
async def test_an_endpoint_that_is_away_keeps_the_servers(memcached, expect_log):
    expect_log(LOG, "fails: config|taken for dead", times=range(1, 4))
    errors = []
    async with EmbeddedServer() as endpoint:
        endpoint.cluster = (1, [node(memcached)])
        options = {"on_change": lambda one: errors.append(type(one.error))}
        client = await discover(endpoint.address, **options)
    async with client:
        for _ in range(3):
            await asked_again(client)
        assert await client.set("k", 1) and names(client) == [memcached.address]
        assert errors == [ConnectionFailed]


@pytest.mark.gen_test
async def test_an_endpoint_that_says_nothing_or_garbage_keeps_the_servers(memcached, expect_log):
    expect_log(LOG, "fails|taken for dead", times=range(1, 5))
    good = [Expect(ASKED), Send(answer(b"1\n%b\n" % node(memcached).encode()))]
    silent, over = [Expect(ASKED)], []
    garbage = [Expect(ASKED), Send(b"HTTP/1.1 400 Bad Request\r\n\r\n"), Until(lambda: over)]
    half = [Expect(ASKED), Send(answer(b"2\na|b|1\n")[:-12]), Close()]
    async with Scripted(good, silent, garbage, half, half) as endpoint:
        options = {"request_timeout": 0.1, "max_connections": 1}
        async with await discover(endpoint.address, **options) as client:
            found = []
            for _ in range(3):
                await asked_again(client)
                found.append(type(client.discovery.error))
                assert await client.set("k", 1) and names(client) == [memcached.address]
            assert found == [Timeout, ProtocolError, ConnectionFailed]
            over.append(True)


@pytest.mark.gen_test
async def test_an_endpoint_of_an_old_engine_has_the_list_under_a_key(memcached, start_memcached):
    old = start_memcached()

    def tells(version):
        text = b"%d\n%b\n" % (version, node(memcached).encode())
        stored = b"set %b 0 0 %d\r\n%b\r\n" % (OLD_KEY, len(text), text)
        assert old.ask(stored) == b"STORED\r\n"

    tells(7)
    async with await discover(old.address) as client:
        assert names(client) == [memcached.address] and client.discovery.version == 7
        tells(8)
        await asked_again(client)
        assert client.discovery.version == 8


@pytest.mark.gen_test
async def test_tls_goes_to_the_endpoint_too_and_servers_bear_their_names(start_memcached, tmp_path):
    arguments = memcached_arguments(tmp_path, issued("localhost", "127.0.0.1"))
    server = start_memcached(arguments, ssl_context=trusting())
    text = b"1\n%b\n" % node(server, "localhost").encode()
    server.ask(b"set %b 0 0 %d\r\n%b\r\n" % (OLD_KEY, len(text), text))
    async with await discover(server.address, ssl=trusting()) as client:
        assert names(client) == [f"localhost:{server.port}"]
        assert await client.set("k", 1) and await client.get("k") == 1


@pytest.mark.gen_test
async def test_a_ring_that_refuses_the_list_is_a_bad_answer(memcached, expect_log):
    expect_log(LOG, "discovery at .* its servers cannot be used: .no more than one", times=1)

    class One:
        def server_for(self, key, alive):
            return alive[0]

    def ring(servers):
        if len(servers) > 1:
            raise KeyError("no more than one")
        return Custom(One(), servers)

    async with EmbeddedServer() as endpoint:
        endpoint.cluster = (1, [node(memcached)])
        async with await discover(endpoint.address, ring=ring) as client:
            endpoint.cluster = (2, [node(memcached), "b|b|1"])
            await asked_again(client)
            assert names(client) == [memcached.address] and client.discovery.version == 1
            assert await client.set("k", 1)


# -- the beginning and the end


@pytest.mark.gen_test
async def test_no_first_answer_is_no_client(memcached, start_memcached, expect_log):
    expect_log(LOG, "fails|dead", times=range(3))
    with pytest.raises(ProtocolError, match="is no configuration endpoint"):
        await discover(memcached.address)
    gone = start_memcached()
    gone.kill()
    with pytest.raises(ConnectionFailed):
        await discover(gone.address)
    gone.restart()
    gone.stop()
    with pytest.raises(Timeout):
        await discover(gone.address, request_timeout=0.1)
    assert our_timers(asyncio.get_running_loop()) == []


@pytest.mark.parametrize(
    "arguments, error, told",
    [
        ({"interval": 0}, ValueError, "interval"),
        ({"interval": "60"}, TypeError, "interval"),
        ({"on_change": 1}, TypeError, "on_change must be callable"),
        ({"request_timeout": -1}, ValueError, "request_timeout"),
        ({"ring": "none"}, ValueError, "ring"),
        ({"rings": 1}, TypeError, "rings"),
        ({"ssl": 1}, TypeError, "ssl"),
        ({"ring": object()}, InvalidRequest, "ring"),
        ({"on_dead": "rehsh"}, InvalidRequest, "on_dead"),
        ({"migrate_from": "old"}, TypeError, "migrate_from"),
        ({"servers": ["a:1"]}, TypeError, "servers are what the endpoint tells"),
        ({"endpoint": "a:0"}, InvalidServer, "^endpoint: .*port"),
        ({"endpoint": None}, TypeError, "^endpoint: "),
        ({"endpoint": ["a:1"]}, TypeError, "^endpoint: "),
        ({"endpoint": "unix:/s", "ssl": True}, InvalidServer, "^endpoint: .*no TLS"),
    ],
)
@pytest.mark.gen_test
async def test_bad_arguments_are_refused_by_name_before_anything_is_asked(arguments, error, told):
    nobody = f"127.0.0.1:{free_port()}"
    with pytest.raises(error, match=told):
        await discover(arguments.pop("endpoint", nobody), **arguments)


@pytest.mark.gen_test
async def test_a_ring_of_ones_own_sees_the_servers_that_the_endpoint_tells_and_no_other(memcached):
    seen = []

    def ring(servers):
        seen.append([server.name for server in servers])
        return Ketama(servers)

    async with EmbeddedServer() as endpoint:
        endpoint.cluster = (1, [node(memcached)])
        async with await discover(endpoint.address, ring=ring) as client:
            assert await client.set("k", 1)
    assert seen == [[memcached.address]]


@pytest.mark.gen_test
async def test_it_is_one_timer_which_is_gone_when_the_client_is_closed(memcached):
    loop = asyncio.get_running_loop()
    async with EmbeddedServer() as endpoint:
        endpoint.cluster = (1, [node(memcached)])
        client = await discover(endpoint.address, interval=60.0)
        await until(lambda: len(our_timers(loop)) == 1)
        assert [timer.name for timer in client.timers] == ["discovery"]
        client.close()
        client.close()
        assert our_timers(loop) == []


@pytest.mark.gen_test
async def test_it_may_be_closed_in_the_turn_in_which_it_was_answered(memcached):
    text = answer(b"1\n" + node(memcached).encode())
    async with Scripted([Expect(ASKED), Send(text), Close()]) as endpoint:
        client = await discover(endpoint.address, interval=600)
        discovery = client.discovery
        discovery.timer.stop()
        discovery._begin()
        closed = asyncio.Event()

        def look():
            if discovery._asking.done():
                client.close()
                closed.set()
            else:
                asyncio.get_running_loop().call_soon(look)

        look()
        await closed.wait()
        await asyncio.sleep(0)
        assert not discovery.timer.armed and discovery._asking is None


@pytest.mark.gen_test
async def test_it_may_be_closed_while_it_asks(memcached):
    async with EmbeddedServer() as endpoint:
        endpoint.cluster = (1, [node(memcached)])
        client = await discover(endpoint.address, interval=60.0)
        client.discovery.timer.stop()
        client.discovery._begin()
        client.close()
        await until(lambda: client.discovery._asking is None)
        assert not client.discovery.timer.armed


def test_it_goes_on_on_a_second_loop(memcached, ledger):
    """Also when the first one ended while the endpoint was asked."""
    ledger.excuse("timer", "handler", "task")  # (what a loop that ends has, it has)

    def tells(version):
        text = b"%d\n%b\n" % (version, node(memcached).encode())
        memcached.ask(b"set %b 0 0 %d\r\n%b\r\n" % (OLD_KEY, len(text), text))

    async def begins():
        client = await discover(memcached.address, interval=60.0)
        client.discovery.timer.stop()
        client.discovery._begin()
        return client

    async def goes_on(version):
        assert await client.set("k", 1)
        tells(version)
        await asked_again(client)
        assert client.discovery.version == version
        timers = our_timers(asyncio.get_running_loop())
        assert len(timers) == 1 and "discovery in" in repr(client)

    tells(1)
    client = asyncio.run(begins())
    asyncio.run(goes_on(2))
    asyncio.run(goes_on(3))
    client.close()
    assert not client.discovery.timer.armed


def test_a_closed_client_discovers_nothing_on_another_loop(memcached, ledger):
    ledger.excuse("timer", "handler")

    async def begins():
        async with EmbeddedServer() as endpoint:
            endpoint.cluster = (1, [node(memcached)])
            return await discover(endpoint.address, interval=60.0)

    async def asks():
        with pytest.raises(ClientClosed):
            await client.get("k")
        assert not client.discovery.timer.armed

    client = asyncio.run(begins())
    client.close()
    asyncio.run(asks())


@pytest.mark.parametrize("good", [True, False])
@pytest.mark.gen_test
async def test_it_does_not_keep_its_client_alive_and_ends_with_it(memcached, ledger, good):
    ledger.excuse("client")
    async with EmbeddedServer() as endpoint:
        endpoint.cluster = (1, [node(memcached)])
        client = await discover(endpoint.address, interval=60.0)
        gone, discovery = weakref.ref(client), client.discovery
        del client
        gc.collect()
        assert gone() is None
        if not good:
            endpoint.cluster = None
        discovery.timer.stop()
        discovery._begin()
        await until(lambda: discovery._endpoint._cluster.closed)
        assert not discovery.timer.armed


@pytest.mark.gen_test
async def test_credentials_go_to_the_endpoint_too(start_memcached, tmp_path, expect_log):
    (tmp_path / "users").write_text("app:of-all\n")
    server = start_memcached(["-Y", str(tmp_path / "users")], login=b"app of-all")
    login = {"username": "app", "password": "of-all"}
    text = b"1\n%b\n" % node(server).encode()
    async with Client([server.address], **login) as writer:
        assert await writer.set(OLD_KEY.decode(), text)
    async with await discover(server.address, **login) as client:
        assert names(client) == [server.address] and await client.set("k", 1)
        assert "of-all" not in repr(client) + repr(client.discovery)
    expect_log(LOG, "fails|dead", times=range(1, 4))
    with pytest.raises(AuthenticationError):
        await discover(server.address, username="app", password="wrong")
