"""What a type checker says to an application's code: ``./run test`` gives it to mypy.

Nothing here is run. An ``ignore`` stands where the checker has to complain: one
that it does not need is an error.
"""

from datetime import timedelta
from typing import TYPE_CHECKING, Any

from tornado_memcache import Client, Namespace, cached

if TYPE_CHECKING:
    from typing_extensions import assert_type

    mc = Client(["127.0.0.1:11211"])
    users = mc.namespace("users")

    @cached(mc, 600, key="article:{number}", stale=60)
    async def article(number: int, language: str = "en") -> str:
        return f"article {number} {language}"

    @cached(users, timedelta(minutes=1), key=lambda name: f"user:{name}")
    def user(name: str) -> bytes:
        return name.encode()

    class Site:
        @cached(mc, 60, key="{self}:{path}")
        async def page(self, path: str) -> bytes:
            return path.encode()

    async def what_a_cached_function_takes_and_gives() -> None:
        assert_type(await article(7, language="fr"), str)
        assert_type(await article.invalidate(7), bool)
        assert_type(await user("ann"), bytes)
        article("seven")  # type: ignore[arg-type]
        article.invalidate()  # type: ignore[call-arg]

    async def what_a_cached_method_takes_and_gives(site: Site) -> None:
        assert_type(await site.page("front"), bytes)
        assert_type(await site.page.invalidate("front"), bool)
        assert_type(await Site.page.invalidate(site, "front"), bool)
        site.page(7)  # type: ignore[arg-type]

    async def what_is_computed_once() -> None:
        await mc.get_or_set("front", article, timedelta(minutes=1), stale=30, early=5)
        mc.get_or_set("front", 60, article)  # type: ignore[arg-type]
        page: str = mc.get_or_set("front", article, 60)  # type: ignore[assignment]
        del page

    async def what_a_namespace_has(ns: Namespace) -> None:
        assert_type(await ns.get("profile"), Any)
        assert_type(await ns.delete("profile"), bool)
        assert_type(await ns.invalidate(), bool)
        assert_type(await ns.invalidate("profile", stale_for=30), bool)
        ns.namespace("another")  # type: ignore[attr-defined]
        ns.gets_or_set("profile", article, 60)  # type: ignore[attr-defined]
