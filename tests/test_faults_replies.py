"""What a reply does to its connection: the table, and the paragraphs Order, Retry and Death.

Its rows, in their words and order, each as a caller meets it: sockets and
the public client. Whether a connection was kept is told by two counts that
must agree: how many the server accepted, and how many the pool has lost. A
deadline that must not be reached is ten minutes away, so that "at once" needs
no clock.
"""

from __future__ import annotations

import asyncio
import itertools
import random
from typing import Any

import pytest

from tornado_memcache import (
    Client,
    ClientError,
    ConnectionFailed,
    ItemTooLarge,
    MemcacheError,
    ProtocolError,
    ServerDead,
    ServerError,
    Timeout,
    boundary,
    deadlines,
)

from .asked import (
    EXCHANGES,
    NAMES,
    STYLES,
    Asked,
    Exchange,
    counts,
    hand_overs,
    lost,
    meta_known,
    shorn,
    until,
)
from .faultproxy import FaultProxy
from .hand import Hand
from .networks import full_backlog
from .nonces import fresh, nonce_of
from .scripted import Close, Expect, Reset, Scripted, Send, Until

#: What a command is on the wire, without the question for the version before it.
pytestmark = pytest.mark.usefixtures(meta_known.__name__)

LOG = "tornado_memcache"
#: A deadline that no test lives to see, but by turning the clock.
FAR = 600.0
#: The first call of a client, so that what follows finds an idle, used connection.
WARM = [Expect(b"get warm\r\n"), Send(b"END\r\n")]
#: Storage commands: the one line of their reply follows a block.
STORAGE = {"set", "add", "replace", "append", "prepend", "cas", "set_multi", "meta_set"}

every_exchange = pytest.mark.parametrize("exchange", EXCHANGES, ids=NAMES)
every_style = pytest.mark.parametrize("style", STYLES)
READS = [one for one in EXCHANGES if one.reads]
WRITES = [one for one in EXCHANGES if not one.reads]
every_read = pytest.mark.parametrize("exchange", READS, ids=[one.name for one in READS])
every_write = pytest.mark.parametrize("exchange", WRITES, ids=[one.name for one in WRITES])
#: Writes of the key k: all but flush_all, which has none.
KEYED = [one for one in WRITES if one.name != "flush_all"]


class Other:
    """A get of another key with its request, its reply, and a value that tells whose it is."""

    def __init__(self, key: str = "other") -> None:
        self.key = key
        self.value = fresh(key)
        self.request = b"get %b\r\n" % key.encode()
        self.reply = b"VALUE %b 0 %d\r\n%b\r\nEND\r\n" % (
            key.encode(),
            len(self.value),
            self.value,
        )
        self.steps = [Expect(self.request), Send(self.reply)]

    def ask(self, mc: Client, style: str, **how: Any) -> Asked:
        return Asked(style, mc.get, self.key, **how)

    async def is_right(self, asked: Asked) -> bool:
        return nonce_of(self.key, await asked.outcome()) == nonce_of(self.key, self.value)


async def failure(asked: Asked) -> MemcacheError:
    """Returns the error that a call came to, or that its one server came to."""
    outcome = await asked.outcome()
    if not isinstance(outcome, MemcacheError):
        (outcome,) = outcome.errors.values()
    return outcome


class Time:
    """Time that passes when a test says so: `passes` ends what is due by then."""

    def __init__(self, monkeypatch: Any) -> None:
        self.hand = Hand()
        monkeypatch.setattr(deadlines, "clock", self.hand)

    def passes(self, mc: Client, seconds: float) -> None:
        self.hand.now += seconds
        register = mc._deadlines
        assert register is not None
        if register.armed:
            register._disarm()
            register._fire()


@pytest.fixture
def time(monkeypatch) -> Time:
    return Time(monkeypatch)


def kept(server: Scripted, mc: Client) -> bool:
    return (server.connections, lost(mc)) == (1, 0)


# -- well-formed, expected | any | keep | the value


@every_style
@pytest.mark.gen_test(timeout=60)
async def test_a_well_formed_expected_reply_keeps_the_connection_and_is_the_value(style):
    one_by_one = [step for one in EXCHANGES for step in (Expect(one.request), Send(one.reply))]
    together = [
        Expect(b"".join(one.request for one in EXCHANGES)),
        Send(b"".join(one.reply for one in EXCHANGES)),
    ]
    async with Scripted(one_by_one + together) as server:
        async with Client([server.address], request_timeout=FAR) as mc:
            for one in EXCHANGES:
                assert shorn(await Asked(style, one.call, mc).outcome()) == one.outcome, one.name
            asked = [Asked(style, one.call, mc) for one in EXCHANGES]
            for one, call in zip(EXCHANGES, asked):
                assert shorn(await call.outcome()) == one.outcome, one.name
            assert kept(server, mc)


# -- complete SERVER_ERROR line | storage | keep | ServerError; too large is its own class
# -- SERVER_ERROR | get | keep if no item is half read | ServerError
# -- CLIENT_ERROR | a one-line command | keep | ClientError
# -- CLIENT_ERROR or ERROR | storage | close: memcached answers twice | ClientError
# -- ERROR | a one-line command | keep | ClientError


LINES = {
    b"SERVER_ERROR out of memory storing object\r\n": ServerError,
    b"SERVER_ERROR object too large for cache\r\n": ItemTooLarge,
    b"CLIENT_ERROR bad data chunk\r\n": ClientError,
    b"ERROR\r\n": ClientError,
}


@every_exchange
@pytest.mark.gen_test(timeout=60)
async def test_an_error_line_is_the_outcome_and_keeps_the_connection_but_for_storage(
    expect_log, exchange
):
    expect_log(LOG, "fails", times=range(5))
    for line, style in itertools.product(LINES, STYLES):
        await is_answered_by_an_error_line(exchange, line, style)


async def is_answered_by_an_error_line(exchange: Exchange, line: bytes, style: str) -> None:
    closes = exchange.name in STORAGE and LINES[line] is ClientError
    behind, again = Other(), Other()
    # (memcached answers what it did not swallow; a quiet batch is over with its MN)
    twice = b"ERROR\r\n" if closes else b"MN\r\n" if exchange.reply.endswith(b"MN\r\n") else b""
    if exchange.name == "meta_noop":
        twice = b""
    script = [*WARM, Expect(exchange.request + behind.request), Send(line + twice + behind.reply)]
    script += [] if closes else again.steps
    async with Scripted(script, again.steps) as server:
        async with Client([server.address], request_timeout=FAR, max_connections=1) as mc:
            assert await mc.get("warm") is None
            asked, other = Asked(style, exchange.call, mc), behind.ask(mc, style)
            error = await failure(asked)
            assert type(error) is LINES[line] and error.server == server.address
            assert error.connection_survives or closes
            if closes:
                await other.failure(ProtocolError)
            else:
                assert await behind.is_right(other)
            assert kept(server, mc) is not closes
            assert await again.is_right(again.ask(mc, style))
            assert server.connections == 1 + closes


