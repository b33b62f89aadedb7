"""Four memcacheds restarted one after the other under load: every call ends, once and rightly."""

from __future__ import annotations

import pytest

from benchmarks.rolling import SERVERS, first_burst, measured, summary
from tornado_memcache import ConnectionFailed, ServerDead

LOG = "tornado_memcache"
#: Seconds; what a loop that stood still for longer adds is allowed beside it.
TIMEOUT, SLACK = 2.0, 0.25


@pytest.mark.parametrize("on_dead", ["fail", "rehash"])
@pytest.mark.gen_test(timeout=60)
async def test_no_call_ends_but_with_its_value_a_miss_or_one_failure(on_dead, expect_log):
    expect_log(LOG, "taken for dead", times=range(1, SERVERS + 1))
    expect_log(LOG, "fails: ", times=range(SERVERS + 1))
    found = await measured(on_dead=on_dead, request_timeout=TIMEOUT)
    told = str(summary(found))
    assert len(found.calls) == found.made > 1000, told
    assert not [call for call in found.calls if not call.is_right], told
    slack = SLACK + 5 * found.stalled
    assert max(call.ended - call.begun for call in found.calls) <= TIMEOUT + slack, told
    # nothing fails but what falls to a server while it is away, and there is a good call before
    # and after
    assert len(found.deaths) == SERVERS
    for call in found.calls:
        for error in call.errors:
            assert isinstance(error, (ConnectionFailed, ServerDead)), (call, told)
            assert any(
                death.server == error.server
                and death.killed <= call.ended
                and call.begun <= death.back + slack
                for death in found.deaths
            ), (call, told)
    for death in found.deaths:
        assert [one for one in found.calls if one.begun > death.back and not one.errors], told
        # to find out, and then after pauses that double from 0.25 s
        assert 1 <= death.connects <= 3 + (death.back - death.killed) / 0.2, told
    if on_dead == "rehash":
        failed = sum(bool(call.errors) for call in found.calls)
        assert failed < len(found.calls) / 10, told


def test_a_burst_of_failures_ends_with_the_first_pause() -> None:
    assert first_burst([]) == 0.0 and first_burst([0.01, 0.02, 0.1]) == 0.1
    assert first_burst([0.01, 0.1, 0.3, 0.31]) == 0.1
