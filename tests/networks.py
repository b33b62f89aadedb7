"""What a network does to a connect, and how many connects a client made.

Knows iproute2, namespaces, routes and the kernel's tables. It must not know
the package. What it changes (a pair of interfaces, a namespace, routes) has
names and addresses of its own and is taken back at the end.
"""

from __future__ import annotations

import contextlib
import ctypes
import itertools
import os
import random
import shutil
import socket
import struct
import subprocess
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, TypeVar

from .ledger import open_fds

_T = TypeVar("_T")

#: Of these (TEST-NET-2, never routed) each network takes eight addresses.
_BLOCK = "198.51.100"
#: A hardware address that nobody has.
_NOBODY = "02:00:00:00:00:99"
_CLONE_NEWNET = 0x4000_0000
_CAPABILITIES = {"CAP_NET_ADMIN": 12, "CAP_SYS_ADMIN": 21}
_SYN_SENT = 2

_numbers = itertools.count(1)


def _tool() -> str | None:
    return shutil.which("ip") or shutil.which("ip", path="/usr/sbin:/sbin:/usr/bin:/bin")


def missing() -> str | None:
    """Returns why no `Network` can be made here, None if one can."""
    if _tool() is None:
        return "no network namespaces without iproute2: apt-get install iproute2"
    with contextlib.suppress(OSError):
        for line in Path("/proc/self/status").read_text().splitlines():
            if line.startswith("CapEff:"):
                held = int(line.split()[1], 16)
                if all(held >> bit & 1 for bit in _CAPABILITIES.values()):
                    return None
    return f"network namespaces are for root ({', '.join(_CAPABILITIES)})"


def _ip(*words: str) -> str:
    tool = _tool()
    assert tool is not None, "no ip"
    done = subprocess.run([tool, *words], capture_output=True, text=True, timeout=30)
    if done.returncode:
        raise OSError(f"ip {' '.join(words)}: {done.stderr.strip() or done.returncode}")
    return done.stdout


class Network:
    """A namespace behind a pair of interfaces; a context manager.

    ``peer`` is the address of the namespace, ``address`` that of our end.
    It is open at first: `swallow` makes every packet to the peer vanish,
    `hold` keeps them, `open` lets through those that were kept and all
    others.
    """

    def __init__(self) -> None:
        number = f"{os.getpid()}n{next(_numbers)}"
        self.namespace = f"mc-{number}"
        self.interface = f"mc{number}"
        self._undo = contextlib.ExitStack()

    def __enter__(self) -> Network:
        with contextlib.ExitStack() as undo:
            _ip("netns", "add", self.namespace)
            undo.callback(_ip, "netns", "del", self.namespace)
            ours, theirs, within = self.interface, "peer", ("-n", self.namespace)
            _ip("link", "add", ours, "type", "veth", "peer", theirs, "netns", self.namespace)
            undo.callback(_ip, "link", "del", ours)
            self.address, self.peer, *free = _free_addresses()
            self._free = iter(free)
            _ip("addr", "add", f"{self.address}/29", "dev", ours)
            _ip(*within, "addr", "add", f"{self.peer}/29", "dev", theirs)
            # The peer never tells where it is: we know it by hand, or not at all.
            _ip(*within, "link", "set", theirs, "arp", "off", "up")
            _ip(*within, "link", "set", "lo", "up")
            _ip("link", "set", ours, "up")
            self._hardware = _hardware_address(*within, theirs)
            _ip(*within, *_neighbour(theirs, self.address, _hardware_address(ours)))
            self.open()
            self._undo = undo.pop_all()
        return self

    def __exit__(self, *_: object) -> None:
        self._undo.close()

    def __repr__(self) -> str:
        return f"<Network {self.namespace}: {self.address} to {self.peer}>"

    # -- what it does to packets

    def swallow(self) -> None:
        """Every packet to the peer vanishes from now on: a blackhole."""
        _ip(*_neighbour(self.interface, self.peer, _NOBODY))

    def hold(self) -> None:
        """Packets to the peer are kept from now on (a few, for less than three seconds)."""
        _ip("neigh", "del", self.peer, "dev", self.interface)

    def open(self) -> None:
        """Packets pass from now on, and so do those that were kept."""
        _ip(*_neighbour(self.interface, self.peer, self._hardware))

    def route(self, kind: str) -> str:
        """Returns an address whose route is ``unreachable``, ``prohibit`` or ``blackhole``."""
        address = next(self._free)
        _ip("route", "add", kind, f"{address}/32")
        self._undo.callback(_ip, "route", "del", kind, f"{address}/32")
        return address

    # -- what lives in it

    def within(self, function: Callable[[], _T]) -> _T:
        """Returns ``function()``, called inside the namespace.

        A socket stays in the namespace in which it was made, and so does
        a process.
        """

        def run() -> _T:
            with open(f"/run/netns/{self.namespace}") as namespace:
                libc = ctypes.CDLL(None, use_errno=True)
                if libc.setns(namespace.fileno(), _CLONE_NEWNET):
                    code = ctypes.get_errno()
                    raise OSError(code, os.strerror(code))
            return function()

        with ThreadPoolExecutor(1) as thread:  # (each thread is in a namespace of its own)
            return thread.submit(run).result()


