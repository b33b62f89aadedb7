"""What a fault needs to be tried on one client, and the words for what came of it.

Knows one adapter, the servers that were started for it, and the clock. It
must not know which fault is tried, nor which client it is.
"""

from __future__ import annotations

import asyncio
import contextlib
import secrets
import time
from collections.abc import Awaitable, Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from tests.faultproxy import FaultProxy
from tests.memcacheds import Memcached

from .clients import Adapter, Blocking, adapter
from .fault_server import FakeMemcached

#: The timeout that each client gets, where it takes one. Seconds, as all here.
DEADLINE = 0.5
#: So much later is still "by its deadline": the machine has other things to do.
SLACK = 0.25
#: So long a call is waited for. What takes longer hangs.
GUARD = 3.0
#: A failure within this length did not wait for any deadline.
AT_ONCE = 0.25

#: The keys that are read after a fault.
BOBS = [f"bob{n}" for n in range(6)]

NONCE = secrets.token_hex(4).encode()


def value_of(key: str) -> bytes:
    """Returns the one right value of ``key`` in this process."""
    return b"value of " + key.encode() + b" " + NONCE


class Outcome(NamedTuple):
    """How a call ended: ``kind`` is "value", "miss", "error" or "hangs"."""

    kind: str
    seconds: float
    value: Any = None
    error: BaseException | None = None

    @property
    def why(self) -> str:
        """The error in a few words."""
        if self.error is None:
            return self.kind
        return f"{type(self.error).__name__}: {self.error}".removesuffix(": ")[:120]


@dataclass
class Verdict:
    """What came of a fault: a word, True, False or None for neither good nor bad.

    ``figure`` stands behind the word in the table, ``detail`` does not.
    """

    word: str
    good: bool | None
    figure: str = ""
    detail: str = ""


def milliseconds(seconds: float) -> str:
    return f"{seconds * 1000:.0f} ms"


class Bench:
    """One client and its servers; an async context manager."""

    def __init__(self, name: str) -> None:
        self.adapter: type[Adapter] = adapter(name)
        self._stack = contextlib.ExitStack()
        self._clients: list[Adapter] = []

    async def __aenter__(self) -> Bench:
        return self

    async def __aexit__(self, *_: Any) -> None:
        # No client is closed in order: one that hangs would hang here too.
        # The process ends anyway, and with it what the client holds.
        self._stack.close()

    # -- servers and clients

    def fake(self, *keys: str) -> FakeMemcached:
        """Starts a `FakeMemcached` that holds ``keys`` with their right values."""
        server = self._stack.enter_context(FakeMemcached())
        server.items.update({key.encode(): value_of(key) for key in keys})
        return server

    def memcached(self, *keys: str) -> Memcached:
        """Starts a real memcached that holds ``keys``."""
        server = Memcached()
        self._stack.callback(server.close)
        for key in keys:
            store(server, key, value_of(key))
        return server

    def proxy(self, server: Memcached) -> FaultProxy:
        return self._stack.enter_context(FaultProxy(server.address))

    async def open(self, address: str, timeout: float = DEADLINE, **how: Any) -> Adapter:
        client = self.adapter()
        if isinstance(client, Blocking):
            client.direct = bool(how.pop("direct", False))
        await client.open(address, timeout, **how)
        self._clients.append(client)
        return client

    async def warm(self, address: str, key: str = "warm", **how: Any) -> Adapter:
        """Opens a client and lets it make as many connections as it likes."""
        client = await self.open(address, **how)
        await self.use(client, key)
        return client

    async def use(self, client: Adapter, key: str = "warm") -> None:
        """Has ``client`` read ``key`` a few times, at once and one after the other."""
        for at_once in (1, 4, 1):
            outcomes = await asyncio.gather(
                *(self.outcome(client.get, key) for _ in range(at_once))
            )
            assert all(outcome.value == value_of(key) for outcome in outcomes), outcomes

    # -- calls

    async def outcome(
        self, call: Callable[..., Awaitable[Any]], *args: Any, guard: float = GUARD, **how: Any
    ) -> Outcome:
        """Makes a call and waits for its end, ``guard`` seconds at most."""
        begun = time.monotonic()
        try:
            future = asyncio.ensure_future(call(*args, **how))
        except Exception as error:
            return Outcome("error", time.monotonic() - begun, error=error)
        await asyncio.wait({future}, timeout=guard)
        took = time.monotonic() - begun
        if not future.done():
            return Outcome("hangs", took)
        if future.cancelled():
            return Outcome("error", took, error=asyncio.CancelledError())
        if future.exception() is not None:
            return Outcome("error", took, error=future.exception())
        return Outcome("miss" if future.result() is None else "value", took, future.result())

    async def by_deadline(
        self,
        client: Adapter,
        call: Callable[..., Awaitable[Any]],
        *args: Any,
        timeout: float = DEADLINE,
        guard: float = GUARD,
    ) -> Outcome:
        """As `outcome`; a client without deadlines gets one as its users would give it."""
        if client.has_deadlines:
            return await self.outcome(call, *args, guard=guard)
        return await self.outcome(lambda: asyncio.wait_for(call(*args), timeout), guard=guard)

    async def reads(self, client: Adapter, keys: Iterable[str]) -> list[tuple[str, Outcome]]:
        return [(key, await self.by_deadline(client, client.get, key)) for key in keys]

    async def other_reads(self, client: Adapter, server: FakeMemcached) -> Verdict:
        """Reads the keys `BOBS`, and then one key that changes before each of six reads."""
        verdict = judge_reads(await self.reads(client, BOBS))
        if verdict.good is False:
            return verdict
        for turn in range(6):
            now = server.items[b"carol"] = value_of("carol") + b" %d" % turn
            outcome = await self.by_deadline(client, client.get, "carol")
            if outcome.kind == "value" and outcome.value != now:
                return Verdict("old value", False, detail=f"{outcome.value!r} instead of {now!r}")
        return verdict


