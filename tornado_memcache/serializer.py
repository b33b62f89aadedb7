"""Values to bytes and flags, and back.

Knows the flags that python-memcached, pymemcache and pylibmc share. It
must not know where the bytes go. A pickle is never read here: whoever can
write to a cache could run code in its readers.
"""

from typing import Any, Protocol

from .errors import NotSerializable, SerializationError, shown

#: python-memcached's flags.
FLAG_BYTES = 0
FLAG_PICKLE = 1
FLAG_INTEGER = 2
FLAG_LONG = 4
FLAG_COMPRESSED = 8
FLAG_TEXT = 16


class Serializer(Protocol):
    """What a client needs to turn values into bytes and back.

    ``raw_flags`` are the flags under which stored bytes are the value
    itself, or None if there are none: such values skip `decode`.
    `encode` raises `.NotSerializable`, `decode` `.SerializationError`;
    what else they raise becomes that.
    """

    raw_flags: int | None

    def encode(self, key: bytes, value: Any) -> tuple[bytes, int]:
        """Returns the bytes and flags that stand for ``value``."""

    def decode(self, key: bytes, data: bytes, flags: int) -> Any:
        """Returns the value that ``data`` and ``flags`` stand for."""


class Plain:
    """Stores `bytes` (flags 0), `str` (16, utf-8) and `int` (2) and nothing else.

    Each comes back as the type that went in. The exact type counts: a
    `bool` would come back as an int and is refused.
    """

    raw_flags: int | None = FLAG_BYTES

    def encode(self, key: bytes, value: Any) -> tuple[bytes, int]:
        kind = type(value)
        if kind is bytes:
            return value, FLAG_BYTES
        if kind is str:
            try:
                return value.encode(), FLAG_TEXT
            except UnicodeEncodeError:
                raise NotSerializable(
                    f"value for key {shown(key)} cannot be encoded as utf-8"
                ) from None
        if kind is int:
            try:
                return b"%d" % value, FLAG_INTEGER
            except ValueError:
                raise NotSerializable(
                    f"value for key {shown(key)} is an int with too many digits"
                ) from None
        if kind is bytearray or kind is memoryview:
            return bytes(value), FLAG_BYTES
        raise NotSerializable(
            f"value for key {shown(key)} is of type {kind.__name__}; bytes, str and int "
            "are stored. Encode it (json.dumps, for example), or pass Client(serializer=...) "
            "with a serializer that takes it"
        )

    def decode(self, key: bytes, data: bytes, flags: int) -> Any:
        try:
            if flags == FLAG_BYTES:
                return data
            if flags == FLAG_TEXT:
                return data.decode()
            if flags in (FLAG_INTEGER, FLAG_LONG):
                return int(data)
        except ValueError:
            raise SerializationError(
                f"value of key {shown(key)} does not read as its flags say ({flags:#x})"
            ) from None
        if flags == FLAG_PICKLE:
            raise SerializationError(
                f"value of key {shown(key)} is a pickle, which is refused: reading one runs "
                "whatever code its writer chose. To opt in, pass Client(serializer=...) with "
                "tornado_memcache.pickles.SignedPickle(keys), which reads those that it signed, "
                "or with Pickle(), which reads any"
            )
        raise SerializationError(f"value of key {shown(key)} has unknown flags {flags:#x}")
