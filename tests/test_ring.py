"""tornado_memcache.ring: which server a key goes to, and who takes it over.

That the places are those of python-memcached and of pylibmc is compared
with those very clients in `tests/test_placement.py`.
"""

import zlib
from collections import Counter
from functools import partial

import pytest

from tornado_memcache import Client
from tornado_memcache.address import Server, parse_servers
from tornado_memcache.errors import InvalidRequest
from tornado_memcache.ring import (
    Custom,
    Ketama,
    Modulo,
    Rendezvous,
    key_hash,
    make_ring,
    md5_hash,
    one_at_a_time,
)

NAMES = ["modulo", "ketama", "ketama_weighted", "rendezvous"]
KEYS = [b"key-%d" % number for number in range(4000)]


def everybody(index: int) -> bool:
    return True


def nobody(index: int) -> bool:
    return False


# -- the hashes


@pytest.mark.parametrize(
    ("key", "number"), [(b"foo", 3187), (b"bar", 30463), (b"a", 26807), (b"ob", 0), (b"", 0)]
)
def test_the_hash_is_python_memcached_s(key, number):
    assert key_hash(key) == number


@pytest.mark.parametrize(
    ("hashing", "key", "number"),
    [
        # Bob Jenkins' own: the empty string stays 0, "a" is published as 0xca2e9442.
        (one_at_a_time, b"", 0),
        (one_at_a_time, b"a", 0xCA2E9442),
        (one_at_a_time, b"The quick brown fox jumps over the lazy dog", 0x519E91F5),
        # md5("") is d41d8cd98f00b204e9800998ecf8427e
        (md5_hash, b"", 0xD98C1DD4),
        (md5_hash, b"abc", 0x98500190),
    ],
)
def test_the_hashes_of_libmemcached(hashing, key, number):
    assert hashing(key) == number


# -- modulo


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


def test_a_key_whose_server_is_dead_is_hashed_again_with_the_step():
    asked = []

    def alive(index):
        asked.append(index)
        return len(asked) == 10

    ring = make_ring("modulo", parse_servers(["a", "b", "c", "d"]))
    numbers = [3187]
    for step in range(9):
        numbers.append(key_hash(f"{numbers[-1]}{step}".encode()))
    assert ring.place_among(b"foo", alive) == numbers[-1] % 4
    assert asked == [number % 4 for number in numbers]
    del asked[:]
    assert ring.place_among(3187, alive) == numbers[-1] % 4  # (the hash of foo)


def test_the_key_is_tried_as_often_as_python_memcached_tries_it():
    """That is ten places in all: its loop of ten ends before the tenth rehash is tried."""
    asked = []
    ring = make_ring("modulo", parse_servers(["a", "b", "c"]))
    assert ring.place_among(b"foo", lambda index: asked.append(index)) is None
    assert len(asked) == 10


def test_a_hash_function_of_ones_own():
    ring = Modulo(parse_servers(["a", "b", "c"]), key_hash=zlib.crc32)
    first = zlib.crc32(b"foo")
    assert ring.place(b"foo") == first % 3
    places = [first % 3, zlib.crc32(b"%d0" % first) % 3]
    asked = []
    ring.place_among(b"foo", lambda index: asked.append(index) or len(asked) == 2)
    assert asked == places


# -- ketama


def test_a_ketama_server_has_100_points_and_the_weighted_ones_share_160_each():
    assert len(Ketama(parse_servers(["a", "b", "c"]))._points) == 300
    assert len(Ketama(parse_servers(["a", "b", "c"]), weighted=True)._points) == 480
    shares = Counter(Ketama(parse_servers([("a", 1), ("b", 2), ("c", 5)]), weighted=True)._indexes)
    # floor(1/8 * 40 * 3) * 4, floor(2/8 * 120) * 4, floor(5/8 * 120) * 4
    assert shares == {0: 60, 1: 120, 2: 300}


