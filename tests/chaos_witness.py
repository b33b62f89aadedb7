"""Who counts the outcomes of a chaos run, and looks for what must not be.

Knows calls, their deadlines and contexts (I1, I2, I9), the loop's own lag,
and how to look into pools, connections, timers and logs (I3, I5, I7, I8). It
may look at private parts of the package, since nothing public tells. It must
not know what was asked, nor what is done to servers and networks.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections import Counter, deque
from collections.abc import Callable, Iterable
from contextvars import ContextVar
from typing import Any

from tornado_memcache import MemcacheError
from tornado_memcache.boundaries import current

from .ledger import our_timers

clock = time.monotonic

#: What must hold, in the words of the report.
INVARIANTS = {
    "I1": "one outcome for each call",
    "I2": "on time",
    "I3": "no timer left",
    "I4": "no file or handler left",
    "I5": "pools add up, nobody waits for ever",
    "I6": "no wrong value",
    "I7": "idle connections are clean",
    "I8": "no task, log line or exception left",
    "I9": "the caller's context and boundary",
}
#: Seconds that an outcome may come after its deadline, beside the loop's own lag.
SLACK = 0.25
#: Seconds after its deadline at which a call is taken for dropped, the lag not counted.
DROPPED = 5.0
#: Seconds between two beats of the heart.
BEAT = 0.01
#: Seconds between two looks into the pools.
LOOK = 0.1
#: So many violations of one invariant are kept in full.
MOST_DETAILS = 5

#: The call that a context belongs to.
CALL: ContextVar[Call | None] = ContextVar("tests.chaos.call", default=None)


class Call:
    """One call and the one outcome that it must have.

    ``ended`` is "value", "failed", "cancelled", "untold" (a future that
    was left alone is done) or "dropped"; ``result`` the value or error.
    ``told`` is done as soon as it has ended.
    """

    __slots__ = (
        "asked",
        "begun",
        "cancelling",
        "coming",
        "deadline",
        "ended",
        "entry",
        "future",
        "result",
        "strict",
        "told",
        "_witness",
    )

    def __init__(
        self, witness: Witness, asked: Callable[[], str], strict: bool, length: float, last: float
    ) -> None:
        self.asked = asked
        self.strict = strict
        self.begun = clock()
        self.deadline = max(self.begun, min(self.begun + length, last))
        self.entry = current()
        self.ended: str | None = None
        self.result: Any = None
        #: The future that was returned, where somebody has to look at it.
        self.future: asyncio.Future[Any] | None = None
        #: True once a coroutine has begun that will tell its outcome.
        self.coming = False
        #: What will cancel it.
        self.cancelling: asyncio.TimerHandle | None = None
        self.told: asyncio.Future[None] = witness.loop.create_future()
        self._witness = witness
        witness.begin(self)

    def __str__(self) -> str:
        return f"{self.asked()} (begun {clock() - self.begun:.3f} s ago)"

    def tell(self, kind: str, result: Any = None) -> None:
        """Takes an outcome."""
        if self.ended is not None:
            if not (kind == self.ended == "cancelled"):
                self._witness.violated("I1", f"{self}: {kind} {result!r} after {self.ended}")
            return
        self.ended, self.result = kind, result
        if self.cancelling is not None:
            self.cancelling.cancel()
            self.cancelling = None
        self.told.set_result(None)
        self._witness.end(self)

    def later(self, told: Callable[[Any], None]) -> Callable[[Any], Any]:
        """Returns ``told``, which is one of the following, as a coroutine function."""

        async def tell(argument: Any) -> None:
            told(argument)

        def begin(argument: Any) -> Any:
            self.coming = True
            return tell(argument)

        return begin

    # -- the ways in which an outcome comes

    def succeeded(self, result: Any) -> None:
        """The callback."""
        self.check_context("callback", self.entry)
        self.tell("value", result)

    def failed(self, error: Any) -> None:
        """The fail_callback."""
        self.check_context("fail_callback", self.entry)
        self.tell("failed", error)

    def future_done(self, future: asyncio.Future[Any]) -> None:
        """The done callback of the future."""
        self.check_context("done callback", self.entry)
        if future.cancelled():
            self.tell("cancelled")
        elif (error := future.exception()) is not None:
            self.tell("failed", error)
        else:
            self.tell("value", future.result())

    def task_done(self, task: asyncio.Future[None]) -> None:
        """The task that awaits it: one that is cancelled before its first step tells nothing."""
        if self.ended is None and task.cancelled():
            self.tell("cancelled")

    def check_context(self, where: str, entry: Any) -> None:
        """I9: the caller's context, and under ``entry``."""
        if CALL.get() is not self:
            self._witness.violated("I9", f"{self}: its {where} runs in the context of {CALL.get()}")
        elif current() is not entry:
            self._witness.violated("I9", f"{self}: its {where} runs under {current()!r}")


