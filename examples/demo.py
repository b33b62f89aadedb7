"""The demo: pages out of memcached, and one page for when it is away.

    ./run demo, then http://127.0.0.1:8888

Servers are taken from MEMCACHED_SERVERS (separated by commas or spaces), else
a ``memcached`` found on PATH is started on a free port and ended with the
demo, else a server is embedded in this process. PORT names another port than
8888; 0 takes a free one.

All pages are in callback style: a chain of calls under one boundary, whose
failure page tells which server failed, and what we were waiting for.
"""

import asyncio
import contextlib
import os
import random
import re
import shutil
import signal
import socket
import subprocess
import sys
import time

from tornado.escape import xhtml_escape
from tornado.httpserver import HTTPServer
from tornado.log import enable_pretty_logging
from tornado.netutil import bind_sockets
from tornado.web import Application, HTTPError, RequestHandler

from tornado_memcache import Client, boundary
from tornado_memcache.server import EmbeddedServer
from tornado_memcache.web import asynchronous

REQUEST_TIMEOUT = 0.5
DEAD_RETRY = 1.0
#: What a page may be called.
NAME = r"[a-zA-Z0-9_-]{1,100}"

LAYOUT = """<!DOCTYPE html>
<html lang="en">
<meta charset="utf-8">
<title>{title}</title>
<style>
  body {{ font: 1.1em/1.5 sans-serif; max-width: 40em; margin: 3em auto; padding: 0 1em }}
  code {{ background: #eee; padding: 0 .3em }}
</style>
<h1>{title}</h1>
{body}
<p><a href="/">All pages</a></p>
</html>
"""

HOME = """
<p>Everything here comes out of memcached: <code>{servers}</code></p>
<ul>
  <li><a href="/page/tea">/page/tea</a>: a read-through page. The first visit misses and
      stores it, the next ones hit. Any other name will do.</li>
  <li><a href="/counter">/counter</a>: counts its visits.</li>
  <li><a href="/multi?k=tea&amp;k=coffee&amp;k=water">/multi?k=tea&amp;k=coffee&amp;k=water</a>:
      several pages, fetched at once.</li>
</ul>
<p>Now take memcached away and reload a page. When it is stopped (<code>kill -STOP</code>),
the failure page comes after {timeout} s, and at once when it is killed, or was stopped for
so long that it is taken for dead. Bring it back (<code>kill -CONT</code>), and within a second
or so the pages are right again.</p>
"""

#: What a call was waiting for when it failed, in plain words.
PHASES = {
    "waiting": "while it waited for a free connection",
    "resolving": "while the name was looked up",
    "connecting": "while connecting",
    "writing": "while sending the request",
    "reply": "while waiting for the reply",
}


class Page(RequestHandler):
    """What the pages share: the client, the look, the failure page."""

    @property
    def mc(self):
        return self.settings["mc"]

    def show(self, title, body):
        self.finish(LAYOUT.format(title=xhtml_escape(title), body=body))

    def on_cache_failure(self, error):
        when = PHASES.get(getattr(error, "phase", None))
        what = f"failed {when}" if when else "could not be used"
        self.set_status(503)
        self.show(
            "The cache is away",
            f"<p>memcached <code>{xhtml_escape(str(error.server))}</code> {what}.</p>"
            f"<p>In its own words: {xhtml_escape(str(error))}</p>",
        )


class HomePage(Page):
    def get(self):
        servers = " ".join(server.name for server in self.mc.servers)
        self.show("tornado_memcache", HOME.format(servers=servers, timeout=REQUEST_TIMEOUT))


class ReadThroughPage(Page):
    @asynchronous
    def get(self, key):
        self.key = key
        with boundary(self.on_cache_failure, once=True):
            self.mc.get(f"page:{key}", callback=self.on_page)

    def on_page(self, page):
        if page is not None:
            self.show_page("Hit: this page came out of the cache.", page)
        else:
            page = f"{self.key}, as written at {time.strftime('%H:%M:%S')}"
            self.mc.set(
                f"page:{self.key}",
                page,
                callback=lambda stored: self.show_page("Miss: it is stored now.", page),
            )

    def show_page(self, how, page):
        self.show(self.key, f"<p>{how}</p><p><b>{xhtml_escape(page)}</b></p>")


class CounterPage(Page):
    @asynchronous
    def get(self):
        with boundary(self.on_cache_failure, once=True):
            self.mc.incr("counter", callback=self.on_count)

    def on_count(self, count):
        if count is not None:
            self.show("Counter", f"<p>Visits: <b>{count}</b></p>")
        else:  # no number yet: the first of all who see that makes it
            self.mc.add("counter", 1, callback=self.on_added)

    def on_added(self, added):
        if added:
            self.on_count(1)
        else:
            self.mc.incr("counter", callback=self.on_count)


