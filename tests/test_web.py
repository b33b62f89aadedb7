"""tornado_memcache.web: what ends a request, over real HTTP with a real memcached.

Each test makes a handler, serves it, and asks as a browser does. The
ledger sees to the rest: no unexpected log line, no pending request, no open
stream.
"""

import asyncio
import contextlib
import gc
import logging
import socket
import time
import weakref
from datetime import timedelta
from functools import partial

import pytest
from tornado import gen
from tornado.httpclient import AsyncHTTPClient
from tornado.httpserver import HTTPServer
from tornado.ioloop import IOLoop
from tornado.iostream import IOStream
from tornado.netutil import bind_sockets
from tornado.web import Application, Finish, HTTPError, RequestHandler

from tornado_memcache import Client, boundary, web
from tornado_memcache.errors import ClientError, ConnectionFailed, InvalidKey, Timeout
from tornado_memcache.web import asynchronous

from .asked import until

#: What a machine under load may add to a deadline.
LATE = 0.25
REQUEST_TIMEOUT = 0.2


class Site:
    """A served handler, and what a browser would do with it."""

    def __init__(self, port):
        self.port = port
        self.url = f"http://127.0.0.1:{port}/"
        self.browser = AsyncHTTPClient(force_instance=True, max_clients=200)

    async def get(self, path="", **options):
        return await self.browser.fetch(self.url + path, raise_error=False, **options)

    async def visit(self, path=""):
        """Sends a request and returns its stream: to close it is to leave."""
        stream = IOStream(socket.socket())
        await stream.connect(("127.0.0.1", self.port))
        await stream.write(f"GET /{path} HTTP/1.1\r\nHost: x\r\n\r\n".encode())
        return stream


@contextlib.asynccontextmanager
async def served(handler, server=None, timeout=REQUEST_TIMEOUT):
    """Serves ``handler``, whose ``self.mc`` is a client of ``server``."""
    mc = Client([server.address], request_timeout=timeout) if server else None
    handler.mc = mc
    handler.ended = []
    http = HTTPServer(Application([("/(.*)", handler)]))
    sockets = bind_sockets(0, "127.0.0.1")
    http.add_sockets(sockets)
    site = Site(sockets[0].getsockname()[1])
    try:
        yield site
    finally:
        site.browser.close()
        http.stop()
        await http.close_all_connections()
        if mc is not None:
            mc.close()


class Page(RequestHandler):
    """Notes how its requests end, and shows errors as text."""

    def on_finish(self):
        self.ended.append("finish")

    def on_connection_close(self):
        self.ended.append("left")

    def write_error(self, status_code, exc_info=None, **kwargs):
        self.finish(f"{status_code} {type(exc_info[1]).__name__ if exc_info else ''}")


# -- the request stays open until finish()


@pytest.mark.gen_test
async def test_the_request_is_finished_by_a_callback_several_calls_deep(memcached):
    class Deep(Page):
        @asynchronous
        def get(self, key):
            self.mc.set(key, "page", callback=partial(self.on_set, key))

        def on_set(self, key, stored):
            self.mc.incr("visits", callback=partial(self.on_visits, key))

        def on_visits(self, key, visits):
            assert visits is None
            self.mc.add("visits", 7, callback=lambda added: self.mc.get(key, callback=self.on_page))

        async def on_page(self, page):
            visits = await self.mc.get("visits")
            self.finish(f"{page} {visits}")

    async with served(Deep, memcached) as site:
        response = await site.get("front")
        assert (response.code, response.body) == (200, b"page 7")
        assert Deep.ended == ["finish"]


@pytest.mark.gen_test
async def test_finish_may_be_called_before_the_method_returns(memcached):
    class Quick(Page):
        @asynchronous
        def get(self, path):
            self.finish("at once")

        @asynchronous
        def post(self, path):
            return self.finish("and returned")

    async with served(Quick, memcached) as site:
        assert (await site.get()).body == b"at once"
        assert (await site.get(method="POST", body="")).body == b"and returned"
        assert Quick.ended == ["finish"] * 2


