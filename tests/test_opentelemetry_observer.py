"""tornado_memcache.opentelemetry_observer: each call is a span, and hangs where its caller does."""

from __future__ import annotations

import asyncio
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from opentelemetry.sdk.trace import ReadableSpan, TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from opentelemetry.sdk.trace.sampling import ALWAYS_OFF
from opentelemetry.trace import SpanKind, StatusCode
from tornado.httpclient import AsyncHTTPClient
from tornado.httpserver import HTTPServer
from tornado.testing import bind_unused_port
from tornado.web import Application, RequestHandler

from tornado_memcache import Client, MemcacheError, Timeout, boundary
from tornado_memcache.opentelemetry_observer import OpenTelemetryObserver
from tornado_memcache.web import asynchronous

from .asked import until

ROOT = Path(__file__).resolve().parent.parent


class Traced:
    """A tracer provider that keeps its spans, and an observer for it."""

    def __init__(self, **options: Any) -> None:
        self._exporter = InMemorySpanExporter()
        self.provider = TracerProvider(shutdown_on_exit=False)
        self.provider.add_span_processor(SimpleSpanProcessor(self._exporter))
        self.tracer = self.provider.get_tracer("tests")
        self.observer = OpenTelemetryObserver(tracer_provider=self.provider, **options)

    @property
    def spans(self) -> tuple[ReadableSpan, ...]:
        """All that have ended."""
        return self._exporter.get_finished_spans()

    @property
    def only(self) -> ReadableSpan:
        (span,) = self.spans
        return span

    def named(self, name: str) -> ReadableSpan:
        (span,) = [span for span in self.spans if span.name == name]
        return span


def attributes(span: ReadableSpan) -> dict[str, Any]:
    return dict(span.attributes or {})


@pytest.mark.gen_test
async def test_a_call_is_a_client_span_with_the_database_conventions(memcached):
    traced = Traced()
    async with Client([memcached.address], observer=traced.observer) as client:
        await client.set("k", b"12345")
        assert await client.get("k") == b"12345"
    span = traced.spans[1]
    assert span.name == f"get {memcached.address}" and span.kind is SpanKind.CLIENT
    assert span.status.status_code is StatusCode.UNSET and span.parent is None
    assert span.instrumentation_scope is not None
    assert span.instrumentation_scope.name == "tornado_memcache"
    assert attributes(span) == {
        "db.system.name": "memcached",
        "db.operation.name": "get",
        "server.address": memcached.host,
        "server.port": memcached.port,
        "tornado_memcache.outcome": "hit",
        "tornado_memcache.hits": 1,
        "tornado_memcache.misses": 0,
        "tornado_memcache.sent_bytes": 0,
        "tornado_memcache.received_bytes": 5,
    }
    assert attributes(traced.spans[0])["tornado_memcache.sent_bytes"] == 5
    assert (span.end_time or 0) > (span.start_time or 0)


@pytest.mark.gen_test
async def test_a_call_over_several_servers_is_one_span_without_a_server(start_memcached, troubles):
    a, b, traced = start_memcached(), start_memcached(), Traced()
    keys = [f"k{number}" for number in range(30)]
    async with Client([a.address, b.address], observer=traced.observer) as client:
        await client.set_multi(dict.fromkeys(keys, 1))
        b.kill()
        await client.get_multi(keys)
    span = traced.named("get_multi")
    told = attributes(span)
    assert told["db.operation.batch.size"] == 30 and told["tornado_memcache.outcome"] == "partial"
    assert not {"server.address", "server.port"} & told.keys()
    assert span.status.status_code is StatusCode.UNSET


@pytest.mark.gen_test
async def test_a_server_on_a_unix_socket_has_a_path_for_its_address(start_memcached):
    server, traced = start_memcached(unix=True), Traced()
    async with Client([server.address], observer=traced.observer) as client:
        await client.get("k")
    told = attributes(traced.only)
    assert f"unix:{told['server.address']}" == server.address and "server.port" not in told


@pytest.mark.gen_test
async def test_failures_are_errors_of_their_kind_and_say_nothing_of_the_key(
    memcached, silent, troubles
):
    memcached.ask(b"set text-key 0 0 3\r\nabc\r\n")
    traced = Traced()
    async with Client([memcached.address], observer=traced.observer) as client:
        with pytest.raises(MemcacheError):
            await client.incr("text-key")
    async with Client([silent.address], observer=traced.observer) as client:
        with pytest.raises(Timeout):
            await client.get("secret-key", timeout=0.05)
        client.get("secret-key").cancel()
    error, late, cancelled = traced.spans
    assert error.status.status_code is late.status.status_code is StatusCode.ERROR
    assert attributes(error)["error.type"] == "client_error"
    assert attributes(error)["db.response.status_code"] == "CLIENT_ERROR"
    assert attributes(late)["error.type"] == "timeout"
    assert cancelled.status.status_code is StatusCode.UNSET
    assert attributes(cancelled)["tornado_memcache.outcome"] == "cancelled"
    assert not any("-key" in span.to_json() for span in traced.spans)