def _free_addresses() -> list[str]:
    """Returns six neighbouring addresses that no interface of this machine is near to."""
    taken = _ip("-4", "-o", "addr", "show")
    for base in random.sample(range(0, 256, 8), 32):
        addresses = [f"{_BLOCK}.{base + number}" for number in range(1, 7)]
        if f"{addresses[0]}/" not in taken:
            return addresses
    raise OSError(f"no addresses are left of {_BLOCK}.0/24")


def _neighbour(interface: str, address: str, hardware: str) -> tuple[str, ...]:
    where = ("dev", interface, "nud", "permanent")
    return ("neigh", "replace", address, "lladdr", hardware, *where)


def _hardware_address(*interface: str) -> str:
    *where, name = interface
    words = _ip(*where, "-o", "link", "show", "dev", name).split()
    return words[words.index("link/ether") + 1]


# -- without a namespace


@contextlib.contextmanager
def closed_port(host: str = "127.0.0.1", port: int = 0) -> Iterator[tuple[str, int]]:
    """Gives an address that refuses: its port is taken, and nobody listens."""
    with socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET) as taken:
        taken.bind((host, port))
        yield taken.getsockname()[:2]


@contextlib.contextmanager
def full_backlog() -> Iterator[tuple[str, int]]:
    """Gives an address whose listener accepts nobody and has no room left: a connect hangs."""
    with socket.socket() as listener, socket.socket() as first:
        listener.bind(("127.0.0.1", 0))
        listener.listen(0)  # (which is room for one)
        first.connect(listener.getsockname())
        until = time.monotonic() + 10
        while not _queued(listener):
            if time.monotonic() > until:
                raise TimeoutError("the backlog stays empty")
            time.sleep(0.001)
        yield listener.getsockname()


def _queued(listener: socket.socket) -> int:
    """Returns how many connections wait to be accepted (tcp_info's tcpi_unacked)."""
    info = listener.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, 104)
    return int(struct.unpack_from("I", info, 24)[0])


def hanging_connects() -> int:
    """Returns how many connects of this process are under way, as the kernel sees it."""
    count = 0
    for fd, name in open_fds().items():
        if name.startswith("socket:"):
            with contextlib.suppress(OSError), socket.socket(fileno=os.dup(fd)) as sock:
                state = sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, 1)[0]
                count += state == _SYN_SENT
    return count


class Connects:
    """Counts the connects that clients in this process make; a context manager.

    Every one is seen where it enters the kernel, also one to a port on
    which nobody listens and could count. Those that block are the tests'
    own and do not count.
    """

    def __init__(self) -> None:
        self._seen: list[tuple[float, Any]] = []

    def __enter__(self) -> Connects:
        real, seen = socket.socket.connect, self._seen

        def connect(sock: socket.socket, address: Any) -> None:
            if sock.gettimeout() == 0:
                seen.append((time.monotonic(), address))
            real(sock, address)

        socket.socket.connect = connect  # type: ignore[method-assign]
        return self

    def __exit__(self, *_: object) -> None:
        del socket.socket.connect  # (which lays bare the one that it inherits)

    def to(self, server: str) -> list[float]:
        """Returns the moments of the connects to ``"host:port"`` or ``"unix:/path"``."""
        return [moment for moment, address in self._seen if _named(address) == server]


def _named(address: Any) -> str:
    if not isinstance(address, tuple):
        return f"unix:{os.fsdecode(address)}"
    host, port = address[:2]
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
