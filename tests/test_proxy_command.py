"""``python -m tornado_memcache proxy``: processes, signals, and memccapable's opinion."""

import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest

from .memcacheds import free_port

ROOT = Path(__file__).resolve().parent.parent
MEMCCAPABLE = shutil.which("memccapable")


def ask(address, data, until=b"\r\n", peer=None):
    """Returns what a proxy answers to ``data``, until it ends so."""
    host, _, port = address.rpartition(":")
    given = peer or socket.create_connection((host, int(port)), timeout=20)
    try:
        given.sendall(data)
        answer = b""
        while not answer.endswith(until):
            got = given.recv(65536)
            assert got, answer
            answer += got
        return answer
    finally:
        if peer is None:
            given.close()


class Proxy:
    """A proxy in a process of its own; `log` is what it has said."""

    def __init__(self, folder, *flags):
        self._path = folder / "log"
        with open(self._path, "wb") as said:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "tornado_memcache", "proxy", *flags],
                cwd=ROOT, stdin=subprocess.DEVNULL, stdout=said, stderr=said,
            )  # fmt: skip

    @property
    def log(self):
        return self._path.read_text()

    def said(self, text, times=1):
        end = time.monotonic() + 30
        while self.log.count(text) < times:
            assert time.monotonic() < end and self.process.poll() is None, self.log
            time.sleep(0.01)

    def address(self):
        self.said("listening on")
        return self.log.partition("listening on ")[2].split()[0]

    def end(self):
        self.process.send_signal(signal.SIGTERM)
        return self.process.wait(30)


@pytest.fixture
def started(tmp_path):
    running = []

    def start(*flags):
        running.append(Proxy(tmp_path, *flags))
        return running[-1]

    yield start
    for one in running:
        if one.process.poll() is None:
            one.process.terminate()
            try:
                one.process.wait(30)
            except subprocess.TimeoutExpired:
                one.process.kill()
                one.process.wait()


@pytest.mark.parametrize(
    "flags, told",
    [
        ([], "--server is missing: where are the memcacheds?"),
        (["--server=h", "--listen=0.0.0.0:1"], "--listen '0.0.0.0' can be reached"),
        (["--server=h", "--nonsense"], "unrecognized arguments: --nonsense"),
        (["--config={file}"], ":3: port is no setting of [pool a]"),
    ],
)
def test_what_is_wrong_is_one_line_and_status_2(tmp_path, flags, told):
    (tmp_path / "ini").write_text("[pool a]\nservers = h\nport = 1\n")
    line = [sys.executable, "-m", "tornado_memcache", "proxy"]
    line += [flag.format(file=tmp_path / "ini") for flag in flags]
    ended = subprocess.run(line, cwd=ROOT, capture_output=True, text=True, timeout=60)
    assert ended.returncode == 2 and told in ended.stderr
    assert ended.stderr.count("\n") == 1 and not ended.stdout


@pytest.mark.parametrize(
    "flags", [["--listen={0}"], ["--listen={0}", "--processes=2"], ["--admin={0}"]]
)
def test_an_address_that_is_not_to_be_had_is_named(flags):
    with socket.create_server(("127.0.0.1", 0)) as other:
        port = other.getsockname()[1]
        line = [sys.executable, "-m", "tornado_memcache", "proxy", "--server=h"]
        line += ["--listen=127.0.0.1:0", *(flag.format(f"127.0.0.1:{port}") for flag in flags)]
        ended = subprocess.run(line, cwd=ROOT, capture_output=True, text=True, timeout=60)
    assert ended.returncode == 1 and ended.stderr.count("\n") == 1
    assert f": cannot listen on 127.0.0.1 port {port}: Address already in use" in ended.stderr