@pytest.mark.gen_test
@pytest.mark.parametrize("coroutine", [lambda method: method, gen.coroutine])
async def test_a_coroutine_method_may_await_and_end_in_a_callback(memcached, coroutine):
    if coroutine is gen.coroutine:

        def get(self, key):
            yield self.mc.set(key, "old style")
            self.mc.get(key, callback=self.finish)
    else:

        async def get(self, key):
            await self.mc.set(key, "new style")
            self.mc.get(key, callback=self.finish)

    handler = type("Coroutine", (Page,), {"get": asynchronous(coroutine(get))})
    async with served(handler, memcached) as site:
        response = await site.get("k")
        assert (response.code, response.body[3:]) == (200, b" style")


@pytest.mark.gen_test
async def test_a_method_may_be_called_by_another(memcached):
    class Both(Page):
        @asynchronous
        def get(self, key):
            """Shows a key."""
            self.mc.get(key, default="nothing", callback=self.finish)

        @asynchronous
        def post(self, key):
            self.mc.set(key, "posted", callback=lambda stored: self.get(key))

    assert Both.get.__name__ == "get" and Both.get.__doc__ == "Shows a key."
    async with served(Both, memcached) as site:
        assert (await site.get("k")).body == b"nothing"
        assert (await site.get("k", method="POST", body="")).body == b"posted"


@pytest.mark.gen_test
async def test_a_detached_request_has_ended():
    class Upgraded(Page):
        @asynchronous
        def get(self, path):
            self.detach().write(b"HTTP/1.1 200 OK\r\nContent-Length: 3\r\n\r\nraw")

    async with served(Upgraded) as site:
        assert (await site.get()).body == b"raw"
        assert Upgraded.ended == []


def test_a_generator_is_refused():
    with pytest.raises(TypeError, match="not generators"):

        @asynchronous
        def get(self):
            yield


# -- what fails ends the request, once


class Failing(Page):
    logged: list[BaseException] = []

    def log_exception(self, kind, error, trace):
        assert kind is type(error) and trace is error.__traceback__
        self.logged.append(error)
        super().log_exception(kind, error, trace)

    @asynchronous
    def get(self, where):
        if where == "method":
            raise KeyError("x")
        if where == "key":
            self.mc.get("a key")
        self.mc.get("k", callback=partial(getattr(self, where), self.mc))

    def callback(self, mc, value):
        raise ZeroDivisionError

    def deep(self, mc, value):
        mc.get("k", callback=lambda value: mc.get("k", callback=partial(self.callback, mc)))

    def stop_iteration(self, mc, value):
        next(iter(()))

    async def coroutine(self, mc, value):
        await asyncio.sleep(0.01)
        raise ZeroDivisionError

    def call(self, mc, value):
        mc.set("text", "text", callback=lambda stored: mc.incr("text"))

    def http_error(self, mc, value):
        raise HTTPError(404)

    def finish_raised(self, mc, value):
        self.set_status(202)
        raise Finish("that is all")


@pytest.mark.gen_test
@pytest.mark.parametrize(
    "where, error",
    [
        ("method", KeyError),
        ("key", InvalidKey),
        ("callback", ZeroDivisionError),
        ("deep", ZeroDivisionError),
        ("coroutine", ZeroDivisionError),
        ("stop_iteration", RuntimeError),
        ("call", ClientError),
    ],
)
async def test_a_failure_is_a_500_and_one_log_line(memcached, expect_log, where, error):
    expected = expect_log("tornado.application", f"^Uncaught exception GET /{where}", times=1)
    expect_log("tornado.access", "^500 GET", times=1)
    Failing.logged = []
    async with served(Failing, memcached) as site:
        response = await site.get(where)
        assert (response.code, response.body) == (500, f"500 {error.__name__}".encode())
        assert [type(one) for one in Failing.logged] == [error]
        assert expected.records[0].exc_info[1] is Failing.logged[0]
        assert Failing.ended == ["finish"]


