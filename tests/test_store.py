"""tornado_memcache.store: what each verb does to an item, with a clock turned by hand.

What a real memcached answers to the same is compared in `test_server.py`;
here stand the cases that take time, and the limits.
"""

import ast
from pathlib import Path

import pytest

from tornado_memcache import store as module
from tornado_memcache.errors import ClientError
from tornado_memcache.store import Store, item_size, read_signed, read_unsigned

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


def test_flush_all_takes_what_is_there_and_leaves_what_comes(store):
    store.set(b"k", b"v")
    store.flush_all()
    assert value_of(store) is None
    store.set(b"k", b"w")
    assert value_of(store) == b"w"


def test_flush_all_with_a_delay(store, clock):
    store.set(b"k", b"v")
    store.flush_all(10)
    store.set(b"l", b"v")
    clock.turn(8)
    assert value_of(store) == b"v"
    clock.turn(1)  # (memcached's tenth second begins)
    assert value_of(store) is None
    assert store.add(b"l", b"v") == b"STORED"
    assert value_of(store, b"l") is None  # (stored in the second of the flush)
    clock.turn(1)
    store.set(b"l", b"v")
    assert value_of(store, b"l") == b"v"


def test_flush_all_again_takes_the_place_of_the_one_to_come(store, clock):
    store.flush_all(10)
    store.flush_all(100)
    store.set(b"k", b"v")
    clock.turn(50)
    assert value_of(store) == b"v"
    store.flush_all()
    store.set(b"k", b"v")
    clock.turn(100)
    assert value_of(store) == b"v"


def test_flush_all_at_a_moment(store, clock):
    store.set(b"k", b"v")
    store.flush_all(30 * DAY + 1)  # (before the server began: memcached does nothing)
    assert value_of(store) == b"v"
    store.flush_all(int(clock.now) + 10)
    clock.turn(8)
    assert value_of(store) == b"v"
    clock.turn(1)
    assert value_of(store) is None


def test_the_longest_unused_item_is_evicted(clock):
    store = Store(clock, max_items=2)
    store.set(b"a", b"1")
    store.set(b"b", b"2")
    store.get(b"a")
    store.set(b"c", b"3")
    assert [value_of(store, key) for key in (b"a", b"b", b"c")] == [b"1", None, b"3"]
    assert store.counts["evictions"] == 1


def test_bytes_are_bounded(clock):
    store = Store(clock, max_bytes=10_000)
    for number in range(1000):
        store.set(b"key-%d" % number, b"x" * 900)
        assert store.bytes <= 10_000
    assert 5 < len(store) < 12
    assert store.bytes == sum(item_size(b"key-999", 0, 900) for _ in range(len(store)))


def test_the_size_of_an_item_is_limited(clock):
    store = Store(clock, max_item_size=1000)
    assert not store.too_large(b"k", 0, 940)
    assert store.too_large(b"k", 0, 941)
    assert store.too_large(b"k", 1, 940)
    store.set(b"k", b"x" * 900)
    assert store.append(b"k", b"x" * 41) == b"NOT_STORED"
    assert store.prepend(b"k", b"x" * 40) == b"STORED"


@pytest.mark.parametrize(
    "text, unsigned, signed",
    [
        (b"0", 0, 0),
        (b"+5", 5, 5),
        (b"-5", None, -5),
        (b"-0", 0, 0),
        (b"5\t6", 5, 5),
        (b"", None, None),
        (b"x", None, None),
        (b"5x", None, None),
        (b"0x5", None, None),
        (b"1.5", None, None),
        (b"4294967297", 4294967297, 1),
        (b"2147483648", 2147483648, -(2**31)),
        (b"9223372036854775808", 2**63, None),
        (b"18446744073709551615", 2**64 - 1, None),
        (b"18446744073709551616", None, None),
        (b"-18446744073709551615", 1, None),
        ("٣".encode(), None, None),
        (b"1" * 100_000, None, None),
    ],
)
def test_numbers_as_c_reads_them(text, unsigned, signed):
    assert read_unsigned(text) == unsigned
    assert read_signed(text) == signed


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
    assert names <= {"re", "collections", "collections.abc", "arguments", "errors", "protocol"}
