"""The benchmarks measure what they say: every client is checked, a wrong one is found out.

Runs every adapter that is installed against a real memcached, and a short
measurement of two clients. No test depends on how fast anything is.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import re
import signal
import subprocess
import sys
import time
import xml.etree.ElementTree as ElementTree
from pathlib import Path
from typing import Any

import pytest

from benchmarks import __main__ as command
from benchmarks import bars, drive, growth, rounds, svg, table, workloads, wrk
from benchmarks import report as reporting
from benchmarks.apart import once
from benchmarks.bars import BARS, Bar, judge
from benchmarks.checks import check
from benchmarks.clients import MEASURED, adapter, version
from benchmarks.drive import Wrong
from benchmarks.workloads import WORKLOADS, Workload, names, steps, value_of

from .memcacheds import Memcached

ROOT = Path(__file__).resolve().parent.parent
INSTALLED = [name for name in MEASURED if version(name) is not None]
#: A workload of each kind, so short that it is only shown to work.
TINY = [
    Workload("tiny", "a few gets at a time", callers=4),
    Workload("alone", "one caller"),
    Workload("mixed", "gets and sets", "mix", callers=4),
    Workload("burst", "a gather", "burst", keys=7),
    Workload("multi", "a get_multi", "multi", keys=7),
    Workload("large", "large values", size=300_000),
    Workload("sets", "sets", "sets", size=1000),
]


async def driven(name: str, server: Memcached) -> list[str]:
    """Checks one client and has it do each kind of workload that it can; returns which."""
    done: list[str] = []
    stored = set()
    for workload in TINY:
        kind = adapter(name)
        if rounds.why_not(kind, workload):
            continue
        client = kind()
        await client.open_best([server.address], workload.callers, workload.size)
        try:
            if workload.size not in stored or name == "loop_alone":  # (which has no server)
                await check(client, workload)
                stored.add(workload.size)
            keys = [key.encode() if kind.bytes_keys else key for key in names(workload)]
            values = [value_of(key, workload.size) for key in names(workload)]
            parts = steps(workload, keys, values, 8)
            await drive.run(client, workload, parts)
            times = await drive.run_clocked(client, workload, parts)
            assert len(times) == sum(map(len, parts)) and min(times) > 0
            values[:] = [b"another"] * len(values)
            if workload.kind not in ("sets", "mix"):  # (which would store it)
                with pytest.raises(Wrong):
                    await drive.run(client, workload, steps(workload, keys, values, 8))
        finally:
            await client.close()
        done.append(workload.name)
    await asyncio.sleep(0)
    return done


#: (In a process of its own: what a client leaves behind is not ours to clean up.)
DRIVEN = """
import asyncio, sys
from tests.memcacheds import Memcached
from tests.test_benchmarks import driven

server = Memcached()
try:
    print(*asyncio.run(driven(sys.argv[1], server)))
finally:
    server.close()
