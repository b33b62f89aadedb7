"""tornado_memcache.store_handler: which request asks what of the store, and what ``stats`` tells.

That the answers are memcached's own is shown in `test_oracle.py`.
"""

import pytest

from tornado_memcache.protocol import Item, Reply, Request
from tornado_memcache.store import Store
from tornado_memcache.store_handler import StoreHandler

from .hand import Hand


@pytest.fixture
def handler():
    return StoreHandler(Store(Hand(1_700_000_000.0)), lambda: {"pid": 7}, lambda: {"tcpport": 1})


def stats(handler, argument=b""):
    return handler(Request(b"stats", argument=argument)).stats


def keep(handler, key, value=b"v"):
    assert handler(Request(b"set", (key,), value)) == Reply(b"STORED")


def test_a_verb_that_it_does_not_know(handler):
    assert handler(Request(b"watch")) == Reply(b"ERROR")


def test_both_dialects_see_the_same_items(handler):
    assert handler(Request(b"ms", (b"k",), b"1", argument=b"F7")) == Reply(b"HD")
    assert handler(Request(b"get", (b"k",))).items == {b"k": Item(b"1", 7, 1)}
    assert handler(Request(b"incr", (b"k",), delta=2)).number == 3
    assert handler(Request(b"mg", (b"k",), argument=b"v")) == Reply(b"VA", value=b"3")
    assert handler(Request(b"delete", (b"k",))) == Reply(b"DELETED")
    assert handler(Request(b"mg", (b"k",))) == Reply(b"EN")
    assert handler(Request(b"mn")) == Reply(b"MN")


@pytest.mark.parametrize(
    "megabytes, status",
    [(7, b"MEMLIMIT_TOO_SMALL"), (8, b"OK"), (1_000_000_001, b"MEMLIMIT_ADJUST_FAILED")],
)
def test_the_limit_of_memory_is_moved(handler, megabytes, status):
    before = handler.store.max_bytes
    request = Request(b"cache_memlimit", argument=b"%d" % megabytes)
    assert handler(request).status == status
    assert handler.store.max_bytes == (megabytes << 20 if status == b"OK" else before)


def test_a_lower_limit_evicts_with_the_next_item(handler):
    for number in range(3000):
        keep(handler, b"k%d" % number, b"x" * 5000)
    handler(Request(b"cache_memlimit", argument=b"8"))
    keep(handler, b"last")
    assert handler.store.bytes <= 8 << 20
    assert b"last" in handler(Request(b"get", (b"last",))).items


def test_stats_tell_the_facts_the_counts_and_the_items(handler):
    keep(handler, b"k")
    told = stats(handler)
    assert (told["pid"], told["cmd_set"], told["curr_items"]) == ("7", "1", "1")
    assert told["bytes"] == str(handler.store.bytes) and told["limit_maxbytes"] == str(64 << 20)
    assert handler(Request(b"stats", argument=b"reset")) == Reply(b"RESET")
    assert stats(handler)["cmd_set"] == "0"


def test_stats_settings(handler):
    handler(Request(b"verbosity", argument=b"99"))
    told = stats(handler, b"settings")
    assert (told["tcpport"], told["maxbytes"], told["verbosity"]) == ("1", str(64 << 20), "4")
    assert (told["detail_enabled"], told["item_size_max"]) == ("no", str(1 << 20))


def test_stats_items_and_slabs(handler):
    assert stats(handler, b"items") == {}
    assert stats(handler, b"slabs") == {"active_slabs": "0", "total_malloced": "0"}
    keep(handler, b"k")
    handler.store._clock.turn(5)
    told = stats(handler, b"items")
    assert (told["items:1:number"], told["items:1:age"]) == ("1", "5")
    told = stats(handler, b"slabs")
    assert (told["1:used_chunks"], told["1:cmd_set"], told["active_slabs"]) == ("1", "1", "1")


def test_stats_sizes(handler):
    assert stats(handler, b"sizes") == {"sizes_status": "disabled"}
    enabled = handler(Request(b"stats", argument=b"sizes_enable"))
    assert enabled == Reply(b"STAT", text=b"sizes_status enabled")
    for key, length in ((b"a", 1), (b"b", 2), (b"c", 100)):
        keep(handler, key, b"x" * length)
    assert stats(handler, b"sizes") == {"64": "2", "160": "1"}
    assert stats(handler, b"settings")["track_sizes"] == "yes"
    handler(Request(b"stats", argument=b"sizes_disable"))
    assert stats(handler, b"sizes") == {"sizes_status": "disabled"}


def test_stats_detail(handler):
    def detail(word):
        return handler(Request(b"stats", argument=b"detail " + word))

    keep(handler, b"user:1")
    assert detail(b"on") == Reply(b"OK")
    keep(handler, b"user:1")
    handler(Request(b"get", (b"user:1", b"user:2", b"plain")))
    handler(Request(b"gat", (b"user:1",), exptime=5))
    handler(Request(b"delete", (b"user:1",)))
    assert detail(b"off") == Reply(b"OK")
    handler(Request(b"get", (b"user:1",)))
    assert detail(b"dump") == Reply(b"PREFIX", text=b"user get 3 hit 2 set 1 del 1")
    assert detail(b"nonsense").status == b"CLIENT_ERROR"
    handler(Request(b"stats", argument=b"reset"))
    assert detail(b"dump") == Reply(b"PREFIX")


def test_the_cluster_is_told_by_who_has_one(handler):
    ask = Request(b"config", argument=b"get cluster")
    assert handler(ask) == Reply(b"ERROR")
    handler.cluster = (3, ["a|127.0.0.1|1"])
    assert handler(ask) == Reply(b"CONFIG", text=b"3\na|127.0.0.1|1\n")
