"""Every example is run as a reader runs it: as a process, asked over HTTP.

A test of the list of files fails when an example has no test here.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import signal
import socket
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from .memcacheds import free_port

ROOT = Path(__file__).resolve().parent.parent
EXAMPLES = ROOT / "examples"
SHORT = (
    "boundary_app",
    "cluster_app",
    "counter_app",
    "hello_await",
    "hello_callback",
    "stampede_app",
)
#: Seconds that a process gets to start or to end.
PATIENCE = 10.0


class Running:
    """An example that runs: ``get`` and ``post`` give (status, text), ``log`` its stderr."""

    def __init__(self, process: subprocess.Popen[str], port: int, log: Any) -> None:
        self.process = process
        self.port = port
        self._log = log
        self._browser = urllib.request.build_opener(urllib.request.ProxyHandler({}))

    def get(self, path: str = "/", data: bytes | None = None) -> tuple[int, str]:
        url = f"http://127.0.0.1:{self.port}{path}"
        try:
            with self._browser.open(url, data, timeout=PATIENCE) as page:
                return page.status, page.read().decode()
        except urllib.error.HTTPError as error:
            with error:
                return error.code, error.read().decode()

    def post(self, path: str) -> tuple[int, str]:
        return self.get(path, b"")

    @property
    def log(self) -> str:
        self._log.seek(0)
        return self._log.read()

    def wait(self) -> None:
        """Waits until it listens."""
        until = time.monotonic() + PATIENCE
        while True:
            assert self.process.poll() is None, self.log
            with contextlib.suppress(OSError):
                return socket.create_connection(("127.0.0.1", self.port)).close()
            assert time.monotonic() < until, self.log
            time.sleep(0.02)


def environment(**more: str) -> dict[str, str]:
    kept = {name: value for name, value in os.environ.items() if name != "MEMCACHED_SERVERS"}
    return {**kept, "PYTHONPATH": os.pathsep.join([str(ROOT), kept.get("PYTHONPATH", "")]), **more}


@contextlib.contextmanager
def running(name: str, end: int = signal.SIGTERM, **more: str) -> Iterator[Running]:
    port = free_port()
    line = [sys.executable, "-W", "error", str(EXAMPLES / f"{name}.py")]
    with tempfile.TemporaryFile("w+") as log:
        process = subprocess.Popen(
            line,
            env=environment(PORT=str(port), **more),
            stdout=subprocess.PIPE,
            stderr=log,
            text=True,
        )
        with process:
            try:
                example = Running(process, port, log)
                example.wait()
                yield example
                process.send_signal(end)
                process.wait(PATIENCE)
            finally:
                process.kill()
            assert "Traceback" not in example.log, example.log


def stop(pid: int) -> None:
    """SIGSTOP, and waits until each thread of somebody else's child has stopped."""
    os.kill(pid, signal.SIGSTOP)
    until = time.monotonic() + 10
    for status in Path(f"/proc/{pid}/task").glob("*/stat"):
        while status.read_text().rpartition(")")[2].split()[0] != "T":
            assert time.monotonic() < until, "it does not stop"
            time.sleep(0.001)


def is_alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return True


def test_every_example_is_tested_here_and_the_short_ones_are_short():
    elsewhere = {"old_module_app", "blocking_handler", "migrated_handler"}
    names = {path.stem for path in EXAMPLES.glob("*.py")}
    assert names == {*SHORT, *elsewhere, "demo", "demo_check"}
    for name in elsewhere:
        assert len((EXAMPLES / f"{name}.py").read_text().splitlines()) < 60
    for name in SHORT:
        source = (EXAMPLES / f"{name}.py").read_text()
        assert len(source.splitlines()) < 60
        assert "def make_app(servers):" in source and "def main():" in source


@pytest.mark.parametrize("name", ["hello_callback", "hello_await"])
def test_hello_is_made_once_and_comes_out_of_the_cache(memcached, name):
    with running(name, MEMCACHED_SERVERS=memcached.address) as example:
        status, first = example.get()
        assert status == 200 and first.startswith("Hello, it is ")
        until = time.monotonic() + PATIENCE
        while not memcached.ask(b"get hello\r\n", b"END\r\n").startswith(b"VALUE"):
            assert time.monotonic() < until, "the page was not stored"
        memcached.ask(b"set hello 16 0 14\r\nfrom the cache\r\n")
        assert example.get() == (200, "from the cache")


def test_hello_await_is_served_without_a_cache():
    with running("hello_await", MEMCACHED_SERVERS=f"127.0.0.1:{free_port()}") as example:
        assert example.get()[1].startswith("Hello, it is ")