@pytest.mark.gen_test
async def test_keys_are_told_if_they_are_asked_for_and_are_cut(memcached):
    traced = Traced(keys=True)
    async with Client([memcached.address], observer=traced.observer, key_prefix="p:") as client:
        await client.set("k" * 200, b"the-value")
        await client.get_multi(["a", "b", "c"])
        await client.version()
    stored, found, version = map(attributes, traced.spans)
    told = str(stored["db.query.text"])
    assert told.startswith("set 'p:kkk") and told.endswith("...") and len(told) <= 4 + 64
    assert found["db.query.text"] == "get_multi 'p:a' and 2 more"
    assert "db.query.text" not in version
    assert not any("the-value" in span.to_json() for span in traced.spans)


@pytest.mark.gen_test
async def test_a_span_is_the_child_of_what_is_current_where_the_call_is_made(memcached):
    traced = Traced()
    async with Client([memcached.address], observer=traced.observer) as client:
        await client.get("cold")

        async def page(name: str) -> None:
            with traced.tracer.start_as_current_span(name):
                await asyncio.gather(client.get("k"), client.incr(name))

        await asyncio.gather(page("a"), page("b"))
    for name in ("a", "b"):
        parent = traced.named(name)
        children = [one for one in traced.spans if one.parent == parent.get_span_context()]
        assert sorted(one.name.split()[0] for one in children) == ["get", "incr"]
    # One line of gets was for both pages: each get is a span of its own.
    assert len(traced.spans) == 1 + 2 * 3


@pytest.mark.gen_test
async def test_what_is_begun_in_a_callback_is_a_child_of_the_handler_s_span(memcached):
    traced = Traced()

    class Page(RequestHandler):
        @asynchronous
        def get(self) -> None:
            with traced.tracer.start_as_current_span("page " + self.get_argument("of")):
                with boundary(self.send_error):
                    mc.get("a", callback=self.on_a)

        def on_a(self, value: Any) -> None:
            mc.incr("n", callback=self.on_n, fail_callback=self.send_error)

        def on_n(self, value: Any) -> None:
            with traced.tracer.start_as_current_span("within"):
                mc.delete("a", callback=self.on_deleted)

        def on_deleted(self, deleted: bool) -> None:
            self.finish("done")

    sock, port = bind_unused_port()
    server, http = HTTPServer(Application([("/", Page)])), AsyncHTTPClient(force_instance=True)
    server.add_socket(sock)
    async with Client([memcached.address], observer=traced.observer) as mc:
        pages = [http.fetch(f"http://127.0.0.1:{port}/?of={name}") for name in "xy"]
        assert [page.body for page in await asyncio.gather(*pages)] == [b"done"] * 2
    http.close()
    server.stop()
    await server.close_all_connections()
    await until(lambda: len(traced.spans) == 2 * 5)
    for name in "xy":
        handler = traced.named(f"page {name}")
        children = [one for one in traced.spans if one.parent == handler.get_span_context()]
        assert sorted(one.name.split()[0] for one in children) == ["get", "incr", "within"]
        (within,) = [one for one in children if one.name == "within"]
        (deleted,) = [one for one in traced.spans if one.parent == within.get_span_context()]
        assert deleted.name.startswith("delete ")


@pytest.mark.gen_test
async def test_what_is_not_sampled_costs_no_attributes_and_ends(memcached):
    provider = TracerProvider(sampler=ALWAYS_OFF, shutdown_on_exit=False)
    observer = OpenTelemetryObserver(tracer_provider=provider)
    async with Client([memcached.address], observer=observer) as client:
        assert await client.get("k") is None


@pytest.mark.gen_test
async def test_without_an_sdk_it_does_nothing(memcached):
    async with Client([memcached.address], observer=OpenTelemetryObserver()) as client:
        assert await client.set("k", 1) and await client.get("k") == 1


@pytest.mark.gen_test
async def test_a_provider_that_fails_disturbs_no_call(memcached, expect_log):
    expect_log("tornado.application", "OpenTelemetryObserver.call_started", level=40, times=1)

    class Broken:
        def get_tracer(self, *_: Any, **__: Any) -> Any:
            return self

        def start_span(self, *_: Any, **__: Any) -> Any:
            raise ValueError("broken")

    observer = OpenTelemetryObserver(tracer_provider=Broken())
    async with Client([memcached.address], observer=observer) as client:
        assert await client.get("k") is None and await client.get("k") is None


def test_bad_arguments_are_refused():
    with pytest.raises(TypeError, match="tracer_provider must be a TracerProvider"):
        OpenTelemetryObserver(tracer_provider=1)
    with pytest.raises(TypeError, match="keys must be a bool"):
        OpenTelemetryObserver(keys=1)


def test_without_opentelemetry_it_says_what_to_install():
    code = "import sys; sys.modules['opentelemetry'] = None\n"
    code += "from tornado_memcache import opentelemetry_observer"
    ended = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    last = ended.stderr.strip().splitlines()[-1]
    assert last.endswith("pip install tornado_memcache[opentelemetry]")
