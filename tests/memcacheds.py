"""Real memcached processes for tests.

Knows how the binary is started, stopped, resumed, killed and started again
on the same port. It must not know the package: it speaks over plain sockets.
"""

from __future__ import annotations

import os
import random
import shutil
import signal
import socket
import ssl
import subprocess
import tempfile
import time
from collections.abc import Iterable
from pathlib import Path

#: Seconds that a process gets to answer for the first time.
START = 10.0
#: Below the range from which Linux takes the ports of outgoing connections:
#: a connect to a killed server's port could otherwise reach itself.
_PORTS = range(20_000, 32_000)
#: Not the `random` of all: a suite in random order gives that one seed in every worker, and all
#: of them would try the same ports at the same time.
_random = random.SystemRandom()


def find_binary() -> str | None:
    """Returns the path of the memcached binary, or None."""
    return shutil.which("memcached") or shutil.which("memcached", path="/usr/bin:/usr/local/bin")


def free_port() -> int:
    """Returns a port of 127.0.0.1 on which nobody listens now."""
    while True:
        port = _random.choice(_PORTS)
        with socket.socket() as probe:
            try:
                probe.bind(("127.0.0.1", port))
            except OSError:
                continue
        return port


class Memcached:
    """One memcached process.

    ``arguments`` go to the binary as they are (``["-I", "2m"]``). With
    ``unix=True`` it listens on a unix socket in a directory of its own. A
    ``port`` is asked for only when a test needs that very one. With an
    ``ssl_context`` it is spoken to over TLS (``arguments`` make it listen
    so); with a ``login``, as ``b"username password"``, each connection says
    it first (``-Y`` makes it ask). ``address`` is the server as the client takes it; ``host``,
    ``port`` and ``path`` are its parts.
    """

    def __init__(
        self,
        arguments: Iterable[str] = (),
        *,
        unix: bool = False,
        port: int | None = None,
        host: str = "127.0.0.1",
        binary: str | None = None,
        ssl_context: ssl.SSLContext | None = None,
        login: bytes | None = None,
    ) -> None:
        found = binary or find_binary()
        if found is None:
            raise FileNotFoundError("no memcached on PATH: apt-get install memcached")
        self.binary = found
        self.arguments = list(arguments)
        self.host = host
        self.port: int | None = port
        self.path: str | None = None
        self._ssl_context = ssl_context
        self._login = login
        self._directory: str | None = None
        self._process: subprocess.Popen[bytes] | None = None
        if unix:
            self._directory = tempfile.mkdtemp(prefix="mc-")
            self.path = os.path.join(self._directory, "socket")
            self._start()
        elif port is not None:
            self._start()
        else:
            self._start_on_free_port()

    def __repr__(self) -> str:
        return f"<Memcached {self.address} pid={self.pid}>"

    @property
    def address(self) -> str:
        return f"unix:{self.path}" if self.path else f"{self.host}:{self.port}"

    @property
    def pid(self) -> int | None:
        """The process, or None while it is killed."""
        return self._process.pid if self._process is not None else None

    # -- its life

    def stop(self) -> None:
        """SIGSTOP: sockets stay open and accept, nothing is answered."""
        if self._process is not None:
            self._process.send_signal(signal.SIGSTOP)
            # Every thread has stopped when the parent is told so.
            os.waitid(os.P_PID, self._process.pid, os.WSTOPPED | os.WEXITED | os.WNOWAIT)

    def resume(self) -> None:
        """SIGCONT."""
        if self._process is not None:
            self._process.send_signal(signal.SIGCONT)

    def kill(self) -> None:
        """SIGKILL, stopped or not, and waits for the end."""
        if self._process is not None:
            self._process.kill()
            self._process.wait()
            self._process = None

    def restart(self) -> None:
        """Starts it again, empty, at the same address (and kills it first)."""
        self.kill()
        until = time.monotonic() + START
        while True:
            try:
                return self._start()
            except OSError:
                if time.monotonic() > until:
                    raise
                time.sleep(0.05)

    def close(self) -> None:
        """Ends the process and removes what it left. May be called twice."""
        self.kill()
        if self._directory is not None:
            shutil.rmtree(self._directory, ignore_errors=True)

    # -- talking to it, blocking

    def connect(self, timeout: float = START) -> socket.socket:
        """Returns a blocking socket that is connected to it."""
        if self.path:
            peer = socket.socket(socket.AF_UNIX)
        else:
            peer = socket.socket(socket.AF_INET6 if ":" in self.host else socket.AF_INET)
        peer.settimeout(timeout)
        try:
            peer.connect(self.path or (self.host, self.port))
            if self._ssl_context is not None:
                peer = self._ssl_context.wrap_socket(peer, server_hostname=self.host)
            if self._login is not None:
                peer.sendall(b"set login 0 0 %d\r\n%b\r\n" % (len(self._login), self._login))
                if (answer := peer.recv(100)) != b"STORED\r\n":
                    raise OSError(f"{self!r} refuses the login: {answer!r}")
        except BaseException:
            peer.close()
            raise
        return peer

    def ask(self, lines: bytes, end: bytes = b"\r\n", timeout: float = START) -> bytes:
        """Sends ``lines`` on a connection of their own; returns the answer up to ``end``."""
        with self.connect(timeout) as peer:
            peer.sendall(lines)
            answer = b""
            while not answer.endswith(end):
                got = peer.recv(65536)
                if not got:
                    raise ConnectionResetError(f"{self!r} closed after {answer[:80]!r}")
                answer += got
            return answer

    def stats(self) -> dict[str, str]:
        """Returns what ``stats`` answers."""
        lines = self.ask(b"stats\r\n", b"END\r\n").decode().splitlines()[:-1]
        return dict(line.split(" ", 2)[1:] for line in lines)

    def flush(self) -> None:
        """Brings it back to the start: running, and empty."""
        if self._process is None or self._process.poll() is not None:
            return self.restart()
        self.resume()
        if self.ask(b"flush_all\r\n") != b"OK\r\n":
            raise OSError(f"{self!r} refuses flush_all")

    # -- starting

    def _start_on_free_port(self) -> None:
        for attempt in range(20):
            self.port = free_port()
            try:
                return self._start()
            except OSError:  # (somebody else took the port meanwhile)
                if attempt == 19:
                    raise

    def _start(self) -> None:
        line = [self.binary, "-t", "2", "-U", "0"]
        if os.geteuid() == 0:
            line += ["-u", "root"]
        if self.path:
            Path(self.path).unlink(missing_ok=True)
            line += ["-s", self.path]
        else:
            line += ["-l", self.host, "-p", str(self.port)]
        with tempfile.TemporaryFile() as said:
            self._process = subprocess.Popen(
                line + self.arguments, stdin=subprocess.DEVNULL, stdout=said, stderr=said
            )
            try:
                self._wait_until_it_answers()
            except BaseException as error:
                self.kill()
                if not isinstance(error, Exception):  # (Who is asked to end starts no other.)
                    raise
                said.seek(0)
                text = said.read(2000).decode(errors="replace").strip()
                raise OSError(f"memcached did not start ({error}): {text}") from error

    def _wait_until_it_answers(self) -> None:
        until = time.monotonic() + START
        while True:
            process = self._process
            assert process is not None
            if process.poll() is not None:
                raise OSError(f"it ended with status {process.returncode}")
            try:
                answer = int(self.stats()["pid"])
            except (OSError, KeyError):
                if time.monotonic() > until:
                    raise
                time.sleep(0.005)
                continue
            if answer != process.pid:
                raise OSError(f"another memcached, {answer}, listens there")
            return
