"""A page out of the cache, on python-memcached and migrated from it.

    .venv/bin/python examples/blocking_handler.py    on python-memcached: blocks everybody
    .venv/bin/python examples/migrated_handler.py    on tornado_memcache: an import, the awaits

Then http://127.0.0.1:8888/tea. The two files differ in nothing else. ``./run test`` makes
the environment, with python-memcached in it.
"""

import asyncio
import os

import memcache
from tornado.web import Application, RequestHandler


def load(mc, name):
    article = mc.get(f"article:{name}")
    if article is None:
        article = {"name": name, "text": f"All about {name}"}
        mc.set(f"article:{name}", article, time=60)
    return article


class ArticleHandler(RequestHandler):
    def get(self, name):
        mc = self.settings["mc"]
        article = load(mc, name)
        mc.add(f"views:{name}", 0)
        views = mc.incr(f"views:{name}")
        self.write(f"{article['text']} (views: {views})\n")

    def delete(self, name):
        mc = self.settings["mc"]
        if not mc.delete_multi([name], key_prefix="article:"):
            self.set_status(503)


def make_app(servers):
    mc = memcache.Client(servers, socket_timeout=0.5)
    return Application([("/([a-z]+)", ArticleHandler)], mc=mc)


async def main():
    app = make_app(os.environ.get("MEMCACHED_SERVERS", "127.0.0.1:11211").split(","))
    app.listen(int(os.environ.get("PORT", "8888")), "127.0.0.1")
    await asyncio.Event().wait()


if __name__ == "__main__":
    asyncio.run(main())
