"""tornado_memcache.foreground: where may be listened, and how a server in the foreground ends."""

import asyncio
import logging
import os
import signal

import pytest

from tornado_memcache.errors import InvalidRequest
from tornado_memcache.foreground import checked_host, in_foreground


@pytest.mark.parametrize(
    "host, address",
    [("127.0.0.1", "127.0.0.1"), ("127.9.9.9", "127.9.9.9"), ("localhost", "127.0.0.1"),
     ("::1", "::1")],
)  # fmt: skip
def test_this_machine_alone_needs_no_leave(host, address):
    assert checked_host("--host", host, False) == address


@pytest.mark.parametrize("host", ["0.0.0.0", "::", "10.1.2.3", "192.0.2.1", "2001:db8::1"])
def test_an_address_that_others_reach_needs_leave(host):
    with pytest.raises(InvalidRequest, match=f"--host '{host}' can be reached.*--allow-public"):
        checked_host("--host", host, False)
    assert checked_host("--host", host, True) == host


@pytest.mark.parametrize("host", ["", "a name", "1.2.3", "127.0.0.1:80", "example.com"])
def test_what_is_no_address_is_refused(host):
    with pytest.raises(InvalidRequest, match="no IP address"):
        checked_host("--host", host, True)


@pytest.fixture
def log_as_it_was():
    root = logging.getLogger()
    level, handlers = root.level, root.handlers[:]
    yield
    root.setLevel(level)
    root.handlers[:] = handlers


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_tells_it_to_end(number, log_as_it_was):
    before = signal.getsignal(number)
    ended = []

    async def serve(told):
        os.kill(os.getpid(), number)
        await asyncio.wait_for(told.wait(), 10)
        ended.append(number)

    assert in_foreground(serve) == 0
    assert ended == [number]
    assert signal.getsignal(number) is before


def test_what_serving_raises_comes_out(log_as_it_was):
    async def serve(told):
        raise OSError("the address is taken")

    with pytest.raises(OSError, match="is taken"):
        in_foreground(serve)
