"""tornado_memcache.generations: which word is asked for, when, by whom, and whose is taken."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

import pytest

from tornado_memcache import (
    Client,
    ClientClosed,
    ConnectionFailed,
    SerializationError,
    ServerDead,
    Timeout,
    TooManyCalls,
)
from tornado_memcache import generations as module
from tornado_memcache.generations import WORD_BYTES, fresh_word
from tornado_memcache.namespaces import Namespace

from .asked import Asked, until
from .gated import Gated
from .hand import Shifted

NAME = "user:42"
KEY = b"user:42:generation"


def askings(server: Gated) -> list[bytes]:
    """Returns the verbs of the requests for the word, as they came."""
    return [request.verb for request in server.asked if request.keys == (KEY,)]


def word_of(ns: Namespace) -> bytes | None:
    return ns._space.generation.known(1e9)


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Shifted:
    """The clock by which a word grows old; deadlines have another."""
    shifted = Shifted(module.clock)
    monkeypatch.setattr(module, "clock", shifted)
    return shifted


def test_a_word_is_never_used_again():
    words = {fresh_word() for _ in range(1000)}
    assert len(words) == 1000 and {len(word) for word in words} == {WORD_BYTES}
    assert all(module._WORD.fullmatch(word) for word in words)


# -- how often it is asked for


@pytest.mark.gen_test
async def test_one_asking_serves_all_who_come_while_it_is_under_way():
    async with Gated() as server, Client([server.address]) as client:
        ns = client.namespace(NAME)
        assert await asyncio.gather(*[ns.get(f"k{n}") for n in range(100)]) == [None] * 100
        assert askings(server) == [b"get", b"add"]
        assert await ns.get("k") is None
        assert askings(server) == [b"get", b"add"]


@pytest.mark.gen_test
async def test_namespaces_of_one_name_know_the_same():
    async with Gated() as server, Client([server.address]) as client:
        await client.namespace(NAME).get("k")
        await client.namespace(NAME.encode()).get("k")
        assert askings(server) == [b"get", b"add"]
        other = client.namespace("user:43")
        await other.set("k", b"another")
        await client.namespace(NAME).invalidate()
        assert await other.get("k") == b"another"


@pytest.mark.gen_test
async def test_it_is_asked_for_again_once_it_is_as_old_as_it_may_be(clock):
    async with Gated() as server, Client([server.address]) as client:
        ns = client.namespace(NAME, generation_age=5)
        await ns.get("k")
        clock.shift = 4.0
        await ns.get("k")
        assert askings(server) == [b"get", b"add"]
        clock.shift = 5.0
        await ns.get("k")
        assert askings(server) == [b"get", b"add", b"get"]


@pytest.mark.gen_test
async def test_with_no_age_each_call_asks_and_those_who_come_too_late_for_an_asking_share_one():
    async with Gated() as server, Client([server.address]) as client:
        ns = client.namespace(NAME, generation_age=0)
        await ns.set("k", 1)
        await ns.get("k")
        assert askings(server) == [b"get", b"add", b"get"]
        server.asked.clear()
        # The first one's asking is answered, but not told, when the others come.
        server.hold("reply", KEY)
        first = asyncio.ensure_future(ns.get("k"))
        await until(lambda: server.held)
        others = [ns.get("k") for _ in range(10)]
        server.store.delete(KEY)
        server.release()
        assert await first == 1
        assert await asyncio.gather(*others) == [None] * 10
        assert askings(server) == [b"get", b"get", b"add"]


@pytest.mark.gen_test
async def test_a_call_does_not_overtake_one_that_waits_for_the_word():
    async with Gated() as server, Client([server.address]) as client:
        patient, careful = client.namespace(NAME), client.namespace(NAME, generation_age=0)
        await patient.set("k", 1)
        server.hold("reply", KEY)
        first = careful.set("k", 2)
        await until(lambda: server.held)
        second = careful.set("k", 3)
        third = patient.get("k")
        server.release()
        assert await third == 3
        assert (await first, await second) == (True, True)


# -- whose word is taken


@pytest.mark.gen_test
async def test_who_is_not_the_first_to_add_a_word_takes_that_of_the_first():
    async with Gated() as server, Client([server.address]) as one, Client([server.address]) as two:
        server.hold("reply", KEY)
        late = one.namespace(NAME).get("k")
        await until(lambda: server.held)
        await two.namespace(NAME).set("k", b"of two")
        server.release()
        assert await late == b"of two"
        assert askings(server) == [b"get", b"get", b"add", b"add", b"get"]


@pytest.mark.gen_test
@pytest.mark.parametrize("asks", [True, False])
async def test_what_was_asked_for_before_a_new_word_was_there_is_not_taken_after_it(asks):
    # The asking's connection is late, and so the new word goes by another one and overtakes it.
    async with Gated() as server, Client([server.address], request_timeout=0.25) as client:
        ns = client.namespace(NAME, generation_age=1000)
        await ns.set("k", b"old")
        ns._space.generation.forget()
        server.hold("reply", KEY)
        before = Asked("awaited", ns.get, "k", timeout=20)
        await until(lambda: server.held and client._pools[0].counts()["late"])
        assert await ns.invalidate() is True
        after = [Asked("awaited", ns.get, "k", timeout=20)] if asks else []
        server.release()
        assert await before.outcome() == b"old"  # (it was begun before)
        for one in after:
            assert await one.outcome() is None
        assert await ns.get("k") is None


@pytest.mark.gen_test
@pytest.mark.parametrize("age", [0, 1000])
async def test_a_new_word_is_taken_at_once_by_the_client_that_made_it(age):
    async with Gated() as server, Client([server.address]) as client:
        ns = client.namespace(NAME, generation_age=age)
        await ns.set("k", b"old")
        seen: list[Any] = []
        done = asyncio.get_running_loop().create_future()

        def renewed(_: Any) -> None:
            client.namespace(NAME, generation_age=1000).get("k", callback=found)

        def found(value: Any) -> None:
            seen.append(value)
            done.set_result(None)

        ns.invalidate(callback=renewed)
        await done
        assert seen == [None]
        assert askings(server)[-1] == b"set"  # (nobody had to ask)


@pytest.mark.gen_test
async def test_what_else_is_stored_under_its_key_is_no_word_until_there_is_a_new_one():
    async with Gated() as server, Client([server.address]) as client:
        ns = client.namespace(NAME, generation_age=0)
        for stored in (b"", b"my own", b"x" * (WORD_BYTES + 1), b"\r" * WORD_BYTES):
            await client.set(KEY, stored)
            with pytest.raises(SerializationError, match="'user:42:generation' holds no gener"):
                await ns.get("k")
        assert await ns.invalidate()
        assert await ns.set("k", 1) and await ns.get("k") == 1


# -- what it fails with


@pytest.mark.gen_test
@pytest.mark.parametrize("style", ["awaited", "callback"])
async def test_a_call_ends_by_its_own_deadline_while_the_word_is_asked_for(style, troubles):
    async with Gated() as server, Client([server.address], request_timeout=0.5) as client:
        ns = client.namespace(NAME)
        await ns.get("k")
        ns._space.generation.forget()
        server.hold("reply", KEY)
        brief = Asked(style, ns.get, "brief", timeout=0.05)
        usual = Asked(style, ns.set, "usual", 1)
        patient = Asked(style, ns.get_multi, ["a", "b"], timeout=30)
        late = await brief.failure(Timeout)
        assert str(late) == (
            "get 'user:42:brief', whose namespace is 'user:42': timed out "
            f"(server {server.address}, phase reply)"
        )
        assert 0.04 < brief.took < 0.45
        late = await usual.failure(Timeout)
        assert 0.45 < usual.took < 1.5 and not late.maybe_applied
        assert not patient.outcomes
        server.release()
        assert await patient.outcome() == {}


@pytest.mark.gen_test
async def test_who_may_wait_longer_than_the_asking_is_asked_for_again(troubles):
    async with Gated() as server, Client([server.address], request_timeout=0.25) as client:
        ns = client.namespace(NAME)
        await ns.set("k", b"there")
        ns._space.generation.forget()
        server.hold("reply", KEY)
        usual = Asked("awaited", ns.get, "k")
        patient = Asked("awaited", ns.get, "k", timeout=30)
        await usual.failure(Timeout)
        await until(lambda: len(server.asked) > 4)  # (behind what is held)
        server.release()
        assert await patient.outcome() == b"there"


@pytest.mark.gen_test
async def test_a_lost_asking_fails_the_call_and_says_that_nothing_was_applied(expect_log):
    expect_log("tornado_memcache", "fails")
    async with Gated() as server, Client([server.address]) as client:
        ns = client.namespace(NAME)
        await ns.get("k")
        await client.delete(KEY)
        ns._space.generation.forget()
        server.hold("reply", KEY)
        write = Asked("awaited", ns.set, "k", 1)
        await until(lambda: server.held)
        server.release()  # (the miss is told, and the add that follows never is)
        server.hold("reply", KEY)
        await until(lambda: server.held)
        server.reset()
        error = await write.failure(ConnectionFailed)
        assert not error.maybe_applied and "set 'user:42:k'" in str(error)


@pytest.mark.gen_test
@pytest.mark.parametrize("policy", ["fail", "rehash", "gutter"])
async def test_nobody_stands_in_for_the_server_of_the_word(policy, start_memcached, troubles):
    servers, spare = [start_memcached(), start_memcached()], start_memcached()
    more: dict[str, Any] = {"gutter": [spare.address]} if policy == "gutter" else {}
    addresses = [server.address for server in servers]
    async with Client(addresses, on_dead=policy, dead_retry=0.3, **more) as client:
        ns = client.namespace(NAME, generation_age=0)
        await ns.set("k", b"old")
        home = client._cluster.home_of(KEY).name
        (dead,) = [server for server in servers if server.address == home]
        dead.kill()
        for _ in range(3):
            with pytest.raises((ConnectionFailed, ServerDead)):
                await ns.get("k")
        for server in {*servers, spare} - {dead}:
            assert server.ask(b"get %b\r\n" % KEY) == b"END\r\n"
        dead.restart()
        client.retry_dead_servers()
        assert await ns.get("k") is None


@pytest.mark.gen_test
async def test_with_on_dead_miss_what_reads_is_a_miss_without_the_word(start_memcached, troubles):
    server = start_memcached()
    async with Client([server.address], on_dead="miss") as client:
        ns = client.namespace(NAME, generation_age=0)
        await ns.set("k", b"x")
        server.kill()
        with pytest.raises(ConnectionFailed):
            await ns.get("k")
        assert await ns.get("k", default=7) == 7
        assert await ns.get_multi(["k", "l"]) == {}
        assert await ns.gets("k") == (None, None)
        with pytest.raises(ServerDead):
            await ns.set("k", 1)


@pytest.mark.gen_test
async def test_too_many_calls_that_wait_are_refused():
    async with Gated() as server, Client([server.address], max_pending=10) as client:
        ns = client.namespace(NAME)
        waiting = [Asked("awaited", ns.get, f"k{n}") for n in range(10)]
        refused = Asked("callback", ns.get, "one-more")
        assert "max_pending" in str(await refused.failure(TooManyCalls))
        for one in waiting:
            assert await one.outcome() is None


# -- its end


@pytest.mark.gen_test
@pytest.mark.parametrize("style", ["awaited", "callback"])
async def test_a_client_that_is_closed_ends_all_who_wait(style):
    async with Gated() as server:
        client = Client([server.address])
        ns = client.namespace(NAME, generation_age=0)
        server.hold("reply", KEY)
        waiting = [Asked(style, ns.get, "k"), Asked(style, ns.set, "k", 1)]
        await until(lambda: server.held)
        waiting.append(Asked(style, ns.get, "behind"))
        client.close()
        for one in waiting:
            await one.failure(ClientClosed)
        await Asked(style, ns.get, "afterwards").failure(ClientClosed)
        await Asked(style, ns.invalidate).failure(ClientClosed)


@pytest.mark.gen_test
async def test_when_nobody_waits_any_more_nothing_is_asked():
    async with Gated() as server, Client([server.address]) as client:
        ns = client.namespace(NAME, generation_age=0)
        await ns.get("k")
        server.hold("reply", KEY)
        first, second = ns.get("k"), ns.set("k", 1)
        await until(lambda: server.held)
        behind = ns.get("k")
        first.cancel()
        second.cancel()
        assert not (await client.get("k") if not server.held else None)
        server.release()
        assert await behind is None
        assert [one.verb for one in server.asked if one.keys and one.keys != (KEY,)] == [
            b"get",
            b"get",
        ]
        assert len(client._deadlines) == 0


def test_what_a_closed_loop_had_under_way_is_asked_for_again_on_the_next(
    memcached, ledger: Any, expect_log: Callable[..., Any]
):
    ledger.excuse("timer", "handler")  # (of the loop that is left in the middle of a call)
    expect_log("tornado_memcache", "were lost with their event loop")
    client = Client([memcached.address])
    ns = client.namespace(NAME)
    memcached.stop()

    async def leave() -> None:
        ns.get("k")
        await asyncio.sleep(0)

    async def again() -> None:
        assert await ns.get("k") is None
        client.close()

    asyncio.run(leave())
    memcached.resume()
    asyncio.run(again())
