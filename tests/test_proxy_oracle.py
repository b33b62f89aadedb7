"""The oracle's corpus through a proxy to one memcached, beside the machine's memcached.

Every stream of whole requests is answered byte for byte alike, but for what
the proxy is meant to refuse: what `Client` refuses is ``CLIENT_ERROR``, and
what `KEPT` lists.
"""

from __future__ import annotations

import asyncio
import contextlib
import re
import threading
from collections.abc import Iterator
from typing import Any

import pytest

from .memcacheds import Memcached
from .oracle import Stream, asking, compare, corpus
from .proxied import behind, config_of

#: What differs, and is meant to, by how the name of a stream goes on behind its number.
KEPT = (
    "cache_memlimit",  # ... belongs to one server: ERROR
    "stats detail",  # likewise, as a CLIENT_ERROR
    "stats cachedump",
    "stats sizes_",
    # An ma that makes its item answers in quiet mode too: the proxy cannot know that it did.
    "ma z N30 q",
    "quiet to the end",
    # A large value has a connection to itself: reads behind it may overtake one another.
    "ms a 1048517",
    "ms a 1048516",
    "ms z 1048517",
)


@contextlib.contextmanager
def proxy_to(memcached: Memcached) -> Iterator[str]:
    """Runs a proxy on a loop of its own; gives its address."""
    from tornado_memcache.proxy_server import ProxyServer

    started, address = threading.Event(), []

    async def serve() -> None:
        async with ProxyServer(config_of("--allow-all-commands", *behind(memcached))) as server:
            address.append(server.address)
            loop, ending = asyncio.get_running_loop(), asyncio.Event()
            end.append(lambda: loop.call_soon_threadsafe(ending.set))
            started.set()
            await ending.wait()

    end: list[Any] = []
    thread = threading.Thread(target=asyncio.run, args=(serve(),))
    thread.start()
    try:
        assert started.wait(20)
        yield address[0]
    finally:
        end[0]()
        thread.join()


def is_kept(stream: Stream) -> bool:
    name = stream.name.rpartition(": ")[2]
    return name.startswith(KEPT)


def without_padding(replies: bytes) -> bytes:
    """Returns ``replies`` with numbers as they are, where memcached may have padded them.

    It does so to one that became shorter, unless the item is just being sent: that hangs on when
    the requests of a pipeline come, and a proxy sends them on one by one.
    """
    return _NUMBER.sub(rb"VALUE \1 \2\r\n", replies)


_NUMBER = re.compile(rb"VALUE (\S+ \d+) \d+\r\n(\d+) *(?=\r\n)")


def test_the_proxy_answers_as_memcached_does(memcached: Memcached, start_memcached: Any) -> None:
    alike, refused, wrong = 0, 0, []
    with proxy_to(start_memcached()) as address:
        for stream in corpus():
            if stream.alone or is_kept(stream):
                continue
            theirs, ours = compare(stream.data, asking(memcached.address), asking(address))
            if theirs == ours or without_padding(theirs) == without_padding(ours):
                alike += 1
            elif ours.count(b"CLIENT_ERROR") > theirs.count(b"CLIENT_ERROR"):
                refused += 1
            else:
                wrong.append((stream.name, theirs, ours))
    assert not wrong, wrong[0]
    assert alike > 600 and refused < 60, (alike, refused)


@pytest.mark.parametrize("name", ["flush_all", "stats"])
def test_so_it_does_on_a_server_that_nothing_was_asked_before(
    name: str, start_memcached: Any
) -> None:
    (stream,) = [one for one in corpus() if one.name == name]
    one = start_memcached()
    with proxy_to(start_memcached()) as address:
        theirs, ours = compare(stream.data, asking(one.address), asking(address))
    assert theirs == ours