def test_memcached_answers_a_storage_command_that_it_does_not_take_twice(memcached):
    answer = memcached.ask(b"set k 0 0 1\r\nvv\r\nversion\r\n", b"\r\n")
    while b"VERSION" not in answer:
        answer += memcached.ask(b"version\r\n")
    assert answer.startswith(b"CLIENT_ERROR bad data chunk\r\nERROR\r\n")


@every_style
@pytest.mark.gen_test(timeout=60)
async def test_the_error_lines_of_a_real_memcached_keep_the_connection(memcached, style):
    async with Client([memcached.address], max_value_size=3_000_000, max_connections=1) as mc:
        text = fresh("text")
        assert await mc.set("text", text) is True
        large, behind = Asked(style, mc.set, "k", b"x" * 2_000_000), Asked(style, mc.get, "text")
        error = await large.failure(ItemTooLarge)
        assert not error.maybe_applied
        assert nonce_of("text", await behind.outcome()) == nonce_of("text", text)
        number, behind = Asked(style, mc.incr, "text"), Asked(style, mc.get, "text")
        await number.failure(ClientError)
        assert nonce_of("text", await behind.outcome()) == nonce_of("text", text)
        unknown, behind = Asked(style, mc.stats, "nonsense"), Asked(style, mc.get, "text")
        await unknown.failure(ClientError)
        assert nonce_of("text", await behind.outcome()) == nonce_of("text", text)
        assert lost(mc) == 0


# -- SERVER_ERROR | get | ... else close


@every_style
@pytest.mark.parametrize("line", LINES, ids=lambda line: line.decode().strip())
@pytest.mark.parametrize("first", [b"VALUE k 0 1\r\nv\r\n", b"VALUE k 0 20000\r\n%b\r\n"])
@pytest.mark.gen_test(timeout=60)
async def test_an_error_line_after_an_item_of_a_get_closes_the_connection(
    expect_log, first, line, style
):
    """The item that was read is nobody's: what is behind the line, nobody can tell."""
    expect_log(LOG, "fails: get", times=range(2))
    if b"%b" in first:
        first %= b"x" * 20_000
    behind, again = Other(), Other()
    script = [*WARM, Expect(b"get k j\r\n" + behind.request), Send(first + line + behind.reply)]
    async with Scripted(script, again.steps) as server:
        async with Client([server.address], request_timeout=FAR, max_connections=1) as mc:
            assert await mc.get("warm") is None
            asked, other = Asked(style, mc.get_multi, ["k", "j"]), behind.ask(mc, style)
            await asked.failure(LINES[line])
            await other.failure(ProtocolError)
            assert not kept(server, mc)
            assert await again.is_right(again.ask(mc, style))


@every_style
@pytest.mark.gen_test(timeout=60)
async def test_an_error_line_is_the_outcome_of_every_caller_of_a_gathered_line(expect_log, style):
    """First without an item, then after one. Each has an error of its own."""
    expect_log(LOG, "fails: get", times=range(2))
    line, again = b"SERVER_ERROR busy\r\n", Other()
    script = [*WARM, Expect(b"get a\r\nget b c\r\n"), Send(b"END\r\n" + line)]
    script += [Expect(b"get a\r\nget b c\r\n"), Send(b"END\r\nVALUE b 0 1\r\nv\r\n" + line)]
    async with Scripted(script, again.steps) as server:
        async with Client([server.address], request_timeout=FAR) as mc:
            assert await mc.get("warm") is None
            for keeps in (True, False):
                first = Asked(style, mc.get, "a")
                gathered = [Asked(style, mc.get, key) for key in "bcb"]
                assert await first.outcome() is None
                errors = [await one.failure(ServerError) for one in gathered]
                assert len({id(error) for error in errors}) == 3
                assert kept(server, mc) is keeps
            assert await again.is_right(again.ask(mc, style))


# -- ERROR Too many open connections, or any byte before a request | - | close, counts as a
#    failed connect, back off | ConnectionFailed


FULL = b"ERROR Too many open connections\r\n"


@every_style
@pytest.mark.parametrize("moment", ["before the request", "while it is under way"])
@every_exchange
@pytest.mark.gen_test(timeout=60)
async def test_too_many_open_connections_is_a_failed_connect_and_backs_off(
    expect_log, time, exchange, moment, style
):
    expect_log(LOG, "taken for dead", times=1)
    crossed = [Expect(exchange.request)] if moment == "while it is under way" else []
    async with Scripted([*crossed, Send(FULL), Close()]) as server:
        async with Client([server.address], request_timeout=FAR) as mc:
            error = await failure(Asked(style, exchange.call, mc))
            assert type(error) is ConnectionFailed and error.phase == "connecting"
            assert not error.maybe_applied, "the server reads nothing of such a connection"
            for _ in range(20):
                assert type(await failure(Asked(style, exchange.call, mc))) is ServerDead
            assert (server.connections, counts(mc)["open"]) == (1, 0)


GREETINGS = [FULL, b"220 mail ESMTP\r\n", b"x", b"STORED\r\n", b"VALUE k 0 1\r\nv\r\nEND\r\n"]


@pytest.mark.parametrize("greeting", GREETINGS, ids=repr)
@pytest.mark.gen_test(timeout=60)
async def test_any_byte_before_a_request_is_a_failed_connect_and_backs_off(
    expect_log, time, greeting
):
    """A connection that is kept warm is opened again and again, but not at once."""
    expect_log(LOG, "taken for dead", times=1)
    again = Other()
    async with Scripted([Send(greeting)], again.steps) as server:
        async with Client([server.address], min_connections=1, request_timeout=FAR) as mc:
            mc.warm_up()
            await until(lambda: lost(mc) == 1)
            for _ in range(20):
                await asyncio.sleep(0.001)
            assert (server.connections, counts(mc)["open"]) == (1, 0)
            assert type(await failure(Asked("awaited", mc.get, "k"))) is ServerDead
            time.passes(mc, 0.25)
            assert await again.is_right(again.ask(mc, "awaited"))
            assert server.connections == 2


@pytest.mark.parametrize("greeting", GREETINGS, ids=repr)
@pytest.mark.gen_test(timeout=60)
async def test_any_byte_before_a_request_leaves_the_connections_that_are_there_alone(
    time, greeting
):
    first, second = Other("a"), Other("b")
    script = [*first.steps, *second.steps]
    async with Scripted(script, [Send(greeting)]) as server:
        async with Client([server.address], min_connections=2, request_timeout=FAR) as mc:
            assert await first.is_right(first.ask(mc, "awaited"))
            await until(lambda: lost(mc) == 1)
            for _ in range(20):
                await asyncio.sleep(0.001)
            assert (server.connections, counts(mc)["open"]) == (2, 1)
            assert not mc._pools[0].health.dead
            assert await second.is_right(second.ask(mc, "awaited"))


