"""Each sentence that the design says of boundaries and outcomes, shown.

The failures are real: ``incr`` of a text is refused by memcached with a
client error, which leaves the server well; a port on which nobody listens
refuses; a `Silent` never answers.
"""

from __future__ import annotations

import asyncio
import contextlib
import functools
import logging
import sys
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from contextvars import ContextVar
from datetime import timedelta
from typing import Any

import pytest
from tornado.httpclient import AsyncHTTPClient, HTTPClientError
from tornado.httpserver import HTTPServer
from tornado.ioloop import IOLoop
from tornado.testing import bind_unused_port
from tornado.web import Application, RequestHandler

from tornado_memcache import (
    Client,
    ClientClosed,
    ClientError,
    ConnectionFailed,
    InvalidKey,
    InvalidRequest,
    MemcacheError,
    ServerDead,
    Timeout,
    boundary,
)
from tornado_memcache.boundaries import current

from .asked import until
from .memcacheds import Memcached, free_port
from .silent import Silent

who: ContextVar[str] = ContextVar("who", default="nobody")

#: Seconds that a loaded machine may be late (I2).
SLACK = 0.25


async def quiet() -> None:
    """Lets whatever might still come, come."""
    await asyncio.sleep(0.02)


@asynccontextmanager
async def well(memcached: Memcached, **settings: Any) -> AsyncIterator[Client]:
    """A warm client on which ``incr("text")`` fails and ``get("text")`` is "abc"."""
    async with Client([memcached.address], **settings) as mc:
        await mc.set("text", "abc")
        yield mc


def unreachable(**settings: Any) -> Client:
    """A client whose server refuses."""
    return Client([f"127.0.0.1:{free_port()}"], **settings)


@pytest.fixture
def outage(expect_log: Callable[..., Any]) -> Any:
    """Declares the one or two lines that an outage of one server is worth."""
    return expect_log("tornado_memcache", r"fails|is taken for dead", times=range(3))


def no_failure(error: BaseException) -> None:
    raise AssertionError(f"{error!r} reached this boundary")


# -- a failure of any call begun under it, at any depth


@pytest.mark.gen_test
async def test_a_failure_at_any_depth_of_callbacks_reaches_it(memcached: Memcached) -> None:
    failures: list[Any] = []
    async with well(memcached) as mc:

        def first(value: Any) -> None:
            mc.get("text", callback=second)

        async def second(value: Any) -> None:
            await asyncio.sleep(0.001)
            mc.set("other", value, callback=third)

        def third(stored: Any) -> None:
            IOLoop.current().add_callback(fourth)

        def fourth() -> None:
            mc.incr("text")

        with boundary(failures.append):
            mc.get("text", callback=first)
        assert current() is None
        await until(lambda: failures)
        await quiet()
    (error,) = failures
    assert isinstance(error, ClientError)


@pytest.mark.gen_test
async def test_an_error_carries_its_server(memcached: Memcached, outage: Any) -> None:
    async with well(memcached) as mc, unreachable() as dead:
        refused = await outcome_of(dead.get("a"))
        assert refused.server == dead.servers[0].name and not refused.connection_survives
        assert (await outcome_of(dead.get("a"))).server == dead.servers[0].name
        error = await outcome_of(mc.incr("text"))
        assert error.connection_survives
        assert error.server == memcached.address


@pytest.mark.gen_test
async def test_every_failure_is_delivered_once_each(memcached: Memcached) -> None:
    failures: list[Any] = []
    async with well(memcached) as mc:
        with boundary(failures.append) as entry:
            for _ in range(5):
                mc.incr("text", callback=no_failure)
                mc.incr("text")
            good = mc.get("text")
        await until(lambda: len(failures) == 10)
        await quiet()
        assert await good == "abc"
    assert len({id(error) for error in failures}) == 10
    assert entry.cancelled == 0


@pytest.mark.gen_test
async def test_calls_made_outside_of_it_do_not_reach_it(memcached: Memcached) -> None:
    async with well(memcached) as mc:
        with boundary(no_failure):
            pass
        with pytest.raises(ClientError):
            await mc.incr("text")


# -- once, and cancel()


@pytest.mark.gen_test
async def test_once_delivers_the_first_and_cancels_and_counts_the_others(
    memcached: Memcached, silent: Silent
) -> None:
    failures: list[Any] = []
    async with well(memcached) as mc, Client([silent.address]) as never:
        with boundary(failures.append, once=True) as entry:
            others = [never.get("a"), never.set("b", 1), never.get_multi(["c", "d"])]
            never.get("e", callback=no_failure, fail_callback=no_failure)
            with boundary(no_failure):
                never.get("f", callback=no_failure)
            mc.incr("text")
        await until(lambda: failures)
        assert [future.cancelled() for future in others] == [True] * 3
        assert entry.cancelled == 5
        await quiet()
        assert never._deadlines is not None and never._deadlines._lanes == {}
    assert len(failures) == 1


@pytest.mark.gen_test
async def test_once_holds_for_failures_of_one_segment(memcached: Memcached) -> None:
    failures: list[Any] = []
    async with well(memcached) as mc:
        with boundary(failures.append, once=True) as entry:
            for _ in range(3):
                mc.incr("text", callback=no_failure)
        await until(lambda: failures)
        await quiet()
    assert len(failures) == 1
    assert entry.cancelled == 2


