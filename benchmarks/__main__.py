"""This client and its peers, timed side by side: ``python -m benchmarks``.

Starts its own memcached, gives each client processes of its own, checks its
values, a miss and binary safety, and then lets the clients work in turn. Prints
medians, the ratio of each client to ours round by round, and the bars. Ends
with status 1 if a value was wrong or a client failed, whatever the ratios are.
A run that is stopped prints and keeps what it has measured until then.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import math
import os
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from tests.memcacheds import find_binary

from . import memory, stall, wrk
from .about import about, load
from .clients import MEASURED, adapter, version
from .ending import Stopped, orderly
from .growth import FAMILIES
from .rounds import Rounds, why_not
from .table import as_text
from .workloads import WORKLOADS, Workload

#: What is measured in its own way: the module that does, and tells why it cannot.
APART: dict[str, Any] = {"wrk": wrk, "stall": stall, "memory": memory}
#: What can be asked for, in the order in which it is done.
CHOICES = (*WORKLOADS, *APART, *FAMILIES)
#: Growth takes long, and is looked at, not judged.
DEFAULT = (*WORKLOADS, *APART)
#: How peers are installed.
EXTRA = "pip install '.[benchmarks]'"


def workloads_of(name: str) -> list[Workload]:
    """Returns the workloads that a name stands for: one, or a family."""
    return [WORKLOADS[name]] if name in WORKLOADS else list(FAMILIES[name][1])


def measure(
    chosen: argparse.Namespace,
    found: dict[str, Any],
    say: Callable[[str], None],
    keep: Callable[[dict[str, Any]], None],
) -> None:
    """Measures all that was chosen into ``found``; each workload is kept when it is done."""
    begun, clients = time.monotonic(), chosen.clients

    def leave_out(name: str, reasons: dict[str, str | None]) -> list[str]:
        found["left_out"][name] = {who: why for who, why in reasons.items() if why}
        return [who for who, why in reasons.items() if not why]

    def done(name: str, told: str, results: dict[str, Any]) -> None:
        found["workloads"][name], found["results"][name] = told, results
        found["seconds"] = round(time.monotonic() - begun)
        found["about"]["load_end"] = load()
        keep(found)

    with Rounds(chosen.clients, chosen.loop, chosen.seconds, say) as rounds:
        for name in chosen.workloads:
            if name not in APART:
                for one in workloads_of(name):
                    leave_out(one.name, {who: why_not(adapter(who), one) for who in clients})
                    done(one.name, one.about, rounds.measure(one, chosen.rounds))
            elif why := APART[name].missing():
                found["skipped"][name] = why
                say(f"{name}: skipped, {why}")
            else:
                able = leave_out(name, {who: APART[name].why_not(who) for who in clients})
                told = (able, chosen.rounds, chosen.loop, chosen.seconds, say)
                done(name, APART[name].ABOUT, APART[name].measure(*told))
    found["stopped"] = None


# -- the file of --json


def check_file(path: Path) -> None:
    """Raises OSError if a file at ``path`` could not be written, before anything is measured."""
    if path.exists() and not path.is_file():
        raise OSError(None, "it is no file")
    part = _beside(path)
    part.touch()
    part.unlink()


def write(path: Path, found: dict[str, Any]) -> None:
    """Puts the results in the place of those that were there, as a whole."""
    part = _beside(path)
    try:
        part.write_text(json.dumps(found, indent=1) + "\n")
        os.replace(part, path)
    finally:
        part.unlink(missing_ok=True)


def _beside(path: Path) -> Path:
    return path.with_name(f"{path.name}.{os.getpid()}.part")


# -- the command


def seconds(text: str) -> float:
    value = float(text)
    if not (math.isfinite(value) and value > 0):
        raise argparse.ArgumentTypeError(f"{text} is not more than 0 and finite")
    return value


def rounds(text: str) -> int:
    value = int(text)
    if value < 1:
        raise argparse.ArgumentTypeError(f"{text} is not 1 or more")
    return value


def parser() -> argparse.ArgumentParser:
    made = argparse.ArgumentParser(
        prog="python -m benchmarks", description=__doc__, allow_abbrev=False
    )
    made.add_argument("--clients", default=",".join(MEASURED), help="some of %(default)s")
    made.add_argument(
        "--workloads",
        default=",".join(DEFAULT),
        help=f"some of {','.join(CHOICES)} (default: %(default)s)",
    )
    made.add_argument("--rounds", type=rounds, default=9, help="of each client (%(default)s)")
    made.add_argument(
        "--seconds", type=seconds, default=0.3, help="that a round takes, about (%(default)s)"
    )
    made.add_argument("--loop", choices=("asyncio", "uvloop"), default="asyncio")
    made.add_argument("--json", type=Path, metavar="FILE", help="keep the results as JSON")
    made.add_argument("--quiet", action="store_true", help="print only the tables")
    return made


def arguments() -> argparse.Namespace:
    """Returns what is to be measured, once all that it takes is known to be there."""
    asking = parser()
    chosen = asking.parse_args()
    for name, known in (("clients", MEASURED), ("workloads", CHOICES)):
        asked = list(dict.fromkeys(one.strip() for one in getattr(chosen, name).split(",")))
        setattr(chosen, name, asked)
        for one in asked:
            if one not in known:
                asking.error(f"there is no {one!r} among the {name}: {', '.join(known)}")
    chosen.not_installed = [name for name in chosen.clients if version(name) is None]
    chosen.clients = [name for name in chosen.clients if name not in chosen.not_installed]
    if not chosen.clients:
        asking.error(f"none is installed of {', '.join(chosen.not_installed)}: {EXTRA}")
    if chosen.loop == "uvloop" and importlib.util.find_spec("uvloop") is None:
        asking.error(f"--loop uvloop: it is not installed: {EXTRA}")
    if find_binary() is None:
        asking.error("there is no memcached on PATH: apt-get install memcached")
    if chosen.json:
        try:
            chosen.json = chosen.json.resolve()
            check_file(chosen.json)
        except OSError as error:
            asking.error(f"--json {chosen.json} cannot be written: {error.strerror}")
    return chosen


def failed(found: dict[str, Any]) -> bool:
    """Tells whether a value was wrong or a client failed."""
    return any(one["error"] for clients in found["results"].values() for one in clients.values())


def main() -> int:
    chosen = arguments()
    unkept: list[str] = []

    def say(text: str) -> None:
        if not chosen.quiet:
            print(text, file=sys.stderr, flush=True)

    def keep(found: dict[str, Any]) -> None:
        unkept.clear()
        if chosen.json:
            try:
                write(chosen.json, found)
            except OSError as error:
                unkept.append(f"{chosen.json} cannot be written: {error.strerror}")
                print(unkept[0], file=sys.stderr, flush=True)

    if chosen.not_installed:
        names = ", ".join(chosen.not_installed)
        print(f"not installed, left out: {names}: {EXTRA}", file=sys.stderr)
    found: dict[str, Any] = {"about": about(chosen, sys.argv[1:]), "seconds": 0}
    found.update(stopped="it is under way", workloads={}, skipped={}, left_out={}, results={})
    status = 0
    try:
        with orderly():
            measure(chosen, found, say, keep)
    except Stopped as stopped:
        found["stopped"], status = str(stopped), stopped.status
    keep(found)
    print(as_text(found))
    return status or int(failed(found) or bool(unkept))


if __name__ == "__main__":
    sys.exit(main())
