"""This client and its peers, timed side by side: ``python -m benchmarks``.

Starts its own memcached, gives each client a process, checks its values, a
miss and binary safety, and then lets the clients work in turn. Prints medians,
the ratio of each client to ours round by round, and the bars. Ends with
status 1 if a value was wrong or a client failed, whatever the ratios are.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import sys
import time
from collections.abc import Callable
from importlib import metadata
from pathlib import Path
from typing import Any

from . import memory, stall, wrk
from .clients import MEASURED, adapter, version
from .growth import FAMILIES
from .rounds import Rounds
from .servers import cores, memcached_version
from .table import as_text
from .workloads import WORKLOADS, Workload

#: What is measured in its own way: the module that does, and tells why it cannot.
APART: dict[str, Any] = {"wrk": wrk, "stall": stall, "memory": memory}
#: What can be asked for, in the order in which it is done.
CHOICES = (*WORKLOADS, *APART, *FAMILIES)
#: Growth takes long, and is looked at, not judged.
DEFAULT = (*WORKLOADS, *APART)


def about(chosen: argparse.Namespace) -> dict[str, Any]:
    """Returns what is measured, and on what."""
    return {
        "clients": {
            name: {
                "title": adapter(name).title,
                "version": version(name),
                "settings": adapter(name).best,
            }
            for name in chosen.clients
        },
        "loop": chosen.loop,
        "loop_version": metadata.version("uvloop") if chosen.loop == "uvloop" else None,
        "python": platform.python_version(),
        "tornado": metadata.version("tornado"),
        "memcached": memcached_version(),
        "system": f"{platform.system()} {platform.machine()}",
        "cores": os.cpu_count(),
        "pinned": bool(cores()[0]),
        "rounds": chosen.rounds,
        "seconds": chosen.seconds,
    }


def workloads_of(name: str) -> list[Workload]:
    """Returns the workloads that a name stands for: one, or a family."""
    return [WORKLOADS[name]] if name in WORKLOADS else list(FAMILIES[name][1])


def measure(chosen: argparse.Namespace, say: Callable[[str], None]) -> dict[str, Any]:
    """Measures all that was chosen; returns all that is known then."""
    begun = time.monotonic()
    results: dict[str, Any] = {}
    told: dict[str, str] = {}
    skipped: dict[str, str] = {}
    with Rounds(chosen.clients, chosen.loop, chosen.seconds, say) as rounds:
        for name in chosen.workloads:
            if name not in APART:
                for workload in workloads_of(name):
                    told[workload.name] = workload.about
                    results[workload.name] = rounds.measure(workload, chosen.rounds)
                continue
            if why := APART[name].missing():
                skipped[name] = why
                say(f"{name}: skipped, {why}")
                continue
            told[name] = APART[name].ABOUT
            results[name] = APART[name].measure(
                chosen.clients, chosen.rounds, chosen.loop, chosen.seconds, say
            )
    return {
        "about": about(chosen),
        "seconds": round(time.monotonic() - begun),
        "workloads": told,
        "skipped": skipped,
        "results": results,
    }


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__)
    parser.add_argument("--clients", default=",".join(MEASURED), help="some of %(default)s")
    parser.add_argument(
        "--workloads",
        default=",".join(DEFAULT),
        help=f"some of {','.join(CHOICES)} (default: %(default)s)",
    )
    parser.add_argument("--rounds", type=int, default=9, help="of each client (%(default)s)")
    parser.add_argument(
        "--seconds", type=float, default=0.3, help="that a round takes, about (%(default)s)"
    )
    parser.add_argument("--loop", choices=("asyncio", "uvloop"), default="asyncio")
    parser.add_argument("--json", type=Path, metavar="FILE", help="keep the results as JSON")
    parser.add_argument("--quiet", action="store_true", help="print only the tables")
    chosen = parser.parse_args()
    for name, known in (("clients", MEASURED), ("workloads", CHOICES)):
        asked = getattr(chosen, name).split(",")
        setattr(chosen, name, asked)
        for one in asked:
            if one not in known:
                parser.error(f"there is no {one!r} among the {name}: {', '.join(known)}")
    if chosen.rounds < 1:
        parser.error("--rounds must be 1 or more")
    return chosen


def failed(found: dict[str, Any]) -> bool:
    """Tells whether a value was wrong or a client failed."""
    return any(one["error"] for clients in found["results"].values() for one in clients.values())


def main() -> int:
    chosen = arguments()

    def say(text: str) -> None:
        if not chosen.quiet:
            print(text, file=sys.stderr, flush=True)

    missing = [name for name in chosen.clients if version(name) is None]
    if missing:
        print(
            f"not installed, left out: {', '.join(missing)} (pip install '.[benchmarks]')",
            file=sys.stderr,
        )
    chosen.clients = [name for name in chosen.clients if name not in missing]
    found = measure(chosen, say)
    print(as_text(found))
    if chosen.json:
        chosen.json.write_text(json.dumps(found, indent=1) + "\n")
    return int(failed(found))


if __name__ == "__main__":
    sys.exit(main())
