"""A small chaos run finds nothing; and for each invariant, a client that breaks it is found."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from contextvars import Context
from typing import Any

import pytest

from tornado_memcache import Client, ConnectionFailed, Reply, Timeout, boundaries
from tornado_memcache.boundaries import Entry
from tornado_memcache.call import CallbackCall
from tornado_memcache.computations import Computation
from tornado_memcache.deadlines import Deadlines
from tornado_memcache.gathered import GatheredSlot
from tornado_memcache.pool import Pool
from tornado_memcache.protocol import OwedReplies, Slot
from tornado_memcache.stream import SegmentStream

from . import chaos, chaos_witness
from .chaos import Plan, Report
from .chaos_commands import Command
from .chaos_values import (
    NEVER,
    UNKNOWN,
    WRITTEN,
    Damaged,
    Moment,
    OwnedKey,
    Step,
    make_value,
    read_value,
)
from .ledger import KINDS, Ledger

Patch = pytest.MonkeyPatch

#: Ends what broken clients leave behind.
LEFT: list[Callable[[], Any]] = []


@pytest.fixture(autouse=True)
def state_changes_are_logged(expect_log: Callable[..., Any]) -> None:
    expect_log("tornado_memcache", "", level=logging.INFO, times=range(100_000))


# -- runs


@pytest.mark.parametrize("seed", [1, 2])
def test_a_small_run_finds_nothing(seed: int) -> None:
    report = chaos.run(Plan(calls=2000, seed=seed, pace=0.3))
    assert not report.violations, str(report)
    witness = report.witness
    assert witness.calls >= 2000
    assert witness.strict_calls > witness.calls / 2
    assert report.facts["judged"] > 500
    assert witness.outcomes["value"] > 0
    assert sum(report.troubles.values()) > 0
    for name in (*chaos.INVARIANTS, "seed", "outcomes", "latest outcome", "lag", "Tornado"):
        assert name in str(report)


def quiet_run(seed: int = 1) -> Report:
    """A run without troubles: what is found there is the client's doing."""
    return chaos.run(Plan(calls=600, seed=seed, callers=60, pace=0.02, troubled=False))


def test_a_run_without_troubles_finds_nothing() -> None:
    report = quiet_run()
    assert not report.violations, str(report)
    assert report.witness.outcomes["value"] > 100


Breaks = Callable[[Patch], None]
BROKEN: list[tuple[Breaks, str]] = []


def breaks(name: str) -> Callable[[Breaks], Breaks]:
    """Declares that the client, after what the function does to it, breaks the invariant."""

    def declare(function: Breaks) -> Breaks:
        BROKEN.append((function, name))
        return function

    return declare


def now_and_then(patch: Patch, owner: Any, name: str, instead: Callable[..., Any]) -> None:
    """Has every 20th call of a method go to ``instead(real, self, *args)``."""
    real, count = getattr(owner, name), 0

    def method(self: Any, *args: Any, **kwargs: Any) -> Any:
        nonlocal count
        count += 1
        if count % 20:
            return real(self, *args, **kwargs)
        return instead(real, self, *args, **kwargs)

    patch.setattr(owner, name, method)


@breaks("I1")
def an_outcome_is_dropped(patch: Patch) -> None:
    patch.setattr(chaos_witness, "DROPPED", 0.3)
    now_and_then(patch, CallbackCall, "set_result", lambda *_: None)


@breaks("I1")
def an_outcome_is_delivered_twice(patch: Patch) -> None:
    def twice(real: Any, self: Any, result: Any) -> None:
        real(self, result)
        real(self, result)

    now_and_then(patch, CallbackCall, "set_result", twice)


@breaks("I1")
def a_call_fails_and_its_boundary_is_not_told(patch: Patch) -> None:
    patch.setattr(chaos_witness, "DROPPED", 0.3)
    patch.setattr(Pool, "submit", lambda self, slot: slot.fail(Timeout("no")))
    patch.setattr(Entry, "fail", lambda *_: None)


@breaks("I1")
def a_boundary_that_has_ended_still_delivers(patch: Patch) -> None:
    def failed(real: Any, self: Pool, slot: Slot) -> None:
        asyncio.get_running_loop().call_soon(slot.fail, Timeout("no"))

    now_and_then(patch, Pool, "submit", failed)
    patch.setattr(Entry, "cancel_by", lambda self, entry: len(self._members))


@breaks("I2")
def an_outcome_is_late(patch: Patch) -> None:
    def late(real: Any, self: Any, result: Any) -> None:
        asyncio.get_running_loop().call_later(0.9, real, self, result, context=Context())

    now_and_then(patch, CallbackCall, "set_result", late)