# -- VALUE for a key not asked, bad fields, bad integer, length < 0 or over the limit, block
#    without CRLF | get | close; all owed behind it fail | ProtocolError
#    (each kind of it, and each cut of it, is in test_faults_malformed.py)


@every_style
@pytest.mark.parametrize(
    "bad",
    [
        b"VALUE wrong 0 1\r\nv\r\n",
        b"VALUE k 0\r\n",
        b"VALUE k x 1\r\n",
        b"VALUE k 0 -1\r\n",
        b"VALUE k 0 1048577\r\n",
        b"VALUE k 0 1\r\nvv\r\n",
    ],
)
@pytest.mark.gen_test(timeout=60)
async def test_a_bad_value_closes_the_connection_and_all_that_is_owed_behind_it_fails(
    expect_log, bad, style
):
    """All commands are owed behind it, and those that only read are not asked again either."""
    expect_log(LOG, "fails", times=1)
    again = Other()
    wire = b"".join(one.request for one in EXCHANGES)
    script = [*WARM, Expect(b"get k\r\n" + wire), Send(bad + b"END\r\n")]
    async with Scripted(script, again.steps) as server:
        async with Client([server.address], request_timeout=FAR, max_value_size=1 << 20) as mc:
            assert await mc.get("warm") is None
            first = Asked(style, mc.get, "k")
            asked = [Asked(style, one.call, mc) for one in EXCHANGES]
            await first.failure(ProtocolError)
            for one, call in zip(EXCHANGES, asked):
                error = await failure(call)
                assert type(error) is ProtocolError, one.name
                assert error.maybe_applied is not one.reads, one.name
            assert not kept(server, mc) and server.connections == 1
            assert await again.is_right(again.ask(mc, style))


# -- bytes while nothing is owed | idle | close, count it | -


@pytest.mark.parametrize("data", [*LINES, b"END\r\n", b"VALUE k 0 1\r\nv\r\nEND\r\n", b"?"])
@pytest.mark.gen_test(timeout=60)
async def test_bytes_while_nothing_is_owed_close_the_connection_and_are_counted(memcached, data):
    outcomes: list[Any] = []
    with FaultProxy(memcached.address) as proxy:
        async with Client([proxy.address], request_timeout=FAR) as mc:
            for number in range(3):
                value = fresh("k")
                with boundary(outcomes.append):
                    assert await mc.set("k", value) is True
                assert lost(mc) == number
                proxy.say(data)
                await until(lambda: counts(mc)["open"] == 0)
                assert lost(mc) == number + 1
                assert nonce_of("k", await mc.get("k")) == nonce_of("k", value)
            assert proxy.accepted == 4
    assert not outcomes, "it is nobody's failure"


# -- any error line while a noreply has no later reply behind it | - | close, all owed fail


QUIET = b"set k 0 0 5 noreply\r\nquiet\r\n"


def test_memcached_answers_a_noreply_with_a_bad_block(memcached):
    assert memcached.ask(b"set k 0 0 1 noreply\r\nvv\r\n") == b"ERROR\r\n"


@every_style
@pytest.mark.parametrize("line", LINES, ids=lambda line: line.decode().strip())
@pytest.mark.gen_test(timeout=60)
async def test_an_error_line_to_a_noreply_with_nothing_behind_it_closes_the_connection(line, style):
    again = Other()
    async with Scripted([*WARM, Expect(QUIET), Send(line)], again.steps) as server:
        async with Client([server.address], request_timeout=FAR) as mc:
            assert await mc.get("warm") is None
            quiet = Asked(style, mc.set, "k", b"quiet", noreply=True)
            assert await quiet.outcome() is True  # (it was written: that is all it tells)
            await until(lambda: counts(mc)["open"] == 0)
            assert await again.is_right(again.ask(mc, style))
            assert server.connections == 2


@every_exchange
@pytest.mark.gen_test(timeout=60)
async def test_an_error_line_behind_a_noreply_cannot_be_attributed_and_all_owed_fail(
    expect_log, exchange
):
    expect_log(LOG, "fails", times=8)
    for line, style in itertools.product(LINES, STYLES):
        await is_behind_a_noreply(exchange, line, style)


async def is_behind_a_noreply(exchange: Exchange, line: bytes, style: str) -> None:
    behind, again = Other(), Other()
    script = [*WARM, Expect(QUIET + exchange.request + behind.request)]
    script += [Send(line + exchange.reply + behind.reply)]
    async with Scripted(script, again.steps) as server:
        async with Client([server.address], request_timeout=FAR, max_connections=1) as mc:
            assert await mc.get("warm") is None
            quiet = Asked(style, mc.set, "k", b"quiet", noreply=True)
            asked, other = Asked(style, exchange.call, mc), behind.ask(mc, style)
            error = await failure(asked)
            assert type(error) is ProtocolError and "attributed" in str(error)
            assert error.maybe_applied is not exchange.reads
            await other.failure(ProtocolError)
            assert await quiet.outcome() is True
            assert not kept(server, mc)
            assert await again.is_right(again.ask(mc, style))


@every_style
@pytest.mark.gen_test(timeout=60)
async def test_an_error_line_after_a_later_reply_is_its_own_request_s(style):
    again = Other()
    script = [*WARM, Expect(QUIET + b"touch j 0\r\nincr n 1\r\n")]
    script += [Send(b"TOUCHED\r\nCLIENT_ERROR no number\r\n"), *again.steps]
    async with Scripted(script) as server:
        async with Client([server.address], request_timeout=FAR, max_connections=1) as mc:
            assert await mc.get("warm") is None
            quiet = Asked(style, mc.set, "k", b"quiet", noreply=True)
            touch, number = Asked(style, mc.touch, "j", 0), Asked(style, mc.incr, "n")
            assert await quiet.outcome() is True and await touch.outcome() is True
            await number.failure(ClientError)
            assert kept(server, mc)
            assert await again.is_right(again.ask(mc, style))


# -- none, the caller cancelled | any | keep; the slot stays in the FIFO and the reply is
#    parsed and dropped when it comes | cancelled


@every_style
@every_exchange
@pytest.mark.gen_test(timeout=60)
async def test_the_reply_to_a_cancelled_caller_is_parsed_and_dropped_and_the_next_is_right(
    exchange, style
):
    behind, again, failures = Other(), Other(), []
    script = [*WARM, Expect(exchange.request + behind.request)]
    script += [Send(exchange.reply + behind.reply), *again.steps]
    async with Scripted(script) as server:
        async with Client([server.address], request_timeout=FAR, max_connections=1) as mc:
            assert await mc.get("warm") is None
            with boundary(failures.append) as entry:
                asked = Asked(style, exchange.call, mc)
            await asyncio.sleep(0)
            if style == "callback":
                entry.cancel()
            else:
                asked.future.cancel()
            assert counts(mc)["pending"] == 1, "its slot stays"
            assert await behind.is_right(behind.ask(mc, style))
            assert await again.is_right(again.ask(mc, style))
            assert asked.outcomes == ([] if style == "callback" else ["cancelled"])
            assert not failures and kept(server, mc) and counts(mc)["pending"] == 0


