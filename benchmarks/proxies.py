"""``./run bench-proxy``: this proxy beside nutcracker and a direct connection, in one run.

Knows how the proxies are started and what processes cost. Proxies are on the
first core (two processes on both), memcacheds and the generator on the last.
Every round measures all of them, one after the other; the table has medians.
It must not know how requests are made (`.proxy_load`).
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import shutil
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

from tests.memcacheds import Memcached, free_port

from .servers import cores, memcached_version, pin, started

ROOT = Path(__file__).resolve().parent.parent
NUTCRACKER = shutil.which("nutcracker", path=os.environ.get("PATH", "") + ":/usr/sbin")
YAML = """\
cache:
  listen: 127.0.0.1:{port}
  hash: md5
  distribution: modula
  timeout: 5000
  servers:
   - {first}:1
   - {second}:1
"""
TICKS = os.sysconf("SC_CLK_TCK")


class Workload(NamedTuple):
    """What the generator is asked for; ``rate``: requests a second, 0 for as fast as it goes."""

    name: str
    clients: int
    depth: int
    keys: int
    rate: int = 0


WORKLOADS = (
    Workload("multi-gets of 10 keys, 16 pipelined by each of 8 clients", 8, 16, 10),
    Workload("multi-gets of 100 keys, 16 pipelined by each of 8 clients", 8, 16, 100),
    Workload("gets of one key, 16 pipelined by each of 32 clients", 32, 16, 1),
    Workload("multi-gets of 10 keys, one at a time by each of 32 clients", 32, 1, 10),
    Workload("gets of one key by 32 clients, 1 000 a second", 32, 1, 1, 1000),
)
IDLE = 500


class Target(NamedTuple):
    """Something that listens, and the processes that it costs."""

    name: str
    port: int
    pids: list[int]


def cpu_seconds(pids: list[int]) -> float:
    total = 0
    for pid in pids:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
        total += int(fields[11]) + int(fields[12])
    return total / TICKS


def resident(pids: list[int]) -> int:
    """Returns the bytes of memory that processes have of their own."""
    total = 0
    for pid in pids:
        for line in Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines():
            if line.startswith(("Private_Clean", "Private_Dirty")):
                total += int(line.split()[1]) * 1024
    return total


def await_port(port: int) -> None:
    end = time.monotonic() + 20
    while True:
        with contextlib.suppress(OSError):
            socket.create_connection(("127.0.0.1", port), timeout=5).close()
            return
        assert time.monotonic() < end, f"nobody listens on {port}"
        time.sleep(0.02)


def children(pid: int) -> list[int]:
    return [int(one) for one in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]


@contextlib.contextmanager
def process(line: list[str], port: int, on: str) -> Iterator[subprocess.Popen[bytes]]:
    running = subprocess.Popen(
        line, cwd=ROOT, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )  # fmt: skip
    try:
        pin(running.pid, on)
        await_port(port)
        yield running
    finally:
        running.terminate()
        running.wait()


@contextlib.contextmanager
def targets(servers: list[Memcached], folder: Path) -> Iterator[list[Target]]:
    """Starts everything that is measured, in front of ``servers``."""
    first, last = cores()
    with contextlib.ExitStack() as stack:
        assert servers[0].port is not None and servers[0].pid is not None
        found = [Target("direct, to one memcached", servers[0].port, [servers[0].pid])]
        if NUTCRACKER is not None:
            port = free_port()
            text = YAML.format(port=port, first=servers[0].address, second=servers[1].address)
            (folder / "nutcracker.yml").write_text(text)
            line = [NUTCRACKER, "-c", str(folder / "nutcracker.yml"), "-a", "127.0.0.1",
                    "-s", str(free_port())]  # fmt: skip
            running = stack.enter_context(process(line, port, first))
            found.append(Target("nutcracker", port, [running.pid]))
        for count in (1, 2):
            port = free_port()
            line = [sys.executable, "-m", "tornado_memcache", "proxy", f"--processes={count}",
                    f"--listen=127.0.0.1:{port}", "--request-timeout=5"]  # fmt: skip
            line += [f"--server={server.address}" for server in servers]
            on = first if count == 1 or not first else f"{first},{last}"
            running = stack.enter_context(process(line, port, on))
            pids = [running.pid] if count == 1 else children(running.pid)
            for pid in pids:
                pin(pid, on)
            name = "this proxy" if count == 1 else "this proxy, two processes"
            found.append(Target(name, port, pids))
        yield found


def measured(target: Target, workload: Workload, seconds: float) -> dict[str, float]:
    """Returns what one round of a workload found."""
    numbers = [target.port, workload.clients, workload.depth, workload.keys, workload.rate, seconds]
    generator = subprocess.Popen(
        [sys.executable, "-m", "benchmarks.proxy_load", *map(str, numbers)],
        cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
    )  # fmt: skip
    try:
        assert generator.stdin is not None and generator.stdout is not None
        pin(generator.pid, cores()[1])
        assert generator.stdout.readline() == "ready\n"
        before = cpu_seconds(target.pids)
        generator.stdin.write("go\n")
        generator.stdin.flush()
        found = json.loads(generator.stdout.readline())
        spent = cpu_seconds(target.pids) - before
    finally:
        generator.kill()
        generator.communicate()
    took = found["took"]
    return {
        "requests/s": found["requests"] / found["seconds"],
        "cpu": spent / max(found["requests"], 1),
        "p50": took[len(took) // 2],
        "p99": took[len(took) * 99 // 100],
    }


def idle_bytes(target: Target) -> float:
    """Returns the bytes of memory for each client that does nothing (one request before)."""
    before = resident(target.pids)
    peers = []
    for _ in range(IDLE):
        peers.append(socket.create_connection(("127.0.0.1", target.port), timeout=30))
        peers[-1].sendall(b"get key-00001\r\n")
    for peer in peers:
        peer.recv(1000)
    found = resident(target.pids) - before
    for peer in peers:
        peer.close()
    return max(found, 0) / IDLE


def row(name: str, found: list[dict[str, float]]) -> list[str]:
    median = {what: statistics.median(one[what] for one in found) for what in found[0]}
    each = 1 / median["cpu"] if median["cpu"] else 0
    return [name, f"{median['requests/s']:,.0f}", f"{each:,.0f}",
            f"{median['p50'] * 1e6:,.0f}", f"{median['p99'] * 1e6:,.0f}"]  # fmt: skip


def table(rows: list[list[str]]) -> str:
    widths = [max(len(one[n]) for one in rows) for n in range(len(rows[0]))]
    rule = "  ".join("=" * width for width in widths)
    lines = ["  ".join(cell.ljust(width) for cell, width in zip(one, widths)) for one in rows]
    return "\n".join([rule, lines[0].rstrip(), rule, *(line.rstrip() for line in lines[1:]), rule])


def main() -> None:
    parser = argparse.ArgumentParser(description="this proxy beside nutcracker")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--seconds", type=float, default=2.0, help="of each measurement")
    asked = parser.parse_args()
    found: dict[tuple[str, str], list[dict[str, Any]]] = {}
    with started(2) as servers, tempfile.TemporaryDirectory() as folder:
        with targets(servers, Path(folder)) as measure:
            memory = {target.name: idle_bytes(target) for target in measure[1:]}
            for _ in range(asked.rounds):
                for workload in WORKLOADS:
                    for target in measure:
                        one = measured(target, workload, asked.seconds)
                        found.setdefault((workload.name, target.name), []).append(one)
    for workload in WORKLOADS:
        print(f"\n{workload.name[0].upper()}{workload.name[1:]}:\n")
        head = ["..", "requests/s", "for each s of CPU", "p50 µs", "p99 µs"]
        print(table([head, *(row(t.name, found[workload.name, t.name]) for t in measure)]))
    print(f"\nMemory for each of {IDLE} idle clients:\n")
    rows = [[name, f"{each / 1024:.1f}"] for name, each in memory.items()]
    print(table([["..", "KB"], *rows]))
    load = " ".join(f"{one:.1f}" for one in os.getloadavg())
    print(f"\nmemcached {memcached_version()}, Python {sys.version.split()[0]}, "
          f"{os.cpu_count()} cores, load {load} at the end.")  # fmt: skip


if __name__ == "__main__":
    main()
