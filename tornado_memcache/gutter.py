"""What a server of the gutter is given: the keys of a dead one, for a short time.

Knows requests that set an exptime. It must not know servers, nor who is
dead.
"""

from collections.abc import Callable

from .arguments import LONGEST_LENGTH
from .protocol import Request

#: How long the gutter keeps what it is given, in seconds, unless set otherwise.
GUTTER_EXPTIME = 10
#: The requests whose exptime is that of an item.
_EXPIRING = frozenset(b"set add replace append prepend cas touch gat gats".split())


def shortened(request: Request, longest: int, now: Callable[[], float]) -> Request:
    """Returns ``request`` with an exptime of at most ``longest`` seconds from now.

    ``now`` gives the wall clock's seconds; it is asked only where the
    exptime is a moment (protocol.txt, "Expiration times").
    """
    exptime = request.exptime
    if exptime < 0 or request.verb not in _EXPIRING:
        return request
    if exptime > LONGEST_LENGTH:
        exptime -= int(now())
        if exptime <= longest:
            return request
    elif 0 < exptime <= longest:
        return request
    return request._replace(exptime=longest)