@pytest.mark.parametrize("size", [0, 900_000])
@pytest.mark.gen_test(timeout=60)
async def test_a_cancelled_get_gives_nobody_the_value_of_somebody_else(memcached, size):
    """The first fault of the field: after a cancelled `get(alice)`, `get(bob)` gave hers."""
    with FaultProxy(memcached.address) as proxy:
        async with Client([proxy.address], request_timeout=FAR, max_connections=1) as mc:
            names = ["alice", "bob", "carol", "dave"]
            stored = {name: fresh(name, size) for name in names}
            assert await mc.set_multi(stored) == []
            for number in range(20):
                proxy.replies.hold = True
                calls = {name: Asked("awaited", mc.get, name) for name in names}
                await asyncio.sleep(0)
                gone = names[number % 4]
                calls[gone].future.cancel()
                calls["again"] = Asked("awaited", mc.get, gone)
                proxy.replies.hold = False
                for name, call in calls.items():
                    if name != gone:
                        key = gone if name == "again" else name
                        assert nonce_of(key, await call.outcome()) == nonce_of(key, stored[key])
                assert calls[gone].outcomes == ["cancelled"]
            assert (proxy.accepted, lost(mc)) == (1, 0)


# -- none by the call's deadline | any | the call ends at once, its slot stays; the connection
#    is late: no new call until it has caught up, closed by one timer request_timeout later,
#    but never before the last live deadline owed on it | Timeout


@every_style
@every_exchange
@pytest.mark.gen_test(timeout=60)
async def test_a_late_connection_takes_no_new_call_until_it_has_caught_up(
    expect_log, time, exchange, style
):
    expect_log(LOG, "fails", times=1)
    other, again, caught_up = Other(), Other(), []
    script = [*WARM, Expect(exchange.request), Until(lambda: caught_up), Send(exchange.reply)]
    async with Scripted(script + again.steps, other.steps) as server:
        async with Client([server.address], request_timeout=FAR) as mc:
            assert await mc.get("warm") is None
            asked = Asked(style, exchange.call, mc)
            await until(lambda: exchange.request in server.received[0])
            time.passes(mc, FAR)
            error = await failure(asked)
            assert type(error) is Timeout and error.phase == "reply"
            assert error.maybe_applied is not exchange.reads
            assert counts(mc)["late"] == 1 and counts(mc)["pending"] >= 1, "its slot stays"

            assert await other.is_right(other.ask(mc, style))
            assert server.connections == 2, "a late connection was used"
            caught_up.append(True)
            await until(lambda: counts(mc)["late"] == 0)
            assert await again.is_right(again.ask(mc, style))
            assert (server.connections, lost(mc)) == (2, 0), "it was not used again"
            assert type(await failure(asked)) is Timeout, "the late reply was seen"


@every_style
@pytest.mark.gen_test(timeout=60)
async def test_a_late_connection_is_closed_by_one_timer_request_timeout_later(
    expect_log, time, style
):
    expect_log(LOG, "fails", times=1)
    async with Scripted([*WARM, Expect(b"get k\r\n")]) as server:
        async with Client([server.address], request_timeout=FAR) as mc:
            assert await mc.get("warm") is None
            asked = Asked(style, mc.get, "k")
            await until(lambda: b"get k" in server.received[0])
            time.passes(mc, FAR)
            await asked.failure(Timeout)
            register = mc._deadlines
            assert (register.armed, len(register)) == (True, 1), "one timer, for one connection"
            time.passes(mc, FAR - 1)
            assert (counts(mc)["late"], counts(mc)["open"]) == (1, 1)
            time.passes(mc, 1)
            assert (counts(mc)["late"], counts(mc)["open"], lost(mc)) == (0, 0, 1)
            await until(lambda: not register.armed)
            assert counts(mc)["pending"] == 0


@every_style
@pytest.mark.parametrize("answered", [True, False])
@pytest.mark.gen_test(timeout=60)
async def test_a_late_connection_is_not_closed_before_the_last_live_deadline_owed_on_it(
    expect_log, time, answered, style
):
    expect_log(LOG, "fails", times=1)
    patient, release = Other(), []
    script = [*WARM, Expect(b"get k\r\ntouch j 0\r\n" + patient.request)]
    script += [Until(lambda: release), Send(b"END\r\nTOUCHED\r\n" + patient.reply)]
    async with Scripted(script) as server:
        async with Client([server.address], request_timeout=FAR) as mc:
            assert await mc.get("warm") is None
            asked = Asked(style, mc.get, "k")
            write = Asked(style, mc.touch, "j", 0, timeout=5 * FAR)
            read = patient.ask(mc, style, timeout=5 * FAR)
            await until(lambda: patient.request in server.received[0])
            for _ in range(4):
                time.passes(mc, FAR)
                await asyncio.sleep(0)
                assert (counts(mc)["late"], counts(mc)["open"]) == (1, 1)
            await asked.failure(Timeout)
            assert not write.outcomes and not read.outcomes
            if answered:
                release.append(True)
                assert await write.outcome() is True and await patient.is_right(read)
                await until(lambda: counts(mc)["late"] == 0)
                assert kept(server, mc)
            else:
                time.passes(mc, FAR)
                # In that moment they time out, and only then it is closed.
                assert (await write.failure(Timeout)).maybe_applied
                assert (await read.failure(Timeout)).phase == "reply"
                assert (counts(mc)["open"], counts(mc)["pending"]) == (0, 0)
                assert server.connections == 1, "what had timed out was asked again"


# -- Order. While a write of a key is unanswered, this client's later calls for that key go
#    on the same connection, even a late one, where they wait under their own deadlines


@every_style
@pytest.mark.parametrize(
    "later", [one for one in EXCHANGES if b" k" in one.request], ids=lambda one: one.name
)
@pytest.mark.gen_test(timeout=60)
async def test_later_calls_for_a_key_with_an_unanswered_write_follow_it(
    expect_log, time, later, style
):
    expect_log(LOG, "fails: set 'k'", times=1)
    other, release = Other(), []
    script = [*WARM, Expect(b"set k 0 0 3\r\nold\r\n"), Expect(later.request)]
    script += [Until(lambda: release), Send(b"STORED\r\n" + later.reply)]
    async with Scripted(script, other.steps) as server:
        async with Client([server.address], request_timeout=FAR) as mc:
            assert await mc.get("warm") is None
            write = Asked(style, mc.set, "k", b"old")
            await until(lambda: b"old" in server.received[0])
            time.passes(mc, FAR)
            assert (await write.failure(Timeout)).maybe_applied
            follows = Asked(style, later.call, mc)
            assert await other.is_right(other.ask(mc, style)), "other keys go elsewhere"
            assert server.connections == 2
            await until(lambda: later.request in server.received[0])
            assert not follows.outcomes
            release.append(True)
            assert shorn(await follows.outcome()) == later.outcome
            assert type(write.only) is Timeout
            assert (server.connections, lost(mc)) == (2, 0)


