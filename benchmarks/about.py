"""What is measured, where, and by which command: what stands beside the figures.

Knows the clients by name, this checkout and this machine. It must not know
any figure. Of the machine it tells what makes a figure large or small, and
nothing by which it could be found.
"""

from __future__ import annotations

import argparse
import datetime
import os
import platform
import re
import shlex
import subprocess
from collections.abc import Sequence
from importlib import metadata
from pathlib import Path
from typing import Any

from .clients import adapter, version
from .rounds import ROOT
from .servers import cores, memcached_version


def about(chosen: argparse.Namespace, argv: Sequence[str]) -> dict[str, Any]:
    """Returns what is measured, and on what; `load` is asked again when the run is over."""
    return {
        "command": command(argv),
        "commit": commit(),
        "date": datetime.datetime.now(datetime.timezone.utc).strftime("%Y-%m-%d %H:%M UTC"),
        "clients": {
            name: {
                "title": adapter(name).title,
                "version": version(name),
                "settings": adapter(name).best,
            }
            for name in chosen.clients
        },
        "not_installed": chosen.not_installed,
        "loop": chosen.loop,
        "loop_version": metadata.version("uvloop") if chosen.loop == "uvloop" else None,
        "python": platform.python_version(),
        "tornado": metadata.version("tornado"),
        "memcached": memcached_version(),
        "system": f"{platform.system()} {platform.machine()}",
        "cpu": cpu(),
        "cores": os.cpu_count(),
        "pinned": bool(cores()[0]),
        "load_begin": load(),
        "load_end": None,
        "rounds": chosen.rounds,
        "seconds": chosen.seconds,
    }


def command(argv: Sequence[str]) -> str:
    """Returns the command as another would type it: a file of figures without its folder."""
    shown = []
    for before, word in zip(["", *argv], argv):
        if before == "--json":
            word = Path(word).name
        elif word.startswith("--json="):
            word = f"--json={Path(word[7:]).name}"
        shown.append(word)
    return shlex.join(["python", "-m", "benchmarks", *shown])


def commit() -> str | None:
    """Returns the commit of this checkout, "-dirty" if files differ; None where git cannot tell."""
    if not (ROOT / ".git").exists():
        return None
    line = ["git", "describe", "--always", "--dirty", "--abbrev=12", "--exclude=*"]
    try:
        said = subprocess.run(line, cwd=ROOT, capture_output=True, text=True, check=True)
    except (OSError, subprocess.CalledProcessError):
        return None
    return said.stdout.strip() or None


def cpu() -> str:
    """Returns the model of the processor, as far as the system tells."""
    try:
        found = re.search(r"^model name\s*: (.*)$", Path("/proc/cpuinfo").read_text(), re.M)
    except OSError:
        found = None
    return found.group(1).strip() if found else platform.processor()


def load() -> float | None:
    """Returns the load average of the last minute: what else the machine did."""
    return round(os.getloadavg()[0], 2) if hasattr(os, "getloadavg") else None
