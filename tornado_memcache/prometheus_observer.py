"""What a client does, as metrics for Prometheus: ``pip install tornado_memcache[prometheus]``.

Knows the names of the metrics and what is counted in each. It must not know
how anything comes to be told.
"""

import threading
import weakref
from collections.abc import Sequence
from typing import Any

from .errors import InvalidRequest, MemcacheError
from .observer import ObservedCall, Observer, kind_of

try:
    from prometheus_client import REGISTRY, CollectorRegistry, Counter, Gauge, Histogram
except ImportError as error:
    raise ImportError(
        "PrometheusObserver needs prometheus_client: pip install tornado_memcache[prometheus]"
    ) from error

#: The upper bounds of the durations that are counted, in seconds.
BUCKETS = (0.00025, 0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5)


class Metrics:
    """All metrics, once in each registry."""

    def __init__(self, registry: CollectorRegistry, buckets: Sequence[float]) -> None:
        self.buckets = tuple(buckets)
        self._registry = registry
        self._of_calls()
        self._of_servers()

    def _of(self, kind: Any, name: str, told: str, labels: str, **options: Any) -> Any:
        names = ("client", *labels.split())
        return kind(f"memcached_client_{name}", told, names, registry=self._registry, **options)

    def _of_calls(self) -> None:
        of, call = self._of, "command server"
        self.calls = of(Counter, "calls_total", "Calls that ended.", "command server outcome")
        told, buckets = "From the begin of a call to its outcome.", self.buckets
        self.duration = of(Histogram, "call_duration_seconds", told, call, buckets=buckets)
        told, mode = "Calls begun and not ended.", "livesum"
        self.under_way = of(Gauge, "calls_under_way", told, "", multiprocess_mode=mode)
        self.hits = of(Counter, "hits_total", "Keys that were there.", call)
        self.misses = of(Counter, "misses_total", "Keys that were not there.", call)
        self.sent = of(Counter, "sent_bytes_total", "Bytes of values sent.", call)
        self.received = of(Counter, "received_bytes_total", "Bytes of values received.", call)

    def _of_servers(self) -> None:
        of, reason = self._of, "server reason"
        told = "Failures of servers, one a call at most."
        self.failures = of(Counter, "failures_total", told, "server kind")
        told, mode = "1 if the server is taken for alive, 0 if for dead.", "livemin"
        self.up = of(Gauge, "server_up", told, "server", multiprocess_mode=mode)
        told = "How often it was taken for dead."
        self.deaths = of(Counter, "server_deaths_total", told, "server")
        told, mode = "Open connections.", "livesum"
        self.connections = of(Gauge, "connections", told, "server", multiprocess_mode=mode)
        self.opened = of(Counter, "connections_opened_total", "Connections opened.", "server")
        self.closed = of(Counter, "connections_closed_total", "Open connections closed.", reason)
        self.refused = of(Counter, "connections_failed_total", "Attempts that failed.", reason)


_known: "weakref.WeakKeyDictionary[CollectorRegistry, Metrics]" = weakref.WeakKeyDictionary()
_lock = threading.Lock()


def metrics_of(registry: CollectorRegistry, buckets: Sequence[float]) -> Metrics:
    """Returns the metrics of ``registry``, which is given each of them once."""
    with _lock:
        metrics = _known.get(registry)
        if metrics is None:
            metrics = _known[registry] = Metrics(registry, buckets)
    if metrics.buckets != tuple(buckets):
        raise InvalidRequest("buckets must be those of the other observers of this registry")
    return metrics


class _Children:
    """The metrics of one command on one server, looked up once."""

    __slots__ = ("duration", "hits", "misses", "outcomes", "received", "sent")

    def __init__(self, metrics: Metrics, labels: tuple[str, str, str]) -> None:
        self.duration = metrics.duration.labels(*labels)
        self.hits, self.misses = metrics.hits.labels(*labels), metrics.misses.labels(*labels)
        self.sent, self.received = metrics.sent.labels(*labels), metrics.received.labels(*labels)
        self.outcomes: dict[str, Any] = {}


