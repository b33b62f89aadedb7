"""The memcached client for Tornado.

`Client` talks to memcached in callbacks or with ``await``; `boundary`
takes the failures of everything that begins under it.
"""

from .address import Server
from .boundaries import boundary
from .cached import cached
from .client import Client
from .errors import (
    AuthenticationError,
    ClientClosed,
    ClientError,
    ConnectionFailed,
    InvalidKey,
    InvalidRequest,
    InvalidServer,
    ItemTooLarge,
    MemcacheError,
    MetaUnsupported,
    NotSerializable,
    ProtocolError,
    ReplyError,
    SerializationError,
    ServerDead,
    ServerError,
    Timeout,
    TooManyCalls,
    ValueTooLarge,
)
from .funnel import How
from .meta_outcomes import MetaItem
from .namespaces import Namespace
from .observer import ObservedCall, Observer
from .outcomes import CasUnique, FailedKeys, MultiResult
from .protocol import Item, Reply, Request
from .serializer import Plain, Serializer
from .streamed import MetadumpEntry, WatchEvent

__version__ = "0.1.0"

__all__ = [
    "AuthenticationError",
    "CasUnique",
    "Client",
    "ClientClosed",
    "ClientError",
    "ConnectionFailed",
    "FailedKeys",
    "How",
    "InvalidKey",
    "InvalidRequest",
    "InvalidServer",
    "Item",
    "ItemTooLarge",
    "MemcacheError",
    "MetaItem",
    "MetaUnsupported",
    "MetadumpEntry",
    "MultiResult",
    "Namespace",
    "NotSerializable",
    "ObservedCall",
    "Observer",
    "Plain",
    "ProtocolError",
    "Reply",
    "ReplyError",
    "Request",
    "SerializationError",
    "Serializer",
    "Server",
    "ServerDead",
    "ServerError",
    "Timeout",
    "TooManyCalls",
    "ValueTooLarge",
    "WatchEvent",
    "boundary",
    "cached",
]
