"""tornado_memcache.server_command: ``python -m tornado_memcache server`` as a process."""

import argparse
import asyncio
import contextlib
import re
import signal
import socket
import subprocess
import sys

import pytest

from tornado_memcache import Client
from tornado_memcache.cli import main
from tornado_memcache.guest import Limits
from tornado_memcache.server_command import _server, add_arguments, size

from .certificates import issued, trusting
from .proxied import config_of


@pytest.fixture
def serve():
    """Starts the command; returns the process and what it says it listens on."""
    started = []

    def start(*flags):
        line = [sys.executable, "-m", "tornado_memcache", "server", *flags]
        process = subprocess.Popen(line, stderr=subprocess.PIPE, text=True)
        started.append(process)
        said = process.stderr.readline()
        found = re.search(r"INFO listening on (\S+)\n", said)
        assert found, said + process.stderr.read()
        return process, found[1]

    yield start
    for process in started:
        process.kill()
        process.wait()
        process.stderr.close()


def refused(*flags):
    """Returns the status and the line of a command that does not begin to serve."""
    line = [sys.executable, "-m", "tornado_memcache", "server", *flags]
    ran = subprocess.run(line, capture_output=True, text=True, timeout=60)
    assert ran.stdout == "" and ran.stderr.count("\n") == 1, ran.stderr
    return ran.returncode, ran.stderr


def asked(address, data):
    host, _, port = address.rpartition(":")
    with socket.create_connection((host, int(port)), timeout=10) as peer:
        peer.sendall(data)
        return peer.recv(1000)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_it_serves_until_a_signal(serve, number):
    process, address = serve("--port", "0")
    assert re.fullmatch(r"127\.0\.0\.1:[1-9]\d*", address)
    assert asked(address, b"version\r\n") == b"VERSION 1.6.18\r\n"
    process.send_signal(number)
    assert process.wait(30) == 0
    assert process.stderr.read().endswith("INFO ended\n")


def test_a_public_address_needs_leave(serve):
    status, said = refused("--port", "0", "--host", "0.0.0.0")
    assert status == 2 and "--allow-public" in said
    _, address = serve("--port", "0", "--host", "0.0.0.0", "--allow-public")
    assert asked(address, b"version\r\n") == b"VERSION 1.6.18\r\n"


def test_an_address_that_is_taken_is_status_1(serve):
    _, address = serve("--port", "0")
    status, said = refused("--port", address.rpartition(":")[2])
    assert status == 1 and "cannot listen on 127.0.0.1 port" in said and "in use" in said


def test_a_unix_socket(serve, tmp_path):
    path = tmp_path / "socket"
    process, address = serve("--unix", str(path), "--unix-mode", "660")
    assert address == f"unix:{path}"
    assert path.stat().st_mode & 0o777 == 0o660
    with socket.socket(socket.AF_UNIX) as peer:
        peer.connect(str(path))
        peer.sendall(b"mn\r\n")
        assert peer.recv(100) == b"MN\r\n"
    process.send_signal(signal.SIGTERM)
    assert process.wait(30) == 0 and not path.exists()


def test_a_unix_socket_that_is_taken_is_status_1(serve, tmp_path):
    path = str(tmp_path / "socket")
    serve("--unix", path)
    status, said = refused("--unix", path)
    assert status == 1 and f"cannot listen on {path}: Address already in use" in said
    with socket.socket(socket.AF_UNIX) as peer:
        peer.connect(path)
        peer.sendall(b"mn\r\n")
        assert peer.recv(100) == b"MN\r\n"


def test_limits_are_those_of_the_flags(serve):
    _, address = serve(
        "--port", "0", "--memory", "2m", "--max-item-size", "4k", "--max-items", "2",
        "--max-clients", "7",
    )  # fmt: skip
    told = asked(address, b"stats settings\r\n")
    assert b"STAT maxbytes 2097152\r\n" in told and b"STAT item_size_max 4096\r\n" in told
    assert b"STAT maxconns 7\r\n" in told
    sets = b"".join(b"set %b 0 0 1\r\nx\r\n" % key for key in (b"a", b"b", b"c"))
    with socket.create_connection(("127.0.0.1", int(address.rpartition(":")[2]))) as peer:
        peer.sendall(sets + b"get a b c\r\nquit\r\n")
        answer = b"".join(iter(lambda: peer.recv(1000), b""))
    assert answer == b"STORED\r\n" * 3 + b"VALUE b 0 1\r\nx\r\nVALUE c 0 1\r\nx\r\nEND\r\n"


