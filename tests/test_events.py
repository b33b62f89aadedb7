"""tornado_memcache.events: an application is told when a server goes and when it is back."""

from __future__ import annotations

import asyncio
import contextvars
import logging
from typing import Any

import pytest

from tornado_memcache import (
    AuthenticationError,
    Client,
    ConnectionFailed,
    MemcacheError,
    ServerDead,
    Timeout,
    boundary,
)
from tornado_memcache.boundaries import entered

from .asked import until

APP = "tornado.application"
WHO = contextvars.ContextVar("WHO", default="nobody")


pytestmark = pytest.mark.usefixtures("troubles")


class Heard:
    """Keeps what it is told, and where."""

    def __init__(self) -> None:
        self.told: list[tuple[Any, ...]] = []
        self.contexts: list[tuple[str, Any]] = []

    def down(self, name: str, reason: MemcacheError) -> None:
        self.told.append(("down", name, reason))
        self.contexts.append((WHO.get(), entered()))

    def up(self, name: str) -> None:
        self.told.append(("up", name))
        self.contexts.append((WHO.get(), entered()))

    @property
    def both(self) -> dict[str, Any]:
        return {"on_server_up": self.up, "on_server_down": self.down}

    @property
    def kinds(self) -> list[str]:
        return [one[0] for one in self.told]


@pytest.mark.gen_test
async def test_a_server_that_is_killed_and_restarted_is_told_once_each(start_memcached):
    a, b, heard = start_memcached(), start_memcached(), Heard()
    async with Client([a.address, b.address], **heard.both) as client:
        await client.set_multi({f"k{n}": n for n in range(50)})
        assert heard.told == []  # (that servers are there is no news)
        a.kill()
        WHO.set("the caller")
        with boundary(heard.told.append):
            failed = await client.get_multi(f"k{n}" for n in range(50))
        assert set(failed.errors) == {a.address}
        await until(lambda: heard.told)
        ((kind, name, reason),) = heard.told
        assert (kind, name) == ("down", a.address) and isinstance(reason, ConnectionFailed)
        for _ in range(3):  # the dead do not die again
            client.retry_dead_servers()
            await client.set_multi({f"k{n}": n for n in range(50)})
        assert heard.kinds == ["down"]
        a.restart()
        client.retry_dead_servers()
        while (await client.get_multi(f"k{n}" for n in range(50))).errors:
            await asyncio.sleep(0.005)
        await until(lambda: len(heard.told) > 1)
        assert heard.told[1:] == [("up", a.address)]
        assert heard.contexts == [("nobody", None)] * 2


@pytest.mark.gen_test
async def test_a_server_that_falls_silent_is_down_for_that(start_memcached):
    server, heard = start_memcached(), Heard()
    options = {"request_timeout": 0.25, "silences_until_dead": 2, **heard.both}
    async with Client([server.address], **options) as client:
        await client.get("k")
        server.stop()
        with pytest.raises(Timeout):
            await client.get("k")
        await asyncio.sleep(0)
        assert heard.told == []
        with pytest.raises(Timeout):
            await client.get("k")
        await until(lambda: heard.told)
        assert heard.kinds == ["down"] and isinstance(heard.told[0][2], Timeout)
        server.resume()
        client.retry_dead_servers()
        assert await client.get("k", timeout=5) is None
        await until(lambda: heard.kinds == ["down", "up"])


@pytest.mark.gen_test
async def test_it_is_told_on_a_later_tick_than_the_decision(start_memcached):
    """What is called may close the client, or call it: nothing is half done then."""
    server = start_memcached()
    seen: list[Any] = []

    def down(name: str, reason: MemcacheError) -> None:
        pool = client._pools[0]
        seen.append((pool.health.dead, pool.counts()["open"], pool.counts()["pending"]))
        with boundary(seen.append):
            client.get("k", callback=seen.append)
        client.close()

    client = Client([server.address], on_server_down=down)
    await client.get("k")
    server.kill()
    with pytest.raises(ConnectionFailed):
        await client.get("k")
    await until(lambda: len(seen) == 2)
    assert seen[0] == (True, 0, 0) and isinstance(seen[1], ServerDead)