def test_boundary_app_has_one_failure_page(start_memcached):
    server = start_memcached()
    server.ask(b"set text:tea 16 0 5\r\ngreen\r\n")
    with running("boundary_app", MEMCACHED_SERVERS=server.address) as example:
        assert example.get("/tea") == (200, "green (views: 1)\n")
        assert example.get("/tea") == (200, "green (views: 2)\n")
        assert example.get("/coffee") == (200, "not written yet (views: 1)\n")
        server.stop()
        begun = time.monotonic()
        assert example.get("/tea") == (503, "Please come back later: Timeout\n")
        assert 0.45 < time.monotonic() - begun < 0.75
        server.kill()
        assert example.get("/tea") == (503, "Please come back later: ConnectionFailed\n")


def test_counter_app_loses_nothing_when_many_count_at_once(memcached):
    with running("counter_app", MEMCACHED_SERVERS=memcached.address) as example:
        names = [chr(97 + number) * 2 for number in range(20)]
        with ThreadPoolExecutor(10) as visitors:
            counts = list(visitors.map(lambda _: example.post("/count"), range(40)))
            lists = list(visitors.map(lambda name: example.post(f"/guests/{name}"), names))
        assert {status for status, _ in counts + lists} == {200}
        assert sorted(int(count) for _, count in counts) == list(range(1, 41))
        longest = max((guests for _, guests in lists), key=len)
        assert sorted(longest.split()) == names


def test_cluster_app_serves_while_servers_come_go_and_die(start_memcached):
    servers = [start_memcached() for _ in range(3)]
    names = [server.address for server in servers]
    with running("cluster_app", MEMCACHED_SERVERS=",".join(names[:2])) as example:

        def status():
            return json.loads(example.get("/servers")[1])

        def change(*servers):
            url, body = f"http://127.0.0.1:{example.port}/servers", ",".join(servers).encode()
            try:
                asked = urllib.request.Request(url, body, method="PUT")
                with example._browser.open(asked, timeout=PATIENCE) as page:
                    return page.status
            except urllib.error.HTTPError as error:
                with error:
                    return error.code

        users = [f"user{chr(97 + n)}" for n in range(20)]
        for user in users:
            status_code, page = example.get(f"/users/{user}")
            assert (status_code, json.loads(page)) == (200, {f"seen:{user}": "just now"})
        assert set(status()) == set(names[:2]) and all(status().values())
        assert change(*names) == 200 and set(status()) == set(names)
        assert change("no:port:at:all") == change("") == 400 and set(status()) == set(names)
        assert change(*names[1:]) == 200 and set(status()) == set(names[1:])
        servers[1].kill()
        until = time.monotonic() + PATIENCE
        while not all(example.get(f"/users/{user}")[0] == 200 for user in users):
            assert time.monotonic() < until, "the other server does not take the keys"
        assert status()[names[1]] is None and status()[names[2]]
        servers[2].kill()
        assert {example.get(f"/users/{user}")[0] for user in users} == {503}
        assert set(status().values()) == {None}


def test_stampede_app_computes_a_guarded_page_once_where_a_plain_one_takes_all(memcached):
    with running("stampede_app", MEMCACHED_SERVERS=memcached.address) as example:
        assert example.process.stdout is not None
        said = [example.process.stdout.readline() for _ in range(2)]
        found = [re.fullmatch(r"/(\w+) under load was computed (\d+) times\n", one) for one in said]
        assert all(found), said
        computed = {one[1]: int(one[2]) for one in found if one}
        # (in three seconds, for a second each: once for each second, and not for each visitor)
        assert 1 <= computed["guarded"] <= 5 and computed["plain"] >= 20
        for name in computed:
            assert re.fullmatch(rf"{name} page, number \d+\n", example.get(f"/{name}")[1])


def test_the_demo_takes_the_servers_it_is_told(start_memcached):
    one, two = start_memcached(), start_memcached()
    with running("demo", MEMCACHED_SERVERS=f"{one.address}, {two.address}") as demo:
        assert demo.process.stdout is not None
        assert demo.process.stdout.readline() == (
            f"memcached: {one.address} {two.address} (named by MEMCACHED_SERVERS)\n"
        )
        assert f"http://127.0.0.1:{demo.port} " in demo.process.stdout.readline()
        names = [f"k{number}" for number in range(10)]
        for name in names:
            assert "Miss:" in demo.get(f"/page/{name}")[1]
            assert "Hit:" in demo.get(f"/page/{name}")[1]
        path = "/multi?" + "&".join(f"k={name}" for name in names)
        assert demo.get(path)[1].count("as written at") == 10
        two.stop()
        page = demo.get(path)[1]
        assert f"{two.address} is away" in page and 0 < page.count("as written at") < 10
        two.resume()
        assert demo.get("/multi?k=not%20a%20name")[0] == 400
        assert demo.get("/page/<script>")[0] == 404


