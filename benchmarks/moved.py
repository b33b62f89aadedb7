"""How many keys move when a server joins: ``python -m benchmarks.moved``.

Knows the rings and a list of made-up servers; it asks where each key goes
before and after, and needs no server, no clock and no chance: the figures are
the same on every machine. Prints the table of ``docs/deployment.rst``, which a
test compares with a fresh one.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from typing import Any

from tornado_memcache.address import Server, parse_servers
from tornado_memcache.ring import Ketama, make_ring, md5_hash

from .table import simple_table

KEYS = [b"key-%d" % number for number in range(10_000)]
#: So many servers are there before one more joins.
BEFORE = (2, 4, 10, 30)
#: Of so many servers the fullest is told.
BALANCED = 10

#: Each ring as it stands in ``Client(..., ring=)``.
RINGS: dict[str, Any] = {
    '"modulo"': "modulo",
    '"ketama"': "ketama",
    "Ketama with md5_hash": lambda servers: Ketama(servers, key_hash=md5_hash),
    '"ketama_weighted"': "ketama_weighted",
    '"rendezvous"': "rendezvous",
}


def servers(number: int) -> tuple[Server, ...]:
    """Returns the first ``number`` servers of a list without end."""
    return parse_servers([f"10.0.0.{index + 1}:11211" for index in range(number)])


def placed(ring: Any, number: int) -> list[int]:
    """Returns the server of each key when there are ``number`` of them."""
    place: Callable[[bytes], int] = make_ring(ring, servers(number)).place
    return [place(key) for key in KEYS]


def moved(ring: Any, before: int) -> tuple[float, float]:
    """Returns the share of keys that move when one more server joins ``before`` others.

    The second is the share that moves between two servers that were there
    already, which no key need do.
    """
    pairs = list(zip(placed(ring, before), placed(ring, before + 1)))
    gone = sum(old != new for old, new in pairs)
    astray = sum(old != new != before for old, new in pairs)
    return gone / len(pairs), astray / len(pairs)


def fullest(ring: Any, number: int = BALANCED) -> float:
    """Returns how many keys the fullest of ``number`` servers has, its even share being 1."""
    return max(Counter(placed(ring, number)).values()) * number / len(KEYS)


def percent(share: float) -> str:
    return f"{share * 100:.1f} %"


def table(before: Sequence[int] = BEFORE) -> str:
    """Returns the table, in RST."""
    head = [f"{number} to {number + 1}" for number in before]
    rows = [["ring", *head, "of these, astray", f"fullest of {BALANCED}"]]
    for name, ring in RINGS.items():
        shares = [moved(ring, number) for number in before]
        astray = max(lost / gone for gone, lost in shares)
        rows.append(
            [f"``{name}``" if name.startswith('"') else name]
            + [percent(gone) for gone, _ in shares]
            + [percent(astray), f"{fullest(ring):.2f} x"]
        )
    even = [percent(1 / (number + 1)) for number in before]
    rows.append(["an even share", *even, "0.0 %", "1.00 x"])
    return "\n".join(simple_table(rows)) + "\n"


def main() -> None:
    print(table(), end="")


if __name__ == "__main__":
    main()
