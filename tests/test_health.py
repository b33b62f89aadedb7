"""When a server is taken for dead, when it is tried again, and what the log says of it.

The moments are handed in, so nothing here waits; only the last tests ask a
real server.
"""

from __future__ import annotations

import asyncio
import logging
import random
from collections.abc import Callable
from typing import Any

import pytest

from tornado_memcache import Client, ConnectionFailed, MemcacheError, ServerDead, Timeout
from tornado_memcache.health import FIRST_PAUSE, QUIET, Health

from .memcacheds import Memcached

WHY = Timeout("timed out")
NO = ConnectionFailed("refused")


@pytest.fixture(autouse=True)
def no_jitter(monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest) -> None:
    if "jitter" not in request.node.name:
        monkeypatch.setattr(random, "uniform", lambda low, high: high)


@pytest.fixture
def lines(expect_log: Callable[..., Any]) -> Callable[[], list[str]]:
    """Returns what the log has said of servers so far."""
    log = expect_log("tornado_memcache", "", level=logging.INFO, times=range(1000))
    return lambda: [record.getMessage() for record in log.records]


def told(error: Exception | None) -> tuple[type, str]:
    """Returns what an error tells: a dead server keeps one like it, and not the caller's own."""
    return type(error), str(error)


def health(dead_retry: float = 30.0, silences: int = 3) -> Health:
    return Health("h:1", dead_retry, silences)


# -- death


def test_a_dead_server_keeps_no_caller_s_error(lines: Any) -> None:
    one, met = health(silences=1), Timeout("timed out")
    one.silence(0.0, 1.0, met)
    try:
        raise met
    except Timeout:
        assert met.__traceback__ is not None
    assert one.dead and one.why is not None and one.why.__traceback__ is None
    assert told(one.why) == told(met)


def test_silences_and_not_calls_are_counted(lines: Any) -> None:
    one = health()
    for _ in range(1000):  # a thousand calls that were made before the first one timed out
        one.silence(0.0, 1.0, WHY)
    assert not one.dead and one._silences == 1
    one.silence(0.999, 1.5, WHY)
    assert one._silences == 1, "it was asked before the last silence ended"
    one.silence(1.0, 2.0, WHY)
    one.silence(1.4, 2.0, WHY)
    assert not one.dead
    one.silence(2.0, 3.0, WHY)
    assert one.dead and told(one.why) == told(WHY) and one.dead_until == 3.0 + FIRST_PAUSE


@pytest.mark.parametrize("silences", [1, 2, 5])
def test_how_many_silences_is_a_setting(lines: Any, silences: int) -> None:
    one = health(silences=silences)
    for number in range(silences):
        assert not one.dead
        one.silence(float(number), number + 1.0, WHY)
    assert one.dead


def test_any_byte_takes_the_silences_back(lines: Any) -> None:
    one = health()
    for number in range(10):
        one.silence(number, number + 0.9, WHY)
        one.silence(number + 0.9, number + 0.95, WHY)
        assert one.heard(number + 0.96) is False
    assert not one.dead and one._silences == 0 and not one.troubled
    one.silence(5.0, 20.0, WHY)
    assert one._silences == 1, "the first silence counts, whenever it was asked"


def test_a_refusal_counts_at_once(lines: Any) -> None:
    one = health()
    one.refused(1.0, NO)
    assert one.dead and told(one.why) == told(NO) and one.dead_until == 1.0 + FIRST_PAUSE
    one.refused(1.1, NO)
    assert one.dead_until == 1.0 + FIRST_PAUSE, "the dead do not die again"


def test_silences_of_the_dead_count_no_more(lines: Any) -> None:
    one = health()
    one.refused(1.0, NO)
    for number in range(10):
        one.silence(1.0 + number, 2.0 + number, WHY)
    assert one.dead_until == 1.0 + FIRST_PAUSE


# -- pauses and probes


def test_the_pause_doubles_up_to_dead_retry(lines: Any) -> None:
    one, now, pauses = health(dead_retry=3.0), 100.0, []
    for _ in range(7):
        if one.dead:
            one.probing = True
        one.refused(now, NO)
        pauses.append(one.dead_until - now)
        assert not one.probing
        now = one.dead_until
    assert pauses == pytest.approx([0.25, 0.5, 0.9, 0.9, 1.8, 3.0, 3.0])


def test_a_probe_may_fail_by_silence_too(lines: Any) -> None:
    one = health()
    one.refused(0.0, NO)
    one.probing = True
    one.silence(0.3, 1.3, WHY)
    assert one.dead and not one.probing and one.dead_until == 1.3 + 2 * FIRST_PAUSE
    assert told(one.why) == told(WHY)


