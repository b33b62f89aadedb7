"""tornado_memcache.workers: processes that are begun, told, replaced, and that end."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
WORK = """\
import logging, os, signal, sys, time
from tornado_memcache.workers import Workers
logging.basicConfig(format="%(message)s", level=logging.INFO)
def work(index):
    def told(number, frame):
        os.write(1, b"%d told %d\\n" % (index, number))
        if number == signal.SIGTERM:
            ended.append(0)
    ended = []
    for number in (signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, told)
    os.write(1, b"%d begins %d\\n" % (index, os.getpid()))
    while not ended:
        time.sleep(0.01)
    return STATUS
sys.exit(Workers(2, work, lambda: os.write(1, b"anew\\n")).run())
"""


@pytest.fixture
def started():
    """Starts a process that runs two workers; its lines come from ``stdout``."""
    running = []

    def start(status=0):
        process = subprocess.Popen(
            [sys.executable, "-c", WORK.replace("STATUS", str(status))],
            cwd=ROOT,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        running.append(process)
        return process

    yield start
    for process in running:
        process.kill()
        process.communicate()


def begun(process, count):
    """Returns the pids of the next ``count`` that begin, by index."""
    lines = [process.stdout.readline().split() for _ in range(count)]
    assert all(line[1] == "begins" for line in lines), lines
    return {int(line[0]): int(line[2]) for line in lines}


@pytest.mark.parametrize("status", [0, 3])
def test_they_are_told_of_signals_and_end_together(started, status):
    process = started(status)
    assert begun(process, 2).keys() == {0, 1}
    process.send_signal(signal.SIGHUP)
    assert process.stdout.readline() == "anew\n"
    assert {process.stdout.readline() for _ in range(2)} == {"0 told 1\n", "1 told 1\n"}
    process.send_signal(signal.SIGTERM)
    assert process.wait(20) == int(status != 0)
    assert set(process.stdout.read().splitlines()) == {"0 told 15", "1 told 15"}


def test_one_that_dies_is_replaced_and_not_at_once(started):
    process = started()
    first = begun(process, 2)
    at = time.monotonic()
    for _ in range(2):
        os.kill(first[1], signal.SIGKILL)
        again = begun(process, 1)
        assert again.keys() == {1} and again[1] != first[1]
        first.update(again)
    assert time.monotonic() - at > 0.9  # (the second was begun when the first had been tried)
    process.send_signal(signal.SIGTERM)
    assert process.wait(20) == 0
    said = process.stderr.read()
    assert said.count("has ended, with status -9: another is begun") == 2
