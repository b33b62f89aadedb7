"""tornado_memcache.observer: what is told of servers and connections, and what that disturbs."""

from __future__ import annotations

import asyncio
import logging
import os
from typing import Any

import pytest

from tornado_memcache import (
    AuthenticationError,
    Client,
    ClientClosed,
    ConnectionFailed,
    MemcacheError,
    ObservedCall,
    Observer,
    ProtocolError,
    ServerError,
    Timeout,
    errors,
)
from tornado_memcache.discovery import discover
from tornado_memcache.observer import KINDS, checked_observers, kind_of
from tornado_memcache.protocol import ConnectionRefused

from .asked import until
from .scripted import Close, Expect, Scripted, Send

APP = "tornado.application"


class Heard(Observer):
    """Keeps what it is told of servers and connections."""

    def __init__(self) -> None:
        self.told: list[tuple[Any, ...]] = []

    def server_down(self, server: str, reason: MemcacheError) -> None:
        self.told.append(("down", server, reason))

    def server_up(self, server: str) -> None:
        self.told.append(("up", server))

    def connection_opened(self, server: str) -> None:
        self.told.append(("opened", server))

    def connection_closed(self, server: str, reason: str, error: MemcacheError) -> None:
        assert isinstance(error, MemcacheError)
        self.told.append(("closed", server, reason))

    def connection_failed(self, server: str, reason: str, error: MemcacheError) -> None:
        assert isinstance(error, MemcacheError)
        self.told.append(("failed", server, reason))

    @property
    def kinds(self) -> list[str]:
        return [one[0] for one in self.told]


class Raises(Observer):
    """Raises from every method."""

    def __init__(self) -> None:
        self.count = 0

    def _raise(self, *_: Any) -> None:
        self.count += 1
        raise ValueError("broken")

    call_started = call_finished = _raise
    server_down = server_up = connection_opened = connection_failed = _raise
    connection_closed = _raise


# -- servers and connections


@pytest.mark.gen_test
async def test_connections_and_deaths_are_told_as_they_come(start_memcached, troubles):
    server, heard = start_memcached(), Heard()
    async with Client([server.address], observer=heard) as client:
        await client.get("k")
        await until(lambda: heard.kinds == ["opened"])
        server.kill()
        with pytest.raises(ConnectionFailed):
            await client.get("k")
        await until(lambda: "down" in heard.kinds)
        assert heard.told[1] == ("closed", server.address, "connection_failed")
        assert heard.kinds == ["opened", "closed", "failed", "down"]
        assert heard.told[2] == ("failed", server.address, "connection_failed")
        assert heard.told[3][:2] == ("down", server.address)
        assert isinstance(heard.told[3][2], ConnectionFailed)
        server.restart()
        client.retry_dead_servers()
        await client.get("k")
        await until(lambda: heard.kinds[4:] == ["opened", "up"])
    await until(lambda: heard.told[-1] == ("closed", server.address, "client_closed"))


@pytest.mark.gen_test
async def test_a_connection_that_is_not_needed_and_one_that_is_disconnected_say_so(memcached):
    heard = Heard()
    async with Client([memcached.address], observer=heard, idle_timeout=0.05) as client:
        await client.get("k")
        await until(lambda: heard.kinds == ["opened", "closed"])
        assert heard.told[1][2] == "not_needed"
    async with Client([memcached.address], observer=heard) as client:
        await client.get("k")
        client.disconnect()
        await until(lambda: heard.told[3:] == [("closed", memcached.address, "connection_failed")])


@pytest.mark.gen_test
async def test_what_a_server_may_not_say_is_the_reason_of_a_closed_connection(troubles):
    heard = Heard()
    async with Scripted([Expect(b"get k\r\n"), Send(b"nonsense\r\n"), Close()]) as server:
        async with Client([server.address], observer=heard) as client:
            with pytest.raises(ProtocolError):
                await client.get("k")
            await until(lambda: "closed" in heard.kinds)
    assert heard.told[1] == ("closed", server.address, "protocol_error")


@pytest.mark.gen_test
async def test_an_attempt_that_takes_too_long_has_failed_by_timeout(silent, troubles):
    heard = Heard()

    class Hangs:
        async def resolve(self, *_: Any) -> Any:
            await asyncio.Event().wait()

    options: Any = {"connect_timeout": 0.05, "resolver": Hangs()}
    async with Client(["away.example:11211"], observer=heard, **options) as client:
        with pytest.raises(Timeout):
            await client.get("k")
        await until(lambda: heard.told)
    assert heard.told[0] == ("failed", "away.example:11211", "timeout")


@pytest.mark.gen_test
async def test_wrong_credentials_are_a_reason(start_memcached, tmp_path, troubles):
    (tmp_path / "users").write_text("u:p\n")
    server = start_memcached(["-Y", str(tmp_path / "users")], login=b"u p")
    heard, options = Heard(), {"username": "u", "password": "secret-of-all"}
    async with Client([server.address], observer=heard, **options) as client:
        with pytest.raises(AuthenticationError):
            await client.get("k")
        await until(lambda: "down" in heard.kinds)
    assert ("failed", server.address, "authentication_error") in heard.told
    assert "secret" not in repr(heard.told)


def test_connections_that_were_lost_with_their_loop_are_told_as_closed(memcached, ledger):
    ledger.excuse("handler")
    heard = Heard()
    client = Client([memcached.address], observer=heard)

    async def used() -> None:
        await client.get("k")
        await asyncio.sleep(0)

    asyncio.run(used())
    client.close()
    assert heard.told == [("opened", memcached.address), ("closed", memcached.address, "lost")]


