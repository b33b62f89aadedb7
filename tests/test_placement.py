"""tornado_memcache.ring puts each key where python-memcached and pylibmc put it.

python-memcached is asked for its choice; its hosts are replaced so that no
network is needed. pylibmc does not tell: it stores 10 000 keys in real
memcacheds, and those tell which of them they hold. A server at port 11211
(whose points carry no port) is started where that port is free, otherwise
that one test is skipped.

libmemcached 1.0.18 writes beyond its continuum when seven servers or more
have weights without ``ketama_weighted`` (it crashes), so that row ends at six.
"""

from __future__ import annotations

import socket

import memcache
import pylibmc
import pytest

from tornado_memcache import Client
from tornado_memcache.address import DEFAULT_PORT, parse_servers
from tornado_memcache.ring import Ketama, make_ring, md5_hash

KEYS = [f"key-{number}" for number in range(10_000)]
WIRES = [key.encode() for key in KEYS]
#: For up to nine servers: equal at the ends, far apart, some alike.
WEIGHTS = [1, 4, 2, 2, 7, 1, 3, 10, 1]


# -- python-memcached


def asked_of_python_memcached(servers):
    """Returns a client of theirs whose servers are alive unless they are in a set, and the set."""
    client = memcache.Client(servers)
    dead = set()
    for index, host in enumerate(client.servers):
        host.index = index
        host._check_dead = lambda index=index: index in dead
        host.connect = lambda index=index: index not in dead
    return client, dead


def theirs(client, key):
    host, _ = client._get_server(key)
    return host and host.index


@pytest.mark.parametrize("weighted", [False, True], ids=["alike", "weighted"])
@pytest.mark.parametrize("number", range(1, 10))
def test_modulo_is_python_memcached_s_choice(number, weighted):
    names = [f"10.0.0.{index}:11211" for index in range(number)]
    servers = list(zip(names, WEIGHTS)) if weighted else names
    client, dead = asked_of_python_memcached(servers)
    ring = make_ring("modulo", parse_servers(servers))
    assert [ring.place(key) for key in WIRES] == [theirs(client, key) for key in WIRES]
    # each server dead in turn: its keys move, all others stay
    for gone in range(number):
        dead.add(gone)
        for key in WIRES:
            if ring.place(key) == gone:
                chosen = ring.place_among(key, lambda index, gone=gone: index != gone)
                assert chosen == theirs(client, key), key
        dead.clear()


@pytest.mark.parametrize("alive", [{0}, {8}, {2, 3}, set()])
def test_modulo_is_python_memcached_s_choice_when_most_are_dead(alive):
    """Ten tries may all meet dead servers: then neither finds one that is there."""
    servers = [(f"10.0.0.{index}", WEIGHTS[index]) for index in range(9)]
    client, dead = asked_of_python_memcached(servers)
    dead |= set(range(9)) - alive
    ring = make_ring("modulo", parse_servers(servers))
    places = [ring.place_among(key, alive.__contains__) for key in WIRES]
    assert places == [theirs(client, key) for key in WIRES]
    assert None in places


def test_the_hash_of_a_tuple_is_taken_as_python_memcached_takes_it():
    servers = [("10.0.0.1", 2), "10.0.0.2", ("10.0.0.3", 3)]
    client, dead = asked_of_python_memcached(servers)
    ring = make_ring("modulo", parse_servers(servers))
    for number in [*range(50), -1, -12345, 1 << 40]:
        dead.clear()
        assert ring.place(number) == theirs(client, (number, b"k"))
        gone = ring.place(number)
        dead.add(gone)
        chosen = ring.place_among(number, lambda index, gone=gone: index != gone)
        assert chosen == theirs(client, (number, b"k"))


@pytest.mark.gen_test
async def test_each_finds_what_the_other_stored_in_python_memcached_s_places(start_memcached):
    servers = [(start_memcached().address, weight) for weight in (1, 3, 2)]
    other = memcache.Client(servers)
    try:
        async with Client(servers) as client:
            assert other.set_multi({f"t-{n}": f"v{n}" for n in range(300)}) == []
            assert await client.get_multi(f"t-{n}" for n in range(300)) == {
                f"t-{n}": f"v{n}" for n in range(300)
            }
            assert await client.set_multi({f"o-{n}": n for n in range(300)}) == []
            assert other.get_multi([f"o-{n}" for n in range(300)]) == {
                f"o-{n}": n for n in range(300)
            }
            # A tuple's int is the hash in both.
            for number in range(6):
                assert other.set((number, "by-hash"), number)
                assert await client.get((number, "by-hash")) == number
    finally:
        other.disconnect_all()


# -- pylibmc


@pytest.fixture(scope="module")
def nine(memcached_binary):
    from .memcacheds import Memcached

    servers = [Memcached(["-t", "1"], binary=memcached_binary) for _ in range(9)]
    yield servers
    for server in servers:
        server.close()


def spec(server, weight=None):
    """Returns the server as pylibmc takes it."""
    if server.path:
        return server.path if weight is None else (4, server.path, 0, weight)
    host = f"[{server.host}]" if ":" in server.host else server.host
    return f"{host}:{server.port}" + (f":{weight}" if weight else "")


def address(server):
    """Returns the server as we take it."""
    return server.address if server.path else spec(server)


def held_by(server):
    """Returns the keys that a memcached holds. What they consist of needs no escaping there."""
    lines = server.ask(b"lru_crawler metadump all\r\n", b"END\r\n").split(b"\n")
    return [line.split(b" ", 1)[0][4:] for line in lines if line.startswith(b"key=")]


