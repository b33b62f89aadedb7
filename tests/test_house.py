"""The picture of the house, asserted: floors, sizes, exports, tests, and the ledger.

Reads the sources with `ast` and imports the package only for ``__all__``.
"""

from __future__ import annotations

import ast
import asyncio
import contextvars
import functools
import importlib
import inspect
import logging
import os
import re
import socket
import subprocess
import sys
from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
from tornado import web
from tornado.ioloop import IOLoop

from . import uvloops
from .ledger import KINDS, Ledger, our_timers, watched_fds
from .memcacheds import Memcached
from .silent import Silent

ROOT = Path(__file__).resolve().parent.parent
NAME = "tornado_memcache"
PACKAGE = ROOT / NAME

#: A module imports only from floors above its own in this list, which are
#: the floors below it in the house. ``docs/architecture.rst`` draws the same.
FLOORS: tuple[tuple[str, ...], ...] = (
    ("errors",),
    ("arguments", "protocol"),
    ("credentials", "meta"),
    ("address", "settings", "serializer", "text", "outcomes", "words", "items", "prefixes"),
    ("ring", "refusals", "compression", "pickles", "memcache_arguments", "gutter"),
    ("meta_server", "store"),
    ("text_server", "meta_store"),
    ("logins", "store_handler"),
    ("meta_slots", "values", "memcache_values", "tornadoasyncmemcache_values"),
    ("meta_batches", "meta_outcomes"),
    ("slots",),
    ("gathered",),
    ("outbox", "retry", "streamed"),
    # -- no pure floors from here on
    ("health", "deadlines"),
    ("lanes", "boundaries", "stream", "memcache_cas", "timers", "observer"),
    ("call", "tls", "fanout", "authentication", "events", "chain", "spoken"),
    ("factories", "leases", "observed"),
    ("connector", "foreground", "workers"),
    ("computations",),
    ("connection", "guest", "memcache_outcomes"),
    ("door", "bounds"),
    ("server",),
    ("choice", "server_command"),
    ("growth",),
    ("pool",),
    ("funnel", "upkeep"),
    ("cluster", "commands"),
    ("generations", "meta_commands", "migration", "streams"),
    ("submit",),
    ("stampede",),
    ("namespaces",),
    ("client",),
    ("discovery", "cached"),
    ("memcache", "tornadoasyncmemcache", "web", "relay"),
    ("prometheus_observer", "opentelemetry_observer"),
    ("proxy", "proxy_config"),
    ("proxy_server",),
    ("proxy_command",),
    ("__init__", "cli"),
    ("__main__",),
)
#: The floors of the pure modules, and what these must not import.
PURE_FLOORS = 13
IMPURE = {"tornado", "asyncio", "socket", "ssl", "time", "select", "selectors", "threading"}
#: An asyncio.TimeoutError is no Timeout's base without it.
PURE_EXCEPTIONS = {("errors", "asyncio")}

MODULE_LINES = 450
FUNCTION_LINES = 40

#: What ``from tornado_memcache import *`` gives.
PUBLIC = [
    "AuthenticationError",
    "CasUnique",
    "Client",
    "ClientClosed",
    "ClientError",
    "ConnectionFailed",
    "FailedKeys",
    "How",
    "InvalidKey",
    "InvalidRequest",
    "InvalidServer",
    "Item",
    "ItemTooLarge",
    "MemcacheError",
    "MetaItem",
    "MetaUnsupported",
    "MetadumpEntry",
    "MultiResult",
    "Namespace",
    "NotSerializable",
    "ObservedCall",
    "Observer",
    "Plain",
    "ProtocolError",
    "Reply",
    "ReplyError",
    "Request",
    "SerializationError",
    "Serializer",
    "Server",
    "ServerDead",
    "ServerError",
    "Timeout",
    "TooManyCalls",
    "ValueTooLarge",
    "WatchEvent",
    "boundary",
    "cached",
]
#: What a module may import besides, because somebody asks for that module by its name.
EXTRAS = {
    "prometheus_observer": {"prometheus_client"},
    "opentelemetry_observer": {"opentelemetry"},
}
#: The modules that talk to a terminal.
MAY_PRINT = {"__main__", "cli"}


