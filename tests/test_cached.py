"""tornado_memcache.cached: the decorator."""

from __future__ import annotations

import asyncio
import inspect
from typing import Any

import pytest

from tornado_memcache import Client, InvalidKey, InvalidRequest, cached


@pytest.fixture
def mc(memcached, io_loop):
    client = Client([memcached.address], key_prefix="app:")
    yield client
    client.close()


@pytest.mark.gen_test
async def test_a_coroutine_function_and_a_plain_one_are_called_once_for_a_key(mc):
    calls: list[Any] = []

    @cached(mc, 60, key="page:{user_id}:{language}")
    async def page(user_id: int, language: str = "en") -> str:
        """Makes a page."""
        calls.append((user_id, language))
        await asyncio.sleep(0)
        return f"page {user_id} {language}"

    @cached(mc, 60, key=lambda number: f"square:{number}")
    def square(number: int) -> int:
        calls.append(number)
        return number * number

    for _ in range(2):
        assert await page(7) == await page(7, "en") == await page(user_id=7) == "page 7 en"
        assert await page(7, language="fr") == "page 7 fr"
        assert await square(12) == 144
    assert calls == [(7, "en"), (7, "fr"), 12]
    assert await asyncio.gather(*[square(3) for _ in range(10)]) == [9] * 10
    assert calls[3:] == [3]
    assert await mc.get("page:7:fr") == "page 7 fr"
    assert page.__name__ == "page" and page.__doc__ == "Makes a page."
    assert list(inspect.signature(page).parameters) == ["user_id", "language"]


@pytest.mark.gen_test
async def test_invalidate_takes_the_arguments_of_the_call(mc):
    calls: list[int] = []

    @cached(mc, 60, key="{n}")
    def fresh(n: int) -> int:
        calls.append(n)
        return len(calls)

    @cached(mc, 60, key="stale:{n}", stale=30)
    async def stale(n: int) -> int:
        calls.append(n)
        if held:
            await held[0].wait()
        return len(calls)

    held: list[asyncio.Event] = []
    assert await fresh.invalidate(1) is False
    assert await fresh(1) == 1 and await fresh.invalidate(1) is True and await fresh(n=1) == 2
    assert await stale(1) == 3 and await stale.invalidate(n=1) is True
    held.append(asyncio.Event())
    again = stale(1)
    while len(calls) < 4:
        await asyncio.sleep(0.001)
    assert await stale(1) == 3  # (served while one computes)
    held[0].set()
    assert await again == 4
    assert fresh.key_of(1) == "1"


@pytest.mark.gen_test
async def test_a_method_is_cached_and_what_it_raises_is_the_failure(mc):
    class Site:
        name = "site"

        @cached(mc, 60, key="{self.name}:{path}", lock_timeout=1000)
        def page(self, path: str, callback: str = "no callback") -> str:
            if path == "missing":
                raise LookupError(path)
            return f"{self.name} {path} {callback}"

    site = Site()
    assert await site.page("front") == "site front no callback"
    for _ in range(2):
        with pytest.raises(LookupError):
            await site.page("missing")
    assert Site.page.key_of(site, "front") == "site:front"
    assert await Site.page.invalidate(site, "front") is True


@pytest.mark.gen_test
async def test_what_a_method_is_called_with_invalidates_it(mc):
    calls: list[str] = []

    class Site:
        name = "site"

        @cached(mc, 60, key="{self.name}:{path}")
        async def page(self, path: str, of: str = "") -> str:
            """Makes a page."""
            calls.append(path)
            return f"{self.name} {path}"

    site = Site()
    assert await site.page("front") == await site.page("front", of="it") == "site front"
    assert site.page.key_of(path="front") == "site:front"
    assert await site.page.invalidate("front") is True
    assert await site.page("front") == "site front" and calls == ["front"] * 2
    assert list(inspect.signature(site.page).parameters) == ["path", "of"]
    assert site.page.__name__ == "page" and inspect.getdoc(site.page) == "Makes a page."
    assert repr(Site.page).startswith("<cached <function ") and "Site.page" in repr(site.page)
    with pytest.raises(TypeError, match=r"of a call of .*page: missing .*: 'path'"):
        site.page()


