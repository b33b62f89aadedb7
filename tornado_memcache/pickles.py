"""Serializers that read pickles, for those who ask for it.

Reading a pickle runs the code that its writer chose: whoever can write to
the cache, or stand between, can run code in its readers. This is the one
room that knows `pickle`. It must not know a client.
"""

import hmac
import pickle
from collections.abc import Iterable
from typing import Any

from .arguments import check_integer
from .errors import InvalidRequest, SerializationError, shown
from .serializer import FLAG_PICKLE, Plain

#: The flags of a value that `SignedPickle` wrote: a signature, then a pickle.
FLAG_SIGNED_PICKLE = 32
_SIGNATURE = 32
_SHORTEST_KEY = 16


class Pickle(Plain):
    """As `.Plain`, and everything else as a pickle with python-memcached's flags (1).

    ``protocol`` is the pickle protocol to write. Reading one runs the
    code that its writer chose: use it only where nobody else can write
    to the cache. `SignedPickle` needs no such trust.
    """

    def __init__(self, protocol: int = pickle.DEFAULT_PROTOCOL) -> None:
        self._protocol = check_integer("protocol", protocol, 0, pickle.HIGHEST_PROTOCOL)

    def encode(self, key: bytes, value: Any) -> tuple[bytes, int]:
        if type(value) in (bytes, str, int, bytearray, memoryview):
            return super().encode(key, value)
        try:
            return pickle.dumps(value, self._protocol), FLAG_PICKLE
        except Exception as error:  # whatever a class's __reduce__ raises
            raise SerializationError(
                f"value for key {shown(key)} cannot be pickled: {type(error).__name__}"
            ) from error

    def decode(self, key: bytes, data: bytes, flags: int) -> Any:
        if flags != FLAG_PICKLE:
            return super().decode(key, data, flags)
        try:
            return pickle.loads(data)
        except Exception as error:
            raise SerializationError(
                f"value of key {shown(key)} cannot be unpickled: {type(error).__name__}"
            ) from None  # (whose words may be a piece of the value)


class SignedPickle(Pickle):
    """As `Pickle`, but a pickle is read only if its signature is right.

    ``keys`` are secrets of at least 16 bytes. The first signs; all are
    accepted, so a secret can be replaced while values live. The
    signature is HMAC-SHA256 over the cache's key, the flags and the
    pickle: a value moved to another key is refused. A wrong signature is
    a `.SerializationError`, and nothing is unpickled. Plain values
    (bytes, str, int) are stored as they are, so that incr works.
    """

    def __init__(self, keys: Iterable[bytes], protocol: int = pickle.DEFAULT_PROTOCOL) -> None:
        super().__init__(protocol)
        if isinstance(keys, (str, bytes)):
            raise TypeError("keys must be a list of bytes")
        self._keys = tuple(keys)
        if not self._keys:
            raise InvalidRequest("keys must hold at least one secret")
        for secret in self._keys:
            if not isinstance(secret, bytes):
                raise TypeError(f"keys must be bytes, not {type(secret).__name__}")
            if len(secret) < _SHORTEST_KEY:
                raise InvalidRequest(f"keys must have at least {_SHORTEST_KEY} bytes each")

    def encode(self, key: bytes, value: Any) -> tuple[bytes, int]:
        data, flags = super().encode(key, value)
        if flags != FLAG_PICKLE:
            return data, flags
        return _signature(self._keys[0], key, data) + data, FLAG_SIGNED_PICKLE

    def decode(self, key: bytes, data: bytes, flags: int) -> Any:
        if flags == FLAG_PICKLE:
            raise SerializationError(f"value of key {shown(key)} is a pickle without a signature")
        if flags != FLAG_SIGNED_PICKLE:
            return super().decode(key, data, flags)
        signature, pickled = data[:_SIGNATURE], data[_SIGNATURE:]
        if not any(
            hmac.compare_digest(signature, _signature(secret, key, pickled))
            for secret in self._keys
        ):
            raise SerializationError(f"value of key {shown(key)} has a wrong signature")
        return super().decode(key, pickled, FLAG_PICKLE)

    def __repr__(self) -> str:
        return f"SignedPickle({len(self._keys)} keys)"


def _signature(secret: bytes, key: bytes, pickled: bytes) -> bytes:
    signed = b"%d %b %d " % (len(key), key, FLAG_SIGNED_PICKLE)
    return hmac.digest(secret, signed + pickled, "sha256")
