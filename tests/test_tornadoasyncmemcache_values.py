"""Where the old Tornado module's keys went, and what Python 2 pickled."""

from __future__ import annotations

import pickle

import pytest

from tornado_memcache.address import parse_servers
from tornado_memcache.errors import SerializationError
from tornado_memcache.tornadoasyncmemcache_values import OldModulo, OldPickle, python2_hash


def test_python2_hash_is_that_of_python_2():
    """Vectors by CPython 2.7.18 on 64 bits."""
    for key, number in (
        (b"foo", -4177197833195190597),
        (b"bar", 327024216814240868),
        (b"a", 12416037344),
        (b"ob", 14208085359128301),
        (b"", 0),
        (b"user:1", 9032797381721430764),
        (b"\xc3\xa9t\xc3\xa9", 7663802489438502929),
        (b"key17", -8263941221859491816),
    ):
        assert python2_hash(key) == number


def test_a_dead_server_s_keys_are_hashed_again_so_often():
    servers = parse_servers(["a", ("b", 2), "c"])
    ring = OldModulo(servers, retries=3)
    asked = []

    def nobody(index):
        asked.append(index)
        return False

    assert ring.place(b"k") == [0, 1, 1, 2][python2_hash(b"k") % 4]
    assert ring.place_among(b"k", nobody) is None
    assert len(asked) == 4
    assert ring.place_among(b"k", lambda index: True) == ring.place(b"k")


@pytest.mark.parametrize("value", [None, True, 1.5, {"a": [1, 2]}, (1, "x")])
def test_values_come_back(value):
    data, flags = OldPickle().encode(b"k", value)
    assert flags == 1 and data.startswith(pickle.PROTO + b"\x02")
    assert OldPickle().decode(b"k", data, flags) == value


def test_python_2_strings_are_read_as_text_and_garbage_is_refused():
    assert OldPickle().decode(b"k", b"\x80\x02U\x02\xc3\xbcq\x00.", 1) == "ü"
    assert OldPickle().decode(b"k", b"\x80\x02U\x01\xffq\x00.", 1) == "\xff"
    with pytest.raises(SerializationError, match="unpickled"):
        OldPickle().decode(b"k", b"garbage", 1)