def test_a_short_dead_retry_is_the_pause(lines: Any) -> None:
    one = health(dead_retry=0.05)
    one.refused(0.0, NO)
    assert one.dead_until == 0.05


def test_one_call_at_a_time_finds_out(lines: Any) -> None:
    one = health()
    one.refused(0.0, NO)
    assert not one.may_probe(FIRST_PAUSE - 0.001)
    assert one.may_probe(FIRST_PAUSE)
    one.probing = True
    assert not one.may_probe(FIRST_PAUSE + 100)
    assert one.heard(1.0) is True
    assert not one.dead and not one.probing and one.heard(1.1) is False


def test_after_an_answer_the_pauses_begin_again(lines: Any) -> None:
    one = health()
    one.refused(0.0, NO)
    one.probing = True
    one.refused(1.0, NO)
    one.heard(2.0)
    one.refused(3.0, NO)
    assert one.dead_until == 3.0 + FIRST_PAUSE


def test_retry_now_lifts_the_pause(lines: Any) -> None:
    one = health()
    one.refused(0.0, NO)
    one.retry_now()
    assert one.may_probe(0.0) and one.dead


def test_pauses_have_jitter(lines: Any) -> None:
    pauses = set()
    for _ in range(50):
        one = health()
        one.refused(0.0, NO)
        pauses.add(one.dead_until)
    assert len(pauses) > 10
    assert 0.9 * FIRST_PAUSE <= min(pauses) and max(pauses) <= FIRST_PAUSE


# -- the log


def test_one_line_for_each_change(lines: Any) -> None:
    one = health()
    for number in range(500):
        one.failed(1.0 + number / 1000, WHY)
        one.silence(1.0 + number, 2.0 + number, WHY)
    assert len(lines()) == 2 and one.dead
    assert "h:1 fails: timed out" in lines()[0] and "counted, not logged" in lines()[0]
    assert "h:1 is taken for dead: timed out" in lines()[1]
    for number in range(50):
        one.probing = True
        one.refused(600.0 + number, NO)
        one.failed(600.0 + number, ServerDead("dead"), calls=2)
    assert len(lines()) == 2 and one.failures == 600
    one.heard(701.0)
    one.heard(702.0)
    assert len(lines()) == 3 and not one.troubled
    assert "h:1 answers again, after 600 failed calls in 700.0 s" in lines()[2]


def test_a_death_without_a_failed_call_is_one_line(lines: Any) -> None:
    one = health()
    one.refused(1.0, NO)
    one.failed(1.0, NO, calls=7)
    assert len(lines()) == 1 and "dead" in lines()[0]
    one.heard(3.0)
    assert "after 7 failed calls in 2.0 s" in lines()[1]


def test_who_was_refused_and_is_told_after_it_came_back_is_no_new_failure(lines: Any) -> None:
    one = health()
    one.refused(1.0, NO)
    one.heard(2.0)
    one.failed(2.0, ServerDead("dead"), calls=3)
    assert one.failures == 3 and not one.troubled and repr(one) == "alive"
    assert len(lines()) == 2 and "answers again" in lines()[1]


def test_failures_among_good_replies_are_one_line(lines: Any) -> None:
    one, now = health(), 1.0
    for _ in range(100):
        one.failed(now, WHY)
        one.heard(now + 0.01)
        now += 0.1
    assert len(lines()) == 1 and one.troubled and not one.dead
    one.heard(now + QUIET)
    assert len(lines()) == 2 and "after 100 failed calls" in lines()[1]
    one.failed(now + 10, WHY)
    one.heard(now + 10 + QUIET)
    assert len(lines()) == 4 and "after 1 failed calls in 1.0 s" in lines()[3]


def test_a_server_that_is_well_is_no_news(lines: Any) -> None:
    one = health()
    for number in range(100):
        assert one.heard(float(number)) is False
    assert lines() == [] and not one.troubled


def test_what_it_says_of_itself(lines: Any) -> None:
    one = health()
    assert repr(one) == "alive"
    one.failed(0.0, WHY)
    assert repr(one) == "failing"
    one.refused(0.0, NO)
    assert repr(one) == "dead: refused"
    one.probing = True
    assert repr(one) == "probing"


# -- with a real server


async def outcome_of(future: Any) -> Any:
    try:
        return await future
    except MemcacheError as error:
        return error


