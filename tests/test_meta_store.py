"""tornado_memcache.meta_store: what the meta verbs do, with a clock turned by hand.

What a real memcached answers to the same is compared in `test_oracle.py`;
here stand the stories that the flags are for, and the cases that take time.
"""

import pytest

from tornado_memcache.errors import ClientError
from tornado_memcache.meta_store import MetaVerbs
from tornado_memcache.protocol import Request
from tornado_memcache.store import Store

from .hand import Hand


@pytest.fixture
def clock():
    return Hand(1_700_000_000.5)


@pytest.fixture
def store(clock):
    return Store(clock)


@pytest.fixture
def ask(store):
    answer = MetaVerbs(store).answer

    def ask(verb, key=b"k", flags=b"", value=b""):
        reply = answer(Request(verb, (key,), value, argument=flags))
        told = reply.status + (b" " + reply.text if reply.text else b"")
        return (told, reply.value) if reply.status == b"VA" else told

    return ask


def test_what_is_told_of_an_item(ask, clock):
    assert ask(b"ms", flags=b"T100 F7", value=b"abc") == b"HD"
    clock.turn(30)
    told = b"VA s3 t70 c1 f7 h0 l30 kk Oxy"
    assert ask(b"mg", flags=b"v s t c f h l k Oxy") == (told, b"abc")
    clock.turn(5)
    assert ask(b"mg", flags=b"h l t") == b"HD h1 l5 t65"
    assert ask(b"mg", b"absent", b"v k O1") == b"EN kabsent O1"


def test_no_bump_leaves_no_trace(ask, clock):
    ask(b"ms", value=b"abc")
    clock.turn(30)
    assert ask(b"mg", flags=b"u v") == (b"VA", b"abc")
    assert ask(b"mg", flags=b"u h l") == b"HD h0 l30"


def test_a_miss_is_filled_by_one_alone(ask, clock):
    assert ask(b"mg", flags=b"N30 v t") == (b"VA t30 W", b"")
    assert ask(b"mg", flags=b"N30 v t") == (b"VA t30 Z", b"")
    assert ask(b"ms", flags=b"T60", value=b"made") == b"HD"
    assert ask(b"mg", flags=b"N30 v t") == (b"VA t60", b"made")
    clock.turn(60)
    assert ask(b"mg", flags=b"N30 v t") == (b"VA t30 W", b"")
    clock.turn(30)  # (who won never came back)
    assert ask(b"mg", flags=b"N30 v t") == (b"VA t30 W", b"")


def test_one_alone_makes_it_anew_before_it_expires(ask, clock):
    ask(b"ms", flags=b"T100", value=b"old")
    assert ask(b"mg", flags=b"R30 v") == (b"VA", b"old")
    clock.turn(71)
    assert ask(b"mg", flags=b"R30 v t") == (b"VA t29 W", b"old")
    assert ask(b"mg", flags=b"R30 v t") == (b"VA t29 Z", b"old")
    ask(b"ms", flags=b"T100", value=b"new")
    assert ask(b"mg", flags=b"R30 v t") == (b"VA t100", b"new")


def test_a_stale_item_is_served_while_one_makes_it_anew(ask, clock):
    ask(b"ms", flags=b"T100", value=b"old")
    assert ask(b"md", flags=b"I T30") == b"HD"
    assert ask(b"mg", flags=b"v t c") == (b"VA t30 c2 X W", b"old")
    assert ask(b"mg", flags=b"v t c") == (b"VA t30 c2 Z X", b"old")
    assert ask(b"md", flags=b"I") == b"HD"
    assert ask(b"mg", flags=b"c") == b"HD c3 X W"
    # Who had it from before may store it as stale; who won stores it as new.
    assert ask(b"ms", flags=b"C1 T90", value=b"older") == b"EX"
    assert ask(b"ms", flags=b"C1 I T90 c", value=b"older") == b"HD c4"
    assert ask(b"mg", flags=b"v t") == (b"VA t30 Z X", b"older")
    assert ask(b"ms", flags=b"C4 T90", value=b"new") == b"HD"
    assert ask(b"mg", flags=b"v t") == (b"VA t90", b"new")


