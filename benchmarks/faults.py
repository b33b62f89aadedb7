"""The same faults, done to this client and to its peers: ``python -m benchmarks.faults``.

Each fault is tried on each client in a process of its own with a hard time
limit: a client that spins or hangs is a result, not a problem. Prints the
table; ``--rst FILE`` and ``--json FILE`` keep it. Ends with status 1 if this
client met a fault badly that it is not known for.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import json
import os
import platform
import re
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import asdict
from importlib import metadata
from pathlib import Path
from typing import Any

from tests.memcacheds import find_binary

from . import fault_replies  # noqa: F401  (its rows stand in CASES, after the others)
from .clients import NAMES, adapter, version
from .fault_bench import DEADLINE, Bench, Verdict
from .fault_cases import CASES, KNOWN
from .fault_table import as_rst, as_text

ROOT = Path(__file__).resolve().parent.parent
#: A process that is found computing in so many looks does not wait for anything.
SPINS = 0.5
LOOKS = 20


# -- within the process of one fault and one client


def try_here(fault: str, client: str) -> None:
    """Tries one fault on one client, prints the verdict as JSON, and ends the process."""

    async def tried() -> None:
        async with Bench(client) as bench:
            try:
                verdict = await CASES[fault].run(bench)
            except Exception as error:
                why = f"{type(error).__name__}: {error}"[:300]
                verdict = Verdict("failed", False, detail=why)
            print(json.dumps(asdict(verdict)), flush=True)
        # A call that hangs in its thread would keep the process.
        os._exit(0)

    asyncio.run(tried())


# -- around it


def try_apart(fault: str, client: str) -> dict[str, Any]:
    """Tries one fault on one client in a process of its own; returns the verdict and more."""
    line = [sys.executable, "-m", "benchmarks.faults", "--one", fault, client]
    begun = time.monotonic()
    verdict = supervised(line, CASES[fault].limit)
    seconds = round(time.monotonic() - begun, 2)
    return {"fault": fault, "client": client, **verdict, "seconds": seconds}


def supervised(line: Sequence[str], limit: float) -> dict[str, Any]:
    """Runs a command that prints a verdict; returns that, or what became of the process."""
    with tempfile.TemporaryFile() as said:
        process = subprocess.Popen(
            line, cwd=ROOT, stdout=subprocess.PIPE, stderr=said, start_new_session=True
        )
        try:
            out, _ = process.communicate(timeout=limit)
            return json.loads(out) if out else _ended_badly(process, said)
        except subprocess.TimeoutExpired:
            busy = sum(_wants_a_core(process.pid) for _ in range(LOOKS))
            word = "spins" if busy > SPINS * LOOKS else "hangs"
            detail = f"stopped after {limit:.0f} s; computing in {busy} of {LOOKS} looks"
            return asdict(Verdict(word, False, detail=detail))
        finally:
            # Its memcached is in its group, stopped or not.
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()
            if process.stdout:
                process.stdout.close()


def _ended_badly(process: subprocess.Popen[bytes], said: Any) -> dict[str, Any]:
    said.seek(0)
    last = said.read().decode(errors="replace").strip().splitlines()[-1:]
    detail = f"status {process.returncode}: {' '.join(last)}"[:300]
    return asdict(Verdict("crashed", False, detail=detail))


def _wants_a_core(pid: int) -> bool:
    """Looks whether a thread of a process runs or would, if it had a core.

    That is as true on a loaded machine, where CPU time tells little.
    """
    time.sleep(0.01)
    states = []
    for file in Path(f"/proc/{pid}/task").glob("*/stat"):
        with contextlib.suppress(OSError):  # (a thread that has ended meanwhile)
            states.append(file.read_text().rpartition(")")[2].split()[0])
    return "R" in states


def about(clients: Sequence[str]) -> dict[str, Any]:
    """Returns what was measured, and on what."""
    binary = find_binary() or "memcached"
    said = subprocess.run([binary, "-V"], capture_output=True, text=True, check=True).stdout
    return {
        "clients": {
            name: {
                "title": adapter(name).title,
                "version": version(name),
                "settings": adapter(name).settings,
            }
            for name in clients
        },
        "deadline": DEADLINE,
        "python": platform.python_version(),
        "tornado": metadata.version("tornado"),
        "memcached": re.sub("^memcached ", "", said.strip()),
        "cores": os.cpu_count(),
    }


def run(clients: Sequence[str], faults: Sequence[str], *, quiet: bool = False) -> dict[str, Any]:
    """Tries all faults on all clients, one after the other; returns all that is known then."""
    begun = time.monotonic()
    results = []
    for fault in faults:
        for client in clients:
            results.append(try_apart(fault, client))
            if not quiet:
                one = results[-1]
                said = f"{one['word']} {one['figure']}".strip()
                print(f"{fault:16}{client:18}{said:24}{one['detail']}", file=sys.stderr)
    rows = {name: CASES[name]._asdict() for name in faults}
    for row in rows.values():
        del row["run"]
    seconds = round(time.monotonic() - begun)
    return {"about": about(clients), "seconds": seconds, "faults": rows, "results": results}


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.faults", description=__doc__)
    parser.add_argument("--clients", default=",".join(NAMES), help="some of %(default)s")
    parser.add_argument("--faults", default=",".join(CASES), help="some of %(default)s")
    parser.add_argument("--json", type=Path, metavar="FILE", help="keep the results as JSON")
    parser.add_argument("--rst", type=Path, metavar="FILE", help="keep the table as RST")
    parser.add_argument("--quiet", action="store_true", help="print no line for each trial")
    parser.add_argument("--one", nargs=2, metavar=("FAULT", "CLIENT"), help=argparse.SUPPRESS)
    chosen = parser.parse_args()
    chosen.clients = chosen.clients.split(",")
    chosen.faults = chosen.faults.split(",")
    for name in chosen.clients:
        if name not in NAMES:
            parser.error(f"there is no client {name!r}")
    for name in chosen.faults:
        if name not in CASES:
            parser.error(f"there is no fault {name!r}")
    return chosen


def main() -> int:
    chosen = arguments()
    if chosen.one:
        try_here(*chosen.one)
    missing = [name for name in chosen.clients if version(name) is None]
    if missing:
        print(
            f"not installed, left out: {', '.join(missing)} (pip install '.[benchmarks]')",
            file=sys.stderr,
        )
    clients = [name for name in chosen.clients if name not in missing]
    found = run(clients, chosen.faults, quiet=chosen.quiet)
    print(as_text(found))
    if chosen.json:
        chosen.json.write_text(json.dumps(found, indent=1) + "\n")
    if chosen.rst:
        chosen.rst.write_text(as_rst(found))
    ours = [one for one in found["results"] if one["client"] == "ours"]
    return int(any(one["good"] is False and one["fault"] not in KNOWN for one in ours))


if __name__ == "__main__":
    sys.exit(main())
