"""tornado_memcache.store: what each verb does to an item, with a clock turned by hand.

What a real memcached answers to the same is compared in `test_oracle.py`;
here stand the cases that take time. Limits are in `test_items.py`.
"""

import ast
from pathlib import Path

import pytest

from tornado_memcache import store as module
from tornado_memcache.errors import ClientError
from tornado_memcache.store import Store

from .hand import Hand

DAY = 24 * 60 * 60


@pytest.fixture
def clock():
    return Hand(1_700_000_000.5)


@pytest.fixture
def store(clock):
    return Store(clock)


def value_of(store, key=b"k"):
    item = store.get(key)
    return item and item.value


def test_a_hit_has_value_flags_and_cas_unique(store):
    assert store.set(b"k", b"v", 7) == b"STORED"
    assert store.get(b"k") == (b"v", 7, 1)
    assert store.get(b"other") is None


def test_add_replace_and_delete(store):
    assert store.replace(b"k", b"1") == b"NOT_STORED"
    assert store.add(b"k", b"2") == b"STORED"
    assert store.add(b"k", b"3") == b"NOT_STORED"
    assert store.replace(b"k", b"4", 9) == b"STORED"
    assert store.get(b"k")[:2] == (b"4", 9)
    assert store.delete(b"k") is True
    assert store.delete(b"k") is False
    assert len(store) == store.bytes == 0


def test_append_and_prepend_keep_flags_and_exptime(store, clock):
    assert store.append(b"k", b"x") == store.prepend(b"k", b"x") == b"NOT_STORED"
    store.set(b"k", b"b", 5, 10)
    assert store.append(b"k", b"c") == store.prepend(b"k", b"a") == b"STORED"
    assert store.get(b"k") == (b"abc", 5, 3)
    clock.turn(10)
    assert value_of(store) is None


def test_cas_unique_grows_with_every_change_and_with_nothing_else(store):
    store.set(b"k", b"10")
    assert store.get(b"k").cas_unique == 1
    store.touch(b"k", 100)
    store.gat(b"k", 100)
    store.add(b"k", b"x")
    store.cas(b"k", b"x", cas_unique=99)
    assert store.get(b"k").cas_unique == 1
    store.incr(b"k", 1)
    assert store.get(b"k").cas_unique == 2
    store.append(b"k", b" ")
    assert store.get(b"k").cas_unique == 3


def test_cas(store):
    assert store.cas(b"k", b"v", cas_unique=1) == b"NOT_FOUND"
    store.set(b"k", b"1")
    assert store.cas(b"k", b"2", cas_unique=2) == b"EXISTS"
    assert store.cas(b"k", b"2", flags=3, cas_unique=1) == b"STORED"
    assert store.cas(b"k", b"3", cas_unique=1) == b"EXISTS"
    assert store.get(b"k") == (b"2", 3, 2)


@pytest.mark.parametrize(
    "before, verb, delta, number, after",
    [
        (b"10", "incr", 5, 15, b"15"),
        (b"99", "incr", 1, 100, b"100"),
        (b"10", "decr", 1, 9, b"9 "),
        (b"10", "decr", 11, 0, b"0 "),
        (b"18446744073709551615", "incr", 1, 0, b"0".ljust(20)),
        (b"18446744073709551615", "incr", 2, 1, b"1".ljust(20)),
        (b"10 ", "incr", 1, 11, b"11 "),
        (b"00010", "incr", 1, 11, b"11   "),
        (b" +7 apples", "incr", 1, 8, b"8         "),
    ],
)
def test_arithmetic(store, before, verb, delta, number, after):
    store.set(b"n", before, 4)
    assert getattr(store, verb)(b"n", delta) == number
    assert store.get(b"n")[:2] == (after, 4)


def test_arithmetic_on_a_miss_and_on_text(store):
    assert store.incr(b"n", 1) is None
    assert store.decr(b"n", 1) is None
    for text in (b"", b"ten", b"-1", b"1.5", b"18446744073709551616", b"1" * 5000):
        store.set(b"n", text)
        with pytest.raises(ClientError, match="non-numeric"):
            store.incr(b"n", 1)
        assert value_of(store, b"n") == text


def test_arithmetic_keeps_the_exptime(store, clock):
    store.set(b"n", b"1", 0, 10)
    store.incr(b"n", 1)
    clock.turn(9)
    assert store.incr(b"n", 1) == 3
    clock.turn(1)
    assert store.incr(b"n", 1) is None


