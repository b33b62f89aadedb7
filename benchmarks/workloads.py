"""What is asked of every client: how many callers, which calls, which keys and values.

Knows the shape of the load as data, and the keys and values of a workload. It
must not know a client, nor how anything is timed.
"""

from __future__ import annotations

import functools
from dataclasses import asdict, dataclass
from typing import Any

#: Keys that are asked for, unless there are more callers, or values too large for so many.
KEYS = 1000
#: Bytes that all values of a workload come to, at most (one value may be larger).
BYTES = 8_000_000
#: What the kinds of workloads ask a client for.
KINDS = {
    "gets": "get",
    "mix": "get and set",
    "burst": "gather",
    "multi": "get_multi",
    "sets": "set",
}
#: Of so many calls of a mixed workload one is a set.
MIX = 10


@dataclass(frozen=True)
class Workload:
    """A load. ``kind`` is "gets", "mix", "burst", "multi" or "sets".

    ``callers`` call at once, each again as soon as it has its answer.
    ``keys`` is the number of keys of a burst or a get_multi.
    """

    name: str
    about: str
    kind: str = "gets"
    callers: int = 1
    size: int = 100
    keys: int = 1
    servers: int = 1
    #: Measured only if it is asked for: by its name, or by that of its family.
    family: str = ""

    @property
    def values_a_call(self) -> int:
        """How many operations a burst counts for; a get_multi counts as one."""
        return self.keys if self.kind == "burst" else 1

    def as_dict(self) -> dict[str, Any]:
        return asdict(self)


def names(workload: Workload) -> list[str]:
    """Returns the keys of a workload."""
    wanted = max(KEYS, workload.callers)
    count = max(4, min(wanted, BYTES // workload.size))
    return [f"key:{number:06d}" for number in range(count)]


def value_of(name: str, size: int) -> bytes:
    """Returns the one right value of a key, which is another's in no byte of its beginning."""
    return (name[-6:].encode() + b":").ljust(size, b"x")[:size]


def steps(workload: Workload, keys: list[Any], values: list[bytes], calls: int) -> list[list[Any]]:
    """Returns what each caller does: a list of steps for each of them, ``calls`` in all.

    ``keys`` are as the client takes them, ``values`` theirs. Callers that
    keep the same pace ask for different keys.
    """
    count = len(keys)
    each = max(1, calls // workload.callers)
    items = list(zip(keys, values))
    many = workload.kind in ("burst", "multi")

    def one(caller: int, number: int) -> Any:
        at = (caller * 7 + number * 13) % count
        if workload.kind == "mix":
            return (*items[at], (caller + number) % MIX == 0)
        if not many:
            return items[at]
        several = [items[(at + more) % count] for more in range(workload.keys)]
        return [key for key, _ in several], [value for _, value in several]

    # (Steps that come again are made once: a list of 1 000 keys is not small.)
    made = functools.lru_cache(None)(one) if many else one
    return [
        [made(caller, number % count) for number in range(each)]
        for caller in range(workload.callers)
    ]


WORKLOADS = {
    one.name: one
    for one in (
        Workload("seq", "one caller, one get at a time"),
        Workload("c32", "32 callers at once", callers=32),
        Workload("c256", "256 callers at once", callers=256),
        Workload("c1000", "1 000 callers at once", callers=1000),
        Workload("mix256", "256 callers, 90 % get, 10 % set", "mix", callers=256),
        Workload("burst100", "one caller, gather of 100 gets", "burst", keys=100),
        Workload("get_multi100", "one caller, get_multi of 100 keys", "multi", keys=100),
        Workload("get100k", "one caller, get of 100 KB", size=100_000),
        Workload("get1m", "one caller, get of 1 MB", size=1_000_000),
        Workload("set1m", "one caller, set of 1 MB", "sets", size=1_000_000),
    )
}