def placed_by_pylibmc(servers, weights, behaviors):
    """Stores the keys through pylibmc, and returns where each of them is."""
    for server in servers:
        server.flush()
        assert held_by(server) == []
    specs = [spec(server, weight) for server, weight in zip(servers, weights or [None] * 9)]
    client = pylibmc.Client(specs, behaviors=behaviors)
    try:
        assert client.set_multi(dict.fromkeys(KEYS, b"")) == []
    finally:
        client.disconnect_all()
    places = {}
    for _ in range(5):  # (a dump leaves out the items that are being moved in their LRU)
        for index, server in enumerate(servers):
            for key in held_by(server):
                assert places.setdefault(key, index) == index
        if len(places) == len(KEYS):
            break
    assert len(places) == len(KEYS)
    return [places[key] for key in WIRES]


def placed_by_us(servers, weights, **options):
    specs = [(address(server), weight) for server, weight in zip(servers, weights or [1] * 9)]
    ring = Ketama(parse_servers(specs), **options)
    return [ring.place(key) for key in WIRES]


PLAIN = ({"ketama": True}, {})
MD5 = ({"ketama": True, "hash": "md5"}, {"key_hash": md5_hash})
WEIGHTED = ({"ketama_weighted": True}, {"weighted": True})


@pytest.mark.parametrize("number", range(1, 10))
@pytest.mark.parametrize(
    ("behaviors", "options"), [PLAIN, WEIGHTED], ids=["ketama", "ketama_weighted"]
)
def test_ketama_is_pylibmc_s_choice(nine, number, behaviors, options):
    servers = nine[:number]
    assert placed_by_us(servers, None, **options) == placed_by_pylibmc(servers, None, behaviors)


@pytest.mark.parametrize("number", range(1, 10))
def test_weighted_ketama_is_pylibmc_s_choice(nine, number):
    behaviors, options = WEIGHTED
    servers, weights = nine[:number], WEIGHTS[:number]
    assert placed_by_us(servers, weights, **options) == placed_by_pylibmc(
        servers, weights, behaviors
    )


@pytest.mark.parametrize(
    ("behaviors", "options", "weights"),
    [
        (*MD5, None),
        (*MD5, WEIGHTS[:6]),
        (*PLAIN, WEIGHTS[:6]),
        (*PLAIN, [1, 1, 1, 1, 1, 1]),
        (*WEIGHTED, [1, 1, 1, 1, 1, 100]),
    ],
    ids=["md5", "md5-weights", "ketama-weights", "ketama-ones", "one-heavy"],
)
def test_ketama_in_its_other_forms_is_pylibmc_s_choice(nine, behaviors, options, weights):
    servers = nine[:6]
    assert placed_by_us(servers, weights, **options) == placed_by_pylibmc(
        servers, weights, behaviors
    )


@pytest.mark.parametrize("options", [{"unix": True}, {"host": "::1"}], ids=["unix", "v6"])
@pytest.mark.parametrize(
    ("behaviors", "ring"), [PLAIN, WEIGHTED], ids=["ketama", "ketama_weighted"]
)
def test_ketama_points_of_other_sockets_are_pylibmc_s(start_memcached, options, behaviors, ring):
    if "host" in options:
        try:
            socket.create_server(("::1", 0), family=socket.AF_INET6).close()
        except OSError:
            pytest.skip("no IPv6 on this machine")
    servers = [start_memcached(["-t", "1"], **options) for _ in range(3)]
    try:
        places = placed_by_pylibmc(servers, None, behaviors)
    except pylibmc.HostLookupError:
        pytest.skip("libmemcached takes no IPv6 address on a machine that has none but ::1")
    assert placed_by_us(servers, None, **ring) == places


def test_the_default_port_stands_in_no_point_of_pylibmc_either(start_memcached, nine):
    try:
        usual = start_memcached(["-t", "1"], port=DEFAULT_PORT)
    except OSError:
        pytest.skip(f"something else listens on port {DEFAULT_PORT}")
    servers = [nine[0], usual, nine[1]]
    for behaviors, options in (PLAIN, MD5, WEIGHTED):
        assert placed_by_us(servers, None, **options) == placed_by_pylibmc(servers, None, behaviors)


@pytest.mark.gen_test
@pytest.mark.parametrize(
    ("ring", "behaviors", "weights"),
    [
        ("ketama", {"ketama": True}, [1, 1, 1]),
        ("ketama", {"ketama": True}, [1, 3, 2]),
        ("ketama_weighted", {"ketama_weighted": True}, [1, 1, 1]),
        ("ketama_weighted", {"ketama_weighted": True}, [1, 3, 2]),
    ],
)
async def test_each_finds_what_the_other_stored_in_ketama_s_places(nine, ring, behaviors, weights):
    servers = nine[:3]
    for server in servers:
        server.flush()
    specs = [(address(server), weight) for server, weight in zip(servers, weights)]
    other = pylibmc.Client([spec(*one) for one in zip(servers, weights)], behaviors=behaviors)
    try:
        async with Client(specs, ring=ring) as client:
            assert other.set_multi({f"t-{n}": f"v{n}" for n in range(300)}) == []
            assert await client.get_multi(f"t-{n}" for n in range(300)) == {
                f"t-{n}": f"v{n}" for n in range(300)
            }
            assert await client.set_multi({f"o-{n}": f"v{n}" for n in range(300)}) == []
            assert other.get_multi([f"o-{n}" for n in range(300)]) == {
                f"o-{n}": f"v{n}" for n in range(300)
            }
            used = sum(bool(held_by(server)) for server in servers)
            assert used == 3
    finally:
        other.disconnect_all()
