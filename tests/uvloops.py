"""uvloop's loop with its books open: what it holds can be looked at, as with asyncio's.

Knows uvloop, and which names of asyncio's loop are looked at. It must not
know whose timers and readers they are.
"""

from __future__ import annotations

import asyncio
import functools
import os
import socket
import weakref
from collections.abc import Callable
from typing import Any

import uvloop

_GETADDRINFO = socket.getaddrinfo


class Timer:
    """A timer as asyncio.TimerHandle shows it. uvloop drops it once it cannot fire any more."""

    def __init__(self, when: float, callback: Callable[..., Any], args: tuple[Any, ...]) -> None:
        self._when = when
        self._callback = callback
        self._args = args
        self._cancelled = False

    def __call__(self) -> None:
        self._cancelled = True  # (what has fired is not live)
        self._callback(*self._args)

    def __repr__(self) -> str:
        return f"<Timer {self._callback!r}>"


class OpenLoop(uvloop.Loop):
    """A `uvloop.Loop` that shows its timers, readers and writers.

    What its own transports and ``sock_...`` methods watch is not shown;
    their sockets are open files.
    """

    def __init__(self) -> None:
        super().__init__()
        self._timers: weakref.WeakSet[Timer] = weakref.WeakSet()
        self._read: dict[int, Any] = {}
        self._written: dict[int, Any] = {}

    def open_own_files(self) -> None:
        """Opens what libuv opens for itself at a loop's first run and for its first stream."""
        ours, theirs = os.pipe()
        os.close(theirs)

        async def stream() -> None:
            transport, _ = await self.connect_read_pipe(asyncio.Protocol, os.fdopen(ours, "rb", 0))
            transport.close()

        self.run_until_complete(stream())
        self.run_until_complete(asyncio.sleep(0))  # (a transport closes on a later turn)

    # -- timers

    def call_later(  # (call_at is made of it)
        self, delay: float, callback: Callable[..., Any], *args: Any, context: Any = None
    ) -> Any:
        timer = Timer(self.time() + delay, callback, args)
        handle = super().call_later(delay, timer, context=context)
        self._timers.add(timer)
        return handle

    @property
    def _scheduled(self) -> list[Timer]:
        return list(self._timers)

    # -- names

    async def getaddrinfo(self, host: Any, port: Any, **hints: int) -> Any:
        if socket.getaddrinfo is _GETADDRINFO:
            return await super().getaddrinfo(host, port, **hints)
        # A test's stand-in is asked as asyncio asks it: in a thread.
        ask = functools.partial(socket.getaddrinfo, host, port, **hints)
        return await self.run_in_executor(None, ask)

    # -- what is watched

    @property
    def watched(self) -> dict[int, str]:
        """The descriptors that are watched for somebody: fd to the callbacks."""
        fds = sorted({*self._read, *self._written})
        return {fd: f"{self._read.get(fd)!r}, {self._written.get(fd)!r}" for fd in fds}

    def add_reader(self, file: Any, callback: Callable[..., Any], *args: Any) -> None:
        super().add_reader(file, callback, *args)
        self._read[_fd(file)] = callback

    def remove_reader(self, file: Any) -> Any:
        self._read.pop(_fd(file), None)
        return super().remove_reader(file)

    def add_writer(self, file: Any, callback: Callable[..., Any], *args: Any) -> None:
        super().add_writer(file, callback, *args)
        self._written[_fd(file)] = callback

    def remove_writer(self, file: Any) -> Any:
        self._written.pop(_fd(file), None)
        return super().remove_writer(file)


class Policy(asyncio.DefaultEventLoopPolicy):
    """Has everybody who asks for a loop get an `OpenLoop`."""

    def new_event_loop(self) -> Any:
        return OpenLoop()


def _fd(file: Any) -> int:
    return file if isinstance(file, int) else file.fileno()


def _open_files_of_all_loops() -> None:
    """libuv opens some files once for all loops, and never closes them."""
    loop = OpenLoop()
    loop.open_own_files()
    loop.close()


_open_files_of_all_loops()