def test_modes_of_a_set(ask):
    assert ask(b"ms", flags=b"MR", value=b"b") == b"NS"
    assert ask(b"ms", flags=b"MA c", value=b"b") == b"NS c0"
    assert ask(b"ms", flags=b"ME", value=b"b") == b"HD"
    assert ask(b"ms", flags=b"ME", value=b"x") == b"NS"
    assert ask(b"ms", flags=b"MA", value=b"c") == b"HD"
    assert ask(b"ms", flags=b"MP c k O1", value=b"a") == b"HD c3 kk O1"
    assert ask(b"mg", flags=b"v") == (b"VA", b"abc")
    assert ask(b"ms", flags=b"MA C1", value=b"x") == b"EX"
    assert ask(b"ms", b"absent", b"C1", value=b"x") == b"NF"
    assert ask(b"ms", flags=b"MS", value=b"s") == ask(b"ms", flags=b"MR", value=b"r") == b"HD"


def test_deleting_compares(ask):
    ask(b"ms", value=b"v")
    assert ask(b"md", flags=b"C7 k") == b"EX kk"
    assert ask(b"md", flags=b"C1") == b"HD"
    assert ask(b"md", flags=b"k O1") == b"NF kk O1"


def test_counting(ask, clock):
    assert ask(b"ma") == b"NF"
    assert ask(b"ma", flags=b"N30 J13 v t") == (b"VA t30", b"13")
    assert ask(b"ma", flags=b"N30 J13 v D2 c") == (b"VA c2", b"15")
    assert ask(b"ma", flags=b"MD D20 T90 t v") == (b"VA t90", b"0")
    assert ask(b"ma", flags=b"C1 k") == b"EX kk"
    ask(b"ms", value=b"text")
    with pytest.raises(ClientError, match="non-numeric"):
        ask(b"ma")


def test_a_number_that_grows_does_not_hear_of_its_new_exptime(ask):
    """As in memcached, which tells the item that it has just replaced."""
    ask(b"ms", flags=b"T100", value=b"9")
    assert ask(b"ma", flags=b"T500 t c") == b"HD t500 c2"
    assert ask(b"mg", flags=b"v t c") == (b"VA t100 c2", b"10")


def test_binary_keys_are_told_as_they_were_stored(ask):
    ask(b"ms", b"\x00 \n", b"b k", value=b"v")
    assert ask(b"mg", b"\x00 \n", b"k v") == (b"VA kACAK b", b"v")
    assert ask(b"mg", b"absent", b"b k") == b"EN kYWJzZW50 b"
    assert ask(b"me", b"\x00 \n").startswith(b"ME ACAK exp=-1 ")
    ask(b"ms", b"\x00 \n", b"b MA", value=b"w")
    assert ask(b"mg", b"\x00 \n", b"b k") == b"HD k\x00 \n"


def test_what_debug_tells(ask, clock):
    ask(b"ms", flags=b"T100", value=b"abc")
    clock.turn(10)
    assert ask(b"me") == b"ME k exp=-90 la=10 cas=1 fetch=no cls=1 size=63"
    ask(b"mg")
    assert ask(b"me") == b"ME k exp=-90 la=0 cas=1 fetch=yes cls=1 size=63"
    assert ask(b"me", b"absent") == b"EN"


def test_what_is_stored_expired_is_gone_at_once(ask):
    assert ask(b"ms", flags=b"T-1", value=b"v") == b"HD"
    assert ask(b"mg") == b"EN"
    assert ask(b"mg", flags=b"N-1").startswith(b"HD W")
    assert ask(b"mg") == b"EN"


def test_counts(ask, store):
    ask(b"mg")
    ask(b"ms", value=b"v")
    ask(b"mg")
    ask(b"mg", flags=b"T5")
    ask(b"me")
    ask(b"md")
    ask(b"md")
    counts = {name: number for name, number in store.counts.items() if number}
    assert counts == {
        "cmd_get": 2, "get_misses": 1, "get_hits": 1, "cmd_set": 1, "total_items": 1,
        "cmd_touch": 1, "touch_hits": 1, "cmd_meta": 1, "delete_hits": 1, "delete_misses": 1,
    }  # fmt: skip
