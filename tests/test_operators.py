"""What docs/operators.rst tells: its blocks run, its metrics are there, and so is its log."""

from __future__ import annotations

import logging
import re
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest
from prometheus_client import CollectorRegistry
from prometheus_client.parser import text_string_to_metric_families

from benchmarks import observers
from tornado_memcache import Client, ConnectionFailed, MemcacheError, ServerDead, Timeout
from tornado_memcache.observer import KINDS
from tornado_memcache.prometheus_observer import PrometheusObserver

from .asked import EXCHANGES, NAMES, STYLES, Asked, meta_known, until
from .memcacheds import free_port
from .scripted import Expect, Scripted, Send
from .test_readme import fetch

ROOT = Path(__file__).resolve().parent.parent
TEXT = (ROOT / "docs" / "operators.rst").read_text()
BLOCKS = re.findall(r"\.\. code-block:: python\n\n((?:    .*\n|\n)+)", TEXT)
LOG = "tornado_memcache"
#: Which block is which, by a word that only it has.
WORDS = ["Slow", "PrometheusObserver", "OpenTelemetryObserver", "setLevel"]


def block_with(word: str) -> str:
    (found,) = [block for block in BLOCKS if word in block]
    return textwrap.dedent(found)


@pytest.fixture
def start(tmp_path):
    """Runs a block as a file of its own, with a server and a port of its own put in."""
    processes = []

    def run(word, server, port=8888):
        source = block_with(word).replace("127.0.0.1:11211", server.address)
        (tmp_path / "app.py").write_text(source.replace("8888", str(port)))
        line = [sys.executable, "-W", "error", "app.py"]
        pipe = subprocess.PIPE
        environment = {"PYTHONPATH": str(ROOT), "PATH": ""}
        processes.append(
            subprocess.Popen(line, cwd=tmp_path, env=environment, stdout=pipe, stderr=pipe)
        )
        return processes[-1]

    yield run
    for process in processes:
        process.terminate()
        assert b"Traceback" not in process.communicate()[1]


def test_every_block_is_run():
    assert [block_with(word) for word in WORDS] == [textwrap.dedent(block) for block in BLOCKS]
    exec(block_with("setLevel"), {})
    logging.getLogger(LOG).setLevel(logging.NOTSET)


def test_a_pasted_observer_lets_calls_through(memcached, start):
    out, errors = start("Slow", memcached).communicate(timeout=30)
    assert out.decode().endswith("hello\n"), errors.decode()


def test_a_pasted_application_has_its_metrics(memcached, start):
    port = free_port()
    start("PrometheusObserver", memcached, port)
    assert fetch(port) == (200, "not cached\n")
    status, text = fetch(port, "metrics")
    families = {family.name: family for family in text_string_to_metric_families(text)}
    (sample,) = families["memcached_client_misses"].samples[:1]
    assert status == 200 and sample.value == 1
    assert sample.labels == {"client": "pages", "command": "get", "server": memcached.address}


def test_a_pasted_tracer_prints_spans(memcached, start):
    out, errors = start("OpenTelemetryObserver", memcached).communicate(timeout=30)
    told = out.decode()
    assert f'"name": "get {memcached.address}"' in told, errors.decode()
    assert "hello" in told and told.count('"kind": "SpanKind.CLIENT"') == 2


def test_the_metrics_of_the_docs_are_all_there_are_with_their_labels():
    registry = CollectorRegistry()
    metrics = PrometheusObserver(registry=registry)._metrics
    rows = re.findall(r"^((?:``\w+``(?:, )?)+)[^`\n]*(?: {2,}(``\w+``.*))?$", TEXT, re.M)
    told = {
        name.removesuffix("_total"): set(re.findall(r"``(\w+)``", labels))
        for names, labels in rows
        for name in re.findall(r"``(\w+)``", names)
    }
    there = {
        metric._name.removeprefix("memcached_client_"): {*metric._labelnames} - {"client"}
        for metric in vars(metrics).values()
        if hasattr(metric, "_labelnames")
    }
    assert {name: told.get(name) for name in there} == there