"""


@pytest.mark.parametrize("name", INSTALLED)
def test_every_client_gives_the_right_values_and_is_found_out_otherwise(name: str) -> None:
    line = [sys.executable, "-c", DRIVEN, name]
    ended = subprocess.run(line, cwd=ROOT, capture_output=True, text=True, timeout=120)
    assert ended.returncode == 0, ended.stderr
    assert "alone" in ended.stdout.split()


class Forgetful:
    """An adapter of a client that is wrong in one way."""

    style, bytes_keys, items, kinds = "await", False, False, frozenset({"gets"})
    stored = True

    def __init__(self, spoil: Any, outcome: Any = True) -> None:
        self._kept: dict[str, bytes] = {}
        self._spoil = spoil
        self._outcome = outcome

    async def store(self, key: str, value: bytes) -> Any:
        self._kept[key] = self._spoil(value)
        return self._outcome

    async def fetch(self, key: str) -> bytes | None:
        return self._kept.get(key, self._spoil(None))


@pytest.mark.parametrize(
    "spoil",
    [
        lambda value: value and value.rstrip(b"\r\n"),
        lambda value: value and value.decode("ascii", "replace").encode(),
        lambda value: value and value.partition(b"END\r\n")[0],
        lambda value: b"" if value is None else value,
    ],
    ids=["strips", "decodes", "ends at END", "knows no miss"],
)
def test_a_client_that_is_not_binary_safe_or_knows_no_miss_is_not_timed(spoil: Any) -> None:
    asyncio.run(check(Forgetful(lambda value: value), WORKLOADS["seq"]))  # type: ignore[arg-type]
    with pytest.raises(Wrong):
        asyncio.run(check(Forgetful(spoil), WORKLOADS["seq"]))  # type: ignore[arg-type]


def test_a_store_that_was_refused_is_found_out() -> None:
    client: Any = Forgetful(lambda value: value, outcome=False)
    with pytest.raises(Wrong, match="not stored"):
        asyncio.run(check(client, WORKLOADS["seq"]))
    for kind, step in (("sets", ("key", b"value")), ("mix", ("key", b"value", True))):
        with pytest.raises(Wrong, match="not stored"):
            asyncio.run(drive.run(client, Workload("w", "", kind), [[step]]))


def test_a_large_value_is_compared_to_its_last_byte() -> None:
    client: Any = Forgetful(lambda value: value and value[:-1] + b"y")
    client._kept["key"] = b"x" * 99_999 + b"y"
    with pytest.raises(Wrong):
        step = ("key", b"x" * 100_000)
        asyncio.run(drive.run(client, Workload("w", "", size=100_000), [[step]]))


# -- a whole run


def test_a_short_run_prints_its_tables_and_is_kept_and_reported(tmp_path: Path) -> None:
    kept = tmp_path / "found.json"
    line = [sys.executable, "-m", "benchmarks", "--clients", "ours,bare_batched", "--quiet"]
    line += ["--workloads", "c32,get_multi100", "--rounds", "2", "--seconds", "0.02"]
    ended = subprocess.run(
        [*line, "--json", str(kept)], cwd=ROOT, capture_output=True, text=True, timeout=120
    )
    assert ended.returncode == 0, ended.stderr
    found = json.loads(kept.read_text())
    assert ended.stdout.rstrip("\n") == table.as_text(found)
    for title in ("this client", "bare Protocol, batched", "per second", "CPU a call", "bars"):
        assert title in ended.stdout
    assert set(found["results"]) == {"c32", "get_multi100"}
    for clients in found["results"].values():
        for one in clients.values():
            assert len(one["rounds"]) == 2 and one["error"] is None
            assert all(min(figures.values()) > 0 for figures in one["rounds"])
    # Of this machine the kind, and how many cores it has; the file is named without its folder.
    assert not {"host", "hostname", "node"} & set(found["about"])
    assert found["about"]["command"].endswith("--seconds 0.02 --json found.json")
    assert str(tmp_path) not in kept.read_text()
    for name in ("commit", "date", "cpu", "cores", "python", "load_begin", "load_end"):
        assert name in found["about"]
    assert found["stopped"] is None and not list(tmp_path.glob("*.part"))
    assert found["about"]["clients"]["ours"]["settings"]
    line = [sys.executable, "-m", "benchmarks.report", "--docs", str(tmp_path), str(kept)]
    subprocess.run(line, cwd=ROOT, check=True, timeout=60)
    assert "bare Protocol, batched" in (tmp_path / reporting.TABLES).read_text()
    plots = list(tmp_path.glob("*.svg"))
    assert plots
    for plot in plots:
        assert ElementTree.parse(plot).getroot().tag == "{http://www.w3.org/2000/svg}svg"


def run(*words: str, **told: Any) -> subprocess.CompletedProcess[str]:
    line = [sys.executable, "-m", "benchmarks", *words]
    return subprocess.run(line, cwd=ROOT, capture_output=True, text=True, timeout=60, **told)


def processes_under(pid: int) -> list[int]:
    """Returns the living processes that ``pid`` started, and those that they started."""
    parents: dict[int, list[int]] = {}
    for stat in Path("/proc").glob("[0-9]*/stat"):
        with contextlib.suppress(OSError):
            fields = stat.read_text().rpartition(")")[2].split()
            parents.setdefault(int(fields[1]), []).append(int(stat.parent.name))
    found = list(parents.get(pid, []))
    for child in found:  # (which grows)
        found += parents.get(child, [])
    return found


@pytest.mark.parametrize(
    "number, then",
    [
        (signal.SIGINT, "seq,c32,c256,c1000,mix256"),
        (signal.SIGHUP, "seq,c32,c256,c1000,mix256"),
        (signal.SIGTERM, "memory"),
    ],
)
def test_a_run_that_is_stopped_keeps_what_it_has_and_leaves_no_process(
    number: signal.Signals, then: str, tmp_path: Path
) -> None:
    kept = tmp_path / "found.json"
    line = [sys.executable, "-m", "benchmarks", "--clients", "ours", "--json", str(kept)]
    line += ["--workloads", f"get_multi100,{then}", "--rounds", "1", "--seconds", "0.01"]
    pipe = subprocess.PIPE
    # (A suite that runs in the background may have been told to ignore these.)
    heeding: Any = {"preexec_fn": lambda: signal.signal(number, signal.SIG_DFL)}
    with subprocess.Popen(
        line, cwd=ROOT, stdout=pipe, stderr=pipe, text=True, **heeding
    ) as process:
        children: list[int] = []
        end = time.monotonic() + 50
        while not kept.exists() and time.monotonic() < end:
            time.sleep(0.002)
        while not children and time.monotonic() < end:
            children = processes_under(process.pid)
        process.send_signal(number)
        told, errors = process.communicate(timeout=30)
    assert "Traceback" not in errors, errors
    assert process.returncode == 128 + number
    assert list(json.loads(kept.read_text())["results"])[:1] == ["get_multi100"]
    assert f"did not end by itself: {number.name}" in told and "get_multi100" in told
    # (What was killed is gone when whoever inherited it has taken note.)
    while any(Path(f"/proc/{child}").exists() for child in children):
        assert time.monotonic() < end
        time.sleep(0.01)


@pytest.mark.parametrize(
    "words, said",
    [
        (["--seconds", "0"], "--seconds: 0 is not more than 0"),
        (["--seconds", "nan"], "--seconds: nan is not more than 0"),
        (["--seconds", "inf"], "--seconds: inf is not more than 0"),
        (["--rounds", "0"], "--rounds: 0 is not 1 or more"),
        (["--clients", "ours,,emcache"], "there is no ''"),
        (["--json", "no/such/folder/found.json"], "cannot be written: No such file"),
        (["--json", "/dev/null"], "cannot be written: it is no file"),
    ],
)
def test_what_cannot_be_measured_is_refused_in_one_line_before_anything_begins(
    words: list[str], said: str
) -> None:
    ended = run(*words)
    assert ended.returncode == 2 and not ended.stdout
    assert said in ended.stderr.splitlines()[-1] and "Traceback" not in ended.stderr


def test_what_is_not_installed_is_told_in_one_line(monkeypatch: Any, capsys: Any) -> None:
    def refused(*words: str) -> str:
        monkeypatch.setattr(sys, "argv", ["benchmarks", *words])
        with pytest.raises(SystemExit):
            command.arguments()
        return str(capsys.readouterr().err.splitlines()[-1])

    with monkeypatch.context() as without:
        without.setattr(command, "find_binary", lambda: None)
        assert "no memcached on PATH" in refused()
    with monkeypatch.context() as without:
        without.setattr(command.importlib.util, "find_spec", lambda name: None)
        assert "uvloop: it is not installed" in refused("--loop", "uvloop")
    monkeypatch.setattr(command, "version", lambda name: None)
    assert "none is installed of emcache, pylibmc" in refused("--clients", "emcache, pylibmc")


def test_figures_that_are_kept_stay_until_others_can_take_their_place(
    tmp_path: Path, monkeypatch: Any
) -> None:
    kept = tmp_path / "found.json"
    command.write(kept, {"results": 1})

    def full(*paths: Any) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(command.os, "replace", full)
    with pytest.raises(OSError, match="No space"):
        command.write(kept, {"results": 2})
    assert json.loads(kept.read_text()) == {"results": 1} and list(tmp_path.iterdir()) == [kept]


def test_who_cannot_do_a_workload_is_told_with_the_reason() -> None:
    ended = run("--clients", "raw_socket", "--workloads", "c32", "--rounds", "1", "--quiet")
    assert ended.returncode == 0, ended.stderr
    assert "none of the clients can do this" in ended.stdout
    assert "a raw blocking socket (its calls block: one caller at a time)" in ended.stdout


def test_a_client_that_was_made_ready_a_second_time_is_told(monkeypatch: Any) -> None:
    answers = iter([{"error": "OSError: busy"}, {"calls": 1}, {"ops": 1.0}, {}])
    monkeypatch.setattr(rounds.Worker, "ask", lambda *_, **__: next(answers))
    said: list[str] = []
    with rounds.Rounds(["ours"], "asyncio", 0.01, said.append) as several:
        results = several.measure(WORKLOADS["seq"], 1)
    assert results["ours"]["error"] is None and results["ours"]["rounds"] == [{"ops": 1.0}]
    found = {"results": {"seq": results}, "about": {"clients": {}}, "skipped": {}}
    assert table.remarks(found) == ["seq: ours was made ready a second time: OSError: busy"]
    assert "ours: is made ready a second time" in said


def test_the_readme_quotes_the_table_of_256_callers() -> None:
    table_of_256 = (ROOT / "docs" / reporting.TABLES).read_text().split("**c256**")[1]
    rows = [re.split(r"  +", line) for line in table_of_256.partition("**")[0].splitlines()]
    cells = [row for row in rows if len(row) == 6 and row[2][0].isdigit()]
    ours = {row[0]: float(row[2].split()[0]) for row in cells}
    readme = (ROOT / "README.rst").read_text()
    (row,) = re.findall(r"^gets/s, 256 callers, relative +(.*)$", readme, re.M)
    told = [cell for cell in row.replace("[#]_", "").split() if cell != "-"]
    names = ("this client", "emcache", "aiomcache", "pymemcache in threads")
    right = [f"{ours[name] / ours['emcache']:.2g}" for name in names]
    assert told == right, "README.rst is to have the figures of docs/performance_tables.rst"
    batching = f"{ours['emcache, autobatching'] / ours['emcache']:.2g}"
    assert f".. [#] {batching} with its opt-in batching" in readme


def speeds(workload: str, **ops: float) -> dict[str, Any]:
    """Returns the results of a run with one round."""
    clients = {
        name: {"rounds": [{"ops": one, "cpu": 1e-6, "p50": 1e-3, "p99": 2e-3}], "error": None}
        for name, one in ops.items()
    }
    about = {"loop": "asyncio", "python": "3", "tornado": "6", "memcached": "1", "cores": 2}
    about |= {"pinned": True, "rounds": 1, "seconds": 0.3, "load_begin": 0.5, "load_end": 1.5}
    about |= {"command": "python -m benchmarks --rounds 1", "commit": "abc", "date": "today"}
    told = {name: {"title": name, "version": "1", "settings": "none"} for name in ops}
    return {
        "about": {**about, "clients": told},
        "seconds": 1,
        "workloads": {workload: "what it is"},
        "skipped": {},
        "results": {workload: clients},
    }


def test_every_row_in_which_another_is_faster_is_told_by_the_report(tmp_path: Path) -> None:
    kept, grown = tmp_path / "kept.json", tmp_path / "grown.json"
    ops = {"ours": 100.0, "ours_callbacks": 200.0, "loop_alone": 900.0, "bare_batched": 300.0}
    ops |= {"emcache": 106.0, "aiomcache": 104.0, "pylibmc": 120.0}
    kept.write_text(json.dumps(speeds("seq", **ops)))
    grown.write_text(json.dumps(speeds("callers10", ours=10.0, emcache=20.0)))
    files = reporting.report([kept, grown])
    told = " ".join(files[reporting.FASTER].split())
    assert "- what it is: pylibmc 1.2 x; emcache 1.06 x; bare_batched (a floor) 3 x" in told
    assert "emcache 2 x" in told and "aiomcache" not in told and "loop_alone" not in told
    tables = files[reporting.TABLES]
    # Each plot is shown, in words too, and each run is told with its command.
    for name in files:
        assert not name.endswith(".svg") or f".. image:: {name}\n   :alt: " in tables
    said = "Made by ``python -m benchmarks --rounds 1`` at commit abc, today, load average 0.5"
    assert " ".join(tables.split()).count(said) == 2
    assert tables.count("**The bars") == 1  # (what grows has none)


def test_a_report_of_what_cannot_be_read_says_so_and_writes_nothing(tmp_path: Path) -> None:
    good, docs = tmp_path / "good.json", tmp_path / "docs"
    docs.mkdir()
    good.write_text(json.dumps(speeds("seq", ours=1.0)))
    for text, said in (
        ("", "is not what --json keeps"),
        ("[]", "is not what --json keeps"),
        (json.dumps({**speeds("seq"), "results": {}}), "has no figures"),
        (json.dumps({**speeds("seq", ours=1.0), "about": {}}), "it lacks"),
        (good.read_text(), "as one before it has"),
        (None, "cannot be read: No such file"),
    ):
        bad = tmp_path / "bad.json"
        bad.unlink(missing_ok=True)
        if text is not None:
            bad.write_text(text)
        with pytest.raises(ValueError, match=said):
            reporting.report([good, bad])
    for where in ([str(bad), "--docs", str(docs)], [str(good), "--docs", str(tmp_path / "none")]):
        line = [sys.executable, "-m", "benchmarks.report", *where]
        ended = subprocess.run(line, cwd=ROOT, capture_output=True, text=True, timeout=60)
        assert ended.returncode == 2 and "Traceback" not in ended.stderr
        assert re.search("cannot be read|no such folder", ended.stderr.splitlines()[-1])
    assert not list(docs.iterdir())


def test_a_client_that_fails_or_is_wrong_fails_the_run() -> None:
    good = {"rounds": [{"ops": 1.0}], "error": None, "wrong": False}
    bad = {"rounds": [], "error": "Wrong: b'x'", "wrong": True}
    assert not command.failed({"results": {"seq": {"ours": good}}})
    assert command.failed({"results": {"seq": {"ours": good, "a": bad}}})


def test_a_process_that_ends_is_a_failure_of_its_client() -> None:
    worker = rounds.Worker("no_such_client", "asyncio")
    assert "ended" in worker.ask("round")["error"]
    worker.end()


def test_a_stopped_server_is_measured() -> None:
    found = once("stall", "ours", "asyncio")
    assert found["timers"] >= 0 and found["all_back_ms"] > 99 and found["lag_ms"] > 0


def test_a_connection_is_measured_new_and_used() -> None:
    found = once("memory", "bare_pipelined", "asyncio")
    assert min(found["connection"], found["used_connection"]) > 0


def test_what_wrk_prints_is_read() -> None:
    said = "   50%   14.15ms\n  99%    1.20s \n 500 requests in 2.00s\nRequests/sec:   1720.14\n"
    assert wrk.read(said) == {"ops": 1720.14, "p50": pytest.approx(0.01415), "p99": 1.2}
    assert wrk.requests(said) == 500
    for bad in ("  Non-2xx or 3xx responses: 7\n", "Socket errors: connect 0, read 3, write 0\n"):
        with pytest.raises(RuntimeError):
            wrk.read(bad + said)


# -- the bars


def results(**ops: list[float]) -> dict[str, Any]:
    """Returns the results of one workload, with the figures of each client's rounds."""
    clients = {
        name: {"rounds": [{"ops": one} for one in values], "error": None, "wrong": False}
        for name, values in ops.items()
    }
    return {"w": clients}


