"""Proxies of this package in front of real memcacheds, and clients on plain sockets.

Knows the flags of the proxy as a user writes them. `proxied` gives one in
this process, `asked` what it answers until it closes.
"""

import argparse
import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from tornado_memcache.proxy_config import Config, add_arguments, from_arguments
from tornado_memcache.proxy_server import ProxyServer


def config_of(*flags: str) -> Config:
    """Returns what ``flags`` ask for; a free port unless they say --listen."""
    parser = argparse.ArgumentParser()
    add_arguments(parser)
    if not any(flag.startswith(("--listen", "--config")) for flag in flags):
        flags = ("--listen=127.0.0.1:0", *flags)
    return from_arguments(parser.parse_args(flags))


def behind(*servers) -> list[str]:
    """Returns the flags that name ``servers``."""
    return [f"--server={server.address}" for server in servers]


@asynccontextmanager
async def proxied(*flags: str) -> AsyncIterator[ProxyServer]:
    async with ProxyServer(config_of(*flags)) as server:
        yield server


async def connected(server):
    """Returns reader and writer of a new client of a proxy."""
    if server.address.startswith("unix:"):
        return await asyncio.open_unix_connection(server.address[5:])
    host, _, port = server.address.rpartition(":")
    return await asyncio.open_connection(host, int(port))


async def asked(server, data: bytes, seconds: float = 20) -> bytes:
    """Returns all that is answered to ``data`` until the connection is closed."""
    reader, writer = await connected(server)
    try:
        writer.write(data)
        writer.write_eof()
        return await asyncio.wait_for(reader.read(), seconds)
    finally:
        writer.close()
        try:
            await writer.wait_closed()
        except OSError:
            pass