@functools.lru_cache(None)
def trees() -> dict[str, ast.Module]:
    """Returns the syntax tree of each module of the package."""
    return {
        path.stem: ast.parse(path.read_text(encoding="utf-8"), str(path))
        for path in sorted(PACKAGE.glob("*.py"))
    }


def imports(tree: ast.Module) -> Iterator[tuple[str, tuple[str, ...], int]]:
    """Yields what a module imports, absolute: (module, names, line)."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            for alias in node.names:
                yield alias.name, (), node.lineno
        elif isinstance(node, ast.ImportFrom):
            module = node.module or ""
            if node.level:
                module = f"{NAME}.{module}".rstrip(".")
            yield module, tuple(alias.name for alias in node.names), node.lineno


def rooms(tree: ast.Module) -> Iterator[tuple[str, int]]:
    """Yields the modules of the package that a module imports: (module, line)."""
    for module, names, line in imports(tree):
        first, _, rest = module.partition(".")
        if first != NAME:
            continue
        if rest:
            yield rest, line
            continue
        for name in names or ("__init__",):
            yield (name if name in trees() else "__init__"), line


def floor_of(module: str) -> int:
    for number, floor in enumerate(FLOORS):
        if module in floor:
            return number
    raise AssertionError(f"{module} has no floor: put it into FLOORS of {Path(__file__).name}")


def told(faults: list[str]) -> None:
    assert not faults, "\n" + "\n".join(faults)


# -- the house


def test_there_are_no_sub_packages() -> None:
    told([str(path) for path in PACKAGE.rglob("*.py") if path.parent != PACKAGE])


def test_modules_import_only_from_floors_below() -> None:
    told(
        [
            f"{module}.py:{line} imports {room}, which is not below it"
            for module, tree in trees().items()
            for room, line in rooms(tree)
            if floor_of(room) >= floor_of(module)
        ]
    )


def test_every_module_has_one_floor() -> None:
    everyone = [module for floor in FLOORS for module in floor]
    assert len(everyone) == len(set(everyone))
    for module in trees():
        floor_of(module)


def test_pure_modules_import_nothing_that_does_io() -> None:
    told(
        [
            f"{module}.py:{line} imports {name}"
            for module, tree in trees().items()
            if floor_of(module) < PURE_FLOORS
            for name, _, line in imports(tree)
            if name.split(".")[0] in IMPURE and (module, name.split(".")[0]) not in PURE_EXCEPTIONS
        ]
    )


def test_tornado_is_the_only_dependency() -> None:
    # Type checkers bring typing_extensions; at run time nothing imports it.
    known = {*sys.stdlib_module_names, "tornado", NAME, "typing_extensions"}
    told(
        [
            f"{module}.py:{line} imports {name}"
            for module, tree in trees().items()
            for name, _, line in imports(tree)
            if name.split(".")[0] not in known | EXTRAS.get(module, set())
        ]
    )


def test_nothing_imports_what_is_an_extra_unless_it_is_asked_for() -> None:
    code = f"import sys, {NAME}.discovery, {NAME}.memcache, {NAME}.web; print(*sys.modules)"
    loaded = subprocess.check_output([sys.executable, "-c", code], cwd=ROOT, text=True).split()
    extras = {name for names in EXTRAS.values() for name in names}
    assert f"{NAME}.observer" in loaded and not extras & {name.split(".")[0] for name in loaded}


def test_no_private_names_of_tornado_or_asyncio() -> None:
    told(
        [
            f"{module}.py:{line} uses {what}"
            for module, tree in trees().items()
            for what, line in private_uses(tree)
        ]
    )


def private_uses(tree: ast.Module) -> Iterator[tuple[str, int]]:
    """Yields the private names of Tornado and asyncio that a module uses."""
    foreign: dict[str, str] = {}  # a name in this module: where it comes from
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            for alias in node.names:
                if alias.name.split(".")[0] in ("tornado", "asyncio"):
                    foreign[alias.asname or alias.name.split(".")[0]] = alias.name
        elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
            if node.module.split(".")[0] in ("tornado", "asyncio"):
                for alias in node.names:
                    foreign[alias.asname or alias.name] = f"{node.module}.{alias.name}"
                    if is_private(alias.name):
                        yield f"{node.module}.{alias.name}", node.lineno

    for node in ast.walk(tree):
        if isinstance(node, ast.Attribute) and is_private(node.attr):
            if is_theirs(node.value, foreign):
                yield ast.unparse(node), node.lineno
        elif isinstance(node, ast.Call) and ast.unparse(node.func) in ("getattr", "setattr"):
            name = node.args[1] if len(node.args) > 1 else None
            if isinstance(name, ast.Constant) and is_private(str(name.value)):
                if is_theirs(node.args[0], foreign):
                    yield ast.unparse(node), node.lineno
        elif isinstance(node, ast.ClassDef):
            yield from private_inheritance(node, foreign)


def is_private(name: str) -> bool:
    return name.startswith("_") and not (name.startswith("__") and name.endswith("__"))


def is_theirs(subject: ast.expr, foreign: dict[str, str]) -> bool:
    """True for something imported from Tornado or asyncio, and for loops and streams."""
    text = ast.unparse(subject)
    last = re.split(r"[.(\[]", text.rstrip(")]"))[-1].lower()
    return text.split(".")[0].split("(")[0] in foreign or last.endswith(("loop", "stream"))


def private_inheritance(node: ast.ClassDef, foreign: dict[str, str]) -> Iterator[tuple[str, int]]:
    """Yields private names that a class shares with its base in Tornado or asyncio."""
    for base in node.bases:
        first, _, rest = ast.unparse(base).split("[")[0].partition(".")
        if first not in foreign:
            continue
        path = foreign[first] + (f".{rest}" if rest else "")
        module, _, name = path.rpartition(".")
        kind = getattr(importlib.import_module(module), name)
        taken: set[str] = set()
        for parent in kind.__mro__:
            if parent.__module__.split(".")[0] in ("tornado", "asyncio"):
                try:
                    taken |= set(re.findall(r"\b_\w+", inspect.getsource(parent)))
                except (OSError, TypeError):  # (written in C)
                    taken |= set(vars(parent))
        for inner in ast.walk(node):
            if isinstance(inner, (ast.FunctionDef, ast.AsyncFunctionDef)):
                used = inner.name
            elif isinstance(inner, ast.Attribute) and ast.unparse(inner.value) == "self":
                used = inner.attr
            else:
                continue
            if is_private(used) and used in taken:
                yield f"{node.name}.{used}, which is private in {path}", inner.lineno


def docstring_lines(node: ast.AST) -> int:
    """Returns how many lines of ``node`` are docstrings, its own and those within."""
    count = 0
    for one in ast.walk(node):
        if isinstance(one, (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)):
            first = one.body[0] if one.body else None
            if isinstance(first, ast.Expr) and isinstance(first.value, ast.Constant):
                if isinstance(first.value.value, str):
                    count += (first.end_lineno or 0) - first.lineno + 1
    return count


def test_modules_are_short() -> None:
    faults = []
    for module, tree in trees().items():
        lines = len((PACKAGE / f"{module}.py").read_text(encoding="utf-8").splitlines())
        lines -= docstring_lines(tree)
        if lines > MODULE_LINES:
            faults.append(f"{module}.py: {lines} lines without docstrings (over {MODULE_LINES})")
    told(faults)


def test_functions_are_short() -> None:
    faults = []
    for module, tree in trees().items():
        for node in ast.walk(tree):
            if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)):
                lines = (node.end_lineno or 0) - node.lineno + 1 - docstring_lines(node)
                if lines > FUNCTION_LINES:
                    faults.append(f"{module}.py:{node.lineno} {node.name}: {lines} lines")
    told(faults)


def test_every_module_opens_with_its_law() -> None:
    told(
        [
            f"{module}.py has no docstring"
            for module, t in trees().items()
            if not ast.get_docstring(t)
        ]
    )


def test_every_module_has_its_tests() -> None:
    tests = {path.name for path in (ROOT / "tests").glob("test_*.py")}
    missing = [
        f"tests/test_{module}.py is missing"
        for module in trees()
        if not module.startswith("__") and f"test_{module}.py" not in tests
    ]
    told(missing)


def test_exports() -> None:
    package = importlib.import_module(NAME)
    assert sorted(package.__all__) == sorted(PUBLIC)
    told([f"{name} is listed and not there" for name in PUBLIC if not hasattr(package, name)])


def test_no_module_prints() -> None:
    told(
        [
            f"{module}.py:{node.lineno} prints"
            for module, tree in trees().items()
            if module not in MAY_PRINT
            for node in ast.walk(tree)
            if isinstance(node, ast.Call) and ast.unparse(node.func) == "print"
        ]
    )


def test_nothing_is_swallowed() -> None:
    told(
        [
            f"{module}.py:{node.lineno} swallows everything"
            for module, tree in trees().items()
            for node in ast.walk(tree)
            if isinstance(node, ast.ExceptHandler)
            and (node.type is None or ast.unparse(node.type) in ("Exception", "BaseException"))
            and len(node.body) == 1
            and isinstance(node.body[0], ast.Pass)
        ]
    )


def test_no_file_names_the_machine_it_was_written_on() -> None:
    machine = re.compile(r"(?<![\w.:/<>])/(?:root|work|home|Users|opt|tmp/w)/")
    faults = []
    for path in committed_files():
        try:
            text = path.read_text(encoding="utf-8")
        except UnicodeDecodeError:
            continue
        for number, line in enumerate(text.splitlines(), 1):
            if machine.search(line):
                faults.append(f"{path.relative_to(ROOT)}:{number}: {line.strip()[:80]}")
    told(faults)


def committed_files() -> list[Path]:
    """Returns the files that git has or would take; without git all but hidden folders."""
    try:
        listed = subprocess.run(
            ["git", "ls-files", "-co", "--exclude-standard", "-z"],
            cwd=ROOT,
            capture_output=True,
            check=True,
        ).stdout.decode()
        found = [ROOT / name for name in listed.split("\0") if name]
    except (OSError, subprocess.CalledProcessError):
        found = [
            path
            for path in ROOT.rglob("*")
            if not any(part.startswith(".") for part in path.relative_to(ROOT).parts[:-1])
            and "__pycache__" not in path.parts
        ]
    return [path for path in found if path.is_file()]


def test_version_is_read_without_importing() -> None:
    text = (PACKAGE / "__init__.py").read_text(encoding="utf-8")
    assert re.search(r'^__version__ = "\d+\.\d+\.\d+', text, re.M)


# -- the checks find what they are for


@pytest.mark.parametrize(
    "source",
    [
        "import asyncio\nasyncio._get_running_loop()",
        "from tornado.ioloop import _x",
        "import tornado.gen as g\ng._null_future",
        "self.io_loop._handlers",
        "self.stream._read_buffer",
        "asyncio_loop._scheduled",
        "import asyncio\nasyncio.get_event_loop()._ready",
        "getattr(self._stream, '_read_buffer', None)",
        "from tornado.iostream import IOStream\nclass S(IOStream):\n"
        "    def f(self): return self._read_buffer",
        "from tornado.iostream import IOStream\nclass S(IOStream):\n    def _handle_read(self): 0",
    ],
)
def test_a_private_use_is_found(source: str) -> None:
    assert list(private_uses(ast.parse(source)))


@pytest.mark.parametrize(
    "source",
    [
        "self._x._y",
        "self._loop.call_soon(f)",
        "class C:\n    def _f(self): self._loop",
        "import asyncio\nasyncio.__name__",
        "from tornado.iostream import IOStream\nclass S(IOStream):\n"
        "    def f(self): self._receiver_of_ours = 1",
    ],
)
def test_a_public_use_is_not_found(source: str) -> None:
    assert not list(private_uses(ast.parse(source)))


# -- the ledger finds a planted leak of each kind


class StandInPool:
    """A pool as the ledger sees it."""

    def __init__(self, **counts: int) -> None:
        names = ("idle", "busy", "connecting", "late", "open", "waiting", "pending")
        self._counts = {"limit": 4, **dict.fromkeys(names, 0), **counts}

    def counts(self) -> dict[str, int]:
        return self._counts


class StandInDeadlines:
    def __init__(self, size: int, armed: bool) -> None:
        self.size, self.armed = size, armed

    def __len__(self) -> int:
        return self.size


class StandInTimer:
    def __init__(self, armed: bool) -> None:
        self.armed = armed

    def __repr__(self) -> str:
        return "<tea in 60.0 s>"


class StandIn:
    """A client as the ledger sees it."""

    def __init__(self) -> None:
        self.timers: list[StandInTimer] = []
        self._deadlines: StandInDeadlines | None = None
        self._pools: dict[str, StandInPool] = {}

    def close(self) -> None:
        """Closes nothing."""


def within(plant: Any, loop: asyncio.AbstractEventLoop | None = None) -> list[tuple[str, str]]:
    """Returns what a ledger of its own finds after ``plant(ledger)``."""
    inner = Ledger(client_class=StandIn)
    inner.open(loop)
    keep = plant(inner)  # (what the test still holds when it ends)
    findings = inner.settle()
    del keep
    return findings


def kinds(findings: list[tuple[str, str]]) -> set[str]:
    return {kind for kind, _ in findings}


def _planted() -> None:
    """A timer's callback, as if it were the package's."""


_planted.__module__ = f"{NAME}.planted"


def test_ledger_of_a_clean_test() -> None:
    def plant(ledger: Ledger) -> Any:
        async def main() -> None:
            handle = asyncio.get_running_loop().call_later(60, _planted)
            handle.cancel()
            await asyncio.gather(asyncio.sleep(0), asyncio.sleep(0.001))

        asyncio.run(main())
        with socket.socket(), open(os.devnull):
            pass
        client = StandIn()
        client._pools["a"] = StandInPool()
        client._deadlines = StandInDeadlines(0, False)
        client.close()
        return client

    assert within(plant) == []


def test_ledger_finds_an_open_file() -> None:
    sockets: list[socket.socket] = []
    findings = within(lambda _: sockets.append(socket.socket()))
    sockets.pop().close()
    assert kinds(findings) == {"fd"}
    assert "socket:" in findings[0][1]


def test_ledger_finds_a_pending_task(ledger: Ledger) -> None:
    ledger.excuse("task")

    def plant(_: Ledger) -> None:
        async def main() -> None:
            main.task = asyncio.ensure_future(asyncio.sleep(60))  # type: ignore[attr-defined]

        asyncio.run(main())

    findings = within(plant)
    assert kinds(findings) == {"task"}
    assert "sleep" in findings[0][1]


def test_ledger_finds_a_pending_task_on_the_tests_own_loop(io_loop: IOLoop) -> None:
    loop = io_loop.asyncio_loop  # type: ignore[attr-defined]
    tasks: list[Any] = []
    findings = within(lambda _: tasks.append(loop.create_task(asyncio.sleep(60))), loop)
    assert kinds(findings) == {"task"}
    assert tasks[0].cancelled()  # (and the next test is not disturbed by it)


@pytest.mark.parametrize(
    "callback",
    [
        _planted,
        functools.partial(_planted),
        functools.partial(functools.partial(_planted), *()),
        functools.wraps(_planted)(lambda: None),
        type("Lane", (), {"expire": lambda self: 0, "__module__": f"{NAME}.x"})().expire,
    ],
    ids=["function", "partial", "partial of partial", "wrapper", "method"],
)
@pytest.mark.parametrize("how", ["tornado", "asyncio", "context"])
def test_ledger_finds_our_live_timer(io_loop: IOLoop, callback: Any, how: str) -> None:
    loop = io_loop.asyncio_loop  # type: ignore[attr-defined]
    handles: list[Any] = []

    def plant(_: Ledger) -> None:
        if how == "tornado":
            handles.append(io_loop.add_timeout(timedelta(seconds=60), callback))
        elif how == "asyncio":
            handles.append(loop.call_later(60, callback))
        else:
            handles.append(loop.call_later(60, contextvars.Context().run, callback))

    findings = within(plant, loop)
    io_loop.remove_timeout(handles[0])
    assert kinds(findings) == {"timer"}


def test_ledger_leaves_the_timers_of_others_alone(io_loop: IOLoop) -> None:
    loop = io_loop.asyncio_loop  # type: ignore[attr-defined]
    handle = io_loop.add_timeout(timedelta(seconds=60), lambda: None)
    assert within(lambda _: None, loop) == []
    io_loop.remove_timeout(handle)


def test_ledger_finds_a_timer_before_its_loop_is_closed(ledger: Ledger) -> None:
    ledger.excuse("timer")

    async def main() -> None:
        asyncio.get_running_loop().call_later(60, _planted)

    assert kinds(within(lambda _: asyncio.run(main()))) == {"timer"}


def test_ledger_finds_a_handler(io_loop: IOLoop) -> None:
    loop = io_loop.asyncio_loop  # type: ignore[attr-defined]
    with socket.socket() as watched:
        watched.bind(("127.0.0.1", 0))
        watched.listen()
        findings = within(
            lambda _: io_loop.add_handler(watched, lambda *a: None, IOLoop.READ), loop
        )
        io_loop.remove_handler(watched)
    assert kinds(findings) == {"handler"}


def test_ledger_finds_a_handler_of_a_loop_that_the_test_closed(ledger: Ledger) -> None:
    ledger.excuse("handler")

    def plant(_: Ledger) -> None:
        with socket.socket() as watched:
            watched.bind(("127.0.0.1", 0))
            watched.listen()
            own = IOLoop(make_current=False)
            own.add_handler(watched, lambda *a: None, IOLoop.READ)
            own.close()

    assert kinds(within(plant)) == {"handler"}


def test_ledger_looks_into_a_loop_of_uvloop() -> None:
    loop = uvloops.OpenLoop()
    loop.open_own_files()
    assert our_timers(loop) == [] and watched_fds(loop) == {}
    fired: list[int] = []
    planted = functools.wraps(_planted)(lambda: fired.append(len(our_timers(loop))))
    soon = loop.call_later(0.001, planted)
    later = loop.call_at(loop.time() + 60, contextvars.Context().run, _planted)
    loop.call_later(60, print).cancel()
    with socket.socket() as watched:
        loop.add_reader(watched, print)
        loop.add_writer(watched.fileno(), print)
        assert (len(our_timers(loop)), list(watched_fds(loop))) == (2, [watched.fileno()])
        loop.remove_reader(watched.fileno())
        assert list(watched_fds(loop)) == [watched.fileno()]
        loop.remove_writer(watched)
    while not fired:
        loop.run_until_complete(asyncio.sleep(0.001))
    assert fired == [1] and not soon.cancelled(), "one that fires is not live"
    later.cancel()
    assert our_timers(loop) == [] and watched_fds(loop) == {}
    loop.close()


def test_ledger_finds_a_log_line(expect_log: Any) -> None:
    expect_log("tornado_memcache.planted", "surprise", times=1)
    log = logging.getLogger("tornado_memcache.planted")
    findings = within(lambda _: log.warning("a %s", "surprise"))
    assert findings == [("log", "WARNING from tornado_memcache.planted: a surprise")]


def test_ledger_takes_a_declared_log_line(expect_log: Any) -> None:
    expect_log("planted", "x", level=logging.INFO, times=4)
    log = logging.getLogger("planted.below")

    def plant(ledger: Ledger) -> None:
        ledger.expect("planted", "^x1", times=2)
        ledger.expect("planted", "^x2", level=logging.INFO)
        ledger.expect("planted", "^x3", times=range(2))
        log.warning("x1")
        log.error("x1")
        log.info("x2")
        log.info("x2")

    assert within(plant) == []


def test_ledger_misses_a_declared_log_line() -> None:
    findings = within(lambda ledger: ledger.expect("planted", "never"))
    assert kinds(findings) == {"log"}
    assert "it came 0 times" in findings[0][1]


@pytest.mark.parametrize("own_handler", [False, True])
def test_ledger_finds_an_exception_that_nobody_retrieved(
    io_loop: IOLoop, ledger: Ledger, own_handler: bool
) -> None:
    ledger.excuse("lost")
    loop = io_loop.asyncio_loop  # type: ignore[attr-defined]
    if own_handler:
        loop.set_exception_handler(lambda *_: None)

    def plant(_: Ledger) -> None:
        loop.create_future().set_exception(ValueError("nobody looked"))

    findings = within(plant, loop)
    assert kinds(findings) == {"lost"}
    assert "nobody looked" in findings[0][1]


def test_ledger_finds_an_unclosed_client() -> None:
    findings = within(lambda _: StandIn())
    assert kinds(findings) == {"client"}
    assert "never closed" in findings[0][1]


@pytest.mark.parametrize("size, armed", [(1, True), (1, False), (0, True)])
def test_ledger_finds_a_register_that_holds_something(size: int, armed: bool) -> None:
    def plant(_: Ledger) -> Any:
        client = StandIn()
        client._deadlines = StandInDeadlines(size, armed)
        client.close()
        return client

    assert kinds(within(plant)) == {"client"}


@pytest.mark.parametrize(
    "counts",
    [
        {"idle": 1, "open": 2},  # the sum does not hold
        {"idle": 5, "open": 5},  # over the limit
        {"idle": 1, "open": 1},  # open after close
        {"waiting": 1},
        {"pending": 1},
    ],
)
def test_ledger_finds_a_pool_that_does_not_add_up(counts: dict[str, int]) -> None:
    def plant(_: Ledger) -> Any:
        client = StandIn()
        client._pools["a"] = StandInPool(**counts)
        client.close()
        return client

    assert kinds(within(plant)) == {"pool"}


def test_ledger_finds_a_named_timer_of_a_closed_client() -> None:
    def plant(ledger: Ledger) -> Any:
        client = StandIn()
        client.timers = [StandInTimer(False), StandInTimer(True)]
        client.close()
        return client

    assert within(plant) == [("client", "closed, but its timer is set: <tea in 60.0 s>")]


def test_ledger_excuses_only_what_it_is_told() -> None:
    def plant(ledger: Ledger) -> Any:
        ledger.excuse("client")
        return StandIn()

    assert within(plant) == []
    assert "client" in KINDS
    with pytest.raises(ValueError):
        Ledger(StandIn).excuse("clients")


def test_ledger_undoes_its_watching() -> None:
    before = (StandIn.__init__, StandIn.close, asyncio.BaseEventLoop.close)
    within(lambda _: None)
    assert before == (StandIn.__init__, StandIn.close, asyncio.BaseEventLoop.close)


# -- the helpers


class Hello(web.RequestHandler):
    def get(self) -> None:
        self.write("hello")


@pytest.fixture
def app() -> web.Application:
    return web.Application([("/", Hello)])


@pytest.mark.gen_test
async def test_ledger_of_a_request_over_http(http_client: Any, base_url: str) -> None:
    assert (await http_client.fetch(base_url)).body == b"hello"


def test_shared_memcached_is_left_stopped_and_full(memcached: Memcached) -> None:
    assert memcached.ask(b"set left 0 0 1\r\nx\r\n") == b"STORED\r\n"
    memcached.stop()


def test_shared_memcached_is_running_and_empty(memcached: Memcached) -> None:
    assert memcached.ask(b"get left\r\n") == b"END\r\n"
    memcached.kill()


@pytest.mark.parametrize("unix", [False, True])
def test_memcached_lives(start_memcached: Any, unix: bool) -> None:
    server = start_memcached(["-I", "2m"], unix=unix)
    address, pid = server.address, server.pid
    assert server.stats()["pid"] == str(pid)
    assert server.stats()["limit_maxbytes"]
    server.stop()
    with pytest.raises(TimeoutError):
        server.ask(b"version\r\n", timeout=0.05)
    server.resume()
    assert server.ask(b"version\r\n").startswith(b"VERSION ")
    server.kill()
    assert server.pid is None
    with pytest.raises(ConnectionRefusedError):
        server.connect()
    server.restart()
    assert (server.address, server.pid == pid) == (address, False)
    assert server.ask(b"version\r\n").startswith(b"VERSION ")


def test_memcached_on_a_port_that_is_taken(memcached: Memcached, start_memcached: Any) -> None:
    with pytest.raises(OSError, match="did not start"):
        start_memcached(port=memcached.port)


def test_silent_counts(silent: Silent) -> None:
    assert asyncio.run(silent.untouched(0.001))
    with socket.create_connection((silent.host, silent.port)) as peer:
        peer.sendall(b"get k\r\n")
        assert silent.wait(7) == b"get k\r\n"
        assert silent.connections == 1
        assert not asyncio.run(silent.untouched(0))
        silent.drop()
        assert peer.recv(1) == b""
