"""The example of tornadoasyncmemcache (2013), on Tornado 6.

    .venv/bin/python examples/old_module_app.py, then http://127.0.0.1:8888/

As in that module's docstring, but for its import, its decorator (Tornado 6
has no ``tornado.web.asynchronous``), ``self.on_fail`` where ``_on_fail`` was
meant, and a ``finish`` after ``send_error``, which finishes by itself. Stop
memcached (``kill -STOP``) and reload: ``_on_fail`` runs by request_timeout.
"""

import asyncio
import os
import time

import tornado.web

from tornado_memcache import tornadoasyncmemcache as memcache
from tornado_memcache.web import asynchronous


class MainHandler(tornado.web.RequestHandler):
    def initialize(self, ccs):
        self.ccs = ccs

    @asynchronous
    def get(self):
        hello = time.strftime("Hello world @ %Y-%m-%d %H:%M:%S")
        self.ccs.set("test_data", hello, callback=self._get_start, fail_callback=self._on_fail)

    def _get_start(self, data):
        self.ccs.get("test_data", callback=self._get_end, fail_callback=self._on_fail)

    def _get_end(self, data):
        self.write(data)
        self.finish()

    def _on_fail(self, *args):
        self.send_error(500)


def make_app(servers):
    ccs = memcache.ClientPool(
        servers, maxclients=100, connect_timeout=0.05, request_timeout=0.1, dead_retry=10
    )
    return tornado.web.Application([("/", MainHandler, {"ccs": ccs})], ccs=ccs)


async def main():
    app = make_app(os.environ.get("MEMCACHED_SERVERS", "127.0.0.1:11211").split(","))
    app.listen(int(os.environ.get("PORT", "8888")), "127.0.0.1")
    await asyncio.Event().wait()


if __name__ == "__main__":
    asyncio.run(main())