@pytest.mark.gen_test
async def test_tornados_own_exceptions_keep_their_sense(memcached, expect_log):
    expect_log("tornado.access", "^404 GET", times=1)
    Failing.logged = []
    async with served(Failing, memcached) as site:
        assert (await site.get("http_error")).body == b"404 HTTPError"
        response = await site.get("finish_raised")
        assert (response.code, response.body) == (202, b"that is all")
        assert [type(one) for one in Failing.logged] == [HTTPError]


@pytest.mark.gen_test
async def test_the_first_failure_cancels_the_other_calls(memcached, expect_log):
    expect_log("tornado.application", "^Uncaught exception GET", times=1)
    expect_log("tornado.access", "^500 GET", times=1)
    came = []

    class Many(Page):
        @asynchronous
        def get(self, path):
            for number in range(100):
                self.mc.get(f"k{number}", callback=self.on_value)

        def on_value(self, value):
            came.append(value)
            raise ZeroDivisionError

    async with served(Many, memcached) as site:
        assert (await site.get()).code == 500
        assert await Many.mc.get("k") is None
        assert came == [None]


@pytest.mark.gen_test
async def test_a_failing_callback_does_not_wait_for_a_coroutine_method(memcached, expect_log):
    expect_log("tornado.application", "^Uncaught exception GET", times=1)
    expect_log("tornado.access", "^500 GET", times=1)
    stopped = []

    class Slow(Page):
        @asynchronous
        async def get(self, path):
            self.mc.get("k", callback=lambda value: 1 / 0)
            try:
                await asyncio.sleep(30)
            except asyncio.CancelledError:
                stopped.append(True)
                raise

    async with served(Slow, memcached) as site:
        begun = time.monotonic()
        assert (await site.get()).code == 500
        assert time.monotonic() - begun < 2
        assert stopped == [True]


@pytest.mark.gen_test
@pytest.mark.parametrize("way", ["raises", "is cancelled"])
async def test_a_failing_coroutine_method_is_a_500(memcached, expect_log, way):
    if way == "raises":
        expect_log("tornado.application", "^Uncaught exception GET", times=1)
    else:
        expect_log("tornado.general", "^500 GET .*the method was cancelled", times=1)
    expect_log("tornado.access", "^500 GET", times=1)

    class Coroutine(Page):
        @asynchronous
        async def get(self, path):
            await self.mc.get("k")
            if way == "raises":
                raise ZeroDivisionError
            future = asyncio.get_running_loop().create_future()
            future.cancel()
            await future

    async with served(Coroutine, memcached) as site:
        assert (await site.get()).code == 500
        assert Coroutine.ended == ["finish"]


@pytest.mark.gen_test
async def test_a_failure_after_the_end_is_logged_once(memcached, expect_log):
    expect_log("tornado.application", r"^Uncaught exception GET /callback ", times=1)
    expect_log("tornado.application", r"^Uncaught exception GET /call ", times=1)
    expect_log("tornado.application", r"^Uncaught exception GET /twice ", times=1)
    over = []

    class Late(Page):
        @asynchronous
        def get(self, where):
            if where == "call":
                self.mc.set("text", "text")
                self.mc.incr("text")
            elif where == "callback":
                self.mc.get("k", callback=self.on_value)
            self.mc.get("k", callback=over.append)
            self.finish("done")
            if where == "twice":
                self.finish("again")

        def on_value(self, value):
            raise ZeroDivisionError

    async with served(Late, memcached) as site:
        for where in ("call", "callback", "twice"):
            response = await site.get(where)
            assert (response.code, response.body) == (200, b"done")
            await Late.mc.get("k")
        assert Late.ended == ["finish"] * 3


