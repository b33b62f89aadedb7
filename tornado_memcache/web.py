"""Callback-style request handlers on Tornado 6.

Knows when a request of a `~tornado.web.RequestHandler` is over, and that
what fails in its callbacks is the request's failure. It must not know
memcached: to this file a call is what a boundary covers. It uses Tornado's
public interface only; what ends a request is Tornado's own ``_execute``,
which awaits what is here and meets the failure as if it were raised there.
"""

import asyncio
import functools
import inspect
from collections.abc import Awaitable, Callable
from contextvars import copy_context
from typing import Any, Concatenate, ParamSpec, TypeVar
from weakref import WeakSet

from tornado.iostream import StreamClosedError
from tornado.web import Finish, HTTPError, RequestHandler

from .boundaries import Entry, boundary

__all__ = ["asynchronous"]

_H = TypeVar("_H", bound=RequestHandler)
_P = ParamSpec("_P")

#: The handlers whose requests are kept open here.
_open: "WeakSet[RequestHandler]" = WeakSet()


def asynchronous(
    method: Callable[Concatenate[_H, _P], Any],
) -> Callable[Concatenate[_H, _P], Awaitable[None]]:
    """Keeps the request open until `~tornado.web.RequestHandler.finish` is called.

    For the methods of a `~tornado.web.RequestHandler` that answer a
    request (``get``, ``post``, ...), plain or coroutine, which end it in a
    callback::

        class Front(RequestHandler):
            @asynchronous
            def get(self):
                self.mc.get("front", callback=self.on_front)

            def on_front(self, page):
                self.finish(page or "nothing yet")

    The method runs in a `.boundary` of its own that catches every
    `Exception`. What fails under it and is caught by no boundary within, in
    the method, in a callback at any depth or as the outcome of a call, ends
    the request as it ends an ``async def``: ``log_exception``, then
    ``send_error``, once: a 500, unless it is an `~tornado.web.HTTPError`
    with another status. (A `.boundary` within takes the failures of calls,
    other exceptions only if its ``catch`` names them.) The calls that are
    under way then are cancelled, and so is a coroutine method. A failure
    that comes after the request has ended goes to ``log_exception`` alone.

    When the client leaves first, ``on_connection_close`` is called, the
    calls under way are cancelled, so that no callback comes, and the
    request is finished without an error in the log. A coroutine method may
    go on to its end. Work of other kinds (a timeout, a fetch) goes on too:
    it is for the handler's ``on_connection_close`` to stop it.

    The handler's own ``on_finish`` and ``on_connection_close`` run as
    ever. A decorated method may call another one of the same handler.
    """
    if inspect.isgeneratorfunction(method) or inspect.isasyncgenfunction(method):
        raise TypeError("asynchronous decorates plain functions and coroutines, not generators")

    @functools.wraps(method)
    def opened(handler: _H, /, *args: _P.args, **kwargs: _P.kwargs) -> Awaitable[None]:
        if handler in _open:
            result: Awaitable[None] = method(handler, *args, **kwargs)
            return result
        return _Request(handler).execute(functools.partial(method, handler, *args, **kwargs))

    return opened


class _Request:
    """One request that is open until its handler finishes it."""

    def __init__(self, handler: RequestHandler) -> None:
        self._handler = handler
        self._ended: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._coroutine: asyncio.Future[Any] | None = None
        self._entry: Entry | None = None
        self._left = False
        self._replaced: dict[str, Any] = {}

    async def execute(self, method: Callable[[], Any]) -> None:
        """Calls ``method`` and waits for the end of the request.

        Returns if the request was finished or its client left, and raises
        what failed.
        """
        _open.add(self._handler)
        self._listen()
        try:
            with boundary(self._fail, once=True, catch=Exception) as entry:
                self._entry = entry
                result = method()
                if result is not None:
                    # A task of its own, so that a failing callback need not wait for it.
                    self._coroutine = asyncio.ensure_future(result)
                    self._coroutine.add_done_callback(functools.partial(self._returned, entry))
            if not self._ended.done() and self._client_is_gone():
                self._leave()  # since ``prepare``: on_connection_close was called then
            await self._ended
        finally:
            if self._ended.cancelled():  # with this task
                self._leave()
                self._cancel_coroutine()
            self._entry = None  # it knows this request: two that know each other stay longer
            self._listen_no_more()
            _open.discard(self._handler)

    # -- what the handler is told

    def _listen(self) -> None:
        self._after("on_finish", self._finish)
        self._after("detach", self._finish)
        self._after("on_connection_close", self._leave)
        self._connection.set_close_callback(self._handler.on_connection_close)

    def _after(self, name: str, then: Callable[[], None]) -> None:
        """Calls ``then`` after the handler's own method ``name``, on this very handler."""
        real = getattr(self._handler, name)

        @functools.wraps(real)
        def told(*args: Any, **kwargs: Any) -> Any:
            try:
                return real(*args, **kwargs)
            finally:
                then()

        self._replaced[name] = vars(self._handler).get(name)
        setattr(self._handler, name, told)

    def _listen_no_more(self) -> None:
        for name, before in self._replaced.items():
            delattr(self._handler, name)
            if before is not None:
                setattr(self._handler, name, before)

    @property
    def _connection(self) -> Any:
        return self._handler.request.connection

    def _client_is_gone(self) -> bool:
        stream = getattr(self._connection, "stream", None)
        return stream is not None and bool(stream.closed())

    # -- the ways to end

    def _finish(self) -> None:
        if not self._ended.done():
            self._ended.set_result(None)

    def _leave(self) -> None:
        """The client has left: nobody waits for the calls."""
        self._left = True
        if self._entry is not None:
            self._entry.cancel()
        if self._coroutine is None or self._coroutine.done():
            self._finish()

    def _fail(self, error: Exception) -> None:
        """Takes a failure: that of the request, or too late to be that."""
        if isinstance(error, StreamClosedError) and self._client_is_gone():
            self._leave()  # a write says so before on_connection_close does
        elif not self._ended.done():
            if isinstance(error, StopIteration):  # no future takes that one
                error = _caused_by(error)
            self._ended.set_exception(error)
            self._cancel_coroutine()
        elif not isinstance(error, Finish):
            self._handler.log_exception(type(error), error, error.__traceback__)

    def _returned(self, entry: Entry, coroutine: "asyncio.Future[Any]") -> None:
        """The coroutine method has ended; the request only if its client has left."""
        if coroutine.cancelled():
            if not entry.ended and not self._ended.done():
                entry.fail(HTTPError(500, "the method was cancelled"), copy_context())
        elif (error := coroutine.exception()) is not None:
            if not (self._left and isinstance(error, StreamClosedError)):
                entry.fail(error, copy_context())
        if self._left:
            self._finish()

    def _cancel_coroutine(self) -> None:
        if self._coroutine is not None:
            self._coroutine.cancel()


def _caused_by(error: Exception) -> RuntimeError:
    wrapped = RuntimeError(f"a callback raised {type(error).__name__}")
    wrapped.__cause__ = error
    return wrapped
