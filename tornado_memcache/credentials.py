"""Who the client is to a server: a username and a password, checked and never shown.

Knows what protocol.txt ("Authentication") and memcached's ``-Y`` take. It
must not know a connection. No message of it shows what it was given, nor
does the repr.
"""

from dataclasses import dataclass, field

from .arguments import is_word
from .errors import InvalidRequest

#: A line of memcached's file, ``username:password``, has at most so many bytes.
LONGEST = 254


@dataclass(frozen=True)
class Credentials:
    """A username and a password."""

    username: bytes = field(repr=False)
    password: bytes = field(repr=False)

    def block(self) -> bytes:
        """Returns the data block that says both."""
        return b"%b %b" % (self.username, self.password)


def checked_credentials(username: object, password: object, of: str = "") -> Credentials | None:
    """Returns the `Credentials` of ``username`` and ``password``, None if neither is given.

    Each is a `str` (sent as utf-8) or `bytes`. Raises `.InvalidRequest`
    or `TypeError` that names the argument, behind ``of``.
    """
    if username is None and password is None:
        return None
    if password is None:
        raise InvalidRequest(f"{of}username is given without password")
    if username is None:
        raise InvalidRequest(f"{of}password is given without username")
    made = Credentials(_word("username", username, of), _word("password", password, of))
    if b":" in made.username:
        raise InvalidRequest(f"{of}username has a colon, which ends it in memcached's file")
    if len(made.username) + len(made.password) >= LONGEST:
        raise InvalidRequest(
            f"{of}username and password are too long: "
            f"with the colon between them memcached's file has {LONGEST} bytes for them"
        )
    return made


def _word(name: str, given: object, of: str) -> bytes:
    if not isinstance(given, (str, bytes)):
        raise TypeError(f"{of}{name} must be str or bytes, not {type(given).__name__}")
    # (surrogatepass: the error of a codec would quote what it was given)
    word = given.encode("utf-8", "surrogatepass") if isinstance(given, str) else bytes(given)
    if not word:
        raise InvalidRequest(f"{of}{name} is empty")
    if not is_word(word):
        raise InvalidRequest(f"{of}{name} contains white space or a control character")
    if isinstance(given, str) and word.decode("utf-8", "ignore") != given:
        raise InvalidRequest(f"{of}{name} cannot be encoded as utf-8 (lone surrogate)")
    return word
