"""Replies turned into what callers get."""

from __future__ import annotations

import pytest

from tornado_memcache.outcomes import (
    CasUnique,
    FailedKeys,
    MultiResult,
    number,
    reached,
    stored,
    version,
)
from tornado_memcache.protocol import Reply


@pytest.mark.parametrize(
    "outcome, reply, expected",
    [
        (stored, Reply(b"STORED"), True),
        (stored, Reply(b"NOT_STORED"), False),
        (stored, Reply(b"EXISTS"), False),
        (stored, Reply(b"NOT_FOUND"), None),
        (stored, Reply(b""), True),
        (reached, Reply(b"DELETED"), True),
        (reached, Reply(b"TOUCHED"), True),
        (reached, Reply(b"OK"), True),
        (reached, Reply(b"NOT_FOUND"), False),
        (number, Reply(b"NUMBER", number=7), 7),
        (number, Reply(b"NOT_FOUND"), None),
        (version, Reply(b"VERSION", text=b"1.6.18"), "1.6.18"),
    ],
)
def test_each_status_has_its_outcome(outcome, reply, expected):
    assert outcome(reply) is expected or outcome(reply) == expected


def test_a_token_is_fresh_with_its_pool_and_generation():
    class Pool:
        generation = 3

    pool, other = Pool(), Pool()
    token = CasUnique(5)
    token.pool, token.generation = pool, 3
    assert token == 5
    assert token.fresh(pool)
    assert not token.fresh(other)
    pool.generation = 4
    assert not token.fresh(pool)


def test_partial_results_are_what_they_look_like():
    assert MultiResult() == {} and MultiResult().errors == {}
    assert FailedKeys() == [] and FailedKeys().errors == {}
