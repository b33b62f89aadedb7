"""The memcacheds of a measurement, and which core is whose.

Knows how the tests start a memcached, and keeps each on one core. It must not
know the clients.
"""

from __future__ import annotations

import contextlib
import os
import re
import subprocess
from collections.abc import Iterator
from pathlib import Path

from tests.memcacheds import Memcached, find_binary

#: One thread; room for the largest values; no limit that a client could meet.
ARGUMENTS = ["-t", "1", "-c", "4096"]
FOR_LARGE = ["-I", "32m", "-m", "512"]
#: Values of this size and more need it.
LARGE = 1_000_000


def cores() -> tuple[str, str]:
    """Returns the cores of the clients and those of the servers; "" where nothing is pinned."""
    if not hasattr(os, "sched_getaffinity"):
        return "", ""
    usable = sorted(os.sched_getaffinity(0))
    if len(usable) < 2:
        return "", ""
    return str(usable[0]), str(usable[-1])


def pin(pid: int, wanted: str) -> None:
    """Keeps all threads of a process on ``wanted``."""
    if wanted:
        for task in Path(f"/proc/{pid}/task").iterdir():
            with contextlib.suppress(OSError):  # (a thread that has ended)
                os.sched_setaffinity(int(task.name), {int(core) for core in wanted.split(",")})


@contextlib.contextmanager
def started(count: int, size: int = 0) -> Iterator[list[Memcached]]:
    """Starts ``count`` memcacheds that take values of ``size`` bytes, and ends them."""
    with contextlib.ExitStack() as stack:
        found = []
        for _ in range(count):
            server = Memcached(ARGUMENTS + (FOR_LARGE if size >= LARGE else []))
            stack.callback(server.close)
            assert server.pid is not None
            pin(server.pid, cores()[1])
            found.append(server)
        yield found


def memcached_version() -> str:
    binary = find_binary() or "memcached"
    said = subprocess.run([binary, "-V"], capture_output=True, text=True, check=True).stdout
    return re.sub("^memcached ", "", said.strip())
