"""What a server of the gutter is given: the keys of a dead one, for a short time.

Knows requests that set an exptime. It must not know servers, nor who is
dead.
"""

from collections.abc import Callable

from .arguments import LONGEST_LENGTH
from .meta import flags_of
from .protocol import Request

#: How long the gutter keeps what it is given, in seconds, unless set otherwise.
GUTTER_EXPTIME = 10
#: The requests whose exptime is that of an item.
_EXPIRING = frozenset(b"set add replace append prepend cas touch gat gats".split())


#: The flags of a meta command that are an exptime of the item.
_EXPTIMES = {b"mg": b"TN", b"ms": b"TN", b"md": b"T", b"ma": b"TN"}


def shortened(request: Request, longest: int, now: Callable[[], float]) -> Request:
    """Returns ``request`` with an exptime of at most ``longest`` seconds from now.

    ``now`` gives the wall clock's seconds; it is asked only where the
    exptime is a moment (protocol.txt, "Expiration times").
    """
    if request.verb in _EXPTIMES:
        return request._replace(argument=_shortened_flags(request, longest, now))
    if request.verb not in _EXPIRING:
        return request
    return request._replace(exptime=_shorter(request.exptime, longest, now))


def _shorter(exptime: int, longest: int, now: Callable[[], float]) -> int:
    if exptime < 0 or 0 < exptime <= longest:
        return exptime
    if exptime > LONGEST_LENGTH and exptime - int(now()) <= longest:
        return exptime
    return longest


def _shortened_flags(request: Request, longest: int, now: Callable[[], float]) -> bytes:
    flags, letters = flags_of(request.argument), _EXPTIMES[request.verb]
    if request.verb == b"ms" and flags.get(b"M") not in (b"A", b"P"):
        flags.setdefault(b"T", b"0")  # (what it stores would stay for ever)
    for letter, token in flags.items():
        if letter in letters:
            flags[letter] = b"%d" % _shorter(int(token), longest, now)
    return b" ".join(letter + token for letter, token in flags.items())