def test_the_figures_are_of_the_observers_that_are_measured():
    (table,) = re.findall(r"((?:^=[= ]+\n)observer .*?\n(?:.*\n)+?=[= ]+\n(?=\n))", TEXT, re.M)
    names = [re.split(r" {2,}", line)[0] for line in table.splitlines()[3:-1]]
    assert names == list(observers.observers([]))
    assert table.splitlines()[1].split("  ")[0] == "observer"
    assert all(workload in table for workload in observers.WORKLOADS)


@pytest.mark.gen_test
async def test_what_an_observer_costs_can_be_measured(memcached):
    found = await observers.measured(memcached.address, 1, observers.AT_ONCE)
    assert set(found) == set(observers.WORKLOADS)
    for figures in found.values():
        assert set(figures) == set(observers.observers([])) and min(figures.values()) > 0
    text = observers.table({"w": {observers.NOBODY: 10.0, "some": 15.0}})
    assert "10.0" in text and "+5.0 (1.50 x)" in text


# -- the log


class Records(logging.Handler):
    """Keeps every record of the package, at any level."""

    def __init__(self) -> None:
        super().__init__(logging.DEBUG)
        self.lines: list[tuple[str, str]] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.lines.append((record.levelname, record.getMessage()))


@pytest.fixture
def records():
    logger, kept = logging.getLogger(LOG), Records()
    logger.addHandler(kept)
    level = logger.level
    logger.setLevel(logging.DEBUG)
    yield kept
    logger.removeHandler(kept)
    logger.setLevel(level)


@pytest.mark.usefixtures(meta_known.__name__)
@pytest.mark.parametrize("style", STYLES)
@pytest.mark.parametrize("exchange", EXCHANGES, ids=NAMES)
@pytest.mark.gen_test
async def test_no_command_logs_a_line_at_any_level(exchange, style, records):
    script = [Expect(exchange.request), Send(exchange.reply)]
    async with Scripted(script) as server:
        async with Client([server.address]) as client:
            await Asked(style, lambda **how: exchange.call(client, **how)).outcome()
    assert records.lines == []


@pytest.mark.parametrize("how", ["killed", "stopped"])
@pytest.mark.gen_test
async def test_an_outage_of_a_thousand_failed_calls_is_three_lines_at_most(
    how, start_memcached, records, troubles
):
    server = start_memcached()
    async with Client([server.address], request_timeout=0.25) as client:
        await client.set("k", 1)
        server.kill() if how == "killed" else server.stop()
        failed = 0
        while failed < 1000:
            try:
                await client.get("k")
            except (ConnectionFailed, ServerDead, Timeout):
                failed += 1
        server.restart() if how == "killed" else server.resume()
        client.retry_dead_servers()
        await client.get("k", timeout=30)
        await until(lambda: records.lines[-1][0] == "INFO")
    *begin, dead, back = records.lines
    assert len(begin) == (how == "stopped")
    assert all("fails: " in line for _, line in begin) and "is taken for dead" in dead[1]
    assert {level for level, _ in [*begin, dead]} == {"WARNING"} and back[0] == "INFO"
    assert re.search(r"answers again, after 1\d\d\d failed calls", back[1])


@pytest.mark.gen_test
async def test_error_lines_of_a_server_that_answers_are_one_line_of_the_log(
    memcached, records, expect_log
):
    expect_log(LOG, "fails", times=range(2))
    memcached.ask(b"set text 0 0 3\r\nabc\r\n")
    async with Client([memcached.address]) as client:
        for _ in range(200):
            with pytest.raises(MemcacheError):
                await client.incr("text")
    assert len(records.lines) <= 1


def test_the_words_of_the_docs_are_those_of_the_package():
    source = "".join(path.read_text() for path in (ROOT / LOG).glob("*.py"))
    lines = re.findall(r"^(?:WARNING|INFO) +``([^`]*)``", TEXT, re.M)
    assert len(lines) == 8
    for line in lines:
        words = re.sub(r"\ba:11211\b|\b[\d.]+\b", "...", line).split("...")
        parts = [re.escape(part.strip(" :,")) for part in words]
        for part in filter(None, parts):
            assert re.search(part, source), f"{part!r} of {line!r}"
    assert {"timeout", "connection_failed"} <= set(KINDS.values())
