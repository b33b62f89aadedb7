"""One place for all that may fail: a boundary around a chain of callbacks.

    .venv/bin/python examples/boundary_app.py, then http://127.0.0.1:8888/tea

The page is three calls deep, and no call has a failure callback of its own.
What fails goes to the boundary under which the chain began; with ``once``
the first failure is delivered and the other calls are cancelled, so there is
one failure page. Stop memcached (``kill -STOP``) and reload to see it.
"""

import asyncio
import os

from tornado.web import Application, RequestHandler

from tornado_memcache import Client, boundary
from tornado_memcache.web import asynchronous


class ArticleHandler(RequestHandler):
    def initialize(self, mc):
        self.mc = mc

    @asynchronous
    def get(self, name):
        self.name = name
        with boundary(self.on_cache_failure, once=True):
            self.mc.incr(f"views:{name}", callback=self.on_views)

    def on_views(self, views):
        if views is None:  # the first view: there is nothing to add to
            self.mc.add(f"views:{self.name}", 1, callback=lambda added: self.on_views(1))
        else:
            self.views = views
            self.mc.get(f"text:{self.name}", callback=self.on_text)

    def on_text(self, text):
        self.finish(f"{text or 'not written yet'} (views: {self.views})\n")

    def on_cache_failure(self, error):
        self.set_status(503)
        self.finish(f"Please come back later: {type(error).__name__}\n")


def make_app(servers):
    mc = Client(servers, request_timeout=0.5)
    return Application([("/([a-z]+)", ArticleHandler, {"mc": mc})], mc=mc)


async def main():
    app = make_app(os.environ.get("MEMCACHED_SERVERS", "127.0.0.1:11211").split(","))
    app.listen(int(os.environ.get("PORT", "8888")), "127.0.0.1")
    await asyncio.Event().wait()


if __name__ == "__main__":
    asyncio.run(main())
