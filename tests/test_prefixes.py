"""tornado_memcache.prefixes: counts by what stands before the colon of a key."""

from tornado_memcache import prefixes
from tornado_memcache.prefixes import Prefixes


def test_nothing_is_counted_before_it_is_asked_for():
    counted = Prefixes()
    counted.count(b"a:1", "get")
    assert counted.lines() == b"" and repr(counted) == "<Prefixes 0>"


def test_counts_by_prefix():
    counted = Prefixes()
    counted.counting = True
    counted.count(b"a:1", "get", "hit")
    counted.count(b"a:2:3", "get")
    counted.count(b"b:", "set")
    counted.count(b"without", "del")
    assert counted.lines() == b"a get 2 hit 1 set 0 del 0\nb get 0 hit 0 set 1 del 0"
    counted.reset()
    assert counted.lines() == b""


def test_what_clients_choose_is_bounded(monkeypatch):
    monkeypatch.setattr(prefixes, "MOST", 2)
    counted = Prefixes()
    counted.counting = True
    for prefix in (b"a", b"b", b"c", b"a"):
        counted.count(prefix + b":", "get")
    assert counted.lines() == b"a get 2 hit 0 set 0 del 0\nb get 1 hit 0 set 0 del 0"
