"""How a stream is opened: look-ups, several addresses, and nothing left of either."""

from __future__ import annotations

import asyncio
import errno
import socket
import tempfile
import threading
import time

import pytest
from tornado.netutil import Resolver

from tornado_memcache import Client, ConnectionFailed, Timeout

from .asked import until
from .certificates import issued, memcached_arguments, trusting
from .faultproxy import FaultProxy

LOG = "tornado_memcache"


class Names(Resolver):
    """Answers what it is told, after as long as it is told."""

    def initialize(self, answers, delay=0.0):
        self.answers = answers
        self.delay = delay
        self.asked = 0

    async def resolve(self, host, port, family=socket.AF_UNSPEC):
        self.asked += 1
        await asyncio.sleep(self.delay)
        if isinstance(self.answers, Exception):
            raise self.answers
        return [
            (socket.AF_INET6 if ":" in host else socket.AF_INET, (host, port))
            for host, port in self.answers
        ]


def at(server) -> tuple[str, int]:
    host, port = server.address.split(":")
    return host, int(port)


@pytest.fixture
def full_backlog():
    """A listening socket that accepts nothing and has no room left: a connect hangs."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        listener.listen(0)
        waiting = []
        for _ in range(8):
            sock = socket.socket()
            sock.setblocking(False)
            sock.connect_ex(listener.getsockname())
            waiting.append(sock)
        time.sleep(0.05)
        yield listener.getsockname()
        for sock in waiting:
            sock.close()


@pytest.mark.gen_test
async def test_a_name_is_looked_up_and_again_at_the_next_connect(memcached, start_memcached):
    names = Names([at(memcached)])
    async with Client(["cache.example:11211"], resolver=names) as client:
        await client.set("k", "first")
        other = start_memcached()
        names.answers = [at(other)]
        memcached.kill()
        memcached.restart()
        assert await client.get("k") is None
        assert names.asked == 2
        await client.set("k", "second")
        assert b"second" in other.ask(b"get k\r\n", b"END\r\n")


@pytest.mark.gen_test
async def test_a_name_without_an_address_fails_in_phase_resolving(expect_log):
    expect_log(LOG, "taken for dead")
    names = Names(socket.gaierror(socket.EAI_NONAME, "Name or service not known"))
    async with Client(["cache.example"], resolver=names) as client:
        with pytest.raises(ConnectionFailed, match="not known") as caught:
            await client.get("k")
        assert caught.value.phase == "resolving"
    async with Client(["cache.example"], resolver=Names([])) as client:
        with pytest.raises(ConnectionFailed, match="no address"):
            await client.get("k")


def raises(error):
    def answer():
        raise error

    return answer


async def nothing():
    return None


async def answered(answer):
    return answer


#: What a resolver of the user's may do, and what is told of it.
BAD_RESOLVERS = [
    pytest.param(raises(ValueError("a bug")), "resolving", "a bug", id="raises"),
    pytest.param(raises(ValueError()), "resolving", "ValueError", id="raises-without-words"),
    pytest.param(raises(asyncio.CancelledError()), "resolving", "", id="raises-cancelled"),
    pytest.param(lambda: None, "resolving", "", id="no-awaitable"),
    pytest.param(nothing, "resolving", "", id="none"),
    pytest.param(lambda: answered(7), "resolving", "", id="no-list"),
    pytest.param(lambda: answered([("x", "y", "z")]), "resolving", "", id="no-pairs"),
    pytest.param(lambda: answered(iter(())), "resolving", "has no address", id="empty"),
    pytest.param(
        lambda: answered([(socket.AF_INET, ("127.0.0.1", 99999999))]), "connecting", "", id="port"
    ),
    pytest.param(lambda: answered([(socket.AF_INET, None)]), "connecting", "", id="no-address"),
    pytest.param(lambda: answered([("x", "y")]), "connecting", "", id="no-family"),
    pytest.param(
        lambda: answered([(socket.AF_INET, ("foo..bar", 1))]), "connecting", "", id="no-name"
    ),
]


@pytest.mark.gen_test
@pytest.mark.parametrize(("answer", "phase", "told"), BAD_RESOLVERS)
async def test_whatever_a_resolver_does_the_call_fails_once_and_later(
    answer, phase, told, expect_log
):
    expect_log(LOG, "taken for dead")

    class Wrong:
        def resolve(self, host, port):
            return answer()

    outcomes = []
    async with Client(["cache.example:11211"], resolver=Wrong(), request_timeout=10) as client:
        future = client.get("k", callback=outcomes.append, fail_callback=outcomes.append)
        assert future is None and not outcomes
        pool = client._pools[0]
        await until(lambda: outcomes)
        (error,) = outcomes
        assert type(error) is ConnectionFailed and error.phase == phase
        assert told in str(error)
        assert pool.counts()["open"] == pool.counts()["pending"] == 0
    assert len(outcomes) == 1


@pytest.mark.gen_test
async def test_an_address_that_is_none_gives_way_to_the_next(memcached):
    class Half:
        async def resolve(self, host, port):
            return [
                ("x", "y"),
                (socket.AF_INET, ("127.0.0.1", -1)),
                (socket.AF_INET, at(memcached)),
            ]

    async with Client(["cache.example:11211"], resolver=Half(), request_timeout=10) as client:
        assert await client.set("k", 1) is True


@pytest.mark.gen_test
async def test_a_slow_look_up_does_not_block_and_ends_by_the_deadline(expect_log):
    expect_log(LOG, "fails")
    async with Client(
        ["cache.example"], resolver=Names([], delay=5), request_timeout=0.1
    ) as client:
        ticks = 0

        async def tick():
            nonlocal ticks
            while True:
                ticks += 1
                await asyncio.sleep(0.005)

        ticking = asyncio.ensure_future(tick())
        with pytest.raises(Timeout) as caught:
            await client.get("k")
        ticking.cancel()
        assert caught.value.phase == "resolving"
        assert ticks > 5


@pytest.mark.gen_test
async def test_the_second_address_is_tried_at_once_when_the_first_refuses(memcached):
    with socket.socket() as closed:
        closed.bind(("127.0.0.1", 0))
        names = Names([closed.getsockname(), at(memcached)])
        async with Client(["cache.example"], resolver=names) as client:
            begun = time.monotonic()
            assert await client.get("k") is None
            assert time.monotonic() - begun < 0.15


@pytest.mark.gen_test
async def test_the_second_address_is_tried_after_a_while_when_the_first_hangs(
    memcached, full_backlog
):
    names = Names([full_backlog, at(memcached)])
    async with Client(["cache.example"], resolver=names, connect_timeout=0.3) as client:
        begun = time.monotonic()
        assert await client.get("k") is None
        assert 0.09 < time.monotonic() - begun < 0.3
        assert len(client._pools[0]._connections) == 1


@pytest.mark.gen_test
async def test_a_connect_that_hangs_ends_by_its_timeout(full_backlog, expect_log):
    expect_log(LOG, "fails|dead", times=None)
    host, port = full_backlog
    async with Client([f"{host}:{port}"], connect_timeout=0.1) as client:
        begun = time.monotonic()
        with pytest.raises(Timeout) as caught:
            await client.get("k")
        assert caught.value.phase == "connecting"
        assert 0.09 < time.monotonic() - begun < 0.35
        await asyncio.sleep(0)
        assert not client._deadlines.armed


# -- a loop that was busy elsewhere when the connect timeout came


def only(client: Client):
    (connection,) = client._pools[0]._connections
    return connection


def block(client: Client, *, until_news: bool = True) -> None:
    """Keeps the loop from its work past the connect timeout, while the kernel goes on."""
    connection = only(client)
    assert connection.connecting and connection.next_deadline() > time.monotonic()
    while connection.next_deadline() > time.monotonic() or (
        until_news and not connection._connector.has_news
    ):
        time.sleep(0.01)


@pytest.mark.gen_test
async def test_a_connect_that_has_ended_wins_over_its_timeout(memcached):
    async with Client([memcached.address], connect_timeout=0.1, request_timeout=600) as client:
        calls = [client.set("k", "v"), client.get("k")]
        block(client)
        assert await asyncio.gather(*calls) == [True, "v"]
        assert client._pools[0].losses == 0


@pytest.mark.gen_test
async def test_a_connect_that_was_refused_wins_over_its_timeout(expect_log):
    expect_log(LOG, "taken for dead: cannot connect: Connection refused", times=1)
    with socket.socket() as closed:
        closed.bind(("127.0.0.1", 0))
        port = closed.getsockname()[1]
        async with Client(
            [f"127.0.0.1:{port}"], connect_timeout=0.1, request_timeout=600
        ) as client:
            call = client.get("k")
            block(client)
            with pytest.raises(ConnectionFailed) as caught:
                await call
            assert caught.value.errno == errno.ECONNREFUSED


@pytest.mark.gen_test
async def test_a_handshake_that_has_been_answered_wins_over_its_timeout(start_memcached, tmp_path):
    arguments = memcached_arguments(tmp_path, issued("127.0.0.1"))
    server = start_memcached(arguments, ssl_context=trusting())
    with FaultProxy(server.address) as proxy:
        proxy.replies.hold = True
        async with Client(
            [proxy.address], ssl=trusting(), connect_timeout=1, request_timeout=600
        ) as client:
            call = client.get("k")
            while only(client).phase != "tls":
                await asyncio.sleep(0)
            for _ in range(20):  # (turns, in which our part of it is sent)
                await asyncio.sleep(0)
            proxy.replies.heal()
            block(client)
            assert await call is None
            assert proxy.accepted == 1


@pytest.mark.parametrize("secure", [False, True])
@pytest.mark.gen_test
async def test_a_connect_that_hangs_ends_though_the_loop_was_busy(
    full_backlog, silent, secure, expect_log
):
    """With TLS it is connected in time, and no answer to the handshake comes."""
    expect_log(LOG, "fails", times=1)
    host, port = full_backlog
    address = silent.address if secure else f"{host}:{port}"
    settings = {"connect_timeout": 0.1, "request_timeout": 600, "ssl": secure}
    async with Client([address], **settings) as client:
        call = client.get("k")
        block(client, until_news=secure)
        with pytest.raises(Timeout) as caught:
            await call
        assert caught.value.phase == ("tls" if secure else "connecting")


@pytest.mark.gen_test
async def test_localhost_works_though_one_family_refuses(memcached):
    async with Client([f"localhost:{at(memcached)[1]}"]) as client:
        assert await client.set("k", "v")


@pytest.mark.gen_test
async def test_unix_sockets(start_memcached, expect_log):
    expect_log(LOG, "taken for dead")
    server = start_memcached(unix=True)
    async with Client([server.address]) as client:
        assert await client.set("k", "v")
        assert await client.get("k") == "v"
    async with Client(["unix:/nowhere/at/all.sock"]) as client:
        with pytest.raises(ConnectionFailed, match="No such file") as caught:
            await client.get("k")
        assert caught.value.errno == 2


@pytest.mark.gen_test
async def test_a_unix_socket_whose_backlog_is_full_is_no_connection(expect_log):
    expect_log(LOG, "taken for dead: cannot connect: Resource temporarily unavailable", times=1)
    with (
        tempfile.TemporaryDirectory(prefix="mc-") as folder,
        socket.socket(socket.AF_UNIX) as listener,
        socket.socket(socket.AF_UNIX) as first,
    ):
        path = f"{folder}/socket"
        listener.bind(path)
        listener.listen(0)
        first.connect(path)
        async with Client([f"unix:{path}"], request_timeout=600) as client:
            with pytest.raises(ConnectionFailed) as caught:
                await client.get("k")
            assert (caught.value.phase, caught.value.errno) == ("connecting", errno.EAGAIN)


@pytest.mark.gen_test
async def test_out_of_file_descriptors_fails_at_once_and_recovers(memcached, expect_log):
    import resource

    expect_log(LOG, "taken for dead")
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    async with Client([memcached.address]) as client:
        resource.setrlimit(resource.RLIMIT_NOFILE, (3, hard))
        try:
            with pytest.raises(ConnectionFailed, match="Too many open files"):
                await client.get("k")
        finally:
            resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
        await asyncio.sleep(0.26)
        assert await client.get("k") is None


@pytest.mark.gen_test
async def test_the_default_resolver_runs_off_the_loop(memcached):
    """``localhost`` is looked up in a thread; none of ours stays behind."""
    before = threading.active_count()
    async with Client([f"localhost:{at(memcached)[1]}"]) as client:
        await client.get("k")
    assert threading.active_count() <= before + 1
