"""The fault matrix, "Connect.": whatever keeps a connection from being made.

Each row has its tests under its own words. Names and listeners are made
here; the blackhole and the routes are the kernel's own, in a `Network`,
and are skipped where none can be made. The rows of TLS are in
``test_faults_tls.py``.
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import socket
import threading
import time
from collections.abc import Iterator
from typing import Any

import pytest
from tornado.netutil import Resolver

from tornado_memcache import Client, ConnectionFailed, MemcacheError, ServerDead, Timeout

from .asked import until
from .faultproxy import FaultProxy
from .ledger import open_fds
from .memcacheds import Memcached
from .networks import Connects, Network, closed_port, full_backlog, hanging_connects, missing
from .scripted import Close, Expect, Scripted, Send, Until
from .silent import Silent

LOG = "tornado_memcache"
#: A deadline that is waited for, in seconds, and one that must not be.
D = 0.2
LONG = 5.0
#: What a loaded machine may take on top.
SLACK = 1.0


class Names(Resolver):
    """Answers with the addresses that it is given, after ``delay`` seconds."""

    def initialize(self, *addresses: str, delay: float = 0.0) -> None:
        self.addresses = addresses
        self.delay = delay
        self.asked = 0

    async def resolve(self, host: str, port: int, family: Any = socket.AF_UNSPEC) -> list[Any]:
        self.asked += 1
        await asyncio.sleep(self.delay)
        found = []
        for address in self.addresses:
            host, _, port = address.rpartition(":")
            kind = socket.AF_INET6 if ":" in host else socket.AF_INET
            found.append((kind, (host.strip("[]"), int(port))))
        return found


@pytest.fixture
def network() -> Iterator[Network]:
    reason = missing()
    if reason is not None:
        pytest.skip(reason)
    with Network() as network:
        yield network


@pytest.fixture(params=["blackhole", "full accept backlog"])
def hole(request: pytest.FixtureRequest) -> Iterator[tuple[str, int]]:
    """An address at which every connect hangs."""
    if request.param == "blackhole":
        network = request.getfixturevalue("network")
        network.swallow()
        yield network.peer, 11211
    else:
        with full_backlog() as address:
            yield address


async def failure(call: Any) -> MemcacheError:
    try:
        outcome = await call
    except MemcacheError as error:
        return error
    if getattr(outcome, "errors", None):  # (of a command that asks many servers)
        return next(iter(outcome.errors.values()))
    pytest.fail(f"it was to fail, and came to {outcome!r}")


async def failures(*calls: Any) -> list[MemcacheError]:
    return await asyncio.gather(*map(failure, calls))


async def moment(seconds: float) -> None:
    """Ends after ``seconds``, and after whatever was due on this loop by then."""
    await asyncio.sleep(seconds)
    for _ in range(10):
        await asyncio.sleep(0)


def sockets() -> int:
    return sum(name.startswith("socket:") for name in open_fds().values())


# -- the network that these tests stand on


def test_a_network_is_taken_back_when_its_test_fails(network: Network) -> None:
    with pytest.raises(ZeroDivisionError), Network() as other:
        assert other.peer != network.peer
        unreachable = other.route("unreachable")
        with pytest.raises(OSError, match="No route"), socket.socket() as sock:
            sock.connect((unreachable, 1))
        raise ZeroDivisionError
    names = [name for _, name in socket.if_nameindex()]
    assert network.interface in names and other.interface not in names
    with pytest.raises(FileNotFoundError):
        other.within(list)
    with socket.socket() as sock:
        sock.settimeout(0.01)
        assert sock.connect_ex((unreachable, 1)) != errno.EHOSTUNREACH, "its route is still there"


# -- closed port: ConnectionFailed in under 20 ms, not at D


@pytest.mark.gen_test
async def test_closed_port_fails_at_once_and_not_at_the_deadline(expect_log):
    expect_log(LOG, "taken for dead: cannot connect: Connection refused", times=1)
    with closed_port() as (host, port), Connects() as connects:
        async with Client([f"{host}:{port}"], request_timeout=LONG, connect_timeout=LONG) as client:
            begun = time.monotonic()
            errors = await failures(
                *[client.get(f"k{n}") for n in range(50)],
                *[client.set(f"k{n}", "v") for n in range(50)],
            )
            took = time.monotonic() - begun
            assert {type(error) for error in errors} == {ConnectionFailed}
            assert {(error.phase, error.errno, error.server) for error in errors} == {
                ("connecting", errno.ECONNREFUSED, f"{host}:{port}")
            }
            assert not any(error.maybe_applied for error in errors)
            assert took < 1.0, f"{took:.3f} s, of {LONG} s that there were"
            tried = len(connects.to(f"{host}:{port}"))
            assert tried == 1, f"{tried} connects for calls of one tick"


# -- blackhole: Timeout phase "connecting" at D, fd back
# -- full accept backlog: as blackhole


@pytest.mark.gen_test
@pytest.mark.parametrize(
    "settings, how",
    [
        ({"request_timeout": D, "connect_timeout": LONG}, {}),
        ({"request_timeout": LONG, "connect_timeout": D}, {}),
        ({"request_timeout": LONG, "connect_timeout": LONG}, {"timeout": D}),
    ],
    ids=["request_timeout", "connect_timeout", "timeout"],
)
async def test_hanging_connect_is_a_timeout_at_the_deadline_and_its_fd_is_back(
    hole, settings, how, expect_log
):
    expect_log(LOG, "fails: .*timed out .*phase connecting", times=1)
    host, port = hole
    before = sockets()
    assert hanging_connects() == 0
    async with Client([f"{host}:{port}"], **settings) as client:
        begun = time.monotonic()
        calls = [client.get("k", **how), client.set("k", "v", **how), client.stats(**how)]
        await asyncio.sleep(0)
        assert hanging_connects() == 1, "the connect was to hang, and there was to be one"
        errors = await failures(*calls)
        took = time.monotonic() - begun
        assert sockets() == before and hanging_connects() == 0, "the fd is not back"
        assert {(type(error), error.phase) for error in errors} == {(Timeout, "connecting")}
        assert not any(error.maybe_applied for error in errors)
        assert D <= took < D + SLACK, f"{took:.3f} s instead of {D} s"
        await asyncio.sleep(0)
        assert not client._deadlines.armed


@pytest.mark.gen_test
async def test_three_connects_that_hung_are_a_death_and_the_blackhole_may_open(network, expect_log):
    expect_log(LOG, "fails: ", times=1)
    dead = expect_log(LOG, "taken for dead: .*timed out", times=1)
    server = network.within(lambda: Memcached(host=network.peer))
    try:
        network.swallow()
        with Connects() as connects:
            async with Client([server.address], request_timeout=0.1) as client:
                for _ in range(3):
                    assert dead.count == 0
                    assert {type(error) for error in await failures(client.get("k"))} == {Timeout}
                assert type(await failure(client.get("k"))) is ServerDead
                network.open()
                await until(lambda: client._pools[0].health.may_probe(time.monotonic()))
                assert await client.set("k", "v", timeout=LONG)
                assert await client.get("k") == "v"
                tried = len(connects.to(server.address))
                assert tried == 4, f"{tried} connects: one for each silence, and the probe"
    finally:
        server.close()


# -- ip route add unreachable|prohibit|blackhole: fails at once, errno kept


@pytest.mark.gen_test
@pytest.mark.parametrize(
    "kind, code",
    [
        ("unreachable", errno.EHOSTUNREACH),
        ("prohibit", errno.EACCES),
        ("blackhole", errno.EINVAL),
    ],
)
async def test_route_that_leads_nowhere_fails_at_once_with_its_errno(
    network, kind, code, expect_log
):
    expect_log(LOG, "taken for dead: cannot connect", times=1)
    address, before = network.route(kind), sockets()
    async with Client([address], request_timeout=LONG, connect_timeout=LONG) as client:
        begun = time.monotonic()
        errors = await failures(client.get("k"), client.set("k", "v"))
        took = time.monotonic() - begun
        assert {(type(error), error.errno) for error in errors} == {(ConnectionFailed, code)}
        assert {error.phase for error in errors} == {"connecting"}
        assert took < 1.0, f"{took:.3f} s, of {LONG} s that there were"
        assert sockets() == before
        assert type(await failure(client.get("k"))) is ServerDead


# -- slow connect: the rest of the budget is left, not a fresh one


@pytest.mark.gen_test
async def test_slow_connect_leaves_the_rest_of_the_budget_and_not_a_fresh_one(network, expect_log):
    expect_log(LOG, "fails: ", times=1)
    silent = network.within(lambda: Silent(network.peer))
    try:
        network.hold()
        async with Client([silent.address], request_timeout=1.5, connect_timeout=1.5) as client:
            calls = [client.get("k"), client.set("k", "v")]
            just_after = asyncio.ensure_future(moment(1.65))
            await asyncio.sleep(0.3)
            assert hanging_connects() == 1 and silent.connections == 0
            network.open()
            await until(lambda: silent.received)
            errors = await failures(*calls)
            assert not just_after.done(), "their time began anew with the connection"
            assert {(type(error), error.phase) for error in errors} == {(Timeout, "reply")}
            assert [error.maybe_applied for error in errors] == [False, True]
            just_after.cancel()
    finally:
        silent.close()


@pytest.mark.gen_test
async def test_slow_connect_and_an_answer_within_the_budget(network):
    server = network.within(lambda: Memcached(host=network.peer))
    try:
        network.hold()
        async with Client([server.address], request_timeout=2.0, connect_timeout=2.0) as client:
            calls = [client.set("k", "v"), client.get("k")]
            await asyncio.sleep(0.1)
            assert not any(call.done() for call in calls)
            network.open()
            assert await asyncio.gather(*calls) == [True, "v"]
    finally:
        server.close()


@pytest.mark.gen_test
async def test_slow_look_up_leaves_the_rest_of_the_budget_and_not_a_fresh_one(silent, expect_log):
    expect_log(LOG, "fails: ", times=1)
    names = Names(silent.address, delay=0.3)
    async with Client(
        ["cache.example"], resolver=names, request_timeout=1.0, connect_timeout=1.0
    ) as client:
        call = client.get("k")
        just_after = asyncio.ensure_future(moment(1.15))
        error = await failure(call)
        assert not just_after.done(), "its time began anew with the connection"
        assert type(error) is Timeout and error.phase == "reply" and silent.received
        just_after.cancel()


# -- DNS slow: D holds and the loop does not block


@pytest.mark.gen_test
async def test_dns_slow_the_deadline_holds_and_the_loop_does_not_block(
    memcached, expect_log, monkeypatch
):
    """The default resolver, over a getaddrinfo that blocks whoever calls it."""
    expect_log(LOG, "fails: .*timed out .*phase resolving", times=1)
    real, answer, threads, ended = socket.getaddrinfo, threading.Event(), [], []

    def getaddrinfo(host: Any, port: Any, *hints: int, **more: int) -> Any:
        if host != "cache.example":
            return real(host, port, *hints, **more)
        if socket.AI_NUMERICHOST in (*hints[3:], *more.values()):
            raise socket.gaierror(socket.EAI_NONAME, "not a number")
        threads.append(threading.current_thread())
        answer.wait(30)
        ended.append(True)
        return real(memcached.host, port, *hints, **more)

    monkeypatch.setattr(socket, "getaddrinfo", getaddrinfo)
    server = f"cache.example:{memcached.port}"
    try:
        async with Client([server], request_timeout=D, connect_timeout=LONG) as client:
            turns = 0

            async def turn() -> None:
                nonlocal turns
                while True:
                    turns += 1
                    await asyncio.sleep(0.005)

            turning = asyncio.ensure_future(turn())
            begun = time.monotonic()
            errors = await failures(*[client.get(f"k{n}") for n in range(50)], client.set("k", "v"))
            took = time.monotonic() - begun
            turning.cancel()
            assert {(type(error), error.phase) for error in errors} == {(Timeout, "resolving")}
            assert D <= took < D + SLACK, f"{took:.3f} s instead of {D} s"
            assert turns > 1, f"the loop turned {turns} times in {took:.3f} s"
            assert len(threads) == 1, f"{len(threads)} look-ups for calls of one tick"
            assert threads[0] is not threading.current_thread()
            # An answer that comes too late is nobody's: the next call asks again.
            answer.set()
            await until(lambda: ended)
            assert await client.set("k", "v", timeout=LONG)
            assert len(threads) == 2
    finally:
        answer.set()


# -- DNS changed: the next connect uses the new address


@pytest.mark.gen_test
async def test_dns_changed_the_next_connect_uses_the_new_address(memcached, start_memcached):
    new = start_memcached()
    with FaultProxy(memcached.address) as old, Connects() as connects:
        names = Names(old.address)
        async with Client(["cache.example:11211"], resolver=names) as client:
            assert await client.set("where", "old")
            names.addresses = (new.address,)
            assert await client.get("where") == "old", "what is open goes on"
            assert names.asked == 1
            old.cut()
            assert await client.get("where") is None
            assert await client.set("where", "new")
            assert names.asked == 2
        assert (len(connects.to(old.address)), len(connects.to(new.address))) == (1, 1)
    assert memcached.ask(b"get where\r\n", b"END\r\n").split()[4] == b"old"
    assert new.ask(b"get where\r\n", b"END\r\n").split()[4] == b"new"


@pytest.mark.gen_test
async def test_dns_changed_while_the_server_was_dead(memcached, expect_log):
    expect_log(LOG, "taken for dead", times=1)
    with closed_port() as (host, port):
        names = Names(f"{host}:{port}")
        async with Client(["cache.example:11211"], resolver=names, dead_retry=0.05) as client:
            assert type(await failure(client.get("k"))) is ConnectionFailed
            names.addresses = (memcached.address,)
            await until(lambda: client._pools[0].health.may_probe(time.monotonic()))
            assert await client.get("k") is None
            assert names.asked == 2


# -- ::1 refused, 127.0.0.1 fine: success within D


@pytest.mark.gen_test
@pytest.mark.parametrize("first", ["::1", "127.0.0.1"])
async def test_one_family_refused_and_the_other_fine_is_success(memcached, first):
    v6, v4 = f"[::1]:{memcached.port}", memcached.address
    names = Names(*((v6, v4) if first == "::1" else (v4, v6)))
    with contextlib.ExitStack() as stack:
        with contextlib.suppress(OSError):  # (a machine without ::1 refuses in its own way)
            stack.enter_context(closed_port("::1", memcached.port))
        connects = stack.enter_context(Connects())
        async with Client(["cache.example"], resolver=names, request_timeout=1.0) as client:
            assert await asyncio.gather(client.set("k", "v"), client.get("k")) == [True, "v"]
            assert client._pools[0].counts()["open"] == 1
        assert len(connects.to(v4)) == 1
        assert len(connects.to(v6)) == (1 if first == "::1" and socket.has_ipv6 else 0)


# -- accept then close: one retry of an idempotent call, then ConnectionFailed


@pytest.mark.gen_test
@pytest.mark.parametrize(
    "ask",
    [
        lambda client: client.get("k"),
        lambda client: client.gets("k"),
        lambda client: client.get_multi(["j", "k"]),
        lambda client: client.gets_multi(["j", "k"]),
        lambda client: client.version(),
        lambda client: client.stats(),
    ],
    ids=["get", "gets", "get_multi", "gets_multi", "version", "stats"],
)
async def test_accept_then_close_is_one_retry_of_an_idempotent_call(ask, expect_log):
    expect_log(LOG, "fails: .*the server closed the connection", times=1)
    async with Scripted([Close()]) as server:
        async with Client(
            [server.address], request_timeout=LONG, silences_until_dead=100
        ) as client:
            error = await failure(ask(client))
            assert type(error) is ConnectionFailed and error.server == server.address
            assert not error.maybe_applied
            assert server.connections == 2, f"{server.connections} connections for one retry"


@pytest.mark.gen_test
@pytest.mark.parametrize(
    "sent, ask",
    [
        (b"set k 0 0 1\r\nv\r\n", lambda client: client.set("k", b"v")),
        (b"incr k 1\r\n", lambda client: client.incr("k")),
        (b"delete k\r\n", lambda client: client.delete("k")),
        (b"touch k 9\r\n", lambda client: client.touch("k", 9)),
        (b"gat 9 k\r\n", lambda client: client.gat("k", 9)),
    ],
    ids=["set", "incr", "delete", "touch", "gat"],
)
async def test_accept_then_close_is_no_retry_of_a_write_whose_bytes_left(sent, ask, expect_log):
    expect_log(LOG, "fails: .*the server closed the connection", times=1)
    async with Scripted([Expect(sent), Close()]) as server:
        async with Client([server.address], request_timeout=LONG) as client:
            error = await failure(ask(client))
            assert type(error) is ConnectionFailed and error.maybe_applied
            assert server.connections == 1


@pytest.mark.gen_test
async def test_accept_then_close_before_anything_left_is_a_retry_of_a_write_too():
    loop = asyncio.get_running_loop()
    with socket.create_server(("127.0.0.1", 0)) as listener:
        host, port = listener.getsockname()
        async with Client([f"{host}:{port}"]) as client:
            call = client.incr("n")
            listener.accept()[0].close()  # (before the loop can have seen that it is open)
            listener.setblocking(False)
            peer, _ = await loop.sock_accept(listener)
            with peer:
                assert await loop.sock_recv(peer, 100) == b"incr n 1\r\n"
                await loop.sock_sendall(peer, b"2\r\n")
                assert await call == 2


# -- memcached -c 30 at its limit: back off, live connections serve the waiters


class Crowd:
    """Takes all the connections that a memcached at its limit gives, and asks it on one."""

    def __init__(self, server: Memcached) -> None:
        self._server = server
        self._taken: list[socket.socket] = []
        self.fill()

    def fill(self) -> None:
        while True:
            peer = self._server.connect()
            try:
                peer.sendall(b"version\r\n")
                answered = peer.recv(100).startswith(b"VERSION")
            except OSError:
                answered = False
            if not answered:
                return peer.close()
            self._taken.append(peer)

    def leave_one(self) -> None:
        """Gives one connection back, and waits until there is room for another."""
        before = int(self.stats()["curr_connections"])
        self._taken.pop().close()
        while int(self.stats()["curr_connections"]) >= before:
            time.sleep(0.005)

    def stats(self) -> dict[str, str]:
        self._taken[0].sendall(b"stats\r\n")
        answer = b""
        while not answer.endswith(b"END\r\n"):
            answer += self._taken[0].recv(65536)
        lines = answer.decode().splitlines()[:-1]
        return dict(line.split(" ", 2)[1:] for line in lines)

    @property
    def rejected(self) -> int:
        return int(self.stats()["rejected_connections"])

    def close(self) -> None:
        for peer in self._taken:
            peer.close()


@pytest.fixture
def full(start_memcached) -> Iterator[tuple[Memcached, Crowd]]:
    server = start_memcached(["-c", "30"])
    crowd = Crowd(server)
    yield server, crowd
    crowd.close()


@pytest.mark.gen_test
async def test_memcached_at_its_limit_live_connections_serve_the_waiters(full):
    """Large values want more connections than there are, for three back-offs."""
    server, crowd = full
    crowd.leave_one()
    values = {f"large{n}": b"%d" % n * 1_000_000 for n in range(4)}
    values |= {f"small{n}": b"%d" % n for n in range(8)}
    async with Client([server.address], max_connections=4, request_timeout=LONG) as client:
        for key, value in values.items():
            assert await client.set(key, value)
        before, begun, served = crowd.rejected, time.monotonic(), 0

        async def ask(key: str) -> None:
            nonlocal served
            while time.monotonic() - begun < 0.8 or crowd.rejected == before:
                assert await client.get(key) == values[key]
                # (A large value may come in one turn, and want no second connection.)
                assert await client.set(key, values[key])
                served += 2

        await asyncio.gather(*map(ask, values))
        took, refused = time.monotonic() - begun, crowd.rejected - before
        told = f"{refused} connects were refused in {took:.2f} s, {served} calls were served"
        # Each time up to three, which were under way when the first of them was refused.
        assert 1 <= refused <= 3 * (1 + took / 0.25), told
        assert repr(client._pools[0].health) == "alive" and client._pools[0].counts()["open"] == 1


@pytest.mark.gen_test
async def test_memcached_at_its_limit_refuses_writes_and_a_live_connection_takes_them():
    """What memcached has not read has not been tried."""
    large = 70_000
    refusal = [Send(b"ERROR Too many open connections\r\n"), Close()]

    def store(key: bytes, size: int = 1) -> bytes:
        return b"set %b 0 0 %d\r\n%b\r\n" % (key, size, key * size)

    waiting = Expect(store(b"c") + store(b"d") + store(b"e"))
    first, second = Expect(store(b"a", large)), Expect(store(b"b", large))
    live = [
        *[Expect(b"get k\r\n"), Send(b"END\r\n")],
        *[waiting, first, second, Send(b"STORED\r\n" * 5)],
    ]
    # One refused write is not sent behind another, on a connection that has said nothing yet.
    later = Until(lambda: server.received[0].endswith(first.data))
    async with Scripted(live, [first, *refusal], [second, later, *refusal]) as server:
        async with Client([server.address], max_connections=3, request_timeout=LONG) as client:
            assert await client.get("k") is None
            calls = [client.set(key, key.encode()) for key in "cde"]
            await until(lambda: server.received[0].endswith(waiting.data))
            calls += [client.set(key, key.encode() * large) for key in "ab"]
            assert await asyncio.gather(*calls) == [True] * 5
            assert server.connections == 3


@pytest.mark.parametrize("call", ["set", "incr"])
@pytest.mark.gen_test
async def test_a_write_alone_that_memcached_refuses_at_its_limit_was_not_applied(
    full, expect_log, call
):
    """One behind another may have been, if that one was refused by a server behind a proxy."""
    expect_log(LOG, "taken for dead: the server is at its limit of connections", times=1)
    server, _ = full
    async with Client([server.address]) as client:
        error = await failure(getattr(client, call)("k", 1))
        assert type(error) is ConnectionFailed and not error.maybe_applied


@pytest.mark.gen_test
async def test_memcached_at_its_limit_is_backed_off_from_when_no_connection_lives(full, expect_log):
    dead = expect_log(LOG, "taken for dead: the server is at its limit of connections", times=1)
    server, crowd = full
    before, begun = crowd.rejected, time.monotonic()
    with Connects() as connects:
        async with Client([server.address], max_connections=4) as client:
            errors = await failures(client.get("k"), client.set("k", "v"), client.incr("n"))
            assert {type(error) for error in errors} == {ConnectionFailed}
            while len(connects.to(server.address)) < 4:
                assert type(await failure(client.get("k"))) in (ServerDead, ConnectionFailed)
                await asyncio.sleep(0.005)
            moments = connects.to(server.address)
            pauses = [later - earlier for earlier, later in zip(moments, moments[1:], strict=False)]
            assert crowd.rejected - before == 4
            least = [0.225, 0.45, 0.81]
            assert all(pause >= due for pause, due in zip(pauses, least, strict=True)), pauses
            assert time.monotonic() - begun >= sum(least) and dead.count == 1
            crowd.leave_one()
            client.retry_dead_servers()
            assert await client.set("k", "v")
