"""A client that was made, and used, before a fork: it works in each child, and in the parent.

No child touches a stream of the parent's: no FIN, no close-notify, no byte.
Each script runs in a process of its own, since what it does is not for
this one.
"""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from .certificates import authority, issued, memcached_arguments, trusting
from .memcacheds import Memcached

COMMON = """
import asyncio, os, ssl, sys
import tornado.process
from tornado_memcache import Client

address, cafile, username, password = sys.argv[1:]
options = {}
if cafile:
    options["ssl"] = ssl.create_default_context(cafile=cafile)
if username:
    options["username"], options["password"] = username, password
options |= {"connect_timeout": 20, "request_timeout": 20}
client = Client([address], min_connections=2, **options)
KEYS = [f"k{number}" for number in range(20)]


async def own(name):
    for turn in range(5):
        values = {f"{name}-{key}": f"{name} {key} {turn}" for key in KEYS}
        assert await client.set_multi(values) == []
        assert await client.get_multi(values) == values
        for key in KEYS[:3]:
            assert await client.get(f"{name}-{key}") == f"{name} {key} {turn}"


async def warm():
    await own("parent")
    pool = client._pools[0]
    while pool.counts()["idle"] < 2:
        await client.get("k")
        await asyncio.sleep(0.001)
    return pool, list(pool._connections)


async def goes_on(pool, before):
    # On the very connections of before, of which none was lost.
    await own("parent")
    assert client._pools[0] is pool and list(pool._connections) == before
    assert pool.losses == 0 and pool.counts()["pending"] == 0


def in_child(name):
    asyncio.run(own(name))
    assert client._pools[0].counts()["open"] >= 1
"""

#: Tornado's own: the parent never comes back from it, but by SystemExit.
FORK_PROCESSES = """
loop = asyncio.new_event_loop()
pool, before = loop.run_until_complete(warm())
parent = os.getpid()
try:
    number = tornado.process.fork_processes(3, max_restarts=0)
except SystemExit as ended:
    assert not ended.code, ended.code
    loop.run_until_complete(goes_on(pool, before))
    client.close()
    loop.run_until_complete(asyncio.sleep(0))
    loop.close()
else:
    try:
        assert os.getpid() != parent
        in_child(f"child{number}")
        if number == 1:
            client.close()  # whether a child closes it or not is its own affair
    except BaseException:
        import traceback

        traceback.print_exc()
        os._exit(1)
    os._exit(0)
"""

#: A parent that forks while its loop runs, with calls under way, and goes on meanwhile.
PRE_FORKING = """
def fork(name):
    pid = os.fork()
    if pid:
        return pid
    status = 1
    try:
        in_child(name)
        status = 0
    finally:
        os._exit(status)


async def main():
    pool, before = await warm()
    under_way = [client.get("parent-k1"), client.set("parent-k2", "new"), client.get_multi(KEYS)]
    children = [fork(f"child{number}") for number in range(3)]
    outcomes = await asyncio.gather(*under_way)
    assert outcomes == ["parent k1 4", True, {}], outcomes
    while children:
        await goes_on(pool, before)
        pid, status = os.waitpid(children[-1], os.WNOHANG)
        if pid:
            assert status == 0, status
            children.pop()
    await goes_on(pool, before)
    client.close()


asyncio.run(main())
"""

#: A client that was never used, and one whose loop has ended before the fork.
BEFORE_ANY_LOOP = """
if os.fork() == 0:
    in_child("cold")
    client.close()
    os._exit(0)
assert os.wait()[1] == 0
asyncio.run(own("parent"))
if os.fork() == 0:
    in_child("ended")
    os._exit(0)
assert os.wait()[1] == 0
asyncio.run(own("parent"))
client.close()
"""

#: A child that goes on with the parent's loop would hear of the parent's sockets.
PARENTS_LOOP = """
loop = asyncio.new_event_loop()
pool, before = loop.run_until_complete(warm())
if os.fork() == 0:
    async def refused():
        try:
            client.get("k")
        except RuntimeError as error:
            return "needs one of its own" in str(error)

    asyncio.set_event_loop(loop)
    status = 0 if loop.run_until_complete(refused()) else 1
    client.close()
    os._exit(status)
assert os.wait()[1] == 0
loop.run_until_complete(goes_on(pool, before))
client.close()
loop.run_until_complete(asyncio.sleep(0))
loop.close()
"""