def test_a_ketama_key_takes_the_first_point_that_is_not_below_it_and_wraps():
    ring = Ketama(parse_servers(["a", "b", "c"]))
    first, last = ring._points[0], ring._points[-1]
    assert ring.place(first) == ring._indexes[0]
    assert ring.place(first - 1) == ring._indexes[0]
    assert ring.place(first + 1) == ring._indexes[1]
    assert ring.place(last) == ring._indexes[-1]
    assert ring.place(last + 1) == ring._indexes[0]
    # an int of any size is taken as 32 bits
    assert ring.place(first + (5 << 32)) == ring._indexes[0]
    assert ring.place(-1) == ring._indexes[0]


def test_the_port_of_memcached_stands_in_no_point():
    def points(*servers):
        return Ketama(parse_servers(servers))._points

    assert (
        points("a") == points("a:11211") == sorted(one_at_a_time(b"a-%d" % n) for n in range(100))
    )
    assert points("a:1") == sorted(one_at_a_time(b"a:1-%d" % n) for n in range(100))


@pytest.mark.parametrize("weighted", [False, True])
def test_a_ketama_key_moves_to_the_next_point_of_a_server_that_is_there(weighted):
    ring = Ketama(parse_servers(["a", "b", "c"]), weighted=weighted)
    for key in KEYS[:200]:
        start = ring._first(key)
        walk = ring._indexes[start:] + ring._indexes[:start]
        assert ring.place_among(key, everybody) == ring.place(key) == walk[0]
        second = next(index for index in walk if index != walk[0])
        assert ring.place_among(key, lambda index, dead=walk[0]: index != dead) == second


def test_ketama_moves_few_keys_when_a_server_is_added():
    few = Ketama(parse_servers(["a", "b", "c", "d"]))
    more = Ketama(parse_servers(["a", "b", "c", "d", "e"]))
    moved = Counter(more.place(key) for key in KEYS if few.place(key) != more.place(key))
    assert set(moved) == {4}
    assert moved[4] < len(KEYS) * 0.3


# -- rendezvous


def test_rendezvous_shares_by_weight():
    weights = [1, 2, 3, 4]
    ring = Rendezvous(parse_servers([(f"server-{w}", w) for w in weights]))
    shares = Counter(ring.place(b"key-%d" % number) for number in range(20_000))
    for index, weight in enumerate(weights):
        # four standard deviations are 1.4 % of the smallest share's 2000 at most
        assert shares[index] == pytest.approx(2000 * weight, abs=4 * (2000 * weight) ** 0.5)


def test_rendezvous_moves_only_the_keys_of_the_server_that_leaves():
    servers = parse_servers([("a", 2), "b", "c:1", ("d", 3)])
    whole = Rendezvous(servers)
    for gone in range(4):
        rest = Rendezvous([server for index, server in enumerate(servers) if index != gone])
        moved = Counter()
        for key in KEYS:
            before = whole.place(key)
            after = rest.place(key)
            after += after >= gone
            # leaving the list and being dead are the same to a key
            assert whole.place_among(key, lambda index, gone=gone: index != gone) == after
            if before != gone:
                assert after == before
            else:
                moved[after] += 1
        assert set(moved) == {0, 1, 2, 3} - {gone}


def test_rendezvous_moves_only_to_the_server_whose_weight_grew():
    before = Rendezvous(parse_servers(["a", "b", "c"]))
    after = Rendezvous(parse_servers(["a", ("b", 2), "c"]))
    moved = {after.place(key) for key in KEYS if after.place(key) != before.place(key)}
    assert moved == {1}


def test_rendezvous_does_not_depend_on_the_order_of_the_servers():
    servers = parse_servers(["a", "b", ("c", 2)])
    one, other = Rendezvous(servers), Rendezvous(servers[::-1])
    assert all(one.place(key) == 2 - other.place(key) for key in KEYS)


