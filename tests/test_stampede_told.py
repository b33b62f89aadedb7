"""docs/stampede.rst: its application is run, its plot is one, and its figures are the code's."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import time
import urllib.request
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from xml.etree import ElementTree

import pytest

from benchmarks import stampede
from tornado_memcache.stampede import LOCK_TIMEOUT

from .memcacheds import free_port
from .test_readme import fetch

ROOT = Path(__file__).resolve().parent.parent
TEXT = (ROOT / "docs" / "stampede.rst").read_text()
BLOCKS = re.findall(r"\.\. code-block:: python\n\n((?:    .*\n|\n)+)", TEXT)


@pytest.fixture
def application(memcached, tmp_path):
    """The pasted application, with pages that count; gives its port."""
    (block,) = BLOCKS
    port = free_port()
    source = "\n".join(line[4:] for line in block.splitlines())
    for old, new in {
        "127.0.0.1:11211": memcached.address,
        "8888": str(port),
        "asyncio.sleep(1)": "asyncio.sleep(0.2)",
        'f"article {number}\\n"': 'f"article {number}, {next(made)}\\n"',
        "import asyncio\n": "import asyncio\nimport itertools\nmade = itertools.count(1)\n",
    }.items():
        assert old in source
        source = source.replace(old, new)
    (tmp_path / "app.py").write_text(source + "\n")
    process = subprocess.Popen(
        [sys.executable, "-W", "error", "app.py"],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        stderr=subprocess.PIPE,
    )
    yield port
    process.terminate()
    assert "Traceback" not in process.communicate()[1].decode()


def test_the_application_computes_once_and_anew_when_it_is_told(application):
    assert fetch(application) == (200, "the front page\n")

    def article(method: str = "GET") -> str:
        asked = urllib.request.Request(
            f"http://127.0.0.1:{application}/articles/7", method=method, data=None
        )
        with urllib.request.urlopen(asked, timeout=30) as page:
            return str(page.read().decode())

    with ThreadPoolExecutor(20) as visitors:
        assert set(visitors.map(lambda _: article(), range(20))) == {"article 7, 1\n"}
    assert article("PUT") == ""
    end = time.monotonic() + 30
    with ThreadPoolExecutor(5) as visitors:
        while (pages := set(visitors.map(lambda _: article(), range(5)))) != {"article 7, 2\n"}:
            assert pages <= {"article 7, 1\n", "article 7, 2\n"} and time.monotonic() < end


def test_the_plot_is_one_and_is_made_of_what_is_measured():
    assert ".. image:: stampede.svg\n   :alt: " in TEXT
    assert ElementTree.parse(stampede.PLOT).getroot().tag.endswith("svg")
    found = {name: [0.001, 0.002] for name in ("before", "meanwhile", "plain")}
    made = stampede.plot({"get and set": 200, "get_or_set": 1}, found)
    shown = {element.text for element in ElementTree.fromstring(made).iter() if element.text}
    assert {"200", "1", "2.0", "get_or_set, stale"} <= shown


def test_what_the_text_says_of_the_code_is_so():
    assert f"({LOCK_TIMEOUT:.0f} unless set)" in TEXT
    words = " ".join(TEXT.split())
    assert f"{stampede.PROCESSES * stampede.CALLERS} callers in {stampede.PROCESSES}" in words
