"""What a client does, as spans of OpenTelemetry: ``pip install tornado_memcache[opentelemetry]``.

Knows the semantic conventions for database client spans (of version 1.40 of
the conventions, where they are stable). It must not know how anything comes
to be told, nor where spans go.
"""

from typing import Any

from .address import parse_server
from .errors import ClientError, MemcacheError, ServerError
from .observer import ObservedCall, Observer, kind_of
from .protocol import Request

try:
    from opentelemetry.trace import Span, SpanKind, Status, StatusCode, TracerProvider, get_tracer
except ImportError as error:
    raise ImportError(
        "OpenTelemetryObserver needs opentelemetry-api: pip install tornado_memcache[opentelemetry]"
    ) from error

#: Where the conventions are, in the version that is followed.
SCHEMA = "https://opentelemetry.io/schemas/1.40.0"
#: The first word of an error line.
_STATUS_CODES = {ServerError: "SERVER_ERROR", ClientError: "CLIENT_ERROR"}


class OpenTelemetryObserver(Observer):
    """An `.Observer` that makes a span of every call.

    Its parent is the span that is current where the call is made: in a
    callback that of the handler, since a callback runs in the context of
    its call. The call's own span is current nowhere.

    ``tracer_provider`` is the application's own unless given. Values are
    in no span; with ``keys`` the first key of a call is, cut to 64
    characters. Raises `TypeError`. See ``docs/operators.rst`` for the
    attributes.
    """

    def __init__(
        self, *, tracer_provider: TracerProvider | None = None, keys: bool = False
    ) -> None:
        if not (tracer_provider is None or hasattr(tracer_provider, "get_tracer")):
            named = type(tracer_provider).__name__
            raise TypeError(f"tracer_provider must be a TracerProvider, not {named}")
        if not isinstance(keys, bool):
            raise TypeError(f"keys must be a bool, not {type(keys).__name__}")
        self._tracer = get_tracer(
            "tornado_memcache", tracer_provider=tracer_provider, schema_url=SCHEMA
        )
        self._keys = keys
        self._begins: dict[tuple[str, str], tuple[str, dict[str, Any]]] = {}

    def call_started(self, call: ObservedCall) -> Span:
        begin = self._begins.get((call.command, call.server))
        if begin is None:
            begin = self._begins[call.command, call.server] = _begin_of(call)
        name, attributes = begin
        if self._keys and call.keys:
            asked = Request(call.command.encode(), tuple(call.keys)).asked()
            attributes = {**attributes, "db.query.text": asked}
        return self._tracer.start_span(name, kind=SpanKind.CLIENT, attributes=attributes)

    def call_finished(self, call: ObservedCall, begun: Span | None) -> None:
        if begun is None:
            return  # (its begin has failed, and was logged)
        if begun.is_recording():
            begun.set_attributes(_end_of(call))
            if call.error is not None or call.outcome == "lost":
                begun.set_status(Status(StatusCode.ERROR))
        begun.end()


def _begin_of(call: ObservedCall) -> tuple[str, dict[str, Any]]:
    """Returns the name and the attributes that all calls of one command to one server share."""
    attributes: dict[str, Any] = {
        "db.system.name": "memcached",
        "db.operation.name": call.command,
    }
    if not call.server:
        return call.command, attributes
    server = parse_server(call.server)
    attributes["server.address"] = server.path or server.host
    if server.path is None:
        attributes["server.port"] = server.port
    return f"{call.command} {call.server}", attributes


def _end_of(call: ObservedCall) -> dict[str, Any]:
    attributes: dict[str, Any] = {
        "tornado_memcache.outcome": call.outcome,
        "tornado_memcache.hits": call.hits,
        "tornado_memcache.misses": call.misses,
        "tornado_memcache.sent_bytes": call.sent,
        "tornado_memcache.received_bytes": call.received,
    }
    if len(call.keys) > 1:
        attributes["db.operation.batch.size"] = len(call.keys)
    if call.error is not None:
        attributes.update(_failure_of(call.error))
    elif call.outcome == "lost":
        attributes["error.type"] = call.outcome
    return attributes


def _failure_of(error: MemcacheError) -> dict[str, str]:
    """Returns what a span tells of an error. Its message is not: that may hold a key."""
    told = {"error.type": kind_of(error)}
    for kind, code in _STATUS_CODES.items():
        if isinstance(error, kind):
            told["db.response.status_code"] = code
    return told
