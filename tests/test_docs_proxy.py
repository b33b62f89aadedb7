"""docs/proxy.rst does what it says: its command, its file and its program are run."""

from __future__ import annotations

import os
import re
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tornado_memcache.guest import UNDER_WAY
from tornado_memcache.proxy import REFUSED, REFUSED_STATS
from tornado_memcache.proxy_config import OF_PROXY

from .memcacheds import Memcached, free_port

ROOT = Path(__file__).resolve().parent.parent
TEXT = (ROOT / "docs" / "proxy.rst").read_text()
PORTS = {"11211", "11212", "11213", "11214"}


def block(kind: str) -> str:
    (found,) = re.findall(rf"\.\. code-block:: {kind}\n\n((?:    .*\n|\n)+)", TEXT)
    return "\n".join(line[4:] for line in found.splitlines()) + "\n"


def placed(text: str, servers: dict[str, Memcached], listen: int) -> str:
    """Returns ``text`` with the ports of real servers, and one for the proxy that is free."""
    for port, server in servers.items():
        text = text.replace(port, str(server.port))
    return text.replace("11311", str(listen)).replace("11312", str(free_port()))


@pytest.fixture
def servers(start_memcached: Any) -> dict[str, Memcached]:
    return {port: start_memcached() for port in sorted(PORTS)}


def served(line: list[str], port: int, lines: int, folder: Path) -> str:
    """Runs a proxy; returns its log. Stores a key through it."""
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    process = subprocess.Popen(
        line, cwd=folder, env=environment, stderr=subprocess.PIPE, text=True
    )  # fmt: skip
    assert process.stderr is not None
    try:
        log = "".join(process.stderr.readline() for _ in range(lines))
        with socket.create_connection(("127.0.0.1", port), timeout=20) as peer:
            peer.sendall(b"set user:1 0 0 3\r\nAda\r\n")
            assert peer.recv(100) == b"STORED\r\n"
    finally:
        process.terminate()
        log += process.communicate(timeout=30)[1]
    assert process.returncode == 0 and "Traceback" not in log
    return log


def test_the_command(servers: dict[str, Memcached], tmp_path: Path) -> None:
    (command,) = re.findall(r"^    (python -m .*\\\n.*)$", TEXT, re.MULTILINE)
    port = free_port()
    line = placed(command.replace("\\\n", ""), servers, port).split()
    log = served([sys.executable, *line[1:]], port, 1, tmp_path)
    assert f"listening on 127.0.0.1:{port}" in log


def test_the_file(servers: dict[str, Memcached], tmp_path: Path) -> None:
    port = free_port()
    (tmp_path / "proxy.ini").write_text(placed(block("ini"), servers, port))
    line = [sys.executable, "-m", "tornado_memcache", "proxy", "--config", "proxy.ini"]
    log = served(line, port, 4, tmp_path)
    assert log.count(f"listening on 127.0.0.1:{port}") == 2
    assert b"Ada" in servers["11213"].ask(b"get user:1\r\n", b"END\r\n")


def test_the_program(servers: dict[str, Memcached], tmp_path: Path) -> None:
    (tmp_path / "proxy.ini").write_text(placed(block("ini"), servers, free_port()))
    (tmp_path / "app.py").write_text(block("python"))
    ran = subprocess.run(
        [sys.executable, "-W", "error", "app.py"],
        cwd=tmp_path, env={**os.environ, "PYTHONPATH": str(ROOT)}, capture_output=True, text=True,
        timeout=60,
    )  # fmt: skip
    assert (ran.stdout, ran.stderr) == ("Ada\n", "")


def test_the_limits_are_told_with_their_defaults() -> None:
    _, _, section = TEXT.partition("What it bounds\n")
    told = dict(re.findall(r"^``([a-z-]+)``  +(\S+)", section, re.MULTILINE))
    assert told.keys() <= OF_PROXY.keys() | {"max-value-size"} and len(told) == 6
    for name, default in told.items():
        if name != "max-value-size":
            there = OF_PROXY[name].default
            shown = "none" if there is None else "16" if there == 16 * 2**20 else f"{there:.0f}"
            assert default == shown, name
    assert f"up to {UNDER_WAY} are under way" in TEXT


def test_what_is_refused_is_told() -> None:
    for name in REFUSED | REFUSED_STATS:
        assert name.decode() in TEXT