@pytest.mark.gen_test
async def test_calls_under_way_when_the_request_is_finished_go_on(memcached):
    class Writing(Page):
        @asynchronous
        def get(self, path):
            self.mc.set("k", "written", callback=lambda stored: self.ended.append("stored"))
            self.finish()

    async with served(Writing, memcached) as site:
        await site.get()
        await until(lambda: "stored" in Writing.ended)
        assert await Writing.mc.get("k") == "written"


@pytest.mark.gen_test
async def test_an_on_finish_that_raises_is_logged_once(memcached, expect_log):
    expect_log("tornado.application", "^Uncaught exception GET", times=1)

    class Careless(Page):
        @asynchronous
        def get(self, path):
            self.mc.get("k", callback=lambda value: self.finish("done"))

        def on_finish(self):
            raise ZeroDivisionError

    async with served(Careless, memcached) as site:
        assert (await site.get()).body == b"done"


@pytest.mark.gen_test
async def test_a_failure_after_the_headers_went_out_ends_the_response(memcached, expect_log):
    expect_log("tornado.application", "^Uncaught exception GET", times=1)
    expect_log("tornado.general", "^Cannot send error response after headers", times=1)

    class Half(Page):
        @asynchronous
        def get(self, path):
            self.write("half")
            self.flush()
            self.mc.get("k", callback=lambda value: 1 / 0)

    async with served(Half, memcached) as site:
        assert (await site.get()).body == b"half"
        assert Half.ended == ["finish"]


# -- with a memcached that is away


class Guarded(Page):
    """The usual page: a boundary with its own failure page within the request's."""

    errors: list[BaseException] = []

    @asynchronous
    def get(self, key):
        with boundary(self.on_cache_failure, once=True):
            self.mc.get("first", callback=partial(self.on_first, key))
            self.mc.get("aside", callback=lambda value: None)

    def on_first(self, key, value):
        self.mc.get(key, default="fresh", callback=self.finish)

    def on_cache_failure(self, error):
        self.errors.append(error)
        self.set_status(503)
        self.finish("the cache is away")


@pytest.mark.gen_test
async def test_the_boundarys_page_comes_by_the_deadline(memcached, expect_log):
    expect_log("tornado_memcache", "^memcached .* fails: .*timed out", times=1)
    expect_log("tornado.access", "^503 GET")
    Guarded.errors = []
    async with served(Guarded, memcached) as site:
        assert (await site.get("k")).body == b"fresh"
        memcached.stop()
        begun = time.monotonic()
        response = await site.get("k")
        took = time.monotonic() - begun
        assert (response.code, response.body) == (503, b"the cache is away")
        assert REQUEST_TIMEOUT - 0.05 < took < REQUEST_TIMEOUT + LATE
        assert [type(error) for error in Guarded.errors] == [Timeout]
        memcached.resume()
        resumed = time.monotonic()
        while (response := await site.get("k")).code != 200:
            assert time.monotonic() < resumed + 1
        assert response.body == b"fresh"


@pytest.mark.gen_test
async def test_a_killed_memcached_gives_the_boundarys_page_at_once(start_memcached, expect_log):
    expect_log("tornado.access", "^503 GET", times=2)
    expect_log("tornado_memcache", "", times=range(10))
    Guarded.errors = []
    server = start_memcached()
    async with served(Guarded, server, timeout=5) as site:
        assert (await site.get("k")).body == b"fresh"
        server.stop()
        page = asyncio.ensure_future(site.get("k"))
        await asyncio.sleep(0.05)
        begun = time.monotonic()
        server.kill()
        assert (await page).code == 503
        assert (await site.get("k")).code == 503
        assert time.monotonic() - begun < 1
        assert isinstance(Guarded.errors[0], ConnectionFailed)
        assert len(Guarded.errors) == 2