class PrometheusObserver(Observer):
    """An `.Observer` whose metrics a Prometheus server scrapes.

    ``client`` is the label ``client`` of all that it counts: the clients
    of one process are told apart by it, and those of one name are added
    up. ``registry`` is a `prometheus_client.CollectorRegistry`, that of
    the process unless given. ``buckets`` are the upper bounds of
    durations, in seconds. Raises `TypeError` and `.InvalidRequest`.

    Labels are few, whatever is asked: keys and values are in none. The
    label ``server`` is empty where a call asks several servers. See
    ``docs/operators.rst`` for the metrics.
    """

    def __init__(
        self,
        client: str = "default",
        *,
        registry: CollectorRegistry = REGISTRY,
        buckets: Sequence[float] = BUCKETS,
    ) -> None:
        if not isinstance(client, str):
            raise TypeError(f"client must be a str, not {type(client).__name__}")
        if not isinstance(registry, CollectorRegistry):
            named = type(registry).__name__
            raise TypeError(f"registry must be a CollectorRegistry, not {named}")
        self._client = client
        self._metrics = metrics_of(registry, _checked(buckets))
        self._children: dict[tuple[str, str], _Children] = {}
        self._under_way = self._metrics.under_way.labels(client)
        self._judged: set[str] = set()

    def call_started(self, call: ObservedCall) -> None:
        self._under_way.inc()

    def call_finished(self, call: ObservedCall, begun: Any) -> None:
        self._under_way.dec()
        children = self._children.get((call.command, call.server))
        if children is None:
            labels = (self._client, call.command, call.server)
            children = self._children[labels[1:]] = _Children(self._metrics, labels)
        counter = children.outcomes.get(call.outcome)
        if counter is None:
            labels = (self._client, call.command, call.server)
            counter = self._metrics.calls.labels(*labels, call.outcome)
            children.outcomes[call.outcome] = counter
        counter.inc()
        children.duration.observe(call.duration)
        if call.hits:
            children.hits.inc(call.hits)
        if call.misses:
            children.misses.inc(call.misses)
        if call.sent:
            children.sent.inc(call.sent)
        if call.received:
            children.received.inc(call.received)
        if call.error is not None or call.errors:
            self._failed(call)

    def _failed(self, call: ObservedCall) -> None:
        failures = dict(call.errors)
        if call.error is not None and not failures:
            failures[call.error.server or call.server] = call.error
        for server, error in failures.items():
            self._metrics.failures.labels(self._client, server, kind_of(error)).inc()

    def _is_up(self, server: str, up: bool) -> None:
        self._judged.add(server)
        self._metrics.up.labels(self._client, server).set(int(up))

    def server_down(self, server: str, reason: MemcacheError) -> None:
        self._is_up(server, False)
        self._metrics.deaths.labels(self._client, server).inc()

    def server_up(self, server: str) -> None:
        self._is_up(server, True)

    def connection_opened(self, server: str) -> None:
        if server not in self._judged:  # (one that is dead may be open, and silent)
            self._is_up(server, True)
        self._metrics.connections.labels(self._client, server).inc()
        self._metrics.opened.labels(self._client, server).inc()

    def connection_closed(self, server: str, reason: str, error: MemcacheError) -> None:
        self._metrics.connections.labels(self._client, server).dec()
        self._metrics.closed.labels(self._client, server, reason).inc()

    def connection_failed(self, server: str, reason: str, error: MemcacheError) -> None:
        self._metrics.refused.labels(self._client, server, reason).inc()


def _checked(buckets: Any) -> tuple[float, ...]:
    """Returns the bounds, if they grow."""
    if isinstance(buckets, (str, bytes)) or not isinstance(buckets, Sequence):
        raise TypeError(f"buckets must be a list of seconds, not {type(buckets).__name__}")
    for bound in buckets:
        if isinstance(bound, bool) or not isinstance(bound, (int, float)):
            raise TypeError(f"buckets must be numbers of seconds, not {type(bound).__name__}")
    bounds = tuple(map(float, buckets))
    if not bounds or not all(a < b for a, b in zip((0.0, *bounds), bounds)):
        raise InvalidRequest("buckets must be seconds above 0, each more than the one before")
    return bounds
