"""tornado_memcache.prometheus_observer: what a Prometheus server scrapes is what was done."""

from __future__ import annotations

import asyncio
import json
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from prometheus_client import CONTENT_TYPE_LATEST, REGISTRY, CollectorRegistry, generate_latest
from prometheus_client.parser import text_string_to_metric_families
from tornado.httpclient import AsyncHTTPClient
from tornado.httpserver import HTTPServer
from tornado.testing import bind_unused_port
from tornado.web import Application, RequestHandler

from tornado_memcache import Client, ConnectionFailed, InvalidRequest, Timeout
from tornado_memcache.prometheus_observer import BUCKETS, PrometheusObserver

from .asked import until

ROOT = Path(__file__).resolve().parent.parent
DASHBOARD = ROOT / "docs" / "grafana.json"


class Scraped:
    """What one scrape told."""

    def __init__(self, text: str) -> None:
        self.families = {one.name: one for one in text_string_to_metric_families(text)}
        self.samples = {
            (sample.name, tuple(sorted(sample.labels.items()))): sample.value
            for family in self.families.values()
            for sample in family.samples
        }

    def value(self, name: str, /, **labels: str) -> float | None:
        """Returns the one sample of ``name`` with exactly these labels."""
        return self.samples.get((f"memcached_client_{name}", tuple(sorted(labels.items()))))

    def sum(self, name: str, /, **labels: str) -> float:
        """Returns the sum of all samples of ``name`` that have these labels among theirs."""
        return sum(
            value
            for (known, of), value in self.samples.items()
            if known == f"memcached_client_{name}" and labels.items() <= dict(of).items()
        )


async def scraped(registry: CollectorRegistry) -> Scraped:
    """Scrapes ``registry`` over HTTP, as a Prometheus server does."""

    class Metrics(RequestHandler):
        def get(self) -> None:
            self.set_header("Content-Type", CONTENT_TYPE_LATEST)
            self.finish(generate_latest(registry))

    sock, port = bind_unused_port()
    server = HTTPServer(Application([("/metrics", Metrics)]))
    server.add_socket(sock)
    http = AsyncHTTPClient(force_instance=True)
    try:
        answer = await http.fetch(f"http://127.0.0.1:{port}/metrics")
        return Scraped(answer.body.decode())
    finally:
        http.close()
        server.stop()
        await server.close_all_connections()


@pytest.mark.gen_test
async def test_a_scrape_tells_calls_hits_bytes_and_durations(memcached):
    registry = CollectorRegistry()
    observer = PrometheusObserver("pages", registry=registry)
    async with Client([memcached.address], observer=observer) as client:
        await client.set("k", b"12345")
        assert await client.get("k") == b"12345"
        await asyncio.gather(client.get("k"), client.get("j"), client.get("k"))
        await client.get_multi(["k", "j"])
        seen = await scraped(registry)
    of = {"client": "pages", "server": memcached.address}
    get, multi = {**of, "command": "get"}, {**of, "command": "get_multi"}
    assert seen.value("calls_total", **get, outcome="hit") == 3
    assert seen.value("calls_total", **get, outcome="miss") == 1
    assert seen.value("calls_total", **multi, outcome="done") == 1
    assert seen.value("calls_total", **of, command="set", outcome="stored") == 1
    assert (seen.value("hits_total", **get), seen.value("misses_total", **get)) == (3, 1)
    assert (seen.value("hits_total", **multi), seen.value("misses_total", **multi)) == (1, 1)
    assert seen.value("received_bytes_total", **get) == 15
    assert seen.value("sent_bytes_total", **of, command="set") == 5
    assert seen.value("call_duration_seconds_count", **get) == 4
    assert 0 < seen.value("call_duration_seconds_sum", **get) < 60
    bounds = [float(dict(key[1])["le"]) for key in seen.samples if key[0].endswith("_bucket")]
    assert set(bounds) == {*BUCKETS, float("inf")}
    assert seen.value("calls_under_way", client="pages") == 0
    assert seen.value("server_up", **of) == 1 == seen.value("connections", **of)