@pytest.mark.parametrize("end", [signal.SIGTERM, signal.SIGINT])
def test_the_demo_starts_a_memcached_and_ends_it(memcached_binary, end):
    path = os.pathsep.join([os.path.dirname(memcached_binary), os.environ["PATH"]])
    with running("demo", end, PATH=path) as demo:
        assert demo.process.stdout is not None
        said = demo.process.stdout.readline()
        found = re.search(r"memcached, started as process (\d+)\)", said)
        assert found is not None, said
        child = int(found[1])
        assert is_alive(child)
        assert "Visits: <b>1</b>" in demo.get("/counter")[1]
        stop(child)
        status, page = demo.get("/counter")
        assert status == 503 and "while waiting for the reply" in page
    assert demo.process.returncode == 0
    assert not is_alive(child)


def test_the_demo_embeds_a_server_where_there_is_no_memcached(tmp_path):
    with running("demo", PATH=str(tmp_path)) as demo:
        assert demo.process.stdout is not None
        assert "embedded in this process" in demo.process.stdout.readline()
        assert "Miss:" in demo.get("/page/tea")[1]
        assert "Hit:" in demo.get("/page/tea")[1]
        assert "Visits: <b>1</b>" in demo.get("/counter")[1]
        assert "Visits: <b>2</b>" in demo.get("/counter")[1]
        assert "as written at" in demo.get("/multi?k=tea&k=coffee")[1]
    assert demo.process.returncode == 0


def test_the_demo_says_that_its_port_is_taken():
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        ended = subprocess.run(
            [sys.executable, str(EXAMPLES / "demo.py")],
            env=environment(PORT=str(taken.getsockname()[1])),
            capture_output=True,
            text=True,
            timeout=PATIENCE,
        )
    assert ended.returncode == 1
    assert re.fullmatch(r"cannot serve on port \d+ \(.*\); name another one: .*\n", ended.stderr)


def demo_check(**more: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-W", "error", str(EXAMPLES / "demo_check.py")],
        env=environment(**more),
        capture_output=True,
        text=True,
        timeout=60,
    )


def test_the_demo_check_passes_whatever_the_environment_says(memcached_binary):
    path = os.pathsep.join([os.path.dirname(memcached_binary), os.environ["PATH"]])
    # None of these is there.
    ended = demo_check(PATH=path, PORT="1", MEMCACHED_SERVERS="127.0.0.1:1", http_proxy="http://x")
    assert ended.returncode == 0, ended.stdout + ended.stderr
    assert ended.stderr == ""
    assert ended.stdout.endswith("all as it should be\n")
    assert "DIFFERS" not in ended.stdout
    assert len(re.findall(r"^ok +\d+ ms ", ended.stdout, re.MULTILINE)) == 13
    server = re.search(r"127\.0\.0\.1:(\d+)", ended.stdout)
    assert server is not None
    with pytest.raises(ConnectionRefusedError):
        socket.create_connection(("127.0.0.1", int(server[1])))


def test_the_demo_check_needs_a_memcached(tmp_path):
    ended = demo_check(PATH=str(tmp_path))
    assert ended.returncode == 2
    assert ended.stdout == "" and "no memcached on PATH" in ended.stderr
    assert len(ended.stderr.splitlines()) == 1


def test_the_demo_check_sees_what_differs(memcached_binary, tmp_path):
    """With a demo whose failure page comes too late."""
    for name in ("demo", "demo_check"):
        source = (EXAMPLES / f"{name}.py").read_text()
        (tmp_path / f"{name}.py").write_text(
            source.replace("request_timeout=REQUEST_TIMEOUT", "request_timeout=2 * REQUEST_TIMEOUT")
        )
    path = os.pathsep.join([os.path.dirname(memcached_binary), os.environ["PATH"]])
    ended = subprocess.run(
        [sys.executable, str(tmp_path / "demo_check.py")],
        env=environment(PATH=path),
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert ended.returncode == 1
    assert re.search(r"^DIFFERS +\d+ ms  the failure page, GET /page/tea", ended.stdout, re.M)
    assert ended.stdout.endswith("1 differences\n")