@pytest.mark.gen_test
async def test_what_begins_after_the_one_failure_is_cancelled(memcached: Memcached) -> None:
    failures: list[Any] = []
    begun: list[Any] = []
    async with well(memcached) as mc:

        async def later(value: Any) -> None:
            await until(lambda: failures)
            mc.get("text", callback=no_failure, fail_callback=no_failure)
            begun.append(mc.set("never", 1))
            assert not begun[0].done()

        with boundary(failures.append, once=True) as entry:
            mc.get("text", callback=later)
            mc.incr("text")
        await until(lambda: begun)
        await quiet()
        assert begun[0].cancelled() and entry.cancelled == 2
        assert await mc.get("never") is None


@pytest.mark.gen_test
async def test_an_exception_after_the_end_is_not_dropped(
    memcached: Memcached, expect_log: Callable[..., Any]
) -> None:
    expect_log("tornado.application", "Exception after the end", times=1, level=logging.ERROR)
    async with well(memcached) as mc:

        async def broken(value: Any) -> None:
            entry.cancel()
            raise KeyError("a bug")

        with boundary(no_failure, catch=KeyError) as entry:
            mc.get("text", callback=broken)
        await until(lambda: entry.cancelled)


@pytest.mark.gen_test
async def test_cancel_ends_all_without_a_word(memcached: Memcached, silent: Silent) -> None:
    async with Client([silent.address]) as never:
        with boundary(no_failure, timeout=0.5) as entry:
            future = never.get("a")
            never.get("b", callback=no_failure, fail_callback=no_failure)
            never.set_multi({"c": 1, "d": 2}, callback=no_failure, fail_callback=no_failure)
        await asyncio.sleep(0.01)
        entry.cancel()
        assert future.cancelled() and entry.cancelled == 3
        assert never._deadlines is not None and never._deadlines._lanes == {}
        entry.cancel()
        assert entry.cancelled == 3
        await quiet()


@pytest.mark.gen_test
async def test_cancel_within_leaves_the_outer_one_alone(silent: Silent) -> None:
    async with Client([silent.address]) as never:
        with boundary(no_failure) as outer:
            kept = never.get("a")
            with boundary(no_failure) as inner:
                left = never.get("b")
        inner.cancel()
        assert left.cancelled() and not kept.done()
        outer.cancel()
        assert kept.cancelled() and (inner.cancelled, outer.cancelled) == (1, 1)


# -- exceptions in the body, and in callbacks


def test_an_exception_in_the_body_goes_there() -> None:
    failures: list[Any] = []
    line = 0
    with boundary(failures.append):
        line = 1
        raise ServerDead("of the body")
    assert line == 1 and [str(error) for error in failures] == ["of the body"]


@pytest.mark.parametrize("error", [InvalidKey("k"), KeyError("k"), TypeError("t"), SystemExit()])
def test_what_it_does_not_catch_passes_through(error: BaseException) -> None:
    with pytest.raises(type(error)), boundary(no_failure):
        raise error


@pytest.mark.parametrize(
    "catch, error",
    [
        (KeyError, KeyError("k")),
        ((KeyError, OSError), FileNotFoundError("f")),
        (InvalidRequest, InvalidKey("k")),
        (Exception, TypeError("t")),
    ],
)
def test_catch_widens(catch: Any, error: Exception) -> None:
    failures: list[Any] = []
    with boundary(failures.append, catch=catch):
        raise error
    with boundary(failures.append, catch=catch):
        raise Timeout("as before")
    assert failures[0] is error and len(failures) == 2


def test_the_outer_boundary_may_catch_what_the_inner_does_not() -> None:
    failures: list[Any] = []
    with boundary(failures.append, catch=KeyError), boundary(no_failure):
        raise KeyError("k")
    assert len(failures) == 1


@pytest.mark.gen_test
async def test_bad_arguments_raise_at_the_call_and_pass_through(silent: Silent) -> None:
    async with Client([silent.address]) as mc:
        for call in (
            lambda: mc.get("a b"),
            lambda: mc.get("a b", callback=no_failure, fail_callback=no_failure),
            lambda: mc.set("a", b"x" * (1 << 21), fail_callback=no_failure),
        ):
            with pytest.raises(InvalidRequest), boundary(no_failure):
                call()
        with pytest.raises(TypeError, match="fail_callback"):
            mc.get("a", fail_callback=3)  # type: ignore[arg-type]
        assert await silent.untouched()


@pytest.mark.gen_test
@pytest.mark.parametrize("style", ["plain", "coroutine"])
async def test_an_exception_of_a_callback_goes_to_the_boundary_that_catches_it(
    memcached: Memcached, expect_log: Callable[..., Any], style: str
) -> None:
    logged = expect_log("tornado.application", "Exception in callback", level=logging.ERROR)
    inner: list[Any] = []
    outer: list[Any] = []

    def raises(error: Exception) -> Callable[[Any], Any]:
        def plain(value: Any) -> None:
            raise error

        async def coroutine(value: Any) -> None:
            await asyncio.sleep(0)
            raise error

        return plain if style == "plain" else coroutine

    async with well(memcached) as mc:
        with boundary(outer.append, catch=KeyError), boundary(inner.append):
            mc.get("text", callback=raises(ServerDead("a")))
            mc.get("text", callback=raises(KeyError("b")))
            mc.get("text", callback=raises(InvalidKey("c")))
            good = mc.get("text")
        assert await good == "abc"
        await until(lambda: inner and outer and logged.count)
        await quiet()
        assert await mc.get("text") == "abc"
    assert [str(error) for error in inner] == ["a"]
    assert [error.args for error in outer] == [("b",)]
    assert logged.count == 1 and "c" in str(logged.records[0].exc_info[1])