def test_in_a_child_of_fork_calls_under_way_are_told_by_the_parent_alone(silent):
    finished: list[str] = []

    class Told(Observer):
        def call_finished(self, call: ObservedCall, begun: Any) -> None:
            finished.append(call.outcome)

    async def forked() -> None:
        async with Client([silent.address], observer=Told()) as client:
            call = client.get("k")
            await asyncio.sleep(0)
            child = os.fork()
            if not child:
                try:
                    client.close()
                finally:
                    os._exit(len(finished))
            assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
            assert not call.done()
            call.cancel()

    asyncio.run(forked())
    assert finished == ["cancelled"]


@pytest.mark.gen_test
async def test_the_client_of_a_cluster_is_observed_and_its_endpoint_is_not(start_memcached):
    node, endpoint, heard = start_memcached(), start_memcached(), Heard()
    text = b"1\n%b|127.0.0.1|%d\n" % (node.host.encode(), node.port)
    key = b"AmazonElastiCache:cluster"
    endpoint.ask(b"set %b 0 0 %d\r\n%b\r\n" % (key, len(text), text))
    async with await discover(endpoint.address, observer=heard) as client:
        await client.get("k")
        await until(lambda: heard.told == [("opened", node.address)])


# -- observers


@pytest.mark.gen_test
async def test_each_of_several_observers_is_told_and_gets_what_it_returned(memcached):
    class Counts(Observer):
        def __init__(self, name: str) -> None:
            self.name = name
            self.seen: list[Any] = []

        def call_started(self, call: ObservedCall) -> Any:
            return self.name

        def call_finished(self, call: ObservedCall, begun: Any) -> None:
            self.seen.append(begun)

    a, b = Counts("a"), Counts("b")
    async with Client([memcached.address], observer=[a, b]) as client:
        async with Client([memcached.address], observer=a) as other:
            await client.get("k")
            await other.get("k")
    assert (a.seen, b.seen) == (["a", "a"], ["b"])


@pytest.mark.gen_test
async def test_what_an_observer_raises_is_logged_once_and_disturbs_nothing(
    start_memcached, expect_log, troubles
):
    told = r"Exception in observer Raises\.\w+ \(what it raises further is not logged\)"
    raised = expect_log(APP, told, level=logging.ERROR, times=7)
    server, broken, heard = start_memcached(), Raises(), Heard()
    found: list[Any] = []
    async with Client([server.address], observer=[broken, heard]) as client:
        for number in range(3):
            assert await client.set("k", number)
            assert await client.get("k") == number
            assert await client.get_multi(["k"]) == {"k": number}
        client.get("k", callback=found.append)
        await until(lambda: found == [2])
        server.kill()
        with pytest.raises(ConnectionFailed):
            await client.get("k")
        await until(lambda: "down" in heard.kinds)
        server.restart()
        client.retry_dead_servers()
        assert await client.get("k") is None
        await until(lambda: "up" in heard.kinds)
    await until(lambda: heard.kinds.count("closed") == 2)
    assert raised.count == 7 and broken.count > 20
    assert {one.args[0] for one in raised.records} == {
        f"Raises.{name}" for name in vars(Observer) if not name.startswith("_")
    }


@pytest.mark.gen_test
async def test_an_observer_may_leave_out_what_it_does_not_want_to_hear(memcached):
    async with Client([memcached.address], observer=Observer()) as client:
        assert await client.set("k", 1) and await client.get("k") == 1


class Coroutine(Observer):
    async def call_started(self, call: ObservedCall) -> Any: ...


@pytest.mark.parametrize("wrong", [1, "x", print, Heard, [Heard], {Heard()}, [1], object(), True])
def test_what_is_no_observer_is_refused(wrong):
    with pytest.raises(TypeError, match="observer must be"):
        Client(["a:1"], observer=wrong)


def test_an_observer_that_waits_is_refused():
    with pytest.raises(TypeError, match=r"observer: Coroutine.call_started must not be async"):
        Client(["a:1"], observer=Coroutine())


def test_none_and_an_empty_list_are_no_observer():
    for nobody in (None, [], ()):
        assert checked_observers(nobody) is None
        assert Client(["a:1"], observer=nobody)._observers is None


# -- words


def test_every_failure_of_a_call_has_a_kind_of_its_own():
    assert len(set(KINDS.values())) == len(KINDS)
    at_the_call = (errors.InvalidRequest, errors._Unanswered)
    for error in vars(errors).values():
        if isinstance(error, type) and issubclass(error, MemcacheError):
            if not issubclass(error, at_the_call[0]) and error.__name__[0] != "_":
                known = error in (MemcacheError, errors.ReplyError)
                assert (kind_of(error("x")) == "error") is known, error


def test_a_failure_of_a_kind_within_another_is_told_as_the_narrower():
    assert kind_of(AuthenticationError("x")) == "authentication_error"
    assert kind_of(errors.ItemTooLarge("x")) == "server_error" == kind_of(ServerError("x"))
    assert kind_of(ConnectionRefused("x")) == "protocol_error"
    assert kind_of(ClientClosed("x")) == "client_closed"


def test_repr_says_where_a_call_stands():
    observers = checked_observers(Observer())
    assert observers is not None
    call = ObservedCall(observers, "get", "a:1", (b"secret",), 0)
    assert repr(call) == "<ObservedCall get a:1 under way>"
    call.start()
    call.finish("hit")
    call.finish("miss")  # (it has one end)
    assert repr(call) == "<ObservedCall get a:1 hit>"