@pytest.mark.parametrize(
    "exptime, lives",
    [
        (0, 400 * DAY),
        (1, 0),
        (60, 59),
        (30 * DAY, 30 * DAY - 1),
        # Over 30 days it is a moment: in 1970, and 100 seconds from now.
        (30 * DAY + 1, None),
        (1_700_000_100, 99),
        (1_700_000_000, None),
        (-1, None),
        (-(2**31), None),
    ],
)
@pytest.mark.parametrize("by", ["set", "touch", "gat"])
def test_exptime(store, clock, exptime, lives, by):
    if by == "set":
        assert store.set(b"k", b"v", 0, exptime) == b"STORED"
    else:
        store.set(b"k", b"v")
        assert getattr(store, by)(b"k", exptime)
    if lives is None:
        assert value_of(store) is None
        assert store.add(b"k", b"w") == b"STORED"
        return
    clock.turn(lives)
    assert value_of(store) == b"v"
    if exptime:
        clock.turn(1)
        assert value_of(store) is None
        assert not store.touch(b"k", 10)
        assert len(store) == store.bytes == 0


def test_a_clock_that_starts_at_zero(clock):
    clock.now = 0.0
    store = Store(clock)
    store.set(b"k", b"v", 0, -1)
    store.set(b"l", b"v", 0, 1)
    assert value_of(store) is None
    assert value_of(store, b"l") == b"v"


def test_an_item_does_not_grow_beyond_its_limit(clock):
    store = Store(clock, max_item_size=1000)
    store.set(b"k", b"x" * 900)
    assert store.append(b"k", b"x" * 41) == b"NOT_STORED"
    assert store.prepend(b"k", b"x" * 40) == b"STORED"


def test_a_number_that_keeps_its_length_keeps_its_marks_and_one_that_grows_does_not(store):
    store.set(b"n", b"98")
    store.get(b"n")
    first = store.find(b"n")
    first.stale = first.won = True
    assert store.incr(b"n", 1) == 99
    entry = store.find(b"n")
    assert entry is first and (entry.stale, entry.won, entry.fetched) == (True, True, True)
    assert store.incr(b"n", 1) == 100
    entry = store.find(b"n")
    assert entry is not first and not (entry.stale or entry.won or entry.fetched)
    assert entry.item == (b"100", 0, 3) == first.item


def test_counting_compares_the_cas_unique(store):
    store.set(b"n", b"1")
    assert store.count("incr", b"n", 1, 7).status == b"EXISTS"
    assert store.count("incr", b"n", 1, 1)[:2] == (b"NUMBER", 2)
    assert store.count("decr", b"n", 5, 2)[:2] == (b"NUMBER", 0)
    assert store.count("decr", b"absent", 5, 2).status == b"NOT_FOUND"


def test_an_older_cas_unique_may_store_what_is_stale(store, clock):
    store.set(b"k", b"1", 0, 100)
    store.set(b"k", b"2", 0, 100)
    store.find(b"k").won = True
    assert store.keep(b"cas", b"k", b"3", 0, 500, 1) == (b"EXISTS", None)
    status, entry = store.keep(b"cas", b"k", b"3", 0, 500, 1, may_be_stale=True)
    assert status == b"STORED" and (entry.stale, entry.won) == (True, True)
    assert entry.expires == int(clock.now) + 100
    newer = store.keep(b"cas", b"k", b"4", 0, 500, 9, may_be_stale=True)
    assert newer == (b"EXISTS", None)
    _, entry = store.keep(b"cas", b"k", b"4", 0, 500, entry.item.cas_unique, may_be_stale=True)
    assert not (entry.stale or entry.won) and entry.expires == int(clock.now) + 500


def test_counts(store, clock):
    store.set(b"k", b"v")
    store.get(b"k")
    store.get(b"l")
    store.delete(b"k")
    counts = store.counts
    assert (counts["cmd_set"], counts["cmd_get"], counts["total_items"]) == (1, 2, 1)
    assert (counts["get_hits"], counts["get_misses"], counts["delete_hits"]) == (1, 1, 1)
    store.reset_counts()
    assert not any(store.counts.values())


def test_the_module_is_pure():
    tree = ast.parse(Path(module.__file__).read_text())
    names = {alias.name for node in ast.walk(tree) if isinstance(node, ast.Import)
             for alias in node.names}  # fmt: skip
    names |= {node.module or "" for node in ast.walk(tree) if isinstance(node, ast.ImportFrom)}
    assert names <= {"typing", "errors", "items", "protocol", "words"}