# -- nesting


@pytest.mark.gen_test
async def test_fail_callback_runs_under_the_next_boundary_out(memcached: Memcached) -> None:
    seen: list[Any] = []
    outer_failures: list[Any] = []
    async with well(memcached) as mc:

        def fallback(error: Any) -> None:
            seen.append(current())
            raise ServerDead("of the fallback")

        with boundary(outer_failures.append) as outer, boundary(fallback):
            mc.incr("text")
        await until(lambda: outer_failures)
        with boundary(outer_failures.append) as second:
            with boundary(fallback):
                raise Timeout("of the body")
        assert seen == [outer, second]
    assert [str(error) for error in outer_failures] == ["of the fallback"] * 2


@pytest.mark.gen_test
@pytest.mark.parametrize("style", ["plain", "coroutine"])
async def test_a_failing_fallback_cannot_come_back_for_ever(
    memcached: Memcached, style: str
) -> None:
    inner: list[Any] = []
    outer: list[Any] = []
    async with well(memcached) as mc:

        def plain(error: Any) -> None:
            inner.append(error)
            mc.incr("text", callback=no_failure)

        async def coroutine(error: Any) -> None:
            inner.append(error)
            await mc.incr("text")

        with boundary(outer.append), boundary(plain if style == "plain" else coroutine):
            mc.incr("text")
        await until(lambda: outer)
        await quiet()
    assert (len(inner), len(outer)) == (1, 1)


@pytest.mark.gen_test
async def test_the_outermost_fallback_is_logged_and_ends(
    memcached: Memcached, expect_log: Callable[..., Any]
) -> None:
    expect_log("tornado.application", "without fail_callback", times=1, level=logging.ERROR)
    raised = expect_log("tornado.application", "Exception in callback", level=logging.ERROR)
    failures: list[Any] = []
    async with well(memcached) as mc:

        def fallback(error: Any) -> None:
            failures.append(error)
            mc.incr("text", callback=no_failure)
            raise ServerDead("again")

        with boundary(fallback):
            mc.incr("text")
        await until(lambda: raised.count)
        await quiet()
    assert len(failures) == 1 and raised.count == 1


@pytest.mark.gen_test
async def test_a_calls_own_fail_callback_runs_under_the_calls_boundary(
    memcached: Memcached,
) -> None:
    failures: list[Any] = []
    own: list[Any] = []
    async with well(memcached) as mc:

        def takes(error: Any) -> None:
            own.append((error, current()))

        def raises(error: Any) -> None:
            raise error

        def asks(error: Any) -> None:
            mc.incr("text")

        with boundary(failures.append) as entry:
            mc.incr("text", fail_callback=takes)
        await until(lambda: own)
        await quiet()
        assert own[0][1] is entry and not failures
        with boundary(failures.append):
            mc.incr("text", fail_callback=raises)
            mc.incr("text", fail_callback=asks)
        await until(lambda: len(failures) == 2)
        await quiet()
    assert len(failures) == 2


# -- the shield


@pytest.mark.gen_test
async def test_none_shields_from_the_boundary(
    memcached: Memcached, expect_log: Callable[..., Any]
) -> None:
    logged = expect_log("tornado.application", "incr", times=1, level=logging.ERROR)
    async with well(memcached) as mc:
        with boundary(no_failure, catch=Exception):
            with boundary(None):
                assert current() is None
                mc.incr("text", callback=no_failure)
                mc.incr("text")
        await until(lambda: logged.count)
        await quiet()
        with pytest.raises(ServerDead):
            with boundary(None):
                raise ServerDead("passes the shield")


@pytest.mark.gen_test
async def test_none_lifts_the_budget(silent: Silent, outage: Any) -> None:
    async with Client([silent.address]) as never:
        with boundary(no_failure, timeout=0.03):
            with boundary(None):
                detached = never.get("a", timeout=0.12)
                with boundary(lambda error: None):
                    within = never.get("b", timeout=0.12)
        await asyncio.sleep(0.07)
        assert not detached.done() and not within.done()
        for future in (detached, within):
            with pytest.raises(Timeout):
                await future


@pytest.mark.gen_test
async def test_what_is_detached_is_not_cancelled(memcached: Memcached) -> None:
    async with well(memcached) as mc:
        with boundary(no_failure) as entry:
            with boundary(None):
                detached = mc.get("text")
        entry.cancel()
        assert await detached == "abc" and entry.cancelled == 0


@pytest.mark.gen_test
async def test_a_boundary_behind_a_shield_does_not_end_with_those_before_it(
    memcached: Memcached,
) -> None:
    failures: list[Any] = []
    async with well(memcached) as mc:
        with boundary(no_failure) as entry:
            with boundary(None), boundary(failures.append):
                before = mc.get("text")
                entry.cancel()
                after = mc.get("text")
                mc.incr("text", callback=no_failure)
        await until(lambda: before.done() and after.done())
        assert not before.cancelled(), "what was begun behind the shield was cancelled"
        assert not after.cancelled(), "what began behind the shield was cancelled"
        await until(lambda: failures)
        assert entry.cancelled == 0


