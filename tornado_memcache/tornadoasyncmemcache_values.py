"""What the old Tornado module left in the cache: where its keys went, and its values.

Knows Python 2's hash and pickles. It must not know a command.
"""

import pickle
from collections.abc import Sequence
from typing import Any

from .address import Server
from .errors import SerializationError, shown
from .pickles import Pickle
from .ring import REHASH_STEPS, Alive, Modulo
from .serializer import FLAG_PICKLE


class OldModulo(Modulo):
    """The old module's placement: Python 2's hash of the key, modulo the weighted list."""

    def __init__(self, servers: Sequence[Server], retries: int = REHASH_STEPS) -> None:
        super().__init__(servers, python2_hash)
        self._retries = retries

    def place_among(self, key: bytes | int, alive: Alive) -> int | None:
        number = key if isinstance(key, int) else python2_hash(key)
        for step in range(self._retries + 1):
            index = self.buckets[number % len(self.buckets)]
            if alive(index):
                return index
            number = python2_hash(b"%d%d" % (number, step))
        return None


def python2_hash(key: bytes) -> int:
    """Returns ``hash(key)`` of Python 2 on a 64 bit machine, without ``-R``."""
    if not key:
        return 0
    number = key[0] << 7
    for byte in key:
        number = (1000003 * number ^ byte) & 0xFFFFFFFFFFFFFFFF
    number ^= len(key)
    if number >> 63:
        number -= 1 << 64
    return number if number != -1 else -2


class OldPickle(Pickle):
    """As `.Pickle` of protocol 2, and reads what Python 2 pickled."""

    def __init__(self) -> None:
        super().__init__(protocol=2)

    def decode(self, key: bytes, data: bytes, flags: int) -> Any:
        if flags != FLAG_PICKLE:
            return super().decode(key, data, flags)
        # Python 2's str is text mostly; a datetime's is bytes, for which Latin-1 is made.
        for encoding in ("utf-8", "latin-1"):
            try:
                return pickle.loads(data, encoding=encoding)
            except UnicodeDecodeError:
                continue
            except Exception as error:  # (its words may be a piece of the value)
                raise _unreadable(key, error) from None
        raise _unreadable(key, UnicodeError())


def _unreadable(key: bytes, error: Exception) -> SerializationError:
    return SerializationError(
        f"value of key {shown(key)} cannot be unpickled: {type(error).__name__}"
    )