@pytest.mark.gen_test
async def test_a_stopped_server_dies_of_three_silences_and_comes_back(
    start_memcached: Callable[..., Memcached], lines: Any
) -> None:
    server = start_memcached()
    async with Client([server.address], request_timeout=0.05, max_connections=4) as mc:
        await mc.set("k", "v")
        server.stop()
        for silence in range(3):
            calls = [outcome_of(mc.get("k")) for _ in range(50)]
            kinds = {type(outcome) for outcome in await asyncio.gather(*calls)}
            assert kinds == {Timeout}, f"in silence {silence}"
        health = mc._pools[0].health
        assert health.dead and not health.probing
        connections = mc._pools[0].counts()["open"]
        assert {type(await outcome_of(mc.get("k"))) for _ in range(50)} == {ServerDead}
        assert mc._pools[0].counts()["open"] == connections, "the dead are not asked"
        await asyncio.sleep(max(0.0, FIRST_PAUSE))
        # Its pause is over: the first call finds out, the others do not wait for it.
        outcomes = await asyncio.gather(*[outcome_of(mc.set("k", n)) for n in range(5)])
        assert [type(outcome) for outcome in outcomes] == [Timeout] + [ServerDead] * 4
        assert health.dead and 0.4 < health._pause <= 0.5
        server.resume()
        await asyncio.sleep(0.5)
        outcomes = await asyncio.gather(*[outcome_of(mc.get("k")) for _ in range(5)])
        assert not isinstance(outcomes[0], MemcacheError) and not health.dead
        assert not isinstance(await mc.get("k"), MemcacheError)
    said = [line for line in lines() if "again" not in line]
    assert len(said) == 2 and len(lines()) <= 3


@pytest.mark.gen_test
async def test_a_server_that_comes_back_has_exactly_one_probe(
    start_memcached: Callable[..., Memcached], lines: Any
) -> None:
    server = start_memcached()
    async with Client([server.address], dead_retry=0.05) as mc:
        await mc.set("k", "v")
        server.kill()
        await asyncio.sleep(0.01)
        assert isinstance(await outcome_of(mc.get("k")), ConnectionFailed)
        server.restart()
        before = int(server.stats()["total_connections"])
        await asyncio.sleep(0.05)
        outcomes = await asyncio.gather(*[outcome_of(mc.set("k", "w")) for _ in range(100)])
        assert outcomes[0] is True
        assert {type(outcome) for outcome in outcomes[1:]} == {ServerDead}
        assert await asyncio.gather(*[mc.get("k") for _ in range(100)]) == ["w"] * 100
        assert int(server.stats()["total_connections"]) - before == 2  # (one is stats' own)
    assert [line for line in lines() if "answers again" in line] != []
    assert len(lines()) == 2


@pytest.mark.gen_test
async def test_a_short_timeout_of_a_call_kills_nobody(
    start_memcached: Callable[..., Memcached], lines: Any
) -> None:
    server = start_memcached()
    async with Client([server.address], request_timeout=1.0) as mc:
        await mc.set("k", "v")
        server.stop()
        for _ in range(6):
            assert isinstance(await outcome_of(mc.get("k", timeout=0.01)), Timeout)
        assert not mc._pools[0].health.dead and mc._pools[0].health._silences == 0
        server.resume()
        assert await mc.get("k") == "v"


@pytest.mark.gen_test
@pytest.mark.parametrize("turns", range(6))
@pytest.mark.parametrize("max_connections", [1, 4])
@pytest.mark.parametrize("verb", ["get", "set", "get_multi"])
async def test_a_probe_that_is_cancelled_leaves_the_next_call_to_find_out(
    start_memcached: Callable[..., Memcached],
    lines: Any,
    verb: str,
    max_connections: int,
    turns: int,
) -> None:
    settings: dict[str, Any] = {"dead_retry": 0.01, "max_connections": max_connections}
    server = start_memcached()
    async with Client([server.address], request_timeout=0.05, **settings) as mc:
        server.kill()
        assert isinstance(await outcome_of(mc.get("k")), ConnectionFailed)
        server.restart()
        await asyncio.sleep(0.01)
        probe = {
            "get": lambda: mc.get("k"),
            "set": lambda: mc.set("k", 1),
            "get_multi": lambda: mc.get_multi(["k"]),
        }[verb]()
        for _ in range(turns):
            await asyncio.sleep(0)
        probe.cancel()
        for _ in range(20):  # (a call or two may still be told of the death)
            await asyncio.sleep(0.011)
            if not isinstance(await outcome_of(mc.get("k")), MemcacheError):
                break
        else:
            pytest.fail(f"dead for ever: {mc!r}")
        assert not mc._pools[0].health.dead and not mc._pools[0].health.probing


def test_a_connection_for_nobody_that_was_not_made_is_told_and_decides_nothing(expect_log):
    expect_log("tornado_memcache", "server: no connection is kept warm: refused", times=1)
    health = Health("server", 30.0, 3)
    health.not_warmed(ConnectionFailed("refused"))
    assert not (health.dead or health.troubled or health.failures)
