"""``python -m tornado_memcache proxy``: a `.ProxyServer`, in one process or in several.

Knows signals, and who binds the address. It must not know what a setting is
called or does.
"""

import argparse
import asyncio
import gc
import logging
import signal
import socket
from collections.abc import Callable

from .door import SocketFile
from .errors import InvalidRequest
from .foreground import in_foreground, log_to_stderr
from .proxy_config import Config, add_arguments, from_arguments, in_flags
from .proxy_server import ProxyServer, family_of, listening_socket, named
from .workers import Workers

__all__ = ["add_arguments", "run"]

logger = logging.getLogger("tornado_memcache.proxy")


def run(arguments: argparse.Namespace) -> int:
    """Serves until SIGTERM or SIGINT, and then drains. Returns the exit status.

    SIGHUP has the file of ``--config`` read anew: if it is wrong, one line
    says so, and everything stays.
    """
    config = from_arguments(arguments)

    def again() -> Config:
        if not arguments.config:
            raise InvalidRequest("there is no file: the proxy was started with flags")
        return from_arguments(arguments)

    log_to_stderr()
    for handler in logging.getLogger().handlers:
        handler.addFilter(_told_in_flags)
    if config.proxy["processes"] == 1:
        return in_foreground(lambda told: _serve(ProxyServer(config), again, told))
    return _run_several(config, again)


def _told_in_flags(record: logging.LogRecord) -> bool:
    """Has a line of the log advise settings of the proxy, and not arguments of a client."""
    record.msg, record.args = in_flags(record.getMessage()), ()
    return True


def _run_several(config: Config, again: Callable[[], Config]) -> int:
    # Bound here before any other is begun: it is to be had, and port 0 is one port for all.
    with _bound(config) as bound:
        file = SocketFile(bound) if isinstance(config.listen, str) else None
        if not isinstance(config.listen, str):
            config.proxy["listen"] = config.listen[0], bound.getsockname()[1]
        current = config

        def work(index: int) -> int:
            listening = bound
            if not isinstance(config.listen, str):
                listening = listening_socket(config, shared=True)
                bound.close()
            server = ProxyServer(current, listening, index=index)
            return in_foreground(lambda told: _serve(server, again, told, workers.gone))

        def anew() -> None:
            nonlocal current
            try:
                current = config.replaced_by(again())
            except InvalidRequest:
                pass  # (each process says so)

        workers = Workers(config.proxy["processes"], work, anew)
        try:
            return workers.run()
        finally:
            if file is not None:
                file.unlink()


def _bound(config: Config) -> socket.socket:
    """Returns what all processes share: a unix socket that listens, or a port that is taken."""
    if isinstance(config.listen, str):
        return listening_socket(config)
    bound = socket.socket(family_of(config.listen))
    try:
        # Not listening: the system would bring clients to a socket that nobody accepts from.
        bound.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        bound.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        with named(config.listen):
            bound.bind(config.listen)
    except BaseException:
        bound.close()
        raise
    return bound


async def _serve(
    server: ProxyServer, again: Callable[[], Config], told: asyncio.Event, gone: int | None = None
) -> None:
    loop = asyncio.get_running_loop()

    def reload() -> None:
        try:
            server.reload(again())
        except InvalidRequest as error:
            logger.error("the configuration stays as it was: %s", error)
        else:
            logger.info("the configuration was read anew")

    server.start()
    # What is made from now on hardly ever stands in a cycle: it is looked for ten times as rarely.
    gc.freeze()
    gc.set_threshold(10_000, 50, 50)
    loop.add_signal_handler(signal.SIGHUP, reload)
    if gone is not None:
        loop.add_reader(gone, told.set)
    try:
        logger.info("listening on %s", server.address)
        await told.wait()
        if gone is not None:
            loop.remove_reader(gone)
        in_time = await server.drain()
        logger.info("ended" if in_time else "ended: what was left was not waited for any longer")
    finally:
        loop.remove_signal_handler(signal.SIGHUP)
        await server.close()