@pytest.mark.parametrize("processes", [1, 2])
def test_a_unix_socket_that_is_taken_is_left_alone(tmp_path, processes):
    path = str(tmp_path / "socket")
    with socket.socket(socket.AF_UNIX) as other, socket.socket(socket.AF_UNIX) as peer:
        other.bind(path)
        other.listen()
        line = [sys.executable, "-m", "tornado_memcache", "proxy", "--server=h"]
        line += [f"--listen=unix:{path}", f"--processes={processes}"]
        ended = subprocess.run(line, cwd=ROOT, capture_output=True, text=True, timeout=60)
        assert ended.returncode == 1 and ended.stderr.count("\n") == 1
        assert f": cannot listen on {path}: Address already in use" in ended.stderr
        peer.connect(path)


def test_the_log_names_the_setting_that_is_missing(started, start_memcached, tmp_path):
    users = tmp_path / "users"
    users.write_text("me:secret\n")
    memcached = start_memcached(["-Y", str(users)], login=b"me secret")
    proxy = started("--listen=127.0.0.1:0", f"--server={memcached.address}")
    ask(proxy.address(), b"set a 0 0 1\r\n1\r\n")
    proxy.said("the server demands authentication: give auth-file (")
    assert "username=" not in proxy.log
    assert proxy.end() == 0


@pytest.mark.skipif(
    MEMCCAPABLE is None, reason="no memccapable: apt-get install libmemcached-tools"
)
def test_memccapable_is_content(started, start_memcached):
    servers = [f"--server={start_memcached().address}" for _ in range(2)]
    proxy = started("--listen=127.0.0.1:0", "--allow-all-commands", *servers)
    host, _, port = proxy.address().rpartition(":")
    ran = subprocess.run(
        [MEMCCAPABLE, "-h", host, "-p", port, "-a"], capture_output=True, text=True, timeout=120
    )
    assert ran.returncode == 0, ran.stdout + ran.stderr
    assert ran.stdout.count("[pass]") + ran.stderr.count("[pass]") == 27
    assert proxy.end() == 0


def test_another_configuration_is_taken_over_and_a_wrong_one_is_not(
    started, start_memcached, tmp_path
):
    one, two = start_memcached(), start_memcached()
    one.ask(b"set a 0 0 1\r\n1\r\n")
    two.ask(b"set a 0 0 1\r\n2\r\n")
    path = tmp_path / "proxy.ini"
    text = "[proxy]\nlisten = 127.0.0.1:0\n[pool main]\nservers = %s\n"
    path.write_text(text % one.address)
    proxy = started(f"--config={path}")
    host, _, port = proxy.address().rpartition(":")
    with socket.create_connection((host, int(port)), timeout=20) as peer:
        assert b"\r\n1\r\n" in ask("", b"get a\r\n", b"END\r\n", peer)
        path.write_text(text % two.address + "request-timeout = soon\n")
        proxy.process.send_signal(signal.SIGHUP)
        proxy.said("the configuration stays as it was")
        assert f"{path}:5: request-timeout must be a number of seconds, not 'soon'" in proxy.log
        assert b"\r\n1\r\n" in ask("", b"get a\r\n", b"END\r\n", peer)
        path.write_text(text % two.address)
        proxy.process.send_signal(signal.SIGHUP)
        proxy.said("the configuration was read anew")
        assert b"\r\n2\r\n" in ask("", b"get a\r\n", b"END\r\n", peer)
    assert proxy.end() == 0 and "ended" in proxy.log


