"""python-memcached's value format: flags, pickles, compression.

Knows what that client writes and how it reads. It must not know a
command or a server. Reading a pickle runs the code that its writer chose,
as it does there; `no_pickle` refuses.
"""

import io
import logging
import pickle
import zlib
from collections.abc import Callable
from typing import Any, NoReturn

from .compression import Compression
from .errors import NotSerializable, SerializationError, shown
from .serializer import (
    FLAG_BYTES,
    FLAG_COMPRESSED,
    FLAG_INTEGER,
    FLAG_LONG,
    FLAG_PICKLE,
    FLAG_TEXT,
)

_log = logging.getLogger("tornado_memcache")

#: The log tells of a value that cannot be unpickled once for each key, and of so many keys.
UNREAD_TOLD = 100


def no_pickle(file: Any) -> NoReturn:
    """An ``unpickler`` that refuses: a pickle reads as None, and the log says so."""
    raise pickle.UnpicklingError("pickles are refused (unpickler=no_pickle)")


class PythonMemcachedValues:
    """A `.Serializer` that writes and reads as python-memcached 1.62.

    It decides on the exact type: bytes (flags 0), str (16), int (2),
    everything else pickled (1); compressed adds 8.
    """

    raw_flags: int | None = FLAG_BYTES

    def __init__(
        self,
        protocol: int,
        pickler: Callable[..., Any],
        unpickler: Callable[..., Any],
        compressor: Callable[[bytes], bytes],
        decompressor: Callable[[bytes], bytes],
    ) -> None:
        self.protocol = protocol
        self.pickler = pickler
        self.unpickler = unpickler
        self.compressor = compressor
        self.decompressor = decompressor
        self.persistent_load: Callable[[Any], Any] | None = None
        self.persistent_id: Callable[[Any], Any] | None = None
        self._unread: set[bytes] = set()

    def store(self, value: Any, min_compress_len: int = 0) -> tuple[bytes, int]:
        """Returns what python-memcached stores for ``value``, and its flags."""
        kind = type(value)
        if kind is bytes:
            data, flags = value, FLAG_BYTES
        elif kind is str:
            try:
                data, flags = value.encode("utf-8"), FLAG_TEXT
            except UnicodeEncodeError:  # (which holds the value)
                raise NotSerializable("value cannot be encoded as utf-8") from None
        elif kind is int:
            return b"%d" % value, FLAG_INTEGER
        else:
            data, flags = self._pickled(value), FLAG_PICKLE
        if min_compress_len and len(data) > min_compress_len:
            packed = self.compressor(data)
            if len(packed) < len(data):
                return packed, flags | FLAG_COMPRESSED
        return data, flags

    def _pickled(self, value: Any) -> bytes:
        file = io.BytesIO()

        def make(pickler: Any) -> Any:
            try:
                return pickler(file, protocol=self.protocol)
            except TypeError:
                return pickler(file, self.protocol)

        pickler = _with_hook(make, self.pickler, "persistent_id", self.persistent_id)
        pickler.dump(value)
        return file.getvalue()

    def encode(self, key: bytes, value: Any) -> tuple[bytes, int]:
        return self.store(value)

    def decode(self, key: bytes, data: bytes, flags: int) -> Any:
        """Returns the value; ValueError for unknown flags, None for a broken pickle."""
        if flags & FLAG_COMPRESSED:
            data = self._decompressed(key, data)
        kind = flags & ~FLAG_COMPRESSED
        if kind == FLAG_BYTES:
            return data
        if kind == FLAG_PICKLE:
            return self._unpickled(key, data)
        try:
            if kind == FLAG_TEXT:
                return data.decode("utf-8")
            if kind in (FLAG_INTEGER, FLAG_LONG):
                return int(data)
        except ValueError:  # (which holds the value)
            raise ValueError(
                f"value of key {shown(key)} does not read as its flags say ({kind:#x})"
            ) from None
        raise ValueError(f"Unknown flags on get: {kind:x}")

    def _decompressed(self, key: bytes, data: bytes) -> bytes:
        if self.decompressor is not zlib.decompress:
            return self.decompressor(data)
        # The same, with a limit on what a few bytes can grow to.
        return Compression(None, tolerant=True).unpack(key, data, FLAG_COMPRESSED)[0]

    def _unpickled(self, key: bytes, data: bytes) -> Any:
        try:
            unpickler = _with_hook(
                lambda unpickler: unpickler(io.BytesIO(data)),
                self.unpickler,
                "persistent_load",
                self.persistent_load,
            )
            return unpickler.load()
        except Exception as error:
            # What else an unpickler raises may hold a piece of the value.
            told = error if isinstance(error, pickle.UnpicklingError) else type(error).__name__
            if key not in self._unread and len(self._unread) < UNREAD_TOLD:
                self._unread.add(key)
                _log.warning("value of key %s cannot be unpickled: %s", shown(key), told)
            return None


def _with_hook(make: Callable[[Any], Any], kind: Any, name: str, hook: Any) -> Any:
    """Returns ``make(kind)``, with ``hook`` as its method ``name`` if there is one."""
    made = make(kind)
    if hook is not None:
        try:
            setattr(made, name, hook)
        except AttributeError:  # (Python 3.13.0 takes it from a class only)
            made = make(type(kind.__name__, (kind,), {name: staticmethod(hook)}))
    return made


def cause_of(error: SerializationError) -> Exception:
    """Returns the ValueError of `PythonMemcachedValues.decode` inside ``error``, or itself."""
    cause = error.__cause__
    return cause if isinstance(cause, ValueError) else error