@pytest.mark.gen_test
async def test_without_a_boundary_of_its_own_the_request_fails(memcached, expect_log):
    expect_log("tornado_memcache", "^memcached .* fails: .*timed out", times=1)
    expect_log("tornado.application", "^Uncaught exception GET", times=1)
    expect_log("tornado.access", "^500 GET", times=1)

    class Bare(Page):
        @asynchronous
        def get(self, key):
            self.mc.get(key, callback=self.finish)
            self.mc.get("other", callback=lambda value: None)

    async with served(Bare, memcached) as site:
        memcached.stop()
        begun = time.monotonic()
        assert (await site.get("k")).body == b"500 Timeout"
        assert time.monotonic() - begun < REQUEST_TIMEOUT + LATE


@pytest.mark.gen_test
async def test_what_a_boundarys_fail_callback_raises_is_the_requests_failure(memcached, expect_log):
    expect_log("tornado.application", "^Uncaught exception GET", times=1)
    expect_log("tornado.access", "^500 GET", times=1)

    class Nested(Page):
        @asynchronous
        def get(self, key):
            with boundary(self.on_cache_failure, once=True):
                self.mc.set("text", "text")
                self.mc.incr("text", callback=self.finish)

        def on_cache_failure(self, error):
            raise KeyError("no page for that")

    async with served(Nested, memcached) as site:
        assert (await site.get("k")).body == b"500 KeyError"


@pytest.mark.gen_test
async def test_a_hundred_requests_while_the_server_stalls(memcached, expect_log):
    expect_log("tornado_memcache", "^memcached .* fails: .*timed out", times=1)
    expect_log("tornado.access", "^503 GET", times=range(100, 200))
    Guarded.errors = []
    async with served(Guarded, memcached) as site:
        await site.get("k")
        memcached.stop()
        begun = time.monotonic()
        pages = await asyncio.gather(*(site.get(f"k{number}") for number in range(100)))
        took = time.monotonic() - begun
        assert {page.code for page in pages} == {503}
        assert {page.body for page in pages} == {b"the cache is away"}
        assert took < REQUEST_TIMEOUT + 2 * LATE  # the browser is in this process too
        assert len(Guarded.errors) == 100
        memcached.resume()
        resumed = time.monotonic()
        while (await site.get("k")).code != 200:
            assert time.monotonic() < resumed + 1


# -- when the client leaves


@pytest.mark.gen_test
async def test_the_calls_of_a_client_that_left_are_cancelled(memcached):
    came = []

    class Waiting(Page):
        @asynchronous
        def get(self, key):
            with boundary(came.append):
                self.mc.get(key, callback=came.append)
            self.mc.get(key, callback=came.append)
            self.ended.append("begun")

    async with served(Waiting, memcached) as site:
        memcached.stop()
        visitor = await site.visit("k")
        await until(lambda: Waiting.ended)
        visitor.close()
        await until(lambda: "finish" in Waiting.ended)
        assert Waiting.ended == ["begun", "left", "finish"]
        memcached.resume()
        assert await Waiting.mc.get("k", timeout=2) is None
        assert came == []


@pytest.mark.gen_test
async def test_no_call_begins_for_a_client_that_has_left(memcached):
    came = []

    class Going(Page):
        @asynchronous
        def get(self, key):
            self.ended.append("begun")
            IOLoop.current().call_later(0.1, boundary.wrap(self.on_time))

        def on_time(self):
            self.mc.get("k", callback=came.append)
            came.append("time")

    async with served(Going, memcached) as site:
        visitor = await site.visit()
        await until(lambda: Going.ended)
        visitor.close()
        await until(lambda: came)
        await Going.mc.get("k")
        await asyncio.sleep(0.01)
        assert came == ["time"]


@pytest.mark.gen_test
async def test_a_client_that_left_in_prepare_leaves_no_request_behind(memcached):
    came = []

    class Preparing(Page):
        async def prepare(self):
            self.ended.append("begun")
            await asyncio.sleep(0.05)

        @asynchronous
        def get(self, key):
            self.mc.get(key, callback=came.append)

    async with served(Preparing, memcached) as site:
        visitor = await site.visit("k")
        await until(lambda: Preparing.ended)
        visitor.close()
        await until(lambda: "finish" in Preparing.ended)
        assert Preparing.ended == ["begun", "left", "finish"]
        assert await Preparing.mc.get("k") is None
        assert came == []