@every_style
@pytest.mark.parametrize("first", KEYED, ids=lambda one: one.name)
@pytest.mark.gen_test(timeout=60)
async def test_every_write_binds_its_key_while_it_is_unanswered(expect_log, time, first, style):
    expect_log(LOG, "fails", times=1)
    other, after, release = Other(), Other("after"), []
    script = [*WARM, Expect(first.request), Expect(b"get k\r\n")]
    script += [Until(lambda: release), Send(first.reply + b"END\r\n"), *after.steps]
    async with Scripted(script, other.steps) as server:
        async with Client([server.address], request_timeout=FAR) as mc:
            assert await mc.get("warm") is None
            write = Asked(style, first.call, mc)
            await until(lambda: first.request in server.received[0])
            time.passes(mc, FAR)
            assert (await failure(write)).maybe_applied
            follows = Asked(style, mc.get, "k")
            assert await other.is_right(other.ask(mc, style))
            release.append(True)
            assert await follows.outcome() is None
            # Answered, it binds nothing: the first connection is as good as any.
            assert await after.is_right(after.ask(mc, style))
            assert (server.connections, lost(mc)) == (2, 0)


@every_style
@pytest.mark.gen_test(timeout=60)
async def test_a_read_that_is_unanswered_binds_nothing(expect_log, time, style):
    expect_log(LOG, "fails: get 'k'", times=1)
    script = [*WARM, Expect(b"get k\r\n")]
    async with Scripted(script, [Expect(b"set k 0 0 1\r\nv\r\n"), Send(b"STORED\r\n")]) as server:
        async with Client([server.address], request_timeout=FAR) as mc:
            assert await mc.get("warm") is None
            read = Asked(style, mc.get, "k")
            await until(lambda: b"get k" in server.received[0])
            time.passes(mc, FAR)
            await read.failure(Timeout)
            assert await Asked(style, mc.set, "k", b"v").outcome() is True
            assert server.connections == 2


@every_style
@pytest.mark.gen_test(timeout=60)
async def test_a_call_that_follows_a_write_waits_under_its_own_deadline(expect_log, time, style):
    expect_log(LOG, "fails: set 'k'", times=1)
    script = [*WARM, Expect(b"set k 0 0 1\r\nv\r\n"), Expect(b"get k\r\ngets k\r\n")]
    async with Scripted(script) as server:
        async with Client([server.address], request_timeout=FAR) as mc:
            assert await mc.get("warm") is None
            write = Asked(style, mc.set, "k", b"v")
            await until(lambda: b"set k" in server.received[0])
            time.passes(mc, FAR)
            await write.failure(Timeout)
            short = Asked(style, mc.get, "k", timeout=FAR / 4)
            full = Asked(style, mc.gets, "k", timeout=FAR / 2)
            await until(lambda: b"gets k" in server.received[0])
            time.passes(mc, FAR / 4)
            assert (await short.failure(Timeout)).phase == "reply" and not full.outcomes
            time.passes(mc, FAR / 4)
            await full.failure(Timeout)
            assert server.connections == 1


# -- A write that ends before its bytes left is withdrawn and never sent


@every_write
@pytest.mark.gen_test(timeout=60)
async def test_a_write_that_ends_in_the_waiting_line_is_never_sent(expect_log, time, exchange):
    expect_log(LOG, "fails", times=4)
    for end, style in itertools.product(["cancelled", "timed out"], STYLES):
        await ends_in_line(time, exchange, end, style)


async def ends_in_line(time: Time, exchange: Exchange, end: str, style: str) -> None:
    behind, release = Other(), []
    script = [*WARM, Expect(b"get slow\r\n"), Until(lambda: release), Send(b"END\r\n")]
    async with Scripted(script + behind.steps) as server:
        async with Client([server.address], request_timeout=FAR, max_connections=1) as mc:
            assert await mc.get("warm") is None
            slow = Asked(style, mc.get, "slow")
            await until(lambda: b"get slow" in server.received[0])
            time.passes(mc, FAR)
            await slow.failure(Timeout)
            await ends_unsent(mc, time, exchange, end, style)
            assert counts(mc)["late"] == 1
            waits = behind.ask(mc, style)
            assert counts(mc)["waiting"] == 1
            release.append(True)
            assert await behind.is_right(waits)
            assert kept(server, mc)


@every_write
@pytest.mark.gen_test(timeout=60)
async def test_a_write_that_ends_behind_what_the_server_does_not_read_is_never_sent(
    expect_log, time, exchange
):
    expect_log(LOG, "fails", times=2)
    for end, style in itertools.product(["cancelled", "timed out"], STYLES):
        await ends_unread(time, exchange, end, style)


async def ends_unread(time: Time, exchange: Exchange, end: str, style: str) -> None:
    behind, release, big = Other(), [], b"x" * 9_000_000
    script = [*WARM, Expect(b"set big 0 0 %d\r\n" % len(big)), Until(lambda: release)]
    script += [Expect(big + b"\r\n"), Send(b"STORED\r\n"), *behind.steps]
    async with Scripted(script) as server:
        settings = {"max_connections": 1, "max_value_size": len(big), "request_timeout": FAR}
        async with Client([server.address], **settings) as mc:
            assert await mc.get("warm") is None
            large = Asked(style, mc.set, "big", big)
            await until(lambda: b"set big" in server.received[0])
            await ends_unsent(mc, time, exchange, end, style)
            waits = behind.ask(mc, style)
            release.append(True)
            assert await large.outcome() is True
            assert await behind.is_right(waits)
            assert kept(server, mc)


async def ends_unsent(mc: Client, time: Time, exchange: Exchange, end: str, style: str) -> None:
    """Begins a call that cannot be sent now, and ends it."""
    if end == "timed out":
        write = Asked(style, exchange.call, mc, timeout=FAR / 4)
        time.passes(mc, FAR / 4)
        error = await failure(write)
        assert type(error) is Timeout and error.phase in ("waiting", "writing")
        assert not error.maybe_applied
        return
    with boundary(pytest.fail) as entry:
        write = Asked(style, exchange.call, mc)
    if style == "callback":
        entry.cancel()
    else:
        write.future.cancel()
        await write.outcome()


# -- The rule holds for calls leaving the waiting line too


