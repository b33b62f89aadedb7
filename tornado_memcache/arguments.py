"""What a caller may pass: keys, integers, lengths and moments.

Knows what protocol.txt allows, and how an error names the argument. It
must not know which command an argument is for. What passes here is all
that a request line is ever built from.
"""

from collections.abc import Callable, Iterable
from datetime import datetime, timedelta
from typing import Any

from .errors import InvalidKey, InvalidRequest, shown

#: memcached's own limit on the length of a key, in bytes.
MAX_KEY_LENGTH = 250
#: So many bytes are, in base64, the longest key that fits.
MAX_BINARY_KEY_LENGTH = MAX_KEY_LENGTH // 4 * 3
#: A length above this is an absolute moment to memcached (30 days).
LONGEST_LENGTH = 60 * 60 * 24 * 30

_VISIBLE = bytes(set(range(0x21, 0x100)) - {0x7F})


def key_bytes(key: object, prefix: bytes = b"") -> bytes:
    """Returns ``prefix + key`` as the bytes that go on the wire.

    Arguments: a `str` (sent as utf-8) or a bytes-like ``key``. Raises
    `.InvalidKey` for what protocol.txt ("Keys") forbids: an empty key,
    more than 250 bytes, white space, control characters; `TypeError` for
    anything that is not a string.
    """
    if type(key) is str:
        try:
            wire = prefix + key.encode() if prefix else key.encode()
        except UnicodeEncodeError:
            raise InvalidKey(
                f"key {shown(key)} cannot be encoded as utf-8 (lone surrogate)"
            ) from None
    elif isinstance(key, bytes):
        wire = prefix + key if prefix else bytes(key)
    elif isinstance(key, str):
        return key_bytes(str.__str__(key), prefix)
    elif isinstance(key, (bytearray, memoryview)):
        wire = prefix + bytes(key)
    else:
        raise TypeError(f"key must be str or bytes, not {type(key).__name__}")
    if wire.translate(None, _VISIBLE) or not len(prefix) < len(wire) <= MAX_KEY_LENGTH:
        raise InvalidKey(_fault_of(wire, prefix))
    return wire


def _fault_of(wire: bytes, prefix: bytes) -> str:
    if len(wire) == len(prefix):
        return "key is empty"
    if len(wire) > MAX_KEY_LENGTH:
        return (
            f"key {shown(wire)} has {len(wire)} bytes; "
            f"memcached allows {MAX_KEY_LENGTH}, the prefix included"
        )
    return f"key {shown(wire)} contains white space or a control character"


def binary_key_bytes(key: object, prefix: bytes = b"") -> bytes:
    """Returns ``prefix + key`` as bytes of any kind, for a line that bears them in base64.

    Arguments as for `key_bytes`. Raises `.InvalidKey` for an empty key and
    for more than 186 bytes, which are 248 in base64.
    """
    if isinstance(key, str):
        wire = prefix + key.encode("utf-8", "surrogatepass")
    elif isinstance(key, (bytes, bytearray, memoryview)):
        wire = prefix + bytes(key)
    else:
        raise TypeError(f"key must be str or bytes, not {type(key).__name__}")
    if not len(prefix) < len(wire) <= MAX_BINARY_KEY_LENGTH:
        raise InvalidKey(
            "key is empty"
            if len(wire) == len(prefix)
            else f"key {shown(wire)} has {len(wire)} bytes; a binary key may have "
            f"{MAX_BINARY_KEY_LENGTH}, the prefix included"
        )
    return wire


def is_word(wire: bytes) -> bool:
    """True if nothing in ``wire`` would end a word of a line: white space, control characters."""
    return not wire.translate(None, _VISIBLE)


def check_integer(name: str, value: object, lowest: int, highest: int) -> int:
    """Returns ``value`` if it is an `int` in range.

    Raises `TypeError` for anything but an int (a bool is none), and
    `.InvalidRequest` outside of ``lowest`` to ``highest``; both name the
    argument.
    """
    if not isinstance(value, int) or isinstance(value, bool):
        raise TypeError(f"{name} must be an int, not {type(value).__name__}")
    if not lowest <= value <= highest:
        raise InvalidRequest(f"{name} must be from {lowest} to {highest}")
    return value