def test_a_bar_is_judged_by_the_median_of_the_ratios_within_the_rounds() -> None:
    bar = Bar("w", "ours", "peer", 2.0)
    # Round by round 2, 2, 2: the machine was slower in the second, for both.
    one = judge(bar, results(ours=[20.0, 2.0, 40.0], peer=[10.0, 1.0, 20.0]))
    assert (one.measured, one.low, one.high, one.met) == (2.0, 2.0, 2.0, True)
    one = judge(bar, results(ours=[19.0, 2.0, 30.0], peer=[10.0, 1.0, 20.0]))
    assert (one.measured, one.low, one.high, one.met) == (1.9, 1.5, 2.0, False)


def test_a_bar_can_be_a_multiple_of_another_figure_of_the_same_rounds() -> None:
    bar = Bar("w", "ours", None, most=5, figure="p99", to="p50")
    found = results(ours=[1.0, 1.0, 1.0])
    for one, times in zip(found["w"]["ours"]["rounds"], ((1.0, 4.0), (2.0, 12.0), (1.0, 3.0))):
        one["p50"], one["p99"] = times
    assert judge(bar, found)[1:] == (4.0, 3.0, 6.0, True)
    assert bar.text == "ours: p99 <= 5 x p50"


def test_a_limit_is_judged_by_the_median() -> None:
    bar = Bar("w", "ours", None, None, 10.0)
    assert judge(bar, results(ours=[9.0, 10.0, 99.0])).met is True
    assert judge(bar, results(ours=[9.0, 11.0, 99.0])).met is False


