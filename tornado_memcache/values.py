"""How the values of one client become bytes and flags, and back.

Knows the serializer, the compression and the limit on a value. It must
not know a command or a server. A user's serializer is code like any
other: whatever it raises becomes an error of this package.
"""

from collections.abc import Mapping
from typing import Any

from .arguments import check_integer
from .compression import Compression
from .errors import (
    InvalidRequest,
    MemcacheError,
    NotSerializable,
    SerializationError,
    ValueTooLarge,
    shown,
)
from .serializer import FLAG_COMPRESSED, Plain, Serializer


class Values:
    """The value format of one client."""

    def __init__(
        self,
        serializer: Serializer | None,
        compress_over: int | None,
        max_decompressed_size: int,
        max_value_size: int,
    ) -> None:
        if compress_over is not None:
            check_integer("compress_over", compress_over, 0, 1 << 30)
        check_integer("max_decompressed_size", max_decompressed_size, 1, 1 << 30)
        self._serializer: Serializer = Plain() if serializer is None else serializer
        if isinstance(serializer, type):
            raise TypeError(f"serializer must be an object: write {serializer.__name__}()")
        for name in ("encode", "decode", "raw_flags"):
            if not hasattr(self._serializer, name):
                raise TypeError(f"serializer must be a Serializer: it has no {name}")
        #: Stored bytes with these flags are the value itself.
        self.raw_flags = self._serializer.raw_flags
        self._max_value_size = max_value_size
        self._compression: Compression | None = None
        # In a serializer that is not one of ours the flag may mean something else.
        if isinstance(self._serializer, Plain) or compress_over is not None:
            self._compression = Compression(compress_over, max_decompressed_size)

    @classmethod
    def of(cls, options: Mapping[str, Any]) -> "Values":
        """Returns the format that stands under its names among ``options``, checked."""
        names = ("serializer", "compress_over", "max_decompressed_size", "max_value_size")
        return cls(*[options[name] for name in names])

    def encode(self, wire: bytes, value: Any, compress: bool = True) -> tuple[bytes, int]:
        """Returns the bytes and flags of ``value``, checked and perhaps compressed."""
        try:
            data, flags = self._serializer.encode(wire, value)
        except InvalidRequest:
            raise
        except Exception as error:
            raise NotSerializable(
                f"value for key {shown(wire)} cannot be serialized: {type(error).__name__}"
            ) from error
        if type(data) is not bytes or type(flags) is not int or flags >> 32:
            raise NotSerializable("serializer.encode must return bytes and 32 bits of flags")
        if self._compression is not None and flags & FLAG_COMPRESSED:
            raise NotSerializable(f"flags {flags:#x} would be read as those of a compressed value")
        if compress and self._compression is not None:
            data, flags = self._compression.pack(data, flags)
        if len(data) > self._max_value_size:
            raise ValueTooLarge(
                f"value for key {shown(wire)} has {len(data)} bytes; "
                f"max_value_size is {self._max_value_size}"
            )
        return data, flags

    def decode(self, wire: bytes, data: bytes, flags: int) -> Any:
        """Returns the value that ``data`` and ``flags`` stand for."""
        try:
            if self._compression is not None:
                data, flags = self._compression.unpack(wire, data, flags)
            return self._serializer.decode(wire, data, flags)
        except MemcacheError:
            raise
        except Exception as error:
            raise SerializationError(
                f"value of key {shown(wire)} cannot be read: {type(error).__name__}"
            ) from error