def test_rendezvous_tells_long_names_apart_that_differ_in_the_middle_only():
    """As the names of a cloud do: all begin and end alike."""
    names = [f"cache.production-eu-west-{n:02}.memcached.example.com" for n in range(4)]
    ring = Rendezvous(parse_servers(names))
    shares = Counter(map(ring.place, KEYS))
    assert all(shares[index] == pytest.approx(1000, rel=0.2) for index in range(4)), shares


# -- any ring


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("servers", [["a"], ["a", "b"], [("a", 3), "b:1", "unix:/c", "[::1]:2"]])
def test_every_ring_places_and_gives_way(name, servers):
    ring = make_ring(name, parse_servers(servers))
    again = make_ring(name, parse_servers(servers))
    for key in [*KEYS[:300], b"", b"\xff" * 250, 0, -1, 1 << 70]:
        place = ring.place(key)
        assert 0 <= place < len(servers)
        assert again.place(key) == place
        assert ring.place_among(key, everybody) == place
        assert ring.place_among(key, nobody) is None
        other = ring.place_among(key, lambda index, dead=place: index != dead)
        assert other != place
        if name != "modulo":
            # modulo may miss the others ten times, as python-memcached does
            assert (other is None) == (len(servers) == 1)
    assert {ring.place(key) for key in KEYS} == set(range(len(servers)))


@pytest.mark.parametrize("name", NAMES)
def test_a_route_that_is_text_is_spread_over_all_servers(name):
    """A route is placed as a key of that name is, whatever the ring."""
    client = Client(["a", "b", "c"], ring=name)
    client._cluster.pool_for = lambda key: client._cluster._ring.place(key)
    client._cluster.ready = lambda: None
    places = [client._locate((f"user:{number}", "k"))[1] for number in range(600)]
    assert places == [client._locate(f"user:{number}")[1] for number in range(600)]
    assert places == [client._locate((b"user:%d" % number, "k"))[1] for number in range(600)]
    assert min(Counter(places)[index] for index in range(3)) > 100
    client.close()


# -- a ring of one's own


class Answers:
    """Answers what it was told, and keeps what it was asked."""

    def __init__(self, *answers):
        self.answers = list(answers)
        self.asked = []

    def server_for(self, key, alive):
        self.asked.append((key, alive))
        answer = self.answers.pop(0) if len(self.answers) > 1 else self.answers[0]
        if isinstance(answer, Exception):
            raise answer
        return answer


def test_a_ring_of_ones_own_is_asked_with_the_key_and_the_servers_that_are_there():
    servers = parse_servers(["a", ("b:1", 2), "c"])
    mine = Answers(servers[1], servers[2], servers[0])
    ring = make_ring(mine, servers)
    assert isinstance(ring, Custom)
    assert ring.place(b"k") == 1
    assert ring.place_among(b"k", lambda index: index != 1) == 2
    assert ring.place(7) == 0
    assert mine.asked == [(b"k", servers), (b"k", (servers[0], servers[2])), (7, servers)]
    assert all(type(server) is Server for server in mine.asked[0][1])


def test_a_ring_of_ones_own_is_not_asked_when_nobody_is_there():
    mine = Answers(None)
    ring = make_ring(mine, parse_servers(["a", "b"]))
    assert ring.place_among(b"k", nobody) is None
    assert mine.asked == []


def test_a_ring_of_ones_own_may_find_nobody_only_while_some_are_dead():
    ring = make_ring(Answers(None), parse_servers(["a", "b"]))
    assert ring.place_among(b"k", lambda index: index == 0) is None
    with pytest.raises(InvalidRequest, match="server_for returned None"):
        ring.place(b"k")