#: A child that lets go of a stream of the parent's: the parent still hears of it.
LETS_GO = """
async def main():
    async with client.watch("fetchers") as events:
        if os.fork() == 0:
            try:
                for source in events._sources:
                    source.close()
            finally:
                os._exit(0)
        assert os.wait()[1] == 0
        await client.get("k")
        assert (await anext(events)).key == b"k"
    client.close()


asyncio.run(main())
"""

#: The servers of a managed cluster are asked for in every process, and in each loop of one.
DISCOVERED = """
import asyncio, os, sys
import tornado.process
from tornado_memcache import Client
from tornado_memcache.discovery import OLD_KEY, discover

address = sys.argv[1]
how = {"request_timeout": 20, "connect_timeout": 20}


async def tells(version):
    host, port = address.rsplit(":", 1)
    async with Client([address], **how) as writer:
        await writer.set(OLD_KEY.decode(), f"{version}\\n{host}|{host}|{port}\\n".encode())


async def begins():
    await tells(1)
    return await discover(address, interval=0.05, **how)


async def goes_on(version):
    assert await client.set("k", "v") and await client.get("k") == "v"
    await tells(version)
    for _ in range(2000):
        if client.discovery.version == version:
            return
        await asyncio.sleep(0.01)
    raise AssertionError(repr(client))


loop = asyncio.new_event_loop()
client = loop.run_until_complete(begins())
if asks:  # the fork finds a question on its way
    client.discovery.timer.stop()
    loop.call_soon(client.discovery._begin)
    loop.run_until_complete(asyncio.sleep(0))
    assert client.discovery._asking is not None
try:
    tornado.process.fork_processes(2, max_restarts=0)
except SystemExit as ended:
    assert not ended.code, ended.code
    loop.run_until_complete(goes_on(3))
    client.close()
    loop.run_until_complete(asyncio.sleep(0))
    loop.close()
else:
    try:
        asyncio.run(goes_on(2))
        client.close()
    except BaseException:
        import traceback

        traceback.print_exc()
        os._exit(1)
    os._exit(0)
"""


@pytest.mark.parametrize("asks", [False, True])
def test_a_discovered_client_goes_on_discovering_in_every_process(
    asks: bool, memcached: Memcached
) -> None:
    command = [sys.executable, "-W", "error", "-c", f"asks = {asks}\n{DISCOVERED}"]
    done = subprocess.run([*command, memcached.address], capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "destroyed" not in done.stderr


@pytest.fixture(params=["tcp", "unix", "tls", "tls and a password"])
def server(request: Any, start_memcached: Any, tmp_path: Path) -> tuple[Memcached, list[str]]:
    """A memcached, and what a script needs to know of it."""
    kind, arguments, how = request.param, [], {}
    cafile = username = password = ""
    if "tls" in kind:
        arguments += memcached_arguments(tmp_path, issued("127.0.0.1"))
        how["ssl_context"] = trusting()
        cafile = str(tmp_path / "ca.pem")
        authority().cert_pem.write_to_path(cafile)
    if "password" in kind:
        username, password = "app", "secret"
        (tmp_path / "users").write_text(f"{username}:{password}\n")
        arguments += ["-Y", str(tmp_path / "users")]
        how["login"] = b"app secret"
    server = start_memcached(arguments, unix=kind == "unix", **how)
    return server, [server.address, cafile, username, password]


@pytest.mark.parametrize(
    ("script", "opened"),
    [
        (FORK_PROCESSES, 8),
        (PRE_FORKING, 8),
        (BEFORE_ANY_LOOP, 8),
        (PARENTS_LOOP, 2),
        (LETS_GO, 3),
    ],
    ids=["fork_processes", "pre-forking", "before any loop", "parent's loop", "lets go"],
)
def test_a_client_of_before_the_fork_works_in_every_process(
    script: str, opened: int, server: tuple[Memcached, list[str]]
) -> None:
    memcached, arguments = server
    before = int(memcached.stats()["total_connections"])
    command = [sys.executable, "-W", "error", "-c", COMMON + script, *arguments]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stdout + done.stderr
    # The parent's two were opened once, and each child had its own: not more than two.
    made = int(memcached.stats()["total_connections"]) - before - 1
    assert 2 <= made <= opened
