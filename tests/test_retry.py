"""What is tried again after a connection was lost, as pure decisions."""

from __future__ import annotations

import errno

import pytest

from tornado_memcache.errors import (
    CLOSED,
    AuthenticationError,
    ClientClosed,
    ConnectionFailed,
    ProtocolError,
)
from tornado_memcache.protocol import Request
from tornado_memcache.retry import failure_for, may_be_unknown, sort_out
from tornado_memcache.slots import slot_for


class Waiter:
    def __init__(self, ended=False):
        self.ended = ended

    def done(self):
        return self.ended


def slot(verb, *, sent=True, retried=False, ended=False):
    made = slot_for(Request(verb, (b"k",)), Waiter(ended), lambda reply: reply, 1.0)
    made.sent, made.lost_at = sent, 1.0 if retried else float("inf")
    return made


LOST = ConnectionFailed("lost")
REFUSED = ConnectionFailed("refused", phase="connecting")
UNKNOWN = AuthenticationError("who?", phase="authenticating")


@pytest.mark.parametrize(
    "error, made, again",
    [
        (LOST, slot(b"get"), True),
        (LOST, slot(b"gets"), True),
        (LOST, slot(b"gat"), False),
        (LOST, slot(b"set"), False),
        (LOST, slot(b"set", sent=False), True),
        (LOST, slot(b"get", retried=True), False),
        (LOST, slot(b"set", sent=False, retried=True), False),
        (UNKNOWN, slot(b"set", retried=True), True),
        (LOST, slot(b"get", ended=True), False),
        (REFUSED, slot(b"set"), True),
        (REFUSED, slot(b"set", retried=True), True),
        (REFUSED, slot(b"set", ended=True), False),
        (ProtocolError("garbage"), slot(b"get"), False),
        (ClientClosed("closed"), slot(b"get"), False),
    ],
)
def test_what_is_tried_again(error, made, again):
    assert sort_out(error, 2.0, [made], [], False) == (([made], []) if again else ([], [made]))
    assert sort_out(error, 2.0, [made], [], True) == ([], [made])


@pytest.mark.parametrize("error", [REFUSED, UNKNOWN])
def test_a_refused_connection_has_its_answered_and_unsent_slots_tried_again_and_no_sent_write(
    error,
):
    """The refusal may be that of one server behind a proxy: the others took theirs."""
    answered, write, read = slot(b"incr"), slot(b"incr"), slot(b"get")
    unsent = slot(b"incr", sent=False)
    again, failed = sort_out(error, 2.0, [answered, write, read], [unsent], False)
    assert (again, failed) == ([answered, read, unsent], [write])
    assert failure_for(write, error).maybe_applied
    answered.confirms = (b"silent",)  # (it may be that noreply request which was refused)
    assert answered in sort_out(error, 2.0, [answered], [], False)[1]


@pytest.mark.parametrize("sent", [True, False])
@pytest.mark.parametrize(
    "opened_at, lost_at, again",
    [
        (2.0, float("inf"), True),  # (it was not tried)
        (1.0, 2.0, True),  # that one was open already when the first was lost
        (2.0, 2.0, False),
        (3.0, 2.0, False),
        (1.0, 0.0, False),  # its reply had begun
        (0.0, 0.0, False),
    ],
)
def test_a_call_is_tried_once_on_the_connections_that_opened_since_its_first_loss(
    opened_at, lost_at, again, sent
):
    made = slot(b"get", sent=sent)
    made.lost_at = lost_at
    owed, unsent = ([made], []) if sent else ([], [made])
    assert sort_out(LOST, opened_at, owed, unsent, False) == (
        ([made], []) if again else ([], [made])
    )
    assert sort_out(REFUSED, opened_at, owed, unsent, False) == ([made], [])


def test_what_the_others_fail_with():
    write = failure_for(slot(b"set"), LOST)
    assert write.maybe_applied and "set 'k'" in str(write) and write is not LOST
    assert not failure_for(slot(b"set", sent=False), LOST).maybe_applied
    assert not failure_for(slot(b"get"), LOST).maybe_applied
    assert failure_for(slot(b"set"), ClientClosed("closed")).maybe_applied


CLOSED_BY_SERVER = ConnectionFailed(CLOSED, server="a:1")
RESET = ConnectionFailed("connection lost", errno=errno.ECONNRESET, server="a:1")


@pytest.mark.parametrize(
    "error, made, told",
    [
        (CLOSED_BY_SERVER, slot(b"flush_all"), True),
        (RESET, slot(b"stats"), True),
        (RESET, slot(b"gat"), True),
        (CLOSED_BY_SERVER, slot(b"get"), False),
        (CLOSED_BY_SERVER, slot(b"set"), False),
        (CLOSED_BY_SERVER, slot(b"stats", sent=False), False),
        (ConnectionFailed("disconnected"), slot(b"stats"), False),
        (REFUSED, slot(b"stats"), False),
        (ProtocolError("garbage"), slot(b"stats"), False),
    ],
)
def test_a_request_that_a_proxy_may_not_know_says_so(error, made, told):
    assert may_be_unknown(made, error) is told
    assert ("does not know this request" in str(failure_for(made, error))) is told
    assert "does not know" not in str(error)
