"""tornado_memcache.meta_outcomes: what replies to meta commands mean to a caller."""

from __future__ import annotations

from types import SimpleNamespace

import pytest

from tornado_memcache import CasUnique, MetaItem
from tornado_memcache.meta_outcomes import cas_of, changed, facts_of, item_of
from tornado_memcache.protocol import Reply

POOL = SimpleNamespace(generation=3)


def item(status, text=b"", value=b""):
    return item_of(Reply(status, text=text, value=value), lambda reply, flags: (reply.value, flags),
                   POOL, 3)  # fmt: skip


def test_all_that_is_told_stands_under_its_name():
    found = item(b"VA", b"c7 f16 h1 ka l5 Oabc s9 t-1 X W", b"value")
    assert found == MetaItem((b"value", 16), 16, 7, -1, 5, True, 5, True, True, False, b"abc")
    assert type(found.cas_unique) is CasUnique and found.cas_unique.fresh(POOL)
    assert item(b"HD", b"s9 h0 Z") == MetaItem(size=9, hit_before=False, recache=True)
    assert item(b"HD") == MetaItem()


@pytest.mark.parametrize("marks", [b"W", b"Z", b"X W", b"X Z"])
def test_a_stub_has_no_value(marks):
    assert item(b"VA", b"f0 " + marks).value is None
    assert item(b"VA", b"f16 " + marks).value == (b"", 16)
    assert item(b"VA", b"f0 " + marks, b"v").value == (b"v", 0)


def test_an_empty_value_without_a_mark_is_one():
    assert item(b"VA", b"f0").value == (b"", 0)


def test_an_item_never_shows_its_value():
    told = repr(item(b"VA", b"f0 X W", b"secret"))
    assert told == "<MetaItem of 6 bytes, won, stale>"
    assert repr(MetaItem()) == "<MetaItem of unknown size>"


def test_an_item_shows_what_was_asked_for():
    told = repr(item(b"VA", b"c7 f16 h0 l5 s9 t-1 X", b"secret"))
    assert told == (
        "<MetaItem of 6 bytes, cas_unique=7, remaining=-1, last_access=5, hit_before=False, stale>"
    )


@pytest.mark.parametrize(
    ("status", "outcome"), [(b"HD", True), (b"NS", False), (b"EX", False), (b"NF", None)]
)
def test_what_a_change_came_to(status, outcome):
    assert changed(Reply(status)) is outcome


def test_a_token_remembers_its_pool_and_its_generation():
    assert cas_of({}, POOL, 3) is None
    token = cas_of({b"c": b"5"}, POOL, 2)
    assert token == 5 and not token.fresh(POOL)


def test_facts():
    assert facts_of(Reply(b"EN")) is None
    assert facts_of(Reply(b"ME", text=b"k exp=-1 la=0 odd=a=b \xff bare")) == {
        "exp": "-1", "la": "0", "odd": "a=b", "\ufffd": "", "bare": "",
    }  # fmt: skip