class Witness:
    """Everything that is seen in one run."""

    def __init__(self, loop: asyncio.AbstractEventLoop, on_violation: Callable[[str], Any]) -> None:
        self.loop = loop
        self.calls = 0
        self.strict_calls = 0
        self.outcomes: Counter[str] = Counter()
        self.violations: Counter[str] = Counter()
        self.details: dict[str, list[str]] = {name: [] for name in INVARIANTS}
        self.open: dict[Call, None] = {}
        self.looks = 0
        #: How late the latest outcome was, and the loop's lag at that time.
        self.latest = (float("-inf"), 0.0, "")
        self.heart = Heart(loop)
        self.heart.listeners.append(self._beat)
        self._watched: dict[Call, None] = {}
        self._clients: Callable[[], Iterable[Any]] = tuple
        self._looked_at = 0.0
        self._on_violation = on_violation

    def violated(self, name: str, text: str) -> None:
        """Notes that the invariant ``name`` does not hold."""
        self.violations[name] += 1
        if len(self.details[name]) < MOST_DETAILS:
            self.details[name].append(text)
            self._on_violation(f"{name}: {text}")

    # -- calls

    def begin(self, call: Call) -> None:
        self.calls += 1
        self.strict_calls += call.strict
        self.open[call] = None

    def end(self, call: Call) -> None:
        self.open.pop(call, None)
        self._watched.pop(call, None)
        kind, result = call.ended, call.result
        if kind == "failed":
            kind = type(result).__name__
            if not isinstance(result, MemcacheError):
                self.violated("I8", f"{call}: failed with {result!r}")
        assert kind is not None
        self.outcomes[kind] += 1
        if call.ended in ("value", "failed", "untold"):
            self._check_moment(call)

    def _check_moment(self, call: Call) -> None:
        late = clock() - call.deadline
        if late > self.latest[0] or late > SLACK:
            lag = self.heart.lag_since(call.deadline)
            if late > self.latest[0]:
                self.latest = (late, lag, f"{call.asked()}: {call.ended}")
            if late > SLACK + lag:
                text = f"{call}: {call.ended} {late:.3f} s after its deadline (lag {lag:.3f} s)"
                self.violated("I2", text)

    def watch(self, call: Call) -> None:
        """Looks at the future of ``call`` now and then, without attaching to it."""
        self._watched[call] = None

    def _beat(self, now: float) -> None:
        for call in [call for call in self._watched if call.future.done()]:  # type: ignore[union-attr]
            del self._watched[call]
            self._look_at_future(call)
        if now - self._looked_at > LOOK:
            self._looked_at = now
            for call in [call for call in self.open if now - call.deadline > DROPPED]:
                if now - call.deadline > DROPPED + self.heart.lag_since(call.deadline):
                    self.violated("I1", f"{call}: no outcome")
                    call.tell("dropped")
            self.look()

    def _look_at_future(self, call: Call) -> None:
        future = call.future
        assert future is not None
        if future.cancelled():
            call.tell("cancelled")
        elif call.entry is None:
            # Left alone for good: to look at its exception would be to retrieve it.
            call.tell("untold")
        elif (error := future.exception()) is None:
            call.tell("value", future.result())
        else:
            self.violated("I1", f"{call}: {error!r}, and its boundary was not told")
            call.tell("failed", error)

    # -- pools and connections

    def look_at(self, clients: Callable[[], Iterable[Any]]) -> None:
        """Has the pools of ``clients()`` looked at during the run."""
        self._clients = clients

    def look(self) -> None:
        """I5, I7 and I3, as they are at this moment."""
        self.looks += 1
        clients = list(self._clients())
        timers = our_timers(self.loop)
        if len(timers) > len(clients):
            self.violated("I3", f"{len(timers)} timers for {len(clients)} clients: {timers}")
        for client in clients:
            for pool in client._pools:
                self._look_at_pool(pool)

    def _look_at_pool(self, pool: Any) -> None:
        counts = pool.counts()
        parts = sum(counts[name] for name in ("idle", "busy", "connecting", "late"))
        if parts != counts["open"] or counts["open"] > counts["limit"] or counts["pending"] < 0:
            self.violated("I5", f"it does not add up: {pool!r}")
        for connection in pool._connections:
            if connection.closed:
                self.violated("I5", f"a closed connection in {pool!r}")
            clean = connection._protocol.clean()
            clean = clean and (connection._outbox.written or not connection._live)
            if connection.open and connection.idle and not clean:
                self.violated("I7", f"idle and not clean: {connection!r} of {pool!r}")

    def quiet(self, client: Any) -> bool:
        """True if nothing is under way and nothing late."""
        names = ("pending", "waiting", "connecting", "late", "busy")
        return not any(pool.counts()[name] for pool in client._pools for name in names)