@every_style
@pytest.mark.gen_test(timeout=60)
async def test_calls_that_leave_the_waiting_line_follow_the_write_before_them(style):
    """A large write waits for a third connection. What is behind it may not pass it by."""
    big, large = b"x" * 100_000, fresh("k", 100_000)
    other, release = Other(), []
    first = [Expect(b"set big 0 0 %d\r\n%b\r\n" % (len(big), big))]
    second = [*[Expect(b"get slow\r\n")], *other.steps[:1], Until(lambda: release)]
    second += [Send(b"END\r\n"), *other.steps[1:]]
    third = [Expect(b"set k 0 0 %d\r\n%b\r\nget k\r\nget k j\r\n" % (len(large), large))]
    item = b"VALUE k 0 %d\r\n%b\r\nEND\r\n" % (len(large), large)
    third += [Until(lambda: release), Send(b"STORED\r\n" + item + item)]
    async with Scripted(first, second, third) as server:
        async with Client([server.address], request_timeout=FAR, max_connections=3) as mc:
            begun = Asked(style, mc.set, "big", big)
            await until(lambda: len(server.received) == 1 and server.received[0].endswith(b"x\r\n"))
            slow = Asked(style, mc.get, "slow")
            await until(lambda: len(server.received) == 2 and server.received[1])
            write, read = Asked(style, mc.set, "k", large), Asked(style, mc.get, "k")
            many, elsewhere = Asked(style, mc.get_multi, ["k", "j"]), other.ask(mc, style)
            assert counts(mc)["waiting"] == 4
            await until(lambda: len(server.received) == 3 and b"get k j" in server.received[2])
            await until(lambda: other.request in server.received[1])
            release.append(True)
            assert await write.outcome() is True and await slow.outcome() is None
            assert nonce_of("k", await read.outcome()) == nonce_of("k", large)
            assert nonce_of("k", (await many.outcome())["k"]) == nonce_of("k", large)
            assert await other.is_right(elsewhere)
            assert not begun.outcomes and server.connections == 3


# -- Order holds per key: a read is never older than an earlier write of this client


@every_style
@pytest.mark.gen_test(timeout=60)
async def test_a_read_is_never_older_than_an_earlier_write_of_this_client(memcached, style):
    """Small and large, alone and with many, on as many connections as it likes."""
    dice = random.Random(7)
    keys = [f"k{n}" for n in range(6)]
    newest = dict.fromkeys(keys, 0)
    async with Client([memcached.address], request_timeout=FAR) as mc:
        for key in keys:
            await mc.delete(key)
        for _ in range(60):
            reads: list[tuple[dict[str, int], Asked]] = []
            writes = []
            for _ in range(dice.randrange(1, 25)):
                key = dice.choice(keys)
                some = dice.sample(keys, 3)
                kind = dice.randrange(5)
                if kind < 2:
                    value = fresh(key, dice.choice([0, 0, 1000, 70_000, 200_000]))
                    newest[key] = nonce_of(key, value)
                    writes.append(Asked(style, mc.set, key, value))
                elif kind == 2:
                    reads.append(
                        ({one: newest[one] for one in some}, Asked(style, mc.get_multi, some))
                    )
                elif kind == 3:
                    reads.append(({key: newest[key]}, Asked(style, mc.gets, key)))
                else:
                    reads.append(({key: newest[key]}, Asked(style, mc.get, key)))
            for oldest, read in reads:
                found = await read.outcome()
                if not isinstance(found, dict):
                    (key,) = oldest
                    found = {key: found[0] if isinstance(found, tuple) else found}
                for key, nonce in oldest.items():
                    seen = nonce_of(key, found[key]) if found.get(key) is not None else 0
                    assert seen >= nonce, "a read was older than an earlier write"
            for write in writes:
                assert await write.outcome() is True
        assert lost(mc) == 0


# -- Retry. Once, on a new connection, within the same deadline, only if a reused connection
#    closed before any byte of the reply: get, gets, get_multi, version, stats


ENDS = {"FIN": Close(), "RST": Reset()}
every_end = pytest.mark.parametrize("end", ENDS)


def test_what_is_tried_again_are_these():
    assert {one.name for one in READS} == {
        "get", "gets", "get_multi", "gets_multi", "version", "stats",
        "meta_get", "meta_get_multi", "debug", "meta_noop",
    }  # fmt: skip


@every_style
@every_end
@every_read
@pytest.mark.gen_test(timeout=60)
async def test_what_only_reads_is_tried_again_on_a_new_connection(exchange, end, style):
    again = [Expect(exchange.request), Send(exchange.reply)]
    async with Scripted([*WARM, Expect(exchange.request), ENDS[end]], again) as server:
        async with Client([server.address], request_timeout=FAR) as mc:
            assert await mc.get("warm") is None
            outcome = await Asked(style, exchange.call, mc).outcome()
            assert shorn(outcome) == exchange.outcome
            assert (server.connections, lost(mc)) == (2, 1)


@every_style
@every_end
@every_read
@pytest.mark.gen_test(timeout=60)
async def test_it_is_tried_again_once(expect_log, exchange, end, style):
    expect_log(LOG, "fails|dead", times=1)
    cut = [Expect(exchange.request), ENDS[end]]
    async with Scripted([*WARM, *cut], cut, [Expect(exchange.request)]) as server:
        async with Client([server.address], request_timeout=FAR) as mc:
            assert await mc.get("warm") is None
            error = await failure(Asked(style, exchange.call, mc))
            assert type(error) is ConnectionFailed and not error.maybe_applied
            assert server.connections == 2


@every_style
@every_end
@every_read
@pytest.mark.parametrize("missing", ["all but a byte", "the last line"])
@pytest.mark.gen_test(timeout=60)
async def test_nothing_is_tried_again_once_a_byte_of_its_reply_came(
    expect_log, monkeypatch, exchange, end, missing, style
):
    expect_log(LOG, "fails", times=1)
    heard = hand_overs(monkeypatch)
    # (without its END an item is whole, and nothing of the reply waits to be read)
    came = exchange.reply[: 1 if missing == "all but a byte" else -len(b"END\r\n")]
    came = came or exchange.reply[:-1]
    script = [*WARM, Expect(exchange.request), Send(came)]
    script += [Until(lambda: len(heard) == 2), ENDS[end]]
    async with Scripted(script, [Expect(exchange.request)]) as server:
        async with Client([server.address], request_timeout=FAR) as mc:
            assert await mc.get("warm") is None
            error = await failure(Asked(style, exchange.call, mc))
            assert type(error) is ConnectionFailed
            assert server.connections == 1


@every_style
@every_read
@pytest.mark.gen_test(timeout=60)
async def test_it_is_tried_again_within_the_same_deadline(expect_log, time, exchange, style):
    expect_log(LOG, "fails", times=1)
    cut: list[bool] = []
    first = [*WARM, Expect(exchange.request), Until(lambda: cut), Close()]
    async with Scripted(first, [Expect(exchange.request)]) as server:
        async with Client([server.address], request_timeout=FAR) as mc:
            assert await mc.get("warm") is None
            asked = Asked(style, exchange.call, mc)
            await until(lambda: exchange.request in server.received[0])
            time.passes(mc, FAR * 0.75)
            cut.append(True)
            await until(lambda: server.connections == 2 and exchange.request in server.received[1])
            assert not asked.outcomes
            time.passes(mc, FAR * 0.25)
            assert type(await failure(asked)) is Timeout