@pytest.mark.gen_test
async def test_a_scrape_tells_of_failures_deaths_and_connections(start_memcached, troubles):
    server, registry = start_memcached(), CollectorRegistry()
    other = start_memcached()
    observer = PrometheusObserver(registry=registry)
    servers = [server.address, other.address]
    async with Client(servers, observer=observer) as client:
        keys = [f"k{number}" for number in range(40)]
        await client.set_multi(dict.fromkeys(keys, 1))
        server.kill()
        failed = await client.get_multi(keys)
        assert set(failed.errors) == {server.address}
        gone = next(key for key in keys if key not in failed)
        with pytest.raises(ConnectionFailed):
            client.retry_dead_servers()
            await client.get(gone)
        of = {"client": "default", "server": server.address}
        seen = await scraped(registry)
        assert (seen.value("server_up", **of), seen.value("server_deaths_total", **of)) == (0, 1)
        assert seen.value("failures_total", **of, kind="connection_failed") == 2
        assert seen.value("connections", **of) == 0
        assert seen.value("connections_closed_total", **of, reason="connection_failed") >= 1
        assert seen.value("connections_failed_total", **of, reason="connection_failed") >= 2
        assert seen.sum("calls_total", outcome="partial") == 1
        assert seen.sum("calls_total", server="", command="get_multi") == 1
        server.restart()
        client.retry_dead_servers()
        await client.get(gone)
        await until(lambda: observer._metrics.up.labels(*of.values())._value.get() == 1)
        assert (await scraped(registry)).value("connections_opened_total", **of) >= 2
    await asyncio.sleep(0)
    seen = await scraped(registry)
    assert seen.sum("connections") == 0 and seen.sum("calls_under_way") == 0


def test_a_dead_server_whose_connection_opens_is_not_up_before_it_answers():
    registry = CollectorRegistry()
    observer, of = PrometheusObserver(registry=registry), {"client": "default", "server": "a:1"}

    def up() -> float | None:
        return Scraped(generate_latest(registry).decode()).value("server_up", **of)

    assert up() is None
    observer.connection_opened("a:1")
    assert up() == 1
    observer.server_down("a:1", Timeout("x"))
    observer.connection_opened("a:1")
    assert up() == 0
    observer.server_up("a:1")
    assert up() == 1


@pytest.mark.gen_test
async def test_calls_under_way_are_told_and_cancelled_ones_are_not_any_more(silent):
    registry = CollectorRegistry()
    observer = PrometheusObserver(registry=registry)
    async with Client([silent.address], observer=observer) as client:
        calls = [client.get("a"), client.set("b", 1)]
        assert Scraped(generate_latest(registry).decode()).sum("calls_under_way") == 2
        for call in calls:
            call.cancel()
        seen = Scraped(generate_latest(registry).decode())
    assert seen.sum("calls_under_way") == 0
    assert seen.sum("calls_total", outcome="cancelled") == 2


@pytest.mark.gen_test
async def test_several_clients_of_one_process_are_told_apart_or_added_up(memcached):
    registry = CollectorRegistry()
    a, b = PrometheusObserver("a", registry=registry), PrometheusObserver("b", registry=registry)
    again = PrometheusObserver("b", registry=registry)
    for observer in (a, b, b, again):
        async with Client([memcached.address], observer=observer) as client:
            await client.get("k")
    seen = await scraped(registry)
    assert seen.sum("calls_total", client="a") == 1
    assert seen.sum("calls_total", client="b") == 3


def test_labels_hold_neither_keys_nor_values_and_names_follow_the_conventions(memcached):
    registry = CollectorRegistry()

    async def used() -> None:
        observer = PrometheusObserver(registry=registry)
        async with Client([memcached.address], observer=observer) as client:
            await client.set("the-key", b"the-value")
            await client.get("the-key")

    asyncio.run(used())
    text = generate_latest(registry).decode()
    assert "the-key" not in text and "the-value" not in text
    for family in Scraped(text).families.values():
        assert re.fullmatch(r"memcached_client_[a-z_]+", family.name)
        assert family.documentation.endswith(".")
        units, created = ("_seconds", "_bytes"), family.name.endswith("_created")
        if any(unit[1:] in family.name for unit in units) and not created:
            assert family.name.removesuffix("_total").endswith(units), family.name


