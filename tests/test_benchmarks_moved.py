"""How many keys move when a server joins: the arithmetic, and that the docs tell it as it is."""

from __future__ import annotations

from pathlib import Path

import pytest

from benchmarks import moved
from tornado_memcache.ring import _RINGS

DOCS = Path(__file__).resolve().parent.parent / "docs"


def test_the_figures_of_the_docs_are_those_of_a_fresh_measurement() -> None:
    assert moved.table() in (DOCS / "deployment.rst").read_text()


def test_every_ring_is_measured() -> None:
    assert set(_RINGS) <= {ring for ring in moved.RINGS.values() if isinstance(ring, str)}


def test_what_moves_is_counted_key_by_key() -> None:
    class Halves:
        """A ring on which the second half of the keys changes hands, and nobody is asked."""

        def server_for(self, key: bytes, alive: tuple[object, ...]) -> object:
            number = int(key.rpartition(b"-")[2])
            if number < 2500:
                return alive[len(alive) - 1 if len(alive) > 3 else 0]
            return alive[len(alive) - 3 if number >= 5000 else 0]

    # of 10 000 keys 2 500 go to the new server, and 5 000 from one old server to another
    assert moved.moved(Halves(), 3) == (0.75, 0.5)
    assert moved.fullest(Halves(), 3) == pytest.approx(3.0)
    assert moved.percent(0.12345) == "12.3 %"


def test_no_key_that_stays_moves_on_a_consistent_ring() -> None:
    for name, ring in moved.RINGS.items():
        gone, astray = moved.moved(ring, 4)
        assert (astray == 0) is (name != '"modulo"'), name
        assert 0.1 < gone < (0.3 if name != '"modulo"' else 0.9), name