@every_style
@pytest.mark.gen_test(timeout=60)
async def test_every_caller_of_a_gathered_line_is_tried_again(style):
    values = {key: fresh(key) for key in "bc"}
    item = b"".join(b"VALUE %b 0 %d\r\n%b\r\n" % (key.encode(), len(value), value)
                    for key, value in values.items())  # fmt: skip
    line = Expect(b"get a\r\nget b c d\r\n")
    async with Scripted(
        [*WARM, line, Close()], [line, Send(b"END\r\n" + item + b"END\r\n")]
    ) as server:
        async with Client([server.address], request_timeout=FAR) as mc:
            assert await mc.get("warm") is None
            asked = [(key, Asked(style, mc.get, key)) for key in "abcbd"]
            for key, one in asked:
                found = await one.outcome()
                if key in values:
                    assert nonce_of(key, found) == nonce_of(key, values[key])
                else:
                    assert found is None
            assert server.connections == 2


@every_end
@pytest.mark.gen_test(timeout=60)
async def test_what_nobody_waits_for_any_more_is_not_tried_again(end):
    cut: list[bool] = []
    line = Expect(b"get a\r\nget b c\r\n")
    async with Scripted([*WARM, line, Until(lambda: cut), ENDS[end]], [line]) as server:
        async with Client([server.address], request_timeout=FAR) as mc:
            assert await mc.get("warm") is None
            asked = [Asked("awaited", mc.get, key) for key in "abcb"]
            await until(lambda: b"get b c" in server.received[0])
            for one in asked:
                one.future.cancel()
            cut.append(True)
            await until(lambda: lost(mc) == 1)
            assert (counts(mc)["open"], counts(mc)["waiting"], counts(mc)["pending"]) == (0, 0, 0)
            assert [one.outcomes for one in asked] == [["cancelled"]] * 4
            assert server.connections == 1


# -- A write only if no byte of it was sent. All else: ConnectionFailed with maybe_applied


@every_style
@every_end
@every_write
@pytest.mark.gen_test(timeout=60)
async def test_no_write_is_tried_again_once_a_byte_left(expect_log, exchange, end, style):
    expect_log(LOG, "fails", times=1)
    again = Other()
    async with Scripted([*WARM, Expect(exchange.request), ENDS[end]], again.steps) as server:
        async with Client([server.address], request_timeout=FAR) as mc:
            assert await mc.get("warm") is None
            error = await failure(Asked(style, exchange.call, mc))
            assert type(error) is ConnectionFailed and error.maybe_applied
            assert "may have taken effect" in str(error)
            assert server.connections == 1
            assert await again.is_right(again.ask(mc, style))
            assert server.received[1] == again.request


@every_style
@every_write
@pytest.mark.gen_test(timeout=60)
async def test_a_write_of_which_no_byte_was_sent_is_sent_on_a_new_connection(
    expect_log, exchange, style
):
    expect_log(LOG, "fails: set 'big'", times=1)
    big = b"x" * 9_000_000
    script = [*WARM, Expect(b"set big 0 0 %d\r\n" % len(big)), Reset()]
    async with Scripted(script, [Expect(exchange.request), Send(exchange.reply)]) as server:
        settings = {"max_connections": 1, "max_value_size": len(big), "request_timeout": FAR}
        async with Client([server.address], **settings) as mc:
            assert await mc.get("warm") is None
            large, asked = Asked(style, mc.set, "big", big), Asked(style, exchange.call, mc)
            assert (await large.failure(ConnectionFailed)).maybe_applied
            assert shorn(await asked.outcome()) == exchange.outcome
            assert (server.connections, server.received[1]) == (2, exchange.request)


# -- Death is judged per silence, not per call


def dead(mc: Client) -> bool:
    (pool,) = mc._pools
    return pool.health.dead


def has_left(mc: Client) -> bool:
    """True if what was asked is on its way: the deadline of a line runs from when it leaves."""
    (pool,) = mc._pools
    return not any(one.connecting or one._outbox for one in pool._connections)


async def silence(mc: Client, time: Time, number: int = 20) -> None:
    """Has ``number`` calls time out together."""
    asked = [Asked(STYLES[n % 2], mc.get, f"k{n}") for n in range(number)]
    await until(lambda: has_left(mc))
    time.passes(mc, FAR)
    for one in asked:
        await one.failure(Timeout)


@pytest.mark.gen_test(timeout=60)
async def test_timeouts_with_no_byte_between_them_count_once(expect_log, time):
    expect_log(LOG, "fails|dead", times=2)
    async with Scripted([]) as server:
        async with Client([server.address], request_timeout=FAR) as mc:
            for number in range(1, 4):
                await silence(mc, time)
                assert dead(mc) is (number == 3)
            connections = server.connections
            for n in range(40):
                await Asked(STYLES[n % 2], mc.get, "k").failure(ServerDead)
            assert server.connections == connections, "the dead are not asked"


@every_style
@pytest.mark.gen_test(timeout=60)
async def test_a_call_with_a_shorter_timeout_never_counts_and_makes_nothing_late(
    expect_log, time, style
):
    """But its slot does, by request_timeout alone: a stalled connection is always noticed."""
    expect_log(LOG, "fails", times=1)
    async with Scripted(WARM) as server:
        async with Client([server.address], request_timeout=FAR) as mc:
            assert await mc.get("warm") is None
            for _ in range(9):
                asked = Asked(style, mc.get, "k", timeout=FAR / 10)
                await asyncio.sleep(0)
                time.passes(mc, FAR / 10)
                await asked.failure(Timeout)
                assert counts(mc)["late"] == 0
            time.passes(mc, FAR / 10)
            assert counts(mc)["late"] == 1 and not dead(mc)
            assert server.connections == 1


@every_style
@pytest.mark.gen_test(timeout=60)
async def test_the_slot_of_a_cancelled_call_makes_its_connection_late(time, style):
    """And is no failed call in the log: its caller went away before it failed."""
    again = Other()
    async with Scripted(WARM, again.steps) as server:
        async with Client([server.address], request_timeout=FAR) as mc:
            assert await mc.get("warm") is None
            with boundary(pytest.fail) as entry:
                asked = Asked(style, mc.get, "k")
            await asyncio.sleep(0)
            entry.cancel()
            time.passes(mc, FAR)
            assert counts(mc)["late"] == 1
            assert await again.is_right(again.ask(mc, style))
            assert server.connections == 2 and asked.outcomes in ([], ["cancelled"])