def test_a_shield_takes_nothing_else() -> None:
    for wrong in ({"once": True}, {"timeout": 1}, {"catch": KeyError}):
        with pytest.raises(TypeError, match="shields"):
            boundary(None, **wrong)


# -- one object, many entries


@pytest.mark.gen_test
async def test_one_object_may_be_entered_by_several_tasks_and_again(
    memcached: Memcached, silent: Silent
) -> None:
    failures: list[Any] = []
    shared = boundary(lambda error: failures.append((who.get(), error)), once=True)
    entries: dict[str, Any] = {}
    async with well(memcached) as mc, Client([silent.address]) as never:

        async def one(name: str, fails: bool) -> Any:
            who.set(name)
            with shared as entry:
                entries[name] = entry
                waiting = never.get(name)
                await asyncio.sleep(0.005)
                if fails:
                    mc.incr("text")
            await asyncio.sleep(0.03)
            return waiting

        first, second, third = await asyncio.gather(one("a", True), one("b", False), one("c", True))
        assert (first.cancelled(), second.done(), third.cancelled()) == (True, False, True)
        assert sorted(name for name, _ in failures) == ["a", "c"]
        assert [entries[name].cancelled for name in "abc"] == [1, 0, 1]
        with shared as again:
            assert again is not entries["a"] and await mc.get("text") == "abc"
        entries["b"].cancel()


def test_one_object_may_be_nested_in_itself() -> None:
    failures: list[Any] = []
    one = boundary(failures.append)
    with one as outer:
        with one as inner:
            assert inner is not outer and current() is inner
            raise Timeout("inner")
        assert current() is outer
        raise Timeout("outer")
    assert [str(error) for error in failures] == ["inner", "outer"] and current() is None


@pytest.mark.gen_test
async def test_it_is_left_where_it_was_entered() -> None:
    one = boundary(no_failure)

    async def enters() -> None:
        one.__enter__()

    await asyncio.ensure_future(enters())
    with pytest.raises(RuntimeError, match="another context"):
        one.__exit__(None, None, None)


# -- as a decorator


@pytest.mark.gen_test
async def test_as_a_decorator_on_a_plain_function(memcached: Memcached) -> None:
    failures: list[Any] = []
    async with well(memcached) as mc:

        @boundary(failures.append, once=True)
        def page(key: str, fails: bool = True) -> Any:
            """Begins a page."""
            mc.get(key, callback=lambda value: mc.incr("text"))
            if fails:
                raise Timeout("at once")
            return current()

        assert page("text") is None and len(failures) == 1
        entries = {page("text", fails=False), page("text", fails=False)}
        assert len(entries) == 2, "each call is an entry"
        await until(lambda: len(failures) == 3)
        await quiet()
        assert (page.__name__, page.__doc__) == ("page", "Begins a page.")
    assert len(failures) == 3


@pytest.mark.gen_test
async def test_as_a_decorator_on_a_coroutine_function(memcached: Memcached) -> None:
    failures: list[Any] = []
    async with well(memcached) as mc:

        class Page:
            @boundary(failures.append)
            async def show(self, fails: bool) -> Any:
                value = await mc.get("text")
                if fails:
                    await mc.incr("text")
                return value

        assert asyncio.iscoroutinefunction(Page.show)
        assert await Page().show(False) == "abc"
        assert await Page().show(True) is None and len(failures) == 1
        assert await asyncio.gather(Page().show(True), Page().show(False)) == [None, "abc"]
        await quiet()
    assert len(failures) == 2


def test_it_does_not_decorate_generators() -> None:
    def generator() -> Any:
        yield

    async def asynchronous() -> Any:
        yield

    for function in (generator, asynchronous):
        with pytest.raises(TypeError, match="generator"):
            boundary(no_failure)(function)


@pytest.mark.parametrize(
    "wrong, error",
    [
        ({"fail_callback": 3}, TypeError),
        ({"catch": "KeyError"}, TypeError),
        ({"catch": (KeyError, 3)}, TypeError),
        ({"catch": BaseException}, TypeError),
        ({"timeout": 0}, InvalidRequest),
        ({"timeout": float("nan")}, InvalidRequest),
        ({"timeout": True}, TypeError),
    ],
)
def test_bad_arguments_of_a_boundary(wrong: dict[str, Any], error: type[Exception]) -> None:
    with pytest.raises(error):
        boundary(**{"fail_callback": no_failure, **wrong})


# -- wrap


@pytest.mark.gen_test
async def test_wrap_carries_it_to_a_timeout_of_the_loop(memcached: Memcached) -> None:
    failures: list[Any] = []
    seen: list[Any] = []
    async with well(memcached) as mc:

        def later(what: str) -> None:
            seen.append((what, who.get(), current()))
            mc.incr("text")
            raise ServerDead("of the timeout")

        who.set("somebody")
        with boundary(failures.append) as entry:
            wrapped = boundary.wrap(later)
        who.set("another")
        loop = IOLoop.current()
        loop.add_timeout(timedelta(milliseconds=1), wrapped, "first")
        loop.add_timeout(loop.time() + 0.002, functools.partial(wrapped, what="second"))
        await until(lambda: len(failures) == 4)
        await quiet()
    assert seen == [("first", "somebody", entry), ("second", "somebody", entry)]
    assert len(failures) == 4