def store(server: Memcached, key: str, value: bytes) -> None:
    """Stores from the side."""
    line = b"set %b 0 0 %d\r\n%b\r\n" % (key.encode(), len(value), value)
    assert server.ask(line) == b"STORED\r\n"


def stored(server: Memcached, key: str) -> bytes:
    """Returns the reply to a get from the side: it ends with END."""
    return server.ask(b"get %b\r\n" % key.encode(), b"END\r\n")


async def wait_for(event: Any, seconds: float = 5.0) -> None:
    """Waits for a `threading.Event` without blocking the loop."""
    if not await asyncio.get_running_loop().run_in_executor(None, event.wait, seconds):
        raise TimeoutError("the request did not arrive")


# -- verdicts


def judge_reads(reads: list[tuple[str, Outcome]]) -> Verdict:
    """Judges reads of keys that all are there, on a server that is well."""
    for key, outcome in reads:
        if outcome.kind == "value" and outcome.value != value_of(key):
            return Verdict("wrong value", False, detail=f"get({key}) gave {outcome.value!r:.60}")
    for kind in ("hangs", "error", "miss"):
        bad = [outcome for _, outcome in reads if outcome.kind == kind]
        if not bad:
            continue
        detail = f"{len(bad)} of {len(reads)} reads: {bad[0].why}"
        if kind == "hangs":
            return Verdict("hangs", False, detail=detail)
        word = {"error": "errors", "miss": "misses"}[kind]
        return Verdict(word, None, f"{len(bad)} of {len(reads)}", detail)
    return Verdict("right", True)


def judge_failure(outcome: Outcome) -> Verdict:
    """Judges a call that has to fail, at once."""
    took = milliseconds(outcome.seconds)
    if outcome.kind == "hangs":
        return Verdict("hangs", False, detail=f"nothing within {outcome.seconds:.0f} s")
    if outcome.kind == "value":
        return Verdict("wrong value", False, took, f"{outcome.value!r:.80}")
    if outcome.kind == "miss":
        return Verdict("miss", None, took, "no error is seen")
    late = outcome.seconds > AT_ONCE
    return Verdict("error", None if late else True, took, outcome.why)


def judge_end(outcome: Outcome) -> Verdict:
    """Judges a call to a server that is silent: it has to end by its deadline."""
    took = milliseconds(outcome.seconds)
    if outcome.kind == "hangs":
        return Verdict("hangs", False)
    if outcome.seconds > DEADLINE + SLACK:
        return Verdict("late", False, took, outcome.why)
    if outcome.kind == "miss":
        return Verdict("miss", None, took, "no error is seen")
    return Verdict("error", True, took, outcome.why)


def peak_memory() -> int:
    """Returns the most memory that this process has held since `forget_peak`, in bytes."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith("VmHWM:"):
            return int(line.split()[1]) * 1024
    raise RuntimeError("/proc/self/status has no VmHWM")


def forget_peak() -> int:
    """Lets `peak_memory` begin anew; returns what is held now."""
    Path("/proc/self/clear_refs").write_text("5")
    return peak_memory()
