"""A page out of memcached, in callback style.

    .venv/bin/python examples/hello_callback.py, then http://127.0.0.1:8888

The first visit misses and stores the page, the next ones hit, and after ten
seconds it is made anew. ``@asynchronous`` keeps the request open until
``finish()``. Should a call fail, it ends the request as an exception in the
handler does.
"""

import asyncio
import os
import time

from tornado.web import Application, RequestHandler

from tornado_memcache import Client
from tornado_memcache.web import asynchronous


class HelloHandler(RequestHandler):
    def initialize(self, mc):
        self.mc = mc

    @asynchronous
    def get(self):
        self.mc.get("hello", callback=self.on_hello)

    def on_hello(self, greeting):
        if greeting is not None:
            self.finish(greeting)
        else:
            self.greeting = f"Hello, it is {time.ctime()}.\n"
            self.mc.set("hello", self.greeting, exptime=10, callback=self.on_stored)

    def on_stored(self, stored):
        self.finish(self.greeting)


def make_app(servers):
    mc = Client(servers)
    return Application([("/", HelloHandler, {"mc": mc})], mc=mc)


async def main():
    app = make_app(os.environ.get("MEMCACHED_SERVERS", "127.0.0.1:11211").split(","))
    app.listen(int(os.environ.get("PORT", "8888")), "127.0.0.1")
    await asyncio.Event().wait()


if __name__ == "__main__":
    asyncio.run(main())