@pytest.mark.gen_test
async def test_wrap_carries_it_to_the_callback_of_a_future(memcached: Memcached) -> None:
    failures: list[Any] = []
    async with well(memcached) as mc:
        future: Any = asyncio.get_running_loop().create_future()
        with boundary(failures.append, catch=KeyError):
            future.add_done_callback(boundary.wrap(lambda done: done.result()))
            future.add_done_callback(boundary.wrap(lambda done: mc.incr("text", callback=print)))
        future.set_exception(KeyError("k"))
        await until(lambda: len(failures) == 2)
        await quiet()
    assert {type(error) for error in failures} == {KeyError, ClientError}


class Gone(RequestHandler):
    """Answers 410 to whoever fetches it."""

    def get(self) -> None:
        self.set_status(410)


@pytest.mark.gen_test
async def test_wrap_carries_it_to_a_fetch(
    memcached: Memcached, expect_log: Callable[..., Any]
) -> None:
    expect_log("tornado.access", "410", times=1)
    failures: list[Any] = []
    sock, port = bind_unused_port()
    server = HTTPServer(Application([("/", Gone)]))
    server.add_socket(sock)
    http = AsyncHTTPClient(force_instance=True)
    try:
        async with well(memcached) as mc:

            def fetched(future: Any) -> None:
                mc.incr("text")
                future.result()

            with boundary(failures.append, catch=HTTPClientError):
                fetching = http.fetch(f"http://127.0.0.1:{port}/")
                fetching.add_done_callback(boundary.wrap(fetched))
            await until(lambda: len(failures) == 2)
    finally:
        http.close()
        server.stop()
        await server.close_all_connections()
    assert {type(error) for error in failures} == {HTTPClientError, ClientError}


@pytest.mark.gen_test
async def test_what_wrap_does_not_catch_goes_to_whoever_called(memcached: Memcached) -> None:
    failures: list[Any] = []

    async def coroutine() -> None:
        await asyncio.sleep(0)
        raise ServerDead("of the coroutine")

    with boundary(failures.append):
        plain, task = boundary.wrap(lambda: {}["k"]), boundary.wrap(coroutine)
        good = boundary.wrap(lambda: current())
    with boundary(None):
        shielded = boundary.wrap(lambda: (_ for _ in ()).throw(ServerDead("s")))
    with pytest.raises(KeyError):
        plain()
    with pytest.raises(ServerDead):
        next(shielded())
    assert good() is good() is not None and current() is None
    assert task() is None
    await until(lambda: failures)


# -- the budget


@pytest.mark.gen_test
async def test_everything_under_one_entry_shares_one_deadline(
    memcached: Memcached, silent: Silent, outage: Any
) -> None:
    ended: list[float] = []
    async with well(memcached) as mc, Client([silent.address]) as never:
        begun = time.monotonic()

        def note(error: Any) -> None:
            assert isinstance(error, Timeout) and never.servers[0].name == error.server
            ended.append(time.monotonic() - begun)

        async def deeper(value: Any) -> None:
            await asyncio.sleep(0.05)
            never.get("b")
            with boundary(note, timeout=5):
                never.get("c", callback=no_failure)
            never.get_multi(["d", "e"], timeout=4)

        with boundary(note, timeout=0.1):
            never.get("a")
            mc.get("text", callback=deeper)
        await until(lambda: len(ended) == 4)
        await quiet()
        assert never._deadlines is not None and never._deadlines._lanes == {}
    assert len(ended) == 4 and 0.1 <= min(ended) and max(ended) < 0.1 + SLACK
    assert max(ended) - min(ended) < 0.05


@pytest.mark.gen_test
async def test_each_entry_has_a_budget_of_its_own(silent: Silent, outage: Any) -> None:
    ended: list[float] = []
    budget = boundary(lambda error: ended.append(time.monotonic()), timeout=0.06)
    async with Client([silent.address]) as never:
        begun = time.monotonic()
        with budget:
            never.get("a")
        await asyncio.sleep(0.04)
        with budget:
            never.get("b")
        await until(lambda: len(ended) == 2)
    assert ended[0] - begun >= 0.06 and ended[1] - begun >= 0.1


@pytest.mark.gen_test
@pytest.mark.parametrize(
    "outer, inner, own, expected",
    [
        (0.05, 0.5, None, 0.05),
        (0.5, 0.05, None, 0.05),
        (0.5, 0.4, 0.05, 0.05),
        (0.05, 0.4, 0.3, 0.05),
        (5, 4, None, 0.15),
        (5, 0.3, 0.25, 0.25),
    ],
)
async def test_the_shortest_of_budgets_and_timeouts_holds(
    silent: Silent, outage: Any, outer: float, inner: float, own: float | None, expected: float
) -> None:
    ended: list[Any] = []
    async with Client([silent.address], request_timeout=0.15) as never:
        begun = time.monotonic()
        with boundary(no_failure, timeout=outer), boundary(ended.append, timeout=inner):
            never.get("a", timeout=own)
        await until(lambda: ended)
        taken = time.monotonic() - begun
    assert isinstance(ended[0], Timeout) and expected <= taken < expected + SLACK


