"""Every code block of docs/namespaces.rst is run, against a real memcached."""

from __future__ import annotations

import asyncio
import re
import textwrap
from pathlib import Path
from typing import Any

import pytest

from tornado_memcache import Client

TEXT = (Path(__file__).resolve().parent.parent / "docs" / "namespaces.rst").read_text()
BLOCKS = re.findall(r"\.\. code-block:: python\n\n((?:    .*\n|\n)+)", TEXT)


def names_of(number: int, **given: Any) -> dict[str, Any]:
    """Runs a block with what its reader has; returns what it defines."""
    exec(textwrap.dedent(BLOCKS[number]), given)
    return given


def test_there_are_three_blocks():
    assert len(BLOCKS) == 3


@pytest.mark.gen_test
async def test_what_has_changed_is_read_anew(memcached):
    read = []

    async def read_from_database(user: int) -> str:
        read.append(user)
        return f"profile {len(read)} of {user}"

    names = names_of(0, read_from_database=read_from_database)
    async with Client([memcached.address]) as mc:
        assert [await names["profile"](mc, 42) for _ in range(3)] == ["profile 1 of 42"] * 3
        await names["changed"](mc, 42)
        assert await names["profile"](mc, 42) == "profile 2 of 42"
        assert read == [42, 42]


@pytest.mark.gen_test
async def test_what_is_evicted_is_logged(start_memcached):
    server = start_memcached(["-m", "2"])
    told: list[str] = []
    logged = asyncio.Event()

    def log(line: str) -> None:
        told.append(line)
        logged.set()

    async with Client([server.address]) as mc:
        task = asyncio.ensure_future(names_of(1, log=log)["what_is_evicted"](mc))
        for number in range(100_000):
            await mc.set(f"k{number}", b"x" * 100_000)
            if logged.is_set():
                break
        task.cancel()
        await asyncio.wait({task})
    assert told[0].startswith(f"{server.address}: eviction b'k")


@pytest.mark.gen_test
async def test_what_is_held_is_counted(memcached):
    names = names_of(2)
    async with Client([memcached.address]) as mc:
        await mc.set_multi({"page:1": b"x" * 500, "page:2": b"x" * 500, "user:1": b"x"})
        taken = await names["bytes_by_kind"](mc)
        assert set(taken) <= {b"page", b"user"} and taken[b"page"] > 500