def test_a_bar_without_figures_is_neither_met_nor_missed() -> None:
    bar = Bar("w", "ours", "peer", 2.0)
    failed = results(ours=[20.0], peer=[10.0])
    failed["w"]["peer"]["error"] = "it failed"
    for found in (results(ours=[20.0]), results(peer=[20.0]), {}, failed):
        assert judge(bar, found).met is None
    told = {"about": {"loop": "asyncio", "clients": {}}, "results": {"seq": {}}}
    assert "not measured" in "\n".join(table.bar_table(told))


def test_every_bar_names_what_there_is() -> None:
    for bar in BARS:
        assert bar.workload in command.DEFAULT
        assert (bar.least is None) != (bar.most is None)
        known = {*MEASURED, wrk.NO_CACHE}
        assert bar.client in known and (bar.other is None or bar.other in known)
        if bar.workload in table.LIMITED:
            assert bar.figure in table.LIMITED[bar.workload]
    assert len({bar.text + bar.workload + bar.loop for bar in BARS}) == len(BARS)
    assert bars.quartiles([5, 1, 3]) == (1, 5)
    assert bars.quartiles([9, 1, 2, 3, 4, 5, 6, 7, 8]) == (3, 7)


# -- the load


@pytest.mark.parametrize("workload", WORKLOADS.values(), ids=list(WORKLOADS))
def test_every_caller_asks_for_keys_that_are_there(workload: Workload) -> None:
    keys = names(workload)
    values = [value_of(key, workload.size) for key in keys]
    assert len(set(values)) == len(keys) and {len(value) for value in values} == {workload.size}
    parts = steps(workload, keys, values, 2 * workload.callers)
    assert len(parts) == workload.callers
    if workload.kind in ("gets", "mix"):
        # At the same pace no two callers want the same key: nobody is served by another's call.
        first = [part[0][0] for part in parts]
        assert len(set(first)) == workload.callers
    if workload.kind == "mix":
        writes = [step[2] for part in parts for step in part]
        assert sum(writes) / len(writes) == pytest.approx(1 / workloads.MIX, abs=0.02)


def test_what_grows_grows() -> None:
    for family, (_, several) in growth.FAMILIES.items():
        sizes = [growth.size_of(workload) for workload in several]
        assert sizes == sorted(set(sizes)) and {one.family for one in several} == {family}


def test_plots_can_be_read_by_anything_that_reads_xml() -> None:
    bar = svg.Bar("<&>", 0.0, '"', svg.OURS)
    line = svg.Line("a & b", [(1, 5.0), (10, 5000.0)], svg.OURS)
    for text in (
        svg.bars("t", [("one <", [bar]), ("two", [])]),
        svg.lines("t & u", "x", [line, line]),
        svg.lines("one point", "x", [svg.Line("c", [(7, 7.0)], svg.FLOOR)]),
    ):
        assert ElementTree.fromstring(text).tag.endswith("svg")


def test_amounts_are_short() -> None:
    assert [table.amount(one) for one in (0.5, 12.34, 1234.5, 12345, 1.2e6)] == [
        "0.5",
        "12.3",
        "1234",
        "12.3 k",
        "1.2 M",
    ]