@pytest.mark.gen_test
async def test_a_call_begun_when_the_budget_is_spent_ends_on_a_later_tick(
    silent: Silent, outage: Any
) -> None:
    failures: list[Any] = []
    async with Client([silent.address]) as never:
        with boundary(failures.append, timeout=0.01):
            await asyncio.sleep(0.02)
            never.get("a", callback=no_failure)
            never.set("b", 1, callback=no_failure)
            never.get_multi(["c", "d"], callback=no_failure)
            assert not failures
            begun = time.monotonic()
            await until(lambda: len(failures) == 3)
        assert time.monotonic() - begun < SLACK
    assert all(isinstance(failure, Timeout) for failure in failures)
    assert [str(failure).partition(":")[0] for failure in failures] == [
        "get 'a'",
        "set 'b'",
        "get 'c' and 1 more",
    ]


# -- futures under a boundary


@pytest.mark.gen_test
async def test_an_unawaited_write_hands_its_failure_over_and_still_raises(
    memcached: Memcached,
) -> None:
    inner: list[Any] = []
    outer: list[Any] = []
    lines: list[str] = []
    async with well(memcached) as mc:
        with boundary(outer.append):
            with boundary(inner.append):
                write = mc.incr("text")
                await until(lambda: inner)
                with pytest.raises(ClientError) as caught:
                    await write
                assert caught.value is inner[0]
                await write
                lines.append("not reached")
            assert len(inner) == 1, "one error object reaches a boundary at most once"
            await write
        with pytest.raises(ClientError):
            await write
    assert not lines and len(inner) == 1 and outer == inner


@pytest.mark.gen_test
@pytest.mark.parametrize("attach", ["await", "gather", "wait_for", "add_future", "shield"])
async def test_a_future_that_somebody_attached_to_is_not_handed_over(
    memcached: Memcached, io_loop: IOLoop, attach: str
) -> None:
    async with well(memcached) as mc:
        with boundary(no_failure):
            call = mc.incr("text")
            if attach == "add_future":
                ended: list[Any] = []
                io_loop.add_future(call, ended.append)
                await until(lambda: ended)
                assert isinstance(ended[0].exception(), ClientError)
                return
            waits = {
                "await": lambda: call,
                "gather": lambda: asyncio.gather(call),
                "wait_for": lambda: asyncio.wait_for(call, 1),
                "shield": lambda: asyncio.shield(call),
            }
            with pytest.raises(ClientError):
                await waits[attach]()


@pytest.mark.gen_test
async def test_an_awaited_failure_leaves_the_body_at_its_line(memcached: Memcached) -> None:
    failures: list[Any] = []
    lines: list[int] = []
    async with well(memcached) as mc:
        with boundary(failures.append):
            lines.append(1)
            await mc.incr("text")
            lines.append(2)
        lines.append(3)
    assert lines == [1, 3] and len(failures) == 1


# -- cancelled bodies


@pytest.mark.gen_test
@pytest.mark.parametrize("wait", ["await", "gather", "wait_for", "deep"])
async def test_a_body_that_once_cancelled_is_left_quietly(
    memcached: Memcached, silent: Silent, wait: str
) -> None:
    failures: list[Any] = []
    lines: list[int] = []
    async with well(memcached) as mc, Client([silent.address]) as never:
        with boundary(failures.append, once=True) as entry:
            mc.incr("text")
            lines.append(1)
            if wait == "deep":
                with boundary(no_failure):
                    await never.get("a")
            elif wait == "gather":
                await asyncio.gather(never.get("a"), never.get_multi(["b"]))
            elif wait == "wait_for":
                await asyncio.wait_for(never.get("a"), 1)
            else:
                await never.get("a")
            lines.append(2)
        lines.append(3)
        assert entry.cancelled >= 1
    assert lines == [1, 3] and len(failures) == 1


@pytest.mark.gen_test
async def test_a_body_that_goes_on_after_the_end_is_left_at_its_next_call(
    memcached: Memcached,
) -> None:
    lines: list[int] = []
    async with well(memcached) as mc:

        async def body() -> None:
            with boundary(no_failure) as entry:
                entry.cancel()
                lines.append(1)
                await mc.get("text")
                lines.append(2)
            with boundary(no_failure) as entry:
                entry.cancel()
                with boundary(no_failure):
                    lines.append(3)
                    await mc.get("text")
                    lines.append(4)
            lines.append(5)

        task = asyncio.ensure_future(body())
        await asyncio.wait([task])
        assert not task.cancelled(), f"the cancellation came out, after {lines}"
    assert lines == [1, 3, 5]


@pytest.mark.gen_test
async def test_a_task_that_is_really_cancelled_is_told_so(silent: Silent) -> None:
    lines: list[int] = []
    async with Client([silent.address]) as never:

        async def body() -> None:
            with boundary(no_failure, once=True, catch=Exception):
                await never.get("a")
            lines.append(1)

        task = asyncio.ensure_future(body())
        await asyncio.sleep(0.01)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
    assert task.cancelled() and not lines


@pytest.mark.gen_test
@pytest.mark.parametrize("first", ["task", "entry"])
async def test_a_task_and_its_boundary_cancelled_in_one_tick(silent: Silent, first: str) -> None:
    if first == "entry" and sys.version_info < (3, 11):
        pytest.skip("before 3.11 a task does not tell that it was cancelled")
    entries: list[Any] = []
    async with Client([silent.address]) as never:

        async def body() -> None:
            with boundary(no_failure) as entry:
                entries.append(entry)
                await never.get("a")

        task = asyncio.ensure_future(body())
        await asyncio.sleep(0.01)
        if first == "task":
            task.cancel()
            entries[0].cancel()
        else:
            entries[0].cancel()
            task.cancel()
        await asyncio.wait([task])
    assert task.cancelled(), "the task's own cancellation was swallowed"