def test_the_registry_of_the_process_is_the_one_unless_given():
    observer = PrometheusObserver("of the process")
    assert observer._metrics is PrometheusObserver("another")._metrics
    assert "memcached_client_calls" in {family.name for family in REGISTRY.collect()}
    with pytest.raises(InvalidRequest, match="buckets must be those of the other observers"):
        PrometheusObserver("third", buckets=[1])


@pytest.mark.parametrize(
    ("options", "error", "told"),
    [
        ({"client": 1}, TypeError, "client must be a str"),
        ({"registry": None}, TypeError, "registry must be"),
        ({"buckets": "1"}, TypeError, "buckets must be a list"),
        ({"buckets": [True]}, TypeError, "buckets must be numbers"),
        ({"buckets": ["1"]}, TypeError, "buckets must be numbers"),
        ({"buckets": []}, InvalidRequest, "buckets must be seconds above 0"),
        ({"buckets": [0, 1]}, InvalidRequest, "buckets must be seconds above 0"),
        ({"buckets": [2, 1]}, InvalidRequest, "buckets must be seconds above 0"),
        ({"buckets": [float("nan")]}, InvalidRequest, "buckets must be seconds above 0"),
    ],
)
def test_bad_arguments_are_refused(options, error, told):
    with pytest.raises(error, match=told):
        PrometheusObserver(**{"registry": CollectorRegistry(), **options})


def test_without_prometheus_client_it_says_what_to_install():
    code = "import sys; sys.modules['prometheus_client'] = None\n"
    code += "from tornado_memcache import prometheus_observer"
    ended = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    last = ended.stderr.strip().splitlines()[-1]
    assert last.endswith("pip install tornado_memcache[prometheus]")


def expressions(dashboard: Any) -> list[str]:
    """Returns every expression of a dashboard."""
    if isinstance(dashboard, dict):
        own = [dashboard[name] for name in ("expr", "definition") if name in dashboard]
        return own + [one for value in dashboard.values() for one in expressions(value)]
    if isinstance(dashboard, list):
        return [one for value in dashboard for one in expressions(value)]
    return []


def test_every_metric_of_the_dashboard_exists_with_the_labels_that_it_asks_for():
    dashboard = json.loads(DASHBOARD.read_text())
    registry = CollectorRegistry()
    PrometheusObserver(registry=registry)
    known = {}
    for family in registry.collect():
        for suffix in ("", "_total", "_bucket", "_sum", "_count"):
            known[family.name + suffix] = family
    labels = {
        metric._name: set(metric._labelnames)
        for metric in vars(PrometheusObserver(registry=registry)._metrics).values()
        if hasattr(metric, "_labelnames")
    }
    asked: set[str] = set()
    found = expressions(dashboard)
    for expression in found:
        for name, chosen in re.findall(r"(memcached_client_\w+)(?:\{([^}]*)\})?", expression):
            assert name in known, f"{name} of {expression}"
            asked.add(known[name].name)
            of = set(re.findall(r"(\w+)\s*[!=]~?\"", chosen))
            assert of <= labels[known[name].name], expression
    assert len(found) > 10 and asked == {family.name for family in registry.collect()}


def test_the_dashboard_has_panels_that_do_not_overlap():
    dashboard = json.loads(DASHBOARD.read_text())
    assert dashboard["title"] and dashboard["uid"] and dashboard["schemaVersion"] >= 39
    cells: set[tuple[int, int]] = set()
    ids = [panel["id"] for panel in dashboard["panels"]]
    assert len(ids) == len(set(ids)) > 6
    for panel in dashboard["panels"]:
        at = panel["gridPos"]
        mine = {(at["x"] + x, at["y"] + y) for x in range(at["w"]) for y in range(at["h"])}
        assert at["x"] + at["w"] <= 24 and not mine & cells, panel["title"]
        cells |= mine
        if panel["type"] != "row":
            assert panel["title"] and panel["description"] and panel["targets"]
            assert all(target["expr"] for target in panel["targets"])
