"""What becomes of the slots of a lost connection.

Knows which may be tried again, and what the others fail with. Pure: it
must not know pools, connections or loops.
"""

import errno

from .errors import CLOSED, AuthenticationError, ConnectionFailed, MemcacheError, Timeout
from .protocol import ConnectionRefused, Slot, Unauthenticated

#: The errors that tell in which phase a call or a connection failed.
UNANSWERED = (ConnectionFailed, Timeout)
#: What twemproxy does not pass on, in one release or another; nor an exptime below 0.
_NOT_PASSED_ON = frozenset(b"flush_all stats version verbosity gat gats mg ms md ma mn me".split())
#: Where a connection stood of whose requests the server has read none.
_BEFORE_ANY = ("connecting", "tls", "authenticating")
_UNKNOWN = ", as a proxy does that does not know this request"


def as_failure(error: MemcacheError, server: str) -> MemcacheError:
    """Returns ``error``; a connection that was refused by what the server said is a failed one."""
    if not isinstance(error, ConnectionRefused):
        return error
    if isinstance(error, Unauthenticated):
        return AuthenticationError(str(error), server=server, phase="authenticating")
    return ConnectionFailed(str(error), server=server, phase="connecting")


def unmade(error: MemcacheError) -> bool:
    """True if ``error`` came before the connection was open."""
    return isinstance(error, UNANSWERED) and error.phase != "reply"


def may_be_unknown(slot: Slot, error: MemcacheError) -> bool:
    """True if the connection was closed at a request that a proxy may not know.

    twemproxy closes it, whatever else is under way on it.
    """
    if not isinstance(error, ConnectionFailed) or error.phase != "reply" or not slot.sent:
        return False
    by_server = error.message == CLOSED or error.errno in (errno.ECONNRESET, errno.EPIPE)
    return by_server and (slot.request.verb in _NOT_PASSED_ON or slot.request.exptime < 0)


def untouched_by(error: MemcacheError) -> bool:
    """True if ``error`` says that the server refused the connection."""
    return isinstance(error, ConnectionFailed) and error.phase in _BEFORE_ANY


def sort_out(
    error: MemcacheError, opened_at: float, owed: list[Slot], unsent: list[Slot], closed: bool
) -> tuple[list[Slot], list[Slot]]:
    """Returns what of a lost connection is tried again, and what has failed.

    Once, within the same deadline: what was not sent, and what only
    reads and had no byte of its reply. On a connection that was refused
    these do not count as tried, nor does what the refusal answers; a write
    behind that may be with another server, if the refusal is that of one
    behind a proxy.
    """
    again, failed = [], []
    answered = owed[0] if owed and not owed[0].confirms else None
    for slot in owed + unsent:
        if closed or not slot.awaited():
            failed.append(slot)
        elif untouched_by(error) and (slot is answered or not (slot.sent and slot.writes)):
            again.append(slot)
        elif opened_at >= slot.lost_at:
            failed.append(slot)
        elif not slot.sent:
            again.append(slot)
        elif isinstance(error, ConnectionFailed) and slot.idempotent and not slot.begun():
            again.append(slot)
        else:
            failed.append(slot)
    return again, failed


def failure_for(slot: Slot, error: MemcacheError) -> MemcacheError:
    """Returns ``error`` as the outcome of one slot."""
    maybe_applied = slot.sent and slot.writes
    if isinstance(error, UNANSWERED):
        failure = error.of(slot.asked(), maybe_applied)
        if may_be_unknown(slot, error):
            failure.message += _UNKNOWN
        return failure
    outcome = error.twin()
    outcome.maybe_applied = maybe_applied
    return outcome
