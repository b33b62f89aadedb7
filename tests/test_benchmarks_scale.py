"""The arithmetic of many processes over many servers, against numbers that can be seen."""

from __future__ import annotations

import random
from pathlib import Path

import pytest

from benchmarks.scale import (
    EMCACHE_CONNECTION,
    OUR_CONNECTION,
    PROCESSES,
    SERVERS,
    amount,
    one_call_each,
    rows,
    table,
)


@pytest.mark.parametrize("servers", SERVERS)
def test_a_pool_is_as_large_as_calls_that_fall_at_random_ask_for(servers: int) -> None:
    needed, thrown, fits = one_call_each(servers), random.Random(1), 0
    for _ in range(2000):
        fits += sum(thrown.randrange(servers) == 0 for _ in range(256)) <= needed
    assert 0.99 <= fits / 2000
    assert one_call_each(servers, 0) == 1 and one_call_each(1) > 256


def test_each_row_adds_up() -> None:
    assert len(list(rows())) == len(SERVERS) * len(PROCESSES)
    for ours, theirs in rows():
        assert ours.each == 1 < theirs.each
        assert ours.at_a_server * ours.servers == ours.at_a_process * ours.processes
        assert ours.server_memory < theirs.server_memory
        assert ours.process_memory < theirs.process_memory


def test_the_table_is_told_in_units() -> None:
    assert [amount(n) for n in (0, 999, 4_410, 44_100_000, 5e9)] == [
        "0 B",
        "999 B",
        "4.41 kB",
        "44.1 MB",
        "5 GB",
    ]
    assert table().count("   * - ") == 1 + len(SERVERS) * len(PROCESSES)


def test_the_documentation_holds_the_table_that_the_command_prints() -> None:
    text = (Path(__file__).resolve().parent.parent / "docs" / "performance.rst").read_text()
    assert table() in text
    for size in (OUR_CONNECTION, EMCACHE_CONNECTION):
        assert f"takes {size / 1000:.1f} kB" in " ".join(text.split())