@pytest.mark.gen_test
@pytest.mark.parametrize("way", ["call", "sleep", "flush"])
async def test_a_coroutine_method_ends_in_its_own_time_when_the_client_leaves(memcached, way):
    class Coroutine(Page):
        @asynchronous
        async def get(self, path):
            self.ended.append("begun")
            if way == "call":
                await self.mc.get("k")
            elif way == "sleep":
                await asyncio.sleep(0.1)
                self.ended.append("slept")
            else:
                self.write(b"x" * (32 << 20))
                await self.flush()

    async with served(Coroutine, memcached) as site:
        if way == "call":
            memcached.stop()
        visitor = await site.visit()
        await until(lambda: Coroutine.ended)
        await asyncio.sleep(0.02)
        visitor.close()
        await until(lambda: "finish" in Coroutine.ended)
        slept = ["slept"] if way == "sleep" else []
        assert Coroutine.ended == ["begun", "left", *slept, "finish"]


@pytest.mark.gen_test
async def test_on_connection_close_may_finish_or_raise(memcached, expect_log):
    class Leaving(Page):
        @asynchronous
        def get(self, way):
            self.way = way
            self.mc.get("k", callback=lambda value: None)
            self.ended.append("begun")

        def on_connection_close(self):
            if self.way == "raise":
                raise ZeroDivisionError
            self.finish()

    expect_log("tornado.application", "^Exception in callback .*_on_connection_close", times=1)
    async with served(Leaving, memcached) as site:
        for way in ("finish", "raise"):
            Leaving.ended.clear()
            visitor = await site.visit(way)
            await until(lambda: Leaving.ended)
            visitor.close()
            await until(lambda: "finish" in Leaving.ended)
            assert Leaving.ended == ["begun", "finish"]


@pytest.mark.gen_test
async def test_the_next_request_on_the_same_connection_is_a_new_one(memcached):
    class Kept(Page):
        @asynchronous
        def get(self, key):
            self.mc.get(key, default=key, callback=self.finish)

    async with served(Kept, memcached) as site:
        visitor = await site.visit("one")
        assert (await visitor.read_until(b"one")).startswith(b"HTTP/1.1 200")
        await visitor.write(b"GET /two HTTP/1.1\r\nHost: x\r\n\r\n")
        assert (await visitor.read_until(b"two")).startswith(b"HTTP/1.1 200")
        visitor.close()
        assert Kept.ended == ["finish"] * 2
        assert not web._open


# -- what a boundary covers with wrap


@pytest.mark.gen_test
@pytest.mark.parametrize("scheduled", ["a timeout", "a future"])
async def test_the_boundary_covers_what_is_wrapped(memcached, expect_log, scheduled):
    expect_log("tornado.application", "^Uncaught exception GET", times=1)
    expect_log("tornado.access", "^500 GET", times=1)

    class Elsewhere(Page):
        @asynchronous
        def get(self, how):
            io_loop = IOLoop.current()
            callback = boundary.wrap(partial(self.on_time, how))
            if scheduled == "a timeout":
                io_loop.add_timeout(timedelta(seconds=0.01), callback)
            else:
                io_loop.add_future(asyncio.ensure_future(asyncio.sleep(0.01)), callback)

        def on_time(self, how, future=None):
            if how == "fail":
                self.mc.set("text", "text")
                self.mc.incr("text")  # nobody waits for it: the boundary hears of it
            else:
                self.mc.get("k", default="on time", callback=self.finish)

    async with served(Elsewhere, memcached) as site:
        assert (await site.get("well")).body == b"on time"
        assert (await site.get("fail")).body == b"500 ClientError"


