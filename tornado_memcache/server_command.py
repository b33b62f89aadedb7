"""``python -m tornado_memcache server``: an `.EmbeddedServer` in a process of its own.

Knows the flags and what they are called in `.EmbeddedServer`. It must not
know how anything is served.
"""

import argparse
import asyncio
import logging

from .foreground import checked_host, in_foreground
from .server import EmbeddedServer

logger = logging.getLogger("tornado_memcache.server")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the flags to ``parser``."""
    parser.add_argument("--port", type=int, default=11211, help="0 takes a free one (11211)")
    parser.add_argument("--host", default="127.0.0.1", help="the address to listen on (127.0.0.1)")
    parser.add_argument(
        "--allow-public", action="store_true", help="listen where other machines can reach it"
    )


def run(arguments: argparse.Namespace) -> int:
    """Serves until SIGTERM or SIGINT. Returns the exit status."""
    host = checked_host("--host", arguments.host, arguments.allow_public)
    server = EmbeddedServer(arguments.port, host)

    async def serve(told: asyncio.Event) -> None:
        async with server:
            logger.info("listening on %s", server.address)
            await told.wait()
        logger.info("ended")

    return in_foreground(serve)
