"""tornado_memcache.factories: how a factory is called, and how it fails."""

from __future__ import annotations

import asyncio
import functools
import time
from typing import Any

import pytest

from tornado_memcache import Client, InvalidRequest, Timeout, boundary
from tornado_memcache.boundaries import entered
from tornado_memcache.factories import produce, takes_callback

from .asked import until


def plain() -> str:
    return "v"


def by_callback(callback: Any) -> None:
    callback("v")


def either(key: str = "k", *, callback: Any = None) -> Any:
    return callback("v") if callback is not None else "v"


class Object:
    def __call__(self, callback: Any) -> None:
        callback("v")

    def method(self, callback: Any) -> None:
        callback("v")


@pytest.mark.parametrize(
    ("factory", "takes"),
    [
        (plain, False),
        (lambda: 1, False),
        (dict, False),
        (time.time, False),
        (by_callback, True),
        (either, True),
        (functools.partial(either, "j"), True),
        (functools.partial(either, callback=print), False),
        (Object(), True),
        (Object().method, True),
        (lambda *args, **kwargs: 1, False),
    ],
)
def test_the_signature_says_whether_it_takes_a_callback(factory, takes):
    assert takes_callback(factory) is takes


@pytest.mark.parametrize("factory", [plain, by_callback, either, Object(), Object().method])
@pytest.mark.gen_test
async def test_each_kind_makes_its_value(factory):
    assert await produce(factory) == "v"


@pytest.mark.gen_test
async def test_whatever_can_be_awaited_is_awaited():
    async def coroutine() -> str:
        return "v"

    assert await produce(coroutine) == await produce(lambda: coroutine()) == "v"
    done = asyncio.get_running_loop().create_future()
    done.set_result("v")
    assert await produce(lambda: done) == "v"


@pytest.mark.gen_test
async def test_a_callback_may_come_much_later():
    kept: list[Any] = []

    def factory(callback):
        kept.append(callback)

    making = asyncio.ensure_future(produce(factory))
    await until(lambda: kept)
    kept[0]("v")
    assert await making == "v"
    with pytest.raises(RuntimeError, match="test_factories.*factory has called its callback"):
        kept[0]("again")


@pytest.mark.parametrize("error", [LookupError("x"), InvalidRequest("x"), Timeout("x")])
@pytest.mark.gen_test
async def test_what_it_raises_is_its_failure(error):
    def fails(**_):
        raise error

    async def fails_later(**_):
        raise error

    def fails_with_callback(callback):
        raise error

    async def fails_later_with_callback(callback):
        await asyncio.sleep(0)
        raise error

    for factory in (fails, fails_later, fails_with_callback, fails_later_with_callback):
        with pytest.raises(type(error)) as raised:
            await produce(factory)
        assert raised.value is error


@pytest.mark.gen_test
async def test_an_exception_or_a_failed_call_in_any_callback_is_its_failure(
    memcached, silent, troubles
):
    async with Client([memcached.address]) as mc, Client([silent.address]) as away:

        def raises_deep(callback):
            mc.get("a", callback=lambda _: mc.get("b", callback=lambda _: callback({}[1])))

        def call_fails_deep(callback):
            mc.get("a", callback=lambda _: away.get("b", timeout=0.01, callback=callback))

        def takes_its_own_failures(callback):
            with boundary(lambda error: callback("instead")):
                away.get("b", timeout=0.01, callback=callback)

        with pytest.raises(KeyError):
            await produce(raises_deep)
        with pytest.raises(Timeout):
            await produce(call_fails_deep)
        assert await produce(takes_its_own_failures) == "instead"


@pytest.mark.gen_test
async def test_what_fails_after_the_value_has_come_is_logged(expect_log):
    told = expect_log("tornado.application", "has ended, and failed afterwards", times=1)

    async def factory(callback):
        callback("v")
        await asyncio.sleep(0)
        raise LookupError("too late")

    assert await produce(factory) == "v"
    await until(lambda: told.count)


@pytest.mark.gen_test
async def test_stop_iteration_is_told_as_what_a_future_takes(memcached):
    def raises(**_):
        raise StopIteration

    async with Client([memcached.address]) as mc:

        def raises_deep(callback):
            mc.get("a", callback=lambda _: next(iter(())))

        for factory in (raises, raises_deep):
            with pytest.raises(RuntimeError, match="StopIteration"):
                await produce(factory)


@pytest.mark.gen_test
async def test_a_coroutine_with_callback_that_is_cancelled_by_itself_has_failed():
    async def factory(callback):
        raise asyncio.CancelledError

    with pytest.raises(RuntimeError, match="was cancelled"):
        await produce(factory)


@pytest.mark.gen_test
async def test_a_cancelled_one_ends_its_calls_and_its_coroutine(silent):
    ended = []

    async def coroutine(callback):
        try:
            await asyncio.Event().wait()
        finally:
            ended.append("coroutine")

    async with Client([silent.address]) as away:

        def calls(callback):
            away.get("k", timeout=60, callback=callback, fail_callback=ended.append)

        for factory in (coroutine, calls):
            making = asyncio.ensure_future(produce(factory))
            await asyncio.sleep(0.01)
            making.cancel()
            with pytest.raises(asyncio.CancelledError):
                await making
        await until(lambda: ended)
    assert ended == ["coroutine"]


@pytest.mark.gen_test
async def test_no_boundary_of_a_caller_is_around_it():
    seen = []

    def factory():
        entry = entered()
        seen.append(entry is None or entry.boundary.fail_callback is None)

    with boundary(print, timeout=1):
        await asyncio.ensure_future(produce(factory))
        assert entered() is not None
    assert seen == [True]
