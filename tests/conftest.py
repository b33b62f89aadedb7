"""The fixtures of all tests: real servers, and the ledger kept after every test.

``ledger`` asserts the invariants after each test, used by it or not.
``expect_log(logger, regex, level=, times=)`` declares log records,
``memcached`` is a shared real server (running and empty at the start of each
test), ``start_memcached(...)`` starts more, ``silent`` is a listening socket
that never answers.
"""

from __future__ import annotations

import asyncio
import gc
from collections.abc import Callable, Generator, Iterator
from typing import Any

import pytest

from .ledger import LOOPS, Ledger
from .memcacheds import Memcached, find_binary
from .silent import Silent

_SHARED = pytest.StashKey[list[Memcached]]()
_FAILED = pytest.StashKey[bool]()


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item) -> Generator[None, Any, Any]:
    report = yield
    if report.when in ("setup", "call") and report.failed:
        item.stash[_FAILED] = True
    return report


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--loop", choices=["asyncio", "uvloop"], default="asyncio", help="the event loop under all"
    )


def pytest_configure(config: pytest.Config) -> None:
    if config.getoption("--loop") == "uvloop":
        from .uvloops import OpenLoop, Policy

        asyncio.set_event_loop_policy(Policy())
        LOOPS.append(OpenLoop)


def pytest_sessionstart(session: pytest.Session) -> None:
    # Otherwise making an IOLoop current makes an asyncio loop that nobody closes.
    asyncio.set_event_loop(None)


def pytest_collection_finish(session: pytest.Session) -> None:
    # What is there before the first test is not looked at again by the
    # ledger's collections: they take 1 ms instead of 30.
    gc.collect()
    gc.freeze()


@pytest.fixture(autouse=True)
def ledger(request: pytest.FixtureRequest) -> Iterator[Ledger]:
    """The `Ledger` of this test. What it finds at the end fails the test.

    It is set up before all other fixtures of a test but ``io_loop``, so
    that it looks after they have cleaned up and before the loop is closed.
    """
    loop: Any = None
    if "io_loop" in request.fixturenames or request.node.get_closest_marker("gen_test"):
        loop = request.getfixturevalue("io_loop").asyncio_loop
    for server in request.session.stash.get(_SHARED, []):
        server.flush()
    ledger = Ledger()
    ledger.open(loop)
    yield ledger
    findings = ledger.settle()
    if findings:
        text = "left behind by this test:\n" + "\n".join(
            f"  {kind}: {what}" for kind, what in findings
        )
        if request.node.stash.get(_FAILED, False):
            # A test that failed half way leaves things; its own failure is the news.
            request.node.add_report_section("teardown", "ledger", text)
        else:
            pytest.fail(text, pytrace=False)


@pytest.fixture
def expect_log(ledger: Ledger) -> Callable[..., Any]:
    """Declares log records: ``expect_log(logger_name, regex, level=WARNING, times=None)``.

    ``times`` is a number, a range, or None for at least once. Returns an
    `Expectation`, whose ``records`` and ``count`` tell what came.
    """
    return ledger.expect


@pytest.fixture
def troubles(expect_log: Callable[..., Any]) -> None:
    """Lets the log tell of deaths and failures, in tests that are not about the log."""
    expect_log("tornado_memcache", "taken for dead|fails:|answers again", times=range(1000))


@pytest.fixture(scope="session")
def memcached_binary() -> str:
    """The path of the real memcached."""
    binary = find_binary()
    if binary is None:
        pytest.fail("no memcached on PATH: apt-get install memcached", pytrace=False)
    return binary


@pytest.fixture(scope="session")
def memcached(request: pytest.FixtureRequest, memcached_binary: str) -> Iterator[Memcached]:
    """A real memcached for all tests. It runs and is empty when a test begins."""
    server = Memcached(binary=memcached_binary)
    request.session.stash[_SHARED] = [server]
    yield server
    request.session.stash[_SHARED] = []
    server.close()


@pytest.fixture
def start_memcached(memcached_binary: str) -> Iterator[Callable[..., Memcached]]:
    """Starts memcacheds: ``start_memcached(arguments=(), unix=False, port=None)``.

    They are ended with the test. See `Memcached`.
    """
    started: list[Memcached] = []

    def start(arguments: Any = (), **options: Any) -> Memcached:
        started.append(Memcached(arguments, binary=memcached_binary, **options))
        return started[-1]

    yield start
    for server in started:
        server.close()


@pytest.fixture
def silent() -> Iterator[Silent]:
    """A `Silent`: bad input must put no bytes on its wire."""
    silent = Silent()
    yield silent
    silent.close()
