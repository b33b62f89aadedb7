"""The settings of a client, checked once.

Knows which values a setting may have. It must not know what it is for.
"""

from collections.abc import Mapping
from typing import Any, NamedTuple

from .arguments import LONGEST_LENGTH, check_flag, check_integer, check_seconds
from .errors import InvalidRequest, shown

#: memcached's own default limit on a value, in bytes (``-I``).
DEFAULT_VALUE_SIZE = 1024 * 1024
#: What may happen to the keys of a dead server.
POLICIES = ("fail", "rehash", "miss", "gutter")


class Settings(NamedTuple):
    """What pools and connections go by. Lengths are seconds, sizes bytes."""

    connect_timeout: float = 0.5
    request_timeout: float = 1.0
    max_connections: int = 4
    max_pending: int = 100_000
    dead_retry: float = 30.0
    silences_until_dead: int = 3
    max_value_size: int = DEFAULT_VALUE_SIZE
    flush_on_reconnect: bool = False
    min_connections: int = 0
    max_idle: int | None = None
    on_dead: str = "fail"
    gutter_exptime: int | None = None
    idle_timeout: float | None = None
    resolve_interval: float | None = None

    @classmethod
    def of(cls, options: Mapping[str, Any]) -> "Settings":
        """Returns the settings that stand under their names among ``options``, checked."""
        return cls(**{name: options[name] for name in cls._fields}).checked()

    def checked(self) -> "Settings":
        """Returns the settings with every value checked.

        Raises `TypeError` and `.InvalidRequest`, which name the setting.
        """
        most = check_integer("max_connections", self.max_connections, 1, 10_000)
        least = check_integer("min_connections", self.min_connections, 0, most)
        if self.max_idle is not None:
            check_integer("max_idle", self.max_idle, max(least, 1), 10_000)
        if self.on_dead not in POLICIES:
            named = shown(self.on_dead)
            raise InvalidRequest(f"on_dead {named} is not one of: {', '.join(POLICIES)}")
        if self.gutter_exptime is not None:
            check_integer("gutter_exptime", self.gutter_exptime, 1, LONGEST_LENGTH)
            if self.on_dead != "gutter":
                raise InvalidRequest('gutter_exptime is given without on_dead="gutter"')
        idle, resolve = self.idle_timeout, self.resolve_interval
        return self._replace(
            connect_timeout=check_seconds("connect_timeout", self.connect_timeout),
            request_timeout=check_seconds("request_timeout", self.request_timeout),
            max_pending=check_integer("max_pending", self.max_pending, 1, 1 << 31),
            dead_retry=check_seconds("dead_retry", self.dead_retry),
            silences_until_dead=check_integer(
                "silences_until_dead", self.silences_until_dead, 1, 1 << 31
            ),
            max_value_size=check_integer("max_value_size", self.max_value_size, 1, 1 << 30),
            flush_on_reconnect=check_flag("flush_on_reconnect", self.flush_on_reconnect),
            idle_timeout=None if idle is None else check_seconds("idle_timeout", idle),
            resolve_interval=(
                None if resolve is None else check_seconds("resolve_interval", resolve)
            ),
        )