@breaks("I3")
def a_timer_is_left(patch: Patch) -> None:
    def left(self: Deadlines) -> None:
        self._timeout = None

    patch.setattr(Deadlines, "_disarm", left)


@breaks("I4")
def a_stream_is_not_closed(patch: Patch) -> None:
    patch.setattr(SegmentStream, "close", lambda self, *_, **__: LEFT.append(self.socket.close))


@breaks("I5")
def a_pool_counts_wrong(patch: Patch) -> None:
    def miscounted(real: Any, self: Pool, slot: Slot) -> None:
        real(self, slot)
        self.pending += 1

    now_and_then(patch, Pool, "submit", miscounted)


@breaks("I6")
def two_outcomes_are_swapped(patch: Patch) -> None:
    real = GatheredSlot.deliver

    def swapped(self: GatheredSlot) -> None:
        self.items.reverse()
        real(self)

    patch.setattr(GatheredSlot, "deliver", swapped)


@breaks("I6")
def a_computation_gives_what_another_one_has_made(patch: Patch) -> None:
    real, kept = Computation._give, []

    def mixed(self: Computation, value: Any, callers: Any) -> None:
        kept.append(value)
        real(self, kept.pop(0) if len(kept) > 1 else value, callers)

    patch.setattr(Computation, "_give", mixed)


@breaks("I8")
def a_computation_goes_on_when_nobody_wants_it(patch: Patch) -> None:
    def left(self: Computation, caller: Any) -> None:
        self._callers.pop(caller, None)
        LEFT.append(self._end)

    patch.setattr(Computation, "waiter_left", left)


@breaks("I6")
def a_write_is_acknowledged_that_was_never_sent(patch: Patch) -> None:
    real = Pool.submit

    def unsent(self: Pool, slot: Slot) -> None:
        if slot.request.verb != b"set":
            real(self, slot)
        else:
            slot.reply = Reply(b"STORED")
            asyncio.get_running_loop().call_soon(slot.deliver)

    patch.setattr(Pool, "submit", unsent)


@breaks("I7")
def a_connection_keeps_half_a_reply(patch: Patch) -> None:
    def half(self: OwedReplies) -> None:
        self._tail = b"VAL"

    patch.setattr(OwedReplies, "tidy", half)


@breaks("I8")
def a_task_is_left(patch: Patch) -> None:
    real = Client.close

    def close(self: Client) -> None:
        real(self)
        LEFT.append(asyncio.ensure_future(asyncio.sleep(60)).done)

    patch.setattr(Client, "close", close)


@breaks("I8")
def a_line_is_logged_for_each_call(patch: Patch) -> None:
    def logged(real: Any, self: Pool, slot: Slot) -> None:
        logging.getLogger("tornado.application").error("a call was made")
        real(self, slot)

    now_and_then(patch, Pool, "submit", logged)


@breaks("I9")
def a_callback_runs_in_another_context(patch: Patch) -> None:
    def elsewhere(real: Any, self: CallbackCall, result: Any) -> None:
        self._context = Context()
        real(self, result)

    now_and_then(patch, CallbackCall, "set_result", elsewhere)


@breaks("I9")
def a_callback_runs_outside_of_its_boundary(patch: Patch) -> None:
    real = boundaries.run

    def run(callback: Any, argument: Any, context: Context, entry: Entry | None) -> None:
        real(callback, argument, context, None)

    patch.setattr(boundaries, "run", run)


@pytest.mark.parametrize(("breaks", "name"), BROKEN, ids=[one.__name__ for one, _ in BROKEN])
def test_a_client_that_breaks_it_is_found(
    breaks: Breaks, name: str, monkeypatch: Patch, ledger: Ledger
) -> None:
    ledger.excuse(*KINDS)
    monkeypatch.setattr(chaos, "RECOVERY", 0.3)
    breaks(monkeypatch)
    # (What has to meet in one moment may miss each other in a short run.)
    for seed in range(1, 11):
        try:
            report = quiet_run(seed)
        finally:
            while LEFT:
                LEFT.pop()()
        if report.violations.get(name):
            return
    pytest.fail(str(report))


# -- values, and what an owner may find


def test_a_value_tells_whose_it_is_whatever_was_added_to_it() -> None:
    first, second = make_value("k", 1, 100), make_value("k", 2, 0)
    assert read_value(first) == [("k", 1)]
    assert read_value((second + first).decode()) == [("k", 2), ("k", 1)]


