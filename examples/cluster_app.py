"""An application over several memcacheds, which come and go while it serves.

    MEMCACHED_SERVERS=cache1,cache2,cache3 .venv/bin/python examples/cluster_app.py
    curl http://127.0.0.1:8888/users/ann; curl http://127.0.0.1:8888/servers
    curl -X PUT -d cache2,cache3,cache4 http://127.0.0.1:8888/servers

While a server is dead the next one of the ring takes its keys. The second
page is for operators: keep it from others.
"""

import asyncio
import os

from tornado.web import Application, RequestHandler

from tornado_memcache import Client, InvalidServer, MemcacheError, boundary
from tornado_memcache.web import asynchronous

OPTIONS = {"ring": "rendezvous", "on_dead": "rehash", "idle_timeout": 60, "resolve_interval": 30}


class UserHandler(RequestHandler):
    @asynchronous
    def get(self, name):
        with boundary(lambda error: self.send_error(503), once=True, timeout=0.5):
            self.settings["mc"].set(f"seen:{name}", "just now", exptime=600)
            keys = [f"{what}:{name}" for what in ("seen", "mail", "name")]
            self.settings["mc"].get_multi(keys, callback=self.finish)


class ServersHandler(RequestHandler):
    async def get(self):
        mc = self.settings["mc"]
        try:
            versions = await mc.version()
        except MemcacheError:  # (all of them are away)
            versions = {}
        self.finish({one.name: versions.get(one.name) for one in mc.servers})

    def put(self):
        try:
            self.settings["mc"].set_servers(self.request.body.decode().split(","))
        except InvalidServer as error:
            self.send_error(400, reason=str(error))


def make_app(servers):
    handlers = [("/users/([a-z]+)", UserHandler), ("/servers", ServersHandler)]
    return Application(handlers, mc=Client(servers, **OPTIONS))


async def main():
    app = make_app(os.environ.get("MEMCACHED_SERVERS", "127.0.0.1:11211").split(","))
    app.listen(int(os.environ.get("PORT", "8888")), "127.0.0.1")
    await asyncio.Event().wait()


if __name__ == "__main__":
    asyncio.run(main())
