"""Values made smaller, with python-memcached's flag and format (zlib).

Knows bytes and one bit of the flags. It must not know what a value is.
What comes out of a cache is decompressed up to a limit and no further.
"""

import zlib
from collections.abc import Callable

from .errors import SerializationError, shown
from .serializer import FLAG_COMPRESSED, FLAG_INTEGER

#: What a value may grow to when it is decompressed, in bytes.
MAX_DECOMPRESSED = 8 * 1024 * 1024
#: So much is decompressed at once, in bytes.
STEP = 256 * 1024


class Compression:
    """Compresses what is longer than ``over`` bytes, and reads what is compressed.

    A value is kept compressed only if it is smaller so. None compresses
    nothing, but reads. A value that grows over ``limit`` bytes is refused
    with a `.SerializationError`, at the cost of the limit. Bytes behind
    the end of a compressed value, as an append leaves them, are refused
    unless it is ``tolerant``, as python-memcached is.
    """

    def __init__(
        self,
        over: int | None,
        limit: int = MAX_DECOMPRESSED,
        compress: Callable[[bytes], bytes] = zlib.compress,
        *,
        tolerant: bool = False,
    ) -> None:
        self._over = over
        self._limit = limit
        self._compress = compress
        self._tolerant = tolerant

    def pack(self, data: bytes, flags: int) -> tuple[bytes, int]:
        """Returns ``data`` and ``flags`` as they are stored."""
        if (
            self._over is None
            or len(data) <= self._over
            or flags & (FLAG_COMPRESSED | FLAG_INTEGER)
        ):
            return data, flags
        packed = self._compress(data)
        return (packed, flags | FLAG_COMPRESSED) if len(packed) < len(data) else (data, flags)

    def unpack(self, key: bytes, data: bytes, flags: int) -> tuple[bytes, int]:
        """Returns ``data`` and ``flags`` as they were before `pack`."""
        if not flags & FLAG_COMPRESSED:
            return data, flags
        reader = zlib.decompressobj()
        parts: list[bytes] = []
        room = self._limit
        try:
            while not reader.eof:
                # In steps, so that a bomb costs the limit and not twice that.
                parts.append(reader.decompress(data, min(room, STEP) + 1))
                room -= len(parts[-1])
                if room < 0:
                    raise SerializationError(
                        f"value of key {shown(key)} decompresses to over {self._limit} bytes"
                    )
                data = reader.unconsumed_tail
                if not data and not reader.eof and not parts[-1]:
                    raise SerializationError(f"compressed value of key {shown(key)} is cut off")
        except zlib.error:
            raise SerializationError(
                f"value of key {shown(key)} is marked as compressed and is not"
            ) from None
        if reader.unused_data and not self._tolerant:
            raise SerializationError(
                f"compressed value of key {shown(key)} has bytes behind its end"
            )
        return b"".join(parts), flags & ~FLAG_COMPRESSED
