"""How the cost of a call grows: with callers, servers, bytes of a value, keys of a get_multi.

Knows families of workloads that differ in one number. It must not know how
they are measured.
"""

from __future__ import annotations

from .workloads import Workload

#: The families, by their names: what grows, and the workloads.
FAMILIES: dict[str, tuple[str, tuple[Workload, ...]]] = {
    "callers": (
        "callers at once",
        tuple(
            Workload(f"callers{n}", f"{n} callers at once", callers=n, family="callers")
            for n in (1, 3, 10, 32, 100, 320, 1000, 3200, 10_000)
        ),
    ),
    "servers": (
        "servers, 256 callers at once",
        tuple(
            Workload(
                f"servers{n}",
                f"256 callers over {n} servers",
                callers=256,
                servers=n,
                family="servers",
            )
            for n in (1, 2, 4, 8, 16, 32, 64)
        ),
    ),
    "values": (
        "bytes of a value, one caller",
        tuple(
            Workload(f"values{n}", f"one caller, get of {n} bytes", size=n, family="values")
            for n in (10, 100, 1000, 10_000, 100_000, 1_000_000, 10_000_000)
        ),
    ),
    "keys": (
        "keys of a get_multi, one caller",
        tuple(
            Workload(f"keys{n}", f"get_multi of {n} keys", "multi", keys=n, family="keys")
            for n in (1, 3, 10, 32, 100, 320, 1000)
        ),
    ),
}


def size_of(workload: Workload) -> int:
    """Returns the number in which a workload of a family differs from the others."""
    return {
        "callers": workload.callers,
        "servers": workload.servers,
        "values": workload.size,
        "keys": workload.keys,
    }[workload.family]
