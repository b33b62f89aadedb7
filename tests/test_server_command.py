"""tornado_memcache.server_command: ``python -m tornado_memcache server`` as a process."""

import re
import signal
import socket
import subprocess
import sys

import pytest


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
    assert status == 1 and "in use" in said