@every_style
@pytest.mark.gen_test(timeout=60)
async def test_any_byte_a_late_reply_included_sets_the_count_to_0(expect_log, time, style):
    expect_log(LOG, "fails|dead", times=range(1, 4))
    late: list[bool] = []
    script = [*WARM, Expect(b"gets k\r\n"), Until(lambda: late), Send(b"END\r\n")]
    async with Scripted(script, []) as server:
        async with Client([server.address], request_timeout=FAR) as mc:
            assert await mc.get("warm") is None
            asked = Asked(style, mc.gets, "k", timeout=9 * FAR)
            await until(lambda: b"gets k" in server.received[0])
            time.passes(mc, FAR)
            assert counts(mc)["late"] == 1  # (one silence)
            await silence(mc, time)
            assert not dead(mc)  # (two)
            late.append(True)
            assert await asked.outcome() == (None, None)
            script[:] = []
            for _ in range(2):
                await silence(mc, time)
                assert not dead(mc), "the late reply did not count"
            await silence(mc, time)
            assert dead(mc)


@every_style
@pytest.mark.parametrize("ends", ["connect_timeout", "request_timeout"])
@pytest.mark.gen_test(timeout=60)
async def test_connect_timeouts_count_one_each(expect_log, time, ends, style):
    """One each, however many calls waited for the connection."""
    expect_log(LOG, "fails|dead", times=2)
    connect_timeout = {"connect_timeout": FAR / 2, "request_timeout": FAR}[ends]
    with full_backlog() as (host, port):
        settings = {"request_timeout": FAR, "connect_timeout": connect_timeout}
        async with Client([f"{host}:{port}"], **settings) as mc:
            for number in range(1, 4):
                asked = [Asked(style, mc.get, f"k{n}") for n in range(20)]
                asked += [Asked(style, mc.set, f"k{n}", b"v") for n in range(20)]
                assert counts(mc)["connecting"] == counts(mc)["open"] == 1
                time.passes(mc, connect_timeout)
                for one in asked:
                    error = await one.failure(Timeout)
                    assert error.phase == "connecting" and not error.maybe_applied
                assert dead(mc) is (number == 3)
            await Asked(style, mc.get, "k").failure(ServerDead)


@every_style
@pytest.mark.gen_test(timeout=60)
async def test_a_connect_that_outlives_some_of_its_waiters_counts_one(expect_log, time, style):
    """The first waiter ends in line in the moment in which the connect ends too."""
    expect_log(LOG, "fails", times=1)
    with full_backlog() as (host, port):
        settings = {"request_timeout": FAR, "connect_timeout": FAR, "silences_until_dead": 2}
        async with Client([f"{host}:{port}"], **settings) as mc:
            first = Asked(style, mc.get, "a")
            time.passes(mc, FAR / 4)
            second = Asked(style, mc.get, "b")
            time.passes(mc, 3 * FAR / 4)
            for one in (first, second):
                assert (await one.failure(Timeout)).phase == "connecting"
            assert not dead(mc)


@every_style
@pytest.mark.gen_test(timeout=60)
async def test_a_refused_connection_counts_at_once(start_memcached, expect_log, time, style):
    expect_log(LOG, "taken for dead", times=1)
    server = start_memcached()
    server.kill()
    async with Client([server.address], request_timeout=FAR) as mc:
        await Asked(style, mc.get, "k").failure(ConnectionFailed)
        await Asked(style, mc.get, "k").failure(ServerDead)


# -- A dead server is tried again after 0.25 s, then doubling with jitter up to dead_retry. No
#    timer drives it: the first call after the pause opens the connection


@pytest.mark.gen_test(timeout=60)
async def test_the_pauses_of_a_dead_server_double_with_jitter_up_to_dead_retry(
    start_memcached, expect_log, time
):
    expect_log(LOG, "taken for dead", times=1)
    server = start_memcached()
    server.kill()
    step, now, tried = 0.02, 0.0, []
    async with Client([server.address], dead_retry=3.0, request_timeout=FAR) as mc:
        while len(tried) < 7:
            outcome = await Asked("awaited", mc.get, "k").outcome()
            if type(outcome) is ConnectionFailed:
                tried.append(now)
            else:
                assert type(outcome) is ServerDead
            time.passes(mc, step)
            now += step
        pauses = [after - before for before, after in zip(tried, tried[1:])]
        for pause, due in zip(pauses, [0.25, 0.5, 0.9, 0.9, 1.8, 3.0]):
            assert 0.9 * due - 2 * step <= pause <= due + 2 * step


@pytest.mark.gen_test(timeout=60)
async def test_no_timer_drives_it(start_memcached, expect_log, time):
    expect_log(LOG, "taken for dead", times=1)
    server = start_memcached()
    server.kill()
    async with Client([server.address], request_timeout=FAR) as mc:
        await Asked("awaited", mc.get, "k").failure(ConnectionFailed)
        await until(lambda: not mc._deadlines.armed)
        server.restart()
        before = int(server.stats()["total_connections"])
        time.passes(mc, 1000.0)
        for _ in range(20):
            await asyncio.sleep(0.001)
        assert not mc._deadlines.armed and dead(mc)
        assert int(server.stats()["total_connections"]) == before + 1, "but that of the question"
        assert await mc.get("k") is None
        assert not dead(mc)


# -- and is the probe, decided by its first reply (a stopped server still accepts); the others
#    get ServerDead meanwhile


@every_style
@pytest.mark.gen_test(timeout=60)
async def test_the_first_call_after_the_pause_is_the_probe_and_its_reply_decides(
    start_memcached, expect_log, time, style
):
    expect_log(LOG, "fails|dead", times=range(1, 4))
    server = start_memcached()
    async with Client([server.address], request_timeout=FAR) as mc:
        value = fresh("k")
        assert await mc.set("k", value) is True
        server.stop()
        for _ in range(3):
            await silence(mc, time, 2)
        assert dead(mc)
        for pause in (0.25, 0.5):
            await Asked(style, mc.get, "k").failure(ServerDead)
            time.passes(mc, pause)
            probe, others = Asked(style, mc.get, "k"), [Asked(style, mc.get, "k") for _ in range(9)]
            for one in others:
                await one.failure(ServerDead)
            await until(lambda: has_left(mc))
            assert dead(mc) and not probe.outcomes, "that it accepts decides nothing"
            time.passes(mc, FAR)
            await probe.failure(Timeout)
        server.resume()
        time.passes(mc, 1.0)
        probe, others = Asked(style, mc.get, "k"), [Asked(style, mc.get, "k") for _ in range(9)]
        assert nonce_of("k", await probe.outcome()) == nonce_of("k", value)
        for one in others:
            await one.failure(ServerDead)
        assert not dead(mc)
        for one in [Asked(style, mc.get, "k") for _ in range(9)]:
            assert nonce_of("k", await one.outcome()) == nonce_of("k", value)
