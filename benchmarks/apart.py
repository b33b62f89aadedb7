"""A measurement that takes a process of its own, once for each round and client.

Knows how such a process is started and what it may print. It must not know
what is measured.
"""

from __future__ import annotations

import gc
import json
import os
import subprocess
import sys
from collections.abc import Callable, Coroutine, Sequence
from typing import Any

from .ending import end, started_apart
from .rounds import ROOT, empty
from .servers import cores
from .worker import new_loop, pin

#: Seconds that one measurement may take.
LIMIT = 60.0


def here(measure: Callable[[str], Coroutine[Any, Any, dict[str, Any]]]) -> None:
    """Measures in this process, as ``MODULE CLIENT LOOP`` of its command line say."""
    client, loop = sys.argv[1:]
    pin(cores()[0])
    gc.collect()

    async def measured() -> None:
        print(json.dumps(await measure(client)), flush=True)

    new_loop(loop).run_until_complete(measured())
    sys.stderr.flush()
    # A client that was not closed in order is none of our business here.
    os._exit(0)


def once(module: str, client: str, loop: str) -> dict[str, Any]:
    """Measures in a process of its own; returns the figures, or ``{"error": ...}``."""
    line = [sys.executable, "-m", f"benchmarks.{module}", client, loop]
    pipe = subprocess.PIPE
    process = started_apart(line, cwd=ROOT, stdout=pipe, stderr=pipe, text=True)
    try:
        told, errors = process.communicate(timeout=LIMIT)
    except subprocess.TimeoutExpired:
        return {"error": f"not done within {LIMIT:.0f} s"}
    finally:
        # It has a memcached of its own, which is stopped perhaps.
        end(process)
        for stream in (process.stdout, process.stderr):
            if stream is not None:
                stream.close()
    if process.returncode or not told:
        last = errors.strip().splitlines()[-1:]
        return {"error": f"status {process.returncode}: {' '.join(last)}"[:300]}
    found: dict[str, Any] = json.loads(told)
    return found


def in_turn(
    module: str, clients: Sequence[str], rounds: int, loop: str, say: Callable[[str], None]
) -> dict[str, Any]:
    """Returns the rounds of each client, as `.rounds` does."""
    found = {client: empty() for client in clients}
    for _ in range(rounds):
        for client, mine in found.items():
            if mine["error"]:
                continue
            answer = once(module, client, loop)
            if "error" in answer:
                mine["error"] = answer["error"]
                say(f"{module}: {client}: {answer['error']}")
            else:
                mine["rounds"].append(answer)
    say(f"{module}: done")
    return found
