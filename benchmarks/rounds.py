"""Rounds in turn, A B C A B C: one process for each client, one of them working at a time.

Knows the processes and what they answer. A client that is wrong or fails is
out of the workload, with its reason, and the others go on. It must not know
what the figures are compared with.
"""

from __future__ import annotations

import contextlib
import json
import selectors
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from .clients import Adapter, adapter
from .ending import end, started_apart
from .servers import cores, started
from .workloads import KINDS, Workload

ROOT = Path(__file__).resolve().parent.parent
#: A process lives for so many rounds of one workload: some are born slower than others by a
#: quarter, for as long as they live.
A_LIFE = 3
#: Seconds that a process gets to answer. What takes longer hangs.
LIMIT = 90.0


class Worker:
    """The process of one client. It is started when it is first needed, and after a hang."""

    def __init__(self, client: str, loop: str) -> None:
        self.client = client
        self._line = [sys.executable, "-m", "benchmarks.worker", client, loop, cores()[0]]
        self._process: subprocess.Popen[bytes] | None = None

    def ask(self, do: str, **told: Any) -> dict[str, Any]:
        """Has the process do something; returns its answer, or ``{"error": ...}``."""
        if self._process is None:
            self._process = started_apart(
                self._line, cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE
            )
        process = self._process
        assert process.stdin is not None and process.stdout is not None
        with contextlib.suppress(BrokenPipeError):
            process.stdin.write(json.dumps({"do": do, **told}).encode() + b"\n")
            process.stdin.flush()
        with selectors.DefaultSelector() as selector:
            selector.register(process.stdout, selectors.EVENT_READ)
            if not selector.select(LIMIT):
                self.end()
                return {"error": f"no answer to {do} within {LIMIT:.0f} s"}
        answer = process.stdout.readline()
        if not answer:
            self.end()
            return {"error": f"its process ended with status {process.returncode}"}
        found: dict[str, Any] = json.loads(answer)
        return found

    def end(self) -> None:
        if self._process is not None:
            end(self._process)
            for pipe in (self._process.stdin, self._process.stdout):
                if pipe is not None:
                    with contextlib.suppress(BrokenPipeError):
                        pipe.close()
            self._process = None


def why_not(client: type[Adapter], workload: Workload) -> str | None:
    """Returns why a client has nothing that a workload could measure, or None."""
    if workload.servers > 1 and not client.many_servers:
        return "it has one server"
    if client.style == "call" and workload.callers > 1:
        return "its calls block: one caller at a time"
    if client.style == "callback" and workload.kind not in client.kinds:
        return "its callbacks are measured by gets"
    return None if workload.kind in client.kinds else f"it has no {KINDS[workload.kind]}"


def empty() -> dict[str, Any]:
    """Returns what is known of a client under a workload before it was tried."""
    return {"rounds": [], "error": None, "wrong": False, "retried": []}


class Rounds:
    """Measures workloads one after the other; a context manager that ends its processes."""

    def __init__(
        self, clients: Sequence[str], loop: str, seconds: float, say: Callable[[str], None]
    ) -> None:
        self._workers = [Worker(client, loop) for client in clients]
        self._seconds = seconds
        self._say = say

    def __enter__(self) -> Rounds:
        return self

    def __exit__(self, *_: object) -> None:
        for worker in self._workers:
            worker.end()

    def measure(self, workload: Workload, rounds: int) -> dict[str, Any]:
        """Returns the rounds of each client that can do the workload."""
        able = [one for one in self._workers if not why_not(adapter(one.client), workload)]
        found = {worker.client: empty() for worker in able}
        if not able:
            return found
        begun = time.monotonic()
        with started(workload.servers, workload.size) as servers:
            told = {"workload": workload.as_dict(), "seconds": self._seconds}
            told["addresses"] = [server.address for server in servers]
            for first in range(0, rounds, A_LIFE):
                self._live(able, found, told, min(A_LIFE, rounds - first))
        self._say(f"{workload.name}: {time.monotonic() - begun:.0f} s")
        return found

    def _live(
        self, able: list[Worker], found: dict[str, Any], told: dict[str, Any], rounds: int
    ) -> None:
        """Has new processes do some rounds."""
        for worker in able:
            if not found[worker.client]["error"]:
                self._prepare(worker, found, told)
        for _ in range(rounds):
            for worker in able:
                if not found[worker.client]["error"]:
                    self._take(worker, found, "round")
        for worker in able:
            if not found[worker.client]["error"]:
                self._take(worker, found, "close")
            worker.end()

    def _prepare(self, worker: Worker, found: dict[str, Any], told: dict[str, Any]) -> None:
        """Makes a worker ready; a second time if the first failed, but not if it was wrong."""
        mine = found[worker.client]
        self._take(worker, found, "prepare", **told)
        if mine["error"] and not mine["wrong"]:
            worker.end()
            mine["retried"].append(mine["error"])
            mine["error"] = None
            self._say(f"{worker.client}: is made ready a second time")
            self._take(worker, found, "prepare", **told)

    def _take(self, worker: Worker, found: dict[str, Any], do: str, **told: Any) -> None:
        """Has a worker do something and keeps what it answers."""
        answer, mine = worker.ask(do, **told), found[worker.client]
        if "error" in answer:
            if not mine["error"]:
                mine.update(error=answer["error"], wrong=answer.get("wrong", False))
                self._say(f"{worker.client}: {answer['error']}")
            if do == "close":
                worker.end()
        elif do == "round":
            mine["rounds"].append(answer)
        else:
            mine.update(answer)