@pytest.mark.parametrize(
    "flag, sent", [("--receive-timeout", b"set a 0 0 100\r\nx"), ("--idle-timeout", b"")]
)
def test_who_keeps_it_waiting_is_sent_away(serve, flag, sent):
    _, address = serve("--port", "0", flag, "0.3")
    host, _, port = address.rpartition(":")
    with socket.create_connection((host, int(port)), timeout=30) as peer:
        peer.sendall(sent)
        with contextlib.suppress(ConnectionResetError):
            assert peer.recv(1) == b""


def test_limits_of_clients_are_the_proxys_unless_told_otherwise():
    def limits(*flags):
        parser = argparse.ArgumentParser()
        add_arguments(parser)
        return _server(parser.parse_args(flags)).limits

    assert limits() == Limits(16 << 20, 30.0, 60.0, None) == config_of("--server=h").limits
    flags = ["--max-client-bytes=9", "--receive-timeout=0", "--write-timeout=2", "--idle-timeout=3"]
    assert limits(*flags) == Limits(9, None, 2.0, 3.0)
    assert limits(*flags) == config_of("--server=h", *flags).limits


def test_only_who_says_a_line_of_the_file_comes_in(serve, tmp_path):
    file = tmp_path / "users"
    file.write_text("alice:secret\n")
    _, address = serve("--port", "0", "--auth-file", str(file))
    assert asked(address, b"version\r\n") == b"CLIENT_ERROR unauthenticated\r\n"

    async def use(password):
        async with Client([address], username="alice", password=password) as client:
            return await client.set("k", 1), await client.get("k")

    assert asyncio.run(use("secret")) == (True, 1)


def test_tls(serve, tmp_path):
    chain, key = tmp_path / "chain.pem", tmp_path / "key.pem"
    certificate = issued("127.0.0.1")
    chain.write_bytes(b"".join(one.bytes() for one in certificate.cert_chain_pems))
    certificate.private_key_pem.write_to_path(key)
    _, address = serve("--port", "0", "--tls-certificate", str(chain), "--tls-key", str(key))

    async def use():
        async with Client([address], ssl=trusting()) as client:
            return await client.set("k", "v" * 100_000), len(await client.get("k"))

    assert asyncio.run(use()) == (True, 100_000)


@pytest.mark.parametrize(
    "flags, told",
    [
        (["--port", "65536"], "port must be from 0 to 65535"),
        (["--port", "x"], "--port: invalid int value"),
        (["--memory", "x"], "'x' is no size"),
        (["--max-item-size", "0"], "'0' is no size"),
        (["--max-items", "0"], "max_items must be from 1"),
        (["--max-clients", "0"], "max_clients must be from 1"),
        (["--max-client-bytes", "0"], "--max-client-bytes must be from 1"),
        (["--receive-timeout", "soon"], "--receive-timeout must be a number of seconds"),
        (["--write-timeout=-1"], "--write-timeout must be a finite number of seconds"),
        (["--idle-timeout", "inf"], "--idle-timeout must be a finite number of seconds"),
        (["--unix", ""], "--unix must be a path"),
        (["--unix", "x" * 108], "--unix must be a path"),
        (["--unix-mode", "999"], "'999' is no access mode"),
        (["--host", "nowhere"], "--host 'nowhere' is no IP address"),
        (["--auth-file", "no/such/file"], "--auth-file no/such/file: No such file"),
        (["--tls-certificate", "no/such/file"], "--tls-certificate no/such/file: No such file"),
        (["--tls-key", "x"], "--tls-key is given without --tls-certificate"),
        (["--nonsense"], "unrecognized arguments: --nonsense"),
    ],
)
def test_a_wrong_flag_is_one_line_and_status_2(flags, told, capsys):
    try:
        status = main(["server", *flags])
    except SystemExit as ended:
        status = ended.code
    said = capsys.readouterr()
    assert status == 2 and said.out == ""
    assert told in said.err and said.err.count("\n") == 1


def test_a_bad_file_is_told_by_its_line(tmp_path, capsys):
    file = tmp_path / "users"
    file.write_text("alice:secret\nbob\n")
    assert main(["server", "--auth-file", str(file)]) == 2
    said = capsys.readouterr().err
    assert "line 2 must be username:password" in said and "secret" not in said
    assert main(["server", "--tls-certificate", str(file)]) == 2
    assert "no certificate chain with its key" in capsys.readouterr().err


@pytest.mark.parametrize(
    "text, bytes_", [("1", 1), ("4k", 4096), ("64M", 64 << 20), ("1g", 1 << 30)]
)
def test_sizes(text, bytes_):
    assert size(text) == bytes_


@pytest.mark.parametrize("text", ["", "k", "-1", "0", "1.5m", "1t", "9" * 20, "\u0661"])
def test_what_is_no_size(text):
    with pytest.raises(argparse.ArgumentTypeError):
        size(text)