# -- coroutine callbacks, contexts, ticks


@pytest.mark.gen_test
async def test_coroutine_callbacks_run_as_tasks(memcached: Memcached) -> None:
    tasks: list[Any] = []
    failures: list[Any] = []
    async with well(memcached) as mc:

        async def callback(value: Any) -> None:
            tasks.append(asyncio.current_task())
            assert await mc.get("text") == value
            await mc.incr("text")

        async def failed(error: Any) -> None:
            await mc.get("text")
            failures.append(error)
            tasks.append(asyncio.current_task())

        with boundary(failed):
            mc.get("text", callback=callback)
        await until(lambda: failures)
        await quiet()
    assert len(failures) == 1 and len(set(tasks)) == 2
    assert asyncio.current_task() not in tasks


@pytest.mark.gen_test
async def test_a_coroutine_callback_is_not_collected_while_it_waits(memcached: Memcached) -> None:
    import gc

    done: list[Any] = []
    async with well(memcached) as mc:

        async def callback(value: Any) -> None:
            await mc.get("text")
            gc.collect()
            await asyncio.sleep(0.005)
            done.append(value)

        mc.get("text", callback=callback)
        await until(lambda: done)


@pytest.mark.gen_test
async def test_a_callback_that_returns_the_future_of_another_loop_ends_no_other_call(
    memcached: Memcached,
) -> None:
    other = asyncio.new_event_loop()
    foreign = other.create_future()
    seen: list[Any] = []
    async with well(memcached) as mc:
        mc.get("text", callback=lambda value: foreign)  # (all of these share one line)
        mc.get("text", callback=seen.append)
        mc.get("no", callback=lambda value: foreign)
        calls = [mc.get("text"), mc.get("nor")]
        mc.get("nor", callback=seen.append)
        assert await asyncio.gather(*calls) == ["abc", None]
        await until(lambda: len(seen) == 2)
        assert seen == ["abc", None]
        assert await mc.get("text") == "abc"
    foreign.set_result(None)
    await asyncio.get_running_loop().run_in_executor(None, other.run_until_complete, foreign)
    other.close()


@pytest.mark.gen_test
async def test_a_coroutine_callback_ends_quietly_with_its_boundary(
    memcached: Memcached, silent: Silent
) -> None:
    begun: list[Any] = []
    async with well(memcached) as mc, Client([silent.address]) as never:

        async def callback(value: Any) -> None:
            begun.append(asyncio.current_task())
            await never.get("a")
            begun.append("not reached")

        with boundary(no_failure) as entry:
            mc.get("text", callback=callback)
        await until(lambda: begun)
        await asyncio.sleep(0.005)
        entry.cancel()
        await until(lambda: begun[0].done())
    assert len(begun) == 1


@pytest.mark.gen_test
async def test_callbacks_run_in_their_callers_context(memcached: Memcached) -> None:
    seen: list[Any] = []
    async with well(memcached) as mc:

        def note(kind: str, name: str) -> Callable[[Any], None]:
            def noted(outcome: Any) -> None:
                seen.append((kind, name, who.get()))
                who.set("of the callback")

            return noted

        async def noted(name: str, value: Any) -> None:
            await asyncio.sleep(0)
            seen.append(("coroutine", name, who.get()))

        async def caller(name: str) -> None:
            who.set(name)
            with boundary(note("boundary", name)):
                mc.get("text", callback=note("get", name))
                mc.set(name, name, callback=note("set", name))
                mc.get_multi(["text", name], callback=note("multi", name))
                mc.get("text", callback=functools.partial(noted, name))
                mc.incr("text", fail_callback=note("fail", name))
                mc.incr("text")
                mc.incr("text", callback=note("never", name))
            who.set("changed afterwards")

        names = [f"caller-{number}" for number in range(20)]
        await asyncio.gather(*map(caller, names))
        await until(lambda: len(seen) == 20 * 7)
    assert {kind for kind, _, _ in seen} == {"boundary", "get", "set", "multi", "coroutine", "fail"}
    assert all(name == found for _, name, found in seen)
    assert who.get() == "nobody"


@pytest.mark.gen_test
async def test_no_callback_runs_inside_the_method_that_took_it(
    memcached: Memcached, outage: Any
) -> None:
    ended: list[Any] = []
    dead, closed = unreachable(), Client([memcached.address])
    closed.close()
    async with well(memcached) as mc, well(memcached, max_pending=1) as full, dead:
        assert isinstance(await outcome_of(dead.get("a")), ConnectionFailed)

        def call(method: Any, *args: Any) -> None:
            before = len(ended)
            result = method(*args, callback=ended.append, fail_callback=ended.append)
            assert result is None and len(ended) == before

        for client in (mc, dead, closed, full, full):
            call(client.get, "text")
            call(client.set, "other", 1)
            call(client.get_multi, ["text", "other"])
            call(client.get_multi, [])
            call(client.set_multi, {})
            call(client.version)
        assert not ended
        await until(lambda: len(ended) == 30)
        await quiet()
    assert len(ended) == 30
    kinds = {type(one) for one in ended}
    assert {ServerDead, ClientClosed} <= kinds


