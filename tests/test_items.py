"""tornado_memcache.items: what is kept, for how long, and which leaves, with a clock by hand."""

import pytest

from tornado_memcache.items import Items, item_size

from .hand import Hand

DAY = 24 * 60 * 60


@pytest.fixture
def clock():
    return Hand(1_700_000_000.5)


@pytest.fixture
def items(clock):
    return Items(clock)


def value_of(items, key=b"k"):
    entry = items.find(key)
    return entry and entry.item.value


def test_an_item_is_found_until_its_moment_and_counted_when_it_is_gone(items, clock):
    items.put(b"k", b"v", 7, items.moment_of(10))
    entry = items.find(b"k")
    assert entry.item == (b"v", 7, 1) and not entry.fetched
    assert repr(items) == f"<Items 1 items, {entry.size} bytes>"
    clock.turn(10)
    assert items.find(b"k") is None
    assert items.counts["get_expired"] == items.counts["expired_unfetched"] == 1
    assert len(items) == items.bytes == 0


def test_what_was_asked_for_knows_it(items, clock):
    items.put(b"k", b"v")
    clock.turn(5)
    assert items.find(b"k").accessed == int(clock.now) - 5
    entry = items.fetch(b"k")
    assert entry.fetched and entry.accessed == int(clock.now)
    assert items.fetch(b"absent") is None


def test_moments(items, clock):
    now = int(clock.now)
    assert items.moment_of(0) == 0
    assert items.moment_of(30 * DAY) == now + 30 * DAY
    assert items.moment_of(now + 50) == now + 50
    # All that has passed before memcached's clock began is the same moment to it.
    assert {items.moment_of(past) for past in (-1, -(2**31), 30 * DAY + 1)} == {now - 61}


def test_looking_without_use_does_not_keep_it_longer(clock):
    items = Items(clock, max_items=2)
    items.put(b"a", b"1")
    items.put(b"b", b"2")
    items.find(b"a", use=False)
    items.put(b"c", b"3")
    assert [value_of(items, key) for key in (b"a", b"b", b"c")] == [None, b"2", b"3"]
    assert items.counts["evicted_unfetched"] == items.counts["evictions"] == 1


def test_flush_all_takes_what_is_there_and_leaves_what_comes(items):
    items.put(b"k", b"v")
    items.flush_all()
    assert value_of(items) is None
    items.put(b"k", b"w")
    assert value_of(items) == b"w"


def test_flush_all_with_a_delay(items, clock):
    items.put(b"k", b"v")
    items.flush_all(10)
    items.put(b"l", b"v")
    clock.turn(8)
    assert value_of(items) == b"v"
    clock.turn(1)  # (memcached's tenth second begins)
    assert value_of(items) is None
    items.put(b"l", b"v")
    assert value_of(items, b"l") is None  # (stored in the second of the flush)
    clock.turn(1)
    items.put(b"l", b"v")
    assert value_of(items, b"l") == b"v"


def test_flush_all_again_takes_the_place_of_the_one_to_come(items, clock):
    items.flush_all(10)
    items.flush_all(100)
    items.put(b"k", b"v")
    clock.turn(50)
    assert value_of(items) == b"v"
    items.flush_all()
    items.put(b"k", b"v")
    clock.turn(100)
    assert value_of(items) == b"v"


def test_flush_all_at_a_moment(items, clock):
    items.put(b"k", b"v")
    items.flush_all(30 * DAY + 1)  # (before the server began: memcached does nothing)
    assert value_of(items) == b"v"
    items.flush_all(int(clock.now) + 10)
    clock.turn(8)
    assert value_of(items) == b"v"
    clock.turn(1)
    assert value_of(items) is None


def test_the_longest_unused_item_is_evicted(clock):
    items = Items(clock, max_items=2)
    items.put(b"a", b"1")
    items.put(b"b", b"2")
    items.find(b"a")
    items.put(b"c", b"3")
    assert [value_of(items, key) for key in (b"a", b"b", b"c")] == [b"1", None, b"3"]
    assert items.counts["evictions"] == 1


def test_bytes_are_bounded(clock):
    items = Items(clock, max_bytes=10_000)
    for number in range(1000):
        items.put(b"key-%d" % number, b"x" * 900)
        assert items.bytes <= 10_000
    assert 5 < len(items) < 12
    assert items.bytes == sum(item_size(b"key-999", 0, 900) for _ in range(len(items)))


def test_the_size_of_an_item_is_limited(clock):
    items = Items(clock, max_item_size=1000)
    assert not items.too_large(b"k", 0, 940)
    assert items.too_large(b"k", 0, 941)
    assert items.too_large(b"k", 1, 940)
