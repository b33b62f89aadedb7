"""Which connection of a pool takes a slot.

Knows what connections carry, the order of writes, and who waits before
whom. It only decides: it must not open, send or close.
"""

from collections.abc import Sequence

from .connection import Connection
from .health import FIRST_PAUSE
from .lanes import Line
from .protocol import LARGE_WORK, Slot


def bound_to(connections: Sequence[Connection], slot: Slot) -> list[Connection]:
    """Returns the connections on which a write of one of the slot's keys is unanswered."""
    bound = []
    for connection in connections:
        if not connection.settled:
            keys = connection.bind()
            if keys and any(key in keys for key in slot.keys):
                bound.append(connection)
    return bound


def waits_for_its_key(bound: Sequence[Connection]) -> bool:
    """True if a slot that is ``bound`` so takes none but those, and none of them yet."""
    return len(bound) > 1 or (bool(bound) and bound[0].leaving and not bound[0].late)


def takes_calls(connection: Connection) -> bool:
    """True for one that takes calls of any key: open, on time, to where its server is."""
    return connection.open and not (connection.late or connection.leaving)


def longest_unused(
    connections: Sequence[Connection], keep: int, now: float
) -> list[tuple[Connection, float]]:
    """Returns all open connections but the ``keep`` that were used last, each with that moment.

    One that is in use is used ``now``.
    """
    used = [
        (one, max(one.rested_at, one.opened_at) if one.idle and not one.late else now)
        for one in connections
        if one.open
    ]
    used.sort(key=lambda pair: pair[1])
    return used[: max(0, len(used) - keep)]


def choose(
    connections: Sequence[Connection],
    bound: Sequence[Connection],
    line: Line,
    slot: Slot,
    may_grow: bool,
) -> Connection | None:
    """Returns the connection that takes ``slot`` now, None if it has to wait.

    A key with an unanswered write stays on that write's connection, even
    a late one, unless another write of it waits in ``line``, or that
    connection is to be left: then it waits for the answer. Large work
    goes to an idle connection where there is one, or may be one.
    """
    behind = bool(line) and line.first is not slot
    if waits_for_its_key(bound):
        # A request of many keys: until all but one have answered. One that is to be left:
        # until it has, since a key that is always written would hold it.
        return None
    if bound:
        return None if behind and line.holds_write_of(slot) else bound[0]
    if behind:
        return None
    good = [one for one in connections if takes_calls(one)]
    clear = [one for one in good if not one.large]
    if len(slot.request.value) > LARGE_WORK:
        clear = [one for one in clear if one.idle]
    if slot.writes and any(one.heard for one in good):
        # One that has said nothing yet may be refused, with what stands behind its first request:
        # of a write there nobody would know what became of it.
        clear = [one for one in clear if one.heard or not one.owing]
    if clear:
        return clear[0]  # gathering works best on one
    if not good or may_grow or any(one.connecting for one in connections):
        return None
    return min(good, key=lambda one: (not one.heard, one.owing))


def usable(connections: Sequence[Connection]) -> Connection | None:
    """Returns the connection that may take any small call without asking, if there is one.

    It is open, on time and carries nothing large, and no key is bound to
    another. While it has said nothing it is the only one.
    """
    for chosen in connections:
        if takes_calls(chosen) and not chosen.large:
            break
    else:
        return None
    for other in connections:
        if other is not chosen:
            if not chosen.heard and other.heard and takes_calls(other):
                return None
            if not other.settled and other.bind():
                return None
    return chosen


def probe_has_left(connections: Sequence[Connection], line: Line) -> bool:
    """True if the call that was to find out was withdrawn before it was sent."""
    return not line and all(one.late or (one.open and one.idle) for one in connections)


def was_made(connection: Connection, now: float) -> bool:
    """True if a connection that was open and is lost was no refusal of its server."""
    if not connection.asked and now - connection.opened_at >= FIRST_PAUSE:
        return True  # kept warm for longer than a refusal takes, and never asked
    return connection.heard or connection.late or connection.retiring


def tally(connections: Sequence[Connection]) -> dict[str, int]:
    """Returns how many connections are in which state, and how many there are (``open``)."""
    late = sum(one.late for one in connections)
    connecting = sum(one.connecting for one in connections)
    idle = sum(one.open and not one.late and one.idle for one in connections)
    return {
        "idle": idle,
        "busy": len(connections) - late - connecting - idle,
        "connecting": connecting,
        "late": late,
        "open": len(connections),
    }