class MultiPage(Page):
    @asynchronous
    def get(self):
        self.keys = self.get_arguments("k")
        if not all(re.fullmatch(NAME, key) for key in self.keys):
            raise HTTPError(400, reason="k must be a name")
        with boundary(self.on_cache_failure, once=True):
            self.mc.get_multi([f"page:{key}" for key in self.keys], callback=self.on_pages)

    def on_pages(self, pages):
        lines = [
            f'<li><a href="/page/{key}">{key}</a>: '
            f"<b>{xhtml_escape(pages.get(f'page:{key}', 'not there'))}</b></li>"
            for key in self.keys
        ]
        # Of several servers some may fail: the others' pages are shown.
        lines += [f"<li>{xhtml_escape(server)} is away</li>" for server in pages.errors]
        self.show("Several pages", f"<ul>{''.join(lines)}</ul>")


def make_app(servers):
    return Application(
        [
            ("/", HomePage),
            (f"/page/({NAME})", ReadThroughPage),
            ("/counter", CounterPage),
            ("/multi", MultiPage),
        ],
        mc=Client(servers, request_timeout=REQUEST_TIMEOUT, dead_retry=DEAD_RETRY),
    )


def free_port():
    """Returns a port on which nobody listens now."""
    while True:
        # Not one of those that the system gives to outgoing connections.
        port = random.randrange(20_000, 32_000)
        with contextlib.suppress(OSError), socket.socket() as probe:
            probe.bind(("127.0.0.1", port))
            return port


def start_memcached(binary, port):
    """Returns the process of a memcached that listens on ``port``."""
    line = [binary, "-l", "127.0.0.1", "-p", str(port), "-U", "0"]
    if os.geteuid() == 0:
        line += ["-u", "root"]  # it does not run as root unless it is told to
    process = subprocess.Popen(line, stdin=subprocess.DEVNULL)
    try:
        for _ in range(500):
            time.sleep(0.01)
            if process.poll() is not None:
                sys.exit(f"{binary} ended with status {process.returncode}")
            with contextlib.suppress(OSError):
                socket.create_connection(("127.0.0.1", port)).close()
                return process
        sys.exit(f"{binary} does not listen on port {port}")
    except BaseException:
        end_memcached(process)
        raise


def end_memcached(process):
    process.kill()  # even if somebody has stopped it; nothing in it is worth keeping
    process.wait()


async def find_servers(cleanup):
    """Returns the servers and how they were found; ``cleanup`` ends what was started."""
    if servers := os.environ.get("MEMCACHED_SERVERS", "").replace(",", " ").split():
        return servers, "named by MEMCACHED_SERVERS"
    if binary := shutil.which("memcached"):
        port = free_port()
        process = start_memcached(binary, port)
        cleanup.callback(end_memcached, process)
        return [f"127.0.0.1:{port}"], f"{binary}, started as process {process.pid}"
    server = await cleanup.enter_async_context(EmbeddedServer())
    return [server.address], "embedded in this process, for want of a memcached on PATH"


async def main():
    enable_pretty_logging()
    stopped = asyncio.Event()
    for number in (signal.SIGINT, signal.SIGTERM):
        asyncio.get_running_loop().add_signal_handler(number, stopped.set)
    port = os.environ.get("PORT", "8888")
    if not port.isdigit():
        sys.exit(f"PORT must be a number, not {port!r}")
    port = int(port)
    try:
        sockets = bind_sockets(port, "127.0.0.1")
    except OSError as error:
        sys.exit(f"cannot serve on port {port} ({error.strerror}); name another one: PORT=8889")
    async with contextlib.AsyncExitStack() as cleanup:
        servers, how = await find_servers(cleanup)
        try:
            app = make_app(servers)
        except ValueError as error:
            sys.exit(f"MEMCACHED_SERVERS: {error}")
        cleanup.callback(app.settings["mc"].close)
        http = HTTPServer(app)
        http.add_sockets(sockets)
        cleanup.push_async_callback(http.close_all_connections)
        cleanup.callback(http.stop)
        print(f"memcached: {' '.join(servers)} ({how})")
        port = sockets[0].getsockname()[1]
        print(f"Serving on http://127.0.0.1:{port} until stopped", flush=True)
        await stopped.wait()


if __name__ == "__main__":
    asyncio.run(main())
