"""tornado_memcache.authentication: a memcached that asks who we are, in front of real ``-Y``."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import Iterator
from typing import Any

import pytest

from tornado_memcache import (
    AuthenticationError,
    Client,
    ConnectionFailed,
    MemcacheError,
    Server,
    ServerDead,
    Timeout,
    boundary,
)
from tornado_memcache import memcache as drop_in
from tornado_memcache import tornadoasyncmemcache as old_module

from .asked import until
from .certificates import for_server, issued, memcached_arguments, trusting
from .ledger import open_fds
from .memcacheds import Memcached, free_port
from .scripted import Close, Expect, Reset, Scripted, Send, Sleep, Until
from .test_security_told import told  # noqa: F401

LOG = "tornado_memcache"
USER, PASSWORD = "app-xyzzy", "secret-plugh"
KNOWN = {"username": USER, "password": PASSWORD}
WRONG = {"username": USER, "password": "wrong-plugh"}
LOGIN = f"{USER} {PASSWORD}".encode()
REQUEST = b"set tornado_memcache_authentication 0 -1 %d\r\n%b\r\n" % (len(LOGIN), LOGIN)
#: A deadline, and what a loaded machine may add to it, in seconds.
D, SLACK = 0.2, 0.5


@pytest.fixture(scope="module")
def auth(tmp_path_factory) -> list[str]:
    """What makes a real memcached ask: an authentication file."""
    path = tmp_path_factory.mktemp("auth") / "users"
    path.write_text(f"other:word\n{USER}:{PASSWORD}\n")
    return ["-Y", str(path)]


@pytest.fixture(scope="module")
def asking(auth, memcached_binary) -> Iterator[Memcached]:
    server = Memcached(auth, login=LOGIN)
    yield server
    server.close()


@pytest.fixture
def refused(expect_log) -> Any:
    return expect_log(LOG, "taken for dead: the server refuses username and password", times=1)


async def all_of_it(client: Client) -> None:
    """Every kind of call."""
    assert await client.set("k", "v") is True
    assert await client.get("k") == "v"
    assert await client.set_multi({f"k{n}": n for n in range(50)}) == []
    assert await client.get_multi(f"k{n}" for n in range(50)) == {f"k{n}": n for n in range(50)}
    assert await client.set("large", b"x" * 300_000) is True
    assert await client.get("large") == b"x" * 300_000
    assert await client.incr("k1") == 2
    assert len(await client.version()) == 1


# -- the right ones


@pytest.mark.parametrize("kind", ["tcp", "unix", "tls", "its own"])
@pytest.mark.gen_test
async def test_the_right_ones_open_every_kind_of_connection(kind, auth, start_memcached, tmp_path):
    options: dict[str, Any] = dict(KNOWN)
    arguments, how = list(auth), {}
    if kind == "tls":
        arguments += memcached_arguments(tmp_path, issued("127.0.0.1"))
        options["ssl"] = how["ssl_context"] = trusting()
    server = start_memcached(arguments, login=LOGIN, unix=kind == "unix", **how)
    servers: list[Any] = [server.address]
    if kind == "its own":
        servers = [{"server": server.address, **KNOWN}]
        options = {"username": "nobody", "password": "nothing"}
    async with Client(servers, **options) as client:
        await all_of_it(client)
        server.restart()
        assert await client.get("k") is None  # asked again, on a connection that says who we are
        client.disconnect()
        assert await client.set("k", 1) is True


@pytest.mark.gen_test
async def test_every_connection_says_it(asking):
    async with Client([asking.address], max_connections=3, min_connections=3, **KNOWN) as client:
        await client.get("k")
        pool = client._pools[0]
        while pool.counts()["open"] != 3 or pool.counts()["connecting"]:
            await client.get("k")
        assert pool.counts()["idle"] == 3


@pytest.mark.gen_test
async def test_a_server_that_asks_nobody_keeps_nothing_of_it(memcached):
    async with Client([memcached.address], **KNOWN) as client:
        await all_of_it(client)
    kept = memcached.ask(b"get tornado_memcache_authentication\r\n", b"END\r\n")
    assert kept == b"END\r\n"


@pytest.mark.gen_test
async def test_the_answer_may_come_in_pieces(gap=0.01):
    pieces = [step for byte in b"STORED\r\n" for step in (Send(bytes([byte])), Sleep(gap))]
    async with Scripted([Expect(REQUEST), *pieces, Expect(b"get k\r\n"), Send(b"END\r\n")]) as one:
        async with Client([one.address], **KNOWN) as client:
            assert await client.get("k") is None


@pytest.mark.gen_test
async def test_nothing_is_asked_before_the_answer():
    answered = asyncio.Event()
    script = [Expect(REQUEST), Until(answered.is_set), Send(b"STORED\r\n"), Expect(b"get k\r\n")]
    async with Scripted([*script, Send(b"END\r\n")]) as server:
        async with Client([server.address], **KNOWN) as client:
            call = client.get("k")
            await until(lambda: REQUEST in server.received[:1])
            pool = client._pools[0]
            assert [one.phase for one in pool._connections] == ["authenticating"]
            assert "authenticating" in repr(pool._connections[0])
            assert pool.counts()["connecting"] == 1
            answered.set()
            assert await call is None


# -- the wrong ones


@pytest.mark.gen_test
async def test_the_wrong_ones_are_the_outcome_and_not_tried_in_a_loop(asking, refused):
    before = asking.stats()
    async with Client([asking.address], **WRONG) as client:
        calls = [
            client.get("k"),
            client.set("k", 1),
            client.incr("n"),
            client.get_multi(["a", "b"]),
        ]
        for error in await asyncio.gather(*calls, return_exceptions=True):
            assert type(error) is AuthenticationError
            assert isinstance(error, (MemcacheError, ConnectionFailed))
            assert error.server == asking.address and error.phase == "authenticating"
            assert not error.maybe_applied and not error.connection_survives
            assert "refuses username and password" in str(error)
        # all that come within the pause are told the same, without a connect
        client._pools[0].health.dead_until = float("inf")
        for _ in range(50):
            with pytest.raises(
                AuthenticationError, match='get "?.?k.*refuses.*; next try in inf s'
            ):
                await client.get("k")
        assert client._pools[0].health.dead and client._pools[0].counts()["open"] == 0
    after = asking.stats()
    # (one of this process's own asked for the statistics)
    assert int(after["auth_cmds"]) - int(before["auth_cmds"]) == 2
    assert int(after["auth_errors"]) - int(before["auth_errors"]) == 1


@pytest.mark.gen_test
async def test_a_server_with_the_wrong_ones_is_tried_again_after_pauses(
    auth, start_memcached, refused
):
    """And is in use again when it takes them: its file may be read anew."""
    server = start_memcached(auth, login=LOGIN)
    async with Client([server.address], **WRONG) as client:
        tries: list[float] = []
        while len(tries) < 3:
            with pytest.raises(AuthenticationError):
                await client.get("k")
            if client._pools[0].health.dead_until not in tries:
                tries.append(client._pools[0].health.dead_until)
            await asyncio.sleep(0.005)
        # (a moment and its pause, less its jitter, and then the next pause)
        assert tries[1] - tries[0] >= 0.45 and tries[2] - tries[1] >= 0.8
        assert int(server.stats()["auth_errors"]) == 3
        server.arguments, server._login = [], None
        server.restart()
        client.retry_dead_servers()
        assert await client.set("k", 1) is True


@pytest.mark.gen_test
async def test_the_other_servers_are_not_disturbed(asking, memcached, refused):
    async with Client([memcached.address, {"server": asking.address, **WRONG}]) as client:
        keys = [f"k{n}" for n in range(100)]
        failed = await client.set_multi(dict.fromkeys(keys, 1))
        assert 20 < len(failed) < 80 and set(failed.errors) == {asking.address}
        assert isinstance(failed.errors[asking.address], AuthenticationError)
        found = await client.get_multi(keys)
        assert set(found) == set(keys) - set(failed)
        assert isinstance(found.errors[asking.address], AuthenticationError)


@pytest.mark.gen_test
async def test_other_credentials_come_with_set_servers(asking, refused):
    async with Client([{"server": asking.address, **WRONG}]) as client:
        with pytest.raises(AuthenticationError):
            await client.get("k")
        client._pools[0].health.dead_until = float("inf")
        client.set_servers([{"server": asking.address, **WRONG}])  # (the same: the pause goes on)
        with pytest.raises(AuthenticationError):
            await client.get("k")
        assert client._pools[0].health.dead_until == float("inf")
        client.set_servers([{"server": asking.address, **KNOWN}])
        assert await client.get("nothing") is None


@pytest.mark.gen_test
async def test_in_callbacks_and_under_a_boundary(asking, refused):
    got: list[Any] = []
    async with Client([asking.address], **WRONG) as client:
        client.get("a", fail_callback=got.append)
        with boundary(got.append):
            client.get("b", callback=got.append)
            client.set("c", 1)
        await until(lambda: len(got) == 3)
    assert [type(error) for error in got] == [AuthenticationError] * 3


# -- none


@pytest.mark.parametrize(
    "ask",
    [
        lambda client: client.get("k"),
        lambda client: client.set("k", "v"),
        lambda client: client.set("k", "two words"),
        lambda client: client.incr("n"),
        lambda client: client.get_multi(["a", "b"]),
        lambda client: client.version(),
        lambda client: client.set("k", 1, noreply=True) and client.get("k"),
    ],
    ids=["get", "set", "set of two words", "incr", "get_multi", "version", "noreply"],
)
@pytest.mark.gen_test
async def test_a_server_that_demands_them_and_gets_none_says_what_to_set(ask, asking, expect_log):
    dead = expect_log(LOG, "taken for dead: the server demands authentication", times=1)
    async with Client([asking.address]) as client:
        with pytest.raises(AuthenticationError, match="username= and password=") as caught:
            await ask(client)
        assert caught.value.server == asking.address and not caught.value.maybe_applied
        with pytest.raises(AuthenticationError, match="demands authentication"):
            await client.get("k")
    assert dead.count == 1


@pytest.mark.gen_test
async def test_a_noreply_alone_finds_out_too(asking, expect_log):
    expect_log(LOG, "taken for dead: the server demands authentication", times=1)
    async with Client([asking.address]) as client:
        with contextlib.suppress(AuthenticationError):  # (told in time on some loops)
            assert await client.set("k", 1, noreply=True) is True
        pool = client._pools[0]
        await until(lambda: pool.health.dead)
        with pytest.raises(AuthenticationError, match="username= and password="):
            await client.get("k")


# -- a handshake that comes to nothing


class Listening:
    """A server that takes connections, over TLS or not, and never answers."""

    def __init__(self, secure: bool) -> None:
        self._context = for_server("127.0.0.1") if secure else None
        self.received = b""

    async def __aenter__(self) -> Listening:
        self._server = await asyncio.start_server(self._take, "127.0.0.1", 0, ssl=self._context)
        self.address = f"127.0.0.1:{self._server.sockets[0].getsockname()[1]}"
        self._open = 0
        return self

    async def _take(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._open += 1
        try:
            while got := await reader.read(65536):
                self.received += got
        except OSError:
            pass
        finally:
            writer.transport.abort()
            self._open -= 1

    async def __aexit__(self, *_: object) -> None:
        self._server.close()
        await until(lambda: not self._open)


@pytest.mark.parametrize("secure", [False, True], ids=["tcp", "tls"])
@pytest.mark.gen_test
async def test_an_answer_that_does_not_come_is_a_timeout_and_its_descriptor_is_back(
    secure, expect_log
):
    expect_log(LOG, "fails|dead")
    options: dict[str, Any] = {"ssl": trusting()} if secure else {}
    async with Listening(secure) as server:
        base = set(open_fds())
        async with Client([server.address], request_timeout=D, **options, **KNOWN) as client:
            begun = time.monotonic()
            with pytest.raises(Timeout, match="phase authenticating") as caught:
                await client.set("k", 1)
            took = time.monotonic() - begun
            assert D <= took + 0.01 and took < D + SLACK
            assert caught.value.phase == "authenticating" and not caught.value.maybe_applied
            assert client._pools[0].counts()["open"] == 0
            assert server.received == REQUEST
            await until(lambda: not server._open)
            assert set(open_fds()) == base


ENDS = {
    "closed": ([Close()], r"the server closed the connection \(a proxy takes no username and"),
    "reset": ([Reset()], "reset by peer"),
    "full": ([Send(b"ERROR Too many open connections\r\n"), Close()], "at its limit"),
    "garbage": ([Send(LOGIN + b"\r\n")], "none that memcached gives"),
    "more": ([Send(b"STORED\r\nSTORED\r\n")], "none that memcached gives"),
    "endless": ([Send(b"S" * 5000)], "none that memcached gives"),
    "server error": ([Send(b"SERVER_ERROR " + LOGIN + b"\r\n")], "none that memcached gives"),
}


@pytest.mark.parametrize("end", ENDS)
@pytest.mark.gen_test
async def test_what_is_no_answer_fails_at_once_and_is_not_repeated(end, expect_log):
    dead = expect_log(LOG, "is taken for dead", times=1)
    steps, words = ENDS[end]
    async with Scripted([Expect(REQUEST), *steps]) as server:
        async with Client([server.address], request_timeout=5, **KNOWN) as client:
            begun = time.monotonic()
            with pytest.raises(ConnectionFailed, match=words) as caught:
                await client.set("k", 1)
            assert time.monotonic() - begun < 2
            assert type(caught.value) is ConnectionFailed and not caught.value.maybe_applied
            with pytest.raises(ServerDead):
                await client.get("k")
        assert server.connections == 1
    said = str(caught.value) + dead.records[0].getMessage()
    assert USER not in said and PASSWORD not in said


@pytest.mark.parametrize("style", ["cancelled", "closed"])
@pytest.mark.gen_test
async def test_a_call_that_goes_away_meanwhile_leaves_no_connection(style):
    async with Listening(False) as server:
        client = Client([server.address], **KNOWN)
        call = client.get("k")
        await until(lambda: server.received == REQUEST)
        call.cancel() if style == "cancelled" else client.close()
        await until(lambda: not server._open)
        client.close()


# -- they are told nowhere


@pytest.mark.parametrize("where", ["client", "server"])
@pytest.mark.gen_test
async def test_they_are_in_nothing_that_is_said(where, asking, silent, told):  # noqa: F811
    for given in (KNOWN, WRONG):
        for address in (asking.address, silent.address, f"127.0.0.1:{free_port()}"):
            servers: list[Any] = [address if where == "client" else {"server": address, **given}]
            options: dict[str, Any] = {"request_timeout": 0.05}
            if where == "client":
                options |= given
            async with Client(servers, **options) as client:
                told.add(client)
                for call in (client.get("k"), client.set("k", 1), client.stats()):
                    told.look()
                    try:
                        await call
                    except MemcacheError as error:
                        told.add(error)
                told.look()
                with pytest.raises(MemcacheError) as caught:
                    client.set_servers([*servers, servers[0]])
                told.add(caught.value)
    told.search(USER, PASSWORD, WRONG["password"], repr(LOGIN))


@pytest.mark.parametrize(
    "spec",
    [
        ("a:1", USER, PASSWORD),
        ("a:1", (USER, PASSWORD)),
        ("a:1", {"username": USER, "password": PASSWORD}),
        ({"server": "a:1", **KNOWN}, 0),
        ({"server": "a:1", **KNOWN}, 1, 1),
        {"server": "a:0", **KNOWN},
        {"server": "a:1", **KNOWN, "weight": 0},
        {"server": "a:1", **KNOWN, "wait": 1},
        {"server": ["a:1"], **KNOWN},
        {"address": "a:1", **KNOWN},
        dict(KNOWN),
        Server("a", 1, credentials=(USER, PASSWORD)),  # type: ignore[arg-type]
        [USER, PASSWORD],
    ],
    ids=str,
)
@pytest.mark.parametrize("face", [Client, drop_in.Client, old_module.Client])
def test_a_server_that_is_refused_shows_none(spec, face):
    with pytest.raises((ValueError, TypeError)) as caught:
        face(["b:1", spec])
    assert USER not in repr(caught.value) and PASSWORD not in repr(caught.value)


@pytest.mark.gen_test
async def test_the_faces_authenticate_too(asking):
    ours = {"server": asking.address, **KNOWN}
    for client in (drop_in.Client([ours]), drop_in.Client([asking.address], **KNOWN)):
        assert await client.set("k", "v") and await client.get("k") == "v"
        client.set_servers([ours])
        assert await client.get("k") == "v"
        client.close()
    for old in (old_module.Client([ours]), old_module.Client([asking.address], **KNOWN)):
        got: list[Any] = []
        old.set("k", "w", callback=got.append)
        old.get("k", callback=got.append)
        await until(lambda got=got: len(got) == 2)
        assert got[1] == "w"
        old.close()


def test_one_dict_is_no_list_of_servers():
    with pytest.raises(TypeError, match="servers must be a list"):
        Client({"server": "a:1", **KNOWN})