def whole(name: str, value: Any, lowest: int, highest: int) -> int:
    """Returns a number without its fraction, as C's ``%d`` writes it, if it is in range.

    For the faces, whose originals took floats. Raises as `check_integer`.
    """
    if not (hasattr(value, "__int__") or hasattr(value, "__index__")):
        raise TypeError(f"{name} must be a number, not {type(value).__name__}")
    try:
        number = int(value)
    except (ValueError, OverflowError):
        raise InvalidRequest(f"{name} must be a finite number") from None
    return check_integer(name, number, lowest, highest)


def listed(name: str, keys: Any) -> list[Any]:
    """Returns ``keys`` as a list; a string where a list is meant is a `TypeError`."""
    if isinstance(keys, (str, bytes, bytearray, memoryview)) or not isinstance(keys, Iterable):
        raise TypeError(f"{name} must be a list of keys, not {type(keys).__name__}")
    return list(keys)


def check_hashable(key: object) -> None:
    """A key that cannot stand in the dict of the hits is a `TypeError` at the call."""
    try:
        hash(key)
    except (TypeError, ValueError) as error:
        raise TypeError(f"key cannot be a key of the dict of the hits: {error}") from None


def check_default(default: object) -> None:
    """Raises `TypeError` for a callback where the outcome of a miss is meant."""
    if callable(default):
        raise TypeError("default must not be callable: to have it called pass callback=")


def check_callable(name: str, given: object) -> None:
    """Raises `TypeError` for what is neither None nor a function."""
    if given is not None and not callable(given):
        raise TypeError(f"{name} must be callable: pass the function itself")


def check_flag(name: str, value: object) -> bool:
    """Returns ``value`` if it is True or False; anything else is a `TypeError`."""
    if not isinstance(value, bool):
        raise TypeError(f"{name} must be True or False, not {type(value).__name__}")
    return value


def check_seconds(name: str, value: object) -> float:
    """Returns a length in seconds, which must be a finite number above 0."""
    if not isinstance(value, (int, float)) or isinstance(value, bool):
        raise TypeError(f"{name} must be a number of seconds, not {type(value).__name__}")
    try:
        seconds = float(value)
    except OverflowError:
        seconds = float("inf")
    if not 0 < seconds < float("inf"):
        raise InvalidRequest(f"{name} must be a finite number of seconds above 0")
    return seconds


def wire_exptime(exptime: object, now: Callable[[], float], name: str = "exptime") -> int:
    """Returns ``exptime`` as protocol.txt ("Expiration times") wants it.

    An `int` is a length in seconds from now (0: never, negative: expired
    at once), a `~datetime.timedelta` too (rounded up to whole seconds), a
    `~datetime.datetime` is a moment (local time, if it names no zone).
    ``now`` gives the wall clock's seconds; it is asked only where the
    length does not fit (30 days).
    """
    if isinstance(exptime, datetime):
        try:
            moment = int(exptime.timestamp())
        except (ValueError, OverflowError):  # the first and the last days of the calendar
            moment = -1 if exptime.year < 1970 else 1 << 31
        if moment >= 1 << 31:
            raise InvalidRequest(f"{name} is beyond what memcached can hold (2^31 seconds)")
        return moment if moment > LONGEST_LENGTH else -1
    if isinstance(exptime, timedelta):
        if not exptime:
            raise InvalidRequest(f"{name} of no length: pass 0 for never, -1 for at once")
        seconds = exptime.days * 86400 + exptime.seconds + bool(exptime.microseconds)
        seconds = seconds if exptime > timedelta(0) else -1
    elif isinstance(exptime, int) and not isinstance(exptime, bool):
        seconds = exptime
    else:
        raise TypeError(
            f"{name} must be an int or a timedelta (a length from now) or a datetime "
            f"(a moment), not {type(exptime).__name__}"
        )
    if seconds <= LONGEST_LENGTH:
        return max(seconds, -1)
    moment = int(now()) + seconds
    if moment >= 1 << 31:
        raise InvalidRequest(
            f"{name} is a length in seconds and this one ends beyond 2^31: "
            "for a moment pass a datetime"
        )
    return moment
