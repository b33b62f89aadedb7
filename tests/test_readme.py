"""Every code block of README.rst that a reader might paste is run, as a file of its own."""

from __future__ import annotations

import ast
import inspect
import os
import re
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from pathlib import Path

import pytest

from tornado_memcache import Client

ROOT = Path(__file__).resolve().parent.parent
TEXT = (ROOT / "README.rst").read_text()
BLOCKS = re.findall(r"\.\. code-block:: python\n\n((?:    .*\n|\n)+)", TEXT)


def free_port() -> int:
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        return int(sock.getsockname()[1])


def fetch(port: int, path: str = "") -> tuple[int, str]:
    end = time.monotonic() + 10
    while True:
        try:
            with urllib.request.urlopen(f"http://127.0.0.1:{port}/{path}", timeout=5) as page:
                return page.status, page.read().decode()
        except urllib.error.HTTPError as error:
            with error:
                return error.code, error.read().decode()
        except OSError:
            assert time.monotonic() < end, "the application did not start"
            time.sleep(0.05)


@pytest.mark.parametrize(
    "number, warm, cold",
    [
        (0, "hello, visitor 2\n", "the cache is away\n"),
        (1, "computed for you\n", "computed without a cache\n"),
    ],
)
def test_a_pasted_handler_serves_and_survives_its_cache(
    number, warm, cold, start_memcached, tmp_path
):
    server, port = start_memcached(), free_port()
    lines = [line[4:] for line in BLOCKS[number].splitlines()]
    source = "\n".join(lines).replace("127.0.0.1:11211", server.address).replace("8888", str(port))
    (tmp_path / "app.py").write_text(source + "\n")
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    process = subprocess.Popen(
        [sys.executable, "-W", "error", "app.py"],
        cwd=tmp_path,
        env=environment,
        stderr=subprocess.PIPE,
    )
    try:
        fetch(port)
        assert fetch(port) == (200, warm)
        server.stop()
        begun = time.monotonic()
        assert fetch(port)[1] == cold
        assert time.monotonic() - begun < 2.5
        server.resume()
    finally:
        process.terminate()
        errors = process.communicate()[1].decode()
    assert "Traceback" not in errors
    assert "front page: " in errors and "timed out" in errors  # (the log is told, not the visitor)


def test_the_pasted_server_serves():
    (command,) = re.findall(r"^    (python -m tornado_memcache server .*)$", TEXT, re.MULTILINE)
    port = str(free_port())
    line = command.replace("11299", port).replace("python", sys.executable, 1).split()
    process = subprocess.Popen(
        line, env={**os.environ, "PYTHONPATH": str(ROOT)}, stderr=subprocess.PIPE, text=True
    )
    try:
        assert process.stderr.readline().endswith(f"listening on 127.0.0.1:{port}\n")
        with socket.create_connection(("127.0.0.1", int(port)), timeout=10) as peer:
            peer.sendall(b"version\r\n")
            assert peer.recv(100).startswith(b"VERSION ")
    finally:
        process.terminate()
        errors = process.communicate(timeout=30)[1]
    assert process.returncode == 0 and "Traceback" not in errors


def test_the_pasted_proxy_asks_the_memcached_behind_it(start_memcached):
    (command,) = re.findall(r"^    (python -m tornado_memcache proxy .*)$", TEXT, re.MULTILINE)
    memcached, port = start_memcached(), str(free_port())
    line = command.replace("11311", port).replace("127.0.0.1:11211", memcached.address).split()
    process = subprocess.Popen(
        [sys.executable, *line[1:]],
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        stderr=subprocess.PIPE,
        text=True,
    )
    try:
        assert process.stderr.readline().endswith(f"listening on 127.0.0.1:{port}\n")
        with socket.create_connection(("127.0.0.1", int(port)), timeout=10) as peer:
            peer.sendall(b"set a 0 0 1\r\n1\r\n")
            assert peer.recv(100) == b"STORED\r\n"
    finally:
        process.terminate()
        errors = process.communicate(timeout=30)[1]
    assert process.returncode == 0 and "Traceback" not in errors
    assert b"\r\n1\r\n" in memcached.ask(b"get a\r\n", b"END\r\n")


def test_the_pasted_test_of_ones_own_runs(tmp_path):
    (tmp_path / "app.py").write_text("\n".join(line[4:] for line in BLOCKS[2].splitlines()))
    ran = subprocess.run(
        [sys.executable, "-W", "error", "app.py"],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert (ran.stdout, ran.stderr) == ("computed\nNone\n", "")


def test_there_are_three_blocks_and_both_commands_come_first():
    assert len(BLOCKS) == 3
    assert TEXT.index("./run demo ") < TEXT.index("./run test ") < TEXT.index(".. code-block::")


def test_the_options_are_told_with_their_defaults():
    options = re.findall(r"^``(\w+)=(.+?)``  ", TEXT, re.MULTILINE)
    assert len(options) == 8
    there = inspect.signature(Client).parameters
    told = {name: ast.literal_eval(default) for name, default in options}
    assert told == {name: there[name].default for name in told}
