"""benchmarks.dialects: its pairs come to the same, and a short run tells of each."""

from __future__ import annotations

from typing import Any

import pytest

from benchmarks import dialects
from tornado_memcache import Client, MetaItem


def plain(outcome: Any) -> Any:
    """Returns what a classic call would have come to."""
    if isinstance(outcome, dict):
        return {key: plain(one) for key, one in outcome.items()}
    if isinstance(outcome, MetaItem):
        return outcome.value if outcome.cas_unique is None else (outcome.value, outcome.cas_unique)
    return outcome


@pytest.mark.parametrize("pair", dialects.PAIRS, ids=lambda pair: f"{pair.name}-{pair.callers}")
@pytest.mark.gen_test
async def test_both_calls_of_a_pair_come_to_the_same(pair, memcached):
    async with Client([memcached.address]) as client:
        await client.set_multi(dict.fromkeys(dialects.KEYS, dialects.VALUE))
        assert plain(await pair.meta(client, 3)) == await pair.classic(client, 3)


@pytest.mark.gen_test(timeout=60)
async def test_a_short_run_tells_of_every_pair(memcached):
    found = await dialects.measured(memcached.address, 1, 0.01)
    assert tuple(found) == dialects.PAIRS
    assert all(classic > 0 and ratio > 0 for classic, ratio in found.values())
    assert len(dialects.table(found).splitlines()) == len(dialects.PAIRS) + 4