@pytest.mark.parametrize(
    "wrong", ["a", 0, True, (), [], object(), Server("a", 2), Server("d", 11211), "x" * 1000]
)
def test_a_ring_of_ones_own_that_answers_what_it_was_not_given(wrong):
    ring = make_ring(Answers(wrong), parse_servers(["a", "b"]))
    for place in (ring.place, lambda key: ring.place_among(key, everybody)):
        with pytest.raises(InvalidRequest, match="server_for returned") as caught:
            place(b"k")
        assert len(str(caught.value)) < 200


def test_a_ring_of_ones_own_must_not_choose_a_dead_server():
    servers = parse_servers(["a", "b"])
    ring = make_ring(Answers(servers[0]), servers)
    assert ring.place_among(b"k", lambda index: index == 0) == 0
    with pytest.raises(InvalidRequest, match="not alive"):
        ring.place_among(b"k", lambda index: index == 1)


def test_what_a_ring_of_ones_own_raises_is_raised_as_it_is():
    ring = make_ring(Answers(KeyError("mine")), parse_servers(["a", "b"]))
    with pytest.raises(KeyError, match="mine"):
        ring.place(b"k")


# -- names


@pytest.mark.parametrize(
    ("name", "kind"),
    [
        ("modulo", Modulo),
        ("ketama", Ketama),
        ("ketama_weighted", Ketama),
        ("rendezvous", Rendezvous),
    ],
)
def test_the_rings_that_have_a_name(name, kind):
    servers = parse_servers(["a", "b"])
    assert type(make_ring(name, servers)) is kind
    client = Client(["a", "b"], ring=name)
    assert type(client._cluster._ring) is kind
    client.close()


def test_ketama_weighted_is_weighted_though_all_weights_are_one():
    servers = parse_servers(["a", "b"])
    assert make_ring("ketama_weighted", servers)._points == Ketama(servers, weighted=True)._points
    assert make_ring("ketama", servers)._points == Ketama(servers)._points


def test_a_callable_makes_the_ring_of_the_servers():
    servers = parse_servers(["a", "b"])
    assert make_ring(Ketama, servers)._points == Ketama(servers)._points
    made = make_ring(partial(Ketama, key_hash=md5_hash), servers)
    assert made._points == Ketama(servers, key_hash=md5_hash)._points
    client = Client(["a", "b"], ring=partial(Modulo, key_hash=zlib.crc32))
    assert client._cluster._ring.place(b"k") == zlib.crc32(b"k") % 2
    client.set_servers(["a", "b", "c"])
    assert client._cluster._ring.place(b"k") == zlib.crc32(b"k") % 3
    client.close()


@pytest.mark.parametrize("made", [None, 7, "modulo", object()])
def test_a_callable_that_makes_no_ring(made):
    with pytest.raises(InvalidRequest, match="ring"):
        make_ring(lambda servers: made, parse_servers(["a"]))


class NotCallable:
    server_for = 1


@pytest.mark.parametrize(
    "ring", ["nonsense", "", "MODULO", None, 1, [], b"modulo", "x" * 1000, object(), NotCallable()]
)
def test_a_ring_that_is_not_there(ring):
    with pytest.raises(InvalidRequest, match="ring") as caught:
        make_ring(ring, parse_servers(["a"]))
    assert len(str(caught.value)) < 250
    assert "server_for" in str(caught.value)
    with pytest.raises(InvalidRequest, match="ring"):
        Client(["a"], ring=ring)


def test_one_at_a_time_takes_a_byte_for_a_signed_char():
    """As libmemcached's C does: what is not ASCII is taken off."""
    assert one_at_a_time("ü1".encode()) != one_at_a_time(b"u1")
    plain = 0
    for byte in "ü".encode():
        plain = (plain + byte - 0x100) & 0xFFFFFFFF
        plain = (plain + (plain << 10)) & 0xFFFFFFFF
        plain ^= plain >> 6
    plain = (plain + (plain << 3)) & 0xFFFFFFFF
    plain ^= plain >> 11
    assert one_at_a_time("ü".encode()) == (plain + (plain << 15)) & 0xFFFFFFFF
