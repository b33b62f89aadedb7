"""A slow page under load, without get_or_set and with it: how often is it computed?

    MEMCACHED_SERVERS=cache1:11211 .venv/bin/python examples/stampede_app.py

Forty visitors ask for each. Then /plain and /guarded are served until stopped.
"""

import asyncio
import os
import time

from tornado.httpclient import AsyncHTTPClient
from tornado.web import Application, RequestHandler

from tornado_memcache import Client

VISITORS, SECONDS, computed = 40, 3.0, {"plain": 0, "guarded": 0}


async def render(name):
    computed[name] += 1
    await asyncio.sleep(0.3)
    return f"{name} page, number {computed[name]}\n"


class PageHandler(RequestHandler):
    async def get(self, name):
        mc = self.settings["mc"]
        if name == "guarded":
            page = await mc.get_or_set("guarded", lambda: render("guarded"), 1, stale=30)
        elif (page := await mc.get("plain")) is None:
            page = await render("plain")
            await mc.set("plain", page, exptime=1)
        self.finish(page)


def make_app(servers):
    return Application([("/(plain|guarded)", PageHandler)], mc=Client(servers))


async def visit(browser, url):
    until = time.monotonic() + SECONDS
    while time.monotonic() < until:
        await browser.fetch(url)


async def main():
    app = make_app(os.environ.get("MEMCACHED_SERVERS", "127.0.0.1:11211").split(","))
    app.listen(port := int(os.environ.get("PORT", "8888")), "127.0.0.1")
    browser = AsyncHTTPClient(max_clients=VISITORS)
    for name in computed:
        visits = [visit(browser, f"http://127.0.0.1:{port}/{name}") for _ in range(VISITORS)]
        await asyncio.gather(*visits)
        print(f"/{name} under load was computed {computed[name]} times", flush=True)
    await asyncio.Event().wait()


if __name__ == "__main__":
    asyncio.run(main())