@pytest.mark.gen_test
async def test_the_boundary_covers_a_fetch(memcached, expect_log):
    expect_log("tornado_memcache", "^memcached .* fails: .*timed out", times=1)
    expect_log("tornado.access", "^503 GET", times=1)
    fetched = []

    class Fetching(Page):
        @asynchronous
        def get(self, path):
            if path == "origin":
                return self.finish("origin")
            with boundary(self.on_cache_failure, once=True):
                # The fetch itself fails on its own; what comes of it is covered.
                future = AsyncHTTPClient().fetch(f"http://{self.request.host}/origin")
                future.add_done_callback(boundary.wrap(partial(self.on_origin, path)))

        def on_origin(self, path, future):
            fetched.append(future.result().body)
            if path == "stall":
                memcached.stop()
            self.mc.set("page", fetched[-1], callback=lambda stored: self.finish("stored"))

        def on_cache_failure(self, error):
            self.set_status(503)
            self.finish("the cache is away")

    async with served(Fetching, memcached) as site:
        assert (await site.get("well")).body == b"stored"
        assert (await site.get("stall")).body == b"the cache is away"
        assert fetched == [b"origin"] * 2
        AsyncHTTPClient().close()


@pytest.mark.gen_test
async def test_a_failing_fetch_is_the_requests_failure(expect_log):
    expect_log("tornado.general", "^404 GET|^502 GET", times=range(3))
    expect_log("tornado.application", "^Uncaught exception GET /front", times=1)
    expect_log("tornado.access", "^(404|500) GET", times=2)

    class Fetching(Page):
        @asynchronous
        def get(self, path):
            if path == "origin":
                raise HTTPError(404)
            future = AsyncHTTPClient().fetch(f"http://{self.request.host}/origin")
            future.add_done_callback(boundary.wrap(lambda future: self.finish(future.result())))

    async with served(Fetching) as site:
        assert (await site.get("front")).body == b"500 HTTPClientError"
        AsyncHTTPClient().close()


# -- what stays behind


@pytest.mark.gen_test
async def test_a_handler_goes_without_the_collector(memcached):
    handlers = []

    class Light(Page):
        @asynchronous
        def get(self, key):
            handlers.append(weakref.ref(self))
            self.mc.get(key, callback=self.on_value)

        def on_value(self, value):
            self.finish("done")

    async with served(Light, memcached) as site:
        gc.collect()
        gc.disable()
        try:
            await site.get("k")
            await until(lambda: handlers[0]() is None)
        finally:
            gc.enable()


@pytest.mark.gen_test
async def test_methods_that_were_set_on_the_handler_are_kept(memcached):
    class Instance(Page):
        def initialize(self):
            self.on_finish = lambda: self.ended.append("own")

        @asynchronous
        def get(self, key):
            self.mc.get(key, callback=lambda value: self.finish("done"))

    async with served(Instance, memcached) as site:
        await site.get("k")
        assert Instance.ended == ["own"]


@pytest.mark.gen_test
async def test_a_server_that_ends_its_tasks_cancels_the_calls(memcached, expect_log):
    """Tornado 6.5 and later answer a task that is cancelled; 6.4 leaves it to the browser."""
    tasks, came = [], []

    class Ending(Page):
        @asynchronous
        async def get(self, key):
            tasks.append(asyncio.current_task())
            self.mc.get("k", callback=came.append)
            await asyncio.sleep(30)

    expect_log("tornado.access", "^500 GET", level=logging.INFO, times=range(2))
    expect_log("asyncio", "", times=range(2))
    async with served(Ending, memcached) as site:
        memcached.stop()
        visitor = await site.visit()
        await until(lambda: tasks)
        executing = [
            task
            for task in asyncio.all_tasks()
            if task is not tasks[0] and "_execute" in repr(task.get_coro())
        ]
        for task in executing:
            task.cancel()
        await until(lambda: tasks[0].done())
        assert len(executing) == 1 and tasks[0].cancelled()
        memcached.resume()
        assert await Ending.mc.get("k", timeout=2) is None
        assert came == []
        visitor.close()
