"""Who may come in: memcached's file of users (its ``-Y``), and what is said at the door.

Knows the form of the file, and what memcached 1.6.18 answers to those who
have not said who they are (protocol.txt, "Authentication"). It must not know
a socket. No message of it shows a word of the file or of what a client said,
nor does the repr.
"""

import hmac
from collections.abc import Callable, Mapping
from typing import Any

from .credentials import Credentials, checked_credentials
from .errors import InvalidRequest
from .protocol import MAX_LINE, Request
from .text_server import RequestReader, Settled
from .words import UINT32, read_unsigned

_UNAUTHENTICATED = b"CLIENT_ERROR unauthenticated"
_BAD_END = b"CLIENT_ERROR bad command line termination"
_BAD_FORMAT = b"CLIENT_ERROR bad authentication token format"
_REFUSED = b"CLIENT_ERROR authentication failure"
_WELCOME = b"STORED"


class Logins:
    """The users and their passwords.

    ``users`` maps a username to its password, each `str` or `bytes`.
    Raises `.InvalidRequest` and `TypeError` for what memcached's file
    could not hold.
    """

    def __init__(self, users: Mapping[Any, Any]) -> None:
        if not isinstance(users, Mapping):
            raise TypeError(f"users must be a dict, not {type(users).__name__}")
        self._known: list[Credentials] = []
        #: How often somebody said who they were, and how often they were refused.
        self.asked = self.refused = 0
        for username, password in users.items():
            known = checked_credentials(username, password, "users: ")
            assert known is not None
            self._known.append(known)
        if not self._known:
            raise InvalidRequest("users: there must be at least one")

    def __repr__(self) -> str:
        return f"<{type(self).__name__} of {len(self._known)} users>"

    def let_in(self, username: bytes, password: bytes) -> bool:
        """True if these are a user's. All are compared, so that the time tells nothing."""
        self.asked += 1
        found = False
        for known in self._known:
            same = hmac.compare_digest(username, known.username)
            found |= hmac.compare_digest(password, known.password) and same
        self.refused += not found
        return found


def parse_logins(text: bytes) -> Logins:
    """Returns the `Logins` of a file: a line ``username:password`` for each user.

    Raises `.InvalidRequest` with the number of the line that is none.
    """
    users: dict[bytes, bytes] = {}
    for number, line in enumerate(text.splitlines(), 1):
        if not line:
            continue
        username, colon, password = line.partition(b":")
        if not colon:
            raise InvalidRequest(f"line {number} must be username:password")
        checked_credentials(username, password, f"line {number}: ")
        if username in users:
            raise InvalidRequest(f"line {number}: the username stands there twice")
        users[username] = password
    return Logins(users)


class LoginReader(RequestReader):
    """Reads what a client sends who has to say who they are before anything else.

    Until then it settles everything itself: no request comes out of it.
    """

    def __init__(self, too_large: Callable[[bytes, int, int], bool], logins: Logins) -> None:
        super().__init__(too_large)
        self._logins = logins
        self._outside = True
        self._said = bytearray()
        #: How many bytes of a block with username and password are awaited, None for a line.
        self._awaited: int | None = None

    @property
    def half_way(self) -> bool:
        """True while a part of a request has come, and until the client has been let in."""
        return self._outside or super().half_way

    def receive_data(self, data: bytes) -> list[Request | Settled]:
        """As a `.RequestReader`, once the client has been let in."""
        if not self._outside:
            return super().receive_data(data)
        asked: list[Any] = []
        if self.closed:
            return asked
        self._said += data
        while self._outside and not self.closed and (settled := self._next()) is not None:
            if settled.line:
                asked.append(settled)
        if not self._outside:
            rest, self._said = bytes(self._said), bytearray()
            asked.extend(super().receive_data(rest))
        elif self.closed:
            self._said = bytearray()
            asked.append(Settled(closes=True))
        return asked

    def _next(self) -> Settled | None:
        """Settles the next line or block, None if it has not come."""
        said = self._said
        if self._awaited is not None:
            if len(said) < self._awaited:
                return None
            block = bytes(said[: self._awaited])
            del said[: self._awaited]
            self._awaited = None
            return Settled(self._answer(block))
        end = said.find(b"\n")
        if end < 0:
            self.closed = len(said) > MAX_LINE
            return None
        words = [word for word in bytes(said[:end]).partition(b"\0")[0].split(b" ") if word]
        del said[: end + 1]
        length = read_unsigned(words[4]) if len(words) > 4 and words[0] == b"set" else None
        if length is None:
            return Settled(_UNAUTHENTICATED)
        self._awaited = (length & UINT32) + 2
        # (memcached waits for what its buffer cannot hold)
        self.closed = self._awaited > MAX_LINE
        return Settled()

    def _answer(self, block: bytes) -> bytes:
        if not block.endswith(b"\r\n"):
            return _BAD_END
        words = [word for word in block[:-2].partition(b"\0")[0].split(b" ") if word]
        if len(words) < 2:
            return _BAD_FORMAT
        if not self._logins.let_in(words[0], words[1]):
            return _REFUSED
        self._outside = False
        return _WELCOME
