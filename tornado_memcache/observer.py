"""What an application is told of its calls, its servers and its connections.

Knows what an `Observer` is told, and that what it raises disturbs nobody. It
must not know how a call is made or ends, nor what becomes of what is told.
"""

import inspect
import logging
from collections.abc import Mapping, Sequence
from typing import Any

from .deadlines import clock
from .errors import (
    AuthenticationError,
    ClientClosed,
    ClientError,
    ConnectionFailed,
    MemcacheError,
    ProtocolError,
    SerializationError,
    ServerDead,
    ServerError,
    Timeout,
    TooManyCalls,
)

_log = logging.getLogger("tornado.application")

#: The kinds of failure, each before those that it is one of.
KINDS: dict[type[MemcacheError], str] = {
    Timeout: "timeout",
    AuthenticationError: "authentication_error",
    ConnectionFailed: "connection_failed",
    ServerDead: "server_dead",
    TooManyCalls: "too_many_calls",
    ServerError: "server_error",
    ClientError: "client_error",
    ProtocolError: "protocol_error",
    SerializationError: "serialization_error",
    ClientClosed: "client_closed",
}


def kind_of(error: BaseException) -> str:
    """Returns the kind of a failure, one word of few: ``"timeout"``, ``"server_dead"``."""
    for kind, word in KINDS.items():
        if isinstance(error, kind):
            return word
    return "error"


class ObservedCall:
    """One call, as an observer is told of it.

    From the begin on: ``command``, the name of the method, or of the verb
    of a ``request`` (``"get"``, ``"set_multi"``, ``"request_many"``);
    ``server``, ``"host:port"``, or "" if several are asked; ``keys`` as
    they are on the wire; ``sent``, the bytes of all values in the request.

    When it has finished: ``duration`` in seconds; ``received``, the bytes
    of all values in the reply, as they are stored; ``hits`` and
    ``misses``, in keys; ``error``, the `.MemcacheError` that it failed
    with, or None; ``errors``, of a call over several requests: each
    server that failed, and its first error; and ``outcome``, one of:

    - ``"hit"``, ``"miss"``: of what needs an item (get, gat, delete,
      touch, incr, cas and the like).
    - ``"stored"``, ``"not_stored"``, ``"exists"``: of what stores.
      ``"exists"`` is a cas of what has changed.
    - ``"sent"``: with ``noreply``, it was written.
    - ``"done"``: all else that ended well, a call over several requests
      too; ``"partial"`` if some of its servers failed, or sent a value
      that cannot be read.
    - ``"cancelled"``: by its caller, or by its boundary.
    - ``"lost"``: its loop was closed before it had an outcome.
    - a word of `KINDS`, as ``"timeout"``: it failed.
    """

    __slots__ = (
        "command",
        "default",
        "duration",
        "error",
        "errors",
        "found",
        "hits",
        "keys",
        "misses",
        "outcome",
        "received",
        "sent",
        "server",
        "_began_at",
        "_begun",
        "_observers",
    )

    def __init__(
        self,
        observers: "Observers",
        command: str,
        server: str,
        keys: Sequence[bytes],
        sent: int,
    ) -> None:
        self.command = command
        self.server = server
        self.keys = keys
        self.sent = sent
        self.received = self.hits = self.misses = 0
        self.outcome = ""
        self.error: MemcacheError | None = None
        self.errors: Mapping[str, MemcacheError] = {}
        self.duration = 0.0
        #: What the caller gets on a miss, and what a reply came to, in a word.
        self.default: Any = None
        self.found = ""
        self._observers = observers
        self._began_at = 0.0
        self._begun: Sequence[Any] = ()

    def start(self) -> None:
        """Has it told that the call has started."""
        self._begun = self._observers.started(self)
        self._began_at = clock()

    def finish(self, outcome: str, error: BaseException | None = None) -> None:
        """Has it told, once, that the call has finished."""
        if self.outcome:
            return
        self.duration = clock() - self._began_at
        self.outcome = outcome
        self.error = error if isinstance(error, MemcacheError) else None
        self._observers.finished(self, self._begun)

    def __repr__(self) -> str:
        return f"<ObservedCall {self.command} {self.server} {self.outcome or 'under way'}>"