def test_a_process_that_replaces_another_goes_by_the_configuration_that_was_read_anew(
    started, start_memcached, tmp_path
):
    one, two = start_memcached(), start_memcached()
    one.ask(b"set a 0 0 1\r\n1\r\n")
    two.ask(b"set a 0 0 1\r\n2\r\n")
    path = tmp_path / "proxy.ini"
    text = "[proxy]\nlisten = 127.0.0.1:0\nprocesses = 2\n[pool main]\nservers = %s\n"
    path.write_text(text % one.address)
    proxy = started(f"--config={path}")
    proxy.said("listening on", 2)
    address = proxy.address()
    path.write_text(text % two.address)
    proxy.process.send_signal(signal.SIGHUP)
    proxy.said("the configuration was read anew", 2)
    path.write_text("nonsense")
    proxy.process.send_signal(signal.SIGHUP)
    proxy.said("the configuration stays as it was", 2)
    for times, pid in enumerate(pids_of(address), 3):
        os.kill(pid, signal.SIGKILL)
        proxy.said("listening on", times)
        assert proxy.log.count(f"listening on {address}") == times
    assert {ask(address, b"get a\r\n", b"END\r\n") for _ in range(32)} == {
        b"VALUE a 0 1\r\n2\r\nEND\r\n"
    }
    assert proxy.end() == 0


def test_sigterm_lets_what_is_under_way_end(started, start_memcached):
    memcached = start_memcached()
    flags = ("--listen=127.0.0.1:0", "--request-timeout=20", f"--server={memcached.address}")
    proxy = started(*flags)
    host, _, port = proxy.address().rpartition(":")
    with socket.create_connection((host, int(port)), timeout=20) as peer:
        ask("", b"set a 0 0 1\r\n1\r\n", b"STORED\r\n", peer)
        memcached.stop()
        peer.sendall(b"get a\r\n")
        told = b""
        while b"STAT cmd_get 1\r\n" not in told:
            told = ask(f"{host}:{port}", b"stats proxy\r\n", b"END\r\n")
        proxy.process.send_signal(signal.SIGTERM)
        while True:  # (until nobody is let in)
            try:
                socket.create_connection((host, int(port)), timeout=20).close()
            except ConnectionRefusedError:
                break
            except ConnectionResetError:  # (it came just before)
                continue
        memcached.resume()
        assert ask("", b"", b"END\r\n", peer) == b"VALUE a 0 1\r\n1\r\nEND\r\n"
        assert peer.recv(1) == b""
    assert proxy.process.wait(30) == 0


def pids_of(address):
    """Returns the processes that answer, of many connections."""
    found = set()
    for _ in range(64):
        told = ask(address, b"stats proxy\r\n", b"END\r\n")
        found.add(int(told.partition(b"STAT pid ")[2].split()[0]))
    return found


@pytest.mark.parametrize("unix", [False, True])
def test_several_processes_share_the_port_and_one_that_dies_is_replaced(
    started, start_memcached, tmp_path, unix
):
    listen = f"unix:{tmp_path / 'socket'}" if unix else "127.0.0.1:0"
    proxy = started(
        f"--listen={listen}", "--processes=2", f"--server={start_memcached().address}",
    )  # fmt: skip
    proxy.said("listening on", 2)
    if unix:
        with socket.socket(socket.AF_UNIX) as peer:
            peer.connect(str(tmp_path / "socket"))
            assert ask("", b"version\r\n", peer=peer).startswith(b"VERSION")
    else:
        address = proxy.address()
        before = pids_of(address)
        assert len(before) == 2
        os.kill(before.pop(), signal.SIGKILL)
        proxy.said("listening on", 3)
        assert len(pids_of(address)) == 2
    assert proxy.end() == 0
    assert not (tmp_path / "socket").exists()


def test_the_processes_end_with_the_one_that_began_them(started, start_memcached):
    port = free_port()
    proxy = started(
        f"--listen=127.0.0.1:{port}", "--processes=2", f"--server={start_memcached().address}",
    )  # fmt: skip
    proxy.said("listening on", 2)
    pids = pids_of(f"127.0.0.1:{port}")
    proxy.process.kill()
    proxy.process.wait()
    end = time.monotonic() + 30
    while any(Path(f"/proc/{pid}").exists() for pid in pids) and Path("/proc").exists():
        if all("Z" in state_of(pid) for pid in pids):
            break
        assert time.monotonic() < end
        time.sleep(0.01)


def state_of(pid):
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except OSError:
        return "Z"
