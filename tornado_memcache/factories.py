"""How a value is made by code of an application: a plain function, a coroutine, or by callback.

Knows how a factory is called and how it fails. It must not know a cache,
nor who waits for the value.
"""

import asyncio
import functools
import inspect
import logging
from collections.abc import Callable
from typing import Any

from .boundaries import boundary, name_of

_log = logging.getLogger("tornado.application")


def takes_callback(factory: Callable[..., Any]) -> bool:
    """True if ``factory`` has a parameter ``callback`` that nobody has given yet."""
    if isinstance(factory, functools.partial) and "callback" in factory.keywords:
        return False
    try:
        return "callback" in inspect.signature(factory).parameters
    except (TypeError, ValueError):  # (written in C)
        return False


async def produce(factory: Callable[..., Any]) -> Any:
    """Returns what ``factory`` makes, or raises what it fails with.

    One that takes ``callback`` is called with it alone, and has made what
    it calls that with, once. It runs under a `.boundary`: an exception,
    or the failure of a call, at any depth of its callbacks, is its
    failure. Any other is called without arguments, and an awaitable that
    it returns is awaited. What it begins is under no boundary of a caller,
    whose end would be that of others who want the value.
    """
    with boundary(None):
        if takes_callback(factory):
            return await _by_callback(factory)
        value = factory()
        return await value if inspect.isawaitable(value) else value


async def _by_callback(factory: Callable[..., Any]) -> Any:
    made: asyncio.Future[Any] = asyncio.get_running_loop().create_future()
    running: asyncio.Future[Any] | None = None

    def callback(value: Any) -> None:
        if not made.done():
            made.set_result(value)
        elif not made.cancelled():
            raise RuntimeError(f"the factory {name_of(factory)} has called its callback before")

    def failed(error: BaseException) -> None:
        if made.cancelled():
            return
        if made.done():
            told = "The factory %s has ended, and failed afterwards"
            _log.error(told, name_of(factory), exc_info=error)
        else:
            made.set_exception(_settable(error))

    with boundary(failed, once=True, catch=Exception) as entry:
        result = factory(callback=callback)
        if inspect.isawaitable(result):
            running = asyncio.ensure_future(result)
            running.add_done_callback(functools.partial(_ended, failed, factory))
    try:
        return await made
    except BaseException:
        entry.cancel()
        if running is not None:
            running.cancel()
        raise


def _ended(
    failed: Callable[[BaseException], None],
    factory: Callable[..., Any],
    running: "asyncio.Future[Any]",
) -> None:
    if running.cancelled():
        failed(RuntimeError(f"the factory {name_of(factory)} was cancelled"))
    elif (error := running.exception()) is not None:
        failed(error)


def _settable(error: BaseException) -> BaseException:
    """Returns ``error``, or what stands for one that no Future takes."""
    if not isinstance(error, StopIteration):
        return error
    stands = RuntimeError("a factory raised StopIteration")
    stands.__cause__ = error
    return stands