@pytest.mark.parametrize("place", [0, 3, 30, -1, -5])
def test_a_value_in_which_a_bit_was_flipped_is_damaged(place: int) -> None:
    value = bytearray(make_value("k", 1, 100))
    value[place] ^= 4
    with pytest.raises(Damaged):
        read_value(bytes(value))


POOL = object()


def judged(
    states: list[Any], *steps: Step, lost: bool = False, moved: bool = False
) -> tuple[str | None, OwnedKey]:
    key = OwnedKey("k", bytes, states)
    begun, ended = Moment(1.0, (POOL, 1)), Moment(2.0, (POOL, 2 if moved else 1))
    return key.judge(list(steps), begun, ended, lost), key


def test_an_answer_moves_the_state_of_a_key() -> None:
    steps = [Step("add", b"a", answer=True), Step("append", b"b", answer=True)]
    wrong, key = judged([None], *steps, Step("get", answer=b"ab"), Step("delete", answer=True))
    assert wrong is None and key.states == [None] and not key.retired


def test_an_earlier_read_may_be_newer_but_never_older() -> None:
    writes = [Step("set", b"b", answer=True), Step("set", b"c", answer=True)]
    wrong, _ = judged([b"a"], Step("get", answer=b"c"), *writes)
    assert wrong is None
    wrong, _ = judged([b"a"], writes[0], Step("get", answer=b"a"), writes[1])
    assert wrong is not None and "cannot be" in wrong


@pytest.mark.parametrize(
    "step",
    [
        Step("get", answer=b"b"),
        Step("get", answer="a"),
        Step("get", answer=None),
        Step("add", b"b", answer=True),
        Step("replace", b"b", answer=False),
        Step("touch", answer=False),
        Step("cas", b"b", b"x", answer=True),
        Step("cas", b"b", b"a", answer=False),
        Step("delete", answer=False),
    ],
    ids=str,
)
def test_what_does_not_fit_the_state_is_told(step: Step) -> None:
    wrong, key = judged([b"a"], step)
    assert wrong is not None and key.retired
    assert judged([b"a"], step, moved=True)[0] is not None, "whatever was lost meanwhile"


def test_a_miss_fits_only_where_the_server_lost_its_items() -> None:
    assert judged([b"a"], Step("get", answer=None), lost=True)[0] is None
    assert judged([b"a"], Step("get", answer=b"b"), lost=True)[0] is not None


def test_an_unknown_write_is_settled_by_the_next_answer_on_the_same_connection() -> None:
    unknown = Step("set", b"b", known=UNKNOWN)
    wrong, key = judged([b"a"], unknown)
    assert wrong is None and key.states == [b"a", b"b"] and key.unsettled is not None
    for found in (b"a", b"b"):
        wrong, key = judged([b"a"], unknown, Step("get", answer=found))
        assert wrong is None and key.states == [found] and key.unsettled is None
    assert judged([b"a"], unknown, Step("get", answer=b"c"))[0] is not None


def test_an_unknown_write_on_a_lost_connection_gives_the_key_up() -> None:
    wrong, key = judged([b"a"], Step("set", b"b", known=UNKNOWN), moved=True)
    assert wrong is None and key.retired
    assert judged([b"a"], Step("get", answer=b"a"), moved=True)[1].retired is False


def test_a_written_noreply_has_happened_once_a_later_call_is_answered() -> None:
    written = Step("set", b"b", known=WRITTEN)
    assert judged([b"a"], written)[1].states == [b"a", b"b"]
    assert judged([b"a"], written, Step("get", answer=b"b"))[0] is None
    assert judged([b"a"], written, Step("get", answer=b"a"))[0] is not None


def test_what_certainly_failed_was_not_stored() -> None:
    never = Step("set", b"b", known=NEVER)
    assert judged([b"a"], never, Step("get", answer=b"a"))[0] is None
    assert judged([b"a"], never, Step("get", answer=b"b"))[0] is not None


def test_an_outcome_that_carries_no_reply_is_not_held_against_the_key() -> None:
    failed = Command("set", "k", b"b").step("failed", ConnectionFailed(maybe_applied=True))
    assert failed.known == UNKNOWN
    assert Command("set", "k", b"b").step("failed", ConnectionFailed()).known == NEVER
    assert Command("get", "k").step("cancelled", None).known == NEVER
    assert Command("delete", "k").step("cancelled", None).known == UNKNOWN
    assert Command("set", "k", b"b", noreply=True).step("value", True).known == WRITTEN
    assert Command("get", "k", raw=True).step("value", Reply(b"END")).answer is None
