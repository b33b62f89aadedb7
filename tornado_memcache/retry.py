"""What becomes of the slots of a lost connection.

Knows which may be tried again, and what the others fail with. Pure: it
must not know pools, connections or loops.
"""

from .errors import AuthenticationError, ConnectionFailed, MemcacheError, Timeout
from .protocol import ConnectionRefused, Slot, Unauthenticated

#: The errors that tell in which phase a call or a connection failed.
UNANSWERED = (ConnectionFailed, Timeout)


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


def untouched_by(error: MemcacheError) -> bool:
    """True if ``error`` says that the server took nothing of what was sent to it."""
    return isinstance(error, ConnectionFailed) and error.phase in ("connecting", "authenticating")


def sort_out(
    error: MemcacheError, owed: list[Slot], unsent: list[Slot], closed: bool
) -> tuple[list[Slot], list[Slot]]:
    """Returns what of a lost connection is tried again, and what has failed.

    Once, within the same deadline: what was not sent, and what only
    reads and had no byte of its reply. What the server took nothing of
    does not count as tried.
    """
    again, failed = [], []
    for slot in owed + unsent:
        if closed or not slot.awaited():
            failed.append(slot)
        elif untouched_by(error):
            again.append(slot)
        elif slot.retried:
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
        return error.of(slot.asked(), maybe_applied)
    outcome = error.twin()
    outcome.maybe_applied = maybe_applied
    return outcome
