"""Every code block of docs/deployment.rst that one might paste is run: applications as files."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import textwrap
import time
from pathlib import Path

import pytest

from tornado_memcache import Client

from .memcacheds import free_port
from .test_readme import fetch

ROOT = Path(__file__).resolve().parent.parent
TEXT = (ROOT / "docs" / "deployment.rst").read_text()
BLOCKS = re.findall(r"\.\. code-block:: python\n\n((?:    .*\n|\n)+)", TEXT)
#: What the reader would put into each block, by a word that only it has.
PASTED = {
    "discover": "my.cfg.use1.cache.amazonaws.com:11211",
    "migrate_from": '["old1:11211", "old2:11211"]',
}


def block_with(word: str) -> str:
    (found,) = [block for block in BLOCKS if word in block]
    return "\n".join(line[4:] for line in found.splitlines()) + "\n"


@pytest.fixture
def run(tmp_path):
    """Runs a block with ``replaced`` put in; it is ended with the test and leaves no traceback."""
    processes = []

    def start(word, replaced):
        source = block_with(word)
        for old, new in replaced.items():
            assert old in source
            source = source.replace(old, new)
        (tmp_path / f"{word}.py").write_text(source)
        processes.append(
            subprocess.Popen(
                [sys.executable, "-W", "error", f"{word}.py"],
                cwd=tmp_path,
                env={**os.environ, "PYTHONPATH": str(ROOT)},
                stderr=subprocess.PIPE,
            )
        )

    yield start
    for process in processes:
        process.terminate()
        assert "Traceback" not in process.communicate()[1].decode()


def test_an_application_in_a_cloud_finds_its_servers(start_memcached, run):
    node, endpoint, port = start_memcached(), start_memcached(), free_port()
    text = b"1\n%b|127.0.0.1|%d\n" % (node.host.encode(), node.port)
    key = b"AmazonElastiCache:cluster"
    endpoint.ask(b"set %b 0 0 %d\r\n%b\r\n" % (key, len(text), text))
    run("discover", {PASTED["discover"]: endpoint.address, "8888": str(port)})
    assert fetch(port) == (200, "visits: 1\n")
    assert node.ask(b"get visits\r\n", b"END\r\n").endswith(b"\r\n1\r\nEND\r\n")


def test_an_application_that_migrates_serves_what_the_old_cluster_has(start_memcached, run):
    old, new, port = start_memcached(), start_memcached(), free_port()
    old.ask(b"set article 16 0 4\r\nold\n\r\n")
    replaced = {
        PASTED["migrate_from"]: f'["{old.address}"]',
        '["new1:11211", "new2:11211"]': f'["{new.address}"]',
        "8888": str(port),
    }
    run("migrate_from", replaced)
    assert fetch(port) == (200, "old\n")
    until = time.monotonic() + 10
    while not new.ask(b"get article\r\n", b"END\r\n").startswith(b"VALUE"):
        assert time.monotonic() < until, "it was not copied"
        time.sleep(0.01)


APPLICATIONS = [block for block in BLOCKS if "asyncio.run(" in block]
CLIENTS = [block for block in BLOCKS if block not in APPLICATIONS]


def test_every_application_is_run():
    assert len(APPLICATIONS) == len(PASTED)


@pytest.mark.parametrize("number", range(len(CLIENTS)))
def test_a_pasted_client_is_made(number):
    names = {"__name__": "pasted"}
    exec(textwrap.dedent(CLIENTS[number]), names)
    (client,) = [value for value in names.values() if isinstance(value, Client)]
    client.close()
