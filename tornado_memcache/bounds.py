"""What one client of a server or a proxy may do, as flags and files say it.

Knows what the limits are called there, how they are read from text, and
what holds where nothing is said. It must not know a parser of flags or of
files, or how a limit is kept (`.guest`).
"""

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

from .arguments import check_integer, check_seconds
from .errors import InvalidRequest, shown
from .guest import Limits


class Setting(NamedTuple):
    """How a setting is read from its text, and what ``--help`` says of it."""

    read: Callable[[str, str], Any]
    does: str
    default: Any = None


def whole(lowest: int, highest: int = 1 << 31) -> Callable[[str, str], int]:
    """Returns what reads a whole number in range; ``where`` is named if it is none."""

    def read(where: str, text: str) -> int:
        if not text.isascii() or not text.isdigit():
            raise InvalidRequest(f"{where} must be a whole number, not {shown(text)}")
        return check_integer(where, int(text), lowest, highest)

    return read


def seconds(where: str, text: str) -> float:
    """Reads a number of seconds, more than 0. Raises `.InvalidRequest` that names ``where``."""
    try:
        length = float(text)
    except ValueError:
        raise InvalidRequest(f"{where} must be a number of seconds, not {shown(text)}") from None
    return check_seconds(where, length)


def seconds_or_never(where: str, text: str) -> float | None:
    """Reads as `seconds`, and "0" as None."""
    return None if text == "0" else seconds(where, text)


#: The limits of each client.
OF_CLIENT = {
    "max-client-bytes": Setting(whole(1), "bytes under way for one client (16777216)",
                                Limits().under_way),
    "receive-timeout": Setting(seconds_or_never, "seconds for a request to be whole (30; 0: any)",
                               30.0),
    "write-timeout": Setting(seconds_or_never, "seconds for replies to be taken (60; 0: any)",
                             60.0),
    "idle-timeout": Setting(seconds_or_never, "seconds without a request (0: any)"),
}  # fmt: skip


def limits_of(values: Mapping[str, Any]) -> Limits:
    """Returns the `.Limits` that stand under their names (`OF_CLIENT`) among ``values``."""
    return Limits(*(values[name] for name in OF_CLIENT))
