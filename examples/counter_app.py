"""Numbers and lists that many processes change at once.

    .venv/bin/python examples/counter_app.py
    curl -X POST http://127.0.0.1:8888/count
    curl -X POST http://127.0.0.1:8888/guests/ann

``incr`` is atomic on the server, but misses where there is no number yet;
``add`` makes one, for one of those who try. What the server cannot do for us,
``gets`` and ``cas`` do: fetch, change, store unless it was changed meanwhile.
"""

import asyncio
import os

from tornado.web import Application, RequestHandler

from tornado_memcache import Client


class CountHandler(RequestHandler):
    async def post(self):
        mc = self.settings["mc"]
        count = await mc.incr("count")
        while count is None:  # no number yet: the first of all who see that makes it
            count = 1 if await mc.add("count", 1) else await mc.incr("count")
        self.write(f"{count}\n")


class GuestsHandler(RequestHandler):
    async def post(self, guest):
        mc = self.settings["mc"]
        stored = False
        while not stored:
            guests, cas_unique = await mc.gets("guests")
            if guests is None:
                guests, stored = guest, await mc.add("guests", guest)
            else:
                guests = f"{guests} {guest}"
                stored = await mc.cas("guests", guests, cas_unique)
        self.write(f"{guests}\n")


def make_app(servers):
    handlers = [("/count", CountHandler), ("/guests/([a-z]+)", GuestsHandler)]
    return Application(handlers, mc=Client(servers))


async def main():
    app = make_app(os.environ.get("MEMCACHED_SERVERS", "127.0.0.1:11211").split(","))
    app.listen(int(os.environ.get("PORT", "8888")), "127.0.0.1")
    await asyncio.Event().wait()


if __name__ == "__main__":
    asyncio.run(main())
