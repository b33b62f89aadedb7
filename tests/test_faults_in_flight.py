"""The fault matrix, "In flight": what the network and the server do to calls under way.

Its rows, in their words and order, each as a caller meets it: sockets, the
public client, and values that carry their own key and a nonce. A module's
own part in a row is shown in that module's tests; here nothing is known of
the modules but the pool's counts. A deadline that must not be reached is ten
minutes away, so that "at once" needs no clock.
"""

from __future__ import annotations

import asyncio
import gc
import socket
import sys
import time
import tracemalloc
from typing import Any

import pytest
from tornado.netutil import Resolver

from tornado_memcache import Client, ConnectionFailed, ItemTooLarge, Reply, Request, Timeout

from .asked import (
    EXCHANGES,
    NAMES,
    STYLES,
    Asked,
    counts,
    hand_overs,
    lost,
    meta_known,
    shorn,
    until,
)
from .faultproxy import FaultProxy
from .nonces import fresh, nonce_of
from .scripted import Close, Expect, HalfClose, Reset, Scripted, Send, Until

LOG = "tornado_memcache"
#: An outcome that is due at a deadline has come so many seconds later, on a loaded machine.
#: It is less than the second after which a late connection is closed.
SLACK = 0.9
#: A deadline that no test lives to see.
FAR = 600.0
GET = Expect(b"get k\r\n")
WARM = [Expect(b"get warm\r\n"), Send(b"END\r\n")]


@pytest.fixture
def heard(monkeypatch) -> list[int]:
    return hand_overs(monkeypatch)


def hit(key: str, value: bytes, unique: bytes = b"") -> bytes:
    return b"VALUE %b 0 %d%b\r\n%b\r\n" % (key.encode(), len(value), unique, value)


async def ask_memcached(server, line: bytes, end: bytes = b"END\r\n") -> bytes:
    """Asks the real server past the client, without stopping the loop."""
    return await asyncio.get_running_loop().run_in_executor(None, server.ask, line, end)


# -- SIGSTOP with 1 and with 1 000 calls: all fail at D + epsilon, the late replies never
#    seen, right answers within 1 s of SIGCONT by the same client with default settings


