"""Calls whose begin and end are told to observers.

Knows how an outcome is told in a word, and where hits, misses and sizes are
seen. It must not know who observes, nor how a call reaches its server.
"""

import asyncio
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

from .boundaries import Entry
from .call import CallbackCall, FutureCall, Terms
from .deadlines import Deadlines
from .observer import ObservedCall, Observers, kind_of
from .outcomes import Replies
from .protocol import Reply, Request

Take = Callable[[Any, bool], None]

#: What each reply comes to, in a word; of all others "done" is said.
_WORDS = {
    b"STORED": "stored",
    b"NOT_STORED": "not_stored",
    b"EXISTS": "exists",
    b"NOT_FOUND": "miss",
    b"DELETED": "hit",
    b"TOUCHED": "hit",
    b"NUMBER": "hit",
    b"": "sent",
    # Of the meta dialect (protocol.txt, "Meta Commands").
    b"VA": "hit",
    b"HD": "hit",
    b"ME": "hit",
    b"EN": "miss",
    b"NF": "miss",
    b"NS": "not_stored",
    b"EX": "exists",
}
#: Commands that are not called as their verb is.
_NAMES = {
    b"mg": "meta_get",
    b"ms": "meta_set",
    b"md": "meta_delete",
    b"ma": "meta_arithmetic",
    b"me": "debug",
    b"mn": "meta_noop",
}
#: The verbs whose reply is items.
_RETRIEVALS = frozenset({b"get", b"gets", b"gat", b"gats"})


class Found:
    """The value of a gathered get, and how many bytes were stored for it."""

    __slots__ = ("size", "value")

    def __init__(self, value: Any, size: int) -> None:
        self.value = value
        self.size = size


#: The outcome of a gathered get that found nothing.
MISS = object()


def finding(
    decode: Callable[[bytes, bytes, int], Any], raw_flags: int | None
) -> Callable[[bytes, bytes, int], Found]:
    """Returns what makes a `Found` of each hit of a gathered get."""

    def found(key: bytes, value: bytes, flags: int) -> Found:
        return Found(value if flags == raw_flags else decode(key, value, flags), len(value))

    return found


class ObservedCallbackCall(CallbackCall):
    """A `.CallbackCall` whose end is told."""

    __slots__ = ("told",)

    def __init__(
        self,
        deadlines: Deadlines,
        terms: Terms | None,
        callback: Callable[[Any], Any] | None,
        fail_callback: Callable[[Any], Any] | None,
        told: ObservedCall,
    ) -> None:
        super().__init__(deadlines, terms, callback, fail_callback, MISS)
        self.told = told

    # (It is done before that is told: an observer may call the client, or close it.)

    def set_result(self, result: Any) -> None:
        self._done = True
        outcome, word = _seen(self.told, result)
        self.told.finish(word)
        super().set_result(outcome)

    def set_exception(self, error: BaseException) -> None:
        self._done = True
        self.told.finish(kind_of(error), error)
        super().set_exception(error)

    def cancel_by(self, entry: Entry) -> int:
        count = super().cancel_by(entry)
        if count:
            self.told.finish("cancelled")
        return count


class ObservedFutureCall(FutureCall):
    """A `.FutureCall` whose end is told."""

    __slots__ = ("told",)

    def __init__(
        self,
        loop: asyncio.AbstractEventLoop,
        deadlines: Deadlines,
        terms: Terms | None,
        told: ObservedCall,
    ) -> None:
        super().__init__(loop, deadlines, terms, MISS)
        self.told = told

    # (It is done before that is told: an observer may cancel what it hears of.)

    def set_result(self, result: Any) -> None:
        self.work = None  # (which holds what makes the outcome, and so the client)
        outcome, word = _seen(self.told, result)
        super().set_result(outcome)
        self.told.finish(word)

    def set_exception(self, error: Any) -> None:
        self.work = None
        super().set_exception(error)
        self.told.finish(kind_of(error), error)

    def cancel(self, msg: Any = None) -> bool:
        cancelled = super().cancel(msg)
        if cancelled:
            self.told.finish("cancelled")
        return cancelled


def _seen(told: ObservedCall, result: Any) -> tuple[Any, str]:
    """Returns what the caller of a call that ended well gets, and its outcome in a word."""
    if result.__class__ is Found:
        told.hits, told.received = 1, result.size
        return result.value, "hit"
    if result is MISS:
        told.misses = 1
        return told.default, "miss"
    return result, "partial" if told.errors else told.found or "done"


