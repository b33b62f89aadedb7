"""tornado_memcache.ring: keys go where python-memcached puts them."""

from collections import Counter

import pytest

from tornado_memcache.address import parse_servers
from tornado_memcache.errors import InvalidRequest
from tornado_memcache.ring import Modulo, key_hash, make_ring


@pytest.mark.parametrize(
    ("key", "number"), [(b"foo", 3187), (b"bar", 30463), (b"a", 26807), (b"ob", 0), (b"", 0)]
)
def test_the_hash_is_python_memcached_s(key, number):
    assert key_hash(key) == number


@pytest.mark.parametrize(
    ("servers", "places"),
    [
        (["a"], {b"foo": 0, b"bar": 0, b"a": 0, b"ob": 0}),
        (["a", "b"], {b"foo": 1, b"bar": 1, b"a": 1, b"ob": 0}),
        (["a", "b", "c"], {b"foo": 1, b"bar": 1, b"a": 2, b"ob": 0}),
        # 3187 % 4 = 3, 30463 % 4 = 3, 26807 % 4 = 3: the buckets are 0 0 0 1
        ([("a", 3), "b"], {b"foo": 1, b"bar": 1, b"a": 1, b"ob": 0}),
        # 3187 % 5 = 2, 30463 % 5 = 3, 26807 % 5 = 2: the buckets are 0 1 1 1 1
        (["a", ("b", 4)], {b"foo": 1, b"bar": 1, b"a": 1, b"ob": 0}),
        # the buckets are 0 0 1 2 2
        ([("a", 2), "b", ("c", 2)], {b"foo": 1, b"bar": 2, b"a": 1, b"ob": 0}),
    ],
)
def test_keys_are_placed_by_hash_modulo_the_weighted_list(servers, places):
    ring = make_ring("modulo", parse_servers(servers))
    assert {key: ring.place(key) for key in places} == places


def test_the_buckets_repeat_each_server_by_its_weight_in_order():
    assert Modulo(parse_servers([("a", 2), "b", ("c", 3)])).buckets == [0, 0, 1, 2, 2, 2]


def test_an_int_is_the_hash():
    ring = make_ring("modulo", parse_servers(["a", ("b", 2)]))
    assert [ring.place(number) for number in range(6)] == [0, 1, 1, 0, 1, 1]
    assert ring.place(-1) == 1
    assert ring.place(1 << 70) == (0, 1, 1)[(1 << 70) % 3]
    assert ring.place(key_hash(b"foo")) == ring.place(b"foo")


def test_weights_share_the_keys_out():
    ring = make_ring("modulo", parse_servers([("a", 1), ("b", 3)]))
    shares = Counter(ring.place(b"key-%d" % number) for number in range(4000))
    assert shares[1] == pytest.approx(3000, rel=0.1)


@pytest.mark.parametrize("ring", ["nonsense", "", None, 1, [], "x" * 1000])
def test_a_ring_that_is_not_there(ring):
    with pytest.raises(InvalidRequest, match="ring") as caught:
        make_ring(ring, parse_servers(["a"]))
    assert len(str(caught.value)) < 200