class Observer:
    """Is told what a client does; derive from it, and override what you want to hear.

    Given as ``Client(observer=...)``, to any number of clients. All is told
    on the thread of the client's loop, so it must be quick, and it must
    not wait. What it raises is logged, once for each method, and changes
    nothing.

    What is refused at the call (`.InvalidRequest`, TypeError) was no call,
    and what needs no server (an empty ``get_multi``, a cas whose unique is
    outdated) is not told either.
    """

    def call_started(self, call: ObservedCall) -> Any:
        """A call has begun. Runs within it, in the caller's context.

        What it returns is handed to `call_finished`.
        """

    def call_finished(self, call: ObservedCall, begun: Any) -> None:
        """A call has ended, once, and before its callback runs.

        ``begun`` is what `call_started` returned.
        """

    def server_down(self, server: str, reason: MemcacheError) -> None:
        """``server`` is taken for dead."""

    def server_up(self, server: str) -> None:
        """``server`` answers again, or left the servers while it was dead."""

    def connection_opened(self, server: str) -> None:
        """A connection to ``server`` is open."""

    def connection_closed(self, server: str, reason: str, error: MemcacheError) -> None:
        """A connection to ``server`` that was open is closed.

        ``reason`` is the kind of ``error``, a word of `KINDS`, or
        ``"not_needed"`` for one that was idle, and ``"lost"`` if its loop
        was closed.
        """

    def connection_failed(self, server: str, reason: str, error: MemcacheError) -> None:
        """A connection to ``server`` could not be opened; ``reason`` as in `connection_closed`."""


class Observers:
    """The observers of one client, and its calls of which they were told the begin."""

    def __init__(self, observers: Sequence[Observer]) -> None:
        self._observers = tuple(observers)
        self._under_way: set[ObservedCall] = set()
        self._logged: set[tuple[int, str]] = set()

    def started(self, call: ObservedCall) -> Sequence[Any]:
        """Returns what each of them returned."""
        self._under_way.add(call)
        begun = []
        for observer in self._observers:
            try:
                begun.append(observer.call_started(call))
            except Exception as error:
                begun.append(None)
                self._raised(observer, "call_started", error)
        return begun

    def finished(self, call: ObservedCall, begun: Sequence[Any]) -> None:
        self._under_way.discard(call)
        for observer, one in zip(self._observers, begun):
            try:
                observer.call_finished(call, one)
            except Exception as error:
                self._raised(observer, "call_finished", error)

    def tell(self, method: str, *arguments: Any) -> None:
        """Calls ``method`` of each observer."""
        for observer in self._observers:
            try:
                getattr(observer, method)(*arguments)
            except Exception as error:
                self._raised(observer, method, error)

    def lost(self) -> None:
        """The loop was closed: what was under way has no other end."""
        for call in list(self._under_way):
            call.finish("lost")

    def forget(self) -> None:
        """In a child of fork: what was under way ends in the parent, and is told there."""
        self._under_way.clear()

    def _raised(self, observer: Observer, method: str, error: Exception) -> None:
        if (id(observer), method) not in self._logged:
            self._logged.add((id(observer), method))
            name = f"{type(observer).__qualname__}.{method}"
            told = "Exception in observer %s (what it raises further is not logged)"
            _log.error(told, name, exc_info=error)


def checked_observers(observer: Any) -> Observers | None:
    """Returns the observers of an ``observer=``: one, a list of them, or None.

    Raises `TypeError` for anything else.
    """
    if observer is None:
        return None
    observers = list(observer) if isinstance(observer, (list, tuple)) else [observer]
    for one in observers:
        if isinstance(one, type):
            raise TypeError(f"observer must be an object: write {one.__name__}()")
        if not isinstance(one, Observer):
            raise TypeError(f"observer must be an Observer or a list, not {type(one).__name__}")
        for name in vars(Observer):
            if inspect.iscoroutinefunction(getattr(one, name)):
                raise TypeError(f"observer: {type(one).__name__}.{name} must not be async")
    return Observers(observers) if observers else None
