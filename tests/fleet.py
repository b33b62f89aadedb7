"""One process of a fleet that wants values: ``python -m tests.fleet SERVER``.

Says ``ready`` on its standard output, reads one JSON order a line from its
input, and answers each with one line. An order names a key, how many callers
want it at once, and where its process kills itself, if it is to (`POINTS`);
with ``naive`` they get and set, as without get_or_set. It knows the public
client alone. `Worker` is its parent's side.
"""

from __future__ import annotations

import asyncio
import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

from tornado_memcache import Client, Plain

ROOT = Path(__file__).resolve().parent.parent
#: Where a process may end: when it has asked, when it has won, in the midst of it, when it has a
#: value and has not sent it, when it has sent it.
POINTS = ("asked", "won", "computing", "made", "stored")


def die() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


class Fatal(Plain):
    """A serializer that ends the process when a value is there."""

    def encode(self, key: bytes, value: Any) -> tuple[bytes, int]:
        die()
        return super().encode(key, value)


async def carry_out(mc: Client, order: dict[str, Any]) -> list[Any]:
    key, point = order["key"], order.get("die")

    async def make() -> str:
        with open(order["log"], "a") as log:  # (one line is written at once)
            log.write(f"{os.getpid()}\n")
        if point == "won":
            die()
        await asyncio.sleep(order.get("takes", 0.0))
        if point == "computing":
            die()
        return f"{key} by {os.getpid()}"

    async def naive() -> Any:
        value = await mc.get(key)
        if value is None:
            await mc.set(key, value := await make(), 1000)
        return value

    how, callers = order.get("how", {}), range(order.get("callers", 1))
    if order.get("naive"):
        calls = [asyncio.ensure_future(naive()) for _ in callers]
    else:
        calls = [mc.get_or_set(key, make, 1000, **how) for _ in callers]
    if point == "asked":
        die()
    values = await asyncio.gather(*calls)
    if point == "stored":
        die()
    return values


async def serve(server: str) -> None:
    async with Client([server]) as mc, Client([server], serializer=Fatal()) as fatal:
        await mc.get("warm")
        await fatal.meta_get("warm")
        print("ready", flush=True)
        loop = asyncio.get_running_loop()
        while line := await loop.run_in_executor(None, sys.stdin.readline):
            order = json.loads(line)
            values = await carry_out(fatal if order.get("die") == "made" else mc, order)
            print(json.dumps(values), flush=True)


class Worker:
    """Such a process."""

    def __init__(self, server: str) -> None:
        self.process = subprocess.Popen(
            [sys.executable, "-W", "error", "-m", "tests.fleet", server],
            cwd=ROOT,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )

    def line(self) -> str:
        """Returns its next line, empty if it has ended."""
        assert self.process.stdout is not None
        return self.process.stdout.readline()

    def order(self, **order: Any) -> None:
        assert self.process.stdin is not None
        self.process.stdin.write(json.dumps(order) + "\n")
        self.process.stdin.flush()

    def close(self) -> None:
        with self.process:
            self.process.kill()


if __name__ == "__main__":
    asyncio.run(serve(sys.argv[1]))