@pytest.mark.gen_test
async def test_a_namespace_keeps_what_is_cached_and_ends_all_of_it(mc):
    calls: list[int] = []
    rows = mc.namespace("rows")

    @cached(rows, 60, key="row:{number}", stale=30)
    async def row(number: int) -> int:
        calls.append(number)
        return number * 2

    assert [await row(1), await row(2), await row(1)] == [2, 4, 2]
    assert await rows.get("row:1") == 2 and await mc.get("row:1") is None
    assert await row.invalidate(1) is True
    assert await row(1) == 2 and calls == [1, 2, 1]
    assert await rows.invalidate() is True
    assert [await row(1), await row(2)] == [2, 4] and calls == [1, 2, 1, 1, 2]


@pytest.mark.gen_test
async def test_a_key_that_cannot_be_made_names_the_function(silent):
    async with Client([silent.address]) as mc:

        @cached(mc, 60, key="{user.name}:{rows[0]}:{count:d}")
        def page(user: Any, rows: Any = ("r",), count: Any = 1) -> str:
            return ""

        class Ann:
            name = "ann"

        assert page.key_of(Ann) == "ann:r:1"
        for arguments in ((None,), (Ann, ()), (Ann, None), (Ann, ("r",), "x")):
            with pytest.raises(InvalidKey, match=r"cannot be made of a call of .*page: \w+Error"):
                page(*arguments)
        Ann.name = "ann lee"
        with pytest.raises(InvalidKey, match=r"of a call of .*page: key .* white space"):
            page(Ann)
        with pytest.raises(TypeError, match=r"of a call of .*page: missing a required .*'user'"):
            page()
        with pytest.raises(InvalidKey):
            page.invalidate(None)

        @cached(mc, 60, key=lambda: 5)
        def wrong() -> str:
            return ""

        with pytest.raises(TypeError, match=r"of a call of .*wrong: key must be str or bytes"):
            wrong()

        @cached(mc, 60, key=lambda: ("route", "a b"))
        def routed() -> str:
            return ""

        with pytest.raises(InvalidKey, match="white space"):
            routed()
        assert not silent.connections


def function(n: int) -> int:
    return n


def generator(n: int) -> Any:
    yield n


async def asynchronous_generator(n: int) -> Any:
    yield n


@pytest.mark.parametrize(
    ("kind", "told", "given"),
    [
        (TypeError, "client must be a Client or a Namespace", {"client": None}),
        (InvalidRequest, "exptime must be from 0", {"exptime": -1}),
        (InvalidRequest, "exptime must be above 0", {"exptime": 0, "stale": 1}),
        (InvalidRequest, "lock_timeout", {"lock_timeout": 0}),
        (TypeError, "key must be a format string or callable", {"key": 1}),
        (TypeError, "key must be a format string or callable", {"key": None}),
        (InvalidRequest, "names 'm', which is no parameter of .*function", {"key": "{m}"}),
        (InvalidRequest, "names '0', which is no parameter", {"key": "{0}"}),
        (InvalidRequest, "names '', which is no parameter", {"key": "{}"}),
        (InvalidRequest, "is no format string", {"key": "{n"}),
        (TypeError, "cached decorates", {"function": 1}),
        (TypeError, "cached decorates", {"function": int}),
        (TypeError, "cannot decorate a generator", {"function": generator}),
        (TypeError, "cannot decorate a generator", {"function": asynchronous_generator}),
    ],
)
def test_what_cannot_be_cached_is_refused_where_it_is_decorated(kind, told, given):
    mc = Client(["127.0.0.1:1"])
    given = {"client": mc, "exptime": 60, "key": "{n}", "function": function, **given}
    decorated = given.pop("function")
    with pytest.raises(kind, match=told):
        cached(**given)(decorated)
    mc.close()
