"""docs/migrating.rst does what it says, and so do the two example handlers."""

from __future__ import annotations

import ast
import inspect
import re
from pathlib import Path
from typing import Any

import pytest

from tornado_memcache import Client, memcache

from .memcacheds import free_port
from .test_examples import running

ROOT = Path(__file__).resolve().parent.parent
TEXT = (ROOT / "docs" / "migrating.rst").read_text(encoding="utf-8")
BLOCKS = [
    "\n".join(line[4:] for line in block.splitlines())
    for block in re.findall(r"\.\. code-block:: python\n\n((?:    .*\n|\n)+)", TEXT)
]
EXAMPLES = [ROOT / "examples" / f"{name}_handler.py" for name in ("blocking", "migrated")]


IMPORTS = ("import memcache", "from tornado_memcache import memcache")


def lines(text: str) -> list[str]:
    """Returns the lines of a program, without empty ones and the import that changes."""
    return [line for line in text.splitlines() if line.strip() and line not in IMPORTS]


def assert_only_awaits(before: str, after: str, least: int) -> None:
    """The two differ in the import, in ``await`` and in ``async def``."""
    assert IMPORTS[0] in before.splitlines() and IMPORTS[1] in after.splitlines()
    pairs = list(zip(lines(before), lines(after), strict=True))
    differ = [pair for pair in pairs if pair[0] != pair[1]]
    assert len(differ) >= least
    for old, new in differ:
        assert new.replace("await ", "").replace("async def", "def") == old


def test_the_examples_differ_in_the_import_and_the_awaits_only():
    before, after = (path.read_text() for path in EXAMPLES)
    assert_only_awaits(before, after, 8)
    assert all(len(text.splitlines()) < 60 for text in (before, after))


def test_so_do_the_first_two_blocks():
    assert_only_awaits(BLOCKS[0], BLOCKS[1], 3)


@pytest.mark.parametrize("name", ["blocking_handler", "migrated_handler"])
def test_the_example_serves(name, start_memcached):
    server = start_memcached()
    with running(name, MEMCACHED_SERVERS=server.address) as example:
        assert example.get("/tea") == (200, "All about tea (views: 1)\n")
        assert example.get("/tea") == (200, "All about tea (views: 2)\n")
        line = server.ask(b"get article:tea\r\n", b"END\r\n").split(b"\r\n")[0]
        assert line.startswith(b"VALUE article:tea 1 ")  # a pickle, as it was
    # What the one has stored the other reads.
    other = {"blocking_handler": "migrated_handler"}.get(name, "blocking_handler")
    server.ask(b"delete views:tea\r\n")
    before = server.stats()["cmd_set"]
    with running(other, MEMCACHED_SERVERS=server.address) as example:
        assert example.get("/tea") == (200, "All about tea (views: 1)\n")
        assert int(server.stats()["cmd_set"]) == int(before) + 1  # views alone


def test_the_migrated_one_serves_without_a_cache():
    with running("migrated_handler", MEMCACHED_SERVERS=f"127.0.0.1:{free_port()}") as example:
        assert example.get("/tea") == (200, "All about tea (views: None)\n")


@pytest.mark.filterwarnings("ignore:unclosed <socket:ResourceWarning")
@pytest.mark.parametrize("number", range(len(BLOCKS)))
@pytest.mark.gen_test
async def test_a_block_runs(number, memcached, expect_log):
    source = BLOCKS[number].replace("127.0.0.1:11211", memcached.address)
    if "no_pickle" in source:
        expect_log("tornado_memcache", "pickles are refused", times=1)
    code = compile(source, f"block {number}", "exec", ast.PyCF_ALLOW_TOP_LEVEL_AWAIT)
    names: dict[str, Any] = {"__name__": "block"}
    running = eval(code, names)
    if inspect.iscoroutine(running):
        await running
    for name in ("mc", "ccs"):
        if hasattr(names.get(name), "close"):
            names[name].close()


def test_every_name_in_the_tables_is_there():
    methods = {name for name in dir(Client) if not name.startswith("_")}
    settings = set(inspect.signature(Client.__init__).parameters)
    rows = re.findall(r"^(?:``|the same|  +``).*?  +(``.*)$", TEXT, re.M)
    assert len(rows) > 50
    for row in rows:
        for quoted in re.findall(r"``(.+?)``", row):
            quoted = quoted.removeprefix("await ")
            if setting := re.match(r"(\w+)=", quoted):
                assert setting[1] in settings, row
            elif (name := re.match(r"[a-z_]+", quoted)) and "tornado" not in quoted:
                if quoted not in ("encode", "decode") and "self." not in quoted:
                    assert name[0] in methods, row


def test_what_is_not_awaited_is_listed():
    text = TEXT.partition("without ``await``:")[2].partition(". A forgotten")[0]
    listed = set(re.findall(r"``(\w+)``", text))
    client = memcache.Client(["a"])
    assert listed == {
        name
        for name in dir(memcache.Client)
        if inspect.isfunction(member := getattr(memcache.Client, name))
        and not name.startswith("_")
        and inspect.signature(member).return_annotation is None
        and name != "close"
    }
    client.close()