@pytest.mark.parametrize("kind", ["plain", "coroutine", "late coroutine"])
@pytest.mark.gen_test
async def test_what_they_raise_is_logged_once_and_disturbs_nothing(
    kind, start_memcached, expect_log
):
    raised = expect_log(APP, "Exception in callback.*(down|up)", level=logging.ERROR, times=2)
    server, other = start_memcached(), start_memcached()

    def down(name: str, reason: MemcacheError) -> None:
        raise ValueError("down")

    def up(name: str) -> None:
        raise ValueError("up")

    async def async_down(name: str, reason: MemcacheError) -> None:
        if kind == "late coroutine":
            await asyncio.sleep(0.01)
        raise ValueError("down")

    async def async_up(name: str) -> None:
        raise ValueError("up")

    told = (down, up) if kind == "plain" else (async_down, async_up)
    servers = [server.address, other.address]
    async with Client(servers, on_server_down=told[0], on_server_up=told[1]) as client:
        keys = [f"k{n}" for n in range(50)]
        await client.set_multi(dict.fromkeys(keys, 1))
        server.kill()
        failed = await client.get_multi(keys)
        assert set(failed.errors) == {server.address}
        await until(lambda: raised.count == 1)
        server.restart()
        client.retry_dead_servers()
        while await client.set_multi(dict.fromkeys(keys, 3)):
            await asyncio.sleep(0.005)
        await until(lambda: raised.count == 2)
        assert await client.get_multi(keys) == dict.fromkeys(keys, 3)


@pytest.mark.gen_test
async def test_a_server_that_was_taken_away_is_told_of_no_more(start_memcached):
    a, b, heard = start_memcached(), start_memcached(), Heard()
    async with Client([a.address], request_timeout=0.25, **heard.both) as client:
        await client.get("k")
        a.stop()
        calls = [client.get("k") for _ in range(3)]
        client.set_servers([b.address])
        a.kill()
        await asyncio.gather(*calls, return_exceptions=True)
        assert await client.get("k") is None
        await asyncio.sleep(0.01)
        assert heard.told == []


@pytest.mark.gen_test
async def test_wrong_credentials_are_a_reason(start_memcached, tmp_path):
    (tmp_path / "users").write_text("u:p\n")
    server = start_memcached(["-Y", str(tmp_path / "users")], login=b"u p")
    heard = Heard()
    async with Client([server.address], username="u", password="q", **heard.both) as client:
        with pytest.raises(AuthenticationError):
            await client.get("k")
        await until(lambda: heard.told)
        assert isinstance(heard.told[0][2], AuthenticationError)


@pytest.mark.gen_test
async def test_one_of_the_two_is_enough(start_memcached):
    server, heard = start_memcached(), Heard()
    async with Client([server.address], on_server_up=heard.up) as client:
        server.kill()
        with pytest.raises(ConnectionFailed):
            await client.get("k")
        server.restart()
        client.retry_dead_servers()
        await client.get("k")
        await until(lambda: heard.told == [("up", server.address)])


@pytest.mark.parametrize("name", ["on_server_up", "on_server_down"])
@pytest.mark.parametrize("wrong", ["print", 1, True, ("a", "b")])
def test_what_cannot_be_called_is_refused(name, wrong):
    with pytest.raises(TypeError, match=name):
        Client(["a:1"], **{name: wrong})


@pytest.mark.gen_test
async def test_a_server_that_leaves_while_it_is_down_is_told_as_up_and_is_new_when_it_comes_back(
    start_memcached,
):
    a, b, heard = start_memcached(), start_memcached(), Heard()
    async with Client([a.address, b.address], **heard.both) as client:
        keys = [f"k{n}" for n in range(20)]
        await client.set_multi(dict.fromkeys(keys, 1))
        a.kill()
        await until(lambda: client._pools[0].counts()["open"] == 0)
        await client.get_multi(keys)
        await until(lambda: heard.kinds == ["down"])
        client.remove_server(a.address)
        await until(lambda: heard.kinds == ["down", "up"])
        assert heard.told[1] == ("up", a.address)
        client.add_server(a.address)
        await client.get_multi(keys)
        await until(lambda: heard.kinds == ["down", "up", "down"])
