"""A page with one get in it, under wrk, and the same page without a cache.

Knows how the application of one client is served, and what wrk prints. The
application has a core to itself, wrk and memcached share the other.
"""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import os
import re
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

from tornado.httpserver import HTTPServer
from tornado.netutil import bind_sockets
from tornado.web import Application, RequestHandler

from tornado_memcache.web import asynchronous

from . import servers
from .checks import check, native
from .clients import adapter
from .ending import end, started_apart
from .rounds import ROOT, empty
from .servers import cores, started
from .worker import new_loop, pin
from .workloads import Workload, names, value_of

ABOUT = "a handler with one get for each request, 32 connections of wrk"
NO_CACHE = "no_cache"
#: A round is so many times longer than those of the other workloads: HTTP swings more.
LONGER = 6
LOAD = Workload("wrk", ABOUT, callers=32)
CONNECTIONS = 32


def missing() -> str | None:
    """Returns why this cannot be measured, or None."""
    return None if shutil.which("wrk") else "wrk is not installed (apt-get install wrk)"


def why_not(client: str) -> str | None:
    """Returns why a client is left out, or None."""
    return None if adapter(client).distribution else "it is no client"


# -- the application, in a process of its own


def handler(client: Any, pairs: Iterator[tuple[Any, bytes]]) -> type[RequestHandler]:
    """Returns the page as one writes it for a client of that style."""

    class Awaiting(RequestHandler):
        async def get(self) -> None:
            key, want = next(pairs)
            got = await client.fetch(key)
            value = got.value if client.items else got
            self.finish(value if value == want else self.set_status(500) or "wrong")

    class Blocking(RequestHandler):
        def get(self) -> None:
            key, want = next(pairs)
            value = client.fetch(key)
            self.finish(value if value == want else self.set_status(500) or "wrong")

    class Callbacks(RequestHandler):
        @asynchronous
        def get(self) -> None:
            key, self.want = next(pairs)
            client.fetch(key, callback=self.on_value)

        def on_value(self, value: Any) -> None:
            self.finish(value if value == self.want else self.set_status(500) or "wrong")

    class Without(RequestHandler):
        async def get(self) -> None:
            self.finish(next(pairs)[1])

    if client is None:
        return Without
    return {"await": Awaiting, "call": Blocking, "callback": Callbacks}[client.style]


def serve(name: str, loop_name: str, address: str) -> None:
    """Serves the page of one client until it is killed; prints its port first."""
    pin(cores()[0])
    loop = new_loop(loop_name)

    async def main() -> None:
        client = None
        keys: list[Any] = list(names(LOAD))
        values = [value_of(key, LOAD.size) for key in keys]
        if name != NO_CACHE:
            client = adapter(name)()
            await client.open_best([address], LOAD.callers, LOAD.size)
            await check(client, LOAD)
            keys = [native(client, key) for key in keys]
        page = handler(client, itertools.cycle(zip(keys, values)))
        (socket,) = bind_sockets(0, "127.0.0.1")
        server = HTTPServer(Application([("/", page)], log_function=lambda handler: None))
        server.add_sockets([socket])
        print(socket.getsockname()[1], flush=True)
        await asyncio.Event().wait()

    loop.run_until_complete(main())


@contextlib.contextmanager
def served(name: str, loop: str, address: str) -> Iterator[tuple[int, int]]:
    """Serves the page of a client meanwhile: gives its port and its process."""
    line = [sys.executable, "-m", "benchmarks.wrk", name, loop, address]
    process = started_apart(line, cwd=ROOT, stdout=subprocess.PIPE)
    assert process.stdout is not None
    try:
        port = process.stdout.readline()
        if not port:
            raise RuntimeError(f"the application ended with status {process.wait()}")
        yield int(port), process.pid
    finally:
        end(process)
        process.stdout.close()


# -- around it


def under_wrk(port: int, pid: int, seconds: float) -> dict[str, float]:
    """Has wrk ask for the page; returns what it found."""
    line = ["wrk", "-t1", f"-c{CONNECTIONS}", f"-d{max(1, round(seconds))}s", "--latency"]
    # (wrk may starve on the core of memcached for longer than its own timeout.)
    line += ["--timeout", "20s", f"http://127.0.0.1:{port}/"]
    before = cpu_of(pid)
    process = started_apart(line, stdout=subprocess.PIPE, text=True)
    try:
        pin_wrk(process.pid)
        said, _ = process.communicate()
    finally:
        end(process)
    return {**read(said), "cpu": (cpu_of(pid) - before) / requests(said)}


def pin_wrk(pid: int) -> None:
    """Keeps wrk off the core of the application; its threads need a moment to be there."""
    time.sleep(0.02)
    servers.pin(pid, cores()[1])


def cpu_of(pid: int) -> float:
    """Returns the seconds of CPU that a process took."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def requests(said: str) -> int:
    found = re.search(r"(\d+) requests in", said)
    return int(found.group(1)) if found and int(found.group(1)) else 1


def read(said: str) -> dict[str, float]:
    """Reads what wrk prints; RuntimeError if any page was not right."""
    bad = re.search(r"Non-2xx.*|Socket errors: (?!connect 0, read 0, write 0, timeout 0).*", said)
    rate = re.search(r"Requests/sec:\s*([\d.]+)", said)
    if bad or rate is None:
        raise RuntimeError(bad.group(0) if bad else f"wrk said {said[:100]!r}")
    units = {"us": 1e-6, "ms": 1e-3, "s": 1.0}
    parts = {
        f"p{part}": float(number) * units[unit]
        for part, number, unit in re.findall(r"(50|99)%\s+([\d.]+)(us|ms|s)\b", said)
    }
    return {"ops": float(rate.group(1)), **parts}


def measure(
    clients: Sequence[str], rounds: int, loop: str, seconds: float, say: Callable[[str], None]
) -> dict[str, Any]:
    found = {client: empty() for client in (NO_CACHE, *clients)}
    with contextlib.ExitStack() as stack:
        (server,) = stack.enter_context(started(1))
        served_at: dict[str, tuple[int, int]] = {}
        for number in range(-1, rounds):  # (the first only warms up)
            for client, mine in found.items():
                if mine["error"]:
                    continue
                try:
                    if number < 0:
                        made = served(client, loop, server.address)
                        served_at[client] = stack.enter_context(made)
                    took = under_wrk(*served_at[client], seconds * (LONGER if number >= 0 else 1))
                except (RuntimeError, OSError) as error:
                    mine["error"] = f"{type(error).__name__}: {error}"
                    say(f"wrk: {client}: {mine['error']}")
                    continue
                if number >= 0:
                    mine["rounds"].append(took)
    say("wrk: done")
    return found


def main() -> None:
    serve(*sys.argv[1:])


if __name__ == "__main__":
    main()
