"""The errors of the package, in one tree.

::

    MemcacheError
      InvalidRequest            also a ValueError; raised at the call
        InvalidKey
        InvalidServer
        ValueTooLarge
      SerializationError
        NotSerializable         also an InvalidRequest; raised at the call
      ReplyError                the server answered with an error line
        ServerError
          ItemTooLarge
        ClientError
          MetaUnsupported       the server is too old for meta commands; nothing was sent
      ProtocolError             the server answered what it must not
      ConnectionFailed          also an OSError
        AuthenticationError     the server wants other credentials, or any
      Timeout                   also an asyncio.TimeoutError
      ServerDead
      TooManyCalls
      ClientClosed

Every error carries ``server`` (``"host:port"`` or None) and
``connection_survives``. This file knows what can go wrong and how it is
told; it must not know how anything is done. Values and credentials are
never part of a message, and keys are cut.
"""

import asyncio
from typing import Any, TypeVar

_E = TypeVar("_E", bound="MemcacheError")

#: What a connection that its server closed has failed with.
CLOSED = "the server closed the connection"
#: How much of a key a message shows.
KEY_SHOWN = 64


def shown(key: object) -> str:
    """Returns ``key`` as a message may show it: quoted and cut to 64 characters."""
    if isinstance(key, (bytes, bytearray, memoryview)):
        text = repr(bytes(key[: KEY_SHOWN + 1]))[1:]
    elif isinstance(key, str):
        text = repr(key[: KEY_SHOWN + 1])
    else:
        text = repr(key)
    return cut(text)


def cut(text: str) -> str:
    """Returns ``text`` with at most 64 characters."""
    return text if len(text) <= KEY_SHOWN else text[: KEY_SHOWN - 3] + "..."


class MemcacheError(Exception):
    """The root of all errors of this package.

    ``server`` is the server that was asked, or None when no server was
    concerned. ``connection_survives`` says whether the connection that
    carried the call can go on. ``maybe_applied`` is True if the request
    was a write that may have taken effect nevertheless.
    """

    connection_survives = True
    maybe_applied = False

    def __init__(self, message: str = "", *, server: str | None = None) -> None:
        super().__init__(message)
        self.message = message
        self.server = server
        #: The boundaries' entries that this very object has reached.
        self.reached: tuple[object, ...] = ()

    def __str__(self) -> str:
        return self.message

    def __repr__(self) -> str:
        return f"{type(self).__name__}({str(self)!r})"

    def twin(self: _E) -> _E:
        """Returns an equal error for another caller.

        Two callers never share one object: a traceback and the mark of a
        boundary belong to one of them.
        """
        twin = type(self).__new__(type(self))
        twin.args = self.args
        twin.__dict__.update(self.__dict__)
        twin.reached = ()
        return twin


class InvalidRequest(MemcacheError, ValueError):
    """An argument that cannot be sent. Raised at the call; nothing was sent."""


class InvalidKey(InvalidRequest):
    """A key that memcached's protocol does not allow (section "Keys")."""


class InvalidServer(InvalidRequest):
    """A server specification that cannot be understood."""


class ValueTooLarge(InvalidRequest):
    """A value over ``max_value_size``. Raised at the call; nothing was sent."""


class SerializationError(MemcacheError):
    """A value that cannot be turned into bytes, or stored bytes that cannot be read."""


class NotSerializable(SerializationError, InvalidRequest):
    """A value that cannot be stored as it is. Raised at the call; nothing was sent."""


class ReplyError(MemcacheError):
    """The server answered the request with an error line."""

    #: The line, for who passes it on; it may show a part of the caller's value.
    line = b""


class ServerError(ReplyError):
    """The server answered ``SERVER_ERROR`` (protocol.txt, "Error strings")."""


class ItemTooLarge(ServerError):
    """The server refused the item because it is larger than it stores."""


class ClientError(ReplyError):
    """The server answered ``CLIENT_ERROR`` or ``ERROR`` (protocol.txt)."""


class MetaUnsupported(ClientError):
    """The server does not know the meta command: it is too old, or is none of memcached's.

    Its version was asked before; the command was not sent. ``server`` is
    the one that was asked, the message has its version and the one that
    is needed.
    """


class ProtocolError(MemcacheError):
    """The server sent what the protocol does not allow. The connection is closed."""

    connection_survives = False


class _Unanswered(MemcacheError):
    """A call that ended without a reply: what was asked, where it stood.

    Built in numbers when a server stalls, so the message is made when it
    is read.
    """

    def __init__(
        self,
        message: str = "",
        *,
        server: str | None = None,
        phase: str = "reply",
        maybe_applied: bool = False,
        asked: str = "",
    ) -> None:
        super().__init__(message, server=server)
        #: Where the call stood: "waiting", "resolving", "connecting",
        #: "tls", "authenticating", "writing" or "reply".
        self.phase = phase
        self.maybe_applied = maybe_applied
        #: What was asked, as ``get "key"``.
        self.asked = asked

    def __str__(self) -> str:
        asked = f"{self.asked}: " if self.asked else ""
        where = f" (server {self.server}, phase {self.phase})" if self.server else ""
        applied = "; it may have taken effect" if self.maybe_applied else ""
        return f"{asked}{self.message}{where}{applied}"

    def of(self: "_U", asked: str, maybe_applied: bool) -> "_U":
        """Returns this failure as the outcome of one request."""
        twin = self.twin()
        twin.asked, twin.maybe_applied = asked, maybe_applied
        return twin


_U = TypeVar("_U", bound=_Unanswered)


class ConnectionFailed(_Unanswered, OSError):
    """The connection could not be made, or was lost before the reply.

    ``errno`` is kept where the system gave one. ``maybe_applied`` is True
    for a write whose bytes had left.
    """

    connection_survives = False

    def __init__(self, message: str = "", *, errno: int | None = None, **attributes: Any) -> None:
        super().__init__(message, **attributes)
        self.errno = errno

    def twin(self) -> "ConnectionFailed":
        twin = super().twin()
        twin.errno = self.errno
        return twin


class AuthenticationError(ConnectionFailed):
    """The server refuses ``username`` and ``password``, or demands some and got none.

    Nothing was applied. The server is taken for dead and is asked again
    after the same pauses; calls meanwhile fail with this error too.
    """


class Timeout(_Unanswered, asyncio.TimeoutError):
    """No outcome by the deadline of the call.

    ``phase`` tells what the call was waiting for. ``maybe_applied`` is
    True for a write whose bytes had left: it may still take effect.
    """


class ServerDead(MemcacheError):
    """The server is taken for dead and is not asked until the next try."""


class TooManyCalls(MemcacheError):
    """More than ``max_pending`` calls are under way to the server."""


class ClientClosed(MemcacheError):
    """The client was closed before the call, or while it was under way."""
