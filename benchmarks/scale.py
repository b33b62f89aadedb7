"""Many processes over many servers, on paper: connections and memory, from measured parts.

``python -m benchmarks.scale`` prints the table of ``docs/performance.rst``.
Knows the parts, which were measured one by one, and the arithmetic. It must
not know a client or a socket.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import NamedTuple

#: Bytes that memcached 1.6 keeps for a connection that was used and rests
#: (5 000 of them, by its private memory).
SERVER_CONNECTION = 610
#: Bytes that Linux keeps for one end of a TCP connection at rest: socket, inode,
#: file, dentry and its places in epoll (by /proc/slabinfo, 18 000 of them).
KERNEL_CONNECTION = 3_800
#: Bytes of a connection that was used and rests, of this client and of emcache, which has one
#: call on a connection and takes many servers (both as ``benchmarks.memory`` measures them).
OUR_CONNECTION = 4_900
EMCACHE_CONNECTION = 2_020
#: Calls under way in one process at the same time, for which a pool is made.
UNDER_WAY = 256
#: A pool that is too small makes calls wait: each, by itself, is to suffice so often.
SUFFICES = 0.999

PROCESSES = (100, 1_000, 10_000)
SERVERS = (100, 1_000)


class Row(NamedTuple):
    """What ``processes`` over ``servers`` need, with ``each`` connections from one to another.

    Memory in bytes: of one server, its kernel's part included, and of one process.
    """

    processes: int
    servers: int
    each: int
    connection: int

    @property
    def at_a_server(self) -> int:
        return self.processes * self.each

    @property
    def at_a_process(self) -> int:
        return self.servers * self.each

    @property
    def server_memory(self) -> int:
        return self.at_a_server * (SERVER_CONNECTION + KERNEL_CONNECTION)

    @property
    def process_memory(self) -> int:
        return self.at_a_process * (self.connection + KERNEL_CONNECTION)


def one_call_each(servers: int, under_way: int = UNDER_WAY) -> int:
    """Returns how many connections to one server a client needs that has one call on each.

    ``under_way`` calls fall on ``servers`` at random: the least number that
    is not exceeded at one of them more often than 1 - `SUFFICES`.
    """
    mean = under_way / servers
    number, term = 0, math.exp(-mean)
    total = term
    while total < SUFFICES:
        number += 1
        term *= mean / number
        total += term
    return max(number, 1)


def rows() -> Iterator[tuple[Row, Row]]:
    """Yields this client's row and that of emcache, with one call on a connection."""
    for servers in SERVERS:
        for processes in PROCESSES:
            ours = Row(processes, servers, 1, OUR_CONNECTION)
            yield ours, Row(processes, servers, one_call_each(servers), EMCACHE_CONNECTION)


def amount(size: float) -> str:
    """Returns bytes as people write them: "441 kB", "44 MB"."""
    if size < 1000:
        return f"{size:.0f} B"
    for unit in ("kB", "MB"):
        size /= 1000
        if size < 1000:
            return f"{size:.3g} {unit}"
    return f"{size / 1000:.3g} GB"


def table() -> str:
    """Returns the table in reStructuredText."""
    head = ["processes", "servers", "connections at a server", "memory at a server"]
    head += ["connections of a process", "memory of a process"]
    lines = [".. list-table::", "   :header-rows: 1", ""]
    lines += _row(head)
    for ours, theirs in rows():
        cells = [f"{ours.processes:,}", f"{ours.servers:,}"]
        cells += [
            f"{ours.at_a_server:,} / {theirs.at_a_server:,}",
            f"{amount(ours.server_memory)} / {amount(theirs.server_memory)}",
            f"{ours.at_a_process:,} / {theirs.at_a_process:,}",
            f"{amount(ours.process_memory)} / {amount(theirs.process_memory)}",
        ]
        lines += _row(cells)
    return "\n".join(lines)


def _row(cells: list[str]) -> list[str]:
    return [f"   {'*' if not place else ' '} - {cell}" for place, cell in enumerate(cells)]


if __name__ == "__main__":
    print(table())
