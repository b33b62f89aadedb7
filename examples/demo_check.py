"""Drives the demo over HTTP as a person would, and tells what it saw.

    ./run demo-check

It has a memcached and ports of its own, whatever the environment says.
Exit status: 0 if all was as it should be, 1 if anything differed, 2 without
a ``memcached`` on PATH. No process is left behind.
"""

import contextlib
import html
import os
import re
import select
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from pathlib import Path

from demo import REQUEST_TIMEOUT, end_memcached, free_port, start_memcached

#: What a busy machine may add to a deadline (seconds).
LATE = 0.25
#: A memcached that is back is used again within this (seconds).
BACK = 1.0
#: A page must come at all within this (seconds).
PATIENCE = 10


class Visitor:
    """Asks for pages, prints each line with its milliseconds, counts what differs."""

    def __init__(self, url, server):
        self.url = url
        self.server = server
        self.differences = 0
        # Not through a proxy, whatever the environment says.
        self.browser = urllib.request.build_opener(urllib.request.ProxyHandler({}))

    def fetch(self, path):
        """Returns the status, the text without tags, and the seconds it took."""
        begun = time.monotonic()
        try:
            with self.browser.open(self.url + path, timeout=PATIENCE) as page:
                status, body = page.status, page.read()
        except urllib.error.HTTPError as error:
            with error:
                status, body = error.code, error.read()
        took = time.monotonic() - begun
        text = re.sub(r"(?s)<title>.*?</title>|<style>.*?</style>|<[^>]*>", " ", body.decode())
        return status, " ".join(html.unescape(text).split()), took

    def tell(self, good, what, took, saw):
        self.differences += not good
        word, saw = ("ok     ", f"{saw:.110}") if good else ("DIFFERS", saw)
        print(f"{word} {took * 1000:5.0f} ms  {what}: {saw}", flush=True)

    def see(self, path, what, *expected, status=200, within=PATIENCE, after=0.0):
        """Asks once; ``expected`` are regular expressions that the text has to match."""
        seen, text, took = self.fetch(path)
        good = seen == status and all(re.search(one, text) for one in expected)
        self.tell(good and after <= took <= within, f"{what}, GET {path}", took, f"{seen} {text}")
        return text

    def see_failure(self, path, what, phase, **bounds):
        server = re.escape(self.server)
        self.see(path, what, f"memcached {server} failed {phase}", status=503, **bounds)

    def see_soon(self, path, what, *expected):
        """Reloads until the page is right, for at most a second."""
        begun = time.monotonic()
        while True:
            seen, text, _ = self.fetch(path)
            good = seen == 200 and all(re.search(one, text) for one in expected)
            took = time.monotonic() - begun
            if good or took > BACK:
                break
            time.sleep(0.02)
        self.tell(good and took <= BACK, f"{what}, GET {path}", took, f"{seen} {text}")


class Memcached:
    """The memcached of this check: it can be stopped, resumed, killed and restarted."""

    def __init__(self, binary):
        self.binary = binary
        self.port = free_port()
        self.process = start_memcached(binary, self.port)

    def send(self, number):
        self.process.send_signal(number)
        if number == signal.SIGSTOP:
            os.waitid(os.P_PID, self.process.pid, os.WSTOPPED | os.WNOWAIT)

    def kill(self):
        end_memcached(self.process)

    def restart(self):
        self.process = start_memcached(self.binary, self.port)


@contextlib.contextmanager
def running_demo(server):
    """Starts the demo on a free port, and gives its URL. Its log is printed if that fails."""
    environment = {**os.environ, "MEMCACHED_SERVERS": server, "PORT": "0"}
    line = [sys.executable, str(Path(__file__).with_name("demo.py"))]
    with (
        tempfile.TemporaryFile() as log,
        subprocess.Popen(line, env=environment, stdout=subprocess.PIPE, stderr=log) as process,
    ):
        try:
            said = b""
            while not (url := re.search(rb"(http://[\d.:]+) .*\n", said)):  # (a whole line)
                readable, _, _ = select.select([process.stdout], [], [], PATIENCE)
                more = os.read(process.stdout.fileno(), 4096) if readable else b""
                if not more:
                    log.seek(0)
                    sys.exit(f"the demo did not start: {said.decode()}{log.read().decode()}")
                said += more
            print(said.decode(), end="")
            yield url[1].decode()
            process.terminate()
            if process.wait(PATIENCE) != 0:
                sys.exit(f"the demo ended with status {process.returncode}")
        finally:
            process.kill()


def check(visitor, memcached):
    deadline = {"after": REQUEST_TIMEOUT - 0.05, "within": REQUEST_TIMEOUT + LATE}

    visitor.see("/", "the first page", "/page/tea", "/counter", "/multi")
    page = visitor.see("/page/tea", "a miss", "Miss: it is stored now", "tea, as written at")
    written = re.escape("tea, as written at " + page.partition(" at ")[2][:8])
    visitor.see("/page/tea", "a hit", "Hit: .*out of the cache", written)
    visitor.see("/counter", "a counter", r"Visits: 1\b")
    visitor.see("/counter", "and again", r"Visits: 2\b")
    visitor.see("/multi?k=tea&k=coffee", "several pages", written, "coffee ?: not there")

    print("memcached is stopped (SIGSTOP)")
    memcached.send(signal.SIGSTOP)
    visitor.see_failure("/page/tea", "the failure page", "while waiting for the reply", **deadline)
    print("memcached is resumed (SIGCONT)")
    memcached.send(signal.SIGCONT)
    visitor.see_soon("/page/tea", "right again", "Hit: ", written)
    visitor.see("/counter", "the counter goes on", r"Visits: 3\b")

    print("memcached is killed (SIGKILL)")
    memcached.kill()
    visitor.see_failure("/page/tea", "the failure page", "while connecting", within=LATE)
    print("memcached is started again, on the same port")
    memcached.restart()
    visitor.see_soon("/page/tea", "right again", "Miss: it is stored now")
    visitor.see("/page/tea", "a hit", "Hit: .*out of the cache")
    visitor.see("/counter", "a new counter", r"Visits: 1\b")


def main():
    binary = shutil.which("memcached")
    if binary is None:
        print("no memcached on PATH: apt-get install memcached", file=sys.stderr)
        return 2
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))
    memcached = Memcached(binary)
    try:
        server = f"127.0.0.1:{memcached.port}"
        with running_demo(server) as url:
            visitor = Visitor(url, server)
            check(visitor, memcached)
    finally:
        memcached.kill()
    print(f"{visitor.differences} differences" if visitor.differences else "all as it should be")
    return 1 if visitor.differences else 0


if __name__ == "__main__":
    sys.exit(main())