async def outcome_of(future: Any) -> Any:
    try:
        return await future
    except MemcacheError as error:
        return error


@pytest.mark.gen_test
async def test_callback_none_is_as_not_given(memcached: Memcached) -> None:
    async with well(memcached) as mc:
        assert await mc.get("text", callback=None, fail_callback=None) == "abc"
        assert await mc.set("text", "abd", callback=None, timeout=None) is True
        assert await mc.get_multi(["text"], fail_callback=None) == {"text": "abd"}
        seen: list[Any] = []
        assert mc.get("text", callback=seen.append, fail_callback=None) is None
        assert mc.get("text", callback=None, fail_callback=no_failure) is None
        await until(lambda: seen)


# -- who fails under what


@pytest.mark.gen_test
async def test_what_waited_in_line_fails_under_its_own_boundary(outage: Any) -> None:
    failures: dict[str, list[Any]] = {"a": [], "b": [], "c": []}
    async with unreachable() as mc:
        for name, taken in failures.items():
            who.set(name)
            with boundary(lambda error, taken=taken: taken.append((who.get(), error))):
                mc.get(name)
                mc.get(name, callback=no_failure)
        who.set("nobody")
        await until(lambda: all(len(taken) == 2 for taken in failures.values()))
        await quiet()
    for name, taken in failures.items():
        assert [found for found, _ in taken] == [name, name]
        assert all(isinstance(error, ConnectionFailed) for _, error in taken)
        assert all(f'"{name}"' in str(error) or f"'{name}'" in str(error) for _, error in taken)
    assert len({id(error) for taken in failures.values() for _, error in taken}) == 6


@pytest.mark.gen_test
async def test_who_waits_behind_a_holder_fails_at_its_own_deadline(
    silent: Silent, outage: Any
) -> None:
    holder: list[Any] = []
    waiter: list[Any] = []
    async with Client([silent.address], max_connections=1, request_timeout=0.15) as never:
        with boundary(holder.append):
            never.set("k", b"x" * 300_000)
        await asyncio.sleep(0.05)
        who.set("waiter")
        with boundary(lambda error: waiter.append((who.get(), error))):
            never.set("other", b"y" * 300_000, timeout=0.05)
        who.set("nobody")
        await until(lambda: waiter)
        assert not holder
        await until(lambda: holder)
    ((name, error),) = waiter
    assert name == "waiter" and isinstance(error, Timeout) and "other" in str(error)
    assert len(holder) == 1 and "k" in str(holder[0])


# -- neither callback nor boundary


@pytest.mark.gen_test
async def test_a_callback_call_without_either_is_logged_once(
    memcached: Memcached, expect_log: Callable[..., Any]
) -> None:
    logged = expect_log("tornado.application", "incr .text", level=logging.ERROR)
    async with well(memcached) as mc:
        mc.incr("text", callback=no_failure)
        await until(lambda: logged.count)
        await quiet()
    assert logged.count == 1


@pytest.mark.gen_test
async def test_unawaited_failures_are_silent_but_counted_and_logged_once_per_change(
    start_memcached: Callable[..., Memcached], expect_log: Callable[..., Any]
) -> None:
    server = start_memcached()
    down = expect_log("tornado_memcache", "fails: |is taken for dead")
    up = expect_log("tornado_memcache", "answers again", level=logging.INFO, times=range(3))
    async with Client([server.address], dead_retry=0.02) as mc:
        assert await mc.get("a") is None
        for outage in (1, 2):
            before = mc._pools[0].health.failures
            server.kill()
            await asyncio.sleep(0.01)
            for number in range(50):
                mc.set(f"k{number}", 1)
                mc.get(f"k{number}")
            await quiet()
            assert mc._pools[0].health.failures - before == 100
            lines = down.count
            for number in range(50):
                mc.set(f"k{number}", 1)
            await asyncio.sleep(0.005)
            assert down.count == lines <= 2 * outage
            server.restart()
            await asyncio.sleep(0.03)
            assert await mc.get("a") is None
            assert up.count == outage
        assert "after 150 failed calls" in up.records[0].getMessage()


# -- a boundary at each step of a chain that has no end


@pytest.mark.gen_test(timeout=60)
async def test_a_chain_of_callbacks_that_enters_a_boundary_at_each_step_goes_on(memcached):
    steps, failures = 3000, []
    done = asyncio.get_running_loop().create_future()
    async with Client([memcached.address]) as mc:

        def step(left):
            if not left:
                return done.set_result(None)
            with boundary(failures.append):
                mc.get("k", left - 1, callback=step)

        step(steps)
        await done
    assert failures == []


@pytest.mark.gen_test(timeout=60)
async def test_what_is_nested_without_end_is_cancelled_by_the_outermost(silent):
    with contextlib.ExitStack() as stack:
        entries = [stack.enter_context(boundary(print)) for _ in range(3000)]
        async with Client([silent.address]) as mc:
            calls = [mc.get("k", 1), mc.set("k", 2)]
            assert entries[-1].ended_by() is None
            entries[0].cancel()
            assert all(call.cancelled() for call in calls)
            assert entries[-1].ended_by() is entries[-1]
            assert [entry.cancelled for entry in (entries[0], entries[1], entries[-1])] == [2, 2, 2]