@pytest.mark.parametrize(
    "number, styles", [(1, ("awaited",)), (1, ("callback",)), (1000, STYLES)], ids=str
)
@pytest.mark.gen_test(timeout=60)
async def test_sigstop_all_calls_fail_at_their_deadline_and_the_next_are_right(
    start_memcached, expect_log, number, styles
):
    expect_log(LOG, "fails", times=1)
    server = start_memcached()
    async with Client([server.address]) as mc:
        deadline = 1.0
        keys = [f"k{n}" for n in range(min(number, 50))]
        stored = {key: fresh(key) for key in keys}
        assert await mc.set_multi(stored) == []

        server.stop()
        asked, writes, begun = [], [], time.monotonic()
        for n in range(number):
            style, key = styles[n // 4 % len(styles)], keys[n % len(keys)]
            if n % 4 == 3:
                writes.append(Asked(style, mc.set, f"other{n}", fresh(f"other{n}")))
            else:
                asked.append(Asked(style, (mc.get, mc.gets, mc.get)[n % 4], key))
        made = time.monotonic()
        for one in asked + writes:
            error = await one.failure(Timeout)
            assert error.phase == "reply" and error.maybe_applied is (one in writes)
            # (The calls of one tick that leave as one line have one deadline.)
            assert begun + deadline <= one.ended < made + deadline + SLACK
        assert counts(mc)["late"] == counts(mc)["open"] <= 1

        server.resume()
        # Each of these has the default deadline: it answers within 1 s of SIGCONT.
        for style in styles:
            for key in reversed(keys):
                nonce = nonce_of(key, await Asked(style, mc.get, key).outcome())
                assert nonce == nonce_of(key, stored[key])
        await until(lambda: counts(mc)["late"] == 0)
        for style in styles:
            again = [(key, Asked(style, mc.get, key)) for key in reversed(keys)]
            for key, one in again:
                assert nonce_of(key, await one.outcome()) == nonce_of(key, stored[key])
        for one in asked + writes:
            assert type(one.only) is Timeout, "a late reply was seen"


# -- SIGKILL, RST, half-close in mid-reply: fails at once, no partial value


@pytest.mark.parametrize("style", STYLES)
@pytest.mark.gen_test(timeout=60)
async def test_sigkill_in_mid_reply_fails_at_once_and_gives_no_partial_value(
    start_memcached, expect_log, heard, style
):
    """What is asked for is more than the sockets hold: the server is in the middle of it."""
    expect_log(LOG, "fails|dead", times=range(1, 3))
    server = start_memcached(["-m", "200"])
    async with Client([server.address], request_timeout=FAR, max_connections=1) as mc:
        stored = {f"k{n}": fresh(f"k{n}", 1_000_000) for n in range(32)}
        assert await mc.set_multi(stored) == []
        heard.clear()
        cut = Asked(style, mc.get_multi, list(stored))
        write = Asked(style, mc.set, "other", b"v")
        read = Asked(style, mc.get, "k0")
        while not heard:
            await asyncio.sleep(0)
        server.kill()
        assert not (await cut.failure(ConnectionFailed)).maybe_applied
        assert (await write.failure(ConnectionFailed)).maybe_applied
        await read.failure(ConnectionFailed)  # (it was asked again, and nobody was there)
        assert counts(mc)["open"] == 0

        server.restart()
        mc.retry_dead_servers()
        assert await mc.set("k0", stored["k0"]) is True
        assert nonce_of("k0", await mc.get("k0")) == nonce_of("k0", stored["k0"])


ENDS = {"RST": Reset(), "FIN": Close(), "half-close": HalfClose()}


@pytest.mark.parametrize("style", STYLES)
@pytest.mark.parametrize("end", ENDS)
@pytest.mark.gen_test(timeout=60)
async def test_an_end_in_mid_reply_fails_at_once_and_gives_no_partial_value(
    expect_log, heard, end, style
):
    expect_log(LOG, "fails: get", times=None)
    small, large = fresh("k", 50), fresh("k", 30_000)
    one, two = hit("k", small) + b"END\r\n", hit("j", fresh("j")) + hit("k", large) + b"END\r\n"
    block = two.index(b"VALUE k")
    first = two.index(b"\r\n", block) + 2  # (where the large value begins)
    around = [at + by for at in (block, first, first + 30_000) for by in (-2, -1, 0, 1, 2)]
    places = [(one, ["k"], at) for at in range(1, len(one))]
    places += [(two, ["j", "k"], at) for at in (1, *around, first + 9_000, len(two) - 1)]
    for reply, keys, at in places:
        heard.clear()
        line = Expect(b"get " + " ".join(keys).encode() + b"\r\n")
        cut = [line, Send(reply[:at]), Until(lambda at=at: sum(heard) == at), ENDS[end]]
        async with Scripted(cut, [line, Send(reply)]) as server:
            async with Client([server.address], request_timeout=FAR) as mc:
                if len(keys) == 1:
                    asked = Asked(style, mc.get, "k")
                else:
                    asked = Asked(style, mc.get_multi, keys)
                await asked.failure(ConnectionFailed)
                assert server.connections == 1, "its reply had begun: it is not asked again"
                found = await (mc.get_multi(keys) if len(keys) > 1 else mc.get("k"))
                value = found["k"] if len(keys) > 1 else found
                assert nonce_of("k", value) == nonce_of("k", large if len(keys) > 1 else small)
                assert server.connections == 2


# -- FIN after a reply: delivered, connection not reused


@pytest.mark.parametrize("style", STYLES)
@pytest.mark.gen_test(timeout=60)
async def test_fin_after_a_reply_it_is_delivered_and_the_connection_not_reused(style):
    first, second, third = fresh("k"), fresh("j"), fresh("k")
    script = [Expect(b"get k\r\nget j\r\n"), Send(hit("k", first) + b"END\r\n"), Close()]
    behind = [Expect(b"get j\r\n"), Send(hit("j", second) + b"END\r\n"), Close()]
    last = [Expect(b"set k 0 0 1\r\nv\r\nget k\r\n")]
    last += [Send(b"STORED\r\n" + hit("k", third) + b"END\r\n")]
    async with Scripted(script, behind, last) as server:
        async with Client([server.address], request_timeout=FAR, max_connections=1) as mc:
            # Both wait for the connection, and leave on it together.
            delivered, behind_it = Asked(style, mc.get, "k"), Asked(style, mc.get, "j")
            assert nonce_of("k", await delivered.outcome()) == nonce_of("k", first)
            assert nonce_of("j", await behind_it.outcome()) == nonce_of("j", second)
            await until(lambda: counts(mc)["open"] == 0)
            write, read = Asked(style, mc.set, "k", b"v"), Asked(style, mc.get, "k")
            assert await write.outcome() is True
            assert nonce_of("k", await read.outcome()) == nonce_of("k", third)
            assert server.connections == 3


@pytest.mark.gen_test(timeout=60)
async def test_fin_between_two_calls_is_noticed_and_the_next_call_has_a_new_connection(memcached):
    with FaultProxy(memcached.address) as proxy:
        async with Client([proxy.address], request_timeout=FAR) as mc:
            for number in range(1, 6):
                value = fresh("k")
                assert await mc.set("k", value) is True
                assert nonce_of("k", await mc.get("k")) == nonce_of("k", value)
                assert (proxy.accepted, lost(mc)) == (number, number - 1)
                proxy.cut()
                await until(lambda: counts(mc)["open"] == 0)


# -- restart between two calls: no visible error


@pytest.mark.parametrize("style", STYLES)
@pytest.mark.parametrize("loop", ["runs", "is blocked"])
@pytest.mark.gen_test(timeout=60)
async def test_a_restart_between_two_calls_is_no_visible_error(start_memcached, style, loop):
    """Of any command, writes too: nothing was under way, so nothing may have been applied."""
    server = start_memcached()
    async with Client([server.address]) as mc:
        for exchange in EXCHANGES:
            before = await Asked(style, mc.set, "k", b"5").outcome()
            if loop == "runs":
                await asyncio.get_running_loop().run_in_executor(None, server.restart)
                await until(lambda: counts(mc)["open"] == 0)
            else:
                server.restart()
            after = await Asked(style, exchange.call, mc).outcome()
            assert before is True and not isinstance(after, Exception), exchange.name
            assert not getattr(after, "errors", None), exchange.name
            value = fresh("other")
            assert await mc.set("other", value) is True
            assert nonce_of("other", await mc.get("other")) == nonce_of("other", value)


@pytest.mark.parametrize("style", STYLES)
@pytest.mark.parametrize("loop", ["runs", "is blocked"])
@pytest.mark.gen_test(timeout=60)
async def test_a_restart_is_no_visible_error_with_many_idle_connections(
    start_memcached, expect_log, style, loop
):
    """Each of them is stale: a call that met one of them must not meet the next."""
    expect_log(LOG, "no connection is kept warm", times=range(len(EXCHANGES) + 1))
    server = start_memcached()
    async with Client([server.address], min_connections=4) as mc:
        for exchange in EXCHANGES:
            assert await mc.set("k", b"5") is True
            while counts(mc)["idle"] < 4:  # (a reply after the pause has them opened)
                await asyncio.sleep(0.01)
                assert await mc.set("k", b"5") is True
            if loop == "runs":
                await asyncio.get_running_loop().run_in_executor(None, server.restart)
            else:
                server.restart()
            asked = [Asked(style, exchange.call, mc) for _ in range(3)]
            for one in asked:
                after = await one.outcome()
                assert not isinstance(after, Exception), exchange.name
                assert not getattr(after, "errors", None), exchange.name


# -- restart between gets and cas (tokens start again at 1): the outcome is False; a plain
#    int is sent as it is


LARGE = b"x" * 100_000
LARGE_SET = b"set big 0 0 100000\r\n%b\r\n" % LARGE


@pytest.mark.parametrize("style", STYLES)
@pytest.mark.parametrize("third", ["answers", "ends too"])
@pytest.mark.gen_test(timeout=60)
async def test_gets_on_two_connections_that_end_in_one_turn_are_answered_by_a_third(
    expect_log, third, style
):
    """The first that is found to have ended has its get asked on the other, which ended too."""
    stored: list[bool] = []
    end: list[bool] = []
    value = fresh("k")
    ends = [GET, Until(lambda: end), Close()]
    first = [Expect(LARGE_SET), Until(lambda: stored), Send(b"STORED\r\n"), *ends]
    answer = Send((hit("k", value) + b"END\r\n") * 2) if third == "answers" else Close()
    if third != "answers":
        expect_log(LOG, "fails: get 'k'", times=1)
    async with Scripted(first, ends, [Expect(GET.data * 2), answer]) as server:
        async with Client([server.address], request_timeout=FAR) as mc:
            large = mc.set("big", LARGE)
            await until(lambda: server.received == [LARGE_SET])
            calls = [Asked(style, mc.get, "k")]  # (it keeps off what is large)
            await until(lambda: server.received == [LARGE_SET, GET.data])
            stored.append(True)
            assert await large is True
            calls.append(Asked(style, mc.get, "k"))
            await until(lambda: server.received == [LARGE_SET + GET.data, GET.data])
            end.append(True)
            for one in calls:
                if third == "answers":
                    assert nonce_of("k", await one.outcome()) == nonce_of("k", value)
                else:
                    assert not (await one.failure(ConnectionFailed)).maybe_applied
            assert server.connections == 3
            assert counts(mc)["pending"] == 0


@pytest.mark.parametrize("style", STYLES)
@pytest.mark.gen_test(timeout=60)
async def test_a_get_is_tried_once_on_the_connections_that_opened_since_it_was_first_lost(
    expect_log, style
):
    """The third was opened after the first had ended, and before the second did."""
    expect_log(LOG, "fails: get 'k'", times=1)
    ends: list[bool] = []
    first = [*WARM, GET, Until(lambda: ends), Close()]
    second = [GET, Until(lambda: len(ends) == 2), Close()]
    answers = [GET, Send(hit("k", fresh("k")) + b"END\r\n")]
    async with Scripted(first, second, [GET, Close()], answers) as server:
        async with Client([server.address], request_timeout=FAR, min_connections=2) as mc:
            assert await mc.get("warm") is None
            await until(lambda: counts(mc)["idle"] == server.connections == 2)
            asked = Asked(style, mc.get, "k")
            await until(lambda: server.received[0].endswith(GET.data))
            ends.append(True)
            await until(lambda: server.received[1:] == [GET.data, b""])
            await until(lambda: counts(mc)["idle"] == 1)
            ends.append(True)
            assert not (await asked.failure(ConnectionFailed)).maybe_applied
            assert server.received[2] == GET.data
            assert b"".join(server.received[3:]) == b""
            assert counts(mc)["pending"] == 0
            # (one that is being opened for nobody may be on its way)
            await until(lambda: counts(mc)["connecting"] == 0)


FETCHES = {
    "gets": lambda mc, **how: mc.gets("k", **how),
    "gats": lambda mc, **how: mc.gats("k", 0, **how),
    "gets_multi": lambda mc, **how: mc.gets_multi(["no", "k"], **how),
}


@pytest.mark.parametrize("style", STYLES)
@pytest.mark.parametrize("fetch", FETCHES)
@pytest.mark.parametrize("loop", ["runs", "is blocked"])
@pytest.mark.gen_test(timeout=60)
async def test_a_restart_between_gets_and_cas_is_false(start_memcached, loop, fetch, style):
    server = start_memcached()
    async with Client([server.address]) as mc:
        mine, other, newer = fresh("k"), fresh("k"), fresh("k")
        assert await mc.set("k", mine) is True
        fetched = await FETCHES[fetch](mc)
        value, token = fetched["k"] if fetch == "gets_multi" else fetched
        assert nonce_of("k", value) == nonce_of("k", mine)

        server.restart()
        if loop == "runs":
            await until(lambda: counts(mc)["open"] == 0)
        server.ask(b"set k 0 0 %d\r\n%b\r\n" % (len(other), other))
        same = server.ask(b"gets k\r\n", b"END\r\n").split()[4]
        assert int(same) == token, "another item has that very token now"

        assert await Asked(style, mc.cas, "k", fresh("k"), token).outcome() is False
        asked = Request(b"cas", (b"k",), fresh("k"), cas_unique=token)
        assert (await Asked(style, mc.request, asked).outcome()).status == b"EXISTS"
        (reply,) = await Asked(style, mc.request_many, [asked]).outcome()
        assert reply.status == b"EXISTS"
        assert nonce_of("k", await mc.get("k")) == nonce_of("k", other)

        assert await Asked(style, mc.cas, "k", mine, int(token)).outcome() is True
        value, token = await mc.gets("k")
        assert nonce_of("k", value) == nonce_of("k", mine)
        assert await Asked(style, mc.cas, "k", newer, token).outcome() is True
        assert nonce_of("k", await mc.get("k")) == nonce_of("k", newer)


UNIQUE = [Expect(b"gets k\r\n"), Send(hit("k", b"v", b" 1") + b"END\r\n")]
NO_CAS = [Expect(b"get k\r\n"), Send(b"END\r\n")]


@pytest.mark.parametrize("style", STYLES)
@pytest.mark.gen_test(timeout=60)
async def test_a_cas_that_was_not_sent_when_its_connection_was_lost_is_false(expect_log, style):
    """It waits behind a write that the server does not read, and would be asked again."""
    expect_log(LOG, "fails: set 'big'")
    big = b"x" * 20_000_000
    script = [*UNIQUE, Expect(b"set big"), Reset()]
    async with Scripted(script, NO_CAS) as server:
        settings = {"max_connections": 1, "max_value_size": len(big), "request_timeout": FAR}
        async with Client([server.address], **settings) as mc:
            _, token = await mc.gets("k")
            write, cas = Asked(style, mc.set, "big", big), Asked(style, mc.cas, "k", b"new", token)
            assert (await write.failure(ConnectionFailed)).maybe_applied
            assert await cas.outcome() is False
            assert await mc.get("k") is None
            assert counts(mc)["pending"] == 0


class Held(Resolver):
    """Finds an address at once the first time, and from then on when it is told to."""

    def initialize(self) -> None:
        self.asked = 0
        self.may = asyncio.Event()

    async def resolve(self, host: str, port: int, family: Any = socket.AF_UNSPEC) -> Any:
        self.asked += 1
        if self.asked > 1:
            await self.may.wait()
        return [(socket.AF_INET, ("127.0.0.1", port))]


@pytest.mark.parametrize("style", STYLES)
@pytest.mark.gen_test(timeout=60)
async def test_a_cas_in_the_waiting_line_when_a_connection_is_lost_is_false(expect_log, style):
    """A large write waits for a connection of its own, and the cas behind it."""
    expect_log(LOG, "fails: set 'busy'")
    end: list[bool] = []
    script = [*UNIQUE, Expect(b"set busy 0 0 1\r\nv\r\n"), Until(lambda: end), Reset()]
    after = [Expect(LARGE_SET), Send(b"STORED\r\n"), *NO_CAS]
    held = Held()
    async with Scripted(script, after, []) as server:
        named = server.address.replace("127.0.0.1", "cache.example")
        async with Client([named], request_timeout=FAR, resolver=held) as mc:
            _, token = await mc.gets("k")
            busy, large = Asked(style, mc.set, "busy", b"v"), Asked(style, mc.set, "big", LARGE)
            cas = Asked(style, mc.cas, "k", b"new", token)
            asked = Request(b"cas", (b"k",), b"new", cas_unique=token)
            reply = Asked(style, mc.request, asked)
            assert (counts(mc)["connecting"], counts(mc)["waiting"]) == (1, 3)
            end.append(True)
            await busy.failure(ConnectionFailed)
            assert counts(mc)["waiting"] == 3
            held.may.set()
            assert await cas.outcome() is False
            assert await reply.outcome() == Reply(b"EXISTS")
            assert await large.outcome() is True
            assert await mc.get("k") is None
            assert counts(mc)["pending"] == 0


@pytest.mark.parametrize("style", STYLES)
@pytest.mark.parametrize("fetch", FETCHES)
@pytest.mark.gen_test(timeout=60)
async def test_a_token_from_before_a_restart_without_a_farewell_is_false(
    start_memcached, expect_log, fetch, style
):
    """A machine that loses its power sends no FIN: its connection only falls silent."""
    expect_log(LOG, "fails: get 'k'")
    old, new = start_memcached(), start_memcached()
    with FaultProxy(old.address) as proxy:
        async with Client([proxy.address], request_timeout=0.5) as mc:
            mine, other = fresh("k"), fresh("k")
            assert await mc.set("k", mine) is True
            fetched = await FETCHES[fetch](mc)
            _, token = fetched["k"] if fetch == "gets_multi" else fetched
            proxy.replies.hold = True
            proxy.target = new.address
            new.ask(b"set k 0 0 %d\r\n%b\r\n" % (len(other), other))
            assert int(new.ask(b"gets k\r\n", b"END\r\n").split()[4]) == token
            await Asked(style, mc.get, "k").failure(Timeout)
            assert counts(mc)["late"] == 1, "and not yet lost"
            assert await Asked(style, mc.cas, "k", fresh("k"), token).outcome() is False
            proxy.cut()
            proxy.heal()
            await until(lambda: counts(mc)["open"] == 0)
            assert nonce_of("k", await mc.get("k")) == nonce_of("k", other)


@pytest.mark.gen_test(timeout=60)
async def test_a_token_that_came_with_the_end_of_its_connection_is_of_before_the_loss():
    script = [UNIQUE[0], Send(hit("k", b"v", b" 1") + b"END\r\nstray\r\n")]
    async with Scripted(script, NO_CAS) as server:
        async with Client([server.address]) as mc:
            _, token = await mc.gets("k")
            assert await mc.cas("k", b"new", token) is False
            assert await mc.get("k") is None


@pytest.mark.parametrize("style", STYLES)
@pytest.mark.parametrize("fetch", FETCHES)
@pytest.mark.gen_test(timeout=60)
async def test_a_token_that_was_asked_for_before_a_sign_of_a_restart_is_of_before_it(fetch, style):
    """The old process answers at last, when another connection has told that it is gone."""
    gone: list[bool] = []
    late: list[bool] = []
    line = {"gets": b"gets k\r\n", "gats": b"gats 0 k\r\n", "gets_multi": b"gets no k\r\n"}[fetch]
    asked = [*WARM, Expect(line), Until(lambda: late), UNIQUE[1], *NO_CAS]
    other = [Until(lambda: gone), Close()]
    async with Scripted(asked, other, []) as server:
        async with Client([server.address], request_timeout=FAR, min_connections=2) as mc:
            assert await mc.get("warm") is None
            await until(lambda: counts(mc)["idle"] == 2)
            fetched = Asked(style, FETCHES[fetch], mc)
            await until(lambda: server.received[0].endswith(line))
            gone.append(True)
            await until(lambda: lost(mc) == 1)
            late.append(True)
            outcome = await fetched.outcome()
            value, token = outcome["k"] if fetch == "gets_multi" else outcome
            assert (value, token) == (b"v", 1)
            assert await Asked(style, mc.cas, "k", b"new", token).outcome() is False
            assert await mc.get("k") is None
            assert counts(mc)["pending"] == 0


# -- one byte at a time, and split at every offset: right value


@pytest.mark.parametrize("style", STYLES)
@pytest.mark.gen_test(timeout=60)
async def test_one_byte_at_a_time_gives_the_right_values(memcached, heard, style):
    with FaultProxy(memcached.address) as proxy:
        proxy.requests.slice = proxy.replies.slice = 1
        async with Client([proxy.address], request_timeout=FAR) as mc:
            stored = {f"k{n}": fresh(f"k{n}", 30 + 60 * n) for n in range(4)}
            assert await Asked(style, mc.set_multi, stored).outcome() == []
            for key in stored:
                nonce = nonce_of(key, stored[key])
                assert nonce_of(key, await Asked(style, mc.get, key).outcome()) == nonce
                value, token = await Asked(style, mc.gets, key).outcome()
                assert nonce_of(key, value) == nonce
                stored[key] = fresh(key)
                assert await Asked(style, mc.cas, key, stored[key], token).outcome() is True
            found = await Asked(style, mc.get_multi, [*stored, "no"]).outcome()
            assert {key: nonce_of(key, value) for key, value in found.items()} == {
                key: nonce_of(key, value) for key, value in stored.items()
            }
            assert await Asked(style, mc.set, "n", 41).outcome() is True
            assert await Asked(style, mc.incr, "n").outcome() == 42
            assert await Asked(style, mc.delete, "n").outcome() is True
            version = await Asked(style, mc.version).outcome()
            assert shorn(version) == memcached.stats()["version"]
            assert "curr_items" in shorn(await Asked(style, mc.stats).outcome())
            assert lost(mc) == 0
            # (What comes while a loaded machine does not read, it reads together.)
            assert sum(heard) > 1000 and heard.count(1) > 20


@pytest.mark.parametrize("style", STYLES)
@pytest.mark.parametrize("name", NAMES)
@pytest.mark.usefixtures(meta_known.__name__)
@pytest.mark.gen_test(timeout=60)
async def test_a_reply_that_is_split_at_every_offset_gives_the_right_outcome(name, style, heard):
    exchange = EXCHANGES[NAMES.index(name)]
    script = []
    for cut in range(1, len(exchange.reply)):
        script += [Expect(exchange.request), Send(exchange.reply[:cut])]
        script += [Until(lambda cut=cut: heard == [cut]), Send(exchange.reply[cut:])]
    async with Scripted(script) as server:
        async with Client([server.address], request_timeout=FAR) as mc:
            for cut in range(1, len(exchange.reply)):
                heard.clear()
                outcome = await Asked(style, exchange.call, mc).outcome()
                assert shorn(outcome) == exchange.outcome
                assert heard == [cut, len(exchange.reply) - cut], "it was not split"
            assert (server.connections, lost(mc)) == (1, 0)


@pytest.mark.parametrize("size", [0, 200, 20_000])
@pytest.mark.gen_test(timeout=60)
async def test_values_that_are_split_at_every_offset_are_the_right_values(heard, size):
    """A value is full of ends of replies; the large one is received in a buffer of its own."""
    keys = ["a", "b", "c"]
    stored = {"a": fresh("a"), "b": fresh("b", size), "c": fresh("c")}
    blocks = [hit(key, stored[key]) for key in keys]
    reply = b"".join(blocks) + b"END\r\n"
    ends = [len(blocks[0]), len(blocks[0]) + len(blocks[1])]
    cuts = [cut for cut in range(1, len(reply)) if not ends[0] + 60 < cut < ends[1] - 10]
    script = []
    for cut in cuts:
        script += [Expect(b"get a b c\r\n"), Send(reply[:cut])]
        script += [Until(lambda cut=cut: sum(heard) == cut), Send(reply[cut:])]
    async with Scripted(script) as server:
        async with Client([server.address], request_timeout=FAR) as mc:
            for _ in cuts:
                heard.clear()
                found = await mc.get_multi(keys)
                assert list(found) == keys
                for key in keys:
                    assert nonce_of(key, found[key]) == nonce_of(key, stored[key])
            assert (server.connections, lost(mc)) == (1, 0)


# -- drip for ever: D holds although bytes flow


@pytest.mark.parametrize("style", STYLES)
@pytest.mark.gen_test(timeout=60)
async def test_a_drip_for_ever_the_deadline_holds_although_bytes_flow(
    memcached, expect_log, heard, style
):
    expect_log(LOG, "fails: get", times=1)
    with FaultProxy(memcached.address) as proxy:
        async with Client([proxy.address], request_timeout=0.15) as mc:
            value = fresh("k", 100_000)
            assert await mc.set("k", value) is True
            proxy.replies.slice, proxy.replies.pause = 1, 0.001
            calls = [Asked(style, mc.get, "k"), Asked(style, mc.gets, "k")]
            for one in calls:
                assert (await one.failure(Timeout)).phase == "reply"
                assert 0.15 <= one.took < 0.15 + SLACK
            come = len(heard)
            assert come > 5, "no bytes flowed"
            await until(lambda: len(heard) > come)  # (they flow on)
            await until(lambda: counts(mc)["late"] == 0)
            assert not mc._pools[0].health.dead, "a server that sends bytes is alive"
            proxy.heal()
            assert nonce_of("k", await mc.get("k")) == nonce_of("k", value)
            assert [type(one.only) for one in calls] == [Timeout, Timeout]


# -- early reply to a big set: right caller


@pytest.mark.parametrize("style", STYLES)
@pytest.mark.gen_test(timeout=60)
async def test_an_early_reply_to_a_big_set_goes_to_the_right_caller(style):
    """The server refuses the header, while most of the block is yet to be written."""
    big, value = b"x" * 20_000_000, fresh("k")
    header = b"set big 0 0 %d\r\n" % len(big)
    script = [Expect(header), Send(b"SERVER_ERROR object too large for cache\r\n")]
    script += [
        Until(lambda: refused),
        Expect(big + b"\r\n"),
        Expect(b"get k\r\nset j 0 0 1\r\nv\r\n"),
    ]
    script += [Send(hit("k", value) + b"END\r\nNOT_STORED\r\n")]
    refused: list[object] = []
    async with Scripted(script) as server:
        settings = {"max_connections": 1, "max_value_size": len(big), "request_timeout": FAR}
        async with Client([server.address], **settings) as mc:
            first = Asked(style, mc.set, "big", big)
            second, third = Asked(style, mc.get, "k"), Asked(style, mc.set, "j", b"v")
            await first.failure(ItemTooLarge)
            assert not second.outcomes and not third.outcomes
            refused.append(first.only)
            assert nonce_of("k", await second.outcome()) == nonce_of("k", value)
            assert await third.outcome() is False
            assert (server.connections, lost(mc)) == (1, 0)


@pytest.mark.parametrize("style", STYLES)
@pytest.mark.gen_test(timeout=60)
async def test_an_early_reply_of_a_real_memcached_goes_to_the_right_caller(memcached, style):
    settings = {"max_value_size": 9_000_000, "max_connections": 1, "request_timeout": FAR}
    async with Client([memcached.address], **settings) as mc:
        for _ in range(5):
            big, values = b"x" * 9_000_000, {key: fresh(key) for key in "ab"}
            first, small = Asked(style, mc.set, "big", big), Asked(style, mc.set, "a", values["a"])
            read, second = Asked(style, mc.get, "a"), Asked(style, mc.set, "big", big)
            other, last = Asked(style, mc.set, "b", values["b"]), Asked(style, mc.get, "b")
            await first.failure(ItemTooLarge)
            await second.failure(ItemTooLarge)
            assert await small.outcome() is True and await other.outcome() is True
            assert nonce_of("a", await read.outcome()) == nonce_of("a", values["a"])
            assert nonce_of("b", await last.outcome()) == nonce_of("b", values["b"])
        assert lost(mc) == 0


# -- a set of 200 kB and a get of its key in the same tick: the new value, always


@pytest.mark.parametrize("style", STYLES)
@pytest.mark.gen_test(timeout=60)
async def test_a_set_of_200_kb_and_a_get_of_its_key_in_one_tick_the_new_value_always(
    memcached, style
):
    async with Client([memcached.address]) as mc:
        for number in range(150):
            value = fresh("big", 200_000)
            noise = [Asked(style, mc.get, f"noise{n}") for n in range(number % 4)]
            write = Asked(style, mc.set, "big", value)
            one, many = Asked(style, mc.get, "big"), Asked(style, mc.get_multi, ["big", "no"])
            for got in (await one.outcome(), (await many.outcome())["big"]):
                assert nonce_of("big", got) == nonce_of("big", value)
            assert await write.outcome() is True
            for other in noise:
                assert await other.outcome() is None


@pytest.mark.parametrize("style", STYLES)
@pytest.mark.gen_test(timeout=60)
async def test_the_same_in_the_first_tick_of_a_client(memcached, style):
    for number in range(30):
        async with Client([memcached.address], max_connections=number % 4 + 1) as mc:
            value = fresh("big", 200_000)
            write, read = Asked(style, mc.set, "big", value), Asked(style, mc.get, "big")
            assert nonce_of("big", await read.outcome()) == nonce_of("big", value)
            assert await write.outcome() is True


# -- a set that timed out, then a newer set: the newer stays


@pytest.mark.parametrize("size", [0, 400_000])
@pytest.mark.parametrize("style", STYLES)
@pytest.mark.gen_test(timeout=60)
async def test_a_set_that_timed_out_then_a_newer_set_the_newer_stays(
    start_memcached, expect_log, style, size
):
    expect_log(LOG, "fails|dead", times=None)
    server = start_memcached()
    settings = {"request_timeout": 0.1, "silences_until_dead": 1000}
    for _ in range(4):
        async with Client([server.address], **settings) as mc:
            assert await mc.set("k", fresh("k")) is True
            server.stop()
            old = Asked(style, mc.set, "k", fresh("k", size))
            assert (await old.failure(Timeout)).maybe_applied
            newer = fresh("k")
            new, read = (
                Asked(style, mc.set, "k", newer, timeout=FAR),
                Asked(style, mc.get, "k", timeout=FAR),
            )
            server.resume()
            assert await new.outcome() is True
            assert nonce_of("k", await read.outcome()) == nonce_of("k", newer)
            await until(lambda: counts(mc)["pending"] == 0)
            stays = await ask_memcached(server, b"get k\r\n")
            assert stays == hit("k", newer) + b"END\r\n"
            assert type(old.only) is Timeout
        assert await ask_memcached(server, b"get k\r\n") == stays


# -- peer that stops reading while we write 50 MB: Timeout, bounded buffer


@pytest.mark.parametrize("style", STYLES)
@pytest.mark.parametrize("number", [1, 50, 1000])
@pytest.mark.gen_test(timeout=60)
async def test_a_peer_that_stops_reading_while_we_write_50_mb(silent, expect_log, number, style):
    """What waits to be written are the callers' own values: nothing is kept beside them."""
    expect_log(LOG, "fails|dead", times=range(1, 3))
    size = 50_000_000 // number
    values = {f"k{n}": fresh(f"k{n}", size) for n in range(number)}
    held = {key: sys.getrefcount(values[key]) for key in values}
    settings = {"request_timeout": 0.15, "max_value_size": size, "max_connections": 1}
    async with Client([silent.address], **settings) as mc:
        warm = Asked(style, mc.get, "warm")
        await until(lambda: counts(mc)["busy"] == 1)
        tracemalloc.start()
        try:
            asked = [Asked(style, mc.set, "k0", values["k0"])]
            await asyncio.sleep(0)  # (it leaves before the others take their time to be made)
            asked += [Asked(style, mc.set, key, values[key]) for key in values if key != "k0"]
            errors = [await one.failure(Timeout) for one in asked]
            kept, peak = tracemalloc.get_traced_memory()
        finally:
            tracemalloc.stop()
        # (In debug mode asyncio keeps a traceback for each call.)
        assert peak < 2_000_000 + 10_000 * number, "a copy of what waits was made"
        assert errors[0].maybe_applied
        assert number == 1 or not errors[-1].maybe_applied, "more was taken than could leave"
        await warm.failure(Timeout)
        await until(lambda: counts(mc)["open"] == 0)
        del asked, errors
        await asyncio.sleep(0.01)  # (what tells of a close holds the stream for a turn)
        gc.collect()
        assert {key: sys.getrefcount(values[key]) for key in values} == held
