"""A word of the command line that serves: in the foreground, until a signal ends it.

Knows log lines on stderr, SIGTERM and SIGINT, and which addresses only this
machine reaches. It must not know what is served, or which flags there are.
"""

import asyncio
import contextlib
import ipaddress
import logging
import signal
from collections.abc import AsyncIterator, Awaitable, Callable

from .errors import InvalidRequest, shown

#: What ends a server, in good order.
ENDING = (signal.SIGTERM, signal.SIGINT)


def checked_host(
    flag: str, host: str, allow_public: bool, otherwise: str = "say --allow-public"
) -> str:
    """Returns ``host``, an address to listen on, if it may be listened on.

    ``flag`` is where it came from, for the message. "localhost" is
    127.0.0.1. An address that others than this machine can reach needs
    ``allow_public``; where it is not given, the message says ``otherwise``.
    Raises `.InvalidRequest`.
    """
    try:
        address = ipaddress.ip_address("127.0.0.1" if host == "localhost" else host)
    except ValueError:
        raise InvalidRequest(f"{flag} {shown(host)} is no IP address of this machine") from None
    if not (address.is_loopback or allow_public):
        raise InvalidRequest(
            f"{flag} {shown(host)} can be reached from other machines: {otherwise}"
        )
    return str(address)


@contextlib.asynccontextmanager
async def until_told() -> AsyncIterator[asyncio.Event]:
    """Gives an event that SIGTERM or SIGINT sets, while the body runs."""
    told, loop = asyncio.Event(), asyncio.get_running_loop()
    for number in ENDING:
        loop.add_signal_handler(number, told.set)
    try:
        yield told
    finally:
        for number in ENDING:
            loop.remove_signal_handler(number)


def log_to_stderr() -> None:
    """Has log lines from INFO on go to stderr, unless they go somewhere already."""
    logging.basicConfig(format="%(asctime)s %(levelname)s %(message)s", level=logging.INFO)


def in_foreground(serve: Callable[[asyncio.Event], Awaitable[None]]) -> int:
    """Runs ``serve(told)`` on a loop of its own until it returns; returns the exit status 0.

    ``told`` is set by SIGTERM and SIGINT; ``serve`` waits for it, and then
    ends what it began. The log goes to stderr, from INFO on. What
    ``serve`` raises comes out.
    """
    log_to_stderr()

    async def served() -> None:
        async with until_told() as told:
            await serve(told)

    asyncio.run(served())
    return 0
