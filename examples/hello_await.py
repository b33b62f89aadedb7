"""A page out of memcached, with await.

    .venv/bin/python examples/hello_await.py, then http://127.0.0.1:8888

The same page as in ``hello_callback.py``. A call that is given no callback
returns a Future. Its failure is an exception where it is awaited, so a page
that can be had without a cache is served without one.
"""

import asyncio
import os
import time

from tornado.web import Application, RequestHandler

from tornado_memcache import Client, MemcacheError


class HelloHandler(RequestHandler):
    def initialize(self, mc):
        self.mc = mc

    async def get(self):
        try:
            greeting = await self.mc.get("hello")
        except MemcacheError:
            self.write(self.make_greeting())
            return
        if greeting is None:
            greeting = self.make_greeting()
            self.mc.set("hello", greeting, exptime=10)  # nobody need wait for it
        self.write(greeting)

    def make_greeting(self):
        return f"Hello, it is {time.ctime()}.\n"


def make_app(servers):
    mc = Client(servers)
    return Application([("/", HelloHandler, {"mc": mc})], mc=mc)


async def main():
    app = make_app(os.environ.get("MEMCACHED_SERVERS", "127.0.0.1:11211").split(","))
    app.listen(int(os.environ.get("PORT", "8888")), "127.0.0.1")
    await asyncio.Event().wait()


if __name__ == "__main__":
    asyncio.run(main())