def observe(
    told: ObservedCall,
    loop: asyncio.AbstractEventLoop,
    deadlines: Deadlines,
    terms: Terms | None,
    callback: Callable[[Any], Any] | None,
    fail_callback: Callable[[Any], Any] | None,
    default: Any,
) -> "tuple[ObservedCallbackCall | ObservedFutureCall, asyncio.Future[Any] | None]":
    """Begins a call, and has that told: returns what waits for it, and what the caller gets."""
    told.default = default
    told.start()
    if callback is not None or fail_callback is not None:
        return ObservedCallbackCall(deadlines, terms, callback, fail_callback, told), None
    future = ObservedFutureCall(loop, deadlines, terms, told)
    return future, future


# -- what is asked, and what came


def of_get(observers: Observers, server: str, wire: bytes) -> ObservedCall:
    """Returns the call of one get."""
    return ObservedCall(observers, "get", server, (wire,), 0)


def of_one(observers: Observers, server: str, request: Request) -> ObservedCall:
    """Returns the call of one request."""
    command = _command_of(request)
    return ObservedCall(observers, command, server, request.keys, len(request.value))


def _command_of(request: Request) -> str:
    return _NAMES.get(request.verb) or request.verb.decode("latin-1")


def reading(
    told: ObservedCall, request: Request, outcome: Callable[[Reply], Any]
) -> Callable[[Reply], Any]:
    """Returns what notes a reply for ``told``, and makes the ``outcome`` of it."""

    def read(reply: Reply) -> Any:
        told.found = _note(told, request, reply)
        return outcome(reply)

    return read


def of_many(
    observers: Observers, parts: Sequence[tuple[Any, Request, Take]], result: Any
) -> tuple[tuple[ObservedCall], list[tuple[Any, Request, Take]]]:
    """Returns the one call of many requests, and its parts, each of which notes what came.

    ``parts`` are of a pool, a request, and what takes its end; ``result``
    has the ``errors``.
    """
    requests, servers = [part[1] for part in parts], {part[0].name for part in parts}
    keys = [key for request in requests for key in request.keys]
    command = _command_of(requests[0]) + ("_multi" if keys else "")
    if isinstance(result, Replies):
        command = "request_many"
    server = servers.pop() if len(servers) == 1 else ""
    told = ObservedCall(observers, command, server, keys, sum(len(one.value) for one in requests))
    told.errors = result.errors
    noting: list[tuple[Any, Request, Take]] = []
    for pool, request, take in parts:
        noting.append((pool, request, partial(_take, told, request, take)))
    return (told,), noting


def _take(told: ObservedCall, request: Request, take: Take, reply: Any, good: bool) -> None:
    if good:
        _note(told, request, reply)
    take(reply, good)


def _note(told: ObservedCall, request: Request, reply: Reply) -> str:
    """Adds what a reply brought; returns it in a word."""
    if (batch := getattr(reply, "replies", None)) is not None:  # (quiet: some are left out)
        found = {key for key, one in batch.items() if one.status == b"VA"}
        told.received += sum([len(batch[key].value) for key in found])
        missed = sum([_WORDS.get(one.status) == "miss" for one in batch.values()])
        hits = len(found) if request.verb == b"mg" else len(request.keys) - len(batch)
        misses = len(request.keys) - hits if request.verb == b"mg" else missed
        hits, misses = (0, 0) if request.verb == b"ms" else (hits, misses)
        word = "done"
    elif request.verb in _RETRIEVALS:
        hits, misses = len(reply.items), len(request.keys) - len(reply.items)
        told.received += sum([len(item[0]) for item in reply.items.values()])
        word = "hit" if hits else "miss"
    else:
        stored = request.verb == b"ms" and reply.status == b"HD"
        word = "stored" if stored else _WORDS.get(reply.status, "done")
        if request.verb == b"mg" and not reply.value and {b"W", b"Z"} & {*reply.text.split()}:
            word = "miss"  # (an empty item that holds the place of one that is being computed)
        hits, misses = int(word == "hit"), int(word == "miss")
        told.received += len(reply.value)  # (of the meta dialect alone)
    told.hits += hits
    told.misses += misses
    return word