class Heart:
    """Measures the lag of the loop: how late a timeout is that anybody could set."""

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self.listeners: list[Callable[[float], None]] = []
        self.lags: list[float] = []
        self.most = 0.0
        self._loop = loop
        self._lagging: deque[tuple[float, float]] = deque(maxlen=4000)
        self._due = 0.0
        self._handle: asyncio.TimerHandle | None = None

    def start(self) -> None:
        self._due = clock() + BEAT
        self._handle = self._loop.call_later(BEAT, self._beat)

    def stop(self) -> None:
        if self._handle is not None:
            self._handle.cancel()

    def _beat(self) -> None:
        now = clock()
        lag = max(0.0, now - self._due)
        self.most = max(self.most, lag)
        self.lags.append(lag)
        self._lagging.append((now, lag))
        self.start()
        for listener in self.listeners:
            listener(now)

    def lag_since(self, moment: float) -> float:
        """Returns how late the loop was since ``moment``, all in all: an outcome takes turns."""
        lag = max(0.0, clock() - self._due)
        for at, late in reversed(self._lagging):
            if at < moment:
                break
            lag += late
        return lag


class Logs(logging.Handler):
    """I8: nothing of WARNING or above but the lines for changes of state, and those bounded."""

    def __init__(self, witness: Witness) -> None:
        super().__init__(logging.INFO)
        self._witness = witness
        self.troubles = 0
        self.recoveries = 0
        self._logger = logging.getLogger("tornado_memcache")
        self._level = self._logger.level

    def __enter__(self) -> Logs:
        logging.getLogger().addHandler(self)
        self._logger.setLevel(logging.INFO)
        return self

    def __exit__(self, *_: object) -> None:
        logging.getLogger().removeHandler(self)
        self._logger.setLevel(self._level)

    def emit(self, record: logging.LogRecord) -> None:
        text = record.getMessage()
        if record.name == "tornado_memcache" and record.levelno == logging.INFO:
            self.recoveries += "answers again" in text
        elif record.name == "tornado_memcache" and record.levelno == logging.WARNING:
            self.troubles += 1
        elif record.levelno >= logging.WARNING:
            if record.exc_info and record.exc_info[1] is not None:
                text += f" [{record.exc_info[1]!r}]"
            self._witness.violated("I8", f"{record.levelname} from {record.name}: {text}")

    def check(self, pools: int, seconds: float) -> None:
        """Each recovery of a server is told, and each of its troubles in at most two lines."""
        most = min(2 * (self.recoveries + pools), pools * (4 + 10 * seconds))
        if self.troubles > most:
            told = f"{self.troubles} lines of trouble, {self.recoveries} of recovery"
            self._witness.violated("I8", f"{told}, {pools} pools in {seconds:.0f} s")
